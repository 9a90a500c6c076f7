"""What we send to Bedrock: settings, tools, marks, documents, and conversations that its servers take."""

from __future__ import annotations

import json
from typing import Any

import pytest
from bedrock_kit import check_bedrock
from hypothesis import given
from hypothesis import settings as limits
from hypothesis import strategies as st
from wire_strategies import PDF, PNG, conversations, documents, images

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
    user,
)
from windlass.core.models import Capabilities
from windlass.core.request import EncodingCache, Request, Settings, ToolSpec
from windlass.wire.bedrock import DIALECT

CLAUDE = "us.anthropic.claude-sonnet-4-5-20250929-v1:0"
NOVA = "amazon.nova-pro-v1:0"
LLAMA = "meta.llama3-3-70b-instruct-v1:0"
CAPS = Capabilities(image_in_tool_result=True, cache_breakpoints=True, reasoning="budget")
PLAIN = Capabilities(reasoning="budget")
MARK = {"cachePoint": {"type": "default"}}


def body_of(
    messages: list[Message], caps: Capabilities = PLAIN, *, model: str = CLAUDE, **fields: Any
) -> dict[str, Any]:
    request = Request(model=model, messages=messages, **fields)
    body: dict[str, Any] = json.loads(DIALECT.encode_request(request, caps, stream=True))
    assert check_bedrock(body) == []
    return body


HELLO = [user("hi")]
LOOK = ToolSpec("look", "Look.", {"type": "object", "properties": {"n": {"type": "integer"}}})


def dropped(caps: Capabilities = PLAIN, *, model: str = CLAUDE, **fields: Any) -> list[str]:
    return DIALECT.dropped_settings(Request(model=model, messages=fields.pop("messages", HELLO), **fields), caps)


def test_the_smallest_request() -> None:
    assert body_of(HELLO) == {"messages": [{"role": "user", "content": [{"text": "hi"}]}]}


def test_every_setting_has_its_place() -> None:
    settings = Settings(max_tokens=50, temperature=1.5, top_p=0.5, top_k=7, stop=("END", " "))
    body = body_of(HELLO, system="S", settings=settings)
    assert body["inferenceConfig"] == {"maxTokens": 50, "temperature": 1.0, "topP": 0.5, "stopSequences": ["END"]}
    assert body["additionalModelRequestFields"] == {"top_k": 7}
    assert body["system"] == [{"text": "S"}]
    assert dropped(settings=settings) == []


@pytest.mark.parametrize(
    ("model", "more"),
    [
        (CLAUDE, {"top_k": 7}),
        ("mistral.mistral-large-2407-v1:0", {"top_k": 7}),
        (NOVA, {"inferenceConfig": {"topK": 7}}),
        (LLAMA, None),
        ("arn:aws:bedrock:us-east-1:123456789012:application-inference-profile/abc", None),
    ],
)
def test_top_k_is_said_as_each_maker_has_it(model: str, more: dict[str, Any] | None) -> None:
    assert body_of(HELLO, model=model, settings=Settings(top_k=7)).get("additionalModelRequestFields") == more
    assert dropped(model=model, settings=Settings(top_k=7)) == ([] if more else ["top_k"])


