"""The dialects that clients may speak to us, as data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from msgspec import Struct

from windlass.core.errors import WindlassError
from windlass.wire import anthropic, ollama, openai_chat
from windlass.wire.base import Dialect

__all__ = ["CHAT", "MESSAGES", "NDJSON", "OLLAMA_CHAT", "Ingress"]

SSE = "text/event-stream; charset=utf-8"
NDJSON = "application/x-ndjson"


class Ingress(Struct, frozen=True):
    """One dialect at our door.

    `stream_kind` is the content type of its streams, `streams` what a request without a `stream` field means, `prefix`
    how its response ids begin. `own` names fields that only this server knows: their presence means that the body
    cannot pass through as it is. `encoder_options` makes of a job what the dialect's encoders take besides the answer,
    `stream_encoder` stands in for the dialect's own. `legible` says that what a request needs can be told from its
    bytes; `reads` and `writes` that it uses input and output tokens of a model; `filters` that it has a word for an
    answer that a filter cut.
    """

    name: str
    dialect: Dialect
    stream_kind: str = SSE
    streams: bool = False
    prefix: str = ""
    own: frozenset[str] = frozenset()
    passable: bool = True
    encoder_options: Callable[[Any], dict[str, Any]] | None = None
    stream_encoder: Callable[..., Any] | None = None
    legible: bool = True
    reads: bool = True
    writes: bool = True
    filters: bool = True

    def error_headers(self, error: WindlassError) -> list[tuple[str, str]]:
        """Return the headers that this dialect's errors have besides those of all."""
        headers = getattr(self.dialect, "error_headers", None)
        return [] if headers is None else list(headers(error).items())


#: Reference A's fields on chat.
CHAT_EXTRAS = frozenset(
    ("prompt", "provider", "think", "thinking", "repeat_penalty", "session_id", "tenant_id", "max_context_tokens",
     "loop_mode", "agent_loop", "loop_until", "loop_max_turns")
)  # fmt: skip
CHAT = Ingress("openai-chat", openai_chat.DIALECT, prefix="chatcmpl-", own=CHAT_EXTRAS)
MESSAGES = Ingress("anthropic", anthropic.DIALECT, prefix="msg_")
OLLAMA_CHAT = Ingress(
    "ollama", ollama.DIALECT, stream_kind=NDJSON, streams=True, legible=False, filters=False
)  # fmt: skip
