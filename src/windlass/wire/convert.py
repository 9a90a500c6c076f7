"""Conversations in vendors' forms to ours and back (reference C's fromAnthropic, toOpenAI, …, autoDetectAndConvert).

The vendors' official SDK objects are welcome inside the lists: whatever has `model_dump` is read by it. What a target
cannot carry is lost as in a request to it: reasoning of another vendor, a system message's place, file names.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec

from windlass.core.errors import BadRequestError
from windlass.core.json import dumps, loads
from windlass.core.messages import Message, Text, message_from_data
from windlass.core.models import Capabilities
from windlass.core.request import Request
from windlass.wire import anthropic_blocks, ollama, ollama_request, openai_chat
from windlass.wire.base import as_dict, as_list, bad_field

__all__ = [
    "auto_convert",
    "auto_detect",
    "from_anthropic",
    "from_ollama",
    "from_openai",
    "to_anthropic",
    "to_ollama",
    "to_openai",
]

#: A converter refuses nothing: what the model at the other end takes is decided when it is asked.
_ALL: Final = Capabilities(image_in_tool_result=True, reasoning="effort", cache_breakpoints=True)


def from_anthropic(messages: Iterable[Mapping[str, Any]]) -> list[Message]:
    """Read Anthropic's messages; a user message with tool results becomes a tool message and the rest of it.

    Raises BadRequestError that names the index and field.
    """
    rows = enumerate(_rows(messages))
    return [message for at, row in rows for message in anthropic_blocks.decode_message(row, f"messages[{at}]")]


def to_anthropic(messages: Iterable[Message]) -> list[dict[str, Any]]:
    """Return Anthropic's messages; system messages keep their place under the role `system`.

    Raises UnsupportedInputError for a part the dialect has no form for.
    """
    out: list[dict[str, Any]] = []
    group: list[Message] = []
    target = anthropic_blocks.Target("Anthropic's format", _ALL)
    for message in messages:
        if message.role != "system":
            group.append(message)
            continue
        out += anthropic_blocks.encode_messages(group, target)
        out.append({"role": "system", "content": message.text})
        group = []
    return out + anthropic_blocks.encode_messages(group, target)


def from_openai(messages: Iterable[Mapping[str, Any]]) -> list[Message]:
    """Read OpenAI's chat messages; system messages in front become one.

    Raises BadRequestError that names the index and field.
    """
    rows = _rows(messages)
    if not rows:
        return []
    body = dumps({"model": "any", "messages": rows})
    request = openai_chat.DIALECT.decode_request(body).request
    first = [Message("system", (Text(request.system),))] if request.system else []
    return [*first, *request.messages]


def to_openai(messages: Iterable[Message]) -> list[dict[str, Any]]:
    """Return OpenAI's chat messages. Raises UnsupportedInputError for a part the dialect has no form for."""
    request = Request(model="OpenAI's format", messages=list(messages), cache=False)
    return loads(openai_chat.DIALECT.encode_request(request, _ALL, stream=False))["messages"]


def from_ollama(messages: Iterable[Mapping[str, Any]]) -> list[Message]:
    """Read Ollama's messages; calls without ids get some, and responses find theirs by the tool's name.

    Raises BadRequestError that names the index and field.
    """
    return ollama_request.decode_messages(_rows(messages))


def to_ollama(messages: Iterable[Message]) -> list[dict[str, Any]]:
    """Return Ollama's messages. Raises UnsupportedInputError for a part the dialect has no form for."""
    return ollama.encode_messages(list(messages), "Ollama's format", _ALL)


def _rows(messages: Iterable[Any]) -> list[Any]:
    return [_plain(message, f"messages[{at}]") for at, message in enumerate(messages)]


def _plain(value: Any, path: str, depth: int = 0) -> Any:
    """Return a value of JSON's kinds: SDK objects are dumped, bytes become base64."""
    if value is None or isinstance(value, (str, int, float)):
        return value
    if depth > 64:
        raise bad_field(path, "is nested too deeply")
    if isinstance(value, (bytes, bytearray)):
        return base64.b64encode(value).decode()
    if isinstance(value, Mapping):
        return {str(key): _plain(item, path, depth + 1) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, path, depth + 1) for item in value]
    dump = getattr(value, "model_dump", None)
    if callable(dump):
        return _plain(dump(mode="json", exclude_none=True), path, depth + 1)
    raise bad_field(path, f"holds a {type(value).__name__}, which is not JSON")


# ------------------------------------------------------------------------------------------------- which form it is

_ANTHROPIC_BLOCKS = frozenset(
    ("tool_use", "tool_result", "thinking", "redacted_thinking", "image", "document", "server_tool_use")
)
_OPENAI_PARTS = frozenset(("image_url", "video_url", "input_audio", "file", "refusal"))
_OPENAI_FIELDS = frozenset(("refusal", "reasoning_content", "reasoning_details", "function_call", "audio"))


def _form_of(row: Mapping[str, Any]) -> str | None:
    """Return the only form that a message can have, None when it could have several."""
    if isinstance(row.get("parts"), list):
        return "windlass"
    kinds = {as_dict(block).get("type") for block in as_list(row.get("content"))}
    if kinds & _ANTHROPIC_BLOCKS:
        return "anthropic"
    if kinds & _OPENAI_PARTS or row.keys() & _OPENAI_FIELDS or row.get("role") in ("developer", "function"):
        return "openai"
    if row.get("images") or "tool_name" in row or isinstance(row.get("thinking"), str):
        return "ollama"
    for call in as_list(row.get("tool_calls")):
        arguments = as_dict(as_dict(call).get("function")).get("arguments")
        return "openai" if isinstance(arguments, str) else "ollama"
    if row.get("role") == "tool":
        return "openai" if "tool_call_id" in row else "ollama"
    return None


def auto_detect(messages: Sequence[Mapping[str, Any]]) -> str:
    """Return `anthropic`, `openai`, `ollama` or `windlass`; plain text, which all of them write alike, is `openai`.

    Raises BadRequestError when the messages have different forms, with the index of the first that differs.
    """
    found: tuple[int, str] | None = None
    for at, row in enumerate(_rows(messages)):
        form = _form_of(row) if isinstance(row, dict) else None
        if form is None:
            continue
        if found is not None and found[1] != form:
            raise bad_field(f"messages[{at}]", f"has the form of {form}, but messages[{found[0]}] that of {found[1]}")
        found = found or (at, form)
    return found[1] if found else "openai"


def auto_convert(messages: Sequence[Mapping[str, Any]]) -> list[Message]:
    """Read messages in whatever form they have (reference C's autoDetectAndConvert).

    Raises BadRequestError that names the index and field.
    """
    form = auto_detect(messages)
    if form != "windlass":
        return _READERS[form](messages)
    out: list[Message] = []
    for at, row in enumerate(_rows(messages)):
        try:
            out.append(message_from_data(row))
        except (msgspec.ValidationError, TypeError, AttributeError) as error:
            raise BadRequestError(f"messages[{at}]: {error}.", status=400) from None
    return out


_READERS: Final = {"anthropic": from_anthropic, "openai": from_openai, "ollama": from_ollama}
