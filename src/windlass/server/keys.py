"""Keys and usage over HTTP, for administrators: those of the tenant "" manage all, others their own tenant's."""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from msgspec import Struct
from msgspec.structs import asdict

from windlass.accounts.book import GRACE
from windlass.accounts.keys import KeyInfo
from windlass.core.errors import ConfigError, RequestRefused
from windlass.core.json import dumps
from windlass.server.endpoints import Endpoint
from windlass.server.gateway import Gateway
from windlass.server.http import Call

__all__ = ["ENDPOINTS"]


class NewKey(Struct, forbid_unknown_fields=True):
    """The body of `POST /v1/keys`; money in nano-dollars, `expires` in UTC nanoseconds."""

    name: str
    tenant: str | None = None
    role: Literal["client", "admin"] = "client"
    models: tuple[str, ...] = ()
    rpm: int | None = None
    tpm: int | None = None
    budget: int | None = None
    token_budget: int | None = None
    period: Literal["total", "day", "month"] = "total"
    expires: int | None = None


class Rotation(Struct, forbid_unknown_fields=True):
    """The body of `POST /v1/keys/{key}/rotate`: seconds for which the old secret is still taken."""

    grace: float = GRACE


def _read(call: Call, kind: type[Any]) -> Any:
    try:
        return msgspec.json.decode(call.body or b"{}", type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RequestRefused(400, f"The body does not fit: {error}.", reason="invalid_body") from None


def _shown(key: KeyInfo) -> dict[str, Any]:
    data = asdict(key)
    data["id"] = data.pop("key_id")
    return data


def _mine(call: Call, key: KeyInfo) -> bool:
    return not call.identity.tenant or call.identity.tenant == key.tenant


async def _find(gateway: Gateway, call: Call) -> KeyInfo:
    """Return the key of the path. Raises RequestRefused 404 for an unknown one and for another tenant's alike."""
    for key in await gateway.accounts.list():
        if key.key_id == call.params["key"] and _mine(call, key):
            return key
    raise RequestRefused(404, "There is no such key.", reason="key_not_found", param="key")


def _answer(call: Call, data: Any, status: int = 200) -> None:
    call.respond(status, dumps(data), (("x-request-id", call.id), ("cache-control", "no-store")))


async def list_keys(gateway: Gateway, call: Call) -> None:
    """Answer `GET /v1/keys`: no secrets, they are not kept."""
    keys = [_shown(key) for key in await gateway.accounts.list() if _mine(call, key)]
    _answer(call, {"object": "list", "data": keys})


async def create_key(gateway: Gateway, call: Call) -> None:
    """Answer `POST /v1/keys`: the secret is in this answer and nowhere else."""
    asked = _read(call, NewKey)
    own = call.identity.tenant
    tenant = own if asked.tenant is None else asked.tenant
    if own and tenant != own:
        raise RequestRefused(403, "An administrator of a tenant makes keys of that tenant.", kind="permission_error",
                             reason="forbidden", param="tenant")  # fmt: skip
    given = {name: value for name, value in asdict(asked).items() if name not in ("name", "tenant")}
    try:
        key, secret = await gateway.accounts.create(asked.name, tenant=tenant, **given)
    except ConfigError as error:
        raise RequestRefused(400, str(error), reason="invalid_key") from None
    _answer(call, {**_shown(key), "secret": secret}, 201)


async def revoke_key(gateway: Gateway, call: Call) -> None:
    """Answer `DELETE /v1/keys/{key}`."""
    key = await _find(gateway, call)
    await gateway.accounts.revoke(key.key_id)
    _answer(call, {"id": key.key_id, "revoked": True})


async def rotate_key(gateway: Gateway, call: Call) -> None:
    """Answer `POST /v1/keys/{key}/rotate`."""
    key, asked = await _find(gateway, call), _read(call, Rotation)
    try:
        made, secret = await gateway.accounts.rotate(key.key_id, grace=asked.grace)
    except ConfigError as error:
        raise RequestRefused(400, str(error), reason="invalid_key") from None
    _answer(call, {**_shown(made), "secret": secret})


async def usage(gateway: Gateway, call: Call) -> None:
    """Answer `GET /v1/usage?by=key|tenant|model|day`: totals; cost in nano-dollars."""
    by = next((part[3:] for part in call.head.query.split("&") if part.startswith("by=")), "key")
    if by not in ("key", "tenant", "model", "day"):
        raise RequestRefused(400, "by must be key, tenant, model or day.", reason="invalid_by", param="by")
    rows = await gateway.accounts.usage(by, tenant=call.identity.tenant or None)  # pyright: ignore[reportArgumentType]
    _answer(call, {"object": "list", "by": by, "data": [asdict(row) for row in rows]})


ENDPOINTS = (
    Endpoint("GET", "/v1/keys", list_keys, "admin", summary="List keys."),
    Endpoint("POST", "/v1/keys", create_key, "admin", body=True, summary="Make a key."),
    Endpoint("DELETE", "/v1/keys/{key}", revoke_key, "admin", summary="Revoke a key."),
    Endpoint("POST", "/v1/keys/{key}/rotate", rotate_key, "admin", body=True, summary="Give a key a new secret."),
    Endpoint("GET", "/v1/usage", usage, "admin", summary="What was used, and what it cost."),
)
