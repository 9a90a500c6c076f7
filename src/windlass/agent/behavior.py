"""How an agent behaves: one set of named values, layered run over agent over defaults."""

from __future__ import annotations

from collections.abc import Mapping
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
    `extra` is merged into every request's body.
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
    extra: Mapping[str, Any]


_AT_LEAST: dict[str, int] = {"max_turns": 1, "max_tokens": 1, "loop_max_turns": 1, "output_retries": 0}
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
    free = {name: merged.pop(name) for name in ("output", "extra") if name in merged}
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
    return msgspec.structs.replace(made, **free) if free else made
