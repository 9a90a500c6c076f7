"""The workspaces that this server holds for its clients: whose they are, how many, and when they end."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import stat
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from msgspec.structs import replace

from windlass.accounts.keys import Identity
from windlass.core import clock
from windlass.core.errors import ConfigError, RequestRefused, WorkspaceError
from windlass.core.ports import Workspace
from windlass.core.threads import run_in_thread
from windlass.server.http import Call
from windlass.server.workspace_settings import WorkspaceSettings
from windlass.workspaces.local import LocalWorkspace
from windlass.workspaces.memory import MemoryWorkspace
from windlass.workspaces.sandbox import SandboxWorkspace, default_limits, sandbox_level
from windlass.workspaces.sandbox_view import is_below, readable_places

__all__ = ["Held", "Kind", "Pool", "unknown"]

log = logging.getLogger("windlass.server")
Kind = Literal["sandbox", "memory", "local"]
_MB, _LEAST = 1 << 20, 1 << 30
#: Seconds that calls to a workspace have to end when it does.
_LEAVE = 10.0


def unknown(name: str) -> RequestRefused:
    """Return the refusal of a workspace that is not there, or is another's."""
    return RequestRefused(404, f"There is no workspace {name[:100]!r}.", reason="workspace_not_found")


def _gone() -> RequestRefused:
    return RequestRefused(404, "The workspace was deleted meanwhile.", reason="workspace_not_found")


class Held:
    """One workspace: `owner` is the tenant and the key it belongs to; it ends when unused for `idle` seconds."""

    def __init__(self, kind: Kind, owner: tuple[str, str], space: Workspace, folder: str, idle: float) -> None:
        self.id = f"ws_{clock.new_id()}"
        self.kind, self.owner, self.space, self.folder, self.idle = kind, owner, space, folder, idle
        #: What is being answered about it, and how many commands run in it.
        self.calls: set[Call] = set()
        self.commands = 0
        self.left = asyncio.Event()
        self.timer: asyncio.TimerHandle | None = None
        self.ending: asyncio.Task[None] | None = None


