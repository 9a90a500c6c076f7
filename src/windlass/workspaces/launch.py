"""Start a command in its own session, without a terminal, under limits, with every failure explained."""

from __future__ import annotations

import errno
import hashlib
import importlib
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from math import inf
from pathlib import Path

from msgspec import Struct

from windlass.core.errors import WorkspaceError
from windlass.core.text import visible
from windlass.workspaces.environ import find_program

__all__ = ["Confiner", "Limits", "lock_number", "spawn", "ulimits"]

#: The rlimits we have ourselves; Windows has none.
_resource = importlib.import_module("resource") if sys.platform != "win32" else None
_RLIMIT_LOCKS = 10  # <asm-generic/resource.h>; Python has no name for it
_GiB = 1 << 30


class Limits(Struct, frozen=True, omit_defaults=True):
    """Bound what a command may use; None leaves a thing as it is. Core dumps are always off.

    `cpu_seconds`, `file_bytes` (largest file written, default 16 GiB) and `open_files` are rlimits of each process.
    `memory_bytes` bounds each one's data (RLIMIT_DATA) and, on Linux, the RAM of all together; `processes` bounds how
    many run at a time. Those two are looked at 20 times a second, so a burst passes them for a moment. `output_bytes`
    bounds what it prints. A limit that is hit ends the command, and `ExecResult.killed` names it: cpu, file_size,
    memory, processes, output. Where the program itself is told (no memory, no more files), it says so in its output.

    POSIX only; Windows knows `output_bytes`.
    """

    cpu_seconds: int | None = None
    memory_bytes: int | None = None
    file_bytes: int | None = 16 * _GiB
    processes: int | None = None
    open_files: int | None = None
    output_bytes: int | None = None

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise WorkspaceError(f"The limit {name} is {value}, it counts from 1.", hint="None leaves it out.")


def _directly(start: Callable[[], subprocess.Popen[bytes]]) -> subprocess.Popen[bytes]:
    return start()


class Confiner(Struct, frozen=True):
    """Say how a command is started under confinement.

    `words` come before the command's own; `stdin9` is a file that their program reads from descriptor 9; `start` calls
    what starts the process, where it is the calling thread that must be confined. `namespace` says that the process
    started is the outside of a PID namespace, with which everything in it dies.
    """

    words: tuple[str, ...] = ()
    stdin9: str | None = None
    start: Callable[[Callable[[], subprocess.Popen[bytes]]], subprocess.Popen[bytes]] = _directly
    namespace: bool = False

    def line(self, prelude: str = "") -> str:
        """Return the `sh -c` text that does `prelude` (ending in `;`, or empty) and becomes its arguments."""
        opened = f" 9<{shlex.quote(self.stdin9)}" if self.stdin9 else ""
        return f'{prelude} exec "$@"{opened}'.lstrip()


#: errno -> what happened, what to do next.
_WORDS: dict[int, tuple[str, str]] = {
    errno.ENOENT: ("was not found", "Check its name, or install it."),
    errno.ENOTDIR: ("was not found", "Check its name, or install it."),
    errno.EACCES: ("may not be executed", "Check its permissions."),
    errno.EPERM: ("may not be executed", "Check its permissions."),
    errno.ENOEXEC: ("is not a program this system can run", "Run it through its interpreter."),
    errno.E2BIG: ("is too long for the system", "Write it to a file and run that, or pass less at a time."),
    errno.EMFILE: ("was not started: this process has too many files open", "Try again when less is going on."),
    errno.ENFILE: ("was not started: the system has too many files open", "Try again later."),
    errno.ENOMEM: ("was not started: there is not enough memory", "Free some memory, then try again."),
    errno.EAGAIN: ("was not started: there are too many processes", "End some, then try again."),
    errno.ETXTBSY: ("is being written", "Try again."),
}
_SHELLS = ("bash", "sh")
_SHELL_PATH = os.pathsep.join(("/bin", "/usr/bin", "/usr/local/bin", "/run/current-system/sw/bin"))


def spawn(
    command: str | Sequence[str],
    *,
    cwd: str,
    env: Mapping[str, str],
    output: int,
    limits: Limits,
    number: int,
    confiner: Confiner | None = None,
) -> subprocess.Popen[bytes]:
    """Start `command` with stdin at its end, both outputs into the descriptor `output`, as leader of a new session.

    A string runs through bash (sh where there is none, `cmd` on Windows) taken from the system's folders; words run
    as they are, a bare program name being looked up in the PATH of `env`. `number` comes from `lock_number`.

    Raises WorkspaceError when the folder is gone, the program is missing, or the system refuses; then nothing runs.
    """
    if not Path(cwd).is_dir():
        raise _no_folder(cwd)
    shown = _shown(command)
    confiner = confiner or Confiner()
    words = _words(command, cwd, env, confiner, f"{ulimits(limits)} {_lock_words(number)}")

    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            words,
            cwd=cwd,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            # Windows: a group of its own, without a console window.
            creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0)
            | getattr(subprocess, "CREATE_NO_WINDOW", 0),
        )

    try:
        return confiner.start(start)
    except OSError as error:
        raise (_no_folder(cwd) if error.filename == cwd else _explain(error, shown, cwd)) from error
    except ValueError as error:  # a NUL, or a character the system's encoding does not have
        raise WorkspaceError(f"The command {shown} cannot be run: {error}.", hint="Remove that character.") from error


