"""Gateways to test against: one in this process on the test's own loop, and the real program."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from windlass.core.config import Config
from windlass.core.routes import read_routes
from windlass.server.gateway import Gateway
from windlass.server.protocol import Limits, Listener
from windlass.server.serve import listen
from windlass.server.settings import ServerSettings, read_settings
from windlass.server.start import open_gateway


@dataclass
class InProcess:
    """A gateway that listens on the test's loop."""

    gateway: Gateway
    listener: Listener
    port: int
    home: Path

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.port}"


StartGateway = Callable[..., Awaitable[InProcess]]


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[StartGateway]:
    """Start gateways: `await gateway(routes={...}, providers={...}, server={...}, environ={...})`."""
    async with AsyncExitStack() as stack:
        count = 0

        async def start(
            *,
            routes: dict[str, Any] | None = None,
            providers: dict[str, Any] | None = None,
            server: dict[str, Any] | None = None,
            environ: dict[str, str] | None = None,
            limits: Limits | None = None,
            settings: ServerSettings | None = None,
        ) -> InProcess:
            nonlocal count
            count += 1
            home = tmp_path / f"home{count}"
            home.mkdir()
            config = Config(
                environ={"WINDLASS_HOME": str(home), "HOME": str(home), **(environ or {})},
                providers=providers,
                routes=read_routes(routes) if routes else None,
                server=server,
            )
            made = await open_gateway(config, settings or read_settings(server or {}, environ=environ), stack)
            listener = Listener(made, limits or made.settings.limits)
            sock = listen("127.0.0.1", 0)
            accepting = await listener.loop.create_server(listener, sock=sock)
            stack.push_async_callback(listener.drain, 0.0)
            stack.callback(accepting.close)
            return InProcess(made, listener, sock.getsockname()[1], home)

        yield start


@dataclass
class Served:
    """`windlass serve` as a process."""

    process: subprocess.Popen[bytes]
    port: int
    home: Path
    log: Path
    env: dict[str, str] = field(default_factory=dict[str, str])

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.port}"

    def stop(self, number: int = signal.SIGTERM, seconds: float = 30.0) -> int:
        """Signal it and return its exit code."""
        self.process.send_signal(number)
        return self.process.wait(seconds)


Serve = Callable[..., Served]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Start the program: `serve(config_text, "--flag", VARIABLE="value")`; it is killed when the test ends."""
    running: list[Served] = []

    def start(config: str = "", *flags: str, home: Path | None = None, port: int = 0, **env: str) -> Served:
        home = home or tmp_path / f"home{len(running)}"
        home.mkdir(exist_ok=True)
        file, log = home / "gateway.toml", tmp_path / f"serve{len(running)}.log"
        file.write_text(config)
        environ = {"PATH": os.environ["PATH"], "HOME": str(home), "WINDLASS_HOME": str(home), **env}
        command = [sys.executable, "-m", "windlass", "serve", "--port", str(port), "--config", str(file), *flags]
        with log.open("wb") as out:
            process = subprocess.Popen(command, stdout=out, stderr=out, env=environ, cwd=home)
        made = Served(process, 0, home, log, environ)
        running.append(made)
        made.port = _port(made)
        return made

    yield start
    for served in running:
        if served.process.poll() is None:
            served.process.kill()
        served.process.wait(10)


def _port(served: Served) -> int:
    """Wait for the line that says where it listens: read as it is written, at most 20 s."""
    for _ in range(2000):
        text = served.log.read_text(errors="replace")
        if found := re.search(r"windlass serves http://[^\s]+:(\d+)", text):
            return int(found[1])
        try:
            code = served.process.wait(0.01)
        except subprocess.TimeoutExpired:
            continue
        raise AssertionError(f"windlass serve exited with {code}: {served.log.read_text(errors='replace')}")
    raise AssertionError(f"windlass serve never listened: {served.log.read_text(errors='replace')}")
