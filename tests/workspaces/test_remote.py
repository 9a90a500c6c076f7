"""Workspaces elsewhere: the kit against the real server and against a service's API, and what goes wrong on the way."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from process_probe import alive, token
from sandbox_host import needs_bwrap
from tests.server.conftest import InProcess, Serve, Served, StartGateway, gateway, serve
from tests.stores.helpers import Proxy

from windlass.agent.agent import Agent
from windlass.core import registry
from windlass.core.errors import ConfigError, PathEscape, TransportError, WorkspaceError
from windlass.core.messages import ToolResponse
from windlass.core.ports import ExecResult, FileInfo
from windlass.testing.scripted import ScriptedProvider, call
from windlass.testing.workspace_kit import check_workspace
from windlass.workspaces.process import run_command
from windlass.workspaces.remote import HttpSandbox, RemoteWorkspace, SandboxProvider, SpawnOptions, connect
from windlass.workspaces.remote_http import KEY_VARIABLE
from windlass.workspaces.remote_provider import takes

__all__ = ["gateway", "serve"]

ALL = '[server.workspaces]\nallow = ["sandbox", "memory", "local"]\n'
#: The same for a gateway in this process.
OFFERED = {"workspaces": {"allow": ["sandbox", "memory", "local"]}}
PATIENCE = 20.0


async def until(ready: Callable[[], object]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not ready():
            await asyncio.sleep(0.01)


def ruler(served: Served) -> str:
    return (served.home / "admin-token").read_text().strip()


async def key_of(made: InProcess, tenant: str = "a") -> str:
    return (await made.gateway.accounts.create(f"k-{tenant}", tenant=tenant))[1]


# ------------------------------------------------------------------------------------------------ the server of ours


@pytest.mark.parametrize("kind", ["memory", "local", pytest.param("sandbox", marks=needs_bwrap)])
async def test_the_workspace_passes_the_kit_against_a_real_gateway(serve: Serve, kind: str) -> None:
    served = serve(ALL)
    provider = HttpSandbox(served.url, ruler(served), kind=kind)
    assert isinstance(provider, SandboxProvider)
    names = await check_workspace(lambda: RemoteWorkspace(provider))
    assert {"shell", "expected_sha256", "escape"} <= set(names)
    assert served.stop() == 0
    assert "Traceback" not in served.log.read_text()


@needs_bwrap
async def test_an_agent_works_in_a_sandbox_on_the_server_and_leaves_nothing(
    gateway: StartGateway, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "spaces").mkdir()
    made = await gateway(server={"workspaces": {"allow": ["sandbox"], "folder": str(tmp_path / "spaces")}})
    monkeypatch.setenv(KEY_VARIABLE, await key_of(made))
    script = [
        call("write_file", path="lib/add.sh", content="echo $(($1 + $2))\n"),
        [call("shell", command="sh lib/add.sh 2 3; touch /etc/x"), call("glob", pattern="**/*.sh")],
        call("grep", pattern="echo"),
        call("edit", path="lib/add.sh", old_string="+", new_string="*"),
        call("shell", command="sh lib/add.sh 2 3"),
        "Done.",
    ]
    agent = Agent(ScriptedProvider(script), tools="coding", workspace=f"remote:{made.url}", max_turns=20)
    space = agent.workspace
    assert isinstance(space, RemoteWorkspace) and space.root == f"remote:{made.url}"
    result = await agent.run("Multiply.")
    assert result.text == "Done."
    said = [part.response for message in agent.messages for part in message.parts if isinstance(part, ToolResponse)]
    assert len(os.listdir(tmp_path / "spaces")) == 1 and space.confinement == "bubblewrap"
    told = "\n".join(map(str, said))
    assert "5\n" in told and "Read-only file system" in told and said[-1] == "6"
    assert said[2:4] == ["lib/add.sh", "lib/add.sh"]
    await space.close()
    assert os.listdir(tmp_path / "spaces") == []
    await agent.destroy()


async def test_output_comes_while_the_command_runs_and_a_broken_listener_does_not_end_it(gateway: StartGateway) -> None:
    made = await gateway(server=OFFERED)
    space = RemoteWorkspace(HttpSandbox(made.url, await key_of(made), kind="local"))
    seen: list[bytes] = []
    ran = asyncio.create_task(
        space.exec("echo one; until [ -e go ]; do sleep 0.02; done; echo two", on_output=seen.append)
    )
    await until(lambda: seen)
    assert seen == [b"one\n"] and not ran.done()
    await space.write("go", b"")
    done = await ran
    assert (done.exit_code, done.output, b"".join(seen)) == (0, b"one\ntwo\n", b"one\ntwo\n")

    def broken(data: bytes) -> None:
        raise ValueError(data)

    assert (await space.exec("echo three; echo four", on_output=broken)).output == b"three\nfour\n"
    long = await space.exec("seq 100000", max_output=200)
    assert len(long.output) <= 200 and long.total_bytes == 588_895 and b"bytes cut" in long.output
    assert long.spool is None and (await space.exec("exit 7")).exit_code == 7
    late = await space.exec("echo begun; sleep 60", timeout=0.3)
    assert (late.exit_code, late.killed, late.output) == (None, "timeout", b"begun\n")
    assert (await space.exec(["sh", "-c", 'echo "$A b"'], env={"A": "a"})).output == b"a b\n"
    for wrong in ({"timeout": -1.0}, {"max_output": -1}, {"env": {"A=": "x"}}):
        with pytest.raises(WorkspaceError):
            await space.exec("true", **wrong)  # pyright: ignore[reportArgumentType]
    with pytest.raises(WorkspaceError, match="no-such-program"):
        await space.exec(["no-such-program"])
    await space.close()


async def test_names_that_are_no_text_come_back_as_they_are(gateway: StartGateway) -> None:
    made = await gateway(server=OFFERED)
    space = RemoteWorkspace(HttpSandbox(made.url, await key_of(made), kind="local"))
    odd = "a\udcff"
    await space.write(odd, b"x")
    assert [info.path for info in await space.list()] == [odd] and await space.read(odd) == b"x"
    assert (await space.exec("rm -- a*")).exit_code == 0 and await space.stat(odd) is None
    await space.close()


async def test_links_that_lead_out_are_refused_as_everywhere(gateway: StartGateway, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("S")
    made = await gateway(server=OFFERED)
    space = RemoteWorkspace(HttpSandbox(made.url, await key_of(made), kind="local"))
    await space.exec(["ln", "-s", str(tmp_path / "secret"), "link"])
    for action in (space.read("link"), space.write("link", b"x")):
        with pytest.raises(PathEscape):
            await action
    assert (tmp_path / "secret").read_text() == "S"
    await space.close()


@pytest.mark.parametrize("kind", ["local", pytest.param("sandbox", marks=needs_bwrap)])
async def test_r62_cancelling_ends_the_command_over_there(gateway: StartGateway, kind: str) -> None:
    made = await gateway(server=OFFERED)
    space = RemoteWorkspace(HttpSandbox(made.url, await key_of(made), kind=kind))
    mark = token()
    ran = asyncio.create_task(space.exec(f"trap '' TERM; sleep 1{mark} & sleep 2{mark}; wait", timeout=None))
    await until(lambda: len(alive(mark)) >= 2)
    ran.cancel()
    with pytest.raises(asyncio.CancelledError):
        await ran
    loop = asyncio.get_running_loop()
    begun = loop.time()
    await until(lambda: not alive(mark))
    assert loop.time() - begun < 10, "a second is promised: this is the guard"
    assert (await space.exec("echo on")).output == b"on\n"
    await space.close()


CHILD = """
import asyncio, sys
from windlass.workspaces.remote import HttpSandbox, RemoteWorkspace
space = RemoteWorkspace(HttpSandbox(sys.argv[1], sys.argv[2], kind="local"))
asyncio.run(space.exec("sleep " + sys.argv[3], timeout=None))
"""


async def test_a_client_that_is_killed_takes_its_command_with_it(gateway: StartGateway) -> None:
    made = await gateway(server=OFFERED)
    mark, key = token(), await key_of(made)
    client = await asyncio.create_subprocess_exec(sys.executable, "-c", CHILD, made.url, key, f"1{mark}")
    await until(lambda: len(alive(mark)) >= 2)
    client.kill()
    await client.wait()
    await until(lambda: not alive(mark))


async def test_a_server_that_is_killed_is_a_typed_error_and_the_next_one_says_so_too(
    serve: Serve, tmp_path: Path
) -> None:
    served = serve(f"{ALL}folder = '{tmp_path}'\n")  # what it leaves behind goes with the test
    space = RemoteWorkspace(HttpSandbox(served.url, ruler(served), kind="local"))
    begun: list[bytes] = []
    ran = asyncio.create_task(space.exec("echo begun; sleep 60", timeout=None, on_output=begun.append))
    await until(lambda: begun)
    served.stop(signal.SIGKILL)
    with pytest.raises(WorkspaceError, match="lost while a command ran") as lost:
        await ran
    assert isinstance(lost.value.__cause__, TransportError) and "not known" in lost.value.hint
    with pytest.raises(WorkspaceError, match="did not answer") as gone:
        await space.read("a")
    assert gone.value.path == "a" and gone.value.hint == "Nothing was done."
    with pytest.raises(WorkspaceError, match="did not answer"):
        await space.close()


async def test_a_server_that_stops_says_so_and_deletes_what_it_held(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "spaces").mkdir()
    served = serve(f"[server]\ndrain_seconds = 0.2\n{ALL}folder = '{tmp_path / 'spaces'}'\n")
    space = RemoteWorkspace(HttpSandbox(served.url, ruler(served), kind="local"))
    begun: list[bytes] = []
    mark = token()
    ran = asyncio.create_task(space.exec(f"echo begun; sleep 1{mark}", timeout=None, on_output=begun.append))
    await until(lambda: begun)
    assert len(os.listdir(tmp_path / "spaces")) == 1
    served.process.terminate()
    with pytest.raises(WorkspaceError, match="stopping") as told:
        await ran
    assert "new workspace" in told.value.hint
    assert await asyncio.to_thread(served.process.wait, 20) == 0
    assert os.listdir(tmp_path / "spaces") == [] and not alive(mark)
    assert "Traceback" not in served.log.read_text()
    with pytest.raises(WorkspaceError):
        await space.close()


async def test_a_command_is_never_started_twice_when_its_answer_is_lost(gateway: StartGateway) -> None:
    made = await gateway(server=OFFERED)
    async with Proxy("127.0.0.1", made.port) as proxy:
        space = RemoteWorkspace(HttpSandbox(f"http://127.0.0.1:{proxy.port}", await key_of(made), kind="local"))
        await space.write("log", b"")
        for what, action in (
            (b"/exec", lambda: space.exec("echo ran >>log")),
            (b"/files/write", lambda: space.write("b", b"x", expected_sha256="")),
            (b"/files/delete", lambda: space.delete("b")),
        ):
            before = proxy.cuts
            proxy.cut_answers_to(what, 1)
            with pytest.raises(WorkspaceError):
                await action()
            assert proxy.cuts == before + 1
        assert await space.read("log") in (b"ran\n", b"") and await space.stat("b") is None
        await space.close()


async def test_what_the_server_refuses_is_said_with_what_to_do(gateway: StartGateway) -> None:
    made = await gateway(server={"workspaces": {"allow": ["memory", "local"], "per_key": 1}})
    key = await key_of(made)
    one = RemoteWorkspace(HttpSandbox(made.url, key, kind="memory"))
    await one.write("a", b"1")
    for space, says, hint in (
        (RemoteWorkspace(HttpSandbox(made.url, key, kind="memory")), "too many workspaces", "Close some"),
        (RemoteWorkspace(HttpSandbox(made.url, "wl-wrong", kind="memory")), "Unauthorized", KEY_VARIABLE),
        (RemoteWorkspace(HttpSandbox(made.url, key)), "no workspaces of kind sandbox", ""),
    ):
        with pytest.raises(WorkspaceError, match=says) as refused:
            await space.read("a")
        assert hint in refused.value.hint and key not in str(refused.value)
        await space.close()
    big = bytes(17 * 1024 * 1024)
    with pytest.raises(WorkspaceError, match="too large"):
        await one.write("big", big)
    with pytest.raises(WorkspaceError, match="runs no commands"):
        await one.exec("true")
    for options in (SpawnOptions(cpu=2.0), SpawnOptions(template="x"), SpawnOptions(more={"a": 1})):
        with pytest.raises(WorkspaceError, match="no template"):
            await RemoteWorkspace(HttpSandbox(made.url, key), options).stat(".")
    await made.gateway.accounts.revoke((await made.gateway.accounts.list())[0].key_id)
    with pytest.raises(WorkspaceError):
        await one.read("a")
    off = await gateway()
    with pytest.raises(WorkspaceError, match="makes no workspaces") as refused:
        await RemoteWorkspace(HttpSandbox(off.url)).read("a")
    assert "[server.workspaces]" in refused.value.hint


async def test_a_workspace_that_lay_unused_is_gone_and_the_error_says_why(gateway: StartGateway) -> None:
    made = await gateway(server=OFFERED)
    space = RemoteWorkspace(HttpSandbox(made.url, kind="memory"), SpawnOptions(idle_seconds=0.05))
    await space.write("a", b"1")
    await asyncio.sleep(0.2)
    with pytest.raises(WorkspaceError, match="There is no workspace") as gone:
        await space.read("a")
    assert "unused for too long" in gone.value.hint
    await space.close()


async def test_answers_that_no_server_of_ours_gives_are_errors(gateway: StartGateway) -> None:
    del gateway
    answers = {
        b"/workspaces ": b'{"id":"w","capabilities":["shell"],"confinement":""}',
        b"/files/read": b"{}", b"/files/stat": b'{"entry":{"pith":"a"}}', b"/files/list": b"<html>",
        b"/exec": b'{"output":"!"}\n{"result":{}}\n',
    }  # fmt: skip

    async def other(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        body = next((body for where, body in answers.items() if where in head), b"{}")
        writer.write(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(other, "127.0.0.1", 0) as server:
        space = RemoteWorkspace(HttpSandbox(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"))
        for action in (space.read("a"), space.stat("a"), space.list(), space.exec("true")):
            with pytest.raises(WorkspaceError, match="answered"):
                await action
        answers[b"/exec"] = b'{"output":""}\n'
        with pytest.raises(WorkspaceError, match="before the command's end"):
            await space.exec("true")
        await space.close()
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        with pytest.raises(WorkspaceError, match="did not answer"):
            await RemoteWorkspace(HttpSandbox(f"http://127.0.0.1:{sock.getsockname()[1]}")).read("a")


def test_addresses_hold_no_key_and_nothing_shows_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, "wl-secret")
    space = registry.make("workspaces", "remote:https://host.example:8443/?kind=memory")
    assert isinstance(space, RemoteWorkspace) and space.root == "remote:https://host.example:8443"
    assert space.capabilities == {"filesystem"}
    shown = f"{space!r} {HttpSandbox('http://h/', 'wl-secret')!r} {space.root}"
    assert "secret" not in shown and "http://h'" in shown
    assert connect("http://h").capabilities == {"shell", "filesystem"}
    for url in ("", "host", "ftp://h", "https://user:wl-secret@h", "https://h?key=wl-secret", "https://h?kind=x",
                "https://h#wl-secret"):  # fmt: skip
        with pytest.raises(ConfigError) as refused:
            connect(url)
        assert "wl-secret" not in f"{refused.value} {refused.value.hint}"
    with pytest.raises(ConfigError):
        HttpSandbox("https://h?kind=memory")


def test_one_provider_serves_several_event_loops_and_keeps_no_connection_after_the_last_sandbox(serve: Serve) -> None:
    served = serve(ALL)
    provider = HttpSandbox(served.url, ruler(served), kind="memory")

    async def use() -> bytes:
        one, two = RemoteWorkspace(provider), RemoteWorkspace(provider)
        await one.write("a", b"1")
        await two.write("a", b"2")
        await one.close()
        data = await two.read("a")
        await two.close()
        return data

    assert [asyncio.run(use()), asyncio.run(use())] == [b"2", b"2"]
    assert list(vars(provider)["_loops"].values()) == []


# ------------------------------------------------------------------------------------------------- services of others


EXAMPLE = Path(__file__).parents[2] / "examples" / "e2b_workspace.py"


def example() -> Any:
    spec = importlib.util.spec_from_file_location("e2b_workspace", EXAMPLE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["e2b_workspace"] = module
    spec.loader.exec_module(module)
    return module


async def test_the_example_for_a_service_passes_the_kit_and_deletes_what_it_made() -> None:
    e2b = example()
    async with e2b.stand_in() as (url, app):
        provider: Any = e2b.E2bSandbox("e2b_key", url, url)
        assert takes(provider.exec, "on_output") and isinstance(e2b.E2bSandbox("k"), SandboxProvider)
        names = await check_workspace(lambda: RemoteWorkspace(provider))
        assert "shell" in names and app.alive == {}
        space, mark, seen = RemoteWorkspace(provider), token(), list[bytes]()
        ran = asyncio.create_task(space.exec(f"echo on; sleep 1{mark}", timeout=None, on_output=seen.append))
        await until(lambda: seen and alive(mark))
        ran.cancel()
        with pytest.raises(asyncio.CancelledError):
            await ran
        await until(lambda: not alive(mark))
        late = await space.exec("echo on; sleep 9", timeout=0.2)
        assert (late.killed, late.output) == ("timeout", b"on\n")
        await space.write("run.sh", b"one", expected_sha256="")
        await space.exec(["chmod", "755", "run.sh"])
        await space.write("run.sh", b"two")
        assert (await space.exec("stat -c %a run.sh; ls -A; cat run.sh")).output == b"755\nrun.sh\ntwo"
        await space.close()
        assert app.alive == {}
        with pytest.raises(WorkspaceError, match="e2b refused"):
            await RemoteWorkspace(e2b.E2bSandbox("wrong", url, url)).read("a")
        await provider.aclose()


class Folders:
    """The seven functions and no more, as naive as they may be, over folders of this machine."""

    name = "folders"

    def __init__(self, place: Path) -> None:
        self.place, self.count = place, 0
        self.events: list[str] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.fails = 0

    async def spawn(self, options: SpawnOptions, /) -> Path:
        self.events.append("spawn")
        await self.gate.wait()
        if self.fails:
            self.fails -= 1
            raise WorkspaceError("no room")
        self.count += 1
        folder = self.place / str(self.count)
        folder.mkdir()
        return folder

    async def exec(
        self, handle: Path, command: str | Sequence[str], /, *, timeout: float | None, env: Mapping[str, str]
    ) -> ExecResult:
        self.events.append("exec")
        return await run_command(command, cwd=str(handle), timeout=timeout, env=env, max_output=0)

    async def read_file(self, handle: Path, path: str, /) -> bytes:
        return (handle / path).read_bytes()

    async def write_file(self, handle: Path, path: str, data: bytes, /) -> None:
        (handle / path).parent.mkdir(parents=True, exist_ok=True)
        (handle / path).write_bytes(data)

    async def list_files(self, handle: Path, path: str, /) -> Sequence[FileInfo]:
        found: list[FileInfo] = []
        for one in (handle / path).iterdir():
            size = one.stat().st_size if one.is_file() else 0
            found.append(FileInfo(str(one.relative_to(handle)), "dir" if one.is_dir() else "file", size))
        return found

    async def destroy(self, handle: Path, /) -> None:
        self.events.append("destroy")
        subprocess.run(["rm", "-rf", str(handle)], check=True)


class FilesOnly(Folders):
    """One that runs nothing, has a function to delete, and tells every fault of a file as not found."""

    capabilities = frozenset({"filesystem"})

    async def exec(self, handle: Path, command: Any, /, *, timeout: float | None, env: Mapping[str, str]) -> ExecResult:
        raise AssertionError(command)

    async def read_file(self, handle: Path, path: str, /) -> bytes:
        try:
            return (handle / path).read_bytes()
        except OSError as error:
            raise FileNotFoundError(str(error)) from error

    async def list_files(self, handle: Path, path: str, /) -> Sequence[FileInfo]:
        return [] if (handle / path).is_file() else await super().list_files(handle, path)

    async def delete_file(self, handle: Path, path: str, /) -> None:
        if (handle / path).is_dir():
            (handle / path).rmdir()
        else:
            (handle / path).unlink()


@pytest.mark.parametrize("kind", [Folders, FilesOnly])
async def test_seven_functions_are_enough_for_the_kit(place: Path, kind: type[Folders]) -> None:
    provider = kind(place)
    assert isinstance(provider, SandboxProvider)
    await check_workspace(lambda: RemoteWorkspace(provider))
    assert list(place.iterdir()) == [] and provider.events.count("spawn") == provider.events.count("destroy") > 10


async def test_a_sandbox_is_spawned_at_first_use_once_and_again_after_a_failure(place: Path) -> None:
    provider = Folders(place)
    space = RemoteWorkspace(provider)
    assert (space.root, space.capabilities, space.confinement) == (
        "remote:folders", {"shell", "filesystem", "network"}, "remote (folders)",
    )  # fmt: skip
    with pytest.raises(PathEscape):
        await space.read("../x")
    assert provider.events == []
    provider.fails = 1
    with pytest.raises(WorkspaceError, match="no room"):
        await space.list()
    provider.gate.clear()
    waiting = [asyncio.create_task(space.list()) for _ in range(5)]
    await until(lambda: provider.events.count("spawn") == 2)
    waiting[0].cancel()
    await asyncio.sleep(0)
    provider.gate.set()
    done = await asyncio.gather(*waiting, return_exceptions=True)
    assert isinstance(done[0], asyncio.CancelledError) and done[1:] == [[], [], [], []]
    assert provider.events == ["spawn", "spawn"]
    await space.close()
    await space.close()
    assert provider.events == ["spawn", "spawn", "destroy"]


async def test_closing_destroys_also_when_it_is_cancelled_and_what_is_still_being_spawned(place: Path) -> None:
    provider = Folders(place)
    space = RemoteWorkspace(provider)
    provider.gate.clear()
    using = asyncio.create_task(space.list())
    await until(lambda: provider.events == ["spawn"])
    closing = asyncio.create_task(space.close())
    await asyncio.sleep(0)
    for _ in range(3):
        closing.cancel()
        await asyncio.sleep(0)
    assert not closing.done()
    provider.gate.set()
    with pytest.raises(asyncio.CancelledError):
        await closing
    assert provider.events == ["spawn", "destroy"] and list(place.iterdir()) == []
    with pytest.raises(WorkspaceError, match="closed"):
        await using
    with pytest.raises(WorkspaceError, match="closed"):
        await space.exec("true")
    unused = RemoteWorkspace(provider)
    await unused.close()
    assert provider.events == ["spawn", "destroy"]


async def test_a_service_that_does_not_answer_in_time_is_an_error(place: Path) -> None:
    class Slow(Folders):
        async def read_file(self, handle: Path, path: str, /) -> bytes:
            await asyncio.sleep(60)
            return b""

        async def destroy(self, handle: Path, /) -> None:
            await asyncio.sleep(60)

    provider = Slow(place)
    space = RemoteWorkspace(provider, timeout=0.05, spawn_timeout=0.05)
    provider.gate.clear()
    with pytest.raises(WorkspaceError, match="spawned no sandbox within"):
        await space.read("a")
    provider.gate.set()
    with pytest.raises(WorkspaceError, match="took over"):
        await space.read("a")
    with pytest.raises(WorkspaceError, match="did not destroy"):
        await space.close()


async def test_a_write_that_is_cancelled_is_whole_or_was_not_begun(place: Path) -> None:
    class Halting(Folders):
        async def write_file(self, handle: Path, path: str, data: bytes, /) -> None:
            self.events.append("write")
            await super().write_file(handle, path, data)
            await self.gate.wait()

    provider = Halting(place)
    space = RemoteWorkspace(provider)
    await space.write("a", b"old")
    provider.gate.clear()
    writing = asyncio.create_task(space.write("a", b"new"))
    await until(lambda: provider.events.count("write") == 2)
    assert await space.read("a") == b"old"
    writing.cancel()
    await asyncio.sleep(0)
    provider.gate.set()
    with pytest.raises(asyncio.CancelledError):
        await writing
    assert await space.read("a") == b"new" and [info.path for info in await space.list()] == ["a"]
    await space.close()


async def test_replacing_follows_links_keeps_modes_and_refuses_what_is_no_file(place: Path) -> None:
    space = RemoteWorkspace(Folders(place))
    await space.exec("mkdir d; echo 1 >d/real; chmod 640 d/real; ln -s d/real link; mkfifo pipe")
    await space.write("link", b"2")
    done = await space.exec("stat -c '%F %a' d/real; stat -c %F link; cat d/real; ls -A . d")
    assert done.output == b"regular file 640\nsymbolic link\n2.:\nd\nlink\npipe\n\nd:\nreal\n"
    with pytest.raises(WorkspaceError, match="not a regular file"):
        await space.write("pipe", b"3")
    await space.delete("link")
    assert (await space.exec("ls -A d; ls -A")).output == b"real\nd\npipe\n"
    await space.close()


async def test_listings_of_one_folder_at_a_time_make_the_same_tree(place: Path) -> None:
    provider = Folders(place)
    space = RemoteWorkspace(provider)
    await space.exec("mkdir -p a/b/c x; touch a/1 a/b/2 a/b/c/3 x/4 5")
    every = [info.path for info in await space.list(depth=9)]
    assert every == ["5", "a", "a/1", "a/b", "a/b/2", "a/b/c", "a/b/c/3", "x", "x/4"]
    assert [info.path for info in await space.list("a/b", depth=1)] == ["a/b/2", "a/b/c"]
    assert [info.path for info in await space.list(depth=9, limit=4)] == ["5", "a", "a/1", "x"]
    assert await space.list(depth=0) == []
    await space.close()


def test_optional_keywords_are_seen() -> None:
    class Any_(Folders):
        async def read_file(self, handle: Path, path: str, /, **more: Any) -> bytes:
            return bytes(more["limit"])

    assert takes(HttpSandbox.exec, "on_output", "max_output") and not takes(Folders.exec, "on_output")
    assert takes(Any_.read_file, "limit") and not takes(Folders.read_file, "limit")
