"""Slash commands that only show something."""

from __future__ import annotations

from typing import Any

from windlass.apps.tui.paint import one_line
from windlass.apps.tui.status import money
from windlass.apps.tui.talk import Talk
from windlass.core import json
from windlass.core.errors import ConfigError
from windlass.core.ports import TurnView
from windlass.core.request import ToolSpec
from windlass.tools.todo import todos

__all__ = ["cost", "expand", "loaded", "mcp", "policy", "skills", "thinking", "todo", "tools", "vim"]


async def cost(talk: Talk, _argument: str) -> None:
    """Print what the conversation used."""
    status = talk.transcript.status
    usage = status.usage
    read = 100 * usage.cache_read_tokens // usage.input_tokens if usage.input_tokens else 0
    lines = [
        f"input {usage.input_tokens} tokens, {read}% of them from the cache; output {usage.output_tokens}"
        f" ({usage.reasoning_tokens} of them reasoning)",
        f"cost {money(status.cost)}" + ("; a price is not known" if status.cost is None else ""),
    ]
    if usage.estimated:
        lines.append("Counts are estimated: the provider reported none.")
    for line in lines:
        talk.note(line)


def _specs(talk: Talk) -> list[ToolSpec]:
    agent = talk.agent
    view = TurnView(
        run_id="", session_id=talk.session.id, turn=0, state=talk.session.state, workspace=agent.workspace,
        aliases=agent.tool_aliases,
    )  # fmt: skip
    specs = [bound.spec for bound in agent.tools.values()]
    known = {spec.name for spec in specs}
    for capability in agent.capabilities:
        specs.extend([tool.spec for tool in capability.tools(view) if tool.spec.name not in known])
    return specs


async def tools(talk: Talk, _argument: str) -> None:
    """Print the tools, one line each."""
    for spec in _specs(talk):
        reads = " (reads only)" if spec.annotations.read_only else ""
        first = one_line((spec.description or "").split("\n", 1)[0])
        talk.transcript.write(
            talk.painter.line((f"  {one_line(spec.name)}", "tool"), (f"{reads} {first}", "dim"), indent=4)
        )
    if not _specs(talk):
        talk.note("The model has no tools.")


def _status(talk: Talk, room: str) -> list[tuple[str, str]] | None:
    """Return what the capability of a module named `room` says of itself, None where there is none."""
    for capability in talk.agent.capabilities:
        report: Any = getattr(capability, "status", None)
        if type(capability).__module__.rpartition(".")[2].startswith(room) and report is not None:
            return list(report(talk.session.state))
    return None


def _show_status(talk: Talk, room: str, none: str) -> None:
    found = _status(talk, room)
    for name, text in found or []:
        talk.transcript.write(
            talk.painter.line((f"  {one_line(name)}", "tool"), (f"  {one_line(text)}", "dim"), indent=4)
        )
    if not found:
        talk.note(none)


async def mcp(talk: Talk, _argument: str) -> None:
    """Print the MCP servers."""
    await talk.agent.warmup()
    _show_status(talk, "mcp", "No MCP server is configured.")


async def skills(talk: Talk, _argument: str) -> None:
    """Print the skills."""
    await talk.agent.warmup()
    _show_status(talk, "skills", "No skill was found.")


async def todo(talk: Talk, _argument: str) -> None:
    """Print the model's list."""
    marks = {"completed": "[x]", "in_progress": "[>]"}
    found = todos(talk.session.state)
    for row in found:
        talk.note(f"{marks.get(row['status'], '[ ]')} {one_line(row['content'])}")
    if not found:
        talk.note("The model keeps no list.")


async def policy(talk: Talk, argument: str) -> None:
    """Print what each tool's calls need, or why one call would be allowed, asked about or refused."""
    name, _, text = argument.partition(" ")
    decider = talk.agent.policy
    found = [spec for spec in _specs(talk) if not name or spec.name == name]
    if not found:
        raise ConfigError(f"There is no tool {name!r}.", hint="/tools lists them.")
    if not name:
        talk.note(f"mode: {talk.transcript.status.mode}")
        for spec in found:
            decision = decider.decide(spec, {})
            role = {"allow": "ok", "deny": "error"}.get(decision.action, "warning")
            talk.transcript.write(
                talk.painter.line(
                    f"  {one_line(spec.name)}: ", (decision.action, role), (f" {decision.reason}", "dim"), indent=4
                )
            )
        return
    try:
        arguments: Any = json.loads(text or "{}")
    except json.JsonError as error:
        raise ConfigError(f"The arguments are no JSON: {error}.") from None
    if not isinstance(arguments, dict):
        raise ConfigError("The arguments of a call are a JSON object.")
    explain: Any = getattr(decider, "explain", None)
    lines: list[str] = [decider.decide(found[0], arguments).reason] if explain is None else explain(found[0], arguments)
    for line in lines:
        talk.note(one_line(line))


async def loaded(talk: Talk, _argument: str) -> None:
    """Print which instruction files were read."""
    for line in talk.built.loaded:
        talk.note(f"  {one_line(line)}")
    if not talk.built.loaded:
        await talk.agent.warmup()
        _show_status(talk, "instructions", "No instruction file was read.")


async def expand(talk: Talk, argument: str) -> None:
    """Print a tool call with everything that is kept of it."""
    number = argument.lstrip("#")
    if number and not number.isdecimal():
        raise ConfigError(f"/expand takes the number of a call, not {argument!r}.")
    text = talk.lines.expanded(int(number) if number else None)
    if text is None:
        raise ConfigError("There is no such call." if number else "No tool has been called yet.")
    talk.transcript.rest()
    talk.transcript.write(text)


async def thinking(talk: Talk, _argument: str) -> None:
    """Show reasoning in the text, or only below it."""
    talk.transcript.verbose = not talk.transcript.verbose
    talk.note(f"Reasoning is {'shown' if talk.transcript.verbose else 'no longer shown'}.")


async def vim(talk: Talk, _argument: str) -> None:
    """Switch the input line's keys."""
    switch: Any = getattr(talk.surface, "vim", None)
    if switch is None:
        raise ConfigError("This input line has no keys of its own.")
    talk.note(f"The input line has {'vi' if switch() else 'emacs'} keys.")
