"""The front of a SKILL.md: a reader of the small part of YAML that skills use, where every value is text.

It reads what the reference validator reads (StrictYAML: no flow style, tags, anchors, aliases or repeated keys, and
`1.0` is the text `1.0`): mappings, lists of texts, plain, quoted and block texts. It is linear in its bounded input and
makes nothing but `str`, `list` and `dict`. A problem is noted with its line and reading goes on, so that one bad field
of a skill written for another program does not lose the rest.
"""

from __future__ import annotations

import re
from typing import Any, Literal

from msgspec import Struct

__all__ = ["MAX_DEPTH", "MAX_FRONT", "MAX_KEYS", "Front", "Level", "Problem", "read_front"]

#: Bytes of the part between the two `---` lines, how deep mappings may lie in it, and keys of one mapping.
MAX_FRONT = 16 * 1024
MAX_DEPTH = 4
MAX_KEYS = 100

#: How much a problem matters, see Problem.
Level = Literal["fatal", "error", "note"]


class Problem(Struct, frozen=True):
    """What is wrong, and in which line of the file (from 1).

    A `fatal` one keeps the skill from being loaded, an `error` breaks the specification, a `note` is worth knowing.
    """

    line: int
    message: str
    level: Level = "error"


class Front(Struct, frozen=True):
    """A SKILL.md taken apart: fields, the line of each, the body and the line where it begins.

    A field that has a line and no value could not be read.
    """

    fields: dict[str, Any]
    lines: dict[str, int]
    body: str
    body_line: int
    problems: tuple[Problem, ...]


