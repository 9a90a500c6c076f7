"""Gemini over a real loopback server: addresses, keys, models, tool rounds and what its failures become."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from windlass.agent.agent import Agent
from windlass.core import clock, registry
from windlass.core.config import Config
from windlass.core.errors import (
    AuthError,
    ModelNotFoundError,
    OverloadedError,
    ProviderError,
    RateLimitError,
    StreamInterrupted,
    WireError,
)
from windlass.core.items import Finish, Item, NoticeItem, ReasoningItem, TextItem
from windlass.core.messages import Blob, Message, ToolCall, ToolResponse, user
from windlass.core.request import Budget, Request, Settings, ToolSpec
from windlass.core.usage import Usage
from windlass.providers.gemini import GeminiProvider
from windlass.providers.retry import Retrying
from windlass.testing.faults import FaultServer, Reply, Rst, Step, Stream, sse
from windlass.testing.provider_kit import PROVIDER_CHECKS, check_provider
from windlass.testing.validity import check_gemini
from windlass.wire import anthropic
from windlass.wire.gemini import DIALECT
from windlass.wire.gemini_parts import UNSIGNED

COUNTS = {"promptTokenCount": 9, "candidatesTokenCount": 2, "totalTokenCount": 31, "thoughtsTokenCount": 20}


def chunk(*parts: Any, reason: str | None = None) -> str:
    candidate: dict[str, Any] = {"content": {"parts": list(parts), "role": "model"}, "index": 0}
    if reason is not None:
        candidate["finishReason"] = reason
    head = {"modelVersion": "gemini-2.5-flash", "responseId": "r1"}
    return json.dumps({"candidates": [candidate], "usageMetadata": COUNTS, **head})


HELLO = [chunk({"text": "Hm", "thought": True}), chunk({"text": "Hel"}), chunk({"text": "lo"}, reason="STOP")]
ANSWER = Stream(sse(*HELLO))


def json_reply(body: Any, status: int = 200) -> Reply:
    return Reply(status, json.dumps(body).encode(), {"content-type": "application/json; charset=UTF-8"})


def provider_of(server: FaultServer, base: str = "", **environ: str) -> Any:
    env = {"GEMINI_BASE_URL": server.url + base, "GEMINI_API_KEY": "key-1", **environ}
    return registry.model("gemini:gemini-2.5-flash", Config.from_environment(env))[0]


async def ask(provider: Any, request: Request | None = None) -> tuple[list[Item], Finish]:
    asked = request or Request(model="gemini-2.5-flash", messages=[user("hi")], budget=Budget(None, 3))
    items: list[Item] = [item async for item in provider.stream(asked)]
    assert isinstance(items[-1], Finish)
    await provider.close()
    return items, items[-1]


async def test_a_streamed_answer() -> None:
    async with FaultServer([ANSWER]) as server:
        provider = provider_of(server)
        request = Request(model="gemini-2.5-flash", messages=[user("hi")])
        items = [item for _ in range(2) async for item in provider.stream(request)]
        await provider.close()
        assert server.connections == 1 and len(server.requests) == 2
        sent = server.requests[0]
    last = items[-1]
    assert isinstance(last, Finish) and last.message.text == "Hello" and last.usage == Usage(9, 22, reasoning_tokens=20)
    assert [type(item) for item in items if isinstance(item, (ReasoningItem, TextItem))] == [
        ReasoningItem, TextItem, TextItem,
    ] * 2  # fmt: skip
    assert sent.target == "/v1beta/models/gemini-2.5-flash:streamGenerateContent?alt=sse"
    assert sent.headers["x-goog-api-key"] == "key-1" and "authorization" not in sent.headers
    assert json.loads(sent.body) == {"contents": [{"role": "user", "parts": [{"text": "hi"}]}]}


@pytest.mark.parametrize(
    ("base", "model", "target"),
    [
        ("", "models/gemini-x", "/v1beta/models/gemini-x:streamGenerateContent?alt=sse"),
        ("/", "a b/../c", "/v1beta/models/a%20b%2F..%2Fc:streamGenerateContent?alt=sse"),
        ("/v1beta", "gemini-x", "/v1beta/models/gemini-x:streamGenerateContent?alt=sse"),
        ("/v1", "gemini-x", "/v1/models/gemini-x:streamGenerateContent?alt=sse"),
        ("/proxy", "gemini-x", "/proxy/v1beta/models/gemini-x:streamGenerateContent?alt=sse"),
    ],
)
async def test_addresses(base: str, model: str, target: str) -> None:
    async with FaultServer([ANSWER]) as server:
        provider = provider_of(server, base)
        await ask(provider, Request(model=model, messages=[user("hi")]))
        assert server.requests[0].target == target
        whole = target.replace("streamGenerateContent?alt=sse", "generateContent")
        assert provider.address(model, stream=False) == server.url + whole


async def test_a_table_of_the_users_reaches_vertex_with_a_bearer_token() -> None:
    path = "/v1/projects/p-1/locations/us-central1/publishers/google"
    async with FaultServer([ANSWER]) as server:
        table = {
            "dialect": "gemini",
            "base_url": server.url + path,
            "api_key": "env:VERTEX_TOKEN",
            "auth_header": {"name": "Authorization", "scheme": "Bearer"},
            "model": "gemini-2.5-pro",
        }
        config = Config(environ={"VERTEX_TOKEN": "ya29.t"}, providers={"vertex": table})
        provider, model, full = registry.model("vertex", config)
        assert (model, full) == ("gemini-2.5-pro", "vertex:gemini-2.5-pro")
        _, finish = await ask(provider, Request(model=model, messages=[user("hi")]))
        sent = server.requests[0]
    assert finish.message.text == "Hello"
    assert sent.target == f"{path}/models/gemini-2.5-pro:streamGenerateContent?alt=sse"
    assert sent.headers["authorization"] == "Bearer ya29.t" and "x-goog-api-key" not in sent.headers


async def test_a_body_is_forwarded_whole_or_streamed() -> None:
    whole = {"candidates": [{"content": {"parts": [{"text": "Hi"}]}, "finishReason": "STOP"}]}
    async with FaultServer([json_reply(whole)]) as server:
        provider = provider_of(server).provider
        async with provider.forward(b'{"contents":[]}', "gemini-x", stream=False) as response:
            assert json.loads(await response.read()) == whole
        await provider.close()
        assert server.requests[0].target == "/v1beta/models/gemini-x:generateContent"


async def test_it_is_a_provider_by_the_public_kit() -> None:
    async with FaultServer([ANSWER]) as server:
        assert await check_provider(lambda: provider_of(server)) == list(PROVIDER_CHECKS)


def test_google_api_key_is_known_too() -> None:
    for name in ("GEMINI_API_KEY", "GOOGLE_API_KEY", "WINDLASS_GEMINI_API_KEY"):
        provider = registry.model("gemini", Config.from_environment({name: "k"}))[0]
        assert provider.headers["x-goog-api-key"] == "k" and provider.default_model == "gemini-2.5-flash"


# ------------------------------------------------------------------------------------------------------------ models


async def test_models_are_listed_page_by_page() -> None:
    first = {
        "models": [
            {"name": "models/gemini-2.5-flash", "supportedGenerationMethods": ["generateContent", "countTokens"]},
            {"name": "models/embedding-001", "supportedGenerationMethods": ["embedContent"]},
            {"name": "models/odd"},
            {"display": "none"},
            7,
        ],
        "nextPageToken": "a/b=",
    }
    async with FaultServer([json_reply(first), json_reply({"models": [{"name": "models/gemini-2.5-pro"}]})]) as server:
        provider = provider_of(server)
        assert await provider.models() == ["gemini-2.5-flash", "gemini-2.5-pro", "odd"]
        await provider.close()
        targets = [request.target for request in server.requests]
    assert targets == ["/v1beta/models?pageSize=1000", "/v1beta/models?pageSize=1000&pageToken=a%2Fb%3D"]
    assert server.requests[0].headers["x-goog-api-key"] == "key-1"


async def test_models_of_vertex_and_of_a_list_without_end() -> None:
    endless = {"publisherModels": [{"name": "publishers/google/models/gemini-x"}], "nextPageToken": "on"}
    async with FaultServer([json_reply(endless)]) as server:
        provider = provider_of(server, "/v1beta1/publishers/google")
        assert await provider.models() == ["gemini-x"]
        await provider.close()
        assert len(server.requests) == 20
        assert server.requests[0].target == "/v1beta1/publishers/google/models?pageSize=1000"


@pytest.mark.parametrize(
    ("model", "reasoning", "inside"),
    [
        ("gemini-2.0-flash", "none", False),
        ("gemini-2.5-flash", "budget", False),
        ("models/gemini-2.5-pro", "budget", False),
        ("gemini-2.5-flash-image", "none", False),
        ("gemini-3-pro-preview", "effort", True),
        ("gemini-flash-latest", "effort", True),
        ("gemma-3-27b-it", "none", False),
        ("something", "none", False),
    ],
)
def test_what_each_generation_can_take(model: str, reasoning: str, inside: bool) -> None:
    provider = registry.model("gemini:x", Config.from_environment({"GEMINI_API_KEY": "k"}))[0]
    caps = provider.capabilities(model)
    assert (caps.reasoning, caps.image_in_tool_result) == (reasoning, inside)
    assert caps is provider.capabilities(model) and caps.structured_output and not provider.structured_output


async def test_dropped_settings_are_told_first() -> None:
    async with FaultServer([ANSWER]) as server:
        asked = Settings(repeat_penalty=1.2, thinking="low", max_tokens=100_000)
        items, _ = await ask(
            provider_of(server), Request(model="gemini-2.5-flash", messages=[user("x")], settings=asked)
        )
        sent = json.loads(server.requests[0].body)
    notice = items[0]
    assert isinstance(notice, NoticeItem) and notice.kind == "warning" and "repeat_penalty" in notice.message
    assert sent["generationConfig"] == {
        "maxOutputTokens": 65536, "thinkingConfig": {"thinkingBudget": 4096, "includeThoughts": True},
    }  # fmt: skip


# ------------------------------------------------------------------------------------------------------- tool rounds


async def test_an_agents_tool_round_gives_signatures_and_ids_back() -> None:
    call = {"functionCall": {"name": "add", "id": "k7", "args": {"a": 2, "b": 3}}, "thoughtSignature": "EqsC+sig/=="}
    other = {"functionCall": {"name": "add", "id": "k8", "args": {"a": 1, "b": 1}}}
    first = Stream(sse(chunk({"text": "I add."}), chunk(call, other), chunk({"text": ""}, reason="STOP")))
    seen: list[tuple[int, int]] = []

    def add(a: int, b: int) -> str:
        """Add two numbers."""
        seen.append((a, b))
        return str(a + b)

    async with FaultServer([first, ANSWER]) as server:
        config = Config.from_environment({"GEMINI_BASE_URL": server.url, "GOOGLE_API_KEY": "k"})
        agent = Agent("gemini:gemini-3-pro-preview", tools=[add], config=config)
        result = await agent.run("2+3?")
        await agent.destroy()
        bodies = [json.loads(request.body) for request in server.requests]
    assert result.text == "Hello" and sorted(seen) == [(1, 1), (2, 3)]
    assert bodies[0]["tools"][0]["functionDeclarations"][0]["name"] == "add"
    assert bodies[1]["contents"][1:] == [
        {"role": "model", "parts": [{"text": "I add."}, call, other]},
        {
            "role": "user",
            "parts": [
                {"functionResponse": {"name": "add", "id": "k7", "response": {"output": "5"}}},
                {"functionResponse": {"name": "add", "id": "k8", "response": {"output": "2"}}},
            ],
        },
    ]
    assert check_gemini(bodies[1]) == []


async def test_r28_a_history_of_another_vendor_is_taken_after_a_fallback() -> None:
    """The server refuses what Gemini 3 refuses: an unsigned first call. Claude's answer stands in the history."""
    claude = {
        "type": "message", "role": "assistant", "model": "c", "stop_reason": "tool_use",
        "content": [
            {"type": "thinking", "thinking": "Hm.", "signature": "EqQB"},
            {"type": "tool_use", "id": "toolu_1", "name": "look", "input": {}},
        ],
    }  # fmt: skip
    given = anthropic.DIALECT.decode_response(json.dumps(claude).encode()).message
    history = [user("x"), given, Message("tool", (ToolResponse("toolu_1", "seen"),))]
    async with FaultServer([ANSWER]) as server:
        request = Request(model="gemini-3-pro-preview", messages=history, tools=(ToolSpec("look"),))
        _, finish = await ask(provider_of(server), request)
        body = json.loads(server.requests[0].body)
    assert finish.message.text == "Hello" and check_gemini(body) == []
    assert body["contents"][1]["parts"] == [
        {"functionCall": {"name": "look", "id": "toolu_1", "args": {}}, "thoughtSignature": UNSIGNED}
    ]


