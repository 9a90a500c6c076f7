"""`POST /v1/messages/count_tokens`: how many tokens a request would have, by the vendor's count where it has one."""

from __future__ import annotations

from windlass.core import clock
from windlass.core.errors import ProviderTimeoutError
from windlass.core.estimate import estimate_tokens
from windlass.core.usage import Usage
from windlass.providers.target import Target
from windlass.server.answer import answer, attempt
from windlass.server.body import asked_model, peek
from windlass.server.endpoints import Endpoint
from windlass.server.gateway import Gateway
from windlass.server.http import Call
from windlass.server.ingress import Ingress
from windlass.server.job import Job, job_for
from windlass.wire import anthropic
from windlass.wire.anthropic_count import encode_count

__all__ = ["ENDPOINTS"]

COUNT = Ingress("anthropic-count", anthropic.DIALECT, reads=False, writes=False)


async def count_tokens(gateway: Gateway, call: Call) -> None:
    """Answer `POST /v1/messages/count_tokens`; it costs nothing, and is recorded so."""
    fields = peek(call.body)
    await answer(job_for(gateway, call, COUNT, model=asked_model(fields), stream=False, fields=fields), _work)


async def _work(job: Job) -> None:
    job.report.usage, job.report.cost = Usage(), 0
    job.translated = job.decoded
    await attempt(job, _ask)


async def _ask(job: Job, target: Target) -> None:
    job.report.target, job.report.model = target.name, target.model
    job.upstream_since = clock.monotonic()
    request, provider = job.for_target(target), target.provider
    try:
        async with clock.deadline(job.budget.remaining()):
            counted = await provider.count(request) if hasattr(provider, "count") else estimate_tokens(request)
    except TimeoutError:
        raise ProviderTimeoutError(
            f"{target.name} counted nothing in the time given.", provider=provider.name, model=target.model
        ) from None
    job.answered(encode_count(counted.input_tokens if isinstance(counted, Usage) else int(counted)))


ENDPOINTS = (
    Endpoint("POST", "/v1/messages/count_tokens", count_tokens, ingress=COUNT, body=True,
             summary="Count the tokens of a request (Anthropic)."),
)  # fmt: skip
