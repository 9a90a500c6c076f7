"""R71: what signals do to a run, and that its session goes on afterwards."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from tests.apps.helpers import PATIENCE, Cli, asked, calls, ended, hanging, says, tool_results
from windlass.core import clock
from windlass.core.events import RunFinished, decode_event
from windlass.testing.faults import FaultServer, Reply, Stream

#: A command with a child of its own, neither of which heeds polite requests; `up` appears when both run.
STUBBORN = "trap '' INT TERM HUP; sleep 9871 & echo $$ $! > up.tmp; mv up.tmp up; sleep 9872"


async def appears(path: Path) -> str:
    async with clock.deadline(PATIENCE):
        while not path.exists():
            await clock.sleep(0.01)
    return path.read_text()


def running(folder: Path) -> list[int]:
    """The processes of a command in this folder, by the host's numbers: inside the sandbox they have others."""
    found: list[int] = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words, cwd = (entry / "cmdline").read_bytes().split(b"\0"), os.readlink(entry / "cwd")
            except OSError:
                continue
            if Path(cwd) == folder.resolve() and words[0] in (b"sleep", b"bash", b"/bin/bash", b"/usr/bin/bash"):
                found.append(int(entry.name))
    return found


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


async def all_gone(pids: list[int]) -> None:
    async with clock.deadline(PATIENCE):
        while any(alive(pid) for pid in pids):
            await clock.sleep(0.01)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
async def test_r71_one_signal_stops_the_answer_and_the_session_goes_on(cli: Cli, name: str) -> None:
    async with FaultServer([hanging("Once upon"), says("a time.")]) as server:
        cli.use(server)
        process = await cli.start("run", "--session", "tale", "--record", "r.jsonl", "tell")
        await server.wait(requests=1)
        assert process.stdout is not None
        assert await process.stdout.readexactly(9) == b"Once upon"
        process.send_signal(getattr(signal, name))
        done = await ended(process)
        assert done.code == 130 and done.out == "\n"
        assert done.err == "windlass: interrupted. Continue with: windlass run -r tale\n"
        await server.wait(open=0)
        went_on = await cli("run", "-r", "tale", "go on")
        said = [(m["role"], m["content"]) for m in asked(server)["messages"][1:]]
    assert went_on.code == 0 and went_on.out == "a time.\n"
    # Words that never came to an end are not the model's answer: what was asked stays.
    assert [text for role, text in said if role == "user"] == ["tell", "go on"]
    last = decode_event((cli.folder / "r.jsonl").read_bytes().splitlines()[-1])
    assert isinstance(last, RunFinished) and last.stop_reason == "cancelled"


async def test_r71_interrupt_in_a_command_kills_its_whole_tree_and_answers_the_call(cli: Cli) -> None:
    async with FaultServer([calls(("shell", {"command": STUBBORN}), ("list_files", {})), says("I see.")]) as server:
        cli.use(server)
        process = await cli.start("run", "--yes", "--session", "s", "go")
        await appears(cli.folder / "up")
        pids = running(cli.folder)
        assert len(pids) >= 2 and all(alive(pid) for pid in pids)
        process.send_signal(signal.SIGINT)
        done = await ended(process)
        assert done.code == 130 and not any(alive(pid) for pid in pids)
        went_on = await cli("run", "-r", "s", "what happened?")
        results = tool_results(server)
    assert went_on.code == 0 and len(results) == 2  # every call was answered
    assert results[0].startswith("Cancelled: the run was stopped before this call finished")


async def test_r71_the_second_interrupt_ends_at_once_and_leaves_nothing_running(cli: Cli) -> None:
    async with FaultServer([calls(("shell", {"command": STUBBORN})), says("Still here.")]) as server:
        cli.use(server)
        process = await cli.start("run", "--yes", "--session", "s", "go")
        await appears(cli.folder / "up")
        pids = running(cli.folder)
        assert len(pids) >= 2
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGTERM)  # they need not be of one kind
        done = await ended(process)
        assert done.code == 130 and "Traceback" not in done.err
        await all_gone(pids)
        went_on = await cli("run", "-r", "s", "and now?")
        results = tool_results(server)
    # The program ended before it could answer the call: the session says that when it is taken up.
    assert went_on.code == 0 and len(results) == 1
    assert results[0].startswith(("Outcome unknown", "Cancelled"))


async def test_interrupted_json_and_events_are_whole(cli: Cli) -> None:
    async with FaultServer([hanging("x")]) as server:
        cli.use(server)
        for mode in ("json", "stream-json"):
            server.requests.clear()
            process = await cli.start("run", "--output", mode, "go")
            await server.wait(requests=1)
            process.send_signal(signal.SIGINT)
            done = await ended(process)
            assert done.code == 130
            if mode == "json":
                assert done.json()["error"]["code"] == "aborted" and done.json()["session_id"]
            else:
                assert isinstance(done.events()[-1], RunFinished)


async def test_an_interrupt_while_the_retry_waits(cli: Cli) -> None:
    async with FaultServer([Reply(429, b"{}", {"retry-after": "50"})]) as server:
        cli.use(server)
        process = await cli.start("run", "go")
        assert process.stderr is not None
        shown = await process.stderr.readline()
        assert b"again in 50.0 s" in shown
        process.send_signal(signal.SIGINT)
        assert (await ended(process)).code == 130


async def test_an_interrupt_before_the_run_begins(cli: Cli) -> None:
    """At any moment of the start: 130 and no traceback. Reading what is piped in is the longest of them."""
    process = await cli.start("run", "-m", "echo", "go", stdin=asyncio.subprocess.PIPE)
    assert process.stdin is not None
    process.stdin.write(b"x" * (1 << 20))
    await process.stdin.drain()  # more than a pipe holds: it is reading
    process.send_signal(signal.SIGINT)
    assert await ended_without_input(process) == (130, "windlass: interrupted.\n")


async def ended_without_input(process: asyncio.subprocess.Process) -> tuple[int | None, str]:
    assert process.stderr is not None and process.stdin is not None
    async with clock.deadline(PATIENCE):
        err = await process.stderr.read()
        await process.wait()
    process.stdin.close()
    return process.returncode, err.decode()


async def test_nohup_is_respected(cli: Cli) -> None:
    """What was ignored when the program was started stays ignored."""
    cli.prefix = ["/bin/sh", "-c", 'trap "" HUP; exec "$@"', "sh"]
    release = asyncio.Event()
    async with FaultServer([says("x")]) as server:
        first, *rest = says("slow").parts
        server.script[0] = Stream([first, release, *rest])
        cli.use(server)
        process = await cli.start("run", "go")
        assert process.stdout is not None
        assert await process.stdout.readexactly(4) == b"slow"
        process.send_signal(signal.SIGHUP)
        release.set()
        done = await ended(process)
    assert (done.code, done.out) == (0, "\n")


async def test_kill_minus_9_loses_nothing_that_was_acknowledged(cli: Cli) -> None:
    async with FaultServer([calls(("shell", {"command": "echo $$ > up; sleep 9873"})), says("ok")]) as server:
        cli.use(server)
        process = await cli.start("run", "--yes", "--session", "s", "go")
        pid = int(await appears(cli.folder / "up") or "0")
        process.kill()
        await process.wait()
        if alive(pid):
            os.kill(pid, signal.SIGKILL)
        went_on = await cli("run", "-r", "s", "and?")
        assert went_on.code == 0 and tool_results(server)[0].startswith("Outcome unknown")
    rows = (await cli("sessions", "show", "s")).out
    assert rows.count("assistant:") == 2 and "user: and?" in rows
