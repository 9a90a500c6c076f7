"""Regular expressions from outside: matched in linear time, or refused.

Python's `re` holds the GIL while it backtracks, so one pattern of a schema or a model could stop the process. Patterns
from outside are compiled by google-re2 (extra `regex`). Without it a small part of the language is left, for which no
backtracking can happen: plain text, and anchored sequences with one variable repetition such as `^[a-z]{2}-[0-9]+$`.
"""

from __future__ import annotations

import importlib
import re
from functools import cache
from typing import Any, Protocol

__all__ = ["Match", "Pattern", "PatternError", "compile_pattern", "is_literal"]

_SPECIAL = re.compile(r"[\\^$.|?*+()\[\]{}]")
#: One character, class escape or positive class of ASCII, then at most one repetition. Nothing that would count the
#: bytes of a longer character (dots, negated classes), as the match runs over UTF-8.
_ATOM = re.compile(
    r"(?:[^\\^$.|?*+()\[\]{}]|\\[dws]|\\[^a-zA-Z0-9]|\[(?!\^)(?:[^\[\]\\&|~]|\\[dws]|\\[^a-zA-Z0-9])+\])"
    r"(?P<repeat>\{[0-9]{1,3}(?:,(?:[0-9]{1,3})?)?\}|[?*+])?"
)
_EXACT = re.compile(r"\{[0-9]+\}")
_NEEDS_RE2 = "without google-re2 only plain text can be matched; install windlass[regex]"


class PatternError(ValueError):
    """Report a pattern that is malformed, or cannot be matched in bounded time here; the text says which."""


class Match(Protocol):
    """Where a pattern matched, in bytes."""

    def start(self) -> int: ...
    def end(self) -> int: ...


class Pattern(Protocol):
    """A compiled pattern over UTF-8 bytes."""

    def search(self, text: bytes, pos: int = 0, /) -> Match | None: ...


def is_literal(pattern: str) -> bool:
    """Tell whether a pattern has no special character."""
    return _SPECIAL.search(pattern) is None


def compile_pattern(
    pattern: str,
    *,
    ignore_case: bool = False,
    multiline: bool = False,
    dotall: bool = False,
    within_lines: bool = False,
) -> Pattern:
    """Compile a pattern from outside (RE2 syntax: https://github.com/google/re2/wiki/Syntax).

    `multiline` lets `^` and `$` match at every line, `dotall` lets `.` match a newline,
    `within_lines` lets nothing match one. Raises PatternError.
    """
    re2 = _re2()
    try:
        data = pattern.encode()
    except UnicodeEncodeError:
        raise PatternError("the pattern holds a character that UTF-8 cannot carry") from None
    if re2 is None:
        return _without_re2(pattern, ignore_case, multiline, dotall)
    options = re2.Options()
    options.log_errors = False
    options.case_sensitive = not ignore_case
    options.dot_nl = dotall
    options.never_nl = within_lines
    try:
        return re2.compile(b"(?m)" + data if multiline else data, options)
    except re2.error as error:
        detail = error.args[0] if error.args else "malformed"
        detail = detail.decode("utf-8", "replace") if isinstance(detail, bytes) else str(detail)
        raise PatternError(f"{detail} (RE2 syntax: no look-around, no back-references)") from None


@cache
def _re2() -> Any:
    try:
        return importlib.import_module("re2")
    except ImportError:
        return None


def _without_re2(pattern: str, ignore_case: bool, multiline: bool, dotall: bool) -> Pattern:
    flags = (re.IGNORECASE if ignore_case else 0) | (re.MULTILINE if multiline else 0) | (re.DOTALL if dotall else 0)
    if is_literal(pattern):
        return re.compile(re.escape(pattern.encode()), flags)
    if multiline or "--" in pattern or not pattern.isascii() or not pattern.startswith("^"):
        raise PatternError(_NEEDS_RE2)
    anchored = pattern.endswith("$") and not pattern.endswith("\\$")
    body = pattern[1:-1] if anchored else pattern[1:]
    if not _is_linear(body):
        raise PatternError(_NEEDS_RE2)
    try:
        return re.compile(b"^" + body.encode() + (rb"\Z" if anchored else b""), flags)
    except re.error as error:
        raise PatternError(str(error)) from None


def _is_linear(body: str) -> bool:
    """Tell whether a pattern without its anchors is a sequence with at most one variable repetition."""
    at, variable = 0, 0
    while at < len(body):
        found = _ATOM.match(body, at)
        if found is None:
            return False
        repeat = found["repeat"]
        variable += repeat is not None and _EXACT.fullmatch(repeat) is None
        at = found.end()
    return variable <= 1
