"""Read a client's Responses request: everything the official SDKs, openai-agents and the Codex CLI send.

Every refusal begins with the path of the field, as in `input[2].content: ...`. Items that have no word of ours stay in
their place as `UnknownPart` (see `openai_responses_answer`), an `item_reference` among them: whoever keeps items puts
the item there before the request goes on. Source: platform.openai.com/docs/api-reference/responses/create.
"""

from __future__ import annotations

import binascii
from typing import Any, Final, get_args

from windlass.core.errors import RequestRefused
from windlass.core.items import parse_arguments
from windlass.core.messages import (
    Blob,
    Message,
    Metadata,
    Part,
    Reasoning,
    Text,
    ToolCall,
    ToolResponse,
    UnknownPart,
    Uri,
)
from windlass.core.request import Request, Settings, ThinkingLevel, ToolSpec
from windlass.wire.base import DecodedRequest, as_dict, as_list, bad_field
from windlass.wire.fields import MOST_TOKENS, flag, load_fields, number, object_of, text, whole
from windlass.wire.openai_chat_answer import KEY as CHAT_KEY
from windlass.wire.openai_responses_answer import CUSTOM, KEY, reasoning_text, unseal

__all__ = ["decode_input", "decode_request"]

_KNOWN: Final = frozenset(
    ("model", "input", "instructions", "stream", "tools", "tool_choice", "temperature", "top_p", "max_output_tokens",
     "parallel_tool_calls")
)  # fmt: skip
_EFFORTS = frozenset(get_args(ThinkingLevel)) - {"off", "adaptive"}
#: What a tool that takes text is to models that know only JSON.
_TEXT_SCHEMA: Final[dict[str, Any]] = {
    "type": "object",
    "properties": {"input": {"type": "string"}},
    "required": ["input"],
    "additionalProperties": False,
}
#: Foreign items that the client makes; all others were made by the model.
_CLIENTS: Final = frozenset(
    ("computer_call_output", "local_shell_call_output", "shell_call_output", "apply_patch_call_output",
     "mcp_approval_response", "item_reference", "compaction_trigger", "additional_tools")
)  # fmt: skip
_AUDIO: Final = {"mp3": "audio/mpeg", "wav": "audio/wav"}


def decode_request(body: bytes) -> DecodedRequest:
    """Read a request body.

    `instructions` and leading system and developer messages become `request.system`, joined by an empty line. `extra`
    keeps what has no word of ours, for the server to act on (`previous_response_id`, `store`, `conversation`,
    `metadata`, …) or to send on (`include`, `service_tier`, …); `tools` among it when one of them is more than a plain
    function, and `tool_choice` when it names more than one. Raises BadRequestError that names the field, and
    RequestRefused for `background` and `prompt`.
    """
    fields = load_fields(body)
    if flag(fields, "background"):
        raise _refusal("background", "responses are made while the client waits; leave it out and stream instead")
    if "prompt" in fields:
        raise _refusal("prompt", "prompt templates are kept by OpenAI alone; send their text as instructions and input")
    extra = {key: value for key, value in fields.items() if key not in _KNOWN}
    extra.pop("background", None)
    previous = text(fields, "previous_response_id")
    flag(fields, "store")
    model = text(fields, "model", required=True)
    system, messages = _input(fields.get("input"), needed=not previous and "conversation" not in fields)
    instructions = text(fields, "instructions")
    request = Request(
        model=model,
        messages=messages,
        system="\n\n".join([piece for piece in (instructions, *system) if piece]) or None,
        tools=_tools(fields, extra),
        tool_choice=_tool_choice(fields, extra),
        output_schema=_schema(extra),
        settings=Settings(
            max_tokens=whole(fields, "max_output_tokens", 1, MOST_TOKENS),
            temperature=number(fields, "temperature", 0, 2),
            top_p=number(fields, "top_p", 0, 1),
            thinking=_thinking(extra),
            parallel_tool_calls=flag(fields, "parallel_tool_calls"),
        ),
        metadata=object_of(fields, "metadata"),
    )
    return DecodedRequest(request, flag(fields, "stream") or False, extra)


def _refusal(field: str, why: str) -> RequestRefused:
    return RequestRefused(400, f"{field}: is not served: {why}.", reason="unsupported_parameter", param=field)


