"""The routes of `HttpSandbox`: workspaces on this server for programs elsewhere, as `[server.workspaces]` allows.

A workspace belongs to the key that made it; to every other it is as if it were not there. Commands run as long as their
connection: a client that leaves ends them.
"""

from __future__ import annotations

import asyncio
import binascii
import weakref
from base64 import b64decode, b64encode
from collections import deque
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta, Struct

from windlass.core.errors import PathEscape, RequestRefused, WorkspaceError
from windlass.core.json import dumps_stored, loads_stored
from windlass.core.ports import ExecResult, FileInfo, Workspace
from windlass.server.body import peek
from windlass.server.endpoints import Endpoint
from windlass.server.gateway import Gateway
from windlass.server.http import Call
from windlass.server.workspace_pool import Held, Kind, Pool, unknown
from windlass.server.workspace_settings import WorkspaceSettings
from windlass.workspaces.remote_words import CODES, PATH

__all__ = ["ENDPOINTS", "open_workspaces", "pool_of"]

T = TypeVar("T")
#: Seconds of silence after which a client is told that its command still runs.
_BEAT = 5.0
#: Bytes of output that wait for a client that reads slowly; what is more is left out of the stream, not of the result.
_WAITING = 1 << 20
_Count = Annotated[int, Meta(ge=0, le=100_000)]


class Spawn(Struct, forbid_unknown_fields=True):
    """The body of a new workspace; the limits are at most this server's."""

    kind: Kind = "sandbox"
    memory_mb: Annotated[int, Meta(ge=16, le=1 << 30)] | None = None
    idle_seconds: Annotated[float, Meta(gt=0)] | None = None


class Path_(Struct, forbid_unknown_fields=True):
    """The body of `stat` and `delete`."""

    path: str


class Read(Struct, forbid_unknown_fields=True):
    """The body of `read`: the first `limit` bytes, None: all."""

    path: str
    limit: Annotated[int, Meta(ge=0, le=1 << 50)] | None = None


class Write(Struct, forbid_unknown_fields=True):
    """The body of `write`; `data` is base64, `expected_sha256` "" where there must be no file."""

    path: str
    data: str
    expected_sha256: Annotated[str, Meta(max_length=64)] | None = None


class List(Struct, forbid_unknown_fields=True):
    """The body of `list`."""

    path: str = "."
    depth: Annotated[int, Meta(ge=0, le=64)] = 1
    limit: _Count = 10_000


class Exec(Struct, forbid_unknown_fields=True):
    """The body of `exec`; `timeout` and `max_output` are at most this server's, None and 0 are just that."""

    command: str | list[str]
    timeout: Annotated[float, Meta(ge=0)] | None = 30.0
    max_output: Annotated[int, Meta(ge=0, le=1 << 50)] = 8192
    env: dict[str, str] = {}


_pools: weakref.WeakKeyDictionary[Gateway, Pool] = weakref.WeakKeyDictionary()


def pool_of(gateway: Gateway) -> Pool:
    """Return the workspaces of a gateway."""
    found = _pools.get(gateway)
    if found is None:
        found = _pools[gateway] = Pool()
        gateway.accounts.on_revoked(found.revoked)
    return found


def open_workspaces(gateway: Gateway) -> Pool:
    """Return the workspaces of a gateway that starts. Raises ConfigError for a kind that this machine cannot keep."""
    Pool.check(gateway.settings.workspaces)
    return pool_of(gateway)


# ------------------------------------------------------------------------------------------------------------ requests


def _bad(text: str, param: str = "") -> RequestRefused:
    return RequestRefused(400, text, reason="invalid_body", param=param or None)


def _read(call: Call, kind: type[T]) -> T:
    try:
        return msgspec.convert(loads_stored(call.body), kind)
    except (ValueError, RecursionError) as error:
        raise _bad(f"The body does not fit: {error}.") from None


def _answer(call: Call, data: dict[str, Any], status: int = 200) -> None:
    call.respond(status, dumps_stored(data), (("x-request-id", call.id), ("cache-control", "no-store")))


def _offered(gateway: Gateway) -> WorkspaceSettings:
    settings = gateway.settings.workspaces
    if not settings.allow:
        raise RequestRefused(404, "This server makes no workspaces.", reason="not_found",
                             hint="[server.workspaces] allow names the kinds that it makes.")  # fmt: skip
    return settings


def _find(gateway: Gateway, call: Call) -> Held:
    """Return the workspace that a request is about; what its body holds is looked at before, what it says after."""
    if call.endpoint.body:
        peek(call.body)
    name = call.params["workspace"]
    return pool_of(gateway).find(call.identity, name) if gateway.settings.workspaces.allow else _none(name)


def _none(name: str) -> Held:
    raise unknown(name)


