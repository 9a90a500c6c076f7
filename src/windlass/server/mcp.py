"""An MCP server: our tools, skills and whole agents for any program that speaks the protocol.

    server = make_server(Offer(tools=[...], workspace=workspace, agent=agent))
    await serve_stdio(server)

The SDK (`pip install "windlass[mcp]"`) does the protocol; what is offered and how a call is answered is here.
"""

from __future__ import annotations

import asyncio
import base64
import hmac
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any
from weakref import WeakSet

from msgspec import Struct

from windlass.core.errors import ConfigError
from windlass.core.ports import Tool, Workspace
from windlass.core.version import __version__
from windlass.server.mcp_calls import CallBack, Runner, answer_of, call_tool, content_of, run_agent, tool_row

__all__ = ["Offer", "Prompt", "Resource", "asgi_app", "make_server", "serve_http", "serve_stdio", "skill_offer"]

#: A prompt's messages: (role, text or parts).
Said = Sequence[tuple[str, Any]]


class Prompt(Struct, frozen=True):
    """A prompt: `arguments` maps names to what they are for, `required` are those that must be given.

    `render(arguments)` returns (role, text or parts) pairs; `complete(argument, begun)` proposes values.
    """

    name: str
    description: str
    render: Callable[[Mapping[str, str]], Said | Awaitable[Said]]
    arguments: Mapping[str, str] = {}
    required: tuple[str, ...] = ()
    complete: Callable[[str, str], Sequence[str]] | None = None


class Resource(Struct, frozen=True):
    """A resource: `read(uri)` returns text or bytes. With a `{name}` in `uri` it is a template (one path segment each).

    `read` of a template gets the whole URI that was asked for.
    """

    uri: str
    name: str
    read: Callable[[str], str | bytes | Awaitable[str | bytes]]
    description: str = ""
    mime_type: str = "text/plain"

    @property
    def is_template(self) -> bool:
        """True when the URI has a variable."""
        return "{" in self.uri

    def matches(self, uri: str) -> bool:
        """Tell whether a URI is this resource."""
        ours, theirs = self.uri.split("/"), uri.split("/")
        if len(ours) != len(theirs):
            return False
        return all(mine == other or ("{" in mine and bool(other)) for mine, other in zip(ours, theirs, strict=True))


class Offer(Struct):
    """What a server offers. `agent` becomes the tool `run_agent`; `workspace` is where tools act.

    `instructions` is what a client is told of the whole. `changed(uri)` tells the clients that asked to hear of it.
    """

    tools: Sequence[Tool] = ()
    prompts: Sequence[Prompt] = ()
    resources: Sequence[Resource] = ()
    agent: Runner | None = None
    workspace: Workspace | None = None
    name: str = "windlass"
    instructions: str | None = None
    watchers: dict[str, WeakSet[Any]] = {}

    async def changed(self, uri: str) -> None:
        """Tell every client that subscribed to a resource that it is not what it was."""
        for connection in list(self.watchers.get(uri, ())):
            await connection.notify("notifications/resources/updated", {"uri": uri})


def skill_offer(skills: Sequence[Any]) -> tuple[list[Prompt], list[Resource]]:
    """Return skills as prompts (their instructions, with what they are to be used for) and as resources."""
    prompts: list[Prompt] = []
    resources: list[Resource] = []
    for skill in skills:
        prompts.append(_skill_prompt(skill))
        resources.append(
            Resource(
                f"skill://{skill.name}/SKILL.md", skill.name, _always(skill.body), skill.description, "text/markdown"
            )
        )
    return prompts, resources


def _skill_prompt(skill: Any) -> Prompt:
    def render(arguments: Mapping[str, str]) -> Said:
        task = arguments.get("task", "")
        return [("user", f"{skill.body}\n\n{task}".strip())]

    return Prompt(skill.name, skill.description, render, {"task": "what the skill is to be used for"})


def _always(text: str) -> Callable[[str], str]:
    return lambda _: text


def make_server(offer: Offer) -> Any:
    """Return the SDK's low-level Server. Raises ConfigError without the SDK, or for two tools of one name."""
    try:
        from mcp.server.lowlevel.server import Server
    except ImportError as error:
        raise ConfigError("The MCP server needs the official SDK.", hint='pip install "windlass[mcp]"') from error
    if len({tool.spec.name for tool in offer.tools}) != len(offer.tools):
        raise ConfigError("Two of the offered tools have one name.", hint="Leave one of them out.")
    handlers = _Handlers(offer)
    has_prompts, has_resources = bool(offer.prompts), bool(offer.resources)
    server = Server(
        offer.name,
        version=__version__,
        instructions=offer.instructions,
        on_list_tools=handlers.list_tools,
        on_call_tool=handlers.call_tool,
        on_list_prompts=handlers.list_prompts if has_prompts else None,
        on_get_prompt=handlers.get_prompt if has_prompts else None,
        on_completion=handlers.complete if any(prompt.complete for prompt in offer.prompts) else None,
        on_list_resources=handlers.list_resources if has_resources else None,
        on_list_resource_templates=handlers.list_templates if has_resources else None,
        on_read_resource=handlers.read_resource if has_resources else None,
        on_subscribe_resource=handlers.subscribe if has_resources else None,
        on_unsubscribe_resource=handlers.unsubscribe if has_resources else None,
    )
    _add_logging(server)
    return server


