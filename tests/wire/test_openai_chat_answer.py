"""Whole chat-completions answers and errors, that reading undoes writing, and that no bytes break the reader."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai_chat_kit import DONE, USAGE, answer, chunk, finish_of, read

from windlass.core.errors import (
    AuthError,
    BadRequestError,
    ConnectError,
    ContextExceededError,
    MissingKeyError,
    ModelNotFoundError,
    OverloadedError,
    ProviderConnectionError,
    ProviderError,
    ProviderTimeoutError,
    RateLimitError,
    SessionBusy,
    StreamInterrupted,
    TransportTimeout,
    UnsupportedInputError,
    WindlassError,
    WireError,
)
from windlass.core.items import (
    Finish,
    FinishReason,
    Item,
    NoticeItem,
    ReasoningItem,
    TextItem,
    ToolCallItem,
    UsageItem,
    parse_arguments,
)
from windlass.core.json import dumps, loads
from windlass.core.messages import Message, Part, Reasoning, Text, ToolCall
from windlass.core.usage import Usage
from windlass.wire.openai_chat import DIALECT

F = {"name": "f", "arguments": '{"a":1}'}


def test_a_whole_answer_with_everything() -> None:
    details = [{"type": "reasoning.text", "text": "hm", "signature": "s"}]
    found = answer(
        {"content": "so", "reasoning": "hm", "reasoning_details": details, "annotations": [{"type": "url_citation"}],
         "tool_calls": [{"id": "a", "type": "function", "function": F, "extra_content": {"google": 1}}]},
        "tool_calls", usage=USAGE, service_tier="flex", system_fingerprint=None,
    )  # fmt: skip
    assert found.message.parts == (
        Reasoning("hm", {"openai": {"reasoning_details": details}}),
        Text("so"),
        ToolCall("a", "f", {"a": 1}, None, {"openai": {"extra_content": {"google": 1}}}),
    )
    assert (found.reason, found.usage, found.model, found.response_id) == ("tool_call", Usage(10, 4), "m-1", "r")
    assert found.provider_metadata == {
        "openai": {"service_tier": "flex", "message": {"annotations": [{"type": "url_citation"}]}}
    }


def test_further_choices_are_kept() -> None:
    choices = [{"index": at, "message": {"content": str(at)}, "finish_reason": "stop"} for at in range(3)]
    found = DIALECT.decode_response(dumps({"choices": choices}))
    assert found.message.text == "0"
    assert found.provider_metadata == {"openai": {"choices": choices[1:]}}


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"<html>", WireError),
        (b"", WireError),
        (b"{}", WireError),
        (b"[1]", WireError),
        (b'{"choices":null}', WireError),
        (b'{"error":{"message":"x","code":"rate_limit_exceeded"}}', RateLimitError),
    ],
)
def test_what_is_no_answer(body: bytes, kind: type[ProviderError]) -> None:
    with pytest.raises(kind):
        DIALECT.decode_response(body)


@pytest.mark.parametrize(
    ("body", "code", "text"),
    [
        (b'{"error":{"message":"No.","type":"t","code":"c"}}', "c", "No"),
        (b'{"error":{"message":"No.","type":"t","code":null}}', "t", "No"),
        (b'[{"error":{"code":400,"message":"No","status":"INVALID_ARGUMENT"}}]', "INVALID_ARGUMENT", "No"),
        (b'{"object":"error","message":"No","type":"BadRequestError","code":400}', "BadRequestError", "No"),
        (b'{"detail":[{"msg":"No"}]}', None, '[{"msg":"No"}]'),
        (b'{"error":"No"}', None, "No"),
        (b'"No"', None, "No"),
        (b"No", None, "No"),
        (b"", None, "no details were given"),
        (b"\xff\xfe", None, "\ufffd\ufffd"),
        (b"<h1>No</h1>", None, "<h1>No</h1>"),
    ],
)
def test_error_bodies_of_every_shape(body: bytes, code: str | None, text: str) -> None:
    error = DIALECT.decode_error(400, {"retry-after": "3"}, body, provider="p", model="m", endpoint="http://h/")
    assert (type(error), error.provider_code, error.status, error.retry_after) == (BadRequestError, code, 400, 3.0)
    assert str(error) == f"p answered 400 for model m: {text}."


@pytest.mark.parametrize(
    ("error", "status", "kind", "code"),
    [
        (ContextExceededError("x"), 400, "invalid_request_error", "context_length_exceeded"),
        (AuthError("x"), 401, "authentication_error", "auth"),
        (ModelNotFoundError("x", status=404), 404, "invalid_request_error", "model_not_found"),
        (UnsupportedInputError("x", provider="up"), 400, "invalid_request_error", "unsupported_input"),
        (BadRequestError("x", status=400), 400, "invalid_request_error", "bad_request"),
        (BadRequestError("x", provider_code="invalid_json"), 400, "invalid_request_error", "invalid_json"),
        # Reference A's ten codes, one for each kind of failure; the text of the error is never read.
        (AuthError("invalid key", provider="up", status=401), 502, "provider_error", "provider_auth_failed"),
        (RateLimitError("x", status=429), 429, "provider_error", "provider_rate_limited"),
        (OverloadedError("timeout", provider="up"), 503, "provider_error", "provider_upstream_error"),
        (ProviderTimeoutError("x"), 504, "provider_error", "provider_timeout"),
        (TransportTimeout("x", phase="idle"), 504, "provider_error", "provider_timeout"),
        (ModelNotFoundError("x", provider="up"), 404, "provider_error", "provider_not_found"),
        (BadRequestError("HTTP 429", provider="up"), 400, "provider_error", "provider_rejected_request"),
        (ProviderConnectionError("x"), 502, "provider_error", "provider_transport_error"),
        (ConnectError("x"), 502, "provider_error", "provider_transport_error"),
        (StreamInterrupted("x"), 502, "provider_error", "provider_transport_error"),
        (WireError("x"), 502, "provider_error", "provider_invalid_response"),
        (ProviderError("x"), 502, "provider_error", "provider_error"),
        (MissingKeyError("x"), 500, "provider_error", "provider_not_configured"),
        (SessionBusy("x"), 409, "invalid_request_error", "session_busy"),
        (WindlassError("x", hint="Do y."), 500, "server_error", "error"),
    ],
)
def test_errors_for_clients(error: WindlassError, status: int, kind: str, code: str) -> None:
    found, body = DIALECT.encode_error(error)
    assert (found, loads(body)) == (
        status,
        {"error": {"message": str(error), "type": kind, "param": None, "code": code}},
    )


@pytest.mark.parametrize(
    ("data", "usage"),
    [
        ({**USAGE, "prompt_tokens_details": {"cached_tokens": 6, "cache_write_tokens": 2}}, Usage(10, 4, 6, 2)),
        ({**USAGE, "prompt_cache_hit_tokens": 7, "prompt_cache_miss_tokens": 3}, Usage(10, 4, 7)),
        ({**USAGE, "completion_tokens_details": {"reasoning_tokens": 3}}, Usage(10, 4, 0, 0, 3)),
        # xAI: reasoning beside completion
        ({**USAGE, "total_tokens": 17, "completion_tokens_details": {"reasoning_tokens": 3}}, Usage(10, 7, 0, 0, 3)),
        ({"prompt_tokens": "x", "completion_tokens": -4, "prompt_tokens_details": 5}, Usage()),
        ({"prompt_tokens": 2.0, "completion_tokens": True}, Usage(2, 0)),
        ({"total_tokens": 5}, Usage(estimated=True)),
        ("free", Usage(estimated=True)),
    ],
)
def test_usage_of_many_vendors(data: Any, usage: Usage) -> None:
    assert answer({"content": "x"}, usage=data).usage == usage


@pytest.mark.parametrize(
    ("cost", "nano"), [(0.00015, 150_000), (0, 0), (1, 10**9), (-1, None), ("1", None), (True, None)]
)
def test_the_vendors_cost_is_in_nano_dollars(cost: Any, nano: int | None) -> None:
    assert answer({"content": "x"}, usage={**USAGE, "cost": cost}).cost == nano


# ------------------------------------------------------------------------------------------------------- properties

words = st.text(max_size=20)
argument_texts = st.sampled_from(["{}", '{"a":1}', '{ "a" : "ł" }', "{bad", "[1]"])


def make_calls(texts: list[str]) -> list[Part]:
    return [ToolCall(f"id-{at}", f"tool{at}", *parse_arguments(text)) for at, text in enumerate(texts)]


def make_finish(
    thought: str, text: str, calls: list[Part], reason: FinishReason, usage: Usage, cost: int | None
) -> Finish:
    parts: list[Part] = [*([Reasoning(thought)] if thought else []), *([Text(text)] if text else []), *calls]
    reason = "tool_call" if calls and reason == "stop" else reason
    raw = {"tool_call": "tool_calls"}.get(reason, reason)
    return Finish(Message("assistant", tuple(parts), finish_reason=reason), usage, reason, "m", "r", cost, raw)


counts = st.integers(0, 2**40)
usages = st.builds(Usage, counts, counts, counts, counts)
finishes = st.builds(
    make_finish,
    words,
    words,
    st.builds(make_calls, st.lists(argument_texts, max_size=3)),
    st.sampled_from(["stop", "length", "content_filter"]),
    usages,
    st.none() | st.integers(0, 10**12),
)


@given(finishes)
@settings(max_examples=150, deadline=None)
def test_decode_of_encode_is_the_answer(finish: Finish) -> None:
    body = DIALECT.encode_response(finish, model="m", response_id="r", created=1)
    assert DIALECT.decode_response(body) == finish


@given(finishes, st.integers(1, 40))
@settings(max_examples=150, deadline=None)
def test_decode_of_the_encoded_stream_is_the_answer(finish: Finish, step: int) -> None:
    encoder = DIALECT.stream_encoder(model="m", response_id="r", created=1)
    items: list[Item] = []
    for part in finish.message.parts:
        if isinstance(part, Text):
            items += [TextItem(char) for char in part.content]
        elif isinstance(part, Reasoning):
            items += [ReasoningItem(char) for char in part.content]
        elif isinstance(part, ToolCall):
            text = part.arguments_text if part.arguments_text is not None else dumps(part.arguments).decode()
            at = 2 * int(part.id[3:])
            items += [ToolCallItem(at, part.id, part.name), *[ToolCallItem(at, None, None, char) for char in text]]
    stream = b"".join(
        [encoder.encode(item) for item in [NoticeItem("retry", "x"), UsageItem(Usage(1, 1)), *items, finish]]
    )
    assert read(stream, step)[-1] == finish
    only = DIALECT.stream_encoder(model="m", response_id="r", created=1).encode(finish)
    assert read(only)[-1] == finish


def test_vendor_fields_survive_the_gateway() -> None:
    details = [{"type": "reasoning.encrypted", "data": "d"}]
    metadata = {
        "openai": {"service_tier": "flex", "message": {"annotations": [1]}, "choice": {"logprobs": {"content": []}}}
    }
    call = ToolCall("a", "f", {}, None, {"openai": {"extra_content": 1}})
    parts = (Reasoning("", {"openai": {"reasoning_details": details}}), call)
    finish = Finish(
        Message("assistant", parts, finish_reason="tool_call"),
        Usage(1, 1), "tool_call", "m", "r", None, "tool_calls", metadata,
    )  # fmt: skip
    assert DIALECT.decode_response(DIALECT.encode_response(finish, model="m", response_id="r", created=1)) == finish
    stream = DIALECT.stream_encoder(model="m", response_id="r", created=1).encode(finish)
    assert finish_of(stream).message == finish.message


def test_a_refusal_goes_out_as_one() -> None:
    finish = Finish(
        Message("assistant", (Text("No."),), finish_reason="refusal"), Usage(1, 1), "refusal", "m", "r", None, "stop"
    )
    body = DIALECT.encode_response(finish, model="m", response_id="r", created=1)
    assert loads(body)["choices"][0]["message"] == {"role": "assistant", "content": None, "refusal": "No."}
    assert DIALECT.decode_response(body) == finish


def test_an_interrupted_answer_ends_in_an_error_and_without_done() -> None:
    encoder = DIALECT.stream_encoder(model="m", response_id="r", created=1)
    out = encoder.encode(TextItem("so far")) + encoder.encode(Finish(Message("assistant"), reason="interrupted"))
    assert b"[DONE]" not in out
    with pytest.raises(ProviderError) as caught:
        read(out)
    assert caught.value.partial == "so far"
    assert encoder.error(OverloadedError("x")).startswith(b'data: {"error":{"message":"x","type":"provider_error"')


@given(st.text(max_size=60))
@settings(max_examples=100, deadline=None)
def test_s71_model_text_cannot_leave_its_chunk(text: str) -> None:
    encoder = DIALECT.stream_encoder(model="m", response_id="r", created=1)
    hostile = f'{text}\n\ndata: {{"error":"x"}}\r\r\u2028data: [DONE]\n\n{text}'
    items: list[Item] = [ReasoningItem(hostile), TextItem(hostile), ToolCallItem(0, "a", hostile, hostile)]
    assert read(b"".join([encoder.encode(item) for item in items]) + DONE)[:3] == items


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-5, 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
CHOICE = ("index", "delta", "message", "finish_reason", "usage", "error", "logprobs")
DELTA = (
    "content",
    "role",
    "tool_calls",
    "function_call",
    "reasoning",
    "reasoning_content",
    "reasoning_details",
    "refusal",
)
ENTRY = ("index", "id", "function", "type", "extra_content")
functions = st.fixed_dictionaries({}, optional=dict.fromkeys(("name", "arguments"), json_values))
entries = st.fixed_dictionaries({}, optional={**dict.fromkeys(ENTRY, json_values), "function": functions})
deltas = st.fixed_dictionaries(
    {}, optional={**dict.fromkeys(DELTA, json_values), "tool_calls": st.lists(entries, max_size=3) | json_values}
)
choices = st.fixed_dictionaries({}, optional={**dict.fromkeys(CHOICE, json_values), "delta": deltas, "message": deltas})
answers = st.fixed_dictionaries(
    {"choices": st.lists(choices, max_size=2) | json_values},
    optional=dict.fromkeys(("id", "model", "usage", "error", "x_groq", "other"), json_values),
)


@given(st.lists(answers, max_size=4), st.integers(1, 30))
@settings(max_examples=120, deadline=None)
def test_fuzzed_answers_never_break_the_reader(bodies: list[dict[str, Any]], step: int) -> None:
    stream = b"".join([b"data: " + dumps(body) + b"\n\n" for body in bodies])
    for data in (stream, stream + DONE, stream[: len(stream) // 2]):
        try:
            assert isinstance(read(data, step)[-1], Finish)
        except WindlassError as error:
            assert isinstance(error, ProviderError)
    for body in bodies:
        try:
            DIALECT.decode_response(dumps(body))
        except WindlassError as error:
            assert isinstance(error, ProviderError)
        assert isinstance(
            DIALECT.decode_error(500, {}, dumps(body), provider=None, model=None, endpoint=None), ProviderError
        )


@given(st.binary(max_size=80), st.integers(1, 9))
@settings(max_examples=200, deadline=None)
def test_random_bytes_never_break_the_reader(noise: bytes, step: int) -> None:
    whole = chunk({"content": "x"}) + chunk({}, "stop") + DONE
    for data in (noise, b"data: " + noise + b"\n\n", whole[:60] + noise + whole[60:]):
        try:
            read(data, step)
        except WindlassError as error:
            assert isinstance(error, ProviderError)
    assert isinstance(DIALECT.decode_error(418, {}, noise, provider=None, model=None, endpoint=None), ProviderError)
