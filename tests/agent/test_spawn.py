"""Sub-agents as a tool: what they inherit, what bounds them, and what their parents see of them."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import pytest

from windlass import Agent, MemoryStore, MemoryWorkspace, Policy, Rule, create_spawn_tool
from windlass.agent.run import Run
from windlass.agent.stats import flatten_turns, stats_by_model
from windlass.core.errors import ConfigError
from windlass.core.events import BudgetExceeded, Event, RunStarted, ToolFinished
from windlass.core.messages import ToolCall, ToolResponse
from windlass.core.request import Request
from windlass.testing.scripted import ScriptedProvider, call, turn
from windlass.tools.files import read_file, write_file
from windlass.tools.spawn import spawn


def results(agent: Agent) -> list[str]:
    return [
        str(part.response)
        for message in agent.messages
        for part in message.parts
        if isinstance(part, ToolResponse)
    ]  # fmt: skip


def scripted(**answers: Any) -> ScriptedProvider:
    """A model that answers by the first words it was ever told: parents and children share one provider."""
    steps: dict[str, list[Any]] = {key: list(value) for key, value in answers.items()}

    def step(request: Request) -> Any:
        first = request.messages[0].text.split()[0]
        return steps[first].pop(0)

    return ScriptedProvider([step], repeat=True)


async def test_a_sub_agent_has_its_own_context_and_its_answer_comes_back() -> None:
    provider = scripted(main=[call("spawn", task="look closely"), "thanks"], look=["I saw it"])
    agent = Agent(provider, tools=[spawn], system="Be brief.")
    result = await agent.run("main task")
    told = re.sub(r"\(\d+ms\)", "(Xms)", results(agent)[0])
    assert told == "[sub-agent child-1] Completed in 1 turns (Xms)\nTokens: 10 in / 5 out\n\nI saw it"
    child = provider.requests[1]
    assert [message.text for message in child.messages] == ["look closely"] and child.system == "Be brief."
    assert [tool.name for tool in child.tools] == ["spawn"]
    assert result.usage.input_tokens == 30 and len(result.stats.children) == 1
    assert [one.usage.input_tokens for one in flatten_turns(result.stats)] == [10, 10, 10]
    assert sum([row.turns for row in stats_by_model(result.stats).values()]) == 3


async def test_presets_models_and_places_of_their_own() -> None:
    small = ScriptedProvider([call("write_file", path="a.txt", content="child"), "done"])
    tool = create_spawn_tool(
        agents={"writer": {"model": small, "tools": [write_file], "system": "Write.", "description": "writes files"}},
        thinking="low", workspace="memory",
    )  # fmt: skip
    place = MemoryWorkspace({"a.txt": "parent"})
    agent = Agent(
        ScriptedProvider([call("spawn", task="write it", agent="writer"), "ok"]), tools=[tool, read_file],
        workspace=place,
    )  # fmt: skip
    await agent.run("go")
    request = small.requests[0]
    assert request.system == "Write." and [t.name for t in request.tools] == ["write_file"]
    assert request.settings.thinking == "low" and "writes files" in str(tool.spec.input_schema)
    assert (await place.read("a.txt")) == b"parent", "a place of its own is not its parent's"
    assert results(agent)[0].endswith("done")


async def test_as_many_at_a_time_as_allowed() -> None:
    waiting, running, most = asyncio.Event(), 0, 0

    async def child(request: Request) -> str:
        nonlocal running, most
        running += 1
        most = max(most, running)
        if running == 2:
            waiting.set()
        await waiting.wait()
        running -= 1
        return "done"

    steps: list[Any] = [turn(*[call("spawn", task=f"part {n}") for n in range(3)]), "all"]

    def step(request: Request) -> Any:
        return child(request) if request.messages[0].text.startswith("part") else steps.pop(0)

    agent = Agent(ScriptedProvider([step], repeat=True), tools=[create_spawn_tool(max_concurrent=2)])
    await agent.run("go")
    refused = [text for text in results(agent) if text.startswith("Cannot")]
    assert refused == ["Cannot spawn: 2/2 sub-agents already running. Wait for one to complete."] and most == 2


async def test_s113_generations_and_numbers_are_counted_from_the_topmost_run() -> None:
    def step(request: Request) -> Any:
        last = request.messages[-1]
        return "end" if last.role == "tool" else turn(call("spawn", task="on"), call("spawn", task="on"))

    tool = create_spawn_tool(max_concurrent=8, max_turns=3)
    events: list[Event] = []
    agent = Agent(ScriptedProvider([step], repeat=True), tools=[tool], max_depth=3, max_children=4)
    agent.on(Event, events.append)
    await agent.run("go")
    started = [event for event in events if isinstance(event, RunStarted)]
    told = [str(event.response) for event in events if isinstance(event, ToolFinished)]
    assert len(started) == 1 + 4, "each is told once, however deep it is"
    assert any("3 generations deep" in text for text in told) or any("started 4 sub-agents" in text for text in told)
    deep = Agent(ScriptedProvider([step], repeat=True), tools=[tool], max_depth=2, max_children=50)
    events.clear()
    deep.on(Event, events.append)
    await deep.run("go")
    told = [str(event.response) for event in events if isinstance(event, ToolFinished)]
    assert sum(["2 generations deep" in text for text in told]) == 4
    assert len([event for event in events if isinstance(event, RunStarted)]) == 1 + 2


async def test_s113_a_budget_bounds_the_whole_tree() -> None:
    """Children that run at once spend from one purse: the first to see it empty stops."""

    def step(request: Request) -> Any:
        if request.messages[0].text == "go":
            return "end" if request.messages[-1].role == "tool" else turn(*[call("spawn", task="on")] * 3)
        return call("read_file", path=f"{len(request.messages)}.txt")

    events: list[Event] = []
    agent = Agent(
        ScriptedProvider([step], repeat=True), tools=[spawn, read_file], workspace=MemoryWorkspace({}),
        max_total_tokens=100,
    )  # fmt: skip
    agent.on(Event, events.append)
    result = await agent.run("go")
    # 15 tokens an answer; what is in flight when the bound is reached may pass it, one answer for each of three.
    assert 100 <= result.usage.total_tokens <= 100 + 3 * 15
    assert result.stop_reason == "budget"
    assert {event.what for event in events if isinstance(event, BudgetExceeded)} == {"tokens"}


async def test_s26_a_child_is_never_freer_than_its_parent() -> None:
    tool = create_spawn_tool(preset={"tools": [write_file], "policy": Policy("allow")})
    provider = scripted(main=[call("spawn", task="write now"), "ok"],
                        write=[call("write_file", path="x", content="y"), "tried"])  # fmt: skip
    place = MemoryWorkspace({})
    agent = Agent(provider, tools=[tool], workspace=place, policy=Policy("allow", (Rule("deny", "write_file"),)))
    result = await agent.run("main")
    assert "x" not in place.files and result.text == "ok"
    child = [part for request in provider.requests for message in request.messages for part in message.parts]
    assert any(isinstance(part, ToolResponse) and str(part.response).startswith("Blocked") for part in child)


async def test_hooks_of_the_parent_are_asked_about_a_child_after_its_own() -> None:
    seen: list[tuple[str, int]] = []
    child = Agent(ScriptedProvider([call("read_file", path="a"), "read"]), tools=[read_file],
                  workspace=MemoryWorkspace({"a": "1"}))  # fmt: skip

    @child.hook("tool:gate")
    def own(ctx: Any) -> None:
        seen.append(("child", ctx.scope.depth))

    class Delegate:
        spec, timeout = create_spawn_tool(name="ask").spec, None

        async def call(self, args: dict[str, Any], ctx: Any) -> str:
            return (await ctx.run_child(prompt=args["task"], agent=child)).text

    parent = Agent(ScriptedProvider([call("ask", task="t"), "ok"]), tools=[Delegate()])

    @parent.hook("tool:gate")
    def above(ctx: Any) -> None:
        seen.append(("parent", ctx.scope.depth))

    await parent.run("go")
    assert seen == [("parent", 0), ("child", 1), ("parent", 1)]


async def test_r76_a_child_that_fails_or_takes_too_long_is_told_and_counted() -> None:
    async def never(_: Request) -> str:
        await asyncio.Event().wait()
        return ""

    def step(request: Request) -> Any:
        if request.messages[0].text == "slow":
            return never(request)
        if request.messages[0].text == "bad":
            return ConfigError("no such thing")
        return (
            "ok" if request.messages[-1].role == "tool" else turn(call("spawn", task="bad"), call("slow", task="slow"))
        )

    store = MemoryStore()
    slow = create_spawn_tool(name="slow", timeout=0.05)
    agent = Agent(ScriptedProvider([step], repeat=True), tools=[spawn, slow], store=store)
    result = await agent.run("go")
    first, second = results(agent)
    assert "[sub-agent child-1] Failed: no such thing" in first and "no result within 0.05 s" in second
    assert result.text == "ok" and len(result.stats.children) == 2
    assert not [task for task in asyncio.all_tasks() if "_drive" in repr(task) and task is not asyncio.current_task()]


async def test_a_session_of_a_child_is_kept_under_its_parents_name() -> None:
    store = MemoryStore()
    agent = Agent(scripted(main=[call("spawn", task="look"), "ok"], look=["seen"]), tools=[spawn], store=store)
    await agent.run("main")
    ids = sorted([info.id for info in await store.list()])
    assert len(ids) == 2 and ids[1].startswith(ids[0] + ".")


def test_options_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ConfigError, match="max_concurrent"):
        create_spawn_tool(max_concurrent=0)
    assert isinstance(call("spawn", task="x"), ToolCall) and Run is not None
