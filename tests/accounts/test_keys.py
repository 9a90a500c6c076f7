"""Who a secret stands for: keys that are made, rotated, revoked, expired; and what is kept of them."""

from __future__ import annotations

import hashlib
import hmac
import logging
import string
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.accounts.helpers import Opened, make_flaky
from windlass.accounts import keys
from windlass.accounts.book import Accounts
from windlass.accounts.keys import KeyInfo, KeyRing, Limits, digest_of
from windlass.core import clock
from windlass.core.errors import ConfigError, UnknownNameError
from windlass.testing.clock import FakeClock

HOUR = 3600.0
NASTY = ["'; DROP TABLE account_keys; --", "a' OR '1'='1", 'x"; --', "%", "_", "tenant = ?", "${jndi}", "é🔑"]


def ring_of(*held: str) -> KeyRing:
    """A ring in memory with a key for each secret, named by its place."""
    ring = KeyRing()
    rows = [(f"k{n}", f"{n}", "", "client", "[]", *[None] * 4, "total", None, s[:8], 0, None, None)
            for n, s in enumerate(held)]  # fmt: skip
    ring.take(rows, [(digest_of(secret), f"k{n}", None) for n, secret in enumerate(held)], [])
    return ring


async def test_a_key_is_known_by_its_secret(opened: Opened) -> None:
    accounts = await opened()
    key, secret = await accounts.create(
        "ci", tenant="acme", role="admin", models=["gpt-*"], rpm=5, tpm=6, budget=7, token_budget=8, period="month"
    )
    assert secret.startswith("wl-") and len(secret) == 3 + 43 and key.prefix == secret[:8]
    assert accounts.identify(secret) == key
    assert (key.name, key.tenant, key.role, key.models) == ("ci", "acme", "admin", ("gpt-*",))
    assert (key.rpm, key.tpm, key.budget, key.token_budget, key.period) == (5, 6, 7, 8, "month")
    other = await opened()
    assert other.identify(secret) == key
    assert await other.list(tenant="acme") == [key] and await other.list(tenant="") == []


# -- S41: secrets that look alike --------------------------------------------------------------------------------------

_TEXT = st.text(min_size=0, max_size=60)
_SECRET = st.text(string.ascii_letters + string.digits + "-_", min_size=43, max_size=43).map(lambda tail: "wl-" + tail)


@given(_SECRET, _SECRET, _TEXT)
@example("wl-" + "a" * 43, "wl-" + "a" * 42 + "b", "")
@settings(max_examples=60, deadline=None)
def test_s41_distinct_secrets_are_distinct_identities(one: str, two: str, noise: str) -> None:
    held = [one] if one == two else [one, two]
    ring = ring_of(*held)
    for number, secret in enumerate(held):
        assert getattr(ring.identify(secret), "key_id", None) == f"k{number}"
    variants = {
        one[:-1], one[:8], one[3:], one + "=", one + "\0", f" {one}", f"{one} ", f"{one}\n", one + noise, noise + one,
        one.upper(), one.replace("a", "а"), one.replace("-", "‐"), f"{one}\ud800", f"Bearer {one}", one * 2, noise, "",
    }  # fmt: skip
    for variant in variants - set(held):
        assert ring.identify(variant) is None and ring.refusal(variant) is None


def test_s41_secrets_that_share_all_but_their_end_are_two() -> None:
    shared = "wl-" + "k" * 42
    ring = ring_of(shared + "1", shared + "2")
    assert [getattr(ring.identify(shared + end), "key_id", None) for end in "123"] == ["k0", "k1", None]
    # Composed and decomposed letters look the same and are two secrets.
    ring = ring_of("caf\u00e9", "cafe\u0301")
    assert [getattr(ring.identify(text), "key_id", None) for text in ("caf\u00e9", "cafe\u0301")] == ["k0", "k1"]


def test_s41_a_secret_of_a_megabyte_is_refused_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    ring = ring_of("wl-" + "k" * 43)
    hashed: list[int] = []
    real = keys.digest_of

    def counted(secret: str) -> bytes:
        hashed.append(len(secret))
        return real(secret)

    monkeypatch.setattr(keys, "digest_of", counted)
    assert ring.identify("wl-" + "k" * (1 << 20)) is None
    assert ring.identify("x" * keys.MAX_SECRET) is None
    assert hashed == [keys.MAX_SECRET]
    with pytest.raises(ConfigError, match="LLM_ROUTER_API_KEY"):
        KeyRing("x" * (keys.MAX_SECRET + 1))


def test_s52_every_lookup_is_by_whole_digest_and_compares_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    ring = ring_of("wl-" + "k" * 43)
    compared: list[tuple[int, int]] = []
    real = hmac.compare_digest

    def counted(one: bytes, two: bytes) -> bool:
        compared.append((len(one), len(two)))
        return real(one, two)

    monkeypatch.setattr(keys.hmac, "compare_digest", counted)
    for secret in ("wl-" + "k" * 43, "wl-" + "k" * 42, "", "nobody", "wl-kkkkk"):
        ring.identify(secret)
    assert compared == [(32, 32)] * 5
    assert all(len(digest) == 32 for digest in vars(ring)["_secrets"])


