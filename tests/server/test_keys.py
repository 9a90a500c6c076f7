"""Keys over HTTP: administrators alone, each within its own tenant."""

from __future__ import annotations

from typing import Any

import httpx

from tests.server.conftest import InProcess, StartGateway


def _client(up: InProcess, secret: str = "") -> httpx.AsyncClient:
    headers = {"authorization": f"Bearer {secret}"} if secret else {}
    return httpx.AsyncClient(base_url=up.url, headers=headers)


async def _made(client: httpx.AsyncClient, **fields: Any) -> dict[str, Any]:
    answer = await client.post("/v1/keys", json=fields)
    assert answer.status_code == 201, answer.text
    return answer.json()


async def test_s49_key_routes_want_an_administrator(gateway: StartGateway) -> None:
    up = await gateway(routes={"fake": "echo:echo"})
    async with _client(up) as nobody, _client(up, up.gateway.admin_token) as admin:
        # No key exists yet: model routes are open on this machine, key routes are not.
        assert (await nobody.get("/v1/models")).status_code == 200
        assert (await nobody.get("/v1/keys")).status_code == 401
        key = await _made(admin, name="ann", rpm=5)
        async with _client(up, key["secret"]) as ann:
            assert (await ann.get("/v1/models")).status_code == 200
            assert (await ann.get("/v1/keys")).status_code == 403
            assert (await ann.post("/v1/keys", json={"name": "x"})).status_code == 403
        assert (await nobody.get("/v1/models")).status_code == 401
        listed = (await admin.get("/v1/keys")).json()["data"]
        assert [row["name"] for row in listed] == ["ann"] and key["secret"] not in str(listed)


async def test_a_key_is_rotated_and_revoked(gateway: StartGateway) -> None:
    up = await gateway(routes={"fake": "echo:echo"})
    async with _client(up, up.gateway.admin_token) as admin:
        key = await _made(admin, name="ann")
        new = (await admin.post(f"/v1/keys/{key['id']}/rotate", json={"grace": 0})).json()
        async with _client(up, key["secret"]) as old, _client(up, new["secret"]) as ann:
            assert (await old.get("/v1/models")).status_code == 401
            assert (await ann.get("/v1/models")).status_code == 200
            assert (await admin.delete(f"/v1/keys/{key['id']}")).json()["revoked"] is True
            assert (await ann.get("/v1/models")).status_code == 401
        assert (await admin.delete("/v1/keys/unknown")).status_code == 404


async def test_s43_an_administrator_of_a_tenant_sees_that_tenant(gateway: StartGateway) -> None:
    up = await gateway(routes={"fake": "echo:echo"})
    async with _client(up, up.gateway.admin_token) as root:
        mine = await _made(root, name="a", tenant="acme", role="admin")
        theirs = await _made(root, name="b", tenant="bolt")
        async with _client(up, mine["secret"]) as admin:
            assert [row["tenant"] for row in (await admin.get("/v1/keys")).json()["data"]] == ["acme"]
            foreign = await admin.delete(f"/v1/keys/{theirs['id']}")
            unknown = await admin.delete("/v1/keys/01unknown")
            assert (
                (foreign.status_code, foreign.json()) == (unknown.status_code, unknown.json()) == (404, foreign.json())
            )
            assert (await admin.post("/v1/keys", json={"name": "x", "tenant": "bolt"})).status_code == 403
            assert (await _made(admin, name="own"))["tenant"] == "acme"
            assert (await admin.get("/v1/usage?by=tenant")).status_code == 200


async def test_bad_bodies_are_sentences(gateway: StartGateway) -> None:
    up = await gateway()
    async with _client(up, up.gateway.admin_token) as admin:
        for body in (
            {},
            {"name": ""},
            {"name": "x", "rpm": -1},
            {"name": "x", "unknown": 1},
            {"name": "x", "rpm": "5"},
        ):
            answer = await admin.post("/v1/keys", json=body)
            assert answer.status_code == 400 and answer.json()["error"]["message"], body
        assert (await admin.get("/v1/usage?by=colour")).status_code == 400
