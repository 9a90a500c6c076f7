"""The append-only screen: finished text goes into the scrollback once, and only the live lines below it are redrawn.

prompt_toolkit draws the live lines by their differences; here each frame becomes one write between the marks of a
synchronized update, text is put above the live lines without redrawing what scrolled, and a resize erases no row that
is not known to be live.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import TextIO

from prompt_toolkit.application import Application
from prompt_toolkit.data_structures import Point, Size
from prompt_toolkit.input import Input
from prompt_toolkit.key_binding import KeyBindings
from prompt_toolkit.layout import Layout
from prompt_toolkit.layout.screen import Screen as Cells
from prompt_toolkit.output import ColorDepth
from prompt_toolkit.output.flush_stdout import flush_stdout
from prompt_toolkit.output.vt100 import Vt100_Output
from prompt_toolkit.renderer import Renderer
from prompt_toolkit.styles import BaseStyle, Style

from windlass.apps.tui.themes import Theme

__all__ = ["FrameOutput", "LiveApp", "LiveRenderer", "reflows"]

#: DEC private mode 2026: a terminal that knows it shows the frame at once, others ignore it.
BEGIN, END = "\x1b[?2026h", "\x1b[?2026l"


def reflows(environ: Mapping[str, str]) -> bool:
    """Tell whether the terminal is known to wrap its lines anew when it becomes narrower.

    Where it is not known the answer is no: then a narrower terminal may keep a piece of the old live lines, but no
    line of the conversation is lost.
    """
    if environ.get("XTERM_VERSION") or environ.get("TERM", "") in ("linux", "dumb"):
        return False
    if environ.get("TMUX") or environ.get("TERM_PROGRAM") in ("iTerm.app", "Apple_Terminal", "WezTerm", "ghostty"):
        return True
    names = ("VTE_VERSION", "KITTY_WINDOW_ID", "ALACRITTY_WINDOW_ID", "KONSOLE_VERSION", "WT_SESSION")
    return any(environ.get(name) for name in names)


class FrameOutput(Vt100_Output):
    """Collects what is written until a frame ends and sends it in one write.

    `lost` is called when the terminal is gone; then nothing more is written.
    """

    def __init__(self, stdout: TextIO, term: str | None, depth: ColorDepth, lost: Callable[[], None]) -> None:
        super().__init__(stdout, self._size, term=term, default_color_depth=depth, enable_cpr=False)
        self._lost: Callable[[], None] | None = lost
        self._frames = 0

    def _size(self) -> Size:
        try:
            found = os.get_terminal_size(self.stdout.fileno())
        except (OSError, ValueError):
            return Size(rows=24, columns=80)
        return Size(rows=found.lines or 24, columns=found.columns or 80)

    @contextmanager
    def frame(self) -> Generator[None]:
        """Send everything that is written inside the block at once."""
        self._frames += 1
        try:
            yield
        finally:
            self._frames -= 1
            self.flush()

    def flush(self) -> None:
        """Send what was collected, unless a frame goes on."""
        if self._frames or not self._buffer:
            return
        data, self._buffer = "".join(self._buffer), []
        if self._lost is None:
            return
        try:
            flush_stdout(self.stdout, f"{BEGIN}{data}{END}")
        except (OSError, ValueError):
            lost, self._lost = self._lost, None
            lost()


class LiveRenderer(Renderer):
    """Draws the live lines below the text, and text above them."""

    def __init__(self, style: BaseStyle, output: FrameOutput, *, reflow: bool) -> None:
        self._reflow = reflow
        super().__init__(style, output)

    def above(self, text: str) -> None:
        """Write finished lines where the live lines began; those are drawn anew by the next `render`."""
        self._leave()
        self.output.write_raw("\x1b[0m\x1b[?7h" + text.replace("\n", "\r\n"))

    def render(self, app: Application[int], layout: Layout, is_done: bool = False) -> None:
        """Draw the live lines; after a resize from where they began."""
        if self._last_size is not None and self._last_size != self.output.get_size():
            self._leave()
        super().render(app, layout, is_done)

    def erase(self, leave_alternate_screen: bool = True) -> None:
        """Erase the live lines."""
        self._leave()
        self.output.write_raw("\x1b[0m\x1b[?7h")
        super().erase(leave_alternate_screen)

    def _leave(self) -> None:
        """Go to the beginning of the live lines, erase them, and forget that they were drawn."""
        self.output.write_raw("\r")
        self.output.cursor_up(self._rows_above())
        self.output.erase_down()
        self._cursor_pos = Point(x=0, y=0)
        self._last_screen = self._last_style = self._last_size = None

    def _rows_above(self) -> int:
        """Count the rows from the first live line to the cursor, as the terminal shows them now."""
        columns, before = self.output.get_size().columns, self._last_size
        cells, at = self._last_screen, self._cursor_pos
        if not self._reflow or cells is None or before is None or columns >= before.columns:
            return at.y
        rows = [-(-max(1, _used(cells, row)) // columns) for row in range(at.y)]
        return sum(rows) + at.x // columns


def _used(cells: Cells, row: int) -> int:
    """Count the columns of a row that hold something."""
    return max([column + char.width for column, char in cells.data_buffer[row].items() if char.char != " "], default=0)


class LiveApp(Application[int]):
    """The application whose layout is the live lines."""

    def __init__(
        self,
        layout: Layout,
        bindings: KeyBindings,
        output: FrameOutput,
        theme: Theme,
        *,
        reflow: bool,
        resized: Callable[[], None],
        input: Input | None = None,
    ) -> None:
        super().__init__(
            layout=layout,
            key_bindings=bindings,
            output=output,
            input=input,
            style=Style.from_dict(dict(theme.live)),
            include_default_pygments_style=False,
            erase_when_done=True,
            color_depth=ColorDepth.DEPTH_1_BIT if theme.name == "mono" else ColorDepth.DEPTH_4_BIT,
        )
        self._frames, self._resized = output, resized
        self._live = LiveRenderer(self._merged_style, output, reflow=reflow)
        self.renderer = self._live
        # Escape alone is a key here: it may not take a second to be seen.
        self.ttimeoutlen, self.timeoutlen = 0.05, 0.3

    @property
    def away(self) -> bool:
        """True while something else has the terminal: an editor, or the shell we are suspended to."""
        return self._running_in_terminal or not self._is_running

    def show(self, text: str = "") -> None:
        """Draw a frame: finished lines, then the live lines."""
        with self._frames.frame():
            if text:
                self._live.above(text)
            self._redraw()

    def send(self, raw: str) -> None:
        """Send bytes that draw nothing: a bell, a notice."""
        self._frames.write_raw(raw)
        self._frames.flush()

    def _on_resize(self) -> None:
        self._resized()
