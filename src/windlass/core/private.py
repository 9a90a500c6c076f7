"""Files that only this user can read, replaced whole: state, logins, grants."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from windlass.core import clock

__all__ = ["replace_private"]

_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)


def replace_private(path: str | os.PathLike[str], data: bytes) -> None:
    """Put a file of mode 0600 that holds `data` at `path`, in place of what is there, at once and durably.

    A reader sees the old file or the new one, also after a crash. A link at `path` is replaced, not followed. The
    folder must exist. Raises OSError; then the old file is still there and nothing lies beside it.
    """
    target = Path(path)
    beside = target.with_name(f".{clock.new_id()}.part")
    handle = os.open(beside, _FLAGS, 0o600)
    try:
        with open(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(target)
    except BaseException:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise
    _sync_folder(target.parent)


def _sync_folder(folder: Path) -> None:
    """Make a rename durable, where folders can be opened."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
