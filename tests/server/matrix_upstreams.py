"""The fake vendors of the matrix that speak dialects of their own: Anthropic, Ollama, Gemini and Bedrock.

Shapes: docs.anthropic.com/en/api/messages and messages-streaming; github.com/ollama/ollama/blob/main/docs/api.md;
ai.google.dev/api/generate-content; docs.aws.amazon.com/bedrock (API_runtime_Converse, API_runtime_ConverseStream) and
the frames of smithy.io/2.0/aws/amazon-eventstream.html. What Bedrock is asked is checked by botocore's own model.
"""

from __future__ import annotations

import json
import struct
import zlib
from base64 import b64decode
from collections.abc import Callable
from typing import Any

import botocore.session
from botocore.validate import ParamValidator

from tests.server.matrix import CACHED, INPUT, OUTPUT, THOUGHT_TOKENS
from tests.server.matrix_base import Said, Vendor, compact, events, pieces, whole
from tests.server.matrix_openai import HuggingFace, OpenAIChat, OpenAIResponses
from windlass.testing.faults import Received, Reply, Stream
from windlass.testing.validity import check_anthropic, check_gemini, check_ollama


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


class Anthropic(Vendor):
    """Anthropic's messages: content blocks that begin, grow and stop."""

    name = "anthropic"
    table = {"dialect": "anthropic", "capabilities": {"reasoning": "budget"}}

    def check(self, request: Received, body: dict[str, Any]) -> list[str]:
        return [
            *([] if request.target == "/v1/messages" else [f"the path is {request.target}"]),
            *check_anthropic(body),
        ]

    def thinks(self, body: dict[str, Any], level: bool) -> bool:
        return (body.get("thinking") or {}).get("type") == "enabled"

    def tools(self, body: dict[str, Any]) -> list[Any]:
        return [tool["name"] for tool in body.get("tools") or () if tool["input_schema"]["type"] == "object"]

    def results(self, body: dict[str, Any]) -> dict[str, str]:
        blocks = [b for m in body["messages"] if isinstance(m["content"], list) for b in m["content"]]
        calls = {block["id"]: block["input"]["city"] for block in blocks if block["type"] == "tool_use"}
        return {calls[b["tool_use_id"]]: _text(b["content"]) for b in blocks if b["type"] == "tool_result"}

    def _blocks(self, said: Said) -> list[dict[str, Any]]:
        out: list[dict[str, Any]] = []
        if said.thought:
            out.append({"type": "thinking", "thinking": said.thought, "signature": "EqQBCgIYAhIM1gbcDa9GJwZA2b3h"})
        out.append({"type": "text", "text": said.text})
        out += [
            {"type": "tool_use", "id": f"toolu_0{at}A9", "name": name, "input": json.loads(text)}
            for at, (name, text) in enumerate(said.calls)
        ]
        return out

    def _message(self, blocks: list[dict[str, Any]], reason: str | None, wrote: int) -> dict[str, Any]:
        usage = {
            "input_tokens": INPUT - CACHED, "cache_creation_input_tokens": 0, "cache_read_input_tokens": CACHED,
            "cache_creation": {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 0},
            "output_tokens": wrote, "service_tier": "standard",
        }  # fmt: skip
        return {"id": "msg_013Zva2CMHLNnXjNJJKqJ2EF", "type": "message", "role": "assistant",
                "model": "claude-sonnet-4-5-20250929", "content": blocks, "stop_reason": reason, "stop_sequence": None,
                "usage": usage}  # fmt: skip

    def whole(self, said: Said, body: dict[str, Any]) -> Reply:
        return whole(self._message(self._blocks(said), "tool_use" if said.calls else "end_turn", OUTPUT))

    def stream(self, said: Said, body: dict[str, Any]) -> Stream:
        rows: list[dict[str, Any]] = [
            {"type": "message_start", "message": self._message([], None, 1)},
            {"type": "ping"},
        ]
        for at, block in enumerate(self._blocks(said)):
            deltas: list[dict[str, Any]]
            if block["type"] == "text":
                start, deltas = (
                    {**block, "text": ""},
                    [{"type": "text_delta", "text": p} for p in pieces(block["text"])],
                )
            elif block["type"] == "thinking":
                start = {**block, "thinking": "", "signature": ""}
                deltas = [{"type": "thinking_delta", "thinking": piece} for piece in pieces(block["thinking"])]
                deltas.append({"type": "signature_delta", "signature": block["signature"]})
            else:
                start, said_so = {**block, "input": {}}, ["", *pieces(json.dumps(block["input"]))]
                deltas = [{"type": "input_json_delta", "partial_json": piece} for piece in said_so]
            rows.append({"type": "content_block_start", "index": at, "content_block": start})
            rows += [{"type": "content_block_delta", "index": at, "delta": delta} for delta in deltas]
            rows.append({"type": "content_block_stop", "index": at})
        reason = {"stop_reason": "tool_use" if said.calls else "end_turn", "stop_sequence": None}
        rows += [
            {"type": "message_delta", "delta": reason, "usage": {"output_tokens": OUTPUT}},
            {"type": "message_stop"},
        ]
        return events(rows, named=True)

    def refuse(self, status: int, text: str, headers: dict[str, str]) -> Reply:
        kind = "rate_limit_error" if status == 429 else "invalid_request_error"
        return whole({"type": "error", "error": {"type": kind, "message": text}, "request_id": "req_011"}, status,
                     **headers)  # fmt: skip


