"""The pool: bounded, first come first served, and nothing left behind by a cancellation at any point."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from windlass.core.errors import ConfigError, TransportError, TransportTimeout
from windlass.core.http import Client, Timeouts
from windlass.testing.clock import FakeClock, run_with_fake_clock
from windlass.testing.faults import BlackHole, FaultServer, Part, Raw, Reply, Stream, sse

OK = Reply(200, b"fine")


def open_fds() -> int:
    return len(os.listdir("/proc/self/fd"))


async def test_200_concurrent_requests_over_5_connections_stay_in_order() -> None:
    async with FaultServer([OK]) as server, Client(proxies={}, max_per_host=5) as client:
        most = 0

        async def ask(number: int) -> None:
            nonlocal most
            await client.request("GET", f"{server.url}/{number}")
            most = max(most, server.open)

        await asyncio.gather(*[ask(number) for number in range(200)])
        assert server.connections == 5 and most == 5
        # Five at a time may overtake each other; nobody overtakes by more than that.
        order = [int(request.target[1:]) for request in server.requests]
        assert sorted(order) == list(range(200))
        assert all(abs(place - number) < 5 for place, number in enumerate(order))


async def test_one_connection_serves_strictly_in_order_and_newcomers_queue() -> None:
    gate = asyncio.Event()
    async with FaultServer([Stream([gate, b"x"]), OK]) as server, Client(proxies={}, max_per_host=1) as client:
        tasks = [asyncio.create_task(client.request("GET", f"{server.url}/{number}")) for number in range(50)]
        await server.wait(requests=1)
        tasks[7].cancel()
        gate.set()
        late: list[asyncio.Task[Any]] = []
        tasks[0].add_done_callback(
            lambda _: late.append(asyncio.create_task(client.request("GET", f"{server.url}/99")))
        )
        await asyncio.wait(tasks)
        await late[0]
        targets = [int(request.target[1:]) for request in server.requests]
        assert targets == [number for number in range(50) if number != 7] + [99]
        assert server.connections == 1


def test_pool_timeout() -> None:
    fake = FakeClock()

    async def main() -> None:
        async with FaultServer([BlackHole(), OK]) as server, Client(proxies={}, max_per_host=1) as client:
            first = asyncio.create_task(client.request("GET", server.url))
            await server.wait(requests=1)
            with pytest.raises(TransportTimeout, match="stayed in use") as caught:
                await client.request("GET", server.url)
            assert caught.value.phase == "pool" and not caught.value.sent and fake.elapsed >= 30
            limits = Timeouts(total=2.0)
            with pytest.raises(TransportTimeout) as caught:
                await client.request("GET", server.url, timeouts=limits)
            assert caught.value.phase == "total" and not caught.value.sent
            first.cancel()
            assert (await client.request("GET", server.url)).body == b"fine"

    run_with_fake_clock(main, fake)


def test_idle_connections_are_closed_in_time() -> None:
    async def main() -> None:
        hinted = Reply(200, b"", {"keep-alive": "timeout=5, max=100"})
        async with FaultServer([OK, OK, hinted, OK]) as server, Client(proxies={}, keepalive_seconds=20) as client:
            await client.request("GET", server.url)
            await asyncio.sleep(15)
            await client.request("GET", server.url)
            assert server.connections == 1
            await asyncio.sleep(21)
            assert server.open == 0
            await client.request("GET", server.url)
            await asyncio.sleep(4.5)
            assert server.open == 0, "closed before the server says it will"

    run_with_fake_clock(main)


async def test_idle_connections_are_bounded_and_used_last_in_first_out() -> None:
    async with FaultServer([OK]) as server, Client(proxies={}, max_per_host=8, max_idle_per_host=2) as client:
        await asyncio.gather(*[client.request("GET", server.url) for _ in range(8)])
        await server.wait(open=2)
        for _ in range(3):
            await client.request("GET", server.url)
        assert server.connections == 8 and len({request.connection for request in server.requests[8:]}) == 1


def test_belongs_to_one_loop() -> None:
    client = Client(proxies={})

    async def use() -> None:
        async with FaultServer([OK]) as server:
            await client.request("GET", server.url)

    async def use_and_close() -> None:
        await use()
        await client.aclose()

    asyncio.run(use_and_close())
    with pytest.raises(ConfigError, match="another event loop"):
        asyncio.run(use())


async def test_two_readers_of_one_answer_are_refused() -> None:
    async with FaultServer([Stream([*sse("a"), 3600.0])]) as server, Client(proxies={}) as client:
        async with client.stream("GET", server.url) as answer:
            await anext(answer.chunks())
            first = asyncio.create_task(answer.read())
            await asyncio.sleep(0)
            with pytest.raises(RuntimeError, match="Two tasks"):
                await answer.read()
        with pytest.raises(TransportError):
            await first


SLOW: list[Part] = [0.0, b"a", 0.0, b"b", 0.0, b"c", 0.0]
SLOW_HEAD = Raw([b"HTTP/1.1 200 OK\r\n", 0.0, 0.0, b"content-length: 4\r\n\r\nfi", 0.0, 0.0, b"ne"], end="keep")


async def _request(client: Client, url: str) -> None:
    await client.request("POST", url, body=b"x" * 300_000)


async def _stream(client: Client, url: str) -> None:
    async with client.stream("POST", url) as answer:
        async for _ in answer:
            await asyncio.sleep(0)


async def _by_name(client: Client, url: str) -> None:
    await client.request("GET", url.replace("127.0.0.1", "two.test"))


@pytest.mark.parametrize("work", [_request, _stream, _by_name], ids=lambda work: work.__name__)
@pytest.mark.parametrize("kept", [False, True], ids=["fresh", "kept"])
async def test_r70_cancel_at_every_turn_of_the_loop(
    work: Callable[[Client, str], Coroutine[Any, Any, None]], kept: bool
) -> None:
    async def resolve(host: str, port: int) -> list[str]:
        await asyncio.sleep(0)
        return ["127.0.0.1", "127.0.0.1"]

    fds = open_fds()
    finished = False
    for turns in range(400):
        # Two tasks want one slot: the second is cancelled while it queues, connects, sends, waits, reads.
        script = [OK, SLOW_HEAD] if kept else [SLOW_HEAD]
        async with FaultServer(script) as server, Client(proxies={}, max_per_host=1, resolve=resolve) as client:
            if kept:
                await client.request("GET", server.url)
            tasks = [asyncio.create_task(work(client, server.url)) for _ in range(2)]
            for _ in range(turns):
                await asyncio.sleep(0)
            tasks[turns % 2].cancel()
            done = await asyncio.gather(*tasks, return_exceptions=True)
            assert done[1 - turns % 2] is None, "the other one is not harmed"
            finished = done == [None, None]
            # The slot came back: the client still works, and serves the right body.
            assert (await client.request("GET", server.url)).body == b"fine"
            assert len(asyncio.all_tasks()) <= 1 + server.open
        if finished and turns % 2:
            break
    await asyncio.sleep(0)
    assert finished, "no turn was left to cancel at"
    assert open_fds() == fds


async def test_cancelled_request_closes_its_socket_at_once() -> None:
    async with FaultServer([BlackHole()]) as server, Client(proxies={}) as client:
        task = asyncio.create_task(client.request("GET", server.url))
        await server.wait(requests=1)
        fds = open_fds()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.sleep(0)
        assert open_fds() == fds - 1
        await server.wait(open=0)
