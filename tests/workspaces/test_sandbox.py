"""The sandbox as a workspace: what it runs, what it refuses to do without, and what it leaves behind."""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Literal

import pytest
from process_probe import alive, children, descriptors, token
from sandbox_host import CANARY, NOBODY, SYSTEM_PYTHON, as_user, needs_bwrap

from windlass.agent.agent import Agent
from windlass.core import registry
from windlass.core.errors import WorkspaceError
from windlass.core.ports import ExecResult
from windlass.testing.scripted import ScriptedProvider, call
from windlass.testing.workspace_kit import check_workspace
from windlass.workspaces import bwrap, landlock, process, sandbox
from windlass.workspaces.launch import Limits
from windlass.workspaces.sandbox import SandboxWorkspace, default_limits
from windlass.workspaces.sandbox_view import MOST_NESTED

needs_landlock = pytest.mark.skipif(landlock.abi() < 1, reason="this kernel has no Landlock")
LEVELS = [
    pytest.param("bubblewrap", marks=needs_bwrap),
    pytest.param("landlock", marks=needs_landlock),
    "none",
]


@pytest.fixture
def root(place: Path) -> Path:
    (place / "root").mkdir()
    return place / "root"


@pytest.fixture
async def space(root: Path) -> AsyncIterator[SandboxWorkspace]:
    made = SandboxWorkspace(root)
    yield made
    await made.close()
    assert sorted(path.name for path in root.iterdir() if path.is_dir()) == []


@pytest.mark.parametrize("level", LEVELS)
async def test_every_level_keeps_the_contract(place: Path, level: Literal["bubblewrap", "landlock", "none"]) -> None:
    numbers = itertools.count()

    def make() -> SandboxWorkspace:
        folder = place / f"w{next(numbers)}"
        folder.mkdir()
        return SandboxWorkspace(folder, level=level)

    assert "shell" in await check_workspace(make)
    made = make()
    assert made.confinement == ("landlock (weaker)" if level == "landlock" else level)
    assert bool(made.not_held) == (level != "bubblewrap")
    assert made.capabilities == {"shell", "filesystem"}
    await made.close()


# --- as without a sandbox: R58-R64, R71


@needs_bwrap
async def test_it_runs_words_and_strings_in_the_root_with_exit_codes(space: SandboxWorkspace, root: Path) -> None:
    result = await space.exec("echo $((6 * 7)); echo err >&2; pwd; exit 3")
    assert result == ExecResult(3, f"42\nerr\n{root}\n".encode(), len(f"42\nerr\n{root}\n"))
    assert (await space.exec(["echo", "$HOME", "; id"])).output == b"$HOME ; id\n"
    assert (await space.exec("kill -9 $$")).exit_code == 137
    assert (await space.exec("echo x >new; cat new; umask")).output.startswith(b"x\n")
    assert await space.read("new") == b"x\n"
    await space.delete("new")


@needs_bwrap
async def test_r58_timeout_ends_all_with_the_output_so_far_and_the_grace(space: SandboxWorkspace) -> None:
    mark = token()
    command = f"trap 'echo tidied; exit 0' TERM; echo up; (setsid sleep 1{mark} &); while :; do sleep 0.01; done"
    result = await space.exec(command, timeout=1.0)
    assert (result.exit_code, result.killed) == (None, "timeout")
    assert result.output.startswith(b"up\n")
    assert result.output.endswith(b"tidied\n")
    assert not alive(mark)
    assert not children()


@needs_bwrap
async def test_r59_r60_nothing_outlives_the_command(space: SandboxWorkspace) -> None:
    mark = token()
    hidden = f"(setsid env -i sh -c 'trap \"\" TERM HUP; sleep 1{mark}; sleep 1{mark}' &)"
    result = await space.exec(f"{hidden}; until grep -qs 1{mark} /proc/[0-9]*/cmdline; do sleep 0.01; done; echo up")
    assert (result.exit_code, result.output) == (0, b"up\n")
    assert not alive(mark)


