"""A client that nobody here wrote: acpx from npm, with the official TypeScript SDK, drives the program."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.apps.acp.npm import ACPX, installed
from tests.apps.acp.test_process import there
from tests.apps.helpers import Cli, Done, calls, ended, says
from tests.tools.mcp_npm import node
from windlass.core import clock
from windlass.testing.faults import FaultServer


class Acpx:
    """acpx in the program's folder; its agent is the program, whose process id is in `agent.pid`."""

    def __init__(self, cli: Cli, top: Path) -> None:
        self.cli, self.pid = cli, top / "agent.pid"
        starter = top / "agent.sh"
        starter.write_text(f'#!/bin/sh\necho $$ > "{self.pid}"\nexec "{sys.executable}" -m windlass acp "$@"\n')
        starter.chmod(0o755)
        self._argv = [node(), str(installed(*ACPX)), "--agent", str(starter), "--cwd", str(cli.folder)]
        cli.env["WINDLASS_SANDBOX"] = "none"

    async def start(self, *args: str) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            *self._argv, *args, cwd=self.cli.folder, env=self.cli.env, stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip

    async def __call__(self, *args: str) -> Done:
        return await ended(await self.start(*args))


@pytest.fixture
def acpx(cli: Cli, tmp_path: Path) -> Acpx:
    (cli.folder / "a.txt").write_text("one\ntwo\n")
    return Acpx(cli, tmp_path)


def updates(done: Done, kind: str) -> list[dict[str, Any]]:
    """Return what the client was told, of one kind."""
    rows = [json.loads(line) for line in done.out.splitlines() if line.startswith("{")]
    told = [row["params"]["update"] for row in rows if row.get("method") == "session/update"]
    return [each for each in told if each["sessionUpdate"] == kind]


TASK = [
    calls(("read_file", {"path": "a.txt"}), text="I look."),
    calls(("edit", {"path": "a.txt", "old_string": "two", "new_string": "2"})),
    calls(("shell", {"command": "echo from-the-shell"})),
    says("Done."),
]


async def test_a_whole_task(acpx: Acpx) -> None:
    async with FaultServer(TASK) as server:
        acpx.cli.use(server)
        done = await acpx("--approve-all", "exec", "Make two a digit")
    assert done.code == 0, done.err
    shown = done.out
    assert "Read a.txt (completed)" in shown and "Edit a.txt (completed)" in shown and "Done." in shown
    assert "from-the-shell" in shown and "[done] end_turn" in shown and "a.txt:2" in shown
    assert (acpx.cli.folder / "a.txt").read_text() == "one\n2\n"


async def test_what_it_denies_is_not_done(acpx: Acpx) -> None:
    async with FaultServer(TASK) as server:
        acpx.cli.use(server)
        done = await acpx("--deny-all", "--format", "json", "exec", "Make two a digit")
    assert (acpx.cli.folder / "a.txt").read_text() == "one\ntwo\n"
    ends = [
        each["status"] for each in updates(done, "tool_call_update") if each.get("status") in ("completed", "failed")
    ]
    assert ends == ["completed", "failed", "failed"]
    assert '"stopReason":"end_turn"' in done.out


@pytest.mark.slow
async def test_a_session_is_cancelled_killed_and_gone_on_with(acpx: Acpx) -> None:
    hang = calls(("shell", {"command": "echo $$ > pid; sleep 600"}))
    options = ("--approve-all", "--format", "json", "--ttl", "2")
    owner = 0
    async with FaultServer([hang, says("After the cancel."), hang, says("After the kill.")]) as server:
        acpx.cli.use(server)
        assert (await acpx(*options, "sessions", "new")).code == 0
        try:
            prompt = await acpx.start(*options, "prompt", "go")
            await there(acpx.cli.folder / "pid")
            owner = json.loads((await acpx(*options, "status")).out)["pid"]
            assert '"cancelled":true' in (await acpx(*options, "cancel")).out
            done = await ended(prompt)
            assert '"stopReason":"cancelled"' in done.out
            (acpx.cli.folder / "pid").unlink()

            set_mode = await acpx(*options, "set-mode", "auto-edit")
            assert set_mode.code == 0 and '"mode_set"' in set_mode.out
            assert "After the cancel." in (await acpx(*options, "prompt", "and now?")).out

            prompt = await acpx.start(*options, "prompt", "again")
            await there(acpx.cli.folder / "pid")
            os.kill(int(acpx.pid.read_text()), signal.SIGKILL)
            assert (await ended(prompt)).code != 0
            os.killpg(int((acpx.cli.folder / "pid").read_text()), signal.SIGKILL)

            done = await acpx(*options, "prompt", "still there?")
            assert "After the kill." in done.out, done.err
        finally:
            await acpx(*options, "sessions", "close")
            await gone(owner)
    # One conversation, with everything that happened in it.
    (line,) = [row for row in (await acpx.cli("sessions", "list")).out.splitlines() if "rows" in row]
    kept = await acpx.cli("sessions", "export", line.split()[0])
    kinds = [json.loads(row)["kind"] for row in kept.out.splitlines()]
    assert kinds.count("run.started") == 4 and "After the cancel." in kept.out and "Outcome unknown" in kept.out


async def gone(pid: int) -> None:
    """Wait until a process that is not ours has ended."""
    async with clock.deadline(30.0):
        while pid:
            try:
                os.kill(pid, 0)
            except ProcessLookupError:
                return
            await clock.sleep(0.05)
