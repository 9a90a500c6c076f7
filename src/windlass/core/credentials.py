"""Credentials of an account, and where a login is kept: the system's keyring, else a file that only its owner reads.

A login is bound to what made it: the token endpoint and client that may renew it, and the address it may be sent to.
"""

from __future__ import annotations

import hashlib
import importlib
import logging
import os
import re
import stat
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

import msgspec
from msgspec import Struct

from windlass.core import clock
from windlass.core.errors import ConfigError, WindlassError
from windlass.core.json import JsonError, dumps, loads
from windlass.core.private import replace_private

__all__ = [
    "MARGIN_MS",
    "CredentialStore",
    "Credentials",
    "FileLock",
    "Keyring",
    "Login",
    "Place",
    "Renewal",
    "hide_secrets",
    "read_credentials",
    "read_private",
    "system_keyring",
]

log = logging.getLogger("windlass.credentials")
#: How long before its end a token is renewed, in milliseconds.
MARGIN_MS = 60_000
#: A time below this is in seconds (it would be 1973 in milliseconds), one above it in milliseconds (the year 5138).
_SECONDS_END = 100_000_000_000
_MAX_FILE = 1 << 20
_SERVICE = "windlass"
_SHOWN = "[hidden]"
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}")
_fcntl = importlib.import_module("fcntl") if sys.platform != "win32" else None

Place = Literal["keyring", "file"]


class Credentials(Struct, frozen=True):
    """What a login gave: `access` goes with requests, `refresh` gets a new one, "" where it cannot be renewed.

    `expires` is UTC in milliseconds since 1970, None where nobody said. `account_id` names the account, "" if unknown.
    """

    access: str
    refresh: str = ""
    expires: int | None = None
    account_id: str = ""

    def __repr__(self) -> str:
        # A representation ends up in logs, in tracebacks and in what a debugger shows.
        return f"Credentials(expires={self.expires}, renewable={bool(self.refresh)})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return [("expires", self.expires), ("renewable", bool(self.refresh))]

    @property
    def secrets(self) -> tuple[str, ...]:
        """The words in it that nobody may read."""
        return tuple([word for word in (self.access, self.refresh) if word])

    def left_ms(self) -> int | None:
        """Return the milliseconds until its end by the wall clock, negative after it; None where it has no end."""
        return None if self.expires is None else self.expires - clock.now_ns() // 1_000_000

    def redacted(self) -> Credentials:
        """Return the same without its secrets."""
        return Credentials(_SHOWN, _SHOWN if self.refresh else "", self.expires, self.account_id)


#: Other names under which programs keep the same.
_ALIASES: dict[str, tuple[str, ...]] = {
    "access": ("access", "access_token", "accessToken"),
    "refresh": ("refresh", "refresh_token", "refreshToken"),
    "expires": ("expires", "expires_at", "expiresAt"),
    "account_id": ("account_id", "accountId"),
}


def read_credentials(value: Any, where: str) -> Credentials:
    """Read `{access, refresh, expires, account_id}`, also by their other names; a time in seconds or milliseconds.

    Raises ConfigError that names `where` and the field, never what it holds.
    """
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where} holds no credentials: an object with access, refresh and expires is expected.")
    found: dict[str, Any] = {
        field: next((value[name] for name in names if value.get(name) is not None), None)  # pyright: ignore[reportUnknownMemberType]
        for field, names in _ALIASES.items()
    }
    for field in ("access", "refresh", "account_id"):
        if not isinstance(found[field] or "", str) or not _sendable(found[field] or ""):
            raise ConfigError(f"{where}: {field} must be text of visible ASCII.")
    if not found["access"]:
        raise ConfigError(f"{where} holds no access token.")
    return Credentials(
        found["access"], found["refresh"] or "", _milliseconds(found["expires"], where), found["account_id"] or ""
    )


def _milliseconds(value: Any, where: str) -> int | None:
    if value is None or value == 0:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e16:
        raise ConfigError(f"{where}: expires must be a time in seconds or milliseconds since 1970.")
    return int(value * 1000) if value < _SECONDS_END else int(value)


