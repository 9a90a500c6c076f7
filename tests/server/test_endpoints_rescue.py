"""A broken stream is rescued in every dialect of the door, and a request that names what it needs finds who has it."""

from __future__ import annotations

import base64
from typing import Any

import httpx
import pytest

from tests.server.conftest import StartGateway
from tests.server.upstreams import PNG, answering, up
from windlass.core.items import Finish, Item, TextItem
from windlass.testing.faults import FaultServer
from windlass.wire import bedrock, gemini, ollama_generate, openai_completions, openai_responses

TEXT = "one two three four five six seven eight nine ten"
ASK: list[tuple[str, Any, str, dict[str, Any]]] = [
    ("completions", openai_completions.DIALECT, "/v1/completions", {"model": "fast", "prompt": "hi", "stream": True}),
    ("responses", openai_responses.DIALECT, "/v1/responses", {"model": "fast", "input": "hi", "stream": True}),
    ("ollama", ollama_generate.DIALECT, "/api/generate", {"model": "fast", "prompt": "hi"}),
    ("bedrock", bedrock.DIALECT, "/model/fast/converse-stream",
     {"messages": [{"role": "user", "content": [{"text": "hi"}]}]}),
    ("gemini", gemini.DIALECT, "/v1beta/models/fast:streamGenerateContent?alt=sse",
     {"contents": [{"role": "user", "parts": [{"text": "hi"}]}]}),
]  # fmt: skip


@pytest.mark.parametrize(("dialect", "path", "body"), [row[1:] for row in ASK], ids=[row[0] for row in ASK])
async def test_a_cut_stream_is_continued_by_the_next_target(
    gateway: StartGateway, dialect: Any, path: str, body: dict[str, Any]
) -> None:
    made = await gateway(routes={"fast": ["fault:cut?tokens=3", "fault:ok"]})
    async with httpx.AsyncClient() as client:
        answer = await client.post(made.url + path, json=body)
    decoder = dialect.stream_decoder()
    items: list[Item] = [*decoder.feed(answer.content), *decoder.close()]
    assert "".join([item.text for item in items if isinstance(item, TextItem)]) == TEXT
    assert isinstance(items[-1], Finish) and items[-1].reason == "stop"
    rows = await made.gateway.accounts.usage("model")
    assert [(row.name, row.requests) for row in rows] == [("fault:cut?tokens=3, fault:ok", 1)]


IMAGE = base64.b64encode(PNG).decode()


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/api/generate", {"model": "fast", "prompt": "look", "images": [IMAGE], "stream": False}),
        ("/api/chat", {"model": "fast", "messages": [{"role": "user", "content": "x", "images": [IMAGE]}]}),
        ("/model/fast/converse",
         {"messages": [{"role": "user", "content": [{"image": {"format": "png", "source": {"bytes": IMAGE}}}]}]}),
        ("/v1beta/models/fast:generateContent",
         {"contents": [{"role": "user", "parts": [{"inlineData": {"mimeType": "image/png", "data": IMAGE}}]}]}),
        ("/v1/responses",
         {"model": "fast", "store": False, "input": [
             {"role": "user", "content": [{"type": "input_image", "image_url": f"data:image/png;base64,{IMAGE}"}]}]}),
    ],
    ids=["generate", "chat", "bedrock", "gemini", "responses"],
)  # fmt: skip
async def test_a_picture_goes_to_the_target_that_sees(gateway: StartGateway, path: str, body: dict[str, Any]) -> None:
    async with FaultServer(answering("seen")) as upstream:
        blind = {"blind": {"base_url": "http://127.0.0.1:9", "api_key": "k", "capabilities": {"vision": False}}}
        made = await gateway(providers={**blind, **up(upstream)}, routes={"fast": ["blind:b", "up:big"]})
        async with httpx.AsyncClient() as client:
            answer = await client.post(made.url + path, json=body)
    assert answer.status_code == 200 and "seen" in answer.text
    assert "x-windlass-attempts" not in answer.headers
