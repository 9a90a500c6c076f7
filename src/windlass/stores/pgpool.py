"""A few threads with a PostgreSQL connection each: the event loops never wait for the server."""

from __future__ import annotations

import asyncio
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Hashable
from contextlib import suppress
from typing import Any, NamedTuple, TypeVar

from windlass.core.errors import StoreError
from windlass.stores.pgline import SETUP_SECONDS, Isolation, Line, Outage, Work
from windlass.stores.pgurl import Address

__all__ = ["Pool"]

T = TypeVar("T")
#: Seconds after which an idle connection is closed.
IDLE_SECONDS = 30.0


class _Ended(NamedTuple):
    value: Any
    error: BaseException | None


class _Job(NamedTuple):
    run: Callable[[Line], Any]
    key: Hashable
    loop: asyncio.AbstractEventLoop
    waiter: asyncio.Future[_Ended]

    def deliver(self, ended: _Ended) -> None:
        # A loop that was closed meanwhile has nobody waiting.
        with suppress(RuntimeError):
            self.loop.call_soon_threadsafe(self._settle, ended)

    def _settle(self, ended: _Ended) -> None:
        if not self.waiter.done():
            self.waiter.set_result(ended)


class _Workers:
    """The threads. A job with a key waits for those with the same key that were handed in before it."""

    def __init__(self, address: Address, size: int, timeout: float, patience: float, setup: Work[None] | None) -> None:
        self.pid = os.getpid()
        outage = Outage()
        self._make_line = lambda: Line(address, timeout, patience, outage)
        self._where, self._size, self._setup = address.where, size, setup
        self._jobs: deque[_Job] = deque()
        self._busy: set[Hashable] = set()
        self._wake = threading.Condition()
        self._setting_up = threading.Lock()
        self._closing = False
        #: Threads that take jobs, those of them that have none now, and those that still may hold a connection.
        self._threads = self._idle = self._alive = 0
        self._closers: list[asyncio.Future[None]] = []

    def put(self, job: _Job) -> None:
        with self._wake:
            if self._closing:
                raise StoreError(f"The database {self._where} is closed.", hint="Make a new one.")
            self._jobs.append(job)
            if self._idle < len(self._jobs) and self._threads < self._size:
                self._start(job)
            else:
                self._wake.notify()

    def stop_soon(self) -> None:
        """Take no more jobs, finish those that there are, and end the threads."""
        with self._wake:
            self._closing = True
            self._wake.notify_all()

    async def stop(self) -> None:
        """Do the same and wait until every connection is closed."""
        closer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        with self._wake:
            self._closing = True
            self._wake.notify_all()
            if self._alive == 0:
                return
            self._closers.append(closer)
        await closer

    def _start(self, job: _Job) -> None:
        try:
            threading.Thread(target=self._work, name="windlass-postgres", daemon=True).start()
        except RuntimeError:
            if self._threads == 0:
                self._jobs.remove(job)
                raise StoreError("The system starts no more threads.", hint="Raise the process limit.") from None
            return
        self._threads += 1
        self._idle += 1
        self._alive += 1

    def _work(self) -> None:
        line = self._make_line()
        try:
            while (job := self._take()) is not None:
                ended = self._run(line, job)
                # Before anybody hears of it: who asks for more at once finds a thread that is free.
                with self._wake:
                    self._idle += 1
                    self._busy.discard(job.key)
                    self._wake.notify_all()
                job.deliver(ended)
                # Nothing of the last job may live on while this thread waits for the next.
                del job, ended
        finally:
            line.close()
            with self._wake:
                self._alive -= 1
                if self._alive == 0:
                    for closer in self._closers:
                        with suppress(RuntimeError):
                            closer.get_loop().call_soon_threadsafe(_finish, closer)

    def _take(self) -> _Job | None:
        expired = False
        with self._wake:
            while True:
                for place, job in enumerate(self._jobs):
                    if job.key is None or job.key not in self._busy:
                        del self._jobs[place]
                        if job.waiter.cancelled():
                            break
                        self._busy.add(job.key)
                        self._idle -= 1
                        return job
                else:
                    # What is left waits for its key: the thread that holds it comes back.
                    if expired or self._closing:
                        self._threads -= 1
                        self._idle -= 1
                        return None
                    expired = not self._wake.wait(IDLE_SECONDS)

    def _run(self, line: Line, job: _Job) -> _Ended:
        try:
            with self._setting_up:
                if self._setup is not None:
                    line.unit(self._setup, "READ COMMITTED", True, SETUP_SECONDS)
                    self._setup = None
            return _Ended(job.run(line), None)
        except BaseException as error:  # it belongs to whoever waits; the thread goes on
            return _Ended(None, error)


def _finish(closer: asyncio.Future[None]) -> None:
    if not closer.done():
        closer.set_result(None)


class Pool:
    """Up to `size` connections to a database, each made when needed, closed when idle.

    `timeout`, in seconds, bounds a statement; `patience` bounds the tries of one unit of work after its first failure.
    `setup` is run once, before anything else. May be used from several event loops and threads, and after a fork.
    """

    def __init__(
        self,
        address: Address,
        *,
        size: int = 4,
        timeout: float = 30.0,
        patience: float = 10.0,
        setup: Work[None] | None = None,
    ) -> None:
        self._make = lambda: _Workers(address, size, timeout, patience, setup)
        self._workers: _Workers | None = None
        self._finalizer: weakref.finalize[..., Pool] | None = None
        self._lock = threading.Lock()
        self._closed = False
        self._where = address.where

    async def submit(
        self,
        work: Work[T],
        *,
        isolation: Isolation = "SERIALIZABLE",
        idempotent: bool = False,
        key: Hashable = None,
        limit: float | None = None,
    ) -> T:
        """Run a unit of work in one of the threads and return what it returns, once that is committed.

        Units with the same `key` run one after the other in the order of the calls. Cancelled before it began, it never
        runs; later, it is kept wholly or not at all. `limit` replaces `timeout`.
        """
        loop = asyncio.get_running_loop()

        def run(line: Line) -> T:
            return line.unit(work, isolation, idempotent, limit)

        job = _Job(run, key, loop, loop.create_future())
        self._threads().put(job)
        ended = await job.waiter
        if ended.error is not None:
            raise ended.error
        return ended.value

    async def close(self) -> None:
        """Finish what was asked for, and close every connection."""
        with self._lock:
            self._closed = True
            workers, self._workers = self._workers, None
        if workers is not None and workers.pid == os.getpid():
            await workers.stop()

    def _threads(self) -> _Workers:
        with self._lock:
            if self._closed:
                raise StoreError(f"The database {self._where} is closed.", hint="Make a new one.")
            if self._workers is not None and self._workers.pid != os.getpid():
                # A forked child has none of the threads, and must not touch connections that its parent uses.
                if self._finalizer is not None:
                    self._finalizer.detach()
                _inherited.append(self._workers)
                self._workers = None
            if self._workers is None:
                self._workers = self._make()
                self._finalizer = weakref.finalize(self, self._workers.stop_soon)
            return self._workers


_inherited: list[_Workers] = []
