"""The routes of remote workspaces: whose they are, what is refused, what ends when, and that nothing is left behind."""

from __future__ import annotations

import asyncio
import os
from base64 import b64decode, b64encode
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.server.conftest import InProcess, StartGateway
from tests.server.edge import Answer, ask, request, until, wire
from windlass.core.config import Config
from windlass.core.errors import ConfigError, WorkspaceError
from windlass.server import workspace_pool, workspace_routes
from windlass.server.settings import read_settings
from windlass.server.start import open_gateway
from windlass.server.workspace_pool import Held
from windlass.server.workspace_routes import ENDPOINTS, pool_of
from windlass.workspaces import bwrap
from windlass.workspaces.faults import explain, fault
from windlass.workspaces.remote_words import CODES, errno_of

_program = bwrap.find_bwrap(os.environ, "")
WHY_NOT = "bwrap is not installed" if _program is None else bwrap.why_not(_program, os.environ)
needs_bwrap = pytest.mark.skipif(bool(WHY_NOT), reason=f"bubblewrap does not work here: {WHY_NOT}")
BASE = "/windlass/v1/workspaces"
SECRET = "the-secret-of-a"
Who = dict[str, str]


async def post(made: InProcess, what: str, who: Who, body: Any) -> Answer:
    data = body if isinstance(body, bytes) else msgspec.json.encode(body)
    return await ask(made.port, request("POST", f"{BASE}{what}", who, data))


async def key(made: InProcess, tenant: str = "a", name: str = "k", role: Any = "client") -> Who:
    return {"x-api-key": (await made.gateway.accounts.create(f"{tenant}-{name}", tenant=tenant, role=role))[1]}


@pytest.fixture
def spaces(tmp_path: Path) -> Path:
    """A folder for the folders of workspaces, and nothing else."""
    (tmp_path / "spaces").mkdir()
    return tmp_path / "spaces"


async def start(gateway: StartGateway, *allow: str, **more: Any) -> InProcess:
    return await gateway(server={"workspaces": {"allow": list(allow or ("memory", "local")), **more}})


async def spawn(made: InProcess, who: Who, kind: str = "memory", **more: Any) -> str:
    answer = await post(made, "", who, {"kind": kind, **more})
    assert answer.status == 201, answer
    return "/" + msgspec.json.decode(answer.body)["id"]


def told(answer: Answer) -> Any:
    return msgspec.json.decode(answer.body)


def code(answer: Answer) -> tuple[int, str]:
    return answer.status, told(answer)["error"]["code"]


def lines(data: bytes) -> list[Any]:
    return [msgspec.json.decode(line) for line in data.splitlines()]


def the(made: InProcess, space: str) -> Held:
    return pool_of(made.gateway).held[space[1:]]


def data_of(text: bytes | str) -> str:
    return b64encode(text if isinstance(text, bytes) else text.encode()).decode()


# ----------------------------------------------------------------------------------------------------------- who (S43)


async def test_nothing_is_offered_until_the_settings_name_a_kind(gateway: StartGateway) -> None:
    made = await gateway()
    for endpoint in ENDPOINTS:
        path = endpoint.path.replace("{workspace}", "ws_1")
        answer = await ask(
            made.port, request(endpoint.method, path, {}, b'{"kind":"memory"}' if endpoint.body else None)
        )
        assert answer.status == 404, endpoint.path
    assert code(await post(made, "", {}, {"kind": "memory"})) == (404, "not_found")
    some = await start(gateway, "memory")
    assert code(await post(some, "", {}, {"kind": "sandbox"})) == (400, "invalid_body")
    assert (await post(some, "", {}, {"kind": "memory"})).status == 201


