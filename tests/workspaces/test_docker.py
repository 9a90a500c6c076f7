"""The container workspace, against an engine that keeps folders, and against a real one where it runs."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from process_probe import alive, token

from windlass.agent.agent import Agent
from windlass.core import registry
from windlass.core.errors import PathEscape, WorkspaceError
from windlass.testing.scripted import ScriptedProvider, call
from windlass.testing.workspace_kit import check_workspace
from windlass.workspaces.docker import DockerWorkspace

FAKE = Path(__file__).with_name("fake_docker.py")


class Engine:
    """A running engine and the program that reaches it."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.program = str(home / "bin" / "docker")

    def calls(self, name: str = "") -> list[list[str]]:
        log = self.home / "calls.jsonl"
        found = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
        return [words for words in found if words[0] == name or not name]

    def containers(self) -> list[str]:
        return [path.name for path in self.home.iterdir() if path.name.startswith("windlass-")]


@pytest.fixture
def engine(place: Path, monkeypatch: pytest.MonkeyPatch) -> Generator[Engine]:
    (place / "bin").mkdir()
    program = place / "bin" / "docker"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S -E "{FAKE}" "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("DOCKER_CONFIG", str(place))
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    server = subprocess.Popen(
        [sys.executable, "-S", str(FAKE).replace("docker.py", "dockerd.py"), str(place)], stdout=subprocess.PIPE
    )
    assert server.stdout is not None
    with server.stdout as out:
        assert out.readline() == b"ready\n"
        yield Engine(place)
        server.kill()
        server.wait()


async def test_docker_keeps_the_contract(engine: Engine) -> None:
    names = await check_workspace(lambda: DockerWorkspace("debian"))
    assert "shell" in names
    assert engine.containers() == []
    assert len(engine.calls("create")) == len(engine.calls("rm")) > 10


async def test_the_container_is_made_once_at_first_use_with_its_bounds(engine: Engine) -> None:
    space = DockerWorkspace("debian:12", memory_mb=512, cpu=1.5)
    assert (engine.calls(), space.root, space.confinement) == ([], "docker:debian:12:/workspace", "docker")
    await asyncio.gather(*[space.exec("true") for _ in range(5)])
    (made,) = engine.calls("create")
    assert made[made.index("--entrypoint") :] == ["--entrypoint", "tail", "debian:12", "-f", "/dev/null"]
    assert made[made.index("--memory") :][:4] == ["--memory", "512m", "--cpus", "1.5"]
    for option, value in (("--cap-drop", "ALL"), ("--network", "none"), ("--security-opt", "no-new-privileges")):
        assert made[made.index(option) + 1] == value
    assert len(engine.calls("start")) == 1
    await space.close()
    await space.close()
    assert (engine.containers(), len(engine.calls("rm"))) == ([], 1)


async def test_r58_timeout_has_code_124_and_kills_inside_the_container(engine: Engine) -> None:
    space, mark, seen = DockerWorkspace("debian"), token(), list[bytes]()
    command = f"echo up; (setsid sleep 1{mark} &) ; sleep 1{mark}"
    result = await space.exec(command, timeout=1.5, on_output=seen.append)
    assert (result.exit_code, result.killed, result.output) == (124, "timeout", b"up\n[timeout]")
    assert b"".join(seen) == result.output
    assert not alive(mark)
    await space.close()


async def test_r58_cancelled_command_is_killed_inside_the_container(engine: Engine) -> None:
    space, mark, up = DockerWorkspace("debian"), token(), asyncio.Event()
    task = asyncio.create_task(space.exec(f"echo up; sleep 1{mark}", timeout=None, on_output=lambda _: up.set()))
    await up.wait()
    assert alive(mark)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not alive(mark)
    await space.close()


async def test_close_removes_the_container_when_cancelled_and_while_it_starts(engine: Engine) -> None:
    space = DockerWorkspace("debian")
    await space.exec("true")
    task = asyncio.create_task(space.close())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert engine.containers() == []
    space = DockerWorkspace("debian")
    starting = asyncio.create_task(space.read("x"))
    while not engine.calls("create")[1:]:
        await asyncio.sleep(0.005)
    await space.close()
    with pytest.raises((WorkspaceError, asyncio.CancelledError)):
        await starting
    assert engine.containers() == []


