"""R74, R75: what ends a run by a limit, as the program tells it: whole pairs, the reason, and code 4."""

from __future__ import annotations

import asyncio
import json

import pytest

from tests.apps.helpers import Cli, asked, calls, hanging, says, tool_results
from windlass.testing.faults import FaultServer

LOOK = ("list_files", {})


async def went_on(cli: Cli, server: FaultServer) -> list[str]:
    """The session goes on where the limit stopped it; returns the roles that the model is then shown."""
    before = len(server.requests)
    done = await cli("run", "-r", "s", "go on", WINDLASS_MAX_TOTAL_TOKENS="", WINDLASS_MAX_COST="")
    assert done.code == 0 and done.out == "Later.\n", done.err
    return [message["role"] for message in asked(server, before)["messages"][1:]]


async def test_r74_a_model_that_repeats_itself_is_stopped_with_code_4(cli: Cli) -> None:
    async with FaultServer([calls(LOOK)] * 5 + [says("Later.")]) as server:
        cli.use(server)
        done = await cli("run", "--session", "s", "go")
        assert done.code == 4 and len(server.requests) == 5
        assert "limit reached: repeated calls (5 of 5)" in done.err
        nudges = [
            m for m in asked(server)["messages"] if m["role"] == "user" and "same tool calls" in str(m["content"])
        ]
        assert len(nudges) == 1
        roles = await went_on(cli, server)
    assert roles.count("tool") == roles.count("assistant") == 5


async def test_r74_a_model_that_alternates_is_stopped_with_code_4(cli: Cli) -> None:
    (cli.folder / "a.txt").write_text("a\n")
    turns = [calls(LOOK), calls(("read_file", {"path": "a.txt"}))] * 10
    async with FaultServer(turns) as server:
        cli.use(server)
        done = await cli("run", "--output", "json", "go")
        assert done.code == 4 and done.json()["stop_reason"] == "loop" and len(server.requests) < 20


async def test_r74_empty_answers_end_with_code_4(cli: Cli) -> None:
    async with FaultServer([says(""), says("")]) as server:
        cli.use(server)
        done = await cli("run", "--output", "json", "go")
        assert (done.code, len(server.requests)) == (4, 2)
    assert done.json()["stop_reason"] == "loop" and done.json()["detail"] == "empty answers: 2 of 2"


async def test_r75_tokens_run_out_amid_a_task(cli: Cli) -> None:
    """The call that was asked for is run and answered before it stops: 23 tokens an answer, 40 are allowed."""
    async with FaultServer([calls(LOOK), calls(LOOK), says("Later.")]) as server:
        cli.use(server)
        done = await cli("run", "--session", "s", "go", WINDLASS_MAX_TOTAL_TOKENS="40")
        assert done.code == 4 and len(server.requests) == 2
        assert "limit reached: tokens (46 of 40)" in done.err
        assert await went_on(cli, server) == ["user", "assistant", "tool", "assistant", "tool", "user"]
        assert len(tool_results(server)) == 2


async def test_r75_dollars_run_out_amid_a_task(cli: Cli) -> None:
    """With the price that the user's own file states for the model that answered."""
    async with FaultServer([calls(LOOK), says("Later.")]) as server:
        cli.use(server)
        cli.user_config("[models.m.prices]\ninput = 1000.0\noutput = 1000.0\n")
        done = await cli("run", "--session", "s", "--output", "json", "go", WINDLASS_MAX_COST="0.01")
        assert (done.code, done.json()["stop_reason"]) == (4, "budget") and len(server.requests) == 1
        assert await went_on(cli, server) == ["user", "assistant", "tool", "user"]


async def test_r75_a_project_cannot_raise_what_a_run_may_use(cli: Cli) -> None:
    (cli.folder / "windlass.toml").write_text("max_cost = 100.0\nmax_total_tokens = 9\nrun_seconds = 1.0\n")
    done = await cli("run", "-m", "echo", "hello")
    assert done.code == 0 and all(name in done.err for name in ("max_cost", "max_total_tokens", "run_seconds"))


async def test_r75_the_time_is_over_while_the_model_speaks(cli: Cli) -> None:
    async with FaultServer([hanging("Once upon"), says("Later.")]) as server:
        cli.use(server)
        done = await cli("run", "--session", "s", "--output", "json", "go", WINDLASS_RUN_SECONDS="1.5")
        await server.wait(open=0)
        assert (done.code, done.json()["stop_reason"], done.json()["detail"]) == (4, "budget", "run_seconds")
        assert await went_on(cli, server) == ["user", "user"]


async def test_r75_the_time_is_over_while_a_command_runs(cli: Cli) -> None:
    """The command is ended, its call answered, and the answer says what happened."""
    async with FaultServer([calls(("shell", {"command": "echo begun; sleep 9873"})), says("Later.")]) as server:
        cli.use(server)
        done = await cli("run", "--yes", "--session", "s", "go", WINDLASS_RUN_SECONDS="3")
        assert done.code == 4
        assert await went_on(cli, server) == ["user", "assistant", "tool", "user"]
        assert tool_results(server)[0].startswith("Cancelled: the run was stopped before this call finished")


@pytest.mark.parametrize("output", ["text", "json", "stream-json"])
async def test_s115_an_address_in_an_answer_is_text(cli: Cli, output: str) -> None:
    """Images, links and bare addresses that carry a secret away: nothing that shows an answer fetches them."""
    reached: list[bytes] = []

    async def taken(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        reached.append(await reader.read(1000))
        writer.close()

    sentinel = await asyncio.start_server(taken, "127.0.0.1", 0)
    port = sentinel.sockets[0].getsockname()[1]
    there = f"http://127.0.0.1:{port}/CANARY"
    text = f"![x]({there}) [a link]({there}?b) <{there}> {there}\n<img src='{there}'>"
    async with FaultServer([says(text)]) as server:
        cli.use(server)
        done = await cli("run", "--output", output, "go")
    sentinel.close()
    await sentinel.wait_closed()
    assert done.code == 0 and reached == []
    assert "CANARY" in done.out and (output != "json" or json.loads(done.out)["text"] == text)
