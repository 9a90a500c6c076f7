"""The routes of a remote store: whose rows they are, what is refused, and that nothing odd gets further."""

from __future__ import annotations

from base64 import b64encode
from typing import Any

import msgspec
import pytest

from tests.server.conftest import InProcess, StartGateway
from tests.server.edge import Answer, ask, request, wire
from windlass.server.store_routes import ENDPOINTS, MOST_TOKENS, came_before, recent_tokens

STORE = "/windlass/v1/store"
SECRET = "the-secret-of-a"


async def post(made: InProcess, what: str, who: dict[str, str], body: Any) -> Answer:
    data = body if isinstance(body, bytes) else msgspec.json.encode(body)
    return await ask(made.port, request("POST", f"{STORE}/{what}", who, data))


async def key(made: InProcess, tenant: str, role: Any = "client") -> dict[str, str]:
    return {"x-api-key": (await made.gateway.accounts.create(f"{tenant}-{role}", tenant=tenant, role=role))[1]}


def row(pos: int = 0, data: bytes = b"{}", **fields: Any) -> dict[str, Any]:
    made = {"pos": pos, "kind": "message.added", "run": 0, "time": 5, "data": b64encode(data).decode()}
    return {**made, **fields}


def code(answer: Answer) -> str:
    return msgspec.json.decode(answer.body)["error"]["code"]


async def test_s43_another_tenants_sessions_are_as_if_they_were_not_there(gateway: StartGateway) -> None:
    made = await gateway()
    ann, bob = await key(made, "a"), await key(made, "b")
    boss = {tenant: await key(made, tenant, "admin") for tenant in "ab"}
    kept = await post(made, "append", ann, {"session": "s", "expected_pos": 0, "rows": [row(0, SECRET.encode())]})
    assert kept.status == 200
    put = {"session": "s", "data": b64encode(SECRET.encode()).decode()}
    sha256 = msgspec.json.decode((await post(made, "blobs/put", ann, put)).body)["sha256"]
    for who in (bob, boss["b"]):
        asked: list[tuple[str, dict[str, Any]]] = [
            ("read", {"session": "s"}), ("delete", {"session": "s"}), ("blobs/get", {"session": "s", "sha256": sha256}),
            ("blobs/put", put), ("append", {"session": "s", "expected_pos": 1, "rows": [row(1)]}),
            ("append", {"session": "f", "expected_pos": 1, "rows": [
                row(1, msgspec.json.encode({"parent": "s", "pos": 1}), kind="session.forked")]}),
        ]  # fmt: skip
        for what, body in asked:
            theirs = await post(made, what, who, body)
            unknown = await post(made, what, who, msgspec.json.decode(
                msgspec.json.encode(body).replace(b'"session":"s"', b'"session":"z"')))  # fmt: skip
            assert theirs.status == unknown.status and SECRET.encode() not in theirs.body
            assert theirs.body.replace(b"'s'", b"ID") == unknown.body.replace(b"'z'", b"ID"), what
            # No field of a request names a tenant, and no header or query does.
            for field in ("tenant", "tenant_id"):
                assert (await post(made, what, who, {**body, field: "a"})).status == 400
        listed = await post(made, "list", boss["b"], {})
        assert msgspec.json.decode(listed.body)["sessions"] == []
    assert (await post(made, "list", ann, {})).status == 403
    listed = msgspec.json.decode((await post(made, "list", boss["a"], {})).body)["sessions"]
    assert [(info["id"], info["rows"]) for info in listed] == [("s", 1)]
    assert msgspec.json.decode((await post(made, "read", ann, {"session": "s"})).body)["rows"][0]["pos"] == 0
    data = request("POST", f"{STORE}/read?tenant_id=a&tenant=a", {**bob, "x-tenant-id": "a"}, b'{"session":"s"}')
    assert msgspec.json.decode((await ask(made.port, data)).body)["rows"] == []


async def test_s48_without_a_key_nothing_is_told_once_there_is_one(gateway: StartGateway) -> None:
    made = await gateway()
    await made.gateway.accounts.create("k", tenant="a")
    for endpoint in ENDPOINTS:
        for who in ({}, {"x-api-key": "wl-wrong"}):
            answer = await ask(made.port, request("POST", endpoint.path, who, b'{"session":"s"}'))
            assert answer.status == 401, endpoint.path
        for method in ("GET", "PUT", "DELETE"):
            answer = await ask(made.port, request(method, endpoint.path, {}))
            assert answer.status == 405 and answer.headers["allow"] == "POST"
        page = request("POST", endpoint.path, {"origin": "https://evil.example"}, b"{}")
        assert (await ask(made.port, page)).status == 403


async def test_s44_a_revoked_key_is_none(gateway: StartGateway) -> None:
    made = await gateway()
    await made.gateway.accounts.create("other", tenant="z")
    row_, secret = await made.gateway.accounts.create("k", tenant="a")
    who = {"x-api-key": secret}
    assert (await post(made, "read", who, {"session": "s"})).status == 200
    await made.gateway.accounts.revoke(row_.key_id)
    assert (await post(made, "read", who, {"session": "s"})).status == 401


