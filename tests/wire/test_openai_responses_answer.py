"""What we answer as a Responses server: golden event sequences, whole answers, errors."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai_responses_kit import events_of, function_call, message, reasoning, stream
from openai_responses_kit import read as read_stream

from windlass.core.errors import (
    BadRequestError,
    ContextExceededError,
    OverloadedError,
    ProviderError,
    RateLimitError,
    RequestRefused,
    WindlassError,
)
from windlass.core.items import Finish, FinishReason, Item, NoticeItem, ReasoningItem, TextItem, ToolCallItem, UsageItem
from windlass.core.json import dumps, loads
from windlass.core.messages import Message, Part, Reasoning, Text, ToolCall, UnknownPart
from windlass.core.models import Capabilities
from windlass.core.usage import Usage
from windlass.wire.openai_responses import DIALECT, echo_fields

OURS = "openai_responses"
USAGE = Usage(12, 7, 4, 1, 3)


def finish(*parts: Part, reason: FinishReason = "stop") -> Finish:
    return Finish(Message("assistant", parts, finish_reason=reason), USAGE, reason)


def encoded(items: list[Item], echo: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    encoder = DIALECT.stream_encoder(model="m", response_id="resp_x", created=7, echo=echo)
    return events_of(b"".join([encoder.encode(item) for item in items]))


def whole(found: Finish, echo: dict[str, Any] | None = None) -> dict[str, Any]:
    return loads(DIALECT.encode_response(found, model="m", response_id="resp_x", created=7, echo=echo))


def kinds(events: list[dict[str, Any]]) -> list[str]:
    return [event["type"].removeprefix("response.") for event in events]


BEGIN = ["created", "in_progress"]
MESSAGE = ["output_item.added", "content_part.added"]
MESSAGE_END = ["output_text.done", "content_part.done", "output_item.done"]
THOUGHT = ["output_item.added", "reasoning_summary_part.added"]
THOUGHT_END = ["reasoning_summary_text.done", "reasoning_summary_part.done", "output_item.done"]
CALL_END = ["function_call_arguments.done", "output_item.done"]


def test_golden_text() -> None:
    events = encoded(
        [NoticeItem("retry", "x"), TextItem("Hel"), TextItem("lo"), UsageItem(USAGE), finish(Text("Hello"))]
    )
    assert kinds(events) == [
        *BEGIN, *MESSAGE, "output_text.delta", "output_text.delta", *MESSAGE_END, "completed",
    ]  # fmt: skip
    where = {"item_id": "msg_x_0", "output_index": 0, "content_index": 0}
    part = {"type": "output_text", "text": "Hello", "annotations": [], "logprobs": []}
    item = {"id": "msg_x_0", "type": "message", "status": "completed", "role": "assistant", "content": [part]}
    assert events[2]["item"] == {**item, "status": "in_progress", "content": []}
    assert events[3] == {
        "type": "response.content_part.added", "sequence_number": 3, **where, "part": {**part, "text": ""},
    }  # fmt: skip
    assert events[4] == {
        "type": "response.output_text.delta", "sequence_number": 4, **where, "delta": "Hel", "logprobs": [],
    }  # fmt: skip
    assert events[6] == {
        "type": "response.output_text.done", "sequence_number": 6, **where, "text": "Hello", "logprobs": [],
    }  # fmt: skip
    assert events[7]["part"] == part and events[8]["item"] == item
    last = events[-1]["response"]
    assert (last["id"], last["status"], last["output"], last["created_at"]) == ("resp_x", "completed", [item], 7)
    assert last["usage"] == {
        "input_tokens": 12, "input_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 1},
        "output_tokens": 7, "output_tokens_details": {"reasoning_tokens": 3}, "total_tokens": 19,
    }  # fmt: skip
    begun = events[0]["response"]
    assert (begun["status"], begun["output"], begun["usage"]) == ("in_progress", [], None)
    assert (
        {**begun, "status": "completed", "output": [item], "usage": last["usage"]}
        == last
        == whole(finish(Text("Hello")))
    )


def test_golden_reasoning_text_and_parallel_calls() -> None:
    parts = (Reasoning("hm"), Text("so"), ToolCall("a", "f", {"x": 1}), ToolCall("b", "g", {}))
    events = encoded(
        [
            ReasoningItem("h"),
            ReasoningItem("m"),
            TextItem("so"),
            ToolCallItem(0, "a", "f"),
            ToolCallItem(0, arguments='{"x"'),
            ToolCallItem(0, arguments=":1}"),
            ToolCallItem(1, "b", "g"),
            finish(*parts, reason="tool_call"),
        ]
    )
    assert kinds(events) == [
        *BEGIN,
        *THOUGHT, "reasoning_summary_text.delta", "reasoning_summary_text.delta", *THOUGHT_END,
        *MESSAGE, "output_text.delta", *MESSAGE_END,
        "output_item.added", "function_call_arguments.delta", "function_call_arguments.delta", *CALL_END,
        # A call without arguments has an empty object: clients read them as JSON.
        "output_item.added", "function_call_arguments.delta", *CALL_END,
        "completed",
    ]  # fmt: skip
    ids = [(event["output_index"], event["item"]["id"]) for event in events if "item" in event]
    assert ids == [
        (0, "rs_x_0"), (0, "rs_x_0"), (1, "msg_x_1"), (1, "msg_x_1"),
        (2, "fc_x_2"), (2, "fc_x_2"), (3, "fc_x_3"), (3, "fc_x_3"),
    ]  # fmt: skip
    output = events[-1]["response"]["output"]
    assert output[0] == {"id": "rs_x_0", "type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}]}
    assert output[3] == {
        "id": "fc_x_3", "type": "function_call", "call_id": "b", "name": "g", "arguments": "{}", "status": "completed",
    }  # fmt: skip
    assert events[-1]["response"] == whole(finish(*parts, reason="tool_call"))


def test_r22_interleaved_calls_stay_open_beside_each_other() -> None:
    events = encoded(
        [
            ToolCallItem(4, "a", "f", '{"x"'),
            ToolCallItem(9, "b", "g", '{"y"'),
            ToolCallItem(4, arguments=":1}"),
            ToolCallItem(9, arguments=":2}"),
            finish(ToolCall("a", "f", {"x": 1}), ToolCall("b", "g", {"y": 2}), reason="tool_call"),
        ]
    )
    places = [(event["output_index"], event["delta"]) for event in events if "delta" in event]
    assert places == [(0, '{"x"'), (1, '{"y"'), (0, ":1}"), (1, ":2}")]
    assert [item["arguments"] for item in events[-1]["response"]["output"]] == ['{"x":1}', '{"y":2}']


def test_a_call_is_announced_once_its_name_is_known() -> None:
    events = encoded(
        [ToolCallItem(0, "a", None, '{"x'), ToolCallItem(0, None, "f", '":1}'), finish(reason="tool_call")]
    )
    added = next(event for event in events if event["type"] == "response.output_item.added")
    assert (added["item"]["name"], added["item"]["call_id"], added["item"]["arguments"]) == ("f", "a", "")
    assert [event["delta"] for event in events if "delta" in event] == ['{"x":1}']


PARTS: list[tuple[Part, ...]] = [
    (),
    (Text("a"),),
    (Reasoning("t"), Text("a"), ToolCall("c", "f", {"x": "y"})),
    (ToolCall("c", "f", None, '{"cut'), ToolCall("d", "g", {"x": 1}, '{"x": 1}')),
    (Reasoning("", {OURS: {"items": [reasoning("s", encrypted="gA"), reasoning(identity="rs_9")]}}), Text("x")),
    (
        Reasoning("s", {OURS: {"items": [reasoning("s")]}}),
        UnknownPart({"type": "openai_responses.web_search_call", "item": {"id": "ws", "type": "web_search_call"}}),
        Text("x"),
    ),
    (Reasoning("s", {"anthropic": {"signature": "sig"}}), Text("x")),
    (ToolCall("c", "patch", {"input": "diff"}, None, {OURS: {"type": "custom_tool_call"}}),),
    (UnknownPart({"type": "anthropic.server_tool_use", "block": {}}), Text("x")),
]


@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize("reason", ["stop", "length", "content_filter", "refusal"])
def test_an_answer_that_came_whole_streams_as_the_same(parts: tuple[Part, ...], reason: FinishReason) -> None:
    found = finish(*parts, reason=reason)
    events = encoded([found])
    same = whole(found)
    for item in same["output"]:
        # Only a stream knows what was cut: there the item was never done.
        item.pop("status", None)
    last = events[-1]["response"]
    for item in last["output"]:
        item.pop("status", None)
    assert last == same
    done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    assert [item["id"] for item in done] == [item["id"] for item in last["output"]]


@pytest.mark.parametrize("parts", PARTS)
def test_what_was_streamed_to_us_streams_on(parts: tuple[Part, ...]) -> None:
    """Read our own answer as a provider's and write it again: nothing is lost, ids of reasoning items stay."""
    reason: FinishReason = "tool_call" if any(isinstance(part, ToolCall) for part in parts) else "stop"
    sent = finish(*parts, reason=reason)
    encoder = DIALECT.stream_encoder(model="m", response_id="resp_x", created=7)
    items = read_stream(encoder.encode(sent))
    again = encoded(items)[-1]["response"]
    assert again == whole(sent)
    last = items[-1]
    assert isinstance(last, Finish)
    assert whole(last) == again


