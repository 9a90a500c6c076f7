"""Keep texts with their vectors in one SQLite file, and find them by vector, by words, or by both.

Searches by vector are exact: every vector is compared. Searches by words are BM25 over an index of each namespace's
own, so that neither hits nor scores tell of another tenant. The vectors in memory are brought up to date by the
namespace's version in the file, within the snapshot that is searched: writes of other processes count at once.
"""

from __future__ import annotations

import sqlite3
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Final

from windlass.core.errors import ConfigError, StoreError
from windlass.core.memory import Entry, Hit, Where
from windlass.core.threads import run_in_thread
from windlass.stores.lanes import FileUse
from windlass.stores.vector_filter import Condition, where_sql
from windlass.stores.vector_rows import (
    FILES,
    Backend,
    Key,
    Row,
    Space,
    checkpoint,
    delete_entries,
    entries_of,
    find_space,
    key_of,
    load_vec,
    metadata_of,
    rows_of,
    stored,
    text_of,
    upsert_rows,
)
from windlass.stores.vector_search import METRICS, Floats, Matrix, Metric, Nearest, as_row, blocks, numbers, scan
from windlass.stores.vector_words import query_of

__all__ = ["MAX_LIMIT", "Backend", "VectorStore"]

#: Hits of one search.
MAX_LIMIT: Final = 1000
#: Entries whose rows are checked and packed in a thread.
_MANY: Final = 32
#: The constant of reciprocal rank fusion (Cormack, Clarke and Buettcher, SIGIR 2009), and how deep each list goes.
_RANK: Final = 60
_DEPTH: Final = 100
#: How sqlite-vec names the metrics it has, and how many more than asked for are compared again with longer floats.
_IN_FILE: Final = {"cosine": "vec_distance_cosine", "l2": "vec_distance_L2"}
_SPARE: Final = 64


