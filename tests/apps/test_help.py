"""The pages about the command line hold what the program says. (Their examples run with all other pages' ones.)"""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

from tests.apps.helpers import Cli
from windlass.apps.cli import COMMANDS
from windlass.apps.cli.info import defaults_page, vendors_page

ROOT = Path(__file__).parents[2]
CLI, CONFIGURATION = ROOT / "docs" / "cli.md", ROOT / "docs" / "configuration.md"


def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("cli_help", ROOT / "scripts" / "cli_help.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_help_texts_of_the_page_are_the_program_s() -> None:
    """`python scripts/cli_help.py --write` makes them again."""
    page, made = CLI.read_text(encoding="utf-8"), script()
    assert made.filled(page) == page
    assert made.blocks(page) == list(made.render())
    assert set(COMMANDS) <= set(made.render())


async def test_the_script_s_texts_are_what_a_user_sees(cli: Cli) -> None:
    texts: dict[str, str] = script().render()
    cli.env["COLUMNS"] = "80"
    for name in ("windlass", "run", "sessions", "sessions fork"):
        done = await cli(*([] if name == "windlass" else name.split()), "--help")
        assert (done.code, done.out, done.err) == (0, texts[name], "")
    assert all(len(line) <= 80 for text in texts.values() for line in text.splitlines())


@pytest.mark.parametrize("name", sorted(COMMANDS))
async def test_every_option_is_explained(name: str) -> None:
    text: str = script().render()[name]
    entries = re.findall(r"^  (-\S.*)$", text, re.MULTILINE)
    # An option without help stands alone on its line and is followed by the next one.
    lines = text.splitlines()
    bare = [e for e in entries if "  " not in e.strip() and not lines[lines.index(f"  {e}") + 1].startswith("     ")]
    assert bare == []


async def test_configuration_md_holds_the_tables(cli: Cli) -> None:
    page = CONFIGURATION.read_text(encoding="utf-8")
    printed = await cli("config", "--defaults")
    assert printed.out == defaults_page()
    assert f"<!-- defaults -->\n{printed.out}<!-- /defaults -->\n" in page
    assert f"<!-- vendors -->\n{vendors_page()}<!-- /vendors -->\n" in page
