"""The tools through the loop: what the model is answered, and which files changed."""

from __future__ import annotations

from typing import Any

from windlass.agent.agent import Agent
from windlass.core.events import Event, FileChanged, ToolStarted
from windlass.core.messages import ToolResponse
from windlass.testing.scripted import ScriptedProvider, call
from windlass.tools.function import tool
from windlass.tools.toolsets import FILES
from windlass.workspaces.memory import MemoryWorkspace


@tool
def add(a: int, b: int) -> int:
    """Add two integers."""
    return a + b


def _answers(agent: Agent) -> list[tuple[Any, str]]:
    parts = [part for message in agent.messages for part in message.parts]
    return [(part.response, part.status) for part in parts if isinstance(part, ToolResponse)]


async def test_r24_wrong_arguments_are_answered_and_loose_ones_mended() -> None:
    provider = ScriptedProvider([call("add", a="19", b=23.0), call("add", a=1), call("add", a=None, b="x"), "42"])
    agent = Agent(provider, tools=[add])
    async with agent.run("What is 19 + 23?") as run:
        events: list[Event] = [event async for event in run]
    assert _answers(agent) == [
        ("42", "ok"),
        ("Validation error: Missing required field: b", "error"),
        ('Validation error: Field a: expected integer, got null; Field b: expected integer, got "x"', "error"),
    ]
    assert [event.coercions for event in events if isinstance(event, ToolStarted)] == [("a", "b")]


async def test_files_are_read_before_they_are_changed_and_changes_are_facts() -> None:
    space = MemoryWorkspace({"lib/foo.py": "def f(): return 1\n"})
    provider = ScriptedProvider(
        [
            call("read_file", path="lib/fo.py"),
            call("read_file", path="lib/foo.py"),
            call("edit", path="lib/foo.py", old_string="return 1", new_string="return 2"),
            call("write_file", path="../out", content="x"),
            "Done.",
        ]
    )
    agent = Agent(provider, tools=FILES, workspace=space)
    async with agent.run("Fix it") as run:
        changes = [event.path async for event in run if isinstance(event, FileChanged)]
    assert [answer for answer, _ in _answers(agent)[:3]] == [
        "File not found: lib/fo.py. Did you mean lib/foo.py?",
        "def f(): return 1",
        "Updated lib/foo.py: 1 replacement (line 1)",
    ]
    escaped, status = _answers(agent)[3]
    assert escaped.startswith("Tool error: ")
    assert status == "error"
    assert changes == ["lib/foo.py"]
    assert space.files == {"lib/foo.py": "def f(): return 2\n"}
