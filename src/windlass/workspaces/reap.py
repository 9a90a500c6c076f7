"""End a command with everything it started, also what left its session or was adopted by init.

On Linux the members of a tree are found in /proc by four traces: parent, session, a mark in the environment, and a
number in RLIMIT_LOCKS, a limit that no kernel since 2.4.25 looks at and that every descendant inherits, zombies too,
whatever it does to its environment, session and parents. What sets out to hide (it may lower that limit) needs a
sandbox's PID namespace. Other POSIX systems have the process group only, Windows has `taskkill /T`.
"""

from __future__ import annotations

import asyncio
import ctypes
import logging
import mmap
import os
import signal
import subprocess
import sys
import time
from typing import NamedTuple, Protocol

from windlass.core import clock

__all__ = [
    "MARK",
    "GroupTree",
    "Member",
    "NamespaceTree",
    "ProcTree",
    "Tree",
    "WindowsTree",
    "become_subreaper",
    "end_tree",
    "memory_of",
    "tree_of",
]

_log = logging.getLogger(__name__)

#: The environment variable that marks what a command started; its value holds the ids of all calls around it.
MARK = "WINDLASS_CALL_ID"
#: Seconds between SIGTERM and SIGKILL.
GRACE = 0.5
#: Seconds after which a process that even SIGKILL does not end (stuck in the kernel) is given up.
SWEEP = 2.0
_PR_SET_CHILD_SUBREAPER = 36
_ENVIRON_BYTES = 1 << 18
#: More than any machine forks, and how many numbers are cheaper to try than to list /proc.
_FORKS_PER_SECOND = 200_000
_FEW = 256
#: How often, and every how many seconds, a namespace that is coming down is looked at: a look at all of /proc takes as
#: long as all of these.
_BRIEF_LOOKS, _BRIEF = 10, 0.0002
_PAGE_BYTES = mmap.PAGESIZE


class Member(NamedTuple):
    """A living process of a tree. `start` is in clock ticks since boot; with `pid` it names a process for good."""

    pid: int
    parent: int
    group: int
    session: int
    state: str
    start: int
    pages: int


class Tree(Protocol):
    """What a command started, as far as this platform can tell."""

    def living(self) -> list[Member]:
        """Return the members that still run; zombies do not."""
        ...

    def send(self, members: list[Member], signum: signal.Signals, /) -> None:
        """Send a signal to all of them."""
        ...


async def end_tree(tree: Tree, *, grace: float = GRACE) -> None:
    """End all of `tree`: SIGTERM, up to `grace` seconds, then SIGKILL until nothing is left, for 2 s at most.

    Returns at once when nothing is there. A cancellation meanwhile ends the grace; it is raised when all is done.
    """
    cancelled: asyncio.CancelledError | None = None
    members: list[Member] = []
    for signum, patience in ((signal.SIGTERM, grace), (signal.SIGKILL, SWEEP)):
        waited, step = 0.0, 0.004
        while members := tree.living():
            # SIGKILL is repeated: each look may find what was forked since the last one.
            if signum == signal.SIGKILL or not waited:
                tree.send(members, signum)
            if waited >= patience or (cancelled and signum == signal.SIGTERM):
                break
            try:
                await clock.sleep(step)
            except asyncio.CancelledError as error:
                cancelled = error
            waited, step = waited + step, min(step * 2, 0.05)
        if not members:
            break
    if members:
        _log.error("could not end processes %s: they do not react to SIGKILL", [member.pid for member in members])
    if cancelled:
        raise cancelled


