"""The terminal's program: put the parts together, run them, and leave everything as it was."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.output import ColorDepth

from windlass.agent.session import Session
from windlass.apps.cli.common import INTERRUPTED, open_store, quiet, say
from windlass.apps.cli.options import images_of
from windlass.apps.cli.run import find_session
from windlass.apps.tui.asking import Asker
from windlass.apps.tui.built import Built
from windlass.apps.tui.commands import COMMANDS, handlers
from windlass.apps.tui.complete import InputCompleter
from windlass.apps.tui.files import FileIndex
from windlass.apps.tui.keys import bindings
from windlass.apps.tui.live import LiveScreen
from windlass.apps.tui.modes import mode_names
from windlass.apps.tui.notes import noted
from windlass.apps.tui.paint import Painter
from windlass.apps.tui.reader import Reader
from windlass.apps.tui.screen import FrameOutput
from windlass.apps.tui.stops import Stops
from windlass.apps.tui.talk import Talk
from windlass.apps.tui.themes import THEMES, choose_theme
from windlass.core.config_files import data_home
from windlass.core.errors import WindlassError
from windlass.core.ports import Approver, Store
from windlass.workspaces.process import become_subreaper

__all__ = ["start"]


async def start(
    options: argparse.Namespace, build: Callable[[], Built], approve: Callable[[Built, Approver], None]
) -> int:
    """Run the terminal until the person leaves; returns the exit code."""
    become_subreaper()
    built = build()
    store = open_store(built.config)
    try:
        # Without an id `-r` asks which one, in the terminal itself.
        pick = options.resume == ""
        session = await _session(options, built, store)
        talk = Talk(built, session, store, handlers())
        plain = options.plain or bool(os.environ.get("WINDLASS_SCREEN_READER")) or os.environ.get("TERM") == "dumb"
        code = await (_plain if plain else _live)(options, talk, approve, pick)
        if talk.session.messages and sys.stdin.isatty():
            say(f"Continue with: windlass tui -r {talk.session.id}")
        return code
    finally:
        await store.close()
        await built.agent.destroy()


async def _session(options: argparse.Namespace, built: Built, store: Store) -> Session:
    asked = argparse.Namespace(**vars(options))
    if options.resume == "":
        asked.resume = None
    return await find_session(built.agent, asked, store)


async def _live(options: argparse.Namespace, talk: Talk, approve: Callable[[Built, Approver], None], pick: bool) -> int:
    theme = choose_theme(options.theme, os.environ)
    depth = ColorDepth.DEPTH_1_BIT if theme.name == "mono" else ColorDepth.DEPTH_4_BIT
    output = FrameOutput(sys.stdout, os.environ.get("TERM"), depth, talk.lost)
    folder = Path(talk.built.folder or ".").resolve()
    completer = InputCompleter(FileIndex(folder), {name: row.text for name, row in COMMANDS.items()}, _arguments(talk))
    screen = LiveScreen(talk, theme, output, bindings, completer=completer, history=_history(talk.built))
    painter = Painter(theme, lambda: screen.width)
    talk.on(screen, painter)
    approve(talk.built, Asker(screen, painter, talk.lines))
    stops = Stops(talk.interrupt, talk.leave)
    with suppress(NotImplementedError, RuntimeError, ValueError):
        asyncio.get_running_loop().add_signal_handler(signal.SIGTSTP, screen.suspend)
    await _begin(options, talk, pick)
    with noted(talk.note):
        try:
            code = await screen.app.run_async(handle_sigint=False, set_exception_handler=False)
        except Exception:
            # A terminal that was closed is no error; its modes cannot be restored, and its input has ended.
            if sys.stdin.isatty():
                raise
            code = INTERRUPTED
        code = await _end(talk, stops, code)
    if not sys.stdin.isatty():
        quiet()  # what was still to be written has no reader any more
    return code


async def _plain(
    options: argparse.Namespace, talk: Talk, approve: Callable[[Built, Approver], None], pick: bool
) -> int:
    reader = Reader(talk)
    painter = Painter(THEMES["mono"], lambda: reader.width)
    talk.on(reader, painter)
    approve(talk.built, Asker(reader, painter, talk.lines))
    stops = Stops(talk.interrupt, talk.leave)
    await _begin(options, talk, pick)
    return await _end(talk, stops, await reader.run())


async def _begin(options: argparse.Namespace, talk: Talk, pick: bool) -> None:
    """Print what a person should know first, then what was said before, then take the prompt of the command line."""
    where = talk.built.folder or "memory"
    talk.note(f"windlass: {talk.transcript.status.model} in {where}. /help lists commands and keys.")
    if talk.built.notice:
        talk.note(talk.built.notice, "warning")
    if talk.built.loaded:
        talk.note(f"loaded: {', '.join(talk.built.loaded)}")
    await talk.switch(talk.session)
    talk.images = list(images_of(options.image))
    words = " ".join(options.prompt_words) or options.prompt or options.message
    if pick:
        talk.submit("/resume")
    elif words:
        talk.submit(words)


async def _end(talk: Talk, stops: Stops, code: int) -> int:
    stops.leaving = True
    await talk.close()
    return code


def _arguments(talk: Talk) -> Callable[[str], list[str]]:
    def words(command: str) -> list[str]:
        if command == "mode":
            return mode_names()
        if command == "compact":
            return ["tail", "summary"]
        if command == "policy":
            return list(talk.agent.tools)
        if command == "model" and talk.built.config is not None:
            return sorted(getattr(talk.built.config, "user_providers", ()))
        return list(COMMANDS) if command == "help" else []

    return words


def _history(built: Built) -> History:
    """Open the file of earlier inputs, readable by its owner only; memory where it cannot be made."""
    if built.config is None:
        return InMemoryHistory()
    path = data_home(built.config.environ) / "inputs"
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600))
    except (OSError, WindlassError):
        return InMemoryHistory()
    return FileHistory(path)
