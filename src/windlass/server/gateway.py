"""The gateway: what a request needs besides its own bytes (settings, routes, accounts), and how it comes in."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable
from functools import cached_property
from typing import Any

from windlass.accounts.book import Accounts
from windlass.accounts.keys import Identity
from windlass.accounts.records import RequestRecord
from windlass.core import clock, registry
from windlass.core.config import Config
from windlass.core.errors import ProviderError, RequestRefused, WindlassError
from windlass.core.http import Timeouts
from windlass.core.models import cost_of
from windlass.core.usage import Usage
from windlass.providers.route import Router
from windlass.server.access import Door
from windlass.server.body import field_value
from windlass.server.cache import ResponseCache
from windlass.server.catalogue import Catalogue
from windlass.server.endpoints import Endpoint, Routes
from windlass.server.http import Call
from windlass.server.ingress import CHAT, Ingress
from windlass.server.job import Job
from windlass.server.probe import OllamaProbe
from windlass.server.refusals import switched_off
from windlass.server.sessions import Sessions
from windlass.server.settings import ServerSettings
from windlass.server.stats import Stats
from windlass.server.stored import StoredResponses

__all__ = ["Gateway"]

log = logging.getLogger("windlass.server")
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


class Gateway:
    """Admits requests and hands each to its endpoint. One per process; `replace` swaps what a reload changes."""

    def __init__(
        self,
        settings: ServerSettings,
        config: Config,
        router: Router,
        accounts: Accounts,
        endpoints: tuple[Endpoint, ...],
        *,
        admin_token: str = "",
    ) -> None:
        self.settings, self.config, self.router, self.accounts = settings, config, router, accounts
        self._endpoints = endpoints
        self.routes = Routes(endpoints, config.off)
        self.door = Door(settings, accounts, admin_token)
        self.stats = Stats(lambda name: name in self._own_names)
        self.admin_token = admin_token
        self.catalogue = Catalogue()
        self.ollama = OllamaProbe()
        self.stored = StoredResponses(accounts.tables)
        self.sessions = Sessions(config, settings)
        #: What is being answered now, by the call's identity as an object.
        self.running: dict[int, Call] = {}
        #: Called with every record, besides what counts and keeps it: must return at once, and never raise.
        self.watchers: list[Callable[[RequestRecord, Job], None]] = []
        #: How long a request of a model may take, as a stream or whole: what `express` remembers.
        self.limits: dict[tuple[str, bool], Timeouts] = {}
        self._cache = ResponseCache(accounts.tables)
        self.cache = self._cache if settings.cache_ttl > 0 else None
        #: Further counters of `/metrics`: name -> (text, what to ask).
        self.counters: dict[str, tuple[str, Callable[[], int]]] = {
            "cache_hits_total": ("Requests that were answered from the cache.", lambda: self._cache.hits),
            "cache_misses_total": ("Requests whose answer was looked for there.", lambda: self._cache.misses),
            "cache_failures_total": ("Times that the cache's database failed.", lambda: self._cache.failures),
        }
        accounts.on_revoked(self._revoked)

    def replace(self, settings: ServerSettings, config: Config, router: Router) -> Router:
        """Use other settings and routes from the next request on; returns the router that was used so far.

        Requests that are being answered go on with what they began with.
        """
        before, self.router = self.router, router
        self.limits.clear()
        self.settings, self.config = settings, config
        self.routes = Routes(self._endpoints, config.off)
        self.sessions.settings = settings
        self.door = Door(settings, self.accounts, self.admin_token)
        self.cache = self._cache if settings.cache_ttl > 0 else None
        self.__dict__.pop("_own_names", None)
        return before

    async def close(self) -> None:
        """Finish what goes on in the background."""
        await self.sessions.close()
        await self._cache.close()
        await self.catalogue.close()

    @cached_property
    def _own_names(self) -> frozenset[str]:
        """The providers that can be named, and the targets that stand in the configuration."""
        config = self.config
        names = {*registry.BUILTIN["providers"], *config.user_providers}
        for route in (*config.routes, config.default_model):
            try:
                names.update([target.name for target in self.router.route(route).targets])
            except WindlassError as error:
                log.debug("route %s cannot be asked: %s", route, error)
        return frozenset(names)

    def _revoked(self, key_id: str) -> None:
        """End what a key that is no longer valid has running."""
        for call in list(self.running.values()):
            if call.identity is not None and call.identity.key_id == key_id and call.task is not None:
                call.ending = RequestRefused(401, "The key was revoked.", kind="auth_error", reason="key_revoked")
                call.task.cancel("the key was revoked")

    # -- the edge (protocol.App) -----------------------------------------------------------------------------------

    def admit(self, call: Call) -> int:
        """Look at a head before its body is read; returns how many bytes of body are welcome. Raises RequestRefused."""
        asked = call.head.headers.get("x-request-id")
        call.id = asked if asked and _REQUEST_ID.fullmatch(asked) else clock.new_id()
        memo = call.head.memo
        if memo and memo[0] is self.door and memo[1] == self.accounts.version:
            call.endpoint, call.identity, call.params = memo[2:]
        else:
            endpoint = call.endpoint = self.routes.find(call)
            identity = call.identity = self.door.check(call, endpoint)
            if endpoint.feature in self.config.off:
                raise switched_off(endpoint.feature)
            if identity.expires is None:
                memo[:] = (self.door, self.accounts.version, endpoint, identity, call.params)
        return self.settings.max_body_bytes if call.endpoint.body else 0

    def express(self, call: Call, ended: Callable[[Any], None]) -> Any:
        """Begin to answer a request without a task, where that can be; `ended` is called at its end."""
        begin = call.endpoint.straight
        return None if begin is None else begin(self, call, ended)

    async def serve(self, call: Call, handle: Callable[[Any, Call], Awaitable[None]] | None = None) -> None:
        """Answer an admitted request; with `handle`, go on with one that entered already."""
        if handle is None:
            self.stats.entered(call)
        if call.task is None:
            call.task = asyncio.current_task()
        self.running[id(call)] = call
        try:
            await (handle or call.endpoint.handle)(self, call)
        except WindlassError as error:
            if not call.started:
                self.answer_error(call, error, call.endpoint.ingress)
            else:
                call.cut()
        except Exception:
            log.exception("request %s failed", call.id)
            if not call.started:
                self.answer_error(call, WindlassError("An internal error; the log tells more."), call.endpoint.ingress)
            else:
                call.cut()
        finally:
            del self.running[id(call)]
            self.stats.left(call)

    def refusal(self, call: Call | None, error: RequestRefused) -> tuple[int, list[tuple[str, str]], bytes]:
        """Return the answer to a request that did not come in."""
        ingress: Ingress = call.endpoint.ingress if call is not None and call.endpoint is not None else CHAT
        self.stats.refused(error.status)
        status, body = ingress.dialect.encode_error(error)
        headers = [("content-type", "application/json"), *_error_headers(error), *ingress.error_headers(error)]
        if call is not None:
            headers += call.extra_headers
            if call.id:
                headers.append(("x-request-id", call.id))
        if status == 401:
            headers.append(("www-authenticate", "Bearer"))
        return status, headers, body

    def answer_error(self, call: Call, error: BaseException, ingress: Ingress, job: Job | None = None) -> None:
        """Send an error in the client's own shape."""
        told = error if isinstance(error, WindlassError) else WindlassError("An internal error; the log tells more.")
        status, body = ingress.dialect.encode_error(told)
        headers = list(job.headers()) if job is not None else [("x-request-id", call.id)]
        headers += _error_headers(told, spent=job is not None and job.attempts is not None and job.attempts.exhausted)
        headers += ingress.error_headers(told)
        call.respond(status, body, headers)

    # -- what jobs ask ---------------------------------------------------------------------------------------------

    def check_model(self, identity: Identity, model: str) -> None:
        """Raise RequestRefused 403 when a key may not use a model or route."""
        if not identity.allows(model):
            raise RequestRefused(403, f"This key may not use {model[:200]}.", kind="permission_error",
                                 reason="model_not_allowed", param="model")  # fmt: skip

    async def reserve(self, job: Job) -> Any:
        """Reserve what a request may use, where its key or tenant has limits. Raises RequestRefused 429."""
        identity = job.call.identity
        if not self.accounts.limited(identity):
            return None
        tokens, cost = self._estimate(job)
        reservation = self.accounts.reserve(identity, tokens, cost)
        if reservation is None:
            reservation = await self.accounts.areserve(identity, tokens, cost)
        return reservation

    def reserve_now(self, job: Job) -> Any:
        """Reserve without waiting; None where there is no limit, False where the database must be asked."""
        tokens, cost = self._estimate(job)
        reservation = self.accounts.reserve(job.call.identity, tokens, cost)
        if reservation is None:
            return False
        return reservation if reservation.parts else None

    def _estimate(self, job: Job) -> tuple[int, int]:
        read = (len(job.call.body) + job.history) // 4 if job.ingress.reads else 0
        wrote = (job.asked_tokens() or self.settings.default_output_tokens) if job.ingress.writes else 0
        if "n" in job.fields:
            wrote *= field_value(job.fields, "n") or 1
        most = 0
        for target in job.route.targets:
            if target.prices.input is not None and (cost := cost_of(Usage(read, wrote), target.prices)):
                most = max(most, cost)
        return read + wrote, most

    def finished(self, record: RequestRecord, job: Job, reservation: Any, tokens: int, cost: int | None) -> None:
        """Settle and write down a request that is over."""
        if reservation is not None:
            if record.outcome == "cached":
                self.accounts.settle(reservation, 0, 0)
            elif record.outcome in ("refused", "error") and not tokens:
                self.accounts.release(reservation)
            else:
                self.accounts.settle(reservation, tokens, cost)
        self.accounts.record(record)
        self.stats.observe(record)
        for watch in self.watchers:
            watch(record, job)


def _error_headers(error: WindlassError, *, spent: bool = False) -> list[tuple[str, str]]:
    """Return the headers that SDKs read: when to ask again, and whether at all."""
    out: list[tuple[str, str]] = []
    wait: float | None = getattr(error, "retry_after", None)
    if wait is not None:
        out.append(("retry-after", str(max(1, round(wait)))))
        if wait < 1:
            out.append(("retry-after-ms", str(round(wait * 1000))))
    if isinstance(error, RequestRefused):
        out.append(("x-should-retry", "true" if error.retry else "false"))
    elif isinstance(error, ProviderError):
        # We have asked again ourselves: a client that does so too multiplies every failure.
        out.append(("x-should-retry", "true" if error.retryable and wait is not None and not spent else "false"))
    return out
