"""What is sent to Google: contents, signatures, tools, settings; and that it reads as it was written."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wire_strategies import PDF, PNG, clean_text, conversations, images, json_values, names

from windlass.core.errors import BadRequestError, UnsupportedInputError
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
    assistant,
    system,
    user,
)
from windlass.core.models import Capabilities
from windlass.core.request import EncodingCache, Request, Settings, ToolSpec
from windlass.testing.validity import check_gemini
from windlass.wire.gemini import DIALECT, generation
from windlass.wire.gemini_parts import UNSIGNED

OLD, NEW = "gemini-2.5-flash", "gemini-3-pro-preview"
BUDGET, LEVEL = Capabilities(reasoning="budget"), Capabilities(reasoning="effort", image_in_tool_result=True)
B64 = base64.b64encode(PNG).decode()
LIGHTS = ToolSpec(
    "set_light_values",
    "Sets the brightness and color temperature of a light.",
    {"type": "object", "properties": {"brightness": {"type": "integer"}}, "required": ["brightness"]},
)


def body(messages: list[Message], caps: Capabilities = BUDGET, *, model: str = OLD, **fields: Any) -> dict[str, Any]:
    return json.loads(DIALECT.encode_request(Request(model=model, messages=messages, **fields), caps, stream=True))


def contents(messages: list[Message], caps: Capabilities = BUDGET, *, model: str = OLD) -> list[Any]:
    return body(messages, caps, model=model)["contents"]


def test_the_body_of_the_function_calling_guide() -> None:
    """ai.google.dev/gemini-api/docs/function-calling, step 4: the second request of a tool round."""
    call = ToolCall("8f2b1a3c", "set_light_values", {"brightness": 25}, None, {"gemini": {"thoughtSignature": "c2ln"}})
    sent = body(
        [user("Turn the lights down"), Message("assistant", (call,)), Message("tool", (ToolResponse(call.id, "ok"),))],
        system="You run a house.",
        tools=(LIGHTS,),
        tool_choice="required",
        settings=Settings(
            max_tokens=100, temperature=0.5, top_p=0.9, top_k=40, stop=("END",), seed=7, presence_penalty=0.5,
            frequency_penalty=-0.5,
        ),
    )  # fmt: skip
    assert sent == {
        "systemInstruction": {"parts": [{"text": "You run a house."}]},
        "contents": [
            {"role": "user", "parts": [{"text": "Turn the lights down"}]},
            {
                "role": "model",
                "parts": [
                    {
                        "functionCall": {"id": "8f2b1a3c", "name": "set_light_values", "args": {"brightness": 25}},
                        "thoughtSignature": "c2ln",
                    }
                ],
            },
            {
                "role": "user",
                "parts": [
                    {
                        "functionResponse": {
                            "id": "8f2b1a3c", "name": "set_light_values", "response": {"output": "ok"},
                        }
                    }
                ],
            },
        ],
        "tools": [
            {
                "functionDeclarations": [
                    {
                        "name": "set_light_values",
                        "description": "Sets the brightness and color temperature of a light.",
                        "parametersJsonSchema": LIGHTS.input_schema,
                    }
                ]
            }
        ],
        "toolConfig": {"functionCallingConfig": {"mode": "ANY"}},
        "generationConfig": {
            "temperature": 0.5, "topP": 0.9, "topK": 40, "maxOutputTokens": 100, "seed": 7, "presencePenalty": 0.5,
            "frequencyPenalty": -0.5, "stopSequences": ["END"],
        },
    }  # fmt: skip


def test_a_bare_request_holds_nothing_else() -> None:
    assert body([user("hi")]) == {"contents": [{"role": "user", "parts": [{"text": "hi"}]}]}


@pytest.mark.parametrize(
    ("choice", "config"),
    [
        ("auto", None),
        ("none", {"mode": "NONE"}),
        ("required", {"mode": "ANY"}),
        ("look", {"mode": "ANY", "allowedFunctionNames": ["look"]}),
    ],
)
def test_tool_choice(choice: str, config: dict[str, Any] | None) -> None:
    sent = body([user("x")], tools=(ToolSpec("look"),), tool_choice=choice)
    assert sent.get("toolConfig") == (None if config is None else {"functionCallingConfig": config})
    # A function without parameters has no schema.
    assert sent["tools"] == [{"functionDeclarations": [{"name": "look"}]}]
    back = DIALECT.decode_request(json.dumps(sent).encode()).request
    assert (back.tool_choice, back.tools) == (choice, (ToolSpec("look"),))


# --------------------------------------------------------------------------------------------------------- thinking


@pytest.mark.parametrize(
    ("model", "caps", "asked", "config", "dropped"),
    [
        (OLD, BUDGET, {}, None, []),
        (OLD, BUDGET, {"thinking": "low"}, {"thinkingBudget": 4096, "includeThoughts": True}, []),
        (OLD, BUDGET, {"thinking": "high"}, {"thinkingBudget": 24576, "includeThoughts": True}, []),
        (OLD, BUDGET, {"thinking": "adaptive"}, {"thinkingBudget": -1, "includeThoughts": True}, []),
        (OLD, BUDGET, {"thinking": "off"}, {"thinkingBudget": 0}, []),
        (OLD, BUDGET, {"thinking_budget": 0}, {"thinkingBudget": 0}, []),
        (OLD, BUDGET, {"thinking_budget": 7}, {"thinkingBudget": 7, "includeThoughts": True}, []),
        ("gemini-2.5-flash-lite", BUDGET, {"thinking_budget": 7}, {"thinkingBudget": 512, "includeThoughts": True}, []),
        ("gemini-2.5-pro", BUDGET, {"thinking": "high"}, {"thinkingBudget": 32768, "includeThoughts": True}, []),
        ("models/gemini-2.5-pro", BUDGET, {"thinking": "off"}, {"thinkingBudget": 128}, ["thinking"]),
        ("gemini-3-flash-preview", LEVEL, {"thinking": "off"}, {"thinkingLevel": "MINIMAL"}, ["thinking"]),
        ("gemini-3-flash", LEVEL, {"thinking": "medium"}, {"thinkingLevel": "MEDIUM", "includeThoughts": True}, []),
        ("gemini-3-flash", LEVEL, {"thinking": "adaptive"}, {"includeThoughts": True}, []),
        ("gemini-3-flash", LEVEL, {"thinking_budget": 5000}, {"thinkingLevel": "MEDIUM", "includeThoughts": True}, []),
        (NEW, LEVEL, {"thinking": "minimal"}, {"thinkingLevel": "LOW", "includeThoughts": True}, []),
        (NEW, LEVEL, {"thinking": "medium"}, {"thinkingLevel": "HIGH", "includeThoughts": True}, []),
        ("gemini-3.1-pro", LEVEL, {"thinking": "medium"}, {"thinkingLevel": "MEDIUM", "includeThoughts": True}, []),
        ("gemini-2.0-flash", Capabilities(), {"thinking": "high"}, None, ["thinking"]),
        ("gemini-2.0-flash", Capabilities(), {"thinking": "off"}, None, []),
    ],
)  # fmt: skip
def test_thinking_is_a_budget_then_a_level(
    model: str, caps: Capabilities, asked: dict[str, Any], config: dict[str, Any] | None, dropped: list[str]
) -> None:
    request = Request(model=model, messages=[user("x")], settings=Settings(**asked))
    sent = json.loads(DIALECT.encode_request(request, caps, stream=False))
    assert sent.get("generationConfig", {}).get("thinkingConfig") == config
    assert DIALECT.dropped_settings(request, caps) == dropped


def test_generations() -> None:
    known = ["gemini-2.5-flash", "models/gemini-3-pro-preview", "gemini-3.1-pro", "gemini-flash-latest", "gemma-3-27b"]
    assert [generation(name) for name in known] == [2.5, 3.0, 3.1, None, None]


# ------------------------------------------------------------------------------------------------- settings and schema

SCHEMA = {"type": "object", "properties": {"a": {"$ref": "#/$defs/A"}}, "$defs": {"A": {"const": 1}}}


@pytest.mark.parametrize(
    ("model", "tools", "told"), [(OLD, False, True), (OLD, True, False), (NEW, True, True), ("gemini-x", True, True)]
)
def test_a_schema_is_told_whole_or_reported(model: str, tools: bool, told: bool) -> None:
    specs = (ToolSpec("look"),) if tools else ()
    request = Request(model=model, messages=[user("x")], output_schema=SCHEMA, tools=specs)
    sent = json.loads(DIALECT.encode_request(request, BUDGET, stream=True))
    wanted = {"responseMimeType": "application/json", "responseJsonSchema": SCHEMA}
    assert sent.get("generationConfig") == (wanted if told else None)
    assert DIALECT.dropped_settings(request, BUDGET) == ([] if told else ["output_schema"])


def test_what_cannot_be_told_is_reported() -> None:
    asked = Settings(repeat_penalty=1.1, parallel_tool_calls=False, top_k=3, seed=1)
    request = Request(model=OLD, messages=[user("x")], settings=asked, tools=(LIGHTS,), output_schema=SCHEMA)
    plain = Capabilities(structured_output=False)
    assert DIALECT.dropped_settings(request, plain) == ["repeat_penalty", "parallel_tool_calls", "output_schema"]


def test_extra_is_merged_and_may_replace_the_contents() -> None:
    extra = {
        "generationConfig": {"candidateCount": 1, "temperature": 0.1},
        "tools": [{"googleSearch": {}}],
        "safetySettings": [],
        "toolConfig": {"retrievalConfig": {}},
    }
    asked = Settings(temperature=0.5, top_k=1, extra=extra)
    sent = body([user("x")], settings=asked, tools=(ToolSpec("look"),), tool_choice="none")
    assert sent["generationConfig"] == {"temperature": 0.1, "topK": 1, "candidateCount": 1}
    assert sent["tools"] == [{"functionDeclarations": [{"name": "look"}]}, {"googleSearch": {}}]
    assert sent["toolConfig"] == {"functionCallingConfig": {"mode": "NONE"}, "retrievalConfig": {}}
    assert sent["safetySettings"] == []
    own = [{"role": "user", "parts": [{"text": "y"}]}]
    assert body([user("x")], settings=Settings(extra={"contents": own})) == {"contents": own}


# ----------------------------------------------------------------------------------------------------- signatures


def signed(text: str) -> dict[str, Any]:
    return {"gemini": {"thoughtSignature": text}}


ROUND = [ToolResponse("a", "1"), ToolResponse("b", "2")]


def test_signatures_go_back_with_their_very_part() -> None:
    parts = (
        Reasoning("I think", signed("c2lnMQ==")),
        Text("Hello", signed("c2lnMg==")),
        Text("", signed("c2lnMw==")),
        ToolCall("a", "look", {"x": 1}, None, signed("c2lnNA==")),
        ToolCall("b", "look", {}),
        Blob(PNG, "image/png", provider_metadata=signed("c2lnNQ==")),
        UnknownPart({"type": "gemini.executableCode", "part": {"executableCode": {"language": "PYTHON", "code": "1"}}}),
    )
    made = contents([user("x"), Message("assistant", parts), Message("tool", tuple(ROUND))], model=NEW)[1]["parts"]
    assert made == [
        {"text": "I think", "thought": True, "thoughtSignature": "c2lnMQ=="},
        {"text": "Hello", "thoughtSignature": "c2lnMg=="},
        {"text": "", "thoughtSignature": "c2lnMw=="},
        {"functionCall": {"id": "a", "name": "look", "args": {"x": 1}}, "thoughtSignature": "c2lnNA=="},
        {"functionCall": {"id": "b", "name": "look", "args": {}}},
        {"inlineData": {"mimeType": "image/png", "data": B64}, "thoughtSignature": "c2lnNQ=="},
        {"executableCode": {"language": "PYTHON", "code": "1"}},
    ]


@pytest.mark.parametrize(
    ("model", "marks"),
    [
        (NEW, [UNSIGNED, None]),
        ("gemini-flash-latest", [UNSIGNED, None]),
        (OLD, [None, None]),
        ("gemini-2.0-flash", [None, None]),
        ("gemma-3-27b-it", [None, None]),
    ],
)
def test_r28_calls_of_another_vendor_carry_the_documented_signature(model: str, marks: list[str | None]) -> None:
    """After a fallback: no reasoning of others, and the first call of each step is marked, for new models only."""
    parts: tuple[Part, ...] = (
        Reasoning("claude thinks", {"anthropic": {"signature": "EqQB"}}),
        Reasoning("plain"),
        ToolCall("a", "look", {}, None, {"openai": {"extra": 1}}),
        ToolCall("b", "look", {}),
    )
    history = [user("x"), Message("assistant", parts), Message("tool", tuple(ROUND))]
    made = contents(history, model=model)[1]["parts"]
    assert [part.get("thoughtSignature") for part in made] == marks
    assert [part["functionCall"]["id"] for part in made] == ["a", "b"]
    if model == NEW:
        assert check_gemini(body(history, model=model)) == []


@given(
    messages=conversations(
        reasoning=st.sampled_from([Reasoning("x"), Reasoning("y", {"anthropic": {"signature": "s"}})])
    )
)
@settings(max_examples=40, deadline=None)
def test_r28_whatever_history_another_vendor_left_is_valid(messages: list[Message]) -> None:
    cache = EncodingCache()
    request = Request(model=NEW, messages=messages, encoded=cache)
    for _ in range(2):
        assert check_gemini(json.loads(DIALECT.encode_request(request, LEVEL, stream=True))) == []


# -------------------------------------------------------------------------------------------------------- tool rounds


def test_responses_stand_alone_in_the_order_of_their_calls() -> None:
    calls = (ToolCall("a", "look", {}), ToolCall("b", "find", {}))
    history = [
        user("x"),
        Message("assistant", calls),
        Message("tool", (ToolResponse("b", "2"),)),
        Message("tool", (ToolResponse("a", "", "timeout"),)),
        system("Be brief."),
        user("and?"),
    ]
    assert contents(history)[2:] == [
        {
            "role": "user",
            "parts": [
                {"functionResponse": {"name": "look", "id": "a", "response": {"error": "(timeout)"}}},
                {"functionResponse": {"name": "find", "id": "b", "response": {"output": "2"}}},
            ],
        },
        {"role": "user", "parts": [{"text": "<system>\nBe brief.\n</system>"}, {"text": "and?"}]},
    ]


def test_a_call_that_the_vendor_gave_no_id_gets_none_back() -> None:
    call = ToolCall("call_0_resp", "look", {}, None, {"gemini": {"id": "", "thoughtSignature": "s"}})
    made = contents([user("x"), Message("assistant", (call,)), Message("tool", (ToolResponse(call.id, "1"),))])
    assert made[1]["parts"] == [{"functionCall": {"name": "look", "args": {}}, "thoughtSignature": "s"}]
    assert made[2]["parts"] == [{"functionResponse": {"name": "look", "response": {"output": "1"}}}]


def test_images_of_tool_results_are_shown_inside_or_later() -> None:
    pieces = (Text("here"), Blob(PNG, "image/png"), Uri("https://e.test/x.png"))
    history = [
        user("x"),
        Message("assistant", (ToolCall("a", "look", {}),)),
        Message("tool", (ToolResponse("a", pieces),)),
    ]
    inline = {"inlineData": {"mimeType": "image/png", "data": B64}}
    file = {"fileData": {"fileUri": "https://e.test/x.png", "mimeType": "image/png"}}
    later = contents(history)[2:]
    text = "here\n[image: image/png, 16 bytes] (shown below)\n[image: https://e.test/x.png] (shown below)"
    assert later == [
        {"role": "user", "parts": [{"functionResponse": {"name": "look", "id": "a", "response": {"output": text}}}]},
        {"role": "user", "parts": [inline, file]},
    ]
    inside = contents(history, LEVEL, model=NEW)[2]["parts"][0]["functionResponse"]
    assert inside["parts"] == [inline]
    blind = contents(history, Capabilities(vision=False))[2:]
    assert blind[0]["parts"][0]["functionResponse"]["response"]["output"].splitlines()[1:] == [
        "[image: image/png, 16 bytes]",
        "[image: https://e.test/x.png]",
    ]
    assert len(blind) == 1


def test_a_response_object_of_the_vendors_own_clients_goes_on_as_it_came() -> None:
    raw = {
        "contents": [
            {"role": "user", "parts": [{"text": "x"}]},
            {"role": "model", "parts": [{"functionCall": {"name": "w", "args": {}}}]},
            {"role": "function", "parts": [{"functionResponse": {"name": "w", "response": {"t": 20, "u": "C"}}}]},
        ]
    }
    request = DIALECT.decode_request(json.dumps(raw).encode()).request
    made = contents(list(request.messages))
    assert made[2]["parts"] == [{"functionResponse": {"name": "w", "response": {"t": 20, "u": "C"}}}]
    response = request.messages[2].parts[0]
    assert isinstance(response, ToolResponse) and json.loads(str(response.response)) == {"t": 20, "u": "C"}


# -------------------------------------------------------------------------------------------------------------- media


def test_media() -> None:
    parts = (
        Text("see"),
        Blob(PNG, "image/png"),
        Blob(b"ID3", "audio/mpeg", "audio"),
        Blob(b"mp4", "video/mp4", "video"),
        Blob(PDF, "application/pdf", "document", "a.pdf"),
        Blob(b'{"a":1}', "application/json", "document", "a.json"),
        Uri("https://www.youtube.com/watch?v=9hE5", None, "video", None, {"gemini": {"videoMetadata": {"fps": 5}}}),
        Uri("gs://b/x.pdf", "application/pdf", "document"),
    )
    made = contents([Message("user", parts)])[0]["parts"]
    assert [part.get("inlineData", {}).get("mimeType") for part in made[:5]] == [
        None, "image/png", "audio/mpeg", "video/mp4", "application/pdf",
    ]  # fmt: skip
    assert made[5] == {"text": '<document name="a.json">\n{"a":1}\n</document>'}
    assert made[6] == {"fileData": {"fileUri": "https://www.youtube.com/watch?v=9hE5"}, "videoMetadata": {"fps": 5}}
    assert made[7] == {"fileData": {"fileUri": "gs://b/x.pdf", "mimeType": "application/pdf"}}


@pytest.mark.parametrize(
    ("part", "caps", "words"),
    [
        (Blob(PNG, "image/png"), Capabilities(vision=False), "takes no images"),
        (Blob(PDF, "application/pdf", "document", "a.pdf"), Capabilities(documents=False), "takes no documents"),
        (UnknownPart({"type": "hologram"}), BUDGET, "hologram"),
        (UnknownPart({"type": "anthropic.search_result", "block": {}}), BUDGET, "search_result"),
        (ToolCall("a", "look", {}), BUDGET, "outside an assistant message"),
        (ToolResponse("a", "x"), Capabilities(tools=False), "takes no tools"),
    ],
)
def test_what_the_model_cannot_take_is_refused(part: Part, caps: Capabilities, words: str) -> None:
    with pytest.raises(UnsupportedInputError, match=words) as caught:
        contents([Message("user", (part,))], caps)
    assert caught.value.model == OLD


def test_tools_and_calls_of_a_model_without_tools_are_refused() -> None:
    deaf = Capabilities(tools=False)
    with pytest.raises(UnsupportedInputError, match="look"):
        body([user("x")], deaf, tools=(ToolSpec("look"),))
    with pytest.raises(UnsupportedInputError, match="look"):
        contents([user("x"), Message("assistant", (ToolCall("a", "look", {}),))], deaf)
    with pytest.raises(UnsupportedInputError, match="tool response in an assistant message"):
        contents([Message("assistant", (ToolResponse("a", "x"),))])


# ------------------------------------------------------------------------------------------------------- the frame


def test_system_messages_in_front_join_the_instruction_and_the_user_begins() -> None:
    sent = body([system("A"), system("B"), assistant("hello"), user("x")], system="S")
    assert sent["systemInstruction"] == {"parts": [{"text": "S\n\nA\n\nB"}]}
    assert [row["role"] for row in sent["contents"]] == ["user", "model", "user"]
    assert sent["contents"][0]["parts"] == [{"text": "(empty)"}]


@pytest.mark.parametrize("messages", [[], [system("only")]])
def test_a_request_without_messages_is_refused_here(messages: list[Message]) -> None:
    with pytest.raises(BadRequestError, match="no messages"):
        body(messages)


def test_media_of_an_answer_that_cannot_be_sent_become_text() -> None:
    history = [user("x"), Message("assistant", (Blob(PNG, "image/png"),)), user("y")]
    assert contents(history, Capabilities(vision=False))[1]["parts"] == [{"text": "[image: image/png, 16 bytes]"}]


# --------------------------------------------------------------------------------------------------- read as written


def thought(text: str, mark: str) -> Reasoning:
    return Reasoning(text, signed(mark))


marks = st.text("abcDEF123=", min_size=1, max_size=9)
answered = st.one_of(
    clean_text,
    st.tuples(st.builds(Text, clean_text), st.just(Blob(PNG, "image/png"))),
    st.just((Text("t"), Blob(PNG, "image/png"), Blob(PDF, "application/pdf", "document"))),
)
media = st.one_of(images, st.just(Uri("https://e.test/x.png", "image/png")), st.just(Blob(b"a", "audio/wav", "audio")))


@given(
    messages=conversations(media=media, reasoning=st.builds(thought, clean_text, marks), results=answered),
    choice=st.sampled_from(["auto", "none", "required", "look"]),
    asked=st.builds(
        Settings,
        max_tokens=st.one_of(st.none(), st.integers(1, 9999)),
        temperature=st.one_of(st.none(), st.floats(0, 2)),
        top_p=st.one_of(st.none(), st.floats(0, 1)),
        top_k=st.one_of(st.none(), st.integers(0, 99)),
        stop=st.one_of(st.just(()), st.tuples(clean_text)),
        seed=st.one_of(st.none(), st.integers(-(1 << 31), (1 << 31) - 1)),
        thinking_budget=st.one_of(st.none(), st.integers(1, 24576)),
    ),
    schema=st.one_of(st.none(), st.dictionaries(names, json_values(clean_text), max_size=2)),
)
@settings(max_examples=60, deadline=None)
def test_each_request_reads_as_it_was_written(
    messages: list[Message], choice: str, asked: Settings, schema: dict[str, Any] | None
) -> None:
    caps = Capabilities(reasoning="budget", image_in_tool_result=True)
    request = Request(
        model=OLD,
        messages=messages,
        system="s",
        tools=(LIGHTS, ToolSpec("look")) if schema is None else (),
        tool_choice=choice if schema is None else "auto",
        settings=asked,
        output_schema=schema,
    )
    assert DIALECT.dropped_settings(request, caps) == []
    got = DIALECT.decode_request(DIALECT.encode_request(request, caps, stream=True))
    assert list(got.request.messages) == messages
    assert got.request.settings == asked and got.extra == {}
    assert (got.request.tools, got.request.tool_choice) == (request.tools, request.tool_choice)
    assert (got.request.system, got.request.output_schema) == ("s", schema)
