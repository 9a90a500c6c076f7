"""Write a session as JSON lines and read it back: for people, for other programs, for moving between stores.

One line per row: `{"v":1,"pos":0,"kind":"run.started","run":-1,"time":"2026-01-02T03:04:05.000000006Z","data":{…}}`.
`v` is the row's schema version; `time` is RFC 3339 with nanoseconds. `data` is the row's JSON, byte for byte; a row
whose data is not JSON on one line has `data_base64` instead. A fork is written with the rows it shares.
"""

from __future__ import annotations

import binascii
import re
from base64 import b64decode, b64encode
from calendar import timegm
from collections.abc import AsyncGenerator, AsyncIterable, Iterable
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Any, NamedTuple

import msgspec
from msgspec import Struct

from windlass.core.clock import rfc3339
from windlass.core.errors import SessionNotFound, SessionVersionError, StoreError
from windlass.core.events import EVENT_SCHEMA
from windlass.core.json import dumps_stored, loads_stored
from windlass.core.ports import Row, Store
from windlass.stores.rows import lost_row

__all__ = ["ImportReport", "SkippedLine", "decode_line", "encode_line", "export_jsonl", "import_jsonl"]

_SLICE = 500
#: A wrong position further ahead than this is a bad line, not a run of missing ones.
_MAX_GAP = 10_000
_TIME = re.compile(r"(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z|z|[+-]\d\d:\d\d)")


class SkippedLine(NamedTuple):
    """A line that was not read, counted from 1, and why."""

    line: int
    reason: str


class ImportReport(Struct, frozen=True):
    """What an import kept: `rows` counts all rows, `lost` those that stand for missing ones, `skipped` says why."""

    rows: int
    lost: int = 0
    skipped: tuple[SkippedLine, ...] = ()


async def export_jsonl(store: Store, session: str, tenant: str = "") -> AsyncGenerator[bytes]:
    """Yield a session's rows in order, one line each with its newline. Raises SessionNotFound, StoreError."""
    pos = 0
    while rows := await store.read(session, pos, pos + _SLICE, tenant=tenant):
        for row in rows:
            yield encode_line(row)
        pos += len(rows)
    if pos == 0:
        raise SessionNotFound(f"There is no session {session!r} to export.")


def encode_line(row: Row) -> bytes:
    """Return a row as one line, with its newline."""
    head: dict[str, Any] = {"v": row.version, "pos": row.pos, "kind": row.kind, "run": row.run, "time": _when(row.time)}
    if _is_one_json_line(row.data):
        return dumps_stored(head)[:-1] + b',"data":' + row.data + b"}\n"
    return dumps_stored({**head, "data_base64": b64encode(row.data).decode()}) + b"\n"


def _is_one_json_line(data: bytes) -> bool:
    if data != data.strip() or b"\n" in data or b"\r" in data:
        return False
    try:
        loads_stored(data)
        data.decode()
    except ValueError:
        return False
    return True


def _when(ns: int) -> str:
    return f"{rfc3339(ns)[:-1]}{ns % 1000:03d}Z"


class _Line(Struct, frozen=True):
    """The fields of a line; `data` stays as it is written."""

    pos: int
    kind: str
    time: str
    v: int = 1
    run: int = -1
    data: msgspec.Raw = msgspec.Raw()
    data_base64: str | None = None


_KNOWN = frozenset(_Line.__struct_fields__)
_decode_line = msgspec.json.Decoder(_Line).decode


