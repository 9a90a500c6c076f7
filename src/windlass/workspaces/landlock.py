"""Hold a thread, and all it starts, to parts of the file system: landlock(7), through ctypes.

Rights are given by folder and only ever add up: a part of a folder that was given cannot be taken out again.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import struct
import sys
from collections.abc import Iterable

__all__ = ["abi", "restrict_thread"]

_CREATE, _ADD, _RESTRICT = 444, 445, 446
_PR_SET_NO_NEW_PRIVS, _PR_CAPBSET_DROP = 38, 24
_CAP_VERSION, _CAPS = 0x20080522, 64
# linux/landlock.h: LANDLOCK_ACCESS_FS_*
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1, 2, 4, 8
_REFER, _TRUNCATE, _IOCTL_DEV = 1 << 13, 1 << 14, 1 << 15
_READ = _EXECUTE | _READ_FILE | _READ_DIR
_OF_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEV
#: Kernel interface version -> how many access rights it knows.
_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15}
_NET = 3  # bind and connect of TCP
_SCOPES = 3  # abstract unix sockets and signals to the outside


def abi() -> int:
    """Return the kernel's Landlock version, 0 where there is none."""
    if sys.platform != "linux":
        return 0
    libc = ctypes.CDLL(None, use_errno=True)
    return max(libc.syscall(_CREATE, None, ctypes.c_size_t(0), ctypes.c_uint(1)), 0)


def restrict_thread(*, read: Iterable[str], write: Iterable[str], network: bool) -> None:
    """Leave the calling thread, and all it starts from now on, the folders and files named, for good.

    `read` may be read and executed, `write` also changed; a path that is not there is left out. Without `network`, no
    TCP port can be bound or connected to (kernel 6.7). Signals to the outside and abstract sockets end with it (6.12).
    Capabilities are given up too: they read other processes' environments past it. Raises OSError, ENOSYS where there
    is no Landlock.
    """
    version = abi()
    if version < 1:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    handled = (1 << _RIGHTS.get(version, 16)) - 1
    net = _NET if version >= 4 and not network else 0
    attributes = struct.pack("=QQQ", handled, net, _SCOPES if version >= 6 else 0)
    size = 8 if version < 4 else 16 if version < 6 else 24
    libc = ctypes.CDLL(None, use_errno=True)
    ruleset = _checked(libc.syscall(_CREATE, attributes, ctypes.c_size_t(size), ctypes.c_uint(0)))
    try:
        for paths, rights in ((read, _READ), (write, handled)):
            for path in paths:
                _allow(libc, ruleset, path, rights & handled)
        none = ctypes.c_ulong(0)
        for number in range(_CAPS):  # without the right to do so there is nothing to drop
            libc.prctl(_PR_CAPBSET_DROP, ctypes.c_ulong(number), none, none, none)
        _checked(libc.capset(struct.pack("=Ii", _CAP_VERSION, 0), bytes(24)))
        _checked(libc.prctl(_PR_SET_NO_NEW_PRIVS, ctypes.c_ulong(1), none, none, none))
        _checked(libc.syscall(_RESTRICT, ctypes.c_int(ruleset), ctypes.c_uint(0)))
    finally:
        os.close(ruleset)


def _allow(libc: ctypes.CDLL, ruleset: int, path: str, rights: int) -> None:
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return  # what is not there needs no right
    try:
        if not stat.S_ISDIR(os.fstat(fd).st_mode):
            rights &= _OF_FILES
        rule = struct.pack("=Qi", rights, fd)
        _checked(libc.syscall(_ADD, ctypes.c_int(ruleset), ctypes.c_int(1), rule, ctypes.c_uint(0)))
    finally:
        os.close(fd)


def _checked(result: int) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result