async def test_what_runs_with_the_servers_own_rights_asks_for_a_key_also_on_this_machine(gateway: StartGateway) -> None:
    made = await start(gateway, "local", "memory")
    assert code(await post(made, "", {}, {"kind": "local"})) == (403, "key_needed")
    assert pool_of(made.gateway).held == {}
    who = await key(made)
    space = await spawn(made, who, "local")
    answer = told(await post(made, "", who, {"kind": "local"}))
    assert (answer["confinement"], answer["capabilities"]) == ("none", ["filesystem", "network", "shell"])
    assert the(made, space).owner[0] == "a"


async def test_s43_another_keys_workspace_is_as_if_it_were_not_there(gateway: StartGateway) -> None:
    made = await start(gateway)
    ann = await key(made)
    others = [await key(made, "b"), await key(made, "a", "other"), await key(made, "a", "boss", "admin"),
              {"x-api-key": made.gateway.admin_token}]  # fmt: skip
    space = await spawn(made, ann, "local")
    assert (await post(made, f"{space}/files/write", ann, {"path": "s", "data": data_of(SECRET)})).status == 200
    bodies = {"write": {"path": "s", "data": ""}, "exec": {"command": "cat s"}, "list": {}}
    for who in others:
        for endpoint in ENDPOINTS[1:]:
            what = endpoint.path.rpartition("/")[2]
            body = msgspec.json.encode(bodies.get(what, {"path": "s"})) if endpoint.body else None
            got: list[tuple[int, bytes]] = []
            for name in (space, space[:-1] + ("0" if space[-1] != "0" else "1")):
                path = endpoint.path.replace("/{workspace}", name)
                answer = await ask(made.port, request(endpoint.method, path, who, body))
                got.append((answer.status, answer.body.replace(name[1:].encode(), b"ID")))
            assert got[0] == got[1] and got[0][0] == 404 and SECRET.encode() not in got[0][1], endpoint.path
    read = await post(made, f"{space}/files/read", ann, {"path": "s"})
    assert b64decode(told(read)["data"]).decode() == SECRET


async def test_s44_s48_keys_that_are_none_or_no_more(gateway: StartGateway, spaces: Path) -> None:
    made = await start(gateway, "local", folder=str(spaces))
    await key(made, "z")
    row, secret = await made.gateway.accounts.create("k", tenant="a")
    who = {"x-api-key": secret}
    space = await spawn(made, who, "local")
    for endpoint in ENDPOINTS:
        path = endpoint.path.replace("/{workspace}", space)
        for none in ({}, {"x-api-key": "wl-wrong"}):
            answer = await ask(made.port, request(endpoint.method, path, none, b"{}" if endpoint.body else None))
            assert answer.status == 401, endpoint.path
        page = request(
            endpoint.method, path, {"origin": "https://evil.example", **who}, b"{}" if endpoint.body else None
        )
        assert (await ask(made.port, page)).status == 403
    async with wire(made.port) as sent:
        await sent.send(request("POST", f"{BASE}{space}/exec", who, b'{"command":"echo on; sleep 60","timeout":null}'))
        await until(lambda: the(made, space).commands)
        held = the(made, space)
        await made.gateway.accounts.revoke(row.key_id)
        answer = await sent.answer()
        last = lines(answer.body)[-1]
        assert last["error"]["code"] == "key_revoked", answer
    await until(lambda: held.ending is not None and held.ending.done())
    assert os.listdir(spaces) == [] and pool_of(made.gateway).held == {}
    assert (await post(made, f"{space}/files/list", who, {})).status == 401


# --------------------------------------------------------------------------------------------------------------- files


