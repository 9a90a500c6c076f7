"""What reference A adds to chat completions (inventory 1.2, 1.3, 1.5): fields, codes, limits, providers' failures."""

from __future__ import annotations

import json
from typing import Any

import httpx
import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.server.chatting import ask, error_of, said, sdk, streamed, text_of
from tests.server.conftest import InProcess, StartGateway
from tests.server.upstreams import JSON, answering, chat, refusal, sent, up
from windlass.core.config import Config
from windlass.core.errors import RequestRefused
from windlass.core.estimate import estimate_tokens
from windlass.core.messages import Message, Text, ToolCall, ToolResponse, system, user
from windlass.core.request import Request
from windlass.server.body import peek
from windlass.server.extras import is_plain, read
from windlass.server.history import fit, new_from, recent, turn_starts
from windlass.testing.faults import BlackHole, FaultServer, Reply, Rst

HI = [said("hi")]
TOOLS = [{"name": "utc"}]
FUNCTION = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}


def checked(**fields: Any) -> RequestRefused | None:
    """Return what reading a request raises."""
    try:
        read(peek(json.dumps(fields).encode()), Config(environ={}))
    except RequestRefused as error:
        return error
    return None


# ---------------------------------------------------------------------------------------------------- 1.2 validation

WRONG: list[tuple[dict[str, Any], str | None, str, str]] = [
    ({"messages": HI, "prompt": "x"}, None, "ambiguous_input", "Provide either messages or prompt, not both"),
    ({"model": "m"}, None, "missing_input", "Request must include a messages array or prompt string"),
    ({"messages": "x"}, "messages", "invalid_messages", "messages must be an array"),
    ({"messages": []}, "messages", "invalid_messages", "messages must not be empty"),
    ({"messages": ["x"]}, "messages", "invalid_messages", "Each message must be a JSON object"),
    ({"messages": [{"content": "x"}]}, "messages", "invalid_messages", "Each message must include a role"),
    ({"messages": [{"role": 5, "content": "x"}]}, "messages", "invalid_messages", "message.role must be a string"),
    ({"messages": [said("x", "wizard")]}, "messages", "invalid_messages",
     "message.role must be one of: system, user, assistant, tool"),
    ({"messages": [{"role": "user"}]}, "messages", "invalid_messages", "Each message must include content"),
    ({"messages": [{"role": "user", "content": 5}]}, "messages", "invalid_messages",
     "message.content must be a string"),
    ({"messages": [{"role": "user", "content": [5]}], "think": True}, "messages", "invalid_messages", ""),
    ({"prompt": 5}, "prompt", "invalid_prompt", "prompt must be a string"),
    ({"prompt": ""}, "prompt", "invalid_prompt", "prompt must not be empty"),
    ({"messages": HI, "provider": 5}, "provider", "invalid_provider", "provider must be a string"),
    ({"messages": HI, "provider": " "}, "provider", "invalid_provider", "provider must not be empty"),
    ({"messages": HI, "provider": "hal"}, "provider", "invalid_provider", ""),
    ({"messages": HI, "model": 5, "think": True}, "model", "invalid_model", "model must be a string"),
    ({"prompt": "x", "model": " "}, "model", "invalid_model", "model must not be empty"),
    ({"prompt": "x", "model": "a\r\nb: c"}, "model", "invalid_model", ""),
    ({"prompt": "x", "stream": "yes"}, "stream", "invalid_stream", "stream must be a boolean"),
    ({"prompt": "x", "think": 1}, "think", "invalid_think", "think must be a boolean"),
    ({"prompt": "x", "thinking": "on"}, "thinking", "invalid_thinking", "thinking must be a boolean"),
    ({"prompt": "x", "temperature": "hot"}, "temperature", "invalid_temperature", "temperature must be a number"),
    ({"prompt": "x", "temperature": 2.5}, "temperature", "invalid_temperature", ""),
    ({"prompt": "x", "repeat_penalty": True}, "repeat_penalty", "invalid_repeat_penalty",
     "repeat_penalty must be a number"),
    ({"prompt": "x", "repeat_penalty": -1}, "repeat_penalty", "invalid_repeat_penalty", ""),
    ({"prompt": "x", "session_id": 5}, "session_id", "invalid_session_id", "session_id must be a string"),
    ({"prompt": "x", "session_id": " "}, "session_id", "invalid_session_id", "session_id must not be empty"),
    ({"prompt": "x", "tenant_id": 5}, "tenant_id", "invalid_tenant_id", "tenant_id must be a string"),
    ({"prompt": "x", "tenant_id": ""}, "tenant_id", "invalid_tenant_id", "tenant_id must not be empty"),
    ({"prompt": "x", "max_context_tokens": 0}, "max_context_tokens", "invalid_max_context_tokens",
     "max_context_tokens must be a positive integer"),
    ({"prompt": "x", "max_context_tokens": 1.5}, "max_context_tokens", "invalid_max_context_tokens",
     "max_context_tokens must be a positive integer"),
    ({"prompt": "x", "max_context_tokens": 1_000_001}, "max_context_tokens", "invalid_max_context_tokens",
     "max_context_tokens must be <= 1000000"),
    ({"prompt": "x", "tools": "utc"}, "tools", "invalid_tools", "tools must be an array"),
    ({"prompt": "x", "tools": ["utc"]}, "tools", "invalid_tools", "Each tool must be a JSON object"),
    ({"prompt": "x", "tools": [{}]}, "tools", "invalid_tools", "Each tool must include a name"),
    ({"prompt": "x", "tools": [{"name": 5}]}, "tools", "invalid_tools", "tool.name must be a string"),
    ({"prompt": "x", "tools": [{"name": " "}]}, "tools", "invalid_tools", "tool.name must not be empty"),
    ({"prompt": "x", "tools": [{"name": "a b"}]}, "tools", "invalid_tools",
     "tool.name must be 1-64 chars using letters, numbers, _, -, or ."),
    ({"prompt": "x", "tools": [{"name": "x" * 65}]}, "tools", "invalid_tools",
     "tool.name must be 1-64 chars using letters, numbers, _, -, or ."),
    ({"prompt": "x", "tools": [*TOOLS, *TOOLS]}, "tools", "invalid_tools", "tool names must be unique"),
    ({"prompt": "x", "tools": [{"name": "utc", "description": 5}]}, "tools", "invalid_tools",
     "tool.description must be a string"),
    ({"prompt": "x", "tools": [{"name": "UTC"}]}, "tools", "unknown_tool",
     "One or more requested tools are not registered"),
    ({"prompt": "x", "tools": [FUNCTION], "loop_mode": "basic"}, "tools", "invalid_tools", ""),
    ({"prompt": "x", "tool_choice": 5}, "tool_choice", "invalid_tool_choice", "tool_choice must be a string"),
    ({"prompt": "x", "tool_choice": " "}, "tool_choice", "invalid_tool_choice", "tool_choice must not be empty"),
    ({"prompt": "x", "tools": TOOLS, "tool_choice": "echo"}, "tool_choice", "invalid_tool_choice",
     "tool_choice must be one of: auto, none, required, or a requested tool name"),
    ({"prompt": "x", "tool_choice": "required"}, "tool_choice", "invalid_tool_choice",
     "tool_choice requires tools unless set to auto or none"),
    ({"prompt": "x", "tools": TOOLS, "tool_choice": "utc", "stream": True}, "tool_choice", "invalid_tool_choice", ""),
    ({"prompt": "x", "loop_mode": 5}, "loop_mode", "invalid_loop_mode", "loop_mode must be a string"),
    ({"prompt": "x", "loop_mode": "forever"}, "loop_mode", "invalid_loop_mode",
     "loop_mode must be one of: basic, agent"),
    ({"prompt": "x", "agent_loop": "yes"}, "agent_loop", "invalid_agent_loop", "agent_loop must be a boolean"),
    ({"prompt": "x", "loop_until": " "}, "loop_until", "invalid_loop_until", "loop_until must not be empty"),
    ({"prompt": "x", "loop_max_turns": 0}, "loop_max_turns", "invalid_loop_max_turns",
     "loop_max_turns must be a positive integer"),
    ({"prompt": "x", "loop_max_turns": 129}, "loop_max_turns", "invalid_loop_max_turns",
     "loop_max_turns must be <= 128"),
    ({"prompt": "x", "loop_max_turns": 2, "n": 2}, "n", "invalid_n", "n must be 1 in a loop"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "param", "code", "text"), WRONG, ids=[f"{row[2]}-{at}" for at, row in enumerate(WRONG)]
)
def test_1_2_every_rule_has_its_code_param_and_message(
    fields: dict[str, Any], param: str | None, code: str, text: str
) -> None:
    error = checked(**fields)
    assert error is not None
    assert (error.status, error.kind, error.param, error.reason) == (400, "invalid_request_error", param, code)
    assert not text or error.message == text


