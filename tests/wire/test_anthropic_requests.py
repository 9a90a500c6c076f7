"""Anthropic requests: what we send, what we read, and that both are the same conversation."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pytest
from anthropic.types import message_create_params as params
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from pydantic import TypeAdapter
from wire_strategies import PDF, PNG, addresses, clean_text, conversations, documents, images, redacted, signed

from windlass.core.errors import BadRequestError, UnsupportedInputError
from windlass.core.messages import Blob, Message, Part, Reasoning, Text, ToolCall, ToolResponse, UnknownPart, Uri, user
from windlass.core.models import Capabilities
from windlass.core.request import EncodingCache, Request, Settings, ToolSpec
from windlass.testing.validity import check_anthropic
from windlass.wire.anthropic import DIALECT, dropped_settings

CAPS = Capabilities(image_in_tool_result=True, cache_breakpoints=True, reasoning="budget", max_output=64000)
SDK: TypeAdapter[Any] = TypeAdapter(params.MessageCreateParams)
TOOL = ToolSpec("look", "Look it up.", {"type": "object", "properties": {"q": {"type": "string"}}})


def encode(request: Request, caps: Capabilities = CAPS, *, stream: bool = False) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(DIALECT.encode_request(request, caps, stream=stream))
    drain(SDK.validate_python(body))
    return body


def drain(value: Any) -> None:
    """Walk a validated value: pydantic checks an Iterable only as it is read."""
    if isinstance(value, dict):
        for item in value.values():
            drain(item)
    elif isinstance(value, Iterable) and not isinstance(value, (str, bytes)):
        for item in value:
            drain(item)


def ask(*messages: Message, **fields: Any) -> Request:
    return Request(model="claude", messages=list(messages) or [user("Hi")], **fields)


def test_whole_request() -> None:
    request = ask(
        user("What is in it?"),
        Message(
            "assistant", (Reasoning("hm", {"anthropic": {"signature": "s1"}}), ToolCall("c 1", "look", {"q": "x"}))
        ),
        Message("tool", (ToolResponse("c 1", "nothing", "timeout"),)),
        user("Go on."),
        system="Be brief.",
        tools=(TOOL,),
        tool_choice="auto",
        metadata={"user_id": "u-1", "other": 2},
        settings=Settings(
            max_tokens=99, temperature=1.5, top_p=0.5, top_k=3, stop=("END", " "), parallel_tool_calls=False
        ),
    )
    body = encode(request, stream=True)
    mark = {"type": "ephemeral"}
    call = body["messages"][1]["content"][1]["id"]
    assert call != "c 1"
    assert body == {
        "model": "claude",
        "max_tokens": 99,
        "temperature": 1.0,
        "top_p": 0.5,
        "top_k": 3,
        "stop_sequences": ["END"],
        "metadata": {"user_id": "u-1"},
        "stream": True,
        "system": [{"type": "text", "text": "Be brief.", "cache_control": mark}],
        "tools": [
            {"name": "look", "description": "Look it up.", "input_schema": TOOL.input_schema, "cache_control": mark}
        ],
        "tool_choice": {"type": "auto", "disable_parallel_tool_use": True},
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "What is in it?"}]},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "hm", "signature": "s1"},
                    {"type": "tool_use", "id": call, "name": "look", "input": {"q": "x"}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": call, "content": "nothing", "is_error": True},
                    {"type": "text", "text": "Go on.", "cache_control": mark},
                ],
            },
        ],
    }
    assert check_anthropic(body) == []


def test_no_marks_unless_asked_and_own_marks_kept_then() -> None:
    marked = Text("long", {"anthropic": {"cache_control": {"type": "ephemeral", "ttl": "1h"}}})
    request = ask(user([marked, "and"]), user("x"), system="s", tools=(TOOL,))
    assert json.dumps(encode(request)).count("cache_control") == 3
    assert json.dumps(encode(replace(request, cache=False))).count('"ttl"') == 1
    assert b"cache_control" not in DIALECT.encode_request(request, replace(CAPS, cache_breakpoints=False), stream=False)


def test_mark_is_never_on_thinking() -> None:
    thought = Message("assistant", (Text("a"), Reasoning("t", {"anthropic": {"signature": "s"}})))
    body = encode(ask(user("x"), thought))
    assert check_anthropic(body) == []


# ---------------------------------------------------------------------------------------------------------- messages


def rows(*messages: Message, caps: Capabilities = Capabilities()) -> list[dict[str, Any]]:
    body = encode(Request(model="claude", messages=list(messages), cache=False), caps)
    assert check_anthropic(body) == [], body
    return body["messages"]


def text(value: str) -> dict[str, Any]:
    return {"type": "text", "text": value}


EMPTY = text("(empty)")


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([user(" \n")], [("user", [EMPTY])]),
        ([Message("user")], [("user", [EMPTY])]),
        (
            [user("a"), Message("assistant"), user("b")],
            [("user", [text("a")]), ("assistant", [EMPTY]), ("user", [text("b")])],
        ),
        ([user("a"), Message("assistant", (Text("  "),))], [("user", [text("a")])]),
        ([user("a"), Message("assistant", (Text("pre \n"),))], [("user", [text("a")]), ("assistant", [text("pre")])]),
        (
            [Message("assistant", (Text("hi"),)), user("a")],
            [("user", [EMPTY]), ("assistant", [text("hi")]), ("user", [text("a")])],
        ),
        ([user("a"), Message("system", (Text("now!"),))], [("user", [text("a"), text("<system>\nnow!\n</system>")])]),
        ([user("a"), user("b")], [("user", [text("a"), text("b")])]),
    ],
)  # fmt: skip
def test_r27_empty_and_odd_messages_stay_valid(messages: list[Message], expected: list[tuple[str, Any]]) -> None:
    assert rows(*messages) == [{"role": role, "content": content} for role, content in expected]


def test_only_the_model_cites() -> None:
    """A user's text with citations is refused since API version 2026-10-21."""
    citation = {"type": "char_location", "cited_text": "x", "document_index": 0, "document_title": None}
    citation.update(start_char_index=0, end_char_index=1)
    cited = Text("x", {"anthropic": {"citations": [citation]}})
    talk = rows(user([cited]), Message("assistant", (cited,)), user("y"))
    assert ["citations" in row["content"][0] for row in talk] == [False, True, False]


