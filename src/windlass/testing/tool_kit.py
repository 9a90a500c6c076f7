"""Check that an object is a Tool, by what it does; and a context to call a tool with, outside of a run.

Use it in a test of your own tool::

    async def test_add() -> None:
        await check_tool(add, good_args=[{"a": 1, "b": 2}], bad_args=[{"a": "x"}, {}])
"""

from __future__ import annotations

import asyncio
import copy
import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import msgspec

from windlass.core import clock
from windlass.core.errors import ToolError, WindlassError
from windlass.core.events import Event, FileChanged
from windlass.core.json import dumps
from windlass.core.messages import Blob, Text, Uri
from windlass.core.ports import PermissionOption, Tool, ToolResult, Workspace
from windlass.core.request import ToolSpec
from windlass.core.schema import compile_schema

__all__ = ["FakeContext", "call_tool", "check_tool"]

_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_PARTS = (Text, Blob, Uri)


class FakeContext:
    """A ToolContext for tests: `progressed` and `events` hold what the tool reported.

    `child` answers `run_child` (a function of its keywords); without one it raises ToolError. `deadline` is in seconds
    of the monotonic clock, None: none. `hooks` answer `fire`: name -> a function that may set what the context holds;
    `fired` lists what was asked. `answer` is what `ask` returns, and `asked` lists its questions.
    """

    def __init__(
        self,
        workspace: Workspace | None = None,
        *,
        child: Callable[..., Any] | None = None,
        deadline: float | None = None,
        call_id: str = "call_0",
        hooks: Mapping[str, Callable[[Any], None]] | None = None,
        answer: PermissionOption = "reject_once",
    ) -> None:
        self.workspace, self.deadline, self.call_id = workspace, deadline, call_id
        self.run_id, self.session_id = clock.new_id(), clock.new_id()
        self.state: dict[str, Any] = {}
        self.expected: dict[str, str] = {}
        self.progressed: list[tuple[str, Any]] = []
        self.events: list[Event] = []
        self.fired: list[tuple[str, dict[str, Any]]] = []
        self.asked: list[tuple[str, dict[str, Any], str]] = []
        self._child, self._hooks = child, dict(hooks or {})
        self._answer: PermissionOption = answer

    def progress(self, text: str = "", data: Any = None) -> None:
        """Keep a report."""
        self.progressed.append((text, data))

    async def emit(self, event: Event) -> None:
        """Keep an event."""
        self.events.append(event)

    async def keep(self, path: str, before: bytes | None, after: bytes | None) -> FileChanged:
        """Return the change, for `emit`; the contents are not kept."""
        return FileChanged(path=path, call_id=self.call_id, before=_digest(before), after=_digest(after))

    async def run_child(self, **spec: Any) -> Any:
        """Answer with `child`. Raises ToolError without one."""
        if self._child is None:
            raise ToolError("This context has no sub-agents.", hint="Give FakeContext a child=….")
        return self._child(**spec)

    async def fire(self, hook: str, /, **values: Any) -> Any:
        """Ask the handler of that name, if there is one; returns what it was given and may have changed."""
        self.fired.append((hook, values))
        ctx = SimpleNamespace(**values)
        if hook in self._hooks:
            self._hooks[hook](ctx)
        return ctx

    async def ask(self, name: str, input: dict[str, Any], reason: str) -> PermissionOption:
        """Keep the question and return `answer`."""
        self.asked.append((name, input, reason))
        return self._answer


def _digest(data: bytes | None) -> str | None:
    return None if data is None else hashlib.sha256(data).hexdigest()


async def call_tool(tool: Tool, args: Mapping[str, Any], ctx: Any = None) -> Any:
    """Check and coerce arguments as the loop does, call the tool, and return what it returns.

    `ctx` is a FakeContext by default. Raises ToolError for arguments that do not fit, and what the tool raises.
    """
    checked = compile_schema(tool.spec.input_schema).check(dict(args))
    if checked.error is not None:
        raise ToolError(f"Validation error: {checked.error}")
    return await tool.call(checked.args, ctx if ctx is not None else FakeContext())


async def check_tool(
    tool: Tool,
    *,
    good_args: Sequence[Mapping[str, Any]],
    bad_args: Sequence[Mapping[str, Any]] = (),
    workspace: Callable[[], Workspace] | None = None,
) -> list[str]:
    """Check a tool's description, then call it with every `good_args` and `bad_args`; returns the checks' names.

    Good arguments must give an output that a model can read; bad ones must be refused by the schema, by a ToolError or
    by a ToolResult whose status is not ok. `workspace` makes a fresh workspace for every call; a tool that says it only
    reads must leave it as it was. Raises AssertionError naming the check and what it saw.
    """
    if not good_args:
        raise AssertionError("check_tool: give at least one set of good_args")
    done: list[str] = []
    for name, check in (
        ("description", lambda: _description(tool)),
        ("good arguments", lambda: _good(tool, good_args, workspace)),
        ("bad arguments", lambda: _bad(tool, bad_args, workspace)),
        ("calls at once", lambda: _at_once(tool, good_args, workspace)),
        ("cancelling", lambda: _cancelling(tool, good_args[0], workspace)),
    ):
        try:
            await check()
        except Exception as error:
            raise AssertionError(f"check_tool {_name_of(tool)}, {name}: {str(error) or repr(error)}") from error
        done.append(name)
    return done


