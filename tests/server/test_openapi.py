"""The OpenAPI document: every route is in it, and what it says is so, checked with requests that schemathesis makes."""

from __future__ import annotations

import asyncio
import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema_rs
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from schemathesis.checks import not_a_server_error
from schemathesis.core.failures import FailureGroup
from schemathesis.core.result import Ok
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.server.conftest import InProcess, StartGateway
from windlass.core import errors
from windlass.server import start
from windlass.server.endpoints import Endpoint
from windlass.server.gateway import Gateway
from windlass.server.http import Call
from windlass.server.openapi import about, document
from windlass.server.schemas import ROWS, SCHEMAS
from windlass.server.start import ENDPOINTS

_CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
SERVER = Path(start.__file__).parent
_REFUSED = re.compile(r"RequestRefused\(\s*(\d+)")
#: Requests per route.
_EXAMPLES = 6
#: Most of these answer, one is unknown.
_MODELS = ("here", "echo:a", "here", "echo:b", "here", "nobody:x")
#: Routes that cannot answer a made-up request with success: what they are about is not there, or no model does it.
_NEVER = {
    "POST /v1/embeddings", "GET /v1/responses/{response}",
    "DELETE /v1/responses/{response}", "GET /v1/responses/{response}/input_items", "DELETE /v1/keys/{key}",
    "POST /v1/keys/{key}/rotate", "GET /v1/sessions/{session}", "DELETE /v1/sessions/{session}",
    "POST /windlass/v1/store/blobs/put",
    *[f"{method} /windlass/v1/workspaces/{{workspace}}{what}" for method, what in (
        ("DELETE", ""), ("POST", "/files/read"), ("POST", "/files/write"), ("POST", "/files/delete"),
        ("POST", "/files/stat"), ("POST", "/files/list"), ("POST", "/exec"))],
}  # fmt: skip


def test_every_route_is_in_the_document_and_every_body_is_described() -> None:
    paths = document(ENDPOINTS)["paths"]
    told = {(method.upper(), path) for path, methods in paths.items() for method in methods}
    assert told == {(row.method, row.path) for row in ENDPOINTS}
    assert [(row.method, row.path) for row in ENDPOINTS if row.body and not about(row).request] == []
    assert [(row.method, row.path) for row in ENDPOINTS if not row.summary] == []
    ids = [operation["operationId"] for methods in paths.values() for operation in methods.values()]
    assert len(ids) == len(set(ids))


def test_what_is_said_of_routes_is_said_of_routes_that_are_there() -> None:
    there = {(row.method, row.path) for row in ENDPOINTS}
    assert set(ROWS) - there == set()
    named = {name for row in ENDPOINTS for name in (about(row).request, about(row).answer, *about(row).errors) if name}
    assert named - set(SCHEMAS) == set()


def _instances() -> Iterator[errors.WindlassError]:
    """Yield errors of every kind, of ours and of a provider's."""
    for kind in [kind for kind in vars(errors).values() if isinstance(kind, type)]:
        if issubclass(kind, errors.ProviderError):
            yield from (kind("x"), kind("x", provider="p", status=418))
        elif issubclass(kind, errors.TransportTimeout):
            yield kind("x", phase="idle")
        elif issubclass(kind, errors.WindlassError) and not issubclass(
            kind, (errors.RequestRefused, errors.UnknownNameError)
        ):
            yield kind("x")


def test_every_status_that_an_error_becomes_is_in_the_document() -> None:
    paths = document(ENDPOINTS)["paths"]
    lacking = {
        (row.path, type(error).__name__, status)
        for row in ENDPOINTS
        if row.body and row.access == "model"
        for error in _instances()
        if str(status := row.ingress.dialect.encode_error(error)[0])
        not in paths[row.path][row.method.lower()]["responses"]
    }
    assert lacking == set()
    # Whatever a client is refused with anywhere in the server.
    told = {int(status) for methods in paths.values() for one in methods.values() for status in one["responses"]}
    refused = {int(found) for file in SERVER.glob("*.py") for found in _REFUSED.findall(file.read_text())}
    assert len(refused) > 8 and refused - told == {405}, "405 is of other methods than the document's"


