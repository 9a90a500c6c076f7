"""`windlass replay`: show a recording again; nothing is run and nothing is asked."""

from __future__ import annotations

import sys

from windlass.apps.cli.common import OK, Parser, colored
from windlass.sinks.console import Console
from windlass.sinks.record import event_of_line, read_lines

__all__ = ["main", "parser"]


def main(name: str, args: list[str]) -> int:
    """Run the command."""
    options = parser(name).parse_args(args)
    # Every line is checked before the first byte leaves, so that a damaged recording gives nothing rather than half.
    lines = list(read_lines(options.file))
    events = [event_of_line(line, f"{options.file}, line {number}") for number, line in lines]
    if options.show:
        console = Console(color=colored(), verbose=options.verbose)
        for event in events:
            console(event)
    else:
        sys.stdout.buffer.writelines([line for _, line in lines])
        sys.stdout.buffer.flush()
    return OK


def parser(name: str) -> Parser:
    """Build the parser."""
    parser = Parser(f"windlass {name}", "Show a recorded run again, byte for byte; runs nothing.", "FILE")
    parser.add_argument("file", metavar="FILE", help="what windlass run --record or --output stream-json wrote")
    parser.add_argument("--show", action="store_true", help="as a person saw it, instead of the recorded lines")
    parser.add_argument("-v", "--verbose", action="store_true", help="with --show: reasoning and whole tool results")
    return parser
