"""The server's own tools, reference A's: `echo`, `utc`, and `cmd` and `bash` where they are switched on.

A request names them in A's short form, `tools: [{"name": "utc"}]`. A choice of one by name is answered by the server
alone; otherwise the prompt decides what runs before the model is asked; in a loop the model calls them itself.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from windlass.core import clock
from windlass.core.ports import Tool
from windlass.core.request import ToolAnnotations, ToolSpec
from windlass.server.commands import Shell, find_command, run_prompt, run_shell
from windlass.server.settings import ServerSettings
from windlass.tools.function import SpecTool

__all__ = ["FALLBACK", "NAMES", "loop_tools", "prompt_tools", "run_tool"]

NAMES = ("echo", "utc", "cmd", "bash")
#: What is answered when the model had nothing to say to what tools found.
FALLBACK = "Tool-assisted fallback response (model returned empty text):"
#: Seconds beyond a command's own limit in which its tree is ended and its report made.
_GRACE = 5.0


async def run_tool(name: str, prompt: str, messages: int, settings: ServerSettings) -> str:
    """Run a tool on the text of the last user message and return A's report; `messages` is how many came."""
    if name == "echo":
        return f"DEBUG_TOOL_OK\ntool=echo\nprompt={prompt}\nmessages={messages}"
    if name == "utc":
        return _utc()
    return await run_prompt("cmd" if name == "cmd" else "bash", prompt, settings)


def _utc() -> str:
    now = clock.now_ns()
    return f"DEBUG_TOOL_OK\ntool=utc\nunix_utc={now // 1_000_000_000}\nutc_millis={now // 1_000_000}"


async def prompt_tools(names: Iterable[str], prompt: str, settings: ServerSettings) -> str:
    """Run the tools that a prompt calls for and return their results as one text, "" when it calls for none.

    `utc` runs where the prompt speaks of "utc" or "time", `cmd`, else `bash`, where it asks for a command.
    """
    asked, lower, results = set(names), prompt.lower(), list[str]()
    if "utc" in asked and ("utc" in lower or "time" in lower):
        results.append(f"[tool=utc]\n{_utc()}")
    shell: Shell | None = "cmd" if "cmd" in asked else "bash" if "bash" in asked else None
    if shell is not None and (command := find_command(prompt)) is not None:
        results.append(f"[tool={shell}]\n{await run_shell(shell, command, settings)}")
    return "\n\n".join(["Tool execution results:", *results]) if results else ""


def loop_tools(named: Iterable[tuple[str, str]], settings: ServerSettings) -> list[Tool]:
    """Return the tools of a loop for (name, the client's description): real ones; a shell only where it is on."""
    return [_tool(name, said, settings) for name, said in named if settings.tool_exec or name not in ("cmd", "bash")]


def _tool(name: str, said: str, settings: ServerSettings) -> Tool:
    if name == "utc":

        async def utc(args: dict[str, Any]) -> str:
            del args
            return _utc()

        return SpecTool(_spec(name, said or "Return the time in UTC.", read_only=True), utc)
    if name == "echo":

        async def echo(args: dict[str, Any]) -> str:
            return f"DEBUG_TOOL_OK\ntool=echo\nprompt={args['text']}\nmessages=1"

        return SpecTool(_spec(name, said or "Return the text.", "text", read_only=True), echo)
    shell: Shell = "cmd" if name == "cmd" else "bash"

    async def run(args: dict[str, Any]) -> str:
        return await run_shell(shell, args["command"], settings)

    spec = _spec(name, said or f"Run one command with {shell}; pipes and redirections are refused.", "command")
    return SpecTool(spec, run, timeout=settings.tool_exec_timeout + _GRACE)


def _spec(name: str, description: str, argument: str = "", *, read_only: bool = False) -> ToolSpec:
    properties = {argument: {"type": "string"}} if argument else {}
    schema: dict[str, Any] = {"type": "object", "properties": properties, "additionalProperties": False}
    if argument:
        schema["required"] = [argument]
    return ToolSpec(name, description, schema, annotations=ToolAnnotations(read_only=read_only))
