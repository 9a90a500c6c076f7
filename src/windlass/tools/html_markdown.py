"""A web page as Markdown: what a reader sees of it, without scripts, styles and what is hidden; links absolute.

Bounded in time, depth and size for any input; unclosed and misplaced tags are closed where browsers close them.
"""

from __future__ import annotations

import re
from urllib.parse import urljoin

from msgspec import Struct

from windlass.tools.html_lines import Lines
from windlass.tools.html_table import Table
from windlass.tools.html_tokens import Tag, tokens

__all__ = ["Page", "to_markdown"]

#: Elements within each other that are told apart; deeper ones are only text.
MAX_DEPTH = 64
#: Characters of a page that are looked at: some seconds of work.
MAX_HTML = 4_000_000
MAX_MARKS = 8
MAX_LINK = 2048
_SKIPPED = frozenset(
    [
        "script",
        "style",
        "template",
        "svg",
        "iframe",
        "object",
        "canvas",
        "audio",
        "video",
        "noembed",
        "noframes",
        "select",
    ]
)
_VOID = frozenset(
    ["area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"]
)
_BLOCKS = frozenset(
    [
        "address",
        "article",
        "aside",
        "body",
        "center",
        "details",
        "dialog",
        "div",
        "dl",
        "fieldset",
        "figcaption",
        "figure",
        "footer",
        "form",
        "head",
        "header",
        "hgroup",
        "html",
        "main",
        "menu",
        "nav",
        "ol",
        "p",
        "search",
        "section",
        "summary",
        "ul",
    ]
)
_HEADINGS = {f"h{level}": level for level in range(1, 7)}
_MARKS = {
    "b": "**", "strong": "**", "i": "*", "em": "*", "cite": "*", "del": "~~", "s": "~~", "code": "`", "kbd": "`",
    "samp": "`", "tt": "`",
}  # fmt: skip
#: A start tag of the first closes an open one of the second, up to the nearest of the third.
_CLOSES: dict[str, tuple[frozenset[str], frozenset[str]]] = {
    "li": (frozenset({"li"}), frozenset({"ul", "ol", "menu", "td", "th"})),
    "dt": (frozenset({"dt", "dd"}), frozenset({"dl"})),
    "dd": (frozenset({"dt", "dd"}), frozenset({"dl"})),
    "tr": (frozenset({"tr"}), frozenset({"table"})),
    "td": (frozenset({"td", "th"}), frozenset({"table", "tr"})),
    "th": (frozenset({"td", "th"}), frozenset({"table", "tr"})),
    "a": (frozenset({"a"}), frozenset({"td", "th", "table"})),
    **{name: (frozenset(_HEADINGS), frozenset({"td", "th", "blockquote", "li"})) for name in _HEADINGS},
}
#: Hidden elements of these end where the next one begins: their end tags may be left out.
_UNCLOSED = frozenset(["p", "li", "dt", "dd", "tr", "td", "th", "option"])
_HIDDEN = re.compile(r"(?:display\s*+:\s*+none|visibility\s*+:\s*+hidden)", re.IGNORECASE)
_LANGUAGE = re.compile(r"(?:^|\s)(?:language|lang|highlight-source)-([A-Za-z0-9_+#.-]{1,30})")


class Page(Struct, frozen=True):
    """A page: its title, its text as Markdown, and whether its end was left out."""

    title: str
    text: str
    cut: bool = False


class _Open(Struct):
    """An element that does something at its end."""

    name: str
    mark: tuple[int, int] = (0, -1)
    href: str = ""
    #: Where its prefix was put: a cell's lines may be gone before it ends.
    prefixed: Lines | None = None
    number: int = 0
    table: Table | None = None


def to_markdown(html: str, url: str, *, limit: int = 2_000_000) -> Page:
    """Convert a page that came from `url` to at most `limit` characters of Markdown."""
    reader = _Reader(url, limit)
    for token in tokens(html[:MAX_HTML].replace("\0", "\ufffd")):
        if reader.lines.full:
            break
        if isinstance(token, str):
            reader.text(token)
        else:
            reader.tag(token)
    page = reader.page()
    return Page(page.title, page.text, page.cut or len(html) > MAX_HTML)


