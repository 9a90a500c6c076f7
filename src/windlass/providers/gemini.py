"""Gemini: its models by generation, its own list of them, and Vertex AI's addresses."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import quote, urlsplit

from msgspec.structs import replace

from windlass.core.models import Capabilities
from windlass.providers.remote import RemoteProvider
from windlass.wire.gemini import generation

__all__ = ["GeminiProvider"]

_VERSION = "/v1beta"
#: A base URL that names its version: ".../v1", ".../v1beta1/projects/P/locations/L/publishers/google".
_VERSIONED = re.compile(r"/v\d+(?:(?:alpha|beta)\d*)?(?:/|$)")
#: Models that make pictures or sound, and embeddings: they refuse `thinkingConfig`.
_NO_THOUGHT = re.compile(r"-(?:image|tts|live|native-audio|embedding)|^gemma|^embedding")
#: As many as the list gives at once, and pages of it that are read.
_PAGE, _PAGES = 1000, 20


class GeminiProvider(RemoteProvider):
    """Ask the Generative Language API, or Vertex AI where the base URL leads there (up to `/publishers/google`).

    Model ids are taken with and without "models/". Raises ProviderError kinds only.
    """

    def __init__(self, name: str, dialect: Any, base_url: str, path: str, *, whole_path: str = "", **options: Any):
        if _VERSIONED.search(urlsplit(base_url).path):
            path, whole_path = path.removeprefix(_VERSION), whole_path.removeprefix(_VERSION)
            self._list = "/models"
        else:
            self._list = f"{_VERSION}/models"
        super().__init__(name, dialect, base_url, path, whole_path=whole_path, **options)
        self._known: dict[str, Capabilities] = {}

    @property
    def structured_output(self) -> bool:
        """False: an agent has tools, and beside those older models take no schema. Requests with a schema are served.

        Its answer then comes as a call of a tool, which every model knows.
        """
        return False

    def capabilities(self, model: str) -> Capabilities:
        """Return what a model can take: 2.5 thinks by a budget, later ones by a level and see images in tool results.

        A row or table that says how to ask for thinking is left alone.
        """
        known = self._known.get(model)
        if known is None:
            known, name = super().capabilities(model), model.rsplit("/", 1)[-1]
            # "gemini-flash-latest" names no generation and is always the newest.
            age = (generation(name) or 3.0) if name.startswith("gemini-") else 0.0
            if known.reasoning == "none" and age >= 2.5 and not _NO_THOUGHT.search(name):
                known = replace(known, reasoning="budget" if age < 3 else "effort")
            if age >= 3:
                known = replace(known, image_in_tool_result=True)
            self._known[model] = known
        return known

    def address(self, model: str, *, stream: bool = True) -> str:
        """Return the URL that a request for this model goes to."""
        return super().address(model.removeprefix("models/"), stream=stream)

    async def models(self) -> list[str]:
        """Return the ids of the models that generate content, sorted. Raises ProviderError kinds."""
        names: list[str] = []
        token = ""
        for _ in range(_PAGES):
            more = f"&pageToken={quote(token, safe='')}" if token else ""
            listed = await self.get_json(f"{self._list}?pageSize={_PAGE}{more}")
            rows, token = ([], "") if not isinstance(listed, dict) else _rows(listed)
            names += rows
            if not token:
                break
        return sorted(set(names))


def _rows(listed: dict[str, Any]) -> tuple[list[str], str]:
    """Return the ids of one page ("models" there, "publisherModels" on Vertex AI) and the token of the next."""
    rows = listed.get("models") or listed.get("publisherModels")
    names: list[str] = []
    for row in rows if isinstance(rows, list) else []:
        name = row.get("name") if isinstance(row, dict) else None
        if not isinstance(name, str) or not name:
            continue
        methods = row.get("supportedGenerationMethods")
        if not isinstance(methods, list) or "generateContent" in methods:
            names.append(name.rsplit("/", 1)[-1])
    token = listed.get("nextPageToken")
    return names, token if isinstance(token, str) else ""
