"""A model on this machine, in a few words: load it, ask it, stream it, chat with it, close it.

    from windlass.local import Model

    with Model.load("tiny") as model:
        for token in model.stream("Once upon a time", max_tokens=64, temperature=0.8, top_k=40):
            print(token.text, end="")

Names and defaults are reference E's. Methods block unless they say otherwise, and may be called from any thread.
"""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, overload

import msgspec
from msgspec import Struct

from windlass.core import registry
from windlass.core.errors import ConfigError, ModelNotFoundError
from windlass.core.items import Item
from windlass.core.ports import Embeddings
from windlass.core.request import Request
from windlass.local.answers import ChatAnswer, ask_chat
from windlass.local.backend import Backend, ModelInfo
from windlass.local.backend_native import NativeBackend
from windlass.local.backend_server import ServerBackend, ServerProcess
from windlass.local.embedded import ModelProfile, embedded_model, load_profile
from windlass.local.engine import Adapter, EngineOptions
from windlass.local.gguf import GgufInfo, read_header
from windlass.local.planning import MemoryPlan, plan_memory
from windlass.local.streaming import StreamingConfig, StreamingResponse, StreamingStats, TokenEvent

__all__ = ["InferenceConfig", "Model", "Prompt", "TokenStream"]

_log = logging.getLogger("windlass.local")
_BACKENDS: Final = ("auto", "native", "server", "torch")
#: Text, in which control tokens are read as such, or token ids.
Prompt = str | Sequence[int]


class InferenceConfig(Struct, frozen=True, kw_only=True):
    """How a model is loaded, and what an answer is made with where the call says nothing else.

    `context_length` is in tokens per slot, `slots` how many answers are made at a time; `batch_size` tokens of a prompt
    are read at once; `threads` None: as many as there are processors, one for a small model. `use_gpu` lets layers go
    to a GPU, `gpu_layers` of them, None: as many as fit. `adapters` are LoRA adapters: paths, or paths with scales.
    `memory_map` reads the file page by page. `ignore_memory` loads what needs more memory than is free. Raises
    ConfigError for values out of range.
    """

    context_length: int = 2048
    max_new_tokens: int = 256
    temperature: float = 0.7
    top_p: float = 0.9
    top_k: int = 40
    repetition_penalty: float = 1.1
    batch_size: int = 512
    threads: int | None = None
    use_gpu: bool = True
    gpu_layers: int | None = None
    slots: int = 1
    seed: int | None = None
    memory_map: bool = True
    adapters: tuple[str | Adapter, ...] = ()
    ignore_memory: bool = False

    def __post_init__(self) -> None:
        for name in ("context_length", "max_new_tokens", "batch_size", "slots", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} is {value}; it must be at least 1.")
        self.streaming()  # its ranges are those of an answer
        self.streaming().asked("")

    def engine_options(self) -> EngineOptions:
        """Return how the engine is to load a model."""
        return EngineOptions(
            context=self.context_length,
            slots=self.slots,
            threads=self.threads,
            gpu_layers=0 if not self.use_gpu else -1 if self.gpu_layers is None else self.gpu_layers,
            memory_map=self.memory_map,
            batch=self.batch_size,
            adapters=tuple([_adapter(adapter) for adapter in self.adapters]),
        )

    def streaming(self, **options: Any) -> StreamingConfig:
        """Return the options of one answer: these, where `options` say nothing else. Raises ConfigError for others."""
        given: dict[str, Any] = {
            "max_tokens": self.max_new_tokens,
            "temperature": self.temperature,
            "top_k": self.top_k,
            "top_p": self.top_p,
            "repetition_penalty": self.repetition_penalty,
            "seed": self.seed,
        }
        unknown = [name for name in options if name not in StreamingConfig.__struct_fields__]
        if unknown:
            raise ConfigError(
                f"An answer has no option {unknown[0]!r}.",
                hint=f"Known: {', '.join(StreamingConfig.__struct_fields__)}.",
            )
        return StreamingConfig(**{**given, **options})


class TokenStream:
    """The tokens of one answer: a StreamingResponse without its first and last event, so that each has a text.

    `for` and `async for` read it. `response` is what it reads.
    """

    def __init__(self, response: StreamingResponse) -> None:
        self.response = response

    @property
    def stats(self) -> StreamingStats:
        """What it has taken so far."""
        return self.response.stats

    @property
    def text(self) -> str:
        """Read the rest and return its text."""
        return "".join([token.text or "" for token in self])

    def cancel(self) -> None:
        """End it, from any thread."""
        self.response.cancel()

    def __iter__(self) -> Iterator[TokenEvent]:
        with self.response:
            begun = False
            for event in self.response:
                if begun and not event.is_final:
                    yield event
                begun = True

    async def __aiter__(self) -> AsyncIterator[TokenEvent]:
        with self.response:
            begun = False
            while (event := await self.response.anext()) is not None:
                if begun and not event.is_final:
                    yield event
                begun = True


