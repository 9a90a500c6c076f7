"""The official `openai` SDK as the oracle, over a real socket, as client of us and as judge of what we send."""

from __future__ import annotations

import contextlib
import functools
import types
import typing
from collections.abc import AsyncGenerator, Iterable
from typing import Any

import openai
import pytest
import typing_extensions
from hypothesis import given, settings
from hypothesis import strategies as st
from openai import AsyncOpenAI
from openai.types.chat.completion_create_params import (
    CompletionCreateParamsNonStreaming,
    CompletionCreateParamsStreaming,
)
from wire_server import Answer, Got, serve

from windlass.core.errors import (
    BadRequestError,
    ContextExceededError,
    ModelNotFoundError,
    OverloadedError,
    RateLimitError,
    UnsupportedInputError,
    WindlassError,
)
from windlass.core.items import Finish, Item, NoticeItem, TextItem, ToolCallItem, UsageItem
from windlass.core.json import loads
from windlass.core.messages import Blob, Message, Text, ToolCall, ToolResponse, Uri, user
from windlass.core.models import Capabilities
from windlass.core.request import Request, Settings, ToolSpec
from windlass.core.usage import Usage
from windlass.wire.base import DecodedRequest, bad_field
from windlass.wire.openai_chat import DIALECT

JSON, EVENTS = "application/json", "text/event-stream"
SCHEMA: dict[str, object] = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
WEATHER = ToolSpec("weather", "Tell the weather.", SCHEMA)


@contextlib.asynccontextmanager
async def sdk(answer: Answer) -> AsyncGenerator[tuple[AsyncOpenAI, list[Got]]]:
    """Give the SDK's client, against a loopback server that answers so, and what the server got."""

    def reply(got: Got) -> Answer:
        assert got.path == "/v1/chat/completions"
        return answer

    async with serve(reply) as server, openai.DefaultAsyncHttpxClient(trust_env=False) as http:
        client = AsyncOpenAI(api_key="k", base_url=f"{server.url}/v1", max_retries=0, http_client=http)
        yield client, server.got


FINISH = Finish(
    Message(
        "assistant",
        (Text("Łódź 🦜\n\ndata: [DONE]\u2028"), ToolCall("a", "weather", {"city": "Łódź"}), ToolCall("b", "now", {})),
        finish_reason="tool_call",
    ),
    Usage(12, 7, 4, 0, 3),
    "tool_call",
)
ITEMS: list[Item] = [
    NoticeItem("retry", "again"),
    TextItem("Łódź "),
    TextItem("🦜\n\ndata: [DONE]\u2028"),
    UsageItem(Usage(1, 1)),
    # Indexes as a vendor with content blocks counts them.
    ToolCallItem(1, "a", "weather"),
    ToolCallItem(1, None, None, '{"city":'),
    ToolCallItem(2, "b", "now", "{}"),
    ToolCallItem(1, None, None, '"Łódź"}'),
    FINISH,
]


def stream_of(items: list[Item], *, include_usage: bool = True) -> list[bytes]:
    encoder = DIALECT.stream_encoder(model="m", response_id="r-1", created=7, include_usage=include_usage)
    return [frame for item in items if (frame := encoder.encode(item))]


async def ask(client: AsyncOpenAI) -> Any:
    return await client.chat.completions.create(model="m", messages=[{"role": "user", "content": "hi"}])


