"""A server on 127.0.0.1 that answers, and fails, exactly as told: for testing providers and HTTP clients.

    async with FaultServer([Rst(), Reply(429, headers={"retry-after": "1"}), Stream(sse("a", "b"))]) as server:
        ...                                   # use server.url
        assert [r.target for r in server.requests] == ["/v1/chat", "/v1/chat", "/v1/chat"]
        assert server.connections == 2

The script is a list of steps. Every request that arrives, on whatever connection, takes the next one; the last step
answers all further requests. A step is data: the bytes of the answer with pauses between them, and how it ends.
Instead of a list, a function may say what each request gets. It listens on loopback unless told otherwise and keeps
what it received in memory.
"""

from __future__ import annotations

import asyncio
import gzip
import os
import socket
import ssl
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Literal, Self, TypeAlias

__all__ = [
    "BlackHole",
    "End",
    "FaultServer",
    "Fin",
    "Part",
    "Raw",
    "Received",
    "Reply",
    "Rst",
    "Step",
    "Stream",
    "drip",
    "gzip_bomb",
    "header_flood",
    "ndjson",
    "sse",
]

#: One part of an answer: bytes to write, a pause in seconds, or an event to wait for.
Part: TypeAlias = bytes | float | asyncio.Event

#: How an answer ends. keep: the connection stays open for the next request. fin: it is closed. rst: it is reset.
#: hang: it stays open and nothing more is sent or read, until the client closes it.
End: TypeAlias = Literal["keep", "fin", "rst", "hang"]

Framing: TypeAlias = Literal["length", "chunked", "close"]


@dataclass(frozen=True)
class Raw:
    """Send parts as they are: any bytes, valid HTTP or not."""

    parts: Sequence[Part] = ()
    end: End = "fin"

    def script(self) -> tuple[Sequence[Part], End]:
        """Return what to send and how to end."""
        return self.parts, self.end


@dataclass(frozen=True)
class Fin:
    """Close the connection before any byte of an answer."""

    def script(self) -> tuple[Sequence[Part], End]:
        """Return what to send and how to end."""
        return (), "fin"


@dataclass(frozen=True)
class Rst:
    """Reset the connection before any byte of an answer."""

    def script(self) -> tuple[Sequence[Part], End]:
        """Return what to send and how to end."""
        return (), "rst"


@dataclass(frozen=True)
class BlackHole:
    """Take the request and never answer; the connection stays open until the client closes it."""

    def script(self) -> tuple[Sequence[Part], End]:
        """Return what to send and how to end."""
        return (), "hang"


@dataclass(frozen=True)
class Reply:
    """Send a whole answer at once.

    `surplus` is sent right behind it, in the same write. `end="fin"` closes the connection after `idle` seconds without
    having announced it, as servers do to idle kept-alive connections; send `connection: close` to announce it.
    """

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    framing: Framing = "length"
    surplus: bytes = b""
    end: End = "keep"
    idle: float = 0.0

    def script(self) -> tuple[Sequence[Part], End]:
        """Return what to send and how to end."""
        body = self.body
        if self.framing == "chunked":
            body = (_chunk(body) if body else b"") + b"0\r\n\r\n"
        data = _head(self.status, self.headers, self.framing, len(self.body)) + body + self.surplus
        parts: list[Part] = [data, self.idle] if self.idle else [data]
        return parts, "fin" if self.framing == "close" and self.end == "keep" else self.end


@dataclass(frozen=True)
class Stream:
    """Send a body in pieces: each bytes part is one write (and one chunk), with the pauses and events between them.

    `finish` False leaves out the end of the body: the last chunk, or the last bytes of the announced length. `cut`
    bytes are dropped from the end of the last piece after its size was announced, which ends inside a chunk. The
    default `end` is "keep" for a finished body, else "fin".
    """

    parts: Sequence[Part] = ()
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=lambda: {"content-type": "text/event-stream"})
    framing: Framing = "chunked"
    finish: bool = True
    cut: int = 0
    end: End | None = None

    def script(self) -> tuple[Sequence[Part], End]:
        """Return what to send and how to end."""
        pieces = [part for part in self.parts if isinstance(part, bytes)]
        whole = self.finish and not self.cut
        missing = 0 if whole or self.framing != "length" else 1
        out: list[Part] = [_head(self.status, self.headers, self.framing, sum(map(len, pieces)) + missing)]
        chunked = self.framing == "chunked"
        out += [_chunk(part) if isinstance(part, bytes) and chunked else part for part in self.parts]
        if self.cut:
            last = max(index for index, part in enumerate(out) if isinstance(part, bytes))
            data = out[last]
            assert isinstance(data, bytes)
            # A chunk ends with a line end that is not part of its data.
            out[last] = data[: -self.cut - (2 if self.framing == "chunked" else 0)]
        elif whole and self.framing == "chunked":
            out.append(b"0\r\n\r\n")
        default: End = "keep" if whole and self.framing != "close" else "fin"
        return out, self.end or default


