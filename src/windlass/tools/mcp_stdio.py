"""An MCP server as a child process: started without a shell, with a short environment, ended with all it started.

The SDK's own stdio transport keeps a line of any length in memory. Here a line has a bound; one that is longer, or no
JSON-RPC, is dropped, and the call whose answer it was fails alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from windlass.core import clock
from windlass.core.text import HeadTail, strip_escapes

__all__ = ["StdioTransport", "server_environ"]

#: Bytes of one message.
MAX_LINE = 16 << 20
#: Seconds that a server has after its input was closed, and after SIGTERM, which what it left behind gets too.
GRACE, CHILD_GRACE = 2.0, 1.0
_PIECE = 1 << 16
_MARK = "WINDLASS_MCP_ID"
_NAMES = (
    "PATH HOME USER LOGNAME SHELL LANG LANGUAGE TZ TMPDIR XDG_CACHE_HOME XDG_CONFIG_HOME XDG_DATA_HOME XDG_STATE_HOME "
    "VIRTUAL_ENV CONDA_PREFIX NVM_DIR JAVA_HOME GOPATH CARGO_HOME RUSTUP_HOME SSL_CERT_FILE SSL_CERT_DIR "
    "SYSTEMROOT SYSTEMDRIVE WINDIR COMSPEC PATHEXT TEMP TMP USERNAME USERPROFILE HOMEDRIVE HOMEPATH APPDATA "
    "LOCALAPPDATA PROGRAMDATA PROGRAMFILES"
)
_ALLOWED = frozenset(_NAMES.split())
_ID = re.compile(rb'"id"\s*:\s*(\d{1,18}|"[^"\\]{1,80}")')


def server_environ(base: Mapping[str, str], extra: Mapping[str, str]) -> dict[str, str]:
    """Return what a server sees: harmless names of `base` (no key, no proxy), absolute PATH entries, then `extra`."""
    env = {
        name: value
        for name, value in base.items()
        if (name in _ALLOWED or name.startswith("LC_")) and not value.startswith("()")
    }
    if "PATH" in env:
        env["PATH"] = os.pathsep.join([part for part in env["PATH"].split(os.pathsep) if Path(part).is_absolute()])
    return {**env, **extra}


class StdioTransport:
    """The two streams that the SDK's session reads and writes, over a child's pipes; an async context manager.

    `on_end` is called when the server has closed its output. `said` is the end of what it wrote to stderr. Entering
    raises OSError when the program cannot be started.
    """

    def __init__(
        self,
        argv: list[str],
        env: Mapping[str, str],
        cwd: str | None = None,
        *,
        max_line: int = MAX_LINE,
        on_end: Callable[[], None] = lambda: None,
    ) -> None:
        self._argv, self._env, self._cwd, self._max_line = argv, dict(env), cwd, max_line
        self._on_end = on_end
        self._mark = clock.new_id()
        self._tasks: list[asyncio.Task[None]] = []
        self._process: asyncio.subprocess.Process | None = None
        self._streams: list[Any] = []
        self._stderr = HeadTail(4096)
        #: Lines that were no message, and messages that were too long.
        self.garbage = self.too_long = 0

    @property
    def said(self) -> str:
        """Return the end of the server's stderr, fit for a screen."""
        return strip_escapes(self._stderr.result().decode("utf-8", "replace")).strip()

    @property
    def pid(self) -> int | None:
        """Return the server's process id."""
        return None if self._process is None else self._process.pid

    async def __aenter__(self) -> tuple[Any, Any]:
        import anyio

        pipe = asyncio.subprocess.PIPE
        self._process = process = await asyncio.create_subprocess_exec(
            *self._argv, stdin=pipe, stdout=pipe, stderr=pipe, cwd=self._cwd,
            env={**self._env, _MARK: self._mark}, start_new_session=True,
        )  # fmt: skip
        # Nothing is awaited between here and the tasks: a cancellation would leave the process behind.
        incoming, read = anyio.create_memory_object_stream[Any](0)
        write, outgoing = anyio.create_memory_object_stream[Any](0)
        self._streams = [incoming, read, write, outgoing]
        assert process.stdin is not None and process.stdout is not None and process.stderr is not None
        self._tasks = [
            asyncio.create_task(self._read(process.stdout, incoming)),
            asyncio.create_task(self._write(process.stdin, outgoing)),
            asyncio.create_task(self._listen(process.stderr)),
        ]
        return read, write

    async def __aexit__(self, *exc: object) -> None:
        ending = asyncio.ensure_future(self._end())
        cancelled: asyncio.CancelledError | None = None
        while not ending.done():
            try:
                await asyncio.shield(ending)
            except asyncio.CancelledError as error:
                cancelled = error
        ending.result()
        if cancelled is not None:
            raise cancelled

    # -- the pipes -------------------------------------------------------------------------------------------------

    async def _read(self, stdout: asyncio.StreamReader, incoming: Any) -> None:
        import anyio

        buffer = bytearray()
        skipped: HeadTail | None = None
        try:
            async with incoming:
                while piece := await stdout.read(_PIECE):
                    *lines, rest = piece.split(b"\n")
                    for line in lines:
                        if skipped is not None:
                            skipped.feed(line)
                            await self._report(bytes(skipped.result()), incoming)
                            skipped = None
                        else:
                            buffer += line
                            await self._deliver(bytes(buffer), incoming)
                            buffer.clear()
                    if skipped is not None:
                        skipped.feed(rest)
                        continue
                    buffer += rest
                    if len(buffer) > self._max_line:
                        skipped = HeadTail(8192)
                        skipped.feed(bytes(buffer))
                        buffer = bytearray()
        except (anyio.ClosedResourceError, anyio.BrokenResourceError):
            return  # the session is gone first
        finally:
            self._on_end()

    async def _deliver(self, line: bytes, incoming: Any) -> None:
        from mcp.shared.message import SessionMessage
        from mcp_types import jsonrpc_message_adapter

        if not line.strip():
            return
        try:
            message = jsonrpc_message_adapter.validate_json(line, by_name=False)
        except (ValueError, RecursionError):
            self.garbage += 1
            return
        await incoming.send(SessionMessage(message))

    async def _report(self, ends: bytes, incoming: Any) -> None:
        """Fail the call that a message of too many bytes answers: its id stands at one of the ends."""
        from mcp.shared.message import SessionMessage
        from mcp_types import INTERNAL_ERROR, ErrorData, JSONRPCError

        self.too_long += 1
        found = _ID.findall(ends)
        if b'"method"' in ends[:512] or not found:
            return
        raw = found[0].decode("utf-8", "replace")
        error = ErrorData(code=INTERNAL_ERROR, message=f"the answer was longer than {self._max_line} bytes")
        key = raw.strip('"') if raw.startswith('"') else int(raw)
        await incoming.send(SessionMessage(JSONRPCError(jsonrpc="2.0", id=key, error=error)))

    async def _write(self, stdin: asyncio.StreamWriter, outgoing: Any) -> None:
        async with outgoing:
            try:
                async for item in outgoing:
                    text = item.message.model_dump_json(by_alias=True, exclude_unset=True)
                    stdin.write(text.encode("utf-8", "backslashreplace") + b"\n")
                    await stdin.drain()
            except OSError:
                self._on_end()

    async def _listen(self, stderr: asyncio.StreamReader) -> None:
        while piece := await stderr.read(_PIECE):
            self._stderr.feed(piece)

    # -- the end ---------------------------------------------------------------------------------------------------

    async def _end(self) -> None:
        process = self._process
        if process is None:
            return
        for stream in self._streams:
            stream.close()
        if process.stdin is not None:
            process.stdin.close()
        await self._gone(process, GRACE, children=False)
        for signum, patience in ((signal.SIGTERM, CHILD_GRACE), (getattr(signal, "SIGKILL", signal.SIGTERM), GRACE)):
            if not self._send(process, signum):
                break
            await self._gone(process, patience)
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks)
        # Pipes that a survivor holds open would otherwise keep the transport, which warns when it is collected.
        transport: Any = getattr(process, "_transport", None)
        if transport is not None:
            with contextlib.suppress(OSError):
                transport.close()

    async def _gone(self, process: asyncio.subprocess.Process, seconds: float, *, children: bool = True) -> None:
        """Wait until the server (and what it started) is gone, or the seconds are over."""
        end = clock.monotonic() + seconds
        # Not process.wait(): that also waits for pipes which children may hold.
        while clock.monotonic() < end:
            if process.returncode is not None and not (children and _members(process.pid, self._mark)):
                return
            await asyncio.sleep(0.01 if process.returncode is None else 0.03)

    def _send(self, process: asyncio.subprocess.Process, signum: signal.Signals) -> bool:
        """Send a signal to the server and what it started; False when nothing is left."""
        if os.name == "nt":
            if process.returncode is None:
                process.kill()
            return process.returncode is None
        left = _members(process.pid, self._mark)
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signum)
        for pid in left:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signum)
        return process.returncode is None or bool(left)


def _members(leader: int, mark: str) -> set[int]:
    """Return the living processes of a server's session, or with its mark in their environment (Linux)."""
    if not sys.platform.startswith("linux"):
        return set()
    needle = f"{_MARK}={mark}".encode()
    found: set[int] = set()
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit() or int(entry.name) == leader:
            continue
        with contextlib.suppress(OSError):
            stat = Path(entry.path, "stat").read_bytes().rpartition(b")")[2].split()
            if stat[0] in (b"Z", b"X"):
                continue
            if int(stat[3]) == leader or needle in Path(entry.path, "environ").read_bytes():
                found.add(int(entry.name))
    return found
