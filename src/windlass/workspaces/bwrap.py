"""Find bubblewrap, see once whether it works here, and write its command lines: bwrap(1)."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterable, Mapping
from typing import Literal

from msgspec import Struct

from windlass.workspaces.environ import find_program
from windlass.workspaces.seccomp import build_filter, is_supported

__all__ = ["Mount", "find_bwrap", "isolation", "mount_words", "why_not"]

_PROBE_SECONDS = 10.0
#: What an empty folder that stands for something hidden may hold: nothing worth naming.
_NOTHING = 4096

#: Path of a bwrap -> "" when it works in this process's surroundings, else what it said.
_verdicts: dict[str, str] = {}


class Mount(Struct, frozen=True):
    """One thing at `path` in the command's view.

    `read` and `write` show `source`; `link` is a symbolic link to `source`; `room` is an empty folder in memory of
    `size` bytes; `hidden` is an empty folder, `hidden file` a file that cannot be opened; `proc` and `dev` are fresh
    ones; `freeze` makes what is there already read-only.
    """

    kind: Literal["read", "write", "link", "room", "hidden", "hidden file", "proc", "dev", "freeze"]
    path: str
    source: str = ""
    size: int = 0


def find_bwrap(environ: Mapping[str, str], outside: str) -> str | None:
    """Return the bwrap on PATH that does not lie in the workspace `outside`."""
    return find_program(["bwrap"], environ.get("PATH", ""), outside)


def isolation(*, own_network: bool) -> list[str]:
    """Return the words for new namespaces, no capabilities, and an end with whoever started it."""
    network = ["--unshare-net"] if own_network else []
    spaces = ["--unshare-user", "--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try", *network]
    return [*spaces, "--hostname", "sandbox", "--die-with-parent", "--cap-drop", "ALL"]


def mount_words(mounts: Iterable[Mount]) -> list[str]:
    """Return the words for `mounts`, done in order."""
    words: list[str] = []
    for mount in mounts:
        words += _words(mount)
    return words


def _words(mount: Mount) -> list[str]:
    path, source = mount.path, mount.source
    match mount.kind:
        case "read":
            return ["--ro-bind", source, path]
        case "write":
            return ["--bind", source, path]
        case "link":
            return ["--symlink", source, path]
        case "room":
            return ["--size", str(mount.size), "--tmpfs", path]
        case "hidden":
            return ["--perms", "0555", "--size", str(_NOTHING), "--tmpfs", path]
        case "hidden file":
            return ["--ro-bind", "/dev/null", path]
        case "proc":
            return ["--proc", path]
        case "dev":
            return ["--dev", path]
        case "freeze":
            return ["--remount-ro", path]


def why_not(program: str, environ: Mapping[str, str], outside: str = "") -> str:
    """Return why `program` cannot confine here, "" when it can; tried once per process.

    What it is tried with does not lie in the workspace `outside`.
    """
    if program not in _verdicts:
        _verdicts[program] = _try(program, environ, outside)
    return _verdicts[program]


def _try(program: str, environ: Mapping[str, str], outside: str) -> str:
    if not is_supported():
        return "no system call filter is known for this machine"
    probe = find_program(["true"], os.defpath, outside)
    if probe is None:
        return "there is no program `true` to try it with"
    mounts = [
        Mount("read", "/", "/"),
        Mount("proc", "/proc"),
        Mount("dev", "/dev"),
        Mount("hidden", "/tmp"),  # noqa: S108  # a mount inside
        Mount("freeze", "/dev"),
    ]
    with tempfile.TemporaryFile() as filtered:
        filtered.write(build_filter())
        filtered.seek(0)
        fd = filtered.fileno()
        words = [*isolation(own_network=True), *mount_words(mounts), "--seccomp", str(fd), "--", probe]
        try:
            done = subprocess.run(
                [program, *words],
                pass_fds=(fd,),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                check=False,
                timeout=_PROBE_SECONDS,
                env={"PATH": environ.get("PATH", os.defpath)},
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return str(error)
    said = done.stderr.decode("utf-8", "replace").strip()
    return "" if done.returncode == 0 else said or f"it ended with {done.returncode}"
