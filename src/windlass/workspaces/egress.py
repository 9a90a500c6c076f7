"""Let a confined command reach the hosts on a list, and nothing else: a forwarding proxy of our own.

The commands of a workspace share a network namespace that has a loopback device only. A small process holds it open
and hands us a socket that listens at 127.0.0.1:3128 in there; what connects is answered here: CONNECT, and plain HTTP
requests with an absolute URL (RFC 9110, sections 9.3.6 and 7.6). Names are resolved here, once, and the connection goes
to the very address that was checked.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import re
import socket
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from msgspec import Struct

from windlass.core import clock
from windlass.core.addresses import address_refused, name_refused
from windlass.core.errors import WorkspaceError
from windlass.core.text import visible

__all__ = ["PROXY_PORT", "Decision", "Egress", "Rule", "parse_rule"]

_log = logging.getLogger(__name__)

#: Where the proxy listens, in the namespace's own loopback.
PROXY_PORT = 3128
_HEAD_BYTES, _HEAD_SECONDS, _CONNECT_SECONDS = 16 * 1024, 10.0, 10.0
_CHUNK = 1 << 16
_MOST_CONNECTIONS, _MOST_DECISIONS, _MOST_ADDRESSES = 256, 1000, 4
_START_SECONDS = 15.0

_HOLDER = f"""
import os, socket, sys
ours = socket.socket(fileno=int(sys.argv[1]))
door = socket.socket()
door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
door.bind(("127.0.0.1", {PROXY_PORT}))
door.listen(128)
socket.send_fds(ours, [str(os.getpid()).encode()], [door.fileno()])
door.close()
ours.recv(1)
"""

_NAME = re.compile(r"(\*\.)?([a-z0-9_]([a-z0-9_-]*[a-z0-9_])?\.)*[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?", re.ASCII)
_LINE = re.compile(rb"([A-Z]{1,20}) ([\x21-\x7e]{1,8192}) HTTP/1\.[01]")
_URL = re.compile(r"http://([^/?#@\\]+)(/[^#]*|\?[^#]*)?", re.ASCII)
_HOP = frozenset((b"connection", b"keep-alive", b"te", b"upgrade", b"host"))
Resolve = Callable[[str, int], Awaitable[list[str]]]


class Rule(Struct, frozen=True):
    """An entry of the list: `host` is a name, `*.name` for what lies below it, or an address; no `port` is 80, 443."""

    host: str
    port: int | None = None

    def allows(self, host: str, port: int) -> bool:
        """Say whether the entry names this host and port."""
        if port not in ((80, 443) if self.port is None else (self.port,)):
            return False
        return host.endswith(self.host[1:]) if self.host.startswith("*.") else host == self.host


class Decision(Struct, frozen=True):
    """What was asked of the proxy: `refused` says why not, "" when it was let through to `address`."""

    time: int
    host: str
    port: int
    address: str = ""
    refused: str = ""


def parse_rule(text: str) -> Rule:
    """Read `host`, `host:port`, `*.example.com:443`, `10.0.0.5:8080` or `[::1]:80`. Raises WorkspaceError."""
    host, port = _host_port(text.strip().lower(), None)
    if not host or port == 0 or not (_NAME.fullmatch(host) or _literal(host)):
        raise WorkspaceError(f"{visible(text)!r} cannot be on the list of hosts.", hint='Write "example.com:443".')
    return Rule(host, port)


async def _resolve(host: str, port: int) -> list[str]:
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(each[4][0]) for each in found))


class Egress:
    """The proxy of one workspace, on a thread and an event loop of its own: workspaces outlive loops.

    `rules` are texts for `parse_rule`. `bwrap` and `nsenter` are programs. `resolve(host, port)` gives addresses, the
    system's by default. `decisions` holds the last 1000, oldest first. Raises WorkspaceError for a bad rule.
    """

    def __init__(self, rules: Sequence[str], *, bwrap: str, nsenter: str, resolve: Resolve = _resolve) -> None:
        self._rules = tuple(parse_rule(each) for each in rules)
        self._bwrap, self._nsenter, self._resolve = bwrap, nsenter, resolve
        self.decisions: deque[Decision] = deque(maxlen=_MOST_DECISIONS)
        #: How many were refused since the start.
        self.refusals = 0
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._ready = threading.Event()
        self._stop: Callable[[], None] = lambda: None
        self._open = 0
        self._failure: BaseException | None = None
        self._pid = 0

    @property
    def environment(self) -> dict[str, str]:
        """The variables by which programs find the proxy."""
        here = f"http://127.0.0.1:{PROXY_PORT}"
        names = {name: here for each in ("http_proxy", "https_proxy", "all_proxy") for name in (each, each.upper())}
        local = "localhost,127.0.0.1,::1"
        return names | {"no_proxy": local, "NO_PROXY": local, "NODE_USE_ENV_PROXY": "1"}

    def start(self) -> list[str]:
        """Start what is not running and return the words that put a command into the namespace.

        Blocks for some ten milliseconds the first time. Raises WorkspaceError when it cannot be made.
        """
        with self._lock:
            if self._thread is None or not self._thread.is_alive():
                self._ready.clear()
                self._failure = None
                self._thread = threading.Thread(target=self._run, name="windlass-egress", daemon=True)
                self._thread.start()
                self._ready.wait(_START_SECONDS)
            if self._failure is not None or not self._pid:
                raise WorkspaceError(
                    f"The network of the sandbox could not be made: {self._failure or 'it took too long'}.",
                    hint='network="none" needs none.',
                ) from self._failure
        spaces = [f"--user=/proc/{self._pid}/ns/user", f"--net=/proc/{self._pid}/ns/net"]
        return [self._nsenter, "--preserve-credentials", *spaces, "--"]

    def close(self) -> None:
        """End the proxy, its connections and the namespace's holder."""
        with self._lock:
            if self._thread is not None:
                self._stop()
                self._thread.join(5.0)
                self._thread = None

    def refused(self, since: int) -> list[str]:
        """Return sentences on what was refused after the first `since` refusals, each once, the last ten."""
        told = [each for each in self.decisions if each.refused]
        new = told[len(told) - min(self.refusals - since, len(told)) :]
        return list(dict.fromkeys(f"refused {_target(each)}: {each.refused}" for each in new))[-10:]

    # --- the thread

    def _run(self) -> None:
        try:
            asyncio.run(self._main())
        except Exception as error:  # the caller of start is told
            self._failure = error
        finally:
            self._pid = 0
            self._ready.set()

    async def _main(self) -> None:
        loop, stop = asyncio.get_running_loop(), asyncio.Event()

        def end() -> None:
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(stop.set)

        self._stop = end
        ours, theirs = socket.socketpair()
        with ours:
            holder = self._hold(theirs)
            try:
                ours.settimeout(_START_SECONDS)
                said, fds, _, _ = socket.recv_fds(ours, 32, 1)
                if not fds:
                    error = holder.communicate(timeout=5)[1].decode("utf-8", "replace").strip()
                    raise OSError(error or "its holder did not start")
                server = await asyncio.start_server(self._serve, sock=socket.socket(fileno=fds[0]), limit=_HEAD_BYTES)
                async with server:
                    self._pid = int(said)
                    self._ready.set()
                    await stop.wait()
            finally:
                ours.close()
                holder.kill()
                holder.communicate()

    def _hold(self, theirs: socket.socket) -> subprocess.Popen[bytes]:
        with theirs:
            fd = theirs.fileno()
            spaces = ["--unshare-user", "--unshare-net", "--die-with-parent", "--cap-drop", "ALL"]
            return subprocess.Popen(
                [
                    self._bwrap,
                    *spaces,
                    "--dev-bind",
                    "/",
                    "/",
                    "--",
                    sys.executable,
                    "-I",
                    "-S",
                    "-c",
                    _HOLDER,
                    str(fd),
                ],
                pass_fds=(fd,),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                env={},
            )

    # --- one connection

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open += 1
        try:
            if self._open > _MOST_CONNECTIONS:
                await _answer(writer, 503, "too many connections")
            else:
                await self._handle(reader, writer)
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
            _log.debug("a connection of the sandbox ended: %s", error)
        finally:
            self._open -= 1
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with clock.deadline(_HEAD_SECONDS):
            head = await reader.readuntil(b"\r\n\r\n")
        asked = _parse(head)
        if asked is None:
            await _answer(writer, 400, "this is a proxy: use CONNECT, or a request with an http:// URL")
            return
        host, port, onward = asked
        why, address = await self._decide(host, port)
        if why:
            await _answer(writer, 403, f"{_target(Decision(0, host, port))} refused: {why}")
            return
        try:
            async with clock.deadline(_CONNECT_SECONDS):
                up_reader, up_writer = await asyncio.open_connection(address, port)
        except (OSError, TimeoutError) as error:
            await _answer(writer, 502, f"{host}:{port} cannot be reached: {error or 'it took too long'}")
            return
        try:
            if onward is None:
                writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            else:
                up_writer.write(onward)
            await _relay((reader, up_writer), (up_reader, writer))
        finally:
            up_writer.close()
            with contextlib.suppress(OSError):
                await up_writer.wait_closed()

    async def _decide(self, host: str, port: int) -> tuple[str, str]:
        """Return why not, or the address to connect to; either is kept and logged."""
        why, address = name_refused(host), ""
        if not any(rule.allows(host, port) for rule in self._rules):
            why = "it is not on the list of allowed hosts"
        elif not why:
            try:
                async with clock.deadline(_CONNECT_SECONDS):
                    found = [str(_literal(host))] if _literal(host) else await self._resolve(host, port)
            except (OSError, UnicodeError, TimeoutError) as error:
                why, found = f"its name cannot be resolved ({error or 'too slow'})", []
            reasons = [self._why_not(each, host, port) for each in found]
            why = why or next(filter(None, reasons), "" if found else "it has no address")
            address = "" if why else found[0]
        decision = Decision(clock.now_ns(), host, port, address, why)
        self.decisions.append(decision)
        self.refusals += bool(why)
        _log.info("sandbox: %s %s %s", _target(decision), "refused:" if why else "allowed, at", why or address)
        return why, address

    def _why_not(self, address: str, host: str, port: int) -> str:
        """Say why not to connect there: what is not public must be on the list itself; `localhost` names itself."""
        why = address_refused(address)
        if not why or "metadata" in why:
            return why
        local = host == "localhost" and ipaddress.ip_address(address).is_loopback
        return "" if local or any(rule.allows(address, port) for rule in self._rules) else why


