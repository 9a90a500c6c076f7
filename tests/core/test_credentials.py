"""Credentials and where they are kept: the keyring, a private file, a lock between programs."""

from __future__ import annotations

import asyncio
import fcntl
import json
import logging
import os
import stat
import sys
from pathlib import Path
from typing import Any

import keyring
import keyring.backend
import keyring.backends.fail
import keyring.backends.null
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from windlass.core import clock
from windlass.core.credentials import (
    Credentials,
    CredentialStore,
    FileLock,
    Login,
    hide_secrets,
    read_credentials,
    read_private,
    system_keyring,
)
from windlass.core.errors import AuthError, ConfigError
from windlass.core.private import replace_private
from windlass.testing.clock import FakeClock

LOGIN = Login(
    Credentials("the-access", "the-refresh", 5_000, "acc-1"), "https://as.test/t", "c", "https://api.test", ("a",), 7
)


class Ring(keyring.backend.KeyringBackend):
    """A keyring as a desktop has one, which can be broken."""

    priority = 5  # pyright: ignore[reportAssignmentType, reportUnannotatedClassAttribute]

    def __init__(self, broken: str = "") -> None:
        super().__init__()
        self.kept: dict[tuple[str, str], str] = {}
        self.broken = broken

    def get_password(self, service: str, username: str) -> str | None:
        if self.broken == "get":
            raise RuntimeError("the bus went away")
        return self.kept.get((service, username))

    def set_password(self, service: str, username: str, password: str) -> None:
        if self.broken == "set":
            raise RuntimeError("the password is too long")
        self.kept[service, username] = password

    def delete_password(self, service: str, username: str) -> None:
        if self.broken == "delete":
            raise RuntimeError("the bus went away")
        del self.kept[service, username]


# --------------------------------------------------------------------------------------------------------- credentials


@pytest.mark.parametrize(
    ("value", "made"),
    [
        ({"access": "a"}, Credentials("a")),
        ({"access": "a", "refresh": "r", "expires": 17e8, "account_id": "x"}, Credentials("a", "r", 17 * 10**11, "x")),
        ({"access": "a", "expires": 1_700_000_000_000, "accountId": "x"}, Credentials("a", "", 1_700_000_000_000, "x")),
        ({"access": "a", "expires": 1_700_000_000.5}, Credentials("a", "", 1_700_000_000_500)),
        ({"access_token": "a", "refreshToken": "r", "expires_at": 0}, Credentials("a", "r")),
        ({"access": None, "accessToken": "a", "expires": 99_999_999_999}, Credentials("a", "", 99_999_999_999_000)),
    ],
)  # fmt: skip
def test_credentials_are_read_by_all_their_names_and_times(value: Any, made: Credentials) -> None:
    assert read_credentials(value, "it") == made


@pytest.mark.parametrize(
    "value",
    [None, [], "a", {}, {"access": ""}, {"access": 5}, {"access": "a\n"}, {"access": "a b"}, {"access": "é"},
     {"access": "a", "refresh": 1}, {"access": "a", "expires": "soon"}, {"access": "a", "expires": True},
     {"access": "a", "expires": -1}, {"access": "a", "expires": float("nan")}, {"access": "a", "accountId": "\r\nx"}],
)  # fmt: skip
def test_what_is_none_is_refused_without_being_repeated(value: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        read_credentials(value, "the file")
    assert "the file" in str(caught.value) and repr(value) not in str(caught.value)


ANYTHING = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.integers())


@given(st.dictionaries(st.sampled_from(["access", "refresh", "expires", "account_id", "accessToken"]), ANYTHING))
def test_anything_is_credentials_or_a_typed_error(value: dict[str, Any]) -> None:
    try:
        made = read_credentials(value, "it")
    except ConfigError:
        return
    assert made.access and (made.expires is None or made.expires >= 0)
    f"authorization: Bearer {made.access}".encode("ascii")


def test_the_time_left_is_by_the_wall_clock() -> None:
    fake = FakeClock()
    with clock.use(fake):
        given = Credentials("a", expires=1_700_000_060_000)
        assert given.left_ms() == 60_000
        fake.elapsed += 10
        fake.jump(-5)
        assert given.left_ms() == 55_000
        assert Credentials("a").left_ms() is None


def test_s54_no_representation_shows_a_secret() -> None:
    shown = [repr(LOGIN), str(LOGIN), f"{LOGIN.credentials!r}", repr(LOGIN.credentials.__rich_repr__())]
    shown += [repr(LOGIN.credentials.redacted()), repr(msgspec.structs.asdict(LOGIN)), f"{LOGIN.credentials}"]
    assert not any("the-access" in text or "the-refresh" in text for text in shown)
    assert LOGIN.credentials.redacted() == Credentials("[hidden]", "[hidden]", 5_000, "acc-1")


