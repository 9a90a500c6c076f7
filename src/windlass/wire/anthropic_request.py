"""Read what a client sends to an Anthropic messages endpoint."""

from __future__ import annotations

import math
from typing import Any, cast

from windlass.core.errors import BadRequestError, ConfigError
from windlass.core.json import JsonError, loads
from windlass.core.messages import Message, Text
from windlass.core.request import Request, Settings, ThinkingLevel, ToolSpec
from windlass.wire.anthropic_blocks import decode_block, decode_message
from windlass.wire.base import DecodedRequest, as_dict, as_list, bad_field

__all__ = ["decode_request"]

_KNOWN = frozenset(
    (
        "model", "messages", "system", "max_tokens", "temperature", "top_p", "top_k", "stop_sequences", "stream",
        "thinking", "tools", "tool_choice", "metadata", "output_config",
    )
)  # fmt: skip


def decode_request(body: bytes) -> DecodedRequest:
    """Read a client's body. Raises BadRequestError that names the field.

    `cache` is on when the client marked anything for caching: its marks in `system` and `tools` become ours. Tools that
    run at the vendor, and all fields without a word of ours, are in `extra`.
    """
    try:
        data = loads(body)
    except JsonError as error:
        raise BadRequestError(f"The body is {error}.", status=400) from None
    if not isinstance(data, dict):
        raise BadRequestError("The body must be a JSON object.", status=400)
    model = data.get("model")
    if not isinstance(model, str) or not model:
        raise bad_field("model", "must be the name of a model")
    stream = data.get("stream")
    if stream is not None and not isinstance(stream, bool):
        raise bad_field("stream", "must be true or false")
    extra = {key: value for key, value in data.items() if key not in _KNOWN}
    tools = _tools(data.get("tools"), extra)
    choice, alone = _tool_choice(data.get("tool_choice"))
    config = dict(_object(data.get("output_config"), "output_config"))
    request = Request(
        model=model,
        messages=_messages(data.get("messages")),
        system=_system(data.get("system")),
        tools=tools,
        tool_choice=choice,
        settings=_settings(data, config, extra, alone),
        output_schema=_schema(config),
        cache=b'"cache_control"' in body,
        metadata=_object(data.get("metadata"), "metadata"),
    )
    if config:
        extra["output_config"] = config
    return DecodedRequest(request, stream or False, extra)


def _object(value: Any, path: str) -> dict[str, Any]:
    if value is not None and not isinstance(value, dict):
        raise bad_field(path, "must be an object")
    return as_dict(value)


def _array(value: Any, path: str) -> list[Any]:
    if value is not None and not isinstance(value, list):
        raise bad_field(path, "must be an array")
    return as_list(value)


def _messages(value: Any) -> list[Message]:
    rows = _array(value, "messages")
    if not rows:
        raise bad_field("messages", "must be an array of at least one message")
    return [message for at, row in enumerate(rows) for message in decode_message(row, f"messages[{at}]")]


