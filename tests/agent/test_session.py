"""Sessions: kept, continued, forked, rewound, imported, queued."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.agent.helpers import Tool
from tests.agent.test_faults import assert_valid
from windlass.agent.agent import Agent
from windlass.agent.chat import ChatAgent
from windlass.agent.conversation import Conversation, legal_cut, repair
from windlass.agent.session import Session
from windlass.core.errors import ConfigError, SessionBusy, SessionVersionError, StoreError
from windlass.core.events import (
    ContextCompacted,
    Event,
    InputQueued,
    MessageAdded,
    SessionForked,
    SessionRewound,
    UnknownEvent,
)
from windlass.core.messages import Message, Text, ToolCall, ToolResponse, assistant, user
from windlass.core.ports import Row
from windlass.stores.jsonl import export_jsonl, import_jsonl
from windlass.stores.memory import MemoryStore
from windlass.stores.sqlite import SqliteStore
from windlass.testing.scripted import ScriptedProvider, call, turn


def agent_with(script: list[Any], **options: Any) -> Agent:
    return Agent(ScriptedProvider(script), tools=[Tool("t", lambda args, ctx: "x")], **options)


async def test_a_session_is_continued_by_another_process_s_agent(tmp_path: Path) -> None:
    where = f"sqlite:{tmp_path}/s.db"
    async with Session(agent_with([call("t"), "one"]), "talk", where) as first:
        await first.send("first")
    later = agent_with(["two"])
    async with later.session_for("talk", where) as second:
        result = await second.send("second")
        assert [m.role for m in second.messages] == ["user", "assistant", "tool", "assistant", "user", "assistant"]
        assert second.conversation.usage.input_tokens == 30 and second.conversation.turns == 3
    assert result.text == "two"
    provider: Any = later.provider
    assert [m.text for m in provider.requests[0].messages if m.role == "user"] == ["first", "second"]


async def test_send_streams_text_and_gives_the_files_back() -> None:
    from windlass.workspaces.memory import MemoryWorkspace

    space = MemoryWorkspace({"lib/foo.py": "def f(): return 1\n"})
    script = [
        turn(call("edit", path="lib/foo.py", old_string="1", new_string="2"), text="Let me see. "),
        turn(text="Fixed."),
    ]
    agent = Agent(ScriptedProvider(script), tools="files", workspace=space, max_turns=10)
    chunks: list[str] = []
    async with Session(agent, id="fix-foo", store=MemoryStore()) as session:
        result = await session.send("Fix it", on_text=chunks.append)
    assert "".join(chunks) == "Let me see. Fixed."
    assert result.files == {"lib/foo.py": "def f(): return 2\n"}


async def test_fork_at_a_turn_shares_the_rows_before_and_goes_its_own_way() -> None:
    store = MemoryStore()
    agent = agent_with([call("t"), "one", "two", "forked"], store=store)
    await agent.run("first")
    await agent.run("second")
    session = agent.session
    child = await session.fork(await session.turn_position(2))
    assert [m.text for m in child.messages] == ["first", "", "", "one"]
    result = await child.send("other")
    assert result.text == "forked"
    assert [m.text for m in session.messages if m.role == "user"] == ["first", "second"]
    again = await Session(agent, child.id, store).load()
    assert again.messages == child.messages
    assert isinstance((await child.events())[await session.turn_position(2)], SessionForked)
    with pytest.raises(ConfigError, match="already"):
        await session.fork(id=child.id)
    with pytest.raises(ConfigError, match="3 turns, not 9"):
        await session.turn_position(9)


async def test_r56_rewind_and_fork_cut_at_a_legal_boundary() -> None:
    store = MemoryStore()
    agent = agent_with([[call("t"), call("t")], "one"], store=store)
    await agent.run("first")
    session = agent.session
    events = await session.events()
    message = next(i for i, e in enumerate(events) if isinstance(e, MessageAdded) and e.message.tool_calls)
    for inside in (message + 1, message + 2):
        assert legal_cut(events, inside) == message
    used = await session.rewind(message + 1)
    assert used == message and [m.role for m in session.messages] == ["user"]
    provider: Any = agent.provider
    provider.script.append("again")
    assert (await agent.run()).text == "again"
    reloaded = await Session(agent, session.id, store).load()
    assert [m.text for m in reloaded.messages] == ["first", "again"]
    everything = await session.events()
    assert len([e for e in everything if isinstance(e, SessionRewound)]) == 1 and len(everything) > len(events)


async def test_send_queues_first_come_first_served_and_keeps_what_waits() -> None:
    store = MemoryStore()
    gate = asyncio.Event()

    async def wait(request: Any) -> str:
        await gate.wait()
        return "first done"

    agent = agent_with([wait, "second done", "third done"], store=store)
    session = agent.session
    first = asyncio.create_task(session.send("1"))
    await asyncio.sleep(0.01)
    rest = [asyncio.create_task(session.send(text)) for text in ("2", "3")]
    await asyncio.sleep(0.01)
    queued = [e for e in await session.events() if isinstance(e, InputQueued)]
    assert [e.message.text for e in queued] == ["2", "3"]
    with pytest.raises(SessionBusy):
        await session.rewind(0)
    gate.set()
    assert [result.text for result in await asyncio.gather(first, *rest)] == ["first done", "second done", "third done"]
    folded = Conversation.fold(await session.events())
    assert folded.pending_inputs == []


async def test_input_that_waited_when_the_program_died_is_still_known() -> None:
    store = MemoryStore()
    agent = agent_with(["one"], store=store)
    await agent.run("1")
    await agent.session.ledger.commit([InputQueued(message=user("2"), mode="send")])
    again = await Session(agent, agent.session.id, store).load()
    assert [item.message.text for item in again.conversation.pending_inputs] == ["2"]


async def test_a_waiting_send_that_is_cancelled_lets_the_next_one_in() -> None:
    gate = asyncio.Event()

    async def wait(request: Any) -> str:
        await gate.wait()
        return "first"

    session = agent_with([wait, "third"]).session
    tasks = []
    for text in ("1", "2", "3"):
        tasks.append(asyncio.create_task(session.send(text)))
        await asyncio.sleep(0.01)
    tasks[1].cancel()
    gate.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(results[1], asyncio.CancelledError)
    assert [getattr(r, "text", None) for r in results] == ["first", None, "third"]


async def test_import_of_a_foreign_history_is_repaired_once_and_saved() -> None:
    store = MemoryStore()
    foreign = [
        user("go"),
        Message("tool", (ToolResponse("ghost", "nobody asked"),)),
        Message("assistant", (ToolCall("a", "t", {}), ToolCall("b", "t", {}))),
        user("and?"),
        Message("tool", (ToolResponse("b", "late"), ToolResponse("b", "twice"))),
        Message("assistant", (Text(""),)),
        assistant("fine"),
    ]
    agent = agent_with(["went on"], store=store)
    session = agent.session_for("imported")
    notes = await session.import_messages(foreign)
    assert len(notes) >= 4
    assert_valid(session.messages)
    again = await Session(agent, "imported", store).load()
    assert again.messages == session.messages
    assert repair(again.messages) == (list(again.messages), [])
    assert (await again.send("more")).text == "went on"
    with pytest.raises(SessionBusy, match="not empty"):
        await again.import_messages(foreign)


_parts = st.one_of(
    st.builds(Text, st.text(max_size=4)),
    st.builds(ToolCall, st.sampled_from(["a", "b", "c", ""]), st.just("t"), st.just({})),
    st.builds(ToolResponse, st.sampled_from(["a", "b", "c", "d"]), st.text(max_size=3)),
)
_histories = st.lists(
    st.builds(Message, st.sampled_from(["user", "assistant", "tool"]), st.lists(_parts, max_size=4).map(tuple)),
    max_size=8,
)


@settings(max_examples=150, deadline=None)
@given(_histories)
def test_r53_any_foreign_history_is_valid_after_repair(history: Any) -> None:
    mended, _ = repair(history)
    conversation = Conversation()
    for message in mended:
        if message.role == "tool":
            for part in message.parts:
                assert isinstance(part, ToolResponse)
                conversation.respond(part)
        else:
            conversation.add(message)
    assert conversation.open_calls == [] and conversation.messages == mended
    assert repair(mended) == (mended, [])
    if any(message.role != "system" for message in mended):
        assert_valid(mended)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=6), st.integers(0, 40))
def test_r57_compaction_never_splits_a_pair(calls_per_turn: list[int], upto: int) -> None:
    conversation = Conversation([user("go")])
    for number, count in enumerate(calls_per_turn):
        calls = tuple([ToolCall(f"c{number}_{index}", "t", {}) for index in range(count)])
        conversation.add(Message("assistant", calls or (Text("said"),)))
        for call_ in calls:
            conversation.respond(ToolResponse(call_.id, "x"))
        if not calls:
            conversation.add(user("more"))
    conversation.apply(ContextCompacted(strategy="summary", upto=upto, summary="before: things happened"))
    assert_valid(conversation.messages)


async def test_r55_surrogates_nul_and_huge_numbers_survive_storage(tmp_path: Path) -> None:
    ugly = "a\ud800b\x00c\ue0f5"
    script = [Message("assistant", (ToolCall("c1", "t", {"n": 2**70, "s": ugly}),)), "ok"]
    store = SqliteStore(tmp_path / "s.db")
    agent = Agent(ScriptedProvider(script), tools=[Tool("t", lambda args, ctx: ugly)], store=store)
    await agent.run("go")
    again = await Session(agent, agent.session.id, store).load()
    assert again.messages == agent.messages
    response = again.messages[2].parts[0]
    assert isinstance(response, ToolResponse) and response.response == ugly
    assert again.messages[1].tool_calls[0].arguments == {"n": 2**70, "s": ugly}
    assert_valid(again.messages)
    await store.close()


async def test_jsonl_export_is_imported_as_the_same_session(tmp_path: Path) -> None:
    store = MemoryStore()
    agent = agent_with([call("t"), "ok"], store=store)
    await agent.run("go")
    lines = [line async for line in export_jsonl(store, agent.session.id)]
    other = SqliteStore(tmp_path / "o.db")
    await import_jsonl(other, lines, "copy")
    copied = await Session(agent, "copy", other).load()
    assert copied.messages == agent.messages
    await other.close()


async def test_unknown_kinds_are_kept_and_newer_rows_refused() -> None:
    store = MemoryStore()
    agent = agent_with(["ok", "more"], store=store)
    await agent.run("go")
    session_id, pos = agent.session.id, agent.session.ledger.pos
    await store.append(session_id, [Row(pos, "dream.dreamt", -1, 0, b'{"of":"sheep"}')], pos)
    events = await Session(agent, session_id, store).events()
    assert isinstance(events[-1], UnknownEvent) and events[-1].data["of"] == "sheep"
    await store.append(session_id, [Row(pos + 1, "message.added", -1, 0, b"{}", 99)], pos + 1)
    with pytest.raises(SessionVersionError, match="schema 99"):
        await Session(agent, session_id, store).load()


class Failing(MemoryStore):
    """A store whose n-th append fails."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.at, self.count = at, 0

    async def append(self, *args: Any, **options: Any) -> None:
        self.count += 1
        if self.count == self.at:
            raise StoreError("No space left.")
        await super().append(*args, **options)


