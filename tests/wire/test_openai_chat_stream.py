"""Chat-completions streams: what vendors really send, and every way it breaks."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace
from openai_chat_kit import DONE, USAGE, answer, calls_of, chunk, finish_of, read, tool

from windlass.core.errors import (
    AuthError,
    ContextExceededError,
    OverloadedError,
    ProviderError,
    RateLimitError,
    StreamInterrupted,
    WireError,
)
from windlass.core.items import (
    Assembler,
    Finish,
    FinishReason,
    ReasoningItem,
    TextItem,
    ToolCallItem,
    UsageItem,
)
from windlass.core.json import dumps
from windlass.core.messages import Message, Reasoning, Text, ToolCall
from windlass.core.usage import Usage
from windlass.wire.openai_chat import DIALECT

PLAIN = b"".join(
    [
        chunk({"role": "assistant", "content": ""}),
        chunk({"content": "Hel"}),
        b": OPENROUTER PROCESSING\n\n",
        chunk({"content": "ło 🦜"}, system_fingerprint="fp"),
        chunk({"content": None}),
        chunk({}, "stop"),
        chunk(usage=USAGE),
        DONE,
    ]
)
RICH = b"".join(
    [
        chunk({"role": "assistant", "content": None, "reasoning_content": "hm"}),
        chunk({"reasoning": " so", "reasoning_details": [{"type": "reasoning.text", "text": " so", "index": 0}]}),
        chunk({"content": "Let me look."}),
        chunk(tool(index=0, id="a", type="function", function={"name": "f", "arguments": ""})),
        chunk(tool(index=1, id="b", type="function", function={"name": "g", "arguments": '{"x"'})),
        chunk(tool(index=0, function={"arguments": '{"city": "Łódź"}'})),
        chunk(tool(index=1, function={"arguments": ":1}"})),
        chunk({}, "tool_calls"),
        chunk(usage={**USAGE, "cost": 0.00015}),
        DONE,
    ]
)


def test_a_plain_stream() -> None:
    items = read(PLAIN)
    assert items[:-1] == [TextItem("Hel"), TextItem("ło 🦜"), UsageItem(Usage(10, 4))]
    assert items[-1] == Finish(
        Message("assistant", (Text("Helło 🦜"),), finish_reason="stop"),
        Usage(10, 4), "stop", "m-1", "c1", None, "stop", {"openai": {"system_fingerprint": "fp"}},
    )  # fmt: skip


def test_a_rich_stream() -> None:
    found = finish_of(RICH)
    details = {"openai": {"reasoning_details": [{"type": "reasoning.text", "text": " so", "index": 0}]}}
    assert found.message.parts == (
        Reasoning("hm so", details),
        Text("Let me look."),
        ToolCall("a", "f", {"city": "Łódź"}, '{"city": "Łódź"}'),
        ToolCall("b", "g", {"x": 1}),
    )
    assert (found.reason, found.cost) == ("tool_call", 150_000)


@pytest.mark.parametrize("stream", [PLAIN, RICH], ids=["plain", "rich"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"], ids=["lf", "crlf", "cr"])
def test_r13_every_byte_split_gives_the_same_items(stream: bytes, end: bytes) -> None:
    stream = b"\xef\xbb\xbf" + stream.replace(b"\n", end).replace(b"data: {", b"data:{")
    whole = read(stream)
    assert len(whole) > 3
    assert read(stream, 1) == read(stream, 7) == whole
    for cut in range(0, len(stream), 3):
        decoder = DIALECT.stream_decoder()
        assert [*decoder.feed(stream[:cut]), *decoder.feed(stream[cut:]), *decoder.close()] == whole


@pytest.mark.parametrize("stream", [PLAIN, RICH], ids=["plain", "rich"])
def test_items_and_finish_hold_the_same_message(stream: bytes) -> None:
    items = read(stream)
    assembler = Assembler()
    for item in items:
        assembler.add(item)
    last = items[-1]
    assert isinstance(last, Finish)
    assert assembler.parts() == last.message.parts


# ------------------------------------------------------------------------------------------------------- tool calls

F = {"name": "f", "arguments": '{"a":1}'}
G = {"name": "g", "arguments": ""}
WANTED = (ToolCall("a", "f", {"a": 1}), ToolCall("b", "g", {}))


@pytest.mark.parametrize(
    "deltas",
    [
        [tool(index=0, id="a", function=F), tool(index=1, id="b", function=G)],
        [tool(id="a", function=F), tool(id="b", function=G)],
        [{"tool_calls": [{"id": "a", "function": F}, {"id": "b", "function": G}]}],
        [{"tool_calls": [{"index": 0, "id": "a", "function": F}, {"index": 1, "id": "b", "function": G}]}],
        # Google: all at index 0, told apart by id
        [tool(index=0, id="a", function=F), tool(index=0, id="b", function=G)],
        # indexes that begin at 1, or are text
        [tool(index=1, id="a", function=F), tool(index=2, id="b", function=G)],
        [tool(index="0", id="a", function=F), tool(index="1", id="b", function=G)],
        # the id repeated with each delta, or changing, or the name repeated
        [
            tool(index=0, id="a", function={"name": "f", "arguments": '{"a"'}),
            tool(index=0, id="a", function={"name": "f", "arguments": ":1}"}),
            tool(index=1, id="b", function=G),
        ],
        [
            tool(index=0, id="a", function={"name": "f", "arguments": '{"a"'}),
            tool(index=0, id="zz", function={"name": None, "arguments": ":1}"}),
            tool(index=1, id="b", function=G),
        ],
        # no index, pieces told apart by id
        [
            tool(id="a", function={"name": "f", "arguments": '{"a"'}),
            tool(id="a", function={"arguments": ":1}"}),
            tool(id="b", function=G),
            tool(id="b", function={"arguments": "{}"}),
        ],
        # arguments as an object or null
        [
            tool(index=0, id="a", function={"name": "f", "arguments": {"a": 1}}),
            tool(index=1, id="b", function={"name": "g", "arguments": None}),
        ],
        # interleaved
        [
            tool(index=0, id="a", function={"name": "f", "arguments": '{"a"'}),
            tool(index=1, id="b", function={"name": "g"}),
            tool(index=0, function={"arguments": ":1}"}),
            tool(index=1, function={"arguments": "{}"}),
        ],
    ],
)
def test_r22_calls_arrive_in_every_form(deltas: list[dict[str, Any]]) -> None:
    assert calls_of(*deltas) == WANTED


def test_r22_a_split_name_and_calls_without_index_or_id() -> None:
    assert calls_of(
        tool(index=0, id="a", function={"name": "get_"}),
        tool(index=0, function={"name": "weather"}),
        tool(index=0, function={"arguments": "{}"}),
    ) == (ToolCall("a", "get_weather", {}),)
    assert calls_of(tool(function=F), tool(function={"name": "g", "arguments": "{}"})) == (
        ToolCall("call_0", "f", {"a": 1}),
        ToolCall("call_1", "g", {}),
    )
    assert calls_of({"function_call": {"name": "f", "arguments": '{"a"'}}, {"function_call": {"arguments": ":1}"}}) == (
        ToolCall("call_0", "f", {"a": 1}),
    )


def test_r22_arguments_that_are_no_json_object_are_kept_as_text() -> None:
    bad, array = calls_of(
        tool(index=0, id="a", function={"name": "f", "arguments": "{oops"}),
        tool(index=1, id="b", function={"name": "g", "arguments": "[1]"}),
    )
    assert (bad.arguments, bad.arguments_text) == (None, "{oops")
    assert (array.arguments, array.arguments_text) == (None, "[1]")


def test_r23_a_repeated_id_is_replaced() -> None:
    first, second = calls_of(tool(index=0, id="a", function=F), tool(index=1, id="a", function=F))
    assert (first.id, second.id) == ("a", "call_1")
    whole = {"tool_calls": [{"id": "a", "function": F}, {"id": "a", "function": F}, {"function": F}]}
    assert [call.id for call in answer(whole).message.tool_calls] == ["a", "call_1", "call_2"]


def test_ids_and_names_are_emitted_once() -> None:
    again = tool(index=0, id="a", type="function", function={"name": "f", "arguments": "1"})
    assert read(chunk(again) + chunk(again) + chunk({}, "stop"))[:2] == [
        ToolCallItem(0, "a", "f", "1"),
        ToolCallItem(0, None, None, "1"),
    ]


@pytest.mark.parametrize(("pieces", "text"), [(['{"a": "x'], '{"a": "x'), ([""], ""), ([], "")])
def test_r25_a_call_cut_by_the_length_has_no_arguments(pieces: list[str], text: str) -> None:
    deltas = [tool(index=0, id="a", function=F), tool(index=1, id="b", function={"name": "g"})]
    deltas += [tool(index=1, function={"arguments": piece}) for piece in pieces]
    found = finish_of(b"".join([chunk(delta) for delta in deltas]) + chunk({}, "length") + DONE)
    assert found.reason == "length"
    assert found.message.tool_calls == (ToolCall("a", "f", {"a": 1}), ToolCall("b", "g", None, text))


def test_stop_with_calls_is_tool_call() -> None:
    assert finish_of(chunk(tool(index=0, id="a", function=F)) + chunk({}, "stop") + DONE).reason == "tool_call"
    assert finish_of(chunk({"content": "x"}) + chunk({}, "tool_calls") + DONE).reason == "stop"


# ----------------------------------------------------------------------------------------------- usage, reasoning


@pytest.mark.parametrize(
    "tail",
    [
        chunk({}, "stop", usage=USAGE) + DONE,
        chunk({}, "stop") + chunk(usage=USAGE) + chunk(usage=USAGE) + DONE,
        chunk({}, "stop", usage=USAGE) + chunk(usage=USAGE) + DONE,
        chunk({"content": "y"}, usage={**USAGE, "completion_tokens": 1}) + chunk({}, "stop", usage=USAGE) + DONE,
        chunk({}, "stop", x_groq={"usage": USAGE}) + DONE,
        chunk(None, choices=[{"index": 0, "delta": {}, "finish_reason": "stop", "usage": USAGE}]) + DONE,
        chunk({}, "stop") + chunk(usage=USAGE),
        chunk({}, "stop", usage=USAGE).removesuffix(b"\n\n"),
    ],
)
def test_r21_usage_is_never_doubled(tail: bytes) -> None:
    items = read(chunk({"content": "x"}, usage=None) + tail)
    assert items[-1] == replace(finish_of(chunk({"content": "x"}) + tail), usage=Usage(10, 4))
    reported = [item for item in items if isinstance(item, UsageItem)]
    assert len(reported) == len(set(map(repr, reported)))


def test_r21_missing_usage_is_estimated() -> None:
    assert finish_of(chunk({"content": "x"}, "stop") + DONE).usage == Usage(estimated=True)


def test_streamed_reasoning_details_are_put_together_in_order() -> None:
    def details(*items: dict[str, Any]) -> bytes:
        return chunk({"reasoning_details": list(items)})

    found = finish_of(
        details({"type": "reasoning.text", "text": "a", "index": 0})
        + details({"type": "reasoning.text", "text": "b", "index": 0, "signature": "s"})
        + details({"type": "reasoning.encrypted", "data": "e1", "index": 1})
        + chunk({"content": "x"})
        + details({"type": "reasoning.encrypted", "data": "e2", "index": 2})
        + chunk({}, "stop")
        + DONE
    )
    first = [
        {"type": "reasoning.text", "text": "ab", "index": 0, "signature": "s"},
        {"type": "reasoning.encrypted", "data": "e1", "index": 1},
    ]
    second = [{"type": "reasoning.encrypted", "data": "e2", "index": 2}]
    assert found.message.parts == (
        Reasoning("ab", {"openai": {"reasoning_details": first}}),
        Text("x"),
        Reasoning("", {"openai": {"reasoning_details": second}}),
    )


def test_reasoning_sent_in_two_fields_is_taken_once() -> None:
    assert read(chunk({"reasoning_content": "a", "reasoning": "a"}) + chunk({}, "stop"))[0] == ReasoningItem("a")


def test_mistral_chunks() -> None:
    content = [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}, {"type": "text", "text": "so"}]
    assert read(chunk({"content": content}) + chunk({}, "stop"))[:2] == [ReasoningItem("hm"), TextItem("so")]


# --------------------------------------------------------------------------------------------------------- endings


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        ("stop", "stop"),
        ("length", "length"),
        ("content_filter", "content_filter"),
        ("model_length", "length"),
        ("insufficient_system_resource", "interrupted"),
        ("brand_new", "stop"),
    ],
)
def test_r27_reasons(raw: str, reason: FinishReason) -> None:
    found = finish_of(chunk({"content": "x"}) + chunk({}, raw) + DONE)
    assert (found.reason, found.raw, found.message.finish_reason) == (reason, raw, reason)


def test_r27_a_refusal_and_an_empty_message() -> None:
    refused = finish_of(chunk({"refusal": "I can"}) + chunk({"refusal": "not."}) + chunk({}, "stop") + DONE)
    assert (refused.reason, refused.message.text) == ("refusal", "I cannot.")
    for stream in (DONE, chunk({}, "stop") + DONE, chunk({"role": "assistant", "content": ""}, "stop")):
        assert (finish_of(stream).message.parts, finish_of(stream).reason) == ((), "stop")


@pytest.mark.parametrize(
    "mark", [b"data: [DONE]\n\n", b"data:[DONE]\n\n", b"data:  [DONE] \n\n", b"data: [DONE]", b"data: [DONE]\r"]
)
def test_done_is_known_in_every_form(mark: bytes) -> None:
    assert finish_of(chunk({"content": "x"}) + mark).reason == "stop"


def test_what_follows_done_is_ignored() -> None:
    assert read(PLAIN + chunk({"content": "more"}) + b"data: {broken\n\n") == read(PLAIN)


@pytest.mark.parametrize(
    "stream",
    [
        b"",
        chunk({"content": "so far"}),
        chunk({"content": "so far"}) + b"data: [DON",
        chunk({"content": "so far"}) + chunk({}, "stop")[:-20],
        chunk({"content": "so far"}) + chunk(usage=USAGE),
        chunk({"content": "so far"}) + b": ping\n\n",
    ],
)
def test_r10_an_end_without_terminal_event_is_interrupted(stream: bytes) -> None:
    for step in (None, 1):
        with pytest.raises(StreamInterrupted) as caught:
            read(stream, step)
        assert caught.value.partial == ("so far" if stream else "")


def test_r14_a_broken_chunk_shows_itself_and_keeps_the_text() -> None:
    with pytest.raises(WireError, match=r"not valid JSON.*'\{\"choices\":\[\{bad'") as caught:
        read(chunk({"content": "so far"}) + b'data: {"choices":[{bad\n\n')
    assert caught.value.partial == "so far"


ERRORS: list[tuple[dict[str, Any], type[ProviderError], int | None]] = [
    ({"error": {"type": "overloaded_error", "message": "Overloaded"}}, OverloadedError, 529),
    ({"error": {"message": "Server error", "type": "server_error", "code": None}}, OverloadedError, 529),
    ({"error": {"code": 503, "message": "Loading model", "type": "unavailable_error"}}, OverloadedError, 503),
    ({"error": {"code": 429, "message": "Slow down"}, "choices": []}, RateLimitError, 429),
    ({"error": {"code": 400, "type": "exceed_context_size_error", "message": "x"}}, ContextExceededError, 400),
    ({"error": {"code": 400, "message": "Provider returned error", "metadata": {"raw": "prompt is too long: 5 > 4"}}},
     ContextExceededError, 400),
    ({"error": "prompt is too long"}, ContextExceededError, None),
    ({"error": "something"}, ProviderError, None),
    ({"error": {"code": "invalid_api_key", "message": "no"}}, AuthError, None),
    ({"choices": [{"index": 0, "delta": {}, "finish_reason": "error", "error": {"code": 502, "message": "x"}}]},
     OverloadedError, 502),
]  # fmt: skip


@pytest.mark.parametrize(("event", "kind", "status"), ERRORS)
def test_r15_an_error_inside_a_stream(event: dict[str, Any], kind: type[ProviderError], status: int | None) -> None:
    for frame in (b"data: " + dumps(event) + b"\n\n", b"event: error\ndata: " + dumps(event) + b"\n\n"):
        for step in (None, 1):
            with pytest.raises(ProviderError) as caught:
                read(chunk({"content": "so far"}) + frame + DONE, step)
            assert type(caught.value) is kind
            assert (caught.value.status, caught.value.partial) == (status, "so far")


def test_an_error_named_by_its_event() -> None:
    with pytest.raises(OverloadedError, match="Busy"):
        read(b'event: error\ndata: {"type":"overloaded_error","message":"Busy"}\n\n')


def test_r16_a_web_page_in_place_of_a_stream() -> None:
    with pytest.raises(WireError, match=r"web page, not JSON.*captive portal"):
        DIALECT.stream_decoder().feed(b"\n<!DOCTYPE html><html>Sign in</html>")


def test_a_server_that_ignores_stream_is_read_all_the_same() -> None:
    body = dumps({"choices": [{"message": {"content": "hi"}, "finish_reason": "stop"}], "usage": USAGE})
    for step in (None, 1):
        items = read(b"\n" + body, step)
        assert items[:-1] == [TextItem("hi"), UsageItem(Usage(10, 4))]
    with pytest.raises(RateLimitError):
        read(dumps({"error": {"code": 429, "message": "x"}}))


def test_other_choices_are_left_out_of_a_stream() -> None:
    other = {"choices": [{"index": 1, "delta": {"content": "no"}, "finish_reason": "length"}]}
    found = finish_of(chunk({"content": "yes"}) + b"data: " + dumps(other) + b"\n\n" + chunk({}, "stop") + DONE)
    assert (found.message.text, found.reason) == ("yes", "stop")