def test_a_stream_of_openais_goes_through_with_its_items_in_order() -> None:
    search = {"id": "ws_1", "type": "web_search_call", "status": "completed", "action": {"type": "search"}}
    output = [
        reasoning("One.", "Two.", identity="rs_a"),
        search,
        reasoning("Three.", identity="rs_b"),
        reasoning(identity="rs_c"),
        message("Found."),
        function_call("a", "f", '{"x": 1}'),
        {"id": "ctc_1", "type": "custom_tool_call", "call_id": "c", "name": "patch", "input": 'say "hi"\n'},
    ]
    events = encoded(read_stream(stream(*output)))
    told = events[-1]["response"]["output"]
    assert [item["type"] for item in told] == [item["type"] for item in output]
    assert told[:4] == output[:4]
    assert (told[5]["arguments"], told[5]["call_id"]) == ('{"x": 1}', "a")
    assert (told[6]["input"], told[6]["call_id"], told[6]["name"]) == ('say "hi"\n', "c", "patch")
    added = [event["item"]["id"] for event in events if event["type"] == "response.output_item.added"]
    assert added == ["rs_a", "ws_1", "rs_b", "rs_c", "msg_x_4", "fc_x_5", "ctc_x_6"]
    thoughts = [event["text"] for event in events if event["type"] == "response.reasoning_summary_text.done"]
    assert thoughts == ["One.\n\nTwo.", "Three."]