def _thinking(extra: dict[str, Any]) -> ThinkingLevel | None:
    """Take `reasoning.effort` out of `extra`; a word that we do not know (`xhigh`) stays and goes on as it is."""
    reasoning = dict(object_of(extra, "reasoning"))
    effort = reasoning.get("effort")
    if effort is not None and not isinstance(effort, str):
        raise bad_field("reasoning.effort", "must be a string")
    level: Any = None
    if effort == "none" or effort in _EFFORTS:
        level = "off" if effort == "none" else effort
        del reasoning["effort"]
    _replace(extra, "reasoning", reasoning)
    return level


def _schema(extra: dict[str, Any]) -> dict[str, Any] | None:
    """Take a JSON Schema out of `extra["text"]`; `verbosity` and the older JSON mode stay."""
    words = dict(object_of(extra, "text"))
    form = words.get("format")
    schema: dict[str, Any] | None = None
    if form is not None:
        fields = _object(form, "text.format")
        kind = _text(fields, "type", "text.format.", required=True)
        if kind == "json_schema":
            schema = _object(fields.get("schema"), "text.format.schema")
        if kind in ("text", "json_schema"):
            del words["format"]
    _replace(extra, "text", words)
    return schema


def _replace(extra: dict[str, Any], name: str, rest: dict[str, Any]) -> None:
    rest = {key: value for key, value in rest.items() if value is not None}
    if rest:
        extra[name] = rest
    else:
        extra.pop(name, None)


# ------------------------------------------------------------------------------------------------------------ tools


def _tools(fields: dict[str, Any], extra: dict[str, Any]) -> tuple[ToolSpec, ...]:
    out: list[ToolSpec] = []
    plain = True
    for at, item in enumerate(_array(fields, "tools")):
        path = f"tools[{at}]"
        tool = _object(item, path)
        kind = _text(tool, "type", f"{path}.", required=True)
        plain = plain and kind == "function" and not tool.get("strict") and not tool.keys() - _PLAIN_TOOL
        if kind not in ("function", "custom"):
            continue
        name = _text(tool, "name", f"{path}.", required=True)
        if any(spec.name == name for spec in out):
            raise bad_field(f"{path}.name", f"repeats {name!r}; names must be unique")
        schema = tool.get("parameters") if kind == "function" else _TEXT_SCHEMA
        empty: dict[str, Any] = {"type": "object", "properties": {}}
        given = empty if schema is None else _object(schema, f"{path}.parameters")
        out.append(ToolSpec(name, _text(tool, "description", f"{path}."), given))
    if not plain:
        extra["tools"] = fields["tools"]
    return tuple(out)


_PLAIN_TOOL: Final = frozenset(("type", "name", "description", "parameters", "strict"))


def _tool_choice(fields: dict[str, Any], extra: dict[str, Any]) -> str:
    choice = fields.get("tool_choice", "auto")
    if isinstance(choice, str):
        if choice not in ("auto", "none", "required"):
            raise bad_field("tool_choice", "must be auto, none, required, or an object that names a tool")
        return choice
    form = _object(choice, "tool_choice")
    kind = _text(form, "type", "tool_choice.", required=True)
    if kind in ("function", "custom"):
        name = _text(form, "name", "tool_choice.", required=True)
        if kind == "custom":
            extra["tool_choice"] = form
        return name
    # Sent on as it came to those who know it; to all others only the mode of `allowed_tools` means something.
    extra["tool_choice"] = form
    return "required" if kind == "allowed_tools" and form.get("mode") == "required" else "auto"


# ------------------------------------------------------------------------------------------------------------ input


def _input(value: Any, *, needed: bool) -> tuple[list[str], list[Message]]:
    """Return the leading system texts and the messages."""
    if isinstance(value, str):
        return [], [Message("user", (Text(value),))]
    if value is None and not needed:
        return [], []
    if not isinstance(value, list):
        raise bad_field("input", "must be a string or an array of items")
    if not value and needed:
        raise bad_field("input", "must not be empty")
    messages = decode_input(value)  # pyright: ignore[reportUnknownArgumentType]
    first = next((at for at, message in enumerate(messages) if message.role != "system"), len(messages))
    return [message.text for message in messages[:first]], messages[first:]


