"""What the server answers, as rows: method, path, who may ask, and the function that does it."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Literal
from urllib.parse import unquote

from msgspec import Struct

from windlass.core.errors import RequestRefused
from windlass.server.http import Call
from windlass.server.ingress import CHAT, Ingress

__all__ = ["Access", "Endpoint", "Routes", "not_found"]

#: public: anybody who reaches the port. model: a key, once any exists. admin: an admin's key or the server's own token.
Access = Literal["public", "model", "admin"]
_PARAM = re.compile(r"\{(\w+)\}")


class Endpoint(Struct, frozen=True):
    """One row. `path` may hold `{name}` for one segment. `ingress` says in which shape its errors are told.

    `straight` begins to answer without a task where that can be, and gives None where it cannot. `body` says whether a
    JSON body is read. `feature` is what `[features]` may switch it off by. `summary` is for the OpenAPI document, as is
    what `windlass.server.schemas` says of the row; a row that it does not know is documented from what is here.
    """

    method: str
    path: str
    handle: Callable[[Any, Call], Awaitable[None]]
    access: Access = "model"
    ingress: Ingress = CHAT
    body: bool = False
    summary: str = ""
    straight: Callable[[Any, Call, Callable[[Any], None]], Any] | None = None
    feature: str = ""


def not_found(path: str) -> RequestRefused:
    """Return the error of an unknown path; the path is told only in part, since it comes from outside."""
    return RequestRefused(404, f"There is nothing at {path[:100]}.", reason="not_found")


class Routes:
    """Find the endpoint of a request: exact paths first, then those with parameters. `off`: what is switched off."""

    def __init__(self, endpoints: Iterable[Endpoint], off: Iterable[str] = ()) -> None:
        every, gone = tuple(endpoints), frozenset(off)
        #: Those that answer; what is switched off is found too, so that who may ask can be told.
        self.endpoints = tuple([each for each in every if each.feature not in gone])
        self._exact: dict[tuple[str, str], Endpoint] = {}
        self._patterns: list[tuple[re.Pattern[str], Endpoint]] = []
        self._methods: dict[str, set[str]] = {}
        for endpoint in every:
            self._methods.setdefault(endpoint.path, set()).add(endpoint.method)
            if "{" in endpoint.path:
                pattern = "".join(
                    [f"(?P<{part}>[^/]{{1,1024}})" if at % 2 else re.escape(part)
                     for at, part in enumerate(_PARAM.split(endpoint.path))]
                )  # fmt: skip
                self._patterns.append((re.compile(pattern), endpoint))
            else:
                self._exact[endpoint.method, endpoint.path] = endpoint

    def find(self, call: Call) -> Endpoint:
        """Return the endpoint and set the call's `params`. Raises RequestRefused 404, or 405 for another method."""
        method, path = call.head.method, call.head.path
        found = self._exact.get((method, path))
        if found is not None:
            return found
        if method == "HEAD" and (found := self._exact.get(("GET", path))) is not None:
            return found
        other: set[str] = set(self._methods.get(path, ()))
        for pattern, endpoint in self._patterns:
            match = pattern.fullmatch(path)
            if match is None:
                continue
            if endpoint.method == method:
                call.params = {name: _segment(value) for name, value in match.groupdict().items()}
                return endpoint
            other.add(endpoint.method)
        if other:
            allowed = ", ".join(sorted(other))
            call.extra_headers.append(("allow", allowed))
            raise RequestRefused(405, f"{path[:100]} takes {allowed}.", reason="method_not_allowed")
        raise not_found(path)


def _segment(value: str) -> str:
    try:
        text = unquote(value, errors="strict") if "%" in value else value
    except UnicodeDecodeError:
        text = ""
    if not text or not text.isprintable() or text in (".", ".."):
        raise RequestRefused(400, "The path holds characters that no name has.", reason="invalid_path")
    return text
