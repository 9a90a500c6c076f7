"""Fixtures of the terminal's tests."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncGenerator, Callable, Generator
from pathlib import Path

import pytest

from tests.apps.helpers import Cli
from tests.apps.tui.helpers import Counted, Tmux


@pytest.fixture
async def tmux(cli: Cli) -> AsyncGenerator[Tmux]:
    """A tmux of its own; its socket lies in a short path, which the kernel asks for."""
    with tempfile.TemporaryDirectory(prefix="w-") as folder:
        made = Tmux(cli, Path(folder))
        yield made
        await made.close()


@pytest.fixture
def counted(cli: Cli) -> Generator[Callable[..., Counted]]:
    """Start the program on a pseudo-terminal whose frames are counted."""
    opened: list[Counted] = []

    def start(*args: str, width: int = 80, height: int = 24, **env: str) -> Counted:
        opened.append(Counted(cli, *args, width=width, height=height, **env))
        return opened[-1]

    yield start
    for each in opened:
        each.close()
