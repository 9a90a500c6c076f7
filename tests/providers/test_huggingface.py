"""Hugging Face over loopback: its router, dedicated endpoints, and Text Generation Inference old and new.

The shapes are those of github.com/huggingface/text-generation-inference (router/src: lib.rs, chat.rs, server.rs,
infer/mod.rs), version 3.3 and, where it says "old", 2.4 to 3.1.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from windlass.agent.agent import Agent
from windlass.core import registry
from windlass.core.config import Config
from windlass.core.errors import (
    AuthError,
    BadRequestError,
    ContextExceededError,
    ModelNotFoundError,
    OverloadedError,
    ProviderError,
    RateLimitError,
    StreamInterrupted,
)
from windlass.core.items import Finish, Item, NoticeItem, TextItem, ToolCallItem
from windlass.core.messages import Message, Text, ToolCall, ToolResponse, user
from windlass.core.models import Capabilities
from windlass.core.request import Budget, Request, Settings, ToolSpec
from windlass.core.usage import Usage
from windlass.providers.retry import Retrying
from windlass.testing.faults import FaultServer, Reply, Stream, sse
from windlass.testing.validity import check_openai
from windlass.wire.openai_chat import TGI

HEAD = {"object": "chat.completion.chunk", "id": "", "created": 1764000000, "model": "meta-llama/Llama-3.1-8B-Instruct",
        "system_fingerprint": "3.3.7-sha-abc"}  # fmt: skip
USAGE = {"prompt_tokens": 36, "completion_tokens": 5, "total_tokens": 41}


def chunk(delta: dict[str, Any], finish: str | None = None) -> str:
    choice = {"index": 0, "delta": {"role": "assistant", **delta}, "logprobs": None, "finish_reason": finish}
    return json.dumps({**HEAD, "choices": [choice]})


def tool_delta(arguments: str, name: str | None = None, finish: str | None = None) -> str:
    function = {"name": name, "arguments": arguments}
    return chunk({"tool_calls": [{"index": 0, "id": "0", "type": "function", "function": function}]}, finish)


TAIL = json.dumps({**HEAD, "choices": [], "usage": USAGE})
#: With `include_usage` the counts come in a chunk of their own, before [DONE].
HELLO = Stream(sse(chunk({"content": "Hel"}), chunk({"content": "lo"}), chunk({"content": ""}, "stop"), TAIL, "[DONE]"))
WEATHER = ToolSpec("get_weather", "Get it.", {"type": "object", "properties": {"location": {"type": "string"}}})
ASKED = Request(model="tgi", messages=[user("hi")], tools=(WEATHER,))


def tgi(server: FaultServer, **table: Any) -> Any:
    rows = {"mine": {"dialect": "tgi", "base_url": server.url, **table}}
    return registry.model("mine:tgi", Config(environ={}, providers=rows))[0]


async def ask(provider: Any, request: Request = ASKED) -> tuple[list[Item], Finish]:
    items: list[Item] = [item async for item in provider.stream(request)]
    assert isinstance(items[-1], Finish)
    await provider.close()
    return items, items[-1]


# ------------------------------------------------------------------------------------------------------------ router


@pytest.mark.parametrize("name", ["HF_TOKEN", "HF_API_TOKEN", "ABI_HF_API_TOKEN", "WINDLASS_HUGGINGFACE_API_KEY"])
async def test_the_router_takes_a_model_with_its_provider(name: str) -> None:
    async with FaultServer([HELLO]) as server:
        config = Config.from_environment({name: "hf_x", "WINDLASS_HUGGINGFACE_BASE_URL": f"{server.url}/v1"})
        provider, model, full = registry.model("huggingface:openai/gpt-oss-120b:cerebras", config)
        assert (model, full) == ("openai/gpt-oss-120b:cerebras", "huggingface:openai/gpt-oss-120b:cerebras")
        _, finish = await ask(provider, Request(model=model, messages=[user("hi")]))
        sent = server.requests[0]
    assert finish.message.text == "Hello" and finish.usage == Usage(36, 5)
    assert sent.target == "/v1/chat/completions" and sent.headers["authorization"] == "Bearer hf_x"
    body = json.loads(sent.body)
    assert body["model"] == "openai/gpt-oss-120b:cerebras"
    assert body["stream_options"] == {"include_usage": True}


def test_the_row() -> None:
    provider = registry.model("huggingface", Config.from_environment({"HF_TOKEN": "k"}))[0]
    assert provider.url == "https://router.huggingface.co/v1/chat/completions"
    assert provider.default_model == "openai/gpt-oss-120b"


async def test_the_routers_models() -> None:
    listed = {"object": "list", "data": [{"id": "b/two", "providers": []}, {"id": "a/one"}]}
    async with FaultServer([Reply(200, json.dumps(listed).encode(), {"content-type": "application/json"})]) as server:
        config = Config.from_environment({"HF_TOKEN": "k", "WINDLASS_HUGGINGFACE_BASE_URL": f"{server.url}/v1"})
        provider = registry.model("huggingface", config)[0]
        assert await provider.models() == ["a/one", "b/two"]
        await provider.close()
        assert server.requests[0].target == "/v1/models"


async def test_the_router_is_spoken_to_as_openai() -> None:
    """Schema, forced tool and text beside calls keep OpenAI's form there; broken arguments do not reach a parser."""
    history = [
        user("x"),
        Message("assistant", (Text("I look."), ToolCall("a", "get_weather", None, '{"cut'))),
        Message("tool", (ToolResponse("a", "r"),)),
    ]
    async with FaultServer([HELLO]) as server:
        config = Config.from_environment({"HF_TOKEN": "k", "WINDLASS_HUGGINGFACE_BASE_URL": server.url})
        request = Request(model="m", messages=history, tools=(WEATHER,), tool_choice="get_weather", output_schema={})
        await ask(registry.model("huggingface", config)[0], request)
        body = json.loads(server.requests[0].body)
    assert body["tool_choice"] == {"type": "function", "function": {"name": "get_weather"}}
    assert body["response_format"]["type"] == "json_schema"
    assert body["messages"][1]["content"] == "I look."
    assert body["messages"][1]["tool_calls"][0]["function"]["arguments"] == "{}"


