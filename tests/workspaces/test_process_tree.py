"""Ending a command with everything it started, however that hides."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from process_probe import alive, children, descriptors, token

from windlass.workspaces import reap
from windlass.workspaces.process import run_command

#: name -> shell words that leave `{hidden}` running in some hiding place; they end when it is there
HIDING = {
    "background": "{hidden} &",
    "ignores SIGTERM": "(trap '' TERM; {hidden}; {hidden}) &",
    "own session": "setsid {hidden} &",
    "own session, orphan, closed descriptors": "(setsid {hidden} </dev/null >/dev/null 2>&1 &)",
    "twice": "(setsid sh -c '(setsid {hidden} &) ; exec {hidden}' </dev/null >/dev/null 2>&1 &)",
    "stopped": "{hidden} & kill -STOP $!",
    "stopped in its own session": "setsid {hidden} & sleep 0.05; kill -STOP $!",
    "without environment, parent alive": "(env -i setsid {hidden} & wait) &",
    "without environment, session of a marked one": "(setsid sh -c '(env -i {hidden} &); exec {hidden}' &)",
    "without environment, session or parent": "(env -i setsid {hidden} </dev/null >/dev/null 2>&1 &)",
    "other limits": "(ulimit -x 5; setsid {hidden} </dev/null >/dev/null 2>&1 &)",
    "nohup": "nohup {hidden} >/dev/null 2>&1 &",
    "daemon": "{python} daemon.py {seconds}",
}
DAEMON = """
import os, sys
if os.fork(): os._exit(0)
os.setsid()
if os.fork(): os._exit(0)
os.closerange(0, 100)
import signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
os.execvp("sleep", ["sleep", sys.argv[1]])
"""


def _hide(name: str, folder: Path) -> tuple[str, str]:
    mark = token()
    (folder / "daemon.py").write_text(DAEMON)
    words = HIDING[name].format(hidden=f"sleep 1{mark}", seconds=f"1{mark}", python=sys.executable)
    return mark, f"{words}\nuntil grep -qs {mark} /proc/[0-9]*/cmdline; do sleep 0.01; done; echo hidden"


@pytest.mark.parametrize("name", HIDING)
async def test_r59_nothing_outlives_the_command(name: str, tmp_path: Path) -> None:
    mark, command = _hide(name, tmp_path)
    result = await run_command(command, cwd=str(tmp_path), timeout=60)
    assert (result.exit_code, result.output, result.killed) == (0, b"hidden\n", None)
    assert not alive(mark)


@pytest.mark.parametrize("name", HIDING)
async def test_r59_nothing_outlives_a_cancel(name: str, tmp_path: Path) -> None:
    mark, command = _hide(name, tmp_path)
    hidden = asyncio.Event()
    task = asyncio.create_task(
        run_command(f"{command}; cat /dev/zero >/dev/null", cwd=str(tmp_path), on_output=lambda _: hidden.set())
    )
    await hidden.wait()
    assert alive(mark)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not alive(mark)
    assert not children()


async def test_r59_strangers_are_left_alone(tmp_path: Path) -> None:
    """Another command of ours, a child of the caller, and one started later all go on."""
    mark = token()
    other = asyncio.create_task(run_command(f"echo up; setsid sleep 1{mark} & wait", cwd=str(tmp_path), timeout=None))
    own = subprocess.Popen(["sleep", f"1{mark}"], start_new_session=True)
    try:
        while len(alive(mark)) < 2:
            await asyncio.sleep(0.01)
        before = set(alive(mark))
        assert (await run_command("setsid sleep 60 & echo x", cwd=str(tmp_path))).output == b"x\n"
        assert (await run_command("sleep 60", cwd=str(tmp_path), timeout=0.1)).killed == "timeout"
        assert set(alive(mark)) == before
    finally:
        own.kill()
        own.wait()
        other.cancel()
        await asyncio.wait([other])
    assert not alive(mark)


async def test_r59_a_number_used_again_is_not_signalled(tmp_path: Path) -> None:
    bystander = subprocess.Popen(["sleep", "60"], start_new_session=True)
    try:
        seen = reap.Member(bystander.pid, 1, bystander.pid, bystander.pid, "S", start=1, pages=1)  # it started later
        tree = reap.ProcTree(os.getpid(), "01mark", 1)
        tree.send([seen], signal.SIGKILL)
        await asyncio.sleep(0.05)
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


NESTED = """
import asyncio, sys
from windlass.workspaces.process import run_command
async def main():
    sleep = "sleep " + sys.argv[1]
    await run_command("(setsid " + sleep + " </dev/null >/dev/null 2>&1 &); " + sleep, cwd="/", timeout=None)
