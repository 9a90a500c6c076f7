"""Read what a client sends to generateContent or streamGenerateContent (ai.google.dev/api/generate-content)."""

from __future__ import annotations

import math
from typing import Any, Final

from windlass.core.errors import BadRequestError, ConfigError
from windlass.core.json import JsonError, loads
from windlass.core.messages import Text
from windlass.core.request import Request, Settings, ThinkingLevel, ToolSpec
from windlass.wire.base import DecodedRequest, as_dict, as_str, bad_field
from windlass.wire.gemini_parts import camel, decode_contents, decode_part

__all__ = ["FIELDS", "decode_request", "json_schema"]

#: (name in `generationConfig`, name in our settings).
FIELDS: Final = (
    ("temperature", "temperature"),
    ("topP", "top_p"),
    ("topK", "top_k"),
    ("maxOutputTokens", "max_tokens"),
    ("seed", "seed"),
    ("presencePenalty", "presence_penalty"),
    ("frequencyPenalty", "frequency_penalty"),
)
_WHOLE = frozenset(("topK", "maxOutputTokens", "seed"))
_KNOWN = frozenset(("model", "contents", "systemInstruction", "tools", "toolConfig", "generationConfig"))
_LEVELS: Final[dict[str, ThinkingLevel]] = {"MINIMAL": "minimal", "LOW": "low", "MEDIUM": "medium", "HIGH": "high"}
_NO_TYPE = "TYPE_UNSPECIFIED"


def decode_request(body: bytes) -> DecodedRequest:
    """Read a client's body. Raises BadRequestError that names the field.

    Model and streaming stand in the URL of this API: `model` is "" unless the body has one, `stream` is False, and the
    server fills them in. Tools that run at the vendor, and all fields without a word of ours, are in `extra`.
    """
    try:
        data = loads(body)
    except JsonError as error:
        raise BadRequestError(f"The body is {error}.", status=400) from None
    if not isinstance(data, dict):
        raise BadRequestError("The body must be a JSON object.", status=400)
    fields = {key: value for key, value in camel(data, "body").items() if value is not None}
    contents = _array(fields, "contents")
    if not contents:
        raise bad_field("contents", "must be an array of at least one content")
    extra = {key: value for key, value in fields.items() if key not in _KNOWN}
    tools = _tools(_array(fields, "tools"), extra)
    config = camel(fields.get("generationConfig", {}), "generationConfig")
    request = Request(
        model=_model(fields.get("model")),
        messages=decode_contents(contents),
        system=_system(fields.get("systemInstruction")),
        tools=tools,
        tool_choice=_tool_choice(fields.get("toolConfig"), extra),
        settings=_settings(config),
        output_schema=_output_schema(config),
    )
    if rest := {key: value for key, value in config.items() if value is not None}:
        extra["generationConfig"] = rest
    return DecodedRequest(request, False, extra)


def _model(value: Any) -> str:
    if value is not None and not isinstance(value, str):
        raise bad_field("model", "must be a string")
    return (value or "").removeprefix("models/")


def _array(fields: dict[str, Any], key: str, path: str = "") -> list[Any]:
    value = fields.get(key)
    if value is None:
        return []
    if not isinstance(value, list):
        raise bad_field(path + key, "must be an array")
    return value  # pyright: ignore[reportUnknownVariableType]


def _system(value: Any) -> str | None:
    if value is None:
        return None
    if isinstance(value, str):
        return value or None
    fields = camel(value, "systemInstruction")
    texts: list[str] = []
    for at, item in enumerate(_array(fields, "parts", "systemInstruction.")):
        path = f"systemInstruction.parts[{at}]"
        part = decode_part(camel(item, path), path)
        if not isinstance(part, Text):
            raise bad_field(path, "must be text")
        texts.append(part.content)
    return "\n\n".join([text for text in texts if text]) or None


# ------------------------------------------------------------------------------------------------------------ tools


def _tools(rows: list[Any], extra: dict[str, Any]) -> tuple[ToolSpec, ...]:
    out: list[ToolSpec] = []
    theirs: list[dict[str, Any]] = []
    for at, row in enumerate(rows):
        path = f"tools[{at}]"
        fields = camel(row, path)
        for number, item in enumerate(_array(fields, "functionDeclarations", f"{path}.")):
            out.append(_tool(item, f"{path}.functionDeclarations[{number}]"))
        rest = {key: value for key, value in fields.items() if key != "functionDeclarations" and value is not None}
        theirs += [rest] if rest else []
    if theirs:
        extra["tools"] = theirs
    return tuple(out)


def _tool(item: Any, path: str) -> ToolSpec:
    fields = camel(item, path)
    name, description = fields.get("name"), fields.get("description")
    if not isinstance(name, str) or not name:
        raise bad_field(f"{path}.name", "must be a name")
    if description is not None and not isinstance(description, str):
        raise bad_field(f"{path}.description", "must be a string")
    key = "parametersJsonSchema" if fields.get("parametersJsonSchema") is not None else "parameters"
    schema = fields.get(key)
    if schema is not None and not isinstance(schema, dict):
        raise bad_field(f"{path}.{key}", "must be a schema object")
    if schema is None:
        return ToolSpec(name, description or "")
    return ToolSpec(name, description or "", schema if key == "parametersJsonSchema" else json_schema(schema))


