"""Anthropic's messages and content blocks, both ways (docs.anthropic.com/en/api/messages).

A block type that has no word of ours is kept as an `UnknownPart` whose data is `{"type": "anthropic.<its type>",
"block": <the block>}`: this dialect sends it back unchanged, the others can tell that it is not theirs. Fields of a
known block that have no word of ours ride in `provider_metadata["anthropic"]`.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from msgspec import Struct

from windlass.core.errors import UnsupportedInputError
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
from windlass.core.models import Capabilities
from windlass.wire.base import ANTHROPIC_IDS, as_dict, as_list, as_str, bad_field, wire_id
from windlass.wire.media import inline_document, marker, text_document

__all__ = [
    "EMPTY",
    "KEY",
    "Target",
    "decode_block",
    "decode_message",
    "encode_messages",
    "foreign_block",
    "markable",
    "own_fields",
    "reasoning_block",
]

#: The dialect's name and its key in `provider_metadata`.
KEY: Final = "anthropic"
#: Stands where a message would be empty: the API refuses empty messages and text without a visible character.
EMPTY: Final = "(empty)"
_IMAGES = frozenset(("image/png", "image/jpeg", "image/gif", "image/webp"))
_THINKING = ("thinking", "redacted_thinking")


class Target(Struct, frozen=True):
    """Whom a message is encoded for. `marks` keeps the cache marks that parts carry themselves."""

    model: str
    caps: Capabilities
    marks: bool = True


def own_fields(metadata: Metadata | None) -> dict[str, Any]:
    """Return what this vendor added to a part, {} when nothing."""
    return as_dict((metadata or {}).get(KEY))


# --------------------------------------------------------------------------------------------------- to the vendor


def encode_messages(messages: Iterable[Message], to: Target) -> list[dict[str, Any]]:
    """Return messages as the API takes them: what stands between two answers becomes one user message.

    Tool results come first in it, as the API demands. No message is empty. Raises UnsupportedInputError for a part
    that the model cannot take.
    """
    out: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    said: list[dict[str, Any]] = []
    waiting = False
    for message in messages:
        if message.role == "assistant":
            if waiting:
                out.append({"role": "user", "content": [*results, *said] or [_text(EMPTY)]})
                results, said, waiting = [], [], False
            out.append({"role": "assistant", "content": _assistant_blocks(message, to) or [_text(EMPTY)]})
            continue
        waiting = True
        for part in message.parts:
            if isinstance(part, ToolResponse):
                result, beside = _tool_result(part, to)
                results.append(result)
                said += beside
            elif message.role == "system" and isinstance(part, Text):
                # Only a request's head has a place for system text that every model knows.
                said += [_text(f"<system>\n{part.content}\n</system>")] if part.content.strip() else []
            else:
                said += _user_blocks(part, to)
    if waiting:
        out.append({"role": "user", "content": [*results, *said] or [_text(EMPTY)]})
    return out


def _text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def _with_own(block: dict[str, Any], metadata: Metadata | None, to: Target) -> dict[str, Any]:
    for key, value in own_fields(metadata).items():
        if key not in block and (to.marks or key != "cache_control"):
            block[key] = value
    return block


def _unmarked(block: dict[str, Any], to: Target) -> dict[str, Any]:
    return block if to.marks else {key: value for key, value in block.items() if key != "cache_control"}


def reasoning_block(part: Reasoning) -> dict[str, Any] | None:
    """Return a thinking block the vendor will accept back, None when it did not sign this reasoning itself."""
    own = own_fields(part.provider_metadata)
    if signature := as_str(own.get("signature")):
        return {"type": "thinking", "thinking": part.content, "signature": signature}
    if data := as_str(own.get("redacted_data")):
        return {"type": "redacted_thinking", "data": data}
    return None


def foreign_block(part: UnknownPart) -> dict[str, Any] | None:
    """Return the vendor's own block that an unknown part holds, None when it is another vendor's."""
    if not as_str(part.data.get("type")).startswith(f"{KEY}."):
        return None
    return as_dict(part.data.get("block")) or None


def _assistant_blocks(message: Message, to: Target) -> list[dict[str, Any]]:
    blocks: list[dict[str, Any]] = []
    for part in message.parts:
        block: dict[str, Any] | None = None
        if isinstance(part, Text):
            block = _with_own(_text(part.content), part.provider_metadata, to) if part.content.strip() else None
        elif isinstance(part, Reasoning):
            block = reasoning_block(part)
        elif isinstance(part, ToolCall):
            if not to.caps.tools:
                raise _unsupported(f"a call of the tool {part.name!r}", "takes no tools", to)
            block = {
                "type": "tool_use",
                "id": wire_id(part.id, ANTHROPIC_IDS),
                "name": part.name,
                "input": part.arguments or {},
            }
            block = _with_own(block, part.provider_metadata, to)
        elif isinstance(part, UnknownPart):
            block = foreign_block(part)
            block = None if block is None else _unmarked(block, to)
        elif isinstance(part, ToolResponse):
            raise _unsupported("a tool response in an assistant message", "takes those from the user", to)
        else:
            block = _text(marker(part))
        if block is not None:
            blocks.append(block)
    if blocks and blocks[-1]["type"] in _THINKING:
        # "The final block in an assistant message cannot be `thinking`": a turn that was cut while it thought.
        blocks.append(_text(EMPTY))
    return blocks


def _user_blocks(part: Part, to: Target) -> list[dict[str, Any]]:
    if isinstance(part, Text):
        block = _with_own(_text(part.content), part.provider_metadata, to)
        # Only the model cites.
        block.pop("citations", None)
        return [block] if part.content.strip() else []
    if isinstance(part, UnknownPart):
        block = foreign_block(part)
        if block is None:
            kind = as_str(part.data.get("type"))[:64]
            raise _unsupported(f"a part of type {kind!r}", "does not know it", to)
        return [_unmarked(block, to)]
    if isinstance(part, (Blob, Uri)):
        made = _media(part, to)
        if isinstance(made, str):
            raise _unsupported(marker(part), made, to)
        return [made]
    if isinstance(part, ToolCall):
        raise _unsupported(f"a call of {part.name!r} outside an assistant message", "takes those from itself only", to)
    return []


def _tool_result(part: ToolResponse, to: Target) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the result block, and the blocks that have to stand beside it because they may not stand in it."""
    if not to.caps.tools:
        raise _unsupported(f"the response to the tool call {part.id!r}", "takes no tools", to)
    block: dict[str, Any] = {"type": "tool_result", "tool_use_id": wire_id(part.id, ANTHROPIC_IDS)}
    beside: list[dict[str, Any]] = []
    as_it_came = own_fields(part.provider_metadata).get("content")
    if isinstance(as_it_came, list):
        block["content"] = as_it_came
    elif isinstance(part.response, str):
        if part.response.strip():
            block["content"] = part.response
    else:
        inside: list[dict[str, Any]] = []
        for piece in part.response:
            if isinstance(piece, Text):
                inside += _user_blocks(piece, to)
                continue
            made = _media(piece, to)
            if isinstance(made, str):
                # What a tool found must not end the conversation: the model reads that it was there.
                inside.append(_text(marker(piece)))
            elif made["type"] == "text" or to.caps.image_in_tool_result:
                inside.append(made)
            else:
                inside.append(_text(f"{marker(piece)} (shown below)"))
                beside.append(made)
        if inside:
            block["content"] = inside
    if part.is_error:
        block["is_error"] = True
        block.setdefault("content", f"({part.status})")
    return _with_own(block, part.provider_metadata, to), beside


