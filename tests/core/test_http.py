"""The HTTP client against a faulty server: what is retried, what is raised, what stays open."""

from __future__ import annotations

import asyncio
import gzip
import importlib.util
import os
import socket
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest

from windlass.core.errors import BodyTooLarge, ConnectError, ProtocolError, TransportError, TransportTimeout
from windlass.core.http import Client
from windlass.testing.clock import FakeClock, run_with_fake_clock
from windlass.testing.faults import (
    BlackHole,
    FaultServer,
    Fin,
    Raw,
    Reply,
    Rst,
    Step,
    Stream,
    gzip_bomb,
    header_flood,
    ndjson,
    sse,
)

OK = Reply(200, b"fine")


def open_fds() -> int:
    return len(os.listdir("/proc/self/fd"))


@asynccontextmanager
async def serving(*script: Step, **settings: Any) -> AsyncGenerator[tuple[Client, FaultServer]]:
    """Give a client and a server; at the end no task, no file descriptor and no open connection may be left."""
    fds, tasks = open_fds(), asyncio.all_tasks()
    async with FaultServer(script) as server:
        async with Client(proxies={}, **settings) as client:
            yield client, server
        async with asyncio.timeout(10):
            await server.wait(open=0)
    await asyncio.sleep(0)
    await asyncio.sleep(0.01)  # uvloop closes handles in its next turn
    assert asyncio.all_tasks() == tasks
    assert open_fds() == fds


async def test_request_and_answer() -> None:
    reply = Reply(418, b"short and stout", {"X-A": "1", "x-b": "\xe9"})
    async with serving(reply) as (client, server):
        sent = [("X-Key", "k"), ("accept", "text/plain"), ("x-key", "l")]
        answer = await client.request("POST", f"{server.url}/a/b?c=d#e", headers=sent, body=[b"one ", b"two"])
        assert (answer.status, answer.body, answer.close_delimited) == (418, b"short and stout", False)
        assert answer.headers["x-a"] == "1" and answer.headers["X-B"] == "\xe9" and "x-c" not in answer.headers
        got = server.requests[0]
        assert (got.method, got.target, got.body) == ("POST", "/a/b?c=d", b"one two")
        assert got.headers["accept-encoding"] == "identity" and got.headers["accept"] == "text/plain"
        assert got.headers["host"] == f"127.0.0.1:{server.port}" and got.headers["content-length"] == "7"
        assert "expect" not in got.headers and "transfer-encoding" not in got.headers


async def test_keeps_one_connection_for_requests_in_a_row() -> None:
    async with serving(OK) as (client, server):
        for _ in range(5):
            assert (await client.request("GET", server.url)).body == b"fine"
        assert server.connections == 1 and len(server.requests) == 5


async def test_streams_pieces_as_they_arrive() -> None:
    gate = asyncio.Event()
    async with serving(Stream([*sse("a"), gate, *sse("b", "c")])) as (client, server):
        async with client.stream("GET", server.url) as answer:
            pieces = answer.chunks()
            assert await anext(pieces) == b"data: a\n\n" and not answer.complete
            gate.set()
            assert await answer.read() == b"data: b\n\ndata: c\n\n" and answer.complete
        await client.request("GET", server.url)
        assert server.connections == 1


async def test_r01_fin_before_headers() -> None:
    async with serving(Fin(), OK) as (client, server):
        with pytest.raises(ProtocolError, match="before any answer") as caught:
            await client.request("POST", f"{server.url}/v1?key=secret", body=b"{}")
        assert caught.value.sent and "secret" not in str(caught.value)
        assert caught.value.endpoint == f"{server.url}/v1"
        assert len(server.requests) == 1, "a fresh connection is not retried here: that is the provider's decision"
        assert (await client.request("GET", server.url)).status == 200


async def test_r02_rst_before_headers() -> None:
    async with serving(Rst()) as (client, server):
        with pytest.raises(ProtocolError) as caught:
            await client.request("POST", server.url, body=b"{}")
        assert caught.value.sent and isinstance(caught.value.__cause__, ConnectionResetError)
        assert server.connections == 1


