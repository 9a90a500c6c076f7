"""Raw HTTP for the tests of the edge: bytes in, bytes out, nothing tidied up on the way."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import pytest

from windlass.core.errors import RequestRefused
from windlass.server.http import Call
from windlass.server.protocol import Limits, Listener
from windlass.server.serve import listen

#: A guard against hanging, never an expectation.
PATIENCE = 20.0


@dataclass
class Answer:
    """One answer as it came; `chunks` are the pieces of a chunked body, `whole` says that its end came too."""

    status: int
    headers: dict[str, str]
    body: bytes
    chunks: list[bytes] = field(default_factory=list[bytes])
    whole: bool = True


class Wire:
    """A connection that sends what it is told and splits what comes back into answers."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def send(self, *pieces: bytes) -> None:
        """Send pieces, each in a segment of its own."""
        for piece in pieces:
            self.writer.write(piece)
            await self.writer.drain()
            await asyncio.sleep(0)

    async def answer(self, *, head: bool = False) -> Answer:
        """Read one answer; `head` for the answer to HEAD, which has no body."""
        async with asyncio.timeout(PATIENCE):
            lines = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")[:-2]
            headers: dict[str, str] = {}
            for line in lines[1:]:
                name, _, value = line.partition(": ")
                assert name == name.lower() and name not in headers, line
                headers[name] = value
            made = Answer(int(lines[0].split(" ")[1]), headers, b"")
            assert lines[0].startswith("HTTP/1.1 ")
            if not head:
                await self._body(made)
            return made

    async def _body(self, made: Answer) -> None:
        if made.headers.get("transfer-encoding") == "chunked":
            try:
                while size := int((await self.reader.readuntil(b"\r\n")).strip(), 16):
                    made.chunks.append(await self.reader.readexactly(size))
                    assert await self.reader.readexactly(2) == b"\r\n"
                assert await self.reader.readexactly(2) == b"\r\n"
            except (asyncio.IncompleteReadError, ConnectionError):
                made.whole = False
            made.body = b"".join(made.chunks)
        elif "content-length" in made.headers:
            made.body = await self.reader.readexactly(int(made.headers["content-length"]))
        elif made.status >= 200:
            made.body = await self.reader.read()

    async def rest(self) -> bytes:
        """Read until the other side closes; a reset counts as closing."""
        out = b""
        async with asyncio.timeout(PATIENCE):
            while True:
                try:
                    piece = await self.reader.read(65_536)
                except ConnectionError:
                    return out
                if not piece:
                    return out
                out += piece

    async def rest_of(self, size: int, seen: int) -> int:
        """Read until `size` bytes came, of which `seen` did; returns how many did."""
        async with asyncio.timeout(PATIENCE):
            while seen < size and (piece := await self.reader.read(1 << 20)):
                seen += len(piece)
        return seen

    def pause(self, *, small: bool = False) -> None:
        """Read nothing more; with `small` the system keeps little for us either, and is slow from then on."""
        if small:
            self.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.transport.pause_reading()

    def resume(self) -> None:
        """Read on."""
        self.transport.resume_reading()

    @property
    def transport(self) -> asyncio.Transport:
        """What the stream reads from."""
        transport = self.writer.transport
        assert isinstance(transport, asyncio.Transport)
        return transport