def test_leading_system_messages_join_system() -> None:
    body = encode(ask(Message("system", (Text("two"),)), user("x"), system="one"), Capabilities())
    assert body["system"] == [text("one\n\ntwo")]
    assert [row["role"] for row in body["messages"]] == ["user"]


def test_no_messages_is_refused_with_the_next_step() -> None:
    with pytest.raises(BadRequestError, match="Send at least one user message"):
        DIALECT.encode_request(Request(model="m", messages=[]), CAPS, stream=False)


def test_r28_foreign_reasoning_is_stripped() -> None:
    thoughts = (Reasoning("no signature"), Reasoning("other", {"openai": {"reasoning_details": [1]}}))
    got = rows(user("a"), Message("assistant", (*thoughts, Text("b"))), user("c"))
    assert got[1]["content"] == [text("b")]
    only = rows(user("a"), Message("assistant", (Reasoning("x", {"anthropic": {"signature": "s"}}),)), user("c"))
    assert [block["type"] for block in only[1]["content"]] == ["thinking", "text"]


def test_tool_results_with_media() -> None:
    result = ToolResponse(
        "c", (Text("see"), Blob(PNG, "image/png", filename="a.png"), Uri("https://e.test/v.mp4", None, "video"))
    )
    talk = (user("a"), Message("assistant", (ToolCall("c", "look", {}),)), Message("tool", (result,)))
    inside = rows(*talk, caps=Capabilities(image_in_tool_result=True))[2]["content"]
    assert [block["type"] for block in inside[0]["content"]] == ["text", "image", "text"]
    assert inside[0]["content"][2]["text"] == "[video: https://e.test/v.mp4]"
    beside = rows(*talk, caps=Capabilities())[2]["content"]
    assert [block["type"] for block in beside] == ["tool_result", "image"]
    assert beside[0]["content"][1]["text"] == f"[image: a.png, {len(PNG)} bytes] (shown below)"
    blind = rows(*talk, caps=Capabilities(vision=False))[2]["content"]
    assert [block["type"] for block in blind] == ["tool_result"]


