"""Ollama: the variables of its users, and another installed model where the one asked for is not."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any

from msgspec.structs import replace

from windlass.core.errors import ConfigError, ModelNotFoundError, ProviderError
from windlass.core.items import Item, NoticeItem
from windlass.core.ports import Embeddings
from windlass.core.request import Request
from windlass.providers.remote import RemoteProvider

__all__ = ["OllamaProvider", "pick_installed"]

_FALSE = ("", "0", "false", "no")


def normal_host(url: str) -> str:
    """Return a base URL for what people put into OLLAMA_HOST: a host, host:port, or an address to listen on.

    >>> normal_host("0.0.0.0"), normal_host("box:1234"), normal_host("https://o.example/x/")
    ('http://127.0.0.1:11434', 'http://box:1234', 'https://o.example/x')
    """
    url = url.strip().rstrip("/")
    scheme, separator, rest = url.partition("://")
    if not separator:
        scheme, rest = "http", url
        if ":" not in rest.rsplit("]", 1)[-1]:
            rest += ":11434"
    if rest.startswith("0.0.0.0"):  # noqa: S104 - the address it listens on, as its own variable says it
        rest = "127.0.0.1" + rest[7:]
    return f"{scheme}://{rest}"


def pick_installed(asked: str, installed: list[str]) -> str | None:
    """Return the installed model that stands in for `asked`: the same family (before the colon), else the first."""
    family = asked.split(":", 1)[0]
    return next((name for name in installed if name.split(":", 1)[0] == family), installed[0] if installed else None)


class OllamaProvider(RemoteProvider):
    """Ask an Ollama server; a model that is not installed is replaced by one that is, with a warning."""

    def __init__(self, name: str, dialect: Any, base_url: str, path: str, **options: Any) -> None:
        super().__init__(name, dialect, normal_host(base_url), path, **options)
        own = self.own_settings
        self._defaults: dict[str, Any] = {}
        try:
            for field in ("temperature", "repeat_penalty"):
                if field in own:
                    self._defaults[field] = float(own[field])
            #: A's OLLAMA_NUM_PREDICT counts only where it is set and the caller names no limit.
            self.default_max_tokens = int(own["num_predict"]) if "num_predict" in own else None
        except ValueError as error:
            raise ConfigError(f"An OLLAMA_ variable is not a number: {error}.") from None
        if "think" in own and own["think"].strip().lower() not in _FALSE:
            self._defaults["thinking"] = "medium"

    async def stream(self, request: Request) -> AsyncIterator[Item]:
        """Yield the items of the answer, after a notice where another model gives it."""
        unset = {k: v for k, v in self._defaults.items() if getattr(request.settings, k) is None}
        if unset:
            request = replace(request, settings=replace(request.settings, **unset))
        try:
            async with aclosing(super().stream(request)) as items:  # pyright: ignore[reportArgumentType]
                async for item in items:
                    yield item
            return
        except ModelNotFoundError as error:
            other = await self._substitute(request.model, error)
        text = f"Ollama has no model {request.model!r}; {other!r} answers instead."
        yield NoticeItem("substituted", text, self.name, other)
        async with aclosing(super().stream(replace(request, model=other))) as items:  # pyright: ignore[reportArgumentType]
            async for item in items:
                yield item

    async def _substitute(self, asked: str, error: ModelNotFoundError) -> str:
        try:
            other = pick_installed(asked, await self.models())
        except ProviderError:
            raise error from None
        if other is None or other == asked:
            error.hint = f"Install it: ollama pull {asked}"
            raise error
        return other

    async def embed(self, texts: Sequence[str], model: str, *, dimensions: int | None = None) -> Embeddings:
        """Return the vectors of texts, in their order; no other model stands in, as its vectors would mean nothing."""
        try:
            return await super().embed(texts, model, dimensions=dimensions)
        except ModelNotFoundError as error:
            error.hint = f"Install it: ollama pull {model}"
            raise

    async def models(self) -> list[str]:
        """Return the installed models in the server's order. Raises ProviderError kinds."""
        listed = await self.get_json("/api/tags")
        rows = listed.get("models", []) if isinstance(listed, dict) else []
        return [str(row["name"]) for row in rows if isinstance(row, dict) and "name" in row]
