"""Read files of a folder and nothing outside it, whatever links lie in it.

Links are resolved first and must stay in the folder; what is then opened is opened name by name without following any,
so a link that is put there in between is refused. Only regular files are read, and no more than a bound.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from windlass.core.errors import PathEscape, WorkspaceError

__all__ = ["entries", "inside", "read_inside", "real_inside"]

_ONLY_HERE = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
_FILE = os.O_RDONLY | _ONLY_HERE | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
_FOLDER = os.O_RDONLY | _ONLY_HERE | getattr(os, "O_DIRECTORY", 0)
#: Entries of one folder that are looked at.
MAX_ENTRIES = 2000


def inside(path: str | Path, root: str | Path) -> bool:
    """Tell whether a path lies in a folder (or is it), both taken as they are written."""
    names, top = Path(path).parts, Path(root).parts
    return names[: len(top)] == top


def real_inside(root: str | Path, path: str) -> str:
    """Return the real path that `path` (relative to the folder `root`, with slashes) leads to; it may not exist.

    Raises PathEscape for one that leaves the folder, by `..`, as an absolute path or through a link.
    """
    names = path.replace("\\", "/").split("/") if os.name == "nt" else path.split("/")
    if not path or "\0" in path or path.startswith(("/", "~")) or ".." in names or (os.name == "nt" and ":" in path):
        raise PathEscape(f"{path!r:.200} is no path inside this folder.", path=path, hint="Name a file below it.")
    top = os.path.realpath(root)
    found = os.path.realpath(os.path.join(top, *names))  # noqa: PTH118 - a Path would drop what a name begins with
    if not inside(found, top):
        raise PathEscape(f"{path!r:.200} leads outside its folder.", path=path, hint="Put the file itself there.")
    return found


def read_inside(root: str | Path, path: str, limit: int) -> bytes:
    """Return the first `limit` bytes of a regular file in the folder `root`.

    Raises PathEscape as `real_inside`, WorkspaceError for what is no file or cannot be read.
    """
    top = os.path.realpath(root)
    found = real_inside(root, path)
    try:
        return _read(top, Path(found).relative_to(top).parts, limit)
    except OSError as error:
        gone = error.errno in (errno.ELOOP, errno.EMLINK)
        text = "was replaced by a link" if gone else (error.strerror or str(error)).lower()
        raise WorkspaceError(f"{path!r:.200}: {text}.", path=path) from error


def _read(top: str, names: Sequence[str], limit: int) -> bytes:
    if os.open not in os.supports_dir_fd:
        return _content(os.open(os.path.join(top, *names), _FILE), limit)  # noqa: PTH118
    at = os.open(top, _FOLDER)
    try:
        for name in names[:-1]:
            below = os.open(name, _FOLDER, dir_fd=at)
            os.close(at)
            at = below
        file = os.open(names[-1] if names else ".", _FILE, dir_fd=at)
    finally:
        os.close(at)
    return _content(file, limit)


def _content(file: int, limit: int) -> bytes:
    with os.fdopen(file, "rb") as opened:
        mode = os.fstat(opened.fileno()).st_mode
        if not stat.S_ISREG(mode):
            code = errno.EISDIR if stat.S_ISDIR(mode) else errno.ENXIO
            raise OSError(code, "it is a folder" if stat.S_ISDIR(mode) else "it is no regular file")
        return opened.read(limit)


def entries(folder: str | Path) -> Iterator[os.DirEntry[str]]:
    """Yield what a folder holds, sorted by name, hidden names left out; nothing where it cannot be listed."""
    try:
        with os.scandir(folder) as found:
            names = sorted(found, key=lambda entry: entry.name)
    except OSError:
        return
    yield from [entry for entry in names if not entry.name.startswith(".")][:MAX_ENTRIES]
