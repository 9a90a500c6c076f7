"""Slash commands, completion, commands of the person's own, files, and the table that the page shows."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from tests.apps.helpers import Cli, asked, calls, says
from tests.apps.tui.helpers import Tmux
from tests.apps.tui.test_tasks import answer, write
from windlass.apps.tui.commands import COMMANDS, table
from windlass.apps.tui.files import matching, walked
from windlass.apps.tui.keys_table import KEYS
from windlass.testing.faults import FaultServer

PAGE = Path(__file__).parents[3] / "docs" / "terminal.md"


def test_the_page_holds_the_tables() -> None:
    """`python -c "from windlass.apps.tui.commands import table; print(table())"` makes the first one again."""
    page = PAGE.read_text(encoding="utf-8")
    assert f"<!-- commands -->\n{table()}<!-- /commands -->\n" in page
    keys = "\n".join([f"| {key} | {text} |" for key, text in KEYS])
    assert f"| key | what it does |\n|---|---|\n{keys}\n" in page


def test_the_commands_people_ask_for_are_there() -> None:
    wanted = "model resume fork rewind undo compact clear cost tools mcp skills policy export help exit diff todo"
    assert set(wanted.split()) <= set(COMMANDS)


async def test_commands_that_show_something(cli: Cli, tmux: Tmux) -> None:
    async with FaultServer([calls(("list_files", {})), says("seen")]) as server:
        cli.use(server)
        (cli.folder / "one.txt").write_text("1")
        await tmux.start(height=50)
        for typed, texts in {
            "/help undo": ("/undo [TURNS] [force]", "take back what"),
            "/hlep": ("There is no /hlep.", "Did you mean /help?"),
            "/tools": ("read_file", "(reads only)"),
            "/mcp": ("No MCP server is configured.",),
            "/todo": ("The model keeps no list.",),
            "/diff": ("changed no files",),
            "/expand": ("No tool has been called yet.",),
            "/rewind": ("no prompt to go back to",),
            "/policy shell {}": ("ask: it ",),
            "/model nothing:x": ("Unknown provider 'nothing'",),
            "/mode yolo": ("The mode yolo is not granted",),
        }.items():
            await tmux.type(typed, "Enter")
            await tmux.until(*texts)
        await tmux.keys("BTab")
        await tmux.until("groq:test-model · auto-edit")
        await tmux.type("/mode ask", "Enter")
        await tmux.until("mode: ask (of plan", "groq:test-model · ask")
        await tmux.type("/clear", "Enter")
        await tmux.type("go", "Enter")
        await tmux.until("seen", "[end_turn", "cache 0%")
        await tmux.keys("C-o")
        await tmux.until("→ 1 list_files\n")
        await tmux.type("/cost", "Enter")
        await tmux.until("input 40 tokens, 0% of them from the cache; output 6")
        await tmux.type("/export talk.md", "Enter")
        await tmux.until("written:")
        await tmux.type("/exit", "Enter")
        assert await tmux.ended() == 0
    assert "## user\n\ngo\n" in (cli.folder / "talk.md").read_text()


async def test_hunks_are_accepted_one_by_one_and_undone(cli: Cli, tmux: Tmux) -> None:
    """Accept in part, show the difference, undo it, do it again."""
    before = "".join([f"line {number}\n" for number in range(30)])
    (cli.folder / "f").write_text(before)
    edits = [{"old_string": f"line {at}\n", "new_string": f"LINE {at} new\n"} for at in (3, 25)]
    script = [calls(("read_file", {"path": "f"})), calls(("multi_edit", {"path": "f", "edits": edits})), says("edited")]
    async with FaultServer(script) as server:
        cli.use(server)
        await tmux.start(height=60)
        await tmux.type("go", "Enter")
        await tmux.until("change f (+2 -2)", "-line 3", "+LINE 3 new", "[h]unk by hunk")
        await answer(tmux, "h", "Apply 2 changes?")
        await answer(tmux, "y", "f: hunk 1 of 2?")
        await answer(tmux, "n", "f: hunk 2 of 2?")
        await tmux.until("allowed 1 of 2 hunks", "edited", "[end_turn")
        after = before.replace("line 3\n", "LINE 3 new\n")
        assert (cli.folder / "f").read_text() == after
        await tmux.type("/diff", "Enter")
        await tmux.until("change f (+1 -1)")
        await tmux.type("/undo", "Enter")
        await tmux.until("undone: f")
        assert (cli.folder / "f").read_text() == before
        await tmux.type("/redo", "Enter")
        await tmux.until("redone: f")
        assert (cli.folder / "f").read_text() == after
        await tmux.type("/undo 1 2", "Enter")
        await tmux.until("/undo takes a number of turns")


async def test_files_are_completed_and_attached(cli: Cli, tmux: Tmux) -> None:
    """The index honours .gitignore, also where there is a repository with a program in its settings."""
    (cli.folder / "src").mkdir()
    (cli.folder / "src" / "application.py").write_text("print('hello')\n")
    (cli.folder / "src" / "apparent.log").write_text("no")
    (cli.folder / ".gitignore").write_text("*.log\n")
    png = b"\x89PNG\r\n\x1a\n" + bytes(20)
    (cli.folder / "shot.png").write_bytes(png)
    assert matching(walked(cli.folder), "app") == ["src/application.py"]
    for command in (["init", "-q"], ["config", "core.fsmonitor", f"touch {cli.folder}/ran"]):
        subprocess.run(["git", *command], cwd=cli.folder, check=True)
    async with FaultServer([says("read")]) as server:
        cli.use(server)
        await tmux.start()
        await tmux.type("look at @app", "Tab")
        await tmux.until("look at @src/application.py")
        await tmux.type(" and @shot.png", "Enter")
        await tmux.until("attached: src/application.py, shot.png", "read", "[end_turn")
        content = asked(server)["messages"][-1]["content"]
        kinds = [part["type"] for part in content]
        assert '<file path="src/application.py">\nprint' in json.dumps(content).replace("\\n", "\n").replace('\\"', '"')
        assert kinds[-1] == "image_url"
    assert not (cli.folder / "ran").exists()


async def test_a_command_of_the_person_s_own_is_shown_to_the_model_next(cli: Cli, tmux: Tmux) -> None:
    async with FaultServer([says("I see")]) as server:
        cli.use(server)
        await tmux.start()
        await tmux.type("!echo of-mine; exit 3", "Enter")
        await tmux.until("!echo of-mine", "\nof-mine", "exit 3")
        assert not server.requests
        await tmux.type("what was that", "Enter")
        await tmux.until("I see", "[end_turn")
        content = json.dumps(asked(server)["messages"][-1]["content"])
        assert "of-mine" in content and "exit 3" in content and "what was that" in content


async def test_the_input_line(cli: Cli, tmux: Tmux) -> None:
    """Several lines, earlier inputs, search, paste, the editor, and fork, rewind, clear over them."""
    editor = cli.folder / "editor"
    editor.write_text('#!/bin/sh\nprintf "from the editor" > "$1"\n')
    editor.chmod(0o755)
    async with FaultServer([says("A"), says("B"), says("C"), says("D")]) as server:
        cli.use(server)
        await tmux.start(VISUAL=str(editor), height=40)
        await tmux.type("first\\", "Enter")
        await tmux.type("second", "Enter")
        await tmux.until("> first\n  second\n", "[end_turn")
        assert asked(server)["messages"][-1]["content"] == "first\nsecond"
        await tmux.paste("pasted\nlines\x1b[2J")
        await tmux.until("> pasted\nlines")
        await tmux.keys("Enter")
        await tmux.until("B\n", "[end_turn")
        assert asked(server)["messages"][-1]["content"] == "pasted\nlines"
        await tmux.keys("C-g")
        await tmux.until("> from the editor")
        await tmux.keys("C-c")
        await tmux.until("\n>\n", gone="> from the editor")
        await tmux.keys("C-r")
        await tmux.type("firs")
        await tmux.until("> first")
        await tmux.keys("Enter", "C-e", "C-u")
        await tmux.type("/fork", "Enter")
        await tmux.until("forked: ")
        await tmux.type("/rewind", "Enter")
        await tmux.until("go back to before, 1 of 2")
        await tmux.keys("Enter")
        await tmux.until("rewound", "> pasted")
        await tmux.keys("C-c")
        await tmux.type("other words", "Enter")
        await tmux.until("C\n", "[end_turn")
        assert [each["content"] for each in asked(server)["messages"]][1:] == ["first\nsecond", "A", "other words"]


async def test_the_plain_mode_only_adds_lines(cli: Cli, tmux: Tmux) -> None:
    tmux.prompt = "/help"
    async with FaultServer([calls(("shell", {"command": "touch a"})), says("**done**")]) as server:
        cli.use(server)
        await tmux.start("--plain")
        await tmux.type("go", "Enter")
        await tmux.until("Allow shell?", "[y]es, [n]o, [a]lways this exact call:")
        await answer(tmux, "y")
        await tmux.keys("Enter")
        await tmux.until("allowed", "done", "[end_turn")
        assert (cli.folder / "a").exists()
        assert "\x1b" not in await tmux.colored()
        await tmux.type("/exit", "Enter")
        assert await tmux.ended() == 0


async def test_reject_is_told_and_a_write_is_seen_before(cli: Cli, tmux: Tmux) -> None:
    async with FaultServer([calls(write("new.txt", "one\ntwo\n")), says("fine")]) as server:
        cli.use(server)
        await tmux.start(height=30)
        await tmux.type("go", "Enter")
        await tmux.until("create new.txt (+2 -0)", "+one", "+two", "Apply 1 change?")
        await answer(tmux, "n", "Apply 1 change?")
        await tmux.until("refused", "fine", "[end_turn")
    assert not (cli.folder / "new.txt").exists()
