"""Ollama's answers: whole and streamed, cut at every byte, and its errors."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ollama._types import ChatResponse
from wire_strategies import clean_text

from windlass.core.errors import (
    AuthError,
    BadRequestError,
    ContextExceededError,
    ModelNotFoundError,
    OverloadedError,
    ProviderError,
    RateLimitError,
    StreamInterrupted,
    WindlassError,
    WireError,
)
from windlass.core.items import (
    Assembler,
    Finish,
    Item,
    NoticeItem,
    ReasoningItem,
    TextItem,
    ToolCallItem,
    UsageItem,
)
from windlass.core.messages import (
    Message,
    Reasoning,
    Text,
    ToolCall,
)
from windlass.core.models import Capabilities
from windlass.core.usage import Usage
from windlass.wire.ollama import DIALECT
from windlass.wire.ollama_answer import OllamaStreamDecoder

CAPS = Capabilities()


def line(**fields: Any) -> bytes:
    return json.dumps({"model": "qwen", "created_at": "2026-01-01T00:00:00Z", "done": False, **fields}).encode() + b"\n"


def said(**fields: Any) -> bytes:
    return line(message={"role": "assistant", "content": "", **fields})


END = line(
    message={"role": "assistant", "content": ""},
    done=True,
    done_reason="stop",
    prompt_eval_count=11,
    eval_count=7,
    total_duration=5,
)
STREAM = b"".join(
    [
        said(thinking="Let "),
        said(thinking="me é👍"),
        said(content="Hel"),
        said(content="lo\u2028"),
        said(tool_calls=[{"function": {"index": 0, "name": "look", "arguments": {"a": 1}}}]),
        said(tool_calls=[{"id": "x", "function": {"index": 0, "name": "now", "arguments": {}}}]),
        END,
    ]
)
MESSAGE = Message(
    "assistant",
    (Reasoning("Let me é👍"), Text("Hello\u2028"), ToolCall("call_0", "look", {"a": 1}), ToolCall("x", "now", {})),
    finish_reason="tool_call",
)


def feed(data: bytes, *sizes: int) -> list[Item]:
    decoder = DIALECT.stream_decoder()
    out: list[Item] = []
    for size in sizes:
        out += decoder.feed(data[:size])
        data = data[size:]
    return out + decoder.feed(data) + decoder.close()


def finish_of(items: list[Item]) -> Finish:
    assert [isinstance(item, Finish) for item in items].count(True) == 1
    finish = items[-1]
    assert isinstance(finish, Finish)
    return finish


def test_whole_stream() -> None:
    items = feed(STREAM)
    finish = finish_of(items)
    assert finish.message == MESSAGE
    assert (finish.reason, finish.raw, finish.model, finish.usage) == ("tool_call", "stop", "qwen", Usage(11, 7))
    assert finish.provider_metadata == {"ollama": {"total_duration": 5}}
    assert items[:-1] == [
        ReasoningItem("Let "),
        ReasoningItem("me é👍"),
        TextItem("Hel"),
        TextItem("lo\u2028"),
        ToolCallItem(0, "call_0", "look", '{"a":1}'),
        ToolCallItem(1, "x", "now", "{}"),
        UsageItem(Usage(11, 7)),
    ]


def test_r13_every_byte_split() -> None:
    whole = feed(STREAM)
    for at in range(len(STREAM)):
        assert feed(STREAM, at) == whole
    assert feed(STREAM, *[1] * len(STREAM)) == whole
    assert feed(b"\r\n" + STREAM.replace(b"\n", b"\r\n\n"), *[5] * 200) == whole


def test_r09_r10_every_cut_is_an_interruption() -> None:
    for at in range(len(STREAM) - 1):
        decoder = DIALECT.stream_decoder()
        assert not any(isinstance(item, Finish) for item in decoder.feed(STREAM[:at]))
        with pytest.raises(StreamInterrupted) as caught:
            decoder.close()
        assert "Hello\u2028".startswith(caught.value.partial)
    assert feed(STREAM[:-1]) == feed(STREAM)


def test_r14_bad_line_keeps_the_partial() -> None:
    for bad in (b"{oops}\n", b"[1]\n", b"\xff\n"):
        with pytest.raises(WireError) as caught:
            feed(said(content="par") + bad)
        assert caught.value.partial == "par"


def test_r15_error_line_is_a_server_failure() -> None:
    with pytest.raises(OverloadedError, match="runner died") as caught:
        feed(said(content="par") + b'{"error":"runner died"}\n')
    assert caught.value.partial == "par"
    with pytest.raises(ContextExceededError):
        feed(b'{"error":{"message":"prompt is too long; it exceeds the context window"}}\n')


def test_r16_web_page() -> None:
    with pytest.raises(WireError, match="web page"):
        feed(b"<html>\nno\n</html>")
    with pytest.raises(WireError, match="web page"):
        feed(b"<html>")


def test_lines_are_bounded() -> None:
    decoder = OllamaStreamDecoder(max_line=1000)
    decoder.feed(said(content="par"))
    with pytest.raises(WireError, match="larger than 1000 bytes") as caught:
        for _ in range(11):
            decoder.feed(b"x" * 100)
    assert caught.value.partial == "par"


@pytest.mark.parametrize(("raw", "reason"), [("stop", "stop"), ("length", "length"), ("load", "stop"), ("new", "stop")])
def test_done_reasons(raw: str, reason: str) -> None:
    finish = finish_of(feed(said(content="a") + line(done=True, done_reason=raw) + b"after the end"))
    assert (finish.reason, finish.raw, finish.usage) == (reason, raw, Usage(estimated=True))


def test_r22_odd_arguments_and_repeated_ids() -> None:
    calls = [
        {"id": "a", "function": {"name": "x", "arguments": '{"k": 1}'}},
        {"id": "a", "function": {"name": "x", "arguments": "oops"}},
        {"function": {"name": "y"}},
        "junk",
    ]
    items = feed(said(tool_calls=calls) + END)
    assert [item.id for item in items if isinstance(item, ToolCallItem)] == ["a", "call_1", "call_2", "call_3"]
    first, second, third, fourth = finish_of(items).message.tool_calls
    assert first == ToolCall("a", "x", {"k": 1}, '{"k": 1}')
    assert (second.id, second.arguments, second.arguments_text) == ("call_1", None, "oops")
    assert (third.id, third.arguments) == ("call_2", {})
    assert fourth.name == ""


def encode_stream(items: list[Item]) -> bytes:
    encoder = DIALECT.stream_encoder(model="qwen", response_id="r", created=1)
    return b"".join([encoder.encode(item) for item in items])


def test_encoded_stream_is_the_same_stream() -> None:
    items = feed(STREAM)
    data = encode_stream([NoticeItem("retry", "again"), *items])
    for row in data.splitlines():
        ChatResponse.model_validate_json(row)
    again = finish_of(feed(data))
    assert (again.message, again.usage) == (MESSAGE, Usage(11, 7))
    assert finish_of(feed(encode_stream([items[-1]]))).message == MESSAGE


def test_s71_every_line_reader_sees_the_same_lines() -> None:
    evil = "x\u2028y\u2029z\x85\n\r\x1c\x0b"
    data = encode_stream([TextItem(evil), Finish(Message("assistant", (Text(evil),)))])
    assert len(data.decode().splitlines()) == len(data.splitlines()) == 2
    assert finish_of(feed(data)).message.text == evil


def test_interrupted_finish_is_an_error_line() -> None:
    with pytest.raises(ProviderError, match="cut short upstream"):
        feed(encode_stream([TextItem("a"), Finish(Message("assistant", (Text("a"),)), reason="interrupted")]))


@given(
    clean_text,
    clean_text,
    st.lists(st.dictionaries(clean_text, clean_text, max_size=2), max_size=3),
    st.integers(1, 40),
)
@settings(max_examples=60, deadline=None)
def test_answer_round_trip(thought: str, text: str, arguments: list[dict[str, Any]], size: int) -> None:
    calls = [ToolCall(f"id_{at}", "look", given) for at, given in enumerate(arguments)]
    reason = "tool_call" if calls else "stop"
    finish = Finish(
        Message("assistant", (Reasoning(thought), Text(text), *calls), finish_reason=reason), Usage(3, 4), reason
    )
    body = DIALECT.encode_response(finish, model="qwen", response_id="r", created=1)
    got = DIALECT.decode_response(body)
    assert (got.message, got.usage, got.reason) == (finish.message, finish.usage, finish.reason)
    data = encode_stream([ReasoningItem(thought), TextItem(text), finish])
    items = feed(data, *[size] * (len(data) // size))
    assert finish_of(items).message == finish.message
    assembler = Assembler()
    for item in items:
        assembler.add(item)
    assert assembler.message(finish_reason=reason) == finish.message


KEYS = ["role", "content", "images", "thinking", "tool_calls", "function", "name", "arguments", "id", "stop"]
WORDS = ["user", "assistant", "tool"]
junk = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=6), st.sampled_from(WORDS)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(KEYS), inner, max_size=5)),
    max_leaves=15,
)


@given(st.dictionaries(st.sampled_from(["message", "done", "done_reason", "eval_count", "error"]), junk))
@settings(max_examples=50, deadline=None)
def test_fuzzed_answers_raise_only_our_errors(body: dict[str, Any]) -> None:
    data = json.dumps(body).encode()
    for read_it in (lambda: DIALECT.decode_response(data), lambda: feed(data + b"\n" + END)):
        try:
            read_it()
        except WindlassError:
            pass


TOP = ["messages", "tools", "options", "think", "format", "tool_choice", "stream"]


@given(st.dictionaries(st.sampled_from(TOP), junk))
@settings(max_examples=50, deadline=None)
def test_fuzzed_requests_raise_only_our_errors(body: dict[str, Any]) -> None:
    try:
        got = DIALECT.decode_request(json.dumps({"model": "m", **body}).encode())
        DIALECT.encode_request(got.request, CAPS, stream=True)
    except WindlassError:
        pass


# ------------------------------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (400, b'{"error":"bad option"}', BadRequestError),
        (400, b'{"error":"registry.ollama.ai/library/x does not support tools"}', BadRequestError),
        (404, b'{"error":"model \\"x\\" not found, try pulling it first"}', ModelNotFoundError),
        (429, b'{"error":"slow"}', RateLimitError),
        (500, b'{"error":"llama runner process has terminated"}', OverloadedError),
        (503, b"", OverloadedError),
        (401, b"<html>", AuthError),
    ],
)
def test_errors_are_classified(status: int, body: bytes, expected: type[ProviderError]) -> None:
    error = DIALECT.decode_error(status, {}, body, provider="ollama", model="x", endpoint=None)
    assert (type(error), error.status, error.provider) == (expected, status, "ollama")


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (BadRequestError("x"), 400),
        (ModelNotFoundError("x"), 404),
        (AuthError("x"), 401),
        (AuthError("x", provider="p"), 502),
        (OverloadedError("x"), 503),
        (WireError("x"), 502),
        (WindlassError("x"), 500),
    ],
)
def test_errors_for_clients(error: WindlassError, status: int) -> None:
    assert DIALECT.encode_error(error) == (status, b'{"error":"x"}')
