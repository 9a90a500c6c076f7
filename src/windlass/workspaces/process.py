"""Run a command, watch it, and leave nothing of it behind."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence

from windlass.core import clock
from windlass.core.errors import WorkspaceError
from windlass.core.ports import ExecResult
from windlass.workspaces.capture import Capture, Live
from windlass.workspaces.environ import clean_env
from windlass.workspaces.launch import Confiner, Limits, lock_number, spawn
from windlass.workspaces.reap import GRACE, MARK, Tree, become_subreaper, end_tree, memory_of, tree_of

__all__ = ["Limits", "become_subreaper", "clean_env", "run_command"]

#: Seconds that output may still come after the command itself has ended.
DRAIN = 0.1
#: Seconds between two looks at the limits that the kernel does not keep for a whole tree.
LOOK = 0.05
_CHUNK = 1 << 16
#: What a pipe may still hold when all its writers are gone.
_PIPE_BYTES = 1 << 20


async def run_command(
    command: str | Sequence[str],
    *,
    cwd: str,
    timeout: float | None = 30.0,
    max_output: int = 8192,
    env: Mapping[str, str] | None = None,
    on_output: Callable[[bytes], None] | None = None,
    limits: Limits | None = None,
    confiner: Confiner | None = None,
    spool_dir: str | None = None,
    spool_limit: int = 64 * 1024 * 1024,
) -> ExecResult:
    """Run `command` in the folder `cwd` and return how it ended.

    A string runs through bash (sh where there is none, cmd on Windows), a sequence of words without a shell. It gets
    no input, no terminal and the environment that `clean_env` makes of ours and `env`.

    The call ends when the command itself ends, plus at most 0.1 s for output under way; it never waits for others that
    hold the pipe. Then, and when `timeout` (seconds, None: none) passes or the task is cancelled, everything the
    command started is ended, background processes too: SIGTERM, 0.5 s, SIGKILL; see `reap` for what each platform can
    see. Nothing keeps running after this call.

    `output` is stdout and stderr as they came, at most `max_output` bytes (0: up to `spool_limit`), cut by
    `core.text.truncate`. Longer output is kept from its start, up to `spool_limit` bytes, in the file `spool`: mode
    0600 in the 0700 folder `spool_dir`, or in one that is removed when this process ends. `on_output` sees output
    live, at most 20 times a second and 16 KiB at a time.

    `exit_code` is 128 + N when signal N ended the command. It is None when we ended it, and `killed` says why:
    timeout, or the limit that was hit (output, cpu, file_size, memory, processes).

    `confiner` puts the command into a sandbox. There the grace of background processes that outlive the command falls
    away: they end with its PID namespace.

    Raises WorkspaceError when nothing could be started: no such folder or program, a command too long, no descriptors,
    memory or processes left.
    """
    if max_output < 0 or spool_limit < 0 or (timeout is not None and not timeout >= 0):
        raise WorkspaceError(
            f"timeout={timeout}, max_output={max_output}, spool_limit={spool_limit}: none may be negative."
        )
    call_id, outer = clock.new_id(), os.environ.get(MARK)
    environ = clean_env(os.environ, env, cwd=cwd) | {MARK: f"{outer}/{call_id}" if outer else call_id}
    limits, number = limits or Limits(), lock_number(call_id)
    capture = Capture(call_id, max_output, spool_dir=spool_dir, spool_limit=spool_limit)
    try:
        output, child_output = os.pipe()
    except OSError as error:
        raise WorkspaceError(
            f"No pipe for the command: {error.strerror}.", hint="Try again when less is open."
        ) from error
    try:
        process = spawn(
            command, cwd=cwd, env=environ, output=child_output, limits=limits, number=number, confiner=confiner
        )
    except BaseException:
        os.close(output)
        raise
    finally:
        os.close(child_output)
    tree = tree_of(process, call_id, number, namespace=confiner is not None and confiner.namespace)
    running = _Running(process, tree, output, capture, Live(on_output) if on_output else None, limits)
    return await running.finish(timeout)


def _limit_told(code: int | None, limits: Limits) -> str:
    """Return the limit whose signal ended the command, "" for none: the kernel names two of them."""
    if os.name == "nt":
        return ""
    if limits.cpu_seconds and code == 128 + signal.SIGXCPU:
        return "cpu"
    return "file_size" if limits.file_bytes and code == 128 + signal.SIGXFSZ else ""


class _Running:
    """A command between its start and its end; belongs to the loop and the task that wait for it."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        tree: Tree,
        output: int,
        capture: Capture,
        live: Live | None,
        limits: Limits,
    ) -> None:
        self._process, self._tree, self._output = process, tree, output
        self._capture, self._live, self._limits = capture, live, limits
        self._loop = asyncio.get_running_loop()
        #: Becomes "" when the command ends by itself, or the limit that it hit.
        self._ended: asyncio.Future[str] = self._loop.create_future()
        self._eof = asyncio.Event()
        self._pidfd = -1
        self._timer: asyncio.TimerHandle | None = None
        self._reads_in_thread = False
        self._gone = False
        self._closed = False

    async def finish(self, timeout: float | None) -> ExecResult:
        """Wait for the end, whichever it is, and clear up."""
        try:
            self._watch_exit()
            self._watch_output()
            if self._limits.memory_bytes or self._limits.processes:
                # Not at once: a look costs some milliseconds, and most commands end before the first.
                self._timer = self._loop.call_later(LOOK, self._look_at_limits)
            killed = await self._wait(timeout)
            if not killed:
                await self._drain()
            await self._end(killed)
            if self._reads_in_thread:
                await self._drain()
        except asyncio.CancelledError:
            await self._end("cancelled")
            raise
        finally:
            self._close()
        return self._result(killed)

    async def _wait(self, timeout: float | None) -> str:
        # wait() leaves the future alone when this task is cancelled or late.
        with contextlib.suppress(TimeoutError):
            async with clock.deadline(timeout):
                await asyncio.wait([self._ended])
        return self._ended.result() if self._ended.done() else "timeout"

    async def _drain(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with clock.deadline(DRAIN):
                await self._eof.wait()

    async def _end(self, killed: str) -> None:
        # What eats memory or multiplies gets no time to do more of it.
        await end_tree(self._tree, grace=0.0 if killed in ("memory", "processes") else GRACE)
        self._gone = True

    def _result(self, killed: str) -> ExecResult:
        code = self._process.returncode
        if code is not None and code < 0:
            code = 128 - code
        killed = killed or _limit_told(code, self._limits)
        capture = self._capture
        return ExecResult(
            exit_code=None if killed else code,
            output=capture.result(),
            total_bytes=capture.total,
            killed=killed or None,
            spool=capture.path,
        )

    # --- the exit of the command itself

    def _watch_exit(self) -> None:
        """Call `_exited` when the command has ended, without reaping it: as a zombie it keeps its number."""
        try:
            self._pidfd = os.pidfd_open(self._process.pid)
            self._loop.add_reader(self._pidfd, self._exited)
        except (AttributeError, NotImplementedError, OSError):  # macOS, Windows, an old kernel, no descriptor left
            threading.Thread(target=self._wait_in_thread, name="windlass-exit", daemon=True).start()

    def _wait_in_thread(self) -> None:
        if hasattr(os, "waitid"):
            with contextlib.suppress(ChildProcessError):
                os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
        else:
            self._process.wait()
        self._tell(self._exited)

    def _exited(self) -> None:
        if self._pidfd >= 0:
            self._loop.remove_reader(self._pidfd)
        self._stop("")

    def _stop(self, why: str) -> None:
        if not self._ended.done():
            self._ended.set_result(why)

    # --- its output

    def _watch_output(self) -> None:
        try:
            self._loop.add_reader(self._output, self._read)
            os.set_blocking(self._output, False)
        except (AttributeError, NotImplementedError, OSError):  # Windows: its loop does not watch pipes
            self._reads_in_thread = True
            threading.Thread(target=self._read_in_thread, name="windlass-output", daemon=True).start()

    def _read(self) -> int:
        """Take what is there, at most one chunk, and return its size."""
        try:
            data = os.read(self._output, _CHUNK)
        except BlockingIOError:
            return 0
        self._take(data)
        return len(data)

    def _take(self, data: bytes) -> None:
        if self._closed:
            return  # a reading thread that was late
        if not data:
            self._eof.set()
            if not self._reads_in_thread:
                self._loop.remove_reader(self._output)
            return
        self._capture.feed(data)
        if self._live is not None:
            self._live.feed(data)
        if self._limits.output_bytes and self._capture.total > self._limits.output_bytes:
            self._stop("output")

    def _read_in_thread(self) -> None:
        room = threading.Semaphore(8)  # chunks the loop has not taken yet

        def take(data: bytes) -> None:
            room.release()
            self._take(data)

        data = b"-"
        while data:
            try:
                data = os.read(self._output, _CHUNK)
            except OSError:
                data = b""
            room.acquire()
            if not self._tell(take, data):
                break
        os.close(self._output)

    # --- limits, threads, the end

    def _look_at_limits(self) -> None:
        members, most = self._tree.living(), self._limits.memory_bytes
        if self._limits.processes and len(members) > self._limits.processes:
            self._stop("processes")
        elif most and memory_of(members, most) > most:
            self._stop("memory")
        else:
            self._timer = self._loop.call_later(LOOK, self._look_at_limits)

    def _tell(self, call: Callable[..., None], *args: object) -> bool:
        """Call on the loop from a thread; False when the loop is closed and nobody waits any more."""
        try:
            self._loop.call_soon_threadsafe(call, *args)
        except RuntimeError:
            return False
        return True

    def _close(self) -> None:
        """Give everything back; also when the coroutine was thrown away in the middle, without a loop to wait with."""
        if self._timer is not None:
            self._timer.cancel()
        if not self._gone:
            self._tree.send(self._tree.living(), signal.SIGKILL)
        try:
            self._process.wait(0.0 if self._gone else 1.0)
        except subprocess.TimeoutExpired:
            threading.Thread(target=self._process.wait, name="windlass-stuck", daemon=True).start()
        for fd in (self._pidfd, -1 if self._reads_in_thread else self._output):
            if fd >= 0 and not self._loop.is_closed():
                self._loop.remove_reader(fd)
        if self._pidfd >= 0:
            os.close(self._pidfd)
        if not self._reads_in_thread:
            taken = 0
            while not self._eof.is_set() and taken < _PIPE_BYTES and (size := self._read()):
                taken += size
            os.close(self._output)
        self._closed = True
        if self._live is not None:
            self._live.close()
        self._capture.close()
