"""The torch reference: the same answers as the engine from code that can be read, and freshly trained models at once.

One answer at a time, greedy or sampled. Slow and exact: it is for parity and for a model that was just trained.
"""

from __future__ import annotations

import codecs
import os
import threading
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from windlass.core import clock
from windlass.core.errors import BadRequestError, ConfigError, ContextExceededError, LocalModelError
from windlass.core.ports import Embeddings
from windlass.core.usage import Usage
from windlass.local.backend import AnsweringEngine, Ended, Generation, ModelInfo, Piece, Prefilled, StreamSink, unable
from windlass.local.llama import KvCache, Llama
from windlass.local.llama_gguf import load_gguf
from windlass.local.vocabulary import GgufVocabulary, Vocabulary, token_bytes

__all__ = ["TorchBackend", "choose"]

#: How far back the repetition penalty looks: llama.cpp's `repeat_last_n`.
_LAST: Final = 64


class TorchBackend:
    """Run a `Llama` of torch as a `Backend`.

    `vocabulary` is needed for text, `end_tokens` end it besides its own. `context` is the model's. One answer is made
    at a time; others wait. It has no chat template, grammar or adapters.
    """

    name = "torch"
    may_wait = True

    def __init__(
        self,
        model: Llama,
        vocabulary: Vocabulary | None = None,
        *,
        name: str = "torch",
        path: str = "",
        end_tokens: Sequence[int] = (),
        metadata: dict[str, Any] | None = None,
    ) -> None:
        self._model: Llama | None = model.eval()
        self._vocabulary = vocabulary
        self._config = model.config
        self._bytes = token_bytes(vocabulary) if vocabulary is not None else []
        own = vocabulary.eos_id if vocabulary is not None else None
        ends = [*end_tokens, own] if own is not None and own not in end_tokens else [*end_tokens]
        self._ends = tuple(ends)
        self._lock = threading.Lock()  # one answer at a time
        size = sum([weight.numel() * weight.element_size() for weight in model.parameters()])
        self._info = ModelInfo(
            name=name,
            path=path,
            backend="torch",
            architecture="llama",
            quantization=str(model.token_embd.weight.dtype).removeprefix("torch.").upper(),
            parameters=model.config.parameters,
            size=size,
            context=model.config.context,
            trained_context=model.config.context,
            vocabulary=model.config.vocab_size,
            embedding_width=model.config.width,
            device=str(model.token_embd.weight.device),
            end_tokens=self._ends,
            metadata=metadata or {},
        )

    @classmethod
    def from_file(cls, path: str | os.PathLike[str], *, context: int | None = None) -> TorchBackend:
        """Read a GGUF model (see `load_gguf`). A tokenizer that it cannot read leaves token ids alone. Blocking."""
        model, metadata = load_gguf(path, context=context)
        try:
            vocabulary = GgufVocabulary(path)
        except LocalModelError:
            vocabulary = None
        ends = [metadata.get(f"tokenizer.ggml.{key}") for key in ("eos_token_id", "eot_token_id", "eom_token_id")]
        return cls(
            model,
            vocabulary,
            name=Path(path).stem,
            path=os.fspath(path),
            end_tokens=[token for token in ends if isinstance(token, int)],
            metadata=metadata,
        )

    @property
    def info(self) -> ModelInfo:
        """What is known of the model."""
        return self._info

    def chat_engine(self) -> AnsweringEngine:
        """Raise ConfigError: it answers no chat requests."""
        raise unable("torch", "answer chat requests", "Export the model to GGUF and use the backend 'native'.")

    def load(self) -> None:
        """Nothing: the model is in memory."""

    def start(self, ask: Generation, sink: StreamSink, /) -> Callable[[], None]:
        """Begin an answer on a thread of its own; see `Backend.start`."""
        if ask.grammar or ask.json_schema is not None:
            raise unable("torch", "hold a text to a grammar", "Use the backend 'native'.")
        if ask.scales is not None:
            raise unable("torch", "scale adapters", "Merge them into the weights.")
        tokens = self.tokenize(ask.prompt, special=True) if isinstance(ask.prompt, str) else list(ask.prompt)
        self._check(tokens)
        stopped = threading.Event()
        thread = threading.Thread(target=self._run, args=(ask, tokens, sink, stopped), name="windlass-torch")
        thread.daemon = True
        thread.start()
        return stopped.set

    def tokenize(self, text: str, *, special: bool = False, bos: bool = False) -> list[int]:
        """Return the tokens of `text`; see `Backend.tokenize`. A beginning is not known here."""
        del bos
        return self._known("read text").encode(text, special=special)

    def detokenize(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens, control tokens by their names; see `Backend.detokenize`."""
        names = self._known("write text").tokens()
        self._check(tokens, room=False)
        return b"".join([self._bytes[token] or names[token].encode() for token in tokens]).decode("utf-8", "replace")

    def logprobs(self, tokens: Sequence[int]) -> list[float]:
        """Return the log-probability of every token as the next one; see `Backend.logprobs`."""
        if not tokens:
            raise ConfigError("What comes next cannot be told where nothing was said: give at least one token.")
        self._check(tokens)
        with self._lock, torch.inference_mode():
            return self._next(list(tokens), None).log_softmax(-1).tolist()

    def embed(self, texts: Sequence[str], *, pooling: str = "", normalize: bool = True) -> Embeddings:
        """Return one vector per text; see `Backend.embed`."""
        pool = _POOLS.get(pooling or "mean")
        if pool is None:
            raise ConfigError(f"There is no pooling {pooling!r}.", hint="Use mean, cls, last, or leave it out.")
        vectors: list[tuple[float, ...]] = []
        count = 0
        for text in texts:
            tokens = self.tokenize(text)
            if not tokens:
                raise BadRequestError("An empty text has no vector.", provider="local", model=self.info.name)
            self._check(tokens)
            count += len(tokens)
            with self._lock, torch.inference_mode():
                vector = pool(self._loaded().hidden(self._tensor(tokens))[0].float())
                vectors.append(tuple((vector / vector.norm() if normalize else vector).tolist()))
        return Embeddings(tuple(vectors), self.info.name, Usage(input_tokens=count))

    def close(self) -> None:
        """Let the model go; what is under way ends with LocalModelError at its next token."""
        self._model = None

    def _run(self, ask: Generation, tokens: list[int], sink: StreamSink, stopped: threading.Event) -> None:
        try:
            with self._lock, torch.inference_mode():
                end: Ended | BaseException = self._answer(ask, tokens, sink, stopped)
        except BaseException as error:
            end = error
        sink.finish(end)

    def _answer(self, ask: Generation, tokens: list[int], sink: StreamSink, stopped: threading.Event) -> Ended:
        begun = clock.monotonic()
        cache, last = KvCache(), deque(tokens, _LAST)
        chance = torch.Generator().manual_seed(ask.seed if ask.seed is not None else int(clock.random() * 2**32))
        text = codecs.getincrementaldecoder("utf-8")("replace")
        if stopped.is_set():
            return Ended()
        logits = self._next(tokens, cache)
        read = clock.monotonic()
        reason = "length"
        if sink.put(Prefilled(len(tokens))):
            return Ended()
        for position in range(ask.max_tokens):
            token = choose(logits, ask, last, chance)
            if token in self._ends and not ask.ignore_end:
                reason = "stop"
                break
            last.append(token)
            shown = text.decode(self._bytes[token]) if self._bytes else ""
            if sink.put(_piece(token, shown, position, logits, ask.logprobs)) or stopped.is_set():
                break
            if cache.length >= self._config.context or position + 1 == ask.max_tokens:
                break
            logits = self._next([token], cache)
        return Ended(reason, int((read - begun) * 1e9), int((clock.monotonic() - read) * 1e9))

    def _next(self, tokens: list[int], cache: KvCache | None) -> Tensor:
        return self._loaded()(self._tensor(tokens), cache=cache)[0, -1].float().cpu()

    def _tensor(self, tokens: Sequence[int]) -> Tensor:
        return torch.tensor([list(tokens)], device=self._loaded().token_embd.weight.device)

    def _loaded(self) -> Llama:
        if self._model is None:
            raise LocalModelError(f"The model {self.info.name} was unloaded.", path=self.info.path)
        return self._model

    def _known(self, what: str) -> Vocabulary:
        if self._vocabulary is None:
            raise unable("torch", what + " without a vocabulary", "Give token ids, or the tokenizer.")
        return self._vocabulary

    def _check(self, tokens: Sequence[int], *, room: bool = True) -> None:
        known = self._config.vocab_size
        for token in tokens:
            if not 0 <= token < known:
                raise BadRequestError(
                    f"{token} is no token: {self.info.name} knows 0 to {known - 1}.", provider="local"
                )
        if room and len(tokens) > self._config.context:
            raise ContextExceededError(
                f"The prompt has {len(tokens)} tokens; the context of {self.info.name} holds {self._config.context}.",
                provider="local",
                model=self.info.name,
                hint="Shorten it.",
            )


_POOLS: Final[dict[str, Callable[[Tensor], Tensor]]] = {
    "mean": lambda rows: rows.mean(0),
    "cls": lambda rows: rows[0],
    "last": lambda rows: rows[-1],
}


def choose(logits: Tensor, ask: Generation, last: Sequence[int], chance: torch.Generator) -> int:
    """Return the next token: llama.cpp's samplers in its order (penalties, top-k, top-p, min-p, temperature).

    `last` are the tokens that the repetition penalty counts. Source: llama.cpp, src/llama-sampling.cpp.
    """
    scores = logits.clone()
    if ask.repetition_penalty != 1.0 and last:
        seen = torch.tensor(sorted(set(last)))
        values = scores[seen]
        scores[seen] = torch.where(values <= 0, values * ask.repetition_penalty, values / ask.repetition_penalty)
    if ask.temperature == 0:
        return int(scores.argmax())
    count = min(ask.top_k, len(scores)) if ask.top_k else len(scores)
    scores, ids = scores.topk(count)
    shares = scores.softmax(-1)
    keep = int((shares.cumsum(-1) < ask.top_p).sum()) + 1 if ask.top_p < 1 else count
    scores, ids = scores[:keep], ids[:keep]
    if ask.min_p:
        likely = shares[:keep] >= ask.min_p * shares[0]
        scores, ids = scores[likely], ids[likely]
    return int(ids[torch.multinomial((scores / ask.temperature).softmax(-1), 1, generator=chance)])


def _piece(token: int, text: str, position: int, logits: Tensor, count: int) -> Piece:
    if not count:
        return Piece(token, text, position)
    shares = logits.log_softmax(-1)
    values, ids = shares.topk(min(count, len(shares)))
    top = tuple(zip(ids.tolist(), values.tolist(), strict=True))
    return Piece(token, text, position, float(shares[token]), top)
