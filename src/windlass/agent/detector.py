"""The loop detector: notices a model that goes round in circles, nudges it once, then stops the run."""

from __future__ import annotations

from typing import Literal

from windlass.core.messages import Message

__all__ = ["EMPTY_NUDGE", "LOOP_NUDGE", "LoopDetector"]

LOOP_NUDGE = (
    "You have made the same tool calls several times with the same results. Do not repeat them: "
    "try something else, or give your answer with what you know."
)
EMPTY_NUDGE = "Your last answer was empty. Continue the task, or give your final answer."


class LoopDetector:
    """Watch rounds (an assistant message and its results) for A-A-A and A-B-A-B patterns and for empty answers.

    `limit` equal rounds stop the run, and two fewer (at least two) draw a nudge; 0 switches it off. A round whose
    result differs from the last one is progress: polling is not a loop.
    """

    __slots__ = ("_empty", "_last", "_same", "limit")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._last: tuple[int, int] = (0, 1)
        self._same: list[int] = [0, 0]
        self._empty = 0

    def round(self, assistant: Message, results: Message | None) -> Literal["go", "nudge", "stop"]:
        """Take a finished round of tool calls."""
        if not self.limit:
            return "go"
        key = hash(
            (
                tuple([(call.name, call.arguments_text or str(call.arguments)) for call in assistant.tool_calls]),
                tuple([str(getattr(part, "response", "")) for part in results.parts]) if results else (),
            )
        )
        before, last = self._last
        self._empty = 0
        # Distance 1 is A-A-A, distance 2 is A-B-A-B; each keeps its own count.
        self._same = [
            self._same[0] + 1 if key == last else 0,
            self._same[1] + 1 if key == before and key != last else (self._same[1] if key == last else 0),
        ]
        self._last = (last, key)
        worst = max(self._same[0] + 1, self._same[1] // 2 + 1)
        if worst >= self.limit:
            return "stop"
        return "nudge" if worst == max(2, self.limit - 2) and (self._same[0] or self._same[1] % 2 == 0) else "go"

    def empty(self) -> Literal["nudge", "stop"]:
        """Take an empty answer: the first draws a nudge, the second in a row stops the run."""
        self._empty += 1
        return "nudge" if self._empty == 1 else "stop"

    def answered(self) -> None:
        """Take an answer with text."""
        self._empty = 0
