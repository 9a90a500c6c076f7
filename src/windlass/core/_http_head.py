"""Heads of HTTP messages: what we send is checked here, what we receive is looked up here."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeAlias, cast

from windlass.core._http_url import Url
from windlass.core.errors import ProtocolError

__all__ = ["HeaderInput", "Headers", "encode_head"]

#: Headers of a request: a mapping, or pairs where a name repeats.
HeaderInput: TypeAlias = Mapping[str, str] | Iterable[tuple[str, str]]

_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")  # RFC 9110, 5.6.2
_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")  # RFC 9110, 5.5: no CR, LF, NUL or other control
# Framing and connection handling are the client's; a second opinion on them is how requests get smuggled.
_OURS = frozenset(
    ("connection", "content-length", "expect", "host", "keep-alive", "proxy-authorization", "proxy-connection", "te")
) | {"trailer", "transfer-encoding", "upgrade"}
_DEFAULTS = {
    "accept": "accept: */*\r\n",
    "accept-encoding": "accept-encoding: identity\r\n",
    "user-agent": "user-agent: windlass\r\n",
}
_ALL_DEFAULTS = "".join(_DEFAULTS.values())
_WITH_BODY = frozenset(("POST", "PUT", "PATCH"))


def encode_head(method: str, url: Url, headers: HeaderInput, size: int, *, target: str, extra: str = "") -> bytes:
    """Return the bytes of a request head with a Content-Length of `size`.

    `target` goes into the request line; `extra` holds whole checked lines of our own. Raises ProtocolError (`sent`
    False) for a method or name that is no token, a value with a control character, and headers that are ours to set.
    """
    if not (method.isalpha() and method.isascii()) and not _TOKEN.fullmatch(method):
        raise ProtocolError(f"The method {method!r} is not a token.", endpoint=url.endpoint, sent=False)
    lines: list[str] = []
    given: set[str] | None = None
    pairs = cast(Mapping[str, str], headers).items() if isinstance(headers, Mapping) else headers
    for name, value in pairs:
        # The two cheap tests accept nearly every real header; only the rest pays for the expressions.
        if not (value.isascii() and value.isprintable()) and not _VALUE.fullmatch(value):
            raise _refused(url, name, "holds a control character (a line end at the end of a key?) or is not Latin-1")
        if not _TOKEN.fullmatch(name):
            raise _refused(url, name, "has a name that is not a token")
        lower = name.lower()
        if lower in _OURS:
            raise _refused(url, name, "is set by the client itself")
        if lower in _DEFAULTS:
            given = {lower} if given is None else given | {lower}
        lines.append(f"{name}: {value}\r\n")
    defaults = _ALL_DEFAULTS if given is None else "".join([_DEFAULTS[name] for name in _DEFAULTS if name not in given])
    length = f"content-length: {size}\r\n" if size or method in _WITH_BODY else ""
    start = f"{method} {target} HTTP/1.1\r\nhost: {url.authority}\r\n"
    return f"{start}{defaults}{''.join(lines)}{extra}{length}\r\n".encode("latin-1")


def _refused(url: Url, name: str, why: str) -> ProtocolError:
    # The value is left out on purpose: it is often a credential.
    return ProtocolError(f"The request header {name!r} {why}.", endpoint=url.endpoint, sent=False)


class Headers(Mapping[str, str]):
    """Hold a response's headers; names are matched without regard to case.

    `headers[name]` joins repeated headers with ", " (RFC 9110, 5.3), `all(name)` gives each, `raw` is the pairs as
    bytes in the order received, names in lower case.
    """

    __slots__ = ("raw",)

    def __init__(self, raw: list[tuple[bytes, bytes]]) -> None:
        self.raw = raw

    def all(self, name: str) -> list[str]:
        """Return every value of a header, in order."""
        key = name.lower().encode("utf-8", "replace")
        return [value.decode("latin-1") for field, value in self.raw if field == key]

    def get(self, name: str, default: Any = None) -> Any:
        """Return a header's value, else `default`."""
        key = name.lower().encode("utf-8", "replace")
        for field, _ in self.raw:
            if field == key:
                return self[name]
        return default

    def __getitem__(self, name: str) -> str:
        values = self.all(name)
        if not values:
            raise KeyError(name)
        return values[0] if len(values) == 1 else ", ".join(values)

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys(field.decode("latin-1") for field, _ in self.raw))

    def __len__(self) -> int:
        return len({field for field, _ in self.raw})

    def __repr__(self) -> str:
        # Values may be cookies or keys; names are enough to see what came.
        return f"Headers({', '.join(self)})"
