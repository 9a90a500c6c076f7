"""The loop on a scripted provider: turns, tools, steering, limits, precedence."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from inline_snapshot import snapshot

from tests.agent.helpers import Tool, kinds
from windlass.agent.agent import Agent
from windlass.agent.plan import AbortSignal
from windlass.core.errors import (
    AbortedError,
    BadRequestError,
    ConfigError,
    OutputError,
    OverloadedError,
    SessionBusy,
    StreamInterrupted,
    UnknownNameError,
)
from windlass.core.events import Event, Retry, TextDelta, ToolFinished, TurnFinished
from windlass.core.items import Finish, Item, NoticeItem, TextItem, UsageItem
from windlass.core.messages import Message, Text, ToolCall, ToolResponse
from windlass.core.usage import Usage
from windlass.testing.scripted import ScriptedProvider, call, turn


def responses(agent: Agent) -> list[tuple[str, Any, str]]:
    return [
        (part.id, part.response, part.status)
        for message in agent.messages
        for part in message.parts
        if isinstance(part, ToolResponse)
    ]


async def test_one_prompt_through_the_loop() -> None:
    look = Tool("look", lambda args, _: f"found {args['q']}", q={"type": "string"})
    provider = ScriptedProvider([call("look", q="a"), "It is here."])
    agent = Agent(provider, tools=[look])
    async with agent.run("Where is a?") as run:
        events = [event async for event in run]
    assert kinds(events) == snapshot(
        [
            "session.created",
            "run.started",
            "message.added",
            "turn.started",
            "message.added",
            "tool.started",
            "tool.finished",
            "turn.finished",
            "turn.started",
            "message.added",
            "turn.finished",
            "run.finished",
        ]
    )
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    assert {event.run_id for event in events} == {run.id}
    assert "".join([event.text for event in events if isinstance(event, TextDelta)]) == "It is here."
    assert run.result.text == "It is here." and run.result.stop_reason == "end_turn"
    assert run.result.usage == Usage(20, 10) and run.result.stats.turns == 2
    assert [message.role for message in provider.requests[1].messages] == ["user", "assistant", "tool"]
    assert look.inputs == [{"q": "a"}]


async def test_run_continues_the_default_session_and_reset_empties_it() -> None:
    provider = ScriptedProvider(["one", "two", "three"])
    agent = Agent(provider)
    await agent.run("first")
    await agent.run("second")
    assert [message.text for message in provider.requests[1].messages] == ["first", "one", "second"]
    assert agent.turns == 2
    agent.reset()
    assert agent.turns == 0 and agent.messages == ()
    await agent.run("third")
    assert [message.text for message in provider.requests[2].messages] == ["third"]


async def test_once_remembers_nothing() -> None:
    agent = Agent(ScriptedProvider(["one", "two"]))
    assert (await agent.once("a")).text == "one"
    assert agent.messages == ()


async def test_parallel_tools_answer_in_source_order() -> None:
    gate = asyncio.Event()
    order: list[str] = []

    async def slow(args: dict[str, Any], _: Any) -> str:
        await gate.wait()
        order.append("slow")
        return "slow done"

    async def fast(args: dict[str, Any], _: Any) -> str:
        order.append("fast")
        gate.set()
        return "fast done"

    agent = Agent(
        ScriptedProvider([[call("slow"), call("fast")], "ok"]), tools=[Tool("slow", slow), Tool("fast", fast)]
    )
    await agent.run("go")
    assert order == ["fast", "slow"]
    assert [text for _, text, _ in responses(agent)] == ["slow done", "fast done"]


async def test_sequential_tools_run_one_after_the_other() -> None:
    running = 0
    worst = 0

    async def body(args: dict[str, Any], _: Any) -> str:
        nonlocal running, worst
        running += 1
        worst = max(worst, running)
        await asyncio.sleep(0)
        running -= 1
        return "ok"

    tool = Tool("t", body)
    agent = Agent(
        ScriptedProvider([[call("t"), call("t"), call("t")], "ok"]), tools=[tool], tool_execution="sequential"
    )
    await agent.run("go")
    assert worst == 1 and len(tool.inputs) == 3


async def test_steering_skips_calls_not_yet_started_in_sequential_mode() -> None:
    agent: Agent

    def body(args: dict[str, Any], _: Any) -> str:
        agent.steer("stop that")
        return "done"

    tool = Tool("t", body)
    provider = ScriptedProvider([[call("t"), call("t"), call("t")], "as you say"])
    agent = Agent(provider, tools=[tool], tool_execution="sequential")
    await agent.run("go")
    assert len(tool.inputs) == 1
    assert [text for _, text, _ in responses(agent)] == [
        "done",
        "Skipped: steering message received",
        "Skipped: steering message received",
    ]
    assert provider.requests[1].messages[-1].text == "stop that"


async def test_steering_waits_for_the_batch_in_parallel_mode() -> None:
    agent: Agent

    def body(args: dict[str, Any], _: Any) -> str:
        agent.steer("also this")
        return "done"

    provider = ScriptedProvider([[call("t"), call("u")], "ok"])
    agent = Agent(provider, tools=[Tool("t", body), Tool("u", lambda a, c: "u done")])
    await agent.run("go")
    assert [text for _, text, _ in responses(agent)] == ["done", "u done"]
    assert [message.role for message in provider.requests[1].messages] == ["user", "assistant", "tool", "user"]


async def test_follow_up_goes_on_after_the_answer() -> None:
    provider = ScriptedProvider(["first", "second"])
    agent = Agent(provider)
    async with agent.run("go") as run:
        run.follow_up("and now?")
        async for _ in run:
            pass
    assert run.result.text == "second"
    assert provider.requests[1].messages[-1].text == "and now?"


async def test_resume_without_a_prompt_after_max_turns() -> None:
    provider = ScriptedProvider([call("t"), call("t", again=1), "done"])
    agent = Agent(provider, tools=[Tool("t", lambda a, c: "x")], max_turns=2)
    first = await agent.run("go")
    assert first.stop_reason == "max_turns" and first.error is None
    second = await agent.run()
    assert second.text == "done"
    assert [message.role for message in agent.messages] == [
        "user",
        "assistant",
        "tool",
        "assistant",
        "tool",
        "assistant",
    ]


async def test_resume_with_nothing_to_resume_is_a_typed_error() -> None:
    with pytest.raises(ConfigError, match="nothing to resume"):
        await Agent(ScriptedProvider(["x"])).run()


async def test_precedence_run_over_agent_over_defaults() -> None:
    provider, other = ScriptedProvider(["a", "b", "c"]), ScriptedProvider(["z"], model="other")
    tool = Tool("t", lambda a, c: "x")
    agent = Agent(provider, system="agent text", tools=[tool], max_tokens=100, temperature=0.5)
    await agent.run("1")
    await agent.run("2", system="run text", tools={}, max_tokens=50, thinking="low")
    await agent.run("3", model=other)
    first, second = provider.requests
    assert (first.system, first.settings.max_tokens, first.settings.temperature) == ("agent text", 100, 0.5)
    assert [spec.name for spec in first.tools] == ["t"]
    assert (second.system, second.settings.max_tokens, second.settings.temperature) == ("run text", 50, 0.5)
    assert second.tools == () and second.settings.thinking == "low"
    assert other.requests[0].model == "other" and other.requests[0].system == "agent text"
    plain = ScriptedProvider(["a"])
    await Agent(plain).run("1")
    assert plain.requests[0].settings.max_tokens == 16384
    assert plain.requests[0].system == "You are a helpful assistant."


async def test_a_second_run_while_one_runs_raises() -> None:
    release = asyncio.Event()

    async def wait(request: Any) -> str:
        await release.wait()
        return "done"

    agent = Agent(ScriptedProvider([wait, "next"]))
    run = agent.run("one").start()
    assert agent.is_running
    with pytest.raises(SessionBusy, match="already runs"):
        agent.run("two")
    queued = asyncio.create_task(agent.session.send("two"))
    await asyncio.sleep(0)
    release.set()
    assert (await run).text == "done"
    assert (await queued).text == "next"
    await agent.wait_for_idle()
    assert not agent.is_running


async def test_two_runs_made_but_only_one_may_start() -> None:
    agent = Agent(ScriptedProvider(["a", "b"]))
    first, second = agent.run("1"), agent.run("2")
    first.start()
    with pytest.raises(SessionBusy):
        await second
    assert (await first).text == "a"


async def test_abort_raises_and_answers_open_calls() -> None:
    agent: Agent

    async def hang(args: dict[str, Any], _: Any) -> str:
        agent.abort("enough")
        await asyncio.sleep(60)
        return "never"

    provider = ScriptedProvider([[call("hang"), call("quick")], "fine"])
    agent = Agent(provider, tools=[Tool("hang", hang), Tool("quick", lambda a, c: "quick done")])
    with pytest.raises(AbortedError, match="enough"):
        await agent.run("go")
    got = responses(agent)
    assert [status for _, _, status in got] == ["cancelled", "ok"]
    assert (await agent.run("go on")).text == "fine"


async def test_abort_signal_from_another_thread() -> None:
    signal = AbortSignal()

    async def wait(request: Any) -> str:
        await asyncio.to_thread(signal.abort, "from a thread")
        await asyncio.sleep(60)
        return "never"

    with pytest.raises(AbortedError, match="from a thread"):
        await Agent(ScriptedProvider([wait])).run("go", signal=signal)


async def test_abort_before_the_start_never_asks() -> None:
    provider = ScriptedProvider(["x"])
    signal = AbortSignal()
    signal.abort()
    with pytest.raises(AbortedError):
        await Agent(provider).run("go", signal=signal)
    assert provider.requests == []


async def test_cancelling_the_caller_propagates_after_the_clean_up() -> None:
    async def hang(args: dict[str, Any], _: Any) -> str:
        await asyncio.sleep(60)
        return "never"

    provider = ScriptedProvider([call("hang"), "fine"])
    agent = Agent(provider, tools=[Tool("hang", hang)])
    task = asyncio.create_task(_await(agent.run("go")))
    while not agent.messages or agent.messages[-1].role != "assistant":
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [status for _, _, status in responses(agent)] == ["cancelled"]
    assert not agent.is_running
    assert (await agent.run("again")).text == "fine"


async def _await(run: Any) -> Any:
    return await run


async def test_leaving_the_context_early_cancels_and_cleans_up() -> None:
    provider = ScriptedProvider([turn(text="one two three four"), "next"])
    agent = Agent(provider)
    async with agent.run("go") as run:
        async for event in run:
            if isinstance(event, TextDelta):
                break
    assert not agent.is_running
    assert run.done
    assert (await agent.run("again")).text == "next"


async def test_a_slow_reader_slows_the_stream_down_and_loses_nothing() -> None:
    agent = Agent(ScriptedProvider([[TextItem("x")] * 5000]))
    seen = 0
    async with agent.run("go") as run:
        async for event in run:
            if isinstance(event, TextDelta):
                seen += 1
                if seen % 500 == 0:
                    await asyncio.sleep(0.001)
    assert seen == 5000


async def test_validation_unknown_tools_and_errors_reach_the_model() -> None:
    def raises(args: dict[str, Any], _: Any) -> str:
        raise ValueError("no such thing")

    number = Tool("number", lambda a, c: str(a["n"] + 1), n={"type": "integer"})
    script = [
        ToolCall("", "number", None, "{broken"),
        ToolCall("", "number", {}),
        ToolCall("", "number", {"n": "5"}),
        call("numbr", n=1),
        call("functions.number", n=1),
        call("raises"),
        "ok",
    ]
    agent = Agent(ScriptedProvider(script), tools=[number, Tool("raises", raises)])
    await agent.run("go")
    texts = [text for _, text, _ in responses(agent)]
    assert texts[0].startswith("Validation error: The arguments are not a JSON object")
    assert texts[1] == "Validation error: Missing required field: n"
    assert texts[2] == "6"
    assert texts[3] == "Unknown tool: numbr. Did you mean number?"
    assert texts[4] == "2"
    assert texts[5] == "Tool error: ValueError: no such thing"
    assert number.inputs == [{"n": 5}, {"n": 1}]


async def test_r25_calls_of_an_answer_cut_at_its_length_are_not_run() -> None:
    tool = Tool("t", lambda a, c: "ran")
    cut = Message("assistant", (ToolCall("c1", "t", {}),))
    provider = ScriptedProvider([[Finish(cut, Usage(1, 1), "length")], "shorter"])
    agent = Agent(provider, tools=[tool])
    result = await agent.run("go")
    assert tool.inputs == [] and result.text == "shorter"
    assert responses(agent)[0][2] == "error"


async def test_r23_ids_repeated_across_turns_are_made_unique() -> None:
    tool = Tool("t", lambda a, c: str(a["n"]), n={"type": "integer"})
    script = [ToolCall("same", "t", {"n": number}) for number in range(3)]
    agent = Agent(ScriptedProvider([*script, "ok"]), tools=[tool])
    await agent.run("go")
    ids = [call_id for call_id, _, _ in responses(agent)]
    assert len(set(ids)) == 3 and [text for _, text, _ in responses(agent)] == ["0", "1", "2"]


async def test_r58_tool_that_never_returns_meets_its_deadline() -> None:
    async def never(args: dict[str, Any], _: Any) -> str:
        await asyncio.Event().wait()
        return ""

    agent = Agent(ScriptedProvider([call("never"), "ok"]), tools=[Tool("never", never, timeout=0.02)])
    result = await agent.run("go")
    assert result.text == "ok" and responses(agent)[0][2] == "timeout"


async def test_r65_one_fails_one_hangs_one_floods() -> None:
    async def hangs(args: dict[str, Any], _: Any) -> str:
        await asyncio.Event().wait()
        return ""

    def fails(args: dict[str, Any], _: Any) -> str:
        raise RuntimeError("broken")

    flood = "x" * 1_000_000
    tools = [Tool("hangs", hangs, timeout=0.02), Tool("fails", fails), Tool("floods", lambda a, c: flood)]
    agent = Agent(ScriptedProvider([[call("hangs"), call("fails"), call("floods")], "ok"]), tools=tools)
    await agent.run("go")
    assert [status for _, _, status in responses(agent)] == ["timeout", "error", "ok"]
    assert responses(agent)[2][1] == flood


async def test_r07_broken_stream_keeps_its_text_and_is_taken_up_again() -> None:
    broken = StreamInterrupted("gone")
    provider = ScriptedProvider([[TextItem("Once upon"), broken], " a time."])
    agent = Agent(provider)
    async with agent.run("go") as run:
        events = [event async for event in run]
    assert run.result.text == " a time."
    assert [m.finish_reason for m in agent.messages] == [None, "interrupted", None, None]
    assert agent.messages[1].text == "Once upon"
    assert len([e for e in events if isinstance(e, Retry)]) == 1
    assert len([e for e in events if isinstance(e, TurnFinished)]) == 2


async def test_r07_second_break_is_a_typed_error_and_the_session_goes_on() -> None:
    provider = ScriptedProvider(
        [[TextItem("a"), StreamInterrupted("gone")], [TextItem("b"), OverloadedError("busy")], "c"]
    )
    agent = Agent(provider)
    with pytest.raises(OverloadedError) as caught:
        await agent.run("go")
    assert caught.value.partial == "b"
    assert (await agent.run("again")).text == "c"


async def test_stream_without_a_finish_is_interrupted() -> None:
    class Endless(ScriptedProvider):
        async def stream(self, request: Any) -> AsyncIterator[Item]:
            self.requests.append(request)
            yield UsageItem(Usage(3, 1))

    with pytest.raises(StreamInterrupted):
        await Agent(Endless()).run("go")


async def test_bad_request_before_any_content_ends_the_run_typed() -> None:
    agent = Agent(ScriptedProvider([BadRequestError("no", status=400), "ok"]))
    with pytest.raises(BadRequestError):
        await agent.run("go")
    assert [m.role for m in agent.messages] == ["user"]
    assert (await agent.run()).text == "ok"


async def test_r27_refusal_is_kept_and_ends_the_run_with_its_reason() -> None:
    refusal = Finish(Message("assistant", (Text("I will not."),)), Usage(1, 1), "refusal")
    agent = Agent(ScriptedProvider([[refusal]]))
    result = await agent.run("go")
    assert result.stop_reason == "refusal" and result.text == "I will not."


async def test_r74_repeated_calls_are_nudged_then_stopped() -> None:
    provider = ScriptedProvider([call("t", q="same")], repeat=True)
    agent = Agent(provider, tools=[Tool("t", lambda a, c: "nothing new")])
    result = await agent.run("go")
    assert result.stop_reason == "loop" and len(provider.requests) == 5
    nudges = [m for m in agent.messages if m.role == "user" and "same tool calls" in m.text]
    assert len(nudges) == 1


async def test_r74_alternating_calls_are_stopped_and_polling_is_not() -> None:
    script = [call("t", q="a"), call("t", q="b")]
    agent = Agent(ScriptedProvider(script, repeat=True), tools=[Tool("t", lambda a, c: "same")])
    assert (await agent.run("go")).stop_reason == "loop"
    count = 0

    def poll(args: dict[str, Any], _: Any) -> str:
        nonlocal count
        count += 1
        return f"{count} %"

    polling = Agent(ScriptedProvider([*[call("p")] * 20, "ready"]), tools=[Tool("p", poll)])
    assert (await polling.run("go")).text == "ready"


async def test_r74_empty_answers_are_nudged_then_stopped() -> None:
    agent = Agent(ScriptedProvider(["", "there"]))
    assert (await agent.run("go")).text == "there"
    silent = Agent(ScriptedProvider(["", ""]))
    assert (await silent.run("go")).stop_reason == "loop"


async def test_r75_token_budget_finishes_the_pair_then_stops() -> None:
    provider = ScriptedProvider([call("t"), call("t")], usage=Usage(100, 10))
    agent = Agent(provider, tools=[Tool("t", lambda a, c: "x")], max_total_tokens=100)
    result = await agent.run("go")
    assert result.stop_reason == "budget" and len(provider.requests) == 1
    assert [m.role for m in agent.messages] == ["user", "assistant", "tool"]


async def test_r75_time_budget_stops_a_hanging_run() -> None:
    async def hang(request: Any) -> str:
        await asyncio.Event().wait()
        return ""

    agent = Agent(ScriptedProvider([hang, "later"]), run_seconds=0.02)
    result = await agent.run("go")
    assert result.stop_reason == "budget"
    assert (await agent.run("again", run_seconds=None)).text == "later"


async def test_structured_output_by_a_forced_tool_with_a_retry() -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    provider = ScriptedProvider(["no tool call", call("final_answer", n="x"), call("final_answer", n="7")])
    result = await Agent(provider, output=schema).run("go")
    assert result.output == {"n": 7}
    assert provider.requests[0].tool_choice == "final_answer"
    assert [m.role for m in provider.requests[2].messages][-2:] == ["assistant", "tool"]


async def test_structured_output_native_and_as_a_python_type() -> None:
    provider = ScriptedProvider(["```json\n[1]\n```", '{"value": [1, 2]}'], structured_output=True)
    result = await Agent(provider, output=list[int]).run("go")
    assert result.output == [1, 2]
    assert provider.requests[0].output_schema is not None and provider.requests[0].tools == ()
    with pytest.raises(OutputError):
        await Agent(ScriptedProvider(["nope"], repeat=True, structured_output=True), output=list[int]).run("go")


@pytest.mark.parametrize(
    ("mode", "answers", "until", "outcome", "requests"),
    [
        ("basic", ["a", "b DONE", "c"], "DONE", "end_turn", 2),
        ("agent", ["a", "b", " b ", "c"], "DONE", "end_turn", 3),
        ("basic", ["a"] * 9, "DONE", "max_turns", 3),
    ],
)
async def test_loop_modes(mode: Any, answers: list[str], until: str, outcome: str, requests: int) -> None:
    provider = ScriptedProvider(answers)
    agent = Agent(provider, loop_mode=mode, loop_until=until, loop_max_turns=3)
    result = await agent.run("go")
    assert (result.stop_reason, len(provider.requests)) == (outcome, requests)
    assert ("API agent loop mode" in (provider.requests[0].system or "")) == (mode == "agent")
    asked = provider.requests[1].messages[-1].text
    assert asked.startswith("Critique your previous answer") if mode == "agent" else asked == "Continue."


async def test_loop_max_turns_alone_asks_for_the_basic_loop_and_the_marker_alone_does_not() -> None:
    provider = ScriptedProvider(["a", "b"])
    await Agent(provider, loop_max_turns=2).run("go")
    assert len(provider.requests) == 2
    single = ScriptedProvider(["a"])
    await Agent(single, loop_until="END").run("go")
    assert len(single.requests) == 1


async def test_notices_become_events() -> None:
    script = [
        [
            NoticeItem("retry", "again", attempt=1, delay=0.5),
            NoticeItem("substituted", "other", model="m2"),
            TextItem("x"),
        ]
    ]
    agent = Agent(ScriptedProvider(script))
    events: list[Event] = []
    agent.on(Event, events.append)
    await agent.run("go")
    assert "retry" in kinds(events) and "provider.switched" in kinds(events)


async def test_sub_agents_bubble_and_count() -> None:
    child = ScriptedProvider(["from the child"])

    async def body(args: dict[str, Any], ctx: Any) -> str:
        return (await ctx.run_child(prompt="do it", model=child)).text

    agent = Agent(ScriptedProvider([call("spawn"), "done"]), tools=[Tool("spawn", body)])
    events: list[Event] = []
    agent.on(Event, events.append)
    result = await agent.run("go")
    assert responses(agent)[0][1] == "from the child"
    assert result.usage == Usage(30, 15) and result.stats.turns == 2 and len(result.stats.children) == 1
    bubbled = [event for event in events if event.parent_run_id == result.run_id]
    assert "turn.finished" in kinds(bubbled)


async def test_r76_failing_and_stopped_children_reach_the_parent() -> None:
    async def body(args: dict[str, Any], ctx: Any) -> str:
        return (await ctx.run_child(prompt="do it", model=ScriptedProvider([BadRequestError("child broke")]))).text

    async def deep(args: dict[str, Any], ctx: Any) -> str:
        return (await ctx.run_child(prompt="deeper", model=ScriptedProvider([call("deep"), "up"]))).text

    agent = Agent(ScriptedProvider([call("spawn"), "done"]), tools=[Tool("spawn", body)])
    await agent.run("go")
    assert responses(agent)[0][1:] == ("Tool error: child broke", "error")
    nested = Agent(ScriptedProvider([call("deep"), "done"]), tools=[Tool("deep", deep)])
    assert (await nested.run("go")).text == "done"


async def test_five_thousand_turns_in_one_run() -> None:
    class Long(ScriptedProvider):
        number = 0

        async def stream(self, request: Any) -> AsyncIterator[Item]:
            self.number += 1
            number = self.number
            calls = (ToolCall("c", "t", {"n": number}),) if number <= 5000 else (Text("end"),)
            yield Finish(Message("assistant", calls), Usage(1, 1), "tool_call" if number <= 5000 else "stop")

    agent = Agent(Long(), tools=[Tool("t", lambda a, c: "x")], max_turns=6000)
    result = await agent.run("go")
    assert result.text == "end" and result.stats.turns == 5001


async def test_a_thousand_sessions_at_once() -> None:
    async def answer(request: Any) -> str:
        await asyncio.sleep(0)
        return "hello"

    agent = Agent(ScriptedProvider([answer], repeat=True))
    results = await asyncio.gather(*[agent.once(f"prompt {n}") for n in range(1000)])
    assert {result.text for result in results} == {"hello"} and len({r.session_id for r in results}) == 1000


def test_run_sync_and_its_refusal_inside_a_loop() -> None:
    agent = Agent(ScriptedProvider(["hello", "again"]))
    assert agent.run_sync("hi").text == "hello"
    assert agent.run_sync("hi").text == "again"


async def test_run_sync_inside_a_running_loop_says_what_to_do() -> None:
    with pytest.raises(Exception, match=r"await agent\.run"):
        Agent(ScriptedProvider(["x"])).run_sync("hi")


def test_bad_names_and_values_are_typed() -> None:
    with pytest.raises(UnknownNameError, match="max_turns"):
        Agent(ScriptedProvider(), max_turn=3)
    with pytest.raises(ConfigError, match="temperature"):
        Agent(ScriptedProvider(), temperature=2.5)
    with pytest.raises(ConfigError, match="at least 1"):
        Agent(ScriptedProvider(), max_turns=0)
    with pytest.raises(UnknownNameError, match="tool:gate"):
        Agent(ScriptedProvider()).hook("tool:gat")
    tool = Tool("t", lambda a, c: "x")
    with pytest.raises(ConfigError, match="Two tools"):
        Agent(ScriptedProvider(), tools=[tool, Tool("t", lambda a, c: "y")])
    assert list(Agent(ScriptedProvider(), tools=[tool, tool]).tools) == ["t"], "a set and one of its tools by name"


async def test_tool_aliases_are_what_the_model_sees() -> None:
    provider = ScriptedProvider([call("Bash", q="x"), "ok"])
    tool = Tool("shell", lambda a, c: "ran", q={"type": "string"})
    agent = Agent(provider, tools=[tool], tool_aliases={"shell": "Bash"})
    finished: list[ToolFinished] = []
    agent.on(ToolFinished, finished.append)
    await agent.run("go")
    assert provider.requests[0].tools[0].name == "Bash" and tool.inputs == [{"q": "x"}]