# ----------------------------------------------------------------------------------------------- what TGI is asked


async def test_a_dedicated_endpoint_by_its_address() -> None:
    async with FaultServer([HELLO]) as server:
        for base in (server.url, f"{server.url}/v1", f"{server.url}/v1/chat/completions"):
            provider = tgi(server, base_url=base, api_key="env:HF")
            assert provider.url == f"{server.url}/v1/chat/completions"
        _, finish = await ask(tgi(server), Request(model="tgi", messages=[user("hi")]))
        assert "authorization" not in server.requests[0].headers
    assert finish.message.text == "Hello" and finish.usage == Usage(36, 5) and finish.response_id is None


def body(messages: list[Message] | None = None, **fields: Any) -> dict[str, Any]:
    request = Request(model="tgi", messages=messages or [user("x")], **fields)
    return json.loads(TGI.encode_request(request, Capabilities(), stream=True))


def test_tgi_is_asked_for_a_schema_and_a_tool_in_its_own_words() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string"}}}
    assert body(output_schema=schema)["response_format"] == {"type": "json", "value": schema}
    assert body(tools=(WEATHER,), tool_choice="get_weather")["tool_choice"] == "get_weather"
    assert body(tools=(WEATHER,), tool_choice="required")["tool_choice"] == "required"