@pytest.mark.parametrize("death", [Fin(), Rst()], ids=["fin", "rst"])
async def test_r01_r02_dead_kept_connection_is_replaced_once(death: Step) -> None:
    async with serving(OK, death, OK) as (client, server):
        assert (await client.request("GET", server.url)).body == b"fine"
        once = iter([("x-key", "k")])
        assert (await client.request("POST", server.url, headers=once, body=b"again")).body == b"fine"
        assert server.connections == 2 and server.requests[-1].headers["x-key"] == "k"
        assert [(r.body, r.connection) for r in server.requests] == [(b"", 0), (b"again", 0), (b"again", 1)]


async def test_r01_an_answer_that_began_is_not_asked_for_again() -> None:
    async with serving(OK, Raw([b"HTTP/1.1 2"])) as (client, server):
        await client.request("GET", server.url)
        with pytest.raises(ProtocolError, match="inside the head"):
            await client.request("GET", server.url)
        assert len(server.requests) == 2


async def test_r01_the_replacement_is_not_replaced_again() -> None:
    async with serving(OK, Fin()) as (client, server):
        await client.request("GET", server.url)
        with pytest.raises(ProtocolError):
            await client.request("GET", server.url)
        assert len(server.requests) == 3 and server.connections == 2


def test_r03_black_hole() -> None:
    fake = FakeClock()

    async def main() -> None:
        async with serving(OK, BlackHole()) as (client, server):
            await client.request("GET", server.url)
            with pytest.raises(TransportTimeout, match="no answer came") as caught:
                await client.request("GET", server.url)
            assert caught.value.phase == "first_byte" and caught.value.sent
            assert len(server.requests) == 2, "a deadline is not a dead connection: no silent second try"
            await server.wait(open=0)

    run_with_fake_clock(main, fake)
    assert 60 <= fake.elapsed < 120


async def test_r04_refused() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        async with Client(proxies={}) as client:
            with pytest.raises(ConnectError, match="Cannot connect") as caught:
                await client.request("GET", f"http://127.0.0.1:{unused.getsockname()[1]}/")
    assert not caught.value.sent


async def test_r04_name_not_found() -> None:
    async def resolve(host: str, port: int) -> list[str]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    async with Client(proxies={}, resolve=resolve) as client:
        with pytest.raises(ConnectError, match=r"api\.test cannot be resolved") as caught:
            await client.request("GET", "http://api.test/v1")
    assert not caught.value.sent


