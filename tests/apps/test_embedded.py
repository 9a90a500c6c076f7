"""Without configuration the built-in model answers: a demonstration that says so, and is held on a short lead."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.apps.helpers import Cli, Terminal, calls, says
from windlass.testing.faults import FaultServer, Rst

TASK = 'write "hello" to hello.txt and read it back'
SAYS_SO = "windlass: The small built-in model answers. It is a demonstration"


async def test_the_demonstration_does_its_task(cli: Cli) -> None:
    done = await cli("run", "--yes", TASK)
    assert done.code == 0 and (cli.folder / "hello.txt").read_bytes() == b"hello"
    assert done.err.startswith(SAYS_SO) and done.err.count(SAYS_SO) == 1
    # Its own words about a result are not to be relied on: the result stands beside them.
    assert "\u2190 read_file\n  hello\n" in done.err


async def test_every_write_asks_and_without_a_terminal_it_is_refused(cli: Cli) -> None:
    done = await cli("run", "--output", "json", TASK)
    result = done.json()
    assert done.code == 3 and result["refused"][0] == "write_file" and not (cli.folder / "hello.txt").exists()
    assert result["model"].startswith("local") and "demonstration" in result["notice"]


async def test_an_existing_file_is_never_replaced_unasked(cli: Cli, terminal: Callable[..., Terminal]) -> None:
    file = cli.folder / "hello.txt"
    file.write_text("mine")
    done = await cli("run", "--yes", TASK)
    assert done.code == 3 and file.read_text() == "mine"
    assert "hello.txt exists. The built-in model replaces no file unless a person at a terminal allows it." in done.err
    assert "Allow with --yes" not in done.err
    for answer, code, content in (("n", 3, "mine"), ("y", 0, "hello")):
        screen = terminal("run", "--yes", TASK)
        shown = await screen.until("exact call: ")
        assert "Allow write_file? (hello.txt exists and would be replaced)" in shown
        screen.type(f"{answer}\n")
        assert await screen.ended() == code
        assert screen.shown.count("Allow write_file?") == 1 and file.read_text() == content


async def test_the_shell_is_off_with_it(cli: Cli) -> None:
    for tools in ("shell", "coding", "windlass.tools.shell:shell,read_file"):
        done = await cli("run", "--yes", "--tools", tools, "--max-turns", "1", "hello")
        assert done.err.count("windlass: the built-in model gets no shell.") == 1 and done.code == 0, done.err


async def test_the_shell_stays_on_with_a_model_of_one_s_own(cli: Cli) -> None:
    async with FaultServer([calls(("shell", {"command": "echo hi > a"})), says("ok")]) as server:
        cli.use(server)
        done = await cli("run", "--yes", "go")
    assert done.code == 0 and (cli.folder / "a").exists() and "built-in" not in done.err


async def test_it_says_so_in_a_conversation_and_by_any_of_its_names(
    cli: Cli, terminal: Callable[..., Terminal]
) -> None:
    screen = terminal("agent")
    assert "It is a demonstration" in await screen.until("> ")
    screen.type("/exit\n")
    assert await screen.ended() == 0
    cli.user_config('[routes]\nmine = ["local:tiny-0"]\n')
    for model in ("local", "local:default", "mine"):
        done = await cli("run", "-m", model, "--max-turns", "1", "hello")
        assert done.err.startswith(SAYS_SO), model


@pytest.mark.parametrize("env", [{"WINDLASS_PROVIDER": "groq"}, {"WINDLASS_MODEL": "groq:x"}])
async def test_a_configured_provider_without_a_key_is_an_error(cli: Cli, env: dict[str, str]) -> None:
    cli.env.update(env)
    done = await cli("run", "--yes", TASK)
    assert done.code == 2 and "No API key for provider 'groq'" in done.err and SAYS_SO not in done.err
    assert list(cli.folder.iterdir()) == []


async def test_a_configured_provider_that_fails_is_an_error(cli: Cli) -> None:
    async with FaultServer([Rst()]) as server:
        cli.use(server)
        done = await cli("run", "--yes", TASK, WINDLASS_MAX_ATTEMPTS="1")
    assert done.code == 5 and SAYS_SO not in done.err and list(cli.folder.iterdir()) == []


async def test_a_model_file_of_one_s_own_is_not_the_demonstration(cli: Cli) -> None:
    cli.user_config('[providers.local]\nmodel = "/nowhere/mine.gguf"\n')
    done = await cli("run", "hi")
    assert done.code == 5 and SAYS_SO not in done.err and "/nowhere/mine.gguf" in done.err
