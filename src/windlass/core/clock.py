"""Time, ids and randomness: the one place they come from, so that a run can be replayed exactly.

`use(clock)` replaces the source for a test or a replay. Waiting goes through `deadline` and `sleep`, which follow the
running event loop's own clock: `windlass.testing.FakeClock` turns that one too.
"""

from __future__ import annotations

import asyncio
import os
import time
from _random import Random  # the C core of `random`, whose own import costs five times this module's
from collections.abc import Generator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

__all__ = ["Clock", "deadline", "monotonic", "new_id", "now_ns", "random", "rfc3339", "sleep", "use"]

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's base 32: no i, l, o, u
_DIGITS2 = [a + b for a in _ALPHABET for b in _ALPHABET]


class Clock:
    """Read the system's clocks and randomness. Subclass it to replace them."""

    def __init__(self, seed: int | None = None) -> None:
        self._rng = Random(seed if seed is not None else int.from_bytes(os.urandom(16), "big"))
        self._last_id = 0
        self._front, self._start = -1, ""

    def now_ns(self) -> int:
        """Return UTC in nanoseconds since 1970."""
        return time.time_ns()

    def monotonic(self) -> float:
        """Return seconds of a clock that never goes back."""
        return time.monotonic()

    def random(self) -> float:
        """Return a float in [0, 1)."""
        return self._rng.random()

    def new_id(self) -> str:
        """Return a new 26-character id: 48 bits of milliseconds, then 80 random bits; ids sort by time of making.

        Within one process ids strictly increase, also when the clock is set back.
        """
        now = (self.now_ns() // 1_000_000 & 0xFFFF_FFFF_FFFF) << 80
        last = self._last_id
        # Same millisecond, or a clock that went back: stay above the last one by a random step.
        value = now | self._rng.getrandbits(80) if now > last else last + 1 + self._rng.getrandbits(40)
        self._last_id = value
        front, digits = value >> 80, _DIGITS2
        if front != self._front:
            # 128 bits in 26 digits: the first 48 bits and half of a digit's worth stay for a whole millisecond.
            self._front = front
            self._start = "".join([digits[value >> shift & 1023] for shift in range(120, 79, -10)])
        low = value & 0xFFFF_FFFF_FFFF_FFFF_FFFF
        return (
            f"{self._start}{digits[low >> 70]}{digits[low >> 60 & 1023]}{digits[low >> 50 & 1023]}"
            f"{digits[low >> 40 & 1023]}{digits[low >> 30 & 1023]}{digits[low >> 20 & 1023]}"
            f"{digits[low >> 10 & 1023]}{digits[low & 1023]}"
        )


_clock = Clock()
#: The current clock's functions; of the system's clock itself, since they are asked many times per request.
_now_ns, _monotonic = time.time_ns, time.monotonic


def now_ns() -> int:
    """Return UTC in nanoseconds since 1970 from the current clock."""
    return _now_ns()


def monotonic() -> float:
    """Return seconds of a clock that never goes back."""
    return _monotonic()


def random() -> float:
    """Return a float in [0, 1) from the current clock."""
    return _clock.random()


def new_id() -> str:
    """Return a new sortable id from the current clock."""
    return _clock.new_id()


@contextmanager
def use(clock: Clock) -> Generator[Clock]:
    """Replace the clock for the whole process inside a `with` block."""
    before = _clock
    _set(clock)
    try:
        yield clock
    finally:
        _set(before)


def _set(clock: Clock) -> None:
    global _clock, _now_ns, _monotonic
    _clock = clock
    plain = type(clock) is Clock
    _now_ns = time.time_ns if plain else clock.now_ns
    _monotonic = time.monotonic if plain else clock.monotonic


def deadline(seconds: float | None) -> asyncio.Timeout:
    """Bound an `async with` block to `seconds` (None: no bound); raises `TimeoutError` when it passes.

    The one way to wait with a limit: `asyncio.wait_for` can lose a cancellation on Python 3.11.
    """
    return asyncio.timeout(seconds)


async def sleep(seconds: float) -> None:
    """Wait `seconds` on the running event loop."""
    await asyncio.sleep(seconds)


def rfc3339(ns: int) -> str:
    """Return nanoseconds since 1970 as RFC 3339 UTC with microseconds; years outside 1-9999 are clamped.

    >>> rfc3339(0)
    '1970-01-01T00:00:00.000000Z'
    """
    micros = max(-62_135_596_800_000_000, min(ns // 1000, 253_402_300_799_999_999))
    moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=micros)
    return moment.replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"
