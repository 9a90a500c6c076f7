"""Cases of the loop that need several parts: scopes of hooks, failing plug-ins, sub-agents, budgets, repairs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.agent.helpers import Tool
from tests.agent.test_schedules import DIALECTS, assert_valid_everywhere
from windlass.agent import agent as agent_module
from windlass.agent.agent import DEFAULT_SYSTEM, Agent
from windlass.agent.behavior import Behavior
from windlass.agent.conversation import Conversation, repair
from windlass.agent.hooks import HOOKS, HookContext
from windlass.agent.ledger import Ledger, output_bytes
from windlass.agent.presets import define_preset
from windlass.agent.session import Session
from windlass.agent.stats import flatten_turns, stats_by_model
from windlass.core import models
from windlass.core.errors import AbortedError, ConfigError, ProviderError
from windlass.core.events import BudgetExceeded, Log
from windlass.core.messages import Blob, Message, Text, ToolCall, ToolResponse, response_text, user
from windlass.core.models import facts_of, override
from windlass.core.schema import coerce_and_validate
from windlass.core.usage import Usage
from windlass.stores.memory import MemoryStore
from windlass.testing.awaits import sweep
from windlass.testing.scripted import ScriptedProvider, call, turn
from windlass.tools.spawn import create_spawn_tool

# ------------------------------------------------------------------------------------------ reference C's defaults


def test_the_defaults_are_reference_c_s() -> None:
    """`max_tokens` is 16384 at the first request, unless the provider has another default."""
    mode = Behavior()
    assert (mode.tool_execution, mode.max_turns, mode.cache, mode.tool_output_budget) == ("parallel", 50, True, None)
    assert (mode.dedup_reads, mode.require_read_before_edit) == (True, False)
    assert (mode.compact_strategy, mode.compact_threshold, mode.compact_keep_turns) == ("off", 131072, 4)
    assert (mode.tool_disclosure, mode.tool_search, mode.tool_budgets) == ("eager", {}, {})


async def test_the_system_text_is_the_run_s_then_the_preset_s_then_the_default() -> None:
    """It is sent as system text, once: neither as a user's message nor with an invented answer behind it."""
    preset = define_preset(system="of the preset")
    provider = ScriptedProvider(["a"], repeat=True)
    await Agent(provider).once("hi")
    agent = Agent(provider, **preset)
    await agent.once("hi")
    await agent.once("hi", system="of the run")
    await agent.once("hi", system="")
    asked = provider.requests
    assert [request.system for request in asked] == [DEFAULT_SYSTEM, "of the preset", "of the run", ""]
    assert DEFAULT_SYSTEM == "You are a helpful assistant."
    assert [[message.role for message in request.messages] for request in asked] == [["user"]] * 4
    assert asked[0].settings.max_tokens == 16384


# ------------------------------------------------------------------------------------------------ hooks and plug-ins


async def test_every_hook_of_a_run_says_whose_question_it_is() -> None:
    """Also those the loop itself asks: steering, the turn, budgets, the structured answer, an abort."""
    scopes: dict[str, set[tuple[str, int]]] = {}

    def note(ctx: HookContext) -> None:
        scopes.setdefault(ctx.hook, set()).add((ctx.scope.run_id, ctx.scope.depth))

    names = (
        "session:start",
        "turn:before",
        "steer:inject",
        "budget:exceeded",
        "output",
        "agent:abort",
        "turn:after",
        "session:end",
        "agent:done",
    )
    hooks: Any = dict.fromkeys(names, note)
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    agent = Agent(ScriptedProvider([call("final_answer", n=1)]), hooks=hooks)
    run = agent.once("go", output=schema)
    run.steer("and be quick")
    await run
    limited = Agent(ScriptedProvider([call("t")]), hooks=hooks, tools=[Tool("t", lambda a, c: "x")], max_turns=1)
    short = limited.once("go")
    await short
    stopped = Agent(ScriptedProvider(["never"]), hooks=hooks).once("go")
    stopped.abort("changed my mind")

    async def hang(request: Any) -> str:
        cut.abort("enough")
        await asyncio.Event().wait()
        return ""

    cut = Agent(ScriptedProvider([hang]), hooks=hooks).once("go")
    for each in (stopped, cut):
        with pytest.raises(AbortedError):
            await each
    assert scopes["turn:before"] == scopes["turn:after"] == {(run.id, 0), (short.id, 0), (cut.id, 0)}
    assert scopes["steer:inject"] == scopes["output"] == {(run.id, 0)}
    assert scopes["budget:exceeded"] == {(short.id, 0)}
    # At every exit: done, at a limit, stopped while it runs, stopped before its first step.
    for name in ("agent:done", "session:end"):
        assert scopes[name] == {(run.id, 0), (short.id, 0), (cut.id, 0), (stopped.id, 0)}
    assert scopes["agent:abort"] == {(cut.id, 0), (stopped.id, 0)}


