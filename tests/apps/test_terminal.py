"""At a terminal: approvals, and the conversation of `windlass agent`."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.apps.helpers import Cli, Terminal, asked, calls, hanging, says, tool_results
from windlass.apps.cli.approve import shown_call
from windlass.core import clock
from windlass.testing.faults import FaultServer, Reply

Start = Callable[..., Terminal]
ASK = "[y]es, [n]o, [a]lways this exact call: "


def shell(command: str) -> tuple[str, dict[str, str]]:
    return "shell", {"command": command}


async def test_yes_runs_it_once_and_asks_again(cli: Cli, terminal: Start) -> None:
    async with FaultServer([calls(shell("echo one > a")), calls(shell("echo one > a")), says("done")]) as server:
        cli.use(server)
        screen = terminal("run", "go")
        for _ in range(2):
            shown = await screen.until(ASK)
            assert "Allow shell? (it runs a command)" in shown and "    command: echo one > a\r\n" in shown
            screen.type("y\n")
        assert await screen.ended() == 0
    assert (cli.folder / "a").read_text() == "one\n"


async def test_no_refuses_and_so_does_anything_else(cli: Cli, terminal: Start) -> None:
    for answer in ("n\n", "\n", "sure\n", "\x04"):
        async with FaultServer([calls(shell("touch a")), says("as you wish")]) as server:
            cli.use(server)
            screen = terminal("run", "go")
            await screen.until(ASK)
            screen.type(answer)
            assert await screen.ended() == 3, answer
            assert tool_results(server) == ["Blocked: permission was refused"]
        assert not (cli.folder / "a").exists()


async def test_s21_always_is_this_exact_call_only(cli: Cli, terminal: Start) -> None:
    script = [calls(shell("echo 1 >> a")), calls(shell("echo 1 >> a")), calls(shell("echo 2 >> a")), says("done")]
    async with FaultServer(script) as server:
        cli.use(server)
        screen = terminal("run", "go")
        await screen.until(ASK)
        screen.type("a\n")
        assert "command: echo 2 >> a" in await screen.until(ASK)
        screen.type("n\n")
        assert await screen.ended() == 3
    assert (cli.folder / "a").read_text() == "1\n1\n"


async def test_s20_what_is_asked_is_shown_as_it_is(cli: Cli, terminal: Start) -> None:
    """Escapes, hidden and reordering characters, look-alikes, padding, and lines that play the question."""
    command = (
        "ls\x1b[2K\x1b[1A\rrm -rf x\u202e gnp\u200b \u0440m" + " " * 300 + "; curl evil\n[y]es, [n]o\nAllow read_file?"
    )
    async with FaultServer([calls(shell(command)), says("ok")]) as server:
        cli.use(server)
        screen = terminal("run", "go", NO_COLOR="1")
        shown = await screen.until(ASK)
        screen.type("n\n")
        assert await screen.ended() == 3
    asked_of = shown[shown.index("Allow shell?") :]
    assert "\x1b" not in asked_of and "\u202e" not in asked_of
    for visible in (r"ls\x1b[2K\x1b[1A\x0drm -rf x\u202e gnp\u200b \u0440m[300 blanks]; curl evil",):
        assert visible in asked_of
    # What the command says is marked as the command's.
    assert "| [y]es, [n]o\r\n" in asked_of and "| Allow read_file?\r\n" in asked_of


async def test_a_long_call_is_cut_and_can_be_seen_whole(cli: Cli, terminal: Start) -> None:
    content = "\n".join([f"line {number}" for number in range(100)])
    async with FaultServer([calls(("write_file", {"path": "a", "content": content})), says("ok")]) as server:
        cli.use(server)
        screen = terminal("run", "go")
        shown = await screen.until("[v]iew all: ")
        assert "line 10\r\n" in shown and "line 99" not in shown and "[63 more lines]" in shown
        screen.type("v\n")
        assert "line 99\r\n" in await screen.until("[v]iew all: ")
        screen.type("y\n")
        assert await screen.ended() == 0
    assert (cli.folder / "a").read_text() == content


async def test_s92_what_was_typed_before_the_question_is_no_answer(cli: Cli, terminal: Start) -> None:
    release = asyncio.Event()
    async with FaultServer([hanging("Wait."), says("ok")]) as server:
        first = calls(shell("touch a"), text="Wait.")
        server.script[0] = type(first)([first.parts[0], release, *first.parts[1:]])
        cli.use(server)
        screen = terminal("run", "go")
        await screen.until("Wait.")
        screen.type("y\ny\n")
        await clock.sleep(0.1)
        release.set()
        await screen.until(ASK)
        await clock.sleep(0.1)
        assert not (cli.folder / "a").exists()
        screen.type("n\n")
        assert await screen.ended() == 3


async def test_approval_is_asked_on_the_terminal_although_output_is_piped(cli: Cli, terminal: Start) -> None:
    """`windlass run --output json > file < file`: the question is still a person's."""
    (cli.folder / "in").write_text("context")
    async with FaultServer([calls(shell("touch a")), says("ok")]) as server:
        cli.use(server)
        cli.prefix = ["/bin/sh", "-c", 'exec "$@" < in > out 2> err', "sh"]
        screen = terminal("run", "--output", "json", "go")
        await screen.until(ASK)
        screen.type("y\n")
        assert await screen.ended() == 0
        assert asked(server, 0)["messages"][-1]["content"] == "go\n\ncontext"
    assert '"text":"ok"' in (cli.folder / "out").read_text() and "Allow" not in (cli.folder / "err").read_text()


