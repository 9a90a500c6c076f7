"""The header reader against real, cut, hostile and mutated files."""

from __future__ import annotations

import os
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import xllamacpp
from gguf import GGUFReader
from gguf.constants import GGML_QUANT_SIZES
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.local.gguf_bytes import ARRAY, STRING, UINT32, array, gguf, pair, small, string, tensor, text, u32
from windlass.core.errors import LocalModelError
from windlass.local.embedded import embedded_model
from windlass.local.gguf import TENSOR_TYPES, GgufArray, GgufInfo, read_header

F32_16 = b"\0" * 64


def read(tmp_path: Path, data: bytes) -> GgufInfo:
    path = tmp_path / "model.gguf"
    path.write_bytes(data)
    return read_header(path)


def refused(tmp_path: Path, data: bytes) -> str:
    with pytest.raises(LocalModelError) as caught:
        read(tmp_path, data)
    assert caught.value.path == str(tmp_path / "model.gguf")
    assert str(tmp_path / "model.gguf") in caught.value.message
    assert "at byte" in caught.value.message
    return caught.value.message


def test_small_file_is_read_whole(tmp_path: Path) -> None:
    info = read(tmp_path, small())
    assert (info.version, info.alignment, info.architecture, info.context_length) == (3, 32, "llama", 128)
    assert info.metadata["flag"] is True
    assert info.metadata["scalar.10"] == 1 << 60
    assert info.metadata["scalar.11"] == -(1 << 60)
    assert info.metadata["tokens"] == GgufArray("string", 3)
    assert info.metadata["scores"] == GgufArray("float32", 2, (1.0, 2.0))
    assert info.chat_template == "{{ messages }}"
    assert info.parameters == 67
    first, second = info.tensors
    assert (first.name, first.dims, first.type, first.nbytes) == ("a.weight", (32, 2), "Q8_0", 68)
    assert (second.offset, second.nbytes) == (info.data_offset + 96, 12)
    assert info.size == info.data_offset + 108


def test_agrees_with_gguf_py_on_the_shipped_model() -> None:
    path = embedded_model().path
    info, oracle = read_header(path), GGUFReader(path)
    assert [(t.name, list(t.dims), t.type, t.offset, t.nbytes) for t in info.tensors] == [
        (t.name, [int(d) for d in t.shape], t.tensor_type.name, int(t.data_offset), int(t.n_bytes))
        for t in oracle.tensors
    ]
    theirs = {key: field for key, field in oracle.fields.items() if not key.startswith("GGUF.")}
    assert info.metadata.keys() == theirs.keys()
    for key, field in theirs.items():
        ours = info.metadata[key]
        if isinstance(ours, GgufArray):
            assert ours.count == len(field.data)
        else:
            assert ours == field.contents()


def test_block_sizes_agree_with_gguf_py_and_cover_the_engine() -> None:
    ours = {number: (block, size) for number, (_, block, size) in TENSOR_TYPES.items()}
    theirs = {int(kind): sizes for kind, sizes in GGML_QUANT_SIZES.items()}
    # gguf-py still has the size of Q8_1 from before its sum became a half; no file holds that type.
    assert {k: v for k, v in theirs.items() if k != 9} == {k: ours.get(k) for k in theirs if k != 9}
    types: Any = xllamacpp.ggml_type  # pyright: ignore[reportAttributeAccessIssue]
    engine = {int(kind): kind.name.removeprefix("GGML_TYPE_") for kind in types}
    engine = {number: name for number, name in engine.items() if name != "COUNT"}
    assert engine == {number: name for number, (name, _, _) in TENSOR_TYPES.items()}


def test_s99_truncated_at_every_byte(tmp_path: Path) -> None:
    data = small()
    for length in range(len(data)):
        refused(tmp_path, data[:length])
    read(tmp_path, data)


def test_s99_shipped_model_truncated(tmp_path: Path) -> None:
    data = embedded_model().path.read_bytes()
    header = read_header(embedded_model().path).data_offset
    for length in [*range(0, header, 997), header, len(data) - 1]:
        refused(tmp_path, data[:length])


