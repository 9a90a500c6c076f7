"""The loop: ask the model, run the tools, until the agent rests.

One pass of `main` is one turn: steering messages, the request, its stream, the calls. What a turn decides is on record
before anything depends on it: the message with all its calls in one commit before a tool starts, each result as it
ends. The history is append-only and its wire form is kept (`Conversation.encoded`): turn 500 costs what turn 10 does.
"""

from __future__ import annotations

from typing import Any

from windlass.agent.answer import Answer
from windlass.agent.detector import EMPTY_NUDGE, LOOP_NUDGE, LoopDetector
from windlass.agent.dispatch import Dispatcher
from windlass.agent.lifecycle import begin_run, end_run
from windlass.agent.modes import Iterations
from windlass.agent.output import FINAL_TOOL
from windlass.agent.prepare import Preparation, wanted_output
from windlass.agent.run import Run
from windlass.core.errors import ContextExceededError, ProviderError, StreamInterrupted
from windlass.core.events import (
    BudgetExceeded,
    MessageAdded,
    Retry,
    StepFinished,
    StepStarted,
    StopReason,
    TurnStarted,
)
from windlass.core.items import Finish
from windlass.core.messages import Message, Text, user
from windlass.core.usage import NANO

__all__ = ["Loop"]

BROKEN = "Your answer was cut off by a broken connection. Continue exactly where it stopped."
BESIDE_FINAL = "Not run: the final answer was given in the same message."
_FINAL: dict[str, StopReason] = {"length": "max_tokens", "content_filter": "refusal", "refusal": "refusal"}


