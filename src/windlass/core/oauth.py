"""OAuth 2.0 for a program on a person's machine: the requests to an authorization server, and what may be believed.

Authorization code with PKCE (RFC 6749, 7636, 8252, 9207), device grant (RFC 8628), refresh with rotation, revocation
(RFC 7009), metadata (RFC 8414). Nothing goes to an address that is not https, but for this machine's own; nothing that
was told is repeated in an error.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import secrets
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode, urlsplit

from msgspec import Struct
from msgspec.structs import replace

from windlass.core import clock
from windlass.core.credentials import Credentials, hide_secrets, read_credentials
from windlass.core.errors import (
    AuthError,
    ConfigError,
    OverloadedError,
    PermissionRefused,
    ProviderConnectionError,
    ProviderError,
    ProviderTimeoutError,
    RateLimitError,
    TransportError,
    TransportTimeout,
    WireError,
)
from windlass.core.http import Client, Timeouts, endpoint
from windlass.core.json import JsonError, dumps, loads
from windlass.core.oauth_settings import OAuthSettings, safe_url

__all__ = [
    "Authorization",
    "Device",
    "OAuth",
    "account_in",
]

_TIMEOUTS = Timeouts(10.0, 30.0, 30.0, 60.0, 30.0)
_MAX_BODY = 1 << 20
_FORM = "application/x-www-form-urlencoded"
_DEVICE_GRANT = "urn:ietf:params:oauth:grant-type:device_code"
#: Where OpenAI's tokens name the account.
_OPENAI_CLAIMS = "https://api.openai.com/auth"


class Authorization(Struct, frozen=True):
    """One attempt to log in: the address that a person opens, and what its answer has to fit. Good for one use."""

    url: str
    redirect_uri: str
    state: str
    verifier: str
    nonce: str = ""

    def __repr__(self) -> str:
        return f"Authorization({endpoint(self.url)!r})"


class Device(Struct, frozen=True):
    """What a person does on another device: open `url` and enter `user_code`. `interval` and `ends_in` in seconds."""

    url: str
    user_code: str
    device_code: str
    interval: float
    ends_in: float

    def __repr__(self) -> str:
        return f"Device({endpoint(self.url)!r})"


class OAuth:
    """One authorization server as this program speaks to it.

    `name` says whose login it is, for errors; `hint` what to do where a login has ended. Methods raise ConfigError for
    an address that is missing or not safe, AuthError for what is refused or not to be believed, and the other
    ProviderError kinds for a server that is slow, broken or away.
    """

    def __init__(self, name: str, settings: OAuthSettings, client: Client, hint: str = "") -> None:
        self.name, self.settings, self._client = name, settings, client
        self._hint = hint or f"Run `windlass auth {name}`."
        #: The identity token that came with the last credentials, "" without one.
        self.identity = ""

    async def discover(self) -> OAuthSettings:
        """Fill in the addresses that are missing from the issuer's metadata, and return the settings."""
        settings = self.settings
        if not settings.issuer or settings.token_url:
            return settings
        told = await self._metadata(settings.issuer)
        if told.get("issuer") != settings.issuer:
            raise AuthError(
                f"The metadata of {settings.issuer} is that of another issuer.", provider=self.name,
                endpoint=settings.issuer, hint="Check issuer, to the letter: a slash at its end counts.",
            )  # fmt: skip
        if "S256" not in (told.get("code_challenge_methods_supported") or ()):
            raise AuthError(
                f"{settings.issuer} does not say that it knows PKCE with S256.", provider=self.name,
                endpoint=settings.issuer, hint="State authorize_url and token_url if it does.",
            )  # fmt: skip
        found: dict[str, str] = {}
        names = {
            "authorize_url": "authorization_endpoint", "token_url": "token_endpoint",
            "revoke_url": "revocation_endpoint", "device_url": "device_authorization_endpoint",
        }  # fmt: skip
        for field, key in names.items():
            address = told.get(key)
            if not getattr(settings, field) and isinstance(address, str) and address:
                found[field] = safe_url(address, f"The {key} of {self.name}", named_by=settings.issuer)
        self.settings = replace(settings, **found)
        return self.settings

    async def _metadata(self, issuer: str) -> dict[str, Any]:
        parts = urlsplit(issuer)
        origin, path = f"{parts.scheme}://{parts.netloc}", parts.path.rstrip("/")
        addresses = (
            f"{origin}/.well-known/oauth-authorization-server{path}",
            f"{origin}{path}/.well-known/openid-configuration",
        )
        for address in addresses:
            status, told, _ = await self._send("GET", address, b"", {})
            if status == 200 and told:
                return told
            if status >= 500:
                raise self._broken(status, address)
        raise AuthError(
            f"{issuer} tells nothing about itself.", provider=self.name, endpoint=issuer,
            hint="State authorize_url and token_url instead.",
        )  # fmt: skip

    # -- logging in ----------------------------------------------------------------------------------------------------

    def authorization(self, redirect_uri: str) -> Authorization:
        """Begin a login whose answer comes to `redirect_uri`."""
        settings = self.settings
        if not settings.authorize_url:
            raise self._missing("authorize_url")
        state, verifier = secrets.token_urlsafe(32), secrets.token_urlsafe(48)
        nonce = secrets.token_urlsafe(24) if "openid" in settings.scopes else ""
        digest = hashlib.sha256(verifier.encode()).digest()
        query = {
            **settings.parameters,
            "response_type": "code",
            "client_id": self._client_id(),
            "redirect_uri": redirect_uri,
            "scope": " ".join(settings.scopes),
            "state": state,
            "nonce": nonce,
            "resource": settings.audience if "://" in settings.audience else "",
            "code_challenge": base64.urlsafe_b64encode(digest).decode().rstrip("="),
            "code_challenge_method": "S256",
        }
        address = safe_url(settings.authorize_url, f"The authorize_url of {self.name}")
        joined = f"{address}{'&' if '?' in address else '?'}{urlencode({k: v for k, v in query.items() if v})}"
        return Authorization(joined, redirect_uri, state, verifier, nonce)

    def code_of(self, begun: Authorization, answer: Mapping[str, str]) -> str:
        """Return the code that the answer to a login holds. Raises PermissionRefused where the person said no."""
        if not secrets.compare_digest(answer.get("state", "").encode(), begun.state.encode()):
            raise AuthError("The answer belongs to another login: its state differs.", provider=self.name)
        issuer, told = self.settings.issuer, answer.get("iss", "")
        if issuer and told and told != issuer:
            raise AuthError(f"The answer comes from another issuer than {issuer}.", provider=self.name)
        if error := answer.get("error"):
            about = _excerpt(answer.get("error_description", ""))
            text = f"{self.name} gave no login: {_excerpt(error)}{f' ({about})' if about else ''}."
            raise PermissionRefused(text) if error == "access_denied" else AuthError(text, provider=self.name)
        if not answer.get("code"):
            raise AuthError("The answer holds no code.", provider=self.name)
        return answer["code"]

    async def exchange(self, begun: Authorization, code: str) -> Credentials:
        """Return the credentials for a code."""
        asked = {
            "grant_type": "authorization_code", "code": code, "redirect_uri": begun.redirect_uri,
            "code_verifier": begun.verifier,
        }  # fmt: skip
        if self.settings.body == "json":
            asked["state"] = begun.state
        told = await self._token(asked, (code, begun.verifier))
        _check_identity(told, self.settings, begun.nonce, self.name)
        return self._credentials(told)

    async def device(self) -> Device:
        """Begin a login on another device."""
        if not self.settings.device_url:
            raise self._missing("device_url")
        asked = {"client_id": self._client_id(), "scope": " ".join(self.settings.scopes)}
        address = safe_url(self.settings.device_url, f"The device_url of {self.name}")
        status, told, raw = await self._send("POST", address, urlencode(asked).encode(), {"content-type": _FORM})
        if status != 200 or not told:
            raise self._refused(status, told, raw, address, ())
        url = told.get("verification_uri_complete") or told.get("verification_uri") or told.get("verification_url")
        code, user_code = told.get("device_code"), told.get("user_code")
        if not (isinstance(url, str) and isinstance(code, str) and isinstance(user_code, str)):
            raise WireError(f"{self.name}: {endpoint(address)} gave no device code.", provider=self.name)
        safe_url(url, f"The page of {self.name}", named_by=address)
        return Device(url, user_code, code, _seconds(told.get("interval"), 5.0), _seconds(told.get("expires_in"), 900))

    async def granted(self, device: Device) -> Credentials:
        """Wait until the person has agreed on the other device. Raises PermissionRefused where they said no."""
        interval = max(device.interval, 1.0)
        left = device.ends_in
        while left > 0:
            await clock.sleep(interval)
            left -= interval
            asked = {"grant_type": _DEVICE_GRANT, "device_code": device.device_code}
            status, told, raw = await self._ask_token(asked)
            if status == 200:
                return self._credentials(self._whole(told, status, raw))
            error = told.get("error")
            if error == "slow_down":
                interval += 5.0
            elif error == "access_denied":
                raise PermissionRefused(f"{self.name} gave no login: it was refused on the other device.")
            elif error == "expired_token":
                break
            elif error != "authorization_pending":
                raise self._refused(status, told, raw, self._token_url(), (device.device_code,))
        raise AuthError(f"Nobody has agreed within {device.ends_in:g} s.", provider=self.name, hint="Begin again.")

    # -- afterwards ----------------------------------------------------------------------------------------------------

    async def refresh(self, before: Credentials) -> Credentials:
        """Return new credentials for a refresh token; what the server does not name anew stays.

        Raises AuthError where the login has ended.
        """
        told = await self._token({"grant_type": "refresh_token", "refresh_token": before.refresh}, before.secrets)
        made = self._credentials(told)
        return replace(made, refresh=made.refresh or before.refresh, account_id=made.account_id or before.account_id)

    async def revoke(self, credentials: Credentials) -> bool:
        """Have the server forget a login; False where it has no address for that."""
        if not self.settings.revoke_url:
            return False
        address = safe_url(self.settings.revoke_url, f"The revoke_url of {self.name}")
        tokens = {"refresh_token": credentials.refresh, "access_token": credentials.access}
        for kind, token in tokens.items():
            if not token:
                continue
            asked = self._identified({"token": token, "token_type_hint": kind})
            status, told, raw = await self._send("POST", address, urlencode(asked).encode(), {"content-type": _FORM})
            # RFC 7009: a token that is not known any more is answered with 200.
            if status >= 300 and told.get("error") != "unsupported_token_type":
                raise self._refused(status, told, raw, address, credentials.secrets)
        return True

    # -- the token endpoint --------------------------------------------------------------------------------------------

    async def _token(self, asked: dict[str, str], words: tuple[str, ...]) -> dict[str, Any]:
        status, told, raw = await self._ask_token(asked)
        if status >= 300:
            raise self._refused(status, told, raw, self._token_url(), words)
        return self._whole(told, status, raw)

    async def _ask_token(self, asked: dict[str, str]) -> tuple[int, dict[str, Any], bytes]:
        settings = self.settings
        if settings.audience and "://" in settings.audience:
            asked = {**asked, "resource": settings.audience}
        asked = self._identified(asked)
        body = dumps(asked) if settings.body == "json" else urlencode(asked).encode()
        kind = "application/json" if settings.body == "json" else _FORM
        return await self._send("POST", self._token_url(), body, {"content-type": kind, **settings.headers})

    def _token_url(self) -> str:
        if not self.settings.token_url:
            raise self._missing("token_url")
        return safe_url(self.settings.token_url, f"The token_url of {self.name}")

    def _identified(self, asked: dict[str, str]) -> dict[str, str]:
        secret = self.settings.client_secret
        return {**asked, "client_id": self._client_id(), **({"client_secret": secret} if secret else {})}

    def _client_id(self) -> str:
        if not self.settings.client_id:
            raise ConfigError(
                f"There is no client id for {self.name}.",
                hint=f"Register a client of your own there, and set client_id in [providers.{self.name}.oauth] of your "
                "own config file.",
            )
        return self.settings.client_id

    def _missing(self, field: str) -> ConfigError:
        hint = f"Set {field} (or issuer) in [providers.{self.name}.oauth] of your own config file."
        return ConfigError(f"There is no {field} for {self.name}.", hint=hint)

    async def _send(
        self, method: str, url: str, body: bytes, headers: Mapping[str, str]
    ) -> tuple[int, dict[str, Any], bytes]:
        try:
            answer = await self._client.request(
                method, url, headers={"accept": "application/json", **headers}, body=body, timeouts=_TIMEOUTS,
                max_body_bytes=_MAX_BODY,
            )  # fmt: skip
        except TransportError as error:
            kind = ProviderTimeoutError if isinstance(error, TransportTimeout) else ProviderConnectionError
            raise kind(
                f"{self.name}: {error.message}", provider=self.name, endpoint=endpoint(url), hint=error.hint
            ) from error
        try:
            told = loads(answer.body)
        except JsonError:
            told = {}
        return answer.status, told if isinstance(told, dict) else {}, answer.body

    def _whole(self, told: dict[str, Any], status: int, raw: bytes) -> dict[str, Any]:
        where = endpoint(self._token_url())
        token = told.get("access_token")
        if not isinstance(token, str) or not token:
            # What came may hold other secrets: how long it is says enough.
            text = f"{self.name}: the token endpoint answered {status} without a token ({len(raw)} bytes)."
            raise WireError(text, provider=self.name, endpoint=where)
        kind = told.get("token_type")
        if kind is not None and str(kind).lower() != "bearer":
            raise WireError(f"{self.name}: its tokens are no bearer tokens.", provider=self.name, endpoint=where)
        if self.settings.audience and not _is_for(token, self.settings.audience):
            raise AuthError(
                f"{self.name} gave a token for another audience than {self.settings.audience}.",
                provider=self.name, endpoint=where,
            )  # fmt: skip
        return told

    def _credentials(self, told: dict[str, Any]) -> Credentials:
        fields = {name: told.get(name) for name in ("access_token", "refresh_token")}
        made = read_credentials(fields, f"The answer of {self.name}")
        identity: Any = told.get("id_token")
        self.identity = identity if isinstance(identity, str) else ""
        ends_in, expires = _seconds(told.get("expires_in"), 0.0), account_in(made.access)[1]
        if ends_in:
            expires = clock.now_ns() // 1_000_000 + int(ends_in * 1000)
        return replace(made, expires=expires, account_id=_account(told))

    def _refused(
        self, status: int, told: dict[str, Any], raw: bytes, url: str, words: tuple[str, ...]
    ) -> ProviderError:
        error = told.get("error")
        if status >= 500 or status == 429 or error in ("temporarily_unavailable", "server_error"):
            return self._broken(status, url)
        if status < 400:
            text = f"{self.name}: {endpoint(url)} answered {status} in place of a token."
            return WireError(text, provider=self.name, endpoint=endpoint(url), status=status, hint="Check the address.")
        fields: dict[str, Any] = error if isinstance(error, dict) else {}
        code = next((c for c in (fields.get("code"), error, told.get("code")) if isinstance(c, str) and c), None)
        about = fields.get("message") or told.get("error_description") or ("" if told else _excerpt(raw))
        text = _excerpt(str(about)).rstrip(".")
        made = AuthError(
            f"The login of {self.name} has ended or was not given ({_excerpt(code or str(status))})"
            f"{f': {text}' if text else ''}.",
            provider=self.name, endpoint=endpoint(url), status=status, provider_code=code, hint=self._hint,
        )  # fmt: skip
        hide_secrets(made, (*words, self.settings.client_secret))
        return made

    def _broken(self, status: int, url: str) -> ProviderError:
        kind = RateLimitError if status == 429 else OverloadedError
        text = f"{self.name}: {endpoint(url)} answered {status}; the login stays as it is."
        return kind(text, provider=self.name, endpoint=endpoint(url), status=status)