@needs_bwrap
async def test_r58_r71_cancelled_command_is_ended_first(
    space: SandboxWorkspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "GRACE", 300.0)  # only a second cancel can end this in time
    mark, events = token(), asyncio.Queue[bytes]()
    command = f"trap 'echo no' TERM; echo up; while :; do sleep 1{mark} & wait; done"
    task = asyncio.create_task(space.exec(command, timeout=None, on_output=events.put_nowait))
    seen = b""
    for word in (b"up", b"no"):
        while word not in seen:
            seen += await events.get()
        task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not alive(mark)


@needs_bwrap
async def test_r61_r62_output_is_bounded_and_shown_live_and_there_is_no_terminal(space: SandboxWorkspace) -> None:
    shown: list[bytes] = []
    result = await space.exec("head -c 3000000 /dev/zero; cat; tty; (echo x >/dev/tty)", on_output=shown.append)
    assert len(result.output) <= 8192 + 200
    assert result.total_bytes > 3_000_000
    assert b"not a tty" in result.output
    assert result.spool is not None and Path(result.spool).stat().st_size == result.total_bytes
    assert shown


@needs_bwrap
async def test_r63_what_cannot_start_is_an_error(space: SandboxWorkspace) -> None:
    with pytest.raises(WorkspaceError, match="not found"):
        await space.exec(["no-such-program"])
    with pytest.raises(WorkspaceError, match="too long"):
        await space.exec("x" * 200_000)


@needs_bwrap
async def test_r64_command_that_closes_its_output_and_hangs(space: SandboxWorkspace) -> None:
    mark = token()
    result = await space.exec(f"echo up; exec >&- 2>&-; exec sleep 1{mark}", timeout=1.0)
    assert (result.killed, result.output) == ("timeout", b"up\n")
    assert not alive(mark)


@needs_bwrap
async def test_many_at_once_leave_no_descriptor_and_no_name(space: SandboxWorkspace, root: Path) -> None:
    await space.exec("true")
    before = descriptors()
    results = await asyncio.gather(*[space.exec(f"echo x >AGENTS.md; echo {n}") for n in range(12)])
    assert [result.output.endswith(f"{n}\n".encode()) for n, result in enumerate(results)] == [True] * 12
    # One fewer is the collector's doing; one more would be ours.
    assert descriptors() <= before and os.listdir(root) == []


# --- S26, S27, S28


def _stub(folder: Path, text: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "bwrap").write_text(text)
    (folder / "bwrap").chmod(0o755)