async def test_structured_output_of_an_agent_comes_as_a_call() -> None:
    call = {"functionCall": {"name": "final_answer", "args": {"n": 5}}}
    async with FaultServer([Stream(sse(chunk(call, reason="STOP")))]) as server:
        config = Config.from_environment({"GEMINI_BASE_URL": server.url, "GEMINI_API_KEY": "k"})
        schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
        agent = Agent("gemini:gemini-2.5-flash", output=schema, config=config)
        result = await agent.run("five?")
        await agent.destroy()
    assert result.output == {"n": 5}


async def test_images_of_tool_results_by_generation() -> None:
    picture = ToolResponse("a", (Blob(b"\x89PNG", "image/png"),))
    history = [user("x"), Message("assistant", (ToolCall("a", "look", {}),)), Message("tool", (picture,))]
    async with FaultServer([ANSWER]) as server:
        for model in ("gemini-2.5-flash", "gemini-3-flash-preview"):
            await ask(provider_of(server), Request(model=model, messages=history))
        old, new = [json.loads(request.body)["contents"] for request in server.requests]
    assert "inlineData" in old[3]["parts"][0] and "parts" not in old[2]["parts"][0]["functionResponse"]
    assert len(new) == 3 and "inlineData" in new[2]["parts"][0]["functionResponse"]["parts"][0]