async def test_what_the_sdk_sends_is_read() -> None:
    async with sdk((200, JSON, DIALECT.encode_response(FINISH, model="m", response_id="r", created=1))) as (
        client,
        got,
    ):
        await client.chat.completions.create(
            model="gpt",
            messages=[
                {"role": "developer", "content": "Be brief."},
                {
                    "role": "user",
                    "name": "bo",
                    "content": [
                        {"type": "text", "text": "look"},
                        {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw==", "detail": "low"}},
                        {"type": "image_url", "image_url": {"url": "https://h/i.png"}},
                        {"type": "input_audio", "input_audio": {"data": "YWJj", "format": "mp3"}},
                        {
                            "type": "file",
                            "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,JVBERi0="},
                        },
                    ],
                },
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [
                        {
                            "id": "a",
                            "type": "function",
                            "function": {"name": "weather", "arguments": '{"city": "Oslo"}'},
                        }
                    ],
                },
                {"role": "tool", "tool_call_id": "a", "content": "rain"},
                {"role": "user", "content": "and now?"},
            ],
            tools=[
                {
                    "type": "function",
                    "function": {"name": "weather", "description": "Tell the weather.", "parameters": SCHEMA},
                }
            ],
            tool_choice={"type": "function", "function": {"name": "weather"}},
            parallel_tool_calls=False,
            response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA, "strict": True}},
            max_completion_tokens=50,
            temperature=0.5,
            top_p=0.9,
            stop=["END"],
            seed=7,
            presence_penalty=0.5,
            frequency_penalty=-0.5,
            reasoning_effort="low",
            user="u",
            logprobs=True,
            n=1,
            metadata={"k": "v"},
        )
    decoded = DIALECT.decode_request(got[0].body)
    assert decoded == DecodedRequest(
        Request(
            model="gpt",
            system="Be brief.",
            messages=[
                Message(
                    "user",
                    (
                        Text("look"),
                        Blob(b"\x89PNG", "image/png", provider_metadata={"openai": {"detail": "low"}}),
                        Uri("https://h/i.png"),
                        Blob(b"abc", "audio/mpeg", "audio"),
                        Blob(b"%PDF-", "application/pdf", "document", "a.pdf"),
                    ),
                    "bo",
                ),
                Message("assistant", (ToolCall("a", "weather", {"city": "Oslo"}, '{"city": "Oslo"}'),)),
                Message("tool", (ToolResponse("a", "rain"),)),
                user("and now?"),
            ],
            tools=(WEATHER,),
            tool_choice="weather",
            output_schema=SCHEMA,
            settings=Settings(
                max_tokens=50,
                temperature=0.5,
                top_p=0.9,
                stop=("END",),
                seed=7,
                presence_penalty=0.5,
                frequency_penalty=-0.5,
                thinking="low",
                parallel_tool_calls=False,
            ),
            metadata={"k": "v"},
        ),
        False,
        {"user": "u", "logprobs": True, "n": 1, "metadata": {"k": "v"}},
    )


async def test_our_answer_satisfies_the_sdk() -> None:
    async with sdk((200, JSON, DIALECT.encode_response(FINISH, model="m", response_id="r-1", created=7))) as (
        client,
        _,
    ):
        answer = await ask(client)
    # The SDK builds its models without checking: check now.
    answer = type(answer).model_validate(answer.model_dump(), strict=True)
    (choice,) = answer.choices
    assert (answer.id, answer.created, answer.model, choice.finish_reason) == ("r-1", 7, "m", "tool_calls")
    assert choice.message.content == FINISH.message.text
    assert [(call.id, call.function.name, call.function.arguments) for call in choice.message.tool_calls] == [
        ("a", "weather", '{"city":"Łódź"}'),
        ("b", "now", "{}"),
    ]
    usage = answer.usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (12, 7, 19)
    assert (usage.prompt_tokens_details.cached_tokens, usage.completion_tokens_details.reasoning_tokens) == (4, 3)


async def test_our_stream_satisfies_the_sdk() -> None:
    async with (
        sdk((200, EVENTS, stream_of(ITEMS))) as (client, got),
        client.chat.completions.stream(
            model="m", messages=[{"role": "user", "content": "hi"}], stream_options={"include_usage": True}
        ) as stream,
    ):
        async for _ in stream:
            pass
        answer: Any = await stream.get_final_completion()
    decoded = DIALECT.decode_request(got[0].body)
    assert (decoded.stream, decoded.extra) == (True, {"stream_options": {"include_usage": True}})
    (choice,) = answer.choices
    assert (answer.id, answer.model, choice.finish_reason) == ("r-1", "m", "tool_calls")
    assert (choice.message.role, choice.message.content) == ("assistant", FINISH.message.text)
    assert [(call.id, call.function.name, call.function.arguments) for call in choice.message.tool_calls] == [
        ("a", "weather", '{"city":"Łódź"}'),
        ("b", "now", "{}"),
    ]
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (12, 7)


async def test_our_chunks_are_valid_and_usage_is_the_clients_choice() -> None:
    for include in (True, False):
        async with sdk((200, EVENTS, stream_of(ITEMS, include_usage=include))) as (client, _):
            stream: Any = await client.chat.completions.create(
                model="m", messages=[{"role": "user", "content": "hi"}], stream=True
            )
            chunks = [type(chunk).model_validate(chunk.model_dump(), strict=True) async for chunk in stream]
        assert chunks[0].choices[0].delta.role == "assistant"
        assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-2:] == [None, "tool_calls"]
        assert [len(chunk.choices) for chunk in chunks].count(0) == (1 if include else 0)
        assert (chunks[-1].usage is not None) is include


