"""Simulated lives of sessions: turns, cancels, crashes, compactions, forks, rewinds, steering, failing providers.

Every schedule comes from a seed, on a clock that jumps. After each step the stored history is valid for all dialects,
every pair is whole, nothing that was acknowledged is missing, and what lives in memory is what the ledger folds to.
A failing seed is in the assertion; `_life(seed)` plays it again.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import random
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from tests.agent.helpers import Tool
from windlass.agent.agent import Agent
from windlass.agent.context import compact_now
from windlass.agent.conversation import Conversation
from windlass.agent.ledger import Ledger
from windlass.agent.run import Run
from windlass.agent.session import Session
from windlass.core import clock
from windlass.core.errors import (
    AbortedError,
    ContextExceededError,
    OverloadedError,
    StoreError,
    StreamInterrupted,
    WindlassError,
)
from windlass.core.events import ContextCompacted, Event, MessageAdded, RunStarted, ToolFinished
from windlass.core.items import Finish, Item
from windlass.core.messages import Message, Text, ToolResponse
from windlass.core.models import Capabilities
from windlass.core.ports import Row, SessionInfo, Store
from windlass.core.request import Request
from windlass.core.usage import Usage
from windlass.stores.memory import MemoryStore
from windlass.stores.sqlite import SqliteStore
from windlass.testing.awaits import sweep
from windlass.testing.clock import FakeClock, run_with_fake_clock
from windlass.testing.scripted import ScriptedProvider, call, turn
from windlass.testing.validity import check_anthropic, check_gemini, check_ollama, check_openai
from windlass.wire import anthropic, bedrock, gemini, ollama, openai_chat, openai_responses

SOAK = bool(os.environ.get("WINDLASS_SOAK"))
LONG = "a line of output that nobody will read twice\n"


# ------------------------------------------------------------------------------------------------- what must hold


def check_responses(body: dict[str, Any]) -> list[str]:
    """Each function call of a Responses body is answered exactly once, after it."""
    items = body["input"]
    asked = [item["call_id"] for item in items if item.get("type") == "function_call"]
    given = [item["call_id"] for item in items if item.get("type") == "function_call_output"]
    problems = [] if sorted(asked) == sorted(given) and len(set(asked)) == len(asked) else [f"{asked} != {given}"]
    seen: set[str] = set()
    for item in items:
        if item.get("type") == "function_call":
            seen.add(item["call_id"])
        elif item.get("type") == "function_call_output" and item["call_id"] not in seen:
            problems.append(f"an output before its call: {item['call_id']}")
    return problems


def check_converse(body: dict[str, Any]) -> list[str]:
    """A Converse body begins with the user, takes turns, and answers all calls of a message in the next."""
    problems: list[str] = []
    waiting: list[str] = []
    for at, message in enumerate(body["messages"]):
        if message["role"] != ("user" if at % 2 == 0 else "assistant"):
            problems.append(f"messages[{at}]: role {message['role']}")
        if not message["content"]:
            problems.append(f"messages[{at}]: empty")
        results = [block["toolResult"]["toolUseId"] for block in message["content"] if "toolResult" in block]
        if sorted(results) != sorted(waiting):
            problems.append(f"messages[{at}]: {waiting} answered by {results}")
        waiting = [block["toolUse"]["toolUseId"] for block in message["content"] if "toolUse" in block]
    return problems + ([f"open: {waiting}"] if waiting else [])


DIALECTS: list[tuple[Any, Callable[[dict[str, Any]], list[str]]]] = [
    (openai_chat.DIALECT, check_openai),
    (anthropic.DIALECT, check_anthropic),
    (ollama.DIALECT, check_ollama),
    (gemini.DIALECT, check_gemini),
    (openai_responses.DIALECT, check_responses),
    (bedrock.DIALECT, check_converse),
]


def assert_valid_everywhere(messages: Sequence[Message]) -> None:
    """Assert that a history keeps the rules of every vendor."""
    request = Request(model="m", messages=list(messages), system="s")
    for dialect, check in DIALECTS:
        body = json.loads(dialect.encode_request(request, Capabilities(), stream=False))
        assert check(body) == [], dialect.name


def assert_kept_bytes_are_true(request: Request) -> None:
    """Assert that what a conversation keeps of its encoded turns is what encoding them now would give."""
    for dialect in (openai_chat.DIALECT, anthropic.DIALECT):
        kept = dialect.encode_request(request, Capabilities(), stream=True)
        assert kept == dialect.encode_request(replace(request, encoded=None), Capabilities(), stream=True)


def facts(events: Sequence[Event]) -> list[Any]:
    """Return what identifies the durable facts that a reader is told of."""
    found: list[Any] = []
    for event in events:
        if isinstance(event, MessageAdded):
            found.append((event.source, event.message))
        elif isinstance(event, ToolFinished):
            found.append((event.call_id, event.response, event.status))
        elif isinstance(event, ContextCompacted):
            found.append((event.strategy, event.upto, event.summary))
        elif isinstance(event, RunStarted):
            found.append(event.run_id)
    return found


# ------------------------------------------------------------------------------------------------------ the world


class Handle:
    """A process's way to its store: once the process is dead, nothing reaches the store any more."""

    def __init__(self, inner: Store) -> None:
        self.inner, self.dead, self.writing = inner, False, 0
        self.immediate: bool = getattr(inner, "immediate", False)

    async def append(self, session: str, rows: Sequence[Row], expected_pos: int, *, tenant: str = "") -> None:
        if self.dead:
            raise StoreError("the process is dead")
        self.writing += 1
        try:
            await self.inner.append(session, rows, expected_pos, tenant=tenant)
        finally:
            self.writing -= 1

    async def read(self, session: str, start: int = 0, end: int | None = None, *, tenant: str = "") -> list[Row]:
        return await self.inner.read(session, start, end, tenant=tenant)

    async def list(self, *, tenant: str = "", limit: int = 1000) -> list[SessionInfo]:
        return await self.inner.list(tenant=tenant, limit=limit)

    async def delete(self, session: str, *, tenant: str = "") -> bool:
        return await self.inner.delete(session, tenant=tenant)

    async def close(self) -> None:
        return None


