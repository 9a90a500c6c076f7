"""The door of the web tools: one request, whose every hop is checked, pinned to the address checked, and bounded."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from msgspec import Struct

from windlass.core import clock
from windlass.core.addresses import address_refused, name_refused
from windlass.core.errors import BodyTooLarge, ConnectError, TransportError, TransportTimeout
from windlass.core.http import REASONS, Client, Headers, StreamResponse, Timeouts, TlsError, default_context
from windlass.core.threads import run_in_thread
from windlass.tools.access import Refusal
from windlass.tools.web_address import (
    Domains,
    Target,
    read_url,
    redirect_target,
    same_origin,
)

__all__ = ["MAX_BYTES", "MAX_REDIRECTS", "Door", "Fetched"]

MAX_REDIRECTS = 5
MAX_BYTES = 10 * 1024 * 1024
_MOST_ADDRESSES = 4
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
#: What is still sent when a redirect leads to another origin: nothing that could be a credential.
_HARMLESS = frozenset({"accept", "accept-language", "content-type", "user-agent"})
_ABOUT_BODY = frozenset({"content-type", "content-encoding", "content-language"})


class Fetched(Struct, frozen=True):
    """An answer: `url` is where it came from in the end, `at` the UTC nanoseconds when its head arrived.

    `redirects` holds the addresses that led there. `told` says why a redirect was not followed, "" where none was left.
    """

    url: str
    status: int
    headers: Headers
    body: bytes
    at: int
    redirects: tuple[str, ...] = ()
    told: str = ""

    @property
    def kind(self) -> str:
        """The media type without parameters, in lower case; "" where there is none."""
        return str(self.headers.get("content-type", "")).partition(";")[0].strip().lower()

    @property
    def line(self) -> str:
        """The status with its name: `404 Not Found`."""
        return f"{self.status} {REASONS.get(self.status, '')}".rstrip()


class Door:
    """Asks for URLs on behalf of a model.

    Only http and https, never from https back to http; hosts on the lists (`allowed_domains`, `blocked_domains`), at
    public addresses. `allow_private` adds this machine and private networks; link-local addresses and the metadata
    services of clouds are never asked. Proxies come from `env` (os.environ: the user's own) alone, and are told the
    checked address. `resolve(host, port)` and `ssl_context` replace the system's. Raises ConfigError for a bad list.
    """

    def __init__(
        self,
        *,
        allow_private: bool = False,
        allowed_domains: Iterable[str] = (),
        blocked_domains: Iterable[str] = (),
        max_redirects: int = MAX_REDIRECTS,
        max_bytes: int = MAX_BYTES,
        env: Mapping[str, str] | None = None,
        resolve: Callable[[str, int], Any] | None = None,
        ssl_context: Any = None,
    ) -> None:
        self.domains = Domains(allowed_domains, blocked_domains)
        self.allow_private, self.max_redirects, self.max_bytes = allow_private, max_redirects, max_bytes
        self._env, self._resolve, self._context = env, resolve, ssl_context

    async def fetch(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
        seconds: float = 30.0,
    ) -> Fetched:
        """Ask for a URL and return the whole answer, of whatever status; at most `seconds` in all.

        Redirects are followed as RFC 9110 15.4 says; one that would send a body to another origin is not. On another
        origin only harmless headers are sent on. Raises Refusal, which says why, for everything that goes wrong.
        """
        target = read_url(url)
        try:
            async with clock.deadline(seconds):
                return await self._follow(method, target, dict(headers or {}), body, seconds)
        except TimeoutError:
            raise Refusal(f"{target.url.endpoint}: no whole answer within {seconds:g} s.") from None

    async def _follow(
        self, method: str, target: Target, headers: dict[str, str], body: bytes, seconds: float
    ) -> Fetched:
        passed: list[str] = []
        while True:
            found = await self._once(method, target, headers, body, seconds, tuple(passed))
            location = found.headers.get("location")
            if found.status not in _REDIRECTS or location is None or not self.max_redirects:
                return found
            there = redirect_target(target, location)
            if len(passed) >= self.max_redirects:
                raise Refusal(f"{passed[0]} redirects more than {self.max_redirects} times.")
            kept = found.status in (307, 308) or method in _SAFE
            if kept and method not in _SAFE and not same_origin(target, there):
                told = f"not followed: it would send the {method} request to another origin, {there.url.endpoint}"
                return Fetched(found.url, found.status, found.headers, b"", found.at, found.redirects, told)
            if not kept:
                method, body = "GET", b""
                headers = {name: value for name, value in headers.items() if name.lower() not in _ABOUT_BODY}
            if not same_origin(target, there):
                headers = {name: value for name, value in headers.items() if name.lower() in _HARMLESS}
            passed.append(target.text)
            target = there

    async def _once(
        self, method: str, target: Target, headers: dict[str, str], body: bytes, seconds: float, passed: tuple[str, ...]
    ) -> Fetched:
        where = target.url.endpoint
        if why := name_refused(target.host) or self.domains.refused(target.host):
            raise Refusal(f"{where} is not asked: {why}.")
        context = await self._tls() if target.url.scheme == "https" else None
        limits = Timeouts(min(5.0, seconds), seconds, min(20.0, seconds), seconds, seconds)
        try:
            async with Client(env=self._env, resolve=self._resolve, ssl_context=context, max_per_host=1) as client:
                for left in reversed(range(len(pins := await self._checked(client, target)))):
                    opening = client.stream(
                        method, target.text, headers=headers, body=body, pin=pins[-1 - left], timeouts=limits,
                        max_body_bytes=self.max_bytes,
                    )  # fmt: skip
                    try:
                        async with opening as answer:
                            at = clock.now_ns()
                            onward = answer.status in _REDIRECTS and "location" in answer.headers
                            data = b"" if onward else await self._body(answer, method, where)
                            return Fetched(target.text, answer.status, answer.headers, data, at, passed)
                    except (ConnectError, TransportTimeout) as error:
                        # Nothing was sent, and the name has another address: this machine may have no IPv6.
                        if error.sent or not left or isinstance(error, TlsError):
                            raise
        except BodyTooLarge:
            raise self._too_large(where) from None
        except TransportTimeout as error:
            raise Refusal(f"{where}: no whole answer in time ({error.phase}).") from None
        except TransportError as error:
            raise Refusal(f"{where} could not be fetched: {error.message}") from error
        raise Refusal(f"{where} is not asked: its name has no address.")

    async def _checked(self, client: Client, target: Target) -> list[str]:
        """Return the addresses to connect to. One name, one lookup; a name with any refused address is refused."""
        addresses = await client.resolve(target.url.host, target.url.port)
        for address in addresses:
            if why := address_refused(address, allow_private=self.allow_private):
                raise Refusal(f"{target.url.endpoint} is not asked: {why}.")
        return addresses[:_MOST_ADDRESSES]

    async def _body(self, answer: StreamResponse, method: str, where: str) -> bytes:
        stated = str(answer.headers.get("content-length", ""))
        if method != "HEAD" and stated.isdigit() and int(stated[:18]) > self.max_bytes:
            raise self._too_large(where)
        return await answer.read()

    def _too_large(self, where: str) -> Refusal:
        return Refusal(f"{where}: the answer is larger than {self.max_bytes} bytes; nothing of it was kept.")

    async def _tls(self) -> Any:
        if self._context is None:
            self._context = await run_in_thread(default_context)
        return self._context
