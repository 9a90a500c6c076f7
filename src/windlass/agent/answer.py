"""One answer of the model, as it streams in: items become events."""

from __future__ import annotations

from contextlib import aclosing
from typing import Any

from windlass.agent.hooks import Hooks
from windlass.agent.plan import RunPlan
from windlass.agent.run import Run
from windlass.core import clock
from windlass.core.errors import StreamInterrupted
from windlass.core.events import (
    Event,
    Log,
    ProviderSwitched,
    ReasoningDelta,
    Retry,
    TextDelta,
    ToolCallDelta,
    TurnFinished,
)
from windlass.core.items import Finish, NoticeItem, ReasoningItem, TextItem, ToolCallItem, UsageItem
from windlass.core.messages import Message, Metadata, text_of
from windlass.core.models import cost_of, facts_of
from windlass.core.request import Request
from windlass.core.usage import Usage

__all__ = ["Answer", "cost_in_nano", "notice_event", "renewed"]


class Answer:
    """Reads one answer: passes deltas on, remembers the text in case the connection breaks."""

    __slots__ = ("begun", "first", "hooks", "number", "plan", "run", "text", "thinking", "usage")

    def __init__(self, run: Run, number: int) -> None:
        self.run, self.hooks, self.plan, self.number = run, run.hooks, run.plan, number
        self.text: list[str] = []
        self.thinking: list[str] = []
        self.usage: Usage | None = None
        self.begun = clock.monotonic()
        self.first: float | None = None

    @property
    def partial(self) -> str:
        """The text so far."""
        return "".join(self.text)

    async def read(self, request: Request) -> Finish:
        """Turn items into events until the finish. Raises StreamInterrupted when there is none."""
        run, hooks = self.run, self.hooks
        emit, text = run.emit, self.text
        hooked = hooks.wants("stream:text")
        async with aclosing(self.plan.provider.stream(request)) as stream:  # pyright: ignore[reportArgumentType, reportUnknownVariableType, reportGeneralTypeIssues]
            async for item in stream:
                kind = type(item)
                if kind is TextItem:
                    if self.first is None:
                        self.first = clock.monotonic()
                    text.append(item.text)
                    emit(TextDelta(text=item.text))
                    if hooked:
                        await hooks.fire("stream:text", delta=item.text, text=self.partial, turn_id=run.turn_id)
                    if run.congested:
                        await run.caught_up()
                elif kind is Finish:
                    if hooks.wants("stream:end") and (whole := text_of(item.message.parts)):
                        await hooks.fire("stream:end", text=whole, turn_id=run.turn_id)
                    if item.provider_metadata is not None:
                        self._edited(item.provider_metadata)
                    # Before its calls run: whoever shares the budget must see it now.
                    run.spend(item.usage, cost := self.cost(item))
                    if cost is None and self.number == 1 and run.behavior.max_cost is not None:
                        self._unpriced()
                    return item
                else:
                    await self._other(item)
        provider = self.plan.provider.name
        raise StreamInterrupted(
            "The answer ended without its terminal event.", provider=provider, model=request.model, partial=self.partial
        )

    def _unpriced(self) -> None:
        text = f"max_cost bounds nothing here: the price of {self.plan.model_name} is not known."
        self.run.emit(Log(message=text, level="warning", data={"max_cost": self.run.behavior.max_cost}))

    def _edited(self, metadata: Metadata) -> None:
        """Tell what the provider itself left out of the context before the model read it."""
        for vendor, fields in metadata.items():
            edits: Any = fields.get("context_management") if isinstance(fields, dict) else None
            if isinstance(edits, dict) and edits.get("applied_edits"):
                self.run.emit(Log(message=f"{vendor} left out older parts of the context.", data={vendor: edits}))

    async def _other(self, item: Any) -> None:
        run, hooks = self.run, self.hooks
        if isinstance(item, NoticeItem):
            await run.record([notice_event(item)])
            await renewed(item, hooks)
            return
        if isinstance(item, UsageItem):
            self.usage = item.usage
            return
        if self.first is None:
            self.first = clock.monotonic()
        if isinstance(item, ReasoningItem):
            if item.text:
                self.thinking.append(item.text)
                run.emit(ReasoningDelta(text=item.text))
                if hooks.wants("stream:thinking"):
                    whole = "".join(self.thinking)
                    await hooks.fire("stream:thinking", delta=item.text, thinking=whole, turn_id=run.turn_id)
        elif isinstance(item, ToolCallItem):
            run.emit(ToolCallDelta(index=item.index, id=item.id, name=item.name, arguments=item.arguments))
        if run.congested:
            await run.caught_up()

    def cost(self, finish: Finish) -> int | None:
        """Return nano-dollars, None if unknown."""
        return cost_in_nano(self.plan, finish)

    async def finished(self, finish: Finish | None, message: Message | None) -> None:
        """Count the turn and tell everyone, whether it ended well or not."""
        run, hooks = self.run, self.hooks
        usage = finish.usage if finish is not None else self.usage or Usage(estimated=True)
        turn = TurnFinished(
            turn=self.number,
            usage=usage,
            cost=self.cost(finish) if finish is not None else None,
            model=(finish.model if finish is not None else None) or self.plan.model_name,
            finish_reason=finish.reason if finish is not None else "error",
            first_token_ns=None if self.first is None else int((self.first - self.begun) * 1e9),
            duration_ns=int((clock.monotonic() - self.begun) * 1e9),
        )
        run.stats.add_turn(turn)
        if finish is None:
            run.spend(usage, None)
        run.emit(turn)
        if hooks.wants("usage"):
            total = run.stats.usage
            await hooks.fire(
                "usage", turn=self.number, turn_id=run.turn_id, usage=usage, total_in=total.input_tokens,
                total_out=total.output_tokens,
            )  # fmt: skip
        if hooks.wants("turn:after"):
            await hooks.fire("turn:after", turn=self.number, turn_id=run.turn_id, usage=usage, message=message)


def cost_in_nano(plan: RunPlan, finish: Finish) -> int | None:
    """Return what an answer cost: what the provider reports, else what the table of prices says; None if unknown."""
    if finish.cost is not None:
        return finish.cost
    return cost_of(finish.usage, facts_of(plan.provider.name, finish.model or plan.model).prices)


async def renewed(item: NoticeItem, hooks: Hooks) -> None:
    """Tell who asked for it that a login was renewed, and with what."""
    if item.kind == "refreshed" and item.detail is not None and hooks.wants("oauth:refresh"):
        await hooks.fire("oauth:refresh", **item.detail.fields())


def notice_event(item: NoticeItem) -> Event:
    """Return the event that tells what happened on the way to an answer."""
    if item.kind == "retry":
        return Retry(message=item.message, attempt=item.attempt or 0, delay=item.delay or 0.0, provider=item.provider)
    if item.kind == "warning":
        return Log(message=item.message, level="warning")
    if item.kind == "refreshed":
        return Log(message=item.message)
    return ProviderSwitched(message=item.message, provider=item.provider, model=item.model)
