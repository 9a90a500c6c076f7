"""What passes through unchanged is watched as closely as it would be decoded: the dialect's decoder is the oracle."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from windlass.core.errors import OverloadedError, ProviderError, StreamInterrupted, WireError
from windlass.core.items import Finish, Item, ReasoningItem, TextItem, ToolCallItem
from windlass.core.usage import Usage
from windlass.wire import anthropic, ollama, openai_chat
from windlass.wire.base import Dialect
from windlass.wire.watch import Framing, Watcher, watcher_for
from windlass.wire.watch_whole import read_whole

CHAT = openai_chat.DIALECT
HEAD: dict[str, Any] = {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "m-1"}
USAGE = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10, "prompt_tokens_details": {"cached_tokens": 2}}


def chunk(delta: dict[str, Any] | None = None, reason: str | None = None, index: int = 0, **more: Any) -> bytes:
    choice = {"index": index, "delta": delta or {}, "logprobs": None, "finish_reason": reason}
    return json.dumps({**HEAD, "choices": [choice], **more}, ensure_ascii=False).encode()


def told(text: str) -> bytes:
    return chunk({"content": text})


OPENING = chunk({"role": "assistant", "content": ""})
CALL = chunk({"tool_calls": [{"index": 0, "id": "call_1", "type": "function", "function": {"name": "f"}}]})
STOP = chunk(None, "stop")
COUNTED = json.dumps({**HEAD, "choices": [], "usage": USAGE}).encode()
DONE = b"[DONE]"


def stream(*payloads: bytes, end: bytes = b"\n", field: bytes = b"data: ") -> bytes:
    return b"".join([field + payload + end + end for payload in payloads])


class Seen:
    """What came of one stream: the bytes that passed, the error, and what was known at the end."""

    def __init__(self, watcher: Watcher, pieces: Sequence[bytes]) -> None:
        self.passed, self.error = b"", ""
        try:
            for piece in pieces:
                self.passed += watcher.feed(piece)
            self.passed += watcher.close()
        except ProviderError as error:
            self.passed += watcher.sound
            self.error = type(error).__name__
        self.usage, self.model, self.reason = watcher.usage, watcher.model, watcher.finish_reason
        self.events, self.begun = watcher.events, watcher.begun


@functools.lru_cache(maxsize=64)
def decoded(dialect: Dialect, data: bytes) -> tuple[list[Item], Finish | None, str]:
    """Return what the dialect's own decoder makes of a stream, and the error it ends with."""
    decoder, items = dialect.stream_decoder(), list[Item]()
    try:
        for at in range(len(data)):
            items += decoder.feed(data[at : at + 1])
        items += decoder.close()
    except ProviderError as error:
        return items, None, type(error).__name__
    finish = next((item for item in items if isinstance(item, Finish)), None)
    if finish is not None and finish.reason in ("interrupted", "error"):
        return items, None, "StreamInterrupted"
    return items, finish, ""


def content(items: list[Item]) -> tuple[str, str, str]:
    return (
        "".join([item.text for item in items if isinstance(item, TextItem)]),
        "".join([item.text for item in items if isinstance(item, ReasoningItem)]),
        "".join([item.arguments for item in items if isinstance(item, ToolCallItem)]),
    )


def agree(data: bytes, pieces: Sequence[bytes], dialect: Dialect = CHAT, framing: Framing = "sse") -> Seen:
    """Check that watching these pieces says what decoding says, and that a client gets the same from what passed."""
    seen = Seen(watcher_for(dialect, framing=framing), pieces)
    items, finish, error = decoded(dialect, data)
    again, whole, _ = decoded(dialect, seen.passed)
    if finish is not None and finish.raw is None:
        error = "StreamInterrupted"  # [DONE] alone: our clients take it, a gateway must not
    assert (seen.error, seen.error) == (error, error if seen.error else "")
    if not error:
        assert finish is not None and whole is not None
        assert content(again) == content(items)
        assert (whole.reason, whole.raw) == (finish.reason, finish.raw)
        assert (seen.reason, seen.model) == (finish.raw, finish.model)
        assert (seen.usage or Usage(estimated=True)) == finish.usage
    else:
        assert content(items)[0].startswith(content(again)[0])
    return seen