async def test_a_parent_s_hooks_are_asked_about_each_turn_of_its_children() -> None:
    seen: list[tuple[str, int]] = []
    child = Agent(ScriptedProvider(["found"]))
    spawn = create_spawn_tool(preset={"model": child.provider})

    def watch(ctx: HookContext) -> None:
        seen.append((ctx.hook, ctx.scope.depth))

    hooks: Any = {"turn:before": watch, "turn:after": watch}
    agent = Agent(ScriptedProvider([call("spawn", task="look"), "done"]), tools=[spawn], hooks=hooks)
    await agent.run("go")
    assert seen == [
        ("turn:before", 0), ("turn:before", 1), ("turn:after", 1), ("turn:after", 0),
        ("turn:before", 0), ("turn:after", 0),
    ]  # fmt: skip


class Failing:
    """A capability of somebody's own that fails by accident at one of its methods."""

    def __init__(self, at: str) -> None:
        self.at = at

    def _reach(self, at: str) -> None:
        if at == self.at:
            raise LookupError(f"a bug in {at}")

    async def open(self, host: Any) -> None:
        self._reach("open")

    async def close(self) -> None: ...

    def tools(self, turn: Any) -> list[Any]:
        self._reach("tools")
        return [Tool("extra", lambda a, c: "x")]

    def instructions(self, turn: Any) -> str:
        self._reach("instructions")
        return "Use extra."

    def hooks(self) -> dict[str, Any]:
        return {}


@pytest.mark.parametrize("at", ["tools", "instructions"])
async def test_r69_a_capability_that_raises_is_isolated_and_named(at: str, caplog: pytest.LogCaptureFixture) -> None:
    provider = ScriptedProvider([call("t"), "done"])
    agent = Agent(provider, tools=[Tool("t", lambda a, c: "x")], capabilities=[Failing(at), Failing("")])
    assert (await agent.run("go")).text == "done"
    assert [tool.name for tool in provider.requests[0].tools] == ["t", "extra"]
    assert provider.requests[0].system == f"{DEFAULT_SYSTEM}\n\nUse extra."
    told = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert told == [f"Capability Failing raised LookupError: a bug in {at}; this turn goes on without it."] * 2


async def test_r69_a_capability_that_cannot_be_opened_is_a_typed_error() -> None:
    agent = Agent(ScriptedProvider(["x"], repeat=True), capabilities=[Failing("open")])
    for _ in range(2):
        with pytest.raises(ConfigError, match="Capability Failing could not be opened: LookupError: a bug in open"):
            await agent.run("go")


async def test_r69_a_capability_that_never_opens_is_a_typed_error(monkeypatch: pytest.MonkeyPatch) -> None:
    class Hanging(Failing):
        async def open(self, host: Any) -> None:
            await asyncio.Event().wait()

    monkeypatch.setattr(agent_module, "OPENING", 0.02)
    agent = Agent(ScriptedProvider(["x"]), capabilities=[Hanging("")])
    with pytest.raises(ConfigError, match=r"Hanging could not be opened: no end within 0\.02 s"):
        await agent.run("go")
    assert not agent.is_running


# ------------------------------------------------------------------------------------------------------- R74 and R75


async def test_r75_a_budget_of_dollars_finishes_the_pair_then_stops() -> None:
    before = dict(vars(models)["_overrides"])
    override({"dear": {"prices": {"input": 1000.0, "output": 1000.0}}})
    try:
        provider = ScriptedProvider([call("t"), call("t")], usage=Usage(100, 10))
        provider.model = "dear"  # pyright: ignore[reportAttributeAccessIssue]
        agent = Agent(provider, tools=[Tool("t", lambda a, c: "x")], max_cost=0.1)
        async with agent.run("go") as run:
            told = [event async for event in run if isinstance(event, (BudgetExceeded, Log))]
        assert run.result.stop_reason == "budget" and len(provider.requests) == 1
        assert [(e.what, e.used, e.limit) for e in told if isinstance(e, BudgetExceeded)] == [
            ("cost", 110_000_000, 100_000_000)
        ]
        assert [m.role for m in agent.messages] == ["user", "assistant", "tool"]
    finally:
        vars(models)["_overrides"].clear()
        vars(models)["_overrides"].update(before)
        facts_of.cache_clear()


async def test_r75_a_budget_that_cannot_be_kept_is_told_once() -> None:
    provider = ScriptedProvider([call("t"), "done"])
    agent = Agent(provider, tools=[Tool("t", lambda a, c: "x")], max_cost=0.01)
    async with agent.run("go") as run:
        told = [event async for event in run if isinstance(event, Log)]
    assert [(event.level, event.data) for event in told] == [("warning", {"max_cost": 0.01})]
    assert told[0].message == "max_cost bounds nothing here: the price of scripted:script is not known."


