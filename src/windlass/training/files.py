"""Data files from strangers: errors that name them, reads that never go past their end, and replacing one whole."""

from __future__ import annotations

import contextlib
import os
import stat
import threading
import weakref
from collections.abc import Generator
from pathlib import Path
from typing import Any, BinaryIO, Self

from windlass.core.errors import ConfigError, WindlassError
from windlass.local.model_files import new_file

__all__ = ["DataError", "DataFile", "InvalidFormat", "PayloadTooLarge", "UnsupportedVersion", "replacing", "vacant"]


class DataError(WindlassError):
    """Report a data file that cannot be read; `path` names it."""

    code = "data"

    def __init__(self, message: str, *, path: str | os.PathLike[str] = "", hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.path = os.fspath(path)

    def context(self) -> dict[str, Any]:
        return {"path": self.path} if self.path else {}


class InvalidFormat(DataError):
    """Report bytes that are not what the format says: damaged, cut short, or of another format."""

    code = "invalid_format"


class UnsupportedVersion(DataError):
    """Report a format's version, or a part of it, that this program does not read."""

    code = "unsupported_version"


class PayloadTooLarge(DataError):
    """Report more data than a bound allows, before any of it was read."""

    code = "payload_too_large"


class DataFile:
    """A regular file open for reading at any place; nothing is mapped, so one that shrinks is an error, not a signal.

    `size` is its length in bytes when it was opened. Raises DataError when there is none.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        try:
            # A pipe of that name would make the opening wait for a writer.
            if not stat.S_ISREG(self.path.stat().st_mode):
                raise DataError(f"{self.path} is not a regular file.", path=self.path)
            self._handle = os.open(self.path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            raise DataError(f"{self.path} cannot be read: {reason}.", path=self.path) from error
        self.size = os.fstat(self._handle).st_size
        self._lock = threading.Lock()
        # Sources of rows are not closed by who reads them.
        self._close = weakref.finalize(self, os.close, self._handle)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._close()

    def read(self, offset: int, count: int, what: str) -> bytes:
        """Return exactly `count` bytes from `offset` on; `what` they are is for the error. Safe from several threads.

        Raises InvalidFormat, before anything is allocated, when the file does not hold them.
        """
        if not self._close.alive:
            raise DataError(f"{self.path} is closed.", path=self.path)
        if offset < 0 or count < 0 or offset + count > self.size:
            raise self.invalid(f"it ends before {what} ({count} bytes at {offset}; the file has {self.size})")
        parts: list[bytes] = []
        done = 0
        try:
            while done < count:
                part = self._read_some(offset + done, count - done)
                if not part:
                    raise self.invalid(f"it became shorter while {what} was read")
                parts.append(part)
                done += len(part)
        except OSError as error:
            raise DataError(f"{self.path} cannot be read: {error.strerror}.", path=self.path) from error
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _read_some(self, offset: int, count: int) -> bytes:
        if hasattr(os, "pread"):
            return os.pread(self._handle, count, offset)
        with self._lock:
            os.lseek(self._handle, offset, os.SEEK_SET)
            return os.read(self._handle, count)

    def invalid(self, reason: str, hint: str = "") -> InvalidFormat:
        """Return the error that says why the file is not what it should be."""
        return InvalidFormat(f"{self.path}: {reason}.", path=self.path, hint=hint)


def vacant(path: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
    """Return where a file named `path` is to be written: itself, or what a link of that name leads to.

    Raises ConfigError when something is there and `overwrite` is not set, when that is not a regular file, and when its
    folder is not there.
    """
    target = Path(path)
    if target.exists() and not target.is_file():
        raise ConfigError(f"{target} is not a regular file; nothing was written.")
    if not overwrite and target.exists():
        raise ConfigError(
            f"{target} is there already; nothing was written.", hint="Allow overwriting, or name another."
        )
    target = target.resolve()
    if not target.parent.is_dir():
        raise ConfigError(f"There is no folder {target.parent} for {target.name}.", hint="Make it first.")
    return target


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str], *, overwrite: bool = False) -> Generator[BinaryIO]:
    """Give a file to write that takes the place of `path`, whole and durably, when the block ends without an error.

    Raises ConfigError as `vacant`, and LocalModelError when it cannot be written.
    """
    with new_file(vacant(path, overwrite=overwrite)) as file:
        yield file
