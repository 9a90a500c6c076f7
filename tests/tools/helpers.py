"""A ToolContext for tests, and calls as the loop makes them: validated first."""

from __future__ import annotations

import hashlib
from types import SimpleNamespace
from typing import Any

from windlass.core.events import Event, FileChanged
from windlass.core.messages import ToolResponse, response_text
from windlass.core.ports import PermissionOption, Tool, ToolResult, Workspace
from windlass.core.schema import compile_schema


class Context:
    """What the loop would give: keeps events and progress for the test to look at."""

    def __init__(self, workspace: Workspace | None = None) -> None:
        self.workspace = workspace
        self.call_id, self.run_id, self.session_id = "call-1", "run-1", "session-1"
        self.deadline: float | None = None
        self.state: dict[str, Any] = {}
        self.events: list[Event] = []
        self.reported: list[str] = []
        self.fired: list[tuple[str, dict[str, Any]]] = []
        self.asked: list[tuple[str, dict[str, Any], str]] = []
        self.expected: dict[str, str] = {}
        self.answer: PermissionOption = "reject_once"

    def progress(self, text: str = "", data: Any = None) -> None:
        self.reported.append(text)

    async def emit(self, event: Event) -> None:
        self.events.append(event)

    async def keep(self, path: str, before: bytes | None, after: bytes | None) -> FileChanged:
        hashes = [None if data is None else hashlib.sha256(data).hexdigest() for data in (before, after)]
        return FileChanged(path=path, call_id=self.call_id, before=hashes[0], after=hashes[1])

    async def run_child(self, **spec: Any) -> Any:
        raise NotImplementedError

    async def fire(self, hook: str, /, **values: Any) -> Any:
        self.fired.append((hook, values))
        return SimpleNamespace(**values)

    async def ask(self, name: str, input: dict[str, Any], reason: str) -> PermissionOption:
        self.asked.append((name, input, reason))
        return self.answer

    @property
    def changes(self) -> list[FileChanged]:
        return [event for event in self.events if isinstance(event, FileChanged) and event.status != "failed"]


async def call(tool: Tool, ctx: Context, **args: Any) -> Any:
    """Check the arguments as the loop does, and call."""
    checked = compile_schema(tool.spec.input_schema).check(args)
    assert checked.error is None, checked.error
    return await tool.call(checked.args, ctx)


async def text(tool: Tool, ctx: Context, **args: Any) -> str:
    """Call, and return what the model reads."""
    output = await call(tool, ctx, **args)
    if isinstance(output, ToolResult):
        return response_text(ToolResponse("x", output.content))
    assert isinstance(output, str)
    return output


async def refused(tool: Tool, ctx: Context, **args: Any) -> str:
    """Call, and return the text of an error answer."""
    output = await call(tool, ctx, **args)
    assert isinstance(output, ToolResult), output
    assert output.status == "error"
    assert isinstance(output.content, str)
    return output.content
