"""`GET /openapi.json`: the routes as they are, for programs (OpenAPI 3.1, spec.openapis.org/oas/v3.1.1).

The document is made from the rows that requests are found by, so that no route can be missing, and says which statuses
the edge, the door and the routes give.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from http import HTTPStatus
from typing import Any

from windlass.core.json import dumps
from windlass.core.version import __version__
from windlass.server.endpoints import Endpoint
from windlass.server.gateway import Gateway
from windlass.server.http import Call
from windlass.server.schemas import ERRORS, MODEL_ROWS, ROWS, SCHEMAS, About, ref

__all__ = ["ENDPOINTS", "about", "document"]

_PARAM = re.compile(r"\{(\w+)\}")
_JSON = "application/json"
#: What the edge says of any request: malformed, of a page of another site, too slow, with a body that is too large or
#: unwanted, for another host, with too long a head, while there is no room.
_EDGE = (400, 403, 408, 413, 417, 421, 431, 500, 503)
#: Said before it is known which route is meant, or by code that all routes share.
_EARLY = (400, 408, 413, 417, 431, 503)
#: What asking a model adds: unknown, busy session, over a limit; and what became of the provider.
_MODEL = (404, 409, 429, 500, 502, 503, 504)
#: A status that is one dialect's own.
_OWN = {"anthropic": {529: "Overloaded"}}
_SCHEMES: dict[str, Any] = {
    "bearer": {
        "type": "http",
        "scheme": "bearer",
        "description": "A key of this gateway, as OpenAI's clients send it.",
    },
    "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key", "description": "As Anthropic's clients do."},
    "api-key": {"type": "apiKey", "in": "header", "name": "api-key", "description": "As Azure's clients do."},
    "x-goog-api-key": {"type": "apiKey", "in": "header", "name": "x-goog-api-key", "description": "As Google's do."},
}


def document(endpoints: Iterable[Endpoint], *, keys: bool = True) -> dict[str, Any]:
    """Return the OpenAPI document of these rows; `keys` says whether model routes need a key now."""
    paths: dict[str, dict[str, Any]] = {}
    for endpoint in endpoints:
        paths.setdefault(endpoint.path, {})[endpoint.method.lower()] = _operation(endpoint, keys)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Windlass",
            "version": __version__,
            "summary": "Models over HTTP, in every dialect that clients speak.",
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "paths": paths,
        "components": {"schemas": SCHEMAS, "securitySchemes": _SCHEMES},
    }


def about(endpoint: Endpoint) -> About:
    """Return what is known of a row: stated for it, else by what it asks of a model, else nothing."""
    known = ROWS.get((endpoint.method, endpoint.path))
    if known is None and _asks(endpoint):
        known = MODEL_ROWS.get(endpoint.ingress.name)
    return known or About()


def _asks(endpoint: Endpoint) -> bool:
    return endpoint.body and endpoint.access == "model"


def _operation(endpoint: Endpoint, keys: bool) -> dict[str, Any]:
    said = about(endpoint)
    names = [part for part in re.split(r"\W+", f"{endpoint.method.lower()} {endpoint.path}") if part]
    out: dict[str, Any] = {
        "operationId": "_".join(names),
        "summary": endpoint.summary or f"{endpoint.method} {endpoint.path}",
        "tags": [endpoint.ingress.dialect.name if _asks(endpoint) else endpoint.access],
    }
    if parameters := [*_path_parameters(endpoint.path), *_query_parameters(said)]:
        out["parameters"] = parameters
    if endpoint.body:
        schema = ref(said.request) if said.request else {"type": "object"}
        out["requestBody"] = {"required": not said.optional, "content": {_JSON: {"schema": schema}}}
    out["responses"] = _responses(endpoint, said)
    if endpoint.access != "public":
        anybody: list[dict[str, Any]] = [] if keys or endpoint.access == "admin" else [{}]
        out["security"] = [*anybody, *[{name: []} for name in _SCHEMES]]
    return out


def _path_parameters(path: str) -> list[dict[str, Any]]:
    # One segment, percent-encoded where need be. Any printable character will do: this is what clients can rely on.
    schema = {"type": "string", "pattern": "^[A-Za-z0-9_][A-Za-z0-9._:/@ -]{0,200}$"}
    return [{"name": name, "in": "path", "required": True, "schema": schema} for name in _PARAM.findall(path)]


def _query_parameters(said: About) -> list[dict[str, Any]]:
    return [{"name": name, "in": "query", "schema": schema} for name, schema in said.query.items()]


def _responses(endpoint: Endpoint, said: About) -> dict[str, Any]:
    schema = ref(said.answer) if said.answer else {}
    content: dict[str, Any] = {kind: {} for kind in said.kinds}
    if said.answer or not said.kinds or any("event-stream" in kind for kind in said.kinds):
        content = {_JSON: {"schema": schema}, **content}
    out = {str(said.success): {"description": "Success.", "content": content}}
    own = said.errors or (ERRORS.get(endpoint.ingress.dialect.name, "Error"),)
    for status in sorted(_statuses(endpoint, said)):
        if status == said.success:
            continue
        names = dict.fromkeys((*own, "Error") if status in _EARLY else own)
        shapes = [ref(name) for name in names]
        if status in said.statuses and status == 503 and said.answer:
            shapes.append(schema)
        phrase = _OWN.get(endpoint.ingress.dialect.name, {}).get(status) or HTTPStatus(status).phrase
        out[str(status)] = {
            "description": phrase,
            "content": {_JSON: {"schema": shapes[0] if len(shapes) == 1 else {"anyOf": shapes}}},
        }
    return out


def _statuses(endpoint: Endpoint, said: About) -> set[int]:
    out = {*_EDGE, *said.statuses}
    if endpoint.access != "public":
        out.add(401)
    if endpoint.body:
        out.add(415)
    if _asks(endpoint):
        out.update(_MODEL, _OWN.get(endpoint.ingress.dialect.name, {}))
    if "{" in endpoint.path:
        out.add(404)
    return out


@functools.lru_cache(maxsize=4)
def _encoded(endpoints: tuple[Endpoint, ...], keys: bool) -> bytes:
    return dumps(document(endpoints, keys=keys))


async def openapi(gateway: Gateway, call: Call) -> None:
    """Answer `GET /openapi.json`."""
    call.respond(200, _encoded(gateway.routes.endpoints, gateway.door.key_needed), (("x-request-id", call.id),))


ENDPOINTS = (Endpoint("GET", "/openapi.json", openapi, "public", summary="This description of the server."),)
