"""The store behind `windlass serve`: the kit against the real program, and what goes wrong on the way."""

from __future__ import annotations

import asyncio
import hashlib
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.server.conftest import InProcess, Serve, StartGateway, gateway, serve
from tests.stores.contents import check_contents
from tests.stores.helpers import Proxy
from windlass.agent.agent import Agent
from windlass.agent.session import Session
from windlass.core import registry
from windlass.core.errors import ConfigError, SessionNotFound, StoreConflict, StoreError
from windlass.core.http import Client
from windlass.core.json import dumps_stored
from windlass.core.ports import Blobs, Row, SessionInfo, Store
from windlass.stores.memory import MemoryStore
from windlass.stores.remote import KEY_VARIABLE, RemoteStore
from windlass.testing.scripted import ScriptedProvider, call
from windlass.testing.store_kit import check_store, make_rows
from windlass.workspaces.memory import MemoryWorkspace

__all__ = ["gateway", "serve"]


class Keys:
    """Makes an administrator's key of each tenant, through the server's own door; one for each, whoever asks."""

    def __init__(self, url: str, token: str) -> None:
        self.url, self._token = url, token
        self._made: dict[str, str] = {}

    async def of(self, tenant: str) -> str:
        name = hashlib.sha256(tenant.encode("utf-8", "surrogatepass")).hexdigest()[:40]
        if name not in self._made:
            async with Client(env={}) as client:
                answer = await client.request(
                    "POST", f"{self.url}/v1/keys",
                    headers={"content-type": "application/json", "x-api-key": self._token},
                    body=msgspec.json.encode({"name": name, "tenant": name, "role": "admin"}),
                )  # fmt: skip
            assert answer.status == 201, answer.body
            self._made[name] = msgspec.json.decode(answer.body)["secret"]
        return self._made[name]


class ByTenant:
    """What the kit wants, a store of many tenants: one RemoteStore for each, with a key of that tenant."""

    def __init__(self, keys: Keys) -> None:
        self._keys, self._stores = keys, dict[str, RemoteStore]()
        self.blobs: Blobs = _ByTenantBlobs(self)
        self._closed = False

    async def store(self, tenant: str) -> RemoteStore:
        key = await self._keys.of(tenant)
        if tenant not in self._stores:
            self._stores[tenant] = RemoteStore(self._keys.url, key)
            if self._closed:
                await self._stores[tenant].close()
        return self._stores[tenant]

    async def append(self, session: str, rows: Sequence[Row], expected_pos: int, *, tenant: str = "") -> None:
        await (await self.store(tenant)).append(session, rows, expected_pos)

    async def read(self, session: str, start: int = 0, end: int | None = None, *, tenant: str = "") -> list[Row]:
        return await (await self.store(tenant)).read(session, start, end)

    async def list(self, *, tenant: str = "", limit: int = 1000) -> Any:
        return await (await self.store(tenant)).list(limit=limit)

    async def delete(self, session: str, *, tenant: str = "") -> bool:
        return await (await self.store(tenant)).delete(session)

    async def close(self) -> None:
        self._closed = True
        for store in self._stores.values():
            await store.close()


class _ByTenantBlobs:
    def __init__(self, stores: ByTenant) -> None:
        self._stores = stores

    async def put(self, session: str, data: bytes, *, tenant: str = "") -> str:
        return await (await self._stores.store(tenant)).blobs.put(session, data)

    async def get(self, session: str, sha256: str, *, tenant: str = "") -> bytes | None:
        return await (await self._stores.store(tenant)).blobs.get(session, sha256)


async def test_the_remote_store_passes_the_kit_against_a_real_gateway(serve: Serve) -> None:
    served = serve()
    token = (served.home / "admin-token").read_text().strip()
    keys = Keys(served.url, token)
    await check_store(lambda: ByTenant(keys), durable=True)
    await check_contents(lambda: ByTenant(keys))
    assert isinstance(RemoteStore(served.url), Store)


async def key_of(made: InProcess, tenant: str, role: Any = "client") -> str:
    return (await made.gateway.accounts.create(f"k-{tenant}-{role}", tenant=tenant, role=role))[1]


