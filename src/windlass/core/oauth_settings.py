"""An authorization server and who we are to it, as a vendor's row and the user's own table state it."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from typing import Any, Literal

import msgspec
from msgspec import Struct

from windlass.core.errors import ConfigError, ProtocolError, UnknownNameError
from windlass.core.http import endpoint, parse_url

__all__ = ["REDIRECT", "OAuthSettings", "is_loopback", "read_settings", "safe_url"]

#: Where the browser is sent when somebody has logged in; a free port is put in.
REDIRECT = "http://127.0.0.1/callback"


class OAuthSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """An authorization server, and who we are to it: a vendor's row with the user's `[providers.NAME.oauth]` over it.

    `client_id` is the user's own registration. With an `issuer` the addresses that are missing are discovered. A
    loopback `redirect_uri` without a port gets a free one; one on another host shows the code for a person to paste.
    `audience` is the resource the token is for (RFC 8707). `parameters` are added to the authorization address,
    `headers` to requests with its tokens. `body` is how the token endpoint is asked.
    """

    client_id: str = ""
    client_secret: str = ""
    issuer: str = ""
    authorize_url: str = ""
    token_url: str = ""
    revoke_url: str = ""
    device_url: str = ""
    scopes: tuple[str, ...] = ()
    redirect_uri: str = REDIRECT
    audience: str = ""
    parameters: Mapping[str, str] = {}
    headers: Mapping[str, str] = {}
    body: Literal["form", "json"] = "form"

    def __repr__(self) -> str:
        return f"OAuthSettings({self.token_url or self.issuer!r})"


_ADDRESSES = ("issuer", "authorize_url", "token_url", "revoke_url", "device_url")


def read_settings(name: str, row: Mapping[str, Any], table: Any, environ: Mapping[str, str]) -> OAuthSettings:
    """Read a vendor's row with the user's table over it; `env:NAME` as a client's id or secret is that variable.

    An issuer or token endpoint of the user's replaces all addresses of the row. Raises ConfigError and
    UnknownNameError that name the field.
    """
    where = f"[providers.{name}.oauth]"
    if not isinstance(table, Mapping):
        raise ConfigError(f"{where} must be a table.")
    own: dict[str, Any] = dict(table)  # pyright: ignore[reportUnknownArgumentType]
    if unknown := own.keys() - set(OAuthSettings.__struct_fields__):
        raise UnknownNameError(f"key in {where}:", min(unknown), OAuthSettings.__struct_fields__)
    base = {
        key: value for key, value in row.items() if not (key in _ADDRESSES and {"issuer", "token_url"} & own.keys())
    }
    merged: dict[str, Any] = {**base, **own}
    if isinstance(merged.get("scopes"), str):
        merged["scopes"] = merged["scopes"].split()
    for field in ("client_id", "client_secret"):
        given = merged.get(field)
        if isinstance(given, str) and given.startswith("env:"):
            merged[field] = environ.get(given[4:], "")
    try:
        made = msgspec.convert(merged, OAuthSettings)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{where}: {error}.") from None
    for field in _ADDRESSES:
        if address := getattr(made, field):
            safe_url(address, f"{where} {field}")
    return made


def is_loopback(host: str) -> bool:
    """Tell whether a host is this machine."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def safe_url(url: str, what: str, *, named_by: str = "") -> str:
    """Return an address that tokens may go to or that a browser may open: https, or http on this machine.

    With `named_by` (who told us of it) one on this machine is refused unless that is on it, too. Raises ConfigError.
    """
    try:
        parsed = parse_url(url)
    except ProtocolError:
        raise ConfigError(f"{what} {endpoint(url)!r} is no https address.") from None
    local = is_loopback(parsed.host)
    if local and named_by and not is_loopback(parse_url(named_by).host):
        raise ConfigError(f"{what} {parsed.endpoint} is on this machine, and was named by {endpoint(named_by)}.")
    if parsed.scheme != "https" and not local:
        raise ConfigError(f"{what} {parsed.endpoint} is not https.")
    return url
