"""One line for each tool call, and the whole output for whoever asks."""

from __future__ import annotations

import re
from collections import OrderedDict
from typing import Any

from msgspec import Struct

from windlass.agent.policy import call_hash
from windlass.apps.tui.paint import Painter, clip, one_line
from windlass.core import json
from windlass.core.events import ToolFinished, ToolStarted
from windlass.core.messages import ToolResponse, response_text
from windlass.core.text import strip_escapes

__all__ = ["ToolLines", "short_digest", "summary"]

_CUT = re.compile(r"\[\.\.\. \d+ bytes cut \.\.\.\]")
#: Arguments that say by themselves what a call does, shown without their name.
_SPEAKING = ("command", "path", "pattern", "query", "url", "name")
_SHOWN_LINES = 3
_KEPT_CALLS, _KEPT_BYTES = 200, 16 << 20


class _Call(Struct):
    number: int
    name: str
    input: dict[str, Any]
    output: str = ""


class ToolLines:
    """Numbers the calls of a conversation and keeps the newest outputs, for `/expand N`."""

    def __init__(self, painter: Painter, folder: str = "") -> None:
        self._paint = painter
        self._folder = folder
        self._calls: OrderedDict[str, _Call] = OrderedDict()
        self._count = 0
        #: Digests of the calls that a person allowed, by the call as it was shown.
        self.allowed: set[str] = set()

    def started(self, event: ToolStarted, depth: int = 0) -> str:
        """Return the line of a call that begins."""
        self._count += 1
        self._calls[event.call_id] = _Call(self._count, event.name, event.input)
        while len(self._calls) > _KEPT_CALLS:
            self._calls.popitem(last=False)
        digest = short_digest(event.name, event.input)
        asked = f" #{digest}" if digest in self.allowed else ""
        where = f" in {self._folder}" if event.name == "shell" and self._folder else ""
        room = max(20, 2 * self._paint.width - 12)
        return self._paint.line(
            (f"→ {self._count} ", "dim"), (event.name, "tool"), " ", clip(summary(event.input), room),
            (where + asked, "dim"), indent=2 * depth,
        )  # fmt: skip

    def finished(self, event: ToolFinished, depth: int = 0) -> str:
        """Return the lines of a call that ended: how, how long, how much, and its first lines."""
        call = self._calls.get(event.call_id) or _Call(0, event.name, {})
        text = strip_escapes(response_text(ToolResponse(event.call_id, event.response, event.status)))
        call.output = text
        self._forget_old()
        lines = text.rstrip("\n").split("\n") if text.strip() else []
        facts = [f"{event.duration_ns / 1e9:.1f} s" if event.duration_ns else "", _counted(len(lines), "line")]
        facts.append("cut for the model" if _CUT.search(text) else "")
        ok = event.status == "ok"
        mark = f"← {call.number} " if call.number else "← "
        head = self._paint.line(
            (mark, "dim"), (event.status, "ok" if ok else "error"),
            (f" {', '.join([fact for fact in facts if fact])}", "dim"), indent=2 * depth,
        )  # fmt: skip
        shown = lines[: _SHOWN_LINES if len(lines) > _SHOWN_LINES + 1 else _SHOWN_LINES + 1]
        room = self._paint.width - 4 - 2 * depth
        pad = " " * (4 + 2 * depth)
        body = [self._paint.raw((pad + clip(line.expandtabs(4), room), "dim" if ok else "error")) for line in shown]
        more = len(lines) - len(shown)
        if more > 0:
            body.append(self._paint.raw((f"{pad}… {_counted(more, 'more line')}: /expand {call.number}", "dim")))
        return head + "".join(body)

    def expanded(self, number: int | None = None) -> str | None:
        """Return a call with all its arguments and its whole output; the last one without a number."""
        known = [call for call in self._calls.values() if number is None or call.number == number]
        if not known:
            return None
        call = known[-1]
        output = call.output or "(no output yet, or not kept any more)"
        arguments = [self._paint.raw((f"  {key}: ", "dim"), _shown(value)) for key, value in call.input.items()]
        return self._paint.raw((f"→ {call.number} {call.name}", "tool")) + "".join(arguments) + self._paint.raw(output)

    def _forget_old(self) -> None:
        total = sum([len(call.output) for call in self._calls.values()])
        for call in self._calls.values():
            if total <= _KEPT_BYTES:
                return
            total -= len(call.output)
            call.output = ""


def summary(arguments: dict[str, Any]) -> str:
    """Return a call's arguments as one line: what speaks for itself first, the rest by name."""
    spoken = [one_line(_shown(arguments[key])) for key in _SPEAKING if key in arguments]
    rest = [f"{key}={one_line(_shown(value))[:60]}" for key, value in arguments.items() if key not in _SPEAKING]
    return " ".join([*spoken, *rest])


def short_digest(name: str, arguments: dict[str, Any]) -> str:
    """Return eight hexadecimal digits that stand for one exact call."""
    return call_hash(name, arguments)[:8]


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value).decode()


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