STREAMS: dict[str, bytes] = {
    "plain": stream(OPENING, told("Hé"), told("llo 😀"), STOP, COUNTED, DONE),
    "crlf": stream(OPENING, told("Hé"), STOP, COUNTED, DONE, end=b"\r\n"),
    "cr": stream(OPENING, told("Hé"), STOP, DONE, end=b"\r"),
    "mixed line ends": b"data: " + told("a") + b"\r\n\ndata: " + told("b") + b"\n\r\n" + stream(STOP, DONE),
    "no space": stream(OPENING, told("Hé"), STOP, DONE, field=b"data:"),
    "bom": b"\xef\xbb\xbf" + stream(told("Hé"), STOP, DONE),
    "comments": b": hello\n\n" + stream(told("a")) + b": ping\n\n:\n\n" + stream(told("b"), STOP, DONE),
    "multi-line data": b'data: {"id":"c","model":"m",\ndata: "choices":[{"delta":{"content":"a"},\n'
    b'data: "finish_reason":"stop"}]}\n\n' + stream(DONE),
    "other fields": b"id: 1\nretry: 10\nevent: message\n" + stream(told("a"), STOP, DONE),
    "usage with every chunk": stream(
        chunk({"content": "a"}, usage=USAGE),
        chunk({"content": "b"}, usage={**USAGE, "completion_tokens": 4}),
        chunk(None, "stop", usage={**USAGE, "completion_tokens": 5}),
        DONE,
    ),
    "usage is null until the end": stream(chunk({"content": "a"}, usage=None), STOP, COUNTED, DONE),
    "groq": stream(told("a"), chunk(None, "stop", x_groq={"id": "r", "usage": USAGE}), DONE),
    "moonshot": stream(
        told("a"),
        json.dumps({**HEAD, "choices": [{"delta": {}, "finish_reason": "stop", "usage": USAGE}]}).encode(),
        DONE,
    ),
    "odd types": stream(b'{"choices":{},"model":7,"usage":[]}', told("a"), STOP, DONE),
    "empty data": b"data:\n\ndata: \n\n" + stream(told("a"), STOP, DONE),
    "tool call": stream(OPENING, CALL, chunk(None, "tool_calls"), DONE),
    "reasoning": stream(chunk({"reasoning_content": "hm"}), told("a"), STOP, DONE),
    "content filter": stream(told("a"), chunk(None, "content_filter"), DONE),
    "no [DONE]": stream(told("a"), STOP, COUNTED),
    "no [DONE], no blank line": stream(told("a"), STOP)[:-2],
    "after [DONE]": stream(told("a"), STOP, DONE, told("b"), b"garbage"),
    "half an event after the reason": stream(told("a"), STOP) + b'data: {"choices":[],"usa',
    "[DONE] without a reason": stream(OPENING, told("a"), DONE),
    "no end": stream(OPENING, told("a")),
    "cut in an event": stream(OPENING, told("a"))[:-9],
    "nothing": b"",
    "malformed": stream(told("a"), told("b"), b'{"id":"c1","choi', told("c"), STOP, DONE),
    "not an object": stream(told("a"), b"[1]", STOP, DONE),
    "error event": stream(told("a"), b'{"error":{"message":"busy","type":"overloaded_error"}}'),
    "named error event": stream(told("a")) + b'event: error\ndata: {"message":"busy","type":"overloaded_error"}\n\n',
    "error in a choice": stream(told("a"), b'{"choices":[{"delta":{},"error":{"message":"no","code":502}}]}'),
    "error is null": stream(chunk({"content": "a"}, error=None), STOP, DONE),
    "vendor's word for a break": stream(told("a"), chunk(None, "network_error"), DONE),
    "vendor's error reason": stream(told("a"), chunk(None, "error"), DONE),
    "invalid utf-8": stream(told("a"), b'{"choices":[{"delta":{"content":"\xff"}}]}', STOP, DONE),
}