def test_s55_secrets_are_taken_out_of_errors() -> None:
    error = AuthError("said the-access", provider_code="the-refresh", partial="ok", hint="the-refreshed the-access")
    error.add_note("and the-refresh")
    hide_secrets(error, ("the-access", "the-refresh", "ok", ""))
    shown = repr(error) + str(error) + json.dumps(error.to_dict()) + repr(error.__notes__)
    assert "the-access" not in shown and "the-refresh" not in shown
    assert (error.partial, error.provider_code) == ("ok", "[hidden]")


# ------------------------------------------------------------------------------------------------------------ the file


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("mask", [0o000, 0o077, 0o022])
def test_s14_files_and_folders_are_their_owners_whatever_the_umask(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        store = CredentialStore(tmp_path / "home" / "credentials")
        assert store.write("mine", LOGIN, "file") == "file"
    finally:
        os.umask(before)
    assert [mode(path) for path in (tmp_path / "home", store.folder, store.path("mine"))] == [0o700, 0o700, 0o600]
    assert os.listdir(store.folder) == ["mine.json"]
    assert (store.read("mine"), store.names(), "mine" in store, store.place("mine")) == (LOGIN, ["mine"], True, "file")
    about = store.about("mine")
    assert about is not None and about.credentials == LOGIN.credentials.redacted() and about.client_id == "c"


def test_logins_come_and_go(tmp_path: Path) -> None:
    store = CredentialStore(tmp_path / "c")
    assert (store.read("x"), store.about("x"), store.names(), store.delete("x")) == (None, None, [], False)
    for name in ("x", "../../evil", "a/b", "Größe", "=", ".hidden", "x" * 300):
        store.write(name, LOGIN, "file")
        assert store.path(name).parent == store.folder and store.read(name) == LOGIN
    assert len(store.names()) == 7 and "../../evil" in store.names()
    assert store.delete("../../evil") and store.read("../../evil") is None and len(store.names()) == 6


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"{", "not JSON"), (b"[]", "Expected"), (b'{"provider": "mine", "access": 5}', "Expected"), (b"\xff", "not JSON"),
     (b'{"provider": "mine", "version": 2}', "newer version"), (b"[" * 9000, "not JSON")],
)  # fmt: skip
def test_a_broken_file_is_told_without_its_content(tmp_path: Path, content: bytes, words: str) -> None:
    store = CredentialStore(tmp_path / "c")
    store.write("mine", LOGIN, "file")
    replace_private(store.path("mine"), content)
    with pytest.raises(ConfigError, match=words):
        store.read("mine")
    with pytest.raises(ConfigError, match=words):
        store.about("mine")


def test_files_that_others_could_have_made_or_read_are_not_used(tmp_path: Path) -> None:
    store = CredentialStore(tmp_path / "c")
    store.write("mine", LOGIN, "file")
    path = store.path("mine")
    for wrong, words in ((0o644, "others may read"), (0o620, "others may write"), (0o602, "others may write")):
        path.chmod(wrong)
        with pytest.raises(ConfigError, match=words):
            store.read("mine")
    path.chmod(0o600)
    real = path.rename(tmp_path / "elsewhere")
    path.symlink_to(real)
    with pytest.raises(ConfigError, match="Cannot read"):
        store.read("mine")
    path.unlink()
    os.mkfifo(path, 0o600)
    with pytest.raises(ConfigError, match="no plain file"):  # and it does not wait for who writes to it
        store.read("mine")
    big = tmp_path / "big"
    replace_private(big, b"x" * ((1 << 20) + 1))
    with pytest.raises(ConfigError, match="1 MiB"):
        read_private(big)
    with pytest.raises(FileNotFoundError):
        read_private(tmp_path / "none")


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "c").write_text("a file")
    with pytest.raises(ConfigError, match="Cannot write"):
        CredentialStore(tmp_path / "c").write("mine", LOGIN, "file")
    store = CredentialStore(tmp_path / "d")
    store.write("mine", LOGIN, "file")

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ConfigError, match="No space"):
        store.write("mine", Login(Credentials("new")), "file")
    assert store.read("mine") == LOGIN and os.listdir(store.folder) == ["mine.json"]


# ---------------------------------------------------------------------------------------------------------- the keyring


def test_with_a_keyring_the_file_holds_no_secret(tmp_path: Path) -> None:
    ring = Ring()
    store = CredentialStore(tmp_path / "c", ring)
    assert store.write("mine", LOGIN) == "keyring"
    text = store.path("mine").read_text()
    assert "the-access" not in text and "the-refresh" not in text and mode(store.path("mine")) == 0o600
    assert store.read("mine") == LOGIN and ring.kept.keys() == {("windlass", "mine")}
    # What is renewed stays where it is; who wants a file gets one, and the keyring forgets.
    assert store.write("mine", LOGIN) == "keyring"
    assert store.write("mine", LOGIN, "file") == "file" and ring.kept == {}
    assert store.write("mine", LOGIN) == "file" and store.read("mine") == LOGIN
    store.write("mine", LOGIN, "keyring")
    assert store.delete("mine") and ring.kept == {} and store.names() == []


