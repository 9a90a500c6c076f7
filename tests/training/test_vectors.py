"""Embeddings as json, binary and csv: both ways, bit for bit; formulas escaped (S111), NaN and infinities refused."""

from __future__ import annotations

import csv
import io
import json
import struct
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from tests.training.data_files import refused
from windlass.core.errors import ConfigError
from windlass.training.files import DataError, InvalidFormat, PayloadTooLarge
from windlass.training.vectors_io import (
    Format,
    Vectors,
    convert_embeddings,
    escape_cell,
    read_embeddings,
    write_embeddings,
)

ENDINGS = {"json": ".json", "binary": ".bin", "csv": ".csv"}
NUMBERS = st.floats(width=32, allow_nan=False, allow_infinity=False)
ROWS = arrays(np.float32, array_shapes(min_dims=2, max_dims=2, max_side=5), elements=NUMBERS)
ONE, TWO = np.array([[0.1, -2.0]], np.float32), np.array([[0.1, -2], [3e-8, 4]], np.float32)


@pytest.mark.parametrize(
    ("vectors", "format", "data"),
    [
        (Vectors(ONE), "json", b'{"embedding":[0.1,-2.0]}\n'),
        (Vectors(TWO), "json", b'{"embeddings":[[0.1,-2.0],\n[3e-08,4.0]]}\n'),
        (Vectors(TWO, ("a", '"b"')), "json",
         b'[{"id":"a","embedding":[0.1,-2.0]},\n{"id":"\\"b\\"","embedding":[3e-08,4.0]}]\n'),
        (Vectors(TWO), "csv", b"0.1,-2.0\r\n3e-08,4.0\r\n"),
        (Vectors(TWO, ("=1+1", "b,c")), "csv", b"id,0,1\r\n'=1+1,0.1,-2.0\r\n\"b,c\",3e-08,4.0\r\n"),
        (Vectors(TWO), "binary", struct.pack("<4f", 0.1, -2, 3e-8, 4)),
    ],
    ids=["json-one", "json-many", "json-named", "csv", "csv-named", "binary"],
)  # fmt: skip
def test_the_files_are_the_ones_made_by_hand(tmp_path: Path, vectors: Vectors, format: Format, data: bytes) -> None:
    path = tmp_path / f"a{ENDINGS[format]}"
    write_embeddings(path, vectors)
    assert path.read_bytes() == data
    found = read_embeddings(path, dimension=2)
    assert found.vectors.tobytes() == vectors.vectors.tobytes() and found.names == vectors.names


@given(ROWS, st.sampled_from(get_args(Format)))
def test_any_vectors_come_back_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory, rows: np.ndarray[tuple[int, int], np.dtype[np.float32]], format: Format
) -> None:
    path = tmp_path_factory.mktemp("v") / "a.any"
    write_embeddings(path, Vectors(rows), format=format)
    found = read_embeddings(path, format=format, dimension=rows.shape[1])
    assert found.vectors.tobytes() == rows.tobytes() and found.vectors.shape == rows.shape


@given(
    st.lists(st.text(st.characters(codec="utf-8"), max_size=12), min_size=1, max_size=6),
    st.sampled_from(["json", "csv"]),
)
def test_any_names_come_back(tmp_path_factory: pytest.TempPathFactory, names: list[str], format: Format) -> None:
    path = tmp_path_factory.mktemp("v") / "a.any"
    rows = np.arange(len(names) * 2, dtype=np.float32).reshape(-1, 2) - 3
    write_embeddings(path, Vectors(rows, tuple(names)), format=format)
    found = read_embeddings(path, format=format)
    assert found.names == tuple(names) and found.vectors.tobytes() == rows.tobytes()


FORMULAS = ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "\uff1d1", "'=1", "''", "-"]


