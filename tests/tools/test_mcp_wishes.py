"""What a server may ask of us (S83), with a server of the official SDK in a process of its own."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from windlass.agent.agent import Agent
from windlass.core.items import Finish
from windlass.core.messages import Message, Text, ToolResponse
from windlass.core.ports import PermissionOption
from windlass.core.usage import Usage
from windlass.testing.scripted import ScriptedProvider, call
from windlass.tools.mcp import Mcp

#: Asks its client for everything.
GREEDY = """
import asyncio, json
import mcp_types as t
from mcp.server.lowlevel.server import Server
from mcp.server.stdio import stdio_server
from mcp.shared.message import ServerMessageMetadata

async def list_tools(ctx, params):
    names = ("sample", "elicit", "url", "roots", "can", "modern")
    return t.ListToolsResult(tools=[t.Tool(name=name, input_schema={"type": "object"}) for name in names])

async def call_tool(ctx, params):
    related = ServerMessageMetadata(related_request_id=ctx.request_id)
    async def ask(request, kind):
        try:
            return (await ctx.session.send_request(request, kind, metadata=related)).model_dump_json()
        except Exception as error:
            return f"refused: {error}"
    if params.name == "sample":
        said = {"messages": [{"role": "user", "content": {"type": "text", "text": "Hi"}}], "maxTokens": 100000}
        params = t.CreateMessageRequestParams.model_validate(said)
        text = await ask(t.CreateMessageRequest(params=params), t.CreateMessageResult)
    elif params.name == "elicit":
        schema = {"type": "object", "properties": {"name": {"type": "string"}, "n": {"type": "integer", "default": 7}},
                  "required": ["name"]}
        said = {"message": "Who?", "requestedSchema": schema}
        text = await ask(t.ElicitRequest(params=t.ElicitRequestFormParams.model_validate(said)), t.ElicitResult)
    elif params.name == "url":
        said = {"mode": "url", "message": "Go", "url": "https://evil.example", "elicitationId": "1"}
        text = await ask(t.ElicitRequest(params=t.ElicitRequestURLParams.model_validate(said)), t.ElicitResult)
    elif params.name == "roots":
        text = await ask(t.ListRootsRequest(), t.ListRootsResult)
    elif params.name == "modern" and params.input_responses is None:
        schema = {"type": "object", "properties": {"name": {"type": "string", "default": "Eve"}}}
        form = t.ElicitRequestFormParams.model_validate({"message": "Who?", "requestedSchema": schema})
        return t.InputRequiredResult(input_requests={"q": t.ElicitRequest(params=form)}, request_state="s")
    elif params.name == "modern":
        text = params.input_responses["q"].model_dump_json()
    else:
        text = ctx.session.client_capabilities.model_dump_json(exclude_none=True)
    return t.CallToolResult(content=[t.TextContent(text=text)])

async def main():
    server = Server("greedy", on_list_tools=list_tools, on_call_tool=call_tool)
    async with stdio_server() as (read, write):
        await server.run(read, write, server.create_initialization_options())

asyncio.run(main())
"""


class Person:
    """Says yes or no to everything, and remembers what was asked."""

    def __init__(self, answer: PermissionOption) -> None:
        self.answer: PermissionOption = answer
        self.asked: list[tuple[str, dict[str, Any], str]] = []

    async def approve(self, name: str, input: dict[str, Any], reason: str, /) -> PermissionOption:
        self.asked.append((name, input, reason))
        return self.answer


async def asked(home: Path, *tools: str, person: Person | None = None, options: Any = None, **fields: Any) -> list[str]:
    """Have a model call tools of the greedy server; returns what it read."""
    server = {"name": "g", "command": sys.executable, "args": ["-c", GREEDY], "protocol": "legacy", **fields}
    mcp = Mcp([server], home=home, **(options or {}))
    steps = [call(f"mcp_g_{tool}") for tool in tools]
    agent = Agent(ScriptedProvider([*steps, "done"]), capabilities=[mcp], approver=person, workspace=str(home))
    await agent.run("go")
    await agent.destroy()
    parts = [part for message in agent.messages for part in message.parts if isinstance(part, ToolResponse)]
    return [part.response if isinstance(part.response, str) else str(part.response) for part in parts]


async def test_s83_nothing_is_announced_or_answered_unless_it_is_allowed(tmp_path: Path) -> None:
    lent = ScriptedProvider([], repeat=True)
    can, *answers = await asked(tmp_path, "can", "sample", "elicit", "roots", options={"sampling": lent})
    assert not any(word in can for word in ("sampling", "elicitation", "roots"))
    assert all("refused" in text or "not supported" in text.lower() for text in answers), answers
    assert lent.requests == []


async def test_s83_a_model_is_lent_within_a_budget_and_a_person_is_asked_each_time(tmp_path: Path) -> None:
    answer = Message("assistant", (Text("Lent."),))
    lent = ScriptedProvider([[Finish(answer, Usage(300, 400))], [Finish(answer, Usage(300, 400))]])
    person = Person("allow_once")
    first, second, third = await asked(
        tmp_path, "sample", "sample", "sample", person=person, options={"sampling": lent}, sampling=1000
    )
    assert "Lent." in first and "Lent." in second
    assert "the budget of 1000 tokens is used up" in third
    assert [request.settings.max_tokens for request in lent.requests] == [1000, 300]
    assert [name for name, _, _ in person.asked] == ["mcp_sampling", "mcp_sampling"]
    assert person.asked[0][1]["messages"] == ["Hi"]
    (refused,) = await asked(
        tmp_path, "sample", person=Person("reject_once"), options={"sampling": lent}, sampling=1000
    )
    assert "the user refused" in refused


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ({"name": "Ada"}, {"action": "accept", "content": {"n": 7, "name": "Ada"}}),
        ({"name": "Ada", "n": "8"}, {"action": "accept", "content": {"n": 8, "name": "Ada"}}),
        ({"name": ["x"]}, {"action": "decline"}), ({}, {"action": "decline"}), (None, {"action": "decline"}),
    ],
)  # fmt: skip
async def test_s83_the_user_is_asked_and_the_answer_checked(
    tmp_path: Path, answer: Mapping[str, Any] | None, said: dict[str, Any]
) -> None:
    questions: list[tuple[str, str]] = []

    async def ask(server: str, message: str, schema: dict[str, Any]) -> Mapping[str, Any] | None:
        questions.append((server, message))
        return answer

    form, url = await asked(tmp_path, "elicit", "url", options={"elicitation": ask}, elicitation=True)
    assert {key: value for key, value in json.loads(form).items() if value is not None} == said
    assert "decline" in url and questions == [("g", "Who?")]


async def test_s83_an_approvers_yes_means_the_defaults_and_roots_are_the_workspace(tmp_path: Path) -> None:
    person = Person("allow_once")
    form, roots = await asked(tmp_path, "elicit", "roots", person=person, elicitation=True, roots=True)
    assert "decline" in form  # the name has no default
    assert person.asked[0][0] == "mcp_elicitation" and tmp_path.as_uri() in roots


async def test_s83_what_the_newest_protocol_asks_in_an_answer_is_asked_the_same_way(tmp_path: Path) -> None:
    person = Person("allow_once")
    (allowed,) = await asked(tmp_path, "modern", person=person, elicitation=True, protocol="auto")
    assert '"action":"accept"' in allowed.replace(" ", "") and "Eve" in allowed
    assert [name for name, _, _ in person.asked] == ["mcp_elicitation"]
    (refused,) = await asked(tmp_path, "modern", person=person, protocol="auto")
    assert "Tool error" in refused and len(person.asked) == 1