async def test_r42_failed_append_ends_the_run_before_the_next_side_effect() -> None:
    at = 0
    while True:
        at += 1
        store = Failing(at)
        ran: list[str] = []
        tools = [Tool("t", lambda args, ctx, ran=ran: ran.append("t") or "x")]
        agent = Agent(ScriptedProvider([call("t"), [call("t"), call("t")], "ok"]), tools=tools, store=store)
        try:
            await agent.run("go")
        except StoreError as error:
            assert "No space" in str(error)
        else:
            assert store.count < at
            break
        kept: list[Event] = await Session(agent, agent.session.id, store).events()
        intents = [c for e in kept if isinstance(e, MessageAdded) for c in e.message.tool_calls]
        assert len(ran) <= len(intents), at
        conversation = Conversation.fold(kept)
        conversation.close()
        if conversation.messages:
            assert_valid(conversation.messages)
    assert at > 4


async def test_rows_of_one_run_name_it_and_children_have_sessions_of_their_own() -> None:
    store = MemoryStore()

    async def body(args: Any, ctx: Any) -> str:
        return (await ctx.run_child(prompt="p", model=ScriptedProvider(["c"]))).text

    agent = Agent(ScriptedProvider([call("s"), "ok"]), tools=[Tool("s", body)], store=store)
    result = await agent.run("go")
    ids = {event.run_id for event in await agent.session.events()} - {""}
    assert ids == {result.run_id}
    listed = {info.id for info in await store.list()}
    assert len(listed) == 2 and agent.session.id in listed