def decode_input(items: list[Any], path: str = "input") -> list[Message]:
    """Read input items, those of an earlier response's output included; raises BadRequestError that names the field.

    What the model said between two turns of its client is one message.
    """
    reader = _Items()
    for at, item in enumerate(items):
        where = f"{path}[{at}]"
        fields = _object(item, where)
        kind = _text(fields, "type", f"{where}.") or ("message" if "role" in fields else "")
        if not kind and "id" not in fields:
            raise bad_field(f"{where}.type", "must be given where there is no role")
        kind = kind or "item_reference"
        reader.take(kind, fields, where)
    return reader.done()


class _Items:
    """Collect items into messages."""

    def __init__(self) -> None:
        self._out: list[Message] = []
        self._parts: list[Part] = []
        self._refused = False

    def take(self, kind: str, fields: dict[str, Any], path: str) -> None:
        if kind == "message":
            self._message(fields, path)
        elif kind == "reasoning":
            self._split()
            self._parts.append(_reasoning(fields, path))
        elif kind in ("function_call", CUSTOM):
            self._parts.append(_call(kind, fields, path))
        elif kind in ("function_call_output", f"{CUSTOM}_output"):
            self._close()
            self._out.append(Message("tool", (_response(kind, fields, path),)))
        else:
            part = UnknownPart({"type": f"{KEY}.{kind}", "item": fields})
            if kind in _CLIENTS:
                self._close()
                self._out.append(Message("user", (part,)))
            else:
                self._parts.append(part)

    def _message(self, fields: dict[str, Any], path: str) -> None:
        role = _text(fields, "role", f"{path}.", required=True)
        if role not in ("user", "assistant", "system", "developer"):
            raise bad_field(f"{path}.role", "must be user, assistant, system or developer")
        content = _content(fields.get("content"), f"{path}.content")
        if role == "assistant":
            self._split()
            phase = _text(fields, "phase", f"{path}.")
            self._parts += [_with_phase(part, phase) for part in content] if phase else content
            rows = [as_dict(row) for row in as_list(fields.get("content"))]
            self._refused = self._refused or any(row.get("type") == "refusal" for row in rows)
            return
        self._close()
        if role == "user":
            self._out.append(Message("user", tuple(content)))
            return
        if not all(isinstance(part, Text) for part in content):
            raise bad_field(f"{path}.content", "must be text alone in a system message")
        self._out.append(Message("system", tuple(content)))

    def _split(self) -> None:
        """Begin another message where this one has said something already and waits for no result."""
        kinds = [type(part) for part in self._parts]
        if Text in kinds and ToolCall not in kinds:
            self._close()

    def _close(self) -> None:
        if self._parts:
            reason = "refusal" if self._refused else None
            self._out.append(Message("assistant", tuple(self._parts), finish_reason=reason))
        self._parts, self._refused = [], False

    def done(self) -> list[Message]:
        self._close()
        return self._out


def _with_phase(part: Part, phase: str) -> Part:
    return Text(part.content, {KEY: {"phase": phase}}) if isinstance(part, Text) else part


def _reasoning(fields: dict[str, Any], path: str) -> Reasoning:
    sealed = unseal(_text(fields, "encrypted_content", f"{path}."))
    _array(fields, "summary", f"{path}.")
    return Reasoning(reasoning_text(fields), sealed or {KEY: {"items": [fields]}})


def _call(kind: str, fields: dict[str, Any], path: str) -> ToolCall:
    call_id = _text(fields, "call_id", f"{path}.", required=True)
    name = _text(fields, "name", f"{path}.", required=True)
    known = ("id", "type", "status", "call_id", "name", "arguments", "input")
    rest = {key: value for key, value in fields.items() if key not in known and value is not None}
    if kind == CUSTOM:
        given = {"input": _text(fields, "input", f"{path}.")}
        return ToolCall(call_id, name, given, None, {KEY: {"type": CUSTOM, **rest}})
    arguments, as_sent = parse_arguments(_text(fields, "arguments", f"{path}."))
    return ToolCall(call_id, name, arguments, as_sent, {KEY: rest} if rest else None)