async def test_r47_an_append_at_a_wrong_place_is_a_conflict_and_one_that_came_twice_is_done_once(
    gateway: StartGateway,
) -> None:
    made = await gateway()
    first = {"session": "s", "expected_pos": 0, "rows": [row(0)], "token": "t1"}
    assert (await post(made, "append", {}, first)).status == 200
    # The very same request again: its client lost the answer. The same rows of somebody else: a conflict.
    assert (await post(made, "append", {}, first)).status == 200
    for other in ({**first, "token": "t2"}, {**first, "token": ""}, {**first, "token": "t1"}):
        answer = await post(made, "append", {}, other)
        assert answer.status == 409 and code(answer) == "store_conflict"
    different = {**first, "token": "t3", "rows": [row(0, b'{"x":1}')]}
    assert [(await post(made, "append", {}, different)).status for _ in range(2)] == [409, 409]
    assert (await post(made, "append", {}, {**first, "expected_pos": 5, "rows": [row(5)]})).status == 409
    assert len(msgspec.json.decode((await post(made, "read", {}, {"session": "s"})).body)["rows"]) == 1
    for at in range(MOST_TOKENS + 5):
        came_before(made.gateway, ("", f"x{at}"), "t")
    assert len(recent_tokens[made.gateway]) == MOST_TOKENS


async def test_a_session_that_a_request_works_on_is_not_deleted(gateway: StartGateway) -> None:
    made = await gateway()
    assert (await post(made, "append", {}, {"session": "s", "expected_pos": 0, "rows": [row(0)]})).status == 200
    turn = await made.gateway.sessions.enter("", "s", None)
    answer = await post(made, "delete", {}, {"session": "s"})
    assert answer.status == 409 and code(answer) == "session_busy"
    turn.leave()
    assert msgspec.json.decode((await post(made, "delete", {}, {"session": "s"})).body)["deleted"] is True
    assert msgspec.json.decode((await post(made, "delete", {}, {"session": "s"})).body)["deleted"] is False


ODD: list[Any] = [
    "a\0b", "\u202e", "x" * 1_000_000, 2**63, -(2**63), 2**64, 1e308, -1, [], {}, True, None, [[]], "../../etc/passwd",
    "'; DROP TABLE rows; --", "%", "",
]  # fmt: skip
RAW = [b'"\\ud800"', b'"\\u0000"', b'"\xff"', b"1e400", b"9" * 5000, b"[" * 5000, b"NaN", b'"', b'"\xee\x83\xb5xd800"',
       b'"\xee\x83\xb5i99999999999999999999999"']  # fmt: skip
BODIES: dict[str, dict[str, Any]] = {
    "append": {"session": "s", "expected_pos": 0, "rows": [row(0)], "token": "t"},
    "read": {"session": "s", "start": 0, "end": 5},
    "list": {"limit": 5},
    "delete": {"session": "s"},
    "blobs/put": {"session": "s", "data": "eA=="},
    "blobs/get": {"session": "s", "sha256": "0" * 64},
}


async def test_s45_s46_odd_values_in_any_field_are_refused_or_kept_and_never_a_failure(gateway: StartGateway) -> None:
    made = await gateway()
    boss = {"x-api-key": made.gateway.admin_token}
    assert {f"{STORE}/{what}" for what in BODIES} == {endpoint.path for endpoint in ENDPOINTS}
    values = [*[msgspec.json.encode(odd) for odd in ODD], *RAW]
    async with wire(made.port) as sent:
        for what, body in BODIES.items():
            for field in body:
                rest = {name: value for name, value in body.items() if name != field}
                head = msgspec.json.encode(rest)[:-1] + (b',"' if rest else b'"') + field.encode() + b'":'
                for value in values:
                    await sent.send(request("POST", f"{STORE}/{what}", boss, head + value + b"}"))
                    answer = await sent.answer()
                    assert answer.status in (200, 400, 404, 409), (what, field, value[:40], answer)
        for field in row():
            for value in values:
                one = msgspec.json.encode({k: v for k, v in row().items() if k != field})[:-1]
                data = b'{"session":"n","expected_pos":0,"rows":[' + one + b',"' + field.encode() + b'":' + value
                await sent.send(request("POST", f"{STORE}/append", boss, data + b"}]}"))
                answer = await sent.answer()
                assert answer.status in (200, 400, 409), (field, value[:40], answer)
        for whole in (b"", b"[]", b"null", b"{", b'{"a":1}', b"\xff"):
            for what in BODIES:
                await sent.send(request("POST", f"{STORE}/{what}", boss, whole))
                assert (await sent.answer()).status == 400, (what, whole)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"expected_pos": -1}, "expected_pos -1"),
        ({"expected_pos": 1}, "position 0, not 1"),
        ({"rows": [row(3)]}, "position 3"),
        ({"rows": [{**row(0), "data": "no base64!"}]}, "base64"),
        ({"rows": [row(0, b"{}", kind="session.forked")]}, "needs a parent"),
        ({"rows": [{**row(0), "more": 1}]}, "unknown field"),
        ({"session": "x" * 9000}, "8192 bytes"),
    ],
)
async def test_what_is_wrong_with_a_body_is_said(gateway: StartGateway, fields: dict[str, Any], says: str) -> None:
    made = await gateway()
    body = {"session": "s", "expected_pos": 0, "rows": [row(0)], **fields}
    answer = await post(made, "append", {}, body)
    assert answer.status == 400 and says in msgspec.json.decode(answer.body)["error"]["message"], answer
    assert msgspec.json.decode((await post(made, "read", {}, {"session": "s"})).body)["rows"] == []
