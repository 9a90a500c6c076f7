"""Whether Bedrock would take a Converse body: the rules that it answers with a ValidationException, as a function."""

from __future__ import annotations

import re
from typing import Any

_ID = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_NAME = re.compile(r"[a-zA-Z0-9\-()\[\]]+( [a-zA-Z0-9\-()\[\]]+)*")
_SIDES = {"toolUse": "assistant", "reasoningContent": "assistant", "toolResult": "user", "image": "user"}
_TOP = {
    "messages", "system", "inferenceConfig", "toolConfig", "guardrailConfig", "additionalModelRequestFields",
    "promptVariables", "additionalModelResponseFieldPaths", "requestMetadata", "performanceConfig", "serviceTier",
    "outputConfig",
}  # fmt: skip


def check_bedrock(body: dict[str, Any]) -> list[str]:
    """Return what is wrong with a body: roles that do not alternate, pairs, ids, blank text, names of documents."""
    problems = [f"unknown field {key!r}" for key in body.keys() - _TOP]
    messages: list[Any] = body.get("messages", [])
    if not messages or any(not isinstance(message, dict) for message in messages):
        return [*problems, "messages must be a non-empty array of objects"]
    problems += _turns(messages)
    blocks = [block for message in messages for block in message.get("content", [])]
    if any("toolUse" in block or "toolResult" in block for block in blocks) and not body.get("toolConfig"):
        problems.append("toolConfig must be defined where toolUse and toolResult are")
    problems += _tools(body.get("toolConfig"))
    inner = [item for block in blocks for item in block.get("toolResult", {}).get("content", [])]
    names = [block["document"].get("name", "").lower() for block in [*blocks, *inner] if "document" in block]
    if len(set(names)) < len(names):
        problems.append(f"duplicate document names in {names}")
    marks = sum("cachePoint" in block for block in [*blocks, *body.get("system", []), *_listed(body.get("toolConfig"))])
    return problems + ([f"{marks} cache points; at most four are taken"] if marks > 4 else [])


def _listed(config: Any) -> list[dict[str, Any]]:
    return config.get("tools", []) if isinstance(config, dict) else []


def _turns(messages: list[dict[str, Any]]) -> list[str]:
    problems: list[str] = []
    waiting: list[Any] = []
    seen: list[Any] = []
    role = "assistant"
    for at, message in enumerate(messages):
        where, blocks = f"messages[{at}]", message.get("content") or []
        if message.get("role") not in ("user", "assistant") or message.get("role") == role:
            problems.append(f"{where}: {message.get('role')} follows {role}")
        role = message.get("role", "")
        if not blocks:
            problems.append(f"{where}: empty content")
        problems += [
            problem for n, block in enumerate(blocks) for problem in _block(block, f"{where}.content[{n}]", role)
        ]
        results = [block["toolResult"].get("toolUseId") for block in blocks if "toolResult" in block]
        if sorted(map(str, results)) != sorted(map(str, waiting)):
            problems.append(f"{where}: calls {waiting} are followed by results {results}")
        waiting = [block["toolUse"].get("toolUseId") for block in blocks if "toolUse" in block]
        problems += [f"{where}: the id {call!r} is used twice" for n, call in enumerate(waiting) if call in waiting[:n]]
        problems += [f"{where}: the id {call!r} is used again" for call in waiting if call in seen]
        seen += waiting
        if any("document" in block for block in blocks) and not any("text" in block for block in blocks):
            problems.append(f"{where}: a document without text")
        if any("cachePoint" in block and _not_pdf(blocks[n - 1]) for n, block in enumerate(blocks) if n):
            problems.append(f"{where}: a cache point right after a document that is no PDF")
    last = messages[-1].get("content") or [{}]
    if messages[0].get("role") != "user":
        problems.append("messages[0]: a conversation must start with a user message")
    if role == "assistant" and str(last[-1].get("text", "")) != str(last[-1].get("text", "")).rstrip():
        problems.append("the final assistant text ends in white space")
    return problems + ([f"the calls {waiting} at the end have no result"] if waiting else [])


def _not_pdf(block: dict[str, Any]) -> bool:
    return "document" in block and block["document"].get("format") != "pdf"


def _block(block: dict[str, Any], where: str, role: str) -> list[str]:
    problems: list[str] = []
    if len(block) != 1:
        return [f"{where}: must have one key, not {sorted(block)}"]
    (kind,) = block
    value = block[kind]
    if _SIDES.get(kind, role) != role:
        problems.append(f"{where}: {kind} in a message of the role {role}")
    if kind == "text" and not value.strip():
        problems.append(f"{where}: the text field is blank")
    if kind in ("toolUse", "toolResult") and not _ID.fullmatch(str(value.get("toolUseId"))):
        problems.append(f"{where}: the id {value.get('toolUseId')!r}")
    if kind == "toolUse" and (not isinstance(value.get("input"), dict) or not _ID.fullmatch(str(value.get("name")))):
        problems.append(f"{where}: input must be an object and the name {value.get('name')!r} plain")
    if kind == "toolResult":
        inner = value.get("content") or []
        problems += [] if inner else [f"{where}: toolResult.content is empty"]
        problems += [problem for n, item in enumerate(inner) for problem in _block(item, f"{where}[{n}]", "user")]
    if kind == "document" and not (_NAME.fullmatch(value.get("name", "")) and len(value["name"]) <= 200):
        problems.append(f"{where}: the name {value.get('name')!r}")
    return problems


def _tools(config: Any) -> list[str]:
    if config is None:
        return []
    specs = [tool["toolSpec"] for tool in _listed(config) if "toolSpec" in tool]
    problems = [] if specs else ["toolConfig.tools must hold a tool"]
    problems += [f"the tool name {spec['name']!r}" for spec in specs if not _ID.fullmatch(spec["name"])]
    chosen = config.get("toolChoice", {}).get("tool", {}).get("name")
    if chosen is not None and chosen not in [spec["name"] for spec in specs]:
        problems.append(f"toolChoice names {chosen!r}, which is no tool")
    return problems
