"""The gateway as an ASGI application, to mount it in another server: `uvicorn windlass.server.asgi:app`.

`windlass serve` listens by itself: then the limits of the edge hold (`protocol.py`). Here the outer server reads the
bytes, so framing, slow clients and connection limits are its own; the size of bodies is still bounded here.
ASGI 3.0, asgi.readthedocs.io.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import AsyncExitStack
from typing import Any

from windlass.core import clock
from windlass.core.config_files import load_config
from windlass.core.errors import RequestRefused
from windlass.server.gateway import Gateway
from windlass.server.http import Call, Head, HeaderPairs
from windlass.server.settings import read_settings
from windlass.server.start import open_gateway

__all__ = ["Application", "app"]

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class AsgiCall(Call):
    """A call whose answer goes out as ASGI messages; what is written waits until the outer server takes it."""

    send: Any = None
    queue: Any = None

    def respond(self, status: int, body: bytes, headers: HeaderPairs = (), *, kind: str = "application/json") -> None:
        """Send a whole answer."""
        self.start(status, [*headers, ("content-length", str(len(body)))], kind=kind)
        self.write(body, last=True)

    def start(self, status: int, headers: HeaderPairs = (), *, kind: str) -> None:
        """Begin an answer."""
        self.status, self.started = status, True
        pairs = [("content-type", kind), *headers, *self.extra_headers]
        raw = [(name.encode("latin-1"), value.encode("latin-1", "replace")) for name, value in pairs]
        self.queue.put_nowait({"type": "http.response.start", "status": status, "headers": raw})

    def write(self, data: bytes, *, last: bool = False) -> Awaitable[None] | None:
        """Send a piece."""
        self.sent += len(data)
        self.queue.put_nowait({"type": "http.response.body", "body": data, "more_body": not last})
        if last:
            self.queue.put_nowait(None)
        return self.queue.join() if self.queue.qsize() > 16 else None

    def finish(self) -> None:
        """End an answer."""
        self.write(b"", last=True)

    def cut(self) -> None:
        """End without the last message: the outer server then breaks the connection."""
        self.queue.put_nowait(None)


class Application:
    """An ASGI application around a gateway; without one it opens the user's own when the outer server starts."""

    def __init__(self, gateway: Gateway | None = None) -> None:
        self._gateway = gateway
        self._stack = AsyncExitStack()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or the outer server's lifespan."""
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        elif scope["type"] == "http":
            await self._serve(scope, receive, send)
        else:
            raise RequestRefused(400, f"There is no {scope['type']} here.")

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                if self._gateway is None:
                    config = load_config()
                    settings = read_settings(config.server, environ=config.environ)
                    self._gateway = await open_gateway(config, settings, self._stack)
                await send({"type": "lifespan.startup.complete"})
            else:
                await self._stack.aclose()
                await send({"type": "lifespan.shutdown.complete"})
                return

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert self._gateway is not None
        gateway = self._gateway
        call = AsgiCall(_head(scope), _peer(scope), clock.monotonic(), queue=asyncio.Queue[Any]())
        try:
            limit = gateway.admit(call)
            call.body = await _body(receive, limit)
        except RequestRefused as error:
            status, headers, body = gateway.refusal(call, error)
            raw = [(name.encode(), value.encode("latin-1", "replace")) for name, value in headers]
            await send({"type": "http.response.start", "status": status, "headers": raw})
            await send({"type": "http.response.body", "body": body})
            return
        serving = asyncio.ensure_future(gateway.serve(call))
        leaving = asyncio.ensure_future(_left(receive))
        sending = asyncio.ensure_future(_send_all(call.queue, send))
        try:
            await asyncio.wait({serving, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if not serving.done():
                serving.cancel("the client left")
            await asyncio.wait({serving})
            call.queue.put_nowait(None)
            await sending
        finally:
            for task in (serving, leaving, sending):
                task.cancel()
            await asyncio.wait({serving, leaving, sending})


def _head(scope: Scope) -> Head:
    headers: dict[str, str] = {}
    for name, value in scope["headers"]:
        key, text = name.decode("latin-1").lower(), value.decode("latin-1")
        headers[key] = f"{headers[key]}, {text}" if key in headers else text
    path = scope.get("raw_path") or scope["path"].encode()
    query = scope.get("query_string", b"").decode("latin-1")
    return Head(scope["method"], path.decode("latin-1").partition("?")[0], query, headers, None, True, False)


def _peer(scope: Scope) -> str:
    client = scope.get("client")
    return str(client[0]) if client else "unix"


async def _body(receive: Receive, limit: int) -> bytes:
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise RequestRefused(400, "The client left.", reason="incomplete_body")
        body += message.get("body", b"")
        if len(body) > limit:
            raise RequestRefused(413, f"The request's body is larger than {limit} bytes.", reason="request_too_large")
        if not message.get("more_body"):
            return bytes(body)


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _send_all(queue: asyncio.Queue[Any], send: Send) -> None:
    while (message := await queue.get()) is not None:
        await send(message)
        queue.task_done()


#: What `uvicorn windlass.server.asgi:app` serves: the user's own configuration.
app = Application()
