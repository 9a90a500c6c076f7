"""The program as a user starts it, a model that answers as told, and a terminal."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import select
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from windlass.core import clock
from windlass.core.events import Event, decode_event
from windlass.testing.faults import FaultServer, Stream, sse

#: Ceiling for one command: a guard against hanging, not a measure.
PATIENCE = 90.0
KEY = "sk-canary-4f1d9b"


@dataclass
class Done:
    """How a command ended."""

    code: int
    raw: bytes
    err: str

    @property
    def out(self) -> str:
        return self.raw.decode("utf-8", "surrogateescape")

    def json(self) -> dict[str, Any]:
        """The one line of --output json."""
        (line,) = self.out.splitlines()
        return json.loads(line)

    def events(self) -> list[Event]:
        """The lines of --output stream-json."""
        return [decode_event(line) for line in self.raw.splitlines()]


class Cli:
    """`windlass` in a folder of its own, with a home of its own, without keys and without a terminal."""

    def __init__(self, top: Path) -> None:
        self.home, self.folder = top / "home", top / "work"
        #: What starts the program, where it is not started directly.
        self.prefix: list[str] = []
        self.home.mkdir()
        self.folder.mkdir()
        self.env: dict[str, str] = {
            "PATH": os.environ["PATH"],
            "HOME": str(top),
            "LANG": "C.UTF-8",
            "WINDLASS_HOME": str(self.home),
            "PYTHONDONTWRITEBYTECODE": "1",
            "OMP_NUM_THREADS": "1",
            # A warning of Python's in the program is a bug of ours.
            "PYTHONWARNINGS": "error::ResourceWarning",
        }

    def use(self, server: FaultServer) -> None:
        """Make a server on loopback the configured model."""
        self.env.update(
            WINDLASS_GROQ_BASE_URL=f"{server.url}/v1", WINDLASS_GROQ_API_KEY=KEY, WINDLASS_MODEL="groq:test-model"
        )

    def user_config(self, text: str) -> Path:
        path = self.home / "windlass.toml"
        path.write_text(text)
        return path

    def argv(self, *args: str) -> list[str]:
        return [*self.prefix, sys.executable, "-m", "windlass", *args]

    async def start(
        self,
        *args: str,
        stdin: int | None = asyncio.subprocess.DEVNULL,
        cwd: Path | None = None,
        stdout: int = asyncio.subprocess.PIPE,
        **env: str,
    ) -> asyncio.subprocess.Process:
        with default_signals():
            return await asyncio.create_subprocess_exec(
                *self.argv(*args),
                stdin=stdin,
                stdout=stdout,
                stderr=asyncio.subprocess.PIPE,
                cwd=cwd or self.folder,
                env={**self.env, **env},
                start_new_session=True,  # no controlling terminal, whoever runs the tests
            )

    async def __call__(
        self, *args: str, piped: bytes | None = None, cwd: Path | None = None, stdout: int | None = None, **env: str
    ) -> Done:
        """Run a command to its end."""
        stdin = asyncio.subprocess.DEVNULL if piped is None else asyncio.subprocess.PIPE
        target = asyncio.subprocess.PIPE if stdout is None else stdout
        process = await self.start(*args, stdin=stdin, cwd=cwd, stdout=target, **env)
        return await ended(process, piped)


async def ended(process: asyncio.subprocess.Process, piped: bytes | None = None) -> Done:
    """Wait for a process and return what it wrote."""
    try:
        async with clock.deadline(PATIENCE):
            out, err = await process.communicate(piped)
    finally:
        if process.returncode is None:
            process.kill()
    assert process.returncode is not None
    return Done(process.returncode, out or b"", err.decode("utf-8", "surrogateescape"))


class default_signals:
    """Signals that this process ignores (nohup, a background job) would be ignored by its children, too."""

    def __enter__(self) -> None:
        names = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        self._before = {number: signal.getsignal(number) for number in names}
        for number in names:
            signal.signal(number, signal.SIG_DFL)

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


# -- a model that answers as told --------------------------------------------------------------------------------------


def _chunk(delta: Mapping[str, Any], finish: str | None = None, **more: Any) -> str:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return json.dumps({"id": "r", "object": "chat.completion.chunk", "model": "m", "choices": [choice], **more})


_USAGE = {"prompt_tokens": 20, "completion_tokens": 3, "total_tokens": 23}


def _stream(deltas: list[Mapping[str, Any]], finish: str) -> Stream:
    tail = json.dumps({"id": "r", "object": "chat.completion.chunk", "model": "m", "choices": [], "usage": _USAGE})
    return Stream(sse(*[_chunk(delta) for delta in deltas], _chunk({}, finish), tail, "[DONE]"))


def says(*pieces: str, thinking: str = "") -> Stream:
    """An answer in text, streamed in these pieces."""
    first: list[Mapping[str, Any]] = [{"reasoning_content": thinking}] if thinking else []
    return _stream([*first, *[{"role": "assistant", "content": piece} for piece in pieces]], "stop")


def calls(*wanted: tuple[str, Mapping[str, Any]], text: str = "") -> Stream:
    """An answer that calls tools."""
    deltas: list[Mapping[str, Any]] = [{"role": "assistant", "content": text}] if text else []
    for index, (name, arguments) in enumerate(wanted):
        function = {"name": name, "arguments": json.dumps(arguments)}
        deltas.append(
            {"tool_calls": [{"index": index, "id": f"call_{index}", "type": "function", "function": function}]}
        )
    return _stream(deltas, "tool_calls")


def hanging(text: str) -> Stream:
    """An answer that begins and never ends."""
    return Stream([sse(_chunk({"role": "assistant", "content": text}))[0]], finish=False, end="hang")


def asked(server: FaultServer, number: int = -1) -> dict[str, Any]:
    """The body of a request that the model got."""
    return json.loads(server.requests[number].body)


def tool_results(server: FaultServer, number: int = -1) -> list[str]:
    """What the model was told of its calls."""
    return [str(each["content"]) for each in asked(server, number)["messages"] if each["role"] == "tool"]


# -- a terminal --------------------------------------------------------------------------------------------------------


class Terminal:
    """The program on a pseudo-terminal of its own, which is its controlling terminal."""

    def __init__(self, cli: Cli, *args: str, **env: str) -> None:
        self.shown = ""
        argv, environ = cli.argv(*args), {**cli.env, "TERM": "xterm", **env}
        with default_signals():
            self.pid, self.handle = pty.fork()
            if self.pid == 0:
                try:
                    os.chdir(cli.folder)
                    os.execve(argv[0], argv, environ)
                finally:
                    os._exit(99)
        self._code: int | None = None

    async def until(self, text: str) -> str:
        """Read until `text` is shown; returns what was shown since the last call."""
        begin = len(self.shown)
        async with clock.deadline(PATIENCE):
            while text not in self.shown[begin:]:
                if not self._read():
                    if self._code is not None or not self._alive():
                        raise AssertionError(f"{text!r} never came: {self.shown[begin:]!r}")
                    await clock.sleep(0.02)
        return self.shown[begin:]

    def type(self, text: str) -> None:
        os.write(self.handle, text.encode())

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    async def ended(self) -> int:
        """Wait for the end and return the exit code."""
        async with clock.deadline(PATIENCE):
            while self._alive():
                if not self._read():
                    await clock.sleep(0.02)
        while self._read():
            pass
        assert self._code is not None
        return self._code

    def close(self) -> None:
        """Hang up, which ends what still runs."""
        if self.handle >= 0:
            os.close(self.handle)
            self.handle = -1
        if self._alive():
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)

    def _read(self) -> bool:
        if self.handle < 0 or not select.select([self.handle], [], [], 0)[0]:
            return False
        try:
            data = os.read(self.handle, 65536)
        except OSError:  # the last one closed it
            return False
        self.shown += data.decode("utf-8", "replace")
        return bool(data)

    def _alive(self) -> bool:
        if self._code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self._code = os.waitstatus_to_exitcode(status)
        return self._code is None
