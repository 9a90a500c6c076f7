"""The SDK's HTTP client over our own door to the network: its deadlines, caps, proxies and trust store hold here."""

from __future__ import annotations

import ipaddress
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from windlass.core.errors import ProtocolError, TransportError, TransportTimeout
from windlass.core.http import Client, Streaming, StreamResponse, Timeouts, Url, parse_url

__all__ = ["http_client", "is_loopback", "must_be_safe"]

#: Bytes of one answer; an event stream has no end, its events are bounded by the SDK.
MAX_BODY = 16 << 20
MAX_EVENT = 8 << 20
#: Headers that core/http sets itself, and codings that it has undone.
_OURS = frozenset({"host", "content-length", "transfer-encoding", "connection", "accept-encoding"})
_UNDONE = frozenset({b"content-encoding", b"content-length", b"transfer-encoding"})


def is_loopback(host: str) -> bool:
    """Tell whether a host is this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def must_be_safe(url: str, *, server: str = "") -> Url:
    """Return a URL that a server named (to log in): https, or loopback http where the server itself is local.

    Raises ProtocolError for any other: `javascript:`, plain http, a local address named by a remote server.
    """
    parsed = parse_url(url)
    local = not server or is_loopback(parse_url(server).host)
    if is_loopback(parsed.host) and not local:
        raise ProtocolError(f"A remote MCP server named the local address {parsed.endpoint}.", sent=False)
    if parsed.scheme == "https" or is_loopback(parsed.host):
        return parsed
    raise ProtocolError(f"{parsed.endpoint} is not https.", endpoint=parsed.endpoint, sent=False)


def http_client(
    url: str,
    headers: Mapping[str, str],
    timeout: float,
    auth: Any = None,
    on_status: Callable[[int], None] = lambda _: None,
) -> Any:
    """Return an httpx2.AsyncClient for a server at `url` whose exchanges go through `core.http.Client`.

    `on_status` hears the status of every answer. Requests to another origin than `url` (logging in) must be safe ones,
    and do not carry `headers`.
    """
    import httpx2

    door = Client(connect_timeout=min(timeout, 10.0), first_byte_timeout=timeout, idle_timeout=None)
    home = parse_url(url)

    class Body(httpx2.AsyncByteStream):
        def __init__(self, opening: Streaming, response: StreamResponse) -> None:
            self._opening, self._response = opening, response

        async def __aiter__(self) -> AsyncIterator[bytes]:
            pieces = self._response.chunks()
            while True:
                try:
                    piece = await anext(pieces)
                except StopAsyncIteration:
                    return
                except TransportError as error:
                    raise httpx2.ReadError(str(error)) from error
                yield piece

        async def aclose(self) -> None:
            await self._opening.__aexit__(None, None, None)

    class Door(httpx2.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
            target = str(request.url)
            own = _origin(parse_url(target)) == _origin(home)
            if not own:
                must_be_safe(target, server=url)
            sent = {**{name.lower(): value for name, value in headers.items()}} if own else {}
            sent.update({name: value for name, value in request.headers.items() if name not in _OURS})
            events = request.method == "GET" and "event-stream" in sent.get("accept", "")
            opening = door.stream(
                request.method, target, headers=sent, body=await request.aread(),
                timeouts=Timeouts(door.timeouts.connect, timeout, None, None, timeout),
                max_body_bytes=1 << 40 if events else MAX_BODY,
            )  # fmt: skip
            try:
                response = await opening.__aenter__()
            except TransportTimeout as error:
                raise httpx2.ReadTimeout(str(error)) from error
            except TransportError as error:
                raise httpx2.ConnectError(str(error)) from error
            on_status(response.status)
            pairs = [(name, value) for name, value in response.headers.raw if name not in _UNDONE]
            return httpx2.Response(response.status, headers=pairs, stream=Body(opening, response), request=request)

        async def aclose(self) -> None:
            await door.aclose()

    return httpx2.AsyncClient(
        transport=Door(),
        auth=auth,
        timeout=httpx2.Timeout(timeout),
        trust_env=False,
        headers={"user-agent": "windlass"},
    )


def _origin(url: Url) -> tuple[str, str, int]:
    return url.scheme, url.host, url.port