async def test_1_2_codes_over_http(gateway: StartGateway) -> None:
    served = await gateway()
    for body in (b"{", b"[]", b'"x"', b'{"prompt":"x","session_id":"\\ud800"}', b'{"prompt":"\xff"}'):
        assert error_of(await ask(served.url, body)) == (400, "invalid_request_error", None, "invalid_json")
    for fields, param, code, _ in WRONG:
        if not is_plain(peek(json.dumps(fields).encode())):
            found = error_of(await ask(served.url, **fields))
            assert found == (400, "invalid_request_error", param, code), fields
    number = error_of(await ask(served.url, b'{"prompt":"x","repeat_penalty":1e999}'))
    assert number == (400, "invalid_request_error", "repeat_penalty", "invalid_repeat_penalty")
    number = error_of(await ask(served.url, b'{"model":"echo","messages":[{"role":"user"}],"max_tokens":1e999999999}'))
    assert number == (400, "invalid_request_error", "max_tokens", "invalid_max_tokens")


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]},
        {"messages": [*HI, {"role": "assistant", "content": None, "tool_calls": [
            {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}]},
            {"role": "tool", "tool_call_id": "c", "content": "42"}]},
        {"messages": [said("Be brief.", "system")]},
        {"messages": [said("hi", "USER")]},
        {"messages": [said(" ")]},
        {"messages": HI, "tools": [FUNCTION], "tool_choice": {"type": "function", "function": {"name": "weather"}}},
        {"messages": HI, "session_id": None, "loop_mode": None, "max_context_tokens": None, "tools": None},
    ],
)  # fmt: skip
def test_1_2_what_openai_allows_stays_allowed(fields: dict[str, Any]) -> None:
    asked = read(peek(json.dumps({"provider": "echo", **fields}).encode()), Config(environ={}))
    assert asked is not None and asked.model == "echo:auto"


