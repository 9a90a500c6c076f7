"""What Google's clients send: what the official SDK writes, both spellings of names, and every refusal by its field."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wire_strategies import json_values, names, wild_text

from windlass.core.errors import BadRequestError
from windlass.core.messages import Blob, Message, Reasoning, Text, ToolCall, ToolResponse, UnknownPart, Uri
from windlass.core.request import Settings, ToolSpec
from windlass.wire.base import DecodedRequest
from windlass.wire.gemini import DIALECT
from windlass.wire.gemini_request import json_schema

#: As google-genai 3.4.0 sends it: it mixes both spellings, and its base64 is that of URLs.
SDK: dict[str, Any] = {
    "contents": [
        {
            "role": "user",
            "parts": [
                {"text": "hi"},
                {"inlineData": {"data": "__79", "mime_type": "image/png"}},
                {"fileData": {"file_uri": "https://x.test/a.pdf", "mime_type": "application/pdf"}},
            ],
        },
        {
            "role": "model",
            "parts": [
                {
                    "functionCall": {"id": "a1", "args": {"location": "P"}, "name": "weather"},
                    "thoughtSignature": "AQJzaWf_",
                }
            ],
        },
        {
            "role": "user",
            "parts": [{"functionResponse": {"id": "a1", "name": "weather", "response": {"output": "sunny"}}}],
        },
    ],
    "systemInstruction": {"parts": [{"text": "be nice"}], "role": "user"},
    "tools": [
        {"googleSearch": {}},
        {
            "functionDeclarations": [
                {
                    "description": "Get weather.",
                    "name": "weather",
                    "parameters_json_schema": {"type": "object", "properties": {"location": {"type": "string"}}},
                    "response_json_schema": {"type": "string"},
                }
            ]
        },
    ],
    "toolConfig": {"functionCallingConfig": {"allowedFunctionNames": ["weather"], "mode": "ANY"}},
    "generationConfig": {
        "temperature": 0.5, "topP": 0.9, "topK": 4.0, "maxOutputTokens": 10, "stopSequences": ["x"],
        "presencePenalty": 0.1, "frequencyPenalty": 0.2, "seed": 3, "responseMimeType": "application/json",
        "responseJsonSchema": {"type": "object"}, "thinkingConfig": {"include_thoughts": True, "thinking_level": "LOW"},
    },
}  # fmt: skip


def decode(body: dict[str, Any]) -> DecodedRequest:
    return DIALECT.decode_request(json.dumps(body).encode())


def of(*parts: Any, role: str = "user") -> dict[str, Any]:
    return {"contents": [{"role": role, "parts": list(parts)}]}


def test_the_official_sdks_request() -> None:
    got = decode(SDK)
    assert list(got.request.messages) == [
        Message(
            "user",
            (
                Text("hi"),
                Blob(b"\xff\xfe\xfd", "image/png"),
                Uri("https://x.test/a.pdf", "application/pdf", "document"),
            ),
        ),
        Message(
            "assistant",
            (ToolCall("a1", "weather", {"location": "P"}, None, {"gemini": {"thoughtSignature": "AQJzaWf_"}}),),
        ),
        Message("tool", (ToolResponse("a1", "sunny"),)),
    ]
    assert got.request.settings == Settings(
        max_tokens=10, temperature=0.5, top_p=0.9, top_k=4, stop=("x",), seed=3, presence_penalty=0.1,
        frequency_penalty=0.2, thinking="low",
    )  # fmt: skip
    schema = {"type": "object", "properties": {"location": {"type": "string"}}}
    assert got.request.tools == (ToolSpec("weather", "Get weather.", schema),)
    assert (got.request.system, got.request.tool_choice) == ("be nice", "weather")
    assert got.request.output_schema == {"type": "object"}
    assert (got.request.model, got.stream, got.extra) == ("", False, {"tools": [{"googleSearch": {}}]})


def test_the_curl_of_the_guides_in_snake_case() -> None:
    got = decode(
        {
            "model": "models/gemini-2.5-flash",
            "system_instruction": {"parts": [{"text": "You are a cat."}]},
            "contents": [{"parts": [{"inline_data": {"mime_type": "image/jpeg", "data": "/9j/4A"}}, {"text": "?"}]}],
            "generation_config": {"max_output_tokens": 5, "stop_sequences": ["Title"], "candidate_count": 1},
            "safety_settings": [{"category": "HARM_CATEGORY_HARASSMENT", "threshold": "BLOCK_ONLY_HIGH"}],
        }
    )
    assert got.request.model == "gemini-2.5-flash" and got.request.system == "You are a cat."
    assert got.request.messages[0] == Message("user", (Blob(b"\xff\xd8\xff\xe0", "image/jpeg"), Text("?")))
    assert got.request.settings == Settings(max_tokens=5, stop=("Title",))
    assert got.extra["generationConfig"] == {"candidateCount": 1} and "safetySettings" in got.extra


def test_googles_schemas_become_json_schema() -> None:
    google = {
        "type": "OBJECT",
        "properties": {
            "type": {"type": "STRING", "nullable": True, "maxLength": "9", "enum": ["a", "b"]},
            "list": {"type": "ARRAY", "items": {"type": "INTEGER"}, "min_items": "1"},
            "either": {"any_of": [{"type": "NUMBER"}, {"type": "TYPE_UNSPECIFIED"}], "example": 1},
        },
        "required": ["type"],
        "property_ordering": ["type", "list"],
    }
    expected = {
        "type": "object",
        "properties": {
            "type": {"type": ["string", "null"], "maxLength": 9, "enum": ["a", "b"]},
            "list": {"type": "array", "items": {"type": "integer"}, "minItems": 1},
            "either": {"anyOf": [{"type": "number"}, {}]},
        },
        "required": ["type"],
        "propertyOrdering": ["type", "list"],
    }
    assert json_schema(google) == expected
    declared = {"functionDeclarations": [{"name": "f", "parameters": google}, {"name": "g"}]}
    config = {"responseMimeType": "application/json", "responseSchema": google}
    got = decode({**of({"text": "x"}), "tools": [declared], "generationConfig": config})
    assert got.request.tools == (ToolSpec("f", "", expected), ToolSpec("g"))
    assert got.request.output_schema == expected and got.extra == {}


@pytest.mark.parametrize(
    ("calling", "choice", "kept"),
    [
        ({"mode": "AUTO"}, "auto", False),
        ({}, "auto", False),
        ({"mode": "NONE"}, "none", False),
        ({"mode": "any"}, "required", False),
        ({"mode": "ANY", "allowed_function_names": ["f"]}, "f", False),
        ({"mode": "ANY", "allowedFunctionNames": ["f", "g"]}, "required", True),
        ({"mode": "ANY", "allowedFunctionNames": ["auto"]}, "required", True),
        ({"mode": "VALIDATED"}, "auto", True),
    ],
)
def test_function_calling_modes(calling: dict[str, Any], choice: str, kept: bool) -> None:
    got = decode({**of({"text": "x"}), "tool_config": {"function_calling_config": calling}})
    assert got.request.tool_choice == choice
    assert ("toolConfig" in got.extra) is kept


@pytest.mark.parametrize(
    ("config", "level", "budget", "kept"),
    [
        ({"thinkingBudget": 0}, "off", None, None),
        ({"thinkingBudget": -1}, "adaptive", None, None),
        ({"thinkingBudget": 512, "includeThoughts": True}, None, 512, None),
        ({"includeThoughts": True}, "adaptive", None, None),
        ({"includeThoughts": False}, None, None, {"includeThoughts": False}),
        ({"thinkingLevel": "high"}, "high", None, None),
        ({"thinkingLevel": "XHIGH"}, None, None, {"thinkingLevel": "XHIGH"}),
    ],
)
def test_thinking_configurations(config: dict[str, Any], level: Any, budget: Any, kept: Any) -> None:
    got = decode({**of({"text": "x"}), "generationConfig": {"thinkingConfig": config}})
    assert (got.request.settings.thinking, got.request.settings.thinking_budget) == (level, budget)
    assert got.extra.get("generationConfig", {}).get("thinkingConfig") == kept


def test_json_mode_without_a_schema_and_zeros_of_proto3() -> None:
    config = {"responseMimeType": "application/json", "maxOutputTokens": 0, "thinkingConfig": None}
    got = decode({**of({"text": "x"}), "generationConfig": config})
    assert got.request.settings == Settings()
    assert got.extra == {"generationConfig": {"responseMimeType": "application/json"}}


def test_responses_find_their_calls_without_ids() -> None:
    calls = [{"functionCall": {"name": name, "args": {"n": n}}} for n, name in enumerate(("f", "g", "f"))]
    said = [{"functionResponse": {"name": name, "response": {"output": text}}} for name, text in
            (("f", "first f"), ("f", "second f"), ("g", "g"))]  # fmt: skip
    got = decode({"contents": [{"role": "model", "parts": calls}, {"role": "user", "parts": [*said, {"text": "?"}]}]})
    ids = [call.id for call in got.request.messages[0].tool_calls]
    assert len(set(ids)) == 3
    answers = {part.id: part.response for part in got.request.messages[1].parts if isinstance(part, ToolResponse)}
    assert [answers[call_id] for call_id in ids] == ["first f", "g", "second f"]
    assert got.request.messages[2] == Message("user", (Text("?"),))


def test_parts_of_all_kinds() -> None:
    thought_image = {"inlineData": {"mimeType": "image/png", "data": ""}, "thought": True}
    got = decode(
        of(
            {"text": "hm", "thought": True, "thought_signature": "s"},
            {"thoughtSignature": "t"},
            {"executable_code": {"language": "PYTHON", "code": "1"}},
            thought_image,
            {"fileData": {"fileUri": "files/x"}},
            role="model",
        )
    )
    assert got.request.messages[0].parts == (
        Reasoning("hm", {"gemini": {"thoughtSignature": "s"}}),
        Text("", {"gemini": {"thoughtSignature": "t"}}),
        UnknownPart({"type": "gemini.executableCode", "part": {"executableCode": {"language": "PYTHON", "code": "1"}}}),
        UnknownPart({"type": "gemini.inlineData", "part": thought_image}),
        Uri("files/x"),
    )


def test_failed_responses_and_their_media() -> None:
    media = [{"inlineData": {"mimeType": "image/png", "data": "iVA="}}, {"weird": 1}]
    parts = [
        {"functionResponse": {"name": "f", "id": "1", "response": {"error": "no"}}},
        {"functionResponse": {"name": "f", "id": "2", "response": {"output": "see"}, "parts": media}},
        {"functionResponse": {"name": "f", "id": "3"}},
    ]
    got = decode(of(*parts)).request.messages[0].parts
    assert got == (
        ToolResponse("1", "no", "error"),
        ToolResponse("2", (Text("see"), Blob(b"\x89P", "image/png"))),
        ToolResponse("3", ""),
    )


X = {"text": "x"}


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "contents"),
        ({"contents": []}, "contents"),
        ({"contents": {}}, "contents"),
        ({"contents": ["x"]}, "contents[0]"),
        ({"contents": [{"role": "king", "parts": [X]}]}, "contents[0].role"),
        ({"contents": [{"parts": []}]}, "contents[0].parts"),
        ({"contents": [{"parts": ["x"]}]}, "contents[0].parts[0]"),
        (of({"text": 1}), "contents[0].parts[0].text"),
        (of({"inlineData": "x"}), "contents[0].parts[0].inlineData"),
        (of({"inlineData": {"data": "aa"}}), "contents[0].parts[0].inlineData.mimeType"),
        (of({"inlineData": {"mimeType": "a/b", "data": "é"}}), "contents[0].parts[0].inlineData.data"),
        (of({"fileData": {}}), "contents[0].parts[0].fileData.fileUri"),
        (of({"functionCall": {"name": "f"}}), "contents[0].parts[0].functionCall"),
        (of({"functionCall": {}}, role="model"), "contents[0].parts[0].functionCall.name"),
        (of({"functionCall": {"name": "f", "args": []}}, role="model"), "contents[0].parts[0].functionCall.args"),
        (of({"functionResponse": {"name": "f"}}, role="model"), "contents[0].parts[0].functionResponse"),
        (of({"functionResponse": {}}), "contents[0].parts[0].functionResponse.name"),
        (
            of({"functionResponse": {"name": "f", "response": 1}}),
            "contents[0].parts[0].functionResponse.response",
        ),
        ({**of(X), "model": 1}, "model"),
        ({**of(X), "systemInstruction": []}, "systemInstruction"),
        ({**of(X), "systemInstruction": {"parts": [{"fileData": {"fileUri": "x"}}]}}, "systemInstruction.parts[0]"),
        ({**of(X), "tools": {}}, "tools"),
        ({**of(X), "tools": [1]}, "tools[0]"),
        ({**of(X), "tools": [{"functionDeclarations": [{}]}]}, "tools[0].functionDeclarations[0].name"),
        (
            {**of(X), "tools": [{"functionDeclarations": [{"name": "f", "parameters": 1}]}]},
            "tools[0].functionDeclarations[0].parameters",
        ),
        (
            {**of(X), "tools": [{"functionDeclarations": [{"name": "f", "description": 1}]}]},
            "tools[0].functionDeclarations[0].description",
        ),
        (
            {**of(X), "toolConfig": {"functionCallingConfig": {"mode": "ALL"}}},
            "toolConfig.functionCallingConfig.mode",
        ),
        (
            {**of(X), "toolConfig": {"functionCallingConfig": {"allowedFunctionNames": [1]}}},
            "toolConfig.functionCallingConfig.allowedFunctionNames",
        ),
        ({**of(X), "generationConfig": 1}, "generationConfig"),
        ({**of(X), "generationConfig": {"temperature": "1"}}, "generationConfig.temperature"),
        ({**of(X), "generationConfig": {"temperature": 3}}, "generationConfig"),
        ({**of(X), "generationConfig": {"topK": 1.5}}, "generationConfig.topK"),
        ({**of(X), "generationConfig": {"seed": 1 << 40}}, "generationConfig.seed"),
        ({**of(X), "generationConfig": {"stopSequences": [1]}}, "generationConfig.stopSequences"),
        (
            {**of(X), "generationConfig": {"thinkingConfig": {"thinkingBudget": -2}}},
            "generationConfig.thinkingConfig.thinkingBudget",
        ),
        (
            {**of(X), "generationConfig": {"responseMimeType": "application/json", "responseSchema": 1}},
            "generationConfig.responseSchema",
        ),
    ],
)
def test_every_refusal_names_its_field(body: dict[str, Any], field: str) -> None:
    with pytest.raises(BadRequestError) as caught:
        decode(body)
    assert str(caught.value).startswith(f"{field}: ") and caught.value.status == 400


@pytest.mark.parametrize("data", [b"", b"[]", b"{", b'"x"', b"\xff"])
def test_bodies_that_are_no_object(data: bytes) -> None:
    with pytest.raises(BadRequestError):
        DIALECT.decode_request(data)


def _paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    rows = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *[found for key, item in rows for found in _paths(item, (*path, key))]]


PATHS = _paths(SDK)[1:]


@given(path=st.sampled_from(PATHS), value=json_values(wild_text), key=names)
@settings(max_examples=200, deadline=None)
def test_any_change_of_a_body_is_read_or_refused(path: tuple[Any, ...], value: Any, key: str) -> None:
    """Fuzz from the inside: one value anywhere becomes any other, or a new key appears beside it."""
    body: Any = json.loads(json.dumps(SDK))
    target = body
    for step in path[:-1]:
        target = target[step]
    target[path[-1]] = value
    if isinstance(target, dict):
        target[key] = value
    try:
        got = decode(body)
    except BadRequestError as error:
        assert error.status == 400
        return
    assert got.request.messages