def _sendable(text: str) -> bool:
    """Tell whether a word can be the value of a header: a line end in it would forge another."""
    return all("!" <= char <= "~" for char in text)


def hide_secrets(error: WindlassError, secrets: Iterable[str]) -> None:
    """Take secret words out of every text of an error, its notes included: some servers repeat what they refuse."""
    words = sorted({word for word in secrets if len(word) >= 6}, key=len, reverse=True)

    def clean(text: str) -> str:
        for word in words:
            text = text.replace(word, _SHOWN)
        return text

    for name, value in vars(error).items():
        if isinstance(value, str):
            setattr(error, name, clean(value))
        elif name == "__notes__":
            error.__notes__ = [clean(note) for note in value]
    error.args = tuple([clean(arg) if isinstance(arg, str) else arg for arg in error.args])


class Login(Struct, frozen=True, omit_defaults=True):
    """Credentials with what they belong to.

    `token_url` and `client_id` are who may renew and revoke them, `base_url` the origin they may be sent to, `made_ns`
    when somebody logged in.
    """

    credentials: Credentials
    token_url: str = ""
    client_id: str = ""
    base_url: str = ""
    scopes: tuple[str, ...] = ()
    made_ns: int = 0


class Renewal:
    """That a login was renewed, for the hook `oauth:refresh`. No Struct: nothing can encode it by mistake.

    `source` says where the credentials are kept: params, credentials, file, keyring or codex.
    """

    __slots__ = ("credentials", "previous", "provider", "provider_id", "source")

    def __init__(
        self, provider: str, provider_id: str, source: str, previous: Credentials, credentials: Credentials
    ) -> None:
        self.provider, self.provider_id, self.source = provider, provider_id, source
        self.previous, self.credentials = previous.redacted(), credentials

    def __repr__(self) -> str:
        return f"Renewal({self.provider!r}, {self.source!r})"

    def fields(self) -> dict[str, Any]:
        """Return the fields of the hook; only the new credentials are whole, for who keeps them."""
        return {
            "provider": self.provider, "provider_id": self.provider_id, "source": self.source,
            "previous_credentials": self.previous, "credentials": self.credentials,
        }  # fmt: skip


class Keyring(Protocol):
    """A keyring, as the package `keyring` has them."""

    def get_password(self, service: str, username: str, /) -> str | None: ...
    def set_password(self, service: str, username: str, password: str, /) -> None: ...
    def delete_password(self, service: str, username: str, /) -> None: ...


def system_keyring() -> Keyring | None:
    """Return the system's keyring; None without the package or where there is none, as on a machine without a desktop.

    One that keeps passwords in a plain file is none: a file of our own is no worse, and we know its mode.
    """
    try:
        import keyring
    except ImportError:
        return None
    try:
        found: Any = keyring.get_keyring()
    except Exception as error:  # a backend that is named in a variable or file may be anything
        log.warning("The keyring cannot be used: %s: %s", type(error).__name__, error)
        return None
    backends: list[Any] = list(getattr(found, "backends", ())) or [found]
    if type(found).__module__.endswith(".chainer") and backends == [found]:
        return None
    poor = ("keyring.backends.fail", "keyring.backends.null", "keyrings.alt")
    return None if any(type(backend).__module__.startswith(poor) for backend in backends) else found


class _Kept(Struct, omit_defaults=True):
    """A login's file; with `place` keyring the tokens are there, and this says so."""

    provider: str
    place: Place = "file"
    access: str = ""
    refresh: str = ""
    expires: int | None = None
    account_id: str = ""
    token_url: str = ""
    client_id: str = ""
    base_url: str = ""
    scopes: tuple[str, ...] = ()
    made_ns: int = 0
    version: int = 1


