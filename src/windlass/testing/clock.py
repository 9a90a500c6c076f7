"""A clock that jumps: waiting costs no time, and every run of a test sees the same times and ids."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from windlass.core import clock

__all__ = ["FakeClock", "run_with_fake_clock"]

T = TypeVar("T")


class FakeClock(clock.Clock):
    """Count time in steps of its own; `start_ns` is UTC nanoseconds, ids come from `seed`."""

    def __init__(self, start_ns: int = 1_700_000_000_000_000_000, seed: int = 0) -> None:
        super().__init__(seed)
        self._start_ns, self.elapsed = start_ns, 0.0

    def now_ns(self) -> int:
        """Return the fake UTC time; `elapsed` and jumps move it."""
        return self._start_ns + round(self.elapsed * 1e9)

    def monotonic(self) -> float:
        """Return the seconds that were waited."""
        return self.elapsed

    def jump(self, seconds: float) -> None:
        """Set the wall clock forward or back, as a person or NTP does; what is waited for does not notice."""
        self._start_ns += round(seconds * 1e9)


class _JumpingSelector(selectors.DefaultSelector):
    """When nothing is ready, moves the clock to the next timer instead of waiting for it."""

    fake: FakeClock

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if ready or timeout == 0:
            return ready
        if timeout is None:
            # No timer at all: a thread or a socket has to come first, in real time.
            return super().select(None)
        self.fake.elapsed += timeout
        return []


class _FakeLoop(asyncio.SelectorEventLoop):
    def __init__(self, fake: FakeClock) -> None:
        selector = _JumpingSelector()
        selector.fake = fake
        self._fake = fake
        super().__init__(selector)

    def time(self) -> float:
        return self._fake.elapsed


def run_with_fake_clock(main: Callable[[], Coroutine[Any, Any, T]], fake: FakeClock | None = None) -> T:
    """Run a coroutine on an event loop whose time jumps from timer to timer.

    For code that waits on timers and other tasks only; work in threads takes real time, in which the clock may run
    ahead of it.
    """
    fake = fake or FakeClock()
    with clock.use(fake), asyncio.Runner(loop_factory=lambda: _FakeLoop(fake)) as runner:
        return runner.run(main())
