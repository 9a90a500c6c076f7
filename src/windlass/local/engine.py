"""Run a GGUF model through llama.cpp, in this process: requests and chunks are OpenAI chat-completions JSON.

`Native` blocks and belongs to whoever calls it (the worker process uses it directly); `Engine` puts it on threads of
its own and lets the event loop wait. An engine belongs to the process: any number of loops may ask it. It may abort the
process on a malformed model, so that only the shipped model runs here and all others in a worker (`supervisor`).
"""

from __future__ import annotations

import atexit
import contextlib
import importlib.util
import os
import threading
import weakref
from collections import deque
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any, Final, Literal, Protocol

import msgspec
from msgspec import Struct

from windlass.core.errors import (
    BadRequestError,
    ConfigError,
    ContextExceededError,
    LocalModelError,
    WindlassError,
)
from windlass.core.json import dumps
from windlass.local.channel import Channel
from windlass.local.control import control_tokens
from windlass.local.copying import guide
from windlass.local.door import Door
from windlass.local.forced import NotHeld, Rewriter, plan
from windlass.local.gguf import read_header
from windlass.local.options import DEFAULT_CONTEXT, Adapter, EngineOptions, engine_parameters

__all__ = [
    "Adapter",
    "ChatEngine",
    "Engine",
    "EngineOptions",
    "Fault",
    "Kind",
    "Line",
    "Native",
    "count_tokens",
    "error_of",
    "require_engine",
]

#: What an engine can be asked: `chat` and `completion` answer in chunks, all others with one; each takes and gives the
#: JSON of llama.cpp's server (tools/server/README.md: /v1/chat/completions, /v1/completions, /v1/embeddings, ...).
Kind = Literal["chat", "completion", "embeddings", "tokenize", "detokenize", "apply-template"]

# What the engine sends while it reads the prompt. A quote inside text is escaped, so that no text can look like this.
_PROGRESS: Final = b'"prompt_progress":{'
_ERROR: Final = b'{"error":'


class Fault(Struct, frozen=True, omit_defaults=True):
    """A failed request in the engine's words: `type` is its error type, or `engine` for the engine's own failure."""

    message: str
    type: str = "engine"
    n_prompt_tokens: int = 0
    n_ctx: int = 0


class Line(Protocol):
    """Where an answer goes, from any thread: chunks, then the end."""

    @property
    def closed(self) -> bool: ...

    def put(self, chunk: bytes) -> bool:
        """Take one chunk (an empty one only asks); True tells the writer to stop."""
        ...

    def finish(self, error: BaseException | None = None) -> None:
        """End the answer, with the error that it ended with; only the first call counts."""
        ...

    def close(self) -> None:
        """Tell the writer to stop: nobody reads any more."""
        ...


class ChatEngine(Protocol):
    """What answers chat requests: the engine in this process or the one in a worker."""

    @property
    def path(self) -> str: ...

    def stream(self, body: dict[str, Any]) -> AsyncGenerator[bytes]:
        """Yield the chunks (JSON objects) of one answer; closing early stops the engine at its next token.

        `body` is an OpenAI chat request without `model` and `stream`; usage and timings come in the last chunks.
        Raises ContextExceededError, BadRequestError or LocalModelError.
        """
        ...

    def close(self) -> None:
        """Unload the model; requests under way end with LocalModelError, a later one loads it again. Blocking."""
        ...


def error_of(fault: Fault, path: str) -> WindlassError:
    """Return the typed error for a fault."""
    name = Path(path).stem
    if fault.type == "exceed_context_size_error":
        return ContextExceededError(
            f"The prompt has {fault.n_prompt_tokens} tokens; the context of {name} holds {fault.n_ctx}.",
            provider="local",
            model=name,
            hint="Shorten the conversation or load the model with a larger context.",
        )
    if fault.type in ("invalid_request_error", "not_supported_error"):
        return BadRequestError(f"The engine refused the request: {fault.message}.", provider="local", model=name)
    return LocalModelError(fault.message, path=path)


async def count_tokens(engine: ChatEngine, body: dict[str, Any]) -> int:
    """Return how many tokens the request's prompt has, exactly, through the model's own template and tokenizer.

    The prompt is read into the engine's cache on the way, so that the real request that follows starts sooner. Raises
    as `stream`, ContextExceededError included.
    """
    count = 0
    async with contextlib.aclosing(engine.stream({**body, "max_tokens": 1})) as chunks:
        async for chunk in chunks:
            usage: Any = msgspec.json.decode(chunk).get("usage")
            if usage:
                count = usage["prompt_tokens"]
    return count


def require_engine() -> None:
    """Check that the engine is installed, without the cost of loading it. Raises ConfigError when it is not."""
    if importlib.util.find_spec("xllamacpp") is None:
        raise ConfigError(
            "Local models need the engine xllamacpp, which is not installed.", hint="pip install 'windlass[local]'"
        )


def _import_engine() -> Any:
    require_engine()
    import xllamacpp

    return xllamacpp


