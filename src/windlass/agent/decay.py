"""Thinking that tapers off: late turns of a run are mostly small steps (reference C's thinkingDecay)."""

from __future__ import annotations

import math
from typing import Any

from windlass.core.errors import ConfigError

__all__ = ["thinking_tokens"]


def thinking_tokens(rule: Any, turn: int, base: int) -> int:
    """Return the thinking tokens of a turn (from 1) whose behavior says `base`.

    `rule` is a function (turn, base) -> tokens, or {"after_turn", "factor", "floor"}: up to that turn all of `base`,
    then `base * factor ** (turns since)`, rounded down, but not below the floor. Raises ConfigError when a function
    returns no number.
    """
    if callable(rule):
        value: Any = rule(turn, base)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise ConfigError(f"thinking_decay returned {value!r} for turn {turn}; it must return a number of tokens.")
        return max(0, int(value))
    late = turn - int(rule.get("after_turn", rule.get("afterTurn", 0)))
    if late <= 0:
        return base
    return min(base, max(int(rule.get("floor", 0)), int(base * float(rule["factor"]) ** late)))