asyncio.run(main())
"""


async def test_r59_a_windlass_inside_hides_nothing(tmp_path: Path) -> None:
    mark = token()
    (tmp_path / "nested.py").write_text(NESTED)
    task = asyncio.create_task(run_command([sys.executable, "nested.py", f"1{mark}"], cwd=str(tmp_path), timeout=None))
    while len([pid for pid in alive(mark) if b"nested" not in Path(f"/proc/{pid}/cmdline").read_bytes()]) < 2:
        await asyncio.sleep(0.01)
    # Killed at once, the inner one cannot tidy up itself: only its mark inside ours tells whose the orphan is.
    for pid in alive(mark):
        if b"nested" in Path(f"/proc/{pid}/cmdline").read_bytes():
            os.kill(pid, signal.SIGKILL)
    assert (await task).exit_code == 137
    assert not alive(mark)


SUBREAPER = """
import asyncio, os, sys
from windlass.workspaces.process import become_subreaper, run_command
assert become_subreaper()
async def main():
    quick = "(setsid true </dev/null >/dev/null 2>&1 &); "
    long = "(setsid setsid sh -c 'sleep 60; sleep 60' </dev/null >/dev/null 2>&1 &); "
    for _ in range(5):
        result = await run_command(quick * 3 + long + "sleep 0.05; echo x", cwd="/")
        assert result.output == b"x\\n", result
asyncio.run(main())
try:
    print("left", os.waitpid(-1, os.WNOHANG))
except ChildProcessError:
    print("no children")
"""


def test_r59_a_subreaper_keeps_no_zombies(tmp_path: Path) -> None:
    """In a process of its own: a library never makes its host a subreaper."""
    done = subprocess.run([sys.executable, "-c", SUBREAPER], capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"no children\n", b"")


async def test_no_zombies_and_no_descriptors_after_many(tmp_path: Path) -> None:
    await run_command("true", cwd=str(tmp_path))
    before = descriptors()
    for _ in range(20):
        await run_command("setsid true & true & echo x", cwd=str(tmp_path))
    assert not children()
    assert descriptors() == before


@pytest.mark.parametrize("last", [b"", b"0.0 0.0 0.0 1/2 x", b"0.0 0.0 0.0 1/2 0", b"0.0 0.0 0.0 1/2 99999999"])
async def test_an_odd_proc_costs_only_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last: bytes) -> None:
    """The short cut after a command trusts /proc/loadavg only when it makes sense."""
    read = reap._read  # pyright: ignore[reportPrivateUsage]

    def odd(path: str, size: int) -> bytes:
        return last if path == "/proc/loadavg" else read(path, size)

    monkeypatch.setattr(reap, "_read", odd)
    mark = token()
    command = (
        f"(setsid sleep 1{mark} </dev/null >/dev/null 2>&1 &); until grep -qs {mark} /proc/[0-9]*/cmdline; do :; done"
    )
    assert (await run_command(command, cwd=str(tmp_path))).exit_code == 0
    assert not alive(mark)


async def test_r59_a_look_that_missed_all_is_not_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A look takes time: one that forks and ends meanwhile is not in it, nor is its child. Then there was a fork."""
    read_all, looks = reap._read_all, 0  # pyright: ignore[reportPrivateUsage]

    def missing() -> list[reap.Member]:
        nonlocal looks
        looks += 1
        if looks > 1:
            return read_all()
        subprocess.run(["true"], check=True)
        return []

    monkeypatch.setattr(reap, "_read_all", missing)
    mark = token()
    assert (await run_command(f"setsid sleep 1{mark} & sleep 1{mark}", cwd=str(tmp_path), timeout=0.5)).killed
    assert not alive(mark)
    assert looks > 2
