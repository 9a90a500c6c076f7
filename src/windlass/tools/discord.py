"""Discord's Bot API, version 10: who the bot is, where it is, messages, webhooks, and signed interactions.

    async with Discord() as discord:          # the token is DISCORD_BOT_TOKEN
        print((await discord.get_current_user())["username"])
        await discord.create_message("123456789012345678", "The build is green.")

Shapes and rules: discord.com/developers/docs (reference, resources/user, message, webhook; interactions/overview).
Names are reference E's. Nothing is sent twice by itself: `RateLimited` says when to ask again.
"""

from __future__ import annotations

import os
import re
from collections.abc import Awaitable, Callable, Mapping
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import urlsplit

from windlass.core import clock
from windlass.core.errors import ConfigError, MissingKeyError, TransportError, WindlassError
from windlass.core.http import Client
from windlass.core.json import JsonError, dumps, loads
from windlass.core.version import __version__

__all__ = ["Discord", "DiscordError", "RateLimited", "Unauthorized", "answer_interaction", "redacted", "verify"]

API: Final = "https://discord.com/api/v10"
#: Characters of a message, digits of an id, bytes of an answer that are read.
MOST_CHARACTERS, _MOST_DIGITS, _MOST_BYTES = 2000, 32, 4 << 20
_ID: Final = re.compile(rf"[0-9]{{1,{_MOST_DIGITS}}}")
_PATH_TOKEN: Final = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,511}")
#: A bot's token, with or without its word, and those that stand in the paths of webhooks and interactions.
_SECRETS: Final = re.compile(
    r"(?:(?<=Bot )|(?<![\w-]))[\w-]{18,40}\.[\w-]{5,8}\.[\w-]{20,}"
    r"|(?<=/webhooks/)(\d+)/[\w.-]+|(?<=/interactions/)(\d+)/[\w.-]+"
)
#: Nobody is notified by what a model writes, unless the caller says so.
_NOBODY: Final = {"parse": list[str]()}
#: Seconds that a signed interaction may be old: Discord itself gives up after three.
_FRESH: Final = 300.0
_PING, _PONG, _MESSAGE = 1, 1, 4


