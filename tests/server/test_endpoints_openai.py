"""`/v1/completions`, `/v1/embeddings` and `/v1/models` through OpenAI's own SDK."""

from __future__ import annotations

import asyncio
import json

import httpx
import openai
import pytest

from tests.server.conftest import InProcess, StartGateway
from tests.server.upstreams import answering, chat_stream, refusal, reply, sent, up
from windlass.testing.faults import FaultServer, Stream, sse


def client_of(made: InProcess, key: str = "any") -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{made.url}/v1", api_key=key, max_retries=0)


# ------------------------------------------------------------------------------------------------------ completions


async def test_a_completion_whole_and_streamed_from_a_chat_model(gateway: StartGateway) -> None:
    async with FaultServer(answering("hel", "lo")) as upstream:
        made = await gateway(providers=up(upstream), routes={"fast": "up:big"})
        async with client_of(made) as client:
            done = await client.completions.create(model="fast", prompt="Say hi. ", echo=True, max_tokens=7)
            assert done.choices[0].text == "Say hi. hello" and done.choices[0].finish_reason == "stop"
            assert done.usage is not None and done.usage.total_tokens == 5 and done.id.startswith("cmpl-")
            stream = await client.completions.create(
                model="fast", prompt="Say hi. ", echo=True, stream=True, stream_options={"include_usage": True}
            )
            chunks = [chunk async for chunk in stream]
            assert "".join([choice.text for chunk in chunks for choice in chunk.choices]) == "Say hi. hello"
            assert chunks[-1].usage is not None and chunks[-1].usage.completion_tokens == 2
        assert sent(upstream, 0)["max_tokens"] == 7 and sent(upstream, 0)["model"] == "big"
        assert sent(upstream)["messages"] == [{"role": "user", "content": "Say hi. "}]


async def test_a_completion_passes_unchanged_where_the_vendor_speaks_the_dialect(gateway: StartGateway) -> None:
    answer = b'{"id":"c","object":"text_completion","created":1,"model":"m","choices":[{"text":"x","index":0,' + (
        b'"logprobs":{"tokens":["x"]},"finish_reason":"stop"}],  "usage":{"prompt_tokens":1,"completion_tokens":1}}'
    )
    frames = sse(answer.decode(), "[DONE]")
    async with FaultServer([reply(json.loads(answer)), Stream(frames)]) as upstream:
        made = await gateway(providers=up(upstream, dialect="openai-completions"), routes={"old": "up:davinci"})
        async with client_of(made) as client:
            done = await client.completions.create(model="old", prompt="p", logprobs=1)
            assert done.choices[0].logprobs is not None and done.choices[0].logprobs.tokens == ["x"]
            assert sent(upstream) == {"model": "davinci", "prompt": "p", "logprobs": 1}
            stream = await client.completions.create(model="old", prompt="p", logprobs=1, stream=True)
            assert [chunk.choices[0].text async for chunk in stream] == ["x"]


@pytest.mark.parametrize(
    ("field", "value"), [("n", 2), ("logprobs", 1), ("suffix", "end"), ("prompt", [1, 2]), ("max_tokens", 0)]
)
async def test_a_completion_that_cannot_be_had_is_refused_by_its_field(
    gateway: StartGateway, field: str, value: object
) -> None:
    made = await gateway(routes={"parrot": "echo"})
    async with httpx.AsyncClient() as client:
        body = {"model": "parrot", "prompt": "p", field: value}
        answer = await client.post(f"{made.url}/v1/completions", json=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["type"]) == (400, field, "invalid_request_error")


async def test_errors_of_completions_are_openai_s(gateway: StartGateway) -> None:
    script = [
        refusal(429, "rate_limit_exceeded", **{"retry-after": "99"}),
        refusal(500, "server_error"),
        chat_stream("a", end=False),
    ]
    async with FaultServer(script) as upstream:
        made = await gateway(providers=up(upstream), routes={"fast": "up:big"}, server={"attempts": 1})
        async with client_of(made) as client:
            with pytest.raises(openai.NotFoundError) as missing:
                await client.completions.create(model="nobody", prompt="p")
            assert missing.value.code == "model_not_found"
            with pytest.raises(openai.RateLimitError) as limited:
                await client.completions.create(model="fast", prompt="p")
            assert limited.value.response.headers["retry-after"] == "99"
        other = await gateway(providers=up(upstream), routes={"fast": "up:big"}, server={"attempts": 1})
        async with client_of(other) as client:
            with pytest.raises(openai.InternalServerError) as broken:
                await client.completions.create(model="fast", prompt="p")
            assert broken.value.status_code == 503
            with pytest.raises(openai.APIError):
                async for _ in await client.completions.create(model="fast", prompt="p", stream=True):
                    pass


# ------------------------------------------------------------------------------------------------------- embeddings


def _vectors(*vectors: list[float]) -> object:
    rows = [{"object": "embedding", "index": at, "embedding": vector} for at, vector in enumerate(vectors)]
    return reply({"object": "list", "data": rows, "model": "emb-1", "usage": {"prompt_tokens": 4, "total_tokens": 4}})


