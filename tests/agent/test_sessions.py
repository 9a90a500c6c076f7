"""Sessions as actors: order, supervision, resuming with files, leaving memory, thousands of them."""

from __future__ import annotations

import asyncio
import gc
import signal
import subprocess
import sys
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from windlass.agent.agent import Agent
from windlass.agent.session import Session
from windlass.agent.sessions import Sessions, send_message, start_session, stream_message
from windlass.core.errors import (
    AbortedError,
    ConfigError,
    MailboxFull,
    OverloadedError,
    SessionError,
    SessionNotFound,
    StoreConflict,
    StoreError,
    WorkspaceError,
)
from windlass.core.events import FileChanged, InputQueued, MessageAdded, SessionCreated
from windlass.core.messages import user
from windlass.core.ports import Row
from windlass.core.request import Request
from windlass.stores.memory import MemoryStore
from windlass.stores.sqlite import SqliteStore
from windlass.testing.scripted import ScriptedProvider, call, turn
from windlass.workspaces.memory import MemoryWorkspace


def echo(request: Request) -> str:
    return f"re: {request.messages[-1].text}"


def echoing(**options: Any) -> Agent:
    return Agent(ScriptedProvider([echo], repeat=True), **options)


class Gate:
    """A model that answers when it is let, and says what it was asked."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.asked: list[str] = []

    async def __call__(self, request: Request) -> str:
        self.asked.append(request.messages[-1].text)
        await self.open.wait()
        return f"re: {request.messages[-1].text}"

    async def reached(self, count: int) -> None:
        while len(self.asked) < count:
            await asyncio.sleep(0)


def gated() -> tuple[Gate, Agent]:
    gate = Gate()
    return gate, Agent(ScriptedProvider([gate], repeat=True))


async def settle(rounds: int = 20) -> None:
    for _ in range(rounds):
        await asyncio.sleep(0)


# -- one virtual workspace, kept with the history ----------------------------------------------------------------------


def editor(script: Sequence[Any], **options: Any) -> Agent:
    return Agent(ScriptedProvider(script), tools="files", **options)


async def test_history_and_files_come_back_together_in_another_program(tmp_path: Path) -> None:
    where = f"sqlite:{tmp_path}/s.db"
    edit = call("edit", path="lib/foo.py", old_string="1", new_string="2")
    first = editor([turn(edit, call("write_file", path="new", content="n")), "done"])
    async with Session(first, "fix", where, files={"lib/foo.py": "return 1\n", "bin": b"\xff\x00"}) as session:
        result = await session.send("Fix it.")
    wanted = {"bin": b"\xff\x00", "lib/foo.py": "return 2\n", "new": "n"}
    assert result.files == wanted
    later = editor([call("write_file", path="new", content="m"), "and on"])
    async with Session(later, "fix", where, workspace=MemoryWorkspace()) as again:
        assert isinstance(again.workspace, MemoryWorkspace)
        assert again.workspace.files == wanted and again.messages[0].text == "Fix it."
        assert again.workspace.changed == {"lib/foo.py": "return 2\n", "new": "n"}
        result = await again.send("More.")
        assert result.files == {**wanted, "new": "m"}
        assert await again.undo(9) == ["lib/foo.py", "new"]
        assert again.workspace.files == {"bin": b"\xff\x00", "lib/foo.py": "return 1\n"}
    # The start is on record once, before the first turn, with the title of the prompt.
    store = SqliteStore(tmp_path / "s.db")
    events = await (await Session(later, "fix", store, files={}).load()).events()
    starts = [at for at, e in enumerate(events) if isinstance(e, FileChanged) and e.status == "initial"]
    assert starts == [1, 2] and isinstance(events[0], SessionCreated) and events[0].title == "Fix it."
    await store.close()


async def test_the_agents_own_virtual_workspace_is_kept_too_and_never_mixed_up() -> None:
    store = MemoryStore()
    edit = call("write_file", path="a", content="2")
    async with Session(editor([edit, "ok"], workspace=MemoryWorkspace({"a": "1"})), "s", store) as session:
        assert (await session.send("go")).files == {"a": "2"}
    agent = editor([edit, "ok"], workspace=MemoryWorkspace({"a": "1"}))
    resumed = await Session(agent, "s", store).load()
    assert isinstance(agent.workspace, MemoryWorkspace) and agent.workspace.files == {"a": "2"}
    await resumed.load()
    # A workspace in which another conversation has worked is not overwritten.
    busy = editor([call("write_file", path="b", content="x"), "ok"], workspace=MemoryWorkspace({"a": "1"}))
    await busy.run("go")
    with pytest.raises(WorkspaceError, match="another conversation"):
        await Session(busy, "s", store).load()
    with pytest.raises(ConfigError, match="files or a workspace"):
        Session(agent, "s", store, files={}, workspace=MemoryWorkspace())


async def test_r56_a_fork_has_the_files_of_its_place_and_goes_its_own_way() -> None:
    script = [call("write_file", path="a", content="1"), call("write_file", path="a", content="2"), "done",
              call("write_file", path="a", content="other"), "forked"]  # fmt: skip
    session = Session(editor(script), "s", MemoryStore(), files={"a": "0"})
    await session.send("go")
    child = await session.fork(await session.turn_position(1))
    assert isinstance(child.workspace, MemoryWorkspace) and child.workspace.files == {"a": "1"}
    assert (await child.send("else")).files == {"a": "other"}
    assert isinstance(session.workspace, MemoryWorkspace) and session.workspace.files == {"a": "2"}
    assert await child.undo(2) == ["a"] and child.workspace.files == {"a": "0"}
    assert session.workspace.files == {"a": "2"}
    # The parent may go: the child keeps what it needs.
    assert session.ledger.store is not None
    await session.ledger.store.delete("s")
    again = await Session(editor([]), child.id, session.ledger.store, files={}).load()
    assert await again.redo(2) == ["a"]
    assert isinstance(again.workspace, MemoryWorkspace) and again.workspace.files == {"a": "other"}


async def test_compact_on_request_is_kept_and_undo_goes_on() -> None:
    long = call("write_file", path="a", content="2")
    script = [long, "done", "The summary.", "and on"]
    session = Session(editor(script), "s", MemoryStore(), files={"a": "1"})
    await session.send("go")
    event = await session.compact()
    assert event is not None and "The summary." in session.messages[0].text and len(session.messages) == 1
    again = await Session(session.agent, "s", session.ledger.store, files={}).load()
    assert again.messages == session.messages and await again.undo() == ["a"]


# -- queues of one session ---------------------------------------------------------------------------------------------


async def test_what_a_dead_program_had_queued_is_delivered_first_and_once() -> None:
    store, agent = MemoryStore(), echoing()
    session = Session(agent, "s", store)
    await session.send("1")
    await session.enqueue([user("2"), user("3")])
    again = await Session(agent, "s", store).load()
    assert [item.message.text for item in again.pending] == ["2", "3"]
    assert (await again.send("4")).text == "re: 4"
    assert [m.text for m in again.messages if m.role == "user"] == ["1", "2", "3", "4"]
    third = await Session(agent, "s", store).load()
    assert third.pending == [] and await third.deliver() == []


async def test_a_queued_message_that_fails_is_not_repeated_and_does_not_stop_the_next() -> None:
    store = MemoryStore()
    agent = Agent(ScriptedProvider([OverloadedError("no"), echo, echo]))
    session = Session(agent, "s", store)
    await session.create()
    await session.enqueue([user("bad"), user("good")])
    again = Session(agent, "s", store)
    results = await again.deliver()
    assert [result.text for result in results] == ["re: good"]
    assert (await Session(agent, "s", store).load()).pending == []


async def test_a_cancelled_send_is_taken_back_for_good() -> None:
    gate, agent = gated()
    store = MemoryStore()
    session = Session(agent, "s", store)
    tasks = []
    for text in ("1", "2", "3"):
        tasks.append(asyncio.create_task(session.send(text)))
        await settle()
    tasks[1].cancel()
    await settle()
    # The program dies here: only what nobody took back is left.
    again = await Session(agent, "s", store).load()
    assert [item.message.text for item in again.pending] == ["3"]
    gate.open.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [getattr(result, "text", None) for result in results] == ["re: 1", None, "re: 3"]


async def test_nobody_overtakes_and_two_never_go_at_once() -> None:
    gate, agent = gated()
    session = Session(agent, "s", MemoryStore())
    first = asyncio.create_task(session.send("0"))
    await gate.reached(1)
    gate.open.set()
    rest = [asyncio.create_task(session.send(str(number))) for number in range(1, 6)]
    for number in range(6, 12):
        await asyncio.sleep(0)
        rest.append(asyncio.create_task(session.send(str(number))))
    results = await asyncio.gather(first, *rest)
    assert [result.text for result in results] == [f"re: {number}" for number in range(12)]
    assert gate.asked == [str(number) for number in range(12)]


async def test_two_that_load_at_once_load_once() -> None:
    class Slow(MemoryStore):
        immediate = False
        reads = 0

        async def read(self, session: str, start: int = 0, end: int | None = None, *, tenant: str = "") -> list[Row]:
            self.reads += 1
            await asyncio.sleep(0.01)
            return await super().read(session, start, end, tenant=tenant)

    store = Slow()
    session = Session(echoing(), "s", store)
    results = await asyncio.gather(*[session.send(str(number)) for number in range(4)])
    assert [result.text for result in results] == ["re: 0", "re: 1", "re: 2", "re: 3"] and store.reads == 1


# -- actors ------------------------------------------------------------------------------------------------------------


async def test_sessions_are_apart_and_each_is_in_order() -> None:
    async with Sessions(echoing(), MemoryStore()) as sessions:
        assert await start_session(sessions, "a", files={"f": "a"}) == "a"
        await start_session(sessions, "b", files={"f": "b"})
        chunks: list[str] = []
        assert await send_message(sessions, "a", "hi") == ("ok", "re: hi", {"f": "a"})
        assert await stream_message(sessions, "b", "two words", chunks.append) == ("ok", "re: two words", {"f": "b"})
        assert "".join(chunks) == "re: two words" and len(chunks) > 1
        results = await asyncio.gather(*[sessions.send("a", str(number)) for number in range(5)])
        assert [result.text for result in results] == [f"re: {number}" for number in range(5)]
        assert {status.id: status.state for status in sessions.list()} == {"a": "resting", "b": "resting"}
        with pytest.raises(ConfigError, match="started already"):
            await sessions.start("a")
        for doing in (sessions.send("nobody", "x"), sessions.stop("nobody")):
            with pytest.raises(SessionNotFound):
                await doing
        with pytest.raises(SessionNotFound):
            sessions.get("nobody")
        generated = await sessions.start()
        assert sessions.get(generated).state == "idle"
    with pytest.raises(SessionError, match="closed"):
        await sessions.send("a", "x")


async def test_at_max_turns_the_result_comes_back_and_the_next_message_goes_on() -> None:
    script = [call("write_file", path=f"f{number}", content="x") for number in range(3)] + ["done"]
    async with Sessions(editor(script), MemoryStore()) as sessions:
        await sessions.start("s", files={}, max_turns=2)
        result = await sessions.send("s", "go")
        assert result.stop_reason == "max_turns" and set(result.files) == {"f0", "f1"}
        result = await sessions.send("s", "go on")
        assert (result.stop_reason, result.text, set(result.files)) == ("end_turn", "done", {"f0", "f1", "f2"})


async def test_what_start_was_given_holds_in_a_later_program(tmp_path: Path) -> None:
    where = f"sqlite:{tmp_path}/s.db"
    script = [call("write_file", path="a", content="2"), "one", call("read_file", path="a"), "never asked"]
    provider = ScriptedProvider(script)
    async with Sessions(Agent(provider, tools="files"), where) as sessions:
        await sessions.start("s", files={"a": "1"}, max_turns=2, title="The title")
        assert (await sessions.send("s", "go")).files == {"a": "2"}
    async with Sessions(Agent(provider, tools="files", max_turns=1), where) as sessions:
        # An id that only the store knows is started by its first message; `start` itself takes it up as it was left.
        result = await sessions.send("s", "and?")
        assert result.stop_reason == "end_turn" and result.files == {"a": "2"}
        assert (await sessions.store.list())[0].title == "The title"
        await sessions.stop("s")
        assert await sessions.start("s", files={"a": "not taken"}) == "s"
        assert sessions.get("s").state == "idle"


async def test_skills_folders_of_one_session(tmp_path: Path) -> None:
    skill = tmp_path / "greet" / "SKILL.md"
    skill.parent.mkdir()
    skill.write_text("---\nname: greet\ndescription: How to greet.\n---\nSay hello.\n")
    provider = ScriptedProvider([echo], repeat=True)
    async with Sessions(Agent(provider), MemoryStore()) as sessions:
        await sessions.start("plain")
        await sessions.start("skilled", skills_dirs=[str(tmp_path)])
        await sessions.start("skilled too", skills_dirs=[str(tmp_path)])
        for id in ("plain", "skilled", "skilled too"):
            await sessions.send(id, "hi")
    assert ["How to greet." in str(request.system) for request in provider.requests] == [False, True, True]


async def test_each_session_begins_with_a_copy_of_the_agents_files() -> None:
    script = [call("write_file", path="a", content="x"), "ok", "ok"]
    template = MemoryWorkspace({"a": "1"})
    async with Sessions(editor(script, workspace=template), MemoryStore()) as sessions:
        await sessions.start("one")
        await sessions.start("two")
        assert (await sessions.send("one", "go")).files == {"a": "x"}
        assert (await sessions.send("two", "go")).files == {"a": "1"}
    assert template.files == {"a": "1"}


async def test_a_sender_that_is_cancelled_breaks_nobody_else() -> None:
    gate, agent = gated()
    async with Sessions(agent, MemoryStore()) as sessions:
        await sessions.start("s")
        tasks = []
        for text in ("1", "2", "3"):
            tasks.append(asyncio.create_task(sessions.send("s", text)))
            await settle()
        assert sessions.get("s").queued == 2 and sessions.get("s").state == "running"
        tasks[1].cancel()
        tasks[0].cancel()
        await settle()
        gate.open.set()
        assert (await tasks[2]).text == "re: 3"
        assert gate.asked == ["1", "3"]
        again = await Session(agent, "s", sessions.store).load()
        assert again.pending == []


async def test_a_mailbox_is_bounded() -> None:
    gate, agent = gated()
    async with Sessions(agent, MemoryStore(), max_waiting=2) as sessions:
        await sessions.start("s")
        first = asyncio.create_task(sessions.send("s", "1"))
        await gate.reached(1)
        rest = [asyncio.create_task(sessions.send("s", text)) for text in ("2", "3")]
        await settle()
        with pytest.raises(MailboxFull, match="2 messages waiting"):
            await sessions.send("s", "4")
        gate.open.set()
        assert [(await task).text for task in (first, *rest)] == ["re: 1", "re: 2", "re: 3"]


class Breaking(MemoryStore):
    """Fails the appends that it is told to, as a disk would."""

    immediate = False
    failing = 0
    only = ""

    async def append(self, session: str, rows: Sequence[Row], expected_pos: int, *, tenant: str = "") -> None:
        await asyncio.sleep(0)
        if self.failing and session == self.only:
            self.failing -= 1
            raise StoreError("The disk is on fire.")
        await super().append(session, rows, expected_pos, tenant=tenant)


async def test_r77_an_actor_that_fails_is_restarted_from_its_ledger_and_its_mailbox_survives() -> None:
    gate, agent = gated()
    store = Breaking()
    async with Sessions(agent, store) as sessions:
        for id in ("bad", "good"):
            await sessions.start(id)
        tasks = [asyncio.create_task(sessions.send("bad", text)) for text in ("1", "2", "3")]
        other = asyncio.create_task(sessions.send("good", "x"))
        await gate.reached(2)
        await settle()
        store.only, store.failing = "bad", 1
        gate.open.set()
        results = await asyncio.gather(*tasks, other, return_exceptions=True)
        assert isinstance(results[0], StoreError)
        assert [getattr(result, "text", None) for result in results[1:]] == ["re: 2", "re: 3", "re: x"]
        assert sessions.get("bad").restarts == 1 and sessions.get("good").restarts == 0
        kept = await Session(agent, "bad", store).load()
        assert [m.text for m in kept.messages if m.role == "user"] == ["1", "2", "3"] and kept.pending == []


async def test_an_actor_whose_task_is_ended_from_outside_is_restarted() -> None:
    gate, agent = gated()
    async with Sessions(agent, MemoryStore()) as sessions:
        await sessions.start("s")
        tasks = [asyncio.create_task(sessions.send("s", text)) for text in ("1", "2")]
        await gate.reached(1)
        await settle()
        victim = next(task for task in asyncio.all_tasks() if task.get_name() == "session s")
        victim.cancel()
        await settle()
        gate.open.set()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(results[0], AbortedError) and getattr(results[1], "text", None) == "re: 2"


async def test_one_that_always_fails_tells_those_who_wait_and_stops_trying() -> None:
    store = Breaking()
    async with Sessions(echoing(), store) as sessions:
        await sessions.start("s")
        store.only, store.failing = "s", 1000
        results = await asyncio.gather(
            *[sessions.send("s", str(number)) for number in range(8)], return_exceptions=True
        )
        assert [type(result) for result in results] == [StoreError] * 8 and 1000 - store.failing < 40
        store.failing = 0
        assert (await sessions.send("s", "now")).text == "re: now"


async def test_r47_another_process_writes_to_the_same_session() -> None:
    store, agent = MemoryStore(), echoing()
    async with Sessions(agent, store) as sessions:
        await sessions.start("s")
        await sessions.send("s", "1")
        await Session(agent, "s", store).send("from elsewhere")
        with pytest.raises(StoreConflict):
            await sessions.send("s", "2")
        # Its actor read the ledger again: nothing was lost, and it goes on behind the other.
        await sessions.send("s", "3")
        kept = await Session(agent, "s", store).load()
        assert [m.text for m in kept.messages if m.role == "user"] == ["1", "from elsewhere", "3"]


async def test_stop_aborts_and_what_was_queued_is_delivered_when_it_is_started_again() -> None:
    gate, agent = gated()
    async with Sessions(agent, MemoryStore()) as sessions:
        await sessions.start("s")
        tasks = [asyncio.create_task(sessions.send("s", text)) for text in ("1", "2")]
        await gate.reached(1)
        await settle()
        await sessions.stop("s")
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(result) for result in results] == [AbortedError] * 2 and sessions.list() == []
        gate.open.set()
        await sessions.start("s")
        assert (await sessions.send("s", "3")).text == "re: 3"
        assert gate.asked == ["1", "2", "3"]


_QUEUED = """
import asyncio, os, signal, sys
import windlass
from windlass.agent.sessions import Sessions
from windlass.testing.scripted import ScriptedProvider

