"""Compare the CPU that HTTP clients spend: per small JSON POST, and per server-sent event of a stream.

    python bench/http_client.py [--rounds 7] [--requests 2000] [--streams 20] [--events 250] [--uvloop]

"bare" is a socket read by an asyncio.Protocol without any HTTP: what the event loop alone costs. The upstream is a
process of its own on loopback, such a protocol too. Only the client process's CPU time is counted. Rounds of the
clients are interleaved and the median is shown, so that a noisy neighbour hits all alike.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import multiprocessing
import statistics
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from multiprocessing.connection import Connection as Pipe
from typing import Any, cast

import aiohttp
import httpx

from windlass.core.http import Client

REPLY = b'{"id":"x","choices":[{"index":0,"message":{"role":"assistant","content":"Hello there."}}],"usage":{"n":3}}'
EVENT = b'data: {"id":"x","choices":[{"index":0,"delta":{"content":" word"},"finish_reason":null}]}\n\n'
BODY = b'{"model":"m","messages":[{"role":"user","content":"' + b"Say hello. " * 20 + b'"}],"stream":false}'
HEADERS = {"content-type": "application/json", "authorization": "Bearer 0123456789abcdef", "x-request-id": "abc-123"}
ANSWER = (
    b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ndate: Fri, 01 Jan 2027 00:00:00 GMT\r\nserver: upstream\r\n"
    b"x-request-id: abc-123\r\ncontent-length: %d\r\n\r\n%b" % (len(REPLY), REPLY)
)
STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
CHUNK = b"%x\r\n%b\r\n" % (len(EVENT), EVENT)


class Upstream(asyncio.Protocol):
    """Answers POST /json at once; POST /sse/N/GAP_US with N events, one write each, GAP_US microseconds apart."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's are not subclasses
        self.buffer = b""

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        head, found, rest = self.buffer.partition(b"\r\n\r\n")
        if not found:
            return
        low = head.lower()
        start = low.find(b"content-length:")
        size = int(low[start + 15 :].split(b"\r\n", 1)[0]) if start >= 0 else 0
        if len(rest) < size:
            return
        self.buffer = rest[size:]
        path = head.split(b" ", 2)[1].split(b"/")
        if path[1] == b"json":
            self.transport.write(ANSWER)
        else:
            self.transport.write(STREAM_HEAD)
            asyncio.get_running_loop().call_later(0.001, self.send, int(path[2]), int(path[3]) / 1e6)

    def send(self, left: int, gap: float) -> None:
        if self.transport.is_closing():
            return
        self.transport.write(CHUNK if left else b"0\r\n\r\n")
        if left:
            asyncio.get_running_loop().call_later(gap, self.send, left - 1, gap)


def serve(pipe: Pipe) -> None:
    async def main() -> None:
        server = await asyncio.get_running_loop().create_server(Upstream, "127.0.0.1", 0)
        pipe.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main())


class Windlass:
    def __init__(self, client: Client) -> None:
        self.client = client

    async def post(self, url: str) -> None:
        response = await self.client.request("POST", url, headers=HEADERS, body=BODY)
        assert response.body == REPLY

    async def stream(self, url: str) -> int:
        total = 0
        async with self.client.stream("POST", url, headers=HEADERS, body=BODY) as response:
            async for piece in response:
                total += len(piece)
        return total


class Aiohttp:
    def __init__(self, client: aiohttp.ClientSession) -> None:
        self.client = client

    async def post(self, url: str) -> None:
        async with self.client.post(url, headers=HEADERS, data=BODY) as response:
            assert await response.read() == REPLY

    async def stream(self, url: str) -> int:
        total = 0
        async with self.client.post(url, headers=HEADERS, data=BODY) as response:
            async for piece in response.content.iter_any():
                total += len(piece)
        return total


class Httpx:
    def __init__(self, client: httpx.AsyncClient) -> None:
        self.client = client

    async def post(self, url: str) -> None:
        response = await self.client.post(url, headers=HEADERS, content=BODY)
        assert response.content == REPLY

    async def stream(self, url: str) -> int:
        total = 0
        async with self.client.stream("POST", url, headers=HEADERS, content=BODY) as response:
            async for piece in response.aiter_raw():
                total += len(piece)
        return total


