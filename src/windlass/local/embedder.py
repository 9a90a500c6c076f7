"""Vectors of texts from a GGUF model: the same engine as for text, loaded to give vectors instead.

A user's file runs in a worker process. How the vectors of a text's tokens are made one (pooling) is what the file says,
or the mean where it says nothing; a model made for text gives vectors of the mean too, but poor ones.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from typing import Any, Final, Literal

from msgspec.structs import replace

from windlass.core.errors import BadRequestError, ConfigError, ContextExceededError, UnsupportedInputError
from windlass.core.ports import Embeddings
from windlass.core.threads import run_in_thread
from windlass.core.usage import Usage
from windlass.core.vectors import cosine_similarity
from windlass.local.backend import Backend
from windlass.local.backend_native import LlamaBackend, model_info
from windlass.local.engine import Engine, EngineOptions, require_engine
from windlass.local.gguf import read_header
from windlass.local.supervisor import WorkerEngine
from windlass.local.wordpiece import WordPiece, word_piece

__all__ = ["Encoder", "GgufEmbedder", "Pooling"]

Pooling = Literal["", "mean", "cls", "last"]
_NAME: Final = "local"
#: Texts that the engine is asked at a time: between two such batches a cancelled request ends.
_BATCH: Final = 16
#: What the engine adds to a text: where it begins and ends.
_MARKS: Final = 2


class GgufEmbedder:
    """Embed texts with the GGUF model at `path`, loaded by the first request; an `Embedder`.

    `pooling` (mean, cls, last) overrides the model's own; `normalize` gives vectors of length 1. A text that does not
    fit the model's context raises ContextExceededError, or with `truncate` is cut to what fits, from its beginning.
    `options` say how the model is loaded (`context` in tokens: None is the model's own, at most 4096). The file runs in
    a worker process, or with `in_process` in this one, which is for files you trust; `verify` is called before it is
    opened then. `load_timeout` is in seconds, `memory` caps a worker in bytes. `backend`, when given, is asked instead
    of all this, and stays its owner's to close.

    Raises ConfigError for an unknown pooling and where the engine is not installed, LocalModelError kinds for a file
    that is no usable model, BadRequestError for an empty text where the model takes none.
    """

    name = _NAME

    def __init__(
        self,
        path: str | os.PathLike[str] = "",
        *,
        pooling: Pooling = "",
        normalize: bool = True,
        truncate: bool = False,
        options: EngineOptions | None = None,
        in_process: bool = False,
        verify: Callable[[], None] | None = None,
        load_timeout: float = 600.0,
        memory: int | None = None,
        backend: Backend | None = None,
    ) -> None:
        if pooling not in ("", "mean", "cls", "last"):
            raise ConfigError(f"There is no pooling {pooling!r}.", hint="Use mean, cls, last, or leave it out.")
        self.path = os.fspath(path) if backend is None else backend.info.path
        self.pooling, self.normalize, self.truncate = pooling, normalize, truncate
        self._options = options or EngineOptions(log=not in_process)
        self._in_process, self._verify = in_process, verify
        self._load_timeout, self._memory = load_timeout, memory
        self._given = backend
        self._own: Backend | None = None
        self._pieces: WordPiece | None = None
        self._lock = threading.Lock()

    async def embed(self, texts: Sequence[str], model: str = "", *, dimensions: int | None = None) -> Embeddings:
        """Return the vectors of texts, in their order, with exact usage; `model` makes no difference.

        Raises UnsupportedInputError for `dimensions` that are not the model's own: its vectors cannot be cut.
        """
        del model
        texts = _checked(texts)
        made = [await run_in_thread(self._some, batch, dimensions) for batch in _batches(texts)]
        return _joined(made)

    async def encode(self, text: str) -> tuple[float, ...]:
        """Return the vector of one text."""
        return (await self.embed([text])).vectors[0]

    def embed_now(self, texts: Sequence[str]) -> Embeddings:
        """Return the vectors of texts, in their order. Blocking."""
        return _joined([self._some(batch, None) for batch in _batches(_checked(texts))])

    def close(self) -> None:
        """Unload the model; a later request loads it again. Blocking."""
        with self._lock:
            own, self._own = self._own, None
        if own is not None:
            own.close()

    def _some(self, texts: Sequence[str], dimensions: int | None) -> Embeddings:
        backend = self.backend
        width = backend.info.embedding_width
        if dimensions is not None and dimensions != width:
            raise UnsupportedInputError(
                f"The vectors of {backend.info.name} have {width} numbers, not {dimensions}, and cannot be cut.",
                provider=_NAME,
                model=backend.info.name,
            )
        # Of our own backend the pooling was settled when it was made.
        pooling = self.pooling if self._given is not None else ""
        asked: Any = texts
        if self._pieces is not None:
            # The engine takes the ids of tokens in place of texts.
            asked = [self._ids(text, number, backend) for number, text in enumerate(texts)]
        elif self.truncate:
            asked = [_fitting(backend, text) for text in texts]
        return backend.embed(asked, pooling=pooling, normalize=self.normalize)

    def _ids(self, text: str, number: int, backend: Backend) -> list[int]:
        assert self._pieces is not None
        room = backend.info.context
        ids = self._pieces.encode(text, room if self.truncate else None)
        if len(ids) > room:
            name = backend.info.name
            raise ContextExceededError(
                f"Text {number} has {len(ids)} tokens; the context of {name} holds {room}.",
                provider=_NAME,
                model=name,
                hint="Cut it.",
            )
        return ids

    @property
    def backend(self) -> Backend:
        """What runs the model; its header is read now if it was not. Raises as `embed`."""
        if self._given is not None:
            return self._given
        with self._lock:
            if self._own is None:
                self._own = self._made()
            return self._own

    def _made(self) -> Backend:
        require_engine()
        info = read_header(self.path)
        own = info.metadata.get(f"{info.architecture}.pooling_type")
        pooling = self.pooling or ("" if isinstance(own, int) and own > 0 else "mean")
        options = replace(self._options, embedding=True, pooling=pooling)
        self._pieces = word_piece(info)
        if self._in_process:
            engine = Engine(self.path, options, verify=self._verify)
        else:
            engine = WorkerEngine(self.path, options, load_timeout=self._load_timeout, memory=self._memory)
        return LlamaBackend(engine, model_info(info, options, "native" if self._in_process else "worker"))


class Encoder:
    """Reference E's way to embed, blocking: `Encoder.init(path)`, `encode`, `embed_batch`, `cosine_similarity`.

    Options are those of `GgufEmbedder`; raises what it raises.
    """

    def __init__(self, path: str | os.PathLike[str], **options: Any) -> None:
        self._embedder = GgufEmbedder(path, **options)

    @classmethod
    def init(cls, path: str | os.PathLike[str], **options: Any) -> Encoder:
        """Return an encoder over the GGUF model at `path`."""
        return cls(path, **options)

    def encode(self, text: str) -> tuple[float, ...]:
        """Return the vector of a text."""
        return self._embedder.embed_now([text]).vectors[0]

    def embed_batch(self, texts: Sequence[str]) -> list[tuple[float, ...]]:
        """Return the vectors of texts, in their order."""
        return list(self._embedder.embed_now(texts).vectors)

    @staticmethod
    def cosine_similarity(a: Sequence[float], b: Sequence[float]) -> float:
        """Return the cosine of the angle between two vectors, -1 to 1. Raises ValueError when the lengths differ."""
        return cosine_similarity(a, b)

    def deinit(self) -> None:
        """Unload the model."""
        self._embedder.close()

    def __enter__(self) -> Encoder:
        return self

    def __exit__(self, *_: object) -> None:
        self.deinit()


def _checked(texts: Sequence[str]) -> Sequence[str]:
    if isinstance(texts, str):
        raise BadRequestError("The texts to embed are one text; give a list of them.", provider=_NAME)
    return texts


def _batches(texts: Sequence[str]) -> list[Sequence[str]]:
    # Also for no texts: the answer still says which model.
    return [texts[at : at + _BATCH] for at in range(0, max(len(texts), 1), _BATCH)]


def _joined(made: Sequence[Embeddings]) -> Embeddings:
    vectors = tuple([vector for part in made for vector in part.vectors])
    return Embeddings(vectors, made[0].model, sum([part.usage for part in made], Usage()))


def _fitting(backend: Backend, text: str) -> str:
    """Return the longest beginning of a text that fits the context, to a character."""
    room = backend.info.context
    # A token has at least one byte of the text.
    if len(text.encode("utf-8", "surrogatepass")) + _MARKS <= room or _count(backend, text) <= room:
        return text
    fits, too_long = 0, len(text)
    while too_long - fits > 1:
        middle = (fits + too_long) // 2
        if _count(backend, text[:middle]) <= room:
            fits = middle
        else:
            too_long = middle
    if not fits:
        raise ContextExceededError(f"The context of {backend.info.name} holds {room} tokens.", provider=_NAME)
    return text[:fits]


def _count(backend: Backend, text: str) -> int:
    return len(backend.tokenize(text, bos=True))
