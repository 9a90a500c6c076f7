"""Conversations that are kept: continue, resume, list, show, fork, export, delete."""

from __future__ import annotations

import json

from tests.apps.helpers import Cli, asked, calls, says
from windlass.stores.jsonl import import_jsonl
from windlass.stores.memory import MemoryStore
from windlass.testing.faults import FaultServer


def said(server: FaultServer) -> list[str]:
    """What the last request held of user and assistant."""
    return [str(m["content"]) for m in asked(server)["messages"] if m["role"] in ("user", "assistant")]


async def test_c_continues_the_last_session_of_this_folder(cli: Cli) -> None:
    other = cli.folder / "other"
    other.mkdir()
    async with FaultServer([says(f"answer {n}") for n in range(5)]) as server:
        cli.use(server)
        await cli("run", "first here")
        await cli("run", "first there", cwd=other)
        await cli("run", "-c", "second here")
        assert said(server) == ["first here", "answer 0", "second here"]
        await cli("run", "-c", "--workspace", "other", "second there")
        assert said(server) == ["first there", "answer 1", "second there"]
        # Without a prompt the model is asked to go on.
        done = await cli("run", "-r")
        assert said(server)[:4] == ["first here", "answer 0", "second here", "answer 2"]
    assert done.code == 0
    assert len((await cli("sessions", "list")).out.splitlines()) == 2


async def test_r_and_session_name_one(cli: Cli) -> None:
    async with FaultServer([says("hi"), says("again"), says("and again")]) as server:
        cli.use(server)
        started = await cli("run", "--session", "talk", "--output", "json", "one")
        await cli("run", "--session", "talk", "two")
        await cli("run", "-r", "talk", "three", cwd=cli.home)
        assert said(server) == ["one", "hi", "two", "again", "three"]
    assert started.json()["session_id"] == "talk"


async def test_an_unknown_id_suggests_the_nearest(cli: Cli) -> None:
    await cli("run", "-m", "echo", "--session", "fix-foo", "hi")
    for args in (
        ("run", "-m", "echo", "-r", "fix-fo", "hi"),
        ("sessions", "show", "fix-fo"),
        ("sessions", "export", "fix-fo"),
        ("sessions", "delete", "fix-fo"),
        ("sessions", "fork", "fix-fo"),
    ):
        done = await cli(*args)
        assert (done.code, done.out) == (1, ""), args
        assert done.err == "windlass: There is no session 'fix-fo'. Did you mean 'fix-foo'?\n"


async def test_list_and_show(cli: Cli) -> None:
    (cli.folder / "a.txt").write_text("42\n")
    async with FaultServer([calls(("read_file", {"path": "a.txt"})), says("It is 42.\x1b[2J")]) as server:
        cli.use(server)
        await cli("run", "--session", "one", "what is in a.txt?\nsay it")
    await cli("run", "-m", "echo", "--session", "two", "hello")
    listed = await cli("sessions", "list")
    assert [line.split()[0] for line in listed.out.splitlines()] == ["two", "one"]
    assert listed.out.splitlines()[1].endswith("what is in a.txt? say it")
    rows = [json.loads(line) for line in (await cli("sessions", "list", "--json", "--limit", "1")).out.splitlines()]
    assert [(row["id"], row["title"]) for row in rows] == [("two", "hello")]
    shown = await cli("sessions", "show", "one")
    assert shown.out.splitlines()[0] == "user: what is in a.txt?"
    assert 'assistant: \u2192 read_file({"path": "a.txt"})' in shown.out
    assert "42" in shown.out and shown.out.endswith("assistant: It is 42.\n")


async def test_fork_at_a_turn_and_the_original_goes_on(cli: Cli) -> None:
    async with FaultServer([says(f"a{n}") for n in range(9)]) as server:
        cli.use(server)
        for prompt in ("one", "two", "three"):
            await cli("run", "--session", "main", prompt)
        forked = await cli("sessions", "fork", "main", "--turn", "1", "--as", "side")
        assert (forked.code, forked.out) == (0, "side\n")
        await cli("run", "-r", "side", "other")
        assert said(server) == ["one", "a0", "other"]
        await cli("run", "-r", "main", "four")
        assert said(server) == ["one", "a0", "two", "a1", "three", "a2", "four"]
        # A fork belongs to its parent's folder: -c takes the one that was used last.
        await cli("run", "-r", "side", "more")
        await cli("run", "-c", "most")
        assert said(server) == ["one", "a0", "other", "a3", "more", "a5", "most"]
        whole = await cli("sessions", "fork", "side")
    assert len(whole.out.strip()) == 26
    assert "(fork of main)" in (await cli("sessions", "list")).out
    for bad in (("--turn", "9"), ("--turn", "0")):
        done = await cli("sessions", "fork", "main", *bad)
        assert done.code == 2 and "has 4 turns" in done.err
    taken = await cli("sessions", "fork", "main", "--as", "side")
    assert (taken.code, taken.out) == (1, "") and "There is a session 'side' already." in taken.err


