"""MCP servers as data: what a user, a program or a project's `.mcp.json` names, checked before anything starts."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec
from msgspec import Struct

from windlass.core import json
from windlass.core.errors import ConfigError, UnknownNameError

__all__ = ["PROJECT_FILE", "USER_FILE", "McpServer", "project_servers", "read_servers", "user_servers"]

PROJECT_FILE, USER_FILE = ".mcp.json", "mcp.json"
_MAX_FILE = 1 << 20
_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")
_WIRE_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
#: How other programs write the same fields.
_ALIASES = {
    "type": "transport", "serverUrl": "url", "alwaysAllow": "", "disabled": "", "autoApprove": "", "description": "",
    "startupTimeout": "bootstrap_timeout", "bootstrapTimeout": "bootstrap_timeout",
}  # fmt: skip
_TRANSPORTS = {"streamable-http": "http", "streamable_http": "http", "streamableHttp": "http"}
#: What a project's file cannot say for itself: whom to believe, and what a server may ask of the user.
_OURS = ("trusted", "allowed", "sampling", "elicitation", "roots", "oauth")


class McpServer(Struct, frozen=True, kw_only=True):
    """One MCP server.

    `transport` is stdio (`command`, `args`, `env`, `cwd`), http or sse (`url`, `headers`). `timeout` is seconds per
    request, `bootstrap_timeout` until its tools must be known. `tools` lists the only tools that are taken, `deny`
    those that are not; `aliases` maps a tool to the name it gets in place of `mcp_{server}_{tool}`. `disclosure`
    overrides the behavior's. `trusted` believes its hints (read-only, idempotent); `allowed` False keeps it from being
    connected. `sampling` is how many tokens it may have a model use for it; `elicitation` lets it ask the user
    questions, `roots` see the workspace's path, `oauth` log in: with `client_id` and `client_secret`
    where we are registered there already (`redirect_port` is the registered one), else we register ourselves.
    `protocol` legacy is for servers that do not stand being asked for the newest one. `max_output` is bytes of text
    in one result.
    """

    name: str
    transport: Literal["stdio", "http", "sse"] = "stdio"
    command: str = ""
    args: tuple[str, ...] = ()
    env: Mapping[str, str] = {}
    cwd: str | None = None
    url: str = ""
    headers: Mapping[str, str] = {}
    disclosure: Literal["eager", "lazy"] | None = None
    timeout: float = 60.0
    bootstrap_timeout: float = 30.0
    tools: tuple[str, ...] | None = None
    deny: tuple[str, ...] = ()
    aliases: Mapping[str, str] = {}
    trusted: bool = False
    allowed: bool = True
    sampling: int = 0
    elicitation: bool = False
    roots: bool = False
    oauth: bool = True
    client_id: str = ""
    client_secret: str = ""
    redirect_port: int = 0
    protocol: Literal["auto", "legacy"] = "auto"
    max_output: int = 100_000

    @property
    def identity(self) -> str:
        """Return what its approved definitions are bound to: the program and its arguments, or the address."""
        return self.url if self.transport != "stdio" else json.dumps([self.command, *self.args]).decode()

    def takes(self, tool: str) -> bool:
        """Tell whether a tool is offered at all."""
        return tool not in self.deny and (self.tools is None or tool in self.tools)


def read_servers(value: Any, *, variables: Mapping[str, str] | None = None) -> tuple[McpServer, ...]:
    """Return the servers that `value` names.

    It is a list of mappings or McpServer objects, a mapping of name -> mapping, `{"mcpServers": {…}}`, or the path of
    a JSON file of that form. In a file and in a mapping with `mcpServers`, `${NAME}` and `${NAME:-default}` stand for
    `variables` and nothing else. Reading starts and connects nothing. Raises ConfigError that names server and field.
    """
    if isinstance(value, (str, Path)):
        return _from_file(Path(value), {} if variables is None else variables)
    if isinstance(value, Mapping):
        rows: Any = value.get("mcpServers")
        if rows is None:
            return tuple([_server(name, row, "MCP server") for name, row in value.items()])
        return tuple([_server(name, _expanded(row, variables or {}, name), "MCP server") for name, row in rows.items()])
    if isinstance(value, McpServer):
        return (value,)
    if not isinstance(value, Sequence):
        raise ConfigError(f"{value!r:.80} names no MCP servers.", hint="Give a list, a mapping or a file's path.")
    return tuple([row if isinstance(row, McpServer) else _server(None, row, "MCP server") for row in value])


def project_servers(
    folder: str | Path, *, trusted: bool = False, variables: Mapping[str, str] | None = None
) -> tuple[McpServer, ...]:
    """Return the servers of a project's `.mcp.json`, () without one. They are not `allowed` unless `trusted`.

    What such a file says of itself (`trusted`, `sampling` …) is ignored. Raises ConfigError for a broken file.
    """
    path = Path(folder) / PROJECT_FILE
    if not path.is_file():
        return ()
    found = _from_file(path, {} if variables is None else variables)
    return tuple([msgspec.structs.replace(server, allowed=trusted and server.allowed) for server in found])


def user_servers(folder: str | Path, environ: Mapping[str, str]) -> tuple[tuple[McpServer, ...], dict[str, str]]:
    """Return the servers of the user's own `mcp.json` in the folder of their settings, and the listed variables.

    Its `variables` lists the names that `${NAME}` may stand for, there and in a trusted project's file. Raises
    ConfigError for a broken file; without one there are none.
    """
    path = Path(folder) / USER_FILE
    if not path.is_file():
        return (), {}
    names: Any = _read(path).get("variables", [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"{path}: variables must be a list of names.")
    variables = {name: environ[name] for name in names if name in environ}
    return _from_file(path, variables, ours=True), variables


def _from_file(path: Path, variables: Mapping[str, str], *, ours: bool = False) -> tuple[McpServer, ...]:
    data = _read(path)
    rows: Any = data.get("mcpServers")
    if not isinstance(rows, dict):
        raise ConfigError(f'{path} has no "mcpServers" object.')
    out: list[McpServer] = []
    for name, row in rows.items():
        if isinstance(row, dict) and not ours:
            row = {key: item for key, item in row.items() if key not in _OURS}
        out.append(_server(name, _expanded(row, variables, f"{path}: {name}"), str(path)))
    return tuple(out)


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            raw = file.read(_MAX_FILE + 1)
    except OSError as error:
        raise ConfigError(f"Cannot read {path}: {error.strerror}.") from error
    if len(raw) > _MAX_FILE:
        raise ConfigError(f"{path} is larger than 1 MiB.")
    try:
        data: Any = msgspec.json.decode(raw)
    except (msgspec.DecodeError, RecursionError) as error:
        raise ConfigError(f"{path} is not JSON: {error}.") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{path} holds no JSON object.")
    return data


def _expanded(value: Any, variables: Mapping[str, str], where: str) -> Any:
    """Replace `${NAME}` in every text. Raises ConfigError for a name that is not listed and has no default."""
    if isinstance(value, dict):
        return {key: _expanded(item, variables, where) for key, item in value.items()}
    if isinstance(value, list):
        return [_expanded(item, variables, where) for item in value]
    if not isinstance(value, str):
        return value

    def put(match: re.Match[str]) -> str:
        name, default = match[1], match[2]
        if name in variables:
            return variables[name]
        if default is None:
            raise ConfigError(f"{where}: ${{{name}}} is not a listed variable.", hint="List it, or give a default.")
        return default

    return _VARIABLE.sub(put, value)


def _server(name: Any, row: Any, where: str) -> McpServer:
    if not isinstance(row, Mapping):
        raise ConfigError(f"{where} {name!r:.80} must be a mapping, not {row!r:.80}.")
    given: dict[str, Any] = {}
    for key, value in row.items():
        key = _ALIASES.get(key, key)
        if key and key not in McpServer.__struct_fields__:
            raise UnknownNameError(f"field of the {where} {name or row.get('name')!r:.80}", str(key), _FIELDS)
        if key:
            given[key] = dict(value) if isinstance(value, Mapping) else value
    if name is not None:
        given["name"] = name
    if row.get("disabled") is True:
        given["allowed"] = False  # as other programs read their own file
    if "transport" not in given:
        given["transport"] = "http" if given.get("url") else "stdio"
    given["transport"] = _TRANSPORTS.get(given["transport"], given["transport"])
    try:
        server = msgspec.convert(given, McpServer)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{where} {given.get('name')!r:.80}: {error}.") from None
    _check(server, where)
    return server


def _check(server: McpServer, where: str) -> None:
    about = f"{where} {server.name!r:.80}"
    if not server.name or len(server.name) > 200:
        raise ConfigError(f"{about}: a name has 1 to 200 characters.")
    if server.transport == "stdio" and not server.command:
        raise ConfigError(f"{about} has neither a command nor a url.")
    if server.transport != "stdio" and not server.url.startswith(("https://", "http://")):
        raise ConfigError(f"{about}: {server.url!r:.80} is not an http or https address.")
    if server.timeout <= 0 or server.bootstrap_timeout <= 0 or server.sampling < 0 or server.max_output < 0:
        raise ConfigError(f"{about}: timeouts must be positive, budgets not negative.")
    for text in (server.command, *server.args, *server.env, *server.env.values()):
        if "\0" in text:
            raise ConfigError(f"{about}: a NUL in its command, arguments or environment.")
    for name in server.aliases.values():
        if not _WIRE_NAME.fullmatch(name):
            raise ConfigError(f"{about}: {name!r:.80} cannot be a tool's name.", hint="1 to 64 of a-z A-Z 0-9 _ -.")
    for key, value in server.headers.items():
        if any(char in "\r\n\0" for char in key + value):
            raise ConfigError(f"{about}: a line end in the header {key!r:.40}.")


_FIELDS = McpServer.__struct_fields__
