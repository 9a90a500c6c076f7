"""WDBX: every byte of the layout by hand, both ways, what the reference writes differently, and hostile files."""

from __future__ import annotations

import itertools
import struct
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.training.data_files import PEAK, flips, killed_while, peak_of, refused, truncations
from windlass.core.errors import ConfigError
from windlass.training.bloom import BloomFilter, xxh3_u64
from windlass.training.files import DataError, InvalidFormat, PayloadTooLarge, UnsupportedVersion
from windlass.training.tokenbin import read_tokens, write_tokens
from windlass.training.wdbx import WdbxReader, combined
from windlass.training.wdbx_write import (
    WdbxWriter,
    pack_block,
    token_blocks,
    tokenbin_to_wdbx,
    unpack_block,
    wdbx_to_tokenbin,
)

UUID = bytes(range(1, 17))


def file_by_hand(
    records: bytes,
    count: int,
    *,
    name: bytes = b"db",
    flags: int = 4,
    dimension: int = 2,
    bloom: bytes = b"",
    blocks: int = 2,
    size: int | None = None,
    uuid: bytes = UUID + bytes(8),
    version: int = 2,
    metric: int = 1,
    compression: int = 0,
    whole: int | None = None,
    told: int | None = None,
    kind: int = 4,
) -> bytes:
    """A version 2 file put together field by field, as the layout says."""
    header = b"WDBX" + struct.pack("<H", version) + bytes((flags, 0))
    header += struct.pack("<qqQI", 1_700_000_000, 1_700_000_001, count, dimension)
    header += bytes((metric, compression, 0, 0)) + uuid
    assert len(header) == 64
    data = struct.pack("<H", len(name)) + name + bloom
    data += bytes((kind, compression, 0, 0)) + struct.pack("<I", count if told is None else told)
    data += struct.pack("<Q", len(records) if size is None else size) + records
    footer = b"END\0" + struct.pack("<II", zlib.crc32(header), zlib.crc32(data))
    footer += struct.pack("<I", zlib.crc32(header + data) if whole is None else whole)
    footer += struct.pack("<QI", 64 + len(data), blocks) + bytes(4)
    assert len(footer) == 32
    return header + data + footer


def record_by_hand(id: int, vector: list[float], metadata: bytes) -> bytes:
    return struct.pack(f"<QII{len(vector)}f", id, len(vector), len(metadata), *vector) + metadata


TWO = record_by_hand(7, [0.5, -2.0], b"meta") + record_by_hand(9, [1.5, 3.0], b"")


def write_two(path: Path, expected: int = 0) -> None:
    with WdbxWriter(
        path, name="db", metric="cosine", created=1_700_000_000, modified=1_700_000_001, uuid=UUID, expected=expected
    ) as out:
        out.add(7, [0.5, -2.0], b"meta")
        out.add(9, np.array([1.5, 3.0], ">f8"))


def everything(path: Path, verify: bool = True) -> list[tuple[int, list[float], bytes]]:
    with WdbxReader(path, verify=verify) as reader:
        return [(record.id, record.vector.tolist(), record.metadata) for record in reader]


def test_the_file_is_the_one_made_by_hand(tmp_path: Path) -> None:
    path = tmp_path / "a.wdbx"
    write_two(path)
    assert path.read_bytes() == file_by_hand(TWO, 2)
    with WdbxReader(path) as reader:
        info = reader.info
        assert (info.name, info.version, info.count, info.dimension, info.metric) == ("db", 2, 2, 2, "cosine")
        assert (info.created, info.modified, info.uuid) == (1_700_000_000, 1_700_000_001, UUID)
        assert info.size == path.stat().st_size
        assert len(reader) == 2 and reader.bloom() is None and reader.problems == []
    assert everything(path) == [(7, [0.5, -2.0], b"meta"), (9, [1.5, 3.0], b"")]


def test_the_bloom_block_is_the_reference_s(tmp_path: Path) -> None:
    # For two ids: int(-2 ln 0.01 / ln(2)^2) = 19 bits in 3 bytes, int(19 / 2 * ln 2) = 6 hashes.
    bits = 0
    for id in (7, 9):
        for i in range(6):
            bits |= 1 << ((xxh3_u64(id, 0) + i * xxh3_u64(id, 1)) % 2**64 % (2**64 - 1) % 24)
    content = b"\6" + struct.pack("<I", 3) + bits.to_bytes(3, "little")
    bloom = bytes((2, 0, 0, 0)) + struct.pack("<I", len(content)) + content
    path = tmp_path / "a.wdbx"
    write_two(path, expected=2)
    assert path.read_bytes() == file_by_hand(TWO, 2, flags=5, bloom=bloom, blocks=3)
    with WdbxReader(path) as reader:
        found = reader.bloom()
        assert found is not None and 7 in found and 9 in found
        assert [record.id for record in reader] == [7, 9]


