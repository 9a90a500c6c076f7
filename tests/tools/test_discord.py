"""Discord's Bot API over loopback, in the shapes of its documentation, and signatures made by the real algorithm."""

from __future__ import annotations

import json
import logging
import socket
import sys
import time
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from windlass.core.errors import ConfigError, MissingKeyError
from windlass.testing.faults import FaultServer, Reply
from windlass.tools.discord import (
    Discord,
    DiscordError,
    RateLimited,
    Unauthorized,
    answer_interaction,
    redacted,
    verify,
)

# In the form of a bot's token, and of nobody's.
TOKEN = "MTA" + "x" * 21 + ".Gabc12." + "y" * 38
USER = {"id": "80351110224678912", "username": "Nelly", "discriminator": "0", "bot": True, "mfa_enabled": True}
GUILD = {"id": "197038439483310086", "name": "Testers", "icon": None, "owner": False, "permissions": "36953089"}
MESSAGE = {"id": "334385199974967042", "channel_id": "290926798999357250", "content": "hi", "type": 0}


def said(body: Any, status: int = 200, **headers: str) -> Reply:
    return Reply(status, json.dumps(body).encode(), {"content-type": "application/json", **headers})


def discord(server: FaultServer, token: str = TOKEN) -> Discord:
    return Discord(token, base_url=f"{server.url}/api/v10")


async def test_who_the_bot_is_and_where() -> None:
    async with FaultServer([said(USER), said([GUILD]), said([])]) as server, discord(server) as bot:
        assert await bot.get_current_user() == USER
        assert await bot.get_current_user_guilds() == [GUILD]
        assert await bot.get_current_user_guilds(limit=1, after="197038439483310086") == []
    assert [request.target for request in server.requests] == [
        "/api/v10/users/@me", "/api/v10/users/@me/guilds?limit=200",
        "/api/v10/users/@me/guilds?limit=1&after=197038439483310086",
    ]  # fmt: skip
    headers = dict(server.requests[0].headers)
    assert headers["authorization"] == f"Bot {TOKEN}" and headers["user-agent"].startswith("DiscordBot (https://")


async def test_a_message_notifies_nobody_by_itself() -> None:
    async with FaultServer([said(MESSAGE), said(MESSAGE)]) as server, discord(server) as bot:
        assert await bot.create_message("290926798999357250", "@everyone hi") == MESSAGE
        await bot.create_message("1", "hi", reply_to="334385199974967042", mentions={"parse": ["users"]})
    first, second = [json.loads(request.body) for request in server.requests]
    assert first == {"content": "@everyone hi", "allowed_mentions": {"parse": []}}
    assert second["message_reference"] == {"message_id": "334385199974967042"}
    assert second["allowed_mentions"] == {"parse": ["users"]}
    assert server.requests[0].target == "/api/v10/channels/290926798999357250/messages"


async def test_webhooks_and_interactions_need_no_bot() -> None:
    async with FaultServer([said(MESSAGE), Reply(204)]) as server, Discord("", base_url=server.url, env={}) as hook:
        assert await hook.execute_webhook("223704706495545344", "3d89bb7572e0fb30", "hi", username="ci") == MESSAGE
        await hook.respond("846462639134605312", "aW50ZXJhY3Rpb24", "Pong.")
        with pytest.raises(MissingKeyError, match="DISCORD_BOT_TOKEN"):
            await hook.get_current_user()
    first, second = server.requests
    assert first.target == "/webhooks/223704706495545344/3d89bb7572e0fb30?wait=true"
    assert "authorization" not in dict(first.headers)
    assert json.loads(second.body)["type"] == 4 and second.target.endswith("/callback")
    assert len(server.requests) == 2


@pytest.mark.parametrize("wrong", ["", "12a", "../1", "1" * 33, "１２", " 1"])
async def test_ids_are_digits_and_nothing_is_sent_for_others(wrong: str) -> None:
    async with FaultServer([said({})]) as server, discord(server) as bot:
        with pytest.raises(ConfigError, match="1 to 32 digits"):
            await bot.create_message(wrong, "hi")
        with pytest.raises(ConfigError):
            await bot.execute_webhook(wrong, "t", "hi")
        with pytest.raises(ConfigError):
            await bot.execute_webhook("1", "../../x", "hi")
        with pytest.raises(ConfigError):
            await bot.execute_webhook("1", "..", "hi")
    assert server.requests == []


async def test_a_message_has_at_most_2000_characters() -> None:
    async with FaultServer([said(MESSAGE)]) as server, discord(server) as bot:
        await bot.create_message("1", "é" * 2000)
        for text in ("", "  \n", "x" * 2001):
            with pytest.raises(ConfigError, match="1 to 2000 characters"):
                await bot.create_message("1", text)
        with pytest.raises(ConfigError, match="between 1 and 200"):
            await bot.get_current_user_guilds(limit=201)
    assert len(server.requests) == 1


