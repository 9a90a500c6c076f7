"""The `*** Begin Patch` format, read and applied to texts; nothing is read or written here.

The format is that of Codex's `apply_patch`: sections `*** Add File:`, `*** Delete File:` and `*** Update File:` (with
`*** Move to:`); an update is made of hunks that begin with `@@` and, mostly, a line of the file to look behind. In a
hunk ` ` marks a line that stays, `-` one that goes, `+` one that comes; `*** End of File` says that the hunk ends where
the file does.

Beyond that: a hunk that fits in several places is refused unless an `@@` line says which; lines that stay are the
file's own, byte for byte; a file keeps its line ends, and ends without a newline if it did.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Literal

from msgspec import Struct

from windlass.tools.access import Refusal
from windlass.tools.text import line_end, nearest

__all__ = ["Hunk", "Section", "apply_hunks", "parse_patch"]

MAX_SECTIONS = 500
_BEGIN, _END, _EOF = "*** Begin Patch", "*** End Patch", "*** End of File"
_SECTION = re.compile(r"\*\*\* (Add|Delete|Update) File: (.*)")
_MOVE = "*** Move to: "
#: What other diffs put behind `@@`: numbers, which say nothing here, and perhaps a line cut short.
_NUMBERS = re.compile(r"-\d+(?:,\d+)? \+\d+(?:,\d+)? @@.*")
#: Characters that models write for others.
_SAME = str.maketrans(
    {
        **dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2015\u2212", "-"),
        **dict.fromkeys("\u2018\u2019\u201a\u201b", "'"),
        **dict.fromkeys("\u201c\u201d\u201e\u201f", '"'),
        **dict.fromkeys("\u00a0\u2002\u2003\u2009\u202f\u3000", " "),
    }
)


class Hunk(Struct):
    """Lines of a file and what takes their place. `lines` are (mark, text); `at` is the hunk's line in the patch."""

    at: int
    behind: list[str]
    lines: list[tuple[str, str]]
    at_end: bool = False

    @property
    def old(self) -> list[str]:
        """The lines that must be there."""
        return [text for mark, text in self.lines if mark != "+"]


class Section(Struct):
    """What becomes of one file."""

    kind: Literal["Add", "Delete", "Update"]
    path: str
    at: int
    move_to: str = ""
    added: list[str] = []
    hunks: list[Hunk] = []


def parse_patch(text: str) -> list[Section]:
    """Read a patch. Raises Refusal that names the line where it breaks."""
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    first = next((at for at, line in enumerate(lines) if line.strip() == _BEGIN), None)
    if first is None:
        raise Refusal(f"The patch does not begin with `{_BEGIN}`.")
    last = next((at for at in range(len(lines) - 1, first, -1) if lines[at].strip() == _END), None)
    if last is None:
        raise Refusal(f"The patch does not end with `{_END}`: it may have been cut off. Nothing was changed.")
    sections: list[Section] = []
    at = first + 1
    while at < last:
        if not lines[at].strip():
            at += 1
            continue
        found = _header(lines[at].strip())
        if found is None or not found[2].strip():
            raise _broken(
                at, lines[at], "expected `*** Add File: `, `*** Update File: ` or `*** Delete File: ` and a path"
            )
        kind: Literal["Add", "Delete", "Update"] = found[1]  # pyright: ignore[reportAssignmentType]
        section = Section(kind, found[2].strip(), at + 1, added=[], hunks=[])
        at = _READERS[kind](section, lines, at + 1, last)
        sections.append(section)
    if not sections:
        raise Refusal("The patch holds no file.")
    if len(sections) > MAX_SECTIONS:
        raise Refusal(f"The patch has {len(sections)} sections; at most {MAX_SECTIONS} are taken at once.")
    return sections


def _header(line: str) -> re.Match[str] | None:
    # Not with spaces in front: that would be a line of the file.
    return _SECTION.fullmatch(line.rstrip())


def _broken(at: int, line: str, why: str) -> Refusal:
    return Refusal(f"Line {at + 1} of the patch: {why}, got {line[:80]!r}. Nothing was changed.")


def _read_add(section: Section, lines: list[str], at: int, last: int) -> int:
    while at < last and not _header(lines[at]):
        if not lines[at].startswith("+"):
            if lines[at].strip():
                raise _broken(at, lines[at], "each line of a new file begins with `+`")
            if any(line.startswith("+") for line in _rest(lines, at, last)):
                raise _broken(at, lines[at], "each line of a new file begins with `+`, an empty one too")
        else:
            section.added.append(lines[at][1:])
        at += 1
    return at


def _rest(lines: list[str], at: int, last: int) -> list[str]:
    out: list[str] = []
    while at < last and not _header(lines[at]):
        out.append(lines[at])
        at += 1
    return out


def _read_delete(section: Section, lines: list[str], at: int, last: int) -> int:
    if at < last and lines[at].strip() and not _header(lines[at]):
        raise _broken(at, lines[at], f"nothing may follow the deletion of {section.path}")
    return at


def _read_update(section: Section, lines: list[str], at: int, last: int) -> int:
    if at < last and lines[at].strip().startswith(_MOVE.strip()):
        section.move_to = lines[at].strip()[len(_MOVE) :].strip()
        if not section.move_to:
            raise _broken(at, lines[at], "expected a path")
        at += 1
    while at < last and not _header(lines[at]):
        if not lines[at].strip() and not any(line.strip() for line in _rest(lines, at, last)):
            return at + len(_rest(lines, at, last))
        at = _read_hunk(section, lines, at, last)
    if not section.hunks and not section.move_to:
        raise _broken(section.at - 1, lines[section.at - 1], "an update needs a hunk or a `*** Move to: `")
    return at


