"""boto3's `bedrock-runtime` on loopback: it reads what we emit, and we read what it sends."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from bedrock_server import Answerer, serve, typed
from botocore.exceptions import ClientError, EventStreamError
from wire_strategies import PDF, PNG

from windlass.core.errors import (
    AuthError,
    BadRequestError,
    ContextExceededError,
    ModelNotFoundError,
    OverloadedError,
    ProviderTimeoutError,
    RateLimitError,
    RequestRefused,
    WindlassError,
    WireError,
)
from windlass.core.items import Finish, Item, ReasoningItem, TextItem, ToolCallItem
from windlass.core.messages import Blob, Message, Reasoning, Text, ToolCall, ToolResponse, UnknownPart, Uri
from windlass.core.models import Capabilities
from windlass.core.usage import Usage
from windlass.wire.base import DecodedRequest
from windlass.wire.bedrock import DIALECT

REDACTED = base64.b64encode(b"sealed").decode()
FINISH = Finish(
    Message(
        "assistant",
        (
            Reasoning("Thinking é", {"bedrock": {"signature": "sig"}}),
            Reasoning("", {"bedrock": {"redacted_content": REDACTED}}),
            Text("Hello\u2028 wörld"),
            ToolCall("tooluse_1", "look", {"a": [1, "ü"]}),
            ToolCall("tooluse_2", "now", {}),
        ),
    ),
    usage=Usage(20, 7, 5, 3),
    reason="tool_call",
    provider_metadata={"bedrock": {"metrics": {"latencyMs": 41}, "additionalModelResponseFields": {"stop": "x"}}},
)
ITEMS: list[Item | WindlassError] = [
    ReasoningItem("Thinking "),
    ReasoningItem("é"),
    ReasoningItem("", {"bedrock": {"signature": "sig"}}),
    ReasoningItem("", {"bedrock": {"redacted_content": REDACTED}}),
    TextItem("Hello\u2028"),
    TextItem(" wörld"),
    ToolCallItem(0, "tooluse_1", "look"),
    ToolCallItem(1, "tooluse_2", "now"),
    ToolCallItem(0, arguments='{"a": [1,'),
    ToolCallItem(0, arguments='"ü"]}'),
    FINISH,
]
ASK: dict[str, Any] = {"modelId": "amazon.nova-micro-v1:0", "messages": [{"role": "user", "content": [{"text": "x"}]}]}
USED = {
    "inputTokens": 12,
    "outputTokens": 7,
    "totalTokens": 27,
    "cacheReadInputTokens": 5,
    "cacheWriteInputTokens": 3,
}


def says(*items: Item | WindlassError) -> Answerer:
    def answer(decoded: DecodedRequest) -> list[Item | WindlassError]:
        return list(items)

    return answer


def refuses(error: WindlassError) -> Answerer:
    def answer(decoded: DecodedRequest) -> list[Item | WindlassError]:
        raise error

    return answer


def collected(events: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the blocks of a stream as AWS's own samples collect them: one at a time, calls parsed at their end."""
    blocks: list[dict[str, Any]] = []
    kinds: list[str] = []
    current: dict[str, Any] = {}
    for event in events:
        (kind,) = event
        kinds.append(kind)
        if kind == "contentBlockStart":
            assert current == {}, "blocks must not overlap"
            current = {"index": event[kind]["contentBlockIndex"], **event[kind]["start"]["toolUse"], "input": ""}
        elif kind == "contentBlockDelta":
            delta = event[kind]["delta"]
            current = current or {"index": event[kind]["contentBlockIndex"]}
            assert current["index"] == event[kind]["contentBlockIndex"]
            if "text" in delta:
                current["text"] = current.get("text", "") + delta["text"]
            elif "toolUse" in delta:
                current["input"] += delta["toolUse"]["input"]
            else:
                for key, value in delta["reasoningContent"].items():
                    current[key] = current.get(key, value[:0]) + value
        elif kind == "contentBlockStop":
            assert current.pop("index") == event[kind]["contentBlockIndex"]
            blocks.append(current)
            current = {}
    return blocks, kinds


