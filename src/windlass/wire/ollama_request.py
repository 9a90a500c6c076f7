"""Read what a client sends to Ollama's `/api/chat`."""

from __future__ import annotations

import base64
import binascii
import math
from typing import Any, Final

from windlass.core.attachments import blob
from windlass.core.errors import BadRequestError, ConfigError
from windlass.core.items import parse_arguments
from windlass.core.json import JsonError, loads
from windlass.core.messages import Blob, Message, Part, Reasoning, Text, ToolCall, ToolResponse, Uri
from windlass.core.request import Request, Settings, ThinkingLevel, ToolSpec
from windlass.wire.base import DecodedRequest, as_dict, as_list, as_str, bad_field
from windlass.wire.ollama_answer import argument_text

__all__ = ["OPTIONS", "decode_format", "decode_images", "decode_messages", "decode_request", "decode_settings"]

#: (name in `options`, name in our settings).
OPTIONS: Final = (
    ("num_predict", "max_tokens"),
    ("temperature", "temperature"),
    ("top_p", "top_p"),
    ("top_k", "top_k"),
    ("seed", "seed"),
    ("repeat_penalty", "repeat_penalty"),
    ("presence_penalty", "presence_penalty"),
    ("frequency_penalty", "frequency_penalty"),
)
_WHOLE = frozenset(("num_predict", "top_k", "seed"))
_KNOWN = frozenset(("model", "messages", "stream", "think", "tools", "tool_choice", "format", "options"))
_THINK: Final[dict[Any, ThinkingLevel]] = {"low": "low", "medium": "medium", "high": "high"}


