"""A ChatGPT account in place of an API key: the login of the Codex CLI, renewed when its token is refused.

Source: github.com/openai/codex (`codex-rs/login`): `auth.json`, the token endpoint and its error codes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any, Final

from msgspec import Struct

from windlass.core import clock
from windlass.core.credentials import Credentials
from windlass.core.errors import AuthError, ProviderError
from windlass.core.json import JsonError, loads
from windlass.core.oauth import account_in
from windlass.core.oauth_settings import OAuthSettings
from windlass.core.private import replace_private
from windlass.providers.oauth import AccountProvider
from windlass.providers.oauth_account import Account
from windlass.providers.oauth_sources import Given
from windlass.wire.base import Dialect, as_dict, as_str

__all__ = ["CLIENT_ID", "REFRESH_URL", "CodexProvider", "Login", "read_login", "save_tokens"]

#: The Codex CLI's own id: a login belongs to the client that made it.
CLIENT_ID: Final = "app_EMoamEEZ73f0CkXaXp7hrann"
REFRESH_URL: Final = "https://auth.openai.com/oauth/token"
_LOG_IN: Final = "Run `codex login`, or set CODEX_ACCESS_TOKEN and CHATGPT_ACCOUNT_ID."


class Login(Struct, frozen=True):
    """A login: what requests carry, and what a new token is had for ("" where it cannot be renewed)."""

    access_token: str
    account_id: str = ""
    refresh_token: str = ""

    def __repr__(self) -> str:
        return f"Login(account_id={self.account_id!r})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return [("account_id", self.account_id)]


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
    account = as_str(tokens.get("account_id")) or account_in(access)[0] or account_in(as_str(tokens.get("id_token")))[0]
    return Login(access, account, as_str(tokens.get("refresh_token")))


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
    replace_private(path, json.dumps(kept, indent=2).encode())


class _AuthFile:
    """The `auth.json` of the Codex CLI as a source of credentials."""

    kind = "codex"

    def __init__(self, path: str) -> None:
        self.path = path

    def read(self) -> Credentials:
        """Return the login. Raises AuthError."""
        if not self.path:
            raise AuthError("There is no ChatGPT login.", provider="codex", hint=_LOG_IN)
        login = read_login(self.path)
        return Credentials(login.access_token, login.refresh_token, account_in(login.access_token)[1], login.account_id)

    def write(self, new: Credentials, identity: str = "") -> None:
        """Put new tokens in the place of the old ones. Raises OSError and ValueError."""
        tokens = {"access_token": new.access, "refresh_token": new.refresh, "id_token": identity}
        save_tokens(self.path, {name: token for name, token in tokens.items() if token})


class CodexProvider(AccountProvider):
    """Ask the backend of the Codex CLI with a ChatGPT account.

    The account is that of the user's own table or of `windlass auth codex`; else the token that is configured; else
    that of `auth.json` in `$CODEX_HOME` or `~/.codex`, read at the first request and renewed as the CLI does.
    `own_settings` may hold `account_id`, `home` (of `auth.json`) and `refresh_url`.
    """

    def __init__(
        self, name: str, dialect: Dialect, base_url: str, path: str, *, account: Account | None = None, **options: Any
    ) -> None:
        own: Mapping[str, str] = options.get("own_settings") or {}
        environ: Mapping[str, str] = os.environ if options.get("environ") is None else options["environ"]
        headers = dict(options.pop("headers", None) or {})
        given = headers.pop("authorization", "").removeprefix("Bearer ").strip()
        #: Where the login is kept; "" where the token was given, or where there is no home.
        self.path = "" if given or account is not None else _auth_json(own, environ)
        self._account = own.get("account_id", "")
        if account is None and given:
            account = Account(name, Given(Credentials(given, account_id=account_in(given)[0])), hint=_LOG_IN)
        elif account is None:
            address = own.get("refresh_url") or REFRESH_URL
            oauth = OAuthSettings(CLIENT_ID, token_url=address, body="json")
            account = Account(name, _AuthFile(self.path), oauth, hint=_LOG_IN)
        super().__init__(name, dialect, base_url, path, account=account, headers=headers, **options)

    async def enter(self) -> str:
        """Have a token and the name of its account in the headers."""
        token = await super().enter()
        if account := self._account or self._current().account_id:
            self.headers["chatgpt-account-id"] = account
        return token

    def failed(self, token: str, error: ProviderError) -> None:
        """Note a refusal, and say that the account's name is missing where it is."""
        super().failed(token, error)
        if isinstance(error, AuthError) and not (self._account or self._current().account_id):
            error.hint += " Set CHATGPT_ACCOUNT_ID."

    def _current(self) -> Credentials:
        return self.account.load()


def _auth_json(own: Mapping[str, str], environ: Mapping[str, str]) -> str:
    user = environ.get("HOME") or environ.get("USERPROFILE") or ""
    home = own.get("home") or (os.path.join(user, ".codex") if user else "")  # noqa: PTH118 - text throughout
    return os.path.join(home, "auth.json") if home else ""  # noqa: PTH118
