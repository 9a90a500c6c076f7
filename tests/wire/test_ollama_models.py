"""The lists of models, as the official `ollama`, `openai` and `anthropic` SDKs read them."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qs, urlsplit

import anthropic
import ollama
import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wire_server import Answer, Got, serve

from windlass.core.errors import BadRequestError, ModelNotFoundError
from windlass.core.models import Capabilities
from windlass.wire.base import field_of
from windlass.wire.ollama_models import (
    ModelRow,
    anthropic_model,
    anthropic_models,
    find,
    ollama_ps,
    ollama_show,
    ollama_tags,
    ollama_version,
    openai_model,
    openai_models,
)

MADE = 1_700_000_000
WHEN = datetime.fromtimestamp(MADE, UTC)
SEES = Capabilities(vision=True, tools=True, reasoning="effort", max_output=4096)
ROWS = [
    ModelRow("openai:gpt-x", "openai", MADE, 128_000, SEES),
    ModelRow("é/strange \u2028 name"),
    ModelRow("embedder", "local", MADE, 512, embeds=True),
    ModelRow("blind", "ollama", caps=Capabilities(vision=False, tools=False)),
]


def answer(got: Got) -> Answer:
    url = urlsplit(got.path)
    if url.path == "/api/show":
        body = ollama_show(find(ROWS, json.loads(got.body)["model"]))
    elif url.path == "/v1/models/openai:gpt-x":
        form = anthropic_model if "anthropic-version" in got.headers else openai_model
        body = form(find(ROWS, "openai:gpt-x"))
    elif url.path == "/v1/models" and "anthropic-version" in got.headers:
        asked = {name: values[0] for name, values in parse_qs(url.query).items()}
        limit = int(asked.pop("limit", "20"))
        body = anthropic_models(ROWS, limit=limit, **asked)
    else:
        made: dict[str, bytes] = {
            "/api/tags": ollama_tags(ROWS),
            "/api/ps": ollama_ps(ROWS[:1], expires=MADE + 300),
            "/api/version": ollama_version("0.9.1"),
            "/v1/models": openai_models(ROWS),
        }
        body = made[url.path]
    return 200, "application/json", body


async def test_ollama_sdk_reads_the_models() -> None:
    async with serve(answer) as server:
        sdk = ollama.AsyncClient(host=server.url)
        try:
            listed, loaded = await sdk.list(), await sdk.ps()
            shown = [await sdk.show(row.id) for row in ROWS]
        finally:
            await sdk.close()
    assert [model.model for model in listed.models] == [row.id for row in ROWS]
    digests = [str(model.digest) for model in listed.models]
    assert len(set(digests)) == len(ROWS) and {len(digest) for digest in digests} == {64}
    first = listed.models[0]
    assert (first.modified_at, first.details and first.details.family) == (WHEN, "openai")
    running = loaded.models[0]
    assert (running.name, running.context_length, len(loaded.models)) == ("openai:gpt-x", 128_000, 1)
    assert running.expires_at is not None and running.expires_at.timestamp() == MADE + 300
    assert [one.capabilities for one in shown] == [
        ["completion", "tools", "vision", "thinking"],
        ["completion"],
        ["embedding"],
        ["completion"],
    ]
    info = shown[0].modelinfo or {}
    # As every client finds it: the family's name, then the field.
    assert info[f"{info['general.architecture']}.context_length"] == 128_000
    assert not [key for key in shown[1].modelinfo or {} if key.endswith("context_length")]
    assert json.loads(ollama_version("0.9.1")) == {"version": "0.9.1"}


async def test_openai_sdk_reads_the_models() -> None:
    async with serve(answer) as server, openai.DefaultAsyncHttpxClient(trust_env=False) as http:
        sdk = openai.AsyncOpenAI(api_key="k", base_url=f"{server.url}/v1", max_retries=0, http_client=http)
        listed = [model async for model in sdk.models.list()]
        one = await sdk.models.retrieve("openai:gpt-x")
    assert [model.id for model in listed] == [row.id for row in ROWS]
    assert [(model.object, model.created, model.owned_by) for model in listed[:2]] == [
        ("model", MADE, "openai"),
        ("model", 0, "unknown"),
    ]
    assert one == listed[0] and one.model_extra == {"context_length": 128_000}


@pytest.mark.parametrize("limit", [1, 2, 3, 20])
async def test_anthropic_sdk_pages_through_the_models(limit: int) -> None:
    async with serve(answer) as server:
        async with anthropic.AsyncAnthropic(base_url=server.url, api_key="k", max_retries=0) as sdk:
            forwards = [model async for model in sdk.models.list(limit=limit)]
            back = [model.id async for model in sdk.models.list(limit=limit, before_id=ROWS[-1].id)]
            one = await sdk.models.retrieve("openai:gpt-x")
        asked = len([got for got in server.got if "before_id" not in got.path]) - 1
    assert [model.id for model in forwards] == [row.id for row in ROWS]
    assert asked == -(-len(ROWS) // limit)
    assert sorted(back) == sorted([row.id for row in ROWS[:-1]])
    assert one == forwards[0]
    assert (one.type, one.display_name, one.created_at, one.lifecycle) == ("model", "openai:gpt-x", WHEN, "active")
    assert (one.max_input_tokens, one.max_tokens, forwards[1].max_input_tokens) == (128_000, 4096, None)


@given(count=st.integers(0, 7), limit=st.integers(1, 8), after=st.integers(-1, 6), before=st.integers(-1, 6))
@settings(max_examples=80, deadline=None)
def test_a_page_is_a_run_of_the_list(count: int, limit: int, after: int, before: int) -> None:
    rows = [ModelRow(f"m{at}") for at in range(count)]
    marks: dict[str, Any] = {}
    if 0 <= after < count:
        marks["after_id"] = f"m{after}"
    if 0 <= before < count:
        marks["before_id"] = f"m{before}"
    start = after + 1 if "after_id" in marks else 0
    end = before if "before_id" in marks else count
    allowed = [row.id for row in rows[start:end]]
    page = json.loads(anthropic_models(rows, limit=limit, **marks))
    got = [row["id"] for row in page["data"]]
    assert got == (allowed[-limit:] if list(marks) == ["before_id"] else allowed[:limit])
    assert page["has_more"] is (len(got) < len(allowed))
    assert (page["first_id"], page["last_id"]) == ((got[0], got[-1]) if got else (None, None))


def test_bad_pages_name_the_field() -> None:
    bad: list[dict[str, Any]] = [{"limit": 0}, {"limit": 1001}, {"after_id": "no"}, {"before_id": ""}]
    for asked in bad:
        with pytest.raises(BadRequestError) as caught:
            anthropic_models(ROWS, **asked)
        assert field_of(caught.value) == min(asked)


def test_a_model_is_found_with_and_without_its_latest_tag() -> None:
    rows = [ModelRow("a"), ModelRow("b:latest"), ModelRow("c:latest", "first"), ModelRow("c", "second")]
    assert [find(rows, name).id for name in ("a", "a:latest", "b", "b:latest")] == ["a", "a", "b:latest", "b:latest"]
    assert [find(rows, name).owner for name in ("c:latest", "c")] == ["first", "second"]
    with pytest.raises(ModelNotFoundError, match="'z'"):
        find(rows, "z")
