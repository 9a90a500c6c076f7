"""What a docstring says of a function and its parameters: Google, NumPy and reST styles."""

from __future__ import annotations

import re

__all__ = ["parse_docstring"]

_GOOGLE = re.compile(r"(?:Args|Arguments|Parameters|Params|Keyword Args|Keyword Arguments|Other Parameters):\s*")
_GOOGLE_ENTRY = re.compile(r"\*{0,2}(\w+)\s*(?:\([^)]*\))?\s*:\s*(.*)")
_SECTION = re.compile(
    r"(?:Args|Arguments|Attributes|Examples?|Keyword Args|Keyword Arguments|Notes?|Other Parameters|Parameters|Params"
    r"|Raises|References|Returns|See Also|Todo|Usage|Warnings?|Warns|Yields):?\s*"
)
_NUMPY_ENTRY = re.compile(r"\*{0,2}(\w+(?:\s*,\s*\w+)*)\s*(?::.*)?")
_RULE = re.compile(r"-{3,}\s*")
_REST = re.compile(r":(?:param|parameter|arg|argument|key|keyword)\s+(?:[^:]*\s)?\*{0,2}(\w+)\s*:\s*(.*)")


def parse_docstring(text: str) -> tuple[str, dict[str, str]]:
    """Return the first paragraph on one line, and each parameter's description, of an unindented docstring."""
    lines = text.splitlines()
    found: dict[str, str] = {}
    for at, line in enumerate(lines):
        if _GOOGLE.fullmatch(line):
            found.update(_google(lines[at + 1 :]))
        elif (
            at + 1 < len(lines)
            and line.strip() in ("Parameters", "Other Parameters")
            and _RULE.fullmatch(lines[at + 1])
        ):
            found.update(_numpy(lines[at + 2 :]))
        elif match := _REST.match(line.strip()):
            found[match[1]] = _joined([match[2], *_deeper(lines[at + 1 :], _indent(line))])
    return _summary(lines), {name: words for name, words in found.items() if words}


def _summary(lines: list[str]) -> str:
    out: list[str] = []
    for line in lines:
        if not line.strip():
            if out:
                break
            continue
        if _SECTION.fullmatch(line) or line.lstrip().startswith(":param"):
            break
        out.append(line)
    return _joined(out)


def _google(lines: list[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    base: int | None = None
    for at, line in enumerate(lines):
        if not line.strip():
            continue
        if _indent(line) == 0:
            break
        base = _indent(line) if base is None else base
        entry = _GOOGLE_ENTRY.fullmatch(line.strip())
        if entry is not None and _indent(line) == base:
            found[entry[1]] = _joined([entry[2], *_deeper(lines[at + 1 :], base)])
    return found


def _numpy(lines: list[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for at, line in enumerate(lines):
        if at + 1 < len(lines) and _RULE.fullmatch(lines[at + 1]):
            break
        entry = _NUMPY_ENTRY.fullmatch(line)
        if entry is not None:
            words = _joined(_deeper(lines[at + 1 :], 0))
            found.update({name.strip(): words for name in entry[1].split(",")})
    return found


def _deeper(lines: list[str], indent: int) -> list[str]:
    """Return the lines that follow with more indent; a blank line ends them."""
    out: list[str] = []
    for line in lines:
        if not line.strip() or _indent(line) <= indent:
            break
        out.append(line)
    return out


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _joined(lines: list[str]) -> str:
    return " ".join([line.strip() for line in lines]).strip()
