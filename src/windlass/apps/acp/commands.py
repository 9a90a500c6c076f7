"""The slash commands that a client is told of: what a person can do besides asking. Each answers in Markdown.

Source: https://agentclientprotocol.com/protocol/slash-commands. A skill is a command too: `/name what to do`.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import Protocol

from acp.schema import AvailableCommand, AvailableCommandInput, UnstructuredCommandInput
from msgspec import Struct

from windlass.agent.policy import MODES
from windlass.agent.session import Session
from windlass.apps.acp.build import Built
from windlass.core.errors import ConfigError
from windlass.core.text import visible
from windlass.core.usage import format_cost

__all__ = ["COMMANDS", "CONTINUE", "Command", "Host", "found", "offered"]

_COMMAND = re.compile(r"/([a-z][a-z0-9_-]*)(?:\s+(.*))?", re.DOTALL)


class Host(Protocol):
    """What a command is given: the session and what it was built with."""

    @property
    def session(self) -> Session: ...
    @property
    def built(self) -> Built: ...
    async def choose_mode(self, mode: str) -> None: ...
    async def choose_model(self, model: str) -> None: ...
    def model_name(self) -> str: ...


class Command(Struct, frozen=True):
    """A command: what it takes, what it does, and who does it."""

    takes: str
    text: str
    run: Callable[[Host, str], Awaitable[str]]


async def _compact(host: Host, argument: str) -> str:
    if argument not in ("", "summary", "tail"):
        raise ConfigError(f"There is no strategy {argument!r}.", hint="/compact, or /compact tail.")
    event = await host.session.compact("tail" if argument == "tail" else "summary")
    if event is None:
        return "Nothing could be made shorter."
    return f"The model now reads {event.after_tokens} tokens of this conversation instead of {event.before_tokens}."


async def _undo(host: Host, argument: str) -> str:
    words = [word for word in argument.split() if word != "force"]
    if len(words) > 1 or any(not word.isdecimal() for word in words):
        raise ConfigError(f"/undo takes a number of turns, and force, not {argument!r}.")
    paths = await host.session.undo(int(words[0]) if words else 1, force="force" in argument.split())
    return _paths("Undone", paths)


async def _redo(host: Host, argument: str) -> str:
    return _paths("Redone", await host.session.redo(force=argument == "force"))


def _paths(how: str, paths: list[str]) -> str:
    return "\n".join([f"{how}:", *[f"- `{visible(path)}`" for path in paths]]) if paths else "No file had to change."


async def _mode(host: Host, argument: str) -> str:
    if argument:
        await host.choose_mode(argument)
    return f"Mode: {host.built.permissions.mode} (of {', '.join(MODES[:-1])})."


async def _model(host: Host, argument: str) -> str:
    if argument:
        await host.choose_model(argument)
    return f"Model: {visible(host.model_name())}."


async def _tools(host: Host, _argument: str) -> str:
    rows = [f"- `{name}`: {bound.spec.description.splitlines()[0]}" for name, bound in host.built.agent.tools.items()]
    return "\n".join(rows) or "There are no tools."


async def _cost(host: Host, _argument: str) -> str:
    kept = host.session.conversation
    usage = kept.usage
    about = "about " if usage.estimated else ""
    return (
        f"{kept.turns} answers, {about}{usage.input_tokens} tokens read ({usage.cache_read_tokens} from the cache), "
        f"{usage.output_tokens} written, cost {format_cost(kept.cost)}."
    )


async def _status(host: Host, kind: str) -> str:
    await host.built.agent.warmup()
    rows: list[str] = []
    for each in host.built.agent.capabilities:
        status = getattr(each, "status", None)
        if type(each).__name__ == kind and status is not None:
            rows += [f"- `{visible(name)}`: {visible(line)}" for name, line in status(host.session.state)]
    return "\n".join(rows) or "There are none."


async def _skills(host: Host, _argument: str) -> str:
    return await _status(host, "Skills")


async def _mcp(host: Host, _argument: str) -> str:
    return await _status(host, "Mcp")


async def _notices(host: Host, _argument: str) -> str:
    return "\n".join([f"- {visible(text)}" for text in host.built.notices]) or "Nothing to say."


COMMANDS: dict[str, Command] = {
    "compact": Command("[tail]", "shorten what the model reads, by a summary, or by leaving out old output", _compact),
    "undo": Command("[TURNS] [force]", "take back what the last turns did to files", _undo),
    "redo": Command("[force]", "do again what /undo took back", _redo),
    "mode": Command("[NAME]", "show the permission mode, or change it", _mode),
    "model": Command("[NAME]", "show the model, or change it for this session", _model),
    "skills": Command("", "skills and their state", _skills),
    "mcp": Command("", "MCP servers and their state", _mcp),
    "tools": Command("", "the agent's own tools", _tools),
    "cost": Command("", "tokens and cost of this session", _cost),
    "notices": Command("", "what was left out or is not held: trust, sandbox, rules", _notices),
}
#: Goes on with an answer that the end of the program cut off: a prompt without words of its own.
CONTINUE = "continue"


def found(text: str) -> tuple[str, str] | None:
    """Return the name and the argument of a command that a prompt is, None for any other prompt."""
    match = _COMMAND.fullmatch(text.strip())
    if match is None or match[1] not in (*COMMANDS, CONTINUE):
        return None
    return match[1], (match[2] or "").strip()


def offered(skills: dict[str, str]) -> list[AvailableCommand]:
    """Return what a client may show; `skills` are names and descriptions."""
    rows = {name: (command.takes, command.text) for name, command in COMMANDS.items()}
    rows[CONTINUE] = ("", "go on with an answer that was cut off")
    for name, text in skills.items():
        rows.setdefault(name, ("what to do", text))
    return [
        AvailableCommand(
            name=name,
            description=text,
            input=AvailableCommandInput(root=UnstructuredCommandInput(hint=takes)) if takes else None,
        )
        for name, (takes, text) in rows.items()
    ]