def test_tgi_takes_no_schema_beside_tools_and_that_is_reported() -> None:
    """ "Grammar and tools are mutually exclusive"."""
    request = Request(model="tgi", messages=[user("x")], tools=(WEATHER,), output_schema={"type": "object"})
    assert "response_format" not in json.loads(TGI.encode_request(request, Capabilities(), stream=False))
    assert TGI.dropped_settings(request, Capabilities()) == ["output_schema"]
    assert TGI.dropped_settings(Request(model="tgi", messages=[], output_schema={}), Capabilities()) == []


@pytest.mark.parametrize(("given", "sent"), [(0.9, 0.9), (1.0, None), (None, None)])
def test_tgi_refuses_a_top_p_of_one(given: float | None, sent: float | None) -> None:
    """ "`top_p` must be > 0.0 and < 1.0"; one means the same as none."""
    assert body(settings=Settings(top_p=given)).get("top_p") == sent


def test_tgi_reads_content_or_calls_so_calls_stand_alone() -> None:
    history = [
        user("x"),
        Message("assistant", (Text("I look."), ToolCall("0", "get_weather", {"location": "P"}))),
        Message("tool", (ToolResponse("0", "r"),)),
        Message("assistant", (Text("Done."),)),
        user("y"),
    ]
    messages = body(messages=history)["messages"]
    assert messages[1]["content"] is None and messages[1]["tool_calls"][0]["id"] == "0"
    assert messages[3]["content"] == "Done." and check_openai({"messages": messages}) == []


# ----------------------------------------------------------------------------------------------- what TGI answers

DONE = chunk({"content": ""}, "stop")


async def test_r22_calls_in_pieces() -> None:
    pieces = [tool_delta("{", "get_weather"), tool_delta(' "location"'), tool_delta(': "Paris"'), tool_delta("}")]
    async with FaultServer([Stream(sse(*pieces, DONE, TAIL, "[DONE]"))]) as server:
        items, finish = await ask(tgi(server))
    assert finish.reason == "tool_call" and finish.message.tool_calls == (
        ToolCall("0", "get_weather", {"location": "Paris"}, '{ "location": "Paris"}'),
    )
    assert [item.name for item in items if isinstance(item, ToolCallItem)] == ["get_weather", None, None, None]


def old_delta(arguments: str, finish: str | None = None, name: str | None = None) -> str:
    function = {"name": name, "arguments": arguments}
    return chunk({"tool_calls": {"index": 0, "id": "", "type": "function", "function": function}}, finish)


async def test_r22_old_servers_stream_one_object_with_the_grammars_json() -> None:
    text = '{"function": {"_name": "get_weather", "location": "Paris", "n": 1}}'
    pieces = [old_delta(text[at : at + 5]) for at in range(0, len(text), 5)]
    async with FaultServer([Stream(sse(*pieces, old_delta("<|eot_id|>", "eos_token"), "[DONE]"))]) as server:
        items, finish = await ask(tgi(server))
    assert finish.message.tool_calls == (ToolCall("call_0", "get_weather", {"location": "Paris", "n": 1}),)
    assert (finish.reason, finish.raw, finish.usage.estimated) == ("tool_call", "eos_token", True)
    assert [type(item) for item in items] == [ToolCallItem, Finish]


async def test_r25_an_old_servers_call_that_was_cut_is_told_and_cannot_run() -> None:
    parts = [old_delta('{"function": {"_name": "get_weather", "loc'), old_delta("ation", "length")]
    async with FaultServer([Stream(sse(*parts, "[DONE]"))]) as server:
        _, finish = await ask(tgi(server))
    (call,) = finish.message.tool_calls
    assert (finish.reason, call.name, call.arguments) == ("length", "get_weather", None)


