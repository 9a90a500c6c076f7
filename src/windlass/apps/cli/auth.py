"""`windlass auth`: log in to a vendor with a client of one's own, see the logins, and log out."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from windlass.apps.cli.common import OK, PROVIDER, Parser, configure, plain, run_async, say
from windlass.apps.cli.terminal import read_line
from windlass.core import clock, json
from windlass.core.config import Config
from windlass.core.credentials import Credentials, CredentialStore, FileLock, Login
from windlass.core.errors import AuthError, ConfigError, ProviderError, ProviderTimeoutError, UnknownNameError
from windlass.core.http import Client
from windlass.core.oauth import Authorization, OAuth
from windlass.core.oauth_login import Redirect, open_browser, pasted
from windlass.core.oauth_settings import OAuthSettings, read_settings, safe_url
from windlass.core.settings import SAME_ACCOUNT
from windlass.core.text import strip_escapes
from windlass.core.threads import run_in_thread
from windlass.providers.oauth import origin_of, store_of
from windlass.providers.vendors import VENDORS, vendor_of

__all__ = ["main", "parser"]

#: Seconds that a person has to log in.
PATIENCE = 300.0


def main(name: str, args: list[str]) -> int:
    """Run the command."""
    options = parser(name).parse_args(args)
    config = configure()
    store = store_of(config)
    if store is None:
        raise ConfigError("There is no folder to keep a login in.", hint="Set WINDLASS_HOME to a folder of yours.")
    words: list[str] = options.names
    if words[:1] == ["status"]:
        return _status(store, words[1:], as_json=options.json)
    if words[:1] == ["logout"]:
        if len(words) < 2:
            raise ConfigError(
                "Which login is to go?", hint="windlass auth logout NAME; windlass auth status lists them."
            )
        return run_async(lambda: _each(words[1:], partial(_logout, config, store)))
    wanted = _wanted(options, config)
    return run_async(lambda: _each(wanted, partial(_login, config, store, options)))


def parser(name: str) -> Parser:
    """Build the parser."""
    parser = Parser(
        f"windlass {name}",
        "Log in to a provider with an OAuth client of your own, in the browser; without a NAME to each provider whose "
        "[providers.NAME.oauth] states a client_id. `status` lists the logins, `logout NAME` revokes and forgets one.",
        "[NAME ... | status [NAME ...] | logout NAME ...]",
    )
    parser.add_argument("names", nargs="*", type=plain, metavar="NAME", help="a provider, status or logout")
    parser.add_argument(
        "--anthropic", dest="more", action="append_const", const="anthropic", help="log in to anthropic"
    )
    parser.add_argument("--openai", dest="more", action="append_const", const="openai", help="log in to openai")
    parser.add_argument(
        "--no-browser", action="store_true", help="start no browser; the answer may be pasted, from any machine"
    )
    parser.add_argument("--device", action="store_true", help="agree on another device, with a code")
    parser.add_argument(
        "--keep",
        choices=("keyring", "file"),
        help="where to keep it (the system's keyring if there is one, else a file)",
    )
    parser.add_argument(
        "--timeout", type=_seconds, default=PATIENCE, metavar="SECONDS", help="how long to wait for you (300)"
    )
    parser.add_argument("--json", action="store_true", help="status: one JSON object a line")
    return parser


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= 86_400:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds up to a day")
    return seconds


def _wanted(options: argparse.Namespace, config: Config) -> list[str]:
    """Return the providers to log in to. Raises ConfigError and UnknownNameError."""
    named = [*options.names, *(options.more or [])]
    if not named:
        named = [name for name, table in config.user_providers.items() if _client_id(table)]
    if not named:
        raise ConfigError(
            "Which provider do you want to log in to?",
            hint="windlass auth NAME; a client of your own goes into [providers.NAME.oauth] as client_id.",
        )
    out: list[str] = []
    for each in named:
        name = config.provider_name(each)
        name = SAME_ACCOUNT.get(name, name)
        if name not in VENDORS and name not in config.user_providers:
            raise UnknownNameError("provider", each, [*VENDORS, *config.user_providers])
        out.append(name)
    return list(dict.fromkeys(out))


def _client_id(table: Mapping[str, Any]) -> bool:
    oauth: Any = table.get("oauth")
    return isinstance(oauth, dict) and bool(oauth.get("client_id"))  # pyright: ignore[reportUnknownMemberType]


async def _each(names: list[str], work: Callable[[str], Awaitable[int]]) -> int:
    code = OK
    for name in names:
        code = await work(name) or code
    return code


@asynccontextmanager
async def _held(store: CredentialStore, name: str) -> AsyncGenerator[None]:
    """Keep others from renewing a login. Raises ConfigError where somebody has been at it for too long."""
    lock = FileLock(store.path(name))
    try:
        await lock.__aenter__()
    except TimeoutError:
        raise ConfigError(f"Another program is renewing the login of {name}.", hint="Try again.") from None
    try:
        yield
    finally:
        await lock.__aexit__()


# -- logging in --------------------------------------------------------------------------------------------------------


async def _login(config: Config, store: CredentialStore, options: argparse.Namespace, name: str) -> int:
    vendor = vendor_of(config.provider_settings(name))
    oauth = _settings(name, config, vendor.oauth)
    async with Client(env=config.environ) as client:
        server = OAuth(name, oauth, client)
        try:
            async with clock.deadline(options.timeout):
                settings = await server.discover()
                if options.device or (settings.device_url and not settings.authorize_url):
                    made = await _on_a_device(server)
                else:
                    made = await _in_a_browser(server, options)
        except TimeoutError:
            text = f"Nobody has logged in to {name} within {options.timeout:g} s."
            raise ProviderTimeoutError(text, provider=name, hint="Begin again.") from None
    login = Login(
        made, server.settings.token_url, oauth.client_id, origin_of(vendor.base_url), oauth.scopes, clock.now_ns()
    )
    async with _held(store, name):
        place = await run_in_thread(store.write, name, login, options.keep)
    account = f" as {made.account_id}" if made.account_id else ""
    say(f"windlass: logged in to {name}{account}; kept in {_place(store, name, place)}{_until(made)}.")
    if not made.refresh:
        say(f"windlass: {name} gave no refresh token: when it ends, log in again.")
    return OK


def _settings(name: str, config: Config, row: Mapping[str, Any]) -> OAuthSettings:
    table = config.user_providers.get(name, {}).get("oauth", {})
    return read_settings(name, row, table, config.environ)


async def _on_a_device(server: OAuth) -> Credentials:
    device = await server.device()
    say(f"windlass: open this address on any device and enter the code {device.user_code}:\n{device.url}")
    return await server.granted(device)


async def _in_a_browser(server: OAuth, options: argparse.Namespace) -> Credentials:
    async with Redirect(server.settings.redirect_uri) as redirect:
        begun = server.authorization(redirect.uri)
        safe_url(begun.url, "The address to open")
        redirect.expect(begun.state)
        opened = False
        if not options.no_browser and redirect.listens:
            opened = await open_browser(begun.url, os.environ)
        say(f"windlass: {'log in in the browser, or ' if opened else ''}open this address:\n{begun.url}")
        answer = await _answer(redirect, begun, ask=options.no_browser or not redirect.listens)
        return await server.exchange(begun, server.code_of(begun, answer))


async def _answer(redirect: Redirect, begun: Authorization, *, ask: bool) -> dict[str, str]:
    """Return the fields of the answer: from the browser, or what somebody pastes, whichever is first."""
    if not ask and not sys.stdin.isatty():
        return await redirect.answer()
    say("windlass: or paste the address that the browser is sent to, or the code it shows:")
    waiting = [asyncio.create_task(_typed(begun, alone=not redirect.listens))]
    if redirect.listens:
        waiting.append(asyncio.create_task(redirect.answer()))
    try:
        done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        return done.pop().result()
    finally:
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


async def _typed(begun: Authorization, *, alone: bool) -> dict[str, str]:
    handle = sys.stdin.fileno()
    while (line := await read_line(handle)) is not None:
        if fields := pasted(line, begun.state):
            return fields
    if alone:
        raise AuthError("Nobody has pasted an answer.", hint="Run it in a terminal, or give the answer on stdin.")
    return await asyncio.Future[dict[str, str]]()  # nobody types: only the browser can answer


# -- the logins there are ----------------------------------------------------------------------------------------------


def _status(store: CredentialStore, names: list[str], *, as_json: bool) -> int:
    known = store.names()
    for name in names:
        if name not in known:
            raise ConfigError(f"Nobody is logged in to {name}.", hint=f"Run `windlass auth {name}`.")
    for name in names or known:
        login = store.about(name)
        if login is None:
            continue
        left, place = login.credentials.left_ms(), store.place(name) or "file"
        state = "valid" if left is None or left > 0 else "renewed when used" if login.credentials.refresh else "ended"
        if as_json:
            row = {
                "provider": name, "state": state, "kept": place, "account_id": login.credentials.account_id,
                "expires": _time(login.credentials), "renewable": bool(login.credentials.refresh),
                "client_id": login.client_id, "scopes": login.scopes, "for": login.base_url,
            }  # fmt: skip
            sys.stdout.write(json.dumps(row).decode() + "\n")
        else:
            account = f" as {login.credentials.account_id}" if login.credentials.account_id else ""
            text = f"{name}{account}: {state}{_until(login.credentials)}; kept in {_place(store, name, place)}"
            sys.stdout.write(strip_escapes(text) + "\n")
    if not known:
        say("windlass: nobody is logged in to anything.")
    return OK


def _place(store: CredentialStore, name: str, place: str) -> str:
    return "the keyring" if place == "keyring" else str(store.path(name))


def _time(credentials: Credentials) -> str | None:
    return None if credentials.expires is None else clock.rfc3339(credentials.expires * 1_000_000)


def _until(credentials: Credentials) -> str:
    ends = _time(credentials)
    return f", until {ends[:16].replace('T', ' ')} UTC" if ends else ""


async def _logout(config: Config, store: CredentialStore, name: str) -> int:
    name = SAME_ACCOUNT.get(name, name)
    if name not in store:
        raise ConfigError(f"Nobody is logged in to {name}.", hint="windlass auth status lists the logins.")
    async with _held(store, name):
        try:
            login = await run_in_thread(store.read, name)
        except ConfigError as error:
            say(f"windlass: {error}")
            login = None
        failed = await _revoke(name, config, login) if login is not None else "it could not be read"
        await run_in_thread(store.delete, name)
    if failed:
        say(f"windlass: logged out of {name} here; it stays valid there: {failed}.")
        return PROVIDER if not failed.startswith("no ") else OK
    say(f"windlass: logged out of {name}; its tokens are revoked.")
    return OK


async def _revoke(name: str, config: Config, login: Login) -> str:
    """Revoke a login; returns why it was not, "" where it was."""
    vendor = vendor_of(config.provider_settings(name))
    settings = _settings(name, config, vendor.oauth)
    try:
        async with Client(env=config.environ) as client:
            server = OAuth(name, settings, client)
            if settings.issuer and not settings.revoke_url:
                await server.discover()
            if login.token_url and server.settings.token_url and login.token_url != server.settings.token_url:
                return f"it was made by {login.token_url}, which the settings do not name any more"
            return "" if await server.revoke(login.credentials) else "no revoke_url is known"
    except (ProviderError, ConfigError) as error:
        return str(error).rstrip(".")