def _media(part: Blob | Uri, to: Target) -> dict[str, Any] | str:
    """Return the block of an image or document, or why the model cannot take it."""
    text = text_document(part)
    kind = part.mime_type or ""
    if part.modality not in ("image", "document"):
        return f"takes no {part.modality}"
    if part.modality == "image" and not to.caps.vision:
        return "takes no images"
    if text is not None and not to.caps.documents:
        return _text(inline_document(part, text))
    if part.modality == "document" and not to.caps.documents:
        return "takes no documents"
    if text is not None:
        source: dict[str, Any] = {"type": "text", "media_type": "text/plain", "data": text if text.strip() else EMPTY}
    elif isinstance(part, Uri):
        if part.modality == "document" and kind not in ("", "application/pdf"):
            return f"takes only PDF documents by their address, not {kind}"
        source = {"type": "url", "url": part.uri}
    elif kind not in (_IMAGES if part.modality == "image" else ("application/pdf",)):
        return f"takes PNG, JPEG, GIF, WebP, PDF and text, not {kind}"
    else:
        source = {"type": "base64", "media_type": kind, "data": base64.b64encode(part.content).decode()}
    block: dict[str, Any] = {"type": part.modality, "source": source}
    if part.filename and part.modality == "document":
        block["title"] = part.filename
    return _with_own(block, part.provider_metadata, to)