class Loop:
    """The state of one run between its turns."""

    __slots__ = (
        "behavior", "conversation", "detail", "detector", "dispatcher", "first_message", "hooks", "iterations", "last",
        "output", "plan", "prepare", "retries_left", "run", "stop_reason", "system", "tools", "turn_in_iteration",
        "wanted",
    )  # fmt: skip

    def __init__(self, run: Run) -> None:
        plan = run.plan
        self.run, self.plan, self.hooks, self.behavior = run, plan, run.hooks, plan.behavior
        self.conversation = plan.conversation
        self.first_message = 0
        self.stop_reason: StopReason = "end_turn"
        self.output: Any = None
        self.detail = ""
        self.last: Message | None = None
        self.system = plan.system
        mode = self.behavior
        self.iterations = Iterations(mode.loop_mode, mode.loop_until, mode.loop_max_turns)
        self.detector = LoopDetector(mode.loop_detector)
        self.retries_left = mode.stream_retries
        self.turn_in_iteration = 0
        self.wanted = wanted_output(plan)
        # Capabilities bring tools while it runs; without any, the agent's own mapping serves all its runs.
        self.tools = dict(plan.tools) if plan.capabilities else plan.tools
        self.dispatcher = Dispatcher(run, self.tools)
        self.prepare = Preparation(run, self.tools, self.wanted, self.iterations)

    # -- the run ---------------------------------------------------------------------------------------------------

    async def main(self) -> None:
        """Turn until the agent rests; sets `stop_reason`."""
        self.first_message = len(self.conversation.messages) + self.conversation.dropped
        self.system = await begin_run(self.run)
        if self.iterations.mode != "none":
            self.run.emit(StepStarted(name="iteration", index=1, total=self.iterations.limit))
        while True:
            await self._deliver(self.run.steer_queue, "steer")
            if self.turn_in_iteration >= self.behavior.max_turns:
                await self._limit("turns", self.turn_in_iteration, self.behavior.max_turns, "max_turns")
                return
            finish = await self._turn()
            if finish is None:
                continue
            if await self._over_budget() or await self._rest(finish):
                return

    async def _say(self, text: str | Message, source: str) -> None:
        """Put a user message of the program's own into the conversation."""
        message = user(text) if isinstance(text, str) else text
        self.conversation.add(message)
        await self.run.record([MessageAdded(message=message, source=source)])

    async def _deliver(self, queue: Any, source: str) -> bool:
        delivered = False
        while queue:
            message = queue.pop(0)
            await self._say(message, source)
            if source == "steer" and self.hooks.wants("steer:inject"):
                await self.hooks.fire("steer:inject", message=message)
            delivered = True
        return delivered

    async def _limit(self, what: str, used: int, limit: int, reason: StopReason) -> None:
        self.stop_reason, self.detail = reason, f"{what}: {used} of {limit}"
        await self.run.record([BudgetExceeded(what=what, used=used, limit=limit)])
        if self.hooks.wants("budget:exceeded"):
            await self.hooks.fire("budget:exceeded", turn=self.run.stats.turns, bytes=used, budget=limit)

    async def _over_budget(self) -> bool:
        at: Run | None = self.run
        while at is not None:
            most, cost = at.behavior.max_total_tokens, at.behavior.max_cost
            if most is not None and at.spent_tokens >= most:
                await self._limit("tokens", at.spent_tokens, most, "budget")
                return True
            if cost is not None and at.spent_cost >= cost * NANO:
                await self._limit("cost", at.spent_cost, int(cost * NANO), "budget")
                return True
            at = at.plan.parent
        return False

    # -- one turn --------------------------------------------------------------------------------------------------

    async def _turn(self) -> Finish | None:
        """Ask once and run the calls; None when the answer broke off and was taken up as far as it came."""
        run = self.run
        number = len(run.stats.turn_usage) + 1
        self.turn_in_iteration += 1
        run.turn_id = f"{run.id}.{number}"
        request = await self.prepare.request(self.system, number)
        run.emit(TurnStarted(turn=number, model=self.plan.model_name))
        if self.hooks.wants("turn:before"):
            await self.hooks.fire("turn:before", turn=number, turn_id=run.turn_id, options=request)
        answer = Answer(run, number)
        finish: Finish | None = None
        try:
            finish = await answer.read(request)
            if self.prepare.context is not None:
                self.prepare.context.answered(finish.usage)
            await self._accept(finish, answer.cost(finish))
        except ProviderError as error:
            if not (await self._shortened(answer, error) or await self._broken(answer, error)):
                raise
        finally:
            await answer.finished(finish, self.last if finish is not None else None)
        return finish

    async def _accept(self, finish: Finish, cost: int | None) -> None:
        """Put the answer on record, then run its calls."""
        run, conversation = self.run, self.conversation
        message = self.last = conversation.rekeyed(finish.message)
        calls = message.tool_calls
        final = self._final_call(message)
        cut = finish.reason == "length"
        started = bool(calls) and not cut and final is None and self.dispatcher.starts_at_once(calls)
        model = finish.model if finish.model not in (None, self.plan.model) else None
        kept = MessageAdded(
            message=message, usage=finish.usage, cost=cost, model=model,
            response_id=finish.response_id, deferred=bool(calls) and not started,
        )  # fmt: skip
        conversation.add(message, started=started)
        conversation.count(finish.usage, cost)
        await run.record([kept])
        if final is not None:
            await self._take_final(message, final)
        elif cut and calls:
            # Text that ends in the middle can still parse: no call of a cut answer is run.
            await self.dispatcher.refuse(calls)
        elif calls:
            await self.dispatcher.run(calls, started=started)

    def _final_call(self, message: Message) -> int | None:
        if self.wanted is None or self.wanted.native:
            return None
        return next((at for at, call in enumerate(message.tool_calls) if call.name == FINAL_TOOL), None)

    async def _take_final(self, message: Message, at: int) -> None:
        """Take the answer that came as a call of `final_answer`; other calls beside it are not run."""
        assert self.wanted is not None
        final = message.tool_calls[at]
        value, problem = self.wanted.check(final.arguments)
        await self.dispatcher.refuse([call for call in message.tool_calls if call is not final], BESIDE_FINAL)
        if problem is None:
            await self.dispatcher.answer(final, "Accepted.")
            self.output = value
        else:
            await self.dispatcher.refuse([final], f"Validation error: {problem}")
            self.wanted.wrong(problem, str(final.arguments))

    async def _shortened(self, answer: Answer, error: ProviderError) -> bool:
        """Compact a history that the provider found too long; True when it is asked once more."""
        context = self.prepare.context
        if context is None or answer.partial or not isinstance(error, ContextExceededError):
            return False
        # The attempt that was refused took nothing from the turns that are allowed.
        self.turn_in_iteration -= 1
        return await context.overflowed()

    async def _broken(self, answer: Answer, error: ProviderError) -> bool:
        """Keep what a broken answer brought; True when the run goes on from there."""
        text = answer.partial
        if not text:
            return False
        error.partial = text
        message = Message("assistant", (Text(text),), finish_reason="interrupted")
        self.conversation.add(message)
        self.conversation.count(answer.usage, None)
        await self.run.record([MessageAdded(message=message, usage=answer.usage)])
        if self.retries_left <= 0 or not (error.retryable or isinstance(error, StreamInterrupted)):
            return False
        self.retries_left -= 1
        self.run.emit(Retry(message=str(error), attempt=1, provider=self.plan.provider.name))
        await self._say(BROKEN, "notice")
        return True

    # -- at rest ---------------------------------------------------------------------------------------------------

    async def _rest(self, finish: Finish) -> bool:
        """Decide whether the run is over after a turn; asks on where something is still to do."""
        message, run = self.last, self.run
        assert message is not None
        if message.tool_calls:
            return await self._after_tools(message)
        if run.steer_queue:
            return False
        if finish.reason in _FINAL:
            self.stop_reason = _FINAL[finish.reason]
            return True
        if not message.text.strip() and self.wanted is None:
            if self.detector.empty() == "nudge":
                await self._say(EMPTY_NUDGE, "notice")
                return False
            await self._limit("empty answers", 2, 2, "loop")
            return True
        self.detector.answered()
        if self.wanted is not None and self.output is None and await self._check_output(message):
            return False
        if (ask := self.iterations.next(message.text)) is not None:
            await self._iterate(ask)
            return False
        if self.iterations.outcome is not None:
            self.detail = self.iterations.describe()
            self.stop_reason = "max_turns" if self.iterations.outcome == "iterations" else "end_turn"
            run.emit(StepFinished(name="iteration", index=self.iterations.index, detail=self.detail))
        return not await self._deliver(run.follow_up_queue, "follow_up")

    async def _after_tools(self, message: Message) -> bool:
        if self.output is not None:
            return True
        results = self.conversation.messages[-1]
        verdict = self.detector.round(message, results if results.role == "tool" else None)
        if verdict == "stop":
            limit = self.behavior.loop_detector
            await self._limit("repeated calls", limit, limit, "loop")
            return True
        if verdict == "nudge":
            await self._say(LOOP_NUDGE, "notice")
        if (held := self.dispatcher.discipline) is not None:
            for text in await held.notices(self.run.stats.turns):
                await self._say(text, "notice")
        return False

    async def _check_output(self, message: Message) -> bool:
        """Check a structured answer; True when the model was asked again."""
        assert self.wanted is not None
        value, problem = self.wanted.check_text(message.text)
        if problem is None:
            self.output = value
            return False
        await self._say(self.wanted.wrong(problem, message.text), "notice")
        return True

    async def _iterate(self, ask: str) -> None:
        index = self.iterations.index
        self.run.emit(StepFinished(name="iteration", index=index - 1))
        self.run.emit(StepStarted(name="iteration", index=index, total=self.iterations.limit))
        self.turn_in_iteration = 0
        await self._say(ask, "loop")

    # -- the end ---------------------------------------------------------------------------------------------------

    async def close(self, stop: StopReason) -> None:
        """Answer what is open and ask the last hooks that may still change something."""
        await self.dispatcher.abandon()
        hooks = self.hooks
        if self.output is not None and hooks.wants("output"):
            schema = self.wanted.schema if self.wanted is not None else None
            self.output = (await hooks.fire("output", output=self.output, schema=schema)).output
        if stop == "cancelled" and hooks.wants("agent:abort"):
            await hooks.fire("agent:abort", reason=self.run.abort_reason)

    async def done(self, stop: StopReason) -> None:
        """Tell the hooks that watch the end of a run."""
        await end_run(self.run, stop, self.first_message)
