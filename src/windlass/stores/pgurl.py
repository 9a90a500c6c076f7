"""Where a PostgreSQL server is and how it is connected to; what is said of either never holds the password.

`psycopg` (extra `postgres`) is imported here alone, when the first URL is read.
"""

from __future__ import annotations

import re
from collections.abc import Generator
from functools import cache
from typing import Any
from urllib.parse import quote

from windlass.core import clock
from windlass.core.errors import ConfigError

__all__ = ["Address", "Refused", "connect", "read_url", "with_grace"]

_SECRETS = ("password", "sslpassword", "oauth_client_secret")
#: What a server says for good; anything else may be a server that is just starting.
_FOR_GOOD = re.compile(
    r"authentication failed|no password supplied|does not exist|no pg_hba\.conf entry|permission denied|certificate"
    r"|not allow|invalid",
    re.IGNORECASE,
)


class Refused(Exception):
    """No connection came about, and trying again is no use; the text is fit for people."""


class Address:
    """A server and database: libpq's parameters, and `where`, its name for people."""

    def __init__(self, params: dict[str, str]) -> None:
        self.params = params
        host = params.get("host") or params.get("hostaddr") or ""
        port = f":{params['port']}" if params.get("port") else ""
        self.where = f"postgresql://{host}{port}/{params.get('dbname', '')}"

    def __repr__(self) -> str:
        return f"Address({self.where})"

    def scrub(self, text: str) -> str:
        """Return what libpq said on one line, without a secret that it may repeat."""
        for secret in [self.params[name] for name in _SECRETS if self.params.get(name)]:
            for form in {secret, quote(secret), quote(secret, safe="")}:
                text = text.replace(form, "***")
        return " ".join(text.split())


def read_url(url: str) -> Address:
    """Return what `postgresql://[user[:password]@][host][:port][/database][?parameter=value]` says.

    What is left out comes from libpq's own sources (PGHOST, PGPASSWORD, ~/.pgpass, …). `postgres://` is the same, and
    so is a URL without its scheme (`//host/db`). Raises ConfigError, which never repeats the URL; also when psycopg is
    missing.
    Source: https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-CONNSTRING-URIS
    """
    scheme, colon, rest = url.partition("//")
    if scheme not in ("", "postgresql:", "postgres:") or not colon:
        raise _malformed("it does not begin with postgresql://")
    authority, _, path = re.split(r"\?", rest, maxsplit=1)[0].partition("/")
    # A password with a bare '/', '@' or '?' would be read as a host, port or database, and repeated in errors.
    if "@" in path or authority.count("@") > 1 or ("?" in rest and "@" in rest.partition("?")[2]):
        raise _malformed("an '@' stands where none can be")
    driver = _driver()
    try:
        params: dict[str, str] = {
            name: str(value) for name, value in driver.conninfo_to_dict(f"postgresql://{rest}").items()
        }
    except driver.Error:
        raise _malformed("libpq cannot read it") from None
    if not re.fullmatch(r"[0-9,]*", params.get("port", "")):
        raise _malformed("the port is no number")
    return Address(params)


def _malformed(why: str) -> ConfigError:
    return ConfigError(
        f"The URL of the PostgreSQL database is malformed: {why}.",
        hint="Write postgresql://user:password@host:5432/database; in the password %40 for @, %2F for /, %3F for ?.",
    )


def connect(address: Address, timeout: float) -> Any:
    """Return a new connection (`psycopg.Connection`) in autocommit mode that speaks the types of the portable subset.

    A statement is bounded to `timeout` seconds by the server, and, should that one hang, a little later by ourselves.
    Raises psycopg.Error when trying again may help, `Refused` when not.
    """
    driver = _driver()
    given = address.params
    milliseconds = int(timeout * 1000)
    params = {
        "connect_timeout": "5",
        "application_name": "windlass",
        # A peer that vanished is noticed while we wait for it, and while it does not take what we send.
        "keepalives_idle": "10",
        "keepalives_interval": "5",
        "keepalives_count": "3",
        "tcp_user_timeout": str(milliseconds),
        **given,
        "client_encoding": "UTF8",
        # Ours first, so that those of the URL win.
        "options": f"-c statement_timeout={milliseconds} -c idle_in_transaction_session_timeout={milliseconds} "
        + given.get("options", ""),
    }
    try:
        conn = driver.connection.connect(
            **params, autocommit=True, cursor_factory=driver.cursor, prepare_threshold=None
        )
    except driver.Error as error:
        text = address.scrub(str(error))
        if _FOR_GOOD.search(text):
            raise Refused(text) from None
        raise
    conn.limit = with_grace(timeout)
    driver.adapt(conn.adapters)
    encoding = conn.info.parameter_status("server_encoding")
    if encoding != "UTF8":
        conn.close()
        raise Refused(f"the database's encoding is {encoding}; it must be made with ENCODING 'UTF8'")
    return conn


def with_grace(timeout: float) -> float:
    """Return how long to wait for a server that should have given up after `timeout` seconds."""
    return timeout + min(timeout, 5.0)


class _Driver:
    """What we use of psycopg."""

    def __init__(self) -> None:
        try:
            import psycopg
            from psycopg.adapt import Loader
            from psycopg.conninfo import conninfo_to_dict
            from psycopg.types.numeric import Int8Dumper
            from psycopg.types.string import StrDumper
        except ImportError as error:
            raise ConfigError(
                f"PostgreSQL needs psycopg, which cannot be imported ({error}).",
                hint="Run: pip install 'windlass[postgres]'",
            ) from error

        class Bounded(psycopg.Connection[Any]):
            """Gives a server up that does not answer for `limit` seconds."""

            limit = 30.0

            def wait(self, gen: Any, *args: Any, **kwargs: Any) -> Any:
                return super().wait(_until(gen, clock.monotonic() + self.limit), *args, **kwargs)

        def _until(gen: Any, end: float) -> Generator[Any, Any, Any]:
            ready: Any = None
            while True:
                try:
                    state = gen.send(ready)
                except StopIteration as stop:
                    return stop.value
                # The driver comes by every 100 ms, also when nothing happened.
                ready = yield state
                if not ready and clock.monotonic() >= end:
                    gen.close()
                    raise psycopg.OperationalError("the server does not answer")

        class Number(Loader):
            """Sums of BIGINT are NUMERIC: an int where it is one, as in SQLite."""

            def load(self, data: Any) -> int | float:
                text = bytes(data).decode()
                return int(text) if text.lstrip("-").isdigit() else float(text)

        class Flag(Loader):
            def load(self, data: Any) -> int:
                return int(bytes(data) == b"t")

        def adapt(adapters: Any) -> None:
            adapters.register_dumper(int, Int8Dumper)
            adapters.register_dumper(str, StrDumper)
            adapters.register_loader("numeric", Number)
            adapters.register_loader("bool", Flag)

        self.Error = psycopg.Error
        self.connection: Any = Bounded
        self.cursor: Any = psycopg.RawCursor
        self.conninfo_to_dict = conninfo_to_dict
        self.adapt = adapt


@cache
def _driver() -> _Driver:
    return _Driver()
