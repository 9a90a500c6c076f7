"""What became of every request: one record each, kept in batches, summed up on demand."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any, Literal

import msgspec
from msgspec import Struct

from windlass.core import clock
from windlass.core.errors import ConfigError, StoreError
from windlass.stores.tables import Tables

__all__ = ["GROUPS", "KEEP", "Group", "Outcome", "Recorder", "RequestRecord", "UsageRow", "usage"]

log = logging.getLogger("windlass.accounts")
Outcome = Literal["ok", "error", "refused", "interrupted", "client_gone", "cached"]
Group = Literal["key", "tenant", "model", "day"]

#: So many records are written at once, without waiting for the interval.
BATCH = 500
#: So many are kept while the database fails; further ones are counted and dropped.
KEEP = 100_000
#: Seconds between attempts while the database fails.
RETRY = 1.0
#: What is longer is cut: these are names, and what a client sends may be any length.
MAX_TEXT = 512
#: What is larger is cut: a provider may report anything, and a sum must stay within 64 bits.
MAX_COUNT = 10**15
_DAY = 86_400_000_000_000


class RequestRecord(Struct, frozen=True):
    """One request: who, what, by whom it was answered, and what that used.

    `time` is its beginning in UTC ns, `endpoint` the client's dialect, `route` the name it asked for, `target` the
    "provider:model" that answered ("": none did), `error` a code. Tokens are those of `core.usage.Usage`, `estimated`
    as there. `cost` is nano-dollars, None where the price is not known. `first_token_us` and `upstream_us` are None
    where nothing came, or nobody was asked. Holds no text of prompts or answers, and no secret.
    """

    id: str
    time: int
    tenant: str = ""
    key_id: str = ""
    address: str = ""
    endpoint: str = ""
    route: str = ""
    target: str = ""
    attempts: int = 0
    status: int = 200
    outcome: Outcome = "ok"
    error: str = ""
    stream: bool = False
    session_id: str = ""
    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int = 0
    cache_creation_tokens: int = 0
    reasoning_tokens: int = 0
    estimated: bool = False
    cost: int | None = None
    duration_us: int = 0
    first_token_us: int | None = None
    upstream_us: int | None = None


#: The columns are in the order of the fields.
_INSERT = (
    "INSERT INTO account_requests VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) "
    "ON CONFLICT (id) DO NOTHING"
)


class Recorder:
    """Take records without waiting, and write them in the background. Belongs to one event loop.

    They are written `interval` seconds after the first, or as soon as there are 500; `kill -9` loses what was not
    written until then. While the database fails up to 100,000 are kept and tried again every second.
    """

    def __init__(self, tables: Tables, interval: float) -> None:
        self._tables, self._interval = tables, interval
        self._rows: list[RequestRecord] = []
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._writing = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None
        #: Attempts to write that failed, and records that were lost because too many were waiting.
        self.failures = self.dropped = 0
        self._closed = False

    @property
    def waiting(self) -> int:
        """How many records are not written yet."""
        return len(self._rows)

    def record(self, record: RequestRecord) -> None:
        """Keep a record; returns at once and never fails."""
        rows = self._rows
        if len(rows) >= KEEP:
            self._drop()
            return
        rows.append(record)
        if self._timer is None:
            if not self._closed:
                self._timer = self._loop.call_later(self._interval, self._due)
        elif len(rows) == BATCH:
            self._due()

    def _drop(self) -> None:
        if not self.dropped:
            log.error("records: %d are waiting for the database; further ones are lost", KEEP)
        self.dropped += 1

    def _due(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._task is None or self._task.done():
            self._task = self._loop.create_task(self._write(), name="windlass-records")

    async def _write(self) -> None:
        try:
            await self.flush()
        except StoreError as error:
            if self.failures == 1:
                log.warning("records: %d cannot be written, and are tried again (%s)", len(self._rows), error)
        if self._rows and self._timer is None and not self._closed:
            self._timer = self._loop.call_later(RETRY if self.failures else self._interval, self._due)

    async def flush(self) -> None:
        """Write what was recorded until now. Raises StoreError; nothing is lost then."""
        async with self._writing:
            left = len(self._rows)
            while left > 0:
                batch = self._rows[: min(left, BATCH)]
                try:
                    # By id, so that a batch of which nobody knows whether it was kept can be written again.
                    await self._tables.execute_many(_INSERT, [_row(record) for record in batch], idempotent=True)
                except StoreError:
                    self.failures += 1
                    raise
                self.failures = 0
                del self._rows[: len(batch)]
                left -= len(batch)

    async def close(self) -> None:
        """Write the rest; tries for some seconds where the database fails, and says what was lost."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        if self._task is not None:
            await self._task
        for attempt in range(4):
            try:
                await self.flush()
                return
            except StoreError as error:
                if attempt == 3:
                    log.error("records: %d could not be written and are lost (%s)", len(self._rows), error)
                    return
            await clock.sleep(RETRY / 4)


