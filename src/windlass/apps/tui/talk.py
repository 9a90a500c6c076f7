"""A conversation: its session, its runs one after the other, what waits for its turn, and what the keys do."""

from __future__ import annotations

import asyncio
import difflib
from collections.abc import Awaitable, Callable
from typing import Any

from windlass.agent.agent import Agent
from windlass.agent.run import Run
from windlass.agent.session import Session
from windlass.apps.tui.attach import attach
from windlass.apps.tui.built import Built
from windlass.apps.tui.modes import mode_of, next_mode
from windlass.apps.tui.paint import Painter, clip, one_line
from windlass.apps.tui.past import show_past
from windlass.apps.tui.surface import Surface
from windlass.apps.tui.toollines import ToolLines
from windlass.apps.tui.transcript import Transcript
from windlass.core import clock
from windlass.core.errors import AbortedError, ConfigError, WindlassError
from windlass.core.messages import Blob
from windlass.core.ports import Store
from windlass.core.text import truncate

__all__ = ["Handler", "Talk"]

#: An answer that took at least so many seconds calls the person back.
_LONG = 5.0
#: Two Ctrl-C within so many seconds leave.
_TWICE = 3.0
_SHELL_BYTES, _SHELL_SECONDS = 64 << 10, 600.0
_CONTEXT_BYTES = 16 << 10

Handler = Callable[["Talk", str], Awaitable[None]]


