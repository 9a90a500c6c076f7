"""Run blocking file work on a few daemon threads of our own.

Not the loop's default executor: every `asyncio.run` waits for that one at its end, so one hung network mount would keep
the program from leaving.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import queue
import threading
from collections.abc import Callable
from typing import TypeVar

from windlass.core import clock

__all__ = ["Stop", "in_thread"]

_log = logging.getLogger(__name__)
_T = TypeVar("_T")
#: Disks answer few requests at once; more threads would only queue inside the kernel.
_MOST = 4
#: Seconds that a cancelled call waits for its thread, so that what it did is settled before the caller goes on.
_SETTLE = 2.0


class Stop:
    """Tell the work on a thread that nobody waits for it any more; work looks at `asked` before it changes anything."""

    __slots__ = ("asked",)

    def __init__(self) -> None:
        self.asked = False


class _Pool:
    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._threads = 0
        self._busy = 0

    def submit(self, job: Callable[[], None]) -> None:
        with self._lock:
            self._busy += 1
            if self._busy > self._threads < _MOST:
                self._threads += 1
                threading.Thread(target=self._work, name=f"windlass-files-{self._threads}", daemon=True).start()
        self._jobs.put(job)

    def _work(self) -> None:
        while True:
            job = self._jobs.get()
            job()
            # What the job holds (a workspace's root handle) must not live on while this thread idles.
            del job
            with self._lock:
                self._busy -= 1


_pool = _Pool()


def _after_fork() -> None:
    global _pool
    _pool = _Pool()  # threads do not survive a fork, the old queue would never be served


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


async def in_thread(work: Callable[[], _T], *, stop: Stop | None = None) -> _T:
    """Run `work` on a thread and return what it returns or raise what it raises.

    When cancelled, sets `stop.asked` and waits up to 2 s for the work to end before CancelledError goes on.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[_T] = loop.create_future()

    def job() -> None:
        try:
            value = work()
        except BaseException as error:  # a thread has nobody above it: the waiting task gets it, whatever it is
            _tell(loop, future.set_exception, error)
        else:
            _tell(loop, future.set_result, value)

    _pool.submit(job)
    try:
        # wait() leaves the future alone when cancelled: the thread settles it later without a complaint.
        await asyncio.wait([future])
    except asyncio.CancelledError:
        if stop is not None:
            stop.asked = True
        future.add_done_callback(_seen)
        with contextlib.suppress(TimeoutError):
            async with clock.deadline(_SETTLE):
                await asyncio.wait([future])
        raise
    return future.result()


def _tell(loop: asyncio.AbstractEventLoop, settle: Callable[[_T], object], value: _T) -> None:
    try:
        loop.call_soon_threadsafe(settle, value)
    except RuntimeError:
        _log.debug("file work ended after its event loop was closed")


def _seen(future: asyncio.Future[_T]) -> None:
    if not future.cancelled():
        future.exception()  # marks it retrieved: the caller was cancelled and will not ask
