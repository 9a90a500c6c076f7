"""Virtual keys: what a client shows, who it then is, and where that is kept.

A secret is `wl-` and 32 random bytes. It is shown once; kept is its SHA-256 digest, and its first eight characters for
people to tell keys apart. A key has one current secret and, for a while after a rotation, replaced ones.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Any, Literal

import msgspec
from msgspec import Struct

from windlass.core import clock
from windlass.core.errors import ConfigError, UnknownNameError
from windlass.stores.tables import Cursor

__all__ = [
    "ANONYMOUS",
    "CHANGED_KEYS",
    "CHANGED_SECRETS",
    "CHANGED_TENANTS",
    "MAX_LIMIT",
    "MAX_RATE",
    "MAX_SECRET",
    "Identity",
    "KeyInfo",
    "KeyRing",
    "Limits",
    "Period",
    "Role",
    "check_key",
    "check_limits",
    "check_tenant",
    "digest_of",
    "insert_key",
    "new_secret",
    "prefix_of",
    "put_tenant",
    "replace_secret",
    "revoke_key",
]

Role = Literal["client", "admin"]
Period = Literal["total", "day", "month"]
#: A longer secret is refused unread: no key of ours is, and hashing costs time.
MAX_SECRET = 4096
#: The largest limit of any kind: a thousand million dollars, in nano-dollars.
MAX_LIMIT = 10**18
#: The largest rate per minute: below it the spacing of requests is still whole nanoseconds.
MAX_RATE = 10**9
MAX_NAME = 128
_PREFIX = 8


class Limits(Struct, frozen=True):
    """What may be used: requests and tokens per minute, nano-dollars and tokens per `period` (UTC). None: no limit."""

    rpm: int | None = None
    tpm: int | None = None
    budget: int | None = None
    token_budget: int | None = None
    period: Period = "total"


class Identity(Struct, frozen=True):
    """Who asks: a key, of a tenant, and what it may do.

    `models` are glob patterns (`*`, `?`, `[...]`, matched whole and by case) of the route names it may ask for, () is
    all. The limits are those of the key alone, as in `Limits`; its tenant may have its own. `expires` is UTC ns.
    """

    key_id: str
    name: str = ""
    tenant: str = ""
    role: Role = "client"
    models: tuple[str, ...] = ()
    rpm: int | None = None
    tpm: int | None = None
    budget: int | None = None
    token_budget: int | None = None
    period: Period = "total"
    expires: int | None = None

    def allows(self, route: str) -> bool:
        """Tell whether this key may ask for a route, by the name the client uses."""
        return not self.models or any(fnmatchcase(route, pattern) for pattern in self.models)


#: Who everybody is while no key exists.
ANONYMOUS = Identity("", "anonymous")


class KeyInfo(Identity, frozen=True):
    """A key as it is kept; times are UTC ns. `grace_until` is until when the last replaced secret is still taken."""

    prefix: str = ""
    created: int = 0
    revoked: int | None = None
    grace_until: int | None = None


class _Secret(Struct, frozen=True):
    digest: bytes
    owner: Identity
    until: int | None = None


def digest_of(secret: str) -> bytes:
    """Return the 32 bytes under which a secret is known; different strings have different bytes."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()


def new_secret() -> str:
    """Return a new secret of 256 random bits."""
    return "wl-" + secrets.token_urlsafe(32)


_NOBODY = _Secret(bytes(32), ANONYMOUS, 0)


