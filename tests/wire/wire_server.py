"""A loopback HTTP server for the official SDKs: it keeps what they send and answers what the test says."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field


@dataclass
class Got:
    """One request as it came."""

    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Server:
    """Where it listens and what it got."""

    url: str = ""
    got: list[Got] = field(default_factory=list[Got])


#: (status, content type, body); a body of several pieces is sent piece by piece, without a length.
Answer = tuple[int, str, bytes | list[bytes]]


@contextlib.asynccontextmanager
async def serve(answer: Callable[[Got], Answer]) -> AsyncGenerator[Server]:
    """Serve on 127.0.0.1, one answer per connection."""
    server = Server()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)}
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        got = Got(head[0].split(" ")[1], headers, body)
        server.got.append(got)
        status, kind, data = answer(got)
        pieces = [data] if isinstance(data, bytes) else data
        length = f"content-length: {len(data)}\r\n" if isinstance(data, bytes) else ""
        first = f"HTTP/1.1 {status} Said\r\ncontent-type: {kind}\r\n{length}"
        writer.write(f"{first}request-id: req_1\r\nconnection: close\r\n\r\n".encode())
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    listener = await asyncio.start_server(handle, "127.0.0.1", 0)
    server.url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    try:
        yield server
    finally:
        listener.close()
        await listener.wait_closed()
