"""`windlass agent`: reference E's conversation, line by line; `--message` says one thing and ends."""

from __future__ import annotations

import argparse
import sys

from windlass.apps.cli.common import OK, configure, open_store, run_async, say
from windlass.apps.cli.options import run_parser
from windlass.apps.cli.run import find_session, make_agent, watched
from windlass.apps.cli.run import main as run_main
from windlass.core.config import Config
from windlass.core.threads import run_in_thread
from windlass.sinks.console import Console

__all__ = ["main"]


def main(name: str, args: list[str]) -> int:
    """Run the command."""
    options = run_parser(name).parse_args(args)
    if options.message or options.prompt_words or options.prompt or not sys.stdin.isatty():
        return run_main(name, args)
    return run_async(lambda: _talk(options, configure({"model": options.model, "provider": options.provider})))


async def _talk(options: argparse.Namespace, config: Config) -> int:
    agent, store = make_agent(options, config), open_store(config)
    try:
        session = await find_session(agent, options, store)
        say("Type a message; /clear forgets, /exit or Ctrl-D ends.")
        while True:
            sys.stderr.write("> ")
            sys.stderr.flush()
            line = await run_in_thread(sys.stdin.readline)
            text = line.strip()
            if not line or text == "/exit":
                return OK
            if text == "/clear":
                session.reset()
            elif text:
                await watched(session.run(text, sinks=[Console(verbose=options.verbose)]), session, options)
    finally:
        await store.close()
        await agent.destroy()
