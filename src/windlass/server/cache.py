"""The cache of whole answers to the very same question: off unless `[server] cache_ttl` says for how many seconds.

An answer is found again by a digest over tenant, route, dialect and body, so that no tenant ever sees another's. What
is kept is the answer as a whole in the client's dialect; a client that streams gets it encoded as a stream.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from functools import partial
from typing import Any

import msgspec
from msgspec import Struct

from windlass.core import clock
from windlass.core.errors import ProviderError, StoreError, StreamInterrupted
from windlass.core.items import Finish
from windlass.core.json import JsonError, loads
from windlass.core.usage import Usage
from windlass.server.answer import attempt
from windlass.server.job import Job
from windlass.server.translate import items_of
from windlass.stores.tables import Cursor, Tables

__all__ = ["MAX_BYTES", "CachedAnswer", "ResponseCache"]

log = logging.getLogger("windlass.server")
ROOM = "cache"
#: Steps are only ever added: those of a version that was given out never change.
STEPS = (
    "CREATE TABLE cached_answers(tenant TEXT NOT NULL, digest BLOB NOT NULL, created INTEGER NOT NULL, "
    "expires INTEGER NOT NULL, size INTEGER NOT NULL, about BLOB NOT NULL, body BLOB NOT NULL, "
    "PRIMARY KEY(tenant, digest))",
    "CREATE INDEX cached_answers_expires ON cached_answers(expires)",
    "CREATE INDEX cached_answers_created ON cached_answers(created, size)",
)
#: Bytes of one answer; a larger one is not kept.
MAX_BYTES = 1 << 20
#: Answers that may wait to be kept; while the database is slow further ones are not.
_WAITING = 64
#: Seconds between two clearings of what is too old, and the part of the bound that may come in between two looks at it.
_CLEAR, _PART = 600.0, 16
_SECOND = 1_000_000_000
#: What says only how an answer is told, or to whom.
_ASIDE = ("stream", "stream_options", "user", "metadata")
#: Where the dialects keep the temperature.
_SETTINGS = ("options", "generationConfig", "generation_config", "inferenceConfig")
_WHOLE = frozenset(("stop", "length", "tool_call"))


class CachedAnswer(Struct, frozen=True):
    """A kept answer: `body` in the client's dialect, and what the record and the headers say of it."""

    body: bytes
    target: str
    model: str | None
    usage: Usage
    reason: str | None


class _About(Struct, frozen=True):
    target: str
    model: str | None
    usage: Usage
    reason: str | None


class ResponseCache:
    """Keep answers in a database of small tables, which are made at first use. A database that fails is a miss."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables
        self._ready = False
        self._opening = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._clear_at = 0.0
        self._since = 0
        #: Answers that were found, that were not, and that could not be kept.
        self.hits = self.misses = self.failures = 0

    async def serve(self, job: Job) -> None:
        """Answer a job from the cache, else by asking, and keep the answer: an `answer.Work`."""
        control = job.call.head.headers.get("cache-control", "").lower()
        digest = None if "no-store" in control else _digest(job)
        if digest is None:
            await attempt(job)
            return
        found = None if "no-cache" in control else await self._find(job.call.identity.tenant, digest)
        if found is not None and _tell(job, found):
            self.hits += 1
            return
        self.misses += 1
        job.captured = []
        await attempt(job)
        made = _made(job)
        if made is not None and len(self._tasks) < _WAITING:
            # The client has its answer: it does not wait for this.
            work = self._keep(job.call.identity.tenant, digest, made, job.settings.cache_ttl, job.settings.cache_bytes)
            task = asyncio.get_running_loop().create_task(work, name="windlass-cache")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def flush(self) -> None:
        """Wait until what was answered is kept."""
        if self._tasks:
            await asyncio.wait(list(self._tasks))

    async def close(self) -> None:
        """Finish keeping, at most a few seconds."""
        if self._tasks:
            _, left = await asyncio.wait(list(self._tasks), timeout=5.0)
            for task in left:
                task.cancel()

    # -- the table -------------------------------------------------------------------------------------------------

    async def _open(self) -> Tables:
        if not self._ready:
            async with self._opening:
                if not self._ready:
                    await self._tables.migrate(ROOM, STEPS)
                    self._ready = True
        return self._tables

    async def _find(self, tenant: str, digest: bytes) -> CachedAnswer | None:
        try:
            tables = await self._open()
            rows = await tables.fetch(
                "SELECT about, body FROM cached_answers WHERE tenant = ? AND digest = ? AND expires > ?",
                (tenant, digest, clock.now_ns()),
            )
        except StoreError as error:
            self._failed("read", error)
            return None
        if not rows:
            return None
        about = msgspec.json.decode(rows[0][0], type=_About)
        return CachedAnswer(rows[0][1], about.target, about.model, about.usage, about.reason)

    async def _keep(self, tenant: str, digest: bytes, made: CachedAnswer, seconds: float, most: int) -> None:
        now = clock.now_ns()
        about = msgspec.json.encode(_About(made.target, made.model, made.usage, made.reason))
        size = len(made.body) + len(about) + len(tenant) + len(digest)
        row = (tenant, digest, now, now + round(seconds * _SECOND), size, about, made.body)
        try:
            tables = await self._open()
            self._since += size
            clear = self._clear_at <= clock.monotonic() or self._since * _PART >= most
            if clear:
                self._clear_at, self._since = clock.monotonic() + _CLEAR, 0
            await tables.transact(partial(_insert, row, most if clear else None), idempotent=True)
        except StoreError as error:
            self._failed("kept", error)

    def _failed(self, what: str, error: StoreError) -> None:
        self.failures += 1
        if self.failures == 1:
            log.warning("an answer could not be %s in the cache: %s", what, error)


def _insert(row: tuple[Any, ...], most: int | None, cursor: Cursor) -> None:
    """Put a row in; with a bound take out what is too old, and of the rest the oldest until it holds."""
    cursor.execute(
        "INSERT INTO cached_answers VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (tenant, digest) DO UPDATE SET "
        "created = excluded.created, expires = excluded.expires, size = excluded.size, about = excluded.about, "
        "body = excluded.body",
        row,
    )
    if most is None:
        return
    cursor.execute("DELETE FROM cached_answers WHERE expires <= ?", (row[2],))
    left = most - most // _PART
    for created, size in cursor.fetch("SELECT created, size FROM cached_answers ORDER BY created DESC"):
        left -= size
        if left < 0:
            cursor.execute("DELETE FROM cached_answers WHERE created <= ?", (created,))
            return


# --------------------------------------------------------------------------------------------------- which answers


def _digest(job: Job) -> bytes | None:
    """Return what a request's answer is found by; None for a request whose answer is its own."""
    if job.keep is not None or job.history or job.report.session_id:
        return None
    try:
        fields = loads(job.call.body)
    except JsonError:
        return None
    if not isinstance(fields, dict) or fields.get("n") not in (None, 1):
        return None
    if not job.settings.cache_any_temperature and not _is_cold(fields):
        return None
    for name in _ASIDE:
        fields.pop(name, None)
    question = (
        job.call.identity.tenant, job.model, [target.name for target in job.route.targets], job.ingress.name, fields
    )  # fmt: skip
    try:
        return hashlib.sha256(msgspec.json.encode(question, order="sorted")).digest()
    except (msgspec.MsgspecError, UnicodeEncodeError, OverflowError):
        return None


