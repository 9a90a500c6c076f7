"""`POST /v1/completions`: one prompt in, one text out, as programs from before chat models ask for it."""

from __future__ import annotations

from typing import Any

from windlass.server.chat import serve
from windlass.server.endpoints import Endpoint
from windlass.server.gateway import Gateway
from windlass.server.http import Call
from windlass.server.ingress import Ingress
from windlass.server.job import Job
from windlass.wire import openai_completions

__all__ = ["ENDPOINTS"]


def _options(job: Job) -> dict[str, Any]:
    return {"echo": getattr(job.translated, "echo", "")}


COMPLETIONS = Ingress(
    "openai-completions", openai_completions.DIALECT, prefix="cmpl-", encoder_options=_options, legible=False
)


async def completions(gateway: Gateway, call: Call) -> None:
    """Answer `POST /v1/completions`."""
    await serve(gateway, call, COMPLETIONS)


ENDPOINTS = (
    Endpoint("POST", "/v1/completions", completions, ingress=COMPLETIONS, body=True,
             summary="Complete a prompt (OpenAI completions)."),
)  # fmt: skip
