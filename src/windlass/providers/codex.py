"""A ChatGPT account in place of an API key: the login of the Codex CLI, renewed when its token is refused.

Source: github.com/openai/codex (`codex-rs/login`): `auth.json`, the token endpoint and its error codes.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import logging
import os
import weakref
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from typing import Any, Final

from msgspec import Struct
from msgspec.structs import replace

from windlass.core import clock
from windlass.core.errors import AuthError, ProviderError, TransportError, WireError
from windlass.core.http import Timeouts, endpoint
from windlass.core.items import Item
from windlass.core.json import JsonError, dumps, loads
from windlass.core.request import Request
from windlass.core.threads import run_in_thread
from windlass.providers.remote import RemoteProvider
from windlass.wire.base import Dialect, as_dict, as_str, excerpt, provider_error

__all__ = ["CLIENT_ID", "REFRESH_URL", "CodexProvider", "Login", "read_login", "save_tokens"]

log = logging.getLogger("windlass.codex")
#: The Codex CLI's own id: a login belongs to the client that made it.
CLIENT_ID: Final = "app_EMoamEEZ73f0CkXaXp7hrann"
REFRESH_URL: Final = "https://auth.openai.com/oauth/token"
_LOG_IN: Final = "Run `codex login`, or set CODEX_ACCESS_TOKEN and CHATGPT_ACCOUNT_ID."
_CLAIMS: Final = "https://api.openai.com/auth"
_TIMEOUTS: Final = Timeouts(10.0, 30.0, 30.0, 60.0, 30.0)


class Login(Struct, frozen=True):
    """A login: what requests carry, and what a new token is had for ("" where it cannot be renewed)."""

    access_token: str
    account_id: str = ""
    refresh_token: str = ""


def read_login(path: str) -> Login:
    """Read the Codex CLI's `auth.json`. Raises AuthError that says what is wrong with it."""
    try:
        with open(path, "rb") as file:
            data = loads(file.read())
    except FileNotFoundError:
        raise AuthError(f"There is no ChatGPT login: {path} is not there.", hint=_LOG_IN) from None
    except (OSError, JsonError) as error:
        raise AuthError(f"The ChatGPT login in {path} cannot be read: {error}.", hint=_LOG_IN) from None
    tokens = as_dict(as_dict(data).get("tokens"))
    access = as_str(tokens.get("access_token"))
    if not access:
        hint = "It holds an API key: use openai-responses." if as_dict(data).get("OPENAI_API_KEY") else _LOG_IN
        raise AuthError(f"{path} holds no ChatGPT login.", hint=hint)
    account = as_str(tokens.get("account_id")) or _account_of(access) or _account_of(as_str(tokens.get("id_token")))
    return Login(access, account, as_str(tokens.get("refresh_token")))


def _account_of(token: str) -> str:
    """Return the account that a token (a JWT, read and not checked) names, "" where it names none."""
    payload = token.split(".")[1:2]
    if not payload:
        return ""
    try:
        claims = loads(base64.urlsafe_b64decode(payload[0].encode("ascii", "replace") + b"=="))
    except (binascii.Error, JsonError):
        return ""
    return as_str(as_dict(as_dict(claims).get(_CLAIMS)).get("chatgpt_account_id"))


def save_tokens(path: str, tokens: Mapping[str, str]) -> None:
    """Put new tokens into `auth.json`, whose other fields stay: a new file of mode 0600 takes its place at once.

    Raises OSError, and ValueError where the file is no longer JSON.
    """
    # A link to a file elsewhere stays one.
    path = os.path.realpath(path)
    with open(path, encoding="utf-8") as file:
        # Not `core.json`: what is not ours goes back as it was, numbers past 64 bits among it.
        data: Any = json.load(file)
    kept = as_dict(data)
    renewed = clock.rfc3339(clock.now_ns())
    kept = {**kept, "tokens": {**as_dict(kept.get("tokens")), **tokens}, "last_refresh": renewed}
    beside = f"{path}.{clock.new_id()}"
    handle = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with open(handle, "w", encoding="utf-8") as file:
            json.dump(kept, file, indent=2)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)  # noqa: PTH105
    except BaseException:
        os.unlink(beside)  # noqa: PTH108
        raise


