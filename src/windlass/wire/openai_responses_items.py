"""A conversation as the input items of OpenAI's Responses API.

Source: platform.openai.com/docs/api-reference/responses/create. Ids of messages and calls are not sent: with
`store: false` the vendor keeps none, and one that belongs to a reasoning item which was left out is refused.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from typing import Any

from msgspec import Struct

from windlass.core.errors import UnsupportedInputError
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
    text_of,
)
from windlass.core.models import Capabilities
from windlass.wire.base import as_dict, as_list, as_str, wire_id
from windlass.wire.media import inline_document, marker, text_document
from windlass.wire.openai_chat_answer import vendor_fields
from windlass.wire.openai_chat_parts import assistant_text, unsupported
from windlass.wire.openai_responses_answer import CUSTOM, IDS, KEY, call_item, own_fields, own_item

__all__ = ["Target", "encode_items"]


class Target(Struct, frozen=True):
    """Whom the items are for. `stored` says that the vendor keeps items and knows their ids.

    `valid_arguments` sends `{}` for arguments that are no JSON object.
    """

    model: str
    caps: Capabilities
    stored: bool = False
    valid_arguments: bool = False


def encode_items(messages: Iterable[Message], to: Target) -> list[dict[str, Any]]:
    """Return messages as input items, in order.

    Images of tool results stand in the result, or, for a model that takes none there, in a user message behind the
    results. Raises UnsupportedInputError for a part the model cannot take.
    """
    out: list[dict[str, Any]] = []
    later: list[dict[str, Any]] = []
    custom: set[str] = set()
    for message in messages:
        if message.role in ("user", "tool"):
            responses = [part for part in message.parts if isinstance(part, ToolResponse)]
            out += [_response(part, to, later, custom) for part in responses]
            rest = [part for part in message.parts if not isinstance(part, ToolResponse)]
            if not rest and (responses or message.role == "tool"):
                continue
        else:
            rest = list(message.parts)
        if later:
            out.append(_message("user", later))
            later = []
        if message.role == "assistant":
            out += _assistant(rest, to, custom)
        elif message.role == "system":
            out.append(_message("developer", [_text(text_of(rest))]))
        else:
            out += _user(rest, to)
    return [*out, _message("user", later)] if later else out


def _message(role: str, content: list[dict[str, Any]]) -> dict[str, Any]:
    return {"type": "message", "role": role, "content": content}


def _text(text: str, kind: str = "input_text") -> dict[str, Any]:
    return {"type": kind, "text": text}


# -------------------------------------------------------------------------------------------------------- assistant


def _assistant(parts: Sequence[Part], to: Target, custom: set[str]) -> list[dict[str, Any]]:
    out: list[dict[str, Any]] = []
    for part in parts:
        if isinstance(part, Reasoning):
            out += _reasoning(part, to)
        elif isinstance(part, ToolCall):
            if not to.caps.tools:
                raise unsupported(to.model, f"tools (the history holds a call of {part.name!r})")
            item = call_item(part, valid_only=to.valid_arguments)
            if item["type"] == CUSTOM:
                custom.add(part.id)
            out.append(item)
        elif isinstance(part, UnknownPart):
            foreign = own_item(part)
            out += [] if foreign is None else [_known(foreign, to)]
        elif text := assistant_text(part):
            kept = own_fields(part.provider_metadata) if isinstance(part, Text) else {}
            item = _message("assistant", [_text(text, "output_text")])
            # Models that mark their comments want the mark back.
            out.append({**item, "phase": kept["phase"]} if "phase" in kept else item)
    while out and out[-1].get("type") == "reasoning":
        # "was provided without its required following item": a turn that was cut while it thought.
        out.pop()
    return out


def _reasoning(part: Reasoning, to: Target) -> list[dict[str, Any]]:
    """Return the vendor's own items of a part; reasoning that it could neither read nor look up is left out."""
    out: list[dict[str, Any]] = []
    for item in as_list(own_fields(part.provider_metadata).get("items")):
        fields = as_dict(item)
        if fields.get("type") != "reasoning":
            out.append(_known(fields, to))
        elif to.stored or fields.get("encrypted_content") or fields.get("content"):
            # Answers carry nulls and a status that requests may not.
            kept = {key: value for key, value in fields.items() if value is not None and key != "status"}
            out.append({"summary": [], **kept})
    return out


