"""A workspace in a sandbox that somebody else runs: a service of that kind, or a server of ours."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import logging
import posixpath
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import Any, TypeVar
from urllib.parse import parse_qsl, urlsplit

from msgspec.structs import replace

from windlass.core import clock
from windlass.core.errors import ConfigError, TransportError, WorkspaceError
from windlass.core.ports import ExecResult, FileInfo
from windlass.core.text import HeadTail
from windlass.workspaces import paths, remote_shell
from windlass.workspaces.environ import clean_env
from windlass.workspaces.faults import check_bounds, explain, fault
from windlass.workspaces.remote_http import HttpSandbox
from windlass.workspaces.remote_provider import SandboxProvider, SpawnOptions, takes

__all__ = ["HttpSandbox", "RemoteWorkspace", "SandboxProvider", "SpawnOptions", "connect"]

_T = TypeVar("_T")
_log = logging.getLogger(__name__)
_ALL = frozenset({"shell", "filesystem", "network"})
#: Seconds beyond a command's own in which the service may end it and answer.
_GRACE = 30.0
#: Seconds that a write which was begun may still take when its caller is cancelled.
_SETTLE = 5.0
#: Folders that one listing looks into, where the provider lists one at a time.
_MOST_FOLDERS = 2000
_NUMBERS = (
    (FileNotFoundError, errno.ENOENT),
    (IsADirectoryError, errno.EISDIR),
    (NotADirectoryError, errno.ENOTDIR),
    (FileExistsError, errno.EEXIST),
    (PermissionError, errno.EACCES),
)


class RemoteWorkspace:
    """Act in a sandbox of `provider`, which is spawned at first use with `options` and destroyed by `close`.

    Paths follow the rules of every workspace before anything is asked. A provider whose `write_file` takes
    `expected_sha256` is asked to compare and write in one step. Where it does not, but runs commands, the content goes
    to a free name beside the file, which a command there then compares and renames: readers see the old file or the
    new one, but what another process writes between the comparison and the rename is lost. Without a shell the file is
    read, compared and written in place. A link may lead anywhere in the sandbox: the sandbox is the boundary.

    `timeout` (seconds) bounds what is asked about files, `spawn_timeout` the spawning, `max_file_bytes` a file. `close`
    destroys also when it is cancelled, and waits for a spawning that is under way; nothing destroys for a program that
    is killed or forgets to close: what `idle_seconds` of the options is for. Raises WorkspaceError for what the service
    refuses, for one that does not answer and after `close`.
    """

    def __init__(
        self,
        provider: SandboxProvider,
        options: SpawnOptions | None = None,
        *,
        timeout: float = 60.0,
        spawn_timeout: float = 300.0,
        max_file_bytes: int = 64 * 1024 * 1024,
    ) -> None:
        self._provider, self._options = provider, options or SpawnOptions()
        self._timeout, self._spawn_timeout, self._max_file_bytes = timeout, spawn_timeout, max_file_bytes
        self._handle: Any = None
        self._there = False
        self._starting: asyncio.Task[None] | None = None
        self._ending: asyncio.Task[None] | None = None
        self._closed = False

    def __repr__(self) -> str:
        return f"RemoteWorkspace({self._provider.name!r})"

    @property
    def capabilities(self) -> frozenset[str]:
        """What the sandbox says once it is there, before that what its provider says, else all."""
        told = getattr(self._handle, "capabilities", None) or getattr(self._provider, "capabilities", None)
        return _ALL if told is None else frozenset(told)

    @property
    def root(self) -> str:
        """The provider's name, for people."""
        return f"remote:{self._provider.name}"

    @property
    def confinement(self) -> str:
        """How commands are held, as far as the sandbox says so."""
        return str(getattr(self._handle, "confinement", "") or f"remote ({self._provider.name})")

    async def read(self, path: str, *, limit: int | None = None) -> bytes:
        """Return the content, or its first `limit` bytes; WorkspaceError over `max_file_bytes`."""
        check_bounds(path, limit=limit)
        name, bound = self._clean(path), self._max_file_bytes
        handle = await self._ready()
        most = bound + 1 if limit is None else min(limit, bound + 1)
        read = self._provider.read_file
        asked: Any = {"limit": most} if takes(read, "limit") else {}
        data = await self._ask(path, name, read(handle, name, **asked))
        if limit is None and len(data) > bound:
            raise explain(fault(errno.EFBIG), path, detail=f" (the bound is {bound} bytes)")
        return data[:most]

    async def write(self, path: str, data: bytes, *, expected_sha256: str | None = None) -> None:
        """Replace or make a file, as atomically as the provider can; see the class, and the port.

        When cancelled, the write is finished or given up before CancelledError goes on (5 s at most).
        """
        name = self._clean(path)
        if name == ".":
            raise explain(fault(errno.EISDIR), path)
        if len(data) > self._max_file_bytes:
            raise explain(fault(errno.EFBIG), path, detail=f" (the bound is {self._max_file_bytes} bytes)")
        handle = await self._ready()
        expected = expected_sha256.lower() if expected_sha256 else expected_sha256
        work = self._write(handle, name, bytes(data), expected)
        await _settled(self._ask(path, name, work), _SETTLE)

    async def delete(self, path: str) -> None:
        """Remove a file, a link (not what it points to) or an empty folder."""
        name = self._clean(path)
        if name == ".":
            raise explain(fault(errno.EBUSY), path)
        handle = await self._ready()
        delete = getattr(self._provider, "delete_file", None)
        work = self._script(handle, remote_shell.DELETE, f"./{name}") if delete is None else delete(handle, name)
        await self._ask(path, name, work)

    async def stat(self, path: str) -> FileInfo | None:
        """Describe a file or folder, None when there is none."""
        name = self._clean(path)
        return await self._ask(path, name, self._look(await self._ready(), name))

    async def list(self, path: str = ".", *, depth: int = 1, limit: int = 10_000) -> list[FileInfo]:
        """List what a folder holds, sorted by name; when `limit` cuts, shallow entries are kept before deep ones."""
        check_bounds(path, depth=depth, limit=limit)
        name = self._clean(path)
        work = self._list(await self._ready(), name, depth, limit)
        found = sorted(await self._ask(path, name, work), key=lambda info: (info.path.count("/"), info.path.split("/")))
        return sorted(found[:limit], key=lambda info: info.path.split("/"))

    async def exec(
        self,
        command: str | Sequence[str],
        *,
        timeout: float | None = 30.0,
        max_output: int = 8192,
        env: Mapping[str, str] | None = None,
        on_output: Callable[[bytes], None] | None = None,
    ) -> ExecResult:
        """Run a command in the sandbox's working folder; `on_output` sees output live where the provider tells it.

        `spool` is None: what is cut is kept nowhere. Raises WorkspaceError when the service is lost meanwhile; what
        became of the command is not known then.
        """
        if max_output < 0 or (timeout is not None and not timeout >= 0):
            raise WorkspaceError(f"timeout={timeout}, max_output={max_output}: none may be negative.")
        given = {name: value for name, value in clean_env({}, env).items() if name in (env or {})}
        self._clean(".")
        handle = await self._ready()
        if "shell" not in self.capabilities:
            raise WorkspaceError("This sandbox runs no commands.", hint="Use the file tools, or another workspace.")
        window, show = HeadTail(max_output), _Show(on_output)
        asked: dict[str, Any] = {"timeout": timeout, "env": given}
        live = takes(self._provider.exec, "on_output")
        if live:

            def heard(data: bytes) -> None:
                window.feed(data)
                show(data)

            asked["on_output"] = heard
        if takes(self._provider.exec, "max_output"):
            asked["max_output"] = max_output
        try:
            async with clock.deadline(None if timeout is None else timeout + _GRACE):
                result = await self._told(self._provider.exec(handle, command, **asked))
        except TimeoutError:
            return ExecResult(None, window.result(), window.total, "timeout")
        if not live:
            show(result.output)
        cut = HeadTail(max_output)
        cut.feed(result.output)
        return replace(result, output=cut.result(), total_bytes=max(result.total_bytes, cut.total), spool=None)

    async def close(self) -> None:
        """Destroy the sandbox. A cancellation meanwhile is raised when that is done. Closing twice is fine."""
        self._closed = True
        if self._ending is None:
            self._ending = asyncio.create_task(self._take_away())
        await _settled(self._ending)

    # --- the sandbox

    def _clean(self, path: str) -> str:
        if self._closed:
            raise WorkspaceError("The workspace is closed.", path=path, hint="Open a new one.")
        return paths.clean(path)

    async def _ready(self) -> Any:
        """Return the sandbox, spawned once, however many wait for it; one of them leaving does not stop that."""
        if not self._there:
            if self._starting is None or self._starting.done():
                self._starting = asyncio.create_task(self._start())
                self._starting.add_done_callback(_seen)
            await asyncio.wait([self._starting])
            self._starting.result()
        if self._closed:
            raise WorkspaceError("The workspace is closed.", hint="Open a new one.")
        return self._handle

    async def _start(self) -> None:
        try:
            async with clock.deadline(self._spawn_timeout):
                self._handle = await self._told(self._provider.spawn(self._options))
        except TimeoutError:
            text = f"{self._provider.name} spawned no sandbox within {self._spawn_timeout:g} s."
            raise WorkspaceError(
                text, hint="Try again later; what it may have begun is its own to take away."
            ) from None
        self._there = True

    async def _take_away(self) -> None:
        if self._starting is not None and not self._starting.done():
            await asyncio.wait([self._starting])
        if not self._there:
            return
        self._there = False
        try:
            async with clock.deadline(self._timeout):
                await self._told(self._provider.destroy(self._handle))
        except TimeoutError:
            text = f"{self._provider.name} did not destroy the sandbox within {self._timeout:g} s."
            raise WorkspaceError(text, hint="It may still be there until the service takes it away.") from None

    # --- what is asked of the provider

    async def _told(self, work: Awaitable[_T]) -> _T:
        try:
            return await work
        except TransportError as error:
            text = f"{self._provider.name} did not answer: {error.message}"
            raise WorkspaceError(text, hint="Is the service there? What was under way may be done or not.") from error

    async def _ask(self, path: str, name: str, work: Awaitable[_T]) -> _T:
        """Await `work` on a file, in its time; say what went wrong in the words of every workspace."""
        try:
            async with clock.deadline(self._timeout):
                return await self._told(work)
        except TimeoutError:
            text = f"{self._provider.name} took over {self._timeout:g} s for {paths.shown(path)}."
            raise WorkspaceError(text, path=path, hint="What was asked may be done or not.") from None
        except OSError as error:
            number = error.errno or next((number for kind, number in _NUMBERS if isinstance(error, kind)), 0)
            if number != errno.ENOENT:
                raise explain(fault(number) if number else error, path) from error
        raise explain(fault(await self._ask(path, name, self._why(self._handle, name))), path)

    async def _why(self, handle: Any, name: str) -> int:
        """Return what a missing path means: nothing there, a folder, or a file where a folder is needed."""
        names = name.split("/")
        for count in range(1, len(names)):
            above = await self._look(handle, "/".join(names[:count]))
            if above is None:
                return errno.ENOENT
            if above.kind not in ("dir", "symlink"):
                return errno.ENOTDIR
        info = await self._look(handle, name)
        return errno.EISDIR if info is not None and info.kind == "dir" else errno.ENOENT

    async def _look(self, handle: Any, name: str) -> FileInfo | None:
        stat = getattr(self._provider, "stat_file", None)
        try:
            if stat is not None:
                return await stat(handle, name)
            if name == ".":
                return FileInfo(".", "dir")
            entries = await self._provider.list_files(handle, posixpath.dirname(name) or ".")
        except (FileNotFoundError, NotADirectoryError):
            return None
        return next((info for info in entries if info.path == name), None)

    async def _list(self, handle: Any, name: str, depth: int, limit: int) -> list[FileInfo]:
        list_files: Any = self._provider.list_files
        if takes(list_files, "depth", "limit"):
            return list(await list_files(handle, name, depth=depth, limit=limit))
        first = await self._first(handle, name)
        found: list[FileInfo] = []
        level, asked = first if depth else [], 1
        for left in range(depth - 1, -1, -1):
            found += level
            folders = [info.path for info in level if info.kind == "dir"][: _MOST_FOLDERS - asked]
            if not left or not folders or len(found) >= limit:
                break
            asked += len(folders)
            level = [info for folder in folders for info in await self._below(handle, folder)]
        return found

    async def _first(self, handle: Any, name: str) -> list[FileInfo]:
        """List the folder that was asked for; where it gives nothing, see whether it is one."""
        missing: FileNotFoundError | None = None
        try:
            if found := list(await self._provider.list_files(handle, name)):
                return found
        except FileNotFoundError as error:
            missing = error
        info = await self._look(handle, name)
        if info is not None and info.kind not in ("dir", "symlink"):
            raise fault(errno.ENOTDIR)
        if info is None or missing is not None:
            raise fault(errno.ENOENT) from missing
        return []

    async def _below(self, handle: Any, folder: str) -> Sequence[FileInfo]:
        try:
            return await self._provider.list_files(handle, folder)
        except OSError:
            return ()  # gone meanwhile, or closed to us: it stays in the list, without its content

    async def _write(self, handle: Any, name: str, data: bytes, expected: str | None) -> None:
        write: Any = self._provider.write_file
        if takes(write, "expected_sha256"):
            await write(handle, name, data, expected_sha256=expected)
            return
        there = await self._look(handle, name)
        if there is not None and there.kind == "dir":
            raise fault(errno.EISDIR)
        if expected and there is None:
            raise fault(errno.ESTALE)
        if "shell" in self.capabilities:
            folder, base = posixpath.split(f"./{name}")
            free = [f"{folder}/.windlass-{clock.new_id()}" for _ in range(2)]
            await self._put(handle, paths.clean(free[0]), data)
            want = "-any" if expected is None else expected or "-none"
            await self._script(handle, remote_shell.REPLACE, free[0], f"{folder}/{base}", want, free[1])
            return
        if expected is not None and there is not None:
            now = await self._provider.read_file(handle, name) if expected else b""
            if not expected or hashlib.sha256(now).hexdigest() != expected:
                raise fault(errno.ESTALE if expected else errno.EEXIST)
        await self._put(handle, name, data)

    async def _put(self, handle: Any, name: str, data: bytes) -> None:
        try:
            await self._provider.write_file(handle, name, data)
        except FileExistsError as error:
            raise fault(errno.ENOENT) from error  # a file where a folder should be made: it is looked up

    async def _script(self, handle: Any, script: str, *arguments: str) -> None:
        if "shell" not in self.capabilities:
            raise WorkspaceError("This service of sandboxes deletes no files.", hint="Give its provider delete_file.")
        words = remote_shell.words(script, *arguments)
        result = await self._provider.exec(handle, words, timeout=self._timeout, env={})
        if number := remote_shell.fault_of(result):
            said = result.output.decode("utf-8", "replace").strip()
            raise fault(number) if number != errno.EIO else OSError(number, said[-300:] or "the command did not run")