# ---------------------------------------------------------------------------------------------------------- failures


def failure(code: int, word: str, message: str = "no", *details: Any) -> Reply:
    # The streaming endpoint wraps its errors in an array.
    return json_reply([{"error": {"code": code, "message": message, "status": word, "details": details}}], code)


RETRY = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "3.25s"}
KEY = {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "API_KEY_INVALID"}


@pytest.mark.parametrize(
    ("reply", "kind", "attempts"),
    [
        (failure(400, "INVALID_ARGUMENT", "API key not valid.", KEY), AuthError, 1),
        (failure(404, "NOT_FOUND", "models/x is not found"), ModelNotFoundError, 1),
        (failure(429, "RESOURCE_EXHAUSTED"), RateLimitError, 3),
        (failure(503, "UNAVAILABLE", "The model is overloaded."), OverloadedError, 3),
    ],
)
async def test_r19_which_errors_are_asked_again(reply: Reply, kind: type[ProviderError], attempts: int) -> None:
    async with FaultServer([reply]) as server:
        with pytest.raises(kind) as caught:
            await ask(Retrying(provider_of(server).provider, base=0.001))
        assert len(server.requests) == attempts
    assert caught.value.provider == "gemini" and caught.value.model == "gemini-2.5-flash"
    assert caught.value.endpoint is not None and "key-1" not in str(caught.value) + caught.value.endpoint


