"""Values that do not fit a schema: mended where nothing is lost, explained where something would be."""

from __future__ import annotations

import difflib
import math
import re
from typing import Any

from windlass.core import json
from windlass.core._nodes import TYPES, Exhausted, Node, equal

__all__ = ["Repair"]

#: Schemas that one repair may visit; nested unions can multiply.
MAX_STEPS = 20_000
MAX_PROBLEMS = 5
#: Longer texts are no numbers that a model meant, and converting them costs quadratic time.
_MAX_DIGITS = 64
_SHOWN = 40
_INTEGER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.0+)?")
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
_KEEP: Any = object()


class Repair:
    """One attempt on one value: `log` names the fields that were converted or dropped."""

    __slots__ = ("_problems", "_steps", "log")

    def __init__(self) -> None:
        self.log: list[str] = []
        self._problems: list[str] = []
        self._steps = 0

    # -- mend -----------------------------------------------------------------------------------------------------

    def mend(self, node: Node, value: Any, path: str = "") -> Any:
        """Return the value, converted where it did not fit and nothing is lost; the input is never changed."""
        if node.check(value):
            return value
        self._step()
        for below in node.all_of:
            value = self.mend(below, value, path)
        if node.types:
            value = self._retype(node, value, path)
        if node.enum is not None:
            value = self._choose(node.enum, value, path)
        if isinstance(value, dict):
            value = self._fields(node, value, path)
        elif isinstance(value, list):
            value = self._items(node, value, path)
        for branches in (node.any_of, node.one_of):
            if branches:
                value = self._branch(branches, value, path)
        return value

    def _step(self) -> None:
        self._steps += 1
        if self._steps > MAX_STEPS:
            raise Exhausted

    def _retype(self, node: Node, value: Any, path: str) -> Any:
        if any(TYPES[name](value) for name in node.types):
            return value
        for name in node.types:
            converted = _convert(name, value)
            if converted is not _KEEP:
                self.log.append(path)
                return converted
        if "array" in node.types and value is not None:
            return self._wrap(node, value, path)
        return value

    def _wrap(self, node: Node, value: Any, path: str) -> Any:
        """Make a lone value of an item's type a list of one."""
        mark, below = len(self.log), node.of_item(0)
        item = value if below is None else self.mend(below, value, f"{path}[0]")
        del self.log[mark:]
        if below is not None and not below.check(item):
            return value
        self.log.append(path)
        return [item]

    def _choose(self, options: tuple[Any, ...], value: Any, path: str) -> Any:
        if isinstance(value, (dict, list)) or any(equal(value, option) for option in options):
            return value
        for option in options:
            if (isinstance(value, str) and _text(option) == value) or (
                isinstance(option, str) and option == _text(value)
            ):
                self.log.append(path)
                return option
        return value

    def _fields(self, node: Node, value: dict[str, Any], path: str) -> dict[str, Any]:
        out = value
        for name, item in value.items():
            new = item
            for below in node.of_property(name):
                if below.check(new):
                    continue
                if new is None and name in node.properties and name not in node.required:
                    new = _KEEP
                    break
                new = self.mend(below, new, _join(path, name))
            if new is item:
                continue
            if out is value:
                out = dict(value)
            if new is _KEEP:
                del out[name]
                self.log.append(_join(path, name))
            else:
                out[name] = new
        return out

    def _items(self, node: Node, value: list[Any], path: str) -> list[Any]:
        out = value
        for index, item in enumerate(value):
            below = node.of_item(index)
            if below is None or below.check(item):
                continue
            new = self.mend(below, item, f"{path}[{index}]")
            if new is not item:
                out = list(value) if out is value else out
                out[index] = new
        return out

    def _branch(self, branches: list[Node], value: Any, path: str) -> Any:
        """Take the branch that the value fits with the fewest conversions."""
        if any(branch.check(value) for branch in branches):
            return value
        mark = len(self.log)
        best: tuple[Any, list[str]] | None = None
        for branch in branches:
            trial = self.mend(branch, value, path)
            steps = self.log[mark:]
            del self.log[mark:]
            if branch.check(trial) and (best is None or len(steps) < len(best[1])):
                best = trial, steps
        if best is None:
            return value
        self.log += best[1]
        return best[0]

    # -- explain --------------------------------------------------------------------------------------------------

    def explain(self, node: Node, value: Any) -> str:
        """Return what is wrong with a value, the first few problems in one line."""
        self._problems = []
        self._explain(node, value, "")
        more = "; and more" if len(self._problems) > MAX_PROBLEMS else ""
        return "; ".join(self._problems[:MAX_PROBLEMS]) + more

    def _explain(self, node: Node, value: Any, path: str) -> None:
        if len(self._problems) > MAX_PROBLEMS or node.check(value):
            return
        self._step()
        before = len(self._problems)
        if node.types and not any(TYPES[name](value) for name in node.types):
            self._expected(path, " or ".join(node.types), value)
            return
        if node.enum is not None and not any(equal(value, option) for option in node.enum):
            listed = ", ".join([_show(option) for option in node.enum[:12]]) + (", …" if len(node.enum) > 12 else "")
            self._expected(path, f"one of {listed}" if len(node.enum) > 1 else listed, value)
        for check, words in node.limits:
            if not check(value):
                self._expected(path, words[:200], value)
        if isinstance(value, dict):
            self._explain_fields(node, value, path)
        elif isinstance(value, list):
            for index, item in enumerate(value):
                below = node.of_item(index)
                if below is not None:
                    self._explain(below, item, f"{path}[{index}]")
        for below in node.all_of:
            self._explain(below, value, path)
        for branches, one in ((node.any_of, False), (node.one_of, True)):
            if branches:
                self._explain_branches(branches, value, path, one=one)
        if len(self._problems) == before:
            self._problems.append(
                f"{_field(path)}nothing is allowed here" if node.closed else f"{_field(path)}not allowed"
            )

    def _explain_fields(self, node: Node, value: dict[str, Any], path: str) -> None:
        for name in node.required:
            if name not in value:
                self._problems.append(f"Missing required field: {_join(path, name)}")
        for name, item in value.items():
            if len(self._problems) > MAX_PROBLEMS:
                return
            below = node.of_property(name)
            if node.closed and below == [node.extra]:
                self._problems.append(_unknown(_join(path, name), name, list(node.properties)))
            else:
                for each in below:
                    self._explain(each, item, _join(path, name))

    def _explain_branches(self, branches: list[Node], value: Any, path: str, *, one: bool) -> None:
        fitting = sum([branch.check(value) for branch in branches])
        if fitting:
            if one and fitting > 1:
                self._problems.append(f"{_field(path)}fits {fitting} of the allowed forms, must fit exactly one")
            return
        typed = [branch for branch in branches if _admits(branch, value)]
        if not typed:
            names = dict.fromkeys([name for branch in branches for name in _types(branch)])
            self._expected(path, " or ".join(names) or "another form", value)
            return
        outer, best = self._problems, None
        for branch in typed:
            self._problems = []
            self._explain(branch, value, path)
            if best is None or len(self._problems) < len(best):
                best = self._problems
        self._problems = outer + (best or [])

    def _expected(self, path: str, what: str, value: Any) -> None:
        self._problems.append(f"{_field(path)}expected {what}, got {_show(value)}")


