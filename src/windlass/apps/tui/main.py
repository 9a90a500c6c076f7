"""`windlass tui`: the options, and the agent that they describe. Needs the extra `tui`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from windlass.apps.cli.approve import CarefulApprover
from windlass.apps.cli.common import Parser, run_async
from windlass.apps.cli.options import configuration_of, run_parser
from windlass.apps.cli.run import make_speaker
from windlass.apps.tui.built import Built
from windlass.core import registry
from windlass.core.config import Config
from windlass.core.errors import ConfigError
from windlass.core.ports import Approver

__all__ = ["main", "parser"]

_DESCRIPTION = "The coding agent in a terminal. -r without an ID lists the sessions of this folder."
_THEMES = ("dark", "light", "mono")


def parser(name: str) -> Parser:
    """Build the parser: the options of `windlass run`, and how the terminal looks."""
    made = run_parser(name, _DESCRIPTION)
    add = made.add_argument_group("how the terminal looks").add_argument
    add("--theme", choices=_THEMES, help="colours (default: by the terminal's background; NO_COLOR: none)")
    add("--plain", action="store_true", help="only add lines, for screen readers and simple terminals")
    return made


def main(name: str, args: list[str]) -> int:
    """Run the command. Raises ConfigError where there is no terminal, or the extra is missing."""
    options = parser(name).parse_args(args)
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise ConfigError("windlass tui needs a terminal on its input and output.", hint="windlass run works in pipes.")
    start = _extra()
    config = configuration_of(options)
    return run_async(lambda: start(options, lambda: _build(options, config), _approve))


def _extra() -> Any:
    try:
        return registry.load("windlass.apps.tui.app:start")
    except ConfigError as error:
        missing = error.__cause__
        if isinstance(missing, ModuleNotFoundError) and (missing.name or "").split(".")[0] in (
            "prompt_toolkit",
            "rich",
        ):
            raise ConfigError(
                f"The terminal needs {missing.name}, which is not installed.", hint='pip install "windlass[tui]"'
            ) from None
        raise


def _build(options: argparse.Namespace, config: Config) -> Built:
    """Build the agent of the terminal, and what people must be told of it."""
    speaker = make_speaker(options, config)
    folder = "" if options.memory_files else str(Path(options.workspace or ".").resolve())
    # What must be said of the model was said when the agent was made.
    return Built(agent=speaker.agent, config=config, folder=folder)


def _approve(built: Built, person: Approver) -> None:
    """Make the terminal the one that is asked, in the place of the bare terminal that the agent was built with."""
    agent = built.agent
    if isinstance(agent.approver, CarefulApprover):
        agent.approver = CarefulApprover(person, lambda: agent.workspace, yes=False)
    else:
        agent.approver = person