def _response(kind: str, fields: dict[str, Any], path: str) -> ToolResponse:
    call_id = _text(fields, "call_id", f"{path}.", required=True)
    metadata: Metadata | None = {KEY: {"type": kind}} if kind != "function_call_output" else None
    output = fields.get("output")
    if isinstance(output, str):
        return ToolResponse(call_id, output, "ok", metadata)
    parts = _content(output, f"{path}.output")
    if all(isinstance(part, Text) for part in parts):
        return ToolResponse(
            call_id, "".join([part.content for part in parts if isinstance(part, Text)]), "ok", metadata
        )
    known = tuple([part for part in parts if isinstance(part, (Text, Blob, Uri))])
    return ToolResponse(call_id, known, "ok", metadata)


# ---------------------------------------------------------------------------------------------------------- content


def _content(value: Any, path: str) -> list[Part]:
    if isinstance(value, str):
        return [Text(value)] if value else []
    if not isinstance(value, list):
        raise bad_field(path, "must be a string or an array of parts")
    return [_part(_object(item, f"{path}[{at}]"), f"{path}[{at}]") for at, item in enumerate(value)]


def _part(fields: dict[str, Any], path: str) -> Part:
    kind = _text(fields, "type", f"{path}.", required=True)
    if kind in ("input_text", "output_text", "text", "summary_text", "refusal"):
        name = "refusal" if kind == "refusal" else "text"
        said = fields.get(name)
        if not isinstance(said, str):
            raise bad_field(f"{path}.{name}", "must be a string")
        return Text(said)
    if kind == "input_image":
        return _media(fields, path, "image_url")
    if kind == "input_file":
        return _media(fields, path, "file_data" if fields.get("file_data") is not None else "file_url")
    if kind == "input_audio":
        sound = _object(fields.get(kind), f"{path}.{kind}")
        form = _text(sound, "format", f"{path}.{kind}.", required=True)
        data = _base64(_text(sound, "data", f"{path}.{kind}.", required=True), f"{path}.{kind}.data")
        return Blob(data, _AUDIO.get(form, f"audio/{form}"), "audio")
    return UnknownPart({"type": f"{KEY}.{kind}", "part": fields})


def _media(fields: dict[str, Any], path: str, name: str) -> Part:
    modality = "image" if name == "image_url" else "document"
    filename = _text(fields, "filename", f"{path}.") or None
    detail = _text(fields, "detail", f"{path}.") if modality == "image" else ""
    # Detail and file ids mean the same to chat-completions.
    kept: dict[str, Any] = {"detail": detail} if detail and detail != "auto" else {}
    file_id = _text(fields, "file_id", f"{path}.")
    if file_id:
        return Uri(file_id, None, modality, filename, {CHAT_KEY: {**kept, "file_id": file_id}})
    metadata: Metadata | None = {CHAT_KEY: kept} if kept else None
    url = _text(fields, name, f"{path}.", required=True)
    if url[:5].lower() != "data:" and name != "file_data":
        return Uri(url, None, modality, filename, metadata)
    data, mime = _data_url(url, f"{path}.{name}")
    return Blob(data, mime, "image" if mime.startswith("image/") else modality, filename, metadata)


def _data_url(url: str, path: str) -> tuple[bytes, str]:
    """Return the bytes and type of a base64 data URL (RFC 2397); base64 alone is that of a PDF."""
    if url[:5].lower() != "data:":
        return _base64(url, path), "application/pdf"
    head, comma, data = url.partition(",")
    mime, *options = head[5:].split(";")
    if not comma or "base64" not in options or not mime:
        raise bad_field(path, "must be a data URL of the form data:<type>;base64,<data>")
    return _base64(data, path), mime.lower()


def _base64(data: str, path: str) -> bytes:
    # Line breaks are allowed (RFC 2045); anything else that is not base64 is a truncated or foreign string.
    try:
        return binascii.a2b_base64("".join(data.split()).encode("ascii"), strict_mode=True)
    except (binascii.Error, UnicodeEncodeError):
        raise bad_field(path, "must be base64") from None


# ----------------------------------------------------------------------------------------------------- plain fields


def _array(fields: dict[str, Any], name: str, path: str = "") -> list[Any]:
    value = fields.get(name)
    if value is not None and not isinstance(value, list):
        raise bad_field(path + name, "must be an array")
    return value or []  # pyright: ignore[reportUnknownVariableType]


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
