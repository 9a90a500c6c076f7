"""Presets: named bundles of agent options, to spread into `Agent(...)`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from windlass.core.errors import ConfigError

__all__ = ["basic", "coding", "define_preset"]

_ALLOWED = {
    "name", "system", "tools", "tool_aliases", "workspace", "capabilities", "behavior", "hooks", "sinks", "policy",
    "approver", "store", "model",
}  # fmt: skip


def define_preset(**options: Any) -> Mapping[str, Any]:
    """Check and return agent options under a name of your own: `Agent(**preset)`. Raises ConfigError for others."""
    unknown = sorted(set(options) - _ALLOWED)
    if unknown:
        raise ConfigError(
            f"A preset cannot hold {', '.join(unknown)}.", hint=f"It may hold {', '.join(sorted(_ALLOWED))}."
        )
    return dict(options)


#: Reference C's `basic`: a shell and the file tools.
basic: Mapping[str, Any] = define_preset(tools="basic")
#: What the command line starts with: file tools and a shell, and a system text that says how to work.
coding: Mapping[str, Any] = define_preset(
    tools="coding",
    system=(
        "You are a careful assistant that works with tools in the user's folder. Read before you change, make the "
        "smallest change that does the task, check the result, and say briefly what you did."
    ),
    behavior={"require_read_before_edit": True, "compact_strategy": "summary"},
)
