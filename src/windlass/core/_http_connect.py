"""From a name to a connected socket: address lookup in threads of our own, happy eyeballs, proxy tunnels."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import re
import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeAlias

from windlass.core._http_url import Proxy
from windlass.core.errors import ConnectError, ToolError
from windlass.core.threads import Pool

__all__ = ["Resolve", "Resolver", "TlsError", "open_socket", "open_tunnel", "tls_error"]

#: (host, port) -> addresses as text, the preferred one first.
Resolve: TypeAlias = Callable[[str, int], Awaitable[Sequence[str]]]

#: Seconds before the next address is tried beside a slow one (RFC 8305, 5).
ATTEMPT_DELAY = 0.25
_PROXY_HEAD = 16 * 1024
_STATUS = re.compile(rb"HTTP/1\.[01] ([0-9]{3})[ \r]")


class TlsError(ConnectError):
    """Report a failed TLS handshake or a certificate that does not prove the host; asking again would not help."""

    code = "tls"
    recovery = "none"


class Resolver:
    """Look names up with the system's getaddrinfo; callers who ask for the same name meanwhile share one lookup."""

    def __init__(self) -> None:
        # A pool of its own: a name must not wait behind tools that block.
        self._pool = Pool(size=8, abandoned=32)
        self._running: dict[tuple[str, int], asyncio.Future[list[str]]] = {}

    async def __call__(self, host: str, port: int) -> list[str]:
        """Return a host's addresses, families alternating (RFC 8305, 4); raises OSError (socket.gaierror)."""
        with contextlib.suppress(ValueError):
            return [str(ipaddress.ip_address(host))]
        key = (host, port)
        while (other := self._running.get(key)) is not None:
            await asyncio.wait([other])
            if not other.cancelled():
                return other.result()
        mine = self._running[key] = asyncio.get_running_loop().create_future()
        try:
            mine.set_result(await self._pool.run(_lookup, host, port))
        except OSError as error:
            mine.set_exception(error)
        except ToolError as error:
            mine.set_exception(OSError(f"too many lookups hang ({error})"))
        finally:
            del self._running[key]
            mine.cancel()  # a cancelled caller leaves the lookup to the next one
        return mine.result()


def _lookup(host: str, port: int) -> list[str]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
    if not addresses:
        return []
    first = [a for a in addresses if (":" in a) == (":" in addresses[0])]
    second = [a for a in addresses if a not in first]
    mixed: list[str] = []
    while first or second:
        mixed += first[:1] + second[:1]
        first, second = first[1:], second[1:]
    return mixed


async def open_socket(addresses: Sequence[str], port: int, *, delay: float = ATTEMPT_DELAY) -> socket.socket:
    """Connect to the first of the addresses that answers; raises OSError naming every address that failed.

    The next one is tried when one fails or after `delay` seconds (RFC 8305). No task or socket outlives the call.
    """
    if len(addresses) == 1:
        return await _dial(addresses[0], port)
    waiting = list(addresses)
    tasks: dict[asyncio.Task[socket.socket], str] = {}
    pending: set[asyncio.Task[socket.socket]] = set()
    failures: list[str] = []
    winner: socket.socket | None = None
    try:
        while (waiting or pending) and winner is None:
            if waiting:
                task = asyncio.create_task(_dial(waiting[0], port))
                tasks[task] = waiting.pop(0)
                pending.add(task)
            done, pending = await asyncio.wait(
                pending, timeout=delay if waiting else None, return_when=asyncio.FIRST_COMPLETED
            )
            for task in done:
                error = task.exception()
                if error is None:
                    winner = winner or task.result()
                else:
                    failures.append(f"{tasks[task]}: {error}")
    finally:
        for task in tasks:
            task.cancel()
            task.add_done_callback(lambda done: _close_loser(done, winner))
        if pending:
            await asyncio.wait(pending)
    if winner is None:
        raise OSError("; ".join(failures) or "no address")
    return winner


def _close_loser(task: asyncio.Task[socket.socket], winner: socket.socket | None) -> None:
    if not task.cancelled() and task.exception() is None and task.result() is not winner:
        task.result().close()


async def _dial(address: str, port: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # A model may think for minutes without a byte; probes keep NAT entries alive and find dead peers.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 15), ("TCP_KEEPCNT", 4)):
            if hasattr(socket, option):
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
        await asyncio.get_running_loop().sock_connect(sock, (address, port))
    except BaseException:
        sock.close()
        raise
    return sock


async def open_tunnel(sock: socket.socket, authority: str, proxy: Proxy) -> None:
    """Ask a proxy for a tunnel to `authority` (RFC 9110, 9.3.6); raises ConnectError when it refuses."""
    loop = asyncio.get_running_loop()
    auth = f"proxy-authorization: {proxy.authorization}\r\n" if proxy.authorization else ""
    await loop.sock_sendall(sock, f"CONNECT {authority} HTTP/1.1\r\nhost: {authority}\r\n{auth}\r\n".encode("latin-1"))
    head = bytearray()
    while b"\r\n\r\n" not in head:
        data = await loop.sock_recv(sock, 4096)
        head += data
        if not data or len(head) > _PROXY_HEAD:
            raise ConnectError(f"The proxy {proxy.host}:{proxy.port} gave no whole answer to CONNECT.", sent=False)
    status = _STATUS.match(head)
    if status is None or not status[1].startswith(b"2"):
        answer = bytes(head.split(b"\r\n", 1)[0][:80]).decode("latin-1")
        hint = "Check the user and password in the proxy URL." if status is not None and status[1] == b"407" else ""
        raise ConnectError(
            f"The proxy {proxy.host}:{proxy.port} refused the tunnel: {answer!r}.", hint=hint, sent=False
        )
    if not head.endswith(b"\r\n\r\n"):
        raise ConnectError(f"The proxy {proxy.host}:{proxy.port} sent bytes before the tunnel began.", sent=False)


def tls_error(error: Exception, where: str) -> TlsError:
    """Return the typed error for a failed handshake; there is no way back to plain http."""
    if isinstance(error, ssl.SSLCertVerificationError):
        text = f"The certificate of {where} is not accepted: {error.verify_message}."
        return TlsError(
            text, endpoint=where, sent=False, hint="Trust its issuer in the system store or pass ssl_context."
        )
    reason = getattr(error, "reason", None) or error
    return TlsError(f"The TLS handshake with {where} failed: {reason}.", endpoint=where, sent=False)