def test_documents() -> None:
    notes = Blob(b"a < b", "text/markdown", "document", 'my "n".md')
    content = rows(user([Blob(PDF, "application/pdf", "document", "r.pdf"), notes]))[0]["content"]
    assert [block["source"]["type"] for block in content] == ["base64", "text"]
    assert [block["title"] for block in content] == ["r.pdf", 'my "n".md']
    flat = rows(user([notes]), caps=Capabilities(documents=False))[0]["content"]
    assert flat == [text("<document name=\"my 'n'.md\">\na < b\n</document>")]


@pytest.mark.parametrize(
    ("part", "caps", "said"),
    [
        (
            Blob(PNG, "image/png", filename="x.png"),
            Capabilities(vision=False),
            r"image: x\.png.*claude takes no images",
        ),
        (Uri("https://e.test/a"), Capabilities(vision=False), "takes no images"),
        (Blob(PDF, "application/pdf", "document"), Capabilities(documents=False), "takes no documents"),
        (Blob(b"..", "image/tiff"), Capabilities(), "not image/tiff"),
        (Blob(b"..", "application/zip", "document"), Capabilities(), "not application/zip"),
        (Uri("https://e.test/a", "text/html", "document"), Capabilities(), "by their address, not text/html"),
        (Blob(b"..", "audio/mp3", "audio"), Capabilities(), "takes no audio"),
        (UnknownPart({"type": "hologram"}), Capabilities(), "'hologram'.*does not know"),
        (ToolCall("c", "look"), Capabilities(), "outside an assistant message"),
        (ToolResponse("c", "x"), Capabilities(tools=False), "response to the tool call 'c'"),
    ],
)
def test_refused_parts_name_part_and_model(part: Part, caps: Capabilities, said: str) -> None:
    with pytest.raises(UnsupportedInputError, match=said) as caught:
        DIALECT.encode_request(ask(user([part])), caps, stream=False)
    assert caught.value.model == "claude"


def test_tools_and_calls_are_refused_without_tools() -> None:
    talk = [user("a"), Message("assistant", (ToolCall("c", "look", {}),)), Message("tool", (ToolResponse("c", "x"),))]
    for request in (ask(tools=(TOOL,)), ask(*talk)):
        with pytest.raises(UnsupportedInputError, match=r"look.*claude takes no tools"):
            DIALECT.encode_request(request, Capabilities(tools=False), stream=False)


def test_error_result_without_text_says_its_status() -> None:
    talk = [
        user("a"),
        Message("assistant", (ToolCall("c", "look"),)),
        Message("tool", (ToolResponse("c", "", "cancelled"),)),
    ]
    block = rows(*talk)[2]["content"][0]
    assert (block["is_error"], block["content"]) == (True, "(cancelled)")


# ---------------------------------------------------------------------------------------------------------- settings


ADAPTIVE = replace(CAPS, reasoning="adaptive")


def small(max_output: int) -> Capabilities:
    return replace(CAPS, max_output=max_output)


@pytest.mark.parametrize(
    ("given", "caps", "thinking", "max_tokens"),
    [
        (Settings(thinking="low"), CAPS, {"type": "enabled", "budget_tokens": 4096}, 16384),
        (Settings(thinking="high"), CAPS, {"type": "enabled", "budget_tokens": 32768}, 49152),
        (Settings(thinking="low", max_tokens=100), CAPS, {"type": "enabled", "budget_tokens": 4096}, 4196),
        (Settings(thinking="high"), small(32000), {"type": "enabled", "budget_tokens": 24000}, 32000),
        (Settings(thinking_budget=5), CAPS, {"type": "enabled", "budget_tokens": 1024}, 16384),
        (Settings(thinking="high", thinking_budget=2000), CAPS, {"type": "enabled", "budget_tokens": 2000}, 16384),
        (Settings(thinking="low"), small(1200), None, 1200),
        (Settings(thinking="off"), CAPS, None, 16384),
        (Settings(thinking="low"), Capabilities(), None, 16384),
        (Settings(thinking="off"), ADAPTIVE, {"type": "disabled"}, 16384),
        (Settings(thinking="adaptive"), ADAPTIVE, {"type": "adaptive"}, 16384),
        (Settings(thinking="adaptive", thinking_budget=5000), ADAPTIVE, {"type": "adaptive"}, 5000),
        (Settings(thinking="adaptive"), CAPS, {"type": "enabled", "budget_tokens": 10240}, 16384),
        (Settings(max_tokens=100000), CAPS, None, 64000),
    ],
)  # fmt: skip
def test_thinking(given: Settings, caps: Capabilities, thinking: Any, max_tokens: int) -> None:
    body = encode(ask(settings=given), caps)
    assert (body.get("thinking"), body["max_tokens"]) == (thinking, max_tokens)
    assert check_anthropic(body) == []


