"""The program in tmux (a real terminal with a scrollback) and on a pseudo-terminal whose bytes are counted."""

from __future__ import annotations

import asyncio
import fcntl
import os
import re
import select
import struct
import termios
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyte

from tests.apps.helpers import PATIENCE, Cli, Terminal
from windlass.core import clock

FRAME = re.compile(r"\x1b\[\?2026h(.*?)\x1b\[\?2026l", re.DOTALL)


class Tmux:
    """A window of a tmux server of its own."""

    prompt = "\n>"

    def __init__(self, cli: Cli, folder: Path) -> None:
        self.cli, self.folder = cli, folder
        self.config = folder / "tmux.conf"
        self.config.write_text("set -g history-limit 20000\nset -g escape-time 0\nset -g remain-on-exit on\n")

    async def _tmux(self, *args: str) -> str:
        process = await asyncio.create_subprocess_exec(
            "tmux", "-S", str(self.folder / "socket"), "-f", str(self.config), *args,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, env=self.cli.env, cwd=self.cli.folder,
        )  # fmt: skip
        out, err = await process.communicate()
        assert process.returncode == 0, (args, err.decode())
        return out.decode()

    def _argv(self, args: tuple[str, ...]) -> list[str]:
        """The program, and its exit code in a file: tmux 3.3 does not tell it."""
        (self.folder / "code").unlink(missing_ok=True)
        return ["sh", "-c", f'"$@"; echo $? > {self.folder}/code', "sh", *self.cli.argv("tui", *args)]

    async def start(self, *args: str, width: int = 80, height: int = 24, **env: str) -> None:
        """Start the program in a new window, and wait for its prompt."""
        given = [part for name, value in env.items() for part in ("-e", f"{name}={value}")]
        await self._tmux("new-session", "-d", "-s", "t", "-x", str(width), "-y", str(height), *given, *self._argv(args))
        await self.until(self.prompt)

    async def start_command(self, *argv: str, **env: str) -> None:
        """Start another program in a new window."""
        given = [part for name, value in env.items() for part in ("-e", f"{name}={value}")]
        await self._tmux("new-session", "-d", "-s", "t", "-x", "80", "-y", "24", *given, *argv)

    async def again(self, *args: str) -> None:
        """Start the program anew in the same window."""
        given = [part for name, value in self.cli.env.items() for part in ("-e", f"{name}={value}")]
        await self._tmux("respawn-pane", "-k", *given, "-t", "t", *self._argv(args))
        await self.until(self.prompt)

    async def keys(self, *names: str) -> None:
        """Press keys by tmux's names."""
        await self._tmux("send-keys", "-t", "t", *names)

    async def type(self, text: str, *then: str) -> None:
        """Type text, then press keys."""
        await self._tmux("send-keys", "-t", "t", "-l", text)
        if then:
            await self.keys(*then)

    async def paste(self, text: str) -> None:
        """Paste in brackets, as a terminal does."""
        await self._tmux("set-buffer", text)
        await self._tmux("paste-buffer", "-p", "-t", "t")

    async def resize(self, width: int, height: int = 24) -> None:
        """Make the window another size."""
        await self._tmux("resize-window", "-t", "t", "-x", str(width), "-y", str(height))

    async def screen(self) -> str:
        """Return what is visible."""
        return await self._tmux("capture-pane", "-p", "-t", "t")

    async def everything(self) -> str:
        """Return the scrollback and the screen, wrapped lines joined."""
        return await self._tmux("capture-pane", "-p", "-J", "-S", "-", "-t", "t")

    async def colored(self) -> str:
        """Return the screen with its escapes."""
        return await self._tmux("capture-pane", "-p", "-e", "-t", "t")

    async def until(self, *texts: str, gone: str = "", where: Callable[[], Any] | None = None) -> str:
        """Wait until all texts are shown (and `gone` is not); returns the screen."""
        look = where or self.screen
        shown = ""
        try:
            async with clock.deadline(PATIENCE / 6):
                while True:
                    shown = await look()
                    if all(text in shown for text in texts) and not (gone and gone in shown):
                        return shown
                    await clock.sleep(0.03)
        except TimeoutError:
            raise AssertionError(f"{texts} never came:\n{shown}") from None

    async def signal(self, number: int) -> None:
        """Send a signal to the program alone."""
        shell = (await self._tmux("display-message", "-p", "-t", "t", "#{pane_pid}")).strip()
        children = Path(f"/proc/{shell}/task/{shell}/children").read_text().split()
        os.kill(int(children[0]), number)

    async def ended(self) -> int:
        """Wait for the program's end and return its exit code."""
        async with clock.deadline(PATIENCE / 6):
            while not (self.folder / "code").exists() or not (text := (self.folder / "code").read_text()):
                await clock.sleep(0.03)
        return int(text)

    async def close(self) -> None:
        """End the server and what runs in it."""
        process = await asyncio.create_subprocess_exec(
            "tmux", "-S", str(self.folder / "socket"), "kill-server",
            stderr=asyncio.subprocess.DEVNULL, env=self.cli.env,
        )  # fmt: skip
        await process.wait()


class Counted(Terminal):
    """The program on a pseudo-terminal, its frames, and the screen that pyte makes of them."""

    def __init__(self, cli: Cli, *args: str, width: int = 80, height: int = 24, **env: str) -> None:
        self.cells: Any = pyte.HistoryScreen(width, height, history=10_000, ratio=0.1)
        self._stream: Any = pyte.ByteStream(self.cells)
        super().__init__(cli, "tui", *args, TERM="xterm-256color", **env)
        self.resize(width, height)

    def resize(self, width: int, height: int) -> None:
        """Make the terminal another size; the kernel sends SIGWINCH."""
        fcntl.ioctl(self.handle, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))
        if (self.cells.columns, self.cells.lines) != (width, height):
            self.cells.resize(height, width)

    def _read(self) -> bool:
        if self.handle < 0 or not select.select([self.handle], [], [], 0)[0]:
            return False
        try:
            data = os.read(self.handle, 65536)
        except OSError:
            return False
        self.shown += data.decode("utf-8", "replace")
        # Marks of synchronized output are private modes that pyte does not know and passes over.
        self._stream.feed(data)
        return bool(data)

    async def seen(self, *texts: str, gone: str = "") -> list[str]:
        """Wait until the screen holds all texts; returns its rows."""
        try:
            async with clock.deadline(PATIENCE / 6):
                while not all(text in "\n".join(self.rows) for text in texts) or (
                    gone and gone in "\n".join(self.rows)
                ):
                    if not self._read():
                        await clock.sleep(0.01)
        except TimeoutError:
            raise AssertionError(f"{texts} never came:\n" + "\n".join(self.rows)) from None
        return self.rows

    async def quiet(self, seconds: float = 0.2) -> None:
        """Read until nothing came for so long."""
        last = clock.monotonic()
        while clock.monotonic() - last < seconds:
            if self._read():
                last = clock.monotonic()
            else:
                await clock.sleep(0.01)

    @property
    def rows(self) -> list[str]:
        """The rows of the screen without trailing blanks."""
        return [str(row).rstrip() for row in self.cells.display]

    @property
    def scrolled(self) -> list[str]:
        """The rows that have left the screen at its top."""
        return [
            "".join([row[column].data for column in range(self.cells.columns)]).rstrip()
            for row in self.cells.history.top
        ]

    @property
    def frames(self) -> list[str]:
        """The bytes of each frame."""
        return FRAME.findall(self.shown)
