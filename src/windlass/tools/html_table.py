"""A table of a page as one of Markdown."""

from __future__ import annotations

from typing import ClassVar

__all__ = ["Table"]


class Table:
    """Collects rows of cells; `plain` is a table that only lays out, whose cells are written as they come."""

    MAX_CELLS: ClassVar[int] = 20_000
    MAX_COLUMNS: ClassVar[int] = 50

    def __init__(self, *, plain: bool = False) -> None:
        self.plain = plain
        self.cells = 0
        self._rows: list[list[str]] = []

    def row(self) -> None:
        """Begin a row."""
        self._rows.append([])

    def cell(self, text: str) -> None:
        """Add a cell to the row."""
        if not self._rows:
            self.row()
        self.cells += 1
        self._rows[-1].append(text)

    def lines(self) -> list[str]:
        """Return the lines so far; a table of one column is a line for each cell."""
        # Cells beyond the last column are kept in it: nothing readable is lost.
        last = self.MAX_COLUMNS - 1
        rows = [[*row[:last], " ".join(row[last:])] if len(row) > last else row for row in self._rows if any(row)]
        self._rows = []
        width = max(map(len, rows), default=0)
        if width <= 1:
            return [row[0] for row in rows]
        # Markdown wants a head. The first row is taken for it, as a reader would.
        out = [_line(row + [""] * (width - len(row))) for row in rows]
        out.insert(1, _line(["---"] * width))
        return out


def _line(cells: list[str]) -> str:
    return "| " + " | ".join([cell.replace("|", "\\|") for cell in cells]) + " |"
