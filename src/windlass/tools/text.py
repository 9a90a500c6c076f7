"""The text of a file and exact replacements in it: line ends and byte order marks stay as they are."""

from __future__ import annotations

import codecs
import difflib
from bisect import bisect_left

from msgspec import Struct

from windlass.tools.access import Refusal

__all__ = ["FileText", "decode_text", "describe_lines", "is_binary", "line_end", "nearest", "replace_once"]

_HEAD = 8192
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
#: Matches that are counted when one is wanted, and those that one replacement of all may have.
_MAX_COUNTED = 1000
_MAX_REPLACED = 200_000
_LISTED = 5
#: How much of a file the search for a near match looks at, and how many lines of it are compared closely.
_NEAR_LINES = 20_000
_NEAR_CLOSE = 25
_NEAR_WIDTH = 200
_PREVIEW_LINES = 8


class FileText(Struct, frozen=True):
    """A decoded file: its text with its own line ends, and how to write it back byte for byte."""

    text: str
    encoding: str
    bom: bytes = b""

    def encode(self, text: str) -> bytes:
        """Return the bytes of a changed text; bytes that were no UTF-8 come back as they were."""
        return self.bom + text.encode(self.encoding, "surrogateescape" if self.encoding == "utf-8" else "strict")


def is_binary(data: bytes) -> bool:
    """Tell whether a file is no text: a NUL near its beginning, and no UTF-16 mark."""
    return b"\x00" in data[:_HEAD] and not data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))


def decode_text(data: bytes) -> FileText:
    """Decode UTF-8, or UTF-16 with its mark. Raises Refusal for a broken UTF-16 file."""
    marked = [(bom, encoding) for bom, encoding in _MARKS if data.startswith(bom)]
    bom, encoding = marked[0] if marked else (b"", "utf-8")
    try:
        text = data[len(bom) :].decode(encoding, "surrogateescape" if encoding == "utf-8" else "strict")
    except UnicodeDecodeError as error:
        raise Refusal(f"The file starts as UTF-16, but byte {error.start + len(bom)} is not.") from None
    return FileText(text, encoding, bom)


def replace_once(text: str, old: str, new: str, *, every: bool, path: str) -> tuple[str, list[int]]:
    """Replace `old`, which must be there exactly once unless `every`, and return the text and the lines (from 1).

    `old` and `new` may be written with LF where the file has CRLF: the file's own line ends are kept. Raises Refusal
    when nothing is to be replaced, `old` is not found (with the nearest match), or it is there more than once.
    """
    if not old:
        raise Refusal("old_string is empty. Use write_file to write a whole file.")
    if old == new:
        raise Refusal("No change: old_string and new_string are the same.")
    # A text with CR in it means what it says; else both are compared with LF.
    plain = "\r" in old or "\r\n" not in text
    view = text if plain else text.replace("\r\n", "\n")
    found = _find(view, old, overlapping=not every)
    if not found:
        raise Refusal(f"old_string not found in {path}.{nearest(view, old)}")
    lines = _line_numbers(view, found)
    if every and len(found) > _MAX_REPLACED:
        raise Refusal(f"old_string has more than {_MAX_REPLACED} matches in {path}. Take a longer one.")
    if len(found) > 1 and not every:
        count = f"{_MAX_COUNTED} or more" if len(found) == _MAX_COUNTED else str(len(found))
        raise Refusal(
            f"old_string is not unique in {path}: {count} matches ({_listed(lines)}). "
            "Add lines around it, or set replace_all."
        )
    spans = [(at, at + len(old)) for at in found]
    if not plain:
        crlf = _crlf_places(text)
        spans = [(start + bisect_left(crlf, start), end + bisect_left(crlf, end)) for start, end in spans]
    changed = _splice(text, spans, new, plain=plain)
    if changed == text:
        raise Refusal("No change: old_string and new_string differ in line ends only, and those are kept.")
    return changed, lines


