"""`windlass acp` as an editor starts it: a process, its pipes, and how it ends."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from acp.core import connect_to_agent

from tests.apps.acp.editor import PATIENCE, Editor, asks
from tests.apps.helpers import Cli, Terminal, asked, calls, ended, says, tool_results
from windlass.apps import cli as command_line
from windlass.core import clock
from windlass.testing.faults import FaultServer

ROOT = Path(__file__).parents[3]


@pytest.fixture
def ready(cli: Cli) -> Cli:
    """The program with a folder to work in, and no sandbox: what is tested here is the protocol."""
    (cli.folder / "a.txt").write_text("one\ntwo\n")
    cli.env.update(WINDLASS_SANDBOX="none", PYTHONPATH=str(ROOT))
    return cli


class Started:
    """A process, and the SDK's client on its pipes."""

    def __init__(self, process: asyncio.subprocess.Process, client: Any, lines: list[bytes]) -> None:
        self.process, self.client, self.lines = process, client, lines
        self.errors = b""


@asynccontextmanager
async def started(cli: Cli, editor: Editor, *args: str) -> AsyncGenerator[Started]:
    """Start the program and connect; every line that it writes on stdout is kept."""
    process = await cli.start("acp", *args, stdin=asyncio.subprocess.PIPE)
    assert process.stdin and process.stdout and process.stderr
    reader, lines = asyncio.StreamReader(limit=1 << 26), list[bytes]()
    source, errors = process.stdout, process.stderr

    async def copy() -> None:
        while line := await source.readline():
            lines.append(line)
            reader.feed_data(line)
        reader.feed_eof()

    copying, told = asyncio.create_task(copy()), asyncio.create_task(errors.read())
    client = connect_to_agent(editor, process.stdin, reader, use_unstable_protocol=True)  # pyright: ignore[reportArgumentType]
    here = Started(process, client, lines)
    try:
        await client.initialize(protocol_version=1)
        yield here
    finally:
        process.stdin.close()
        try:
            async with clock.deadline(PATIENCE):
                await process.wait()
        finally:
            if process.returncode is None:
                process.kill()
        await copying
        here.errors = await told
        await client.close()


async def rows(cli: Cli, session: str) -> list[dict[str, Any]]:
    """Return what is kept of a session."""
    done = await cli("sessions", "export", session)
    assert done.code == 0, done.err
    return [json.loads(line) for line in done.out.splitlines()]


async def test_a_task_through_the_program(ready: Cli) -> None:
    script = [
        calls(("read_file", {"path": "a.txt"}), text="I look."),
        calls(("edit", {"path": "a.txt", "old_string": "two", "new_string": "2"})),
        calls(("shell", {"command": "cat a.txt"})),
        says("Done."),
    ]
    editor = Editor()
    async with FaultServer(script) as server:
        ready.use(server)
        async with started(ready, editor) as here:
            made = await here.client.new_session(cwd=str(ready.folder), mcp_servers=[])
            answer = await here.client.prompt(session_id=made.session_id, prompt=asks("Make two a digit"))
        assert asked(server, 0)["messages"][0]["role"] == "system"
    assert answer.stop_reason == "end_turn" and answer.usage.output_tokens == 12
    assert here.process.returncode == 0 and here.errors.count(b"Traceback") == 0
    assert editor.text() == "I look.Done."
    assert [row["status"] for row in editor.calls().values()] == ["completed"] * 3
    assert [question.kind for question in editor.asked] == ["edit", "execute"]
    assert (ready.folder / "a.txt").read_text() == "one\n2\n"
    assert [(info["kind"]) for info in await rows(ready, made.session_id)][-1] == "run.finished"


async def test_nothing_but_the_protocol_gets_onto_stdout(ready: Cli) -> None:
    editor = Editor()
    script = [calls(("make_noise", {}), ("shell", {"command": "cat; echo done"})), says("ok")]
    async with FaultServer(script) as server:
        ready.use(server)
        async with started(ready, editor, "--tools", "shell,tests.apps.acp.noisy:noise") as here:
            made = await here.client.new_session(cwd=str(ready.folder), mcp_servers=[])
            await here.client.prompt(session_id=made.session_id, prompt=asks("go"))
        assert "read b''" in tool_results(server)[0]
    assert all(json.loads(line)["jsonrpc"] == "2.0" for line in here.lines) and len(here.lines) > 5
    assert not any(b"noise" in line and b"method" not in line for line in here.lines)
    assert here.errors.count(b"noise:") == 3


async def test_r37_a_killed_program_leaves_a_history_that_loads(ready: Cli) -> None:
    first, second = Editor(), Editor()
    script = [calls(("shell", {"command": "echo $$ > pid; sleep 600"}), text="Now."), says("Going on.")]
    async with FaultServer(script) as server:
        ready.use(server)
        async with started(ready, first) as here:
            made = await here.client.new_session(cwd=str(ready.folder), mcp_servers=[])
            prompt = asyncio.create_task(here.client.prompt(session_id=made.session_id, prompt=asks("go")))
            await there(ready.folder / "pid")
            here.process.kill()
            with pytest.raises(ConnectionError):
                await prompt
        os.killpg(int((ready.folder / "pid").read_text()), signal.SIGKILL)
        async with started(ready, second) as here:
            await here.client.load_session(cwd=str(ready.folder), session_id=made.session_id, mcp_servers=[])
            assert second.text("user_message_chunk") == "go" and second.text() == "Now."
            (row,) = second.calls().values()
            assert row["status"] == "failed" and "Outcome unknown" in str(row["content"])
            assert "/continue" in second.text("agent_thought_chunk")
            answer = await here.client.prompt(session_id=made.session_id, prompt=asks("/continue"))
            assert answer.stop_reason == "end_turn" and second.text() == "Now.Going on."
        assert "Outcome unknown" in tool_results(server)[0]


