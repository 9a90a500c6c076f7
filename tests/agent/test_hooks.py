"""Every hook: when it is asked, what it sees, what it may change, and what happens when it fails."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from tests.agent.helpers import Tool
from windlass.agent.agent import Agent
from windlass.agent.hooks import HOOKS, HookContext
from windlass.agent.policy import Policy, Rule
from windlass.agent.presets import basic, define_preset
from windlass.core.errors import ConfigError, HookError, ProviderError, UnknownNameError
from windlass.core.events import KINDS
from windlass.core.messages import ToolResponse, user
from windlass.core.request import ToolAnnotations, ToolSpec
from windlass.testing.scripted import ScriptedProvider, call, turn


def found(args: dict[str, Any], ctx: Any) -> str:
    return "found"


def agent_with(script: list[Any], *, body: Any = found, **options: Any) -> Agent:
    return Agent(ScriptedProvider(script), tools=[Tool("look", body, q={"type": "string"})], **options)


def answers(agent: Agent) -> list[Any]:
    return [part.response for message in agent.messages for part in message.parts if isinstance(part, ToolResponse)]


def record(agent: Agent, *names: str) -> list[tuple[str, dict[str, Any]]]:
    seen: list[tuple[str, dict[str, Any]]] = []
    for name in names:
        agent.hook(name)(lambda ctx, name=name: seen.append((name, dict(ctx.__dict__))))
    return seen


def test_the_table_is_complete() -> None:
    """Each name has fields, changes only its own, and says by which event sinks learn the same."""
    for name, spec in HOOKS.items():
        assert set(spec.mutable) <= set(spec.fields), name
        assert spec.fact in KINDS, name


async def test_order_of_all_hooks_in_a_run_with_a_tool() -> None:
    agent = agent_with([turn(call("look", q="a"), thinking="hm"), turn(text="It is here.")])
    names = [name for name in HOOKS if name not in ("output", "budget:exceeded", "agent:abort")]
    seen = record(agent, *names)
    await agent.run("go")
    assert [name for name, _ in seen] == [
        "session:start", "system:before",
        "context:transform", "system:transform", "turn:before", "stream:thinking",
        "tool:gate", "tool:before", "tool:transform", "tool:after", "usage", "turn:after",
        "context:transform", "system:transform", "turn:before", "stream:text", "stream:text", "stream:text",
        "stream:end", "usage", "turn:after", "session:turns", "session:end", "agent:done",
    ]  # fmt: skip


async def test_contexts_hold_their_fields_and_no_empty_coercions() -> None:
    agent = agent_with([call("look", q="a"), "ok"])
    seen = record(agent, "tool:gate", "tool:after", "tool:transform", "turn:after", "usage", "session:end")
    await agent.run("go")
    fields = dict(seen)
    gate = fields["tool:gate"]
    assert gate["name"] == "look" and gate["input"] == {"q": "a"} and gate["run_tool_counts"] == {}
    after = fields["tool:after"]
    assert after["result"] == "found" and after["output_bytes"] == 5 and after["run_tool_counts"] == {"look": 1}
    assert "coercions" not in after and "coercions" not in fields["tool:transform"]
    assert fields["turn:after"]["message"].text == "ok"
    assert (fields["usage"]["total_in"], fields["usage"]["total_out"]) == (20, 10)
    assert fields["session:end"]["status"] == "end_turn" and fields["session:end"]["turn_range"] == (0, 4)


async def test_coercions_are_told_only_where_something_was_coerced() -> None:
    tool = Tool("count", lambda args, ctx: str(args["n"]), n={"type": "integer"})
    agent = Agent(ScriptedProvider([call("count", n="5"), call("count", n=6), "ok"]), tools=[tool])
    seen = record(agent, "validation:coerce", "tool:after")
    await agent.run("go")
    assert [name for name, _ in seen] == ["validation:coerce", "tool:after", "tool:after"]
    assert seen[0][1]["coercions"] == ["n"] and seen[1][1]["coercions"] == ["n"] and "coercions" not in seen[2][1]


async def test_gate_block_beats_result_and_the_default_reason() -> None:
    agent = agent_with([call("look", q="a"), call("look", q="b"), call("look", q="c"), "ok"])

    @agent.hook("tool:gate")
    def gate(ctx: HookContext) -> None:
        ctx.result = "from the cache"
        if ctx.input["q"] == "a":
            ctx.block = True
        elif ctx.input["q"] == "b":
            ctx.block, ctx.reason = True, "not today"

    result = await agent.run("go")
    assert answers(agent) == ["Blocked: Tool execution was blocked", "Blocked: not today", "from the cache"]
    assert result.refused == ("look", "look")


async def test_only_mutable_fields_can_be_set() -> None:
    agent = agent_with([call("look", q="a"), "ok"])
    errors: list[str] = []

    @agent.hook("tool:before")
    def before(ctx: HookContext) -> None:
        try:
            ctx.input = {}
        except AttributeError as error:
            errors.append(str(error))
        with pytest.raises(AttributeError, match="it has"):
            _ = ctx.nothing

    await agent.run("go")
    assert errors == ["hook 'tool:before' may change nothing, not 'input'"]


async def test_transform_counts_before_and_after_counts_after() -> None:
    agent = agent_with([call("look", q="a"), "ok"])
    sizes: list[int] = []

    @agent.hook("tool:transform")
    def shout(ctx: HookContext) -> None:
        sizes.append(ctx.output_bytes)
        ctx.result = ctx.result.upper() + "!"
        ctx.is_error = True

    @agent.hook("tool:after")
    def after(ctx: HookContext) -> None:
        sizes.append(ctx.output_bytes)

    await agent.run("go")
    assert answers(agent) == ["FOUND!"] and sizes == [5, 6]
    response = next(p for m in agent.messages for p in m.parts if isinstance(p, ToolResponse))
    assert response.status == "error"


async def test_priorities_then_order_and_the_last_writer_wins() -> None:
    agent = agent_with(["ok"])
    order: list[str] = []

    def add(name: str, priority: int) -> None:
        @agent.hook("system:transform", priority=priority)
        async def handler(ctx: HookContext) -> None:
            order.append(name)
            ctx.system = name

    for name, priority in [("b", 0), ("c", 0), ("last", 10), ("first", -5)]:
        add(name, priority)
    await agent.run("go")
    provider: Any = agent.provider
    assert order == ["first", "b", "c", "last"] and provider.requests[0].system == "last"


async def test_context_and_system_hooks_change_one_request_only() -> None:
    agent = agent_with(["a", "b"])

    @agent.hook("context:transform")
    def only_last(ctx: HookContext) -> None:
        ctx.messages = [user("instead")]

    @agent.hook("system:before")
    def before(ctx: HookContext) -> None:
        ctx.system += " Be brief."

    await agent.run("first")
    await agent.run("second")
    provider: Any = agent.provider
    assert [m.text for m in provider.requests[1].messages] == ["instead"]
    assert provider.requests[1].system == "You are a helpful assistant. Be brief."
    assert [m.text for m in agent.messages] == ["first", "a", "second", "b"]


async def test_unknown_tool_hooks() -> None:
    agent = agent_with([call("nope"), call("nope2"), "ok"])
    errors = record(agent, "tool:error")

    @agent.hook("tool:unknown")
    def unknown(ctx: HookContext) -> None:
        ctx.result = "use look"
        ctx.suppress_error = ctx.name == "nope"

    await agent.run("go")
    assert answers(agent) == ["use look", "use look"]
    assert [values["name"] for _, values in errors] == ["nope2"]


async def test_tool_error_hook_rewrites_what_the_model_reads() -> None:
    def broken(args: Any, ctx: Any) -> str:
        raise ValueError("secret path /home/me")

    agent = agent_with([call("look", q="a"), "ok"], body=broken)

    @agent.hook("tool:error")
    def rewrite(ctx: HookContext) -> None:
        assert isinstance(ctx.error, ValueError) and ctx.result == "Tool error: ValueError: secret path /home/me"
        ctx.result = "Tool error: it failed"

    await agent.run("go")
    assert answers(agent) == ["Tool error: it failed"]


async def test_validation_reject_is_told_with_the_schema() -> None:
    agent = agent_with([call("look"), "ok"])
    seen = record(agent, "validation:reject")
    await agent.run("go")
    assert answers(agent) == ["Validation error: Missing required field: q"]
    assert seen[0][1]["reason"] == "Missing required field: q" and seen[0][1]["schema"]["required"] == ["q"]


async def test_turn_after_fires_when_the_provider_throws() -> None:
    agent = agent_with([ProviderError("down")])
    seen = record(agent, "turn:after", "agent:done", "session:end")
    with pytest.raises(ProviderError):
        await agent.run("go")
    assert [name for name, _ in seen] == ["turn:after", "session:end", "agent:done"]
    assert seen[1][1]["status"] == "error"


async def test_output_hook_changes_the_structured_answer() -> None:
    agent = Agent(ScriptedProvider([call("final_answer", value=3)]), output=int)

    @agent.hook("output")
    def double(ctx: HookContext) -> None:
        ctx.output *= 2

    assert (await agent.run("go")).output == 6


async def test_budget_and_abort_hooks() -> None:
    agent = agent_with([call("look", q="a")], max_turns=1)
    seen = record(agent, "budget:exceeded")
    await agent.run("go")
    assert seen[0][1]["budget"] == 1

    async def hang(request: Any) -> str:
        await asyncio.sleep(9)
        return ""

    waiting = agent_with([hang])
    aborted = record(waiting, "agent:abort")
    run = waiting.run("go").start()
    await asyncio.sleep(0)
    run.abort("enough")
    with pytest.raises(Exception, match="enough"):
        await run
    assert aborted[0][1]["reason"] == "enough"


async def test_r69_hook_that_raises_or_hangs_is_isolated_and_named(caplog: pytest.LogCaptureFixture) -> None:
    def raises(ctx: HookContext) -> None:
        raise RuntimeError("my fault")

    async def hangs(ctx: HookContext) -> None:
        await asyncio.sleep(60)

    gated = agent_with([call("look", q="a"), "ok"])
    gated.hook("tool:gate")(raises)
    await gated.run("go")
    assert "raises" in answers(gated)[0] and answers(gated)[0].startswith("Blocked: Hook")

    hanging = agent_with([call("look", q="a"), "ok"])
    hanging.hooks.deadline = 0.01
    hanging.hook("tool:gate")(hangs)
    await hanging.run("go")
    assert "took longer than 0.01 s" in answers(hanging)[0]

    transformed = agent_with([call("look", q="a"), "ok"])

    @transformed.hook("tool:transform")
    def half(ctx: HookContext) -> None:
        ctx.result = "half done"
        raise RuntimeError("oops")

    with caplog.at_level(logging.WARNING, "windlass.hooks"):
        await transformed.run("go")
    assert answers(transformed) == ["found"] and "half" in caplog.text

    before = agent_with(["ok"])
    before.hook("system:before")(raises)
    with pytest.raises(HookError, match="raises"):
        await before.run("go")
    watched = agent_with(["ok"])
    watched.hook("stream:text")(raises)
    assert (await watched.run("go")).text == "ok"


async def test_sinks_that_raise_are_reported_and_the_run_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    def broken(event: Any) -> None:
        raise OSError("disk full")

    agent = agent_with(["ok"], sinks=[broken])
    with caplog.at_level(logging.WARNING, "windlass.agent"):
        assert (await agent.run("go")).text == "ok"
    assert "disk full" in caplog.text


class Answers:
    def __init__(self, *given: str) -> None:
        self.given, self.asked = list(given), []

    async def approve(self, name: str, input: dict[str, Any], reason: str, /) -> Any:
        self.asked.append((name, input))
        return self.given.pop(0)


async def test_permissions_deny_beats_ask_beats_allow_and_always_means_this_call() -> None:
    approver = Answers("allow_always", "reject_once")
    script = [call("look", q="a"), call("look", q="a"), call("look", q="b"), "ok"]
    agent = agent_with(script, policy=Policy("ask"), approver=approver)
    result = await agent.run("go")
    assert answers(agent) == ["found", "found", "Blocked: permission was refused"]
    assert approver.asked == [("look", {"q": "a"}), ("look", {"q": "b"})] and result.refused == ("look",)
    rules = (Rule("allow", "look"), Rule("deny", "l*", "not here"), Rule("ask"))
    denied = agent_with([call("look", q="a"), "ok"], policy=Policy("allow", rules), approver=approver)
    await denied.run("go")
    assert answers(denied) == ["Blocked: not here"]


async def test_permission_without_anybody_to_ask_is_refused_and_reading_needs_none() -> None:
    agent = agent_with([call("look", q="a"), "ok"], policy=Policy("ask"))
    assert (await agent.run("go")).refused == ("look",)
    reader = Tool("read", lambda args, ctx: "text")
    reader.spec = ToolSpec("read", annotations=ToolAnnotations(read_only=True))
    free = Agent(ScriptedProvider([call("read"), "ok"]), tools=[reader], policy=Policy("ask"))
    await free.run("go")
    assert answers(free) == ["text"]


async def test_a_hook_can_forbid_but_never_grant() -> None:
    agent = agent_with([call("look", q="a"), "ok"], policy=Policy("deny"))

    @agent.hook("tool:gate")
    def grant(ctx: HookContext) -> None:
        ctx.block = False

    await agent.run("go")
    assert answers(agent)[0].startswith("Blocked")


class Memory:
    """A capability: brings a tool and a sentence, has a lifetime, and watches."""

    def __init__(self) -> None:
        self.log: list[str] = []

    async def open(self, host: Any) -> None:
        self.log.append("open")

    async def close(self) -> None:
        self.log.append("close")

    def tools(self, turn: Any) -> list[Any]:
        return [Tool("recall", lambda args, ctx: "blue")]

    def instructions(self, turn: Any) -> str:
        return "You remember colours."

    def hooks(self) -> dict[str, Any]:
        return {"agent:done": self._done}

    def _done(self, ctx: HookContext) -> None:
        self.log.append("done")


async def test_capabilities_bring_tools_text_and_hooks() -> None:
    memory = Memory()
    provider = ScriptedProvider([call("recall"), "blue"])
    agent = Agent(provider, capabilities=[memory])
    await asyncio.gather(agent.warmup(), agent.warmup())
    await agent.run("which?")
    await agent.destroy()
    assert memory.log == ["open", "done", "close"] and answers(agent) == ["blue"]
    assert [spec.name for spec in provider.requests[0].tools] == ["recall"]
    assert (provider.requests[0].system or "").endswith("You remember colours.")


async def test_warmup_at_once_waits_for_the_one_opening_and_a_failure_is_tried_again() -> None:
    class Slow(Memory):
        fail = True

        async def open(self, host: Any) -> None:
            await asyncio.sleep(0)
            if self.fail:
                self.fail = False
                raise ConnectionError("not yet")
            self.log.append("open")

    slow = Slow()
    agent = Agent(ScriptedProvider(["a"]), capabilities=[slow])
    failed = await asyncio.gather(agent.warmup(), agent.warmup(), return_exceptions=True)
    assert [type(error) for error in failed] == [ConnectionError, ConnectionError]
    await asyncio.gather(agent.warmup(), agent.warmup())
    assert slow.log == ["open"] and (await agent.run("x")).text == "a"


def test_presets() -> None:
    mine = define_preset(**basic, system="mine")
    agent = Agent(ScriptedProvider(), **mine)
    assert list(agent.tools)[:3] == ["shell", "read_file", "write_file"] and agent.system == "mine"
    with pytest.raises(ConfigError, match="modle"):
        define_preset(modle="x")
    with pytest.raises(UnknownNameError, match="files"):
        Agent(ScriptedProvider(), tools="fils")