class Ollama(Vendor):
    """Ollama's chat: a line of JSON for each token, the counts in the last one."""

    name = "ollama"
    table = {"dialect": "ollama", "capabilities": {"reasoning": "switch"}}

    def streams(self, request: Received, body: dict[str, Any]) -> bool:
        return body.get("stream") is not False

    def check(self, request: Received, body: dict[str, Any]) -> list[str]:
        return [*([] if request.target == "/api/chat" else [f"the path is {request.target}"]), *check_ollama(body)]

    def thinks(self, body: dict[str, Any], level: bool) -> bool:
        return body.get("think") in (True, "low", "medium", "high")

    def tools(self, body: dict[str, Any]) -> list[Any]:
        return [tool["function"]["name"] for tool in body.get("tools") or ()]

    def results(self, body: dict[str, Any]) -> dict[str, str]:
        asked = [call for message in body["messages"] for call in message.get("tool_calls") or ()]
        results = [message for message in body["messages"] if message["role"] == "tool"]
        cities = [call["function"]["arguments"]["city"] for call in asked]
        ids = [call.get("id") for call in asked]
        # Its own SDK sends no ids: then the order tells which result is whose.
        at = [ids.index(result["tool_call_id"]) if "tool_call_id" in result else n for n, result in enumerate(results)]
        return {cities[place]: result["content"] for place, result in zip(at, results, strict=True)}

    def _row(self, message: dict[str, Any], *, done: bool) -> dict[str, Any]:
        row: dict[str, Any] = {"model": "qwen3:8b", "created_at": "2025-11-24T16:00:00.123456789Z",
                               "message": {"role": "assistant", "content": "", **message}, "done": done}  # fmt: skip
        counts = {"done_reason": "stop", "total_duration": 5 * 10**9, "load_duration": 10**9,
                  "prompt_eval_count": INPUT, "prompt_eval_duration": 10**9, "eval_count": OUTPUT,
                  "eval_duration": 3 * 10**9}  # fmt: skip
        return {**row, **counts} if done else row

    def _calls(self, said: Said) -> list[dict[str, Any]]:
        return [
            {"id": f"call_{at}o1q", "function": {"index": at, "name": name, "arguments": json.loads(text)}}
            for at, (name, text) in enumerate(said.calls)
        ]

    def whole(self, said: Said, body: dict[str, Any]) -> Reply:
        message: dict[str, Any] = {"content": said.text}
        if said.thought:
            message["thinking"] = said.thought
        if said.calls:
            message["tool_calls"] = self._calls(said)
        return whole(self._row(message, done=True))

    def stream(self, said: Said, body: dict[str, Any]) -> Stream:
        rows = [self._row({"thinking": piece}, done=False) for piece in pieces(said.thought)]
        rows += [self._row({"content": piece}, done=False) for piece in pieces(said.text)]
        rows += [self._row({"tool_calls": [call]}, done=False) for call in self._calls(said)]
        rows.append(self._row({}, done=True))
        return Stream([compact(row) + b"\n" for row in rows], headers={"content-type": "application/x-ndjson"})

    def refuse(self, status: int, text: str, headers: dict[str, str]) -> Reply:
        return whole({"error": text}, status, **headers)


