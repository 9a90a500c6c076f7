"""Providers over a real loopback server that answers and fails as told."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

import pytest

from windlass.agent.agent import Agent
from windlass.core import clock, registry
from windlass.core.config import Config
from windlass.core.errors import (
    AuthError,
    BadRequestError,
    ConfigError,
    ContextExceededError,
    MissingKeyError,
    ModelNotFoundError,
    OverloadedError,
    ProviderConnectionError,
    ProviderError,
    ProviderTimeoutError,
    RateLimitError,
    StreamInterrupted,
    UnknownNameError,
    UnsupportedInputError,
    WireError,
)
from windlass.core.items import Finish, Item, NoticeItem, TextItem
from windlass.core.messages import Blob, Message, Text, user
from windlass.core.request import Budget, Request, Settings, ToolSpec
from windlass.core.usage import Usage
from windlass.providers.ollama import normal_host, pick_installed
from windlass.providers.remote import join_url
from windlass.providers.retry import RetryAllowance, Retrying
from windlass.providers.vendors import VENDORS, vendor_of
from windlass.testing.faults import FaultServer, Fin, Raw, Reply, Rst, Step, Stream, ndjson, sse


def chunk(delta: Mapping[str, Any], finish: str | None = None, **more: Any) -> str:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return json.dumps({"id": "r1", "object": "chat.completion.chunk", "model": "m", "choices": [choice], **more})


USAGE = {
    "prompt_tokens": 20,
    "completion_tokens": 3,
    "total_tokens": 23,
    "prompt_tokens_details": {"cached_tokens": 16},
}
HELLO = [chunk({"role": "assistant", "content": "Hel"}), chunk({"content": "lo"}), chunk({}, "stop")]
TAIL = json.dumps({"id": "r1", "object": "chat.completion.chunk", "model": "m", "choices": [], "usage": USAGE})
ANSWER = Stream(sse(*HELLO, TAIL, "[DONE]"))


def config(server: FaultServer, name: str = "groq", **environ: str) -> Config:
    upper = name.upper()
    env = {f"WINDLASS_{upper}_BASE_URL": server.url, f"WINDLASS_{upper}_API_KEY": "key-1", **environ}
    return Config.from_environment(env)


def provider_of(server: FaultServer, name: str = "groq", **environ: str) -> Any:
    return registry.model(f"{name}:m", config(server, name, **environ))[0]


async def ask(provider: Any, request: Request | None = None) -> tuple[list[Item], Finish]:
    asked = request or Request(model="m", messages=[user("hi")], budget=Budget(None, 3))
    items: list[Item] = [item async for item in provider.stream(asked)]
    assert isinstance(items[-1], Finish)
    await provider.close()
    return items, items[-1]


async def test_a_streamed_answer_with_usage_and_one_connection_for_two_requests() -> None:
    async with FaultServer([ANSWER]) as server:
        provider = provider_of(server)
        request = Request(model="m", messages=[user("hi")])
        items = [item for _ in range(2) async for item in provider.stream(request)]
        last = items[-1]
        assert isinstance(last, Finish)
        assert last.message.text == "Hello" and last.usage == Usage(20, 3, cache_read_tokens=16)
        assert server.connections == 1 and len(server.requests) == 2
        sent = server.requests[0]
        assert sent.target == "/v1/chat/completions" and sent.headers["authorization"] == "Bearer key-1"
        await provider.close()


async def test_an_answer_that_comes_whole_is_taken_too() -> None:
    body = {
        "id": "x",
        "model": "m",
        "choices": [{"message": {"role": "assistant", "content": "Hi"}, "finish_reason": "stop"}],
    }
    async with FaultServer(
        [Reply(200, body=json.dumps(body).encode(), headers={"content-type": "application/json"})]
    ) as server:
        items, finish = await ask(provider_of(server))
    assert [type(item) for item in items] == [TextItem, Finish] and finish.message.text == "Hi"


@pytest.mark.parametrize("broken", [Fin(), Rst()])
async def test_r01_r02_connection_lost_before_the_answer_is_retried(broken: Step) -> None:
    async with FaultServer([broken, ANSWER]) as server:
        provider = Retrying(provider_of(server).provider, base=0.001)
        items, finish = await ask(provider)
    notices = [item for item in items if isinstance(item, NoticeItem)]
    assert finish.message.text == "Hello" and [notice.kind for notice in notices] == ["retry"]


async def test_r04_refused_connection_is_typed_and_says_what_to_do() -> None:
    async with FaultServer([ANSWER]) as server:
        url = server.url
    provider = registry.model("llama_cpp:m", Config.from_environment({"LLAMA_CPP_BASE_URL": url}))[0]
    with pytest.raises(ProviderConnectionError, match="running") as caught:
        await ask(Retrying(provider.provider, base=0.001))
    assert caught.value.provider == "llama_cpp" and caught.value.endpoint == f"{url}/v1/chat/completions"
    assert caught.value.attempt == 3


async def test_r07_reset_amid_the_answer_is_interrupted_with_its_text() -> None:
    async with FaultServer([Stream(sse(HELLO[0]), end="rst")]) as server:
        with pytest.raises(StreamInterrupted) as caught:
            await ask(provider_of(server))
    assert caught.value.partial == "Hel"


@pytest.mark.parametrize("end", ["keep", "fin"])
async def test_r10_clean_end_without_the_terminal_event_is_interrupted(end: Any) -> None:
    async with FaultServer([Stream(sse(*HELLO[:2]), end=end)]) as server:
        with pytest.raises(StreamInterrupted) as caught:
            await ask(provider_of(server))
    assert caught.value.partial == "Hello"


async def test_r15_error_event_in_a_stream_is_the_error_it_says() -> None:
    events = [
        'event: message_start\ndata: {"type":"message_start","message":{"id":"m","type":"message","role":"assistant",'
        '"content":[],"model":"c","stop_reason":null,"usage":{"input_tokens":1,"output_tokens":0}}}\n\n',
        'event: error\ndata: {"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}\n\n',
    ]
    async with FaultServer([Stream([event.encode() for event in events])]) as server:
        with pytest.raises(OverloadedError) as caught:
            await ask(Retrying(provider_of(server, "anthropic").provider, base=0.001))
    assert caught.value.status == 529


async def test_r16_captive_portal_is_named() -> None:
    page = Reply(200, body=b"<html><body>Please log in</body></html>", headers={"content-type": "text/html"})
    async with FaultServer([page]) as server:
        with pytest.raises(WireError, match="login page"):
            await ask(provider_of(server))


def failure(status: int, message: str = "no", kind: str = "error", **headers: str) -> Reply:
    body = json.dumps({"error": {"message": message, "type": kind, "code": None}}).encode()
    return Reply(
        status,
        body=body,
        headers={"content-type": "application/json", **{k.replace("_", "-"): v for k, v in headers.items()}},
    )


@pytest.mark.parametrize(
    ("status", "message", "kind", "attempts"),
    [
        (400, "bad field", BadRequestError, 1),
        (400, "maximum context length is 8192 tokens", ContextExceededError, 1),
        (401, "invalid key", AuthError, 1),
        (403, "not allowed", AuthError, 1),
        (404, "no such model", ModelNotFoundError, 1),
        (408, "slow", ProviderTimeoutError, 3),
        (413, "too big", BadRequestError, 1),
        (429, "slow down", RateLimitError, 3),
        (500, "oops", OverloadedError, 3),
        (503, "busy", OverloadedError, 3),
        (529, "overloaded", OverloadedError, 3),
    ],
)
async def test_r19_which_errors_are_asked_again(
    status: int, message: str, kind: type[ProviderError], attempts: int
) -> None:
    async with FaultServer([failure(status, message)]) as server:
        with pytest.raises(kind) as caught:
            await ask(Retrying(provider_of(server).provider, base=0.001))
        assert len(server.requests) == attempts
    assert caught.value.status == status and caught.value.provider == "groq"


async def test_r19_refused_credential_is_renewed_once() -> None:
    async with FaultServer([failure(401), ANSWER]) as server:
        inner = provider_of(server).provider
        renewed: list[int] = []

        async def refresh() -> bool:
            renewed.append(1)
            inner.headers["authorization"] = "Bearer key-2"
            return True

        inner.refresh = refresh
        _, finish = await ask(Retrying(inner))
        assert finish.message.text == "Hello" and renewed == [1]
        assert server.requests[1].headers["authorization"] == "Bearer key-2"


@pytest.mark.parametrize(
    ("headers", "expected"),
    [({"retry_after": "2"}, 2.0), ({"retry_after_ms": "1500"}, 1.5), ({"retry_after": "-5"}, 0.0), ({}, None)],
)
async def test_r17_waits_that_the_server_asks_for_are_kept_to(
    headers: dict[str, str], expected: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []

    async def no_sleep(seconds: float) -> None:
        waits.append(seconds)

    monkeypatch.setattr(clock, "sleep", no_sleep)
    async with FaultServer([failure(429, **headers), ANSWER]) as server:
        items, _ = await ask(Retrying(provider_of(server).provider, base=0.5))
    notice = next(item for item in items if isinstance(item, NoticeItem))
    assert notice.delay == waits[0] and notice.attempt == 2
    if expected is None:
        assert 0.25 <= waits[0] <= 0.5
    else:
        assert waits == [expected]


async def test_r17_an_absurd_wait_ends_the_attempts_and_is_reported() -> None:
    async with FaultServer([failure(429, retry_after="1000000000")]) as server:
        with pytest.raises(RateLimitError) as caught:
            await ask(Retrying(provider_of(server).provider, base=0.001))
        assert len(server.requests) == 1 and caught.value.retry_after == 1e9


async def test_r20_a_hundred_agents_do_not_storm_a_provider_that_is_down() -> None:
    async with FaultServer([failure(503)]) as server:
        provider = Retrying(provider_of(server).provider, base=0.001)

        async def one() -> None:
            with pytest.raises(OverloadedError):
                async for _ in provider.stream(Request(model="m", messages=[user("x")], budget=Budget(None, 3))):
                    pass

        await asyncio.gather(*[one() for _ in range(100)])
        assert len(server.requests) <= 110
        await provider.close()


def test_r20_the_allowance_fills_up_again() -> None:
    allowance = RetryAllowance()
    assert [allowance.take(), allowance.take(), allowance.take()] == [True, True, False]
    for _ in range(13):
        allowance.requested()
    assert allowance.take()


async def test_a_deadline_of_the_request_bounds_its_waits() -> None:
    async with FaultServer([failure(503, retry_after="30")]) as server:
        with pytest.raises(OverloadedError):
            await ask(provider_of(server), Request(model="m", messages=[user("x")], budget=Budget(5.0, 3)))
        assert len(server.requests) == 1


async def test_closing_the_stream_early_frees_the_connection() -> None:
    hold = asyncio.Event()
    async with FaultServer([Stream([*sse(HELLO[0]), hold])]) as server:
        provider = provider_of(server)
        stream = provider.stream(Request(model="m", messages=[user("x")]))
        assert isinstance(await anext(stream), TextItem)
        await stream.aclose()
        hold.set()
        await provider.close()


async def test_r26_ollama_substitutes_an_installed_model_with_a_warning() -> None:
    missing = Reply(
        404,
        body=b'{"error":"model \\"qwen3:9b\\" not found"}',
        headers={"content-type": "application/json"},
    )
    tags = Reply(
        200, body=b'{"models":[{"name":"llama3:8b"},{"name":"qwen3:4b"}]}', headers={"content-type": "application/json"}
    )
    lines = [
        '{"model":"qwen3:4b","message":{"role":"assistant","content":"Hi"},"done":false}',
        '{"model":"qwen3:4b","message":{"role":"assistant","content":""},"done":true,"done_reason":"stop",'
        '"prompt_eval_count":5,"eval_count":2}',
    ]
    answer = Stream(ndjson(*lines), headers={"content-type": "application/x-ndjson"})
    async with FaultServer([missing, tags, answer]) as server:
        provider = provider_of(server, "ollama")
        items, finish = await ask(provider, Request(model="qwen3:9b", messages=[user("hi")]))
        assert json.loads(server.requests[2].body)["model"] == "qwen3:4b"
    notice = items[0]
    assert isinstance(notice, NoticeItem) and notice.kind == "substituted" and notice.model == "qwen3:4b"
    assert finish.message.text == "Hi" and finish.usage == Usage(5, 2)


def test_ollama_families_and_hosts() -> None:
    assert pick_installed("qwen3:9b", ["llama3:8b", "qwen3:4b"]) == "qwen3:4b"
    assert pick_installed("other", ["llama3:8b"]) == "llama3:8b"
    assert pick_installed("other", []) is None
    assert normal_host("0.0.0.0:9999") == "http://127.0.0.1:9999"


async def test_ollama_variables_count_where_the_caller_says_nothing() -> None:
    line = '{"model":"q","message":{"role":"assistant","content":"x"},"done":true,"done_reason":"stop"}'
    async with FaultServer([Stream(ndjson(line), headers={"content-type": "application/x-ndjson"})]) as server:
        environ = {"OLLAMA_TEMPERATURE": "0.1", "OLLAMA_NUM_PREDICT": "128", "OLLAMA_BASE_URL": server.url}
        agent = Agent("ollama:q", config=Config.from_environment(environ))
        await agent.run("hi")
        await agent.run("hi", max_tokens=50, temperature=0.9)
        first, second = [json.loads(request.body)["options"] for request in server.requests]
        await agent.destroy()
    assert (first["num_predict"], first["temperature"]) == (128, 0.1)
    assert (second["num_predict"], second["temperature"]) == (50, 0.9)


async def test_anthropic_sends_its_headers_breakpoints_and_reports_the_cache() -> None:
    usage = {"input_tokens": 4, "cache_read_input_tokens": 90, "cache_creation_input_tokens": 6, "output_tokens": 1}
    head = {"id": "m", "type": "message", "role": "assistant", "content": [], "model": "claude-sonnet-4-5"}
    start = {"type": "message_start", "message": {**head, "usage": usage}}
    events = [
        start,
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Hi"}},
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 7}},
        {"type": "message_stop"},
    ]
    parts = [f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode() for event in events]
    async with FaultServer([Stream(parts, headers={"content-type": "text/event-stream"})]) as server:
        provider = registry.model("anthropic:claude-sonnet-4-5", config(server, "anthropic"))[0]
        request = Request(
            model="claude-sonnet-4-5",
            messages=[user("a"), Message("assistant", (Text("b"),)), user("c")],
            system="You help.",
            tools=(ToolSpec("t"),),
            settings=Settings(max_tokens=100_000),
        )
        _, finish = await ask(provider, request)
        sent = server.requests[0]
    body = json.loads(sent.body)
    assert sent.headers["x-api-key"] == "key-1" and sent.headers["anthropic-version"] == "2023-06-01"
    assert sent.target == "/v1/messages" and body["max_tokens"] == 64000
    marks = [body["system"][-1], body["tools"][-1], body["messages"][-1]["content"][-1]]
    assert all(part["cache_control"] == {"type": "ephemeral"} for part in marks)
    assert str(body).count("cache_control") == 3
    assert finish.usage == Usage(100, 7, 90, 6)


async def test_a_key_given_as_an_argument_wins() -> None:
    async with FaultServer([ANSWER]) as server:
        agent = Agent("groq:m", config=config(server), api_key="given")
        await agent.run("hi")
        await agent.destroy()
        assert server.requests[0].headers["authorization"] == "Bearer given"


async def test_openrouter_headers_and_reported_cost_wins() -> None:
    tail = json.dumps({"id": "r", "model": "m", "choices": [], "usage": {**USAGE, "cost": 0.00125}})
    async with FaultServer([Stream(sse(*HELLO, tail, "[DONE]"))]) as server:
        environ = {"OPENROUTER_HTTP_REFERER": "https://me.example", "OPENROUTER_APP_NAME": "Mine"}
        agent = Agent("openrouter:m", config=config(server, "openrouter", **environ))
        result = await agent.run("hi")
        headers = server.requests[0].headers
        await agent.destroy()
    assert headers["http-referer"] == "https://me.example" and headers["x-openrouter-title"] == "Mine"
    assert result.stats.cost == 1_250_000 and str(result.cost) == "0.00125"


async def test_a_table_of_the_users_is_a_vendor() -> None:
    async with FaultServer([ANSWER]) as server:
        table = {
            "dialect": "openai-chat",
            "base_url": f"{server.url}/v1",
            "api_key": "env:MY_KEY",
            "auth_header": {"name": "X-Key", "scheme": "Api-Key"},
            "headers": {"x-team": "blue"},
            "extra_body": {"service_tier": "flex"},
            "capabilities": {"vision": False},
        }
        mine = Config(environ={"MY_KEY": "s3"}, providers={"mine": table})
        agent = Agent("mine:m", config=mine)
        result = await agent.run("hi")
        sent = server.requests[0]
        with pytest.raises(UnsupportedInputError, match="image"):
            await agent.run("look", images=[Blob(b"\x89PNG", "image/png")])
        await agent.destroy()
    assert result.text == "Hello" and sent.headers["x-key"] == "Api-Key s3" and sent.headers["x-team"] == "blue"
    assert json.loads(sent.body)["service_tier"] == "flex"


@pytest.mark.parametrize("name", sorted(VENDORS))
def test_every_vendor_can_be_made_and_names_its_key(name: str) -> None:
    empty = Config.from_environment({})
    if VENDORS[name].key == "required":
        with pytest.raises(MissingKeyError, match=r"Set \w+.*api_key") as caught:
            registry.model(f"{name}:x", empty)
        variable = str(caught.value).split("Set ", 1)[1].split(",", 1)[0]
        provider, model, full = registry.model(f"{name}:x", Config.from_environment({variable: "k"}))
    else:
        provider, model, full = registry.model(f"{name}:x", empty)
    assert (provider.name, model, full) == (name, "x", f"{name}:x")


def test_bad_names_and_tables_are_typed() -> None:
    with pytest.raises(UnknownNameError, match="anthropic"):
        registry.model("antropic:x", Config.from_environment({}))
    for table, words in [
        ({"base_url": "http://h", "dialect": "openai"}, "openai-chat"),
        ({"base_url": "http://h", "auth_header": "X"}, "auth_header"),
        ({"base_url": "http://h", "capabilities": {"visoin": True}}, "vision"),
        ({"base_url": "http://h", "headers": {"a": 1}}, "headers"),
        ({}, "base_url"),
    ]:
        with pytest.raises(ConfigError, match=words):
            vendor_of(Config(environ={}, providers={"mine": table}).provider_settings("mine"))


@pytest.mark.parametrize(
    ("base", "expected"),
    [
        ("http://h", "http://h/v1/chat/completions"),
        ("http://h/", "http://h/v1/chat/completions"),
        ("http://h/v1", "http://h/v1/chat/completions"),
        ("http://h/v1/chat/completions", "http://h/v1/chat/completions"),
        ("https://api.z.example/api/paas/v4", "https://api.z.example/api/paas/v4/chat/completions"),
    ],
)
def test_base_urls_with_and_without_their_version(base: str, expected: str) -> None:
    assert join_url(base, "/v1/chat/completions") == expected


async def test_a_configured_provider_that_fails_never_falls_back_to_the_built_in_model() -> None:
    async with FaultServer([Raw([b"garbage\r\n\r\n"])]) as server:
        agent = Agent("groq:m", config=config(server), max_attempts=1)
        with pytest.raises(ProviderError) as caught:
            await agent.run("hi")
        await agent.destroy()
    assert caught.value.provider == "groq"
