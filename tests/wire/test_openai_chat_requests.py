"""Chat-completions requests, both ways: what we send to a vendor, and what a client sends to us."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from windlass.core.errors import UnsupportedInputError
from windlass.core.items import parse_arguments
from windlass.core.json import dumps, loads
from windlass.core.messages import (
    Blob,
    Message,
    Part,
    Reasoning,
    ResponseStatus,
    Text,
    ToolCall,
    ToolResponse,
    UnknownPart,
    Uri,
    assistant,
    user,
)
from windlass.core.models import Capabilities
from windlass.core.request import EncodingCache, Request, Settings, ToolSpec
from windlass.wire.base import Dialect
from windlass.wire.openai_chat import DIALECT, MISTRAL, OPENROUTER, OpenAIChat, dropped_settings

CAPS = Capabilities()
PNG = b"\x89PNG\r\n\x1a\n..."
URL = "data:image/png;base64," + base64.b64encode(PNG).decode()
CAT = Blob(PNG, "image/png", "image", "cat.png")
PDF = Blob(b"%PDF-", "application/pdf", "document")
WEATHER = ToolSpec("weather", "Tell the weather.", {"type": "object", "properties": {"city": {"type": "string"}}})


def sent(request: Request, caps: Capabilities = CAPS, dialect: OpenAIChat = DIALECT, *, stream: bool = False) -> Any:
    return loads(dialect.encode_request(request, caps, stream=stream))


def messages(*history: Message, caps: Capabilities = CAPS, dialect: OpenAIChat = DIALECT) -> Any:
    return sent(Request(model="m", messages=history), caps, dialect)["messages"]


def call(call_id: str, name: str = "weather", text: str = "{}") -> ToolCall:
    return ToolCall(call_id, name, *parse_arguments(text))


def answered(call_id: str, response: str | tuple[Text | Blob | Uri, ...], status: ResponseStatus = "ok") -> Message:
    return Message("tool", (ToolResponse(call_id, response, status),))


def test_the_dialect_offers_the_whole_interface() -> None:
    dialect: Dialect = DIALECT
    assert dialect.name == "openai_chat"


def test_a_plain_request() -> None:
    request = Request(model="gpt", messages=[user("hi")], system="Be brief.")
    assert DIALECT.encode_request(request, CAPS, stream=False) == (
        b'{"model":"gpt","messages":[{"role":"system","content":"Be brief."},{"role":"user","content":"hi"}]}'
    )


def test_streams_ask_for_usage_where_it_is_known() -> None:
    request = Request(model="m", messages=[user("hi")])
    body = sent(request, stream=True)
    assert (body["stream"], body["stream_options"]) == (True, {"include_usage": True})
    assert "stream_options" not in sent(request, Capabilities(stream_usage=False), stream=True)


def test_every_setting() -> None:
    settings_ = Settings(
        max_tokens=5, temperature=0.5, top_p=0.9, top_k=4, stop=("a", "b"), seed=7, presence_penalty=0.1,
        frequency_penalty=-0.1, repeat_penalty=1.1, thinking="low", parallel_tool_calls=False, extra={"user": "u"},
    )  # fmt: skip
    request = Request(model="m", messages=[user("hi")], tools=(WEATHER,), settings=settings_)
    body = sent(request, Capabilities(reasoning="effort", max_tokens_field="max_completion_tokens"))
    del body["messages"], body["tools"], body["model"]
    assert body == {
        "max_completion_tokens": 5, "temperature": 0.5, "top_p": 0.9, "stop": ["a", "b"], "seed": 7,
        "presence_penalty": 0.1, "frequency_penalty": -0.1, "reasoning_effort": "low", "parallel_tool_calls": False,
        "user": "u",
    }  # fmt: skip
    assert dropped_settings(request, Capabilities(reasoning="effort")) == ["top_k", "repeat_penalty"]
    assert OPENROUTER.dropped_settings(request, CAPS) == ["thinking"]
    assert sent(request, dialect=OPENROUTER)["repetition_penalty"] == 1.1
    assert sent(request, dialect=MISTRAL)["random_seed"] == 7
    assert sent(request)["max_tokens"] == 5


def test_settings_that_a_model_cannot_be_told_are_listed() -> None:
    request = Request(
        model="m", messages=[user("hi")], tools=(WEATHER,), output_schema={"type": "object"},
        settings=Settings(parallel_tool_calls=True, thinking_budget=100),
    )  # fmt: skip
    caps = Capabilities(parallel_tool_calls=False, structured_output=False)
    assert dropped_settings(request, caps) == ["thinking", "parallel_tool_calls", "output_schema"]
    assert not {"parallel_tool_calls", "response_format", "reasoning_effort"} & sent(request, caps).keys()
    assert dropped_settings(Request(model="m", messages=[], settings=Settings(thinking="off")), caps) == []


@pytest.mark.parametrize(
    ("asked", "word"),
    [
        (Settings(thinking="minimal"), "minimal"),
        (Settings(thinking="high"), "high"),
        (Settings(thinking="adaptive"), None),
        (Settings(thinking="off"), None),
        (Settings(thinking_budget=5000), "medium"),
        (Settings(thinking="low", thinking_budget=100_000), "high"),
        (Settings(), None),
    ],
)
def test_reasoning_effort(asked: Settings, word: str | None) -> None:
    request = Request(model="m", messages=[user("hi")], settings=asked)
    assert sent(request, Capabilities(reasoning="effort")).get("reasoning_effort") == word
    assert "reasoning_effort" not in sent(request)


def test_off_is_said_only_to_vendors_that_know_it() -> None:
    request = Request(model="m", messages=[user("hi")], settings=Settings(thinking="off"))
    assert sent(request, Capabilities(reasoning="effort"), OPENROUTER)["reasoning_effort"] == "none"


@pytest.mark.parametrize(
    ("choice", "wire"),
    [
        ("auto", None),
        ("none", "none"),
        ("required", "required"),
        ("weather", {"type": "function", "function": {"name": "weather"}}),
    ],
)
def test_tools_and_choice(choice: str, wire: Any) -> None:
    body = sent(Request(model="m", messages=[user("hi")], tools=(WEATHER,), tool_choice=choice))
    assert body["tools"][0]["function"] == {
        "name": "weather",
        "description": "Tell the weather.",
        "parameters": WEATHER.input_schema,
    }
    assert body.get("tool_choice") == wire
    assert "tool_choice" not in sent(Request(model="m", messages=[user("hi")], tool_choice=choice))


def test_an_output_schema_is_strict_only_where_that_holds() -> None:
    inner = {
        "type": "object",
        "properties": {"a": {"type": "string"}},
        "required": ["a"],
        "additionalProperties": False,
    }
    closed = {**inner, "properties": {"a": inner}}
    for schema, strict in ((closed, True), ({**closed, "properties": {"a": {**inner, "required": []}}}, None)):
        form = sent(Request(model="m", messages=[user("hi")], output_schema=schema))["response_format"]
        assert form["type"] == "json_schema"
        assert (form["json_schema"]["schema"], form["json_schema"].get("strict")) == (schema, strict)


def test_extra_is_merged_last_and_cannot_turn_off_usage() -> None:
    extra = {"model": "other", "temperature": 0.1, "stream_options": {"include_usage": False, "x": 1}, "provider": {}}
    request = Request(model="m", messages=[user("hi")], settings=Settings(temperature=1.0, extra=extra))
    body = sent(request, stream=True)
    assert (body["model"], body["temperature"], body["provider"]) == ("other", 0.1, {})
    assert body["stream_options"] == {"include_usage": True, "x": 1}
    assert "stream_options" not in sent(request)
    own = replace(request, settings=Settings(extra={"messages": [{"role": "user", "content": "mine"}]}))
    assert sent(own)["messages"] == [{"role": "user", "content": "mine"}]


def test_arguments_are_sent_back_as_they_were_received() -> None:
    history = Message(
        "assistant", (call("a", text='{"city": "Oslo"}'), call("b", text="{bad"), ToolCall("c", "f", {"x": 1}))
    )
    texts = [entry["function"]["arguments"] for entry in messages(history)[0]["tool_calls"]]
    assert texts == ['{"city": "Oslo"}', "{bad", '{"x":1}']
    strict = [entry["function"]["arguments"] for entry in messages(history, dialect=MISTRAL)[0]["tool_calls"]]
    assert strict == ['{"city": "Oslo"}', "{}", '{"x":1}']


def test_assistant_content_is_null_only_beside_calls() -> None:
    assert messages(Message("assistant", (call("a"),)))[0]["content"] is None
    assert messages(Message("assistant"))[0] == {"role": "assistant", "content": ""}
    assert messages(Message("assistant", (Text("a"), Text("b")), name="bo"))[0] == {
        "role": "assistant",
        "content": "ab",
        "name": "bo",
    }


def test_r28_reasoning_goes_back_only_to_those_who_want_it() -> None:
    details = [{"type": "reasoning.encrypted", "data": "xyz"}]
    thought = Reasoning("hm", {"openai": {"reasoning_details": details}, "anthropic": {"signature": "s"}})
    signed = ToolCall("a", "f", {}, None, {"openai": {"extra_content": {"google": 1}, "other": 2}})
    history = Message("assistant", (thought, Text("so"), signed))
    plain = messages(history)[0]
    assert plain.keys() == {"role", "content", "tool_calls"}
    assert plain["tool_calls"][0].keys() == {"id", "type", "function"}
    assert messages(history, dialect=OPENROUTER)[0]["reasoning_details"] == details
    deepseek = messages(history, dialect=OpenAIChat(echo=("reasoning_content",)))[0]
    assert deepseek["reasoning_content"] == "hm"
    assert "reasoning_details" not in deepseek
    google = messages(history, dialect=OpenAIChat(echo=("extra_content",)))[0]
    assert google["tool_calls"][0]["extra_content"] == {"google": 1}


def test_r23_ids_follow_the_vendors_pattern_in_calls_and_responses() -> None:
    history = (Message("assistant", (call("toolu/1"),)), answered("toolu/1", "ok"))
    for dialect, length in ((DIALECT, None), (MISTRAL, 9)):
        first, second = messages(*history, dialect=dialect)
        assert first["tool_calls"][0]["id"] == second["tool_call_id"] != "toolu/1"
        assert length is None or len(second["tool_call_id"]) == length


def test_images_of_tool_results_follow_the_last_tool_message() -> None:
    history = (
        Message("assistant", (call("a"), call("b"))),
        answered("a", (Text("a plot"), Blob(PNG, "image/png", filename="plot.png"))),
        answered("b", "done"),
        user("and?"),
    )
    _, first, second, companion, last = messages(*history)
    assert first == {"role": "tool", "tool_call_id": "a", "content": "a plot\n[image: plot.png, 11 bytes]"}
    assert second == {"role": "tool", "tool_call_id": "b", "content": "done"}
    assert companion["content"] == [
        {"type": "text", "text": "Attached to the result of a:"},
        {"type": "image_url", "image_url": {"url": URL}},
    ]
    assert last == {"role": "user", "content": "and?"}
    inside = messages(*history, caps=Capabilities(image_in_tool_result=True))
    assert [message["role"] for message in inside] == ["assistant", "tool", "tool", "user"]
    assert inside[1]["content"][1] == {"type": "image_url", "image_url": {"url": URL}}
    blind = messages(*history, caps=Capabilities(vision=False))
    assert [message["role"] for message in blind] == ["assistant", "tool", "tool", "user"]
    assert blind[1]["content"] == "a plot\n[image: plot.png, 11 bytes]"


def test_responses_inside_a_user_message_come_before_its_text() -> None:
    mixed = Message("user", (Text("next"), ToolResponse("a", "A"), ToolResponse("b", "B")))
    out = messages(Message("assistant", (call("a"), call("b"))), mixed)
    assert [(m["role"], m["content"]) for m in out[1:]] == [("tool", "A"), ("tool", "B"), ("user", "next")]


PARTS: list[tuple[str, Part, dict[str, Any]]] = [
    ("text", Text("x"), {"type": "text", "text": "x"}),
    ("image", Blob(PNG, "image/png"), {"type": "image_url", "image_url": {"url": URL}}),
    (
        "detail",
        Uri("https://h/i.png", provider_metadata={"openai": {"detail": "low"}}),
        {"type": "image_url", "image_url": {"url": "https://h/i.png", "detail": "low"}},
    ),
    (
        "pdf",
        Blob(b"%PDF-", "application/pdf", "document", "a.pdf"),
        {"type": "file", "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,JVBERi0="}},
    ),
    (
        "text file",
        Blob("# ü".encode(), "text/markdown", "document", 'a".md'),
        {"type": "text", "text": '<document name="a\'.md">\n# ü\n</document>'},
    ),
    (
        "file id",
        Uri("file-1", None, "document", None, {"openai": {"file_id": "file-1"}}),
        {"type": "file", "file": {"file_id": "file-1"}},
    ),
    (
        "sound",
        Blob(b"abc", "audio/mpeg", "audio"),
        {"type": "input_audio", "input_audio": {"data": "YWJj", "format": "mp3"}},
    ),
    ("video", Uri("https://h/v.mp4", None, "video"), {"type": "video_url", "video_url": {"url": "https://h/v.mp4"}}),
    ("unknown", UnknownPart({"type": "new", "x": 1}), {"type": "new", "x": 1}),
]


@pytest.mark.parametrize(("name", "part", "wire"), PARTS, ids=[case[0] for case in PARTS])
def test_user_parts(name: str, part: Part, wire: dict[str, Any]) -> None:
    assert messages(user([part, "tail"]))[0]["content"] == [wire, {"type": "text", "text": "tail"}]


@pytest.mark.parametrize(
    ("history", "caps", "text"),
    [
        (user([CAT]), Capabilities(vision=False), "cannot take image parts (cat.png)"),
        (user([Uri("https://h/x")]), Capabilities(vision=False), "m cannot take image parts (https://h/x)"),
        (user([PDF]), Capabilities(documents=False), "document parts (application/pdf)"),
        (assistant([call("a")]), Capabilities(tools=False), "tools (the history holds a call of 'weather')"),
        (answered("a", "x"), Capabilities(tools=False), "tools (the history holds the response to 'a')"),
        (user([Uri("https://h/x", None, "audio")]), CAPS, "sound by its address"),
        (user([call("a")]), CAPS, "a ToolCall part in a user message"),
    ],
)  # fmt: skip
def test_what_a_model_cannot_take_is_refused_by_name(history: Message, caps: Capabilities, text: str) -> None:
    with pytest.raises(UnsupportedInputError) as caught:
        messages(history, caps=caps)
    assert text in str(caught.value)
    assert caught.value.model == "m"


def test_tools_are_refused_by_name() -> None:
    with pytest.raises(UnsupportedInputError, match=r"m cannot take tools .*'weather'"):
        sent(Request(model="m", messages=[user("hi")], tools=(WEATHER,)), Capabilities(tools=False))


def test_text_files_are_read_by_models_without_files() -> None:
    part = Blob(b"{}", "application/json", "document", "a.json")
    assert "a.json" in messages(user([part]), caps=Capabilities(documents=False))[0]["content"][0]["text"]


MARK = {"type": "ephemeral"}


def test_cache_marks_stand_on_the_three_stable_prefixes() -> None:
    history = [user("hi"), Message("assistant", (call("a"),)), answered("a", "ok")]
    request = Request(model="m", messages=history, system="S", tools=(WEATHER, replace(WEATHER, name="w2")))
    caps = Capabilities(cache_breakpoints=True)
    body = sent(request, caps)
    assert body["messages"][0]["content"] == [{"type": "text", "text": "S", "cache_control": MARK}]
    assert body["messages"][-1]["content"] == [{"type": "text", "text": "ok", "cache_control": MARK}]
    assert [tool.get("cache_control") for tool in body["tools"]] == [None, MARK]
    assert dumps(body).count(b"cache_control") == 3
    assert b"cache_control" not in dumps(sent(replace(request, cache=False), caps))
    assert b"cache_control" not in dumps(sent(request))
    two = sent(Request(model="m", messages=[user(["a", "b"])]), caps)["messages"][0]["content"]
    assert [block.get("cache_control") for block in two] == [None, MARK]


# --------------------------------------------------------------------------------------------------- encoding cache


def conversation(turns: int) -> list[Message]:
    out = [user("begin")]
    for turn in range(turns):
        out.append(Message("assistant", (Text(f"t{turn}"), call(f"c{turn}"))))
        out.append(answered(f"c{turn}", (Text("r"), Blob(PNG, "image/png")) if turn % 3 == 0 else "r"))
        if turn % 4 == 0:
            out.append(user(f"u{turn}"))
    return out


@pytest.mark.parametrize("caps", [CAPS, Capabilities(cache_breakpoints=True, image_in_tool_result=True)])
def test_the_cache_changes_no_byte(caps: Capabilities) -> None:
    whole, cache = conversation(12), EncodingCache()
    for end in range(1, len(whole) + 1):
        request = Request(model="m", messages=whole[:end], system="S", tools=(WEATHER,))
        assert DIALECT.encode_request(replace(request, encoded=cache), caps, stream=True) == DIALECT.encode_request(
            request, caps, stream=True
        )


class CountingChat(OpenAIChat, frozen=True):
    """Counts the messages that are encoded."""

    def _group(self, messages: Any, model: str, caps: Capabilities) -> Any:
        counted.append(len(messages))
        return super()._group(messages, model, caps)


counted: list[int] = []


def test_turn_500_encodes_what_turn_10_encodes() -> None:
    whole, cache, dialect = conversation(500), EncodingCache(), CountingChat()
    work: list[int] = []
    for end in [at for at, message in enumerate(whole) if message.role == "tool"]:
        counted.clear()
        dialect.encode_request(Request(model="m", messages=whole[: end + 1], encoded=cache), CAPS, stream=True)
        work.append(sum(counted))
    assert len(work) == 500
    assert max(work[9:]) <= max(work[:10]) <= 5


def test_the_cache_keeps_dialects_and_capabilities_apart() -> None:
    cache, history = EncodingCache(), conversation(3)
    request = Request(model="m", messages=history, encoded=cache)
    for dialect in (DIALECT, MISTRAL, OPENROUTER):
        for caps in (CAPS, Capabilities(vision=False)):
            body = dialect.encode_request(request, caps, stream=False)
            assert body == dialect.encode_request(replace(request, encoded=None), caps, stream=False)


def test_an_empty_group_does_not_break_the_body() -> None:
    history = [Message("tool"), Message("assistant", (Text("a"),)), Message("tool"), user("x")]
    for encoded in (None, EncodingCache()):
        assert sent(Request(model="m", messages=history, encoded=encoded))["messages"][-1] == {
            "role": "user",
            "content": "x",
        }


@given(st.text(max_size=30), st.integers(2**63, 2**70))
@settings(max_examples=60, deadline=None)
def test_r55_what_json_cannot_carry_is_still_sent(text: str, number: int) -> None:
    hostile = f"{text}\ud800\x00"
    history = [user(hostile), Message("assistant", (ToolCall("a", "f", {hostile: number}),)), answered("a", hostile)]
    body = sent(Request(model="m", messages=history, system=hostile, tools=(WEATHER,)))
    assert [message["role"] for message in body["messages"]] == ["system", "user", "assistant", "tool"]
