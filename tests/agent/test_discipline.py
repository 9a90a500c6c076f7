"""Token discipline: tool budgets, output budgets, thinking that decays, results given twice (reference C's rules)."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.agent.helpers import Tool, kinds
from windlass.agent.agent import Agent
from windlass.agent.behavior import behavior
from windlass.agent.decay import thinking_tokens
from windlass.agent.discipline import KEPT, ToolBudgetHit
from windlass.agent.hooks import HookContext
from windlass.agent.policy import Policy, Rule
from windlass.agent.session import Session
from windlass.core.errors import ConfigError
from windlass.core.events import BudgetExceeded, Event, MessageAdded, ToolFinished
from windlass.core.messages import ToolResponse
from windlass.stores.memory import MemoryStore
from windlass.testing.scripted import ScriptedProvider, call, turn


def looked(args: dict[str, Any], ctx: Any) -> str:
    return f"seen {args.get('q', '')}"


def agent_with(script: list[Any], *, body: Any = looked, **options: Any) -> tuple[Agent, Tool]:
    tool = Tool("look", body)
    return Agent(ScriptedProvider(script), tools=[tool, Tool("other", lambda a, c: "other")], **options), tool


def answers(agent: Agent) -> list[Any]:
    return [part.response for message in agent.messages for part in message.parts if isinstance(part, ToolResponse)]


def heard(agent: Agent, *names: str) -> list[tuple[str, dict[str, Any]]]:
    seen: list[tuple[str, dict[str, Any]]] = []
    for name in names:
        agent.hook(name)(lambda ctx, name=name: seen.append((name, dict(ctx.__dict__))))
    return seen


def constant(value: Any) -> Any:
    """Return a function that always answers the same."""

    def answer(*given: Any) -> Any:
        return value

    return answer


def raising(*given: Any) -> Any:
    raise ZeroDivisionError("no")


def slower(turn: int, base: int) -> float:
    return base / turn


async def run_of(agent: Agent, prompt: str = "go") -> list[Event]:
    events: list[Event] = []
    async with agent.run(prompt) as run:
        events.extend([event async for event in run])
    return events


def notices(events: list[Event]) -> list[str]:
    return [event.message.text for event in events if isinstance(event, MessageAdded) and event.source == "notice"]


def budgets(events: list[Event]) -> list[tuple[str, int, int, str]]:
    return [(e.what, e.used, e.limit, e.mode) for e in events if isinstance(e, BudgetExceeded)]


# ------------------------------------------------------------------------------------------------------ tool budgets


async def test_block_refuses_the_calls_past_the_budget() -> None:
    script = [call("look", q="1"), [call("look", q="2"), call("look", q="3"), call("other")], call("look"), "done"]
    agent, tool = agent_with(script, tool_budgets={"look": {"max": 2, "on_exceed": "block"}})
    seen = heard(agent, "tool-budget:exceeded")
    events = await run_of(agent)
    reason = "the budget of 2 calls of look in this run is used up; work with what you have"
    assert answers(agent) == ["seen 1", "seen 2", f"Blocked: {reason}", "other", f"Blocked: {reason}"]
    assert len(tool.inputs) == 2
    assert [e.status for e in events if isinstance(e, ToolFinished)].count("blocked") == 2
    assert notices(events) == []
    assert budgets(events) == [("tool:look", 3, 2, "block")] * 2
    assert [fields["count"] for _, fields in seen] == [3, 3]
    assert {fields["mode"] for _, fields in seen} == {"block"} and seen[0][1]["turn_id"].endswith(".2")
    assert sorted(seen[0][1]) == ["count", "max", "mode", "tool", "turn_id"]


async def test_steer_lets_the_call_run_and_speaks_once_after_the_turn() -> None:
    script = [[call("look"), call("look")], call("look"), call("look"), "done"]
    agent, tool = agent_with(script, tool_budgets={"look": {"max": 1, "onExceed": "steer"}})
    seen = heard(agent, "tool-budget:exceeded")
    events = await run_of(agent)
    assert len(tool.inputs) == 4
    assert notices(events) == ["You have called look 2 times; its budget is 1. Work with what you have, and finish."]
    assert budgets(events) == [("tool:look", 2, 1, "steer")]
    assert [(fields["count"], fields["max"], fields["mode"]) for _, fields in seen] == [(2, 1, "steer")]
    # After the turn: the responses of both calls stand before the words.
    roles = [message.role for message in agent.messages]
    assert roles[:5] == ["user", "assistant", "tool", "user", "assistant"]


async def test_counts_are_per_run_and_a_budget_of_nothing_forbids() -> None:
    agent, tool = agent_with(
        [call("look"), "one", call("look"), "two", call("other"), "three"],
        tool_budgets={"look": {"max": 1, "on_exceed": "block"}, "other": {"max": 0, "on_exceed": "block"}},
    )
    await agent.run("a")
    await agent.run("b")
    assert len(tool.inputs) == 2
    await agent.run("c")
    assert str(answers(agent)[-1]).startswith("Blocked: the budget of 0 calls of other")


@pytest.mark.parametrize("key", ["look", "peek"])
async def test_budget_names_are_canonical_and_aliases_work(key: str) -> None:
    agent, tool = agent_with(
        [[call("peek"), call("peek")], "done"],
        tool_aliases={"look": "peek"},
        tool_budgets={key: {"max": 1, "on_exceed": "block"}},
    )
    seen = heard(agent, "tool-budget:exceeded")
    await agent.run("go")
    assert len(tool.inputs) == 1 and str(answers(agent)[1]).startswith("Blocked: the budget of 1 calls of peek")
    assert seen[0][1]["tool"] == "look"


async def test_a_function_decides_and_sees_the_call() -> None:
    hits: list[ToolBudgetHit] = []

    async def decide(hit: ToolBudgetHit) -> dict[str, str]:
        hits.append(hit)
        return {"mode": "block", "message": "enough"} if hit.count > 2 else {"mode": "steer", "message": "soon over"}

    agent, tool = agent_with(
        [call("look", q="a"), call("look", q="b"), call("look", q="c"), "done"],
        tool_budgets={"look": {"max": 1, "on_exceed": decide}},
    )
    events = await run_of(agent)
    assert [(hit.tool, hit.count, hit.max, hit.input) for hit in hits] == [
        ("look", 2, 1, {"q": "b"}),
        ("look", 3, 1, {"q": "c"}),
    ]
    assert len(tool.inputs) == 2 and notices(events) == ["soon over"]
    assert answers(agent)[-1] == "Blocked: enough"
    assert budgets(events) == [("tool:look", 2, 1, "steer"), ("tool:look", 3, 1, "block")]


@pytest.mark.parametrize("broken", [raising, constant(None), constant({"mode": "maybe"})])
async def test_r69_a_function_that_cannot_decide_blocks(broken: Any, caplog: pytest.LogCaptureFixture) -> None:
    agent, tool = agent_with([call("look"), "done"], tool_budgets={"look": {"max": 0, "on_exceed": broken}})
    with caplog.at_level(logging.WARNING, "windlass.agent"):
        await agent.run("go")
    assert tool.inputs == [] and str(answers(agent)[0]).startswith("Blocked: on_exceed ")
    assert "on_exceed" in caplog.text


async def test_a_call_that_a_gate_refuses_does_not_count() -> None:
    agent, tool = agent_with(
        [call("look"), call("look"), call("look"), "done"], tool_budgets={"look": {"max": 1, "on_exceed": "block"}}
    )
    refusals = 2

    @agent.hook("tool:gate")
    def gate(ctx: HookContext) -> None:  # pyright: ignore[reportUnusedFunction]
        nonlocal refusals
        refusals -= 1
        ctx.block, ctx.reason = refusals >= 0, "not yet"

    await agent.run("go")
    assert answers(agent) == ["Blocked: not yet", "Blocked: not yet", "seen "] and len(tool.inputs) == 1


async def test_nobody_is_asked_about_a_call_that_has_no_budget() -> None:
    asked: list[str] = []

    class Yes:
        async def approve(self, name: str, input: dict[str, Any], reason: str) -> Any:
            asked.append(name)
            return "allow_once"

    agent, _ = agent_with(
        [call("look"), call("look"), "done"],
        policy=Policy(rules=(Rule("ask", "look"),)),
        approver=Yes(),
        tool_budgets={"look": {"max": 1, "on_exceed": "block"}},
    )
    await agent.run("go")
    assert asked == ["look"] and str(answers(agent)[1]).startswith("Blocked: the budget")


# ----------------------------------------------------------------------------------------------------- output budget


async def test_output_past_the_budget_of_a_turn_asks_for_a_summary() -> None:
    agent, _ = agent_with(
        [[call("look"), call("look")], call("look"), "done"],
        body=constant("é" * 30),
        tool_output_budget=100,
    )
    seen = heard(agent, "budget:exceeded")
    events = await run_of(agent)
    said = notices(events)
    assert len(said) == 1 and "120 bytes" in said[0] and "summarise" in said[0]
    assert budgets(events) == [("output_bytes", 120, 100, "steer")]
    assert [fields for _, fields in seen] == [{"turn": 1, "bytes": 120, "budget": 100}]
    assert kinds(events).count("turn.finished") == 3
    assert agent.messages[3].role == "user" and agent.messages[3].text == said[0]


async def test_output_is_measured_after_it_was_transformed() -> None:
    agent, _ = agent_with([call("look"), "done"], body=constant("x" * 1000), tool_output_budget=100)

    @agent.hook("tool:transform")
    def shorten(ctx: HookContext) -> None:  # pyright: ignore[reportUnusedFunction]
        assert ctx.output_bytes == 1000
        ctx.result = "short"

    assert notices(await run_of(agent)) == []


async def test_a_budget_row_survives_in_the_ledger() -> None:
    store = MemoryStore()
    agent, _ = agent_with([call("look"), "done"], tool_output_budget=1, store=store)
    await agent.run("go")
    assert budgets(await agent.session.events()) == [("output_bytes", 5, 1, "steer")]
    again = await Session(agent, agent.session.id, store).load()
    assert again.messages == agent.messages


# ------------------------------------------------------------------------------------------------------------- dedup


def by_query(args: dict[str, Any]) -> Any:
    return args.get("q")


async def test_equal_keys_replay_the_result_and_count_as_calls() -> None:
    counted: list[int] = []

    def body(args: dict[str, Any], ctx: Any) -> str:
        counted.append(1)
        return f"result {len(counted)}"

    script = [call("look", q="a"), call("look", q="a"), call("look", q="b"), "one", call("look", q="a"), "two"]
    agent, tool = agent_with(script, body=body, dedup_tools={"look": by_query})
    seen = heard(agent, "tool:before", "tool:transform", "tool:after")
    events = await run_of(agent)
    await agent.run("again, in the same session")
    assert answers(agent) == ["result 1", "result 1", "result 2", "result 1"]
    assert len(tool.inputs) == 2
    # A replay is a call like any other to whoever watches.
    assert [name for name, _ in seen] == ["tool:before", "tool:transform", "tool:after"] * 4
    assert [f["run_tool_counts"]["look"] for name, f in seen if name == "tool:after"] == [1, 2, 3, 1]
    assert [e.status for e in events if isinstance(e, ToolFinished)] == ["ok"] * 3


async def test_dedup_hits_count_against_budgets() -> None:
    agent, tool = agent_with(
        [[call("look", q="a")], [call("look", q="a")], [call("look", q="a")], "done"],
        dedup_tools={"look": by_query},
        tool_budgets={"look": {"max": 2, "on_exceed": "block"}},
    )
    await agent.run("go")
    assert len(tool.inputs) == 1 and answers(agent)[:2] == ["seen a", "seen a"]
    assert str(answers(agent)[2]).startswith("Blocked: the budget of 2")


@pytest.mark.parametrize("skip", [None, "", 7, b"key"])
async def test_what_is_no_key_skips(skip: Any) -> None:
    agent, tool = agent_with([call("look"), call("look"), "done"], dedup_tools={"look": constant(skip)})
    await agent.run("go")
    assert len(tool.inputs) == 2


async def test_a_hasher_that_fails_skips_and_is_named(caplog: pytest.LogCaptureFixture) -> None:
    def bad(args: dict[str, Any]) -> str:
        return args["missing"]

    agent, tool = agent_with([call("look"), call("look"), "done"], dedup_tools={"look": bad})
    with caplog.at_level(logging.WARNING, "windlass.agent"):
        await agent.run("go")
    assert len(tool.inputs) == 2 and "bad" in caplog.text


async def test_a_conversation_that_is_not_kept_remembers_no_calls() -> None:
    agent, tool = agent_with([call("look", q="a"), call("look", q="a"), "done"], dedup_tools={"look": by_query})
    await agent.once("go")
    assert len(tool.inputs) == 2


async def test_failures_are_not_replayed_and_transforms_see_the_first_result() -> None:
    outcomes: list[Any] = [ValueError("no"), "yes"]

    def body(args: dict[str, Any], ctx: Any) -> str:
        out = outcomes.pop(0)
        if isinstance(out, Exception):
            raise out
        return out

    agent, _ = agent_with([call("look", q="a")] * 3 + ["done"], body=body, dedup_tools={"look": by_query})

    @agent.hook("tool:transform")
    def loud(ctx: HookContext) -> None:  # pyright: ignore[reportUnusedFunction]
        ctx.result = f"{ctx.result}!"

    await agent.run("go")
    assert answers(agent) == ["Tool error: ValueError: no!", "yes!", "yes!"]


async def test_dedup_by_mcp_and_alias_names_and_reset_forgets() -> None:
    tool = Tool("mcp_files_read", looked)
    agent = Agent(
        ScriptedProvider([call("read", q="a"), call("read", q="a"), "x", call("read", q="a"), "y"]),
        tools=[tool],
        tool_aliases={"mcp_files_read": "read"},
        dedup_tools={"mcp_files_read": json.dumps},
    )
    await agent.run("go")
    assert len(tool.inputs) == 1
    agent.reset()
    await agent.run("go")
    assert len(tool.inputs) == 2


async def test_what_is_kept_is_bounded() -> None:
    script: list[Any] = [[call("look", q=str(n)) for n in range(start, start + 100)] for start in range(0, 300, 100)]
    agent, _ = agent_with([*script, "done"], dedup_tools={"look": by_query})
    await agent.run("go")
    assert len(agent.session.state["dedup_tools"]) == KEPT


# ------------------------------------------------------------------------------------------------------------- decay


@pytest.mark.parametrize(
    ("rule", "base", "expected"),
    [
        ({"after_turn": 2, "factor": 0.5, "floor": 1024}, 8192, [8192, 8192, 4096, 2048, 1024, 1024]),
        ({"afterTurn": 0, "factor": 0.5, "floor": 0}, 9, [4, 2, 1, 0, 0, 0]),
        ({"factor": 1.0}, 100, [100] * 6),
        # A floor above the base raises nothing.
        ({"after_turn": 1, "factor": 0.5, "floor": 5000}, 2048, [2048] * 6),
        (slower, 60, [60, 30, 20, 15, 12, 10]),
        (constant(-1), 60, [0] * 6),
    ],
)
def test_thinking_tokens_of_each_turn(rule: Any, base: int, expected: list[int]) -> None:
    assert [thinking_tokens(rule, turn, base) for turn in range(1, 7)] == expected


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 20), st.floats(0, 1), st.integers(0, 10**6))
def test_thinking_never_grows_and_stays_within(base: int, after: int, factor: float, floor: int) -> None:
    rule = {"after_turn": after, "factor": factor, "floor": floor}
    found = [thinking_tokens(rule, turn, base) for turn in range(1, 30)]
    assert found == sorted(found, reverse=True)
    assert all(min(base, floor) <= tokens <= base for tokens in found) and found[: max(1, after)][0] <= base


async def test_decay_reaches_the_requests_and_does_nothing_without_a_budget() -> None:
    script: list[Any] = [call("look"), call("look"), "done"]
    rule = {"after_turn": 1, "factor": 0.5, "floor": 1024}
    agent, _ = agent_with(script, thinking_decay=rule, thinking_budget=4096)
    await agent.run("go")
    assert [r.settings.thinking_budget for r in agent.provider.requests] == [4096, 2048, 1024]
    plain, _ = agent_with(script, thinking_decay=rule, thinking="high")
    await plain.run("go")
    assert [r.settings.thinking_budget for r in plain.provider.requests] == [None] * 3


async def test_a_decay_function_that_returns_no_number_says_so() -> None:
    agent, _ = agent_with(["done"], thinking_decay=constant("much"), thinking_budget=10)
    with pytest.raises(ConfigError, match="thinking_decay returned 'much' for turn 1"):
        await agent.run("go")


# -------------------------------------------------------------------------------------------------------- validation


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"tool_budgets": {"a": {"max": -1}}}, r"tool_budgets\['a'\] needs a `max`"),
        ({"tool_budgets": {"a": {"max": True}}}, "needs a `max`"),
        ({"tool_budgets": {"a": {}}}, "needs a `max`"),
        ({"tool_budgets": {"a": 3}}, "must be a mapping"),
        ({"tool_budgets": [1]}, "tool_budgets is"),
        ({"tool_budgets": {"a": {"max": 1, "on_excess": "block"}}}, "has no 'on_excess'"),
        ({"tool_budgets": {"a": {"max": 1, "on_exceed": "stop"}}}, "on_exceed is 'stop'"),
        ({"thinking_decay": {"factor": 2}}, "factor"),
        ({"thinking_decay": {"after_turn": 1}}, "factor"),
        ({"thinking_decay": {"factor": 0.5, "floor": -1}}, "floor"),
        ({"thinking_decay": {"factor": 0.5, "after": 1}}, "has no 'after'"),
        ({"thinking_decay": 0.5}, "thinking_decay is 0.5"),
        ({"dedup_tools": {"a": "q"}}, r"dedup_tools\['a'\]"),
        ({"dedup_tools": "a"}, "dedup_tools is"),
        ({"tool_search": {"limit": 0}}, "tool_search"),
        ({"tool_search": {"limits": 3}}, "has no 'limits'"),
        ({"extra": []}, "extra is"),
        ({"tool_output_budget": 0}, "at least 1"),
        ({"compact_threshold": 0}, "at least 1"),
        ({"compact_keep_turns": -1}, "at least 0"),
        ({"compact_strategy": "head"}, "compact_strategy"),
        ({"thinking_budget": -1}, "thinking_budget"),
    ],
)
def test_bad_values_are_named(given: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        behavior(given)
    with pytest.raises(ConfigError, match=says):
        Agent(ScriptedProvider(), behavior=given)  # pyright: ignore[reportArgumentType]


def test_good_values_are_taken_as_they_are() -> None:
    hasher = json.dumps
    made = behavior(
        {
            "tool_budgets": {"a": {"max": 1}, "b": {"max": 0, "onExceed": raising}},
            "thinking_decay": {"afterTurn": 5, "factor": 0.5, "floor": 1024},
            "dedup_tools": {"a": hasher},
            "tool_search": {"tool": False, "limit": 5},
            "tool_output_budget": 32768,
        }
    )
    assert made.dedup_tools["a"] is hasher and made.tool_output_budget == 32768


async def test_an_undecorated_agent_has_no_discipline() -> None:
    agent, _ = agent_with([turn(text="hello")])
    run = agent.run("go")
    loop = agent.turn(run)
    assert loop.dispatcher.discipline is None and loop.prepare.context is None
    await run