async def main():
    async def wait(request):
        while len(await sessions.store.read("s")) < int(sys.argv[1]):
            await asyncio.sleep(0.001)
        os.kill(os.getpid(), signal.SIGKILL)
    sessions = Sessions(windlass.Agent(ScriptedProvider([wait])), "sqlite:s.db")
    await sessions.start("s")
    await asyncio.gather(*[sessions.send("s", text) for text in ("1", "2", "3")])

asyncio.run(main())
"""


def test_r35_kill_9_with_messages_waiting_loses_none_of_them(tmp_path: Path) -> None:
    # session.created, two queued, run.started, message.added
    done = subprocess.run(
        [sys.executable, "-c", _QUEUED, "5"], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == -signal.SIGKILL, done.stderr

    async def resume() -> list[str]:
        async with Sessions(echoing(), f"sqlite:{tmp_path}/s.db") as sessions:
            await sessions.start("s")
            assert (await sessions.send("s", "4")).text == "re: 4"
            events = await (await Session(echoing(), "s", sessions.store).load()).events()
            assert len([e for e in events if isinstance(e, InputQueued)]) >= 2
            return [e.message.text for e in events if isinstance(e, MessageAdded) and e.message.role == "user"]

    assert asyncio.run(resume()) == ["1", "2", "3", "4"]


# -- memory ------------------------------------------------------------------------------------------------------------


async def test_idle_sessions_leave_memory_and_come_back() -> None:
    async with Sessions(echoing(), MemoryStore(), idle_seconds=0.02) as sessions:
        await sessions.start("s", files={"a": "1"})
        assert sessions.get("s").state == "idle"
        await sessions.send("s", "1")
        async with asyncio.timeout(10):
            while sessions.get("s").state != "idle":
                await asyncio.sleep(0.01)
        assert [task for task in asyncio.all_tasks() if task.get_name() == "session s"] == []
        result = await sessions.send("s", "2")
        assert result.text == "re: 2" and result.files == {"a": "1"}


async def test_at_most_so_many_are_in_memory_and_nobody_waits_for_ever() -> None:
    seen: list[int] = []

    async def busy(request: Request) -> str:
        seen.append(sum(status.state == "running" for status in sessions.list()))
        await asyncio.sleep(0)
        return echo(request)

    agent = Agent(ScriptedProvider([busy], repeat=True))
    async with Sessions(agent, MemoryStore(), max_active=3) as sessions:
        for number in range(12):
            await sessions.start(str(number))
        for _ in range(2):
            await asyncio.gather(*[sessions.send(str(number), "x") for number in range(12)])
        assert max(seen) <= 3 and len(seen) == 24
        assert sum(status.state != "idle" for status in sessions.list()) <= 3
    with pytest.raises(ConfigError):
        Sessions(agent, max_active=0)


#: What one idle session may cost in this process, in bytes: its id and a place in a table.
IDLE_BYTES = 600


async def test_two_thousand_sessions_in_one_process(tmp_path: Path) -> None:
    async def go(ids: list[str]) -> None:
        await asyncio.gather(*[sessions.start(id) for id in ids])
        results = await asyncio.gather(*[sessions.send(id, id) for id in ids])
        assert [result.text for result in results] == [f"re: {id}" for id in ids]
        provider: Any = sessions.agent.provider
        provider.requests.clear()
        while any(status.state != "idle" for status in sessions.list()):
            await asyncio.sleep(0.01)
        gc.collect()

    async with Sessions(echoing(), f"sqlite:{tmp_path}/s.db", idle_seconds=0.0, max_active=64) as sessions:
        await go([f"session-{number}" for number in range(1800)])
        tracemalloc.start()
        try:
            before = tracemalloc.get_traced_memory()[0]
            await go([f"traced-{number}" for number in range(200)])
            each = (tracemalloc.get_traced_memory()[0] - before) / 200
        finally:
            tracemalloc.stop()
        assert each < IDLE_BYTES, f"{each:.0f} bytes for an idle session"
        assert len(sessions.list()) == len(await sessions.store.list(limit=5000)) == 2000
