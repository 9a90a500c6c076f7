"""Sandboxes on a server that runs `windlass serve` with `[server.workspaces]`, over HTTP."""

from __future__ import annotations

import asyncio
import os
import weakref
from base64 import b64decode, b64encode
from collections.abc import AsyncGenerator, Callable, Generator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from typing import Any

from msgspec import Struct

from windlass.core import clock
from windlass.core.errors import ConfigError, PathEscape, ProtocolError, TransportError, WorkspaceError
from windlass.core.http import Client, StreamResponse, Timeouts, endpoint, parse_url
from windlass.core.json import dumps_stored, loads_stored
from windlass.core.ports import ExecResult, FileInfo
from windlass.workspaces.faults import explain, fault
from windlass.workspaces.remote_provider import SpawnOptions
from windlass.workspaces.remote_words import PATH, errno_of

__all__ = ["KEY_VARIABLE", "HttpSandbox", "Spawned"]

#: Where the key comes from when none is given.
KEY_VARIABLE = "WINDLASS_WORKSPACE_KEY"
#: Bytes of one answer, and of one line of a command's.
_MOST = 96 * 1024 * 1024
#: Seconds of silence after which a server is lost: while a command runs it says something every 5.
_SILENCE = 20.0
_HINTS = {
    "unauthorized": f"Give the workspace a key of that server: key=, or {KEY_VARIABLE}.",
    "key_revoked": f"Give the workspace another key of that server: key=, or {KEY_VARIABLE}.",
    "not_found": "Is it `windlass serve`, new enough, and does [server.workspaces] allow any?",
    "workspace_not_found": "It lay unused for too long, or the server was started anew: open a new one.",
    "too_many_workspaces": "Close some, or wait until those that lie unused are taken away.",
    "request_too_large": "Split it, or raise [server] max_body_bytes there.",
    "stopping": "Open a new workspace, on another server or once it is up again; what was in this one is lost.",
}


class Spawned(Struct, frozen=True):
    """A sandbox on the server: its id, what it can do, and how its commands are held."""

    id: str
    capabilities: frozenset[str]
    confinement: str = ""


class _Loop:
    """What belongs to one event loop: connections, and the sandboxes that live."""

    def __init__(self, timeouts: Timeouts) -> None:
        self.reading = Client(max_per_host=16, max_idle_per_host=8, max_body_bytes=_MOST)
        # Never a kept connection for what changes something: a request that a dead one swallowed is sent once more.
        self.changing = Client(max_per_host=16, max_idle_per_host=0, max_body_bytes=_MOST)
        self.reading.timeouts = self.changing.timeouts = timeouts
        self.live: set[str] = set()

    async def close(self) -> None:
        await self.reading.aclose()
        await self.changing.aclose()


