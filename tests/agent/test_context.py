"""Compaction of the view, the prompt cache's watch, and what a provider clears by itself."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.agent.helpers import Tool
from tests.agent.test_faults import assert_valid, assert_whole
from windlass.agent.agent import Agent
from windlass.agent.context import compact_now, keep_from
from windlass.agent.conversation import Conversation
from windlass.agent.gauge import Gauge, message_tokens
from windlass.agent.hooks import HookContext
from windlass.agent.ledger import Ledger
from windlass.agent.session import Session
from windlass.agent.summary import FRAME, transcript
from windlass.core.config import Config
from windlass.core.errors import AbortedError, ContextExceededError, OverloadedError, ProviderError
from windlass.core.estimate import estimate_tokens
from windlass.core.events import ContextCompacted, Event, Log, RunFinished, TurnFinished
from windlass.core.items import Finish, Item
from windlass.core.messages import Blob, Message, Text, ToolCall, ToolResponse, user
from windlass.core.models import Capabilities
from windlass.core.ports import Store
from windlass.core.request import Request
from windlass.core.usage import Usage
from windlass.stores.memory import MemoryStore
from windlass.stores.sqlite import SqliteStore
from windlass.testing.awaits import sweep
from windlass.testing.faults import FaultServer, Reply, Stream, sse
from windlass.testing.scripted import ScriptedProvider, call, turn

UNKNOWN = Usage(estimated=True)
E_ = TypeVar("E_", bound=Event)
LONG = "log line of a long build, one of many\n" * 40


def is_summary(request: Request) -> bool:
    return (request.system or "").startswith("You summarise")


class Model(ScriptedProvider):
    """A model that answers summaries from `summaries` (text, an error, or a function), the rest from its script.

    `window`: requests of more tokens (by our own estimate) are refused as too long. It reports honest usage.
    """

    def __init__(self, script: list[Any], summaries: list[Any] | None = None, *, window: int | None = None) -> None:
        super().__init__(script, usage=UNKNOWN)
        self.summaries, self.window = list(summaries or ["SUMMARY of it"]), window
        self.asked_to_summarise: list[Request] = []
        self.refused = 0
        self.context: int | None = None

    def capabilities(self, model: str) -> Capabilities:
        return Capabilities(context=self.context)

    async def stream(self, request: Request) -> AsyncIterator[Item]:
        if is_summary(request):
            self.asked_to_summarise.append(request)
            step: Any = self.summaries[min(len(self.asked_to_summarise), len(self.summaries)) - 1]
            if isinstance(step, BaseException):
                raise step
            await asyncio.sleep(0)
            yield Finish(Message("assistant", (Text(step),)), Usage(100, 20), "stop", cost=7)
            return
        tokens = estimate_tokens(request)
        if self.window is not None and tokens > self.window:
            self.refused += 1
            raise ContextExceededError("prompt is too long", provider=self.name)
        async for item in super().stream(request):
            yield item


def calls(count: int) -> list[Any]:
    return [turn(call("look", n=n)) for n in range(count)]


def made(model: Any, **options: Any) -> Agent:
    body = options.pop("body", LONG)
    return Agent(model, tools=[Tool("look", lambda a, c: body)], **options)


def responses(messages: Any) -> list[str]:
    return [str(part.response) for m in messages for part in m.parts if isinstance(part, ToolResponse)]


async def run_of(agent: Agent, prompt: str = "go", **options: Any) -> list[Event]:
    events: list[Event] = []
    async with agent.run(prompt, **options) as run:
        events.extend([event async for event in run])
    return events


def of(events: list[Event], kind: type[E_]) -> list[E_]:
    return [event for event in events if isinstance(event, kind)]


async def assert_folds_alike(agent: Agent) -> None:
    """Assert that what is stored folds to the view that lives, and is valid for vendors."""
    ledger = agent.session.ledger
    assert ledger.store is not None
    again = await Session(agent, agent.session.id, ledger.store).load()
    assert again.messages == agent.messages
    assert again.conversation.usage == agent.session.conversation.usage
    assert again.conversation.cost == agent.session.conversation.cost
    await assert_whole(ledger.store, agent.session.id)


# -------------------------------------------------------------------------------------------------------------- tail


async def test_tail_leaves_out_older_output_and_keeps_the_newest_turns() -> None:
    model = Model([*calls(6), "done"])
    agent = made(model, compact_strategy="tail", compact_threshold=900, compact_keep_turns=2)
    seen: list[dict[str, Any]] = []
    agent.hook("context:compact")(lambda ctx: seen.append(dict(ctx.__dict__)))
    events = await run_of(agent)
    compacted = of(events, ContextCompacted)
    # Three outputs of some 380 tokens each pass 900; the two newest turns are never counted.
    assert [event.strategy for event in compacted] == ["tail"]
    assert compacted[0].before_tokens > compacted[0].after_tokens > 0
    assert [(s["strategy"], s["reason"]) for s in seen] == [("tail", "threshold")]
    assert sorted(seen[0]) == ["after_tokens", "before_tokens", "reason", "strategy"]
    last = responses(model.requests[-1].messages)
    note = f"[Left out to save context: {len(LONG)} bytes of older tool output. If you need it, call the tool again.]"
    assert last[:3] == [note] * 3 and last[3:] == [LONG] * 3
    # The call before which it was done held its newest turns whole.
    before = next(r for r in model.requests if note in responses(r.messages))
    assert responses(before.messages)[-2:] == [LONG, LONG]
    await assert_folds_alike(agent)
    # The ledger keeps every word.
    kept = [e for e in await agent.session.events() if getattr(e, "response", None) == LONG]
    assert len(kept) == 6


async def test_tail_does_nothing_while_older_output_is_within_the_threshold() -> None:
    model = Model([*calls(6), "done"])
    agent = made(model, compact_strategy="tail", compact_threshold=100_000, compact_keep_turns=1)
    assert of(await run_of(agent), ContextCompacted) == []
    assert responses(agent.messages) == [LONG] * 6


async def test_tail_leaves_short_answers_words_and_calls_alone_and_takes_images() -> None:
    picture = (Text("a picture"), Blob(b"\x89PNG\r\n\x1a\n" + bytes(40), "image/png"))
    messages = [user("go")]
    for number, content in enumerate(["short", LONG, picture, LONG]):
        messages.append(Message("assistant", (Text("I look."), ToolCall(f"c{number}", "look", {}))))
        messages.append(Message("tool", (ToolResponse(f"c{number}", content, "ok" if number else "error"),)))
    conversation = Conversation(messages)
    conversation.compact(ContextCompacted(strategy="tail", upto=7))
    found = responses(conversation.messages)
    assert found[0] == "short" and found[3] == LONG
    assert found[1].startswith("[Left out") and found[2].startswith("[Left out to save context: 57 bytes")
    assert [m for m in conversation.messages if m.role != "tool"] == [m for m in messages if m.role != "tool"]
    assert conversation.messages[2].parts[0].status == "error"  # pyright: ignore[reportAttributeAccessIssue]
    once = list(conversation.messages)
    conversation.compact(ContextCompacted(strategy="tail", upto=7))
    assert conversation.messages == once


# ----------------------------------------------------------------------------------------------------------- summary


async def test_summary_stands_in_place_of_older_turns() -> None:
    model = Model([*calls(5), "done"], ["They looked four times; build 7 failed."])
    agent = made(model, compact_strategy="summary", compact_threshold=1600, compact_keep_turns=2)
    events = await run_of(agent, "Look at the build until it passes.")
    (event,) = of(events, ContextCompacted)
    assert event.strategy == "summary" and event.summary == FRAME + "They looked four times; build 7 failed."
    assert event.before_tokens > 1600 > event.after_tokens
    (asked,) = model.asked_to_summarise
    shown = asked.messages[0].text
    assert "Look at the build until it passes." in shown and "[calls look" in shown and not asked.tools
    view = agent.messages
    assert view[0].text == event.summary and view[1].role == "assistant"
    await assert_folds_alike(agent)
    # What the summary took is paid for: in the run, in the session, and in the fold of its rows.
    finished = of(events, RunFinished)[0]
    assert finished.usage.input_tokens >= 100 and agent.session.conversation.usage.output_tokens >= 20
    # The hook at the end gets what is left of this run in the view.
    assert len(of(events, TurnFinished)) == 6


async def test_a_second_summary_contains_the_first() -> None:
    model = Model([*calls(12), "done"], ["first summary", "second summary"])
    agent = made(model, compact_strategy="summary", compact_threshold=1600, compact_keep_turns=1)
    events = await run_of(agent)
    assert len(of(events, ContextCompacted)) >= 2
    assert "first summary" in model.asked_to_summarise[1].messages[0].text
    assert agent.messages[0].text.startswith(FRAME) and "second summary" in agent.messages[0].text
    await assert_folds_alike(agent)


async def test_hooks_at_the_end_get_the_part_of_the_run_that_is_still_there() -> None:
    model = Model(["hello", *calls(5), "done"])
    agent = made(model, compact_strategy="summary", compact_threshold=1600, compact_keep_turns=1)
    seen: list[Any] = []
    agent.hook("session:turns")(lambda ctx: seen.append(ctx.turns))
    agent.hook("session:end")(lambda ctx: seen.append(ctx.turn_range))
    await agent.run("one")
    await agent.run("two")
    assert seen[0] == list(seen[0]) and len(seen[0]) == 2 and seen[1] == (0, 2)
    assert seen[2] == list(agent.messages) and seen[3] == (0, len(agent.messages))


@pytest.mark.parametrize(
    "failure",
    [
        OverloadedError("busy"),
        ContextExceededError("too long"),
        "",
        "word " * 4000,
    ],
)
async def test_r73_a_summary_that_fails_keeps_the_history_and_cuts_the_view_with_a_notice(failure: Any) -> None:
    model = Model([turn(call("look", n=n), text="thinking aloud " * 90) for n in range(8)] + ["done"], [failure])
    agent = made(model, compact_strategy="summary", compact_threshold=3000, compact_keep_turns=2)
    seen: list[str] = []
    agent.hook("context:compact")(lambda ctx: seen.append(f"{ctx.strategy}: {ctx.reason}"))
    events = await run_of(agent, "Find the leak.")
    strategies = [event.strategy for event in of(events, ContextCompacted)]
    assert strategies[0] == "tail" and "cut" in strategies and set(strategies) == {"tail", "cut"}
    assert set(seen) == {"tail: summary failed", "cut: summary failed"}
    assert agent.messages[0].text.startswith("[") and "earlier messages were left out" in agent.messages[0].text
    assert "Find the leak." in agent.messages[0].text
    warnings = [event.message for event in of(events, Log) if "No summary could be written" in event.message]
    assert warnings and of(events, RunFinished)[0].stop_reason == "end_turn"
    await assert_folds_alike(agent)
    whole = [e for e in await agent.session.events() if getattr(e, "response", None) == LONG]
    assert len(whole) == 8, "the full history stays in the ledger"


@pytest.mark.parametrize("strategy", ["tail", "summary"])
async def test_r72_what_does_not_get_below_the_limit_ends_typed_and_never_loops(strategy: Any) -> None:
    model = Model([*calls(20), "done"])
    model.context = 2000
    agent = made(model, body=LONG * 3, compact_strategy=strategy, compact_keep_turns=2, max_tokens=100)
    with pytest.raises(ContextExceededError, match=r"compacted from about \d+ to \d+ tokens; the limit is"):
        await agent.run("go")
    assert len(model.requests) <= 4
    await assert_folds_alike(agent)


async def test_r72_a_reported_overflow_is_compacted_once_and_asked_once_more() -> None:
    for strategy in ("tail", "summary"):
        model = Model([*calls(7), "done"], window=1900)
        agent = made(model, compact_strategy=strategy, compact_keep_turns=2)
        seen: list[str] = []
        agent.hook("context:compact")(lambda ctx, seen=seen: seen.append(ctx.reason))
        events = await run_of(agent)
        assert model.refused == 1 and seen[0] == "overflow", strategy
        assert of(events, RunFinished)[0].stop_reason == "end_turn"
        assert [t.finish_reason for t in of(events, TurnFinished)].count("error") == 1
        await assert_folds_alike(agent)


async def test_r72_a_second_report_in_a_row_ends_the_run() -> None:
    def refuse(request: Request) -> Any:
        raise ContextExceededError("prompt is too long")

    model = Model([*calls(6), refuse, refuse, "never"])
    agent = made(model, compact_strategy="tail", compact_keep_turns=1)
    with pytest.raises(ContextExceededError, match="prompt is too long"):
        await agent.run("go")
    assert len(model.requests) == 8
    await assert_folds_alike(agent)


async def test_r72_nothing_to_compact_and_off_raise_at_once() -> None:
    for options in ({}, {"compact_strategy": "tail"}, {"compact_strategy": "summary"}):
        model = Model(["never"], window=10)
        agent = made(model, **options)
        with pytest.raises(ContextExceededError, match="too long"):
            await agent.run("a prompt that is longer than the window of this little model takes")
        assert model.refused == 1 and model.asked_to_summarise == []


async def test_r72_the_refused_attempt_takes_no_turn_from_the_run() -> None:
    model = Model([*calls(4), "done"], window=1300)
    agent = made(model, compact_strategy="tail", compact_keep_turns=1, max_turns=5)
    assert (await agent.run("go")).stop_reason == "end_turn"
    assert model.refused == 1


async def test_a_known_window_caps_the_threshold() -> None:
    model = Model([*calls(6), "done"])
    model.context = 2600
    agent = made(model, compact_strategy="summary", compact_keep_turns=1, max_tokens=400)
    events = await run_of(agent)
    found = of(events, ContextCompacted)
    # The answer's room is kept free: 400 tokens here, at most a quarter of the window.
    assert found and all(2200 < event.before_tokens < 2700 for event in found)
    assert all(estimate_tokens(request) <= 2200 for request in model.requests)


async def test_the_estimate_is_put_right_by_what_the_provider_reports() -> None:
    """The same history: a model that counts three tokens to our one is compacted earlier."""
    first: dict[float, int] = {}
    for factor in (1.0, 3.0):

        def answer(request: Request, factor: float = factor) -> Any:
            usage = Usage(int(estimate_tokens(request) * factor), 5)
            items = turn(call("look", n=len(request.messages)))
            return [*items, Finish(Message("assistant"), usage, "tool_call")]

        model = Model([answer] * 12 + ["done"])
        agent = made(model, compact_strategy="summary", compact_threshold=4000, compact_keep_turns=1)
        events = await run_of(agent)
        first[factor] = next(at for at, event in enumerate(events) if isinstance(event, ContextCompacted))
    assert first[3.0] < first[1.0] / 2


async def test_cost_per_turn_is_flat() -> None:
    """Each message is estimated once, whatever the number of turns."""
    model = Model([*[turn(call("look", n=n)) for n in range(60)], "done"])
    agent = made(model, body="x", compact_strategy="summary", loop_detector=0, max_turns=100)
    run = agent.run("go")
    await run
    gauge = Gauge.of(agent.session.conversation, 4)
    assert gauge.total == sum(map(message_tokens, agent.messages))
    counted = 0

    class Counting(list[Message]):
        def __getitem__(self, index: Any) -> Any:
            nonlocal counted
            found = super().__getitem__(index)
            counted += len(found) if isinstance(index, slice) else 1
            return found

    agent.session.conversation.messages = Counting(agent.messages)
    agent.session.conversation.messages.append(user("one more"))
    Gauge.of(agent.session.conversation, 4)
    assert counted == 1


def test_where_the_newest_turns_begin() -> None:
    def shape(text: str) -> list[Message]:
        made = {"u": user("x"), "a": Message("assistant", (Text("y"),)), "t": Message("tool", ())}
        return [made[letter] for letter in text]

    for text, turns, expected in (
        ("uatatau", 2, 3), ("uatatau", 1, 5), ("uatatau", 0, 6), ("uatatau", 3, 0), ("uatatau", 9, 0),
        ("uauuat", 1, 2), ("uat", 0, 3), ("uat", 1, 0), ("u", 0, 0), ("", 0, 0), ("", 3, 0), ("ua", 0, 2),
    ):  # fmt: skip
        assert keep_from(shape(text), turns) == expected, (text, turns)


@settings(max_examples=120, deadline=None)
@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=8),
    st.lists(st.tuples(st.sampled_from(["tail", "summary", "cut"]), st.integers(0, 40)), min_size=1, max_size=3),
    st.integers(0, 9),
)
def test_r57_no_series_of_compactions_splits_a_pair(turns: list[int], steps: list[Any], keep: int) -> None:
    conversation = Conversation([user("go")])
    for number, count in enumerate(turns):
        made = tuple([ToolCall(f"c{number}_{index}", "t", {}) for index in range(count)])
        conversation.add(Message("assistant", made or (Text("said"),)))
        for one in made:
            conversation.respond(ToolResponse(one.id, LONG))
        if not made:
            conversation.add(user("more"))
    upto = keep_from(conversation.messages, keep)
    assert upto == 0 or conversation.messages[upto : upto + 1] == [] or conversation.messages[upto].role != "tool"
    for strategy, at in steps:
        summary = "" if strategy == "tail" else "what was"
        conversation.compact(ContextCompacted(strategy=strategy, upto=at, summary=summary))
        assert_valid(conversation.messages)
        assert Gauge.of(conversation, 2).total == sum(map(message_tokens, conversation.messages))


def test_r57_a_compaction_beside_an_open_call_keeps_the_call() -> None:
    conversation = Conversation([user("a"), Message("assistant", (Text("b"),)), user("c")])
    conversation.add(Message("assistant", (ToolCall("c1", "t", {}),)), started=True)
    conversation.compact(ContextCompacted(strategy="summary", upto=99, summary="s"))
    conversation.respond(ToolResponse("c1", "done"))
    assert [message.role for message in conversation.messages] == ["user", "assistant", "tool"]
    assert_valid(conversation.messages)


def test_the_transcript_is_bounded_and_shows_what_counts() -> None:
    messages = [
        user("first words"),
        Message("assistant", (Text("I look."), ToolCall("c", "look", {"path": "a.py"}))),
        Message("tool", (ToolResponse("c", "x" * 50_000, "error"),)),
        Message("user", (Blob(b"1", "image/png"), Text("last words"))),
    ]
    text = transcript(messages, 10**6)
    assert len(text) < 3000 and "characters left out" in text
    for part in ("first words", '[calls look {"path":"a.py"}]', "[error] xxx", "[image]", "last words"):
        assert part in text
    short = transcript(messages * 50, 1000)
    assert len(short) < 1100 and short.startswith("## user\nfirst words") and short.endswith("last words")


# -------------------------------------------------------------------------------------------------------- on request


@pytest.mark.parametrize("strategy", ["summary", "tail"])
async def test_compact_now_at_rest(strategy: Any) -> None:
    model = Model([*calls(3), "done", "and on"], ["SHORT"])
    agent = made(model, store=MemoryStore())
    assert await compact_now(agent.plan(agent.session, None, {}), strategy) is None
    await agent.run("go")
    seen: list[Event] = []
    agent.on(ContextCompacted, seen.append)
    event = await compact_now(agent.plan(agent.session, None, {}), strategy)
    assert event is not None and event.strategy == strategy and seen == [event]
    if strategy == "summary":
        assert [message.text for message in agent.messages] == [FRAME + "SHORT"]
    else:
        assert all(text.startswith("[Left out") for text in responses(agent.messages))
    assert await compact_now(agent.plan(agent.session, None, {}), strategy) is None
    await assert_folds_alike(agent)
    assert (await agent.run("go on")).text == "and on"
    await assert_folds_alike(agent)


async def test_compact_now_loads_a_kept_session_and_keeps_the_turns_asked_for() -> None:
    store = MemoryStore()
    model = Model([*calls(4), "done"], ["SHORT"])
    first = made(model, store=store)
    await first.run("go")
    session = Session(first, first.session.id, store)
    event = await compact_now(first.plan(session, None, {}), "summary", keep_turns=2)
    assert event is not None and event.upto == 7
    assert [message.role for message in session.messages] == ["user", "assistant", "tool", "assistant"]


async def test_compact_now_that_fails_leaves_all_as_it_was() -> None:
    model = Model([*calls(3), "done"], [OverloadedError("busy")])
    agent = made(model)
    await agent.run("go")
    before, rows = agent.messages, len(await agent.session.events())
    with pytest.raises(ProviderError, match="busy"):
        await compact_now(agent.plan(agent.session, None, {}), "summary")
    assert agent.messages == before and len(await agent.session.events()) == rows


async def test_compact_now_while_a_run_is_active_keeps_the_open_call() -> None:
    inside, go = asyncio.Event(), asyncio.Event()

    async def wait(args: dict[str, Any], ctx: Any) -> str:
        if args["n"] == 2:
            inside.set()
            await go.wait()
        return LONG

    model = Model([*calls(3), "done"], ["SHORT"])
    agent = Agent(model, tools=[Tool("look", wait)])
    run = agent.run("go").start()
    await inside.wait()
    event = await compact_now(run, "summary")
    go.set()
    assert event is not None and (await run).text == "done"
    assert [message.role for message in agent.messages] == ["user", "assistant", "tool", "assistant"]
    await assert_folds_alike(agent)


async def test_two_compactions_at_once_do_not_undo_each_other() -> None:
    model = Model([*calls(3), "done"], ["ONE", "TWO"])
    agent = made(model)
    await agent.run("go")
    plans = [agent.plan(agent.session, None, {}) for _ in range(2)]
    done = await asyncio.gather(*[compact_now(plan, "summary") for plan in plans])
    assert [event is None for event in done].count(True) == 1
    assert len(agent.messages) == 1
    await assert_folds_alike(agent)


async def test_a_rewind_while_the_summary_is_written_wins() -> None:
    model = Model([*calls(3), "done", "more"], ["SHORT"])
    agent = made(model, store=MemoryStore())
    await agent.run("go")
    working = asyncio.ensure_future(compact_now(agent.plan(agent.session, None, {}), "summary"))
    while not model.asked_to_summarise:
        await asyncio.sleep(0)
    await agent.session.rewind(4)
    before = agent.messages
    assert await working is None and agent.messages == before
    await assert_folds_alike(agent)


# ------------------------------------------------------------------------------------------------ cancels and crashes


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
@pytest.mark.parametrize("strategy", ["tail", "summary"])
async def test_r70_stopped_at_every_await_of_a_compaction(kind: str, strategy: Any, tmp_path: Path) -> None:
    agents: list[Agent] = []
    threshold = 700 if strategy == "summary" else 300

    async def scenario(arm: Callable[[Callable[[], None]], None]) -> None:
        store: Store = MemoryStore() if kind == "memory" else SqliteStore(tmp_path / f"{len(agents)}.db")
        agent = made(
            Model([*calls(3), "done"]), store=store, compact_strategy=strategy, compact_threshold=threshold,
            compact_keep_turns=1,
        )  # fmt: skip
        agents.append(agent)

        @agent.hook("context:compact")
        async def watch(ctx: HookContext) -> None:  # pyright: ignore[reportUnusedFunction]
            await asyncio.sleep(0)

        arm(agent.abort)
        try:
            await agent.run("go")
        except (AbortedError, ContextExceededError):
            pass

    async def check(at: int) -> None:
        agent = agents[-1]
        await agent.wait_for_idle()
        store = agent.session.ledger.store
        assert store is not None
        if agent.messages:
            assert_valid(agent.messages)
            await assert_folds_alike(agent)
        agent.provider = Model(["went on"] * 9, ["and again"])
        assert (await agent.run("go on", compact_strategy="off")).text == "went on"
        await assert_folds_alike(agent)
        await store.close()
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        assert others == [], (at, others)

    assert await sweep(scenario, check) >= 5


VICTIM = """
import asyncio, os, signal, sys
from tests.agent.test_context import LONG, Model, calls, made
from windlass.agent.agent import Agent
from windlass.agent.context import compact_now
from windlass.stores.sqlite import SqliteStore
from windlass.testing.awaits import watch_awaits

