"""Measure what a command costs in the sandbox, beside a bare spawn and an unconfined workspace, taken in turns.

Usage: python bench/sandbox.py [ROUNDS]

Prints the median, and the fastest, in milliseconds; the difference to a bare spawn is what confinement costs.
"""

from __future__ import annotations

import asyncio
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from windlass.workspaces.local import LocalWorkspace
from windlass.workspaces.sandbox import SandboxWorkspace

WORDS = ["true"]


async def bare() -> None:
    """Start a process and wait for its end, with nothing around it."""
    subprocess.run(WORDS, check=True, stdin=subprocess.DEVNULL)  # noqa: ASYNC221  # blocking is what is measured


async def measure(ways: dict[str, Callable[[], Awaitable[object]]], rounds: int) -> dict[str, list[float]]:
    """Return the milliseconds of each way, round by round, so that a busy moment falls on all of them."""
    spent: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            begin = time.perf_counter()
            await way()
            spent[name].append((time.perf_counter() - begin) * 1e3)
    return spent


async def main(rounds: int) -> None:
    """Make a small repository, run everything in it, print the table."""
    with tempfile.TemporaryDirectory() as folder:
        for name in (".git/config", "AGENTS.md", "src/main.py"):
            (Path(folder) / name).parent.mkdir(exist_ok=True)
            (Path(folder) / name).touch()
        spaces = {"local": LocalWorkspace(folder), "sandbox": SandboxWorkspace(folder)}
        spaces["listed hosts"] = SandboxWorkspace(folder, network=["example.com"])
        spaces["landlock"] = SandboxWorkspace(folder, level="landlock")
        ways: dict[str, Callable[[], Awaitable[object]]] = {"bare spawn": bare}
        for name, space in spaces.items():
            ways[name] = lambda space=space: space.exec(WORDS)
        await measure(ways, 3)
        spent = await measure(ways, rounds)
        floor = statistics.median(spent["bare spawn"])
        for name, each in spent.items():
            median = statistics.median(each)
            print(f"{name:<13} median {median:6.2f} ms, +{median - floor:5.2f}; fastest {min(each):6.2f} ms")
        for space in spaces.values():
            await space.close()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 100))
