"""Calls that come in over MCP: arguments checked, our tools and agents run, their outputs as content blocks."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any, Protocol

import msgspec

from windlass.core import clock, json
from windlass.core.errors import ToolError, WindlassError
from windlass.core.events import Event, FileChanged, Log, ToolStarted
from windlass.core.messages import Blob, Text, Uri
from windlass.core.ports import PermissionOption, Tool, ToolResult, Workspace
from windlass.core.request import ToolAnnotations, ToolSpec
from windlass.core.schema import compile_schema

__all__ = ["CallBack", "ClientApprover", "Runner", "answer_of", "call_tool", "content_of", "run_agent", "tool_row"]

#: Seconds of one tool call where the tool has no timeout of its own.
TOOL_SECONDS = 300.0
#: Conversations with the agent that are kept at once.
MAX_SESSIONS = 32
_CURRENT: ContextVar[CallBack | None] = ContextVar("windlass_mcp_call", default=None)


class Runner(Protocol):
    """What `run_agent` needs of an agent."""

    def once(self, prompt: Any, **options: Any) -> Any: ...
    def session_for(self, id: str | None = None, store: Any = None) -> Any: ...


class CallBack:
    """The ToolContext of one MCP call: progress, log lines and questions go to the client that made it.

    Beyond the protocol of tools: `elicit` asks the client's user, `sample` its model.
    """

    def __init__(self, ctx: Any, workspace: Workspace | None) -> None:
        self._ctx = ctx
        self.workspace = workspace
        self.call_id = str(ctx.request_id)
        self.run_id = self.session_id = clock.new_id()
        self.deadline: float | None = None
        self.state: dict[str, Any] = {}
        self.expected: Mapping[str, str] = {}
        self._sending: set[asyncio.Task[None]] = set()
        self._steps = 0

    def progress(self, text: str = "", data: Any = None) -> None:
        """Send progress: `data` may hold `progress` and `total`, else steps are counted."""
        given: Mapping[str, Any] = data if isinstance(data, Mapping) else {}
        self._steps += 1
        done, total = float(given.get("progress", self._steps)), given.get("total")
        self._send(self._ctx.session.report_progress(done, total, text.strip() or None))

    async def emit(self, event: Event) -> None:
        """Send log lines; other facts have no place in the protocol."""
        if isinstance(event, Log):
            await self.log(event.level, event.message)

    async def log(self, level: str, message: str) -> None:
        """Send a log line that belongs to this call."""
        from mcp_types import LoggingMessageNotification, LoggingMessageNotificationParams

        params = LoggingMessageNotificationParams.model_validate(
            {"level": level, "data": message, "logger": "windlass"}
        )
        await self._ctx.session.send_notification(LoggingMessageNotification(params=params), self._ctx.request_id)

    async def keep(self, path: str, before: bytes | None, after: bytes | None) -> FileChanged:
        """Return the record of a change; nobody keeps it here."""
        del before, after
        return FileChanged(path=path, call_id=self.call_id)

    async def run_child(self, **spec: Any) -> Any:
        """Refuse: there is no run that a sub-agent could belong to."""
        del spec
        raise ToolError("A tool that is called over MCP has no sub-agents.", hint="Call run_agent instead.")

    async def fire(self, hook: str, /, **values: Any) -> Any:
        """Return the values: there is no agent whose hooks could be asked."""
        del hook
        return msgspec.defstruct("Unasked", list(values), frozen=False)(**values)

    async def ask(self, name: str, input: dict[str, Any], reason: str) -> PermissionOption:
        """Ask the client's user by elicitation; where the client has none, the answer is no."""
        schema = {
            "type": "object",
            "properties": {"allow": {"type": "boolean", "title": "Allow", "description": "Allow this call once"}},
            "required": ["allow"],
        }
        shown = json.dumps(input).decode()[:2000]
        answer = await self.elicit(f"Allow {name}? {reason}\n{shown}", schema)
        return "allow_once" if answer is not None and answer.get("allow") is True else "reject_once"

    async def elicit(self, message: str, schema: dict[str, Any]) -> dict[str, Any] | None:
        """Ask the user for an object of a flat schema; None when declined, or when the client cannot ask."""
        from mcp_types import ElicitRequest, ElicitRequestFormParams, ElicitResult

        capabilities = self._ctx.session.client_capabilities
        if capabilities is None or capabilities.elicitation is None:
            return None
        params = ElicitRequestFormParams.model_validate({"message": message, "requestedSchema": schema})
        answer = await self._request(ElicitRequest(params=params), ElicitResult)
        return dict(answer.content or {}) if answer.action == "accept" else None

    async def sample(self, prompt: str, *, max_tokens: int = 1000) -> str:
        """Have the client's model answer. Raises ToolError when the client has none."""
        from mcp_types import CreateMessageRequest, CreateMessageRequestParams, CreateMessageResult

        capabilities = self._ctx.session.client_capabilities
        if capabilities is None or capabilities.sampling is None:
            raise ToolError("The client does not lend its model.")
        content = {"type": "text", "text": prompt}
        params = CreateMessageRequestParams.model_validate(
            {"messages": [{"role": "user", "content": content}], "maxTokens": max_tokens}
        )
        answer = await self._request(CreateMessageRequest(params=params), CreateMessageResult)
        return str(getattr(answer.content, "text", ""))

    async def _request(self, request: Any, kind: Any) -> Any:
        from mcp.shared.message import ServerMessageMetadata

        related = ServerMessageMetadata(related_request_id=self._ctx.request_id)
        return await self._ctx.session.send_request(request, kind, metadata=related)

    def _send(self, sending: Any) -> None:
        task = asyncio.ensure_future(sending)
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)

    async def settled(self) -> None:
        """Wait until what was sent is on its way, so that it comes before the answer."""
        if self._sending:
            await asyncio.wait(set(self._sending), timeout=5.0)


