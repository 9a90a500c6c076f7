"""Running commands: what comes back, and what never does."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
import os
import resource
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from process_probe import alive, children, descriptors, token

from windlass.core.errors import WorkspaceError
from windlass.core.ports import ExecResult
from windlass.workspaces import process
from windlass.workspaces.process import run_command


@pytest.fixture
def cwd(tmp_path: Path) -> str:
    return str(tmp_path)


async def test_a_string_runs_in_a_shell_and_words_do_not(cwd: str) -> None:
    result = await run_command("echo $((6 * 7)); echo err >&2; echo out; exit 3", cwd=cwd)
    assert result == ExecResult(exit_code=3, output=b"42\nerr\nout\n", total_bytes=11)
    result = await run_command(["echo", "$HOME", "*", "; id"], cwd=cwd)
    assert result == ExecResult(exit_code=0, output=b"$HOME * ; id\n", total_bytes=13)
    assert (await run_command("pwd", cwd=cwd)).output.decode() == os.path.realpath(cwd) + "\n"
    assert (await run_command("-x; echo $?", cwd=cwd)).output.endswith(b"127\n")


async def test_a_program_of_the_workspace_runs_when_it_is_named_by_path(cwd: str) -> None:
    script = Path(cwd, "-tool")
    script.write_text("#!/bin/sh\necho ran $1\n")
    script.chmod(0o755)
    assert (await run_command(["./-tool", "x"], cwd=cwd)).output == b"ran x\n"
    script.rename(Path(cwd, "tool"))
    Path(cwd, "-d").mkdir()
    Path(cwd, "tool").rename(Path(cwd, "-d/tool"))
    assert (await run_command(["-d/tool", "y"], cwd=cwd)).output == b"ran y\n"


@pytest.mark.parametrize(
    ("command", "code"), [("kill -9 $$", 137), ("kill -SEGV $$", 139), ("sh -c 'kill -15 $$'", 143)]
)
async def test_a_command_that_dies_by_itself_has_the_shells_code(cwd: str, command: str, code: int) -> None:
    result = await run_command(command, cwd=cwd)
    assert (result.exit_code, result.killed) == (code, None)


async def test_r58_tool_that_never_returns(cwd: str) -> None:
    mark = token()
    result = await run_command(f"echo one; echo two >&2; sleep 1{mark}", cwd=cwd, timeout=1.0)
    assert result == ExecResult(exit_code=None, output=b"one\ntwo\n", total_bytes=8, killed="timeout")
    assert not alive(mark)
    assert not children()


async def test_r58_timeout_of_zero_and_none(cwd: str) -> None:
    assert (await run_command("sleep 100", cwd=cwd, timeout=0)).killed == "timeout"
    assert (await run_command("echo x", cwd=cwd, timeout=None)).output == b"x\n"


async def test_r58_output_of_the_grace_is_kept(cwd: str) -> None:
    command = "trap 'echo tidied; exit 0' TERM; echo up; while :; do sleep 0.01; done"
    result = await run_command(command, cwd=cwd, timeout=1.0)
    assert (result.killed, result.exit_code) == ("timeout", None)
    assert result.output.startswith(b"up\n")
    assert result.output.endswith(b"tidied\n")


async def test_r58_stopped_command_hears_the_end_too(cwd: str) -> None:
    result = await run_command("trap 'echo tidied; exit' TERM; echo up; kill -STOP $$; :", cwd=cwd, timeout=1.0)
    assert (result.output, result.killed) == (b"up\ntidied\n", "timeout")


async def test_r58_cancelled_command_is_ended_first(cwd: str) -> None:
    mark, started = token(), asyncio.Event()
    task = asyncio.create_task(
        run_command(f"echo up; sleep 1{mark}; true", cwd=cwd, on_output=lambda data: started.set())
    )
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not alive(mark)
    assert not children()


async def test_r58_a_callers_deadline_becomes_its_timeout_error(cwd: str) -> None:
    mark = token()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await run_command(f"sleep 1{mark}; true", cwd=cwd)
    assert not alive(mark)
    assert asyncio.current_task() is not None
    assert asyncio.current_task().cancelling() == 0  # pyright: ignore[reportOptionalMemberAccess]


async def test_r71_second_cancel_ends_the_grace(cwd: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "GRACE", 300.0)  # only a second cancel can end this in time
    mark, events = token(), asyncio.Queue[bytes]()
    command = f"trap 'echo no' TERM; echo up; while :; do sleep 1{mark} & wait; done"
    task = asyncio.create_task(run_command(command, cwd=cwd, on_output=events.put_nowait))
    seen = b""
    while b"up" not in seen:
        seen += await events.get()
    task.cancel()
    while b"no" not in seen:
        seen += await events.get()
    assert not task.done()
    task.cancel()
    async with asyncio.timeout(30):
        await asyncio.wait([task])
    assert task.cancelled()
    assert not alive(mark)


async def test_r70_cancel_at_every_step_leaves_nothing(cwd: str) -> None:
    mark = token()
    before = descriptors()
    for steps in itertools.chain(range(12), range(12, 200, 23)):
        task = asyncio.create_task(
            run_command(f"(setsid sleep 1{mark} >/dev/null 2>&1 &) ; sleep 1{mark} & echo x; sleep 0.01", cwd=cwd)
        )
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        assert not alive(mark), steps
    assert not children()
    assert descriptors() == before


async def test_a_coroutine_thrown_away_takes_its_command_along(cwd: str) -> None:
    mark, before = token(), descriptors()
    running = run_command(f"sleep 1{mark}; true", cwd=cwd, timeout=None)
    running.send(None)
    while not alive(mark):
        await asyncio.sleep(0.005)
    running.close()
    while alive(mark):  # killed, but the kernel takes its time
        await asyncio.sleep(0.005)
    assert not children()
    assert descriptors() == before


def test_the_end_of_the_loop_takes_commands_along(cwd: str) -> None:
    mark = token()

    async def main() -> None:
        keep.append(asyncio.create_task(run_command(f"sleep 1{mark}; true", cwd=cwd)))
        while not alive(mark):
            await asyncio.sleep(0.005)

    keep: list[asyncio.Task[ExecResult]] = []
    asyncio.run(main())
    assert keep[0].cancelled()
    assert not alive(mark)


async def test_r60_background_child_keeps_stdout_open(cwd: str) -> None:
    mark = token()
    result = await run_command(f"sleep 1{mark} & echo started", cwd=cwd, timeout=60)
    assert result == ExecResult(exit_code=0, output=b"started\n", total_bytes=8)
    assert not alive(mark)


async def test_r60_output_under_way_is_waited_for(cwd: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "DRAIN", 60.0)  # ended by the end of the output, long before
    result = await run_command("(sleep 0.2; echo late) & echo first", cwd=cwd)
    assert result.output == b"first\nlate\n"


async def test_r60_background_flood_does_not_hold_the_call(cwd: str) -> None:
    mark = token()
    result = await run_command(f"bash -c 'while :; do echo {mark}; done' & echo started", cwd=cwd, timeout=60)
    assert (result.exit_code, result.killed) == (0, None)
    assert not alive(mark)


PASSWORD = "import getpass, warnings; warnings.simplefilter('ignore'); print(getpass.getpass())"


@pytest.mark.parametrize(
    ("command", "code", "says"),
    [
        ("cat; echo end", 0, b"end\n"),
        ("read line; echo $?", 0, b"1\n"),
        ("cat < /dev/tty", 1, b"No such device"),
        ([sys.executable, "-c", PASSWORD], 1, b"EOFError"),
        ("git -c credential.helper= fetch https://127.0.0.1:1/x; tty", 1, b"not a tty"),
    ],
)
async def test_r62_asking_for_input_fails_at_once(
    cwd: str, command: str | Sequence[str], code: int, says: bytes
) -> None:
    result = await run_command(command, cwd=cwd, timeout=60)
    assert (result.exit_code, result.killed) == (code, None)
    assert says in result.output


async def test_r62_no_controlling_terminal_and_a_session_of_its_own(cwd: str) -> None:
    result = await run_command(["cat", "/proc/self/stat"], cwd=cwd)
    pid, _, _, _, group, session, terminal = result.output.split()[:7]
    assert pid == group == session
    assert terminal == b"0"
    assert int(session) != os.getsid(0)


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (["no-such-program"], "was not found"),
        (["./missing"], "was not found"),
        (["/"], "was not found"),
        (["./data"], "may not be executed"),
        ([], "is empty"),
        ([""], "is empty"),
        ("x" * 200_000, "is too long"),
        (["echo", "x" * 200_000], "is too long"),
        (["echo"] + ["x" * 100_000] * 40, "is too long"),
        ("a\0b", "null"),
        ("echo \ud800", "surrogates"),
    ],
)
async def test_r63_what_cannot_start_says_why(cwd: str, command: str | Sequence[str], says: str) -> None:
    Path(cwd, "data").write_text("no program")
    before = descriptors()
    with pytest.raises(WorkspaceError, match=says) as caught:
        await run_command(command, cwd=cwd)
    assert caught.value.hint
    assert len(str(caught.value)) < 400
    assert descriptors() == before
    assert not children()


async def test_r63_working_folder_is_gone(tmp_path: Path) -> None:
    for folder in (tmp_path / "gone", tmp_path / "file"):
        (tmp_path / "file").write_text("x")
        with pytest.raises(WorkspaceError, match="is gone"):
            await run_command("echo x", cwd=str(folder))


async def test_r63_working_folder_goes_before_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is there when it is looked for, and its child's chdir fails."""
    folder = tmp_path / "gone"
    with monkeypatch.context() as patch:
        patch.setattr(Path, "is_dir", lambda path: True)  # pyright: ignore[reportUnknownLambdaType]
        with pytest.raises(WorkspaceError, match="may not be entered") as caught:
            await run_command("echo x", cwd=str(folder))
    assert isinstance(caught.value.__cause__, FileNotFoundError)


