"""Models behind a llama.cpp server: one that runs already, by its address, or a `llama-server` that is started here.

`windlass.local.Model.load("http://127.0.0.1:8080")` asks the first; `ServerProcess` is the second. Both speak the HTTP
of llama.cpp's tools/server/README.md.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import tempfile
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine
from pathlib import Path
from typing import Any, Final

import msgspec

from windlass.core import clock
from windlass.core.errors import AuthError, ConfigError, LocalModelError, TransportError, WindlassError
from windlass.core.http import Client, Timeouts
from windlass.core.json import dumps
from windlass.local.backend import ModelInfo
from windlass.local.backend_native import LlamaBackend
from windlass.local.channel import Channel
from windlass.local.engine import EngineOptions, Fault, Kind, Line, error_of
from windlass.local.gguf import read_header

__all__ = ["ServerBackend", "ServerEngine", "ServerProcess"]

_TARGETS: Final[dict[str, str]] = {
    "chat": "/v1/chat/completions",
    "completion": "/v1/completions",
    "embeddings": "/v1/embeddings",
}
#: A prompt may be read for minutes before the first byte of an answer.
_PATIENT: Final = Timeouts(first_byte=None, idle=None)
_DATA: Final = b"data: "
_TAIL: Final = 2000


class _Loop:
    """An event loop on a thread of its own: a backend is asked from any thread."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._over = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="windlass-server-client", daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Return what the coroutine returns. Blocking."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result()

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self._over.set)
        self._thread.join()

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self.loop) as runner:
            runner.run(self._over.wait())


class ServerEngine:
    """Ask a llama.cpp server at `address` (scheme, host, port), whose `--api-key` is `api_key`: an AnsweringEngine."""

    def __init__(self, address: str, *, api_key: str = "") -> None:
        self.path = self.address = address.rstrip("/")
        self._headers = {"content-type": "application/json"}
        if api_key:
            self._headers["authorization"] = f"Bearer {api_key}"
        self._lock = threading.Lock()
        self._loop: _Loop | None = None
        self._client: Client | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def stream(self, body: dict[str, Any]) -> AsyncGenerator[bytes]:
        """Yield the chunks of one answer; see `ChatEngine.stream`."""
        channel = Channel()
        cancel = self.submit("chat", body, channel)
        try:
            async with contextlib.aclosing(channel.batches()) as batches:
                async for batch in batches:
                    for chunk in batch:
                        yield chunk
        finally:
            channel.close()
            cancel()

    def submit(self, kind: Kind, body: dict[str, Any], line: Line) -> Callable[[], None]:
        """Have a request answered into `line`; returns what ends it early. `line.put` must not wait."""
        loop = self._running()
        if kind == "chat":
            body = {**body, "stream": True, "stream_options": {"include_usage": True}}
        future = asyncio.run_coroutine_threadsafe(self._answer(kind, body, line), loop.loop)

        def cancel() -> None:
            future.cancel()

        return cancel

    def call(self, kind: Kind, body: dict[str, Any]) -> bytes:
        """Return the whole answer to a request. Blocking; raises as `stream`."""
        return self._running().run(self._whole("POST", _TARGETS.get(kind, f"/{kind}"), dumps(body)))

    def get(self, target: str) -> Any:
        """Return the decoded JSON at `target`. Blocking; raises as `stream`."""
        return msgspec.json.decode(self._running().run(self._whole("GET", target, b"")))

    def close(self) -> None:
        """Close the connections; requests under way end with LocalModelError. The server goes on."""
        with self._lock:
            loop, self._loop = self._loop, None
        if loop is not None:
            loop.run(self._shut())
            loop.close()

    def _running(self) -> _Loop:
        with self._lock:
            if self._loop is None:
                self._loop = _Loop()
            return self._loop

    async def _shut(self) -> None:
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    def _asking(self) -> Client:
        if self._client is None:
            self._client = Client(proxies={})
        return self._client

    async def _answer(self, kind: Kind, body: dict[str, Any], line: Line) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        error: BaseException | None = None
        try:
            await self._stream(_TARGETS.get(kind, f"/{kind}"), body, line)
        except asyncio.CancelledError:
            error = LocalModelError(f"The request to {self.address} was ended.", path=self.path)
            raise
        except WindlassError as failure:
            error = self._plain(failure)
        finally:
            self._tasks.discard(task)
            line.finish(error)

    async def _stream(self, target: str, body: dict[str, Any], line: Line) -> None:
        url, headers = self.address + target, self._headers
        request = self._asking().stream("POST", url, headers=headers, body=dumps(body), timeouts=_PATIENT)
        async with request as response:
            if response.status != 200 or not body.get("stream"):
                data = await response.read()
                self._check(target, response.status, data)
                line.put(data)
                return
            rest = b""
            async for piece in response:
                *lines, rest = (rest + piece).split(b"\n")
                for text in lines:
                    if text.startswith(_DATA) and (chunk := text[len(_DATA) :].strip()) != b"[DONE]":
                        if chunk.startswith(b'{"error":'):
                            self._check(target, 500, chunk)
                        if line.put(chunk):
                            return

    async def _whole(self, method: str, target: str, body: bytes) -> bytes:
        try:
            answer = await self._asking().request(
                method, self.address + target, headers=self._headers, body=body, timeouts=_PATIENT
            )
        except TransportError as failure:
            raise self._plain(failure) from failure
        self._check(target, answer.status, answer.body)
        return answer.body

    def _check(self, target: str, status: int, data: bytes) -> None:
        if status == 200:
            return
        try:
            fault = msgspec.convert(msgspec.json.decode(data)["error"], Fault)
        except (msgspec.DecodeError, KeyError, TypeError):
            said = data[:200].decode("utf-8", "replace")
            fault = Fault(f"{self.address}{target} answered {status}: {said}.")
        if status in (401, 403):
            raise AuthError(f"{self.address} refused the key.", provider="local", status=status, endpoint=self.address)
        raise error_of(fault, self.path)

    def _plain(self, error: WindlassError) -> WindlassError:
        if not isinstance(error, TransportError):
            return error
        plain = LocalModelError(
            f"The server at {self.address} cannot be asked: {error.message}", path=self.path, hint="Does it run?"
        )
        plain.__cause__ = error
        return plain


