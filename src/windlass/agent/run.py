"""One run: the task that turns the loop, the events it makes, and the handle its caller holds.

A run lives in a task of its own. `emit` calls the sinks inline and puts the event into a plain deque for the one
reader; the reader is woken once per batch, not once per event, so a delta costs about a microsecond. Whoever stops
reading slows the run down at a bound; whoever never reads costs nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable, Generator, Sequence
from typing import Any

import msgspec

from windlass.agent.hooks import HookScope
from windlass.agent.ledger import GRACE, Ledger, settled
from windlass.agent.plan import RunPlan, RunResult
from windlass.agent.policy import Decider, narrowed
from windlass.agent.stats import RunStats
from windlass.core import clock
from windlass.core.errors import AbortedError, WindlassError
from windlass.core.events import DURABLE, Event, RunFinished, StopReason
from windlass.core.messages import Message, user
from windlass.core.ports import Sink, Workspace
from windlass.core.usage import Usage

__all__ = ["Run"]

log = logging.getLogger("windlass.agent")
_set = msgspec.structs.force_setattr
#: How many unread events stop the model's stream until the reader has caught up.
UNREAD = 1024


class Run:
    """The handle of a run: await it for the result, or enter it and read its events.

    ::

        result = await agent.run("…")
        async with agent.run("…") as run:
            async for event in run: ...
        run.result

    It starts when it is awaited, entered or read. Awaiting raises what made it fail; `abort()` makes it AbortedError.
    Leaving `async with` before the end cancels the run; the responses that are due are written first.
    """

    __slots__ = (
        "_closing",
        "_forget",
        "_listening",
        "_loop",
        "_main",
        "_parent_id",
        "_reader",
        "_reading",
        "_result",
        "_seq",
        "_sinks",
        "_stuck",
        "_task",
        "_unread",
        "_waiting",
        "_writer",
        "abort_reason",
        "approver",
        "behavior",
        "conversation",
        "depth",
        "family",
        "follow_up_queue",
        "hooks",
        "id",
        "plan",
        "policy",
        "refused",
        "spent_cost",
        "spent_tokens",
        "stats",
        "steer_queue",
        "stopping",
        "tool_counts",
        "turn_id",
    )

    def __init__(self, plan: RunPlan, main: Callable[[Run], Any]) -> None:
        self.plan = plan
        self.id = clock.new_id()
        parent: Run | None = plan.parent
        self.depth: int = 0 if parent is None else parent.depth + 1
        self.hooks = plan.hooks.scoped(
            HookScope(self.id, plan.ledger.session_id, self.depth, plan.agent_name, plan.state, plan.workspace),
            None if parent is None else parent.hooks,
        )
        self.behavior = plan.behavior
        self.policy: Decider = plan.policy if parent is None else narrowed(plan.policy, parent.policy)
        self.approver, self.conversation = plan.approver, plan.conversation
        self.stats = RunStats(run_id=self.id, name=plan.agent_name or "")
        self.tool_counts = self.stats.tool_counts
        #: What this run and all its descendants used so far, also those that still run; cost in nano-dollars.
        self.spent_tokens = self.spent_cost = 0
        #: Sub-agents that were started anywhere below the topmost run.
        self.family: list[int] = [0] if parent is None else parent.family
        self.refused: list[str] = []
        self.turn_id = ""
        # Lists: an empty deque takes 600 bytes, and thousands of these wait at once.
        self.steer_queue: list[Message] = []
        self.follow_up_queue: list[Message] = []
        self.stopping: StopReason | None = None
        self.abort_reason = ""
        self._main = main
        # What a child tells goes up to its parents, whose listeners hear it there: once.
        above: tuple[Sink, ...] = () if parent is None else parent._listening
        self._sinks = plan.sinks if not above else tuple([sink for sink in plan.sinks if sink not in above])
        self._listening = (*above, *self._sinks)
        self._seq = 0
        self._parent_id: str | None = plan.parent.id if plan.parent is not None else None
        self._unread: deque[Event] | None = None
        self._reading = False
        self._closing = False
        self._stuck: AbortedError | None = None
        self._waiting: asyncio.Future[RunResult] | None = None
        self._reader: asyncio.Future[None] | None = None
        self._writer: asyncio.Future[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[RunResult] | None = None
        self._result: RunResult | None = None
        self._forget: Callable[[], None] | None = None

    # -- what the loop and the tools use ---------------------------------------------------------------------------

    @property
    def session_id(self) -> str:
        """The session this run belongs to."""
        return self.plan.ledger.session_id

    @property
    def ledger(self) -> Ledger:
        """Where the run's durable facts go."""
        return self.plan.ledger

    @property
    def workspace(self) -> Workspace | None:
        """Where tools act."""
        return self.plan.workspace

    @property
    def state(self) -> dict[str, Any]:
        """What tools and hooks keep as long as the session lives."""
        return self.plan.state

    def emit(self, event: Event) -> None:
        """Stamp an event and tell everyone; sinks that raise are reported, never obeyed."""
        self._seq += 1
        _set(event, "run_id", self.id)
        _set(event, "seq", self._seq)
        _set(event, "time", clock.now_ns())
        if self._parent_id is not None:
            _set(event, "parent_run_id", self._parent_id)
        self.deliver(event)

    def deliver(self, event: Event) -> None:
        """Hand a stamped event (ours or a child's) to sinks, reader and parent."""
        for sink in self._sinks:
            try:
                sink(event)
            except Exception as error:
                log.warning("Sink %r raised %s: %s", sink, type(error).__name__, error)
        if self._unread is not None:
            self._unread.append(event)
            if self._reader is not None and not self._reader.done():
                self._reader.set_result(None)
        if self.plan.parent is not None:
            self.plan.parent.deliver(event)

    async def record(self, kept: Sequence[Event], shown: Sequence[Event] | None = None) -> None:
        """Keep durable events, then tell everyone; `shown` are fuller forms of the same facts for readers."""
        durable = [event for event in kept if type(event) in DURABLE]
        try:
            if durable:
                await self.plan.ledger.commit(durable)
        except asyncio.CancelledError:
            self._tell(kept if shown is None else shown)
            raise
        self._tell(kept if shown is None else shown)

    def _tell(self, events: Sequence[Event]) -> None:
        for event in events:
            self.emit(event)

    @property
    def congested(self) -> bool:
        """True when the reader is far behind."""
        return self._unread is not None and len(self._unread) >= UNREAD

    async def caught_up(self) -> None:
        """Wait until the reader has read something."""
        while self.congested:
            self._writer = asyncio.get_running_loop().create_future()
            await self._writer

    def spend(self, usage: Usage, cost: int | None) -> None:
        """Count what an answer used for this run and every run above it: their budgets bound all of them together."""
        at: Run | None = self
        while at is not None:
            at.spent_tokens += usage.total_tokens
            at.spent_cost += cost or 0
            at = at.plan.parent

    def steering(self) -> bool:
        """Tell whether a steering message waits."""
        return bool(self.steer_queue)

    async def run_child(self, spec: dict[str, Any]) -> Any:
        """Run a sub-agent for a tool call."""
        return await self.plan.spawn(self, spec)

    # -- what the caller uses --------------------------------------------------------------------------------------

    def start(self) -> Run:
        """Start the run, if it has not started yet; needs a running event loop."""
        if self._task is None:
            self._loop = asyncio.get_running_loop()
            self.plan.on_start(self)
            self._task = self._loop.create_task(self._drive())
            if self.plan.signal is not None:
                self._forget = self.plan.signal.subscribe(self.abort)
        return self

    @property
    def done(self) -> bool:
        """True once the result is there."""
        return self._result is not None

    @property
    def result(self) -> RunResult:
        """The result of a finished run. Raises AbortedError or the run's error as awaiting would."""
        if self._result is None:
            raise WindlassError("The run has not finished.", hint="Await it, or read its events to the end.")
        if self._result.error is not None:
            raise self._result.error
        return self._result

    def steer(self, message: str | Message) -> None:
        """Say something while it runs: delivered between tool calls, before the next request. From any thread."""
        self._queue(self.steer_queue, message)

    def follow_up(self, message: str | Message) -> None:
        """Say something for when the agent would rest; the run goes on with it. From any thread."""
        self._queue(self.follow_up_queue, message)

    def _queue(self, queue: list[Message], message: str | Message) -> None:
        if self.done:
            raise WindlassError("The run has finished.", hint="Start another run with this message.")
        queue.append(user(message) if isinstance(message, str) else message)

    def abort(self, reason: str = "") -> None:
        """Stop the run: asks no more, stops the tools, writes the responses that are due. From any task or thread."""
        self._stop("cancelled", reason)

    def _stop(self, why: StopReason, reason: str = "") -> None:
        if self._closing or self.stopping is not None:
            return
        self.stopping, self.abort_reason = why, reason
        if self._loop is not None and self._task is not None:
            self._loop.call_soon_threadsafe(self._halt, self._task)

    def _halt(self, task: asyncio.Task[RunResult]) -> None:
        task.cancel()
        # Whoever waits must get away, whatever a tool or a provider does with its cancellation.
        timer = task.get_loop().call_later(2 * GRACE, self._let_go)
        task.add_done_callback(lambda _: timer.cancel())

    def _let_go(self) -> None:
        log.warning("Run %s does not stop: a tool or a provider ignores its cancellation.", self.id)
        self._stuck = AbortedError(f"The run was aborted, but something in it does not stop ({self.abort_reason}).")
        for waiting in (self._waiting, self._reader):
            if waiting is not None and not waiting.done():
                waiting.set_exception(self._stuck)

    def __await__(self) -> Generator[Any, None, RunResult]:
        return self._wait().__await__()

    async def _wait(self) -> RunResult:
        task = self.start()._task
        assert task is not None
        if not self._reading:
            self._drop_unread()
        await self._join(task)
        return self.result

    def _drop_unread(self) -> None:
        self._unread = None
        if self._writer is not None and not self._writer.done():
            self._writer.set_result(None)

    async def _join(self, task: asyncio.Task[RunResult]) -> None:
        """Wait for the task; when the waiter is cancelled, stop the run, wait for its clean-up, and pass it on."""
        if self._stuck is not None:
            raise self._stuck
        self._waiting = asyncio.shield(task)
        try:
            await self._waiting
        except asyncio.CancelledError:
            if task.cancelled():
                raise
            self._stop("cancelled", "the caller's task was cancelled")
            await settled(_ignore(task))
            raise

    async def __aenter__(self) -> Run:
        self._unread = deque()
        return self.start()

    async def __aexit__(self, *exc: object) -> None:
        task = self._task
        if task is not None and not task.done():
            self._stop("cancelled", "its context was left before the end")
            self._drop_unread()
            await settled(_ignore(task))

    def __aiter__(self) -> AsyncIterator[Event]:
        self._reading = True
        if self._unread is None:
            self._unread = deque()
        self.start()
        return self

    async def __anext__(self) -> Event:
        unread = self._unread
        if unread is None:
            raise StopAsyncIteration
        while not unread:
            task = self._task
            assert task is not None
            if self._stuck is not None:
                raise self._stuck
            if task.done():
                task.result()
                if self._result is not None and self._result.error is not None:
                    raise self._result.error
                raise StopAsyncIteration
            self._reader = asyncio.get_running_loop().create_future()
            try:
                await self._reader
            except asyncio.CancelledError:
                self._stop("cancelled", "the reader's task was cancelled")
                await settled(_ignore(task))
                raise
            finally:
                self._reader = None
        event = unread.popleft()
        if self._writer is not None and not self._writer.done() and len(unread) < UNREAD // 2:
            self._writer.set_result(None)
        return event

    # -- the task --------------------------------------------------------------------------------------------------

    async def _drive(self) -> RunResult:
        begun = clock.monotonic()
        timer: asyncio.TimerHandle | None = None
        if self.behavior.run_seconds is not None:
            timer = asyncio.get_running_loop().call_later(
                self.behavior.run_seconds, self._stop, "budget", "run_seconds"
            )
        turning: Any = None
        error: BaseException | None = None
        try:
            if self.plan.prepare is not None:
                await self.plan.prepare()
            turning = self._main(self)
            if self.stopping is None:
                await turning.main()
        except asyncio.CancelledError as cancelled:
            # Without a reason of ours the event loop is shutting down and cancels everything.
            error = cancelled if self.stopping is None else None
        except Exception as failure:
            error = failure
        self._closing = True
        if timer is not None:
            timer.cancel()
        if self._forget is not None:
            self._forget()
        self.stats.elapsed_ns = int((clock.monotonic() - begun) * 1e9)
        try:
            await settled(self._finish(turning, error))
        except asyncio.CancelledError:
            # A stop that arrived while the end was being written changes nothing any more.
            if self.stopping is None:
                raise
        finally:
            self.plan.on_end(self)
            if self._reader is not None and not self._reader.done():
                self._reader.set_result(None)
        if isinstance(error, asyncio.CancelledError):
            raise error
        assert self._result is not None
        return self._result

    async def _finish(self, turning: Any, error: BaseException | None) -> None:
        turning = turning or _Unturned()
        stop: StopReason = turning.stop_reason
        if error is not None:
            stop = "cancelled" if isinstance(error, asyncio.CancelledError) else "error"
        elif self.stopping is not None:
            stop = self.stopping
            if stop == "cancelled":
                error = AbortedError(f"The run was aborted{': ' + self.abort_reason if self.abort_reason else ''}.")
        try:
            await turning.close(stop)
            await self.record([self._finished(stop, error, turning.output)])
        except Exception as failure:
            # The ledger cannot take the end either; the first failure is the one that matters.
            error = error if error is not None and not isinstance(error, AbortedError) else failure
            stop = "error"
            self.emit(self._finished(stop, error, None))
        self.stats.stop_reason = stop
        await turning.done(stop)
        message: Message | None = turning.last
        self._result = RunResult(
            run_id=self.id,
            session_id=self.session_id,
            text=message.text if message is not None else "",
            stop_reason=stop,
            stats=self.stats,
            message=message,
            output=turning.output,
            error=error if not isinstance(error, asyncio.CancelledError) else AbortedError("The program is stopping."),
            refused=tuple(self.refused),
            detail=turning.detail or self.abort_reason,
            workspace=self.plan.workspace,
        )

    def _finished(self, stop: StopReason, error: BaseException | None, output: Any) -> RunFinished:
        data: dict[str, Any] | None = None
        if isinstance(error, WindlassError):
            data = error.to_dict()
        elif error is not None:
            data = {"code": "error", "message": f"{type(error).__name__}: {error}"}
        return RunFinished(
            stop_reason=stop,
            usage=self.stats.usage,
            cost=self.stats.cost,
            turns=self.stats.turns,
            error=data,
            output=output if output is None or isinstance(output, (dict, list, str, int, float)) else _plain(output),
        )


class _Unturned:
    """What is left of a run that failed before its first step."""

    stop_reason: StopReason = "error"
    output: Any = None
    last: Message | None = None
    detail = ""

    async def close(self, stop: StopReason) -> None:
        """Nothing is open."""

    async def done(self, stop: StopReason) -> None:
        """Nobody was told of a beginning."""


def _plain(value: Any) -> Any:
    dump = getattr(value, "model_dump", None)
    return dump(mode="json") if dump is not None else msgspec.to_builtins(value)


async def _ignore(task: asyncio.Task[Any]) -> None:
    """Wait for a task that is being stopped, at most twice `GRACE` seconds, and leave its outcome to its owner."""
    _, pending = await asyncio.wait([task], timeout=2 * GRACE)
    if pending:
        log.warning("A run does not stop: a tool or a provider ignores its cancellation. Its session stays busy.")
