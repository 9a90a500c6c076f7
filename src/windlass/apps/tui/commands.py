"""The slash commands as a table: docs/terminal.md is made from it. Each is a coroutine function of (talk, argument)."""

from __future__ import annotations

from msgspec import Struct

from windlass.apps.tui import do_files, do_session, do_show
from windlass.apps.tui.keys_table import KEYS
from windlass.apps.tui.talk import Handler, Talk
from windlass.core.errors import ConfigError

__all__ = ["COMMANDS", "Command", "handlers", "table"]


class Command(Struct, frozen=True):
    """A slash command: what it takes, what it does, and who does it."""

    takes: str
    text: str
    handler: Handler


async def _help(talk: Talk, argument: str) -> None:
    """Print the keys and the commands, or one command's line."""
    wanted = argument.removeprefix("/")
    line = talk.painter.line
    shown = {name: command for name, command in COMMANDS.items() if not wanted or name == wanted}
    if not shown:
        raise ConfigError(f"There is no /{wanted}.")
    out = [
        line((f"  /{f'{name} {command.takes}':<22}", "tool"), command.text, indent=4) for name, command in shown.items()
    ]
    if not wanted:
        out.append("\n")
        out.extend([line((f"  {key:<22}", "tool"), text, indent=4) for key, text in KEYS])
        out.append(
            line("  @file attaches a file, !command runs one of yours, \\ before Enter goes on in a new line", indent=4)
        )
    talk.transcript.rest()
    talk.transcript.write("".join(out))


async def _exit(talk: Talk, _argument: str) -> None:
    talk.leave(0)


async def _stop(talk: Talk, _argument: str) -> None:
    talk.stop() if talk.running else talk.note("Nothing runs.")


async def _steer(talk: Talk, argument: str) -> None:
    if not argument:
        raise ConfigError("Write what to tell the running answer.", hint="/steer use the other file")
    talk.steer(argument)


async def _queue(talk: Talk, argument: str) -> None:
    """Show what waits, or forget it."""
    if argument == "clear":
        talk.queue.clear()
    for number, text in enumerate(talk.queue, 1):
        talk.note(f"{number}. {text}")
    if not talk.queue:
        talk.note("Nothing is queued.")
    talk.surface.changed()


COMMANDS: dict[str, Command] = {
    "help": Command("[NAME]", "this list, or one line of it", _help),
    "model": Command("[NAME]", "show the model, or change it for this conversation", do_session.model),
    "mode": Command("[NAME]", "show the permission mode, or change it", do_session.mode),
    "resume": Command("[ID or all]", "go on with another session of this folder, or of any", do_session.resume),
    "continue": Command("", "go on with an answer that the program's end cut off", do_session.continue_),
    "fork": Command("", "go on in a copy of this session", do_session.fork),
    "rewind": Command("", "go back to before one of your prompts", do_session.rewind),
    "undo": Command("[TURNS] [force]", "take back what the last turns did to files", do_session.undo),
    "redo": Command("[force]", "do again what /undo took back", do_session.redo),
    "compact": Command(
        "[tail]", "shorten what the model reads, by a summary, or by leaving out old output", do_session.compact
    ),
    "clear": Command("", "start a new conversation; this one is kept", do_session.clear),
    "steer": Command("TEXT", "tell the running answer something before its next request", _steer),
    "stop": Command("", "stop what runs", _stop),
    "queue": Command("[clear]", "show what waits for its turn, or forget it", _queue),
    "cost": Command("", "tokens and cost of this conversation", do_show.cost),
    "tools": Command("", "what the model may call", do_show.tools),
    "mcp": Command("", "MCP servers and their state", do_show.mcp),
    "skills": Command("", "skills and their state", do_show.skills),
    "policy": Command("[TOOL [JSON]]", "what is allowed, and why", do_show.policy),
    "loaded": Command("", "instruction files that were read, and where each comes from", do_show.loaded),
    "todo": Command("", "the model's own list", do_show.todo),
    "expand": Command("[N]", "a tool call with its whole output (the last one)", do_show.expand),
    "diff": Command("", "what this session changed in files", do_files.diff),
    "export": Command("[FILE]", "write the conversation as Markdown, or as .jsonl", do_files.export),
    "thinking": Command("", "show the model's reasoning, or no longer", do_show.thinking),
    "vim": Command("", "vi's keys in the input line, or emacs' again", do_show.vim),
    "exit": Command("", "leave", _exit),
}


def handlers() -> dict[str, Handler]:
    """Return name -> handler."""
    return {name: command.handler for name, command in COMMANDS.items()}


def table() -> str:
    """Return the commands as a Markdown table."""
    rows = [f"| `/{f'{name} {command.takes}'.strip()}` | {command.text} |" for name, command in COMMANDS.items()]
    return (
        "\n".join(
            ["| command | what it does |", "|---|---|", *[row.replace("[ID or all]", r"[ID\|all]") for row in rows]]
        )
        + "\n"
    )
