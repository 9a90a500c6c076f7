"""Read a client's chat-completions request: everything the official SDKs send, the legacy function fields included.

Every refusal is a BadRequestError whose text begins with the path of the field, as in `messages[2].content: ...`.
Source: platform.openai.com/docs/api-reference/chat/create.
"""

from __future__ import annotations

import binascii
from collections.abc import Iterable
from typing import Any, Literal, get_args

from windlass.core.errors import BadRequestError
from windlass.core.items import parse_arguments
from windlass.core.json import JsonError, loads
from windlass.core.messages import (
    Blob,
    Message,
    Part,
    Reasoning,
    Text,
    ToolCall,
    ToolResponse,
    UnknownPart,
    Uri,
)
from windlass.core.request import Request, Settings, ThinkingLevel, ToolSpec
from windlass.wire.base import DecodedRequest, as_dict, as_str, bad_field
from windlass.wire.openai_chat_answer import KEY

__all__ = ["decode_request"]

_KNOWN = frozenset(
    (
        "model", "messages", "stream", "tools", "tool_choice", "functions", "function_call", "temperature", "top_p",
        "top_k", "max_tokens", "max_completion_tokens", "stop", "seed", "random_seed", "presence_penalty",
        "frequency_penalty", "repetition_penalty", "repeat_penalty", "parallel_tool_calls",
    )
)  # fmt: skip
_EFFORTS = frozenset(get_args(ThinkingLevel)) - {"off", "adaptive"}
_AUDIO_TYPES = {"mp3": "audio/mpeg", "wav": "audio/wav"}
#: No vendor takes more; a larger number would overflow somewhere behind us.
_MOST_TOKENS = (1 << 31) - 1
_MOST_CHOICES = 128


def decode_request(body: bytes) -> DecodedRequest:
    """Read a request body. Raises BadRequestError that names the field.

    Leading system and developer messages become `request.system`, joined by an empty line. `extra` keeps what has no
    word of ours, `stream_options` and `metadata` (which is in `request.metadata` too) among it.
    """
    try:
        data: Any = loads(body)
    except JsonError as error:
        raise BadRequestError(f"The request body is {error}.", status=400, provider_code="invalid_json") from None
    if not isinstance(data, dict):
        raise BadRequestError("The request body must be a JSON object.", status=400, provider_code="invalid_json")
    fields: dict[str, Any] = {str(key): value for key, value in data.items() if value is not None}
    extra = {key: value for key, value in fields.items() if key not in _KNOWN}
    if "n" in fields:
        _whole(fields, "n", 1, _MOST_CHOICES)
    system, messages = _messages(_array(fields, "messages", required=True))
    request = Request(
        model=_text(fields, "model", required=True),
        messages=messages,
        system=system,
        tools=_tools(fields),
        tool_choice=_tool_choice(fields, extra),
        settings=_settings(fields, extra),
        output_schema=_schema(extra),
        metadata=as_dict(fields.get("metadata")),
    )
    return DecodedRequest(request, _flag(fields, "stream") or False, extra)


# ------------------------------------------------------------------------------------------------------- plain fields


def _array(fields: dict[str, Any], name: str, path: str = "", *, required: bool = False) -> list[Any]:
    value = fields.get(name)
    if value is None and not required:
        return []
    if not isinstance(value, list):
        raise bad_field(path + name, "must be an array")
    if required and not value:
        raise bad_field(path + name, "must not be empty")
    return value  # pyright: ignore[reportUnknownVariableType]


def _object(value: Any, path: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise bad_field(path, "must be an object")
    return value  # pyright: ignore[reportUnknownVariableType]


def _text(fields: dict[str, Any], name: str, path: str = "", *, required: bool = False) -> str:
    value = fields.get(name)
    if value is None and not required:
        return ""
    if not isinstance(value, str):
        raise bad_field(path + name, "must be a string")
    if required and not value:
        raise bad_field(path + name, "must not be empty")
    return value


def _flag(fields: dict[str, Any], name: str) -> bool | None:
    value = fields.get(name)
    if value is not None and not isinstance(value, bool):
        raise bad_field(name, "must be true or false")
    return value


def _whole(fields: dict[str, Any], name: str, low: int, high: int) -> int | None:
    value = fields.get(name)
    if value is None:
        return None
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, float))
        or value != value // 1
        or not low <= value <= high
    ):
        raise bad_field(name, f"must be a whole number from {low} to {high}")
    return int(value)