async def test_export_is_rows_that_can_be_imported(cli: Cli) -> None:
    await cli("run", "-m", "echo", "--session", "s", "hello")
    done = await cli("sessions", "export", "s")
    store = MemoryStore()
    report = await import_jsonl(store, done.raw.splitlines(keepends=True), "s")
    rows = [json.loads(line) for line in done.out.splitlines()]
    assert report.lost == 0 and report.rows == len(rows)
    assert [row["kind"] for row in rows] == [
        "session.created", "run.started", "message.added", "message.added", "run.finished",
    ]  # fmt: skip


async def test_delete_is_for_good(cli: Cli) -> None:
    await cli("run", "-m", "echo", "--session", "s", "a-secret-word")
    done = await cli("sessions", "delete", "s")
    assert (done.code, done.out, done.err) == (0, "", "Deleted s.\n")
    assert (await cli("sessions", "list")).out == ""
    again = await cli("sessions", "show", "s")
    assert again.code == 1


async def test_more_than_a_thousand_sessions(cli: Cli) -> None:
    """An old session is found by its id although a listing would not show it."""
    from windlass.agent.ledger import row_data
    from windlass.core.events import SessionCreated
    from windlass.core.ports import Row
    from windlass.stores.sqlite import SqliteStore

    await cli("run", "-m", "echo", "--session", "old", "hello")
    store = SqliteStore(cli.home / "sessions.db", synchronous="NORMAL")
    now = 4 * 10**18
    for number in range(1001):
        row = Row(0, "session.created", -1, now, row_data(SessionCreated(session_id=f"n{number}")))
        await store.append(f"n{number}", [row], 0)
    await store.close()
    assert (await cli("sessions", "show", "old")).code == 0
    assert (await cli("run", "-m", "echo", "-r", "old", "again")).code == 0


async def test_the_memory_store_keeps_nothing(cli: Cli) -> None:
    done = await cli("run", "-m", "echo", "hi", WINDLASS_STORE="memory")
    assert done.code == 0 and list(cli.home.iterdir()) == []


async def test_a_damaged_database_is_salvaged_into_a_new_file_and_kept(cli: Cli) -> None:
    damaged, saved = cli.folder / "damaged.db", cli.folder / "saved.db"
    cli.env["WINDLASS_STORE"] = f"sqlite:{damaged}"
    for number in range(3):
        await cli("run", "-m", "echo", "--session", f"s{number}", f"words of {number}")
    data = bytearray(damaged.read_bytes())
    at = data.rindex(b"words of 1")
    data[at : at + 20] = b"\xff" * 20
    damaged.write_bytes(data)
    done = await cli("sessions", "salvage", str(damaged), str(saved))
    assert done.code == 0 and "is unchanged" in done.err and damaged.read_bytes() == data
    cli.env["WINDLASS_STORE"] = f"sqlite:{saved}"
    assert "words of 2" in (await cli("sessions", "show", "s2")).out
    again = await cli("sessions", "salvage", str(damaged), str(saved))
    assert again.code == 1 and "exists" in again.err
    missing = await cli("sessions", "salvage", "nowhere.db", "x.db")
    assert missing.code == 1 and "There is no file" in missing.err


async def test_a_session_moves_between_the_ledger_and_the_router_s_files(cli: Cli) -> None:
    await cli("run", "-m", "echo", "--session", "a b", "hello")
    done = await cli("sessions", "export", "a b", "--format", "a-json")
    data = json.loads(done.out)
    assert (data["session_id"], data["tenant_id"]) == ("a b", None)
    said = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "Echo: hello"}]
    assert data["messages"] == said
    written = await cli("sessions", "export", "a b", "--format", "a-json", "--into", "files")
    path = written.out.strip()
    assert path.startswith("files/global__a_b~") and path.endswith(".json")
    taken = await cli("sessions", "import", path)
    assert (taken.code, taken.out) == (1, "") and "There is a session 'a b' already." in taken.err
    await cli("sessions", "delete", "a b")
    assert (await cli("sessions", "import", path)).out == "a b\n"
    assert (await cli("sessions", "show", "a b")).out == "user: hello\nassistant: Echo: hello\n"
    (cli.folder / "broken.json").write_text("{")
    broken = await cli("sessions", "import", "broken.json")
    assert broken.code == 1 and "broken.json" in broken.err


async def test_tenants_of_the_gateway_have_their_own_sessions(cli: Cli) -> None:
    data = {"session_id": "s", "tenant_id": "acme", "messages": [{"role": "user", "content": "hi"}]}
    (cli.folder / "acme__s.json").write_text(json.dumps(data))
    assert (await cli("sessions", "import", "acme__s.json")).out == "s\n"
    assert (await cli("sessions", "export", "s")).code == 1
    lines = (await cli("sessions", "export", "s", "--tenant", "acme")).out.splitlines()
    assert [json.loads(line)["kind"] for line in lines] == ["session.created", "message.added"]
    again = json.loads((await cli("sessions", "export", "s", "--tenant", "acme", "--format", "a-json")).out)
    assert (again["tenant_id"], again["messages"]) == ("acme", data["messages"])
    (cli.folder / "s.jsonl").write_text("\n".join(lines))
    assert (await cli("sessions", "import", "--format", "jsonl", "s.jsonl")).code == 2
    assert (await cli("sessions", "import", "--format", "jsonl", "--as", "t", "s.jsonl")).out == "t\n"
    assert (await cli("sessions", "show", "t")).out == "user: hi\n"