async def test_old_servers_that_name_the_call_or_call_no_tool() -> None:
    named = [old_delta('{"location"', name="get_weather"), old_delta(':"P"}'), chunk({"content": ""}, "eos_token")]
    none = [old_delta('{"function": {"_name": "no_tool", "content": "Hi!"}}', "eos_token")]
    async with FaultServer([Stream(sse(*named, "[DONE]")), Stream(sse(*none, "[DONE]"))]) as server:
        _, finish = await ask(tgi(server))
        assert finish.message.tool_calls[0].arguments == {"location": "P"}
        items, finish = await ask(tgi(server))
    assert finish.message == Message("assistant", (Text("Hi!"),), finish_reason="stop")
    assert [type(item) for item in items] == [TextItem, Finish]


@pytest.mark.parametrize("arguments", [{"location": "Paris"}, '{"location":"Paris"}'], ids=["old", "new"])
@pytest.mark.parametrize("call_id", ["0", 0, None, ""])
async def test_r23_whole_answers_whose_arguments_are_an_object_and_ids_missing(arguments: Any, call_id: Any) -> None:
    function = {"description": None, "name": "get_weather", "arguments": arguments}
    call = {"id": call_id, "type": "function", "function": function}
    message = {"role": "assistant", "tool_calls": [call]}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "eos_token"}
    answer = {**HEAD, "object": "chat.completion", "choices": [choice], "usage": USAGE}
    async with FaultServer([Reply(200, json.dumps(answer).encode(), {"content-type": "application/json"})]) as server:
        _, finish = await ask(tgi(server))
    call_name = "0" if call_id == "0" else "call_0"
    assert finish.message.tool_calls == (ToolCall(call_name, "get_weather", {"location": "Paris"}),)
    assert finish.reason == "tool_call"


@pytest.mark.parametrize(
    ("raw", "reason"), [("stop", "stop"), ("eos_token", "stop"), ("stop_sequence", "stop"), ("length", "length")]
)
async def test_finish_reasons(raw: str, reason: str) -> None:
    async with FaultServer([Stream(sse(chunk({"content": "x"}), chunk({"content": ""}, raw), "[DONE]"))]) as server:
        _, finish = await ask(tgi(server))
    assert (finish.reason, finish.raw) == (reason, raw)


async def test_an_agent_turns_on_a_tgi_server() -> None:
    """TGI numbers the call of every turn "0": the history that goes back has each id once."""
    calls = Stream(sse(tool_delta("{", "add"), tool_delta('"a": 1}'), DONE, TAIL, "[DONE]"))
    async with FaultServer([calls, calls, HELLO]) as server:
        rows = {"mine": {"dialect": "tgi", "base_url": server.url}}
        agent = Agent("mine:tgi", tools=[add], config=Config(environ={}, providers=rows))
        result = await agent.run("go")
        await agent.destroy()
        last = json.loads(server.requests[-1].body)
    assert result.text == "Hello" and len(server.requests) == 3
    assert check_openai(last) == [] and [m["role"] for m in last["messages"]][-4:] == [
        "assistant", "tool", "assistant", "tool",
    ]  # fmt: skip


def add(a: int) -> str:
    """Add one."""
    return str(a + 1)


# ---------------------------------------------------------------------------------------------------------- failures


def failed(status: int, text: str, kind: str | None = None) -> Reply:
    data = {"error": text} if kind is None else {"error": text, "error_type": kind}
    return Reply(status, json.dumps(data).encode(), {"content-type": "application/json"})


INPUTS = "Input validation error: `inputs` "
SUM = f"{INPUTS}tokens + `max_new_tokens` must be <= 4096. Given: 4000 `inputs` tokens and 512 `max_new_tokens`"
CREDITS = "You have exceeded your monthly included credits for Inference Providers."
UNSUPPORTED = {
    "error": {
        "message": "The requested model 'x' is not supported by any provider you have enabled.",
        "type": "invalid_request_error", "param": "model", "code": "model_not_supported",
    }
}  # fmt: skip