def _unsupported(what: str, why: str, to: Target) -> UnsupportedInputError:
    return UnsupportedInputError(
        f"The request holds {what}, but {to.model or 'the model'} {why}.",
        model=to.model or None,
        hint="Use a model that takes it, or leave it out.",
    )


def markable(blocks: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """Return the last block that may carry a cache mark; thinking may not."""
    return next((block for block in reversed(blocks) if block.get("type") not in _THINKING), None)


# ------------------------------------------------------------------------------------------------- from the vendor


def decode_message(data: Any, path: str) -> list[Message]:
    """Read one message: a user message with tool results becomes a tool message and, if more is in it, a user message.

    Raises BadRequestError that names the field.
    """
    if not isinstance(data, dict):
        raise bad_field(path, "must be an object")
    role = data.get("role")
    if role not in ("user", "assistant", "system"):
        raise bad_field(f"{path}.role", "must be user, assistant or system")
    parts = _decode_content(data.get("content"), f"{path}.content", role)
    if role != "user":
        return [Message(role, tuple(parts))]
    results = tuple([part for part in parts if isinstance(part, ToolResponse)])
    rest = tuple([part for part in parts if not isinstance(part, ToolResponse)])
    out = [Message("tool", results)] if results else []
    return [*out, Message("user", rest)] if rest or not results else out


_ROLES: dict[str, tuple[str, ...]] = {
    "tool_use": ("assistant",),
    "thinking": ("assistant",),
    "redacted_thinking": ("assistant",),
    "tool_result": ("user",),
    "image": ("user",),
    "document": ("user",),
}


def _decode_content(content: Any, path: str, role: str) -> list[Part]:
    if isinstance(content, str):
        return [Text(content)] if content else []
    if not isinstance(content, list):
        raise bad_field(path, "must be a string or an array of content blocks")
    parts: list[Part] = []
    for number, block in enumerate(content):
        at = f"{path}[{number}]"
        part = decode_block(block, at)
        kind = block["type"]
        if role not in _ROLES.get(kind, (role,)) or (role == "system" and kind != "text"):
            raise bad_field(f"{at}.type", f"{kind[:64]} may not stand in a message of the role {role}")
        parts.append(part)
    return parts


def decode_block(block: Any, path: str) -> Part:
    """Read one content block. Raises BadRequestError that names the field."""
    if not isinstance(block, dict):
        raise bad_field(path, "must be an object")
    kind = block.get("type")
    if not isinstance(kind, str) or not kind:
        raise bad_field(f"{path}.type", "must be the name of a block type")
    reader = _READERS.get(kind)
    part = reader(block, path) if reader is not None else None
    return UnknownPart({"type": f"{KEY}.{kind}", "block": block}) if part is None else part


def _string(block: Mapping[str, Any], key: str, path: str) -> str:
    value = block.get(key)
    if not isinstance(value, str):
        raise bad_field(f"{path}.{key}", "must be a string")
    return value


def _rest(block: Mapping[str, Any], *known: str) -> Metadata | None:
    rest = {key: value for key, value in block.items() if key not in known and value is not None}
    return {KEY: rest} if rest else None


def _read_text(block: dict[str, Any], path: str) -> Part:
    metadata = _rest(block, "type", "text")
    if metadata is not None and "citations" in metadata[KEY]:
        # Answers carry nulls here that requests may not.
        cited = [{k: v for k, v in as_dict(item).items() if v is not None} for item in as_list(block["citations"])]
        metadata[KEY]["citations"] = cited
    return Text(_string(block, "text", path), metadata)


def _read_thinking(block: dict[str, Any], path: str) -> Part:
    signature = as_str(block.get("signature"))
    return Reasoning(_string(block, "thinking", path), {KEY: {"signature": signature}} if signature else None)


def _read_redacted(block: dict[str, Any], path: str) -> Part:
    return Reasoning("", {KEY: {"redacted_data": _string(block, "data", path)}})


def _read_tool_use(block: dict[str, Any], path: str) -> Part:
    given = block.get("input")
    if given is not None and not isinstance(given, dict):
        raise bad_field(f"{path}.input", "must be an object")
    metadata = _rest(block, "type", "id", "name", "input")
    return ToolCall(_string(block, "id", path), _string(block, "name", path), given or {}, None, metadata)


def _read_tool_result(block: dict[str, Any], path: str) -> Part:
    call_id = _string(block, "tool_use_id", path)
    failed = block.get("is_error")
    if failed is not None and not isinstance(failed, bool):
        raise bad_field(f"{path}.is_error", "must be true or false")
    metadata = _rest(block, "type", "tool_use_id", "content", "is_error")
    content = block.get("content")
    response: str | tuple[Text | Blob | Uri, ...] = content if isinstance(content, str) else ""
    if isinstance(content, list):
        parts = [decode_block(item, f"{path}.content[{number}]") for number, item in enumerate(content)]
        known = tuple([part for part in parts if isinstance(part, (Text, Blob, Uri))])
        if len(known) < len(parts):
            metadata = {KEY: {**own_fields(metadata), "content": content}}
        only = known[0] if len(known) == 1 else None
        plain = isinstance(only, Text) and only.provider_metadata is None
        response = only.content if plain and isinstance(only, Text) else known or ""
    elif content is not None and not isinstance(content, str):
        raise bad_field(f"{path}.content", "must be a string or an array of content blocks")
    return ToolResponse(call_id, response, "error" if failed else "ok", metadata)


def _read_media(block: dict[str, Any], path: str) -> Part | None:
    source = block.get("source")
    if not isinstance(source, dict):
        raise bad_field(f"{path}.source", "must be an object")
    image = block["type"] == "image"
    modality = "image" if image else "document"
    name = None if image else (as_str(block.get("title")) or None)
    metadata = _rest(block, "type", "source", "title")
    at = f"{path}.source"
    if source.get("type") == "url":
        mime = None if image else "application/pdf"
        return Uri(_string(source, "url", at), mime, modality, name, metadata)
    if source.get("type") == "text" and not image:
        return Blob(_string(source, "data", at).encode("utf-8", "replace"), "text/plain", modality, name, metadata)
    if source.get("type") == "base64":
        data = _string(source, "data", at)
        try:
            content = base64.b64decode(data, validate=True)
        except (binascii.Error, ValueError):
            raise bad_field(f"{at}.data", "must be base64") from None
        return Blob(content, _string(source, "media_type", at), modality, name, metadata)
    return None


_READERS: dict[str, Callable[[dict[str, Any], str], Part | None]] = {
    "text": _read_text,
    "thinking": _read_thinking,
    "redacted_thinking": _read_redacted,
    "tool_use": _read_tool_use,
    "tool_result": _read_tool_result,
    "image": _read_media,
    "document": _read_media,
}