async def test_s27_planted_programs_are_not_used(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("bwrap", "sh", "bash", "nsenter", "true"):
        (root / name).write_text(f"#!/bin/sh\ntouch {root}/planted\nexit 0\n")
        (root / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{root}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.chdir(root)
    made = SandboxWorkspace(root, level="none" if not bwrap.find_bwrap(os.environ, str(root)) else "auto")
    assert (await made.exec("echo ok")).output == b"ok\n"
    await made.close()
    assert not (root / "planted").exists()
    monkeypatch.setenv("PATH", str(root))
    found = bwrap.find_bwrap(os.environ, str(root))
    assert found is None or not found.startswith(str(root))


async def test_s28_without_bubblewrap_it_is_weaker_or_refused(
    root: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / "empty").mkdir()
    monkeypatch.setenv("PATH", str(place / "empty"))
    with pytest.raises(WorkspaceError, match=r"bwrap is not on PATH.*level=\"none\"") as refused:
        SandboxWorkspace(root, level="bubblewrap")
    assert "Install bubblewrap" in str(refused.value)
    if landlock.abi():
        weaker = SandboxWorkspace(root)
        assert (weaker.confinement, weaker.reasons) == ("landlock (weaker)", ["bubblewrap: bwrap is not on PATH"])
        assert any("protected files" in each for each in weaker.not_held)
        await weaker.close()
    monkeypatch.setattr(landlock, "abi", lambda: 0)
    with pytest.raises(WorkspaceError, match="No sandbox can be made here"):
        SandboxWorkspace(root)
    monkeypatch.setenv("PATH", os.defpath)
    own = SandboxWorkspace(root, level="none")
    assert (own.confinement, (await own.exec("echo own")).output) == ("none", b"own\n")
    assert own.not_held == ("commands run with your own rights",)
    await own.close()


def test_s28_a_bubblewrap_that_does_not_work_is_tried_once(
    root: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _stub(
        place / "stub",
        f"#!/bin/sh\necho x >>{place}/tries\necho 'bwrap: setting up uid map: Permission denied'>&2\nexit 1",
    )
    monkeypatch.setenv("PATH", f"{place / 'stub'}{os.pathsep}{os.defpath}")
    for _ in range(2):
        with pytest.raises(WorkspaceError, match="setting up uid map"):
            SandboxWorkspace(root, level="bubblewrap")
    assert (place / "tries").read_text() == "x\n"


def test_s28_other_platforms_are_told(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox.sys, "platform", "darwin")
    with pytest.raises(WorkspaceError, match="There is no sandbox for"):
        SandboxWorkspace(root)


@needs_bwrap
async def test_s28_a_sandbox_that_fails_later_is_an_error_and_nothing_ran(root: Path, place: Path) -> None:
    (place / "extra").mkdir()
    made = SandboxWorkspace(root, writable=[str(place / "extra")])
    (place / "extra").rmdir()
    with pytest.raises(WorkspaceError, match="The sandbox could not be made"):
        await made.exec("touch ran")
    assert os.listdir(root) == []
    await made.close()


@pytest.mark.parametrize("level", LEVELS[:2])
async def test_s26_long_lived_process_has_the_same_bounds(
    root: Path, place: Path, level: Literal["bubblewrap", "landlock"]
) -> None:
    (place / "secret").write_text(CANARY)
    made = SandboxWorkspace(root, level=level)
    script = f"cat; cat {place}/secret || echo held; (exec 3<>/dev/tcp/127.0.0.1/1) || echo held"
    script += "; echo x >AGENTS.md; echo end; sleep 9"
    argv, env = made.confined(["bash", "-c", script], {"TOKEN": "given", "LD_PRELOAD": "/x.so"})
    assert (env["TOKEN"], "LD_PRELOAD" in env) == ("given", False)
    server = await asyncio.create_subprocess_exec(
        *argv, env=env, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert server.stdin is not None and server.stdout is not None
    server.stdin.write(b"spoken to\n")
    server.stdin.write_eof()
    assert await server.stdout.readline() == b"spoken to\n"
    assert await server.stdout.readline() == b"held\n"
    assert await server.stdout.readline() == b"held\n"
    assert await server.stdout.readline() == b"end\n"
    assert (await made.exec("echo beside")).output.startswith(b"beside\n")
    server.kill()
    await server.communicate()
    await made.close()
    assert [path.name for path in root.iterdir() if path.is_dir()] == []
    assert not (root / "AGENTS.md").exists()


@needs_bwrap
async def test_s26_a_sandbox_inside_a_sandbox_cannot_be_wider(root: Path) -> None:
    """What runs inside cannot make a wider one: namespaces are refused, so a nested Windlass fails closed."""
    made = SandboxWorkspace(root)
    result = await made.exec("bwrap --unshare-user --ro-bind / / true && echo wider")
    assert result.exit_code == 1  # what the command said, not a sandbox that could not be made
    assert result.output.startswith(b"bwrap: ")
    assert b"wider" not in result.output
    await made.close()


# --- S29


@needs_bwrap
async def test_s29_limits_hold_inside_and_the_result_says_which(root: Path) -> None:
    limits = Limits(processes=60, memory_bytes=300 << 20, output_bytes=200_000, file_bytes=1_000_000, cpu_seconds=1)
    made = SandboxWorkspace(root, limits=limits)
    mark = token()
    twice = 'b $(($1-1)) & setsid bash -c "$(declare -f b); b $(($1-1))" &'
    bomb = f"b() {{ [ $1 -gt 0 ] && {{ {twice} }}; sleep 1{mark}; }}; b 9"
    assert (await made.exec(bomb, timeout=60)).killed in ("processes", "timeout")
    assert not alive(mark)
    result = await made.exec([SYSTEM_PYTHON, "-S", "-c", "bytearray(10 << 30)"])
    assert (result.exit_code, b"MemoryError" in result.output) == (1, True)
    assert (await made.exec("yes", timeout=60)).killed == "output"
    assert (await made.exec("exec head -c 2000000 /dev/zero >big")).killed == "file_size"
    assert (await made.exec("exec sh -c 'while :; do :; done'", timeout=60)).killed == "cpu"
    await made.delete("big")
    await made.close()
    assert default_limits().processes == 1024


@needs_bwrap
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="root becomes an ordinary user here")
def test_s29_the_kernel_counts_an_ordinary_users_processes(place: Path) -> None:
    """The limit counts what runs in this sandbox, not what else the user runs."""
    place.chmod(0o755)
    (place / "root").mkdir()
    os.chown(place / "root", NOBODY, NOBODY)

    async def work() -> list[str | int | None]:
        made = SandboxWorkspace(place / "root", limits=Limits(processes=15))
        done = await made.exec("for i in $(seq 60); do sleep 0.3 & done 2>&1; wait")
        await made.close()
        return [done.output.decode(), done.killed]

    said, killed = as_user(work, NOBODY)
    assert "Resource temporarily unavailable" in said or killed == "processes"
    assert killed is None or killed == "processes"


# --- what it leaves behind: S12, S88


@needs_bwrap
async def test_s12_what_was_made_is_set_aside_and_the_output_says_so(space: SandboxWorkspace, root: Path) -> None:
    seen: list[bytes] = []
    result = await space.exec("printf made; echo evil >.bashrc", on_output=seen.append)
    assert result.output.startswith(b"made\n[sandbox: .bashrc is protected (shells run it at start)")
    assert b"".join(seen) == result.output
    assert result.total_bytes == len(result.output)
    assert {path.name: path.read_text() for path in root.iterdir()} == {".bashrc.set-aside": "evil\n"}
    await space.exec("echo again >.bashrc")
    assert sorted(os.listdir(root)) == [".bashrc.set-aside", ".bashrc.set-aside1"]


@needs_bwrap
async def test_s12_a_person_may_make_one_between_commands(space: SandboxWorkspace, root: Path) -> None:
    await space.exec("true")
    await space.write("AGENTS.md", b"mine")
    (root / ".git").mkdir()
    result = await space.exec("cat AGENTS.md; echo evil >AGENTS.md; echo x >.git/config")
    assert result.output.count(b"Read-only file system") == 2
    assert (await space.read("AGENTS.md"), os.listdir(root / ".git")) == (b"mine", [])
    (root / ".git").rmdir()


@needs_bwrap
async def test_s12_what_a_person_agrees_to_meanwhile_stays(space: SandboxWorkspace, root: Path) -> None:
    up = asyncio.Event()
    long = asyncio.create_task(space.exec("echo up; sleep 0.5; echo x >.zshrc", on_output=lambda _: up.set()))
    await up.wait()
    await space.write(".npmrc", b"agreed")
    await long
    assert sorted(os.listdir(root)) == [".npmrc", ".zshrc.set-aside"]
    assert await space.read(".npmrc") == b"agreed"


@needs_bwrap
async def test_r63_root_removed_by_somebody_while_a_command_runs(place: Path) -> None:
    (place / "gone").mkdir()
    made, up = SandboxWorkspace(place / "gone"), asyncio.Event()
    long = asyncio.create_task(made.exec("echo up; sleep 0.5; echo done", on_output=lambda _: up.set()))
    await up.wait()
    shutil.rmtree(place / "gone")
    assert (await long).output == b"up\ndone\n"
    with pytest.raises(WorkspaceError):
        await made.exec("true")
    await made.close()


@needs_bwrap
async def test_names_are_held_while_any_process_uses_the_folder(root: Path) -> None:
    first, second = SandboxWorkspace(root), SandboxWorkspace(root)
    up = asyncio.Event()
    long = asyncio.create_task(first.exec("echo up; sleep 1; echo x >AGENTS.md; echo $?", on_output=lambda _: up.set()))
    await up.wait()
    await second.exec("true")
    await second.close()
    assert (root / "AGENTS.md").is_dir()
    assert (await long).output.endswith(b"Is a directory\n1\n")
    assert os.listdir(root) == []
    await first.close()


def _private_folders(root: Path) -> set[str]:
    """Return the private folders of workspaces on the file system of `root`."""
    bases = [Path(tempfile.gettempdir()), Path("/var/tmp"), Path("/dev/shm")]
    here = next(each for each in bases if each.is_dir() and each.stat().st_dev == root.stat().st_dev)
    return {path.name for path in here.glob("windlass-sandbox-*")}


_KILLED = """
import asyncio, sys
from windlass.workspaces.sandbox import SandboxWorkspace
space = SandboxWorkspace(sys.argv[1])
asyncio.run(space.exec(sys.argv[2], timeout=None, on_output=lambda data: print(data.decode(), flush=True)))
"""


@needs_bwrap
async def test_s25_killing_us_ends_the_command_and_the_next_start_tidies(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = token()
    argv = [sys.executable, "-c", _KILLED, str(root), f"echo up; (setsid sleep 1{mark} &); sleep 1{mark}"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as windlass:
        assert windlass.stdout is not None
        assert windlass.stdout.readline() == b"up\n"
        windlass.send_signal(signal.SIGKILL)
        windlass.wait()
    for _ in range(500):
        if not alive(mark):
            break
        await asyncio.sleep(0.01)
    assert not alive(mark)
    assert "AGENTS.md" in os.listdir(root)
    (root / ".vscode").rmdir()
    (root / ".vscode").mkdir()  # a person's own, empty too
    monkeypatch.setattr(sandbox, "_YOUNG", -1.0)
    left = _private_folders(root)
    assert left
    made = SandboxWorkspace(root)
    assert os.listdir(root) == [".vscode"]
    assert not left & _private_folders(root)
    await made.close()
    (root / ".vscode").rmdir()


# --- what is seen


@needs_bwrap
async def test_tools_on_path_are_seen_and_a_private_home_lasts(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    made = SandboxWorkspace(root)
    result = await made.exec("python -c 'import msgspec; print(msgspec.__name__)'")
    assert result.output == b"msgspec\n"
    await made.exec("mkdir -p ~/.cache; echo kept >~/.cache/x; echo kept >/tmp/x")
    assert (await made.exec("cat ~/.cache/x /tmp/x")).output == b"kept\nkept\n"
    await made.close()
    other = SandboxWorkspace(root)
    assert (await other.exec("ls /tmp/x ~/.cache")).exit_code != 0
    await other.close()


@needs_bwrap
async def test_further_places_are_shown_or_hidden(root: Path, place: Path) -> None:
    for name in ("w/.git", "r", "root/keys", "root/docs"):
        (place / name).mkdir(parents=True)
    for name in ("w/.git/config", "r/a", "root/keys/k", "root/docs/d", "root/.env"):
        (place / name).write_text("text\n")
    made = SandboxWorkspace(
        root, writable=[str(place / "w")], read_only=[str(place / "r"), "docs"], deny_read=["keys", ".env"]
    )
    result = await made.exec(
        f"cat {place}/r/a docs/d; echo x >{place}/w/new && echo y >{place}/w/.git/config; echo z >docs/d; mv docs e;"
        f" echo z >{place}/r/a; cat keys/k .env; ls -A keys"
    )
    assert result.output.startswith(b"text\ntext\n")
    assert result.output.count(b"Read-only file system") == 3
    assert [line[-4:] for line in (place / "w/.git/config").read_text().splitlines()] == ["text"]
    assert ((place / "w/new").read_text(), (root / "docs/d").read_text()) == ("x\n", "text\n")
    assert result.output.count(b"text") == 2
    await made.close()
    with pytest.raises(WorkspaceError, match="is not there"):
        SandboxWorkspace(root, read_only=["/no/such/place"])
    with pytest.raises(WorkspaceError, match="root of the file system"):
        SandboxWorkspace("/")


@needs_bwrap
async def test_a_home_as_workspace_hides_its_keys(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = place / "home"
    for name in (".ssh", ".aws", ".config/windlass", ".local/state/windlass"):
        (home / name).mkdir(parents=True)
        (home / name / "key").write_text(CANARY)
    (home / ".netrc").write_text(CANARY)
    for name in ("WINDLASS_HOME", "XDG_CONFIG_HOME", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(home))
    made = SandboxWorkspace(home)
    result = await made.exec("grep -r CANARY . && echo found; echo x >.ssh/authorized_keys; echo ok >~/note; cat note")
    assert b"found" not in result.output
    assert result.output.endswith(b"ok\n")
    await made.close()
    assert sorted(path.name for path in home.iterdir()) == [".aws", ".config", ".local", ".netrc", ".ssh", "note"]
    assert os.listdir(home / ".ssh") == ["key"]


@needs_bwrap
async def test_unix_sockets_when_asked_for(root: Path) -> None:
    work = "import socket; s = socket.socket(socket.AF_UNIX); s.bind('s'); print('bound')"
    for allowed in (False, True):
        made = SandboxWorkspace(root, unix_sockets=allowed)
        result = await made.exec([SYSTEM_PYTHON, "-S", "-c", work])
        assert (b"bound" in result.output) is allowed
        await made.close()
    (root / "s").unlink()


@needs_bwrap
async def test_protected_files_beyond_the_bound_are_told(root: Path) -> None:
    for number in range(MOST_NESTED + 3):
        (root / f"d{number:03d}").mkdir()
        (root / f"d{number:03d}" / "AGENTS.md").touch()
    made = SandboxWorkspace(root)
    assert made.not_held == ("3 protected files below the top of the workspace can be changed",)
    assert (await made.exec("echo x >d000/AGENTS.md")).exit_code == 1
    await made.close()


@needs_landlock
async def test_landlock_holds_the_folder_the_network_and_other_processes(root: Path, place: Path) -> None:
    (place / "secret").write_text(CANARY)
    made = SandboxWorkspace(root, level="landlock")
    attacks = (
        f"cat {place}/secret",
        f"echo x >{place}/new",
        "echo x >/tmp/windlass-canary",
        "exec 3<>/dev/tcp/127.0.0.1/1",
        f"cat /proc/{os.getpid()}/environ",
        f"kill -0 {os.getpid()}" if landlock.abi() >= 6 else "false",
        "cat /etc/shadow",
        "ls ~root",
    )
    for attack in attacks:
        assert (await made.exec(f"if {{ {attack}; }} 2>/dev/null; then echo ESCAPED; fi")).output == b""
    assert (await made.exec("echo ok >f; cat f; echo t >$TMPDIR/t; cat $TMPDIR/t; echo x >~/x")).output == b"ok\nt\n"
    result = await made.exec("mkdir .git && echo x >.git/config")
    assert b".git is protected" in result.output
    with pytest.raises(WorkspaceError, match="needs bubblewrap"):
        SandboxWorkspace(root, level="landlock", network=["example.com"])
    with pytest.raises(WorkspaceError, match="cannot hide"):
        SandboxWorkspace(root, level="landlock", deny_read=["f"])
    await made.close()
    assert sorted(os.listdir(root)) == [".git.set-aside", "f"]


@needs_bwrap
async def test_an_agent_works_in_the_sandbox(root: Path) -> None:
    script: list[Any] = [
        [call("write_file", path="a.txt", content="hello\n")],
        [call("shell", command="cat a.txt; echo x >AGENTS.md; curl -sS --max-time 2 http://192.0.2.1/ || true")],
        "Done.",
    ]
    agent = Agent(ScriptedProvider(script), tools="coding", workspace=registry.make("workspaces", f"sandbox:{root}"))
    assert (await agent.run("Go")).text == "Done."
    told = str(agent.messages[4].parts[0].response)  # pyright: ignore[reportAttributeAccessIssue]
    assert told.startswith("hello\n")
    assert "AGENTS.md: Is a directory" in told
    await agent.destroy()
    assert os.listdir(root) == ["a.txt"]
