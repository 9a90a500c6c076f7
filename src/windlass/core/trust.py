"""Trust in a folder: whether what lies in it may run, connect, or widen what is allowed.

A folder that was cloned brings files that other programs would obey: MCP servers, hooks, skills, settings. None of them
counts before a person trusts the folder. Trust is bound to the folder's real path and to the SHA-256 of the content of
every such file; when one changes, appears or goes, the folder is untrusted again until somebody looks.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import os
import stat
import sys
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Literal

import msgspec
from msgspec import Struct

from windlass.core import clock
from windlass.core.errors import ConfigError
from windlass.core.private import replace_private

__all__ = ["INFORMATIVE", "PROJECT_PATHS", "ProjectFile", "Trust", "TrustStatus", "project_files"]

#: What executes, connects or widens, relative to the folder, and what it does: files, or folders with all they hold.
PROJECT_PATHS: dict[str, str] = {
    "windlass.toml": "settings and rules",
    ".mcp.json": "MCP servers that are started or connected",
    ".windlass": "hooks, skills, agents and settings",
    ".agents": "skills and agents",
    ".zidane": "skills",
}
#: Instructions that a model reads: nothing runs by them, but a person may want to know that they changed.
INFORMATIVE: tuple[str, ...] = ("AGENTS.md", "CLAUDE.md", "GEMINI.md")
MAX_FILES = 5000
MAX_BYTES = 64 << 20
_MAX_DEPTH = 32
_fcntl = importlib.import_module("fcntl") if sys.platform != "win32" else None


class ProjectFile(Struct, frozen=True):
    """One file that trust is about: its path in the folder, its kind, and the SHA-256 of what it holds.

    Of a link the hash covers where it points and what is there; `other` is a device, pipe or socket.
    """

    path: str
    kind: Literal["file", "link", "other"]
    sha256: str


class TrustStatus(Struct, frozen=True):
    """How a folder stands: `nothing` has no such file, `changed` was trusted as it was before.

    `changes` names files that are not as they were trusted, with `+`, `-` or `~`; `noted` the same of AGENTS.md and its
    like, which do not matter to the state.
    """

    folder: str
    state: Literal["trusted", "untrusted", "changed", "nothing"]
    files: tuple[ProjectFile, ...] = ()
    changes: tuple[str, ...] = ()
    noted: tuple[str, ...] = ()
    granted_ns: int = 0

    @property
    def trusted(self) -> bool:
        """True only where a person trusted exactly these files."""
        return self.state == "trusted"


class _Grant(Struct):
    files: dict[str, str]
    noted: dict[str, str] = {}
    granted_ns: int = 0


class _Grants(Struct):
    version: int = 1
    folders: dict[str, _Grant] = {}


def project_files(folder: str | Path) -> tuple[ProjectFile, ...]:
    """Return every file of a folder that would execute, connect or widen, sorted by path; nothing of it is run.

    Raises ConfigError for a folder with more of them than can be looked at, or where one cannot be read.
    """
    return tuple(sorted(_Reader(Path(folder)).files(PROJECT_PATHS), key=lambda each: each.path))


class Trust:
    """The folders that a person trusts, kept in `trust.json` of `home`: its mode is 0600, it is written atomically."""

    def __init__(self, home: str | Path) -> None:
        self.home = Path(home)
        self.path = self.home / "trust.json"

    def status(self, folder: str | Path) -> TrustStatus:
        """Look at a folder as it is now. Raises ConfigError as `project_files` does."""
        real = _real(folder)
        files = project_files(real)
        grant = self._read().folders.get(str(real))
        if grant is None:
            return TrustStatus(str(real), "untrusted" if files else "nothing", files)
        changes = _changes(grant.files, {each.path: each.sha256 for each in files})
        noted = _changes(grant.noted, _informative(real))
        state: Literal["trusted", "changed", "nothing"] = "changed" if changes else "trusted" if files else "nothing"
        return TrustStatus(str(real), state, files, changes, noted, grant.granted_ns)

    def grant(self, folder: str | Path, *, seen: TrustStatus | None = None) -> TrustStatus:
        """Trust a folder as it is now; with `seen`, only if its files are still those. Raises ConfigError otherwise."""
        real = _real(folder)
        files = project_files(real)
        if seen is not None and (seen.files != files or seen.folder != str(real)):
            raise ConfigError(f"{real} changed after it was looked at.", hint="Look at it again.")
        with self._locked():
            kept = self._read()
            kept.folders[str(real)] = _Grant(
                {each.path: each.sha256 for each in files}, _informative(real), clock.now_ns()
            )
            self._write(kept)
        return self.status(real)

    def revoke(self, folder: str | Path) -> bool:
        """Trust a folder no more; False where it was not trusted. It need not exist any more."""
        with self._locked():
            kept = self._read()
            if kept.folders.pop(str(_real(folder)), None) is None:
                return False
            self._write(kept)
        return True

    def folders(self) -> list[str]:
        """Return the folders that were trusted, sorted."""
        return sorted(self._read().folders)

    def read(self, folder: str | Path, path: str) -> bytes | None:
        """Return the content of one of its files if it is exactly what was trusted, else None.

        What is loaded by this cannot have changed between the look and the load.
        """
        real = _real(folder)
        grant = self._read().folders.get(str(real))
        wanted = None if grant is None else grant.files.get(path)
        if wanted is None:
            return None
        try:
            with contextlib.closing(_Opened(real / path)) as opened:
                data = opened.read(MAX_BYTES)
        except OSError:
            return None
        return data if _hash(data) == wanted else None

    # -- the file --------------------------------------------------------------------------------------------------

    def _read(self) -> _Grants:
        try:
            with contextlib.closing(_Opened(self.path)) as opened:
                if (why := opened.unsafe()) is not None:
                    raise ConfigError(f"{self.path} is not used: {why}.", hint="Look at it, then delete it.")
                data = opened.read(MAX_BYTES)
        except FileNotFoundError:
            return _Grants()
        except OSError as error:
            raise ConfigError(f"Cannot read {self.path}: {error.strerror}.") from error
        try:
            grants = msgspec.json.decode(data, type=_Grants)
        except msgspec.DecodeError as error:
            raise ConfigError(f"{self.path}: {error}.", hint="Delete it; folders have to be trusted again.") from None
        if grants.version > 1:
            raise ConfigError(f"{self.path} was written by a newer version.", hint="Upgrade windlass.")
        return grants

    def _write(self, grants: _Grants) -> None:
        try:
            replace_private(self.path, msgspec.json.format(msgspec.json.encode(grants)) + b"\n")
        except OSError as error:
            raise ConfigError(f"Cannot write {self.path}: {error.strerror}.") from error

    @contextlib.contextmanager
    def _locked(self) -> Generator[None]:
        """Two programs may trust two folders at once."""
        try:
            self.home.mkdir(parents=True, exist_ok=True, mode=0o700)
            handle = os.open(self.home / "trust.lock", os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o600)
        except OSError as error:
            raise ConfigError(f"Cannot write in {self.home}: {error.strerror}.") from error
        try:
            if _fcntl is not None:
                _fcntl.flock(handle, _fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)


def _real(folder: str | Path) -> Path:
    return Path(os.path.realpath(folder))


def _informative(folder: Path) -> dict[str, str]:
    reader = _Reader(folder)
    return {each.path: each.sha256 for each in reader.files(dict.fromkeys(INFORMATIVE, ""))}


def _changes(before: dict[str, str], now: dict[str, str]) -> tuple[str, ...]:
    out = [f"- {path}" for path in before.keys() - now.keys()]
    out += [f"+ {path}" for path in now.keys() - before.keys()]
    out += [f"~ {path}" for path in before.keys() & now.keys() if before[path] != now[path]]
    return tuple(sorted(out, key=lambda line: line[2:]))


def _named(path: str) -> str:
    """Return a path as text that UTF-8 carries; two different paths stay different."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return os.fsencode(path.replace("\\", "\\\\")).decode("utf-8", "backslashreplace")
    return path.replace("\\", "\\\\")


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class _Opened:
    """A regular file that was opened without waiting (a pipe) and without a link at its end."""

    def __init__(self, path: Path) -> None:
        flags = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
        self.handle = os.open(path, os.O_RDONLY | flags | getattr(os, "O_BINARY", 0))
        self.info = os.fstat(self.handle)
        if not stat.S_ISREG(self.info.st_mode):
            os.close(self.handle)
            raise OSError(0, "it is not a file")

    def unsafe(self) -> str | None:
        if sys.platform == "win32":
            return None
        if self.info.st_uid not in (os.getuid(), 0):
            return "it belongs to somebody else"
        return "others may write to it" if self.info.st_mode & 0o022 else None

    def read(self, limit: int) -> bytes:
        pieces: list[bytes] = []
        while limit > 0 and (data := os.read(self.handle, min(limit, 1 << 20))):
            pieces.append(data)
            limit -= len(data)
        return b"".join(pieces)

    def close(self) -> None:
        os.close(self.handle)