def _refused(error: WorkspaceError) -> RequestRefused:
    """Return what a client is told of a fault: the status and the word from which it makes the same error again."""
    cause = error.__cause__
    status, code = CODES.get(cause.errno or 0, (400, "invalid_path")) if isinstance(cause, OSError) else (400, "")
    if isinstance(error, PathEscape):
        status, code = 400, "path_escape"
    return RequestRefused(status, error.message, reason=code or "workspace_error", hint=error.hint)


async def _do(gateway: Gateway, call: Call, held: Held, work: Callable[[Workspace], Awaitable[T]]) -> T:
    """Await what `work` does with the workspace; its faults become refusals."""
    with pool_of(gateway).using(held, call) as space:
        try:
            return await work(space)
        except WorkspaceError as error:
            raise _refused(error) from error
        except asyncio.CancelledError:
            if call.ending is not None and not call.started:
                gateway.answer_error(call, call.ending, call.endpoint.ingress)
            raise


# ------------------------------------------------------------------------------------------------- spawn and destroy


async def spawn(gateway: Gateway, call: Call) -> None:
    """Answer `POST /windlass/v1/workspaces`."""
    peek(call.body)
    settings = _offered(gateway)
    asked = _read(call, Spawn)
    if asked.kind not in settings.allow:
        raise _bad(f"This server makes no workspaces of kind {asked.kind}, but of {', '.join(settings.allow)}.", "kind")
    held = await pool_of(gateway).make(settings, call.identity, asked.kind, asked.memory_mb, asked.idle_seconds)
    told = {
        "id": held.id,
        "object": "workspace",
        "kind": held.kind,
        "capabilities": sorted(held.space.capabilities),
        "confinement": _held_by(held),
        "idle_seconds": held.idle,
    }
    _answer(call, told, 201)


def _held_by(held: Held) -> str:
    # LocalWorkspace says how its files are held; its commands are not.
    return "none" if held.kind == "local" else str(getattr(held.space, "confinement", held.kind))


async def destroy(gateway: Gateway, call: Call) -> None:
    """Answer `DELETE /windlass/v1/workspaces/{workspace}`: whoever is being answered about it is told."""
    held = _find(gateway, call)
    await pool_of(gateway).drop(held)
    _answer(call, {"id": held.id, "object": "workspace.deleted", "deleted": True})


# --------------------------------------------------------------------------------------------------------------- files


async def read(gateway: Gateway, call: Call) -> None:
    """Answer `POST .../files/read`."""
    held, asked = _find(gateway, call), _read(call, Read)
    most = gateway.settings.workspaces.file_bytes
    limit = None if asked.limit is None else min(asked.limit, most)
    data: bytes = await _do(gateway, call, held, lambda space: space.read(asked.path, limit=limit))
    if len(data) > most:
        raise RequestRefused(413, f"The file is larger than {most} bytes.", reason="file_too_large")
    _answer(call, {"object": "workspace.file", "data": b64encode(data).decode()})


async def write(gateway: Gateway, call: Call) -> None:
    """Answer `POST .../files/write`: 409 where there must be no file and is one, 412 where it is another."""
    held, asked = _find(gateway, call), _read(call, Write)
    try:
        data = b64decode(asked.data, validate=True)
    except (binascii.Error, ValueError):
        raise _bad("data must be base64.", "data") from None
    if len(data) > gateway.settings.workspaces.file_bytes:
        raise RequestRefused(413, f"The file is larger than {gateway.settings.workspaces.file_bytes} bytes.",
                             reason="file_too_large")  # fmt: skip
    expected = asked.expected_sha256
    await _do(gateway, call, held, lambda space: space.write(asked.path, data, expected_sha256=expected))
    _answer(call, {"object": "workspace.written", "bytes": len(data)})


async def delete(gateway: Gateway, call: Call) -> None:
    """Answer `POST .../files/delete`."""
    held, asked = _find(gateway, call), _read(call, Path_)
    await _do(gateway, call, held, lambda space: space.delete(asked.path))
    _answer(call, {"object": "workspace.file_deleted", "deleted": True})


async def stat(gateway: Gateway, call: Call) -> None:
    """Answer `POST .../files/stat`: null where there is nothing."""
    held, asked = _find(gateway, call), _read(call, Path_)
    info: FileInfo | None = await _do(gateway, call, held, lambda space: space.stat(asked.path))
    _answer(call, {"object": "workspace.entry", "entry": None if info is None else _entry(info)})


async def listing(gateway: Gateway, call: Call) -> None:
    """Answer `POST .../files/list`."""
    held, asked = _find(gateway, call), _read(call, List)
    found: list[FileInfo] = await _do(
        gateway, call, held, lambda space: space.list(asked.path, depth=asked.depth, limit=asked.limit)
    )
    _answer(call, {"object": "list", "entries": [_entry(info) for info in found]})


def _entry(info: FileInfo) -> dict[str, Any]:
    return {"path": info.path, "kind": info.kind, "size": info.size, "mtime_ns": info.mtime_ns}


# ------------------------------------------------------------------------------------------------------------ commands


