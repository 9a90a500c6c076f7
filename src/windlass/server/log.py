"""What the server writes down: a line for each model request, and its own messages, as text or as JSON.

Whatever a client sends stays inside one line: everything but plain ASCII is escaped. Lines of requests are written by a
thread, in batches; where nobody reads them, they are dropped and counted.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import queue
import re
import threading
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

from windlass.accounts.keys import Identity
from windlass.accounts.records import RequestRecord
from windlass.core import clock
from windlass.core.threads import run_in_thread
from windlass.core.usage import format_cost
from windlass.server.job import Job

__all__ = ["Form", "RequestLog", "logging_to", "write_stderr"]

Form = Literal["off", "text", "json"]
#: Lines that may wait to be written; further ones are dropped.
KEEP = 20_000
#: What is written at once stays whole between the lines of others (POSIX, PIPE_BUF).
_PIECE = 4096
#: Longer texts of a client's are cut.
_LONGEST = 256
_PLAIN = re.compile(r"[A-Za-z0-9_.:/@+,-]+")
#: The loggers whose messages are the server's own.
_LOGGERS = ("windlass", "opentelemetry")


def write_stderr(data: bytes) -> None:
    """Write whole lines. Raises OSError."""
    while data:
        data = data[os.write(2, data) :]


class _Writer:
    """A thread that encodes and writes lines, made at first use: nobody else ever waits for who reads them."""

    def __init__(self, write: Callable[[bytes], None]) -> None:
        self._write = write
        self._batches: queue.SimpleQueue[tuple[Callable[[Any], bytes], Sequence[Any]] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        # Each is changed by one thread alone.
        self._taken = self._refused = self._left = 0
        self._done = self._failed = 0

    @property
    def dropped(self) -> int:
        """Lines that were not written: too many were waiting, writing failed, or there was no time at the end."""
        return self._refused + self._failed + self._left

    def take(self) -> bool:
        """Count one line that is going to come; False when too many wait and it is dropped."""
        if self._taken - self._done >= KEEP:
            self._refused += 1
            return False
        self._taken += 1
        return True

    def put(self, encode: Callable[[Any], bytes], rows: Sequence[Any]) -> None:
        """Hand over lines that were taken."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="windlass-log", daemon=True)
            self._thread.start()
        self._batches.put((encode, rows))

    def close(self, seconds: float) -> None:
        """Wait until all is written, at most so long."""
        if self._thread is not None:
            self._batches.put(None)
            self._thread.join(seconds)
        self._left = self._taken - self._done

    def _work(self) -> None:
        while (batch := self._batches.get()) is not None:
            encode, rows = batch
            for piece, count in _pieces(map(encode, rows)):
                try:
                    self._write(piece)
                except OSError:
                    self._failed += count
                self._done += count


def _pieces(lines: Iterable[bytes]) -> Generator[tuple[bytes, int]]:
    """Yield lines together as far as they stay whole, and how many they are."""
    piece, count = b"", 0
    for line in lines:
        if piece and len(piece) + len(line) > _PIECE:
            yield piece, count
            piece, count = b"", 0
        piece, count = piece + line, count + 1
    if piece:
        yield piece, count


def _name(identity: Identity) -> str:
    """Return the name by which a line calls a caller: never a secret."""
    return identity.name or identity.key_id or "anonymous"


class _Line(NamedTuple):
    #: As the client knows it.
    request: str
    record: RequestRecord
    key: str
    agent: str


class RequestLog:
    """Write a line per record, `interval` seconds after the first of a batch, to stderr. A watcher of the gateway.

    `write` takes whole lines, in a thread; what it raises as OSError loses them. Belongs to one event loop.
    """

    def __init__(
        self,
        form: Literal["text", "json"],
        *,
        write: Callable[[bytes], None] = write_stderr,
        interval: float = 0.1,
    ) -> None:
        self._encode = _as_json if form == "json" else _as_text
        self._writer, self._interval = _Writer(write), interval
        self._rows: list[_Line] = []
        self._timer: asyncio.TimerHandle | None = None

    @property
    def dropped(self) -> int:
        """Lines that were not written: too many were waiting, or writing failed."""
        return self._writer.dropped

    def __call__(self, record: RequestRecord, job: Job) -> None:
        """Take a record; returns at once."""
        if not self._writer.take():
            return
        call = job.call
        self._rows.append(_Line(call.id, record, _name(call.identity), call.head.headers.get("user-agent", "")))
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._interval, self._hand_over)

    def _hand_over(self) -> None:
        self._timer = None
        rows, self._rows = self._rows, []
        self._writer.put(self._encode, rows)

    async def close(self, seconds: float = 2.0) -> None:
        """Write the rest; where that takes longer it is lost."""
        if self._timer is not None:
            self._timer.cancel()
            self._hand_over()
        await run_in_thread(self._writer.close, seconds)


