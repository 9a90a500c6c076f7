"""`windlass agent`: reference E's conversation, line by line; `--message` says one thing and ends."""

from __future__ import annotations

import argparse
import sys

from windlass.apps.cli.common import OK, Parser, open_store, run_async, say
from windlass.apps.cli.interrupts import Interrupts, interruptible
from windlass.apps.cli.options import configuration_of, images_of, run_parser
from windlass.apps.cli.run import find_session, make_speaker, one_run
from windlass.apps.cli.run import main as run_main
from windlass.apps.cli.terminal import read_line
from windlass.core.config import Config
from windlass.core.messages import Blob
from windlass.workspaces.process import become_subreaper

__all__ = ["main", "parser"]

_HELP = "Type a message and Enter. /clear starts a new conversation, /exit or Ctrl-D ends, Ctrl-C stops an answer."


def main(name: str, args: list[str]) -> int:
    """Run the command."""
    options = parser(name).parse_args(args)
    if options.message or options.prompt_words or options.prompt or not sys.stdin.isatty():
        return run_main(name, args)
    config, images = configuration_of(options), images_of(options.image)
    return run_async(lambda: interruptible(lambda interrupts: _talk(interrupts, options, config, images)))


def parser(name: str) -> Parser:
    """Build the parser."""
    return run_parser(name, "Talk to an agent, line by line; with a prompt, say that one thing and end.")


async def _talk(interrupts: Interrupts, options: argparse.Namespace, config: Config, images: list[Blob]) -> int:
    become_subreaper()
    speaker, store = make_speaker(options, config), open_store(config)
    try:
        session = await find_session(speaker.agent, options, store)
        say(_HELP)
        while True:
            sys.stderr.write("> ")
            sys.stderr.flush()
            line = await read_line(sys.stdin.fileno())
            text = (line or "").strip()
            if line is None or text == "/exit":
                if session.messages:
                    say(f"Continue with: windlass agent -r {session.id}")
                return OK
            if text == "/clear":
                session.reset()
            elif text.startswith("/") and text[1:].isalpha():
                say(_HELP)
            elif text:
                await one_run(interrupts, speaker, session, options, text, images)
                images = []
    finally:
        await store.close()
        await speaker.agent.destroy()