class _Show:
    """Hand output on; the first exception of `callback` is logged and ends the showing, never the command."""

    def __init__(self, callback: Callable[[bytes], None] | None) -> None:
        self._callback = callback

    def __call__(self, data: bytes) -> None:
        if self._callback is None or not data:
            return
        try:
            self._callback(data)
        except Exception:
            _log.exception("on_output %r failed; the command goes on unseen", self._callback)
            self._callback = None


async def _settled(work: Coroutine[Any, Any, None] | asyncio.Task[None], seconds: float | None = None) -> None:
    """Wait for work to end, when cancelled `seconds` more at most (None: as long as it takes), then go on with that."""
    task = work if isinstance(work, asyncio.Task) else asyncio.create_task(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task], timeout=None if cancelled is None else seconds)
            if cancelled is not None and not task.done():
                task.cancel()
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        _seen(task)
        raise cancelled
    task.result()


def _seen(task: asyncio.Task[None]) -> None:
    if not task.cancelled():
        task.exception()  # retrieved: whoever waited for it may have left


def connect(url: str = "") -> RemoteWorkspace:
    """Return a workspace on the server at `url`: what `remote:https://host:port` stands for; `?kind=memory` goes too.

    The key comes from WINDLASS_WORKSPACE_KEY. Raises ConfigError.
    """
    parts = urlsplit(url)
    asked = dict(parse_qsl(parts.query))
    if asked.keys() - {"kind"}:
        raise ConfigError("Only kind= may stand behind the ? of a remote workspace.", hint="Keys are never in it.")
    base = parts._replace(query="").geturl()
    return RemoteWorkspace(HttpSandbox(base, kind=asked.get("kind", "sandbox")))