class Model:
    """A loaded model. It is a `Provider` too: `windlass.Agent(model)`.

    `plan` is what was told about its memory before it was loaded (None where another process has loaded it).
    """

    #: The name as a provider, and that a schema holds it.
    name = "local"
    structured_output = True

    def __init__(
        self,
        backend: Backend,
        config: InferenceConfig | None = None,
        *,
        plan: MemoryPlan | None = None,
        profile: ModelProfile | None = None,
    ) -> None:
        self.backend, self.config, self.plan = backend, config or InferenceConfig(), plan
        self._profile = profile
        self._provider: Any = None

    @classmethod
    def load(
        cls,
        path_or_name: str | os.PathLike[str],
        config: InferenceConfig | None = None,
        *,
        backend: str = "auto",
        in_process: bool = False,
        api_key: str = "",
        load_timeout: float = 600.0,
        memory: int | None = None,
        **options: Any,
    ) -> Self:
        """Load a model and return it.

        `path_or_name` is a GGUF file, "tiny" or "default" for the built-in model, both also with "local:" before them,
        or the address of a llama.cpp server (`api_key` is its key). `backend` is native, server (a `llama-server` is
        started for the file) or torch; auto: native, or what an address needs. A file runs in a worker process unless
        `in_process` says otherwise, which is for files you trust: the engine may end the process on a malformed one.
        `load_timeout` is in seconds, `memory` caps a worker in bytes. `options` are those of InferenceConfig.

        What it needs is logged (`windlass.local`) and compared with what is free before anything is loaded: raises
        OutOfMemory. Raises InvalidModelFormat or UnsupportedQuantization for what is no model this can read,
        ModelNotFoundError for a name or file that is not there, other LocalModelErrors when loading fails, ConfigError
        for options and when the engine is not installed.
        """
        config = _configured(config, options)
        if backend not in _BACKENDS:
            raise ConfigError(f"There is no backend {backend!r}.", hint=f"Use {', '.join(_BACKENDS)}.")
        where = os.fspath(path_or_name).removeprefix("local:")
        if where.startswith(("http://", "https://")):
            return cls(ServerBackend(where, api_key=api_key), config)
        shipped = embedded_model()
        own = where in ("tiny", "default", shipped.profile.name)
        path = shipped.path if own else Path(where).expanduser()
        info = _header(path)
        plan = plan_memory(info, config.engine_options(), use_gpu=config.use_gpu)
        _log.info("%s", plan.message)
        if not config.ignore_memory:
            plan.check(str(path))
        profile = shipped.profile if own else load_profile(path)
        if backend == "torch":
            made: Backend = registry.load("windlass.local.backend_torch:TorchBackend").from_file(
                path, context=min(config.context_length, info.context_length or config.context_length)
            )
            return cls(made, config, plan=plan, profile=profile)
        engine_options = msgspec.structs.replace(
            config.engine_options(), gpu_layers=plan.gpu_layers, log=not (own or in_process)
        )
        if backend == "server":
            started = ServerProcess(path, engine_options, load_timeout=load_timeout)
            return cls(ServerBackend(started), config, plan=plan, profile=profile)
        made = NativeBackend(
            path,
            engine_options,
            in_process=own or in_process,
            info=info,
            verify=shipped.verify if own else None,
            device=plan.device,
            load_timeout=load_timeout,
            memory=memory,
        )
        try:
            made.load()
        except BaseException:
            made.close()
            raise
        return cls(made, config, plan=plan, profile=profile)

    @property
    def info(self) -> ModelInfo:
        """What is known of the model."""
        return self.backend.info

    @property
    def notice(self) -> str:
        """One sentence for the user about the model, from its card; empty when there is nothing to say."""
        return self._profile.notice if self._profile is not None else ""

    async def count(self, request: Request) -> int:
        """Return the exact number of tokens of a request's prompt. Raises as `Provider.stream`."""
        return await self._as_provider().count(request)

    def dropped(self, request: Request) -> list[str]:
        """Return the names of what this model cannot be told: settings, and `tools` that its card does not know."""
        return self._as_provider().dropped(request)

    def respond(self, prompt: Prompt, config: StreamingConfig | None = None, /, **options: Any) -> StreamingResponse:
        """Return the answer as a StreamingResponse, not yet begun. `options` are those of StreamingConfig.

        Raises ConfigError for options out of range.
        """
        if config is not None and options:
            raise ConfigError("Give either a StreamingConfig or its options by name.")
        config = config or self.config.streaming(**options)
        ask = config.asked(prompt if isinstance(prompt, str) else tuple(prompt))
        limit = config.max_buffer_size if self.backend.may_wait else 0
        return StreamingResponse(self.backend.start, ask, config, limit=limit)

    def generate(self, prompt: Prompt, options: Mapping[str, Any] | None = None, /, **more: Any) -> str:
        """Return the text of an answer. Options are those of StreamingConfig, as a mapping or by name.

        Raises ContextExceededError for a prompt that does not fit, BadRequestError for a grammar or schema that the
        engine refuses, other LocalModelErrors when it fails.
        """
        return TokenStream(self.respond(prompt, **{**(options or {}), **more})).text

    @overload
    def stream(self, prompt: Request, /) -> AsyncIterator[Item]: ...
    @overload
    def stream(self, prompt: Prompt, /, **options: Any) -> TokenStream: ...
    def stream(self, prompt: Prompt | Request, /, **options: Any) -> TokenStream | AsyncIterator[Item]:
        """Return the tokens of an answer to a prompt, or as a Provider the items of the answer to a Request.

        Raises as `generate`, while it is read; for a Request as `Provider.stream`.
        """
        if isinstance(prompt, Request):
            return self._as_provider().stream(prompt)
        return TokenStream(self.respond(prompt, **options))

    def generate_streaming(
        self, prompt: Prompt, callback: Callable[[str], object], /, **options: Any
    ) -> StreamingStats:
        """Call `callback` with each piece of the text and return the statistics. Raises as `generate`."""
        stream = self.stream(prompt, **options)
        for token in stream:
            if token.text:
                callback(token.text)
        return stream.stats

    def batch(self, prompts: Iterable[Prompt], /, **options: Any) -> list[str]:
        """Return the texts of several answers, in order; as many are made at a time as the model has slots.

        Raises the first error there is, as `generate`; the others are given up.
        """
        asked = list(prompts)
        if not asked:
            return []
        streams = [self.stream(prompt, **options) for prompt in asked]
        with ThreadPoolExecutor(min(len(asked), max(1, self.info.slots)), "windlass-batch") as pool:
            futures = [pool.submit(_text, stream) for stream in streams]
            try:
                return [future.result() for future in futures]
            except BaseException:
                for future, stream in zip(futures, streams, strict=True):
                    future.cancel()
                    stream.cancel()
                raise

    def chat(
        self,
        messages: str | Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any] | Callable[..., Any]] = (),
        schema: Mapping[str, Any] | None = None,
        tool_choice: str = "auto",
        on_text: Callable[[str], object] | None = None,
        **options: Any,
    ) -> ChatAnswer:
        """Answer a conversation through the model's own chat template.

        `messages` are OpenAI's (role, content, ...), or the text of one user; `tools` OpenAI's too. `schema` is a JSON
        Schema that the answer will match, and `tool_choice` auto, none, required or the name of a tool. `on_text` is
        called with each piece of the text. `options` are those of StreamingConfig that a chat knows; the temperature
        is that of the model's card where it has one, and nothing is penalised for being repeated, as a call repeats
        what was said. Raises as `generate`, and ConfigError for a backend without chat.
        """
        usual = self._profile.temperature if self._profile is not None else None
        given = {"temperature": self.config.temperature if usual is None else usual, "repetition_penalty": 1.0}
        return ask_chat(
            self.backend.chat_engine(),
            messages,
            self.config.streaming(**{**given, **options}),
            tools=tools,
            schema=schema,
            tool_choice=tool_choice,
            on_text=on_text,
        )

    def tokenize(self, text: str, *, special: bool = False, bos: bool = False) -> list[int]:
        """Return the tokens of `text`; see `Backend.tokenize`."""
        return self.backend.tokenize(text, special=special, bos=bos)

    def detokenize(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens; see `Backend.detokenize`."""
        return self.backend.detokenize(tokens)

    def logprobs(self, tokens: Sequence[int]) -> list[float]:
        """Return the log-probability of every token of the vocabulary as the next one; see `Backend.logprobs`."""
        return self.backend.logprobs(tokens)

    def embed(self, texts: str | Sequence[str], *, pooling: str = "", normalize: bool = True) -> Embeddings:
        """Return one vector per text; see `Backend.embed`."""
        return self.backend.embed([texts] if isinstance(texts, str) else texts, pooling=pooling, normalize=normalize)

    def close(self) -> None:
        """Unload the model; answers under way end with LocalModelError."""
        self.backend.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _as_provider(self) -> Any:
        if self._provider is None:
            # Requests are translated one floor up; the registry is the way there.
            make: Any = registry.load("windlass.providers.local:LocalProvider")
            self._provider = make(engine=self.backend.chat_engine(), profile=self._profile, model=self.info.name)
        return self._provider


def _configured(config: InferenceConfig | None, options: Mapping[str, Any]) -> InferenceConfig:
    known = InferenceConfig.__struct_fields__
    unknown = [name for name in options if name not in known]
    if unknown:
        raise ConfigError(f"A model has no option {unknown[0]!r}.", hint=f"Known: {', '.join(known)}.")
    given = {} if config is None else msgspec.structs.asdict(config)
    return InferenceConfig(**{**given, **options})


def _text(stream: TokenStream) -> str:
    return stream.text


def _adapter(given: str | Adapter) -> Adapter:
    path, scale = (given.path, given.scale) if isinstance(given, Adapter) else (given, 1.0)
    return Adapter(str(Path(path).expanduser().absolute()), scale)


def _header(path: Path) -> GgufInfo:
    if not path.is_file():
        raise ModelNotFoundError(
            f"There is no model {str(path)!r}.", provider="local", hint="Use 'tiny' or the path of a .gguf file."
        )
    return read_header(path)
