"""Stored responses: what `/v1/responses` keeps, so that a later request can go on from it.

Each row belongs to a tenant, which is part of its key: nobody sees another tenant's. A row holds the items that its
own request brought and the response as it was given; the conversation before it is found by going back row by row, so
that a deleted response leaves nothing behind.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

from msgspec import Struct

from windlass.core import clock
from windlass.core.errors import RequestRefused
from windlass.core.json import dumps, loads
from windlass.stores.tables import Cursor, Tables

__all__ = ["MAX_BYTES", "MAX_TURNS", "StoredResponse", "StoredResponses"]

ROOM = "responses"
#: Steps are only ever added: those of a version that was given out never change.
STEPS = (
    "CREATE TABLE responses(tenant TEXT NOT NULL, id TEXT NOT NULL, previous TEXT NOT NULL, created INTEGER NOT NULL, "
    "expires INTEGER NOT NULL, status TEXT NOT NULL, turns INTEGER NOT NULL, size INTEGER NOT NULL, "
    "asked BLOB NOT NULL, response BLOB NOT NULL, PRIMARY KEY(tenant, id))",
    "CREATE INDEX responses_expires ON responses(expires)",
    "CREATE TABLE response_items(tenant TEXT NOT NULL, id TEXT NOT NULL, response TEXT NOT NULL, "
    "place INTEGER NOT NULL, expires INTEGER NOT NULL, PRIMARY KEY(tenant, id))",
    "CREATE INDEX response_items_expires ON response_items(expires)",
    "CREATE INDEX response_items_response ON response_items(tenant, response)",
)
#: Bytes of one stored response with its input, and turns of a conversation.
MAX_BYTES = 16 << 20
MAX_TURNS = 1000
#: Ids that are longer are nobody's.
_MAX_ID = 200
#: Seconds between two clearings of what is too old.
_CLEAR = 600.0
_SECOND = 1_000_000_000
_CHAIN = (
    "WITH RECURSIVE chain(id, previous, asked, response, place) AS ("
    "SELECT id, previous, asked, response, 0 FROM responses WHERE tenant = ? AND id = ? AND expires > ? "
    "UNION ALL SELECT r.id, r.previous, r.asked, r.response, c.place + 1 FROM responses AS r "
    "JOIN chain AS c ON r.id = c.previous WHERE r.tenant = ? AND r.expires > ? AND c.place < ?) "
    "SELECT asked, response FROM chain ORDER BY place DESC"
)


class StoredResponse(Struct, frozen=True):
    """One kept response: `asked` are the input items of its own request, `response` is the object as it was given.

    `turns` and `size` (bytes) count the whole conversation up to it.
    """

    id: str
    previous: str
    status: str
    turns: int
    size: int
    asked: list[Any]
    response: dict[str, Any]


class StoredResponses:
    """Keep responses in a database of small tables, which are made at first use. Raises StoreError kinds."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables
        self._ready = False
        self._opening = asyncio.Lock()
        self._clear_at = 0.0

    async def _open(self) -> Tables:
        if not self._ready:
            async with self._opening:
                if not self._ready:
                    await self._tables.migrate(ROOM, STEPS)
                    self._ready = True
        if self._clear_at <= (now := clock.monotonic()):
            self._clear_at = now + _CLEAR
            old = (clock.now_ns(),)
            await self._tables.execute("DELETE FROM response_items WHERE expires <= ?", old, idempotent=True)
            await self._tables.execute("DELETE FROM responses WHERE expires <= ?", old, idempotent=True)
        return self._tables

    async def keep(
        self, tenant: str, response: dict[str, Any], asked: Sequence[Any], before: StoredResponse | None, seconds: float
    ) -> None:
        """Keep a response for so many seconds, with the items that its request brought and the response before it.

        Raises RequestRefused 413 for one that is too large.
        """
        tables = await self._open()
        given, made = dumps(asked), dumps(response)
        size = len(given) + len(made)
        if size > MAX_BYTES:
            raise RequestRefused(413, f"A response of more than {MAX_BYTES} bytes is not stored.", reason="too_large")
        now = clock.now_ns()
        expires = now + round(seconds * _SECOND)
        turns, all_bytes = (1, size) if before is None else (before.turns + 1, before.size + size)
        row = (
            tenant, response["id"], "" if before is None else before.id, now, expires, str(response["status"]), turns,
            all_bytes, given, made,
        )  # fmt: skip
        items = [
            (tenant, item["id"], response["id"], place, expires)
            for place, item in enumerate(response["output"])
            if isinstance(item, dict) and isinstance(item.get("id"), str) and len(item["id"]) <= _MAX_ID
        ]
        await tables.transact(partial(_insert, row, items), idempotent=True)

    async def get(self, tenant: str, response_id: str) -> StoredResponse | None:
        """Return a response of this tenant; None for one that is not there, is another's, or is too old."""
        if len(response_id) > _MAX_ID:
            return None
        tables = await self._open()
        rows = await tables.fetch(
            "SELECT previous, status, turns, size, asked, response FROM responses "
            "WHERE tenant = ? AND id = ? AND expires > ?",
            (tenant, response_id, clock.now_ns()),
        )
        if not rows:
            return None
        previous, status, turns, size, asked, response = rows[0]
        return StoredResponse(response_id, previous, status, turns, size, loads(asked), loads(response))

    async def delete(self, tenant: str, response_id: str) -> bool:
        """Delete a response and what it says; False when there was none."""
        if len(response_id) > _MAX_ID:
            return False
        tables = await self._open()
        return await tables.transact(partial(_delete, tenant, response_id, clock.now_ns()))

    async def conversation(self, tenant: str, last: StoredResponse) -> list[Any] | None:
        """Return the items of a conversation in order, up to and with a response; None where a piece of it is gone."""
        tables, now = await self._open(), clock.now_ns()
        rows = await tables.fetch(_CHAIN, (tenant, last.id, now, tenant, now, MAX_TURNS))
        if len(rows) != last.turns:
            return None
        return [item for asked, response in rows for item in (*loads(asked), *loads(response)["output"])]

    async def items(self, tenant: str, ids: Iterable[str], most: int) -> dict[str, Any]:
        """Return output items of this tenant's responses by their ids; those that are not there are left out.

        Raises RequestRefused 413 when they stand in responses of more than `most` bytes together.
        """
        tables, now = await self._open(), clock.now_ns()
        places: dict[str, list[tuple[str, int]]] = {}
        for item in dict.fromkeys(ids):
            found = await tables.fetch(
                "SELECT response, place FROM response_items WHERE tenant = ? AND id = ? AND expires > ?",
                (tenant, item[:_MAX_ID], now),
            )
            for response_id, place in found:
                places.setdefault(response_id, []).append((item, place))
        out: dict[str, Any] = {}
        for response_id, wanted in places.items():
            if (stored := await self.get(tenant, response_id)) is None:
                continue
            most -= len(dumps(stored.response))
            if most < 0:
                raise RequestRefused(413, "The input refers to more than can be read at once.", param="input",
                                     reason="request_too_large")  # fmt: skip
            out |= {item: stored.response["output"][place] for item, place in wanted}
        return out


def _insert(row: tuple[Any, ...], items: list[tuple[Any, ...]], cursor: Cursor) -> None:
    cursor.execute(
        "INSERT INTO responses VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (tenant, id) DO NOTHING", row
    )
    cursor.execute_many(
        "INSERT INTO response_items VALUES (?, ?, ?, ?, ?) ON CONFLICT (tenant, id) DO UPDATE SET "
        "response = excluded.response, place = excluded.place, expires = excluded.expires",
        items,
    )


def _delete(tenant: str, response_id: str, now: int, cursor: Cursor) -> bool:
    cursor.execute("DELETE FROM response_items WHERE tenant = ? AND response = ?", (tenant, response_id))
    gone = cursor.fetch("DELETE FROM responses WHERE tenant = ? AND id = ? RETURNING expires", (tenant, response_id))
    return bool(gone) and gone[0][0] > now
