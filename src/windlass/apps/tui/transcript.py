"""A sink that turns the facts of a run into finished lines and into what is waited for."""

from __future__ import annotations

from collections.abc import Callable

from windlass.apps.tui.markdown import Markdown
from windlass.apps.tui.paint import Painter, clip, one_line
from windlass.apps.tui.status import Status, Waiting, amount, money
from windlass.apps.tui.toollines import ToolLines
from windlass.core.events import (
    BudgetExceeded,
    ContextCompacted,
    Event,
    FileChanged,
    Log,
    McpConnected,
    MessageAdded,
    ProviderSwitched,
    ReasoningDelta,
    Retry,
    RunFinished,
    SkillActivated,
    StepStarted,
    TextDelta,
    ToolFinished,
    ToolProgress,
    ToolStarted,
    TurnFinished,
)
from windlass.core.text import strip_escapes

__all__ = ["Transcript"]


class Transcript:
    """Shows a conversation: `write` gets finished lines, `tail` is the row that is still being written."""

    def __init__(
        self, painter: Painter, write: Callable[[str], None], changed: Callable[[], None], lines: ToolLines
    ) -> None:
        self.paint, self.lines = painter, lines
        self._write, self._changed = write, changed
        self.status, self.waiting = Status(), Waiting()
        self.verbose = False
        self._markdown = Markdown(painter)
        self._thinking = Markdown(painter)
        self._side = ""
        self._asides: list[tuple[str, str]] = []

    @property
    def tail(self) -> str:
        """The row that is still being written, or the newest line of a running tool."""
        return self._markdown.tail or self._side

    def __call__(self, event: Event) -> None:
        """Take one event."""
        self.waiting.take(event)
        if isinstance(event, (TextDelta, ReasoningDelta)):
            if event.parent_run_id is None:
                self._delta(event)
        elif isinstance(event, ToolProgress):
            self._side = clip(one_line(event.text[-400:]), self.paint.width - 2, end=True) or self._side
        elif isinstance(event, TurnFinished):
            self.status.count(event.usage, event.cost)
        else:
            text = self._told(event)
            if text or isinstance(event, (MessageAdded, RunFinished)):
                self.rest()
                self.write(text)
            if isinstance(event, (ToolFinished, RunFinished)):
                self._side = ""
                self.waiting.begin("waiting for provider", self.waiting.provider_limit)
            if isinstance(event, RunFinished) and event.parent_run_id is None:
                self.waiting.end()
        self._changed()

    def _delta(self, event: TextDelta | ReasoningDelta) -> None:
        if isinstance(event, TextDelta):
            if self.verbose:
                self.write(self._thinking.end())
            self._side = ""
            self.write(self._markdown.feed(event.text))
            self._say_asides()
        elif self.verbose:
            self.write(self._thinking.feed(event.text))
        else:
            self._side = clip(one_line(self._side + event.text)[-400:], self.paint.width - 2, end=True)

    def rest(self) -> None:
        """Print what is still unfinished: something else follows."""
        self.write(self._thinking.end() + self._markdown.end())
        self._say_asides()

    def aside(self, text: str, mark: str) -> None:
        """Print what the person said as soon as the line that is being written has its end."""
        self._asides.append((text, mark))
        self._say_asides()

    def _say_asides(self) -> None:
        if self._asides and not self._markdown.open:
            asides, self._asides = self._asides, []
            for text, mark in asides:
                self.said(text, mark)

    def write(self, text: str) -> None:
        """Print finished lines."""
        if text:
            self._write(text)

    def note(self, text: str, role: str = "dim") -> None:
        """Print a line of the program's own."""
        self.rest()
        self.write(self.paint.line((text, role)))

    def said(self, text: str, mark: str = "> ") -> None:
        """Print what the person said."""
        self.rest()
        lines = strip_escapes(text).split("\n")
        rows = [self.paint.raw(((mark if at == 0 else "  ") + line, "user")) for at, line in enumerate(lines)]
        self.write("\n" + "".join(rows))

    def answered(self, text: str) -> None:
        """Print a whole answer, of a conversation that goes on."""
        markdown = Markdown(self.paint)
        self.write(markdown.feed(text) + markdown.end())

    def _told(self, event: Event) -> str:
        line, depth = self.paint.line, 0 if event.parent_run_id is None else 1
        if isinstance(event, ToolStarted):
            return self.lines.started(event, depth)
        if isinstance(event, ToolFinished):
            return self.lines.finished(event, depth)
        if isinstance(event, FileChanged):
            return self._file(event)
        if isinstance(event, (Retry, ProviderSwitched)):
            again = f", again in {event.delay:.0f} s" if isinstance(event, Retry) and event.delay else ""
            return line((f"! {one_line(event.message)}{again}", "warning"))
        if isinstance(event, Log):
            role = "error" if event.level == "error" else "warning" if event.level == "warning" else "dim"
            return line((f"! {one_line(event.message)}", role)) if event.level != "debug" else ""
        if isinstance(event, MessageAdded):
            return self._notice(event)
        return self._told_rarely(event)

    def _file(self, event: FileChanged) -> str:
        if event.status == "initial":
            return ""
        verb = "created" if event.before is None else "deleted" if event.after is None else "changed"
        how = {"failed": "not ", "undone": "undone: ", "redone": "redone: "}.get(event.status, "")
        return self.paint.line((f"  {how}{verb} {one_line(event.path)}", "dim"))

    def _notice(self, event: MessageAdded) -> str:
        if event.message.role != "user" or event.source in ("prompt", "steer", "follow_up", "send"):
            return ""
        return self.paint.line((f"({event.source}) {clip(one_line(event.message.text), 200)}", "dim"))

    def _told_rarely(self, event: Event) -> str:
        line = self.paint.line
        if isinstance(event, ContextCompacted):
            sizes = f"{amount(event.before_tokens)} to {amount(event.after_tokens)} tokens"
            return line((f"  context compacted ({event.strategy}): {sizes}", "dim"))
        if isinstance(event, BudgetExceeded):
            return line((f"! limit reached: {event.what} ({event.used} of {event.limit})", "warning"))
        if isinstance(event, SkillActivated):
            return line((f"  skill {one_line(event.name)} read", "dim"))
        if isinstance(event, McpConnected):
            how = f"{event.tools} tools" if event.ok else f"failed: {one_line(event.error or '')}"
            return line((f"  MCP {one_line(event.name)}: {how}", "dim" if event.ok else "error"))
        if isinstance(event, StepStarted):
            total = f"/{event.total}" if event.total else ""
            return line((f"[{one_line(event.name)} {event.index}{total}]", "dim"))
        if isinstance(event, RunFinished) and event.parent_run_id is None and event.error is None:
            usage = event.usage
            turns = f"{event.turns} turn{'' if event.turns == 1 else 's'}"
            counts = f"{amount(usage.input_tokens)} in, {amount(usage.output_tokens)} out, {money(event.cost)}, {turns}"
            return line((f"[{event.stop_reason}: {counts}]", "dim"))
        return ""