class Gemini(Vendor):
    """Google's generateContent: parts, some of them thoughts; calls have no ids, and the first is signed."""

    name = "gemini"
    table = {"dialect": "gemini"}

    def streams(self, request: Received, body: dict[str, Any]) -> bool:
        return ":streamGenerateContent?alt=sse" in request.target

    def check(self, request: Received, body: dict[str, Any]) -> list[str]:
        verb = request.target.startswith("/v1beta/models/")
        return [*([] if verb else [f"the path is {request.target}"]), *check_gemini(body)]

    def thinks(self, body: dict[str, Any], level: bool) -> bool:
        config = (body.get("generationConfig") or {}).get("thinkingConfig") or {}
        return config.get("includeThoughts") is True

    def tools(self, body: dict[str, Any]) -> list[Any]:
        return [f["name"] for tool in body.get("tools") or () for f in tool["functionDeclarations"]]

    def results(self, body: dict[str, Any]) -> dict[str, str]:
        parts = [part for content in body["contents"] for part in content["parts"]]
        cities = [part["functionCall"]["args"]["city"] for part in parts if "functionCall" in part]
        said = [_text(part["functionResponse"]["response"]) for part in parts if "functionResponse" in part]
        return dict(zip(cities, said, strict=False))

    def _answer(self, parts: list[dict[str, Any]], reason: str | None) -> dict[str, Any]:
        candidate: dict[str, Any] = {"content": {"role": "model", "parts": parts}, "index": 0}
        usage = {"promptTokenCount": INPUT, "candidatesTokenCount": OUTPUT - THOUGHT_TOKENS,
                 "totalTokenCount": INPUT + OUTPUT, "cachedContentTokenCount": CACHED,
                 "promptTokensDetails": [{"modality": "TEXT", "tokenCount": INPUT}],
                 "thoughtsTokenCount": THOUGHT_TOKENS}  # fmt: skip
        return {"candidates": [{**candidate, **({"finishReason": reason} if reason else {})}],
                "usageMetadata": usage if reason else {"promptTokenCount": INPUT, "totalTokenCount": INPUT},
                "modelVersion": "gemini-3-pro-preview", "responseId": "q3UkabfN"}  # fmt: skip

    def _calls(self, said: Said) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = [
            {"functionCall": {"name": name, "args": json.loads(text)}} for name, text in said.calls
        ]
        if rows:
            rows[0]["thoughtSignature"] = "CiQBVKhc7g=="
        return rows

    def whole(self, said: Said, body: dict[str, Any]) -> Reply:
        thought: list[dict[str, Any]] = [{"text": said.thought, "thought": True}] if said.thought else []
        return whole(self._answer([*thought, {"text": said.text}, *self._calls(said)], "STOP"))

    def stream(self, said: Said, body: dict[str, Any]) -> Stream:
        rows: list[list[dict[str, Any]]] = [[{"text": piece, "thought": True}] for piece in pieces(said.thought)]
        rows += [[{"text": piece}] for piece in pieces(said.text)]
        rows += [[part] for part in self._calls(said)]
        return events([*[self._answer(row, None) for row in rows[:-1]], self._answer(rows[-1], "STOP")])

    def refuse(self, status: int, text: str, headers: dict[str, str]) -> Reply:
        kind = "RESOURCE_EXHAUSTED" if status == 429 else "INVALID_ARGUMENT"
        return whole({"error": {"code": status, "message": text, "status": kind}}, status, **headers)


