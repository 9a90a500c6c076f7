"""The store over get, save and delete: a dictionary, async functions, a folder."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.stores.contents import check_contents
from windlass.agent.agent import Agent
from windlass.agent.session import Session
from windlass.core import registry
from windlass.core.errors import ConfigError, SessionVersionError, StoreError
from windlass.core.json import loads
from windlass.core.messages import Message, ToolCall, user
from windlass.core.ports import Store
from windlass.stores.filemap import FileMapStore, folder
from windlass.stores.jsonl import export_jsonl, import_jsonl
from windlass.stores.memory import MemoryStore
from windlass.testing.scripted import ScriptedProvider, call
from windlass.testing.store_kit import check_store, make_rows
from windlass.tools.function import tool
from windlass.workspaces.memory import MemoryWorkspace


class Map(dict[str, bytes]):
    """A map whose functions wait, and that may fail at the n-th save."""

    fail_at = 0

    def __init__(self) -> None:
        super().__init__()
        self.saves = 0

    async def read(self, key: str) -> bytes | None:
        await asyncio.sleep(0)
        return self.get(key)

    async def save(self, key: str, data: bytes) -> None:
        await asyncio.sleep(0)
        self.saves += 1
        if self.saves == self.fail_at:
            raise OSError(28, "No space left on device")
        self[key] = data

    async def forget(self, key: str) -> None:
        self.pop(key, None)

    def store(self) -> FileMapStore:
        return FileMapStore(self.read, self.save, self.forget)


def over(kept: dict[str, bytes]) -> FileMapStore:
    return FileMapStore(kept.get, kept.__setitem__, lambda key: kept.pop(key, None))


async def test_a_dictionary_passes_the_kit() -> None:
    kept: dict[str, bytes] = {}
    assert isinstance(over(kept), Store)
    await check_store(lambda: over(kept), durable=True)
    await check_contents(lambda: over(kept))


async def test_async_functions_pass_the_kit() -> None:
    kept = Map()
    await check_store(kept.store, durable=True)
    await check_contents(kept.store)


async def test_a_folder_passes_the_kit(tmp_path: Path) -> None:
    where = f"filemap:{tmp_path}/kept"
    await check_store(lambda: registry.make("stores", where), durable=True)
    await check_contents(lambda: registry.make("stores", where))
    assert [path.name for path in tmp_path.rglob("*.part")] == []
    with pytest.raises(ConfigError, match="folder"):
        folder()


async def test_a_session_is_turns_and_meta_under_its_name() -> None:
    kept: dict[str, bytes] = {}
    agent = Agent(
        ScriptedProvider([call("write_file", path="a", content="2"), "done"]),
        tools="files", workspace=MemoryWorkspace({"a": "1"}), store=over(kept),
    )  # fmt: skip
    await agent.session_for("fix/../foo").send("Go on.")
    names = sorted(kept)
    assert names[0].startswith("fix%2F%2E%2E%2Ffoo/files/") and names[-2:] == [
        "fix%2F%2E%2E%2Ffoo/turns.jsonl", "index.json",
    ]  # fmt: skip
    lines = [loads(line) for line in kept["fix%2F%2E%2E%2Ffoo/turns.jsonl"].splitlines()]
    assert [line["pos"] for line in lines] == list(range(len(lines))) and lines[0]["kind"] == "session.created"
    meta = loads(kept["fix%2F%2E%2E%2Ffoo/meta.json"])
    assert (meta["id"], meta["rows"], meta["title"]) == ("fix/../foo", len(lines), "Go on.")
    await over(kept).delete("fix/../foo")
    assert list(kept) == ["index.json"]


async def test_sessions_go_on_and_files_come_back_from_a_map() -> None:
    kept = Map()
    script = ScriptedProvider([call("write_file", path="a", content="2"), "done", "and on"])
    agent = Agent(script, tools="files")
    session = agent.session_for("s", kept.store())
    session.workspace = MemoryWorkspace({"a": "1"})
    await session.send("go")
    again = agent.session_for("s", kept.store())
    again.workspace = MemoryWorkspace()
    result = await again.send("go on")
    assert result.files == {"a": "2"} and len(again.messages) == 6
    assert await again.undo() == ["a"] and again.workspace.files == {"a": "1"}


async def test_r42_a_save_that_fails_at_any_step_leaves_what_was_acknowledged() -> None:
    for at in range(1, 9):
        kept = Map()
        kept.fail_at = at
        store = kept.store()
        length = 0
        for pos in range(3):
            try:
                await store.append("s", make_rows(1, pos), pos)
            except StoreError as error:
                assert "save" in str(error) and "No space" in str(error)
                break
            length += 1
        kept.fail_at = 0
        rows = await kept.store().read("s")
        # The row whose append failed is there whole, or not at all.
        assert rows == make_rows(len(rows)) and length <= len(rows) <= length + 1
        await kept.store().append("s", make_rows(1, len(rows)), len(rows))
        infos = await kept.store().list()
        assert [(info.id, info.rows) for info in infos] in ([("s", len(rows) + 1)], [])
        assert await kept.store().delete("s") and await kept.store().list() == []


async def test_damaged_and_newer_files_are_told(tmp_path: Path) -> None:
    kept: dict[str, bytes] = {}
    await over(kept).append("s", make_rows(2), 0)
    good = dict(kept)
    kept["s/turns.jsonl"] = good["s/turns.jsonl"].replace(b'"pos":1', b'"pos":x')
    with pytest.raises(StoreError, match=r"s/turns\.jsonl holds a line"):
        await over(kept).read("s")
    kept.update(good)
    for name in ("s/meta.json", "index.json"):
        kept[name] = good[name].replace(b'"v":1', b'"v":2')
        with pytest.raises(SessionVersionError, match="Upgrade"):
            await over(kept).list()
        kept[name] = b"["
        with pytest.raises(StoreError, match="cannot be read"):
            await over(kept).list()
        kept.update(good)
    assert [info.id for info in await over(kept).list()] == ["s"]


async def test_r53_r54_r55_what_is_exported_is_imported_into_a_map_and_bad_lines_are_told() -> None:
    source, kept = MemoryStore(), Map()
    agent = Agent(ScriptedProvider([call("_odd", x="\ud800\x00"), "done"]), tools=[_odd], store=source)
    await agent.session_for("s").send("go")
    lines = [line async for line in export_jsonl(source, "s")]
    report = await import_jsonl(kept.store(), lines, "copy")
    rows = await source.read("s")
    assert report.rows == len(rows) and await kept.store().read("copy") == rows
    talk = await Session(agent, "copy", kept.store()).load()
    assert talk.messages == (await Session(agent, "s", source).load()).messages and len(talk.messages) == 4
    assert [line async for line in export_jsonl(kept.store(), "copy")] == lines
    with pytest.raises(StoreError, match="Line 3"):
        await import_jsonl(kept.store(), [*lines[:2], b"{ edited by hand", *lines[3:]], "bad")
    report = await import_jsonl(kept.store(), [*lines[:2], b"{ edited by hand", *lines[3:]], "mended", skip_bad=True)
    assert (report.lost, report.skipped[0].line) == (1, 3)
    assert [info.id for info in await kept.store().list()] != [] and await kept.store().read("bad") == []
    # A foreign history with broken pairs is mended before it is kept.
    foreign = [user("go"), Message("assistant", (ToolCall("a", "t", {}),)), user("and?")]
    session = Session(agent, "foreign", kept.store())
    assert len(await session.import_messages(foreign)) == 1
    again = await Session(agent, "foreign", kept.store()).load()
    assert [message.role for message in again.messages] == ["user", "assistant", "tool", "user"]


@tool
def _odd(x: str) -> str:
    """Give it back."""
    return x
