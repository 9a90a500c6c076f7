"""A workspace that is a map of paths to contents: nothing touches the disk, and there is no shell."""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Callable, Mapping, Sequence

from windlass.core import clock
from windlass.core.errors import WorkspaceError
from windlass.core.ports import ExecResult, FileInfo
from windlass.workspaces import paths
from windlass.workspaces.faults import check_bounds, explain, fault

__all__ = ["MemoryWorkspace"]


class MemoryWorkspace:
    """Keep files in memory, under the same path rules as on disk.

    `files` maps paths to text or bytes; it is copied. `max_bytes` (default 64 MiB) bounds all contents and names
    together. The ledger of a session that works here keeps the files: a fresh one gets them back with the history.
    Raises WorkspaceError or PathEscape for a bad path, a path given twice, or too much.
    """

    def __init__(self, files: Mapping[str, str | bytes] | None = None, *, max_bytes: int = 64 * 1024 * 1024) -> None:
        self._max_bytes = max_bytes
        self._size = 0
        self._files: dict[str, tuple[bytes, int]] = {}  # path -> content, mtime
        self._folders: set[str] = {"."}
        self._closed = False
        for path, content in (files or {}).items():
            name = paths.clean(path)
            if name in self._files:
                raise explain(fault(errno.EEXIST), path)
            self._check_place(name, path)
            self._put(name, content.encode("utf-8", "surrogateescape") if isinstance(content, str) else content, path)
        self._before = {path: data for path, (data, _) in self._files.items()}

    @property
    def capabilities(self) -> frozenset[str]:
        """Files, and neither shell nor network."""
        return frozenset({"filesystem"})

    @property
    def root(self) -> str:
        """The name for people."""
        return "memory"

    @property
    def files(self) -> dict[str, str | bytes]:
        """All files as they are now, sorted by path: text where it is UTF-8, bytes where not."""
        return {path: _content(self._files[path][0]) for path in sorted(self._files)}

    @property
    def changed(self) -> dict[str, str | bytes]:
        """The files that are new or have another content than at the start."""
        return {
            path: _content(data) for path, (data, _) in sorted(self._files.items()) if self._before.get(path) != data
        }

    @property
    def deleted(self) -> list[str]:
        """The paths that were there at the start and are gone, sorted."""
        return sorted(self._before.keys() - self._files.keys())

    def snapshot(self) -> dict[str, bytes]:
        """Return all files as bytes."""
        return {path: data for path, (data, _) in self._files.items()}

    def restore(self, files: Mapping[str, bytes], start: Mapping[str, bytes]) -> None:
        """Replace all files: what a session's ledger brings back. `changed` and `deleted` compare with `start` then.

        Raises WorkspaceError when something else was done here already: then it is another conversation's.
        """
        now = self.snapshot()
        if now == dict(files):
            self._before = dict(start)
            return
        if now != self._before:
            raise WorkspaceError(
                "This virtual workspace holds another conversation's changes.",
                hint="Give each session its own: Session(…, workspace=MemoryWorkspace()).",
            )
        made = MemoryWorkspace(files, max_bytes=self._max_bytes)
        self._files, self._folders, self._size, self._before = made._files, made._folders, made._size, dict(start)

    def blank(self) -> MemoryWorkspace:
        """Return an empty one with the same bound."""
        return MemoryWorkspace(max_bytes=self._max_bytes)

    async def read(self, path: str, *, limit: int | None = None) -> bytes:
        """Return the content, or its first `limit` bytes."""
        check_bounds(path, limit=limit)
        name = self._clean(path)
        if name not in self._files:
            raise explain(fault(self._why_no_file(name)), path)
        return self._files[name][0][:limit]

    async def write(self, path: str, data: bytes, *, expected_sha256: str | None = None) -> None:
        """Replace or make a file; see the port for `expected_sha256`."""
        name = self._clean(path)
        self._check_place(name, path)
        there = self._files.get(name)
        if expected_sha256 == "" and there is not None:
            raise explain(fault(errno.EEXIST), path)
        if expected_sha256 and (there is None or hashlib.sha256(there[0]).hexdigest() != expected_sha256.lower()):
            raise explain(fault(errno.ESTALE), path)
        self._put(name, bytes(data), path)

    async def delete(self, path: str) -> None:
        """Remove a file or an empty folder."""
        name = self._clean(path)
        if name in self._files:
            self._size -= len(self._files.pop(name)[0]) + _weight(name)
        elif name == ".":
            raise explain(fault(errno.EBUSY), path)
        elif name in self._folders:
            if any(other.startswith(f"{name}/") for other in (*self._files, *self._folders)):
                raise explain(fault(errno.ENOTEMPTY), path)
            self._folders.remove(name)
            self._size -= _weight(name)
        else:
            raise explain(fault(self._why_no_file(name)), path)

    async def stat(self, path: str) -> FileInfo | None:
        """Describe a file or folder, None when there is none."""
        return self._info(self._clean(path))

    async def list(self, path: str = ".", *, depth: int = 1, limit: int = 10_000) -> list[FileInfo]:
        """List what a folder holds, sorted by name, shallow entries first to be kept when `limit` cuts."""
        check_bounds(path, depth=depth, limit=limit)
        name = self._clean(path)
        if name not in self._folders:
            raise explain(fault(errno.ENOTDIR if name in self._files else self._why_no_file(name)), path)
        top = "" if name == "." else f"{name}/"
        below = [other for other in (*self._files, *self._folders) if other != "." and other.startswith(top)]
        split = sorted((other.split("/") for other in below), key=lambda names: (len(names), names))
        deepest = depth + top.count("/")
        chosen = sorted([names for names in split if len(names) <= deepest][:limit])
        return [info for names in chosen if (info := self._info("/".join(names))) is not None]

    async def exec(
        self,
        command: str | Sequence[str],
        *,
        timeout: float | None = 30.0,
        max_output: int = 8192,
        env: Mapping[str, str] | None = None,
        on_output: Callable[[bytes], None] | None = None,
    ) -> ExecResult:
        """Raise WorkspaceError: there is no shell here."""
        del command, timeout, max_output, env, on_output
        raise WorkspaceError("A virtual file system has no shell.", hint="Use the file tools, or a local workspace.")

    async def close(self) -> None:
        """End the use of it; `files`, `changed` and `deleted` stay readable."""
        self._closed = True

    def _clean(self, path: str) -> str:
        if self._closed:
            raise WorkspaceError("The workspace is closed.", path=path, hint="Open a new one.")
        return paths.clean(path)

    def _check_place(self, name: str, path: str) -> None:
        if name in self._folders:
            raise explain(fault(errno.EISDIR), path)
        if any(parent in self._files for parent in _parents(name)):
            raise explain(fault(errno.ENOTDIR), path)

    def _put(self, name: str, data: bytes, path: str) -> None:
        missing = [parent for parent in _parents(name) if parent not in self._folders]
        there = self._files.get(name)
        grows = len(data) - len(there[0]) if there is not None else len(data) + _weight(name)
        grows += sum(_weight(parent) for parent in missing)
        if grows > 0 and self._size + grows > self._max_bytes:
            raise explain(fault(errno.ENOSPC), path, detail=f" ({self._max_bytes} bytes of memory in all)")
        self._size += grows
        self._folders.update(missing)
        self._files[name] = (data, clock.now_ns())

    def _info(self, name: str) -> FileInfo | None:
        if (found := self._files.get(name)) is not None:
            return FileInfo(name, "file", len(found[0]), found[1])
        return FileInfo(name, "dir") if name in self._folders else None

    def _why_no_file(self, name: str) -> int:
        if name in self._folders:
            return errno.EISDIR
        return errno.ENOTDIR if any(parent in self._files for parent in _parents(name)) else errno.ENOENT


def _parents(name: str) -> list[str]:
    return [name[:index] for index, char in enumerate(name) if char == "/"]


def _weight(name: str) -> int:
    # Names count too, else a million empty files would weigh nothing; 100 is about what the entry itself costs.
    return len(name) + 100


def _content(data: bytes) -> str | bytes:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data