# --------------------------------------------------------------------------------------------------------------- R53


_parts = st.one_of(
    st.builds(Text, st.text(max_size=4)),
    st.builds(ToolCall, st.sampled_from(["a", "b", "c", ""]), st.just("t"), st.just({})),
    st.builds(ToolResponse, st.sampled_from(["a", "b", "c", "d"]), st.text(max_size=3)),
)
_histories = st.lists(
    st.builds(Message, st.sampled_from(["user", "assistant", "tool"]), st.lists(_parts, max_size=4).map(tuple)),
    max_size=8,
)


@settings(max_examples=60, deadline=None)
@given(_histories)
def test_r53_a_repaired_history_is_kept_repaired_and_valid_for_six_dialects(history: list[Message]) -> None:
    """The repair itself is on record: who loads the session next has nothing to mend."""
    assert len(DIALECTS) == 6

    async def scenario() -> None:
        store = MemoryStore()
        agent = Agent(ScriptedProvider(["went on"], repeat=True), store=store)
        await agent.session_for("s").import_messages(history)
        again = await Session(agent, "s", store).load()
        assert repair(again.messages) == (list(again.messages), [])
        if again.messages:
            assert_valid_everywhere(again.messages)
        assert (await again.send("go on")).text == "went on"
        assert_valid_everywhere(again.messages)

    asyncio.run(scenario())


# --------------------------------------------------------------------------------------------------------------- R70


async def test_r70_cancelled_at_every_await_of_a_spawn() -> None:
    """A parent with two sub-agents that use tools, stopped at its k-th await, for every k: no orphan, no leak."""
    stores: list[MemoryStore] = []
    agents: list[Agent] = []

    async def work(args: dict[str, Any], ctx: Any) -> str:
        await asyncio.sleep(0)
        return "worked"

    async def answer(request: Any) -> Any:
        await asyncio.sleep(0)
        first, answered = request.messages[0].text, len([m for m in request.messages if m.role == "tool"])
        if first == "part":
            return "done" if answered else call("work", n=1)
        return "all done" if answered else [call("spawn", task="part"), call("spawn", task="part")]

    async def scenario(arm: Callable[[Callable[[], None]], None]) -> None:
        stores.append(MemoryStore())
        tools = [create_spawn_tool(), Tool("work", work)]
        agent = Agent(ScriptedProvider([answer], repeat=True), tools=tools, store=stores[-1])
        agents.append(agent)
        task = asyncio.current_task()
        assert task is not None
        arm(task.cancel)  # pyright: ignore[reportArgumentType]
        try:
            await agent.run("go")
        except (AbortedError, asyncio.CancelledError):
            pass

    async def check(at: int) -> None:
        store, session = stores[-1], agents[-1].session
        await session.wait_for_idle()
        for info in await store.list():
            folded = Conversation.fold(await Ledger(store, info.id).read())
            assert folded.open_calls == [], (at, info.id)
            if folded.messages:
                assert_valid_everywhere(folded.messages)
        family = session.state.get("spawn")
        assert family is None or family.running == 0, at
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        assert others == [], (at, others)
        # Nothing was left that would hold up, or be held up by, what comes next.
        assert (await session.run("go on")).text == "all done"

    assert await sweep(scenario, check) > 15


# ---------------------------------------------------------------------------------------------- what a run is given


async def test_what_a_run_is_given_counts_for_that_run_alone() -> None:
    """Model, tools, prompt parts, images and a signal; the second run has the agent's own again."""
    own, other = ScriptedProvider(["own"], repeat=True), ScriptedProvider(["other"])
    agent = Agent(own, tools=[Tool("t", lambda a, c: "x")], thinking="low")
    result = await agent.run([Text("look"), Text("closely")], model=other, tools=[], thinking="high")
    assert result.text == "other" and other.requests[0].tools == () and other.requests[0].settings.thinking == "high"
    assert [part.content for part in other.requests[0].messages[0].parts if isinstance(part, Text)] == [
        "look",
        "closely",
    ]
    assert (await agent.run(user("again"))).text == "own"
    assert [tool.name for tool in own.requests[0].tools] == ["t"] and own.requests[0].settings.thinking == "low"


async def test_destroy_stops_the_run_and_closes_what_was_opened() -> None:
    closed: list[str] = []

    class Part(Failing):
        async def close(self) -> None:
            closed.append("capability")

    async def hang(request: Any) -> str:
        await asyncio.Event().wait()
        return ""

    agent = Agent(ScriptedProvider([hang]), capabilities=[Part("")])
    run = agent.run("go").start()
    while not agent.is_running or not agent.messages:
        await asyncio.sleep(0)
    await agent.destroy()
    assert closed == ["capability"] and run.done and not agent.is_running
    with pytest.raises(AbortedError):
        _ = run.result