Step: TypeAlias = Raw | Fin | Rst | BlackHole | Reply | Stream


def sse(*data: str, event: str | None = None) -> list[Part]:
    """Return server-sent events, one part each, for Stream."""
    name = f"event: {event}\n" if event else ""
    return [f"{name}data: {line}\n\n".encode() for line in data]


def ndjson(*lines: str) -> list[Part]:
    """Return JSON lines, one part each, for Stream."""
    return [f"{line}\n".encode() for line in lines]


def drip(data: bytes, seconds: float) -> list[Part]:
    """Return data byte by byte with a pause after each, for Stream or Raw."""
    return [part for index in range(len(data)) for part in (data[index : index + 1], seconds)]


def gzip_bomb(size: int) -> Reply:
    """Return a gzip-coded reply that decodes to `size` zero bytes, about a thousand times what is sent."""
    return Reply(200, gzip.compress(bytes(size), mtime=0), {"content-encoding": "gzip"})


def header_flood(size: int) -> Raw:
    """Return an answer whose head never ends, of at least `size` bytes."""
    line = b"x-flood: " + b"f" * 1000 + b"\r\n"
    return Raw([b"HTTP/1.1 200 OK\r\n" + line * (size // len(line) + 1)], end="hang")


def _head(status: int, headers: Mapping[str, str], framing: Framing, size: int) -> bytes:
    lines = [f"HTTP/1.1 {status} Scripted", *(f"{name}: {value}" for name, value in headers.items())]
    if framing == "chunked":
        lines.append("transfer-encoding: chunked")
    elif framing == "length" and status not in (204, 304):
        lines.append(f"content-length: {size}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


@dataclass(frozen=True)
class Received:
    """A request as it arrived; header names are in lower case, `connection` counts from 0."""

    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes
    connection: int


class _Watched(asyncio.StreamReaderProtocol):
    """Cancel what serves a connection as soon as the client closes it, also in the middle of a pause."""

    def __init__(self, accept: Callable[[asyncio.StreamReader, asyncio.StreamWriter], asyncio.Task[None]]) -> None:
        self._serving: asyncio.Task[None] | None = None

        def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self._serving = accept(reader, writer)

        super().__init__(asyncio.StreamReader(), connected)

    def eof_received(self) -> bool | None:
        self._stop()
        return super().eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop()
        super().connection_lost(exc)

    def _stop(self) -> None:
        if self._serving is not None:
            self._serving.cancel()


class FaultServer:
    """Serve a script, or what a function of the request returns, on `host` and `port` (0: a free one).

    `requests` (the last `keep`; all by default) and `connections` tell what came, `open` how many connections are open
    now. A body that never came whole leaves no request. A client that closes its side of a connection is taken as
    gone. `ssl_context` makes it https.
    """

    def __init__(
        self,
        script: Sequence[Step] | Callable[[Received], Step],
        *,
        ssl_context: ssl.SSLContext | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
        keep: int | None = None,
    ) -> None:
        self.script: list[Step] = [] if callable(script) else list(script)
        self._step = script if callable(script) else self._scripted
        if not callable(script) and not self.script:
            raise ValueError("The script needs at least one step.")
        self.requests: list[Received] = []
        self.connections = 0
        self.open = 0
        self._address, self._keep, self._dropped = (host, port), keep, 0
        self._ssl = ssl_context
        self._socket: socket.socket | None = None
        self._starting: asyncio.Task[None] | None = None
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()

    @property
    def port(self) -> int:
        """The port it listens on."""
        assert self._socket is not None, "the server runs inside `async with`, or from `listen` to `close`"
        return int(self._socket.getsockname()[1])

    @property
    def url(self) -> str:
        """The base URL, without a slash at its end."""
        host = self._address[0]
        return f"{'https' if self._ssl is not None else 'http'}://{f'[{host}]' if ':' in host else host}:{self.port}"

    def listen(self) -> None:
        """Take the port at once, without waiting; who connects is served from the loop's next turns on.

        For callers that cannot use `async with`; end it with `close`. Raises OSError where the port is not free.
        """
        self._socket = _listening(self._address)
        self._starting = asyncio.get_running_loop().create_task(self._start(self._socket))

    async def close(self) -> None:
        """Stop listening, end every connection, and wait until they are gone. May be repeated."""
        # Everything is let go before the first wait, which a second cancellation may cut short.
        tasks = [*self._tasks, *([self._starting] if self._starting is not None else [])]
        for task in tasks:
            task.cancel()
        if self._server is not None:
            self._server.close()
        if self._socket is not None:
            self._socket.close()
        if tasks:
            await asyncio.wait(tasks)
        if self._server is not None:
            await self._server.wait_closed()

    async def __aenter__(self) -> Self:
        self.listen()
        assert self._starting is not None
        try:
            await self._starting
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _start(self, sock: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        # In two steps: cancelled amid the second, `create_server` would leave a server that nobody could close.
        made = loop.create_server(lambda: _Watched(self._accept), sock=sock, ssl=self._ssl, start_serving=False)
        self._server = await made
        await self._server.start_serving()

    async def wait(self, *, requests: int = 0, connections: int = 0, open: int | None = None) -> None:
        """Wait until at least so many requests and connections came and exactly `open` connections are open."""
        while self._came < requests or self.connections < connections or (open is not None and self.open != open):
            self._changed.clear()
            await self._changed.wait()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer, self.connections))
        self._tasks.add(task)
        # In a callback, because a task that is cancelled before its first step runs nothing of its own.
        task.add_done_callback(lambda _: self._ended(task, writer))
        self.connections += 1
        self.open += 1
        self._changed.set()
        return task

    def _ended(self, task: asyncio.Task[None], writer: asyncio.StreamWriter) -> None:
        if self._ssl is not None and not writer.transport.get_write_buffer_size():
            writer.transport.abort()  # a graceful TLS close waits for the peer, who may never answer
        else:
            writer.close()
        self._tasks.discard(task)
        self.open -= 1
        self._changed.set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
        try:
            while (request := await _read_request(reader, number)) is not None:
                step = self._step(request)
                self.requests.append(request)
                if self._keep is not None and len(self.requests) > self._keep:
                    del self.requests[0]
                    self._dropped += 1
                self._changed.set()
                parts, end = step.script()
                await _play(parts, writer)
                if end == "hang":
                    await asyncio.Event().wait()
                if end == "rst":
                    _reset(writer)
                if end != "keep":
                    return
        except (ConnectionError, ssl.SSLError):
            return  # the client went away, which is an ordinary thing to test

    def _scripted(self, _: Received) -> Step:
        return self.script[min(self._came, len(self.script) - 1)]

    @property
    def _came(self) -> int:
        return self._dropped + len(self.requests)


def _listening(address: tuple[str, int]) -> socket.socket:
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    # Not `socket.create_server`: asyncio sends without delay only where it is told that the protocol is TCP.
    sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        if os.name == "posix":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(100)
    except BaseException:
        sock.close()
        raise
    return sock


async def _play(parts: Sequence[Part], writer: asyncio.StreamWriter) -> None:
    for part in parts:
        if isinstance(part, bytes):
            writer.write(part)
            await writer.drain()
        elif isinstance(part, asyncio.Event):
            await part.wait()
        else:
            await asyncio.sleep(part)


def _reset(writer: asyncio.StreamWriter) -> None:
    sock = writer.get_extra_info("socket")
    # Linger on, zero seconds: closing sends RST and drops what was not sent.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def _read_request(reader: asyncio.StreamReader, number: int) -> Received | None:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
        start, *lines = head[:-4].decode("latin-1").split("\r\n")
        method, target, _ = start.split(" ", 2)
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        body = await _read_body(reader, headers)
    except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError):
        return None  # closed, or no HTTP request
    return Received(method, target, headers, body, number)


async def _read_body(reader: asyncio.StreamReader, headers: Mapping[str, str]) -> bytes:
    if headers.get("transfer-encoding", "").lower() != "chunked":
        return await reader.readexactly(int(headers.get("content-length", "0")))
    body = bytearray()
    while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
        body += await reader.readexactly(size)
        await reader.readexactly(2)
    while await reader.readuntil(b"\r\n") != b"\r\n":
        pass
    return bytes(body)