def test_xxh3_is_the_published_one() -> None:
    """Values of the xxhash package (0.8.2): xxh3_64_intdigest(number.to_bytes(8, "little"), seed)."""
    assert [xxh3_u64(number, seed) for number in (0, 1, 0x0123456789ABCDEF) for seed in (0, 1)] == [
        0xC77B3ABB6F87ACD9, 0x9E51AD6D2F3E695C, 0x2FBC593564DB792E, 0x85671091EDA75EB5,
        0xB78DF414284277A6, 0xD95750386D2D6E1D,
    ]  # fmt: skip


def test_a_bloom_filter_is_never_wrong_about_what_is_not_there() -> None:
    bloom = BloomFilter.sized(500)
    for id in range(0, 1000, 2):
        bloom.add(id)
    assert all(id in bloom for id in range(0, 1000, 2))
    assert sum(id in bloom for id in range(1, 20001, 2)) < 300  # one in a hundred is asked for


def test_what_the_reference_writes_differently_is_read(tmp_path: Path) -> None:
    """Half a uuid, the header's sum as the file's, a size without metadata, flags of blocks that are not there."""
    path = tmp_path / "a.wdbx"

    def by_reference(whole: int) -> bytes:
        half = UUID[:8] + bytes(16)
        return file_by_hand(TWO, 2, flags=0x16, uuid=half, size=2 * (16 + 8), compression=3, whole=whole)

    path.write_bytes(by_reference(zlib.crc32(by_reference(0)[:64])))
    assert [row[0] for row in everything(path)] == [7, 9]
    with WdbxReader(path) as reader:
        assert reader.info.uuid == UUID[:8] + bytes(8)


def test_version_1_is_read(tmp_path: Path) -> None:
    path = tmp_path / "old.wdbx"
    data = b"ABID" + struct.pack("<HH", 1, 3) + b"old" + struct.pack("<Q", 2) + TWO
    path.write_bytes(data)
    assert everything(path) == [(7, [0.5, -2.0], b"meta"), (9, [1.5, 3.0], b"")]
    with WdbxReader(path) as reader:
        assert (reader.info.name, reader.info.version, reader.info.dimension) == ("old", 1, 2)
    for cut in truncations(data):
        refused(everything, path, cut)
    refused(everything, path, data + b"x")
    refused(everything, path, data[:4] + b"\2" + data[5:])


NUMBERS = st.floats(width=32, allow_nan=False, allow_infinity=False)


@given(
    st.integers(0, 5).flatmap(
        lambda dimension: st.lists(
            st.tuples(
                st.integers(0, 2**64 - 1),
                st.lists(NUMBERS, min_size=dimension, max_size=dimension),
                st.binary(max_size=40),
            ),
            unique_by=lambda row: row[0],
            max_size=8,
        )
    ),
    st.text(st.characters(codec="utf-8"), max_size=20),
    st.integers(0, 12),
)  # fmt: skip
def test_any_records_come_back(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[int, list[float], bytes]], name: str, expected: int
) -> None:
    path = tmp_path_factory.mktemp("w") / "a.wdbx"
    rows.sort(key=lambda row: row[0])
    with WdbxWriter(path, name=name, expected=expected) as out:
        for row in rows:
            out.add(*row)
    assert everything(path) == rows
    with WdbxReader(path) as reader:
        assert reader.info.name == name and reader.info.uuid != bytes(16)


def test_records_longer_than_the_window_and_at_its_edges(tmp_path: Path) -> None:
    path = tmp_path / "a.wdbx"
    sizes = [0, 1, (1 << 20) - 40, 5, (1 << 20) - 16, (1 << 20) + 1, 3 << 20, 7]
    with WdbxWriter(path) as out:
        for number, size in enumerate(sizes, 1):
            out.add(number, (), bytes((number,)) * size)
    assert [(len(data), set(data)) for _, _, data in everything(path)] == [
        (size, {number} if size else set()) for number, size in enumerate(sizes, 1)
    ]
    with WdbxReader(path, max_record=1 << 20) as reader, pytest.raises(PayloadTooLarge, match="record 6"):
        list(reader)


