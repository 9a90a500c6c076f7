"""Limits on what a command may use, and what it sees of our environment."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from process_probe import Gaps, alive, token

from windlass.core.errors import WorkspaceError
from windlass.workspaces import environ
from windlass.workspaces.process import Limits, clean_env, run_command


@pytest.fixture
def cwd(tmp_path: Path) -> str:
    return str(tmp_path)


# --- S29


@pytest.mark.slow
@pytest.mark.parametrize("command", ["while :; do :; done", "sh -c 'while :; do :; done'; exit $?"])
async def test_s29_cpu_spin(cwd: str, command: str) -> None:
    result = await run_command(command, cwd=cwd, timeout=120, limits=Limits(cpu_seconds=1))
    assert (result.exit_code, result.killed) == (None, "cpu")


@pytest.mark.slow
async def test_s29_cpu_spin_that_ignores_the_warning_dies_a_second_later(cwd: str) -> None:
    result = await run_command("trap '' XCPU; while :; do :; done", cwd=cwd, timeout=120, limits=Limits(cpu_seconds=1))
    assert result.exit_code == 137


async def test_s29_ten_gigabytes_in_one_process(cwd: str) -> None:
    limits = Limits(memory_bytes=300 << 20)
    result = await run_command([sys.executable, "-c", "bytearray(10 << 30)"], cwd=cwd, limits=limits)
    assert result.exit_code == 1
    assert b"MemoryError" in result.output


async def test_s29_memory_of_all_processes_together(cwd: str) -> None:
    mark = token()
    hog = f"{sys.executable} -c 'import time; x = b\"x\" * (50 << 20); time.sleep(1{mark})'"
    limits = Limits(memory_bytes=150 << 20)
    result = await run_command(f"{hog} & {hog} & {hog} & {hog} & wait", cwd=cwd, timeout=120, limits=limits)
    assert (result.exit_code, result.killed) == (None, "memory")
    assert not alive(mark)
    # Two of them fit; pages that a fork shares are not counted twice.
    fork = "import os, time; x = b'x' * (60 << 20); [os.fork() for _ in range(3)]; time.sleep(0.3)"
    result = await run_command([sys.executable, "-c", fork], cwd=cwd, limits=limits)
    assert (result.exit_code, result.killed) == (0, None)


async def test_s29_fork_bomb(cwd: str) -> None:
    """Doubling every round, in groups and sessions of its own; harmless when it wins: it ends at 2^9 processes."""
    mark = token()
    twice = 'b $(($1-1)) & setsid bash -c "$(declare -f b); b $(($1-1))" &'
    bomb = f"b() {{ [ $1 -gt 0 ] && {{ {twice} }}; sleep 1{mark}; }}; b 9"
    result = await run_command(bomb, cwd=cwd, timeout=120, limits=Limits(processes=40))
    assert (result.exit_code, result.killed) == (None, "processes")
    assert not alive(mark)


async def test_s29_few_processes_are_fine(cwd: str) -> None:
    result = await run_command(
        "for i in 1 2 3 4; do sleep 0.2 & done; wait; echo ok", cwd=cwd, limits=Limits(processes=20)
    )
    assert (result.exit_code, result.output) == (0, b"ok\n")


async def test_s29_large_file(cwd: str) -> None:
    limits = Limits(file_bytes=1_000_000)
    result = await run_command("exec head -c 10M /dev/zero > big", cwd=cwd, limits=limits)
    assert (result.exit_code, result.killed) == (None, "file_size")
    assert Path(cwd, "big").stat().st_size <= 1_000_448  # whole blocks of 512 bytes
    python = "open('big', 'wb').write(bytes(10 << 20))"
    result = await run_command([sys.executable, "-c", python], cwd=cwd, limits=limits)
    assert (result.exit_code, b"File too large" in result.output) == (1, True)


async def test_s29_open_files(cwd: str) -> None:
    result = await run_command("ulimit -n; ulimit -Hn", cwd=cwd, limits=Limits(open_files=30))
    assert result.output == b"30\n30\n"


async def test_s29_output(cwd: str) -> None:
    async with Gaps() as gaps:
        result = await run_command("yes", cwd=cwd, timeout=120, limits=Limits(output_bytes=1_000_000))
    assert (result.exit_code, result.killed) == (None, "output")
    assert len(result.output) <= 8192
    assert gaps.worst < 0.25


async def test_s29_no_core_dumps_and_nothing_loosened(cwd: str) -> None:
    result = await run_command("ulimit -c; ulimit -f; ulimit -n; ulimit -t; ulimit -d", cwd=cwd)
    core, size, files, cpu, data = result.output.split()
    assert (core, cpu, data) == (b"0", b"unlimited", b"unlimited")
    assert int(size) * 1024 == 16 << 30
    assert int(files) == os.sysconf("SC_OPEN_MAX")
    # What is asked for above what we have ourselves changes nothing.
    result = await run_command("ulimit -n", cwd=cwd, limits=Limits(open_files=1 << 40))
    assert int(result.output) == os.sysconf("SC_OPEN_MAX")


async def test_s29_a_command_cannot_raise_its_limits(cwd: str) -> None:
    result = await run_command("ulimit -n 200; ulimit -f unlimited; ulimit -n", cwd=cwd, limits=Limits(open_files=30))
    assert result.output.endswith(b"\n30\n")
    assert result.output.count(b"cannot modify limit") == 2


async def test_s29_codes_of_a_programs_own_are_left_alone(cwd: str) -> None:
    assert (await run_command("exit 152", cwd=cwd)).exit_code == 152
    assert (await run_command("exit 153", cwd=cwd, limits=Limits(file_bytes=None))).exit_code == 153


@pytest.mark.parametrize("name", Limits.__struct_fields__)
def test_bad_limits_are_refused(name: str) -> None:
    with pytest.raises(WorkspaceError, match=name):
        Limits(**{name: 0})


# --- S30

SECRETS = {
    "ANTHROPIC_API_KEY": "sk-ant-secret",
    "OPENAI_API_KEY": "sk-secret",
    "AWS_SECRET_ACCESS_KEY": "aws-secret",
    "GITHUB_TOKEN": "ghp_secret",
    "DATABASE_URL": "postgres://u:secret@h/db",
    "HTTPS_PROXY": "http://u:secret@proxy",
    "SSH_AUTH_SOCK": "/run/secret/agent",
    "XDG_RUNTIME_DIR": "/run/secret",
    "WINDLASS_SERVER_KEY": "wl-secret",
}
INJECTED = (
    "LD_PRELOAD LD_LIBRARY_PATH LD_AUDIT DYLD_INSERT_LIBRARIES PYTHONSTARTUP PYTHONPATH PYTHONHOME BASH_ENV ENV "
    "PROMPT_COMMAND BASH_FUNC_ls%% SHELLOPTS GIT_SSH_COMMAND GIT_SSH GIT_CONFIG_COUNT GIT_CONFIG_KEY_0 "
    "GIT_EXTERNAL_DIFF GIT_ASKPASS SSH_ASKPASS NODE_OPTIONS PERL5OPT RUBYOPT JAVA_TOOL_OPTIONS LESSOPEN EDITOR VISUAL "
    "PAGER GIT_PAGER MANPAGER BROWSER IFS CDPATH GCONV_PATH"
)


async def _seen(cwd: str, env: Mapping[str, str] | None = None) -> dict[str, str]:
    result = await run_command(["env", "-0"], cwd=cwd, env=env, max_output=0)
    return dict(line.split("=", 1) for line in result.output.decode().split("\0") if line)


async def test_s30_no_key_is_seen(cwd: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    seen = await _seen(cwd)
    assert not SECRETS.keys() & seen.keys()
    assert not any("secret" in value for value in seen.values())
    assert seen["HOME"] == os.environ["HOME"]
    assert (seen["TERM"], seen["PAGER"], seen["GIT_TERMINAL_PROMPT"]) == ("dumb", "cat", "0")
    assert len(seen["WINDLASS_CALL_ID"]) == 26


@pytest.mark.parametrize("given_by", ["environment", "env"])
async def test_s30_injected_variables_are_dropped(cwd: str, monkeypatch: pytest.MonkeyPatch, given_by: str) -> None:
    script = Path(cwd, "evil.sh")
    script.write_text("echo injected\n")
    injected: dict[str, str] = {name: str(script) for name in INJECTED.split()}
    for name, value in injected.items() if given_by == "environment" else ():
        if name != "LD_PRELOAD":
            monkeypatch.setenv(name, value)
    seen = await _seen(cwd, injected if given_by == "env" else None)
    assert str(script) not in seen.values()
    result = await run_command("echo fine", cwd=cwd, env=injected if given_by == "env" else None)
    assert result.output == b"fine\n"


async def test_s30_the_caller_may_add_names(cwd: str) -> None:
    seen = await _seen(
        cwd, {"MY_TOOL_TOKEN": "t", "LC_ALL": "C", "TERM": "xterm", "WINDLASS_CALL_ID": "x", "EMPTY": ""}
    )
    assert (seen["MY_TOOL_TOKEN"], seen["LC_ALL"], seen["TERM"], seen["EMPTY"]) == ("t", "C", "dumb", "")
    assert seen["WINDLASS_CALL_ID"] != "x"


@pytest.mark.parametrize("env", [{"": "x"}, {"A=B": "x"}, {"A\0": "x"}, {"A": "x\0y"}])
async def test_s30_names_that_cannot_be(cwd: str, env: dict[str, str]) -> None:
    with pytest.raises(WorkspaceError, match="environment variable"):
        await run_command("true", cwd=cwd, env=env)


@given(st.dictionaries(st.text(min_size=1), st.text()), st.dictionaries(st.sampled_from(INJECTED.split()), st.text()))
def test_s30_clean_env_lets_nothing_else_through(base: dict[str, str], extra: dict[str, str]) -> None:
    extra = {name: value.replace("\0", "") for name, value in extra.items()}
    clean = clean_env(base | SECRETS, extra)
    assert clean.keys() - {"PATH", "TERM", "PAGER", "GIT_PAGER", "GIT_TERMINAL_PROMPT"} <= {
        name for name in base if name.isupper()
    }
    assert clean.keys() & set(INJECTED.split()) == {"PAGER", "GIT_PAGER"}
    assert (clean["PAGER"], clean["GIT_PAGER"]) == ("cat", "cat")
    assert all(os.path.isabs(folder) for folder in clean["PATH"].split(os.pathsep))


def _plant(folder: Path, name: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("#!/bin/sh\necho planted\n")
    (folder / name).chmod(0o755)


@pytest.mark.parametrize("name", ["ls", "bash", "sh", "env"])
async def test_s27_programs_planted_in_the_workspace_do_not_run(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cwd = tmp_path / "work"
    _plant(cwd, name)
    _plant(cwd / "bin", name)
    (tmp_path / "link").symlink_to(cwd / "bin")
    system = os.defpath
    for first in ("", ".", "bin", str(cwd), str(cwd / "bin"), str(tmp_path / "link"), str(cwd / ".." / "work" / "bin")):
        monkeypatch.setenv("PATH", f"{first}{os.pathsep}{system}")
        for env in (None, {"PATH": f"{first}{os.pathsep}{system}"}):
            result = await run_command(f"command -v {name}; {name} --version", cwd=str(cwd), env=env)
            assert b"planted" not in result.output
            assert result.output.startswith(os.fsencode(shutil.which(name, path="/bin:/usr/bin") or "?"))
            result = await run_command([name, "--version"], cwd=str(cwd), env=env)
            assert b"planted" not in result.output
    # Named by its path it does run: that is what the caller asked for.
    assert (await run_command([f"./{name}"], cwd=str(cwd))).output == b"planted\n"


def test_s27_path_of_a_workspace_at_the_top() -> None:
    assert environ.safe_path("/usr/bin:/opt/x:/bin", "/") == "/usr/bin:/bin"
    assert environ.safe_path("/opt/x", "/") == "/bin:/usr/bin"
    assert environ.safe_path("/ws-evil/bin:/ws/bin:/ws:/wsx", "/ws") == "/ws-evil/bin:/wsx"
    assert environ.safe_path(".:a/b::/opt/x", "") == "/opt/x"
    assert environ.find_program(["no-such-program", "sh"], "/bin", "/") == "/bin/sh"
    assert environ.find_program(["no-such-program"], "/bin", "/") is None
