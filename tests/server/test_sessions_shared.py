"""Sessions that several share: one writer at a time, tenants apart, and their routes; R32, R47, S43, S45, S46, S69."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.server.chatting import (
    ECHO,
    PATH,
    ask,
    error_of,
    kept,
    read_session,
    said,
    talk,
    text_of,
    until,
)
from tests.server.conftest import StartGateway
from tests.server.upstreams import answering, chat_stream, sent, up
from windlass.agent.ledger import Ledger
from windlass.core import clock
from windlass.core.events import RunStarted, SessionCreated
from windlass.core.ports import Row
from windlass.stores.memory import MemoryStore
from windlass.testing.faults import FaultServer, Received, Step, Stream
from windlass.testing.validity import check_openai

# --------------------------------------------------------------------------------------------------------- one writer


async def test_r32_a_busy_session_queues_then_refuses_and_keeps_the_order(gateway: StartGateway) -> None:
    gate = asyncio.Event()

    def step(request: Received) -> Step:
        del request
        parts = [gate, *chat_stream("A").parts]
        return Stream(parts)

    async with FaultServer(step) as upstream:
        served = await gateway(providers=up(upstream, model="m"), server={"session_queue": 2})
        fields: dict[str, Any] = {"provider": "up", "session_id": "s", "stream": True}
        first = asyncio.create_task(ask(served.url, prompt="0", **fields))
        await until(lambda: len(upstream.requests) == 1)
        waiting: list[asyncio.Task[httpx.Response]] = []
        for number in (1, 2):
            waiting.append(asyncio.create_task(ask(served.url, prompt=str(number), **fields)))
            await until(lambda: len(served.gateway.running) == 1 + len(waiting))
        refused = await ask(served.url, prompt="3", **fields)
        assert error_of(refused) == (409, "invalid_request_error", "session_id", "session_busy")
        assert (refused.headers["retry-after"], refused.headers["x-should-retry"]) == ("1", "true")
        assert (await read_session(served.url, "s")).json()["status"] == "running"
        assert (await read_session(served.url, "s", method="DELETE")).status_code == 409
        # Another session, and another tenant's of the same name, do not wait.
        other = asyncio.create_task(ask(served.url, prompt="x", **{**fields, "session_id": "t"}))
        await until(lambda: len(upstream.requests) == 2)
        gate.set()
        for task in (first, *waiting, other):
            assert (await task).status_code == 200
        assert [text for role, text in await talk(served, "s") if role == "user"] == ["0", "1", "2"]
        assert sent(upstream)["messages"] == [
            said("0"), said("A", "assistant"), said("1"), said("A", "assistant"), said("2")
        ]  # fmt: skip
        assert not served.gateway.sessions.working("", "s")


async def test_r32_one_that_waits_may_leave_and_the_next_gets_its_turn(gateway: StartGateway) -> None:
    gate = asyncio.Event()

    async with FaultServer(lambda _: Stream([gate, *chat_stream("A").parts])) as upstream:
        served = await gateway(providers=up(upstream, model="m"))
        fields: dict[str, Any] = {"provider": "up", "session_id": "s", "stream": True}
        tasks = [asyncio.create_task(ask(served.url, prompt="0", **fields))]
        await until(lambda: len(upstream.requests) == 1)
        for number in (1, 2):
            tasks.append(asyncio.create_task(ask(served.url, prompt=str(number), **fields)))
            await until(lambda: len(served.gateway.running) == len(tasks))
        tasks[1].cancel()
        await until(lambda: len(served.gateway.running) == 2)
        gate.set()
        assert (await tasks[0]).status_code == (await tasks[2]).status_code == 200
        assert [text for role, text in await talk(served, "s") if role == "user"] == ["0", "2"]
        assert len(upstream.requests) == 2


async def test_r32_who_waits_too_long_is_told_so(gateway: StartGateway) -> None:
    gate = asyncio.Event()
    async with FaultServer(lambda _: Stream([gate, *chat_stream("A").parts])) as upstream:
        served = await gateway(providers=up(upstream, model="m"))
        fields: dict[str, Any] = {"provider": "up", "session_id": "s", "stream": True}
        first = asyncio.create_task(ask(served.url, prompt="0", **fields))
        await until(lambda: len(upstream.requests) == 1)
        async with httpx.AsyncClient(timeout=20.0) as client:
            headers = {"x-stainless-read-timeout": "0.2"}
            late = await client.post(f"{served.url}{PATH}", json={"prompt": "1", **fields}, headers=headers)
        assert error_of(late)[3] == "session_busy"
        gate.set()
        assert (await first).status_code == 200
        assert not served.gateway.sessions.working("", "s")


class Racing(MemoryStore):
    """A store in which somebody else is first, `times` times."""

    immediate = False
    times = 0

    async def append(self, session: str, rows: Any, expected_pos: int, *, tenant: str = "") -> None:
        if self.times > 0:
            self.times -= 1
            row = Row(expected_pos, "run.started", expected_pos, clock.now_ns(), b'{"session_id":"s","model":"other"}')
            await super().append(session, [row], expected_pos, tenant=tenant)
        await super().append(session, rows, expected_pos, tenant=tenant)


@pytest.mark.parametrize("more", [{}, {"loop_max_turns": 1}])
async def test_r47_another_gateway_that_is_first_is_read_once_then_it_is_409(
    gateway: StartGateway, more: dict[str, Any]
) -> None:
    served = await gateway()
    store = Racing()
    served.gateway.sessions._store = store  # pyright: ignore[reportPrivateUsage]
    text_of(await ask(served.url, prompt="one", session_id="s", **ECHO))
    store.times = 1
    assert text_of(await ask(served.url, prompt="two", session_id="s", **ECHO, **more)) == "Echo: two"
    assert await talk(served, "s") == [
        ("user", "one"), ("assistant", "Echo: one"), ("user", "two"), ("assistant", "Echo: two")
    ]  # fmt: skip
    store.times = 2
    found = error_of(await ask(served.url, prompt="three", session_id="s", **ECHO, **more))
    assert found[0] == 409 and found[3] == "session_busy"
    assert len(await talk(served, "s")) == 4


async def test_r47_two_gateways_on_one_postgresql_keep_every_turn_whole(
    gateway: StartGateway, database_url: str
) -> None:
    async with FaultServer(answering("A")) as upstream:
        pair = [await gateway(providers=up(upstream, model="m"), server={"session_store": database_url}) for _ in "ab"]
        text_of(await ask(pair[0].url, prompt="begin", provider="up", session_id="s"))
        asked = [
            ask(pair[number % 2].url, prompt=f"q{number}", provider="up", session_id="s") for number in range(10)
        ]  # fmt: skip
        answers = await asyncio.gather(*asked)
        good = {f"q{number}" for number, answer in enumerate(answers) if answer.status_code == 200}
        others = [error_of(answer)[3] for answer in answers if answer.status_code != 200]
        assert set(others) <= {"session_busy"}
        # Whole turns, each answered request exactly once, none of the refused ones.
        texts = await talk(pair[1], "s")
        assert [role for role, _ in texts] == ["user", "assistant"] * (len(good) + 1)
        assert {text for role, text in texts if role == "user"} == {"begin", *good}
        assert len(good) >= 2
        assert text_of(await ask(pair[1].url, prompt="end", provider="up", session_id="s")) == "A"
        assert check_openai(sent(upstream)) == []


@pytest.mark.parametrize("again", [False, True])
async def test_a_session_that_is_deleted_meanwhile_does_not_come_back(gateway: StartGateway, again: bool) -> None:
    gate = asyncio.Event()
    async with FaultServer(lambda _: Stream([gate, *chat_stream("A").parts])) as upstream:
        served = await gateway(providers=up(upstream, model="m"))
        fields: dict[str, Any] = {"provider": "up", "session_id": "s"}
        task = asyncio.create_task(ask(served.url, prompt="x", stream=True, **fields))
        await until(lambda: len(upstream.requests) == 1)
        # By another gateway, or by the command line.
        assert await served.gateway.sessions.store.delete("s")
        if again:
            # The same id, another conversation.
            started = [RunStarted(session_id="s", model="m", run_id=name) for name in ("other", "another")]
            other = [SessionCreated(session_id="s"), *started]
            await Ledger(served.gateway.sessions.store, "s").commit(other)
        gate.set()
        assert '"code":"session_deleted"' in (await task).text
        assert len(await kept(served, "s")) == 3 * again


# ------------------------------------------------------------------------------------------------------------ tenants


async def test_s43_no_tenant_reaches_another_s_sessions_by_any_route(gateway: StartGateway) -> None:
    served = await gateway()
    keys = {name: (await served.gateway.accounts.create(name, tenant=name))[1] for name in ("a", "b")}
    _, plain = await served.gateway.accounts.create("plain")
    _, boss = await served.gateway.accounts.create("boss", role="admin")
    for name, key in keys.items():
        text_of(await ask(served.url, key=key, prompt=f"secret of {name}", session_id="s", **ECHO))
    assert await talk(served, "s", "a") != await talk(served, "s", "b")
    # B sees its own under the same id, and a session of A's exactly as one that never was.
    text_of(await ask(served.url, key=keys["a"], prompt="secret of a", session_id="only-a", **ECHO))
    for method in ("GET", "DELETE"):
        foreign = await read_session(served.url, "only-a", keys["b"], method)
        unknown = await read_session(served.url, "only-x", keys["b"], method)
        assert foreign.status_code == unknown.status_code == 404
        assert foreign.text.replace("only-a", "") == unknown.text.replace("only-x", "")
        assert {**foreign.headers, "x-request-id": "", "date": ""} == {
            **unknown.headers, "x-request-id": "", "date": ""
        }  # fmt: skip
    assert "secret of b" in (await read_session(served.url, "s", keys["b"])).text
    for stream in (False, True):
        answer = await ask(served.url, key=keys["b"], prompt="mine", session_id="only-a", stream=stream, **ECHO)
        assert answer.status_code == 200
    assert await talk(served, "only-a", "a") == [("user", "secret of a"), ("assistant", "Echo: secret of a")]
    # Naming the other tenant is refused, in chat and on every route, also for a key without a tenant.
    for key in (keys["b"], plain):
        found = error_of(await ask(served.url, key=key, prompt="x", session_id="s", tenant_id="a", **ECHO))
        assert found == (403, "permission_error", "tenant_id", "tenant_not_allowed")
        for method in ("GET", "DELETE"):
            assert (await read_session(served.url, "s", key, method, tenant_id="a")).status_code == 403
    assert text_of(await ask(served.url, key=keys["a"], prompt="x", session_id="s", tenant_id="a", **ECHO))
    assert "secret of a" in (await read_session(served.url, "s", boss, tenant_id="a")).text
    # The list is an administrator's.
    async with httpx.AsyncClient() as client:
        for key, status in ((keys["a"], 403), (plain, 403), ("", 401), (boss, 200), (served.gateway.admin_token, 200)):
            headers = {"authorization": f"Bearer {key}"} if key else {}
            listed = await client.get(f"{served.url}/v1/sessions", params={"tenant_id": "a"}, headers=headers)
            assert listed.status_code == status
        assert {row["id"] for row in listed.json()["data"]} == {"s", "only-a"}
    assert (await read_session(served.url, "s", "")).status_code == 401
    assert (await read_session(served.url, "s", keys["a"], "DELETE")).json() == {
        "id": "s", "object": "session.deleted", "deleted": True
    }  # fmt: skip
    assert "secret of b" in (await read_session(served.url, "s", keys["b"])).text


async def test_1_5_without_keys_a_request_names_its_tenant(gateway: StartGateway) -> None:
    served = await gateway()
    for tenant in ("x", "y"):
        text_of(await ask(served.url, prompt=f"for {tenant}", session_id="s", tenant_id=tenant, **ECHO))
    assert (await talk(served, "s", "x"))[0] == ("user", "for x") and await talk(served, "s") == []
    assert (await read_session(served.url, "s")).status_code == 404
    assert "for y" in (await read_session(served.url, "s", tenant_id="y")).text
    # A tenant alone keeps nothing.
    text_of(await ask(served.url, prompt="x", tenant_id="z", **ECHO))
    assert await served.gateway.sessions.store.list(tenant="z") == []


STRANGE = [
    "'; DROP TABLE sessions; --", '" OR 1=1', "%", "_", "a%b", "a/b", "a\\b", "$.x", "né", "日本", "a b", "{session}",
    "?", "x" * 256, "..a", "a:b", "#", "+",
]  # fmt: skip


@pytest.mark.parametrize("store", ["memory", "sqlite"])
async def test_s45_strange_ids_are_only_ids(gateway: StartGateway, store: str, tmp_path: Path) -> None:
    where = "memory" if store == "memory" else f"sqlite:{tmp_path / 's.db'}"
    served = await gateway(server={"session_store": where})
    for at, name in enumerate(STRANGE):
        text_of(await ask(served.url, prompt=f"number {at}", session_id=name, tenant_id=name, **ECHO))
    for at, name in enumerate(STRANGE):
        answer = await read_session(served.url, name, tenant_id=name)
        assert answer.status_code == 200, (name, answer.text)
        assert answer.json()["messages"][0]["parts"][0]["content"] == f"number {at}"
        assert [info.id for info in await served.gateway.sessions.store.list(tenant=name)] == [name]
    assert (await read_session(served.url, "%' OR '1'='1", tenant_id=STRANGE[0])).status_code == 404


@pytest.mark.parametrize(
    "name", ["a\x00b", "a\r\nb: c", "\x1b[2J", "x" * 257, "é" * 129, ".", "..", "\u2028", "a\u200bb", "x" * 1_000_000]
)
async def test_s46_s69_ids_that_could_break_a_line_are_refused(gateway: StartGateway, name: str) -> None:
    served = await gateway()
    for field in ("session_id", "tenant_id"):
        found = error_of(await ask(served.url, body={"prompt": "x", **ECHO, field: name}))
        assert found == (400, "invalid_request_error", field, f"invalid_{field}")
    found = error_of(await ask(served.url, b'{"prompt":"x","session_id":"\\udc00"}'))
    assert found[0] == 400 and found[3] == "invalid_json"
    assert (await read_session(served.url, "s", tenant_id=name[:2000])).status_code in (400, 404)
    # The client itself takes dots out of a path: then it is the list's.
    assert (await read_session(served.url, name[:400])).status_code in (400, 401, 404)
    assert await served.gateway.sessions.store.list() == []


async def test_the_list_of_sessions(gateway: StartGateway) -> None:
    served = await gateway()
    for name in ("one", "two"):
        text_of(await ask(served.url, prompt=f"Tell of {name}", session_id=name, **ECHO))
    headers = {"authorization": f"Bearer {served.gateway.admin_token}"}
    async with httpx.AsyncClient() as client:
        rows = (await client.get(f"{served.url}/v1/sessions", headers=headers)).json()["data"]
        assert [(row["id"], row["title"], row["tenant_id"], row["rows"]) for row in rows] == [
            ("two", "Tell of two", None, 5), ("one", "Tell of one", None, 5)
        ]  # fmt: skip
        url = f"{served.url}/v1/sessions"
        assert len((await client.get(url, params={"limit": 1}, headers=headers)).json()["data"]) == 1
        for limit in ("0", "1001", "x", "-1"):
            assert (await client.get(url, params={"limit": limit}, headers=headers)).status_code == 400
        assert (await client.get(url)).status_code == 401
