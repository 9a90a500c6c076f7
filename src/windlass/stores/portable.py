"""One SQL text for two databases: what may be written, how each is told it, and the cursor that a unit of work gets.

The subset. Statements: SELECT, VALUES, WITH, INSERT, UPDATE, DELETE, and in migrations CREATE, ALTER, DROP; one in a
call, `?` for each parameter. What follows behaves the same on SQLite (3.37 or newer) and on PostgreSQL:

- Types: INTEGER (64 bits; BIGINT on PostgreSQL), REAL (DOUBLE PRECISION), TEXT, BLOB (BYTEA). A flag is an INTEGER 0
  or 1 that is compared (`WHERE used = 1`). SQLite's tables are made STRICT, so both refuse a value of another type.
- Ids are ours: no autoincrement, no rowid, no default that calls a function. Columns are not named like a type.
- `INSERT … ON CONFLICT (key) DO NOTHING` or `DO UPDATE SET n = table.n + excluded.n`: in DO UPDATE the old value is
  written with its table's name. RETURNING works with `fetch`.
- A `?` that stands alone where nothing tells its type is cast: `CAST(? AS INTEGER) IS NULL`.
- Text is compared and ordered by its UTF-8 bytes. LIKE tells case and is always written with ESCAPE '!' or the like.
- ORDER BY a column that may be NULL says NULLS FIRST or NULLS LAST. GROUP BY names every plain column. Conditions are
  comparisons. Use CASE for the greater of two values.
- No PRAGMA, OR REPLACE, LIMIT -1, X'…', E'…', $$…$$, JSON functions, dates or row locks.

Results hold int, float, str, bytes and None only; a sum of INTEGER is an int. Parameters may hold any text: what UTF-8
or PostgreSQL cannot carry (lone surrogates, NUL) is escaped where it is stored and comes back as it was.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, Literal, NamedTuple, TypeVar

from windlass.core.errors import SessionVersionError, StoreError, WindlassError

__all__ = ["ROOMS", "Cursor", "Dialect", "Statement", "parse", "run_steps"]

Dialect = Literal["sqlite", "postgresql"]
T = TypeVar("T")

_TOKEN = re.compile(
    r"""'(?:[^']|'')*' | "(?:[^"]|"")*" | (?P<comment>--[^\n]*|/\*.*?\*/)
    | (?P<mark>\?) | (?P<end>;) | (?P<word>[A-Za-z_]\w*)""",
    re.DOTALL | re.VERBOSE,
)
_TYPES = {"INTEGER": "BIGINT", "INT": "BIGINT", "BLOB": "BYTEA", "REAL": "DOUBLE PRECISION"}
_QUERIES = frozenset({"SELECT", "VALUES"})
_WRITES = frozenset({"INSERT", "UPDATE", "DELETE"})
_SHAPES = frozenset({"CREATE", "ALTER", "DROP"})
_ALLOWED = _QUERIES | _WRITES | _SHAPES | {"WITH"}


class Statement(NamedTuple):
    """One statement as each database is told it; `reads` is False for what may change anything."""

    sqlite: str
    postgresql: str
    reads: bool
    parameters: int


@lru_cache(maxsize=1024)
def parse(sql: str) -> Statement:
    """Return the two texts of one statement. Raises ValueError when it is none of the subset."""
    parts = _split(sql)
    if len(parts) != 1:
        raise ValueError(f"expected one SQL statement, not {len(parts)}: {sql:.80}")
    text = parts[0]
    words = [match["word"].upper() for match in _TOKEN.finditer(text) if match["word"]]
    first = words[0] if words else ""
    if first not in _ALLOWED:
        raise ValueError(f"{first or 'this'} is not in the SQL that both databases speak: {text:.80}")
    marks = 0

    def told(match: re.Match[str]) -> str:
        nonlocal marks
        if match["mark"]:
            marks += 1
            return f"${marks}"
        word = (match["word"] or "").upper()
        if word == "TEXT" and first in _SHAPES:
            return 'TEXT COLLATE "C"'
        return _TYPES.get(word, match[0])

    postgresql = _TOKEN.sub(told, text)
    strict = "\nSTRICT" if words[:2] == ["CREATE", "TABLE"] else ""
    reads = first in _QUERIES or (first == "WITH" and not _WRITES.intersection(words))
    return Statement(text + strict, postgresql, reads, marks)


def _split(sql: str) -> list[str]:
    """Return the statements of a text, parted at each ';' outside quotes and comments, less those that say nothing."""
    ends = [match.start() for match in _TOKEN.finditer(sql) if match["end"]]
    parts = [sql[start:end].strip() for start, end in zip([0, *[at + 1 for at in ends]], [*ends, None], strict=True)]
    return [part for part in parts if _TOKEN.sub(_without, part).strip()]


def _without(match: re.Match[str]) -> str:
    return "" if match["comment"] else match[0]


# Text. U+FDD0 is a noncharacter, which Unicode leaves to programs for their own use.

_ESCAPE = "\ufdd0"
_UNSAFE = re.compile("[\0\ufdd0\ud800-\udfff]")
_ESCAPED = re.compile("\ufdd0(0|1|d[89a-f][0-9a-f]{2})")
_INT64 = range(-(1 << 63), 1 << 63)


def _escape(match: re.Match[str]) -> str:
    found = match[0]
    return _ESCAPE + ("0" if found == "\0" else "1" if found == _ESCAPE else f"{ord(found):x}")


def _unescape(match: re.Match[str]) -> str:
    code = match[1]
    return "\0" if code == "0" else _ESCAPE if code == "1" else chr(int(code, 16))


_PLAIN = frozenset((int, str, bytes, type(None)))


def _bind(statement: Statement, params: Sequence[Any]) -> tuple[Any, ...]:
    """Return the parameters as both databases take them. Raises ValueError naming one that neither can hold."""
    if len(params) != statement.parameters:
        raise ValueError(f"the statement has {statement.parameters} '?', and {len(params)} parameters were given")
    if _PLAIN.issuperset(map(type, params)):
        # Most rows hold nothing that has to be looked at one by one.
        text = "".join([value for value in params if type(value) is str])
        whole = [value for value in params if type(value) is int]
        if text.isascii() and "\0" not in text and (not whole or (min(whole) in _INT64 and max(whole) in _INT64)):
            return tuple(params)
    return tuple([_value(value, place) for place, value in enumerate(params)])


def bind_all(statement: Statement, rows: Sequence[Sequence[Any]]) -> list[tuple[Any, ...]]:
    """Return `bind` of each row."""
    return [_bind(statement, row) for row in rows]


def _value(value: Any, place: int) -> Any:
    if value is None or type(value) is bytes:
        return value
    if isinstance(value, str):
        text = str.__str__(value)
        if text.isascii() and "\0" not in text:
            return text
        return _UNSAFE.sub(_escape, text)
    if isinstance(value, int):
        number = int(value)  # a range looks an IntEnum up one by one
        if number not in _INT64:
            raise ValueError(f"parameter {place} is an integer of more than 64 bits")
        return number
    if isinstance(value, float):
        if value != value:
            raise ValueError(f"parameter {place} is not a number (NaN)")
        return float(value)
    if isinstance(value, (bytearray, memoryview)):
        return bytes(value)
    raise ValueError(f"parameter {place} is a {type(value).__name__}, not int, float, str, bytes or None")


def _plain(rows: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """Return rows with their texts as they were given."""
    return [tuple([_text(value) for value in row]) if any(map(_is_escaped, row)) else row for row in rows]


def _is_escaped(value: Any) -> bool:
    return isinstance(value, str) and _ESCAPE in value


def _text(value: Any) -> Any:
    return _ESCAPED.sub(_unescape, value) if isinstance(value, str) else value


class Cursor(ABC):
    """Run statements inside one unit of work, in the thread that runs the work; of no use after it.

    After a statement failed, every later one raises StoreError, and nothing of the unit is kept, even if the work goes
    on as if nothing were wrong.
    """

    dialect: Dialect
    #: True when an earlier try of this work may have been committed: only for work that said it is idempotent.
    repeated = False

    def __init__(self) -> None:
        #: What the database raised, for whoever runs the unit.
        self.failure: Exception | None = None

    def execute(self, sql: str, params: Sequence[Any] = ()) -> int:
        """Run a statement and return how many rows it changed. Raises StoreError, StoreConflict, ValueError."""
        statement = parse(sql)
        return self._guarded(self._execute, statement, _bind(statement, params))

    def execute_many(self, sql: str, rows: Sequence[Sequence[Any]]) -> None:
        """Run a statement once for each row of parameters."""
        statement = parse(sql)
        self._guarded(self._execute_many, statement, [_bind(statement, row) for row in rows])

    def fetch(self, sql: str, params: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Run a query, or a change with RETURNING, and return its rows."""
        statement = parse(sql)
        return _plain(self._guarded(self._fetch, statement, _bind(statement, params)))

    def _guarded(self, function: Callable[[Statement, Any], T], statement: Statement, values: Any) -> T:
        if self.failure is not None:
            raise StoreError("An earlier statement of this unit of work failed; nothing of it is kept.")
        try:
            return function(statement, values)
        except Exception as error:
            self.failure = error
            explained = self.explain(error)
            raise explained from explained.__cause__

    @abstractmethod
    def explain(self, error: Exception) -> WindlassError:
        """Return the typed error for what the database raised."""

    @abstractmethod
    def _execute(self, statement: Statement, values: tuple[Any, ...]) -> int: ...
    @abstractmethod
    def _execute_many(self, statement: Statement, values: list[tuple[Any, ...]]) -> None: ...
    @abstractmethod
    def _fetch(self, statement: Statement, values: tuple[Any, ...]) -> list[tuple[Any, ...]]: ...


