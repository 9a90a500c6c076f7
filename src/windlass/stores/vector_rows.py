"""The tables of a file of vectors, and what is written to them and read from them inside one transaction.

`spaces` numbers each namespace of each tenant. An entry's number is its space's, shifted, and a count that never goes
back: a space's rows lie together, and new numbers are larger than all before. Vectors have a table of their own, so
that conditions on metadata need not read them. Each space has a full-text index of its own, without a copy of the
texts.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, TypeAlias

from windlass.core import clock
from windlass.core.errors import ConfigError, StoreConflict, StoreError, WindlassError
from windlass.core.json import dumps_stored, loads_stored
from windlass.core.memory import Entry
from windlass.stores import schema
from windlass.stores.lanes import FileKind
from windlass.stores.vector_filter import KEY, Condition
from windlass.stores.vector_search import as_rows, from_blob
from windlass.stores.vector_words import TOKENIZER, indexed

__all__ = [
    "APPLICATION_ID",
    "FILES",
    "MAX_BATCH",
    "Backend",
    "Key",
    "Row",
    "Space",
    "checkpoint",
    "delete_entries",
    "entries_of",
    "find_space",
    "key_of",
    "rows_of",
    "text_of",
    "upsert_rows",
]

_log = logging.getLogger("windlass.stores")
APPLICATION_ID: Final = 0x57495645  # "WIVE"
MAX_BATCH: Final = 10_000
MAX_TEXT: Final = 1 << 20
MAX_METADATA: Final = 64 << 10
_MAX_NAME: Final = 512
#: Parameters of one statement; SQLite takes 32766.
_AT_ONCE: Final = 10_000
Backend = Literal["numpy", "sqlite-vec"]
Stored: TypeAlias = str | bytes
#: Tenant and namespace as they are kept.
Key: TypeAlias = tuple[Stored, Stored]

_SHAPE: Final = schema.FileFormat(
    APPLICATION_ID,
    (
        "CREATE TABLE spaces(no INTEGER PRIMARY KEY AUTOINCREMENT, tenant TEXT NOT NULL, name TEXT NOT NULL, "
        "dimensions INTEGER NOT NULL, model TEXT NOT NULL, version INTEGER NOT NULL, last INTEGER NOT NULL, "
        "vectors INTEGER NOT NULL, UNIQUE(tenant, name))",
        "CREATE TABLE entries(no INTEGER PRIMARY KEY, space INTEGER NOT NULL, id TEXT NOT NULL, created INTEGER "
        "NOT NULL, updated INTEGER NOT NULL, metadata TEXT NOT NULL, text TEXT NOT NULL, UNIQUE(space, id))",
        "CREATE TABLE vectors(no INTEGER PRIMARY KEY, space INTEGER NOT NULL, version INTEGER NOT NULL, "
        "vector BLOB NOT NULL)",
        "CREATE INDEX changes ON vectors(space, version)",
    ),
)


def _open(path: Path, *, synchronous: str, busy_timeout: float) -> sqlite3.Connection:
    return schema.open_file(path, _SHAPE, synchronous=synchronous, busy_timeout=busy_timeout)


def _open_with_vec(path: Path, *, synchronous: str, busy_timeout: float) -> sqlite3.Connection:
    conn = _open(path, synchronous=synchronous, busy_timeout=busy_timeout)
    load_vec(conn)
    return conn


def load_vec(conn: sqlite3.Connection) -> None:
    """Load the extension sqlite-vec into a connection. Raises ConfigError that says what is missing."""
    if not hasattr(conn, "enable_load_extension"):
        raise ConfigError(
            "This Python's sqlite3 was built without extensions, so sqlite-vec cannot be loaded.",
            hint="Use backend='numpy', or a Python built with --enable-loadable-sqlite-extensions.",
        )
    try:
        import sqlite_vec
    except ModuleNotFoundError as error:
        raise ConfigError("sqlite-vec is not installed.", hint="pip install 'windlass[vectors]'") from error
    conn.enable_load_extension(True)
    try:
        sqlite_vec.load(conn)
    except sqlite3.Error as error:
        raise ConfigError(f"sqlite-vec could not be loaded: {error}.", hint="Use backend='numpy'.") from error
    finally:
        conn.enable_load_extension(False)


def _explain(error: BaseException, path: Path) -> WindlassError:
    return schema.store_error(error, path, "Vector store")


#: How a file is opened for each backend; it is the same file.
FILES: Final[dict[Backend, FileKind]] = {
    "numpy": FileKind(_open, _explain),
    "sqlite-vec": FileKind(_open_with_vec, _explain),
}


class Space(NamedTuple):
    """A namespace of a tenant: `dimensions` 0 before its first vector, `vectors` how many there are."""

    no: int
    dimensions: int
    model: str
    version: int
    last: int
    vectors: int

    @property
    def range(self) -> tuple[int, int]:
        """The first and the last number its entries may have."""
        return self.no << 32, (self.no + 1 << 32) - 1

    @property
    def words(self) -> str:
        """The name of its full-text index."""
        return f"words_{self.no}"


class Row(NamedTuple):
    """An entry that was checked, as it is kept; `vector` is None where it has none."""

    id: Stored
    text: str
    metadata: str
    vector: bytes | None
    dimensions: int


def key_of(tenant: str, namespace: str) -> Key:
    """Return tenant and namespace as they are kept. Raises StoreError for names that are too long."""
    if max(len(tenant), len(namespace)) > _MAX_NAME:
        raise StoreError(f"A tenant or namespace has more than {_MAX_NAME} characters.")
    return stored(tenant), stored(namespace)


def stored(text: str) -> Stored:
    """Return a text as SQLite can hold it: one that UTF-8 cannot carry (lone surrogates) as bytes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogatepass")
    return text


