"""Blocking work beside the event loop: a bounded set of daemon threads, shared by all loops of the process.

Not asyncio's default executor: every `asyncio.run` waits for that one at its end, so one hung call would hang the
program. Here a cancelled or timed-out caller leaves at once; its thread is abandoned, its result dropped, and another
thread takes its place.
"""

from __future__ import annotations

import asyncio
import contextvars
import os
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from windlass.core.errors import ToolError

__all__ = ["MAX_ABANDONED", "MAX_THREADS", "Pool", "run_in_thread"]

P = ParamSpec("P")
T = TypeVar("T")

#: Calls that run at once; further ones wait their turn.
MAX_THREADS = 32
#: Abandoned calls that may still be running before new ones are refused.
MAX_ABANDONED = 128
#: Seconds after which an idle thread ends.
IDLE_SECONDS = 10.0


class _Job:
    """One call: what to run, and where its outcome goes. `state` changes under the pool's lock only."""

    __slots__ = ("call", "future", "loop", "state")

    def __init__(self, call: Callable[[], Any]) -> None:
        self.call = call
        self.loop = asyncio.get_running_loop()
        self.future: asyncio.Future[Any] = self.loop.create_future()
        self.state = "queued"  # -> running -> done, or abandoned from either of the first two

    def finish(self, result: Any, error: BaseException | None) -> None:
        """Hand the outcome to the loop that waits; nobody waits when it is closed."""
        try:
            self.loop.call_soon_threadsafe(self._settle, result, error)
        except RuntimeError:
            return

    def _settle(self, result: Any, error: BaseException | None) -> None:
        if self.future.done():
            return
        if error is None:
            self.future.set_result(result)
        else:
            self.future.set_exception(error)


class Pool:
    """At most `size` threads that run calls, made when needed; `abandoned` more may be stuck in calls nobody awaits."""

    def __init__(self, size: int = MAX_THREADS, abandoned: int = MAX_ABANDONED) -> None:
        self._size, self._max_abandoned = size, abandoned
        self._jobs: deque[_Job] = deque()
        self._wake = threading.Condition(threading.Lock())
        self._threads = self._idle = self._abandoned = 0

    @property
    def abandoned(self) -> int:
        """Calls that still run although nobody waits for them."""
        return self._abandoned

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call `function` in a thread, with this task's context variables, and return what it returns.

        Cancelling drops a call that waits for a thread and abandons one that runs. Raises what it raises (SystemExit
        and StopIteration as RuntimeError: a future cannot carry them), and ToolError when too many abandoned calls
        are still running.
        """
        context = contextvars.copy_context()
        job = _Job(lambda: context.run(function, *args, **kwargs))
        self._submit(job)
        try:
            return await job.future
        finally:
            if job.state != "done":
                self._abandon(job)
            elif job.future.done() and not job.future.cancelled():
                # Retrieved, also when a cancellation came in the same moment: else asyncio logs it as forgotten.
                job.future.exception()

    def _submit(self, job: _Job) -> None:
        with self._wake:
            if self._abandoned >= self._max_abandoned:
                raise ToolError(
                    f"{self._abandoned} abandoned calls are still running in threads; no more are started.",
                    hint="Some function blocks for ever: give it a timeout of its own.",
                )
            self._jobs.append(job)
            if self._idle >= len(self._jobs):
                self._wake.notify()
            elif self._threads < self._size and not self._spawn() and not self._threads:
                self._jobs.remove(job)
                raise ToolError("The system starts no more threads.", hint="Raise the process limit (ulimit -u).")

    def _spawn(self) -> bool:
        self._threads += 1
        try:
            threading.Thread(target=self._work, name="windlass-call", daemon=True).start()
        except RuntimeError:
            self._threads -= 1
            return False
        return True

    def _abandon(self, job: _Job) -> None:
        with self._wake:
            if job.state == "queued":
                self._jobs.remove(job)
            elif job.state == "running":
                # Its thread no longer counts: another may take the place.
                self._abandoned += 1
                self._threads -= 1
                if self._jobs:
                    self._spawn()
            if job.state != "done":
                job.state = "abandoned"

    def _take(self) -> _Job | None:
        with self._wake:
            while not self._jobs:
                self._idle += 1
                signalled = self._wake.wait(IDLE_SECONDS)
                self._idle -= 1
                if not signalled and not self._jobs:
                    self._threads -= 1
                    return None
            job = self._jobs.popleft()
            job.state = "running"
            return job

    def _work(self) -> None:
        while (job := self._take()) is not None:
            result: Any = None
            error: BaseException | None = None
            try:
                result = job.call()
            except (SystemExit, StopIteration, KeyboardInterrupt) as stop:
                error = RuntimeError(f"the function raised {type(stop).__name__}: {stop}")
                error.__cause__ = stop
            except BaseException as raised:
                error = raised
            with self._wake:
                if job.state == "abandoned":
                    self._abandoned -= 1
                    return
                job.state = "done"
            job.finish(result, error)
            # Nothing of the last call may live on while this thread waits for the next.
            del job, result, error


_pool = Pool()
if hasattr(os, "register_at_fork"):
    # A forked child has none of our threads, whatever the counters say.
    os.register_at_fork(after_in_child=_pool.__init__)


async def run_in_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a blocking `function` in one of our daemon threads; see `Pool.run`. Usable from any loop."""
    return await _pool.run(function, *args, **kwargs)
