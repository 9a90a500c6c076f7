"""Gateways that share one PostgreSQL: keys, budgets, and what happens when the server is restarted under them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import httpx

from tests.postgres import Postgres
from tests.server.conftest import Serve, Served

ASK: dict[str, Any] = {"model": "r", "max_tokens": 10, "messages": [{"role": "user", "content": "Count."}]}
#: What the model reports of it: one word asked, ten answered.
TOKENS = 11
CHAT = "/v1/chat/completions"
#: A last guard for what others must notice: they look twice a second.
SECONDS = 5.0


@asynccontextmanager
async def asking(served: Served, secret: str = "") -> AsyncGenerator[httpx.AsyncClient]:
    """A client of a gateway: with its administrator's token, or with a key."""
    secret = secret or (served.home / "admin-token").read_text()
    headers = {"authorization": f"Bearer {secret}"}
    async with httpx.AsyncClient(base_url=served.url, headers=headers, timeout=20.0, verify=False) as client:
        yield client


def config(database: str) -> str:
    return f'accounts = "{database}"\n[routes]\nr = "fault:ok"\n'


async def made(admin: httpx.AsyncClient, **fields: Any) -> dict[str, Any]:
    answer = await admin.post("/v1/keys", json={"name": "ann", **fields})
    assert answer.status_code == 201, answer.text
    return answer.json()


async def until(client: httpx.AsyncClient, status: int) -> None:
    """Wait until a client is answered so."""
    async with asyncio.timeout(SECONDS):
        while (await client.get("/v1/models")).status_code != status:
            await asyncio.sleep(0.02)


async def used(admin: httpx.AsyncClient, requests: int) -> int:
    """Return the tokens of so many requests, once all of them are written down."""
    async with asyncio.timeout(SECONDS):
        while True:
            rows = (await admin.get("/v1/usage")).json()["data"]
            count = sum([row["requests"] for row in rows])
            assert count <= requests, rows
            if count == requests:
                return sum([row["input_tokens"] + row["output_tokens"] for row in rows])


async def test_a_key_made_and_revoked_through_one_gateway_counts_at_the_other(serve: Serve, database_url: str) -> None:
    first, second = serve(config(database_url)), serve(config(database_url))
    async with asking(first) as admin:
        key = await made(admin)
        async with asking(second, key["secret"]) as ann, asking(second, "sk-nobody") as nobody:
            await until(nobody, 401)
            assert (await ann.post(CHAT, json=ASK)).status_code == 200
            assert (await admin.delete(f"/v1/keys/{key['id']}")).status_code == 200
            await until(ann, 401)
    assert (first.stop(), second.stop()) == (0, 0)


async def test_a_shared_budget_holds_under_load_on_both_gateways(serve: Serve, database_url: str) -> None:
    budget = 100 * TOKENS
    first, second = serve(config(database_url)), serve(config(database_url))
    async with asking(first) as admin:
        key = await made(admin, token_budget=budget)
        async with (
            asking(first, key["secret"]) as one,
            asking(second, key["secret"]) as other,
            asking(second, "sk-nobody") as nobody,
        ):
            # Without any key a gateway is open to this machine: only now does the other one know of limits.
            await until(nobody, 401)

            async def ask(client: httpx.AsyncClient) -> list[int]:
                return [(await client.post(CHAT, json=ASK)).status_code for _ in range(20)]

            rounds = await asyncio.gather(*[ask(client) for client in (one, other) for _ in range(8)])
            statuses = [status for statuses in rounds for status in statuses]
            # 320 calls of 11 tokens would be three budgets: the rest was told that there is nothing left.
            assert set(statuses) == {200, 429}
            answered = statuses.count(200)
            # No call uses more than it reserves, so nothing goes beyond the budget; and most of it can be used.
            assert answered * TOKENS <= budget
            assert answered * TOKENS >= budget // 2
            refused = await one.post(CHAT, json=ASK)
            if refused.status_code != 200:
                assert refused.json()["error"]["code"] == "insufficient_quota"
    assert (first.stop(), second.stop()) == (0, 0)


async def test_r49_a_restarted_postgresql_loses_nothing_and_stops_nobody(serve: Serve) -> None:
    with Postgres(durable=True) as server:
        served = serve(config(server.new_database()))
        async with asking(served) as admin:
            key = await made(admin)
            async with asking(served, key["secret"]) as ann:
                assert (await ann.post(CHAT, json=ASK)).status_code == 200
                await asyncio.to_thread(server.stop, "immediate")
                # Who has no limits is served while the database is away; what it used is written down afterwards.
                for _ in range(5):
                    assert (await ann.post(CHAT, json=ASK)).status_code == 200
                await asyncio.to_thread(server.start)
                assert (await ann.post(CHAT, json=ASK)).status_code == 200
            async with asyncio.timeout(20):
                while (await admin.get("/v1/usage")).status_code != 200:
                    await asyncio.sleep(0.05)
                while sum([row["requests"] for row in (await admin.get("/v1/usage")).json()["data"]]) < 7:
                    await asyncio.sleep(0.05)
            assert await used(admin, 7) == 7 * TOKENS
            again = await made(admin, name="bob")
            async with asking(served, again["secret"]) as bob:
                assert (await bob.post(CHAT, json=ASK)).status_code == 200
        assert served.stop() == 0
        assert "Traceback" not in served.log.read_text()