def text_of(value: Stored) -> str:
    """Return what `stored` was given."""
    return value.decode("utf-8", "surrogatepass") if isinstance(value, bytes) else value


def rows_of(entries: Sequence[Entry]) -> list[Row]:
    """Return entries as rows. Raises StoreError for one that cannot be kept, and says which."""
    if len(entries) > MAX_BATCH:
        raise StoreError(f"{len(entries)} entries at once are more than {MAX_BATCH}.", hint="Write several batches.")
    with_vector = [entry.vector for entry in entries if entry.vector is not None]
    packed = iter(as_rows(with_vector)) if with_vector else iter(())
    out: list[Row] = []
    for entry in entries:
        if not 1 <= len(entry.id) <= _MAX_NAME:
            raise StoreError(f"The id {entry.id!r:.80} has not 1 to {_MAX_NAME} characters.")
        if len(entry.text.encode("utf-8", "surrogatepass")) > MAX_TEXT:
            raise StoreError(f"The text of {entry.id!r:.80} has more than {MAX_TEXT} bytes.", hint="Cut it in pieces.")
        vector = None if entry.vector is None else next(packed)
        blob, size = (None, 0) if vector is None else (vector.tobytes(), len(vector))
        out.append(Row(stored(entry.id), entry.text, _metadata(entry), blob, size))
    return out


def _metadata(entry: Entry) -> str:
    for key in entry.metadata:
        if KEY.fullmatch(key) is None:
            raise StoreError(
                f"The metadata of {entry.id!r:.80} has a key {key!r:.80}.",
                hint='A key has 1 to 128 characters, without ", \\ and control characters, and does not begin with $.',
            )
    try:
        data = dumps_stored(dict(entry.metadata))
    except (TypeError, ValueError, RecursionError) as error:
        raise StoreError(f"The metadata of {entry.id!r:.80} is not JSON: {error}.") from None
    if len(data) > MAX_METADATA:
        raise StoreError(f"The metadata of {entry.id!r:.80} has more than {MAX_METADATA} bytes.")
    return data.decode()


# What follows runs in a lane's thread, inside its transaction. StoreError is raised before the first write only.


def find_space(conn: sqlite3.Connection, key: Key) -> Space | None:
    """Return a namespace, None where it has no entries."""
    columns = "no, dimensions, model, version, last, vectors"
    found = conn.execute(f"SELECT {columns} FROM spaces WHERE tenant = ? AND name = ?", key).fetchone()  # noqa: S608
    return None if found is None else Space(*found)


def upsert_rows(key: Key, model: str, rows: Sequence[Row], replace: bool, conn: sqlite3.Connection) -> None:
    """Keep rows; without `replace` none may be there. Raises StoreError for another model or other dimensions."""
    space = find_space(conn, key)
    dimensions = next((row.dimensions for row in rows if row.dimensions), 0)
    if space is not None:
        _check_space(space, dimensions, model)
    if not replace:
        _check_new(conn, space, rows)
    if space is None:
        values = (*key, dimensions, model)
        sql = "INSERT INTO spaces(tenant, name, dimensions, model, version, last, vectors) VALUES (?, ?, ?, ?, 0, 0, 0)"
        number = conn.execute(sql, values).lastrowid
        assert number is not None
        space = Space(number, dimensions, model, 0, 0, 0)
        conn.execute(f"CREATE VIRTUAL TABLE {space.words} USING fts5(text, content = '', tokenize = '{TOKENIZER}')")
    now, version = clock.now_ns(), space.version + 1
    last, count = space.last, space.vectors
    for row in rows:
        found = conn.execute("SELECT no, text FROM entries WHERE space = ? AND id = ?", (space.no, row.id)).fetchone()
        if found is None:
            last += 1
            no = space.no << 32 | last
            values = (no, space.no, row.id, now, now, row.metadata, stored(row.text))
            conn.execute("INSERT INTO entries VALUES (?, ?, ?, ?, ?, ?, ?)", values)
        else:
            no = found[0]
            _forget_words(conn, space, no, text_of(found[1]))
            count -= conn.execute("DELETE FROM vectors WHERE no = ?", (no,)).rowcount
            changed = (now, row.metadata, stored(row.text), no)
            conn.execute("UPDATE entries SET updated = ?, metadata = ?, text = ? WHERE no = ?", changed)
        conn.execute(f"INSERT INTO {space.words}(rowid, text) VALUES (?, ?)", (no, indexed(row.text)))  # noqa: S608
        if row.vector is not None:
            conn.execute("INSERT INTO vectors VALUES (?, ?, ?, ?)", (no, space.no, version, row.vector))
            count += 1
    conn.execute(
        "UPDATE spaces SET dimensions = ?, model = ?, version = ?, last = ?, vectors = ? WHERE no = ?",
        (space.dimensions or dimensions, space.model or model, version, last, count, space.no),
    )


