"""Models through llama.cpp: the shipped one in this process, a user's file in a worker process that may die.

`LlamaBackend` speaks llama.cpp's JSON with whatever runs it; `backend_server` shares it.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec import Struct, field
from msgspec.structs import replace

from windlass.core import clock
from windlass.core.errors import BadRequestError, ConfigError, ContextExceededError, LocalModelError
from windlass.core.ports import Embeddings
from windlass.core.usage import Usage
from windlass.local.backend import AnsweringEngine, Ended, Generation, ModelInfo, Piece, Prefilled, StreamSink
from windlass.local.channel import Whole
from windlass.local.engine import Engine, EngineOptions
from windlass.local.forced import tightened
from windlass.local.gguf import GgufArray, GgufInfo, read_header
from windlass.local.supervisor import WorkerEngine

__all__ = ["Chunks", "LlamaBackend", "NativeBackend", "completion_body", "model_info"]

_END_KEYS: Final = ("eos_token_id", "eot_token_id", "eom_token_id")
_POOLINGS: Final = ("", "mean", "cls", "last")


class _Progress(Struct):
    total: int = 0
    processed: int = 0


class _Top(Struct):
    id: int
    logprob: float | None = None


class _Probability(Struct):
    id: int
    logprob: float | None = None
    top_logprobs: list[_Top] = []


class _Probabilities(Struct):
    content: list[_Probability] = []


class _Choice(Struct):
    text: str = ""
    finish_reason: str | None = None
    logprobs: _Probabilities | None = None


class _Verbose(Struct):
    tokens: list[int] = []
    tokens_predicted: int = 0
    tokens_evaluated: int = 0
    stop_type: str = ""


class _Timings(Struct):
    prompt_ms: float = 0.0
    predicted_ms: float = 0.0


class _Chunk(Struct):
    """A chunk of llama.cpp's /v1/completions (tools/server/README.md); `verbose` brings the token ids."""

    choices: list[_Choice] = []
    verbose: _Verbose = field(name="__verbose", default_factory=_Verbose)
    prompt_progress: _Progress | None = None
    timings: _Timings | None = None


_decode = msgspec.json.Decoder(_Chunk).decode


class Chunks:
    """Turn the chunks of one completion into items for a sink; an `engine.Line`.

    Tokens without text are held back until the next one: the engine tells the token that ends the text as such a one.
    """

    def __init__(self, sink: StreamSink) -> None:
        self._sink = sink
        self._prefilled = False
        self._silent: list[Piece] = []
        self._end = Ended()
        self.closed = False

    def put(self, chunk: bytes) -> bool:
        """Take one chunk; True tells the engine to stop."""
        if self.closed or not chunk:
            return self.closed
        data = _decode(chunk)
        if data.prompt_progress is not None:
            if data.prompt_progress.processed >= data.prompt_progress.total:
                self._read(data.prompt_progress.total)
        elif data.choices and data.choices[0].finish_reason is not None:
            self._whole(data)
        elif data.verbose.tokens:
            self._token(data)
        return self.closed

    def finish(self, error: BaseException | None = None) -> None:
        """End the answer."""
        self._sink.finish(error or self._end)

    def close(self) -> None:
        """Tell the engine to stop."""
        self.closed = True

    def _read(self, tokens: int) -> None:
        if not self._prefilled:
            self._prefilled = True
            self.closed = self._sink.put(Prefilled(tokens)) or self.closed

    def _token(self, data: _Chunk) -> None:
        self._read(data.verbose.tokens_evaluated)
        choice = data.choices[0]
        logprob, top = None, ()
        if choice.logprobs is not None and choice.logprobs.content:
            told = choice.logprobs.content[-1]
            logprob, top = told.logprob, tuple([(t.id, _number(t.logprob)) for t in told.top_logprobs])
        piece = Piece(data.verbose.tokens[-1], choice.text, data.verbose.tokens_predicted - 1, logprob, top)
        if not piece.text:
            self._silent.append(piece)
            return
        self._flush()
        self.closed = self._sink.put(piece) or self.closed

    def _flush(self) -> None:
        silent, self._silent = self._silent, []
        for piece in silent:
            self.closed = self.closed or self._sink.put(piece)

    def _whole(self, data: _Chunk) -> None:
        self._read(data.verbose.tokens_evaluated)
        last = data.verbose.tokens_predicted - 1
        if data.verbose.stop_type == "eos" and self._silent and self._silent[-1].position == last:
            del self._silent[-1]
        self._flush()
        timings = data.timings or _Timings()
        reason = "length" if data.choices[0].finish_reason == "length" else "stop"
        self._end = Ended(reason, int(timings.prompt_ms * 1e6), int(timings.predicted_ms * 1e6))