def _add_logging(server: Any) -> None:
    from mcp_types import EmptyResult, SetLevelRequestParams

    async def set_level(ctx: Any, params: Any) -> Any:
        # Every line goes to whoever made the call that said it; a client that wants fewer drops them.
        del ctx, params
        return EmptyResult()

    server.add_request_handler("logging/setLevel", SetLevelRequestParams, set_level)


class _Handlers:
    """The answers to requests; all take the SDK's request context and parameters."""

    def __init__(self, offer: Offer) -> None:
        self.offer = offer
        self.tools = {tool.spec.name: tool for tool in offer.tools}
        self.prompts = {prompt.name: prompt for prompt in offer.prompts}
        self.sessions: dict[str, Any] = {}

    async def list_tools(self, ctx: Any, params: Any) -> Any:
        from mcp_types import ListToolsResult

        del ctx, params
        rows = [tool_row(tool.spec) for tool in self.tools.values()]
        if self.offer.agent is not None:
            rows.append(tool_row(run_agent.spec))
        return ListToolsResult(tools=rows)

    async def call_tool(self, ctx: Any, params: Any) -> Any:
        from mcp import MCPError
        from mcp_types import INVALID_PARAMS

        back = CallBack(ctx, self.offer.workspace)
        args: dict[str, Any] = params.arguments or {}
        tool = self.tools.get(params.name)
        if tool is not None:
            return answer_of(*await call_tool(tool, args, back), tool.spec)
        if self.offer.agent is not None and params.name == run_agent.spec.name:
            return answer_of(*await run_agent.call(self.offer.agent, args, back, self.sessions), run_agent.spec)
        raise MCPError(INVALID_PARAMS, f"Unknown tool: {params.name}")

    async def list_prompts(self, ctx: Any, params: Any) -> Any:
        from mcp_types import ListPromptsResult, PromptArgument
        from mcp_types import Prompt as Row

        del ctx, params
        rows: list[Any] = []
        for prompt in self.prompts.values():
            arguments = [
                PromptArgument(name=name, description=about, required=name in prompt.required)
                for name, about in prompt.arguments.items()
            ]
            rows.append(Row(name=prompt.name, description=prompt.description, arguments=arguments))
        return ListPromptsResult(prompts=rows)

    async def get_prompt(self, ctx: Any, params: Any) -> Any:
        from mcp import MCPError
        from mcp_types import INVALID_PARAMS, GetPromptResult, PromptMessage

        del ctx
        prompt = self.prompts.get(params.name)
        given: dict[str, str] = params.arguments or {}
        if prompt is None:
            raise MCPError(INVALID_PARAMS, f"Unknown prompt: {params.name}")
        if missing := [name for name in prompt.required if name not in given]:
            raise MCPError(INVALID_PARAMS, f"Missing arguments: {', '.join(missing)}")
        said = await _awaited(prompt.render(given))
        messages = [
            PromptMessage(role="assistant" if role == "assistant" else "user", content=block)
            for role, parts in said
            for block in content_of(parts)
        ]
        return GetPromptResult(description=prompt.description, messages=messages)

    async def complete(self, ctx: Any, params: Any) -> Any:
        from mcp_types import CompleteResult, Completion

        del ctx
        prompt = self.prompts.get(getattr(params.ref, "name", ""))
        found: Sequence[str] = ()
        if prompt is not None and prompt.complete is not None:
            found = prompt.complete(params.argument.name, params.argument.value)
        return CompleteResult(
            completion=Completion(values=list(found[:100]), total=len(found), has_more=len(found) > 100)
        )

    async def list_resources(self, ctx: Any, params: Any) -> Any:
        from mcp_types import ListResourcesResult
        from mcp_types import Resource as Row

        del ctx, params
        rows = [
            Row(uri=item.uri, name=item.name, description=item.description, mime_type=item.mime_type)
            for item in self.offer.resources
            if not item.is_template
        ]
        return ListResourcesResult(resources=rows)

    async def list_templates(self, ctx: Any, params: Any) -> Any:
        from mcp_types import ListResourceTemplatesResult, ResourceTemplate

        del ctx, params
        rows = [
            ResourceTemplate(
                uri_template=item.uri, name=item.name, description=item.description, mime_type=item.mime_type
            )
            for item in self.offer.resources
            if item.is_template
        ]
        return ListResourceTemplatesResult(resource_templates=rows)

    async def read_resource(self, ctx: Any, params: Any) -> Any:
        from mcp import MCPError
        from mcp_types import INVALID_PARAMS, BlobResourceContents, ReadResourceResult, TextResourceContents

        del ctx
        uri = str(params.uri)
        found = next((item for item in self.offer.resources if item.matches(uri)), None)
        if found is None:
            raise MCPError(INVALID_PARAMS, f"Unknown resource: {uri[:200]}")
        data = await _awaited(found.read(uri))
        if isinstance(data, str):
            contents: Any = TextResourceContents(uri=uri, text=data, mime_type=found.mime_type)
        else:
            contents = BlobResourceContents(uri=uri, blob=base64.b64encode(data).decode(), mime_type=found.mime_type)
        return ReadResourceResult(contents=[contents])

    async def subscribe(self, ctx: Any, params: Any) -> Any:
        from mcp_types import EmptyResult

        if any(item.matches(str(params.uri)) for item in self.offer.resources):
            self.offer.watchers.setdefault(str(params.uri), WeakSet()).add(_connection(ctx))
        return EmptyResult()

    async def unsubscribe(self, ctx: Any, params: Any) -> Any:
        from mcp_types import EmptyResult

        self.offer.watchers.get(str(params.uri), WeakSet()).discard(_connection(ctx))
        return EmptyResult()


