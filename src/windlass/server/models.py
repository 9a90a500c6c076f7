"""`GET /v1/models` and `/v1/models/{model}`, in OpenAI's form, or Anthropic's for its clients."""

from __future__ import annotations

from urllib.parse import parse_qsl

from windlass.core.errors import WindlassError
from windlass.server.endpoints import Endpoint
from windlass.server.gateway import Gateway
from windlass.server.http import Call
from windlass.server.ingress import CHAT, MESSAGES
from windlass.wire.base import bad_field
from windlass.wire.ollama_models import (
    ModelRow,
    anthropic_model,
    anthropic_models,
    find,
    openai_model,
    openai_models,
)

__all__ = ["ENDPOINTS", "known_models", "query_of", "whole_of"]


async def known_models(gateway: Gateway, call: Call) -> list[ModelRow]:
    """Return the models that the client's key may use."""
    rows = await gateway.catalogue.rows(gateway.config, gateway.router)
    return [row for row in rows if call.identity.allows(row.id)]


def query_of(call: Call) -> dict[str, str]:
    """Return the query's fields; of one that is there twice the last."""
    return dict(parse_qsl(call.head.query[:8192], keep_blank_values=True))


def whole_of(query: dict[str, str], name: str, default: int) -> int:
    """Return a whole number of the query. Raises BadRequestError that names the field."""
    text = query.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise bad_field(name, "must be a whole number")
    return int(text)


async def _answer(gateway: Gateway, call: Call, model: str | None) -> None:
    anthropic = "anthropic-version" in call.head.headers
    try:
        rows = await known_models(gateway, call)
        if model is not None:
            row = find(rows, model)
            body = anthropic_model(row) if anthropic else openai_model(row)
        elif anthropic:
            query = query_of(call)
            body = anthropic_models(
                rows, limit=whole_of(query, "limit", 20), after_id=query.get("after_id"),
                before_id=query.get("before_id"),
            )  # fmt: skip
        else:
            body = openai_models(rows)
    except WindlassError as error:
        gateway.answer_error(call, error, MESSAGES if anthropic else CHAT)
        return
    call.respond(200, body, [("x-request-id", call.id)])


async def list_models(gateway: Gateway, call: Call) -> None:
    """Answer `GET /v1/models`."""
    await _answer(gateway, call, None)


async def one_model(gateway: Gateway, call: Call) -> None:
    """Answer `GET /v1/models/{model}`; a slash in the id is written as %2F."""
    await _answer(gateway, call, call.params["model"])


ENDPOINTS = (
    Endpoint("GET", "/v1/models", list_models, summary="List models (OpenAI, Anthropic)."),
    Endpoint("GET", "/v1/models/{model}", one_model, summary="Describe a model (OpenAI, Anthropic)."),
)
