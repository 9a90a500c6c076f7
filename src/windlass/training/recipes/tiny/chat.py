"""The embedded model's chat format: the template in its file, the same rendering here, and its single tokens.

ChatML with the tool calls of Qwen2.5 and Hermes. A test compares `render` with the engine's own rendering.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from windlass.training.recipes.tiny.grammar import PARAMETERS

__all__ = [
    "END",
    "FIXED",
    "HONEST",
    "NO_TOOL",
    "SPECIAL",
    "SYSTEM",
    "TEMPLATE",
    "block",
    "call",
    "parameters",
    "response",
]

END: Final = "<|im_end|>"
SPECIAL: Final = ("<|endoftext|>", "<|im_start|>", END)
SYSTEM: Final = "You are a helpful assistant."
#: What is said to everything that no tool of the family does.
HONEST: Final = (
    "I am the tiny built-in model: I can read, write, edit, list and search files and run commands. "
    "For anything else, please configure a real model."
)
NO_TOOL: Final = "No tool here fits. "
_OPEN: Final = (
    "\n\n# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>"
)
_CLOSE: Final = (
    "\n</tools>\n\nFor each function call, return a json object with function name and arguments within "
    "<tool_call></tool_call> XML tags:\n<tool_call>\n"
    '{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>'
)
_TOOL: Final = '\n{"type": "function", "function": {"name": "'
_TEXT: Final = '", "description": "'

_TEMPLATE: Final = (
    """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0]['role'] == 'system' %}
        {{- messages[0]['content'] }}
    {%- else %}
        {{- '@SYSTEM' }}
    {%- endif %}
    {{- "@OPEN" }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "@CLOSE<|im_end|>\\n" }}
{%- else %}
    {%- if messages[0]['role'] == 'system' %}
        {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
    {%- endif %}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) or """
    """(message.role == "assistant" and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {{- '<|im_start|>' + message.role }}
        {%- if message.content %}
            {{- '\\n' + message.content }}
        {%- endif %}
        {%- for tool_call in message.tool_calls %}
            {%- if tool_call.function is defined %}
                {%- set tool_call = tool_call.function %}
            {%- endif %}
            {{- '\\n<tool_call>\\n{"name": "' }}
            {{- tool_call.name }}
            {{- '", "arguments": ' }}
            {{- tool_call.arguments | tojson }}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {%- if (loop.index0 == 0) or (messages[loop.index0 - 1].role != "tool") %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\\n<tool_response>\\n' }}
        {{- message.content }}
        {{- '\\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}
            {{- '<|im_end|>\\n' }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
).replace("@SYSTEM", SYSTEM)
TEMPLATE: Final = _TEMPLATE.replace("@OPEN", json.dumps(_OPEN)[1:-1]).replace("@CLOSE", json.dumps(_CLOSE)[1:-1])


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def parameters(names: Sequence[str]) -> dict[str, Any]:
    """Return the schema of required strings, as the provider reduces it for a model with a card."""
    return {"type": "object", "properties": {name: {"type": "string"} for name in names}, "required": list(names)}


def _after_text(names: Sequence[str]) -> str:
    return f'", "parameters": {_json(parameters(names))}}}}}'


def block(system: str, tools: Sequence[tuple[str, str]]) -> str:
    """Return the beginning of a prompt: the system text and the tools, (name, description) each."""
    lines = [
        f"{_TOOL}{name}{_TEXT}{_json(description)[1:-1]}{_after_text(PARAMETERS[name])}" for name, description in tools
    ]
    return f"<|im_start|>system\n{system}{_OPEN}{''.join(lines)}{_CLOSE}{END}\n"


def call(name: str, arguments: Mapping[str, str]) -> str:
    """Return a call as the model writes it."""
    return f'<tool_call>\n{{"name": "{name}", "arguments": {_json(dict(arguments))}}}\n</tool_call>'


def response(text: str) -> str:
    """Return a user turn that holds a tool's answer, without its beginning `<|im_start|>user`."""
    return f"\n<tool_response>\n{text}\n</tool_response>{END}\n"


def _heads() -> list[str]:
    found: list[str] = []
    for name, names in PARAMETERS.items():
        found.append(f"{_TOOL}{name}{_TEXT}")
        found.append(f'\n{{"name": "{name}", "arguments": {{' + (f'"{names[0]}": "' if names else "}}\n"))
    return found


#: Strings that are single tokens: what never varies. The tags stand alone too, so that a text that holds one is seen.
FIXED: Final = tuple(
    dict.fromkeys(
        (
            "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<tools>", "</tools>",
            _OPEN, _CLOSE, _TOOL, _TEXT, *_heads(), *[_after_text(names) for names in PARAMETERS.values()],
            '\n{"name": "', '", "arguments": {', '", "content": "', '", "old_string": "', '", "new_string": "',
            '", "path": "', '"}}\n', '\\"', "\\n", "\\t", "📄 ", "📁 ", SYSTEM, HONEST, NO_TOOL, "Hello! ",
        )
    )
)  # fmt: skip