async def test_refusals_are_typed() -> None:
    limited = {"message": "You are being rate limited.", "retry_after": 0.65, "global": False}
    replies = [
        said(limited, 429, **{"retry-after": "1"}),
        said({"message": "slow", "global": True}, 429, **{"retry-after": "7"}),
        said({"message": "401: Unauthorized", "code": 0}, 401), said({"message": "Missing Access", "code": 50001}, 403),
        Reply(502, b"<html>"), said([1]),
    ]  # fmt: skip
    async with FaultServer(replies) as server, discord(server) as bot:
        with pytest.raises(RateLimited, match=r"Ask again in 0\.65 s") as first:
            await bot.get_current_user()
        with pytest.raises(RateLimited) as second:
            await bot.get_current_user()
        with pytest.raises(Unauthorized, match="DISCORD_BOT_TOKEN"):
            await bot.get_current_user()
        with pytest.raises(DiscordError, match="Missing Access") as third:
            await bot.create_message("1", "hi")
        with pytest.raises(DiscordError, match="Discord answered 502"):
            await bot.get_current_user()
        with pytest.raises(DiscordError, match="no object"):
            await bot.get_current_user()
    assert (first.value.retry_after, first.value.everything) == (0.65, False)
    assert (second.value.retry_after, second.value.everything) == (7.0, True)
    assert (third.value.status, third.value.number) == (403, 50001)


async def test_no_token_is_in_any_error_log_or_name(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        closed = f"http://127.0.0.1:{probe.getsockname()[1]}"
    shown = list[str]()
    async with Discord(TOKEN, base_url=closed) as bot:
        for ask in (bot.get_current_user(), bot.execute_webhook("1", "hook-secret-1", "hi")):
            with pytest.raises(DiscordError) as caught:
                await ask
            shown += [str(caught.value), repr(caught.value.__cause__), repr(bot), json.dumps(caught.value.to_dict())]
    async with FaultServer([said({"message": f"bad token {TOKEN}"}, 400)]) as server, discord(server) as bot:
        with pytest.raises(DiscordError) as caught:
            await bot.get_current_user()
    shown += [str(caught.value), caplog.text]
    assert not [text for text in shown if TOKEN in text or "hook-secret-1" in text]
    with pytest.raises(ConfigError) as odd:
        await Discord("a b\r\nx: y", base_url=closed).get_current_user()
    assert "a b" not in str(odd.value)


@given(st.text(max_size=40), st.text(max_size=40))
def test_redaction_finds_tokens_in_any_text(before: str, after: str) -> None:
    token = f"Bot {TOKEN}"
    assert TOKEN not in redacted(f"{before} {token} {after}")
    assert redacted(f"{before} https://discord.com/api/webhooks/12/ab-c.d {after}").count("webhooks/12/***") == 1
    assert redacted("https://discord.com/api/v10/users/@me") == "https://discord.com/api/v10/users/@me"


# -------------------------------------------------------------------------------------------------------- signatures

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
PUBLIC = KEY.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw).hex()


def signed(body: bytes, age: float = 0.0) -> dict[str, str]:
    stamp = str(int(time.time() - age))
    return {"x-signature-ed25519": KEY.sign(stamp.encode() + body).hex(), "x-signature-timestamp": stamp}


async def pong(asked: dict[str, Any]) -> str:
    return f"hello {asked['member']['user']['username']}"


async def test_interactions_are_answered_only_when_discord_signed_them() -> None:
    ping = b'{"type":1}'
    assert await answer_interaction(PUBLIC, signed(ping), ping, pong) == (200, b'{"type":1}')
    body = json.dumps({"type": 2, "data": {"name": "hi"}, "member": {"user": {"username": "ann"}}}).encode()
    status, answer = await answer_interaction(PUBLIC, signed(body), body, pong)
    assert (status, json.loads(answer)["data"]["content"]) == (200, "hello ann")
    other = Ed25519PrivateKey.generate().public_key().public_bytes(Encoding.Raw, PublicFormat.Raw).hex()
    for key, headers, data in (
        (PUBLIC, signed(body), body + b" "), (other, signed(body), body), (PUBLIC, {}, body),
        (PUBLIC, {**signed(body), "x-signature-ed25519": "zz"}, body), (PUBLIC, signed(body, age=3600), body),
        (PUBLIC, {**signed(body), "x-signature-timestamp": "x"}, body),
    ):  # fmt: skip
        assert (await answer_interaction(key, headers, data, pong))[0] == 401
    assert (await answer_interaction(PUBLIC, signed(b"[]"), b"[]", pong))[0] == 400
    assert (await answer_interaction(PUBLIC, signed(b"\xff"), b"\xff", pong))[0] == 400


@given(st.binary(max_size=80), st.text(max_size=80), st.text(max_size=30))
def test_no_signature_that_is_made_up_is_taken(body: bytes, signature: str, timestamp: str) -> None:
    assert not verify(PUBLIC, signature, timestamp, body)


def test_a_public_key_that_is_none_and_a_missing_library(monkeypatch: pytest.MonkeyPatch) -> None:
    for key in ("", "zz", "00"):
        with pytest.raises(ConfigError, match="32 bytes in hex"):
            verify(key, "00", "1", b"")
    monkeypatch.setitem(sys.modules, "cryptography.exceptions", None)
    with pytest.raises(ConfigError, match=r"windlass\[discord\]"):
        verify(PUBLIC, "00", "1", b"")
