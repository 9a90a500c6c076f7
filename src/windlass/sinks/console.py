"""Show a run on a terminal or in a pipe: the answer on one stream, what happens on the other.

Text of models and tools is not trusted: terminal escapes are taken out before anything is written.
"""

from __future__ import annotations

import sys
from typing import TextIO

from windlass.core.events import (
    BudgetExceeded,
    Event,
    FileChanged,
    Log,
    MessageAdded,
    PermissionResolved,
    ProviderSwitched,
    ReasoningDelta,
    Retry,
    RunFinished,
    StepStarted,
    TextDelta,
    ToolFinished,
    ToolStarted,
)
from windlass.core.messages import ToolResponse, response_text
from windlass.core.text import strip_escapes
from windlass.core.usage import format_cost
from windlass.sinks.record import encode_line

__all__ = ["Console", "Ndjson"]

_DIM, _RED, _RESET = "\x1b[2m", "\x1b[31m", "\x1b[0m"


class Ndjson:
    """A sink that writes every event as a line of JSON, whole and flushed."""

    def __init__(self, out: TextIO | None = None) -> None:
        # The stream itself: with its last reference it would close the buffer.
        self._out = out or sys.stdout

    def __call__(self, event: Event) -> None:
        """Take one event."""
        self._out.buffer.write(encode_line(event))
        self._out.buffer.flush()


class Console:
    """A sink for people: text deltas to `out`, one line for everything else to `err`.

    `color` is used on `err` only; `verbose` shows tool results and reasoning; `verbatim` shows tool results whole, for
    a model whose own words about them are not to be relied on. What made a run fail is left to whoever awaits the run.
    """

    def __init__(
        self,
        out: TextIO | None = None,
        err: TextIO | None = None,
        *,
        color: bool = False,
        verbose: bool = False,
        verbatim: bool = False,
        show_text: bool = True,
    ) -> None:
        self.out, self.err = out or sys.stdout, err or sys.stderr
        self.color, self.verbose, self.verbatim, self.show_text = color, verbose, verbatim, show_text
        #: The stream whose last line has no end yet.
        self._open: TextIO | None = None

    def __call__(self, event: Event) -> None:
        """Take one event."""
        if isinstance(event, TextDelta):
            if self.show_text and event.parent_run_id is None:
                self._write(self.out, strip_escapes(event.text))
        elif isinstance(event, ReasoningDelta):
            if self.verbose:
                self._write(self.err, strip_escapes(event.text))
        elif (line := self._line(event)) is not None:
            self._end_line()
            self.err.write(line + "\n")
            self.err.flush()
        elif isinstance(event, (MessageAdded, RunFinished)):
            self._end_line()

    def _write(self, stream: TextIO, text: str) -> None:
        if self._open is not stream:
            self._end_line()
        if text:
            stream.write(self._style(text, _DIM) if stream is self.err else text)
            stream.flush()
            self._open = None if text.endswith("\n") else stream

    def _end_line(self) -> None:
        if self._open is not None:
            self._open.write("\n")
            self._open.flush()
            self._open = None

    def _style(self, text: str, code: str) -> str:
        return f"{code}{text}{_RESET}" if self.color else text

    def _line(self, event: Event) -> str | None:
        if isinstance(event, ToolStarted):
            return self._style(f"→ {_safe(event.name)}({_arguments(event.input)})", _DIM)
        if isinstance(event, ToolFinished):
            return self._result(event)
        if isinstance(event, FileChanged):
            verb = "created" if event.before is None else "deleted" if event.after is None else "changed"
            return self._style(f"  {verb} {_safe(event.path)}", _DIM)
        if isinstance(event, (Retry, ProviderSwitched)):
            wait = f" (again in {event.delay:.1f} s)" if isinstance(event, Retry) and event.delay else ""
            return self._style(f"! {_safe(event.message)}{wait}", _RED)
        if isinstance(event, Log):
            return self._style(f"! {_safe(event.message)}", _RED if event.level in ("warning", "error") else _DIM)
        if isinstance(event, PermissionResolved) and not event.outcome.startswith("allow"):
            return self._style(f"  {event.outcome.replace('_', ' ')}", _DIM)
        if isinstance(event, BudgetExceeded):
            return self._style(f"! limit reached: {event.what} ({event.used} of {event.limit})", _RED)
        if isinstance(event, StepStarted):
            total = f"/{event.total}" if event.total else ""
            return self._style(f"[{event.name} {event.index}{total}]", _DIM)
        if isinstance(event, RunFinished) and event.parent_run_id is None and event.error is None:
            return self._end(event)
        return None

    def _result(self, event: ToolFinished) -> str:
        text = strip_escapes(response_text(ToolResponse(event.call_id, event.response, event.status)))
        lines = text.splitlines() or [""]
        ok = event.status == "ok"
        mark = "←" if ok else f"✗ {event.status}:"
        if self.verbatim or self.verbose:
            body = "\n".join([f"  {line}" for line in lines])
            return self._style(f"{mark} {_safe(event.name)}", _DIM if ok else _RED) + f"\n{body}"
        first = lines[0][:100] + ("…" if len(lines[0]) > 100 or len(lines) > 1 else "")
        return self._style(f"{mark} {first}", _DIM if ok else _RED)

    def _end(self, event: RunFinished) -> str:
        usage = event.usage
        cost = "" if event.cost is None else f", {format_cost(event.cost)}"
        turns = f"{event.turns} turn{'' if event.turns == 1 else 's'}"
        counts = f"{usage.input_tokens} in / {usage.output_tokens} out{cost}, {turns}"
        return self._style(f"[{event.stop_reason}: {counts}]", _DIM)


def _safe(text: str) -> str:
    return " ".join(strip_escapes(text).split())


def _arguments(arguments: dict[str, object]) -> str:
    shown = ", ".join([f"{name}={str(value)[:60]!r}" for name, value in arguments.items()])
    return _safe(shown[:200])