# ------------------------------------------------------------------------------------------------ fields of the hooks


async def test_every_hook_of_the_loop_has_its_fields_and_no_others() -> None:
    """Coercions are there only where something was coerced; MCP, skills and logins are asked in their own rooms."""
    seen: dict[str, set[str]] = {}

    def note(ctx: HookContext) -> None:
        seen.setdefault(ctx.hook, set()).update(ctx.__dict__)

    def fail(args: dict[str, Any], ctx: Any) -> str:
        raise ValueError("no")

    hooks: Any = dict.fromkeys(HOOKS, note)
    tools = [Tool("n", lambda a, c: "x" * 99, n={"type": "integer"}), Tool("bad", fail), create_spawn_tool()]

    def agent(*script: Any, **options: Any) -> Agent:
        return Agent(ScriptedProvider(script), tools=tools, hooks=hooks, **options)

    calls = [call("n", n="5"), call("n"), call("bad"), call("nope")]
    run = agent(
        turn(*calls, thinking="hm"), call("n", n=6), "done", tool_output_budget=50,
        tool_budgets={"n": {"max": 1, "on_exceed": "block"}},
    ).once("go")  # fmt: skip
    run.steer("quick")
    await run
    await agent(call("final_answer", value=3)).once("go", output=int)
    parent = agent()
    steps: list[Any] = [call("spawn", task="a"), "found", call("spawn", task="b"), ProviderError("down"), "done"]
    parent.provider = ScriptedProvider(steps)
    assert (await parent.run("go")).text == "done"
    stopped = agent("never").once("go")
    stopped.abort("enough")
    with pytest.raises(AbortedError):
        await stopped
    long = agent("a" * 4000, "b", "a summary")
    for text in ("one", "two"):
        await long.run(text)
    assert await long.session.compact() is not None
    changing = agent("a", "b", cache=True)
    for text in ("one", "two"):
        await changing.run(text, system=text)
    elsewhere = {name for name in HOOKS if name.startswith(("mcp:", "skills:", "oauth:"))}
    assert set(HOOKS) - set(seen) == elsewhere
    assert {name: sorted(fields) for name, fields in seen.items()} == {
        name: sorted(HOOKS[name].fields) for name in seen
    }


# -------------------------------------------------------------------------------------------------------- what it used


async def test_stats_count_children_in_tokens_and_not_in_turns_and_flatten_parent_first() -> None:
    """Children stand in the order in which they ended; the first token's time is that of the run's own first answer."""
    gates = {"slow": asyncio.Event()}

    async def answer(request: Any) -> Any:
        first = request.messages[0].text
        if first == "slow":
            await gates["slow"].wait()
        if first == "quick":
            gates["slow"].set()
        if first in ("slow", "quick"):
            return first
        return (
            "done" if request.messages[-1].role == "tool" else turn(*[call("spawn", task=t) for t in ("slow", "quick")])
        )

    agent = Agent(ScriptedProvider([answer], repeat=True, usage=Usage(10, 5)), tools=[create_spawn_tool()])
    stats = (await agent.run("go")).stats
    assert (stats.turns, len(stats.children), stats.usage.input_tokens, stats.usage.output_tokens) == (2, 2, 40, 20)
    assert [child.turns for child in stats.children] == [1, 1]
    assert [row.usage.input_tokens for row in flatten_turns(stats)] == [10] * 4
    assert list(flatten_turns(stats))[:2] == stats.turn_usage
    first, last = stats.children
    assert first.elapsed_ns < last.elapsed_ns and agent.session.messages[2].role == "tool"
    assert stats.first_token_ns is not None and 0 < stats.first_token_ns <= stats.elapsed_ns
    (row,) = stats_by_model(stats).values()
    assert (row.turns, row.usage.input_tokens, row.usage.output_tokens) == (4, 40, 20)


def test_helpers_of_tool_output_and_arguments() -> None:
    """Reference C's toolOutputByteLength, toolResultToText and validateToolArgs."""
    parts = (Text("ä"), Blob(b"\x89PNG", "image/png"))
    assert [output_bytes(each) for each in ("", "ab", "ä", "\ud800", parts)] == [0, 2, 2, 3, 5]
    assert response_text(ToolResponse("c", "plain")) == "plain"
    assert response_text(ToolResponse("c", parts)).startswith("ä") and "image/png" in response_text(
        ToolResponse("c", parts)
    )
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    good, bad = coerce_and_validate({"n": "5"}, schema), coerce_and_validate({}, schema)
    assert (good.args, good.coercions, good.error) == ({"n": 5}, ("n",), None)
    assert bad.error == "Missing required field: n"