def json_schema(value: Any) -> Any:
    """Return JSON Schema for Google's `Schema`: its types are upper case, its counts strings, null is `nullable`."""
    if not isinstance(value, dict):
        return value
    out: dict[str, Any] = {}
    for raw, item in value.items():
        key = camel({raw: None}, "schema").popitem()[0]
        if key == "type" and isinstance(item, str):
            if item != _NO_TYPE:
                out["type"] = item.lower()
        elif key == "properties" and isinstance(item, dict):
            out["properties"] = {name: json_schema(inner) for name, inner in item.items()}
        elif key in ("items", "additionalProperties"):
            out[key] = json_schema(item)
        elif key in ("anyOf", "prefixItems") and isinstance(item, list):
            out[key] = [json_schema(inner) for inner in item]
        elif key.startswith(("min", "max")) and isinstance(item, str) and item.isdecimal() and len(item) < 20:
            out[key] = int(item)
        elif key not in ("nullable", "example"):
            out[key] = item
    if value.get("nullable") is True and "type" in out:
        out["type"] = [out["type"], "null"]
    return out


def _tool_choice(value: Any, extra: dict[str, Any]) -> str:
    """Return our word; what it cannot say stays in `extra`."""
    if value is None:
        return "auto"
    config = camel(value, "toolConfig")
    calling = camel(config.pop("functionCallingConfig", None) or {}, "toolConfig.functionCallingConfig")
    mode = calling.get("mode") or "AUTO"
    path = "toolConfig.functionCallingConfig"
    names = _array(calling, "allowedFunctionNames", f"{path}.")
    if any(not isinstance(name, str) or not name for name in names):
        raise bad_field(f"{path}.allowedFunctionNames", "must be an array of names")
    word = {"AUTO": "auto", "MODE_UNSPECIFIED": "auto", "VALIDATED": "auto", "NONE": "none", "ANY": "required"}
    if not isinstance(mode, str) or mode.upper() not in word:
        raise bad_field(f"{path}.mode", "must be AUTO, ANY, NONE or VALIDATED")
    choice = word[mode.upper()]
    alone = len(names) == 1 and choice == "required" and names[0] not in ("auto", "none", "required")
    if mode.upper() == "VALIDATED" or (names and not alone):
        config["functionCallingConfig"] = calling
    if config:
        extra["toolConfig"] = config
    return names[0] if alone else choice


# --------------------------------------------------------------------------------------------------------- settings


def _settings(config: dict[str, Any]) -> Settings:
    found: dict[str, Any] = {}
    for theirs, ours in FIELDS:
        value = config.pop(theirs, None)
        if value is not None:
            found[ours] = _number(value, theirs)
    if found.get("max_tokens") == 0:
        # proto3: a zero is a field that was not set.
        del found["max_tokens"]
    stop = _array(config, "stopSequences", "generationConfig.")
    config.pop("stopSequences", None)
    if any(not isinstance(word, str) for word in stop):
        raise bad_field("generationConfig.stopSequences", "must be an array of strings")
    level, budget = _thinking(config)
    try:
        return Settings(stop=tuple(stop), thinking=level, thinking_budget=budget, **found)
    except ConfigError as error:
        raise bad_field("generationConfig", str(error)) from None


def _number(value: Any, name: str) -> float:
    path = f"generationConfig.{name}"
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise bad_field(path, "must be a number")
    if name not in _WHOLE:
        return float(value)
    if value != int(value) or not -(1 << 31) <= value < 1 << 31:
        raise bad_field(path, "must be a whole number of 32 bits")
    return int(value)


def _thinking(config: dict[str, Any]) -> tuple[ThinkingLevel | None, int | None]:
    thinking = camel(config.pop("thinkingConfig", None) or {}, "generationConfig.thinkingConfig")
    budget, level = thinking.pop("thinkingBudget", None), thinking.get("thinkingLevel")
    shown = thinking.get("includeThoughts")
    if shown is not False:
        thinking.pop("includeThoughts", None)
    known = _LEVELS.get(as_str(level).upper())
    if known is not None:
        del thinking["thinkingLevel"]
    if thinking:
        config["thinkingConfig"] = thinking
    if known is not None:
        return known, None
    if budget is None:
        return ("adaptive" if shown is True else None), None
    if isinstance(budget, bool) or not isinstance(budget, int) or not -1 <= budget < 1 << 31:
        raise bad_field("generationConfig.thinkingConfig.thinkingBudget", "must be -1 or a number of tokens")
    if budget < 1:
        return ("off" if budget == 0 else "adaptive"), None
    return None, budget


def _output_schema(config: dict[str, Any]) -> dict[str, Any] | None:
    """Take the schema of a JSON answer out of the configuration; a JSON answer without one has no word of ours."""
    if config.get("responseMimeType") != "application/json":
        return None
    for key in ("responseJsonSchema", "responseSchema"):
        schema = config.get(key)
        if schema is None:
            continue
        if not isinstance(schema, dict):
            raise bad_field(f"generationConfig.{key}", "must be a schema object")
        del config[key], config["responseMimeType"]
        return as_dict(schema if key == "responseJsonSchema" else json_schema(schema))
    return None