async def test_preconditions_are_412_and_409_and_faults_have_words(gateway: StartGateway) -> None:
    made = await start(gateway)
    space = await spawn(made, {})

    async def write(path: str, text: str, expected: str | None = None) -> Answer:
        return await post(made, f"{space}/files/write", {}, {"path": path, "data": data_of(text),
                                                             "expected_sha256": expected})  # fmt: skip

    assert (await write("a/b", "1", "")).status == 200
    assert code(await write("a/b", "2", "")) == (409, "file_exists")
    assert code(await write("a/b", "2", "0" * 64)) == (412, "file_changed")
    assert code(await write("n", "2", "0" * 64)) == (412, "file_changed")
    assert code(await write("a", "2")) == (409, "is_a_folder")
    assert code(await write("a/b/c", "2")) == (409, "not_a_folder")
    for what, body, expected in (
        ("read", {"path": "n"}, (404, "file_not_found")), ("delete", {"path": "a"}, (409, "folder_not_empty")),
        ("delete", {"path": "."}, (409, "in_use")), ("list", {"path": "n"}, (404, "file_not_found")),
        ("read", {"path": "../x"}, (400, "path_escape")), ("stat", {"path": "/etc/passwd"}, (400, "path_escape")),
        ("list", {"path": "~"}, (400, "path_escape")),
        ("write", {"path": "file:///x", "data": ""}, (400, "path_escape")),
        ("stat", {"path": "a\0b"}, (400, "workspace_error")), ("read", {"path": "x" * 300}, (400, "name_too_long")),
        ("write", {"path": "a", "data": "no base64"}, (400, "invalid_body")),
    ):  # fmt: skip
        assert code(await post(made, f"{space}/files/{what}", {}, body)) == expected, (what, body)
    assert code(await post(made, f"{space}/exec", {}, {"command": "true"})) == (400, "command_refused")
    entry = told(await post(made, f"{space}/files/stat", {}, {"path": "a/b"}))["entry"]
    assert (entry["path"], entry["kind"], entry["size"]) == ("a/b", "file", 1)
    assert told(await post(made, f"{space}/files/stat", {}, {"path": "n"}))["entry"] is None


@given(st.sampled_from(sorted(CODES)))
@settings(database=None, deadline=None)
def test_every_fault_comes_back_as_itself_or_as_the_one_that_is_told_alike(number: int) -> None:
    error = explain(fault(number), "a")
    refused = vars(workspace_routes)["_refused"](error)
    assert (refused.status, refused.reason) == CODES[number]
    again = errno_of(str(refused.reason))
    assert again is not None and CODES[again] == CODES[number]
    assert vars(workspace_routes)["_refused"](WorkspaceError("x")).status == 400


async def test_s45_s46_odd_values_in_any_field_are_refused_or_kept_and_never_a_failure(gateway: StartGateway) -> None:
    made = await start(gateway, per_key=100, total=100)
    odd: list[Any] = ["a\0b", "\u202e", "x" * 100_000, 2**63, -(2**63), 2**64, 1e308, -1, 0, [], {}, True, None, [[]],
                      ["a\0"], {"a": "\0"}, {"": ""}, "../../etc/passwd", "%2e%2e", "", "~root", "C:\\x"]  # fmt: skip
    raw = [b'"\\ud800"', b'"\\u0000"', b'"\xff"', b"1e400", b"9" * 5000, b"[" * 5000, b"NaN", b'"',
           b'"\xee\x83\xb5xd800"', b'"\xee\x83\xb5i99999999999999999999999"']  # fmt: skip
    values = [*[msgspec.json.encode(value) for value in odd], *raw]
    who = await key(made)
    bodies: dict[str, dict[str, Any]] = {
        "": {"kind": "memory", "memory_mb": 16, "idle_seconds": 5},
        "/files/read": {"path": "a", "limit": 5},
        "/files/write": {"path": "a", "data": "eA==", "expected_sha256": ""},
        "/files/delete": {"path": "a"},
        "/files/stat": {"path": "a"},
        "/files/list": {"path": ".", "depth": 1, "limit": 5},
        "/exec": {"command": "true", "timeout": 5, "max_output": 5, "env": {}},
    }
    assert {row.path.removeprefix(BASE).removeprefix("/{workspace}") for row in ENDPOINTS if row.body} == set(bodies)
    space = await spawn(made, who, "local")
    pool = pool_of(made.gateway)
    async with wire(made.port) as sent:
        for what, body in bodies.items():
            for field in body:
                rest = {name: value for name, value in body.items() if name != field}
                head = msgspec.json.encode(rest)[:-1] + (b',"' if rest else b'"') + field.encode() + b'":'
                for value in values:
                    path = BASE + (space + what if what else "")
                    await sent.send(request("POST", path, who, head + value + b"}"))
                    answer = await sent.answer()
                    assert answer.status in (200, 201, 400, 404, 409, 412), (what, field, value[:40], answer)
                for held in [one for one in pool.held.values() if one.id != space[1:]]:
                    await pool.drop(held)
            for whole in (b"", b"[]", b"null", b"{", b'{"a":1}', b"\xff", b'{"path":"a","path":"b"}'):
                await sent.send(request("POST", BASE + (space + what if what else ""), who, whole))
                assert (await sent.answer()).status == 400, (what, whole)


