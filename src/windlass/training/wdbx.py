"""WDBX, the vector file of reference E (version 2, and version 1 for reading), record by record in either direction.

All numbers are little-endian. A version 2 file is, one after the other::

    header   64   "WDBX", u16 version, u8 flags (1 bloom, 2 index, 4 metadata, 8 encrypted, 16 compressed, 32 log),
                  u8 0, i64 created, i64 modified (Unix seconds), u64 count, u32 dimension, u8 metric, u8 compression,
                  u16 0, uuid (16) at 40, then zeros
    name          u16 length, bytes
    bloom         u8 type 2, u8 0, u16 0, u32 size; then u8 hashes, u32 bytes, bits          (only with flag 1)
    vectors  16   u8 type 4, u8 compression, u16 0, u32 count, u64 bytes of all records
    record   16   u64 id, u32 numbers, u32 bytes of metadata; then the numbers (f32) and the metadata
    footer   32   "END\\0", u32 CRC of the header, u32 CRC of all after it, u32 CRC of the file, u64 size without
                  footer, u32 blocks, u32 0

Where the reference's own files differ, both are read: it writes zeros over the second half of the uuid (its reserved
field overlaps it), the header's CRC again as the file's, and a size of all records without their metadata. Version 1
is "ABID", u16 1, the name, u64 count, and records as above, with no sums.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator
from typing import Final, NamedTuple, Self

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from windlass.training.bloom import BloomFilter
from windlass.training.files import DataFile, InvalidFormat, PayloadTooLarge, UnsupportedVersion

__all__ = ["COMPRESSIONS", "METRICS", "Record", "WdbxInfo", "WdbxReader"]

METRICS: Final = ("euclidean", "cosine", "dot_product", "manhattan")
COMPRESSIONS: Final = ("none", "lz4", "zstd", "delta")
MAGIC, MAGIC_V1 = b"WDBX", b"ABID"
HEADER: Final = struct.Struct("<4sHBBqqQIBBH16s8s")
BLOOM: Final = struct.Struct("<BBHI")
BLOOM_HEAD: Final = struct.Struct("<BI")
VECTORS: Final = struct.Struct("<BBHIQ")
RECORD: Final = struct.Struct("<QII")
FOOTER: Final = struct.Struct("<4sIIIQII")
TYPE_BLOOM, TYPE_VECTORS = 2, 4
FLAG_BLOOM, FLAG_METADATA, FLAG_ENCRYPTED = 1, 4, 8
#: Bytes of one record that are taken into memory.
MAX_RECORD: Final = 256 << 20
_MAX_BLOOM: Final = 512 << 20
_F32: Final = np.dtype("<f4")
#: Small records are read many at a time.
_WINDOW: Final = 1 << 20


class Record(NamedTuple):
    """One record: `id` (unsigned, 64 bits), `vector` (dimension,), which may be empty, and `metadata` (b"": none)."""

    id: int
    vector: NDArray[np.float32]
    metadata: bytes = b""


class WdbxInfo(Struct, frozen=True):
    """What the front of a WDBX file says. Times are Unix seconds; `size` is the file's, in bytes.

    The last eight bytes of `uuid` are zeros in files of the reference; version 1 has none of version, times and uuid.
    """

    name: str
    version: int
    count: int
    dimension: int
    size: int
    metric: str = "euclidean"
    created: int = 0
    modified: int = 0
    uuid: bytes = bytes(16)
    flags: int = 0


class WdbxReader:
    """Read a WDBX file record by record, in the order of the file; memory holds one record and a window of 1 MiB.

    Every length is compared with what is left of the file before anything is read. The sum of the header is checked at
    once, that of the records when the last one was read. With `verify` False what does not agree is noted in
    `problems` and reading goes on, as far as lengths allow. Raises InvalidFormat, UnsupportedVersion (a newer version,
    encrypted, compressed), PayloadTooLarge (a record over `max_record` bytes) and DataError.
    """

    def __init__(self, path: str | os.PathLike[str], *, verify: bool = True, max_record: int = MAX_RECORD) -> None:
        self._verify, self._max_record = verify, max_record
        #: What did not agree, where `verify` is off.
        self.problems: list[str] = []
        self._file = DataFile(path)
        self.path = self._file.path
        self._bloom_at: tuple[int, int, int] | None = None
        self._data_sum: int | None = None
        try:
            magic = self._file.read(0, min(4, self._file.size), "its first bytes")
            if magic == MAGIC:
                self._end = self._file.size - FOOTER.size
                self.info = self._read_front()
            elif magic == MAGIC_V1:
                self._end = self._file.size
                self.info = self._read_front_v1()
            else:
                raise self._file.invalid("it is no WDBX file", "A WDBX file begins with WDBX (or ABID, version 1).")
            if self.info.count * RECORD.size > self._end - self._start:
                raise self._file.invalid(f"it says {self.info.count} records, for which it is too short")
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _read_front(self) -> WdbxInfo:
        """Read header, footer, name, bloom block and the head of the records."""
        file = self._file
        raw = file.read(0, HEADER.size, "its header")
        (_, version, flags, _, created, modified, count, dimension, metric, compression, _, uuid, _) = HEADER.unpack(
            raw
        )
        if version not in (1, 2):
            raise UnsupportedVersion(f"{self.path}: WDBX version {version}; 1 and 2 are read.", path=self.path)
        if flags & FLAG_ENCRYPTED or compression not in (0, 3):
            # The reference marks "delta" but writes the numbers as they are.
            what = "encrypted" if flags & FLAG_ENCRYPTED else f"compressed ({compression})"
            raise UnsupportedVersion(f"{self.path} is {what}, which is not read.", path=self.path)
        if metric >= len(METRICS):
            raise file.invalid(f"it has the unknown metric {metric}")
        self._read_footer(raw, 3 if flags & FLAG_BLOOM else 2)
        at = HEADER.size
        (length,) = struct.unpack("<H", self._front(at, 2, "its name"))
        name = self._front(at + 2, length, "its name").decode("utf-8", "backslashreplace")
        at += 2 + length
        if flags & FLAG_BLOOM and self._front(at, 1, "its blocks") == bytes((TYPE_BLOOM,)):
            at = self._read_bloom(at)
        kind, packed, _, told, size = VECTORS.unpack(self._front(at, VECTORS.size, "the head of its records"))
        if kind != TYPE_VECTORS:
            raise file.invalid(f"a block of type {kind} stands where its records should begin")
        if packed not in (0, 3):
            raise UnsupportedVersion(f"{self.path}: compressed records ({packed}) are not read.", path=self.path)
        self._start = at + VECTORS.size
        if told != count:
            self._wrong(f"its header says {count} records, the block of records {told}")
        if size > self._end - self._start:
            self._wrong(f"its records should have {size} bytes, of which {self._end - self._start} are there")
        self._front_sum = zlib.crc32(file.read(HEADER.size, self._start - HEADER.size, "its blocks"))
        return WdbxInfo(
            name, version, told, dimension, file.size, METRICS[metric], created, modified, uuid, flags
        )  # fmt: skip

    def _read_footer(self, header: bytes, blocks: int) -> None:
        """Check what the last 32 bytes say of the rest."""
        if self._end < HEADER.size:
            raise self._file.invalid("it is too short for a header and a footer")
        mark, head, self._data_sum, whole, size, told, rest = FOOTER.unpack(
            self._file.read(self._end, FOOTER.size, "its footer")
        )
        if mark != b"END\0":
            raise self._file.invalid("its last 32 bytes are no footer: it was cut short, or something was added")
        self._whole_sum, self._head_sum = whole, zlib.crc32(header)
        if head != self._head_sum:
            self._wrong("the sum of its header is wrong")
        if size != self._end or rest:
            self._wrong(f"its footer says {size} bytes; there are {self._end}")
        if told != blocks:
            self._wrong(f"its footer says {told} blocks; there are {blocks}")

    def _read_bloom(self, at: int) -> int:
        _, _, _, size = BLOOM.unpack(self._front(at, BLOOM.size, "its bloom block"))
        start = at + BLOOM.size
        if size > min(self._end - start, _MAX_BLOOM) or size < BLOOM_HEAD.size:
            raise self._file.invalid(f"its bloom block has {size} bytes")
        hashes, length = BLOOM_HEAD.unpack(self._front(start, BLOOM_HEAD.size, "its bloom block"))
        if BLOOM_HEAD.size + length > size:
            raise self._file.invalid(f"its bloom filter of {length} bytes is longer than its block")
        self._bloom_at = hashes, start + BLOOM_HEAD.size, length
        return start + size

    def _read_front_v1(self) -> WdbxInfo:
        version, length = struct.unpack("<HH", self._front(4, 4, "its version"))
        if version != 1:
            raise UnsupportedVersion(f"{self.path}: ABID version {version}; 1 is read.", path=self.path)
        name = self._front(8, length, "its name").decode("utf-8", "backslashreplace")
        (count,) = struct.unpack("<Q", self._front(8 + length, 8, "its count"))
        self._start = 16 + length
        dimension = 0
        if count:
            _, dimension, _ = RECORD.unpack(self._front(self._start, RECORD.size, "record 1"))
        return WdbxInfo(name, 1, count, dimension, self._file.size)

    def _front(self, at: int, count: int, what: str) -> bytes:
        """Read what stands before the footer."""
        if at + count > self._end:
            raise self._file.invalid(f"it ends before {what}")
        return self._file.read(at, count, what)

    def _wrong(self, reason: str) -> None:
        if self._verify:
            raise self._file.invalid(reason, "It is damaged. verify=False reads what can be read.")
        self.problems.append(reason)

    def __len__(self) -> int:
        return self.info.count

    def bloom(self) -> BloomFilter | None:
        """Return the file's bloom filter, None when it has none. Raises InvalidFormat for one that cannot be."""
        if self._bloom_at is None:
            return None
        hashes, at, length = self._bloom_at
        if not 1 <= hashes <= 16 or not length:
            raise self._file.invalid(f"its bloom filter has {hashes} hashes and {length} bytes")
        return BloomFilter(hashes, bytearray(self._file.read(at, length, "its bloom filter")))

    def __iter__(self) -> Iterator[Record]:
        """Yield the records. Wrong sums are found after the last one."""
        window, at = b"", self._start  # `window` holds the file's bytes from `at` on
        used = 0
        total = self._front_sum if self._data_sum is not None else 0
        for number in range(1, self.info.count + 1):
            window, at, used = self._filled(window, at, used, RECORD.size, number)
            id, numbers, extra = RECORD.unpack_from(window, used)
            need = RECORD.size + numbers * 4 + extra
            if need > self._end - at - used:
                raise self._file.invalid(f"record {number} says {need} bytes; {self._end - at - used} are left")
            if need > self._max_record:
                raise PayloadTooLarge(
                    f"{self.path}: record {number} has {need} bytes; at most {self._max_record} are read.",
                    path=self.path,
                )
            window, at, used = self._filled(window, at, used, need, number)
            body = used + RECORD.size
            vector = np.frombuffer(window, _F32, numbers, body).astype(np.float32)
            total = zlib.crc32(memoryview(window)[used : used + need], total)
            used += need
            yield Record(id, vector, window[body + numbers * 4 : used])
        self._check_end(at + used, total)

    def _filled(self, window: bytes, at: int, used: int, need: int, number: int) -> tuple[bytes, int, int]:
        """Return the window with at least `need` bytes after `used`."""
        if len(window) - used >= need:
            return window, at, used
        start = at + used
        count = min(max(need, _WINDOW), self._end - start)
        if count < need:
            raise self._file.invalid(f"it ends in record {number} of {self.info.count}")
        return self._file.read(start, count, f"record {number}"), start, 0

    def _check_end(self, at: int, total: int) -> None:
        if at != self._end:
            self._wrong(f"{self._end - at} bytes stand after its last record")
        elif self._data_sum is not None and total != self._data_sum:
            self._wrong("the sum of its records is wrong")
        elif self._data_sum is not None and self._whole_sum not in (
            self._head_sum,
            combined(self._head_sum, total, self._end - HEADER.size),
        ):
            self._wrong("the sum of the file is wrong")


def combined(first: int, second: int, length: int) -> int:
    """Return the CRC-32 of two pieces one after the other from those of each; `length` is the second's, in bytes.

    A CRC is linear: bytes appended to the first piece act on its sum as a 32 x 32 matrix over single bits, and squaring
    the matrix of n zero bytes gives that of 2n (Mark Adler's crc32_combine in zlib).
    """
    # Row n: what bit n of a sum becomes by one zero bit.
    matrix = [0xEDB8_8320, *[1 << bit for bit in range(31)]]
    for _ in range(3):
        matrix = [_times(matrix, row) for row in matrix]
    while length:
        if length & 1:
            first = _times(matrix, first)
        matrix = [_times(matrix, row) for row in matrix]
        length >>= 1
    return first ^ second


def _times(matrix: list[int], vector: int) -> int:
    out = 0
    for row in matrix:
        if vector & 1:
            out ^= row
        vector >>= 1
        if not vector:
            break
    return out


def invalid_block(id: int, reason: str, path: str | os.PathLike[str]) -> InvalidFormat:
    """Return the error that names a record whose metadata are not what they should be."""
    return InvalidFormat(f"{path}: record {id}: {reason}.", path=path)