class Moody(ScriptedProvider):
    """A model that does what dice say: calls, words, broken streams, errors, full contexts, summaries good and bad.

    Where it waits, it waits parts of `tick` seconds.
    """

    def __init__(self, rng: random.Random, tick: float = 1.0) -> None:
        super().__init__([], usage=Usage(estimated=True))
        self.rng, self.tick = rng, tick

    async def stream(self, request: Request) -> AsyncIterator[Item]:
        rng = self.rng
        self.requests.clear()
        assert_kept_bytes_are_true(request)
        if rng.random() < 0.3:
            await clock.sleep(rng.random() * self.tick)
        if (request.system or "").startswith("You summarise"):
            await clock.sleep(rng.random() * self.tick)
            self._maybe_fail(0.3)
            yield Finish(Message("assistant", (Text(rng.choice(["what was", "", "w " * 3000])),)), Usage(9, 9))
            return
        self._maybe_fail(0.08)
        self.script = [self._step()]
        async for item in super().stream(request):
            yield item

    def _maybe_fail(self, share: float) -> None:
        if self.rng.random() < share:
            raise self.rng.choice([OverloadedError("busy"), ContextExceededError("prompt is too long")])

    def _step(self) -> Any:
        rng, kind = self.rng, self.rng.random()
        if kind < 0.55:
            names = ["work", "work", "seq", "nobody", "budgeted"]
            return [call(rng.choice(names), n=rng.randrange(4)) for _ in range(rng.randint(1, 3))]
        if kind < 0.62:
            return [*turn(text="part of an"), StreamInterrupted("cut")]
        if kind < 0.66:
            return turn(call("work", n=1), text="cut off in the", reason="length")
        return turn(text="answer " * rng.randint(1, 60), thinking="hm" if kind < 0.8 else "")


def tools_of(rng: random.Random, tick: float = 1.0) -> list[Tool]:
    async def work(args: dict[str, Any], ctx: Any) -> str:
        if rng.random() < 0.5:
            await clock.sleep(rng.random() * tick)
        if rng.random() < 0.15:
            raise ValueError("no luck")
        return LONG * rng.randrange(30)

    return [Tool("work", work, timeout=5), Tool("seq", lambda a, c: "s"), Tool("budgeted", lambda a, c: LONG * 9)]


def options_of(rng: random.Random) -> dict[str, Any]:
    return {
        "tool_execution": rng.choice(["parallel", "sequential"]),
        "max_turns": 8,
        "compact_strategy": rng.choice(["off", "tail", "summary", "summary"]),
        "compact_threshold": rng.choice([200, 900, 3000]),
        "compact_keep_turns": rng.randrange(4),
        "tool_output_budget": rng.choice([None, 1000]),
        "tool_budgets": {"budgeted": {"max": 1, "on_exceed": rng.choice(["steer", "block"])}},
        "dedup_tools": {"work": str} if rng.random() < 0.3 else {},
    }


def say(run: Run, how: str) -> None:
    """Talk to a run, unless it is over."""
    if not run.done:
        getattr(run, how)("hurry" if how == "steer" else "and then?")


