"""The official Anthropic SDK on loopback: it reads what we emit, and we read what it sends."""

from __future__ import annotations

import base64
import json
from typing import Any

import anthropic
import pytest
from anthropic.types import Message as SdkMessage
from wire_server import Answer, Got, serve
from wire_strategies import PNG

from windlass.core.errors import BadRequestError, OverloadedError, RateLimitError, WindlassError
from windlass.core.items import Finish, Item, ReasoningItem, TextItem, ToolCallItem
from windlass.core.messages import Blob, Message, Reasoning, Text, ToolCall, ToolResponse, UnknownPart, Uri
from windlass.core.models import Capabilities
from windlass.core.usage import Usage
from windlass.wire.anthropic import DIALECT

FINISH = Finish(
    Message(
        "assistant",
        (
            Reasoning("Thinking é", {"anthropic": {"signature": "sig"}}),
            Reasoning("", {"anthropic": {"redacted_data": "zz"}}),
            Text("Hello\u2028 wörld\n\ndata: x"),
            ToolCall("toolu_1", "look", {"a": [1, "ü"]}),
            ToolCall("toolu_2", "now", {}),
        ),
    ),
    usage=Usage(20, 7, 5, 3, 2),
    reason="tool_call",
)
ITEMS: list[Item] = [
    ReasoningItem("Thinking "),
    ReasoningItem("é"),
    ReasoningItem("", {"anthropic": {"signature": "sig"}}),
    ReasoningItem("", {"anthropic": {"redacted_data": "zz"}}),
    TextItem("Hello\u2028"),
    TextItem(" wörld\n\ndata: x"),
    ToolCallItem(0, "toolu_1", "look"),
    ToolCallItem(1, "toolu_2", "now"),
    ToolCallItem(0, arguments='{"a": [1,'),
    ToolCallItem(0, arguments='"ü"]}'),
    FINISH,
]


def client(url: str) -> anthropic.AsyncAnthropic:
    return anthropic.AsyncAnthropic(base_url=url, api_key="k", max_retries=0)


def check(message: SdkMessage) -> None:
    assert [block.type for block in message.content] == [
        "thinking", "redacted_thinking", "text", "tool_use", "tool_use",
    ]  # fmt: skip
    thought, sealed, text, look, now = message.content
    assert (thought.type, sealed.type, text.type) == ("thinking", "redacted_thinking", "text")
    assert thought.type == "thinking" and (thought.thinking, thought.signature) == ("Thinking é", "sig")
    assert sealed.type == "redacted_thinking" and sealed.data == "zz"
    assert text.type == "text" and text.text == "Hello\u2028 wörld\n\ndata: x"
    assert look.type == "tool_use" and (look.id, look.name, look.input) == ("toolu_1", "look", {"a": [1, "ü"]})
    assert now.type == "tool_use" and (now.id, now.input) == ("toolu_2", {})
    assert (message.id, message.model, message.stop_reason) == ("msg_9", "claude-x", "tool_use")
    used = message.usage
    assert (used.input_tokens, used.output_tokens) == (12, 7)
    assert (used.cache_read_input_tokens, used.cache_creation_input_tokens) == (5, 3)
    assert used.output_tokens_details is not None and used.output_tokens_details.thinking_tokens == 2


def answer(got: Got) -> Answer:
    """Answer as a gateway would: in the form that the request asks for."""
    decoded = DIALECT.decode_request(got.body)
    if not decoded.stream:
        body = DIALECT.encode_response(FINISH, model="claude-x", response_id="msg_9", created=0)
        return 200, "application/json", body
    encoder = DIALECT.stream_encoder(model="claude-x", response_id="msg_9", created=0)
    return 200, "text/event-stream", [encoder.encode(item) for item in ITEMS]


async def test_sdk_reads_our_answers() -> None:
    async with serve(answer) as server, client(server.url) as sdk:
        ask: dict[str, Any] = {"model": "claude-x", "max_tokens": 9, "messages": [{"role": "user", "content": "x"}]}
        check(await sdk.messages.create(**ask))
        async with sdk.messages.stream(**ask) as stream:
            kinds = [event.type async for event in stream]
            check(await stream.get_final_message())
        assert kinds[0] == "message_start"
        assert kinds[-1] == "message_stop"
        assert kinds.count("content_block_start") == kinds.count("content_block_stop") == 5
        raw = await sdk.messages.create(**ask, stream=True)
        assert [event.type async for event in raw][-1] == "message_stop"


async def test_sdk_answer_blocks_go_back_unchanged() -> None:
    """Send the SDK's own answer back through the SDK, as agents do in a tool loop."""
    async with serve(answer) as server, client(server.url) as sdk:
        said = await sdk.messages.create(model="claude-x", max_tokens=9, messages=[{"role": "user", "content": "x"}])
        await sdk.messages.create(
            model="claude-x",
            max_tokens=9,
            messages=[
                {"role": "user", "content": "x"},
                said.to_param(),
                {
                    "role": "user",
                    "content": [
                        {"type": "tool_result", "tool_use_id": "toolu_1", "content": "one"},
                        {"type": "tool_result", "tool_use_id": "toolu_2", "is_error": True, "content": "two"},
                    ],
                },
            ],
        )
        messages = DIALECT.decode_request(server.got[-1].body).request.messages
    assert messages[1] == FINISH.message
    assert messages[2].parts == (ToolResponse("toolu_1", "one"), ToolResponse("toolu_2", "two", "error"))


