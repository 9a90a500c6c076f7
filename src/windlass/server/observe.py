"""What operators ask: is it up, is it ready, what does it count, who uses it, how do its providers do.

The shapes are reference A's; what a stranger should not learn (addresses of providers, who uses the server) is told to
administrators only.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from windlass.core import clock
from windlass.core.errors import RequestRefused, WindlassError
from windlass.core.json import dumps
from windlass.core.version import __version__
from windlass.providers.ollama import pick_installed
from windlass.providers.vendors import vendor_of
from windlass.server.endpoints import Endpoint
from windlass.server.gateway import Gateway
from windlass.server.http import Call
from windlass.server.stats import BUCKETS

__all__ = ["ENDPOINTS", "prometheus"]

_PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"


def _tell(call: Call, data: Any, status: int = 200) -> None:
    call.respond(status, dumps(data), (("x-request-id", call.id), ("cache-control", "no-store")))


async def health(gateway: Gateway, call: Call) -> None:
    """Answer `GET /health`: the process answers."""
    _tell(call, {"status": "ok", "instance_id": gateway.settings.instance_id})


async def ready(gateway: Gateway, call: Call) -> None:
    """Answer `GET /ready`: 503 while the database of accounts fails, or every target of some route rests.

    Why is told to those whom the names of routes concern.
    """
    reasons: list[str] = []
    if gateway.accounts.failing:
        reasons.append("request records cannot be written")
    for name in gateway.config.routes:
        try:
            targets = gateway.router.route(name).targets
        except WindlassError as error:
            reasons.append(f"route {name} cannot be asked ({error.code})")
            continue
        if not any(target.breaker.healthy for target in targets):
            reasons.append(f"no target of route {name} answers")
    body: dict[str, Any] = {
        "status": "not ready" if reasons else "ready", "instance_id": gateway.settings.instance_id
    }  # fmt: skip
    if reasons and (call.identity.key_id or not gateway.accounts.required):
        body["reasons"] = reasons
    _tell(call, body, 503 if reasons else 200)


async def metrics(gateway: Gateway, call: Call) -> None:
    """Answer `GET /metrics`: Prometheus' text format, or reference A's JSON where it is asked for or configured."""
    accept = call.head.headers.get("accept", "")
    if "application/json" in accept or (gateway.settings.metrics == "json" and "text/plain" not in accept):
        stats = gateway.stats
        _tell(call, {"instance_id": gateway.settings.instance_id, "total_requests": stats.total,
                     "successful_requests": stats.successful, "failed_requests": stats.failed,
                     "active_connections": stats.active})  # fmt: skip
        return
    if gateway.accounts.required and call.identity.role != "admin":
        raise RequestRefused(403, "What all tenants used together is told to administrators.", kind="auth_error",
                             reason="forbidden", hint="Ask with an admin's key, or for JSON.")  # fmt: skip
    text = "".join([f"{line}\n" for line in prometheus(gateway)])
    call.respond(200, text.encode(), (("cache-control", "no-store"),), kind=_PROMETHEUS)


def prometheus(gateway: Gateway) -> Iterator[str]:
    """Yield the lines of Prometheus' text exposition format 0.0.4."""
    stats = gateway.stats

    def single(name: str, kind: str, text: str, value: float) -> Iterator[str]:
        yield from _head(name, kind, text)
        yield f"windlass_{name} {value}"

    yield from _head("build_info", "gauge", "The version that runs.")
    yield f"windlass_build_info{_labels(version=__version__, instance=gateway.settings.instance_id)} 1"
    started = _decimal(stats.started, 9)
    yield from _head("start_time_seconds", "gauge", "When the process began, Unix time.")
    yield f"windlass_start_time_seconds {started}"
    yield from single("http_requests_total", "counter", "Requests that came in.", stats.total)
    yield from single("http_requests_active", "gauge", "Requests that are being answered.", stats.active)
    yield from _head("http_responses_total", "counter", "Requests that were answered: below 400, and others.")
    yield f"windlass_http_responses_total{_labels(result='ok')} {stats.successful}"
    yield f"windlass_http_responses_total{_labels(result='failed')} {stats.failed}"
    yield from _head("http_refused_total", "counter", "Requests that did not come in, by status.")
    for status, count in sorted(stats.refusals.items()):
        yield f"windlass_http_refused_total{_labels(status=str(status))} {count}"
    yield from single("records_waiting", "gauge", "Request records not yet written.", gateway.accounts.unwritten)
    yield from single("records_lost_total", "counter", "Request records dropped.", gateway.accounts.lost_records)
    for name, (text, count) in sorted(gateway.counters.items()):
        yield from single(name, "counter", text, count())
    rows = [(_labels(endpoint=key[0], target=key[1], status=str(key[2]), outcome=key[3]), row)
            for key, row in sorted(stats.series.items())]  # fmt: skip
    for name, text, attribute, places in _COUNTERS:
        yield from _head(name, "counter", text)
        for labels, row in rows:
            yield f"windlass_{name}{labels} {_decimal(getattr(row, attribute), places)}"
    name, text = "request_duration_seconds", "From the request's head to the end of the answer."
    yield from _histogram(name, text, [(labels, row.duration, row.own + row.waited) for labels, row in rows])
    name, text = "first_token_seconds", "From the request's head to the first content."
    yield from _histogram(name, text, [(labels, row.first, row.first_us) for labels, row in rows])
    yield from _head("target_healthy", "gauge", "Whether a target of the configuration may be asked.")
    for known in gateway.router.health():
        if stats.label(known.name) == known.name:
            yield f"windlass_target_healthy{_labels(target=known.name, state=known.state)} {int(known.healthy)}"