class Native:
    """A loaded model; every method blocks, and `chat` may be called from several threads at a time.

    Raises LocalModelError when the file is not a usable model, ConfigError when the engine is not installed.
    """

    def __init__(self, path: str, options: EngineOptions) -> None:
        info = read_header(path)
        if not info.tensors:
            raise LocalModelError(f"{path} holds no weights, only a header.", path=path, hint="Use the whole model.")
        library = _import_engine()
        self.path, self.slots = path, max(1, options.slots)
        self.context = max(1, options.context or min(info.context_length or DEFAULT_CONTEXT, DEFAULT_CONTEXT))
        try:
            self._control = control_tokens(info)
        except OSError as error:
            raise LocalModelError(f"{path} cannot be read: {error}.", path=path) from error
        self._wrap = ("<tool_call>\n", "\n</tool_call>") if "<tool_call>" in info.chat_template else ("", "")
        self._to_grammar: Callable[[dict[str, Any]], str] = library.json_schema_to_grammar
        self._server: Any = None
        for adapter in options.adapters:
            read_header(adapter.path)  # strangers' files too
        params = engine_parameters(library, info, self.context, self.slots, options)
        self._door: Door | None = None
        try:
            self._door = Door(params)
            self._server = library.Server(params)
            self._door.shut(str(self._server.listening_address))
        except OSError as error:
            self._abandon()
            raise LocalModelError(f"No temporary folder could be made for the engine: {error}.", path=path) from error
        except RuntimeError as error:
            self._abandon()
            raise LocalModelError(
                f"The engine could not load {path}: {str(error).rstrip('.')}.",
                path=path,
                hint="Its architecture or quantisation may be too new for the installed engine, or memory too short.",
            ) from error

    def answer(self, kind: Kind, body: dict[str, Any], take: Callable[[bytes], bool]) -> Fault | None:
        """Answer one request of any kind; as `chat`."""
        if kind == "chat":
            return self.chat(body, take)
        if kind == "completion":
            return self._run(self._server.handle_completions, body, take)
        if kind == "embeddings":
            return self._run(self._vectors, body, take)
        assert self._door is not None
        try:
            take(self._door.ask(f"/{kind}", body))
        except LocalModelError as error:
            return Fault(error.message)
        return None

    def chat(self, body: dict[str, Any], take: Callable[[bytes], bool]) -> Fault | None:
        """Answer one request: hand each chunk to `take` until it returns True, and return the fault if there is one.

        `take` also gets empty chunks, which only ask whether to stop. What it raises ends the answer and comes back.
        """
        if body.get("tool_choice") == "none":
            # The engine would leave the tools in the prompt and pass on a call of one as text.
            body = {key: value for key, value in body.items() if key not in ("tools", "tool_choice")}
        body = self._control.as_text(body)
        if (guided := guide(body, self._wrap)) is not None:
            body, take = guided.body, guided.reader(take).feed
        elif (forced := plan(body, self._wrap, self._to_grammar)) is not None:
            body, take = forced.body, Rewriter(forced, take).feed
        asked = {**body, "stream": True, "stream_options": {"include_usage": True}, "return_progress": True}
        return self._run(self._server.handle_chat_completions, asked, lambda c: take(b"" if _PROGRESS in c else c))

    def _vectors(self, asked: bytes, receive: Callable[[bytes], bool]) -> None:
        receive(self._server.handle_embeddings(asked))  # has no callback, and answers errors as chunks

    def _run(self, handle: Callable[..., Any], body: dict[str, Any], take: Callable[[bytes], bool]) -> Fault | None:
        faults: list[bytes | Exception] = []

        def receive(chunk: bytes) -> bool:
            # Once the interpreter is going down, an answer must not keep it alive.
            if not threading.main_thread().is_alive():
                return True
            if chunk.startswith(_ERROR):
                faults.append(chunk)
                return True
            try:
                return take(chunk)
            except Exception as error:  # the engine would swallow it
                faults.append(error)
                return True

        try:
            handle(dumps(body), receive)
        except MemoryError:
            return Fault(f"The engine ran out of memory while it answered with {self.path}.")
        except (RuntimeError, ValueError, TypeError, LookupError, ArithmeticError) as error:
            # C++ exceptions under Cython's names: what is wrong with the messages, the tools or the schema.
            return Fault(str(error).rstrip("."), "invalid_request_error")
        if not faults:
            return None
        if isinstance(faults[0], NotHeld):
            return Fault(str(faults[0]), "invalid_request_error")
        if isinstance(faults[0], Exception):
            raise faults[0]
        return msgspec.convert(msgspec.json.decode(faults[0])["error"], Fault)

    def close(self) -> None:
        """Unload the model. No request may be under way."""
        self._server = None
        self._abandon()

    def _abandon(self) -> None:
        if self._door is not None:
            self._door.close()


