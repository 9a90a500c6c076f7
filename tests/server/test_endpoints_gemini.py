"""Google's generateContent, asked as its SDKs ask: the model in the path, the key in `x-goog-api-key`."""

from __future__ import annotations

import base64
import json
from typing import Any

import httpx
import pytest

from tests.server.conftest import StartGateway
from tests.server.upstreams import PNG, answering, chat_stream, refusal, reply, sent, up
from windlass.testing.faults import FaultServer, Stream, sse
from windlass.wire import gemini

ASK: dict[str, Any] = {"contents": [{"role": "user", "parts": [{"text": "hi"}]}]}


async def test_a_call_of_a_tool_with_an_image(gateway: StartGateway) -> None:
    async with FaultServer(answering(call=("add", '{"a":1}'))) as upstream, httpx.AsyncClient() as client:
        made = await gateway(providers=up(upstream), routes={"fast": "up:big"})
        image = {"inlineData": {"mimeType": "image/png", "data": base64.b64encode(PNG).decode()}}
        body = {
            "contents": [{"role": "user", "parts": [{"text": "look"}, image]}],
            "systemInstruction": {"parts": [{"text": "be brief"}]},
            "tools": [{"functionDeclarations": [{"name": "add", "parameters": {"type": "OBJECT", "properties": {}}}]}],
            "generationConfig": {"maxOutputTokens": 9},
        }
        answer = await client.post(f"{made.url}/v1beta/models/fast:generateContent", json=body)
        told = answer.json()
        assert told["candidates"][0]["content"]["parts"][0]["functionCall"]["args"] == {"a": 1}
        assert told["usageMetadata"]["totalTokenCount"] == 5 and told["modelVersion"] == "m-1"
        assert answer.headers["x-windlass-model"] == "up:big"
        asked = sent(upstream)
        assert asked["max_tokens"] == 9 and asked["tools"][0]["function"]["name"] == "add"
        assert asked["messages"][1]["content"][1]["image_url"]["url"].startswith("data:image/png;base64,")


@pytest.mark.parametrize("model", ["fast", "up:meta%2Fbig"])
async def test_a_stream_of_events_and_one_as_an_array(gateway: StartGateway, model: str) -> None:
    async with FaultServer(answering("hel", "lo")) as upstream, httpx.AsyncClient() as client:
        made = await gateway(providers=up(upstream), routes={"fast": "up:big"})
        address = f"{made.url}/v1beta/models/{model}:streamGenerateContent"
        answer = await client.post(f"{address}?alt=sse", json=ASK)
        decoder = gemini.DIALECT.stream_decoder()
        items = [*decoder.feed(answer.content), *decoder.close()]
        assert "".join([getattr(item, "text", "") for item in items]) == "hello"
        plain = await client.post(address, json=ASK)
        chunks = plain.json()
        assert plain.headers["content-type"] == "application/json"
        parts = [part for chunk in chunks for part in chunk["candidates"][0]["content"].get("parts", [])]
        assert "".join([part["text"] for part in parts]) == "hello"
        assert chunks[-1]["candidates"][0]["finishReason"] == "STOP"


async def test_the_same_dialect_passes_as_it_is(gateway: StartGateway) -> None:
    whole = {"candidates": [{"content": {"parts": [{"text": "x"}], "role": "model"}, "finishReason": "STOP"}],
             "usageMetadata": {"promptTokenCount": 1, "totalTokenCount": 2}, "odd": [1]}  # fmt: skip
    stream = sse(json.dumps(whole))
    async with FaultServer([reply(whole), Stream(stream)]) as upstream, httpx.AsyncClient() as client:
        google = {"google": {"base_url": upstream.url, "dialect": "gemini", "api_key": "k"}}
        made = await gateway(providers=google, routes={"fast": "google:gemini-2.5-flash"})
        body = b'{"contents":[{"role":"user","parts":[{"text":"hi"}]}],  "cachedContent":"c"}'
        kind = {"content-type": "application/json"}
        answer = await client.post(f"{made.url}/v1beta/models/fast:generateContent", content=body, headers=kind)
        assert answer.json() == whole and upstream.requests[0].body == body
        assert upstream.requests[0].target == "/v1beta/models/gemini-2.5-flash:generateContent"
        address = f"{made.url}/v1beta/models/fast:streamGenerateContent?alt=sse"
        assert (await client.post(address, content=body, headers=kind)).content == b"".join(
            [part for part in stream if isinstance(part, bytes)]
        )


async def test_errors_are_google_s_also_at_the_edge(gateway: StartGateway) -> None:
    script = [
        refusal(429, "rate_limit_exceeded", **{"retry-after": "7"}),
        refusal(500, "x"),
        chat_stream("a", end=False),
    ]
    async with FaultServer(script) as upstream, httpx.AsyncClient() as client:
        made = [
            await gateway(providers=up(upstream), routes={"fast": "up:big"}, server={"attempts": 1}) for _ in range(3)
        ]

        async def ask(at: int, path: str, body: Any = ASK, **headers: str) -> tuple[int, str, Any]:
            answer = await client.post(f"{made[at].url}/v1beta/models/{path}", json=body, headers=headers)
            error = answer.json()["error"]
            return answer.status_code, error["status"], error

        assert (await ask(0, "fast:generateContent"))[:2] == (429, "RESOURCE_EXHAUSTED")
        assert (await ask(1, "fast:generateContent"))[:2] == (503, "UNAVAILABLE")
        cut = await client.post(f"{made[2].url}/v1beta/models/fast:streamGenerateContent", json=ASK)
        assert "error" in cut.json()[-1] and "candidates" in cut.json()[0]
        assert (await ask(2, "nobody:generateContent"))[:2] == (404, "NOT_FOUND")
        status, word, error = await ask(2, "fast:generateContent", {"contents": 3})
        assert (status, word) == (400, "INVALID_ARGUMENT") and "contents" in error["message"]
        _, key = await made[0].gateway.accounts.create("k", models=["other"])
        assert (await ask(0, "fast:generateContent"))[:2] == (401, "UNAUTHENTICATED")
        refused = await ask(0, "fast:streamGenerateContent?alt=sse", **{"x-goog-api-key": key})
        assert refused[:2] == (403, "PERMISSION_DENIED")
