"""Write WDBX version 2 (`windlass.training.wdbx` says how it is laid out), and the datasets of tokens kept in it.

A dataset is a WDBX file whose records, numbered from 1, have no vector; each one's metadata is a block of tokens::

    "WDTK", u16 1, u16 0, u32 tokens, u32 bytes of text, the tokens (u32), the text (UTF-8)
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO, Final, Literal, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from windlass.core import clock
from windlass.core.errors import ConfigError
from windlass.training import wdbx
from windlass.training.bloom import MOST_IDS, BloomFilter
from windlass.training.files import InvalidFormat, PayloadTooLarge, UnsupportedVersion, replacing
from windlass.training.tokenbin import TokenBin, TokenBinWriter, token_bytes
from windlass.training.wdbx import METRICS, WdbxReader, combined, invalid_block

__all__ = [
    "Metric",
    "TokenBlock",
    "WdbxWriter",
    "pack_block",
    "token_blocks",
    "tokenbin_to_wdbx",
    "unpack_block",
    "wdbx_to_tokenbin",
]

Metric = Literal["euclidean", "cosine", "dot_product", "manhattan"]
#: The reference's own writer takes no longer name.
_MAX_NAME: Final = 254
_BLOCK: Final = struct.Struct("<4sHHII")
_MOST: Final = 0xFFFF_FFFF
_F32: Final = np.dtype("<f4")


class WdbxWriter:
    """Write a WDBX file record by record: `with WdbxWriter(path) as out: out.add(1, vector, b"...")`.

    The file appears, whole, when the block ends; with an error nothing changes. `name` is at most 254 bytes of UTF-8.
    `expected` records make room for a bloom filter of that size (0: none). `created` and `modified` are Unix seconds
    (None: now), `uuid` 16 bytes (None: random). Raises ConfigError when `path` is there already and `overwrite` is not
    set, and for arguments that a file cannot hold.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        name: str = "",
        metric: Metric = "euclidean",
        expected: int = 0,
        created: int | None = None,
        modified: int | None = None,
        uuid: bytes | None = None,
        overwrite: bool = False,
    ) -> None:
        now = clock.now_ns() // 1_000_000_000
        self._path, self._overwrite = path, overwrite
        self._name = name.encode()
        self._uuid = bytes([int(clock.random() * 256) for _ in range(16)]) if uuid is None else uuid
        if len(self._name) > _MAX_NAME or len(self._uuid) != 16 or metric not in METRICS:
            raise ConfigError(f"A WDBX file has a name of at most {_MAX_NAME} bytes, 16 bytes of uuid, a known metric.")
        self._times = (now if created is None else created, now if modified is None else modified)
        self._metric = METRICS.index(metric)
        self._bloom = BloomFilter.sized(expected) if expected else None
        self._stack = ExitStack()
        self._file: BinaryIO | None = None
        self._last, self._sum, self._bytes = -1, 0, 0
        self.count, self.dimension = 0, 0

    def __enter__(self) -> Self:
        self._file = self._stack.enter_context(replacing(self._path, overwrite=self._overwrite))
        self._file.write(bytes(wdbx.HEADER.size + len(self._front())))  # known when the last record is
        return self

    def __exit__(self, *error: Any) -> None:
        if error[0] is not None:
            self._stack.__exit__(*error)
            return
        with self._stack:
            self._finish()

    def add(self, id: int, vector: Sequence[float] | NDArray[Any] = (), metadata: bytes = b"") -> None:
        """Add a record. Ids (unsigned, 64 bits) rise, so that none is there twice; all vectors have one length.

        Raises ConfigError for what does not keep to that or is not finite, PayloadTooLarge for more than a file holds.
        """
        if self._file is None:
            raise ConfigError("A WdbxWriter is used in a with block.")
        if not self._last < id < 1 << 64:
            raise ConfigError(f"The id {id} is not above {self._last} (the one before) and below 2^64.")
        with np.errstate(over="ignore"):
            numbers = np.asarray(vector, _F32)
        if self.count == 0:
            self.dimension = numbers.size
        if numbers.ndim != 1 or numbers.size != self.dimension or not np.isfinite(numbers).all():
            raise ConfigError(f"Record {id} is not a list of {self.dimension} finite numbers, as those before it.")
        if len(metadata) > _MOST or self.count == _MOST:
            raise PayloadTooLarge(f"{self._path}: a WDBX file has no room for record {id}.", path=self._path)
        data = b"".join((wdbx.RECORD.pack(id, numbers.size, len(metadata)), numbers.tobytes(), metadata))
        self._file.write(data)
        self._sum = zlib.crc32(data, self._sum)
        self._bytes += len(data)
        self._last, self.count = id, self.count + 1
        if self._bloom is not None:
            self._bloom.add(id)

    def _front(self) -> bytes:
        """Return what stands between header and records, as it is known now."""
        parts = [struct.pack("<H", len(self._name)), self._name]
        if self._bloom is not None:
            size = len(self._bloom.bits)
            parts.append(wdbx.BLOOM.pack(wdbx.TYPE_BLOOM, 0, 0, wdbx.BLOOM_HEAD.size + size))
            parts += [wdbx.BLOOM_HEAD.pack(self._bloom.hashes, size), self._bloom.bits]
        parts.append(wdbx.VECTORS.pack(wdbx.TYPE_VECTORS, 0, 0, self.count, self._bytes))
        return b"".join(parts)

    def _finish(self) -> None:
        """Write the footer, then the front over its placeholder."""
        assert self._file is not None
        flags = wdbx.FLAG_METADATA | (wdbx.FLAG_BLOOM if self._bloom is not None else 0)
        header = wdbx.HEADER.pack(
            wdbx.MAGIC, 2, flags, 0, *self._times, self.count, self.dimension, self._metric, 0, 0, self._uuid, bytes(8)
        )  # fmt: skip
        front = self._front()
        head, data = zlib.crc32(header), combined(zlib.crc32(front), self._sum, self._bytes)
        size = len(header) + len(front) + self._bytes
        whole = combined(head, data, size - len(header))
        blocks = 2 if self._bloom is None else 3
        self._file.write(wdbx.FOOTER.pack(b"END\0", head, data, whole, size, blocks, 0))
        self._file.seek(0)
        self._file.write(header + front)


