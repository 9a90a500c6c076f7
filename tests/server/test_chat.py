"""The model routes through the official SDKs, with a fake upstream behind: the first light of the gateway."""

from __future__ import annotations

import anthropic
import httpx
import openai
import pytest

from tests.server.conftest import Serve, StartGateway
from windlass.testing.faults import FaultServer, Reply, Stream, sse

ANSWER = (
    b'{"id":"chatcmpl-1","object":"chat.completion","created":1,"model":"m-1","choices":[{"index":0,"message":'
    b'{"role":"assistant","content":"hello"},"finish_reason":"stop"}],"usage":{"prompt_tokens":3,'
    b'"completion_tokens":1,"total_tokens":4},"odd":  [1, 2]}'
)


def _chunk(text: str, finish: str = "null") -> str:
    return (
        '{"id":"c","object":"chat.completion.chunk","created":1,"model":"m-1","choices":[{"index":0,"delta":'
        f'{{"content":"{text}"}},"finish_reason":{finish}}}]}}'
    )


def _up(server: FaultServer) -> dict[str, object]:
    return {"up": {"base_url": f"{server.url}/v1", "api_key": "sk-upstream"}}


async def test_bytes_pass_through_unchanged(gateway: StartGateway) -> None:
    async with FaultServer([Reply(200, ANSWER, {"content-type": "application/json"})]) as upstream:
        up = await gateway(providers=_up(upstream), routes={"fake": "up:fake"})
        body = b'{"model":"fake", "messages":[{"role":"user","content":"hi"}],"odd": {"kept":true} }'
        async with httpx.AsyncClient() as client:
            answer = await client.post(
                f"{up.url}/v1/chat/completions", content=body, headers={"content-type": "application/json"}
            )
        assert answer.content == ANSWER
        assert upstream.requests[0].body == body
        assert upstream.requests[0].headers["authorization"] == "Bearer sk-upstream"
        assert answer.headers["x-windlass-model"] == "up:fake"
        assert "gateway;dur=" in answer.headers["server-timing"]


async def test_the_model_of_a_route_replaces_only_the_model(gateway: StartGateway) -> None:
    async with FaultServer([Reply(200, ANSWER, {"content-type": "application/json"})]) as upstream:
        up = await gateway(providers=_up(upstream), routes={"fast": "up:big-model"})
        async with openai.AsyncOpenAI(base_url=f"{up.url}/v1", api_key="any", max_retries=0) as client:
            done = await client.chat.completions.create(model="fast", messages=[{"role": "user", "content": "hi"}])
            assert done.choices[0].message.content == "hello"
            assert b'"model":"big-model"' in upstream.requests[0].body


async def test_a_stream_passes_and_its_usage_is_counted_but_not_told(gateway: StartGateway) -> None:
    usage = (
        '{"id":"c","object":"chat.completion.chunk","created":1,"model":"m-1","choices":[],'
        '"usage":{"prompt_tokens":3,"completion_tokens":2,"total_tokens":5}}'
    )
    frames = sse(_chunk("hel"), _chunk("lo", '"stop"'), usage, "[DONE]")
    async with FaultServer([Stream(frames)]) as upstream:
        up = await gateway(providers=_up(upstream), routes={"fake": "up:fake"})
        async with openai.AsyncOpenAI(base_url=f"{up.url}/v1", api_key="any", max_retries=0) as client:
            stream = await client.chat.completions.create(
                model="fake", messages=[{"role": "user", "content": "hi"}], stream=True
            )
            chunks = [chunk async for chunk in stream]
            assert "".join([chunk.choices[0].delta.content or "" for chunk in chunks]) == "hello"
            assert all(chunk.usage is None for chunk in chunks)
            await up.gateway.accounts.flush()
            (row,) = await up.gateway.accounts.usage()
            assert row.input_tokens + row.output_tokens == 5


async def test_anthropic_clients_reach_a_chat_upstream(gateway: StartGateway) -> None:
    frames = sse(_chunk("hel"), _chunk("lo", '"stop"'), "[DONE]")
    async with FaultServer([Stream(frames)]) as upstream:
        up = await gateway(providers=_up(upstream), routes={"fake": "up:fake"})
        async with anthropic.AsyncAnthropic(base_url=up.url, api_key="any", max_retries=0) as client:
            message = await client.messages.create(
                model="fake", max_tokens=10, messages=[{"role": "user", "content": "hi"}]
            )
            block = message.content[0]
            assert block.type == "text" and block.text == "hello"


async def test_r10_a_stream_without_its_end_is_an_error_not_a_success(gateway: StartGateway) -> None:
    async with FaultServer([Stream(sse(_chunk("hel")))]) as upstream:
        up = await gateway(providers=_up(upstream), routes={"fake": "up:fake"})
        async with openai.AsyncOpenAI(base_url=f"{up.url}/v1", api_key="any", max_retries=0) as client:
            stream = await client.chat.completions.create(
                model="fake", messages=[{"role": "user", "content": "hi"}], stream=True
            )
            text = ""
            with pytest.raises(openai.APIError):
                async for chunk in stream:
                    text += chunk.choices[0].delta.content or ""
            assert text == "hel"


def test_the_program_serves_the_built_in_model(serve: Serve) -> None:
    served = serve('model = "local"')
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="any", max_retries=0) as client:
        done = client.chat.completions.create(
            model="local", messages=[{"role": "user", "content": "hello"}], max_tokens=8
        )
    assert done.choices[0].message.content
    assert served.stop() == 0


async def test_requests_with_one_id_of_the_clients_are_each_recorded(gateway: StartGateway) -> None:
    up = await gateway(routes={"fake": "echo:echo"})
    body = {"model": "fake", "messages": [{"role": "user", "content": "hi"}]}
    async with httpx.AsyncClient() as client:
        for _ in range(3):
            answer = await client.post(f"{up.url}/v1/chat/completions", json=body, headers={"x-request-id": "mine"})
            assert answer.headers["x-request-id"] == "mine"
    (row,) = await up.gateway.accounts.usage()
    assert row.requests == 3
