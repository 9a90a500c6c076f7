"""A scripted model works with the coding tools on a folder and in memory; what its first request costs; other names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from windlass.agent import presets
from windlass.agent.agent import Agent
from windlass.core.events import FileChanged, ToolProgress
from windlass.core.messages import ToolResponse
from windlass.core.models import Capabilities
from windlass.core.ports import Tool, Workspace
from windlass.testing.scripted import ScriptedProvider, call
from windlass.testing.tool_kit import check_tool
from windlass.tools import rg
from windlass.tools.aliases import ARGUMENT_ALIASES, CLAUDE_ALIASES
from windlass.tools.fileops import file
from windlass.tools.files import edit, multi_edit, read_file, write_file
from windlass.tools.outline import outline
from windlass.tools.patching import apply_patch
from windlass.tools.search import grep
from windlass.tools.shell import shell
from windlass.tools.todo import todo_write
from windlass.tools.toolsets import CODING, TOOLSETS
from windlass.wire import anthropic, openai_chat
from windlass.workspaces.local import LocalWorkspace
from windlass.workspaces.memory import MemoryWorkspace

FILES = {
    "src/app.py": "import os\n\n\ndef greet(name):\n    return 'Hi ' + name\n\n\n"
    "def main():\n    print(greet('you'))\n",
    "src/util.py": "def shout(text):\n    return text.upper()\n",
    ".gitignore": "build/\n",
    "build/app.py": "def greet(name): ...\n",
    "old.txt": "gone soon\n",
}
PATCH = """*** Begin Patch
*** Update File: src/util.py
*** Move to: src/text.py
@@ def shout(text):
-    return text.upper()
+    return text.upper() + '!'
*** Add File: src/__init__.py
+
*** Delete File: old.txt
*** End Patch"""


def answers(agent: Agent) -> list[tuple[str, str]]:
    parts = [part for message in agent.messages for part in message.parts]
    return [(str(part.response), part.status) for part in parts if isinstance(part, ToolResponse)]


def script(*, shell: bool) -> list[Any]:
    return [
        [
            call("todo_write", todos=[{"content": "Greet better", "status": "in_progress"}, {"content": "Tidy"}]),
            call("list_files", depth=2),
            call("grep", pattern="greet", output_mode="content", type="py"),
        ],
        call("read_file", path="src/app.py"),
        call("edit", path="src/app.py", old_string="'Hi ' + name", new_string="f'Hello {name}'"),
        call("read_file", path="src/app.py", limit=5),
        call("read_file", path="src/app.py", limit=5),
        [call("apply_patch", patch=PATCH), call("outline", path="src/app.py")],
        [call("glob", pattern="**/*.py"), call("file", operation="exists", path="old.txt")],
        call("shell", command="cat src/text.py") if shell else call("read_file", path="src/text.py"),
        "Done.",
    ]


@pytest.mark.parametrize("kind", ["local", "memory"])
async def test_reads_greps_edits_patches_and_reads_again(
    kind: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rg, "LEAST_FILES", 0)
    workspace: Workspace = LocalWorkspace(place) if kind == "local" else MemoryWorkspace()
    for path, body in FILES.items():
        await workspace.write(path, body.encode())
    provider = ScriptedProvider(script(shell=kind == "local"))
    agent = Agent(
        provider, tools=["coding", "apply_patch", "outline", "file"], workspace=workspace, tool_execution="sequential"
    )
    async with agent.run("Greet better") as run:
        events = [event async for event in run]
    said = answers(agent)
    assert [status for _, status in said] == ["ok"] * len(said)
    texts = [text for text, _ in said]
    assert texts[0] == "0 of 2 done.\n[>] Greet better\n[ ] Tidy"
    assert "📄 src/app.py" in texts[1]
    assert texts[2] == "src/app.py:4:def greet(name):\nsrc/app.py:9:    print(greet('you'))"
    assert texts[3] == FILES["src/app.py"].rstrip("\n")
    assert texts[4] == "Updated src/app.py: 1 replacement (line 5)"
    assert texts[5].endswith("    return f'Hello {name}'\n[Lines 1-5 of 9; 38 bytes left out. Read on with offset=6.]")
    assert texts[6].startswith("Unchanged since the previous read: src/app.py.")
    assert texts[7] == "Moved src/util.py to src/text.py: 1 hunk\nCreated src/__init__.py\nDeleted old.txt"
    assert texts[8] == "4: function greet\n8: function main"
    assert texts[9] == "build/app.py\nsrc/__init__.py\nsrc/app.py\nsrc/text.py"
    assert texts[10] == "false"
    assert texts[11] == "def shout(text):\n    return text.upper() + '!'"
    changed = [(event.path, event.after is None) for event in events if isinstance(event, FileChanged)]
    assert changed == [
        ("src/app.py", False), ("src/text.py", False), ("src/__init__.py", False), ("src/util.py", True),
        ("old.txt", True),
    ]  # fmt: skip
    plans = [event.data["plan"] for event in events if isinstance(event, ToolProgress) and event.data]
    assert [[each["content"] for each in plan] for plan in plans] == [["Greet better", "Tidy"]]
    await workspace.close()


# -- what it costs ----------------------------------------------------------------------------------------------------


async def test_the_first_request_of_the_coding_preset_stays_small() -> None:
    provider = ScriptedProvider(["Hello."])
    await Agent(provider, workspace=MemoryWorkspace(), **presets.coding).run("Hi")
    request = provider.requests[0]
    caps = Capabilities(cache_breakpoints=True)
    bodies = {
        "anthropic": anthropic.DIALECT.encode_request(request, caps, stream=True),
        "openai-chat": openai_chat.DIALECT.encode_request(request, Capabilities(), stream=True),
    }
    sizes = {name: len(body) for name, body in bodies.items()}
    assert [tool["name"] for tool in json.loads(bodies["anthropic"])["tools"]] == [tool.spec.name for tool in CODING]
    assert max(sizes.values()) <= 6000, sizes
    # What is there is named in the docs; a change of more than a tenth is worth a look.
    assert 4500 <= sizes["anthropic"] <= 5300, sizes
    assert 4500 <= sizes["openai-chat"] <= 5500, sizes


GOOD: list[tuple[Tool, list[dict[str, Any]], list[dict[str, Any]]]] = [
    (todo_write, [{"todos": [{"content": "x"}]}], [{}, {"todos": [{"content": ""}]}]),
    (outline, [{"path": "src/app.py"}], [{"path": "../x"}, {"path": "old.txt"}, {}]),
    (file, [{"operation": "delete", "path": "old.txt"}], [{"operation": "burn", "path": "old.txt"}, {"path": "x"}]),
    (apply_patch, [{"patch": PATCH}], [{"patch": ""}, {}]),
    (read_file, [{"path": "src/app.py"}], [{"path": ""}]),
    (grep, [{"pattern": "greet", "type": "py"}], [{"pattern": "("}, {"pattern": "x", "type": "q"}]),
]


@pytest.mark.parametrize(
    ("tool", "good", "bad"), GOOD, ids=lambda each: str(getattr(each, "spec", "")) and each.spec.name
)
async def test_they_pass_the_kit_for_tools(tool: Tool, good: list[Any], bad: list[Any]) -> None:
    await check_tool(tool, good_args=good, bad_args=bad, workspace=lambda: MemoryWorkspace(FILES))


# -- names from elsewhere ---------------------------------------------------------------------------------------------


async def test_the_tools_under_the_names_of_claude_code() -> None:
    space = MemoryWorkspace({"a.py": "x = 1\n"})
    provider = ScriptedProvider(
        [
            [
                call("Read", path="a.py"),
                call("Grep", pattern="x", output_mode="count"),
                call("Glob", pattern="*"),
                call("LS"),
            ],
            call("Edit", path="a.py", old_string="1", new_string="2"),
            "Done.",
        ]
    )
    agent = Agent(provider, tools="coding", tool_aliases=CLAUDE_ALIASES, workspace=space)
    await agent.run("Go")
    assert [text for text, _ in answers(agent)] == [
        "x = 1", "a.py:1", "a.py", "📄 a.py", "Updated a.py: 1 replacement (line 1)",
    ]  # fmt: skip
    assert [tool.name for tool in provider.requests[0].tools] == [CLAUDE_ALIASES[tool.spec.name] for tool in CODING]


@pytest.mark.parametrize(
    ("tool", "sent", "meant", "changed"),
    [
        (read_file, {"file_path": "a", "limit": "3"}, {"path": "a", "limit": 3}, ("path", "limit")),
        (write_file, {"file_path": "a", "contents": "x"}, {"path": "a", "content": "x"}, ("path", "content")),
        (
            edit,
            {"file_path": "a", "old_str": "x", "new_str": "y"},
            {"path": "a", "old_string": "x", "new_string": "y"},
            ("path", "old_string", "new_string"),
        ),
        (
            multi_edit,
            {"file_path": "a", "edits": [{"old_string": "x", "new_string": "y"}]},
            {"path": "a", "edits": [{"old_string": "x", "new_string": "y"}]},
            ("path",),
        ),
        (shell, {"cmd": "ls", "description": "List"}, {"command": "ls"}, ("command", "description")),
        (grep, {"query": "x"}, {"pattern": "x"}, ("pattern",)),
        (todo_write, {"items": [{"content": "x"}]}, {"todos": [{"content": "x"}]}, ("todos",)),
    ],
)
def test_arguments_under_other_names_are_taken(
    tool: Any, sent: dict[str, Any], meant: dict[str, Any], changed: tuple[str, ...]
) -> None:
    before = dict(sent)
    checked = tool.validator.check(sent)
    assert (checked.args, checked.coercions, checked.error) == (meant, changed, None)
    assert sent == before
    # Our own names pass as they are.
    assert tool.validator.check(meant).coercions == ()
    assert tool.validator.fits(meant)


def test_a_name_that_is_none_or_is_given_twice_stays_an_error() -> None:
    assert read_file.validator.check({"file_path": "a", "path": "b"}).error == (
        "Unknown field: file_path (did you mean path?)"
    )
    twice = read_file.validator.check({"file_path": "a", "filename": "b"})
    assert twice.error is not None and "filename" in twice.error
    assert "Missing required field: path" in str(read_file.validator.check({"pth": "a"}).error)
    assert read_file.validator.check("a").error is not None
    assert not read_file.validator.fits({"file_path": "a"})


def test_the_tables_of_names_speak_of_tools_and_parameters_that_there_are() -> None:
    known: dict[str, Tool] = {tool.spec.name: tool for tools in TOOLSETS.values() for tool in tools}
    assert set(CLAUDE_ALIASES) - {"spawn"} <= set(known)
    assert len(set(CLAUDE_ALIASES.values())) == len(CLAUDE_ALIASES)
    for name, aliases in ARGUMENT_ALIASES.items():
        if name not in known:
            assert name in ("apply_patch", "outline", "file")
            continue
        properties = known[name].spec.input_schema["properties"]
        assert {ours for ours in aliases.values() if ours} <= set(properties), name
        assert not set(aliases) & set(properties), name
