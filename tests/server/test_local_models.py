"""`windlass serve` with models of this machine by name, asked by OpenAI's own SDK, and what `[features]` takes away."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.server.conftest import Serve, Served
from windlass.core.http import Client
from windlass.local.embedded import embedded_model

LONG: Any = {
    "type": "json_schema",
    "json_schema": {"name": "long", "schema": {"type": "string", "minLength": 4000}},
}
CONFIG = """
[providers.local]
threads = 1
gpu_layers = 0
slots = 2
queue = 1
context = 2048
models = {{ qwen = "{path}", huge = {{ path = "{path}", context = 500000000 }} }}
[routes]
mine = "local:qwen"
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "qwen.gguf"
    shutil.copyfile(embedded_model().path, path)
    return path


@pytest.fixture
def started(serve: Serve, path: Path) -> Served:
    return serve(CONFIG.format(path=path))


@pytest.fixture
async def client(started: Served) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{started.url}/v1", api_key="any", max_retries=0) as made:
        yield made


async def long_answer(client: openai.AsyncOpenAI, model: str = "local:qwen") -> Any:
    return await client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": "x"}], stream=True, max_tokens=600, response_format=LONG
    )


def said(started: Served) -> str:
    return started.log.read_text()


async def test_names_are_listed_told_of_and_answered(started: Served, client: openai.AsyncOpenAI, path: Path) -> None:
    rows = {row.id: row.model_dump() for row in (await client.models.list()).data}
    assert {"local:qwen", "local:huge", "mine", "local:tiny-0"} <= rows.keys()
    assert [rows[f"local:{name}"].get("context_length") for name in ("qwen", "tiny-0")] == [2048, 4096]
    told = said(started)
    assert "qwen needs about" in told and "cache for 2 x 2048 tokens" in told
    assert "huge needs about" in told and "It does not fit" in told
    for model in ("local:qwen", "mine", "local:tiny", "local"):
        answer = await client.chat.completions.create(
            model=model, messages=[{"role": "user", "content": "hello"}], temperature=0
        )
        assert (answer.choices[0].message.content or "").startswith("Hello! I am the tiny built-in model")
        assert answer.usage is not None and answer.usage.completion_tokens == 38
    for model in (f"local:{path}", "local:nobody"):
        with pytest.raises(openai.NotFoundError, match="no local model"):
            await client.chat.completions.create(model=model, messages=[{"role": "user", "content": "hello"}])


async def test_what_needs_too_much_memory_is_refused_in_the_client_s_dialect(
    started: Served, client: openai.AsyncOpenAI
) -> None:
    with pytest.raises(openai.InternalServerError, match=r"huge needs about .* are free") as caught:
        await client.chat.completions.create(model="local:huge", messages=[{"role": "user", "content": "hello"}])
    assert caught.value.status_code == 503
    body = {"model": "local:huge", "max_tokens": 9, "messages": [{"role": "user", "content": "x"}]}
    async with Client() as http:
        headers = {"content-type": "application/json", "anthropic-version": "2023-06-01"}
        answer = await http.request(
            "POST", f"{started.url}/v1/messages", headers=headers, body=json.dumps(body).encode()
        )
    error = json.loads(answer.body)["error"]
    assert (
        answer.status in (503, 529) and error["type"] == "overloaded_error" and "huge needs about" in error["message"]
    )


async def test_two_slots_take_turns_one_waits_and_further_ones_are_refused(client: openai.AsyncOpenAI) -> None:
    order, refused = list[tuple[int, str]](), list[openai.InternalServerError]()

    async def ask(number: int) -> None:
        try:
            answer = await long_answer(client)
        except openai.InternalServerError as error:
            refused.append(error)
            return
        async for chunk in answer:
            order.append((number, (chunk.choices[0].finish_reason or "") if chunk.choices else ""))

    async with asyncio.TaskGroup() as group:
        for number in range(5):
            group.create_task(ask(number))
    assert len(refused) == 2
    for error in refused:
        assert error.status_code == 503 and "it takes no more now" in str(error)
        assert error.response.headers["retry-after"] == "1" and error.response.headers["x-should-retry"] == "true"
    ends = [at for at, (_, reason) in enumerate(order) if reason]
    assert len(ends) == 3
    first, second, third = dict.fromkeys([number for number, _ in order])
    turns = sum(1 for before, after in pairwise(order[: ends[0]]) if before[0] != after[0])
    assert turns >= 2
    # The third began when one of the others was done, but for what was still on its way.
    after = [number for number, _ in order[order.index((third, "")) :]]
    assert min(after.count(first), after.count(second)) < len(order) // 10


