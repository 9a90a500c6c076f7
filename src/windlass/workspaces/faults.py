"""Say in words what went wrong with a file, the same words in memory and on disk."""

from __future__ import annotations

import errno
import os

from windlass.core.errors import PathEscape, WorkspaceError
from windlass.workspaces.paths import shown

__all__ = ["check_bounds", "explain", "fault"]

_STAY = "Only links to places inside the workspace are followed."
_SPACE = "Free some space, then try again; nothing was changed."

#: errno -> what happened (after the path), what to do next.
_WORDS: dict[int, tuple[str, str]] = {
    errno.ENOENT: ("was not found", "List the folder to see what is there."),
    errno.EISDIR: ("is a folder, not a file", "Name a file in it."),
    errno.ENOTDIR: ("needs a folder where a file is", "List the folder above it."),
    errno.ENOTEMPTY: ("is a folder that is not empty", "Delete what is in it first."),
    errno.EEXIST: ("already exists", "Read it before changing it."),
    errno.ELOOP: ("runs through a loop of links, more than 40 of them, or one of /proc's", "Name the file itself."),
    errno.ENXIO: ("is not a regular file", "Pipes, sockets and devices are not opened."),
    errno.EACCES: ("may not be accessed", "Check its permissions; nothing was changed."),
    errno.EPERM: ("may not be accessed", "Check its permissions and attributes; nothing was changed."),
    errno.EROFS: ("is on a read-only file system", "Nothing was changed."),
    errno.ENOSPC: ("did not fit: the disk is full", _SPACE),
    errno.EDQUOT: ("did not fit: the quota is used up", _SPACE),
    errno.EFBIG: ("is too large", "Read a part of it with a limit, or split it."),
    errno.ENAMETOOLONG: ("is too long", "Use shorter names."),
    errno.EAGAIN: ("lies in folders that keep moving", "Try again."),
    errno.ESTALE: ("was changed by someone else since it was read", "Read it again, then repeat the change."),
    errno.EBUSY: ("is in use by the system", "Try again later."),
}


def explain(error: OSError, path: str, *, detail: str = "") -> WorkspaceError:
    """Return the WorkspaceError for a system error on `path`, with the system error as its cause.

    EXDEV, the kernel's word for a link that leads out, becomes PathEscape.
    """
    if error.errno == errno.EXDEV:
        told: WorkspaceError = PathEscape(f"{shown(path)} leads outside the workspace.", path=path, hint=_STAY)
    else:
        what, hint = _WORDS.get(error.errno or 0, (f"failed: {error.strerror or error}", ""))
        told = WorkspaceError(f"{shown(path)} {what}{detail}.", path=path, hint=hint)
    told.__cause__ = error
    return told


def fault(code: int) -> OSError:
    """Return the OSError of an errno, of its own class: `fault(errno.ENOENT)` is a FileNotFoundError."""
    return OSError(code, os.strerror(code))


def check_bounds(path: str, **bounds: int | None) -> None:
    """Raise WorkspaceError for a negative bound (`depth`, `limit`); None is no bound."""
    for name, value in bounds.items():
        if value is not None and value < 0:
            raise WorkspaceError(f"{name} is {value} for {shown(path)}, it counts from 0.", path=path)