def test_r28_a_foreign_signature_comes_back_through_the_client() -> None:
    """What Anthropic signed travels as `encrypted_content`: the client sends it back unread."""
    metadata = {"anthropic": {"signature": "c2ln"}}
    events = encoded(
        [ReasoningItem("I "), ReasoningItem("think"), ReasoningItem("", metadata), TextItem("so"), finish(Text("so"))]
    )
    item = events[-1]["response"]["output"][0]
    assert item["summary"] == [{"type": "summary_text", "text": "I think"}] and item["encrypted_content"]
    body = {"model": "m", "input": [{"role": "user", "content": "x"}, item, {"role": "assistant", "content": "so"}]}
    decoded = DIALECT.decode_request(dumps(body))
    assert decoded.request.messages[1].parts == (Reasoning("I think", metadata), Text("so"))
    # Another vendor's seal is nothing to OpenAI.
    sent = loads(DIALECT.encode_request(decoded.request, Capabilities(), stream=False))
    assert [row["type"] for row in sent["input"]] == ["message", "message"]


def test_two_signatures_are_two_items() -> None:
    first, second = {"anthropic": {"signature": "a"}}, {"anthropic": {"redacted_data": "b"}}
    events = encoded([ReasoningItem("x"), ReasoningItem("", first), ReasoningItem("", second), finish()])
    items = events[-1]["response"]["output"]
    assert [len(item["summary"]) for item in items] == [1, 0]
    assert items[0]["encrypted_content"] != items[1]["encrypted_content"]