async def import_jsonl(
    store: Store,
    lines: AsyncIterable[bytes] | Iterable[bytes],
    session: str,
    tenant: str = "",
    *,
    skip_bad: bool = False,
) -> ImportReport:
    """Make a new session from what `export_jsonl` wrote: all of it, or nothing.

    Raises StoreError naming the line (from 1) that cannot be read. With `skip_bad` such lines are left out, a
    `row.lost` row stands for each position that is missing, and the report names them. Unknown kinds are kept, and so
    are unknown fields, which move into the row's data. Raises StoreConflict when the session exists, and
    SessionVersionError for a line of a newer schema, also with `skip_bad`.
    """
    rows: list[Row] = []
    skipped: list[SkippedLine] = []
    lost = number = 0
    async with aclosing(_each(lines)) as source:
        async for line in source:
            number += 1
            if not line.strip():
                continue
            try:
                row = _row(line, len(rows), _MAX_GAP if skip_bad else 0)
            except SessionVersionError as error:
                raise SessionVersionError(f"Line {number}: {error.message}", hint=error.hint) from None
            except ValueError as error:
                if not skip_bad:
                    hint = "Mend the line, or import with skip_bad=True to leave it out."
                    raise StoreError(f"Line {number}: {error}.", hint=hint) from None
                skipped.append(SkippedLine(number, str(error)))
                continue
            while len(rows) < row.pos:
                rows.append(lost_row(len(rows), row.time))
                lost += 1
            rows.append(row)
    if not rows:
        raise StoreError("There is no row to import.", hint=f"{number} lines were read.")
    await store.append(session, rows, 0, tenant=tenant)
    return ImportReport(len(rows), lost, tuple(skipped))


async def _each(lines: AsyncIterable[bytes] | Iterable[bytes]) -> AsyncGenerator[bytes]:
    if isinstance(lines, AsyncIterable):
        async for line in lines:
            yield line
    else:
        for line in lines:
            yield line


def _row(line: bytes, expected: int, gap: int) -> Row:
    """Decode one line. Raises ValueError saying what is wrong with it, SessionVersionError when it is newer."""
    line = line.removeprefix(b"\xef\xbb\xbf")
    fields = loads_stored(line)
    if not isinstance(fields, dict):
        raise ValueError("not a JSON object")
    version: Any = fields.get("v")  # pyright: ignore[reportUnknownMemberType]
    if isinstance(version, int) and version > EVENT_SCHEMA:
        raise SessionVersionError(
            f"rows of schema {version}; this version reads up to {EVENT_SCHEMA}.", hint="Upgrade windlass."
        )
    found = _decode_line(line)
    if not expected <= found.pos <= expected + gap:
        raise ValueError(f"position {found.pos} where {expected} was expected")
    return _built(found, fields)  # pyright: ignore[reportUnknownArgumentType]


def decode_line(line: bytes) -> Row:
    """Return the row of a line, of whatever schema. Raises ValueError saying what is wrong with it."""
    fields = loads_stored(line)
    if not isinstance(fields, dict):
        raise ValueError("not a JSON object")
    return _built(_decode_line(line), fields)  # pyright: ignore[reportUnknownArgumentType]


def _built(found: _Line, fields: dict[str, Any]) -> Row:
    extra: dict[str, Any] = {name: value for name, value in fields.items() if name not in _KNOWN}
    time = _nanoseconds(found.time)
    # The kind comes from the fields: like all stored text it may be escaped.
    return Row(found.pos, str(fields["kind"]), found.run, time, _data(found, extra), found.v)


def _data(found: _Line, extra: dict[str, Any]) -> bytes:
    if found.data_base64 is not None:
        try:
            return b64decode(found.data_base64, validate=True)
        except binascii.Error as error:
            raise ValueError(f"data_base64 is not base64: {error}") from None
    data = bytes(found.data)
    if not data:
        raise ValueError("neither data nor data_base64")
    if not extra:
        return data
    value = loads_stored(data)
    if not isinstance(value, dict):
        raise ValueError(f"unknown fields {', '.join(sorted(extra))} beside data that is no object")
    return dumps_stored({**extra, **value})


def _nanoseconds(text: str) -> int:
    found = _TIME.fullmatch(text)
    if found is None:
        raise ValueError(f"time {text[:40]!r} is not RFC 3339 with an offset")
    day, clock, fraction, zone = found.groups()
    moment = datetime.fromisoformat(f"{day}T{clock}{'+00:00' if zone in 'Zz' else zone}")
    return timegm(moment.astimezone(UTC).timetuple()) * 1_000_000_000 + int((fraction or "0").ljust(9, "0"))
