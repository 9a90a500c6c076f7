"""What clients of a Responses server send, and what of it is refused."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai_responses_kit import function_call, message, reasoning

from windlass.core.errors import BadRequestError, RequestRefused, WindlassError
from windlass.core.json import dumps, loads
from windlass.core.messages import (
    Blob,
    Message,
    Reasoning,
    Text,
    ToolCall,
    ToolResponse,
    UnknownPart,
    Uri,
    user,
)
from windlass.core.models import Capabilities
from windlass.core.request import Settings, ToolSpec
from windlass.wire.base import DecodedRequest
from windlass.wire.openai_responses import DIALECT

OURS = "openai_responses"


def decode(**fields: Any) -> DecodedRequest:
    return DIALECT.decode_request(dumps({"model": "m", "input": "hi", **fields}))


def messages(*items: Any) -> list[Message]:
    return list(decode(input=list(items)).request.messages)


def said(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def test_a_string_is_a_users_message() -> None:
    decoded = decode()
    assert list(decoded.request.messages) == [user("hi")]
    assert (decoded.stream, decoded.extra, decoded.request.system) == (False, {}, None)
    assert decode(stream=True).stream


def test_easy_messages_of_every_role() -> None:
    found = decode(
        instructions="One.",
        input=[
            {"role": "system", "content": "Two."},
            {"role": "developer", "type": "message", "content": [{"type": "input_text", "text": "Three."}]},
            said("a"),
            {"role": "assistant", "content": "b", "phase": "final_answer"},
            {"role": "developer", "content": "Four."},
            said("c"),
        ],
    ).request
    assert found.system == "One.\n\nTwo.\n\nThree."
    assert list(found.messages) == [
        user("a"),
        Message("assistant", (Text("b", {OURS: {"phase": "final_answer"}}),)),
        Message("system", (Text("Four."),)),
        user("c"),
    ]


def test_parts_of_every_kind() -> None:
    (found,) = messages(
        {
            "type": "message",
            "role": "user",
            "content": [
                {"type": "input_text", "text": "look"},
                {"type": "input_image", "image_url": "data:image/png;base64,iVBORw==", "detail": "low"},
                {"type": "input_image", "image_url": "https://h/i.png", "detail": "auto"},
                {"type": "input_image", "file_id": "file-1", "image_url": None},
                {"type": "input_file", "filename": "a.pdf", "file_data": "data:application/pdf;base64,JVBERi0="},
                {"type": "input_file", "file_data": "JVBERi0="},
                {"type": "input_file", "file_url": "https://h/a.pdf"},
                {"type": "input_file", "file_id": "file-2"},
                {"type": "input_audio", "input_audio": {"data": "YWJj", "format": "mp3"}},
                {"type": "input_smell", "smell": "rose"},
            ],
        }
    )
    assert found.parts == (
        Text("look"),
        Blob(b"\x89PNG", "image/png", provider_metadata={"openai": {"detail": "low"}}),
        Uri("https://h/i.png"),
        Uri("file-1", provider_metadata={"openai": {"file_id": "file-1"}}),
        Blob(b"%PDF-", "application/pdf", "document", "a.pdf"),
        Blob(b"%PDF-", "application/pdf", "document"),
        Uri("https://h/a.pdf", None, "document"),
        Uri("file-2", None, "document", None, {"openai": {"file_id": "file-2"}}),
        Blob(b"abc", "audio/mpeg", "audio"),
        UnknownPart({"type": "openai_responses.input_smell", "part": {"type": "input_smell", "smell": "rose"}}),
    )


def test_the_output_of_an_answer_comes_back_as_one_message() -> None:
    thought, search = reasoning("hm"), {"type": "web_search_call", "id": "ws_1", "status": "completed"}
    found = messages(
        said("x"),
        thought,
        search,
        message("Let me look.", status="completed"),
        function_call("a", "f", '{"x": 1}', namespace="crm"),
        function_call("b", "g", ""),
        {"type": "function_call_output", "call_id": "a", "output": "1"},
        {"type": "function_call_output", "call_id": "b", "output": [
            {"type": "input_text", "text": "see"}, {"type": "input_image", "image_url": "https://h/i.png"}]},
        message("Done."),
    )  # fmt: skip
    assert found == [
        user("x"),
        Message(
            "assistant",
            (
                Reasoning("hm", {OURS: {"items": [thought]}}),
                UnknownPart({"type": "openai_responses.web_search_call", "item": search}),
                Text("Let me look."),
                ToolCall("a", "f", {"x": 1}, '{"x": 1}', {OURS: {"namespace": "crm"}}),
                ToolCall("b", "g", {}),
            ),
        ),
        Message("tool", (ToolResponse("a", "1"),)),
        Message("tool", (ToolResponse("b", (Text("see"), Uri("https://h/i.png"))),)),
        Message("assistant", (Text("Done."),)),
    ]


def test_turns_of_the_model_are_told_apart_by_what_it_said() -> None:
    found = messages(said("x"), message("a"), message("b"), reasoning("t"), message("c"), function_call("f", "f", "{}"))
    assert [[type(part).__name__ for part in item.parts] for item in found] == [
        ["Text"], ["Text"], ["Text"], ["Reasoning", "Text", "ToolCall"],
    ]  # fmt: skip
    # A call waits for its result: what the model says beside it belongs to the same turn.
    result = {"type": "function_call_output", "call_id": "f", "output": ""}
    found = messages(message("a"), function_call("f", "f", "{}"), message("b"), result, message("c"))
    assert [(item.role, len(item.parts)) for item in found] == [("assistant", 3), ("tool", 1), ("assistant", 1)]


def test_custom_tools_are_words_that_every_model_knows() -> None:
    tools = [{"type": "custom", "name": "patch", "description": "Change files.", "format": {"type": "text"}}]
    call = {"type": "custom_tool_call", "id": "ctc_1", "call_id": "c", "name": "patch", "input": "diff"}
    output = {"type": "custom_tool_call_output", "call_id": "c", "output": "ok"}
    decoded = decode(tools=tools, input=[said("x"), call, output], tool_choice={"type": "custom", "name": "patch"})
    request = decoded.request
    assert [(tool.name, list(tool.input_schema["properties"])) for tool in request.tools] == [("patch", ["input"])]
    assert request.messages[1].tool_calls == (
        ToolCall("c", "patch", {"input": "diff"}, None, {OURS: {"type": "custom_tool_call"}}),
    )
    assert request.tool_choice == "patch"
    assert decoded.extra == {"tools": tools, "tool_choice": {"type": "custom", "name": "patch"}}
    sent = loads(DIALECT.encode_request(request, Capabilities(), stream=False))["input"]
    assert sent[1:] == [{key: value for key, value in call.items() if key != "id"}, output]


@pytest.mark.parametrize(
    ("item", "role"),
    [
        ({"type": "computer_call_output", "call_id": "c", "output": {"type": "computer_screenshot"}}, "user"),
        ({"type": "mcp_approval_response", "approval_request_id": "a", "approve": True}, "user"),
        ({"type": "item_reference", "id": "msg_1"}, "user"),
        ({"id": "msg_1"}, "user"),
        ({"type": "local_shell_call", "id": "l", "call_id": "c", "action": {}, "status": "completed"}, "assistant"),
        ({"type": "compaction", "id": "cmp", "encrypted_content": "x"}, "assistant"),
        ({"type": "brand_new_call", "x": 1}, "assistant"),
    ],
)
def test_items_without_a_word_of_ours_stay_in_their_place(item: dict[str, Any], role: str) -> None:
    found = messages(said("a"), item, said("b"))
    assert [entry.role for entry in found] == ["user", role, "user"]
    (part,) = found[1].parts
    kind = item.get("type", "item_reference")
    assert part == UnknownPart({"type": f"openai_responses.{kind}", "item": item})
    if kind != "item_reference":
        body = loads(DIALECT.encode_request(decode(input=[said("a"), item]).request, Capabilities(), stream=False))
        assert body["input"][1] == item


def test_every_setting() -> None:
    decoded = decode(
        temperature=0.5, top_p=0.9, max_output_tokens=50, parallel_tool_calls=False,
        reasoning={"effort": "low", "summary": "auto"}, text={"format": {"type": "text"}, "verbosity": "low"},
        tools=[{"type": "function", "name": "f", "parameters": None, "strict": False}], tool_choice="required",
        previous_response_id="resp_0", store=True, metadata={"k": "v"}, truncation="auto", conversation="conv_1",
        user="u", service_tier="flex", include=["reasoning.encrypted_content"], background=False, top_logprobs=None,
    )  # fmt: skip
    assert decoded.request.settings == Settings(
        max_tokens=50, temperature=0.5, top_p=0.9, thinking="low", parallel_tool_calls=False
    )
    assert decoded.request.tools == (ToolSpec("f"),)
    assert (decoded.request.tool_choice, decoded.request.metadata) == ("required", {"k": "v"})
    assert decoded.extra == {
        "reasoning": {"summary": "auto"}, "text": {"verbosity": "low"}, "previous_response_id": "resp_0",
        "store": True, "metadata": {"k": "v"}, "truncation": "auto", "conversation": "conv_1", "user": "u",
        "service_tier": "flex", "include": ["reasoning.encrypted_content"],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("reasoning_field", "thinking", "extra"),
    [
        ({"effort": "none"}, "off", {}),
        ({"effort": "minimal"}, "minimal", {}),
        ({"effort": "xhigh"}, None, {"reasoning": {"effort": "xhigh"}}),
        ({"effort": None}, None, {}),
        ({}, None, {}),
    ],
)
def test_efforts(reasoning_field: dict[str, Any], thinking: str | None, extra: dict[str, Any]) -> None:
    decoded = decode(reasoning=reasoning_field)
    assert (decoded.request.settings.thinking, decoded.extra) == (thinking, extra)


def test_output_formats() -> None:
    schema = {"type": "object", "properties": {}}
    form = {"type": "json_schema", "name": "x", "schema": schema, "strict": True}
    decoded = decode(text={"format": form})
    assert (decoded.request.output_schema, decoded.extra) == (schema, {})
    older = {"format": {"type": "json_object"}}
    assert (decode(text=older).request.output_schema, decode(text=older).extra) == (None, {"text": older})


STRICT = {"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": True}


@pytest.mark.parametrize(
    ("tools", "names", "kept"),
    [
        ([{"type": "function", "name": "f", "description": "d", "parameters": {}}], ["f"], False),
        ([STRICT], ["f"], True),
        ([{"type": "web_search"}], [], True),
        ([STRICT, {"type": "mcp", "server_label": "s"}], ["f"], True),
        ([], [], False),
    ],
)
def test_tools_that_are_more_than_plain_functions_are_kept_as_they_came(
    tools: list[dict[str, Any]], names: list[str], kept: bool
) -> None:
    decoded = decode(tools=tools)
    assert [tool.name for tool in decoded.request.tools] == names
    assert decoded.extra == ({"tools": tools} if kept else {})


@pytest.mark.parametrize(
    ("choice", "ours", "kept"),
    [
        ("none", "none", False),
        ({"type": "function", "name": "f"}, "f", False),
        ({"type": "allowed_tools", "mode": "required", "tools": []}, "required", True),
        ({"type": "allowed_tools", "mode": "auto", "tools": []}, "auto", True),
        ({"type": "web_search_preview"}, "auto", True),
    ],
)
def test_tool_choices(choice: Any, ours: str, kept: bool) -> None:
    decoded = decode(tool_choice=choice)
    assert (decoded.request.tool_choice, decoded.extra) == (ours, {"tool_choice": choice} if kept else {})


def test_input_may_be_empty_where_the_server_knows_what_came_before() -> None:
    for fields in ({"previous_response_id": "resp_1"}, {"conversation": {"id": "conv_1"}}):
        for given_input in (None, []):
            assert list(decode(input=given_input, **fields).request.messages) == []


@pytest.mark.parametrize(
    ("fields", "param"),
    [({"background": True}, "background"), ({"prompt": {"id": "pmpt_1"}}, "prompt")],
)
def test_what_is_not_served_is_refused(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(RequestRefused) as caught:
        decode(**fields)
    status, body = DIALECT.encode_error(caught.value)
    error = loads(body)["error"]
    assert (status, error["param"], error["code"], error["type"]) == (
        400, param, "unsupported_parameter", "invalid_request_error",
    )  # fmt: skip


CALL: dict[str, Any] = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
OUTPUT: dict[str, Any] = {"type": "function_call_output", "call_id": "c", "output": ""}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": ""}, "model"),
        ({"model": 5}, "model"),
        ({"input": None}, "input"),
        ({"input": []}, "input"),
        ({"input": {}}, "input"),
        ({"input": ["x"]}, "input[0]"),
        ({"input": [{}]}, "input[0].type"),
        ({"input": [{"type": 5}]}, "input[0].type"),
        ({"input": [{"role": "king", "content": "x"}]}, "input[0].role"),
        ({"input": [{"role": "user"}]}, "input[0].content"),
        ({"input": [{"role": "user", "content": [5]}]}, "input[0].content[0]"),
        ({"input": [{"role": "user", "content": [{"text": "x"}]}]}, "input[0].content[0].type"),
        ({"input": [{"role": "user", "content": [{"type": "input_text"}]}]}, "input[0].content[0].text"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0].image_url"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "data:x"}]}]},
            "input[0].content[0].image_url",
        ),
        (
            {"input": [{"role": "user", "content": [{"type": "input_file", "file_data": "é"}]}]},
            "input[0].content[0].file_data",
        ),
        (
            {"input": [{"role": "system", "content": [{"type": "input_image", "image_url": "https://h"}]}]},
            "input[0].content",
        ),
        ({"input": [{**CALL, "call_id": None}]}, "input[0].call_id"),
        ({"input": [{**CALL, "name": ""}]}, "input[0].name"),
        ({"input": [{**CALL, "arguments": {}}]}, "input[0].arguments"),
        ({"input": [{**OUTPUT, "call_id": ""}]}, "input[0].call_id"),
        ({"input": [{**OUTPUT, "output": None}]}, "input[0].output"),
        ({"input": [{"type": "reasoning", "summary": "x"}]}, "input[0].summary"),
        ({"instructions": []}, "instructions"),
        ({"tools": {}}, "tools"),
        ({"tools": [{"type": "function"}]}, "tools[0].name"),
        ({"tools": [STRICT, STRICT]}, "tools[1].name"),
        ({"tools": [{**STRICT, "parameters": []}]}, "tools[0].parameters"),
        ({"tool_choice": "any"}, "tool_choice"),
        ({"tool_choice": {"type": "function"}}, "tool_choice.name"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"temperature": 3}, "temperature"),
        ({"top_p": "x"}, "top_p"),
        ({"parallel_tool_calls": "x"}, "parallel_tool_calls"),
        ({"stream": 1}, "stream"),
        ({"store": "yes"}, "store"),
        ({"background": "yes"}, "background"),
        ({"metadata": []}, "metadata"),
        ({"reasoning": "low"}, "reasoning"),
        ({"reasoning": {"effort": 5}}, "reasoning.effort"),
        ({"text": "x"}, "text"),
        ({"text": {"format": "json"}}, "text.format"),
        ({"text": {"format": {"type": "json_schema"}}}, "text.format.schema"),
        ({"previous_response_id": 5}, "previous_response_id"),
    ],
)
def test_refusals_name_the_field(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(BadRequestError) as caught:
        decode(**fields)
    status, body = DIALECT.encode_error(caught.value)
    assert (status, loads(body)["error"]["param"]) == (400, param)


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"nan", b"\xff"])
def test_bodies_that_are_no_json_object(body: bytes) -> None:
    with pytest.raises(BadRequestError, match="request body"):
        DIALECT.decode_request(body)


# --------------------------------------------------------------------------------------------------------------- fuzz

KEYS = st.sampled_from(
    ["type", "role", "content", "text", "id", "call_id", "name", "arguments", "output", "summary", "encrypted_content",
     "image_url", "file_data", "file_id", "filename", "detail", "input", "refusal", "phase", "format", "schema"]
)  # fmt: skip
WORDS = st.sampled_from(
    ["message", "user", "assistant", "developer", "function_call", "function_call_output", "custom_tool_call",
     "reasoning", "input_text", "input_image", "input_file", "output_text", "refusal", "item_reference",
     "data:image/png;base64,iVBORw==", "windlass1.e30=", "windlass1.!", "json_schema", "{}"]
)  # fmt: skip
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-1, 2) | st.text(max_size=3) | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=5),
    max_leaves=12,
)
FIELDS = st.sampled_from(
    ["model", "input", "instructions", "tools", "tool_choice", "text", "reasoning", "metadata", "store", "stream",
     "previous_response_id", "max_output_tokens", "temperature", "background", "prompt", "conversation"]
)  # fmt: skip


@given(st.dictionaries(FIELDS, VALUES, max_size=4), st.lists(st.dictionaries(KEYS, VALUES, max_size=6), max_size=4))
@settings(max_examples=80, deadline=None)
def test_bodies_of_any_shape_raise_only_our_errors(fields: dict[str, Any], items: list[dict[str, Any]]) -> None:
    for body in ({"model": "m", **fields}, {"model": "m", "input": items}):
        try:
            decoded = DIALECT.decode_request(dumps(body))
            sent = DIALECT.encode_request(decoded.request, Capabilities(image_in_tool_result=True), stream=False)
        except WindlassError:
            continue
        assert isinstance(loads(sent)["input"], list)
