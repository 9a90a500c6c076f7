"""The straight way among others: targets in doubt, limits of keys, and what of a request stays when it is over."""

from __future__ import annotations

import asyncio
import gc
import random
from collections import Counter
from typing import Any

import pytest

from tests.server.conftest import StartGateway
from tests.server.edge import request, unquiet, until, wire
from tests.server.straight import (
    BIG,
    BODIES,
    CHAT,
    FRAMES,
    PATHS,
    SSE,
    Case,
    Counted,
    Held,
    Way,
    asking,
    differences,
    good,
    posted,
    way,
    works,
)
from tests.server.test_express import DOES, SILENT
from windlass.accounts.limits import Reservation
from windlass.core.http import TransportTimeout
from windlass.providers.breaker import BreakerLimits
from windlass.providers.remote import RemoteProvider
from windlass.testing.faults import BlackHole, Raw, Reply, Stream

# ------------------------------------------------------------------------------------------------- health, and limits


async def test_a_target_in_doubt_is_probed_by_one_request_and_not_straight(
    gateway: StartGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = Counted(monkeypatch)
    async with way(gateway, attempts=1) as up:
        up.up.gateway.router._limits = BreakerLimits(failures=1, cool_down=0.05)  # pyright: ignore[reportPrivateUsage]
        bad = DOES["500"]("chat", False)
        assert isinstance(bad, Reply)
        await up.see(Case("chat", False, [bad]), "m")
        breaker = up.up.gateway.router.route("chat:m").targets[0].breaker
        assert (counted.begun, breaker.state) == (1, "open")
        await until(lambda: breaker.state == "half_open")
        seen = await up.see(Case("chat", False, [good("chat", False)]), "m")
        # Its answer closes it, and the straight way is open again.
        assert (seen.status, counted.begun, breaker.state) == (200, 1, "closed")
        await up.see(Case("chat", False, [good("chat", False)]), "m")
        assert counted.begun == 2


@pytest.mark.parametrize("kind", ["opened", "rests"])
async def test_what_has_come_is_told_although_the_target_failed_others_meanwhile(
    gateway: StartGateway, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    counted, go = Counted(monkeypatch), asyncio.Event()
    # It takes a task to read that.
    step = Stream([BODIES["chat"]()], headers={"content-type": "text/plain"})
    async with way(gateway, attempts=1) as up, asking(up, Raw([go, *step.script()[0]]), stream=False) as client:
        breaker = up.up.gateway.router.route("chat:m").targets[0].breaker
        if kind == "rests":
            breaker.rest(3600.0)
        else:
            while breaker.state == "closed":
                leave = breaker.admit()
                assert leave is not None
                leave.failed("x")
        before = breaker.consecutive
        go.set()
        assert (await client.answer()).status == 200
        await up.quiet()
        # Late news of a target that is out of use change nothing.
        assert breaker.consecutive == before and not breaker.healthy and counted.begun == 1


async def test_the_time_for_the_first_token_is_not_that_for_a_whole_answer(
    gateway: StartGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted, body = Counted(monkeypatch), BODIES["chat"]()
    step = Stream([body[:20], 0.5, body[20:]], headers={"content-type": "application/json"})
    routes = {"r": {"targets": ["chat:m"], "first_token_timeout": 0.3}}
    async with way(gateway, routes=routes, attempts=1) as up:
        up.script.steps["m"] = [step]
        await up.warm("chat")
        async with wire(up.up.port) as client:
            data = posted(Case("chat", False, []), "m").replace(b'"chat:m"', b'"r"     ')
            await client.send(data)
            assert (await client.answer()).body == body
        assert counted.begun == 1


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
async def test_an_answer_that_is_too_large_is_told_once(
    gateway: StartGateway, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, stream: bool
) -> None:
    counted = Counted(monkeypatch)
    parts = [*CHAT[:2], 0.02, BIG, BIG, *CHAT[2:]] if stream else [b" " * 400_000, BODIES["chat"]()]
    step = Stream(parts, headers=SSE if stream else {"content-type": "application/json"})
    async with way(gateway, attempts=1) as straight, way(gateway, straight=False, attempts=1) as ordinary:
        for up in (straight, ordinary):
            up.client("chat")._max_body = 100_000  # pyright: ignore[reportPrivateUsage]
        one, other = [await up.see(Case("chat", stream, [step]), "m") for up in (straight, ordinary)]
        assert differences(one, other) == {} and one.record["outcome"] != "ok" and counted.begun == 1
        await straight.quiet()
    assert not unquiet(caplog)


async def test_a_provider_that_does_more_than_to_send_is_not_asked_straight(
    gateway: StartGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = Counted(monkeypatch)
    async with way(gateway) as up:
        provider = up.up.gateway.router.provider("chat")

        class Entering(RemoteProvider):
            """Has a token before it asks, as those with a login do."""

            def forward(self, *given: Any, **more: Any) -> Any:
                return super().forward(*given, **more)

        provider.__class__ = Entering
        seen = await up.see(Case("chat", False, [good("chat", False)]), "m")
        assert (seen.status, counted.begun) == (200, 0)


async def test_a_slow_upload_does_not_shorten_the_time_of_others(
    gateway: StartGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = Counted(monkeypatch)
    async with way(gateway, request_timeout=3.0) as up:
        await up.warm("chat")
        up.script.steps["m"] = [good("chat", False)]
        data = posted(Case("chat", False, []), "m")
        async with wire(up.up.port) as client:
            await client.send(data[:-5])
            await asyncio.sleep(0.5)
            await client.send(data[-5:])
            assert (await client.answer()).status == 200
        await up.see(Case("chat", False, [good("chat", False)]), "m")
        kept = up.up.gateway.limits["chat:m", False]
        assert counted.begun == 2 and kept.total is not None and kept.total > 2.8


async def test_a_request_that_cannot_be_written_is_told_and_holds_nothing(
    gateway: StartGateway, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with way(gateway) as straight, way(gateway, straight=False) as ordinary:
        held = Held(straight.up, monkeypatch)
        _, secret = await straight.up.gateway.accounts.create("k", rpm=1000)
        straight.auth = {"authorization": f"Bearer {secret}"}
        told: list[tuple[int, bytes]] = []
        for up in (straight, ordinary):
            await up.warm("chat")
            body = Case("chat", True, []).body("chat:m")[:-1] + b',"stream_options":{"x":1e999}}'
            async with wire(up.up.port) as client:
                await client.send(request("POST", PATHS["chat"], up.auth, body))
                answer = await client.answer()
                told.append((answer.status, answer.body))
            await up.quiet()
        assert told[0] == told[1] and told[0][0] == 400
        assert held.open == 0 and len(straight.records) == len(ordinary.records)
        assert not unquiet(caplog)


async def test_a_renewed_credential_is_used_at_once(gateway: StartGateway, monkeypatch: pytest.MonkeyPatch) -> None:
    counted = Counted(monkeypatch)
    async with way(gateway) as up:
        provider = up.up.gateway.router.provider("chat")
        for number in range(3):
            provider.headers["authorization"] = f"Bearer token-{number}"
            await up.see(Case("chat", False, [good("chat", False)]), "m")
            assert up.vendor.requests[-1].headers["authorization"] == f"Bearer token-{number}"
        assert counted.begun == 3


async def test_a_client_that_leaves_while_the_request_changes_its_way(
    gateway: StartGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two turns of the loop there is a task that has not begun, which must not be cancelled unheard."""
    made = works(monkeypatch)
    async with way(gateway) as up:
        held = Held(up.up, monkeypatch)
        _, secret = await up.up.gateway.accounts.create("k", rpm=1000)
        up.auth = {"authorization": f"Bearer {secret}"}
        for broken in (True, False):
            async with asking(up, BlackHole()) as client:
                (connection,) = up.up.listener.connections
                work = made[-1]
                exchange = work.exchange
                assert exchange is not None and exchange.source is not None
                if broken:
                    exchange.source.abort(TransportTimeout("late", phase="first_byte"))
                else:
                    upstream: Any = exchange.source
                    upstream.data_received(b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 5\r\n\r\n")
                assert work.done()
                connection.connection_lost(None)
                await until(lambda: not up.up.gateway.running)
                del connection, client
            await up.quiet()
            assert up.records[-1].outcome == "client_gone" and held.open == 0


# ------------------------------------------------------------------------------------------------ many, and what stays


async def test_budgets_and_records_agree_under_parallel_requests_with_faults(
    gateway: StartGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted, dice = Counted(monkeypatch), random.Random(7)
    names = [name for name in DOES if name not in (*SILENT, "large", "slow", "kept alive", "no end of the body")]
    async with way(gateway) as up:
        accounts = up.up.gateway.accounts
        key, secret = await accounts.create("k", token_budget=200_000)
        up.auth = {"authorization": f"Bearer {secret}"}
        await up.warm("chat", 60)
        await up.warm("anthropic", 60)
        held, settled = Held(up.up, monkeypatch), list[int]()
        settle = accounts.settle

        def settling(made: Reservation, tokens: int | None, cost: int | None) -> None:
            assert not made.done and tokens is not None
            settled.append(tokens)
            settle(made, tokens, cost)

        monkeypatch.setattr(accounts, "settle", settling)
        first = len(up.records)

        async def one(number: int) -> int:
            dialect, stream, name = dice.choice(list(FRAMES)), dice.random() < 0.5, dice.choice([*names, *["ok"] * 40])
            steps = DOES[name](dialect, stream)
            case = Case(dialect, stream, steps if isinstance(steps, list) else [steps], headers=up.auth)
            model = f"r{number}"
            up.script.steps[model] = list(case.steps)
            async with wire(up.up.port) as client:
                await client.send(posted(case, model, **up.auth))
                if number % 20 == 19:
                    await asyncio.sleep(0.01)
                    return 0
                return (await client.answer()).status

        statuses = Counter(await asyncio.gather(*[one(number) for number in range(200)]))
        await up.quiet()
        records = up.records[first:]
        assert counted.begun > 10 and statuses[200] > 60 and len(records) + statuses[429] >= 200 - 10
        assert held.open == 0
        charged = [record for record in records if record.outcome in ("ok", "client_gone", "interrupted")
                   or record.input_tokens + record.output_tokens]  # fmt: skip
        assert sum(settled) == sum([record.input_tokens + record.output_tokens for record in charged])
        # Nobody used more than was reserved: nothing is spent beyond the budget.
        await accounts.flush()
        ((used,),) = await accounts.tables.fetch("SELECT used FROM account_meters WHERE kind = 'token_budget'")
        assert sum(settled) <= used <= 200_000 and key.token_budget == 200_000


async def test_a_spent_budget_is_told_on_the_straight_way_too(gateway: StartGateway) -> None:
    async with way(gateway) as up:
        _, secret = await up.up.gateway.accounts.create("k", rpm=30)
        up.auth = {"authorization": f"Bearer {secret}"}
        await up.warm("chat")
        answers = [await up.send(Case("chat", False, [good("chat", False)], headers=up.auth), "m") for _ in range(31)]
        # A request that could not go straight was not counted twice.
        assert Counter([answer.status for answer in answers]) == {200: 29, 429: 2}


def _living() -> Counter[str]:
    kinds = (
        "Express",
        "Job",
        "Exchange",
        "WireCall",
        "Passing",
        "ChatWatcher",
        "DecodingWatcher",
        "Attempts",
        "Report",
    )
    return Counter([name for name in [type(one).__name__ for one in gc.get_objects()] if name in kinds])


async def _many(up: Way, count: int) -> None:
    """Ask over few connections; some answers are broken, and some clients leave."""
    names = [name for name in DOES if name not in (*SILENT, "large", "slow", "kept alive", "no end of the body")]
    dice = random.Random(count)

    async def client(numbers: range) -> None:
        for number in numbers:
            dialect, stream = ("chat", "anthropic")[number % 2], dice.random() < 0.5
            name = dice.choice(names) if number % 10 == 0 else "ok"
            steps = DOES[name](dialect, stream)
            # A target of its own for what fails: it must not rest for the others.
            model = f"{dialect}-{number % 97 if name != 'ok' else stream}"
            up.script.steps[model] = list(steps) if isinstance(steps, list) else [steps]
            if name != "ok":
                up.up.gateway.router.route(f"{dialect}:{model}").targets[0].breaker.consecutive = 0
            async with wire(up.up.port) as sent:
                await sent.send(posted(Case(dialect, stream, []), model))
                if number % 37:
                    await sent.answer()

    await asyncio.gather(*[client(range(at, count, 8)) for at in range(8)])
    await up.quiet()
    await asyncio.sleep(0.05)


@pytest.mark.parametrize("count", [400, pytest.param(5000, marks=pytest.mark.slow)])
async def test_nothing_of_a_request_stays(gateway: StartGateway, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    counted = Counted(monkeypatch)
    async with way(gateway) as up:
        await up.warm("chat", 8)
        await up.warm("anthropic", 8)
        await _many(up, 100)
        gc.collect()
        gc.disable()
        try:
            before, begun = _living(), counted.begun
            await _many(up, count)
            # Without the collector: nothing that points to itself is left either. The last ones may need a moment.
            grown = _living() - before
            for _ in range(100):
                if grown:
                    await asyncio.sleep(0.02)
                    grown = _living() - before
            assert not grown
        finally:
            gc.enable()
        assert counted.begun - begun > count // 2
        assert not up.up.gateway.running and not up.up.listener.tasks and up.up.listener.buffered == 0
