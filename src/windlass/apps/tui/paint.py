"""Styled text as a terminal takes it: rich measures, wraps and colours, and what it makes is a string."""

from __future__ import annotations

import io
from collections.abc import Callable

from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.text import Text

from windlass.apps.tui.themes import Theme
from windlass.core.text import strip_escapes

__all__ = ["Painter", "clip", "one_line"]


class Painter:
    """Turns text with roles into lines for a terminal of `width()` columns.

    What it is given is stripped of terminal escapes; only the theme's own colours are in what it returns.
    """

    def __init__(self, theme: Theme, width: Callable[[], int]) -> None:
        self.theme = theme
        self._width = width
        colour = None if theme.name == "mono" else "standard"
        self._console = Console(
            file=io.StringIO(),
            force_terminal=colour is not None,
            color_system=colour,
            no_color=colour is None,
            highlight=False,
            markup=False,
            emoji=False,
            legacy_windows=False,
            width=80,
        )

    @property
    def width(self) -> int:
        """Columns of the terminal, at least 10."""
        return max(10, self._width())

    @property
    def console(self) -> Console:
        """Rich's console, as wide as the terminal is now."""
        self._console.width = self.width
        return self._console

    def paint(self, renderable: RenderableType, *, wrap: bool = True) -> str:
        """Return lines, each with its end; without `wrap` a long line is left to the terminal to break."""
        console = self.console
        with console.capture() as captured:
            console.print(renderable, soft_wrap=not wrap)
        return captured.get()

    def styled(self, *pieces: str | tuple[str, str]) -> Text:
        """Make rich text of plain pieces and of (text, role)."""
        text = Text()
        for piece in pieces:
            words, role = (piece, "") if isinstance(piece, str) else piece
            text.append(strip_escapes(words), self.theme.style(role) or None)
        return text

    def line(self, *pieces: str | tuple[str, str], indent: int = 0) -> str:
        """Return text wrapped to the terminal, its further rows indented."""
        return self.hang(self.styled(*pieces), " " * indent, " " * indent)

    def raw(self, *pieces: str | tuple[str, str]) -> str:
        """Return text as it is: the terminal breaks its long lines, so copying gives them back whole."""
        return self.paint(self.styled(*pieces), wrap=False)

    def hang(self, text: Text, first: str, further: str) -> str:
        """Return text wrapped to the terminal, `first` before its first row and `further` before the others."""
        room = max(4, self.width - max(cell_len(first), cell_len(further)))
        rows = text.wrap(self.console, room)
        out = Text()
        for number, row in enumerate(rows):
            row.rstrip()
            out.append(first if number == 0 else further).append_text(row).append(
                "\n" if number < len(rows) - 1 else ""
            )
        return self.paint(out, wrap=False)


def one_line(text: str) -> str:
    """Return text from outside as one line without terminal commands."""
    return " ".join(strip_escapes(text).split())


def clip(text: str, columns: int, *, end: bool = False) -> str:
    """Return at most `columns` cells of a line, its start or its `end`, with a mark where it was cut."""
    if cell_len(text) <= columns:
        return text
    room, out = columns - 1, ""
    for char in reversed(text) if end else text:
        room -= cell_len(char)
        if room < 0:
            break
        out += char
    return "…" + out[::-1] if end else out + "…"