async def test_embeddings_as_floats_and_as_the_sdk_s_base64_are_recorded(gateway: StartGateway) -> None:
    async with FaultServer([_vectors([0.5, 1.0], [2.0, 0.25])]) as upstream:  # pyright: ignore[reportArgumentType]
        made = await gateway(providers=up(upstream), routes={"vectors": "up:emb"})
        async with client_of(made) as client:
            packed = await client.embeddings.create(model="vectors", input=["a", "b"], dimensions=2)
            plain = await client.embeddings.with_raw_response.create(
                model="vectors", input=["a", "b"], encoding_format="float"
            )
        assert [row.embedding for row in packed.data] == [[0.5, 1.0], [2.0, 0.25]] and packed.model == "emb-1"
        assert plain.headers["x-windlass-model"] == "up:emb" and "upstream;dur=" in plain.headers["server-timing"]
        assert json.loads(plain.content)["data"][1]["embedding"] == [2.0, 0.25]
        assert sent(upstream, 0) == {"model": "emb", "input": ["a", "b"], "dimensions": 2}
        (row,) = await made.gateway.accounts.usage("model")
        assert (row.name, row.requests, row.input_tokens, row.output_tokens) == ("up:emb", 2, 8, 0)


async def test_embeddings_go_to_the_target_that_makes_them(gateway: StartGateway) -> None:
    async with FaultServer([refusal(500, "server_error"), _vectors([1.0])]) as upstream:  # pyright: ignore[reportArgumentType, reportCallIssue]
        table = {
            **up(upstream),
            "claude": {"base_url": upstream.url, "dialect": "anthropic", "api_key": "k"},
            "down": {"base_url": f"{upstream.url}/v1", "api_key": "k"},
        }
        made = await gateway(providers=table, routes={"vectors": ["echo", "claude:c", "down:emb", "up:emb"]})
        async with client_of(made) as client:
            answer = await client.embeddings.with_raw_response.create(model="vectors", input="a")
        assert answer.headers["x-windlass-model"] == "up:emb" and answer.headers["x-windlass-attempts"] == "2"
        assert [request.target for request in upstream.requests] == ["/v1/embeddings"] * 2


async def test_embeddings_of_models_without_any_and_bad_inputs_are_refused(gateway: StartGateway) -> None:
    made = await gateway(routes={"parrot": "echo"})
    async with client_of(made) as client:
        with pytest.raises(openai.BadRequestError) as none:
            await client.embeddings.create(model="parrot", input="a")
        assert "parrot makes no embeddings" in str(none.value)
        with pytest.raises(openai.BadRequestError) as tokens:
            await client.embeddings.create(model="parrot", input=[[1, 2]])
        assert tokens.value.param == "input"
    await made.gateway.accounts.flush()
    assert sum([row.requests for row in await made.gateway.accounts.usage()]) == 2


# ----------------------------------------------------------------------------------------------------------- models


async def test_models_are_the_routes_and_what_providers_offer(gateway: StartGateway) -> None:
    listed = reply({"object": "list", "data": [{"id": "meta/llama"}, {"id": "emb"}]})
    async with FaultServer([listed]) as upstream:
        table = {**up(upstream), "gone": {"base_url": "http://127.0.0.1:9", "api_key": "k"}}
        made = await gateway(providers=table, routes={"fast": "up:big", "two": ["echo", "up:big"]})
        async with client_of(made) as client:
            ids = [model.id async for model in client.models.list()]
            assert ids == ["fast", "two", "local", "up:emb", "up:meta/llama"]
            assert (await client.models.retrieve("up:meta/llama")).owned_by == "up"
            with pytest.raises(openai.NotFoundError):
                await client.models.retrieve("up:nothing")
        # Asked once: the list is kept; who could not be asked is only told of to those who look after the server.
        assert len(upstream.requests) == 1
        admin = {"authorization": f"Bearer {made.gateway.admin_token}"}
        async with httpx.AsyncClient(headers=admin) as plain:
            told = (await plain.get(f"{made.url}/diagnostics/providers")).json()
        assert list(told["unlisted"]) == ["gone"] and "gone" in told["unlisted"]["gone"]


async def test_models_are_those_that_a_key_may_use(gateway: StartGateway) -> None:
    made = await gateway(routes={"fast": "echo", "secret": "echo"})
    _, key = await made.gateway.accounts.create("k", models=["fa*"])
    async with client_of(made, key) as client:
        assert [model.id async for model in client.models.list()] == ["fast"]
        with pytest.raises(openai.NotFoundError) as hidden:
            await client.models.retrieve("secret")
        with pytest.raises(openai.NotFoundError) as unknown:
            await client.models.retrieve("secreu")
        assert str(hidden.value).replace("secret", "") == str(unknown.value).replace("secreu", "")
        with pytest.raises(openai.PermissionDeniedError):
            await client.completions.create(model="secret", prompt="p")
        with pytest.raises(openai.PermissionDeniedError):
            await client.embeddings.create(model="secret", input="p")


async def test_a_slow_provider_does_not_hold_up_the_list(
    gateway: StartGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("windlass.server.catalogue._PATIENCE", 0.05)
    listed = json.dumps({"data": [{"id": "late"}]}).encode()
    go = asyncio.Event()
    async with FaultServer([Stream([go, listed], headers={"content-type": "application/json"})]) as upstream:
        made = await gateway(providers=up(upstream), routes={"fast": "up:big"})
        async with client_of(made) as client:
            assert [model.id async for model in client.models.list()] == ["fast", "local"]
            go.set()
            while "up:late" not in [model.id async for model in client.models.list()]:
                await asyncio.sleep(0.01)
        assert len(upstream.requests) == 1
