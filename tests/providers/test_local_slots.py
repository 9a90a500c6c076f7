"""Slots: how many at a time, in which order, and that none is ever lost."""

from __future__ import annotations

import asyncio
import contextlib
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from windlass.core import clock
from windlass.core.errors import OverloadedError
from windlass.providers.local_slots import NoRoom, Slots


async def test_so_many_at_a_time_and_the_others_in_their_order() -> None:
    slots, order = Slots("m", 2, 10), list[str]()
    gates = {name: asyncio.Event() for name in "abcde"}

    async def ask(name: str) -> None:
        await slots.take()
        order.append(name)
        try:
            await gates[name].wait()
        finally:
            slots.leave()

    async with asyncio.TaskGroup() as group:
        for name in gates:
            group.create_task(ask(name))
        await clock.sleep(0)
        assert (order, slots.busy, slots.waiting) == (["a", "b"], 2, 3)
        for gone, then in (("b", "c"), ("a", "d"), ("d", "e")):
            gates[gone].set()
            async with clock.deadline(5):
                while order[-1] != then:
                    await clock.sleep(0)
        gates["c"].set()
        gates["e"].set()
    assert (order, slots.busy, slots.waiting) == (list("abcde"), 0, 0)


async def test_a_full_queue_refuses_with_a_typed_error() -> None:
    slots = Slots("qwen", 1, 1)
    await slots.take()
    waiting = asyncio.create_task(slots.take())
    await clock.sleep(0)
    with pytest.raises(NoRoom, match="qwen answers 1 requests and 1 wait") as caught:
        await slots.take()
    error = caught.value
    assert isinstance(error, OverloadedError) and (error.status, error.retry_after) == (503, 1.0)
    slots.leave()
    await waiting
    slots.leave()
    assert (slots.busy, slots.waiting) == (0, 0)


async def test_who_gives_up_waiting_leaves_the_queue_also_in_the_moment_of_its_turn() -> None:
    slots = Slots("m", 1, 5)
    await slots.take()
    first, second = asyncio.create_task(slots.take()), asyncio.create_task(slots.take())
    await clock.sleep(0)
    first.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await first
    assert slots.waiting == 1
    slots.leave()  # grants it to the second, which is cancelled before it wakes
    second.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await second
    assert (slots.busy, slots.waiting) == (0, 0)


def test_a_loop_that_is_gone_does_not_keep_its_turn() -> None:
    slots = Slots("m", 1, 5)
    asyncio.run(slots.take())
    loop = asyncio.new_event_loop()
    waiting = loop.create_task(slots.take())
    loop.call_soon(loop.stop)
    loop.run_forever()
    loop.close()
    assert slots.waiting == 1
    slots.leave()
    assert (slots.busy, slots.waiting) == (0, 0)
    # The loop ended without its task, as only a test does.
    waiting._log_destroy_pending = False  # pyright: ignore[reportAttributeAccessIssue]
    waiting.get_coro().close()  # pyright: ignore[reportOptionalMemberAccess]


def test_loops_on_several_threads_share_the_slots() -> None:
    slots, most, lock = Slots("m", 3, 100), list[int](), threading.Lock()

    async def ask() -> None:
        for _ in range(40):
            await slots.take()
            with lock:
                most.append(slots.busy)
            await clock.sleep(0)
            slots.leave()

    async def several() -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(4):
                group.create_task(ask())

    threads = [threading.Thread(target=lambda: asyncio.run(several())) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(most) == 3 * 4 * 40 and max(most) <= 3
    assert (slots.busy, slots.waiting) == (0, 0)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["ask", "leave", "cancel"]), st.integers(0, 9)), max_size=40))
def test_no_slot_is_lost_whatever_comes_and_goes(steps: list[tuple[str, int]]) -> None:
    async def play() -> None:
        slots, held = Slots("m", 2, 3), list[asyncio.Task[None]]()
        for what, index in steps:
            ready = [task for task in held if task.done()]
            if what == "ask":
                held.append(asyncio.create_task(slots.take()))
            elif what == "leave" and ready:
                held.remove(ready[index % len(ready)])
                slots.leave()
            elif what == "cancel" and held:
                held[index % len(held)].cancel()
            if index % 2:
                await clock.sleep(0)
            assert slots.busy <= 2 and slots.waiting <= 3
            for task in [task for task in held if task.done()]:
                if task.cancelled() or task.exception() is not None:
                    held.remove(task)
        while held:
            for task in [task for task in held if task.done()]:
                held.remove(task)
                if not task.cancelled() and task.exception() is None:
                    slots.leave()
            await clock.sleep(0)
        assert (slots.busy, slots.waiting) == (0, 0)

    asyncio.run(play())
