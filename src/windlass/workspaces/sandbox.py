"""A local workspace whose commands are confined by the operating system."""

from __future__ import annotations

import importlib
import logging
import os
import platform
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from msgspec.structs import replace

from windlass.core.config_files import data_home
from windlass.core.errors import WorkspaceError
from windlass.core.ports import ExecResult
from windlass.workspaces import bwrap, landlock
from windlass.workspaces.beneath import Confine
from windlass.workspaces.egress import Egress, Resolve
from windlass.workspaces.environ import clean_env, find_program
from windlass.workspaces.launch import Confiner, Limits, ulimits
from windlass.workspaces.local import LocalWorkspace
from windlass.workspaces.paths import is_protected
from windlass.workspaces.private import create_private
from windlass.workspaces.process import run_command
from windlass.workspaces.sandbox_guard import Guard, Seen
from windlass.workspaces.sandbox_view import View, is_below, readable_places
from windlass.workspaces.seccomp import apply_filter, build_filter, is_supported
from windlass.workspaces.threads import in_thread

fcntl: Any = importlib.import_module("fcntl") if sys.platform != "win32" else None

__all__ = ["Level", "SandboxWorkspace", "default_limits", "sandbox_level"]

Level = Literal["auto", "bubblewrap", "landlock", "none"]

_FLAG = 'Install bubblewrap, or give level="none" to run commands with your own rights.'
_GiB = 1 << 30
#: Of our private folders: how they are called, and for how many seconds one is surely not left over.
_PREFIX, _YOUNG = "windlass-sandbox-", 60.0
#: What the Landlock level leaves open, for people.
_WEAKER = (
    "protected files inside the workspace can be changed; those that appear at its top are renamed afterwards",
    "other processes are seen, names and attributes of files too, and their modes and owners can be changed",
    "no namespaces of its own; allow-lists of hosts are not offered",
)


