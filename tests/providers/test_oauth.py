"""A vendor that is asked with a login: where it comes from, and who is told of it."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import stat
import traceback
from pathlib import Path
from typing import Any

import msgspec
import pytest

import windlass
from tests.providers.oauth_server import CLIENT, JSON, FakeOAuth, ask, config, keep, made_by, provider_of
from tests.server.conftest import StartGateway
from tests.server.conftest import gateway as gateway
from windlass.agent.hooks import HookContext
from windlass.core import clock, registry
from windlass.core.config import Config
from windlass.core.config_files import foreign_addresses, load_config
from windlass.core.credentials import Credentials, Login, Renewal
from windlass.core.errors import (
    AuthError,
    ConfigError,
    MissingKeyError,
    UnknownNameError,
    WindlassError,
)
from windlass.core.items import NoticeItem
from windlass.providers.oauth import AccountProvider
from windlass.testing.faults import Fin, Reply

# ------------------------------------------------------------------------------------------------- where it comes from


async def test_the_order_is_key_access_variable_file_login(tmp_path: Path) -> None:
    async with FakeOAuth() as server:
        server.accesses |= {"from-agent", "from-access", "from-variable", "from-file", "from-login"}
        file = tmp_path / ".credentials.json"
        file.write_text(json.dumps({"mine": {"access": "from-file"}}))
        keep(tmp_path, Login(Credentials("from-login"), base_url=server.url))
        table: dict[str, Any] = {**server.table(), "access": "from-access", "credentials": str(file)}
        variable = {"WINDLASS_MINE_API_KEY": "from-variable"}

        async def asked(table: dict[str, Any], api_key: str | None = None, **environ: str) -> str:
            made = registry.model("mine:m", config(tmp_path, {"mine": table}, **environ), api_key)[0]
            await ask(made)
            await made.close()
            return server.asked[-1]

        assert await asked(table, "from-agent", **variable) == "from-agent"
        assert await asked(table, **variable) == "from-access"
        del table["access"]
        assert await asked(table, **variable) == "from-variable"
        assert await asked(table) == "from-file"
        del table["credentials"]
        assert await asked(table) == "from-login"
        # Both are stated: a key is a key, wherever it comes from.
        assert await asked({**table, "access": "x", "api_key": "from-variable"}) == "from-variable"


async def test_without_a_login_it_is_said_before_anything_is_sent(tmp_path: Path) -> None:
    async with FakeOAuth() as server:
        with pytest.raises(MissingKeyError, match="windlass auth mine"):
            provider_of(tmp_path, server.table())
        with pytest.raises(MissingKeyError, match="GROQ_API_KEY"):
            registry.model("groq:x", config(tmp_path, {}))
        assert server.server.requests == []
    # Settings without a home, as those of a test, have no logins.
    with pytest.raises(MissingKeyError):
        registry.model("groq:x", Config(environ={}))


@pytest.mark.parametrize(
    ("table", "kind", "words"),
    [
        ({"access": ""}, ConfigError, "no access token"),
        ({"access": "env:GONE"}, ConfigError, "no access token"),
        ({"access": "a\r\nx-evil: 1"}, ConfigError, "visible ASCII"),
        ({"access": "a", "expires": -5}, ConfigError, "expires"),
        ({"access": "a", "oauth": {"clientid": "x"}}, UnknownNameError, "client_id"),
        ({"access": "a", "oauth": {"token_url": "http://elsewhere.test/token"}}, ConfigError, "not https"),
        ({"access": "a", "oauth": {"token_url": "javascript:alert(1)"}}, ConfigError, "no https address"),
        ({"access": "a", "oauth": {"scopes": [1]}}, ConfigError, "scopes"),
        ({"access": "a", "oauth": []}, ConfigError, "must be a table"),
        ({"access": "a", "dialect": "bedrock"}, ConfigError, "takes no login"),
    ],
)
def test_what_is_stated_wrongly_is_told(
    tmp_path: Path, table: dict[str, Any], kind: type[Exception], words: str
) -> None:
    with pytest.raises(kind, match=words) as caught:
        provider_of(tmp_path, {"base_url": "https://api.test/v1", **table})
    assert "x-evil" not in str(caught.value)


async def test_a_login_goes_only_where_it_was_made_for(tmp_path: Path) -> None:
    async with FakeOAuth() as server, FakeOAuth() as other:
        keep(tmp_path, made_by(server))
        moved = {**server.table(), "base_url": f"{other.url}/v1"}
        with pytest.raises(ConfigError, match=f"made for {server.url}"):
            provider_of(tmp_path, moved)
        assert other.server.requests == []
        # Nor does an env file that the user names send a token of their settings elsewhere.
        own = config(tmp_path, {"groq": {"access": "mine"}, "vllm": {}})
        named = {"WINDLASS_GROQ_BASE_URL": other.url, "VLLM_BASE_URL": other.url}
        assert foreign_addresses(named, own) == ["WINDLASS_GROQ_BASE_URL"]


def test_a_project_s_file_gives_no_credentials(tmp_path: Path) -> None:
    file = tmp_path / "windlass.toml"
    file.write_text('[providers.groq]\naccess = "theirs"\ncredentials = ".credentials.json"\n')
    (tmp_path / ".credentials.json").write_text('{"groq": {"access": "theirs"}}')
    found = load_config(environ={"WINDLASS_HOME": str(tmp_path / "home")}, files=((file, False),))
    assert found.user_providers == {} and "[providers] is ignored" in found.notices[0]
    with pytest.raises(MissingKeyError):
        registry.model("groq:x", found)


# ------------------------------------------------------------------------------------------------------------ the file


async def test_a_named_file_is_read_and_written_back_as_it_was(tmp_path: Path) -> None:
    async with FakeOAuth() as server:
        told = server.grant()
        file = tmp_path / ".credentials.json"
        kept = {"access": told["access_token"], "refresh": told["refresh_token"], "expires": 1000, "big": 1 << 70}
        file.write_text(json.dumps({"mine": kept, "openai": {"access": "x", "accountId": "y"}}))
        provider = provider_of(tmp_path, {**server.table(), "credentials": str(file)})
        _, (notice,) = await ask(provider)
        await provider.close()
        assert notice.detail.source == "credentials"
        found = json.loads(file.read_text())
        assert found["openai"] == {"access": "x", "accountId": "y"} and found["mine"]["big"] == 1 << 70
        assert (found["mine"]["access"], found["mine"]["refresh"]) == ("access-0002", "refresh-0002")
        # It was in seconds and stays so.
        assert abs(found["mine"]["expires"] - clock.now_ns() // 1_000_000_000 - 3600) < 120
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        # Of one provider alone, with the names of other programs.
        file.write_text(json.dumps({"access_token": "access-0002", "refreshToken": "refresh-0002", "expiresAt": 1e12}))
        provider = provider_of(tmp_path, {**server.table(), "credentials": str(file)})
        await ask(provider)
        await provider.close()
        found = json.loads(file.read_text())
        assert (found["access_token"], found["refreshToken"]) == ("access-0003", "refresh-0003")
        assert found["expiresAt"] > 1e12 and "access" not in found


@pytest.mark.parametrize(
    ("content", "mode", "words"),
    [
        (None, 0, "Nobody is logged in"),
        ("{", 0o600, "not JSON"),
        ("[]", 0o600, "no object"),
        ('{"mine": {"access": 5}}', 0o600, "access must be text"),
        ("{}", 0o600, "no access token"),
        ('{"access": "a"}', 0o666, "others may write"),
    ],
)
async def test_a_file_that_cannot_be_used_is_told(tmp_path: Path, content: str | None, mode: int, words: str) -> None:
    async with FakeOAuth() as server:
        file = tmp_path / "c.json"
        if content is not None:
            file.write_text(content)
            file.chmod(mode)
        provider = provider_of(tmp_path, {**server.table(), "credentials": str(file)})
        with pytest.raises(WindlassError, match=words):
            await ask(provider)
        assert server.server.requests == []
        await provider.close()


async def test_a_login_that_cannot_be_written_is_told_and_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with FakeOAuth() as server:
        keep(tmp_path, made_by(server, 1000))
        provider = provider_of(tmp_path, server.table())

        def full(*_: Any) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        with caplog.at_level(logging.WARNING, "windlass.oauth"):
            assert (await ask(provider))[0] == "Hello 0002"
        assert "No space left" in caplog.text and "refresh-0002" not in caplog.text
        assert os.listdir(tmp_path / "credentials") == ["mine.json"]
        await provider.close()


# ---------------------------------------------------------------------------------------------- other ways of asking


async def test_models_embeddings_and_passed_on_bytes_have_the_token_too(tmp_path: Path) -> None:
    async with FakeOAuth() as server:
        keep(tmp_path, made_by(server, 1000))
        provider = provider_of(tmp_path, server.table())
        assert await provider.models() == ["m"] and server.refreshed == 1
        server.accesses.clear()
        provider.provider.account._fresh_until = 0.0
        assert await provider.models() == ["m"] and server.refreshed == 2
        async with provider.forward(b"{}", "m", stream=True) as response:
            assert response.status == 200 and await response.read()
        assert server.asked[-1] == "access-0003"
        with pytest.raises(WindlassError):
            await provider.embed(["a"], "m")  # the fake has none, and was asked with the token
        assert server.server.requests[-1].headers["authorization"] == "Bearer access-0003"
        await provider.close()


async def test_passed_on_bytes_that_are_refused_late_renew_nothing_again(tmp_path: Path) -> None:
    async with FakeOAuth() as server:
        keep(tmp_path, made_by(server))
        server.accesses.clear()
        provider = provider_of(tmp_path, server.table())
        async with (
            provider.forward(b"{}", "m", stream=True) as first,
            provider.forward(b"{}", "m", stream=True) as second,
        ):
            assert (first.status, second.status) == (401, 401)
        assert [await provider.refresh() for _ in range(2)] == [True, True] and server.refreshed == 1
        await provider.close()


async def test_vendors_rows_say_how_and_no_header_pretends_to_be_another_program(tmp_path: Path) -> None:
    async with FakeOAuth() as server:
        server.forbids = True
        for name in ("anthropic", "openai", "gemini", "huggingface", "codex"):
            table: dict[str, Any] = {"base_url": f"{server.url}/v1", "access": "a-token", "account_id": "acc-1"}
            if name == "anthropic":
                table["headers"] = {"anthropic-beta": "mine-2025"}
            provider = provider_of(tmp_path, table, name)
            assert isinstance(provider.provider, AccountProvider)
            with pytest.raises(AuthError):
                await ask(provider)
            await provider.close()
            sent = dict(server.server.requests[-1].headers)
            assert sent["authorization"] == "Bearer a-token"
            assert "x-api-key" not in sent and "x-goog-api-key" not in sent
            assert sent.get("chatgpt-account-id") == ("acc-1" if name == "codex" else None)
            assert not any(word in str(sent).lower() for word in ("claude", "codex", "gemini-cli"))
            assert sent.get("originator", "windlass") == "windlass" and "windlass" in sent.get("user-agent", "windlass")
            assert sent.get("anthropic-beta") == ("mine-2025,oauth-2025-04-20" if name == "anthropic" else None)


async def test_codex_has_a_login_of_its_own_or_a_variable_before_the_file_of_its_program(tmp_path: Path) -> None:
    (tmp_path / ".codex").mkdir()
    (tmp_path / ".codex" / "auth.json").write_text('{"tokens": {"access_token": "theirs", "refresh_token": "r"}}')
    async with FakeOAuth() as server:
        server.forbids = True
        table = {**server.table(), "base_url": f"{server.url}/backend"}

        async def asked(table: dict[str, Any], **environ: str) -> tuple[str, str | None]:
            provider = provider_of(tmp_path, table, "codex", HOME=str(tmp_path), **environ)
            with pytest.raises(AuthError):
                await ask(provider)
            await provider.close()
            return server.asked[-1], server.server.requests[-1].headers.get("chatgpt-account-id")

        own = {"base_url": table["base_url"]}
        assert await asked(own) == ("theirs", None)
        assert await asked(own, OPENAI_CODEX_API_KEY="from-variable") == ("from-variable", None)
        keep(tmp_path, made_by(server), "codex")
        assert await asked(table) == ("access-0001", "acc-1")
        assert await asked(own) == ("access-0001", "acc-1")  # what was logged in to stays so


# ------------------------------------------------------------------------------------------------------------ the hook


async def test_the_hook_is_told_who_and_what(tmp_path: Path) -> None:
    async with FakeOAuth() as server:
        server.refreshes.add("the-refresh")
        table = {**server.table(), "access": "the-access", "refresh": "the-refresh", "account_id": "acc-7"}
        told: list[dict[str, Any]] = []

        def keep_them(ctx: HookContext) -> None:
            told.append(dict(ctx.__dict__))

        settings = config(tmp_path, {"mine": table})
        agent = windlass.Agent("mine:m", config=settings, hooks={"oauth:refresh": keep_them}, tools="none")
        async with agent.run("hi") as run:
            events = [event async for event in run]
        assert run.result is not None and run.result.text == "Hello 0001"
        await agent.destroy()
        (fields,) = told
        assert (fields["provider"], fields["provider_id"], fields["source"]) == ("mine", "mine", "params")
        assert fields["credentials"].access == "access-0001" and fields["credentials"].refresh == "refresh-0001"
        assert fields["credentials"].account_id == "acc-7"
        assert fields["previous_credentials"] == Credentials("[hidden]", "[hidden]", None, "acc-7")
        # Sinks hear the fact without the secrets.
        logs = [event for event in events if isinstance(event, windlass.Log)]
        assert [event.message for event in logs] == ["The login of mine was renewed."]
        shown = repr(told) + repr(events) + "".join([msgspec.json.encode(event).decode() for event in events])
        assert not any(word in shown for word in ("the-access", "the-refresh", "access-0001", "refresh-0001"))


def test_a_notice_s_secrets_cannot_be_encoded() -> None:
    renewal = Renewal("p", "p", "params", Credentials("aaaaaa"), Credentials("bbbbbb"))
    item = NoticeItem("refreshed", "x", detail=renewal)
    assert "aaaaaa" not in repr(item) and "bbbbbb" not in repr(item)
    with pytest.raises(TypeError):
        msgspec.json.encode(item)


# --------------------------------------------------------------------------------------------------------- the gateway


async def test_the_gateway_renews_a_login_once_for_many_clients(gateway: StartGateway, tmp_path: Path) -> None:
    import httpx

    async with FakeOAuth() as server:
        server.refreshes.add("the-refresh")
        table = {**server.table(), "access": "the-access", "refresh": "the-refresh"}
        up = await gateway(providers={"mine": table}, routes={"r": "mine:m"})
        body = {"model": "r", "stream": True, "messages": [{"role": "user", "content": "hi"}]}
        async with httpx.AsyncClient(timeout=30.0) as client:
            url = f"{up.url}/v1/chat/completions"
            answers = await asyncio.gather(*[client.post(url, json=body) for _ in range(8)])
            assert [(answer.status_code, "Hello 0001" in answer.text) for answer in answers] == [(200, True)] * 8
            # Translated, not passed on.
            other = {"model": "r", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]}
            answer = await client.post(f"{up.url}/v1/messages", json=other)
            assert answer.status_code == 200 and "Hello 0001" in answer.text
            assert server.refreshed == 1
            # A login that has ended, and a server that repeats what it refuses.
            server.accesses.clear()
            server.refreshes.clear()
            answer = await client.post(url, json=body)
            shown = answer.text + repr(answer.headers)
            assert answer.status_code in (401, 403, 500, 502, 503), shown
            assert not any(word in shown for word in ("access-0001", "refresh-0001", "the-access", "the-refresh"))


# ------------------------------------------------------------------------------------------------------------ canaries

CANARIES = [f"canary{number:02}-{what}" for number, what in enumerate(
    ("access", "refresh", "new-access", "new-refresh", "id-token", "client-secret", "kept-access", "kept-refresh",
     "file-access", "file-refresh", "given-access", "given-refresh"), 1)]  # fmt: skip


async def test_s54_s55_twelve_canaries_are_in_no_text(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    access, refresh, new_access, new_refresh, identity, secret, kept, kept_refresh, *rest = CANARIES
    file = tmp_path / "c.json"
    file.write_text(json.dumps({"access": rest[0], "refresh": rest[1], "expires": 1000}))
    shown: list[str] = []
    async with FakeOAuth() as server:
        echo = json.dumps({"error": "invalid_grant", "error_description": " ".join(CANARIES)}).encode()
        told = {"access_token": new_access, "refresh_token": new_refresh, "id_token": identity}
        stored = Login(Credentials(kept, kept_refresh, 1000), f"{server.url}/token", CLIENT, server.url)
        store = keep(tmp_path, stored)
        own = server.table(client_secret=secret)
        tables: dict[str, dict[str, Any]] = {
            "given": {**own, "access": rest[2], "refresh": rest[3]},
            "ended": {**own, "access": access, "refresh": refresh, "expires": 1000},
            "file": {**own, "credentials": str(file)},
            "stored": own,
        }
        steps: tuple[Any, ...] = (
            Reply(400, echo, JSON), Reply(500, echo), Reply(401, b" ".join([c.encode() for c in CANARIES])),
            Reply(200, json.dumps({**told, "access_token": ""}).encode(), JSON), Fin(),
            Reply(200, json.dumps(told).encode(), JSON),
        )  # fmt: skip
        with caplog.at_level(logging.DEBUG):
            for table in tables.values():
                for step in steps:
                    server.steps = [step]
                    provider = provider_of(tmp_path, table)
                    try:
                        shown.append(repr(await ask(provider, 1)))
                    except WindlassError as error:
                        own_words = {word for word in CANARIES if word in server.server.requests[-1].body.decode()}
                        texts = [str(error), repr(error), json.dumps(error.to_dict(), default=repr)]
                        texts += traceback.format_exception(error)
                        # What the vendor made up is not ours to know; what we sent it is.
                        sent = {*own_words, *provider.provider.secrets}
                        assert not any(word in text for text in texts for word in sent), (step, texts)
                    shown += [repr(provider.provider.account.source), repr(provider.provider.account._current)]
                    await provider.close()
        shown += [repr(stored), repr(store.read("mine")), repr(store.about("mine")), caplog.text, *capfd.readouterr()]
        shown += [repr(config(tmp_path, tables).provider_settings("given")), repr(msgspec.structs.asdict(stored))]
        assert [(word, text) for text in shown for word in CANARIES if word in text] == []
