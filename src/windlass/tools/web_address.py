"""Where a tool may go: one form of a URL, and which hosts and addresses are let through.

The text that is checked is the text that is connected to: both are read by `core.http.parse_url`. A name proves
nothing, so the addresses that it resolves to are decided about, and the connection goes to the very address checked.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from urllib.parse import quote, urljoin

from msgspec import Struct

from windlass.core.errors import ConfigError, ProtocolError
from windlass.core.http import Url, parse_url
from windlass.tools.access import Refusal

__all__ = ["Domains", "Target", "read_url", "redirect_target", "same_origin"]

_SHAPE = re.compile(r"(https?)://([^/?#]*)(.*)", re.IGNORECASE | re.DOTALL)
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*(?=:)")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_PRINTABLE = "".join(map(chr, range(0x21, 0x7F)))
_LABEL = re.compile(r"(?:\*\.)?[a-z0-9_](?:[a-z0-9_.-]*[a-z0-9_])?")
#: What every vendor and browser takes; a longer one is a way to send data.
MAX_URL = 8192


class Target(Struct, frozen=True):
    """A URL that may be asked for: `text` in visible ASCII without its fragment, and what the one parser made of it."""

    text: str
    url: Url

    @property
    def host(self) -> str:
        """The host in lower case, without brackets and final dot."""
        return self.url.host.rstrip(".")


def read_url(text: str) -> Target:
    """Read a URL as a person or a model writes it: umlauts in its host and path are encoded (IDNA, UTF-8).

    Raises Refusal for what is no http or https URL: other schemes, credentials, control characters, zone ids.
    """
    text = text.strip(" ")
    if len(text) > MAX_URL:
        raise Refusal(f"The URL has {len(text)} characters; at most {MAX_URL} are allowed.")
    if _CONTROL.search(text):
        raise Refusal("The URL holds a control character.")
    match = _SHAPE.fullmatch(text.partition("#")[0])
    if match is None:
        scheme = _SCHEME.match(text)
        what = f"not {scheme[0]}:" if scheme and scheme[0].lower() not in ("http", "https") else "written out in full"
        raise Refusal(f"Only http:// and https:// URLs can be fetched, {what}.")
    try:
        asked = f"{match[1].lower()}://{_host(match[2])}{quote(match[3], safe=_PRINTABLE)}"
        url = parse_url(asked)
    except UnicodeError:
        raise Refusal("The host or path of the URL holds characters that cannot be encoded.") from None
    except ProtocolError as error:
        raise Refusal(str(error)) from None
    return Target(asked, url)


def _host(authority: str) -> str:
    if authority.isascii():
        return authority
    name, colon, port = authority.rpartition(":")
    if not colon or not port.isascii():
        name, colon, port = authority, "", ""
    return f"{name.encode('idna').decode('ascii')}{colon}{port}"


def redirect_target(base: Target, location: str) -> Target:
    """Return where a redirect leads. Raises Refusal for a bad URL, and for https that leads to http."""
    if _CONTROL.search(location) or "\\" in location:
        raise Refusal(f"{base.url.endpoint} redirects to something that is no URL.")
    try:
        # Header values are bytes; servers write UTF-8 there.
        location = location.encode("latin-1").decode("utf-8")
    except UnicodeError:
        pass
    try:
        joined = urljoin(base.text, location)
    except ValueError:
        raise Refusal(f"{base.url.endpoint} redirects to something that is no URL.") from None
    target = read_url(joined)
    if base.url.scheme == "https" and target.url.scheme == "http":
        raise Refusal(f"{base.url.endpoint} redirects from https to {target.url.endpoint}; that is not followed.")
    return target


def same_origin(one: Target, other: Target) -> bool:
    """Tell whether scheme, host and port are the same."""
    return (one.url.scheme, one.host, one.url.port) == (other.url.scheme, other.host, other.url.port)


class Domains:
    """Lists of hosts: a name stands for itself and everything below it, `*.name` for what is below it only.

    Where `allowed` is empty, every host is; `blocked` wins. Raises ConfigError for what is no host.
    """

    def __init__(self, allowed: Iterable[str] = (), blocked: Iterable[str] = ()) -> None:
        self.allowed = tuple([_rule(text) for text in allowed])
        self.blocked = tuple([_rule(text) for text in blocked])

    def refused(self, host: str) -> str:
        """Return why a host (canonical, see Target.host) may not be asked, "" where it may."""
        if any(_covers(rule, host) for rule in self.blocked):
            return f"{host} is on the list of blocked hosts"
        if self.allowed and not any(_covers(rule, host) for rule in self.allowed):
            return f"{host} is not on the list of allowed hosts ({', '.join(self.allowed[:10])})"
        return ""


def _rule(text: str) -> str:
    given = text.strip().lower().rstrip(".")
    try:
        return str(ipaddress.ip_address(given.strip("[]")))
    except ValueError:
        pass
    try:
        name = given if given.isascii() else given.encode("idna").decode("ascii")
    except UnicodeError:
        name = ""
    if not _LABEL.fullmatch(name) or ".." in name:
        raise ConfigError(f"{text!r} is no host.", hint='Write "example.com" or "*.example.com", without a scheme.')
    return name


def _covers(rule: str, host: str) -> bool:
    if rule.startswith("*."):
        return host.endswith(rule[1:])
    return host == rule or host.endswith(f".{rule}")
