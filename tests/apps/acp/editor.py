"""An editor, as the official SDK makes one: it keeps what it is told, and answers as a test says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import acp
from acp import RequestError
from acp.agent.connection import AgentSideConnection
from acp.schema import (
    AllowedOutcome,
    ClientCapabilities,
    FileSystemCapabilities,
    ReadTextFileResponse,
    RequestPermissionResponse,
    ToolCallUpdate,
    WriteTextFileResponse,
)

from windlass.apps.acp.agent import AcpAgent
from windlass.apps.acp.build import Built, Options, build
from windlass.apps.acp.stdio import Lines
from windlass.core import clock
from windlass.core.ports import Provider, Store
from windlass.stores.memory import MemoryStore

#: A guard against hanging, not a measure.
PATIENCE = 60.0
WITH_FILES = ClientCapabilities(fs=FileSystemCapabilities(read_text_file=True, write_text_file=True))


class Editor:
    """The client's side. `answer` says what a person chooses; `buffers` is text that is not saved."""

    def __init__(self, answer: Any = "allow_once") -> None:
        self.answer: Any = answer
        self.updates: list[tuple[str, Any]] = []
        self.asked: list[ToolCallUpdate] = []
        self.offered: list[list[str]] = []
        self.buffers: dict[str, str] = {}
        self.read: list[str] = []
        self.wrote: list[tuple[str, str]] = []
        self.broken = False
        self._news = asyncio.Event()

    async def session_update(self, session_id: str, update: Any, **_: Any) -> None:
        self.updates.append((session_id, update))
        self._news.set()

    async def request_permission(
        self, session_id: str, tool_call: ToolCallUpdate, options: Sequence[Any], **_: Any
    ) -> RequestPermissionResponse:
        # What the editor was told of this call before it was asked.
        assert any(getattr(u, "tool_call_id", "") == tool_call.tool_call_id for s, u in self.updates if s == session_id)
        self.asked.append(tool_call)
        self.offered.append([option.kind for option in options])
        self._news.set()
        chosen: Any = self.answer(tool_call) if callable(self.answer) else self.answer
        if isinstance(chosen, Awaitable):
            chosen = await cast(Awaitable[Any], chosen)
        return RequestPermissionResponse(outcome=AllowedOutcome(outcome="selected", option_id=chosen))

    async def read_text_file(
        self, session_id: str, path: str, line: int | None = None, limit: int | None = None, **_: Any
    ) -> ReadTextFileResponse:
        self.read.append(path)
        if self.broken:
            raise RequestError.internal_error({"details": "the editor has a bad day"})
        return ReadTextFileResponse(content=self.buffers.get(path, Path(path).read_text()))

    async def write_text_file(self, session_id: str, path: str, content: str, **_: Any) -> WriteTextFileResponse:
        if self.broken:
            raise RequestError.internal_error({"details": "the editor has a bad day"})
        self.wrote.append((path, content))
        self.buffers.pop(path, None)
        return WriteTextFileResponse()

    def on_connect(self, conn: Any) -> None:
        """Nothing to keep."""

    def of(self, kind: str, session: str | None = None) -> list[Any]:
        """Return the updates of one kind."""
        return [u for s, u in self.updates if u.session_update == kind and session in (None, s)]

    def text(self, kind: str = "agent_message_chunk", session: str | None = None) -> str:
        return "".join([update.content.text for update in self.of(kind, session)])

    def calls(self, session: str | None = None) -> dict[str, dict[str, Any]]:
        """Return the tool calls as an editor shows them: each update laid over what was there."""
        shown: dict[str, dict[str, Any]] = {}
        for update in [u for s, u in self.updates if hasattr(u, "tool_call_id") and session in (None, s)]:
            row = shown.setdefault(update.tool_call_id, {"statuses": []})
            fields = update.model_dump(exclude_none=True, exclude={"session_update", "tool_call_id"})
            row.update(fields)
            row["statuses"] += [update.status] if update.status else []
        return shown

    async def until(self, happened: Callable[[], Any]) -> None:
        """Wait until something is so."""
        async with clock.deadline(PATIENCE):
            while not happened():
                self._news.clear()
                await self._news.wait()


def scripted(*providers: Provider) -> Callable[..., Built]:
    """Return what builds the agents as the program does, with these models: the last one for all further sessions."""
    left = list(providers)

    def make(*given: Any) -> Built:
        built = build(*given)
        provider = left.pop(0) if len(left) > 1 else left[0]
        built.agent.provider, built.agent.model, built.agent.model_name = provider, "script", "scripted:script"
        return built

    return make


@asynccontextmanager
async def connected(
    editor: Editor,
    home: Path,
    *providers: Provider,
    options: Options | None = None,
    store: Store | None = None,
    offers: ClientCapabilities | None = None,
) -> AsyncGenerator[Any]:
    """Connect an editor to an agent in this process, over a real socket; gives the editor's end."""
    agents: asyncio.Queue[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = asyncio.Queue()

    async def arrive(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await agents.put((reader, writer))

    path = str(home / "acp.sock")
    server = await asyncio.start_unix_server(arrive, path)
    reader, writer = await asyncio.open_unix_connection(path)
    agent_reader, agent_writer = await agents.get()

    async def write(data: bytes) -> None:
        agent_writer.write(data)
        await agent_writer.drain()

    environ = {"WINDLASS_HOME": str(home), "HOME": str(home)}
    given = options or Options(model="echo", sandbox="none")
    agent = AcpAgent(given, store or MemoryStore(), environ=environ, builder=scripted(*providers))
    lines = Lines(agent_reader, write, agent.close)
    serving = AgentSideConnection(cast(Any, agent), lines, listening=False, use_unstable_protocol=True)
    listening = asyncio.create_task(serving.listen())
    client = acp.connect_to_agent(cast(Any, editor), writer, reader, use_unstable_protocol=True)
    try:
        await client.initialize(protocol_version=1, client_capabilities=offers or ClientCapabilities())
        yield client
    finally:
        writer.close()
        async with clock.deadline(PATIENCE):
            await listening
        await client.close()
        await serving.close()
        agent_writer.close()
        server.close()
        Path(path).unlink(missing_ok=True)


def asks(text: str, *more: Any) -> list[Any]:
    """Return a prompt."""
    return [acp.text_block(text), *more]