def test_what_cannot_be_told_is_named() -> None:
    settings = Settings(
        seed=1, presence_penalty=0.1, frequency_penalty=0.1, repeat_penalty=1.1, parallel_tool_calls=False,
        thinking="high",
    )  # fmt: skip
    none = Capabilities(structured_output=False)
    assert dropped(none, settings=settings, tools=(LOOK,), output_schema={"type": "object"}) == [
        "seed", "presence_penalty", "frequency_penalty", "repeat_penalty", "parallel_tool_calls", "thinking",
        "output_schema",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "caps", "thinking", "most"),
    [
        (Settings(thinking_budget=2000, max_tokens=8000), PLAIN, 2000, 8000),
        (Settings(thinking="low"), PLAIN, 4096, 8192),
        (Settings(thinking="high", max_tokens=1000), PLAIN, 32768, 33768),
        (Settings(thinking_budget=10, max_tokens=8000), PLAIN, 1024, 8000),
        (Settings(thinking="high", max_tokens=8000), Capabilities(reasoning="budget", max_output=8192), 6144, 8192),
        (Settings(thinking="off", max_tokens=500), PLAIN, None, 500),
        (Settings(thinking="low", max_tokens=500), Capabilities(), None, 500),
        (Settings(thinking="low", max_tokens=900), Capabilities(reasoning="budget", max_output=1000), None, 900),
    ],
)
def test_claudes_budget_stays_below_the_limit(
    settings: Settings, caps: Capabilities, thinking: int | None, most: int
) -> None:
    body = body_of(HELLO, caps, settings=settings)
    asked = body.get("additionalModelRequestFields", {}).get("thinking")
    assert asked == (None if thinking is None else {"type": "enabled", "budget_tokens": thinking})
    assert body["inferenceConfig"] == {"maxTokens": most}


def test_claude_is_not_narrowed_while_it_thinks() -> None:
    settings = Settings(thinking="low", temperature=0.3, top_p=0.5, top_k=9, max_tokens=9000)
    body = body_of(HELLO, settings=settings)
    assert body["inferenceConfig"] == {"maxTokens": 9000}
    assert set(body["additionalModelRequestFields"]) == {"thinking"}
    assert dropped(settings=settings) == ["temperature", "top_p", "top_k"]


def test_adaptive_models_are_told_an_effort() -> None:
    caps = Capabilities(reasoning="adaptive")
    body = body_of(HELLO, caps, settings=Settings(thinking="medium", temperature=0.2))
    assert body["additionalModelRequestFields"] == {"thinking": {"type": "adaptive"}}
    assert body["outputConfig"] == {"effort": "medium"} and "inferenceConfig" not in body
    assert dropped(caps, settings=Settings(thinking="medium")) == []
    assert body_of(HELLO, caps, settings=Settings(thinking="off"))["additionalModelRequestFields"] == {
        "thinking": {"type": "disabled"}
    }


def test_no_thinking_where_a_tool_is_forced_or_the_last_answer_did_not_think() -> None:
    settings = Settings(thinking="low")
    forced = body_of(HELLO, settings=settings, tools=(LOOK,), tool_choice="required")
    assert "additionalModelRequestFields" not in forced
    call = ToolCall("c", "look", {})
    results = Message("tool", (ToolResponse("c", "r"),))
    cold = [user("x"), Message("assistant", (call,)), results]
    assert "additionalModelRequestFields" not in body_of(cold, settings=settings, tools=(LOOK,))
    signed = Reasoning("hm", {"anthropic": {"signature": "s"}})
    warm = [user("x"), Message("assistant", (signed, call)), results]
    assert "thinking" in body_of(warm, settings=settings, tools=(LOOK,))["additionalModelRequestFields"]


def test_a_schema_is_sent_as_text_where_the_model_takes_one() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string"}}}
    form = body_of(HELLO, output_schema=schema)["outputConfig"]["textFormat"]
    assert form["type"] == "json_schema" and json.loads(form["structure"]["jsonSchema"]["schema"]) == schema
    assert "outputConfig" not in body_of(HELLO, Capabilities(structured_output=False), output_schema=schema)


def test_extra_is_merged_last() -> None:
    extra = {
        "guardrailConfig": {"guardrailIdentifier": "g"},
        "additionalModelRequestFields": {"x": 1},
        "inferenceConfig": {"topP": 0.1},
        "toolConfig": {"tools": [{"systemTool": {"name": "nova_grounding"}}]},
    }
    body = body_of(HELLO, settings=Settings(max_tokens=5, top_k=3, extra=extra), tools=(LOOK,))
    assert body["guardrailConfig"] == {"guardrailIdentifier": "g"}
    assert body["additionalModelRequestFields"] == {"top_k": 3, "x": 1}
    assert body["inferenceConfig"] == {"maxTokens": 5, "topP": 0.1}
    assert [next(iter(tool)) for tool in body["toolConfig"]["tools"]] == ["toolSpec", "systemTool"]
    own = {"messages": [{"role": "user", "content": [{"text": "own"}]}]}
    assert body_of(HELLO, settings=Settings(extra=own)) == own


