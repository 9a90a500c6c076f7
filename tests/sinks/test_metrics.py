"""Counting what happens."""

from __future__ import annotations

from windlass.agent.agent import Agent
from windlass.core.errors import OverloadedError
from windlass.core.events import Retry, TurnFinished
from windlass.core.usage import Usage
from windlass.sinks.metrics import Metrics
from windlass.testing.scripted import ScriptedProvider, call, turn


async def test_runs_turns_tools_and_tokens_are_counted() -> None:
    metrics = Metrics()
    script = [turn(call("utc"), call("nope"), text="one two"), "done", OverloadedError("too much")]
    agent = Agent(ScriptedProvider(script), tools=["utc"], sinks=[metrics])
    await agent.run("go")
    try:
        await agent.run("again")
    except OverloadedError:
        metrics.counts["seen_failing"] += 1
    found = metrics.snapshot()
    assert {name: found[name] for name in ("runs_started", "runs_finished", "turns", "tool_calls", "tool_errors")} == {
        "runs_started": 2, "runs_finished": 2, "turns": 3, "tool_calls": 2, "tool_errors": 1,
    }  # fmt: skip
    assert found["stop_reasons"] == {"end_turn": 1, "error": 1} and found["tools"] == {"utc": 1, "nope": 1}
    assert found["text_deltas"] == 3 and found["seen_failing"] == 1
    assert found["input_tokens"] == 20 and found["output_tokens"] == 10 and sum(found["models"].values()) == 3


def test_costs_are_summed_and_unknown_ones_counted() -> None:
    metrics = Metrics()
    metrics(TurnFinished(turn=1, usage=Usage(10, 5, 4, 1), cost=7, model="a"))
    metrics(TurnFinished(turn=2, usage=Usage(1, 1), cost=None, model="b"))
    metrics(TurnFinished(turn=3, cost=0, model="a"))
    metrics(Retry(message="x"))
    assert metrics.cost == 7 and metrics.unpriced == 1 and metrics.counts["retries"] == 1
    assert metrics.models == {"a": 2, "b": 1}
    assert metrics.snapshot() == {
        "turns": 3, "input_tokens": 11, "output_tokens": 6, "cache_read_tokens": 4, "cache_creation_tokens": 1,
        "retries": 1, "cost_nano": 7, "unpriced_turns": 1, "stop_reasons": {}, "tools": {}, "models": {"a": 2, "b": 1},
    }  # fmt: skip


async def test_one_object_serves_many_agents() -> None:
    metrics = Metrics()
    for _ in range(3):
        await Agent(ScriptedProvider(["x"]), sinks=[metrics]).run("go")
    assert metrics.counts["runs_finished"] == 3 == metrics.stop_reasons["end_turn"]
