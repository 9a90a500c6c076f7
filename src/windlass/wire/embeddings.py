"""Embeddings in three forms, as client and as server: OpenAI's, Ollama's `/api/embed` and its old `/api/embeddings`.

Source: platform.openai.com/docs/api-reference/embeddings, docs.ollama.com/api/embed. Errors have the forms of the
vendor's chat dialect: use its `encode_error` and `decode_error`.
"""

from __future__ import annotations

import base64
import binascii
import math
import struct
from collections.abc import Callable
from typing import Any, ClassVar, Final, Literal, Protocol, TypeAlias, TypeVar

import msgspec
from msgspec import Struct, field

from windlass.core.errors import WireError
from windlass.core.estimate import estimate_text
from windlass.core.json import dumps
from windlass.core.ports import Embeddings
from windlass.core.usage import Usage
from windlass.wire.base import as_dict, as_int, bad_field, load_object
from windlass.wire.fields import flag, load_fields, text, whole
from windlass.wire.openai_chat_answer import error_in

__all__ = ["MAX_INPUTS", "OLLAMA", "OLLAMA_OLD", "OPENAI", "EmbeddingDialect", "EmbeddingRequest"]

#: Texts of one request (OpenAI's own limit).
MAX_INPUTS: Final = 2048
_MAX_DIMENSIONS: Final = 1 << 16
_OPENAI_KNOWN: Final = frozenset(("model", "input", "dimensions", "encoding_format"))
_OLLAMA_KNOWN: Final = frozenset(("model", "input", "dimensions"))
_OLD_KNOWN: Final = frozenset(("model", "prompt"))

_Vectors: TypeAlias = tuple[tuple[float, ...], ...]


class EmbeddingRequest(Struct, frozen=True):
    """What a client asks for.

    `texts` is empty where an Ollama client only wants the model loaded: the answer then holds no vector. `extra` keeps
    what has no word of ours (`user`, `truncate`, `keep_alive`, `options`); encoding a request merges it last.
    """

    texts: tuple[str, ...]
    model: str
    dimensions: int | None = None
    encoding: Literal["float", "base64"] = "float"
    extra: dict[str, Any] = field(default_factory=dict[str, Any])


class EmbeddingDialect(Protocol):
    """Translate embeddings between our words and one form of bytes, both ways. Pure."""

    #: Where it is spoken.
    path: ClassVar[str]

    def encode_request(self, request: EmbeddingRequest) -> bytes:
        """Return the body to send."""
        ...

    def decode_request(self, body: bytes) -> EmbeddingRequest:
        """Read a client's body. Raises BadRequestError that names the field."""
        ...

    def encode_response(self, made: Embeddings, request: EmbeddingRequest) -> bytes:
        """Return the answer to a request. Raises WireError for vectors that its encoding cannot hold."""
        ...

    def decode_response(self, body: bytes, request: EmbeddingRequest) -> Embeddings:
        """Read the answer to a request: one vector for each text, all of one length, all numbers finite.

        Usage that is not reported is estimated. Raises WireError, or the classified ProviderError when the body holds
        an error.
        """
        ...


# ---------------------------------------------------------------------------------------------------------- requests


def _texts(value: Any, path: str) -> tuple[str, ...]:
    """Read a text or an array of texts."""
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, list):
        raise bad_field(path, "must be a text or an array of texts")
    if len(value) > MAX_INPUTS:
        raise bad_field(path, f"holds {len(value)} texts; at most {MAX_INPUTS} are taken at once")
    for at, item in enumerate(value):
        if isinstance(item, (int, float, list)):
            raise bad_field(path, "holds tokens, which differ from model to model; send text")
        if not isinstance(item, str):
            raise bad_field(f"{path}[{at}]", "must be a text")
    return tuple(value)


def _rest(fields: dict[str, Any], known: frozenset[str]) -> dict[str, Any]:
    return {key: value for key, value in fields.items() if key not in known}


def _fields(request: EmbeddingRequest, **texts: Any) -> dict[str, Any]:
    out: dict[str, Any] = {"model": request.model, **texts}
    if request.dimensions is not None:
        out["dimensions"] = request.dimensions
    return out


