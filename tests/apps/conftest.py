"""Fixtures of the tests that start the program."""

from __future__ import annotations

from collections.abc import Callable, Generator
from pathlib import Path

import pytest

from tests.apps.helpers import Cli, Terminal


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    """`windlass` with a folder and a home of its own."""
    return Cli(tmp_path)


@pytest.fixture
def terminal(cli: Cli) -> Generator[Callable[..., Terminal]]:
    """Start the program on a pseudo-terminal; it is hung up at the end of the test."""
    opened: list[Terminal] = []

    def start(*args: str, **env: str) -> Terminal:
        opened.append(Terminal(cli, *args, **env))
        return opened[-1]

    yield start
    for each in opened:
        each.close()
