"""The one door to the network: an HTTP/1.1 client for asyncio, framed by llhttp.

    async with Client() as client:
        response = await client.request("POST", url, headers={"content-type": "application/json"}, body=b"{}")
        async with client.stream("POST", url, body=b"{}") as response:
            async for piece in response: ...

It follows no redirects, decodes no charset and raises only the TransportError kinds of `windlass.core.errors`: a status
of 500 is an answer like any other. HTTP semantics are RFC 9110, framing RFC 9112.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import ssl
from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus
from math import inf
from types import TracebackType
from typing import Self

from windlass.core import clock
from windlass.core._http_connect import Resolve, Resolver, TlsError, open_socket, open_tunnel, tls_error
from windlass.core._http_connection import Connection, Host, HostKey
from windlass.core._http_exchange import Exchange, IdleOn, Timeouts
from windlass.core._http_head import HeaderInput, Headers, encode_head
from windlass.core._http_response import Response, Streaming, StreamResponse
from windlass.core._http_url import Proxy, ProxyRules, Url, endpoint, parse_url
from windlass.core.errors import ConfigError, ConnectError, ProtocolError, TransportError, TransportTimeout
from windlass.core.threads import run_in_thread

__all__ = [
    "REASONS",
    "Client",
    "Exchange",
    "HeaderInput",
    "Headers",
    "IdleOn",
    "Response",
    "StreamResponse",
    "Streaming",
    "Timeouts",
    "TlsError",
    "Url",
    "default_context",
    "endpoint",
    "parse_url",
]

#: The phrases of RFC 9110 by status.
REASONS = {status.value: status.phrase for status in HTTPStatus}
MAX_BODY = 64 * 1024 * 1024
MAX_HEADERS = 64 * 1024
#: A larger request is sent as the server takes it, which takes a task.
_AT_ONCE = 1024 * 1024


class Client:
    """Keeps connections and lends them to exchanges. It belongs to the event loop that first uses it.

    Seconds: `connect_timeout` (lookup, TCP, proxy, TLS), `first_byte_timeout` (until the head of the answer),
    `idle_timeout` (between bytes of the body), `total_timeout`, `pool_timeout` (for a free connection),
    `keepalive_seconds`; None is no limit. `min_rate`: see Timeouts. Connections are limited per scheme, host, port and
    pinned address; who waits is served first come, first served. `max_body_bytes` caps the decoded body.

    `proxies` has the keys http, https, all and no, `{}` for none; None reads HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and
    NO_PROXY from `env` (os.environ) once. `resolve(host, port)` replaces the system's address lookup. `ssl_context`
    replaces the default, which trusts the system's store. Raises ConfigError for a malformed proxy.
    """

    def __init__(
        self,
        *,
        connect_timeout: float | None = 5.0,
        first_byte_timeout: float | None = 60.0,
        idle_timeout: float | None = 60.0,
        total_timeout: float | None = None,
        pool_timeout: float | None = 30.0,
        min_rate: float = 0.0,
        max_per_host: int = 100,
        max_idle_per_host: int = 100,
        keepalive_seconds: float = 30.0,
        max_header_bytes: int = MAX_HEADERS,
        max_body_bytes: int = MAX_BODY,
        ssl_context: ssl.SSLContext | None = None,
        proxies: Mapping[str, str] | None = None,
        env: Mapping[str, str] | None = None,
        resolve: Resolve | None = None,
    ) -> None:
        self.timeouts = Timeouts(
            connect_timeout, first_byte_timeout, idle_timeout, total_timeout, pool_timeout, min_rate
        )
        self._max_per_host, self._max_idle, self._keepalive = max_per_host, max_idle_per_host, keepalive_seconds
        self._max_header, self._max_body = max_header_bytes, max_body_bytes
        self._context = ssl_context
        rules = ProxyRules.from_env(os.environ if env is None else env) if proxies is None else ProxyRules(proxies)
        self._proxies = rules
        self._resolve = resolve or Resolver()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False
        self._hosts: dict[HostKey, Host] = {}
        self._connections: set[Connection] = set()
        self._urls: dict[str, tuple[Url, Proxy | None]] = {}
        self._heads: dict[tuple[object, ...], bytes] = {}
        self._starts: dict[str, tuple[dict[str, str], bytes]] = {}

    async def __aenter__(self) -> Self:
        self._running_loop()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close every connection and wait until the sockets are gone; exchanges in progress fail. May be repeated."""
        self._closed = True
        for host in list(self._hosts.values()):
            for waiter in host.waiters:
                if not waiter.done():
                    waiter.set_exception(_closed_error())
            host.waiters.clear()
        connections = list(self._connections)
        for connection in connections:
            connection.abort(_closed_error())
        if connections:
            await asyncio.wait([connection.lost for connection in connections])

    async def request(
        self,
        method: str,
        url: str,
        *,
        headers: HeaderInput = (),
        body: bytes | Sequence[bytes] = b"",
        timeouts: Timeouts | None = None,
        max_body_bytes: int | None = None,
        pin: str | None = None,
    ) -> Response:
        """Send a request and return the whole answer, of whatever status.

        `body` may be several pieces, sent as one; `timeouts` and `max_body_bytes` replace the client's; `pin` is the
        address to connect to instead of looking the host up, Host and TLS name staying the URL's. A kept-alive
        connection that turns out to be dead before any byte of an answer is replaced once.

        Raises ConnectError (TlsError), TransportTimeout, ProtocolError and BodyTooLarge; their `sent` is False when
        nothing of the request can have been acted on. Cancelling closes the socket at once.
        """
        exchange = await self._open(method, url, headers, body, timeouts, max_body_bytes, pin, "bytes")
        try:
            data = await exchange.read()
        except BaseException as error:
            if exchange.source is not None:
                exchange.abort(_given_up(exchange.endpoint, error))
            raise
        assert exchange.headers is not None
        return Response(exchange.status, exchange.headers, data, exchange.close_delimited)

    def stream(
        self,
        method: str,
        url: str,
        *,
        headers: HeaderInput = (),
        body: bytes | Sequence[bytes] = b"",
        timeouts: Timeouts | None = None,
        max_body_bytes: int | None = None,
        pin: str | None = None,
        idle_on: IdleOn = "bytes",
    ) -> Streaming:
        """Return an async context manager that sends the request and gives a StreamResponse once its head is here.

        Arguments and errors are those of `request`. With `idle_on="progress"` only `mark_progress` resets the idle
        clock, which counts the time spent waiting for the server, not the reader's own. Leaving the context before
        the end of the body closes the connection at once.
        """
        return Streaming(lambda: self._open(method, url, headers, body, timeouts, max_body_bytes, pin, idle_on))

    def send_now(
        self,
        url: str,
        *,
        headers: Mapping[str, str],
        body: bytes,
        timeouts: Timeouts,
        listener: Callable[[Exchange], Callable[[], None]],
    ) -> Exchange | None:
        """POST over a connection that is idle now; None, with nothing done, where there is none or much to send.

        `listener` makes the function that is called at every change of the exchange, without any task: `status` and
        `headers` once the head is here, `take()` for the body, `done`, `error`. Whoever listens says with `expect` how
        long it may take, decodes nothing, and gives the request up with `abort`.
        """
        found = self._urls.get(url)
        if found is None or self._closed or len(body) > _AT_ONCE:
            return None
        where, proxy = found
        known = self._starts.get(url)
        if known is None or known[0] != headers:
            # The same headers for every request, most of the time; a renewed token changes them in their place.
            if len(self._starts) >= 256:
                self._starts.clear()
            head = self._head("POST", where, headers, 1, proxy, None)
            known = self._starts[url] = (dict(headers), head.removesuffix(b"content-length: 1\r\n\r\n"))
        host = self._hosts.get((where.scheme, where.host, where.port, ""))
        if host is None or not host.idle or not host.take():
            return None
        connection = host.pop()
        if connection is None:
            host.release(None)
            return None
        loop = self._loop
        assert loop is not None
        total_at = inf if timeouts.total is None else loop.time() + timeouts.total
        exchange = Exchange(
            loop, where.endpoint, timeouts, total_at=total_at, max_body=self._max_body, idle_on="progress",
            without_body=False,
        )  # fmt: skip
        exchange.reused = True
        exchange.listener = listener(exchange)
        connection.begin(exchange)
        connection.send_whole(b"%bcontent-length: %d\r\n\r\n" % (known[1], len(body)), body)
        exchange.expect(timeouts.first_byte, "first_byte")
        return exchange

    async def resolve(self, host: str, port: int) -> list[str]:
        """Return a host's addresses, for a caller who checks one and then pins it; raises ConnectError."""
        try:
            return list(await self._resolve(host, port))
        except OSError as error:
            text = f"The name {host} cannot be resolved: {error.strerror or error}."
            raise ConnectError(text, endpoint=host, sent=False) from error

    async def _open(
        self,
        method: str,
        url: str,
        headers: HeaderInput,
        body: bytes | Sequence[bytes],
        timeouts: Timeouts | None,
        max_body: int | None,
        pin: str | None,
        idle_on: IdleOn,
    ) -> Exchange:
        loop = self._running_loop()
        limits = timeouts or self.timeouts
        where, proxy = self._urls.get(url) or self._parse(url)
        if pin is not None:
            pin = _address(pin, where)
        pieces = (body,) if isinstance(body, bytes) else body
        # Once, before anything is opened: `headers` may be an iterator, and a bad header must leave nothing behind.
        head = self._head(method, where, headers, sum(map(len, pieces)), proxy, pin)
        total_at = inf if limits.total is None else loop.time() + limits.total
        fresh = False
        while True:
            if self._closed:
                raise _closed_error()
            host = self._host(where, proxy, pin)
            exchange = Exchange(
                loop,
                where.endpoint,
                limits,
                total_at=total_at,
                max_body=self._max_body if max_body is None else max_body,
                idle_on=idle_on,
                without_body=method == "HEAD",
            )
            taken = host.take()
            connection = host.pop() if taken and not fresh else None
            if connection is None:
                connection = await self._lend(host, where, exchange, limits, total_at, fresh, taken=taken)
            else:
                exchange.reused = True
            try:
                connection.begin(exchange)
                if not connection.send_at_once(head, pieces):
                    await connection.send(head, pieces)
                await exchange.head()
            except BaseException as error:
                if exchange.source is not None:
                    exchange.abort(_given_up(where.endpoint, error))
                if isinstance(error, ProtocolError) and exchange.reused and not exchange.started:
                    fresh = True
                    error.__traceback__ = None  # its frames hold the exchange, which holds it
                    continue
                raise
            return exchange

    async def _lend(
        self, host: Host, url: Url, exchange: Exchange, limits: Timeouts, total_at: float, fresh: bool, *, taken: bool
    ) -> Connection:
        """Return a connection where none is idle: one that another request gives back, or a new one."""
        connection = None
        if not taken:
            seconds, phase = _budget(limits.pool, "pool", total_at)
            connection = await host.queue(seconds, phase, url.endpoint, first=fresh)
            if connection is not None and fresh:
                connection.abort()
                connection = None
        if connection is not None:
            exchange.reused = True
            return connection
        seconds, phase = _budget(limits.connect, "connect", total_at)
        try:
            # Before the deadline: reading the trust store is our own slowness, once per client.
            context = await self._tls() if url.scheme == "https" else None
            async with clock.deadline(seconds):
                return await self._connect(host, url, context)
        except BaseException as error:
            host.release(None)
            if isinstance(error, TimeoutError):
                text = f"No connection to {url.endpoint} within {seconds:g} s."
                raise TransportTimeout(text, phase=phase, endpoint=url.endpoint, sent=False) from None
            raise

    async def _connect(self, host: Host, url: Url, context: ssl.SSLContext | None) -> Connection:
        loop, proxy, pin = asyncio.get_running_loop(), host.proxy, host.key[3]
        name, port = (proxy.host, proxy.port) if proxy is not None else (pin or url.host, url.port)
        addresses = [pin] if pin and proxy is None else await self.resolve(name, port)
        try:
            sock = await open_socket(addresses, port)
        except OSError as error:
            via = "the proxy " if proxy is not None else ""
            text = f"Cannot connect to {via}{name}:{port}: {error}."
            raise ConnectError(text, endpoint=url.endpoint, sent=False) from error
        try:
            if proxy is not None and _tunnels(url, pin):
                address = f"[{pin}]" if ":" in pin else pin or url.authority.removesuffix(f":{url.port}")
                await open_tunnel(sock, f"{address}:{url.port}", proxy)
            _, connection = await loop.create_connection(
                lambda: Connection(loop, host, self._connections, max_head=self._max_header),
                sock=sock,
                ssl=context,
                server_hostname=url.host.rstrip(".") if context is not None else None,
            )
        except BaseException as error:
            sock.close()
            if isinstance(error, ssl.SSLError):
                raise tls_error(error, url.endpoint) from error
            if isinstance(error, OSError):
                text = f"The connection to {url.endpoint} broke off while it was set up: {error}."
                raise ConnectError(text, endpoint=url.endpoint, sent=False) from error
            raise
        if self._closed:
            connection.abort()
            raise _closed_error()
        return connection

    async def _tls(self) -> ssl.SSLContext:
        if self._context is None:
            # Reading the system's store takes tens of milliseconds, which the loop is spared.
            context = await run_in_thread(default_context)
            self._context = self._context or context
        return self._context

    def _head(
        self, method: str, url: Url, headers: HeaderInput, size: int, proxy: Proxy | None, pin: str | None
    ) -> bytes:
        """Return the bytes of a head; that of a request with a body is checked and kept but for its length."""
        if not size:
            return _head(method, url, headers, size, proxy, pin)
        pairs = tuple(headers.items() if type(headers) is dict or isinstance(headers, Mapping) else headers)
        key = (method, url.scheme, url.authority, url.target, pairs, pin)
        start = self._heads.get(key)
        if start is None:
            if len(self._heads) >= 256:
                self._heads.clear()
            whole = _head(method, url, pairs, 1, proxy, pin)
            start = self._heads[key] = whole.removesuffix(b"content-length: 1\r\n\r\n")
        return b"%bcontent-length: %d\r\n\r\n" % (start, size)

    def _host(self, url: Url, proxy: Proxy | None, pin: str | None) -> Host:
        key = (url.scheme, url.host, url.port, pin or "")
        host = self._hosts.get(key)
        if host is None:
            host = self._hosts[key] = Host(
                key,
                self._hosts,
                proxy=proxy,
                limit=self._max_per_host,
                max_idle=self._max_idle,
                keepalive=self._keepalive,
            )
        return host

    def _parse(self, url: str) -> tuple[Url, Proxy | None]:
        if len(self._urls) >= 256:
            self._urls.clear()
        where = parse_url(url)
        found = self._urls[url] = (where, self._proxies.find(where))
        return found

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        loop = asyncio.get_running_loop()
        if self._loop is not None and self._loop is not loop:
            raise ConfigError("This HTTP client belongs to another event loop.", hint="Make one client per loop.")
        self._loop = loop
        return loop