@pytest.mark.parametrize("name", FORMULAS)
def test_s111_no_cell_of_a_name_is_a_formula(tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.csv"
    write_embeddings(path, Vectors(ONE, (name,)))
    (_, row) = csv.reader(io.StringIO(path.read_bytes().decode(), newline=""))
    assert row[0] == f"'{name}" == escape_cell(name)
    assert read_embeddings(path).names == (name,)
    assert escape_cell("plain = 1") == "plain = 1"


@pytest.mark.parametrize(
    "text",
    ['[0.1, -2]', '{"embedding": [0.1, -2]}', '[[0.1, -2]]', '{"embeddings": [[0.1, -2]]}',
     '{"object": "list", "data": [{"object": "embedding", "index": 0, "embedding": [0.1, -2]}]}',
     '[{"embedding": [0.1, -2]}]'],
)  # fmt: skip
def test_usual_forms_of_json_are_read(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    assert read_embeddings(path).vectors.tobytes() == ONE.tobytes()


BAD_JSON = ["", "{", "{}", "[]", "[[]]", "[[1], [1, 2]]", "[1, null]", '["1"]', "[true]", "[1, [2]]",
            '{"embedding": 1}', "[1e400]", "[1e39]", "[NaN]", "[Infinity]", '[{"embedding": [1]}, [2]]', "[{}]",
            '[{"id": "a", "embedding": [1]}, {"embedding": [1]}]', "[" + "9" * 400 + "]", "[" * 4000]  # fmt: skip
BAD_CSV = ["", "id,0\n", "1,2\n3\n", "1,nan\n", "1,inf\n", "1,-inf\n", "1,1e39\n", "1,x\n", "1,1_0\n", "id,0\na,x\n",
           'id,0\n"a,1\n', "1,\n", "id\na\n", "1,\x00\n"]  # fmt: skip


@pytest.mark.parametrize("text", BAD_JSON)
def test_what_is_no_list_of_finite_numbers_is_refused_in_json(tmp_path: Path, text: str) -> None:
    assert isinstance(refused(read_embeddings, tmp_path / "a.json", text.encode()), InvalidFormat)


@pytest.mark.parametrize("text", BAD_CSV)
def test_what_is_no_list_of_finite_numbers_is_refused_in_csv(tmp_path: Path, text: str) -> None:
    assert isinstance(refused(read_embeddings, tmp_path / "a.csv", text.encode()), InvalidFormat)


@pytest.mark.parametrize("data", [b"", b"123", struct.pack("<f", float("nan")), struct.pack("<f", float("inf"))])
def test_what_is_no_row_of_finite_floats_is_refused_in_binary(tmp_path: Path, data: bytes) -> None:
    refused(read_embeddings, tmp_path / "a.bin", data)
    path = tmp_path / "b.bin"
    path.write_bytes(bytes(24))
    assert read_embeddings(path).vectors.shape == (1, 6)
    assert read_embeddings(path, dimension=3).vectors.shape == (2, 3)
    for dimension in (4, 5, -1):
        with pytest.raises(InvalidFormat):
            read_embeddings(path, dimension=dimension)


@given(st.binary(max_size=60), st.sampled_from(get_args(Format)))
def test_any_bytes_are_vectors_or_a_typed_error(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, format: Format
) -> None:
    path = tmp_path_factory.mktemp("v") / "a.any"
    path.write_bytes(data)
    try:
        found = read_embeddings(path, format=format)
    except DataError:
        return
    assert np.isfinite(found.vectors).all() and found.vectors.ndim == 2


@pytest.mark.parametrize(
    "vectors",
    [Vectors(np.array([1.0], np.float32)), Vectors(np.array([[np.nan]], np.float32)),
     Vectors(np.array([[np.inf]], np.float32)), Vectors(ONE, ("a", "b")), Vectors(ONE, ("\ud800",)),
     Vectors(np.zeros((1, 0), np.float32))],
    ids=["flat", "nan", "inf", "names", "surrogate", "empty"],
)  # fmt: skip
@pytest.mark.parametrize("format", get_args(Format))
def test_what_cannot_be_written_is_refused(tmp_path: Path, vectors: Vectors, format: Format) -> None:
    with pytest.raises(ConfigError):
        write_embeddings(tmp_path / "a", vectors, format=format)
    assert list(tmp_path.iterdir()) == []


def test_conversion_goes_by_the_names_of_files(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"embeddings": TWO.tolist()}))
    assert convert_embeddings(tmp_path / "a.json", tmp_path / "a.f32", format="binary") == (2, 2)
    assert convert_embeddings(tmp_path / "a.f32", tmp_path / "a.csv", format="csv", dimension=2) == (2, 2)
    assert convert_embeddings(tmp_path / "a.csv", tmp_path / "b.json", format="json") == (2, 2)
    assert read_embeddings(tmp_path / "b.json").vectors.tobytes() == TWO.tobytes()
    with pytest.raises(ConfigError, match="already"):
        convert_embeddings(tmp_path / "a.csv", tmp_path / "b.json", format="json")
    (tmp_path / "c.xlsx").touch()
    with pytest.raises(ConfigError, match="ending"):
        read_embeddings(tmp_path / "c.xlsx")
    with pytest.raises(PayloadTooLarge):
        read_embeddings(tmp_path / "a.csv", max_bytes=4)
    with pytest.raises(ConfigError, match="no room for names"):
        write_embeddings(tmp_path / "n.bin", Vectors(ONE, ("a",)))