class ProcTree:
    """The tree of the process `pid` as Linux's /proc shows it.

    `pid` must be the leader of its own session and must not be reaped before the tree is ended: as a zombie it keeps
    its number, and with it the group's, from being given to a stranger. `mark` is the id that its environment holds,
    `number` its RLIMIT_LOCKS.
    """

    def __init__(self, pid: int, mark: str, number: int) -> None:
        self._pid, self._mark, self._number = pid, mark.encode(), b" %d " % number
        root = _read_stat(pid)
        self._since = root.start if root else 0
        self._sessions = {pid}
        self._known: dict[int, int] = {}  # pid -> start of those seen once: they stay ours whatever they change
        self._judged: dict[tuple[int, int], bool] = {}
        self._born = clock.monotonic()

    def living(self) -> list[Member]:
        """Return the members that still run, the root included, and reap those that were adopted by us."""
        if self._left_nothing():
            return []
        found: list[Member] = []
        for _ in range(3):
            newest = _newest_pid()
            found = self._look()
            # A look is not one instant: it misses what was forked meanwhile by one that also ended meanwhile.
            if found or (newest and newest == _newest_pid()):
                break
        return found

    def send(self, members: list[Member], signum: signal.Signals, /) -> None:
        """Signal the group at once, which no fork outruns, then every member outside it by its pidfd."""
        if any(member.group == self._pid for member in members):
            _signal_group(self._pid, signum)
        for member in members:
            if member.group != self._pid:
                _signal_one(member, signum)

    def _left_nothing(self) -> bool:
        """Say whether the root has ended and surely left nothing, without a look at every process of the machine.

        Linux hands out process numbers in a circle, so what the root started has one between its own and the last
        that was given. True only when the circle cannot have closed since, and the few numbers in question are free
        or strangers'; saves some milliseconds after most commands.
        """
        root, newest = _read_stat(self._pid), _newest_pid()
        if root is None or root.state != "Z" or self._known or not self._pid <= newest <= self._pid + _FEW:
            return False
        closes = int(_read("/proc/sys/kernel/pid_max", 32) or 0) / _FORKS_PER_SECOND
        if clock.monotonic() - self._born > closes:
            return False
        found = any((member := _read_stat(pid)) and self._is_ours(member) for pid in range(self._pid + 1, newest + 1))
        return not found and newest == _newest_pid()

    def _look(self) -> list[Member]:
        # Nothing older than the root can be its descendant: this keeps us and our own parents out, too.
        recent = {member.pid: member for member in _read_all() if member.start >= self._since}
        ours = {pid for pid, member in recent.items() if self._is_ours(member)}
        children: dict[int, list[int]] = {}
        for member in recent.values():
            children.setdefault(member.parent, []).append(member.pid)
        queue = [*ours, self._pid]
        while queue:
            for child in children.get(queue.pop(), ()):
                if child not in ours:
                    ours.add(child)
                    queue.append(child)
        living: list[Member] = []
        for pid in ours:
            member = recent[pid]
            self._known[pid] = member.start
            # A session of a member was made inside the tree; nobody can join it from outside.
            self._sessions.add(member.session)
            if member.state not in "ZX":
                living.append(member)
            elif member.parent == os.getpid() and pid != self._pid:
                _reap(pid)
        return living

    def _is_ours(self, member: Member) -> bool:
        if member.session in self._sessions or self._known.get(member.pid) == member.start:
            return True
        key = (member.pid, member.start)
        verdict = self._judged.get(key)
        if verdict is None:
            # Asked once: unlike an environment, limits are there from the fork to the reaping.
            verdict = self._judged[key] = self._number in _read(
                f"/proc/{member.pid}/limits", 4096
            ) or self._mark in _read(f"/proc/{member.pid}/environ", _ENVIRON_BYTES)
        return verdict


class NamespaceTree(ProcTree):
    """The tree of a process that holds a PID namespace: when it ends, the kernel ends all the others."""

    def living(self) -> list[Member]:
        """Return the members that still run; once the holder has ended, wait up to 2 ms for the kernel to be done."""
        root = _read_stat(self._pid)
        for _ in range(_BRIEF_LOOKS):
            newest = _newest_pid()
            if root is None or root.state != "Z" or not self._pid <= newest <= self._pid + _FEW:
                break
            found = [member for pid in range(self._pid + 1, newest + 1) if (member := _read_stat(pid))]
            ours = [member for member in found if self._is_ours(member)]
            for member in ours:
                if member.state in "ZX" and member.parent == os.getpid():
                    _reap(member.pid)
            if all(member.state in "ZX" for member in ours):
                return []
            time.sleep(_BRIEF)
        return super().living()

    def send(self, members: list[Member], signum: signal.Signals, /) -> None:
        """Signal the members; the holder only to kill, for without it nobody inside would have its grace."""
        if signum == signal.SIGKILL:
            super().send(members, signum)
            return
        for member in members:
            if member.pid != self._pid:
                _signal_one(member, signum)


class GroupTree:
    """A process group, for POSIX systems without /proc (macOS): what left the group is not seen."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def living(self) -> list[Member]:
        """Return one stand-in for the whole group while it has members."""
        pid = self._process.pid
        self._process.poll()  # a zombie would count as a member
        try:
            os.killpg(pid, 0)
        except (ProcessLookupError, PermissionError):
            return []
        return [Member(pid, 0, pid, pid, "R", 0, 0)]

    def send(self, members: list[Member], signum: signal.Signals, /) -> None:
        """Signal the group."""
        if members:
            _signal_group(self._process.pid, signum)


class WindowsTree:
    """A process and its children by `taskkill /T`; what outlives its parent is not seen."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def living(self) -> list[Member]:
        """Return the root while it runs."""
        pid = self._process.pid
        return [Member(pid, 0, pid, pid, "R", 0, 0)] if self._process.poll() is None else []

    def send(self, members: list[Member], _signum: signal.Signals, /) -> None:
        """End the tree: Windows has no polite form that console programs without a console would hear."""
        if members:
            taskkill = os.path.join(os.environ.get("SYSTEMROOT", r"C:\Windows"), "System32", "taskkill.exe")  # noqa: PTH118
            subprocess.run(
                [taskkill, "/F", "/T", "/PID", str(self._process.pid)], capture_output=True, check=False, timeout=5
            )


