"""Gateways of a test: in this process, in another one, and with a database that fails."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import pytest

from windlass.accounts import book
from windlass.accounts.book import Accounts
from windlass.accounts.keys import Identity
from windlass.accounts.limits import Reservation
from windlass.core import clock
from windlass.core.errors import RequestRefused, StoreError
from windlass.stores.tables import Cursor, Tables, open_tables

T = TypeVar("T")
#: A guard against hanging, not a measure.
PATIENCE = 60.0


class Opened:
    """Opens accounts on one database, and closes them at the end."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._all: list[Accounts] = []

    async def __call__(self, **options: Any) -> Accounts:
        self._all.append(await Accounts.open(self.url, **options))
        return self._all[-1]

    async def close(self) -> None:
        for each in self._all:
            await each.close()


async def identity_of(accounts: Accounts, **limits: Any) -> Identity:
    """Make a key and return who its secret stands for."""
    _, secret = await accounts.create("test", **limits)
    found = accounts.identify(secret)
    assert found is not None
    return found


async def attempt(accounts: Accounts, who: Identity, tokens: int = 1, cost: int = 1) -> Reservation | RequestRefused:
    """Reserve as a gateway does: from memory, else with the database."""
    try:
        found = accounts.reserve(who, tokens, cost)
        return await accounts.areserve(who, tokens, cost) if found is None else found
    except RequestRefused as refused:
        return refused


async def admitted(accounts: Accounts, who: Identity, tokens: int = 1, cost: int = 1) -> Reservation:
    """Reserve where it must be granted."""
    found = await attempt(accounts, who, tokens, cost)
    assert isinstance(found, Reservation), found
    return found


async def refused(accounts: Accounts, who: Identity, tokens: int = 1, cost: int = 1) -> RequestRefused:
    """Reserve where it must be refused."""
    found = await attempt(accounts, who, tokens, cost)
    assert isinstance(found, RequestRefused)
    return found


async def used(url: str, kind: str = "budget") -> int:
    """Read what the database says is used or leased of the one limit of a kind."""
    tables = open_tables(url)
    try:
        rows = await tables.fetch("SELECT used FROM account_meters WHERE kind = ?", (kind,))
        assert len(rows) == 1
        return int(rows[0][0])
    finally:
        await tables.close()


class Flaky:
    """A database that fails on demand: before a unit of work, or after it was committed."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables
        self.dialect = tables.dialect
        #: How many units of work come to nothing, and how many are done although their caller is told otherwise.
        self.fail_before = self.fail_after = 0
        #: Units of work wait until it is set.
        self.gate = asyncio.Event()
        self.gate.set()
        #: Every unit of work that was asked for.
        self.units = 0
        #: Rows that were read.
        self.rows = 0

    async def _run(self, work: Callable[[], Any]) -> Any:
        self.units += 1
        await self.gate.wait()
        if self.fail_before > 0:
            self.fail_before -= 1
            raise StoreError("The database is away.")
        result = await work()
        if self.fail_after > 0:
            self.fail_after -= 1
            raise StoreError("The connection was lost while it was committed.")
        return result

    async def migrate(self, room: str, steps: Sequence[str]) -> None:
        await self._tables.migrate(room, steps)

    async def execute(self, sql: str, params: Sequence[Any] = (), *, idempotent: bool = False) -> int:
        return await self._run(lambda: self._tables.execute(sql, params, idempotent=idempotent))

    async def execute_many(self, sql: str, rows: Sequence[Sequence[Any]], *, idempotent: bool = False) -> None:
        await self._run(lambda: self._tables.execute_many(sql, rows, idempotent=idempotent))

    async def fetch(self, sql: str, params: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        found = await self._tables.fetch(sql, params)
        self.rows += len(found)
        return found

    async def transact(self, work: Callable[[Cursor], T], *, idempotent: bool = False) -> T:
        return await self._run(lambda: self._tables.transact(work, idempotent=idempotent))

    async def close(self) -> None:
        await self._tables.close()


def make_flaky(monkeypatch: pytest.MonkeyPatch) -> list[Flaky]:
    """Let accounts that are opened from now on have a database that can fail."""
    made: list[Flaky] = []

    def opener(url: str) -> Flaky:
        made.append(Flaky(open_tables(url)))
        return made[-1]

    monkeypatch.setattr(book, "open_tables", opener)
    return made


class Program:
    """Another gateway: a Python program that talks over its standard streams, one line at a time."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    @classmethod
    async def start(cls, source: str, *args: str) -> Program:
        return cls(
            await asyncio.create_subprocess_exec(
                sys.executable, "-c", source, *args,
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
                env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
            )
        )  # fmt: skip

    async def line(self) -> str:
        """Read the next line it prints."""
        assert self.process.stdout is not None
        async with clock.deadline(PATIENCE):
            return (await self.process.stdout.readline()).decode().strip()

    def say(self, text: str) -> None:
        """Write a line to it."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{text}\n".encode())

    async def ended(self) -> int:
        """Wait for its end and return the exit code."""
        try:
            async with clock.deadline(PATIENCE):
                await self.process.communicate()
        finally:
            if self.process.returncode is None:
                self.process.kill()
                await self.process.wait()
        assert self.process.returncode is not None
        return self.process.returncode


#: The beginning of such a program: `main(accounts)` is to be defined after it, then `run(main)` called.
PROLOGUE = """
import asyncio, os, signal, sys
from windlass.accounts.book import Accounts
from windlass.accounts.records import RequestRecord
from windlass.core import clock
from windlass.core.errors import RequestRefused

async def attempt(accounts, who, tokens=1, cost=1):
    try:
        return accounts.reserve(who, tokens, cost) or await accounts.areserve(who, tokens, cost)
    except RequestRefused:
        return None

async def said():
    return await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)

def say(*words):
    print(*words, flush=True)

def run(main):
    async def whole():
        accounts = await Accounts.open(sys.argv[1])
        await main(accounts)
        await accounts.close()
    asyncio.run(whole())
"""
