"""What we send to a Responses server."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from openai.types.responses.response_create_params import (
    ResponseCreateParamsNonStreaming,
    ResponseCreateParamsStreaming,
)
from openai_responses_kit import check_responses, reasoning
from test_openai_chat_sdk import misfit
from wire_strategies import PDF, PNG, addresses, conversations, documents, images

from windlass.core.errors import UnsupportedInputError
from windlass.core.json import dumps, loads
from windlass.core.messages import Blob, Message, Part, Reasoning, Text, ToolCall, ToolResponse, UnknownPart, Uri, user
from windlass.core.models import Capabilities
from windlass.core.request import EncodingCache, Request, Settings, ToolSpec
from windlass.wire.openai_responses import CODEX, DIALECT, OpenAIResponses

OURS = "openai_responses"
CAPS = Capabilities(image_in_tool_result=True)
REASONS = replace(CAPS, reasoning="effort")
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
WEATHER = ToolSpec("weather", "Tell the weather.", SCHEMA)


def body(
    *messages: Message,
    caps: Capabilities = CAPS,
    dialect: OpenAIResponses = DIALECT,
    stream: bool = False,
    **fields: Any,
) -> dict[str, Any]:
    request = Request(model="m", messages=list(messages) or [user("hi")], **fields)
    return loads(dialect.encode_request(request, caps, stream=stream))


def items(*messages: Message, caps: Capabilities = CAPS, **fields: Any) -> list[dict[str, Any]]:
    return body(*messages, caps=caps, **fields)["input"]


def test_a_plain_request_is_stateless() -> None:
    assert body(system="Be brief.") == {
        "model": "m",
        "input": [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hi"}]}],
        "instructions": "Be brief.",
        "store": False,
    }
    assert body(caps=REASONS, stream=True)["include"] == ["reasoning.encrypted_content"]
    assert body(caps=REASONS, stream=True)["stream"] is True


def test_every_setting() -> None:
    asked = Settings(
        max_tokens=50, temperature=0.5, top_p=0.9, thinking="low", parallel_tool_calls=False,
        extra={"service_tier": "flex", "metadata": {"k": "v"}},
    )  # fmt: skip
    sent = body(
        settings=asked, caps=REASONS, tools=(WEATHER,), tool_choice="weather", output_schema=SCHEMA, session_id="s-1"
    )
    del sent["input"]
    assert sent == {
        "model": "m", "max_output_tokens": 50, "temperature": 0.5, "top_p": 0.9, "reasoning": {"effort": "low"},
        "include": ["reasoning.encrypted_content"], "store": False, "prompt_cache_key": "s-1",
        "text": {"format": {"type": "json_schema", "name": "answer", "schema": SCHEMA, "strict": True}},
        "tools": [{"type": "function", "name": "weather", "description": "Tell the weather.", "parameters": SCHEMA,
                   "strict": False}],
        "tool_choice": {"type": "function", "name": "weather"}, "parallel_tool_calls": False,
        "service_tier": "flex", "metadata": {"k": "v"},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("asked", "sent"),
    [
        (Settings(thinking="minimal"), {"effort": "minimal"}),
        (Settings(thinking="high"), {"effort": "high"}),
        (Settings(thinking="off"), None),
        (Settings(thinking="adaptive"), None),
        (Settings(thinking_budget=5000), {"effort": "medium"}),
        (Settings(thinking_budget=0), None),
        (Settings(thinking="low", extra={"reasoning": {"summary": "auto"}}), {"effort": "low", "summary": "auto"}),
        (Settings(thinking="low", extra={"reasoning": {"effort": "xhigh"}}), {"effort": "xhigh"}),
    ],
)
def test_reasoning(asked: Settings, sent: dict[str, str] | None) -> None:
    assert body(settings=asked, caps=REASONS).get("reasoning") == sent


def test_thinking_can_be_turned_off_and_told() -> None:
    dialect = OpenAIResponses(effort_off="none", summary="auto")
    assert body(settings=Settings(thinking="off"), caps=REASONS, dialect=dialect)["reasoning"] == {"effort": "none"}
    assert body(caps=REASONS, dialect=dialect)["reasoning"] == {"summary": "auto"}
    assert "reasoning" not in body(dialect=dialect)


def test_the_users_fields_are_merged_last() -> None:
    extra = {
        "store": True, "include": ["message.output_text.logprobs"], "text": {"verbosity": "low"}, "model": "other",
        "tools": [{"type": "web_search"}],
    }  # fmt: skip
    sent = body(settings=Settings(extra=extra), caps=REASONS, output_schema=SCHEMA, tools=(WEATHER,))
    assert (sent["store"], sent["model"], sent["tools"]) == (True, "other", [{"type": "web_search"}])
    assert sent["include"] == ["message.output_text.logprobs", "reasoning.encrypted_content"]
    assert sent["text"]["verbosity"] == "low" and sent["text"]["format"]["type"] == "json_schema"
    for own in ("text", [{"role": "user", "content": "x"}]):
        assert body(settings=Settings(extra={"input": own}))["input"] == own


def test_a_small_limit_is_raised_to_what_the_api_takes() -> None:
    assert body(settings=Settings(max_tokens=1))["max_output_tokens"] == 16


def test_session_ids_fit_the_cache_key() -> None:
    assert len(body(session_id="s" * 100)["prompt_cache_key"]) == 64
    assert "prompt_cache_key" not in body(session_id="s", cache=False)


def test_dropped_settings_are_named() -> None:
    asked = Settings(
        max_tokens=5, temperature=1, top_p=1, top_k=1, stop=("x",), seed=1, presence_penalty=1, frequency_penalty=1,
        repeat_penalty=1, thinking="low", parallel_tool_calls=True,
    )  # fmt: skip
    request = Request(model="m", messages=[], settings=asked, tools=(WEATHER,), output_schema={})
    caps = Capabilities(parallel_tool_calls=False, structured_output=False)
    always = ["top_k", "seed", "presence_penalty", "frequency_penalty", "repeat_penalty"]
    assert DIALECT.dropped_settings(request, caps) == [
        *always, "stop", "thinking", "parallel_tool_calls", "output_schema",
    ]  # fmt: skip
    assert DIALECT.dropped_settings(request, REASONS) == [*always, "stop"]
    assert CODEX.dropped_settings(request, CAPS) == ["temperature", "top_p", *always, "max_tokens", "stop"]
    assert DIALECT.dropped_settings(Request(model="m", messages=[]), caps) == []


# ----------------------------------------------------------------------------------------------------------- messages


def test_a_conversation_with_everything() -> None:
    thought = reasoning("hm", status=None)
    search = {"id": "ws_1", "type": "web_search_call", "status": "completed", "action": None}
    got = items(
        Message("user", (Text("look"), Blob(PNG, "image/png", provider_metadata={"openai": {"detail": "low"}}))),
        Message(
            "assistant",
            (
                Reasoning("hm", {OURS: {"items": [thought]}}),
                UnknownPart({"type": "openai_responses.web_search_call", "item": search}),
                Text("So.", {OURS: {"phase": "commentary"}}),
                ToolCall("call:1", "weather", {"city": "Łódź"}, '{"city": "Łódź"}', {OURS: {"namespace": "n"}}),
                ToolCall("p", "patch", {"input": "diff"}, None, {OURS: {"type": "custom_tool_call"}}),
            ),
        ),
        Message("tool", (ToolResponse("call:1", (Text("here"), Blob(PNG, "image/png"))), ToolResponse("p", "done"))),
        Message("system", (Text("Mind the gap."),)),
        Message("user", (Uri("https://h/a.pdf", None, "document"), Uri("file-1", provider_metadata=FILE))),
        Message("assistant", (Text("Done."),)),
    )
    url = "data:image/png;base64,iVBORw0KGgoAAQIDBAUGBw=="
    call_id = got[4]["call_id"]
    assert got == [
        {"type": "message", "role": "user", "content": [
            {"type": "input_text", "text": "look"}, {"type": "input_image", "detail": "low", "image_url": url}]},
        {"type": "reasoning", "id": "rs_1", "summary": thought["summary"], "encrypted_content": "gAAA"},
        {"type": "web_search_call", "id": "ws_1", "status": "completed"},
        {"type": "message", "role": "assistant", "phase": "commentary",
         "content": [{"type": "output_text", "text": "So."}]},
        {"type": "function_call", "call_id": call_id, "name": "weather", "arguments": '{"city": "Łódź"}',
         "namespace": "n"},
        {"type": "custom_tool_call", "call_id": "p", "name": "patch", "input": "diff"},
        {"type": "function_call_output", "call_id": call_id, "output": [
            {"type": "input_text", "text": "here"}, {"type": "input_image", "detail": "auto", "image_url": url}]},
        {"type": "custom_tool_call_output", "call_id": "p", "output": "done"},
        {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "Mind the gap."}]},
        {"type": "message", "role": "user", "content": [
            {"type": "input_file", "file_url": "https://h/a.pdf"},
            {"type": "input_image", "detail": "auto", "file_id": "file-1"}]},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Done."}]},
    ]  # fmt: skip


FILE = {"openai": {"file_id": "file-1"}}


def test_files() -> None:
    (got,) = items(
        Message(
            "user",
            (
                Blob(PDF, "application/pdf", "document", "a.pdf"),
                Blob(b"# Hi", "text/markdown", "document", "n.md"),
                Uri("file-2", None, "document", None, {"openai": {"file_id": "file-2"}}),
            ),
        )
    )
    assert got["content"] == [
        {"type": "input_file", "filename": "a.pdf", "file_data": "data:application/pdf;base64,JVBERi0xLjcKJeLj"},
        {"type": "input_text", "text": '<document name="n.md">\n# Hi\n</document>'},
        {"type": "input_file", "file_id": "file-2"},
    ]


def test_images_of_results_follow_them_where_the_model_takes_none_there() -> None:
    calls = (ToolCall("a", "f", {}), ToolCall("b", "f", {}))
    results = (ToolResponse("a", (Text("x"), Blob(PNG, "image/png"))), ToolResponse("b", "y"))
    caps = replace(CAPS, image_in_tool_result=False)
    got = items(user("x"), Message("assistant", calls), Message("tool", results), caps=caps)
    assert [item["type"] for item in got] == [
        "message", "function_call", "function_call", "function_call_output", "function_call_output", "message",
    ]  # fmt: skip
    assert got[3]["output"] == "x\n[image: image/png, 16 bytes]"
    assert [part["type"] for part in got[5]["content"]] == ["input_text", "input_image"]
    blind = items(user("x"), Message("assistant", calls), Message("tool", results), caps=replace(caps, vision=False))
    assert len(blind) == 5


@pytest.mark.parametrize(
    ("part", "caps", "words"),
    [
        (Blob(PNG, "image/png"), replace(CAPS, vision=False), "image parts"),
        (Blob(PDF, "application/pdf", "document", "a.pdf"), replace(CAPS, documents=False), r"a\.pdf"),
        (Blob(b"x", "audio/wav", "audio"), CAPS, "audio"),
        (Uri("https://h/v.mp4", None, "video"), CAPS, "video"),
        (UnknownPart({"type": "hologram"}), CAPS, "hologram"),
        (UnknownPart({"type": "anthropic.search_result", "block": {}}), CAPS, "search_result"),
        (
            UnknownPart({"type": "openai_responses.item_reference", "item": {"type": "item_reference", "id": "msg_9"}}),
            CAPS,
            "msg_9",
        ),
    ],
)
def test_what_the_model_cannot_take_is_refused(part: Part, caps: Capabilities, words: str) -> None:
    with pytest.raises(UnsupportedInputError, match=words):
        body(Message("user", (part,)), caps=caps)


def test_tools_for_a_model_without_any() -> None:
    caps = replace(CAPS, tools=False)
    call, response = Message("assistant", (ToolCall("c", "f", {}),)), Message("tool", (ToolResponse("c", "x"),))
    for messages in ([call], [response]):
        with pytest.raises(UnsupportedInputError, match="tools"):
            body(user("x"), *messages, caps=caps)
    with pytest.raises(UnsupportedInputError, match="weather"):
        body(tools=(WEATHER,), caps=caps)


# ---------------------------------------------------------------------------------------------------------- reasoning


def test_r28_reasoning_that_the_vendor_could_not_read_is_left_out() -> None:
    def thinks(*found: dict[str, Any]) -> Message:
        return Message("assistant", (Reasoning("x", {OURS: {"items": list(found)}}), Text("so")))

    plain = {"type": "reasoning", "id": "rs_2", "summary": [{"type": "summary_text", "text": "x"}]}
    open_model = {**plain, "content": [{"type": "reasoning_text", "text": "x"}]}
    assert [item["type"] for item in items(user("x"), thinks(plain))] == ["message", "message"]
    assert items(user("x"), thinks(open_model))[1] == open_model
    stored = items(user("x"), thinks(plain), settings=Settings(extra={"store": True}))
    assert stored[1] == plain
    foreign = Message("assistant", (Reasoning("x", {"anthropic": {"signature": "s"}}), Text("so")))
    assert [item["type"] for item in items(user("x"), foreign)] == ["message", "message"]


def test_reasoning_without_what_must_follow_it_is_left_out() -> None:
    cut = Message("assistant", (Reasoning("x", {OURS: {"items": [reasoning("x")]}}),))
    assert [item["type"] for item in items(user("x"), cut, user("go on"))] == ["message", "message"]


def test_item_references_go_to_a_vendor_that_keeps_items() -> None:
    reference = {"type": "item_reference", "id": "msg_9"}
    part = UnknownPart({"type": "openai_responses.item_reference", "item": reference})
    got = items(Message("user", (Text("a"), part, Text("b"))), settings=Settings(extra={"store": True}))
    assert [item["type"] for item in got] == ["message", "item_reference", "message"]


def test_the_cache_knows_whether_items_are_stored() -> None:
    cache = EncodingCache()
    plain = {"type": "reasoning", "id": "rs_2", "summary": []}
    history = [user("a"), Message("assistant", (Reasoning("", {OURS: {"items": [plain]}}), Text("b"))), user("c"),
               Message("assistant", (Text("d"),)), user("e")]  # fmt: skip
    for extra, count in (({}, 5), ({"store": True}, 6)):
        for _ in range(2):
            request = Request(model="m", messages=history, settings=Settings(extra=extra), encoded=cache)
            assert len(loads(DIALECT.encode_request(request, CAPS, stream=False))["input"]) == count


def test_a_turn_that_cannot_be_told_leaves_no_hole_in_the_body() -> None:
    thought = Message("assistant", (Reasoning("x"),))
    cache = EncodingCache()
    for messages in ([thought], [thought, thought, user("x")]):
        request = Request(model="m", messages=messages, encoded=cache)
        loads(DIALECT.encode_request(request, CAPS, stream=False))


def test_r24_arguments_for_servers_that_parse_them() -> None:
    call = Message("assistant", (ToolCall("c", "f", None, '{"cut'),))
    done = Message("tool", (ToolResponse("c", "bad", "error"),))
    assert items(user("x"), call, done)[1]["arguments"] == '{"cut'
    strict = OpenAIResponses(valid_arguments=True)
    assert items(user("x"), call, done, dialect=strict)[1]["arguments"] == "{}"


# -------------------------------------------------------------------------------------------------------------- codex


def test_the_account_variant_sends_only_what_its_backend_takes() -> None:
    asked = Settings(
        max_tokens=50, temperature=0.5, top_p=0.5, thinking="high",
        extra={"store": True, "stream": False, "metadata": {"a": "b"}, "user": "u", "service_tier": "priority"},
    )  # fmt: skip
    sent = body(settings=asked, dialect=CODEX, session_id="s-1", tools=(WEATHER,))
    del sent["input"], sent["tools"]
    assert sent == {
        "model": "m", "store": False, "stream": True, "instructions": "You are a helpful assistant.",
        "include": ["reasoning.encrypted_content"], "reasoning": {"effort": "high", "summary": "auto"},
        "prompt_cache_key": "s-1", "service_tier": "priority",
    }  # fmt: skip
    assert body(system="Mine.", dialect=CODEX)["instructions"] == "Mine."
    roles = {item["role"] for item in items(Message("system", (Text("x"),)), user("y"), dialect=CODEX)}
    assert roles == {"developer", "user"}


# --------------------------------------------------------------------------------- properties, and the SDK as the judge

thoughts = st.sampled_from(
    [
        Reasoning("a", {OURS: {"items": [reasoning("a")]}}),
        Reasoning("", {OURS: {"items": [reasoning(identity="rs_2"), reasoning("b", identity="rs_3")]}}),
        Reasoning("c", {OURS: {"items": [{"id": "ws", "type": "web_search_call"}, reasoning("c")]}}),
    ]
)


@given(messages=conversations(media=st.one_of(images, documents, addresses), reasoning=thoughts))
@settings(max_examples=25, deadline=None)
def test_what_we_write_we_read_and_write_again(messages: list[Message]) -> None:
    """decode(encode(x)) loses nothing that encode told: the second body is the first."""
    request = Request(model="m", messages=messages, system="s", tools=(WEATHER,), output_schema=SCHEMA)
    first = DIALECT.encode_request(request, REASONS, stream=True)
    assert check_responses(loads(first)) == []
    decoded = DIALECT.decode_request(first)
    again = replace(decoded.request, settings=replace(decoded.request.settings, extra=decoded.extra))
    assert loads(DIALECT.encode_request(again, REASONS, stream=decoded.stream)) == loads(first)


SETTINGS = st.builds(
    Settings,
    max_tokens=st.none() | st.integers(1, 1000),
    temperature=st.none() | st.floats(0, 2),
    top_k=st.none() | st.just(5),
    stop=st.sampled_from([(), ("x",)]),
    thinking=st.sampled_from([None, "off", "minimal", "high", "adaptive"]),
    parallel_tool_calls=st.none() | st.booleans(),
)
JUDGED_CAPS = st.builds(
    Capabilities,
    vision=st.booleans(),
    documents=st.booleans(),
    structured_output=st.booleans(),
    image_in_tool_result=st.booleans(),
    reasoning=st.sampled_from(["none", "effort"]),
)
RESULTS = st.sampled_from(["plain", (Text("a"), Blob(PNG, "image/png")), (Blob(PDF, "application/pdf", "document"),)])


def judged(sent: dict[str, Any]) -> dict[str, Any]:
    """Give the assistant's messages what the SDK's types demand of them; the API and the Codex CLI do without."""
    for item in sent["input"]:
        if item.get("role") == "assistant":
            item |= {"id": "msg_1", "status": "completed"}
            item["content"] = [{"annotations": [], **part} for part in item["content"]]
    return sent


@given(
    conversations(media=st.one_of(images, documents, addresses), reasoning=thoughts, results=RESULTS),
    SETTINGS, JUDGED_CAPS, st.sampled_from(["auto", "none", "required", "weather"]), st.booleans(), st.booleans(),
)  # fmt: skip
@settings(max_examples=30, deadline=None)
def test_our_requests_fit_the_sdks_types(
    messages: list[Message], asked: Settings, caps: Capabilities, choice: str, tools: bool, stream: bool
) -> None:
    request = Request(
        model="m", messages=messages, system="s", tools=(WEATHER,) if tools else (), tool_choice=choice, settings=asked,
        output_schema=SCHEMA, session_id="s",
    )  # fmt: skip
    try:
        sent = loads(DIALECT.encode_request(request, caps, stream=stream))
    except UnsupportedInputError:
        assert not (caps.vision and caps.documents)
        return
    kind = ResponseCreateParamsStreaming if stream else ResponseCreateParamsNonStreaming
    # The SDK lists `web_search_call` with an action; ours in these conversations has none.
    sent["input"] = [item for item in sent["input"] if item["type"] != "web_search_call"]
    assert misfit(judged(sent), kind, "body") is None


def test_the_judge_is_strict() -> None:
    good: dict[str, Any] = {"model": "m", "input": [{"type": "message", "role": "user", "content": "x"}]}
    assert misfit(good, ResponseCreateParamsNonStreaming, "body") is None
    for wrong in (
        {**good, "max_tokens": 5},
        {**good, "input": [{"type": "message", "role": "king", "content": "x"}]},
        {**good, "tools": [{"type": "function", "function": {"name": "x"}}]},
        {**good, "input": [{"type": "function_call", "call_id": "c", "name": "f"}]},
    ):
        assert misfit(wrong, ResponseCreateParamsNonStreaming, "body") is not None
    assert dumps(good)
