"""Ask ripgrep which files can hold a match: a sieve before our own search, which reads and shows them.

Only names come from it. The content that is shown is read through the workspace, under its own rules, and matched
again, so a link swapped under way gives nothing away. What files are asked about (`.gitignore`, types, globs) is
decided here too. A pattern is passed on only where it can be written so that ripgrep never misses what RE2 finds.

Where RE2 is not installed, ripgrep says also where in a file the matches are (`matches`); what is shown is read by us.
"""

from __future__ import annotations

import base64
import os
import re
from bisect import bisect_left
from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import Struct

from windlass.core.errors import WorkspaceError
from windlass.core.ports import Workspace

__all__ = ["LEAST_FILES", "Spans", "candidates", "find_rg", "for_rust", "matches", "program_for", "without_cr"]

#: From so many files on, starting a process costs less than reading them here.
LEAST_FILES = 256
_COMMON = ("--no-config", "--no-messages", "--no-ignore", "--text", "--encoding=none", "--color=never")
#: Bytes of file names in one command: systems bound what a new process is given.
_MAX_NAMES = 100_000
#: RE2's own meaning of the escapes, in ASCII, whatever the case is compared like.
_ESCAPES = {
    "d": "[0-9]",
    "w": "(?-i:[0-9A-Za-z_])",
    "s": r"[\t\n\x0b\f\r ]",
    "D": "[^0-9]",
    "W": "(?-i:[^0-9A-Za-z_])",
    "S": r"(?:[^\t\n\f\r ])",
    "b": r"(?-u:\b)",
    "t": r"\t",
}
_CLASS = re.compile(r"\[\^?(?:[A-Za-z0-9_ .,:;=<>/!@#%+*?(){}|$\"'-]|\\[][\\^.$|?*+(){}/-])+\]")
_REPEAT = re.compile(r"\{[0-9]{1,3}(?:,(?:[0-9]{1,3})?)?\}")
_PLAIN = re.compile(r"[A-Za-z0-9_ ,:;=<>/!@#%\"'`~&-]")


def find_rg(root: str) -> str | None:
    """Return the path of ripgrep, outside the workspace `root` and the current folder; None when there is none.

    What the workspace holds may be planted: neither a relative PATH entry, nor one inside it, nor a link into it.
    """
    here = os.path.realpath(".")
    inside = os.path.join(os.path.realpath(root), "")  # noqa: PTH118
    for folder in os.environ.get("PATH", "").split(os.pathsep):
        if not os.path.isabs(folder):  # noqa: PTH117
            continue
        found = os.path.join(folder, "rg.exe" if os.name == "nt" else "rg")  # noqa: PTH118
        real = os.path.realpath(found)
        places = [os.path.join(each, "") for each in (os.path.normpath(folder), os.path.realpath(folder))]  # noqa: PTH118
        if any(each.startswith(inside) for each in (*places, real)) or os.path.realpath(folder) == here:
            continue
        if os.path.isfile(real) and os.access(real, os.X_OK):  # noqa: PTH113
            return real
    return None


def program_for(workspace: Workspace) -> str | None:
    """Return the ripgrep that can search a workspace: only a folder of this machine, in which commands run."""
    if "shell" not in workspace.capabilities or not os.path.isdir(workspace.root):  # noqa: PTH112
        return None
    return find_rg(workspace.root)


def for_rust(pattern: str) -> str | None:
    """Write an RE2 pattern for ripgrep, which may match more but never less; None where that is not certain."""
    out: list[str] = []
    at = depth = 0
    while at < len(pattern):
        char = pattern[at]
        depth += (char == "(") - (char == ")")
        repeat = _REPEAT.match(pattern, at)
        if char == "\\":
            after = pattern[at + 1 : at + 2]
            if after in _ESCAPES and after:
                out.append(_ESCAPES[after])
            elif after and after in "\\^.$|?*+()[]{}/-":
                out.append(re.escape(after))
            else:
                return None
            at += 2
        elif char == "[":
            found = _CLASS.match(pattern, at)
            if found is None or "--" in found[0]:
                return None
            out.append(found[0])
            at = found.end()
        elif repeat is not None:
            out.append(repeat[0])
            at = repeat.end()
        elif pattern.startswith("(?", at):
            if not pattern.startswith("(?:", at):
                return None
            out.append("(?:")
            at += 3
        elif char in "^$":
            # Only where they must stand: a line may end with CR LF, and what takes the CR leaves nothing behind it.
            beside = pattern[at + 1 : at + 2] if char == "$" else pattern[at - 1 : at]
            if depth or beside not in ("", "|"):
                return None
            out.append(r"(?:\r?$)" if char == "$" else char)
            at += 1
        elif char in "()|*+?." or _PLAIN.match(char):
            # `.` takes a lone CR too.
            out.append(r"[^\n]" if char == "." else char)
            at += 1
        else:
            return None
    return "".join(out)


