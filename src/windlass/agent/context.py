"""Compaction: what is done when the history no longer fits.

`tail` leaves out older tool output; `summary` lets the model write a summary that stands in place of older turns. Both
shorten only the view that requests carry: the ledger keeps every row, and folds to the same view. A compaction is one
row that is written when all is decided: a program that dies before has changed nothing. It proves its progress: what
does not get below the limit ends with ContextExceededError and is not tried again.
"""

from __future__ import annotations

from typing import Literal

from msgspec.structs import replace

from windlass.agent.gauge import Gauge, message_tokens
from windlass.agent.plan import RunPlan
from windlass.agent.run import Run
from windlass.agent.summary import FRAME, cut_notice, write_summary
from windlass.core.errors import ContextExceededError, ProviderError
from windlass.core.events import ContextCompacted, Log
from windlass.core.messages import Message, user
from windlass.core.models import facts_of
from windlass.core.request import Settings, ToolSpec
from windlass.core.usage import Usage

__all__ = ["Context", "compact_now", "keep_from"]

Strategy = Literal["tail", "summary"]


def keep_from(messages: list[Message], turns: int) -> int:
    """Return where the newest `turns` answers begin, with the words they answer; 0 when there are no more than those.

    What was said since the last answer always stays. A call and its responses are on one side.
    """
    at = len(messages)
    while at and messages[at - 1].role == "user":
        at -= 1
    for _ in range(turns):
        at -= 1
        while at >= 0 and messages[at].role != "assistant":
            at -= 1
        if at < 0:
            return 0
    while turns and at and messages[at - 1].role == "user":
        at -= 1
    return at


