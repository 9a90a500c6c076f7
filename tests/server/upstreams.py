"""What fake vendors answer behind the gateway in the tests of its endpoints."""

from __future__ import annotations

import json
from typing import Any

from windlass.testing.faults import FaultServer, Part, Received, Reply, Step, Stream, sse

JSON = {"content-type": "application/json"}
#: One red pixel.
PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de0000000c49444154789c63f8cfc0000003010100"
    "c9fe92ef0000000049454e44ae426082"
)


def up(server: FaultServer, **more: Any) -> dict[str, Any]:
    """Return the `[providers]` table of one OpenAI-compatible vendor named `up`."""
    return {"up": {"base_url": f"{server.url}/v1", "api_key": "sk-upstream", **more}}


def chat(text: str = "hello", call: tuple[str, str] | None = None) -> Reply:
    """Return a whole chat completion, of a text or of a call of a tool."""
    message: dict[str, Any] = {"role": "assistant", "content": text}
    if call is not None:
        function = {"name": call[0], "arguments": call[1]}
        message = {"role": "assistant", "content": None, "tool_calls": [_call(function)]}
    choice = {"index": 0, "message": message, "finish_reason": "tool_calls" if call else "stop"}
    return reply({**_head("chat.completion"), "choices": [choice], "usage": USAGE})


def chat_stream(*texts: str, call: tuple[str, str] | None = None, end: bool = True) -> Stream:
    """Return a streamed chat completion; without its `end` it is one that broke."""
    rows = [_chunk({"content": text}) for text in texts]
    if call is not None:
        rows.append(_chunk({"tool_calls": [{"index": 0, **_call({"name": call[0], "arguments": call[1]})}]}))
    if end:
        rows.append(_chunk({}, "tool_calls" if call else "stop"))
        rows.append({**_head("chat.completion.chunk"), "choices": [], "usage": USAGE})
    frames = [json.dumps(row) for row in rows] + (["[DONE]"] if end else [])
    return Stream(_parts(*frames))


def answering(*texts: str, call: tuple[str, str] | None = None) -> Any:
    """Return a script that answers whole or streamed, as each request asks."""

    def step(request: Received) -> Step:
        if json.loads(request.body or b"{}").get("stream"):
            return chat_stream(*texts, call=call)
        return chat("".join(texts), call)

    return step


def reply(body: Any, status: int = 200, **headers: str) -> Reply:
    """Return a JSON answer."""
    return Reply(status, json.dumps(body).encode(), {**JSON, **headers})


def refusal(status: int, code: str, **headers: str) -> Reply:
    """Return an OpenAI error."""
    return reply({"error": {"message": f"no: {code}", "type": code, "param": None, "code": code}}, status, **headers)


def sent(server: FaultServer, at: int = -1) -> dict[str, Any]:
    """Return the body of a request that the vendor got."""
    return json.loads(server.requests[at].body)


USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}


def _call(function: dict[str, str]) -> dict[str, Any]:
    return {"id": "call_abc", "type": "function", "function": function}


def _head(kind: str) -> dict[str, Any]:
    return {"id": "chatcmpl-1", "object": kind, "created": 1, "model": "m-1"}


def _chunk(delta: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
    return {**_head("chat.completion.chunk"), "choices": [{"index": 0, "delta": delta, "finish_reason": reason}]}


def _parts(*frames: str) -> list[Part]:
    return sse(*frames)
