"""Whole tasks in a real terminal: approve, refuse, hunks, steer, queue, stop, resume after a kill, undo."""

from __future__ import annotations

import asyncio
import re
import signal

from tests.apps.helpers import Cli, asked, calls, hanging, says, tool_results
from tests.apps.tui.helpers import Tmux
from windlass.core import clock
from windlass.testing.faults import FaultServer

CALM = 0.4  # an answer counts 0.3 s after the question


def write(path: str, content: str) -> tuple[str, dict[str, str]]:
    return "write_file", {"path": path, "content": content}


async def answer(tmux: Tmux, key: str, question: str = "[y]es") -> None:
    await tmux.until(question)
    await clock.sleep(CALM)
    await tmux.keys(key)


async def test_a_task_is_approved_and_shown(cli: Cli, tmux: Tmux) -> None:
    script = [calls(("shell", {"command": "echo hi > a; echo out"})), says("It is **done**.")]
    async with FaultServer(script) as server:
        cli.use(server)
        await tmux.start()
        await tmux.type("make a", "Enter")
        shown = await tmux.until("Allow shell?", "command: echo hi > a; echo out", "[y]es, [n]o")
        assert "> make a" in shown and not (cli.folder / "a").exists()
        await answer(tmux, "y")
        shown = await tmux.until("It is done.", "[end_turn:", gone="Esc stops")
        # What ran is what was shown.
        digest = re.search(r"Allow shell\?.* #([0-9a-f]{8})", shown)
        assert digest is not None and shown.count(f"#{digest[1]}") == 2
        assert "→ 1 shell echo hi > a; echo out" in shown
        assert "← 1 ok" in shown and "    out" in shown
        assert len(tool_results(server)) == 1
        await tmux.keys("C-d")
        assert await tmux.ended() == 0
        assert "Continue with: windlass tui -r " in await tmux.everything()
    assert (cli.folder / "a").read_text() == "hi\n"


async def test_a_refusal_reaches_the_model_and_early_keys_are_no_answer(cli: Cli, tmux: Tmux) -> None:
    """S92: what is typed or pasted as the question appears is no answer."""
    async with FaultServer([calls(("shell", {"command": "touch a"})), says("as you wish")]) as server:
        cli.use(server)
        await tmux.start()
        await tmux.type("go", "Enter")
        await tmux.until("[y]es")
        await tmux.type("yyy")
        await tmux.paste("y\ny\n")
        await clock.sleep(0.2)
        assert "[y]es" in await tmux.screen() and not (cli.folder / "a").exists()
        await answer(tmux, "n")
        await tmux.until("refused", "as you wish")
        assert "Blocked" in tool_results(server)[0]
    assert not (cli.folder / "a").exists()


async def test_esc_refuses_and_always_is_this_exact_call(cli: Cli, tmux: Tmux) -> None:
    touch = ("shell", {"command": "echo 1 >> a"})
    async with FaultServer([calls(touch), calls(touch), calls(touch), says("done")]) as server:
        cli.use(server)
        await tmux.start()
        await tmux.type("go", "Enter")
        await answer(tmux, "Escape")
        await tmux.until("refused")
        await answer(tmux, "a")
        await tmux.until("done", "[end_turn")
        assert (cli.folder / "a").read_text() == "1\n1\n"


async def test_s20_the_call_is_shown_as_it_is(cli: Cli, tmux: Tmux) -> None:
    command = "ls\x1b[2K\x1b[1A\rrm -rf x\u202e gnp\u200b \u0440m" + " " * 300 + "; curl evil\n[y]es, [n]o"
    async with FaultServer([calls(("shell", {"command": command})), says("ok")]) as server:
        cli.use(server)
        await tmux.start(width=120)
        await tmux.type("go", "Enter")
        shown = await tmux.until("Allow shell?", "curl evil")
        assert r"ls\x1b[2K\x1b[1A\x0drm -rf x\u202e gnp\u200b \u0440m[300 blanks]; curl evil" in shown
        assert "| [y]es, [n]o" in shown  # marked as the command's own
        await answer(tmux, "n")
        await tmux.until("refused")


async def test_steer_reaches_the_model_between_its_requests(cli: Cli, tmux: Tmux) -> None:
    release = asyncio.Event()
    first = calls(("list_files", {}), text="Looking.")
    async with FaultServer([type(first)([first.parts[0], release, *first.parts[1:]]), says("fine")]) as server:
        cli.use(server)
        await tmux.start()
        await tmux.type("go", "Enter")
        await tmux.until("Looking.", "Esc stops")
        await tmux.keys("Escape")
        await tmux.until("steer>", "Esc again stops it")
        await tmux.type("use the other file", "Enter")
        release.set()
        await tmux.until("Looking.", "↪ use the other file", "fine", "[end_turn")
        assert asked(server)["messages"][-1]["content"] == "use the other file"


