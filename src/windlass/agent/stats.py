"""What a run used: cumulative with its children, and per model."""

from __future__ import annotations

from collections.abc import Iterator

from msgspec import Struct, field

from windlass.core.events import StopReason, TurnFinished
from windlass.core.usage import Usage

__all__ = ["ModelStats", "RunStats", "flatten_turns", "stats_by_model"]


class ModelStats(Struct):
    """Totals of one model; `cost` in nano-dollars, None when a price is unknown."""

    usage: Usage = Usage()
    cost: int | None = 0
    turns: int = 0


class RunStats(Struct):
    """The totals of one run.

    `usage` and `cost` (nano-dollars, None: unknown) include the children; `turn_usage` and `turns` are this run's own.
    `children` are in order of completion. Times in nanoseconds; `first_token_ns` is None when nothing arrived.
    """

    run_id: str = ""
    name: str = ""
    usage: Usage = Usage()
    cost: int | None = 0
    turn_usage: list[TurnFinished] = field(default_factory=list[TurnFinished])
    children: list[RunStats] = field(default_factory=list["RunStats"])
    tool_counts: dict[str, int] = field(default_factory=dict[str, int])
    first_token_ns: int | None = None
    elapsed_ns: int = 0
    stop_reason: StopReason | None = None

    @property
    def turns(self) -> int:
        """Model requests of this run, without its children's."""
        return len(self.turn_usage)

    def add_turn(self, turn: TurnFinished) -> None:
        """Count a finished model request."""
        self.turn_usage.append(turn)
        self.add(turn.usage, turn.cost)
        if self.first_token_ns is None:
            self.first_token_ns = turn.first_token_ns

    def add_child(self, child: RunStats) -> None:
        """Count a finished child."""
        self.children.append(child)
        self.add(child.usage, child.cost)

    def add(self, usage: Usage, cost: int | None) -> None:
        """Add to the totals."""
        self.usage = self.usage + usage
        self.cost = None if cost is None or self.cost is None else self.cost + cost


def flatten_turns(stats: RunStats) -> Iterator[TurnFinished]:
    """Yield every turn, parent first, then each child in depth."""
    yield from stats.turn_usage
    for child in stats.children:
        yield from flatten_turns(child)


def stats_by_model(stats: RunStats) -> dict[str, ModelStats]:
    """Return totals per model over the whole tree."""
    out: dict[str, ModelStats] = {}
    for turn in flatten_turns(stats):
        row = out.setdefault(turn.model, ModelStats())
        row.usage = row.usage + turn.usage
        row.cost = None if turn.cost is None or row.cost is None else row.cost + turn.cost
        row.turns += 1
    return out
