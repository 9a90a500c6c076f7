"""The help of every command as text, and the blocks of docs/cli.md that hold it.

`python scripts/cli_help.py` prints it; `--write` puts it between `<!-- help:NAME -->` and `<!-- /help -->`.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from pathlib import Path

from windlass.apps.cli import COMMANDS, usage
from windlass.apps.cli.completion import parser_of

PAGE = Path(__file__).parents[1] / "docs" / "cli.md"
_BLOCK = re.compile(r"(<!-- help:([\w ]+) -->\n)(.*?)(<!-- /help -->)", re.DOTALL)


def render() -> dict[str, str]:
    """Return command -> help text at 80 columns; `windlass` is the program, `sessions fork` a verb of a command."""
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "80"
    try:
        texts = {"windlass": usage()}
        for name in COMMANDS:
            parser = parser_of(name)
            texts[name] = parser.format_help()
            for action in parser._actions:
                if isinstance(action, argparse._SubParsersAction):
                    for verb, below in action.choices.items():
                        texts[f"{name} {verb}"] = below.format_help()
        return texts
    finally:
        if before is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = before


def filled(page: str) -> str:
    """Return the page with every block's text as `render` gives it. Raises KeyError for a block of no command."""
    texts = render()
    return _BLOCK.sub(lambda match: f"{match[1]}```text\n{texts[match[2]]}```\n{match[4]}", page)


def blocks(page: str) -> list[str]:
    """Return the names of the page's blocks in order."""
    return [match[2] for match in _BLOCK.finditer(page)]


def main() -> int:
    """Print the texts, or write them into the page."""
    if "--write" in sys.argv[1:]:
        PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
        return 0
    sys.stdout.write("\n".join(render().values()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
