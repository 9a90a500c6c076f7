"""Where the accounts of this machine are."""

from __future__ import annotations

from windlass.core.config import Config
from windlass.core.config_files import data_home
from windlass.core.errors import StoreError

__all__ = ["accounts_url"]


def accounts_url(config: Config, given: str | None = None) -> str:
    """Return where keys are kept: what was given, the setting `accounts`, else a database in the data folder.

    Raises StoreError when the folder cannot be made.
    """
    where = given or config.get("accounts")
    if where is not None:
        return str(where)
    home = data_home(config.environ)
    try:
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise StoreError(
            f"Cannot make the folder {home}: {error.strerror}.", hint="Name another place in the setting accounts."
        ) from error
    return f"sqlite:{home / 'accounts.db'}"
