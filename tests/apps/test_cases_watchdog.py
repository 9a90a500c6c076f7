"""R78: an event loop that stands still is noticed, and told once, with the place."""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from pathlib import Path

import pytest

from tests.apps.helpers import Cli, calls, ended, hanging, says
from windlass.agent.agent import Agent
from windlass.agent.policy import Policy
from windlass.apps.cli.watchdog import watched
from windlass.core import clock
from windlass.testing.faults import FaultServer
from windlass.testing.scripted import ScriptedProvider, call

#: A tool of somebody's own that is async and blocks all the same.
BLOCKING = '''
import time
from windlass import tool

@tool
async def nap() -> str:
    """Sleep."""
    for _ in range(2):
        time.sleep(1.3)
    return "slept"
'''


def stand_still(seconds: float) -> None:
    time.sleep(seconds)


def spin(seconds: float) -> None:
    """Hold the interpreter's lock in one call of C, as a regular expression that backtracks does."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        sum(range(3_000_000))


@pytest.mark.parametrize("block", [stand_still, spin])
async def test_r78_a_block_is_told_once_with_its_stack(caplog: pytest.LogCaptureFixture, block: object) -> None:
    assert callable(block)
    with watched(asyncio.get_running_loop(), patience=0.15, pause=0.05):
        await asyncio.sleep(0.1)
        for _ in range(2):
            block(0.6)
            await asyncio.sleep(0.1)
    told = [record for record in caplog.records if record.name == "windlass.watchdog"]
    assert told and told[0].levelno == logging.WARNING
    text = told[0].getMessage()
    assert "stood still" in text and block.__name__ in text
    if block is stand_still:
        assert len(told) == 1, [record.getMessage() for record in told]


async def test_r78_a_loop_that_turns_is_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    """Waiting is no block, however long; short work neither."""
    with watched(asyncio.get_running_loop(), patience=0.5, pause=0.02):
        for _ in range(20):
            stand_still(0.01)
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.7)
    assert [record for record in caplog.records if record.name == "windlass.watchdog"] == []


def test_r78_the_watch_ends_with_its_loop_and_before_it(caplog: pytest.LogCaptureFixture) -> None:
    loop = asyncio.new_event_loop()
    with watched(loop, patience=0.01, pause=0.01):
        loop.run_until_complete(asyncio.sleep(0.05))
        loop.close()
        time.sleep(0.05)
    loop = asyncio.new_event_loop()
    with watched(loop, patience=0.01, pause=0.01):
        pass
    loop.close()


async def test_r78_the_program_tells_where_a_plugin_blocks_it(cli: Cli) -> None:
    (cli.home / "napkg").mkdir()
    (cli.home / "napkg" / "__init__.py").write_text("")
    (cli.home / "napkg" / "napping.py").write_text(BLOCKING)
    async with FaultServer([calls(("nap", {})), says("Rested.")]) as server:
        cli.use(server)
        words = ("run", "--yes", "--tools", "napkg.napping:nap", "rest")
        done = await cli(*words, PYTHONPATH=str(cli.home), WINDLASS_DEBUG="1")
    assert done.code == 0 and done.out == "Rested.\n", done.err
    assert done.err.count("The event loop has stood still") == 1 and "in nap" in done.err


async def test_r78_a_program_that_was_suspended_did_not_block(cli: Cli) -> None:
    async with FaultServer([hanging("Once upon")]) as server:
        cli.use(server)
        process = await cli.start("run", "tell", WINDLASS_DEBUG="1")
        assert process.stdout is not None
        assert await process.stdout.readexactly(9) == b"Once upon"
        process.send_signal(signal.SIGSTOP)
        await clock.sleep(2.5)
        process.send_signal(signal.SIGCONT)
        await clock.sleep(0.3)
        process.send_signal(signal.SIGINT)
        done = await ended(process)
    assert done.code == 130 and "stood still" not in done.err


async def test_r78_a_run_with_large_files_lets_the_loop_turn(tmp_path: Path) -> None:
    """Reading, searching, editing and listing much are done beside the loop or in small pieces: no gap of 250 ms."""
    for number in range(200):
        (tmp_path / f"f{number}.py").write_text(f"value = {number}\n" * 200)
    (tmp_path / "large.txt").write_text("a line of text that is long enough\n" * 60_000 + "needle\n")
    gaps: list[float] = []

    async def tick() -> None:
        before = clock.monotonic()
        while True:
            await asyncio.sleep(0.005)
            now = clock.monotonic()
            gaps.append(now - before)
            before = now

    script = [
        call("read_file", path="large.txt", offset=59_000),
        call("grep", pattern="needle", path="."),
        call("glob", pattern="**/*.py"),
        call("edit", path="large.txt", old_string="needle", new_string="thread"),
        call("multi_edit", path="large.txt", edits=[{"old_string": "thread", "new_string": "needle"}]),
        call("shell", command="yes | head -c 20000000"),
        call("list_files", path="."),
        "Done.",
    ]
    agent = Agent(ScriptedProvider(script), tools="coding", workspace=str(tmp_path), policy=Policy("allow"))
    ticking = asyncio.create_task(tick())
    result = await agent.run("work", loop_detector=0)
    ticking.cancel()
    await agent.destroy()
    assert result.stop_reason == "end_turn" and len(gaps) > 10
    # What the machine itself took away from us is no gap of ours: other programs run on it.
    assert max(gaps) < 0.25 or sorted(gaps)[-3] < 0.1, sorted(gaps)[-5:]
