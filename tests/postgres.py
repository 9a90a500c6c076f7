"""A private PostgreSQL server for tests: made in a temporary folder, run as no root, stopped and deleted at the end.

Most tests want the fixtures of the top `conftest.py`: `postgres`, one server for the whole session (of each
pytest-xdist worker), and `database_url`, the URL of a new empty database on it. A test that restarts or breaks its
server makes one of its own::

    with Postgres() as server:
        ...
        server.restart()
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TypedDict
from urllib.parse import quote

import psycopg

from windlass.core import clock

__all__ = ["PASSWORD", "USER", "Postgres"]

USER = "windlass"
#: One that is not fit for a URL as it is, and that no error may repeat.
PASSWORD = "canary:p@ss/w?rd%40#1"
_GUARD = """
read _; kill -QUIT "$1"
for _ in 1 2 3 4 5 6 7 8 9 10; do test -e "$2/data/postmaster.pid" || break; sleep 0.2; done
rm -rf "$2"
"""
_SETTINGS = {
    # Nothing here outlives the machine, so nothing has to reach the disk.
    "fsync": "off",
    "full_page_writes": "off",
    "listen_addresses": "127.0.0.1",
    "shared_buffers": "16MB",
    "max_connections": "100",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "autovacuum": "off",
    "log_min_messages": "warning",
}


def _program(name: str) -> str:
    """Return the path of a server program. CI installs them: a test that needs them fails without, it does not skip."""
    found = shutil.which(name)
    places = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), key=lambda path: path.parts[4].zfill(3))
    if found is None and not places:
        raise RuntimeError(f"{name} is not installed: apt-get install postgresql (its server programs are used here).")
    return str(places[-1]) if places else str(found)


def _account() -> tuple[int, int] | None:
    """Return the user and group to run as where we are root, which PostgreSQL refuses."""
    if os.geteuid() != 0:
        return None
    names = {entry.pw_name: entry for entry in pwd.getpwall()}
    entry = names.get("postgres") or names["nobody"]
    return entry.pw_uid, entry.pw_gid


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


class _Who(TypedDict, total=False):
    user: int
    group: int
    extra_groups: list[int]


class Postgres:
    """A server on 127.0.0.1 (SCRAM password) and on a socket in its folder (trust). `settings` go to postgresql.conf.

    `durable`: what is committed survives a crash of the server itself. Start-up takes about one second, most of it
    initdb's.
    """

    def __init__(self, *, durable: bool = False, settings: Mapping[str, str] | None = None) -> None:
        self.settings = {**_SETTINGS, "synchronous_commit": "on" if durable else "off", **(settings or {})}
        self.folder = Path(tempfile.mkdtemp(prefix="wl-pg-", dir="/tmp" if Path("/tmp").is_dir() else None))
        self.port = _free_port()
        self._account = _account()
        self._process: subprocess.Popen[bytes] | None = None
        self._guard: subprocess.Popen[bytes] | None = None
        self._databases = 0
        self._empty: list[str] = []

    def __enter__(self) -> Self:
        try:
            self._make()
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def url(self, database: str = "postgres", *, user: str = USER, password: str = PASSWORD) -> str:
        """Return the URL of a database, over TCP with the password."""
        secret = f":{quote(password, safe='')}" if password else ""
        return f"postgresql://{user}{secret}@127.0.0.1:{self.port}/{database}"

    def new_database(self) -> str:
        """Return the URL of an empty database: a new one, or one that was given back."""
        if self._empty:
            return self._empty.pop()
        self._databases += 1
        name = f"test_{self._databases}"
        self.sql(f"CREATE DATABASE {name}")
        return self.url(name)

    def give_back(self, url: str) -> None:
        """Cut what is connected to the database of `url` and empty it, for the next who wants one."""
        name = url.rpartition("/")[2]
        self.sql(f"ALTER DATABASE {name} RESET ALL")
        self.terminate(url)
        self.sql("SET client_min_messages = warning; DROP SCHEMA public CASCADE", url)
        self.sql("CREATE SCHEMA public; GRANT USAGE ON SCHEMA public TO PUBLIC", url)
        self._empty.append(url)

    def sql(self, text: str, url: str | None = None) -> list[tuple[Any, ...]]:
        """Run SQL on a connection of its own, as superuser, and return the rows of the first statement."""
        with psycopg.connect(url or self.url(), autocommit=True) as conn:
            done = conn.execute(text.encode())
            return done.fetchall() if done.description else []

    def connections(self, url: str) -> int:
        """Return how many connections there are to the database of `url`, once those being closed are gone."""
        name = url.rpartition("/")[2]
        until = clock.monotonic() + 10
        count = "SELECT count(*) FROM pg_stat_activity WHERE datname = "
        while (found := self.sql(f"{count}'{name}'")[0][0]) and clock.monotonic() < until:
            time.sleep(0.01)
        return found

    def terminate(self, url: str) -> int:
        """Cut every connection to the database of `url`, as a failover would; return how many there were."""
        name = url.rpartition("/")[2]
        return len(self.sql(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'"))

    def start(self) -> None:
        """Start the server and wait until it answers."""
        for _ in range(5):
            log = (self.folder / "log").open("ab")
            with log:
                self._process = subprocess.Popen(
                    [_program("postgres"), "-D", self._data, "-p", str(self.port)],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    cwd=self.folder,
                    **self._who(),
                )
            # Its input ends when this process does, however that ends.
            script = ["sh", "-c", _GUARD, "guard", str(self._process.pid), str(self.folder)]
            self._guard = subprocess.Popen(script, stdin=subprocess.PIPE, **self._who())
            if self._wait_until_ready():
                return
            self._dismiss_guard()
            # Somebody else took the port meanwhile; after a restart it must be the same.
            if "could not create any TCP/IP sockets" not in self.log():
                break
            self.port = _free_port()
        raise RuntimeError(f"PostgreSQL does not start:\n{self.log()[-4000:]}")

    def stop(self, mode: Literal["fast", "immediate"] = "fast") -> None:
        """End the server: `fast` rolls back and says goodbye to each client, `immediate` is like a crash."""
        process, self._process = self._process, None
        self._dismiss_guard()
        if process is None:
            return
        process.send_signal(signal.SIGINT if mode == "fast" else signal.SIGQUIT)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def restart(self, mode: Literal["fast", "immediate"] = "fast") -> None:
        """Stop the server and start it on the same port."""
        self.stop(mode)
        self.start()

    def pause(self) -> None:
        """Freeze the server and all its sessions: they are there and never answer."""
        self._signal_all(signal.SIGSTOP)

    def resume(self) -> None:
        """Let a frozen server go on."""
        self._signal_all(signal.SIGCONT)

    def log(self) -> str:
        """Return what the server has logged."""
        path = self.folder / "log"
        return path.read_text("utf-8", "replace") if path.exists() else ""

    def close(self) -> None:
        """Stop the server and delete everything."""
        if self._process is not None:
            self.resume()
        self.stop("immediate")
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def _data(self) -> str:
        return str(self.folder / "data")

    def _who(self) -> _Who:
        return {"user": self._account[0], "group": self._account[1], "extra_groups": []} if self._account else {}

    def _make(self) -> None:
        if self._account:
            os.chown(self.folder, *self._account)
        secret = self.folder / "password"
        secret.write_text(PASSWORD + "\n")
        secret.chmod(0o644)
        done = subprocess.run(
            [
                _program("initdb"), "-D", self._data, "-U", USER, "-E", "UTF8", "--locale=C", "--no-sync",
                "--auth-local=trust", "--auth-host=scram-sha-256", f"--pwfile={secret}", "--no-instructions",
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=self.folder,
            timeout=120,
            **self._who(),
        )  # fmt: skip
        if done.returncode != 0:
            raise RuntimeError(f"initdb failed:\n{done.stdout.decode()}")
        with (self.folder / "data" / "postgresql.conf").open("a") as conf:
            for name, value in {**self.settings, "unix_socket_directories": str(self.folder)}.items():
                conf.write(f"{name} = '{value}'\n")

    def _wait_until_ready(self) -> bool:
        assert self._process is not None
        status = self.folder / "data" / "postmaster.pid"
        until = clock.monotonic() + 60
        while clock.monotonic() < until:
            if self._process.poll() is not None:
                return False
            lines = status.read_text().splitlines() if status.exists() else []
            # The line that pg_ctl waits for.
            if len(lines) >= 8 and lines[0] == str(self._process.pid) and lines[7].strip() == "ready":
                return True
            time.sleep(0.01)
        return False

    def _dismiss_guard(self) -> None:
        guard, self._guard = self._guard, None
        if guard is not None:
            guard.kill()
            guard.communicate()

    def _signal_all(self, number: signal.Signals) -> None:
        assert self._process is not None
        pid = self._process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children")
        for one in [pid, *map(int, children.read_text().split())] if children.exists() else [pid]:
            os.kill(one, number)
