"""The model routes of OpenAI's chat and Anthropic's messages, and what all model routes read of a request first."""

from __future__ import annotations

from typing import Any

from windlass.core.errors import RequestRefused
from windlass.server.answer import answer
from windlass.server.body import Fields, field_value, peek
from windlass.server.endpoints import Endpoint
from windlass.server.extended import serve_extended
from windlass.server.extras import is_plain
from windlass.server.gateway import Gateway
from windlass.server.http import Call
from windlass.server.ingress import CHAT, MESSAGES, Ingress
from windlass.server.job import job_for

__all__ = ["ENDPOINTS", "asked_model", "asked_stream", "checked_model", "serve"]


def asked_model(fields: Fields) -> str:
    """Return the model a request names. Raises RequestRefused 400."""
    return checked_model(field_value(fields, "model"))


def checked_model(model: Any) -> str:
    """Return what may be a model's name. Raises RequestRefused 400."""
    if not isinstance(model, str) or not model.strip() or len(model) > 512 or not model.isprintable():
        raise RequestRefused(400, "model must be the name of a model or a route.", reason="invalid_model",
                             param="model")  # fmt: skip
    return model


def asked_stream(fields: Fields, default: bool) -> bool:
    """Return whether a request asks for a stream. Raises RequestRefused 400."""
    stream = field_value(fields, "stream")
    if stream is None:
        return default
    if not isinstance(stream, bool):
        raise RequestRefused(400, "stream must be true or false.", reason="invalid_stream", param="stream")
    return stream


async def serve(gateway: Gateway, call: Call, ingress: Ingress, fields: Fields | None = None) -> None:
    """Answer a request in a dialect whose body names the model and says whether to stream."""
    fields = peek(call.body) if fields is None else fields
    model, stream = asked_model(fields), asked_stream(fields, ingress.streams)
    await answer(job_for(gateway, call, ingress, model=model, stream=stream, fields=fields))


async def chat_completions(gateway: Gateway, call: Call) -> None:
    """Answer `POST /v1/chat/completions`."""
    fields = peek(call.body)
    if is_plain(fields) or not await serve_extended(gateway, call, fields):
        await serve(gateway, call, CHAT, fields)


async def messages(gateway: Gateway, call: Call) -> None:
    """Answer `POST /v1/messages`."""
    await serve(gateway, call, MESSAGES)


ENDPOINTS = (
    Endpoint("POST", "/v1/chat/completions", chat_completions, ingress=CHAT, body=True,
             summary="Ask a model (OpenAI chat completions)."),
    Endpoint("POST", "/v1/messages", messages, ingress=MESSAGES, body=True,
             summary="Ask a model (Anthropic messages)."),
)  # fmt: skip
