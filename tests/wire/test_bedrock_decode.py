"""What clients and Bedrock send: bad fields are named, whole answers and errors are read for what they are."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as limits
from hypothesis import strategies as st

from windlass.core.errors import (
    AuthError,
    BadRequestError,
    ContextExceededError,
    ModelNotFoundError,
    OverloadedError,
    ProviderError,
    ProviderTimeoutError,
    RateLimitError,
    WindlassError,
    WireError,
)
from windlass.core.items import Finish
from windlass.core.messages import Blob, Message, Reasoning, Text, ToolCall, ToolResponse, UnknownPart
from windlass.core.usage import Usage
from windlass.wire.base import DecodedRequest
from windlass.wire.bedrock import DIALECT

HELLO = [{"role": "user", "content": [{"text": "hi"}]}]


def decode(**fields: Any) -> DecodedRequest:
    return DIALECT.decode_request(json.dumps({"messages": HELLO, **fields}).encode())


def message(*blocks: Any, role: str = "user") -> list[Message]:
    return list(decode(messages=[{"role": role, "content": list(blocks)}]).request.messages)


def test_the_smallest_request() -> None:
    got = decode()
    assert (got.stream, got.extra, got.request.model, got.request.cache) == (False, {}, "", False)
    assert list(got.request.messages) == [Message("user", (Text("hi"),))]
    assert decode(modelId="m").request.model == "m"


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"messages": "x"}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": [1]}, "messages[0]"),
        ({"messages": [{"role": "king", "content": []}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": "x"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": ["x"]}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "user", "content": [{}]}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "user", "content": [{"text": "a", "image": {}}]}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "user", "content": [{"text": 5}]}]}, "messages[0].content[0].text"),
        ({"messages": [{"role": "user", "content": [{"toolUse": {}}]}]}, "messages[0].content[0].toolUse"),
        ({"messages": [{"role": "assistant", "content": [{"toolUse": 5}]}]}, "messages[0].content[0].toolUse"),
        ({"messages": [{"role": "assistant", "content": [{"image": {}}]}]}, "messages[0].content[0].image"),
        ({"messages": [{"role": "user", "content": [{"image": {"format": "png"}}]}]}, "content[0].image.source"),
        ({"messages": [{"role": "user", "content": [{"image": {"source": {"bytes": "?"}}}]}]}, "image.source.bytes"),
        ({"messages": [{"role": "user", "content": [{"document": {"format": "exe"}}]}]}, "document.format"),
        ({"messages": [{"role": "user", "content": [{"toolResult": {"toolUseId": "a"}}]}]}, "toolResult.content"),
        (
            {"messages": [{"role": "user", "content": [{"toolResult": {"toolUseId": "a", "status": "x"}}]}]},
            "toolResult.status",
        ),
        (
            {
                "messages": [
                    {"role": "assistant", "content": [{"toolUse": {"toolUseId": "a", "name": "n", "input": 1}}]}
                ]
            },
            "toolUse.input",
        ),
        ({"system": "x"}, "system"),
        ({"system": ["x"]}, "system[0]"),
        ({"system": [{"image": {}}]}, "system[0]"),
        ({"inferenceConfig": 5}, "inferenceConfig"),
        ({"inferenceConfig": {"maxTokens": 0}}, "inferenceConfig.maxTokens"),
        ({"inferenceConfig": {"temperature": 2}}, "inferenceConfig.temperature"),
        ({"inferenceConfig": {"topP": "x"}}, "inferenceConfig.topP"),
        ({"inferenceConfig": {"stopSequences": [1]}}, "inferenceConfig.stopSequences[0]"),
        ({"toolConfig": {"tools": [5]}}, "toolConfig.tools[0]"),
        ({"toolConfig": {"tools": [{"toolSpec": {}}]}}, "toolConfig.tools[0].toolSpec.name"),
        ({"toolConfig": {"tools": [{"toolSpec": {"name": "n"}}]}}, "toolSpec.inputSchema.json"),
        ({"toolConfig": {"toolChoice": {"some": {}}}}, "toolConfig.toolChoice"),
        ({"toolConfig": {"toolChoice": {"tool": {}}}}, "toolConfig.toolChoice"),
        ({"outputConfig": {"textFormat": {"type": "json_schema"}}}, "outputConfig.textFormat"),
        ({"additionalModelRequestFields": []}, "additionalModelRequestFields"),
        ({"additionalModelRequestFields": {"thinking": {"type": "enabled"}}}, "thinking.budget_tokens"),
    ],
)
def test_bad_fields_are_named(fields: dict[str, Any], path: str) -> None:
    with pytest.raises(BadRequestError) as caught:
        decode(**fields)
    assert caught.value.status == 400 and path in caught.value.message.partition(": ")[0]


@pytest.mark.parametrize("body", [b"", b"[]", b"nonsense", b'{"a":' + b"[" * 200 + b"]" * 200 + b"}"])
def test_bodies_that_are_no_object(body: bytes) -> None:
    with pytest.raises(BadRequestError, match="body"):
        DIALECT.decode_request(body)


def test_the_choices_of_tools() -> None:
    tools = [
        {"toolSpec": {"name": "n", "inputSchema": {"json": {"type": "object"}}}},
        {"cachePoint": {"type": "default"}},
    ]
    for choice, expected in (
        (None, "auto"),
        ({"auto": {}}, "auto"),
        ({"any": {}}, "required"),
        ({"tool": {"name": "n"}}, "n"),
    ):
        got = decode(toolConfig={"tools": tools, "toolChoice": choice})
        assert (got.request.tool_choice, len(got.request.tools), got.extra) == (expected, 1, {})
        assert got.request.cache is True


def test_thinking_and_effort() -> None:
    more = {"thinking": {"type": "adaptive"}, "x": 1}
    got = decode(additionalModelRequestFields=more, outputConfig={"effort": "low"})
    assert (got.request.settings.thinking, got.extra) == ("low", {"additionalModelRequestFields": {"x": 1}})
    got = decode(additionalModelRequestFields=more, outputConfig={"effort": "max"})
    assert got.request.settings.thinking == "adaptive" and got.extra["outputConfig"] == {"effort": "max"}
    assert decode(additionalModelRequestFields={"thinking": {"type": "disabled"}}).request.settings.thinking == "off"
    kept = {"thinking": {"type": "odd"}}
    assert decode(additionalModelRequestFields=kept).extra == {"additionalModelRequestFields": kept}


def test_novas_top_k() -> None:
    got = decode(additionalModelRequestFields={"inferenceConfig": {"topK": 4, "y": 1}})
    assert got.request.settings.top_k == 4
    assert got.extra == {"additionalModelRequestFields": {"inferenceConfig": {"y": 1}}}
    assert decode(additionalModelRequestFields={"inferenceConfig": {"topK": 4}}).extra == {}


def test_blocks_of_every_kind() -> None:
    (said,) = message(
        {"reasoningContent": {"reasoningText": {"text": "r"}}},
        {"citationsContent": {"content": [{"text": "a"}, {"text": "b"}], "citations": [{"title": "t"}]}},
        {"toolUse": {"toolUseId": "t", "name": "n", "input": {"a": 1}}},
        {"toolUse": {"toolUseId": "t", "name": "n", "input": {}, "type": "server_tool_use"}},
        {"hologram": 5},
        role="assistant",
    )
    reasoning, cited, call, server, new = said.parts
    assert reasoning == Reasoning("r") and call == ToolCall("t", "n", {"a": 1})
    assert cited == Text("ab", {"bedrock": {"citations": [{"title": "t"}]}})
    assert isinstance(server, UnknownPart) and isinstance(new, UnknownPart)
    assert new.data == {"type": "bedrock.hologram", "block": {"hologram": 5}}


def test_results_hold_text_json_images_and_what_we_do_not_know() -> None:
    content = [{"text": "a"}, {"json": [1]}, {"image": {"format": "gif", "source": {"bytes": "R0lG"}}}]
    (tool,) = message({"toolResult": {"toolUseId": "t", "content": content}})
    assert tool.role == "tool"
    assert tool.parts == (ToolResponse("t", (Text("a"), Text("[1]"), Blob(b"GIF", "image/gif"))),)
    odd = [{"text": "a"}, {"searchResult": {"source": "s"}}]
    (tool,) = message({"toolResult": {"toolUseId": "t", "content": odd, "status": "success"}})
    assert tool.parts == (ToolResponse("t", "a", "ok", {"bedrock": {"content": odd}}),)
    (tool,) = message({"toolResult": {"toolUseId": "t", "content": []}})
    assert tool.parts == (ToolResponse("t"),)


def test_documents_as_text_and_pieces() -> None:
    for source in ({"text": "a\nb"}, {"content": [{"text": "a"}, {"text": "b"}]}):
        (said,) = message({"document": {"name": "n", "source": source}})
        assert said.parts == (Blob(b"a\nb", "text/plain", "document", "n.txt"),)


def test_guarded_system_text_is_text() -> None:
    assert decode(system=[{"guardContent": {"text": {"text": "g"}}}, {"text": "t"}]).request.system == "g\n\nt"


# ------------------------------------------------------------------------------------------------------ whole answers


def answer(*blocks: Any, reason: str = "end_turn", **more: Any) -> Finish:
    body = {"output": {"message": {"role": "assistant", "content": list(blocks)}}, "stopReason": reason, **more}
    return DIALECT.decode_response(json.dumps(body).encode())


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        ("end_turn", "stop"),
        ("stop_sequence", "stop"),
        ("tool_use", "stop"),
        ("max_tokens", "length"),
        ("model_context_window_exceeded", "length"),
        ("guardrail_intervened", "content_filter"),
        ("content_filtered", "content_filter"),
        ("malformed_tool_use", "error"),
        ("a_new_word", "stop"),
    ],
)
def test_r27_every_stop_reason_has_a_word_of_ours(word: str, reason: str) -> None:
    finish = answer({"text": "x"}, reason=word)
    assert (finish.reason, finish.raw, finish.message.finish_reason) == (reason, word, reason)
    again = json.loads(DIALECT.encode_response(finish, model="m", response_id="r", created=0))["stopReason"]
    assert again == {"tool_use": "end_turn", "a_new_word": "end_turn"}.get(word, word)


def test_cached_tokens_count_as_read_ones() -> None:
    used = {
        "inputTokens": 4, "outputTokens": 7, "totalTokens": 107, "cacheReadInputTokens": 90,
        "cacheWriteInputTokens": 6,
    }  # fmt: skip
    finish = answer({"text": "x"}, usage=used, metrics={"latencyMs": 3}, trace={"a": 1})
    assert finish.usage == Usage(100, 7, 90, 6)
    again = json.loads(DIALECT.encode_response(finish, model="m", response_id="r", created=0))
    assert (again["usage"], again["metrics"], again["trace"]) == (used, {"latencyMs": 3}, {"a": 1})


@pytest.mark.parametrize("usage", [None, {}, {"totalTokens": 5}])
def test_r21_missing_usage_is_an_estimate(usage: Any) -> None:
    assert answer({"text": "x"}, usage=usage).usage == Usage(estimated=True)


def test_r25_a_call_that_the_limit_cut_is_not_run() -> None:
    call = {"toolUse": {"toolUseId": "t", "name": "n", "input": {"a": 1}}}
    (cut,) = answer(call, reason="max_tokens").message.tool_calls
    assert (cut.arguments, cut.arguments_text) == (None, '{"a":1}')
    (whole,) = answer(call, reason="tool_use").message.tool_calls
    assert whole.arguments == {"a": 1}


def test_r23_ids_that_come_twice_are_told_apart() -> None:
    call = {"toolUse": {"toolUseId": "t", "name": "n", "input": {}}}
    ids = [part.id for part in answer(call, call, reason="tool_use").message.tool_calls]
    assert ids[0] == "t" and len(set(ids)) == 2


@pytest.mark.parametrize(
    ("body", "kind", "words"),
    [
        (b"", WireError, "empty"),
        (b"[]", WireError, "not an object"),
        (b"<html>", WireError, "web page"),
        (b"{}", WireError, "no content"),
        (b'{"output":{"message":{"content":[{"text":5}]}}}', WireError, "dialect"),
        (b'{"message":"Rate exceeded","__type":"x#ThrottlingException"}', RateLimitError, "Rate exceeded"),
        (b'{"Message":"odd"}', ProviderError, "odd"),
    ],
)
def test_r16_answers_that_are_none(body: bytes, kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words):
        DIALECT.decode_response(body)


# --------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("status", "header", "text", "kind"),
    [
        (429, "ThrottlingException", "Too many requests", RateLimitError),
        (429, "ThrottlingException:http://internal.amazon.com/coral/com.amazon.bedrock/", "slow", RateLimitError),
        (429, "ModelNotReadyException", "not ready", OverloadedError),
        (400, "ServiceQuotaExceededException", "quota", RateLimitError),
        (400, "ValidationException", "bad field", BadRequestError),
        (400, "ValidationException", "Input is too long for requested model.", ContextExceededError),
        (
            400,
            "ValidationException",
            "The model returned: prompt is too long: 9 tokens > 8 maximum",
            ContextExceededError,
        ),
        (400, "ValidationException", "Number of input tokens exceeds maximum length", ContextExceededError),
        (400, "ValidationException", "The provided model identifier is invalid.", ModelNotFoundError),
        (403, "AccessDeniedException", "You don't have access to the model", AuthError),
        (403, "ExpiredTokenException", "expired", AuthError),
        (403, "com.amazon.coral#UnrecognizedClientException", "no such key", AuthError),
        (404, "ResourceNotFoundException", "end of its life", ModelNotFoundError),
        (408, "ModelTimeoutException", "late", ProviderTimeoutError),
        (424, "ModelErrorException", "invalid sequence", OverloadedError),
        (500, "InternalServerException", "oops", OverloadedError),
        (503, "ServiceUnavailableException", "busy", OverloadedError),
        (418, "", "teapot", BadRequestError),
    ],
)
@pytest.mark.parametrize("field", ["message", "Message"])
def test_r19_errors_by_header_and_body(
    status: int, header: str, text: str, kind: type[ProviderError], field: str
) -> None:
    headers = {"x-amzn-errortype": header} if header else {}
    body = json.dumps({field: text}).encode()
    error = DIALECT.decode_error(status, headers, body, provider="bedrock", model="m", endpoint="http://h")
    assert type(error) is kind and text.rstrip(".") in str(error)
    assert error.provider_code == (header.partition(":")[0].rpartition("#")[2] or None)
    assert (error.status, error.provider, error.model) == (status, "bedrock", "m")


def test_errors_without_a_header_are_read_from_the_body() -> None:
    body = b'{"__type":"com.amazon#ThrottlingException","message":"slow"}'
    error = DIALECT.decode_error(400, {"retry-after": "7"}, body, provider=None, model=None, endpoint=None)
    assert isinstance(error, RateLimitError) and error.retry_after == 7.0
    plain = DIALECT.decode_error(502, {}, b"<html>Bad gateway</html>", provider=None, model=None, endpoint=None)
    assert isinstance(plain, OverloadedError) and "Bad gateway" in str(plain)


def test_the_body_says_the_type_too() -> None:
    status, body = DIALECT.encode_error(ContextExceededError("9 of 8 tokens"))
    said = json.loads(body)
    assert (status, said["__type"]) == (400, "ValidationException")
    assert said["message"].startswith("Input is too long for requested model.")
    assert DIALECT.error_headers(RateLimitError("x")) == {"x-amzn-errortype": "ThrottlingException"}


json_values: st.SearchStrategy[Any] = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from([
                "messages", "role", "content", "text", "toolUse", "toolResult", "toolUseId", "name", "input", "image",
                "source", "bytes", "reasoningContent", "reasoningText", "system", "toolConfig", "tools", "toolSpec",
                "inferenceConfig", "maxTokens", "output", "message", "stopReason", "usage", "inputTokens", "type",
                "additionalModelRequestFields", "thinking", "outputConfig", "textFormat", "document",
                "citationsContent",
            ]),
            inner,
            max_size=4,
        ),
    ),
    max_leaves=20,
)  # fmt: skip


@given(value=json_values)
@limits(max_examples=150, deadline=None)
def test_any_json_raises_only_our_errors(value: Any) -> None:
    wrapped = [value, {"messages": [{"role": "user", "content": [value]}]}, {"messages": HELLO, "toolConfig": value}]
    wrapped += [{"output": {"message": {"content": [value]}}, "usage": value}, {"messages": HELLO, "system": [value]}]
    for body in wrapped:
        data = json.dumps(body).encode()
        for read in (DIALECT.decode_request, DIALECT.decode_response):
            try:
                read(data)
            except WindlassError:
                pass
