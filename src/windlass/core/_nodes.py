"""JSON Schema to a tree of nodes, each with a compiled check (JSON Schema 2020-12, the part that tools use).

Checked: type, enum, const, properties, required, additionalProperties, patternProperties, items, prefixItems, anyOf,
oneOf, allOf, not, $ref within the document, the bounds of numbers, strings, arrays and objects, multipleOf,
uniqueItems, pattern; also `nullable` (OpenAPI), `items` as a list and boolean exclusive bounds (drafts 4 to 7). Other
keywords, `format` among them, are annotations here. Nothing is ever fetched.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from windlass.core.errors import ConfigError
from windlass.core.patterns import Pattern, PatternError, compile_pattern

__all__ = ["TYPES", "Check", "Compiler", "Exhausted", "Node", "equal", "unescape"]

Check = Callable[[Any], bool]

MAX_NODES = 20_000
#: References that one check may follow: a small schema can name exponentially many paths.
FUEL = 1_000_000
#: Items compared pairwise for `uniqueItems` when they have no order.
_MAX_PAIRS = 1000


class Exhausted(Exception):
    """Say that a check followed more references than any honest input needs."""


class Node:
    """One schema: what the repair and the messages need to know of it, and its compiled `check`.

    `types` is empty when any type goes. `extra` is what other properties must fit, None: anything. `limits` are checks
    with the words that say what they expect. `all_of` includes the target of a `$ref`.
    """

    __slots__ = (
        "all_of",
        "any_of",
        "check",
        "closed",
        "enum",
        "extra",
        "items",
        "limits",
        "one_of",
        "patterns",
        "prefix",
        "properties",
        "required",
        "types",
    )

    def __init__(self) -> None:
        self.check: Check = _anything
        self.types: tuple[str, ...] = ()
        self.enum: tuple[Any, ...] | None = None
        self.properties: dict[str, Node] = {}
        self.required: tuple[str, ...] = ()
        self.extra: Node | None = None
        self.closed = False
        self.patterns: list[tuple[Pattern, Node]] = []
        self.prefix: list[Node] = []
        self.items: Node | None = None
        self.any_of: list[Node] = []
        self.one_of: list[Node] = []
        self.all_of: list[Node] = []
        self.limits: list[tuple[Check, str]] = []

    def of_property(self, name: str) -> list[Node]:
        """Return the nodes that a property's value must fit."""
        found = [self.properties[name]] if name in self.properties else []
        if self.patterns:
            data = name.encode("utf-8", "surrogatepass")
            found += [node for pattern, node in self.patterns if pattern.search(data) is not None]
        return found or ([self.extra] if self.extra is not None else [])

    def of_item(self, index: int) -> Node | None:
        """Return the node that the item at `index` must fit; None: anything."""
        return self.prefix[index] if index < len(self.prefix) else self.items


def _anything(_: Any) -> bool:
    return True


def _nothing(_: Any) -> bool:
    return False


def is_number(value: Any) -> bool:
    """Tell whether a value is a JSON number: no boolean, no NaN, no infinity."""
    return type(value) is int or (type(value) is float and math.isfinite(value))


TYPES: dict[str, Check] = {
    "string": lambda value: isinstance(value, str),
    "integer": lambda value: type(value) is int,
    "number": is_number,
    "boolean": lambda value: value is True or value is False,
    "null": lambda value: value is None,
    "object": lambda value: isinstance(value, dict),
    "array": lambda value: isinstance(value, list),
}


def equal(left: Any, right: Any) -> bool:
    """Compare as JSON does: 1 equals 1.0, but never True."""
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(equal(item, right[key]) for key, item in left.items())
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(equal(a, b) for a, b in zip(left, right, strict=True))
    return left == right


def _unique(value: Any) -> bool:
    if not isinstance(value, list):
        return True
    try:
        return len({(type(item) is bool, item) for item in value}) == len(value)
    except TypeError:
        if len(value) > _MAX_PAIRS:
            raise Exhausted from None
        return not any(equal(a, b) for at, a in enumerate(value) for b in value[:at])


def _multiple(value: Any, of: float) -> bool:
    if not is_number(value):
        return True
    if isinstance(value, int) and isinstance(of, int):
        return value % of == 0
    try:
        quotient = value / of
    except OverflowError:
        return False
    return math.isfinite(quotient) and math.isclose(quotient, round(quotient), rel_tol=1e-12, abs_tol=1e-12)


