"""A recorded run through a real loop again: same facts, no model, no tool."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.agent.helpers import Tool
from windlass.agent.agent import Agent
from windlass.agent.session import Session
from windlass.core.errors import ReplayMismatch, StreamInterrupted
from windlass.core.events import DURABLE, Event, TextDelta, ToolStarted
from windlass.core.messages import ToolResponse, response_text
from windlass.sinks.record import Recorder, read_events
from windlass.sinks.replay import ReplayProvider
from windlass.stores.memory import MemoryStore
from windlass.testing.scripted import ScriptedProvider, call, turn

SCRIPT: list[Any] = [
    turn(call("look", at="a"), call("look", at="b"), text="Looking twice.", thinking="hm"),
    turn(call("fail"), call("missing")),
    "All done.",
]


class World:
    """Tools whose answers change, so that running them again would be seen."""

    def __init__(self) -> None:
        self.calls = 0
        self.look = Tool("look", self._look, at={"type": "string"})
        self.fail = Tool("fail", self._fail)

    @property
    def tools(self) -> list[Tool]:
        return [self.look, self.fail]

    def _look(self, args: dict[str, Any], ctx: Any) -> str:
        self.calls += 1
        return f"{args['at']}{self.calls}"

    def _fail(self, args: dict[str, Any], ctx: Any) -> str:
        self.calls += 1
        raise RuntimeError("no luck")


def durable(events: list[Event]) -> list[Event]:
    """The facts, without what is of one run only: ids, times, durations, the model's name, and when calls started."""
    out: list[Event] = []
    for event in events:
        if type(event) in DURABLE and not isinstance(event, ToolStarted):
            own = {"session_id": "", "model": "", "duration_ns": 0, "deferred": False}
            own = {name: value for name, value in own.items() if hasattr(event, name)}
            out.append(msgspec.structs.replace(event, run_id="", seq=0, time=0, **own))
    return out


async def recorded(tmp_path: Path) -> tuple[list[Event], World]:
    world = World()
    with Recorder(tmp_path / "r") as recorder:
        agent = Agent(ScriptedProvider(SCRIPT), tools=world.tools, sinks=[recorder])
        await agent.run("go")
    return list(read_events(tmp_path / "r")), world


async def test_a_replayed_run_has_the_same_durable_events(tmp_path: Path) -> None:
    events, _ = await recorded(tmp_path)
    world, again = World(), list[Event]()
    provider = ReplayProvider(events)
    agent = Agent(provider, tools=world.tools, hooks=provider.hooks(), sinks=[again.append])
    assert provider.remaining == 3
    result = await agent.run("go")
    assert result.text == "All done." and provider.remaining == 0 and world.calls == 0
    assert durable(again) == durable(events) and len(durable(events)) > 8
    assert [e.text for e in again if isinstance(e, TextDelta)] == [e.text for e in events if isinstance(e, TextDelta)]


async def test_without_the_hooks_the_tools_run_again_and_another_answer_is_noticed(tmp_path: Path) -> None:
    events, _ = await recorded(tmp_path)
    same = World()
    await Agent(ReplayProvider(events), tools=same.tools).run("go")
    assert same.calls == 3
    other = World()
    other.calls = 10
    with pytest.raises(
        ReplayMismatch,
        match=r"Request 2 differs from the recording at item 5: recorded tool \S+ 'a1', now tool \S+ 'a11'",
    ):
        await Agent(ReplayProvider(events), tools=other.tools).run("go")


async def test_the_first_difference_is_named(tmp_path: Path) -> None:
    events, _ = await recorded(tmp_path)
    with pytest.raises(ReplayMismatch) as caught:
        await Agent(ReplayProvider(events)).run("stop")
    assert str(caught.value) == (
        "Request 1 differs from the recording at item 1: recorded user 'go', now user 'stop'. "
        "Replay with check=False to go on regardless."
    )
    provider = ReplayProvider(events, check=False)
    assert (await Agent(provider, tools=World().tools, hooks=provider.hooks()).run("stop")).text == "All done."


async def test_more_than_was_recorded(tmp_path: Path) -> None:
    events, _ = await recorded(tmp_path)
    provider = ReplayProvider(events)
    agent = Agent(provider, tools=World().tools, hooks=provider.hooks())
    await agent.run("go")
    with pytest.raises(ReplayMismatch, match="The recording has 3 answers; the run asks for another one"):
        await agent.run("more")


async def test_a_ledger_is_a_recording_too() -> None:
    world, store = World(), MemoryStore()
    session = Session(Agent(ScriptedProvider([*SCRIPT, "Again."]), tools=world.tools), "s", store)
    await session.run("go")
    await session.run("and on")
    kept = await session.events()
    provider = ReplayProvider(kept)
    fresh, later = World(), MemoryStore()
    replayed = Session(Agent(provider, tools=fresh.tools, hooks=provider.hooks()), "s", later)
    await replayed.run("go")
    result = await replayed.run("and on")
    assert result.text == "Again." and fresh.calls == 0 and provider.remaining == 0
    assert [message.parts for message in replayed.messages] == [message.parts for message in session.messages]
    results = [
        [response_text(part) for m in each.messages for part in m.parts if isinstance(part, ToolResponse)]
        for each in (session, replayed)
    ]
    assert results[0] == results[1] and results[0][:2] == ["a1", "b2"]


async def test_an_answer_that_was_interrupted_is_interrupted_again(tmp_path: Path) -> None:
    script = [[*turn(text="Half an ans"), StreamInterrupted("gone")]]
    with Recorder(tmp_path / "r") as recorder, pytest.raises(StreamInterrupted):
        await Agent(ScriptedProvider(script), sinks=[recorder], stream_retries=0).run("go")
    agent = Agent(ReplayProvider(read_events(tmp_path / "r")), stream_retries=0)
    with pytest.raises(StreamInterrupted, match="The recorded answer was interrupted here"):
        await agent.run("go")
    assert agent.messages[-1].text == "Half an ans"


async def test_an_empty_recording_answers_nothing() -> None:
    provider = ReplayProvider([])
    assert provider.remaining == 0
    with pytest.raises(ReplayMismatch):
        await Agent(provider).run("go")