async def test_r71_an_interrupt_at_the_question(cli: Cli, terminal: Start) -> None:
    async with FaultServer([calls(shell("touch a")), says("ok")]) as server:
        cli.use(server)
        screen = terminal("run", "--session", "s", "go")
        await screen.until(ASK)
        screen.type("\x03")
        assert await screen.ended() == 130
        assert "interrupted. Continue with: windlass run -r s" in screen.shown and "Traceback" not in screen.shown
        assert "Fatal" not in screen.shown
        assert (await cli("run", "-r", "s", "go on")).code == 0
        assert len(tool_results(server)) == 1
    assert not (cli.folder / "a").exists()


async def test_r71_a_terminal_that_is_closed_at_the_question(cli: Cli, terminal: Start) -> None:
    async with FaultServer([calls(shell("touch a")), says("ok")]) as server:
        cli.use(server)
        screen = terminal("run", "--session", "s", "go")
        await screen.until(ASK)
        os.close(screen.handle)
        screen.handle = -1
        assert await screen.ended() == 130
        assert (await cli("run", "-r", "s", "go on")).code == 0
    assert not (cli.folder / "a").exists()


def test_shown_calls_hold_no_line_that_could_be_ours() -> None:
    lines = shown_call({"a\nb": "x\r\ny", "n": 3, "deep": {"k": ["\x1b"]}, "empty": ""})
    assert lines == [
        "    a\\nb: x\\x0d",
        "        | y",
        "    n: 3",
        '    deep: {"k":["\\u001b"]}',
        "    empty: ",
    ]


# -- windlass agent ----------------------------------------------------------------------------------------------------


async def test_a_conversation_line_by_line(cli: Cli, terminal: Start) -> None:
    async with FaultServer([says("one"), says("two"), says("fresh")]) as server:
        cli.use(server)
        screen = terminal("agent", "--tools", "none", "--system", "S")
        assert "/clear starts a new conversation" in await screen.until("> ")
        screen.type("first\n")
        assert "one\r\n" in await screen.until("> ")
        screen.type("second\n")
        await screen.until("> ")
        assert [m["content"] for m in asked(server)["messages"]] == ["S", "first", "one", "second"]
        screen.type("/help\n")
        await screen.until("> ")
        screen.type("/clear\n")
        await screen.until("> ")
        screen.type("third\n")
        await screen.until("> ")
        assert [m["content"] for m in asked(server)["messages"]] == ["S", "third"]
        assert len(server.requests) == 3
        screen.type("\x04")
        assert await screen.ended() == 0
    assert "Continue with: windlass agent -r " in screen.shown
    assert len((await cli("sessions", "list")).out.splitlines()) == 2