class ServerProcess:
    """A `llama-server` of ours: started for one model, on a port of 127.0.0.1 with a random key, and stopped.

    `binary` is found on PATH; `load_timeout` is in seconds. `start` blocks until the model is loaded; it raises
    ConfigError when there is no such program and LocalModelError, with the end of what it said, when it fails.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        options: EngineOptions | None = None,
        *,
        binary: str = "llama-server",
        load_timeout: float = 600.0,
    ) -> None:
        self.path, self.options = str(Path(path).absolute()), options or EngineOptions()
        self._binary, self._load_timeout = binary, load_timeout
        self.api_key = secrets.token_hex(32)
        self.process: subprocess.Popen[bytes] | None = None
        self.address = ""

    def start(self) -> ServerEngine:
        """Start it and return what asks it."""
        program = shutil.which(self._binary)
        if program is None:
            raise ConfigError(
                f"There is no {self._binary} on PATH.", hint="Install llama.cpp, or use the backend 'native'."
            )
        read_header(self.path)
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        self.address = f"http://127.0.0.1:{port}"
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 - closed by stop
        self.process = subprocess.Popen(
            [program, *self._arguments(port)],
            stdin=subprocess.DEVNULL,
            stdout=self._said,
            stderr=subprocess.STDOUT,
            env={**os.environ, "LLAMA_API_KEY": self.api_key},
            start_new_session=True,
        )
        engine = ServerEngine(self.address, api_key=self.api_key)
        try:
            self._await(engine)
        except BaseException:
            engine.close()
            self.stop()
            raise
        return engine

    def stop(self) -> None:
        """End it: asked to, and after five seconds made to."""
        process, self.process = self.process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(5.0)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        self._said.close()

    def _arguments(self, port: int) -> list[str]:
        options = self.options
        context = (options.context or 4096) * options.slots
        given: dict[str, Any] = {
            "-m": self.path,
            "--host": "127.0.0.1",
            "--port": port,
            "-c": context,
            "-np": options.slots,
            "-b": options.batch,
            "-ub": options.batch,
            "-t": options.threads,
            "-ngl": options.gpu_layers if options.gpu_layers >= 0 else None,
        }
        out = [str(part) for flag, value in given.items() if value is not None for part in (flag, value)]
        for adapter in options.adapters:
            read_header(adapter.path)
            out += ["--lora-scaled", f"{adapter.path}:{adapter.scale}"]
        return [*out, "--jinja", *([] if options.memory_map else ["--no-mmap"])]

    def _await(self, engine: ServerEngine) -> None:
        until = clock.monotonic() + self._load_timeout
        nap = threading.Event()
        process = self.process
        assert process is not None
        while True:
            if process.poll() is not None:
                raise self._failed(f"ended with status {process.returncode}")
            with contextlib.suppress(WindlassError):
                engine.get("/health")
                return
            if clock.monotonic() > until:
                raise self._failed(f"did not load the model within {self._load_timeout:g} s")
            nap.wait(0.05)

    def _failed(self, what: str) -> LocalModelError:
        end = os.fstat(self._said.fileno()).st_size
        self._said.seek(max(0, end - _TAIL))
        said = " | ".join(self._said.read().decode("utf-8", "replace").split("\n")[-5:]).strip(" |")
        return LocalModelError(f"{self._binary} {what}.", path=self.path, hint=f"It said: {said}" if said else "")


class ServerBackend(LlamaBackend):
    """A llama.cpp server as a `Backend`: at an address, or a `ServerProcess`, started now and stopped at close."""

    name = "server"

    def __init__(self, where: str | ServerProcess, *, api_key: str = "") -> None:
        self._process = where if isinstance(where, ServerProcess) else None
        engine = ServerEngine(where, api_key=api_key) if isinstance(where, str) else where.start()
        try:
            info = _told(engine)
        except BaseException:
            engine.close()
            if self._process is not None:
                self._process.stop()
            raise
        super().__init__(engine, info)

    def close(self) -> None:
        """Close the connections, and stop the server when it is ours."""
        super().close()
        if self._process is not None:
            self._process.stop()


def _told(engine: ServerEngine) -> ModelInfo:
    data: Any = engine.get("/v1/models")
    entries: list[Any] = data.get("data") or []
    if not entries:
        raise LocalModelError(f"The server at {engine.address} serves no model.", path=engine.path)
    meta: dict[str, Any] = entries[0].get("meta") or {}
    return ModelInfo(
        name=Path(str(entries[0].get("id", ""))).stem,
        path=engine.address,
        backend="server",
        quantization=str(meta.get("ftype", "")),
        parameters=int(meta.get("n_params", 0)),
        size=int(meta.get("size", 0)),
        context=int(meta.get("n_ctx", 0)),
        trained_context=meta.get("n_ctx_train"),
        vocabulary=int(meta.get("n_vocab", 0)),
        embedding_width=int(meta.get("n_embd", 0)),
        device="server",
    )