class _Reader:
    def __init__(self, url: str, limit: int) -> None:
        self.base, self._based = url, False
        self.lines = Lines(limit)
        self._outer: list[Lines] = []
        self._open: list[_Open] = []
        self._title: str | None = None
        self._in_title = False
        #: The hidden or skipped element that we are in, and how many of its name are open.
        self._hidden, self._depth = "", 0
        self._code: list[str] | None = None
        self._language = ""

    def page(self) -> Page:
        cut = self.lines.full
        self._finish_code()
        self._close_to(0)
        title = " ".join((self._title or "").split())[:300]
        return Page(title, self.lines.result(), cut or self.lines.full)

    # -- tokens ----------------------------------------------------------------------------------------------------

    def text(self, text: str) -> None:
        if self._in_title:
            self._title, self._in_title = text, False
        elif self._hidden:
            return
        elif self._code is not None:
            self._code.append(text)
        else:
            self.lines.text(text)

    def tag(self, tag: Tag) -> None:
        self._in_title = False
        if self._hidden and self._still_hidden(tag):
            return
        if self._code is not None:
            self._tag_in_code(tag)
        elif tag.end:
            self._end(tag.name)
        else:
            self._start(tag)

    def _still_hidden(self, tag: Tag) -> bool:
        if tag.name != self._hidden:
            if tag.end or self._hidden != "p" or not (tag.name in _BLOCKS or tag.name in _HEADINGS):
                return True
            self._hidden = ""
            return False
        if tag.end:
            self._depth -= 1
            if not self._depth:
                self._hidden = ""
            return True
        if tag.name in _UNCLOSED:
            self._hidden = ""
            return False
        self._depth += 1
        return True

    def _tag_in_code(self, tag: Tag) -> None:
        assert self._code is not None
        if tag.end and tag.name in ("pre", "listing", "xmp"):
            self._finish_code()
        elif not tag.end and tag.name == "br":
            self._code.append("\n")
        elif not tag.end and (tag.name == "textarea" or tag.name in _SKIPPED or _is_hidden(tag)):
            self._hide(tag.name)
        elif not tag.end and tag.name == "code" and not self._language:
            self._language = _language(tag)

    def _finish_code(self) -> None:
        if self._code is None:
            return
        text, self._code = "".join(self._code).replace("\r\n", "\n").replace("\r", "\n"), None
        text = text.removeprefix("\n").rstrip()
        if text:
            self.lines.verbatim(text, self._language)

    def _hide(self, name: str) -> None:
        if name in _BLOCKS:
            self.lines.line_break(2)
        if name not in _VOID:
            self._hidden, self._depth = name, 1

    # -- start tags ------------------------------------------------------------------------------------------------

    def _start(self, tag: Tag) -> None:
        name = tag.name
        if name == "title":
            self._in_title = self._title is None
            if not self._in_title:
                self._hide(name)
        elif name in _SKIPPED or name == "textarea" or _is_hidden(tag):
            self._hide(name)
        elif name == "base":
            self._rebase(tag.attributes.get("href", ""))
        elif name == "img":
            self._image(tag)
        elif name == "br":
            self.lines.line_break(1)
        elif name == "hr":
            self.lines.line_break(2)
            self.lines.raw("---")
            self.lines.line_break(2)
        elif name in ("pre", "listing", "xmp"):
            self._plain_tables()
            self._code, self._language = [], _language(tag)
        else:
            self._element(tag)

    def _element(self, tag: Tag) -> None:
        name = tag.name
        if name in _CLOSES:
            self._close_implied(*_CLOSES[name])
        if name in _BLOCKS or name in _HEADINGS or name in ("blockquote", "table", "caption", "dt"):
            self.lines.line_break(1 if self._in_item(name) else 2)
        if len(self._open) >= MAX_DEPTH:
            return
        if name in _HEADINGS:
            self._push(name, f"{'#' * _HEADINGS[name]} ", "")
        elif name == "blockquote":
            self._push(name, "> ", "> ")
        elif name in ("ul", "menu", "dl"):
            self._open.append(_Open(name))
        elif name == "ol":
            start = tag.attributes.get("start", "")
            self._open.append(_Open(name, number=int(start[:9]) if start.isdecimal() and start.isascii() else 1))
        elif name == "li":
            self._item()
        elif name == "dd":
            self.lines.line_break(1)
            self._push(name, ": ", "  ")
        elif name == "a":
            self._open.append(_Open(name, self.lines.mark(), self._link(tag.attributes.get("href", ""))))
        elif name == "dt" or (name in _MARKS and sum(each.name in _MARKS for each in self._open) < MAX_MARKS):
            self._open.append(_Open(name, self.lines.mark()))
        elif name in ("table", "tr", "td", "th"):
            self._table(tag)

    def _in_item(self, name: str) -> bool:
        return name in ("ul", "ol", "menu", "p") and any(each.name in ("li", "dd") for each in self._open[-4:])

    def _push(self, name: str, first: str, rest: str) -> None:
        self._open.append(_Open(name, prefixed=self.lines if self.lines.push(first, rest) else None))

    def _item(self) -> None:
        self.lines.line_break(1)
        owner = next((each for each in reversed(self._open) if each.name in ("ul", "ol", "menu")), None)
        marker = "- "
        if owner is not None and owner.name == "ol":
            marker = f"{owner.number}. "
            owner.number += 1
        self._push("li", marker, " " * len(marker))

    def _image(self, tag: Tag) -> None:
        alt = " ".join(tag.attributes.get("alt", "").split())[:500]
        source = self._link(tag.attributes.get("src", ""))
        if alt:
            self.lines.text(f"![{_bracketed(alt)}]({source})" if source else f"[image: {alt}]")

    def _rebase(self, href: str) -> None:
        if not self._based and (link := self._link(href)):
            self.base, self._based = link, True

    def _link(self, href: str) -> str:
        """Return an absolute http, https or mailto address; "" for any other, and for places in the page itself."""
        href = "".join(href.split()) if len(href) <= MAX_LINK else ""
        if not href or href.startswith("#"):
            return ""
        try:
            link = urljoin(self.base, href)
        except ValueError:
            return ""
        if len(link) > MAX_LINK or not link.lower().startswith(("http://", "https://", "mailto:")):
            return ""
        return link.replace("(", "%28").replace(")", "%29").replace("<", "%3C").replace(">", "%3E")

    # -- end tags --------------------------------------------------------------------------------------------------

    def _end(self, name: str) -> None:
        place = next((at for at in range(len(self._open) - 1, -1, -1) if self._open[at].name == name), None)
        if place is not None and (not (name in _MARKS or name == "a") or self._inline(place)):
            self._close_to(place)
        if name in _BLOCKS:
            self.lines.line_break(1 if self._in_item(name) else 2)

    def _inline(self, place: int) -> bool:
        """Tell whether only inline elements would be closed: `</b>` does not end the list it stands in."""
        return all(each.name in _MARKS or each.name == "a" for each in self._open[place:])

    def _close_implied(self, names: frozenset[str], barriers: frozenset[str]) -> None:
        for at in range(len(self._open) - 1, -1, -1):
            if self._open[at].name in names:
                self._close_to(at)
                return
            if self._open[at].name in barriers:
                return

    def _close_to(self, place: int) -> None:
        while len(self._open) > place:
            self._close(self._open.pop())

    def _close(self, element: _Open) -> None:
        lines, name = self.lines, element.name
        if name == "a":
            self._close_link(element)
        elif name in _MARKS or name == "dt":
            mark = _MARKS.get(name, "**")
            if not (mark == "`" and "`" in lines.since(element.mark)):
                lines.wrap(element.mark, mark, mark)
        elif name in ("table", "tr", "td", "th"):
            self._close_table(element)
        elif name in _HEADINGS or name in ("blockquote", "dl"):
            lines.line_break(2)
        elif name in ("li", "dd"):
            lines.line_break(1)
        elif name in ("ul", "ol", "menu"):
            lines.line_break(1 if self._in_item(name) else 2)
        if element.prefixed is not None:
            element.prefixed.pop()

    def _close_link(self, element: _Open) -> None:
        lines, href = self.lines, element.href
        if not href:
            return
        if lines.since(element.mark).strip() == href:
            return
        # What is a card of several lines keeps its address behind the last of them.
        if not lines.wrap(element.mark, "[", f"]({href})") and element.mark[0] != lines.number:
            lines.text(f" <{href}>")

    # -- tables ----------------------------------------------------------------------------------------------------

    def _table(self, tag: Tag) -> None:
        name = tag.name
        if name == "table":
            self._plain_tables()
            plain = tag.attributes.get("role") in ("presentation", "none")
            self._open.append(_Open(name, table=Table(plain=plain)))
            return
        owner = next((each.table for each in reversed(self._open) if each.table is not None), None)
        if owner is None:
            self.lines.line_break(1)
            return
        if name == "tr":
            owner.row()
        elif not owner.plain:
            # A cell is one line: it is written apart, and the table as a whole when it is there.
            self._outer.append(self.lines)
            self.lines = Lines(max(0, self.lines.limit - self.lines.size))
        self._open.append(_Open(name))
        if owner.plain:
            self.lines.line_break(1)

    def _close_table(self, element: _Open) -> None:
        if element.name == "table":
            assert element.table is not None
            self.lines.line_break(2)
            for line in element.table.lines():
                self.lines.raw(line)
            self.lines.line_break(2)
            return
        owner = next((each.table for each in reversed(self._open) if each.table is not None), None)
        if element.name in ("td", "th") and owner is not None and not owner.plain:
            cell, self.lines = self.lines, self._outer.pop()
            self.lines.size += cell.size
            self.lines.full = self.lines.full or cell.full
            owner.cell(" ".join(cell.result().split()))
            if owner.cells > Table.MAX_CELLS:
                self._plain_tables()
        else:
            self.lines.line_break(1)

    def _plain_tables(self) -> None:
        """Make every open table one that only lays out: it holds another table, or code, that a line cannot."""
        for at, element in enumerate(self._open):
            table = element.table
            if table is None or table.plain:
                continue
            inside = any(each.name in ("td", "th") for each in self._open[at:])
            rows = table.lines()
            table.plain = True
            if inside:
                cell, self.lines = self.lines, self._outer.pop()
                self.lines.size += cell.size
                rows.append(cell.result())
            for row in rows:
                for line in row.split("\n"):
                    self.lines.raw(line)
            self.lines.line_break(1)
        for element in self._open:
            # Marks were made on other lines.
            element.mark = (-1, -1)


def _is_hidden(tag: Tag) -> bool:
    found = tag.attributes
    if "hidden" in found and found["hidden"].lower() != "until-found":
        return True
    return found.get("aria-hidden", "").lower() == "true" or bool(_HIDDEN.search(found.get("style", "")))


def _language(tag: Tag) -> str:
    match = _LANGUAGE.search(tag.attributes.get("class", ""))
    return match[1] if match else ""


def _bracketed(text: str) -> str:
    return text.replace("[", "\\[").replace("]", "\\]")