# ----------------------------------------------------------------------------------------------------------- answers


def _made(vectors: _Vectors, request: EmbeddingRequest, model: Any, tokens: Any) -> Embeddings:
    """Check vectors against what was asked. Numbers are finite already: JSON has no others."""
    if len(vectors) != len(request.texts):
        raise WireError(f"The answer holds {len(vectors)} embeddings for {len(request.texts)} texts.")
    for at, vector in enumerate(vectors):
        if not vector or len(vector) != len(vectors[0]):
            raise WireError(f"Embedding {at} has {len(vector)} numbers, the first has {len(vectors[0])}.")
    known = isinstance(tokens, int) and not isinstance(tokens, bool) and tokens >= 0
    usage = Usage(as_int(tokens)) if known else Usage(sum(map(estimate_text, request.texts)), estimated=True)
    return Embeddings(vectors, model if isinstance(model, str) and model else request.model, usage)


def _checked(vector: tuple[float, ...], at: int) -> tuple[float, ...]:
    if not all(map(math.isfinite, vector)):
        raise WireError(f"Embedding {at} holds a number that is not finite.")
    return vector


def _pack(vector: tuple[float, ...]) -> str:
    """Return a vector as OpenAI's base64: 32-bit floats, little-endian."""
    try:
        return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
    except (OverflowError, struct.error) as error:
        raise WireError(f"An embedding cannot be given as 32-bit floats: {error}.") from None


def _unpack(data: str, at: int) -> tuple[float, ...]:
    try:
        raw = binascii.a2b_base64(data.encode("ascii"), strict_mode=True)
        vector = struct.unpack(f"<{len(raw) // 4}f", raw)
    except (binascii.Error, UnicodeEncodeError, struct.error):
        raise WireError(f"Embedding {at} is not base64 of 32-bit floats.") from None
    return _checked(vector, at)


class _Row(Struct):
    embedding: tuple[float, ...] | str
    index: int | None = None


class _Answer(Struct, kw_only=True):
    error: Any = None


class _Listed(_Answer):
    data: list[_Row]
    model: Any = None
    usage: Any = None


class _Embedded(_Answer):
    embeddings: _Vectors
    model: Any = None
    prompt_eval_count: Any = None


class _One(_Answer):
    embedding: tuple[float, ...]


_AnswerT = TypeVar("_AnswerT", bound=_Answer)
_read_listed = msgspec.json.Decoder(_Listed).decode
_read_embedded = msgspec.json.Decoder(_Embedded).decode
_read_one = msgspec.json.Decoder(_One).decode


def _read(body: bytes, decode: Callable[[bytes], _AnswerT]) -> _AnswerT:
    """Decode an answer. What has another form is the error it holds, a web page, or told by what is wrong with it."""
    try:
        answer = decode(body)
    # RecursionError: unknown fields that are nested too deeply.
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        data = load_object(body)
        if not data.get("error"):
            raise WireError(f"The answer is not one of embeddings: {error}.") from None
        raise error_in(data) from None
    if answer.error:
        raise error_in({"error": answer.error})
    return answer


def _in_order(rows: list[_Row]) -> list[_Row]:
    """Return the rows by their index; servers that give none mean the order of the texts."""
    if all(row.index is None for row in rows):
        return rows
    placed = {row.index: row for row in rows}
    if placed.keys() != set(range(len(rows))):
        raise WireError(f"The embeddings' indexes are not 0 to {len(rows) - 1}, each once.")
    return [placed[at] for at in range(len(rows))]


# ---------------------------------------------------------------------------------------------------------- dialects