def test_a_new_row_is_documented_without_a_word_more() -> None:
    async def handle(gateway: Gateway, call: Call) -> None: ...

    row = Endpoint("POST", "/v1/things/{thing}:turn", handle, "admin", body=True, summary="Turn a thing.")
    made = document([row])["paths"]["/v1/things/{thing}:turn"]["post"]
    assert made["operationId"] == "post_v1_things_thing_turn" and made["summary"] == "Turn a thing."
    assert [one["name"] for one in made["parameters"]] == ["thing"]
    assert made["requestBody"]["content"] == {"application/json": {"schema": {"type": "object"}}}
    assert {"200", "400", "401", "403", "404", "413", "415"} <= set(made["responses"])
    assert {} not in made["security"]


def test_the_schemas_are_schemas_and_references_lead_somewhere() -> None:
    whole = document(ENDPOINTS)
    for name in SCHEMAS:
        jsonschema_rs.Draft202012Validator({"$ref": f"#/components/schemas/{name}", "components": whole["components"]})
    text = json.dumps(whole)
    assert all(f'"#/components/schemas/{name}"' in text for name in SCHEMAS)


async def test_the_document_is_served_to_anybody_and_says_whether_keys_are_needed(gateway: StartGateway) -> None:
    up = await gateway()
    async with httpx.AsyncClient(base_url=up.url) as client:
        open_door = (await client.get("/openapi.json")).json()
        await up.gateway.accounts.create("ann")
        closed = (await client.get("/openapi.json")).json()
    chat = ("paths", "/v1/chat/completions", "post", "security")
    assert {} in _at(open_door, *chat) and {} not in _at(closed, *chat)
    assert open_door["openapi"] == "3.1.0" and "security" not in _at(closed, "paths", "/health", "get")


def _at(value: Any, *path: str) -> Any:
    for name in path:
        value = value[name]
    return value


# ------------------------------------------------------------------------------------------------------- schemathesis


def _ask(up: InProcess, operation: Any, mode: GenerationMode) -> Counter[int]:
    """Make requests for one route and check what is answered; returns how often which status was."""
    headers = {"authorization": f"Bearer {up.gateway.admin_token}"}
    statuses: Counter[int] = Counter()

    @seed(20_251_121)
    @settings(
        max_examples=_EXAMPLES,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=(
            HealthCheck.too_slow,
            HealthCheck.data_too_large,
            HealthCheck.filter_too_much,
            HealthCheck.large_base_example,
        ),
        print_blob=False,
    )
    @given(
        operation.as_strategy(generation_mode=mode),
        st.sampled_from(_MODELS),
        st.sampled_from((True, True, True, False)),
    )
    def run(case: Any, model: str, admin: bool) -> None:
        if isinstance(case.body, dict) and isinstance(case.body.get("model"), str):
            case.body["model"] = model
        if "model" in (case.path_parameters or {}):
            case.path_parameters["model"] = model
        answer = case.call(headers=headers if admin else None, timeout=20)
        statuses[answer.status_code] += 1
        case.validate_response(answer, checks=_CHECKS)

    run()
    return statuses


@pytest.mark.slow
@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=["fits", "does-not-fit"])
async def test_schemathesis_finds_no_5xx_and_no_lie(gateway: StartGateway, mode: GenerationMode) -> None:
    up = await gateway(
        routes={"here": "echo:x"}, environ={"OLLAMA_BASE_URL": "http://127.0.0.1:9"},
        server={"workspaces": {"allow": ["memory", "local"], "per_key": 100, "total": 100}},
    )  # fmt: skip
    schema = schemathesis.openapi.from_dict(document(up.gateway.routes.endpoints, keys=False))
    schema.config.update(base_url=up.url)
    problems: list[str] = []
    asked: dict[str, Counter[int]] = {}
    for result in schema.get_all_operations():
        assert isinstance(result, Ok)
        operation = result.ok()
        try:
            asked[operation.label] = await asyncio.to_thread(_ask, up, operation, mode)
        except Unsatisfiable:
            # Without a body and parameters there is nothing to get wrong.
            assert "requestBody" not in operation.definition.raw and "parameters" not in operation.definition.raw
        except FailureGroup as found:
            problems += [f"{operation.label}: {failure}" for failure in found.exceptions]
    assert problems == []
    assert len(asked) >= len([row for row in ENDPOINTS if row.body])
    if mode is GenerationMode.POSITIVE:
        # What is said to fit does fit: every other route answered some of it.
        dead = {label for label, statuses in asked.items() if not any(status < 300 for status in statuses)}
        assert dead == _NEVER