async def test_clients_that_leave_free_their_slots(client: openai.AsyncOpenAI) -> None:
    for _ in range(8):
        # Two slots and one place to wait: the fourth would be refused if one that left still held its slot.
        answer = await long_answer(client)
        assert (await anext(aiter(answer))).choices
        await answer.close()
    last = await client.chat.completions.create(
        model="local:qwen", messages=[{"role": "user", "content": "hello"}], max_tokens=3
    )
    assert last.usage is not None and last.usage.completion_tokens == 3


async def test_vectors_by_name_in_both_dialects(started: Served, client: openai.AsyncOpenAI) -> None:
    made = await client.embeddings.create(model="local:qwen", input=["read the file", "x"])
    assert [len(row.embedding) for row in made.data] == [256, 256] and made.model == "qwen"
    async with Client() as http:
        body = json.dumps({"model": "local:qwen", "input": "read the file"}).encode()
        headers = {"content-type": "application/json"}
        answer = await http.request("POST", f"{started.url}/api/embed", headers=headers, body=body)
    assert json.loads(answer.body)["embeddings"][0] == pytest.approx(made.data[0].embedding, abs=1e-5)


def mapped(started: Served) -> bool:
    """Tell whether the engine's library is in the server's memory."""
    return "xllamacpp" in Path(f"/proc/{started.process.pid}/maps").read_text()


OFF = "\n[features]\nllm = false\nembeddings = false\nagents = false\n"


async def asked(started: Served, method: str, target: str, body: Any = None) -> tuple[int, Any]:
    data = b"" if body is None else json.dumps(body).encode()
    headers = {"content-type": "application/json"} if data else {}
    async with Client() as http:
        answer = await http.request(method, started.url + target, headers=headers, body=data)
    return answer.status, json.loads(answer.body)


async def test_switched_off_routes_are_gone_and_say_why(serve: Serve, path: Path) -> None:
    plain, without = serve(CONFIG.format(path=path)), serve(CONFIG.format(path=path) + OFF)
    gone = {
        "/v1/embeddings", "/api/embed", "/api/embeddings", "/v1/sessions", "/v1/sessions/{session}",
        *[f"/windlass/v1/store/{name}" for name in ("append", "read", "list", "delete", "blobs/put", "blobs/get")],
    }  # fmt: skip
    _, whole = await asked(plain, "GET", "/openapi.json")
    _, less = await asked(without, "GET", "/openapi.json")
    assert set(whole["paths"]) - set(less["paths"]) == gone and set(less["paths"]) < set(whole["paths"])
    for method, target, feature in (
        ("POST", "/v1/embeddings", "embeddings"), ("POST", "/api/embed", "embeddings"),
        ("GET", "/v1/sessions/x", "agents"), ("POST", "/windlass/v1/store/read", "agents"),
    ):  # fmt: skip
        status, told = await asked(without, method, target, {} if method == "POST" else None)
        error = told["error"]
        text = error if isinstance(error, str) else error["message"]
        assert status == 404 and f"[features] {feature} = false" in text and str(without.home) not in text
    # Listing sessions is for administrators: others learn nothing.
    status, told = await asked(without, "GET", "/v1/sessions")
    assert status == 401 and "features" not in json.dumps(told)
    chat = {"model": "echo", "messages": [{"role": "user", "content": "hi"}]}
    assert (await asked(without, "POST", "/v1/chat/completions", chat))[0] == 200
    for extra, name in (({"loop_mode": "basic"}, "loop_mode"), ({"session_id": "s"}, "session_id")):
        status, told = await asked(without, "POST", "/v1/chat/completions", {**chat, **extra})
        assert status == 400 and told["error"]["param"] == name and "agents = false" in told["error"]["message"]


async def test_without_llm_the_engine_is_never_loaded(serve: Serve, path: Path) -> None:
    plain, without = serve(CONFIG.format(path=path)), serve(CONFIG.format(path=path) + OFF)
    chat = {"model": "local:tiny", "messages": [{"role": "user", "content": "hello"}]}
    assert (await asked(plain, "POST", "/v1/chat/completions", chat))[0] == 200 and mapped(plain)
    for model in ("local:tiny", "local:qwen", "local", "auto", "mine"):
        status, told = await asked(without, "POST", "/v1/chat/completions", {**chat, "model": model})
        assert status in (404, 500) and "[features] llm = false" in told["error"]["message"], model
    status, told = await asked(without, "GET", "/v1/models")
    assert status == 200 and not [row["id"] for row in told["data"] if row["id"].startswith("local")]
    assert not mapped(without)
    assert "needs about" not in said(without) and "llm = false" in said(without)