@given(
    st.dictionaries(
        st.sampled_from(["prompt", "messages", "model", "tools", "tool_choice", "loop_mode", "session_id", "think"]),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(
                    st.sampled_from(["role", "content", "name", "type", "function", "x"]), inner, max_size=4
                )
            ),
            max_leaves=8,
        ),
        min_size=1,
    )
)
@settings(max_examples=100, deadline=None)
def test_s46_whatever_comes_is_read_or_refused_with_400(fields: dict[str, Any]) -> None:
    try:
        given_fields = peek(json.dumps(fields).encode())
        is_plain(given_fields)
        read(given_fields, Config(environ={}))
    except RequestRefused as error:
        assert error.status == 400 and error.reason


def test_most_requests_are_seen_to_be_plain_without_decoding() -> None:
    plain = {"model": "m", "messages": HI, "tools": [FUNCTION], "tool_choice": "required", "temperature": 1}
    assert is_plain(peek(json.dumps(plain).encode()))
    assert is_plain(peek(json.dumps(plain, indent=2).encode()))
    for more in ({"session_id": "s"}, {"tools": TOOLS}, {"tool_choice": "weather"}, {"messages": []}):
        assert not is_plain(peek(json.dumps({**plain, **more}).encode()))
    # What only looked special is still passed through.
    assert read(peek(json.dumps({**plain, "tool_choice": "weather"}).encode()), Config(environ={})) is None


async def test_what_is_not_a_s_passes_through_as_it_came(gateway: StartGateway) -> None:
    async with FaultServer(answering("hello")) as upstream:
        served = await gateway(providers=up(upstream), routes={"fake": "up:fake"})
        body = b'{ "model":"fake","messages" : [ {"role":"user","content":"hi"}], "tools":[{"type":"custom"}],"x": 1}'
        assert text_of(await ask(served.url, body)) == "hello"
        assert upstream.requests[0].body == body