class CredentialStore:
    """The logins of one user, by name of provider: a file for each of mode 0600 in a folder of mode 0700.

    Where the system has a keyring the tokens are in it, and the file says only whose they are and until when. All of
    it blocks; a keyring may ask a person. Raises ConfigError.
    """

    def __init__(self, folder: str | Path, keyring: Keyring | None = None) -> None:
        self.folder = Path(folder)
        self._keyring = keyring

    def path(self, name: str) -> Path:
        """Return the file of one provider's login."""
        if _PLAIN_NAME.fullmatch(name):
            return self.folder / f"{name}.json"
        return self.folder / f"={hashlib.sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()[:32]}.json"

    def __contains__(self, name: str) -> bool:
        return self.path(name).is_file()

    def names(self) -> list[str]:
        """Return the providers with a login, sorted."""
        return sorted([self._kept(path).provider for path in self.folder.glob("*.json")])

    def place(self, name: str) -> Place | None:
        """Return where a login is kept, None where there is none."""
        return self._kept(self.path(name)).place if name in self else None

    def about(self, name: str) -> Login | None:
        """Return a login without its secrets, asking no keyring; None where there is none."""
        try:
            kept = self._kept(self.path(name))
        except FileNotFoundError:
            return None
        return _login(msgspec.structs.replace(kept, access=_SHOWN, refresh=_SHOWN if kept.refresh else ""))

    def read(self, name: str) -> Login | None:
        """Return a login, None where there is none."""
        path = self.path(name)
        try:
            kept = self._kept(path)
        except FileNotFoundError:
            return None
        if kept.place == "file":
            return _login(kept)
        keyring = self._keyring or system_keyring()
        again = f"Run `windlass auth {name} --keep file` where nobody unlocks a keyring."
        if keyring is None:
            raise ConfigError(f"The login of {name} is in the system's keyring, which is not there now.", hint=again)
        try:
            secret = keyring.get_password(_SERVICE, name)
        except Exception as error:
            raise ConfigError(f"The keyring does not give the login of {name}: {error}.", hint=again) from error
        tokens: Any = _object(secret.encode(), f"the keyring's {name}") if secret else None
        if not isinstance(tokens, dict):
            raise ConfigError(f"The keyring holds no login of {name} any more.", hint=again)
        return _login(msgspec.structs.replace(kept, access=tokens["access"], refresh=tokens.get("refresh", "")))

    def write(self, name: str, login: Login, place: Place | None = None) -> Place:
        """Keep a login and return where: by default where it was, else in the keyring if there is one, else a file.

        A keyring that refuses it (some keep 2 KiB at most) is told in the log, and the file takes it.
        """
        before = self.place(name)
        place = place or before
        given = login.credentials
        kept = _Kept(
            name, "file", given.access, given.refresh, given.expires, given.account_id, login.token_url,
            login.client_id, login.base_url, login.scopes, login.made_ns,
        )  # fmt: skip
        keyring = None if place == "file" else self._keyring or system_keyring()
        if keyring is not None:
            secret = dumps({"access": given.access, "refresh": given.refresh}).decode()
            try:
                keyring.set_password(_SERVICE, name, secret)
                renewable = _SHOWN if given.refresh else ""
                kept = msgspec.structs.replace(kept, place="keyring", access="", refresh=renewable)
            except Exception as error:
                log.warning("The keyring does not take the login of %s (%s); it is kept in a file.", name, error)
        path = self.path(name)
        try:
            # One by one: parents that `mkdir` makes on the way are open to others.
            for folder in (self.folder.parent, self.folder):
                folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            replace_private(path, msgspec.json.format(msgspec.json.encode(kept)) + b"\n")
        except OSError as error:
            raise ConfigError(f"Cannot write {path}: {error.strerror}.") from error
        if before == "keyring" and kept.place == "file":
            self._forget_in_keyring(name)
        return kept.place

    def delete(self, name: str) -> bool:
        """Forget a login; False where there was none."""
        path = self.path(name)
        try:
            kept = self._kept(path)
            path.unlink()
        except FileNotFoundError:
            return False
        except OSError as error:
            raise ConfigError(f"Cannot remove {path}: {error.strerror}.") from error
        if kept.place == "keyring":
            self._forget_in_keyring(name)
        return True

    def _forget_in_keyring(self, name: str) -> None:
        keyring = self._keyring or system_keyring()
        try:
            if keyring is not None:
                keyring.delete_password(_SERVICE, name)
        except Exception as error:
            log.warning("The keyring does not forget the login of %s: %s", name, error)

    def _kept(self, path: Path) -> _Kept:
        """Read a file. Raises FileNotFoundError where it is not there."""
        data = _object(read_private(path, alone=True), str(path))
        try:
            kept = msgspec.convert(data, _Kept)
        except msgspec.ValidationError as error:
            raise ConfigError(f"{path}: {error}.", hint="Delete it and log in again.") from None
        if kept.version > 1:
            raise ConfigError(f"{path} was written by a newer version.", hint="Upgrade windlass.")
        return kept


