"""Conditions on metadata as SQL over SQLite's JSON functions: nothing that a caller writes becomes SQL text.

`{"lang": "en", "year": {"$gte": 2020, "$lt": 2025}, "$or": [{"kind": "note"}, {"tags": {"$contains": "urgent"}}]}`: all
keys must hold. Operators: $eq $ne $in $nin $gt $gte $lt $lte $exists $contains (a list has that element), and $and $or
$not around conditions. A key is one of the metadata's own, not of what is nested in it. Values are of one kind or never
equal: 1 is not true and not "1"; null also stands for a key that is not there. Texts compare by code points.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple, NoReturn

import msgspec

from windlass.core.errors import StoreError
from windlass.core.json import dumps_stored
from windlass.core.memory import Where

__all__ = ["KEY", "OPERATORS", "Condition", "where_sql"]

#: What a key of metadata may be: SQLite's paths have no way to write the rest, and `$` begins an operator.
KEY: Final = re.compile(r'[^"\\\x00-\x1f$][^"\\\x00-\x1f]{0,127}')
_COMPARE: Final = {"$gt": ">", "$gte": ">=", "$lt": "<", "$lte": "<="}
OPERATORS: Final = ("$eq", "$ne", "$in", "$nin", *_COMPARE, "$exists", "$contains")
_MAX_DEPTH: Final = 8
#: Conditions and values in all; SQLite takes 32766 parameters.
_MAX_VALUES: Final = 2000
#: SQLite nests expressions up to 1000 deep, and each AND or OR is a level.
_MAX_JOINED: Final = 500
_NUMBER: Final = "'integer', 'real'"
_TEXT: Final = "'text'"


class Condition(NamedTuple):
    """An SQL expression over the column `e.metadata` that is true or false, never NULL, and its parameters."""

    sql: str
    params: list[Any]


def where_sql(where: Where | None) -> Condition:
    """Return a condition on metadata as SQL. Raises StoreError for one that is malformed or too large."""
    if where is None:
        return Condition("1", [])
    out = _all_of(where, 1)
    if len(out.params) > _MAX_VALUES:
        _refuse(f"it has more than {_MAX_VALUES} values")
    return out


def _refuse(why: str, hint: str = "") -> NoReturn:
    raise StoreError(f"This condition on metadata cannot be used: {why}.", hint=hint)


def _joined(parts: Sequence[Condition], word: str) -> Condition:
    if len(parts) > _MAX_JOINED:
        _refuse(f"it has more than {_MAX_JOINED} conditions in one place")
    if not parts:
        return Condition("1" if word == "AND" else "0", [])
    sql = f" {word} ".join([part.sql for part in parts])
    return Condition(f"({sql})", [value for part in parts for value in part.params])


def _not(part: Condition) -> Condition:
    return Condition(f"(NOT {part.sql})", part.params)


def _all_of(where: Any, depth: int) -> Condition:
    if not isinstance(where, Mapping):
        _refuse(f"{where!r:.80} is no mapping")
    if depth > _MAX_DEPTH:
        _refuse(f"it is nested deeper than {_MAX_DEPTH}")
    return _joined([_one(key, value, depth) for key, value in where.items()], "AND")


def _one(key: Any, value: Any, depth: int) -> Condition:
    if key in ("$and", "$or"):
        if not isinstance(value, (list, tuple)) or not value:
            _refuse(f"{key} takes a list of conditions")
        return _joined([_all_of(each, depth + 1) for each in value], key[1:].upper())
    if key == "$not":
        return _not(_all_of(value, depth + 1))
    if not isinstance(key, str) or KEY.fullmatch(key) is None:
        _refuse(f"{key!r:.80} is neither a key nor $and, $or or $not")
    path = f'$."{_stored(key)}"'
    if not isinstance(value, Mapping):
        return _equal(path, value)
    if not value:
        _refuse(f"the condition on {key!r} is empty")
    return _joined([_operator(path, name, each) for name, each in value.items()], "AND")


def _operator(path: str, name: Any, value: Any) -> Condition:
    if name == "$eq":
        return _equal(path, value)
    if name == "$ne":
        return _not(_equal(path, value))
    if name in ("$in", "$nin"):
        if not isinstance(value, (list, tuple, set, frozenset)):
            _refuse(f"{name} takes a list")
        found = _joined([_equal(path, each) for each in value], "OR")
        return found if name == "$in" else _not(found)
    if name in _COMPARE:
        types, plain = _typed(value)
        if types not in (_NUMBER, _TEXT):
            _refuse(f"{name} compares numbers or texts, not {value!r:.80}")
        sql = f"(ifnull(json_type(e.metadata, ?), '') IN ({types}) AND json_extract(e.metadata, ?) {_COMPARE[name]} ?)"
        return Condition(sql, [path, path, *plain])
    if name == "$exists":
        if not isinstance(value, bool):
            _refuse("$exists takes true or false")
        return Condition(f"(json_type(e.metadata, ?) IS {'NOT ' if value else ''}NULL)", [path])
    if name == "$contains":
        types, plain = _typed(value)
        same = " AND j.atom = ?" if plain else ""
        each = f"SELECT 1 FROM json_each(e.metadata, ?) j WHERE j.type IN ({types}){same}"  # noqa: S608 - from above
        sql = f"(ifnull(json_type(e.metadata, ?), '') = 'array' AND EXISTS ({each}))"
        return Condition(sql, [path, path, *plain])
    _refuse(f"{name!r:.80} is no operator", f"Known: {', '.join(OPERATORS)}.")


def _equal(path: str, value: Any) -> Condition:
    types, plain = _typed(value)
    sql = f"ifnull(json_type(e.metadata, ?), 'null') IN ({types})"
    if not plain:
        return Condition(f"({sql})", [path])
    return Condition(f"({sql} AND json_extract(e.metadata, ?) = ?)", [path, path, *plain])


def _typed(value: Any) -> tuple[str, list[Any]]:
    """Return SQLite's names for the kind of a value, and the value where the kind alone does not say it."""
    if value is None:
        return "'null'", []
    if isinstance(value, bool):
        return ("'true'" if value else "'false'"), []
    if isinstance(value, int) and -(1 << 63) <= value < 1 << 63:
        return _NUMBER, [value]
    if isinstance(value, float) and math.isfinite(value):
        return _NUMBER, [value]
    if isinstance(value, str):
        return _TEXT, [_stored(value)]
    _refuse(f"{value!r:.80} is no text, number of 64 bits, truth value or null")


def _stored(text: str) -> str:
    """Return a text as it stands in stored JSON, where what UTF-8 cannot carry is escaped."""
    return msgspec.json.decode(dumps_stored(text), type=str)