# ------------------------------------------------------------------------------------------------------------ tools


@pytest.mark.parametrize(
    ("choice", "expected"),
    [("auto", None), ("required", {"any": {}}), ("look", {"tool": {"name": "look"}})],
)
def test_tools_and_their_choice(choice: str, expected: dict[str, Any] | None) -> None:
    config = body_of(HELLO, tools=(LOOK, ToolSpec("bare", "", {})), tool_choice=choice)["toolConfig"]
    assert config["tools"] == [
        {"toolSpec": {"name": "look", "description": "Look.", "inputSchema": {"json": LOOK.input_schema}}},
        {"toolSpec": {"name": "bare", "inputSchema": {"json": {"type": "object"}}}},
    ]
    assert config.get("toolChoice") == expected


def test_no_tools_means_no_tool_config() -> None:
    assert "toolConfig" not in body_of(HELLO, tools=(LOOK,), tool_choice="none")
    assert dropped(tools=(LOOK,), tool_choice="none") == []


USED = [user("x"), Message("assistant", (ToolCall("c", "look", {}),)), Message("tool", (ToolResponse("c", "r"),))]


def test_a_conversation_with_calls_always_has_a_tool_config() -> None:
    (tool,) = body_of(USED)["toolConfig"]["tools"]
    assert tool["toolSpec"]["name"] == "look"
    config = body_of(USED, tools=(LOOK,), tool_choice="none")["toolConfig"]
    assert "toolChoice" not in config and dropped(messages=USED, tools=(LOOK,), tool_choice="none") == ["tool_choice"]


def test_tool_names_and_ids_fit_the_pattern_and_stay_paired() -> None:
    name, call_id = "server.look at/it", "call:" + "x" * 80
    call = Message("assistant", (ToolCall(call_id, name, {}),))
    messages = [user("x"), call, Message("tool", (ToolResponse(call_id, "r"),))]
    body = body_of(messages, tools=(ToolSpec(name), ToolSpec("n" * 65)), tool_choice=name)
    first, second = [tool["toolSpec"]["name"] for tool in body["toolConfig"]["tools"]]
    assert body["toolConfig"]["toolChoice"] == {"tool": {"name": first}}
    assert body["messages"][1]["content"][0]["toolUse"]["name"] == first and first != name
    assert len(second) <= 64 and second.startswith("nnn")


def test_a_model_without_tools_refuses_them() -> None:
    caps = Capabilities(tools=False)
    for messages, tools in ((HELLO, (LOOK,)), (USED, ()), ([user("x"), USED[2]], ())):
        with pytest.raises(UnsupportedInputError, match="no tools"):
            body_of(messages, caps, tools=tools)


def test_results_have_a_status_where_the_model_reads_one() -> None:
    failed = [*USED[:2], Message("tool", (ToolResponse("c", "", "timeout"),))]
    for model, status in ((CLAUDE, "error"), (NOVA, "error"), (LLAMA, None)):
        result = body_of(failed, model=model)["messages"][2]["content"][0]["toolResult"]
        assert result.get("status") == status and result["content"] == [{"text": "(timeout)"}]
    fine = body_of([*USED[:2], Message("tool", (ToolResponse("c", " "),))])["messages"][2]["content"][0]["toolResult"]
    assert fine == {"toolUseId": "c", "content": [{"text": "(empty)"}]}


