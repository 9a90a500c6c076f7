"""Ollama's endpoints through its own SDK."""

from __future__ import annotations

import base64
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import ollama
import pytest

from tests.server.conftest import InProcess, StartGateway
from tests.server.upstreams import PNG, answering, chat_stream, refusal, reply, sent, up
from windlass.testing.faults import FaultServer


@asynccontextmanager
async def client_of(made: InProcess, key: str = "") -> AsyncGenerator[ollama.AsyncClient]:
    client = ollama.AsyncClient(host=made.url, headers={"authorization": f"Bearer {key}"} if key else {})
    try:
        yield client
    finally:
        await client.close()


async def test_generate_whole_and_streamed_with_an_image(gateway: StartGateway) -> None:
    async with FaultServer(answering("hel", "lo")) as upstream:
        made = await gateway(providers=up(upstream), routes={"fast": "up:big"})
        async with client_of(made) as client:
            done = await client.generate(
                model="fast", prompt="look", system="be brief", images=[PNG], options={"seed": 3}
            )
            assert done.response == "hello" and done.done and done.eval_count == 2 and done.model == "m-1"
            parts = [part async for part in await client.generate(model="fast:latest", prompt="look", stream=True)]
            text, last = "".join([part.response or "" for part in parts]), parts[-1]
            assert text == "hello" and last.done_reason == "stop" and last.prompt_eval_count == 3
            asked = sent(upstream, 0)
            assert asked["seed"] == 3 and asked["messages"][0] == {"role": "system", "content": "be brief"}
            assert base64.b64encode(PNG).decode() in str(asked["messages"][1]["content"])


async def test_chat_with_a_tool_streamed(gateway: StartGateway) -> None:
    async with FaultServer(answering(call=("add", '{"a":1}'))) as upstream:
        made = await gateway(providers=up(upstream), routes={"fast": "up:big"})
        tool = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}
        async with client_of(made) as client:
            stream = await client.chat(
                model="fast", messages=[{"role": "user", "content": "1+1"}], tools=[tool], stream=True
            )
            calls = [call async for part in stream for call in part.message.tool_calls or []]
        assert [(call.function.name, call.function.arguments) for call in calls] == [("add", {"a": 1})]


async def test_loading_and_unloading_ask_no_model(gateway: StartGateway) -> None:
    async with FaultServer([refusal(500, "server_error")]) as upstream:
        made = await gateway(providers=up(upstream), routes={"fast": "up:big"})
        async with client_of(made) as client:
            assert (await client.generate(model="fast")).done_reason == "load"
            assert (await client.generate(model="fast", keep_alive=0)).done_reason == "unload"
            assert (await client.chat(model="fast", messages=[], keep_alive="0s")).done_reason == "unload"
            parts = [part async for part in await client.chat(model="fast", messages=[], stream=True)]
            assert [(part.done_reason, part.message.content) for part in parts] == [("load", "")]
            assert (await client.embed(model="fast", input="")).embeddings == []
            with pytest.raises(ollama.ResponseError) as unknown:
                await client.generate(model="nobody")
            assert unknown.value.status_code == 404
            assert upstream.requests == []
            rows = await made.gateway.accounts.usage("model")
            assert {row.name: (row.requests, row.input_tokens, row.cost) for row in rows} == {
                "fast": (5, 0, 0), "nobody": (1, 0, 0),
            }  # fmt: skip


async def test_embeddings_in_both_forms(gateway: StartGateway) -> None:
    rows = [{"index": at, "embedding": [at, 1.5]} for at in range(2)]
    whole = reply({"data": rows, "model": "emb-1", "usage": {"prompt_tokens": 4}})
    async with FaultServer([whole, reply({"data": rows[:1], "usage": {"prompt_tokens": 2}})]) as upstream:
        made = await gateway(providers=up(upstream), routes={"vectors": "up:emb"})
        async with client_of(made) as client:
            done = await client.embed(model="vectors", input=["a", "b"])
            assert done.embeddings == [[0, 1.5], [1, 1.5]] and done.prompt_eval_count == 4
            assert (await client.embeddings(model="vectors", prompt="a")).embedding == [0, 1.5]


async def test_the_lists_of_models_and_what_is_known_of_one(gateway: StartGateway) -> None:
    async with FaultServer([reply({"data": [{"id": "gpt-4.1-mini"}]})]) as upstream:
        made = await gateway(providers=up(upstream), routes={"fast": "echo"})
        _, key = await made.gateway.accounts.create("k", models=["fast", "up:*"])
        async with client_of(made, key) as client:
            assert [model.model for model in (await client.list()).models] == ["fast", "up:gpt-4.1-mini"]
            assert [model.model for model in (await client.ps()).models] == ["fast"]
            shown = await client.show("up:gpt-4.1-mini")
            assert shown.capabilities is not None and {"completion", "tools", "vision"} <= set(shown.capabilities)
            assert shown.modelinfo is not None and shown.modelinfo["up.context_length"] > 100_000
            with pytest.raises(ollama.ResponseError) as hidden:
                await client.show("local")
            assert hidden.value.status_code == 404 and "local" in hidden.value.error
            async with httpx.AsyncClient(headers={"x-api-key": key}) as plain:
                assert (await plain.get(f"{made.url}/api/version")).json()["version"]


async def test_errors_have_ollama_s_shape_also_at_the_edge(gateway: StartGateway) -> None:
    script = [refusal(429, "rate_limit_exceeded"), refusal(500, "server_error"), chat_stream("a", end=False)]
    async with FaultServer(script) as upstream:
        made = [
            await gateway(providers=up(upstream), routes={"fast": "up:big"}, server={"attempts": 1}) for _ in range(3)
        ]
        for at, status in ((0, 429), (1, 503)):
            async with client_of(made[at]) as client:
                with pytest.raises(ollama.ResponseError) as failed:
                    await client.generate(model="fast", prompt="p")
                assert failed.value.status_code == status
        async with client_of(made[2]) as client:
            with pytest.raises(ollama.ResponseError):
                async for _ in await client.generate(model="fast", prompt="p", stream=True):
                    pass
            with pytest.raises(ollama.ResponseError) as field:
                await client.generate(model="fast", prompt="p", suffix="s")
            assert (field.value.status_code, field.value.error[:7]) == (400, "suffix:")
        await made[0].gateway.accounts.create("k")
        paths: list[tuple[str, str, Any]] = [
            ("POST", "/api/generate", {"model": "fast"}), ("POST", "/api/embed", {"model": "fast"}),
            ("GET", "/api/tags", None), ("POST", "/api/show", {"model": "fast"}), ("POST", "/api/chat", {"model": "f"}),
        ]  # fmt: skip
        async with httpx.AsyncClient() as plain:
            for method, path, body in paths:
                answer = await plain.request(method, made[0].url + path, json=body)
                assert (answer.status_code, answer.json()) == (401, {"error": "Unauthorized"}), path