class DiscordError(WindlassError):
    """Report a request that Discord refused or that did not reach it; `status` is HTTP's, `number` Discord's code."""

    code = "discord"

    def __init__(self, message: str, *, status: int | None = None, number: int | None = None, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.status, self.number = status, number


class RateLimited(DiscordError):
    """Report 429: ask again after `retry_after` seconds; `everything` says that all of the bot's requests wait."""

    code = "rate_limited"

    def __init__(self, message: str, *, retry_after: float, everything: bool) -> None:
        super().__init__(message, status=429, hint=f"Ask again in {retry_after:g} s.")
        self.retry_after, self.everything = retry_after, everything


class Unauthorized(DiscordError):
    """Report a token that Discord does not take (401)."""

    code = "unauthorized"


def redacted(text: str) -> str:
    """Return text in which no token of Discord's stands any more: a bot's, a webhook's, an interaction's."""
    return _SECRETS.sub(lambda found: f"{found[1] or found[2]}/***" if found[1] or found[2] else "***", text)


class Discord:
    """Ask Discord as a bot. `token` is by default the variable DISCORD_BOT_TOKEN, `base_url` for tests.

    Its methods return Discord's JSON. They raise RateLimited, Unauthorized, other DiscordErrors, ConfigError for ids
    and texts that Discord would not take, before anything is sent, and MissingKeyError without a token. No token is in
    any of their texts.
    """

    def __init__(
        self,
        token: str | None = None,
        *,
        base_url: str = API,
        env: Mapping[str, str] | None = None,
        seconds: float = 30,
    ) -> None:
        self._token = (token or (os.environ if env is None else env).get("DISCORD_BOT_TOKEN", "")).removeprefix("Bot ")
        if urlsplit(base_url).scheme not in ("http", "https"):
            raise ConfigError(f"Discord's address is {base_url!r}; it must begin with https://.")
        self._base, self._seconds = base_url.rstrip("/"), seconds
        self._client: Client | None = None

    def __repr__(self) -> str:
        return f"Discord({self._base!r})"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    async def get_current_user(self) -> dict[str, Any]:
        """Return the bot's own user: id, username, …."""
        return _object(await self._ask("GET", "/users/@me"))

    async def get_current_user_guilds(self, *, limit: int = 200, after: str = "") -> list[dict[str, Any]]:
        """Return the servers that the bot is in, at most `limit` (1 to 200), those behind the id `after`."""
        if not 1 <= limit <= 200:
            raise ConfigError(f"limit is {limit}; it must be between 1 and 200.")
        behind = f"&after={_id('after', after)}" if after else ""
        found = await self._ask("GET", f"/users/@me/guilds?limit={limit}{behind}")
        return [row for row in found if isinstance(row, dict)] if isinstance(found, list) else []

    async def create_message(
        self, channel_id: str, content: str, *, reply_to: str = "", mentions: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """Post a message of 1 to 2000 characters and return it; `reply_to` is the id of the message it answers.

        `mentions` is Discord's `allowed_mentions`; by default nobody is notified.
        """
        body: dict[str, Any] = {"content": _content(content), "allowed_mentions": mentions or _NOBODY}
        if reply_to:
            body["message_reference"] = {"message_id": _id("reply_to", reply_to)}
        return _object(await self._ask("POST", f"/channels/{_id('channel_id', channel_id)}/messages", body))

    async def execute_webhook(
        self, webhook_id: str, webhook_token: str, content: str, *, username: str = "", thread_id: str = ""
    ) -> dict[str, Any]:
        """Post a message through a webhook, which needs no bot, and return it. Limits are those of `create_message`."""
        body: dict[str, Any] = {"content": _content(content), "allowed_mentions": _NOBODY}
        if username:
            body["username"] = username
        thread = f"&thread_id={_id('thread_id', thread_id)}" if thread_id else ""
        path = f"/webhooks/{_id('webhook_id', webhook_id)}/{_path_token(webhook_token)}?wait=true{thread}"
        return _object(await self._ask("POST", path, body, bot=False))

    async def respond(self, interaction_id: str, interaction_token: str, content: str) -> None:
        """Answer an interaction that came over the gateway with a message, within three seconds of it."""
        path = f"/interactions/{_id('interaction_id', interaction_id)}/{_path_token(interaction_token)}/callback"
        await self._ask("POST", path, _answer(content), bot=False)

    async def _ask(self, method: str, target: str, body: Any = None, *, bot: bool = True) -> Any:
        headers = {"user-agent": f"DiscordBot (https://pypi.org/project/windlass, {__version__})"}
        if bot:
            headers["authorization"] = f"Bot {self._required()}"
        if body is not None:
            headers["content-type"] = "application/json"
        if self._client is None:
            self._client = Client(total_timeout=self._seconds, max_body_bytes=_MOST_BYTES)
        shown = self._hidden(f"{method} {target.partition('?')[0]}")
        try:
            answer = await self._client.request(
                method, self._base + target, headers=headers, body=b"" if body is None else dumps(body)
            )
        except TransportError as error:
            # Not as its cause: that one holds the whole address, and webhooks have their token there.
            raise DiscordError(f"Discord cannot be asked for {shown}: {self._hidden(error.message)}") from None
        try:
            said: Any = loads(answer.body) if answer.body else None
        except JsonError:
            said = None
        if 200 <= answer.status < 300:
            return said
        raise self._failed(shown, answer.status, said, answer.headers.get("retry-after"))

    def _failed(self, shown: str, status: int, said: Any, wait: str | None) -> DiscordError:
        told: dict[str, Any] = said if isinstance(said, dict) else {}
        text, number = self._hidden(str(told.get("message", ""))[:300]), told.get("code")
        message = f"Discord answered {status} to {shown}{f': {text}' if text else ''}."
        if status == 429:
            return RateLimited(message, retry_after=_wait(told, wait), everything=told.get("global") is True)
        if status == 401:
            return Unauthorized(message, status=status, hint="Is DISCORD_BOT_TOKEN the token of this bot?")
        return DiscordError(message, status=status, number=number if isinstance(number, int) else None)

    def _required(self) -> str:
        if not self._token:
            raise MissingKeyError("There is no token of a Discord bot.", hint="Set DISCORD_BOT_TOKEN, or pass token=….")
        if not self._token.isascii() or not self._token.isprintable() or " " in self._token:
            raise ConfigError("The token of the Discord bot holds what no token does.", hint="Copy it again.")
        return self._token

    def _hidden(self, text: str) -> str:
        return redacted(text.replace(self._token, "***") if self._token else text)


def verify(public_key: str, signature: str, timestamp: str, body: bytes) -> bool:
    """Tell whether Discord signed an interaction: Ed25519 over the timestamp and the body as they came.

    `public_key` is the application's and `signature` the header X-Signature-Ed25519, both in hex; `timestamp` is
    X-Signature-Timestamp. Raises ConfigError for a public key that is none, and where the extra is missing.
    """
    try:
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    except ImportError:
        raise ConfigError(
            "Signatures of Discord need cryptography, which is not installed.", hint="pip install 'windlass[discord]'"
        ) from None
    try:
        key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(public_key))
    except ValueError:
        raise ConfigError("The public key of the Discord application is not 32 bytes in hex.") from None
    try:
        key.verify(bytes.fromhex(signature), timestamp.encode() + body)
    except (ValueError, InvalidSignature):
        return False
    return True


async def answer_interaction(
    public_key: str,
    headers: Mapping[str, str],
    body: bytes,
    answer: Callable[[dict[str, Any]], Awaitable[str]],
) -> tuple[int, bytes]:
    """Return status and JSON body for a POST of Discord's to an interactions endpoint.

    `headers` have names in lower case. A ping is answered by itself; for a command `answer` gets Discord's JSON and
    returns the text of the message. What is not signed, or signed long ago, is 401, as Discord requires.
    """
    signature, timestamp = headers.get("x-signature-ed25519", ""), headers.get("x-signature-timestamp", "")
    if not _recent(timestamp) or not verify(public_key, signature, timestamp, body):
        return 401, dumps({"error": "The signature is not valid."})
    try:
        asked: Any = loads(body)
    except JsonError:
        asked = None
    if not isinstance(asked, dict) or not isinstance(asked.get("type"), int):
        return 400, dumps({"error": "The body is no interaction."})
    if asked["type"] == _PING:
        return 200, dumps({"type": _PONG})
    return 200, dumps(_answer(await answer(asked)))


def _recent(timestamp: str) -> bool:
    if not (timestamp.isascii() and timestamp.isdigit() and len(timestamp) < 16):
        return False
    return abs(clock.now_ns() / 1e9 - int(timestamp)) <= _FRESH


def _answer(content: str) -> dict[str, Any]:
    return {"type": _MESSAGE, "data": {"content": _content(content), "allowed_mentions": _NOBODY}}


def _id(name: str, value: str) -> str:
    if not isinstance(value, str) or not _ID.fullmatch(value):
        raise ConfigError(f"{name} is {str(value)[:40]!r}; an id of Discord's is 1 to {_MOST_DIGITS} digits.")
    return value


def _path_token(value: str) -> str:
    if not _PATH_TOKEN.fullmatch(value):
        raise ConfigError("A token of a webhook or an interaction holds letters, digits, dots and dashes only.")
    return value


def _content(text: str) -> str:
    if not text.strip() or len(text) > MOST_CHARACTERS:
        raise ConfigError(f"A message of Discord's has 1 to {MOST_CHARACTERS} characters; this has {len(text)}.")
    return text


def _wait(told: Mapping[str, Any], header: str | None) -> float:
    for value in (told.get("retry_after"), header):
        try:
            seconds = float(value)  # pyright: ignore[reportArgumentType]
        except (TypeError, ValueError):
            continue
        if 0.0 <= seconds < 1e7:
            return seconds
    return 1.0


def _object(said: Any) -> dict[str, Any]:
    if not isinstance(said, dict):
        raise DiscordError("Discord answered with what is no object.")
    return said  # pyright: ignore[reportUnknownVariableType]
