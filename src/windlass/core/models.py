"""What is known of models: context, output limit, capabilities, prices; one dated table that the user may override."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, Literal

import msgspec
from msgspec import Struct

from windlass.core.errors import ConfigError
from windlass.core.usage import NANO, Usage

__all__ = ["Capabilities", "ModelFacts", "Prices", "cost_of", "facts_of", "override"]


class Prices(Struct, frozen=True, omit_defaults=True):
    """Dollars per million tokens; None is unknown, never free. Cached prices fall back to `input`."""

    input: float | None = None
    output: float | None = None
    cache_read: float | None = None
    cache_write: float | None = None


class ModelFacts(Struct, frozen=True, omit_defaults=True):
    """One row of the table: tokens of context and output, what the model can take, what it costs."""

    context: int | None = None
    max_output: int | None = None
    vision: bool | None = None
    documents: bool | None = None
    tools: bool | None = None
    reasoning: bool | None = None
    prices: Prices = Prices()
    date: str = ""


class Capabilities(Struct, frozen=True):
    """What one model behind one address can take, and how its dialect wants to be spoken; hashable, part of cache keys.

    `reasoning` says how thinking is asked for: not at all, by an effort word, by a token budget, by a switch, or
    adaptively. `cache_breakpoints` asks for `cache_control` marks. `max_tokens_field` is OpenAI's two spellings.
    `prefill` says that an assistant message at the end is continued, not answered.
    """

    vision: bool = True
    documents: bool = True
    tools: bool = True
    image_in_tool_result: bool = False
    structured_output: bool = True
    parallel_tool_calls: bool = True
    reasoning: Literal["none", "effort", "budget", "switch", "adaptive"] = "none"
    cache_breakpoints: bool = False
    stream_usage: bool = True
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    max_output: int | None = None
    context: int | None = None
    prefill: bool = False


def cost_of(usage: Usage, prices: Prices) -> int | None:
    """Return the cost in nano-dollars, rounded to the nearest; None when a needed price is unknown."""
    if prices.input is None or prices.output is None:
        return None
    fresh = usage.input_tokens - usage.cache_read_tokens - usage.cache_creation_tokens
    read = prices.cache_read if prices.cache_read is not None else prices.input
    write = prices.cache_write if prices.cache_write is not None else prices.input
    dollars_per_million = (
        fresh * prices.input + usage.cache_read_tokens * read + usage.cache_creation_tokens * write
    ) + usage.output_tokens * prices.output
    return round(dollars_per_million * NANO / 1_000_000)


@functools.cache
def _table() -> dict[str, ModelFacts]:
    with open(__file__.removesuffix(".py") + ".json", "rb") as file:
        return msgspec.json.decode(file.read(), type=dict[str, ModelFacts])


_overrides: dict[str, ModelFacts] = {}


def override(rows: Mapping[str, Mapping[str, Any]]) -> None:
    """Put rows of the user's over the table, by model id or "provider:model-id". Raises ConfigError naming the row."""
    for name, row in rows.items():
        try:
            _overrides[name] = msgspec.convert(row, ModelFacts)
        except msgspec.ValidationError as error:
            raise ConfigError(f"models.{name}: {error}.") from None
    facts_of.cache_clear()


@functools.lru_cache(maxsize=512)
def facts_of(provider: str, model: str) -> ModelFacts:
    """Return what is known of a model; unknown ones have every field None.

    The user's rows come first, then the table; "provider:model" before "model", and a dated or tagged id
    ("gpt-4.1-2025-04-14") takes the row of the longest id it starts with. Models on this machine cost nothing.
    """
    names = (f"{provider}:{model}", model, model.rsplit("/", 1)[-1])
    for rows in (_overrides, _table()):
        for name in names:
            if (found := rows.get(name)) is not None:
                return found
    for rows in (_overrides, _table()):
        for name in names:
            near = [key for key in rows if name.startswith((f"{key}-", f"{key}:", f"{key}@"))]
            if near:
                return rows[max(near, key=len)]
    if provider in _FREE:
        return ModelFacts(prices=Prices(0.0, 0.0))
    return ModelFacts()


#: Providers that run on the user's own machine.
_FREE = frozenset({"local", "echo", "fault", "ollama", "llama_cpp", "lmstudio", "vllm"})
