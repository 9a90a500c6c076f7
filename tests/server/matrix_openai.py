"""The fake vendors of the matrix that speak OpenAI's two dialects, and Hugging Face's TGI.

Shapes: platform.openai.com/docs/api-reference (chat, responses, and their streaming events);
github.com/huggingface/text-generation-inference, router/src (lib.rs, chat.rs, server.rs), version 3.3.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from tests.server.matrix import CACHED, INPUT, OUTPUT, THOUGHT_TOKENS
from tests.server.matrix_base import Said, Vendor, events, pieces, whole
from windlass.testing.faults import Received, Reply, Stream
from windlass.testing.validity import check_openai

DONE = b"data: [DONE]\n\n"


class OpenAIChat(Vendor):
    """OpenAI's chat completions; thinking is in `reasoning_content`, as DeepSeek, vLLM and others have it."""

    name = "openai-chat"
    table = {"dialect": "openai-chat", "capabilities": {"reasoning": "effort"}}

    def check(self, request: Received, body: dict[str, Any]) -> list[str]:
        wrong = [] if request.target == "/v1/chat/completions" else [f"the path is {request.target}"]
        if "stream_options" in body and not body.get("stream"):
            wrong.append("stream_options is only for streams")
        return wrong + check_openai(body)

    def thinks(self, body: dict[str, Any], level: bool) -> bool:
        return body.get("reasoning_effort") in (("minimal", "low", "medium", "high") if level else (None,))

    def tools(self, body: dict[str, Any]) -> list[Any]:
        return [tool["function"]["name"] for tool in body.get("tools") or () if tool["type"] == "function"]

    def results(self, body: dict[str, Any]) -> dict[str, str]:
        calls: dict[str, str] = {}
        out: dict[str, str] = {}
        for message in body["messages"]:
            for call in message.get("tool_calls") or ():
                calls[call["id"]] = json.loads(call["function"]["arguments"])["city"]
            if message["role"] == "tool":
                out[calls[message["tool_call_id"]]] = json.dumps(message["content"], ensure_ascii=False)
        return out

    def head(self, kind: str) -> dict[str, Any]:
        return {"id": "chatcmpl-CfaB3", "object": kind, "created": 1764000000, "model": "gpt-4.1-2025-04-14",
                "service_tier": "default", "system_fingerprint": "fp_b1"}  # fmt: skip

    def usage(self) -> dict[str, Any]:
        return {
            "prompt_tokens": INPUT, "completion_tokens": OUTPUT, "total_tokens": INPUT + OUTPUT,
            "prompt_tokens_details": {"cached_tokens": CACHED, "audio_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": THOUGHT_TOKENS, "audio_tokens": 0,
                                          "accepted_prediction_tokens": 0, "rejected_prediction_tokens": 0},
        }  # fmt: skip

    def whole(self, said: Said, body: dict[str, Any]) -> Reply:
        message: dict[str, Any] = {"role": "assistant", "content": said.text, "refusal": None, "annotations": []}
        if said.thought:
            message["reasoning_content"] = said.thought
        if said.calls:
            message["tool_calls"] = [
                {"id": f"call_{at}xY", "type": "function", "function": {"name": name, "arguments": text}}
                for at, (name, text) in enumerate(said.calls)
            ]  # fmt: skip
        reason = "tool_calls" if said.calls else "stop"
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": reason}
        return whole({**self.head("chat.completion"), "choices": [choice], "usage": self.usage()})

    def deltas(self, said: Said) -> Iterator[tuple[dict[str, Any], str | None]]:
        yield {"role": "assistant", "content": "", "refusal": None}, None
        for piece in pieces(said.thought):
            yield {"reasoning_content": piece}, None
        for piece in pieces(said.text):
            yield {"content": piece}, None
        for at, (name, text) in enumerate(said.calls):
            first = {"index": at, "id": f"call_{at}xY", "type": "function"}
            yield {"tool_calls": [{**first, "function": {"name": name, "arguments": ""}}]}, None
            for piece in pieces(text):
                yield {"tool_calls": [{"index": at, "function": {"arguments": piece}}]}, None
        yield {}, "tool_calls" if said.calls else "stop"

    def stream(self, said: Said, body: dict[str, Any]) -> Stream:
        counted = (body.get("stream_options") or {}).get("include_usage") is True
        head = {**self.head("chat.completion.chunk"), **({"usage": None} if counted else {})}
        rows = [
            {**head, "choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}]}
            for delta, reason in self.deltas(said)
        ]
        return events([*rows, *([{**head, "choices": [], "usage": self.usage()}] if counted else [])], end=DONE)

    def refuse(self, status: int, text: str, headers: dict[str, str]) -> Reply:
        kind = ("requests", "rate_limit_exceeded") if status == 429 else ("invalid_request_error", None)
        error = {"message": text, "type": kind[0], "param": None, "code": kind[1]}
        return whole({"error": error}, status, **headers)


class HuggingFace(OpenAIChat):
    """Text Generation Inference: one call whose id is always "0", text or a call but not both, errors of its own."""

    name = "huggingface"
    table = {"dialect": "tgi", "api_key": "hf_x"}

    def check(self, request: Received, body: dict[str, Any]) -> list[str]:
        wrong = super().check(request, body)
        for message in body["messages"]:
            # Its parser reads content or calls (an untagged enum): with both the calls are lost.
            if message.get("tool_calls") and message.get("content"):
                wrong.append("text beside calls")
        if body.get("tools") and isinstance(body.get("tool_choice"), dict) and "type" in body["tool_choice"]:
            wrong.append("tool_choice is a name, or {function: {name}}")
        return wrong

    def head(self, kind: str) -> dict[str, Any]:
        return {"object": kind, "id": "", "created": 1764000000, "model": "meta-llama/Llama-3.1-8B-Instruct",
                "system_fingerprint": "3.3.7-sha-abc"}  # fmt: skip

    def usage(self) -> dict[str, Any]:
        return {"prompt_tokens": INPUT, "completion_tokens": OUTPUT, "total_tokens": INPUT + OUTPUT}

    def whole(self, said: Said, body: dict[str, Any]) -> Reply:
        message: dict[str, Any] = {"role": "assistant", "content": said.text}
        if said.calls:
            function = {"description": None, "name": said.calls[0][0], "arguments": said.calls[0][1]}
            message = {"role": "assistant", "tool_calls": [{"id": "0", "type": "function", "function": function}]}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
        return whole({**self.head("chat.completion"), "choices": [choice], "usage": self.usage()})

    def deltas(self, said: Said) -> Iterator[tuple[dict[str, Any], str | None]]:
        role = {"role": "assistant"}
        for piece in pieces(said.text if not said.calls else ""):
            yield {**role, "content": piece}, None
        for name, text in said.calls:
            for at, piece in enumerate(pieces(text)):
                function = {"name": None if at else name, "arguments": piece}
                yield {**role, "tool_calls": [{"index": 0, "id": "0", "type": "function", "function": function}]}, None
        yield {**role, "content": ""}, "stop"

    def refuse(self, status: int, text: str, headers: dict[str, str]) -> Reply:
        if status == 429:  # not from the server, which only says "overloaded", but from what Hugging Face has before it
            return whole({"error": text}, status, **headers)
        return whole({"error": f"Input validation error: {text}", "error_type": "validation"}, 422, **headers)


class OpenAIResponses(Vendor):
    """OpenAI's responses: items, and a named event for each step of each item."""

    name = "openai-responses"
    #: OpenAI tells of its reasoning only where that is asked for, and some organisations may not ask.
    table = {"dialect": "openai-responses", "capabilities": {"reasoning": "effort"},
             "extra_body": {"reasoning": {"summary": "detailed"}}}  # fmt: skip

    def check(self, request: Received, body: dict[str, Any]) -> list[str]:
        wrong = [] if request.target == "/v1/responses" else [f"the path is {request.target}"]
        waiting: list[str] = []
        for item in body["input"] if isinstance(body["input"], list) else ():
            kind = item.get("type", "message")
            if kind == "function_call":
                waiting.append(item["call_id"])
                wrong += [] if isinstance(item["arguments"], str) else ["arguments must be a string"]
            elif kind == "function_call_output":
                wrong += [] if item["call_id"] in waiting else [f"No tool call found for {item['call_id']}"]
                waiting.remove(item["call_id"])
            elif kind == "message":
                wrong += _message(item)
            elif kind != "reasoning":
                wrong.append(f"an item of the type {kind}")
        wrong += [f"the tool {tool} is not flat" for tool in body.get("tools") or () if "function" in tool]
        return wrong + [f"No tool output found for {call}" for call in waiting]

    def thinks(self, body: dict[str, Any], level: bool) -> bool:
        reasoning = body.get("reasoning") or {}
        effort = reasoning.get("effort") in (("minimal", "low", "medium", "high") if level else (None,))
        return effort and reasoning.get("summary") == "detailed"

    def tools(self, body: dict[str, Any]) -> list[Any]:
        return [tool["name"] for tool in body.get("tools") or () if tool["type"] == "function"]

    def results(self, body: dict[str, Any]) -> dict[str, str]:
        calls: dict[str, str] = {}
        out: dict[str, str] = {}
        for item in body["input"]:
            if item.get("type") == "function_call":
                calls[item["call_id"]] = json.loads(item["arguments"])["city"]
            elif item.get("type") == "function_call_output":
                out[calls[item["call_id"]]] = json.dumps(item["output"], ensure_ascii=False)
        return out

    def _items(self, said: Said) -> list[dict[str, Any]]:
        out: list[dict[str, Any]] = []
        if said.thought:
            summary = {"type": "summary_text", "text": said.thought}
            out.append({"id": "rs_1", "type": "reasoning", "summary": [summary]})
        part = {"type": "output_text", "annotations": [], "logprobs": [], "text": said.text}
        out.append({"id": "msg_1", "type": "message", "status": "completed", "role": "assistant", "content": [part]})
        out += [
            {"id": f"fc_{at}", "type": "function_call", "status": "completed", "call_id": f"call_{at}Zw",
             "name": name, "arguments": text}
            for at, (name, text) in enumerate(said.calls)
        ]  # fmt: skip
        return out

    def _response(self, status: str, output: list[dict[str, Any]]) -> dict[str, Any]:
        usage = {
            "input_tokens": INPUT, "input_tokens_details": {"cached_tokens": CACHED}, "output_tokens": OUTPUT,
            "output_tokens_details": {"reasoning_tokens": THOUGHT_TOKENS}, "total_tokens": INPUT + OUTPUT,
        }  # fmt: skip
        return {
            "id": "resp_68af", "object": "response", "created_at": 1764000000, "status": status, "background": False,
            "error": None, "incomplete_details": None, "instructions": None, "max_output_tokens": None,
            "model": "gpt-5-2025-08-07", "output": output, "parallel_tool_calls": True, "previous_response_id": None,
            "reasoning": {"effort": "low", "summary": "detailed"}, "store": False, "temperature": 1.0,
            "text": {"format": {"type": "text"}}, "tool_choice": "auto", "tools": [], "top_p": 1.0,
            "truncation": "disabled", "usage": usage if status == "completed" else None, "metadata": {},
        }  # fmt: skip

    def whole(self, said: Said, body: dict[str, Any]) -> Reply:
        return whole(self._response("completed", self._items(said)))

    def stream(self, said: Said, body: dict[str, Any]) -> Stream:
        items = self._items(said)
        rows: list[dict[str, Any]] = [
            {"type": f"response.{name}", "response": self._response("in_progress", [])}
            for name in ("created", "in_progress")
        ]
        for at, item in enumerate(items):
            rows += _item_events(item, at)
        rows.append({"type": "response.completed", "response": self._response("completed", items)})
        return events([{**row, "sequence_number": at} for at, row in enumerate(rows)], named=True)

    def refuse(self, status: int, text: str, headers: dict[str, str]) -> Reply:
        kind = ("requests", "rate_limit_exceeded") if status == 429 else ("invalid_request_error", None)
        error = {"message": text, "type": kind[0], "param": None, "code": kind[1]}
        return whole({"error": error}, status, **headers)


def _message(item: dict[str, Any]) -> list[str]:
    if item["role"] not in ("user", "assistant", "system", "developer"):
        return [f"a message of the role {item['role']}"]
    side = "output_" if item["role"] == "assistant" else "input_"
    parts = item["content"] if isinstance(item["content"], list) else []
    return [f"{part['type']} in a message of the {item['role']}" for part in parts if not part["type"].startswith(side)]


def _item_events(item: dict[str, Any], at: int) -> Iterator[dict[str, Any]]:
    where = {"item_id": item["id"], "output_index": at}
    empty = {"message": {"content": [], "status": "in_progress"}, "reasoning": {"summary": []},
             "function_call": {"arguments": "", "status": "in_progress"}}[item["type"]]  # fmt: skip
    yield {"type": "response.output_item.added", "output_index": at, "item": {**item, **empty}}
    if item["type"] == "function_call":
        for piece in pieces(item["arguments"]):
            yield {"type": "response.function_call_arguments.delta", **where, "delta": piece}
        said = {"name": item["name"], "arguments": item["arguments"]}
        yield {"type": "response.function_call_arguments.done", **where, **said}
    elif item["type"] == "message":
        place, part = {**where, "content_index": 0}, item["content"][0]
        yield {"type": "response.content_part.added", **place, "part": {**part, "text": ""}}
        for piece in pieces(part["text"]):
            yield {"type": "response.output_text.delta", **place, "delta": piece, "logprobs": []}
        yield {"type": "response.output_text.done", **place, "text": part["text"], "logprobs": []}
        yield {"type": "response.content_part.done", **place, "part": part}
    else:
        place, part = {**where, "summary_index": 0}, item["summary"][0]
        yield {"type": "response.reasoning_summary_part.added", **place, "part": {**part, "text": ""}}
        for piece in pieces(part["text"]):
            yield {"type": "response.reasoning_summary_text.delta", **place, "delta": piece}
        yield {"type": "response.reasoning_summary_text.done", **place, "text": part["text"]}
        yield {"type": "response.reasoning_summary_part.done", **place, "part": part}
    yield {"type": "response.output_item.done", "output_index": at, "item": item}
