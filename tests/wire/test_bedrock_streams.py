"""Bedrock's streams: every split, every exception, usage that comes late or never, and calls that come mixed."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as limits
from hypothesis import strategies as st

from windlass.core.errors import (
    BadRequestError,
    ContextExceededError,
    OverloadedError,
    ProviderError,
    ProviderTimeoutError,
    RateLimitError,
    StreamInterrupted,
    WindlassError,
    WireError,
)
from windlass.core.items import Finish, Item, NoticeItem, ReasoningItem, TextItem, ToolCallItem, UsageItem
from windlass.core.messages import Message, Reasoning, Text, ToolCall, UnknownPart
from windlass.core.usage import Usage
from windlass.wire.bedrock import DIALECT
from windlass.wire.eventstream import FrameDecoder, HeaderValue, encode_frame


def event(name: str, **fields: Any) -> bytes:
    headers: dict[str, HeaderValue] = {
        ":event-type": name, ":content-type": "application/json", ":message-type": "event"
    }  # fmt: skip
    # Bedrock pads its events so that their lengths tell nothing.
    return encode_frame(headers, json.dumps({**fields, "p": "abcdefgh"}).encode())


def exception(kind: str, message: str = "no", **more: Any) -> bytes:
    headers: dict[str, HeaderValue] = {
        ":exception-type": kind, ":content-type": "application/json", ":message-type": "exception"
    }  # fmt: skip
    return encode_frame(headers, json.dumps({"message": message, **more}).encode())


def delta(index: int, **fields: Any) -> bytes:
    return event("contentBlockDelta", delta=fields, contentBlockIndex=index)


def call(index: int, call_id: str, name: str, **more: Any) -> bytes:
    return event(
        "contentBlockStart", start={"toolUse": {"toolUseId": call_id, "name": name, **more}}, contentBlockIndex=index
    )


def end(index: int) -> bytes:
    return event("contentBlockStop", contentBlockIndex=index)


USAGE = {
    "inputTokens": 4,
    "outputTokens": 7,
    "totalTokens": 107,
    "cacheReadInputTokens": 90,
    "cacheWriteInputTokens": 6,
}
START = event("messageStart", role="assistant")
STOP = event("messageStop", stopReason="end_turn")
TAIL = event("metadata", usage=USAGE, metrics={"latencyMs": 12})
ANSWER = b"".join(
    [
        START,
        delta(0, reasoningContent={"text": "hm "}),
        delta(0, reasoningContent={"text": "é"}),
        delta(0, reasoningContent={"signature": "si"}),
        delta(0, reasoningContent={"signature": "gn"}),
        end(0),
        delta(1, reasoningContent={"redactedContent": "eno="}),
        end(1),
        delta(2, text="Hel"),
        delta(2, text="lo"),
        delta(2, citation={"title": "t"}),
        end(2),
        call(3, "t1", "look"),
        delta(3, toolUse={"input": ""}),
        delta(3, toolUse={"input": '{"a": '}),
        call(4, "t2", "now"),
        delta(3, toolUse={"input": "1}"}),
        delta(4, toolUse={"input": "{}"}),
        end(3),
        end(4),
        event("messageStop", stopReason="tool_use", additionalModelResponseFields={"x": 1}),
        TAIL,
    ]
)
MESSAGE = Message(
    "assistant",
    (
        Reasoning("hm é", {"bedrock": {"signature": "sign"}}),
        Reasoning("", {"bedrock": {"redacted_content": "eno="}}),
        Text("Hello", {"bedrock": {"citations": [{"title": "t"}]}}),
        ToolCall("t1", "look", {"a": 1}, '{"a": 1}'),
        ToolCall("t2", "now", {}),
    ),
    finish_reason="tool_call",
)


def read(*pieces: bytes) -> list[Item]:
    decoder = DIALECT.stream_decoder()
    return [*[item for piece in pieces for item in decoder.feed(piece)], *decoder.close()]


def last(items: list[Item]) -> Finish:
    assert isinstance(items[-1], Finish) and not any(isinstance(item, Finish) for item in items[:-1])
    return items[-1]


def test_a_whole_stream() -> None:
    items = read(ANSWER)
    finish = last(items)
    assert finish.message == MESSAGE
    assert (finish.reason, finish.raw, finish.usage) == ("tool_call", "tool_use", Usage(100, 7, 90, 6))
    assert finish.provider_metadata == {
        "bedrock": {"metrics": {"latencyMs": 12}, "additionalModelResponseFields": {"x": 1}}
    }
    assert items[:-1] == [
        ReasoningItem("hm "),
        ReasoningItem("é"),
        ReasoningItem("", {"bedrock": {"signature": "si"}}),
        ReasoningItem("", {"bedrock": {"signature": "gn"}}),
        ReasoningItem("", {"bedrock": {"redacted_content": "eno="}}),
        TextItem("Hel"),
        TextItem("lo"),
        ToolCallItem(0, "t1", "look"),
        ToolCallItem(0, arguments='{"a": '),
        ToolCallItem(1, "t2", "now"),
        ToolCallItem(0, arguments="1}"),
        ToolCallItem(1, arguments="{}"),
        UsageItem(Usage(100, 7, 90, 6)),
    ]


WHOLE = read(ANSWER)


@given(cuts=st.lists(st.integers(0, len(ANSWER)), max_size=8))
@limits(max_examples=60, deadline=None)
def test_r13_every_split_gives_the_same_items(cuts: list[int]) -> None:
    ends = sorted(cuts)
    assert read(*[ANSWER[a:b] for a, b in zip([0, *ends], [*ends, len(ANSWER)], strict=True)]) == WHOLE


def test_r13_byte_by_byte() -> None:
    assert read(*[ANSWER[at : at + 1] for at in range(len(ANSWER))]) == WHOLE


def test_r10_a_stream_that_ends_early_is_interrupted_wherever_it_ends() -> None:
    whole = len(ANSWER) - len(TAIL)
    for size in range(0, whole, 7):
        with pytest.raises(StreamInterrupted) as caught:
            read(ANSWER[:size])
        assert "Hello".startswith(caught.value.partial)


@pytest.mark.parametrize("tail", [b"", TAIL[:20], exception("internalServerException"), event("metadata", usage={})])
def test_r21_usage_that_never_comes_is_an_estimate(tail: bytes) -> None:
    finish = last(read(START, delta(0, text="x"), STOP, tail))
    assert finish.message.text == "x" and finish.usage == Usage(estimated=True)


def test_r21_usage_is_counted_once() -> None:
    items = read(START, delta(0, text="x"), TAIL, STOP, TAIL, TAIL)
    assert last(items).usage == Usage(100, 7, 90, 6)
    assert read(START, STOP, TAIL, exception("internalServerException"))[-1] == last(read(START, STOP, TAIL))


@pytest.mark.parametrize(
    ("kind", "message", "expected"),
    [
        ("modelStreamErrorException", "broke", OverloadedError),
        ("throttlingException", "Too many tokens, please wait", RateLimitError),
        ("internalServerException", "oops", OverloadedError),
        ("serviceUnavailableException", "busy", OverloadedError),
        ("validationException", "bad", BadRequestError),
        ("validationException", "Input is too long for requested model.", ContextExceededError),
        ("modelTimeoutException", "late", ProviderTimeoutError),
        ("aNewException", "odd", ProviderError),
    ],
)
def test_r15_exceptions_in_a_stream(kind: str, message: str, expected: type[ProviderError]) -> None:
    with pytest.raises(ProviderError, match=message.rstrip(".")) as caught:
        read(START, delta(0, text="par"), exception(kind, message))
    assert type(caught.value) is expected
    assert (caught.value.partial, caught.value.provider_code) == ("par", kind)
    assert caught.value.retryable == (expected not in (BadRequestError, ContextExceededError, ProviderError))


def test_r15_the_original_message_is_the_one_told() -> None:
    with pytest.raises(OverloadedError, match="the model fell over"):
        read(START, exception("modelStreamErrorException", "failed", originalMessage="the model fell over"))


def test_r15_errors_that_nobody_modelled() -> None:
    headers: dict[str, HeaderValue] = {
        ":message-type": "error", ":error-code": "InternalError", ":error-message": "it broke"
    }  # fmt: skip
    with pytest.raises(ProviderError, match="it broke"):
        read(START, encode_frame(headers))
    with pytest.raises(ProviderError, match="plain words"):
        read(START, encode_frame({":message-type": "exception", ":exception-type": "x"}, b"plain words"))


@pytest.mark.parametrize(
    "bad",
    [
        encode_frame({":message-type": "event", ":event-type": "contentBlockDelta"}, b"{cut"),
        encode_frame({":message-type": "event", ":event-type": "contentBlockDelta"}, b"[]"),
        delta(7, toolUse={"input": "{"}),
        delta(0, reasoningContent={"text": "x"}),
        delta(0, hologram={"x": 1}),
        TAIL[:30] + b"\x00" + TAIL[31:],
        b"<html>a login page</html>" * 4,
    ],
)
def test_r14_bad_events_are_typed_and_the_text_is_kept(bad: bytes) -> None:
    decoder = DIALECT.stream_decoder()
    decoder.feed(START + delta(0, text="par"))
    with pytest.raises(WireError) as caught:
        decoder.feed(bad)
    assert caught.value.partial == "par"


def test_damage_in_the_last_piece_is_not_taken_for_a_mere_end() -> None:
    decoder = DIALECT.stream_decoder()
    assert decoder.feed(START + delta(0, text="par") + b"garbage in place of a frame") == [TextItem("par")]
    with pytest.raises(WireError, match="checksum") as caught:
        decoder.close()
    assert not isinstance(caught.value, StreamInterrupted) and caught.value.partial == "par"


def test_events_and_blocks_that_we_do_not_know() -> None:
    image = event("contentBlockStart", start={"image": {"format": "png"}}, contentBlockIndex=1)
    result = event("contentBlockStart", start={"toolResult": {"toolUseId": "s"}}, contentBlockIndex=3)
    items = read(
        event("initial-response"),
        START,
        event("aNewEvent", x=1),
        event("contentBlockStart", start={}, contentBlockIndex=0),
        delta(0, text="x"),
        image,
        delta(1, image={"source": {"bytes": "eA=="}}),
        call(2, "s", "search", type="server_tool_use"),
        delta(2, toolUse={"input": '{"q":1}'}),
        result,
        delta(3, toolResult=[{"text": "a"}]),
        delta(3, toolResult=[{"text": "b"}]),
        STOP,
        TAIL,
    )
    finish = last(items)
    server = {"toolUseId": "s", "name": "search", "type": "server_tool_use", "input": {"q": 1}}
    assert finish.message.parts == (
        Text("x"),
        UnknownPart({"type": "bedrock.image", "block": {"image": {"format": "png", "source": {"bytes": "eA=="}}}}),
        UnknownPart({"type": "bedrock.toolUse", "block": {"toolUse": server}}),
        UnknownPart(
            {
                "type": "bedrock.toolResult",
                "block": {"toolResult": {"toolUseId": "s", "content": [{"text": "a"}, {"text": "b"}]}},
            }
        ),
    )
    assert (finish.reason, [type(item) for item in items[:-1]]) == ("stop", [TextItem, UsageItem])


def test_r22_arguments_that_are_no_json_are_kept_as_text() -> None:
    finish = last(read(START, call(0, "t", "n"), delta(0, toolUse={"input": "{cut"}), STOP, TAIL))
    assert finish.message.tool_calls == (ToolCall("t", "n", None, "{cut"),)
    empty = last(read(START, call(0, "t", "n"), STOP, TAIL))
    assert empty.message.tool_calls == (ToolCall("t", "n", {}),)


def test_r23_missing_and_doubled_ids_are_told_apart_in_items_and_message() -> None:
    items = read(START, call(0, "t", "a"), call(1, "t", "b"), call(2, "", "c"), STOP, TAIL)
    ids = [item.id for item in items if isinstance(item, ToolCallItem)]
    assert ids == [part.id for part in last(items).message.tool_calls] and len(set(ids)) == 3


def test_r25_a_call_that_the_limit_cut_is_not_run() -> None:
    cut = event("messageStop", stopReason="max_tokens")
    finish = last(read(START, call(0, "t", "n"), delta(0, toolUse={"input": '{"a":'}), cut, TAIL))
    assert (finish.reason, finish.message.tool_calls) == ("length", (ToolCall("t", "n", None, '{"a":'),))


def test_an_answer_that_came_as_json_is_read_too() -> None:
    body = {"output": {"message": {"role": "assistant", "content": [{"text": "Hi"}]}}, "stopReason": "end_turn"}
    data = json.dumps({**body, "usage": USAGE}).encode()
    items = read(data[:5], data[5:])
    assert items[0] == TextItem("Hi") and last(items).usage == Usage(100, 7, 90, 6)
    with pytest.raises(RateLimitError):
        read(b'{"message":"slow","__type":"ThrottlingException"}')
    with pytest.raises(StreamInterrupted):
        read(b"")


# ---------------------------------------------------------------------------------------------------------- encoding


def names(data: bytes) -> list[str]:
    return [frame.text(":event-type") or frame.text(":exception-type") for frame in FrameDecoder().feed(data)]


def frames_of(*items: Item) -> bytes:
    encoder = DIALECT.stream_encoder(model="m", response_id="r", created=0)
    return b"".join([encoder.encode(item) for item in items])


def test_what_was_decoded_is_encoded_again() -> None:
    again = last(read(frames_of(*WHOLE)))
    assert again.message.parts == (*MESSAGE.parts[:2], Text("Hello"), *MESSAGE.parts[3:])
    assert (again.reason, again.usage, again.raw) == ("tool_call", Usage(100, 7, 90, 6), "tool_use")
    assert again.provider_metadata == WHOLE[-1].provider_metadata  # pyright: ignore[reportAttributeAccessIssue]
    # Without deltas the whole message is streamed from its parts, citations included.
    assert last(read(frames_of(WHOLE[-1]))).message == MESSAGE


def test_r22_interleaved_calls_leave_one_after_the_other() -> None:
    finish = Finish(
        Message("assistant", (ToolCall("a", "x", {"n": 1}), ToolCall("b", "y", {})), None), reason="tool_call"
    )
    data = frames_of(
        ToolCallItem(0, "a", "x"),
        ToolCallItem(1, "b", "y"),
        ToolCallItem(1, arguments="{}"),
        ToolCallItem(0, arguments='{"n"'),
        ToolCallItem(0, arguments=":1}"),
        finish,
    )
    assert names(data) == [
        "messageStart", "contentBlockStart", "contentBlockDelta", "contentBlockDelta", "contentBlockStop",
        "contentBlockStart", "contentBlockDelta", "contentBlockStop", "messageStop", "metadata",
    ]  # fmt: skip
    assert last(read(data)).message.parts == finish.message.parts


def test_calls_without_names_arguments_or_end() -> None:
    data = frames_of(ToolCallItem(0, arguments='{"a":'), ToolCallItem(1, "b", "y"), Finish(Message("assistant")))
    first, second = last(read(data)).message.tool_calls
    assert (first.name, first.arguments, first.arguments_text) == ("unknown", None, '{"a":')
    assert (second.name, second.arguments) == ("y", {})
    between = frames_of(
        ToolCallItem(0, "a", "x"), TextItem("t"), ToolCallItem(0, arguments="{}"), Finish(Message("assistant"))
    )
    assert [type(part) for part in last(read(between)).message.parts] == [ToolCall, Text]


def test_notices_and_usage_so_far_are_not_told() -> None:
    assert frames_of(NoticeItem("retry", "x"), UsageItem(Usage(1, 1)), TextItem("")) == b""


def test_reasoning_of_others_is_shown_without_a_signature() -> None:
    part = Reasoning("hm", {"openai": {"x": 1}})
    data = frames_of(ReasoningItem("hm", {"openai": {"x": 1}}), Finish(Message("assistant", (part,))))
    assert last(read(data)).message.parts == (Reasoning("hm"),)


@pytest.mark.parametrize("reason", ["interrupted", "error"])
def test_r07_an_answer_that_was_cut_upstream_ends_in_an_exception(reason: Any) -> None:
    data = frames_of(TextItem("par"), Finish(Message("assistant", (Text("par"),)), reason=reason))
    assert names(data)[-1] == "internalServerException"
    with pytest.raises(ProviderError, match="cut short"):
        read(data)


@given(data=st.binary(max_size=80), at=st.integers(0, len(ANSWER)), n=st.integers(0, 40))
@limits(max_examples=80, deadline=None)
def test_damaged_streams_raise_only_our_errors(data: bytes, at: int, n: int) -> None:
    try:
        read(ANSWER[:at] + data + ANSWER[at + n :])
    except WindlassError:
        pass


fields: st.SearchStrategy[Any] = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=4)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=2),
        st.dictionaries(
            st.sampled_from([
                "delta", "start", "text", "toolUse", "input", "toolUseId", "name", "type", "reasoningContent", "usage",
                "signature", "redactedContent", "contentBlockIndex", "stopReason", "citation", "toolResult", "message",
            ]),
            inner,
            max_size=3,
        ),
    ),
    max_leaves=10,
)  # fmt: skip
EVENTS = ["contentBlockStart", "contentBlockDelta", "contentBlockStop", "messageStart", "messageStop", "metadata"]


@given(events=st.lists(st.tuples(st.sampled_from(EVENTS), fields), max_size=6))
@limits(max_examples=150, deadline=None)
def test_any_events_raise_only_our_errors(events: list[tuple[str, Any]]) -> None:
    sent = [
        encode_frame({":message-type": "event", ":event-type": name}, json.dumps(data).encode())
        for name, data in events
    ]
    try:
        read(*sent)
    except WindlassError:
        pass


def test_two_thoughts_stay_two() -> None:
    signed = [Reasoning(text, {"bedrock": {"signature": f"s{text}"}}) for text in ("a", "b")]
    items: list[Item] = [ReasoningItem(part.content, part.provider_metadata) for part in signed]
    assert last(read(frames_of(*items, Finish(Message("assistant", tuple(signed)))))).message.parts == tuple(signed)
