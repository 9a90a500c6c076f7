"""A workspace in a container, through the docker command line: docker(1)."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import re
import stat
import subprocess
import weakref
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any

from msgspec.structs import replace

from windlass.core import clock
from windlass.core.errors import WorkspaceError
from windlass.core.ports import ExecResult, FileInfo
from windlass.workspaces import paths
from windlass.workspaces.environ import clean_env, find_program
from windlass.workspaces.faults import check_bounds, explain, fault
from windlass.workspaces.process import run_command
from windlass.workspaces.reap import MARK

__all__ = ["DockerWorkspace"]

_SECONDS, _START_SECONDS, _REMOVE_SECONDS = 60.0, 600.0, 30.0
_LIST_BYTES, _SAID_BYTES = 16 << 20, 1 << 16
_CHUNK = 1 << 16
#: What the docker program itself needs of our environment to find its engine.
_CLIENT = ("DOCKER_HOST", "DOCKER_CONTEXT", "DOCKER_CONFIG", "DOCKER_CERT_PATH", "DOCKER_TLS_VERIFY", "XDG_RUNTIME_DIR")

#: Exit codes of the scripts below.
_CODES = {
    44: errno.ENOENT,
    45: errno.EISDIR,
    46: errno.ENXIO,
    47: errno.ENOTDIR,
    48: errno.EEXIST,
    49: errno.ESTALE,
    50: errno.ENOTEMPTY,
    51: errno.EACCES,
    52: errno.ENOSPC,
}
#: `gone PATH` ends with what a missing path means: a file where a folder is needed, or nothing there.
_GONE = """gone() { p=$1; while case $p in ?*/*) :;; *) false;; esac; do p=${p%/*}
if [ -e "$p" ]; then if [ -d "$p" ]; then exit 44; else exit 47; fi; fi; done; exit 44; }
"""
_READ = """[ -e "$1" ] || gone "$1"; [ -d "$1" ] && exit 45; [ -f "$1" ] || exit 46; [ -r "$1" ] || exit 51
head -c "$2" "$1" """
_WRITE = """f=$1
if [ -e "$f" ]; then [ -d "$f" ] && exit 45; [ -f "$f" ] || exit 46; [ -w "$f" ] || exit 51; f=$(readlink -f "$f")
[ "$2" = -none ] && exit 48
else case $2 in -*) :;; *) exit 49;; esac
mkdir -p "$(dirname "$f")" 2>/dev/null || { (gone "$f"); [ $? = 47 ] && exit 47; exit 51; }; fi
same() { [ "$1" = -any ] || [ "$1" = -none ] || [ "$(sha256sum <"$f" | cut -c 1-64)" = "$1" ]; }
same "$2" || exit 49
t="$(dirname "$f")/.windlass-$3"; trap 'rm -f "$t"' EXIT
if [ -e "$f" ]; then cp -p "$f" "$t" || exit 52; fi
cat >"$t" || exit 52
[ "$(wc -c <"$t")" -eq "$4" ] || exit 52
same "$2" || exit 49
mv -f "$t" "$f" """
_DELETE = """if [ -L "$1" ] || { [ -e "$1" ] && [ ! -d "$1" ]; }; then rm -f "$1" || exit 51
elif [ -d "$1" ]; then rmdir "$1" 2>/dev/null || exit 50; else gone "$1"; fi"""
_STAT = """[ -e "$1" ] || gone "$1"; stat -L -c "$2 %f %s %Y $1" "$1" """
_LIST = """[ -e "$1" ] || gone "$1"; [ -d "$1" ] || exit 47
find "$1" -mindepth 1 -maxdepth "$3" -exec stat -c "$2 %f %s %Y %n" {} + 2>/dev/null | head -c "$4" """
#: Ends what a call has started, found by the mark in its environment: ending the client leaves it running.
_KILL = """for i in 1 2 3; do for e in /proc/[0-9]*/environ; do
if grep -qs "$1" "$e"; then e=${e#/proc/}; kill -9 "${e%/environ}" 2>/dev/null; fi; done; done; exit 0"""


class DockerWorkspace:
    """Act in a container made from `image`, which lives as long as the workspace.

    It is created at first use, without capabilities and new privileges, with at most 1024 processes, and removed by
    `close`, also when that is cancelled, and at the end of this process. `cwd` is the root in it, `memory_mb` and `cpu`
    (cores) bound it, `network` is docker's name of a network ("none": none). `docker` is the program, found on PATH
    outside the current folder. The image needs `sh` and the usual tools (coreutils or busybox).

    A link in the container may lead anywhere in it: the container is the boundary. A command over its time has the exit
    code 124, and `[timeout]` ends its output. Raises WorkspaceError when docker is not there or has no engine.
    """

    def __init__(
        self,
        image: str,
        *,
        cwd: str = "/workspace",
        memory_mb: int | None = None,
        cpu: float | None = None,
        network: str = "none",
        docker: str | None = None,
        max_file_bytes: int = 64 * 1024 * 1024,
    ) -> None:
        here = os.getcwd()  # noqa: PTH109
        found = docker or find_program(["docker"], os.environ.get("PATH", ""), here)
        if found is None:
            raise WorkspaceError("The program docker is not on PATH.", hint="Install it, or use another workspace.")
        if not image or image.startswith("-") or not cwd.startswith("/") or os.path.normpath(cwd) == "/":
            raise WorkspaceError(f"No container can be made of {image!r} with {cwd!r} as its root.", path=cwd)
        if (memory_mb is not None and memory_mb < 1) or (cpu is not None and not cpu > 0):
            raise WorkspaceError(f"memory_mb={memory_mb}, cpu={cpu}: both must be positive.")
        self._docker, self._image, self._cwd = found, image, os.path.normpath(cwd)
        self._network, self._max_file_bytes = network, max_file_bytes
        limits = [] if memory_mb is None else ["--memory", f"{memory_mb}m"]
        self._limits = limits if cpu is None else [*limits, "--cpus", f"{cpu:g}"]
        self._name = f"windlass-{clock.new_id()}"
        self._starting: asyncio.Task[None] | None = None
        self._remove: weakref.finalize[[str, str], DockerWorkspace] | None = None
        self._closed = False

    @property
    def capabilities(self) -> frozenset[str]:
        """All but the network where the container has none."""
        return frozenset({"shell", "filesystem"} | (set() if self._network == "none" else {"network"}))

    @property
    def root(self) -> str:
        """The image and the folder, for people."""
        return f"docker:{self._image}:{self._cwd}"

    @property
    def confinement(self) -> str:
        """How commands are held."""
        return "docker"

    async def read(self, path: str, *, limit: int | None = None) -> bytes:
        """Return the content, or its first `limit` bytes; WorkspaceError over `max_file_bytes`."""
        check_bounds(path, limit=limit)
        bound = self._max_file_bytes
        most = bound + 1 if limit is None else min(limit, bound + 1)
        data = await self._script(_READ, path, str(most), most=most)
        if len(data) > bound:
            raise explain(fault(errno.EFBIG), path, detail=f" (the bound is {bound} bytes)")
        return data

    async def write(self, path: str, data: bytes, *, expected_sha256: str | None = None) -> None:
        """Replace or make a file by a rename; see the port for `expected_sha256`."""
        name = self._clean(path)
        if name == ".":
            raise explain(fault(errno.EISDIR), path)
        if len(data) > self._max_file_bytes:
            raise explain(fault(errno.EFBIG), path, detail=f" (the bound is {self._max_file_bytes} bytes)")
        expected = "-any" if expected_sha256 is None else expected_sha256 or "-none"
        await self._script(_WRITE, path, expected, clock.new_id(), str(len(data)), data=data)

    async def delete(self, path: str) -> None:
        """Remove a file, a link (not what it points to) or an empty folder."""
        if self._clean(path) == ".":
            raise explain(fault(errno.EBUSY), path)
        await self._script(_DELETE, path)

    async def stat(self, path: str) -> FileInfo | None:
        """Describe what the path leads to, None when there is nothing. Times are whole seconds."""
        token, name = clock.new_id(), self._clean(path)
        try:
            found = _infos(await self._script(_STAT, path, token), token)
        except WorkspaceError as error:
            if isinstance(error.__cause__, FileNotFoundError | NotADirectoryError):
                return None
            raise
        return replace(found[0], path=name) if found else None

    async def list(self, path: str = ".", *, depth: int = 1, limit: int = 10_000) -> list[FileInfo]:
        """List what a folder holds, sorted by name; when `limit` cuts, shallow entries are kept before deep ones."""
        check_bounds(path, depth=depth, limit=limit)
        token = clock.new_id()
        raw = await self._script(_LIST, path, token, str(depth), str(_LIST_BYTES), most=_LIST_BYTES)
        found = sorted(_infos(raw, token), key=lambda info: (info.path.count("/"), info.path.split("/")))
        return sorted(found[:limit], key=lambda info: info.path.split("/"))

    async def exec(
        self,
        command: str | Sequence[str],
        *,
        timeout: float | None = 30.0,
        max_output: int = 8192,
        env: Mapping[str, str] | None = None,
        on_output: Callable[[bytes], None] | None = None,
    ) -> ExecResult:
        """Run a command in the container's root; a string runs through its `sh`.

        When it is over its time or cancelled, all it started is killed; what it leaves behind otherwise lives on until
        the container is removed.
        """
        await self._ready()
        mark = f"{MARK}={clock.new_id()}"
        given = {name: value for name, value in clean_env({}, env).items() if name != "PATH" or name in (env or {})}
        # Only names on the command line, which everybody on the machine can read.
        names = [word for name in given for word in ("-e", name)]
        words = ["sh", "-c", command] if isinstance(command, str) else [*command]
        argv = [self._docker, "exec", "-w", self._cwd, *names, "-e", mark, self._name, *words]
        client = {name: os.environ[name] for name in _CLIENT if name in os.environ}
        try:
            result = await run_command(
                argv, cwd="/", timeout=timeout, max_output=max_output, env=given | client, on_output=on_output
            )
        except asyncio.CancelledError:
            await self._kill(mark)
            raise
        if result.exit_code == 125 or result.output.startswith(b"Error response from daemon"):
            raise _refused(result.output)
        if result.killed is None:
            return result
        await self._kill(mark)
        if result.killed != "timeout":
            return result
        note = b"\n[timeout]" if result.output and not result.output.endswith(b"\n") else b"[timeout]"
        if on_output is not None:
            on_output(note)
        return replace(result, exit_code=124, output=result.output + note, total_bytes=result.total_bytes + len(note))

    async def close(self) -> None:
        """Remove the container. A cancellation meanwhile is raised when that is done. Closing twice is fine."""
        self._closed = True
        if self._remove is None:
            return
        await _settled(self._take_away())

    # --- the container

    async def _take_away(self) -> None:
        starting, failed = self._starting, False
        if starting is not None:
            starting.cancel()
            await asyncio.wait([starting])
            failed = not starting.cancelled() and starting.exception() is not None
        if self._remove is not None and self._remove.detach() is not None:
            code, _, said = await self._call(["rm", "-f", "-v", self._name], most=_SAID_BYTES, seconds=_REMOVE_SECONDS)
            if code and not failed and b"No such container" not in said:
                raise _refused(said)

    async def _ready(self) -> None:
        """Make and start the container, once, however many wait for it; one of them leaving does not stop that."""
        if self._closed:
            raise WorkspaceError("The workspace is closed.", hint="Open a new one.")
        if self._starting is None or (self._starting.done() and self._starting.exception() is not None):
            self._starting = asyncio.create_task(self._start())
        await asyncio.wait([self._starting])
        self._starting.result()

    async def _start(self) -> None:
        # Armed before: whatever happens from here on, the name is taken away.
        self._remove = weakref.finalize(self, _remove_now, self._docker, self._name)
        safe = ["--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--pids-limit", "1024", "--init"]
        where = ["--name", self._name, "--label", "windlass", "--network", self._network, "--workdir", self._cwd]
        create = ["create", *safe, *where, *self._limits, "--entrypoint", "tail", self._image, "-f", "/dev/null"]
        for words in (create, ["start", self._name]):
            code, _, said = await self._call(words, most=_SAID_BYTES, seconds=_START_SECONDS)
            if code:
                raise _refused(said)

    async def _kill(self, mark: str) -> None:
        words = ["exec", self._name, "sh", "-c", _KILL, "sh", mark]
        await _settled(self._call(words, most=_SAID_BYTES, seconds=_REMOVE_SECONDS))

    # --- files

    def _clean(self, path: str) -> str:
        if self._closed:
            raise WorkspaceError("The workspace is closed.", path=path, hint="Open a new one.")
        return paths.clean(path, roots=(self._cwd,))

    async def _script(self, text: str, path: str, *words: str, data: bytes = b"", most: int = _SAID_BYTES) -> bytes:
        """Run a script in the root with a path beneath it as `$1`; return what it printed."""
        name = self._clean(path)
        await self._ready()
        # `./` keeps a name like `-rf` from being read as an option.
        argv = ["exec", "-i", "-w", self._cwd, self._name, "sh", "-c", _GONE + text, "sh", f"./{name}", *words]
        code, out, said = await self._call(argv, data=data, most=most, seconds=_SECONDS)
        if code in _CODES:
            raise explain(fault(_CODES[code]), path)
        if code:
            raise _refused(said, path)
        return out

    async def _call(
        self, words: Sequence[str], *, most: int, seconds: float, data: bytes = b""
    ) -> tuple[int, bytes, bytes]:
        """Run docker; return exit code, at most `most` bytes of stdout, and the begin of stderr."""
        env = clean_env(os.environ, {name: os.environ[name] for name in _CLIENT if name in os.environ})
        try:
            process = await asyncio.create_subprocess_exec(
                self._docker, *words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env
            )
        except OSError as error:
            raise WorkspaceError(f"{self._docker} was not started: {error}.") from error
        assert process.stdin is not None and process.stdout is not None and process.stderr is not None
        try:
            async with clock.deadline(seconds):
                out, said, _ = await asyncio.gather(
                    _take(process.stdout, most), _take(process.stderr, _SAID_BYTES), _give(process.stdin, data)
                )
                code = await process.wait()
        except TimeoutError:
            raise WorkspaceError(f"docker {words[0]} took over {seconds:g} s.", hint="Is its engine well?") from None
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
        return code, out, said


async def _take(stream: asyncio.StreamReader, most: int) -> bytes:
    kept = bytearray()
    while data := await stream.read(_CHUNK):
        kept += data[: most - len(kept)]
    return bytes(kept)


async def _give(stream: asyncio.StreamWriter, data: bytes) -> None:
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        stream.write(data)
        await stream.drain()
        stream.close()
        await stream.wait_closed()


async def _settled(work: Coroutine[Any, Any, object]) -> None:
    """Wait for work to end, whatever happens meanwhile; a cancellation is raised after that."""
    task = asyncio.create_task(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancelled = error
    task.result()
    if cancelled is not None:
        raise cancelled


def _infos(raw: bytes, token: str) -> list[FileInfo]:
    """Read lines `TOKEN mode size seconds ./path`; a path may hold line breaks, the token is nobody's."""
    found: list[FileInfo] = []
    for entry in raw.decode("utf-8", "surrogateescape").split(f"{token} ")[1:]:
        match = re.fullmatch(r"([0-9a-f]+) (\d+) (\d+) (?:\./)*(.+)\n", entry, re.DOTALL)
        if match is None:
            continue  # the last one, cut by the bound
        mode, size, seconds, path = int(match[1], 16), int(match[2]), int(match[3]), match[4]
        kind = "symlink" if stat.S_ISLNK(mode) else "other"
        kind = "file" if stat.S_ISREG(mode) else "dir" if stat.S_ISDIR(mode) else kind
        found.append(FileInfo(path, kind, size if kind == "file" else 0, seconds * 1_000_000_000))
    return found


def _refused(said: bytes, path: str = "") -> WorkspaceError:
    text = said.decode("utf-8", "replace").strip() or "no reason was given"
    return WorkspaceError(f"docker refused: {text[:500]}", path=path, hint="Is its engine running, the image there?")


def _remove_now(docker: str, name: str) -> None:
    """Remove the container of a workspace that was never closed."""
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        subprocess.run(
            [docker, "rm", "-f", "-v", name],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            timeout=_REMOVE_SECONDS,
        )
