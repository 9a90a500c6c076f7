"""Undo, redo and rewind of files: exact, never half, and whole after kill -9."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.agent.helpers import Tool
from windlass.agent.agent import Agent
from windlass.agent.session import Session
from windlass.agent.snapshots import Edit, FileHistory, plan_steps
from windlass.core.errors import ConfigError, SessionBusy, SessionError, UndoError, WorkspaceError
from windlass.core.events import FileChanged, MessageAdded
from windlass.core.messages import assistant
from windlass.core.ports import Row, Store, Workspace
from windlass.stores.memory import MemoryStore
from windlass.stores.sqlite import SqliteStore
from windlass.testing.awaits import sweep
from windlass.testing.scripted import ScriptedProvider, call, turn
from windlass.tools.access import put, remove
from windlass.workspaces.local import LocalWorkspace
from windlass.workspaces.memory import MemoryWorkspace


def write(path: str, content: str) -> Any:
    return call("write_file", path=path, content=content)


def coder(script: list[Any], workspace: Any, **options: Any) -> Agent:
    return Agent(ScriptedProvider(script), tools="files", workspace=workspace, **options)


def files(root: Path) -> dict[str, str]:
    return {str(path.relative_to(root)): path.read_text() for path in sorted(root.rglob("*")) if path.is_file()}


async def _three_turns(root: Path) -> Session:
    """Three answers that change files, a fourth that does not; `a` was there before."""
    root.mkdir(exist_ok=True)
    (root / "a").write_text("0")
    script = [
        turn(write("a", "1"), write("new", "n")), write("a", "2"), "done",
        turn(call("edit", path="a", old_string="2", new_string="3"), call("read_file", path="new")), "done again",
    ]  # fmt: skip
    agent = coder(script, LocalWorkspace(root))
    session = Session(agent, "s", MemoryStore())
    await session.send("go")
    await session.send("on")
    assert files(root) == {"a": "3", "new": "n"}
    return session


async def test_undo_goes_back_turn_by_turn_and_redo_the_other_way(tmp_path: Path) -> None:
    session = await _three_turns(tmp_path / "w")
    root = tmp_path / "w"
    assert await session.undo() == ["a"]
    assert files(root) == {"a": "2", "new": "n"}
    assert await session.undo() == ["a"]
    assert await session.undo() == ["a", "new"]
    assert files(root) == {"a": "0"}
    with pytest.raises(UndoError, match="nothing to undo"):
        await session.undo()
    assert await session.redo() == ["a", "new"]
    assert files(root) == {"a": "1", "new": "n"}
    assert await session.redo(5) == ["a"]
    assert files(root) == {"a": "3", "new": "n"}
    with pytest.raises(UndoError, match="nothing to redo"):
        await session.redo()
    # Several at once are the same as one after the other, and another program can go on with it.
    assert await session.undo(2) == ["a"]
    assert files(root) == {"a": "1", "new": "n"}
    again = await Session(session.agent, "s", session.ledger.store).load()
    assert await again.undo(9) == ["a", "new"] and files(root) == {"a": "0"}
    for wrong in (0, -1):
        with pytest.raises(ConfigError, match="Count from 1"):
            await again.undo(wrong)


async def test_undo_of_the_last_run_takes_all_its_turns(tmp_path: Path) -> None:
    session = await _three_turns(tmp_path / "w")
    assert await session.undo(None) == ["a"] and files(tmp_path / "w")["a"] == "2"
    assert await session.undo(None) == ["a", "new"] and files(tmp_path / "w") == {"a": "0"}


async def test_a_new_change_ends_what_can_be_done_again(tmp_path: Path) -> None:
    session = await _three_turns(tmp_path / "w")
    await session.undo()
    provider: Any = session.agent.provider  # pyright: ignore[reportAttributeAccessIssue]
    provider.script += [write("b", "x"), "ok"]
    await session.send("more")
    with pytest.raises(UndoError, match="nothing to redo"):
        await session.redo()
    assert await session.undo() == ["b"] and await session.undo() == ["a"]
    assert files(tmp_path / "w") == {"a": "1", "new": "n"}


async def test_changes_of_a_turn_and_of_all(tmp_path: Path) -> None:
    session = await _three_turns(tmp_path / "w")
    found = {change.path: (change.before, change.after) for change in await session.changes()}
    assert found == {"a": (b"0", b"3"), "new": (None, b"n")}
    assert [(c.path, c.before, c.after) for c in await session.changes(2)] == [("a", b"1", b"2")]
    assert await session.changes(3) == [] == await session.changes(5)
    with pytest.raises(ConfigError, match="has 5 turns, not 6"):
        await session.changes(6)
    await session.undo(2)
    assert {c.path: c.after for c in await session.changes()} == {"a": b"1", "new": b"n"}
    assert await session.changes(2) == []


async def test_a_file_that_somebody_else_changed_stops_all_of_it(tmp_path: Path) -> None:
    session = await _three_turns(tmp_path / "w")
    root = tmp_path / "w"
    (root / "new").write_text("a person's own")
    assert await session.undo(2) == ["a"]  # `new` is not among what these turns changed
    with pytest.raises(UndoError) as refused:
        await session.undo()
    assert refused.value.paths == ("new",) and "Nothing was restored" in str(refused.value)
    assert files(root) == {"a": "1", "new": "a person's own"}
    (root / "a").unlink()
    with pytest.raises(UndoError, match="a, new"):
        await session.undo()
    assert files(root) == {"new": "a person's own"}
    (root / "a").write_text("1")
    assert await session.undo(force=True) == ["a", "new"]
    assert files(root) == {"a": "0"}
    # What was overwritten is kept: it is in the row, and its content with it.
    row = [e for e in await session.events() if isinstance(e, FileChanged)][-1]
    assert row.status == "undone" and row.before is not None
    blobs: Any = session.ledger.store
    assert await blobs.blobs.get("s", row.before) == b"a person's own"


async def test_a_deleted_file_comes_back_and_goes_again(tmp_path: Path) -> None:
    async def drop(args: dict[str, Any], ctx: Any) -> str:
        await remove(ctx, "a", await ctx.workspace.read("a"))
        return "gone"

    (tmp_path / "a").write_text("mine")
    agent = Agent(
        ScriptedProvider([call("drop"), "ok"]), tools=[Tool("drop", drop)], workspace=LocalWorkspace(tmp_path)
    )
    session = Session(agent, "s", MemoryStore())
    await session.send("go")
    assert files(tmp_path) == {}
    assert await session.undo() == ["a"] and files(tmp_path) == {"a": "mine"}
    assert await session.redo() == ["a"] and files(tmp_path) == {}


async def test_a_write_that_was_refused_is_no_change(tmp_path: Path) -> None:
    class Refusing(MemoryWorkspace):
        async def write(self, path: str, data: bytes, *, expected_sha256: str | None = None) -> None:
            if path == "no":
                raise WorkspaceError("Not this one.", path=path)
            await super().write(path, data, expected_sha256=expected_sha256)

    session = Session(coder([turn(write("no", "x"), write("yes", "y")), "ok"], Refusing()), "s", MemoryStore())
    told: list[FileChanged] = []
    agent: Any = session.agent
    agent.on(FileChanged, told.append)
    await session.send("go")
    assert [(c.path, c.before, c.after) for c in await session.changes()] == [("yes", None, b"y")]
    assert [event.path for event in told] == ["yes"]
    assert await session.undo() == ["yes"]


async def test_a_failure_in_the_middle_says_what_was_restored_and_the_same_call_does_the_rest() -> None:
    class Failing(MemoryWorkspace):
        broken = False

        async def write(self, path: str, data: bytes, *, expected_sha256: str | None = None) -> None:
            if self.broken and path == "b":
                raise WorkspaceError("The disk is full.", path=path)
            await super().write(path, data, expected_sha256=expected_sha256)

    space = Failing({"a": "0", "b": "0", "c": "0"})
    script = [turn(write("a", "1"), write("b", "1"), write("c", "1")), "ok"]
    session = Session(coder(script, space, tool_execution="sequential"), "s", MemoryStore())
    await session.send("go")
    space.broken = True
    with pytest.raises(UndoError) as stopped:
        await session.undo()
    assert (
        stopped.value.restored == ("a",) and stopped.value.paths == ("b", "c") and "disk is full" in str(stopped.value)
    )
    assert space.files == {"a": "0", "b": "1", "c": "1"}
    space.broken = False
    assert await session.undo() == ["b", "c"] and space.files == {"a": "0", "b": "0", "c": "0"}
    assert await session.redo() == ["a", "b", "c"]


async def test_r56_rewind_takes_the_files_along_in_the_middle_of_a_pair(tmp_path: Path) -> None:
    session = await _three_turns(tmp_path / "w")
    events = await session.events()
    second = [at for at, e in enumerate(events) if isinstance(e, MessageAdded) and e.message.role == "assistant"][1]
    # The position between a call and its response is not legal: the whole answer goes, and its files with it.
    cut = await session.rewind(second + 1, files=True)
    assert cut == second
    assert files(tmp_path / "w") == {"a": "1", "new": "n"} and len(session.messages) == 3
    again = await Session(session.agent, "s", session.ledger.store).load()
    assert again.messages == session.messages
    assert await again.undo() == ["a", "new"] and files(tmp_path / "w") == {"a": "0"}


async def test_rewind_with_files_is_all_or_nothing(tmp_path: Path) -> None:
    session = await _three_turns(tmp_path / "w")
    before = session.messages
    (tmp_path / "w" / "a").write_text("a person's own")
    with pytest.raises(UndoError):
        await session.rewind(0, files=True)
    assert session.messages == before and files(tmp_path / "w") == {"a": "a person's own", "new": "n"}
    await session.rewind(0)
    assert session.messages == () and files(tmp_path / "w")["a"] == "a person's own"


async def test_what_cannot_be_undone_says_why(tmp_path: Path) -> None:
    class Plain:
        """A store that keeps rows only."""

        def __init__(self) -> None:
            self.rows = MemoryStore()

        async def append(self, session: str, rows: Any, expected_pos: int, *, tenant: str = "") -> None:
            await self.rows.append(session, rows, expected_pos, tenant=tenant)

        async def read(self, session: str, start: int = 0, end: int | None = None, *, tenant: str = "") -> list[Row]:
            return await self.rows.read(session, start, end, tenant=tenant)

        async def list(self, *, tenant: str = "", limit: int = 1000) -> Any:
            return await self.rows.list(tenant=tenant, limit=limit)

        async def delete(self, session: str, *, tenant: str = "") -> bool:
            return await self.rows.delete(session, tenant=tenant)

        async def close(self) -> None: ...

    async def cases(store: Store | None, workspace: Workspace | None) -> BaseException:
        session = Session(coder([write("a", "1"), "ok"], workspace), "s", store)
        await session.send("go")
        with pytest.raises((SessionError, ConfigError)) as raised:
            await session.undo()
        return raised.value

    assert "keeps no contents" in str(await cases(Plain(), LocalWorkspace(tmp_path)))
    assert "not kept" in str(await cases(None, LocalWorkspace(tmp_path)))
    assert "nothing to undo" in str(await cases(MemoryStore(), None))

    async def by_hand(args: dict[str, Any], ctx: Any) -> str:
        await ctx.workspace.write("b", b"x")
        await ctx.emit(FileChanged(path="b", call_id=ctx.call_id, before="0" * 64, after="2d71" + "0" * 60))
        return "ok"

    agent = Agent(ScriptedProvider([call("t"), "ok"]), tools=[Tool("t", by_hand)], workspace=LocalWorkspace(tmp_path))
    session = Session(agent, "s", MemoryStore())
    await session.send("go")
    with pytest.raises(UndoError, match="b"):
        await session.undo()
    with pytest.raises(UndoError, match="was not kept"):
        await session.undo(force=True)
    assert (tmp_path / "b").read_bytes() == b"x"


async def test_undo_waits_for_nobody() -> None:
    gate = asyncio.Event()

    async def wait(request: Any) -> str:
        await gate.wait()
        return "ok"

    session = Session(coder([wait], MemoryWorkspace()), "s", MemoryStore())
    run = session.run("go").start()
    for doing in (session.undo(), session.redo(), session.rewind(0, files=True)):
        with pytest.raises(SessionBusy):
            await doing
    gate.set()
    await run


async def test_a_sub_agent_s_changes_are_its_parent_session_s() -> None:
    async def ask(args: dict[str, Any], ctx: Any) -> str:
        return (await ctx.run_child(prompt="write it")).text

    from windlass.tools.files import write_file

    agent = Agent(
        ScriptedProvider([call("ask"), write("a", "child"), "child done", "parent done"]),
        tools=[Tool("ask", ask), write_file], workspace=MemoryWorkspace({"a": "0"}),
    )  # fmt: skip
    store, own = MemoryStore(), MemoryWorkspace({"a": "own"})
    session = Session(agent, "s", store, workspace=own)
    result = await session.send("go")
    # The child worked in this session's own files, not in the agent's.
    assert result.files == {"a": "child"}
    assert [(c.before, c.after) for c in await session.changes(1)] == [(b"own", b"child")]
    assert await session.undo() == ["a"] and own.files == {"a": "own"}


# -- R70: stopped at every await ---------------------------------------------------------------------------------------


async def test_r70_undo_stopped_at_every_await_is_done_by_the_next_one(tmp_path: Path) -> None:
    count = 0

    def root() -> Path:
        return tmp_path / f"w{count}"

    async def scenario(arm: Any) -> None:
        nonlocal count
        count += 1
        root().mkdir()
        (root() / "a").write_text("0")
        store = SqliteStore(tmp_path / f"{count}.db")
        script = [turn(write("a", "1"), write("b", "1")), "ok"]
        session = Session(coder(script, LocalWorkspace(root())), "s", store)
        await session.send("go")
        task = asyncio.create_task(session.undo())
        arm(task.cancel)
        await asyncio.wait([task])
        await store.close()

    async def check(at: int) -> None:
        store = SqliteStore(tmp_path / f"{count}.db")
        again = await Session(coder([], LocalWorkspace(root())), "s", store).load()
        assert (root() / "a").read_text() in ("0", "1")
        try:
            await again.undo()
        except UndoError as error:
            assert "nothing to undo" in str(error)
        assert files(root()) == {"a": "0"}, at
        await again.redo()
        assert files(root()) == {"a": "1", "b": "1"}, at
        await store.close()

    assert await sweep(scenario, check) > 10


@pytest.mark.parametrize("durable", [True, False])
async def test_r70_a_run_stopped_at_every_await_leaves_the_file_map_that_comes_back(
    tmp_path: Path, durable: bool
) -> None:
    count, live = 0, MemoryWorkspace()
    memory = MemoryStore()

    async def scenario(arm: Any) -> None:
        nonlocal count, live
        count += 1
        live = MemoryWorkspace({"a": "0"})
        store: Any = SqliteStore(tmp_path / f"{count}.db") if durable else memory
        script = [turn(write("a", "1"), write("b", "1")), write("a", "2"), "ok"]
        session = Session(coder(script, None), f"s{count}", store, workspace=live)
        task = asyncio.create_task(session.send("go"))
        arm(task.cancel)
        await asyncio.wait([task])
        if durable:
            await store.close()

    async def check(at: int) -> None:
        store: Any = SqliteStore(tmp_path / f"{count}.db") if durable else memory
        fresh = MemoryWorkspace({"a": "0"})
        again = await Session(coder([], None), f"s{count}", store, workspace=fresh).load()
        assert fresh.files == live.files, at
        history = FileHistory(await again.events())
        while any(not turn.undone for turn in history.turns):
            await again.undo()
            history = FileHistory(await again.events())
        assert fresh.files == {"a": "0"}, at
        if durable:
            await store.close()

    assert await sweep(scenario, check) > (20 if durable else 3)


# -- R39: kill -9 at every step of a change ----------------------------------------------------------------------------

_PROGRAM = """
import asyncio, os, signal, sys
import windlass
from windlass.agent.session import Session
from windlass.stores.sqlite import SqliteStore
from windlass.testing.scripted import ScriptedProvider, call