class Life:
    """One session through its processes: what happens is drawn from the seed's dice."""

    def __init__(self, rng: random.Random, store: Store, tick: float = 1.0) -> None:
        self.rng, self.store, self.tick = rng, store, tick
        self.told: list[Event] = []
        self.options = options_of(rng)
        self.provider = Moody(rng, tick)
        self.tools = tools_of(rng, tick)
        self.handle = Handle(store)
        self.id = f"s{rng.randrange(10**9)}"

    async def boot(self) -> None:
        """Start a process: nothing but the store's rows is left of the one before."""
        while self.handle.writing:
            # What the dead process had handed over is written, or not, before the next one looks.
            await asyncio.sleep(0.001)
        self.handle = Handle(self.store)
        self.agent = Agent(self.provider, tools=self.tools, store=self.handle, **self.options)
        self.session = await Session(self.agent, self.id, self.handle).load()
        handle, told = self.handle, self.told
        self.agent.on(Event, lambda event: None if handle.dead else told.append(event))

    async def step(self) -> str:
        """Do one thing; returns its name."""
        kind = self.rng.choice(["turn"] * 6 + ["crash"] * 3 + ["compact"] * 2 + ["fork", "rewind", "resume", "reopen"])
        rows = len(await self.session.events())
        if kind in ("turn", "crash") or not rows:
            await self.turn(crash=kind == "crash")
        elif kind == "resume":
            await self.turn(prompt=None)
        elif kind == "compact":
            await self.compact()
        elif kind == "fork":
            self.session = await self.session.fork(self.rng.randrange(rows + 1))
            self.id, self.told[:] = self.session.id, []
        elif kind == "rewind":
            await self.session.rewind(self.rng.randrange(1, rows + 1))
        else:
            await self.boot()
        return kind

    def _while(self, ticks: float) -> float:
        return self.rng.random() * ticks * self.tick

    async def turn(self, *, crash: bool = False, prompt: str | None = "go on") -> None:
        rng, loop = self.rng, asyncio.get_running_loop()
        run = self.session.run(prompt)
        timers: list[asyncio.TimerHandle] = []
        if rng.random() < 0.35:
            timers.append(loop.call_later(self._while(3), run.abort))
        if rng.random() < 0.35:
            timers.append(loop.call_later(self._while(2), say, run, "steer"))
        if rng.random() < 0.2:
            timers.append(loop.call_later(self._while(2), say, run, "follow_up"))
        handle = self.handle

        def die() -> None:
            handle.dead = True
            run.abort("killed")

        if crash:
            timers.append(loop.call_later(self._while(3), die))
        try:
            await run
        except WindlassError:
            pass
        for timer in timers:
            timer.cancel()
        if crash:
            handle.dead = True
            await self.boot()

    async def compact(self) -> None:
        rng, handle = self.rng, self.handle
        strategy: Any = rng.choice(["tail", "summary"])
        plan = self.agent.plan(self.session, None, {})
        task = asyncio.ensure_future(compact_now(plan, strategy, keep_turns=rng.randrange(3)))
        end = rng.random()
        if end < 0.4:
            asyncio.get_running_loop().call_later(self._while(1), task.cancel)
        try:
            await task
        except (WindlassError, asyncio.CancelledError):
            pass
        if end < 0.2:
            handle.dead = True
            await self.boot()

    async def check(self) -> None:
        """Assert what must hold between two steps."""
        events = await Ledger(self.store, self.id).read()
        folded = Conversation.fold(events)
        # A program that died has not written what it left out; the next one to load it does, in the same way.
        assert folded.messages == self.session.conversation.messages
        assert [item.call.id for item in folded.open_calls] == [
            item.call.id for item in self.session.conversation.open_calls
        ]
        assert (folded.usage, folded.turns) == (self.session.conversation.usage, self.session.conversation.turns)
        folded.close()
        if folded.messages:
            assert_valid_everywhere(folded.messages)
        calls = [c.id for message in folded.messages for c in message.tool_calls]
        answers = [part.id for m in folded.messages for part in m.parts if isinstance(part, ToolResponse)]
        assert calls == answers and len(set(calls)) == len(calls)
        kept = facts(events)
        for fact in facts(self.told):
            assert fact in kept, ("acknowledged and lost", fact)


def _life(seed: int, path: Path | None = None, steps: int = 7) -> None:
    """Play one life: in memory on the fake clock, or with a file on the real one, where waits are a hundredth."""
    rng = random.Random(seed)

    async def scenario() -> None:
        store: Store = MemoryStore() if path is None else SqliteStore(path)
        life = Life(rng, store, 1.0 if path is None else 0.01)
        await life.boot()
        done: list[str] = []
        try:
            for _ in range(steps):
                done.append(await life.step())
                await life.check()
            others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            assert others == []
        except BaseException as error:
            raise AssertionError(f"seed {seed}, after {done}: {error!r}") from error
        finally:
            await store.close()

    if path is None:
        run_with_fake_clock(scenario, FakeClock(seed=seed))
    else:
        asyncio.run(scenario())


