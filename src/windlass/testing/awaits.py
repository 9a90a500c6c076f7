"""Count every point at which any task waits, and do something at the k-th: cancel it, abort a run, raise.

The method is SQLite's: let the n-th operation fail, for n = 1, 2, 3 … until everything passes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import Any

__all__ = ["sweep", "watch_awaits"]


class _Counted:
    """A coroutine that reports each of its suspensions before it takes place."""

    def __init__(self, work: Any, on_wait: Callable[[], None]) -> None:
        self.work, self.on_wait = work, on_wait

    def __await__(self) -> Generator[Any, Any, Any]:
        inner = self.work.__await__() if not asyncio.iscoroutine(self.work) else self.work
        send: Any = None
        error: BaseException | None = None
        while True:
            try:
                waiting = inner.send(send) if error is None else inner.throw(error)
            except StopIteration as stop:
                return stop.value
            self.on_wait()
            send, error = None, None
            try:
                send = yield waiting
            except BaseException as raised:
                error = raised


def watch_awaits(loop: asyncio.AbstractEventLoop, at: int, action: Callable[[], None]) -> Callable[[], int]:
    """Call `action` when any task made from now on waits for the `at`-th time in all; returns a counter's reader."""
    count = 0

    def on_wait() -> None:
        nonlocal count
        count += 1
        if count == at:
            action()

    def factory(running: asyncio.AbstractEventLoop, work: Any, **options: Any) -> asyncio.Task[Any]:
        async def counted() -> Any:
            return await _Counted(work, on_wait)

        task = asyncio.Task(counted(), loop=running, **options)
        # A task cancelled before its first step never reaches the coroutine it was made for.
        task.add_done_callback(lambda _: work.close() if asyncio.iscoroutine(work) else None)
        return task

    loop.set_task_factory(factory)
    return lambda: count


async def sweep(
    scenario: Callable[[Callable[[Callable[[], None]], None]], Coroutine[Any, Any, None]],
    check: Callable[[int], Awaitable[None]],
    *,
    limit: int = 10_000,
) -> int:
    """Run `scenario` again and again, with its action at the first await, the second, … until it is never reached.

    The scenario is called with `arm`: it hands over the action to take. `check(k)` is awaited after each pass with the
    place at which the action was taken, and asserts what must hold. Returns the number of passes.
    """
    loop = asyncio.get_running_loop()
    before = loop.get_task_factory()
    for at in range(1, limit):
        fired = False
        actions: list[Callable[[], None]] = []

        def fire(actions: list[Callable[[], None]] = actions) -> None:
            nonlocal fired
            fired = True
            for action in actions:
                action()

        watch_awaits(loop, at, fire)
        try:
            await asyncio.create_task(scenario(actions.append))
        finally:
            loop.set_task_factory(before)
        await check(at)
        if not fired:
            return at
    raise AssertionError(f"the scenario still waits after {limit} awaits")
