"""Requests without a task: sent at once over an idle connection, and listened to."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from windlass.core._http_connection import HIGH_WATER, Host
from windlass.core.errors import BodyTooLarge, ProtocolError, TransportError, TransportTimeout
from windlass.core.http import Client, Exchange, Timeouts
from windlass.testing.faults import BlackHole, FaultServer, Part, Raw, Received, Reply, Rst, Step, Stream

HEADERS = {"content-type": "application/json", "authorization": "Bearer k"}
LIMITS = Timeouts(5.0, 5.0, 5.0, None, 5.0)
PATIENCE = 20.0


class Heard:
    """Listens to one exchange: takes what comes, and notes each call."""

    def __init__(self, *, take: bool = True) -> None:
        self.exchange: Exchange | None = None
        self.body, self.calls, self.over, self._take = b"", 0, asyncio.Event(), take

    def __call__(self, exchange: Exchange) -> Callable[[], None]:
        self.exchange = exchange
        return self.changed

    def changed(self) -> None:
        self.calls += 1
        exchange = self.exchange
        assert exchange is not None
        if self._take and exchange.error is None:
            self.body += exchange.take() or b""
        if exchange.done or exchange.error is not None:
            self.over.set()

    async def end(self) -> Exchange:
        """Wait for the end."""
        async with asyncio.timeout(PATIENCE):
            await self.over.wait()
        assert self.exchange is not None
        return self.exchange


@asynccontextmanager
async def warmed(step: Step | list[Step], **options: Any) -> AsyncGenerator[tuple[FaultServer, Client, str]]:
    """A client with an idle connection to a server that then does what it is told."""
    steps = step if isinstance(step, list) else [step]
    async with FaultServer([Reply(200, b"warm"), *steps]) as server, Client(proxies={}, **options) as client:
        url = f"{server.url}/v1"
        assert (await client.request("POST", url, headers=HEADERS, body=b"{}")).body == b"warm"
        yield server, client, url


def send(client: Client, url: str, heard: Heard, body: bytes = b"{}", limits: Timeouts = LIMITS) -> Exchange | None:
    return client.send_now(url, headers=HEADERS, body=body, timeouts=limits, listener=heard)


def host_of(client: Client) -> Host:
    (host,) = client._hosts.values()  # pyright: ignore[reportPrivateUsage]
    return host


async def test_nothing_is_done_where_no_connection_is_idle() -> None:
    async with FaultServer([Reply(200, b"fine")]) as server, Client(proxies={}, max_per_host=1) as client:
        url, heard = f"{server.url}/v1", Heard()
        assert send(client, url, heard) is None  # of that address nothing is known
        await client.request("POST", url, headers=HEADERS, body=b"{}")
        assert send(client, url, heard, bytes(2 << 20)) is None  # that takes its time
        first = send(client, url, heard)
        assert first is not None and send(client, url, Heard()) is None  # the one there is
        assert (await heard.end()).status == 200
        host = host_of(client)
        assert (host.active, len(host.idle), server.connections) == (0, 1, 1)
    assert send(client, url, heard) is None and len(server.requests) == 2


async def test_the_bytes_that_are_sent_are_those_of_any_request() -> None:
    async with warmed(Reply(200, b"fine")) as (server, client, url):
        for body in (b'{"a":1}', b"x" * 200_000):
            heard = Heard()
            assert send(client, url, heard, body) is not None
            await heard.end()
            await client.request("POST", url, headers=HEADERS, body=body)
            one, other = server.requests[-2:]
            assert (one.method, one.target, one.headers, one.body) == (other.method, other.target, other.headers, body)
        assert server.connections == 1


async def test_headers_that_were_changed_in_their_place_are_sent() -> None:
    async with warmed(Reply(200, b"fine")) as (server, client, url):
        headers = dict(HEADERS)
        for token in ("Bearer one", "Bearer two", "Bearer two"):
            headers["authorization"] = token
            heard = Heard()
            assert client.send_now(url, headers=headers, body=b"{}", timeouts=LIMITS, listener=heard) is not None
            await heard.end()
            assert server.requests[-1].headers["authorization"] == token


async def test_headers_that_cannot_be_sent_hold_no_connection() -> None:
    async with warmed(Reply(200, b"fine")) as (server, client, url):
        bad = {"x": "a\r\nevil: b"}
        with pytest.raises(Exception, match="header"):
            client.send_now(url, headers=bad, body=b"{}", timeouts=LIMITS, listener=Heard())
        host = host_of(client)
        assert (host.active, len(host.idle), len(server.requests)) == (0, 1, 1)


@pytest.mark.parametrize("framing", ["length", "chunked", "close"])
async def test_a_body_is_heard_as_it_comes(framing: Any) -> None:
    parts: list[Part] = [part for piece in (b"one", b"two", b"three") for part in (piece, 0.02)]
    async with warmed(Stream(parts, framing=framing)) as (_, client, url):
        heard = Heard()
        assert send(client, url, heard) is not None
        exchange = await heard.end()
        assert (heard.body, exchange.done, exchange.error) == (b"onetwothree", True, None)
        assert heard.calls >= 3
        host = client._hosts  # pyright: ignore[reportPrivateUsage]
        assert [(one.active, len(one.idle)) for one in host.values()] == ([] if framing == "close" else [(0, 1)])


async def test_the_first_byte_the_next_and_the_whole_have_their_time() -> None:
    held = Stream([b"one"], finish=False, end="hang")
    for step, limits, phase, limit in (
        (BlackHole(), Timeouts(1.0, 0.1, 9.0, None, 1.0), "first_byte", 0.1),
        (held, Timeouts(1.0, 9.0, 9.0, 0.1, 1.0), "total", 0.1),
        (held, Timeouts(1.0, 9.0, 9.0, None, 1.0), "idle", 0.05),
    ):
        async with warmed(step) as (server, client, url):
            heard = Heard()
            exchange = send(client, url, heard, limits=limits)
            assert exchange is not None
            if phase == "idle":
                while not heard.body:
                    await asyncio.sleep(0.001)
                exchange.expect(0.05, "idle")
            await heard.end()
            error = exchange.error
            assert isinstance(error, TransportTimeout) and error.phase == phase and f"within {limit} s" in str(error)
            async with asyncio.timeout(PATIENCE):
                await server.wait(open=0)


async def test_who_expects_nothing_is_not_hurried() -> None:
    go = asyncio.Event()
    async with warmed(Stream([b"one", go, b"two"])) as (_, client, url):
        heard = Heard()
        exchange = send(client, url, heard, limits=Timeouts(1.0, 0.2, 0.2, None, 1.0))
        assert exchange is not None
        while not heard.body:
            await asyncio.sleep(0.001)
        exchange.expect(None, "idle")
        await asyncio.sleep(0.4)
        go.set()
        await heard.end()
        assert heard.body == b"onetwo"


async def test_what_is_not_taken_makes_the_server_wait() -> None:
    sent = 0

    def endless() -> Any:
        nonlocal sent
        yield b"HTTP/1.1 200 OK\r\n\r\n"
        for _ in range(2000):
            sent += 60_000
            yield b"x" * 60_000

    async with warmed(Raw(endless())) as (_, client, url):
        heard = Heard(take=False)
        exchange = send(client, url, heard)
        assert exchange is not None
        async with asyncio.timeout(PATIENCE):
            while not exchange.paused:
                await asyncio.sleep(0.001)
        await asyncio.sleep(0.1)
        assert HIGH_WATER < exchange.size < 2 * HIGH_WATER and sent < 32 << 20
        taken = exchange.take()
        assert taken is not None and len(taken) > HIGH_WATER and not exchange.paused
        exchange.abort(TransportError("enough"))
        assert not host_left(client)


def host_left(client: Client) -> int:
    return sum([host.active for host in client._hosts.values()])  # pyright: ignore[reportPrivateUsage]


async def test_too_much_is_told_once() -> None:
    async with warmed(Stream([b"x" * 600, 0.02, b"x" * 600]), max_body_bytes=1000) as (_, client, url):
        heard = Heard(take=False)
        exchange = send(client, url, heard)
        assert exchange is not None
        while exchange.size < 1200:
            await asyncio.sleep(0.001)
        calls = heard.calls
        with pytest.raises(BodyTooLarge):
            exchange.take()
        # Who takes it knows by that.
        assert heard.calls == calls and exchange.listener is None and not host_left(client)


async def test_who_gives_up_closes_the_connection_and_hears_nothing_more() -> None:
    async with warmed(BlackHole()) as (server, client, url):
        heard = Heard()
        exchange = send(client, url, heard)
        assert exchange is not None
        await server.wait(requests=2)
        exchange.abort(TransportError("enough"))
        async with asyncio.timeout(PATIENCE):
            await server.wait(open=0)
        assert heard.calls == 0 and not host_left(client)


@pytest.mark.parametrize("kind", ["closed", "reset"])
async def test_a_connection_that_was_dead_says_that_nothing_came(kind: str) -> None:
    step = Raw([], "fin") if kind == "closed" else Rst()
    async with warmed([step, Reply(200, b"fine")]) as (_, client, url):
        heard = Heard()
        assert send(client, url, heard) is not None
        exchange = await heard.end()
        assert isinstance(exchange.error, ProtocolError) and not exchange.started and not host_left(client)
        assert (await client.request("POST", url, headers=HEADERS, body=b"{}")).body == b"fine"


async def test_what_is_sound_before_a_broken_chunk_is_there() -> None:
    head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
    async with warmed(Raw([head, 0.02, b"3\r\none\r\n3\r\ntwo\r\nzz\r\n"], "hang")) as (_, client, url):
        heard = Heard(take=False)
        assert send(client, url, heard) is not None
        exchange = await heard.end()
        assert isinstance(exchange.error, ProtocolError)
        assert exchange.take() == b"onetwo"
        with pytest.raises(ProtocolError):
            exchange.take()


async def test_an_early_answer_to_an_upload_that_is_not_read_is_heard() -> None:
    loop = asyncio.get_running_loop()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.setblocking(False)
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
        async with Client(proxies={}) as client:
            asking = asyncio.ensure_future(client.request("POST", url, headers=HEADERS, body=b"{}"))
            sock, _ = await loop.sock_accept(listening)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            await loop.sock_recv(sock, 65_536)
            await loop.sock_sendall(sock, b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nwarm")
            assert (await asking).body == b"warm"
            # More than one request, so that the buffers of the system cannot take it.
            transport: Any = host_of(client).idle[0]._transport  # pyright: ignore[reportPrivateUsage]
            transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
            heard = Heard()
            assert send(client, url, heard, bytes(1 << 20)) is not None
            await loop.sock_recv(sock, 1000)
            await loop.sock_sendall(sock, b"HTTP/1.1 413 Too Large\r\ncontent-length: 2\r\n\r\nno")
            exchange = await heard.end()
            assert (exchange.status, heard.body, exchange.done) == (413, b"no", True)
            # Half a request is still to be sent there: nobody else may use that connection.
            assert not client._hosts  # pyright: ignore[reportPrivateUsage]
            sock.close()


async def test_many_at_once_share_the_limit_with_requests_that_wait() -> None:
    def echo(request: Received) -> Step:
        return Reply(200, request.body)

    async with FaultServer(echo) as server, Client(proxies={}, max_per_host=4) as client:
        url = f"{server.url}/v1"
        told: list[bytes] = []

        async def ask(number: int) -> None:
            body = b"%d" % number
            heard = Heard()
            if number % 2 and send(client, url, heard, body) is not None:
                await heard.end()
                told.append(heard.body)
            else:
                told.append((await client.request("POST", url, headers=HEADERS, body=body)).body)
            assert told[-1] == body
            assert host_left(client) <= 4

        await ask(0)
        await asyncio.gather(*[ask(number) for number in range(1, 200)])
        assert sorted(map(int, told)) == list(range(200)) and server.connections <= 4
        assert (host_of(client).active, len(host_of(client).idle)) == (0, server.open)
