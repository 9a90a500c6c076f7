"""One gateway with all fake vendors behind it, on a loop in a thread of its own: for clients that wait."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Generator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import Any

from tests.server import matrix_agents
from tests.server.matrix_base import Vendor
from tests.server.matrix_clients import FACES, Face
from tests.server.matrix_upstreams import VENDORS
from windlass.accounts.records import RequestRecord
from windlass.core.config import Config
from windlass.server.protocol import Limits, Listener
from windlass.server.serve import listen
from windlass.server.settings import read_settings
from windlass.server.start import open_gateway
from windlass.testing.faults import FaultServer

#: The id that the model of a column has: what can be asked of it hangs on it.
MODELS = {
    "openai-chat": "gpt-4.1",
    "openai-responses": "gpt-5",
    "anthropic": "claude-sonnet-4-5",
    "ollama": "qwen3:8b",
    "gemini": "gemini-3-pro-preview",
    "bedrock": "us.anthropic.claude-sonnet-4-5-20250929-v1:0",
    "huggingface": "tgi",
    "local": "tiny-0",
}


class Matrix:
    """A gateway that listens, its vendors by column, its clients by row, and the records of what it served."""

    def __init__(self) -> None:
        self.vendors: dict[str, Vendor] = {vendor.name: vendor() for vendor in VENDORS}
        self._records: list[RequestRecord] = []
        self._changed = threading.Condition()
        self.url = ""
        self._faces: dict[str, Face] = {}
        self._numbers = itertools.count(1)
        self._up = threading.Event()
        self._end: tuple[asyncio.AbstractEventLoop, asyncio.Event] | None = None

    def face(self, client: str) -> Face:
        """Return a client, made at first use."""
        if client not in self._faces:
            rows = {
                **FACES,
                "openai-agents chat": matrix_agents.chat,
                "openai-agents responses": matrix_agents.responses,
            }
            self._faces[client] = rows[client](self.url)
        return self._faces[client]

    def model(self, egress: str) -> str:
        """Return the name under which a client asks a column's model."""
        return f"{egress}:{MODELS[egress]}"

    def other_model(self, egress: str) -> str:
        """Return a model of a column that nobody asked yet: a rest that it asks for is its own."""
        return f"{egress}:other-{next(self._numbers)}"

    def _record(self, record: RequestRecord) -> None:
        with self._changed:
            self._records.append(record)
            self._changed.notify()

    def forget(self) -> None:
        """Begin anew after a test that failed."""
        with self._changed:
            self._records = []
        for vendor in self.vendors.values():
            vendor.problems = []

    def take(self, count: int) -> list[RequestRecord]:
        """Return the `count` records since the last time, after checking that vendors took what they were sent.

        A client has its answer before the record of it is written.
        """
        with self._changed:
            self._changed.wait_for(lambda: len(self._records) >= count, timeout=10.0)
            records, self._records = self._records, []
        assert len(records) == count, records
        problems = {name: vendor.problems for name, vendor in self.vendors.items() if vendor.problems}
        for vendor in self.vendors.values():
            vendor.problems = []
        assert not problems, problems
        return records

    async def _serve(self, home: Path) -> None:
        async with AsyncExitStack() as stack:
            providers: dict[str, Any] = {}
            for name, vendor in self.vendors.items():
                server = await stack.enter_async_context(FaultServer(vendor.step, keep=1))
                providers[name] = {"base_url": server.url, "api_key": "sk-upstream", **vendor.table}
            config = Config(environ={"WINDLASS_HOME": str(home), "HOME": str(home)}, providers=providers)
            # One attempt: an error that is answered by asking again is tested elsewhere.
            gateway = await open_gateway(config, read_settings({"attempts": 1}), stack)
            gateway.watchers.append(lambda record, job: self._record(record))
            listener = Listener(gateway, Limits())
            sock = listen("127.0.0.1", 0)
            accepting = await listener.loop.create_server(listener, sock=sock)
            stack.push_async_callback(listener.drain, 0.0)
            stack.callback(accepting.close)
            self.url = f"http://127.0.0.1:{sock.getsockname()[1]}"
            end = asyncio.Event()
            self._end = asyncio.get_running_loop(), end
            self._up.set()
            await end.wait()

    def _run(self, home: Path) -> None:
        try:
            asyncio.run(self._serve(home))
        finally:
            self._up.set()

    @contextmanager
    def serving(self, home: Path) -> Generator[Matrix]:
        """Serve for as long as the block runs."""
        thread = threading.Thread(target=self._run, args=(home,), name="matrix")
        thread.start()
        self._up.wait()
        assert self._end is not None, "the gateway did not start"
        try:
            yield self
        finally:
            for face in self._faces.values():
                face.close()
            loop, end = self._end
            loop.call_soon_threadsafe(end.set)
            thread.join()
