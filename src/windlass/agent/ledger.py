"""The ledger of one session: durable events become rows, and rows become events again.

The task that makes a durable fact awaits `commit` before anything may depend on it. A row holds the event without its
ids and time, which are columns; `kind` is a column too, so it is cut from the JSON and put back on reading.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
from msgspec.structs import replace

from windlass.core import clock, json
from windlass.core.errors import SessionVersionError, StoreError
from windlass.core.events import (
    DURABLE,
    EVENT_SCHEMA,
    Event,
    MessageAdded,
    ToolFinished,
    UnknownEvent,
    event_from_data,
)
from windlass.core.items import parse_arguments
from windlass.core.messages import Blob, Text, ToolCall, Uri
from windlass.core.ports import Row, Store

__all__ = ["GRACE", "Ledger", "event_of", "output_bytes", "row_data", "settled"]

#: Seconds that a stop waits for work that ignores its cancellation, before it is left behind.
GRACE = 10.0
_encode = msgspec.json.Encoder().encode
_set = msgspec.structs.force_setattr
#: `{"kind":"text.delta",` per class: what is cut from the encoded event.
_PREFIX = {kind: b'{"kind":"' + str(kind.__struct_config__.tag).encode() + b'"' for kind in DURABLE}


def row_data(event: Event) -> bytes:
    """Return the JSON that a row keeps of an event that was not stamped yet."""
    if type(event) is MessageAdded:
        event = _without_arguments(event)
    try:
        data = _encode(event)
    except (UnicodeEncodeError, OverflowError):
        data = json.dumps_stored(event)
    else:
        if b"\\u0000" in data or b"\xee\x83\xb5" in data:
            data = json.dumps_stored(event)
    rest = data[len(_PREFIX[type(event)]) :]
    return b"{" + rest[1:] if rest[:1] == b"," else b"{}"


def _without_arguments(event: MessageAdded) -> MessageAdded:
    """Leave out arguments that their own text says too; `event_of` reads them back from it."""
    message = event.message
    if not any(call.arguments_text is not None and call.arguments is not None for call in message.tool_calls):
        return event
    parts = [
        replace(part, arguments=None) if isinstance(part, ToolCall) and part.arguments_text is not None else part
        for part in message.parts
    ]
    return replace(event, message=replace(message, parts=tuple(parts)))


def _with_arguments(event: MessageAdded) -> MessageAdded:
    message = event.message
    if not any(call.arguments_text is not None for call in message.tool_calls):
        return event
    parts = [
        replace(part, arguments=parse_arguments(part.arguments_text)[0])
        if isinstance(part, ToolCall) and part.arguments_text is not None
        else part
        for part in message.parts
    ]
    return replace(event, message=replace(message, parts=tuple(parts)))


def event_of(row: Row, *, run_id: str = "") -> Event:
    """Return the event that a row keeps.

    An unknown kind comes back as `UnknownEvent`. Raises SessionVersionError for a row of a newer schema and StoreError
    for one that cannot be read.
    """
    if row.version > EVENT_SCHEMA:
        raise SessionVersionError(
            f"Row {row.pos} has schema {row.version}; this version reads up to {EVENT_SCHEMA}.",
            hint="Upgrade windlass; nothing was changed.",
        )
    try:
        data = json.loads_stored(row.data)
        event = event_from_data({**data, "kind": row.kind})
    except (ValueError, TypeError, KeyError) as error:
        raise StoreError(f"Row {row.pos} ({row.kind}) cannot be read: {error}.") from error
    if isinstance(event, UnknownEvent):
        return event
    if isinstance(event, MessageAdded):
        event = _with_arguments(event)
    _set(event, "time", row.time)
    _set(event, "run_id", run_id)
    return event


class Ledger:
    """One writer of one session.

    Positions are taken when `commit` is called, so rows of parallel tools keep the order of their calls to it; a store
    must apply the appends of one session in the order it was called. Once an append failed, every later one does.
    """

    __slots__ = ("_failed", "_immediate", "files", "pos", "run_pos", "session_id", "store", "tenant")

    def __init__(self, store: Store | None, session_id: str, *, tenant: str = "", pos: int = 0) -> None:
        self.store, self.session_id, self.tenant, self.pos = store, session_id, tenant, pos
        self.run_pos = -1
        #: Where changes of files are kept: a sub-agent's belong to the session whose workspace it works in.
        self.files: Ledger = self
        self._failed: BaseException | None = None
        # A store that never waits needs no task of its own to survive a cancellation half-way.
        self._immediate: bool = getattr(store, "immediate", False)

    async def commit(self, events: Sequence[Event]) -> None:
        """Keep these events, all or none, before returning.

        A cancellation that arrives meanwhile waits until the outcome is known: what a reader is told of is on disk.
        Raises StoreError; then nothing of this batch counts, and the run must end before its next side effect.
        """
        store = self.store
        if store is None:
            return
        if self._failed is not None:
            raise StoreError("An earlier append failed, so this session takes no more.") from self._failed
        now = clock.now_ns()
        start = self.pos
        rows = [
            Row(start + at, str(type(event).__struct_config__.tag), self.run_pos, now, row_data(event))
            for at, event in enumerate(events)
        ]
        self.pos += len(rows)
        append = store.append(self.session_id, rows, start, tenant=self.tenant)
        try:
            if self._immediate:
                await append
            else:
                await settled(append)
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            self._failed = error
            if isinstance(error, StoreError):
                raise
            raise StoreError(f"The store failed: {error}.", hint="What was acknowledged before is kept.") from error

    def note(self, call_id: str, text: str) -> None:
        """Keep what a running call has printed, where the store can."""
        running = getattr(self.store, "running", None)
        if running is not None and text:
            running.append(self.tenant, self.session_id, call_id, text)

    def forget(self, call_id: str) -> None:
        """Let go of what a call had printed: its response is on record."""
        running = getattr(self.store, "running", None)
        if running is not None:
            running.drop(self.tenant, self.session_id, call_id)

    def printed(self, call_id: str) -> str:
        """Return, once, the end of what a call had printed when its program died."""
        running = getattr(self.store, "running", None)
        return "" if running is None else running.take(self.tenant, self.session_id, call_id)

    async def read(self) -> list[Event]:
        """Return every event of the session, with run ids restored."""
        if self.store is None:
            return []
        return list(self.events(await self.store.read(self.session_id, tenant=self.tenant)))

    @staticmethod
    def events(rows: Iterable[Row]) -> Iterable[Event]:
        """Yield the events of rows, with what rows leave out: run ids, and names and ids of answered calls."""
        ids: dict[int, str] = {}
        calls: dict[str, str] = {}
        for row in rows:
            if row.kind == "run.started":
                ids[row.pos] = str(json.loads_stored(row.data).get("run_id", ""))
            event = event_of(row, run_id=ids.get(row.run, ""))
            if isinstance(event, MessageAdded) and event.message.role == "assistant":
                calls = {call.id: call.name for call in event.message.tool_calls}
            elif isinstance(event, ToolFinished):
                if not event.call_id and len(calls) == 1:
                    _set(event, "call_id", next(iter(calls)))
                _set(event, "name", event.name or calls.get(event.call_id, ""))
                _set(event, "output_bytes", event.output_bytes or output_bytes(event.response))
            yield event


def output_bytes(content: str | tuple[Text | Blob | Uri, ...]) -> int:
    """Count the bytes the model reads of a tool's output (reference C's toolOutputByteLength)."""
    if isinstance(content, str):
        return len(content) if content.isascii() else len(content.encode("utf-8", "surrogatepass"))
    return sum([len(part.content) if isinstance(part, (Text, Blob)) else len(part.uri) for part in content])


async def settled(work: Any) -> Any:
    """Await `work` to its end even if this task is cancelled meanwhile; the cancellation is raised afterwards."""
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as error:
            if task.cancelled():
                raise
            cancelled = error
        except BaseException:
            break
    result = task.result()
    if cancelled is not None:
        raise cancelled
    return result
