"""The official servers through an agent, and the official conformance suite against our client and our server."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import sys
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest

from tests.tools.mcp_npm import CONFORMANCE, EVERYTHING, FILESYSTEM, installed, node
from windlass.agent.agent import Agent
from windlass.core.messages import Blob, Text, ToolResponse
from windlass.core.ports import PermissionOption
from windlass.testing.scripted import ScriptedProvider, call
from windlass.tools.mcp import Mcp

ROOT = Path(__file__).parents[2]
SECONDS = 60
#: What the client of the suite does not do, and why; docs/mcp.md says the same.
CLIENT_FAILS = {
    "auth/basic-cimd": "needs a client document at an https address of ours",
    "auth/2025-03-26-oauth-metadata-backcompat": "the metadata names another issuer than it was fetched from",
    "auth/client-credentials-jwt": "machine-to-machine grants are not offered",
    "auth/client-credentials-basic": "machine-to-machine grants are not offered",
    "auth/cross-app-access-complete-flow": "enterprise token exchange is not offered",
}
CLIENT_PASSES = """
initialize tools_call elicitation-sep1034-client-defaults sse-retry auth/metadata-default auth/metadata-var1
auth/metadata-var2 auth/metadata-var3 auth/scope-from-www-authenticate auth/scope-from-scopes-supported
auth/scope-omitted-when-undefined auth/scope-step-up auth/scope-retry-limit auth/token-endpoint-auth-basic
auth/token-endpoint-auth-post auth/token-endpoint-auth-none auth/pre-registration
auth/2025-03-26-oauth-endpoint-fallback auth/resource-mismatch auth/offline-access-scope
auth/offline-access-not-supported
""".split()  # noqa: SIM905


def answers(agent: Agent) -> list[tuple[Any, str]]:
    parts = [part for message in agent.messages for part in message.parts]
    return [(part.response, part.status) for part in parts if isinstance(part, ToolResponse)]


def official(name: str, package: tuple[str, str, str], *args: str, **fields: Any) -> dict[str, Any]:
    return {"name": name, "command": node(), "args": [str(installed(*package)), *args], **fields}


class Yes:
    """A person who allows everything."""

    async def approve(self, name: str, input: dict[str, Any], reason: str, /) -> PermissionOption:
        return "allow_once"


@pytest.mark.slow
async def test_the_everything_server_through_an_agent(tmp_path: Path) -> None:
    lent = ScriptedProvider(["The lent model's answer."])
    server = official("every", EVERYTHING, "stdio", sampling=10_000, elicitation=True, roots=True)
    mcp = Mcp([server], home=tmp_path, sampling=lent)
    steps: list[Any] = [
        call("mcp_every_echo", message="hi"), call("mcp_every_get-sum", a=2, b=40), call("mcp_every_get-tiny-image"),
        call("mcp_every_get-structured-content", location="Chicago"),
        call("mcp_every_trigger-sampling-request", prompt="Hello", maxTokens=50),
        call("mcp_every_get-roots-list"), call("mcp_every_trigger-elicitation-request"),
        call("mcp_every_get-resource-links", count=2), call("mcp_resources"), "done",
    ]  # fmt: skip
    agent = Agent(ScriptedProvider(steps), capabilities=[mcp], approver=Yes(), workspace=str(tmp_path))
    await agent.run("go")
    echo, total, image, structured, sampled, roots, elicited, links, resources = answers(agent)
    assert echo == ("Echo: hi", "ok") and "42" in total[0]
    assert [type(part) for part in image[0]] == [Text, Blob, Text]
    assert json.loads(structured[0])["temperature"] is not None
    assert "The lent model's answer." in sampled[0] and len(lent.requests) == 1
    assert lent.requests[0].settings.max_tokens == 50
    assert str(tmp_path) in roots[0]
    assert elicited[1] in ("ok", "error") and "[resource " in links[0]
    assert resources[1] == "ok" and resources[0].startswith("every: ")
    prompts = {row["name"] for row in await mcp.prompts()}
    assert "simple-prompt" in prompts
    ((role, parts),) = await mcp.prompt("every", "simple-prompt")
    assert role == "user" and isinstance(parts[0], Text)
    await agent.destroy()


@pytest.mark.slow
async def test_the_filesystem_server_through_an_agent(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n")
    mcp = Mcp([official("fs", FILESYSTEM, str(tmp_path))], home=tmp_path / ".home")
    steps: list[Any] = [
        call("tool_search", query="read text file"), call("mcp_fs_read_text_file", path=str(tmp_path / "a.txt")),
        call("tool_search", names=["mcp_fs_write_file"]),
        call("mcp_fs_write_file", path=str(tmp_path / "b.txt"), content="two"),
        call("mcp_fs_write_file", path="/etc/windlass-was-here", content="x"), "done",
    ]  # fmt: skip
    agent = Agent(ScriptedProvider(steps), capabilities=[mcp], tool_disclosure="lazy")
    await agent.run("go")
    got = answers(agent)
    assert got[1] == ("one\n", "ok")  # said twice, as text and in a wrapper
    assert got[3][1] == "ok" and (tmp_path / "b.txt").read_text() == "two"
    assert got[4][1] == "error" and "denied" in got[4][0]
    await agent.destroy()


# -- the conformance suite ---------------------------------------------------------------------------------------------


async def suite(folder: Path, *args: str) -> tuple[int | None, str]:
    """Run the suite in a folder; returns its exit code and what it said."""
    program = await asyncio.to_thread(lambda: [node(), str(installed(*CONFORMANCE))])
    process = await asyncio.create_subprocess_exec(
        *program, *args, cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT), "NO_COLOR": "1"},
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        start_new_session=True,
    )  # fmt: skip
    try:
        async with asyncio.timeout(SECONDS):
            out, _ = await process.communicate()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, out.decode()


@pytest.mark.slow
@pytest.mark.parametrize("scenario", [*CLIENT_PASSES, *CLIENT_FAILS])
async def test_conformance_of_the_client(scenario: str, tmp_path: Path) -> None:
    command = f"{sys.executable} {Path(__file__).with_name('mcp_conformance.py')}"
    code, out = await suite(tmp_path, "client", "--command", command, "--scenario", scenario, "--timeout", "30000")
    told = f"{scenario} ended with {code}:\n{out[-6000:]}"
    # One that begins to pass is to be listed as such.
    assert (code == 0) is (scenario in CLIENT_PASSES), told
    assert re.search(r"Passed: \d+/\d+", out), told


@pytest.fixture
async def everything() -> AsyncGenerator[str]:
    """Serve what the suite wants of a server; gives the address."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.server.mcp_everything", cwd=ROOT, stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    assert process.stdout is not None
    async with asyncio.timeout(30):
        port = int(await process.stdout.readline())
    yield f"http://127.0.0.1:{port}/mcp"
    process.terminate()
    await process.wait()


@pytest.mark.slow
async def test_conformance_of_the_server(everything: str, tmp_path: Path) -> None:
    code, out = await suite(tmp_path, "server", "--url", everything, "--suite", "all")
    found = {
        name: (int(good), int(bad)) for name, good, bad in re.findall(r"\S ([\w-]+): (\d+) passed, (\d+) failed", out)
    }
    assert code == 0 and len(found) == 32 and not any(bad for _, bad in found.values()), out[-6000:]
    # Closing the stream of a running call needs a store of events, which we do not keep.
    assert [name for name, (good, _) in found.items() if not good] == ["server-sse-polling"]