def test_every_truncation_and_every_changed_byte_is_found(tmp_path: Path) -> None:
    path = tmp_path / "a.wdbx"
    write_two(path, expected=2)
    whole = path.read_bytes()
    for data in truncations(whole):
        refused(everything, path, data)
    refused(everything, path, whole + b"\0")
    for at, data in flips(whole):
        assert isinstance(refused(everything, path, data), (InvalidFormat, UnsupportedVersion)), at


def test_without_checking_what_is_damaged_is_told_and_read(tmp_path: Path) -> None:
    path = tmp_path / "a.wdbx"
    write_two(path, expected=2)
    whole = path.read_bytes()
    at = whole.index(b"meta")
    path.write_bytes(whole.replace(b"meta", b"mEta"))
    with pytest.raises(InvalidFormat, match="sum of its records"):
        everything(path)
    with WdbxReader(path, verify=False) as reader:
        assert [record.metadata for record in reader] == [b"mEta", b""]
        assert reader.problems == ["the sum of its records is wrong"]
    for place, data in flips(whole):
        path.write_bytes(data)
        try:
            everything(path, verify=False)
        except DataError:
            # Magic, version, flags, enumerations, lengths, the block's type, the footer's mark: nothing can be read.
            assert not at <= place < at + 4


HOSTILE: dict[str, Callable[[], bytes]] = {
    "count-2^60": lambda: file_by_hand(TWO, 1 << 60, told=2),
    "count-2^32-1": lambda: file_by_hand(TWO, 0xFFFFFFFF),
    "count-too-low": lambda: file_by_hand(TWO, 1),
    "count-too-high": lambda: file_by_hand(TWO, 3),
    "size-2^60": lambda: file_by_hand(TWO, 2, size=1 << 60),
    "vector-2^32-1": lambda: file_by_hand(struct.pack("<QII", 1, 0xFFFFFFFF, 0) + bytes(64), 1),
    "metadata-2^32-1": lambda: file_by_hand(struct.pack("<QII", 1, 0, 0xFFFFFFFF) + bytes(64), 1),
    "both-2^32-1": lambda: file_by_hand(struct.pack("<QII", 1, 0xFFFFFFFF, 0xFFFFFFFF) + bytes(64), 1),
    "name-past-end": lambda: file_by_hand(b"", 0).replace(b"\2\0db", b"\xff\xffdb"),
    "bloom-2^32-1": lambda: file_by_hand(TWO, 2, flags=5, bloom=b"\2\0\0\0" + b"\xff" * 4 + b"\6" + bytes(9), blocks=3),
    "bloom-bits-2^32-1": lambda: file_by_hand(
        TWO, 2, flags=5, bloom=b"\2\0\0\0\7\0\0\0\6" + b"\xff" * 4 + bytes(2), blocks=3
    ),
    "bloom-empty": lambda: file_by_hand(TWO, 2, flags=5, bloom=b"\2\0\0\0\0\0\0\0", blocks=3),
    "unknown-block": lambda: file_by_hand(TWO, 2, kind=3),
    "unknown-metric": lambda: file_by_hand(TWO, 2, metric=4),
    "lz4": lambda: file_by_hand(TWO, 2, compression=1),
    "zstd": lambda: file_by_hand(TWO, 2, compression=2),
    "encrypted": lambda: file_by_hand(TWO, 2, flags=12),
    "version-3": lambda: file_by_hand(TWO, 2, version=3),
    "version-0": lambda: file_by_hand(TWO, 2, version=0),
    "blocks": lambda: file_by_hand(TWO, 2, blocks=4),
    "another-format": lambda: b"GGUF" + bytes(200),
    "empty": bytes,
    "v1-count-2^60": lambda: b"ABID" + struct.pack("<HHQ", 1, 0, 1 << 60) + TWO,
    "v1-name": lambda: b"ABID" + struct.pack("<HH", 1, 0xFFFF) + bytes(40),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_s100_hostile_numbers_are_typed_errors_in_little_memory(tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.wdbx"
    data = HOSTILE[name]()
    tracemalloc.start()
    try:
        error = refused(everything, path, data)
        assert tracemalloc.get_traced_memory()[1] < 3 << 20
    finally:
        tracemalloc.stop()
    unsupported = {"lz4", "zstd", "encrypted", "version-3", "version-0"}
    assert isinstance(error, UnsupportedVersion if name in unsupported else InvalidFormat)


@given(st.binary(max_size=300))
@settings(max_examples=200)
def test_any_bytes_behind_a_magic_are_typed_errors(tmp_path_factory: pytest.TempPathFactory, tail: bytes) -> None:
    path = tmp_path_factory.mktemp("w") / "a.wdbx"
    for magic in (b"WDBX\2\0\0\0", b"ABID\1\0", b""):
        path.write_bytes(magic + tail)
        for verify in (True, False):
            try:
                everything(path, verify=verify)
            except DataError:
                continue


def test_a_bloom_filter_that_cannot_be_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.wdbx"
    path.write_bytes(file_by_hand(TWO, 2, flags=5, bloom=b"\2\0\0\0\6\0\0\0\x63\1\0\0\0\0", blocks=3))
    with WdbxReader(path) as reader, pytest.raises(InvalidFormat, match="99 hashes"):
        reader.bloom()


UNFIT: dict[str, tuple[int, list[Any]]] = {
    "same-id": (7, [1, 2]),
    "lower-id": (6, [1, 2]),
    "id-65-bits": (1 << 64, [1, 2]),
    "dimension": (8, [1.0]),
    "nan": (8, [1.0, float("nan")]),
    "too-large": (8, [1.0, 1e300]),
    "nested": (8, [[1.0, 2.0]]),
}


@pytest.mark.parametrize("name", UNFIT)
def test_records_that_do_not_fit_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError), WdbxWriter(tmp_path / "a.wdbx") as out:
        out.add(7, [1.0, 2.0])
        out.add(*UNFIT[name])
    assert list(tmp_path.iterdir()) == []


def test_arguments_that_a_file_cannot_hold_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.wdbx"
    with WdbxWriter(path, name="é" * 127) as out:
        out.add(0)
    with WdbxReader(path) as reader:
        assert reader.info.name == "é" * 127
    for options in ({"name": "é" * 128}, {"uuid": b"short"}, {"metric": "nearest"}, {"expected": -1}):
        with pytest.raises(ConfigError):
            WdbxWriter(path, overwrite=True, **options)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConfigError, match="already"), WdbxWriter(path):
        pass
    with pytest.raises(ConfigError, match="with block"):
        WdbxWriter(path).add(1)