def tree_of(process: subprocess.Popen[bytes], mark: str, number: int, *, namespace: bool = False) -> Tree:
    """Return the tree of a process that was just started with these marks, in the best way this platform has.

    `namespace` says that the process is the outside of a PID namespace.
    """
    if os.name == "nt":
        return WindowsTree(process)
    if namespace and _has_proc():
        return NamespaceTree(process.pid, mark, number)
    return ProcTree(process.pid, mark, number) if _has_proc() else GroupTree(process)


def memory_of(members: list[Member], limit: int) -> int:
    """Return the bytes of RAM that `members` hold, shared pages counted once; cheap while they are under `limit`."""
    # The resident sum counts shared pages for each holder, so it is never less than the truth.
    resident = sum(member.pages for member in members) * _PAGE_BYTES
    return sum(_proportional(member.pid) for member in members) if resident > limit else resident


def become_subreaper() -> bool:
    """Make this process adopt the orphans among its descendants; True when it did (Linux 3.4 or later).

    For a program's own entry point only, never for a library in somebody's process: from then on every orphan is a
    child of this process and must be reaped by it. `end_tree` reaps those of its command.
    """
    if not sys.platform.startswith("linux"):
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    return libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0


def _signal_group(group: int, signum: signal.Signals) -> None:
    try:
        os.killpg(group, signum)
        if signum == signal.SIGTERM:
            os.killpg(group, signal.SIGCONT)  # a stopped process hears SIGTERM only when it goes on
    except (ProcessLookupError, PermissionError):
        return


def _signal_one(member: Member, signum: signal.Signals) -> None:
    """Signal a process if it is still the one that was seen."""
    try:
        fd = os.pidfd_open(member.pid)
    except OSError:
        fd = -1
    try:
        now = _read_stat(member.pid)
        if now is None or now.start != member.start:
            return
        for each in (signum, signal.SIGCONT) if signum == signal.SIGTERM else (signum,):
            if fd >= 0:
                signal.pidfd_send_signal(fd, each)
            else:
                os.kill(member.pid, each)
    except (ProcessLookupError, PermissionError):
        return
    finally:
        if fd >= 0:
            os.close(fd)


def _reap(pid: int) -> None:
    try:
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return


def _read(path: str, size: int) -> bytes:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        return os.read(fd, size)
    except OSError:
        return b""
    finally:
        os.close(fd)


def _read_stat(pid: int) -> Member | None:
    """Return what /proc/PID/stat says (proc_pid_stat(5)), None when there is no such process or no /proc."""
    raw = _read(f"/proc/{pid}/stat", 2048)
    # The name in parentheses may hold anything, also `) R 1`.
    state, *rest = raw[raw.rfind(b")") + 2 :].split(b" ", 23) if raw else (b"",)
    if len(rest) < 22:
        return None
    parent, group, session = int(rest[0]), int(rest[1]), int(rest[2])
    return Member(pid, parent, group, session, state.decode(), int(rest[18]), int(rest[20]))


def _has_proc() -> bool:
    """Say whether /proc shows the processes as we number them: not without it, nor with another PID namespace's."""
    try:
        return os.readlink("/proc/self") == str(os.getpid())  # noqa: PTH115
    except OSError:
        return False


def _read_all() -> list[Member]:
    try:
        names = os.listdir("/proc")  # noqa: PTH208  # no Path for each of them: this runs after every command
    except OSError:
        return []
    return [member for name in names if name.isdigit() and (member := _read_stat(int(name)))]


def _newest_pid() -> int:
    """Return the number that was given to a process last, 0 where that is not told."""
    words = _read("/proc/loadavg", 128).split()
    return int(words[4]) if len(words) > 4 and words[4].isdigit() else 0


def _proportional(pid: int) -> int:
    for line in _read(f"/proc/{pid}/smaps_rollup", 4096).splitlines():
        if line.startswith(b"Pss:"):
            return int(line.split()[1]) * 1024
    return 0
