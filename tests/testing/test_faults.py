"""The fault server does what it says, seen by clients that are not ours."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import os
from typing import Any

import aiohttp
import httpx
import pytest

from windlass.testing.faults import (
    BlackHole,
    FaultServer,
    Fin,
    Raw,
    Reply,
    Rst,
    Step,
    Stream,
    drip,
    gzip_bomb,
    header_flood,
    ndjson,
    sse,
)


async def raw(server: FaultServer, request: bytes = b"GET /x HTTP/1.1\r\nhost: a\r\n\r\n") -> tuple[bytes, str]:
    """Send bytes and return all that comes back and how it ended: fin or rst."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(request)
    got = b""
    try:
        async with asyncio.timeout(10):
            while data := await reader.read(65536):
                got += data
        return got, "fin"
    except ConnectionResetError:
        return got, "rst"
    finally:
        writer.close()


HEAD = b"HTTP/1.1 200 Scripted\r\n"


@pytest.mark.parametrize(
    ("step", "expected", "end"),
    [
        (Fin(), b"", "fin"),
        (Rst(), b"", "rst"),
        (Reply(200, b"ab", end="fin"), HEAD + b"content-length: 2\r\n\r\nab", "fin"),
        (Reply(200, b"ab", framing="close"), HEAD + b"\r\nab", "fin"),
        (Reply(200, b"ab", surplus=b"!", end="fin"), HEAD + b"content-length: 2\r\n\r\nab!", "fin"),
        (
            Reply(200, b"ab", {"x": "y"}, framing="chunked", end="fin"),
            HEAD + b"x: y\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n",
            "fin",
        ),
        (Reply(204, end="fin"), b"HTTP/1.1 204 Scripted\r\n\r\n", "fin"),
        (Stream([b"ab"], headers={}, cut=1), HEAD + b"transfer-encoding: chunked\r\n\r\n2\r\na", "fin"),
        (Stream([b"ab"], headers={}, finish=False), HEAD + b"transfer-encoding: chunked\r\n\r\n2\r\nab\r\n", "fin"),
        (Stream([b"ab"], headers={}, finish=False, framing="length"), HEAD + b"content-length: 3\r\n\r\nab", "fin"),
        (Stream([b"ab", 0.02], headers={}, framing="close", end="rst"), HEAD + b"\r\nab", "rst"),
        (Raw([b"any", 0.0, b"thing"]), b"anything", "fin"),
        (Raw(drip(b"xyz", 0.001)), b"xyz", "fin"),
    ],
)
async def test_steps_on_the_wire(step: Step, expected: bytes, end: str) -> None:
    async with FaultServer([step]) as server:
        assert await raw(server) == (expected, end)
        assert server.connections == 1 and server.requests[0].target == "/x"


async def test_records_requests_and_repeats_the_last_step() -> None:
    async with FaultServer([Reply(500, b"no"), Reply(200, b'{"a":1}')]) as server:
        async with httpx.AsyncClient(trust_env=False) as client:
            assert (await client.post(f"{server.url}/v1", json={"q": 1})).status_code == 500
            for _ in range(2):
                assert (await client.get(f"{server.url}/v2", headers={"X-Y": "z"})).json() == {"a": 1}
        first, second, third = server.requests
        assert (first.method, first.target, json.loads(first.body), first.connection) == ("POST", "/v1", {"q": 1}, 0)
        assert second.headers["x-y"] == "z" and third.target == "/v2" and server.connections == 1
        await server.wait(open=0)


async def test_reads_chunked_requests() -> None:
    async def body() -> Any:
        yield b"one "
        yield b"two"

    async with FaultServer([Reply()]) as server, aiohttp.ClientSession() as client:
        async with client.post(server.url, data=body()) as answer:
            assert answer.status == 200
        assert server.requests[0].body == b"one two"


async def test_streams_events_lines_and_gates() -> None:
    gate = asyncio.Event()
    script: list[Step] = [
        Stream([*sse("a", event="ping"), gate, *sse("b")]),
        Stream(ndjson("{}", "[]"), headers={"content-type": "application/x-ndjson"}),
    ]
    async with FaultServer(script) as server, aiohttp.ClientSession() as client:
        async with client.get(server.url) as answer:
            assert answer.content_type == "text/event-stream"
            assert await answer.content.readany() == b"event: ping\ndata: a\n\n"
            gate.set()
            assert await answer.content.read() == b"data: b\n\n"
        async with client.get(server.url) as answer:
            assert await answer.read() == b"{}\n[]\n"


async def test_notices_a_client_that_leaves_in_a_pause() -> None:
    for step in (BlackHole(), Stream([b"x", 3600.0]), Stream([b"x", asyncio.Event()])):
        async with FaultServer([step]) as server:
            _, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
            await server.wait(requests=1)
            assert server.open == 1
            writer.close()
            async with asyncio.timeout(10):
                await server.wait(open=0)


async def test_closes_what_is_open_at_the_end() -> None:
    fds, tasks = len(os.listdir("/proc/self/fd")), asyncio.all_tasks()
    async with FaultServer([BlackHole()]) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 10\r\n\r\nhalf")
        await server.wait(connections=1)
    with contextlib.suppress(ConnectionResetError):  # what the server had not read turns its close into a reset
        assert await reader.read() == b""
    assert server.requests == [] and server.open == 0
    writer.close()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == tasks and len(os.listdir("/proc/self/fd")) == fds


async def test_bombs_and_floods_are_as_large_as_told() -> None:
    bomb = gzip_bomb(1_000_000)
    assert gzip.decompress(bomb.body) == bytes(1_000_000) and len(bomb.body) < 2000
    parts, end = header_flood(70_000).script()
    flood = b"".join(part for part in parts if isinstance(part, bytes))
    assert len(flood) >= 70_000 and b"\r\n\r\n" not in flood and end == "hang"


async def test_garbage_and_empty_scripts() -> None:
    async with FaultServer([Reply()]) as server:
        for garbage in (b"\r\n\r\n", b"GET\r\n\r\n", b"POST / HTTP/1.1\r\ncontent-length: x\r\n\r\n", b"x" * 100_000):
            got, _ = await raw(server, garbage)
            assert got == b""
        assert server.requests == [] and server.connections == 4
    with pytest.raises(ValueError, match="at least one step"):
        FaultServer([])