def test_custom_tools_are_answered_as_such() -> None:
    echo = {"tools": [{"type": "custom", "name": "patch"}]}
    call = ToolCall("c", "patch", {"input": 'a "b"'})
    items: list[Item] = [
        ToolCallItem(0, "c", "patch", '{"inp'),
        ToolCallItem(0, arguments='ut": "a \\"b\\""}'),
        finish(call, reason="tool_call"),
    ]
    events = encoded(items, echo)
    assert kinds(events)[2:-1] == [
        "output_item.added", "custom_tool_call_input.delta", "custom_tool_call_input.done", "output_item.done",
    ]  # fmt: skip
    (item,) = events[-1]["response"]["output"]
    assert (item["type"], item["id"], item["input"]) == ("custom_tool_call", "ctc_x_0", 'a "b"')
    assert whole(finish(call, reason="tool_call"), echo)["output"] == [item]
    # A model that did not keep to the one argument.
    bare = encoded([ToolCallItem(0, "c", "patch", "plain"), finish(reason="tool_call")], echo)
    assert bare[-1]["response"]["output"][0]["input"] == "plain"


# -------------------------------------------------------------------------------------------------------- endings


@pytest.mark.parametrize(
    ("reason", "status", "details"),
    [
        ("stop", "completed", None),
        ("length", "incomplete", {"reason": "max_output_tokens"}),
        ("content_filter", "incomplete", {"reason": "content_filter"}),
        ("refusal", "incomplete", {"reason": "content_filter"}),
    ],
)
def test_r27_ends(reason: FinishReason, status: str, details: Any) -> None:
    events = encoded([TextItem("par"), finish(Text("par"), reason=reason)])
    last = events[-1]
    assert last["type"] == f"response.{status}"
    assert (last["response"]["status"], last["response"]["incomplete_details"]) == (status, details)
    assert last["response"]["output"][0]["status"] == status


def test_r27_a_refusal_that_came_whole_is_told_as_one() -> None:
    events = encoded([finish(Text("No."), reason="refusal")])
    assert kinds(events) == [
        *BEGIN, *MESSAGE, "refusal.delta", "refusal.done", "content_part.done", "output_item.done", "completed",
    ]  # fmt: skip
    assert events[-1]["response"]["output"][0]["content"] == [{"type": "refusal", "refusal": "No."}]
    assert whole(finish(reason="refusal"))["incomplete_details"] == {"reason": "content_filter"}


def test_r25_a_call_that_was_cut_is_incomplete() -> None:
    events = encoded(
        [ToolCallItem(0, "a", "f", '{"x": "cu'), ToolCallItem(1, "b", "g"),
         finish(ToolCall("a", "f", None, '{"x": "cu'), ToolCall("b", "g", None, ""), reason="length")]
    )  # fmt: skip
    output = events[-1]["response"]["output"]
    assert [(item["arguments"], item["status"]) for item in output] == [
        ('{"x": "cu', "incomplete"), ("", "incomplete"),
    ]  # fmt: skip