def test_images_of_tools_stand_in_the_result_or_beside_it() -> None:
    shown = ToolResponse("c", (Text("see"), Blob(PNG, "image/png"), Uri("https://h/x.png")))
    messages = [*USED[:2], Message("tool", (shown,))]
    inside = body_of(messages, CAPS)["messages"][2]["content"][0]["toolResult"]["content"]
    assert [next(iter(block)) for block in inside] == ["text", "image", "text"] and inside[2]["text"].startswith(
        "[image"
    )
    result, image = body_of(messages)["messages"][2]["content"]
    assert [next(iter(block)) for block in result["toolResult"]["content"]] == ["text", "text", "text"]
    assert next(iter(image)) == "image"


# --------------------------------------------------------------------------------------------------------- messages


def test_roles_alternate_whatever_came() -> None:
    messages = [
        Message("system", (Text("first"),)),
        assistant("before anybody asked"),
        user("a"),
        user("b"),
        assistant("c"),
        assistant("d"),
        Message("assistant"),
        Message("system", (Text("mid"),)),
        user("e"),
    ]
    cache = EncodingCache()
    body = body_of(messages, system="S", encoded=cache)
    assert body["system"] == [{"text": "S\n\nfirst"}]
    assert [(row["role"], [block["text"] for block in row["content"]]) for row in body["messages"]] == [
        ("user", ["(empty)"]),
        ("assistant", ["before anybody asked"]),
        ("user", ["a", "b"]),
        ("assistant", ["c", "d", "(empty)"]),
        ("user", ["<system>\nmid\n</system>", "e"]),
    ]
    assert body_of(messages, system="S", encoded=cache) == body


@given(messages=conversations(), extra=st.lists(st.sampled_from(["assistant", "user", "system"]), max_size=3))
@limits(max_examples=30, deadline=None)
def test_doubled_roles_in_any_place_are_merged(messages: list[Message], extra: list[Any]) -> None:
    plain = [Message(role, (Text("more"),)) for role in extra]
    for place in (0, len(messages)):
        mixed = [*messages[:place], *plain, *messages[place:]]
        cache = EncodingCache()
        for end in sorted({max(1, len(mixed) - 1), len(mixed)}):
            part = mixed[:end]
            # Calls that nobody answered yet, or nothing but system text, are no request.
            if not part[-1].tool_calls and any(message.role != "system" for message in part):
                body_of(part, CAPS, encoded=cache)


def test_a_last_answer_is_one_that_can_be_gone_on_from() -> None:
    rows = body_of([user("x"), assistant("so \n")])["messages"]
    assert rows[-1] == {"role": "assistant", "content": [{"text": "so"}]}
    assert len(body_of([user("x"), assistant(" ")])["messages"]) == 1


def test_no_messages_is_an_error() -> None:
    for messages in ([], [Message("system", (Text("s"),))]):
        with pytest.raises(BadRequestError, match="no messages"):
            body_of(messages)


SIGNED = Reasoning("hm", {"bedrock": {"signature": "b"}})
CLAUDES = Reasoning("hm", {"anthropic": {"signature": "a"}})
SEALED = Reasoning("", {"bedrock": {"redacted_content": "eno="}})


@pytest.mark.parametrize(
    ("part", "model", "kept"),
    [
        (SIGNED, CLAUDE, {"reasoningText": {"text": "hm", "signature": "b"}}),
        (CLAUDES, CLAUDE, {"reasoningText": {"text": "hm", "signature": "a"}}),
        (CLAUDES, "my-profile", {"reasoningText": {"text": "hm", "signature": "a"}}),
        (CLAUDES, "openai.gpt-5-v1:0", None),
        (SEALED, CLAUDE, {"redactedContent": "eno="}),
        (Reasoning("plain"), CLAUDE, None),
        (Reasoning("plain"), "deepseek.r1-v1:0", None),
        (Reasoning("x", {"openai": {"reasoning_details": []}}), CLAUDE, None),
    ],
)
def test_r28_reasoning_goes_back_only_to_who_signed_it(
    part: Reasoning, model: str, kept: dict[str, Any] | None
) -> None:
    content = body_of([user("x"), Message("assistant", (part, Text("y"))), user("z")], model=model)["messages"][1]
    assert content["content"] == [*([{"reasoningContent": kept}] if kept else []), {"text": "y"}]


