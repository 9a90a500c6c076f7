"""Tenants apart: what one has is to another as if it were not there, and no limit is passed by asking at once."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.server.conftest import InProcess, StartGateway
from tests.server.edge import Answer, ask, request, wire
from windlass.server.start import ENDPOINTS
from windlass.server.stored import StoredResponses
from windlass.stores.tables import open_tables
from windlass.testing.faults import FaultServer, Received, Reply

#: Routes whose parameter is something that a tenant has, and those whose parameter is nobody's.
SCOPED = {"/v1/responses/{response}", "/v1/responses/{response}/input_items", "/v1/sessions/{session}",
          "/v1/keys/{key}", "/v1/keys/{key}/rotate",
          *[f"/windlass/v1/workspaces/{{workspace}}{what}" for what in (
              "", "/files/read", "/files/write", "/files/delete", "/files/stat", "/files/list", "/exec")]}  # fmt: skip
UNSCOPED = {
    "/v1/models/{model}", "/model/{model}/converse", "/model/{model}/converse-stream",
    "/v1beta/models/{model}:generateContent", "/v1beta/models/{model}:streamGenerateContent",
}  # fmt: skip
SECRET = "the-secret-of-a"
META = ["'", "''", "' OR '1'='1", "x' OR 1=1 --", "\"; DROP TABLE responses; --", "%", "_", "%%", "resp_%", "a\\", "?",
        "$1",
        ":x", "x'||'y", "$.a", "a\tb", "-1", "0", "NULL", "x" * 150, "ключ", "😀", ")", "*", "[a-z]*"]  # fmt: skip


def answers(received: Received) -> Reply:
    """Answer every chat with the same, 15 tokens read and 5 written."""
    if received.target != "/v1/chat/completions":
        return Reply(400, b'{"error":{"message":"no"}}', {"content-type": "application/json"})
    message = {"role": "assistant", "content": SECRET if SECRET.encode() in received.body else "hello"}
    made = {"id": "c", "object": "chat.completion", "created": 1, "model": "m",
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 15, "completion_tokens": 5, "total_tokens": 20}}  # fmt: skip
    return Reply(200, msgspec.json.encode(made), {"content-type": "application/json"})


async def start(gateway: StartGateway, upstream: FaultServer, **server: Any) -> InProcess:
    """Start a gateway before an upstream, with the route `fake`."""
    providers = {"up": {"base_url": f"{upstream.url}/v1", "api_key": "sk-up"}}
    return await gateway(providers=providers, routes={"fake": "up:fake"}, server=server)


async def key(made: InProcess, name: str, **given_: Any) -> dict[str, str]:
    """Make a key and return the headers that show it."""
    _, secret = await made.gateway.accounts.create(name, **given_)
    return {"x-api-key": secret}


async def post(made: InProcess, path: str, headers: dict[str, str], body: Any) -> Answer:
    """Post JSON."""
    return await ask(made.port, request("POST", path, headers, msgspec.json.encode(body)))


def chat(**more: Any) -> dict[str, Any]:
    """Return the body of a chat request."""
    return {"model": "fake", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 5, **more}


# --------------------------------------------------------------------------------------------------------------- S43


async def test_s43_what_another_tenant_has_is_as_if_it_were_not_there(gateway: StartGateway) -> None:
    assert {row.path for row in ENDPOINTS if "{" in row.path} == SCOPED | UNSCOPED
    async with FaultServer(answers) as upstream:
        made = await start(gateway, upstream, workspaces={"allow": ["memory"]})
        ann, bob = await key(made, "ann", tenant="a"), await key(made, "bob", tenant="b")
        spawned = await post(made, "/windlass/v1/workspaces", ann, {"kind": "memory"})
        workspace = str(msgspec.json.decode(spawned.body)["id"])
        made_by_ann = await post(made, "/v1/responses", ann, {"model": "fake", "input": SECRET})
        response = str(msgspec.json.decode(made_by_ann.body)["id"])
        assert (await post(made, "/v1/chat/completions", ann, chat(session_id="s-ann"))).status == 200
        rulers = {name: await key(made, f"boss-{name}", tenant=name, role="admin") for name in "ab"}
        (row,) = [row for row in await made.gateway.accounts.list() if row.name == "ann"]
        for endpoint in ENDPOINTS:
            if endpoint.path not in SCOPED:
                continue
            kinds = {"{response}": response, "{session}": "s-ann", "{key}": row.key_id, "{workspace}": workspace}
            (own,) = [name for part, name in kinds.items() if part in endpoint.path]
            unknown = own[:-1] + ("0" if own[-1] != "0" else "1")
            pairs = [(rulers["b"], rulers["a"])] if endpoint.access == "admin" else [(bob, ann), (rulers["b"], ann)]
            for other, _ in pairs:
                told: list[tuple[int, bytes, set[str]]] = []
                for name in (own, unknown):
                    path = endpoint.path[: endpoint.path.index("{")] + name + endpoint.path.partition("}")[2]
                    data = request(endpoint.method, path, other, b"{}" if endpoint.body else None)
                    answer = await ask(made.port, data)
                    told.append((answer.status, answer.body.replace(name.encode(), b"ID"), set(answer.headers)))
                assert told[0] == told[1] and told[0][0] == 404, (endpoint.path, told)
        for path in (f"/v1/responses/{response}", f"/v1/responses/{response}/input_items", "/v1/sessions/s-ann"):
            assert (await ask(made.port, request("GET", path, ann))).status == 200
        there = await post(made, f"/windlass/v1/workspaces/{workspace}/files/list", ann, {})
        assert there.status == 200 and msgspec.json.decode(there.body)["entries"] == []
        assert (await ask(made.port, request("GET", "/api/version", ann))).status == 200


async def test_s43_ids_in_bodies_and_queries_stay_with_their_tenant(gateway: StartGateway) -> None:
    async with FaultServer(answers) as upstream:
        made = await start(gateway, upstream)
        ann, bob = await key(made, "ann", tenant="a"), await key(made, "bob", tenant="b")
        boss = await key(made, "boss", tenant="b", role="admin")
        first = msgspec.json.decode((await post(made, "/v1/responses", ann, {"model": "fake", "input": SECRET})).body)
        session = chat(session_id="shared", messages=[{"role": "user", "content": SECRET}])
        assert (await post(made, "/v1/chat/completions", ann, session)).status == 200
        count = len(upstream.requests)
        for who in (bob, boss):
            references = [
                {"model": "fake", "input": "x", "previous_response_id": first["id"]},
                {"model": "fake", "input": [{"type": "item_reference", "id": first["output"][0]["id"]}]},
            ]
            for body in references:
                stranger = msgspec.json.encode(body).replace(b"resp_0", b"resp_z").replace(b"msg_", b"msg_z")
                answer, same = (
                    await post(made, "/v1/responses", who, body),
                    await ask(made.port, request("POST", "/v1/responses", who, stranger)),
                )
                assert answer.status == same.status == 404 and SECRET.encode() not in answer.body
            asked = await post(made, "/v1/chat/completions", who, chat(session_id="shared"))
            assert asked.status == 200 and SECRET.encode() not in asked.body
            asked = await post(made, "/v1/chat/completions", who, chat(session_id="shared", tenant_id="a"))
            assert asked.status == 403
            for method in ("GET", "DELETE"):
                data = request(method, "/v1/sessions/shared?tenant_id=a", who)
                assert (await ask(made.port, data)).status == 403
        assert all(SECRET.encode() not in received.body for received in upstream.requests[count:])
        for path in ("/v1/sessions", "/v1/sessions?tenant_id=a", "/v1/keys", "/v1/usage", "/v1/usage?by=tenant"):
            listed = await ask(made.port, request("GET", path, boss))
            assert SECRET.encode() not in listed.body and b"ann" not in listed.body
            assert (await ask(made.port, request("GET", path, bob))).status == 403
        told = msgspec.json.decode((await ask(made.port, request("GET", "/v1/sessions/shared", ann))).body)
        assert SECRET in str(told["messages"])


# ----------------------------------------------------------------------------------------------------- S45, S46, S53


async def test_s45_what_means_something_to_sql_means_nothing_in_an_id(gateway: StartGateway) -> None:
    async with FaultServer(answers) as upstream:
        made = await start(gateway, upstream)
        ann, boss = await key(made, "ann", tenant="a"), await key(made, "boss", role="admin")
        kept = msgspec.json.decode((await post(made, "/v1/responses", ann, {"model": "fake", "input": "x"})).body)["id"]
        assert (await post(made, "/v1/chat/completions", ann, chat(session_id="s1"))).status == 200
        for meta in META:
            name = quote(meta, safe="")
            for path in ("/v1/responses/{}", "/v1/responses/{}/input_items", "/v1/sessions/{}", "/v1/models/{}"):
                for method in ("GET", "DELETE") if path.count("/") == 3 and "models" not in path else ("GET",):
                    answer = await ask(made.port, request(method, path.format(name), ann))
                    assert answer.status in (400, 404), (path, meta, answer)
            answer = await ask(made.port, request("DELETE", f"/v1/keys/{name}", boss))
            assert answer.status in (400, 404)
            for query in (
                f"by={name}",
                f"tenant_id={name}",
                f"limit={name}",
                f"{name}=1",
                f"after={name}",
                f"order={name}",
            ):
                for path, who in (
                    ("/v1/usage", boss),
                    ("/v1/sessions", boss),
                    (f"/v1/responses/{kept}/input_items", ann),
                ):
                    answer = await ask(made.port, request("GET", f"{path}?{query}", who))
                    assert answer.status in (200, 400), (path, query, answer)
                    rows = msgspec.json.decode(answer.body).get("data", [])
                    assert not (path == "/v1/sessions" and rows and query.startswith("tenant_id=")), (query, rows)
            assert (await ask(made.port, request("GET", "/api/version", {"x-api-key": meta.encode().decode("latin-1")})
                              )).status in (400, 401)  # fmt: skip
            body = {"model": "fake", "input": "x", "previous_response_id": meta}
            assert (await post(made, "/v1/responses", ann, body)).status in (400, 404)
            assert (await post(made, "/v1/chat/completions", ann, chat(session_id=meta))).status in (200, 400)
        assert (await ask(made.port, request("GET", f"/v1/responses/{kept}", ann))).status == 200
        assert (await ask(made.port, request("GET", "/v1/sessions/s1", ann))).status == 200


names = st.text(max_size=12) | st.sampled_from(META)


@given(st.lists(st.tuples(names, names), min_size=1, max_size=6, unique=True), st.tuples(names, names))
@settings(max_examples=15, deadline=None)
def test_s45_a_row_is_found_by_exactly_its_tenant_and_id(tmp_path_factory: pytest.TempPathFactory, rows: Any, asked: Any
                                                         ) -> None:  # fmt: skip
    async def check(path: Path) -> None:
        tables = open_tables(f"sqlite:{path}")
        store = StoredResponses(tables)
        try:
            for at, (tenant, name) in enumerate(rows):
                made = {"id": name, "status": "completed", "output": [], "at": at}
                await store.keep(tenant, made, [], None, 60.0)
            for at, (tenant, name) in enumerate(rows):
                found = await store.get(tenant, name)
                assert found is not None and found.response["at"] == at
            assert (await store.get(*asked) is not None) is (asked in rows)
            assert await store.delete(*asked) is (asked in rows)
            for tenant, name in rows:
                assert (await store.get(tenant, name) is not None) is ((tenant, name) != asked)
        finally:
            await tables.close()

    asyncio.run(check(tmp_path_factory.mktemp("rows") / "rows.db"))


ODD: list[Any] = [
    "a\0b",
    "\x7f",
    "\u202e",
    "\ufeff",
    "x" * 1_000_000,
    2**63,
    -(2**63),
    2**64,
    1e308,
    -1,
    [],
    {},
    True,
    [[]],
]
RAW = [b'"\\ud800"', b'"\\udfff\\ud800"', b'"\\u0000"', b'"\xff"', b'"\xed\xa0\x80"', b"1e400", b"-1e400", b"9" * 5000,
       b"1" * 100_000, b"[" * 5000, b'{"a":' * 2000, b"NaN", b"Infinity", b"01", b'"']  # fmt: skip
FIELDS = {
    "/v1/chat/completions": ("model", "messages", "session_id", "tenant_id", "user", "stream", "max_tokens", "n",
                             "temperature", "prompt", "stop", "tools", "tool_choice", "metadata", "stream_options",
                             "loop_mode", "max_context_tokens", "response_format", "seed"),
    "/v1/responses": ("model", "input", "previous_response_id", "store", "metadata", "user", "instructions",
                      "max_output_tokens", "tools", "temperature"),
    "/v1/messages": ("model", "messages", "system", "max_tokens", "metadata", "stop_sequences", "tools", "stream"),
    "/v1/completions": ("model", "prompt", "max_tokens", "n", "echo", "stop", "suffix", "stream"),
    "/v1/embeddings": ("model", "input", "dimensions", "user", "encoding_format"),
    "/api/chat": ("model", "messages", "options", "stream", "keep_alive", "tools", "format"),
    "/api/generate": ("model", "prompt", "images", "system", "options", "stream", "context"),
    "/v1/keys": ("name", "tenant", "role", "models", "rpm", "tpm", "budget", "token_budget", "period", "expires"),
}  # fmt: skip


async def test_s46_odd_values_in_any_field_are_the_clients_error(gateway: StartGateway) -> None:
    async with FaultServer(answers) as upstream:
        made = await start(gateway, upstream)
        boss = await key(made, "boss", role="admin")
        base = {
            "/v1/responses": {"model": "fake", "input": "x"}, "/v1/completions": {"model": "fake", "prompt": "x"},
            "/v1/embeddings": {"model": "fake", "input": "x"}, "/api/generate": {"model": "fake", "prompt": "x"},
            "/v1/keys": {"name": "n"},
        }  # fmt: skip
        async with wire(made.port) as sent:
            for path, fields in FIELDS.items():
                for field in fields:
                    rest = {**base.get(path, chat(stream=False))}
                    rest.pop(field, None)
                    head = msgspec.json.encode(rest)[:-1] + (b',"' if rest else b'"') + field.encode() + b'":'
                    for value in [*[msgspec.json.encode(odd) for odd in ODD], *RAW]:
                        await sent.send(request("POST", path, boss, head + value + b"}"))
                        answer = await sent.answer()
                        assert answer.status < 500, (path, field, value[:40], answer)
        for path in ("/v1/responses/%00", "/v1/sessions/%00", "/v1/responses/%ed%a0%80", "/v1/keys/%00",
                     "/v1/sessions/" + "x" * 1500, "/v1/responses/" + "x" * 900, f"/v1/sessions?limit={2**63}",
                     "/v1/sessions?limit=1e400", "/v1/sessions?tenant_id=%00", "/v1/models?limit=-1"):  # fmt: skip
            for method in ("GET", "DELETE"):
                assert (await ask(made.port, request(method, path, boss))).status in (200, 400, 404, 405), path


def _files(home: Path) -> bytes:
    return b"".join([file.read_bytes() for file in sorted(home.rglob("*")) if file.is_file()])


async def test_s53_secrets_are_kept_as_digests_only(gateway: StartGateway) -> None:
    async with FaultServer(answers) as upstream:
        made = await gateway(
            providers={"up": {"base_url": f"{upstream.url}/v1", "api_key": "sk-canary-up"}}, routes={"fake": "up:fake"},
            environ={"LLM_ROUTER_API_KEY": "legacy-canary"},
        )  # fmt: skip
        secrets: list[str] = []
        for at in range(3):
            row, secret = await made.gateway.accounts.create(f"k{at}", tenant="a")
            _, again = await made.gateway.accounts.rotate(row.key_id)
            secrets += [secret, again]
        for secret in (*secrets, "legacy-canary"):
            assert (await post(made, "/v1/chat/completions", {"x-api-key": secret}, chat(session_id="s"))).status == 200
        await made.gateway.accounts.flush()
        with sqlite3.connect(made.home / "accounts.db") as database:
            dump = "\n".join(database.iterdump())
        database.close()
        kept = _files(made.home) + dump.encode()
        for secret in (*secrets, "legacy-canary", "sk-canary-up"):
            assert secret.encode() not in kept and secret[3:].encode() not in kept and secret[:12].encode() not in kept
        for path in made.home.iterdir():
            if path.name.startswith(("accounts", "admin")):
                assert path.stat().st_mode & 0o077 == 0, path


# ----------------------------------------------------------------------------------------------------- S56, S57, S58


async def test_s56_two_hundred_calls_at_once_do_not_pass_a_limit(gateway: StartGateway) -> None:
    async with FaultServer(answers) as upstream:
        made = await start(gateway, upstream)
        body = chat()
        size = len(request("POST", "/", {}, msgspec.json.encode(body)).partition(b"\r\n\r\n")[2])
        reserved = size // 4 + 5
        assert reserved >= 20  # what the upstream reports: nobody uses more than is reserved
        cases: list[tuple[dict[str, Any], int]] = [
            ({"token_budget": 30 * reserved}, 30 * reserved // 20),
            ({"rpm": 25}, 26),
        ]
        for at, (limits, most) in enumerate(cases):
            who = await key(made, f"k{at}", tenant=f"t{at}", **limits)
            before = len(upstream.requests)
            got = await asyncio.gather(*[post(made, "/v1/chat/completions", who, body) for _ in range(200)])
            statuses = [answer.status for answer in got]
            passed = statuses.count(200)
            assert 0 < passed <= most and passed + statuses.count(429) == 200
            assert len(upstream.requests) - before == passed
            refused = next(answer for answer in got if answer.status == 429)
            assert msgspec.json.decode(refused.body)["error"]["code"] in ("rate_limit_exceeded", "insufficient_quota")
        await made.gateway.accounts.flush()
        used = {row.name: row.input_tokens + row.output_tokens for row in await made.gateway.accounts.usage("tenant")}
        assert 0 < used["t0"] <= 30 * reserved


async def test_s57_an_idempotency_key_joins_no_two_requests(gateway: StartGateway) -> None:
    async with FaultServer(answers) as upstream:
        made = await start(gateway, upstream)
        ann, bob = await key(made, "ann", tenant="a"), await key(made, "bob", tenant="b")
        for who, body in (
            (ann, chat()),
            (bob, chat()),
            (ann, chat()),
            (ann, chat(user="x")),
            (bob, chat(session_id="s")),
        ):
            headers = {**who, "idempotency-key": "same", "x-idempotency-key": "same", "x-request-id": "same"}
            assert (await post(made, "/v1/chat/completions", headers, body)).status == 200
        assert len(upstream.requests) == 5
        assert not [name for received in upstream.requests for name in received.headers if "idempotency" in name]


async def test_s58_a_kept_answer_is_its_own_tenants(gateway: StartGateway) -> None:
    async with FaultServer(answers) as upstream:
        made = await start(gateway, upstream, cache_ttl=60.0)
        ann, amy, bob = [await key(made, name, tenant=name[0]) for name in ("ann", "amy", "bob")]
        body = chat(temperature=0, messages=[{"role": "user", "content": SECRET}])
        for who, count in ((ann, 1), (ann, 1), (amy, 1), (bob, 2), (bob, 2), (ann, 2)):
            for more in ({}, {"user": "a"}, {"metadata": {"tenant": "a"}}):
                answer = await post(made, "/v1/chat/completions", who, {**body, **more})
                assert answer.status == 200 and SECRET.encode() in answer.body
                assert made.gateway.cache is not None
                await made.gateway.cache.flush()
            assert len(upstream.requests) == count, who