#: Name, text, attribute of `Series`, and how many decimals the whole numbers there have.
_COUNTERS = (
    ("requests_total", "Requests of models.", "count", 0),
    ("attempts_total", "Calls to targets.", "attempts", 0),
    ("input_tokens_total", "Tokens read, those from a cache included.", "input", 0),
    ("output_tokens_total", "Tokens written, those of reasoning included.", "output", 0),
    ("cache_read_tokens_total", "Tokens read from a provider's cache.", "cache_read", 0),
    ("cache_creation_tokens_total", "Tokens written to a provider's cache.", "cache_creation", 0),
    ("reasoning_tokens_total", "Tokens of reasoning.", "reasoning", 0),
    ("cost_dollars_total", "What the answers cost, where the price is known.", "cost", 9),
    ("unknown_cost_total", "Requests whose price is not known.", "unknown_cost", 0),
    ("own_seconds_total", "Time that was not spent waiting for a target.", "own", 6),
    ("upstream_seconds_total", "Time spent waiting for targets.", "waited", 6),
)


def _head(name: str, kind: str, text: str) -> Iterator[str]:
    yield f"# HELP windlass_{name} {text}"
    yield f"# TYPE windlass_{name} {kind}"


def _decimal(value: int, places: int) -> str:
    """Return a whole number of small units as a decimal, exactly."""
    if not places:
        return str(value)
    whole, rest = divmod(abs(value), 10**places)
    return f"{'-' if value < 0 else ''}{whole}.{rest:0{places}d}"


def _histogram(name: str, text: str, rows: list[tuple[str, list[int], int]]) -> Iterator[str]:
    yield from _head(name, "histogram", text)
    for labels, counts, micros in rows:
        total = 0
        for bound, count in zip((*BUCKETS, float("inf")), counts, strict=True):
            total += count
            limit = "+Inf" if bound == float("inf") else f"{bound:g}"
            yield f'windlass_{name}_bucket{labels[:-1]},le="{limit}"}} {total}'
        yield f"windlass_{name}_sum{labels} {_decimal(micros, 6)}"
        yield f"windlass_{name}_count{labels} {total}"


def _labels(**values: str) -> str:
    escaped = [
        f'{name}="{value.translate(_ESCAPES)}"'
        for name, value in values.items()
    ]  # fmt: skip
    return "{" + ",".join(escaped) + "}"


_ESCAPES = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})


async def clients(gateway: Gateway, call: Call) -> None:
    """Answer `GET /diagnostics/clients`: how many are answered, and to administrators who they are, of their tenant."""
    known = [
        {"address": client.address, "key": client.key, "requests": client.requests,
         "last_seen": clock.rfc3339(client.last_seen)}
        for client in gateway.stats.clients.values()
        if call.identity.role == "admin" and call.identity.tenant in ("", client.tenant)
    ]  # fmt: skip
    _tell(call, {"instance_id": gateway.settings.instance_id, "active_connections": gateway.stats.active,
                 "known_clients": known})  # fmt: skip