def decode_request(body: bytes) -> DecodedRequest:
    """Read a client's body; a missing `stream` means true there. Raises BadRequestError that names the field.

    Options and fields without a word of ours are in `extra`.
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
    messages = decode_messages(_array(data.get("messages"), "messages"))
    system: list[str] = []
    while messages and messages[0].role == "system":
        system.append(messages.pop(0).text)
    choice = data.get("tool_choice")
    if choice is not None and (not isinstance(choice, str) or not choice):
        raise bad_field("tool_choice", "must be auto, none, required or the name of a tool")
    request = Request(
        model=model,
        messages=messages,
        system="\n\n".join([text for text in system if text]) or None,
        tools=_tools(data.get("tools")),
        tool_choice=choice or "auto",
        settings=decode_settings(data, extra),
        output_schema=decode_format(data.get("format"), extra),
    )
    return DecodedRequest(request, stream is not False, extra)


def _array(value: Any, path: str) -> list[Any]:
    if value is not None and not isinstance(value, list):
        raise bad_field(path, "must be an array")
    return as_list(value)


def _text(row: dict[str, Any], key: str, path: str) -> str:
    value = row.get(key)
    if value is not None and not isinstance(value, str):
        raise bad_field(f"{path}.{key}", "must be a string")
    return value or ""


# --------------------------------------------------------------------------------------------------------- messages


class _Open:
    """The calls that wait for their responses, and the ids given out: clients of this dialect often send none."""

    def __init__(self) -> None:
        self.calls: list[ToolCall] = []
        self.taken: set[str] = set()
        self._next = 0

    def new_id(self, wanted: str) -> str:
        while not wanted or wanted in self.taken:
            wanted = f"call_{self._next}"
            self._next += 1
        self.taken.add(wanted)
        return wanted

    def answer(self, call_id: str, name: str) -> str:
        """Return the id of the call that a response is for: by id, else by name, else the first that waits."""
        found = next((call for call in self.calls if call_id and call.id == call_id), None)
        if found is None:
            found = next((call for call in self.calls if name and call.name == name), None)
        if found is None and self.calls and not (call_id or name):
            found = self.calls[0]
        if found is None:
            return call_id or self.new_id("")
        self.calls.remove(found)
        return found.id


def decode_messages(rows: list[Any]) -> list[Message]:
    """Read messages; responses that follow each other become one tool message.

    Raises BadRequestError that names the field.
    """
    out: list[Message] = []
    waiting = _Open()
    for at, row in enumerate(rows):
        path = f"messages[{at}]"
        if not isinstance(row, dict):
            raise bad_field(path, "must be an object")
        role = row.get("role")
        text = _text(row, "content", path)
        images = decode_images(row.get("images"), f"{path}.images")
        if role == "assistant":
            out.append(_assistant(row, text, images, waiting, path))
        elif role == "tool":
            part = _response(row, text, images, waiting, path)
            before = out[-1].parts if out and out[-1].role == "tool" else ()
            out[len(out) - bool(before) :] = [Message("tool", (*before, part))]
        elif role == "user" or role == "system":
            out.append(Message(role, (*([Text(text)] if text else []), *images)))
        else:
            raise bad_field(f"{path}.role", "must be system, user, assistant or tool")
    return out


def decode_images(value: Any, path: str) -> list[Blob]:
    """Read the base64 images of a message or prompt. Raises BadRequestError that names the field."""
    out: list[Blob] = []
    for at, data in enumerate(_array(value, path)):
        where = f"{path}[{at}]"
        if not isinstance(data, str):
            raise bad_field(where, "must be a base64 string")
        try:
            content = base64.b64decode(data, validate=True)
        except (binascii.Error, ValueError):
            raise bad_field(where, "must be base64") from None
        try:
            out.append(blob(content))
        except BadRequestError:
            raise bad_field(where, "must be a PNG, JPEG, GIF or WebP image") from None
        if out[-1].modality != "image":
            raise bad_field(where, "must be a PNG, JPEG, GIF or WebP image")
    return out


def _assistant(row: dict[str, Any], text: str, images: list[Blob], waiting: _Open, path: str) -> Message:
    parts: list[Part] = []
    if thought := _text(row, "thinking", path):
        parts.append(Reasoning(thought))
    if text:
        parts.append(Text(text))
    parts += images
    waiting.calls = []
    for at, entry in enumerate(_array(row.get("tool_calls"), f"{path}.tool_calls")):
        where = f"{path}.tool_calls[{at}].function"
        function = as_dict(as_dict(entry).get("function"))
        name = function.get("name")
        if not isinstance(name, str) or not name:
            raise bad_field(f"{where}.name", "must be the name of a tool")
        given = function.get("arguments")
        if given is not None and not isinstance(given, (dict, str)):
            raise bad_field(f"{where}.arguments", "must be an object")
        call_id = waiting.new_id(as_str(as_dict(entry).get("id")))
        if isinstance(given, str):
            call = ToolCall(call_id, name, *parse_arguments(argument_text(given)))
        else:
            call = ToolCall(call_id, name, given or {})
        waiting.calls.append(call)
        parts.append(call)
    return Message("assistant", tuple(parts))


def _response(row: dict[str, Any], text: str, images: list[Blob], waiting: _Open, path: str) -> ToolResponse:
    name = _text(row, "tool_name", path) or _text(row, "name", path)
    call_id = waiting.answer(_text(row, "tool_call_id", path), name)
    if not images:
        return ToolResponse(call_id, text)
    said: list[Text | Blob | Uri] = [Text(text)] if text else []
    return ToolResponse(call_id, (*said, *images))


# --------------------------------------------------------------------------------------------------------- settings


def _tools(value: Any) -> tuple[ToolSpec, ...]:
    out: list[ToolSpec] = []
    for at, tool in enumerate(_array(value, "tools")):
        path = f"tools[{at}].function"
        function = as_dict(as_dict(tool).get("function"))
        name, description, schema = function.get("name"), function.get("description"), function.get("parameters")
        if not isinstance(name, str) or not name:
            raise bad_field(f"{path}.name", "must be a name")
        if description is not None and not isinstance(description, str):
            raise bad_field(f"{path}.description", "must be a string")
        if schema is not None and not isinstance(schema, dict):
            raise bad_field(f"{path}.parameters", "must be a JSON Schema object")
        out.append(ToolSpec(name, description or "", schema or {"type": "object", "properties": {}}))
    return tuple(out)


def decode_format(form: Any, extra: dict[str, Any]) -> dict[str, Any] | None:
    """Return a JSON Schema; a word ("json") goes into `extra`. Raises BadRequestError for anything else."""
    if isinstance(form, str) and form:
        extra["format"] = form
    elif form is not None and not isinstance(form, (dict, str)):
        raise bad_field("format", "must be json or a JSON Schema object")
    return form if isinstance(form, dict) else None


def decode_settings(data: dict[str, Any], extra: dict[str, Any]) -> Settings:
    """Read `options` and `think`; options without a word of ours go into `extra`.

    Raises BadRequestError that names the field.
    """
    given = data.get("options")
    if given is not None and not isinstance(given, dict):
        raise bad_field("options", "must be an object")
    options = dict(as_dict(given))
    found: dict[str, Any] = {}
    for theirs, ours in OPTIONS:
        value = options.pop(theirs, None)
        if value is not None:
            found[ours] = _number(value, theirs)
    if found.get("max_tokens", 1) < 1:
        # -1 and -2 say "no limit".
        del found["max_tokens"]
    stop = options.pop("stop", None)
    words = [stop] if isinstance(stop, str) else _array(stop, "options.stop")
    if any(not isinstance(word, str) for word in words):
        raise bad_field("options.stop", "must be an array of strings")
    if options:
        extra["options"] = options
    try:
        return Settings(stop=tuple(words), thinking=_think(data.get("think")), **found)
    except ConfigError as error:
        raise bad_field("options", str(error)) from None


def _number(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise bad_field(f"options.{name}", "must be a number")
    if name not in _WHOLE:
        return float(value)
    if value != int(value) or not -(1 << 63) <= value < 1 << 63:
        raise bad_field(f"options.{name}", "must be a whole number")
    return int(value)


def _think(value: Any) -> ThinkingLevel | None:
    if value is None:
        return None
    if isinstance(value, bool):
        return "adaptive" if value else "off"
    level = _THINK.get(value) if isinstance(value, str) else None
    if level is None:
        raise bad_field("think", "must be true, false, low, medium or high")
    return level