async def test_converse_answers_as_bedrock_does() -> None:
    async with serve(says(FINISH)) as server:
        answer = await server.call("converse", **ASK)
        (model, decoded), *_ = server.got
    assert (model, decoded.request.model, server.targets) == (
        "amazon.nova-micro-v1:0",
        "",
        ["/model/amazon.nova-micro-v1%3A0/converse"],
    )
    assert answer["output"]["message"] == {
        "role": "assistant",
        "content": [
            {"reasoningContent": {"reasoningText": {"text": "Thinking é", "signature": "sig"}}},
            {"reasoningContent": {"redactedContent": b"sealed"}},
            {"text": "Hello\u2028 wörld"},
            {"toolUse": {"toolUseId": "tooluse_1", "name": "look", "input": {"a": [1, "ü"]}}},
            {"toolUse": {"toolUseId": "tooluse_2", "name": "now", "input": {}}},
        ],
    }
    assert (answer["stopReason"], answer["usage"], answer["metrics"]) == ("tool_use", USED, {"latencyMs": 41})
    assert answer["additionalModelResponseFields"] == {"stop": "x"}


async def test_converse_stream_answers_as_bedrock_does() -> None:
    async with serve(says(*ITEMS)) as server:
        events = await server.call("converse_stream", **ASK)
    blocks, kinds = collected(events)
    assert server.targets == ["/model/amazon.nova-micro-v1%3A0/converse-stream"]
    assert blocks == [
        {"text": "Thinking é", "signature": "sig"},
        {"redactedContent": b"sealed"},
        {"text": "Hello\u2028 wörld"},
        {"toolUseId": "tooluse_1", "name": "look", "input": '{"a": [1,"ü"]}'},
        {"toolUseId": "tooluse_2", "name": "now", "input": "{}"},
    ]
    assert (kinds[0], kinds[-2:]) == ("messageStart", ["messageStop", "metadata"])
    assert kinds.count("contentBlockStart") == 2 and kinds.count("contentBlockStop") == 5
    assert events[-2]["messageStop"] == {"stopReason": "tool_use", "additionalModelResponseFields": {"stop": "x"}}
    assert events[-1]["metadata"] == {"usage": USED, "metrics": {"latencyMs": 41}}


async def test_the_answer_goes_back_unchanged() -> None:
    """Send the SDK's own answer back through the SDK, as agents do in a tool loop."""
    async with serve(says(FINISH)) as server:
        said = await server.call("converse", **ASK)
        results = [
            {"toolResult": {"toolUseId": "tooluse_1", "content": [{"text": "one"}]}},
            {"toolResult": {"toolUseId": "tooluse_2", "content": [{"json": {"b": 2}}], "status": "error"}},
            {"text": "and?"},
        ]
        messages = [*ASK["messages"], said["output"]["message"], {"role": "user", "content": results}]
        await server.call("converse_stream", modelId="m", messages=messages)
        got = server.got[-1][1].request.messages
    assert got[1] == Message("assistant", FINISH.message.parts)
    assert got[2].role == "tool"
    assert got[2].parts == (ToolResponse("tooluse_1", "one"), ToolResponse("tooluse_2", '{"b":2}', "error"))
    assert got[3] == Message("user", (Text("and?"),))


async def test_we_read_what_the_sdk_sends() -> None:
    tool = {"name": "look", "description": "d", "inputSchema": {"json": {"type": "object", "properties": {}}}}
    arn = "arn:aws:bedrock:us-east-1:123456789012:inference-profile/us.anthropic.claude-sonnet-4-5-20250929-v1:0"
    async with serve(says(FINISH)) as server:
        await server.call(
            "converse_stream",
            modelId=arn,
            system=[{"text": "Be brief."}, {"cachePoint": {"type": "default"}}, {"text": "Be kind."}],
            messages=[
                {
                    "role": "user",
                    "content": [
                        {"text": "see"},
                        {"image": {"format": "png", "source": {"bytes": PNG}}},
                        {"document": {"format": "pdf", "name": "report", "source": {"bytes": PDF}}},
                        {
                            "document": {
                                "format": "md",
                                "name": "notes",
                                "source": {"s3Location": {"uri": "s3://bkt/n"}},
                            }
                        },
                        {"video": {"format": "mp4", "source": {"bytes": b"v"}}},
                        {"cachePoint": {"type": "default"}},
                    ],
                }
            ],
            toolConfig={
                "tools": [{"toolSpec": tool}, {"systemTool": {"name": "nova_grounding"}}],
                "toolChoice": {"any": {}},
            },
            inferenceConfig={"maxTokens": 50, "temperature": 0.5, "topP": 0.9, "stopSequences": ["END"]},
            additionalModelRequestFields={"thinking": {"type": "enabled", "budget_tokens": 2000}, "top_k": 5, "x": [1]},
            performanceConfig={"latency": "optimized"},
            outputConfig={
                "textFormat": {
                    "type": "json_schema",
                    "structure": {"jsonSchema": {"schema": '{"type":"object"}', "name": "n"}},
                }
            },
        )
        model, decoded = server.got[0]
        (target,) = server.targets
    request = decoded.request
    assert model == arn and target.count("/") == 3 and "%2F" in target and "%3A" in target
    assert (request.system, request.tool_choice, request.cache) == ("Be brief.\n\nBe kind.", "required", True)
    text, image, pdf, notes, video = request.messages[0].parts
    assert (text, image) == (Text("see"), Blob(PNG, "image/png"))
    assert pdf == Blob(PDF, "application/pdf", "document", "report.pdf")
    assert notes == Uri("s3://bkt/n", "text/markdown", "document", "notes.md")
    assert isinstance(video, UnknownPart) and video.data["type"] == "bedrock.video"
    assert [(spec.name, spec.description) for spec in request.tools] == [("look", "d")]
    settings = request.settings
    assert (settings.max_tokens, settings.temperature, settings.top_p, settings.top_k) == (50, 0.5, 0.9, 5)
    assert (settings.stop, settings.thinking_budget) == (("END",), 2000)
    assert request.output_schema == {"type": "object"}
    assert decoded.extra == {
        "additionalModelRequestFields": {"x": [1]},
        "performanceConfig": {"latency": "optimized"},
        "toolConfig": {"tools": [{"systemTool": {"name": "nova_grounding"}}]},
    }
    # What was read goes out again as it came.
    again = DIALECT.decode_request(DIALECT.encode_request(request, Capabilities(reasoning="budget"), stream=True))
    assert again.request.messages == request.messages


