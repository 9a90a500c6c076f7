"""The `[server]` table: how the gateway listens, what it bounds, and which of its parts are on.

A flag of `windlass serve` wins over reference A's variable, and that over the table.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import msgspec
from msgspec import Struct, structs
from msgspec.structs import replace

from windlass.core.errors import ConfigError, UnknownNameError
from windlass.server.protocol import Limits
from windlass.server.workspace_settings import WORKSPACES_ABOUT, WorkspaceSettings

__all__ = ["ABOUT", "VARIABLES", "ServerSettings", "read_settings"]


class ServerSettings(Struct, frozen=True, kw_only=True):
    """What `[server]` may say. Seconds and bytes; zero turns a bound or a part off only where it is said.

    `hosts` and `origins` are further names that a browser may use for this server. `unsupported` says what happens to a
    setting that a provider cannot be told: reported in a header, or the request refused. Answers are given again for
    `cache_ttl` seconds (0: never) to the same question at temperature 0, or at any by `cache_any_temperature`; at most
    `cache_bytes` of them are kept. `log` writes a line per model request, `otel` sends a span per model request to a
    collector (the extra `otel`).
    `loopback_open` lets clients on this machine use model routes while no key exists. `responses_ttl` is how long
    stored responses are kept; 0 stores none.

    `session_store` is where conversations with a `session_id` are kept (`sqlite:PATH`, `postgresql://…`); empty is the
    setting `store`, else the user's own database. At most `retention_messages` of a stored conversation are sent
    again; `session_queue` requests wait for a busy session, further ones are refused. `session_path` is a folder of
    reference A's session files, which are taken over when their session is first used. `loop_progress` streams every
    turn of a loop, else only the last. `tool_exec` lets requests run commands (`cmd`, `bash`) on this machine.
    `debug` logs more. `workspaces` says which workspaces clients may make here; none, unless it names some.
    """

    host: str = "127.0.0.1"
    port: int = 8081
    instance_id: str = "local-instance"
    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    max_body_bytes: int = 32 * 1024 * 1024
    request_timeout: float = 600.0
    connect_timeout: float = 5.0
    first_token_timeout: float = 60.0
    idle_timeout: float = 120.0
    attempts: int = 4
    drain_seconds: float = 30.0
    unsupported: Literal["report", "refuse"] = "report"
    metrics: Literal["prometheus", "json"] = "prometheus"
    cache_ttl: float = 0.0
    cache_bytes: int = 64 * 1024 * 1024
    cache_any_temperature: bool = False
    responses_ttl: float = 30 * 86_400.0
    default_output_tokens: int = 1024
    session_store: str = ""
    retention_messages: int = 24
    session_path: str = ""
    session_queue: int = 4
    loop_progress: bool = True
    tool_exec: bool = False
    tool_exec_timeout: float = 15.0
    tool_exec_max_output: int = 65_536
    loopback_open: bool = True
    log: Literal["off", "text", "json"] = "off"
    otel: bool = False
    debug: bool = False
    limits: Limits = Limits()
    workspaces: WorkspaceSettings = WorkspaceSettings()


#: What each setting means, for the documents; a test compares its names with the fields.
ABOUT: dict[str, str] = {
    "host": "the address to listen on; one that others can reach needs a key",
    "port": "the port to listen on; 0 chooses a free one",
    "instance_id": "what this server calls itself in health, metrics and diagnostics",
    "hosts": "further names by which a browser may call this server",
    "origins": "origins of pages that may use it",
    "max_body_bytes": "a larger request is refused before it is read",
    "request_timeout": "seconds for one request, all its attempts included",
    "connect_timeout": "seconds to connect to a target",
    "first_token_timeout": "seconds until a stream's first content",
    "idle_timeout": "seconds between two events of a stream",
    "attempts": "calls to targets per request at most",
    "drain_seconds": "seconds that answers get to end after SIGTERM",
    "unsupported": "`report` a setting that a provider cannot be told, or `refuse` the request",
    "metrics": "what `/metrics` answers unless asked otherwise: `prometheus` or `json`",
    "cache_ttl": "seconds for which an answer is given again to the same question; 0 keeps none",
    "cache_bytes": "bytes of answers that are kept",
    "cache_any_temperature": "keep answers also where the temperature is not 0",
    "responses_ttl": "seconds for which `/v1/responses` are stored; 0 stores none",
    "default_output_tokens": "tokens that are reserved for an answer whose request names no limit",
    "session_store": "where conversations with a `session_id` are kept; none is the setting `store`",
    "retention_messages": "messages of a kept conversation that are sent again",
    "session_path": "a folder of reference A's session files, taken over when first used",
    "session_queue": "requests that wait for a busy session; further ones are refused with 409",
    "loop_progress": "stream every turn of a loop, not only the last",
    "tool_exec": "let requests run commands on this machine (`cmd`, `bash`)",
    "tool_exec_timeout": "seconds for such a command",
    "tool_exec_max_output": "bytes of its output that are kept",
    "loopback_open": "let this machine use model routes while no key exists",
    "log": "a line per model request: `off`, `text` or `json`",
    "otel": "send a span per model request to an OpenTelemetry collector",
    "debug": "log more",
    "limits.head_bytes": "bytes of a request's head",
    "limits.head_seconds": "seconds for a request's head",
    "limits.idle_seconds": "seconds between two requests on a connection",
    "limits.body_rate": "bytes per second at which a body must come",
    "limits.stall_seconds": "seconds that a client may leave its answer unread",
    "limits.connections": "connections at once",
    "limits.buffered_bytes": "bytes of request bodies held at once, of all connections together",
    **{f"workspaces.{name}": text for name, text in WORKSPACES_ABOUT.items()},
}
#: Reference A's variables: the setting, and how its value is read; `ms` are milliseconds of a setting in seconds.
#: `LLM_ROUTER_API_KEY` is a key of the accounts, `LLM_ROUTER_PROVIDER` a setting of all commands.
VARIABLES: dict[str, tuple[str, Literal["str", "bool", "int", "ms"]]] = {
    "LLM_ROUTER_HOST": ("host", "str"),
    "LLM_ROUTER_PORT": ("port", "int"),
    "LLM_ROUTER_INSTANCE_ID": ("instance_id", "str"),
    "LLM_ROUTER_DEBUG": ("debug", "bool"),
    # A means the time in which a request has to arrive, and the time that a provider has for it.
    "LLM_ROUTER_REQUEST_TIMEOUT_MS": ("limits.head_seconds", "ms"),
    "LLM_ROUTER_PROVIDER_TIMEOUT_MS": ("request_timeout", "ms"),
    "LLM_ROUTER_LOOP_STREAM_PROGRESS_ENABLED": ("loop_progress", "bool"),
    "LLM_ROUTER_SESSION_STORE_PATH": ("session_path", "str"),
    "LLM_ROUTER_SESSION_RETENTION_MESSAGES": ("retention_messages", "int"),
    "LLM_ROUTER_TOOL_EXEC_ENABLED": ("tool_exec", "bool"),
    "LLM_ROUTER_TOOL_EXEC_TIMEOUT_MS": ("tool_exec_timeout", "ms"),
    "LLM_ROUTER_TOOL_EXEC_MAX_OUTPUT_BYTES": ("tool_exec_max_output", "int"),
}
_FALSE = ("", "0", "false", "no")
_TABLES = {"limits": Limits, "workspaces": WorkspaceSettings}
_POSITIVE = ("request_timeout", "retention_messages", "tool_exec_timeout", "tool_exec_max_output")


def read_settings(
    table: Mapping[str, Any], where: str = "[server]", environ: Mapping[str, str] | None = None
) -> ServerSettings:
    """Read the table, and reference A's variables, which win over it.

    Raises ConfigError or UnknownNameError that names the key or the variable.
    """
    known = ServerSettings.__struct_fields__
    for key in table:
        if key not in known:
            raise UnknownNameError(f"key in {where}:", str(key), known)
    for name, kind in _TABLES.items():
        inner = table.get(name)
        for key in inner if isinstance(inner, Mapping) else ():
            if key not in kind.__struct_fields__:
                raise UnknownNameError(f"key in {where} {name}:", str(key), kind.__struct_fields__)
    try:
        made = msgspec.convert(dict(table), ServerSettings)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{where}: {error}.") from None
    for key in _POSITIVE:
        if not getattr(made, key) > 0:
            raise ConfigError(f"{where}: {key} is {getattr(made, key)}; it must be more than 0.")
    for key, value in structs.asdict(made.workspaces).items():
        if isinstance(value, int | float) and not value > (-1 if key == "memory_mb" else 0):
            raise ConfigError(f"{where} workspaces: {key} is {value}; it must be more than 0.")
    for variable, (key, kind) in VARIABLES.items():
        text = None if environ is None else environ.get(variable)
        # Empty is false for A's switches, and no folder for its files; of all else it says nothing.
        if text is not None and (text.strip() or kind == "bool" or key == "session_path"):
            made = _with(made, key, _value(variable, kind, text.strip()))
    return made


def _value(variable: str, kind: str, text: str) -> Any:
    """Return what a variable says, by A's rules: four words are false and all else is true, and no number is zero."""
    if kind == "str":
        return text
    if kind == "bool":
        return text.lower() not in _FALSE
    number = int(text) if text.isascii() and text.isdecimal() and len(text) < 16 else -1
    # Port 0 is any free one.
    port = variable == "LLM_ROUTER_PORT"
    if number < 0 or not (number or port) or (port and number > 65_535):
        what = "a port" if port else "a positive whole number"
        raise ConfigError(f"{variable} is {text[:40]!r}; it must be {what}.")
    return number / 1000 if kind == "ms" else number


def _with(settings: ServerSettings, key: str, value: Any) -> ServerSettings:
    if key.startswith("limits."):
        key, value = "limits", replace(settings.limits, **{key.removeprefix("limits."): value})
    return replace(settings, **{key: value})
