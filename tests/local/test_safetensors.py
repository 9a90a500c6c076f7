"""Our reader and writer of safetensors beside the official library, and files that lie."""

from __future__ import annotations

import json
import os
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file
from safetensors.torch import load_file as load_torch
from safetensors.torch import save_file as save_torch

from windlass.core.errors import ConfigError, LocalModelError, UnknownNameError
from windlass.local.safetensors import (
    BITS,
    LazyTensor,
    SafetensorsFile,
    SafetensorsInfo,
    read_safetensors,
    write_safetensors,
)


def packed(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    """Put a file together; the length need not be true."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def one(**changes: Any) -> dict[str, Any]:
    return {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **changes}


def read(tmp_path: Path, data: bytes) -> SafetensorsInfo:
    path = tmp_path / "m.safetensors"
    path.write_bytes(data)
    return read_safetensors(path)


def refused(tmp_path: Path, data: bytes) -> str:
    with pytest.raises(LocalModelError) as caught:
        read(tmp_path, data)
    assert caught.value.path == str(tmp_path / "m.safetensors")
    assert str(tmp_path / "m.safetensors") in caught.value.message
    return caught.value.message


def officially_refused(tmp_path: Path) -> bool:
    try:
        with safe_open(tmp_path / "m.safetensors", "np"):
            return False
    except SafetensorError:
        return True


def test_a_small_file_is_read_whole(tmp_path: Path) -> None:
    header = {
        "__metadata__": {"format": "pt"},
        "b": one(data_offsets=[4, 12]),
        "a": one(dtype="I32", shape=[], data_offsets=[0, 4]),
    }
    info = read(tmp_path, packed(header, struct.pack("<iff", 7, 1.5, -2.5)))
    assert [(t.name, t.dtype, t.shape, t.nbytes) for t in info.tensors] == [
        ("a", "I32", (), 4),
        ("b", "F32", (2,), 8),
    ]
    assert info.metadata == {"format": "pt"} and info.parameters == 3
    with SafetensorsFile(tmp_path / "m.safetensors") as file:
        assert [*file] == ["a", "b"] and "a" in file and "c" not in file
        assert file.numpy("a") == 7 and file.numpy("b").tolist() == [1.5, -2.5]
        assert file.torch("b").tolist() == [1.5, -2.5]
        with pytest.raises(UnknownNameError, match="'c'"):
            file.raw("c")


NUMPY = [np.float64, np.float32, np.float16, np.int64, np.int32, np.int16, np.int8, np.uint8, np.uint16, np.uint32,
         np.uint64, np.bool_, np.complex64]  # fmt: skip
Shapes = st.lists(st.integers(0, 4), max_size=4)
Names = st.text(st.characters(categories=["L", "N", "P"], exclude_characters="./\\"), min_size=1, max_size=12)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.dictionaries(Names.filter(lambda n: n != "__metadata__"), st.tuples(st.sampled_from(NUMPY), Shapes), max_size=5),
    st.none() | st.dictionaries(st.text(max_size=9), st.text(max_size=20), max_size=1),
)
def test_official_files_are_read_and_ours_are_theirs_byte_by_byte(
    tmp_path: Path, described: dict[str, tuple[Any, list[int]]], metadata: dict[str, str] | None
) -> None:
    assume(described or metadata != {})  # for nothing at all the official writer makes a header that is not JSON
    rng = np.random.default_rng(1)
    arrays: dict[str, NDArray[Any]] = {
        name: np.asarray(rng.standard_normal(shape) * 50).astype(kind).reshape(shape)
        for name, (kind, shape) in described.items()
    }
    theirs, ours = tmp_path / "theirs.safetensors", tmp_path / "ours.safetensors"
    save_file(arrays, theirs, metadata)
    info = write_safetensors(ours, arrays, metadata)
    assert ours.read_bytes() == theirs.read_bytes()
    with SafetensorsFile(theirs) as file:
        assert file.info.metadata == info.metadata == (metadata or {})
        for name, array in arrays.items():
            found = file.numpy(name)
            assert (found.dtype, found.shape, found.tobytes()) == (array.dtype, array.shape, array.tobytes())
    assert {name: array.tobytes() for name, array in load_file(ours).items()} == {
        name: array.tobytes() for name, array in arrays.items()
    }


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int64", "uint8", "bool", "float8_e4m3fn"])
def test_torch_tensors_both_ways(tmp_path: Path, dtype: str) -> None:
    kind = getattr(torch, dtype)
    tensors = {
        "a": (torch.randn(3, 4) * 3).to(kind),
        "t": (torch.randn(4, 6) * 3).to(kind).t(),
        "s": torch.ones((), dtype=kind),
    }
    write_safetensors(tmp_path / "ours.safetensors", tensors)
    save_torch({name: tensor.contiguous() for name, tensor in tensors.items()}, tmp_path / "theirs.safetensors")
    assert (tmp_path / "ours.safetensors").read_bytes() == (tmp_path / "theirs.safetensors").read_bytes()
    loaded = load_torch(tmp_path / "ours.safetensors")
    with SafetensorsFile(tmp_path / "theirs.safetensors") as file:
        for name, tensor in tensors.items():
            found = file.torch(name)
            assert found.dtype == kind and torch.equal(found.float(), tensor.float())
            assert torch.equal(loaded[name].float(), tensor.float())
        if dtype == "bfloat16":
            assert (file.numpy("a") == tensors["a"].float().numpy()).all()
        if dtype == "float8_e4m3fn":
            with pytest.raises(ConfigError, match="numpy has not"):
                file.numpy("a")


def test_large_matrices_come_in_pieces(tmp_path: Path) -> None:
    wide = torch.arange(5 << 20, dtype=torch.float32).reshape(-1, 1024)
    write_safetensors(tmp_path / "m.safetensors", {"f": wide, "h": wide.to(torch.bfloat16), "v": wide[0]})
    with SafetensorsFile(tmp_path / "m.safetensors") as file:
        pieces = [*file.rows("f")]
        assert len(pieces) == 2 and (np.concatenate(pieces) == wide.numpy()).all()
        assert (np.concatenate([*file.rows("h")]) == wide.to(torch.bfloat16).float().numpy()).all()
        assert [piece.shape for piece in file.rows("v")] == [(1024,)]


@pytest.mark.parametrize("length", [1 << 63, (1 << 63) - 1, (1 << 64) - 1, 1 << 40, 0])
def test_s105_hostile_length(tmp_path: Path, length: int) -> None:
    tracemalloc.start()
    refused(tmp_path, packed({"a": one()}, b"\0" * 8, length))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20
    assert officially_refused(tmp_path)


@pytest.mark.parametrize(
    ("header", "data", "problem"),
    [
        pytest.param({"a": one(), "b": one(data_offsets=[4, 12])}, 12, "overlaps the one before", id="overlap"),
        pytest.param({"a": one(), "b": one()}, 8, "overlaps the one before", id="same-place"),
        pytest.param({"a": one(), "b": one(data_offsets=[16, 24])}, 24, "leaves a hole from 8", id="hole"),
        pytest.param({"a": one(data_offsets=[8, 16])}, 16, "leaves a hole from 0", id="hole-first"),
        pytest.param({"a": one()}, 9, "1 bytes follow the last tensor", id="trailing"),
        pytest.param({}, 1, "1 bytes follow the last tensor", id="nothing-but-trailing"),
        pytest.param({"a": one()}, 7, "1 bytes are missing", id="cut"),
        pytest.param({"a": one(data_offsets=[0, 1 << 63])}, 8, "past the end of the file", id="past-the-end"),
        pytest.param({"a": one(data_offsets=[8, 0])}, 8, "not a begin and an end", id="backwards"),
        pytest.param({"a": one(data_offsets=[-8, 0])}, 8, "not a begin and an end", id="negative"),
        pytest.param({"a": one(data_offsets=[0, 8, 8])}, 8, "not a begin and an end", id="three"),
        pytest.param({"a": one(data_offsets=[0, 8.0])}, 8, "not a begin and an end", id="float-offset"),
        pytest.param({"a": one(shape=[3])}, 8, "takes 12 bytes, its offsets 8", id="shape"),
        pytest.param({"a": one(dtype="F64")}, 8, "takes 16 bytes, its offsets 8", id="dtype"),
        pytest.param({"a": one(shape=[1 << 62, 4])}, 8, "more than any file", id="overflow"),
        pytest.param({"a": one(shape=[1 << 32, 1 << 32])}, 8, "more than any file", id="wrap-to-zero"),
        pytest.param({"a": one(shape=[1 << 63, 4, 0], data_offsets=[0, 0])}, 0, "more than any file", id="hidden"),
        pytest.param({"a": one(dtype="F4", shape=[15])}, 8, "takes 7 bytes", id="half-a-byte"),
        pytest.param({"a": one(shape=[-2])}, 8, "not up to 16 sizes", id="negative-shape"),
        pytest.param({"a": one(shape=[True, 2])}, 8, "not up to 16 sizes", id="bool-shape"),
        pytest.param({"a": one(shape=[1] * 17)}, 8, "not up to 16 sizes", id="many-dims"),
        pytest.param({"a": one(shape="2")}, 8, "not up to 16 sizes", id="text-shape"),
        pytest.param({"a": one(dtype="F31")}, 8, "unknown dtype 'F31'", id="unknown-dtype"),
        pytest.param({"a": one(dtype=7)}, 8, "unknown dtype '7'", id="no-dtype"),
        pytest.param({"a": {"dtype": "F32", "shape": [2]}}, 8, "not exactly dtype", id="no-offsets"),
        pytest.param({"a": [1]}, 8, "not exactly dtype", id="list"),
        pytest.param({"": one()}, 8, "not a name", id="empty-name"),
        pytest.param({"../a": one()}, 8, "not a name", id="path-name"),
        pytest.param({"a\0b": one()}, 8, "not a name", id="nul-name"),
        pytest.param({"a": one(), "__metadata__": {"n": 1}}, 8, "not an object of strings", id="metadata-number"),
        pytest.param({"a": one(), "__metadata__": "x"}, 8, "not an object of strings", id="metadata-text"),
    ],
)  # fmt: skip
def test_s105_lies(tmp_path: Path, header: dict[str, Any], data: int, problem: str) -> None:
    assert problem in refused(tmp_path, packed(header, b"\0" * data))


ENTRY = b'{"dtype":"F32","shape":[2],"data_offsets":[0,8]}'


@pytest.mark.parametrize(
    ("raw", "problem"),
    [
        pytest.param(b'{"a":%b,"a":%b}' % (ENTRY, ENTRY), "'a' appears twice", id="twice"),
        pytest.param(b'{"a":%b,"\\u0061":%b}' % (ENTRY, ENTRY), "'a' appears twice", id="twice-escaped"),
        pytest.param(b'{"a":{"dtype":"F64","shape":[2],"dtype":"F32","data_offsets":[0,8]}}', "'dtype' app", id="in"),
        pytest.param(b'{"__metadata__":{"x":"1","x":"2"},"a":%b}' % ENTRY, "'x' appears twice", id="in-metadata"),
        pytest.param(b'{"__metadata__":{},"__metadata__":{},"a":%b}' % ENTRY, "'__metadata__' appears", id="metadata"),
        pytest.param(b'{"a":%b' % ENTRY, "not JSON", id="cut"),
        pytest.param(b'{"a":%b}x' % ENTRY, "not JSON", id="more"),
        pytest.param(b'{"a":%b\xff}' % ENTRY, "not JSON", id="not-utf8"),
        pytest.param(b'{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,8]}}', "holds NaN", id="nan"),
        pytest.param(b'{"a":' + b"[" * 100_000, "not JSON", id="deep"),
        pytest.param(b'{"a":' + b"9" * 10_000 + b"}", "not JSON", id="digits"),
        pytest.param(b'{"a":[' + b"0," * (3 << 20) + b"0]}", "more than 2097152 parts", id="parts"),
        pytest.param(b"{" + b" " * (33 << 20), "longer than", id="long"),
    ],
)  # fmt: skip
def test_s105_json_that_lies(tmp_path: Path, raw: bytes, problem: str) -> None:
    assert problem in refused(tmp_path, packed(raw, b"\0" * 8))


def test_s99_cut_at_every_byte(tmp_path: Path) -> None:
    whole = packed({"__metadata__": {"a": "b"}, "a": one()}, b"\0" * 8)
    for length in range(len(whole)):
        refused(tmp_path, whole[:length])
    read(tmp_path, whole)


def test_what_we_refuse_is_refused_or_harmless_there_too(tmp_path: Path) -> None:
    """The official reader takes names twice (the last one wins): we do not."""
    refused(tmp_path, packed(b'{"a":%b,"a":%b}' % (ENTRY, ENTRY), b"\0" * 8))
    assert not officially_refused(tmp_path)


def test_padding_and_empty_tensors_are_fine(tmp_path: Path) -> None:
    info = read(
        tmp_path,
        packed(json.dumps({"a": one(shape=[0, 5], data_offsets=[0, 0]), "b": one()}).encode() + b"   ", b"\0" * 8),
    )
    assert {t.name: t.nbytes for t in info.tensors} == {"a": 0, "b": 8}
    with SafetensorsFile(tmp_path / "m.safetensors") as file:
        assert file.numpy("a").shape == (0, 5) and file.torch("a").shape == (0, 5)
    between = {"a": one(), "b": one(shape=[0], data_offsets=[8, 8]), "c": one(data_offsets=[8, 16])}
    for order in (("a", "c", "b"), ("b", "a", "c"), ("c", "b", "a")):
        info = read(tmp_path, packed({name: between[name] for name in order}, b"\0" * 16))
        assert [tensor.name for tensor in info.tensors] == ["a", "b", "c"]
        assert not officially_refused(tmp_path)
    assert read(tmp_path, packed({})).tensors == ()
    assert not officially_refused(tmp_path)


def test_s104_a_file_that_shrinks_is_an_error(tmp_path: Path) -> None:
    read(tmp_path, packed({"a": one()}, b"\0" * 8))
    with SafetensorsFile(tmp_path / "m.safetensors") as file:
        os.truncate(tmp_path / "m.safetensors", 20)
        with pytest.raises(LocalModelError, match="became shorter"):
            file.numpy("a")


def test_other_files_are_named(tmp_path: Path) -> None:
    assert "a zip archive" in refused(tmp_path, b"PK\x03\x04" + b"\0" * 100)
    assert "a pickled object" in refused(tmp_path, b"\x80\x02" + b"c" * 100)
    assert "does not start with a length" in refused(tmp_path, b"")
    with pytest.raises(LocalModelError, match="not a regular file"):
        read_safetensors(tmp_path)
    with pytest.raises(LocalModelError, match="No such file"):
        read_safetensors(tmp_path / "none.safetensors")


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    write_safetensors(path, {"a": np.ones(3)})
    before = path.read_bytes()
    lazy = LazyTensor("F32", (4,), lambda: iter([np.zeros(3, np.float32)]))
    with pytest.raises(ConfigError, match="not the 16 bytes of its shape"):
        write_safetensors(path, {"a": lazy})
    for name, tensor in (
        ("a", np.array([None])),
        ("a", np.array(["x"])),
        ("", np.ones(1)),
        ("__metadata__", np.ones(1)),
    ):
        with pytest.raises(ConfigError):
            write_safetensors(path, {name: tensor})
    with pytest.raises(ConfigError, match="strings by strings"):
        write_safetensors(path, {"a": np.ones(1)}, {"a": 1})  # pyright: ignore[reportArgumentType]
    assert path.read_bytes() == before and [file.name for file in tmp_path.iterdir()] == ["m.safetensors"]


def test_lazy_tensors_and_big_endian_arrays(tmp_path: Path) -> None:
    halves = np.arange(6, dtype=np.uint16)
    lazy = LazyTensor("BF16", (2, 3), lambda: iter([halves[:3], halves[3:]]))
    write_safetensors(tmp_path / "m.safetensors", {"l": lazy, "b": np.arange(3, dtype=">i4")})
    with SafetensorsFile(tmp_path / "m.safetensors") as file:
        assert file.raw("l") == halves.tobytes() and file.numpy("b").tolist() == [0, 1, 2]


def test_dtypes_are_those_of_the_official_library(tmp_path: Path) -> None:
    for dtype, bits in BITS.items():
        read(tmp_path, packed({"a": one(dtype=dtype, shape=[8], data_offsets=[0, bits])}, b"\0" * bits))
        assert not officially_refused(tmp_path), dtype
