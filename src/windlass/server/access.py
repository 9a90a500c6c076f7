"""Who asks: the Host and Origin rules that keep browsers out, and the one reading of credentials for all routes."""

from __future__ import annotations

import hmac
import ipaddress

from windlass.accounts.book import Accounts
from windlass.accounts.keys import ANONYMOUS, Identity
from windlass.core.errors import RequestRefused
from windlass.server.endpoints import Endpoint
from windlass.server.http import Call
from windlass.server.settings import ServerSettings

__all__ = ["Door", "is_loopback"]

_LOCAL = ("127.0.0.1", "localhost", "[::1]")
_MAX_SECRET = 4096
_SIGNED = ("AWS4-HMAC-SHA256 ", "AWS4-ECDSA-P256-SHA256 ")


def is_loopback(host: str) -> bool:
    """Tell whether an address to listen on is reachable from this machine only; a name other than localhost is not."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _unauthorized(text: str = "Unauthorized", hint: str = "") -> RequestRefused:
    return RequestRefused(401, text, kind="auth_error", reason="unauthorized", hint=hint)


class Door:
    """Decide whether a request comes in, from its head alone."""

    def __init__(self, settings: ServerSettings, accounts: Accounts, admin_token: str = "") -> None:
        self._accounts = accounts
        self._token = admin_token.encode()
        self._open = settings.loopback_open and is_loopback(settings.host)
        own = f"[{settings.host}]" if ":" in settings.host else settings.host
        names = {name.lower() for name in (*_LOCAL, own, *settings.hosts)}
        self._hosts = names if is_loopback(settings.host) else set[str]()
        self._origins = set(settings.origins)
        self._admin = Identity("admin-token", "admin token", role="admin")

    def check(self, call: Call, endpoint: Endpoint) -> Identity:
        """Return who asks. Raises RequestRefused 401, 403, 415 or 421."""
        headers: dict[str, str] = call.head.headers
        if self._hosts and (host := headers.get("host")) is not None:
            name = host if host.endswith("]") else host.rpartition(":")[0] or host
            if name.lower() not in self._hosts:
                # A page that made its own name point here (DNS rebinding) is not this machine's.
                raise RequestRefused(421, "This server does not answer to that name.", kind="auth_error",
                                     reason="unknown_host")  # fmt: skip
        origin = headers.get("origin")
        if origin is not None and origin not in self._origins:
            raise RequestRefused(403, "Pages of other sites may not use this server.", kind="auth_error",
                                 reason="forbidden_origin",
                                 hint="List the origin in [server] origins to allow it.")  # fmt: skip
        if endpoint.body:
            _check_body(headers)
        if endpoint.access == "public":
            return self._identify(headers, required=False)
        identity = self._identify(headers, required=endpoint.access == "admin" or self.key_needed)
        if endpoint.access == "admin" and identity.role != "admin":
            raise RequestRefused(403, "This needs an admin's key.", kind="auth_error", reason="forbidden")
        return identity

    @property
    def key_needed(self) -> bool:
        """Whether model routes are closed to who shows no key."""
        return self._accounts.required or not self._open

    def _identify(self, headers: dict[str, str], *, required: bool) -> Identity:
        secret = _secret(headers)
        if secret is not None and len(secret) <= _MAX_SECRET:
            if self._token and hmac.compare_digest(secret.encode(), self._token):
                return self._admin
            identity = self._accounts.identify(secret)
            if identity is not None:
                return identity
        if required and headers.get("authorization", "").startswith(_SIGNED):
            raise _unauthorized(
                "Signatures of AWS are not looked at here.",
                "Set AWS_BEARER_TOKEN_BEDROCK to a key of this gateway (boto3 sends it over https only), or send the "
                "key as x-api-key.",
            )
        if required:
            raise _unauthorized()
        return ANONYMOUS


def _secret(headers: dict[str, str]) -> str | None:
    """Return the credential, whichever header carries it. Raises RequestRefused 401 when two carry different ones."""
    found: str | None = None
    for name in ("x-api-key", "authorization", "api-key", "x-goog-api-key"):
        value = headers.get(name)
        if value is None:
            continue
        if name == "authorization":
            if value.startswith(_SIGNED):
                continue  # the signature of AWS's SDKs covers a request to AWS: it is no secret of ours
            if value[:7].lower() == "bearer ":
                value = value[7:].strip()
        if found is not None and not hmac.compare_digest(found.encode(), value.encode()):
            raise _unauthorized("The request carries two different credentials.")
        found = value
    return found


def _check_body(headers: dict[str, str]) -> None:
    coding = headers.get("content-encoding")
    if coding is not None and coding.lower() != "identity":
        raise RequestRefused(415, "Compressed request bodies are not read.", reason="unsupported_encoding")
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    # A page can send text/plain and forms across sites without asking; JSON it cannot.
    if kind != "application/json" and not (kind == "" and "origin" not in headers):
        raise RequestRefused(415, "The body must be application/json.", reason="unsupported_media_type")