# -- S53, S54: what is kept, and what is shown -------------------------------------------------------------------------


async def test_s53_no_secret_is_in_the_database(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    path = tmp_path / "keys.db"
    accounts = await Accounts.open(f"sqlite:{path}", legacy_key="legacy-canary-77")
    key, first = await accounts.create("ci")
    again, second = await accounts.rotate(key.key_id)
    _, third = await accounts.create("gone")
    await accounts.revoke((await accounts.list())[1].key_id)
    files = sorted(tmp_path.iterdir())
    open_bytes = b"".join([file.read_bytes() for file in files])
    shown = repr([accounts.identify(second), again, await accounts.list(), accounts]) + caplog.text
    await accounts.close()
    everything = open_bytes + b"".join([file.read_bytes() for file in sorted(tmp_path.iterdir())])
    assert len(files) >= 2  # the log of the open database as well
    for secret in (first, second, third, "legacy-canary-77"):
        assert secret.encode() not in everything and secret[8:].encode() not in everything
        assert secret not in shown and secret[8:] not in shown
    # What is kept instead is there, so the search can find things.
    assert hashlib.sha256(second.encode()).digest() in everything and again.prefix.encode() in everything
    assert all(file.stat().st_mode & 0o077 == 0 for file in tmp_path.iterdir())


async def test_s45_names_are_only_names(opened: Opened) -> None:
    accounts = await opened()
    made = [await accounts.create(text, tenant=text, models=[text]) for text in NASTY]
    assert [key.name for key in await accounts.list()] == NASTY
    for text, (key, secret) in zip(NASTY, made, strict=True):
        assert accounts.identify(secret) == key
        assert [found.key_id for found in await accounts.list(tenant=text)] == [key.key_id]
        assert accounts.identify(text) is None
        await accounts.set_tenant_limits(text, Limits(rpm=3))
        for act in (accounts.revoke, accounts.rotate):
            with pytest.raises(UnknownNameError):
                await act(text)
    assert sorted(accounts.tenants) == sorted(NASTY)
    assert len(await accounts.list()) == len(NASTY)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"name": ""}, "name"), ({"name": "a\nb"}, "name"), ({"name": "x" * 129}, "name"), ({"name": "a\0"}, "name"),
        ({"name": "\ud800"}, "name"), ({"tenant": "a\x1b[2J"}, "tenant"), ({"role": "root"}, "role"),
        ({"models": [""]}, "pattern"), ({"rpm": 0}, "rpm"), ({"rpm": 1 << 63}, "rpm"), ({"tpm": -1}, "tpm"),
        ({"budget": 10**19}, "budget"), ({"token_budget": True}, "token_budget"), ({"period": "week"}, "period"),
        ({"expires": 1}, "expired already"), ({"expires": 1 << 63}, "expired already"),
    ],
)  # fmt: skip
async def test_s46_what_cannot_be_a_key_is_refused(opened: Opened, options: dict[str, object], says: str) -> None:
    accounts = await opened()
    with pytest.raises(ConfigError, match=says):
        await accounts.create(**{"name": "ok", **options})  # pyright: ignore[reportArgumentType]
    assert await accounts.list() == [] and not accounts.required


# -- time --------------------------------------------------------------------------------------------------------------


async def test_an_expired_key_is_nobody_and_its_holder_is_told(opened: Opened, fake: FakeClock) -> None:
    accounts = await opened()
    _, secret = await accounts.create("brief", expires=clock.now_ns() + 1_000_000_000)
    fake.jump(0.999_999)
    assert accounts.identify(secret) is not None and accounts.refusal(secret) is None
    fake.jump(0.000_001)
    assert accounts.identify(secret) is None and accounts.refusal(secret) == "expired"
    # Only who shows the whole secret learns of it.
    assert accounts.refusal(secret[:-1]) is None and accounts.refusal("wl-") is None


async def test_rotation_keeps_the_key_and_for_a_while_the_old_secret(opened: Opened, fake: FakeClock) -> None:
    accounts = await opened()
    key, first = await accounts.create("ci", budget=500, rpm=3)
    fake.jump(1)
    rotated, second = await accounts.rotate(key.key_id)
    assert rotated.prefix == second[:8] and rotated.grace_until == clock.now_ns() + int(24 * HOUR * 1e9)
    for secret in (first, second):
        found = accounts.identify(secret)
        assert found is not None and (found.key_id, found.budget, found.rpm) == (key.key_id, 500, 3)
    # Who remembers an identity is told how long that may be.
    assert [found.expires for secret in (first, second) if (found := accounts.identify(secret))] == [
        rotated.grace_until, None,
    ]  # fmt: skip
    fake.jump(24 * HOUR - 0.001)
    assert accounts.identify(first) is not None
    fake.jump(0.001)
    assert accounts.identify(first) is None and accounts.refusal(first) == "replaced"
    assert accounts.identify(second) is not None


