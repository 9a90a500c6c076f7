"""The smaller commands: models, tools, config, doctor, completion, and the program itself."""

from __future__ import annotations

import asyncio
import json
import shutil
from importlib.metadata import version

import pytest

from tests.apps.helpers import Cli, says
from windlass.apps.cli import COMMANDS
from windlass.apps.cli.completion import script
from windlass.core import registry
from windlass.testing.faults import FaultServer, Reply


async def test_help_and_version(cli: Cli) -> None:
    bare, asked, number = await cli(), await cli("--help"), await cli("--version")
    assert bare.out == asked.out and asked.code == bare.code == 0 and asked.err == ""
    assert all(f"\n  {name} " in asked.out for name in COMMANDS)
    assert number.out == f"windlass {version('windlass')}\n"


async def test_models_lists_providers_and_asks_one(cli: Cli) -> None:
    listing = b'{"data": [{"id": "zeta"}, {"id": "alpha\\u001b[2J"}]}'
    async with FaultServer([Reply(200, listing, {"content-type": "application/json"})]) as server:
        cli.use(server)
        cli.user_config(f'[providers.house]\nbase_url = "{server.url}"\n')
        rows = {row["provider"]: row for row in map(json.loads, (await cli("models", "--json")).out.splitlines())}
        text = (await cli("models")).out
        offered = await cli("models", "groq")
    assert rows["local"]["ready"] and rows["groq"]["ready"] and rows["house"]["ready"]
    assert not rows["openai"]["ready"] and rows["openai"]["key"] == "OPENAI_API_KEY"
    assert "needs OPENAI_API_KEY" in text and "a demonstration" in text
    assert offered.code == 0 and offered.out == "alpha\nzeta\n"
    assert server.requests[0].target == "/v1/models"


async def test_models_of_those_without_a_list_and_of_strangers(cli: Cli) -> None:
    assert (await cli("models", "local")).out == "tiny-0\n"
    assert (await cli("models", "echo")).out == "echo\n"
    stranger, keyless = await cli("models", "grok"), await cli("models", "groq")
    assert (stranger.code, keyless.code) == (2, 2) and "Did you mean 'groq'?" in stranger.err
    async with FaultServer([Reply(401, b"{}")]) as server:
        cli.use(server)
        assert (await cli("models", "groq")).code == 5


async def test_tools_are_what_the_registry_has(cli: Cli) -> None:
    done = await cli("tools")
    names = [line.split()[0] for line in done.out.splitlines() if not line.startswith("set ")]
    assert names == registry.names("tools")
    specs = [json.loads(line) for line in (await cli("tools", "--json")).out.splitlines()]
    assert [spec["name"] for spec in specs] == names and all("input_schema" in spec for spec in specs)


async def test_doctor_finds_this_installation_sound(cli: Cli) -> None:
    done = await cli("doctor")
    assert done.code == 0 and all(line.startswith("ok ") for line in done.out.splitlines())
    for word in ("windlass", "config", "keys", "model", "workspace", "sqlite", "sessions"):
        assert any(line.split()[1] == word for line in done.out.splitlines())
    assert "no provider key is set: the built-in model answers" in done.out


async def test_doctor_names_what_is_broken(cli: Cli) -> None:
    (cli.home / "sessions.db").write_bytes(b"this is no database, it only looks like a file of some length" * 99)
    done = await cli("doctor")
    assert done.code == 1 and "BAD sessions" in done.out
    blocked = cli.home / "file"
    blocked.write_text("")
    done = await cli("doctor", WINDLASS_HOME=str(blocked))
    assert done.code == 1 and "WINDLASS_STORE=memory" in done.out


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
async def test_completion_scripts_are_taken_by_their_shells(cli: Cli, shell: str) -> None:
    done = await cli("completion", shell)
    assert done.code == 0 and "windlass" in done.out and "--memory-files" in done.out
    found = shutil.which(shell)
    if found is not None:
        process = await asyncio.create_subprocess_exec(found, "-n", "/dev/stdin", stdin=asyncio.subprocess.PIPE)
        await process.communicate(done.raw)
        assert process.returncode == 0


async def test_bash_completes_commands_verbs_and_options() -> None:
    async def complete(*words: str) -> list[str]:
        asked = f"COMP_WORDS=({' '.join(words)}); COMP_CWORD={len(words) - 1}; _windlass"
        program = f"{script('bash')}{asked}; printf '%s\\n' \"${{COMPREPLY[@]}}\""
        process = await asyncio.create_subprocess_exec("bash", "-c", program, stdout=asyncio.subprocess.PIPE)
        out, _ = await process.communicate()
        return out.decode().split()

    assert await complete("windlass", "re") == ["replay"]
    assert await complete("windlass", "sessions", "f") == ["fork"]
    assert await complete("windlass", "run", "--mem") == ["--memory-files"]
    assert await complete("windlass", "completion", "z") == ["zsh"]
    assert await complete("windlass", "config", "--or") == ["--origins"]


async def test_an_unknown_shell_and_debugging(cli: Cli) -> None:
    assert (await cli("completion", "tcsh")).code == 2
    async with FaultServer([says("x")]) as server:
        cli.use(server)
        assert (await cli("run", "hi", WINDLASS_DEBUG="1")).code == 0
