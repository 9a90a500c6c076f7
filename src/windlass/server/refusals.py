"""What the edge says to a request that it does not take: status, reason, and whether to ask again."""

from __future__ import annotations

from windlass.core.errors import RequestRefused
from windlass.core.features import FeatureOff

__all__ = ["late", "malformed", "overloaded", "stopping", "switched_off", "too_large"]


def malformed(text: str) -> RequestRefused:
    """Return the refusal of bytes that are not HTTP as RFC 9112 has it."""
    return RequestRefused(400, text, reason="invalid_http_request")


def late(what: str) -> RequestRefused:
    """Return the refusal of a request of which a part did not come in its time."""
    return RequestRefused(408, f"The request's {what}.", reason="request_timeout")


def too_large(limit: int) -> RequestRefused:
    """Return the refusal of a body above `limit` bytes."""
    return RequestRefused(413, f"The request's body is larger than {limit} bytes.", reason="request_too_large")


def switched_off(feature: str, param: str | None = None) -> RequestRefused:
    """Return the refusal of a route that `[features]` switches off, or of a request that needs such a part."""
    said = FeatureOff(feature, "").message
    return RequestRefused(404 if param is None else 400, said, reason="feature_off", param=param)


def overloaded(text: str) -> RequestRefused:
    """Return the refusal of what would be taken at another time."""
    return _unavailable(text, "overloaded")


def stopping() -> RequestRefused:
    """Return what a client is told whose answer the server cannot finish before it stops."""
    return _unavailable("The server is stopping; the answer is not complete.", "stopping")


def _unavailable(text: str, reason: str) -> RequestRefused:
    return RequestRefused(503, text, kind="server_error", reason=reason, retry_after=1.0, retry=True)
