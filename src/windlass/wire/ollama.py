"""The dialect of Ollama's own `/api/chat`.

Source: docs.ollama.com/api/chat, /capabilities/thinking, /capabilities/tool-calling. `num_ctx` and the other load-time
options come through `settings.extra`, flat or under `options`; so does `keep_alive`.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from windlass.core.errors import ProviderError, UnsupportedInputError, WindlassError
from windlass.core.items import Finish
from windlass.core.json import dumps
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
from windlass.core.models import Capabilities
from windlass.core.request import EncodingCache, Request, Settings, ToolSpec
from windlass.wire.base import DecodedRequest, wire_id
from windlass.wire.media import inline_document, marker, text_document
from windlass.wire.ollama_answer import (
    IDS,
    KEY,
    OllamaStreamDecoder,
    OllamaStreamEncoder,
    call_data,
    decode_error,
    decode_response,
    encode_error,
    encode_response,
)
from windlass.wire.ollama_request import OPTIONS, decode_request

__all__ = ["DIALECT", "OllamaChat", "dropped_settings", "encode_messages", "encode_settings"]

_LOAD_OPTIONS = frozenset(
    (
        "numa", "num_ctx", "num_batch", "num_gpu", "main_gpu", "low_vram", "f16_kv", "vocab_only", "use_mmap",
        "use_mlock", "num_thread", "num_keep", "tfs_z", "typical_p", "min_p", "repeat_last_n", "mirostat",
        "mirostat_tau", "mirostat_eta", "penalize_newline",
    )
)  # fmt: skip


class OllamaChat:
    """The dialect. It has no options: what a model wants differently is in its `Capabilities`."""

    name: ClassVar[str] = KEY

    def encode_request(self, request: Request, caps: Capabilities, *, stream: bool) -> bytes:
        """Return the body: closed turns from `request.encoded`, the rest encoded now, `settings.extra` merged last.

        Raises UnsupportedInputError for a tool, image or document the model cannot take.
        """
        fields: dict[str, Any] = {}
        if tools := _tools(request, caps):
            fields["tools"] = tools
            if request.tool_choice != "auto":
                # No version honours it yet; one that does must not be told less.
                fields["tool_choice"] = request.tool_choice
        fields.update(encode_settings(request, caps, stream=stream))
        own: Any = fields.pop("messages", None)
        messages = _messages(request, caps) if own is None else dumps(own)[1:-1]
        return b"".join([dumps(fields)[:-1], b',"messages":[', messages, b"]}"])

    def decode_request(self, body: bytes) -> DecodedRequest:
        """Read a client's body. Raises BadRequestError that names the field."""
        return decode_request(body)

    def dropped_settings(self, request: Request, caps: Capabilities) -> list[str]:
        """Return the names of the settings that are given and that this server or model cannot be told."""
        settings = request.settings
        out: list[str] = []
        if request.tools and request.tool_choice not in ("auto", "none"):
            out.append("tool_choice")
        if request.tools and settings.parallel_tool_calls is not None:
            out.append("parallel_tool_calls")
        asked = settings.thinking_budget or settings.thinking not in (None, "off")
        if asked and caps.reasoning == "none":
            out.append("thinking")
        elif settings.thinking_budget:
            out.append("thinking_budget")
        if request.output_schema is not None and not caps.structured_output:
            out.append("output_schema")
        return out

    def decode_response(self, body: bytes) -> Finish:
        """Read a whole answer. Raises WireError, or the classified ProviderError when it holds an error."""
        return decode_response(body)

    def encode_response(self, finish: Finish, *, model: str, response_id: str, created: int) -> bytes:  # noqa: ARG002
        """Return a whole answer; `created` is in Unix seconds, and ids have no place in this dialect."""
        return encode_response(finish, model=model, created=created)

    def stream_decoder(self) -> OllamaStreamDecoder:
        """Make a decoder for one stream."""
        return OllamaStreamDecoder()

    def stream_encoder(self, *, model: str, response_id: str, created: int) -> OllamaStreamEncoder:  # noqa: ARG002
        """Make an encoder for one stream; `created` is in Unix seconds, and ids have no place in this dialect."""
        return OllamaStreamEncoder(model=model, created=created)

    def decode_error(
        self,
        status: int,
        headers: Mapping[str, str],
        body: bytes,
        *,
        provider: str | None,
        model: str | None,
        endpoint: str | None,
    ) -> ProviderError:
        """Return the typed error of an answer that is not 2xx. Never raises."""
        return decode_error(status, headers, body, provider=provider, model=model, endpoint=endpoint)

    def encode_error(self, error: WindlassError) -> tuple[int, bytes]:
        """Return the HTTP status and body that tell a client of this error."""
        return encode_error(error)