def _is_cold(fields: dict[str, Any]) -> bool:
    """Tell whether a temperature of 0 is asked for, in whichever dialect."""
    places = [fields, *[fields.get(name) for name in _SETTINGS]]
    found = [place["temperature"] for place in places if isinstance(place, dict) and "temperature" in place]
    return bool(found) and all(value == 0 and not isinstance(value, bool) for value in found)


def _made(job: Job) -> CachedAnswer | None:
    """Return the answer that was given, when it is one that may be given again."""
    report, dialect = job.report, job.ingress.dialect
    if report.outcome != "ok" or job.call.status != 200 or job.keep is not None or ", " in report.target:
        return None
    try:
        if job.captured:
            body = job.captured[-1]
            finish = dialect.decode_response(body)
        elif job.kept:
            finish = _finish(job)
            body = dialect.encode_response(
                finish, model=finish.model or report.model or job.model, response_id=job.response_id,
                created=clock.now_ns() // _SECOND, **job.encoder_options(),
            )  # fmt: skip
        else:
            return None
    except ProviderError:
        return None
    if finish.reason not in _WHOLE or len(body) > MAX_BYTES:
        return None
    return CachedAnswer(body, report.target, report.model, job.usage(), report.finish_reason or finish.raw)


def _finish(job: Job) -> Finish:
    """Return the end of a stream that passed through; the client may not have been told the usage. Raises WireError."""
    decoder = job.ingress.dialect.stream_decoder()
    items = [*decoder.feed(b"".join(job.kept or ())), *decoder.close()]
    for item in reversed(items):
        if isinstance(item, Finish):
            return msgspec.structs.replace(item, usage=job.usage())
    raise StreamInterrupted("The stream had no end.")


# ---------------------------------------------------------------------------------------------------------- telling


def _tell(job: Job, found: CachedAnswer) -> bool:
    """Answer with what was kept, which costs nothing; False when it cannot be read any more."""
    try:
        finish = job.ingress.dialect.decode_response(found.body) if job.stream else None
    except ProviderError:
        return False
    report = job.report
    report.outcome, report.cost, report.usage = "cached", 0, found.usage
    report.target, report.model, report.finish_reason = found.target, found.model, found.reason
    report.first_at = clock.monotonic()
    job.call.extra_headers.append(("x-windlass-cache", "hit"))
    if finish is None:
        job.answered(found.body)
    else:
        job.begin()
        encoder = job.encoder()
        job.call.write(b"".join([encoder.encode(item) for item in items_of(finish)]), last=True)
    return True