async def test_the_conversational_face_of_reference_e() -> None:
    provider = ScriptedProvider(["a", "b", "c", "d"])
    chat = ChatAgent("bot", model=provider, system_prompt="Be kind.")
    assert await chat.chat("1") == "a" and await chat.process("2") == "b"
    assert chat.history_count == 4 and [m.text for m in chat.history_slice(1, 3)] == ["a", "2"]
    request = provider.requests[0]
    assert (request.settings.temperature, request.settings.top_p, request.system) == (0.7, 0.9, "Be kind.")
    chat.set_temperature(2.0)
    chat.set_history_enabled(False)
    assert await chat.chat("3") == "c" and chat.history_count == 4
    assert len(provider.requests[2].messages) == 1 and provider.requests[2].settings.temperature == 2.0
    chat.clear_history()
    assert chat.history_count == 0 and (await chat.chat("4")) == "d" and provider.requests[3].system == "Be kind."
    wrongs: tuple[dict[str, Any], ...] = (
        {"temperature": 2.1},
        {"top_p": 1.5},
        {"temperature": -0.1},
        {"top_p": float("nan")},
    )
    for wrong in wrongs:
        with pytest.raises(ConfigError, match="must be between"):
            ChatAgent("bot", model=provider, **wrong)
    with pytest.raises(ConfigError):
        chat.set_top_p(2)
    with pytest.raises(ConfigError, match="needs a name"):
        ChatAgent("", model=provider)
