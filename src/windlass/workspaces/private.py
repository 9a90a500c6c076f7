"""Make folders and files that only this user can open, for state, spools and keys."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from windlass.core.errors import WorkspaceError

__all__ = ["create_private", "private_dir"]


def private_dir(path: str | os.PathLike[str]) -> Path:
    """Make `path` (and missing parents) a folder of mode 0700 and return it; one of ours is tightened.

    The mode does not depend on the umask. Raises WorkspaceError when something else is there: a link, a file, or a
    folder of another user, who could read or swap what we put there.
    """
    folder = Path(path)
    try:
        missing = [parent for parent in (folder, *folder.parents) if not parent.exists() and not parent.is_symlink()]
        for each in reversed(missing):
            each.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
        if not stat.S_ISDIR(found.st_mode):
            raise WorkspaceError(f"{folder} is not a folder.", path=str(folder), hint="Move it away or name another.")
        if hasattr(os, "geteuid") and found.st_uid != os.geteuid():
            raise WorkspaceError(
                f"{folder} belongs to another user (uid {found.st_uid}).", path=str(folder), hint="Name another folder."
            )
        if stat.S_IMODE(found.st_mode) != 0o700:
            folder.chmod(0o700)
    except OSError as error:
        raise WorkspaceError(f"Cannot make the private folder {folder}: {error}.", path=str(folder)) from error
    return folder


def create_private(path: str | os.PathLike[str]) -> int:
    """Create a new file of mode 0600 and return its descriptor, open for reading and writing.

    Raises WorkspaceError when anything is there already, a link included: it is never followed.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    try:
        return os.open(path, flags, 0o600)
    except OSError as error:
        raise WorkspaceError(f"Cannot create {os.fspath(path)}: {error}.", path=os.fspath(path)) from error
