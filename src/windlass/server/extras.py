"""What reference A adds to chat completions, checked: its rules, messages, params and codes.

A's codes tell of what is wrong in both dialects. Where A refuses what OpenAI's dialect allows, OpenAI's rule holds:

| A refuses | here |
|---|---|
| content that is an array of parts, or null beside tool_calls | taken |
| content of blanks only | taken |
| a conversation without a user message | taken |
| roles other than system, user, assistant, tool | developer and function are taken |
| a field that is null | counts as not given |
| tools of the client's own (`{"type": "function", …}`) and an object as tool_choice | taken, beside A's short form |
| temperature beyond 0 to 2 (A takes any number) | `invalid_temperature`; every vendor refuses it |
| `stream` with other providers than Ollama | every provider streams |
"""

from __future__ import annotations

import math
import re
from typing import Any, Literal

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from windlass.core.config import Config
from windlass.core.errors import BadRequestError, RequestRefused
from windlass.core.json import dumps
from windlass.server.body import Fields, rebuild
from windlass.server.ingress import CHAT_EXTRAS
from windlass.server.server_tools import NAMES
from windlass.wire.base import DecodedRequest, field_of
from windlass.wire.openai_chat import DIALECT

__all__ = ["Asked", "LoopAsked", "checked_id", "is_plain", "read"]

_MAX_MODEL = 512
#: Bytes of an id in UTF-8: three times as many percent-encoded still fit into a path.
_MAX_ID = 256
_MAX_CONTEXT, _MAX_LOOPS = 1_000_000, 128
_LIST = re.compile(rb"\[\s*\{")
#: How much of the tools is looked at for whether they are OpenAI's: each says so within its first fields.
_GLANCE = 256
_CHOICES = ("auto", "none", "required")
_PLAIN_CHOICES = (b"null", *[b'"%b"' % choice.encode() for choice in _CHOICES])
_TOOL_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_ROLES = frozenset(("system", "user", "assistant", "tool", "developer", "function"))
_PROVIDERS = "ollama_qwen, ollama, qwen, openai, openrouter, claude, anthropic, bedrock, llama_cpp, llama.cpp"


class LoopAsked(Struct, frozen=True):
    """A loop: how it goes on, the marker that ends it, and after how many turns it ends in any case."""

    mode: Literal["basic", "agent"]
    until: str = "DONE"
    max_turns: int = 8


class Asked(Struct, frozen=True):
    """A request, checked. `model` names the route, `decoded` holds everything that OpenAI's dialect knows.

    `tools` are (name, description) of the server tools that it names,
    `choice` one of them that is to answer, else auto, none or required. `prompt` is the text of the last user message
    and `count` how many messages came.
    """

    model: str
    stream: bool
    decoded: DecodedRequest
    prompt: str = ""
    count: int = 0
    tools: tuple[tuple[str, str], ...] = ()
    choice: str = "auto"
    session_id: str = ""
    tenant_id: str = ""
    max_context_tokens: int | None = None
    loop: LoopAsked | None = None


def is_plain(fields: Fields) -> bool:
    """Tell, without decoding, whether a request is surely one of OpenAI's alone; most are."""
    tools, choice, messages = fields.get("tools"), fields.get("tool_choice"), fields.get("messages")
    return (
        CHAT_EXTRAS.isdisjoint(fields)
        and "model" in fields
        and messages is not None
        and _LIST.match(memoryview(messages)) is not None
        and (tools is None or b'"function"' in bytes(memoryview(tools)[:_GLANCE]))
        and (choice is None or memoryview(choice)[0] == 0x7B or bytes(choice) in _PLAIN_CHOICES)
    )


def read(fields: Fields, config: Config) -> Asked | None:
    """Check a request; None for one that is OpenAI's after all. Raises RequestRefused 400 with A's code."""
    values = _values(fields)
    if "messages" in values and "prompt" in values:
        raise _bad("Provide either messages or prompt, not both", "ambiguous_input", None)
    model = _model(values, config)
    messages = _messages(values)
    stream = _flag(values, "stream") or False
    think = _flag(values, "think")
    think = _flag(values, "thinking") if think is None else think
    _number(values, "temperature", 2.0)
    penalty = _number(values, "repeat_penalty", 10.0)
    session, tenant = [checked_id(name, _text(values, name)) for name in ("session_id", "tenant_id")]
    context = _whole(values, "max_context_tokens", _MAX_CONTEXT)
    named, own_tools = _tools(values)
    loop = _loop(values)
    choice, openai_choice = _choice(values, [name for name, _ in named], own_tools)
    if any(name not in NAMES for name, _ in named):
        raise _bad("One or more requested tools are not registered", "unknown_tool", "tools")
    if loop is not None and own_tools:
        raise _bad("a loop runs on the server, where the client's own functions cannot be called", "invalid_tools",
                   "tools")  # fmt: skip
    if loop is not None and values.get("n", 1) != 1:
        raise _bad("n must be 1 in a loop", "invalid_n", "n")
    if stream and choice not in _CHOICES:
        raise _bad("a server tool is answered whole: set stream to false", "invalid_tool_choice", "tool_choice")
    if not named and "model" in values and CHAT_EXTRAS.isdisjoint(values):
        return None
    changes = {"model": dumps(model)}
    if "prompt" in values:
        changes["messages"] = dumps(messages)
    if openai_choice is not None:
        changes["tool_choice"] = dumps(openai_choice)
    if own_tools:
        changes["tools"] = dumps(own_tools)
    left = {"tools", "tool_choice"} if named or not own_tools else {"tools"}
    rest = {name: raw for name, raw in fields.items() if name not in CHAT_EXTRAS and name not in left}
    return Asked(
        model,
        stream,
        _decoded(rebuild(rest, changes), think, penalty),
        prompt=_prompt(messages),
        count=len(messages),
        tools=tuple(named),
        choice=choice,
        session_id=session,
        tenant_id=tenant,
        max_context_tokens=context,
        loop=loop,
    )


