"""URLs and proxy rules of the HTTP client: one strict parser, for whoever checks an address and for who connects."""

from __future__ import annotations

import base64
import ipaddress
import re
from collections.abc import Mapping
from urllib.parse import unquote

from msgspec import Struct

from windlass.core.errors import ConfigError, ProtocolError

__all__ = ["Proxy", "ProxyRules", "Url", "endpoint", "parse_url"]

# RFC 3986, narrowed: no userinfo, no percent-encoded or non-ASCII host, nothing outside visible ASCII.
_URL = re.compile(
    r"(https?)://(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::([0-9]{1,5}))?(/[!-~]*|\?[!-~]*)?", re.IGNORECASE
)
_PROXY = re.compile(
    r"(?:([A-Za-z][A-Za-z0-9+.-]*)://)?(?:([^@/\s]*)@)?(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::([0-9]{1,5}))?/?"
)
_PORTS = {"http": 80, "https": 443}


class Url(Struct, frozen=True):
    """A parsed URL: `host` in lower case without brackets, `target` the path with its query (at least "/").

    `authority` is what the Host header says; `endpoint` names the URL in errors, without query.
    """

    scheme: str
    host: str
    port: int
    target: str
    authority: str
    endpoint: str


def parse_url(url: str) -> Url:
    """Parse an absolute http or https URL; a fragment is dropped.

    Raises ProtocolError (`sent` False) for anything else: other schemes, credentials in the URL, spaces, control
    characters, non-ASCII text, a bad port or address. The error never repeats credentials or the query.
    """
    match = _URL.fullmatch(url.partition("#")[0])
    if match is None:
        raise _refused(url, "It must be http://host[:port]/path or https://..., visible ASCII only, no user:password@.")
    scheme, host, port_text, target = match[1].lower(), match[2].lower(), match[3], match[4] or "/"
    port = int(port_text) if port_text else _PORTS[scheme]
    if not 0 < port < 65536:
        raise _refused(url, "The port must be between 1 and 65535.")
    if host[0] == "[":
        host = host[1:-1]
        if not _is_address(host):
            raise _refused(url, "The part in brackets is not an IPv6 address.")
    shown = f"[{host}]" if ":" in host else host
    authority = shown if port == _PORTS[scheme] else f"{shown}:{port}"
    target = target if target[0] == "/" else "/" + target
    where = f"{scheme}://{authority}{target.partition('?')[0]}"
    return Url(scheme, host, port, target, authority, where)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _refused(url: str, hint: str) -> ProtocolError:
    return ProtocolError("The URL is not valid.", endpoint=endpoint(url), hint=hint, sent=False)


def endpoint(url: str) -> str:
    """Return a URL fit for errors and logs: without query, fragment and credentials, printable.

    >>> endpoint("https://api.test/v1/chat?key=secret")
    'https://api.test/v1/chat'
    >>> endpoint("https://user:secret@api.test/v1")
    'https://...'
    """
    match = _URL.fullmatch(url.partition("#")[0])
    if match is not None:
        return re.split("[?#]", url, maxsplit=1)[0]
    scheme, found, rest = url.partition("://")
    if not found or "@" in rest:
        # A password may itself hold any delimiter, so nothing after the scheme is safe to show.
        return f"{scheme}://..." if found and scheme.isalpha() else "..."
    return "".join(char if char.isprintable() else "?" for char in re.split("[?#]", url, maxsplit=1)[0])


class Proxy(Struct, frozen=True):
    """An HTTP proxy; `authorization` is the value of its Proxy-Authorization header, or empty."""

    host: str
    port: int
    authorization: str = ""


class ProxyRules:
    """Choose a proxy for a URL.

    `settings` has the keys http, https and all (proxy URLs) and no (a NO_PROXY list). A no list holds `*`, names
    (matching themselves and all below them), addresses or networks, each with an optional port.
    Raises ConfigError for a proxy URL that is not http.
    """

    def __init__(self, settings: Mapping[str, str]) -> None:
        both = settings.get("all", "")
        found = {scheme: settings.get(scheme, "") or both for scheme in _PORTS}
        self._proxies = {scheme: _parse_proxy(url) for scheme, url in found.items() if url}
        self._no = [entry.strip().lower() for entry in settings.get("no", "").split(",") if entry.strip()]

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> ProxyRules:
        """Read HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY, lower case first as curl does.

        HTTP_PROXY in capitals is ignored where REQUEST_METHOD is set: under CGI a request's header sets it (httpoxy).
        Loopback is never proxied, as in Go's net/http: a local model server must stay reachable.
        """
        settings: dict[str, str] = {"no": "localhost,127.0.0.0/8,::1"}
        for key in ("http", "https", "all", "no"):
            name = f"{key}_proxy"
            value = env.get(name, "")
            if not value and not (key == "http" and "REQUEST_METHOD" in env):
                value = env.get(name.upper(), "")
            settings[key] = f"{settings[key]},{value}" if key in settings else value
        return cls(settings)

    def find(self, url: Url) -> Proxy | None:
        """Return the proxy for a URL, or None to connect directly."""
        proxy = self._proxies.get(url.scheme)
        if proxy is None or any(_covers(entry, url) for entry in self._no):
            return None
        return proxy


def _parse_proxy(text: str) -> Proxy:
    match = _PROXY.fullmatch(text.strip())
    if match is None or (match[1] or "http").lower() != "http" or not 0 < int(match[4] or 80) < 65536:
        raise ConfigError(
            "The proxy setting is not an http:// URL.",
            hint="Use http://[user:password@]host:port; socks and https proxies are not supported.",
        )
    authorization = ""
    if match[2]:
        user, _, password = match[2].partition(":")
        pair = f"{unquote(user)}:{unquote(password)}".encode()
        authorization = "Basic " + base64.b64encode(pair).decode("ascii")
    return Proxy(match[3].strip("[]"), int(match[4] or 80), authorization)


def _covers(entry: str, url: Url) -> bool:
    if entry == "*":
        return True
    # An address may hold colons itself; only "name:port" and "[address]:port" carry a port.
    name, colon, port = entry.rpartition(":")
    if colon and port.isdigit() and (":" not in name or name.endswith("]")):
        if int(port) != url.port:
            return False
        entry = name
    entry = entry.strip("[]")
    try:
        network = ipaddress.ip_network(entry, strict=False)
    except ValueError:
        name = entry.lstrip("*").lstrip(".")
        return url.host == name or url.host.endswith("." + name)
    try:
        return ipaddress.ip_address(url.host) in network
    except ValueError:
        return False
