"""Whether a vendor would take a conversation: the rules that their servers answer with 400, as functions.

Each takes a decoded request body and returns what is wrong with it, an empty list when nothing is. The checks are on
roles, pairing and ids; they know nothing of this library's own types.
"""

from __future__ import annotations

import re
from typing import Any

__all__ = ["check_anthropic", "check_gemini", "check_ollama", "check_openai"]

_ANTHROPIC_ID = re.compile(r"[a-zA-Z0-9_-]+")
_THINKING = ("thinking", "redacted_thinking")


def _objects(value: Any) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _duplicates(ids: list[Any]) -> list[Any]:
    return [item for at, item in enumerate(ids) if item in ids[:at]]


# ------------------------------------------------------------------------------------------------------------ OpenAI


def check_openai(body: dict[str, Any]) -> list[str]:
    """Check a chat-completions body: roles, ids, and that each call is answered right after it, once, before all else.

    An assistant message needs content or calls; arguments are a string; no id is used twice.
    """
    problems: list[str] = []
    seen: list[Any] = []
    messages = _objects(body.get("messages"))
    if not messages or len(messages) != len(body["messages"]):
        problems.append("messages must be a non-empty array of objects")
    waiting: list[Any] = []
    for at, message in enumerate(messages):
        where, role, content = f"messages[{at}]", message.get("role"), message.get("content")
        if role == "tool":
            call_id = message.get("tool_call_id")
            if call_id in waiting:
                waiting.remove(call_id)
            else:
                problems.append(f"{where}: a response to {call_id!r}, which no call before it waits for")
            if content is None:
                problems.append(f"{where}: a tool message without content")
            continue
        if waiting:
            problems.append(f"{where}: calls {waiting} have no response before it")
            waiting = []
        if role not in ("system", "developer", "user", "assistant"):
            problems.append(f"{where}: role {role!r}")
        if role != "assistant" and not isinstance(content, (str, list)):
            problems.append(f"{where}: content is {content!r}")
        if role == "assistant":
            calls = _objects(message.get("tool_calls"))
            if "tool_calls" in message and not calls:
                problems.append(f"{where}: tool_calls is empty")
            if content is None and not calls:
                problems.append(f"{where}: neither content nor calls")
            waiting = [call.get("id") for call in calls]
            problems += _openai_calls(calls, where)
            problems += [f"{where}: the id {item!r} is used twice" for item in waiting if item in seen]
            seen += waiting
    return problems + ([f"the calls {waiting} at the end have no response"] if waiting else [])


def _openai_calls(calls: list[dict[str, Any]], where: str) -> list[str]:
    problems = [f"{where}: the id {item!r} is used twice" for item in _duplicates([call.get("id") for call in calls])]
    for call in calls:
        function = _object(call.get("function"))
        if not isinstance(call.get("id"), str) or not 0 < len(call["id"]) <= 40:
            problems.append(f"{where}: the id {call.get('id')!r} must have 1 to 40 characters")
        if call.get("type") != "function" or not function.get("name"):
            problems.append(f"{where}: a call without type or name")
        if not isinstance(function.get("arguments"), str):
            problems.append(f"{where}: arguments must be a string")
    return problems


# --------------------------------------------------------------------------------------------------------- Anthropic