async def test_an_error_after_the_headers_reaches_the_sdk() -> None:
    encoder = DIALECT.stream_encoder(model="m", response_id="r", created=1)
    for last in (
        encoder.error(OverloadedError("Upstream is gone.")),
        encoder.encode(Finish(Message("assistant"), reason="interrupted")),
    ):
        async with sdk((200, EVENTS, [stream_of([TextItem("so far")])[0], last])) as (client, _):
            stream: Any = await client.chat.completions.create(
                model="m", messages=[{"role": "user", "content": "hi"}], stream=True
            )
            texts: list[str] = []
            with pytest.raises(openai.APIError, match=r"gone|partial"):
                async for chunk in stream:
                    texts += [chunk.choices[0].delta.content]
            assert texts == ["so far"]


@pytest.mark.parametrize(
    ("error", "kind", "code"),
    [
        (bad_field("messages[0].content", "must be a string"), openai.BadRequestError, "invalid_messages"),
        (ContextExceededError("Too long."), openai.BadRequestError, "context_length_exceeded"),
        (BadRequestError("No.", provider="up"), openai.BadRequestError, "provider_rejected_request"),
        (ModelNotFoundError("No.", provider="up"), openai.NotFoundError, "provider_not_found"),
        (RateLimitError("Slow down."), openai.RateLimitError, "provider_rate_limited"),
        (OverloadedError("Busy."), openai.InternalServerError, "provider_upstream_error"),
    ],
)
async def test_our_errors_are_the_sdks_errors(
    error: WindlassError, kind: type[openai.APIStatusError], code: str
) -> None:
    status, body = DIALECT.encode_error(error)
    async with sdk((status, JSON, body)) as (client, _):
        with pytest.raises(kind) as caught:
            await ask(client)
    assert caught.value.code == code
    assert caught.value.type
    assert caught.value.param == (
        "messages[0].content" if kind is openai.BadRequestError and "[0]" in str(error) else None
    )


# ------------------------------------------------------------------- our requests against the SDK's parameter types


def misfit(value: Any, hint: Any, path: str) -> str | None:
    """Return where a JSON value departs from one of the SDK's types, unknown keys included; None when it fits."""
    origin, args = typing_extensions.get_origin(hint), typing_extensions.get_args(hint)
    if hint in (Any, object):
        return None
    if origin in (typing.Union, types.UnionType):
        found = [misfit(value, arg, path) for arg in args]
        return None if None in found else "; ".join([text for text in found if text])
    if origin in (typing_extensions.Required, typing_extensions.NotRequired, typing_extensions.Annotated):
        return misfit(value, args[0], path)
    if origin in (typing.Literal, typing_extensions.Literal):
        return None if value in args else f"{path}: {value!r} is none of {args}"
    if typing_extensions.is_typeddict(hint):
        return _misfit_object(value, hint, path)
    if origin in (list, Iterable) or (isinstance(origin, type) and issubclass(origin, Iterable) and origin is not dict):
        if not isinstance(value, list):
            return f"{path}: not an array"
        return next((bad for at, item in enumerate(value) if (bad := misfit(item, args[0], f"{path}[{at}]"))), None)
    if origin is dict:
        if not isinstance(value, dict):
            return f"{path}: not an object"
        return next((bad for key, item in value.items() if (bad := misfit(item, args[1], f"{path}.{key}"))), None)
    if hint is float:
        return None if isinstance(value, (int, float)) and not isinstance(value, bool) else f"{path}: not a number"
    kind: Any = type(None) if hint is None else hint
    return None if type(value) is kind else f"{path}: {value!r} is not {kind}"


@functools.cache
def keys_of(hint: Any) -> tuple[dict[str, Any], set[str]]:
    """Return a TypedDict's types and its required keys; its own `__required_keys__` misreads annotations in strings."""
    hints = typing_extensions.get_type_hints(hint, include_extras=True)
    wanted: set[str] = set()
    inherited: set[str] = set()
    for base in typing_extensions.get_original_bases(hint):
        if typing_extensions.is_typeddict(base):
            more, required = keys_of(base)
            inherited |= more.keys()
            wanted |= required
    mark = typing_extensions.NotRequired if hint.__total__ else typing_extensions.Required
    for key in hints.keys() - inherited:
        if (typing_extensions.get_origin(hints[key]) is mark) is not hint.__total__:
            wanted.add(key)
    return hints, wanted