_FIELDS = RequestRecord.__struct_fields__
_TEXTS = [place for place, name in enumerate(_FIELDS) if RequestRecord.__annotations__[name] in ("str", "Outcome")]
_COUNTS = [place for place, name in enumerate(_FIELDS) if place not in _TEXTS and name != "time"]


_FLAGS = tuple([RequestRecord.__struct_fields__.index(name) for name in ("stream", "estimated")])


def _row(record: RequestRecord) -> Sequence[Any]:
    row: list[Any] = list(msgspec.structs.astuple(record))
    for place in _FLAGS:
        row[place] = int(row[place])
    # Nearly nothing is ever cut: looking costs a third of cutting everything.
    for place in _TEXTS:
        if len(row[place]) > MAX_TEXT:
            row[place] = row[place][:MAX_TEXT]
    for place in _COUNTS:
        if (value := row[place]) is not None and not 0 <= value <= MAX_COUNT:
            row[place] = max(0, min(value, MAX_COUNT))
    return row


class UsageRow(Struct, frozen=True):
    """What the requests of one group used together. `cost` is nano-dollars, without the `unknown_cost` requests.

    `name` is a key's id, a tenant, a model ("provider:model", or the route where none answered), or a day (UTC).
    """

    name: str
    requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int = 0
    cache_creation_tokens: int = 0
    reasoning_tokens: int = 0
    cost: int = 0
    unknown_cost: int = 0


#: What may be summed up by, as SQL.
GROUPS: dict[Group, str] = {
    "key": "key_id",
    "tenant": "tenant",
    "model": "CASE WHEN target <> '' THEN target ELSE route END",
    "day": f"time / {_DAY}",
}
_TOTALS = (
    "count(*), sum(input_tokens), sum(output_tokens), sum(cache_read_tokens), sum(cache_creation_tokens), "
    "sum(reasoning_tokens), coalesce(sum(cost), 0), sum(CASE WHEN cost IS NULL THEN 1 ELSE 0 END)"
)


async def usage(
    tables: Tables, by: Group, since: int | None, until: int | None, tenant: str | None, key: str | None
) -> list[UsageRow]:
    """Return the totals of the written requests of [since, until), UTC ns, in the order of their names."""
    if by not in GROUPS:
        raise ConfigError(f"Usage is not kept by {by!r}.", hint=f"Use {', '.join(GROUPS)}.")
    times = [None if time is None else max(0, min(time, (1 << 63) - 1)) for time in (since, until)]
    wanted = {"time >= ?": times[0], "time < ?": times[1], "tenant = ?": tenant, "key_id = ?": key}
    given = {condition: value for condition, value in wanted.items() if value is not None}
    where = f"WHERE {' AND '.join(given)} " if given else ""
    group = GROUPS[by]  # our own text, as the conditions are: what is asked for goes in as parameters
    sql = f"SELECT {group}, {_TOTALS} FROM account_requests {where}GROUP BY {group} ORDER BY {group}"  # noqa: S608
    rows = await tables.fetch(sql, list(given.values()))
    return [UsageRow(clock.rfc3339(name * _DAY)[:10] if by == "day" else name, *sums) for name, *sums in rows]
