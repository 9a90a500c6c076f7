"""A host to be attacked from inside a sandbox: secrets, listeners and a process, and what became of them."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from windlass.workspaces import bwrap

CANARY = "CANARY-0f3a"
_ENV = {"PATH": os.environ["PATH"]}
_program = bwrap.find_bwrap(os.environ, "")
WHY_NOT = "bwrap is not installed" if _program is None else bwrap.why_not(_program, os.environ)
needs_bwrap = pytest.mark.skipif(bool(WHY_NOT), reason=f"bubblewrap does not work here: {WHY_NOT}")
#: A Python that an ordinary user can run: the one of the tests may lie in somebody's home.
SYSTEM_PYTHON = shutil.which("python3", path="/usr/bin:/bin:/usr/local/bin") or sys.executable
NOBODY = 65534


class Host:
    """Listeners of each kind, a process with a secret in its environment, and files in a home and outside."""

    def __init__(self, place: Path) -> None:
        self.place, self.root, self.outside, self.home = place, place / "root", place / "outside", place / "home"
        place.chmod(0o755)
        for folder in (self.root, self.outside, self.home / ".ssh", self.home / ".aws"):
            folder.mkdir(parents=True)
            folder.chmod(0o777)
        for path in (self.outside / "file", self.home / ".ssh/id_rsa", self.home / ".aws/credentials"):
            path.write_text(CANARY)
            path.chmod(0o666)
        self.reached: list[str] = []
        self.victim = subprocess.Popen(["sleep", "600"], env={"SECRET": CANARY, **_ENV})
        self._doors = [
            self._listen("tcp", socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", 0)),
            self._listen("udp", socket.AF_INET, socket.SOCK_DGRAM, ("127.0.0.1", 0)),
            self._listen("path", socket.AF_UNIX, socket.SOCK_STREAM, str(self.outside / "sock")),
            self._listen("path in the root", socket.AF_UNIX, socket.SOCK_STREAM, str(self.root / "sock")),
            self._listen("abstract", socket.AF_UNIX, socket.SOCK_STREAM, f"\0windlass-{os.getpid()}"),
        ]
        for path in (self.outside / "sock", self.root / "sock"):
            path.chmod(0o777)
        self.words = {
            "{tcp}": str(self._doors[0].getsockname()[1]),
            "{udp}": str(self._doors[1].getsockname()[1]),
            "{pid}": str(self.victim.pid),
            "{root}": str(self.root),
            "{outside}": str(self.outside),
            "{home}": str(self.home),
            "{abstract}": f"windlass-{os.getpid()}",
            "{python}": SYSTEM_PYTHON,
        }

    def _listen(self, name: str, family: int, kind: int, address: Any) -> socket.socket:
        door = socket.socket(family, kind)
        door.bind(address)
        if kind == socket.SOCK_STREAM:
            door.listen(16)

        def serve() -> None:
            while True:
                try:
                    if kind == socket.SOCK_STREAM:
                        door.accept()[0].close()
                    else:
                        door.recv(100)
                except OSError:
                    return
                self.reached.append(name)

        threading.Thread(target=serve, daemon=True).start()
        return door

    def fill(self, command: str) -> str:
        for word, value in self.words.items():
            command = command.replace(word, value)
        return command

    def close(self) -> None:
        for door in self._doors:
            door.shutdown(socket.SHUT_RDWR) if door.type == socket.SOCK_STREAM else None
            door.close()
        self.victim.kill()
        self.victim.wait()

    def damage(self) -> list[str]:
        """Say what was harmed, in words; nothing when all is as it was."""
        found = [f"reached: {name}" for name in self.reached]
        if self.victim.poll() is not None:
            found.append("the process was ended")
        secrets = (self.outside / "file", self.home / ".ssh/id_rsa", self.home / ".aws/credentials")
        found += [f"changed: {path}" for path in secrets if path.read_text() != CANARY]
        for folder, names in ((self.outside, {"file", "sock"}), (self.home, {".ssh", ".aws"})):
            found += [f"made: {folder}/{name}" for name in set(os.listdir(folder)) - names]
        for path in ("/tmp", "/etc", "/usr", "/", "/var/tmp", "/dev/shm", "/dev"):
            if Path(path, "windlass-canary").exists():
                found.append(f"made: {path}/windlass-canary")
        return found


def as_user(work: Callable[[], Coroutine[Any, Any, Any]], uid: int) -> Any:
    """Run `work` in a child that has become `uid` for good and return its value, which must be JSON."""
    read, write = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the child only runs one coroutine: threads it does not have are not missed
        pid = os.fork()
    if pid == 0:
        try:
            os.close(read)
            os.setgroups([])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
            sys.executable = SYSTEM_PYTHON
            value = json.dumps(asyncio.run(work()))
        except BaseException as error:  # a child of a test must not go on as a second test run
            value = json.dumps({"error": repr(error)})
        with os.fdopen(write, "w") as out:
            out.write(value)
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as back:
        value = json.loads(back.read() or '{"error": "the child died"}')
    os.waitpid(pid, 0)
    return value
