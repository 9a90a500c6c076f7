"""The child process that runs a user's model: `python -m windlass.local.worker`, started by `supervisor` only.

One JSON object per line. In come the model first (`path`, `options`, `memory`), then `{"id", "body", "kind"}` to ask
and `{"id"}` alone to cancel; out go `{"id", "chunk"}`, `{"id", "done", "fault"}` and, with id 0, what became of
loading. The end of stdin ends the process, so that it never outlives its parent.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from windlass.core.errors import WindlassError
from windlass.local.engine import EngineOptions, Fault, Kind, Native

__all__ = ["Ask", "Hello", "Reply", "main"]

EXIT_STUCK, EXIT_LOAD = 70, 71


class Hello(Struct, frozen=True):
    """The first line in: what to load.

    `memory` caps the process's own memory in bytes (None: no cap). `grace` is how many seconds a cancelled request may
    go on before the whole process is given up: a chat template can loop for ever.
    """

    path: str
    options: EngineOptions
    memory: int | None = None
    grace: float = 5.0


class Ask(Struct, frozen=True, omit_defaults=True):
    """A later line in: a request to answer, or without `body` one to cancel."""

    id: int
    body: dict[str, Any] | None = None
    kind: Kind = "chat"


class Reply(Struct, frozen=True, omit_defaults=True):
    """A line out: a chunk, or the end with the fault if there was one; id 0 is about loading."""

    id: int
    chunk: msgspec.Raw = msgspec.Raw()
    done: bool = False
    fault: Fault | None = None


class _Writer:
    """Write lines from several threads; a parent that is gone ends the process."""

    def __init__(self, descriptor: int) -> None:
        self._file = os.fdopen(descriptor, "wb")
        self._lock = threading.Lock()

    def send(self, line: bytes) -> None:
        try:
            with self._lock:
                self._file.write(line)
                self._file.flush()
        except OSError:
            os._exit(0)

    def reply(self, reply: Reply) -> None:
        self.send(msgspec.json.encode(reply) + b"\n")


class _Answers:
    """The requests under way."""

    def __init__(self, native: Native, writer: _Writer, grace: float) -> None:
        self._native, self._writer, self._grace = native, writer, grace
        self._pool = ThreadPoolExecutor(native.slots, "windlass-engine")
        # What needs no slot must not wait for one.
        self._aside = ThreadPoolExecutor(1, "windlass-aside")
        self._cancelled: dict[int, threading.Event] = {}
        self._begun: dict[int, Future[None]] = {}

    def start(self, ask: Ask) -> None:
        assert ask.body is not None
        event = self._cancelled[ask.id] = threading.Event()
        pool = self._pool if ask.kind in ("chat", "completion", "embeddings") else self._aside
        work = self._begun[ask.id] = pool.submit(self._answer, ask.id, ask.kind, ask.body, event)
        work.add_done_callback(lambda _: self._begun.pop(ask.id, None))

    def cancel(self, number: int) -> None:
        event, work = self._cancelled.get(number), self._begun.get(number)
        if work is not None and work.cancel():
            # It waited for a slot: nothing has begun that could be stuck.
            del self._cancelled[number]
            self._writer.reply(Reply(number, done=True))
        elif event is not None:
            event.set()
            watch = threading.Timer(self._grace, self._give_up, (number,))
            watch.daemon = True
            watch.start()

    def _give_up(self, number: int) -> None:
        if number in self._cancelled:
            print(f"request {number} went on for {self._grace:g} s after it was cancelled", file=sys.stderr, flush=True)  # noqa: T201
            os._exit(EXIT_STUCK)

    def _answer(self, number: int, kind: Kind, body: dict[str, Any], cancelled: threading.Event) -> None:
        head = b'{"id":%d,"chunk":' % number

        def take(chunk: bytes) -> bool:
            if chunk and not cancelled.is_set():
                self._writer.send(head + chunk + b"}\n")
            return cancelled.is_set()

        fault = None
        try:
            if not cancelled.is_set():
                fault = self._native.answer(kind, body, take)
        except Exception as error:
            fault = Fault(f"The engine failed: {error!r}.")
        del self._cancelled[number]
        self._writer.reply(Reply(number, done=True, fault=fault))


if sys.platform == "win32":

    def _limit(memory: int | None) -> None:
        del memory  # Windows has no such limits
else:
    import resource

    def _limit(memory: int | None) -> None:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if memory is not None:
            resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))


def _confine(memory: int | None) -> None:
    """Make this process the first to go when memory runs short, and keep its own memory under the cap."""
    # Ctrl-C in a terminal reaches every process there; our parent decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(OSError):  # only Linux has it, and a container may forbid it
        Path("/proc/self/oom_score_adj").write_text("1000")
    _limit(memory)


def main() -> int:
    """Load the model that the first line names and answer until stdin ends. Returns the exit status."""
    # The engine prints to stdout in places: the pipe to the parent moves to another descriptor.
    writer = _Writer(os.dup(1))
    os.dup2(2, 1)
    lines = sys.stdin.buffer
    hello = msgspec.json.decode(lines.readline(), type=Hello)
    _confine(hello.memory)
    try:
        native = Native(hello.path, hello.options)
    except WindlassError as error:
        writer.reply(Reply(0, done=True, fault=Fault(str(error), error.code)))
        return EXIT_LOAD
    writer.reply(Reply(0))
    answers = _Answers(native, writer, hello.grace)
    decoder = msgspec.json.Decoder(Ask)
    for line in lines:
        ask = decoder.decode(line)
        if ask.body is None:
            answers.cancel(ask.id)
        else:
            answers.start(ask)
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