def _parse(head: bytes) -> tuple[str, int, bytes | None] | None:
    """Return host, port and the head to send on (None for CONNECT); None for what is no request to a proxy."""
    line, *fields = head[:-4].split(b"\r\n")
    match = _LINE.fullmatch(line)
    if match is None or b"\n" in line + b"".join(fields) or b"\0" in head:
        return None
    method, target = match[1], match[2].decode("ascii")
    url = None if method == b"CONNECT" else _URL.fullmatch(target)
    if method != b"CONNECT" and url is None:
        return None
    host, port = _host_port((url[1] if url else target).lower(), 80 if url else None)
    if not host or not port or not (_literal(host) or (_NAME.fullmatch(host) and not host.startswith("*"))):
        return None
    if url is None:
        return host, port, None
    path = url[2] or "/"
    kept = [
        each for each in fields if (name := each.split(b":", 1)[0].strip().lower()) not in _HOP and b"proxy" not in name
    ]
    path = path if path.startswith("/") else f"/{path}"
    lines = [method + b" " + path.encode() + b" HTTP/1.1", b"Host: " + url[1].encode(), *kept, b"Connection: close"]
    return host, port, b"\r\n".join(lines) + b"\r\n\r\n"


def _host_port(text: str, default: int | None) -> tuple[str, int | None]:
    """Return host without brackets and final dot, and port; 0 for a port that is none."""
    bracketed = re.fullmatch(r"\[([0-9a-f:.]+)\](?::([0-9]{1,5}))?", text)
    plain = re.fullmatch(r"([^:\[\]]+)(?::([0-9]{1,5}))?", text)
    match = bracketed or plain
    if match is None:
        return "", 0
    port = default if match[2] is None else int(match[2])
    return match[1].removesuffix("."), port if port is None or 0 < port < 65536 else 0


def _literal(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _target(decision: Decision) -> str:
    return f"[{decision.host}]:{decision.port}" if ":" in decision.host else f"{decision.host}:{decision.port}"


async def _answer(writer: asyncio.StreamWriter, status: int, text: str) -> None:
    words = {400: "Bad Request", 403: "Forbidden", 502: "Bad Gateway", 503: "Service Unavailable"}[status]
    body = f"windlass sandbox: {text}\n".encode()
    head = f"HTTP/1.1 {status} {words}\r\nContent-Type: text/plain\r\nContent-Length: {len(body)}\r\n"
    writer.write(f"{head}Connection: close\r\n\r\n".encode() + body)
    async with clock.deadline(_HEAD_SECONDS):
        await writer.drain()


async def _relay(*ways: tuple[asyncio.StreamReader, asyncio.StreamWriter]) -> None:
    """Carry bytes both ways until both ends have finished, or one has failed."""

    async def carry(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        while data := await source.read(_CHUNK):
            sink.write(data)
            await sink.drain()
        if sink.can_write_eof():
            sink.write_eof()

    tasks: list[asyncio.Task[Any]] = [asyncio.create_task(carry(*way)) for way in ways]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