async def test_rotation_with_grace_of_zero_and_twice_in_a_row(opened: Opened, fake: FakeClock) -> None:
    accounts, other = await opened(), await opened()
    key, first = await accounts.create("ci")
    _, second = await accounts.rotate(key.key_id, grace=HOUR)
    _, third = await accounts.rotate(key.key_id, grace=0)
    await other.refresh()
    for each in (accounts, other):
        # A shorter grace shortens the one before; a longer one would not lengthen it.
        assert [each.refusal(secret) for secret in (first, second, third)] == ["replaced", "replaced", None]
    _, fourth = await accounts.rotate(key.key_id, grace=5)
    _, fifth = await accounts.rotate(key.key_id, grace=HOUR)
    assert [accounts.refusal(secret) for secret in (third, fourth, fifth)] == [None] * 3
    fake.jump(6)
    assert [accounts.refusal(secret) for secret in (third, fourth, fifth)] == ["replaced", None, None]
    assert len(await accounts.list()) == 1
    for grace in (-1.0, float("nan"), 1e12):
        with pytest.raises(ConfigError, match="grace"):
            await accounts.rotate(key.key_id, grace=grace)


# -- revocation, also by others ----------------------------------------------------------------------------------------


async def test_s44_a_revocation_elsewhere_is_seen_and_told_once(opened: Opened) -> None:
    gateway, admin = await opened(), await opened()
    told: list[str] = []
    late: list[str] = []
    gateway.on_revoked(told.append)

    def failing(key_id: str) -> None:
        raise RuntimeError(key_id)

    gateway.on_revoked(failing)
    forget = gateway.on_revoked(late.append)
    key, secret = await admin.create("ci")
    _, kept = await admin.create("kept")
    async with clock.deadline(1.0):  # the promise itself
        while gateway.identify(secret) is None:
            await clock.sleep(0.02)
    forget()
    assert await admin.revoke(key.key_id) and not await admin.revoke(key.key_id)
    async with clock.deadline(1.0):
        while not told:
            await clock.sleep(0.02)
    await admin.create("another change")
    await gateway.refresh()
    assert told == [key.key_id] and late == []
    assert gateway.identify(secret) is None and gateway.refusal(secret) == "revoked"
    assert gateway.identify(kept) is not None
    with pytest.raises(ConfigError, match="revoked"):
        await gateway.rotate(key.key_id)


async def test_who_must_show_a_key(opened: Opened) -> None:
    accounts = await opened()
    assert not accounts.required
    key, _ = await accounts.create("only")
    assert accounts.required
    await accounts.revoke(key.key_id)
    # The door that was locked does not open because the last key was taken away.
    assert accounts.required and (await opened()).required


async def test_the_legacy_key_is_an_administrator_and_kept_nowhere(opened: Opened) -> None:
    accounts = await opened(legacy_key="hunter2")
    who = accounts.identify("hunter2")
    assert who is not None and not isinstance(who, KeyInfo)
    assert (who.name, who.tenant, who.role, who.key_id) == ("legacy", "", "admin", "legacy")
    assert accounts.required and accounts.identify("hunter") is None and accounts.identify("hunter2 ") is None
    assert await accounts.list() == []
    plain = await opened()
    assert plain.identify("hunter2") is None and plain.identify("") is None and not plain.required


def test_models_are_patterns_of_whole_names() -> None:
    def allows(patterns: tuple[str, ...], route: str) -> bool:
        return keys.Identity("k", models=patterns).allows(route)

    assert allows((), "anything") and allows(("*",), "")
    assert allows(("gpt-*", "claude"), "gpt-4.1-mini") and allows(("openrouter:*",), "openrouter:a/b:free")
    assert not allows(("gpt-*",), "my-gpt-4") and not allows(("claude",), "claude-2") and not allows(("GPT*",), "gpt-4")
    assert allows(("llama-[34]*",), "llama-3.3") and not allows(("llama-[34]*",), "llama-2")
    # A pattern that would take a backtracking matcher for ever.
    assert not allows(("*a*a*a*a*a*a*a*a*a*a*a*a*b",), "a" * 4000)


async def test_of_a_change_only_what_is_new_is_read(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    admin = await opened()
    for number in range(3):
        await admin.create(f"k{number}")
    (flaky := make_flaky(monkeypatch)).clear()
    gateway = await opened()
    rows = flaky[0].rows
    assert rows == 1 + 3 + 3  # the version, the keys, their secrets
    await gateway.refresh()
    assert flaky[0].rows == rows + 1
    key, _ = await admin.create("new")
    await gateway.refresh()
    assert flaky[0].rows == rows + 2 + 2
    assert key.key_id in {each.key_id for each in await gateway.list()}