@pytest.mark.parametrize(
    ("error", "name", "status"),
    [
        (RateLimitError("slow down"), "ThrottlingException", 429),
        (OverloadedError("busy"), "ServiceUnavailableException", 503),
        (BadRequestError("messages[0].role: must be user"), "ValidationException", 400),
        (ContextExceededError("too much"), "ValidationException", 400),
        (ModelNotFoundError("no such"), "ResourceNotFoundException", 404),
        (ProviderTimeoutError("late"), "ModelTimeoutException", 408),
        (AuthError("who are you"), "AccessDeniedException", 403),
        (AuthError("our key", provider="x"), "InternalServerException", 502),
        (WireError("upstream spoke nonsense"), "InternalServerException", 502),
        (RequestRefused(401, "no key"), "AccessDeniedException", 401),
        (RequestRefused(402, "budget spent"), "ServiceQuotaExceededException", 402),
        (RequestRefused(429, "too fast"), "ThrottlingException", 429),
        (RequestRefused(503, "draining"), "ServiceUnavailableException", 503),
        (RequestRefused(422, "odd"), "ValidationException", 422),
    ],
)
async def test_our_errors_are_the_sdks_typed_exceptions(error: WindlassError, name: str, status: int) -> None:
    async with serve(refuses(error)) as server:
        with pytest.raises(ClientError) as caught:
            await server.call("converse", **ASK)
        assert typed(caught.value) == {name}
        assert error.message.split("[")[0] in str(caught.value)
        assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] == status  # pyright: ignore[reportTypedDictNotRequiredAccess]
        with pytest.raises(ClientError) as caught:
            await server.call("converse_stream", **ASK)
        assert typed(caught.value) == {name}


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (OverloadedError("upstream died"), "serviceUnavailableException"),
        (RateLimitError("upstream died"), "throttlingException"),
        (BadRequestError("upstream died"), "validationException"),
        (ProviderTimeoutError("upstream died"), "serviceUnavailableException"),
        (WireError("upstream died"), "internalServerException"),
    ],
)
async def test_r15_the_sdk_raises_on_an_error_in_the_stream(error: WindlassError, code: str) -> None:
    async with serve(says(TextItem("par"), error)) as server:
        with pytest.raises(EventStreamError, match="upstream died") as caught:
            await server.call("converse_stream", **ASK)
    assert caught.value.response["Error"]["Code"] == code  # pyright: ignore[reportTypedDictNotRequiredAccess]


async def test_a_malformed_request_is_the_sdks_validation_error() -> None:
    async with serve(says(FINISH)) as server:
        with pytest.raises(ClientError, match=r"messages: must be an array of at least one message") as caught:
            await server.call("converse", modelId="m", messages=[])
    assert typed(caught.value) == {"ValidationException"}


async def test_an_answer_that_came_whole_is_streamed_whole() -> None:
    async with serve(says(FINISH)) as server:
        events = await server.call("converse_stream", **ASK)
    blocks, _ = collected(events)
    assert [block.get("input", block.get("text")) for block in blocks] == [
        "Thinking é", None, "Hello\u2028 wörld", '{"a":[1,"ü"]}', "{}",
    ]  # fmt: skip