def _number(value: float | None) -> float:
    return float("-inf") if value is None else value


class LlamaBackend:
    """A `Backend` over llama.cpp's JSON, whoever runs it.

    `engine` answers, `info` says what it runs; `embedder(pooling)` returns what answers embeddings requests.
    """

    name = "llama.cpp"
    may_wait = False

    def __init__(
        self, engine: AnsweringEngine, info: ModelInfo, embedder: Callable[[str], AnsweringEngine] | None = None
    ) -> None:
        self._engine, self._info = engine, info
        self._embedder = embedder

    @property
    def info(self) -> ModelInfo:
        """What is known of the model."""
        return self._info

    def chat_engine(self) -> AnsweringEngine:
        """What answers OpenAI chat requests with this model."""
        return self._engine

    def load(self) -> None:
        """Load the model now; otherwise the first request does. Blocking."""
        self.tokenize("a")

    def start(self, ask: Generation, sink: StreamSink, /) -> Callable[[], None]:
        """Begin an answer; see `Backend.start`."""
        line = Chunks(sink)
        cancel = self._engine.submit("completion", completion_body(ask), line)

        def stop() -> None:
            line.close()
            cancel()

        return stop

    def tokenize(self, text: str, *, special: bool = False, bos: bool = False) -> list[int]:
        """Return the tokens of `text`; see `Backend.tokenize`."""
        body = {"content": text, "add_special": bos, "parse_special": special}
        return msgspec.json.decode(self._engine.call("tokenize", body))["tokens"]

    def detokenize(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens; see `Backend.detokenize`."""
        known = self.info.vocabulary
        wrong = [token for token in tokens if not 0 <= token < known] if known else []
        if wrong:  # the engine would end the process
            raise BadRequestError(f"{wrong[0]} is no token: {self.info.name} knows 0 to {known - 1}.", provider="local")
        return msgspec.json.decode(self._engine.call("detokenize", {"tokens": list(tokens)}))["content"]

    def logprobs(self, tokens: Sequence[int]) -> list[float]:
        """Return the log-probability of every token as the next one; see `Backend.logprobs`."""
        if not tokens:
            raise ConfigError("What comes next cannot be told where nothing was said: give at least one token.")
        body = {"prompt": list(tokens), "n_predict": 1, "n_probs": self.info.vocabulary, "temperature": 0.0}
        whole = Whole()
        self._engine.submit("completion", {**body, "cache_prompt": False, "stream": False}, whole)
        data = msgspec.json.decode(whole.wait()[-1], type=_Chunk)
        told = data.choices[0].logprobs
        out = [float("-inf")] * self.info.vocabulary
        for entry in told.content[0].top_logprobs if told is not None and told.content else ():
            out[entry.id] = _number(entry.logprob)
        return out

    def embed(self, texts: Sequence[str], *, pooling: str = "", normalize: bool = True) -> Embeddings:
        """Return one vector per text; see `Backend.embed`."""
        if pooling not in _POOLINGS:
            raise ConfigError(f"There is no pooling {pooling!r}.", hint="Use mean, cls, last, or leave it out.")
        if not texts:
            return Embeddings((), self.info.name, Usage())
        whole = Whole()
        body = {"input": list(texts), "encoding_format": "float", "embd_normalize": 2 if normalize else -1}
        engine = self._engine if self._embedder is None else self._embedder(pooling)
        engine.submit("embeddings", body, whole)
        try:
            data: Any = msgspec.json.decode(whole.wait()[-1])
        except LocalModelError:
            self._check_lengths(texts)  # the engine has no type of its own for it
            raise
        rows = sorted(data["data"], key=lambda row: row["index"])
        vectors = tuple([tuple(row["embedding"]) for row in rows])
        return Embeddings(vectors, self.info.name, Usage(input_tokens=data.get("usage", {}).get("prompt_tokens", 0)))

    def close(self) -> None:
        """Unload the model; see `Backend.close`."""
        self._engine.close()

    def _check_lengths(self, texts: Sequence[str]) -> None:
        for number, text in enumerate(texts):
            count = len(self.tokenize(text, bos=True))
            if count > self.info.context:
                raise ContextExceededError(
                    f"Text {number} has {count} tokens; the context of {self.info.name} holds {self.info.context}.",
                    provider="local",
                    model=self.info.name,
                    hint="Cut it, or load the model with a larger context.",
                )


class NativeBackend(LlamaBackend):
    """llama.cpp in this process (`in_process`) or in a worker of its own, which is right for files of strangers.

    `info` is the file's checked header (read here when it is not given). `verify` is called before the file is opened
    and may raise. `load_timeout` is in seconds, `memory` caps a worker's own in bytes. Vectors come from a second
    instance of the model, because the engine gives either them or text; it is loaded when they are first asked for.
    """

    name = "native"

    def __init__(
        self,
        path: str | os.PathLike[str],
        options: EngineOptions | None = None,
        *,
        in_process: bool = False,
        info: GgufInfo | None = None,
        verify: Callable[[], None] | None = None,
        device: str = "cpu",
        load_timeout: float = 600.0,
        memory: int | None = None,
    ) -> None:
        self._path, self._in_process = os.fspath(path), in_process
        self._options = options or EngineOptions(log=not in_process)
        self._verify, self._load_timeout, self._memory = verify, load_timeout, memory
        self._header = info or read_header(path)
        self.may_wait = in_process
        self._embedders: dict[str, AnsweringEngine] = {}
        said = model_info(self._header, self._options, "native" if in_process else "worker", device)
        super().__init__(self._make(self._options), said, self._embedding_engine)

    def close(self) -> None:
        """Unload the model; see `Backend.close`."""
        super().close()
        for engine in self._embedders.values():
            engine.close()

    def _make(self, options: EngineOptions) -> AnsweringEngine:
        if self._in_process:
            return Engine(self._path, options, verify=self._verify)
        return WorkerEngine(self._path, options, load_timeout=self._load_timeout, memory=self._memory)

    def _embedding_engine(self, pooling: str) -> AnsweringEngine:
        own = self._header.metadata.get(f"{self._header.architecture}.pooling_type")
        pooling = pooling or ("" if isinstance(own, int) and own > 0 else "mean")
        if pooling not in self._embedders:
            self._embedders[pooling] = self._make(replace(self._options, embedding=True, pooling=pooling))
        return self._embedders[pooling]


def completion_body(ask: Generation) -> dict[str, Any]:
    """Return llama.cpp's /v1/completions request: every setting that has a default there is stated."""
    body: dict[str, Any] = {
        "prompt": ask.prompt if isinstance(ask.prompt, str) else list(ask.prompt),
        "n_predict": ask.max_tokens,
        "temperature": ask.temperature,
        "top_k": ask.top_k,
        "top_p": ask.top_p,
        "min_p": ask.min_p,
        "repeat_penalty": ask.repetition_penalty,
        "seed": ask.seed if ask.seed is not None else int(clock.random() * 2**32),
        "stream": True,
        "verbose": True,
        "return_progress": True,
    }
    if ask.grammar:
        body["grammar"] = ask.grammar
    if ask.json_schema is not None:
        body["json_schema"] = tightened(ask.json_schema)
    if ask.ignore_end:
        body["ignore_eos"] = True
    if ask.logprobs:
        body["n_probs"] = ask.logprobs
    if ask.scales is not None:
        body["lora"] = [{"id": number, "scale": scale} for number, scale in enumerate(ask.scales)]
    return body


def model_info(info: GgufInfo, options: EngineOptions, backend: str, device: str = "cpu") -> ModelInfo:
    """Return what a header and the options say of a model that is loaded with them."""
    kinds: Counter[str] = Counter()
    for tensor in info.tensors:
        kinds[tensor.type] += tensor.nbytes
    tokens = info.metadata.get("tokenizer.ggml.tokens")
    ends = [info.metadata.get(f"tokenizer.ggml.{key}") for key in _END_KEYS]
    width = info.metadata.get(f"{info.architecture}.embedding_length")
    return ModelInfo(
        name=Path(info.path).stem,
        path=info.path,
        backend=backend,
        architecture=info.architecture,
        quantization=kinds.most_common(1)[0][0] if kinds else "",
        parameters=info.parameters,
        size=info.size,
        context=options.context or min(info.context_length or 4096, 4096),
        trained_context=info.context_length,
        vocabulary=tokens.count if isinstance(tokens, GgufArray) else 0,
        embedding_width=width if isinstance(width, int) else 0,
        slots=options.slots,
        device=device,
        gpu_layers=0 if device == "cpu" else options.gpu_layers,
        end_tokens=tuple(dict.fromkeys([token for token in ends if isinstance(token, int)])),
        adapters=tuple([adapter.path for adapter in options.adapters]),
        metadata=info.metadata,
    )
