"""Words from MCP servers, made fit to be shown to a model: nothing hidden, nothing that a terminal obeys, bounded.

They stay what somebody else wrote: what looks like an instruction is flagged, not believed.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

from msgspec import Struct

from windlass.core.text import strip_escapes, truncate

__all__ = ["MAX_DESCRIPTION", "Words", "clean", "clean_schema", "describe", "escape", "first_words", "plain", "share"]

#: Bytes of one description (S78).
MAX_DESCRIPTION = 2048
_MAX_DEPTH = 32
_ORDERS = re.compile(
    r"(?i)\b(?:ignore|disregard|forget|override)\b.{0,40}\b(?:previous|prior|above|other|all|system)\b"
    r"|\bdo\s+not\s+(?:tell|inform|mention|reveal|notify|ask)\b"
    r"|\b(?:before|instead\s+of)\s+(?:using|calling)\s+(?:any|this|other)\b"
    r"|</?\s*(?:important|system|instructions?|secret|assistant|user|tool_result)\b"
    r"|\b(?:you\s+must|always)\b.{0,60}\b(?:first|instead|send|include|read|call)\b"
    r"|\bsystem\s+prompt\b|~/\.ssh|\bid_rsa\b"
)
_TAGS = re.compile("[\U000e0000-\U000e007f]")
_BASE64 = re.compile(r"[A-Za-z0-9+/]{80,}={0,2}")


class Words(Struct, frozen=True):
    """A cleaned text and what was wrong with it: hidden, escapes, cut, orders, base64, or `names SERVER's TOOL`."""

    text: str
    flags: tuple[str, ...] = ()


def _is_hidden(char: str) -> bool:
    kind = unicodedata.category(char)
    return kind in ("Cf", "Co", "Cs", "Cn") or "\ufe00" <= char <= "\ufe0f" or "\U000e0100" <= char <= "\U000e01ef"


def clean(text: str, limit: int = MAX_DESCRIPTION) -> Words:
    """Return `text` in NFC without escapes, controls, hidden characters (Unicode tags), in at most `limit` bytes."""
    flags: list[str] = []
    # A text of megabytes costs nothing beyond this: only its start can be shown.
    whole, text = text, text[: 4 * limit + 64] if limit else text
    plain = strip_escapes(text)
    if plain != text.replace("\r\n", "\n"):
        flags.append("escapes")
    if not plain.isascii():
        seen = "".join([char for char in plain if not _is_hidden(char)])
        if seen != plain:
            flags.append("hidden")
        plain = unicodedata.normalize("NFC", seen)
    plain = plain.strip()
    cut = truncate(plain, limit)
    if cut != plain or len(text) != len(whole):
        flags.append("cut")
    return Words(cut, tuple(flags))


def plain(text: str) -> str:
    """Return data of a server as it is, but without terminal commands and the invisible alphabet (Unicode tags)."""
    text = strip_escapes(text)
    return text if text.isascii() else _TAGS.sub("", text)


def describe(text: str, limit: int = MAX_DESCRIPTION, *, others: Iterable[tuple[str, str]] = ()) -> Words:
    """Clean a description and flag what a person should look at; `others` are (server, tool) of other servers."""
    words = clean(text, limit)
    flags = list(words.flags)
    if _ORDERS.search(words.text):
        flags.append("orders")
    if _BASE64.search(words.text):
        flags.append("base64")
    lower = words.text.lower()
    for server, tool in others:
        # Short and everyday names would be found in any text.
        if (len(tool) >= 6 and "_" in tool and tool.lower() in lower) or f"mcp_{server}_".lower() in lower:
            flags.append(f"names {server}'s {tool}"[:80])
            break
    return Words(words.text, tuple(flags))


def clean_schema(schema: Any, flags: set[str], depth: int = 0) -> Any:
    """Return a copy of a JSON Schema whose titles and descriptions are cleaned; what they hold is added to `flags`."""
    if depth > _MAX_DEPTH:
        return schema
    if isinstance(schema, list):
        return [clean_schema(item, flags, depth + 1) for item in schema]
    if not isinstance(schema, dict):
        return schema
    out: dict[str, Any] = {}
    for key, value in schema.items():
        if key in ("description", "title", "$comment") and isinstance(value, str):
            words = describe(value)
            flags.update(words.flags)
            out[key] = words.text
        else:
            out[key] = clean_schema(value, flags, depth + 1)
    return out


def escape(text: str) -> str:
    """Return `text` as it may stand inside an element or an attribute of our own markup."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace('"', "&quot;")


def first_words(text: str, limit: int) -> str:
    """Return the first sentence or line, in at most `limit` characters."""
    line = " ".join(text.split("\n\n", 1)[0].split())
    end = line.find(". ")
    line = line[: end + 1] if 0 <= end < limit else line
    return line if len(line) <= limit else (line[: max(0, limit - 1)].rstrip() + "…" if limit else "")


def share(counts: Sequence[int], room: int) -> list[int]:
    """Divide `room` places among lists of `counts` items, the small ones first served."""
    out = [0] * len(counts)
    left, order = room, sorted(range(len(counts)), key=lambda index: counts[index])
    for place, index in enumerate(order):
        out[index] = min(counts[index], left // (len(order) - place))
        left -= out[index]
    return out