async def test_r63_working_folder_goes_while_it_runs(tmp_path: Path) -> None:
    folder = tmp_path / "sub"
    folder.mkdir()
    result = await run_command(f"rmdir {folder}; echo still here", cwd=str(folder))
    assert (result.exit_code, result.output) == (0, b"still here\n")


async def test_r63_every_shortage_of_descriptors(cwd: str) -> None:
    await run_command("true", cwd=cwd)
    before, (soft, hard) = descriptors(), resource.getrlimit(resource.RLIMIT_NOFILE)
    outcomes: list[str] = []
    highest = max(int(fd) for fd in os.listdir("/proc/self/fd"))
    for spare in range(highest + 12):
        resource.setrlimit(resource.RLIMIT_NOFILE, (spare, hard))
        try:
            result = await run_command("echo x", cwd=cwd)
            outcomes.append("ran" if result.output == b"x\n" else repr(result))
        except WorkspaceError as error:
            assert isinstance(error.__cause__, OSError)
            outcomes.append("refused")
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert set(outcomes) == {"ran", "refused"}
    assert descriptors() == before
    assert not children()


@pytest.mark.parametrize("code", [errno.ENOMEM, errno.EAGAIN, errno.ENOEXEC, errno.EIO])
async def test_r63_fork_or_exec_refused_by_the_system(cwd: str, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(code, os.strerror(code))

    before = descriptors()
    with monkeypatch.context() as patch:
        patch.setattr(subprocess, "Popen", refuse)
        with pytest.raises(WorkspaceError) as caught:
            await run_command("true", cwd=cwd)
    assert isinstance(caught.value.__cause__, OSError)
    assert descriptors() == before


async def test_r63_no_pidfd_left_falls_back(cwd: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(pid: int) -> int:
        raise OSError(errno.EMFILE, "no descriptors")

    monkeypatch.setattr(os, "pidfd_open", refuse)
    assert (await run_command("echo x; exit 4", cwd=cwd)).exit_code == 4
    mark = token()
    assert (await run_command(f"sleep 1{mark}; true", cwd=cwd, timeout=0.2)).killed == "timeout"
    assert not alive(mark)


async def test_r64_prints_closes_its_output_then_hangs(cwd: str) -> None:
    mark = token()
    result = await run_command(f"echo said; exec >&- 2>&- <&-; sleep 1{mark}; true", cwd=cwd, timeout=1.0)
    assert result == ExecResult(exit_code=None, output=b"said\n", total_bytes=5, killed="timeout")
    assert not alive(mark)


async def test_r65_one_fails_one_hangs_one_floods(cwd: str) -> None:
    mark = token()
    failed, hung, flooded, fine = await asyncio.gather(
        run_command("echo bad >&2; exit 9", cwd=cwd, timeout=120),
        run_command(f"sleep 1{mark}; true", cwd=cwd, timeout=1.0),
        run_command("head -c 30000000 /dev/zero", cwd=cwd, timeout=120),
        run_command("echo fine", cwd=cwd, timeout=120),
    )
    assert failed == ExecResult(exit_code=9, output=b"bad\n", total_bytes=4)
    assert hung.killed == "timeout"
    assert (flooded.exit_code, flooded.total_bytes) == (0, 30_000_000)
    assert fine.output == b"fine\n"
    assert not alive(mark)


async def test_fifty_commands_at_once(cwd: str) -> None:
    await run_command("true", cwd=cwd)
    before = descriptors()
    results = await asyncio.gather(*[run_command(f"echo {n}; exit {n}", cwd=cwd, timeout=120) for n in range(50)])
    assert [(each.exit_code, each.output) for each in results] == [(n, b"%d\n" % n) for n in range(50)]
    assert not children()
    assert descriptors() == before


@pytest.mark.parametrize(
    "wrong", [{"timeout": -1.0}, {"timeout": float("nan")}, {"max_output": -1}, {"spool_limit": -1}]
)
async def test_bad_bounds_are_refused(cwd: str, wrong: dict[str, Any]) -> None:
    with pytest.raises(WorkspaceError, match="negative"):
        await run_command("true", cwd=cwd, **wrong)


@pytest.mark.slow
async def test_without_proc_pidfd_and_readers_as_elsewhere(cwd: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ways of macOS (no /proc, no pidfd) and, for reading, of Windows (no watched pipes), on this system."""
    loop, mark, before = asyncio.get_running_loop(), token(), descriptors()

    def refuse(*_: Any) -> None:
        raise NotImplementedError

    with monkeypatch.context() as patch:
        patch.setattr("windlass.workspaces.reap._has_proc", lambda: False)
        patch.setattr(loop, "add_reader", refuse)
        for _ in range(2):
            assert (await run_command("echo x; exit 5", cwd=cwd)).output == b"x\n"
            patch.delattr(os, "pidfd_open", raising=False)
        result = await run_command("head -c 3000000 /dev/zero; printf end", cwd=cwd)
        assert (result.total_bytes, result.output[-3:]) == (3_000_003, b"end")
        result = await run_command(f"trap '' TERM; echo x; sleep 1{mark} & sleep 1{mark}; true", cwd=cwd, timeout=1.0)
        assert (result.output, result.killed) == (b"x\n", "timeout")
        assert not alive(mark)
        result = await run_command(f"sleep 1{mark} & echo started", cwd=cwd)
        assert (result.exit_code, result.output) == (0, b"started\n")
        assert not alive(mark)
        patch.delattr(os, "waitid")
        assert (await run_command("exit 6", cwd=cwd)).exit_code == 6
    assert not children()
    while descriptors() != before:  # the reading threads close theirs a moment later
        await asyncio.sleep(0.005)


def test_the_same_on_uvloop(cwd: str) -> None:
    uvloop = pytest.importorskip("uvloop")
    mark = token()

    async def main() -> None:
        results = await asyncio.gather(*[run_command(f"echo {n}; exit {n}", cwd=cwd, timeout=120) for n in range(5)])
        assert [(each.exit_code, each.output) for each in results] == [(n, b"%d\n" % n) for n in range(5)]
        result = await run_command(
            f"head -c 3000000 /dev/zero; setsid sleep 1{mark} & sleep 1{mark}", cwd=cwd, timeout=1.0
        )
        assert (result.total_bytes, result.killed) == (3_000_000, "timeout")
        task = asyncio.create_task(run_command(f"sleep 1{mark}; true", cwd=cwd))
        while not alive(mark):
            await asyncio.sleep(0.005)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
    assert not alive(mark)
    assert not children()
