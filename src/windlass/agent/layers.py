"""Build permissions from the `[policy]` tables of configuration files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import msgspec
from msgspec import Struct

from windlass.agent.policy import MODES, Layer, Mode, Permissions, Policy
from windlass.agent.rules import Action, Rule
from windlass.core.config import PolicyTable
from windlass.core.errors import ConfigError

__all__ = ["permissions_from", "read_policy"]


class _Table(Struct, frozen=True, forbid_unknown_fields=True):
    """A `[policy]` table: `default` where no rule matches (allow: the mode decides), the `mode` to start in."""

    default: Action = "allow"
    mode: Literal["plan", "ask", "auto-edit", "sandboxed-auto"] | None = None
    rule_of_two: bool | None = None
    rules: tuple[Rule, ...] = ()


def read_policy(table: Mapping[str, Any], origin: str) -> _Table:
    """Read a `[policy]` table. Raises ConfigError that names the file and what does not fit."""
    try:
        return msgspec.convert(dict(table), _Table)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{origin}: [policy]: {error}.") from None


def permissions_from(
    tables: Sequence[PolicyTable],
    *,
    mode: Mode | None = None,
    confined: Callable[[], bool] | bool = False,
    protected: Callable[[str], str | None] | None = None,
    yolo: bool = False,
) -> Permissions:
    """Return permissions over the layers of these tables (`Config.policies`).

    `mode` is what the person asks for now and wins; else it is the one the managed or the user's file names, else ask,
    and a project's file may only name a stricter one. The rule of two is off only where a file that is not the
    project's says so and none asks for it. What is not used is in the result's `notices`. Raises ConfigError for a
    table that does not fit.
    """
    read = [(each, read_policy(each.table, each.origin)) for each in tables]
    own = [table for each, table in read if each.layer != "project"]
    modes: list[Mode] = [table.mode for table in own if table.mode is not None]
    start = modes[0] if modes else "ask"
    ignored: list[str] = []
    for each, table in read:
        if each.layer == "project" and table.mode is not None:
            if MODES.index(table.mode) < MODES.index(start):
                start = table.mode
            elif table.mode != start:
                ignored.append(f"{each.origin}: mode {table.mode!r} is ignored: a project's file may only tighten.")
        if each.layer == "project" and table.rule_of_two is False:
            ignored.append(f"{each.origin}: rule_of_two = false is ignored: a project's file may only tighten.")
    stated = {table.rule_of_two for table in own if table.rule_of_two is not None}
    asked_for = any(table.rule_of_two for _, table in read)
    made = Permissions(
        mode or start,
        [Layer(each.layer, Policy(table.default, table.rules), each.origin) for each, table in read],
        confined=confined,
        protected=protected,
        rule_of_two=asked_for or stated != {False},
        yolo=yolo,
    )
    made.ignored = ignored
    return made
