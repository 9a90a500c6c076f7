"""Make the system call filter of a confined command: classic BPF, as bytes for bwrap or for this thread.

A list of what is refused, with an error number a program can handle: what reaches another process's memory, makes or
enters namespaces, mounts, loads code into the kernel, opens io_uring (whose requests no filter sees), or opens a socket
of a family that leads past the network namespace. The rest of the kernel's interface stays: seccomp(2), bpf(2).
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
import sys

__all__ = ["apply_filter", "build_filter", "is_supported"]

# linux/bpf_common.h, linux/seccomp.h
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _ERRNO, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
_NR, _ARCH, _ARGS = 0, 4, 16
_X32 = 0x40000000
_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _MODE_FILTER = 38, 22, 2

#: machine -> (audit architecture, column of `_CALLS`)
_MACHINES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1), "riscv64": (0xC00000F3, 1)}

#: name -> its number on x86_64 and in the generic table (arm64, riscv64); -1 where there is none.
_CALLS: dict[str, tuple[int, int]] = {
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "pidfd_getfd": (438, 438),
    "kcmp": (312, 272),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "open_tree_attr": (467, 467),
    "unshare": (272, 97),
    "setns": (308, 268),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "open_by_handle_at": (304, 265),
    "fanotify_init": (300, 262),
    "syslog": (103, 116),
    "acct": (163, 89),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "reboot": (169, 142),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "iopl": (172, -1),
    "ioperm": (173, -1),
    "move_pages": (279, 239),
    "migrate_pages": (256, 238),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
}
_CLONE, _CLONE3, _SOCKET, _IOCTL = (56, 220), (435, 435), (41, 198), (16, 29)
#: CLONE_NEW: time, mount, cgroup, uts, ipc, user, pid, net.
_NAMESPACES = 0x80 | 0x20000 | 0x2000000 | 0x4000000 | 0x8000000 | 0x10000000 | 0x20000000 | 0x40000000
#: TIOCSTI and TIOCLINUX type into the terminal of whoever started us.
_TYPING = (0x5412, 0x541C)
_UNIX, _INET, _INET6 = 1, 2, 10


def is_supported() -> bool:
    """Say whether a filter can be made for this machine."""
    return sys.platform == "linux" and platform.machine() in _MACHINES and sys.byteorder == "little"


def build_filter(*, unix: bool = False, inet: bool = True) -> bytes:
    """Return the filter as an array of `struct sock_filter`.

    `unix` allows sockets of the file system (a pair of connected ones is always allowed), `inet` those of TCP and UDP;
    every other family (netlink, packet, vsock, bluetooth ...) is refused. Raises OSError (ENOSYS) on a machine whose
    numbers are not known here.
    """
    if not is_supported():
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    arch, column = _MACHINES[platform.machine()]
    code = [_load(_ARCH), _jump(_EQUAL, arch, 1, 0), _return(_KILL), _load(_NR)]
    if column == 0:
        code += [_jump(_AT_LEAST, _X32, 0, 1), _return(_ERRNO | errno.ENOSYS)]
    for numbers in _CALLS.values():
        if numbers[column] >= 0:
            code += [_jump(_EQUAL, numbers[column], 0, 1), _return(_ERRNO | errno.EPERM)]
    # Its flags lie in memory, where no filter can look: libraries fall back to clone.
    code += [_jump(_EQUAL, _CLONE3[column], 0, 1), _return(_ERRNO | errno.ENOSYS)]
    code += _when(_CLONE[column], [_load(_ARGS), _jump(_ANY_BIT, _NAMESPACES, 0, 1), _return(_ERRNO | errno.EPERM)])
    typing = [_load(_ARGS + 8)]
    for request in _TYPING:
        typing += [_jump(_EQUAL, request, 0, 1), _return(_ERRNO | errno.EPERM)]
    code += _when(_IOCTL[column], typing)
    families = [*([_UNIX] if unix else []), *([_INET, _INET6] if inet else [])]
    sockets = [_load(_ARGS)]
    for family in families:
        sockets += [_jump(_EQUAL, family, 0, 1), _return(_ALLOW)]
    code += _when(_SOCKET[column], [*sockets, _return(_ERRNO | errno.EACCES)])
    return b"".join([*code, _return(_ALLOW)])


def apply_filter(program: bytes) -> None:
    """Put the calling thread, and all it starts from now on, under `program` for good. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    buffer = ctypes.create_string_buffer(program, len(program))

    class _Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))

    given = _Program(len(program) // 8, ctypes.addressof(buffer))
    none = ctypes.c_ulong(0)
    for words in (
        (_PR_SET_NO_NEW_PRIVS, ctypes.c_ulong(1), none, none, none),
        (_PR_SET_SECCOMP, ctypes.c_ulong(_MODE_FILTER), ctypes.byref(given), none, none),
    ):
        if libc.prctl(*words) != 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))


def _when(number: int, then: list[bytes]) -> list[bytes]:
    """Run `then` for one call; whatever falls out of it is allowed."""
    return [_jump(_EQUAL, number, 0, len(then) + 1), *then, _return(_ALLOW)]


def _load(offset: int) -> bytes:
    return struct.pack("<HBBI", _LOAD, 0, 0, offset)


def _jump(code: int, value: int, true: int, false: int) -> bytes:
    return struct.pack("<HBBI", code, true, false, value)


def _return(value: int) -> bytes:
    return struct.pack("<HBBI", _RETURN, 0, 0, value)
