"""`windlass mcp`: offer tools, skills and the agent over MCP; look at MCP servers, approve what changed, log in."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from windlass.agent.agent import Agent, resolve_tools
from windlass.agent.policy import Policy
from windlass.agent.presets import coding
from windlass.apps.cli.common import ERROR, OK, Parser, configure, plain, run_async, say
from windlass.core import json, registry
from windlass.core.config_files import config_home, data_home
from windlass.core.errors import ConfigError, UnknownNameError
from windlass.core.text import strip_escapes, visible
from windlass.server.mcp import Offer, make_server, serve_http, serve_stdio, skill_offer
from windlass.server.mcp_calls import ClientApprover
from windlass.tools.mcp import Mcp
from windlass.tools.mcp_config import PROJECT_FILE, USER_FILE, McpServer, project_servers, user_servers
from windlass.tools.mcp_connection import McpConnection
from windlass.tools.mcp_files import PrivateFiles
from windlass.tools.mcp_oauth import Login, open_browser
from windlass.tools.mcp_wishes import Wishes
from windlass.tools.skills import Skills

__all__ = ["main", "parser"]

_READING = "read_file,list_files,glob,grep"
_TOKEN = "WINDLASS_MCP_TOKEN"  # noqa: S105 - the name of a variable


def main(name: str, args: list[str]) -> int:
    """Run the command; without a verb and with a program on stdin it serves."""
    asked = [arg for arg in args if arg in ("-h", "--help")]
    if not asked and (not args or args[0].startswith("-")) and not sys.stdin.isatty():
        args = ["serve", *args]
    options = parser(name).parse_args(args)
    if options.verb == "serve":
        return run_async(lambda: _serve(options))
    if options.verb == "list":
        return _list(options)
    if options.verb == "status":
        return run_async(lambda: _status(options))
    return run_async(lambda: _approve(options) if options.verb == "approve" else _login(options))


def parser(name: str) -> Parser:
    """Build the parser."""
    parser = Parser(
        f"windlass {name}",
        "Offer tools, skills and the agent to programs that speak MCP (serve: the default when a program starts "
        f"this), and look after the MCP servers in {USER_FILE} beside your settings and in a project's {PROJECT_FILE}.",
        "VERB ...",
    )
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True, prog=f"windlass {name}")
    text = "offer tools, skills and the agent over stdio, or on a port of this machine"
    serving = verbs.add_parser("serve", help=text, description=f"MCP server: {text}.")
    serving.add_argument("--tools", metavar="NAMES", default=_READING, help=f"tools and toolsets ({_READING}), or none")
    serving.add_argument("--workspace", metavar="DIR", default=".", help="where tools act (this folder)")
    serving.add_argument("--skills", metavar="DIR", action="append", help="offer the skills in this folder as prompts")
    serving.add_argument("--agent", action="store_true", help="offer the agent, with these tools, as run_agent")
    serving.add_argument("-m", "--model", type=plain, help="the agent's model")
    serving.add_argument("--yes", action="store_true", help="the agent need not ask before it changes things")
    serving.add_argument("--http", metavar="PORT", type=int, help="serve http://127.0.0.1:PORT/mcp (0: a free port)")
    text = f"with --http: no bearer token (else it is in {_TOKEN})"
    serving.add_argument("--open", action="store_true", help=text)
    _add(verbs, "list", "which servers there are; nothing is started", "")
    _add(verbs, "status", "connect the servers and say how each is", "")
    approving = _add(verbs, "approve", "show what changed in a server's tools and approve it", "SERVER")
    approving.add_argument("server", metavar="SERVER", type=plain, help="its name")
    approving.add_argument("--yes", action="store_true", help="approve without asking")
    login = _add(verbs, "login", "log in to a remote server (OAuth) in the browser", "SERVER")
    login.add_argument("server", metavar="SERVER", type=plain, help="its name")
    return parser


def _add(verbs: Any, verb: str, text: str, arguments: str) -> Any:
    found = verbs.add_parser(verb, help=text, description=f"{text[0].upper()}{text[1:]}.", arguments=arguments)
    found.add_argument("--project", action="store_true", help=f"trust this folder's {PROJECT_FILE} and use it too")
    found.add_argument("--json", action="store_true", help="one JSON object a line")
    return found


# -- serving -----------------------------------------------------------------------------------------------------------


async def _serve(options: argparse.Namespace) -> int:
    config = configure()
    names = [part.strip() for part in options.tools.split(",") if part.strip()]
    tools = resolve_tools([name for name in names if name != "none"])
    workspace = registry.make("workspaces", f"local:{options.workspace}")
    agent: Agent | None = None
    if options.agent:
        agent = Agent(
            options.model or config.default_model, config=config, system=coding["system"], tools=tools,
            workspace=workspace, policy=Policy("allow" if options.yes else "ask"), approver=ClientApprover(),
        )  # fmt: skip
    skills = list(Skills({"scan": options.skills, "defaults": False}).scan().skills.values()) if options.skills else []
    prompts, resources = skill_offer(skills)
    server = make_server(Offer(tools=tools, prompts=prompts, resources=resources, agent=agent, workspace=workspace))
    try:
        if options.http is None:
            await serve_stdio(server)
        else:
            await serve_http(server, "127.0.0.1", options.http, token=_token(options), started=_started)
    finally:
        if agent is not None:
            await agent.destroy()
        await workspace.close()
    return OK


def _token(options: argparse.Namespace) -> str | None:
    token = os.environ.get(_TOKEN)
    if not token and not options.open:
        raise ConfigError("Who may use this port?", hint=f"Set {_TOKEN}, or say --open for everybody on this machine.")
    return token or None


def _started(port: int) -> None:
    say(f"windlass: MCP at http://127.0.0.1:{port}/mcp")


# -- servers -----------------------------------------------------------------------------------------------------------


def _servers(options: argparse.Namespace) -> tuple[McpServer, ...]:
    own, variables = user_servers(config_home(), os.environ)
    names = {server.name for server in own}
    found = project_servers(Path.cwd(), trusted=options.project, variables=variables if options.project else _Blank())
    return (*own, *[server for server in found if server.name not in names])


class _Blank(dict[str, str]):
    """Stands for the variables of a file that is only looked at: every one is there, and shows its name."""

    def __contains__(self, name: object) -> bool:
        return True

    def __getitem__(self, name: str) -> str:
        return f"${{{name}}}"


def _the_server(options: argparse.Namespace) -> McpServer:
    found = {server.name: server for server in _servers(options)}
    if options.server not in found:
        raise UnknownNameError("MCP server", options.server, found)
    if not found[options.server].allowed:
        raise ConfigError(f"{options.server!r} is in this folder's {PROJECT_FILE}.", hint="Say --project to trust it.")
    return found[options.server]


def _print(options: argparse.Namespace, row: dict[str, Any], line: str) -> None:
    sys.stdout.write(f"{json.dumps(row).decode() if options.json else visible(strip_escapes(line))}\n")


def _list(options: argparse.Namespace) -> int:
    servers = _servers(options)
    for server in servers:
        what = server.url or " ".join([server.command, *server.args])
        state = "" if server.allowed else "  (not trusted: --project)"
        row = {"name": server.name, "transport": server.transport, "what": what, "allowed": server.allowed}
        _print(options, row, f"{server.name}  {server.transport}  {what}{state}")
    if not servers:
        say(f"windlass: no MCP servers; put them into {config_home() / USER_FILE} as mcpServers.")
    return OK


async def _status(options: argparse.Namespace) -> int:
    mcp = Mcp(_servers(options))
    try:
        await mcp.warmup()
        bad = False
        for name, line in mcp.status({}):
            bad = bad or line.startswith("failed")
            _print(options, {"name": name, "status": line}, f"{name}  {line}")
        for change in mcp.changes():
            _print(options, {"server": change.server, "tool": change.tool, "kind": change.kind, "diff": change.diff},
                   f"{change.server}/{change.tool} is {change.kind}: windlass mcp approve {change.server}")  # fmt: skip
    finally:
        await mcp.close()
    return ERROR if bad else OK


async def _approve(options: argparse.Namespace) -> int:
    server = _the_server(options)
    mcp = Mcp([server])
    try:
        await mcp.warmup()
        if not mcp.connection(server.name).ready:
            raise ConfigError(f"{server.name!r}: {dict(mcp.status({}))[server.name]}.")
        changes = mcp.changes()
        for change in changes:
            row = {"server": change.server, "tool": change.tool, "kind": change.kind, "diff": change.diff}
            _print(options, row, f"{change.server}/{change.tool} is {change.kind}:")
            if not options.json:
                sys.stdout.write("".join([f"  {visible(line)}\n" for line in change.diff.splitlines()]))
        if not changes:
            say(f"windlass: nothing has changed in {server.name}.")
            return OK
        sys.stdout.flush()
        if not options.yes and not _agreed(len(changes)):
            say("windlass: nothing was approved.")
            return ERROR
        say(f"windlass: approved {', '.join(mcp.approve(server.name))}.")
    finally:
        await mcp.close()
    return OK


def _agreed(count: int) -> bool:
    if not sys.stdin.isatty():
        return False
    sys.stderr.write(f"Approve {count} definitions? [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")


async def _login(options: argparse.Namespace) -> int:
    server = _the_server(options)
    if server.transport == "stdio":
        raise ConfigError(f"{server.name!r} is a program on this machine: there is nothing to log in to.")

    async def show(url: str) -> None:
        opened = sys.stdin.isatty() and await open_browser(url)
        say(f"windlass: {'log in in the browser, or ' if opened else ''}open this address:\n{url}")

    login = Login(server, PrivateFiles(data_home() / "mcp-oauth"), show)
    patient = replace(server, bootstrap_timeout=330.0, timeout=60.0)
    connection = McpConnection(patient, wishes=Wishes(server, None, None, lambda: None), login=login)
    try:
        await connection.connected()
        say(f"windlass: {server.name} is there, with {len(connection.tools)} tools.")
    finally:
        await connection.close()
    return OK