@pytest.mark.parametrize("count", [1 << 40, 1 << 60, (1 << 63) - 1, 1 << 63, (1 << 64) - 1])
def test_s100_hostile_counts_allocate_nothing(tmp_path: Path, count: int) -> None:
    long = struct.pack("<Q", count)
    tracemalloc.start()
    refused(tmp_path, gguf([u32("a", 1)], n_pairs=count))
    refused(tmp_path, gguf([u32("a", 1)], n_tensors=count))
    refused(tmp_path, gguf([long + b"key"], n_pairs=1))
    refused(tmp_path, gguf([pair("a", STRING, long + b"value")]))
    for kind in (0, UINT32, STRING, 12):
        refused(tmp_path, gguf([array("a", kind, count, b"\0" * 64)]))
    refused(tmp_path, gguf([array("a", STRING, 2, text("x") + long)]))
    refused(tmp_path, gguf([], [long + b"name"], n_tensors=1))
    refused(tmp_path, gguf([], [tensor("t", [count])], F32_16))
    refused(tmp_path, gguf([], [tensor("t", [1], offset=count // 32 * 32)], F32_16))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 << 20


def test_s100_nested_arrays(tmp_path: Path) -> None:
    inner = struct.pack("<IQ", UINT32, 1) + b"\0" * 4
    assert "another array" in refused(tmp_path, gguf([array("a", ARRAY, 1, inner)]))


def test_s100_many_empty_strings_are_bounded(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    count = (8 << 20) + 1
    path.write_bytes(gguf([array("a", STRING, count, b"")]))
    os.truncate(path, count * 8 + 4096)  # a hole: the file holds them all, as zeros
    with pytest.raises(LocalModelError, match="strings in arrays above"):
        read_header(path)


@pytest.mark.parametrize(
    ("bad", "problem"),
    [
        (tensor("t", [1 << 33, 1 << 33]), "more than the file"),
        (tensor("t", [1 << 62, 4]), "more than the file"),
        (tensor("t", [], ndims=1 << 31), "dimensions, not 1 to 4"),
        (tensor("t", [1, 1, 1, 1, 1]), "dimensions, not 1 to 4"),
        (tensor("t", []), "dimensions, not 1 to 4"),
        (tensor("t", [1], kind=9999), "unknown type 9999"),
        (tensor("t", [1], kind=4), "unknown type 4"),
        (tensor("t", [0]), "dimension of zero"),
        (tensor("t", [1 << 63, 0]), "dimension of zero"),
        (tensor("t", [33], kind=8), "blocks of 32 do not divide"),
    ],
)
def test_s101_hostile_dimensions(tmp_path: Path, bad: bytes, problem: str) -> None:
    assert problem in refused(tmp_path, gguf([], [bad], F32_16))


@pytest.mark.parametrize(
    ("tensors", "problem"),
    [
        ([tensor("a", [17])], "past the end"),
        ([tensor("a", [1], offset=64)], "past the end"),
        ([tensor("a", [16], offset=(1 << 64) - 32)], "past the end"),
        ([tensor("a", [1], offset=4)], "not aligned"),
        ([tensor("a", [9]), tensor("b", [1], offset=32)], "overlap"),
        ([tensor("a", [1], offset=32), tensor("b", [9])], "overlap"),
        ([tensor("a", [1]), tensor("b", [1])], "overlap"),
    ],
)
def test_s102_hostile_offsets(tmp_path: Path, tensors: list[bytes], problem: str) -> None:
    assert problem in refused(tmp_path, gguf([], tensors, F32_16))


@pytest.mark.parametrize("value", [0, 3, 48, 1 << 31, (1 << 32) - 1])
def test_s102_hostile_alignment(tmp_path: Path, value: int) -> None:
    assert "general.alignment" in refused(tmp_path, gguf([u32("general.alignment", value)], [tensor("a", [1])], F32_16))


def test_alignment_of_another_type_or_size(tmp_path: Path) -> None:
    assert "general.alignment" in refused(tmp_path, gguf([string("general.alignment", "32")]))
    info = read(tmp_path, gguf([u32("general.alignment", 64)], [tensor("a", [1])], F32_16, alignment=64))
    assert info.data_offset % 64 == 0


@pytest.mark.parametrize("name", [b"", b"a\0b", b"../a", b"a/../../b", b"..\\a", b"a\nb", b"\x1b[2J", b"\xff\xfe"])
def test_s103_hostile_names(tmp_path: Path, name: bytes) -> None:
    refused(tmp_path, gguf([], [tensor(name, [1])], F32_16))
    refused(tmp_path, gguf([pair(name, UINT32, b"\0" * 4)]))


def test_s103_duplicates_and_long_names(tmp_path: Path) -> None:
    assert "appears twice" in refused(tmp_path, gguf([u32("a", 1), u32("a", 1)]))
    assert "appears twice" in refused(tmp_path, gguf([], [tensor("a", [1]), tensor("a", [1], offset=32)], F32_16))
    read(tmp_path, gguf([], [tensor("a" * 63, [1])], F32_16))
    assert "more than 63" in refused(tmp_path, gguf([], [tensor("a" * 64, [1])], F32_16))


def test_not_gguf_and_versions(tmp_path: Path) -> None:
    assert "does not start with GGUF" in refused(tmp_path, b"")
    assert "does not start with GGUF" in refused(tmp_path, gguf(magic=b"PK\3\4"))
    assert "version 1 " in refused(tmp_path, gguf(version=1))
    assert "version 4 " in refused(tmp_path, gguf(version=4))
    assert "big-endian" in refused(tmp_path, gguf(version=3 << 24))
    assert read(tmp_path, gguf(version=2)).version == 2


def test_unknown_value_types_and_bools(tmp_path: Path) -> None:
    assert "unknown type 13" in refused(tmp_path, gguf([pair("a", 13, b"\0" * 8)]))
    assert "unknown type 99" in refused(tmp_path, gguf([array("a", 99, 1, b"\0" * 8)]))
    assert "bool of 2" in refused(tmp_path, gguf([pair("a", 7, b"\2")]))


def test_a_string_value_may_hold_any_bytes(tmp_path: Path) -> None:
    assert read(tmp_path, gguf([string("a", b"x\xff\0")])).metadata["a"] == "x\ufffd\0"


def test_missing_folder_and_pipe(tmp_path: Path) -> None:
    with pytest.raises(LocalModelError, match="No such file") as caught:
        read_header(tmp_path / "missing.gguf")
    assert isinstance(caught.value.__cause__, FileNotFoundError)
    with pytest.raises(LocalModelError, match="not a regular file"):
        read_header(tmp_path)
    os.mkfifo(tmp_path / "pipe.gguf")
    with pytest.raises(LocalModelError, match="not a regular file"):
        read_header(tmp_path / "pipe.gguf")
    with pytest.raises(LocalModelError, match="cannot be read"):
        read_header("a\0b")


def test_real_vocabulary_is_passed_over(tmp_path: Path) -> None:
    tokens = b"".join([text(b"t%d" % number) for number in range(128_256)])
    info = read(tmp_path, gguf([array("tokens", STRING, 128_256, tokens), u32("after", 5)]))
    assert info.metadata == {"tokens": GgufArray("string", 128_256), "after": 5}
    long = array("scores", 6, 1 << 17, b"\0" * (4 << 17))
    assert read(tmp_path, gguf([long, u32("after", 5)])).metadata["after"] == 5


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    edits=st.lists(
        st.tuples(st.integers(0, 600), st.sampled_from([b"\0", b"\xff", b"\x01", b"\x7f", b"\x80", b"\xff" * 8])),
        min_size=1,
        max_size=6,
    ),
    cut=st.integers(0, 64),
)
def test_fuzz_reads_or_refuses(tmp_path: Path, edits: list[tuple[int, bytes]], cut: int) -> None:
    data = bytearray(small())
    for position, piece in edits:
        data[position % len(data) : position % len(data) + len(piece)] = piece
    path = tmp_path / "model.gguf"
    path.write_bytes(data[: len(data) - cut])
    try:
        info = read_header(path)
    except LocalModelError as error:
        assert error.path == str(path)
        return
    end = 0
    for one in sorted(info.tensors, key=lambda item: item.offset):
        assert one.offset >= max(end, info.data_offset)
        assert one.offset % info.alignment == info.data_offset % info.alignment
        end = one.offset + one.nbytes
        assert end <= info.size
    assert len({one.name for one in info.tensors}) == len(info.tensors)


def test_what_an_error_says_is_bounded(tmp_path: Path) -> None:
    long = "k" * 60_000
    assert len(refused(tmp_path, gguf([u32(long, 1), u32(long, 1)]))) < 1000
    assert len(refused(tmp_path, gguf([string("general.alignment", "\1" * 60_000)]))) < 1000


def test_types_and_places_of_values(tmp_path: Path) -> None:
    info = read(tmp_path, small())
    data = (tmp_path / "model.gguf").read_bytes()
    assert info.types.keys() == info.starts.keys() == info.metadata.keys()
    assert (info.types["flag"], info.types["scalar.2"], info.types["tokens"]) == ("bool", "uint16", "array")
    assert data[info.starts["scalar.2"] :][:2] == b"\7\0"
    assert data[info.starts["general.architecture"] :][:13] == text("llama")
    assert data[info.starts["tokens"] :][:9] == text("a")
