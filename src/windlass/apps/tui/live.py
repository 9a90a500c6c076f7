"""The live lines: at most two above the input and one below it, and the frames that draw them."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from msgspec import Struct
from prompt_toolkit.application import in_terminal
from prompt_toolkit.buffer import Buffer
from prompt_toolkit.completion import Completer, ThreadedCompleter
from prompt_toolkit.enums import EditingMode
from prompt_toolkit.filters import Condition
from prompt_toolkit.formatted_text import StyleAndTextTuples
from prompt_toolkit.history import History
from prompt_toolkit.input import Input
from prompt_toolkit.key_binding import KeyBindings
from prompt_toolkit.layout import (
    BufferControl,
    ConditionalContainer,
    Dimension,
    FormattedTextControl,
    HSplit,
    Layout,
    VerticalAlign,
    Window,
)
from prompt_toolkit.layout.processors import BeforeInput
from prompt_toolkit.widgets import SearchToolbar

from windlass.apps.tui.notify import notice
from windlass.apps.tui.paint import clip
from windlass.apps.tui.screen import FrameOutput, LiveApp, reflows
from windlass.apps.tui.surface import Question
from windlass.apps.tui.themes import Theme
from windlass.core import clock

__all__ = ["Choice", "LiveScreen", "View"]

#: Seconds between two frames, and the most finished text that one of them takes along.
FRAME, MOST_TEXT = 0.04, 16 << 10
#: An answer counts when nothing was typed for so long before it.
CALM = 0.3
_INPUT_ROWS = 8
_CHOOSE_HINT = "up and down move, typing filters, Enter takes it, Esc leaves"
_STEER_HINT = "Enter tells the running answer, Esc again stops it, Ctrl-C stops it"


class View(Protocol):
    """What the live lines show of the conversation, and what the keys do to it."""

    @property
    def tail(self) -> str: ...
    @property
    def waiting(self) -> str: ...
    @property
    def status(self) -> str: ...
    @property
    def running(self) -> bool: ...

    def submit(self, text: str) -> None: ...
    def steer(self, text: str) -> None: ...
    def stop(self) -> None: ...
    def interrupt(self) -> None: ...
    def next_mode(self) -> None: ...
    def expand(self) -> None: ...
    def lost(self) -> None: ...


class Choice(Struct):
    """A choice that is open: all rows, those that the filter leaves, and which of them is marked."""

    title: str
    rows: Sequence[str]
    done: asyncio.Future[int | None]
    before: str = ""
    left: list[int] = []
    at: int = 0

    def narrow(self, typed: str) -> None:
        """Leave the rows that hold every typed word."""
        words = typed.lower().split()
        self.left = [at for at, row in enumerate(self.rows) if all(word in row.lower() for word in words)]
        self.at = min(self.at, max(0, len(self.left) - 1))


class LiveScreen:
    """A surface on a terminal that can move its cursor."""

    def __init__(
        self,
        view: View,
        theme: Theme,
        output: FrameOutput,
        bindings: Callable[[LiveScreen], KeyBindings],
        *,
        completer: Completer | None = None,
        history: History | None = None,
        environ: Mapping[str, str] = os.environ,
        input: Input | None = None,
    ) -> None:
        self.view, self._environ, self._output = view, environ, output
        self.question: Question | None = None
        self.choice: Choice | None = None
        self.steering = False
        self.notice = ""
        self._answer: asyncio.Future[str] | None = None
        self._calm_at = 0.0
        self._text: list[str] = []
        self._timer: asyncio.TimerHandle | None = None
        self._last = 0.0
        self.buffer = Buffer(
            name="input",
            completer=None if completer is None else ThreadedCompleter(completer),
            complete_while_typing=Condition(lambda: self.choice is None and self.buffer.text[:1] in ("/", "@")),
            history=history,
            multiline=True,
            tempfile_suffix=".md",
            on_text_changed=lambda _: self._typed(),
        )
        self.app = LiveApp(
            self._layout(),
            bindings(self),
            output,
            theme,
            reflow=reflows(environ),
            resized=self.changed,
            input=input,
        )

    # -- the surface -----------------------------------------------------------------------------------------------

    @property
    def width(self) -> int:
        """Columns."""
        return self._output.get_size().columns

    def write(self, text: str) -> None:
        """Print finished lines with the next frame."""
        self._text.append(text)
        self._schedule()

    def changed(self) -> None:
        """Draw the live lines with the next frame."""
        self._schedule()

    def attention(self, what: str, /) -> None:
        """Ring the bell, or send the notice that this terminal knows."""
        if not self.app.away and (raw := notice(what, self._environ)):
            self.app.send(raw)

    def put_back(self, text: str) -> None:
        """Put text before what is in the input line."""
        self.buffer.text = "\n".join([part for part in (text, self.buffer.text) if part])
        self.buffer.cursor_position = len(self.buffer.text)

    async def ask(self, question: Question) -> str:
        """Ask below the text; what is typed within 0.3 s of other typing or of the question is no answer."""
        self.question = question
        answer = self._answer = asyncio.get_running_loop().create_future()
        self.drain()
        self.touched()
        try:
            return await answer
        finally:
            self.question = self._answer = None
            self.changed()

    async def choose(self, title: str, rows: Sequence[str]) -> int | None:
        """Let the person choose one of the rows, which are printed; the input line filters them."""
        if not rows:
            return None
        done: asyncio.Future[int | None] = asyncio.get_running_loop().create_future()
        choice = Choice(title, rows, done, self.buffer.text)
        self.buffer.text = ""
        self.choice = choice
        choice.narrow("")
        self.changed()
        try:
            return await done
        finally:
            self.choice = None
            self.buffer.text = choice.before
            self.changed()

    def leave(self, code: int) -> None:
        """End with this exit code."""
        if self.app.is_running and not self.app.is_done:
            self.drain()
            self.app.exit(result=code)

    # -- what the keys do ------------------------------------------------------------------------------------------

    def touched(self) -> None:
        """Something was typed, or a question appeared: an answer counts from 0.3 s later."""
        self._calm_at = clock.monotonic() + CALM

    def answer(self, key: str) -> None:
        """Take a key for the question that is open."""
        calm, question = clock.monotonic() >= self._calm_at, self.question
        if question is None or self._answer is None or self._answer.done():
            return
        if calm and key in question.choices:
            self._answer.set_result(key)
        elif calm and key == "escape":
            self._answer.set_result(question.safe)
        else:
            self.touched()

    def refuse(self) -> None:
        """Give the open question its safe answer, and leave an open choice."""
        if self._answer is not None and not self._answer.done() and self.question is not None:
            self._answer.set_result(self.question.safe)
        if self.choice is not None and not self.choice.done.done():
            self.choice.done.set_result(None)

    def say(self, text: str) -> None:
        """Show a word in the live lines until something is sent, or the answer ends."""
        self.notice = text
        self.changed()

    def vim(self) -> bool:
        """Switch between emacs' and vi's keys; tells whether it is vi's now."""
        now_vi = self.app.editing_mode is EditingMode.EMACS
        self.app.editing_mode = EditingMode.VI if now_vi else EditingMode.EMACS
        return now_vi

    def suspend(self) -> None:
        """Give the terminal back to the shell until we are continued."""
        self.app.create_background_task(self._suspended())

    async def _suspended(self) -> None:
        loop = asyncio.get_running_loop()
        async with in_terminal():
            loop.remove_signal_handler(signal.SIGTSTP)
            os.kill(0, signal.SIGTSTP)
            # Here we are again: continued by the shell.
            loop.add_signal_handler(signal.SIGTSTP, self.suspend)
        self.changed()

    def _typed(self) -> None:
        if self.choice is not None:
            self.choice.narrow(self.buffer.text)

    # -- frames ----------------------------------------------------------------------------------------------------

    def _schedule(self) -> None:
        if self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(max(0.0, self._last + FRAME - loop.time()), self._frame)

    def _frame(self) -> None:
        loop, self._timer = asyncio.get_running_loop(), None
        self._last = loop.time()
        if self.app.is_done:
            return
        if self.app.away:
            self._timer = loop.call_later(4 * FRAME, self._frame)
            return
        self.app.show(self._some_text())
        if self._text:
            self._schedule()
        elif self.view.waiting:
            self._timer = loop.call_later(1.0, self._frame)

    def _some_text(self) -> str:
        """Take whole lines for one frame."""
        text, self._text = "".join(self._text), []
        if len(text) <= MOST_TEXT:
            return text
        cut = text.rfind("\n", 0, MOST_TEXT) + 1 or text.find("\n", MOST_TEXT) + 1 or len(text)
        self._text = [text[cut:]] if cut < len(text) else []
        return text[:cut]

    def drain(self) -> None:
        """Draw everything that is finished, now."""
        while not self.app.away:
            self.app.show(self._some_text())
            if not self._text:
                return

    # -- layout ----------------------------------------------------------------------------------------------------

    def _layout(self) -> Layout:
        search = SearchToolbar()
        control = BufferControl(
            self.buffer,
            input_processors=[BeforeInput(lambda: [("", self._mark())])],
            search_buffer_control=search.control,
        )
        above = Window(FormattedTextControl(self._above), height=Dimension(min=0, max=2), dont_extend_height=True)
        below = Window(FormattedTextControl(self._below), height=1, dont_extend_height=True)
        entry = Window(
            control,
            height=Dimension(min=1, max=_INPUT_ROWS),
            wrap_lines=True,
            dont_extend_height=True,
        )
        some = Condition(lambda: bool(self._rows()))
        searching = Condition(lambda: self.app.layout.is_searching)
        parts = [
            ConditionalContainer(above, some),
            entry,
            search,
            ConditionalContainer(below, ~searching & Condition(lambda: self._output.get_size().rows > 3)),
        ]
        return Layout(HSplit(parts, align=VerticalAlign.TOP), entry)

    def _mark(self) -> str:
        return "? " if self.question is not None or self.choice is not None else "steer> " if self.steering else "> "

    def _rows(self) -> list[tuple[str, str]]:
        """Return up to two rows of (style, text) above the input."""
        width = self.width - 1
        room = max(0, min(2, self._output.get_size().rows - 3))
        rows: list[tuple[str, str]] = []
        if self.question is not None:
            rows = [("class:question", f"{self.question.text} {self.question.hint}")]
        elif (choice := self.choice) is not None:
            row = choice.rows[choice.left[choice.at]] if choice.left else "nothing fits"
            place = f"{choice.at + 1 if choice.left else 0} of {len(choice.left)}"
            rows = [("class:chosen", row), ("class:dim", f"{choice.title}, {place}: {_CHOOSE_HINT}")]
        else:
            if tail := self.view.tail:
                rows.append(("", clip(tail, width, end=True)))
            words = [_STEER_HINT] if self.steering else [word for word in (self.notice, self.view.waiting) if word]
            if words:
                rows.append(("class:dim", " - ".join(words)))
        return [(style, clip(text, width)) for style, text in rows[len(rows) - room :]] if room else []

    def _above(self) -> StyleAndTextTuples:
        out: StyleAndTextTuples = []
        for number, (style, text) in enumerate(self._rows()):
            out.append((style, f"\n{text}" if number else text))
        return out

    def _below(self) -> StyleAndTextTuples:
        state = self.buffer.complete_state
        if state is None or not state.completions or self.choice is not None:
            return [("class:dim", self.view.status)]
        at = state.complete_index or 0
        out: StyleAndTextTuples = []
        room = self.width - 2
        for number, item in enumerate(state.completions[at:], at):
            room -= len(item.display_text) + 2
            if room < 0:
                break
            out.append(("class:chosen" if number == state.complete_index else "class:dim", item.display_text))
            out.append(("", "  "))
        current = state.current_completion
        meta = current.display_meta_text if current is not None else ""
        if meta and room > len(meta):
            out.append(("class:dim", f"- {meta}"))
        return out
