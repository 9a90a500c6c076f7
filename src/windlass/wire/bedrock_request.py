"""Read what a client sends to Bedrock's Converse and ConverseStream."""

from __future__ import annotations

import math
from typing import Any

from windlass.core.errors import BadRequestError, ConfigError
from windlass.core.json import JsonError, loads
from windlass.core.messages import Message
from windlass.core.request import Request, Settings, ThinkingLevel, ToolSpec
from windlass.wire.base import DecodedRequest, as_dict, as_list, as_str, bad_field
from windlass.wire.bedrock_blocks import decode_message

__all__ = ["decode_request"]

_KNOWN = frozenset(("modelId", "messages", "system", "inferenceConfig", "toolConfig"))


def decode_request(body: bytes) -> DecodedRequest:
    """Read a client's body. Raises BadRequestError that names the field.

    The model and whether to stream stand in the URL: `request.model` is "" (or a `modelId` of the body) and `stream`
    False for the server to fill. `cache` is on when the client set a cache point anywhere: ours are placed by our own
    rule. All fields without a word of ours are in `extra`.
    """
    try:
        data = loads(body)
    except JsonError as error:
        raise BadRequestError(f"The body is {error}.", status=400) from None
    if not isinstance(data, dict):
        raise BadRequestError("The body must be a JSON object.", status=400)
    extra: dict[str, Any] = {key: value for key, value in data.items() if key not in _KNOWN and value is not None}
    tools, choice = _tools(_object(data, "toolConfig"), extra)
    request = Request(
        model=as_str(data.get("modelId")),
        messages=_messages(data.get("messages")),
        system=_system(data.get("system")),
        tools=tools,
        tool_choice=choice,
        output_schema=_schema(extra),
        settings=_settings(_object(data, "inferenceConfig"), extra),
        cache=b'"cachePoint"' in body,
    )
    return DecodedRequest(request, False, extra)


def _object(data: dict[str, Any], key: str, path: str = "") -> dict[str, Any]:
    value = data.get(key)
    if value is not None and not isinstance(value, dict):
        raise bad_field(path or key, "must be an object")
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
    texts: list[str] = []
    for at, block in enumerate(_array(value, "system")):
        if not isinstance(block, dict):
            raise bad_field(f"system[{at}]", "must be an object")
        guarded = as_dict(as_dict(block.get("guardContent")).get("text"))
        text = block.get("text", guarded.get("text"))
        if isinstance(text, str):
            texts.append(text)
        elif "cachePoint" not in block:
            raise bad_field(f"system[{at}]", "must hold text")
    return "\n\n".join([text for text in texts if text]) or None


# ------------------------------------------------------------------------------------------------------------ tools


def _tools(config: dict[str, Any], extra: dict[str, Any]) -> tuple[tuple[ToolSpec, ...], str]:
    out: list[ToolSpec] = []
    theirs: list[Any] = []
    for at, tool in enumerate(_array(config.get("tools"), "toolConfig.tools")):
        path = f"toolConfig.tools[{at}]"
        if not isinstance(tool, dict):
            raise bad_field(path, "must be an object")
        if tool.get("toolSpec") is not None:
            out.append(_spec(tool["toolSpec"], f"{path}.toolSpec"))
        elif tool.get("cachePoint") is None:
            theirs.append(tool)
    if theirs:
        # Tools that run at the vendor.
        extra["toolConfig"] = {"tools": theirs}
    return tuple(out), _choice(_object(config, "toolChoice", "toolConfig.toolChoice"))


def _spec(spec: Any, path: str) -> ToolSpec:
    if not isinstance(spec, dict):
        raise bad_field(path, "must be an object")
    name, description = spec.get("name"), spec.get("description")
    if not isinstance(name, str) or not name:
        raise bad_field(f"{path}.name", "must be a name")
    if description is not None and not isinstance(description, str):
        raise bad_field(f"{path}.description", "must be a string")
    schema = as_dict(spec.get("inputSchema")).get("json")
    if not isinstance(schema, dict):
        raise bad_field(f"{path}.inputSchema.json", "must be a JSON Schema object")
    return ToolSpec(name, description or "", schema)


