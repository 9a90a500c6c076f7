"""TokenBin, reference E's file of tokens: 32-bit numbers, little-endian, without a header, one after the other.

A file holds `size / 4` tokens; another length is not a TokenBin. The reference loads up to 512 MiB whole, and so does
`read_tokens`; `TokenBin` reads windows of a file of any length.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any, BinaryIO, Final, Self

import numpy as np
from numpy.typing import NDArray

from windlass.core.errors import ConfigError
from windlass.training.files import DataFile, PayloadTooLarge, replacing

__all__ = ["MAX_WHOLE", "TokenBin", "TokenBinWriter", "read_tokens", "token_bytes", "write_tokens"]

#: Bytes that are loaded whole: the reference's bound.
MAX_WHOLE: Final = 512 << 20
#: Written so, whatever order the machine's own numbers have.
_DISK: Final = np.dtype("<u4")
_CHUNK: Final = 1 << 18  # tokens


class TokenBin:
    """A TokenBin open for reading windows of tokens; memory does not grow with the file.

    Windows are read, or with `mapped` copied out of a memory map, which spares a system call each but ends the process
    (SIGBUS) if somebody cuts the file meanwhile: for files that nobody else writes. Raises InvalidFormat for a length
    that is no multiple of 4, DataError when the file cannot be read.
    """

    def __init__(self, path: str | os.PathLike[str], *, mapped: bool = False) -> None:
        self._file = DataFile(path)
        self._map: mmap.mmap | None = None
        try:
            if self._file.size % 4:
                raise self._file.invalid(
                    f"{self._file.size} bytes are no whole number of 32-bit tokens",
                    "A TokenBin is an array of little-endian 32-bit numbers without a header.",
                )
            if mapped and self._file.size:
                with open(self._file.path, "rb") as file:
                    self._map = mmap.mmap(file.fileno(), self._file.size, access=mmap.ACCESS_READ)
        except BaseException:
            self._file.close()
            raise
        self.path = self._file.path

    def __len__(self) -> int:
        return self._file.size // 4

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file and its map."""
        if self._map is not None:
            self._map.close()
        self._file.close()

    def window(self, start: int, count: int) -> NDArray[np.uint32]:
        """Return `count` tokens from number `start` on, in the machine's own order.

        Raises InvalidFormat past the end.
        """
        if self._map is not None and 0 <= start <= start + count <= len(self):
            data = self._map[start * 4 : (start + count) * 4]
        else:
            data = self._file.read(start * 4, count * 4, f"tokens {start} to {start + count}")
        return np.frombuffer(data, _DISK).astype(np.uint32)

    def chunks(self, size: int = _CHUNK) -> Iterator[NDArray[np.uint32]]:
        """Yield all tokens in pieces of `size`."""
        for start in range(0, len(self), size):
            yield self.window(start, min(size, len(self) - start))


def read_tokens(path: str | os.PathLike[str], *, max_bytes: int = MAX_WHOLE) -> NDArray[np.uint32]:
    """Return all tokens of a TokenBin, (n,).

    Raises PayloadTooLarge for more than `max_bytes` (512 MiB), InvalidFormat for a length that is no multiple of 4.
    """
    with TokenBin(path) as tokens:
        if len(tokens) * 4 > max_bytes:
            raise PayloadTooLarge(
                f"{path} has {len(tokens) * 4} bytes; at most {max_bytes} are loaded whole.",
                path=path,
                hint="Read windows of it with TokenBin.",
            )
        return tokens.window(0, len(tokens))


def token_bytes(tokens: Sequence[int] | NDArray[Any]) -> bytes:
    """Return tokens as the bytes of a TokenBin. Raises ConfigError for what is no number from 0 to 2^32 - 1."""
    array = np.asarray(tokens)
    if array.size == 0:
        return b""
    if array.ndim != 1 or array.dtype.kind not in "iu" or int(array.min()) < 0 or int(array.max()) > 0xFFFF_FFFF:
        raise ConfigError("Tokens must be a flat list of whole numbers from 0 to 4294967295.")
    return array.astype(_DISK).tobytes()


class TokenBinWriter:
    """Write a TokenBin piece by piece: `with TokenBinWriter(path) as out: out.write(tokens)`.

    The file appears, whole, when the block ends; with an error nothing changes. Raises ConfigError when `path` is
    there already and `overwrite` is not set.
    """

    def __init__(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        self._path, self._overwrite = path, overwrite
        self._stack = ExitStack()
        self._file: BinaryIO | None = None
        self.count = 0

    def __enter__(self) -> Self:
        self._file = self._stack.enter_context(replacing(self._path, overwrite=self._overwrite))
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    def write(self, tokens: Sequence[int] | NDArray[Any]) -> None:
        """Add tokens. Raises ConfigError as `token_bytes`."""
        if self._file is None:
            raise ConfigError("A TokenBinWriter is used in a with block.")
        data = token_bytes(tokens)
        self._file.write(data)
        self.count += len(data) // 4


def write_tokens(
    path: str | os.PathLike[str], tokens: Sequence[int] | NDArray[Any], *, overwrite: bool = False
) -> None:
    """Write a TokenBin, whole or not at all. Raises as `TokenBinWriter`."""
    with TokenBinWriter(path, overwrite=overwrite) as out:
        out.write(tokens)