class KeyRing:
    """All keys in memory, found by the whole digest of a secret: no prefix, no database, no comparison of texts."""

    def __init__(self, legacy_key: str = "") -> None:
        if len(legacy_key) > MAX_SECRET:
            raise ConfigError(f"LLM_ROUTER_API_KEY is longer than {MAX_SECRET} characters.")
        #: Key id -> key, the revoked and the expired included.
        self.keys: dict[str, KeyInfo] = {}
        #: Tenant -> its limits.
        self.tenants: dict[str, Limits] = {}
        self._secrets: dict[bytes, _Secret] = {}
        self._legacy = bool(legacy_key)
        if legacy_key:
            made = _Secret(digest_of(legacy_key), Identity("legacy", "legacy", role="admin"))
            self._secrets[made.digest] = made

    @property
    def required(self) -> bool:
        """Whether a key must be shown: one was made (be it revoked since), or there is a legacy key."""
        return self._legacy or bool(self.keys)

    def identify(self, secret: str) -> Identity | None:
        """Return whose secret this is, None for nobody's and for one that counts no more.

        `expires` is when this secret ends: for a replaced one, the end of its grace at the latest.
        """
        found = self._find(secret)
        if found is None or self._why_not(found) is not None:
            return None
        owner = self._owner(found)
        if found.until is None or (owner.expires is not None and owner.expires <= found.until):
            return owner
        return msgspec.structs.replace(owner, expires=found.until)

    def refusal(self, secret: str) -> Literal["expired", "revoked", "replaced"] | None:
        """Return why a secret that is or was a key's counts no more; None for one that counts, and for nobody's."""
        found = self._find(secret)
        return None if found is None else self._why_not(found)

    def _find(self, secret: str) -> _Secret | None:
        if len(secret) > MAX_SECRET:
            return None
        digest = digest_of(secret)
        found = self._secrets.get(digest, _NOBODY)
        # The dictionary compared them already; this one takes the same time for a known and an unknown secret.
        return found if hmac.compare_digest(found.digest, digest) else None

    def _owner(self, secret: _Secret) -> Identity:
        return self.keys.get(secret.owner.key_id, secret.owner)

    def _why_not(self, secret: _Secret) -> Literal["expired", "revoked", "replaced"] | None:
        owner, now = self._owner(secret), clock.now_ns()
        if isinstance(owner, KeyInfo) and owner.revoked is not None:
            return "revoked"
        if owner.expires is not None and now >= owner.expires:
            return "expired"
        return "replaced" if secret.until is not None and now >= secret.until else None

    def take(
        self, keys: Iterable[Sequence[Any]], held: Iterable[Sequence[Any]], tenants: Iterable[Sequence[Any]]
    ) -> list[str]:
        """Take over changed rows; returns the ids of the keys that were revoked with this."""
        gone: list[str] = []
        for row in keys:
            key = _key(row)
            before = self.keys.get(key.key_id)
            if key.revoked is not None and before is not None and before.revoked is None:
                gone.append(key.key_id)
            self.keys[key.key_id] = key
        for digest, key_id, until in held:
            # A secret may be read before its key: both come again with the next version.
            if (owner := self.keys.get(key_id)) is not None:
                self._secrets[bytes(digest)] = _Secret(bytes(digest), owner, until)
        for name, rpm, tpm, budget, token_budget, period in tenants:
            self.tenants[name] = Limits(rpm, tpm, budget, token_budget, period)
        return gone


#: What `KeyRing.take` is given: the rows that changed after a version.
CHANGED_KEYS = (
    "SELECT id, name, tenant, role, models, rpm, tpm, budget, token_budget, period, expires, prefix, created, revoked, "
    "grace_until FROM account_keys WHERE changed > ?"
)
#: The secrets that changed after a version.
CHANGED_SECRETS = "SELECT digest, key_id, until FROM account_secrets WHERE changed > ?"
#: The tenants whose limits changed after a version.
CHANGED_TENANTS = "SELECT name, rpm, tpm, budget, token_budget, period FROM account_tenants WHERE changed > ?"


def _key(row: Sequence[Any]) -> KeyInfo:
    key_id, name, tenant, role, models, *rest = row
    return KeyInfo(key_id, name, tenant, role, tuple(msgspec.json.decode(models, type=list[str])), *rest)


# -- what an administrator says, checked -------------------------------------------------------------------------------


def check_limits(limits: Limits) -> Limits:
    """Return the limits as they are. Raises ConfigError for one that is no limit."""
    for name, most in (("rpm", MAX_RATE), ("tpm", MAX_RATE), ("budget", MAX_LIMIT), ("token_budget", MAX_LIMIT)):
        value = getattr(limits, name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= most):
            raise ConfigError(f"{name} is {value!r}; it must be a whole number from 1 to {most}.")
    if limits.period not in ("total", "day", "month"):
        raise ConfigError(f"period is {limits.period!r}.", hint="Use total, day or month.")
    return limits


def check_key(name: str, tenant: str, role: str, models: Sequence[str], expires: int | None) -> None:
    """Raise ConfigError for what cannot be a key: empty or unprintable names, an unknown role, a passed expiry."""
    if not name or not _is_plain(name):
        raise ConfigError(f"A key's name is 1 to {MAX_NAME} printable characters, not {name[:40]!r}.")
    check_tenant(tenant)
    if role not in ("client", "admin"):
        raise ConfigError(f"role is {role!r}.", hint="Use client or admin.")
    for pattern in models:
        if not pattern or not _is_plain(pattern):
            raise ConfigError(f"A model pattern is 1 to {MAX_NAME} printable characters, not {pattern[:40]!r}.")
    if expires is not None and not clock.now_ns() < expires < 1 << 63:
        raise ConfigError("The key would have expired already, or never.", hint="Give a time to come, before 2262.")


