"""Look after the ledger's file itself: who may read it, and whether its file system can lock."""

from __future__ import annotations

import logging
import os
import re
from contextlib import suppress
from pathlib import Path

__all__ = ["make_private", "network_filesystem", "warn_if_network"]

_log = logging.getLogger("windlass.stores")
_MOUNTS = Path("/proc/self/mounts")
#: File systems on which SQLite's shared-memory index or its locks are not reliable (https://sqlite.org/wal.html).
_NETWORK = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "glusterfs", "lustre", "fuse.sshfs", "fuse.s3fs"}
)
_ESCAPE = re.compile(r"\\([0-7]{3})")
_warned: set[str] = set()


def make_private(path: Path) -> None:
    """Create the file (0600) and its missing folders (0700), whatever the umask; what exists keeps its mode.

    SQLite gives its -wal and -shm files the mode of the database. Raises OSError.
    """
    for folder in reversed(path.parents):
        if not folder.is_dir():
            folder.mkdir(mode=0o700, exist_ok=True)
    # Never open a file that may be in use: closing any descriptor of it would drop this process's POSIX locks on it.
    with suppress(FileExistsError):
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))


def network_filesystem(mounts: str, path: str) -> str | None:
    """Return the type of the file system that holds `path` when it is a network one, else None.

    `mounts` is the text of /proc/self/mounts (device, mount point, type, …; spaces as \\040); `path` is absolute.
    """
    best, kind = "", ""
    for line in mounts.splitlines():
        fields = line.split(" ")
        if len(fields) < 3:
            continue
        point = _ESCAPE.sub(lambda m: chr(int(m[1], 8)), fields[1]).rstrip("/")
        # A later mount on the same point hides the earlier one.
        if len(point) >= len(best) and (path == point or path.startswith(point + "/")):
            best, kind = point, fields[2]
    return kind if kind in _NETWORK else None


def warn_if_network(path: Path) -> None:
    """Log one warning per folder when the ledger lies where SQLite's locks may not hold."""
    folder = str(path.parent)
    if folder in _warned or not _MOUNTS.is_file():
        return
    kind = network_filesystem(_MOUNTS.read_text("utf-8", "surrogateescape"), str(path))
    if kind is not None:
        _warned.add(folder)
        _log.warning(
            "%s is on a %s file system: SQLite's write-ahead log is not safe there when several machines write. "
            "Keep the ledger on a local disk.",
            path,
            kind,
        )