def test_a_keyring_that_fails_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ring = Ring("set")
    store = CredentialStore(tmp_path / "c", ring)
    with caplog.at_level(logging.WARNING, "windlass.credentials"):
        assert store.write("mine", LOGIN) == "file" and store.read("mine") == LOGIN
    assert "too long" in caplog.text and "the-access" not in caplog.text
    ring.broken = ""
    store.write("mine", LOGIN, "keyring")
    ring.broken = "get"
    with pytest.raises(ConfigError, match=r"bus went away.*--keep file"):
        store.read("mine")
    ring.broken = "delete"
    assert store.delete("mine") and "does not forget" in caplog.text
    ring.broken = ""
    store.write("mine", LOGIN, "keyring")
    ring.kept.clear()
    with pytest.raises(ConfigError, match="holds no login of mine any more"):
        store.read("mine")


def test_only_a_real_keyring_is_one(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    class Plain(Ring):
        """keyrings.alt keeps passwords in a plain file."""

    Plain.__module__ = "keyrings.alt.file"
    before = keyring.get_keyring()
    try:
        for backend, real in ((Ring(), True), (Plain(), False), (keyring.backends.fail.Keyring(), False),
                              (keyring.backends.null.Keyring(), False)):  # fmt: skip
            keyring.set_keyring(backend)
            assert (system_keyring() is not None) is real, backend
    finally:
        keyring.set_keyring(before)

    def broken() -> None:
        raise RuntimeError("PYTHON_KEYRING_BACKEND names nothing")

    monkeypatch.setattr(keyring, "get_keyring", broken)
    assert system_keyring() is None and "names nothing" in caplog.text
    monkeypatch.setitem(sys.modules, "keyring", None)
    assert system_keyring() is None


def test_a_login_in_a_keyring_that_is_gone_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    CredentialStore(tmp_path / "c", Ring()).write("mine", LOGIN)
    monkeypatch.setattr("windlass.core.credentials.system_keyring", lambda: None)
    store = CredentialStore(tmp_path / "c")
    with pytest.raises(ConfigError, match=r"not there now.*--keep file"):
        store.read("mine")
    assert store.names() == ["mine"] and store.about("mine") is not None and store.delete("mine")


# ------------------------------------------------------------------------------------------------------------ the lock


async def test_one_holds_the_file_and_the_next_sees_what_it_became(tmp_path: Path) -> None:
    path = tmp_path / "f"
    replace_private(path, b"0")
    inside = 0

    async def renew() -> None:
        nonlocal inside
        async with FileLock(path):
            inside += 1
            assert inside == 1
            number = int(read_private(path))
            await asyncio.sleep(0.001)
            replace_private(path, str(number + 1).encode())
            inside -= 1

    await asyncio.gather(*[renew() for _ in range(6)])
    assert read_private(path) == b"6"


async def test_who_waits_too_long_or_is_cancelled_holds_nothing(tmp_path: Path) -> None:
    path = tmp_path / "f"
    async with FileLock(path):  # there is nothing to hold
        replace_private(path, b"0")
        async with FileLock(path):
            with pytest.raises(TimeoutError):
                async with FileLock(path, 0.1):
                    raise AssertionError
            waiting = asyncio.create_task(FileLock(path).__aenter__())
            await asyncio.sleep(0.01)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
    async with FileLock(path, 1.0):
        pass
    with pytest.raises(RuntimeError):
        async with FileLock(path):
            raise RuntimeError
    async with FileLock(path, 1.0):
        pass


async def test_a_file_that_was_replaced_while_it_was_opened_is_opened_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "f"
    replace_private(path, b"0")
    before, calls = fcntl.flock, 0

    def flock(handle: int, how: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            replace_private(path, b"1")  # who held it until now is done
        before(handle, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    async with FileLock(path):
        assert calls == 2
        with pytest.raises(TimeoutError):
            await FileLock(path, 0.1).__aenter__()


async def test_a_program_that_dies_lets_go(tmp_path: Path) -> None:
    path = tmp_path / "f"
    replace_private(path, b"0")
    held = "fcntl.flock(os.open(sys.argv[1], os.O_RDONLY), 2)"
    script = f"import fcntl, os, sys, time\n{held}\nprint('held', flush=True)\ntime.sleep(60)"
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", script, path, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None and await process.stdout.readline() == b"held\n"
    with pytest.raises(TimeoutError):
        await FileLock(path, 0.1).__aenter__()
    process.kill()
    await process.communicate()
    async with FileLock(path, 10.0):
        pass
