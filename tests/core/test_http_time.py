"""Deadlines of the HTTP client on a clock that jumps: idle, progress, drips."""

from __future__ import annotations

import asyncio

import pytest

from windlass.core.errors import TransportTimeout
from windlass.core.http import Client, Timeouts
from windlass.testing.clock import FakeClock, run_with_fake_clock
from windlass.testing.faults import FaultServer, Raw, Stream, drip, sse

PINGS = [part for _ in range(100) for part in (b": ping\n\n", 1.0)]


def test_r11_pings_do_not_reset_the_progress_clock() -> None:
    fake = FakeClock()

    async def main() -> None:
        script = Stream([*sse("a"), 2.0, *sse("b"), *PINGS])
        async with FaultServer([script]) as server, Client(proxies={}, idle_timeout=10.0) as client:
            events = 0
            with pytest.raises(TransportTimeout, match="though bytes did") as caught:
                async with client.stream("GET", server.url, idle_on="progress") as answer:
                    async for piece in answer:
                        if b"data:" in piece:
                            events += 1
                            answer.mark_progress()
            assert caught.value.phase == "idle" and events == 2

    run_with_fake_clock(main, fake)
    assert 12 <= fake.elapsed < 13


def test_r11_a_slow_reader_is_not_an_idle_server() -> None:
    async def main() -> None:
        script = Stream([*sse("a"), 20.0, *sse("b"), 60.0, *sse("c")])
        async with FaultServer([script]) as server, Client(proxies={}, idle_timeout=45.0) as client:
            for mode in ("bytes", "progress"):
                async with client.stream("GET", server.url, idle_on=mode) as answer:
                    count = 0
                    async for piece in answer:
                        count += piece.count(b"data:")
                        if b"b" in piece:
                            await asyncio.sleep(40)
                assert count == 3

    run_with_fake_clock(main)


def test_idle_timeout_counts_from_the_last_byte() -> None:
    fake = FakeClock()

    async def main() -> None:
        parts = [*sse("a"), 4.0, *sse("b"), 4.0, *sse("c"), 20.0, *sse("d")]
        async with FaultServer([Stream(parts)]) as server, Client(proxies={}, idle_timeout=5.0) as client:
            got = b""
            with pytest.raises(TransportTimeout) as caught:
                async with client.stream("GET", server.url) as answer:
                    async for piece in answer:
                        got += piece
            assert caught.value.phase == "idle" and got.count(b"data:") == 3

    run_with_fake_clock(main, fake)
    assert 13 <= fake.elapsed < 14


DRIP = Stream(drip(b"x" * 1000, 1.0))


@pytest.mark.parametrize(
    ("limits", "phase", "seconds"),
    [
        (Timeouts(total=100.0), "total", 100),
        (Timeouts(idle=20.0, min_rate=10.0), "idle", 20),
        (Timeouts(idle=None, min_rate=10.0), "idle", 60),
    ],
    ids=["total", "min_rate", "min_rate without idle"],
)
def test_r12_drip(limits: Timeouts, phase: str, seconds: int) -> None:
    fake = FakeClock()

    async def main() -> None:
        async with FaultServer([DRIP]) as server, Client(proxies={}) as client:
            with pytest.raises(TransportTimeout) as caught:
                await client.request("GET", server.url, timeouts=limits)
            assert caught.value.phase == phase
            await server.wait(open=0)

    run_with_fake_clock(main, fake)
    assert seconds <= fake.elapsed < seconds + 2


def test_r12_drip_of_a_head() -> None:
    fake = FakeClock()

    async def main() -> None:
        head = b"HTTP/1.1 200 OK\r\nx-slow: " + b"y" * 500 + b"\r\n\r\n"
        async with FaultServer([Raw(drip(head, 1.0))]) as server, Client(proxies={}) as client:
            with pytest.raises(TransportTimeout) as caught:
                await client.request("GET", server.url)
            assert caught.value.phase == "first_byte"

    run_with_fake_clock(main, fake)
    assert 60 <= fake.elapsed < 62


def test_r12_a_fast_enough_stream_passes_min_rate() -> None:
    async def main() -> None:
        parts = [part for _ in range(60) for part in (b"x" * 100, 1.0)]
        async with FaultServer([Stream(parts)]) as server, Client(proxies={}) as client:
            answer = await client.request("GET", server.url, timeouts=Timeouts(idle=20.0, min_rate=50.0))
            assert len(answer.body) == 6000

    run_with_fake_clock(main)
