"""Exit codes, each by a real situation, and what is said with them. 130 is in test_stop.py."""

from __future__ import annotations

import json
import os
import shutil
import stat

import pytest

from tests.apps.helpers import Cli, asked, calls, says, tool_results
from windlass.testing.faults import FaultServer, Reply, Rst

WRITE = ("write_file", {"path": "a.txt", "content": "hi"})


async def test_2_wrong_use(cli: Cli) -> None:
    """Nothing on stdout, one line on stderr, nothing asked."""
    wrong = {
        ("run",): "a prompt is needed",
        ("run", "--prompt", "a", "b"): "the prompt is given twice",
        ("run", "-m", "echo", "--max-turns", "0", "hi"): "max_turns is 0; it must be at least 1",
        ("run", "-m", "echo", "--max-turns", "many", "hi"): "invalid int value: 'many'",
        ("run", "-m", "echo", "-c", "-r", "x", "hi"): "not allowed with argument",
        ("run", "--mod", "echo", "hi"): "unrecognized arguments: --mod",
        ("run", "-m", "", "hi"): "'' is empty or holds control characters",
        ("run", "-m", "grok", "hi"): "Unknown provider 'grok'. Did you mean 'groq'?",
        ("run", "-m", "groq", "hi"): "No API key for provider 'groq'. Set GROQ_API_KEY",
        ("run", "-m", "echo", "--tools", "shel", "hi"): "Unknown tool 'shel'. Did you mean 'shell'?",
        ("rum",): "unknown command 'rum'. Did you mean 'run'?",
        ("sessions", "lst"): "invalid choice: 'lst'",
        ("replay", "nofile"): "Cannot read the recording nofile",
    }
    for args, complaint in wrong.items():
        done = await cli(*args)
        assert (done.code, done.out) == (2, ""), args
        assert complaint in done.err and len(done.err.splitlines()) == 1, (args, done.err)


async def test_3_refused_without_a_terminal_and_without_yes(cli: Cli) -> None:
    async with FaultServer([calls(WRITE), says("I may not.")]) as server:
        cli.use(server)
        done = await cli("run", "--output", "json", "write")
        assert tool_results(server) == ["Blocked: it needs permission, and there is nobody to ask"]
    assert done.code == 3 and done.json()["refused"] == ["write_file"]
    assert "windlass" not in done.out and not (cli.folder / "a.txt").exists()


async def test_3_says_how_to_allow_it(cli: Cli) -> None:
    async with FaultServer([calls(WRITE), says("I may not.")]) as server:
        cli.use(server)
        done = await cli("run", "write")
    assert done.code == 3 and "windlass: refused: write_file. Allow with --yes." in done.err


async def test_reading_needs_no_permission(cli: Cli) -> None:
    (cli.folder / "a.txt").write_text("42")
    async with FaultServer([calls(("read_file", {"path": "a.txt"})), says("42")]) as server:
        cli.use(server)
        assert (await cli("run", "read")).code == 0


async def test_4_a_limit_of_turns(cli: Cli) -> None:
    async with FaultServer([calls(("list_files", {}))]) as server:
        cli.use(server)
        done = await cli("run", "--max-turns", "2", "go")
        assert len(server.requests) == 2
    assert done.code == 4 and "limit reached: turns (2 of 2)" in done.err


async def test_4_a_loop_without_its_marker(cli: Cli) -> None:
    done = await cli("run", "-m", "echo", "--until", "NEVER", "--max-turns", "2", "go")
    assert done.code == 4 and "Loop stopped after 2 turns without marker 'NEVER'." in done.err


async def test_4_an_answer_that_never_fits_its_schema(cli: Cli) -> None:
    async with FaultServer([says("no json")]) as server:
        cli.use(server)
        done = await cli("run", "--schema", '{"type": "object"}', "--output", "json", "go")
        assert len(server.requests) == 3
    error = done.json()["error"]
    assert done.code == 4 and error["code"] == "output" and done.json()["session_id"]
    assert done.err.count("never fitted its schema") == 1


