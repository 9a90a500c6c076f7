"""Google's generateContent and streamGenerateContent: the model and the verb stand in the path.

A stream is server-sent events with `alt=sse`, which all of Google's newer SDKs ask for; without it, one JSON array
that grows (ai.google.dev/api/generate-content).
"""

from __future__ import annotations

from typing import Any

from windlass.core.errors import WindlassError
from windlass.core.items import Finish, Item
from windlass.server.answer import answer
from windlass.server.body import checked_model, peek
from windlass.server.endpoints import Endpoint
from windlass.server.gateway import Gateway
from windlass.server.http import Call
from windlass.server.ingress import Ingress
from windlass.server.job import job_for
from windlass.server.models import query_of
from windlass.wire import gemini
from windlass.wire.base import StreamEncoder

__all__ = ["ENDPOINTS"]


class _ArrayEncoder:
    """Write a stream as one JSON array (`StreamEncoder`)."""

    def __init__(self, encoder: StreamEncoder) -> None:
        self._encoder, self._mark = encoder, b"["

    def encode(self, item: Item) -> bytes:
        """Return the elements of one item, and the array's end with the last."""
        out = self._elements(self._encoder.encode(item))
        return out + b"]" if isinstance(item, Finish) else out

    def error(self, exc: WindlassError) -> bytes:
        """Return the error as the last element."""
        return self._elements(self._encoder.error(exc)) + b"]"

    def _elements(self, events: bytes) -> bytes:
        out = b""
        for event in events.split(b"\n\n"):
            if event:
                out += self._mark + event.removeprefix(b"data: ")
                self._mark = b",\r\n"
        return out


def _array_encoder(**options: Any) -> _ArrayEncoder:
    return _ArrayEncoder(gemini.DIALECT.stream_encoder(**options))


GEMINI = Ingress("gemini", gemini.DIALECT, legible=False)
#: What a vendor streams are events, never an array: its bytes cannot pass.
GEMINI_ARRAY = Ingress(
    "gemini", gemini.DIALECT, stream_kind="application/json", stream_encoder=_array_encoder, passable=False,
    legible=False,
)  # fmt: skip


async def generate(gateway: Gateway, call: Call) -> None:
    """Answer `POST /v1beta/models/{model}:generateContent`."""
    fields, model = peek(call.body), checked_model(call.params["model"])
    await answer(job_for(gateway, call, GEMINI, model=model, stream=False, fields=fields))


async def stream_generate(gateway: Gateway, call: Call) -> None:
    """Answer `POST /v1beta/models/{model}:streamGenerateContent`."""
    fields, model = peek(call.body), checked_model(call.params["model"])
    ingress = GEMINI if query_of(call).get("alt") == "sse" else GEMINI_ARRAY
    await answer(job_for(gateway, call, ingress, model=model, stream=True, fields=fields))


ENDPOINTS = (
    Endpoint("POST", "/v1beta/models/{model}:generateContent", generate, ingress=GEMINI, body=True,
             summary="Ask a model (Google generateContent)."),
    Endpoint("POST", "/v1beta/models/{model}:streamGenerateContent", stream_generate, ingress=GEMINI, body=True,
             summary="Ask a model for a stream (Google streamGenerateContent)."),
)  # fmt: skip
