"""A state machine: random appends, forks, deletes and reopenings against a plain model, on two stores at once."""

from __future__ import annotations

import asyncio
import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from tests.postgres import Postgres
from windlass.core.errors import SessionNotFound, StoreConflict, StoreError
from windlass.core.json import dumps_stored
from windlass.core.ports import Row, Store
from windlass.stores.memory import MemoryStore
from windlass.stores.postgres import PostgresStore
from windlass.stores.sqlite import BLOB_BYTES, SqliteStore

NAMES = st.sampled_from(["a", "b", "c", "d'", "é\ud800"])
TENANTS = st.sampled_from(["", "t"])
KINDS = st.sampled_from(["message.added", "run.started", "a.new.kind", "tool.finished"])
DATA = st.one_of(st.binary(max_size=40), st.sampled_from([5000, BLOB_BYTES + 1, 20_000]).map(bytes))
TIMES = st.integers(-(1 << 63), (1 << 63) - 1)


class Ledger(RuleBasedStateMachine):
    """The memory store beside a durable one: the SQLite store, or what a subclass says."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "ledger.db"
        self.stores: dict[str, Store] = {"memory": MemoryStore(), "durable": self.open()}
        self.model: dict[tuple[str, str], list[Row]] = {}

    def open(self) -> Store:
        return SqliteStore(self.path, synchronous="NORMAL")

    def check_closed(self) -> None:
        assert [file.name for file in self.path.parent.iterdir()] in ([], ["ledger.db"])

    def leftovers(self) -> list[int]:
        """Return how many sessions, rows and blobs there are in the closed store."""
        with closing(sqlite3.connect(self.path)) as conn:
            assert conn.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            return [conn.execute(f"SELECT count(*) FROM {one}").fetchone()[0] for one in ("sessions", "rows", "blobs")]

    def both(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Call both stores and return the one outcome (a result or an error's type) that they agree on."""

        async def call(store: Store) -> Any:
            try:
                return await getattr(store, method)(*args, **kwargs)
            except (StoreError, SessionNotFound, ValueError) as error:
                return type(error), str(error)

        memory, durable = (self.runner.run(call(store)) for store in self.stores.values())
        assert memory == durable
        return memory

    @rule(
        name=NAMES, tenant=TENANTS, offset=st.sampled_from([0, 0, 0, 0, 1, -1]),
        parts=st.lists(st.tuples(KINDS, TIMES, DATA), max_size=4),
    )  # fmt: skip
    def append(self, name: str, tenant: str, offset: int, parts: list[tuple[str, int, bytes]]) -> None:
        known = self.model.get((tenant, name), [])
        pos = max(len(known) + offset, 0)
        rows = [Row(pos + at, kind, at - 1, time, data) for at, (kind, time, data) in enumerate(parts)]
        outcome = self.both("append", name, rows, pos, tenant=tenant)
        if pos == len(known):
            assert outcome is None
            if rows:
                self.model[tenant, name] = known + rows
        else:
            assert outcome[0] is StoreConflict

    @rule(name=NAMES, parent=NAMES, tenant=TENANTS, share=st.floats(0, 1.2), time=TIMES)
    def fork(self, name: str, parent: str, tenant: str, share: float, time: int) -> None:
        source = self.model.get((tenant, parent))
        pos = int(share * len(source)) if source else int(share * 3)
        row = Row(pos, "session.forked", -1, time, dumps_stored({"parent": parent, "pos": pos}))
        known = self.model.get((tenant, name))
        outcome = self.both("append", name, [row], pos, tenant=tenant)
        if known is not None:
            assert (outcome is None) == (pos == len(known))
            if outcome is None:
                self.model[tenant, name] = [*known, row]
        elif pos and (source is None or pos > len(source)):
            assert outcome[0] is (SessionNotFound if source is None else StoreError)
        else:
            assert outcome is None
            self.model[tenant, name] = [*(source or [])[:pos], row]

    @rule(name=NAMES, tenant=TENANTS)
    def delete(self, name: str, tenant: str) -> None:
        assert self.both("delete", name, tenant=tenant) is (self.model.pop((tenant, name), None) is not None)

    @rule(name=NAMES, tenant=TENANTS, start=st.integers(-1, 12), end=st.none() | st.integers(-1, 12))
    def read(self, name: str, tenant: str, start: int, end: int | None) -> None:
        rows = self.model.get((tenant, name), [])
        wanted = rows[max(start, 0) : None if end is None else max(end, 0)]
        assert self.both("read", name, start, end, tenant=tenant) == wanted

    @rule()
    def reopen(self) -> None:
        self.runner.run(self.stores["durable"].close())
        self.check_closed()
        self.stores["durable"] = self.open()

    @invariant()
    def lists_agree(self) -> None:
        for tenant in ("", "t"):
            infos = self.both("list", tenant=tenant)
            found = {info.id: (info.rows, info.updated) for info in infos}
            mine = {name: rows for (owner, name), rows in self.model.items() if owner == tenant}
            assert found == {name: (len(rows), rows[-1].time) for name, rows in mine.items()}

    def teardown(self) -> None:
        for tenant, name in list(self.model):
            assert self.both("read", name, tenant=tenant) == self.model[tenant, name]
            self.delete(name, tenant)
        self.runner.run(self.stores["durable"].close())
        # With every session gone nothing stays: no row, no blob, no tombstone of a forked session.
        assert set(self.leftovers()) == {0}
        self.runner.close()
        self.folder.cleanup()


class PostgresLedger(Ledger):
    def __init__(self, server: Postgres, url: str) -> None:
        self.server, self.url = server, url
        # What a failed example left behind.
        for table in self.tables():
            server.sql(f"TRUNCATE {table}", url)
        super().__init__()

    def open(self) -> Store:
        return PostgresStore(self.url, size=2)

    def check_closed(self) -> None:
        assert self.server.connections(self.url) == 0

    def tables(self) -> list[str]:
        found = self.server.sql("SELECT tablename FROM pg_tables WHERE schemaname = 'public'", self.url)
        return sorted(name for (name,) in found if name != "windlass_rooms")

    def leftovers(self) -> list[int]:
        tables = self.tables()
        assert tables == [
            "windlass_blobs", "windlass_file_users", "windlass_files", "windlass_rows", "windlass_sessions",
        ]  # fmt: skip
        return [self.server.sql(f"SELECT count(*) FROM {table}", self.url)[0][0] for table in tables]


TestLedger = Ledger.TestCase
TestLedger.settings = settings(
    max_examples=25, stateful_step_count=25, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


def test_postgresql_store_does_what_the_memory_store_does(postgres: Postgres, database_url: str) -> None:
    class Here(PostgresLedger):
        def __init__(self) -> None:
            super().__init__(postgres, database_url)

    run_state_machine_as_test(Here, settings=settings(TestLedger.settings, max_examples=6))