class ClientApprover:
    """Asks whoever made the MCP call that is being served; for agents that are offered as `run_agent`."""

    async def approve(self, name: str, input: dict[str, Any], reason: str, /) -> PermissionOption:
        """Ask by elicitation; no where nobody can be asked."""
        current = _CURRENT.get()
        return "reject_once" if current is None else await current.ask(name, input, reason)


async def call_tool(tool: Tool, args: dict[str, Any], back: CallBack) -> tuple[Any, bool]:
    """Check arguments, call a tool, and return (output, whether it is an error)."""
    checked = compile_schema(tool.spec.input_schema).check(args)
    if checked.error is not None:
        return f"Validation error: {checked.error}", True
    limit = tool.timeout if tool.timeout is not None else TOOL_SECONDS
    back.deadline = clock.monotonic() + limit
    scope = clock.deadline(limit)
    try:
        async with scope:
            output = await tool.call(checked.args, back)
    except TimeoutError:
        return f"Tool error: no result within {limit:g} s; the tool was stopped.", True
    except WindlassError as error:
        return f"Tool error: {error}", True
    except Exception as error:
        return f"Tool error: {type(error).__name__}: {error}", True
    finally:
        await back.settled()
    if isinstance(output, ToolResult):
        return output.content, output.status != "ok"
    return output, False


class _RunAgent:
    """The tool `run_agent`: a whole agent as one call. A `session` given before is continued."""

    spec = ToolSpec(
        name="run_agent",
        description="Give a task to an agent that works with its own tools until it is done, and return its answer. "
        "Give the session id of an earlier answer to go on with that conversation.",
        input_schema={
            "type": "object",
            "properties": {
                "prompt": {"type": "string", "minLength": 1, "description": "The task, with all it needs to know."},
                "session": {"type": "string", "maxLength": 64, "description": "Continue this conversation."},
            },
            "required": ["prompt"],
            "additionalProperties": False,
        },
        output_schema={
            "type": "object",
            "properties": {
                "text": {"type": "string"}, "session": {"type": "string"}, "stop_reason": {"type": "string"},
                "turns": {"type": "integer"},
            },
            "required": ["text", "session", "stop_reason", "turns"],
        },
        annotations=ToolAnnotations(read_only=False, destructive=True, open_world=True),
    )  # fmt: skip

    async def call(
        self, agent: Runner, args: dict[str, Any], back: CallBack, sessions: dict[str, Any]
    ) -> tuple[Any, bool]:
        """Run the agent; returns (answer, whether it failed). Tools that it starts are told as progress."""
        checked = compile_schema(self.spec.input_schema).check(args)
        if checked.error is not None:
            return f"Validation error: {checked.error}", True
        wanted = checked.args.get("session")
        if wanted is not None and wanted not in sessions:
            return f"There is no session {wanted!r}; leave it out to begin one.", True
        session = sessions[wanted] if wanted is not None else agent.session_for()
        token = _CURRENT.set(back)
        try:
            run = session.run(checked.args["prompt"], sinks=[_Telling(back)])
            result = await run
        except WindlassError as error:
            return f"The agent failed: {error}", True
        finally:
            _CURRENT.reset(token)
            await back.settled()
        sessions.pop(session.id, None)
        sessions[session.id] = session
        while len(sessions) > MAX_SESSIONS:
            await sessions.pop(next(iter(sessions))).close()
        return {
            "text": result.text, "session": session.id, "stop_reason": result.stop_reason, "turns": result.stats.turns,
        }, False  # fmt: skip


