"""Asking vendors for embeddings: which form each speaks, how much it takes at once, how batches become one answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from windlass.core.errors import BadRequestError, UnsupportedInputError, WireError
from windlass.core.ports import Embeddings
from windlass.core.usage import Usage
from windlass.wire.embeddings import MAX_INPUTS, OLLAMA, OPENAI, EmbeddingDialect, EmbeddingRequest

__all__ = ["batches", "embedding_dialect", "embedding_request", "joined"]

#: The name of a vendor's dialect -> how it is asked for embeddings.
_DIALECTS: Final[Mapping[str, EmbeddingDialect]] = {
    "openai_chat": OPENAI,
    "openai_completions": OPENAI,
    "openai_responses": OPENAI,
    "ollama": OLLAMA,
    "ollama_generate": OLLAMA,
}
#: Texts at once where a vendor takes fewer than OpenAI (docs.cohere.com/reference/embed).
_MOST: Final[Mapping[str, int]] = {"cohere": 96}
#: Vendors that are asked for base64, a third of the bytes, as OpenAI's own SDK does; others may not know it.
_PACKED: Final = frozenset(("openai",))


def embedding_dialect(dialect: str, provider: str) -> EmbeddingDialect:
    """Return how a provider whose dialect has this name is asked. Raises UnsupportedInputError where it cannot be."""
    found = _DIALECTS.get(dialect)
    if found is None:
        raise UnsupportedInputError(
            f"{provider} has no embeddings that can be asked for here.",
            provider=provider,
            hint="Use an OpenAI-compatible provider or Ollama.",
        )
    return found


def embedding_request(texts: Sequence[str], model: str, dimensions: int | None, provider: str) -> EmbeddingRequest:
    """Return one batch as a request in the encoding that the vendor is known to take."""
    return EmbeddingRequest(tuple(texts), model, dimensions, "base64" if provider in _PACKED else "float")


def batches(texts: Sequence[str], provider: str) -> list[Sequence[str]]:
    """Return the texts in order, as many at once as the vendor takes. Raises BadRequestError for one bare text."""
    if isinstance(texts, str):
        raise BadRequestError("The texts to embed are one text; give a list of them.")
    most = _MOST.get(provider, MAX_INPUTS)
    return [texts[at : at + most] for at in range(0, len(texts), most)]


def joined(made: Sequence[Embeddings], model: str) -> Embeddings:
    """Return the answers to batches as one, with the sum of their usage. Raises WireError for vectors that differ."""
    if len(made) == 1:
        return made[0]
    vectors = tuple([vector for part in made for vector in part.vectors])
    if len({len(vector) for vector in vectors}) > 1:
        raise WireError("The embeddings of one request have different lengths.", model=model)
    usage = sum([part.usage for part in made], Usage())
    return Embeddings(vectors, made[0].model if made else model, usage)