def _number(fields: dict[str, Any], name: str, low: float, high: float) -> float | None:
    value = fields.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise bad_field(name, f"must be a number from {low:g} to {high:g}")
    return value


def _settings(fields: dict[str, Any], extra: dict[str, Any]) -> Settings:
    stop = fields.get("stop")
    words = [stop] if isinstance(stop, str) else _array(fields, "stop")
    for at, word in enumerate(words):
        if not isinstance(word, str):
            raise bad_field(f"stop[{at}]", "must be a string")
    return Settings(
        max_tokens=_first(_whole(fields, name, 1, _MOST_TOKENS) for name in ("max_completion_tokens", "max_tokens")),
        temperature=_number(fields, "temperature", 0, 2),
        top_p=_number(fields, "top_p", 0, 1),
        top_k=_whole(fields, "top_k", 0, _MOST_TOKENS),
        stop=tuple(words),
        seed=_first(_whole(fields, name, -(1 << 63), (1 << 63) - 1) for name in ("seed", "random_seed")),
        presence_penalty=_number(fields, "presence_penalty", -2, 2),
        frequency_penalty=_number(fields, "frequency_penalty", -2, 2),
        repeat_penalty=_first(_number(fields, name, 0, 10) for name in ("repetition_penalty", "repeat_penalty")),
        thinking=_thinking(extra),
        parallel_tool_calls=_flag(fields, "parallel_tool_calls"),
    )


def _first(values: Iterable[Any]) -> Any:
    return next((value for value in values if value is not None), None)


def _thinking(extra: dict[str, Any]) -> ThinkingLevel | None:
    effort = extra.get("reasoning_effort")
    if effort is not None and not isinstance(effort, str):
        raise bad_field("reasoning_effort", "must be a string")
    # A word that we do not know (`xhigh`) stays in `extra` and goes on as it is.
    if effort != "none" and effort not in _EFFORTS:
        return None
    del extra["reasoning_effort"]
    level: Any = "off" if effort == "none" else effort
    return level


def _schema(extra: dict[str, Any]) -> dict[str, Any] | None:
    if "response_format" not in extra:
        return None
    form = _object(extra["response_format"], "response_format")
    kind = _text(form, "type", "response_format.", required=True)
    if kind not in ("text", "json_schema"):
        return None
    del extra["response_format"]
    if kind == "text":
        return None
    inner = _object(form.get("json_schema"), "response_format.json_schema")
    return _object(inner.get("schema", {}), "response_format.json_schema.schema")


# ------------------------------------------------------------------------------------------------------------ tools


def _tools(fields: dict[str, Any]) -> tuple[ToolSpec, ...]:
    entries = [(f"tools[{at}]", item) for at, item in enumerate(_array(fields, "tools"))]
    legacy = [(f"functions[{at}]", {"function": item}) for at, item in enumerate(_array(fields, "functions"))]
    out: list[ToolSpec] = []
    names: set[str] = set()
    for path, item in [*entries, *legacy]:
        tool = _object(item, path)
        if tool.get("type", "function") != "function":
            raise bad_field(f"{path}.type", "must be 'function'; other kinds of tools cannot be carried")
        function = _object(tool.get("function"), f"{path}.function")
        name = _text(function, "name", f"{path}.function.", required=True)
        if name in names:
            raise bad_field(f"{path}.function.name", f"repeats {name!r}; names must be unique")
        names.add(name)
        schema = function.get("parameters")
        out.append(
            ToolSpec(
                name,
                _text(function, "description", f"{path}.function."),
                {"type": "object", "properties": {}}
                if schema is None
                else _object(schema, f"{path}.function.parameters"),
            )
        )
    return tuple(out)