# ------------------------------------------------------------------------------------------------------- how many (S71)


async def test_counts_and_sizes_have_bounds(gateway: StartGateway) -> None:
    made = await start(gateway, per_key=2, total=3, commands=1, file_bytes=1000, held_bytes=2000, output_bytes=100,
                       command_seconds=0.3)  # fmt: skip
    ann, bob = await key(made), await key(made, "b")
    spaces = [await spawn(made, ann), await spawn(made, ann)]
    answer = await post(made, "", ann, {"kind": "memory"})
    assert code(answer) == (429, "too_many_workspaces") and answer.headers["retry-after"] == "60"
    local = await spawn(made, bob, "local")
    assert code(await post(made, "", bob, {"kind": "memory"})) == (429, "too_many_workspaces")
    deleted = await ask(made.port, request("DELETE", BASE + spaces[0], ann))
    assert told(deleted) == {"id": spaces[0][1:], "object": "workspace.deleted", "deleted": True}
    assert code(await ask(made.port, request("DELETE", BASE + spaces[0], ann))) == (404, "workspace_not_found")
    full = {"path": "a", "data": data_of(bytes(1000))}
    assert (await post(made, f"{spaces[1]}/files/write", ann, full)).status == 200
    assert code(await post(made, f"{spaces[1]}/files/write", ann, {**full, "path": "b"})) == (409, "no_space")
    more = {"path": "a", "data": data_of(bytes(1001))}
    assert code(await post(made, f"{spaces[1]}/files/write", ann, more)) == (413, "file_too_large")
    said = lines((await post(made, f"{local}/exec", bob, {"command": "seq 9999; sleep 9", "timeout": None,
                                                          "max_output": 0})).body)[-1]["result"]  # fmt: skip
    assert said["killed"] == "timeout" and len(b64decode(said["output"])) <= 100 and said["total_bytes"] == 48_888
    assert code(await post(made, f"{local}/files/read", bob, {"path": "a"})) == (404, "file_not_found")
    big = await post(made, f"{local}/exec", bob, {"command": "head -c 2000 /dev/zero >big; touch begun"})
    assert lines(big.body)[-1]["result"]["exit_code"] == 0
    assert code(await post(made, f"{local}/files/read", bob, {"path": "big"})) == (413, "file_too_large")
    assert (
        len(b64decode(told(await post(made, f"{local}/files/read", bob, {"path": "big", "limit": 999}))["data"])) == 999
    )
    one = asyncio.create_task(post(made, f"{local}/exec", bob, {"command": "sleep 5"}))
    await until(lambda: the(made, local).commands)
    assert code(await post(made, f"{local}/exec", bob, {"command": "true"})) == (429, "too_many_commands")
    assert lines((await one).body)[-1]["result"]["killed"] == "timeout" and the(made, local).commands == 0


# ------------------------------------------------------------------------------------------------------- what ends when