path, at = sys.argv[1], int(sys.argv[2])

def die():
    os.kill(os.getpid(), signal.SIGKILL)

async def main():
    agent = made(Model([*calls(3), "done"], ["SHORT"]), store=SqliteStore(path))
    agent.session.id = agent.session.ledger.session_id = "s"
    await agent.run("go")
    os.write(1, b"READY\\n")
    watch_awaits(asyncio.get_running_loop(), at, die)
    await asyncio.create_task(compact_now(agent.plan(agent.session, None, {}), "summary"))
    os.write(1, b"END\\n")

asyncio.run(main())
"""


def test_r40_killed_during_a_compaction_the_old_history_is_valid(tmp_path: Path) -> None:
    lengths: set[int] = set()
    for at in range(1, 60):
        path = tmp_path / f"{at}.db"
        done = subprocess.run(
            [sys.executable, "-c", VICTIM, str(path), str(at)], capture_output=True, text=True, timeout=60
        )
        assert done.returncode in (0, -signal.SIGKILL) and "READY" in done.stdout, done.stderr
        messages = asyncio.run(_whole(path))
        lengths.add(len(messages))
        if "END" in done.stdout:
            assert len(messages) == 1
            break
    # All of the history, or the summary: nothing between.
    assert lengths == {8, 1}


async def _whole(path: Path) -> list[Message]:
    store = SqliteStore(path)
    try:
        return await assert_whole(store, "s")
    finally:
        await store.close()


async def test_fork_and_rewind_around_a_compaction_give_the_views_of_their_time() -> None:
    store = MemoryStore()
    model = Model([*calls(3), "done", "more"], ["SHORT"])
    agent = made(model, store=store)
    await agent.run("go")
    before, rows = agent.messages, len(await agent.session.events())
    await compact_now(agent.plan(agent.session, None, {}), "summary")
    await agent.run("on")
    forked = await agent.session.fork()
    assert forked.messages == agent.messages
    early = await agent.session.fork(rows)
    assert early.messages == before
    await agent.session.rewind(rows)
    assert agent.messages == before
    assert Conversation.fold(await Ledger(store, agent.session.id).read()).messages == list(before)


# ---------------------------------------------------------------------------------------------------- the prompt cache


async def logs_of(agent: Agent, *prompts: str) -> list[str]:
    said: list[str] = []
    agent.on(Log, lambda event: said.append(event.message) if event.level == "warning" else None)
    for prompt in prompts:
        await agent.run(prompt)
    return [line for line in said if "prompt cache" in line]


async def test_growth_never_warns() -> None:
    agent = made(Model([*calls(3), "one", call("look", n=9), "two"]))
    busts: list[Any] = []
    agent.hook("cache:bust")(lambda ctx: busts.append(ctx.reason))
    assert await logs_of(agent, "a", "b") == [] and busts == []


async def test_a_system_text_that_changes_warns_once_and_tells_hooks_each_time() -> None:
    agent = made(Model([*calls(3), "one"]))
    busts: list[tuple[int, str]] = []
    agent.hook("cache:bust")(lambda ctx: busts.append((ctx.turn, ctx.reason)))

    @agent.hook("system:transform")
    def clock(ctx: HookContext) -> None:  # pyright: ignore[reportUnusedFunction]
        ctx.system = f"It is turn {ctx.turn}."

    (line,) = await logs_of(agent, "a")
    assert "system" in line
    assert busts == [(turn, "system: the system text is another than before") for turn in (2, 3, 4)]


async def test_other_tools_between_two_runs_warn() -> None:
    agent = made(Model(["one", "two", "three", "four"]))
    extra = Tool("extra", lambda a, c: "x")
    said: list[str] = []
    agent.on(Log, lambda event: said.append(event.message))
    await agent.run("a")
    await agent.run("b", tools=[extra])
    await agent.run("c", tools=[extra])
    await agent.run("d")
    assert len(said) == 1 and "the tools are others than before" in said[0]


async def test_context_transform_warns_only_where_the_beginning_changes() -> None:
    def window(ctx: HookContext) -> None:
        ctx.messages = ctx.messages[-2:]

    def header(ctx: HookContext) -> None:
        ctx.messages = [user("Rules: be brief."), *ctx.messages]

    for change, expected in ((window, 1), (header, 0)):
        agent = made(Model([*calls(4), "one"]))
        agent.hook("context:transform")(change)
        assert len(await logs_of(agent, "a")) == expected, change


async def test_compaction_warns_once_and_no_cache_asks_nobody() -> None:
    options: dict[str, Any] = {"compact_strategy": "tail", "compact_threshold": 300, "compact_keep_turns": 1}
    agent = made(Model([*calls(6), "one"]), **options)
    (line,) = await logs_of(agent, "a")
    assert "the history was compacted" in line
    quiet = made(Model([*calls(6), "one"]), cache=False, **options)
    assert await logs_of(quiet, "a") == []


# ----------------------------------------------------------------------------------------- what the provider clears


async def test_what_the_provider_cleared_is_told() -> None:
    edits = {"applied_edits": [{"type": "clear_tool_uses_20250919", "cleared_tool_uses": 3}]}
    finish = Finish(
        Message("assistant", (Text("done"),)), provider_metadata={"anthropic": {"context_management": edits}}
    )
    agent = made(Model([[finish]]))
    events = await run_of(agent)
    (log,) = of(events, Log)
    assert log.data == {"anthropic": edits} and "left out older parts" in log.message


@pytest.mark.parametrize(
    ("own", "asked", "sent"),
    [
        ({}, {"betas": ["context-management-2025-06-27"]}, "context-management-2025-06-27"),
        ({"betas": ["a", "b"]}, {"betas": ["b", "c"], "extra_betas": ["a", "d"]}, "a,b,c,d"),
        ({"betas": ["a"]}, {"extra_betas": "b, a"}, "a,b"),
        ({"betas": ["a"]}, {}, "a"),
        ({}, {}, None),
    ],
)
async def test_server_side_context_management_of_anthropic(own: Any, asked: Any, sent: str | None) -> None:
    edits = {"edits": [{"type": "clear_tool_uses_20250919", "trigger": {"type": "input_tokens", "value": 30_000}}]}
    applied = {"applied_edits": [{"type": "clear_tool_uses_20250919", "cleared_tool_uses": 8}]}
    rows: list[dict[str, Any]] = [
        {"type": "message_start", "message": {"id": "m", "role": "assistant", "model": "claude-sonnet-4-5"}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": "Done."}},
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "context_management": applied},
        {"type": "message_stop"},
    ]
    parts = [part for row in rows for part in sse(json.dumps(row), event=row["type"])]
    async with FaultServer([Stream(parts)]) as server:
        table = {"base_url": server.url, "api_key": "env:KEY", "extra_body": own}
        agent = Agent(
            "anthropic:claude-sonnet-4-5",
            config=Config(environ={"KEY": "k"}, providers={"anthropic": table}),
            extra={**asked, "context_management": edits},
        )
        events = await run_of(agent)
        await agent.destroy()
        request = server.requests[0]
    assert request.headers.get("anthropic-beta") == sent
    body = json.loads(request.body)
    assert body["context_management"] == edits and "betas" not in body and "extra_betas" not in body
    (log,) = of(events, Log)
    assert log.data == {"anthropic": applied}


async def test_three_prefixes_are_marked_for_the_cache() -> None:
    """system, the last tool, the final block: on Anthropic, and forwarded by OpenRouter."""
    marked: dict[str, int] = {}
    for name in ("anthropic", "openrouter"):
        async with FaultServer([Reply(400, b"{}")]) as server:
            table = {"base_url": server.url, "api_key": "env:KEY"}
            config = Config(environ={"KEY": "k"}, providers={name: table})
            agent = Agent(f"{name}:claude-sonnet-4-5", config=config, tools=[Tool("look", lambda a, c: "x")])
            for cache in (True, False):
                with pytest.raises(ProviderError):
                    await agent.run("go", cache=cache)
            await agent.destroy()
            first, second = [json.loads(request.body) for request in server.requests]
        assert "cache_control" not in json.dumps(second)
        marked[name] = json.dumps(first).count('"cache_control"')
        last = first["messages"][-1]["content"]
        assert last[-1]["cache_control"] == {"type": "ephemeral"}
        assert first["tools"][-1]["cache_control"] == {"type": "ephemeral"}
    assert marked == {"anthropic": 3, "openrouter": 3}


def test_r82_a_view_that_is_compacted_stays_small() -> None:
    """Two thousand turns of calls under a threshold: the live view and its gauge do not grow."""

    async def scenario() -> tuple[int, int]:
        def answer(request: Request) -> Any:
            # Some vendors count calls anew in every answer: the same id each time.
            return Message("assistant", (ToolCall("call_0", "look", {"n": len(request.messages)}),))

        model = Model([answer] * 2000 + ["done"])
        agent = made(model, compact_strategy="summary", compact_threshold=3000, loop_detector=0, max_turns=3000)
        await agent.run("go")
        # Ids stay unmistakable, and finding a free one takes one guess.
        ids = [c.id for m in agent.messages for c in m.tool_calls]
        assert ids == [f"call_0_{number}" for number in range(2000 - len(ids), 2000)]
        return len(agent.messages), len(model.asked_to_summarise)

    messages, summaries = asyncio.run(scenario())
    assert messages < 40 and summaries > 200