def _tool_choice(fields: dict[str, Any], extra: dict[str, Any]) -> str:
    choice = fields.get("tool_choice")
    if choice is None:
        choice = fields.get("function_call")
    if choice is None:
        return "auto"
    if isinstance(choice, str):
        if choice not in ("auto", "none", "required", "any"):
            raise bad_field("tool_choice", "must be auto, none, required, or an object that names a function")
        return "required" if choice == "any" else choice
    form = _object(choice, "tool_choice")
    if form.get("type") == "allowed_tools":
        # Sent on as it came to those who know it; to all others only its mode means something.
        extra["tool_choice"] = form
        inner = _object(form.get("allowed_tools"), "tool_choice.allowed_tools")
        return "required" if inner.get("mode") == "required" else "auto"
    if "tool_choice" not in fields:
        return _text(form, "name", "function_call.", required=True)
    function = _object(form.get("function"), "tool_choice.function")
    return _text(function, "name", "tool_choice.function.", required=True)


# --------------------------------------------------------------------------------------------------------- messages


def _messages(items: list[Any]) -> tuple[str | None, list[Message]]:
    system: list[str] = []
    out: list[Message] = []
    legacy: dict[str, str] = {}
    for at, item in enumerate(items):
        path = f"messages[{at}]"
        fields = _object(item, path)
        role = _text(fields, "role", f"{path}.", required=True).lower()
        name = _text(fields, "name", f"{path}.") or None
        if role in ("system", "developer"):
            text = _plain(fields, path)
            if out:
                out.append(Message("system", (Text(text),), name))
            else:
                system.append(text)
        elif role == "user":
            out.append(Message("user", _content(fields, path), name))
        elif role == "assistant":
            out.append(_assistant(fields, path, name, at, legacy))
        elif role == "tool":
            call_id = _text(fields, "tool_call_id", f"{path}.", required=True)
            out.append(Message("tool", (ToolResponse(call_id, _result(fields, path)),)))
        elif role == "function":
            call_id = legacy.get(_text(fields, "name", f"{path}.", required=True), f"call_{at}")
            out.append(Message("tool", (ToolResponse(call_id, _plain(fields, path)),)))
        else:
            raise bad_field(f"{path}.role", "must be system, developer, user, assistant or tool")
    return ("\n\n".join(system) if system else None), out


def _assistant(fields: dict[str, Any], path: str, name: str | None, at: int, legacy: dict[str, str]) -> Message:
    parts: list[Part] = []
    details = fields.get("reasoning_details")
    thought = as_str(fields.get("reasoning_content")) or as_str(fields.get("reasoning"))
    if thought or (isinstance(details, list) and details):
        parts.append(Reasoning(thought, {KEY: {"reasoning_details": details}} if details else None))
    content = fields.get("content")
    if content is not None:
        parts += _content(fields, path)
    refusal = _text(fields, "refusal", f"{path}.")
    if refusal:
        parts.append(Text(refusal))
    for number, item in enumerate(_array(fields, "tool_calls", f"{path}.")):
        where = f"{path}.tool_calls[{number}]"
        entry = _object(item, where)
        call_id = _text(entry, "id", f"{where}.", required=True)
        rest = {key: value for key, value in entry.items() if key not in ("id", "type", "index", "function")}
        parts.append(_call(call_id, entry.get("function"), f"{where}.function", {KEY: rest} if rest else None))
    function = fields.get("function_call")
    if function is not None:
        call = _call(f"call_{at}", function, f"{path}.function_call", None)
        legacy[call.name] = call.id
        parts.append(call)
    if not parts and content is None and "audio" not in fields:
        raise bad_field(f"{path}.content", "must be given when there are no tool_calls")
    return Message("assistant", tuple(parts), name, finish_reason="refusal" if refusal else None)


def _call(call_id: str, value: Any, path: str, metadata: dict[str, Any] | None) -> ToolCall:
    function = _object(value, path)
    arguments, text = parse_arguments(_text(function, "arguments", f"{path}."))
    return ToolCall(call_id, _text(function, "name", f"{path}.", required=True), arguments, text, metadata)


