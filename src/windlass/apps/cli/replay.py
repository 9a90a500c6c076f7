"""`windlass replay`: show a recording again; nothing is run and nothing is asked."""

from __future__ import annotations

import sys

from windlass.apps.cli.common import OK, Parser, colored
from windlass.sinks.console import Console
from windlass.sinks.record import read_events, read_lines

__all__ = ["main"]


def main(name: str, args: list[str]) -> int:
    """Run the command."""
    parser = Parser(name, "Show a recorded run again, byte for byte; runs nothing.")
    parser.add_argument("file", help="a recording of windlass run --record, or its stream-json output")
    parser.add_argument("--show", action="store_true", help="as a person saw it, instead of the recorded lines")
    options = parser.parse_args(args)
    if options.show:
        console = Console(color=colored())
        for event in read_events(options.file):
            console(event)
        return OK
    # Every line is checked before the first byte leaves, so that a damaged recording gives nothing rather than half.
    for _ in read_events(options.file):
        pass
    for _, line in read_lines(options.file):
        sys.stdout.buffer.write(line + b"\n")
    sys.stdout.buffer.flush()
    return OK
