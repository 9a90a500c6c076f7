"""The official Ollama SDK on loopback: it reads what we emit, and we read what it sends."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Any

import ollama
import pytest
from ollama import ChatResponse
from wire_server import Answer, Got, Server, serve
from wire_strategies import PNG

from windlass.core.errors import ModelNotFoundError, OverloadedError
from windlass.core.items import Finish, Item, ReasoningItem, TextItem, ToolCallItem
from windlass.core.messages import Blob, Message, Reasoning, Text, ToolCall, ToolResponse
from windlass.core.request import Settings
from windlass.core.usage import Usage
from windlass.wire.ollama import DIALECT

EVIL = "Hello\u2028 wörld\n\n\x85"
FINISH = Finish(
    Message(
        "assistant",
        (Reasoning("Thinking é"), Text(EVIL), ToolCall("a", "look", {"a": [1, "ü"]}), ToolCall("b", "now", {})),
    ),
    usage=Usage(20, 7),
    reason="tool_call",
)
ITEMS: list[Item] = [
    ReasoningItem("Thinking "),
    ReasoningItem("é"),
    TextItem(EVIL[:3]),
    TextItem(EVIL[3:]),
    ToolCallItem(0, "a", "look", '{"a":[1,"ü"]}'),
    ToolCallItem(1, "b", "now"),
    FINISH,
]


def answer(got: Got) -> Answer:
    if not DIALECT.decode_request(got.body).stream:
        return 200, "application/json", DIALECT.encode_response(FINISH, model="qwen", response_id="r", created=1)
    encoder = DIALECT.stream_encoder(model="qwen", response_id="r", created=1)
    return 200, "application/x-ndjson", [encoder.encode(item) for item in ITEMS]


@asynccontextmanager
async def client(reply: Callable[[Got], Answer] = answer) -> AsyncGenerator[tuple[ollama.AsyncClient, Server]]:
    async with serve(reply) as server:
        sdk = ollama.AsyncClient(host=server.url)
        try:
            yield sdk, server
        finally:
            await sdk.close()


def check(message: ollama.Message) -> None:
    assert (message.thinking, message.content) == ("Thinking é", EVIL)


def check_end(response: ChatResponse) -> None:
    assert (response.done, response.done_reason) == (True, "stop")
    assert (response.prompt_eval_count, response.eval_count, response.model) == (20, 7, "qwen")
    assert response.created_at == "1970-01-01T00:00:01.000000Z"


async def test_sdk_reads_our_answers() -> None:
    async with client() as (sdk, _):
        whole = await sdk.chat(model="qwen", messages=[{"role": "user", "content": "x"}])
        check(whole.message)
        check_end(whole)
        calls = whole.message.tool_calls or []
        assert [(call.function.name, call.function.arguments) for call in calls] == [
            ("look", {"a": [1, "ü"]}),
            ("now", {}),
        ]
        parts = await sdk.chat(model="qwen", messages=[{"role": "user", "content": "x"}], stream=True)
        got = [part async for part in parts]
    assert "".join([part.message.thinking or "" for part in got]) == "Thinking é"
    assert "".join([part.message.content or "" for part in got]) == EVIL
    assert [call.function.name for part in got for call in part.message.tool_calls or []] == ["look", "now"]
    check_end(got[-1])


async def test_we_read_what_the_sdk_sends() -> None:
    def look(q: str, n: int = 3) -> str:
        """Look it up.

        Args:
          q: what
          n: how many
        """
        return q * n

    async with client() as (sdk, server):
        first = await sdk.chat(
            model="qwen", messages=[{"role": "user", "content": "x", "images": [PNG]}], tools=[look], think=True
        )
        await sdk.chat(
            model="qwen",
            messages=[
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "x", "images": [PNG]},
                first.message,
                {"role": "tool", "tool_name": "look", "content": "one"},
                {"role": "tool", "tool_name": "now", "content": "two"},
            ],
            think="low",
            format={"type": "object"},
            options={"temperature": 0.5, "num_ctx": 4096, "stop": ["END"], "num_predict": 5},
            keep_alive="1m",
        )
        asked, again = [DIALECT.decode_request(got.body) for got in server.got]
    assert server.got[0].path == "/api/chat"
    spec = asked.request.tools[0]
    assert (spec.name, spec.description) == ("look", "Look it up.")
    assert spec.input_schema["properties"]["q"]["type"] == "string"
    assert asked.request.settings.thinking == "adaptive"
    assert asked.request.messages[0].parts == (Text("x"), Blob(PNG, "image/png"))
    request = again.request
    assert (again.stream, request.system) == (False, "Be brief.")
    assert request.settings == Settings(max_tokens=5, temperature=0.5, stop=("END",), thinking="low")
    assert request.output_schema == {"type": "object"}
    assert again.extra == {"options": {"num_ctx": 4096}, "keep_alive": "1m"}
    # The SDK drops the ids of calls: ours are given anew, and the responses find theirs by name.
    look_call, now_call = request.messages[1].tool_calls
    assert (look_call.name, look_call.arguments, now_call.name) == ("look", {"a": [1, "ü"]}, "now")
    assert request.messages[2].parts == (ToolResponse(look_call.id, "one"), ToolResponse(now_call.id, "two"))


async def test_sdk_raises_on_our_errors() -> None:
    def refuse(got: Got) -> Answer:
        status, body = DIALECT.encode_error(ModelNotFoundError("no such model"))
        return status, "application/json", body

    def cut(got: Got) -> Answer:
        encoder = DIALECT.stream_encoder(model="m", response_id="r", created=0)
        return (
            200,
            "application/x-ndjson",
            [encoder.encode(TextItem("par")), encoder.error(OverloadedError("upstream died"))],
        )

    ask: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "x"}]}
    async with client(refuse) as (sdk, _):
        with pytest.raises(ollama.ResponseError, match="no such model") as caught:
            await sdk.chat(**ask)
        assert caught.value.status_code == 404
    texts: list[str | None] = []
    async with client(cut) as (sdk, _):
        with pytest.raises(ollama.ResponseError, match="upstream died"):
            async for part in await sdk.chat(**ask, stream=True):
                texts += [part.message.content]
    assert texts == ["par"]
