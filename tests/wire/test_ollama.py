"""Ollama's chat dialect: requests, NDJSON streams and errors, both ways."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from ollama._types import ChatRequest
from wire_strategies import PDF, PNG, clean_text, conversations, images

from windlass.core.errors import (
    BadRequestError,
    UnsupportedInputError,
)
from windlass.core.messages import (
    Blob,
    Message,
    Part,
    Reasoning,
    Text,
    ToolCall,
    ToolResponse,
    UnknownPart,
    Uri,
    user,
)
from windlass.core.models import Capabilities
from windlass.core.request import EncodingCache, Request, Settings, ToolSpec
from windlass.testing.validity import check_ollama
from windlass.wire.ollama import DIALECT, dropped_settings

CAPS = Capabilities(image_in_tool_result=True, reasoning="switch")
TOOL = ToolSpec("look", "Look it up.", {"type": "object", "properties": {"q": {"type": "string"}}})
IMAGE = base64.b64encode(PNG).decode()


def ask(*messages: Message, **fields: Any) -> Request:
    return Request(model="qwen", messages=list(messages) or [user("Hi")], **fields)


def encode(request: Request, caps: Capabilities = CAPS, *, stream: bool = False) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(DIALECT.encode_request(request, caps, stream=stream))
    ChatRequest.model_validate(body)
    assert check_ollama(body) == [], body
    return body


def test_whole_request() -> None:
    calls = (ToolCall("c1", "look", {"q": "x"}), ToolCall("c2", "now"))
    results = (ToolResponse("c1", "nothing", "error"), ToolResponse("c2", (Text("see"), Blob(PNG, "image/png"))))
    request = ask(
        user(["What is ", Blob(PNG, "image/png")]),
        Message("assistant", (Reasoning("hm"), Text("One moment."), *calls)),
        Message("tool", results),
        system="Be brief.",
        tools=(TOOL,),
        output_schema={"type": "object"},
        settings=Settings(
            max_tokens=9,
            temperature=1.5,
            top_k=3,
            seed=4,
            stop=("END",),
            repeat_penalty=1.1,
            thinking="low",
            extra={"num_ctx": 8192, "keep_alive": "5m", "options": {"mirostat": 1}},
        ),
    )
    function = {"name": "look", "description": "Look it up.", "parameters": TOOL.input_schema}
    assert encode(request, stream=True) == {
        "model": "qwen",
        "stream": True,
        "think": True,
        "format": {"type": "object"},
        "keep_alive": "5m",
        "options": {
            "num_predict": 9,
            "temperature": 1.5,
            "top_k": 3,
            "seed": 4,
            "repeat_penalty": 1.1,
            "stop": ["END"],
            "num_ctx": 8192,
            "mirostat": 1,
        },
        "tools": [{"type": "function", "function": function}],
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "What is ", "images": [IMAGE]},
            {
                "role": "assistant",
                "content": "One moment.",
                "thinking": "hm",
                "tool_calls": [
                    {"id": "c1", "function": {"name": "look", "arguments": {"q": "x"}}},
                    {"id": "c2", "function": {"name": "now", "arguments": {}}},
                ],
            },
            {"role": "tool", "content": "nothing", "tool_name": "look", "tool_call_id": "c1"},
            {"role": "tool", "content": "see", "tool_name": "now", "tool_call_id": "c2", "images": [IMAGE]},
        ],
    }


def test_images_of_tool_results_follow_where_they_may_not_stand() -> None:
    result = ToolResponse("c", (Text("see"), Blob(PNG, "image/png", filename="a.png")))
    talk = (user("a"), Message("assistant", (ToolCall("c", "look"),)), Message("tool", (result,)))
    rows = encode(ask(*talk), replace(CAPS, image_in_tool_result=False))["messages"]
    assert [row["role"] for row in rows] == ["user", "assistant", "tool", "user"]
    assert rows[2]["content"] == f"see\n[image: a.png, {len(PNG)} bytes]"
    assert rows[3]["images"] == [IMAGE]
    blind = encode(ask(*talk), Capabilities(vision=False))["messages"]
    assert [row["role"] for row in blind] == ["user", "assistant", "tool"]


@pytest.mark.parametrize(
    ("given", "reasoning", "think"),
    [
        (Settings(thinking="low"), "none", None),
        (Settings(), "switch", None),
        (Settings(thinking="off"), "switch", False),
        (Settings(thinking_budget=0), "effort", False),
        (Settings(thinking="high"), "switch", True),
        (Settings(thinking="adaptive"), "effort", True),
        (Settings(thinking="minimal"), "effort", "low"),
        (Settings(thinking="high"), "effort", "high"),
        (Settings(thinking_budget=9000), "effort", "medium"),
    ],
)
def test_think(given: Settings, reasoning: Any, think: Any) -> None:
    assert encode(ask(settings=given), Capabilities(reasoning=reasoning)).get("think") == think


def test_tool_choice() -> None:
    assert "tools" not in encode(ask(tools=(TOOL,), tool_choice="none"))
    forced = ask(tools=(TOOL,), tool_choice="required", settings=Settings(parallel_tool_calls=False, thinking="low"))
    assert encode(forced)["tool_choice"] == "required"
    assert dropped_settings(forced, Capabilities(structured_output=False)) == [
        "tool_choice",
        "parallel_tool_calls",
        "thinking",
    ]
    assert dropped_settings(ask(settings=Settings(thinking_budget=5)), CAPS) == ["thinking_budget"]
    assert dropped_settings(ask(output_schema={}), Capabilities(structured_output=False)) == ["output_schema"]


def test_schemas_the_server_cannot_read_are_bent() -> None:
    spec = ToolSpec("t", "", {"properties": {"a": True, "b": {"type": "string"}}})
    parameters = encode(ask(tools=(spec,)))["tools"][0]["function"]["parameters"]
    assert parameters == {"type": "object", "properties": {"a": {}, "b": {"type": "string"}}}
    assert encode(ask(tools=(ToolSpec("t", "", {}),)))["tools"][0]["function"]["parameters"]["properties"] == {}


def test_r28_foreign_reasoning_is_stripped() -> None:
    thoughts = (Reasoning("mine"), Reasoning("signed", {"anthropic": {"signature": "s"}}))
    assert (
        encode(ask(user("a"), Message("assistant", (*thoughts, Text("b"))), user("c")))["messages"][1]["thinking"]
        == "mine"
    )


def test_text_documents_become_text() -> None:
    note = Blob(b"a < b", "text/markdown", "document", "n.md")
    assert encode(ask(user(["read", note])))["messages"][0]["content"] == (
        'read\n\n<document name="n.md">\na < b\n</document>'
    )


@pytest.mark.parametrize(
    ("part", "caps", "said"),
    [
        (
            Blob(PDF, "application/pdf", "document", "r.pdf"),
            CAPS,
            r"r\.pdf.*qwen takes text documents, not application/pdf",
        ),
        (Blob(PNG, "image/png"), Capabilities(vision=False), "takes no images"),
        (Uri("https://e.test/a.png"), CAPS, "as bytes, not by their address"),
        (Blob(b"..", "audio/wav", "audio"), CAPS, "takes no audio"),
        (UnknownPart({"type": "hologram"}), CAPS, "'hologram'.*does not know"),
        (ToolCall("c", "look"), CAPS, "outside an assistant message"),
        (ToolResponse("c", "x"), Capabilities(tools=False), "response to the tool call 'c'"),
    ],
)
def test_refused_parts_name_part_and_model(part: Part, caps: Capabilities, said: str) -> None:
    with pytest.raises(UnsupportedInputError, match=said) as caught:
        DIALECT.encode_request(ask(user([part])), caps, stream=False)
    assert caught.value.model == "qwen"


def test_tools_and_calls_are_refused_without_tools() -> None:
    talk = [user("a"), Message("assistant", (ToolCall("c", "look"),)), Message("tool", (ToolResponse("c", "x"),))]
    for request in (ask(tools=(TOOL,)), ask(*talk)):
        with pytest.raises(UnsupportedInputError, match=r"look.*qwen takes no tools"):
            DIALECT.encode_request(request, Capabilities(tools=False), stream=False)


thoughts = st.builds(Reasoning, clean_text)
results = st.one_of(clean_text, st.tuples(st.builds(Text, clean_text), images))


@given(
    conversations(media=images, reasoning=thoughts, results=results),
    st.one_of(st.none(), clean_text),
    st.sampled_from(["auto", "required", "look"]),
    st.sampled_from([None, "off", "adaptive"]),
    st.booleans(),
)
@settings(max_examples=30, deadline=None)
def test_decode_encode_is_identity(
    messages: list[Message], system: str | None, choice: str, thinking: Any, stream: bool
) -> None:
    # Text stands before images, and a response has no status there.
    messages = [ordered(message) for message in messages]
    request = Request(
        model="qwen",
        messages=messages,
        system=system,
        tools=(TOOL, ToolSpec("other")),
        tool_choice=choice,
        settings=Settings(max_tokens=5, temperature=1.5, top_k=0, stop=("x",), seed=-1, thinking=thinking),
        output_schema={"type": "object"},
    )
    body = DIALECT.encode_request(request, CAPS, stream=stream)
    ChatRequest.model_validate(json.loads(body))
    assert check_ollama(json.loads(body)) == []
    got = DIALECT.decode_request(body)
    assert (got.stream, got.extra) == (stream, {})
    assert got.request == request
    cache = EncodingCache()
    for end in range(1, len(messages) + 1):
        part = replace(request, messages=messages[:end])
        assert DIALECT.encode_request(replace(part, encoded=cache), CAPS, stream=stream) == DIALECT.encode_request(
            part, CAPS, stream=stream
        )


def ordered(message: Message) -> Message:
    parts = sorted(message.parts, key=lambda part: isinstance(part, Blob)) if message.role == "user" else message.parts
    return replace(message, parts=tuple([replace(p, status="ok") if isinstance(p, ToolResponse) else p for p in parts]))


# ------------------------------------------------------------------------------------------------------- what we read


def read(**fields: Any) -> Any:
    return DIALECT.decode_request(json.dumps({"model": "m", "messages": [], **fields}).encode())


def test_reads_what_clients_send() -> None:
    got = read(
        messages=[
            {"role": "system", "content": "a"},
            {"role": "user", "content": "x", "images": [IMAGE]},
            {
                "role": "assistant",
                "content": "",
                "thinking": "t",
                "tool_calls": [
                    {"function": {"name": "look", "arguments": {"q": 1}}},
                    {"function": {"name": "now", "arguments": '{"z": 2}'}},
                    {"function": {"name": "look", "arguments": "oops"}},
                ],
            },
            {"role": "tool", "content": "N", "tool_name": "now"},
            {"role": "tool", "content": "A", "name": "look"},
            {"role": "tool", "content": "B"},
            {"role": "assistant", "content": "done", "tool_calls": [{"id": "call_0", "function": {"name": "look"}}]},
            {"role": "tool", "content": "C", "tool_call_id": "call_9"},
        ],
        options={"temperature": 0, "num_predict": -1, "num_ctx": 99, "stop": "END", "top_p": 1},
        think="high",
        format="json",
        keep_alive=0,
    )
    request = got.request
    assert (got.stream, request.system) == (True, "a")
    assert got.extra == {"options": {"num_ctx": 99}, "format": "json", "keep_alive": 0}
    assert request.settings == Settings(temperature=0.0, top_p=1.0, stop=("END",), thinking="high")
    asked, said, answers, again, stray = request.messages
    assert asked.parts == (Text("x"), Blob(PNG, "image/png"))
    assert said.parts == (
        Reasoning("t"),
        ToolCall("call_0", "look", {"q": 1}),
        ToolCall("call_1", "now", {"z": 2}, '{"z": 2}'),
        ToolCall("call_2", "look", None, "oops"),
    )
    assert answers == Message(
        "tool", (ToolResponse("call_1", "N"), ToolResponse("call_0", "A"), ToolResponse("call_2", "B"))
    )
    assert again.tool_calls[0].id == "call_3"
    assert stray.parts == (ToolResponse("call_9", "C"),)


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"model": ""}, "model: "),
        ({"messages": {}}, "messages: "),
        ({"messages": [1]}, r"messages\[0\]: "),
        ({"messages": [{"role": "robot"}]}, r"messages\[0\]\.role: "),
        ({"messages": [{"role": "user", "content": []}]}, r"messages\[0\]\.content: "),
        ({"messages": [{"role": "user", "images": ["%"]}]}, r"messages\[0\]\.images\[0\]: must be base64"),
        ({"messages": [{"role": "user", "images": ["AAAA"]}]}, r"messages\[0\]\.images\[0\]: must be a PNG"),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{}]}]},
            r"messages\[0\]\.tool_calls\[0\]\.function\.name: ",
        ),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "a", "arguments": 3}}]}]},
            r"messages\[0\]\.tool_calls\[0\]\.function\.arguments: ",
        ),
        ({"tools": [{}]}, r"tools\[0\]\.function\.name: "),
        ({"options": []}, "options: "),
        ({"options": {"seed": 1.5}}, r"options\.seed: "),
        ({"options": {"temperature": 9}}, "options: "),
        ({"options": {"stop": [1]}}, r"options\.stop: "),
        ({"think": "lots"}, "think: "),
        ({"format": 3}, "format: "),
        ({"tool_choice": {}}, "tool_choice: "),
        ({"stream": 1}, "stream: "),
    ],
)
def test_bad_fields_are_named(fields: dict[str, Any], path: str) -> None:
    with pytest.raises(BadRequestError, match=f"^{path}"):
        read(**fields)


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"\xff", b"[" * 100_000])
def test_s76_bodies_that_are_no_object(body: bytes) -> None:
    with pytest.raises(BadRequestError, match="body"):
        DIALECT.decode_request(body)