class BareProtocol(asyncio.Protocol):
    """Collects bytes until they end as expected: no HTTP at all, the floor under every client on this loop."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.waiter: asyncio.Future[None] | None = None
        self.total = 0
        self.last = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's are not subclasses

    def data_received(self, data: bytes) -> None:
        self.total += len(data)
        self.last = data
        if self.waiter is not None:
            self.waiter.set_result(None)
            self.waiter = None

    async def until(self, end: bytes) -> int:
        self.total, self.last = 0, b""
        while not self.last.endswith(end):
            self.waiter = self.loop.create_future()
            await self.waiter
        return self.total


class Bare:
    def __init__(self) -> None:
        self.idle: list[BareProtocol] = []

    async def ask(self, url: str, end: bytes) -> int:
        host, _, path = url.removeprefix("http://").partition("/")
        if self.idle:
            protocol = self.idle.pop()
        else:
            name, port = host.split(":")
            _, protocol = await asyncio.get_running_loop().create_connection(BareProtocol, name, int(port))
        lines = "".join([f"{name}: {value}\r\n" for name, value in HEADERS.items()])
        head = f"POST /{path} HTTP/1.1\r\nhost: {host}\r\n{lines}content-length: {len(BODY)}\r\n\r\n"
        protocol.transport.write(head.encode() + BODY)
        total = await protocol.until(end)
        self.idle.append(protocol)
        return total

    async def post(self, url: str) -> None:
        assert await self.ask(url, REPLY) == len(ANSWER)

    async def stream(self, url: str) -> int:
        events = int(url.split("/")[-2])
        total = await self.ask(url, b"0\r\n\r\n")
        assert total == len(STREAM_HEAD) + events * len(CHUNK) + 5
        return events * len(EVENT)


@asynccontextmanager
async def bare_client() -> AsyncGenerator[Any]:
    client = Bare()
    yield client
    for protocol in client.idle:
        protocol.transport.abort()


@asynccontextmanager
async def windlass_client() -> AsyncGenerator[Any]:
    async with Client(proxies={}) as client:
        yield Windlass(client)


@asynccontextmanager
async def aiohttp_client() -> AsyncGenerator[Any]:
    async with aiohttp.ClientSession(auto_decompress=False) as client:
        yield Aiohttp(client)


@asynccontextmanager
async def httpx_client() -> AsyncGenerator[Any]:
    async with httpx.AsyncClient(trust_env=False) as client:
        yield Httpx(client)


CLIENTS: dict[str, Callable[[], AbstractAsyncContextManager[Any]]] = {
    "windlass": windlass_client,
    "aiohttp": aiohttp_client,
    "httpx": httpx_client,
    "bare": bare_client,
}


async def measure_posts(make: Callable[[], AbstractAsyncContextManager[Any]], url: str, count: int) -> float:
    """Return CPU microseconds per POST, 8 at a time over kept-alive connections."""
    async with make() as client:

        async def worker(times: int) -> None:
            for _ in range(times):
                await client.post(f"{url}/json")

        await asyncio.gather(*[worker(5) for _ in range(8)])
        gc.collect()
        began = time.process_time()
        await asyncio.gather(*[worker(count // 8) for _ in range(8)])
        return (time.process_time() - began) / (count // 8 * 8) * 1e6


async def measure_events(
    make: Callable[[], AbstractAsyncContextManager[Any]], url: str, streams: int, events: int, gap: int
) -> float:
    """Return CPU microseconds per event, all streams at once."""
    async with make() as client:
        await client.stream(f"{url}/sse/5/{gap}")
        gc.collect()
        began = time.process_time()
        totals = await asyncio.gather(*[client.stream(f"{url}/sse/{events}/{gap}") for _ in range(streams)])
        spent = time.process_time() - began
        # httpx is read raw, so that chunk framing is taken off in all three.
        assert set(totals) == {events * len(EVENT)}, totals
        return spent / (streams * events) * 1e6


def run(main: Any, uvloop: bool) -> float:
    if uvloop:
        import uvloop as loops

        return float(loops.run(main))
    return float(asyncio.run(main))


def table(title: str, figures: dict[str, list[float]]) -> None:
    print(f"\n{title}")
    base = statistics.median(figures["aiohttp"])
    print(f"{'client':<10}{'median us':>11}{'min us':>9}{'max us':>9}{'x aiohttp':>11}")
    for name, values in figures.items():
        middle = statistics.median(values)
        print(f"{name:<10}{middle:>11.1f}{min(values):>9.1f}{max(values):>9.1f}{middle / base:>11.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare the CPU time of HTTP clients.")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--requests", type=int, default=2000, help="POSTs of one measurement")
    parser.add_argument("--streams", type=int, default=20)
    parser.add_argument("--events", type=int, default=250, help="events of one stream")
    parser.add_argument("--gap", type=int, default=5000, help="microseconds between the events of a stream")
    parser.add_argument("--clients", default=",".join(CLIENTS))
    parser.add_argument("--uvloop", action="store_true")
    args = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    mine, theirs = context.Pipe()
    process = context.Process(target=serve, args=(theirs,), daemon=True)
    process.start()
    url = f"http://127.0.0.1:{mine.recv()}"
    names = args.clients.split(",")
    posts: dict[str, list[float]] = {name: [] for name in names}
    events: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(args.rounds):
        for name in names:
            posts[name].append(run(measure_posts(CLIENTS[name], url, args.requests), args.uvloop))
            job = measure_events(CLIENTS[name], url, args.streams, args.events, args.gap)
            events[name].append(run(job, args.uvloop))
    process.terminate()
    process.join()
    loop = "uvloop" if args.uvloop else "asyncio"
    table(f"Small JSON POST, 8 at a time, CPU of the client process ({loop})", posts)
    table(f"One event of {args.streams} streams, {args.gap} us apart, CPU of the client process ({loop})", events)


if __name__ == "__main__":
    main()