at, count = int(sys.argv[1]), 0
def step():
    global count
    count += 1
    if count == at: os.kill(os.getpid(), signal.SIGKILL)

class Blobs:
    def __init__(self, inner): self.inner = inner
    async def put(self, *args, **named):
        step(); out = await self.inner.put(*args, **named); step(); return out
    async def get(self, *args, **named): return await self.inner.get(*args, **named)

class Store(SqliteStore):
    def __init__(self, path):
        super().__init__(path); self.blobs = Blobs(self.blobs)
    async def append(self, session, rows, pos, *, tenant=""):
        mine = any(row.kind == "file.changed" for row in rows)
        if mine: step()
        await super().append(session, rows, pos, tenant=tenant)
        if mine: step()

class Space(windlass.LocalWorkspace):
    async def write(self, *args, **named):
        step(); await super().write(*args, **named); step()

async def main():
    model = ScriptedProvider([call("write_file", path="f", content="new " * 5000), "done"])
    agent = windlass.Agent(model, tools="files", workspace=Space("w"))
    await Session(agent, "s", Store("s.db")).send("go")
    print("whole")

asyncio.run(main())
"""


@pytest.mark.parametrize("existing", [True, False])
def test_r39_kill_9_at_every_step_of_a_change_leaves_what_can_be_undone(tmp_path: Path, existing: bool) -> None:
    old, new = ("old " * 5000 if existing else None), "new " * 5000
    outcomes: list[tuple[bool, bool]] = []
    for at in range(1, 20):
        folder = tmp_path / str(at)
        (folder / "w").mkdir(parents=True)
        file = folder / "w" / "f"
        if old is not None:
            file.write_text(old)
        done = subprocess.run([sys.executable, "-c", _PROGRAM, str(at)], cwd=folder, capture_output=True, text=True)
        if done.returncode == 0:
            assert done.stdout == "whole\n"
            break
        assert done.returncode == -signal.SIGKILL, done.stderr
        assert (file.read_text() if file.exists() else None) in (old, new)
        written = file.exists() and file.read_text() == new
        on_record = asyncio.run(_undo(folder))
        assert on_record or not written, "a file was written of which nothing is known"
        outcomes.append((on_record, written))
        assert (file.read_text() if file.exists() else None) == old
    else:
        raise AssertionError("the program never ended")
    assert (False, False) in outcomes and (True, False) in outcomes and (True, True) in outcomes


async def _undo(folder: Path) -> bool:
    """Open the ledger as the next program would and undo; False when nothing was on record."""
    agent = coder([], LocalWorkspace(folder / "w"))
    store = SqliteStore(folder / "s.db")
    try:
        await (await Session(agent, "s", store).load()).undo()
    except UndoError as error:
        assert "nothing to undo" in str(error)
        return False
    finally:
        await store.close()
    return True


# -- the walk ----------------------------------------------------------------------------------------------------------

values = st.sampled_from([None, "a", "b", "c"])


@given(st.lists(st.tuples(st.sampled_from(["x", "y"]), values, st.booleans()), max_size=12), st.data())
@settings(max_examples=150, deadline=None)
def test_undo_brings_every_earlier_state_back_whatever_was_really_written(changes: list[Any], data: Any) -> None:
    """Turns of one change each; the last one may be on record and not have happened (a crash)."""

    async def check() -> None:
        space = MemoryWorkspace()
        events: list[Any] = []
        states: list[dict[str, str | bytes]] = [space.files]
        hashes: Mapping[str | None, str | None] = {None: None, **{c: _sha(c) for c in "abc"}}
        now: dict[str, str | None] = {"x": None, "y": None}
        happened = True
        for number, (path, content, crashed) in enumerate(changes):
            if now[path] == content:
                continue
            events.append(MessageAdded(message=assistant("t")))
            events.append(FileChanged(path=path, before=hashes[now[path]], after=hashes[content]))
            happened = not (crashed and number == len(changes) - 1)
            if happened:
                if content is None:
                    await space.delete(path)
                else:
                    await space.write(path, content.encode())
                now[path] = content
            states.append(space.files)
        history = FileHistory(events)
        count = data.draw(st.integers(0, len(history.turns)))
        steps = await plan_steps(space, history.last(count)) if count else []
        wanted = states[len(states) - 1 - count]
        found = {step.path: step.to for step in steps}
        for path in found:
            assert found[path] == (None if path not in wanted else _sha(str(wanted[path])))
        for path in {"x", "y"} - set(found):
            assert space.files.get(path) == wanted.get(path)

    asyncio.run(check())


def _sha(text: str) -> str:
    import hashlib

    return hashlib.sha256(text.encode()).hexdigest()


def test_a_retracted_change_takes_the_last_one_like_it() -> None:
    same: dict[str, Any] = {"path": "x", "before": "0", "after": "1"}
    rows: list[Any] = [
        MessageAdded(message=assistant("t")), FileChanged(**same), FileChanged(path="x", before="1", after="0"),
        MessageAdded(message=assistant("t")), FileChanged(**same), FileChanged(**same, status="failed"),
    ]  # fmt: skip
    history = FileHistory(rows)
    assert [turn.edits for turn in history.turns] == [[Edit("x", "0", "1"), Edit("x", "1", "0")]]
    assert history.files == {"x": "0"}


async def test_put_refuses_what_changed_since_it_was_seen() -> None:
    from windlass.testing.tool_kit import FakeContext

    ctx = FakeContext(MemoryWorkspace({"a": "1"}))
    await put(ctx, "a", b"2", b"1")
    assert [event.path for event in ctx.events if isinstance(event, FileChanged)] == ["a"]
    with pytest.raises(WorkspaceError):
        await put(ctx, "a", b"3", b"1")
