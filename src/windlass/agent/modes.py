"""Reference A's loop modes: ask again until a marker appears, nothing changes, or the iterations are used up."""

from __future__ import annotations

from typing import Literal

__all__ = ["AGENT_FOLLOW_UP", "AGENT_GUIDANCE", "BASIC_FOLLOW_UP", "Iterations"]

AGENT_GUIDANCE = (
    "You are running in API agent loop mode. Improve the answer each turn. Briefly self-critique then improve. "
    "Include the completion marker exactly when fully complete."
)
BASIC_FOLLOW_UP = "Continue."
AGENT_FOLLOW_UP = (
    "Critique your previous answer briefly, then improve it with concrete next steps. If complete, include the "
    "completion marker exactly and return the final result."
)


class Iterations:
    """Count the iterations of one run and say whether there is another.

    An iteration is everything until the model rests; `basic` and `agent` stop at the marker (a case-sensitive part of
    the answer) and after `limit` iterations, `agent` also when the trimmed answer equals the one before.
    """

    __slots__ = ("_before", "index", "limit", "mode", "outcome", "until")

    def __init__(self, mode: Literal["none", "basic", "agent"], until: str, limit: int) -> None:
        self.mode, self.until, self.limit = mode, until, limit
        self.index = 1
        self._before: str | None = None
        #: marker, no_progress or iterations, once it is over.
        self.outcome: Literal["marker", "no_progress", "iterations"] | None = None

    @property
    def guidance(self) -> str:
        """What the mode adds to the system text; the marker is named, since the model cannot guess it."""
        return f"{AGENT_GUIDANCE} The completion marker is: {self.until}" if self.mode == "agent" else ""

    def next(self, answer: str) -> str | None:
        """Take the answer of an iteration; returns what to ask next, None when it is over."""
        if self.mode == "none":
            return None
        if self.until in answer:
            self.outcome = "marker"
        elif self.mode == "agent" and self._before == answer.strip():
            self.outcome = "no_progress"
        elif self.index >= self.limit:
            self.outcome = "iterations"
        if self.outcome is not None:
            return None
        self._before = answer.strip()
        self.index += 1
        return AGENT_FOLLOW_UP if self.mode == "agent" else BASIC_FOLLOW_UP

    def describe(self) -> str:
        """Return reference A's closing line."""
        if self.outcome == "marker":
            return f"Loop completed: found marker {self.until!r}."
        if self.outcome == "no_progress":
            return "Loop stopped early: model repeated output without progress."
        return f"Loop stopped after {self.index} turns without marker {self.until!r}."
