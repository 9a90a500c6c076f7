"""Records, `/metrics` and `windlass keys usage` agree to the last nano-dollar, whatever became of requests."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from decimal import Decimal
from typing import Any, NamedTuple

import httpx
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.server.conftest import InProcess, StartGateway
from windlass.accounts.records import UsageRow
from windlass.core import clock
from windlass.core.usage import NANO
from windlass.server.observe import prometheus
from windlass.testing.faults import FaultServer, Part, Received, Reply, Rst, Step, Stream, sse

JSON = {"content-type": "application/json"}
#: Nano-dollars per token of gpt-4.1: read, from the cache, written.
READ, CACHED, WROTE = 2000, 500, 8000
#: Requests of one example.
_MOST = 10


class Plan(NamedTuple):
    """One request: what its first target does, how it is asked, and what the answer uses."""

    kind: str
    key: int
    dialect: str
    stream: bool
    read: int
    cached: int
    wrote: int
    again: bool

    @property
    def cost(self) -> int:
        """What it costs in nano-dollars."""
        return (self.read - self.cached) * READ + self.cached * CACHED + self.wrote * WROTE


_PLANS = st.builds(
    Plan,
    kind=st.sampled_from(
        ["ok", "ok", "early usage", "usage twice", "no usage", "fallback", "down", "cut", "gone", "unknown", "bad body"]
    ),
    key=st.integers(0, 2),
    dialect=st.sampled_from(["chat", "anthropic"]),
    stream=st.booleans(),
    read=st.integers(5, 10**7),
    cached=st.integers(0, 5),
    wrote=st.integers(1, 10**6),
    again=st.booleans(),
)


def _usage(plan: dict[str, Any]) -> dict[str, Any]:
    return {
        "prompt_tokens": plan["read"], "completion_tokens": plan["wrote"], "total_tokens": plan["read"] + plan["wrote"],
        "prompt_tokens_details": {"cached_tokens": plan["cached"]},
    }  # fmt: skip


def _row(delta: dict[str, Any] | None, reason: str | None = None, **more: Any) -> str:
    choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": reason}]
    return json.dumps(
        {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": choices, **more}
    )


def _vendor(request: Received) -> Step:
    """Do what the text of the request asks for; the second target, `mini`, always answers."""
    body = json.loads(request.body)
    plan: dict[str, Any] = json.loads(body["messages"][-1]["content"])
    kind = plan["kind"] if "fallback" not in body["model"] else "ok"
    if kind in ("cut", "gone") and not plan["stream"]:
        kind = "ok"  # the gateway may stream although its client does not
    if kind in ("fallback", "down"):
        return Reply(500, b'{"error":{"message":"broken"}}', JSON) if plan["read"] % 2 else Rst()
    usage = _usage(plan)
    if not body.get("stream"):
        choice = {"index": 0, "message": {"role": "assistant", "content": "hello"}, "finish_reason": "stop"}
        answer: dict[str, Any] = {
            "id": "c",
            "object": "chat.completion",
            "created": 1,
            "model": "m",
            "choices": [choice],
        }
        if kind != "no usage":
            answer["usage"] = usage
        return Reply(200, json.dumps(answer).encode(), JSON)
    told, end = _row(None, usage=usage), _row({}, "stop")
    rows: list[str] = [_row({"role": "assistant", "content": "hel"}), _row({"content": "lo"})]
    if kind == "cut":
        return Stream(sse(*rows))
    if kind == "gone":
        held: list[Part] = [*sse(rows[0]), asyncio.Event()]
        return Stream(held)
    if kind == "early usage":
        return Stream(sse(told, *rows, end, "[DONE]"))
    if kind == "usage twice":
        return Stream(sse(*rows, told, end, told, told, "[DONE]"))
    return Stream(sse(*rows, end, *([] if kind == "no usage" else [told]), "[DONE]"))


async def _up(gateway: StartGateway, upstream: FaultServer) -> InProcess:
    vendor = {"base_url": f"{upstream.url}/v1", "api_key": "k"}
    return await gateway(
        providers={"a": vendor, "b": vendor},
        # A target of its own for each request: what fails for one must not rest for the others.
        routes={
            **{f"one{n}": f"a:gpt-4.1-{n}" for n in range(_MOST)},
            **{f"two{n}": [f"a:gpt-4.1-x{n}", f"b:gpt-4.1-fallback{n}"] for n in range(_MOST)},
        },
        server={"cache_ttl": 60.0, "attempts": 2},
    )


async def _ask(up: InProcess, plan: Plan, secret: str, number: int) -> list[str]:
    """Make the requests of a plan; returns their ids."""
    text = json.dumps({**plan._asdict(), "number": number})
    route = {"fallback": f"two{number}", "unknown": "nobody:x"}.get(plan.kind, f"one{number}")
    body: dict[str, Any] = {
        "model": route, "messages": [{"role": "user", "content": text}], "stream": plan.stream, "temperature": 0,
        "max_tokens": 100,
    }  # fmt: skip
    if plan.kind == "bad body":
        body["stream"] = "yes"
    path = "/v1/chat/completions" if plan.dialect == "chat" else "/v1/messages"
    headers = {"authorization": f"Bearer {secret or 'any'}"}
    ids: list[str] = []
    async with httpx.AsyncClient(base_url=up.url, timeout=20) as client:
        if plan.kind == "gone" and plan.stream:
            async with client.stream("POST", path, json=body, headers=headers) as answer:
                async for _ in answer.aiter_bytes():
                    break
            return [answer.headers["x-request-id"]]
        for _ in range(1 + plan.again):
            answer = await client.post(path, json=body, headers=headers)
            ids.append(answer.headers["x-request-id"])
            assert up.gateway.cache is not None
            await up.gateway.cache.flush()
    return ids


def _metric(lines: list[str], name: str) -> Decimal:
    return sum([Decimal(line.rpartition(" ")[2]) for line in lines if line.startswith(f"windlass_{name}{{")], Decimal())


async def _totals(up: InProcess) -> dict[str, int]:
    """Return the sums of the records, after checking that the counters and the usage say the same."""
    accounts = up.gateway.accounts
    await accounts.flush()
    ((count, read, wrote, cached, cost, unknown),) = await accounts.tables.fetch(
        "SELECT count(*), sum(input_tokens), sum(output_tokens), sum(cache_read_tokens), coalesce(sum(cost), 0), "
        "sum(CASE WHEN cost IS NULL THEN 1 ELSE 0 END) FROM account_requests"
    )
    records = {"requests": count, "input_tokens": read, "output_tokens": wrote, "cache_read_tokens": cached,
               "cost": cost, "unknown_cost": unknown}  # fmt: skip
    lines = list(prometheus(up.gateway))
    counted = {name: int(_metric(lines, f"{name}_total")) for name in records if name != "cost"}
    counted["cost"] = int(_metric(lines, "cost_dollars_total") * NANO)
    assert counted == {name: value or 0 for name, value in records.items()}
    for by in ("key", "tenant", "model", "day"):
        rows = await accounts.usage(by)
        assert {name: sum([getattr(row, name) for row in rows]) for name in counted} == counted, by
    return counted


async def _settled(up: InProcess) -> None:
    """Wait until nobody is being answered any more."""
    async with clock.deadline(10.0):
        while up.gateway.stats.active:
            await asyncio.sleep(0.002)


@settings(
    max_examples=15, deadline=None, derandomize=True, database=None, phases=[Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
@given(plans=st.lists(_PLANS, min_size=1, max_size=_MOST))
async def test_records_metrics_and_usage_agree_to_the_last_nano_dollar(
    gateway: StartGateway, plans: list[Plan]
) -> None:
    async with FaultServer(_vendor) as upstream:
        up = await _up(gateway, upstream)
        tenants = ("t1", "t1", "t2")
        secrets = [(await up.gateway.accounts.create(f"k{n}", tenant=tenant))[1] for n, tenant in enumerate(tenants)]
        asked = await asyncio.gather(*[_ask(up, plan, secrets[plan.key], number) for number, plan in enumerate(plans)])
        await _settled(up)
        await _totals(up)
        rows = await up.gateway.accounts.tables.fetch(
            "SELECT id, outcome, input_tokens, output_tokens, cache_read_tokens, estimated, cost FROM account_requests"
        )
        found = {row[0]: row[1:] for row in rows}
        for plan, ids in zip(plans, asked, strict=True):
            if plan.kind == "bad body":
                continue  # what asks nothing of a model is no request of one
            first, *again = [found.pop(one) for one in ids]
            _check_first(plan, first)
            for record in again:
                _check_again(first, record)
        assert found == {}


def _check_first(plan: Plan, record: tuple[Any, ...]) -> None:
    outcome, read, wrote, cached, estimated, cost = record
    if plan.kind in ("unknown", "down"):
        assert outcome in ("error", "refused") and (read, wrote) == (0, 0) and not cost
    elif plan.kind == "gone" and plan.stream:
        assert outcome == "client_gone" and estimated and wrote > 0
    elif plan.kind == "cut" and plan.stream:
        assert outcome in ("interrupted", "error") and estimated
    elif plan.kind == "no usage":
        assert outcome == "ok" and estimated and wrote > 0
    else:
        # As the vendor said, once, wherever in the stream and however often it said so.
        assert (outcome, read, wrote, cached, estimated) == ("ok", plan.read, plan.wrote, plan.cached, 0)
        assert cost == plan.cost


def _check_again(first: tuple[Any, ...], record: tuple[Any, ...]) -> None:
    if first[0] == "ok":
        # From the cache: it is told what the answer used once, and costs nothing.
        assert record[0] == "cached" and record[-1] == 0
        assert record[1:4] == first[1:4]
    else:
        assert record[0] == first[0]


async def test_the_command_line_says_the_same(gateway: StartGateway) -> None:
    async with FaultServer(_vendor) as upstream:
        up = await _up(gateway, upstream)
        _, secret = await up.gateway.accounts.create("ann", tenant="t1")
        kinds = ("ok", "fallback", "no usage", "down", "usage twice")
        for number, kind in enumerate(kinds):
            await _ask(up, Plan(kind, 0, "chat", number % 2 == 0, 1000 + number, 3, 17, True), secret, number)
        totals = await _totals(up)
        environ = {**os.environ, "WINDLASS_HOME": str(up.home)}
        for by in ("key", "tenant", "model", "day"):
            command = [sys.executable, "-m", "windlass", "keys", "usage", "--json", "--by", by]
            done = await asyncio.to_thread(subprocess.run, command, env=environ, capture_output=True, text=True)
            rows = [UsageRow(**json.loads(line)) for line in done.stdout.splitlines()]
            assert {name: sum([getattr(row, name) for row in rows]) for name in totals} == totals, done.stderr


# ---------------------------------------------------------------------------------------------------------- R21 and R30


async def _one(up: InProcess) -> tuple[Any, ...]:
    await _settled(up)
    await up.gateway.accounts.flush()
    rows = await up.gateway.accounts.tables.fetch(
        "SELECT outcome, input_tokens, output_tokens, estimated, status FROM account_requests"
    )
    (row,) = rows
    return row


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("ok", ("ok", 70, 20, 0, 200)),
        ("early usage", ("ok", 70, 20, 0, 200)),
        ("usage twice", ("ok", 70, 20, 0, 200)),
        ("no usage", None),
    ],
)
@pytest.mark.parametrize("dialect", ["chat", "anthropic"])
async def test_r21_usage_missing_duplicated_or_late(
    gateway: StartGateway, kind: str, expected: tuple[Any, ...] | None, dialect: str
) -> None:
    async with FaultServer(_vendor) as upstream:
        up = await _up(gateway, upstream)
        await _ask(up, Plan(kind, 0, dialect, True, 70, 0, 20, False), "", 1)
        record = await _one(up)
        if expected is None:
            assert record[0] == "ok" and record[3] == 1 and record[1] > 0 and record[2] > 0
        else:
            assert record == expected


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize("dialect", ["chat", "anthropic"])
async def test_r30_a_client_that_leaves_cancels_upstream_within_a_second(
    gateway: StartGateway, dialect: str, stream: bool
) -> None:
    begun = sse(_row({"role": "assistant", "content": "hel"})) if stream else [b'{"id":']
    kind = "text/event-stream" if stream else "application/json"
    step = Stream([*begun, asyncio.Event()], headers={"content-type": kind})
    async with FaultServer([step]) as upstream:
        up = await _up(gateway, upstream)
        path = "/v1/chat/completions" if dialect == "chat" else "/v1/messages"
        body = {"model": "one0", "messages": [{"role": "user", "content": "hi"}], "stream": stream, "max_tokens": 9}
        reader, writer = await asyncio.open_connection("127.0.0.1", up.port)
        data = json.dumps(body).encode()
        lines = [
            f"POST {path} HTTP/1.1",
            "host: 127.0.0.1",
            "content-type: application/json",
            f"content-length: {len(data)}",
        ]
        writer.write("\r\n".join([*lines, "", ""]).encode() + data)
        await upstream.wait(requests=1)
        if stream:
            assert b"200 OK" in await reader.readuntil(b"hel")
        writer.close()
        left = clock.monotonic()
        await upstream.wait(open=0)
        assert clock.monotonic() - left < 1.0
        outcome, read, wrote, estimated, _ = await _one(up)
        assert outcome == "client_gone" and estimated == 1 and read > 0
        assert wrote > 0 or not stream
        assert len(upstream.requests) == 1