def _bad(text: str, code: str, param: str | None) -> RequestRefused:
    return RequestRefused(400, text, reason=code, param=param)


def _values(fields: Fields) -> dict[str, Any]:
    """Return what is given, decoded; what is null is not given."""
    out: dict[str, Any] = {}
    for name, raw in fields.items():
        try:
            value: Any = msgspec.json.decode(raw)
        except msgspec.DecodeError:
            # Valid JSON, but a number that no float can hold.
            value = math.inf
        if value is not None:
            out[name] = value
    return out


def _decoded(body: bytes, think: bool | None, penalty: float | None) -> DecodedRequest:
    try:
        decoded = DIALECT.decode_request(body)
    except BadRequestError as error:
        path = field_of(error)
        name = "" if path is None else re.split(r"[.\[]", path)[0]
        # A names the field, OpenAI the place in it: A's param, and the place in the text.
        raise _bad(error.message, f"invalid_{name}" if name else error.provider_code or error.code, name) from None
    settings = decoded.request.settings
    if think is not None and settings.thinking is None:
        settings = replace(settings, thinking="medium" if think else "off")
    if penalty is not None:
        settings = replace(settings, repeat_penalty=penalty)
    return replace(decoded, request=replace(decoded.request, settings=settings))


# ------------------------------------------------------------------------------------------------------ plain fields


def _text(values: dict[str, Any], name: str) -> str:
    value = values.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise _bad(f"{name} must be a string", f"invalid_{name}", name)
    if not value.strip():
        raise _bad(f"{name} must not be empty", f"invalid_{name}", name)
    return value.strip()


def checked_id(name: str, text: str) -> str:
    """Return an id that is safe in a path, a header and a log (S46, S69). Raises RequestRefused 400."""
    if not text.isprintable() or text in (".", "..") or len(text.encode("utf-8", "replace")) > _MAX_ID:
        raise _bad(f"{name} must be at most {_MAX_ID} bytes of printable characters", f"invalid_{name}", name)
    return text


def _flag(values: dict[str, Any], name: str) -> bool | None:
    value = values.get(name)
    if value is not None and not isinstance(value, bool):
        raise _bad(f"{name} must be a boolean", f"invalid_{name}", name)
    return value


def _number(values: dict[str, Any], name: str, most: float) -> float | None:
    value = values.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise _bad(f"{name} must be a number", f"invalid_{name}", name)
    if isinstance(value, float) and not math.isfinite(value):
        raise _bad(f"{name} must be a finite number", f"invalid_{name}", name)
    if not 0 <= value <= most:
        raise _bad(f"{name} must be a number from 0 to {most:g}", f"invalid_{name}", name)
    return float(value)


def _whole(values: dict[str, Any], name: str, most: int) -> int | None:
    value = values.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
        raise _bad(f"{name} must be a positive integer", f"invalid_{name}", name)
    if value > most:
        raise _bad(f"{name} must be <= {most}", f"invalid_{name}", name)
    return value


def _model(values: dict[str, Any], config: Config) -> str:
    """Return the name of the route: the model as it is named, or "provider:model" where a provider is."""
    model = _text(values, "model")
    if len(model) > _MAX_MODEL or not model.isprintable():
        raise _bad(f"model must be at most {_MAX_MODEL} printable characters", "invalid_model", "model")
    provider = _text(values, "provider")
    if not provider:
        return model or "auto"
    if len(provider) > _MAX_MODEL or not config.knows(provider):
        raise _bad(f"provider must be one of: {_PROVIDERS}; or another one that this server knows", "invalid_provider",
                   "provider")  # fmt: skip
    name = config.provider_name(provider)
    if model.startswith(f"{name}:"):
        return model
    return f"{name}:{'auto' if model.lower() in ('', 'auto') else model}"


# ---------------------------------------------------------------------------------------------------------- messages