class Talk:
    """What the live lines show and the keys drive. `surface` is set before anything else is called."""

    surface: Surface

    def __init__(self, built: Built, session: Session, store: Store, commands: dict[str, Handler]) -> None:
        self.built, self.session, self.store, self._commands = built, session, store, commands
        self.painter: Painter
        self.lines: ToolLines
        self.transcript: Transcript
        self.queue: list[str] = []
        self.images: list[Blob] = []
        #: The model that `/model` chose; None is the agent's own.
        self.model: str | None = None
        #: What `!command` printed, for the next prompt.
        self.context: list[str] = []
        self.run: Run | None = None
        self._task: asyncio.Task[None] | None = None
        self._beside: set[asyncio.Task[None]] = set()
        self._hits, self._hit_at = 0, float("-inf")

    def on(self, surface: Surface, painter: Painter) -> None:
        """Take the surface."""
        self.surface, self.painter = surface, painter
        self.lines = ToolLines(painter, self.built.folder)
        self.transcript = Transcript(painter, surface.write, surface.changed, self.lines)
        waiting, behavior = self.transcript.waiting, self.agent.behavior
        waiting.tool_limit = behavior.tool_timeout
        if self.built.config is not None:
            waiting.provider_limit = self.built.config.get("request_timeout")
        self.transcript.status.of_model(self.agent.model_name)
        self.show_mode()

    @property
    def agent(self) -> Agent:
        """Who answers."""
        return self.built.agent

    # -- what is shown ---------------------------------------------------------------------------------------------

    @property
    def tail(self) -> str:
        """The row that is still being written."""
        return self.transcript.tail

    @property
    def waiting(self) -> str:
        """What is being waited for."""
        return self.transcript.waiting.line(self.surface.width)

    @property
    def status(self) -> str:
        """Model, mode, context, tokens, cost."""
        self.transcript.status.queued = len(self.queue)
        return self.transcript.status.line(self.surface.width)

    @property
    def running(self) -> bool:
        """True while an answer, or a command of the person's, is going on."""
        return self._task is not None and not self._task.done()

    def show_mode(self) -> None:
        """Show the mode as it is now."""
        self.transcript.status.mode = mode_of(self.agent.policy)
        self.surface.changed()

    def note(self, text: str, role: str = "dim") -> None:
        """Print a line of the program's own."""
        self.transcript.note(text, role)

    # -- what the person does --------------------------------------------------------------------------------------

    def submit(self, text: str) -> None:
        """Take an input: a command, a prompt for now, or one for later."""
        self._hits = 0
        if not text.strip():
            return
        if (name := self._command_name(text)) is not None:
            self._start_command(name, text)
        elif self.running:
            self.queue.append(text)
            self.surface.say(f"queued: {clip(one_line(text), 40)}")
        else:
            self._task = asyncio.create_task(self._work(text))
        self.surface.changed()

    def _command_name(self, text: str) -> str | None:
        """Return the name in `/name …`; a path such as /usr/bin is none."""
        first = text.split(maxsplit=1)[0]
        return first[1:] if first.startswith("/") and len(first) > 1 and "/" not in first[1:] else None

    def _start_command(self, name: str, text: str) -> None:
        handler = self._commands.get(name)
        if handler is None:
            near = difflib.get_close_matches(name, self._commands, n=1)
            self.note(f"There is no /{name}." + (f" Did you mean /{near[0]}?" if near else " See /help."), "error")
            return
        task = asyncio.create_task(self._guarded(handler, text.partition(name)[2].strip()))
        self._beside.add(task)
        task.add_done_callback(self._beside.discard)

    async def _guarded(self, handler: Handler, argument: str) -> None:
        try:
            await handler(self, argument)
        except WindlassError as error:
            self.note(str(error), "error")
        except OSError as error:
            self.note(f"{error.filename or ''}: {error.strerror}", "error")

    def steer(self, text: str) -> None:
        """Tell the running answer something before its next request; without one it is a prompt."""
        if self.run is None or self.run.done:
            self.submit(text)
            return
        self.transcript.aside(text, "↪ ")
        self.run.steer(text)

    def stop(self) -> None:
        """Stop what runs; what was queued goes back into the input line."""
        if self.queue:
            self.surface.put_back("\n".join(self.queue))
            self.queue.clear()
        if self.run is not None and not self.run.done:
            self.run.abort("stopped at the terminal")
        elif self._task is not None:
            self._task.cancel()
        self.transcript.waiting.begin("stopping")
        self.surface.changed()

    def interrupt(self) -> None:
        """Take a Ctrl-C or SIGINT: the first stops what runs, the second leaves."""
        now = clock.monotonic()
        self._hits = self._hits + 1 if now - self._hit_at < _TWICE else 1
        self._hit_at = now
        if self._hits > 1:
            self.leave(130)
        elif self.running:
            self.stop()
        else:
            self.note("Ctrl-C again leaves; /exit and Ctrl-D do, too.")

    def leave(self, code: int) -> None:
        """End the program; a run is stopped first."""
        if self.run is not None:
            self.run.abort("the terminal was left")
        self.surface.leave(code)

    def lost(self) -> None:
        """The terminal is gone."""
        self.leave(130)

    def next_mode(self) -> None:
        """Go on to the next permission mode."""
        try:
            next_mode(self.agent.policy)
        except ConfigError as error:
            self.note(str(error), "warning")
        self.show_mode()

    def expand(self) -> None:
        """Print the last tool call whole."""
        text = self.lines.expanded()
        if text is None:
            self.note("No tool has been called yet.")
        else:
            self.transcript.rest()
            self.transcript.write(text)

    def must_rest(self, what: str) -> None:
        """Raise ConfigError while something runs."""
        if self.running:
            raise ConfigError(f"Cannot {what} while an answer runs.", hint="Wait for it, or stop it with Esc Esc.")

    # -- runs ------------------------------------------------------------------------------------------------------

    async def _work(self, text: str) -> None:
        while True:
            try:
                if text.startswith("!"):
                    await self._shell(text[1:].strip())
                else:
                    await self._prompt(text)
            except asyncio.CancelledError:
                self.note("stopped.", "warning")
                raise
            finally:
                self.transcript.waiting.end()
                self.surface.say("")
            if not self.queue:
                return
            text = self.queue.pop(0)

    async def _prompt(self, text: str) -> None:
        self.transcript.said(text)
        context, self.context = "\n".join(self.context), []
        attached = await attach(text, self.agent.workspace, context)
        if attached.taken:
            self.note(f"attached: {', '.join([one_line(name) for name in attached.taken])}")
        for failure in attached.failed:
            self.note(one_line(failure), "warning")
        images, self.images = self.images, []
        await self.turn((*attached.parts, *images))

    def resume(self) -> None:
        """Go on with the run that the program's end cut off."""
        self.must_rest("continue")

        async def go() -> None:
            await self.turn(None)

        self._task = asyncio.create_task(go())

    async def turn(self, prompt: Any) -> None:
        """Run a prompt to its end and show it; what fails is shown, too."""
        begun = clock.monotonic()
        options: dict[str, Any] = {} if self.model is None else {"model": self.model}
        self.transcript.waiting.begin("starting")
        self.surface.changed()
        run: Run | None = None
        try:
            run = self.run = self.session.run(prompt, sinks=[self.transcript], **options)
            await run
        except AbortedError:
            self.note("stopped.", "warning")
        except WindlassError as error:
            self.note(str(error), "error")
        except Exception as error:
            self.note(f"internal error: {type(error).__name__}: {error}", "error")
        finally:
            self.run = None
            self.transcript.rest()
            self.transcript.waiting.end()
            self.surface.changed()
        left = [message.text for message in (run.steer_queue if run is not None else [])]
        self.queue[:0] = [text for text in left if text]
        if clock.monotonic() - begun >= _LONG:
            self.surface.attention("the answer is there")

    async def _shell(self, command: str) -> None:
        """Run a command of the person's own; the model sees it with the next prompt."""
        workspace = self.agent.workspace
        self.transcript.said(f"!{command}", "")
        if workspace is None or "shell" not in workspace.capabilities or not command:
            self.note(
                "There is no shell here." if command else "Write the command after the exclamation mark.", "error"
            )
            return
        self.transcript.waiting.begin(f"{clip(one_line(command), 40)} runs", _SHELL_SECONDS)
        self.surface.changed()
        try:
            result = await workspace.exec(command, timeout=_SHELL_SECONDS, max_output=_SHELL_BYTES)
        except WindlassError as error:
            self.note(str(error), "error")
            return
        output = result.output.decode("utf-8", "replace")
        self.transcript.write(self.painter.raw(output.rstrip("\n")) if output.strip() else "")
        ended = f"exit {result.exit_code}" if result.killed is None else f"killed: {result.killed}"
        if result.exit_code != 0:
            self.note(ended, "error")
        shown = truncate(output, _CONTEXT_BYTES)
        self.context.append(f'<command line="{command}" end="{ended}">\n{shown}\n</command>')

    # -- sessions --------------------------------------------------------------------------------------------------

    async def switch(self, session: Session, *, show: bool = True) -> None:
        """Go on with another session, and show what was said in it."""
        self.session = session
        self.lines.allowed.clear()
        self.transcript.status.of_conversation(session.conversation)
        if show:
            await show_past(self.transcript, session)
        self.surface.changed()

    async def close(self) -> None:
        """Stop what runs and wait for it, so that everything due is written."""
        for task in tuple(self._beside):
            task.cancel()
        if self.run is not None:
            self.run.abort("the terminal was left")
        elif self._task is not None:
            self._task.cancel()
        self.queue.clear()
        waiting = [task for task in (*self._beside, self._task) if task is not None]
        await asyncio.gather(*waiting, return_exceptions=True)
