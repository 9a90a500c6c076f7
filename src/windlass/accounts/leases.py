"""What the limits hold in the database: meters, and what each gateway has leased of them.

A meter is one limit of one key or tenant: `owner` ("key:ID", "tenant:NAME"), `kind` and the start of its period. A
gateway is one opened `Accounts`. All of this runs inside a transaction, in a thread.

- **Budgets.** `used` is what was spent and what is leased out: `used + n <= limit` is checked by the one UPDATE that
  raises it. `account_leases` says how much of it each gateway has not handed out yet, so that this can be given back
  when the gateway is gone.
- **Rates.** A bucket that holds one minute's worth and fills evenly (GCRA): `used` is the time, in UTC ns, at which it
  is full again; taking n moves that on by n intervals, and it may lie one minute ahead at most. What a gateway that
  died had leased fills up again by itself.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from msgspec import Struct

from windlass.stores.tables import Cursor

__all__ = ["MINUTE", "SKEW", "Grant", "Op", "apply", "interval_of", "leave", "reclaim"]

#: Nanoseconds.
MINUTE = 60_000_000_000
#: A gateway counts as dead so long after its leases ended: what the clocks of two machines may differ.
SKEW = 10_000_000_000
_READ = "SELECT used FROM account_meters WHERE owner = ? AND kind = ? AND start = ?"
_MAKE = "INSERT INTO account_meters VALUES (?, ?, ?, 0) ON CONFLICT (owner, kind, start) DO NOTHING"
_ADD = "UPDATE account_meters SET used = used + ? WHERE owner = ? AND kind = ? AND start = ?"
_ADD_WITHIN = _ADD + " AND used <= ?"
_FILL = (
    "UPDATE account_meters SET used = CASE WHEN used > ? THEN used ELSE ? END + ? "
    "WHERE owner = ? AND kind = ? AND start = ?"
)
_FILL_WITHIN = _FILL + " AND CASE WHEN used > ? THEN used ELSE ? END <= ?"
_LEASE = (
    "INSERT INTO account_leases VALUES (?, ?, ?, ?, ?) ON CONFLICT (gateway, owner, kind, start) "
    "DO UPDATE SET amount = account_leases.amount + excluded.amount"
)


class Op(Struct, frozen=True):
    """What one meter is asked for.

    `delta` is what was used beyond the lease, or (negative) is given back of it. `needs` are the calls that wait, each
    granted whole or not at all, in order; up to `desire` is leased beyond them. The lease changes by `release` (what is
    left of it, less what it was) plus what is leased.
    """

    owner: str
    kind: str
    start: int
    limit: int
    rate: bool = False
    delta: int = 0
    needs: tuple[int, ...] = ()
    desire: int = 0
    release: int = 0


class Grant(Struct, frozen=True, array_like=True):
    """Which needs were granted, what was leased beyond them, and the meter's `used` afterwards."""

    granted: tuple[bool, ...]
    extra: int
    used: int


_GRANTS = msgspec.json.Decoder(list[Grant])


