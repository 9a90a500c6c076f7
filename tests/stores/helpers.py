"""What the tests of tables and stores share."""

from __future__ import annotations

import asyncio
import sys
from typing import Self

from windlass.stores.tables import Tables

STEPS = (
    "CREATE TABLE things(id TEXT PRIMARY KEY, n INTEGER NOT NULL, x REAL, b BLOB); CREATE INDEX things_n ON things(n)",
    """-- a comment; with a semicolon and a ?
    CREATE TABLE parts(id TEXT PRIMARY KEY, thing TEXT NOT NULL REFERENCES things(id), note TEXT DEFAULT 'a;b ? ''c''');
    /* another; one */""",
)
HEAD = f"""
import asyncio, json, os, sys
from windlass.stores.tables import open_tables
STEPS = {STEPS!r}
tables = open_tables(sys.argv[1])
def say(**words): print(json.dumps(words), flush=True)
"""


async def put(tables: Tables, **things: int) -> None:
    """Insert things in one unit."""
    await tables.execute_many("INSERT INTO things(id, n) VALUES (?, ?)", list(things.items()))


async def numbers(tables: Tables) -> dict[str, int]:
    """Return the things and their numbers, by the order of their ids."""
    return dict(await tables.fetch("SELECT id, n FROM things ORDER BY id"))


async def start_program(code: str, *args: str) -> asyncio.subprocess.Process:
    """Start `HEAD` and `code` in a process of its own: `tables` is the database of the first argument."""
    pipe = asyncio.subprocess.PIPE
    return await asyncio.create_subprocess_exec(sys.executable, "-c", HEAD + code, *args, stdout=pipe)


class Proxy:
    """A TCP proxy before a server on loopback that can swallow the answer to what a client sends, and hang up."""

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._needle, self._times, self._then_refuse = b"", 0, False
        self._server: asyncio.Server | None = None
        self._tasks = set[asyncio.Task[None]]()
        self._writers = set[asyncio.StreamWriter]()
        self.port = 0
        #: Answers swallowed so far.
        self.cuts = 0

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()
        await asyncio.gather(*self._tasks)

    def cut_answers_to(self, needle: bytes, times: int, *, then_refuse: bool = False) -> None:
        """Swallow the answer to the next `times` requests that hold `needle`; then perhaps accept nobody any more."""
        self._needle, self._times, self._then_refuse = needle, times, then_refuse

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        mine = {writer}
        try:
            if self._then_refuse and self._times == 0 and self._needle:
                return
            answers, back = await asyncio.open_connection(*self._target)
            mine.add(back)
            self._writers |= mine
            await self._relay(reader, writer, answers, back)
        except ConnectionError:
            return
        finally:
            self._writers -= mine
            for one in mine:
                one.close()

    async def _relay(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        answers: asyncio.StreamReader,
        back: asyncio.StreamWriter,
    ) -> None:
        asking = asyncio.ensure_future(reader.read(65536))
        answering = asyncio.ensure_future(answers.read(65536))
        try:
            while True:
                await asyncio.wait({asking, answering}, return_when=asyncio.FIRST_COMPLETED)
                if answering.done():
                    if not (data := answering.result()):
                        return
                    writer.write(data)
                    await writer.drain()
                    answering = asyncio.ensure_future(answers.read(65536))
                if asking.done():
                    if not (data := asking.result()):
                        return
                    back.write(data)
                    await back.drain()
                    if self._times and self._needle in data:
                        self._times -= 1
                        self.cuts += 1
                        await answering  # it is done over there
                        return
                    asking = asyncio.ensure_future(reader.read(65536))
        finally:
            asking.cancel()
            answering.cancel()
