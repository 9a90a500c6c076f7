"""ChatGPT accounts: the Codex CLI's login, its renewal, and what its backend is sent and answers."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from windlass.core import registry
from windlass.core.config import Config
from windlass.core.errors import (
    AuthError,
    MissingKeyError,
    OverloadedError,
    ProviderConnectionError,
    RateLimitError,
    StreamInterrupted,
    WindlassError,
    WireError,
)
from windlass.core.items import Finish, Item, NoticeItem
from windlass.core.messages import user
from windlass.core.request import Budget, Request, Settings
from windlass.core.usage import Usage
from windlass.providers.codex import CLIENT_ID, CodexProvider, Login, read_login, save_tokens
from windlass.providers.retry import Retrying
from windlass.testing.faults import FaultServer, Fin, Reply, Step, Stream

JSON = {"content-type": "application/json"}


def jwt(**claims: Any) -> str:
    payload = base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=")
    return f"e30.{payload}.sig"


def account_token(account: str, number: int = 1) -> str:
    return jwt(number=number, **{"https://api.openai.com/auth": {"chatgpt_account_id": account}})


def events(*frames: dict[str, Any]) -> Stream:
    return Stream([f"event: {frame['type']}\ndata: {json.dumps(frame)}\n\n".encode() for frame in frames])


MESSAGE = {
    "id": "msg_1", "type": "message", "role": "assistant", "status": "completed",
    "content": [{"type": "output_text", "text": "Hello", "annotations": []}],
}  # fmt: skip
RESPONSE = {"id": "resp_1", "object": "response", "model": "gpt-5.5", "status": "completed"}
USAGE = {"input_tokens": 20, "output_tokens": 3, "input_tokens_details": {"cached_tokens": 16}}
BEGUN: list[dict[str, Any]] = [
    {"type": "response.created", "response": {**RESPONSE, "status": "in_progress", "output": []}},
    {"type": "response.output_item.added", "output_index": 0, "item": {**MESSAGE, "content": []}},
    {"type": "response.output_text.delta", "output_index": 0, "content_index": 0, "delta": "Hello"},
]
ANSWER = events(
    *BEGUN,
    {"type": "response.output_item.done", "output_index": 0, "item": MESSAGE},
    {"type": "response.completed", "response": {**RESPONSE, "output": [], "usage": USAGE}},
)
REFUSED = Reply(401, b'{"detail":"Unauthorized"}', JSON)


def tokens(**fields: str) -> Reply:
    return Reply(200, json.dumps(fields).encode(), JSON)


def write_auth(home: Path, access: str = "old", **fields: Any) -> Path:
    home.mkdir(exist_ok=True)
    path = home / "auth.json"
    kept = {"id_token": "id-1", "access_token": access, "refresh_token": "refresh-1", "account_id": "acc-1"}
    data = {"OPENAI_API_KEY": None, "tokens": {**kept, "future": [1]}, "last_refresh": "2025-01-01T00:00:00Z"}
    path.write_text(json.dumps({**data, "big": 1 << 70, "auth_mode": "chatgpt", **fields}))
    path.chmod(0o644)
    return path


def config(server: FaultServer | None, home: Path | None = None, **environ: str) -> Config:
    env = dict(environ)
    if server is not None:
        env["CODEX_BASE_URL"] = f"{server.url}/backend-api/codex"
        env["CODEX_REFRESH_TOKEN_URL_OVERRIDE"] = f"{server.url}/oauth/token"
    if home is not None:
        env["CODEX_HOME"] = str(home)
    return Config.from_environment(env)


def provider_of(server: FaultServer | None, home: Path | None = None, **environ: str) -> Any:
    made = registry.model("codex:gpt-5.5", config(server, home, **environ))[0]
    assert isinstance(made, Retrying) and isinstance(made.provider, CodexProvider)
    return Retrying(made.provider, base=0.001)


async def ask(provider: Any, **fields: Any) -> tuple[list[Item], Finish]:
    items: list[Item] = [
        item async for item in provider.stream(Request(model="gpt-5.5", messages=[user("hi")], **fields))
    ]
    assert isinstance(items[-1], Finish)
    await provider.close()
    return items, items[-1]


# ---------------------------------------------------------------------------------------------------------- requests


async def test_a_request_as_the_backend_wants_it(tmp_path: Path) -> None:
    write_auth(tmp_path)
    async with FaultServer([ANSWER]) as server:
        asked = Settings(max_tokens=50, temperature=0.5, thinking="high")
        items, finish = await ask(provider_of(server, tmp_path), settings=asked, session_id="s-1")
        (sent,) = server.requests
    assert sent.target == "/backend-api/codex/responses"
    wanted = {
        "authorization": "Bearer old", "chatgpt-account-id": "acc-1", "openai-beta": "responses=experimental",
        "originator": "windlass",
    }  # fmt: skip
    assert {name: sent.headers.get(name) for name in wanted} == wanted
    body = json.loads(sent.body)
    assert (body["store"], body["stream"], bool(body["instructions"])) == (False, True, True)
    assert not {"max_output_tokens", "temperature", "top_p"} & body.keys()
    assert body["reasoning"] == {"effort": "high", "summary": "auto"}
    assert body["include"] == ["reasoning.encrypted_content"] and body["prompt_cache_key"] == "s-1"
    # What was asked and cannot be told is said once.
    (notice,) = [item for item in items if isinstance(item, NoticeItem)]
    assert "temperature" in notice.message and "max_tokens" in notice.message
    assert (finish.message.text, finish.usage, finish.response_id) == (
        "Hello", Usage(20, 3, cache_read_tokens=16), "resp_1",
    )  # fmt: skip


async def test_a_token_of_the_environment_wins_and_names_its_account(tmp_path: Path) -> None:
    write_auth(tmp_path)
    token = account_token("acc-2")
    async with FaultServer([ANSWER]) as server:
        for environ, account in (
            ({"CODEX_ACCESS_TOKEN": token}, "acc-2"),
            ({"CODEX_ACCESS_TOKEN": token, "CHATGPT_ACCOUNT_ID": "acc-3"}, "acc-3"),
            ({"CODEX_ACCESS_TOKEN": "opaque"}, None),
        ):
            await ask(provider_of(server, tmp_path, **environ))
            sent = server.requests[-1].headers
            assert sent["authorization"] == f"Bearer {environ['CODEX_ACCESS_TOKEN']}"
            assert sent.get("chatgpt-account-id") == account


async def test_passed_on_bytes_carry_the_login_too(tmp_path: Path) -> None:
    write_auth(tmp_path)
    async with FaultServer([ANSWER]) as server:
        provider = provider_of(server, tmp_path).provider
        async with provider.forward(b"{}", "gpt-5.5", stream=True) as response:
            assert await response.read()
        await provider.close()
        assert server.requests[0].headers["chatgpt-account-id"] == "acc-1"


# ------------------------------------------------------------------------------------------------------------- login


def test_the_login_is_looked_for_where_the_cli_keeps_it(tmp_path: Path) -> None:
    write_auth(tmp_path / ".codex")
    assert provider_of(None, HOME=str(tmp_path)).provider.path == str(tmp_path / ".codex" / "auth.json")
    assert provider_of(None, tmp_path).provider.path == str(tmp_path / "auth.json")
    own = Config(environ={}, providers={"codex": {"home": "/own"}})
    assert registry.model("codex:x", own)[0].path == "/own/auth.json"


def test_accounts_are_read_from_the_file_or_the_token(tmp_path: Path) -> None:
    path = write_auth(tmp_path)
    assert read_login(str(path)) == Login("old", "acc-1", "refresh-1")
    data = json.loads(path.read_text())
    for access, identity, account in (
        (account_token("acc-9"), "x", "acc-9"),
        ("opaque", account_token("acc-8"), "acc-8"),
        ("a.!!.c", "", ""),
        (f"a.{'AAAA' * 3}.c", "no", ""),
    ):
        data["tokens"] = {"access_token": access, "id_token": identity}
        path.write_text(json.dumps(data))
        assert read_login(str(path)) == Login(access, account)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "codex login"),
        ("{", "cannot be read"),
        ("[]", "no ChatGPT login"),
        ('{"tokens": null}', "codex login"),
        ('{"OPENAI_API_KEY": "sk-1", "tokens": {}}', "openai-responses"),
        ('{"tokens": {"access_token": 5}}', "no ChatGPT login"),
    ],
)
async def test_without_a_login_the_first_request_says_what_to_do(
    tmp_path: Path, content: str | None, words: str
) -> None:
    if content is not None:
        (tmp_path / "auth.json").write_text(content)
    async with FaultServer([ANSWER]) as server:
        provider = provider_of(server, tmp_path)
        with pytest.raises(AuthError, match=words):
            await ask(provider)
        assert server.requests == []
        # A login that is made later counts.
        write_auth(tmp_path)
        assert (await ask(provider))[1].message.text == "Hello"


async def test_without_a_home_there_is_no_login() -> None:
    with pytest.raises(AuthError, match="CODEX_ACCESS_TOKEN"):
        await ask(provider_of(None))


# ------------------------------------------------------------------------------------------------------------ renewal


async def test_r19_a_refused_token_is_renewed_once_and_written_back(tmp_path: Path) -> None:
    path = write_auth(tmp_path)
    renewed = tokens(access_token="new", refresh_token="refresh-2", id_token="id-2")
    async with FaultServer([REFUSED, renewed, ANSWER]) as server:
        _, finish = await ask(provider_of(server, tmp_path))
        refused, asked, again = server.requests
    assert finish.message.text == "Hello"
    assert (refused.headers["authorization"], again.headers["authorization"]) == ("Bearer old", "Bearer new")
    assert asked.target == "/oauth/token" and "authorization" not in asked.headers
    assert json.loads(asked.body) == {
        "grant_type": "refresh_token", "refresh_token": "refresh-1", "client_id": CLIENT_ID,
    }  # fmt: skip
    data = json.loads(path.read_text())
    assert data["tokens"] == {
        "id_token": "id-2", "access_token": "new", "refresh_token": "refresh-2", "account_id": "acc-1", "future": [1],
    }  # fmt: skip
    assert (data["big"], data["auth_mode"], data["OPENAI_API_KEY"]) == (1 << 70, "chatgpt", None)
    assert data["last_refresh"] > "2025-01-01T00:00:00Z"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.listdir(tmp_path) == ["auth.json"]


async def test_r19_a_token_that_stays_refused_ends_the_attempts(tmp_path: Path) -> None:
    write_auth(tmp_path)
    async with FaultServer([REFUSED, tokens(access_token="new"), REFUSED]) as server:
        with pytest.raises(AuthError, match="codex login") as caught:
            await ask(provider_of(server, tmp_path))
        assert len(server.requests) == 3
    assert caught.value.status == 401


async def test_requests_that_are_refused_together_renew_once(tmp_path: Path) -> None:
    write_auth(tmp_path)
    hold = asyncio.Event()
    # Both are refused before either renews.
    refused = Stream([hold], 401, JSON, "close")
    async with FaultServer([refused, refused, tokens(access_token="new"), ANSWER]) as server:
        provider = provider_of(server, tmp_path)

        async def one() -> Finish:
            request = Request(model="gpt-5.5", messages=[user("hi")])
            items = [item async for item in provider.stream(request)]
            assert isinstance(items[-1], Finish)
            return items[-1]

        tasks = [asyncio.create_task(one()) for _ in range(2)]
        await server.wait(requests=2)
        hold.set()
        assert [finish.message.text for finish in await asyncio.gather(*tasks)] == ["Hello", "Hello"]
        await provider.close()
        targets = [request.target for request in server.requests]
    assert targets.count("/oauth/token") == 1 and len(targets) == 5


async def test_a_token_that_another_program_renewed_is_taken_over(tmp_path: Path) -> None:
    path = write_auth(tmp_path)
    async with FaultServer([REFUSED, ANSWER]) as server:
        provider = provider_of(server, tmp_path)
        provider.provider._current()  # pyright: ignore[reportPrivateUsage]
        write_auth(tmp_path, "theirs")
        await ask(provider)
        assert [request.headers["authorization"] for request in server.requests] == ["Bearer old", "Bearer theirs"]
    # Or while we asked: a refresh token is good for one use.
    write_auth(tmp_path)
    hold = asyncio.Event()
    reused = b'{"error":{"code":"refresh_token_reused","message":"used"}}'
    async with FaultServer([REFUSED, Stream([hold, reused], 401, JSON), ANSWER]) as server:
        provider = provider_of(server, tmp_path)
        asked = asyncio.create_task(ask(provider))
        await server.wait(requests=2)
        write_auth(tmp_path, "theirs")
        hold.set()
        await asked
        assert server.requests[2].headers["authorization"] == "Bearer theirs"
    assert json.loads(path.read_text())["tokens"]["refresh_token"] == "refresh-1"


def error(code: str, message: str = "no") -> bytes:
    return json.dumps({"error": {"code": code, "message": message}}).encode()


RENEWALS: list[tuple[Step, type[WindlassError], str]] = [
    (Reply(401, error("refresh_token_expired"), JSON), AuthError, r"ended.*refresh_token_expired.*codex login"),
    (Reply(401, error("refresh_token_invalidated"), JSON), AuthError, "refresh_token_invalidated"),
    (Reply(400, b'{"error":"invalid_grant","error_description":"Bad token"}', JSON), AuthError, "invalid_grant.*Bad"),
    (Reply(403, b"<html>blocked</html>"), AuthError, "403"),
    (Reply(503, b"down"), OverloadedError, "503"),
    (Reply(429, error("rate_limit_exceeded"), JSON), RateLimitError, "429"),
    (Reply(200, b"{}", JSON), WireError, "without a token"),
    (Reply(200, b"<html>", JSON), WireError, "without a token"),
    (Fin(), ProviderConnectionError, "codex"),
]


@pytest.mark.parametrize(("answer", "kind", "words"), RENEWALS)
async def test_failed_renewals_are_typed_and_change_nothing(
    tmp_path: Path, answer: Step, kind: type[WindlassError], words: str
) -> None:
    path = write_auth(tmp_path)
    before = path.read_bytes()
    async with FaultServer([REFUSED, answer]) as server:
        with pytest.raises(kind, match=words) as caught:
            await ask(provider_of(server, tmp_path))
        assert caught.value.context()["endpoint"] == f"{server.url}/oauth/token"
    assert path.read_bytes() == before


async def test_a_given_token_is_not_renewed(tmp_path: Path) -> None:
    path = write_auth(tmp_path)
    before = path.read_bytes()
    async with FaultServer([REFUSED]) as server:
        with pytest.raises(AuthError, match="CHATGPT_ACCOUNT_ID"):
            await ask(provider_of(server, tmp_path, CODEX_ACCESS_TOKEN="given"))
        assert len(server.requests) == 1
    assert path.read_bytes() == before


async def test_a_login_that_cannot_be_written_back_is_told_and_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_auth(tmp_path)

    def full(source: str, target: str) -> None:
        raise OSError(28, "No space left on device")

    async with FaultServer([REFUSED, tokens(access_token="new"), ANSWER]) as server:
        monkeypatch.setattr(os, "replace", full)
        with caplog.at_level(logging.WARNING, "windlass.codex"):
            assert (await ask(provider_of(server, tmp_path)))[1].message.text == "Hello"
    assert str(path) in caplog.text and "No space" in caplog.text and "new" not in caplog.text.replace("renewed", "")
    assert json.loads(path.read_text())["tokens"]["access_token"] == "old" and os.listdir(tmp_path) == ["auth.json"]


def test_a_link_to_the_login_stays_one(tmp_path: Path) -> None:
    real = write_auth(tmp_path / "real")
    link = tmp_path / "auth.json"
    link.symlink_to(real)
    save_tokens(str(link), {"access_token": "new"})
    assert link.is_symlink() and read_login(str(real)).access_token == "new"


async def test_refresh_may_be_asked_for_before_any_refusal(tmp_path: Path) -> None:
    write_auth(tmp_path)
    async with FaultServer([tokens(access_token="new")]) as server:
        provider = provider_of(server, tmp_path)
        assert await provider.provider.refresh() is True
        assert read_login(str(tmp_path / "auth.json")).access_token == "new"
        await provider.close()


# ------------------------------------------------------------------------------------------------------------ failures


async def test_r07_r10_cut_streams_are_interrupted_with_their_text(tmp_path: Path) -> None:
    write_auth(tmp_path)
    for end in ("rst", "fin", "keep"):
        cut = Stream(events(*BEGUN).parts, end=end)
        async with FaultServer([cut]) as server:
            with pytest.raises(StreamInterrupted) as caught:
                await ask(provider_of(server, tmp_path))
        assert (caught.value.partial, caught.value.provider) == ("Hello", "codex")


async def test_r15_a_failure_before_any_content_is_asked_again(tmp_path: Path) -> None:
    write_auth(tmp_path)
    failed = {"type": "response.failed", "response": {**RESPONSE, "status": "failed", "output": [],
              "error": {"code": "server_is_overloaded", "message": "Busy"}}}  # fmt: skip
    async with FaultServer([events(BEGUN[0], failed), ANSWER]) as server:
        items, finish = await ask(provider_of(server, tmp_path), budget=Budget(None, 3))
        assert len(server.requests) == 2
    assert finish.message.text == "Hello" and isinstance(items[0], NoticeItem) and items[0].kind == "retry"


async def test_r17_a_used_up_plan_says_when_it_begins_anew(tmp_path: Path) -> None:
    write_auth(tmp_path)
    said = {"type": "usage_limit_reached", "message": "The usage limit has been reached", "resets_in_seconds": 13872}
    limit = {"error": {**said, "plan_type": "plus"}}
    async with FaultServer([Reply(429, json.dumps(limit).encode(), JSON)]) as server:
        with pytest.raises(RateLimitError, match="usage limit") as caught:
            await ask(provider_of(server, tmp_path))
        assert len(server.requests) == 1
    assert caught.value.retry_after == 13872.0


# --------------------------------------------------------------------------------------------- the vendor with a key


async def test_openai_responses_is_openais_own_account() -> None:
    async with FaultServer([ANSWER]) as server:
        env = {"OPENAI_API_KEY": "key-1", "OPENAI_BASE_URL": f"{server.url}/v1", "OPENAI_ORG_ID": "org-1"}
        provider, model, full = registry.model("openai-responses:gpt-5", Config.from_environment(env))
        assert (provider.name, model, full) == ("openai-responses", "gpt-5", "openai-responses:gpt-5")
        request = Request(model=model, messages=[user("hi")], settings=Settings(thinking="low"))
        items = [item async for item in provider.stream(request)]
        await provider.close()
        (sent,) = server.requests
    assert isinstance(items[-1], Finish) and items[-1].message.text == "Hello"
    assert (sent.target, sent.headers["authorization"]) == ("/v1/responses", "Bearer key-1")
    assert sent.headers["openai-organization"] == "org-1"
    body = json.loads(sent.body)
    assert (body["reasoning"], body["include"], body["store"]) == (
        {"effort": "low"}, ["reasoning.encrypted_content"], False,
    )  # fmt: skip


def test_openai_responses_has_openais_key_wherever_it_is_stated() -> None:
    with pytest.raises(MissingKeyError, match="OPENAI_API_KEY"):
        registry.model("openai-responses:x", Config.from_environment({}))
    stated = Config(environ={"MINE": "k"}, providers={"openai": {"api_key": "env:MINE"}})
    assert stated.provider_settings("openai-responses").api_key == "k"
    both = Config.from_environment({"OPENAI_API_KEY": "a", "ABI_OPENAI_API_KEY": "b"})
    assert len(both.notices) == 1
    grok = Config.from_environment({"WINDLASS_PROVIDER": "groq", "WINDLASS_MODEL": "openai-responses:gpt-5"})
    assert grok.default_model == "openai-responses:gpt-5"
