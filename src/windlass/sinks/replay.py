"""Play a recording back to a real loop: the model's answers come from the file, and so do the tools' results."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from typing import Any

from msgspec import Struct, field

from windlass.core.errors import ReplayMismatch, StreamInterrupted
from windlass.core.events import (
    Event,
    MessageAdded,
    ReasoningDelta,
    RunFinished,
    TextDelta,
    ToolCallDelta,
    ToolFinished,
    TurnFinished,
)
from windlass.core.items import Finish, FinishReason, Item, ReasoningItem, TextItem, ToolCallItem
from windlass.core.messages import Message, Reasoning, Text, ToolResponse, response_text
from windlass.core.ports import ToolResult
from windlass.core.request import Request
from windlass.core.usage import Usage

__all__ = ["ReplayProvider"]

Fact = tuple[str, str]


class _Turn(Struct):
    """One recorded answer, and what the conversation held before it."""

    before: tuple[Fact, ...]
    items: list[Item] = field(default_factory=list[Item])
    finish: Finish | None = None


class ReplayProvider:
    """Answer as the recording did, and check that the loop asks what it asked then.

    `events` are those of one run or session, from a recording or a ledger (whose deltas are one per part).
    `check=False` answers whatever is asked. Recorded tool results are used through `hooks()`, which a caller gives to
    the agent; without them the tools really run again. Raises ReplayMismatch in the stream when a request differs,
    naming the first difference, and when more is asked than was recorded.
    """

    def __init__(self, events: Iterable[Event], *, name: str = "replay", model: str = "recorded", check: bool = True):
        self.name, self.model, self.check = name, model, check
        self._turns: list[_Turn] = []
        self._results: dict[str, ToolFinished] = {}
        self._next = 0
        self._read(events)

    def _read(self, events: Iterable[Event]) -> None:
        facts: list[Fact] = []
        items: list[Item] = []
        top: str | None = None
        for event in events:
            if event.parent_run_id is not None:
                continue
            top = top or event.run_id
            if isinstance(event, TextDelta):
                items.append(TextItem(event.text))
            elif isinstance(event, ReasoningDelta):
                items.append(ReasoningItem(event.text))
            elif isinstance(event, ToolCallDelta):
                items.append(ToolCallItem(event.index, event.id, event.name, event.arguments))
            elif isinstance(event, ToolFinished):
                self._results[event.call_id] = event
                facts.append((f"tool {event.call_id}", _text(event)))
            elif isinstance(event, MessageAdded):
                if event.message.role == "assistant":
                    self._turns.append(_Turn(tuple(facts), items or _one_per_part(event.message), _finish(event)))
                    items = []
                facts.extend(_facts([event.message]))
            elif isinstance(event, (TurnFinished, RunFinished)):
                items = []

    @property
    def remaining(self) -> int:
        """How many recorded answers were not asked for yet."""
        return len(self._turns) - self._next

    def hooks(self) -> dict[str, Callable[[Any], None]]:
        """Return the hook that answers tool calls from the recording, to be given to an agent."""

        def gate(ctx: Any) -> None:
            recorded = self._results.get(ctx.call_id)
            if recorded is not None:
                ctx.result = ToolResult(recorded.response, recorded.status)

        return {"tool:gate": gate}

    async def stream(self, request: Request) -> AsyncIterator[Item]:
        """Yield the recorded items of the next answer."""
        if self._next >= len(self._turns):
            raise ReplayMismatch(f"The recording has {len(self._turns)} answers; the run asks for another one.")
        turn = self._turns[self._next]
        self._next += 1
        if self.check:
            _compare(self._next, turn.before, _facts(request.messages))
        for item in turn.items:
            yield item
        if turn.finish is None:
            raise StreamInterrupted("The recorded answer was interrupted here.", provider=self.name, model=self.model)
        yield turn.finish


def _compare(number: int, recorded: Sequence[Fact], asked: Sequence[Fact]) -> None:
    for index in range(max(len(recorded), len(asked))):
        was = recorded[index] if index < len(recorded) else ("nothing", "")
        now = asked[index] if index < len(asked) else ("nothing", "")
        # Blocked, cancelled and hook-made answers differ in status only: the text is what the model reads.
        if was != now:
            raise ReplayMismatch(
                f"Request {number} differs from the recording at item {index + 1}: "
                f"recorded {was[0]} {was[1][:80]!r}, now {now[0]} {now[1][:80]!r}.",
                hint="Replay with check=False to go on regardless.",
            )


def _facts(messages: Iterable[Message]) -> list[Fact]:
    out: list[Fact] = []
    for message in messages:
        for part in message.parts:
            if isinstance(part, ToolResponse):
                out.append((f"tool {part.id}", response_text(part)))
            elif isinstance(part, Text):
                out.append((message.role, part.content))
            elif not isinstance(part, Reasoning):
                out.append((message.role, repr(part)))
    return out


def _text(event: ToolFinished) -> str:
    return response_text(ToolResponse(event.call_id, event.response))


def _one_per_part(message: Message) -> list[Item]:
    items: list[Item] = []
    for part in message.parts:
        if isinstance(part, Text):
            items.append(TextItem(part.content))
        elif isinstance(part, Reasoning):
            items.append(ReasoningItem(part.content, part.provider_metadata))
    for index, call in enumerate(message.tool_calls):
        items.append(ToolCallItem(index, call.id, call.name, call.arguments_text or ""))
    return items


def _finish(event: MessageAdded) -> Finish | None:
    message = event.message
    if message.finish_reason == "interrupted":
        return None
    reason: FinishReason = "tool_call" if message.tool_calls else "stop"
    return Finish(message, event.usage or Usage(estimated=True), reason, event.model, event.response_id, event.cost)
