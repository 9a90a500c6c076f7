"""How an agent behaves: one set of named values, layered run over agent over defaults."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, TypedDict

import msgspec
from msgspec import Struct

from windlass.core.errors import ConfigError, UnknownNameError

__all__ = ["Behavior", "BehaviorOptions", "behavior"]

LoopMode = Literal["none", "basic", "agent"]


class Behavior(Struct, frozen=True):
    """The values, with their defaults (those of reference C where it has them).

    `tool_execution`: parallel or sequential. `max_turns`: model requests in one run, and in one iteration of a loop
    mode. `max_tokens`: output tokens per request, 16384 unless the provider has another default, and never more than
    the model gives. `cache`: mark prompt-cache breakpoints. `output`: JSON Schema or Python type of the answer;
    `output_mode`: native asks the provider, tool forces a call of `final_answer`, auto picks; `output_retries`: how
    often a wrong answer is sent back. `thinking` and `thinking_budget` (tokens). `tool_timeout` in seconds per call,
    None for none. `loop_mode`, `loop_until` (the marker), `loop_max_turns` (iterations): reference A's loops.
    `loop_detector`: how many equal rounds are too many, 0 switches it off. `stream_retries`: how often a stream that
    broke after its first content is taken up again in one run; `max_attempts`: how often one request is sent in all.
    `run_seconds`: a bound on the whole run. `max_cost` in dollars, `max_total_tokens`: bounds on what a run uses.
    `max_depth` generations of sub-agents, the first run included, and `max_children` of them in all, as the topmost run
    says. `extra` is merged into every request's body.

    Token discipline: `tool_output_budget`, bytes of tool output in one turn before the model is told to summarise;
    `tool_budgets`, name -> {"max": n, "on_exceed": "steer" | "block" | function of a `ToolBudgetHit` that returns
    {"mode", "message"}}, calls in one run; `thinking_decay`, {"after_turn", "factor", "floor"} or a function (turn,
    base) -> tokens; `dedup_reads`, an unchanged file is not given twice;
    `dedup_tools`, name -> function of the arguments that returns a key; `require_read_before_edit`. Context:
    `compact_strategy` off, tail (older tool results are elided) or summary (a model writes one), above
    `compact_threshold` tokens, keeping the newest `compact_keep_turns` turns. `tool_disclosure` lazy hides the schemas
    of MCP tools behind `tool_search` ({"tool": True, "limit": 20}).
    """

    tool_execution: Literal["parallel", "sequential"] = "parallel"
    max_turns: int = 50
    max_tokens: int | None = None
    cache: bool = True
    thinking: Literal["off", "minimal", "low", "medium", "high", "adaptive"] | None = None
    thinking_budget: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    output: Any = None
    output_mode: Literal["auto", "native", "tool"] = "auto"
    output_retries: int = 2
    tool_choice: str = "auto"
    tool_timeout: float | None = 300.0
    loop_mode: LoopMode = "none"
    loop_until: str = "DONE"
    loop_max_turns: int = 8
    loop_detector: int = 5
    stream_retries: int = 1
    max_attempts: int = 3
    run_seconds: float | None = None
    max_cost: float | None = None
    max_total_tokens: int | None = None
    tool_output_budget: int | None = None
    tool_budgets: Mapping[str, Any] = {}
    thinking_decay: Any = None
    dedup_reads: bool = True
    dedup_tools: Mapping[str, Any] = {}
    require_read_before_edit: bool = False
    compact_strategy: Literal["off", "tail", "summary"] = "off"
    compact_threshold: int = 131072
    compact_keep_turns: int = 4
    tool_disclosure: Literal["eager", "lazy"] = "eager"
    tool_search: Mapping[str, Any] = {}
    max_depth: int = 4
    max_children: int = 100
    extra: Mapping[str, Any] = {}


class BehaviorOptions(TypedDict, total=False):
    """The same values, all optional: what `Agent(behavior=…)` and `run(behavior=…)` take."""

    tool_execution: Literal["parallel", "sequential"]
    max_turns: int
    max_tokens: int | None
    cache: bool
    thinking: Literal["off", "minimal", "low", "medium", "high", "adaptive"] | None
    thinking_budget: int | None
    temperature: float | None
    top_p: float | None
    output: Any
    output_mode: Literal["auto", "native", "tool"]
    output_retries: int
    tool_choice: str
    tool_timeout: float | None
    loop_mode: LoopMode
    loop_until: str
    loop_max_turns: int
    loop_detector: int
    stream_retries: int
    max_attempts: int
    run_seconds: float | None
    max_cost: float | None
    max_total_tokens: int | None
    tool_output_budget: int | None
    tool_budgets: Mapping[str, Any]
    thinking_decay: Any
    dedup_reads: bool
    dedup_tools: Mapping[str, Any]
    require_read_before_edit: bool
    compact_strategy: Literal["off", "tail", "summary"]
    compact_threshold: int
    compact_keep_turns: int
    tool_disclosure: Literal["eager", "lazy"]
    tool_search: Mapping[str, Any]
    max_depth: int
    max_children: int
    extra: Mapping[str, Any]


_AT_LEAST: dict[str, int] = {
    "max_turns": 1, "max_tokens": 1, "loop_max_turns": 1, "output_retries": 0, "thinking_budget": 0,
    "tool_output_budget": 1, "compact_threshold": 1, "compact_keep_turns": 0,
}  # fmt: skip
_FREE = ("output", "extra", "tool_budgets", "thinking_decay", "dedup_tools", "tool_search")
_DEFAULT = Behavior()


def behavior(*layers: Mapping[str, Any] | None) -> Behavior:
    """Merge layers, later ones win; without any, the defaults.

    Raises UnknownNameError for a name that is none and ConfigError for a value that does not fit.
    """
    merged: dict[str, Any] = {}
    for layer in layers:
        if layer:
            merged.update(layer)
    if not merged:
        return _DEFAULT
    for name in merged:
        if name not in Behavior.__struct_fields__:
            raise UnknownNameError("behavior", name, Behavior.__struct_fields__)
    if "loop_max_turns" in merged:
        # Reference A: a number of iterations alone asks for the basic loop; a marker alone does not.
        merged.setdefault("loop_mode", "basic")
    free = {name: merged.pop(name) for name in _FREE if name in merged}
    try:
        made = msgspec.convert(merged, Behavior)
    except msgspec.ValidationError as error:
        raise ConfigError(f"behavior: {error}.") from None
    for name, least in _AT_LEAST.items():
        value = getattr(made, name)
        if value is not None and value < least:
            raise ConfigError(f"behavior: {name} is {value}; it must be at least {least}.")
    for name, high in (("temperature", 2.0), ("top_p", 1.0)):
        value = getattr(made, name)
        if value is not None and not 0.0 <= value <= high:
            raise ConfigError(f"behavior: {name} is {value}; it must be between 0 and {high:g}.")
    for name, value in free.items():
        if (check := _CHECKS.get(name)) is not None:
            check(value)
    return msgspec.structs.replace(made, **free) if free else made


def _table(name: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"behavior: {name} is {value!r}; it must be a mapping.")
    return value  # pyright: ignore[reportUnknownVariableType]


def _known(where: str, given: Mapping[str, Any], names: tuple[str, ...]) -> None:
    if other := [key for key in given if key not in names]:
        raise ConfigError(f"behavior: {where} has no {other[0]!r}.", hint=f"It has {', '.join(names)}.")


def _whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _check_tool_budgets(value: Any) -> None:
    for tool, given in _table("tool_budgets", value).items():
        where = f"tool_budgets[{tool!r}]"
        row = _table(where, given)
        _known(where, row, ("max", "on_exceed", "onExceed"))
        if not _whole(row.get("max"), 0):
            raise ConfigError(f"behavior: {where} needs a `max`, a whole number of calls, not {row.get('max')!r}.")
        how: Any = row.get("on_exceed", row.get("onExceed", "steer"))
        if how not in ("steer", "block") and not callable(how):
            raise ConfigError(f"behavior: {where} on_exceed is {how!r}; it is 'steer', 'block' or a function.")


def _check_thinking_decay(value: Any) -> None:
    if value is None or callable(value):
        return
    row = _table("thinking_decay", value)
    _known("thinking_decay", row, ("after_turn", "afterTurn", "factor", "floor"))
    factor, floor = row.get("factor"), row.get("floor", 0)
    if isinstance(factor, bool) or not isinstance(factor, (int, float)) or not 0 <= factor <= 1:
        raise ConfigError(f"behavior: thinking_decay needs a `factor` from 0 to 1, not {factor!r}.")
    if not _whole(row.get("after_turn", row.get("afterTurn", 0)), 0) or not _whole(floor, 0):
        raise ConfigError("behavior: thinking_decay: after_turn and floor are whole numbers from 0 on.")


def _check_dedup_tools(value: Any) -> None:
    for tool, hasher in _table("dedup_tools", value).items():
        if not callable(hasher):
            raise ConfigError(f"behavior: dedup_tools[{tool!r}] is {hasher!r}; it must be a function of the arguments.")


def _check_tool_search(value: Any) -> None:
    row = _table("tool_search", value)
    _known("tool_search", row, ("tool", "limit"))
    if not isinstance(row.get("tool", True), bool) or not _whole(row.get("limit", 1), 1):
        raise ConfigError("behavior: tool_search: `tool` is true or false, `limit` a whole number from 1 on.")


def _check_extra(value: Any) -> None:
    _table("extra", value)


_CHECKS: dict[str, Callable[[Any], None]] = {
    "tool_budgets": _check_tool_budgets,
    "thinking_decay": _check_thinking_decay,
    "dedup_tools": _check_dedup_tools,
    "tool_search": _check_tool_search,
    "extra": _check_extra,
}
