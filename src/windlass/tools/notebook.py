"""A Jupyter notebook as text: its cells in order, with what they printed (nbformat 4)."""

from __future__ import annotations

from typing import Any, cast

import msgspec

from windlass.core.text import strip_escapes
from windlass.tools.cutting import ends

__all__ = ["as_notebook"]

#: Bytes shown of one output.
_OUTPUT = 2000


def as_notebook(path: str, data: bytes) -> str | None:
    """Return the cells of a notebook as text; None for a file that is none."""
    if not path.endswith(".ipynb"):
        return None
    try:
        cells = msgspec.json.decode(data, type=dict[str, Any])["cells"]
    except (msgspec.DecodeError, KeyError, RecursionError, UnicodeDecodeError):
        return None
    if not isinstance(cells, list):
        return None
    out = [f"[Notebook of {len(cells)} cells, shown as text; the file itself is JSON]"]  # pyright: ignore[reportUnknownArgumentType]
    for number, cell in enumerate(cast("list[Any]", cells), 1):
        if isinstance(cell, dict):
            out += _cell(number, cast("dict[str, Any]", cell))
    return "\n".join(out)


def _cell(number: int, cell: dict[str, Any]) -> list[str]:
    out = ["", f"## Cell {number} [{cell.get('cell_type', 'unknown')}]", _joined(cell.get("source", ""))]
    outputs = cell.get("outputs")
    for each in cast("list[Any]", outputs) if isinstance(outputs, list) else []:
        if isinstance(each, dict):
            shown = ends(_output(cast("dict[str, Any]", each)).rstrip("\n"), _OUTPUT)
            out += ["-- output", shown] if shown else []
    return out


def _output(output: dict[str, Any]) -> str:
    if "text" in output:
        return strip_escapes(_joined(output["text"]))
    if "traceback" in output:
        return strip_escapes("\n".join([_joined(line) for line in output["traceback"] or []]))
    data = output.get("data")
    if not isinstance(data, dict):
        return ""
    found = cast("dict[str, Any]", data)
    if "text/plain" in found:
        kinds = [kind for kind in found if kind != "text/plain" and not kind.startswith("text/")]
        return strip_escapes(_joined(found["text/plain"])) + "".join([f"\n[{kind}]" for kind in kinds])
    return "".join([f"[{kind}]" for kind in found])


def _joined(text: Any) -> str:
    return "".join([str(line) for line in cast("list[Any]", text)]) if isinstance(text, list) else str(text)
