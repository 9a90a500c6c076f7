"""A docker engine as far as Windlass uses it: containers are folders, processes are real.

It runs in a process of its own, so what a client has started lives on when the client is killed, as it does with the
real one. A container has no root of its own: its working folder is a folder of the engine's.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

#: Options of `create` that take a value, and those that do not.
VALUED = {"--cap-drop", "--security-opt", "--pids-limit", "--name", "--label", "--network", "--workdir"}
BOUNDS = {"--memory", "--cpus", "--entrypoint"}
PLAIN = {"--init"}


class Engine:
    def __init__(self, home: Path) -> None:
        self.home = home
        self.containers: dict[str, dict[str, Any]] = {}
        self.lock = threading.Lock()

    def serve(self) -> None:
        door = socket.socket(socket.AF_UNIX)
        door.bind(str(self.home / "engine.sock"))
        door.listen(64)
        print("ready", flush=True)
        while True:
            client, _ = door.accept()
            threading.Thread(target=self.answer, args=(client,), daemon=True).start()

    def answer(self, client: socket.socket) -> None:
        with client:
            raw, fds, _, _ = socket.recv_fds(client, 1 << 20, 3)
            asked = json.loads(raw)
            try:
                code = self.run(asked["words"], asked["env"], fds)
            finally:
                for fd in fds:
                    os.close(fd)
            try:
                client.sendall(json.dumps(code).encode())
            except OSError:
                return  # the client was killed

    def run(self, words: list[str], env: dict[str, str], fds: list[int]) -> int:
        with (self.home / "calls.jsonl").open("a") as log:
            log.write(json.dumps(words) + "\n")
        match words:
            case ["create", *rest]:
                return self.create(rest, fds)
            case ["start", name]:
                return self.start(name, fds)
            case ["exec", *rest]:
                return self.exec(rest, env, fds)
            case ["rm", "-f", "-v", name]:
                return self.remove(name, fds)
            case ["inspect", name]:
                with self.lock:
                    found = self.containers.get(name)
                os.write(fds[1], json.dumps([found] if found else []).encode())
                return 0 if found else 1
            case _:
                return say(fds, f"unknown command: {words}", 125)

    def create(self, words: list[str], fds: list[int]) -> int:
        options: dict[str, str] = {}
        while words[0].startswith("-"):
            name = words.pop(0)
            if name not in VALUED | BOUNDS | PLAIN:
                return say(fds, f"unknown flag: {name}", 125)
            options[name] = words.pop(0) if name in VALUED | BOUNDS else ""
        image, *command = words
        if image == "missing":
            return say(fds, "Error response from daemon: No such image: missing:latest", 1)
        folder = self.home / options["--name"]
        folder.mkdir()
        with self.lock:
            made = {"options": options, "image": image, "command": command, "folder": str(folder), "running": False}
            self.containers[options["--name"]] = made
        os.write(fds[1], b"f" * 64 + b"\n")
        return 0

    def start(self, name: str, fds: list[int]) -> int:
        with self.lock:
            if name not in self.containers:
                return say(fds, f"Error response from daemon: No such container: {name}", 1)
            self.containers[name]["running"] = True
        os.write(fds[1], name.encode() + b"\n")
        return 0

    def exec(self, words: list[str], env: dict[str, str], fds: list[int]) -> int:
        given = {"PATH": os.environ["PATH"]}
        inside, interactive = "", False
        while words[0].startswith("-"):
            match words.pop(0):
                case "-i":
                    interactive = True
                case "-w":
                    inside = words.pop(0)
                case "-e":
                    name, equals, value = words.pop(0).partition("=")
                    if equals or name in env:
                        given[name] = value if equals else env[name]
                case other:
                    return say(fds, f"unknown flag: {other}", 125)
        name, *command = words
        with self.lock:
            found = self.containers.get(name)
        if found is None or not found["running"]:
            return say(fds, f"Error response from daemon: No such container: {name}", 1)
        if inside not in ("", found["options"]["--workdir"]):
            return say(fds, f"OCI runtime exec failed: no such directory: {inside}", 126)
        try:
            process = subprocess.Popen(
                command,
                cwd=found["folder"],
                env=given,
                stdin=fds[0] if interactive else subprocess.DEVNULL,
                stdout=fds[1],
                stderr=fds[2],
                start_new_session=True,
            )
        except FileNotFoundError:
            return say(fds, f'OCI runtime exec failed: exec: "{command[0]}": executable file not found', 127)
        code = process.wait()
        return 128 - code if code < 0 else code

    def remove(self, name: str, fds: list[int]) -> int:
        with self.lock:
            found = self.containers.pop(name, None)
        if found is None:
            return say(fds, f"Error response from daemon: No such container: {name}", 1)
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                try:
                    here = os.readlink(entry / "cwd")
                except OSError:
                    continue
                if here.startswith(found["folder"]):
                    os.kill(int(entry.name), signal.SIGKILL)
        shutil.rmtree(found["folder"], ignore_errors=True)
        os.write(fds[1], name.encode() + b"\n")
        return 0


def say(fds: list[int], text: str, code: int) -> int:
    os.write(fds[2], text.encode() + b"\n")
    return code


if __name__ == "__main__":
    Engine(Path(sys.argv[1])).serve()