def _plain(fields: dict[str, Any], path: str) -> str:
    """Return content that may hold text only, joined."""
    parts = _content(fields, path)
    for at, part in enumerate(parts):
        if not isinstance(part, Text):
            raise bad_field(f"{path}.content[{at}]", "must be a text part")
    return "".join([part.content for part in parts if isinstance(part, Text)])


def _result(fields: dict[str, Any], path: str) -> str | tuple[Text | Blob | Uri, ...]:
    parts = [part for part in _content(fields, path) if isinstance(part, (Text, Blob, Uri))]
    if all(isinstance(part, Text) for part in parts):
        return "".join([part.content for part in parts if isinstance(part, Text)])
    return tuple(parts)


def _content(fields: dict[str, Any], path: str) -> tuple[Part, ...]:
    content = fields.get("content")
    if isinstance(content, str):
        return (Text(content),) if content else ()
    if not isinstance(content, list):
        raise bad_field(f"{path}.content", "must be a string or an array of parts")
    return tuple([_part(item, f"{path}.content[{at}]") for at, item in enumerate(content)])


def _part(item: Any, path: str) -> Part:
    fields = {"type": "text", "text": item} if isinstance(item, str) else _object(item, path)
    kind = _text(fields, "type", f"{path}.", required=True)
    if kind in ("text", "refusal"):
        text = fields.get(kind)
        if not isinstance(text, str):
            raise bad_field(f"{path}.{kind}", "must be a string")
        return Text(text)
    if kind in ("image_url", "video_url"):
        return _visual(fields.get(kind), f"{path}.{kind}", "image" if kind == "image_url" else "video")
    if kind == "input_audio":
        inner = _object(fields.get(kind), f"{path}.{kind}")
        form = _text(inner, "format", f"{path}.{kind}.", required=True)
        data = _base64(_text(inner, "data", f"{path}.{kind}.", required=True), f"{path}.{kind}.data")
        return Blob(data, _AUDIO_TYPES.get(form, f"audio/{form}"), "audio")
    if kind == "file":
        return _file(_object(fields.get(kind), f"{path}.{kind}"), f"{path}.{kind}")
    # Cache marks are dropped from every part: encoding makes its own.
    return UnknownPart({key: value for key, value in fields.items() if key != "cache_control"})


def _visual(value: Any, path: str, modality: Literal["image", "video"]) -> Part:
    inner = {"url": value} if isinstance(value, str) else _object(value, path)
    url = _text(inner, "url", f"{path}.", required=True)
    detail = _text(inner, "detail", f"{path}.")
    metadata = {KEY: {"detail": detail}} if detail else None
    if url[:5].lower() != "data:":
        return Uri(url, None, modality, None, metadata)
    data, mime = _data_url(url, f"{path}.url")
    return Blob(data, mime, modality, None, metadata)


def _file(inner: dict[str, Any], path: str) -> Part:
    name = _text(inner, "filename", f"{path}.") or None
    file_id = _text(inner, "file_id", f"{path}.")
    if file_id:
        return Uri(file_id, None, "document", name, {KEY: {"file_id": file_id}})
    url = _text(inner, "file_data", f"{path}.", required=True)
    if url[:4].lower() == "http":
        return Uri(url, None, "document", name)
    data, mime = _data_url(url, f"{path}.file_data")
    return Blob(data, mime, "image" if mime.startswith("image/") else "document", name)


def _data_url(url: str, path: str) -> tuple[bytes, str]:
    """Return the bytes and type of a base64 data URL (RFC 2397)."""
    head, comma, data = url.partition(",")
    mime, *options = head[5:].split(";")
    if url[:5].lower() != "data:" or not comma or "base64" not in options or not mime:
        raise bad_field(path, "must be a data URL of the form data:<type>;base64,<data>")
    return _base64(data, path), mime.lower()


def _base64(data: str, path: str) -> bytes:
    # Line breaks are allowed (RFC 2045); anything else that is not base64 is a truncated or foreign string.
    try:
        return binascii.a2b_base64("".join(data.split()).encode("ascii"), strict_mode=True)
    except (binascii.Error, UnicodeEncodeError):
        raise bad_field(path, "must be base64") from None
