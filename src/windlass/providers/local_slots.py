"""The slots of a model on this machine: so many requests at a time, the others wait in order, and not too many of them.

The engine would queue on its own side, where nobody could count who waits, refuse one more, or let one go.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque

from windlass.core.errors import OverloadedError

__all__ = ["NoRoom", "Slots"]

#: Seconds after which a client that found the queue full may ask again.
_AGAIN = 1.0


class NoRoom(OverloadedError):
    """Report a model on this machine without room for a request: its queue is full, or there is too little memory.

    Nothing is wrong with the model: no breaker counts it, and another target is asked instead.
    """


class _Waiter:
    """A request in the queue: it belongs to a loop, and is granted its slot by whoever gives one back."""

    __slots__ = ("future", "granted", "loop")

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.future: asyncio.Future[None] = self.loop.create_future()
        self.granted = False

    def wake(self) -> None:
        if not self.future.done():
            self.future.set_result(None)


class Slots:
    """Let `count` requests go on at a time; at most `queue` wait, first come first served. Usable from any loop."""

    def __init__(self, name: str, count: int, queue: int) -> None:
        self.name, self.count, self.queue = name, count, queue
        self._busy = 0
        self._waiting: deque[_Waiter] = deque()
        self._lock = threading.Lock()

    @property
    def busy(self) -> int:
        """How many slots are taken."""
        return self._busy

    @property
    def waiting(self) -> int:
        """How many requests wait for one."""
        return len(self._waiting)

    async def take(self) -> None:
        """Take a slot, waiting for one where need be; `leave` gives it back. Raises NoRoom when the queue is full."""
        with self._lock:
            if self._busy < self.count:
                self._busy += 1
                return
            if len(self._waiting) >= self.queue:
                raise NoRoom(
                    f"{self.name} answers {self._busy} requests and {len(self._waiting)} wait; it takes no more now.",
                    provider="local", model=self.name, status=503, retry_after=_AGAIN,
                    hint="Ask again later, or raise slots or queue of [providers.local].",
                )  # fmt: skip
            waiter = _Waiter()
            self._waiting.append(waiter)
        try:
            await waiter.future
        except BaseException:
            with self._lock:
                if not waiter.granted:
                    self._waiting.remove(waiter)
            if waiter.granted:
                self.leave()  # the slot came in the moment in which nobody wanted it any more
            raise

    def leave(self) -> None:
        """Give a slot back: the next one in the queue has it at once, so that nobody can come in between."""
        with self._lock:
            while self._waiting:
                waiter = self._waiting.popleft()
                waiter.granted = True
                try:
                    waiter.loop.call_soon_threadsafe(waiter.wake)
                except RuntimeError:
                    continue  # its loop is gone, and whoever waited with it
                return
            self._busy -= 1