def test_an_answer_that_was_cut_while_it_thought_does_not_end_so() -> None:
    rows = body_of([user("x"), Message("assistant", (SIGNED,)), user("z")])["messages"]
    assert rows[1]["content"][-1] == {"text": "(empty)"}


def test_citations_go_back_as_they_came() -> None:
    cited = Text("so it is", {"bedrock": {"citations": [{"title": "t"}]}})
    rows = body_of([user("x"), Message("assistant", (cited,)), user("z")])["messages"]
    block = {"citationsContent": {"content": [{"text": "so it is"}], "citations": [{"title": "t"}]}}
    assert rows[1]["content"] == [block]


def test_own_blocks_go_back_and_foreign_ones_are_refused() -> None:
    video = {"video": {"format": "mp4", "source": {"bytes": "dg=="}}}
    rows = body_of([user([UnknownPart({"type": "bedrock.video", "block": video}), "x"])])["messages"]
    assert rows[0]["content"][0] == video
    with pytest.raises(UnsupportedInputError, match="hologram"):
        body_of([user([UnknownPart({"type": "hologram"})])])


# -------------------------------------------------------------------------------------------- images and documents


@pytest.mark.parametrize(
    ("part", "words"),
    [
        (Blob(PNG, "image/tiff"), "not image/tiff"),
        (Blob(b"x", "application/zip", "document"), "not application/zip"),
        (Blob(b"x", "audio/wav", "audio"), "no audio"),
        (Uri("https://h/x.png"), "from s3://"),
        (Uri("s3://b/x.bmp"), "takes PNG"),
    ],
)
def test_what_the_model_cannot_take_is_refused(part: Blob | Uri, words: str) -> None:
    with pytest.raises(UnsupportedInputError, match=words):
        body_of([user(["x", part])])


def test_models_that_see_and_read_less() -> None:
    with pytest.raises(UnsupportedInputError, match="no images"):
        body_of([user(["x", Blob(PNG, "image/png")])], Capabilities(vision=False))
    with pytest.raises(UnsupportedInputError, match="no documents"):
        body_of([user(["x", Blob(PDF, "application/pdf", "document")])], Capabilities(documents=False))
    note = Blob(b"text", "text/plain", "document", "n.txt")
    content = body_of([user(["x", note])], Capabilities(documents=False))["messages"][0]["content"]
    assert content[1]["text"] == '<document name="n.txt">\ntext\n</document>'


def test_sources_in_buckets() -> None:
    image = Uri("s3://b/x.jpg", provider_metadata={"bedrock": {"bucketOwner": "123456789012"}})
    content = body_of([user(["x", image, Uri("s3://b/d", "application/pdf", "document", "d.pdf")])])["messages"][0]
    assert content["content"][1:] == [
        {"image": {"format": "jpeg", "source": {"s3Location": {"uri": "s3://b/x.jpg", "bucketOwner": "123456789012"}}}},
        {"document": {"format": "pdf", "source": {"s3Location": {"uri": "s3://b/d"}}, "name": "d"}},
    ]


def names_of(body: dict[str, Any]) -> list[str]:
    blocks = [block for row in body["messages"] for block in row["content"]]
    inner = [item for block in blocks for item in block.get("toolResult", {}).get("content", [])]
    return [block["document"]["name"] for block in [*blocks, *inner] if "document" in block]


def pdf(name: str | None) -> Blob:
    return Blob(PDF, "application/pdf", "document", name)


def test_documents_have_plain_names_that_nobody_else_has() -> None:
    said = [pdf("a/b_c v1.2 (x).pdf"), pdf("REPORT.pdf"), pdf("report.docx"), pdf(None), pdf("….pdf"), pdf("n" * 300)]
    first, second, third, fourth, fifth, sixth = names_of(body_of([user(["x", *said])]))
    assert (first, second, third) == ("b c v1 2 (x)", "REPORT", "report (2)")
    assert (fourth, fifth) == ("document", "document (2)")
    assert len(sixth) <= 200


