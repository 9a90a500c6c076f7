"""A workspace that is a folder on this machine's disk."""

from __future__ import annotations

import errno
import heapq
import os
import stat
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence

from windlass.core.errors import WorkspaceError
from windlass.core.ports import ExecResult, FileInfo
from windlass.workspaces import atomic, paths
from windlass.workspaces.beneath import READ, Confine, Folder, Guard, Tree, open_tree
from windlass.workspaces.faults import check_bounds, explain, fault
from windlass.workspaces.process import run_command
from windlass.workspaces.threads import Stop, in_thread

__all__ = ["LocalWorkspace"]

#: A file up to this size is read on the event loop: from the page cache that takes less time (under 0.1 ms) than the
#: way to a thread and back. Longer reads, whatever changes the disk (it waits for it) and listings go to a thread.
_DIRECT_BYTES = 256 * 1024
_CHUNK = 1 << 20
#: A folder below the listed one that cannot be looked into stays in the list, without its content.
_UNSEEN = frozenset(
    {errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.ELOOP, errno.EXDEV, errno.ENAMETOOLONG}
)


class LocalWorkspace:
    """Act on the folder `root` and on nothing outside it.

    Every access is resolved beneath a handle of the root that is kept open; `confinement` says how strongly
    (`openat2`, `walk (weaker)`, `path check (weakest)`), `confine` asks for a certain way. Links inside the tree are
    followed, those that lead out raise PathEscape. Paths may be absolute when they lie under the root.

    `max_file_bytes` (default 64 MiB) bounds what is read at once or written. `protect` is asked with the real path
    before anything is changed; a reason given back refuses the change: `paths.is_protected` is made for it.
    Commands run unconfined, with the root as their working folder.

    Raises WorkspaceError when the root is missing or no folder, or this platform lacks the way asked for.
    """

    def __init__(
        self,
        root: str | os.PathLike[str] = ".",
        *,
        max_file_bytes: int = 64 * 1024 * 1024,
        protect: Callable[[str], str | None] | None = None,
        confine: Confine = "auto",
    ) -> None:
        self._root = os.path.abspath(os.fspath(root))  # noqa: PTH100  # resolve() would follow links in the name given
        try:
            self._tree: Tree | None = open_tree(self._root, confine)
        except OSError as error:
            raise explain(error, self._root) from error
        self._confinement = self._tree.method
        self._roots = (self._root, os.path.realpath(self._root))
        self._max_file_bytes = max_file_bytes
        self._protect = protect
        # Two tools may write one file at once: the comparison and the rename of each must not interleave.
        self._publishing = threading.Lock()

    @property
    def capabilities(self) -> frozenset[str]:
        """All: what runs here runs with the user's own rights."""
        return frozenset({"shell", "filesystem", "network"})

    @property
    def root(self) -> str:
        """The folder's absolute path."""
        return self._root

    @property
    def confinement(self) -> str:
        """How file access is held beneath the root."""
        return self._confinement

    async def read(self, path: str, *, limit: int | None = None) -> bytes:
        """Return the content, or its first `limit` bytes.

        Only regular files are read: a pipe, socket or device is refused without waiting for it. Raises WorkspaceError
        for a file over `max_file_bytes` unless `limit` keeps below that.
        """
        check_bounds(path, limit=limit)
        tree, name = self._start(path)
        bound = self._max_file_bytes
        # One byte past the bound is asked for, to see a file that grew since fstat.
        most = bound + 1 if limit is None else min(limit, bound + 1)
        try:
            fd = tree.open(name, READ)
            size = _regular_size(fd)
            if min(size, most) <= _DIRECT_BYTES:
                return _read(fd, most, bound)
            return await in_thread(lambda: _read(fd, most, bound))
        except OSError as error:
            raise self._explain(error, path) from error

    async def write(self, path: str, data: bytes, *, expected_sha256: str | None = None) -> None:
        """Replace or make a file atomically and durably; see the port for `expected_sha256`.

        A link inside the tree is followed: its target is replaced and the link stays. A file without write permission
        is refused. When cancelled, the write is given up or finished before CancelledError goes on (2 s at most).
        """
        tree, name = self._start(path)
        if len(data) > self._max_file_bytes:
            raise self._explain(fault(errno.EFBIG), path)
        stop = Stop()
        guard = self._guard(path)

        def work() -> None:
            # Where a certain file is expected, its folder must be there: a refused write makes nothing.
            try:
                folder, last = tree.place(name, make=not expected_sha256, guard=guard)
            except FileNotFoundError:
                raise fault(errno.ESTALE if expected_sha256 else errno.ENOENT) from None
            with folder:
                guard(tree.where(folder, last))
                atomic.replace(
                    folder, last, data, path=path, expected=expected_sha256, stop=stop, lock=self._publishing
                )

        try:
            await in_thread(work, stop=stop)
        except OSError as error:
            raise self._explain(error, path) from error

    async def delete(self, path: str) -> None:
        """Remove a file, a link (not what it points to) or an empty folder."""
        tree, name = self._start(path)
        if name == ".":
            raise explain(fault(errno.EBUSY), path)
        guard = self._guard(path)

        def work() -> None:
            folder, last = tree.place(name, follow=False)
            with folder:
                guard(tree.where(folder, last))
                found = folder.lstat(last)
                if found is not None and stat.S_ISDIR(found.st_mode):
                    folder.rmdir(last)
                else:
                    folder.unlink(last)

        try:
            await in_thread(work)
        except OSError as error:
            raise explain(error, path) from error

    async def stat(self, path: str) -> FileInfo | None:
        """Describe what the path leads to (links inside the tree followed), None when there is nothing."""
        tree, name = self._start(path)
        try:
            return _stat(tree, name)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise explain(error, path) from error

    async def list(self, path: str = ".", *, depth: int = 1, limit: int = 10_000) -> list[FileInfo]:
        """List what a folder holds, sorted by name; links are listed, not followed, so there are no circles.

        When `limit` cuts, shallow entries are kept before deep ones. A folder that may not be read is listed without
        its content.
        """
        check_bounds(path, depth=depth, limit=limit)
        tree, name = self._start(path)
        try:
            return await in_thread(lambda: _list(tree, name, depth, limit))
        except OSError as error:
            raise explain(error, path) from error

    async def real_path(self, path: str) -> str:
        """Return the path beneath the root that `path` leads to with every link resolved; it need not exist yet.

        For permission rules: `docs/x` may be `.git/hooks/x` by a link.
        """
        tree, name = self._start(path)
        try:
            return _real(tree, name)
        except OSError as error:
            raise explain(error, path) from error

    async def exec(
        self,
        command: str | Sequence[str],
        *,
        timeout: float | None = 30.0,
        max_output: int = 8192,
        env: Mapping[str, str] | None = None,
        on_output: Callable[[bytes], None] | None = None,
    ) -> ExecResult:
        """Run a command in the root; a list of words runs without a shell."""
        self._start(".")
        return await run_command(
            command, cwd=self._root, timeout=timeout, max_output=max_output, env=env, on_output=on_output
        )

    async def close(self) -> None:
        """Let go of the root; work that still runs on a thread ends first. Closing twice is fine."""
        self._tree = None

    def _start(self, path: str) -> tuple[Tree, str]:
        if self._tree is None:
            raise WorkspaceError("The workspace is closed.", path=path, hint="Open a new one.")
        return self._tree, paths.clean(path, roots=self._roots, windows=os.name == "nt")

    def _guard(self, path: str) -> Guard:
        def refuse(real: str) -> None:
            if self._protect is not None and (reason := self._protect(real)):
                raise WorkspaceError(
                    f"{paths.shown(real)} is protected: {reason}.", path=path, hint="Ask the user to change it."
                )

        return refuse

    def _explain(self, error: OSError, path: str) -> WorkspaceError:
        detail = f" (the bound is {self._max_file_bytes} bytes)" if error.errno == errno.EFBIG else ""
        return explain(error, path, detail=detail)


