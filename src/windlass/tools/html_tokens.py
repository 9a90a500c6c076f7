"""HTML in pieces: tags and text, in time linear in the page, whatever the page.

Not the standard library's html.parser: 300 kB of `<a x="` keep that busy for minutes (CVE-2025-6069 and its like).
Here every search that finds nothing also ends the page, as the HTML standard has it for an unclosed comment, tag or
script, so no character is looked at more than a few times. Source: html.spec.whatwg.org, 13.2.5.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from html import unescape

from msgspec import Struct

__all__ = ["Tag", "tokens"]

_OPEN = re.compile(r"<(?:(?P<slash>/)?(?P<name>[a-zA-Z][^\s/>\x00]*+)|(?P<comment>!--)|(?P<other>[!?/]))")
_GAP = re.compile(r"[\s/]*+")
_ATTRIBUTE = re.compile(r"(=?[^\s/>=]*+)\s*+(?:=\s*+(?:\"([^\"]*+)\"|'([^']*+)'|(?![\"'])([^\s>]*+)))?+")
#: Elements whose content is no markup; `</name` ends it.
_RAW = frozenset({"script", "style", "textarea", "title", "xmp", "iframe", "noembed", "noframes"})
_ENDS = {name: re.compile(rf"</{name}(?=[\s/>])", re.IGNORECASE) for name in _RAW}
_NAME = 64
_MOST_ATTRIBUTES = 100
#: The only attributes that anybody asks for; values are cut.
_WANTED = frozenset(
    ["href", "src", "alt", "hidden", "style", "aria-hidden", "class", "start", "role", "lang", "type", "title"]
)
_VALUE = 8192


class Tag(Struct, frozen=True):
    """A start tag, or an end tag; `attributes` holds those that matter, with their entities decoded."""

    name: str
    end: bool = False
    attributes: dict[str, str] = {}


def tokens(html: str) -> Iterator[Tag | str]:
    """Yield tags and texts in their order; the content of script, style and their like is one text after the tag.

    Texts have their entities decoded, but for scripts and styles, which are left out.
    """
    at, length = 0, len(html)
    while at < length:
        start = html.find("<", at)
        if start < 0:
            yield unescape(html[at:])
            return
        if start > at:
            yield unescape(html[at:start])
        match = _OPEN.match(html, start)
        if match is None:
            yield "<"
            at = start + 1
        elif match["name"] is None:
            at = _skip(html, match)
        else:
            tag, at = _tag(html, match)
            if tag is None:
                return
            yield tag
            if not tag.end and tag.name == "plaintext":
                yield html[at:]
                return
            if not tag.end and tag.name in _RAW:
                end = _ENDS[tag.name].search(html, at)
                if tag.name in ("title", "textarea", "xmp"):
                    yield unescape(html[at : end.start() if end else length])
                at = end.start() if end else length


def _skip(html: str, match: re.Match[str]) -> int:
    """Return the place behind a comment, a doctype, a processing instruction."""
    if match["comment"] is None or html.startswith((">", "->"), match.end()):
        end = html.find(">", match.end())
    else:
        end = html.find("-->", match.end())
        end = end + 2 if end >= 0 else end
    return end + 1 if end >= 0 else len(html)


def _tag(html: str, match: re.Match[str]) -> tuple[Tag | None, int]:
    """Return a tag and the place behind it; None where the page ends within it."""
    at, found = match.end(), dict[str, str]()
    count = 0
    while True:
        gap = _GAP.match(html, at)
        at = gap.end() if gap else at
        if at >= len(html):
            return None, at
        if html[at] == ">":
            name = match["name"][:_NAME].lower()
            return Tag(name, match["slash"] is not None, found), at + 1
        attribute = _ATTRIBUTE.match(html, at)
        if attribute is None or attribute.end() == at:
            return None, at
        at = attribute.end()
        if html.startswith("=", at):
            # A quoted value without its end: the page ends here.
            return None, at
        name, count = attribute[1].lower() if len(attribute[1]) < _NAME else "", count + 1
        if name in _WANTED and name not in found and count <= _MOST_ATTRIBUTES:
            value = attribute[2] or attribute[3] or attribute[4] or ""
            found[name] = unescape(value[:_VALUE])