def _misfit_object(value: Any, hint: Any, path: str) -> str | None:
    if not isinstance(value, dict):
        return f"{path}: not an object"
    hints, wanted = keys_of(hint)
    missing = wanted - value.keys()
    unknown = value.keys() - hints.keys()
    if missing or unknown:
        return f"{path}: missing {sorted(missing)}, unknown {sorted(unknown)}"
    return next((bad for key, item in value.items() if (bad := misfit(item, hints[key], f"{path}.{key}"))), None)


def check(request: Request, caps: Capabilities, *, stream: bool) -> None:
    body = loads(DIALECT.encode_request(request, caps, stream=stream))
    kind = CompletionCreateParamsStreaming if stream else CompletionCreateParamsNonStreaming
    assert misfit(body, kind, "body") is None


def test_the_judge_is_strict() -> None:
    body: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "x"}]}
    kind = CompletionCreateParamsNonStreaming
    assert misfit(body, kind, "body") is None
    for wrong in (
        {"messages": []} | {"model": 5},
        {"model": "m"},
        {**body, "temperature": "x"},
        {**body, "unknown": 1},
        {**body, "messages": [{"role": "user", "content": "x", "extra": 1}]},
        {**body, "messages": [{"role": "user", "content": [{"type": "text"}]}]},
        {**body, "messages": [{"role": "assistant", "tool_calls": [{"id": 1}]}]},
        {**body, "tools": [{"type": "function", "function": {"nme": "x"}}]},
    ):
        assert misfit(wrong, kind, "body") is not None


CAPS = st.builds(
    Capabilities,
    vision=st.booleans(),
    documents=st.booleans(),
    structured_output=st.booleans(),
    reasoning=st.sampled_from(["none", "effort"]),
    stream_usage=st.booleans(),
    max_tokens_field=st.sampled_from(["max_tokens", "max_completion_tokens"]),
)
TEXTS = st.text(max_size=10)
IMAGE = Blob(b"\x89PNG", "image/png", provider_metadata={"openai": {"detail": "high"}})
PARTS = st.sampled_from(
    [Text("a"), IMAGE, Uri("https://h/i.png"), Blob(b"a", "audio/wav", "audio"),
     Blob(b"%PDF-", "application/pdf", "document"), Blob(b"x", "text/plain", "document", "n.txt")]
)  # fmt: skip


def make_turn(text: str, parts: list[Any], bad: bool) -> list[Message]:
    call = ToolCall("id/1", "weather", None, "{bad") if bad else ToolCall("id/1", "weather", {"city": text})
    return [
        Message("assistant", (*((Text(text),) if text else ()), call)),
        Message("tool", (ToolResponse("id/1", (Text(text), IMAGE) if bad else text),)),
        Message("user", tuple(parts), text or None),
    ]


TURNS = st.lists(st.builds(make_turn, TEXTS, st.lists(PARTS, max_size=3), st.booleans()), max_size=3)
SETTINGS = st.builds(
    Settings,
    max_tokens=st.none() | st.integers(1, 1000),
    temperature=st.none() | st.floats(0, 2),
    stop=st.lists(TEXTS, max_size=3).map(tuple),
    seed=st.none() | st.integers(0, 10),
    top_k=st.none() | st.just(5),
    thinking=st.sampled_from([None, "off", "minimal", "high", "adaptive"]),
    parallel_tool_calls=st.none() | st.booleans(),
)


@given(
    TURNS, SETTINGS, CAPS, st.none() | TEXTS, st.sampled_from(["auto", "none", "required", "weather"]),
    st.booleans(), st.booleans(), st.booleans(),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_our_requests_fit_the_sdks_types(
    turns: list[list[Message]],
    asked: Settings,
    caps: Capabilities,
    system: str | None,
    choice: str,
    tools: bool,
    schema: bool,
    stream: bool,
) -> None:
    request = Request(
        model="m",
        messages=[user("begin"), *[message for turn in turns for message in turn]],
        system=system,
        tools=(WEATHER,) if tools else (),
        tool_choice=choice,
        settings=asked,
        output_schema=SCHEMA if schema else None,
    )
    try:
        check(request, caps, stream=stream)
    except UnsupportedInputError:
        assert not (caps.vision and caps.documents)