class _Reader:
    """Hashes the files of one folder, bounded in number and bytes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.count = 0
        self.bytes = 0

    def files(self, paths: dict[str, str]) -> Iterator[ProjectFile]:
        for name in paths:
            yield from self._entry(name, 0, frozenset())

    def _entry(self, path: str, depth: int, above: frozenset[tuple[int, int]]) -> Iterator[ProjectFile]:
        full = self.folder / path
        try:
            info = full.lstat()
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            raise self._unreadable(path, error) from error
        self.count += 1
        if self.count > MAX_FILES or depth > _MAX_DEPTH:
            raise ConfigError(
                f"{self.folder} has more files that would run or connect than can be looked at ({path}).",
                hint="It is not trusted as it is. Make it smaller.",
            )
        if stat.S_ISLNK(info.st_mode):
            yield from self._link(path, depth, above)
        elif stat.S_ISDIR(info.st_mode):
            yield from self._folder(path, full, info, depth, above)
        elif stat.S_ISREG(info.st_mode):
            yield ProjectFile(_named(path), "file", self._content(path, full))
        else:
            yield ProjectFile(_named(path), "other", _hash(f"other {stat.S_IFMT(info.st_mode):o}".encode()))

    def _folder(
        self, path: str, full: Path, info: os.stat_result, depth: int, above: frozenset[tuple[int, int]]
    ) -> Iterator[ProjectFile]:
        key = (info.st_dev, info.st_ino)
        if key in above:
            return  # a link leads back up
        try:
            names = sorted([each.name for each in full.iterdir()])
        except OSError as error:
            raise self._unreadable(path, error) from error
        for name in names:
            yield from self._entry(f"{path}/{name}", depth + 1, above | {key})

    def _link(self, path: str, depth: int, above: frozenset[tuple[int, int]]) -> Iterator[ProjectFile]:
        # What a link leads to is what would run: it is part of the identity, wherever it lies.
        full = self.folder / path
        try:
            target, info = str(full.readlink()), full.stat()
        except OSError as error:
            yield ProjectFile(_named(path), "link", _hash(f"broken {error.errno}".encode()))
            return
        content = self._content(path, Path(os.path.realpath(full))) if stat.S_ISREG(info.st_mode) else ""
        yield ProjectFile(_named(path), "link", _hash(f"{target}\0{content}".encode("utf-8", "surrogateescape")))
        if stat.S_ISDIR(info.st_mode):
            yield from self._folder(path, full, info, depth, above)

    def _content(self, path: str, full: Path) -> str:
        try:
            with contextlib.closing(_Opened(full)) as opened:
                self.bytes += opened.info.st_size
                if self.bytes > MAX_BYTES:
                    raise ConfigError(
                        f"{self.folder} has more than {MAX_BYTES >> 20} MiB of files that would run or connect.",
                        hint="It is not trusted as it is. Make it smaller.",
                    )
                return _hash(opened.read(MAX_BYTES))
        except OSError as error:
            raise self._unreadable(path, error) from error

    def _unreadable(self, path: str, error: OSError) -> ConfigError:
        return ConfigError(
            f"Cannot read {path!r} in {self.folder}: {error.strerror}.", hint="The folder cannot be trusted as it is."
        )
