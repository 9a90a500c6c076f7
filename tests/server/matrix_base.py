"""What every fake vendor of the matrix does: look whether the request is one that the vendor takes, then answer it.

A request says in its text which part is to be played (`play:tool`). A vendor answers with bytes that are written by
hand after its own documentation, never with our encoders.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar

from tests.server.matrix import (
    AFTER,
    EGRESS,
    LOOK,
    PNG,
    SEEN,
    SLOW,
    TEXT,
    THOUGHT,
    TOOL,
    WAIT,
    WEATHER,
    WRONG,
)
from windlass.testing.faults import Received, Reply, Step, Stream

JSON = {"content-type": "application/json"}
_PLAY = re.compile(rb"play:([a-z]+)")
_PNG = base64.b64encode(PNG)


@dataclass
class Said:
    """What the model says: text, what it thought before, and its calls as (tool, arguments as it writes them)."""

    text: str = ""
    thought: str = ""
    calls: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])


def pieces(text: str, size: int = 5) -> list[str]:
    """Return a text in the pieces in which it is streamed."""
    return [text[at : at + size] for at in range(0, len(text), size)]


def compact(data: Any) -> bytes:
    """Return JSON, text beyond ASCII as it is."""
    return json.dumps(data, ensure_ascii=False).encode()


def events(rows: Iterable[Any], *, named: bool = False, end: bytes = b"") -> Stream:
    """Return server-sent events, each a write of its own, the type as the event's name where the vendor does so."""
    parts: list[Any] = [
        (b"event: %b\n" % str(row["type"]).encode() if named else b"") + b"data: " + compact(row) + b"\n\n"
        for row in rows
    ]
    return Stream([*parts, *([end] if end else [])], headers={"content-type": "text/event-stream; charset=utf-8"})


def whole(body: Any, status: int = 200, **headers: str) -> Reply:
    """Return a JSON answer."""
    return Reply(status, compact(body), {**JSON, **headers})


class Vendor:
    """One fake vendor; a class for each dialect. `problems` is what was wrong with the requests that came.

    With a `script` the model says what that returns for a request's body.
    """

    name: ClassVar[str]
    #: What stands in `[providers.NAME]` besides the address.
    table: ClassVar[dict[str, Any]] = {}

    def __init__(self, script: Callable[[dict[str, Any]], Said] | None = None) -> None:
        self._script = script
        self.problems: list[str] = []
        self.asked = 0

    def step(self, request: Received) -> Step:
        """Return the answer to a request."""
        self.asked += 1
        body: dict[str, Any] = json.loads(request.body)
        stream = self.streams(request, body)
        self.problems += self.check(request, body)
        found = None if self._script is not None else _PLAY.search(request.body)
        play = found[1].decode() if found else "text"
        if play == "limited":
            return self.refuse(429, SLOW, {"retry-after": str(WAIT)})
        if play == "wrong":
            return self.refuse(400, WRONG, {})
        said = self._script(body) if self._script is not None else self._play(play, body, request.body)
        return self.stream(said, body) if stream else self.whole(said, body)

    def _play(self, play: str, body: dict[str, Any], raw: bytes) -> Said:
        if play == "image":
            self._want(_PNG in raw.replace(b"\\/", b"/"), "the image's bytes are not in the request")
            return Said(SEEN)
        if play in ("think", "ponder"):
            self._want(self.thinks(body, play == "think"), "thinking was not asked for as it should be")
            return Said(TEXT, THOUGHT)
        if play != "tool":
            return Said(TEXT)
        wanted = EGRESS[self.name].calls
        self._want(self.tools(body) == [TOOL], f"the tools are {self.tools(body)}")
        got = self.results(body)
        if not got:
            return Said(LOOK, calls=[(TOOL, f'{{"city": "{city}"}}') for city in wanted])
        self._want(list(got) == wanted, f"results came for {list(got)}")
        for city, text in got.items():
            self._want(WEATHER[city] in text, f"the result for {city} is {text!r}")
        return Said(AFTER)

    def _want(self, true: bool, problem: str) -> None:
        if not true:
            self.problems.append(problem)

    # -- what each vendor says in its own way ----------------------------------------------------------------------

    def streams(self, request: Received, body: dict[str, Any]) -> bool:
        """Tell whether a stream is asked for."""
        return body.get("stream") is True

    def check(self, request: Received, body: dict[str, Any]) -> list[str]:
        """Return what the vendor would refuse in a request."""
        raise NotImplementedError

    def thinks(self, body: dict[str, Any], level: bool) -> bool:
        """Tell whether a request asks for thinking, and how much where the client says that (`level`)."""
        raise NotImplementedError

    def tools(self, body: dict[str, Any]) -> list[Any]:
        """Return the names of the tools that a request declares."""
        raise NotImplementedError

    def results(self, body: dict[str, Any]) -> dict[str, str]:
        """Return city -> result of the calls that a request answers."""
        raise NotImplementedError

    def whole(self, said: Said, body: dict[str, Any]) -> Step:
        """Return a whole answer."""
        raise NotImplementedError

    def stream(self, said: Said, body: dict[str, Any]) -> Step:
        """Return a streamed answer."""
        raise NotImplementedError

    def refuse(self, status: int, text: str, headers: dict[str, str]) -> Step:
        """Return an error."""
        raise NotImplementedError