class Context:
    """Keeps the view of one run's conversation below its limit."""

    __slots__ = ("_asked", "_overhead", "_retried", "keep", "room", "run", "strategy", "threshold")

    def __init__(self, run: Run, settings: Settings) -> None:
        mode = run.behavior
        self.run, self.strategy = run, mode.compact_strategy
        self.keep, self.threshold = mode.compact_keep_turns, mode.compact_threshold
        self.room = _room(run.plan, settings)
        self._asked = self._overhead = 0
        self._retried = False

    @property
    def limit(self) -> int:
        """The tokens above which a summary is written: the threshold, or less where the model takes less."""
        return self.threshold if self.room is None else min(self.threshold, self.room)

    def _gauge(self) -> Gauge:
        return Gauge.of(self.run.conversation, self.keep)

    def _estimate(self) -> int:
        """Return the tokens of the next request, as far as reports of earlier ones tell."""
        gauge = self._gauge()
        self._asked = self._overhead + gauge.total
        return gauge.tokens(self._asked, self.run.plan.model)

    def weigh(self, system: str, tools: tuple[ToolSpec, ...]) -> None:
        """Take in what is sent beside the messages."""
        self._overhead = self._gauge().overhead(system, tools)

    # -- what the loop asks ------------------------------------------------------------------------------------------

    async def fit(self, system: str, tools: tuple[ToolSpec, ...]) -> None:
        """Compact before a request where it is due. Raises ContextExceededError when that was not enough."""
        self.weigh(system, tools)
        tokens = self._estimate()
        if self.room is not None and tokens > self.room:
            reason, limit = "window", self.limit if self.strategy == "summary" else self.room
        elif self._due(tokens):
            reason, limit = "threshold", self.limit
        else:
            return
        done = await self._compact(reason, limit)
        # Of `tail` the threshold bounds older output alone, and none of that is left.
        hard = self.strategy == "summary" or reason == "window"
        if done and hard and (left := self._estimate()) > limit:
            raise self._exceeded(tokens, left, limit)

    def _due(self, tokens: int) -> bool:
        if self.strategy == "tail":
            gauge = self._gauge()
            tokens = gauge.tokens(gauge.older_output, self.run.plan.model)
            return tokens > self.threshold
        return tokens > self.threshold

    def answered(self, usage: Usage) -> None:
        """Learn from the usage of an answer."""
        self._retried = False
        if not usage.estimated:
            self._gauge().calibrate(self._asked, usage.input_tokens, self.run.plan.model)

    async def overflowed(self) -> bool:
        """Compact because the provider said that the request does not fit; True when it may be asked once more."""
        if self._retried:
            return False
        self._retried = True
        before = self._gauge().tokens(self._asked, self.run.plan.model)
        # The provider knows better than the table: so much is too much.
        self.room = before - 1 if self.room is None else min(self.room, before - 1)
        return await self._compact("overflow", min(self.limit, before * 9 // 10)) and self._estimate() < before

    def _exceeded(self, before: int, after: int, limit: int) -> ContextExceededError:
        plan = self.run.plan
        return ContextExceededError(
            f"The context was compacted from about {before} to {after} tokens; the limit is {limit}.",
            provider=plan.provider.name, model=plan.model,
            hint="Keep fewer turns (compact_keep_turns), raise compact_threshold, or use a model that takes more.",
        )  # fmt: skip

    # -- doing it ----------------------------------------------------------------------------------------------------

    async def _compact(self, reason: str, limit: int) -> bool:
        if self.strategy == "tail":
            return await self.elide(reason) is not None
        try:
            return await self.summarise(reason) is not None
        except ProviderError as error:
            await self._without_summary(error, limit)
            return True

    async def elide(self, reason: str) -> ContextCompacted | None:
        """Leave out older tool output; None when there is none to leave out."""
        upto = keep_from(self.run.conversation.messages, self.keep)
        if not upto or not self._gauge().older_output:
            return None
        return await self._shorten(ContextCompacted(strategy="tail", upto=upto), reason)

    async def summarise(self, reason: str) -> ContextCompacted | None:
        """Let the model summarise older turns; None when there are none. Raises ProviderError when it cannot."""
        conversation = self.run.conversation
        messages = conversation.messages
        upto = keep_from(messages, self.keep)
        older = messages[:upto]
        if not any(message.role == "assistant" for message in older):
            return None
        text, usage, cost = await write_summary(self.run, older, max(512, self.limit // 2))
        if conversation.messages is not messages:
            # Somebody compacted or rewound meanwhile: these positions are no longer those that were summarised.
            return None
        summary = FRAME + text
        if message_tokens(user(summary)) >= sum(map(message_tokens, older)):
            raise ProviderError("The summary is no shorter than what it stands for.", model=self.run.plan.model)
        event = ContextCompacted(strategy="summary", upto=upto, summary=summary, usage=usage, cost=cost)
        return await self._shorten(event, reason)

    async def _without_summary(self, error: ProviderError, limit: int) -> None:
        """Go on without the model's help: leave out older output, and where that is not enough, older turns."""
        run = self.run
        run.emit(Log(message=f"No summary could be written, so older messages are cut: {error}", level="warning"))
        await self.elide("summary failed")
        if self._estimate() > limit:
            messages = run.conversation.messages
            if upto := keep_from(messages, self.keep):
                event = ContextCompacted(strategy="cut", upto=upto, summary=cut_notice(messages[:upto]))
                await self._shorten(event, "summary failed")

    async def _shorten(self, event: ContextCompacted, reason: str) -> ContextCompacted:
        run = self.run
        before = self._estimate()
        # First the memory, then the disk: a cancellation between them must not leave two views.
        run.conversation.compact(event)
        # What was read may have gone out of view: the tools must give it again.
        run.state.pop("reading", None)
        event = replace(event, before_tokens=before, after_tokens=self._estimate())
        if event.usage is not None:
            run.stats.add(event.usage, event.cost)
            run.spend(event.usage, event.cost)
        await run.record([event])
        if run.hooks.wants("context:compact"):
            await run.hooks.fire(
                "context:compact", strategy=event.strategy, reason=reason, before_tokens=event.before_tokens,
                after_tokens=event.after_tokens,
            )  # fmt: skip
        return event


def _room(plan: RunPlan, settings: Settings) -> int | None:
    """Return the tokens that a request may have so that its answer still fits; None where the model is unknown."""
    window = facts_of(plan.provider.name, plan.model).context
    if window is None:
        capabilities = getattr(plan.provider, "capabilities", None)
        window = getattr(capabilities(plan.model), "context", None) if callable(capabilities) else None
    if not isinstance(window, int):
        return None
    return window - min(settings.max_tokens or 0, window // 4)


async def compact_now(
    target: Run | RunPlan, strategy: Strategy = "summary", *, keep_turns: int | None = None
) -> ContextCompacted | None:
    """Compact a conversation on request: that of an active run, or, at rest, that of a plan made for its session.

    Everything but the newest `keep_turns` answers is compacted; None stands for none of them at rest, and for one
    while a run is active. Returns what was done, None when there was nothing to do. Raises ProviderError when the
    summary could not be written, StoreError when it could not be kept; the history is as it was then.
    """
    if isinstance(target, Run):
        run, least = target, 1
    else:
        if target.prepare is not None:
            await target.prepare()
        run, least = Run(target, _never), 0
    context = Context(run, Settings(max_tokens=run.behavior.max_tokens))
    context.keep = max(least, keep_turns or 0)
    context.weigh(run.plan.system, tuple([bound.spec for bound in run.plan.tools.values()]))
    return await (context.elide("request") if strategy == "tail" else context.summarise("request"))


def _never(run: Run) -> None:
    raise AssertionError(f"run {run.id} was made to hold a plan, not to be started")
