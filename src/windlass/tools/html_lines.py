"""Lines of Markdown as they grow: breaks, prefixes of lists and quotes, and marks around a stretch of a line."""

from __future__ import annotations

import re

__all__ = ["Lines"]

_BLANKS = re.compile(r"[ \t\n\r\f]+")
_RUNS = re.compile(r"`+")
#: Lists and quotes within each other that are still shown as such.
MAX_PREFIXES = 12


class Lines:
    """Takes words and breaks, gives lines. `size` counts characters; past `limit` nothing more is taken (`full`)."""

    def __init__(self, limit: int) -> None:
        self.limit, self.size, self.full = limit, 0, False
        self._done: list[str] = []
        self._line: list[str] = []
        #: Lines to break before the next word: 0, 1, or 2 for an empty line between.
        self._break = 0
        self._space = False
        self._prefixes: list[tuple[str, str]] = []
        self._fresh: list[bool] = []
        #: Counts lines, so that a mark knows whether it still is on the one where it began.
        self.number = 0

    def text(self, text: str) -> None:
        """Add text in which runs of white space are one blank."""
        words = _BLANKS.sub(" ", text)
        if words == " " or not words:
            self._space = self._space or bool(words)
            return
        if words[0] == " ":
            self._space, words = True, words[1:]
        trailing = words[-1] == " "
        self._put(words[:-1] if trailing else words)
        self._space = trailing

    def _put(self, words: str) -> None:
        if self._count(len(words) + 1):
            self._begin()
            if self._space and self._line and not self._line[-1].endswith(" "):
                self._line.append(" ")
            self._space = False
            self._line.append(words)

    def _count(self, more: int) -> bool:
        if self.size + more > self.limit:
            self.full = True
        self.size += more
        return not self.full

    def _begin(self) -> None:
        if self._break:
            self._end_line()
        if not self._line and self._prefixes:
            prefix = "".join([first if fresh else rest for (first, rest), fresh in self._pairs()])
            self._fresh = [False] * len(self._fresh)
            self._count(len(prefix))
            self._line.append(prefix)

    def _pairs(self) -> list[tuple[tuple[str, str], bool]]:
        return list(zip(self._prefixes, self._fresh, strict=True))

    def _end_line(self) -> None:
        if self._line:
            self._done.append("".join(self._line).rstrip(" "))
            self._line = []
            self.number += 1
        if self._break > 1 and self._done and self._done[-1]:
            quoted = "".join([rest for (first, rest), fresh in self._pairs() if first == rest and not fresh])
            self._done.append(quoted.rstrip(" "))
        self._break, self._space = 0, False

    def line_break(self, lines: int = 1) -> None:
        """End the line before the next word; 2 leaves an empty line between."""
        # At the very start, and behind a list's marker, there is nothing to break.
        if (self._line and not self._is_bare()) or (not self._line and self._done):
            self._break = max(self._break, lines)
        self._space = False

    def _is_bare(self) -> bool:
        return len(self._line) == 1 and bool(self._prefixes) and not self._line[0].strip("> \t")

    def push(self, first: str, rest: str) -> bool:
        """Begin lines with `first`, then `rest`; False where too many do already."""
        if len(self._prefixes) >= MAX_PREFIXES:
            return False
        self._prefixes.append((first, rest))
        self._fresh.append(True)
        return True

    def pop(self) -> None:
        """Take back the last `push`."""
        self._prefixes.pop()
        self._fresh.pop()

    def mark(self) -> tuple[int, int]:
        """Return where the next word will stand, for `wrap`."""
        if self._break or not self._line:
            return self.number + bool(self._line), -1
        return self.number, len(self._line)

    def wrap(self, mark: tuple[int, int], before: str, after: str) -> bool:
        """Put marks around what was added since `mark`; False where that is nothing, or more than one line."""
        number, place = mark
        if number != self.number or self._break:
            return False
        if place < 0:
            place = 1 if self._prefixes and len(self._line) > 1 else 0
        words = "".join(self._line[place:])
        core = words.strip(" ")
        if not core or not self._count(len(before) + len(after)):
            return False
        lead = " " if words[0] == " " else ""
        self._line[place:] = [f"{lead}{before}{core}{after}"]
        self._space = self._space or words[-1] == " "
        return True

    def since(self, mark: tuple[int, int]) -> str:
        """Return the text added to the line since `mark`, "" where the line is another by now."""
        if mark[0] != self.number or self._break:
            return ""
        return "".join(self._line[max(mark[1], 0) :])

    def verbatim(self, text: str, language: str) -> None:
        """Add a fenced block of code."""
        fence = "`" * max(3, 1 + max(map(len, _RUNS.findall(text)), default=0))
        self.line_break(2)
        for line in (f"{fence}{language}", *text.split("\n"), fence):
            if not self._count(len(line) + 1):
                break
            self._begin()
            # A line without prefix must be there also when it is empty.
            self._line.append(line)
            self._break = 1
            self._end_line()
        self.line_break(2)

    def raw(self, line: str) -> None:
        """Add a line of its own as it is."""
        self.line_break(1)
        if self._count(len(line) + 1):
            self._begin()
            self._line.append(line)
            self._break = 1

    def result(self) -> str:
        """Return everything so far."""
        lines = [*self._done, "".join(self._line).rstrip(" ")] if self._line else self._done
        return "\n".join(lines).strip("\n")
