"""Markdown while it streams: every row is printed once, as soon as nothing that follows can change it.

A line of the source is a row (or several, wrapped); only tables wait for their end, because their columns need it. Code
is printed line by line, unwrapped, so that copying from the scrollback gives it back as it was.
"""

from __future__ import annotations

import re

from rich import box
from rich.cells import cell_len
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from windlass.apps.tui.paint import Painter
from windlass.core.text import strip_escapes

__all__ = ["Markdown", "inline", "settled"]

_FENCE = re.compile(r"^( {0,3})(`{3,}|~{3,})[ \t]*([^`\s]*)")
_HEADING = re.compile(r"^ {0,3}(#{1,6})[ \t]+(.*?)[ \t]*#*$")
_RULE = re.compile(r"^ {0,3}([-*_])(?:[ \t]*\1){2,}[ \t]*$")
_ITEM = re.compile(r"^(\s*)([-*+]|\d{1,9}[.)])[ \t]+(?:\[([ xX])\][ \t]+)?")
_QUOTE = re.compile(r"^ {0,3}((?:> ?)+)")
_DELIMITER = re.compile(r"^\s*\|?\s*:?-+:?\s*(\|\s*:?-+:?\s*)*\|?\s*$")
#: The most characters of one unfinished line that are looked at again for each piece of it.
_LOOK = 2000
_INLINE = re.compile(
    r"(?P<tick>`+)(?P<code>[^`]+)(?P=tick)"
    r"|\*\*(?P<strong>(?=\S)[^*]+(?<=\S))\*\*|(?<!\w)__(?P<strong2>(?=\S)[^_]+(?<=\S))__(?!\w)"
    r"|~~(?P<strike>[^~]+)~~"
    r"|\*(?P<em>(?=[^\s*])[^*]+(?<=\S))\*|(?<!\w)_(?P<em2>(?=\S)[^_]+(?<=\S))_(?!\w)"
    r"|!?\[(?P<label>[^\]\n]*)\]\((?P<url>[^)\s]+)[^)\n]*\)"
    r"|\\(?P<literal>[\\`*_{}\[\]()#+.!|~>-])"
)
#: What may begin emphasis, code or a link whose end has not come yet.
_OPENS = re.compile(r"`|\*+(?:\S|$)|(?<!\w)_+(?:\S|$)|~~|\[|\\$")
_ROLES = {"strong": "strong", "strong2": "strong", "strike": "strike", "em": "em", "em2": "em"}


def inline(painter: Painter, source: str, role: str = "") -> Text:
    """Return a line's text with its emphasis, code and links as styles; what is not well formed stays as it is."""
    out, at, style = Text(), 0, painter.theme.style
    for match in _INLINE.finditer(source):
        out.append(source[at : match.start()], style(role) or None)
        at = match.end()
        kind = match.lastgroup or ""
        if match["code"] is not None:
            out.append(match["code"].strip() or match["code"], style("code") or None)
        elif match["url"] is not None:
            label = match["label"] or match["url"]
            out.append(label, style("link") or None)
            # The address is always shown: a label may lie about where it leads.
            out.append("" if label == match["url"] else f" ({match['url']})", style("dim") or None)
        elif kind == "literal":
            out.append(match["literal"], style(role) or None)
        else:
            out.append_text(_nested(painter, match[kind], f"{style(role)} {style(_ROLES[kind])}".strip()))
    return out.append(source[at:], style(role) or None)


def _nested(painter: Painter, source: str, style: str) -> Text:
    text = inline(painter, source) if _INLINE.search(source) else Text(source)
    text.stylize_before(style)
    return text


def settled(source: str) -> bool:
    """Tell whether no emphasis, code or link is open at the end of `source`, so that what follows cannot change it."""
    return not _OPENS.search(_INLINE.sub("", source))