# ------------------------------------------------------------------------------------------- fields that mean something


async def test_1_2_prompt_provider_and_model(gateway: StartGateway) -> None:
    async with FaultServer(answering("hello")) as upstream:
        served = await gateway(
            providers={"up": {"base_url": f"{upstream.url}/v1", "api_key": "k", "model": "usual"}},
            routes={"fast": "up:quick"},
        )
        for fields, model in (
            ({"provider": "up"}, "usual"),
            ({"provider": " UP ", "model": "AUTO"}, "usual"),
            ({"provider": "up", "model": "other"}, "other"),
            ({"provider": "up", "model": "up:other"}, "other"),
            ({"model": "fast"}, "quick"),
        ):
            assert text_of(await ask(served.url, prompt="What?", **fields)) == "hello"
            assert (sent(upstream)["model"], sent(upstream)["messages"]) == (model, [said("What?")])
        # A's aliases mean our providers, in any case; who is not configured is named as such.
        found = error_of(await ask(served.url, prompt="x", provider="Claude"))
        assert found == (500, "provider_error", None, "provider_not_configured")


async def test_1_2_a_key_may_use_only_its_models_by_provider_too(gateway: StartGateway) -> None:
    served = await gateway()
    _, secret = await served.gateway.accounts.create("one", models=["echo:*"])
    assert text_of(await ask(served.url, key=secret, prompt="x", provider="echo")) == "Echo: x"
    found = error_of(await ask(served.url, key=secret, prompt="x", provider="local"))
    assert found == (403, "permission_error", "model", "model_not_allowed")


async def test_1_2_think_temperature_and_repeat_penalty_reach_who_can_take_them(gateway: StartGateway) -> None:
    answer = {"model": "q", "message": said("hello", "assistant"), "done": True, "done_reason": "stop"}
    async with FaultServer([Reply(200, json.dumps(answer).encode(), JSON)]) as ollama, FaultServer([chat()]) as other:
        served = await gateway(
            providers={
                "ollama": {"base_url": ollama.url, "model": "q"},
                "up": {"base_url": f"{other.url}/v1", "api_key": "k", "model": "m"},
            },
        )
        wanted: dict[str, Any] = {"prompt": "x", "think": True, "temperature": 0.3, "repeat_penalty": 1.2}
        told = await ask(served.url, provider="ollama", **wanted)
        assert text_of(told) == "hello" and "x-windlass-dropped" not in told.headers
        body = sent(ollama)
        assert (body["options"]["temperature"], body["options"]["repeat_penalty"]) == (0.3, 1.2)
        assert body["think"] in (True, "medium")
        assert text_of(await ask(served.url, provider="ollama", prompt="x", thinking=False)) == "hello"
        assert sent(ollama)["think"] is False
        told = await ask(served.url, provider="up", **wanted)
        assert text_of(told) == "hello"
        assert sent(other)["temperature"] == 0.3 and "repeat_penalty" not in sent(other)
        assert set(told.headers["x-windlass-dropped"].split(", ")) == {"repeat_penalty", "thinking"}


async def test_1_2_what_a_provider_cannot_take_is_refused_where_that_is_wanted(gateway: StartGateway) -> None:
    async with FaultServer([chat()]) as upstream:
        served = await gateway(providers=up(upstream, model="m"), server={"unsupported": "refuse"})
        loops: list[dict[str, Any]] = [{}, {"loop_max_turns": 2}]
        for more in loops:
            found = error_of(await ask(served.url, prompt="x", provider="up", repeat_penalty=1.2, **more))
            assert found == (400, "invalid_request_error", None, "unsupported_input")
        assert upstream.requests == []