def _connection(ctx: Any) -> Any:
    # The session is one per request; what lasts as long as the client is behind it, without a public name.
    return getattr(ctx.session, "_connection", ctx.session)


async def _awaited(value: Any) -> Any:
    return await value if isinstance(value, Awaitable) else value


# -- serving -----------------------------------------------------------------------------------------------------------


async def serve_stdio(server: Any) -> None:
    """Serve one client on this process's stdin and stdout until it leaves.

    Whatever else is printed goes to stderr meanwhile: nothing but the protocol is on stdout.
    """
    from mcp.server.stdio import stdio_server

    async with stdio_server() as (read, write):
        await server.run(read, write, server.create_initialization_options())


def asgi_app(server: Any, token: str | None, host: str = "127.0.0.1") -> Any:
    """Return the streamable HTTP endpoint `/mcp` as an ASGI application.

    With `token`, requests without it as a bearer token get 401. For a loopback `host` the Host and Origin headers
    must be loopback names too, so that no web page reaches it by DNS rebinding.
    """
    app = server.streamable_http_app(host=host)
    if token is None:
        return app
    wanted = f"Bearer {token}".encode()

    async def guarded(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            given = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
            if not hmac.compare_digest(given, wanted):
                headers = [(b"content-type", b"text/plain"), (b"www-authenticate", b"Bearer")]
                await send({"type": "http.response.start", "status": 401, "headers": headers})
                await send({"type": "http.response.body", "body": b"Unauthorized\n"})
                return
        await app(scope, receive, send)

    return guarded


async def serve_http(
    server: Any, host: str, port: int, *, token: str | None, started: Callable[[int], None] = lambda _: None
) -> None:
    """Serve `/mcp` on an address of this machine until cancelled or told to stop by a signal.

    `started` gets the port. Raises ConfigError for an address that is not loopback, or one that is taken.
    """
    import uvicorn

    if host not in ("127.0.0.1", "localhost", "::1"):
        raise ConfigError(f"MCP over HTTP is served on this machine only, not on {host}.", hint="Use 127.0.0.1.")
    config = uvicorn.Config(
        asgi_app(server, token, host),
        host=host,
        port=port,
        log_level="warning",
        access_log=False,
        lifespan="on",
        ws="none",  # nothing here speaks it, and "auto" imports whatever library is installed
    )
    running = uvicorn.Server(config)
    serving = asyncio.create_task(running.serve())
    try:
        while not running.started and not serving.done():  # noqa: ASYNC110 - uvicorn has no event for it
            await asyncio.sleep(0.01)
        if running.started:
            started(running.servers[0].sockets[0].getsockname()[1])
        await asyncio.shield(serving)
    except SystemExit:
        raise ConfigError(f"Cannot listen on {host}:{port}.", hint="Choose another port.") from None
    finally:
        running.should_exit = True
        if not serving.done():
            await asyncio.wait([serving], timeout=10.0)