async def candidates(
    workspace: Workspace, pattern: str, files: list[str], *, ignore_case: bool, seconds: float
) -> set[str] | None:
    """Return the files in which ripgrep finds an RE2 pattern; None when it cannot be asked, or failed."""
    rust, program = for_rust(pattern), program_for(workspace)
    if rust is None or program is None:
        return None
    command = [program, *_COMMON, "--files-with-matches", "--null", *(["-i"] if ignore_case else []), "-e", rust, "--"]
    found: set[str] = set()
    for names in _portions(files):
        try:
            result = await workspace.exec([*command, *names], timeout=seconds, max_output=0)
        except WorkspaceError:
            return None
        if result.exit_code not in (0, 1) or result.total_bytes != len(result.output):
            return None
        found.update([os.fsdecode(name).removeprefix("./") for name in result.output.split(b"\0") if name])
    return found


class Span(Struct):
    """One match."""

    first: int
    last: int

    def start(self) -> int:
        return self.first

    def end(self) -> int:
        return self.last


class Spans(Struct):
    """Where ripgrep found matches in one file, in the shape of a compiled pattern: offsets in bytes."""

    places: list[tuple[int, int]]

    def search(self, text: bytes, pos: int = 0, /) -> Span | None:
        """Return the first match from `pos` on that lies in the text."""
        at = bisect_left(self.places, (pos, 0))
        if at == len(self.places) or self.places[at][1] > len(text):
            return None
        return Span(*self.places[at])


async def matches(
    workspace: Workspace, pattern: str, files: list[str], *, ignore_case: bool, multiline: bool, seconds: float
) -> dict[str, list[tuple[int, int]]] | str:
    """Return where a pattern of ripgrep's own syntax matches, by file; or why it cannot be told."""
    program = program_for(workspace)
    if program is None:
        return "there is no ripgrep"
    flags = [*(["-i"] if ignore_case else []), *(["--multiline", "--multiline-dotall"] if multiline else [])]
    command = [program, *_COMMON, "--crlf", "--json", *flags, "-e", pattern, "--"]
    found: dict[str, list[tuple[int, int]]] = {}
    for names in _portions(files):
        try:
            result = await workspace.exec([*command, *names], timeout=seconds, max_output=0)
        except WorkspaceError as error:
            return error.message
        lines = result.output.split(b"\n")
        if result.exit_code not in (0, 1) and not lines[0].startswith(b"{"):
            return " ".join(result.output.decode("utf-8", "replace").split())[:500] or "ripgrep was stopped"
        if result.total_bytes != len(result.output):
            return "there are too many matches"
        for line in lines:
            if line.startswith(b'{"type":"match"'):
                data = msgspec.json.decode(line)["data"]
                at: int = data["absolute_offset"]
                places = [(at + each["start"], at + each["end"]) for each in data["submatches"]] or [(at, at)]
                found.setdefault(_path_of(data["path"]), []).extend(places)
    return found


def _path_of(path: dict[str, Any]) -> str:
    name = path["text"] if "text" in path else os.fsdecode(base64.b64decode(path["bytes"]))
    return str(name).removeprefix("./")


def without_cr(data: bytes, places: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return places in `data` as they are once each CR LF is an LF."""
    out: list[tuple[int, int]] = []
    at = dropped = 0
    for start, end in places:
        dropped += data.count(b"\r\n", at, start)
        at = max(at, start)
        out.append((start - dropped, end - dropped - data.count(b"\r\n", start, end)))
    return out


def _portions(files: list[str]) -> list[list[str]]:
    out: list[list[str]] = [[]]
    size = 0
    for name in files:
        length = len(os.fsencode(name)) + 3
        if size + length > _MAX_NAMES and out[-1]:
            out.append([])
            size = 0
        out[-1].append(f"./{name}")
        size += length
    return out