@pytest.mark.parametrize("name", STREAMS)
def test_r13_every_split_gives_what_the_decoder_gives(name: str) -> None:
    data = STREAMS[name]
    whole = agree(data, [data])
    for at in range(len(data) + 1):
        seen = agree(data, [data[:at], data[at:]])
        assert (seen.error, up_to_done(seen)) == (whole.error, up_to_done(whole)), at
    single = agree(data, [data[at : at + 1] for at in range(len(data))])
    assert (single.error, up_to_done(single)) == (whole.error, up_to_done(whole))


def up_to_done(seen: Seen) -> bytes:
    return seen.passed.partition(DONE)[0]


def test_what_is_sound_passes_byte_by_byte() -> None:
    for name in ("plain", "crlf", "mixed line ends", "bom", "comments", "tool call"):
        assert Seen(watcher_for(CHAT), [STREAMS[name]]).passed == STREAMS[name]
    assert Seen(watcher_for(CHAT), [STREAMS["no [DONE]"]]).passed == STREAMS["no [DONE]"] + b"data: [DONE]\n\n"


PAYLOADS = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=8).map(lambda text: chunk({"content": text})),
    st.sampled_from(
        [OPENING, CALL, STOP, COUNTED, DONE, b"", b"{}", b"[]", b"null", b'{"error":null}', b'{"choices":null}',
         b'{"error":"x"}', chunk(None, "length"), chunk(None, "eos_token"), chunk({"refusal": "x"}),
         chunk({"content": "x"}, usage=USAGE), b'{"choices":[{"delta":{"content":"data: x"}}]}', b'{"choi']
    ),
)  # fmt: skip
EVENTS = st.tuples(
    st.sampled_from([b"", b"", b"", b": ping\n", b"event: error\n", b"event: message\n", b"id: 1\n"]),
    st.sampled_from([b"data: ", b"data: ", b"data:"]),
    PAYLOADS,
    st.sampled_from([b"\n\n", b"\n\n", b"\r\n\r\n", b"\r\r", b"\n\r\n", b"\n\n\n"]),
).map(b"".join)


@given(st.lists(EVENTS, max_size=8).map(b"".join), st.data())
def test_r13_any_stream_any_split(data: bytes, draw: st.DataObject) -> None:
    cuts = sorted(draw.draw(st.sets(st.integers(0, len(data)), max_size=6)))
    pieces = [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]
    agree(data, [piece for piece in pieces if piece])


def test_r11_pings_are_no_progress() -> None:
    watcher = watcher_for(CHAT)
    watcher.feed(stream(OPENING))
    assert (watcher.events, watcher.begun) == (1, False)
    watcher.feed(b": ping\n\n" * 5)
    assert watcher.events == 1
    other = watcher_for(anthropic.DIALECT)
    other.feed(b'event: ping\ndata: {"type":"ping"}\n\n')
    assert (other.events, other.begun) == (0, False)


def test_several_choices_end_each_for_itself() -> None:
    first, second = chunk({"content": "a"}), chunk({"content": "b"}, index=1)
    both = stream(first, second, STOP, chunk(None, "stop", index=1))
    assert Seen(watcher_for(CHAT, choices=2), [both]).error == ""
    # One of them was cut, with and without a mark at the end.
    for data in (stream(first, second, STOP), stream(first, second, STOP, DONE), stream(first, STOP)):
        assert Seen(watcher_for(CHAT, choices=2), [data]).error == "StreamInterrupted"
    # A vendor that gives one answer where two were asked for says so by its mark.
    assert Seen(watcher_for(CHAT, choices=2), [stream(first, STOP, DONE)]).error == ""


def test_usage_that_was_not_asked_for_is_taken_out() -> None:
    data = stream(told("a"), STOP, COUNTED, DONE)
    for end in range(len(data)):
        watcher = watcher_for(CHAT, hide_usage=True)
        seen = Seen(watcher, [data[:end], data[end:]])
        assert seen.passed == stream(told("a"), STOP, DONE)
        assert seen.usage == Usage(7, 3, 2)


