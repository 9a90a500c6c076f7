"""Run a gateway: open what it needs, listen, reload, drain, close."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import sys
from collections.abc import Awaitable, Callable

from msgspec.structs import replace

from windlass.core.errors import ConfigError, WindlassError
from windlass.server.protocol import App, Limits, Listener

__all__ = ["listen", "serve"]

log = logging.getLogger("windlass.server")
#: Files that the process needs besides those of its connections.
_OTHER_FILES = 256

if sys.platform == "win32":

    def _room(connections: int) -> int:
        return connections
else:
    import resource

    def _room(connections: int) -> int:
        """Return how many connections there are files for, each with one to a provider, asking for as many as allowed.

        Without a file left nothing can be accepted, and no provider be asked for the clients that are here.
        """
        wanted = 2 * connections + _OTHER_FILES
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if resource.RLIM_INFINITY != soft < wanted:
            soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        return connections if soft in (wanted, resource.RLIM_INFINITY) else min(connections, (soft - _OTHER_FILES) // 2)


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket. Raises ConfigError when the address cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # With its protocol named, or asyncio leaves TCP_NODELAY off.
    sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
        sock.listen(2048)
    except OSError as error:
        sock.close()
        text = f"Cannot listen on {host}:{port}: {error.strerror or error}."
        raise ConfigError(text, hint="Is another server running there? --port chooses another port.") from error
    sock.setblocking(False)
    return sock


async def serve(
    app: App,
    sock: socket.socket,
    *,
    limits: Limits | None = None,
    drain_seconds: float = 30.0,
    ready: Callable[[], None] | None = None,
    reload: Callable[[Listener], Awaitable[None]] | None = None,
    watch: Callable[[], bool] | None = None,
    stop: asyncio.Event | None = None,
) -> int:
    """Answer on a listening socket until SIGTERM or SIGINT (or `stop`), then drain.

    Returns how many requests had to be broken off. A second signal ends the draining at once. SIGHUP calls `reload`;
    so does every second in which `watch` says that something changed.
    """
    loop = asyncio.get_running_loop()
    stop = stop or asyncio.Event()
    again = asyncio.Event()

    def asked() -> None:
        if stop.is_set():
            again.set()
        stop.set()

    limits = limits or Limits()
    if (room := _room(limits.connections)) < limits.connections:
        log.warning("only %d connections are taken: the system allows this process too few open files", room)
    listener = Listener(app, replace(limits, connections=max(1, room)))
    reloads: set[asyncio.Task[None]] = set()

    def reload_now() -> None:
        assert reload is not None
        task = loop.create_task(_reloaded(reload(listener)))
        reloads.add(task)
        task.add_done_callback(reloads.discard)

    def look() -> None:
        nonlocal looking
        if watch is not None and watch():
            reload_now()
        looking = loop.call_later(1.0, look)

    looking = loop.call_later(1.0, look)
    server = await loop.create_server(listener, sock=sock, backlog=2048)
    handled = [signal.SIGTERM, signal.SIGINT]
    for number in handled:
        loop.add_signal_handler(number, asked)
    if reload is not None and hasattr(signal, "SIGHUP"):
        loop.add_signal_handler(signal.SIGHUP, reload_now)
        handled.append(signal.SIGHUP)
    try:
        if ready is not None:
            ready()
        await stop.wait()
        server.close()
        log.info("draining")
        drained = loop.create_task(listener.drain(drain_seconds))
        hurry = loop.create_task(again.wait())
        await asyncio.wait([drained, hurry], return_when=asyncio.FIRST_COMPLETED)
        if not drained.done():
            listener.hurry()
        hurry.cancel()
        return await drained
    finally:
        looking.cancel()
        for task in reloads:
            task.cancel()
        for number in handled:
            loop.remove_signal_handler(number)
        server.close()


async def _reloaded(work: Awaitable[None]) -> None:
    try:
        await work
    except WindlassError as error:
        log.error("the configuration was not reloaded, the old one stays: %s", error)