def default_limits() -> Limits:
    """Return what a command may use by default: half of the RAM, 1024 processes, 1 GiB of output, files of 16 GiB."""
    try:
        ram = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        ram = 4 * _GiB
    return Limits(memory_bytes=max(ram // 2, _GiB), processes=1024, output_bytes=_GiB)


def sandbox_level(
    level: Level = "auto", *, environ: Mapping[str, str] | None = None, outside: str = ""
) -> tuple[Literal["bubblewrap", "landlock", "none"], str, list[str]]:
    """Return the level that holds here, the path of bwrap ("" at other levels), and why stronger ones do not.

    `outside` is the workspace, whose programs are not trusted. What bwrap can do is tried once per process. Raises
    WorkspaceError when the level asked for, or with `auto` any, is not to be had; `none` only when asked for.
    """
    env = os.environ if environ is None else environ
    if level == "none":
        return "none", "", []
    reasons: list[str] = []
    if sys.platform != "linux":
        raise WorkspaceError(
            f"There is no sandbox for {platform.system()}.", hint='level="none" runs commands with your own rights.'
        )
    if level in ("auto", "bubblewrap"):
        program = bwrap.find_bwrap(env, outside)
        why = "bwrap is not on PATH" if program is None else bwrap.why_not(program, env, outside)
        if program is not None and not why:
            return "bubblewrap", program, []
        reasons.append(f"bubblewrap: {why}")
    if level in ("auto", "landlock"):
        if landlock.abi() and is_supported():
            return "landlock", "", reasons
        reasons.append("landlock: this kernel or machine has none")
    raise WorkspaceError(f"No sandbox can be made here ({'; '.join(reasons)}).", hint=_FLAG)


log = logging.getLogger("windlass.workspaces")
#: What a sandbox has once it was made.
_LATE = frozenset(
    ("_bwrap", "_egress", "_filter", "_filter_path", "_held", "_level", "_names", "_read_only", "_remove", "_scratch",
     "_view", "reasons")
)  # fmt: skip


class SandboxWorkspace(LocalWorkspace):
    """Act on the folder `root`; commands see only what they need and can change only the root.

    At the level `bubblewrap` a command has namespaces of its own (user, pid, ipc, uts, cgroup, net), no capabilities,
    a system call filter, the system's folders read-only, a private /tmp and home that live as long as the workspace,
    and the root at its own path. What `paths.is_protected` names is read-only at the root's top, also when it does
    not exist yet, and further down where it exists when the workspace is made.

    `network` is "none", "host", or a list for `egress.parse_rule` (`["pypi.org:443", "*.example.com"]`); then
    `decisions` says what was asked for. `limits` bound each command (None: `default_limits()`). `writable` are further
    folders to change, `read_only` to see, `deny_read` places to hide; relative ones are beneath the root.
    `unix_sockets` lets commands open sockets in the file system, and reach whoever listens at one they see. `lazy`
    makes the sandbox, and raises, when it is first needed.

    `level` auto takes Landlock where bubblewrap does not work: weaker, `not_held` says in what. Raises WorkspaceError
    where neither works, unless `level="none"` is given. `confinement` tells which it became.
    """

    def __init__(
        self,
        root: str | os.PathLike[str] = ".",
        *,
        network: Literal["none", "host"] | Sequence[str] = "none",
        limits: Limits | None = None,
        writable: Sequence[str] = (),
        read_only: Sequence[str] = (),
        deny_read: Sequence[str] = (),
        level: Level = "auto",
        unix_sockets: bool = False,
        max_file_bytes: int = 64 * 1024 * 1024,
        protect: Callable[[str], str | None] | None = None,
        confine: Confine = "auto",
        resolve: Resolve | None = None,
        lazy: bool = False,
    ) -> None:
        super().__init__(root, max_file_bytes=max_file_bytes, protect=protect, confine=confine)
        self._network, self._limits = network, limits or default_limits()
        self._made = False
        self._make = partial(self._prepare, level, writable, read_only, deny_read, unix_sockets, resolve)
        if not lazy:
            self._make()

    def __getattr__(self, name: str) -> Any:
        # What `_prepare` sets; asked for before, with `lazy`, it is made now.
        if name in _LATE and not self.__dict__.get("_made", True):
            self._make()
            return getattr(self, name)
        raise AttributeError(f"{type(self).__name__} has no {name}")

    def _prepare(
        self,
        level: Level,
        writable: Sequence[str],
        read_only: Sequence[str],
        deny_read: Sequence[str],
        unix_sockets: bool,
        resolve: Resolve | None,
    ) -> None:
        network = self._network
        self._level, self._bwrap, self.reasons = sandbox_level(level, outside=self._root)
        self._made = True
        self._egress: Egress | None = None
        if self._level == "landlock" and level == "auto":
            log.warning("bubblewrap does not work here: the sandbox is Landlock, which is weaker")
        if self._level == "none":
            return
        if os.path.realpath(self._root) == "/":
            raise WorkspaceError("The root of the file system cannot be a sandbox.", path="/", hint="Name a folder.")
        self._scratch = _scratch((self._root, *writable))
        self._remove = weakref.finalize(self, _remove, self._scratch, _claim(self._scratch))
        if deny_read and self._level != "bubblewrap":
            raise WorkspaceError("Landlock cannot hide places.", hint="deny_read needs bubblewrap.")
        self._view = View(
            self._root,
            scratch=self._scratch,
            environ=os.environ,
            host_network=network == "host",
            writable=writable,
            read_only=read_only,
            deny_read=deny_read,
        )
        self._filter = build_filter(unix=unix_sockets, inet=self._level == "bubblewrap" or network == "host")
        self._filter_path = f"{self._scratch}/filter"
        fd = create_private(self._filter_path)
        with os.fdopen(fd, "wb") as file:
            file.write(self._filter)
        self._names = Guard(self._root, hold=self._level == "bubblewrap", spare=f"{self._scratch}/spare")
        self._held: Seen | None = None
        self._read_only = tuple(read_only)
        if not isinstance(network, str):
            self._egress = self._proxy(network, resolve)

    @property
    def capabilities(self) -> frozenset[str]:
        """All but the network where commands have none."""
        return frozenset({"shell", "filesystem"} | (set() if self._network == "none" else {"network"}))

    @property
    def confinement(self) -> str:
        """How commands are held: `bubblewrap`, `landlock (weaker)` or `none`."""
        return "landlock (weaker)" if self._level == "landlock" else self._level

    @property
    def file_confinement(self) -> str:
        """How file access is held beneath the root."""
        return self._confinement

    @property
    def not_held(self) -> tuple[str, ...]:
        """What this level leaves open, in sentences."""
        if self._level == "none":
            return ("commands run with your own rights",)
        if self._level == "landlock":
            return _WEAKER
        more = self._view.not_held
        return (f"{more} protected files below the top of the workspace can be changed",) if more else ()

    @property
    def decisions(self) -> list[object]:
        """What commands asked of the network, oldest first, the last 1000."""
        return [] if self._egress is None else list(self._egress.decisions)

    async def write(self, path: str, data: bytes, *, expected_sha256: str | None = None) -> None:
        """Replace or make a file as LocalWorkspace does; what a person has agreed to stays, whatever runs meanwhile."""
        _, name = self._start(path)
        if self._made and self._level != "none" and is_protected(name):
            self._names.expect(name.split("/", 1)[0])
        await super().write(path, data, expected_sha256=expected_sha256)

    async def exec(
        self,
        command: str | Sequence[str],
        *,
        timeout: float | None = 30.0,
        max_output: int = 8192,
        env: Mapping[str, str] | None = None,
        on_output: Callable[[bytes], None] | None = None,
    ) -> ExecResult:
        """Run a command in the root, confined; what the sandbox refused or put right is said below its output.

        Raises WorkspaceError when the sandbox cannot be made; then nothing ran.
        """
        self._start(".")
        if self._level == "none":
            return await run_command(
                command, cwd=self._root, timeout=timeout, max_output=max_output, env=env, on_output=on_output
            )
        egress = self._egress
        prefix = [] if egress is None else await in_thread(egress.start)
        before = 0 if egress is None else egress.refusals
        seen = self._enter()
        try:
            result = await run_command(
                command,
                cwd=self._root,
                timeout=timeout,
                max_output=max_output,
                env=self._environment(env),
                on_output=on_output,
                limits=self._limits,
                confiner=self._confiner(seen, prefix),
            )
        finally:
            said = self._names.leave(seen)
        if result.exit_code == 1 and result.output.startswith(b"bwrap: "):
            await self._make_sure(seen, prefix)
        if egress is not None:
            said = [*egress.refused(before), *said]
        return _told(result, said, on_output)

    def confined(self, argv: Sequence[str], env: Mapping[str, str] | None = None) -> tuple[list[str], dict[str, str]]:
        """Return how to start a long-lived process (a server, a hook) under the same limits: words and environment.

        `argv` are a program (a path, or a name on PATH) and its arguments, `env` variables beyond the harmless ones. It
        must be started with the root as its working folder, and ends with the thread that starts it. The limits of
        memory and processes are those that the kernel keeps for each process. Raises WorkspaceError like `exec`.
        """
        self._start(".")
        environ = clean_env(os.environ, self._environment(env) if self._level != "none" else env, cwd=self._root)
        shell = find_program(["sh"], os.defpath, self._root)
        if self._level == "none":
            return list(argv), environ
        if shell is None or not argv:
            raise WorkspaceError("There is nothing to start, or no sh to start it with.", path=self._root)
        if self._held is None:
            self._held = self._enter()
        if self._level == "landlock":
            enter = [sys.executable, "-I", "-m", "windlass.workspaces.sandbox_enter"]
            return [*enter, *self._landlock_words(), "--", *argv], environ
        confiner = self._confiner(self._held, [] if self._egress is None else self._egress.start())
        return [shell, "-c", confiner.line(ulimits(self._limits)), "sh", *confiner.words, *argv], environ

    async def close(self) -> None:
        """Let go of the root, the network and the private folders. Closing twice is fine."""
        await super().close()
        if not self._made or self._level == "none":
            return
        if self._egress is not None:
            await in_thread(self._egress.close)
        if self._held is not None:
            self._names.leave(self._held)
            self._held = None
        await in_thread(self._remove)

    async def _make_sure(self, seen: Seen, prefix: Sequence[str]) -> None:
        """Raise WorkspaceError when it was the sandbox that failed, and not a command that says so."""
        confiner = self._confiner(seen, prefix)
        again = await run_command(["true"], cwd=self._root, env={"PATH": os.defpath}, confiner=confiner)
        if again.exit_code != 0:
            told = again.output.decode("utf-8", "replace").strip()
            raise WorkspaceError(f"The sandbox could not be made: {told}", path=self._root, hint=_FLAG)

    # --- how a command is started

    def _enter(self) -> Seen:
        try:
            return self._names.enter()
        except OSError as error:
            raise WorkspaceError(f"{self._root} cannot be looked at: {error}.", path=self._root) from error

    def _environment(self, env: Mapping[str, str] | None) -> dict[str, str]:
        own = {"TMPDIR": "/tmp"} if self._level == "bubblewrap" else self._landlock_environment()  # noqa: S108
        if self._egress is not None:
            own |= self._egress.environment
        return own | dict(env or {})

    def _confiner(self, seen: Seen, prefix: Sequence[str]) -> Confiner:
        if self._level == "landlock":
            return Confiner(start=self._start_in_thread)
        mounts = [*self._view.before, *self._view.protected(seen.kept, seen.missing), *self._view.after]
        words = [
            *(*prefix, self._bwrap, *bwrap.isolation(own_network=self._network == "none")),
            *(*bwrap.mount_words(mounts), "--seccomp", "9", "--chdir", self._root, "--"),
        ]
        if self._limits.processes and os.geteuid() != 0:
            # Counted for this user namespace alone (Linux 5.14): the kernel refuses the fork that is one too many.
            limit = f'ulimit -u {self._limits.processes} 2>/dev/null || ulimit -p {self._limits.processes}; exec "$@"'
            words += ["/bin/sh", "-c", limit, "sh"]
        return Confiner(tuple(words), stdin9=self._filter_path, namespace=True)

    def _proxy(self, rules: Sequence[str], resolve: Resolve | None) -> Egress:
        if self._level != "bubblewrap":
            raise WorkspaceError("A list of hosts needs bubblewrap.", hint='Use network="none" or "host".')
        nsenter = find_program(["nsenter"], os.environ.get("PATH", ""), self._root)
        if nsenter is None:
            raise WorkspaceError("A list of hosts needs the program nsenter.", hint="It is part of util-linux.")
        given = {} if resolve is None else {"resolve": resolve}
        return Egress(rules, bwrap=self._bwrap, nsenter=nsenter, **given)

    # --- Landlock

    def _landlock_environment(self) -> dict[str, str]:
        return {"TMPDIR": f"{self._scratch}/temp", "HOME": f"{self._scratch}/home"}

    def _places(self) -> tuple[list[str], list[str]]:
        read = [*readable_places(os.environ, self._root), *self._read_only]
        devices = [f"/dev/{name}" for name in ("null", "zero", "full", "random", "urandom")]
        own = [f"{self._scratch}/temp", f"{self._scratch}/home"]
        return read, [self._root, *self._view.writable, *own, *devices]

    def _start_in_thread(self, start: Callable[[], subprocess.Popen[bytes]]) -> subprocess.Popen[bytes]:
        """Call `start` on a thread that is confined: these restrictions belong to a thread and what it starts."""
        read, write = self._places()
        started: list[subprocess.Popen[bytes]] = []
        failed: list[BaseException] = []

        def body() -> None:
            try:
                landlock.restrict_thread(read=read, write=write, network=self._network == "host")
                apply_filter(self._filter)
                started.append(start())
            except BaseException as error:  # a thread has nobody above it
                failed.append(error)

        thread = threading.Thread(target=body, name="windlass-landlock", daemon=True)
        thread.start()
        thread.join()
        if failed:
            raise failed[0]
        return started[0]

    def _landlock_words(self) -> list[str]:
        read, write = self._places()
        return [
            f"--filter={self._filter_path}",
            f"--network={self._network}",
            *[f"--read={each}" for each in read],
            *[f"--write={each}" for each in write],
        ]


def _told(result: ExecResult, said: Sequence[str], on_output: Callable[[bytes], None] | None) -> ExecResult:
    if not said:
        return result
    note = "".join(f"[sandbox: {each}]\n" for each in said).encode("utf-8", "surrogateescape")
    note = note if result.output.endswith(b"\n") or not result.output else b"\n" + note
    if on_output is not None:
        on_output(note)
    return replace(result, output=result.output + note, total_bytes=result.total_bytes + len(note))


def _scratch(visible: Sequence[str]) -> str:
    """Make a private folder of ours where no command can see it, on the root's file system where that goes."""
    shown = [os.path.realpath(each) for each in visible]
    device = Path(shown[0]).stat().st_dev
    bases = (tempfile.gettempdir(), "/var/tmp", str(data_home(os.environ)), "/dev/shm")  # noqa: S108
    usable = [
        real
        for real in map(os.path.realpath, bases)
        if os.path.isdir(real) and os.access(real, os.W_OK) and not any(is_below(real, each) for each in shown)  # noqa: PTH112
    ]
    if not usable:
        raise WorkspaceError("There is no place for a private folder outside the workspace.", hint="Set TMPDIR.")
    base = next((each for each in usable if Path(each).stat().st_dev == device), usable[0])
    _sweep(base)
    path = tempfile.mkdtemp(prefix=_PREFIX, dir=base)
    for name in ("temp", "home", "spare"):
        Path(path, name).mkdir(mode=0o700)
    return path


def _claim(path: str) -> int:
    """Return a descriptor whose lock tells others that the folder is in use; the system drops it with this process."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        raise
    return fd


def _sweep(base: str) -> None:
    """Remove what processes of ours that were killed have left."""
    for entry in os.scandir(base):
        if not entry.name.startswith(_PREFIX):
            continue
        try:
            found = entry.stat(follow_symlinks=False)
            # A young one may not be claimed yet.
            if found.st_uid == os.geteuid() and time.time() - found.st_mtime > _YOUNG:
                _remove(entry.path, _claim(entry.path))
        except OSError:
            continue  # it is in use, or was removed meanwhile


def _remove(path: str, claimed: int) -> None:
    os.close(claimed)
    shutil.rmtree(path, ignore_errors=True)
    if not Path(path).exists():
        return
    for folder, names, _ in os.walk(path):  # a command may have taken its own rights away
        for each in (folder, *[f"{folder}/{name}" for name in names]):
            if stat.S_ISDIR(os.lstat(each).st_mode):
                os.chmod(each, 0o700)  # noqa: PTH101
    shutil.rmtree(path, ignore_errors=True)