class Engine:
    """A model in this process, loaded by its first request on a thread of ours. See `ChatEngine`.

    `verify`, when given, is called on that thread before the file is opened and may raise LocalModelError.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        options: EngineOptions | None = None,
        *,
        verify: Callable[[], None] | None = None,
    ) -> None:
        self.path = os.fspath(path)
        self._options = options or EngineOptions()
        self._verify = verify
        self._lock = threading.Lock()  # never held while something is loaded or waited for
        self._running: _Running | None = None
        _engines.add(self)

    @property
    def loaded(self) -> bool:
        """True while the model is in memory."""
        running = self._running
        return running is not None and running.native is not None

    async def stream(self, body: dict[str, Any]) -> AsyncGenerator[bytes]:
        """Yield the chunks of one answer; see `ChatEngine.stream`."""
        channel = Channel()
        self.submit("chat", body, channel)
        try:
            async with contextlib.aclosing(channel.batches()) as batches:
                async for batch in batches:
                    for chunk in batch:
                        yield chunk
        finally:
            channel.close()

    def submit(self, kind: Kind, body: dict[str, Any], line: Line) -> Callable[[], None]:
        """Have a request answered into `line` by a thread of ours; returns what tells the engine to look at `closed`.

        `line.put` may wait: then the engine's answer waits with it.
        """
        with self._lock:
            self._start().submit(kind, body, line)
        return _nothing

    def call(self, kind: Kind, body: dict[str, Any]) -> bytes:
        """Return the answer to what is answered at once (`tokenize`, ...). Blocking; raises as `stream`."""
        with self._lock:
            running = self._start()
        return running.call(kind, body)

    def _start(self) -> _Running:
        if self._running is None:
            self._running = _Running(self.path, self._options, self._verify)
        return self._running

    def close(self) -> None:
        """Unload the model; see `ChatEngine.close`."""
        with self._lock:
            running, self._running = self._running, None
        if running is not None:
            running.close()


def _nothing() -> None:
    """The engine asks a line with every token whether it is closed."""


class _Running:
    """The threads of one engine and, once the first request came, its model.

    A thread lives while there is something to answer, so that an idle engine has none. They are not a
    `ThreadPoolExecutor`'s: at exit that one waits for its threads before anything tells them that the program ends.
    """

    def __init__(self, path: str, options: EngineOptions, verify: Callable[[], None] | None) -> None:
        self._path, self._options, self._verify = path, options, verify
        self.native: Native | None = None
        self._loading = threading.Lock()
        self._lock = threading.Lock()  # over the waiting requests and the threads
        self._waiting: deque[tuple[Kind, dict[str, Any], Line]] = deque()
        self._threads: set[threading.Thread] = set()
        self._answering: set[Line] = set()
        self._aside = threading.Lock()  # over what is answered beside the slots
        self._closed = False

    def submit(self, kind: Kind, body: dict[str, Any], line: Line) -> None:
        with self._lock:
            self._waiting.append((kind, body, line))
            # As many threads as slots: what waits for a slot waits here, and can be cancelled.
            if len(self._threads) < max(1, self._options.slots):
                thread = threading.Thread(target=self._work, name="windlass-engine")
                self._threads.add(thread)
                thread.start()

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    self._threads.discard(threading.current_thread())
                    return
                kind, body, line = self._waiting.popleft()
                self._answering.add(line)
            self._answer(kind, body, line)
            with self._lock:
                self._answering.discard(line)

    def _answer(self, kind: Kind, body: dict[str, Any], line: Line) -> None:
        error: BaseException | None = None
        try:
            fault = None if line.closed else self._load().answer(kind, body, line.put)
            error = error_of(fault, self._path) if fault else None
        except WindlassError as failure:
            error = failure
        except Exception as failure:
            error = LocalModelError(f"The engine failed with {self._path}: {failure!r}.", path=self._path)
            error.__cause__ = failure
        line.finish(error)

    def call(self, kind: Kind, body: dict[str, Any]) -> bytes:
        chunks: list[bytes] = []
        with self._aside:
            if self._closed:
                raise LocalModelError(f"The model {self._path} was unloaded.", path=self._path)
            fault = self._load().answer(kind, body, lambda chunk: bool(chunks.append(chunk)))
        if fault is not None:
            raise error_of(fault, self._path)
        return chunks[0]

    def _load(self) -> Native:
        with self._loading:
            if self.native is None:
                if self._verify is not None:
                    self._verify()
                self.native = Native(self._path, self._options)
            return self.native

    def close(self) -> None:
        with self._lock:
            lines = [*self._answering, *[line for _, _, line in self._waiting]]
            self._waiting.clear()
            threads = list(self._threads)
        for line in lines:
            line.finish(LocalModelError(f"The model {self._path} was unloaded.", path=self._path))
            line.close()
        for thread in threads:
            thread.join()
        with self._aside:
            self._closed = True
            if self.native is not None:
                self.native.close()


_engines: weakref.WeakSet[Engine] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:  # pyright: ignore[reportUnusedFunction]
    # The engine's C++ threads must be gone before the C++ runtime takes its globals away.
    for engine in list(_engines):
        engine.close()
