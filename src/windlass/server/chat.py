"""The model routes of OpenAI's chat and Anthropic's messages, and what all model routes read of a request first."""

from __future__ import annotations

from windlass.server.answer import answer
from windlass.server.body import Fields, asked_model, asked_stream, peek
from windlass.server.endpoints import Endpoint
from windlass.server.express import express
from windlass.server.extended import serve_extended
from windlass.server.extras import is_plain
from windlass.server.gateway import Gateway
from windlass.server.http import Call
from windlass.server.ingress import CHAT, MESSAGES, Ingress
from windlass.server.job import job_for

__all__ = ["ENDPOINTS", "serve"]


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
    Endpoint("POST", "/v1/chat/completions", chat_completions, ingress=CHAT, body=True, straight=express,
             summary="Ask a model (OpenAI chat completions)."),
    Endpoint("POST", "/v1/messages", messages, ingress=MESSAGES, body=True, straight=express,
             summary="Ask a model (Anthropic messages)."),
)  # fmt: skip