def test_a_workspace_nobody_closed_is_removed_at_the_end(engine: Engine) -> None:
    code = (
        "import asyncio; from windlass.workspaces.docker import DockerWorkspace as W\n"
        "w = W('debian'); print(asyncio.run(w.exec('echo hello')).output)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.returncode) == ("b'hello\\n'\n", 0)
    assert engine.containers() == []


async def test_s30_only_given_variables_reach_the_container_and_no_value_its_command_line(engine: Engine) -> None:
    os.environ["OPENAI_API_KEY"] = "sk-canary"
    space = DockerWorkspace("debian")
    try:
        result = await space.exec("env", env={"TOKEN": "canary-2", "LD_PRELOAD": "/x.so"})
    finally:
        del os.environ["OPENAI_API_KEY"]
    lines = dict(line.split("=", 1) for line in result.output.decode().splitlines())
    assert lines["TOKEN"] == "canary-2"
    assert not {"OPENAI_API_KEY", "LD_PRELOAD", "DOCKER_CONFIG"} & lines.keys()
    assert "canary" not in json.dumps(engine.calls())
    await space.close()


async def test_files_are_bounded_and_writes_keep_the_mode_and_follow_links(engine: Engine) -> None:
    space = DockerWorkspace("debian", max_file_bytes=1000)
    with pytest.raises(WorkspaceError, match="too large"):
        await space.write("big", b"x" * 1001)
    await space.exec("head -c 5000 /dev/zero >big; printf one >a; chmod 750 a; ln -s a l; mkfifo p; touch -- '-rf'")
    for path, why in (("big", "too large"), ("p", "not a regular file")):
        with pytest.raises(WorkspaceError, match=why):
            await space.read(path)
    assert len(await space.read("big", limit=10)) == 10
    await space.write("l", b"two")
    result = await space.exec("stat -c '%a %F' a; readlink l; cat a; ls -A")
    assert result.output.decode() == "750 regular file\na\ntwo-rf\na\nbig\nl\np\n"
    await space.delete("./-rf")
    await space.delete("l")
    assert [(each.path, each.kind) for each in await space.list()] == [("a", "file"), ("big", "file"), ("p", "other")]
    with pytest.raises(PathEscape):
        await space.read("../etc/passwd")
    await space.close()


async def test_names_with_line_breaks_cannot_forge_entries(engine: Engine) -> None:
    space = DockerWorkspace("debian")
    await space.exec("touch \"$(printf 'a\\n81a4 5 5 ./forged')\"")
    assert [each.path for each in await space.list()] == []  # a name with `/` cannot be made
    await space.exec("touch \"$(printf 'a\\n81a4 5 5 forged')\" b")
    assert [each.path for each in await space.list()] == ["a\n81a4 5 5 forged", "b"]
    await space.close()


async def test_what_docker_refuses_is_a_workspace_error(engine: Engine) -> None:
    space = DockerWorkspace("missing")
    with pytest.raises(WorkspaceError, match="No such image"):
        await space.exec("true")
    await space.close()
    space = DockerWorkspace("debian")
    await space.exec("true")
    subprocess.run([engine.program, "rm", "-f", "-v", engine.calls("start")[-1][1]], check=True, capture_output=True)
    with pytest.raises(WorkspaceError, match="No such container"):
        await space.exec("true")
    with pytest.raises(WorkspaceError, match="No such container"):
        await space.read("x")
    await space.close()


def test_bad_settings_and_a_missing_program_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    bad: list[dict[str, Any]] = [
        *({"image": ""}, {"image": "-x"}, {"image": "i", "cwd": "rel"}, {"image": "i", "cwd": "/"}),
        *({"image": "i", "memory_mb": 0}, {"image": "i", "cpu": 0.0}),
    ]
    for settings in bad:
        with pytest.raises(WorkspaceError):
            DockerWorkspace(docker="/bin/true", **settings)
    # S27: a docker planted in the current folder is not found.
    (tmp_path / "docker").write_text("#!/bin/sh\n")
    (tmp_path / "docker").chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    if not any(os.access(f"{each}/docker", os.X_OK) for each in os.defpath.split(os.pathsep)):
        with pytest.raises(WorkspaceError, match="not on PATH"):
            DockerWorkspace("debian")


async def test_an_agent_works_in_a_container(engine: Engine) -> None:
    script: list[Any] = [
        [call("write_file", path="a.txt", content="hello\n")],
        [call("shell", command="cat a.txt; pwd >/dev/null")],
        "Done.",
    ]
    space = registry.make("workspaces", "docker:debian")
    agent = Agent(ScriptedProvider(script), tools="coding", workspace=space)
    result = await agent.run("Go")
    assert result.text == "Done."
    assert agent.messages[4].parts[0].response == "hello"  # pyright: ignore[reportAttributeAccessIssue]
    await agent.destroy()
    assert engine.containers() == []


def _answers() -> bool:
    program = shutil.which("docker")
    return bool(program) and subprocess.run([program, "info"], capture_output=True, timeout=20).returncode == 0


@pytest.mark.skipif(not _answers(), reason="no docker engine answers here")
async def test_a_real_engine_keeps_the_contract() -> None:
    await check_workspace(lambda: DockerWorkspace("busybox"))
