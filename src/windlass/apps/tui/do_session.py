"""Slash commands that change the conversation: its model, its session, its place in it."""

from __future__ import annotations

from pathlib import Path

from windlass.agent.conversation import live
from windlass.agent.session import Session
from windlass.apps.cli.common import known_session
from windlass.apps.tui.modes import mode_names, mode_of, set_mode
from windlass.apps.tui.paint import one_line
from windlass.apps.tui.pick import kept_sessions, rows
from windlass.apps.tui.talk import Talk
from windlass.core import registry
from windlass.core.errors import ConfigError
from windlass.core.events import MessageAdded, RunStarted

__all__ = ["clear", "compact", "continue_", "fork", "mode", "model", "open_session", "redo", "resume", "rewind", "undo"]


async def model(talk: Talk, argument: str) -> None:
    """Show the model or change it. Raises ConfigError for one that cannot be had."""
    status = talk.transcript.status
    if argument:
        _, _, name = registry.model(argument, talk.built.config)
        talk.model = argument
        status.of_model(name)
    talk.note(f"model: {status.model}")
    talk.surface.changed()


async def mode(talk: Talk, argument: str) -> None:
    """Show the permission mode or change it."""
    policy = talk.agent.policy
    now = set_mode(policy, argument) if argument else mode_of(policy)
    talk.note(f"mode: {now} (of {', '.join(mode_names())}; Shift-Tab goes on to the next)")
    talk.show_mode()


async def resume(talk: Talk, argument: str) -> None:
    """Choose a kept session and go on with it."""
    talk.must_rest("resume")
    wanted = argument
    if not argument or argument == "all":
        infos = await kept_sessions(talk.store, None if argument else talk.built.folder, but=talk.session.id)
        if not infos:
            talk.note("There is no other session here." + ("" if argument else " /resume all lists every folder's."))
            return
        chosen = await talk.surface.choose("sessions", rows(infos))
        if chosen is None:
            return
        wanted = infos[chosen].id
    talk.must_rest("resume")
    await talk.switch(await open_session(talk, await known_session(talk.store, wanted)))


async def open_session(talk: Talk, id: str) -> Session:
    """Open a kept session of this agent."""
    session = Session(talk.agent, id, talk.store, metadata={"folder": talk.built.folder or str(Path.cwd())})
    return await session.load()


async def continue_(talk: Talk, _argument: str) -> None:
    """Go on with an answer that was cut off."""
    if talk.session.conversation.run_open is None:
        raise ConfigError("The last answer of this session is whole.", hint="Write what to do next.")
    talk.resume()


async def fork(talk: Talk, _argument: str) -> None:
    """Go on in a copy; the session so far stays as it is."""
    talk.must_rest("fork")
    before = talk.session.id
    await talk.switch(await talk.session.fork(), show=False)
    talk.note(f"forked: {talk.session.id} goes on, {before} stays as it is.")


async def rewind(talk: Talk, _argument: str) -> None:
    """Choose one of the prompts and go back to before it; its text goes into the input line."""
    talk.must_rest("rewind")
    found: list[tuple[int, str]] = []
    started: int | None = None
    for pos, event in live(await talk.session.events()):
        if isinstance(event, RunStarted):
            started = pos
        elif isinstance(event, MessageAdded) and event.source == "prompt":
            found.append((pos if started is None else started, event.message.text))
    if not found:
        raise ConfigError("There is no prompt to go back to.")
    found.reverse()
    chosen = await talk.surface.choose("go back to before", [one_line(text)[:100] for _, text in found])
    if chosen is None:
        return
    pos, text = found[chosen]
    await talk.session.rewind(pos)
    talk.transcript.status.of_conversation(talk.session.conversation)
    talk.surface.put_back(text)
    talk.note("rewound: the conversation goes on as if this prompt had not been sent. Files are as they are: /undo.")


async def undo(talk: Talk, argument: str) -> None:
    """Take back what the last turns did to files."""
    talk.must_rest("undo")
    words = argument.split()
    force = "force" in words
    numbers = [word for word in words if word != "force"]
    if any(not word.isdecimal() for word in numbers) or len(numbers) > 1:
        raise ConfigError(f"/undo takes a number of turns, and force, not {argument!r}.")
    _restored(talk, "undone", await talk.session.undo(int(numbers[0]) if numbers else 1, force=force))


async def redo(talk: Talk, argument: str) -> None:
    """Do again what was undone last."""
    talk.must_rest("redo")
    _restored(talk, "redone", await talk.session.redo(force=argument == "force"))


def _restored(talk: Talk, how: str, paths: list[str]) -> None:
    for path in paths:
        talk.note(f"  {how}: {one_line(path)}")
    if not paths:
        talk.note("No file had to be changed.")


async def compact(talk: Talk, argument: str) -> None:
    """Shorten the model's view now."""
    talk.must_rest("compact")
    if argument not in ("", "tail", "summary"):
        raise ConfigError(f"There is no strategy {argument!r}.", hint="/compact tail, or /compact summary.")
    talk.transcript.waiting.begin("compacting")
    talk.surface.changed()
    try:
        event = await talk.session.compact("tail" if argument == "tail" else "summary")
    finally:
        talk.transcript.waiting.end()
    if event is None:
        talk.note("Nothing could be made shorter.")
    else:
        talk.transcript(event)


async def clear(talk: Talk, _argument: str) -> None:
    """Start a new conversation."""
    talk.must_rest("clear")
    before = talk.session.id if talk.session.messages else ""
    talk.session.reset()
    talk.context.clear()
    talk.transcript.status.of_conversation(talk.session.conversation)
    talk.note("A new conversation." + (f" The last one is kept: /resume {before}" if before else ""))
    talk.surface.changed()