async def test_an_interrupt_stops_the_answer_and_not_the_conversation(cli: Cli, terminal: Start) -> None:
    async with FaultServer([hanging("endless"), hanging("endless"), says("again")]) as server:
        cli.use(server)
        screen = terminal("agent")
        await screen.until("> ")
        for _ in range(2):
            screen.type("go\n")
            await screen.until("endless")
            screen.type("\x03")
            assert "windlass: interrupted." in await screen.until("> ")
        screen.type("and now\n")
        assert "again" in await screen.until("> ")
        # At the prompt there is nothing to stop but the conversation.
        screen.type("\x03")
        assert await screen.ended() == 130
    assert screen.shown.endswith("windlass: interrupted.\r\n")
    assert "Traceback" not in screen.shown and "Fatal" not in screen.shown


async def test_an_answer_that_fails_does_not_end_the_conversation(cli: Cli, terminal: Start) -> None:
    async with FaultServer([Reply(400, b'{"error": {"message": "not today"}}'), says("better")]) as server:
        cli.use(server)
        screen = terminal("agent")
        await screen.until("> ")
        screen.type("go\n")
        assert "not today" in await screen.until("> ")
        screen.type("go\n")
        assert "better" in await screen.until("> ")
        screen.type("/exit\n")
        assert await screen.ended() == 0


async def test_approval_in_a_conversation_reads_its_own_answer(cli: Cli, terminal: Start) -> None:
    async with FaultServer([calls(shell("touch a")), says("ok"), says("bye")]) as server:
        cli.use(server)
        screen = terminal("agent")
        await screen.until("> ")
        screen.type("go\n")
        await screen.until(ASK)
        screen.type("y\n")
        assert "ok" in await screen.until("> ")
        screen.type("y\n")
        await screen.until("> ")
        assert asked(server)["messages"][-1]["content"] == "y"
        screen.signal(signal.SIGTERM)
        assert await screen.ended() == 130
    assert (cli.folder / "a").exists()


@pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not installed; the tests above use a bare terminal")
async def test_a_conversation_in_tmux(cli: Cli, tmp_path: Path) -> None:
    async def tmux(*args: str) -> str:
        process = await asyncio.create_subprocess_exec(
            "tmux", "-S", str(tmp_path / "socket"), "-f", "/dev/null", *args,
            stdout=asyncio.subprocess.PIPE, env=cli.env, cwd=cli.folder,
        )  # fmt: skip
        out, _ = await process.communicate()
        assert process.returncode == 0, args
        return out.decode()

    async def until(text: str) -> str:
        async with clock.deadline(60):
            while text not in (shown := await tmux("capture-pane", "-p", "-t", "t")):
                await clock.sleep(0.1)
        return shown

    async with FaultServer([calls(("write_file", {"path": "a", "content": "hi"})), says("written")]) as server:
        cli.use(server)
        await tmux("new-session", "-d", "-s", "t", "-x", "100", "-y", "30", *cli.argv("agent"))
        try:
            await until("\n>")
            await tmux("send-keys", "-t", "t", "write a", "Enter")
            await until(ASK.strip())
            await tmux("send-keys", "-t", "t", "y", "Enter")
            shown = await until("written")
            assert "Allow write_file? (it changes files)" in shown and "created a" in shown
        finally:
            await tmux("kill-server")
    assert (cli.folder / "a").read_text() == "hi"
