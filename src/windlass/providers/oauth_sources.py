"""Where the credentials of an account come from, and where renewed ones go."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Protocol

from windlass.core.credentials import (
    Credentials,
    CredentialStore,
    Login,
    read_credentials,
    read_private,
)
from windlass.core.errors import ConfigError
from windlass.core.private import replace_private

__all__ = ["Given", "NamedFile", "Source", "Stored"]


class Source(Protocol):
    """Where the credentials of an account come from and go to; its methods block.

    `kind` is the word of the hook, `path` the file that is locked ("" for none). `read` gives None where nobody is
    logged in (any more); `write` gets the identity token that came along, too.
    """

    @property
    def kind(self) -> str: ...
    @property
    def path(self) -> str: ...
    def read(self) -> Credentials | None: ...
    def write(self, new: Credentials, identity: str = "") -> None: ...


class Given:
    """Credentials that were given as parameters; a renewed one lives as long as the provider."""

    kind, path = "params", ""

    def __init__(self, credentials: Credentials) -> None:
        self._credentials = credentials

    def read(self) -> Credentials | None:
        """Return them."""
        return self._credentials

    def write(self, new: Credentials, identity: str = "") -> None:  # noqa: ARG002 - a Source
        """Keep them in memory."""
        self._credentials = new


class NamedFile:
    """A `.credentials.json` that the user's own settings name: by provider, or of one provider alone.

    Its other fields and the names of these stay as they are.
    """

    kind = "credentials"

    def __init__(self, path: str | Path, provider: str) -> None:
        self.path = str(Path(path).expanduser().absolute())
        self._provider = provider

    def read(self) -> Credentials | None:
        """Return what it holds, None where it is not there. Raises ConfigError."""
        try:
            _, entry = self._entry()
        except FileNotFoundError:
            return None
        return read_credentials(entry, f"{self.path} ({self._provider})")

    def write(self, new: Credentials, identity: str = "") -> None:  # noqa: ARG002 - a Source
        """Put new credentials in the place of the old ones. Raises OSError and ConfigError."""
        whole, entry = self._entry()
        seconds = any(isinstance(v := entry.get(name), (int, float)) and v < 1e11 for name in ("expires", "expires_at"))
        ends = new.expires if new.expires is None or not seconds else new.expires // 1000
        fields = {
            ("access", "access_token", "accessToken"): new.access,
            ("refresh", "refresh_token", "refreshToken"): new.refresh,
            ("expires", "expires_at", "expiresAt"): ends,
            ("account_id", "accountId"): new.account_id or None,
        }
        for names, value in fields.items():
            name = next((name for name in names if name in entry), names[0])
            if value is not None or name in entry:
                entry[name] = value
        # A link to a file elsewhere stays one.
        replace_private(Path(self.path).resolve(), json.dumps(whole, indent=2).encode() + b"\n")

    def _entry(self) -> tuple[dict[str, Any], dict[str, Any]]:
        try:
            # Not `core.json`: what is not ours goes back as it was, numbers past 64 bits among it.
            whole = json.loads(read_private(Path(self.path)))
        except (ValueError, RecursionError):
            raise ConfigError(f"{self.path} is not JSON.") from None
        if not isinstance(whole, dict):
            raise ConfigError(f"{self.path} holds no object.")
        entry: Any = whole.get(self._provider)  # pyright: ignore[reportUnknownMemberType]
        return whole, entry if isinstance(entry, dict) else whole  # pyright: ignore[reportUnknownVariableType]


class Stored:
    """A login that `windlass auth` made, in the keyring or a file."""

    def __init__(self, store: CredentialStore, name: str) -> None:
        self._store, self._name = store, name
        self.path = str(store.path(name))
        self._login: Login | None = None

    @property
    def kind(self) -> str:
        """Where it is: file or keyring."""
        return self._store.place(self._name) or "file"

    def read(self) -> Credentials | None:
        """Return it, None where somebody has logged out. Raises ConfigError."""
        self._login = self._store.read(self._name)
        return None if self._login is None else self._login.credentials

    def write(self, new: Credentials, identity: str = "") -> None:  # noqa: ARG002 - a Source
        """Keep new credentials where the old ones are. Raises ConfigError."""
        if self._login is not None:
            login = self._login
            made = Login(new, login.token_url, login.client_id, login.base_url, login.scopes, login.made_ns)
            self._store.write(self._name, made)