def _regular_size(fd: int) -> int:
    """Return the size of an open regular file; closes anything else, raising EISDIR or ENXIO."""
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise fault(errno.EISDIR if stat.S_ISDIR(found.st_mode) else errno.ENXIO)
    except OSError:
        os.close(fd)
        raise
    return found.st_size


def _read(fd: int, most: int, bound: int) -> bytes:
    """Read up to `most` bytes and close the file; EFBIG when that passes `bound`."""
    try:
        if most > bound and os.fstat(fd).st_size > bound:
            raise fault(errno.EFBIG)
        chunks: list[bytes] = []
        size = 0
        while size < most and (chunk := os.read(fd, min(_CHUNK, most - size))):
            chunks.append(chunk)
            size += len(chunk)
        if size > bound:
            raise fault(errno.EFBIG)
        return b"".join(chunks)
    finally:
        os.close(fd)


def _list(tree: Tree, top: str, depth: int, limit: int) -> list[FileInfo]:
    with tree.folder(top) as folder:
        found = _entries(folder, top, limit if depth else 0)
    # Level by level, so that what `limit` cuts off is the deepest.
    waiting = deque((entry.path, 2) for entry in found if entry.kind == "dir")
    while waiting and len(found) < limit:
        path, distance = waiting.popleft()
        if distance > depth:
            break
        try:
            with tree.folder(path) as folder:
                entries = _entries(folder, path, limit - len(found))
        except OSError as error:
            if error.errno not in _UNSEEN:
                raise
            continue
        found += entries
        waiting += ((entry.path, distance + 1) for entry in entries if entry.kind == "dir")
    return sorted(found, key=lambda entry: entry.path.split("/"))


def _entries(folder: Folder, path: str, room: int) -> list[FileInfo]:
    top = "" if path == "." else f"{path}/"
    # nsmallest holds `room` names at a time, so a folder with millions of files costs time but no memory.
    found = ((name, folder.lstat(name)) for name in heapq.nsmallest(room, folder.names()))
    return [_info(top + name, entry) for name, entry in found if entry is not None]


def _info(path: str, found: os.stat_result) -> FileInfo:
    if stat.S_ISREG(found.st_mode):
        return FileInfo(path, "file", found.st_size, found.st_mtime_ns)
    if stat.S_ISDIR(found.st_mode):
        return FileInfo(path, "dir", 0, found.st_mtime_ns)
    return FileInfo(path, "symlink" if stat.S_ISLNK(found.st_mode) else "other", 0, found.st_mtime_ns)


def _stat(tree: Tree, path: str) -> FileInfo | None:
    try:
        folder, last = tree.place(path)
    except IsADirectoryError:  # the root, or a link to `..`
        folder, last = tree.folder(path), "."
    with folder:
        found = folder.lstat(last)
        return None if found is None else _info(path, found)


def _real(tree: Tree, path: str) -> str:
    missing: list[str] = []
    real = "."
    while path != ".":
        try:
            folder, last = tree.place(path)
        except FileNotFoundError:  # then what is above it decides
            above, _, last = path.rpartition("/")
            missing.append(last)
            path = above or "."
            continue
        except IsADirectoryError:
            folder, last = tree.folder(path), "."
        with folder:
            real = tree.where(folder, last).removesuffix("/.")
        break
    names = [real, *reversed(missing)]
    return "/".join(names[1:] if missing and real == "." else names)
