"""One MCP server: connected when needed, by one task that opens, keeps and closes it; mended when it breaks.

What goes wrong with a call fails that call. A connection that is lost is opened again by the next call, after a wait
that grows; after `CIRCUIT` failures in a row nothing is tried for `COOLDOWN` seconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Literal, TypeVar

from windlass.core import clock
from windlass.core.errors import ConfigError, ToolError, WindlassError
from windlass.core.ports import Workspace
from windlass.core.version import __version__
from windlass.tools.mcp_config import McpServer
from windlass.tools.mcp_http import MAX_EVENT, http_client
from windlass.tools.mcp_oauth import Login
from windlass.tools.mcp_stdio import StdioTransport, server_environ
from windlass.tools.mcp_wishes import Wishes
from windlass.tools.mcp_words import clean

__all__ = ["CIRCUIT", "COOLDOWN", "McpConnection", "Status", "need_sdk"]

T = TypeVar("T")
Status = Literal["new", "connecting", "ready", "lost", "failed", "closed", "not allowed"]
#: Failures in a row that open the circuit, and seconds for which it stays open.
CIRCUIT, COOLDOWN = 3, 30.0
#: The wait before the first new attempt doubles up to the second, in seconds.
BACKOFF, MAX_BACKOFF = 0.25, 5.0
#: Pages of one listing, and tools of one server.
MAX_PAGES, MAX_TOOLS = 100, 1000
#: What a request may take beyond its own timeout before the connection counts as stuck.
_SLACK = 5.0
_CLOSE_SECONDS = 12.0
#: The SDK's words for a 404 to a session that was known.
_FORGOTTEN = "Session terminated"


class McpConnection:
    """A server and what is known of it. `on_change` is called, in the owner task, when its tools were listed.

    `status` and `error` tell people how it is. `tools` are the SDK's Tool objects, `capabilities` the server's.
    """

    def __init__(
        self,
        server: McpServer,
        *,
        wishes: Wishes,
        login: Login | None = None,
        on_change: Callable[[McpConnection], None] = lambda _: None,
        before: Callable[[McpConnection], Awaitable[None]] | None = None,
        after: Callable[[McpConnection, float, str | None], Awaitable[None]] | None = None,
        place: Callable[[], Workspace | None] = lambda: None,
    ) -> None:
        self.server, self.wishes = server, wishes
        self.status: Status = "new" if server.allowed else "not allowed"
        self.error: str | None = None
        self.tools: list[Any] = []
        self.capabilities: Any = None
        self.instructions = ""
        self.failures = 0
        self._login, self._on_change, self._place = login, on_change, place
        self._before, self._after = before, after
        self._client: Any = None
        self._transport: StdioTransport | None = None
        self._owner: asyncio.Task[None] | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._closing: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()
        self._stopping = self._ended = self._stale = False
        self._failed_at = 0.0
        self._http_status = 0

    @property
    def ready(self) -> bool:
        """True while there is a living connection."""
        return self.status == "ready" and self._client is not None

    @property
    def pid(self) -> int | None:
        """Return the process id of a stdio server that runs."""
        return None if self._transport is None else self._transport.pid

    # -- opening ---------------------------------------------------------------------------------------------------

    def start(self) -> asyncio.Task[None]:
        """Begin to connect, unless that is under way; returns the task, which raises ToolError when it fails."""
        if self._connecting is None or self._connecting.done():
            # Before the task begins: whoever looks now must see that something is under way.
            self.status, self.error = "connecting", None
            self._connecting = asyncio.create_task(self._connect(), name=f"mcp {self.server.name}")
            # Whoever wants to know looks at `status`; nobody has to wait for the task.
            self._connecting.add_done_callback(lambda task: task.cancelled() or task.exception())
        return self._connecting

    def revive(self) -> None:
        """Try again, in the background, to connect a server that failed a while ago."""
        wait = COOLDOWN if self.failures >= CIRCUIT else MAX_BACKOFF
        if self.status == "failed" and clock.monotonic() - self._failed_at >= wait:
            self.start()

    async def connected(self) -> Any:
        """Return the SDK's client, connecting first where needed. Raises ToolError that says why it cannot."""
        if self.ready:
            return self._client
        name = self.server.name
        if self.status in ("not allowed", "closed"):
            raise ToolError(f"The MCP server {name!r} is {self.status}.")
        if self._connecting is None or self._connecting.done():
            since = clock.monotonic() - self._failed_at
            if self.failures >= CIRCUIT and since < COOLDOWN:
                left = COOLDOWN - since
                raise ToolError(
                    f"The MCP server {name!r} failed {self.failures} times ({self.error}).",
                    hint=f"It is tried again in {left:.0f} s; go on without it.",
                )
            wait = min(BACKOFF * 2 ** (self.failures - 1), MAX_BACKOFF) - since if self.failures else 0.0
            if wait > 0:
                await clock.sleep(wait)
            if self.ready:
                return self._client  # somebody else waited as long, and was first
            self.start()
        assert self._connecting is not None
        await asyncio.shield(self._connecting)
        if not self.ready:
            raise ToolError(f"The MCP server {name!r} is {self.status}: {self.error or 'it has ended'}.")
        return self._client

    async def _connect(self) -> None:
        if self._closing is not None:
            await self._closing
        await self._end_owner()
        begun = clock.monotonic()
        self._stopping = self._ended = self._stale = False
        self._http_status = 0
        if self._before is not None:
            await self._before(self)
        opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._owner = asyncio.create_task(self._own(opened), name=f"mcp owner {self.server.name}")
        limit = self.server.bootstrap_timeout
        error: str | None = None
        try:
            async with clock.deadline(limit):
                await asyncio.shield(opened)
        except TimeoutError:
            error = f"no answer within {limit:g} s"
        except WindlassError as failure:
            error = str(failure)
        except BaseException:
            opened.cancel()
            await self._end_owner()
            raise
        if error is None and self._client is None:
            error = "it ended at once"
        if error is None:
            self.status = "ready"
        else:
            opened.cancel()
            self._fail("failed", error)
            # A server that does not answer may not end quickly either: nobody waits for that but the next attempt.
            self._closing = asyncio.create_task(self._end_owner(), name=f"mcp end {self.server.name}")
        if self._after is not None:
            await self._after(self, clock.monotonic() - begun, error)
        if error is not None:
            raise ToolError(f"The MCP server {self.server.name!r} cannot be used: {error}.")

    def _fail(self, status: Status, error: str) -> None:
        self.status, self.error, self._client = status, error, None
        self.failures += 1
        self._failed_at = clock.monotonic()

    # -- the owner task --------------------------------------------------------------------------------------------

    async def _own(self, opened: asyncio.Future[None]) -> None:
        said = ""
        try:
            async with contextlib.AsyncExitStack() as stack:
                client = await self._open(stack)
                await self._take(client)
                self._client = client
                if not opened.done():
                    opened.set_result(None)
                await self._keep(client, stack)
        except Exception as failure:
            said = self._explain(failure)
        finally:
            said = said or (self._transport.said[-300:] if self._transport is not None else "") or "it has ended"
            self._client, self._transport = None, None
        if not opened.done():
            opened.set_exception(ToolError(said))
        elif not self._stopping and self.status == "ready":
            self._fail("lost", said)

    async def _open(self, stack: contextlib.AsyncExitStack) -> Any:
        need_sdk()
        from mcp import Client
        from mcp_types import Implementation

        server = self.server
        if server.transport == "stdio":
            transport: Any = self._stdio()
        else:
            auth = self._login.auth() if self._login is not None else None
            http = http_client(server.url, server.headers, server.timeout, auth, self._heard)
            transport = await self._remote(stack, http)
        client = Client(
            transport,
            mode=server.protocol,
            cache=None,
            read_timeout_seconds=server.timeout,
            message_handler=self._told,
            client_info=Implementation(name="windlass", version=__version__),
            **self.wishes.callbacks(),
        )
        return await stack.enter_async_context(client)

    def _stdio(self) -> StdioTransport:
        server, place = self.server, self._place()
        argv, env = [server.command, *server.args], server_environ(os.environ, server.env)
        confined: Any = getattr(place, "confined", None)
        if confined is not None:
            argv, env = confined(argv, env)
        root = server.cwd or (place.root if place is not None and Path(place.root).is_dir() else None)
        self._transport = StdioTransport(argv, env, root, on_end=self._over)
        return self._transport

    async def _remote(self, stack: contextlib.AsyncExitStack, http: Any) -> Any:
        if self.server.transport == "sse":
            from mcp.client.sse import sse_client

            def same(headers: Any = None, timeout: Any = None, auth: Any = None) -> Any:
                del headers, timeout, auth
                return http

            return sse_client(self.server.url, httpx_client_factory=same, sse_read_timeout=3600.0)
        from mcp.client.streamable_http import streamable_http_client

        await stack.enter_async_context(http)
        return streamable_http_client(self.server.url, http_client=http, max_sse_event_size=MAX_EVENT)

    async def _keep(self, client: Any, stack: contextlib.AsyncExitStack) -> None:
        watching = self._watch(client)
        if watching is not None:
            stack.push_async_callback(_cancelled, watching)
        while True:
            await self._wake.wait()
            self._wake.clear()
            if self._stopping or self._ended:
                return
            if self._stale:
                self._stale = False
                await self._take(client)
                # Whatever a server announces without end, it is asked a few times a second.
                await asyncio.sleep(0.2)

    def _watch(self, client: Any) -> asyncio.Task[None] | None:
        """Hear of changed tools where the protocol has a stream for it (2026-07-28)."""
        from mcp_types.version import MODERN_PROTOCOL_VERSIONS

        tools = self.capabilities.tools
        if client.protocol_version not in MODERN_PROTOCOL_VERSIONS or tools is None or not tools.list_changed:
            return None

        async def watch() -> None:
            async with client.listen(tools_list_changed=True) as changes:
                async for _ in changes:
                    self._refresh()

        task = asyncio.create_task(watch())
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        return task

    async def _take(self, client: Any) -> None:
        """List the tools, page by page, within bounds."""
        self.capabilities = client.server_capabilities
        self.instructions = clean(client.instructions or "").text
        found: list[Any] = []
        if self.capabilities.tools is not None:
            cursor: str | None = None
            for _ in range(MAX_PAGES):
                page = await client.list_tools(cursor=cursor)
                found.extend(page.tools)
                cursor = page.next_cursor
                if cursor is None or len(found) >= MAX_TOOLS:
                    break
        self.tools = found[:MAX_TOOLS]
        self._on_change(self)

    async def _told(self, message: Any) -> None:
        if getattr(message, "method", "") == "notifications/tools/list_changed":
            self._refresh()

    def _refresh(self) -> None:
        self._stale = True
        self._wake.set()

    def _over(self) -> None:
        self._ended = True
        self._wake.set()

    def _heard(self, status: int) -> None:
        self._http_status = status

    def _explain(self, failure: BaseException) -> str:
        while isinstance(failure, BaseExceptionGroup) and failure.exceptions:
            failure = failure.exceptions[0]
        cause = failure.__cause__
        text = str(failure) or type(failure).__name__
        if isinstance(failure, ImportError):
            text = f'the official SDK is missing ({failure}): pip install "windlass[mcp]"'
        elif isinstance(failure, FileNotFoundError) and self.server.transport == "stdio":
            text = f"there is no program {self.server.command!r}"
        elif isinstance(cause, WindlassError):
            text = str(cause)
        if self._http_status in (401, 403) and self._login is None:
            text = f"HTTP {self._http_status}; log in with: windlass mcp login {self.server.name}"
        said = self._transport.said if self._transport is not None else ""
        return clean(f"{text} [{said[-300:]}]" if said else text, 600).text.rstrip(".")

    # -- using -----------------------------------------------------------------------------------------------------

    async def request(self, what: Callable[[Any], Awaitable[T]], *, safe: bool = False) -> T:
        """Do `what(client)`, connecting first where needed. Raises ToolError.

        When the connection breaks meanwhile, `safe` requests are made once more on a new one; what became of another
        is unknown, and the error says so.
        """
        for attempt in (1, 2):
            client = await self.connected()
            try:
                async with clock.deadline(self.server.timeout + _SLACK):
                    answer = await what(client)
            except TimeoutError:
                self._drop("it does not take requests")
                raise ToolError(f"The MCP server {self.server.name!r} does not take requests any more.") from None
            except Exception as failure:
                if not self._lost(failure):
                    raise ToolError(f"The MCP server {self.server.name!r}: {self._explain(failure)}.") from failure
                self._drop(self._explain(failure))
                # A session that the server has forgotten did not take the request.
                if attempt == 2 or not (safe or _FORGOTTEN in str(failure)):
                    raise ToolError(
                        f"The connection to the MCP server {self.server.name!r} was lost during the call.",
                        hint="It may or may not have taken effect; the next call connects again.",
                    ) from failure
                continue
            self.failures = 0
            return answer
        raise AssertionError("unreachable")

    def _lost(self, failure: Exception) -> bool:
        from mcp import MCPError
        from mcp_types import CONNECTION_CLOSED

        if not isinstance(failure, MCPError):
            return self._client is None or type(failure).__module__.startswith(("anyio", "httpx2"))
        if _FORGOTTEN in failure.message:
            return True
        # A server over HTTP may end one answer without one; the session lives on.
        return failure.code == CONNECTION_CLOSED and (self.server.transport != "http" or self._client is None)

    def _drop(self, why: str) -> None:
        if self.status == "ready":
            self._fail("lost", why)
        self._ended = True
        self._wake.set()

    # -- closing ---------------------------------------------------------------------------------------------------

    async def close(self) -> None:
        """End the connection and its process; bounded. It cannot be opened again."""
        if self._connecting is not None and not self._connecting.done():
            await _cancelled(self._connecting)
        if self._closing is not None:
            await self._closing
        await self._end_owner()
        self.status = "closed" if self.server.allowed else "not allowed"
        if self._login is not None:
            self._login.close()

    async def _end_owner(self) -> None:
        owner, self._owner = self._owner, None
        if owner is None or owner.done():
            return
        self._stopping = True
        self._wake.set()
        if not self.ready:
            owner.cancel()
        _, late = await asyncio.wait([owner], timeout=_CLOSE_SECONDS)
        if late:
            await _cancelled(owner)


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task], timeout=_CLOSE_SECONDS)


def need_sdk() -> None:
    """Raise ConfigError when the official SDK is not installed."""
    try:
        import mcp
    except ImportError as error:
        raise ConfigError("MCP needs the official SDK.", hint='pip install "windlass[mcp]"') from error
    del mcp
    # What it logs of others' mistakes would be printed where nobody has set up logging; we tell it in our own words.
    for name in ("mcp", "client"):
        if not logging.getLogger(name).handlers:
            logging.getLogger(name).addHandler(logging.NullHandler())
