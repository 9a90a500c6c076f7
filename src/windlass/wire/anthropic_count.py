"""Anthropic's token counting, as client and as server: `/v1/messages/count_tokens`.

Source: docs.claude.com/en/api/messages-count-tokens. The body is that of a message without its limit, sampling
settings and stream; errors have the forms of the messages dialect.
"""

from __future__ import annotations

from typing import Final

import msgspec
from msgspec.structs import replace

from windlass.core.errors import WireError
from windlass.core.json import dumps
from windlass.core.models import Capabilities
from windlass.core.request import Request
from windlass.wire.anthropic import DIALECT
from windlass.wire.anthropic_answer import error_of
from windlass.wire.base import excerpt, load_object

__all__ = ["PATH", "decode_count", "decode_count_request", "encode_count", "encode_count_request"]

PATH: Final = "/v1/messages/count_tokens"
#: The fields that are counted; the API refuses all others.
_COUNTED: Final = frozenset(
    (
        "model", "messages", "system", "tools", "tool_choice", "thinking", "output_config", "cache_control", "speed",
        "billing_policy", "compaction", "context_management", "mcp_servers",
    )
)  # fmt: skip


def encode_count_request(request: Request, caps: Capabilities) -> bytes:
    """Return the body that asks how many tokens a request has; its `budget_tokens` are those of the message.

    Raises UnsupportedInputError and BadRequestError as the messages dialect does.
    """
    body = DIALECT.encode_request(replace(request, encoded=None), caps, stream=False)
    fields = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    return dumps({name: value for name, value in fields.items() if name in _COUNTED})


def decode_count_request(body: bytes) -> Request:
    """Read a client's body; `max_tokens` and `stream` may be there and mean nothing.

    Raises BadRequestError that names the field.
    """
    return DIALECT.decode_request(body).request


def encode_count(tokens: int) -> bytes:
    """Return the answer: `{"input_tokens": tokens}`."""
    return dumps({"input_tokens": tokens})


def decode_count(body: bytes) -> int:
    """Read the answer. Raises WireError, or the classified ProviderError when it holds an error."""
    data = load_object(body)
    if data.get("error"):
        raise error_of(data)
    tokens = data.get("input_tokens")
    if isinstance(tokens, bool) or not isinstance(tokens, int) or tokens < 0:
        raise WireError(f"The answer holds no count of tokens: {excerpt(body)!r}.")
    return tokens
