"""Messages of JSON-RPC, one per line, over the pipes that we were started with; nothing else ever gets onto them."""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Awaitable, Callable
from contextlib import suppress
from io import FileIO
from typing import Any

import msgspec

from windlass.core import clock, json
from windlass.core.errors import ConfigError

__all__ = ["MAX_LINE", "Lines", "open_pipes", "take_pipes"]

#: Bytes of one message: a prompt with pictures in base64 has some megabytes.
MAX_LINE = 64 << 20
#: Seconds that answers may take once the client has closed its side.
GRACE = 5.0
Write = Callable[[bytes], Awaitable[None]]


def take_pipes() -> tuple[int, int]:
    """Return private copies of stdin and stdout. What else is printed goes to stderr, what else reads finds nothing.

    A library, a child process or a stray `print` would otherwise get into the middle of the protocol.
    """
    reading, writing = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return reading, writing


async def open_pipes(reading: int, writing: int) -> tuple[asyncio.StreamReader, Write, Callable[[], None]]:
    """Return a reader, what writes, and what closes both. Raises ConfigError where a person sits at stdin."""
    if os.name == "nt":
        raise ConfigError("windlass acp needs the pipes of a POSIX system.", hint="Run it in WSL.")
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=MAX_LINE)
    closing: list[Callable[[], None]] = []
    kind = os.fstat(reading).st_mode
    if os.isatty(reading):
        raise ConfigError(
            "windlass acp is started by an editor, which talks to it over pipes; there is a terminal at its input.",
            hint="docs/acp.md says how to set it up. In a terminal: windlass.",
        )
    if stat.S_ISFIFO(kind) or stat.S_ISSOCK(kind):
        transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), FileIO(reading, "rb"))
        closing.append(transport.close)
    else:
        # A file is at its end at once, and the event loop cannot wait for one.
        with FileIO(reading, "rb") as file:
            reader.feed_data(file.read(MAX_LINE))
        reader.feed_eof()
    write = await _writer(loop, writing, closing)

    def close() -> None:
        for each in closing:
            each()

    return reader, write, close


async def _writer(loop: asyncio.AbstractEventLoop, writing: int, closing: list[Callable[[], None]]) -> Write:
    kind = os.fstat(writing).st_mode
    file = FileIO(writing, "wb")
    if not (stat.S_ISFIFO(kind) or stat.S_ISSOCK(kind)):
        closing.append(file.close)

        async def to_file(data: bytes) -> None:
            while data:
                data = data[file.write(data) :]

        return to_file
    # The protocol of a reader is the public one that knows when writing must pause.
    flow = asyncio.StreamReaderProtocol(asyncio.StreamReader())
    transport, _ = await loop.connect_write_pipe(lambda: flow, file)
    writer = asyncio.StreamWriter(transport, flow, None, loop)
    closing.append(transport.close)

    async def to_pipe(data: bytes) -> None:
        if transport.is_closing():
            raise ConnectionError("the client does not read any more")
        writer.write(data)
        await writer.drain()

    return to_pipe


class Lines:
    """The SDK's message transport over a reader and what writes.

    What is no message is answered as JSON-RPC 2.0 asks (-32700, -32600) and the next line is read. `at_end` is awaited
    when the client has closed its side, before the SDK is told: what runs is stopped and kept first.
    """

    def __init__(self, reader: asyncio.StreamReader, write: Write, at_end: Callable[[], Awaitable[None]]) -> None:
        self._reader, self._write, self._at_end = reader, write, at_end
        #: Requests that have no answer yet: id -> method.
        self._open: dict[Any, str] = {}
        self._answered = asyncio.Event()

    async def send(self, message: dict[str, Any]) -> None:
        """Write a message. Raises ConnectionError when the client is gone, but for answers: nobody waits for them."""
        try:
            line = json.dumps(message)
        except TypeError:  # the SDK tells of an invalid request with Python's own exceptions in it
            line = json.dumps(msgspec.to_builtins(message, enc_hook=str))
        answer = "method" not in message
        if answer and message.get("id") is not None:
            self._open.pop(message["id"], None)
            self._answered.set()
        try:
            # Written before anything is awaited: messages leave in the order of the calls.
            await self._write(line + b"\n")
        except OSError as error:
            if not answer:
                raise ConnectionError("the client does not read any more") from error

    async def receive(self) -> dict[str, Any] | None:
        """Return the next message, None at the end."""
        while (line := await self._line()) is not None:
            if not line.strip():
                continue
            try:
                message: Any = json.loads(line)
            except json.JsonError as error:
                await self._refuse(-32700, f"Parse error: {error}")
                continue
            if not _is_message(message):
                await self._refuse(-32600, "Invalid request: not a JSON-RPC message")
                continue
            if "method" in message and message.get("id") is not None:
                self._open[message["id"]] = message["method"]
            return message
        # What was asked is still answered; a prompt is, too, once it is stopped.
        await self._settle("session/prompt")
        await self._at_end()
        await self._settle()
        return None

    async def close(self) -> None:
        """Nothing is held here; whoever opened the pipes closes them."""

    async def _settle(self, but: str = "") -> None:
        """Wait until all requests are answered, but those of one method; at most `GRACE` seconds."""
        with suppress(TimeoutError):
            async with clock.deadline(GRACE):
                while any(method != but for method in self._open.values()):
                    self._answered.clear()
                    await self._answered.wait()

    async def _refuse(self, code: int, text: str) -> None:
        await self.send({"jsonrpc": "2.0", "id": None, "error": {"code": code, "message": text}})

    async def _line(self) -> bytes | None:
        """Return the next line, None at the end; one that is too long is refused and left out."""
        while True:
            try:
                return await self._reader.readuntil(b"\n")
            except asyncio.IncompleteReadError as error:
                return error.partial or None
            except asyncio.LimitOverrunError:
                await self._skip()
                await self._refuse(-32600, f"Invalid request: a message is longer than {MAX_LINE >> 20} MiB")

    async def _skip(self) -> None:
        while True:
            try:
                await self._reader.readuntil(b"\n")
            except asyncio.LimitOverrunError as error:
                await self._reader.readexactly(error.consumed)
            except asyncio.IncompleteReadError:
                return
            else:
                return


def _is_message(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    method: Any = value.get("method", "")  # pyright: ignore[reportUnknownMemberType]
    number: Any = value.get("id")  # pyright: ignore[reportUnknownMemberType]
    return isinstance(method, str) and (number is None or type(number) in (int, str))