class VectorStore:
    """Keep entries in the SQLite file at `path` (made at the first call, mode 0600), by the `Vectors` port.

    A namespace of a tenant begins with its first entry and ends with its last; the first vector sets its dimensions,
    the first `model` its model. `metric` says what is nearest: the cosine, the inner product `dot`, or the Euclidean
    distance `l2` (its scores are negative distances). `backend` "numpy" keeps the vectors of the namespaces last
    searched in memory, up to `cache_bytes`; a larger one is read from the file for each search. "sqlite-vec" lets
    SQLite's extension compare them in the file and keeps none in memory. `synchronous` NORMAL survives kill -9, FULL a
    power cut too. `busy_timeout`, in seconds, bounds the wait for another process's write lock. May be used from
    several event loops, threads and processes.

    Every call raises StoreError: for entries, vectors and conditions that cannot be kept or used, for a file that
    cannot be read or written, and after `close`. The constructor raises ConfigError for options that do not fit, and
    where sqlite-vec is asked for and cannot be loaded.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        metric: Metric = "cosine",
        backend: Backend = "numpy",
        synchronous: str = "NORMAL",
        busy_timeout: float = 5.0,
        cache_bytes: int = 1 << 30,
    ) -> None:
        if str(path) in ("", ":memory:"):
            raise ConfigError("VectorStore needs the path of a file.")
        for name, value, known in (
            ("metric", metric, METRICS),
            ("backend", backend, tuple(FILES)),
            ("synchronous", synchronous, ("NORMAL", "FULL", "EXTRA")),
        ):
            if value not in known:
                raise ConfigError(f"{name} is {value!r}.", hint=f"Use {', '.join(known)}.")
        if backend == "sqlite-vec":
            if metric not in _IN_FILE:
                raise ConfigError(f"sqlite-vec has no metric {metric!r}.", hint="Use backend='numpy'.")
            with sqlite3.connect(":memory:") as conn:
                load_vec(conn)
            conn.close()
        #: The file, absolute, symbolic links resolved.
        self.path = Path(path).expanduser().resolve()
        self.metric: Metric = metric
        self.backend: Backend = backend
        self._cache_bytes, self._busy_timeout = cache_bytes, busy_timeout
        self._use = FileUse(self.path, synchronous, busy_timeout, FILES[backend], "vector store")
        self._cache: OrderedDict[int, Matrix] = OrderedDict()

    # -- writing ---------------------------------------------------------------------------------------------------

    async def upsert(self, entries: Sequence[Entry], *, namespace: str = "", tenant: str = "", model: str = "") -> None:
        """Keep entries, all or none, in place of what has the same id; at most 10,000 at once."""
        await self._write(entries, key_of(tenant, namespace), model, replace=True)

    async def add(self, entries: Sequence[Entry], *, namespace: str = "", tenant: str = "", model: str = "") -> None:
        """Keep new entries, all or none. Raises StoreConflict when an id is there already."""
        await self._write(entries, key_of(tenant, namespace), model, replace=False)

    async def _write(self, entries: Sequence[Entry], key: Key, model: str, *, replace: bool) -> None:
        entries = tuple(entries)
        rows: list[Row] = rows_of(entries) if len(entries) < _MANY else await run_in_thread(rows_of, entries)
        if rows:
            await self._use.lanes().writer.submit(partial(upsert_rows, key, model, rows, replace))

    async def delete(
        self, ids: Sequence[str] | None = None, *, where: Where | None = None, namespace: str = "", tenant: str = ""
    ) -> int:
        """Delete entries by their ids, by a condition, or by both; without either the whole namespace.

        Returns how many there were. Their words, vectors and texts are overwritten in the file, and its log is emptied
        once no reader needs it. On a namespace of 100,000 entries this takes about a second.
        """
        condition = None if where is None else where_sql(where)
        work = partial(delete_entries, key_of(tenant, namespace), _ids(ids), condition)
        lanes = self._use.lanes()
        count, emptied = await lanes.writer.submit(work)
        if emptied:
            await lanes.reader.submit(partial(self._forget, emptied))
        if count:
            await run_in_thread(checkpoint, self.path, self._busy_timeout)
        return count

    # -- reading ---------------------------------------------------------------------------------------------------

    async def get(self, ids: Sequence[str], *, namespace: str = "", tenant: str = "") -> list[Entry]:
        """Return the entries of these ids that are there, in the order asked for, with their vectors."""
        work = partial(_get, key_of(tenant, namespace), _ids(ids) or ())
        return await self._use.lanes().reader.submit(work)

    async def list(
        self, *, where: Where | None = None, limit: int = 100, offset: int = 0, namespace: str = "", tenant: str = ""
    ) -> list[Entry]:
        """Return up to `limit` (at most 1000) entries, the newest first, with their vectors."""
        work = partial(_list, key_of(tenant, namespace), where_sql(where), _bounded(limit), max(offset, 0))
        return await self._use.lanes().reader.submit(work)

    async def count(self, *, where: Where | None = None, namespace: str = "", tenant: str = "") -> int:
        """Return how many entries there are that fulfil a condition."""
        return await self._use.lanes().reader.submit(partial(_count, key_of(tenant, namespace), where_sql(where)))

    async def namespaces(self, *, tenant: str = "") -> dict[str, int]:
        """Return the namespaces of a tenant with how many entries each has, sorted by name."""
        return await self._use.lanes().reader.submit(partial(_namespaces, key_of(tenant, "")[0]))

    async def search(
        self,
        vector: Sequence[float] | None = None,
        text: str = "",
        *,
        limit: int = 10,
        where: Where | None = None,
        namespace: str = "",
        tenant: str = "",
    ) -> list[Hit]:
        """Return up to `limit` (at most 1000) best entries: nearest to `vector`, best for the words of `text`, or both.

        A search by vector finds entries that have one. One by words finds those that have any of the words, the rarer
        and more of them the better (BM25); nothing in `text` is an operator. What the two find is joined by reciprocal
        rank fusion. Of equals the older comes first.
        """
        query = None if vector is None else as_row(vector)
        if query is None and not text:
            raise StoreError("A search needs a vector or a text.")
        condition = None if where is None else where_sql(where)
        work = partial(self._search, key_of(tenant, namespace), query, query_of(text), _bounded(limit), condition)
        return await self._use.lanes().reader.submit(work)

    async def check(self) -> list[str]:
        """Read the whole file and return what is wrong with it (SQLite's integrity_check), [] when it is sound."""
        return await self._use.lanes().reader.submit(_integrity)

    async def close(self) -> None:
        """Give the file up; the last user of the process leaves one checkpointed file."""
        await self._use.close()
        self._cache.clear()

    # -- in the reader's thread, inside one snapshot ---------------------------------------------------------------

    def _forget(self, number: int, conn: sqlite3.Connection) -> None:
        del conn
        self._cache.pop(number, None)

    def _search(
        self,
        key: Key,
        query: Floats | None,
        words: str,
        limit: int,
        condition: Condition | None,
        conn: sqlite3.Connection,
    ) -> list[Hit]:
        space = find_space(conn, key)
        if space is None or not limit:
            return []
        depth = max(_DEPTH, 4 * limit) if query is not None and words else limit
        near: list[Nearest] = []
        if query is not None and space.vectors:
            if len(query) != space.dimensions:
                raise StoreError(
                    f"The vector has {len(query)} numbers; those of this namespace have {space.dimensions}.",
                    hint="Ask with the model that made them.",
                )
            near = self._near(conn, space, query, depth, condition)
        said = _by_words(conn, space, words, depth, condition) if words else []
        if query is None or not words:
            return _hits(conn, near or said, near, said)
        best = _fused(near, said)[:limit]
        if space.vectors and (left := {each.no for each in best} - {each.no for each in near}):
            marks = ", ".join("?" * len(left))
            found = conn.execute(f"SELECT no, vector FROM vectors WHERE no IN ({marks})", tuple(left))  # noqa: S608
            near += scan(found, query, len(left), self.metric)
        return _hits(conn, best, near, said)

    def _near(
        self, conn: sqlite3.Connection, space: Space, query: Floats, limit: int, condition: Condition | None
    ) -> list[Nearest]:
        tables, test, params = "vectors v", "v.no BETWEEN ? AND ?", [*space.range]
        if condition is not None:
            tables, test = "entries e JOIN vectors v ON v.no = e.no", f"e.no BETWEEN ? AND ? AND {condition.sql}"
            params += condition.params
        if self.backend == "sqlite-vec":
            # Cosine with a zero vector is NULL.
            distance = f"coalesce({_IN_FILE[self.metric]}(v.vector, ?), 1)"
            sql = f"SELECT v.no, v.vector FROM {tables} WHERE {test} ORDER BY {distance}, v.no LIMIT ?"  # noqa: S608
            found = conn.execute(sql, (*params, query.tobytes(), limit + _SPARE))
            return scan(found, query, limit, self.metric)
        matrix = self._matrix(conn, space)
        if matrix is None:
            sql = f"SELECT v.no, v.vector FROM {tables} WHERE {test}"  # noqa: S608
            return scan(conn.execute(sql, params), query, limit, self.metric)
        if condition is None:
            return matrix.nearest(query, limit, self.metric)
        allowed = numbers(conn.execute(f"SELECT e.no FROM entries e WHERE {test} ORDER BY e.no", params))  # noqa: S608
        return matrix.nearest(query, limit, self.metric, allowed)

    def _matrix(self, conn: sqlite3.Connection, space: Space) -> Matrix | None:
        """Return the vectors of a namespace, brought up to this snapshot; None where they are too large to keep."""
        if 5 * space.vectors * space.dimensions > self._cache_bytes:  # four bytes each, and some more
            self._cache.pop(space.no, None)
            return None
        matrix = self._cache.get(space.no)
        if matrix is None:
            matrix = Matrix(space.dimensions, space.vectors)
        if matrix.version != space.version:
            if matrix.version < 0:
                sql, params = "SELECT no, vector FROM vectors WHERE no BETWEEN ? AND ? ORDER BY no", space.range
            else:
                sql = "SELECT no, vector FROM vectors WHERE space = ? AND version > ? ORDER BY no"
                params = (space.no, matrix.version)
            for nos, rows in blocks(conn.execute(sql, params), space.dimensions):
                matrix.put(nos, rows)
            if matrix.count != space.vectors:
                sql = "SELECT no FROM vectors WHERE space = ? ORDER BY no"
                matrix.keep(numbers(conn.execute(sql, (space.no,))))
            matrix.version = space.version
        self._cache[space.no] = matrix
        self._cache.move_to_end(space.no)
        while len(self._cache) > 1 and sum([each.nbytes for each in self._cache.values()]) > self._cache_bytes:
            self._cache.popitem(last=False)
        return matrix


def _ids(ids: Sequence[str] | None) -> tuple[str, ...] | None:
    if isinstance(ids, str):
        raise StoreError("ids is one text; give a list of them.")
    return None if ids is None else tuple(ids)


def _bounded(limit: int) -> int:
    if limit > MAX_LIMIT:
        raise StoreError(f"{limit} at once are more than {MAX_LIMIT}.")
    return max(limit, 0)


def _fused(*lists: Iterable[Nearest]) -> list[Nearest]:
    ranks: dict[int, float] = {}
    for found in lists:
        for rank, (no, _) in enumerate(found, 1):
            ranks[no] = ranks.get(no, 0.0) + 1 / (_RANK + rank)
    return sorted([Nearest(no, score) for no, score in ranks.items()], key=lambda each: (-each.score, each.no))


def _by_words(
    conn: sqlite3.Connection, space: Space, words: str, limit: int, condition: Condition | None
) -> list[Nearest]:
    tables, test = (space.words, "") if condition is None else (
        f"{space.words} JOIN entries e ON e.no = {space.words}.rowid", f" AND {condition.sql}"
    )  # fmt: skip
    sql = (
        f"SELECT {space.words}.rowid, -bm25({space.words}) AS score FROM {tables} "  # noqa: S608
        f"WHERE {space.words} MATCH ?{test} ORDER BY score DESC, {space.words}.rowid LIMIT ?"
    )
    params = () if condition is None else condition.params
    return [Nearest(*row) for row in conn.execute(sql, (words, *params, limit))]


def _hits(
    conn: sqlite3.Connection, best: Sequence[Nearest], near: Iterable[Nearest], said: Iterable[Nearest]
) -> list[Hit]:
    similar, words = dict(near), dict(said)
    out: list[Hit] = []
    for no, score in best:
        sql = "SELECT id, text, metadata, created, updated FROM entries WHERE no = ?"
        id_, text, metadata, created, updated = conn.execute(sql, (no,)).fetchone()
        out.append(
            Hit(
                id=text_of(id_),
                text=text_of(text),
                metadata=metadata_of(metadata),
                score=score,
                similarity=similar.get(no),
                words=words.get(no),
                created=created,
                updated=updated,
            )
        )
    return out


def _get(key: Key, ids: Sequence[str], conn: sqlite3.Connection) -> list[Entry]:
    space = find_space(conn, key)
    if space is None:
        return []
    test = "WHERE e.space = ? AND e.id = ?"
    return [entry for id_ in ids for entry in entries_of(conn, test, (space.no, stored(id_)))]


def _list(key: Key, condition: Condition, limit: int, offset: int, conn: sqlite3.Connection) -> list[Entry]:
    space = find_space(conn, key)
    if space is None:
        return []
    test = f"WHERE e.no BETWEEN ? AND ? AND {condition.sql} ORDER BY e.no DESC LIMIT ? OFFSET ?"
    return entries_of(conn, test, (*space.range, *condition.params, limit, min(offset, 1 << 62)))


def _count(key: Key, condition: Condition, conn: sqlite3.Connection) -> int:
    space = find_space(conn, key)
    if space is None:
        return 0
    sql = f"SELECT count(*) FROM entries e WHERE e.no BETWEEN ? AND ? AND {condition.sql}"  # noqa: S608
    return int(conn.execute(sql, (*space.range, *condition.params)).fetchone()[0])


def _namespaces(tenant: str | bytes, conn: sqlite3.Connection) -> dict[str, int]:
    sql = """SELECT s.name, (SELECT count(*) FROM entries WHERE no BETWEEN s.no << 32 AND (s.no + 1 << 32) - 1)
        FROM spaces s WHERE s.tenant = ?"""
    return dict(sorted([(text_of(name), count) for name, count in conn.execute(sql, (tenant,))]))


def _integrity(conn: sqlite3.Connection) -> list[str]:
    found = [str(line) for (line,) in conn.execute("PRAGMA integrity_check")]
    return [] if found == ["ok"] else found