def _messages(values: dict[str, Any]) -> list[Any]:
    prompt, messages = values.get("prompt"), values.get("messages")
    if prompt is not None:
        if not isinstance(prompt, str):
            raise _bad("prompt must be a string", "invalid_prompt", "prompt")
        if not prompt:
            raise _bad("prompt must not be empty", "invalid_prompt", "prompt")
        return [{"role": "user", "content": prompt}]
    if messages is None:
        raise _bad("Request must include a messages array or prompt string", "missing_input", None)
    problem = _problem(messages)
    if problem:
        raise _bad(problem, "invalid_messages", "messages")
    return messages


def _problem(messages: Any) -> str:
    """Return what A says of messages that neither dialect takes; the rest is for the decoder."""
    if not isinstance(messages, list):
        return "messages must be an array"
    if not messages:
        return "messages must not be empty"
    for message in messages:
        if not isinstance(message, dict):
            return "Each message must be a JSON object"
        role: Any = message.get("role")
        if role is None:
            return "Each message must include a role"
        if not isinstance(role, str):
            return "message.role must be a string"
        if role.lower() not in _ROLES:
            return "message.role must be one of: system, user, assistant, tool"
        content: Any = message.get("content")
        if content is None and role.lower() != "assistant":
            return "Each message must include content"
        if content is not None and not isinstance(content, (str, list)):
            return "message.content must be a string"
    return ""


def _prompt(messages: list[Any]) -> str:
    """Return the text of the last user message, "" where there is none."""
    content: Any = next((m.get("content") for m in reversed(messages) if m["role"].lower() == "user"), "")
    if isinstance(content, str):
        return content
    parts: list[Any] = content if isinstance(content, list) else []
    return "\n".join([str(part.get("text", "")) for part in parts if isinstance(part, dict) and "text" in part])


# ------------------------------------------------------------------------------------------------------------- tools


def _tools(values: dict[str, Any]) -> tuple[list[tuple[str, str]], list[Any]]:
    """Return the server tools that are named in A's short form, and the client's own in OpenAI's."""
    tools = values.get("tools")
    if tools is None:
        return [], []
    if not isinstance(tools, list):
        raise _bad("tools must be an array", "invalid_tools", "tools")
    named: list[tuple[str, str]] = []
    own: list[Any] = []
    for tool in tools:
        if not isinstance(tool, dict):
            raise _bad("Each tool must be a JSON object", "invalid_tools", "tools")
        if "function" in tool or "type" in tool:
            own.append(tool)
            continue
        name, said = _short_tool(tool)
        if any(name == other for other, _ in named):
            raise _bad("tool names must be unique", "invalid_tools", "tools")
        named.append((name, said))
    return named, own


def _short_tool(tool: dict[str, Any]) -> tuple[str, str]:
    name, said = tool.get("name"), tool.get("description") or ""
    problem = ""
    if name is None:
        problem = "Each tool must include a name"
    elif not isinstance(name, str):
        problem = "tool.name must be a string"
    elif not name.strip():
        problem = "tool.name must not be empty"
    elif not _TOOL_NAME.fullmatch(name.strip()):
        problem = "tool.name must be 1-64 chars using letters, numbers, _, -, or ."
    elif not isinstance(said, str):
        problem = "tool.description must be a string"
    if problem:
        raise _bad(problem, "invalid_tools", "tools")
    return str(name).strip(), str(said)


def _choice(values: dict[str, Any], named: list[str], own: list[Any]) -> tuple[str, Any]:
    """Return the choice among the server's tools, and what OpenAI's dialect is to be told of it (None: nothing)."""
    choice = values.get("tool_choice")
    if isinstance(choice, dict):
        return "auto", choice if own else None
    text = _text(values, "tool_choice")
    word = text.lower()
    if word in (*_CHOICES, "any", ""):
        if not (named or own) and word in ("required", "any"):
            raise _bad("tool_choice requires tools unless set to auto or none", "invalid_tool_choice", "tool_choice")
        return word or "auto", word if word and own else None
    if text in named:
        return text, None
    functions = [tool.get("function") for tool in own]
    if any(isinstance(function, dict) and function.get("name") == text for function in functions):
        # A name of the client's own: OpenAI's form of the same choice.
        return "auto", {"type": "function", "function": {"name": text}}
    raise _bad("tool_choice must be one of: auto, none, required, or a requested tool name", "invalid_tool_choice",
               "tool_choice")  # fmt: skip


# ------------------------------------------------------------------------------------------------------------- loops


def _loop(values: dict[str, Any]) -> LoopAsked | None:
    """Return the loop that is asked for: by its mode, by `agent_loop`, or by its number of turns; never by its end."""
    mode = _text(values, "loop_mode").lower()
    if mode not in ("", "basic", "agent"):
        raise _bad("loop_mode must be one of: basic, agent", "invalid_loop_mode", "loop_mode")
    if "loop_mode" not in values and _flag(values, "agent_loop"):
        mode = "agent"
    until, turns = _text(values, "loop_until"), _whole(values, "loop_max_turns", _MAX_LOOPS)
    if not mode and turns is None:
        return None
    return LoopAsked("agent" if mode == "agent" else "basic", until or "DONE", turns or 8)
