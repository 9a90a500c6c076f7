"""Our MCP server, asked by the official SDK's own client: over stdio as programs start it, and over HTTP."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from mcp import Client, StdioServerParameters
from mcp_types import (
    CallToolResult,
    ElicitResult,
    EmbeddedResource,
    EmptyResult,
    ImageContent,
    ResourceLink,
    ResourceUpdatedNotification,
    SubscribeRequest,
    SubscribeRequestParams,
    TextContent,
    TextResourceContents,
    UnsubscribeRequest,
    UnsubscribeRequestParams,
)

from windlass.agent.agent import Agent
from windlass.agent.policy import Policy
from windlass.core.errors import ConfigError
from windlass.core.messages import Blob, Text, Uri
from windlass.core.ports import ToolContext
from windlass.server.mcp import Offer, Prompt, Resource, make_server, serve_http, skill_offer
from windlass.server.mcp_calls import ClientApprover
from windlass.testing.scripted import ScriptedProvider, call
from windlass.tools.function import tool
from windlass.tools.skill_files import define_skill
from windlass.workspaces.memory import MemoryWorkspace

ENVIRON = {"PATH": os.environ["PATH"], "HOME": "/nonexistent"}


def text_of(result: CallToolResult) -> str:
    return "\n".join([block.text for block in result.content if isinstance(block, TextContent)])


@asynccontextmanager
async def started(*args: str, cwd: Path) -> AsyncGenerator[Client]:
    """Start `windlass mcp` as any MCP client does."""
    env = {**ENVIRON, "WINDLASS_HOME": str(cwd / ".windlass")}
    command = StdioServerParameters(
        command=sys.executable, args=["-m", "windlass", "mcp", *args], env=env, cwd=str(cwd)
    )
    async with Client(command, read_timeout_seconds=20) as client:
        yield client


# -- the command -------------------------------------------------------------------------------------------------------


async def test_a_program_that_starts_windlass_mcp_is_served(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("hello\n")
    async with started(cwd=tmp_path) as client:
        assert client.server_info is not None and client.server_info.name == "windlass"
        listed = (await client.list_tools()).tools
        assert [item.name for item in listed] == ["read_file", "list_files", "glob", "grep"]
        assert all(item.annotations is not None and item.annotations.read_only_hint for item in listed)
        assert "hello" in text_of(await client.call_tool("read_file", {"path": "a.txt"}))
        missing = await client.call_tool("read_file", {"path": "../../etc/passwd"})
        assert missing.is_error
        wrong = await client.call_tool("read_file", {})
        assert wrong.is_error and text_of(wrong) == "Validation error: Missing required field: path"


async def test_tools_skills_and_the_agent_are_offered_when_asked_for(tmp_path: Path) -> None:
    skill = tmp_path / "skills" / "greet"
    skill.mkdir(parents=True)
    (skill / "SKILL.md").write_text("---\nname: greet\ndescription: Greets people.\n---\nSay hello.\n")
    args = ("serve", "--tools", "write_file", "--skills", "skills", "--agent", "-m", "echo", "--yes")
    async with started(*args, cwd=tmp_path) as client:
        assert [item.name for item in (await client.list_tools()).tools] == ["write_file", "run_agent"]
        await client.call_tool("write_file", {"path": "made.txt", "content": "x"})
        assert (tmp_path / "made.txt").read_text() == "x"
        (prompt,) = (await client.list_prompts()).prompts
        assert (prompt.name, prompt.description) == ("greet", "Greets people.")
        (message,) = (await client.get_prompt("greet", {"task": "Greet Ada."})).messages
        assert isinstance(message.content, TextContent) and message.content.text == "Say hello.\n\nGreet Ada."
        (content,) = (await client.read_resource("skill://greet/SKILL.md")).contents
        assert isinstance(content, TextResourceContents) and content.text.strip() == "Say hello."
        said = await client.call_tool("run_agent", {"prompt": "Ahoy"})
        assert said.structured_content["stop_reason"] == "end_turn" and "Ahoy" in said.structured_content["text"]


async def test_nothing_but_the_protocol_is_on_stdout(tmp_path: Path) -> None:
    hello = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "x", "version": "1"}}
    first = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": hello}
    call_shell = {"jsonrpc": "2.0", "id": 2, "method": "tools/call",
                  "params": {"name": "shell", "arguments": {"command": "echo loud; echo louder >&2"}}}  # fmt: skip
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "windlass", "mcp", "--tools", "shell",
        cwd=tmp_path, env={**ENVIRON, "WINDLASS_HOME": str(tmp_path)},
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(f"{json.dumps(first)}\nnot json\n{json.dumps(call_shell)}\n".encode())
    lines = [json.loads(await process.stdout.readline()) for _ in range(2)]
    process.stdin.close()
    async with asyncio.timeout(20):
        rest, err = await process.communicate()
    assert [line["id"] for line in lines] == [1, 2] and "loud" in json.dumps(lines[1]["result"])
    assert rest == b"" and process.returncode == 0, err


# -- the library -------------------------------------------------------------------------------------------------------


@tool
def parts() -> Any:
    """Give parts."""
    return [
        Text("t"),
        Blob(b"\x89PNG", "image/png"),
        Blob(b"a,b", "text/csv", "document"),
        Uri("https://x/y", "image/png"),
    ]


@tool
async def ask_first(ctx: ToolContext) -> str:
    """Ask, then do."""
    ctx.progress("half")
    return await ctx.ask("ask_first", {"a": 1}, "it matters")


@tool
async def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


@tool
async def breaks() -> str:
    """Break."""
    raise ValueError("inside")


async def test_outputs_become_content_blocks_and_errors_stay_in_the_call() -> None:
    async with Client(make_server(Offer(tools=[parts, add, breaks])), mode="legacy") as client:
        blocks = (await client.call_tool("parts", {})).content
        assert [type(block) for block in blocks] == [TextContent, ImageContent, EmbeddedResource, ResourceLink]
        assert text_of(await client.call_tool("add", {"a": "1", "b": 2})) == "3"
        broken = await client.call_tool("breaks", {})
        assert broken.is_error and text_of(broken) == "Tool error: ValueError: inside"
        with pytest.raises(Exception, match="Unknown tool: nope"):
            await client.call_tool("nope", {})


@pytest.mark.parametrize(("answer", "outcome"), [(True, "allow_once"), (False, "reject_once"), (None, "reject_once")])
async def test_a_tool_asks_the_clients_user_and_tells_its_progress(answer: bool | None, outcome: str) -> None:
    asked: list[str] = []
    heard: list[tuple[float, str | None]] = []

    async def elicit(context: Any, params: Any) -> ElicitResult:
        asked.append(params.message)
        return ElicitResult(action="accept", content={"allow": bool(answer)})

    async def told(progress: float, total: float | None, message: str | None) -> None:
        heard.append((progress, message))

    more: dict[str, Any] = {} if answer is None else {"elicitation_callback": elicit}
    async with Client(make_server(Offer(tools=[ask_first])), mode="legacy", **more) as client:
        said = await client.call_tool("ask_first", {}, progress_callback=told)
    assert text_of(said) == outcome and heard == [(1.0, "half")]
    assert asked == ([] if answer is None else ['Allow ask_first? it matters\n{"a":1}'])


async def test_an_agent_is_one_tool_keeps_its_conversation_and_asks_through_the_client() -> None:
    space = MemoryWorkspace()
    provider = ScriptedProvider([call("write_file", path="x", content="1"), "written", "second"])
    agent = Agent(provider, tools=["write_file"], workspace=space, policy=Policy("ask"), approver=ClientApprover())
    asked: list[str] = []

    async def elicit(context: Any, params: Any) -> ElicitResult:
        asked.append(params.message)
        return ElicitResult(action="accept", content={"allow": True})

    heard: list[str | None] = []

    async def told(progress: float, total: float | None, message: str | None) -> None:
        heard.append(message)

    server = make_server(Offer(agent=agent))
    async with Client(server, mode="legacy", elicitation_callback=elicit) as client:
        first = await client.call_tool("run_agent", {"prompt": "go"}, progress_callback=told)
        session = first.structured_content["session"]
        assert first.structured_content == {
            "text": "written",
            "session": session,
            "stop_reason": "end_turn",
            "turns": 2,
        }
        again = await client.call_tool("run_agent", {"prompt": "more", "session": session})
        assert again.structured_content["text"] == "second"
        unknown = await client.call_tool("run_agent", {"prompt": "x", "session": "none"})
        failed = await client.call_tool("run_agent", {"prompt": "the script is over"})
    assert unknown.is_error and "There is no session 'none'" in text_of(unknown)
    assert failed.is_error and text_of(failed).startswith("The agent failed: ")
    assert len(asked) == 1 and asked[0].startswith("Allow write_file?") and heard == ["write_file"]
    assert [message.text for message in provider.requests[2].messages if message.role == "user"] == ["go", "more"]
    assert await space.read("x") == b"1"
    await agent.destroy()


async def test_resources_have_templates_and_tell_who_watches_that_they_changed() -> None:
    resources = [
        Resource("note://{name}", "notes", lambda uri: f"text of {uri}"),
        Resource("bin://x", "bytes", lambda _: b"\x00", mime_type="application/octet-stream"),
    ]
    offer = Offer(resources=resources, prompts=[Prompt("p", "P.", lambda _: [("user", "x")], {"n": ""}, ("n",))])
    heard: list[str] = []
    woken = asyncio.Event()

    async def told(message: Any) -> None:
        if isinstance(message, ResourceUpdatedNotification):
            heard.append(str(message.params.uri))
            woken.set()

    async with Client(make_server(offer), mode="legacy", message_handler=told) as client:
        assert [item.uri for item in (await client.list_resources()).resources] == ["bin://x"]
        assert [item.uri_template for item in (await client.list_resource_templates()).resource_templates] == [
            "note://{name}"
        ]
        (content,) = (await client.read_resource("note://a")).contents
        assert isinstance(content, TextResourceContents) and content.text == "text of note://a"
        with pytest.raises(Exception, match="Unknown resource"):
            await client.read_resource("note://a/b")
        with pytest.raises(Exception, match="Missing arguments: n"):
            await client.get_prompt("p", {})
        watch = SubscribeRequest(params=SubscribeRequestParams(uri="note://a"))
        await client.session.send_request(watch, EmptyResult)
        await offer.changed("note://a")
        async with asyncio.timeout(10):
            await woken.wait()
        stop = UnsubscribeRequest(params=UnsubscribeRequestParams(uri="note://a"))
        await client.session.send_request(stop, EmptyResult)
        await offer.changed("note://a")
    assert heard == ["note://a"]


async def test_http_is_for_this_machine_for_who_has_the_token_and_not_for_web_pages() -> None:
    ports: asyncio.Queue[int] = asyncio.Queue()
    server = make_server(Offer(tools=[add]))
    serving = asyncio.create_task(serve_http(server, "127.0.0.1", 0, token="t0ken", started=ports.put_nowait))
    port = await ports.get()
    url = f"http://127.0.0.1:{port}/mcp"
    body = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(httpx.AsyncClient(trust_env=False))
        key = {"authorization": "Bearer t0ken", "accept": "application/json, text/event-stream"}
        assert (await client.post(url, json=body)).status_code == 401
        assert (await client.post(url, json=body, headers={**key, "authorization": "Bearer t0kem"})).status_code == 401
        assert (await client.post(url, json=body, headers={**key, "host": "evil.example"})).status_code == 421
        assert (await client.post(url, json=body, headers={**key, "origin": "http://evil.example"})).status_code == 403
    serving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await serving
    with pytest.raises(ConfigError, match="on this machine only"):
        await serve_http(server, "0.0.0.0", 0, token="x")


def test_an_offer_is_checked() -> None:
    with pytest.raises(ConfigError, match="one name"):
        make_server(Offer(tools=[add, add]))
    prompts, resources = skill_offer([define_skill("a", "Does a.", "Body.")])
    assert [prompt.name for prompt in prompts] == ["a"] and resources[0].uri == "skill://a/SKILL.md"