@pytest.mark.parametrize("reason", ["interrupted", "error"])
def test_r33_a_broken_answer_never_ends_cleanly(reason: FinishReason) -> None:
    events = encoded([TextItem("par"), finish(Text("par"), reason=reason)])
    assert kinds(events)[-2:] == ["error", "failed"]
    assert not {"completed", "incomplete"} & set(kinds(events))
    assert events[-1]["response"]["status"] == "failed"
    assert events[-1]["response"]["output"][0]["content"][0]["text"] == "par"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ContextExceededError("x"), "context_length_exceeded"),
        (RateLimitError("x"), "rate_limit_exceeded"),
        (BadRequestError("x"), "invalid_prompt"),
        (OverloadedError("x"), "server_error"),
        (ProviderError("x"), "server_error"),
        (RequestRefused(402, "x", reason="budget"), "invalid_prompt"),
        (RequestRefused(429, "x"), "rate_limit_exceeded"),
        (WindlassError("x"), "server_error"),
    ],
)
def test_errors_after_the_headers(error: WindlassError, code: str) -> None:
    encoder = DIALECT.stream_encoder(model="m", response_id="resp_x", created=7)
    assert encoder.response == {}
    first, last = events_of(encoder.error(error))
    assert encoder.response == last["response"]
    assert (first["type"], first["message"], first["error"]["message"]) == ("error", "x", "x")
    assert last["response"]["error"] == {"code": code, "message": "x"}
    assert (last["type"], last["response"]["status"]) == ("response.failed", "failed")


# ----------------------------------------------------------------------------------------------------------- the rest


def test_what_a_response_repeats_of_its_request() -> None:
    body = {
        "model": "m", "input": "x", "instructions": "Be brief.", "metadata": {"k": "v"}, "store": True, "user": None,
        "conversation": "conv_1", "temperature": 0.5, "stream": True, "previous_response_id": "resp_0",
    }  # fmt: skip
    echo = echo_fields(body)
    assert echo == {
        "instructions": "Be brief.", "metadata": {"k": "v"}, "store": True, "conversation": {"id": "conv_1"},
        "temperature": 0.5, "previous_response_id": "resp_0",
    }  # fmt: skip
    told = whole(finish(Text("x")), echo)
    assert {key: told[key] for key in echo} == echo
    assert (told["tool_choice"], told["tools"], told["parallel_tool_calls"]) == ("auto", [], True)


def test_cost_and_what_a_vendor_said_of_the_answer() -> None:
    found = Finish(
        Message("assistant", (Text("x"),)), USAGE, cost=1_500_000, provider_metadata={OURS: {"service_tier": "flex"}}
    )
    told = whole(found)
    assert (told["usage"]["cost"], told["service_tier"]) == (0.0015, "flex")
    assert encoded([found])[-1]["response"] == told


def test_ids_are_pure_and_short() -> None:
    long = "resp_" + "y" * 100
    for response_id in ("resp_x", "chatcmpl-ü", long):
        made = [
            DIALECT.encode_response(finish(Text("a")), model="m", response_id=response_id, created=1) for _ in range(2)
        ]
        assert made[0] == made[1]
        item = loads(made[0])["output"][0]
        assert item["id"].startswith("msg_") and len(item["id"]) <= 64 and item["id"].isascii()


@given(st.lists(st.text(st.characters(exclude_categories=[]), min_size=1, max_size=5), min_size=1, max_size=4))
@settings(max_examples=50, deadline=None)
def test_any_text_survives_its_events(pieces: list[str]) -> None:
    text = "".join(pieces).encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    encoder = DIALECT.stream_encoder(model="m", response_id="r", created=7)
    data = b"".join([encoder.encode(TextItem(piece)) for piece in pieces] + [encoder.encode(finish(Text(text)))])
    last = read_stream(data)[-1]
    assert isinstance(last, Finish)
    assert last.message.text.replace("\ufffd", "") == text.replace("\ufffd", "")
