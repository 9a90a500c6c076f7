"""A client's chat-completions request as we read it, and that reading undoes writing."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from windlass.core.errors import BadRequestError, WindlassError
from windlass.core.items import parse_arguments
from windlass.core.json import dumps, loads
from windlass.core.messages import Blob, Message, Text, ToolCall, ToolResponse, UnknownPart, Uri, user
from windlass.core.models import Capabilities
from windlass.core.request import Request, Settings, ToolSpec
from windlass.wire.base import field_of
from windlass.wire.openai_chat import DIALECT, OPENROUTER

HI = [{"role": "user", "content": "hi"}]


def answered(call_id: str, response: str) -> Message:
    return Message("tool", (ToolResponse(call_id, response),))


def decode(**fields: Any) -> Request:
    return DIALECT.decode_request(dumps({"model": "m", "messages": HI, **fields})).request


def user_says(*parts: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": list(parts)}]}


def test_decode_everything_a_client_may_send() -> None:
    body = {
        "model": "m",
        "stream": True,
        "stream_options": {"include_usage": True},
        "messages": [
            {"role": "system", "content": "one"},
            {"role": "developer", "content": [{"type": "text", "text": "two"}]},
            {"role": "user", "content": "hi", "name": "bo"},
            {"role": "system", "content": "later"},
            {"role": "assistant", "content": None, "refusal": None, "function_call": {"name": "f", "arguments": "{}"}},
            {"role": "function", "name": "f", "content": "42"},
            {"role": "assistant", "content": [{"type": "text", "text": "a"}, {"type": "refusal", "refusal": "b"}]},
        ],
        "functions": [{"name": "f", "parameters": {"type": "object"}}],
        "function_call": {"name": "f"},
        "max_tokens": 5,
        "max_completion_tokens": 6,
        "stop": "x",
        "n": 2,
        "logprobs": True,
        "user": "u",
        "metadata": {"k": "v"},
        "reasoning_effort": "high",
        "response_format": {"type": "json_object"},
        "temperature": None,
    }
    decoded = DIALECT.decode_request(dumps(body))
    request = decoded.request
    assert decoded.stream
    assert decoded.extra.keys() == {"stream_options", "n", "logprobs", "user", "metadata", "response_format"}
    assert request.settings == Settings(max_tokens=6, stop=("x",), thinking="high")
    assert request.system == "one\n\ntwo"
    assert request.messages == [
        Message("user", (Text("hi"),), "bo"),
        Message("system", (Text("later"),)),
        Message("assistant", (ToolCall("call_4", "f", {}),)),
        answered("call_4", "42"),
        Message("assistant", (Text("a"), Text("b"))),
    ]
    assert (request.tools, request.tool_choice) == ((ToolSpec("f", "", {"type": "object"}),), "f")
    assert request.metadata == {"k": "v"}


def test_unknown_fields_survive_a_round_through_the_gateway() -> None:
    fields = {"logit_bias": {"1": 2}, "reasoning_effort": "xhigh", "service_tier": "flex", "tool_choice": {
        "type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": []}}}  # fmt: skip
    decoded = DIALECT.decode_request(
        dumps(
            {
                "model": "m",
                "messages": [{"role": "user", "content": "x"}],
                "tools": [{"type": "function", "function": {"name": "f"}}],
                **fields,
            }
        )
    )
    assert decoded.request.tool_choice == "required"
    again = loads(
        DIALECT.encode_request(
            replace(decoded.request, settings=replace(decoded.request.settings, extra=decoded.extra)),
            Capabilities(),
            stream=False,
        )
    )
    assert {key: again[key] for key in fields} == fields


@pytest.mark.parametrize(
    ("form", "choice"),
    [("any", "required"), ({"type": "function", "function": {"name": "f"}}, "f"), (None, "auto"), ("none", "none")],
)
def test_decode_tool_choice(form: Any, choice: str) -> None:
    assert decode(tool_choice=form).tool_choice == choice


BAD: list[tuple[dict[str, Any], str]] = [
    ({"messages": []}, "messages"),
    ({"messages": None}, "messages"),
    ({"messages": "hi"}, "messages"),
    ({"messages": [1]}, "messages[0]"),
    ({"messages": [{"content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": "user"}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": [5]}]}, "messages[0].content[0]"),
    (user_says({"type": "text"}), "messages[0].content[0].text"),
    (user_says({"text": "x"}), "messages[0].content[0].type"),
    (user_says({"type": "image_url", "image_url": 1}), "messages[0].content[0].image_url"),
    (
        user_says({"type": "image_url", "image_url": {"url": "data:image/png;base64,***"}}),
        "messages[0].content[0].image_url.url",
    ),
    (
        user_says({"type": "file", "file": {"file_data": "abc"}}),
        "messages[0].content[0].file.file_data",
    ),
    ({"messages": [{"role": "assistant"}]}, "messages[0].content"),
    ({"messages": [{"role": "assistant", "tool_calls": [{}]}]}, "messages[0].tool_calls[0].id"),
    ({"messages": [{"role": "assistant", "tool_calls": [{"id": "a"}]}]}, "messages[0].tool_calls[0].function"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id"),
    ({"messages": [{"role": "system", "content": [{"type": "later"}]}]}, "messages[0].content[0]"),
    ({"model": None}, "model"),
    ({"model": 5}, "model"),
    ({"model": ""}, "model"),
    ({"stream": "yes"}, "stream"),
    ({"temperature": 3}, "temperature"),
    ({"temperature": "hot"}, "temperature"),
    ({"temperature": True}, "temperature"),
    ({"top_p": -1}, "top_p"),
    ({"max_tokens": 2**63}, "max_tokens"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": 1.5}, "max_tokens"),
    ({"n": 10**9}, "n"),
    ({"stop": [1]}, "stop[0]"),
    ({"stop": 1}, "stop"),
    ({"seed": 2**64 - 1}, "seed"),
    ({"tools": [{"type": "custom"}]}, "tools[0].type"),
    ({"tools": [{"function": {}}]}, "tools[0].function.name"),
    ({"tools": [{"function": {"name": "a"}}, {"function": {"name": "a"}}]}, "tools[1].function.name"),
    ({"tools": [{"function": {"name": "a", "parameters": 1}}]}, "tools[0].function.parameters"),
    ({"tool_choice": "weather"}, "tool_choice"),
    ({"tool_choice": {"type": "function"}}, "tool_choice.function"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
    ({"reasoning_effort": 1}, "reasoning_effort"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "path"), BAD, ids=[f"{path}-{at}" for at, (_, path) in enumerate(BAD)])
def test_s77_a_bad_field_is_named(fields: dict[str, Any], path: str) -> None:
    with pytest.raises(BadRequestError) as caught:
        decode(**fields)
    assert field_of(caught.value) == path
    status, body = DIALECT.encode_error(caught.value)
    error = loads(body)["error"]
    assert (status, error["param"], error["type"]) == (400, path, "invalid_request_error")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b'"x"',
        b"null",
        b'{"a":' * 10_000,
        b'{"model":"\xff"}',
        b'{"n":1e400}',
        b'{"n":NaN}',
        b"[" * 100_000,
    ],
)
def test_s76_what_is_not_a_json_object_is_refused(body: bytes) -> None:
    with pytest.raises(BadRequestError, match=r"request body (is|must be)"):
        DIALECT.decode_request(body)


# ------------------------------------------------------------------------------------------------------- properties

words = st.text(max_size=20)
full = st.text(min_size=1, max_size=20)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
objects = st.dictionaries(st.text(max_size=8), json_values, max_size=4)
ids = st.from_regex(r"[A-Za-z0-9_-]{1,40}", fullmatch=True)
argument_texts = st.one_of(
    objects.map(lambda value: dumps(value).decode()), st.sampled_from(["{bad", '{ "a" : 1 }', "[1]", "null"])
)


def make_call(call_id: str, name: str, text: str) -> ToolCall:
    return ToolCall(call_id, name, *parse_arguments(text))


def make_argument_text(value: dict[str, Any]) -> str:
    return dumps(value).decode()


def make_uri(name: str) -> Uri:
    return Uri(f"https://h/{name}")


def make_unknown(value: Any) -> UnknownPart:
    return UnknownPart({"type": "future", "data": value})


def make_user(parts: list[Any], name: str | None) -> Message:
    return Message("user", tuple(parts), name)


def make_assistant(text: str, called: list[ToolCall]) -> Message:
    return Message("assistant", (*((Text(text),) if text else ()), *called))


def make_history(first: Message, rest: list[Message]) -> list[Message]:
    return [first, *rest]


argument_texts = st.builds(make_argument_text, objects) | st.sampled_from(["{bad", '{ "a" : 1 }', "[1]", "null"])
calls = st.builds(make_call, ids, full, argument_texts)
small = st.binary(max_size=8)
user_parts = st.one_of(
    st.builds(Text, words),
    st.builds(Blob, small, st.just("image/png"), st.just("image")),
    st.builds(Blob, st.binary(min_size=1, max_size=8), st.just("audio/mpeg"), st.just("audio")),
    st.builds(Blob, small, st.just("application/pdf"), st.just("document"), full),
    st.builds(make_uri, words),
    st.builds(make_unknown, json_values),
)
user_messages = st.one_of(
    st.builds(user, full),
    st.builds(make_user, st.lists(user_parts, min_size=2, max_size=4), st.none() | full),
    st.just(Message("user")),
)
assistant_messages = st.builds(make_assistant, words, st.lists(calls, max_size=3))
tool_messages = st.builds(answered, ids, words)
histories = st.builds(
    make_history, user_messages, st.lists(user_messages | assistant_messages | tool_messages, max_size=8)
)
tool_specs = st.lists(st.builds(ToolSpec, full, words, objects), max_size=3, unique_by=lambda spec: spec.name)
all_settings = st.builds(
    Settings,
    max_tokens=st.none() | st.integers(1, 2**31 - 1),
    temperature=st.none() | st.floats(0, 2),
    top_p=st.none() | st.floats(0, 1),
    top_k=st.none() | st.integers(0, 100),
    stop=st.lists(words, max_size=3).map(tuple),
    seed=st.none() | st.integers(-(2**63), 2**63 - 1),
    presence_penalty=st.none() | st.floats(-2, 2),
    repeat_penalty=st.none() | st.floats(0, 2),
    thinking=st.sampled_from([None, "off", "minimal", "low", "medium", "high"]),
)


@given(histories, tool_specs, all_settings, st.none() | full, st.booleans(), st.booleans())
@settings(max_examples=150, deadline=None)
def test_decode_of_encode_is_the_request(
    history: list[Message], tools: list[ToolSpec], asked: Settings, system: str | None, stream: bool, cached: bool
) -> None:
    request = Request(model="m", messages=history, system=system, tools=tuple(tools), settings=asked)
    caps = Capabilities(reasoning="effort", cache_breakpoints=cached)
    decoded = DIALECT.decode_request(OPENROUTER.encode_request(request, caps, stream=stream))
    assert decoded.request == request
    assert decoded.stream is stream
    assert decoded.extra == ({"stream_options": {"include_usage": True}} if stream else {})


NAMES = (
    "model", "messages", "stream", "tools", "tool_choice", "functions", "function_call", "stop", "seed", "n",
    "temperature", "max_tokens", "response_format", "reasoning_effort", "metadata", "parallel_tool_calls",
)  # fmt: skip
MESSAGE_NAMES = ("content", "name", "tool_calls", "function_call", "tool_call_id", "refusal")
roles = st.sampled_from(["user", "assistant", "tool", "system", "function"])
loose_messages = st.lists(
    st.fixed_dictionaries({"role": roles}, optional=dict.fromkeys(MESSAGE_NAMES, json_values)), max_size=3
)
loose = st.fixed_dictionaries({}, optional=dict.fromkeys(NAMES, json_values))
nearly = st.fixed_dictionaries({"model": st.just("m"), "messages": loose_messages})


@given(st.one_of(st.binary(max_size=60), loose.map(dumps), nearly.map(dumps)))
@settings(max_examples=300, deadline=None)
def test_fuzzed_bodies_are_decoded_or_refused(body: bytes) -> None:
    try:
        DIALECT.decode_request(body)
    except WindlassError as error:
        assert isinstance(error, BadRequestError)
