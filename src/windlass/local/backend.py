"""The port of model backends: what runs a model, seen from `Model`. `windlass.testing` has its kit, `check_backend`.

There are three: llama.cpp in this process or in a worker (`backend_native`), a llama.cpp server (`backend_server`), and
the torch reference (`backend_torch`). A backend blocks its caller only where its method says so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

from msgspec import Struct, field

from windlass.core.errors import ConfigError
from windlass.core.ports import Embeddings
from windlass.local.engine import ChatEngine, Kind, Line

__all__ = [
    "AnsweringEngine",
    "Backend",
    "Ended",
    "Generation",
    "ModelInfo",
    "Piece",
    "Prefilled",
    "Produced",
    "StreamSink",
    "unable",
]


class Generation(Struct, frozen=True, kw_only=True):
    """What is asked of a backend.

    `prompt` is text, in which control tokens are read as such, or token ids. `temperature` 0 is greedy, `top_k` 0 off;
    `top_p` in (0, 1], `min_p` 0 off; `repetition_penalty` 1 off. `seed` None: another one each time. `stop_tokens` end
    the text besides the model's own ends; a `stop` string ends it too. `grammar` is GBNF, `json_schema` a JSON Schema:
    not both. `logprobs` is how many tokens are told at each place. `scales` are those of the model's LoRA adapters, in
    their order, None: as loaded. `ignore_end` goes on where the model would end. Raises ConfigError for values out of
    range.
    """

    prompt: str | tuple[int, ...]
    max_tokens: int = 256
    temperature: float = 0.7
    top_k: int = 40
    top_p: float = 0.9
    min_p: float = 0.0
    repetition_penalty: float = 1.1
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_tokens: tuple[int, ...] = ()
    grammar: str = ""
    json_schema: dict[str, Any] | None = None
    logprobs: int = 0
    scales: tuple[float, ...] | None = None
    ignore_end: bool = False

    def __post_init__(self) -> None:
        ranges = (
            ("max_tokens", self.max_tokens >= 1, "at least 1"),
            ("temperature", 0 <= self.temperature <= 10, "0 to 10"),
            ("top_k", self.top_k >= 0, "at least 0"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("min_p", 0 <= self.min_p <= 1, "0 to 1"),
            ("repetition_penalty", 0 < self.repetition_penalty <= 10, "above 0 and at most 10"),
            ("logprobs", self.logprobs >= 0, "at least 0"),
        )
        for name, right, range_ in ranges:
            if not right:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be {range_}.")
        if self.grammar and self.json_schema is not None:
            raise ConfigError("A grammar and a JSON Schema cannot both hold.", hint="Give one of them.")
        if "" in self.stop:
            raise ConfigError("An empty stop string would end every text before it begins.")


class Prefilled(Struct, frozen=True):
    """The prompt was read: how many tokens it has."""

    prompt_tokens: int


class Piece(Struct, frozen=True):
    """One token of the answer.

    `text` is what can be shown since the last piece: never half a character, empty for control tokens. `position` is
    the token's place in the answer, from 0; where a backend tells a character's tokens as one, places are left out.
    `logprob` and `top` (token id, log-probability) are there when they were asked for.
    """

    token_id: int
    text: str
    position: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


class Ended(Struct, frozen=True):
    """The end: why, and the engine's own timings in nanoseconds, 0 where it gives none."""

    reason: Literal["stop", "length"] = "stop"
    prefill_ns: int = 0
    generation_ns: int = 0


Produced: TypeAlias = Prefilled | Piece


class StreamSink(Protocol):
    """Where a backend puts one answer, from a thread of its own."""

    def put(self, item: Produced, /) -> bool:
        """Take one item; True tells the backend to stop. It may wait unless the backend's `may_wait` is False."""
        ...

    def finish(self, end: Ended | BaseException, /) -> None:
        """End the answer; always called, exactly once, also after a stop."""
        ...


class ModelInfo(Struct, frozen=True, kw_only=True):
    """What is known of a model. Sizes are in bytes; `context` is tokens per slot; `device` is cpu or a GPU's name.

    `end_tokens` are those that the file says end a text; `adapters` are the paths of its LoRA adapters.
    """

    name: str
    path: str
    backend: str
    architecture: str = ""
    quantization: str = ""
    parameters: int = 0
    size: int = 0
    context: int = 0
    trained_context: int | None = None
    vocabulary: int = 0
    embedding_width: int = 0
    slots: int = 1
    device: str = "cpu"
    gpu_layers: int = 0
    end_tokens: tuple[int, ...] = ()
    adapters: tuple[str, ...] = ()
    metadata: dict[str, Any] = field(default_factory=dict[str, Any])


class AnsweringEngine(ChatEngine, Protocol):
    """A chat engine that answers requests of all kinds, for callers without an event loop."""

    def submit(self, kind: Kind, body: dict[str, Any], line: Line) -> Callable[[], None]:
        """Have a request answered into `line`; returns what cancels it, to be called when the line is closed."""
        ...

    def call(self, kind: Kind, body: dict[str, Any]) -> bytes:
        """Return the answer to what is answered at once (`tokenize`, ...). Blocking."""
        ...


@runtime_checkable
class Backend(Protocol):
    """Runs one model. Methods other than `start` block; all may be called from any thread.

    They raise LocalModelError kinds, ContextExceededError for what does not fit the context, and ConfigError for what
    this backend cannot do (`unable`).
    """

    name: str
    #: False where one thread serves several answers, so that `StreamSink.put` must not wait.
    may_wait: bool

    @property
    def info(self) -> ModelInfo: ...

    def chat_engine(self) -> AnsweringEngine:
        """What answers OpenAI chat requests with this model. Raises ConfigError where nothing does."""
        ...

    def load(self) -> None:
        """Load the model now; otherwise the first request does."""
        ...

    def start(self, ask: Generation, sink: StreamSink, /) -> Callable[[], None]:
        """Begin an answer that goes to `sink`; returns at once what stops it early, from any thread."""
        ...

    def tokenize(self, text: str, *, special: bool = False, bos: bool = False) -> list[int]:
        """Return the tokens of `text`; `special`: control tokens in it are such; `bos`: the model's beginning too."""
        ...

    def detokenize(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens; bytes that are no UTF-8 become U+FFFD."""
        ...

    def logprobs(self, tokens: Sequence[int]) -> list[float]:
        """Return the natural log-probability of every token of the vocabulary as the next one after `tokens`."""
        ...

    def embed(self, texts: Sequence[str], *, pooling: str = "", normalize: bool = True) -> Embeddings:
        """Return one vector per text. `pooling`: mean, cls, last; empty: the model's own, mean where it has none.

        `normalize` gives vectors of length 1. Raises ContextExceededError for a text that does not fit.
        """
        ...

    def close(self) -> None:
        """Unload the model; answers under way end with LocalModelError. A later request loads it again."""
        ...


def unable(backend: str, what: str, hint: str = "") -> ConfigError:
    """Return the error for what a backend cannot do."""
    return ConfigError(f"The {backend} backend cannot {what}.", hint=hint)