def test_thinking_leaves_sampling_out_and_says_so() -> None:
    request = ask(settings=Settings(thinking="low", temperature=0.2, top_p=0.5, top_k=4, seed=1, repeat_penalty=1.1))
    assert not encode(request).keys() & {"temperature", "top_p", "top_k", "seed"}
    assert dropped_settings(request, CAPS) == ["seed", "repeat_penalty", "temperature", "top_p", "top_k"]
    assert encode(ask(settings=Settings(thinking="low", top_p=0.97)))["top_p"] == 0.97
    plain = ask(settings=Settings(temperature=0.2, top_p=0.5, top_k=4))
    assert dropped_settings(plain, CAPS) == []
    assert dropped_settings(plain, replace(CAPS, reasoning="adaptive")) == ["temperature", "top_p", "top_k"]


def test_dropped_settings_name_thinking_and_schema() -> None:
    caps = Capabilities(structured_output=False)
    request = ask(settings=Settings(thinking="low"), output_schema={"type": "object"})
    assert dropped_settings(request, caps) == ["thinking", "output_schema"]
    assert dropped_settings(ask(settings=Settings(thinking="off")), caps) == []
    forced = ask(settings=Settings(thinking="low"), tools=(TOOL,), tool_choice="look")
    assert dropped_settings(forced, CAPS) == ["thinking"]
    assert "thinking" not in encode(forced)


def test_r28_thinking_is_off_where_the_open_turn_has_none() -> None:
    call = ToolCall("c", "look", {})
    done = Message("tool", (ToolResponse("c", "x"),))
    thought = Reasoning("t", {"anthropic": {"signature": "s"}})
    given = Settings(thinking="low")
    assert "thinking" not in encode(ask(user("a"), Message("assistant", (call,)), done, settings=given))
    assert "thinking" in encode(ask(user("a"), Message("assistant", (thought, call)), done, settings=given))
    assert "thinking" in encode(ask(user("a"), Message("assistant", (call,)), done, user("b"), settings=given))


def test_effort_and_structured_output() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "object"}}}
    request = ask(settings=Settings(thinking="minimal"), output_schema=schema)
    body = encode(request, replace(CAPS, reasoning="adaptive"))
    closed = {
        "type": "object",
        "properties": {"a": {"type": "object", "additionalProperties": False}},
        "additionalProperties": False,
    }
    assert body["output_config"] == {"effort": "low", "format": {"type": "json_schema", "schema": closed}}
    assert body["thinking"] == {"type": "adaptive"}


def test_extra_is_merged_last() -> None:
    extra = {
        "betas": ["b-1"],
        "context_management": {"edits": [{"type": "clear_tool_uses_20250919"}]},
        "tools": [{"type": "web_search_20250305", "name": "web_search"}],
        "max_tokens": 7,
    }
    body = encode(ask(tools=(TOOL,), settings=Settings(extra=extra)))
    assert "betas" not in body
    assert body["context_management"] == extra["context_management"]
    assert [tool["name"] for tool in body["tools"]] == ["look", "web_search"]
    assert body["max_tokens"] == 7


# ----------------------------------------------------------------------------------------------------- encoding cache


class Counting(EncodingCache):
    """Counts the messages that are encoded for closed turns."""

    __slots__ = ("messages",)

    def __init__(self) -> None:
        super().__init__()
        self.messages = 0

    def closed(
        self, key: tuple[object, ...], messages: Sequence[Message], encode: Callable[[Sequence[Message]], bytes]
    ) -> tuple[list[bytes], int]:
        def counted(group: Sequence[Message]) -> bytes:
            self.messages += len(group)
            return encode(group)

        return super().closed(key, messages, counted)


