"""Events, streams and answers for the Responses tests, and the rules that the API answers with 400."""

from __future__ import annotations

from typing import Any

from windlass.core.items import Finish, Item
from windlass.core.json import dumps, loads
from windlass.wire.openai_responses import DIALECT

USAGE = {
    "input_tokens": 10,
    "input_tokens_details": {"cached_tokens": 6},
    "output_tokens": 4,
    "output_tokens_details": {"reasoning_tokens": 3},
    "total_tokens": 14,
}


def event(kind: str, **fields: Any) -> bytes:
    return f"event: {kind}\n".encode() + b"data: " + dumps({"type": kind, **fields}) + b"\n\n"


def response(*output: dict[str, Any], status: str = "completed", **fields: Any) -> dict[str, Any]:
    head = {"id": "resp_1", "object": "response", "created_at": 1, "model": "gpt-5-2025-08-07", "status": status}
    return {**head, "output": list(output), "usage": USAGE, **fields}


def message(text: str, identity: str = "msg_1", **fields: Any) -> dict[str, Any]:
    content = [{"type": "output_text", "text": text, "annotations": [], "logprobs": []}]
    return {"id": identity, "type": "message", "role": "assistant", "status": "completed", "content": content, **fields}


def function_call(call_id: str, name: str, arguments: str, **fields: Any) -> dict[str, Any]:
    head = {"id": f"fc_{call_id}", "type": "function_call", "status": "completed"}
    return {**head, "call_id": call_id, "name": name, "arguments": arguments, **fields}


def reasoning(*summary: str, identity: str = "rs_1", encrypted: str | None = "gAAA", **fields: Any) -> dict[str, Any]:
    rows = [{"type": "summary_text", "text": text} for text in summary]
    return {"id": identity, "type": "reasoning", "summary": rows, "encrypted_content": encrypted, **fields}


def item_events(place: int, item: dict[str, Any], *, step: int = 5) -> bytes:
    """Return the events of one output item as OpenAI sends them, its text in pieces of `step` characters."""
    where = {"output_index": place, "item_id": item["id"]}
    begun = {**item, "status": "in_progress"}
    out = b""

    def pieces(kind: str, text: str, **more: Any) -> bytes:
        return b"".join(
            [event(f"{kind}.delta", **where, **more, delta=text[at : at + step]) for at in range(0, len(text), step)]
        )

    if item["type"] == "message":
        begun["content"] = []
        for at, part in enumerate(item["content"]):
            name = "output_text" if part["type"] == "output_text" else "refusal"
            key = "text" if name == "output_text" else "refusal"
            out += event("response.content_part.added", **where, content_index=at, part={**part, key: ""})
            out += pieces(f"response.{name}", part[key], content_index=at)
            out += event(f"response.{name}.done", **where, content_index=at, **{key: part[key]})
            out += event("response.content_part.done", **where, content_index=at, part=part)
    elif item["type"] == "function_call":
        begun["arguments"] = ""
        out += pieces("response.function_call_arguments", item["arguments"])
        out += event("response.function_call_arguments.done", **where, arguments=item["arguments"])
    elif item["type"] == "custom_tool_call":
        begun["input"] = ""
        out += pieces("response.custom_tool_call_input", item["input"])
        out += event("response.custom_tool_call_input.done", **where, input=item["input"])
    elif item["type"] == "reasoning":
        begun = {"id": item["id"], "type": "reasoning", "summary": []}
        for at, part in enumerate(item["summary"]):
            empty = {"type": "summary_text", "text": ""}
            out += event("response.reasoning_summary_part.added", **where, summary_index=at, part=empty)
            out += pieces("response.reasoning_summary_text", part["text"], summary_index=at)
            out += event("response.reasoning_summary_text.done", **where, summary_index=at, text=part["text"])
            out += event("response.reasoning_summary_part.done", **where, summary_index=at, part=part)
    added = event("response.output_item.added", output_index=place, item=begun)
    return added + out + event("response.output_item.done", output_index=place, item=item)


def stream(*output: dict[str, Any], end: bytes | None = None) -> bytes:
    """Return a whole stream as OpenAI sends it."""
    head = response(status="in_progress", usage=None)
    data = event("response.created", response=head) + event("response.in_progress", response=head)
    data += b"".join([item_events(place, item) for place, item in enumerate(output)])
    return data + (event("response.completed", response=response(*output)) if end is None else end)


def read(data: bytes, step: int | None = None) -> list[Item]:
    decoder = DIALECT.stream_decoder()
    size = step or len(data) or 1
    out: list[Item] = []
    for at in range(0, len(data), size):
        out += decoder.feed(data[at : at + size])
    return out + decoder.close()


def finish_of(data: bytes) -> Finish:
    last = read(data)[-1]
    assert isinstance(last, Finish)
    return last


def answer(*output: dict[str, Any], **fields: Any) -> Finish:
    return DIALECT.decode_response(dumps(response(*output, **fields)))


def events_of(data: bytes) -> list[dict[str, Any]]:
    """Return the events of a stream of ours; each names itself twice, and they are numbered without gaps."""
    out: list[dict[str, Any]] = []
    for block in data.decode().split("\n\n")[:-1]:
        name, body = block.split("\n")
        found = loads(body.removeprefix("data: "))
        assert name == f"event: {found['type']}" and found["sequence_number"] == len(out)
        out.append(found)
    return out


# ------------------------------------------------------------------------------------------------- what the API takes

_ROLES = {
    "user": ("input_text", "input_image", "input_file"),
    "developer": ("input_text",),
    "assistant": ("output_text", "refusal"),
}


def check_responses(body: dict[str, Any]) -> list[str]:
    """Check a body: roles and content, and that each call is answered once, before any message that follows it."""
    problems: list[str] = []
    items = body.get("input")
    if not isinstance(items, list) or not items:
        return ["input must be a non-empty array"]
    waiting: list[str] = []
    seen: list[str] = []
    for at, item in enumerate(items):
        where, kind = f"input[{at}]", item.get("type")
        call_id = item.get("call_id")
        if kind in ("function_call_output", "custom_tool_call_output"):
            if call_id in waiting:
                waiting.remove(call_id)
            else:
                problems.append(f"{where}: no tool call found for the output of {call_id!r}")
            if not isinstance(item.get("output"), (str, list)) or item["output"] == []:
                problems.append(f"{where}: an output without content")
        elif kind in ("function_call", "custom_tool_call"):
            if not isinstance(call_id, str) or not 0 < len(call_id) <= 64 or call_id in seen:
                problems.append(f"{where}: the id {call_id!r}")
            if not item.get("name") or not isinstance(item.get("arguments", item.get("input")), str):
                problems.append(f"{where}: a call without name or arguments")
            waiting.append(str(call_id))
            seen.append(str(call_id))
        elif kind == "message":
            if waiting:
                problems.append(f"{where}: no tool output found for {waiting}")
            content = item.get("content")
            allowed = _ROLES.get(str(item.get("role")), ())
            if not isinstance(content, list) or not content or any(part.get("type") not in allowed for part in content):
                problems.append(f"{where}: content {content!r} of the role {item.get('role')!r}")
        elif kind == "reasoning":
            after = items[at + 1] if at + 1 < len(items) else {}
            made = after.get("role") == "assistant" or after.get("type") not in ("message", None)
            if not made or str(after.get("type")).endswith("_output"):
                problems.append(f"{where}: reasoning without the item that must follow it")
        elif not isinstance(kind, str) or "." in kind:
            problems.append(f"{where}: type {kind!r}")
    return problems + ([f"no tool output found for {waiting} at the end"] if waiting else [])
