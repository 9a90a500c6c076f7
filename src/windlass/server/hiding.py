"""Keep a provider's credentials out of what is told of its failures: some repeat them in their errors."""

from __future__ import annotations

from typing import Any
from urllib.parse import unquote, urlsplit

from windlass.core.errors import WindlassError

__all__ = ["HIDDEN", "hidden", "hide", "secrets_of"]

HIDDEN = "[hidden]"
#: Headers whose names say so hold credentials.
_TELLING = ("auth", "key", "token", "secret", "cookie", "password")
#: Shorter words may stand in any text.
_SHORTEST = 6


def secrets_of(provider: Any) -> set[str]:
    """Return the words of a provider's headers and address that are credentials."""
    found: set[str] = set()
    headers: dict[str, str] = getattr(provider, "headers", None) or {}
    for name, value in headers.items():
        if any(word in name.lower() for word in _TELLING):
            found |= {value, value.rpartition(" ")[2]}
    address = urlsplit(getattr(provider, "base_url", "") or "")
    user, _, password = address.netloc.rpartition("@")[0].partition(":")
    found |= {password, unquote(password), user if not password else "", address.query}
    found |= set(getattr(provider, "secrets", ()))  # of a login: what it was before, too
    return {secret for secret in found if len(secret) >= _SHORTEST}


def hidden(text: str, provider: Any) -> str:
    """Return a text without the provider's credentials."""
    return _without(text, secrets_of(provider))


def hide(error: WindlassError, provider: Any) -> None:
    """Replace the provider's credentials in all texts of an error, before anybody is told of it."""
    secrets = secrets_of(provider)
    for name, value in vars(error).items():
        if isinstance(value, str):
            setattr(error, name, _without(value, secrets))
    error.args = tuple([_without(arg, secrets) if isinstance(arg, str) else arg for arg in error.args])


def _without(text: str, secrets: set[str]) -> str:
    # The longest first: one may be a part of another.
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    return text