def test_names_of_documents_hold_over_turns_and_in_kept_encodings() -> None:
    cache = EncodingCache()
    messages: list[Message] = []
    for turn in range(3):
        messages.append(user(["x", pdf("r.pdf")]))
        body = body_of(messages, encoded=cache)
        assert body == body_of(messages)
        assert names_of(body) == ["r", "r (2)", "r (3)"][: turn + 1]
        messages += [assistant("ok")]
    call = Message("assistant", (ToolCall("c", "look", {}),))
    messages[-1] = call
    messages.append(Message("tool", (ToolResponse("c", (pdf("r.pdf"),)),)))
    assert names_of(body_of(messages, CAPS)) == ["r", "r (2)", "r (3)", "r (4)"]


def test_a_message_with_a_document_alone_gets_text() -> None:
    (row,) = body_of([user([pdf("r.pdf")])])["messages"]
    assert [next(iter(block)) for block in row["content"]] == ["document", "text"]


@given(messages=conversations(media=st.one_of(images, documents), results=st.one_of(st.just(""), st.text(max_size=9))))
@limits(max_examples=40, deadline=None)
def test_conversations_with_files_are_valid_for_every_model(messages: list[Message]) -> None:
    for model in (CLAUDE, NOVA, LLAMA, "m"):
        for caps in (CAPS, PLAIN):
            body_of(messages, caps, model=model)


# ------------------------------------------------------------------------------------------------------------ marks


def test_three_cache_points() -> None:
    messages = [user("a"), assistant("b"), user("c")]
    body = body_of(messages, CAPS, system="S", tools=(LOOK,))
    assert body["system"] == [{"text": "S"}, MARK] and body["toolConfig"]["tools"][-1] == MARK
    assert body["messages"][-1]["content"] == [{"text": "c"}, MARK]
    assert str(body).count("cachePoint") == 3
    assert "cachePoint" not in str(body_of(messages, CAPS, system="S", tools=(LOOK,), cache=False))
    assert "cachePoint" not in str(body_of(messages, system="S", tools=(LOOK,)))


def test_nova_takes_no_cache_point_among_its_tools() -> None:
    body = body_of(HELLO, CAPS, model=NOVA, system="S", tools=(LOOK,))
    assert MARK not in body["toolConfig"]["tools"] and str(body).count("cachePoint") == 2


@pytest.mark.parametrize(
    ("parts", "at"),
    [
        ([Text("x"), Blob(b"t", "text/plain", "document", "n.txt")], 1),
        ([Text("x"), Blob(PDF, "application/pdf", "document", "n.pdf")], 2),
        ([Blob(b"t", "text/plain", "document", "n.txt"), Text("x")], 2),
    ],
)
def test_no_cache_point_right_after_a_document_that_is_no_pdf(parts: list[Part], at: int) -> None:
    content = body_of([Message("user", tuple(parts))], CAPS)["messages"][0]["content"]
    assert content.index(MARK) == at


def test_a_last_answer_gets_no_cache_point() -> None:
    body = body_of([user("x"), assistant("so")], CAPS)
    assert MARK not in body["messages"][-1]["content"]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"messages": [{"role": "assistant", "content": [{"text": "x"}]}]}, "must start with a user"),
        ({"messages": [{"role": "user", "content": [{"text": "x"}]}] * 2}, "user follows user"),
        ({"messages": [{"role": "user", "content": [{"text": " "}]}]}, "blank"),
        ({"messages": [{"role": "user", "content": []}]}, "empty content"),
        ({"messages": [{"role": "user", "content": [{"text": "x", "image": {}}]}]}, "one key"),
        ({"messages": [], "x": 1}, "unknown field"),
        ({"messages": [{"role": "user", "content": [{"toolResult": {"toolUseId": "a", "content": []}}]}]}, "is empty"),
    ],
)
def test_the_check_finds_what_bedrock_refuses(body: dict[str, Any], words: str) -> None:
    assert any(words in problem for problem in check_bedrock(body)), check_bedrock(body)