def _login(kept: _Kept) -> Login:
    given = Credentials(kept.access, kept.refresh, kept.expires, kept.account_id)
    return Login(given, kept.token_url, kept.client_id, kept.base_url, kept.scopes, kept.made_ns)


def _object(data: bytes, where: str) -> Any:
    try:
        return loads(data)
    except (JsonError, RecursionError):
        # Its text would quote what is there.
        raise ConfigError(f"{where} is not JSON.", hint="Delete it and log in again.") from None


# -- private files -----------------------------------------------------------------------------------------------------


def read_private(path: Path, *, alone: bool = False) -> bytes:
    """Read a small file that holds secrets.

    Raises FileNotFoundError, and ConfigError for one that is no plain file, belongs to somebody else, or that others
    may write to; with `alone` also where others may read it, or where it is a link.
    """
    flags = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
    try:
        handle = os.open(path, os.O_RDONLY | flags | (getattr(os, "O_NOFOLLOW", 0) if alone else 0))
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ConfigError(f"Cannot read {path}: {error.strerror}.") from error
    with open(handle, "rb") as file:
        info = os.fstat(handle)
        if why := _unsafe(info, alone):
            raise ConfigError(f"{path} is not used: {why}.", hint="Look at it; a file of secrets has mode 0600.")
        data = file.read(_MAX_FILE + 1)
    if len(data) > _MAX_FILE:
        raise ConfigError(f"{path} is larger than 1 MiB.")
    return data


def _unsafe(info: os.stat_result, alone: bool) -> str:
    if not stat.S_ISREG(info.st_mode):
        return "it is no plain file"
    if sys.platform == "win32":
        return ""
    if info.st_uid not in (os.getuid(), 0):
        return "it belongs to somebody else"
    if info.st_mode & 0o022:
        return "others may write to it"
    return "others may read it" if alone and info.st_mode & 0o077 else ""


class FileLock:
    """Hold a file that other programs of ours may be about to renew; nothing is held where there is no file.

    The file itself is locked, and looked at again once it is: who held it before may have put another in its place.
    Raises TimeoutError after `patience` seconds. On Windows nothing is locked.
    """

    def __init__(self, path: str | Path, patience: float = 90.0) -> None:
        self._path, self._patience = os.path.realpath(path), patience
        self._handle = -1

    async def __aenter__(self) -> None:
        try:
            async with clock.deadline(self._patience):
                while not self._taken():
                    await clock.sleep(0.05)
        except BaseException:
            self._release()
            raise

    async def __aexit__(self, *exc: object) -> None:
        self._release()

    def _release(self) -> None:
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1

    def _taken(self) -> bool:
        if _fcntl is None:
            return True
        try:
            handle = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError:
            return True  # there is nothing to hold; who reads it next says why
        try:
            _fcntl.flock(handle, _fcntl.LOCK_EX | _fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(handle), os.stat(self._path)):  # noqa: PTH116 - text throughout
                self._handle, handle = handle, -1
                return True
        except OSError:
            return False  # another holds it, or has just replaced it
        finally:
            if handle >= 0:
                os.close(handle)
        return False