def _address(pin: str, url: Url) -> str:
    try:
        return str(ipaddress.ip_address(pin))
    except ValueError:
        raise ConnectError(f"The pin {pin!r} is not an IP address.", endpoint=url.endpoint, sent=False) from None


def _head(method: str, url: Url, headers: HeaderInput, size: int, proxy: Proxy | None, pin: str | None) -> bytes:
    if proxy is None or _tunnels(url, pin):
        return encode_head(method, url, headers, size, target=url.target)
    auth = f"proxy-authorization: {proxy.authorization}\r\n" if proxy.authorization else ""
    return encode_head(method, url, headers, size, target=f"http://{url.authority}{url.target}", extra=auth)


def _tunnels(url: Url, pin: str | None) -> bool:
    # A proxy resolves the name of an absolute-form request itself; only a tunnel goes to exactly the pinned address.
    return url.scheme == "https" or bool(pin)


def _budget(seconds: float | None, phase: str, total_at: float) -> tuple[float | None, str]:
    if total_at == inf:
        return seconds, phase
    left = max(0.0, total_at - asyncio.get_running_loop().time())
    return (left, "total") if seconds is None or left < seconds else (seconds, phase)


def default_context() -> ssl.SSLContext:
    """Read the system's trust store, which takes tens of milliseconds, and return what TLS connections use."""
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    return context


def _closed_error() -> TransportError:
    return TransportError("The HTTP client is closed.", sent=False)


def _given_up(where: str, error: BaseException) -> TransportError:
    return error if isinstance(error, TransportError) else TransportError("The exchange was given up.", endpoint=where)
