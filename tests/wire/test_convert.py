"""Conversations of the vendors' SDKs become ours, and ours theirs."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from anthropic.types import Message as AnthropicMessage
from hypothesis import given, settings
from openai.types.chat import ChatCompletion
from wire_strategies import conversations, images

from windlass.core.errors import BadRequestError, UnsupportedInputError
from windlass.core.messages import Blob, Message, Reasoning, Text, ToolCall, ToolResponse, system, user
from windlass.testing.validity import check_anthropic, check_ollama, check_openai
from windlass.wire.convert import (
    auto_convert,
    auto_detect,
    from_anthropic,
    from_ollama,
    from_openai,
    to_anthropic,
    to_ollama,
    to_openai,
)

CALL = ToolCall("c1", "look", {"q": 1})
TALK = [
    user("Hi"),
    Message("assistant", (Text("Hm."), CALL)),
    Message("tool", (ToolResponse("c1", "seen"),)),
    Message("assistant", (Text("Done."),)),
]
ANTHROPIC: list[dict[str, Any]] = [
    {"role": "user", "content": "Hi"},
    {
        "role": "assistant",
        "content": [
            {"type": "text", "text": "Hm."},
            {"type": "tool_use", "id": "c1", "name": "look", "input": {"q": 1}},
        ],
    },
    {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c1", "content": "seen"}]},
    {"role": "assistant", "content": "Done."},
]
OPENAI: list[dict[str, Any]] = [
    {"role": "user", "content": "Hi"},
    {
        "role": "assistant",
        "content": "Hm.",
        "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"q":1}'}}],
    },
    {"role": "tool", "tool_call_id": "c1", "content": "seen"},
    {"role": "assistant", "content": "Done."},
]
OLLAMA: list[dict[str, Any]] = [
    {"role": "user", "content": "Hi"},
    {
        "role": "assistant",
        "content": "Hm.",
        "tool_calls": [{"id": "c1", "function": {"name": "look", "arguments": {"q": 1}}}],
    },
    {"role": "tool", "content": "seen", "tool_name": "look", "tool_call_id": "c1"},
    {"role": "assistant", "content": "Done."},
]
WINDLASS: list[dict[str, Any]] = msgspec.to_builtins(TALK)
FORMS = {"anthropic": ANTHROPIC, "openai": OPENAI, "ollama": OLLAMA, "windlass": WINDLASS}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_detected_and_read(form: str) -> None:
    assert auto_detect(FORMS[form]) == form
    assert auto_convert(FORMS[form]) == TALK


def test_every_form_is_written() -> None:
    assert to_openai(TALK) == OPENAI
    assert to_ollama(TALK) == OLLAMA
    blocks = [{"role": row["role"], "content": blocked(row["content"])} for row in ANTHROPIC]
    assert to_anthropic(TALK) == blocks


def blocked(content: Any) -> Any:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


@pytest.mark.parametrize(
    ("row", "form"),
    [
        ({"role": "user", "content": "plain"}, "openai"),
        ({"role": "user", "content": [{"type": "text", "text": "x"}]}, "openai"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "u"}}]}, "openai"),
        ({"role": "developer", "content": "x"}, "openai"),
        ({"role": "assistant", "content": None, "refusal": "no"}, "openai"),
        ({"role": "assistant", "content": None, "refusal": None}, "openai"),
        ({"role": "user", "content": [{"type": "image", "source": {"type": "url", "url": "u"}}]}, "anthropic"),
        ({"role": "assistant", "content": [{"type": "thinking", "thinking": "", "signature": "s"}]}, "anthropic"),
        ({"role": "user", "content": "x", "images": ["aGk="]}, "ollama"),
        ({"role": "assistant", "content": "", "thinking": "hm"}, "ollama"),
        ({"role": "tool", "content": "x"}, "ollama"),
        ({"role": "user", "parts": []}, "windlass"),
    ],
)
def test_detection(row: dict[str, Any], form: str) -> None:
    assert auto_detect([{"role": "user", "content": "x"}, row]) == form


def test_mixed_forms_are_refused_with_both_places() -> None:
    with pytest.raises(
        BadRequestError, match=r"^messages\[2\]: has the form of openai, but messages\[1\] that of anthropic"
    ):
        auto_convert([ANTHROPIC[0], ANTHROPIC[1], OPENAI[2]])


@pytest.mark.parametrize(
    ("read", "rows", "path"),
    [
        (
            from_anthropic,
            [{"role": "user", "content": "x"}, {"role": "user", "content": 3}],
            r"messages\[1\]\.content: ",
        ),
        (from_anthropic, ["x"], r"messages\[0\]: "),
        (
            from_openai,
            [{"role": "user", "content": "x"}, {"role": "tool", "content": "x"}],
            r"messages\[1\]\.tool_call_id: ",
        ),
        (from_ollama, [{"role": "user", "content": 3}], r"messages\[0\]\.content: "),
        (from_ollama, [{"role": "user", "content": object()}], r"messages\[0\]: holds a object"),
        (auto_convert, [{"role": "user", "parts": [{"type": "text"}]}], r"messages\[0\]: "),
        (auto_convert, [{"role": "king", "parts": []}], r"messages\[0\]: "),
    ],
)
def test_errors_name_the_index(read: Callable[[Any], Any], rows: Any, path: str) -> None:
    with pytest.raises(BadRequestError, match=f"^{path}"):
        read(rows)


def test_sdk_objects_inside_the_lists() -> None:
    answer = AnthropicMessage.model_validate(
        {
            "id": "m", "type": "message", "role": "assistant", "model": "x", "stop_reason": "tool_use",
            "content": [
                {"type": "thinking", "thinking": "h", "signature": "s"},
                {"type": "tool_use", "id": "c1", "name": "look", "input": {"q": 1}},
            ],
            "usage": {"input_tokens": 1, "output_tokens": 1},
        }
    )  # fmt: skip
    expected = (Reasoning("h", {"anthropic": {"signature": "s"}}), CALL)
    assert auto_convert([{"role": "assistant", "content": answer.content}])[0].parts == expected
    chat = ChatCompletion.model_validate(
        {"id": "c", "object": "chat.completion", "created": 0, "model": "m", "choices": [
            {"index": 0, "finish_reason": "tool_calls", "logprobs": None, "message": OPENAI[1]}]}
    )  # fmt: skip
    said: Any = chat.choices[0].message
    assert from_openai([OPENAI[0], said, OPENAI[2]]) == TALK[:3]


def test_system_messages_keep_their_place() -> None:
    talk = [system("one"), user("a"), system("two"), user("b")]
    assert from_anthropic(to_anthropic(talk)) == talk
    assert from_openai(to_openai(talk)) == talk
    assert from_ollama(to_ollama(talk)) == talk
    assert from_openai([]) == from_anthropic([]) == from_ollama([]) == auto_convert([]) == []


def test_what_a_form_cannot_hold_is_refused() -> None:
    with pytest.raises(UnsupportedInputError, match="Ollama's format takes text documents"):
        to_ollama([user([Blob(b"%PDF-", "application/pdf", "document")])])


@given(conversations(media=images))
@settings(max_examples=30, deadline=None)
def test_there_and_back(messages: list[Message]) -> None:
    """Keep every text, call, result and image, whichever form lies between."""
    body: dict[str, Any] = {"messages": to_anthropic(messages), "max_tokens": 1}
    assert check_anthropic(body) == []
    assert check_openai({"messages": to_openai(messages)}) == []
    assert check_ollama({"messages": to_ollama(messages)}) == []
    assert from_anthropic(to_anthropic(messages)) == messages
    for rows in (to_anthropic(messages), to_openai(messages), to_ollama(messages)):
        assert kept(auto_convert(json.loads(json.dumps(rows)))) == kept(messages)


def kept(messages: list[Message]) -> list[Any]:
    """Return what every form keeps, in order; media of a user message may stand before or after its text."""
    out: list[Any] = []
    for message in messages:
        for part in sorted(message.parts, key=lambda part: isinstance(part, Blob)):
            if isinstance(part, Text):
                out.append((message.role, part.content))
            elif isinstance(part, ToolCall):
                out.append((part.id, part.name, part.arguments))
            elif isinstance(part, ToolResponse):
                out.append((part.id, part.response))
            elif isinstance(part, Blob):
                out.append((message.role, part.content, part.mime_type))
    return out
