"""A change of files as a person reads it: hunks of a unified diff with the changed words marked."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence

from rich.text import Text

from windlass.apps.cli.hunks import Hunk
from windlass.apps.tui.paint import Painter
from windlass.core.ports import Preview
from windlass.core.text import visible

__all__ = ["painted", "title"]

_WORDS = re.compile(r"\w+|\s+|.")
#: Longer lines get no marks inside: comparing them word by word would take longer than reading them.
_WORDY = 400
_ROLES = {"+": "added", "-": "removed", "@": "hunk"}


def title(preview: Preview, found: Sequence[Hunk]) -> str:
    """Return a file's name and how many lines come and go."""
    verb = "create" if preview.before is None else "delete" if preview.after is None else "change"
    marks = [line[:1] for hunk in found for line in hunk.lines]
    path = visible(preview.path).replace("\n", "\\n")
    return f"{verb} {path} (+{marks.count('+')} -{marks.count('-')})"


def painted(painter: Painter, hunk: Hunk, limit: int | None = None) -> str:
    """Return a hunk as lines, its hidden and look-alike characters made visible, changed words marked.

    A `limit` leaves out the middle of a longer one and says how much.
    """
    rows = [painter.styled((line.expandtabs(4), _ROLES.get(line[:1], "dim"))) for line in hunk.lines]
    for old, new in _pairs(hunk.lines):
        _mark_words(painter, rows[old], rows[new])
    if limit is not None and len(rows) > limit:
        left_out, half = len(rows) - limit, limit // 2
        rows[half : half + left_out] = [painter.styled((f"  [{left_out} lines not shown]", "warning"))]
    return "".join([painter.paint(row, wrap=False) for row in rows])


def _pairs(lines: Sequence[str]) -> list[tuple[int, int]]:
    """Return which removed line became which added one, where as many came as went."""
    out: list[tuple[int, int]] = []
    for run in re.finditer(r"(-+)(\++)", "".join([line[:1] for line in lines])):
        if len(run[1]) == len(run[2]):
            out.extend([(run.start() + at, run.start(2) + at) for at in range(len(run[1]))])
    return out


def _mark_words(painter: Painter, old: Text, new: Text) -> None:
    before, after = old.plain[1:], new.plain[1:]
    if len(before) > _WORDY or len(after) > _WORDY:
        return
    one, two = _WORDS.findall(before), _WORDS.findall(after)
    matcher = difflib.SequenceMatcher(None, one, two, autojunk=False)
    if matcher.ratio() < 0.4:
        return  # another line altogether: marks everywhere would say nothing
    style = painter.theme.style
    for tag, a, b, c, d in matcher.get_opcodes():
        if tag != "equal":
            old.stylize(style("removed_word"), 1 + len("".join(one[:a])), 1 + len("".join(one[:b])))
            new.stylize(style("added_word"), 1 + len("".join(two[:c])), 1 + len("".join(two[:d])))