#: Where the versions of all rooms of a database are kept.
ROOMS = "CREATE TABLE IF NOT EXISTS windlass_rooms(room TEXT PRIMARY KEY, version INTEGER NOT NULL)"


def run_steps(
    cursor: Cursor, room: str, steps: Sequence[str], where: str, back_up: Callable[[int], None] | None = None
) -> None:
    """Run those steps of a room that its version does not count yet, with nobody else migrating meanwhile.

    `back_up` is called before the first of them with the version that there was, unless that is 0. Raises
    SessionVersionError when a newer program has been here.
    """
    found = cursor.fetch("SELECT version FROM windlass_rooms WHERE room = ?", (room,))
    version: int = found[0][0] if found else 0
    if version > len(steps):
        raise SessionVersionError(
            f"The {room} tables in {where} have version {version}; this version of windlass reads up to {len(steps)}.",
            hint="Upgrade windlass. Nothing was changed.",
        )
    if version == len(steps):
        return
    if version and back_up is not None:
        back_up(version)
    for text in [text for step in steps[version:] for text in _split(step)]:
        cursor.execute(text)
    cursor.execute(
        "INSERT INTO windlass_rooms(room, version) VALUES (?, ?) "
        "ON CONFLICT (room) DO UPDATE SET version = excluded.version",
        (room, len(steps)),
    )