@pytest.mark.parametrize(
    ("step", "complaint"),
    [
        (Reply(401, b'{"error": {"message": "bad key"}}'), "bad key"),
        (Reply(404, b'{"error": {"message": "no such model"}}'), "no such model"),
        (Rst(), "groq"),
    ],
)
async def test_5_the_provider_fails(cli: Cli, step: Reply | Rst, complaint: str) -> None:
    async with FaultServer([step]) as server:
        cli.use(server)
        done = await cli("run", "hi", WINDLASS_MAX_ATTEMPTS="1")
    assert (done.code, done.out) == (5, "")
    # A configured provider that fails is never replaced by the built-in model.
    assert complaint in done.err and "built-in" not in done.err
    assert len([line for line in done.err.splitlines() if line.startswith("windlass:")]) == 1


async def test_5_nothing_listens(cli: Cli) -> None:
    async with FaultServer([says("x")]) as server:
        cli.use(server)
    done = await cli("run", "--output", "json", "hi", WINDLASS_MAX_ATTEMPTS="1")
    assert done.code == 5 and done.json()["error"]["code"] == "provider_connection"


async def test_1_an_unknown_session(cli: Cli) -> None:
    done = await cli("run", "-m", "echo", "-c", "hi")
    assert (done.code, done.out) == (1, "") and "no session to continue in this folder" in done.err


async def test_r44_a_data_folder_that_cannot_be_written(cli: Cli) -> None:
    """The way on without keeping anything is named, and works; it is never taken unasked."""
    readonly = cli.home / "readonly"
    readonly.mkdir(mode=0o500)
    blocked = cli.home / "a-file"
    blocked.write_text("")
    as_plain_user: list[str] = []
    if os.geteuid() == 0:
        setpriv = shutil.which("setpriv")
        assert setpriv is not None, "as root this test needs setpriv (util-linux)"
        as_plain_user = [setpriv, "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-all"]
    for home in (readonly, blocked):
        cli.prefix = as_plain_user
        done = await cli("run", "-m", "echo", "hi", WINDLASS_HOME=str(home))
        cli.prefix = []
        assert (done.code, done.out) == (1, ""), done
        assert "WINDLASS_STORE=memory goes on without keeping the conversation." in done.err
        assert len(done.err.splitlines()) == 1 and "internal" not in done.err
    done = await cli("run", "-m", "echo", "hi", WINDLASS_HOME=str(blocked), WINDLASS_STORE="memory")
    assert (done.code, done.out) == (0, "Echo: hi\n")
    assert stat.S_ISREG(blocked.stat().st_mode) and list(readonly.iterdir()) == []


async def test_s69_a_line_end_in_a_name_is_refused_before_anything_is_sent(cli: Cli) -> None:
    async with FaultServer([says("x")]) as server:
        cli.use(server)
        for args in (
            ("run", "-m", "groq:a\r\nx-evil: 1", "hi"),
            ("run", "--session", "a\r\nb", "hi"),
            ("run", "--provider", "groq\n", "hi"),
            ("sessions", "fork", "x", "--as", "a\nb"),
        ):
            done = await cli(*args)
            assert (done.code, done.out) == (2, "") and "control characters" in done.err, args
        done = await cli("run", "hi", WINDLASS_MODEL="groq:a\r\nb")
        assert done.code == 2 and done.err.startswith("windlass: WINDLASS_MODEL is ")
        assert server.requests == [] and not (cli.home / "sessions.db").exists()


async def test_a_failure_is_kept_in_the_session(cli: Cli) -> None:
    """What failed is on record, and the session goes on."""
    async with FaultServer([Reply(400, b'{"error": {"message": "no"}}'), says("better")]) as server:
        cli.use(server)
        failed = await cli("run", "--session", "s", "one")
        went_on = await cli("run", "-r", "s", "two")
        said = [m["content"] for m in asked(server)["messages"] if m["role"] == "user"]
    assert (failed.code, went_on.code) == (5, 0) and went_on.out == "better\n"
    assert said == ["one", "two"]
    rows = [json.loads(line) for line in (await cli("sessions", "export", "s")).out.splitlines()]
    assert [row["data"]["stop_reason"] for row in rows if row["kind"] == "run.finished"] == ["error", "end_turn"]