def check_anthropic(body: dict[str, Any]) -> list[str]:
    """Check a messages body: a user message is first, nothing is empty, each call is answered in the next message.

    Further: results stand before all else, ids fit the vendor's pattern, thinking is signed and never last, at most
    four cache marks are set, and `max_tokens` exceeds the thinking budget.
    """
    problems: list[str] = []
    messages = _objects(body.get("messages"))
    if not messages or len(messages) != len(body["messages"]):
        problems.append("messages must be a non-empty array of objects")
    elif messages[0].get("role") != "user":
        problems.append("messages[0]: the first message must be a user's")
    if not isinstance(body.get("max_tokens"), int):
        problems.append("max_tokens is required")
    thinking = _object(body.get("thinking"))
    if thinking.get("type") == "enabled":
        budget = thinking.get("budget_tokens")
        if not isinstance(budget, int) or not 1024 <= budget < body.get("max_tokens", 0):
            problems.append(f"thinking.budget_tokens {budget} must be at least 1024 and below max_tokens")
        if body.get("temperature", 1) != 1 or "top_k" in body:
            problems.append("temperature and top_k may not be set while thinking")
    marks = _marks(body.get("system")) + _marks(body.get("tools"))
    waiting: list[Any] = []
    seen: list[Any] = []
    for at, message in enumerate(messages):
        where, role, content = f"messages[{at}]", message.get("role"), message.get("content")
        blocks = [{"type": "text", "text": content}] if isinstance(content, str) else _objects(content)
        last = at == len(messages) - 1
        if role not in ("user", "assistant"):
            problems.append(f"{where}: role {role!r}")
        if not blocks:
            problems.append(f"{where}: empty content")
        problems += _anthropic_blocks(blocks, where, str(role))
        marks += _marks(blocks)
        results = [block.get("tool_use_id") for block in blocks if block.get("type") == "tool_result"]
        if sorted(map(str, results)) != sorted(map(str, waiting)):
            problems.append(f"{where}: calls {waiting} are followed by results {results}")
        if any(block.get("type") != "tool_result" for block in blocks[: len(results)]):
            problems.append(f"{where}: tool results must come first")
        waiting = [block.get("id") for block in blocks if block.get("type") == "tool_use"]
        problems += [f"{where}: the id {item!r} is used twice" for item in waiting if item in seen]
        problems += [f"{where}: the id {item!r} is used twice" for item in _duplicates(waiting)]
        seen += waiting
        if role == "assistant" and last and blocks and str(blocks[-1].get("text", "")).rstrip() == "":
            problems.append(f"{where}: the final assistant text is empty")
        if role == "assistant" and last and str(blocks[-1].get("text", "") if blocks else "")[-1:].isspace():
            problems.append(f"{where}: the final assistant text ends in white space")
    if waiting:
        problems.append(f"the calls {waiting} at the end have no result")
    return problems + ([f"{marks} cache marks; at most four are taken"] if marks > 4 else [])


def _marks(blocks: Any) -> int:
    return sum("cache_control" in block for block in _objects(blocks))


def _anthropic_blocks(blocks: list[dict[str, Any]], where: str, role: str) -> list[str]:
    problems: list[str] = []
    allowed = ("user",) if role == "assistant" else ("assistant",)
    for number, block in enumerate(blocks):
        at, kind = f"{where}.content[{number}]", block.get("type")
        if {"tool_use": "assistant", "tool_result": "user", "thinking": "assistant"}.get(str(kind)) in allowed:
            problems.append(f"{at}: {kind} in a message of the role {role}")
        if kind == "text" and not str(block.get("text", "")).strip():
            problems.append(f"{at}: text without a visible character")
        if kind == "tool_use" and not isinstance(block.get("input"), dict):
            problems.append(f"{at}: input must be an object")
        if kind == "thinking" and not block.get("signature"):
            problems.append(f"{at}: thinking without a signature")
        if kind in _THINKING and "cache_control" in block:
            problems.append(f"{at}: thinking may not carry a cache mark")
        call_id = block.get("id") if kind == "tool_use" else block.get("tool_use_id") if kind == "tool_result" else None
        if call_id is not None and not _ANTHROPIC_ID.fullmatch(str(call_id)):
            problems.append(f"{at}: the id {call_id!r} does not fit ^[a-zA-Z0-9_-]+$")
        if kind == "tool_result":
            inner = block.get("content")
            if block.get("is_error") and not inner:
                problems.append(f"{at}: an error result needs content")
            if isinstance(inner, list):
                problems += _anthropic_blocks(_objects(inner), at, "user")
    if role == "assistant" and blocks and blocks[-1].get("type") in _THINKING:
        problems.append(f"{where}: the final block of an assistant message may not be thinking")
    return problems


# ------------------------------------------------------------------------------------------------------------ Ollama