#: What YAML counts as no text, and line ends that only some readers see.
_UNPRINTABLE = re.compile(r"[^\t\n\x20-\x7e\xa0-\u2027\u202a-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_COLON = re.compile(r":(?= |$)")
_COMMENT = re.compile(r"(?:^|(?<= ))#")
_HEADER = re.compile(r"[|>](?P<marks>[+-]?[1-9]?|[1-9][+-])(?: +#.*| *)$")
_ESCAPES = {
    "0": "\0", "a": "\a", "b": "\b", "t": "\t", "n": "\n", "v": "\v", "f": "\f", "r": "\r", "e": "\x1b", " ": " ",
    '"': '"', "/": "/", "\\": "\\", "N": "\x85", "_": "\xa0", "L": "\u2028", "P": "\u2029",
}  # fmt: skip
_ESCAPE = re.compile(r"\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|(.))", re.DOTALL)
_MISSING: Any = object()


def read_front(text: str) -> Front:
    """Take a SKILL.md apart; what is wrong with it is in `problems`."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    if lines[0].rstrip() != "---":
        return _unread(text, 1, "The file must start with a line `---`, then the fields.")
    end = next((at for at, line in enumerate(lines) if at and line.rstrip() == "---"), None)
    if end is None:
        return _unread(text, len(lines), "The fields are never closed by a line `---`.")
    body = "\n".join(lines[end + 1 :]).strip()
    if sum([len(line.encode("utf-8", "surrogatepass")) + 1 for line in lines[1:end]]) > MAX_FRONT:
        return _unread(body, 1, f"The fields take more than {MAX_FRONT} bytes.")
    reader = _Reader(lines[1:end])
    for number, line in enumerate(lines[1:end], 2):
        if found := _UNPRINTABLE.search(line):
            reader.problem(number, f"The character U+{ord(found[0]):04X} is not allowed here.", "fatal")
    fields = reader.document() if not reader.problems else {}
    if not fields and not reader.problems:
        reader.problem(1, "There are no fields between the two `---` lines.", "fatal")
    begin = next((at for at, line in enumerate(lines[end + 1 :], end + 2) if line.strip()), end + 2)
    return Front(fields, reader.lines, body, begin, tuple(sorted(reader.problems, key=lambda each: each.line)))


def _unread(body: str, line: int, message: str) -> Front:
    return Front({}, {}, body, 1, (Problem(line, message, "fatal"),))


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip(" "))


def _without_comment(text: str) -> tuple[str, bool]:
    found = _COMMENT.search(text)
    return (text.rstrip(), False) if found is None else (text[: found.start()].rstrip(), True)


class _Reader:
    """Reads the lines between the marks; `at` is the next one."""

    def __init__(self, lines: list[str]) -> None:
        self.all, self.at = lines, 0
        self.problems: list[Problem] = []
        #: The line of each field of the outermost mapping.
        self.lines: dict[str, int] = {}

    def problem(self, number: int, message: str, level: Level = "error") -> None:
        """Note what is wrong in a line of the file."""
        self.problems.append(Problem(number, message, level))

    def bad(self, message: str, level: Level = "error") -> None:
        """Note what is wrong in the line that was read last."""
        self.problem(self.at + 1, message, level)

    def _peek(self) -> str | None:
        """Return the next line with content, None at the end; blank lines and comments are passed."""
        while self.at < len(self.all):
            line = self.all[self.at]
            text = line.strip(" ")
            if text and not text.startswith("#"):
                return line
            self.at += 1
        return None

    def _skip(self, indent: int) -> None:
        """Leave out what lies deeper than `indent`."""
        while (line := self._peek()) is not None and _indent(line) > indent:
            self.at += 1

    def document(self) -> dict[str, Any]:
        """Read the outermost mapping, which is all there may be."""
        line = self._peek()
        fields = self.mapping(_indent(line), 1) if line is not None else {}
        if self._peek() is not None:
            self.problem(self.at + 2, "This line is indented less than the fields above it.", "fatal")
        return fields

    # -- mappings and lists ----------------------------------------------------------------------------------------

    def mapping(self, indent: int, depth: int) -> dict[str, Any]:
        """Read the keys that stand at `indent`."""
        out: dict[str, Any] = {}
        level: Level = "fatal" if depth == 1 else "error"
        while (line := self._peek()) is not None and _indent(line) >= indent:
            number, text = self.at + 2, line.strip(" ")
            self.at += 1
            if _indent(line) > indent:
                self.bad("This line is indented too far." if "\t" not in line[:1] else "A tab cannot indent.", level)
                continue
            key, rest = self._key(text)
            if key is None:
                self._skip(indent)
                self.problem(number, rest, level)
                continue
            value = self._value(rest, indent, depth)
            if key in out:
                self.problem(number, f"{key!r} is there twice.")
            elif len(out) == MAX_KEYS:
                self.problem(number, f"There are more than {MAX_KEYS} fields.", "fatal")
                self.at = len(self.all)
            else:
                if depth == 1:
                    self.lines[key] = number
                if value is not _MISSING:
                    out[key] = value
        return out

    def _key(self, text: str) -> tuple[str | None, str]:
        """Return the key of a line and what stands behind its colon; else None and what is wrong."""
        if text.startswith("\t"):
            return None, "A tab cannot indent: use spaces."
        if text.rstrip() == "..." or text.startswith(("- ", "? ")) or text == "-":
            return None, "A field is expected here: `name: text`."
        if text[0] in "\"'[]{},&*!|>%@`":
            return None, f"A field cannot begin with {text[0]}: write its name plainly."
        found = _COLON.search(text)
        comment = _COMMENT.search(text)
        if found is None or not found.start() or (comment is not None and comment.start() < found.start()):
            return None, "A field is expected here: a name, a colon and a space."
        return text[: found.start()].rstrip(), text[found.end() :].strip(" ")

    def _list(self, indent: int) -> list[str]:
        out: list[str] = []
        while (line := self._peek()) is not None and _indent(line) == indent and self._is_item(line):
            self.at += 1
            rest = line.strip(" ")[1:].strip(" ")
            plain = rest[:1] not in ("", '"', "'", "|", ">")
            if self._is_item(rest) or (plain and _COLON.search(_without_comment(rest)[0])):
                self.bad("A list holds plain texts here, not lists or fields.")
                self._skip(indent)
                continue
            value = self._value(rest, indent, MAX_DEPTH)
            if isinstance(value, str):
                out.append(value)
            elif value is not _MISSING:
                self.bad("A list holds plain texts here, not lists or fields.")
        return out

    @staticmethod
    def _is_item(line: str) -> bool:
        text = line.strip(" ")
        return text == "-" or text.startswith("- ")

    # -- values ----------------------------------------------------------------------------------------------------

    def _value(self, rest: str, indent: int, depth: int) -> Any:
        """Read a value whose first line holds `rest`; _MISSING where there is none that can be used."""
        if not rest or rest.startswith("#"):
            return self._below(indent, depth)
        first = rest[0]
        if first in "|>":
            return self._block(rest, indent)
        if first in "\"'":
            return self._quoted(rest)
        if first in "[{":
            what = "a list in brackets" if first == "[" else "a mapping in braces"
            self.bad(f"This is {what}: write one entry a line, or put the text in quotes.")
            if first == "[" and rest.endswith("]") and "[" not in rest[1:] and not set("{}\\#") & set(rest):
                # Skills written for other programs have `[Read, Grep]`: it breaks the rules, and is plain to read.
                self._skip(indent)
                return [each.strip(" \"'") for each in rest[1:-1].split(",") if each.strip(" \"'")]
        elif first in "&*!":
            self.bad("Anchors, aliases and tags are not read here: put the text in quotes.")
        elif first in "%@`,]}\t":
            self.bad(f"A text cannot begin with {first!r}: put it in quotes.")
        elif rest in ("-", "?", ":") or rest.startswith(("- ", "? ", ": ")):
            self.bad(f"A text cannot begin with `{first} `: put it in quotes, or a list on lines of its own.")
        else:
            return self._plain(rest, indent)
        self._skip(indent)
        return _MISSING

    def _below(self, indent: int, depth: int) -> Any:
        """Read what stands below a key without a text: a list, a mapping, a text, or nothing."""
        line = self._peek()
        if line is None:
            return ""
        found, text = _indent(line), line.strip(" ")
        if found >= indent and self._is_item(text) and (found > indent or depth < MAX_DEPTH):
            return self._list(found)
        if found <= indent:
            return ""
        if text[0] not in "\"'|>" and _COLON.search(_without_comment(text)[0]):
            if depth >= MAX_DEPTH:
                self.at += 1
                self.bad("Lists hold plain texts, and mappings lie at most four deep here.")
                self._skip(indent)
                return _MISSING
            return self.mapping(found, depth + 1)
        self.at += 1
        return self._value(text, indent, depth)

    def _plain(self, rest: str, indent: int) -> str:
        out, ended = _without_comment(rest)
        self._no_colon(out)
        blank = 0
        while self.at < len(self.all):
            line = self.all[self.at]
            text = line.strip(" ")
            if text and _indent(line) <= indent and not text.startswith("#"):
                break
            self.at += 1
            if not text:
                blank += 1
            elif text.startswith("#"):
                ended = True
            elif ended:
                self.bad("A text cannot go on after a comment: put it in quotes.")
            else:
                piece, ended = _without_comment(text)
                self._no_colon(piece)
                out += ("\n" * blank or " ") + piece
                blank = 0
        return out

    def _no_colon(self, text: str) -> None:
        if "\t" in text:
            self.bad("A tab inside a text: put the whole text in quotes.")
        if _COLON.search(text):
            self.bad("A colon and a space inside a text: put the whole text in quotes.")

    def _quoted(self, rest: str) -> Any:
        quote, number = rest[0], self.at + 1
        pieces: list[str] = []
        piece = rest[1:]
        while (close := _closing(piece, quote)) is None:
            pieces.append(piece.rstrip(" \t"))
            if self.at == len(self.all):
                self.problem(number, "This quote is never closed.", "fatal")
                return _MISSING
            piece = self.all[self.at].lstrip(" \t")
            self.at += 1
        after = piece[close + 1 :].strip(" ")
        if after and not after.startswith("#"):
            self.bad("There is text behind the closing quote.")
        return self._folded([*pieces, piece[:close]], quote == '"')

    def _folded(self, pieces: list[str], double: bool) -> str:
        """Join the lines of a quoted text: a line end becomes a space, n blank lines become n line ends."""
        out, blank, joined = "", 0, False
        for index, piece in enumerate(pieces):
            last = index == len(pieces) - 1
            if index and not last and not piece:
                blank += 1
                continue
            if index:
                out += "\n" * blank if blank else "" if joined else " "
            # A backslash at the end of a line takes the line end away.
            joined = double and not last and (len(piece) - len(piece.rstrip("\\"))) % 2 == 1
            text = piece[:-1] if joined else piece
            out += self._unescaped(text) if double else text.replace("''", "'")
            blank = 0
        return out

    def _unescaped(self, text: str) -> str:
        def one(match: re.Match[str]) -> str:
            code = match[1] or match[2] or match[3]
            if code is None and match[4] in _ESCAPES:
                return _ESCAPES[match[4]]
            if code is None or int(code, 16) > 0x10FFFF:
                self.bad(f"{match[0]} is no escape: write \\\\ for a backslash.")
                return match[0]
            return chr(int(code, 16))

        return _ESCAPE.sub(one, text)

    def _block(self, rest: str, indent: int) -> Any:
        """Read a block text by the rules of YAML 1.1 for its indentation, folding and last line ends."""
        found = _HEADER.match(rest)
        if found is None:
            self.bad("Only `|` or `>`, with `+`, `-` and one digit, may stand on this line.")
            self._skip(indent)
            return _MISSING
        marks, least = found["marks"], max(indent + 1, 1)
        digit = next((int(mark) for mark in marks if mark.isdigit()), None)
        inner = least + digit - 1 if digit else max(least, self._first_indent())
        chunks: list[str] = []
        breaks = self._breaks(inner)
        last = ""
        while self.at < len(self.all) and len(line := self.all[self.at]) >= inner and not line[:inner].strip(" "):
            chunks += breaks
            text = line[inner:]
            chunks.append(text)
            self.at += 1
            last = "\n"
            breaks = self._breaks(inner)
            goes_on = self.at < len(self.all) and self.all[self.at][:inner] == " " * inner
            if not goes_on:
                break
            if rest[0] == ">" and text[:1] not in (" ", "\t") and self.all[self.at][inner : inner + 1] not in " \t":
                chunks += [] if breaks else [" "]
            else:
                chunks.append("\n")
        if "-" not in marks:
            chunks.append(last)
        if "+" in marks:
            chunks += breaks
        return "".join(chunks)

    def _first_indent(self) -> int:
        most = 0
        for line in self.all[self.at :]:
            most = max(most, _indent(line))
            if line.strip(" "):
                break
        return most

    def _breaks(self, inner: int) -> list[str]:
        out: list[str] = []
        while self.at < len(self.all) and len(line := self.all[self.at]) <= inner and not line.strip(" "):
            # The very last line has no line end of its own: the closing mark follows it.
            out.append("\n")
            self.at += 1
        return out


def _closing(text: str, quote: str) -> int | None:
    """Return where the closing quote stands."""
    at = 0
    while at < len(text):
        if quote == '"' and text[at] == "\\":
            at += 2
        elif text[at] != quote:
            at += 1
        elif quote == "'" and text[at + 1 : at + 2] == "'":
            at += 2
        else:
            return at
    return None