def unescape(token: str) -> str:
    """Return a JSON pointer's token as it is written in the document (RFC 6901)."""
    return token.replace("~1", "/").replace("~0", "~")


class Compiler:
    """Turns one schema document into nodes. `lenient` skips patterns that cannot be matched here."""

    def __init__(self, document: Any, *, lenient: bool) -> None:
        self.document, self.lenient = document, lenient
        self.fuel = [FUEL]
        self._refs: dict[str, Node] = {}
        self._count = 0

    def compile(self) -> Node:
        """Return the document's root. Raises ConfigError that names the place of what is broken."""
        try:
            return self._fill(Node(), self.document, "#", frozenset())
        except RecursionError:
            raise self._broken("#", "nested too deeply") from None

    def _broken(self, place: str, what: str) -> ConfigError:
        return ConfigError(f"Broken JSON Schema at {place}: {what}.")

    def _node(self, schema: Any, place: str, chain: frozenset[str] = frozenset()) -> Node:
        return self._fill(Node(), schema, place, chain)

    def _fill(self, node: Node, schema: Any, place: str, chain: frozenset[str]) -> Node:
        self._count += 1
        if self._count > MAX_NODES:
            raise self._broken(place[:200], f"it holds more than {MAX_NODES} schemas")
        if isinstance(schema, bool):
            node.check, node.closed = (_anything, False) if schema else (_nothing, True)
            return node
        if not isinstance(schema, dict):
            raise self._broken(place, f"expected an object, got {type(schema).__name__}")
        node.types = self._types(schema, place)
        checks = [] if node.types in ((), ("object",), ("array",)) else [_any_of([TYPES[t] for t in node.types])]
        if "enum" in schema or "const" in schema:
            node.enum = (schema["const"],) if "const" in schema else tuple(self._list(schema, "enum", place))
            checks.append(_enum_check(node.enum))
        self._object(node, schema, place, checks)
        self._array(node, schema, place, checks)
        self._limits(node, schema, place)
        checks += [check for check, _ in node.limits]
        self._combined(node, schema, place, chain, checks)
        node.check = _all_of(checks)
        return node

    def _types(self, schema: dict[str, Any], place: str) -> tuple[str, ...]:
        given = schema.get("type", ())
        types: Sequence[Any] = (given,) if isinstance(given, str) else given
        if not isinstance(types, (list, tuple)) or (types == [] and "type" in schema):
            raise self._broken(f"{place}/type", "expected a type name or a list of them")
        for name in types:
            if not isinstance(name, str) or name not in TYPES:
                raise self._broken(f"{place}/type", f"unknown type {name!r}")
        if types and schema.get("nullable") is True and "null" not in types:
            types = (*types, "null")
        return tuple(types)

    def _object(self, node: Node, schema: dict[str, Any], place: str, checks: list[Check]) -> None:
        for name, below in self._dict(schema, "properties", place).items():
            node.properties[name] = self._node(below, f"{place}/properties/{name}")
        required = self._list(schema, "required", place)
        if not all(isinstance(name, str) for name in required):
            raise self._broken(f"{place}/required", "expected a list of names")
        node.required = tuple(required)
        for pattern, below in self._dict(schema, "patternProperties", place).items():
            where = f"{place}/patternProperties/{pattern}"
            compiled = self._pattern(pattern, where)
            if compiled is not None:
                node.patterns.append((compiled, self._node(below, where)))
        if "additionalProperties" in schema and schema["additionalProperties"] is not True:
            node.extra = self._node(schema["additionalProperties"], f"{place}/additionalProperties")
            node.closed = schema["additionalProperties"] is False
            if node.closed and len(node.patterns) < len(self._dict(schema, "patternProperties", place)):
                # A pattern was skipped: whether a name is a known one cannot be told.
                node.extra, node.closed = None, False
        if node.properties or node.required or node.patterns or node.extra is not None:
            checks.append(_object_check(node, other=node.types != ("object",)))
        elif node.types == ("object",):
            checks.append(TYPES["object"])

    def _array(self, node: Node, schema: dict[str, Any], place: str, checks: list[Check]) -> None:
        items, rest = schema.get("items"), schema.get("items")
        first = self._list(schema, "prefixItems", place)
        where = f"{place}/items"
        if isinstance(items, list):  # drafts 4 to 7
            first, rest, where = items, schema.get("additionalItems"), f"{place}/additionalItems"
        node.prefix = [self._node(below, f"{place}/prefixItems/{at}") for at, below in enumerate(first)]
        if rest is not None and rest is not True:
            node.items = self._node(rest, where)
        if node.prefix or node.items is not None:
            checks.append(_array_check(node, other=node.types != ("array",)))
        elif node.types == ("array",):
            checks.append(TYPES["array"])

    def _limits(self, node: Node, schema: dict[str, Any], place: str) -> None:
        if not _LIMITS.isdisjoint(schema):
            self._number_limits(node, schema, place)
            self._size_limits(node, schema, place)
        if "pattern" in schema:
            pattern = self._pattern(schema["pattern"], f"{place}/pattern")
            if pattern is not None:
                node.limits.append((_pattern_check(pattern), f"text matching {schema['pattern']}"))
        if "not" in schema:
            refused = self._node(schema["not"], f"{place}/not").check
            node.limits.append((lambda value: not refused(value), "another value"))

    def _number_limits(self, node: Node, schema: dict[str, Any], place: str) -> None:
        low, above = self._bound(schema, "minimum", place), self._bound(schema, "exclusiveMinimum", place)
        high, below = self._bound(schema, "maximum", place), self._bound(schema, "exclusiveMaximum", place)
        if above is True:  # draft 4: a flag on `minimum`
            low, above = None, low
        if below is True:
            high, below = None, high
        add = node.limits.append
        if low is not None:
            add((lambda value: not is_number(value) or value >= low, f"a value >= {low}"))
        if above is not None and above is not False:
            add((lambda value: not is_number(value) or value > above, f"a value > {above}"))
        if high is not None:
            add((lambda value: not is_number(value) or value <= high, f"a value <= {high}"))
        if below is not None and below is not False:
            add((lambda value: not is_number(value) or value < below, f"a value < {below}"))
        of = self._bound(schema, "multipleOf", place)
        if of is not None:
            if of <= 0:
                raise self._broken(f"{place}/multipleOf", "must be greater than 0")
            add((lambda value: _multiple(value, of), f"a multiple of {of}"))

    def _size_limits(self, node: Node, schema: dict[str, Any], place: str) -> None:
        for kind, unit, suffix in (
            (str, "characters", "Length"),
            (list, "items", "Items"),
            (dict, "fields", "Properties"),
        ):
            least = self._bound(schema, f"min{suffix}", place)
            most = self._bound(schema, f"max{suffix}", place)
            if least is not None:
                node.limits.append((_size_check(kind, least, math.inf), f"at least {least} {unit}"))
            if most is not None:
                node.limits.append((_size_check(kind, 0, most), f"at most {most} {unit}"))
        if schema.get("uniqueItems") is True:
            node.limits.append((_unique, "items that differ"))

    def _combined(
        self, node: Node, schema: dict[str, Any], place: str, chain: frozenset[str], checks: list[Check]
    ) -> None:
        if "$ref" in schema:
            node.all_of.append(self._ref(schema["$ref"], place, chain))
        for keyword, into in (("allOf", node.all_of), ("anyOf", node.any_of), ("oneOf", node.one_of)):
            below = self._list(schema, keyword, place)
            if keyword in schema and not below:
                raise self._broken(f"{place}/{keyword}", "expected at least one schema")
            into += [self._node(item, f"{place}/{keyword}/{at}", chain) for at, item in enumerate(below)]
        # A reference's own check must be looked up late: its node may be filled after this one.
        checks += [_late(below) for below in node.all_of]
        if node.any_of:
            checks.append(_any_of([below.check for below in node.any_of]))
        if node.one_of:
            one_of = [below.check for below in node.one_of]
            checks.append(lambda value: sum([check(value) for check in one_of]) == 1)

    def _ref(self, ref: Any, place: str, chain: frozenset[str]) -> Node:
        where = f"{place}/$ref"
        if not isinstance(ref, str) or not (ref == "#" or ref.startswith("#/")):
            raise self._broken(where, f"{ref!r} is not a reference within the document (#/…)")
        if ref in chain:
            raise self._broken(where, f"{ref} refers to itself without an end")
        if ref not in self._refs:
            target = self.document
            for token in ref.split("/")[1:]:
                name = unescape(token)
                if isinstance(target, dict) and name in target:
                    target = target[name]
                elif isinstance(target, list) and name.isdigit() and int(name) < len(target):
                    target = target[int(name)]
                else:
                    raise self._broken(where, f"{ref} does not exist")
            outer = self._refs[ref] = Node()
            inner = self._node(target, ref, chain | {ref})
            outer.all_of, outer.check = [inner], _metered(inner, self.fuel)
            return outer
        return self._refs[ref]

    def _pattern(self, pattern: Any, place: str) -> Pattern | None:
        if not isinstance(pattern, str):
            raise self._broken(place, "expected a pattern")
        try:
            return compile_pattern(pattern)
        except PatternError as error:
            if self.lenient:
                return None
            raise self._broken(place, str(error)) from None

    def _bound(self, schema: dict[str, Any], keyword: str, place: str) -> Any:
        value = schema.get(keyword)
        if value is None or is_number(value) or (isinstance(value, bool) and keyword.startswith("exclusive")):
            return value
        raise self._broken(f"{place}/{keyword}", "expected a number")

    def _dict(self, schema: dict[str, Any], keyword: str, place: str) -> dict[str, Any]:
        value = schema.get(keyword, {})
        if not isinstance(value, dict):
            raise self._broken(f"{place}/{keyword}", "expected an object")
        return value

    def _list(self, schema: dict[str, Any], keyword: str, place: str) -> list[Any]:
        value = schema.get(keyword, [])
        if not isinstance(value, (list, tuple)):
            raise self._broken(f"{place}/{keyword}", "expected a list")
        return list(value)