class _Telling:
    """A sink that tells a client which tools an agent uses."""

    def __init__(self, back: CallBack) -> None:
        self._back = back

    def __call__(self, event: Event) -> None:
        if isinstance(event, ToolStarted):
            self._back.progress(event.name)


run_agent = _RunAgent()


# -- content -----------------------------------------------------------------------------------------------------------


def tool_row(spec: ToolSpec) -> Any:
    """Return the SDK's Tool of a ToolSpec."""
    from mcp_types import Tool as Row
    from mcp_types import ToolAnnotations as Hints

    hints = spec.annotations
    return Row(
        name=spec.name,
        title=spec.title,
        description=spec.description,
        input_schema=spec.input_schema,
        output_schema=spec.output_schema,
        annotations=Hints(
            title=spec.title,
            read_only_hint=hints.read_only,
            destructive_hint=hints.destructive,
            idempotent_hint=hints.idempotent,
            open_world_hint=hints.open_world,
        ),
    )


def answer_of(output: Any, failed: bool, spec: ToolSpec) -> Any:
    """Return the SDK's CallToolResult of an output; an object is structured content where the tool has a schema."""
    from mcp_types import CallToolResult

    structured = output if spec.output_schema is not None and isinstance(output, dict) and not failed else None
    return CallToolResult(content=content_of(output), structured_content=structured, is_error=failed)


def content_of(output: Any) -> list[Any]:
    """Return an output (text, parts, anything that is JSON) as content blocks."""
    from mcp_types import TextContent

    if output is None:
        return []
    parts: Any = output if isinstance(output, (list, tuple)) else [output]
    if not all(isinstance(part, (str, Text, Blob, Uri)) for part in parts) or not parts:
        dump: Any = getattr(output, "model_dump", None)
        try:
            text = json.dumps(output if dump is None else dump(mode="json")).decode()
        except (TypeError, ValueError, RecursionError):
            text = str(output)
        return [TextContent(text=text)]
    return [_block(part) for part in parts]


def _block(part: str | Text | Blob | Uri) -> Any:
    from mcp_types import (
        AudioContent,
        BlobResourceContents,
        EmbeddedResource,
        ImageContent,
        ResourceLink,
        TextContent,
        TextResourceContents,
    )

    if isinstance(part, (str, Text)):
        return TextContent(text=part if isinstance(part, str) else part.content)
    if isinstance(part, Uri):
        return ResourceLink(uri=part.uri, name=part.filename or part.uri, mime_type=part.mime_type)
    data = base64.b64encode(part.content).decode()
    if part.modality == "image":
        return ImageContent(data=data, mime_type=part.mime_type)
    if part.modality == "audio":
        return AudioContent(data=data, mime_type=part.mime_type)
    uri = (part.provider_metadata or {}).get("uri") or f"blob:///{part.filename or 'document'}"
    if part.mime_type.startswith("text/") or part.mime_type == "application/json":
        text = TextResourceContents(uri=uri, text=part.content.decode("utf-8", "replace"), mime_type=part.mime_type)
        return EmbeddedResource(resource=text)
    return EmbeddedResource(resource=BlobResourceContents(uri=uri, blob=data, mime_type=part.mime_type))