def interval_of(limit: int) -> int:
    """Return the nanoseconds in which one unit of a rate fills up again, rounded up so that it is never faster."""
    return -(-MINUTE // limit)


def apply(gateway: str, seq: int, now: int, until: int, ops: Sequence[Op], cursor: Cursor) -> list[Grant] | None:
    """Carry out a gateway's operations and prolong its leases to `until`; returns None when they were taken from it.

    `seq` counts a gateway's calls from 1: one that is repeated because nobody knows whether it was committed changes
    nothing the second time and returns what it returned.
    """
    if seq == 1:
        cursor.execute(
            "INSERT INTO account_gateways VALUES (?, 0, ?, '') ON CONFLICT (id) DO NOTHING", (gateway, until)
        )
    sql = "UPDATE account_gateways SET seq = ?, until = ? WHERE id = ? AND seq = ?"
    if not cursor.execute(sql, (seq, until, gateway, seq - 1)):
        found = cursor.fetch("SELECT result FROM account_gateways WHERE id = ? AND seq = ?", (gateway, seq))
        return _GRANTS.decode(found[0][0]) if found else None
    outcomes = [_rate(op, now, cursor) if op.rate else _budget(op, gateway, now, cursor) for op in ops]
    cursor.execute("DELETE FROM account_leases WHERE gateway = ? AND amount = 0", (gateway,))
    result = msgspec.json.encode(outcomes).decode()
    cursor.execute("UPDATE account_gateways SET result = ? WHERE id = ?", (result, gateway))
    return outcomes


def leave(gateway: str, seq: int, now: int, ops: Sequence[Op], cursor: Cursor) -> bool:
    """Carry out a gateway's last operations and forget it; False when its leases were taken from it before."""
    if apply(gateway, seq, now, now, ops, cursor) is None:
        return False
    _forget(gateway, cursor)
    return True


def reclaim(now: int, cursor: Cursor) -> int:
    """Give back what gateways hold that have not been heard of for long enough; returns how many those were."""
    gone = cursor.fetch("SELECT id FROM account_gateways WHERE until < ? ORDER BY id", (now - SKEW,))
    for (gateway,) in gone:
        _forget(gateway, cursor)
    return len(gone)


def _forget(gateway: str, cursor: Cursor) -> None:
    sql = "SELECT owner, kind, start, amount FROM account_leases WHERE gateway = ? ORDER BY owner, kind, start"
    for *key, amount in cursor.fetch(sql, (gateway,)):
        cursor.execute(_ADD, (-amount, *key))
    cursor.execute("DELETE FROM account_leases WHERE gateway = ?", (gateway,))
    cursor.execute("DELETE FROM account_gateways WHERE id = ?", (gateway,))


def _used(key: tuple[str, str, int], cursor: Cursor) -> int:
    found = cursor.fetch(_READ, key)
    if found:
        return int(found[0][0])
    cursor.execute(_MAKE, key)
    return 0


def _choose(needs: Sequence[int], room: int) -> list[bool]:
    """Grant in order what fits: a small call is not kept waiting by a large one that does not."""
    out: list[bool] = []
    for need in needs:
        out.append(need <= room)
        room -= need if out[-1] else 0
    return out


def _budget(op: Op, gateway: str, now: int, cursor: Cursor) -> Grant:
    key = (op.owner, op.kind, op.start)
    used = _used(key, cursor) + op.delta
    if op.delta:
        cursor.execute(_ADD, (op.delta, *key))
    granted = _choose(op.needs, op.limit - used)
    if not all(granted) and reclaim(now, cursor):
        used = _used(key, cursor)
        granted = _choose(op.needs, op.limit - used)
    wanted = _granted(op, granted)
    # The nearer the end, the less is leased ahead: what lies unused here is missed elsewhere.
    extra = min(op.desire, (op.limit - used - wanted) // 4) if wanted else 0
    if wanted:
        if cursor.execute(_ADD_WITHIN, (wanted + extra, *key, op.limit - wanted - extra)):
            used += wanted + extra
        else:
            granted, extra = [False] * len(granted), 0
    if op.release + extra:
        cursor.execute(_LEASE, (gateway, *key, op.release + extra))
    return Grant(tuple(granted), extra, used)


def _rate(op: Op, now: int, cursor: Cursor) -> Grant:
    key, interval = (op.owner, op.kind, op.start), interval_of(op.limit)
    full_at = max(_used(key, cursor), now) + op.delta * interval
    if op.delta:
        cursor.execute(_FILL, (now, now, op.delta * interval, *key))
    # What was given back to a full bucket runs over.
    full_at = max(full_at, now)
    room = (now - full_at) // interval + op.limit
    granted = _choose(op.needs, room)
    wanted = _granted(op, granted)
    extra = min(op.desire, (room - wanted) // 4) if wanted else 0
    if wanted:
        ahead = (wanted + extra) * interval
        if cursor.execute(_FILL_WITHIN, (now, now, ahead, *key, now, now, now + op.limit * interval - ahead)):
            full_at += ahead
        else:
            granted, extra = [False] * len(granted), 0
    return Grant(tuple(granted), extra, full_at)


def _granted(op: Op, granted: Sequence[bool]) -> int:
    return sum([need for need, ok in zip(op.needs, granted, strict=True) if ok])