class Bedrock(Vendor):
    """Bedrock's Converse: blocks with an index, in binary frames."""

    name = "bedrock"
    table = {"dialect": "bedrock", "api_key": "token", "capabilities": {"reasoning": "budget"}}

    def __init__(self, script: Callable[[dict[str, Any]], Said] | None = None) -> None:
        super().__init__(script)
        model: Any = botocore.session.get_session().get_service_model("bedrock-runtime")
        self._shape: Any = model.operation_model("Converse").input_shape

    def streams(self, request: Received, body: dict[str, Any]) -> bool:
        return request.target.endswith("/converse-stream")

    def check(self, request: Received, body: dict[str, Any]) -> list[str]:
        wrong: list[str] = []
        report: Any = ParamValidator().validate({"modelId": "m", **_with_bytes(body)}, self._shape)
        if report.has_errors():
            wrong.append(report.generate_report())
        waiting: list[str] = []
        for at, message in enumerate(body["messages"]):
            if message["role"] != ("assistant" if at % 2 else "user"):
                wrong.append("roles must alternate between user and assistant, starting with user")
            results = [block["toolResult"]["toolUseId"] for block in message["content"] if "toolResult" in block]
            if results != waiting:
                wrong.append(f"Expected toolResult blocks for {waiting}, not {results}")
            waiting = [block["toolUse"]["toolUseId"] for block in message["content"] if "toolUse" in block]
        if any("toolUse" in block for m in body["messages"] for block in m["content"]) and "toolConfig" not in body:
            wrong.append("The toolConfig field must be defined when using toolUse and toolResult content blocks.")
        return wrong

    def thinks(self, body: dict[str, Any], level: bool) -> bool:
        more = body.get("additionalModelRequestFields") or {}
        return (more.get("thinking") or {}).get("type") == "enabled"

    def tools(self, body: dict[str, Any]) -> list[Any]:
        tools = (body.get("toolConfig") or {}).get("tools") or ()
        return [tool["toolSpec"]["name"] for tool in tools if "toolSpec" in tool]

    def results(self, body: dict[str, Any]) -> dict[str, str]:
        blocks = [block for message in body["messages"] for block in message["content"]]
        calls = {b["toolUse"]["toolUseId"]: b["toolUse"]["input"]["city"] for b in blocks if "toolUse" in b}
        results = [block["toolResult"] for block in blocks if "toolResult" in block]
        return {calls[result["toolUseId"]]: _text(result["content"]) for result in results}

    def _usage(self) -> dict[str, Any]:
        return {"inputTokens": INPUT - CACHED, "outputTokens": OUTPUT, "totalTokens": INPUT + OUTPUT,
                "cacheReadInputTokens": CACHED, "cacheWriteInputTokens": 0}  # fmt: skip

    def whole(self, said: Said, body: dict[str, Any]) -> Reply:
        content: list[dict[str, Any]] = []
        if said.thought:
            text = {"text": said.thought, "signature": "EqQBCgIY"}
            content.append({"reasoningContent": {"reasoningText": text}})
        content.append({"text": said.text})
        content += [
            {"toolUse": {"toolUseId": f"tooluse_{at}", "name": name, "input": json.loads(text)}}
            for at, (name, text) in enumerate(said.calls)
        ]
        return whole({"output": {"message": {"role": "assistant", "content": content}}, "usage": self._usage(),
                      "stopReason": "tool_use" if said.calls else "end_turn", "metrics": {"latencyMs": 9}})  # fmt: skip

    def stream(self, said: Said, body: dict[str, Any]) -> Stream:
        blocks: list[tuple[dict[str, Any] | None, list[dict[str, Any]]]] = []
        if said.thought:
            deltas: list[dict[str, Any]] = [{"reasoningContent": {"text": piece}} for piece in pieces(said.thought)]
            blocks.append((None, [*deltas, {"reasoningContent": {"signature": "EqQBCgIY"}}]))
        blocks.append((None, [{"text": piece} for piece in pieces(said.text)]))
        for at, (name, text) in enumerate(said.calls):
            start = {"toolUse": {"toolUseId": f"tooluse_{at}", "name": name}}
            blocks.append((start, [{"toolUse": {"input": piece}} for piece in pieces(text)]))
        frames = [frame("messageStart", {"role": "assistant"})]
        for at, (start, deltas) in enumerate(blocks):
            where = {"contentBlockIndex": at}
            if start is not None:
                frames.append(frame("contentBlockStart", {**where, "start": start}))
            frames += [frame("contentBlockDelta", {**where, "delta": delta}) for delta in deltas]
            frames.append(frame("contentBlockStop", where))
        frames.append(frame("messageStop", {"stopReason": "tool_use" if said.calls else "end_turn"}))
        frames.append(frame("metadata", {"usage": self._usage(), "metrics": {"latencyMs": 9}}))
        return Stream(frames, headers={"content-type": "application/vnd.amazon.eventstream"})

    def refuse(self, status: int, text: str, headers: dict[str, str]) -> Reply:
        kind = "ThrottlingException" if status == 429 else "ValidationException"
        return whole(
            {"message": text}, status, **{"x-amzn-ErrorType": f"{kind}:http://internal.amazon.com/"}, **headers
        )


def frame(kind: str, payload: dict[str, Any]) -> bytes:
    """Return one message of an event stream: lengths, their checksum, headers, payload, and the checksum of all."""
    headers = b""
    for name, value in ((":event-type", kind), (":content-type", "application/json"), (":message-type", "event")):
        headers += struct.pack(f">B{len(name)}sBH", len(name), name.encode(), 7, len(value)) + value.encode()
    data = compact(payload)
    prelude = struct.pack(">II", 16 + len(headers) + len(data), len(headers))
    prelude += struct.pack(">I", zlib.crc32(prelude))
    message = prelude + headers + data
    return message + struct.pack(">I", zlib.crc32(message))


def _with_bytes(value: Any) -> Any:
    """Return a body with `bytes` fields decoded, as the SDK is given them and its model describes them."""
    if isinstance(value, list):
        return [_with_bytes(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {k: b64decode(v, validate=True) if k == "bytes" and isinstance(v, str) else _with_bytes(v)
            for k, v in value.items()}  # fmt: skip


VENDORS: tuple[type[Vendor], ...] = (OpenAIChat, OpenAIResponses, Anthropic, Ollama, Gemini, Bedrock, HuggingFace)
