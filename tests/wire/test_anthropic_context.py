"""Context that Anthropic's servers clear: the edits they report, read from their answers and written to clients."""

from __future__ import annotations

import json
from typing import Any

import pytest
from anthropic.types.beta import BetaMessage, BetaRawMessageDeltaEvent

from windlass.core.items import Finish, Item, TextItem
from windlass.core.messages import Message, Text
from windlass.core.usage import Usage
from windlass.wire.anthropic import DIALECT
from windlass.wire.sse import SseDecoder

EDITS = {
    "applied_edits": [
        {"type": "clear_tool_uses_20250919", "cleared_tool_uses": 8, "cleared_input_tokens": 50_000},
        {"type": "clear_thinking_20251015", "cleared_thinking_turns": 3, "cleared_input_tokens": 15_000},
    ]
}
ANSWER = {
    "id": "msg_1", "type": "message", "role": "assistant", "model": "claude-sonnet-4-5",
    "content": [{"type": "text", "text": "Done."}], "stop_reason": "end_turn", "stop_sequence": None,
    "usage": {"input_tokens": 100, "output_tokens": 2}, "context_management": EDITS,
}  # fmt: skip
FINISH = Finish(
    Message("assistant", (Text("Done."),)), usage=Usage(100, 2),
    provider_metadata={"anthropic": {"context_management": EDITS}},
)  # fmt: skip


def streamed(delta: dict[str, Any]) -> list[Item]:
    start = {**ANSWER, "content": [], "stop_reason": None, "context_management": None}
    rows: list[dict[str, Any]] = [
        {"type": "message_start", "message": start},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Done."}},
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 2}, **delta},
        {"type": "message_stop"},
    ]
    decoder = DIALECT.stream_decoder()
    data = "".join([f"event: {row['type']}\ndata: {json.dumps(row)}\n\n" for row in rows])
    return [*decoder.feed(data.encode()), *decoder.close()]


def test_edits_of_a_whole_answer_are_metadata() -> None:
    finish = DIALECT.decode_response(json.dumps(ANSWER).encode())
    assert finish.provider_metadata == {"anthropic": {"context_management": EDITS}}


@pytest.mark.parametrize(
    ("delta", "metadata"),
    [
        ({"context_management": EDITS}, {"anthropic": {"context_management": EDITS}}),
        ({"context_management": None}, None),
        ({"context_management": "odd"}, None),
        ({}, None),
    ],
)
def test_edits_of_a_stream_are_metadata(delta: dict[str, Any], metadata: Any) -> None:
    finish = streamed(delta)[-1]
    assert isinstance(finish, Finish) and finish.provider_metadata == metadata


def test_clients_of_the_official_sdk_read_them() -> None:
    body = json.loads(DIALECT.encode_response(FINISH, model="m", response_id="msg_2", created=0))
    message = BetaMessage.model_validate(body)
    assert message.context_management is not None
    assert message.context_management.model_dump() == EDITS
    encoder = DIALECT.stream_encoder(model="m", response_id="msg_2", created=0)
    data = encoder.encode(TextItem("Done.")) + encoder.encode(FINISH)
    events = {name: json.loads(payload) for name, payload in SseDecoder().feed(data)}
    delta = BetaRawMessageDeltaEvent.model_validate(events["message_delta"])
    assert delta.context_management is not None and delta.context_management.model_dump() == EDITS
    decoder = DIALECT.stream_decoder()
    back = [*decoder.feed(data), *decoder.close()][-1]
    assert isinstance(back, Finish) and back.provider_metadata == FINISH.provider_metadata


def test_other_answers_say_nothing_of_it() -> None:
    plain = Finish(Message("assistant", (Text("Done."),)))
    assert b"context_management" not in DIALECT.encode_response(plain, model="m", response_id="r", created=0)
    encoder = DIALECT.stream_encoder(model="m", response_id="r", created=0)
    assert b"context_management" not in encoder.encode(plain)