class _Feed:
    """Output between a command and a client: `ready` is done when some waits."""

    def __init__(self) -> None:
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._pieces: deque[bytes] = deque()
        self._size = 0

    def __call__(self, data: bytes) -> None:
        if self._size + len(data) <= _WAITING:
            self._pieces.append(data)
            self._size += len(data)
            if not self.ready.done():
                self.ready.set_result(None)

    def take(self) -> bytes:
        """Return the lines of what waits."""
        lines = b"".join([_line({"output": b64encode(piece).decode()}) for piece in self._pieces])
        self._pieces.clear()
        self._size = 0
        if self.ready.done():
            self.ready = asyncio.get_running_loop().create_future()
        return lines


def _line(data: dict[str, Any]) -> bytes:
    return dumps_stored(data) + b"\n"


async def execute(gateway: Gateway, call: Call) -> None:
    """Answer `POST .../exec`: lines of JSON with pieces of `output` (base64) as they come, then `result` or `error`.

    Every 5 s of silence a line says `{"alive":true}`. What fails before anything was said is a refusal.
    """
    held, asked, settings = _find(gateway, call), _read(call, Exec), gateway.settings.workspaces
    if held.commands >= settings.commands:
        raise RequestRefused(429, f"{held.commands} commands run in this workspace.", reason="too_many_commands",
                             retry_after=1.0)  # fmt: skip
    held.commands += 1
    try:
        with pool_of(gateway).using(held, call):
            await _stream(gateway, call, held, asked, settings)
    finally:
        held.commands -= 1


async def _stream(gateway: Gateway, call: Call, held: Held, asked: Exec, settings: WorkspaceSettings) -> None:
    feed, most = _Feed(), settings.output_bytes
    seconds = min(asked.timeout if asked.timeout is not None else settings.command_seconds, settings.command_seconds)
    running = asyncio.get_running_loop().create_task(
        held.space.exec(
            asked.command,
            timeout=seconds,
            max_output=min(asked.max_output or most, most),
            env=asked.env,
            on_output=feed,
        )
    )
    try:
        while not running.done():
            await asyncio.wait([running, feed.ready], timeout=_BEAT, return_when=asyncio.FIRST_COMPLETED)
            if not running.done():
                await _send(call, feed.take() or _line({"alive": True}))
        last = _line({"result": _result(running.result())})
    except asyncio.CancelledError:
        # The client left, the server stops, the key was revoked, or the workspace was deleted.
        await _ended(running)
        if call.ending is not None:
            _tell(gateway, call, call.ending)
        raise
    except WorkspaceError as error:
        _tell(gateway, call, RequestRefused(400, error.message, reason="command_refused", hint=error.hint))
        return
    finally:
        if not running.done():
            await _ended(running)
    await _send(call, feed.take() + last, last=True)


async def _ended(running: asyncio.Task[ExecResult]) -> None:
    """Cancel a command and wait until nothing of it is left, however often that is interrupted."""
    running.cancel()
    while not running.done():
        try:
            await asyncio.wait([running])
        except asyncio.CancelledError:
            running.cancel()
    if not running.cancelled():
        running.exception()


async def _send(call: Call, data: bytes, *, last: bool = False) -> None:
    if not call.started:
        call.start(200, (("x-request-id", call.id), ("cache-control", "no-store")), kind="application/x-ndjson")
    slow = call.write(data, last=last)
    if slow is not None:
        await slow


def _tell(gateway: Gateway, call: Call, error: Any) -> None:
    if not call.started:
        gateway.answer_error(call, error, call.endpoint.ingress)
        return
    _, body = call.endpoint.ingress.dialect.encode_error(error)
    call.write(body + b"\n", last=True)


def _result(done: ExecResult) -> dict[str, Any]:
    if done.spool is not None:
        Path(done.spool).unlink(missing_ok=True)  # nobody could ask for it
    return {
        "exit_code": done.exit_code,
        "output": b64encode(done.output).decode(),
        "total_bytes": done.total_bytes,
        "killed": done.killed,
    }


_ONE = f"{PATH}/{{workspace}}"
ENDPOINTS = (
    Endpoint("POST", PATH, spawn, body=True, summary="Make a workspace."),
    Endpoint("DELETE", _ONE, destroy, summary="Delete a workspace."),
    Endpoint("POST", f"{_ONE}/files/read", read, body=True, summary="Read a file of a workspace."),
    Endpoint("POST", f"{_ONE}/files/write", write, body=True, summary="Write a file of a workspace."),
    Endpoint("POST", f"{_ONE}/files/delete", delete, body=True, summary="Delete a file of a workspace."),
    Endpoint("POST", f"{_ONE}/files/stat", stat, body=True, summary="Describe a file of a workspace."),
    Endpoint("POST", f"{_ONE}/files/list", listing, body=True, summary="List a folder of a workspace."),
    Endpoint("POST", f"{_ONE}/exec", execute, body=True, summary="Run a command in a workspace."),
)
