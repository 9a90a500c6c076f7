"""The line below the input, and the line that says what is being waited for."""

from __future__ import annotations

from msgspec import Struct

from windlass.agent.conversation import Conversation
from windlass.apps.tui.paint import clip, one_line
from windlass.core import clock
from windlass.core.events import Event, ReasoningDelta, Retry, TextDelta, ToolCallDelta, ToolStarted, TurnStarted
from windlass.core.models import facts_of
from windlass.core.usage import NANO, Usage

__all__ = ["Status", "Waiting", "amount", "money"]


def amount(count: int) -> str:
    """Return a count of tokens in three digits: 999, 12.3k, 1.2M.

    >>> amount(999), amount(12_345), amount(250_000), amount(1_200_000)
    ('999', '12.3k', '250k', '1.2M')
    """
    if count < 1000:
        return str(count)
    for size, unit in ((1_000_000, "M"), (1000, "k")):
        if count >= size:
            value = count / size
            return f"{value:.0f}{unit}" if value >= 100 else f"{value:.1f}{unit}"
    return str(count)


def money(nano: int | None) -> str:
    """Return nano-dollars in cents' precision for a status line; '$?' where a price is unknown."""
    if nano is None:
        return "$?"
    dollars = nano / NANO
    return f"${dollars:.4f}" if 0 < dollars < 0.01 else f"${dollars:.2f}"


class Status(Struct):
    """What the status line tells: counted over the conversation, context of the last answer."""

    model: str = ""
    mode: str = ""
    usage: Usage = Usage()
    cost: int | None = 0
    last: Usage = Usage()
    context: int | None = None
    queued: int = 0

    def of_model(self, model: str) -> None:
        """Name another model."""
        self.model = model
        provider, _, model_id = model.partition(":")
        self.context = facts_of(provider, model_id).context

    def of_conversation(self, conversation: Conversation) -> None:
        """Take over what a kept conversation has used."""
        self.usage, self.cost, self.last = conversation.usage, conversation.cost, Usage()

    def count(self, usage: Usage, cost: int | None) -> None:
        """Count one answer."""
        self.usage, self.last = self.usage + usage, usage
        self.cost = None if cost is None or self.cost is None else self.cost + cost

    def line(self, width: int) -> str:
        """Return the line, most important first; what does not fit is left out."""
        used = self.last.input_tokens + self.last.output_tokens
        known = self.usage.total_tokens
        parts = [
            clip(one_line(self.model), max(10, width // 2)),
            self.mode,
            f"{100 * used // self.context}% of {amount(self.context)}" if self.context and used else "",
            f"{'~' if self.usage.estimated else ''}{amount(known)} tokens" if known else "",
            money(self.cost) if known else "",
            f"cache {100 * self.usage.cache_read_tokens // self.usage.input_tokens}%"
            if self.usage.input_tokens
            else "",
        ]
        if self.queued:
            parts.insert(2, f"{self.queued} queued")
        out = ""
        for part in [part for part in parts if part]:
            longer = f"{out} · {part}" if out else part
            if len(longer) > width - 1:
                break
            out = longer
        return out


class Waiting(Struct):
    """What is being waited for, since when, and for how long at most; '' while nothing is."""

    what: str = ""
    since: float = 0.0
    limit: float | None = None
    until: float | None = None
    provider_limit: float | None = 600.0
    tool_limit: float | None = 300.0

    def begin(self, what: str, limit: float | None = None) -> None:
        """Start to wait for something."""
        self.what, self.since, self.limit, self.until = what, clock.monotonic(), limit, None

    def end(self) -> None:
        """Wait for nothing."""
        self.what, self.until = "", None

    def take(self, event: Event) -> None:
        """Follow a run."""
        if isinstance(event, TurnStarted):
            self.begin("waiting for provider", self.provider_limit)
        elif isinstance(event, Retry):
            count = f", retry {event.attempt}" if event.attempt else ", retry"
            self.begin(one_line(event.message) + count, None)
            self.until = self.since + event.delay
        elif isinstance(event, (TextDelta, ReasoningDelta, ToolCallDelta)):
            what = "thinking" if isinstance(event, ReasoningDelta) else "answering"
            what = "writing a call" if isinstance(event, ToolCallDelta) else what
            if self.what != what:
                self.begin(what, self.provider_limit)
        elif isinstance(event, ToolStarted):
            self.begin(f"{one_line(event.name)} runs", self.tool_limit)

    def line(self, width: int) -> str:
        """Return the line, with the time that passed, the limit and the key."""
        if not self.what:
            return ""
        now = clock.monotonic()
        if self.until is not None:
            left = max(0, round(self.until - now))
            return clip(f"{self.what} in {left} s - Esc stops", width - 1)
        limit = f" of {self.limit:.0f} s" if self.limit else " s"
        passed = f"{int(now - self.since)}{' s' if self.limit else ''}"
        return clip(f"{self.what} ({passed}{limit}) - Esc stops", width - 1)
