"""A login is renewed in time, once, for everybody who waits for it, and only where it helps."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import stat
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.providers.oauth_server import CLIENT, JSON, FakeOAuth, ask, keep, made_by, provider_of, refusal
from windlass.core import clock
from windlass.core.credentials import Renewal
from windlass.core.errors import (
    AuthError,
    OverloadedError,
    ProviderConnectionError,
    WireError,
)
from windlass.testing.clock import FakeClock
from windlass.testing.faults import BlackHole, Fin, Reply, Stream

NOW_MS = 1_700_000_000_000


async def test_a_token_is_renewed_before_its_end_and_kept(tmp_path: Path) -> None:
    async with FakeOAuth() as server:
        soon = clock.now_ns() // 1_000_000 + 30_000
        store = keep(tmp_path, made_by(server, soon, scopes=("a",)))
        provider = provider_of(tmp_path, server.table())
        text, (notice,) = await ask(provider)
        assert (text, server.refreshed, server.asked) == ("Hello 0002", 1, ["access-0002"])
        assert (notice.kind, isinstance(notice.detail, Renewal)) == ("refreshed", True)
        # Told once, asked once.
        assert await ask(provider) == ("Hello 0002", [])
        await provider.close()
        login = store.read("mine")
        assert login is not None and (login.credentials.refresh, login.credentials.account_id) == (
            "refresh-0002",
            "acc-1",
        )
        assert (login.client_id, login.base_url, login.scopes) == (CLIENT, server.url, ("a",))
        assert login.credentials.expires is not None and login.credentials.expires > soon + 3_000_000
        assert stat.S_IMODE(store.path("mine").stat().st_mode) == 0o600
        asked = server.log[0]
        assert asked == {"grant_type": "refresh_token", "refresh_token": "refresh-0001", "client_id": CLIENT}


async def test_r19_a_refused_token_is_renewed_once(tmp_path: Path) -> None:
    async with FakeOAuth() as server:
        keep(tmp_path, made_by(server))
        server.accesses.clear()
        provider = provider_of(tmp_path, server.table())
        text, notices = await ask(provider)
        assert (text, [notice.kind for notice in notices]) == ("Hello 0002", ["refreshed"])
        assert server.asked == ["access-0001", "access-0002"]
        # A new token that is refused at once is not renewed again: the server would be asked for every request.
        server.accesses.clear()
        for _ in range(3):
            with pytest.raises(AuthError, match="windlass auth mine"):
                await ask(provider)
        assert server.refreshed == 1
        await provider.close()


async def test_a_right_that_is_missing_renews_nothing(tmp_path: Path) -> None:
    async with FakeOAuth() as server:
        provider = provider_of(tmp_path, {**server.table(), "access": "a-token", "refresh": "r-token"})
        server.forbids = True
        with pytest.raises(AuthError) as caught:
            await ask(provider)
        assert (server.refreshed, len(server.server.requests)) == (0, 1)
        assert "a-token" not in str(caught.value) and caught.value.status == 403
        await provider.close()


@pytest.mark.parametrize("status", [0, 401])
async def test_many_requests_renew_once(tmp_path: Path, status: int) -> None:
    """Ended or refused: they wait for one renewal."""
    async with FakeOAuth() as server:
        keep(tmp_path, made_by(server, None if status else 1000))
        server.accesses.clear()
        provider = provider_of(tmp_path, server.table())
        answers = await asyncio.gather(*[ask(provider) for _ in range(20)])
        assert {text for text, _ in answers} == {"Hello 0002"} and server.refreshed == 1
        assert sum(len(notices) for _, notices in answers) == 1
        await provider.close()


async def test_a_request_that_is_cancelled_leaves_the_renewal_going(tmp_path: Path) -> None:
    """Its answer would be lost, and with it the login: the old refresh token is spent."""
    async with FakeOAuth() as server:
        hold = asyncio.Event()
        store = keep(tmp_path, made_by(server, 1000))
        told = json.dumps(server.grant()).encode()
        server.steps.append(Stream([hold, told], 200, JSON))
        provider = provider_of(tmp_path, server.table())
        first = asyncio.create_task(ask(provider))
        while not server.log:
            await asyncio.sleep(0.005)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        hold.set()
        assert (await ask(provider))[0] == "Hello 0002"
        login = store.read("mine")
        assert login is not None and login.credentials.refresh == "refresh-0002" and server.refreshed == 1
        await provider.close()


async def test_closing_waits_for_a_renewal(tmp_path: Path) -> None:
    async with FakeOAuth() as server:
        hold = asyncio.Event()
        store = keep(tmp_path, made_by(server, 1000))
        server.steps.append(Stream([hold, json.dumps(server.grant()).encode()], 200, JSON))
        provider = provider_of(tmp_path, server.table())
        first = asyncio.create_task(ask(provider))
        while not server.log:
            await asyncio.sleep(0.005)
        first.cancel()
        asyncio.get_running_loop().call_later(0.05, hold.set)
        await provider.close()
        login = store.read("mine")
        assert login is not None and login.credentials.refresh == "refresh-0002"


SCRIPT = """
import asyncio, sys
from windlass.core import registry
from windlass.core.config_files import load_config
from windlass.core.messages import user
from windlass.core.request import Budget, Request