async def test_1_3_every_provider_streams_and_thinking_stays_thinking(gateway: StartGateway) -> None:
    """A streams for Ollama alone and sends thinking as content where content is empty; here neither is so."""
    thought = {"model": "q", "message": {"role": "assistant", "content": "", "thinking": "hm"}, "done": False}
    end = {"model": "q", "message": said("42", "assistant"), "done": True, "done_reason": "stop"}
    lines = "".join([json.dumps(row) + "\n" for row in (thought, end)]).encode()
    async with FaultServer([Reply(200, lines, {"content-type": "application/x-ndjson"})]) as ollama:
        served = await gateway(providers={"ollama": {"base_url": ollama.url, "model": "q"}})
        async with sdk(served.url) as client:
            pieces, reason = await streamed(client, model="auto", messages=HI, extra_body={"provider": "echo"})
            assert ("".join(pieces), reason) == ("Echo: hi", "stop")
            stream = await client.chat.completions.create(
                model="auto", messages=[{"role": "user", "content": "hi"}], stream=True,
                extra_body={"provider": "qwen", "think": True},
            )  # fmt: skip
            chunks = [chunk.choices[0].delta async for chunk in stream]
        assert "".join([delta.content or "" for delta in chunks]) == "42"
        assert "hm" in [getattr(delta, "reasoning_content", None) for delta in chunks]


async def test_1_3_the_official_sdk_takes_a_s_fields_as_extra_body(gateway: StartGateway) -> None:
    served = await gateway()
    async with sdk(served.url) as client:
        done = await client.chat.completions.create(
            model="auto", messages=[{"role": "user", "content": "hi"}],
            extra_body={"provider": "echo", "think": False, "max_context_tokens": 100},
        )  # fmt: skip
        assert done.choices[0].message.content == "Echo: hi" and done.choices[0].finish_reason == "stop"
        assert done.object == "chat.completion" and done.id.startswith("chatcmpl-") and done.usage is not None
        assert done.usage.total_tokens == done.usage.prompt_tokens + done.usage.completion_tokens
        with pytest.raises(openai.BadRequestError) as caught:
            await client.chat.completions.create(model="m", messages=[], extra_body={"loop_mode": "no"})
        assert (caught.value.code, caught.value.param) == ("invalid_messages", "messages")


async def test_1_3_stream_headers_and_end(gateway: StartGateway) -> None:
    served = await gateway()
    answer = await ask(served.url, prompt="hi", provider="echo", stream=True)
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert (answer.headers["cache-control"], answer.headers["x-accel-buffering"]) == ("no-cache", "no")
    frames = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
    assert frames[-1] == "[DONE]"
    last = json.loads(frames[-2])
    assert last["object"] == "chat.completion.chunk" and last["choices"][0]["delta"] == {}
    assert last["choices"][0]["finish_reason"] == "stop"


# -------------------------------------------------------------------------------------------- the empty answer (1.5)

EMPTY = chat("")


@pytest.mark.parametrize("stream", [False, True])
async def test_1_5_an_empty_answer_is_502_only_where_a_s_extras_were_used(gateway: StartGateway, stream: bool) -> None:
    async with FaultServer(answering("")) as upstream:
        served = await gateway(providers=up(upstream, model="m"))
        found = error_of(await ask(served.url, prompt="x", provider="up", stream=stream))
        assert found == (502, "provider_error", None, "empty_model_response")
        plain = await ask(served.url, model="up:m", messages=HI, stream=stream)
        assert plain.status_code == 200
        assert len(upstream.requests) == 2
        await served.gateway.accounts.flush()
        (row,) = await served.gateway.accounts.usage()
        assert row.requests == 2 and row.input_tokens + row.output_tokens == 10


# --------------------------------------------------------------------------------------- 1.5 provider failure map


