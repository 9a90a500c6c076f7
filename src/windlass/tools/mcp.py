"""MCP servers as a capability of an agent: their tools, resources and prompts, connected when a run needs them.

    agent = Agent(mcp_servers=[{"name": "files", "command": "npx", "args": ["-y", "@mcp/files", "."]}])

Servers are connected at the first run, at once and apart: a slow or broken one delays nobody, and what it lacks is told
by `status`. The SDK (`pip install "windlass[mcp]"`) is imported when the first server is connected.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from msgspec.structs import replace

from windlass.core.config_files import data_home
from windlass.core.errors import ConfigError, ToolError, UnknownNameError
from windlass.core.events import Log, McpConnected
from windlass.core.ports import CapabilityHost, Provider, Tool, ToolResult, TurnView, Workspace
from windlass.core.threads import run_in_thread
from windlass.tools.mcp_config import McpServer, read_servers
from windlass.tools.mcp_connection import McpConnection, need_sdk
from windlass.tools.mcp_files import PrivateFiles
from windlass.tools.mcp_names import Names
from windlass.tools.mcp_oauth import Login
from windlass.tools.mcp_pins import Change, Pins
from windlass.tools.mcp_results import content_parts
from windlass.tools.mcp_search import CATALOG_BYTES, LIMIT, TOOL_SEARCH, SearchTool, catalogue, not_loaded, unlocked
from windlass.tools.mcp_tools import STATE, Listing, McpTool, ResourcesTool, listing, read_resource
from windlass.tools.mcp_wishes import Ask, Wishes
from windlass.tools.mcp_words import escape

__all__ = ["Mcp"]

log = logging.getLogger("windlass.mcp")
#: Seconds that a first run waits for servers that are still starting.
PATIENCE = 10.0
#: Bytes of what servers say about themselves in the system text, all together.
_INSTRUCTIONS = 4096


class Mcp:
    """The MCP servers that `value` names: a list, a mapping, or the path of an `.mcp.json` (see `read_servers`).

    A file's servers are connected only with `trusted=True`; `variables` are what `${NAME}` may stand for there.
    `eager` begins to connect at once and makes a failure an error of the next run or warmup. `patience` is how long the
    first run waits for slow servers, in seconds. `pins` is where approved definitions are kept: "auto" (in the data
    folder, the first definition counts as approved), "strict" (a person approves each first), "off". `home` replaces
    the data folder. `sampling` is the provider that answers servers which may ask a model, `elicitation` asks the user.
    Raises ConfigError for a value that names no servers.
    """

    def __init__(
        self,
        value: Any,
        *,
        trusted: bool | None = None,
        variables: Mapping[str, str] | None = None,
        eager: bool = False,
        patience: float = PATIENCE,
        pins: Literal["auto", "strict", "off"] = "auto",
        home: str | Path | None = None,
        sampling: Provider | None = None,
        elicitation: Ask | None = None,
    ) -> None:
        servers = read_servers(value, variables=variables)
        if trusted is None:
            trusted = not isinstance(value, (str, Path))
        if not trusted:
            servers = tuple([replace(server, allowed=False) for server in servers])
        self.servers = {server.name: server for server in servers}
        self.names = Names([server.name for server in servers])
        self.eager, self.patience = eager, patience
        self._pins_mode, self._home = pins, None if home is None else Path(home)
        self._sampling, self._elicitation = sampling, elicitation
        self._host: CapabilityHost | None = None
        self._early: list[tuple[str, dict[str, Any]]] = []
        self._connections: dict[str, McpConnection] = {}
        self._listings: dict[str, Listing] = {}
        self._pins: Pins | None = None
        self._search = SearchTool()
        self._resources = ResourcesTool(self._with_resources)
        if eager:
            with suppress(RuntimeError):  # without a running event loop it begins at the first run
                asyncio.get_running_loop()
                self._start()

    # -- Capability ------------------------------------------------------------------------------------------------

    async def open(self, host: CapabilityHost, /) -> None:
        """Connect all servers; returns when they are there, or after `patience`. Raises ToolError where eager."""
        self._host = host
        for connection in self._connections.values():
            connection.wishes.approver = host.approver
        early, self._early = self._early, []
        for hook, values in early:
            await host.fire(hook, **values)
        await run_in_thread(need_sdk)  # half a second of imports, in which others may go on
        self._start()
        await self._settle(None if self.eager else self.patience)

    async def warmup(self) -> None:
        """Connect all servers and wait for each, bounded by its bootstrap timeout. Raises ToolError where eager."""
        self._start()
        await self._settle(None)

    async def close(self) -> None:
        """Close every connection and end every process."""
        closing = [connection.close() for connection in self._connections.values()]
        self._connections, self._listings = {}, {}
        await asyncio.gather(*closing)

    def tools(self, turn: TurnView, /) -> Sequence[Tool]:
        """Return the tools that are offered now: those that are not hidden, and the means to find the others."""
        kept: dict[str, Any] = turn.state.setdefault(STATE, {})
        found = unlocked(turn.state, turn.run_id)
        shown: dict[str, Tool] = {}
        hidden: dict[str, McpTool] = {}
        for connection in self._connections.values():
            connection.revive()
        for name, server in self.servers.items():
            lazy = (server.disclosure or turn.disclosure) == "lazy"
            for tool in self._usable(name):
                if lazy:
                    hidden.setdefault(turn.aliases.get(tool.spec.name, tool.spec.name), tool)
                if not lazy or tool.spec.name in found:
                    shown.setdefault(tool.spec.name, tool)
        options = turn.tool_search
        searching = bool(hidden) and bool(options.get("tool", True))
        wire = turn.aliases.get(TOOL_SEARCH, TOOL_SEARCH) if searching else None
        kept.update(turn=turn.turn, hidden=hidden, search=wire, limit=options.get("limit", LIMIT))
        if searching:
            shown[TOOL_SEARCH] = self._search
        if self._with_resources():
            shown[self._resources.spec.name] = self._resources
        return list(shown.values())

    def instructions(self, turn: TurnView, /) -> str:
        """Return what servers say about themselves, framed as theirs, and the catalogue of hidden tools."""
        blocks: list[str] = []
        room = _INSTRUCTIONS
        for name, connection in self._connections.items():
            said = escape(connection.instructions) if connection.ready else ""
            if said and len(said) <= room:
                room -= len(said)
                blocks.append(f'<mcp_server name="{escape(" ".join(name.split())[:60])}">\n{said}\n</mcp_server>')
        hidden: dict[str, McpTool] = turn.state.get(STATE, {}).get("hidden", {})
        if hidden:
            by_server: dict[str, list[McpTool]] = {}
            for tool in hidden.values():
                by_server.setdefault(tool.origin[0], []).append(tool)
            search = turn.state[STATE]["search"]
            limit = int(turn.tool_search.get("catalog_bytes", CATALOG_BYTES))
            blocks.append(catalogue(by_server, turn.aliases, search=search, limit=limit))
        return "\n\n".join(blocks)

    def hooks(self) -> Mapping[str, Callable[..., Any]]:
        """Return the hook that explains calls of tools which are hidden or switched off."""
        return {"tool:unknown": self._explain}

    def status(self, state: Mapping[str, Any]) -> list[tuple[str, str]]:
        """Return one line per server, for people."""
        del state
        return [(name, self._line(name)) for name in self.servers]

    # -- for apps --------------------------------------------------------------------------------------------------

    def changes(self) -> list[Change]:
        """Return the tools that are switched off because their definition is not the approved one."""
        return [change for found in self._listings.values() for change in found.changes]

    def approve(self, server: str, tools: Sequence[str] | None = None) -> list[str]:
        """Approve definitions as they are now (None: all of the server); returns the names that are offered again.

        Raises UnknownNameError for a server that is not connected, ConfigError when it cannot be kept.
        """
        found = self._listings.get(server)
        if found is None or self._pins is None:
            raise UnknownNameError("connected MCP server", server, self._listings)
        wanted = [change.tool for change in found.changes if tools is None or change.tool in tools]
        self._pins.approve(self.servers[server], [found.definitions[name] for name in wanted])
        self._listed(self._connections[server])
        return wanted

    async def prompts(self) -> list[dict[str, Any]]:
        """Return the prompts of all connected servers: server, name, description, arguments (name, required)."""
        rows: list[dict[str, Any]] = []
        for name, connection in self._connections.items():
            if not connection.ready or connection.capabilities.prompts is None:
                continue
            page = await connection.request(lambda client: client.list_prompts(), safe=True)
            rows.extend(
                {
                    "server": name, "name": item.name, "description": item.description or item.title or "",
                    "arguments": [
                        {"name": one.name, "description": one.description or "", "required": bool(one.required)}
                        for one in item.arguments or ()
                    ],
                }
                for item in page.prompts
            )  # fmt: skip
        return rows

    async def prompt(self, server: str, name: str, arguments: Mapping[str, str] | None = None) -> list[Any]:
        """Return a prompt's messages as (role, parts). Raises ToolError."""
        connection = self._connection(server)
        answer = await connection.request(lambda client: client.get_prompt(name, dict(arguments or {})), safe=True)
        return [(message.role, tuple(content_parts([message.content]))) for message in answer.messages]

    async def read(self, server: str, uri: str) -> ToolResult:
        """Read a resource of a server. Raises ToolError."""
        return await read_resource(self._connection(server), uri)

    def connection(self, server: str) -> McpConnection:
        """Return the connection of a server. Raises ToolError when there is none."""
        return self._connection(server)

    # -- inside ----------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        need_sdk()
        if not self._connections:
            files = PrivateFiles(self._folder() / "mcp-pins") if self._pins_mode != "off" else None
            self._pins = Pins(files, strict=self._pins_mode == "strict")
            for name, server in self.servers.items():
                self._connections[name] = self._make(server)
        for connection in self._connections.values():
            if connection.status in ("new", "failed"):
                connection.start()

    def _folder(self) -> Path:
        environ: Any = getattr(getattr(self._host, "config", None), "environ", None)
        return self._home or data_home(environ)

    def _place(self) -> Workspace | None:
        return None if self._host is None else self._host.workspace

    def _make(self, server: McpServer) -> McpConnection:
        wishes = Wishes(server, self._sampling, self._elicitation, self._place)
        wishes.approver = None if self._host is None else self._host.approver
        login: Login | None = None
        own_key = any(name.lower() == "authorization" for name in server.headers)
        if server.transport != "stdio" and server.oauth and not own_key:
            kept = Login(server, PrivateFiles(self._folder() / "mcp-oauth"))
            login = kept if kept.logged_in else None  # without one, a 401 says how to log in
        return McpConnection(
            server, wishes=wishes, login=login, on_change=self._listed, before=self._before, after=self._after,
            place=self._place,
        )  # fmt: skip

    async def _settle(self, patience: float | None) -> None:
        waiting = [self._connections[name].start() for name in self._connections if self._is_opening(name)]
        if waiting:
            await asyncio.wait(waiting, timeout=patience)
        if self.eager:
            for connection in self._connections.values():
                if connection.status == "failed":
                    raise ToolError(f"The MCP server {connection.server.name!r}: {connection.error}.")

    def _is_opening(self, name: str) -> bool:
        return self._connections[name].status in ("new", "connecting")

    async def _fire(self, hook: str, **values: Any) -> None:
        if self._host is None:
            self._early.append((hook, values))
        else:
            await self._host.fire(hook, **values)

    async def _before(self, connection: McpConnection) -> None:
        await self._fire("mcp:bootstrap:start", name=connection.server.name, transport=connection.server.transport)

    async def _after(self, connection: McpConnection, seconds: float, error: str | None) -> None:
        server, count = connection.server, len(self._usable(connection.server.name))
        about: dict[str, Any] = {"tool_count": count} if error is None else {"error": error}
        await self._fire(
            "mcp:bootstrap:end", name=server.name, transport=server.transport, duration_ms=round(seconds * 1000),
            ok=error is None, **about,
        )  # fmt: skip
        if self._host is None:
            return
        self._host.emit(
            McpConnected(
                name=server.name, transport=server.transport, ok=error is None, tools=count,
                duration_ns=int(seconds * 1e9), error=error,
            )
        )  # fmt: skip

    def _listed(self, connection: McpConnection) -> None:
        """Take over what a server has listed, at a start or because it says that its tools changed."""
        name = connection.server.name
        others = [
            (other, tool) for other, found in self._listings.items() if other != name for tool in found.definitions
        ]
        assert self._pins is not None
        try:
            self._listings[name] = listing(connection, self.names, self._pins, others)
        except ConfigError as error:
            # The definitions cannot be kept: the tools work, but the next start cannot tell what changed.
            log.warning("MCP server %s: %s", name, error)
            self._pins = Pins(None)
            self._listings[name] = listing(connection, self.names, self._pins, others)
        for change in self._listings[name].changes:
            text = f"MCP tool {name}/{change.tool} is switched off: its definition is {change.kind}."
            log.warning("%s", text)
            if self._host is not None:
                self._host.emit(Log(message=text, level="warning", data={"diff": change.diff[:8192]}))

    def _usable(self, name: str) -> list[McpTool]:
        connection = self._connections.get(name)
        # A lost connection is opened again by the next call: its tools stay.
        if connection is None or name not in self._listings:
            return []
        return list(self._listings[name].tools.values())

    def _with_resources(self) -> dict[str, McpConnection]:
        return {
            name: connection
            for name, connection in self._connections.items()
            if connection.ready and connection.capabilities.resources is not None
        }

    def _connection(self, server: str) -> McpConnection:
        found = self._connections.get(server)
        if found is None:
            raise ToolError(f"There is no MCP server {server!r:.80}.", hint=f"There are: {', '.join(self.servers)}.")
        return found

    def _explain(self, ctx: Any) -> None:
        kept = ctx.scope.state.get(STATE, {})
        if ctx.name in kept.get("hidden", {}):
            ctx.result = not_loaded(ctx.name, kept.get("search"))
            return
        origin = self.names.origin(ctx.name)
        if origin is None:
            return
        server, tool = origin
        why = self._listings[server].refused.get(tool) if server in self._listings else None
        if why is not None:
            ctx.result = f"The tool {ctx.name} is switched off: {why}"
        elif not self._usable(server):
            ctx.result = f"The MCP server {server!r} is not there now: {self._line(server)}"

    def _line(self, name: str) -> str:
        connection = self._connections.get(name)
        if connection is None:
            return "not connected yet" if self.servers[name].allowed else "not allowed: its file is not trusted"
        found = self._listings.get(name, Listing())
        parts = [connection.status if connection.error is None else f"{connection.status}: {connection.error}"]
        if found.tools:
            parts.append(f"{len(found.tools)} tools")
        if found.refused:
            parts.append(f"{len(found.refused)} switched off")
        if found.flags:
            parts.append(f"{len(found.flags)} flagged")
        return ", ".join(parts)
