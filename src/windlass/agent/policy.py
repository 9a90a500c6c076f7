"""Who may do what: pure decisions about tool calls. Deny beats ask beats allow, whatever the order of the rules.

A policy forbids or asks; it is not the boundary (a workspace is). Asking a person is the `Approver` port, which apps
implement.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from typing import Any, Literal

import msgspec
from msgspec import Struct

from windlass.core.request import ToolSpec

__all__ = ["Decision", "Policy", "Rule", "call_digest"]

Action = Literal["allow", "ask", "deny"]
_RANK: dict[Action, int] = {"allow": 0, "ask": 1, "deny": 2}


class Rule(Struct, frozen=True):
    """What to do with calls of the tools that `tool` matches (a shell-style pattern such as `mcp_*`)."""

    action: Action
    tool: str = "*"
    reason: str = ""


class Decision(Struct, frozen=True):
    """The answer, and the rule or default that gave it."""

    action: Action
    reason: str


class Policy(Struct, frozen=True):
    """Rules over a default.

    `default` is what happens where no rule matches: allow (a program that embeds an agent chooses its tools itself),
    ask or deny; with ask, tools that say they only read are allowed.
    """

    default: Action = "allow"
    rules: tuple[Rule, ...] = ()

    def decide(self, spec: ToolSpec, args: dict[str, Any]) -> Decision:
        """Decide about one call."""
        del args  # rules on arguments are a matter of the tools that have them
        matching = [rule for rule in self.rules if fnmatch.fnmatchcase(spec.name, rule.tool)]
        if matching:
            rule = max(matching, key=lambda item: _RANK[item.action])
            return Decision(rule.action, rule.reason or f"rule {rule.action} {rule.tool!r}")
        if self.default == "ask" and spec.annotations.read_only:
            return Decision("allow", "it only reads")
        return Decision(self.default, "it may change things" if self.default == "ask" else f"default {self.default}")

    def may_ask(self, specs: Sequence[ToolSpec]) -> bool:
        """Tell whether any call of these tools could need more than an immediate yes."""
        if self.default == "allow" and not self.rules:
            return False
        return any(self.decide(spec, {}).action != "allow" for spec in specs)


def call_digest(name: str, args: dict[str, Any]) -> str:
    """Return the identity of one exact call, which *allow always* is bound to: its name and canonical arguments."""
    return f"{name} {msgspec.json.encode(args, order='deterministic').decode()}"