@pytest.mark.parametrize(
    ("step", "status", "code", "kind"),
    [
        (refusal(401, "invalid_api_key"), 502, "provider_auth_failed", openai.InternalServerError),
        (refusal(403, "permission_denied"), 502, "provider_auth_failed", openai.InternalServerError),
        (refusal(404, "model_not_found"), 404, "provider_not_found", openai.NotFoundError),
        (refusal(429, "rate_limit_exceeded", **{"retry-after": "7"}), 429, "provider_rate_limited",
         openai.RateLimitError),
        (refusal(500, "server_error"), 503, "provider_upstream_error", openai.InternalServerError),
        (refusal(422, "invalid_value"), 400, "provider_rejected_request", openai.BadRequestError),
        (refusal(400, "context_length_exceeded"), 400, "context_length_exceeded", openai.BadRequestError),
        (Reply(200, b"{}", JSON), 502, "provider_invalid_response", openai.InternalServerError),
        (Rst(), 502, "provider_transport_error", openai.InternalServerError),
        (BlackHole(), 504, "provider_timeout", openai.InternalServerError),
    ],
)  # fmt: skip
async def test_1_5_provider_failures_are_told_by_kind_with_statuses_that_sdks_understand(
    gateway: StartGateway, step: Any, status: int, code: str, kind: type[openai.APIStatusError]
) -> None:
    async with FaultServer([step]) as upstream:
        limits = {"attempts": 1, "request_timeout": 1.0, "first_token_timeout": 0.5}
        served = await gateway(providers=up(upstream, model="m"), server=limits)
        async with sdk(served.url) as client:
            with pytest.raises(kind) as caught:
                await client.chat.completions.create(
                    model="auto", messages=[{"role": "user", "content": "hi"}], extra_body={"provider": "up"}
                )
        assert (caught.value.status_code, caught.value.code) == (status, code)
        own = code == "context_length_exceeded"
        assert caught.value.type == ("invalid_request_error" if own else "provider_error")
        if status == 429:
            assert int(caught.value.response.headers["retry-after"]) in (6, 7)


# ------------------------------------------------------------------------------------------------- max_context_tokens


async def test_1_5_max_context_tokens_drops_the_oldest_whole_turns(gateway: StartGateway) -> None:
    async with FaultServer(answering("ok")) as upstream:
        served = await gateway(providers=up(upstream, model="m"))
        call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
        messages = [
            said("Rules.", "system"), said("old " * 100), said("older answer", "assistant"), said("use it"),
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c1", "content": "42 " * 60}, said("It is 42.", "assistant"),
            said("and now?"),
        ]  # fmt: skip
        assert text_of(await ask(served.url, messages=messages, provider="up", max_context_tokens=120)) == "ok"
        roles = [message["role"] for message in sent(upstream)["messages"]]
        assert roles == ["system", "user", "assistant", "tool", "assistant", "user"]
        assert text_of(await ask(served.url, messages=messages, provider="up", max_context_tokens=30)) == "ok"
        assert sent(upstream)["messages"] == [said("Rules.", "system"), said("and now?")]
        found = error_of(await ask(served.url, messages=messages, provider="up", max_context_tokens=5))
        assert found == (400, "invalid_request_error", "max_context_tokens", "context_length_exceeded")
        assert len(upstream.requests) == 2


def conversations() -> st.SearchStrategy[list[Message]]:
    """Return histories as clients send them: turns of a user, calls with their responses, answers, system notes."""

    def turn(number: int, shape: str, text: str) -> list[Message]:
        out = [user(f"{number} {text}")]
        if shape == "two":
            out.append(user(text or "more"))
        if shape in ("call", "calls"):
            names = ["a", "b"] if shape == "calls" else ["a"]
            calls = tuple([ToolCall(f"c{number}{name}", name, {}) for name in names])
            out.append(Message("assistant", calls))
            out += [Message("tool", (ToolResponse(call.id, text),)) for call in calls]
        if shape == "note":
            out.append(system(text or "note"))
        if shape != "open":
            out.append(Message("assistant", (Text(f"answer {number}"),)))
        return out

    def whole(rows: list[tuple[str, str]], last: str) -> list[Message]:
        return [
            message for at, (shape, text) in enumerate([*rows, ("open", last)]) for message in turn(at, shape, text)
        ]

    shapes = st.sampled_from(["plain", "two", "call", "calls", "note"])
    return st.builds(whole, st.lists(st.tuples(shapes, st.text(max_size=40)), max_size=8), st.text(max_size=40))


def pairs(messages: list[Message]) -> tuple[list[str], list[str]]:
    """Return the ids of calls and of responses, in order."""
    calls = [call.id for message in messages for call in message.tool_calls]
    return calls, [part.id for message in messages for part in message.parts if isinstance(part, ToolResponse)]


