"""What the terminal gets: each line once, small frames, no rewriting of the scrollback; widths, colours, resizes."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Callable
from pathlib import Path

from tests.apps.helpers import Cli, Terminal, asked, calls, hanging, says
from tests.apps.tui.helpers import Counted, Tmux
from windlass.core import clock
from windlass.testing.faults import FaultServer

Start = Callable[..., Counted]
UP = re.compile(r"\x1b\[(\d*)A")
LINES = [f"line {number:04} of the long answer" for number in range(2000)]


async def test_2000_streamed_lines_are_in_the_scrollback_once(cli: Cli, tmux: Tmux) -> None:
    text = "\n".join(LINES) + "\n"
    pieces = [text[at : at + 331] for at in range(0, len(text), 331)]
    async with FaultServer([says(*pieces)]) as server:
        cli.use(server)
        await tmux.start()
        await tmux.type("go", "Enter")
        await tmux.until("line 1999", "[end_turn")
        found = [line for line in (await tmux.everything()).splitlines() if line.startswith("line ")]
    assert found == LINES


async def test_frames_are_small_and_never_reach_above_the_live_lines(cli: Cli, counted: Start) -> None:
    """Bytes are those of the text plus a bounded part; the cursor goes up by the live lines at most."""
    body = "A paragraph that is long enough to be wrapped at eighty columns, with **bold** words and `code` in it. "
    text = "\n\n".join([body * 3] * 20)
    pieces = [text[at : at + 7] for at in range(0, len(text), 7)]
    async with FaultServer([says(*pieces)]) as server:
        cli.use(server)
        screen = counted()
        await screen.seen(">")
        screen.type("go\r")
        await screen.seen("[end_turn")
        await screen.quiet()
        frames = screen.frames
        assert len(frames) > 3
        # Everything is written inside of frames.
        outside = re.sub(r"\x1b\[\?2026h.*?\x1b\[\?2026l", "", screen.shown, flags=re.DOTALL)
        assert not outside.strip("\r\n"), outside[:200]
        assert max(int(up or 1) for frame in frames for up in UP.findall(frame)) <= 4
        assert not any("\x1b[2J" in frame or "\x1b[H" in frame or "\x1b[?1049" in frame for frame in frames)
        overhead = sum(len(frame) for frame in frames) - len(text)
        assert overhead / len(frames) < 700, (overhead, len(frames))
        assert max(len(frame) for frame in frames) < 16_384 + 4 * 80 * 4
        # Waiting costs a line a second, nothing costs nothing.
        before = len(screen.shown)
        await screen.quiet(0.5)
        assert len(screen.shown) == before
        rows = [*screen.scrolled, *screen.rows]
        joined = " ".join([row for row in rows if row])
        assert joined.count("A paragraph that is long") == 60 and "**" not in joined


async def test_narrow_terminals_hold_what_fits(cli: Cli, tmux: Tmux) -> None:
    wide = "日本語のテキストと emoji 👩‍🚀🎉 and עברית end"
    async with FaultServer(
        [calls(("list_files", {"path": "."})), says(f"{wide}\n\n| a | b |\n|---|---|\n| 1 | 2 |\n")]
    ) as server:
        cli.use(server)
        await tmux.start(width=24, height=12)
        await tmux.type("go", "Enter")
        shown = await tmux.until("[end_turn")
        assert all(len(line) <= 24 for line in shown.splitlines())
        everything = (await tmux.everything()).replace("\n", "")
        assert "日本語のテキスト" in everything and "Traceback" not in everything
        # The live lines fit, too: the input is where it belongs.
        await tmux.type("abc")
        await tmux.until("\n> abc")


async def test_no_color_has_no_colour(cli: Cli, counted: Start) -> None:
    answer = "# Title\n\n**bold** `code`\n\n```python\nx = 1\n```\n"
    for env, coloured in (({"NO_COLOR": "1"}, False), ({}, True)):
        async with FaultServer([says(answer)]) as server:
            cli.use(server)
            screen = counted(**env)
            await screen.seen(">")
            screen.type("go\r")
            await screen.seen("[end_turn")
            await screen.quiet()
        colours = re.findall(r"\x1b\[(?:[0-9;]*;)?(?:3[0-7]|9[0-7]|4[0-7])m", screen.shown)
        assert bool(colours) is coloured, colours[:5]


async def test_s91_escapes_of_models_and_tools_do_nothing(cli: Cli, tmux: Tmux) -> None:
    (cli.folder / "f").write_text("in\x1b[2J\x1b]52;c;AAAA\x07side\rgone\x9b1A")
    nasty = ["before \x1b", "[2J\x1b]0;title\x07\x1b]8;;http://evil\x1b\\link\x1b]8;;\x1b\\ \x9b5A", "after\x1b[201~\n"]
    async with FaultServer([calls(("read_file", {"path": "f"})), says(*nasty)]) as server:
        cli.use(server)
        await tmux.start()
        await tmux.type("go", "Enter")
        shown = await tmux.until("after", "[end_turn")
    assert "> go" in shown and "before" in shown and "link" in shown and "/help" in shown


async def test_r71_a_storm_of_resizes_leaves_each_line_once(cli: Cli, tmux: Tmux) -> None:
    release = asyncio.Event()
    first = says(*[f"row {number:02}\n" for number in range(10)], "and the end of it")
    async with FaultServer([type(first)([*first.parts[:11], release, *first.parts[11:]])]) as server:
        cli.use(server)
        await tmux.start(width=100)
        await tmux.type("go", "Enter")
        await tmux.until("row 09", "Esc stops")
        for width in (99, 60, 41, 80, 30, 100, 50, 77, 33, 90):
            await tmux.resize(width)
        release.set()
        await tmux.until("and the end of it", "[end_turn")
        await tmux.type("still here")
        await tmux.until("> still here")
        everything = (await tmux.everything()).splitlines()
    rows = [line for line in everything if line.startswith("row ")]
    assert rows == [f"row {number:02}" for number in range(10)]
    assert len([line for line in everything if line.startswith("> go")]) == 1
    assert len([line for line in everything if "still here" in line]) == 1
    assert len([line for line in everything if "Esc stops" in line]) == 0


async def test_a_terminal_that_does_not_reflow_keeps_every_line_through_a_storm(cli: Cli, counted: Start) -> None:
    async with FaultServer([says(*[f"row {number:02}\n" for number in range(8)]), hanging("more")]) as server:
        cli.use(server)
        screen = counted(width=100)
        await screen.seen(">")
        screen.type("go\r")
        await screen.seen("row 07", "[end_turn")
        for width in (99, 60, 41, 80, 30, 100, 50, 77, 33, 90):
            screen.resize(width, 24)
            await clock.sleep(0.02)
        await screen.quiet()
        screen.type("again\r")
        await screen.seen("more")
        rows = [row for row in [*screen.scrolled, *screen.rows] if row.startswith("row ")]
        assert rows == [f"row {number:02}" for number in range(8)]


async def test_waiting_is_explained_with_its_deadline_and_key(cli: Cli, tmux: Tmux) -> None:
    async with FaultServer([hanging("")]) as server:
        cli.use(server)
        await tmux.start(WINDLASS_REQUEST_TIMEOUT="77")
        await tmux.type("go", "Enter")
        shown = await tmux.until("waiting for provider (", " s of 77 s) - Esc stops")
        passed = re.search(r"\(\d+ s of", shown)
        assert passed is not None
        await tmux.until("waiting for provider (", " s of 77 s) - Esc stops", gone=passed[0])
        await tmux.keys("C-c")
        await tmux.until("stopped.", gone="waiting for")


async def test_the_live_lines_are_at_most_three_beside_the_input(cli: Cli, counted: Start) -> None:
    async with FaultServer([hanging("an unfinished row")]) as server:
        cli.use(server)
        screen = counted()
        await screen.seen(">")
        screen.type("go\r")
        rows = [row for row in await screen.seen("an unfinished row", "answering (") if row]
        at = next(number for number, row in enumerate(rows) if row == "> go")
        assert len(rows) - at - 1 == 4, rows


async def test_without_the_extra_the_message_names_it(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "prompt_toolkit.py").write_text("raise ModuleNotFoundError('no', name='prompt_toolkit')")
    terminal = Counted(cli, PYTHONPATH=str(tmp_path))
    try:
        assert await terminal.ended() == 2
        assert 'pip install "windlass[tui]"' in terminal.shown and "Traceback" not in terminal.shown
    finally:
        terminal.close()
    piped = await cli("tui")
    assert piped.code == 2 and "needs a terminal" in piped.err


async def test_r71_a_terminal_that_is_closed_leaves_the_state_saved(cli: Cli, counted: Start) -> None:
    async with FaultServer([hanging("endless"), says("ok")]) as server:
        cli.use(server)
        screen = counted("--session", "s")
        await screen.seen(">")
        screen.type("go\r")
        await screen.seen("endless")
        os.close(screen.handle)
        screen.handle = -1
        assert await screen.ended() == 130
        assert (await cli("run", "-r", "s", "go on")).code == 0
        assert [each["content"] for each in asked(server)["messages"]][1] == "go"


async def test_a_few_rows_are_enough(cli: Cli, counted: Start) -> None:
    async with FaultServer([says("one\ntwo\nthree\n")]) as server:
        cli.use(server)
        screen = counted(width=20, height=3)
        await screen.seen(">")
        screen.type("go\r")
        await screen.seen("out, $?, 1 turn]", gone="Window too small")
        await screen.quiet(0.3)
        said = ["one", "two", "three"]
        assert [row for row in [*screen.scrolled, *screen.rows] if row in said] == said


async def test_windlass_alone_at_a_terminal_is_this(cli: Cli) -> None:
    async with FaultServer([says("hello")]) as server:
        cli.use(server)
        screen = Terminal(cli)
        try:
            await screen.until("groq:test-model")
            screen.type("hi\r")
            await screen.until("[end_turn")
            screen.type("\x04")
            assert await screen.ended() == 0
        finally:
            screen.close()
        again = Terminal(cli, "-c")
        try:
            await again.until("goes on here")
            again.type("\x04")
            assert await again.ended() == 0
        finally:
            again.close()
