"""The routes of `RemoteStore`: the ledger of a key's tenant, row by row, for programs that keep their sessions here.

Whose sessions they are is said by the key, never by the request. A session of another tenant is answered exactly as one
that is not there. What is read and written is what `/v1/sessions` and `session_id` work on: rows that do not follow
theirs are refused with 409, whoever was first.
"""

from __future__ import annotations

import binascii
import weakref
from base64 import b64decode, b64encode
from collections import OrderedDict
from typing import Any, TypeVar

import msgspec
from msgspec import Struct

from windlass.core.errors import RequestRefused, SessionNotFound, StoreConflict, StoreError
from windlass.core.json import dumps_stored, loads_stored
from windlass.core.ports import Blobs, Row
from windlass.server.endpoints import Endpoint
from windlass.server.gateway import Gateway
from windlass.server.http import Call
from windlass.server.sessions import busy

__all__ = ["ENDPOINTS"]

T = TypeVar("T")
#: Bytes of a session's id, as UTF-8; rows and bytes of row data in one answer.
_MAX_ID, _PAGE_ROWS, _PAGE_BYTES = 8192, 1000, 8 * 1024 * 1024
_MAX_POS = 1 << 32


class SentRow(Struct, forbid_unknown_fields=True):
    """A row as it travels; `data` is base64."""

    pos: int
    kind: str
    run: int
    time: int
    data: str
    version: int = 1


class Append(Struct, forbid_unknown_fields=True):
    """The body of `append`; `token` names the request, so that one that comes twice is done once."""

    session: str
    expected_pos: int
    rows: list[SentRow] = []
    token: str = ""


class Read(Struct, forbid_unknown_fields=True):
    """The body of `read`: rows [start, end), end None: all there are."""

    session: str
    start: int = 0
    end: int | None = None


class List(Struct, forbid_unknown_fields=True):
    """The body of `list`."""

    limit: int = 1000


class Delete(Struct, forbid_unknown_fields=True):
    """The body of `delete`."""

    session: str


class PutFile(Struct, forbid_unknown_fields=True):
    """The body of `blobs/put`; `data` is base64."""

    session: str
    data: str


class GetFile(Struct, forbid_unknown_fields=True):
    """The body of `blobs/get`."""

    session: str
    sha256: str


def _bad(text: str, param: str = "") -> RequestRefused:
    return RequestRefused(400, text, reason="invalid_body", param=param or None)


def _read(call: Call, kind: type[T]) -> T:
    try:
        asked = msgspec.convert(loads_stored(call.body), kind)
    except (ValueError, RecursionError) as error:
        raise _bad(f"The body does not fit: {error}.") from None
    session: str = getattr(asked, "session", "")
    if len(session.encode("utf-8", "surrogatepass")) > _MAX_ID:
        raise _bad(f"session must be at most {_MAX_ID} bytes.", "session")
    return asked


def _bytes(text: str, param: str) -> bytes:
    try:
        return b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise _bad(f"{param} must be base64.", param) from None


def _answer(call: Call, data: dict[str, Any]) -> None:
    call.respond(200, dumps_stored(data), (("x-request-id", call.id), ("cache-control", "no-store")))


def _unknown(session: str) -> RequestRefused:
    return RequestRefused(404, f"There is no session {session[:256]!r}.", reason="session_not_found")


#: The token of the last append to each session, of those that were appended to most lately.
recent_tokens: weakref.WeakKeyDictionary[Gateway, OrderedDict[tuple[str, str], str]] = weakref.WeakKeyDictionary()
MOST_TOKENS = 4096


def came_before(gateway: Gateway, key: tuple[str, str], token: str) -> bool:
    """Tell whether the very same append came before: its client saw the connection break, and asks again."""
    known = recent_tokens.setdefault(gateway, OrderedDict())
    again = token != "" and known.get(key) == token
    known[key] = token
    known.move_to_end(key)
    if len(known) > MOST_TOKENS:
        known.popitem(last=False)
    return again


async def append(gateway: Gateway, call: Call) -> None:
    """Answer `POST /windlass/v1/store/append`: 409 when the session is not `expected_pos` rows long."""
    asked = _read(call, Append)
    rows = [Row(row.pos, row.kind, row.run, row.time, _bytes(row.data, "rows"), row.version) for row in asked.rows]
    tenant, store = call.identity.tenant, gateway.sessions.store
    again = came_before(gateway, (tenant, asked.session), asked.token[:64])
    try:
        await store.append(asked.session, rows, asked.expected_pos, tenant=tenant)
    except StoreConflict as error:
        end = asked.expected_pos + len(rows)
        if not (again and rows and await store.read(asked.session, asked.expected_pos, end, tenant=tenant) == rows):
            raise RequestRefused(409, error.message, reason="store_conflict", param="expected_pos") from None
    except SessionNotFound:
        raise _unknown(asked.session) from None
    except ValueError as error:
        raise _bad(f"The rows cannot be kept: {error}.", "rows") from None
    except StoreError as error:
        if rows and rows[0].kind == "session.forked" and error.__cause__ is None:
            raise _bad(error.message, "rows") from None  # its parent is shorter than it says
        raise
    _answer(call, {"object": "store.appended", "rows": asked.expected_pos + len(rows)})