@given(conversations(), st.integers(1, 400), st.booleans())
@settings(max_examples=150, deadline=None)
def test_1_5_what_is_left_out_are_whole_turns(messages: list[Message], most: int, keep: bool) -> None:
    request = Request(model="m", messages=messages, system="Rules.")
    try:
        fitted = fit(request, most, 0 if keep else None)
    except RequestRefused as error:
        assert error.reason == "context_length_exceeded"
        last = messages[turn_starts(messages)[-1] :]
        notes = [message for message in messages if message.role == "system"]
        assert keep or estimate_tokens(Request(model="m", messages=[*notes, *last], system="Rules.")) > most
        return
    left = list(fitted.messages)
    assert estimate_tokens(fitted) <= most
    rest = iter(messages)
    assert all(any(message is other for other in rest) for message in left), "what stays is in its order"
    calls, responses = pairs(left)
    assert calls == responses
    assert left[-1] == messages[-1]
    assert [m for m in messages if m.role == "system"] == [m for m in left if m.role == "system"]
    assert not keep or left[0] == messages[0]


@given(conversations(), st.integers(1, 30), st.integers(0, 40))
@settings(max_examples=150, deadline=None)
def test_retention_cuts_at_a_legal_place(messages: list[Message], most: int, fresh: int) -> None:
    stored = max(0, len(messages) - fresh)
    kept = recent(messages, stored, most)
    dropped = len(messages) - len(kept)
    assert messages[dropped:] == kept and kept[-1:] == messages[-1:]
    calls, responses = pairs(kept)
    assert calls == responses
    assert dropped in turn_starts(messages)
    assert stored - dropped <= most or dropped == turn_starts(messages)[-1]


@given(conversations(), conversations())
@settings(max_examples=150, deadline=None)
def test_prefix_merging_says_everything_once(stored: list[Message], later: list[Message]) -> None:
    stored = [*stored, Message("assistant", (Text("the answer"),))]
    new = [user("a new question"), *later]
    # The whole history again, the end of it, or nothing of it: what is appended is what is new.
    for start in {0, len(stored) // 2, len(stored) - 1}:
        incoming = [*stored[start:], *new]
        at = new_from(stored, incoming)
        assert incoming[at:] == new or [m for m in incoming[at:] if m.role != "system"] == [
            m for m in new if m.role != "system"
        ]
    assert new_from(stored, new) == 0
    # A client that sends the very same again asks its last turn again.
    again = stored[:-1]
    assert again[new_from(stored, again) :][0].role == "user"


def test_prefix_merging_by_example() -> None:
    one, two = user("one"), user("two")
    a, b = Message("assistant", (Text("A"),)), Message("assistant", (Text("B"),))
    assert new_from([], [one]) == 0
    assert new_from([one, a], [one, a, two]) == 2
    assert new_from([one, a], [two]) == 0
    assert new_from([one, a], [one]) == 0, "said again, it is meant again"
    assert new_from([one, a], [one, b, two]) == 1, "an answer that the client changed is not the stored one"
    assert new_from([one, a, two, b], [two, b, one]) == 2, "a sliding window"
    assert new_from([one, system("note"), a], [one, a, two]) == 2
    assert new_from([one, a], [one, a, system("new rule"), two]) == 2
    call = Message("assistant", (ToolCall("c", "f", {}),))
    response = Message("tool", (ToolResponse("c", "42"),))
    assert new_from([one, call], [one, call, response]) == 2
    assert new_from([one, call], [response]) == 0
    many = [user("x")] * 3000
    assert new_from(many, [*many, two]) == 3000


async def test_extras_are_one_record_each(gateway: StartGateway) -> None:
    served: InProcess = await gateway()
    await ask(served.url, prompt="x", provider="echo", session_id="s")
    await ask(served.url, prompt="x", tools=[{"name": "echo"}], tool_choice="echo")
    await ask(served.url, prompt="x", provider="echo", loop_max_turns=3)
    await served.gateway.accounts.flush()
    rows = await served.gateway.accounts.tables.fetch("SELECT * FROM account_requests ORDER BY time")
    assert len(rows) == 3
    async with httpx.AsyncClient() as client:
        counts = (await client.get(f"{served.url}/metrics?format=json", headers={"accept": "application/json"})).json()
    assert counts["successful_requests"] >= 3