async def requests(gateway: Gateway, call: Call) -> None:
    """Answer `GET /diagnostics/requests`."""
    stats = gateway.stats
    _tell(call, {"instance_id": gateway.settings.instance_id, "total_requests": stats.total,
                 "successful_requests": stats.successful, "failed_requests": stats.failed})  # fmt: skip


async def providers(gateway: Gateway, call: Call) -> None:
    """Answer `GET /diagnostics/providers`: reference A's three, and the health of all targets for administrators."""
    config, told = gateway.config, call.identity.role == "admin"
    out: dict[str, Any] = {"default_provider": config.provider_name(str(config.get("provider")))}
    out["ollama"] = await _ollama(gateway, told)
    router = config.provider_settings("openrouter")
    out["openrouter"] = {
        "provider": "openrouter", "base_url": _base(gateway, "openrouter", told),
        "configured_api_key": bool(router.api_key),
        "default_model": router.model or _default(gateway, "openrouter"),
        "has_http_referer": "http_referer" in router.extra, "has_app_name": "app_name" in router.extra,
    }  # fmt: skip
    env = config.environ
    bedrock = config.provider_settings("bedrock")
    out["bedrock"] = {
        "provider": "bedrock", "runtime_base_url": _base(gateway, "bedrock", told),
        "region": env.get("AWS_REGION") or env.get("AWS_DEFAULT_REGION") or "us-east-1",
        "configured_credentials": bool(
            bedrock.api_key or (env.get("AWS_ACCESS_KEY_ID") and env.get("AWS_SECRET_ACCESS_KEY"))
        ),
        "has_session_token": bool(env.get("AWS_SESSION_TOKEN")),
        "default_model": bedrock.model or _default(gateway, "bedrock"),
    }  # fmt: skip
    body: dict[str, Any] = {"instance_id": gateway.settings.instance_id, "providers": out}
    if told:
        body["targets"] = [
            {"name": row.name, "state": row.state, "healthy": row.healthy, "latency": row.latency,
             "consecutive_failures": row.consecutive_failures, "last_error": row.last_error, "problem": row.problem}
            for row in gateway.router.health()
        ]  # fmt: skip
        body["unlisted"] = gateway.catalogue.problems
    _tell(call, body)


def _default(gateway: Gateway, name: str) -> str:
    return vendor_of(gateway.config.provider_settings(name)).default_model


def _base(gateway: Gateway, name: str, told: bool) -> str | None:
    """Return a provider's address for an administrator, without what it may hold of a user's name; else None."""
    if not told:
        return None
    url = urlsplit(vendor_of(gateway.config.provider_settings(name)).base_url)
    return url._replace(netloc=url.netloc.rpartition("@")[2], query="", fragment="").geturl()


async def _ollama(gateway: Gateway, told: bool) -> dict[str, Any]:
    """Ask the Ollama server which models it has, once in a few seconds whoever asks."""
    settings = gateway.config.provider_settings("ollama")
    wanted = settings.model or _default(gateway, "ollama")
    out: dict[str, Any] = {
        "provider": "ollama", "base_url": _base(gateway, "ollama", told), "reachable": False,
        "configured_model": wanted, "configured_model_available": False, "installed_model_count": 0,
        "suggested_model": None, "error": None,
    }  # fmt: skip
    probed = await gateway.ollama.ask(gateway.router)
    names, out["error"] = probed.names, probed.error
    if names is None:
        if told and probed.detail:
            # What a server says of itself may name more than a stranger should know.
            out["error"] = f"{probed.error}: {probed.detail}"
        return out
    out["reachable"], out["installed_model_count"] = True, len(names)
    out["configured_model_available"] = wanted in names or f"{wanted}:latest" in names
    if not out["configured_model_available"]:
        out["suggested_model"], out["error"] = pick_installed(wanted, names), "configured_model_not_found"
    return out


ENDPOINTS = (
    Endpoint("GET", "/health", health, "public", summary="Say that the process answers."),
    Endpoint("GET", "/ready", ready, "public", summary="Say whether requests can be served."),
    Endpoint("GET", "/metrics", metrics, summary="Counters, for Prometheus or as JSON."),
    Endpoint("GET", "/diagnostics/clients", clients, summary="Who uses this server."),
    Endpoint("GET", "/diagnostics/requests", requests, summary="How requests ended."),
    Endpoint("GET", "/diagnostics/providers", providers, "public", summary="How the providers do."),
)