def _words(
    command: str | Sequence[str], cwd: str, env: Mapping[str, str], confiner: Confiner, prelude: str
) -> list[str] | str:
    if os.name == "nt":
        return _windows_line(command)
    if isinstance(command, str):
        words = [_found(find_program(_SHELLS, _SHELL_PATH, cwd), "bash"), "-c", "--", command]
    else:
        words = [*command]
        words[:1] = [_program(words[0] if words else "", cwd, env)]
    # `ulimit` in a shell that then becomes the command: nothing of it runs before its limits hold, as it could before
    # a prlimit() from here, and no code of ours runs between fork and exec.
    launcher = find_program(("sh",), _SHELL_PATH, cwd)
    if launcher is None and confiner.words:
        raise WorkspaceError("There is no sh to start the sandbox with.", hint="Install one in /bin.")
    return [launcher, "-c", confiner.line(prelude), "sh", *confiner.words, *words] if launcher else words


def _program(name: str, cwd: str, env: Mapping[str, str]) -> str:
    """Return the program to run, asked for here: the launcher's words for it would look like the program's output."""
    if not name:
        raise WorkspaceError("The command is empty.", hint="Give a program and its arguments.")
    if "/" not in name:
        return _found(find_program([name], env.get("PATH", ""), cwd), name)
    path = Path(cwd, name)
    if not path.is_file():
        raise _explain(FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT)), _shown(name), cwd)
    if not os.access(path, os.X_OK):
        raise _explain(PermissionError(errno.EACCES, os.strerror(errno.EACCES)), _shown(name), cwd)
    return f"./{name}" if name.startswith("-") else name


def _found(path: str | None, name: str) -> str:
    if path is None:
        raise _explain(FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT)), _shown(name), "")
    return path


def _windows_line(command: str | Sequence[str]) -> str:
    """Return the command line for CreateProcess; /S makes cmd take off just the outer quotes."""
    if not isinstance(command, str):
        return subprocess.list2cmdline(command)
    cmd = Path(os.environ.get("SYSTEMROOT", r"C:\Windows"), "System32", "cmd.exe")
    return f'"{cmd}" /d /s /c "{command}"'


def ulimits(limits: Limits) -> str:
    """Return the shell words that set `limits`; what is stricter already stays as it is.

    Units are those of POSIX `ulimit` and of its common extensions in dash, bash and busybox: -f counts 512 bytes, -d
    1024. CPU time gets a hard limit one second later, else SIGKILL would come instead of the telling SIGXCPU.
    """
    wanted = (
        ("f", "RLIMIT_FSIZE", limits.file_bytes, 512),
        ("d", "RLIMIT_DATA", limits.memory_bytes, 1024),
        ("n", "RLIMIT_NOFILE", limits.open_files, 1),
    )
    words = ["ulimit -c 0;"]
    for letter, name, value, unit in wanted:
        if value is not None and value < _own(name):
            words.append(f"ulimit -{letter} {-(-value // unit)};")
    cpu = limits.cpu_seconds
    if cpu is not None and cpu + 1 < _own("RLIMIT_CPU"):
        words.append(f"ulimit -S -t {cpu}; ulimit -H -t {cpu + 1};")
    return " ".join(words)


def lock_number(mark: str) -> int:
    """Return the RLIMIT_LOCKS that marks the call `mark`, see `reap`; inside another call it is below that one's."""
    number = int.from_bytes(hashlib.blake2b(mark.encode(), digest_size=7).digest(), "big") | 1 << 40
    hard = _hard_locks()
    return number if hard is None else number % max(hard, 1)


def _hard_locks() -> int | None:
    if _resource is None or not sys.platform.startswith("linux"):
        return None
    hard: int = _resource.getrlimit(_RLIMIT_LOCKS)[1]
    return None if hard == _resource.RLIM_INFINITY else hard


def _lock_words(number: int) -> str:
    if not sys.platform.startswith("linux"):
        return ""
    # Inside another call the hard limit is that call's mark. The letter is x in bash and w in dash.
    which = "-S " if _hard_locks() is not None else ""
    return f"ulimit {which}-x {number} 2>/dev/null || ulimit {which}-w {number} 2>/dev/null;"


def _own(name: str) -> float:
    """Return the soft limit that we have ourselves."""
    if _resource is None:
        return inf
    soft: int = _resource.getrlimit(getattr(_resource, name))[0]
    return inf if soft == _resource.RLIM_INFINITY else soft


def _no_folder(cwd: str) -> WorkspaceError:
    what = "may not be entered" if Path(cwd).is_dir() else "is gone"
    return WorkspaceError(f"The working folder {cwd} {what}.", path=cwd, hint="Make it again, or use another one.")


def _explain(error: OSError, command: str, cwd: str) -> WorkspaceError:
    what, hint = _WORDS.get(error.errno or 0, (f"was not started: {error.strerror or error}", ""))
    told = WorkspaceError(f"The command {command} {what}.", path=cwd, hint=hint)
    told.__cause__ = error
    return told


def _shown(command: str | Sequence[str]) -> str:
    text = visible((command if isinstance(command, str) else " ".join(command))[:200])
    return f"`{text[:80]}{'…' if len(text) > 80 else ''}`"
