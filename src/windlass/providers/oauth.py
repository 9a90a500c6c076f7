"""A vendor that is asked with a login in place of a key."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import aclosing
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from windlass.core.config import Config, ProviderSettings
from windlass.core.config_files import data_home
from windlass.core.credentials import CredentialStore, Login, hide_secrets, read_credentials
from windlass.core.errors import AuthError, ConfigError, MissingKeyError, ProviderError
from windlass.core.http import Streaming, StreamResponse, Timeouts, parse_url
from windlass.core.items import Item
from windlass.core.oauth_settings import OAuthSettings, read_settings
from windlass.core.request import Request
from windlass.core.settings import SAME_ACCOUNT
from windlass.providers.oauth_account import Account
from windlass.providers.oauth_sources import Given, NamedFile, Stored
from windlass.providers.remote import RemoteProvider
from windlass.wire.base import Dialect

__all__ = ["AccountProvider", "account_of", "has_login", "origin_of", "store_of"]

_T = TypeVar("_T")
#: Variables of which one says where this user's files are.
_HOMES = ("WINDLASS_HOME", "XDG_STATE_HOME", "HOME", "LOCALAPPDATA", "USERPROFILE")


class AccountProvider(RemoteProvider):
    """A RemoteProvider that is asked with the token of an account, as a bearer (RFC 6750).

    A renewal is told once, by a notice at the start of the next stream. Errors do not repeat tokens.
    """

    def __init__(
        self, name: str, dialect: Dialect, base_url: str, path: str, *, account: Account, **options: Any
    ) -> None:
        super().__init__(name, dialect, base_url, path, **options)
        self.account = account

    @property
    def secrets(self) -> set[str]:
        """The words of the login that nobody may read."""
        return self.account.secrets

    async def enter(self) -> str:
        """Have a token that is good for now in the headers, and return it. Raises ProviderError kinds, ConfigError."""
        token = (await self.account.ready(self.client)).access
        self.headers["authorization"] = f"Bearer {token}"
        return token

    def failed(self, token: str, error: ProviderError) -> None:
        """Note a refusal, say what to do about it, and take the tokens out of the error."""
        if isinstance(error, AuthError):
            self.account.refused(token, error.status)
            error.hint = self.account.hint
        hide_secrets(error, self.account.secrets)

    async def refresh(self) -> bool:
        """Renew a refused token; see Account.refresh."""
        return await self.account.refresh(self.client)

    async def stream(self, request: Request) -> AsyncIterator[Item]:
        """Send the request and yield its items. Raises ProviderError kinds: AuthError without a login."""
        token = await self.enter()
        if (notice := self.account.take_notice()) is not None:
            yield notice
        try:
            async with aclosing(super().stream(request)) as items:  # pyright: ignore[reportArgumentType]
                async for item in items:
                    yield item
        except ProviderError as error:
            self.failed(token, error)
            raise

    def forward(self, body: bytes, model: str, *, stream: bool, timeouts: Timeouts | None = None) -> Streaming:
        """Send a body that is already in this vendor's dialect; see RemoteProvider.

        Raises ProviderError kinds as well where there is no login.
        """
        send = super().forward
        return _Forwarded(self, lambda: send(body, model, stream=stream, timeouts=timeouts))

    async def post(self, path: str, body: bytes, request: Request, read: Callable[[bytes], _T]) -> _T:
        """Send a body to beside the model's endpoint; see RemoteProvider."""
        token = await self.enter()
        try:
            return await super().post(path, body, request, read)
        except ProviderError as error:
            self.failed(token, error)
            raise

    async def get_json(self, path: str) -> Any:
        """Get a JSON document; a token that is refused is renewed once. Raises ProviderError kinds."""
        for again in (False, True):
            token = await self.enter()
            try:
                return await super().get_json(path)
            except ProviderError as error:
                self.failed(token, error)
                if again or not isinstance(error, AuthError) or not await self.refresh():
                    raise
        return None

    async def close(self) -> None:
        """Close the connections of the running event loop, after a renewal that is under way."""
        await self.account.close()
        await super().close()