@given(st.binary(max_size=50), st.binary(max_size=3000))
def test_sums_of_pieces_are_put_together(first: bytes, second: bytes) -> None:
    assert combined(zlib.crc32(first), zlib.crc32(second), len(second)) == zlib.crc32(first + second)


# -- datasets of tokens ------------------------------------------------------------------------------------------------

BLOCK = b"WDTK" + struct.pack("<HHII", 1, 0, 3, 5) + struct.pack("<3I", 1, 2, 0xFFFFFFFF) + b"hallo"


def test_the_block_of_tokens_is_the_one_made_by_hand() -> None:
    assert pack_block([1, 2, 0xFFFFFFFF], "hallo") == BLOCK
    tokens, text = unpack_block(BLOCK)
    assert tokens.tolist() == [1, 2, 0xFFFFFFFF] and text == "hallo"
    assert pack_block([]) == b"WDTK\1\0\0\0" + bytes(8)
    assert unpack_block(pack_block([], "")).tokens.tolist() == []


@given(st.lists(st.integers(0, 0xFFFFFFFF), max_size=30), st.text(st.characters(codec="utf-8"), max_size=20))
def test_any_block_comes_back(tokens: list[int], text: str) -> None:
    found = unpack_block(pack_block(tokens, text))
    assert found.tokens.tolist() == tokens and found.text == text


@pytest.mark.parametrize(
    "data",
    [*truncations(BLOCK), BLOCK + b"x", b"WDTX" + BLOCK[4:], BLOCK[:8] + b"\xff" * 4 + BLOCK[12:],
     BLOCK[:12] + b"\xff" * 4 + BLOCK[16:], BLOCK[:-1] + b"\xff"],
)  # fmt: skip
def test_blocks_whose_lengths_lie_are_invalid(data: bytes) -> None:
    with pytest.raises(InvalidFormat, match="record 3"):
        unpack_block(data, id=3, path="a.wdbx")


def test_a_newer_block_is_unsupported() -> None:
    with pytest.raises(UnsupportedVersion):
        unpack_block(BLOCK[:4] + b"\2" + BLOCK[5:])


def test_a_dataset_has_records_from_1_without_vectors(tmp_path: Path) -> None:
    source, target = tmp_path / "a.bin", tmp_path / "a.wdbx"
    write_tokens(source, range(10))
    assert tokenbin_to_wdbx(source, target, block_size=4) == 10
    with WdbxReader(target) as reader:
        assert reader.info.dimension == 0 and reader.info.name == "a.wdbx"
        bloom = reader.bloom()
        assert bloom is not None and all(id in bloom for id in (1, 2, 3))
        rows = [(record.id, record.vector.size, record.metadata) for record in reader]
    assert rows == [(1, 0, pack_block(range(4))), (2, 0, pack_block(range(4, 8))), (3, 0, pack_block([8, 9]))]


