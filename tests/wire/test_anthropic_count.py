"""Counting tokens in Anthropic's form, with the official SDK as client and as the list of what may be sent."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any, get_type_hints

import anthropic
import pytest
from anthropic.types.beta import message_count_tokens_params
from hypothesis import given, settings
from hypothesis import strategies as st
from wire_server import Answer, Got, serve
from wire_strategies import conversations, images

from windlass.core.errors import BadRequestError, OverloadedError, WindlassError, WireError
from windlass.core.messages import Message, user
from windlass.core.models import Capabilities
from windlass.core.request import EncodingCache, Request, Settings, ToolSpec
from windlass.testing.validity import check_anthropic
from windlass.wire.anthropic import DIALECT
from windlass.wire.anthropic_count import decode_count, decode_count_request, encode_count, encode_count_request

CAPS = Capabilities(reasoning="budget", cache_breakpoints=True)
#: What the SDK puts into the body: all its parameters but those that travel as headers.
TAKEN = set(get_type_hints(message_count_tokens_params.MessageCountTokensParams)) - {
    "betas", "user_profile_id", "workspace_id",
}  # fmt: skip


async def test_sdk_counts_with_us() -> None:
    def answer(got: Got) -> Answer:
        assert got.path == "/v1/messages/count_tokens"
        request = decode_count_request(got.body)
        return 200, "application/json", encode_count(len(request.messages) + 10 * len(request.tools))

    async with serve(answer) as server, anthropic.AsyncAnthropic(base_url=server.url, api_key="k") as sdk:
        counted = await sdk.messages.count_tokens(
            model="claude-x",
            system="Be brief.",
            messages=[{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}],
            tools=[{"name": "look", "input_schema": {"type": "object"}}],
            thinking={"type": "enabled", "budget_tokens": 2048},
        )
    assert counted.input_tokens == 12
    request = decode_count_request(server.got[0].body)
    assert (request.model, request.system, request.settings) == (
        "claude-x",
        "Be brief.",
        Settings(thinking_budget=2048),
    )


def test_only_what_is_counted_is_sent() -> None:
    request = Request(
        model="m",
        messages=[user("x")],
        system="s",
        tools=(ToolSpec("look"),),
        tool_choice="required",
        metadata={"user_id": "u"},
        settings=Settings(
            max_tokens=9, temperature=1, top_p=0.5, top_k=3, stop=("a",), thinking="low",
            extra={"betas": ["b"], "container": "c", "mcp_servers": [], "speed": "fast", "service_tier": "auto"},
        ),
    )  # fmt: skip
    body = json.loads(encode_count_request(request, Capabilities(reasoning="adaptive")))
    assert set(body) == {
        "model", "messages", "system", "tools", "tool_choice", "output_config", "mcp_servers", "speed",
    }  # fmt: skip
    assert set(body) <= TAKEN


def test_everything_the_sdk_sends_is_sent() -> None:
    extra: dict[str, Any] = {name: {} for name in TAKEN - {"messages"}}
    request = Request(model="m", messages=[user("x")], settings=Settings(extra=extra))
    assert set(json.loads(encode_count_request(request, CAPS))) == TAKEN


@given(messages=conversations(media=images))
@settings(max_examples=25, deadline=None)
def test_what_is_counted_is_the_conversation(messages: list[Message]) -> None:
    cache = EncodingCache()
    request = Request(model="m", messages=messages, system="s", tools=(ToolSpec("look"),), encoded=cache)
    body = encode_count_request(request, CAPS)
    assert check_anthropic({**json.loads(body), "max_tokens": 1}) == []
    sent = DIALECT.decode_request(DIALECT.encode_request(request, CAPS, stream=False)).request
    back = decode_count_request(body)
    assert (back.messages, back.system, back.tools) == (sent.messages, sent.system, sent.tools)


@given(tokens=st.integers(0, 1 << 62))
@settings(max_examples=20, deadline=None)
def test_a_count_reads_as_what_was_written(tokens: int) -> None:
    assert decode_count(encode_count(tokens)) == tokens


@pytest.mark.parametrize("body", [b"", b"{}", b"[]", b"<html>", b'{"input_tokens": -1}', b'{"input_tokens": true}',
                                  b'{"input_tokens": "5"}', b'{"input_tokens": 1.5}'])  # fmt: skip
def test_answers_without_a_count_are_wire_errors(body: bytes) -> None:
    with pytest.raises(WireError):
        decode_count(body)


def test_an_error_in_an_answer_is_that_error() -> None:
    with pytest.raises(OverloadedError, match="busy"):
        decode_count(b'{"type": "error", "error": {"type": "overloaded_error", "message": "busy"}}')
    with pytest.raises(BadRequestError):
        decode_count_request(b'{"model": "m", "messages": []}')


@given(data=st.binary(max_size=40), value=st.recursive(st.none() | st.integers() | st.text(max_size=3), st.lists))
@settings(max_examples=50, deadline=None)
def test_any_bytes_raise_only_our_errors(data: bytes, value: Any) -> None:
    for raw in (data, json.dumps({"input_tokens": value, "model": "m", "messages": value}).encode()):
        for read in (decode_count, decode_count_request):
            with suppress(WindlassError):
                read(raw)