DIALECT = OllamaChat()
dropped_settings = DIALECT.dropped_settings


# --------------------------------------------------------------------------------------------------------- settings


def encode_settings(request: Request, caps: Capabilities, *, stream: bool) -> dict[str, Any]:
    """Return what is said besides the prompt: model, stream, think, format, options; `settings.extra` comes last."""
    out: dict[str, Any] = {"model": request.model, "stream": stream}
    think = _think(request.settings, caps)
    if think is not None:
        out["think"] = think
    if request.output_schema is not None and caps.structured_output:
        out["format"] = request.output_schema
    out.update({key: value for key, value in request.settings.extra.items() if key not in _LOAD_OPTIONS})
    if options := _options(request.settings):
        out["options"] = options
    return out


def _think(settings: Settings, caps: Capabilities) -> bool | str | None:
    """Return `think`: a word where the model knows efforts (gpt-oss), else a switch."""
    level, budget = settings.thinking, settings.thinking_budget
    if caps.reasoning == "none" or (level is None and budget is None):
        return None
    if budget == 0 or (budget is None and level == "off"):
        return False
    if caps.reasoning != "effort" or level == "adaptive":
        return True
    if budget is not None:
        return "low" if budget <= 4096 else "medium" if budget <= 10240 else "high"
    return "low" if level == "minimal" else level


def _options(settings: Settings) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for theirs, ours in OPTIONS:
        value = getattr(settings, ours)
        if value is not None:
            out[theirs] = value
    if settings.stop:
        out["stop"] = list(settings.stop)
    out.update({key: value for key, value in settings.extra.items() if key in _LOAD_OPTIONS})
    more = settings.extra.get("options")
    if isinstance(more, dict):
        out.update(more)
    return out


def _tools(request: Request, caps: Capabilities) -> list[dict[str, Any]]:
    # `none` cannot be said: a model that is shown no tool calls none.
    if not request.tools or request.tool_choice == "none":
        return []
    if not caps.tools:
        raise _unsupported(request.model, f"the tool {request.tools[0].name!r}", "takes no tools")
    return [_tool(spec) for spec in request.tools]


def _tool(spec: ToolSpec) -> dict[str, Any]:
    schema = {"type": "object", **spec.input_schema}
    properties = schema.get("properties")
    if isinstance(properties, dict):
        # The server reads each property into a record: `true` and `false` are schemas it refuses.
        schema["properties"] = {key: value if isinstance(value, dict) else {} for key, value in properties.items()}
    else:
        schema["properties"] = {}
    function = {"name": spec.name, "description": spec.description, "parameters": schema}
    return {"type": "function", "function": function}


# --------------------------------------------------------------------------------------------------------- messages


def _messages(request: Request, caps: Capabilities) -> bytes:
    def encode(group: Sequence[Message]) -> bytes:
        return b",".join([dumps(row) for row in encode_messages(group, request.model, caps)])

    head = [dumps({"role": "system", "content": request.system})] if request.system else []
    cache = request.encoded if isinstance(request.encoded, EncodingCache) else EncodingCache()
    closed, start = cache.closed((KEY, caps), request.messages, encode)
    return b",".join([chunk for chunk in (*head, *closed, encode(request.messages[start:])) if chunk])


def encode_messages(messages: Sequence[Message], model: str, caps: Capabilities) -> list[dict[str, Any]]:
    """Return messages as the API takes them: one message per tool response, with the name of its tool.

    Images of tool results follow in a user message unless `caps.image_in_tool_result`. Raises UnsupportedInputError
    for a part the model cannot take.
    """
    out: list[dict[str, Any]] = []
    later: list[Blob] = []
    names: dict[str, str] = {}
    for message in messages:
        responses = [part for part in message.parts if isinstance(part, ToolResponse)]
        rest = [part for part in message.parts if not isinstance(part, ToolResponse)]
        if message.role == "assistant":
            out += _shown(later)
            names.update({call.id: call.name for call in message.tool_calls})
            out.append(_assistant(message, model, caps))
            continue
        for part in responses:
            out.append(_response(part, names.get(part.id, ""), model, caps, later))
        if rest or not (responses or message.role == "tool"):
            out += _shown(later)
            role = "system" if message.role == "system" else "user"
            out.append(_said(role, rest, model, caps))
    return out + _shown(later)


