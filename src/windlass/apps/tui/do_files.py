"""Slash commands about files: what the session changed, and writing the conversation down."""

from __future__ import annotations

from contextlib import aclosing
from pathlib import Path

from windlass.apps.cli.hunks import hunks
from windlass.apps.tui.diffs import painted, title
from windlass.apps.tui.talk import Talk
from windlass.core import json
from windlass.core.errors import ConfigError
from windlass.core.messages import Message, Text, ToolCall, ToolResponse, response_text
from windlass.core.ports import Preview
from windlass.stores.jsonl import export_jsonl

__all__ = ["diff", "export"]

_MOST_LINES = 400


async def diff(talk: Talk, _argument: str) -> None:
    """Print what the session's tools changed in files, from before the first change to after the last."""
    changes = await talk.session.changes() if talk.session.messages else []
    if not changes:
        talk.note("This session changed no files. (What shell commands do to files is not seen.)")
    for change in changes:
        preview = Preview(change.path, change.before, change.after)
        found = hunks(preview)
        talk.transcript.write(talk.painter.raw((title(preview, found), "tool")))
        for hunk in found:
            talk.transcript.write(painted(talk.painter, hunk, _MOST_LINES))


async def export(talk: Talk, argument: str) -> None:
    """Write the conversation to a file that must not exist. Raises ConfigError."""
    name = argument or f"windlass-{talk.session.id}.md"
    path = Path(talk.built.folder or ".") / Path(name).expanduser()
    if not talk.session.messages:
        raise ConfigError("There is nothing to write yet.")
    if path.suffix == ".jsonl":
        lines = export_jsonl(talk.store, talk.session.id)
        data = b""
        async with aclosing(lines):
            async for line in lines:
                data += line if line.endswith(b"\n") else line + b"\n"
    else:
        data = "\n\n".join([_markdown(message) for message in talk.session.messages]).encode("utf-8", "replace") + b"\n"
    try:
        with path.open("xb") as file:
            file.write(data)
    except FileExistsError:
        raise ConfigError(f"{path} exists.", hint="Name another file.") from None
    talk.note(f"written: {path}")


def _markdown(message: Message) -> str:
    out: list[str] = [f"## {message.role}"]
    for part in message.parts:
        if isinstance(part, Text):
            out.append(part.content)
        elif isinstance(part, ToolCall):
            arguments = part.arguments_text or json.dumps(part.arguments).decode()
            out.append(f"`{part.name}`\n\n{_fenced(arguments)}")
        elif isinstance(part, ToolResponse):
            out.append(_fenced(response_text(part)))
    return "\n\n".join(out)


def _fenced(text: str) -> str:
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}\n{text}\n{fence}"