class Pool:
    """All workspaces of one server. `settings` may change between two calls; what is there stays."""

    def __init__(self) -> None:
        self.held: dict[str, Held] = {}
        self._making: list[tuple[str, str]] = []
        self._tasks: set[asyncio.Task[Any]] = set()
        self._closed = False

    async def make(
        self, settings: WorkspaceSettings, identity: Identity, kind: Kind, memory_mb: int | None, idle: float | None
    ) -> Held:
        """Make a workspace of a kind that is allowed. Raises RequestRefused 403, 429 or 503.

        When cancelled, what was begun is finished and deleted behind the caller's back.
        """
        if kind == "local" and not identity.key_id:
            raise RequestRefused(403, "A workspace without a sandbox needs a key.", kind="permission_error",
                                 reason="key_needed")  # fmt: skip
        owner = (identity.tenant, identity.key_id)
        owners = [*self._making, *[held.owner for held in self.held.values()]]
        if owners.count(owner) >= settings.per_key or len(owners) >= settings.total or self._closed:
            raise RequestRefused(429, "There are too many workspaces.", reason="too_many_workspaces", retry_after=60.0)
        self._making.append(owner)
        making = self._task(self._make(settings, kind, owner, memory_mb, idle))
        try:
            return await asyncio.shield(making)
        except asyncio.CancelledError:
            making.add_done_callback(self._unwanted)
            raise

    async def _make(
        self, settings: WorkspaceSettings, kind: Kind, owner: tuple[str, str], memory_mb: int | None, idle: float | None
    ) -> Held:
        try:
            idle = min(idle or settings.idle_seconds, settings.idle_seconds)
            space, folder = await run_in_thread(_open, settings, kind, memory_mb)
            held = Held(kind, owner, space, folder, idle)
            self.held[held.id] = held
            self._rest(held)
            return held
        except (WorkspaceError, OSError) as error:
            log.error("no workspace of kind %s can be made: %s", kind, error)
            raise RequestRefused(503, "No workspace can be made; the log tells more.", kind="server_error",
                                 reason="workspace_unavailable") from error  # fmt: skip
        finally:
            self._making.remove(owner)

    def _unwanted(self, making: asyncio.Task[Held]) -> None:
        if not making.cancelled() and making.exception() is None:
            self._task(self.drop(making.result()))

    def find(self, identity: Identity, name: str) -> Held:
        """Return a workspace of this key. Raises RequestRefused 404, for another's too."""
        held = self.held.get(name)
        if held is None or held.owner != (identity.tenant, identity.key_id):
            raise unknown(name)
        return held

    @contextmanager
    def using(self, held: Held, call: Call) -> Generator[Workspace]:
        """Keep a workspace from ending while a call is about it; when it is deleted all the same, the call ends."""
        held.calls.add(call)
        if held.timer is not None:
            held.timer.cancel()
        try:
            yield held.space
        finally:
            held.calls.discard(call)
            if held.ending is None:
                self._rest(held)
            elif not held.calls:
                held.left.set()

    def _rest(self, held: Held) -> None:
        """Start the clock of a workspace that nobody uses now."""
        if held.timer is not None:
            held.timer.cancel()
        if not held.calls:
            held.timer = asyncio.get_running_loop().call_later(held.idle, self._expire, held)

    def _expire(self, held: Held) -> None:
        log.info("workspace %s lay unused for %g s and is deleted", held.id, held.idle)
        self._task(self.drop(held))

    async def drop(self, held: Held) -> None:
        """End what runs in a workspace and delete it; goes on also when the caller is cancelled."""
        if held.ending is None:
            self.held.pop(held.id, None)
            held.ending = self._task(self._end(held))
        await asyncio.shield(held.ending)

    async def _end(self, held: Held) -> None:
        if held.timer is not None:
            held.timer.cancel()
        for call in list(held.calls):
            call.ending = call.ending or _gone()
            if call.task is not None:
                call.task.cancel("the workspace was deleted")
        if held.calls:
            try:
                async with clock.deadline(_LEAVE):
                    await held.left.wait()
            except TimeoutError:
                log.error("calls to workspace %s did not end; it is deleted all the same", held.id)
        try:
            await held.space.close()
        finally:
            if held.folder:
                await run_in_thread(_remove, held.folder)

    def revoked(self, key_id: str) -> None:
        """Delete what belongs to a key that is no longer valid."""
        for held in list(self.held.values()):
            if held.owner[1] == key_id:
                self._task(self.drop(held))

    async def close(self) -> None:
        """Delete all workspaces."""
        self._closed = True
        while self._tasks or self.held:
            for held in list(self.held.values()):
                self._task(self.drop(held))
            for done in await asyncio.gather(*self._tasks, return_exceptions=True):
                if isinstance(done, Exception):
                    log.error("a workspace was not deleted: %s", done)

    def _task(self, work: Any) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    @staticmethod
    def check(settings: WorkspaceSettings) -> None:
        """Raise ConfigError where a kind is allowed that this machine cannot keep."""
        if "sandbox" in settings.allow:
            try:
                sandbox_level(settings.level)
            except WorkspaceError as error:
                hint = "Install bubblewrap, or take `sandbox` out of allow."
                raise ConfigError(f"[server.workspaces] allows sandboxes: {error.message}", hint=hint) from error
        if settings.folder and not Path(settings.folder).is_dir():
            raise ConfigError(f"[server.workspaces] folder: {settings.folder} is no folder.")
        folder = os.path.realpath(settings.folder or tempfile.gettempdir())
        if "sandbox" in settings.allow and any(is_below(folder, each) for each in readable_places(os.environ, folder)):
            hint = "Name one outside of the system's folders and of PATH."
            raise ConfigError(f"[server.workspaces] folder: every sandbox can read {folder}.", hint=hint)


def _open(settings: WorkspaceSettings, kind: Kind, memory_mb: int | None) -> tuple[Workspace, str]:
    if kind == "memory":
        return MemoryWorkspace(max_bytes=settings.held_bytes), ""
    folder = tempfile.mkdtemp(prefix="windlass-workspace-", dir=settings.folder or None)
    try:
        if kind == "local":
            return LocalWorkspace(folder, max_file_bytes=settings.file_bytes), folder
        limits = default_limits()
        most = settings.memory_mb * _MB or limits.memory_bytes or _LEAST
        limits = replace(limits, memory_bytes=min(most, memory_mb * _MB) if memory_mb else most)
        space = SandboxWorkspace(
            folder, network=settings.network, limits=limits, level=settings.level, max_file_bytes=settings.file_bytes
        )
    except BaseException:
        _remove(folder)
        raise
    return space, folder


def _remove(folder: str) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    if not Path(folder).exists():
        return
    for at, names, _ in os.walk(folder):  # a command may have taken its own rights away
        for each in (at, *[f"{at}/{name}" for name in names]):
            if stat.S_ISDIR(os.lstat(each).st_mode):
                os.chmod(each, 0o700)  # noqa: PTH101
    shutil.rmtree(folder, ignore_errors=True)
    if Path(folder).exists():
        log.error("%s could not be deleted whole", folder)
