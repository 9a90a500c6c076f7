"""Keep protected names at the top of a workspace from being made by a command, also those that are not there yet.

A mount needs something to be mounted on. While commands run, each acting name that is missing is an empty folder with
a date of its own, moved in from a private folder and back again: making and removing one costs up to some milliseconds
where the disk is told of every freed block. A folder that is not empty any more stays.

Names with which this would get in people's way (shell start files, package managers' settings), other spellings, and
links, which nothing can be mounted on, are looked at afterwards: what appeared is renamed, what changed is put back.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import stat
import sys
import threading
import time
from typing import Any

from windlass.workspaces.paths import ACTING_NAMES, is_protected

__all__ = ["Guard", "Seen"]

_fcntl: Any = importlib.import_module("fcntl") if sys.platform != "win32" else None
#: The modification time, in seconds, that tells our empty folders from anybody's.
_MARK = 777_777_777
#: How often, and every how many seconds, another process that is just clearing up is waited for.
_TRIES, _PAUSE = 40, 0.005
#: Bytes of a name that leave room for what is put behind it.
_LONGEST = 200


class Seen:
    """What was protected at the top of the root when a command began: `kept` by mounts, `missing`, and links."""

    def __init__(self, kept: tuple[str, ...], missing: tuple[str, ...], links: dict[str, str], mode: int) -> None:
        self.kept, self.missing, self.links, self.mode = kept, missing, links, mode


class Guard:
    """The protected names of `root`. With `hold`, missing ones are taken while anything runs.

    `spare` is a private folder for empty folders that wait for their use; "" where the file system has no other place.
    """

    def __init__(self, root: str, *, hold: bool, spare: str = "") -> None:
        self._root, self._hold, self._spare = root, hold, spare
        self._lock = threading.Lock()
        #: Names that our own file access has made while commands ran.
        self._expected: set[str] = set()
        self._users = 0
        self._fd = -1
        if hold:
            self.leave(self.enter())  # what a process that was killed has left goes with this

    def enter(self) -> Seen:
        """Take the missing names and say what is there; `leave` must follow. Raises OSError, then nothing is taken."""
        with self._lock:
            if self._hold:
                if self._users == 0:
                    self._fd = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                    self._share()
                for name in ACTING_NAMES:
                    self._take(name)
            self._users += 1
            try:
                return self._look()
            except OSError:
                self._release()
                raise

    def leave(self, seen: Seen) -> list[str]:
        """Put right what became of the names since `enter`, say so in sentences, and give the missing ones back.

        They are given back when nothing runs any more, here or in another process.
        """
        with self._lock:
            try:
                return self._settle(seen)
            except FileNotFoundError:
                return []  # somebody outside has removed the root
            except OSError as error:
                return [f"{self._root} could not be looked at afterwards: {error}"]
            finally:
                self._release()

    def _release(self) -> None:
        self._users -= 1
        if self._users or self._fd < 0:
            return
        with contextlib.suppress(OSError):
            _fcntl.flock(self._fd, _fcntl.LOCK_EX | _fcntl.LOCK_NB)
            for name in ACTING_NAMES:
                if self._is_ours(name):
                    self._give(name)
        os.close(self._fd)
        self._fd = -1

    def expect(self, name: str) -> None:
        """Leave this name alone when it appears: a person has agreed to it."""
        self._expected.add(name)

    def _settle(self, seen: Seen) -> list[str]:
        """Rename protected names that appeared since `seen`, put changed links back, and say so in sentences."""
        said: list[str] = []
        if stat.S_IMODE(os.stat(self._root).st_mode) != seen.mode:  # noqa: PTH116
            # Without this, a folder that was made read-only would keep what is in it.
            os.chmod(self._root, seen.mode)  # noqa: PTH101
            said.append("the mode of the workspace's folder was put back")
        for name, target in seen.links.items():
            path = f"{self._root}/{name}"
            if not os.path.islink(path) or os.readlink(path) != target:  # noqa: PTH114, PTH115
                said += self._set_aside(name)
                with contextlib.suppress(FileExistsError):
                    os.symlink(target, path)  # noqa: PTH211
                    said.append(f"the link {name} was put back")
        known = {*seen.kept, *seen.missing, *seen.links, *self._expected}
        now = self._look()
        for name in sorted({*now.kept, *now.links} - known):
            said += self._set_aside(name)
        return said

    def _set_aside(self, name: str) -> list[str]:
        number = 0
        short = name if len(os.fsencode(name)) < _LONGEST else f"name{abs(hash(name))}"
        while os.path.lexists(f"{self._root}/{short}.set-aside{number or ''}"):
            number += 1
        aside = f"{short}.set-aside{number or ''}"
        try:
            os.rename(f"{self._root}/{name}", f"{self._root}/{aside}")  # noqa: PTH104
        except FileNotFoundError:
            return []
        except OSError as error:
            return [f"{name} is protected ({is_protected(name)}), but could not be renamed: {error.strerror}"]
        return [f"{name} is protected ({is_protected(name)}): what was made is in {aside}"]

    def _look(self) -> Seen:
        kept: list[str] = []
        missing: list[str] = []
        links: dict[str, str] = {}
        for entry in os.scandir(self._root):
            if not is_protected(entry.name):
                continue
            if entry.is_symlink():
                links[entry.name] = os.readlink(entry.path)  # noqa: PTH115
            elif self._hold and entry.name in ACTING_NAMES and self._is_ours(entry.name):
                missing.append(entry.name)
            else:
                kept.append(entry.name)
        mode = stat.S_IMODE(os.stat(self._root).st_mode)  # noqa: PTH116
        return Seen(tuple(sorted(kept)), tuple(sorted(missing)), links, mode)

    def _take(self, name: str) -> None:
        """Put an empty folder of ours at a name; not where something is, or where a command could make nothing too."""
        with contextlib.suppress(OSError):
            if self._spare and not self._is_there(name):
                os.rename(f"{self._spare}/{name}", name, dst_dir_fd=self._fd)
                return
        with contextlib.suppress(OSError):
            os.mkdir(name, 0o555, dir_fd=self._fd)
            os.utime(name, (_MARK, _MARK), dir_fd=self._fd, follow_symlinks=False)

    def _give(self, name: str) -> None:
        kept = f"{self._spare}/{name}"
        with contextlib.suppress(OSError):
            if self._spare and not os.path.lexists(kept):
                os.rename(name, kept, src_dir_fd=self._fd)
                if os.listdir(kept):  # noqa: PTH208
                    os.rename(kept, name, dst_dir_fd=self._fd)  # somebody has put something into it
                return
        with contextlib.suppress(OSError):
            os.rmdir(name, dir_fd=self._fd)

    def _is_there(self, name: str) -> bool:
        try:
            os.stat(name, dir_fd=self._fd, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True

    def _is_ours(self, name: str) -> bool:
        try:
            found = os.stat(name, dir_fd=self._fd, follow_symlinks=False)
        except OSError:
            return False
        return stat.S_ISDIR(found.st_mode) and int(found.st_mtime) == _MARK

    def _share(self) -> None:
        for _ in range(_TRIES):
            try:
                _fcntl.flock(self._fd, _fcntl.LOCK_SH | _fcntl.LOCK_NB)
            except OSError:
                time.sleep(_PAUSE)
            else:
                return