class TokenBlock(NamedTuple):
    """What one record of a dataset holds: `tokens` (n,) and, where it was kept, the text they stand for."""

    tokens: NDArray[np.uint32]
    text: str = ""


def pack_block(tokens: Sequence[int] | NDArray[Any], text: str = "") -> bytes:
    """Return a WDTK block. Raises ConfigError for what are no tokens, PayloadTooLarge past 2^32 - 1 of either."""
    data, words = token_bytes(tokens), text.encode()
    if len(data) // 4 > _MOST or len(words) > _MOST:
        raise PayloadTooLarge("A block holds at most 4294967295 tokens and as many bytes of text.")
    return _BLOCK.pack(b"WDTK", 1, 0, len(data) // 4, len(words)) + data + words


def unpack_block(data: bytes, *, id: int = 0, path: str | os.PathLike[str] = "") -> TokenBlock:
    """Return what a WDTK block holds; `id` and `path` name it in errors.

    Raises InvalidFormat when lengths do not add up or the text is not UTF-8, UnsupportedVersion for a newer block.
    """
    if len(data) < _BLOCK.size or data[:4] != b"WDTK":
        raise invalid_block(id, "its metadata are no block of tokens (WDTK)", path)
    _, version, _, count, length = _BLOCK.unpack_from(data)
    if version != 1:
        raise UnsupportedVersion(f"{path}: record {id}: blocks of version {version} are not read.", path=path)
    if len(data) != _BLOCK.size + count * 4 + length:
        raise invalid_block(
            id, f"{count} tokens and {length} bytes of text are not the block's {len(data)} bytes", path
        )
    tokens = np.frombuffer(data, np.dtype("<u4"), count, _BLOCK.size).astype(np.uint32)
    try:
        return TokenBlock(tokens, data[_BLOCK.size + count * 4 :].decode())
    except UnicodeDecodeError as error:
        raise invalid_block(id, f"byte {error.start} of its text is not UTF-8", path) from None


def token_blocks(path: str | os.PathLike[str], *, verify: bool = True) -> Iterator[TokenBlock]:
    """Yield the blocks of a dataset, in the order of the file; records without metadata are passed over.

    Raises as `WdbxReader` and `unpack_block`; wrong sums after the last block.
    """
    with WdbxReader(path, verify=verify) as reader:
        for record in reader:
            if record.metadata:
                yield unpack_block(record.metadata, id=record.id, path=path)


def tokenbin_to_wdbx(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    block_size: int = 2048,
    overwrite: bool = False,
) -> int:
    """Write a TokenBin as a dataset with `block_size` tokens in a record; returns how many tokens there were.

    Memory holds one block. Raises as `TokenBin` and `WdbxWriter`; the target changes only when all went well.
    """
    if not 1 <= block_size <= 1 << 24:
        raise ConfigError(f"A block of {block_size} tokens: use 1 to {1 << 24}.")
    with TokenBin(source) as tokens:
        blocks = -(-len(tokens) // block_size)
        name = os.fsencode(Path(target).name)[:_MAX_NAME].decode("utf-8", "ignore")
        with WdbxWriter(target, name=name, expected=blocks if blocks <= MOST_IDS else 0, overwrite=overwrite) as out:
            for number, piece in enumerate(tokens.chunks(block_size), 1):
                out.add(number, (), pack_block(piece))
        return len(tokens)


def wdbx_to_tokenbin(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    verify: bool = True,
    overwrite: bool = False,
) -> int:
    """Write a dataset's tokens as a TokenBin; returns how many there were. Texts in the dataset are left behind.

    Memory holds one record. Raises as `token_blocks` and `TokenBinWriter`; the target changes only when all went well.
    """
    with TokenBinWriter(target, overwrite=overwrite) as out:
        found = False
        for block in token_blocks(source, verify=verify):
            out.write(block.tokens)
            found = True
        if not found:
            with WdbxReader(source) as reader:
                if len(reader):
                    raise InvalidFormat(f"{source} holds vectors, but no tokens.", path=source)
        return out.count