# -- what is told ------------------------------------------------------------------------------------------------------


def _excerpt(data: bytes | str) -> str:
    text = data[:1600].decode("utf-8", "replace") if isinstance(data, bytes) else data
    line = " ".join("".join([char if char.isprintable() else " " for char in text]).split())
    return line if len(line) <= 200 else f"{line[:199]}…"


def _seconds(value: Any, default: float) -> float:
    if isinstance(value, str) and value.isascii() and value.isdigit():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e11:
        return default
    return float(value)


def _claims(token: str) -> dict[str, Any]:
    """Return what a JWT says, unchecked; nothing for any other token."""
    parts = token.split(".")
    if len(parts) != 3:
        return {}
    try:
        told = loads(base64.urlsafe_b64decode(parts[1].encode("ascii", "replace") + b"=="))
    except (binascii.Error, ValueError):
        return {}
    return told if isinstance(told, dict) else {}


def _is_for(token: str, audience: str) -> bool:
    """Tell whether a token may be for an audience: an opaque one may."""
    stated: Any = _claims(token).get("aud")
    return stated is None or stated == audience or (isinstance(stated, list) and audience in stated)


def _check_identity(told: dict[str, Any], settings: OAuthSettings, nonce: str, name: str) -> None:
    """Check who an identity token is for (OpenID Connect 3.1.3.7; it came over TLS from who signed it)."""
    token = told.get("id_token")
    claims = _claims(token) if isinstance(token, str) else {}
    if not claims:
        return
    if not _is_for(str(token), settings.client_id):
        raise AuthError(f"{name} gave a login that is another program's.", provider=name)
    if settings.issuer and claims.get("iss") != settings.issuer:
        raise AuthError(f"{name} gave a login of another issuer than {settings.issuer}.", provider=name)
    if nonce and claims.get("nonce") not in (nonce, None):
        raise AuthError(f"{name} gave the login of another attempt.", provider=name)


def account_in(token: str) -> tuple[str, int | None]:
    """Return the account that a JWT of OpenAI's names ("" if none) and when it ends (UTC milliseconds, None if never).

    What it says is not checked: it is for the server that signed it.
    """
    claims = _claims(token)
    own: Any = claims.get(_OPENAI_CLAIMS)
    account = own.get("chatgpt_account_id") if isinstance(own, dict) else None
    ends = _seconds(claims.get("exp"), 0.0)
    return account if isinstance(account, str) else "", int(ends * 1000) or None


def _account(told: dict[str, Any]) -> str:
    account: Any = told.get("account")
    stated = (
        told.get("account_id") or told.get("accountId") or (account.get("uuid") if isinstance(account, dict) else "")
    )
    if isinstance(stated, str) and stated and all("!" <= char <= "~" for char in stated):
        return stated
    tokens = [token for key in ("access_token", "id_token") if isinstance(token := told.get(key), str)]
    return next((found for token in tokens if (found := account_in(token)[0])), "")
