"""The changes of a file as a unified diff that a person can read whole, and take in part."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from msgspec import Struct

from windlass.core.ports import Preview
from windlass.core.text import visible

__all__ = ["Hunk", "hunks", "merged", "preview_lines"]

_CONTEXT = 3
#: Lines beyond which two files are not compared: all of the old goes, all of the new comes.
_MOST_LINES = 20_000


class Hunk(Struct, frozen=True):
    """Lines [`start`, `end`) of the old content become `new`; `lines` show it, with three lines around."""

    start: int
    end: int
    new: tuple[bytes, ...]
    lines: tuple[str, ...]


def hunks(preview: Preview) -> list[Hunk]:
    """Return what changes in one file, in order. A file that comes or goes is one hunk."""
    old, new = _lines(preview.before), _lines(preview.after)
    if preview.before is None or preview.after is None or len(old) + len(new) > _MOST_LINES:
        rows = [*_rows("-", old), *_rows("+", new)]
        return [
            Hunk(
                0, len(old), tuple(new), (f"@@ -{min(1, len(old))},{len(old)} +{min(1, len(new))},{len(new)} @@", *rows)
            )
        ]
    groups = difflib.SequenceMatcher(None, old, new, autojunk=False).get_grouped_opcodes(_CONTEXT)
    return [_hunk(group, old, new) for group in groups]


def _hunk(group: Sequence[tuple[str, int, int, int, int]], old: list[bytes], new: list[bytes]) -> Hunk:
    first, last = group[0], group[-1]
    rows = [f"@@ -{first[1] + 1},{last[2] - first[1]} +{first[3] + 1},{last[4] - first[3]} @@"]
    for tag, a, b, c, d in group:
        if tag == "equal":
            rows.extend(_rows(" ", old[a:b]))
        else:
            rows.extend([*_rows("-", old[a:b]), *_rows("+", new[c:d])])
    changed = [code for code in group if code[0] != "equal"]
    start, end = changed[0][1], changed[-1][2]
    return Hunk(start, end, tuple(new[changed[0][3] : changed[-1][4]]), tuple(rows))


def merged(preview: Preview, found: Sequence[Hunk], accepted: Sequence[bool]) -> bytes | None:
    """Return the content with the accepted hunks only; None where the file is to be deleted, or not to be made."""
    if all(accepted):
        return preview.after
    if not any(accepted):
        return preview.before
    lines, out, at = _lines(preview.before), list[bytes](), 0
    for hunk, yes in zip(found, accepted, strict=True):
        out.extend(lines[at : hunk.start])
        out.extend(hunk.new if yes else lines[hunk.start : hunk.end])
        at = hunk.end
    return b"".join([*out, *lines[at:]])


def preview_lines(preview: Preview, found: Sequence[Hunk]) -> list[str]:
    """Return the whole diff of one file for a person, every hidden or look-alike character made visible."""
    verb = "create" if preview.before is None else "delete" if preview.after is None else "change"
    return [f"  {verb} {_visible_line(preview.path)}", *[f"  {line}" for hunk in found for line in hunk.lines]]


def _lines(data: bytes | None) -> list[bytes]:
    # At line feeds only: what else Python calls a line end is a character of the line.
    return [] if not data else [line + b"\n" for line in data.split(b"\n")[:-1]] + _rest(data)


def _rest(data: bytes) -> list[bytes]:
    last = data.rsplit(b"\n", 1)[-1]
    return [last] if last else []


def _rows(mark: str, lines: Sequence[bytes]) -> list[str]:
    out: list[str] = []
    for line in lines:
        text = line.removesuffix(b"\n").decode("utf-8", "backslashreplace")
        out.append(mark + _visible_line(text))
        if not line.endswith(b"\n"):
            out.append("\\ no newline at the end")
    return out


def _visible_line(text: str) -> str:
    return visible(text).replace("\n", "\\n")
