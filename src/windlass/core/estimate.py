"""How many tokens a request has, by its bytes: for limits and for providers that cannot count. Nothing is exact here.

Text is taken at four bytes of UTF-8 a token, which is about right for English, code and JSON, a little high for
European languages and a little low for Chinese. The rules of thumb for media are the vendors' own: see each constant.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from windlass.core.json import dumps
from windlass.core.messages import Blob, Message, Modality, Part, Reasoning, Text, ToolCall, ToolResponse, Uri
from windlass.core.request import Request, ToolSpec

__all__ = ["estimate_text", "estimate_tokens", "image_size"]

_BYTES_PER_TOKEN: Final = 4
#: What frames a message, a tool call or a definition.
_FRAME: Final = 4
#: A token is a square of so many pixels a side, and an image has at most so many: larger ones are scaled down
#: (docs.claude.com, "Vision"; Qwen-VL and Mistral cut images into the same squares).
_PATCH: Final = 28
_IMAGE: Final = 1568
#: "1,500-3,000 tokens per page depending on content density" (docs.claude.com, "PDF support").
_PAGE: Final = 2250
#: Bytes of a page where a PDF does not show how many it has.
_PAGE_BYTES: Final = 50_000
#: Bytes per token: 32 tokens a second of sound at 128 kbit/s, 263 a second of video at 2 Mbit/s (ai.google.dev).
_MEDIA_BYTES: Final[dict[Modality, int]] = {"audio": 500, "video": 950}
#: A file that the provider fetches itself: of what size, nobody here knows.
_UNKNOWN_FILE: Final = 2250
#: Where a JPEG's head is given up: profiles and thumbnails take some dozens of segments.
_SEGMENTS: Final = 1000
_PAGES = re.compile(rb"/Type\s{0,4}/Page(?![A-Za-z])")


def estimate_text(text: str) -> int:
    """Return the estimated tokens of a text: a quarter of its bytes in UTF-8, rounded up.

    >>> estimate_text(""), estimate_text("Hello, world"), estimate_text("日本語")
    (0, 3, 3)
    """
    size = len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
    return _tokens(size)


def estimate_tokens(request: Request) -> int:
    """Return the estimated input tokens of a request: system prompt, tools, schema and every part of every message.

    An image counts its squares of 28 x 28 pixels, at most 1568, which also stands for one of unknown size; a PDF 2250
    a page; sound and video by their bytes.
    """
    total = estimate_text(request.system) + _FRAME if request.system else 0
    total += sum([_tool(spec) for spec in request.tools])
    if request.output_schema is not None:
        total += _data(request.output_schema)
    return total + sum([_message(message) for message in request.messages])


def _tokens(size: int) -> int:
    return -(-size // _BYTES_PER_TOKEN)


def _data(value: object) -> int:
    return _tokens(len(dumps(value)))


def _tool(spec: ToolSpec) -> int:
    return _FRAME + estimate_text(spec.name) + estimate_text(spec.description) + _data(spec.input_schema)


def _message(message: Message) -> int:
    return _FRAME + _parts(message.parts)


def _parts(parts: Iterable[Part]) -> int:
    return sum([_part(part) for part in parts])


def _part(part: Part) -> int:
    if isinstance(part, (Text, Reasoning)):
        return estimate_text(part.content)
    if isinstance(part, ToolCall):
        given = part.arguments_text
        return _FRAME + estimate_text(part.name) + (_data(part.arguments) if given is None else estimate_text(given))
    if isinstance(part, ToolResponse):
        inner = part.response
        return _FRAME + (estimate_text(inner) if isinstance(inner, str) else _parts(inner))
    if isinstance(part, Blob):
        return _blob(part)
    if isinstance(part, Uri):
        return _IMAGE if part.modality == "image" else _UNKNOWN_FILE
    return _data(part.data)


def _blob(part: Blob) -> int:
    data = part.content
    if part.modality == "image":
        size = image_size(data)
        return _IMAGE if size is None else min(_IMAGE, -(-size[0] // _PATCH) * -(-size[1] // _PATCH))
    if part.modality == "document":
        if not data.startswith(b"%PDF-"):
            return _tokens(len(data))
        return _PAGE * (len(_PAGES.findall(data)) or -(-len(data) // _PAGE_BYTES))
    return -(-len(data) // _MEDIA_BYTES[part.modality])


def image_size(data: bytes) -> tuple[int, int] | None:
    """Return (width, height) in pixels as the header of a PNG, GIF, WebP or JPEG says it, None where it does not."""
    if data[:8] == b"\x89PNG\r\n\x1a\n" and data[12:16] == b"IHDR" and len(data) >= 24:
        size = (int.from_bytes(data[16:20]), int.from_bytes(data[20:24]))
    elif data[:6] in (b"GIF87a", b"GIF89a") and len(data) >= 10:
        size = (int.from_bytes(data[6:8], "little"), int.from_bytes(data[8:10], "little"))
    elif data[:4] == b"RIFF" and data[8:12] == b"WEBP" and len(data) >= 30:
        size = _webp(data)
    elif data[:2] == b"\xff\xd8":
        size = _jpeg(data)
    else:
        size = (0, 0)
    return size if size[0] and size[1] else None


def _webp(data: bytes) -> tuple[int, int]:
    """Read the three kinds of a WebP's first chunk (RFC 9649, 2.4-2.7)."""
    kind = data[12:16]
    if kind == b"VP8X":
        return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
    if kind == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b"VP8 ":
        return int.from_bytes(data[26:28], "little") & 0x3FFF, int.from_bytes(data[28:30], "little") & 0x3FFF
    return 0, 0


def _jpeg(data: bytes) -> tuple[int, int]:
    """Walk the segments up to the frame header, SOF0-SOF15 (ITU T.81, B.2.2)."""
    at = 2
    for _ in range(_SEGMENTS):
        if at + 9 > len(data) or data[at] != 0xFF:
            break
        marker = data[at + 1]
        if marker == 0xFF:
            at += 1
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return int.from_bytes(data[at + 7 : at + 9]), int.from_bytes(data[at + 5 : at + 7])
        else:
            at += 2 + max(2, int.from_bytes(data[at + 2 : at + 4]))
    return 0, 0
