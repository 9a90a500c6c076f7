"""Open what lies beneath one folder, and nothing else.

Three ways, the strongest that the platform has:

- `openat2`: the kernel resolves the whole path under RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS (Linux 5.6, openat2(2)).
- `walk (weaker)`: we resolve it name by name with directory handles that never follow a link; links inside the tree
  are resolved here, 40 at most. For other POSIX systems, and where a sandbox forbids openat2.
- `path check (weakest)`: the real path is compared, then opened. For platforms without directory handles; another
  process that swaps folders for links can win against it.

Links inside the tree are followed, absolute links never (also those that point back inside: the kernel's rule). Errors
are plain OSErrors; a path that leads out is EXDEV in all three.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import platform
import stat
import struct
import sys
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from functools import cache
from typing import ClassVar, Literal

from windlass.workspaces.faults import fault

__all__ = ["CREATE", "READ", "Confine", "Folder", "Guard", "OpenAt2Tree", "PathTree", "Tree", "WalkTree", "open_tree"]

Confine = Literal["auto", "openat2", "walk", "path"]
#: Called with a real path before anything is made there; raises to refuse.
Guard = Callable[[str], None]

MAX_HOPS = 40  # Linux's own bound on links in one path (MAXSYMLINKS)
_BUSY_RETRIES = 64
_SYS_OPENAT2 = 437  # the same number on every architecture that got it after the numbering was unified
_MACHINES = frozenset({"x86_64", "aarch64", "arm64", "riscv64", "ppc64le", "s390x"})
_RESOLVE_NO_MAGICLINKS = 0x02
_RESOLVE_BENEATH = 0x08

_BINARY: int = getattr(os, "O_BINARY", 0)
NOFOLLOW: int = getattr(os, "O_NOFOLLOW", 0)
_DIRECTORY: int = getattr(os, "O_DIRECTORY", 0)
_CLOEXEC: int = getattr(os, "O_CLOEXEC", 0)
_PATH: int = getattr(os, "O_PATH", os.O_RDONLY)
#: To read: never wait for a pipe's writer, never become a terminal's owner.
READ: int = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0) | _BINARY
CREATE: int = os.O_WRONLY | os.O_CREAT | os.O_EXCL | NOFOLLOW | _BINARY


class Folder:
    """An open folder. Each name given to it is one component and is never followed when it is a link.

    `fd` is None where the platform has no directory handles; then `base` is its real path. `trail` is its path beneath
    the root where the walk knows it.
    """

    __slots__ = ("base", "fd", "trail")

    def __init__(self, fd: int | None, base: str = "", trail: str | None = None) -> None:
        self.fd, self.base, self.trail = fd, base, trail

    def __enter__(self) -> Folder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _at(self, name: str) -> str:
        return name if self.fd is not None else os.path.join(self.base, name)  # noqa: PTH118

    def open(self, name: str, flags: int, mode: int = 0o600) -> int:
        return os.open(self._at(name), flags | NOFOLLOW, mode, dir_fd=self.fd)

    def lstat(self, name: str) -> os.stat_result | None:
        """Return what is there, None when nothing is."""
        try:
            return os.stat(self._at(name), dir_fd=self.fd, follow_symlinks=False)
        except FileNotFoundError:
            return None

    def readlink(self, name: str) -> str | None:
        """Return where a link points, None when it is none or nothing."""
        return _readlink(self._at(name), self.fd)

    def writable(self, name: str) -> bool:
        """Say whether we may write to what is there: replacing it would also work on a read-only file."""
        if os.access in os.supports_effective_ids:
            return os.access(self._at(name), os.W_OK, dir_fd=self.fd, effective_ids=True)
        return os.access(self._at(name), os.W_OK, dir_fd=self.fd)

    def mkdir(self, name: str) -> None:
        os.mkdir(self._at(name), dir_fd=self.fd)

    def replace(self, old: str, new: str) -> None:
        os.replace(self._at(old), self._at(new), src_dir_fd=self.fd, dst_dir_fd=self.fd)

    def link(self, old: str, new: str) -> None:
        """Give a file a second name; fails when the name is taken, atomically."""
        os.link(self._at(old), self._at(new), src_dir_fd=self.fd, dst_dir_fd=self.fd)

    def unlink(self, name: str) -> None:
        os.unlink(self._at(name), dir_fd=self.fd)

    def rmdir(self, name: str) -> None:
        os.rmdir(self._at(name), dir_fd=self.fd)

    def names(self) -> Iterator[str]:
        """Give the names in it, unsorted, one by one."""
        with os.scandir(self.fd if self.fd is not None else self.base) as entries:
            for entry in entries:
                yield entry.name

    def sync(self) -> None:
        """Make names durable. Some network file systems have no such call for folders and answer EINVAL."""
        if self.fd is not None:
            try:
                os.fsync(self.fd)
            except OSError as error:
                if error.errno not in (errno.EINVAL, errno.ENOTSUP):
                    raise

    def close(self) -> None:
        if self.fd is not None:
            fd, self.fd = self.fd, -1
            os.close(fd)


class Tree(ABC):
    """A kept root folder. Paths are relative with forward slashes; `..` in them (from links) is physical.

    The root's handle is closed when the last user of the tree lets go of it, so that work still running on a thread
    never meets a handle that was closed and given to another file.
    """

    method: ClassVar[str]

    def __init__(self, root: str) -> None:
        self.root = root
        self.fd = os.open(root, _PATH | _DIRECTORY)
        weakref.finalize(self, os.close, self.fd)

    @abstractmethod
    def open(self, path: str, flags: int) -> int:
        """Open an existing file or folder, following links inside the tree."""

    @abstractmethod
    def where(self, folder: Folder, name: str) -> str:
        """Return the path of `name` beneath the root with every link resolved."""

    def _folder(self, path: str) -> Folder:
        return Folder(self.open(path, os.O_RDONLY | _DIRECTORY))

    def folder(self, path: str = ".", *, make: bool = False, guard: Guard | None = None) -> Folder:
        """Open a folder; with `make`, make what is missing on the way, each name asked of `guard` first."""
        try:
            return self._folder(path)
        except FileNotFoundError:
            if not make:
                raise
        here = self._folder(".")
        try:
            names = path.split("/")
            for count, name in enumerate(names, 1):
                prefix = "/".join(names[:count])
                try:
                    deeper = self._folder(prefix)
                except FileNotFoundError:
                    if guard is not None:
                        guard(self.where(here, name))
                    # Somebody may make it at the same time; a link that leads nowhere fails on the next line.
                    with contextlib.suppress(FileExistsError):
                        here.mkdir(name)
                    here.sync()
                    deeper = self._folder(prefix)
                here.close()
                here = deeper
        except BaseException:
            here.close()
            raise
        return here

    def place(
        self, path: str, *, follow: bool = True, make: bool = False, guard: Guard | None = None
    ) -> tuple[Folder, str]:
        """Return the open folder and the name that `path` stands for; the name is no link when `follow`.

        A link whose target is missing gives the place where the target would be. Raises EISDIR for the root itself.
        """
        for _ in range(MAX_HOPS + 1):
            head, _, name = path.rpartition("/")
            if name in ("", ".", ".."):
                raise fault(errno.EISDIR)
            folder = self.folder(head or ".", make=make, guard=guard)
            try:
                target = folder.readlink(name) if follow else None
            except BaseException:
                folder.close()
                raise
            if target is None:
                return folder, name
            folder.close()
            path = f"{head}/{_inside(target)}" if head else _inside(target)
        raise fault(errno.ELOOP)


class WalkTree(Tree):
    """Resolve name by name with directory handles: no link is followed by the system, we follow them ourselves."""

    method = "walk (weaker)"

    def open(self, path: str, flags: int) -> int:
        return self._walk(path, flags)[0]

    def where(self, folder: Folder, name: str) -> str:
        return f"{folder.trail}/{name}" if folder.trail else name

    def _folder(self, path: str) -> Folder:
        fd, trail = self._walk(path, os.O_RDONLY | _DIRECTORY)
        return Folder(fd, trail="/".join(trail))

    def _walk(self, path: str, flags: int) -> tuple[int, list[str]]:
        pending = _reversed_names(path)
        handles: list[int] = []  # the folders passed, without the root: `..` goes back to the handle we came from
        trail: list[str] = []
        hops = 0
        try:
            while pending:
                name = pending.pop()
                here = handles[-1] if handles else self.fd
                if name == "..":
                    if not handles:
                        raise fault(errno.EXDEV)
                    os.close(handles.pop())
                    trail.pop()
                elif (target := _readlink(name, here)) is not None:
                    hops += 1
                    if hops > MAX_HOPS:
                        raise fault(errno.ELOOP)
                    pending += _reversed_names(_inside(target))
                else:
                    trail.append(name)
                    if not pending:
                        return os.open(name, flags | NOFOLLOW, dir_fd=here), trail
                    handles.append(os.open(name, _PATH | _DIRECTORY | NOFOLLOW, dir_fd=here))
            return os.open(".", flags, dir_fd=handles[-1] if handles else self.fd), trail
        finally:
            for handle in handles:
                os.close(handle)


class OpenAt2Tree(Tree):
    """Let the kernel resolve the whole path, or refuse it, in one call."""

    method = "openat2"

    def open(self, path: str, flags: int) -> int:
        return _openat2(self.fd, path, flags | _CLOEXEC)

    def where(self, folder: Folder, name: str) -> str:
        root, here = (os.readlink(f"/proc/self/fd/{fd}") for fd in (self.fd, folder.fd))  # noqa: PTH115
        if here == root:
            return name
        top = root.rstrip("/") + "/"
        if not here.startswith(top):
            raise fault(errno.EXDEV)  # moved out of the tree while it was open
        return f"{here[len(top) :]}/{name}"


class PathTree(Tree):
    """Compare real paths, then open: for platforms that have no directory handles."""

    method = "path check (weakest)"

    def __init__(self, root: str) -> None:  # no handle to keep, so no call of the base's
        self.root = os.path.realpath(root)
        if not stat.S_ISDIR(os.stat(self.root).st_mode):  # noqa: PTH116
            raise fault(errno.ENOTDIR)

    def open(self, path: str, flags: int) -> int:
        return os.open(self._real(path), flags | NOFOLLOW)

    def where(self, folder: Folder, name: str) -> str:
        below = os.path.relpath(folder.base, self.root).replace(os.sep, "/")
        return name if below == "." else f"{below}/{name}"

    def _folder(self, path: str) -> Folder:
        real = self._real(path)
        if not stat.S_ISDIR(os.stat(real).st_mode):  # noqa: PTH116
            raise fault(errno.ENOTDIR)
        return Folder(None, real)

    def _real(self, path: str) -> str:
        try:
            # Strict, so that it ends at the first missing name; `filename` is how far it came.
            real = os.path.realpath(os.path.join(self.root, path), strict=True)  # noqa: PTH118
        except OSError as error:
            self._check(str(error.filename))
            raise
        self._check(real)
        return real

    def _check(self, real: str) -> None:
        if real != self.root and not real.startswith(self.root.rstrip(os.sep) + os.sep):
            raise fault(errno.EXDEV)


def open_tree(root: str, confine: Confine = "auto") -> Tree:
    """Open `root` for access beneath it, by the strongest way there is or by the one asked for.

    Raises OSError: ENOENT or ENOTDIR for the root, ENOSYS for a way that this platform lacks.
    """
    handles = os.open in os.supports_dir_fd and os.readlink in os.supports_dir_fd
    if confine == "openat2" or (confine == "auto" and _has_openat2()):
        if not _has_openat2():
            raise fault(errno.ENOSYS)
        return OpenAt2Tree(root)
    if confine == "walk" or (confine == "auto" and handles):
        if not handles:
            raise fault(errno.ENOSYS)
        return WalkTree(root)
    return PathTree(root)


@cache
def _has_openat2() -> bool:
    # A container's seccomp filter answers EPERM or ENOSYS; where() needs /proc, which a bare chroot lacks.
    if sys.platform != "linux" or platform.machine() not in _MACHINES or not os.path.isdir("/proc/self/fd"):  # noqa: PTH112
        return False
    try:
        root = os.open("/", _PATH | _DIRECTORY)
        try:
            os.close(_openat2(root, ".", _PATH | _DIRECTORY | _CLOEXEC))
        finally:
            os.close(root)
    except OSError:
        return False
    return True


@cache
def _syscall() -> Callable[..., int]:
    function = ctypes.CDLL(None, use_errno=True).syscall
    function.restype = ctypes.c_long
    function.argtypes = [ctypes.c_long, ctypes.c_int, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_size_t]
    return function


def _openat2(fd: int, path: str, flags: int) -> int:
    # struct open_how { __u64 flags, mode, resolve; }: mode stays 0, nothing is created by this call.
    how = struct.pack("=QQQ", flags, 0, _RESOLVE_BENEATH | _RESOLVE_NO_MAGICLINKS)
    for _ in range(_BUSY_RETRIES):
        opened = _syscall()(_SYS_OPENAT2, fd, os.fsencode(path), how, len(how))
        if opened >= 0:
            return opened
        code = ctypes.get_errno()
        # EAGAIN: something was renamed while `..` was resolved, and the kernel will not guess (openat2(2)).
        if code not in (errno.EAGAIN, errno.EINTR):
            raise OSError(code, os.strerror(code), path)
    raise fault(errno.EAGAIN)


def _readlink(name: str, fd: int | None) -> str | None:
    try:
        return os.readlink(name, dir_fd=fd)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno == errno.EINVAL:  # there, and no link
            return None
        raise


def _inside(target: str) -> str:
    if os.path.isabs(target):  # noqa: PTH117
        raise fault(errno.EXDEV)
    return target.replace(os.sep, "/").rstrip("/")


def _reversed_names(path: str) -> list[str]:
    return [name for name in reversed(path.split("/")) if name not in ("", ".")]