async def test_a_session_goes_on_from_another_machine_and_its_files_with_it(
    gateway: StartGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = await gateway()
    monkeypatch.setenv(KEY_VARIABLE, await key_of(made, "a"))
    where = f"remote:{made.url}"
    agent = Agent(ScriptedProvider([call("write_file", path="a", content="2"), "done", "on"]), tools="files")
    async with Session(agent, "s", where, files={"a": "1"}) as session:
        await session.send("go")
    async with Session(agent, "s", where, files={}) as again:
        result = await again.send("go on")
        assert result.files == {"a": "2"} and len(again.messages) == 6
        assert await again.undo() == ["a"]
    # It is the same ledger that the server's own routes show.
    shown = await made.gateway.sessions.store.read("s", tenant="a")
    assert [row.kind for row in shown][:1] == ["session.created"] and shown[-1].kind == "file.changed"


async def test_rows_come_in_pages_and_large_ones_whole(gateway: StartGateway) -> None:
    made = await gateway()
    store = RemoteStore(made.url)
    rows = make_rows(2500)
    await store.append("many", rows, 0)
    assert await store.read("many") == rows and await store.read("many", 990, 2010) == rows[990:2010]
    large = [Row(pos, "tool.finished", 0, pos, bytes([pos]) * 5_000_000) for pos in range(4)]
    for row in large:
        await store.append("large", [row], row.pos)
    assert await store.read("large") == large
    with pytest.raises(StoreError, match="larger than"):
        await store.append("large", [Row(4, "k", 0, 0, bytes(40_000_000))], 4)
    assert len(await store.read("large")) == 4
    await store.close()


async def test_two_stores_at_one_session_never_lose_a_row(gateway: StartGateway) -> None:
    made = await gateway()
    one, two = RemoteStore(made.url), RemoteStore(made.url)
    await asyncio.gather(*[one.append("s", make_rows(1, pos), pos) for pos in range(20)])
    with pytest.raises(StoreConflict, match="20 rows") as conflict:
        await two.append("s", make_rows(1, 19), 19)
    assert "append behind" in conflict.value.hint
    await two.append("s", make_rows(1, 20), 20)
    assert await one.read("s") == make_rows(21)
    with pytest.raises(SessionNotFound):
        await two.append("f", [Row(3, "session.forked", -1, 1, dumps_stored({"parent": "nobody", "pos": 3}))], 3)
    with pytest.raises(SessionNotFound):
        await two.blobs.put("nobody", b"x")
    await one.close()
    await two.close()


async def test_an_append_whose_answer_is_lost_is_looked_up(gateway: StartGateway) -> None:
    made = await gateway()
    proxy = Proxy("127.0.0.1", made.port)
    async with proxy:
        store = RemoteStore(f"http://127.0.0.1:{proxy.port}")
        await store.append("s", make_rows(1), 0)
        proxy.cut_answers_to(b"/store/append", 1)
        await store.append("s", make_rows(2, 1), 1)
        assert proxy.cuts == 1 and await store.read("s") == make_rows(3)
        proxy.cut_answers_to(b"/store/append", 1, then_refuse=True)
        with pytest.raises(StoreError):
            await store.append("s", make_rows(1, 3), 3)
        await store.close()
    direct = RemoteStore(made.url)
    assert len(await direct.read("s")) == 4  # it was kept, and nobody was told that it was not
    await direct.close()


async def test_a_server_that_is_not_there_or_another(tmp_path: Path) -> None:
    del tmp_path
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        store = RemoteStore(f"http://127.0.0.1:{sock.getsockname()[1]}")
        with pytest.raises(StoreError, match="did not answer"):
            await store.read("s")
    await store.close()

    async def other(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\n<html>")
        writer.close()

    async with await asyncio.start_server(other, "127.0.0.1", 0) as server:
        store = RemoteStore(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        with pytest.raises(StoreError, match="something else than JSON"):
            await store.read("s")
        await store.close()


async def test_what_the_key_may_not_do_is_told(gateway: StartGateway) -> None:
    made = await gateway()
    client, wrong = RemoteStore(made.url, await key_of(made, "a")), RemoteStore(made.url, "wl-wrong")
    await client.append("s", make_rows(1), 0)
    with pytest.raises(StoreError, match="403") as refused:
        await client.list()
    assert "administrator" in refused.value.hint
    with pytest.raises(StoreError, match="401") as unknown:
        await wrong.read("s")
    assert "key=" in unknown.value.hint and "wl-wrong" not in f"{unknown.value!r}{unknown.value}{wrong!r}"
    admin = RemoteStore(made.url, await key_of(made, "a", "admin"))
    assert [info.id for info in await admin.list()] == ["s"]
    with pytest.raises(StoreError, match="key's tenant"):
        await client.read("s", tenant="b")
    for store in (client, wrong, admin):
        await store.close()


def test_addresses_that_are_none() -> None:
    for url in ("", "127.0.0.1:80", "ftp://h", "http://", "http://u:canary@h", "http://h/?q=1"):
        with pytest.raises(ConfigError) as told:
            RemoteStore(url)
        assert "canary" not in str(told.value)
    assert isinstance(registry.make("stores", "remote:http://127.0.0.1:1"), RemoteStore)


def test_infos_travel_whole() -> None:
    info = SessionInfo("i", 3, 1, 2, "t", "p", 1)
    assert SessionInfo(**msgspec.to_builtins(info)) == info and isinstance(MemoryStore(), Store)


async def test_a_virtual_workspace_over_a_lost_server_ends_the_run_before_the_write(gateway: StartGateway) -> None:
    made = await gateway()
    async with Proxy("127.0.0.1", made.port) as proxy:
        space = MemoryWorkspace({"a": "1"})
        agent = Agent(
            ScriptedProvider([call("write_file", path="a", content="2"), "done"]), tools="files", workspace=space
        )
        session = Session(agent, "s", RemoteStore(f"http://127.0.0.1:{proxy.port}"))
        proxy.cut_answers_to(b"/store/blobs/put", 2, then_refuse=True)
        with pytest.raises(StoreError):
            await session.send("go")
        assert space.files == {"a": "1"}
        assert session.ledger.store is not None
        await session.ledger.store.close()
