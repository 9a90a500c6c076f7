"""Keep ledgers on a server that runs `windlass serve`, over HTTP.

Every call is a POST of JSON to `/windlass/v1/store/…`. Whose sessions they are is said by the key and by nothing else.
Text that JSON cannot carry is escaped as in every store; row data and contents of files travel as base64.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import weakref
from base64 import b64decode, b64encode
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from windlass.core import clock
from windlass.core.errors import (
    ConfigError,
    SessionNotFound,
    StoreConflict,
    StoreError,
    TransportError,
)
from windlass.core.http import Client, Timeouts, endpoint
from windlass.core.json import dumps_stored, loads_stored
from windlass.core.ports import Row, SessionInfo
from windlass.stores.rows import check_rows, fork_of, is_sha256

__all__ = ["KEY_VARIABLE", "PATH", "RemoteStore"]

PATH = "/windlass/v1/store"
#: Where the key comes from when none is given.
KEY_VARIABLE = "WINDLASS_STORE_KEY"
#: What one answer may hold, in bytes: pages of rows are smaller, a content of a file may be one whole body.
_MOST = 96 * 1024 * 1024


class _Loop:
    """What belongs to one event loop: its connections, and a line of writers for each session."""

    def __init__(self, timeouts: Timeouts) -> None:
        self.client = Client(max_per_host=16, max_idle_per_host=16)
        self.client.timeouts = timeouts
        self.locks: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()


class RemoteStore:
    """Keep sessions on the server at `url`, by the rules of the `Store` port, as the tenant of `key`.

    `key` is one of that server's, WINDLASS_STORE_KEY by default; without any, a server that takes requests of this
    machine without one is asked as nobody. `list` needs an administrator's key, as everywhere on that server. `timeout`
    (seconds) bounds a call. May be used from several event loops.

    An append whose answer was lost is looked up before it is reported as failed. Raises ConfigError for an address that
    is none; every call raises StoreError when the server cannot be reached or refuses, for a `tenant` (it is the key's)
    and after `close`.
    """

    def __init__(self, url: str = "", key: str | None = None, *, timeout: float = 60.0) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise ConfigError(f"{endpoint(url) or 'An empty text'} is no address of a server.",
                              hint='Write "remote:http://127.0.0.1:8081".')  # fmt: skip
        if parts.username or parts.password:
            raise ConfigError("The address of a store holds no key.", hint=f"Give key=, or set {KEY_VARIABLE}.")
        self._base = url.rstrip("/") + PATH
        self._where = endpoint(url)
        self._key = key if key is not None else os.environ.get(KEY_VARIABLE, "")
        self._timeouts = Timeouts(min(5.0, timeout), timeout, timeout, timeout, timeout)
        self._loops: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Loop] = weakref.WeakKeyDictionary()
        self._closed = False
        #: Contents of files, for undo.
        self.blobs = _Blobs(self)

    def __repr__(self) -> str:
        return f"RemoteStore({self._where!r})"

    async def append(self, session: str, rows: Sequence[Row], expected_pos: int, *, tenant: str = "") -> None:
        """Keep all rows or none. Raises StoreConflict, ValueError, and SessionNotFound for a fork without parent."""
        rows = list(rows)
        check_rows(rows, expected_pos)
        fork_of(rows)
        sent = [_row_data(row) for row in rows]
        # In one line: two connections could change places on the way.
        async with self._line(session):
            try:
                # The token tells the server that it is the same request when the connection broke and it comes again.
                token = clock.new_id()
                await self.ask("append", tenant, session=session, expected_pos=expected_pos, rows=sent, token=token)
            except _Lost as lost:
                if not rows or not await self._kept(session, rows, tenant):
                    raise StoreError(lost.message, hint="Read the session again before going on.") from lost

    async def _kept(self, session: str, rows: list[Row], tenant: str) -> bool:
        return await self.read(session, rows[0].pos, rows[-1].pos + 1, tenant=tenant) == rows

    async def read(self, session: str, start: int = 0, end: int | None = None, *, tenant: str = "") -> list[Row]:
        """Return the rows of positions [start, end), [] for an unknown session."""
        rows: list[Row] = []
        start = max(start, 0)
        while True:
            told = await self.ask("read", tenant, session=session, start=start + len(rows), end=end)
            rows += [_row(data) for data in told["rows"]]
            if not told["more"]:
                return rows

    async def list(self, *, tenant: str = "", limit: int = 1000) -> list[SessionInfo]:
        """Return up to `limit` sessions (at most 10 000), the one with the newest last row first."""
        told = await self.ask("list", tenant, limit=min(max(limit, 0), 10_000))
        return [SessionInfo(**data) for data in told["sessions"]]

    async def delete(self, session: str, *, tenant: str = "") -> bool:
        """Delete a session; its forks keep the rows they share. False when there was none."""
        return bool((await self.ask("delete", tenant, session=session))["deleted"])

    async def close(self) -> None:
        """Close the connections of the running event loop; nothing is asked any more."""
        self._closed = True
        mine = self._loops.pop(asyncio.get_running_loop(), None)
        if mine is not None:
            await mine.client.aclose()

    def _mine(self) -> _Loop:
        if self._closed:
            raise StoreError(f"The store at {self._where} is closed.", hint="Make a new one.")
        loop = asyncio.get_running_loop()
        found = self._loops.get(loop)
        if found is None:
            found = self._loops[loop] = _Loop(self._timeouts)
        return found

    def _line(self, session: str) -> asyncio.Lock:
        locks = self._mine().locks
        found = locks.get(session)
        if found is None:
            found = locks[session] = asyncio.Lock()
        return found

    async def ask(self, what: str, tenant: str, **body: Any) -> dict[str, Any]:
        """Ask the server for one thing and return its answer. Raises the typed error of a refusal."""
        if tenant:
            raise StoreError("A remote store keeps the sessions of its key's tenant.", hint="Use one key per tenant.")
        headers = {"content-type": "application/json", **({"x-api-key": self._key} if self._key else {})}
        try:
            answer = await self._mine().client.request(
                "POST", f"{self._base}/{what}", headers=headers, body=dumps_stored(body), max_body_bytes=_MOST
            )
        except TransportError as error:
            text = f"The store at {self._where} did not answer: {error.message}"
            raise (_Lost(text) if error.sent else StoreError(text, hint="Nothing was kept.")) from error
        try:
            told = loads_stored(answer.body)
            if not isinstance(told, dict):
                raise ValueError("no object")
        except ValueError as error:
            text = f"The store at {self._where} answered {answer.status} with something else than JSON: {error}."
            raise StoreError(text, hint="Is it `windlass serve`?") from error
        if answer.status >= 400:
            raise self._refusal(answer.status, told, body)  # pyright: ignore[reportUnknownArgumentType]
        return told  # pyright: ignore[reportUnknownVariableType]

    def _refusal(self, status: int, told: dict[str, Any], body: dict[str, Any]) -> Exception:
        error: Any = told.get("error")
        error = error if isinstance(error, dict) else {}
        text, code = str(error.get("message", "")), error.get("code")
        if code == "store_conflict":
            return StoreConflict(text, hint="Read the session again, then append behind what is new.")
        if code == "session_not_found":
            return SessionNotFound(text)
        hints = {
            401: f"Give the store a key of that server: key=, or {KEY_VARIABLE}.",
            403: "Listing sessions needs an administrator's key.",
            404: "That server keeps no sessions for others: is it `windlass serve`, and new enough?",
            413: "Rows of one append, or a file, are larger than that server takes ([server] max_body_bytes).",
        }
        what = "" if not body.get("session") else f" for session {str(body['session'])[:80]!r}"
        return StoreError(f"The store at {self._where} refused{what} ({status}): {text}", hint=hints.get(status, ""))


class _Lost(StoreError):
    """Report an answer that never came: the server may have done what it was asked."""


class _Blobs:
    """The store's face for contents of files."""

    def __init__(self, store: RemoteStore) -> None:
        self._store = store

    async def put(self, session: str, data: bytes, *, tenant: str = "") -> str:
        sha256 = hashlib.sha256(data).hexdigest()
        told = await self._store.ask("blobs/put", tenant, session=session, data=b64encode(data).decode())
        if told["sha256"] != sha256:
            raise StoreError(f"The store kept another content than was sent for session {session!r}.")
        return sha256

    async def get(self, session: str, sha256: str, *, tenant: str = "") -> bytes | None:
        if not is_sha256(sha256):
            sha256 = ""
        told = await self._store.ask("blobs/get", tenant, session=session, sha256=sha256)
        return None if told["data"] is None else b64decode(told["data"], validate=True)


def _row_data(row: Row) -> dict[str, Any]:
    return {
        "pos": row.pos, "kind": row.kind, "run": row.run, "time": row.time, "version": row.version,
        "data": b64encode(row.data).decode(),
    }  # fmt: skip


def _row(data: dict[str, Any]) -> Row:
    return Row(data["pos"], data["kind"], data["run"], data["time"], b64decode(data["data"]), data["version"])