@asynccontextmanager
async def full_backlog(address: str = "127.0.0.1", port: int = 0) -> AsyncGenerator[int]:
    """Give a port where connecting hangs: a listener that accepts nothing and whose backlog is full."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((address, port))
    listener.listen(0)
    fillers: list[socket.socket] = []
    for _ in range(4):
        filler = socket.socket()
        filler.setblocking(False)
        filler.connect_ex(listener.getsockname())
        fillers.append(filler)
    try:
        yield int(listener.getsockname()[1])
    finally:
        for sock in (*fillers, listener):
            sock.close()


async def test_r04_backlog_full() -> None:
    fds = open_fds()
    async with full_backlog() as port, Client(proxies={}, connect_timeout=0.05) as client:
        with pytest.raises(TransportTimeout) as caught:
            await client.request("GET", f"http://127.0.0.1:{port}/")
        assert caught.value.phase == "connect" and not caught.value.sent
    assert open_fds() == fds


async def test_happy_eyeballs_pass_a_hanging_address() -> None:
    async with FaultServer([OK]) as server, full_backlog("127.0.0.2", server.port):

        async def resolve(host: str, port: int) -> list[str]:
            return ["127.0.0.2", "127.0.0.1"]

        async with Client(proxies={}, resolve=resolve) as client:
            answer = await client.request("GET", f"http://api.test:{server.port}/")
            assert answer.body == b"fine" and len(asyncio.all_tasks()) == 2, "this one and the server's; no attempt"
            assert server.requests[0].headers["host"] == f"api.test:{server.port}"


async def test_happy_eyeballs_name_every_failure() -> None:
    async def resolve(host: str, port: int) -> list[str]:
        return ["127.0.0.3", "::1", "127.0.0.2"]

    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        async with Client(proxies={}, resolve=resolve) as client:
            with pytest.raises(ConnectError) as caught:
                await client.request("GET", f"http://api.test:{unused.getsockname()[1]}/")
    assert all(address in str(caught.value) for address in ("127.0.0.3", "::1", "127.0.0.2"))


async def test_system_lookup_and_pin() -> None:
    async with serving(OK) as (client, server):
        assert (await client.request("GET", f"http://localhost:{server.port}/")).status == 200
        assert "127.0.0.1" in await client.resolve("localhost", server.port)
        pinned = await client.request("GET", f"http://no-such-name.test:{server.port}/", pin="127.0.0.1")
        assert pinned.status == 200 and server.requests[-1].headers["host"] == f"no-such-name.test:{server.port}"
        with pytest.raises(ConnectError, match="not an IP address"):
            await client.request("GET", server.url, pin="localhost")


async def test_r06_idle_connection_closed_while_a_tool_runs() -> None:
    async with serving(Reply(200, b"fine", end="fin", idle=0.01), OK) as (client, server):
        await client.request("GET", server.url)
        await server.wait(open=0)
        assert (await client.request("POST", server.url, body=b"x")).body == b"fine"
        assert [r.connection for r in server.requests] == [0, 1], "the close was seen before anything was written"


async def test_r07_rst_mid_stream() -> None:
    gate = asyncio.Event()
    async with serving(Stream([*sse("a"), gate], end="rst", finish=False), OK) as (client, server):
        got = b""
        with pytest.raises(ProtocolError, match="before the end of the body") as caught:
            async with client.stream("POST", server.url) as answer:
                async for piece in answer:
                    got += piece
                    gate.set()
        assert got == b"data: a\n\n" and caught.value.sent
        assert (await client.request("GET", server.url)).status == 200


@pytest.mark.parametrize(
    "cut",
    [
        Stream(sse("a", "b"), finish=False),
        Stream(sse("a", "b"), cut=3),
        Stream(sse("a"), framing="length", finish=False),
    ],
    ids=["no last chunk", "inside a chunk", "inside content-length"],
)
async def test_r08_body_cut_short(cut: Stream) -> None:
    async with serving(cut) as (client, server):
        got = b""
        with pytest.raises(ProtocolError, match="before the end of the body"):
            async with client.stream("GET", server.url) as answer:
                async for piece in answer:
                    got += piece
        assert got.startswith(b"data: a\n\n")
        with pytest.raises(ProtocolError):
            await client.request("GET", server.url)


async def test_r09_close_delimited_truncation() -> None:
    async with serving(Stream(sse("a"), framing="close"), OK) as (client, server):
        async with client.stream("GET", server.url) as answer:
            assert await answer.read() == b"data: a\n\n"
            assert answer.complete and answer.close_delimited, "it looks whole; the caller must know that it may not be"
        assert not (await client.request("GET", server.url)).close_delimited
        assert server.connections == 2


async def test_r09_close_delimited_reset_is_an_error() -> None:
    async with serving(Stream([*sse("a"), 0.01], framing="close", end="rst")) as (client, server):
        with pytest.raises(ProtocolError):
            await client.request("GET", server.url)


async def test_r29_gzip_bomb() -> None:
    async with serving(gzip_bomb(20_000_000), OK, max_body_bytes=1_000_000) as (client, server):
        total = 0
        with pytest.raises(BodyTooLarge, match="1000000 bytes"):
            async with client.stream("GET", server.url) as answer:
                async for piece in answer:
                    assert len(piece) <= 64 * 1024, "a bomb is unpacked in small pieces only"
                    total += len(piece)
        assert 900_000 < total <= 1_000_000
        assert (await client.request("GET", server.url, max_body_bytes=4)).body == b"fine"
        with pytest.raises(BodyTooLarge):
            await client.request("GET", server.url, max_body_bytes=3)


async def test_r29_endless_stream_stops_at_the_cap_with_little_memory() -> None:
    endless = Stream([b"x" * 50_000] * 400)
    async with serving(endless, max_body_bytes=3_000_000) as (client, server):
        with pytest.raises(BodyTooLarge):
            await client.request("GET", server.url)


async def test_slow_reader_stops_the_sender() -> None:
    sent = 0

    class Counted(Stream):
        def script(self) -> Any:
            parts, end = super().script()

            def counting() -> Any:
                nonlocal sent
                for part in parts:
                    yield part
                    sent += 1

            return counting(), end

    async with serving(Counted([b"x" * 65536] * 500)) as (client, server):
        async with client.stream("GET", server.url, max_body_bytes=100_000_000) as answer:
            before = -1
            while before != sent:
                before = sent
                await asyncio.sleep(0.05)
            assert sent < 300, "the sender is held back while nobody reads"
            total = 0
            async for piece in answer:
                assert len(piece) <= 1_000_000, "what is held for a slow reader is bounded"
                total += len(piece)
        assert total == 32_768_000


@pytest.mark.parametrize("coding", ["gzip", "x-gzip", "GZIP"])
async def test_gzip_that_nobody_asked_for(coding: str) -> None:
    data = os.urandom(200_000) + bytes(500_000)
    packed = gzip.compress(data[:300_000]) + gzip.compress(data[300_000:])
    async with serving(Reply(200, packed, {"content-encoding": coding}, framing="chunked")) as (client, server):
        assert (await client.request("GET", server.url)).body == data


@pytest.mark.parametrize(
    ("coding", "body", "says"),
    [
        ("gzip", gzip.compress(b"hello" * 100)[:-9], "cut short"),
        ("gzip", b"not gzip at all", "broken"),
        ("deflate", b"\x78\x9c" + b"\xff" * 20, "broken"),
        ("br", b"x", "not supported"),
        ("gzip, gzip", b"x", "not supported"),
    ],
    ids=["cut", "no gzip", "bad deflate", "brotli", "twice"],
)
async def test_bad_codings(coding: str, body: bytes, says: str) -> None:
    async with serving(Reply(200, body, {"content-encoding": coding})) as (client, server):
        with pytest.raises(ProtocolError, match=says):
            await client.request("GET", server.url)


async def test_header_flood() -> None:
    whole = Reply(200, b"", {f"x-{number}": "y" * 1000 for number in range(70)})
    async with serving(header_flood(200_000), header_flood(90_000), whole) as (client, server):
        for _ in range(3):
            with pytest.raises(ProtocolError, match="65536 bytes"):
                await client.request("GET", server.url)
        assert server.connections == 3


async def test_r16_ndjson_and_html_come_as_they_are() -> None:
    html = Reply(200, b"<html>", {"content-type": "text/html"})
    lines = Stream(ndjson('{"a":1}', '{"a":2}'), headers={"content-type": "application/x-ndjson"})
    async with serving(html, lines) as (client, server):
        assert (await client.request("GET", server.url)).headers["content-type"] == "text/html"
        assert (await client.request("GET", server.url)).body == b'{"a":1}\n{"a":2}\n'


async def test_closing_the_client_fails_what_is_in_progress() -> None:
    async with serving(BlackHole(), max_per_host=1) as (client, server):
        tasks = [asyncio.create_task(client.request("GET", server.url)) for _ in range(2)]
        await server.wait(requests=1)
        await client.aclose()
        for task in tasks:
            with pytest.raises(TransportError, match="closed"):
                await task
        with pytest.raises(TransportError, match="closed") as caught:
            await client.request("GET", server.url)
        assert not caught.value.sent and len(server.requests) == 1


def scenarios() -> list[Callable[[], Coroutine[Any, Any, None]]]:
    plain = [test_request_and_answer, test_streams_pieces_as_they_arrive, test_r01_fin_before_headers]
    faults = [test_r02_rst_before_headers, test_r04_backlog_full, test_r04_refused, test_r07_rst_mid_stream]
    ends = [test_r06_idle_connection_closed_while_a_tool_runs, test_r09_close_delimited_truncation, test_r29_gzip_bomb]
    flow = [test_slow_reader_stops_the_sender, test_header_flood, test_closing_the_client_fails_what_is_in_progress]
    names = [test_system_lookup_and_pin, test_happy_eyeballs_pass_a_hanging_address]
    return [*plain, *faults, *ends, *flow, *names] if importlib.util.find_spec("uvloop") is not None else []


@pytest.mark.parametrize("scenario", scenarios(), ids=lambda scenario: scenario.__name__)
def test_on_uvloop(scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    import uvloop

    async def main() -> None:
        async with FaultServer([OK]):
            pass  # libuv opens a spare file descriptor with the first listener of a loop
        await scenario()

    uvloop.run(main())