def _shown(later: list[Blob]) -> list[dict[str, Any]]:
    """Return the user message that shows the images of the tool results before it, and forget them."""
    if not later:
        return []
    images = [base64.b64encode(part.content).decode() for part in later]
    later.clear()
    return [{"role": "user", "content": "The images of the tool results above:", "images": images}]


def _assistant(message: Message, model: str, caps: Capabilities) -> dict[str, Any]:
    text: list[str] = []
    thoughts: list[str] = []
    for part in message.parts:
        if isinstance(part, Text):
            text.append(part.content)
        elif isinstance(part, Reasoning):
            # What another vendor signed or sealed is not for this one.
            if part.provider_metadata is None or KEY in part.provider_metadata:
                thoughts.append(part.content)
        elif isinstance(part, (Blob, Uri)):
            text.append(marker(part))
    out: dict[str, Any] = {"role": "assistant", "content": "".join(text)}
    if thought := "".join(thoughts):
        out["thinking"] = thought
    calls = message.tool_calls
    if calls and not caps.tools:
        raise _unsupported(model, f"a call of the tool {calls[0].name!r}", "takes no tools")
    if calls:
        out["tool_calls"] = [call_data(call) for call in calls]
    return out


def _said(role: str, parts: Sequence[Part], model: str, caps: Capabilities) -> dict[str, Any]:
    text: list[str] = []
    images: list[str] = []
    for part in parts:
        if isinstance(part, Text):
            text.append(part.content)
        elif isinstance(part, (Blob, Uri)):
            made = _media(part, caps)
            if made is None:
                images.append(base64.b64encode(part.content).decode() if isinstance(part, Blob) else part.uri)
            elif isinstance(made, _Refusal):
                raise _unsupported(model, marker(part), made)
            else:
                text.append(made)
        elif isinstance(part, ToolCall):
            raise _unsupported(model, f"a call of {part.name!r} outside an assistant message", "takes no such call")
        elif isinstance(part, UnknownPart):
            raise _unsupported(model, f"a part of type {str(part.data.get('type'))[:64]!r}", "does not know it")
    out: dict[str, Any] = {"role": role, "content": "\n\n".join(text)}
    if images:
        out["images"] = images
    return out


def _response(part: ToolResponse, name: str, model: str, caps: Capabilities, later: list[Blob]) -> dict[str, Any]:
    if not caps.tools:
        raise _unsupported(model, f"the response to the tool call {part.id!r}", "takes no tools")
    call_id = wire_id(part.id, IDS)
    out: dict[str, Any] = {"role": "tool", "content": part.response, "tool_name": name, "tool_call_id": call_id}
    if not name:
        del out["tool_name"]
    if isinstance(part.response, str):
        return out
    text: list[str] = []
    images: list[str] = []
    for piece in part.response:
        made = piece.content if isinstance(piece, Text) else _media(piece, caps)
        if made is not None and not isinstance(made, _Refusal):
            text.append(made)
        elif made is None and isinstance(piece, Blob) and caps.image_in_tool_result:
            images.append(base64.b64encode(piece.content).decode())
        elif not isinstance(piece, Text):
            text.append(marker(piece))
            if made is None and isinstance(piece, Blob):
                later.append(piece)
    out["content"] = "\n".join(text)
    if images:
        out["images"] = images
    return out


class _Refusal(str):
    """Why the model cannot take a part."""

    __slots__ = ()


def _media(part: Blob | Uri, caps: Capabilities) -> str | None:
    """Return None for an image to send as bytes, the text of a text document, or a `_Refusal`."""
    if part.modality not in ("image", "document"):
        return _Refusal(f"takes no {part.modality}")
    if isinstance(part, Uri):
        return _Refusal("takes files as bytes, not by their address")
    if part.modality == "image":
        return None if caps.vision else _Refusal("takes no images")
    text = text_document(part)
    if text is None:
        return _Refusal(f"takes text documents, not {part.mime_type}")
    return inline_document(part, text)


def _unsupported(model: str, what: str, why: str) -> UnsupportedInputError:
    return UnsupportedInputError(
        f"The request holds {what}, but {model or 'the model'} {why}.",
        model=model or None,
        hint="Use a model that takes it, or leave it out.",
    )
