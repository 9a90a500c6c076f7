"""Which models an Ollama server has: asked live for `/diagnostics/providers`, once in a few seconds whoever asks."""

from __future__ import annotations

import asyncio
from typing import Any

from msgspec import Struct

from windlass.core import clock
from windlass.core.errors import ProviderError, WindlassError, WireError
from windlass.providers.route import Router
from windlass.server.hiding import hidden

__all__ = ["OllamaProbe", "Probed"]

#: Seconds for which an answer is taken as it is.
_FRESH = 5.0


class Probed(Struct, frozen=True):
    """The names of the installed models, None where they are not known; then `error` says why, and `detail` more.

    `error` is reference A's word: the kind of failure, `HTTP 500`, invalid_tags_payload, missing_models_field,
    invalid_models_field.
    """

    names: list[str] | None
    error: str | None = None
    detail: str = ""


class OllamaProbe:
    """Ask the Ollama server of the configuration; one question at a time, however many want to know."""

    def __init__(self) -> None:
        self._asking = asyncio.Lock()
        self._known: tuple[float, Router, Probed] | None = None

    async def ask(self, router: Router) -> Probed:
        """Return what the server has. Never raises."""
        async with self._asking:
            now, known = clock.monotonic(), self._known
            if known is None or known[1] is not router or now - known[0] > _FRESH:
                known = self._known = (now, router, await _installed(router))
            return known[2]


async def _installed(router: Router) -> Probed:
    provider: Any = None
    try:
        provider = router.route("ollama").targets[0].provider
        listed: Any = await provider.get_json("/api/tags")
    except WireError:
        return Probed(None, "invalid_tags_payload")
    except ProviderError as error:
        if error.status:
            return Probed(None, f"HTTP {error.status}", hidden(error.message, provider))
        return Probed(None, type(error).__name__)
    except WindlassError as error:
        return Probed(None, type(error).__name__)
    if not isinstance(listed, dict):
        return Probed(None, "invalid_tags_payload")
    if "models" not in listed:
        return Probed(None, "missing_models_field")
    models = listed["models"]
    if not isinstance(models, list):
        return Probed(None, "invalid_models_field")
    return Probed([str(row["name"]) for row in models if isinstance(row, dict) and "name" in row])
