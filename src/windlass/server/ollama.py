"""What Ollama's clients ask of a server: chat, generate, embeddings, and the lists of models.

Source: docs.ollama.com/api. Every model of the gateway counts as loaded: loading and unloading are answered at once.
"""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from windlass.core import clock
from windlass.core.version import __version__
from windlass.server.answer import answer
from windlass.server.body import Fields, asked_model, asked_stream, checked_model, field_value, peek
from windlass.server.embeddings import answer_embeddings
from windlass.server.endpoints import Endpoint
from windlass.server.gateway import Gateway
from windlass.server.http import Call
from windlass.server.ingress import NDJSON, OLLAMA_CHAT, Ingress
from windlass.server.job import Job, job_for
from windlass.server.models import known_models
from windlass.wire import embeddings, ollama, ollama_generate, ollama_models
from windlass.wire.base import DecodedRequest

__all__ = ["ENDPOINTS"]

GENERATE = Ingress(
    "ollama-generate", ollama_generate.DIALECT, stream_kind=NDJSON, streams=True, legible=False, filters=False
)  # fmt: skip
EMBED = Ingress("ollama-embed", ollama.DIALECT, writes=False)
#: Seconds for which a model counts as loaded: the server's own default.
_KEEP_ALIVE = 300


async def chat(gateway: Gateway, call: Call) -> None:
    """Answer `POST /api/chat`; without messages the client only wants the model loaded or unloaded."""
    fields = peek(call.body)
    raw = fields.get("messages")
    idle = raw is None or (len(memoryview(raw)) < 16 and not field_value(fields, "messages"))
    await _serve(gateway, call, OLLAMA_CHAT, fields, idle=idle)


async def generate(gateway: Gateway, call: Call) -> None:
    """Answer `POST /api/generate`; without a prompt the client only wants the model loaded or unloaded."""
    fields = peek(call.body)
    idle = not (field_value(fields, "prompt") or field_value(fields, "images"))
    await _serve(gateway, call, GENERATE, fields, idle=idle)


async def _serve(gateway: Gateway, call: Call, ingress: Ingress, fields: Fields, *, idle: bool) -> None:
    model, stream = _own(gateway, asked_model(fields)), asked_stream(fields, ingress.streams)
    job = job_for(gateway, call, ingress, model=model, stream=stream and not idle, fields=fields)
    await answer(job, _loaded if idle else None)


def _own(gateway: Gateway, model: str) -> str:
    """Return a route's name without the tag that these clients put behind every name."""
    bare = model.removesuffix(":latest")
    routes = gateway.config.routes
    return bare if bare in routes and model not in routes else model


async def _loaded(job: Job) -> None:
    """Answer a request to load or unload a model, which is there already."""
    decoded: DecodedRequest = job.decoded
    request = decoded.request
    reason = ollama_generate.load_reason(replace(decoded, request=replace(request, messages=[]))) or "load"
    job.report.cost = 0
    made = clock.now_ns() // 1_000_000_000
    job.answered(ollama_generate.encode_load(request.model, made, reason, chat=job.ingress is OLLAMA_CHAT))


# ------------------------------------------------------------------------------------------------------- embeddings


async def embed(gateway: Gateway, call: Call) -> None:
    """Answer `POST /api/embed`."""
    await _embed(gateway, call, embeddings.OLLAMA)


async def embed_one(gateway: Gateway, call: Call) -> None:
    """Answer `POST /api/embeddings`."""
    await _embed(gateway, call, embeddings.OLLAMA_OLD)


async def _embed(gateway: Gateway, call: Call, dialect: embeddings.EmbeddingDialect) -> None:
    fields = peek(call.body)
    await answer_embeddings(gateway, call, EMBED, dialect, _own(gateway, asked_model(fields)), fields)


# ----------------------------------------------------------------------------------------------------------- models


async def tags(gateway: Gateway, call: Call) -> None:
    """Answer `GET /api/tags`: the models that the client's key may use."""
    call.respond(200, ollama_models.ollama_tags(await known_models(gateway, call)), _headers(call))


async def ps(gateway: Gateway, call: Call) -> None:
    """Answer `GET /api/ps`: the routes, which are always ready."""
    rows = [row for row in gateway.catalogue.routed(gateway.config, gateway.router) if call.identity.allows(row.id)]
    until = clock.now_ns() // 1_000_000_000 + _KEEP_ALIVE
    call.respond(200, ollama_models.ollama_ps(rows, expires=until), _headers(call))


async def show(gateway: Gateway, call: Call) -> None:
    """Answer `POST /api/show`: what is known of a model. Raises ModelNotFoundError, also for one not allowed."""
    fields = peek(call.body)
    asked: Any = field_value(fields, "model") or field_value(fields, "name")
    row = ollama_models.find(await known_models(gateway, call), checked_model(asked))
    call.respond(200, ollama_models.ollama_show(row), _headers(call))


async def version(gateway: Gateway, call: Call) -> None:
    """Answer `GET /api/version`."""
    del gateway
    call.respond(200, ollama_models.ollama_version(__version__), _headers(call))


def _headers(call: Call) -> list[tuple[str, str]]:
    return [("x-request-id", call.id)]


ENDPOINTS = (
    Endpoint("POST", "/api/chat", chat, ingress=OLLAMA_CHAT, body=True, summary="Ask a model (Ollama chat)."),
    Endpoint("POST", "/api/generate", generate, ingress=GENERATE, body=True,
             summary="Complete a prompt (Ollama generate)."),
    Endpoint("POST", "/api/embed", embed, ingress=EMBED, body=True, summary="Turn texts into vectors (Ollama).",
             feature="embeddings"),
    Endpoint("POST", "/api/embeddings", embed_one, ingress=EMBED, body=True,
             summary="Turn one text into a vector (Ollama, older form).", feature="embeddings"),
    Endpoint("GET", "/api/tags", tags, ingress=EMBED, summary="List models (Ollama)."),
    Endpoint("GET", "/api/ps", ps, ingress=EMBED, summary="List loaded models (Ollama)."),
    Endpoint("POST", "/api/show", show, ingress=EMBED, body=True, summary="Describe a model (Ollama)."),
    Endpoint("GET", "/api/version", version, ingress=EMBED, summary="Tell the version (Ollama)."),
)  # fmt: skip