@pytest.mark.parametrize(
    ("reply", "kind", "word", "attempts"),
    [
        (failed(429, "Model is overloaded", "overloaded"), OverloadedError, "overloaded", 3),
        (failed(424, "Request failed during generation: CUDA", "generation"), OverloadedError, "generation", 3),
        (failed(500, "Incomplete generation", "incomplete_generation"), OverloadedError, "incomplete_generation", 3),
        (failed(422, f"{INPUTS}cannot be empty", "validation"), BadRequestError, "validation", 1),
        (failed(422, SUM, "validation"), ContextExceededError, "validation", 1),
        (
            failed(422, f"{INPUTS}must have less than 4095 tokens. Given: 5000", "validation"),
            ContextExceededError, "validation", 1,
        ),
        (failed(422, "Tool error: Grammar and tools", "tool_error"), BadRequestError, "tool_error", 1),
        (failed(422, "Template error: x", "template_error"), BadRequestError, "template_error", 1),
        (Reply(422, b"Failed to deserialize the JSON body into the target type"), BadRequestError, None, 1),
        (failed(503, "Service Unavailable"), OverloadedError, None, 3),
        (failed(401, "Invalid username or password."), AuthError, None, 1),
        (failed(402, CREDITS), BadRequestError, None, 1),
        (failed(429, "Too Many Requests"), RateLimitError, None, 3),
        (
            Reply(400, json.dumps(UNSUPPORTED).encode(), {"content-type": "application/json"}),
            ModelNotFoundError, "model_not_supported", 1,
        ),
    ],
)  # fmt: skip
async def test_r19_kinds_of_errors(reply: Reply, kind: type[ProviderError], word: str | None, attempts: int) -> None:
    async with FaultServer([reply]) as server:
        with pytest.raises(ProviderError) as caught:
            await ask(Retrying(tgi(server).provider, base=0.001), Request(
                model="tgi", messages=[user("x")], budget=Budget(None, 3)
            ))  # fmt: skip
        assert len(server.requests) == attempts
    assert type(caught.value) is kind and caught.value.provider_code == word and caught.value.provider == "mine"


@pytest.mark.parametrize(
    ("event", "kind"),
    [
        ({"error": {"message": "Model is overloaded", "http_status_code": 422}}, OverloadedError),
        ({"error": {"message": "Request failed during generation: x", "http_status_code": 422}}, OverloadedError),
        ({"error": {"message": "Incomplete generation stream", "http_status_code": 422}}, OverloadedError),
        ({"error": {"message": f"{INPUTS}cannot be empty", "http_status_code": 422}}, BadRequestError),
        ({"error": {"message": SUM, "http_status_code": 422}}, ContextExceededError),
        ({"error": "Request failed during generation", "error_type": "generation"}, OverloadedError),
        ({"error": "Input validation error: x", "error_type": "validation"}, BadRequestError),
    ],
)
async def test_r15_errors_inside_a_stream(event: dict[str, Any], kind: type[ProviderError]) -> None:
    """TGI says 422 inside its streams whatever happened, and [DONE] follows: it is no end of an answer."""
    async with FaultServer([Stream(sse(chunk({"content": "par"}), json.dumps(event), "[DONE]"))]) as server:
        with pytest.raises(ProviderError) as caught:
            await ask(tgi(server).provider)
    assert type(caught.value) is kind and caught.value.partial == "par"


@pytest.mark.parametrize("end", ["keep", "fin", "rst"])
async def test_r07_r10_cut_streams_are_interrupted(end: Any) -> None:
    async with FaultServer([Stream(sse(chunk({"content": "par"})), end=end)]) as server:
        with pytest.raises(StreamInterrupted) as caught:
            await ask(tgi(server))
    assert caught.value.partial == "par"


async def test_thinking_that_a_model_is_not_known_for_is_reported() -> None:
    async with FaultServer([HELLO]) as server:
        items, _ = await ask(tgi(server), Request(model="x", messages=[user("x")], settings=Settings(thinking="low")))
    assert isinstance(items[0], NoticeItem) and "thinking" in items[0].message
