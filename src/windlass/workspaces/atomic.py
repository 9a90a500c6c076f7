"""Replace a file so that whoever looks, and whatever fails, finds the old content or the new one, never a mix."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import stat
import sys
import threading

from windlass.core import clock
from windlass.workspaces.beneath import CREATE, READ, Folder
from windlass.workspaces.faults import explain, fault
from windlass.workspaces.threads import Stop

__all__ = ["replace"]

_log = logging.getLogger(__name__)
_CHUNK = 1 << 20
#: File systems without hard links say so by one of these.
_NO_LINKS = frozenset({errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK})


def replace(
    folder: Folder,
    name: str,
    data: bytes,
    *,
    path: str,
    expected: str | None,
    stop: Stop,
    lock: threading.Lock,
) -> None:
    """Make `name` in `folder` hold `data`, durably.

    A temporary file beside it is written, synced and renamed over it, then the folder is synced. Permission bits (never
    set-uid) and, where we may, the owner of a replaced file are kept; a new file gets 0666 less the umask. Hard links
    and attributes beyond that are not: the other names of the old file keep the old content.

    `expected` is the SHA-256 in hex of the content to be replaced, '' for none there; compared under `lock` right
    before the rename, then ESTALE or EEXIST is raised. `stop.asked` gives up before the rename (ECANCELED).

    Raises OSError with the old content in place and the temporary file removed. Raises WorkspaceError (with `path` as
    the caller knows it) when only the last sync failed: the new content is there but may not survive a crash.
    """
    old = folder.lstat(name)
    if old is not None:
        _check_replaceable(folder, name, old, expected)
    temp, fd = _open_temp(folder, private=old is not None)
    try:
        try:
            _fill(fd, data, old)
        finally:
            os.close(fd)
        with lock:
            if stop.asked:
                raise fault(errno.ECANCELED)
            if expected:
                _check_same(folder, name, expected)
            if expected == "":
                _publish_new(folder, temp, name)
            else:
                folder.replace(temp, name)
    except BaseException:
        _remove(folder, temp)
        raise
    try:
        folder.sync()
    except OSError as error:
        raise explain(
            error, path, detail=": the file was replaced, but a crash now may bring the old one back"
        ) from error


def _remove(folder: Folder, temp: str) -> None:
    try:
        folder.unlink(temp)
    except FileNotFoundError:
        return  # it already has its new name
    except OSError as error:
        # The error that brought us here is the one to tell; this one often has the same cause.
        _log.warning("%s could not be removed: %s", temp, error)


def _check_replaceable(folder: Folder, name: str, old: os.stat_result, expected: str | None) -> None:
    if stat.S_ISDIR(old.st_mode):
        raise fault(errno.EISDIR)
    if not stat.S_ISREG(old.st_mode):
        raise fault(errno.ENXIO)
    if expected == "":
        raise fault(errno.EEXIST)
    if not folder.writable(name):
        raise fault(errno.EACCES)


def _open_temp(folder: Folder, *, private: bool) -> tuple[str, int]:
    # O_EXCL makes a guessed name harmless: a planted file or link is never opened, we only take the next name.
    for _ in range(100):
        temp = f".windlass-{clock.new_id()}.tmp"
        with contextlib.suppress(FileExistsError):
            # What replaces a private file must not be readable for a moment either: its mode is set once it is full.
            return temp, folder.open(temp, CREATE, 0o600 if private else 0o666)
    raise fault(errno.EEXIST)


def _fill(fd: int, data: bytes, old: os.stat_result | None) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(fd, rest[:_CHUNK]) :]
    if old is not None and sys.platform != "win32":
        made = os.fstat(fd)
        if (made.st_uid, made.st_gid) != (old.st_uid, old.st_gid):
            # Only root may give files away; for anybody else the new content is simply theirs.
            with contextlib.suppress(PermissionError):
                os.fchown(fd, old.st_uid, old.st_gid)
        os.fchmod(fd, old.st_mode & 0o777)
    os.fsync(fd)


def _check_same(folder: Folder, name: str, expected: str) -> None:
    try:
        fd = folder.open(name, READ)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ELOOP, errno.ENXIO):
            raise
        raise fault(errno.ESTALE) from None  # gone, or a link or socket by now
    try:
        before = os.fstat(fd)
        if not stat.S_ISREG(before.st_mode):
            raise fault(errno.ESTALE)
        digest = hashlib.sha256()
        while chunk := os.read(fd, _CHUNK):
            digest.update(chunk)
    finally:
        os.close(fd)
    # The name must still be the file that was hashed, and that file untouched since.
    after = folder.lstat(name)
    if after is None or _mark(after) != _mark(before) or digest.hexdigest() != expected.lower():
        raise fault(errno.ESTALE)


def _mark(found: os.stat_result) -> tuple[int, ...]:
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _publish_new(folder: Folder, temp: str, name: str) -> None:
    try:
        folder.link(temp, name)  # unlike a rename, it fails when somebody was first
    except FileExistsError:
        raise
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        if folder.lstat(name) is not None:
            raise fault(errno.EEXIST) from None
        folder.replace(temp, name)
    else:
        folder.unlink(temp)
