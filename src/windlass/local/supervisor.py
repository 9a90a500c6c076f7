"""Run a user's model in a worker process: whatever the engine does with a hostile file, this process lives on.

A worker that dies fails the requests it was answering with a typed error, and the next request starts another one.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import queue
import re
import signal
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any, Final

import msgspec

from windlass.core.errors import ConfigError, LocalModelError, WindlassError
from windlass.core.threads import run_in_thread
from windlass.local.channel import Channel, Whole
from windlass.local.engine import EngineOptions, Kind, Line, error_of
from windlass.local.gguf import read_header
from windlass.local.worker import EXIT_LOAD, EXIT_STUCK, Ask, Hello, Reply

__all__ = ["WorkerEngine"]

# What a worker needs of the environment; above all no keys of the user's.
_ENVIRONMENT: Final = ("PATH", "HOME", "LANG", "TMPDIR", "TEMP", "TMP", "SYSTEMROOT", "VIRTUAL_ENV")
_PREFIXES: Final = ("PYTHON", "LC_", "LD_", "DYLD_", "CUDA_", "NVIDIA_", "HIP_", "ROCR_", "GGML_", "OMP_", "VK_")
_ERROR_TAIL: Final = 2048
_STAMP: Final = re.compile(r"^[\d.]+ [EWI] ")
_encode = msgspec.json.Encoder().encode
_log = logging.getLogger("windlass.local")


class WorkerEngine:
    """A model in a process of its own, started by its first request. See `engine.ChatEngine`.

    `load_timeout` and `grace` are in seconds: for loading, and for a cancelled request to stop before the worker is
    ended. `memory` caps what the worker allocates besides the mapped file, in bytes.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        options: EngineOptions | None = None,
        *,
        load_timeout: float = 600.0,
        memory: int | None = None,
        grace: float = 5.0,
    ) -> None:
        self.path = os.fspath(path)
        self._options = options or EngineOptions(log=True)
        self._load_timeout, self._memory, self._grace = load_timeout, memory, grace
        self._lock = threading.Lock()
        self._worker: _Worker | None = None
        _engines.add(self)

    @property
    def pid(self) -> int | None:
        """The worker's process id, None while none runs."""
        worker = self._worker
        return worker.process.pid if worker is not None and worker.alive else None

    async def stream(self, body: dict[str, Any]) -> AsyncGenerator[bytes]:
        """Yield the chunks of one answer; see `ChatEngine.stream`."""
        for attempt in (1, 2):
            begun = False
            try:
                async with contextlib.aclosing(self._answer(body)) as chunks:
                    async for chunk in chunks:
                        begun = True
                        yield chunk
                return
            except _GivenUp:
                # Another request brought the worker down; this one has cost nothing yet.
                if begun or attempt == 2:
                    raise

    async def _answer(self, body: dict[str, Any]) -> AsyncGenerator[bytes]:
        if self.pid is None:
            await run_in_thread(read_header, self.path)
        channel = Channel()
        forget = self._ask("chat", body, channel)
        try:
            async with contextlib.aclosing(channel.batches()) as batches:
                async for batch in batches:
                    for chunk in batch:
                        yield chunk
        finally:
            channel.close()
            forget()

    def submit(self, kind: Kind, body: dict[str, Any], line: Line) -> Callable[[], None]:
        """Have a request answered into `line`; returns what cancels it, to be called when the line is closed.

        Blocking while the file's header is read, before the first request. `line.put` must not wait: one thread reads
        the answers to all requests. Raises LocalModelError.
        """
        if self.pid is None:
            read_header(self.path)
        return self._ask(kind, body, line)

    def call(self, kind: Kind, body: dict[str, Any]) -> bytes:
        """Return the answer to what is answered at once (`tokenize`, ...). Blocking; raises as `stream`."""
        whole = Whole()
        self.submit(kind, body, whole)
        return whole.wait()[-1]

    def _ask(self, kind: Kind, body: dict[str, Any], line: Line) -> Callable[[], None]:
        with self._lock:
            if self._worker is None or not self._worker.alive:
                hello = Hello(str(Path(self.path).absolute()), self._options, self._memory, self._grace)
                self._worker = _Worker(self.path, hello, self._load_timeout)
            worker = self._worker
            number = worker.ask(kind, body, line)
        return lambda: worker.forget(number)

    def close(self) -> None:
        """End the worker; see `ChatEngine.close`."""
        with self._lock:
            worker, self._worker = self._worker, None
        if worker is not None:
            worker.stop(f"The model {self.path} was unloaded.")


class _GivenUp(LocalModelError):
    """Report a worker that was ended because a cancelled request would not stop."""


