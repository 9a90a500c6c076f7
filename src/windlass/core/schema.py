"""JSON Schema for tools and structured output: checked, and mended where a model was almost right.

A schema is compiled once; what fits it passes in about a microsecond. What does not fit is repaired when nothing is
lost by it ("5" for an integer, a JSON text for an object, null for an optional field), else explained in words that a
model can act on. Nothing is fetched and no pattern from outside backtracks: see `core/_nodes` for what is checked.
"""

from __future__ import annotations

import copy
from typing import Any

from msgspec import Struct

from windlass.core._nodes import FUEL, Compiler, Exhausted
from windlass.core._repair import Repair

__all__ = [
    "Checked",
    "Validator",
    "coerce_and_validate",
    "compile_schema",
    "validate_output",
]

_TOO_MUCH = "The value is nested too deeply or too large to check"
_MAX_CACHED = 512


class Checked(Struct, frozen=True):
    """The outcome of a check: `args` is the value, mended at the fields `coercions` names; no `error` if it fits."""

    args: Any
    coercions: tuple[str, ...] = ()
    error: str | None = None


class Validator:
    """A compiled schema. `schema` is the document as given."""

    __slots__ = ("_check", "_fuel", "_root", "schema")

    def __init__(self, schema: dict[str, Any], *, lenient: bool = False) -> None:
        self.schema = schema
        # A private copy: the caller's dict may change, and its sharing of parts must not become ours.
        try:
            document = copy.deepcopy(schema)
        except RecursionError:
            document = schema
        compiler = Compiler(document, lenient=lenient)
        self._root, self._fuel = compiler.compile(), compiler.fuel
        self._check = self._root.check

    def check(self, value: Any, /) -> Checked:
        """Return the value as it is when it fits, mended when that loses nothing, or what is wrong with it.

        The value itself is never changed; `$` in `coercions` is the root. `error` lists the first few problems, as
        `Missing required field: f` and `Field a.b: expected integer, got "x"`.
        """
        self._fuel[0] = FUEL
        try:
            return Checked(value) if self._check(value) else self._repair(value)
        except (RecursionError, Exhausted):
            return Checked(value, (), _TOO_MUCH)

    def fits(self, value: Any, /) -> bool:
        """Tell whether the value fits as it is."""
        self._fuel[0] = FUEL
        try:
            return self._check(value)
        except (RecursionError, Exhausted):
            return False

    def _repair(self, value: Any) -> Checked:
        repair = Repair()
        mended = repair.mend(self._root, value)
        if self._check(mended):
            return Checked(mended, tuple(dict.fromkeys([path or "$" for path in repair.log])))
        return Checked(value, (), repair.explain(self._root, mended))


#: id of a schema -> (the schema, its validator): holding the schema keeps its id from being used again.
_compiled: dict[int, tuple[dict[str, Any], Validator]] = {}


def compile_schema(schema: dict[str, Any], *, lenient: bool = False) -> Validator:
    """Compile a JSON Schema.

    `lenient` skips patterns that cannot be matched safely here instead of refusing them: for schemas whose owner
    checks again (an MCP server). Raises ConfigError that names the place of what is broken.
    """
    return Validator(schema, lenient=lenient)


def coerce_and_validate(args: Any, schema: dict[str, Any] | Validator) -> Checked:
    """Check a tool's arguments against its schema: `Validator.check`, compiled once per schema object."""
    return _validator(schema).check(args)


def validate_output(value: Any, schema: dict[str, Any] | Validator) -> Checked:
    """Check a structured answer of any JSON type; `args` of the outcome is the answer."""
    return _validator(schema).check(value)


def _validator(schema: dict[str, Any] | Validator) -> Validator:
    if isinstance(schema, Validator):
        return schema
    known = _compiled.get(id(schema))
    if known is None:
        if len(_compiled) >= _MAX_CACHED:
            _compiled.clear()
        known = _compiled[id(schema)] = (schema, Validator(schema))
    return known[1]
