"""What every store's `blobs` must do: contents of files, kept with their session."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import pytest

from windlass.core import clock
from windlass.core.errors import SessionNotFound, StoreError
from windlass.core.json import dumps_stored
from windlass.core.ports import Blobs, Row, Store
from windlass.testing.store_kit import make_rows


def blobs_of(store: Store) -> Blobs:
    """Return a store's face for contents."""
    found: Any = getattr(store, "blobs", None)
    assert found is not None, f"{store!r} keeps no contents of files"
    return found


async def check_contents(factory: Callable[[], Store], tenants: tuple[str, str] | None = None) -> None:
    """Put, get, fork and delete contents. Raises AssertionError; `factory` may give the same rows each time."""
    store = factory()
    blobs = blobs_of(store)
    mine, other = tenants or (clock.new_id(), clock.new_id())
    a, b, big = b"", b"\x00\xff text", bytes(range(256)) * 300
    with pytest.raises(SessionNotFound):
        await blobs.put("s", a, tenant=mine)
    for tenant in (mine, other):
        await store.append("s", make_rows(3), 0, tenant=tenant)
        await store.append("t", make_rows(1), 0, tenant=tenant)
    keys = {data: await blobs.put("s", data, tenant=mine) for data in (a, b, big)}
    assert {data: hashlib.sha256(data).hexdigest() for data in keys} == keys
    assert await blobs.put("s", b, tenant=mine) == keys[b] == await blobs.put("t", b, tenant=mine)
    for data, key in keys.items():
        assert await blobs.get("s", key, tenant=mine) == data
        # Another session, another tenant and an unknown session do not have it.
        assert await blobs.get("t", key, tenant=mine) == (b if data == b else None)
        assert await blobs.get("s", key, tenant=other) is None
        assert await blobs.get("nobody", key, tenant=mine) is None
    for odd in ("", "x", "../s", keys[b][:-1], keys[b].upper(), "\ud800", "0" * 64, "'; --", "%"):
        assert await blobs.get("s", odd, tenant=mine) is None
    forked = Row(2, "session.forked", -1, 5, dumps_stored({"parent": "s", "pos": 2}))
    await store.append("f", [forked], 2, tenant=mine)
    assert await store.delete("s", tenant=mine)
    assert await blobs.get("s", keys[big], tenant=mine) is None
    for data, key in keys.items():
        assert await blobs.get("f", key, tenant=mine) == data
    assert await store.delete("f", tenant=mine)
    assert await blobs.get("t", keys[b], tenant=mine) == b and await blobs.get("t", keys[big], tenant=mine) is None
    # A session of the old name begins without.
    await store.append("s", make_rows(1), 0, tenant=mine)
    assert await blobs.get("s", keys[big], tenant=mine) is None
    await store.close()
    with pytest.raises(StoreError):
        await blobs.put("t", b, tenant=mine)
    with pytest.raises(StoreError):
        await blobs.get("t", keys[b], tenant=mine)
