"""Requests and answers as the rooms of the server see them, and the strict reading of a request's head.

A head that is not exactly RFC 9112 is refused: what two parsers could read differently is how requests are smuggled.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Sequence
from http import HTTPStatus
from typing import Any, Protocol

from msgspec import Struct

from windlass.core.errors import RequestRefused, WindlassError

__all__ = ["App", "Call", "Head", "HeaderPairs", "Work", "encode_head", "parse_head"]

HeaderPairs = Sequence[tuple[str, str]]

#: A request line and headers: no obs-fold, no bare LF or CR, no control characters, no space before a colon.
_HEAD = re.compile(
    rb"([A-Z]{1,16}) (/[!-~]{0,8190}) HTTP/1\.([01])\r\n"
    rb"((?:[!#$%&'*+\-.^_`|~0-9A-Za-z]{1,256}:[\t -~\x80-\xff]*\r\n)*)"
    rb"\r\n"
)
_HOST = re.compile(r"(?:\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9._-]{1,255})(?::[0-9]{1,5})?")
_LENGTH = re.compile(r"[0-9]{1,15}")
#: Headers that may come once; a second one is how a request says two things to two readers.
_SINGLE = frozenset(
    ("host", "content-length", "transfer-encoding", "content-type", "content-encoding", "authorization", "x-api-key",
     "api-key", "x-goog-api-key", "origin", "x-request-id", "expect")
)  # fmt: skip
MAX_HEADERS = 100


class Head(Struct, frozen=True, dict=False, eq=False):
    """A request's head. Header names are lower case; `length` is None for a chunked body. Shared, never changed."""

    method: str
    path: str
    query: str
    headers: dict[str, str]
    length: int | None
    keep_alive: bool
    http10: bool
    #: What was decided for the very same head before; whoever decides says how long that holds.
    memo: list[Any] = []

    def __repr__(self) -> str:
        # Headers and queries carry credentials; a representation ends up in logs.
        return f"Head({self.method} {self.path[:200]!r}, {len(self.headers)} headers)"


def _bad(text: str, status: int = 400, reason: str = "invalid_http_request") -> RequestRefused:
    return RequestRefused(status, text, reason=reason)


def parse_head(data: bytes) -> Head:
    """Read a head that ends in an empty line. Raises RequestRefused 400, 417 or 431.

    Refused is what RFC 9112 forbids, an unknown transfer coding, and a target that is no path (`*`, a proxy's form).
    """
    found = _HEAD.fullmatch(data)
    if found is None:
        raise _bad("The request's head is not valid HTTP/1.1.")
    method, target, minor, block = found.groups()
    lines = block.decode("latin-1").split("\r\n")
    lines.pop()
    if len(lines) > MAX_HEADERS:
        raise _bad(f"The request has more than {MAX_HEADERS} headers.", 431, "headers_too_large")
    headers: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        name, value = name.lower(), value.strip(" \t")
        if name in headers:
            if name in _SINGLE:
                raise _bad(f"The header {name} came twice.")
            value = f"{headers[name]}, {value}"
        headers[name] = value
    path, _, query = target.decode("ascii").partition("?")
    http10 = minor == b"0"
    host = headers.get("host")
    if (host is None and not http10) or (host is not None and not _HOST.fullmatch(host)):
        raise _bad("The Host header is missing or malformed.")
    if "#" in path or "#" in query or path.startswith("//"):
        raise _bad("The request's target is not a path.")
    keep = not http10 and "close" not in headers.get("connection", "").lower()
    return Head(method.decode(), path, query, headers, _length(headers, http10), keep, http10)


def _length(headers: dict[str, str], http10: bool) -> int | None:
    coding, length = headers.get("transfer-encoding"), headers.get("content-length")
    if "expect" in headers and headers["expect"].lower() != "100-continue":
        raise _bad("Only Expect: 100-continue is known.", 417)
    if coding is not None:
        if length is not None or http10 or coding.lower() != "chunked":
            raise _bad("The body's framing is ambiguous: one Content-Length or Transfer-Encoding: chunked.")
        return None
    if length is None:
        return 0
    if not _LENGTH.fullmatch(length):
        raise _bad("Content-Length is not a number.", reason="invalid_content_length")
    return int(length)


_STATUS = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n" for status in HTTPStatus}
_UNSAFE = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|[^\x00-\xff]")
_EACH = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]|[^\x00-\xff]")


def encode_head(status: int, headers: HeaderPairs, extra: str = "") -> bytes:
    """Return a status line and headers with their empty line; characters that would break a header become `?`.

    `extra` holds whole lines of our own.
    """
    lines = "".join([f"{name}: {value}\r\n" for name, value in headers])
    if _UNSAFE.search(lines) or not lines.count("\n") == lines.count("\r") == len(headers):
        lines = "".join([f"{name}: {_EACH.sub('?', value)}\r\n" for name, value in headers])
    return f"{_STATUS.get(status) or _other(status)}{lines}{extra}\r\n".encode("latin-1")


def _other(status: int) -> str:
    return f"HTTP/1.1 {status} Status\r\n"


class Call(Struct, eq=False):
    """One request and the way to answer it. A transport fills it and implements the five sending methods.

    `endpoint` and `identity` are set when the request is admitted; `extra_headers` are added to whatever is answered.
    The task that serves it is cancelled when the client leaves.
    """

    head: Head
    peer: str
    received: float
    body: bytes = b""
    id: str = ""
    endpoint: Any = None
    identity: Any = None
    params: dict[str, str] = {}
    extra_headers: list[tuple[str, str]] = []
    #: What the log and the record should say.
    notes: dict[str, Any] = {}
    #: The task that serves it.
    task: Any = None
    status: int = 0
    started: bool = False
    sent: int = 0
    #: Set by who ends a call before its time (the server stops, the key was revoked): what the client is told.
    ending: WindlassError | None = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.id}, {self.head!r}, {len(self.body)} bytes, status {self.status})"

    def respond(self, status: int, body: bytes, headers: HeaderPairs = (), *, kind: str = "application/json") -> None:
        """Send a whole answer."""
        raise NotImplementedError

    def start(self, status: int, headers: HeaderPairs = (), *, kind: str) -> None:
        """Begin an answer whose length is not known."""
        raise NotImplementedError

    def write(self, data: bytes, *, last: bool = False) -> Awaitable[None] | None:
        """Send a piece of a begun answer, and with `last` its end.

        What is returned, if anything, is to be awaited: the client is slow.
        """
        raise NotImplementedError

    def finish(self) -> None:
        """End a begun answer."""
        raise NotImplementedError

    def cut(self) -> None:
        """Break the connection, so that a begun answer cannot be taken for a whole one."""
        raise NotImplementedError


class Work(Protocol):
    """What is done for a call: a task, or something that takes none."""

    def cancel(self, msg: Any = None) -> Any: ...
    def done(self) -> bool: ...


class App(Protocol):
    """What answers. `express` begins to answer without a task, where it can, and calls `ended` at the end of that.
    `admit` looks at a head before its body is read and returns how many bytes of it are welcome.

    It is asked again once a body is here that did not come with its head.
    """

    def admit(self, call: Call) -> int: ...
    def express(self, call: Call, ended: Callable[[Any], None]) -> Work | None: ...
    async def serve(self, call: Call) -> None: ...
    def refusal(self, call: Call | None, error: RequestRefused) -> tuple[int, list[tuple[str, str]], bytes]: ...
