"""What an MCP server answers, as parts that a model reads: text, images, sound, documents; bounded, nothing hidden."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Sequence
from typing import Any

from windlass.core import json
from windlass.core.messages import Blob, Modality, Text, Uri
from windlass.core.ports import ToolResult
from windlass.core.text import truncate
from windlass.tools.mcp_words import clean, plain

__all__ = ["bounded", "content_parts", "resource_parts", "tool_result"]

#: Bytes of images, sound and documents in one result, and how many of them.
MAX_BLOBS, MAX_BLOB_COUNT = 8 << 20, 20


def tool_result(result: Any, limit: int) -> ToolResult:
    """Return an MCP CallToolResult as a ToolResult of at most `limit` bytes of text (0: no bound)."""
    parts = content_parts(result.content)
    structured = result.structured_content
    if structured is not None:
        text = json.dumps(structured).decode()
        if not _holds(parts, structured):
            parts.append(Text(text))
    return ToolResult(bounded(parts, limit), "error" if result.is_error else "ok")


def content_parts(blocks: Iterable[Any]) -> list[Text | Blob]:
    """Return content blocks as parts. A link to a resource is text: nobody fetches it by itself."""
    parts: list[Text | Blob] = []
    for block in blocks:
        kind = block.type
        if kind == "text":
            parts.append(_text(block.text))
        elif kind in ("image", "audio"):
            parts.append(_blob(block.data, block.mime_type, kind))
        elif kind == "resource":
            parts.extend(resource_parts([block.resource]))
        elif kind == "resource_link":
            about = clean(" ".join(filter(None, (block.title or block.name, block.description))), 400).text
            parts.append(Text(f"[resource {_line(block.uri)} ({_line(block.mime_type or 'any type')}): {about}]"))
        else:
            parts.append(Text(f"[{_line(str(kind))}: content of a kind that is not shown]"))
    return parts


def resource_parts(contents: Sequence[Any]) -> list[Text | Blob]:
    """Return the contents of resources as parts; each text is headed by its address."""
    parts: list[Text | Blob] = []
    for item in contents:
        head = f"[resource {_line(item.uri)}]"
        if hasattr(item, "text"):
            parts.append(_text(f"{head}\n{item.text}"))
            continue
        mime = item.mime_type or "application/octet-stream"
        family = mime.partition("/")[0]
        modality: Modality = family if family in ("image", "audio", "video") else "document"
        parts.append(Text(head))
        parts.append(_blob(item.blob, mime, modality))
    return parts


def bounded(parts: Sequence[Text | Blob], limit: int) -> str | tuple[Text | Blob | Uri, ...]:
    """Return parts within the bounds, with a note where something was left out; text alone becomes one string."""
    out: list[Text | Blob | Uri] = []
    room, blobs, dropped, bytes_left = limit, 0, 0, MAX_BLOBS
    for part in parts:
        if isinstance(part, Blob):
            if blobs >= MAX_BLOB_COUNT or len(part.content) > bytes_left:
                dropped += 1
            else:
                blobs, bytes_left = blobs + 1, bytes_left - len(part.content)
                out.append(part)
            continue
        if limit and room <= 0:
            dropped += 1
            continue
        text = truncate(part.content, room if limit else 0)
        room -= len(text.encode("utf-8", "surrogatepass"))
        out.append(part if text == part.content else Text(text))
    if dropped:
        out.append(Text(f"[{dropped} more parts were left out: the result is too large]"))
    if all(isinstance(part, Text) for part in out):
        return "\n".join([part.content for part in out if isinstance(part, Text)])
    return tuple(out)


def _holds(parts: Sequence[Text | Blob], structured: Any) -> bool:
    """Tell whether the text of the parts says already what the structured content does (the usual double).

    It does as JSON, or as plain text where that is all there is in a wrapper of one field.
    """
    if isinstance(structured, dict) and len(structured) == 1:
        (only,) = structured.values()
        text = "\n".join([part.content for part in parts if isinstance(part, Text)])
        if isinstance(only, str) and plain(only) == text:
            return True
    for part in parts:
        if isinstance(part, Text) and part.content.lstrip()[:1] in ("{", "["):
            try:
                said: Any = json.loads(part.content)
            except (ValueError, RecursionError):
                continue
            if said == structured:
                return True
    return False


def _text(text: str) -> Text:
    return Text(plain(text))


def _line(text: str) -> str:
    return " ".join(clean(text, 500).text.split()).replace("]", "%5D")


def _blob(data: str, mime: str, modality: Modality) -> Text | Blob:
    try:
        raw = base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        return Text(f"[{modality}: its base64 is broken]")
    return Blob(raw, _line(mime), modality)