def _choice(choice: dict[str, Any]) -> str:
    kinds = [kind for kind, value in choice.items() if value is not None]
    if not kinds or kinds == ["auto"]:
        return "auto"
    if kinds == ["any"]:
        return "required"
    name = as_str(as_dict(choice.get("tool")).get("name"))
    if kinds != ["tool"] or not name:
        raise bad_field("toolConfig.toolChoice", "must be auto, any, or a tool with its name")
    return name


# --------------------------------------------------------------------------------------------------------- settings


def _settings(config: dict[str, Any], extra: dict[str, Any]) -> Settings:
    stop = _array(config.get("stopSequences"), "inferenceConfig.stopSequences")
    for at, text in enumerate(stop):
        if not isinstance(text, str):
            raise bad_field(f"inferenceConfig.stopSequences[{at}]", "must be a string")
    more = dict(_object(extra, "additionalModelRequestFields"))
    level, budget = _thinking(more, extra)
    top_k = _top_k(more)
    _keep(extra, "additionalModelRequestFields", more)
    try:
        return Settings(
            max_tokens=_whole(config, "maxTokens"),
            temperature=_fraction(config, "temperature"),
            top_p=_fraction(config, "topP"),
            top_k=top_k,
            stop=tuple(stop),
            thinking=level,
            thinking_budget=budget,
        )
    except ConfigError as error:
        raise BadRequestError(str(error), status=400) from None


def _keep(extra: dict[str, Any], key: str, value: dict[str, Any]) -> None:
    """Keep what is left of a field; nothing of it when our words say it all."""
    if value:
        extra[key] = value
    else:
        extra.pop(key, None)


def _top_k(more: dict[str, Any]) -> int | None:
    """Take `top_k` out of the model's own fields, where the models' makers have it."""
    nested = as_dict(more.get("inferenceConfig"))
    holder, key = (more, "top_k") if "top_k" in more else (nested, "topK")
    value = holder.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 1 << 31:
        return None
    if holder is nested:
        _keep(more, "inferenceConfig", {name: field for name, field in nested.items() if name != key})
    else:
        del more[key]
    return value


def _thinking(more: dict[str, Any], extra: dict[str, Any]) -> tuple[ThinkingLevel | None, int | None]:
    """Take Claude's `thinking` out of the model's own fields, and the effort that goes with the adaptive kind."""
    thinking = as_dict(more.get("thinking"))
    kind, budget = thinking.get("type"), thinking.get("budget_tokens")
    if kind == "enabled":
        if isinstance(budget, bool) or not isinstance(budget, int) or budget < 1:
            path = "additionalModelRequestFields.thinking.budget_tokens"
            raise bad_field(path, "must be a positive whole number")
        del more["thinking"]
        return None, budget
    if kind == "disabled":
        del more["thinking"]
        return "off", None
    if kind != "adaptive":
        return None, None
    del more["thinking"]
    output = dict(as_dict(extra.get("outputConfig")))
    effort = output.pop("effort", None)
    levels: dict[Any, ThinkingLevel] = {"low": "low", "medium": "medium", "high": "high"}
    if isinstance(effort, str) and effort in levels:
        _keep(extra, "outputConfig", output)
        return levels[effort], None
    return "adaptive", None


def _schema(extra: dict[str, Any]) -> dict[str, Any] | None:
    """Take the schema of the answer out of `outputConfig`, where it is the text of a JSON object."""
    output = dict(_object(extra, "outputConfig"))
    form = output.pop("textFormat", None)
    if form is None:
        return None
    text = as_dict(as_dict(as_dict(form).get("structure")).get("jsonSchema")).get("schema")
    try:
        schema = loads(text) if isinstance(text, str) else None
    except JsonError:
        schema = None
    if as_dict(form).get("type") != "json_schema" or not isinstance(schema, dict):
        raise bad_field("outputConfig.textFormat", "must be of type json_schema with a schema as JSON text")
    _keep(extra, "outputConfig", output)
    return schema


def _whole(config: dict[str, Any], key: str) -> int | None:
    value = config.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 1 << 31:
        raise bad_field(f"inferenceConfig.{key}", "must be a positive whole number")
    return value


def _fraction(config: dict[str, Any], key: str) -> float | None:
    value = config.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise bad_field(f"inferenceConfig.{key}", "must be a number from 0 to 1")
    if not 0 <= value <= 1:
        raise bad_field(f"inferenceConfig.{key}", "must be a number from 0 to 1")
    return float(value)
