"""The tables of this room, as the steps that make them.

`account_version` has one row: a counter that every change of a key or tenant raises, in the same transaction, and
stamps on the rows it wrote (`changed`). Who polls it fetches only what is new.
"""

from __future__ import annotations

__all__ = ["ROOM", "STEPS"]

ROOM = "accounts"
#: Steps are only ever added: those of a version that was given out never change.
STEPS = (
    "CREATE TABLE account_version(one INTEGER PRIMARY KEY, version INTEGER NOT NULL)",
    "INSERT INTO account_version VALUES (1, 0)",
    "CREATE TABLE account_keys(id TEXT PRIMARY KEY, name TEXT NOT NULL, tenant TEXT NOT NULL, role TEXT NOT NULL, "
    "models TEXT NOT NULL, rpm INTEGER, tpm INTEGER, budget INTEGER, token_budget INTEGER, period TEXT NOT NULL, "
    "expires INTEGER, prefix TEXT NOT NULL, created INTEGER NOT NULL, revoked INTEGER, grace_until INTEGER, "
    "changed INTEGER NOT NULL)",
    "CREATE TABLE account_secrets(digest BLOB PRIMARY KEY, key_id TEXT NOT NULL, until INTEGER, "
    "changed INTEGER NOT NULL)",
    "CREATE TABLE account_tenants(name TEXT PRIMARY KEY, rpm INTEGER, tpm INTEGER, budget INTEGER, "
    "token_budget INTEGER, period TEXT NOT NULL, changed INTEGER NOT NULL)",
    # Of a budget `used` is what was spent or is leased out; of a rate it is the time when the bucket is full again.
    "CREATE TABLE account_meters(owner TEXT NOT NULL, kind TEXT NOT NULL, start INTEGER NOT NULL, "
    "used INTEGER NOT NULL, PRIMARY KEY(owner, kind, start))",
    "CREATE TABLE account_gateways(id TEXT PRIMARY KEY, seq INTEGER NOT NULL, until INTEGER NOT NULL, "
    "result TEXT NOT NULL)",
    "CREATE TABLE account_leases(gateway TEXT NOT NULL, owner TEXT NOT NULL, kind TEXT NOT NULL, "
    "start INTEGER NOT NULL, amount INTEGER NOT NULL, PRIMARY KEY(gateway, owner, kind, start))",
    "CREATE TABLE account_requests(id TEXT PRIMARY KEY, time INTEGER NOT NULL, tenant TEXT NOT NULL, "
    "key_id TEXT NOT NULL, address TEXT NOT NULL, endpoint TEXT NOT NULL, route TEXT NOT NULL, target TEXT NOT NULL, "
    "attempts INTEGER NOT NULL, status INTEGER NOT NULL, outcome TEXT NOT NULL, error TEXT NOT NULL, "
    "stream INTEGER NOT NULL, session_id TEXT NOT NULL, input_tokens INTEGER NOT NULL, output_tokens INTEGER NOT NULL, "
    "cache_read_tokens INTEGER NOT NULL, cache_creation_tokens INTEGER NOT NULL, reasoning_tokens INTEGER NOT NULL, "
    "estimated INTEGER NOT NULL, cost INTEGER, duration_us INTEGER NOT NULL, first_token_us INTEGER, "
    "upstream_us INTEGER)",
    "CREATE INDEX account_requests_time ON account_requests(time)",
)
