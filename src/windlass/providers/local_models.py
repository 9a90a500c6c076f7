"""One model on this machine: told what it needs and loaded when it is first asked, unloaded when nobody asks."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from msgspec.structs import replace

from windlass.core import registry
from windlass.core.errors import LocalModelError, UnsupportedInputError
from windlass.core.ports import Embeddings
from windlass.core.threads import run_in_thread
from windlass.local.embedded import ModelProfile, embedded_model
from windlass.local.embedder import GgufEmbedder
from windlass.local.engine import ChatEngine, Engine, EngineOptions
from windlass.local.failures import OutOfMemory
from windlass.local.gguf import read_header
from windlass.local.options import DEFAULT_CONTEXT
from windlass.local.planning import MemoryPlan, plan_memory
from windlass.local.supervisor import WorkerEngine
from windlass.providers.local_settings import ModelSettings
from windlass.providers.local_slots import Slots

__all__ = ["LocalModel", "shipped_model"]

_log = logging.getLogger("windlass.local")
#: Without one of these no engine finds a GPU, and it need not be loaded into this process to look for one.
_DEVICES: Final = ("/dev/nvidiactl", "/dev/kfd", "/dev/dri", "/dev/dxg")
_UNBOUNDED: Final = 1 << 30


class LocalModel:
    """A model by its id, with its card. `enter` gives what answers, once there is a slot; `leave` gives the slot back.

    With `engine` it is loaded already and its owner's: neither bounded nor unloaded here.
    """

    def __init__(
        self,
        id: str,
        settings: ModelSettings,
        profile: ModelProfile | None = None,
        *,
        engine: ChatEngine | None = None,
        shipped: bool = False,
    ) -> None:
        self.id, self.settings, self.profile, self.shipped = id, settings, profile, shipped
        #: What answers, while it is loaded.
        self.engine = engine
        self._given = engine is not None
        count = _UNBOUNDED if self._given else settings.options.slots
        self.slots, self.embedding = Slots(id, count, settings.queue), Slots(id, count, settings.queue)
        self._embedder: GgufEmbedder | None = None
        self._closing: list[Callable[[], None]] = []
        self._loading, self._lock = threading.Lock(), threading.Lock()
        self._uses = 0
        self._context: int | None = None
        self._context_known = False

    @property
    def context(self) -> int | None:
        """Tokens of context that a request has, as the file states and the settings bound it; None: not known.

        Blocking at first use: the file's header is read.
        """
        if not self._context_known:
            self._context, self._context_known = self._read_context(), True
        return self._context

    def _read_context(self) -> int | None:
        stated = self.settings.options.context
        if self.shipped and self.profile is not None:
            return self.profile.context
        if self._given or not self.settings.path:
            return stated
        try:
            trained = read_header(self.settings.path).context_length
        except LocalModelError:
            return stated  # whoever asks it is told why it cannot be read
        return stated or min(trained or DEFAULT_CONTEXT, DEFAULT_CONTEXT)

    # -- text ------------------------------------------------------------------------------------------------------

    async def enter(self) -> ChatEngine:
        """Wait for a slot, load the model where need be, and return what answers.

        Raises NoRoom when too many wait, OutOfMemory before anything is loaded, other LocalModelErrors when loading
        fails, ConfigError where the engine is not installed.
        """
        await self.slots.take()
        try:
            with self._lock:
                self._uses += 1
                engine = self.engine
            return engine if engine is not None else await run_in_thread(self._load)
        except BaseException:
            self.leave()
            raise

    def leave(self) -> None:
        """Give the slot back."""
        self.slots.leave()
        self._rest()

    def _load(self) -> ChatEngine:
        with self._loading:
            if self.engine is None:
                made, close = self._made()
                with self._lock:
                    self.engine = made
                    self._closing.append(close)
                return made
            return self.engine

    def _made(self) -> tuple[ChatEngine, Callable[[], None]]:
        settings = self.settings
        if settings.base_url:
            make: Any = registry.load("windlass.local.backend_server:ServerEngine")
            asking = make(settings.base_url, api_key=settings.api_key)
            return asking, asking.close
        options = self._planned(settings.options)
        if settings.backend == "server":
            process = registry.load("windlass.local.backend_server:ServerProcess")(
                settings.path, options, load_timeout=settings.load_timeout
            )
            backend = registry.load("windlass.local.backend_server:ServerBackend")(process)
            return backend.chat_engine(), backend.close
        worker = WorkerEngine(settings.path, options, load_timeout=settings.load_timeout, memory=settings.memory)
        return worker, worker.close

    # -- memory ----------------------------------------------------------------------------------------------------

    def plan(self, options: EngineOptions | None = None) -> MemoryPlan:
        """Return what loading it will need. Blocking; raises LocalModelError for a file that is no model."""
        options = options or self.settings.options
        info = read_header(self.settings.path)
        return replace(plan_memory(info, options, use_gpu=options.gpu_layers != 0 and _may_have_gpu()), name=self.id)

    def outlook(self) -> tuple[str, bool]:
        """Return a sentence about what it will need, and whether that can be had now. Blocking; raises as `plan`."""
        settings = self.settings
        if settings.base_url:
            return f"{self.id} is asked at {settings.base_url}.", True
        plan, _ = self.plan(), self.context  # which is known from then on without reading the file
        if settings.ignore_memory:
            return plan.message, True
        try:
            plan.check(settings.path)
        except OutOfMemory as error:
            return f"{error.message} It does not fit: requests for it are refused. {error.hint}", False
        return plan.message, True

    def _planned(self, options: EngineOptions) -> EngineOptions:
        plan = self.plan(options)
        _log.info("%s", plan.message)
        if not self.settings.ignore_memory:
            plan.check(self.settings.path)
        return replace(options, gpu_layers=plan.gpu_layers)

    # -- vectors ---------------------------------------------------------------------------------------------------

    async def embed(self, texts: Sequence[str], dimensions: int | None) -> Embeddings:
        """Return the vectors of texts. Raises as `enter` and `GgufEmbedder.embed`."""
        if self._given:
            raise UnsupportedInputError(f"{self.id} is loaded for text.", provider="local", hint="Use its `embed`.")
        await self.embedding.take()
        try:
            with self._lock:
                self._uses += 1
                embedder = self._embedder
            embedder = embedder if embedder is not None else await run_in_thread(self._load_embedder)
            made = await embedder.embed(texts, dimensions=dimensions)
        finally:
            self.embedding.leave()
            self._rest()
        return replace(made, model=self.id)

    def _load_embedder(self) -> GgufEmbedder:
        with self._loading:
            if self._embedder is None:
                made, close = self._made_embedder()
                with self._lock:
                    self._embedder = made
                    self._closing.append(close)
                return made
            return self._embedder

    def _made_embedder(self) -> tuple[GgufEmbedder, Callable[[], None]]:
        # The engine gives text or vectors: a file is loaded once more.
        settings = self.settings
        if self.shipped:
            own = EngineOptions(threads=1, gpu_layers=0, memory_map=False)
            made = GgufEmbedder(settings.path, options=own, in_process=True, verify=embedded_model().verify)
            return made, made.close
        if settings.base_url:
            make: Any = registry.load("windlass.local.backend_server:ServerBackend")
            asking = make(settings.base_url, api_key=settings.api_key)
            return GgufEmbedder(backend=asking), asking.close
        if settings.backend == "server":
            raise UnsupportedInputError(
                f"{self.id} runs in a llama-server of ours, which gives text only.", provider="local", model=self.id,
                hint="Give it backend = native, or the base_url of a server that runs with --embeddings.",
            )  # fmt: skip
        options = replace(self._planned(replace(settings.options, embedding=True)), embedding=False)
        made = GgufEmbedder(settings.path, options=options, load_timeout=settings.load_timeout, memory=settings.memory)
        return made, made.close

    # -- the end ---------------------------------------------------------------------------------------------------

    def _rest(self) -> None:
        """Unload it after a while without a request."""
        seconds = self.settings.idle_seconds
        if seconds is not None and not self.shipped and not self._given and self._idle:
            asyncio.get_running_loop().call_later(seconds, self._unload_after, self._uses)

    @property
    def _idle(self) -> bool:
        return not (self.slots.busy or self.embedding.busy)

    def _unload_after(self, uses: int) -> None:
        with self._lock:
            if uses != self._uses or not self._idle:
                return  # somebody asked meanwhile
            closing = self._taken()
        if closing:
            _log.info("%s is unloaded: nobody asked it for %g s.", self.id, self.settings.idle_seconds)
            # What is unloaded is asked by nobody any more, so that nobody waits for its end.
            threading.Thread(target=_close_all, args=(closing,), name="windlass-unload", daemon=True).start()

    def _taken(self) -> list[Callable[[], None]]:
        closing, self._closing = self._closing, []
        if not self._given:
            self.engine = None
        self._embedder = None
        return closing

    def close(self) -> None:
        """Unload it; requests under way end with LocalModelError, a later one loads it again. Blocking."""
        if not self.shipped:
            with self._lock:
                closing = self._taken()
            _close_all(closing)


def _close_all(closing: Sequence[Callable[[], None]]) -> None:
    for close in closing:
        close()


def _may_have_gpu() -> bool:
    return sys.platform != "linux" or any(Path(device).exists() for device in _DEVICES)


_shipped: dict[tuple[int, int], LocalModel] = {}


def shipped_model(slots: int = 2, queue: int = 32) -> LocalModel:
    """Return the built-in model: one for the process, which every provider shares and the engine unloads at exit."""
    found = _shipped.get((slots, queue))
    if found is None:
        model = embedded_model()
        options = EngineOptions(context=model.profile.context, slots=slots, threads=1, gpu_layers=0, memory_map=False)
        engine: Any = Engine(model.path, options, verify=model.verify)
        found = LocalModel(
            model.profile.name, ModelSettings(path=str(model.path), options=options, queue=queue), model.profile,
            shipped=True,
        )  # fmt: skip
        found.engine = engine
        _shipped[slots, queue] = found
    return found