def check_tenant(name: str) -> None:
    """Raise ConfigError for a tenant's name that is too long or holds control characters."""
    if not _is_plain(name):
        raise ConfigError(f"A tenant's name is up to {MAX_NAME} printable characters, not {name[:40]!r}.")


def _is_plain(text: str) -> bool:
    # isprintable is False for control characters, lone surrogates and invisible ones alike.
    return len(text) <= MAX_NAME and text.isprintable()


# -- what runs inside a transaction, in a thread -----------------------------------------------------------------------


def _raise_version(cursor: Cursor) -> int:
    """Return the number of this change. Who comes first keeps others waiting until it is committed."""
    cursor.execute("UPDATE account_version SET version = version + 1 WHERE one = 1")
    return int(cursor.fetch("SELECT version FROM account_version WHERE one = 1")[0][0])


def insert_key(key: KeyInfo, digest: bytes, cursor: Cursor) -> None:
    """Keep a new key and its secret's digest; a repeated call changes nothing."""
    version = _raise_version(cursor)
    values = (
        key.key_id, key.name, key.tenant, key.role, msgspec.json.encode(key.models).decode(), key.rpm, key.tpm,
        key.budget, key.token_budget, key.period, key.expires, key.prefix, key.created, version,
    )  # fmt: skip
    cursor.execute(
        "INSERT INTO account_keys(id, name, tenant, role, models, rpm, tpm, budget, token_budget, period, expires, "
        "prefix, created, changed) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO NOTHING",
        values,
    )
    _insert_secret(digest, key.key_id, version, cursor)


def _insert_secret(digest: bytes, key_id: str, version: int, cursor: Cursor) -> None:
    cursor.execute(
        "INSERT INTO account_secrets(digest, key_id, changed) VALUES (?, ?, ?) ON CONFLICT (digest) DO NOTHING",
        (digest, key_id, version),
    )


def revoke_key(key_id: str, now: int, cursor: Cursor) -> bool:
    """Revoke a key for good; False when it was revoked before. Raises UnknownNameError."""
    _known(key_id, cursor)
    version = _raise_version(cursor)
    sql = "UPDATE account_keys SET revoked = ?, changed = ? WHERE id = ? AND revoked IS NULL"
    return cursor.execute(sql, (now, version, key_id)) > 0


def replace_secret(key_id: str, digest: bytes, prefix: str, now: int, until: int, cursor: Cursor) -> None:
    """Give a key a new secret; those it has are taken until `until` at most. Raises UnknownNameError, ConfigError."""
    if _known(key_id, cursor) is not None:
        raise ConfigError(f"The key {key_id} is revoked.", hint="Make a new one.")
    version = _raise_version(cursor)
    cursor.execute("DELETE FROM account_secrets WHERE key_id = ? AND until <= ?", (key_id, now))
    cursor.execute(
        "UPDATE account_secrets SET until = ?, changed = ? WHERE key_id = ? AND digest <> ? "
        "AND (until IS NULL OR until > ?)",
        (until, version, key_id, digest, until),
    )
    _insert_secret(digest, key_id, version, cursor)
    cursor.execute(
        "UPDATE account_keys SET prefix = ?, grace_until = ?, changed = ? WHERE id = ?",
        (prefix, until, version, key_id),
    )


def put_tenant(name: str, limits: Limits, cursor: Cursor) -> None:
    """Keep a tenant's limits in place of those it had."""
    version = _raise_version(cursor)
    values = (limits.rpm, limits.tpm, limits.budget, limits.token_budget, limits.period, version)
    cursor.execute(
        "INSERT INTO account_tenants(name, rpm, tpm, budget, token_budget, period, changed) "
        "VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (name) DO UPDATE SET rpm = excluded.rpm, tpm = excluded.tpm, "
        "budget = excluded.budget, token_budget = excluded.token_budget, period = excluded.period, "
        "changed = excluded.changed",
        (name, *values),
    )


def _known(key_id: str, cursor: Cursor) -> int | None:
    """Return when a key was revoked. Raises UnknownNameError."""
    found = cursor.fetch("SELECT revoked FROM account_keys WHERE id = ?", (key_id,))
    if not found:
        known = [row[0] for row in cursor.fetch("SELECT id FROM account_keys ORDER BY created DESC LIMIT 1000")]
        raise UnknownNameError("key", key_id, known)
    return found[0][0]


def prefix_of(secret: str) -> str:
    """Return the characters of a secret that are kept for people."""
    return secret[:_PREFIX]