# ------------------------------------------------------------------------------------------------------------- lines


def _fields(line: _Line) -> dict[str, Any]:
    record = line.record
    out: dict[str, Any] = {
        "time": clock.rfc3339(record.time), "level": "info", "event": "request", "request_id": line.request,
        "record_id": record.id, "key": line.key, "key_id": record.key_id, "tenant": record.tenant,
        "address": record.address, "endpoint": record.endpoint, "model": record.route, "target": record.target,
        "attempts": record.attempts,
        "status": record.status, "outcome": record.outcome, "error": record.error, "stream": record.stream,
        "session_id": record.session_id, "input_tokens": record.input_tokens, "output_tokens": record.output_tokens,
        "cache_read_tokens": record.cache_read_tokens, "estimated": record.estimated,
        "cost": None if record.cost is None else format_cost(record.cost)[1:],
        "duration_ms": record.duration_us / 1000,
        "first_token_ms": None if record.first_token_us is None else record.first_token_us / 1000,
        "upstream_ms": None if record.upstream_us is None else record.upstream_us / 1000,
        "user_agent": line.agent,
    }  # fmt: skip
    return {name: value[:_LONGEST] if isinstance(value, str) else value for name, value in out.items()}


def _as_json(line: _Line) -> bytes:
    return _json(_fields(line))


def _json(fields: dict[str, Any]) -> bytes:
    # With every character beyond ASCII escaped nothing ends a line, colours a terminal or turns text around.
    return json.dumps(fields, separators=(",", ":"), default=str).replace("\x7f", "\\u007f").encode() + b"\n"


def _as_text(line: _Line) -> bytes:
    fields = _fields(line)
    begun, event = fields.pop("time"), fields.pop("event")
    del fields["level"]
    shown = [f"{name}={_quoted(value)}" for name, value in fields.items() if value not in ("", None, False)]
    return f"{begun} {event} {' '.join(shown)}\n".encode()


def _quoted(value: Any) -> str:
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return text if _PLAIN.fullmatch(text) else json.dumps(text).replace("\x7f", "\\u007f")


# ---------------------------------------------------------------------------------------------------- our own messages


class _Messages(logging.Handler):
    """Write the messages of the server's loggers to stderr: one line each, and in text the traceback below it."""

    def __init__(self, form: Form, write: Callable[[bytes], None]) -> None:
        super().__init__()
        self._json = form == "json"
        self._traces = logging.Formatter()
        self._writer = _Writer(write)

    def emit(self, record: logging.LogRecord) -> None:
        """Take one message; returns at once."""
        if not self._writer.take():
            return
        trace = self._traces.formatException(record.exc_info) if record.exc_info else ""
        message = record.getMessage()
        if self._json:
            fields = {
                "time": clock.rfc3339(int(record.created * 1e9)), "level": record.levelname.lower(),
                "event": "message", "logger": record.name, "message": message,
            }  # fmt: skip
            data = _json({**fields, "exception": trace} if trace else fields)
        else:
            shown = [_shown(message), *[_shown(line) for line in trace.splitlines()]]
            said = "" if message.startswith("windlass ") else "windlass: "
            data = f"{said}{chr(10).join(shown)}\n".encode()
        self._writer.put(bytes, [data])

    def finish(self) -> None:
        """Write the rest, for at most two seconds."""
        self._writer.close(2.0)


def _shown(text: str) -> str:
    return "".join([char if char.isprintable() else char.encode("unicode_escape").decode() for char in text])


@contextmanager
def logging_to(form: Form, write: Callable[[bytes], None] = write_stderr) -> Generator[None]:
    """Write the messages of the server, its lifecycle and its errors, to stderr inside a `with` block."""
    handler = _Messages(form, write)
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    before = [(logger.handlers[:], logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.handlers[:], logger.propagate = [handler], False
    try:
        yield
    finally:
        for logger, (handlers, propagate) in zip(loggers, before, strict=True):
            logger.handlers[:], logger.propagate = handlers, propagate
        handler.finish()