def test_turn_500_costs_what_turn_10_costs() -> None:
    cache, messages, costs, body = Counting(), [user("start")], list[int](), b""
    for turn in range(500):
        before = cache.messages
        body = DIALECT.encode_request(ask(*messages, encoded=cache, system="s"), CAPS, stream=True)
        costs.append(cache.messages - before)
        messages.append(Message("assistant", (ToolCall(f"c{turn}", "look", {"n": turn}),)))
        messages.append(Message("tool", (ToolResponse(f"c{turn}", f"r{turn}"),)))
    assert costs[10:] == [2] * 490
    fresh = DIALECT.encode_request(ask(*messages[:-2], system="s"), CAPS, stream=True)
    assert body == fresh
    assert check_anthropic(json.loads(body)) == []


@given(conversations(media=st.one_of(images, documents, addresses), reasoning=st.one_of(signed, redacted)))
@settings(max_examples=30, deadline=None)
def test_cached_body_equals_fresh_body(messages: list[Message]) -> None:
    cache = EncodingCache()
    for end in range(1, len(messages) + 1):
        part = ask(*messages[:end], system="s")
        assert DIALECT.encode_request(replace(part, encoded=cache), CAPS, stream=False) == DIALECT.encode_request(
            part, CAPS, stream=False
        )


# --------------------------------------------------------------------------------------------------------- round trip

parts_in_results = st.one_of(
    clean_text, st.lists(st.one_of(st.builds(Text, clean_text), images, documents), min_size=2, max_size=3).map(tuple)
)


@given(
    conversations(
        media=st.one_of(images, documents, addresses), reasoning=st.one_of(signed, redacted), results=parts_in_results
    ),
    st.one_of(st.none(), clean_text),
    st.sampled_from(["auto", "none", "required", "look"]),
    st.booleans(),
)
@settings(max_examples=30, deadline=None)
def test_decode_encode_is_identity(messages: list[Message], system: str | None, choice: str, stream: bool) -> None:
    request = Request(
        model="claude",
        messages=messages,
        system=system,
        tools=(TOOL, ToolSpec("other")),
        tool_choice=choice,
        settings=Settings(max_tokens=9, temperature=0.5, top_p=0.25, top_k=2, stop=("x",), parallel_tool_calls=None),
        cache=True,
        metadata={"user_id": "u"},
    )
    body = DIALECT.encode_request(request, replace(CAPS, cache_breakpoints=True), stream=stream)
    drain(SDK.validate_python(json.loads(body)))
    assert check_anthropic(json.loads(body)) == []
    got = DIALECT.decode_request(body)
    assert got.stream is stream
    assert unmarked(got.request) == request
    assert got.extra == {}
    again = DIALECT.encode_request(got.request, CAPS, stream=stream)
    assert again == body


def unmarked(request: Request) -> Request:
    """Take the cache mark off the last part, where decoding keeps it."""
    last = request.messages[-1]
    part: Any = last.parts[-1]
    own = {k: v for k, v in (part.provider_metadata or {}).get("anthropic", {}).items() if k != "cache_control"}
    part = replace(part, provider_metadata={"anthropic": own} if own else None)
    return replace(request, messages=[*request.messages[:-1], replace(last, parts=(*last.parts[:-1], part))])


@pytest.mark.parametrize(
    ("given", "caps"),
    [
        (Settings(max_tokens=20000, thinking_budget=4096), CAPS),
        (Settings(max_tokens=20000, thinking="adaptive"), replace(CAPS, reasoning="adaptive")),
        (Settings(max_tokens=20000, thinking="high"), replace(CAPS, reasoning="adaptive")),
        (Settings(max_tokens=20000, thinking="off"), replace(CAPS, reasoning="adaptive")),
        (Settings(max_tokens=20000, parallel_tool_calls=False), CAPS),
    ],
)
def test_settings_round_trip(given: Settings, caps: Capabilities) -> None:
    request = ask(tools=(TOOL,), settings=given, output_schema={"type": "object", "additionalProperties": False})
    got = DIALECT.decode_request(DIALECT.encode_request(request, caps, stream=False))
    assert (got.request.settings, got.request.output_schema) == (given, request.output_schema)