class _Worker:
    """One process and the two threads that talk to it."""

    def __init__(self, path: str, hello: Hello, load_timeout: float) -> None:
        self._path = path
        self._channels: dict[int, Line] = {}
        self._lock = threading.Lock()  # over the channels and `alive`
        self._last = 0
        self.alive = True
        self._end: WindlassError | None = None
        try:
            self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed by the reader at the end
            self.process = subprocess.Popen(
                # -P: a module of the same name in the current folder must not be run instead.
                [sys.executable, "-P", "-m", "windlass.local.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                env={k: v for k, v in os.environ.items() if k in _ENVIRONMENT or k.startswith(_PREFIXES)},
                start_new_session=True,
            )
        except OSError as error:
            raise LocalModelError(f"No worker process could be started for {path}: {error}.", path=path) from error
        self._outbox: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._outbox.put(_encode(hello) + b"\n")
        self._loading = threading.Timer(
            load_timeout, self._kill, (f"The model {path} was not loaded within {load_timeout:g} s.",)
        )
        self._loading.daemon = True
        self._loading.start()
        self._reader = threading.Thread(target=self._read, name="windlass-worker-out", daemon=True)
        self._reader.start()
        threading.Thread(target=self._write, name="windlass-worker-in", daemon=True).start()

    def ask(self, kind: Kind, body: dict[str, Any], channel: Line) -> int:
        with self._lock:
            self._last += 1
            number = self._last
            if self.alive:
                self._channels[number] = channel
            else:
                channel.finish(self._end)
        self._outbox.put(_encode(Ask(number, body, kind)) + b"\n")
        return number

    def forget(self, number: int) -> None:
        """Cancel a request whose answer nobody reads any more; nothing when it has ended."""
        with self._lock:
            channel = self._channels.get(number)
        if channel is not None:
            self._outbox.put(_encode(Ask(number)) + b"\n")

    def stop(self, reason: str) -> None:
        self._kill(reason)
        self._reader.join()

    def _kill(self, reason: str) -> None:
        with self._lock:
            self._end = self._end or LocalModelError(reason, path=self._path)
        self.process.kill()

    def _write(self) -> None:
        pipe = self.process.stdin
        assert pipe is not None
        # A worker that loads does not read: a large request must wait here and not on the event loop.
        with contextlib.suppress(OSError), pipe:
            while (line := self._outbox.get()) is not None:
                pipe.write(line)
                pipe.flush()

    def _read(self) -> None:
        pipe = self.process.stdout
        assert pipe is not None
        decoder = msgspec.json.Decoder(Reply)
        problem = ""
        with pipe:
            for line in pipe:
                try:
                    self._take(decoder.decode(line))
                except msgspec.DecodeError as error:
                    problem = f"sent what is not a reply ({error})"
                    self.process.kill()
                    break
        self._ended(self.process.wait(), problem)

    def _take(self, reply: Reply) -> None:
        if reply.id == 0:
            self._loading.cancel()
            if reply.fault is not None:
                said = self._complaints()
                unusable = reply.fault.type == ConfigError.code
                error = (
                    ConfigError(reply.fault.message)
                    if unusable
                    else LocalModelError(reply.fault.message, path=self._path, hint=said)
                )
                with self._lock:
                    self._end = self._end or error
            return
        channel = self._channels.get(reply.id)
        if channel is None:
            return
        channel.put(bytes(reply.chunk))
        if reply.done:
            with self._lock:
                del self._channels[reply.id]
            channel.finish(error_of(reply.fault, self._path) if reply.fault else None)

    def _ended(self, status: int, problem: str) -> None:
        self._loading.cancel()
        with self._lock:
            self.alive = False
            if self._end is None:
                why = problem or _cause(status)
                said = self._complaints()
                kind = _GivenUp if status == EXIT_STUCK else LocalModelError
                self._end = kind(
                    f"The worker process of the model {self._path} {why}.",
                    path=self._path,
                    hint=f"{said} The next request starts it again.".strip(),
                )
                # With no request under way nobody would be told.
                _log.warning("%s", self._end)
            channels = list(self._channels.values())
            self._channels.clear()
        for channel in channels:
            channel.finish(self._end)
        self._outbox.put(None)
        self._errors.close()

    def _complaints(self) -> str:
        """Return what the engine wrote to stderr of late, on one line."""
        # Never by seeking: the worker writes through the same file description.
        end = os.fstat(self._errors.fileno()).st_size
        tail = os.pread(self._errors.fileno(), _ERROR_TAIL, max(0, end - _ERROR_TAIL)) if hasattr(os, "pread") else b""
        lines = [_STAMP.sub("", line.strip()) for line in tail.decode("utf-8", "replace").splitlines()]
        said = " ".join(" | ".join([line for line in lines if line]).split())
        # A failed load tells its reason first, a failed assertion last.
        return "" if not said else f"It said: {said if len(said) < 600 else f'{said[:300]} … {said[-300:]}'}"


def _cause(status: int) -> str:
    if status >= 0:
        known = {
            EXIT_STUCK: "would not stop when a request was cancelled and was ended",
            EXIT_LOAD: "could not load it",
        }
        return known.get(status, f"ended with status {status}")
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = f"signal {-status}"
    return f"was killed by {name}" + (" (out of memory?)" if -status == getattr(signal, "SIGKILL", 9) else "")


_engines: weakref.WeakSet[WorkerEngine] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:  # pyright: ignore[reportUnusedFunction]
    for engine in list(_engines):
        engine.close()
