"""Message content in OpenAI's chat form: text, images, sound, files, tool results, cache marks.

Source: platform.openai.com/docs/api-reference/chat/create; `video_url` and `cache_control` are OpenRouter's.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any, Final

from windlass.core.errors import UnsupportedInputError
from windlass.core.messages import Blob, Message, Part, Text, ToolResponse, UnknownPart, Uri, response_text
from windlass.core.models import Capabilities
from windlass.wire.openai_chat_answer import vendor_fields

__all__ = ["CACHE_MARK", "assistant_text", "marked", "named", "result_content", "unsupported", "user_content"]

CACHE_MARK: Final = {"type": "ephemeral"}
_AUDIO = {"audio/mpeg": "mp3", "audio/mp3": "mp3", "audio/wav": "wav", "audio/x-wav": "wav", "audio/wave": "wav"}
_TEXT_TYPES = ("text/", "application/json", "application/xml", "application/yaml", "application/toml")


def unsupported(model: str, what: str) -> UnsupportedInputError:
    """Return the refusal that names the model and what it cannot take."""
    return UnsupportedInputError(
        f"Model {model} cannot take {what}.", model=model, hint="Use a model that can, or leave it out."
    )


def named(message: Message, data: dict[str, Any]) -> dict[str, Any]:
    """Return `data` with the speaker's name, when there is one."""
    if message.name:
        data["name"] = message.name
    return data


def user_content(parts: Sequence[Part], model: str, caps: Capabilities) -> Any:
    """Return user content: a string for no or one text part, else an array."""
    if not parts:
        return ""
    first = parts[0]
    if len(parts) == 1 and isinstance(first, Text):
        return first.content
    return [_part(part, model, caps) for part in parts]


def _part(part: Part, model: str, caps: Capabilities) -> dict[str, Any]:
    if isinstance(part, Text):
        return {"type": "text", "text": part.content}
    if isinstance(part, Blob):
        return _blob(part, model, caps)
    if isinstance(part, Uri):
        return _uri(part, model, caps)
    if isinstance(part, UnknownPart) and "." not in str(part.data.get("type", "")):
        # A dotted type is another dialect's own block: this vendor would refuse the whole request for it.
        return part.data
    raise unsupported(model, f"a {type(part).__name__} part in a user message")


def _is_text(part: Blob) -> bool:
    return part.modality == "document" and part.mime_type.startswith(_TEXT_TYPES)


def _blob(part: Blob, model: str, caps: Capabilities) -> dict[str, Any]:
    if _is_text(part):
        # The API takes PDF alone as a file ("unsupported MIME type 'text/markdown'"); every model reads text.
        name = (part.filename or "document").replace('"', "'")
        text = part.content.decode("utf-8", "replace")
        return {"type": "text", "text": f'<document name="{name}">\n{text}\n</document>'}
    if part.modality == "audio":
        kind = _AUDIO.get(part.mime_type) or part.mime_type.rpartition("/")[2]
        return {"type": "input_audio", "input_audio": {"data": base64.b64encode(part.content).decode(), "format": kind}}
    _check(part, model, caps)
    url = f"data:{part.mime_type};base64,{base64.b64encode(part.content).decode()}"
    if part.modality == "document":
        return {"type": "file", "file": {"filename": part.filename or "document", "file_data": url}}
    return _visual(part, url)


def _uri(part: Uri, model: str, caps: Capabilities) -> dict[str, Any]:
    if part.modality == "audio":
        raise unsupported(model, f"sound by its address ({part.uri})")
    _check(part, model, caps)
    if part.modality != "document":
        return _visual(part, part.uri)
    if "file_id" in vendor_fields(part.provider_metadata):
        return {"type": "file", "file": {"file_id": part.uri}}
    return {"type": "file", "file": {"filename": part.filename or "document", "file_data": part.uri}}


def _visual(part: Blob | Uri, url: str) -> dict[str, Any]:
    kind = f"{part.modality}_url"
    detail = vendor_fields(part.provider_metadata).get("detail")
    return {"type": kind, kind: {"url": url, "detail": detail} if detail else {"url": url}}


def _check(part: Blob | Uri, model: str, caps: Capabilities) -> None:
    able = caps.documents if part.modality == "document" else caps.vision
    if not able:
        what = part.filename or (part.mime_type if isinstance(part, Blob) else part.uri)
        raise unsupported(model, f"{part.modality} parts ({what})")


def assistant_text(part: Part) -> str:
    """Return an assistant part as text; media it made cannot be sent back and become markers."""
    if isinstance(part, Text):
        return part.content
    return response_text(ToolResponse("", (part,))) if isinstance(part, (Blob, Uri)) else ""


def result_content(
    response: ToolResponse,
    parts: Sequence[Text | Blob | Uri],
    model: str,
    caps: Capabilities,
    later: list[dict[str, Any]],
) -> Any:
    """Return a tool message's content; media go in it, or in `later` with a marker here, or are a marker alone."""
    inline: list[dict[str, Any]] = []
    companions: list[dict[str, Any]] = []
    for part in parts:
        if isinstance(part, Text) or (isinstance(part, Blob) and _is_text(part)):
            inline.append(_part(part, model, caps))
            continue
        able = caps.documents if part.modality == "document" else caps.vision and part.modality != "audio"
        if able and caps.image_in_tool_result:
            inline.append(_part(part, model, caps))
            continue
        inline.append({"type": "text", "text": response_text(ToolResponse(response.id, (part,)))})
        if able:
            companions.append(_part(part, model, caps))
    if companions:
        later += [{"type": "text", "text": f"Attached to the result of {response.id}:"}, *companions]
    if all(part["type"] == "text" for part in inline):
        return "\n".join([part["text"] for part in inline])
    return inline


def marked(message: dict[str, Any]) -> dict[str, Any]:
    """Return the message with a cache breakpoint on its final block (OpenRouter's form for Anthropic models)."""
    content = message.get("content")
    if not content:
        return message
    blocks = [{"type": "text", "text": content}] if isinstance(content, str) else list(content)
    return {**message, "content": [*blocks[:-1], {**blocks[-1], "cache_control": CACHE_MARK}]}
