"""`windlass keys`: make, list, revoke, rotate, and what was used."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.apps.helpers import Cli
from windlass.accounts.book import Accounts
from windlass.accounts.records import RequestRecord
from windlass.core import clock

SECOND = 10**9
DAY = 86_400 * SECOND


def url_of(cli: Cli) -> str:
    return f"sqlite:{cli.home / 'accounts.db'}"


async def listed(cli: Cli, *args: str) -> list[dict[str, Any]]:
    done = await cli("keys", "list", "--json", *args)
    assert (done.code, done.err) == (0, "")
    return [json.loads(line) for line in done.out.splitlines()]


async def test_a_secret_is_shown_once_and_alone(cli: Cli) -> None:
    done = await cli("keys", "create", "ci")
    secret = done.out.strip()
    assert done.code == 0 and done.out == f"{secret}\n" and secret.startswith("wl-") and len(secret) == 46
    (key,) = await listed(cli)
    assert done.err == (
        f"Made key {key['id']} (ci). Its secret is shown this once.\n"
        "This is the first key: from now on the gateway answers nobody without one.\n"
    )
    again = await cli("keys", "create", "more")
    assert "the first key" not in again.err
    accounts = await Accounts.open(url_of(cli))
    assert accounts.identify(secret) is not None
    await accounts.close()
    everything = b"".join([file.read_bytes() for file in cli.home.iterdir()])
    assert secret.encode() not in everything and key["prefix"].encode() in everything
    for args in (("keys", "list"), ("keys", "list", "--json"), ("keys", "usage")):
        assert secret not in (await cli(*args)).out


async def test_every_option_of_create(cli: Cli) -> None:
    before = clock.now_ns()
    done = await cli(
        "keys", "create", "all", "--tenant", "acme", "--role", "admin", "--model", "gpt-*", "--model", "fast",
        "--rpm", "60", "--tpm", "100000", "--budget", "5.00", "--token-budget", "1000000", "--period", "month",
        "--expires", "30d", "--json",
    )  # fmt: skip
    key = done.json()
    assert done.code == 0 and key.pop("secret").startswith(key["prefix"])
    (row,) = await listed(cli)
    assert row.pop("state") == "active" and row == key
    expected = {
        "name": "all", "tenant": "acme", "role": "admin", "models": ["gpt-*", "fast"], "rpm": 60, "tpm": 100_000,
        "budget": 5 * SECOND, "token_budget": 1_000_000, "period": "month", "revoked": None,
    }  # fmt: skip
    assert {name: key[name] for name in expected} == expected
    assert before + 30 * DAY <= key["expires"] <= clock.now_ns() + 30 * DAY
    shown = (await cli("keys", "list")).out
    assert shown.startswith(f"{key['id']}  {key['prefix']}…  ")
    assert "active    all tenant acme; admin; 60 requests/min; 100000 tokens/min; $5.0000 per month;" in shown
    assert shown.endswith("; model gpt-*; model fast\n")
    assert await listed(cli, "--tenant", "acme") == [{**row, "state": "active"}]
    assert await listed(cli, "--tenant", "other") == []


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("--budget", "five"), "no amount of dollars"), (("--budget", "0.0000000001"), "no amount of dollars"),
        (("--budget", "nan"), "no amount of dollars"), (("--budget", "-1"), "budget is -1000000000"),
        (("--budget", "1e40"), "budget is 1"), (("--rpm", "0"), "rpm is 0"), (("--rpm", "x"), "--rpm"),
        (("--expires", "soon"), "no time such as 30d"), (("--expires", "2020-01-01"), "expired already"),
        (("--expires", "9999-01-01"), "after 2262"), (("--expires", "0s"), "expired already"),
        (("--role", "root"), "--role"), (("--period", "week"), "--period"), (("--model", ""), "pattern"),
        (("--tenant", "a\nb"), "control characters"),
    ],
)  # fmt: skip
async def test_wrong_use_makes_no_key(cli: Cli, args: tuple[str, ...], says: str) -> None:
    done = await cli("keys", "create", "bad", *args)
    assert (done.code, done.out) == (2, "") and says in done.err and done.err.count("\n") == 1
    path = cli.home / "accounts.db"
    if path.exists():
        with closing(sqlite3.connect(path)) as conn:
            assert conn.execute("SELECT count(*) FROM account_keys").fetchone() == (0,)


async def test_money_is_exact(cli: Cli) -> None:
    for text, nano in (("0.10", 100_000_000), ("$12.345678901", 12_345_678_901), ("1e3", 1000 * SECOND)):
        await cli("keys", "create", text, "--budget", text)
        assert (await listed(cli))[-1]["budget"] == nano


async def test_s44_a_running_gateway_sees_what_the_command_line_does(cli: Cli) -> None:
    gateway = await Accounts.open(url_of(cli))
    told: list[str] = []
    gateway.on_revoked(told.append)
    secret = (await cli("keys", "create", "ci")).out.strip()
    async with clock.deadline(10):
        while (who := gateway.identify(secret)) is None:
            await clock.sleep(0.02)
    rotated = await cli("keys", "rotate", who.key_id, "--grace", "0s")
    new = rotated.out.strip()
    assert rotated.code == 0 and "The old one ends: now." in rotated.err
    async with clock.deadline(10):
        while gateway.identify(new) is None:
            await clock.sleep(0.02)
    assert gateway.refusal(secret) == "replaced"
    done = await cli("keys", "revoke", who.key_id)
    assert (done.code, done.out, done.err) == (0, "", f"Revoked {who.key_id}.\n")
    async with clock.deadline(10):
        while not told:
            await clock.sleep(0.02)
    assert told == [who.key_id] and gateway.identify(new) is None
    assert (await cli("keys", "revoke", who.key_id)).err == f"{who.key_id} was revoked before.\n"
    assert [row["state"] for row in await listed(cli)] == ["revoked"]
    refused = await cli("keys", "rotate", who.key_id)
    assert (refused.code, refused.out) == (2, "") and "is revoked. Make a new one." in refused.err
    await gateway.close()


async def test_an_unknown_key_suggests_the_nearest(cli: Cli) -> None:
    await cli("keys", "create", "ci")
    (key,) = await listed(cli)
    for verb in ("revoke", "rotate"):
        done = await cli("keys", verb, key["id"][:-1] + "-")
        assert (done.code, done.out) == (2, "")
        assert done.err.endswith(f"Did you mean {key['id']!r}?\n")
    assert (await cli("keys", "rotate", key["id"], "--grace", "soon")).code == 2


async def test_a_key_may_be_named_by_its_name(cli: Cli) -> None:
    await cli("keys", "create", "ci")
    await cli("keys", "create", "twin")
    await cli("keys", "create", "twin")
    assert (await cli("keys", "rotate", "ci")).code == 0
    assert (await cli("keys", "revoke", "ci")).err.startswith("Revoked 0")
    done = await cli("keys", "revoke", "twin")
    assert (done.code, done.err) == (
        2,
        "windlass: 2 keys are named 'twin'. Give the id: windlass keys list shows it.\n",
    )
    # A revoked key's name is free for the next one.
    assert "Unknown key 'ci'." in (await cli("keys", "revoke", "ci")).err
    await cli("keys", "create", "ci")
    assert (await cli("keys", "revoke", "ci", "--json")).json()["revoked"] is True
    assert sorted(row["state"] for row in await listed(cli)) == ["active", "active", "revoked", "revoked"]


async def test_a_tenant_s_limits(cli: Cli) -> None:
    done = await cli("keys", "tenant", "acme", "--budget", "100", "--period", "month", "--rpm", "600")
    assert (done.code, done.err) == (0, "Tenant acme: 600 requests/min; $100.0000 per month.\n")
    accounts = await Accounts.open(url_of(cli))
    assert accounts.tenants["acme"].budget == 100 * SECOND
    await accounts.close()
    assert (await cli("keys", "tenant", "acme")).err == "Tenant acme: no limits.\n"


async def test_usage_in_lines_and_as_json(cli: Cli) -> None:
    accounts = await Accounts.open(url_of(cli))
    key, _ = await accounts.create("ci\u200d\u200d"[:2], tenant="acme")
    now = clock.now_ns()
    rows = [
        RequestRecord("1", now, "acme", key.key_id, route="fast", target="openai:gpt", input_tokens=100,
                      output_tokens=7, cache_read_tokens=40, cost=1_500_000),
        RequestRecord("2", now, "acme", key.key_id, route="fast", target="local:x", input_tokens=1, cost=None),
        RequestRecord("3", now - 10 * DAY, "", "", route="evil\x1b[2J", status=404, outcome="refused", cost=0),
    ]  # fmt: skip
    for row in rows:
        accounts.record(row)
    await accounts.close()
    done = await cli("keys", "usage")
    assert done.out.splitlines() == [
        "(none)  1 requests, 0 in (0 cached), 0 out, $0.0000",
        f"{key.key_id}  ci  2 requests, 101 in (40 cached), 7 out, $0.0015 (and 1 of unknown price)",
    ]
    by_model = (await cli("keys", "usage", "--by", "model", "--json")).out.splitlines()
    found = {row["name"]: row for row in map(json.loads, by_model)}
    assert set(found) == {"evil\x1b[2J", "local:x", "openai:gpt"}
    assert found["openai:gpt"]["cost"] == 1_500_000 and found["local:x"]["unknown_cost"] == 1
    assert "\x1b" not in (await cli("keys", "usage", "--by", "model")).out
    recent = await cli("keys", "usage", "--by", "tenant", "--since", "7d")
    assert recent.out.startswith("acme  2 requests") and len(recent.out.splitlines()) == 1
    day = clock.rfc3339(now)[:10]
    today = await cli("keys", "usage", "--by", "day", "--key", key.key_id, "--since", day)
    assert today.out.startswith(f"{day}  2 requests")
    assert (await cli("keys", "usage", "--until", "7d", "--tenant", "acme")).out == ""


async def test_where_keys_are_kept(cli: Cli, tmp_path: Path) -> None:
    other, third = f"sqlite:{tmp_path / 'o' / 'other.db'}", f"sqlite:{tmp_path / 'third.db'}"
    await cli("keys", "create", "one", "--store", other)
    await cli("keys", "create", "two", WINDLASS_ACCOUNTS=third)
    cli.user_config(f'accounts = "{other}"\n')
    assert [row["name"] for row in await listed(cli)] == ["one"]
    assert [row["name"] for row in await listed(cli, "--store", third)] == ["two"]
    assert (tmp_path / "o" / "other.db").stat().st_mode & 0o777 == 0o600
    # A cloned repository does not say where keys are kept.
    (cli.folder / "windlass.toml").write_text(f'accounts = "{third}"\n')
    done = await cli("keys", "list")
    assert "one" in done.out and "accounts is ignored: a project's file may not set it" in done.err
    for bad in ("nonsense", "mysql://x/y", "sqlite:"):
        done = await cli("keys", "list", "--store", bad)
        assert (done.code, done.out) == (2, ""), done.err
    blocked = tmp_path / "file"
    blocked.write_text("")
    done = await cli("keys", "list", "--store", f"sqlite:{blocked}/x.db")
    assert (done.code, done.out) == (1, "") and "Traceback" not in done.err


async def test_many_at_once_lose_nothing(cli: Cli) -> None:
    done = await asyncio.gather(*[cli("keys", "create", f"k{n}") for n in range(4)])
    assert [each.code for each in done] == [0] * 4, done
    assert {row["name"] for row in await listed(cli)} == {"k0", "k1", "k2", "k3"}


async def test_on_postgresql(cli: Cli, database_url: str) -> None:
    made = await cli("keys", "create", "pg", "--rpm", "5", "--json", "--store", database_url)
    assert made.code == 0, made.err
    assert [row["name"] for row in await listed(cli, "--store", database_url)] == ["pg"]
    # The password of the database is in no output.
    assert "canary" not in made.out + made.err