@pytest.mark.slow
@pytest.mark.parametrize("block", range(100 if SOAK else 4))
def test_seeded_lives_keep_every_history_valid_and_lose_nothing(block: int) -> None:
    """A hundred thousand schedules in `make soak`, three hundred otherwise."""
    size = 1000 if SOAK else 75
    for seed in range(block * size, (block + 1) * size):
        _life(seed)


@pytest.mark.slow
@pytest.mark.parametrize("block", range(10 if SOAK else 1))
def test_seeded_lives_on_disk(block: int, tmp_path: Path) -> None:
    size = 50 if SOAK else 12
    for seed in range(block * size, (block + 1) * size):
        _life(seed, tmp_path / f"{seed}.db")


# --------------------------------------------------------------------------------------------------- the cancel sweep


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_r70_cancelled_at_every_await_of_turns_tools_saves_and_compactions(kind: str, tmp_path: Path) -> None:
    """One life of three turns with parallel tools, hooks and a summary, stopped at its k-th await, for every k."""
    agents: list[Agent] = []

    async def work(args: dict[str, Any], ctx: Any) -> str:
        await asyncio.sleep(0)
        ctx.progress("half")
        await asyncio.sleep(0)
        return LONG * 20

    def provider() -> ScriptedProvider:
        left = [[call("work", n=1), call("work", n=2)], [call("work", n=3), call("work", n=4)]]

        async def answer(request: Request) -> Any:
            await asyncio.sleep(0)
            if (request.system or "").startswith("You summarise"):
                return turn(text="what was")
            return left.pop(0) if left else turn(text="done")

        return ScriptedProvider([answer], repeat=True, usage=Usage(estimated=True))

    async def scenario(arm: Callable[[Callable[[], None]], None]) -> None:
        store: Store = MemoryStore() if kind == "memory" else SqliteStore(tmp_path / f"{len(agents)}.db")
        agent = Agent(
            provider(), tools=[Tool("work", work)], store=store, compact_strategy="summary", compact_threshold=700,
            compact_keep_turns=1, tool_output_budget=100,
        )  # fmt: skip
        agents.append(agent)
        task = asyncio.current_task()
        assert task is not None
        arm(task.cancel)  # pyright: ignore[reportArgumentType]
        try:
            await agent.run("go")
            await compact_now(agent.plan(agent.session, None, {}), "summary")
            await agent.run("go on")
        except (AbortedError, asyncio.CancelledError):
            pass

    async def check(at: int) -> None:
        session = agents[-1].session
        await session.wait_for_idle()
        store = session.ledger.store
        assert store is not None and session.active is None, at
        folded = Conversation.fold(await Ledger(store, session.id).read())
        assert folded.messages == session.conversation.messages and folded.open_calls == [], at
        if folded.messages:
            assert_valid_everywhere(folded.messages)
        agents[-1].provider = ScriptedProvider(["went on"], repeat=True)
        assert (await session.run("what now?")).text == "went on"
        await store.close()
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        assert others == [], (at, others)

    assert await sweep(scenario, check) > 20


# --------------------------------------------------------------------------------------------------------- long lives


def _resident() -> int:
    """Return the bytes of memory this process holds."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.slow
def test_r82_memory_does_not_grow_with_turns(tmp_path: Path) -> None:
    """Ten thousand turns with random faults in `make soak`, five hundred otherwise, in one session on disk."""
    turns = 10_000 if SOAK else 500
    rng = random.Random(82)

    async def scenario() -> tuple[list[int], int]:
        store = SqliteStore(tmp_path / "long.db", synchronous="NORMAL")
        provider = Moody(rng, 0.0)
        agent = Agent(
            provider, tools=tools_of(rng, 0.0), store=store, compact_strategy="summary", compact_threshold=3000,
            compact_keep_turns=2, max_turns=20, dedup_tools={"work": str}, loop_detector=0,
        )  # fmt: skip
        done, held, longest = 0, [], 0
        marks = [turns // 5 * part for part in range(1, 6)]
        while done < turns:
            run = agent.run("go on")
            if rng.random() < 0.1:
                asyncio.get_running_loop().call_later(rng.random() / 100, run.abort)
            try:
                await run
            except WindlassError:
                pass
            done += max(1, run.stats.turns)
            longest = max(longest, len(agent.messages))
            while marks and done >= marks[0]:
                marks.pop(0)
                held.append(_resident())
        messages = list(agent.messages)
        folded = Conversation.fold(await Ledger(store, agent.session.id).read())
        assert folded.messages == messages
        assert_valid_everywhere(messages)
        await store.close()
        return held, longest

    held, longest = asyncio.run(scenario())
    assert len(held) == 5 and longest < 200
    # After the first fifth, what is left to grow are the ids of calls: some hundred bytes a turn.
    grown = held[-1] - held[0]
    assert grown < turns * 600 + 4_000_000, [value >> 10 for value in held]