async def test_we_read_what_the_sdk_sends() -> None:
    async with serve(answer) as server, client(server.url) as sdk:
        await sdk.messages.create(
            model="claude-x",
            max_tokens=2000,
            system=[{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}],
            messages=[
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": "see"},
                        {
                            "type": "image",
                            "source": {
                                "type": "base64",
                                "media_type": "image/png",
                                "data": base64.b64encode(PNG).decode(),
                            },
                        },
                        {"type": "document", "source": {"type": "url", "url": "https://e.test/a.pdf"}, "title": "A"},
                        {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "t"}},
                        {
                            "type": "search_result",
                            "title": "t",
                            "source": "s",
                            "content": [{"type": "text", "text": "x"}],
                        },
                    ],
                },
            ],
            tools=[
                {"name": "look", "description": "d", "input_schema": {"type": "object", "properties": {}}},
                {"type": "web_search_20250305", "name": "web_search", "max_uses": 2},
            ],
            tool_choice={"type": "any", "disable_parallel_tool_use": True},
            thinking={"type": "enabled", "budget_tokens": 1024},
            stop_sequences=["END"],
            metadata={"user_id": "u"},
            output_config={"effort": "max", "format": {"type": "json_schema", "schema": {"type": "object"}}},
            extra_body={"context_management": {"edits": []}, "top_p": 0.96, "temperature": 1},
            stream=True,
        )
        got = DIALECT.decode_request(server.got[0].body)
    assert server.got[0].path == "/v1/messages"
    request = got.request
    assert got.stream is True
    assert (request.system, request.tool_choice, request.cache) == ("Be brief.", "required", True)
    text, image, pdf, note, search = request.messages[0].parts
    assert (text, image) == (Text("see"), Blob(PNG, "image/png"))
    assert pdf == Uri("https://e.test/a.pdf", "application/pdf", "document", "A")
    assert note == Blob(b"t", "text/plain", "document")
    assert isinstance(search, UnknownPart)
    assert [tool.name for tool in request.tools] == ["look"]
    assert (request.settings.thinking_budget, request.settings.parallel_tool_calls) == (1024, False)
    assert (request.settings.stop, request.settings.top_p) == (("END",), 0.96)
    assert request.output_schema == {"type": "object"}
    assert got.extra["context_management"] == {"edits": []}
    assert got.extra["output_config"] == {"effort": "max"}
    assert got.extra["tools"][0]["max_uses"] == 2
    # What was read goes out again as it came.
    again = DIALECT.decode_request(DIALECT.encode_request(request, Capabilities(reasoning="budget"), stream=True))
    assert again.request.messages == request.messages


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (OverloadedError("busy"), anthropic.APIStatusError),
        (RateLimitError("slow"), anthropic.RateLimitError),
        (BadRequestError("messages[0].role: must be user"), anthropic.BadRequestError),
    ],
)
async def test_sdk_raises_on_our_errors(error: WindlassError, kind: type[Exception]) -> None:
    def refuse(got: Got) -> Answer:
        status, body = DIALECT.encode_error(error)
        return status, "application/json", body

    async with serve(refuse) as server, client(server.url) as sdk:
        with pytest.raises(kind, match=error.message.split(":")[0].replace("[", r"\[").replace("]", r"\]")):
            await sdk.messages.create(model="m", max_tokens=1, messages=[{"role": "user", "content": "x"}])


async def test_sdk_raises_on_an_error_in_the_stream() -> None:
    def cut(got: Got) -> Answer:
        encoder = DIALECT.stream_encoder(model="m", response_id="r", created=0)
        return (
            200,
            "text/event-stream",
            [encoder.encode(TextItem("par")), encoder.error(OverloadedError("upstream died"))],
        )

    texts: list[str] = []
    async with serve(cut) as server, client(server.url) as sdk:
        with pytest.raises(anthropic.APIStatusError, match="upstream died"):
            async with sdk.messages.stream(
                model="m", max_tokens=1, messages=[{"role": "user", "content": "x"}]
            ) as stream:
                async for text in stream.text_stream:
                    texts += [text]
    assert texts == ["par"]


def test_usage_of_the_sdk_types_round_trips() -> None:
    body = DIALECT.encode_response(FINISH, model="claude-x", response_id="msg_9", created=0)
    check(SdkMessage.model_validate_json(body))
    assert (
        DIALECT.decode_response(json.dumps(SdkMessage.model_validate_json(body).to_dict()).encode()).usage
        == FINISH.usage
    )