async def there(path: Path) -> None:
    """Wait for a file that has content."""
    async with clock.deadline(PATIENCE):
        while not path.exists() or not path.read_text().strip():
            await clock.sleep(0.02)


@pytest.mark.parametrize("how", ["eof", "SIGTERM"])
async def test_the_end_is_clean_and_what_ran_is_kept(ready: Cli, how: str) -> None:
    editor = Editor()
    async with FaultServer([calls(("shell", {"command": "echo $$ > pid; sleep 600"}))]) as server:
        ready.use(server)
        async with started(ready, editor) as here:
            made = await here.client.new_session(cwd=str(ready.folder), mcp_servers=[])
            prompt = asyncio.create_task(here.client.prompt(session_id=made.session_id, prompt=asks("go")))
            await there(ready.folder / "pid")
            pid = int((ready.folder / "pid").read_text())
            if how == "SIGTERM":
                here.process.terminate()
                async with clock.deadline(PATIENCE):
                    await here.process.wait()
        outcome = (await asyncio.gather(prompt, return_exceptions=True))[0]
    assert isinstance(outcome, ConnectionError) or getattr(outcome, "stop_reason", "") == "cancelled"
    assert here.process.returncode == (0 if how == "eof" else 130) and b"Traceback" not in here.errors
    kept = await rows(ready, made.session_id)
    assert kept[-1]["kind"] == "run.finished" and kept[-1]["data"]["stop_reason"] == "cancelled"
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_requests_from_a_file_are_answered(ready: Cli, tmp_path: Path) -> None:
    """Nobody waits for a file: what it holds is answered, garbage too, and the program ends."""
    new = {"jsonrpc": "2.0", "id": 2, "method": "session/new", "params": {"cwd": str(ready.folder), "mcpServers": []}}
    lines = [
        b'{"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {"protocolVersion": 7}}', b"", b"{broken",
        b"[]", b"3", b'{"id": [1], "result": {}}', json.dumps(new).encode(),
        b'{"jsonrpc": "2.0", "id": 3, "method": "session/new", "params": {}}',
        b'{"jsonrpc": "2.0", "id": "4", "method": "no/such"}', b'{"jsonrpc": "2.0", "method": "no/such"}',
        b'{"jsonrpc": "2.0", "id": 99, "result": {}}',
        b'{"jsonrpc": "2.0", "id": 5, "method": "session/prompt", "params": {"sessionId": "nobody", "prompt": []}}',
    ]  # fmt: skip
    (tmp_path / "in").write_bytes(b"\n".join(lines))
    ready.env["WINDLASS_MODEL"] = "echo"
    with (tmp_path / "in").open("rb") as file:
        done = await ended(await ready.start("acp", stdin=file.fileno()))
    answers = [json.loads(line) for line in done.raw.splitlines()]
    assert done.code == 0
    by_id = {str(each["id"]): each for each in answers if each.get("id") is not None}
    assert by_id["1"]["result"]["protocolVersion"] == 1 and by_id["2"]["result"]["sessionId"]
    codes = {key: by_id[key]["error"]["code"] for key in ("3", "4", "5")}
    assert codes == {"3": -32602, "4": -32601, "5": -32002}
    unasked = [each["error"]["code"] for each in answers if "error" in each and each["id"] is None]
    assert sorted(unasked) == [-32700, -32600, -32600, -32600]


async def test_a_message_that_is_too_long_is_refused_and_the_next_one_answered(ready: Cli) -> None:
    ready.env["WINDLASS_MODEL"] = "echo"
    long = b'{"jsonrpc": "2.0", "id": 1, "method": "' + b"x" * (65 << 20) + b'"}\n'
    good = b'{"jsonrpc": "2.0", "id": 2, "method": "initialize", "params": {"protocolVersion": 1}}\n'
    done = await ready("acp", piped=long + good)
    first, second = [json.loads(line) for line in done.raw.splitlines()]
    assert first["error"]["code"] == -32600 and "longer than" in first["error"]["message"]
    assert second["id"] == 2 and done.code == 0


async def test_a_client_that_stops_reading_is_no_error_of_ours(ready: Cli) -> None:
    ready.env["WINDLASS_MODEL"] = "echo"
    reading, writing = os.pipe()
    process = await ready.start("acp", stdin=asyncio.subprocess.PIPE, stdout=writing)
    os.close(writing)
    os.close(reading)
    assert process.stdin is not None
    for number in range(3):
        request = {"jsonrpc": "2.0", "id": number, "method": "initialize", "params": {"protocolVersion": 1}}
        process.stdin.write(json.dumps(request).encode() + b"\n")
    done = await ended(process, b"")
    assert done.code == 0 and done.err == ""


async def test_at_a_terminal_it_says_who_starts_it(ready: Cli, terminal: Callable[..., Terminal]) -> None:
    opened = terminal("acp")
    assert "started by an editor" in await opened.until("docs/acp.md")
    assert await opened.ended() == 2


def test_without_the_extra_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [
        name for name in sys.modules if name.startswith("windlass.apps.acp") or name.partition(".")[0] == "acp"
    ]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "acp", None)
    assert command_line.main(["acp"]) == 2
    assert 'pip install "windlass[acp]"' in capsys.readouterr().err