class _OpenAI:
    """`/v1/embeddings`; the official SDK asks for base64 unless it is told otherwise."""

    path: ClassVar[str] = "/v1/embeddings"

    def encode_request(self, request: EmbeddingRequest) -> bytes:
        fields = _fields(request, input=list(request.texts))
        if request.encoding != "float":
            fields["encoding_format"] = request.encoding
        return dumps({**fields, **request.extra})

    def decode_request(self, body: bytes) -> EmbeddingRequest:
        fields = load_fields(body)
        texts = _texts(fields.get("input"), "input")
        if not texts:
            raise bad_field("input", "must hold a text")
        if "" in texts:
            where = "input" if isinstance(fields["input"], str) else f"input[{texts.index('')}]"
            raise bad_field(where, "must not be empty")
        encoding = fields.get("encoding_format", "float")
        if encoding not in ("float", "base64"):
            raise bad_field("encoding_format", "must be float or base64")
        text(fields, "user")
        return EmbeddingRequest(
            texts,
            text(fields, "model", required=True),
            whole(fields, "dimensions", 1, _MAX_DIMENSIONS),
            encoding,
            _rest(fields, _OPENAI_KNOWN),
        )

    def encode_response(self, made: Embeddings, request: EmbeddingRequest) -> bytes:
        vectors = [_checked(vector, at) for at, vector in enumerate(made.vectors)]
        form = _pack if request.encoding == "base64" else list
        rows = [{"object": "embedding", "index": at, "embedding": form(one)} for at, one in enumerate(vectors)]
        tokens = made.usage.input_tokens
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return dumps({"object": "list", "data": rows, "model": made.model, "usage": usage})

    def decode_response(self, body: bytes, request: EmbeddingRequest) -> Embeddings:
        answer = _read(body, _read_listed)
        vectors = tuple([
            _unpack(row.embedding, at) if isinstance(row.embedding, str) else row.embedding
            for at, row in enumerate(_in_order(answer.data))
        ])  # fmt: skip
        usage = as_dict(answer.usage)
        return _made(vectors, request, answer.model, usage.get("prompt_tokens", usage.get("total_tokens")))


class _Ollama:
    """`/api/embed`."""

    path: ClassVar[str] = "/api/embed"

    def encode_request(self, request: EmbeddingRequest) -> bytes:
        return dumps({**_fields(request, input=list(request.texts)), **request.extra})

    def decode_request(self, body: bytes) -> EmbeddingRequest:
        fields = load_fields(body)
        texts = _texts(fields.get("input", []), "input")
        flag(fields, "truncate")
        return EmbeddingRequest(
            () if texts == ("",) else texts,
            text(fields, "model", required=True),
            # 0 is how a server with its own defaults is told nothing.
            whole(fields, "dimensions", 0, _MAX_DIMENSIONS) or None,
            extra=_rest(fields, _OLLAMA_KNOWN),
        )

    def encode_response(self, made: Embeddings, request: EmbeddingRequest) -> bytes:  # noqa: ARG002
        usage = {"prompt_eval_count": made.usage.input_tokens}
        vectors = [_checked(vector, at) for at, vector in enumerate(made.vectors)]
        return dumps({"model": made.model, "embeddings": vectors, **usage})

    def decode_response(self, body: bytes, request: EmbeddingRequest) -> Embeddings:
        answer = _read(body, _read_embedded)
        return _made(answer.embeddings, request, answer.model, answer.prompt_eval_count)


class _OllamaOld:
    """`/api/embeddings`: one text, one vector, no counts."""

    path: ClassVar[str] = "/api/embeddings"

    def encode_request(self, request: EmbeddingRequest) -> bytes:
        if len(request.texts) != 1:
            raise bad_field("prompt", f"takes one text, not {len(request.texts)}; use /api/embed")
        return dumps({"model": request.model, "prompt": request.texts[0], **request.extra})

    def decode_request(self, body: bytes) -> EmbeddingRequest:
        fields = load_fields(body)
        prompt = text(fields, "prompt")
        model = text(fields, "model", required=True)
        return EmbeddingRequest((prompt,) if prompt else (), model, extra=_rest(fields, _OLD_KNOWN))

    def encode_response(self, made: Embeddings, request: EmbeddingRequest) -> bytes:  # noqa: ARG002
        return dumps({"embedding": _checked(made.vectors[0], 0) if made.vectors else ()})

    def decode_response(self, body: bytes, request: EmbeddingRequest) -> Embeddings:
        return _made((_read(body, _read_one).embedding,), request, None, None)


OPENAI: Final[EmbeddingDialect] = _OpenAI()
OLLAMA: Final[EmbeddingDialect] = _Ollama()
OLLAMA_OLD: Final[EmbeddingDialect] = _OllamaOld()