class CodexProvider(RemoteProvider):
    """Ask the backend of the Codex CLI with a ChatGPT account.

    The token is the one that is configured, else that of `auth.json` in `$CODEX_HOME` or `~/.codex`, read at the first
    request. `own_settings` may hold `account_id`, `home` (of `auth.json`) and `refresh_url`.
    """

    def __init__(self, name: str, dialect: Dialect, base_url: str, path: str, **options: Any) -> None:
        super().__init__(name, dialect, base_url, path, sign=self._authorized, **options)
        own, environ = self.own_settings, self._environ if self._environ is not None else os.environ
        self._account = own.get("account_id", "")
        self._refresh_url = own.get("refresh_url") or REFRESH_URL
        user = environ.get("HOME") or environ.get("USERPROFILE") or ""
        home = own.get("home") or (os.path.join(user, ".codex") if user else "")  # noqa: PTH118 - text throughout
        given = self.headers.pop("authorization", "").removeprefix("Bearer ").strip()
        #: Where the login is kept; "" where the token was given, or where there is no home.
        self.path = os.path.join(home, "auth.json") if home and not given else ""  # noqa: PTH118
        self._login = Login(given, _account_of(given)) if given else None
        self._refused: str | None = None
        self._locks: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock] = weakref.WeakKeyDictionary()

    async def stream(self, request: Request) -> AsyncIterator[Item]:
        """Send the request and yield its items. Raises ProviderError kinds only, AuthError without a login."""
        token = self._current().access_token
        try:
            async with aclosing(super().stream(request)) as items:  # pyright: ignore[reportArgumentType]
                async for item in items:
                    yield item
        except AuthError as error:
            self._refused = token
            missing = "" if self._account or self._current().account_id else " Set CHATGPT_ACCOUNT_ID."
            error.hint = f"{_LOG_IN}{missing}"
            raise

    def _current(self) -> Login:
        if self._login is None:
            if not self.path:
                raise AuthError("There is no ChatGPT login.", provider=self.name, hint=_LOG_IN)
            self._login = read_login(self.path)
        return self._login

    def _authorized(self, method: str, url: str, headers: Mapping[str, str], body: bytes) -> dict[str, str]:  # noqa: ARG002 - a Signer
        login = self._current()
        account = self._account or login.account_id
        out = {**headers, "authorization": f"Bearer {login.access_token}"}
        return {**out, "chatgpt-account-id": account} if account else out

    # -------------------------------------------------------------------------------------------------- renewal

    async def refresh(self) -> bool:
        """Renew a refused token; False where that cannot be done.

        Several requests that were refused together renew it once; a token that another program renewed meanwhile is
        taken from its file. Raises AuthError when the login has ended, and what kept the token endpoint from answering.
        """
        lock = self._locks.setdefault(asyncio.get_running_loop(), asyncio.Lock())
        async with lock:
            before = self._current()
            if self._refused is not None and before.access_token != self._refused:
                return True
            if not self.path:
                return False
            if await self._taken_over(before):
                return True
            return bool(before.refresh_token) and await self._renew(before)

    async def _taken_over(self, before: Login) -> bool:
        """Take another program's new token from the file; False when there is none."""
        try:
            found = await run_in_thread(lambda: read_login(self.path))
        except AuthError:
            return False
        if found.access_token == before.access_token:
            return False
        self._login = found
        return True

    async def _renew(self, before: Login) -> bool:
        asked = {"client_id": CLIENT_ID, "grant_type": "refresh_token", "refresh_token": before.refresh_token}
        try:
            answer = await self.client.request(
                "POST", self._refresh_url, headers={"content-type": "application/json"}, body=dumps(asked),
                timeouts=_TIMEOUTS,
            )  # fmt: skip
        except TransportError as error:
            failed = self._transport_error(error, Request(model=self.default_model, messages=()), "")
            failed.endpoint = endpoint(self._refresh_url)
            raise failed from error
        try:
            data = as_dict(loads(answer.body))
        except JsonError:
            data = {}
        if answer.status >= 400:
            # A refresh token is good for one use: another program may have been first.
            if await self._taken_over(before):
                return True
            raise self._refusal(answer.status, data, answer.body)
        tokens = {name: token for name in ("id_token", "access_token", "refresh_token")
                  if (token := as_str(data.get(name)))}  # fmt: skip
        if "access_token" not in tokens:
            raise WireError(
                f"{self.name}: the token endpoint answered {answer.status} without a token: {excerpt(answer.body)!r}.",
                provider=self.name,
                endpoint=endpoint(self._refresh_url),
            )
        self._login = replace(before, **{name: token for name, token in tokens.items() if name != "id_token"})
        await self._save(tokens)
        return True

    async def _save(self, tokens: Mapping[str, str]) -> None:
        try:
            await run_in_thread(lambda: save_tokens(self.path, tokens))
        except (OSError, ValueError) as error:
            # This program goes on with what it has; the CLI's own copy is now spent.
            log.warning("The renewed ChatGPT login could not be written to %s: %s", self.path, error)

    def _refusal(self, status: int, data: dict[str, Any], body: bytes) -> ProviderError:
        error = data.get("error")
        fields = as_dict(error)
        code = as_str(fields.get("code")) or as_str(error) or as_str(data.get("code")) or None
        text = as_str(fields.get("message")) or as_str(data.get("error_description")) or excerpt(body)
        where = endpoint(self._refresh_url)
        if status >= 500 or status == 429:
            return provider_error(status, code, text, provider=self.name, endpoint=where)
        return AuthError(
            f"The ChatGPT login has ended and must be made anew ({code or status}): {text.rstrip('.')}.",
            provider=self.name,
            endpoint=where,
            status=status,
            provider_code=code,
            hint="Run `codex login`.",
        )