_LIMITS = frozenset({"exclusiveMaximum", "exclusiveMinimum", "maximum", "minimum", "multipleOf", "uniqueItems"}).union(
    *[{f"min{suffix}", f"max{suffix}"} for suffix in ("Length", "Items", "Properties")]
)


def _all_of(checks: list[Check]) -> Check:
    if len(checks) < 2:
        return checks[0] if checks else _anything
    if len(checks) == 2:
        first, second = checks
        return lambda value: first(value) and second(value)

    def check(value: Any) -> bool:
        for one in checks:  # noqa: SIM110 - a generator costs more than the check
            if not one(value):
                return False
        return True

    return check


def _any_of(checks: list[Check]) -> Check:
    if len(checks) == 1:
        return checks[0]

    def check(value: Any) -> bool:
        for one in checks:  # noqa: SIM110
            if one(value):
                return True
        return False

    return check


def _late(node: Node) -> Check:
    return node.check if node.check is not _anything else lambda value: node.check(value)


def _metered(node: Node, fuel: list[int]) -> Check:
    def check(value: Any) -> bool:
        fuel[0] -= 1
        if fuel[0] < 0:
            raise Exhausted
        return node.check(value)

    return check


def _enum_check(options: tuple[Any, ...]) -> Check:
    if all(isinstance(option, str) for option in options):
        texts = frozenset(options)
        return lambda value: isinstance(value, str) and value in texts
    return lambda value: any(equal(value, option) for option in options)