def test_the_vendors_price_is_kept() -> None:
    watcher = watcher_for(CHAT)
    Seen(watcher, [stream(told("a"), chunk(None, "stop", usage={**USAGE, "cost": 0.25}), DONE)])
    assert watcher.cost == 250_000_000


def test_an_event_without_end_is_bounded() -> None:
    watcher = watcher_for(CHAT)
    with pytest.raises(WireError, match="larger"):
        for _ in range(20):
            watcher.feed(b"data: " + b"x" * (1 << 20))


ANTHROPIC = (
    b'event: message_start\ndata: {"type":"message_start","message":{"id":"m","type":"message","role":"assistant",'
    b'"model":"c","content":[],"usage":{"input_tokens":3,"output_tokens":1}}}\n\n'
    b'event: ping\ndata: {"type":"ping"}\n\n'
    b'event: content_block_start\ndata: {"type":"content_block_start","index":0,"content_block":{"type":"text",'
    b'"text":""}}\n\n'
    b'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta",'
    b'"text":"h\xc3\xa9"}}\n\n'
    b'event: content_block_stop\ndata: {"type":"content_block_stop","index":0}\n\n'
    b'event: message_delta\ndata: {"type":"message_delta","delta":{"stop_reason":"end_turn"},'
    b'"usage":{"output_tokens":2}}\n\n'
    b'event: message_stop\ndata: {"type":"message_stop"}\n\n'
)
OLLAMA = (
    '{"model":"q","created_at":"t","message":{"role":"assistant","content":"hé"},"done":false}\n'
    '{"model":"q","created_at":"t","message":{"role":"assistant","content":""},"done":true,"done_reason":"stop",'
    '"prompt_eval_count":3,"eval_count":2}\n'
).encode()


@pytest.mark.parametrize(
    ("dialect", "framing", "data"), [(anthropic.DIALECT, "sse", ANTHROPIC), (ollama.DIALECT, "lines", OLLAMA)]
)
def test_other_dialects_pass_whole_events_at_every_cut(dialect: Dialect, framing: Framing, data: bytes) -> None:
    for end in range(len(data)):
        seen = Seen(watcher_for(dialect, framing=framing), [data[:end]])
        # The last event is what makes an answer whole, with or without the line end behind it.
        if seen.error:
            assert seen.error == "StreamInterrupted" or seen.error == "WireError"
            assert data.startswith(seen.passed)
            assert seen.passed == b"" or seen.passed.endswith(b"\n")
        else:
            assert data[end:].strip() == b""
        whole = Seen(watcher_for(dialect, framing=framing), [data[:end], data[end:]])
        assert (whole.error, whole.passed) == ("", data)
        assert whole.usage is not None and (whole.usage.input_tokens, whole.usage.output_tokens) == (3, 2)


# ------------------------------------------------------------------------------------------------------ whole answers


def whole(reason: str | None = "stop", **more: Any) -> bytes:
    choice = {"index": 0, "message": {"role": "assistant", "content": "a"}, "finish_reason": reason}
    return json.dumps({**HEAD, "choices": [choice], "usage": USAGE, **more}).encode()


def test_a_whole_answer_tells_what_it_used() -> None:
    said = read_whole(CHAT, whole())
    assert (said.usage, said.model, said.finish_reason) == (Usage(7, 3, 2), "m-1", "stop")


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (b'{"error":{"message":"busy","type":"overloaded_error"}}', OverloadedError),
        (b'{"id":"x"}', WireError),
        (b"<html>Sign in</html>", WireError),
        (b"", WireError),
        (whole()[:40], WireError),
        (whole("network_error"), StreamInterrupted),
        (whole("error"), StreamInterrupted),
    ],
)
def test_r16_what_is_no_answer_is_an_error(body: bytes, error: type[ProviderError]) -> None:
    with pytest.raises(error):
        read_whole(CHAT, body)