async def test_r17_the_wait_of_retry_info_is_kept_to(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []

    async def no_sleep(seconds: float) -> None:
        waits.append(seconds)

    monkeypatch.setattr(clock, "sleep", no_sleep)
    async with FaultServer([failure(429, "RESOURCE_EXHAUSTED", "slow", RETRY), ANSWER]) as server:
        _, finish = await ask(Retrying(provider_of(server).provider))
    assert finish.message.text == "Hello" and waits == [3.25]


@pytest.mark.parametrize(
    "step",
    [
        Stream(sse(*HELLO[:2]), end="rst"),
        Stream(sse(*HELLO[:2])),
        Stream(sse(*HELLO[:2]), end="fin"),
        Stream(sse(*HELLO), cut=60),
        Stream(sse(*HELLO[:2]), framing="close"),
    ],
    ids=["r07 reset", "r10 clean end", "r10 fin", "r08 cut chunk", "r09 close-delimited"],
)
async def test_r07_to_r10_a_cut_answer_is_never_a_whole_one(step: Step) -> None:
    async with FaultServer([step]) as server:
        with pytest.raises(StreamInterrupted) as caught:
            await ask(Retrying(provider_of(server).provider, base=0.001))
        assert len(server.requests) == 1
    assert caught.value.partial == "Hel"


async def test_r02_a_connection_lost_before_the_answer_is_asked_again() -> None:
    async with FaultServer([Rst(), ANSWER]) as server:
        items, finish = await ask(Retrying(provider_of(server).provider, base=0.001))
    assert finish.message.text == "Hello" and isinstance(items[0], NoticeItem)


async def test_r10_an_answer_that_ended_is_whole_though_its_body_is_not() -> None:
    """The finishReason is the end: what the connection does after it costs nothing."""
    hang = asyncio.Event()
    async with FaultServer([Stream([*sse(*HELLO), hang])]) as server:
        _, finish = await ask(provider_of(server))
        assert finish.message.text == "Hello"
        hang.set()


async def test_r14_r15_r16_bad_chunks_errors_and_pages() -> None:
    error = json.dumps({"error": {"code": 503, "status": "UNAVAILABLE", "message": "overloaded"}})
    page = Reply(200, b"<html>Sign in</html>", {"content-type": "text/html"})
    for step, kind, partial in (
        (Stream([*sse(HELLO[1]), b"data: {nope\n\n"]), WireError, "Hel"),
        (Stream(sse(HELLO[1], error)), OverloadedError, "Hel"),
        (page, WireError, ""),
    ):
        async with FaultServer([step]) as server:
            with pytest.raises(kind) as caught:
                await ask(provider_of(server).provider)
        assert caught.value.partial == partial and caught.value.provider == "gemini"


async def test_an_answer_that_comes_whole_is_taken_too() -> None:
    """A server that ignores `alt=sse` sends an array."""
    async with FaultServer([json_reply([json.loads(item) for item in HELLO])]) as server:
        items, finish = await ask(provider_of(server))
    assert finish.message.text == "Hello" and "".join([i.text for i in items if isinstance(i, TextItem)]) == "Hello"


def test_the_provider_is_made_by_its_dialect_alone() -> None:
    config = Config(environ={}, providers={"mine": {"dialect": "gemini", "base_url": "http://127.0.0.1:9"}})
    provider = registry.model("mine:gemini-2.5-pro", config)[0].provider
    assert isinstance(provider, GeminiProvider) and provider.dialect is DIALECT
    assert provider.capabilities("gemini-2.5-pro").reasoning == "budget"