def _check_space(space: Space, dimensions: int, model: str) -> None:
    if dimensions and space.dimensions and dimensions != space.dimensions:
        raise StoreError(
            f"The vectors have {dimensions} numbers; those of this namespace have {space.dimensions}.",
            hint="Use the model that made them, or another namespace.",
        )
    if model and space.model and model != space.model:
        raise StoreError(
            f"The vectors are of {model}; those of this namespace are of {space.model}, and cannot be compared.",
            hint="Use that model, or another namespace.",
        )


def _check_new(conn: sqlite3.Connection, space: Space | None, rows: Sequence[Row]) -> None:
    ids = [row.id for row in rows]
    twice = (
        next((id_ for at, id_ in enumerate(ids) if id_ in set(ids[:at])), None) if len(set(ids)) < len(ids) else None
    )
    if twice is None and space is not None:
        for id_ in ids:
            if conn.execute("SELECT 1 FROM entries WHERE space = ? AND id = ?", (space.no, id_)).fetchone():
                twice = id_
                break
    if twice is not None:
        raise StoreConflict(f"An entry {text_of(twice)!r:.80} is there already; nothing was kept.", hint="Use upsert.")


def _forget_words(conn: sqlite3.Connection, space: Space, no: int, text: str) -> None:
    sql = f"INSERT INTO {space.words}({space.words}, rowid, text) VALUES ('delete', ?, ?)"  # noqa: S608
    conn.execute(sql, (no, indexed(text)))


def delete_entries(
    key: Key, ids: Sequence[str] | None, condition: Condition | None, conn: sqlite3.Connection
) -> tuple[int, int]:
    """Delete entries by ids, a condition, both, or all.

    Returns how many they were, and the number of their space where none is left in it, else 0.
    """
    space = find_space(conn, key)
    if space is None:
        return 0, 0
    sql, params = "SELECT e.no, e.text FROM entries e WHERE e.no BETWEEN ? AND ?", [*space.range]
    if condition is not None:
        sql, params = f"{sql} AND {condition.sql}", [*params, *condition.params]
    if ids is None:
        found = conn.execute(sql, params).fetchall()
    else:
        one = conn.execute
        found = [
            row
            for id_ in dict.fromkeys(ids)
            for row in one(f"{sql} AND e.id = ? AND e.space = ?", (*params, stored(id_), space.no))
        ]
    if not found:
        return 0, 0
    (kept,) = conn.execute("SELECT count(*) FROM entries WHERE no BETWEEN ? AND ?", space.range).fetchone()
    if kept == len(found):
        conn.execute(f"DROP TABLE {space.words}")
        for table in ("entries", "vectors"):
            conn.execute(f"DELETE FROM {table} WHERE no BETWEEN ? AND ?", space.range)  # noqa: S608
        conn.execute("DELETE FROM spaces WHERE no = ?", (space.no,))
        return len(found), space.no
    gone = 0
    for no, text in found:
        _forget_words(conn, space, no, text_of(text))
        conn.execute("DELETE FROM entries WHERE no = ?", (no,))
        gone += conn.execute("DELETE FROM vectors WHERE no = ?", (no,)).rowcount
    # A deleted word stays in the index until it is written anew (fts5.html, 6.8).
    conn.execute(f"INSERT INTO {space.words}({space.words}) VALUES ('optimize')")  # noqa: S608
    conn.execute("UPDATE spaces SET version = version + 1, vectors = vectors - ? WHERE no = ?", (gone, space.no))
    return len(found), 0


_ENTRY: Final = """SELECT e.id, e.text, v.vector, e.metadata, e.created, e.updated
    FROM entries e LEFT JOIN vectors v ON v.no = e.no"""


def entries_of(conn: sqlite3.Connection, rest: str, params: Sequence[Any]) -> list[Entry]:
    """Return the entries that the rest of a query (`WHERE ...`) finds, with their vectors."""
    return [
        Entry(
            id=text_of(id_),
            text=text_of(text),
            vector=None if blob is None else tuple(from_blob(blob).tolist()),
            metadata=metadata_of(metadata),
            created=created,
            updated=updated,
        )
        for id_, text, blob, metadata, created, updated in conn.execute(f"{_ENTRY} {rest}", params)
    ]


def metadata_of(kept: str) -> Mapping[str, Any]:
    """Return kept metadata as data."""
    return loads_stored(kept.encode())


def checkpoint(path: Path, busy_timeout: float) -> None:
    """Write the log into the file and empty it, waiting so many seconds for readers. Blocking; warns where it fails."""
    try:
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=rw", uri=True, timeout=busy_timeout)) as conn:
            busy = conn.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
    except sqlite3.Error as error:
        busy = error
    if busy:
        _log.warning("vector store %s: its log still holds what was deleted (%s)", path, busy)