def _read_hunk(section: Section, lines: list[str], at: int, last: int) -> int:
    hunk = Hunk(at + 1, [], [])
    if not lines[at].startswith("@@") and section.hunks:
        raise _broken(at, lines[at], "a hunk begins with `@@`")
    while at < last and lines[at].startswith("@@"):
        behind = lines[at][2:].removeprefix(" ")
        if behind.strip() and not _NUMBERS.fullmatch(behind):
            hunk.behind.append(behind)
        at += 1
    while at < last and not lines[at].startswith("@@") and not _header(lines[at]):
        line = lines[at]
        if line.strip() == _EOF and not line.startswith((" ", "+", "-")):
            hunk.at_end = True
            at += 1
            break
        if not line:
            hunk.lines.append((" ", ""))
        elif line[0] in " +-":
            hunk.lines.append((line[0], line[1:]))
        else:
            raise _broken(at, line, "a line of a hunk begins with a space, `-` or `+`")
        at += 1
    if not hunk.at_end:
        # Empty lines before the next hunk or section: more often a break for the eye than lines of the file.
        for back in range(at - 1, hunk.at - 1, -1):
            if lines[back] or not hunk.lines:
                break
            hunk.lines.pop()
    if not any(mark in "+-" for mark, _ in hunk.lines):
        raise _broken(hunk.at - 1, lines[hunk.at - 1], "the hunk changes nothing")
    section.hunks.append(hunk)
    return at


_READERS: dict[str, Callable[[Section, list[str], int, int], int]] = {
    "Add": _read_add,
    "Delete": _read_delete,
    "Update": _read_update,
}


def apply_hunks(text: str, hunks: Sequence[Hunk], path: str) -> str:
    """Return the text after its hunks, which come in the file's order. Raises Refusal that says which one cannot be."""
    lines, ends = _split(text)
    style = line_end(text) or "\n"
    out: list[str] = []
    out_ends: list[str] = []
    done = 0
    for number, hunk in enumerate(hunks, 1):
        what = f"{path}, hunk {number} of {len(hunks)} (line {hunk.at} of the patch)"
        start = _place(lines, hunk, done, what)
        out += lines[done:start]
        out_ends += ends[done:start]
        at = start
        for mark, content in hunk.lines:
            if mark == "+":
                out.append(content)
                out_ends.append(style)
                continue
            if mark == " ":
                out.append(lines[at])
                out_ends.append(ends[at])
            at += 1
        done = at
    out += lines[done:]
    out_ends += ends[done:]
    if not out:
        return ""
    whole = [end or style for end in out_ends]
    if ends and not ends[-1]:
        whole[-1] = ""
    return "".join([line + end for line, end in zip(out, whole, strict=True)])


def _split(text: str) -> tuple[list[str], list[str]]:
    """Return the lines and their ends; the last line has none where the text does not end with one."""
    lines: list[str] = []
    ends: list[str] = []
    for line in _kept_lines(text):
        bare = line.removesuffix("\n")
        bare = bare.removesuffix("\r") if bare != line else bare
        lines.append(bare)
        ends.append(line[len(bare) :])
    return lines, ends


def _kept_lines(text: str) -> list[str]:
    # Not `splitlines`: that also splits at form feeds and other characters.
    parts = text.split("\n")
    return [f"{part}\n" for part in parts[:-1]] + ([parts[-1]] if parts[-1] else [])


def _place(lines: list[str], hunk: Hunk, done: int, what: str) -> int:
    """Return where the hunk's old lines stand, from `done` on."""
    start = done
    for behind in hunk.behind:
        found = _find(lines, [behind], start)
        if not found:
            raise Refusal(
                f"{what}: the line behind `@@` was not found: {behind!r:.200}.{nearest(_joined(lines), behind)}"
            )
        start = found[0] + 1
    old = hunk.old
    if not old:
        return start if hunk.behind and not hunk.at_end else len(lines)
    if hunk.at_end:
        places = [at for at in _find(lines, old, max(start, len(lines) - len(old))) if at + len(old) == len(lines)]
    else:
        places = _find(lines, old, start)
    if not places:
        raise _missing(lines, hunk, start, done, what)
    if len(places) > 1 and not hunk.behind:
        shown = ", ".join([str(at + 1) for at in places[:5]])
        raise Refusal(
            f"{what} fits in {len(places)} places (lines {shown}). Add lines around it, or an `@@` line to look behind."
        )
    return places[0]


def _missing(lines: list[str], hunk: Hunk, start: int, done: int, what: str) -> Refusal:
    old = hunk.old
    anywhere = _find(lines, old, 0)
    if anywhere and hunk.at_end:
        return Refusal(f"{what} stands at line {anywhere[0] + 1}, not at the end of the file.")
    if anywhere:
        before = "the hunk before it" if start == done else "its `@@` line"
        return Refusal(f"{what} stands at line {anywhere[0] + 1}, before {before}: hunks come in the file's order.")
    return Refusal(
        f"{what}: these lines were not found:\n{_joined(old[:8])}\n{nearest(_joined(lines), _joined(old))}".rstrip()
    )


def _joined(lines: list[str]) -> str:
    return "\n".join(lines)


def _find(lines: list[str], wanted: list[str], start: int) -> list[int]:
    """Return where some lines stand: exactly, else but for spaces at their ends, around them, or look-alikes."""
    for same in (_exact, str.rstrip, str.strip, _plain):
        view = lines if same is _exact else [same(line) for line in lines]
        target = wanted if same is _exact else [same(line) for line in wanted]
        height = len(target)
        found = [
            at
            for at in range(start, len(view) - height + 1)
            if view[at] == target[0] and view[at : at + height] == target
        ]
        if found:
            return found
    return []


def _exact(line: str) -> str:
    return line


def _plain(line: str) -> str:
    return line.translate(_SAME).strip()