async def test_what_lies_unused_is_deleted_and_what_is_used_is_not(gateway: StartGateway, spaces: Path) -> None:
    made = await start(gateway, "local", folder=str(spaces), idle_seconds=0.3)
    who = await key(made)
    space = await spawn(made, who, "local", idle_seconds=3600)
    assert the(made, space).idle == 0.3 and len(os.listdir(spaces)) == 1
    answer = await post(made, f"{space}/exec", who, {"command": "sleep 0.6; echo on"})
    assert b64decode(lines(answer.body)[-1]["result"]["output"]) == b"on\n" and the(made, space).timer is not None
    await until(lambda: not pool_of(made.gateway).held and not os.listdir(spaces))
    assert code(await post(made, f"{space}/files/list", who, {})) == (404, "workspace_not_found")


async def test_a_client_that_leaves_ends_its_command_and_a_deletion_tells_the_others(
    gateway: StartGateway, spaces: Path
) -> None:
    made = await start(gateway, "local", folder=str(spaces))
    who = await key(made)
    space = await spawn(made, who, "local")
    held = the(made, space)
    body = b'{"command":"echo begun; sleep 60","timeout":null}'
    async with wire(made.port) as sent:
        await sent.send(request("POST", f"{BASE}{space}/exec", who, body))
        await sent.reader.readuntil(b'{"output"')
    await until(lambda: held.commands == 0 and not held.calls)
    async with wire(made.port) as sent:
        await sent.send(request("POST", f"{BASE}{space}/exec", who, body))
        await sent.reader.readuntil(b"\r\n\r\n")
        assert (await ask(made.port, request("DELETE", f"{BASE}{space}", who))).status == 200
        rest = await sent.reader.readuntil(b"0\r\n\r\n")
        assert b"workspace_not_found" in rest and b"deleted meanwhile" in rest
    assert os.listdir(spaces) == [] and held.commands == 0


@needs_bwrap
async def test_sandboxes_see_neither_each_other_nor_the_server(gateway: StartGateway, spaces: Path) -> None:
    made = await start(gateway, "sandbox", folder=str(spaces))
    ann, bob = await key(made), await key(made, "b")
    hers, his = await spawn(made, ann, "sandbox", memory_mb=512), await spawn(made, bob, "sandbox")
    await post(made, f"{hers}/files/write", ann, {"path": "s", "data": data_of(SECRET)})
    command = f"ls -A {spaces}/* . {made.home}; grep -rs {SECRET[:10]} {spaces} /tmp; ulimit -d; echo x >/usr/x"
    limits: list[str] = []
    for space, who in ((his, bob), (hers, ann)):
        answer = await post(made, f"{space}/exec", who, {"command": command})
        said = b64decode(lines(answer.body)[-1]["result"]["output"]).decode()
        assert (SECRET in said) is (who is ann) and "admin-token" not in said and "Read-only file system" in said, said
        limits += [line for line in said.splitlines() if line.isdigit()]
    assert limits[1] == str(512 * 1024) and int(limits[0]) > 512 * 1024
    assert made.gateway.settings.workspaces.network == "none"


async def test_a_folder_whose_rights_a_command_took_away_goes_too(gateway: StartGateway, spaces: Path) -> None:
    made = await start(gateway, "local", folder=str(spaces))
    who = await key(made)
    space = await spawn(made, who, "local")
    await post(made, f"{space}/exec", who, {"command": "mkdir -p a/b/c; touch a/b/c/d; chmod 0 a/b/c a/b a"})
    assert (await ask(made.port, request("DELETE", f"{BASE}{space}", who))).status == 200
    assert os.listdir(spaces) == []


async def test_a_client_that_left_while_its_workspace_was_made_leaves_none(
    gateway: StartGateway, monkeypatch: pytest.MonkeyPatch, spaces: Path
) -> None:
    made = await start(gateway, "local", folder=str(spaces))
    who, pool = await key(made), pool_of(made.gateway)
    go, begun, really = asyncio.Event(), asyncio.Event(), pool._make  # pyright: ignore[reportPrivateUsage]

    async def slow(*args: Any) -> Held:
        begun.set()
        await go.wait()
        return await really(*args)

    monkeypatch.setattr(pool, "_make", slow)
    async with wire(made.port) as sent:
        await sent.send(request("POST", BASE, who, b'{"kind":"local"}'))
        await begun.wait()
    await until(lambda: not made.gateway.running)
    go.set()
    await until(lambda: not pool.held and not vars(pool)["_tasks"])
    assert os.listdir(spaces) == [] and vars(pool)["_making"] == []


