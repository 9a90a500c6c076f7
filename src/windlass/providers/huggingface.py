"""Hugging Face: embeddings are a task of their own there, feature extraction, beside the chat router.

Source: huggingface.co/docs/inference-providers/tasks/feature-extraction. The answer is a vector per text, or per token
where a model has no pooling of its own; of those the mean is taken, as sentence-transformers does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, Final
from urllib.parse import quote, urlsplit

from windlass.core import json
from windlass.core.errors import UnsupportedInputError, WireError
from windlass.core.estimate import estimate_text
from windlass.core.ports import Embeddings
from windlass.core.request import Request
from windlass.core.usage import Usage
from windlass.providers.embeddings import batches, joined
from windlass.providers.remote import RemoteProvider

__all__ = ["HuggingFaceProvider"]

#: Texts at once; text-embeddings-inference takes 32 unless its operator says otherwise (`--max-client-batch-size`).
_MOST: Final = 32


class HuggingFaceProvider(RemoteProvider):
    """Ask Hugging Face's router, or what answers in its place at another base URL. Raises ProviderError kinds only."""

    async def embed(self, texts: Sequence[str], model: str, *, dimensions: int | None = None) -> Embeddings:
        """Return the vectors of texts, in their order; usage is estimated, as none is told.

        Raises UnsupportedInputError for `dimensions`, which this task cannot be asked for.
        """
        if dimensions is not None:
            raise UnsupportedInputError(
                f"{self.name} makes vectors of the model's own length only.", provider=self.name, model=model
            )
        where = Request(model=model, messages=())
        made: list[Embeddings] = []
        for batch in (part[at : at + _MOST] for part in batches(texts, self.name) for at in range(0, len(part), _MOST)):
            body = json.dumps({"inputs": list(batch)})
            made.append(await self.post(self._pipeline(model), body, where, partial(_read, texts=batch, model=model)))
        return joined(made, model) if made else Embeddings((), model, Usage())

    def _pipeline(self, model: str) -> str:
        host = urlsplit(self.base_url)
        path = f"/hf-inference/models/{quote(model, safe='/')}/pipeline/feature-extraction"
        return f"{host.scheme}://{host.netloc}{path}"


def _read(body: bytes, texts: Sequence[str], model: str) -> Embeddings:
    try:
        data = json.loads(body)
    except json.JsonError as error:
        raise WireError(f"The answer is {error}.", model=model) from None
    if len(texts) == 1 and isinstance(data, list) and data and isinstance(data[0], (int, float)):
        data = [data]  # some backends unpack a single one
    if not isinstance(data, list) or len(data) != len(texts):
        raise WireError(f"The answer does not hold {len(texts)} vectors.", model=model)
    vectors = tuple([_vector(row, model) for row in data])
    if len({len(vector) for vector in vectors}) > 1:
        raise WireError("The vectors of one answer have different lengths.", model=model)
    return Embeddings(vectors, model, Usage(sum([estimate_text(text) for text in texts]), estimated=True))


def _vector(row: Any, model: str) -> tuple[float, ...]:
    """Return a text's vector, the mean where there is one per token (perhaps in a batch of one)."""
    while (
        isinstance(row, list) and len(row) == 1 and isinstance(row[0], list) and row[0] and isinstance(row[0][0], list)
    ):
        row = row[0]
    if isinstance(row, list) and row and isinstance(row[0], list):
        tokens = [_numbers(token, model) for token in row]
        if len({len(token) for token in tokens}) > 1:
            raise WireError("The vectors of a text's tokens have different lengths.", model=model)
        return tuple([math.fsum(column) / len(tokens) for column in zip(*tokens, strict=True)])
    return _numbers(row, model)


def _numbers(row: Any, model: str) -> tuple[float, ...]:
    if not isinstance(row, list) or not row or not all(type(each) in (int, float) for each in row):
        raise WireError("An embedding is not a list of numbers.", model=model)
    return tuple([float(each) for each in row])
