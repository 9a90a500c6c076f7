"""Bedrock Converse's messages and content blocks, both ways (docs.aws.amazon.com/bedrock, API_runtime_ContentBlock).

A block is an object of one key, which names its kind. A kind that has no word of ours is kept as an `UnknownPart` whose
data is `{"type": "bedrock.<its kind>", "block": <the block>}`: this dialect sends it back unchanged. Signatures over
reasoning ride in `provider_metadata["bedrock"]`; Claude's own are Anthropic's and hold on every platform.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from msgspec import Struct

from windlass.core.errors import UnsupportedInputError
from windlass.core.json import dumps
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
from windlass.wire.base import IdRule, as_dict, as_list, as_str, bad_field, wire_id
from windlass.wire.bedrock_documents import FORMATS, MIMES, DocumentNames, document_format
from windlass.wire.media import inline_document, marker, text_document

__all__ = [
    "BEDROCK_IDS",
    "EMPTY",
    "KEY",
    "Target",
    "citations_of",
    "decode_block",
    "decode_message",
    "encode_messages",
    "family",
    "foreign_block",
    "markable",
    "own_fields",
    "reasoning_block",
    "tool_name",
    "tool_use",
]

#: The dialect's name and its key in `provider_metadata`.
KEY: Final = "bedrock"
#: Stands where a message would be empty: text without a visible character is refused.
EMPTY: Final = "(empty)"
#: A message with a document must hold text as well.
ATTACHED: Final = "(see the attached document)"
#: Tool-use ids and tool names: `[a-zA-Z0-9_-]{1,64}`.
BEDROCK_IDS: Final = IdRule(64)
_IMAGES = {"image/png": "png", "image/jpeg": "jpeg", "image/gif": "gif", "image/webp": "webp"}
_VENDOR = re.compile(r"(?:^|[./])(ai21|amazon|anthropic|cohere|deepseek|meta|mistral|openai|qwen|stability|writer)\.")
#: Who reads the `status` of a tool result; others refuse the field.
_READS_STATUS = ("", "amazon", "anthropic")


class Target(Struct, frozen=True):
    """Whom a message is encoded for; `names` gives its documents names that no other one of the request has."""

    model: str
    caps: Capabilities
    names: DocumentNames


def family(model: str) -> str:
    """Return who made a model, "" where its id does not tell (as the ARN of an application's own profile does not).

    >>> family("us.anthropic.claude-sonnet-4-5-20250929-v1:0"), family("amazon.nova-micro-v1:0"), family("mine")
    ('anthropic', 'amazon', '')
    """
    found = _VENDOR.search(model)
    return found[1] if found else ""


def tool_name(name: str) -> str:
    """Map a tool's name to the vendor's pattern: unchanged where it fits, else cleaned and ended by a hash."""
    return wire_id(name, BEDROCK_IDS)


def own_fields(metadata: Metadata | None) -> dict[str, Any]:
    """Return what this vendor added to a part, {} when nothing."""
    return as_dict((metadata or {}).get(KEY))


# --------------------------------------------------------------------------------------------------- to the vendor


def encode_messages(messages: Iterable[Message], to: Target) -> list[dict[str, Any]]:
    """Return messages as the API takes them: user and assistant in turn, tool results first in a user message.

    No message is empty and no text blank. Raises UnsupportedInputError for a part that the model cannot take.
    """
    out: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    said: list[dict[str, Any]] = []
    waiting = False
    for message in messages:
        if message.role == "assistant":
            if waiting:
                out.append(_user(results, said))
                results, said, waiting = [], [], False
            blocks = _assistant_blocks(message, to) or [{"text": EMPTY}]
            if out and out[-1]["role"] == "assistant":
                out[-1]["content"] += blocks
            else:
                out.append({"role": "assistant", "content": blocks})
            continue
        waiting = True
        for part in message.parts:
            if isinstance(part, ToolResponse):
                result, beside = _tool_result(part, to)
                results.append(result)
                said += beside
            elif message.role == "system" and isinstance(part, Text):
                # Only a request's head has a place for system text that every model knows.
                said += [{"text": f"<system>\n{part.content}\n</system>"}] if part.content.strip() else []
            else:
                said += _user_blocks(part, to)
    return [*out, _user(results, said)] if waiting else out


def _user(results: list[dict[str, Any]], said: list[dict[str, Any]]) -> dict[str, Any]:
    if any("document" in block for block in said) and not any("text" in block for block in said):
        said = [*said, {"text": ATTACHED}]
    return {"role": "user", "content": [*results, *said] or [{"text": EMPTY}]}


def reasoning_block(part: Reasoning, model: str) -> dict[str, Any] | None:
    """Return a reasoning block that the model will accept back, None when its maker did not sign it."""
    own = own_fields(part.provider_metadata)
    signature = as_str(own.get("signature"))
    if not signature and family(model) in ("", "anthropic"):
        signature = as_str(as_dict((part.provider_metadata or {}).get("anthropic")).get("signature"))
    if signature:
        return {"reasoningContent": {"reasoningText": {"text": part.content, "signature": signature}}}
    if redacted := as_str(own.get("redacted_content")):
        return {"reasoningContent": {"redactedContent": redacted}}
    return None


def foreign_block(part: UnknownPart) -> dict[str, Any] | None:
    """Return the vendor's own block that an unknown part holds, None when it is another vendor's."""
    if not as_str(part.data.get("type")).startswith(f"{KEY}."):
        return None
    return as_dict(part.data.get("block")) or None


def citations_of(part: Text) -> dict[str, Any] | None:
    """Return the block of a text that cites, None for any other."""
    citations = as_list(own_fields(part.provider_metadata).get("citations"))
    return {"citationsContent": {"content": [{"text": part.content}], "citations": citations}} if citations else None


def tool_use(part: ToolCall) -> dict[str, Any]:
    """Return the block of a call."""
    call = {"toolUseId": wire_id(part.id, BEDROCK_IDS), "name": tool_name(part.name), "input": part.arguments or {}}
    return {"toolUse": call}


def _assistant_blocks(message: Message, to: Target) -> list[dict[str, Any]]:
    blocks: list[dict[str, Any]] = []
    for part in message.parts:
        block: dict[str, Any] | None = None
        if isinstance(part, Text):
            block = (citations_of(part) or {"text": part.content}) if part.content.strip() else None
        elif isinstance(part, Reasoning):
            block = reasoning_block(part, to.model)
        elif isinstance(part, ToolCall):
            if not to.caps.tools:
                raise _unsupported(f"a call of the tool {part.name!r}", "takes no tools", to)
            block = tool_use(part)
        elif isinstance(part, UnknownPart):
            block = foreign_block(part)
        elif isinstance(part, ToolResponse):
            raise _unsupported("a tool response in an assistant message", "takes those from the user", to)
        else:
            # "You can only include images and documents if the role is user."
            block = {"text": marker(part)}
        if block is not None:
            blocks.append(block)
    if blocks and "reasoningContent" in blocks[-1]:
        # A turn that was cut while it thought: Claude refuses an answer that ends so.
        blocks.append({"text": EMPTY})
    return blocks


def _user_blocks(part: Part, to: Target) -> list[dict[str, Any]]:
    if isinstance(part, Text):
        return [{"text": part.content}] if part.content.strip() else []
    if isinstance(part, UnknownPart):
        block = foreign_block(part)
        if block is None:
            kind = as_str(part.data.get("type"))[:64]
            raise _unsupported(f"a part of type {kind!r}", "does not know it", to)
        return [block]
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
    inside: list[dict[str, Any]] = []
    beside: list[dict[str, Any]] = []
    pieces = (Text(part.response),) if isinstance(part.response, str) else part.response
    for piece in pieces:
        made = _media(piece, to) if isinstance(piece, (Blob, Uri)) else None
        if isinstance(piece, Text):
            inside += _user_blocks(piece, to)
        elif made is None or isinstance(made, str):
            # What a tool found must not end the conversation: the model reads that it was there.
            inside.append({"text": marker(piece)})
        elif "text" in made or to.caps.image_in_tool_result:
            inside.append(made)
        else:
            inside.append({"text": f"{marker(piece)} (shown below)"})
            beside.append(made)
    as_it_came = own_fields(part.provider_metadata).get("content")
    content = as_it_came if isinstance(as_it_came, list) and as_it_came else inside
    # "cannot be empty when status value is error", and some models take no empty one at all.
    block: dict[str, Any] = {
        "toolUseId": wire_id(part.id, BEDROCK_IDS),
        "content": content or [{"text": f"({part.status})" if part.is_error else EMPTY}],
    }
    if part.is_error and family(to.model) in _READS_STATUS:
        block["status"] = "error"
    return {"toolResult": block}, beside


def _media(part: Blob | Uri, to: Target) -> dict[str, Any] | str:
    """Return the block of an image or document, or why the model cannot take it."""
    if part.modality not in ("image", "document"):
        return f"takes no {part.modality}"
    if part.modality == "image" and not to.caps.vision:
        return "takes no images"
    text = text_document(part)
    if text is not None and not to.caps.documents:
        return {"text": inline_document(part, text)}
    if part.modality == "document" and not to.caps.documents:
        return "takes no documents"
    if isinstance(part, Uri) and not part.uri.startswith("s3://"):
        return f"takes {part.modality}s as bytes or from s3://"
    kind = _image_format(part) if part.modality == "image" else document_format(part)
    if kind is None:
        known = "PNG, JPEG, GIF and WebP" if part.modality == "image" else "PDF, CSV, Word, Excel, HTML and text"
        return f"takes {known}, not {part.mime_type}"
    if isinstance(part, Uri):
        owner = own_fields(part.provider_metadata).get("bucketOwner")
        source: dict[str, Any] = {"s3Location": {"uri": part.uri} | ({"bucketOwner": owner} if owner else {})}
    else:
        content = part.content if text is None or text.strip() else EMPTY.encode()
        source = {"bytes": base64.b64encode(content).decode()}
    block: dict[str, Any] = {"format": kind, "source": source}
    if part.modality == "document":
        block["name"] = to.names.take(part)
    rest = {key: value for key, value in own_fields(part.provider_metadata).items() if key in ("context", "citations")}
    return {part.modality: {**block, **rest}}


def _image_format(part: Blob | Uri) -> str | None:
    if part.mime_type is None and isinstance(part, Uri):
        ending = part.uri.rsplit(".", 1)[-1].lower()
        return _IMAGES.get(f"image/{'jpeg' if ending == 'jpg' else ending}")
    return _IMAGES.get(part.mime_type or "")


def _unsupported(what: str, why: str, to: Target) -> UnsupportedInputError:
    return UnsupportedInputError(
        f"The request holds {what}, but {to.model or 'the model'} {why}.",
        model=to.model or None,
        hint="Use a model that takes it, or leave it out.",
    )


# ------------------------------------------------------------------------------------------------- from the vendor

_SIDES = {"toolUse": "assistant", "reasoningContent": "assistant", "citationsContent": "assistant"}
_SIDES.update(dict.fromkeys(("toolResult", "image", "document", "video"), "user"))


def decode_message(data: Any, path: str) -> list[Message]:
    """Read one message: a user message with tool results becomes a tool message and, if more is in it, a user message.

    Cache points are left out; the request says whether there were any. Raises BadRequestError that names the field.
    """
    if not isinstance(data, dict):
        raise bad_field(path, "must be an object")
    role, content = data.get("role"), data.get("content")
    if role not in ("user", "assistant", "system"):
        raise bad_field(f"{path}.role", "must be user, assistant or system")
    if not isinstance(content, list):
        raise bad_field(f"{path}.content", "must be an array of content blocks")
    parts: list[Part] = []
    for number, block in enumerate(content):
        at = f"{path}.content[{number}]"
        part = decode_block(block, at)
        kind = _kind_of(block, at)
        if _SIDES.get(kind, role) != role:
            raise bad_field(f"{at}.{kind}", f"may not stand in a message of the role {role}")
        parts += [part] if part is not None else []
    results = tuple([part for part in parts if isinstance(part, ToolResponse)])
    if not results:
        return [Message(role, tuple(parts))]
    rest = tuple([part for part in parts if not isinstance(part, ToolResponse)])
    return [Message("tool", results), *([Message("user", rest)] if rest else [])]


def _kind_of(block: Any, path: str) -> str:
    # Clients that build blocks field by field send the others as null.
    kinds = [key for key, value in block.items() if value is not None] if isinstance(block, dict) else []
    if len(kinds) != 1 or not kinds[0].isidentifier():
        raise bad_field(path, "must be an object of one key, which names its kind")
    return kinds[0]


def decode_block(block: Any, path: str) -> Part | None:
    """Read one content block; None for a cache point. Raises BadRequestError that names the field."""
    kind = _kind_of(block, path)
    if kind == "cachePoint":
        return None
    reader = _READERS.get(kind)
    value = block[kind]
    if reader is not None and kind != "text" and not isinstance(value, dict):
        raise bad_field(f"{path}.{kind}", "must be an object")
    part = reader(value, f"{path}.{kind}") if reader is not None else None
    return UnknownPart({"type": f"{KEY}.{kind}", "block": {kind: value}}) if part is None else part


def _string(block: Mapping[str, Any], key: str, path: str) -> str:
    value = block.get(key)
    if not isinstance(value, str):
        raise bad_field(f"{path}.{key}", "must be a string")
    return value


def _read_text(value: Any, path: str) -> Part:
    if not isinstance(value, str):
        raise bad_field(path, "must be a string")
    return Text(value)


def _read_citations(value: dict[str, Any], path: str) -> Part:
    texts = [_string(as_dict(piece), "text", f"{path}.content") for piece in as_list(value.get("content"))]
    citations = as_list(value.get("citations"))
    return Text("".join(texts), {KEY: {"citations": citations}} if citations else None)


def _read_reasoning(value: dict[str, Any], path: str) -> Part | None:
    if isinstance(redacted := value.get("redactedContent"), str):
        return Reasoning("", {KEY: {"redacted_content": redacted}})
    if not isinstance(said := value.get("reasoningText"), dict):
        return None
    signature = as_str(said.get("signature"))
    text = _string(said, "text", f"{path}.reasoningText")
    return Reasoning(text, {KEY: {"signature": signature}} if signature else None)


def _read_tool_use(value: dict[str, Any], path: str) -> Part | None:
    given = value.get("input")
    if given is not None and not isinstance(given, dict):
        raise bad_field(f"{path}.input", "must be an object")
    call = ToolCall(_string(value, "toolUseId", path), _string(value, "name", path), given or {})
    # A tool that ran at the vendor is no call for us.
    return None if value.get("type") is not None else call


def _read_tool_result(value: dict[str, Any], path: str) -> Part | None:
    if value.get("type") is not None:
        return None
    call_id, status, content = _string(value, "toolUseId", path), value.get("status"), value.get("content")
    if status not in (None, "success", "error"):
        raise bad_field(f"{path}.status", "must be success or error")
    if not isinstance(content, list):
        raise bad_field(f"{path}.content", "must be an array of content blocks")
    parts = [_read_result_block(block, f"{path}.content[{number}]") for number, block in enumerate(content)]
    known = tuple([part for part in parts if isinstance(part, (Text, Blob, Uri))])
    metadata: Metadata | None = {KEY: {"content": content}} if len(known) < len(parts) else None
    only = known[0] if len(known) == 1 else None
    response = only.content if isinstance(only, Text) else known or ""
    return ToolResponse(call_id, response, "error" if status == "error" else "ok", metadata)


def _read_result_block(block: Any, path: str) -> Part | None:
    if _kind_of(block, path) == "json":
        return Text(dumps(block["json"]).decode())
    return decode_block(block, path)


def _read_image(value: dict[str, Any], path: str) -> Part | None:
    kind = as_str(value.get("format"))
    return _read_source(value, path, "image", f"image/{kind}" if kind else "image/png", None)


def _read_document(value: dict[str, Any], path: str) -> Part | None:
    kind = value.get("format")
    if kind is not None and kind not in FORMATS:
        raise bad_field(f"{path}.format", f"must be one of {', '.join(FORMATS)}")
    name = as_str(value.get("name"))
    return _read_source(value, path, "document", MIMES[kind or "txt"], f"{name}.{kind or 'txt'}" if name else None)


def _read_source(value: dict[str, Any], path: str, modality: Any, mime: str, name: str | None) -> Part | None:
    source, at = value.get("source"), f"{path}.source"
    if not isinstance(source, dict):
        raise bad_field(at, "must be an object")
    rest = {key: value[key] for key in ("context", "citations") if value.get(key) is not None}
    if isinstance(place := source.get("s3Location"), dict):
        rest |= {"bucketOwner": place["bucketOwner"]} if place.get("bucketOwner") else {}
        return Uri(_string(place, "uri", f"{at}.s3Location"), mime, modality, name, {KEY: rest} if rest else None)
    metadata: Metadata | None = {KEY: rest} if rest else None
    pieces = [as_str(as_dict(piece).get("text")) for piece in as_list(source.get("content"))]
    if isinstance(text := source.get("text", "\n".join(pieces) or None), str):
        return Blob(text.encode("utf-8", "replace"), "text/plain", modality, name, metadata)
    try:
        content = base64.b64decode(_string(source, "bytes", at), validate=True)
    except (binascii.Error, ValueError):
        raise bad_field(f"{at}.bytes", "must be base64") from None
    return Blob(content, mime, modality, name, metadata)


_READERS: dict[str, Callable[[Any, str], Part | None]] = {
    "text": _read_text,
    "citationsContent": _read_citations,
    "reasoningContent": _read_reasoning,
    "toolUse": _read_tool_use,
    "toolResult": _read_tool_result,
    "image": _read_image,
    "document": _read_document,
}


def markable(blocks: Sequence[dict[str, Any]]) -> int | None:
    """Return where in a user message a cache point may stand, None for nowhere.

    As late as possible, but never right after a document that is no PDF: Bedrock loses the point's type there and
    refuses the request (strands-agents, harness-sdk issue 1966).
    """
    at = len(blocks)
    while at and "document" in (last := blocks[at - 1]) and last["document"].get("format") != "pdf":
        at -= 1
    return at or None