class _Forwarded(Streaming):
    """A stream that is begun once there is a token, and that notes a refusal."""

    __slots__ = ("_begin", "_provider", "_stream")

    def __init__(self, provider: AccountProvider, begin: Callable[[], Streaming]) -> None:
        self._provider, self._begin = provider, begin
        self._stream: Streaming | None = None

    async def __aenter__(self) -> StreamResponse:
        token = await self._provider.enter()
        self._stream = self._begin()
        response = await self._stream.__aenter__()
        if response.status in (401, 403):
            self._provider.account.refused(token, response.status)
        return response

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._stream is not None:
            await self._stream.__aexit__(kind, error, trace)


# -- which account a provider has --------------------------------------------------------------------------------------


def store_of(config: Config) -> CredentialStore | None:
    """Return where logins are kept; None for settings without a home, as those of a test."""
    if not any(config.environ.get(name) for name in _HOMES):
        return None
    return CredentialStore(data_home(config.environ) / "credentials")


def origin_of(base_url: str) -> str:
    """Return the scheme and host of an address, which a login belongs to."""
    parsed = parse_url(base_url)
    return f"{parsed.scheme}://{parsed.authority}"


def has_login(settings: ProviderSettings, config: Config) -> bool:
    """Tell whether somebody is logged in to a provider, without asking a keyring or a server."""
    name = SAME_ACCOUNT.get(settings.name, settings.name)
    table: dict[str, Any] = {**config.user_providers.get(name, {}), **settings.table}
    if "credentials" in table:
        return Path(str(table["credentials"])).expanduser().is_file()
    store = store_of(config)
    return "access" in table or (store is not None and name in store)


def account_of(settings: ProviderSettings, config: Config, row: Mapping[str, Any], base_url: str) -> Account | None:
    """Return the login that a provider without a key is asked with; None where it has a key or no login.

    In this order: `access` of its table, the file its `credentials` names, what `windlass auth` keeps. Raises
    ConfigError, and MissingKeyError where its table states how to log in and nobody has.
    """
    if settings.api_key:
        return None
    name = SAME_ACCOUNT.get(settings.name, settings.name)
    table: dict[str, Any] = {**config.user_providers.get(name, {}), **settings.table}
    oauth = read_settings(name, row, table.get("oauth", {}), config.environ)
    renewable = oauth if oauth.client_id and (oauth.token_url or oauth.issuer) else None
    made = partial(Account, name, provider=settings.name, headers=oauth.headers)
    if "access" in table:
        stated = {field: _value(table.get(field), config) for field in ("access", "refresh", "expires", "account_id")}
        given = Given(read_credentials(stated, f"[providers.{name}]"))
        return made(given, renewable, hint=f"Renew access in [providers.{name}].")
    if "credentials" in table:
        hint = f"Log in anew with the program that keeps {table['credentials']}."
        return made(NamedFile(table["credentials"], name), renewable, hint=hint)
    store = store_of(config)
    about = store.about(name) if store is not None else None
    if store is not None and about is not None:
        if about.base_url and about.base_url != origin_of(base_url):
            raise ConfigError(
                f"The login of {name} was made for {about.base_url} and is not sent to {origin_of(base_url)}.",
                hint=f"Run `windlass auth {name}` to log in there.",
            )
        return made(Stored(store, name), _bound(oauth, about))
    if "oauth" in table:
        raise MissingKeyError(f"Nobody is logged in to {name}.", hint=f"Run `windlass auth {name}`.")
    return None


def _value(stated: Any, config: Config) -> Any:
    if isinstance(stated, str) and stated.startswith("env:"):
        return config.environ.get(stated[4:])
    return stated


def _bound(oauth: OAuthSettings, login: Login) -> OAuthSettings | None:
    """Return who may renew a login: the server and client that gave it, whatever the settings say now."""
    if not login.token_url or not login.client_id:
        return None
    secret = oauth.client_secret if oauth.client_id == login.client_id else ""
    return OAuthSettings(
        login.client_id, secret, token_url=login.token_url, revoke_url=oauth.revoke_url, scopes=login.scopes,
        audience=oauth.audience, headers=oauth.headers, body=oauth.body,
    )  # fmt: skip
