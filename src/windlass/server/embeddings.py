"""Embeddings in three forms: OpenAI's `/v1/embeddings`, Ollama's `/api/embed` and `/api/embeddings`."""

from __future__ import annotations

from windlass.core import clock
from windlass.core.errors import ProviderTimeoutError, UnsupportedInputError
from windlass.core.ports import Embeddings
from windlass.core.usage import Usage
from windlass.providers.embeddings import embedding_dialect
from windlass.providers.target import Target
from windlass.server.answer import answer, attempt
from windlass.server.body import Fields, asked_model, peek
from windlass.server.endpoints import Endpoint
from windlass.server.gateway import Gateway
from windlass.server.http import Call
from windlass.server.ingress import Ingress
from windlass.server.job import Job, job_for
from windlass.wire import openai_chat
from windlass.wire.embeddings import OPENAI, EmbeddingDialect, EmbeddingRequest

__all__ = ["ENDPOINTS", "answer_embeddings"]

EMBEDDINGS = Ingress("openai-embeddings", openai_chat.DIALECT, writes=False)


async def embeddings(gateway: Gateway, call: Call) -> None:
    """Answer `POST /v1/embeddings`."""
    fields = peek(call.body)
    await answer_embeddings(gateway, call, EMBEDDINGS, OPENAI, asked_model(fields), fields)


async def answer_embeddings(
    gateway: Gateway, call: Call, ingress: Ingress, dialect: EmbeddingDialect, model: str, fields: Fields
) -> None:
    """Answer a request for embeddings with those of the first target of the route that makes them."""

    async def work(job: Job) -> None:
        asked = dialect.decode_request(job.call.body)
        if not asked.texts:
            # A client that only wants the model to be there.
            job.report.cost = 0
            job.answered(dialect.encode_response(Embeddings((), model, Usage()), asked))
            return
        if not any(map(_embeds, job.route.targets)):
            first = job.route.targets[0]
            raise UnsupportedInputError(
                f"{model} makes no embeddings.", provider=first.provider.name, model=first.model, status=400,
                hint="Use a route whose target is an embedding model.",
            )  # fmt: skip

        async def ask(job: Job, target: Target) -> None:
            await _ask(job, target, dialect, asked)

        await attempt(job, ask, _embeds)

    await answer(job_for(gateway, call, ingress, model=model, stream=False, fields=fields), work)


def _embeds(target: Target) -> bool:
    """Tell whether a target can be asked for embeddings."""
    provider = target.provider
    if not hasattr(provider, "embed"):
        return False
    dialect = getattr(provider, "dialect", None)
    if dialect is None:
        return True
    try:
        embedding_dialect(dialect.name, provider.name)
    except UnsupportedInputError:
        return False
    return True


async def _ask(job: Job, target: Target, dialect: EmbeddingDialect, asked: EmbeddingRequest) -> None:
    report = job.report
    report.target, report.model = target.name, target.model
    job.upstream_since = clock.monotonic()
    try:
        async with clock.deadline(job.budget.remaining()):
            made = await target.provider.embed(asked.texts, target.model, dimensions=asked.dimensions)
    except TimeoutError:
        raise ProviderTimeoutError(
            f"{target.name} made no embeddings in the time given.", provider=target.provider.name, model=target.model
        ) from None
    report.usage, report.model = made.usage, made.model
    report.first_at = clock.monotonic()
    job.answered(dialect.encode_response(made, asked))


ENDPOINTS = (
    Endpoint("POST", "/v1/embeddings", embeddings, ingress=EMBEDDINGS, body=True,
             summary="Turn texts into vectors (OpenAI embeddings).", feature="embeddings"),
)  # fmt: skip