def _known(item: dict[str, Any], to: Target) -> dict[str, Any]:
    if item.get("type") == "item_reference" and not to.stored:
        raise UnsupportedInputError(
            f"The request refers to the item {as_str(item.get('id'))[:64]!r}, which is not kept.",
            model=to.model,
            hint="Send the item itself.",
        )
    return {key: value for key, value in item.items() if value is not None}


# ----------------------------------------------------------------------------------------------------- user and tool


def _user(parts: Sequence[Part], to: Target) -> list[dict[str, Any]]:
    """Return a user's parts: messages, and the items between them that are no content of a message."""
    out: list[dict[str, Any]] = []
    content: list[dict[str, Any]] = []
    for part in parts:
        foreign = own_item(part) if isinstance(part, UnknownPart) else None
        if foreign is None:
            content.append(_part(part, to))
            continue
        if content:
            out.append(_message("user", content))
            content = []
        out.append(_known(foreign, to))
    if content or not out:
        out.append(_message("user", content or [_text("")]))
    return out


def _part(part: Part, to: Target) -> dict[str, Any]:
    if isinstance(part, Text):
        return _text(part.content)
    if isinstance(part, (Blob, Uri)):
        made = _media(part, to)
        if isinstance(made, str):
            raise unsupported(to.model, made)
        return made
    if isinstance(part, UnknownPart) and as_str(part.data.get("type")).startswith(f"{KEY}."):
        return as_dict(part.data.get("part"))
    kind = as_str(part.data.get("type"))[:64] if isinstance(part, UnknownPart) else type(part).__name__
    raise unsupported(to.model, f"a {kind!r} part in a user message")


def _media(part: Blob | Uri, to: Target) -> dict[str, Any] | str:
    """Return the content of an image or document, or what the model cannot take."""
    text = text_document(part)
    if text is not None and isinstance(part, Blob):
        # The API takes PDF alone as a file; every model reads text.
        return _text(inline_document(part, text))
    name = part.filename or (part.mime_type if isinstance(part, Blob) else part.uri)
    if part.modality not in ("image", "document"):
        return f"{part.modality} parts ({name})"
    if not (to.caps.documents if part.modality == "document" else to.caps.vision):
        return f"{part.modality} parts ({name})"
    kept = vendor_fields(part.provider_metadata)
    out: dict[str, Any] = {"type": "input_image" if part.modality == "image" else "input_file"}
    if part.modality == "image":
        out["detail"] = kept.get("detail") or "auto"
    if isinstance(part, Uri):
        key = "file_id" if "file_id" in kept else "image_url" if part.modality == "image" else "file_url"
        return {**out, key: part.uri}
    url = f"data:{part.mime_type};base64,{base64.b64encode(part.content).decode()}"
    if part.modality == "image":
        return {**out, "image_url": url}
    return {**out, "filename": part.filename or "document", "file_data": url}


def _response(part: ToolResponse, to: Target, later: list[dict[str, Any]], custom: set[str]) -> dict[str, Any]:
    if not to.caps.tools:
        raise unsupported(to.model, f"tools (the history holds the response to {part.id!r})")
    kept = own_fields(part.provider_metadata)
    kind = as_str(kept.get("type")) or (f"{CUSTOM}_output" if part.id in custom else "function_call_output")
    output = part.response if isinstance(part.response, str) else _result(part, part.response, to, later)
    return {"type": kind, "call_id": wire_id(part.id, IDS), "output": output}


def _result(response: ToolResponse, parts: Sequence[Text | Blob | Uri], to: Target, later: list[dict[str, Any]]) -> Any:
    """Return a result's content: media go in it, or in `later` with a marker here, or are a marker alone."""
    inline: list[dict[str, Any]] = []
    beside: list[dict[str, Any]] = []
    for part in parts:
        made = _text(part.content) if isinstance(part, Text) else _media(part, to)
        if not isinstance(made, str) and (made["type"] == "input_text" or to.caps.image_in_tool_result):
            inline.append(made)
            continue
        assert not isinstance(part, Text)
        inline.append(_text(marker(part)))
        beside += [] if isinstance(made, str) else [made]
    if beside:
        later += [_text(f"Attached to the result of {response.id}:"), *beside]
    if all(piece["type"] == "input_text" for piece in inline):
        return "\n".join([piece["text"] for piece in inline])
    return inline
