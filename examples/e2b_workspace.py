"""Make a workspace of a service of sandboxes: a provider for one with E2B's API, as its documents describe that.

python examples/e2b_workspace.py

With E2B_API_KEY set it asks the service itself; without, a stand-in in this file that keeps folders on this machine.
Tests ask the stand-in only.
"""

from __future__ import annotations

import asyncio
import os
import struct
import tempfile
from base64 import b64decode, b64encode
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote

import msgspec
from msgspec import Struct

from windlass.core.errors import WorkspaceError
from windlass.core.http import Client, Response, StreamResponse, Timeouts
from windlass.core.ports import ExecResult, FileInfo
from windlass.workspaces.process import run_command
from windlass.workspaces.remote import RemoteWorkspace, SpawnOptions

ROOT = "/home/user"


class Sandbox(Struct, frozen=True):
    """One sandbox, and the headers that lead to it."""

    id: str
    headers: dict[str, str]


class E2bSandbox:
    """Sandboxes of E2B: `api` makes them, `envd` is the program that runs in each (e2b.dev/docs/api-reference)."""

    name = "e2b"

    def __init__(self, key: str, api: str = "https://api.e2b.app", envd: str = "https://sandbox.e2b.app") -> None:
        self._key, self._api, self._envd = key, api, envd
        self._client = Client(max_idle_per_host=0)

    async def spawn(self, options: SpawnOptions, /) -> Sandbox:
        wanted = {"templateID": options.template or "base", "timeout": int(options.idle_seconds or 300)}
        made = _json(
            await self._send("POST", f"{self._api}/sandboxes", {"x-api-key": self._key}, msgspec.json.encode(wanted))
        )
        user = b64encode(b"user:").decode()
        to = {"e2b-sandbox-id": made["sandboxID"], "e2b-sandbox-port": "49983", "authorization": f"Basic {user}"}
        return Sandbox(made["sandboxID"], {**to, "x-access-token": made.get("envdAccessToken") or "none"})

    async def destroy(self, handle: Sandbox, /) -> None:
        await self._send("DELETE", f"{self._api}/sandboxes/{handle.id}", {"x-api-key": self._key})

    async def read_file(self, handle: Sandbox, path: str, /) -> bytes:
        return (await self._send("GET", self._file(path), handle.headers)).body

    async def write_file(self, handle: Sandbox, path: str, data: bytes, /) -> None:
        kind = {"content-type": "multipart/form-data; boundary=windlass-e2b-file"}
        part = b'--windlass-e2b-file\r\ncontent-disposition: form-data; name="file"; filename="file"\r\n\r\n'
        await self._send(
            "POST", self._file(path), handle.headers | kind, part + data + b"\r\n--windlass-e2b-file--\r\n"
        )

    async def list_files(self, handle: Sandbox, path: str, /) -> Sequence[FileInfo]:
        told = await self._rpc(handle, "filesystem.Filesystem/ListDir", {"path": f"{ROOT}/{path}", "depth": 1})
        top = "" if path == "." else f"{path}/"
        kinds: Any = {"FILE_TYPE_FILE": "file", "FILE_TYPE_DIRECTORY": "dir", "FILE_TYPE_SYMLINK": "symlink"}
        return [
            FileInfo(
                top + entry["name"],
                kind := kinds.get(entry["type"], "other"),
                int(entry.get("size", 0)) * (kind == "file"),
            )
            for entry in told.get("entries", ())
        ]

    async def exec(
        self, handle: Sandbox, command: str | Sequence[str], /, *, timeout: float | None, env: Mapping[str, str],
        on_output: Callable[[bytes], None] | None = None,
    ) -> ExecResult:  # fmt: skip
        words = ["/bin/sh", "-c", command] if isinstance(command, str) else [*command]
        asked = {"process": {"cmd": words[0], "args": words[1:], "envs": dict(env), "cwd": ROOT}}
        headers = {**handle.headers, "content-type": "application/connect+json", "connect-protocol-version": "1"}
        if timeout is not None:
            headers["connect-timeout-ms"] = str(int(timeout * 1000))
        output, pid = bytearray(), 0
        url, limits = f"{self._envd}/process.Process/Start", Timeouts(5.0, 60.0, None, None, 30.0)
        try:
            async with (
                self._client.stream("POST", url, headers=headers, body=_frame(asked), timeouts=limits) as answer,
                aclosing(_frames(answer)) as frames,
            ):
                async for told in frames:
                    if (error := told.get("error", {})).get("code") == "deadline_exceeded":
                        return ExecResult(None, bytes(output), len(output), "timeout")
                    if error:
                        raise WorkspaceError(f"e2b: {error.get('message', error)}")
                    event = told.get("event", {})
                    pid = event.get("start", {}).get("pid", pid)
                    for piece in event.get("data", {}).values():
                        output += b64decode(piece)
                        if on_output is not None:
                            on_output(b64decode(piece))
                    if "end" in event:
                        pid = 0
                        return ExecResult(event["end"].get("exitCode", 0), bytes(output), len(output))
        finally:
            if pid:  # we leave, and the command would stay
                await self._rpc(
                    handle, "process.Process/SendSignal", {"process": {"pid": pid}, "signal": "SIGNAL_SIGKILL"}
                )
        raise WorkspaceError("e2b ended its answer before the command's end.")

    async def aclose(self) -> None:
        await self._client.aclose()

    def _file(self, path: str) -> str:
        return f"{self._envd}/files?username=user&path={quote(f'{ROOT}/{path}', safe='')}"

    async def _rpc(self, handle: Sandbox, method: str, asked: dict[str, Any]) -> Any:
        return _json(await self._send("POST", f"{self._envd}/{method}", handle.headers, msgspec.json.encode(asked)))

    async def _send(self, method: str, url: str, headers: Mapping[str, str], body: bytes = b"") -> Response:
        answer = await self._client.request(
            method, url, headers={"content-type": "application/json", **headers}, body=body
        )
        if answer.status in (400, 404):  # a folder in the way is told as 400: the workspace looks which it is
            raise FileNotFoundError(answer.body.decode("utf-8", "replace"))
        if answer.status >= 300:
            raise WorkspaceError(f"e2b refused ({answer.status}): {answer.body[:200].decode('utf-8', 'replace')}")
        return answer