class HttpSandbox:
    """The provider for workspaces on the server at `url`, as the owner of `key`.

    `key` is one of that server's, WINDLASS_WORKSPACE_KEY by default; without any, a server that takes requests of this
    machine without one is asked as nobody. `kind` is sandbox, memory or local, as that server allows. `timeout` bounds
    what is not a command, in seconds. Of the options it keeps `memory_mb` and `idle_seconds`.

    Writing compares and replaces in one step. A command ends with its connection: when the caller is cancelled, when
    this process dies, when the network breaks. May be used from several event loops; the connections of one are closed
    with its last sandbox. Raises ConfigError for an address that is none, or that holds a key; every call raises
    WorkspaceError, or the OSError of a file's fault.
    """

    def __init__(self, url: str, key: str | None = None, *, kind: str = "sandbox", timeout: float = 60.0) -> None:
        try:
            where = parse_url(url)
        except TransportError as error:
            shown = endpoint(url) or "An empty text"
            hint = f'Write "remote:http://127.0.0.1:8081", and give the key as key=, or in {KEY_VARIABLE}.'
            raise ConfigError(f"{shown} is no address of a server.", hint=hint) from error
        if "?" in url or "#" in url:
            raise ConfigError(
                f"{endpoint(url)}: nothing may follow the address.", hint=f"A key goes to {KEY_VARIABLE}."
            )
        if kind not in ("sandbox", "memory", "local"):
            raise ConfigError(f"There is no workspace of kind {kind!r}.", hint="Kinds are sandbox, memory and local.")
        self._where = where.endpoint.rstrip("/")
        self._base, self._kind = self._where + PATH, kind
        self._key = key if key is not None else os.environ.get(KEY_VARIABLE, "")
        self._timeouts = Timeouts(min(5.0, timeout), timeout, timeout, timeout, timeout)
        self._loops: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Loop] = weakref.WeakKeyDictionary()

    def __repr__(self) -> str:
        # The key stays out: a representation ends up in logs.
        return f"HttpSandbox({self._where!r}, kind={self._kind!r})"

    @property
    def name(self) -> str:
        """The server's address."""
        return self._where

    @property
    def capabilities(self) -> frozenset[str]:
        """What a sandbox of this kind can do, before the server has said more."""
        more = {"sandbox": {"shell"}, "local": {"shell", "network"}}.get(self._kind, set[str]())
        return frozenset({"filesystem"} | more)

    async def spawn(self, options: SpawnOptions, /) -> Spawned:
        """Make a workspace on the server. Raises WorkspaceError for options that it has none of."""
        if options.template or options.cpu is not None or options.more:
            raise WorkspaceError("A workspace of `windlass serve` has no template, cpu or further options.")
        asked = {"memory_mb": options.memory_mb, "idle_seconds": options.idle_seconds}
        body = {"kind": self._kind, **{name: value for name, value in asked.items() if value is not None}}
        mine, under_way = self._mine(), clock.new_id()
        mine.live.add(under_way)
        try:
            told = await self._ask("POST", "", body)
            with self._sense():
                made = Spawned(told["id"], frozenset(told["capabilities"]), told["confinement"])
            mine.live.add(made.id)
            return made
        finally:
            await self._gone(mine, under_way)

    async def read_file(self, handle: Spawned, path: str, /, *, limit: int | None = None) -> bytes:
        """Return the content, or its first `limit` bytes."""
        told = await self._ask("POST", f"/{handle.id}/files/read", {"path": path, "limit": limit}, path, reads=True)
        with self._sense():
            return b64decode(told["data"])

    async def write_file(
        self, handle: Spawned, path: str, data: bytes, /, *, expected_sha256: str | None = None
    ) -> None:
        """Replace or make a file atomically; see the port for `expected_sha256`."""
        body = {"path": path, "data": b64encode(data).decode(), "expected_sha256": expected_sha256}
        await self._ask("POST", f"/{handle.id}/files/write", body, path)

    async def delete_file(self, handle: Spawned, path: str, /) -> None:
        """Remove a file, a link or an empty folder."""
        await self._ask("POST", f"/{handle.id}/files/delete", {"path": path}, path)

    async def stat_file(self, handle: Spawned, path: str, /) -> FileInfo | None:
        """Describe a file or folder, None when there is none."""
        told = await self._ask("POST", f"/{handle.id}/files/stat", {"path": path}, path, reads=True)
        with self._sense():
            return None if told["entry"] is None else FileInfo(**told["entry"])

    async def list_files(self, handle: Spawned, path: str, /, *, depth: int = 1, limit: int = 10_000) -> list[FileInfo]:
        """List a folder, shallow entries first to be kept when `limit` cuts (100 000 at most, 64 deep)."""
        body = {"path": path, "depth": min(depth, 64), "limit": min(limit, 100_000)}
        told = await self._ask("POST", f"/{handle.id}/files/list", body, path, reads=True)
        with self._sense():
            return [FileInfo(**entry) for entry in told["entries"]]

    async def exec(
        self,
        handle: Spawned,
        command: str | Sequence[str],
        /,
        *,
        timeout: float | None,
        env: Mapping[str, str],
        max_output: int = 0,
        on_output: Callable[[bytes], None] | None = None,
    ) -> ExecResult:
        """Run a command, at most as long as the server lets one run; it is ended there when this is cancelled."""
        words = command if isinstance(command, str) else [*command]
        body = {"command": words, "timeout": timeout, "max_output": max_output, "env": dict(env)}
        limits = Timeouts(self._timeouts.connect, _SILENCE, _SILENCE, None, self._timeouts.pool)
        try:
            async with self._mine().changing.stream(
                "POST", f"{self._base}/{handle.id}/exec", headers=self._headers(), body=dumps_stored(body),
                timeouts=limits, max_body_bytes=1 << 50,
            ) as answer:  # fmt: skip
                if answer.status >= 400:
                    raise self._refusal(answer.status, self._read(answer.status, await answer.read()))
                return await self._follow(answer, on_output)
        except TransportError as error:
            text = f"The workspace at {self._where} was lost while a command ran: {error.message}"
            raise WorkspaceError(text, hint="How far the command came is not known.") from error

    async def _follow(self, answer: StreamResponse, on_output: Callable[[bytes], None] | None) -> ExecResult:
        async with aclosing(_lines(answer)) as lines:
            async for line in lines:
                told = self._read(answer.status, line)
                if "error" in told:
                    raise self._refusal(200, told)
                with self._sense():
                    if "result" in told:
                        return _result(told["result"])
                    output = b64decode(told.get("output", ""))
                if output and on_output is not None:
                    on_output(output)
        raise WorkspaceError(f"{self._where} ended its answer before the command's end.", hint="Open a new workspace.")

    async def destroy(self, handle: Spawned, /) -> None:
        """End what runs in it and delete it; one that is gone already is as good."""
        mine = self._mine()
        try:
            await self._ask("DELETE", f"/{handle.id}", None)
        except _Refused as refused:
            if refused.word != "workspace_not_found":
                raise
        finally:
            await self._gone(mine, handle.id)

    # --- asking

    async def _gone(self, mine: _Loop, what: str) -> None:
        mine.live.discard(what)
        if not mine.live:
            self._loops.pop(asyncio.get_running_loop(), None)
            await mine.close()

    def _mine(self) -> _Loop:
        loop = asyncio.get_running_loop()
        found = self._loops.get(loop)
        if found is None:
            found = self._loops[loop] = _Loop(self._timeouts)
        return found

    def _headers(self) -> dict[str, str]:
        return {"content-type": "application/json", **({"x-api-key": self._key} if self._key else {})}

    async def _ask(
        self, method: str, where: str, body: dict[str, Any] | None, path: str = "", *, reads: bool = False
    ) -> dict[str, Any]:
        mine = self._mine()
        client = mine.reading if reads else mine.changing
        sent = b"" if body is None else dumps_stored(body)
        try:
            answer = await client.request(method, self._base + where, headers=self._headers(), body=sent)
        except TransportError as error:
            done = "Nothing was done." if not error.sent or reads else "It may be done or not."
            raise WorkspaceError(f"{self._where} did not answer: {error.message}", path=path, hint=done) from error
        told = self._read(answer.status, answer.body)
        if answer.status >= 400:
            raise self._refusal(answer.status, told, path)
        return told

    @contextmanager
    def _sense(self) -> Generator[None]:
        try:
            yield
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            text = f"{self._where} answered what a workspace does not: {type(error).__name__} {error}."
            raise WorkspaceError(text, hint="Is it `windlass serve`, of the same version?") from error

    def _read(self, status: int, data: bytes) -> dict[str, Any]:
        try:
            told = loads_stored(data)
            if not isinstance(told, dict):
                raise ValueError("no object")
        except ValueError as error:
            text = f"{self._where} answered {status} with something else than JSON: {error}."
            raise WorkspaceError(text, hint="Is it `windlass serve`?") from error
        return told  # pyright: ignore[reportUnknownVariableType]

    def _refusal(self, status: int, told: dict[str, Any], path: str = "") -> Exception:
        error: Any = told.get("error")
        error = error if isinstance(error, dict) else {}
        text, code = str(error.get("message", "")), str(error.get("code", ""))
        if (number := errno_of(code)) is not None:
            return fault(number) if path else explain(fault(number), ".")
        if code == "path_escape":
            return PathEscape(text, path=path)
        shown = f" ({status})" if status >= 400 else ""
        return _Refused(f"{self._where} refused{shown}: {text}", code, path=path)


class _Refused(WorkspaceError):
    """Report a refusal of the server; `word` is its code."""

    def __init__(self, message: str, word: str, *, path: str) -> None:
        super().__init__(message, path=path, hint=_HINTS.get(word, ""))
        self.word = word


def _result(told: dict[str, Any]) -> ExecResult:
    output = b64decode(told["output"])
    return ExecResult(told["exit_code"], output, told["total_bytes"], told["killed"])


async def _lines(answer: StreamResponse) -> AsyncGenerator[bytes]:
    """Yield the lines of an answer as they come, without those that hold nothing."""
    kept, size = list[bytes](), 0
    async for piece in answer.chunks():
        start, *others = piece.split(b"\n")
        kept.append(start)
        size += len(start)
        if size > _MOST:
            raise ProtocolError(f"A line is longer than {_MOST} bytes.")
        for other in others:
            if line := b"".join(kept):
                yield line
            kept, size = [other], len(other)
