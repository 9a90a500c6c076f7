"""Models that fail as told, on a real socket: `fault:cut?tokens=5` is a model of this provider.

The catalogue is `windlass.testing.catalogue`; `fault:ok` answers rightly. Each fault has a server of its own on
127.0.0.1, started when it is first asked, in the event loop that asks.
"""

from __future__ import annotations

import asyncio
import weakref

from windlass.core.config import Config
from windlass.core.errors import ProviderConnectionError
from windlass.core.models import Capabilities
from windlass.core.ports import Provider
from windlass.providers.remote import RemoteProvider, join_url
from windlass.providers.retry import Retrying
from windlass.testing.catalogue import FAULTS, OK, CatalogueServer
from windlass.wire.openai_chat import DIALECT

__all__ = ["FaultProvider", "make"]

_PATH = "/v1/chat/completions"
_EVERYTHING = Capabilities(image_in_tool_result=True, reasoning="effort", prefill=True)


class FaultProvider(RemoteProvider):
    """Ask servers that fail as the model's id says, over OpenAI's chat dialect; the prompt never leaves the machine.

    A model is a name of the catalogue with its parameters. What `500-once`, `flapping` and `429-retry-after` remember
    is kept by model, so that `fault:500-once?id=a` and `?id=b` fail once each. Every capability is claimed, prefill
    too, also where the fault is that it is refused. Seconds: the timeouts. `close` ends the servers of the running
    event loop. Raises ProviderError kinds only.
    """

    def __init__(
        self, *, request_timeout: float = 600.0, idle_timeout: float = 120.0, connect_timeout: float = 10.0
    ) -> None:
        super().__init__(
            "fault",
            DIALECT,
            "http://127.0.0.1",
            _PATH,
            default_model=OK.name,
            capabilities=_EVERYTHING,
            request_timeout=request_timeout,
            idle_timeout=idle_timeout,
            connect_timeout=connect_timeout,
            environ={},  # a proxy could not reach this machine
        )
        self._servers: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, CatalogueServer]] = (
            weakref.WeakKeyDictionary()
        )

    def address(self, model: str, *, stream: bool = True) -> str:
        """Return the URL of the server for this model in the running event loop, started if it is not there.

        Raises ProviderConnectionError where no port is to be had.
        """
        del stream  # both come from one path
        name = model.partition("?")[0]
        # One server for all names that are none: it answers 404, as a vendor does.
        name = name if name == OK.name or name in FAULTS else ""
        servers = self._servers.setdefault(asyncio.get_running_loop(), {})
        server = servers.get(name)
        if server is None:
            server = CatalogueServer()
            try:
                server.listen()
            except OSError as error:
                text = f"{self.name}: no port for a server on 127.0.0.1: {error.strerror or error}."
                raise ProviderConnectionError(text, provider=self.name, model=model) from error
            servers[name] = server
        # Where errors say it happened.
        self.base_url, self.url = server.url, join_url(server.url, _PATH)
        return self.url

    async def models(self) -> list[str]:
        """Return the catalogue's names, `ok` first."""
        return [OK.name, *FAULTS]

    async def close(self) -> None:
        """Close the connections and servers of the running event loop; a later request starts new ones."""
        await super().close()
        for server in self._servers.pop(asyncio.get_running_loop(), {}).values():
            await server.close()


def make(name: str, config: Config) -> Provider:
    """Make the provider of `fault:` models, which retries as every vendor's does."""
    provider = FaultProvider(
        request_timeout=float(config.provider_settings(name).table.get("timeout", config.get("request_timeout"))),
        idle_timeout=config.get("idle_timeout"),
        connect_timeout=config.get("connect_timeout"),
    )
    return Retrying(provider, max_wait=config.get("max_wait"))
