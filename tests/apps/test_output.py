"""What may be written where: colours, pipes, closed streams, and text that is not trusted."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable

import pyte
import pytest

from tests.apps.helpers import Cli, Terminal, calls, ended, says
from windlass.testing.faults import FaultServer

#: Clears the screen, sets the title and the clipboard, links, asks the terminal, C1 forms, overwrites, ends a paste.
HOSTILE = (
    "before\x1b[2J\x1b[H\x1b]0;owned\x07\x1b]52;c;aGVsbG8=\x07\x1b]8;;http://evil\x07link\x1b]8;;\x07"
    "\x9b31mred\x1bP1$r0m\x1b\\\x1b_apc\x1b\\\x1b[201~\x1b[6n\x07\x00good\x08\x08\x08\x08evil\rover\x1b[?1049hafter"
)


async def test_no_ansi_in_pipes(cli: Cli) -> None:
    async with FaultServer([calls(("list_files", {})), says("done")]) as server:
        cli.use(server)
        done = await cli("run", "go", TERM="xterm-256color", COLORTERM="truecolor")
    assert done.code == 0 and "\x1b" not in done.out + done.err


@pytest.mark.parametrize(
    ("env", "colours"),
    [
        ({}, False),
        ({"CLICOLOR_FORCE": "1"}, True),
        ({"CLICOLOR_FORCE": "0"}, False),
        ({"CLICOLOR_FORCE": "1", "NO_COLOR": "1"}, False),
        ({"CLICOLOR_FORCE": "1", "TERM": "dumb"}, True),
    ],
)
async def test_colours_in_a_pipe_only_when_forced(cli: Cli, env: dict[str, str], colours: bool) -> None:
    cli.env.update(env)
    done = await cli("run", "-m", "echo", "hi")
    assert done.out == "Echo: hi\n" and ("\x1b[2m" in done.err) == colours


@pytest.mark.parametrize(
    ("env", "colours"), [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False), ({"CLICOLOR": "0"}, False)]
)
async def test_colours_on_a_terminal(terminal: Callable[..., Terminal], env: dict[str, str], colours: bool) -> None:
    screen = terminal("run", "-m", "echo", "hi", **env)
    assert await screen.ended() == 0
    assert "Echo: hi\r\n" in screen.shown and ("\x1b[2m" in screen.shown) == colours


async def test_s91_hostile_text_in_a_pipe_and_on_a_terminal(cli: Cli, terminal: Callable[..., Terminal]) -> None:
    """Model text, a tool's name, its arguments, its result: what a terminal would obey is gone, what reads stays."""
    (cli.folder / "bad.txt").write_text(HOSTILE, newline="")
    tools = calls(("read_file", {"path": "bad.txt"}), ("grep\x1b[2J", {"pattern": HOSTILE}), text=HOSTILE)
    async with FaultServer([tools, says(*HOSTILE), tools, says(HOSTILE)]) as server:
        cli.use(server)
        done = await cli("run", "-v", "go\x1b[2J")
        screen = terminal("run", "-v", "go", NO_COLOR="1")
        assert await screen.ended() == 0
    assert done.code == 0
    for text in (done.out, done.err):
        assert not [char for char in text if (ord(char) < 32 and char not in "\n\t") or 127 <= ord(char) < 160]
    for word in ("before", "link", "red", "good", "evil", "over", "after"):
        assert word in done.out
    # On a real screen: everything is where it was written, nothing was cleared, named, moved or asked.
    raw = pyte.Screen(100, 200)
    replies: list[str] = []
    raw.write_process_input = replies.append  # pyright: ignore[reportAttributeAccessIssue]
    pyte.Stream(raw).feed(screen.shown)
    plain = pyte.Screen(100, 200)
    pyte.Stream(plain).feed("".join([char for char in screen.shown if char in "\r\n\t" or ord(char) >= 32]))
    assert raw.display == plain.display and raw.title == "" and replies == []
    assert raw.display[0].startswith("before")


async def test_a_reader_that_leaves_is_no_error(cli: Cli) -> None:
    """`windlass ... | head -1`: silent, whatever the command and however much is to come."""
    await cli("run", "-m", "echo", "hi")
    async with FaultServer([says(*["line\n"] * 2000)]) as server:
        cli.use(server)
        for args in (
            ("run", "hi"),
            ("run", "--output", "stream-json", "hi"),
            ("run", "--output", "json", "hi"),
            ("sessions", "list"),
            ("config", "--defaults"),
            ("--help",),
            ("run", "--help"),
        ):
            out, into = os.pipe()
            process = await cli.start(*args, stdout=into)
            os.close(into)
            os.close(out)
            done = await ended(process)
            # What people are told on stderr has its reader still.
            assert done.code == 0 and "rror" not in done.err and "ipe" not in done.err, (args, done.err)


async def test_a_run_whose_reader_left_is_stopped(cli: Cli) -> None:
    """Nobody follows it any more: it asks no further and runs no further tool."""
    script = [calls(("list_files", {}), text=f"turn {number}\n" * 3000) for number in range(9)]
    async with FaultServer(script) as server:
        cli.use(server)
        out, into = os.pipe()
        process = await cli.start("run", "--output", "stream-json", "go", stdout=into)
        os.close(into)
        assert os.read(out, 10).startswith(b'{"v":1')
        os.close(out)
        done = await ended(process)
        assert done.code == 0 and done.err == ""
        assert len(server.requests) <= 3


async def test_output_that_cannot_be_written_is_said(cli: Cli) -> None:
    with open("/dev/full", "wb") as full:
        for args in (("run", "-m", "echo", "hi"), ("config",), ("run", "-m", "echo", "--output", "json", "hi")):
            process = await cli.start(*args, stdout=full.fileno())
            done = await ended(process)
            assert done.code == 1, args
            assert "windlass: cannot write the output: No space left on device." in done.err
            assert "internal" not in done.err and "Traceback" not in done.err and "ignored" not in done.err


async def test_closed_streams_are_borne(cli: Cli) -> None:
    """`windlass ... >&-`: a descriptor that another file may take is not written to."""
    argv = ["/bin/sh", "-c", '"$@" >&- 2>&- <&-', "sh", *cli.argv("run", "-m", "echo", "hi")]
    process = await asyncio.create_subprocess_exec(*argv, cwd=cli.folder, env=cli.env)
    assert await process.wait() == 0


async def test_text_the_terminal_s_encoding_does_not_have(cli: Cli) -> None:
    cli.env.update(PYTHONIOENCODING="ascii")
    async with FaultServer([calls(("list_files", {})), says("caf\u00e9 \u2192 ok")]) as server:
        cli.use(server)
        done = await cli("run", "go")
    assert done.code == 0 and done.out == "caf\\xe9 \\u2192 ok\n" and "\\u2192 list_files" in done.err


async def test_bytes_that_are_no_text_are_borne(cli: Cli) -> None:
    """A prompt that is not UTF-8 comes as half of a surrogate pair, which UTF-8 cannot write."""
    bad = os.fsdecode(b"caf\xe9")
    text = await cli("run", "-m", "echo", bad)
    events = await cli("run", "-m", "echo", "--output", "stream-json", "--record", "r.jsonl", bad)
    shown = await cli("replay", "r.jsonl")
    assert (text.code, text.out) == (0, "Echo: caf\\udce9\n")
    assert events.code == 0 and len(events.events()) > 3 and shown.raw == events.raw