def check_ollama(body: dict[str, Any]) -> list[str]:
    """Check a chat body: roles, string content, object arguments, and that each call is answered right after it, once.

    The server itself pairs nothing; models that read an unpaired history answer nonsense.
    """
    problems: list[str] = []
    if not isinstance(body.get("messages"), list):
        problems.append("messages must be an array")
    waiting: list[dict[str, Any]] = []
    seen: list[Any] = []
    for at, message in enumerate(_objects(body.get("messages"))):
        where, role = f"messages[{at}]", message.get("role")
        if not isinstance(message.get("content"), str):
            problems.append(f"{where}: content must be a string")
        if role == "tool":
            found = next((call for call in waiting if _answers(message, call)), None)
            if found is None:
                problems.append(f"{where}: a response that no call before it waits for")
            else:
                waiting.remove(found)
            continue
        if waiting:
            problems.append(f"{where}: {len(waiting)} calls have no response before it")
        waiting = _objects(message.get("tool_calls"))
        if role not in ("system", "user", "assistant") or (waiting and role != "assistant"):
            problems.append(f"{where}: role {role!r}")
        for call in waiting:
            function = _object(call.get("function"))
            if not function.get("name") or not isinstance(function.get("arguments"), dict):
                problems.append(f"{where}: a call needs a name, and arguments that are an object")
        ids = [call.get("id") for call in waiting if call.get("id")]
        problems += [f"{where}: the id {item!r} is used twice" for item in ids if item in seen]
        problems += [f"{where}: the id {item!r} is used twice" for item in _duplicates(ids)]
        seen += ids
    return problems + ([f"{len(waiting)} calls at the end have no response"] if waiting else [])


def _answers(message: dict[str, Any], call: dict[str, Any]) -> bool:
    if message.get("tool_call_id") and call.get("id"):
        return message["tool_call_id"] == call["id"]
    return message.get("tool_name") == _object(call.get("function")).get("name")


# ------------------------------------------------------------------------------------------------------------ Gemini

#: The fields of a part of which exactly one holds its data.
_PART_DATA = (
    "text", "inlineData", "fileData", "functionCall", "functionResponse", "executableCode", "codeExecutionResult",
)  # fmt: skip


def check_gemini(body: dict[str, Any]) -> list[str]:
    """Check a generateContent body: the user begins, no content and no text is empty, each part holds one thing.

    Calls are answered in the very next content, alone, in their order and with their ids and names; no id is used
    twice; the first call of a content is signed, as Gemini 3 demands.
    """
    problems: list[str] = []
    contents = _objects(body.get("contents"))
    if not contents or len(contents) != len(body["contents"]):
        problems.append("contents must be a non-empty array of objects")
    elif contents[0].get("role") != "user":
        problems.append("contents[0]: a conversation begins with the user")
    waiting: list[tuple[Any, Any]] = []
    seen: list[Any] = []
    for at, content in enumerate(contents):
        where, role, parts = f"contents[{at}]", content.get("role"), _objects(content.get("parts"))
        if role not in ("user", "model"):
            problems.append(f"{where}: role {role!r}")
        if not parts:
            problems.append(f"{where}: no parts")
        problems += _gemini_parts(parts, where)
        calls = [_object(part["functionCall"]) for part in parts if "functionCall" in part]
        answers = [_object(part["functionResponse"]) for part in parts if "functionResponse" in part]
        if [(item.get("id"), item.get("name")) for item in answers] != waiting:
            problems.append(f"{where}: calls {waiting} are followed by responses {answers}")
        if answers and len(answers) < len(parts):
            problems.append(f"{where}: function responses stand alone")
        if (calls and role != "model") or (answers and role != "user"):
            problems.append(f"{where}: calls and responses in a content of the role {role}")
        waiting = [(call.get("id"), call.get("name")) for call in calls]
        ids = [call["id"] for call in calls if call.get("id")]
        problems += [f"{where}: the id {item!r} is used twice" for item in ids if item in seen]
        problems += [f"{where}: the id {item!r} is used twice" for item in _duplicates(ids)]
        seen += ids
        first = next((part for part in parts if "functionCall" in part), None)
        if first is not None and not first.get("thoughtSignature"):
            problems.append(f"{where}: the first call is not signed")
    return problems + ([f"the calls {waiting} at the end have no response"] if waiting else [])


def _gemini_parts(parts: list[dict[str, Any]], where: str) -> list[str]:
    problems: list[str] = []
    for number, part in enumerate(parts):
        at, held = f"{where}.parts[{number}]", [key for key in _PART_DATA if key in part]
        if len(held) != 1:
            problems.append(f"{at}: holds {held}, not one thing")
        if part.get("text") == "" and not part.get("thoughtSignature"):
            problems.append(f"{at}: empty text")
        call, answer = part.get("functionCall"), part.get("functionResponse")
        if call is not None and (not _object(call).get("name") or not isinstance(_object(call).get("args"), dict)):
            problems.append(f"{at}: a call needs a name, and args that are an object")
        if answer is not None and not isinstance(_object(answer).get("response"), dict):
            problems.append(f"{at}: a response must be an object")
    return problems