@given(st.lists(st.integers(0, 0xFFFFFFFF), max_size=50), st.integers(1, 20))
@settings(max_examples=25)
def test_tokens_come_back_from_a_dataset(
    tmp_path_factory: pytest.TempPathFactory, tokens: list[int], block_size: int
) -> None:
    folder = tmp_path_factory.mktemp("d")
    write_tokens(folder / "a.bin", tokens)
    tokenbin_to_wdbx(folder / "a.bin", folder / "a.wdbx", block_size=block_size)
    assert wdbx_to_tokenbin(folder / "a.wdbx", folder / "b.bin") == len(tokens)
    assert (folder / "b.bin").read_bytes() == (folder / "a.bin").read_bytes()
    assert [len(block.tokens) for block in token_blocks(folder / "a.wdbx")] == [
        min(block_size, len(tokens) - at) for at in range(0, len(tokens), block_size)
    ]


def test_the_usual_block_has_2048_tokens(tmp_path: Path) -> None:
    write_tokens(tmp_path / "a.bin", range(5000))
    tokenbin_to_wdbx(tmp_path / "a.bin", tmp_path / "a.wdbx")
    assert [len(block.tokens) for block in token_blocks(tmp_path / "a.wdbx")] == [2048, 2048, 904]
    for size in (0, -1, 1 << 25):
        with pytest.raises(ConfigError):
            tokenbin_to_wdbx(tmp_path / "a.bin", tmp_path / "b.wdbx", block_size=size)


def test_a_damaged_dataset_leaves_no_tokenbin(tmp_path: Path) -> None:
    source, target = tmp_path / "a.wdbx", tmp_path / "a.bin"
    with WdbxWriter(source) as out:
        out.add(1, (), pack_block([5, 6], "text"))
    source.write_bytes(source.read_bytes().replace(b"text", b"tExt"))
    with pytest.raises(InvalidFormat):
        wdbx_to_tokenbin(source, target)
    assert not target.exists()
    assert wdbx_to_tokenbin(source, target, verify=False) == 2
    assert read_tokens(target).tolist() == [5, 6]


def test_vectors_are_no_tokens(tmp_path: Path) -> None:
    with WdbxWriter(tmp_path / "a.wdbx") as out:
        out.add(1, [1.0])
    with pytest.raises(InvalidFormat, match="no tokens"):
        wdbx_to_tokenbin(tmp_path / "a.wdbx", tmp_path / "a.bin")
    with WdbxWriter(tmp_path / "b.wdbx") as out:
        out.add(4, (), b'{"other": 1}')
    with pytest.raises(InvalidFormat, match="record 4"):
        list(token_blocks(tmp_path / "b.wdbx"))
    assert not (tmp_path / "a.bin").exists()


@pytest.mark.parametrize("old", [False, True], ids=["new", "over-an-old-one"])
def test_kill_9_while_writing_leaves_the_old_file(tmp_path: Path, old: bool) -> None:
    path = tmp_path / "a.wdbx"
    if old:
        write_two(path)
    killed_while(
        """
        import sys, time
        from windlass.training.wdbx_write import WdbxWriter
        with WdbxWriter(sys.argv[1], overwrite=True) as out:
            for number in range(1, 500):
                out.add(number, (), bytes(10000))
            print("writing", flush=True)
            time.sleep(60)
        """,
        path,
    )
    assert path.exists() == old
    if old:
        assert everything(path)[0] == (7, [0.5, -2.0], b"meta")


@pytest.mark.soak
def test_100_mb_go_both_ways_in_little_memory(tmp_path: Path) -> None:
    tokens = (np.arange(25 << 20, dtype=np.uint64) * 2654435761 % 50000).astype(np.uint32)
    (tmp_path / "a.bin").write_bytes(tokens.tobytes())
    grown = peak_of(
        PEAK
        + """
import sys
from windlass.training.wdbx_write import tokenbin_to_wdbx, wdbx_to_tokenbin
folder = sys.argv[1]
before = peak()
tokenbin_to_wdbx(folder + "/a.bin", folder + "/a.wdbx")
wdbx_to_tokenbin(folder + "/a.wdbx", folder + "/b.bin")
print(before, peak())
""",
        tmp_path,
    )
    assert grown < 24 << 20
    with (tmp_path / "a.bin").open("rb") as a, (tmp_path / "b.bin").open("rb") as b:
        for left, right in itertools.zip_longest(
            iter(lambda: a.read(1 << 20), b""), iter(lambda: b.read(1 << 20), b"")
        ):
            assert left == right