def describe_lines(lines: list[int]) -> str:
    """Return `1 replacement (line 3)` for the lines of some replacements."""
    return f"{len(lines)} replacement{'s' if len(lines) > 1 else ''} ({_listed(lines)})"


def _find(text: str, old: str, *, overlapping: bool) -> list[int]:
    step, most = (1, _MAX_COUNTED) if overlapping else (len(old), _MAX_REPLACED + 1)
    found: list[int] = []
    at = text.find(old)
    while at >= 0 and len(found) < most:
        found.append(at)
        at = text.find(old, at + step)
    return found


def _line_numbers(text: str, places: list[int]) -> list[int]:
    lines: list[int] = []
    line, last = 1, 0
    for place in places:
        line += text.count("\n", last, place)
        last = place
        lines.append(line)
    return lines


def _listed(lines: list[int]) -> str:
    shown = ", ".join([str(line) for line in lines[:_LISTED]]) + (", …" if len(lines) > _LISTED else "")
    return f"line{'s' if len(lines) > 1 else ''} {shown}"


def _crlf_places(text: str) -> list[int]:
    """Return where in the text with LF only the line ends are that were CRLF."""
    places: list[int] = []
    at = text.find("\r\n")
    while at >= 0:
        places.append(at - len(places))
        at = text.find("\r\n", at + 2)
    return places


def _splice(text: str, spans: list[tuple[int, int]], new: str, *, plain: bool) -> str:
    out: list[str] = []
    last = 0
    whole = None
    for start, end in spans:
        out.append(text[last:start])
        if plain:
            out.append(new)
        else:
            style = line_end(text[start:end])
            if style is None:
                style = whole = whole or line_end(text) or "\n"
            out.append(new.replace("\r\n", "\n").replace("\n", style))
        last = end
    out.append(text[last:])
    return "".join(out)


def line_end(text: str) -> str | None:
    """Return the line end that a text mostly has, None when it has none."""
    all_ends, crlf = text.count("\n"), text.count("\r\n")
    return None if not all_ends else "\r\n" if 2 * crlf >= all_ends else "\n"


def nearest(text: str, old: str) -> str:
    """Return a preview of the place that looks most like `old`, at a bounded cost; empty when nothing does."""
    wanted = [line for line in old.split("\n") if line.strip()]
    if not wanted:
        return ""
    key = wanted[0].strip()[:_NEAR_WIDTH]
    lines = text.split("\n", _NEAR_LINES)[:_NEAR_LINES]
    height = min(old.count("\n") + 1, _PREVIEW_LINES)
    skipped = next((at for at, line in enumerate(old.split("\n")) if line.strip()), 0)
    same = [at for at, line in enumerate(lines) if line.strip()[:_NEAR_WIDTH] == key]
    if same:
        best, why = same[0], " (the first line is the same but for spaces)"
    else:
        best, why = _closest(lines, key), ""
        if best is None:
            return ""
    start = max(0, best - skipped)
    shown = "\n".join([line[:_NEAR_WIDTH].rstrip("\r") for line in lines[start : start + height]])
    last = min(start + height, len(lines))
    where = f"line {start + 1}" if last == start + 1 else f"lines {start + 1}-{last}"
    return f" Nearest match, {where}{why}:\n{shown}"


def _closest(lines: list[str], key: str) -> int | None:
    """Return the line most like `key`: the most shared words first, then a close comparison of those few."""
    words = set(key.split())
    shared: list[tuple[int, int]] = []
    for at, line in enumerate(lines):
        common = len(words.intersection(line[:_NEAR_WIDTH].split()))
        if common:
            shared.append((-common, at))
    shared.sort()
    candidates = [at for _, at in shared[:_NEAR_CLOSE]]
    if not candidates:
        candidates = [at for at, line in enumerate(lines[:1000]) if line.strip()][:_NEAR_CLOSE]
    scored = [(difflib.SequenceMatcher(None, key, lines[at].strip()[:_NEAR_WIDTH]).ratio(), -at) for at in candidates]
    best = max(scored, default=(0.0, 0))
    return -best[1] if best[0] >= 0.4 else None
