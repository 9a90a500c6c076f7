"""Count what happens: runs, turns, tokens, cost, tools, errors."""

from __future__ import annotations

from collections import Counter
from typing import Any

from windlass.core.events import Event, Retry, RunFinished, RunStarted, TextDelta, ToolFinished, TurnFinished

__all__ = ["Metrics"]


class Metrics:
    """A sink that counts. Give one object to as many agents as you like, on one event loop.

    `counts` has runs_started, runs_finished, turns, text_deltas, retries, tool_calls, tool_errors, input_tokens,
    output_tokens, cache_read_tokens, cache_creation_tokens; `stop_reasons`, `tools` and `models` count by name. `cost`
    is in nano-dollars of the turns whose price is known; `unpriced` counts the others.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.stop_reasons: Counter[str] = Counter()
        self.tools: Counter[str] = Counter()
        self.models: Counter[str] = Counter()
        self.cost = 0
        self.unpriced = 0

    def __call__(self, event: Event) -> None:
        """Take one event."""
        kind = type(event)
        if kind is TextDelta:
            self.counts["text_deltas"] += 1
        elif isinstance(event, TurnFinished):
            self._turn(event)
        elif isinstance(event, ToolFinished):
            self.counts["tool_calls"] += 1
            self.tools[event.name] += 1
            if event.status != "ok":
                self.counts["tool_errors"] += 1
        elif isinstance(event, RunStarted):
            self.counts["runs_started"] += 1
        elif isinstance(event, RunFinished):
            self.counts["runs_finished"] += 1
            self.stop_reasons[event.stop_reason] += 1
        elif isinstance(event, Retry):
            self.counts["retries"] += 1

    def _turn(self, event: TurnFinished) -> None:
        usage = event.usage
        self.counts["turns"] += 1
        self.models[event.model] += 1
        for name in ("input_tokens", "output_tokens", "cache_read_tokens", "cache_creation_tokens"):
            self.counts[name] += getattr(usage, name)
        if event.cost is None:
            self.unpriced += 1
        else:
            self.cost += event.cost

    def snapshot(self) -> dict[str, Any]:
        """Return everything as one dictionary."""
        return {
            **self.counts,
            "cost_nano": self.cost,
            "unpriced_turns": self.unpriced,
            "stop_reasons": dict(self.stop_reasons),
            "tools": dict(self.tools),
            "models": dict(self.models),
        }