@asynccontextmanager
async def wire(port: int) -> AsyncGenerator[Wire]:
    """Connect to 127.0.0.1."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 24)
    try:
        yield Wire(reader, writer)
    finally:
        writer.transport.abort()
        with suppress(ConnectionError):
            await writer.wait_closed()


@asynccontextmanager
async def crowd(port: int, count: int) -> AsyncGenerator[None]:
    """Open many connections that send nothing; they are closed at the end."""
    loop = asyncio.get_running_loop()
    out: list[socket.socket] = []
    try:
        for _ in range(count):
            sock = socket.socket()
            sock.setblocking(False)
            out.append(sock)
            async with asyncio.timeout(PATIENCE):
                await loop.sock_connect(sock, ("127.0.0.1", port))
        yield
    finally:
        for sock in out:
            sock.close()


async def exchange(port: int, *pieces: bytes) -> tuple[Answer, bytes]:
    """Send pieces on a new connection; returns the first answer and all that came after it until the close."""
    async with wire(port) as sent:
        await sent.send(*pieces)
        answer = await sent.answer()
        return answer, await sent.rest()


async def ask(port: int, data: bytes) -> Answer:
    """Send one request on a new connection and read its answer."""
    async with wire(port) as sent:
        await sent.send(data)
        return await sent.answer(head=data.startswith(b"HEAD "))


def request(method: str, path: str, headers: dict[str, str] | None = None, body: bytes | None = None) -> bytes:
    """Return the bytes of a request; a body is JSON unless the headers say otherwise."""
    given = {"host": "localhost", **(headers or {})}
    if body is not None:
        given = {"content-type": "application/json", "content-length": str(len(body)), **given}
    lines = "".join([f"{name}: {value}\r\n" for name, value in given.items()])
    return f"{method} {path} HTTP/1.1\r\n{lines}\r\n".encode("latin-1") + (body or b"")


class Echo:
    """An app that keeps what it was asked and answers with the size of the body.

    `/begin` begins an answer and waits for `go`; `/large` answers with `size` bytes; `/stream` with as many in pieces.
    """

    def __init__(self, limit: int = 1 << 20, size: int = 0) -> None:
        self.limit, self.size = limit, size
        self.calls: list[Any] = []
        self.cancelled: list[str] = []
        self.begun, self.go = asyncio.Event(), asyncio.Event()
        self.written = 0

    def express(self, call: Any, ended: Any) -> None:
        """Everything takes a task here."""

    def admit(self, call: Call) -> int:
        if call.head.path == "/refused":
            raise RequestRefused(401, "Unauthorized", reason="unauthorized")
        return self.limit

    async def serve(self, call: Call) -> None:
        self.calls.append(call)
        try:
            await self._serve(call)
        except asyncio.CancelledError as error:
            self.cancelled.append(str(error.args[0] if error.args else ""))
            if call.ending is not None and not call.started:
                call.respond(503, b"ending")
            raise

    async def _serve(self, call: Call) -> None:
        path = call.head.path
        if path in ("/begin", "/wait"):
            self.begun.set()
            if path == "/begin":
                call.start(200, kind="text/plain")
                call.write(b"begun")
            await self.go.wait()
            if path == "/begin":
                call.write(b" and ended", last=True)
                return
        if path == "/stream":
            call.start(200, kind="text/plain")
            piece = bytes(65_536)
            for _ in range(self.size // len(piece)):
                slow = call.write(piece)
                self.written += len(piece)
                if slow is not None:
                    await slow
            call.finish()
            return
        call.respond(200, bytes(self.size) if path == "/large" else b"%d" % len(call.body))

    def refusal(self, call: Call | None, error: RequestRefused) -> tuple[int, list[tuple[str, str]], bytes]:
        return error.status, [("content-type", "text/plain")], str(error.reason or "").encode()


@dataclass
class Edge:
    """A listener of its own on the test's loop."""

    app: Echo
    listener: Listener
    port: int


@asynccontextmanager
async def edge(app: Echo | None = None, limits: Limits | None = None) -> AsyncGenerator[Edge]:
    """Listen with an app in place of the gateway; who is overdue is found within 20 ms."""
    made = app or Echo()
    listener = Listener(made, limits, sweep=0.02)
    sock = listen("127.0.0.1", 0)
    server = await listener.loop.create_server(listener, sock=sock)
    try:
        yield Edge(made, listener, sock.getsockname()[1])
    finally:
        made.go.set()
        server.close()
        await listener.drain(0.0)


async def settled(listener: Listener) -> None:
    """Wait until no connection, task or byte is held; fails when that never comes."""
    async with asyncio.timeout(PATIENCE):
        while listener.connections or listener.lingering or listener.tasks or listener.buffered:
            await asyncio.sleep(0.01)


async def until(ready: Any) -> None:
    """Wait until a function says so."""
    async with asyncio.timeout(PATIENCE):
        while not ready():
            await asyncio.sleep(0.005)


def unquiet(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return what was logged that only a fault of ours would log."""
    return [
        record.getMessage()
        for record in caplog.records
        if record.levelno >= logging.ERROR or (record.name == "asyncio" and record.levelno >= logging.WARNING)
    ]