def _name_of(tool: Any) -> str:
    return str(getattr(getattr(tool, "spec", None), "name", tool))


async def _description(tool: Tool) -> None:
    _expect(isinstance(tool, Tool), "the object lacks `spec`, `timeout` or `call(args, ctx)`")
    spec = tool.spec
    _expect(isinstance(spec, ToolSpec), f"spec is {type(spec).__name__}")
    _expect(_NAME.fullmatch(spec.name) is not None, f"the name {spec.name!r} is not 1 to 64 letters, digits, `_`, `-`")
    _expect(bool(spec.description.strip()), "it has no description: a model would have to guess what it does")
    timeout = tool.timeout
    _expect(timeout is None or timeout > 0, f"timeout is {timeout!r}; it must be None or positive seconds")
    _expect(spec.input_schema.get("type") == "object", "input_schema is not of the type object")
    compile_schema(spec.input_schema)
    if spec.output_schema is not None:
        compile_schema(spec.output_schema)
    msgspec.json.encode(spec)


async def _good(tool: Tool, good: Sequence[Mapping[str, Any]], make: Callable[[], Workspace] | None) -> None:
    for args in good:
        given = copy.deepcopy(dict(args))
        space = make() if make is not None else None
        before = await _content(space)
        output = await call_tool(tool, given, FakeContext(space))
        _expect(given == dict(args), f"{dict(args)!r:.200}: the arguments were changed to {given!r:.200}")
        _readable(output, args)
        if isinstance(output, ToolResult):
            _expect(output.status == "ok", f"{dict(args)!r:.200}: {output.status}: {output.content!r:.200}")
        if tool.spec.annotations.read_only:
            _expect(await _content(space) == before, f"{dict(args)!r:.200}: it says it only reads, and changed a file")
        await _close(space)


async def _bad(tool: Tool, bad: Sequence[Mapping[str, Any]], make: Callable[[], Workspace] | None) -> None:
    for args in bad:
        space = make() if make is not None else None
        try:
            output = await call_tool(tool, args, FakeContext(space))
        except WindlassError as error:
            _expect(bool(error.message), f"{dict(args)!r:.200}: the refusal says nothing")
        except Exception as error:
            what = f"{type(error).__name__}: {error}"
            raise AssertionError(f"{dict(args)!r:.200}: raised {what}; a refusal is a ToolError") from error
        else:
            refused = isinstance(output, ToolResult) and output.status != "ok"
            _expect(refused, f"{dict(args)!r:.200}: was taken, with the answer {output!r:.200}")
        finally:
            await _close(space)


async def _at_once(tool: Tool, good: Sequence[Mapping[str, Any]], make: Callable[[], Workspace] | None) -> None:
    spaces = [make() if make is not None else None for _ in range(2)]
    calls = [call_tool(tool, copy.deepcopy(dict(args)), FakeContext(space)) for space in spaces for args in good[:1]]
    for output in await asyncio.gather(*calls):
        _readable(output, good[0])
    for space in spaces:
        await _close(space)


async def _cancelling(tool: Tool, args: Mapping[str, Any], make: Callable[[], Workspace] | None) -> None:
    space = make() if make is not None else None
    task = asyncio.create_task(call_tool(tool, copy.deepcopy(dict(args)), FakeContext(space)))
    await asyncio.sleep(0)
    waiting = not task.done()
    task.cancel()
    await asyncio.wait([task])
    _expect(
        task.cancelled() or not waiting, "it was cancelled while it waited, and went on: CancelledError was swallowed"
    )
    await _close(space)


def _readable(output: Any, args: Mapping[str, Any]) -> None:
    content: Any = output.content if isinstance(output, ToolResult) else output
    if content is None or isinstance(content, (str, *_PARTS)):
        return
    if isinstance(content, (list, tuple)) and all(isinstance(part, _PARTS) for part in content):  # pyright: ignore[reportUnknownVariableType]
        return
    dump: Any = getattr(content, "model_dump", None)
    try:
        dumps(content if dump is None else dump(mode="json"))
    except (TypeError, ValueError, RecursionError) as error:
        raise AssertionError(f"{dict(args)!r:.200}: its output cannot be read by a model: {error}") from error


async def _content(space: Workspace | None) -> dict[str, bytes]:
    if space is None:
        return {}
    return {
        info.path: await space.read(info.path) if info.kind == "file" else b""
        for info in await space.list(depth=64, limit=10_000)
    }


async def _close(space: Workspace | None) -> None:
    if space is not None:
        await space.close()


def _expect(true: bool, why: str) -> None:
    if not true:
        raise AssertionError(why)