def _object_check(node: Node, *, other: bool) -> Check:
    """Check an object's fields; `other` is the answer for what is no object."""
    required, patterns = node.required, node.patterns
    fields = {name: below.check for name, below in node.properties.items()}
    rest: Check | None = node.extra.check if node.extra is not None else None
    get = fields.get

    def check(value: Any) -> bool:
        if not isinstance(value, dict):
            return other
        for name in required:
            if name not in value:
                return False
        for name, item in value.items():
            test = get(name, rest)
            if test is not None and not test(item):
                return False
        return True

    def check_patterns(value: Any) -> bool:
        if not isinstance(value, dict):
            return other
        if any(name not in value for name in required):
            return False
        return all(below.check(item) for name, item in value.items() for below in node.of_property(name))

    return check_patterns if patterns else check


def _array_check(node: Node, *, other: bool) -> Check:
    """Check an array's items; `other` is the answer for what is no array."""
    first = [below.check for below in node.prefix]
    rest: Check | None = node.items.check if node.items is not None else None

    def check(value: Any) -> bool:
        if not isinstance(value, list):
            return other
        for test, item in zip(first, value, strict=False):
            if not test(item):
                return False
        if rest is None:
            return True
        for item in value[len(first) :] if first else value:  # noqa: SIM110
            if not rest(item):
                return False
        return True

    return check


def _size_check(kind: type, least: float, most: float) -> Check:
    return lambda value: not isinstance(value, kind) or least <= len(value) <= most


def _pattern_check(pattern: Pattern) -> Check:
    search = pattern.search
    return lambda value: not isinstance(value, str) or search(value.encode("utf-8", "surrogatepass")) is not None
