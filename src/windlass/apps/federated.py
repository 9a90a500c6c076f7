"""Listen for the nodes of a federated training: the coordinator's service on the server's own HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from windlass.core import clock
from windlass.core.errors import RequestRefused
from windlass.server.http import Call
from windlass.server.protocol import Limits
from windlass.server.serve import listen, serve
from windlass.training import federated
from windlass.training.federated.errors import FederatedError, MalformedMessage, OversizedMessage

__all__ = ["PORT", "FederatedApp", "serve_federated"]

#: Where a coordinator listens unless told otherwise.
PORT = 8090


class FederatedApp:
    """The `App` of a coordinator: heads are looked at before a body is read, so that a large one is never kept."""

    def __init__(self, service: federated.Service) -> None:
        self.service = service

    def admit(self, call: Call) -> int:
        """Return how many bytes of body are welcome. Raises RequestRefused for a place where nothing is."""
        limit = self.service.limit(call.head.method, _target(call))
        if limit is None:
            raise RequestRefused(404, f"There is nothing at {call.head.path[:100]}.", reason="not_found")
        return limit

    def express(self, call: Call, ended: Callable[[Any], None]) -> None:  # noqa: ARG002
        """Answer nothing without a task."""
        return

    async def serve(self, call: Call) -> None:
        """Answer a request."""
        answer = await self.service.handle(call.head.method, _target(call), call.head.headers, call.body)
        kind = "application/json" if answer.body[:1] == b"{" else "application/octet-stream"
        call.respond(answer.status, answer.body, answer.headers, kind=kind)

    def refusal(self, call: Call | None, error: RequestRefused) -> tuple[int, list[tuple[str, str]], bytes]:  # noqa: ARG002
        """Return the answer to a request that did not come in, in the shape of all others."""
        told: FederatedError = (OversizedMessage if error.status == 413 else MalformedMessage)(error.message)
        answer = self.service.refuse(told)
        return error.status, [("content-type", "application/json"), *answer.headers], answer.body


def _target(call: Call) -> str:
    return f"{call.head.path}?{call.head.query}" if call.head.query else call.head.path


async def serve_federated(
    service: federated.Service,
    host: str = "127.0.0.1",
    port: int = PORT,
    *,
    linger_seconds: float = 2.0,
    ready: Callable[[str], None] | None = None,
) -> None:
    """Serve until the last round is over and the nodes had `linger_seconds` to fetch it, or until SIGTERM or SIGINT.

    `ready` is called with the address once nodes can connect. Port 0 takes a free one. Raises ConfigError for an
    address that cannot be had.
    """
    sock = listen(host, port)
    stop = asyncio.Event()

    async def finish() -> None:
        await service.finished.wait()
        await clock.sleep(linger_seconds)
        stop.set()

    await service.resume()
    finishing = asyncio.create_task(finish())
    shown = f"[{host}]" if ":" in host else host
    try:
        await serve(
            FederatedApp(service),
            sock,
            limits=Limits(idle_seconds=30.0),
            drain_seconds=10.0,
            ready=lambda: ready(f"http://{shown}:{sock.getsockname()[1]}") if ready is not None else None,
            stop=stop,
        )
    finally:
        finishing.cancel()
        await service.close()