class Markdown:
    """Takes an answer piece by piece and returns the rows that are finished.

    `feed` returns text for the scrollback ('' while nothing is finished), `end` what is left, and `tail` is the
    beginning row for the live area.
    """

    def __init__(self, painter: Painter) -> None:
        self._paint = painter
        self._pending = ""
        self._fence = ""
        self._lexer = ""
        self._table: list[str] = []
        #: What stands before the next row of an unfinished line, where its first rows are printed already.
        self._further: str | None = None
        self._role = ""

    @property
    def tail(self) -> str:
        """The unfinished row as plain text."""
        return strip_escapes(self._pending[-_LOOK:]).replace("\n", " ")

    @property
    def open(self) -> bool:
        """True inside a line, a table or a block of code: other text would tear it apart."""
        return bool(self._pending or self._further is not None or self._table or self._fence)

    def feed(self, piece: str) -> str:
        """Take a piece; returns what can be printed now."""
        *lines, self._pending = (self._pending + piece).split("\n")
        out = [self._line(line) for line in lines]
        out.append(self._early())
        return "".join(out)

    def end(self) -> str:
        """Finish: returns what is left, and is ready for another text."""
        line, self._pending = self._pending, ""
        out = self._line(line) if line or self._further is not None else ""
        out += self._end_table()
        self._fence = ""
        return out

    # -- a whole line ----------------------------------------------------------------------------------------------

    def _line(self, source: str) -> str:
        # A carriage return or a vertical tab of the model's becomes a line end of its own.
        rows = strip_escapes(source).split("\n") if source else [""]
        if rows[-1] == "" and len(rows) > 1:
            rows.pop()
        return "".join([self._one(row) for row in rows])

    def _one(self, line: str) -> str:
        if self._further is not None:
            further, self._further = self._further, None
            return self._paint.hang(inline(self._paint, line, self._role), further, further) if line.strip() else ""
        if self._fence:
            return self._code(line)
        if self._is_table(line):
            self._table.append(line)
            return ""
        return self._end_table() + self._block(line)

    def _code(self, line: str) -> str:
        mark = line.strip()
        if mark.startswith(self._fence) and not mark.strip(self._fence[0]):
            self._fence = ""
            return self._paint.raw((line, "dim"))
        if not self._lexer or not self._paint.theme.code:
            return self._paint.raw(line.expandtabs(4))
        text = Syntax("", self._lexer, theme=self._paint.theme.code, background_color="default").highlight(line)
        text.rstrip()
        return self._paint.paint(text, wrap=False)

    def _block(self, line: str) -> str:
        paint = self._paint
        if (fence := _FENCE.match(line)) is not None:
            self._fence, self._lexer = fence[2], fence[3].lower()
            return paint.raw((line, "dim"))
        if not line.strip():
            return "\n"
        if (heading := _HEADING.match(line)) is not None:
            return paint.hang(inline(paint, heading[2], "heading"), "", "")
        if _RULE.match(line):
            return paint.raw(("─" * min(40, paint.width), "dim"))
        first, further, role, at = self._prefix(line)
        return paint.hang(inline(paint, line[at:], role), first, further)

    def _prefix(self, line: str) -> tuple[str, str, str, int]:
        """Return what stands before the first and the further rows of a line, its role, and where its text begins."""
        if (item := _ITEM.match(line)) is not None:
            bullet = "•" if item[2] in "-*+" else item[2]
            box_ = "" if item[3] is None else "☐ " if item[3] == " " else "☑ "
            first = f"{item[1].expandtabs(4)[:20]}{bullet} {box_}"
            return first, " " * cell_len(first), "", item.end()
        if (quote := _QUOTE.match(line)) is not None:
            bars = "│ " * quote[1].count(">")
            return bars, bars, "quote", quote.end()
        indent = line[: len(line) - len(line.lstrip())].expandtabs(4)[:20]
        return indent, indent, "", len(line) - len(line.lstrip())

    # -- an unfinished line ----------------------------------------------------------------------------------------

    def _early(self) -> str:
        """Print rows of a line that has no end yet, where what follows cannot change them."""
        out = ""
        while (row := self._early_row()) is not None:
            out += row
        return out

    def _early_row(self) -> str | None:
        source = self._pending[:_LOOK]
        if self._fence or self._table or len(source) <= self._paint.width or not source.isprintable():
            return None
        first, further, role, at = "", self._further or "", self._role, 0
        if self._further is None:
            if _FENCE.match(source) or _HEADING.match(source) or _RULE.match(source) or "|" in source[:3]:
                return None
            first, further, role, at = self._prefix(source)
        else:
            first = further
        cut = self._cut(source, at, self._paint.width - max(cell_len(first), cell_len(further)))
        if cut is None:
            return None
        text = inline(self._paint, source[at:cut], role)
        self._pending = self._pending[cut:].lstrip(" ")
        self._further, self._role = further, role
        return self._paint.hang(text, first, further)

    def _cut(self, source: str, at: int, room: int) -> int | None:
        """Find the last space at which a row of `room` cells can end for good; None while there is none."""
        if cell_len(source[at:]) <= room:
            return None
        best = None
        for space in re.finditer(" ", source[at:]):
            cut = at + space.start()
            if cell_len(inline(self._paint, source[at:cut]).plain) > room:
                return best
            # A row that ends early is better than one that waits; one that is almost empty is not.
            if cut - at >= room // 2 and settled(source[at:cut]):
                best = cut
        return None

    # -- tables ----------------------------------------------------------------------------------------------------

    def _is_table(self, line: str) -> bool:
        return line.lstrip().startswith("|") or bool(self._table and "|" in line)

    def _end_table(self) -> str:
        rows, self._table = self._table, []
        if not rows:
            return ""
        if len(rows) < 2 or not _DELIMITER.match(rows[1]):
            return "".join([self._paint.raw(row) for row in rows])
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
        head = _cells(rows[0])
        for cell in head:
            table.add_column(inline(self._paint, cell, "heading"), overflow="fold")
        for row in rows[2:]:
            cells = [*_cells(row), *([""] * len(head))][: len(head)]
            table.add_row(*[inline(self._paint, cell) for cell in cells])
        painted = self._paint.paint(table)
        return "".join([line.rstrip(" ") + "\n" for line in painted.split("\n")[:-1]])


def _cells(row: str) -> list[str]:
    return [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", row.strip().strip("|"))]