async def main():
    provider = registry.model("mine:m", load_config())[0]
    print("ready", flush=True)
    sys.stdin.readline()
    async for item in provider.stream(Request(model="m", messages=[user("hi")])):
        pass
    await provider.close()
    print(item.message.text)

asyncio.run(main())
"""


async def test_two_programs_renew_once(tmp_path: Path) -> None:
    async with FakeOAuth() as server:
        keep(tmp_path, made_by(server, 1000))
        (tmp_path / "windlass.toml").write_text(
            f'[providers.mine]\nbase_url = "{server.url}/v1"\nmodel = "m"\n'
            f'[providers.mine.oauth]\nclient_id = "{CLIENT}"\ntoken_url = "{server.url}/token"\n'
        )
        environ = {**os.environ, "WINDLASS_HOME": str(tmp_path), "HOME": str(tmp_path)}
        programs = [
            await asyncio.create_subprocess_exec(
                sys.executable, "-c", SCRIPT, cwd=tmp_path, env=environ,
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
            )
            for _ in range(3)
        ]  # fmt: skip
        for program in programs:
            assert program.stdout is not None and await program.stdout.readline() == b"ready\n"
        hold = asyncio.Event()
        server.steps.append(Stream([hold, json.dumps(server.grant()).encode()], 200, JSON))
        ended = [asyncio.create_task(program.communicate(b"\n")) for program in programs]
        while not server.log:
            await asyncio.sleep(0.01)
        hold.set()
        outs = [out for out, _ in await asyncio.gather(*ended)]
        assert outs == [b"Hello 0002\n"] * 3 and server.refreshed == 1


async def test_what_another_program_renewed_is_taken_over(tmp_path: Path) -> None:
    async with FakeOAuth() as server:
        store = keep(tmp_path, made_by(server))
        provider = provider_of(tmp_path, server.table())
        await ask(provider)
        server.accesses.clear()
        store.write("mine", made_by(server))
        assert await ask(provider) == ("Hello 0002", []) and server.refreshed == 0
        # Or while we asked: a refresh token is good for one use.
        server.accesses.clear()
        hold = asyncio.Event()
        server.steps.append(Stream([hold, b'{"error":"invalid_grant"}'], 400, JSON))
        asked = asyncio.create_task(ask(provider))
        while not server.log:
            await asyncio.sleep(0.005)
        store.write("mine", made_by(server))
        hold.set()
        assert (await asked)[0] == "Hello 0003"
        await provider.close()


async def test_who_logged_out_elsewhere_is_logged_out_here(tmp_path: Path) -> None:
    async with FakeOAuth() as server:
        store = keep(tmp_path, made_by(server))
        provider = provider_of(tmp_path, server.table())
        await ask(provider)
        store.delete("mine")
        server.accesses.clear()
        with pytest.raises(AuthError, match=r"Nobody is logged in to mine.*windlass auth mine"):
            await ask(provider)
        assert (server.refreshed, store.names()) == (0, [])
        await provider.close()


async def test_a_login_that_has_ended_is_asked_for_once(tmp_path: Path) -> None:
    async with FakeOAuth() as server:
        keep(tmp_path, made_by(server, 1000))
        server.refreshes.clear()
        provider = provider_of(tmp_path, server.table())
        for _ in range(3):
            with pytest.raises(AuthError, match=r"ended.*invalid_grant.*windlass auth mine") as caught:
                await ask(provider)
            assert "refresh-0001" not in str(caught.value)
        assert (server.refreshed, server.asked) == (1, [])
        # A new login counts at once.
        keep(tmp_path, made_by(server))
        assert (await ask(provider))[0] == "Hello 0002"
        await provider.close()


@pytest.mark.parametrize(
    ("step", "kind"),
    [
        (Reply(500), OverloadedError),
        (Fin(), ProviderConnectionError),
        (Reply(302, headers={"location": "/"}), WireError),
    ],
)
async def test_a_server_that_cannot_renew_is_told_only_when_the_token_has_ended(
    tmp_path: Path, step: Any, kind: type[Exception], caplog: pytest.LogCaptureFixture
) -> None:
    async with FakeOAuth() as server:
        server.steps = [step] * 2
        keep(tmp_path, made_by(server, clock.now_ns() // 1_000_000 + 30_000))
        provider = provider_of(tmp_path, server.table())
        with caplog.at_level(logging.WARNING, "windlass.oauth"):
            assert (await ask(provider))[0] == "Hello 0001"
            assert (await ask(provider))[0] == "Hello 0001"
        assert server.refreshed == 1 and "not renewed yet" in caplog.text  # not with every request
        await provider.close()
        keep(tmp_path, made_by(server, 1000))
        provider = provider_of(tmp_path, server.table())
        with pytest.raises(kind):
            await ask(provider, 1)
        await provider.close()


async def test_tokens_without_a_way_to_renew_them_are_used_to_their_end(tmp_path: Path) -> None:
    async with FakeOAuth() as server:
        server.accesses.add("given")
        table = {"base_url": f"{server.url}/v1", "access": "given", "refresh": "r", "expires": 1000}
        provider = provider_of(tmp_path, table)
        assert (await ask(provider))[0] == "Hello iven"
        server.accesses.clear()
        with pytest.raises(AuthError, match=r"Renew access in \[providers.mine\]"):
            await ask(provider)
        assert server.log == []
        await provider.close()


async def test_short_lives_are_renewed_at_half_time(tmp_path: Path) -> None:
    async with FakeOAuth(lifetime=40) as server:
        fake = FakeClock()
        with clock.use(fake):
            keep(tmp_path, made_by(server, 1))
            provider = provider_of(tmp_path, server.table())
            for elapsed, renewed in ((0, 1), (15, 1), (25, 2), (40, 2), (50, 3)):
                fake.elapsed = elapsed
                await ask(provider)
                assert server.refreshed == renewed, elapsed
            await provider.close()


async def test_r51_a_token_is_looked_at_again_after_a_sleep_and_jumps(tmp_path: Path) -> None:
    async with FakeOAuth() as server:
        fake = FakeClock()
        with clock.use(fake):
            keep(tmp_path, made_by(server, NOW_MS + 3_600_000))
            provider = provider_of(tmp_path, server.table())
            await ask(provider)
            assert server.refreshed == 0
            fake.jump(8 * 3600)  # the lid was closed: the monotonic clock stood still
            await ask(provider)
            assert (server.refreshed, server.asked[-1]) == (1, "access-0002")
            fake.jump(-9 * 3600)  # set back: it seems to live longer, and a refusal tells otherwise
            fake.elapsed += 60
            await ask(provider)
            server.accesses.clear()
            await ask(provider)
            assert server.refreshed == 2
            fake.jump(366 * 86400)
            for _ in range(3):
                await ask(provider)
            assert server.refreshed == 3
            await provider.close()


async def test_a_token_endpoint_that_says_nothing_does_not_hang(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from windlass.core import oauth
    from windlass.core.http import Timeouts

    monkeypatch.setattr(oauth, "_TIMEOUTS", Timeouts(1.0, 0.1, 0.1, 0.2, 1.0))
    async with FakeOAuth() as server:
        server.steps = [BlackHole()]
        keep(tmp_path, made_by(server, 1000))
        provider = provider_of(tmp_path, server.table())
        # A timeout is asked again, and the second time it answers.
        assert (await ask(provider))[0] == "Hello 0002"
        await provider.close()


async def test_a_refresh_that_is_refused_with_a_5xx_keeps_the_login(tmp_path: Path) -> None:
    async with FakeOAuth() as server:
        store = keep(tmp_path, made_by(server, 1000))
        before = store.path("mine").read_bytes()
        server.steps = [Reply(503), refusal("temporarily_unavailable")]
        provider = provider_of(tmp_path, server.table())
        for _ in range(2):
            with pytest.raises(OverloadedError, match="stays as it is"):
                await ask(provider, 1)
        assert store.path("mine").read_bytes() == before
        await provider.close()