async def read(gateway: Gateway, call: Call) -> None:
    """Answer `POST /windlass/v1/store/read`: a page of rows; `more` says that the next one begins behind it."""
    asked = _read(call, Read)
    start = min(max(asked.start, 0), _MAX_POS)
    end = _MAX_POS if asked.end is None else min(max(asked.end, 0), _MAX_POS)
    upto = min(end, start + _PAGE_ROWS)
    rows = await gateway.sessions.store.read(asked.session, start, upto, tenant=call.identity.tenant)
    size, page = 0, list[dict[str, Any]]()
    for row in rows:
        size += len(row.data)
        if page and size > _PAGE_BYTES:
            break
        page.append(
            {"pos": row.pos, "kind": row.kind, "run": row.run, "time": row.time, "version": row.version,
             "data": b64encode(row.data).decode()}
        )  # fmt: skip
    more = len(page) < len(rows) or (len(rows) == _PAGE_ROWS and upto < end)
    _answer(call, {"object": "store.rows", "rows": page, "more": more})


async def listing(gateway: Gateway, call: Call) -> None:
    """Answer `POST /windlass/v1/store/list`: the sessions of the key's tenant, the newest first."""
    asked = _read(call, List)
    if not 0 <= asked.limit <= 10_000:
        raise _bad("limit must be from 0 to 10000.", "limit")
    found = await gateway.sessions.store.list(tenant=call.identity.tenant, limit=asked.limit)
    _answer(call, {"object": "list", "sessions": [msgspec.to_builtins(info) for info in found]})


async def delete(gateway: Gateway, call: Call) -> None:
    """Answer `POST /windlass/v1/store/delete`; a session that a request works on stays, with 409."""
    asked, tenant = _read(call, Delete), call.identity.tenant
    if gateway.sessions.working(tenant, asked.session):
        raise busy(asked.session[:256])
    gone = await gateway.sessions.store.delete(asked.session, tenant=tenant)
    _answer(call, {"object": "store.deleted", "deleted": gone})


def _blobs(gateway: Gateway) -> Blobs:
    found: Blobs | None = getattr(gateway.sessions.store, "blobs", None)
    if found is None:
        raise RequestRefused(404, "This server's store keeps no contents of files.", reason="not_found")
    return found


async def put_file(gateway: Gateway, call: Call) -> None:
    """Answer `POST /windlass/v1/store/blobs/put`: a content of a file, kept with its session."""
    asked = _read(call, PutFile)
    data = _bytes(asked.data, "data")
    try:
        sha256 = await _blobs(gateway).put(asked.session, data, tenant=call.identity.tenant)
    except SessionNotFound:
        raise _unknown(asked.session) from None
    _answer(call, {"object": "store.blob", "sha256": sha256})


async def get_file(gateway: Gateway, call: Call) -> None:
    """Answer `POST /windlass/v1/store/blobs/get`: null for what this session does not have."""
    asked = _read(call, GetFile)
    data = await _blobs(gateway).get(asked.session, asked.sha256, tenant=call.identity.tenant)
    _answer(call, {"object": "store.blob", "data": None if data is None else b64encode(data).decode()})


_PATH = "/windlass/v1/store"
ENDPOINTS = (
    Endpoint("POST", f"{_PATH}/append", append, body=True, summary="Append rows to a ledger.", feature="agents"),
    Endpoint("POST", f"{_PATH}/read", read, body=True, summary="Read rows of a ledger.", feature="agents"),
    Endpoint("POST", f"{_PATH}/list", listing, "admin", body=True, summary="List ledgers.", feature="agents"),
    Endpoint("POST", f"{_PATH}/delete", delete, body=True, summary="Delete a ledger.", feature="agents"),
    Endpoint("POST", f"{_PATH}/blobs/put", put_file, body=True, summary="Keep a content of a file.", feature="agents"),
    Endpoint("POST", f"{_PATH}/blobs/get", get_file, body=True, summary="Read a content of a file.", feature="agents"),
)
