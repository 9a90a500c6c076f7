"""Anthropic answers: whole and streamed, ours and theirs, cut at every byte."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wire_strategies import clean_text, redacted, signed

from windlass.core.errors import (
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
from windlass.core.messages import Message, Part, Reasoning, Text, ToolCall, UnknownPart
from windlass.core.usage import Usage
from windlass.wire.anthropic import DIALECT


def event(kind: str, **fields: Any) -> bytes:
    return b"event: " + kind.encode() + b"\ndata: " + json.dumps({"type": kind, **fields}).encode() + b"\n\n"


def start(index: int, **block: Any) -> bytes:
    return event("content_block_start", index=index, content_block=block)


def delta(index: int, kind: str, **fields: Any) -> bytes:
    return event("content_block_delta", index=index, delta={"type": kind, **fields})


def stop(index: int) -> bytes:
    return event("content_block_stop", index=index)


HEAD = event(
    "message_start",
    message={
        "id": "msg_1", "type": "message", "role": "assistant", "model": "claude-x", "content": [], "stop_reason": None,
        "usage": {
            "input_tokens": 3, "cache_read_input_tokens": 10, "cache_creation_input_tokens": 4, "output_tokens": 1,
        },
    },
)  # fmt: skip
END = event("message_stop")


def ending(reason: str, **usage: Any) -> bytes:
    return event("message_delta", delta={"stop_reason": reason, "stop_sequence": None}, usage=usage) + END


CITATION = {"type": "char_location", "cited_text": "x", "document_index": 0, "document_title": None}
STREAM = b"".join(
    [
        HEAD,
        event("ping"),
        start(0, type="thinking", thinking="", signature=""),
        delta(0, "thinking_delta", thinking="Let "),
        delta(0, "thinking_delta", thinking="me é👍"),
        delta(0, "signature_delta", signature="sig=="),
        stop(0),
        start(1, type="redacted_thinking", data="zzz"),
        stop(1),
        start(2, type="text", text=""),
        delta(2, "text_delta", text="Hel"),
        delta(2, "citations_delta", citation=CITATION),
        delta(2, "text_delta", text="lo\u2028"),
        stop(2),
        start(3, type="server_tool_use", id="srv", name="web_search", input={}),
        delta(3, "input_json_delta", partial_json='{"query": "q"}'),
        stop(3),
        start(4, type="web_search_tool_result", tool_use_id="srv", content=[]),
        stop(4),
        start(5, type="tool_use", id="t1", name="look", input={}),
        delta(5, "input_json_delta", partial_json=""),
        delta(5, "input_json_delta", partial_json='{"a": '),
        delta(5, "input_json_delta", partial_json="1}"),
        stop(5),
        start(6, type="tool_use", id="t2", name="now", input={}),
        stop(6),
        ending("tool_use", output_tokens=25, input_tokens=3, output_tokens_details={"thinking_tokens": 9}),
    ]
)
MESSAGE = Message(
    "assistant",
    (
        Reasoning("Let me é👍", {"anthropic": {"signature": "sig=="}}),
        Reasoning("", {"anthropic": {"redacted_data": "zzz"}}),
        Text("Hello\u2028", {"anthropic": {"citations": [{k: v for k, v in CITATION.items() if v is not None}]}}),
        UnknownPart(
            {
                "type": "anthropic.server_tool_use",
                "block": {"type": "server_tool_use", "id": "srv", "name": "web_search", "input": {"query": "q"}},
            }
        ),
        UnknownPart(
            {
                "type": "anthropic.web_search_tool_result",
                "block": {"type": "web_search_tool_result", "tool_use_id": "srv", "content": []},
            }
        ),
        ToolCall("t1", "look", {"a": 1}, '{"a": 1}'),
        ToolCall("t2", "now", {}),
    ),
    finish_reason="tool_call",
)
USAGE = Usage(17, 25, 10, 4, 9)


def feed(data: bytes, *sizes: int) -> list[Item]:
    """Decode in pieces of the given sizes, then of whatever is left."""
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
    assert (finish.reason, finish.raw, finish.model, finish.response_id) == (
        "tool_call",
        "tool_use",
        "claude-x",
        "msg_1",
    )
    assert finish.usage == USAGE
    assert "".join(item.text for item in items if isinstance(item, TextItem)) == "Hello\u2028"
    assert [item for item in items if isinstance(item, ToolCallItem)] == [
        ToolCallItem(0, "t1", "look"),
        ToolCallItem(0, arguments='{"a": '),
        ToolCallItem(0, arguments="1}"),
        ToolCallItem(1, "t2", "now"),
    ]


def test_r21_usage_is_a_total_and_never_doubled() -> None:
    usages = [item.usage for item in feed(STREAM) if isinstance(item, UsageItem)]
    assert usages == [Usage(17, 1, 10, 4), USAGE]
    silent = finish_of(feed(event("message_start", message={"id": "m"}) + END))
    assert silent.usage == Usage(estimated=True)


def test_r13_every_byte_split() -> None:
    whole = feed(STREAM)
    for at in range(len(STREAM)):
        assert feed(STREAM, at) == whole
    assert feed(STREAM, *[1] * len(STREAM)) == whole


@pytest.mark.parametrize("line_end", [b"\r\n", b"\r"])
def test_r13_line_ends_comments_and_bom(line_end: bytes) -> None:
    odd = b"\xef\xbb\xbf: hello\n\n" + STREAM.replace(b"data: ", b"data:")
    assert feed(odd.replace(b"\n", line_end), *[7] * (len(odd) // 7)) == feed(STREAM)


def test_r09_r10_every_cut_is_an_interruption() -> None:
    whole = finish_of(feed(STREAM)).message.text
    for at in range(len(STREAM) - 2):
        decoder = DIALECT.stream_decoder()
        got = decoder.feed(STREAM[:at])
        assert not any(isinstance(item, Finish) for item in got)
        with pytest.raises(StreamInterrupted) as caught:
            decoder.close()
        assert whole.startswith(caught.value.partial)
    assert feed(STREAM.rstrip(b"\n"))[-1] == feed(STREAM)[-1]


def test_r15_error_event_is_a_529() -> None:
    said = event("error", error={"type": "overloaded_error", "message": "Overloaded"})
    with pytest.raises(OverloadedError, match="Overloaded") as caught:
        feed(HEAD + start(0, type="text", text="") + delta(0, "text_delta", text="par") + said)
    assert (caught.value.status, caught.value.provider_code, caught.value.partial) == (529, "overloaded_error", "par")
    with pytest.raises(RateLimitError):
        feed(HEAD + event("error", error={"type": "rate_limit_error", "message": "slow"}))


@pytest.mark.parametrize("payload", [b"{", b"[1]", b"\xff\xfe", b'{"type":"message_start","message":1e999}'])
def test_r14_bad_chunk_keeps_the_partial(payload: bytes) -> None:
    with pytest.raises(WireError) as caught:
        feed(HEAD + start(0, type="text", text="") + delta(0, "text_delta", text="par") + b"data: " + payload + b"\n\n")
    assert caught.value.partial == "par"


def test_r16_web_page_and_plain_answer() -> None:
    with pytest.raises(WireError, match="web page"):
        feed(b"\n <!doctype html><html>")
    body = DIALECT.encode_response(finish_of(feed(STREAM)), model="m", response_id="r", created=0)
    items = feed(body, 1, 5)
    assert finish_of(items).message.text == "Hello\u2028"
    assert any(isinstance(item, TextItem) for item in items)
    with pytest.raises(OverloadedError):
        feed(b'{"type":"error","error":{"type":"overloaded_error","message":"x"}}')


def test_r22_bad_and_interleaved_arguments() -> None:
    data = (
        HEAD
        + start(0, type="tool_use", id="a", name="x", input={})
        + start(1, type="tool_use", id="a", name="y", input={})
        + delta(1, "input_json_delta", partial_json="[1")
        + delta(0, "input_json_delta", partial_json='{"k":')
        + delta(0, "input_json_delta", partial_json="2}")
        + ending("tool_use", output_tokens=1)
    )
    first, second = finish_of(feed(data)).message.tool_calls
    assert [item.id for item in feed(data) if isinstance(item, ToolCallItem) and item.id] == ["a", "call_1"]
    assert first == ToolCall("a", "x", {"k": 2})
    assert (second.id, second.arguments, second.arguments_text) == ("call_1", None, "[1")


def test_r25_a_cut_call_cannot_run() -> None:
    head = HEAD + start(0, type="tool_use", id="a", name="x", input={})
    for pieces, text in ((b"", ""), (delta(0, "input_json_delta", partial_json='{"k'), '{"k')):
        finish = finish_of(feed(head + pieces + ending("max_tokens", output_tokens=1)))
        assert finish.reason == "length"
        assert finish.message.tool_calls == (ToolCall("a", "x", None, text),)
    whole = DIALECT.decode_response(
        b'{"content":[{"type":"tool_use","id":"a","name":"x","input":{"k":1}}],"stop_reason":"max_tokens"}'
    )
    assert whole.message.tool_calls == (ToolCall("a", "x", None, '{"k":1}'),)


def test_servers_that_bend_the_rules() -> None:
    data = (
        HEAD
        + delta(0, "text_delta", text="no start")
        + start(1, type="tool_use", id="", name="x", input={"k": 1})
        + stop(1)
        + event("message_delta", delta={"stop_reason": "end_turn"})
        + event("some_future_event", x=1)
        + END
        + b"data: garbage after the end\n\n"
    )
    finish = finish_of(feed(data))
    assert finish.message.parts == (Text("no start"), ToolCall("call_0", "x", {"k": 1}))
    assert (finish.reason, finish.raw) == ("tool_call", "end_turn")
    with pytest.raises(WireError, match="belongs to no content block"):
        feed(HEAD + delta(3, "input_json_delta", partial_json="{}"))


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        ("end_turn", "stop"),
        ("stop_sequence", "stop"),
        ("pause_turn", "stop"),
        ("max_tokens", "length"),
        ("model_context_window_exceeded", "length"),
        ("refusal", "refusal"),
        ("word_of_tomorrow", "stop"),
    ],
)
def test_stop_reasons_both_ways(raw: str, reason: str) -> None:
    finish = finish_of(feed(HEAD + ending(raw, output_tokens=1)))
    assert (finish.reason, finish.raw) == (reason, raw)
    body = json.loads(DIALECT.encode_response(finish, model="m", response_id="r", created=0))
    assert body["stop_reason"] == (raw if raw != "word_of_tomorrow" else "end_turn")
    filtered = Finish(finish.message, reason="content_filter")
    body = json.loads(DIALECT.encode_response(filtered, model="m", response_id="r", created=0))
    assert body["stop_reason"] == "refusal"


# ------------------------------------------------------------------------------------------------------ round trips


def test_whole_answer_round_trip() -> None:
    finish = finish_of(feed(STREAM))
    body = DIALECT.encode_response(finish, model="claude-x", response_id="msg_1", created=0)
    assert DIALECT.decode_response(body).message.parts == (
        *MESSAGE.parts[:5],
        ToolCall("t1", "look", {"a": 1}),
        ToolCall("t2", "now", {}),
    )
    assert DIALECT.decode_response(body).usage == USAGE


def test_foreign_reasoning_is_shown_without_a_signature() -> None:
    finish = Finish(Message("assistant", (Reasoning("hm"), Text("a"))))
    body = json.loads(DIALECT.encode_response(finish, model="m", response_id="r", created=0))
    assert body["content"][0] == {"type": "thinking", "thinking": "hm", "signature": ""}
    assert DIALECT.decode_response(json.dumps(body).encode()).message.parts == (Reasoning("hm"), Text("a"))


def encode_stream(items: list[Item]) -> bytes:
    encoder = DIALECT.stream_encoder(model="claude-x", response_id="msg_1", created=0)
    return b"".join([encoder.encode(item) for item in items])


def test_encoded_stream_is_the_same_stream() -> None:
    items = feed(STREAM)
    again = finish_of(feed(encode_stream(items)))
    parts = [part for part in MESSAGE.parts if not isinstance(part, UnknownPart)]
    # Citations have no item; the vendor's own blocks go out at the end.
    parts[2] = Text("Hello\u2028")
    assert [part for part in again.message.parts if not isinstance(part, UnknownPart)] == parts
    assert [part for part in again.message.parts if isinstance(part, UnknownPart)] == list(MESSAGE.parts[3:5])
    assert (again.usage, again.reason, again.raw, again.response_id) == (USAGE, "tool_call", "tool_use", "msg_1")


def test_answer_without_deltas_is_streamed_from_its_finish() -> None:
    finish = Finish(MESSAGE, usage=USAGE, reason="tool_call")
    got = finish_of(feed(encode_stream([NoticeItem("retry", "again"), UsageItem(Usage(5)), finish])))
    assert got.message.parts == (
        *MESSAGE.parts[:2],
        Text("Hello\u2028"),
        *MESSAGE.parts[3:5],
        ToolCall("t1", "look", {"a": 1}),
        ToolCall("t2", "now", {}),
    )
    assert got.usage == USAGE


def test_interrupted_finish_is_an_error_event() -> None:
    out = encode_stream([TextItem("a"), Finish(Message("assistant", (Text("a"),)), reason="interrupted")])
    assert b"message_stop" not in out
    with pytest.raises(ProviderError, match="cut short upstream"):
        feed(out)


def test_s71_text_cannot_forge_events() -> None:
    evil = "x\n\ndata: {}\r\revent: error\n\u2028\x85"
    assert (
        finish_of(feed(encode_stream([TextItem(evil), Finish(Message("assistant", (Text(evil),)))]))).message.text
        == evil
    )


pieces = st.lists(st.integers(1, 6), max_size=8)


@st.composite
def streams(draw: st.DrawFn) -> tuple[list[Item], tuple[Part, ...]]:
    """Return items as a provider sends them, calls interleaved, and the message they make."""
    items: list[Item] = []
    parts: list[Part] = []
    for part in draw(st.lists(st.one_of(signed, redacted, st.builds(Text, clean_text)), max_size=4)):
        if parts and isinstance(part, Text) and isinstance(parts[-1], Text):
            continue
        parts.append(part)
        if isinstance(part, Text):
            items += [TextItem(piece) for piece in (part.content[:2], part.content[2:]) if piece]
        else:
            items += [ReasoningItem(part.content), ReasoningItem("", part.provider_metadata)]
    texts = draw(st.lists(st.dictionaries(clean_text, clean_text, max_size=2), max_size=3))
    waiting: list[list[ToolCallItem]] = []
    for index, arguments in enumerate(texts):
        text = json.dumps(arguments)
        cut = draw(st.integers(0, len(text)))
        parts.append(ToolCall(f"id_{index}", "look", arguments))
        begin = ToolCallItem(index, f"id_{index}", "look")
        waiting.append([begin, ToolCallItem(index, arguments=text[:cut]), ToolCallItem(index, arguments=text[cut:])])
    while waiting:
        queue = draw(st.sampled_from(waiting))
        items.append(queue.pop(0))
        waiting = [queue for queue in waiting if queue]
    return items, tuple(parts)


@given(streams(), st.integers(1, 40))
@settings(max_examples=80, deadline=None)
def test_stream_round_trip(stream: tuple[list[Item], tuple[Part, ...]], size: int) -> None:
    items, parts = stream
    calls = any(isinstance(part, ToolCall) for part in parts)
    finish = Finish(Message("assistant", parts), usage=Usage(9, 5, 2, 3, 1), reason="tool_call" if calls else "stop")
    data = encode_stream([*items, finish])
    got = finish_of(feed(data, *[size] * (len(data) // size)))
    plain = [ToolCall(p.id, p.name, p.arguments) if isinstance(p, ToolCall) else p for p in got.message.parts]
    order = [p for p in plain if not isinstance(p, ToolCall)] + sorted(
        [p for p in plain if isinstance(p, ToolCall)], key=lambda c: c.id
    )
    assert tuple(order) == parts
    assert (got.usage, got.reason) == (finish.usage, finish.reason)
    assembler = Assembler()
    for item in feed(data):
        assembler.add(item)
    assert assembler.text == got.message.text


# ------------------------------------------------------------------------------------------------------------- fuzz


EVENTS = STREAM.split(b"\n\n")[:-1]
ODD = [b"data: {}\n\n", b"event: error\n\n", b"data: [DONE]\n\n", b"\n\n", b"{", b"<", *EVENTS]


@given(st.lists(st.sampled_from([*ODD, *[event + b"\n\n" for event in EVENTS]]), max_size=14), pieces)
@settings(max_examples=60, deadline=None)
def test_fuzzed_streams_raise_only_our_errors(chunks: list[bytes], sizes: list[int]) -> None:
    try:
        feed(b"".join(chunks), *sizes)
    except WindlassError:
        pass


FIELDS = ["type", "text", "input", "id", "name", "content", "error", "usage", "source"]
KINDS = ["text", "tool_use", "thinking", "image"]
blocks = st.recursive(
    st.one_of(st.none(), st.integers(), st.text(max_size=5), st.sampled_from(KINDS)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(FIELDS), inner, max_size=5),
    ),
)  # fmt: skip


@given(st.dictionaries(st.sampled_from(["content", "stop_reason", "usage", "id", "error", "type"]), blocks))
@settings(max_examples=60, deadline=None)
def test_fuzzed_answers_raise_only_our_errors(body: dict[str, Any]) -> None:
    data = json.dumps(body).encode()
    for read in (
        lambda: DIALECT.decode_response(data),
        lambda: feed(event("content_block_start", **body) + HEAD + END),
    ):
        try:
            finish = read()
        except WindlassError:
            continue
        if isinstance(finish, Finish):
            DIALECT.encode_response(finish, model="m", response_id="r", created=0)
