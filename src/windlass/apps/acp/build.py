"""The agent of one session: its folder, its configuration, and the MCP servers that the client names."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias, cast

from acp.schema import AcpMcpServer, HttpMcpServer, McpServerStdio, SseMcpServer
from msgspec import Struct

from windlass.agent.agent import Agent, resolve_tools
from windlass.agent.policy import Mode, Permissions
from windlass.agent.presets import coding
from windlass.apps.acp.failures import bad
from windlass.apps.assembly import assemble
from windlass.apps.cli.run import is_embedded
from windlass.core.config import Config
from windlass.core.config_files import config_home, load_config
from windlass.core.ports import Approver, Workspace

__all__ = ["Built", "Options", "Server", "build", "config_for", "servers_of"]

Server: TypeAlias = HttpMcpServer | SseMcpServer | AcpMcpServer | McpServerStdio
#: The embedded model is offered these, which it is measured to use; a shell never.
_DEMO_TOOLS = ("read_file", "write_file", "edit", "list_files", "grep")
_BEHAVIOR = ("max_tokens", "max_turns", "temperature", "top_p", "thinking", "tool_timeout", "max_attempts")


class Options(Struct, frozen=True):
    """What the command line says: for every session of this process. None: what the configuration says."""

    model: str | None = None
    mode: Mode | None = None
    tools: str | None = None
    sandbox: str | None = None
    #: Whether the client's unsaved text is read, and its buffers are told of writes, where it offers that.
    client_files: bool = True


class Built(Struct, frozen=True):
    """An agent, its permissions, and what a person should be told of them."""

    agent: Agent
    permissions: Permissions
    config: Config
    notices: list[str]


def config_for(options: Options, cwd: str, environ: Mapping[str, str]) -> Config:
    """Read the settings as they are for a folder: its own file can only tighten. Raises ConfigError."""
    flags = {"model": options.model, "tools": options.tools}
    files = ((Path(cwd) / "windlass.toml", False), (config_home(environ) / "windlass.toml", True))
    return load_config(flags=flags, environ=environ, files=files)


def build(
    options: Options,
    config: Config,
    cwd: str,
    servers: Sequence[Server],
    approver: Approver,
    wrap: Callable[[Workspace], Workspace],
) -> Built:
    """Build the agent of a folder; `wrap` may stand between it and its workspace. Raises as `Agent` and `assemble`."""
    demo = is_embedded(config.default_model, config)
    stated: str | None = config.get("tools")
    names: Any = [part.strip() for part in stated.split(",") if part.strip()] if stated else coding["tools"]
    tools = resolve_tools(_DEMO_TOOLS if demo else names)
    parts = assemble(
        config,
        folder=cwd,
        shell=any(tool.spec.name == "shell" for tool in tools),
        mode=options.mode,
        sandbox=options.sandbox,
        extras=not demo,
        mcp_servers=servers_of(servers),
    )
    agent = Agent(
        config.default_model,
        config=config,
        system=None if demo else coding["system"],
        tools=tools,
        workspace=wrap(parts.workspace),
        capabilities=parts.capabilities,
        policy=parts.permissions,
        approver=approver,
        behavior=cast(Any, {**({} if demo else coding.get("behavior", {})), **_stated(config)}),
    )
    notices = [*config.notices, *parts.notices]
    if demo:
        notices.append("The small built-in model answers. It is a demonstration: configure a real one.")
    return Built(agent, parts.permissions, config, notices)


def _stated(config: Config) -> dict[str, Any]:
    """Return the behavior that somebody has set; what nobody did is the agent's own."""
    found = {key: config.where(key) for key in _BEHAVIOR}
    return {key: each.value for key, each in found.items() if each.origin != "default" and each.value is not None}


def servers_of(servers: Sequence[Server]) -> list[dict[str, Any]]:
    """Return the client's MCP servers as ours; they are connected without asking: the person set them up there.

    Raises RequestError for one over a transport that was not offered.
    """
    out: list[dict[str, Any]] = []
    for server in servers:
        if isinstance(server, McpServerStdio):
            env = {each.name: each.value for each in server.env}
            out.append({"name": server.name, "command": server.command, "args": list(server.args), "env": env})
        elif isinstance(server, AcpMcpServer):
            raise bad(f"MCP server {server.name!r}: the transport acp is not offered (mcpCapabilities.acp is false).")
        else:
            headers = {each.name: each.value for each in server.headers}
            out.append({"name": server.name, "transport": server.type, "url": server.url, "headers": headers})
    return out