async def test_silence_is_broken_while_a_command_runs(gateway: StartGateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workspace_routes, "_BEAT", 0.05)
    made = await start(gateway)
    who = await key(made)
    space = await spawn(made, who, "local")
    answer = await post(made, f"{space}/exec", who, {"command": "sleep 0.4; echo on"})
    assert answer.headers["content-type"] == "application/x-ndjson"
    said = lines(answer.body)
    assert {"alive": True} in said[:3] and b64decode(said[-1]["result"]["output"]) == b"on\n"
    assert {b64decode(one["output"]) for one in said if "output" in one} <= {b"on\n"}


async def test_what_a_slow_client_misses_of_the_stream_is_in_the_result(
    gateway: StartGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workspace_routes, "_WAITING", 5)
    made = await start(gateway)
    who = await key(made)
    space = await spawn(made, who, "local")
    said = lines((await post(made, f"{space}/exec", who, {"command": "echo 1; sleep 0.2; echo 22222222"})).body)
    assert [b64decode(one["output"]) for one in said if "output" in one] == [b"1\n"]
    assert b64decode(said[-1]["result"]["output"]) == b"1\n22222222\n"


async def test_the_server_deletes_everything_when_it_ends(tmp_path: Path) -> None:
    (tmp_path / "spaces").mkdir()
    table = {"workspaces": {"allow": ["local", "memory"], "folder": str(tmp_path / "spaces")}}
    config = Config(environ={"WINDLASS_HOME": str(tmp_path), "HOME": str(tmp_path)}, server=table)
    async with AsyncExitStack() as stack:
        made = await open_gateway(config, read_settings(table), stack)
        row, _ = await made.accounts.create("k")
        identity, pool = next(one for one in await made.accounts.list() if one.key_id == row.key_id), pool_of(made)
        workspaces = made.settings.workspaces
        for kind in ("local", "memory", "local"):
            await pool.make(workspaces, identity, kind, None, None)
        assert len(pool.held) == 3 and len(os.listdir(tmp_path / "spaces")) == 2
    assert pool.held == {} and os.listdir(tmp_path / "spaces") == []


async def test_a_server_that_cannot_keep_what_it_allows_does_not_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environ = {"WINDLASS_HOME": str(tmp_path), "HOME": str(tmp_path)}
    for table, says in (
        ({"allow": ["sandbox"], "level": "bubblewrap"}, "No sandbox can be made here"),
        ({"allow": ["memory"], "folder": str(tmp_path / "none")}, "is no folder"),
        ({"allow": ["sandbox"], "folder": "/usr/local"}, "every sandbox can read"),
    ):
        if "level" in table:
            monkeypatch.setenv("PATH", "/nowhere")
        else:
            monkeypatch.undo()
        server = {"workspaces": table}
        async with AsyncExitStack() as stack:
            with pytest.raises(ConfigError, match=says):
                await open_gateway(Config(environ=environ, server=server), read_settings(server), stack)


async def test_a_workspace_that_cannot_be_made_is_a_503_that_tells_no_paths(
    gateway: StartGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = await start(gateway)

    def broken(*_: Any) -> Any:
        raise OSError(28, "No space left on device", "/srv/secret")

    monkeypatch.setattr(workspace_pool, "_open", broken)
    answer = await post(made, "", {}, {"kind": "memory"})
    assert code(answer) == (503, "workspace_unavailable") and b"secret" not in answer.body
    assert vars(pool_of(made.gateway))["_making"] == []