def _system(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value or None
    if not isinstance(value, list):
        raise bad_field("system", "must be a string or an array of text blocks")
    texts: list[str] = []
    for at, block in enumerate(value):
        part = decode_block(block, f"system[{at}]")
        if not isinstance(part, Text):
            raise bad_field(f"system[{at}].type", "must be text")
        texts.append(part.content)
    return "\n\n".join([text for text in texts if text]) or None


def _tools(value: Any, extra: dict[str, Any]) -> tuple[ToolSpec, ...]:
    out: list[ToolSpec] = []
    theirs: list[Any] = []
    for at, tool in enumerate(_array(value, "tools")):
        path = f"tools[{at}]"
        if not isinstance(tool, dict):
            raise bad_field(path, "must be an object")
        if tool.get("type") not in (None, "custom"):
            theirs.append(tool)
            continue
        name, description = tool.get("name"), tool.get("description")
        if not isinstance(name, str) or not name:
            raise bad_field(f"{path}.name", "must be a name")
        if description is not None and not isinstance(description, str):
            raise bad_field(f"{path}.description", "must be a string")
        schema = tool.get("input_schema")
        if not isinstance(schema, dict):
            raise bad_field(f"{path}.input_schema", "must be a JSON Schema object")
        out.append(ToolSpec(name, description or "", schema))
    if theirs:
        extra["tools"] = theirs
    return tuple(out)


def _tool_choice(value: Any) -> tuple[str, bool]:
    """Return (our word, whether only one call at a time is wanted)."""
    choice = _object(value, "tool_choice")
    if not choice:
        return "auto", False
    alone = choice.get("disable_parallel_tool_use")
    if alone is not None and not isinstance(alone, bool):
        raise bad_field("tool_choice.disable_parallel_tool_use", "must be true or false")
    kind, name = choice.get("type"), choice.get("name")
    if kind == "tool":
        if not isinstance(name, str) or not name:
            raise bad_field("tool_choice.name", "must be the name of a tool")
        return name, bool(alone)
    word = {"auto": "auto", "any": "required", "none": "none"}.get(kind) if isinstance(kind, str) else None
    if word is None:
        raise bad_field("tool_choice.type", "must be auto, any, tool or none")
    return word, bool(alone)


def _schema(config: dict[str, Any]) -> dict[str, Any] | None:
    form = config.get("format")
    if form is None:
        config.pop("format", None)
        return None
    schema = as_dict(form).get("schema")
    if as_dict(form).get("type") != "json_schema" or not isinstance(schema, dict):
        raise bad_field("output_config.format", "must be of type json_schema with a schema object")
    del config["format"]
    return schema


def _thinking(value: Any, config: dict[str, Any], extra: dict[str, Any]) -> tuple[ThinkingLevel | None, int | None]:
    thinking = _object(value, "thinking")
    kind = thinking.get("type")
    if not thinking:
        return None, None
    if kind == "enabled":
        budget = thinking.get("budget_tokens")
        if isinstance(budget, bool) or not isinstance(budget, int) or budget < 1:
            raise bad_field("thinking.budget_tokens", "must be a positive whole number")
        return None, budget
    if kind == "disabled":
        return "off", None
    if kind == "adaptive":
        effort = config.get("effort")
        if effort in ("low", "medium", "high"):
            del config["effort"]
            return cast("ThinkingLevel", effort), None
        return "adaptive", None
    if not isinstance(kind, str):
        raise bad_field("thinking.type", "must be enabled, disabled or adaptive")
    extra["thinking"] = thinking
    return None, None


def _settings(data: dict[str, Any], config: dict[str, Any], extra: dict[str, Any], alone: bool) -> Settings:
    stop = _array(data.get("stop_sequences"), "stop_sequences")
    for at, text in enumerate(stop):
        if not isinstance(text, str):
            raise bad_field(f"stop_sequences[{at}]", "must be a string")
    level, budget = _thinking(data.get("thinking"), config, extra)
    try:
        return Settings(
            max_tokens=_whole(data, "max_tokens"),
            temperature=_fraction(data, "temperature"),
            top_p=_fraction(data, "top_p"),
            top_k=_whole(data, "top_k"),
            stop=tuple(stop),
            thinking=level,
            thinking_budget=budget,
            parallel_tool_calls=False if alone else None,
        )
    except ConfigError as error:
        raise BadRequestError(str(error), status=400) from None


def _whole(data: dict[str, Any], key: str) -> int | None:
    value = data.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 1 << 31:
        raise bad_field(key, "must be a positive whole number")
    return value


def _fraction(data: dict[str, Any], key: str) -> float | None:
    value = data.get(key)
    if value is None:
        return None
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, float))
        or not math.isfinite(value)
        or not 0 <= value <= 1
    ):
        raise bad_field(key, "must be a number from 0 to 1")
    return float(value)
