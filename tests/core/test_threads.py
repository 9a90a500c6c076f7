"""Blocking calls beside the loop: results, refusals, and callers that leave."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import threading
import time
from typing import NoReturn

import pytest

from windlass.core import clock
from windlass.core.errors import ToolError
from windlass.core.threads import Pool, run_in_thread

_VAR: contextvars.ContextVar[str] = contextvars.ContextVar("_VAR", default="")


async def _until(condition: object) -> None:
    assert callable(condition)
    async with clock.deadline(20):
        while not condition():
            await asyncio.sleep(0.001)


async def test_results_errors_and_context_travel() -> None:
    _VAR.set("here")
    assert await run_in_thread(lambda: (_VAR.get(), threading.current_thread().daemon)) == ("here", True)
    with pytest.raises(ZeroDivisionError):
        await run_in_thread(lambda: 1 // 0)


@pytest.mark.parametrize("stop", [SystemExit("bye"), StopIteration("bye"), KeyboardInterrupt("bye")])
async def test_what_would_kill_the_loop_is_a_plain_error(stop: BaseException) -> None:
    def leave() -> NoReturn:
        raise stop

    with pytest.raises(RuntimeError, match=f"raised {type(stop).__name__}: bye"):
        await run_in_thread(leave)


def test_usable_from_any_loop() -> None:
    threads = {asyncio.run(run_in_thread(threading.get_ident)) for _ in range(3)}
    assert threading.get_ident() not in threads


async def test_at_most_size_calls_run_at_once() -> None:
    pool, lock, now, most = Pool(3), threading.Lock(), 0, 0

    def work() -> None:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        time.sleep(0.005)
        with lock:
            now -= 1

    await asyncio.gather(*[pool.run(work) for _ in range(20)])
    assert (now, most) == (0, 3)


async def test_r58_a_call_that_never_returns_is_abandoned_and_its_place_taken() -> None:
    pool, release, started = Pool(1), threading.Event(), threading.Event()

    def hang() -> None:
        started.set()
        release.wait()

    hung = asyncio.create_task(pool.run(hang))
    await _until(started.is_set)
    queued = asyncio.create_task(pool.run(lambda: 1))
    await asyncio.sleep(0)
    hung.cancel()
    with pytest.raises(asyncio.CancelledError):
        await hung
    assert await queued == 1
    assert pool.abandoned == 1
    release.set()
    await _until(lambda: pool.abandoned == 0)
    assert await pool.run(lambda: 2) == 2


async def test_a_call_that_waits_for_a_thread_is_dropped_when_cancelled() -> None:
    pool, release, started = Pool(1), threading.Event(), threading.Event()
    ran: list[int] = []

    def hang() -> None:
        started.set()
        release.wait()

    hung = asyncio.create_task(pool.run(hang))
    await _until(started.is_set)
    queued = asyncio.create_task(pool.run(ran.append, 1))
    await asyncio.sleep(0)
    queued.cancel()
    with pytest.raises(asyncio.CancelledError):
        await queued
    release.set()
    await hung
    await pool.run(ran.append, 2)
    assert ran == [2]
    assert pool.abandoned == 0


async def test_too_many_abandoned_calls_refuse_new_ones() -> None:
    pool, release = Pool(1, abandoned=2), threading.Event()
    for _ in range(2):
        with pytest.raises(TimeoutError):
            async with clock.deadline(0.05):
                await pool.run(release.wait)
    assert pool.abandoned == 2
    with pytest.raises(ToolError, match="2 abandoned calls are still running"):
        await pool.run(lambda: 1)
    release.set()
    await _until(lambda: pool.abandoned == 0)
    assert await pool.run(lambda: 1) == 1


def test_a_loop_may_end_while_its_call_runs() -> None:
    release = threading.Event()
    pool = Pool(1)

    async def leave() -> None:
        with pytest.raises(TimeoutError):
            async with clock.deadline(0.02):
                await pool.run(release.wait)

    asyncio.run(leave())
    release.set()
    assert asyncio.run(pool.run(lambda: 3)) == 3


async def test_an_error_that_meets_a_cancellation_is_not_reported_as_forgotten() -> None:
    reported: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))
    for _ in range(200):
        task = asyncio.create_task(run_in_thread(lambda: 1 // 0))
        await asyncio.sleep(0)
        time.sleep(0.0001)
        task.cancel()
        with pytest.raises((asyncio.CancelledError, ZeroDivisionError)):
            await task
    gc.collect()
    await asyncio.sleep(0)
    assert reported == []