def _json(answer: Response) -> Any:
    return msgspec.json.decode(answer.body)


def _frame(message: Any, flags: int = 0) -> bytes:
    """Return a message of the Connect protocol: flags, length, JSON (connectrpc.com/docs/protocol)."""
    data = msgspec.json.encode(message)
    return struct.pack(">BI", flags, len(data)) + data


async def _frames(answer: StreamResponse) -> AsyncGenerator[dict[str, Any]]:
    kept = b""
    async for piece in answer.chunks():
        kept += piece
        while len(kept) >= 5 and len(kept) >= 5 + (size := int.from_bytes(kept[1:5])):
            yield msgspec.json.decode(kept[5 : 5 + size])
            kept = kept[5 + size :]


# --- what stands in for the service: as much of its API as is used above, over folders of this machine


class StandIn:
    """Answer like the service; `alive` are the sandboxes that were made and not deleted, `running` their commands."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.made = 0
        self.alive: dict[str, Path] = {}
        self.running: dict[int, asyncio.Task[ExecResult]] = {}

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one request; the end of the connection ends the answer."""
        line, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in [each.partition(":") for each in lines]}
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        method, target, _ = line.split(" ")
        path, _, query = target.partition("?")
        if path == "/process.Process/Start" and (root := self._root(headers)) is not None:
            writer.write(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n")
            await self._start(writer, root, headers, msgspec.json.decode(body[5:]))
        else:
            status, data = self._answer(method, path, query, headers, body)
            writer.write(
                b"HTTP/1.1 %d X\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % (status, len(data)) + data
            )
        writer.close()

    def _root(self, headers: Mapping[str, str]) -> Path | None:
        return self.alive.get(headers.get("e2b-sandbox-id", "")) if headers.get("x-access-token") == "t" else None

    def _answer(self, method: str, path: str, query: str, headers: Mapping[str, str], body: bytes) -> tuple[int, bytes]:
        if path.startswith("/sandboxes"):
            if headers.get("x-api-key") != "e2b_key":
                return 401, b'{"message":"no such key"}'
            if method == "DELETE":
                return 204 if self.alive.pop(path.split("/")[-1], None) else 404, b""
            self.made += 1
            name = f"i{self.made}-{msgspec.json.decode(body)['templateID']}"
            self.alive[name] = self._folder / name
            self.alive[name].mkdir()
            return 201, msgspec.json.encode({"sandboxID": name, "envdAccessToken": "t"})
        root = self._root(headers)
        if root is None:
            return 502, b'{"message":"The sandbox was not found"}'
        if path == "/files":
            file = root / parse_qs(query)["path"][0].removeprefix(f"{ROOT}/")
            return _transfer(file, None if method == "GET" else body.split(b"\r\n\r\n", 1)[1])
        asked = msgspec.json.decode(body)
        if path.endswith("/SendSignal"):
            self.running[asked["process"]["pid"]].cancel()
            return 200, b"{}"
        folder = root / asked["path"].removeprefix(f"{ROOT}/")
        if not folder.is_dir():
            return 404, b'{"code":"not_found"}'
        kinds = {True: "FILE_TYPE_DIRECTORY", False: "FILE_TYPE_FILE"}
        found = [
            {"name": one.name, "type": kinds[one.is_dir()], "size": one.stat().st_size} for one in folder.iterdir()
        ]
        return 200, msgspec.json.encode({"entries": found})

    async def _start(self, writer: asyncio.StreamWriter, root: Path, headers: Mapping[str, str], asked: Any) -> None:
        process, pid = asked["process"], 1000 + len(self.running)
        writer.write(_frame({"event": {"start": {"pid": pid}}}))

        def show(data: bytes) -> None:
            writer.write(_frame({"event": {"data": {"stdout": b64encode(data).decode()}}}))

        words, seconds = [process["cmd"], *process["args"]], float(headers.get("connect-timeout-ms", "60000")) / 1000
        work = run_command(words, cwd=str(root), timeout=seconds, env=process["envs"], on_output=show)
        # Like the service's, a command outlives the connection of whoever started it, and ends by a signal.
        self.running[pid] = asyncio.create_task(work)
        await asyncio.wait([self.running[pid]])
        if not self.running[pid].cancelled():
            done = self.running[pid].result()
            end = {"event": {"end": {"exitCode": done.exit_code, "exited": True}}}
            writer.write(_frame(end) if done.killed is None else b"")
            writer.write(_frame({} if done.killed is None else {"error": {"code": "deadline_exceeded"}}, 2))


def _transfer(file: Path, part: bytes | None) -> tuple[int, bytes]:
    """Read a file, or write the content of a multipart body."""
    try:
        if part is None:
            return 200, file.read_bytes()
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(part.rpartition(b"\r\n--windlass")[0])
    except OSError as error:
        return 404 if isinstance(error, FileNotFoundError) else 400, str(error).encode()
    return 200, b"[]"


@asynccontextmanager
async def stand_in() -> AsyncGenerator[tuple[str, StandIn]]:
    """Serve the stand-in on this machine; gives its address and itself."""
    with tempfile.TemporaryDirectory() as folder:
        app = StandIn(Path(folder))
        async with await asyncio.start_server(app.serve, "127.0.0.1", 0) as server:
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", app


async def use(provider: E2bSandbox) -> None:
    """Write a file, run it, and look at what it made."""
    space = RemoteWorkspace(provider, SpawnOptions(idle_seconds=120))
    try:
        await space.write("hello.sh", b"for n in one two three; do echo $n; done | tee said.txt\n")
        done = await space.exec("sh hello.sh", on_output=lambda data: print(data.decode(), end=""))
        assert done.exit_code == 0
        for info in await space.list():
            print(f"{info.path}: {info.size} bytes")
    finally:
        await space.close()
        await provider.aclose()


async def main() -> None:
    """Ask the service where there is a key, else the stand-in."""
    if key := os.environ.get("E2B_API_KEY"):
        await use(E2bSandbox(key))
        return
    async with stand_in() as (url, app):
        await use(E2bSandbox("e2b_key", url, url))
        assert app.alive == {}


if __name__ == "__main__":
    asyncio.run(main())
