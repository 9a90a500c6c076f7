"""What a Responses server streams, and answers whole, in every form that was seen."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from openai_responses_kit import (
    USAGE,
    answer,
    event,
    finish_of,
    function_call,
    item_events,
    message,
    read,
    reasoning,
    response,
    stream,
)

from windlass.core.errors import (
    RateLimitError,
    WindlassError,
    WireError,
)
from windlass.core.items import (
    Assembler,
    Finish,
    FinishReason,
    NoticeItem,
    ReasoningItem,
    TextItem,
    ToolCallItem,
    UsageItem,
)
from windlass.core.json import dumps
from windlass.core.messages import Message, Part, Reasoning, Text, ToolCall, UnknownPart
from windlass.core.usage import Usage
from windlass.wire.openai_responses import DIALECT

PLAIN = stream(message("Helło 🦜"))
SEARCH = {"id": "ws_1", "type": "web_search_call", "status": "completed", "action": {"type": "search", "query": "q"}}
THOUGHT = reasoning("Let me think.", "And again.")
CUSTOM = {"id": "ctc_1", "type": "custom_tool_call", "call_id": "c", "name": "patch", "input": 'say "hi"\n'}
RICH = stream(
    THOUGHT,
    SEARCH,
    reasoning(identity="rs_2", encrypted="gBBB"),
    message("Found it.", phase="commentary"),
    function_call("a", "f", '{"city": "Łódź"}'),
    function_call("b", "g", '{"x":1}'),
    CUSTOM,
)
OURS = "openai_responses"
WANTED: tuple[Part, ...] = (
    Reasoning("Let me think.\n\nAnd again.", {OURS: {"items": [THOUGHT]}}),
    UnknownPart({"type": "openai_responses.web_search_call", "item": SEARCH}),
    Reasoning("", {OURS: {"items": [reasoning(identity="rs_2", encrypted="gBBB")]}}),
    Text("Found it.", {OURS: {"phase": "commentary"}}),
    ToolCall("a", "f", {"city": "Łódź"}, '{"city": "Łódź"}'),
    ToolCall("b", "g", {"x": 1}),
    ToolCall("c", "patch", {"input": 'say "hi"\n'}, None, {OURS: {"type": "custom_tool_call"}}),
)


def test_a_plain_stream() -> None:
    items = read(PLAIN)
    usage = Usage(10, 4, 6, 0, 3)
    assert items[:-1] == [TextItem("Helło"), TextItem(" 🦜"), UsageItem(usage)]
    assert items[-1] == Finish(
        Message("assistant", (Text("Helło 🦜"),), finish_reason="stop"),
        usage, "stop", "gpt-5-2025-08-07", "resp_1", None, "completed",
    )  # fmt: skip


def test_a_rich_stream() -> None:
    found = finish_of(RICH)
    assert found.message.parts == WANTED
    assert (found.reason, found.raw) == ("tool_call", "completed")
    assert answer(*_items()).message == found.message


def _items() -> list[dict[str, Any]]:
    return [
        THOUGHT, SEARCH, reasoning(identity="rs_2", encrypted="gBBB"), message("Found it.", phase="commentary"),
        function_call("a", "f", '{"city": "Łódź"}'), function_call("b", "g", '{"x":1}'), CUSTOM,
    ]  # fmt: skip


def test_items_tell_the_same_as_the_finish() -> None:
    items = read(RICH)
    assembler = Assembler()
    for item in items:
        assembler.add(item)
    first, *rest = assembler.parts()
    # What has no delta form rides with the reasoning around it, in its order.
    kept = [THOUGHT, SEARCH, reasoning(identity="rs_2", encrypted="gBBB")]
    assert first == Reasoning("Let me think.\n\nAnd again.", {OURS: {"items": kept}})
    assert rest == [Text("Found it."), *WANTED[4:-1], replace(WANTED[-1], arguments_text=rest[-1].arguments_text)]  # pyright: ignore[reportAttributeAccessIssue, reportArgumentType, reportCallIssue]
    kinds = [type(item) for item in items]
    assert kinds.count(UsageItem) == kinds.count(Finish) == 1 and kinds[-1] is Finish


def test_each_run_of_reasoning_is_told_by_itself() -> None:
    first, second = reasoning("One."), reasoning("Two.", identity="rs_2", encrypted="gBBB")
    data = stream(first, message("a"), second, function_call("c", "f", "{}"), reasoning("Three."))
    kept = [item.provider_metadata for item in read(data) if isinstance(item, ReasoningItem) and not item.text]
    assert kept == [{OURS: {"items": [item]}} for item in (first, second, reasoning("Three."))]
    texts = "".join([item.text for item in read(data) if isinstance(item, ReasoningItem)])
    assert texts == "One.Two.Three."
    assert [type(part) for part in finish_of(data).message.parts] == [Reasoning, Text, Reasoning, ToolCall, Reasoning]


def test_reasoning_is_content_with_its_first_words_only() -> None:
    """An answer that breaks while the model thinks unseen may be asked for again: nothing was told yet."""
    decoder = DIALECT.stream_decoder()
    hidden = reasoning(encrypted=None)
    head = stream(end=b"") + item_events(0, hidden).split(b"event: response.output_item.done")[0]
    assert decoder.feed(head) == []
    assert read(stream(THOUGHT))[0] == ReasoningItem(
        "Let m", {OURS: {"items": [{"type": "reasoning", "id": "rs_1", "summary": []}]}}
    )


@pytest.mark.parametrize("data", [PLAIN, RICH], ids=["plain", "rich"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"], ids=["lf", "crlf", "cr"])
def test_r13_every_byte_split_gives_the_same_items(data: bytes, end: bytes) -> None:
    data = b"\xef\xbb\xbf" + data.replace(b"\n", end).replace(b"data: {", b"data:{")
    whole = read(data)
    assert len(whole) > 3
    assert read(data, 1) == read(data, 7) == whole
    for cut in range(0, len(data), 11 if len(data) < 4000 else 53):
        decoder = DIALECT.stream_decoder()
        assert [*decoder.feed(data[:cut]), *decoder.feed(data[cut:]), *decoder.close()] == whole


def without(data: bytes, *kinds: str) -> bytes:
    blocks = [block for block in data.split(b"\n\n") if block]
    named = [block for block in blocks if not any(block.startswith(f"event: {kind}\n".encode()) for kind in kinds)]
    return b"\n\n".join([*named, b""])


DELTAS = (
    "response.output_text.delta", "response.function_call_arguments.delta", "response.reasoning_summary_text.delta",
    "response.custom_tool_call_input.delta",
)  # fmt: skip
DONES = (
    "response.output_text.done", "response.function_call_arguments.done", "response.reasoning_summary_text.done",
    "response.custom_tool_call_input.done",
)  # fmt: skip


@pytest.mark.parametrize(
    "missing",
    [
        DELTAS,
        DONES,
        ("response.output_item.added",),
        ("response.output_item.done",),
        (*DELTAS, *DONES),
        (*DELTAS, *DONES, "response.output_item.added"),
        (*DELTAS, *DONES, "response.output_item.added", "response.output_item.done"),
        ("response.created", "response.in_progress", "response.content_part.added", "response.content_part.done"),
    ],
)
def test_servers_that_leave_events_out_are_read_all_the_same(missing: tuple[str, ...]) -> None:
    items = read(without(RICH, *missing))
    assert items[-1] == finish_of(RICH)
    text = "".join([item.text for item in items if isinstance(item, TextItem)])
    calls = Assembler()
    for item in items:
        calls.add(item)
    assert text == "Found it."
    assert calls.message().tool_calls[:2] == finish_of(RICH).message.tool_calls[:2]
    assert calls.message().tool_calls[2].arguments == {"input": 'say "hi"\n'}


def test_a_completed_response_without_its_output() -> None:
    """The backend of ChatGPT accounts leaves it empty; then the items are what counts."""
    end = event("response.completed", response={**response(), "output": []})
    assert finish_of(stream(*_items(), end=end)) == finish_of(RICH)
    done = event("response.done", response={**response(), "output": [], "status": "completed"})
    assert finish_of(stream(*_items(), end=done)) == finish_of(RICH)


def test_events_without_places_find_their_items_by_id() -> None:
    data = stream(message("ab"), function_call("a", "f", "{}"), end=event("response.completed", response=response()))
    for place in (b'"output_index":0,', b'"output_index":1,'):
        data = data.replace(place, b"")
    assert finish_of(data).message.parts == (Text("ab"), ToolCall("a", "f", {}))


def test_unknown_events_and_done_marks_are_passed_over() -> None:
    odd = event("response.hologram.delta", delta="x") + b"data: [DONE]\n\n: ping\n\n" + event("keepalive")
    head, tail = PLAIN[: PLAIN.index(b"event: response.output_item.added")], PLAIN
    assert read(head + odd + tail[len(head) :]) == read(PLAIN)


# -------------------------------------------------------------------------------------------------------- tool calls


def test_r22_interleaved_calls_and_arguments_that_are_no_object() -> None:
    one, two = function_call("a", "f", '{"a":1}'), function_call("b", "g", "{oops")
    begun = [
        event("response.output_item.added", output_index=at, item={**item, "arguments": ""})
        for at, item in enumerate((one, two))
    ]
    pieces = [(0, '{"a"'), (1, "{o"), (0, ":1}"), (1, "ops")]
    deltas = [event("response.function_call_arguments.delta", output_index=at, delta=text) for at, text in pieces]
    data = stream(end=b"".join([*begun, *deltas]) + event("response.completed", response=response(one, two)))
    items = read(data)
    assert [item.arguments for item in items if isinstance(item, ToolCallItem) and item.index == 0] == [
        "", '{"a"', ":1}",
    ]  # fmt: skip
    first, second = finish_of(data).message.tool_calls
    assert (first.arguments, first.arguments_text) == ({"a": 1}, None)
    assert (second.arguments, second.arguments_text) == (None, "{oops")


def test_r23_a_repeated_or_missing_id_is_replaced() -> None:
    data = stream(function_call("a", "f", "{}"), function_call("a", "g", "{}"), function_call("", "h", "{}", id=""))
    assert [call.id for call in finish_of(data).message.tool_calls] == ["a", "call_1", "call_2"]
    calls = Assembler()
    for item in read(data):
        calls.add(item)
    assert [call.id for call in calls.message().tool_calls] == ["a", "call_1", "call_2"]


def test_r24_null_arguments() -> None:
    (call,) = finish_of(stream(function_call("a", "f", "null"))).message.tool_calls
    assert (call.arguments, call.arguments_text) == ({}, "null")


@pytest.mark.parametrize(("text", "kept"), [('{"a": "x', '{"a": "x'), ("", "")])
def test_r25_a_call_cut_by_the_length_has_no_arguments(text: str, kept: str) -> None:
    cut = function_call("b", "g", text, status="incomplete")
    whole = function_call("a", "f", '{"a":1}')
    details = {"reason": "max_output_tokens"}
    end = event("response.incomplete", response=response(whole, cut, status="incomplete", incomplete_details=details))
    for found in (finish_of(stream(whole, cut, end=end)),
                  answer(whole, cut, status="incomplete", incomplete_details=details)):  # fmt: skip
        assert (found.reason, found.raw) == ("length", "max_output_tokens")
        assert found.message.tool_calls == (ToolCall("a", "f", {"a": 1}), ToolCall("b", "g", None, kept))


def test_a_call_keeps_its_namespace() -> None:
    found = finish_of(stream(function_call("a", "f", "{}", namespace="crm")))
    assert found.message.tool_calls[0].provider_metadata == {OURS: {"namespace": "crm"}}


# ------------------------------------------------------------------------------------------------------ usage, endings


@pytest.mark.parametrize("times", [1, 2])
def test_r21_usage_is_told_once(times: int) -> None:
    data = PLAIN + event("response.completed", response=response(message("more"))) * (times - 1)
    assert [item for item in read(data) if isinstance(item, UsageItem)] == [UsageItem(Usage(10, 4, 6, 0, 3))]


def test_r21_missing_usage_is_estimated() -> None:
    for usage in (None, {}, "x"):
        assert answer(message("x"), usage=usage).usage == Usage(estimated=True)
    found = answer(message("x"), usage={**USAGE, "cost": 0.5})
    assert (found.usage, found.cost) == (Usage(10, 4, 6, 0, 3), 500_000_000)


@pytest.mark.parametrize(
    ("status", "details", "reason"),
    [
        ("completed", None, "stop"),
        ("incomplete", "max_output_tokens", "length"),
        ("incomplete", "content_filter", "content_filter"),
        ("incomplete", "brand_new", "interrupted"),
        ("incomplete", None, "interrupted"),
        ("cancelled", None, "interrupted"),
    ],
)
def test_r27_reasons(status: str, details: str | None, reason: FinishReason) -> None:
    body = response(message("x"), status=status, incomplete_details={"reason": details} if details else None)
    kind = "response.incomplete" if status == "incomplete" else "response.done"
    streamed = finish_of(stream(message("x"), end=event(kind, response=body)))
    assert (streamed.reason, streamed.raw) == (reason, details or status)
    assert DIALECT.decode_response(dumps(body)) == streamed


def test_r27_a_refusal_and_an_empty_answer() -> None:
    refused = {**message(""), "content": [{"type": "refusal", "refusal": "I cannot."}]}
    for found in (finish_of(stream(refused)), answer(refused)):
        assert (found.reason, found.message.text) == ("refusal", "I cannot.")
    for found in (finish_of(stream()), answer(), answer(message(""))):
        assert (found.message.parts, found.reason) == ((), "stop")


def test_what_a_text_carries_is_kept() -> None:
    note = {"type": "url_citation", "start_index": 0, "end_index": 1, "url": "https://h", "title": "H"}
    cited = message("x")
    cited["content"][0]["annotations"] = [note]
    assert answer(cited, service_tier="flex").message.parts == (Text("x", {OURS: {"annotations": [note]}}),)
    assert answer(cited, service_tier="flex").provider_metadata == {OURS: {"service_tier": "flex"}}


def test_open_models_think_in_plain_text() -> None:
    item = {"id": "rs_1", "type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "hm so"}]}
    where = {"item_id": "rs_1", "output_index": 0, "content_index": 0}
    deltas = b"".join([event("response.reasoning_text.delta", **where, delta=text) for text in ("hm", " so")])
    begun = event("response.output_item.added", output_index=0, item={**item, "content": []})
    done = event("response.output_item.done", output_index=0, item=item)
    end = begun + deltas + done + event("response.completed", response=response(item))
    assert finish_of(stream(end=end)) == answer(item)
    assert answer(item).message.parts == (Reasoning("hm so", {OURS: {"items": [item]}}),)


def test_a_server_that_knows_only_one_way_to_answer() -> None:
    body = dumps(response(message("hi")))
    for step in (None, 1):
        assert read(b"\n" + body, step)[:-1] == [TextItem("hi"), UsageItem(Usage(10, 4, 6, 0, 3))]
    with pytest.raises(RateLimitError):
        read(dumps({"error": {"code": "rate_limit_exceeded", "message": "x"}}))
    assert DIALECT.decode_response(b"\n" + RICH) == finish_of(RICH)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"{}", "no output"),
        (b"[]", "not an object"),
        (b"", "empty"),
        (dumps(response(status="in_progress")), "background"),
        (dumps(response(status="queued")), "background"),
        (b"event: response.created\n\n", "before the model had finished"),
    ],
)
def test_bodies_that_are_no_answers(body: bytes, words: str) -> None:
    with pytest.raises(WireError, match=words):
        DIALECT.decode_response(body)


def test_halves_of_a_character_in_two_deltas() -> None:
    where = {"item_id": "msg_1", "output_index": 0, "content_index": 0}
    kind = "response.output_text.delta"
    halves = b"".join(
        [
            f'event: {kind}\ndata: {{"type":"{kind}","delta":"{half}",'.encode() + dumps(where)[1:] + b"\n\n"
            for half in ("\\ud83e", "\\udd9c")
        ]
    )
    begun = event("response.output_item.added", output_index=0, item={**message(""), "content": []})
    end = event("response.completed", response=response())
    assert finish_of(stream(end=begun + halves + end)).message.parts == (Text("🦜"),)


# --------------------------------------------------------------------------------------------------------------- fuzz

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-1, 3) | st.text(max_size=4)
    | st.sampled_from(["message", "reasoning", "function_call", "custom_tool_call"]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(
            ["type", "item", "delta", "id", "item_id", "output_index", "content_index", "content", "text", "name",
             "call_id", "arguments", "response", "output", "usage", "status", "error", "summary", "encrypted_content"]
        ),
        inner,
        max_size=5,
    ),
    max_leaves=12,
)  # fmt: skip
KINDS = st.sampled_from(
    ["response.created", "response.output_item.added", "response.output_item.done", "response.output_text.delta",
     "response.output_text.done", "response.refusal.delta", "response.function_call_arguments.delta",
     "response.function_call_arguments.done", "response.custom_tool_call_input.delta",
     "response.reasoning_summary_text.delta", "response.reasoning_text.delta", "response.completed",
     "response.incomplete", "error"]
)  # fmt: skip


@given(st.lists(st.tuples(KINDS, st.dictionaries(st.sampled_from(["item", "delta", "output_index", "item_id", "text",
       "arguments", "content_index", "summary_index", "response"]), JSON, max_size=5)), max_size=8))  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_events_of_any_shape_raise_only_our_errors(events: list[tuple[str, dict[str, Any]]]) -> None:
    data = b"".join([event(kind, **fields) for kind, fields in events])
    try:
        items = read(data)
    except WindlassError:
        return
    assert isinstance(items[-1], Finish) and not any(isinstance(item, NoticeItem) for item in items)


@given(JSON)
@settings(max_examples=60, deadline=None)
def test_answers_of_any_shape_raise_only_our_errors(value: Any) -> None:
    for body in (value, {"output": value}, {"output": [value], "status": "completed"}):
        try:
            assert isinstance(DIALECT.decode_response(dumps(body)), Finish)
        except WindlassError:
            pass