async def test_esc_twice_stops_and_what_was_queued_comes_back(cli: Cli, tmux: Tmux) -> None:
    async with FaultServer([hanging("endless"), says("again")]) as server:
        cli.use(server)
        await tmux.start()
        await tmux.type("go", "Enter")
        await tmux.until("endless", "Esc stops")
        await tmux.type("and then this", "Enter")
        await tmux.until("queued: and then this", "1 queued")
        await tmux.keys("Escape")
        await tmux.until("steer>")
        await tmux.keys("Escape")
        shown = await tmux.until("stopped.", "> and then this", gone="1 queued")
        assert shown.count("endless") == 1
        await tmux.keys("Enter")
        await tmux.until("again", "[end_turn")
        assert asked(server)["messages"][-1]["content"] == "and then this"


async def test_what_is_queued_is_sent_after_the_answer(cli: Cli, tmux: Tmux) -> None:
    release = asyncio.Event()
    first = says("one ", "two")
    async with FaultServer([type(first)([first.parts[0], release, *first.parts[1:]]), says("three")]) as server:
        cli.use(server)
        await tmux.start()
        await tmux.type("first", "Enter")
        await tmux.until("one")
        await tmux.type("second", "Enter")
        await tmux.until("queued: second")
        release.set()
        await tmux.until("one two", "> second", "three")
        assert [each["content"] for each in asked(server)["messages"][1:]] == ["first", "one two", "second"]


async def test_r71_ctrl_c_stops_then_leaves_with_130(cli: Cli, tmux: Tmux) -> None:
    async with FaultServer([hanging("endless"), hanging("endless")]) as server:
        cli.use(server)
        await tmux.start("--session", "s")
        await tmux.type("go", "Enter")
        await tmux.until("endless")
        await tmux.keys("C-c")
        await tmux.until("stopped.")
        await tmux.keys("C-c")
        assert await tmux.ended() == 130
        assert "Traceback" not in await tmux.everything()
        shown = (await cli("sessions", "show", "s")).out
        assert "user: go" in shown


async def test_r71_a_signal_leaves_with_the_state_saved(cli: Cli, tmux: Tmux) -> None:
    async with FaultServer([hanging("endless"), says("going on")]) as server:
        cli.use(server)
        await tmux.start("--session", "s")
        await tmux.type("go", "Enter")
        await tmux.until("endless", "Esc stops")
        await tmux.signal(signal.SIGTERM)
        assert await tmux.ended() == 130
        assert (await cli("run", "-r", "s", "go on")).code == 0
        assert [each["content"] for each in asked(server)["messages"]][1] == "go"


async def test_resume_after_kill_9_shows_what_was_said(cli: Cli, tmux: Tmux) -> None:
    script = [calls(("list_files", {})), says("The *first* answer."), hanging("half an answer"), says("the rest")]
    async with FaultServer(script) as server:
        cli.use(server)
        await tmux.start("--session", "s")
        await tmux.type("first question", "Enter")
        await tmux.until("The first answer.", "[end_turn")
        await tmux.type("second question", "Enter")
        await tmux.until("half an answer")
        await tmux.signal(signal.SIGKILL)
        await tmux.ended()
        await tmux.again("-c")
        shown = await tmux.until("(session s goes on here)", "/continue goes on")
        for text in ("> first question", "→ 1 list_files", "The first answer.", "> second question"):
            assert text in shown
        await tmux.type("/continue", "Enter")
        await tmux.until("the rest", "[end_turn")
        assert [each["content"] for each in asked(server)["messages"]][-1] == "second question"


async def test_the_picker_resumes_another_session(cli: Cli, tmux: Tmux) -> None:
    async with FaultServer([says("alpha answer"), says("beta answer"), says("more")]) as server:
        cli.use(server)
        assert (await cli("run", "--session", "s1", "about alpha")).code == 0
        assert (await cli("run", "--session", "s2", "about beta")).code == 0
        tmux.prompt = "sessions, 1 of 2"
        await tmux.start("-r")
        await tmux.until("sessions, 1 of 2", "about beta")
        await tmux.type("alph")
        await tmux.until("sessions, 1 of 1", "about alpha")
        await tmux.keys("Enter")
        await tmux.until("> about alpha", "(session s1 goes on here)", gone="sessions, 1")
        await tmux.type("and now", "Enter")
        await tmux.until("[end_turn")
        assert [each["content"] for each in asked(server)["messages"]][1] == "about alpha"


async def test_r71_suspend_and_go_on(cli: Cli, tmux: Tmux) -> None:
    """Ctrl-Z, as a shell with job control sees it; the live lines are gone meanwhile."""
    async with FaultServer([says("one"), says("two")]) as server:
        cli.use(server)
        program = " ".join(cli.argv("tui"))
        await tmux.start_command("bash", "--norc", "-i", PS1="shell$ ")
        await tmux.type(program, "Enter")
        await tmux.until("\n>\n", "groq:test-model · ask")
        await tmux.type("go", "Enter")
        await tmux.until("one", "[end_turn")
        await tmux.keys("C-z")
        await tmux.until("Stopped", gone="groq:test-model · ask")
        await tmux.type("fg", "Enter")
        await tmux.until("groq:test-model · ask", "\n>\n")
        await tmux.type("more", "Enter")
        await tmux.until("two", "[end_turn")
