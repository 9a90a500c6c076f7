"""A small reader of GBNF grammars, written from llama.cpp's description of them: an oracle of our own."""

from __future__ import annotations

import re
from typing import Any

_TOKEN = re.compile(
    r'\s*(?:(?P<text>"(?:\\.|[^"\\])*")|(?P<chars>\[(?:\\.|[^\]\\])*\])|(?P<name>[a-z][a-z0-9]*)|(?P<sign>[()|*+?]))',
    re.DOTALL,
)
_UNIT = r"\\U\w{8}|\\u\w{4}|\\x\w\w|\\.|."
_ESCAPE = re.compile(r"\\(x[0-9A-Fa-f]{2}|u[0-9A-Fa-f]{4}|U[0-9A-Fa-f]{8}|.)", re.DOTALL)


def _plain(text: str) -> str:
    def one(found: re.Match[str]) -> str:
        code = found[1]
        if code[0] in "xuU" and len(code) > 1:
            return chr(int(code[1:], 16))
        return {"n": "\n", "r": "\r", "t": "\t"}.get(code, code)

    return _ESCAPE.sub(one, text)


class Matcher:
    """Tell whether a text is one of a grammar's; all ways are followed side by side."""

    def __init__(self, grammar: str) -> None:
        self.rules: dict[str, Any] = {}
        for line in grammar.splitlines():
            name, _, body = line.partition(" ::= ")
            tokens = list(_TOKEN.finditer(body))
            assert "".join([found[0] for found in tokens]).strip() == body.strip(), line
            parsed, rest = self._either(tokens)
            assert not rest, line
            assert name not in self.rules, name
            self.rules[name] = parsed

    def _either(self, tokens: list[re.Match[str]]) -> tuple[Any, list[re.Match[str]]]:
        ways: list[Any] = []
        while True:
            way, tokens = self._row(tokens)
            ways.append(way)
            if not tokens or tokens[0]["sign"] != "|":
                return ("alt", ways), tokens
            tokens = tokens[1:]

    def _row(self, tokens: list[re.Match[str]]) -> tuple[Any, list[re.Match[str]]]:
        parts: list[Any] = []
        while tokens and tokens[0]["sign"] not in ("|", ")"):
            first, tokens = tokens[0], tokens[1:]
            if first["text"] is not None:
                node: Any = ("lit", _plain(first["text"][1:-1]))
            elif first["chars"] is not None:
                node = ("chars", self._set(first["chars"][1:-1]))
            elif first["name"] is not None:
                node = ("rule", first["name"])
            else:
                assert first["sign"] == "("
                node, tokens = self._either(tokens)
                tokens = tokens[1:]
            if tokens and tokens[0]["sign"] in ("*", "+", "?"):
                node, tokens = (tokens[0]["sign"], node), tokens[1:]
            parts.append(node)
        return ("seq", parts), tokens

    @staticmethod
    def _set(inner: str) -> tuple[bool, list[tuple[str, str]]]:
        turned = inner.startswith("^")
        units = [_plain(found[0]) for found in re.finditer(_UNIT, inner[turned:], re.DOTALL)]
        ranges: list[tuple[str, str]] = []
        at = 0
        while at < len(units):
            wide = at + 2 < len(units) and units[at + 1] == "-"
            ranges.append((units[at], units[at + 2] if wide else units[at]))
            at += 3 if wide else 1
        return turned, ranges

    def accepts(self, text: str) -> bool:
        """True when the whole text is one of `root`."""
        return len(text) in self._ends(("rule", "root"), text, 0, {})

    def _ends(self, node: Any, text: str, at: int, known: dict[tuple[int, int], set[int]]) -> set[int]:
        kind, inner = node
        if kind == "lit":
            return {at + len(inner)} if text.startswith(inner, at) else set()
        if kind == "chars":
            turned, ranges = inner
            if at >= len(text):
                return set()
            return {at + 1} if any(low <= text[at] <= high for low, high in ranges) != turned else set()
        if kind == "rule":
            body = self.rules[inner]
            key = id(body), at
            if key not in known:
                known[key] = set()
                known[key] = self._ends(body, text, at, known)
            return known[key]
        if kind == "alt":
            return {end for way in inner for end in self._ends(way, text, at, known)}
        if kind == "seq":
            now = {at}
            for part in inner:
                now = {end for start in now for end in self._ends(part, text, start, known)}
            return now
        found, last = ({at} if kind in "*?" else set[int]()), {at}
        while last:
            last = {end for start in last for end in self._ends(inner, text, start, known)} - found
            found |= last
            if kind == "?":
                break
        return found
