"""Open what a gateway needs from settings, and close it again."""

from __future__ import annotations

import logging
import os
import secrets
from contextlib import AsyncExitStack
from pathlib import Path

from windlass.accounts.book import Accounts
from windlass.accounts.place import accounts_url
from windlass.core.config import Config
from windlass.core.config_files import data_home
from windlass.core.errors import ConfigError
from windlass.providers.route import Router
from windlass.server import (
    bedrock,
    chat,
    completions,
    counting,
    embeddings,
    gemini,
    keys,
    models,
    observe,
    ollama,
    openapi,
    responses,
    session_routes,
    store_routes,
    workspace_routes,
)
from windlass.server.access import is_loopback
from windlass.server.endpoints import Endpoint
from windlass.server.gateway import Gateway
from windlass.server.log import RequestLog
from windlass.server.settings import ServerSettings
from windlass.server.trace import Tracing
from windlass.sinks.otel import OtelSink

__all__ = ["ENDPOINTS", "admin_token", "open_gateway"]

log = logging.getLogger("windlass.server")
#: Every route of the server.
ENDPOINTS: tuple[Endpoint, ...] = (
    *chat.ENDPOINTS,
    *completions.ENDPOINTS,
    *responses.ENDPOINTS,
    *embeddings.ENDPOINTS,
    *models.ENDPOINTS,
    *counting.ENDPOINTS,
    *ollama.ENDPOINTS,
    *bedrock.ENDPOINTS,
    *gemini.ENDPOINTS,
    *keys.ENDPOINTS,
    *observe.ENDPOINTS,
    *openapi.ENDPOINTS,
    *session_routes.ENDPOINTS,
    *store_routes.ENDPOINTS,
    *workspace_routes.ENDPOINTS,
)


def admin_token(config: Config) -> str:
    """Return the token that guards key, admin and session-listing routes; made once, in a file only its user can read.

    Raises ConfigError when the file cannot be made or read.
    """
    path = data_home(config.environ) / "admin-token"
    try:
        return _read_or_make(path)
    except OSError as error:
        raise ConfigError(f"Cannot keep the admin token in {path}: {error.strerror}.") from error


def _read_or_make(path: Path) -> str:
    try:
        return path.read_text("ascii").strip()
    except FileNotFoundError:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    token = f"wla-{secrets.token_urlsafe(32)}"
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:  # another server was first
        return path.read_text("ascii").strip()
    with os.fdopen(handle, "w") as file:
        file.write(token)
    return token


async def open_gateway(config: Config, settings: ServerSettings, stack: AsyncExitStack) -> Gateway:
    """Make the gateway of a process; `stack` closes what it opened.

    Raises ConfigError for an address that others can reach while no key exists, and for routes that mean nothing.
    """
    legacy = config.environ.get("LLM_ROUTER_API_KEY", "").strip()
    accounts = await Accounts.open(accounts_url(config), legacy_key=legacy)
    stack.push_async_callback(accounts.close)
    if not is_loopback(settings.host) and not accounts.required:
        raise ConfigError(
            f"{settings.host} can be reached from other machines, and no key protects it.",
            hint="Make one with `windlass keys create NAME`, or listen on 127.0.0.1.",
        )
    router = Router(config)
    stack.push_async_callback(router.close)
    for problem in router.check():
        log.warning("%s", problem)
    gateway = Gateway(settings, config, router, accounts, ENDPOINTS, admin_token=admin_token(config))
    stack.push_async_callback(gateway.close)
    stack.push_async_callback(workspace_routes.open_workspaces(gateway).close)
    if settings.log != "off":
        lines = RequestLog(settings.log)
        stack.push_async_callback(lines.close)
        gateway.watchers.append(lines)
        gateway.counters["log_lines_dropped_total"] = "Lines of the request log dropped.", lambda: lines.dropped
    if settings.otel:
        spans = OtelSink(config.environ, instance=settings.instance_id)
        stack.push_async_callback(spans.close)
        gateway.watchers.append(Tracing(spans))
        gateway.counters["spans_dropped_total"] = "Spans dropped.", lambda: spans.dropped
    return gateway
