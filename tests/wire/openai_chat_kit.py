"""Chunks, streams and answers for the chat-completions tests."""

from __future__ import annotations

from typing import Any

from windlass.core.items import Finish, Item
from windlass.core.json import dumps
from windlass.core.messages import ToolCall
from windlass.wire.openai_chat import DIALECT

DONE = b"data: [DONE]\n\n"
USAGE = {"prompt_tokens": 10, "completion_tokens": 4, "total_tokens": 14}


def chunk(delta: dict[str, Any] | None = None, finish: str | None = None, **top: Any) -> bytes:
    choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": finish}]
    head = {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "m-1", "choices": choices}
    return b"data: " + dumps({**head, **top}) + b"\n\n"


def tool(**entry: Any) -> dict[str, Any]:
    return {"tool_calls": [entry]}


def read(stream: bytes, step: int | None = None) -> list[Item]:
    decoder = DIALECT.stream_decoder()
    size = step or len(stream) or 1
    out: list[Item] = []
    for at in range(0, len(stream), size):
        out += decoder.feed(stream[at : at + size])
    return out + decoder.close()


def finish_of(stream: bytes) -> Finish:
    last = read(stream)[-1]
    assert isinstance(last, Finish)
    return last


def calls_of(*deltas: dict[str, Any], finish: str | None = "tool_calls") -> tuple[ToolCall, ...]:
    found = finish_of(b"".join([chunk(delta) for delta in deltas]) + chunk({}, finish) + DONE)
    return found.message.tool_calls


def answer(message: dict[str, Any], finish: str | None = "stop", **top: Any) -> Finish:
    choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": finish}
    return DIALECT.decode_response(dumps({"id": "r", "model": "m-1", "choices": [choice], **top}))