def _types(node: Node) -> tuple[str, ...]:
    for below in node.all_of:
        if not node.types and _types(below):
            return _types(below)
    return node.types


def _admits(node: Node, value: Any) -> bool:
    names = _types(node)
    return not names or any(TYPES[name](value) for name in names)


def _field(path: str) -> str:
    return f"Field {path}: " if path else ""


def _join(path: str, name: str) -> str:
    name = name if len(name) <= 100 else name[:100] + "…"
    return f"{path}.{name}" if path else name


def _unknown(path: str, name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name[:100], known[:200], n=1, cutoff=0.5)
    if near:
        return f"Unknown field: {path} (did you mean {near[0]}?)"
    listed = ", ".join(known[:12]) + (", …" if len(known) > 12 else "")
    return f"Unknown field: {path}" + (f" (known: {listed})" if known else "")


def _text(value: Any) -> str | None:
    """Return the one text that a scalar is written as; None for texts, floats and containers."""
    if value is True or value is False:
        return "true" if value else "false"
    if value is None:
        return "null"
    # A float has many texts: 1.10 arrives as 1.1.
    return str(value) if type(value) is int and abs(value) < 10**_MAX_DIGITS else None


def _convert(name: str, value: Any) -> Any:
    """Convert a value to a JSON type if it can only mean one; `_KEEP` if not."""
    if isinstance(value, str):
        return _from_text(name, value) if name != "string" else _KEEP
    if name == "integer" and type(value) is float and value.is_integer():
        return int(value)
    if name == "string" and value is not None:
        text = _text(value)
        return _KEEP if text is None else text
    return _KEEP


def _from_text(name: str, text: str) -> Any:
    if name in ("object", "array"):
        kind, opening = (dict, "{") if name == "object" else (list, "[")
        if text.lstrip()[:1] != opening:
            return _KEEP
        try:
            parsed = json.loads(text)
        except json.JsonError:
            return _KEEP
        return parsed if isinstance(parsed, kind) else _KEEP
    word = text.strip()
    if name == "boolean":
        return {"true": True, "false": False}.get(word.lower(), _KEEP)
    if name == "null":
        return None if word == "null" else _KEEP
    if len(word) > _MAX_DIGITS:
        return _KEEP
    if _INTEGER.fullmatch(word):
        return int(word.partition(".")[0])
    if name == "number" and _NUMBER.fullmatch(word) and math.isfinite(float(word)):
        # A double holds 15 decimal digits for certain; more would be rounded away.
        digits = re.split("[eE]", word)[0].replace(".", "").lstrip("-0")
        return float(word) if len(digits) <= 15 and (float(word) != 0 or not digits) else _KEEP
    return _KEEP


def _show(value: Any) -> str:
    if isinstance(value, str):
        cut = value[:_SHOWN]
        return json.dumps(cut if len(value) <= _SHOWN else cut + "…").decode()
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return f"an array of {len(value)}"
    if type(value) is float:
        return repr(value)
    return _text(value) or ("a huge number" if isinstance(value, int) else type(value).__name__)
