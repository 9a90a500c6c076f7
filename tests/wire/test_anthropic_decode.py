"""What clients send to an Anthropic endpoint, and how it is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from windlass.core.errors import BadRequestError, WindlassError
from windlass.core.messages import Reasoning, ToolCall, ToolResponse, UnknownPart
from windlass.core.models import Capabilities
from windlass.wire.anthropic import DIALECT

CAPS = Capabilities(image_in_tool_result=True, cache_breakpoints=True, reasoning="budget", max_output=64000)


def read(**fields: Any) -> Any:
    return DIALECT.decode_request(
        json.dumps({"model": "m", "max_tokens": 5, "messages": [{"role": "user", "content": "x"}], **fields}).encode()
    )


def test_reads_what_clients_send() -> None:
    got = read(
        system=[{"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}, {"type": "text", "text": "b"}],
        messages=[
            {"role": "user", "content": [{"type": "text", "text": "t", "cache_control": {"type": "ephemeral"}}]},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "h", "signature": ""},
                    {"type": "server_tool_use", "id": "srv", "name": "web_search", "input": {"query": "q"}},
                    {"type": "tool_use", "id": "t1", "name": "look", "input": {}, "caller": {"type": "direct"}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "first"},
                    {"type": "tool_result", "tool_use_id": "t1"},
                    {
                        "type": "tool_result",
                        "tool_use_id": "t2",
                        "content": [{"type": "text", "text": "one"}],
                        "is_error": True,
                    },
                    {"type": "tool_result", "tool_use_id": "t3", "content": [{"type": "search_result", "title": "x"}]},
                ],
            },
            {"role": "system", "content": "mid"},
        ],
        tools=[{"name": "look", "input_schema": {}}, {"type": "web_search_20250305", "name": "web_search"}],
        thinking={"type": "between_tools"},
        output_config={"effort": "max"},
        service_tier="auto",
    )
    request = got.request
    assert request.system == "a\n\nb"
    assert request.cache is True
    assert [message.role for message in request.messages] == ["user", "assistant", "tool", "user", "system"]
    thought, server, call = request.messages[1].parts
    assert thought == Reasoning("h")
    assert server == UnknownPart(
        {
            "type": "anthropic.server_tool_use",
            "block": {"type": "server_tool_use", "id": "srv", "name": "web_search", "input": {"query": "q"}},
        }
    )
    assert call == ToolCall("t1", "look", {}, None, {"anthropic": {"caller": {"type": "direct"}}})
    empty, one, search = request.messages[2].parts
    assert empty == ToolResponse("t1")
    assert one == ToolResponse("t2", "one", "error")
    assert got.extra == {
        "tools": [{"type": "web_search_20250305", "name": "web_search"}],
        "thinking": {"type": "between_tools"},
        "output_config": {"effort": "max"},
        "service_tier": "auto",
    }
    body = json.loads(
        DIALECT.encode_request(
            replace(request, settings=replace(request.settings, extra=got.extra)), CAPS, stream=False
        )
    )
    assert body["messages"][1]["content"][0]["type"] == "server_tool_use"
    assert body["messages"][2]["content"][2]["content"] == [{"type": "search_result", "title": "x"}]
    assert isinstance(search, ToolResponse)


def test_no_marks_means_no_cache() -> None:
    assert read().request.cache is False


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"model": 1}, "model: "),
        ({"messages": []}, "messages: "),
        ({"messages": "x"}, "messages: "),
        ({"messages": ["x"]}, r"messages\[0\]: "),
        ({"messages": [{"role": "tool", "content": ""}]}, r"messages\[0\]\.role: "),
        ({"messages": [{"role": "user"}]}, r"messages\[0\]\.content: "),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, r"messages\[0\]\.content\[0\]\.text: "),
        ({"messages": [{"role": "user", "content": [{}]}]}, r"messages\[0\]\.content\[0\]\.type: "),
        ({"messages": [{"role": "user", "content": [{"type": "tool_use"}]}]}, r"messages\[0\]\.content\[0\]\.id: "),
        (
            {"messages": [{"role": "user", "content": [{"type": "thinking", "thinking": "x"}]}]},
            r"messages\[0\]\.content\[0\]\.type: thinking may not",
        ),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "image", "source": {"type": "base64", "data": "%%"}}]}
                ]
            },
            r"messages\[0\]\.content\[0\]\.source\.data: ",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "a", "content": [3]}]}]},
            r"messages\[0\]\.content\[0\]\.content\[0\]: ",
        ),
        ({"system": 3}, "system: "),
        ({"system": [{"type": "image", "source": {"type": "url", "url": "u"}}]}, r"system\[0\]\.type: "),
        ({"tools": [{"name": "x"}]}, r"tools\[0\]\.input_schema: "),
        ({"tools": [{"input_schema": {}}]}, r"tools\[0\]\.name: "),
        ({"tool_choice": {"type": "tool"}}, r"tool_choice\.name: "),
        ({"tool_choice": {"type": "some"}}, r"tool_choice\.type: "),
        ({"thinking": {"type": "enabled"}}, r"thinking\.budget_tokens: "),
        ({"max_tokens": 0}, "max_tokens: "),
        ({"temperature": 1.5}, "temperature: "),
        ({"stop_sequences": [1]}, r"stop_sequences\[0\]: "),
        ({"stream": "yes"}, "stream: "),
        ({"output_config": {"format": {"type": "xml"}}}, r"output_config\.format: "),
    ],
)
def test_bad_fields_are_named(fields: dict[str, Any], path: str) -> None:
    with pytest.raises(BadRequestError, match=f"^{path}") as caught:
        read(**fields)
    assert caught.value.status == 400


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"\xff", b"[" * 100_000, b'{"model":NaN}'])
def test_s76_bodies_that_are_no_object(body: bytes) -> None:
    with pytest.raises(BadRequestError, match="body"):
        DIALECT.decode_request(body)


KEYS = [
    "role", "content", "type", "text", "source", "data", "url", "media_type", "id", "name", "input", "tool_use_id",
    "is_error", "thinking", "model", "messages", "system", "tools",
]  # fmt: skip
WORDS = ["user", "assistant", "text", "image", "base64", "tool_use", "tool_result", "document", "url"]
junk = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=8), st.sampled_from(WORDS)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(KEYS),
            inner,
            max_size=5,
        ),
    ),
    max_leaves=20,
)  # fmt: skip


@given(
    st.dictionaries(
        st.sampled_from(
            [
                "model",
                "messages",
                "system",
                "tools",
                "tool_choice",
                "thinking",
                "output_config",
                "metadata",
                "stop_sequences",
                "max_tokens",
            ]
        ),
        junk,
    )
)
@settings(max_examples=60, deadline=None)
def test_fuzzed_requests_raise_only_our_errors(body: dict[str, Any]) -> None:
    try:
        got = DIALECT.decode_request(json.dumps({"model": "m", **body}).encode())
        DIALECT.encode_request(got.request, CAPS, stream=True)
    except WindlassError:
        pass
