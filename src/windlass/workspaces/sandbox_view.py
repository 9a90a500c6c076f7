"""Decide what a confined command sees of the file system: system folders, tools, a private home, the workspace."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence

from windlass.core.config_files import config_home, data_home
from windlass.core.errors import WorkspaceError
from windlass.workspaces.bwrap import Mount
from windlass.workspaces.paths import is_protected

__all__ = ["View", "is_below", "readable_places"]

_SYSTEM = ("/usr", "/etc", "/opt", "/nix", "/gnu")
_TOP = ("/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
#: Where people's toolchains live in their home; shown read-only. None of these holds a key.
_HOME_TOOLS = (
    *(".pyenv", ".nvm", ".rustup", ".cargo/bin", ".local/bin", ".local/lib", ".local/share/uv", ".local/share/mise"),
    *(".asdf", ".rbenv", ".sdkman", ".bun/bin", ".deno/bin", ".volta", ".dotnet", ".jdks", "go/bin", ".ghcup/bin"),
    *("miniconda3", "miniforge3", "anaconda3"),
)
#: Where keys live in a home, for the case that the workspace holds the home.
_HOME_SECRETS = (
    *(".ssh", ".gnupg", ".aws", ".azure", ".kube", ".docker", ".netrc", ".git-credentials", ".npmrc", ".pypirc"),
    *(".config/gcloud", ".config/gh", ".config/op", ".local/share/keyrings", ".password-store", ".cargo/credentials"),
    *(".cargo/credentials.toml", ".mozilla", ".config/google-chrome", ".config/chromium", ".bash_history"),
    *(".zsh_history", ".claude", ".codex", ".gemini"),
)
_ROOM = 64 << 20
_SHARED_MEMORY = 256 << 20
#: Bounds of the search for protected files below the top of a workspace, and of mounts made for them.
_LEVELS, _FOLDERS, MOST_NESTED = 3, 2000, 24
_NOT_SEARCHED = frozenset(("node_modules", "site-packages", "target", "dist", "build", "__pycache__", "vendor"))


class View:
    """The mounts of every command of one workspace.

    `root` is the workspace's path, `writable`, `read_only` and `deny_read` further places, `scratch` a private folder
    of ours with `temp` and `home` in it, which stand for /tmp and the home. Raises WorkspaceError for a
    place that is not there.
    """

    def __init__(
        self,
        root: str,
        *,
        scratch: str,
        environ: Mapping[str, str],
        host_network: bool,
        writable: Sequence[str],
        read_only: Sequence[str],
        deny_read: Sequence[str],
    ) -> None:
        self.root, self._scratch, self._environ = root, scratch, environ
        self.writable = tuple(_place(each, root) for each in writable)
        self._read_only = tuple(_place(each, root) for each in read_only)
        self._hidden = tuple(os.path.join(root, each) for each in deny_read)  # noqa: PTH118
        #: Protected places found below the top, and how many more there were than can be held.
        self.nested, self.not_held = _nested(root)
        self._rooms: set[str] = set()
        #: What comes before the workspace's own protected names, and after them.
        self.before = [*self._system(host_network), *self._own_places(), *self._tools(), *self._workspace()]
        self.after = [*self._secrets(), Mount("freeze", "/")]

    def protected(self, kept: Iterable[str], missing: Iterable[str]) -> list[Mount]:
        """Return the mounts for names at the top of the root: those there read-only, those missing taken."""
        paths = [(f"{self.root}/{name}", f"{os.path.realpath(self.root)}/{name}") for name in kept]
        return [
            *[Mount("read", path, source) for path, source in paths],
            *[Mount("hidden", f"{self.root}/{name}") for name in missing],
        ]

    def _system(self, host_network: bool) -> Iterator[Mount]:
        for top in _SYSTEM:
            if os.path.isdir(top):  # noqa: PTH112
                yield Mount("read", top, top)
        for top in _TOP:
            if os.path.islink(top):  # noqa: PTH114
                yield Mount("link", top, os.readlink(top))  # noqa: PTH115
            elif os.path.isdir(top):  # noqa: PTH112
                yield Mount("read", top, top)
        if os.geteuid() == 0:
            # The owner of /etc/shadow reads it without any capability.
            for path, is_folder in closed_to_others("/etc"):
                yield Mount("hidden" if is_folder else "hidden file", path)
        names = os.path.realpath("/etc/resolv.conf")
        if host_network and os.path.isfile(names) and not is_below(names, "/etc"):  # noqa: PTH113
            yield Mount("read", names, names)
        yield Mount("proc", "/proc")
        # Root, also without any capability, owns /proc/sys: a written core_pattern is a command of the host.
        yield Mount("freeze", "/proc")
        yield Mount("dev", "/dev")
        yield Mount("room", "/dev/shm", size=_SHARED_MEMORY)  # noqa: S108
        yield Mount("freeze", "/dev")

    def _own_places(self) -> Iterator[Mount]:
        if not is_below("/tmp", self.root):  # noqa: S108
            yield Mount("write", "/tmp", f"{self._scratch}/temp")  # noqa: S108
        if not any(is_below(each, "/var") for each in (self.root, *self.writable, self._home())):
            yield Mount("link", "/var/tmp", "../tmp")  # noqa: S108
        home = self._home()
        if home:
            yield from self._room(home)
            yield Mount("write", home, f"{self._scratch}/home")

    def _home(self) -> str:
        """Return the home that a private one stands for, "" when the workspace holds it or it is none of a person."""
        home = os.path.normpath(self._environ.get("HOME", ""))
        shown = ("/tmp", "/var/tmp", "/proc", "/dev", *_SYSTEM, *_TOP)  # noqa: S108
        if not home.startswith("/") or home == "/" or is_below(home, self.root) or home in shown:
            return ""
        return "" if any(is_below(home, each) for each in (*_SYSTEM, "/proc", "/dev")) else home

    def _tools(self) -> Iterator[Mount]:
        done = [*_SYSTEM, *_TOP, self.root]
        for path in tool_places(self._environ, self.root):
            if not any(is_below(path, each) for each in done):
                done.append(path)
                yield from self._room(path)
                yield Mount("read", path, os.path.realpath(path))

    def _workspace(self) -> Iterator[Mount]:
        for path in (self.root, *self.writable):
            yield from self._room(path)
            yield Mount("write", path, os.path.realpath(path))
        for path in self.writable:
            for name in sorted(os.listdir(path)):  # noqa: PTH208
                inside = f"{path}/{name}"
                if is_protected(name) and not os.path.islink(inside):  # noqa: PTH114
                    yield Mount("read", inside, inside)
        yield from self._pinned([f"{self.root}/{each}" for each in self.nested])
        for path in self._read_only:
            if is_below(path, self.root):
                yield from self._pinned([path])
            else:
                yield from self._room(path)
                yield Mount("read", path, os.path.realpath(path))

    def _pinned(self, paths: Iterable[str]) -> Iterator[Mount]:
        """Hold places inside the root; what lies above each is mounted too, else it could be moved away."""
        for path in paths:
            parts = os.path.relpath(path, self.root).split("/")
            above = self.root
            for part in parts[:-1]:
                above = f"{above}/{part}"
                if above not in self._rooms:
                    self._rooms.add(above)
                    yield Mount("write", above, above)
            yield Mount("read", path, path)

    def _room(self, path: str) -> Iterator[Mount]:
        """Make the way to a mount inside a private folder fresh each time.

        What lies in a private folder outlives a command, which could leave a link there for the next mount to follow.
        """
        for base in ("/tmp", "/var/tmp", self._home()):  # noqa: S108
            if base and path != base and is_below(path, base):
                first = f"{base}/{os.path.relpath(path, base).split('/', 1)[0]}"
                if first not in (path, self.root) and first not in self._rooms:
                    self._rooms.add(first)
                    yield Mount("room", first, size=_ROOM)

    def _secrets(self) -> Iterator[Mount]:
        shown = (self.root, *self.writable, *self._read_only)
        home = self._environ.get("HOME", "/nonexistent")
        known = [f"{home}/{each}" for each in _HOME_SECRETS]
        ours = [str(config_home(self._environ)), str(data_home(self._environ))]
        secrets = [each for each in (*known, *ours) if any(is_below(each, place) for place in shown)]
        for path in dict.fromkeys(os.path.realpath(each) for each in (*secrets, *self._hidden)):
            if os.path.isdir(path):  # noqa: PTH112
                yield Mount("hidden", path)
            elif os.path.exists(path):  # noqa: PTH110
                yield Mount("hidden file", path)


def is_below(path: str, folder: str) -> bool:
    """Say whether `path` is `folder` or lies in it, by the text."""
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def readable_places(environ: Mapping[str, str], root: str) -> list[str]:
    """Return the folders that a command reads without a view of its own: the system's, its tools and /proc."""
    tops = [each for each in (*_SYSTEM, *_TOP) if each != "/etc"]
    etc = [each.path for each in os.scandir("/etc") if each.stat(follow_symlinks=False).st_mode & stat.S_IROTH]
    return [*tops, *etc, *tool_places(environ, root), "/proc"]


def tool_places(environ: Mapping[str, str], root: str) -> Iterator[str]:
    """Give the folders outside the system where programs on PATH live, with what they need to run."""
    home = environ.get("HOME", "")
    if home.startswith("/"):
        for name in _HOME_TOOLS:
            if os.path.isdir(f"{home}/{name}"):  # noqa: PTH112
                yield f"{home}/{name}"
    prefixes = [environ.get("VIRTUAL_ENV", ""), environ.get("CONDA_PREFIX", "")]
    for path in [*prefixes, *environ.get("PATH", "").split(os.pathsep)]:
        path = os.path.normpath(path)
        if not path.startswith("/") or not os.path.isdir(path) or is_below(root, path) or is_below(home, path):  # noqa: PTH112
            continue
        above = os.path.dirname(path)  # noqa: PTH120
        place = above if os.path.isfile(f"{above}/pyvenv.cfg") else path  # noqa: PTH113
        if not is_below(root, place) and not is_below(home, place):
            yield place
        base = _base_of(place)
        if base and not is_below(root, base) and not is_below(home, base):
            yield base


def _base_of(place: str) -> str:
    """Return the prefix of the Python that a virtual environment was made from, "" where there is none."""
    try:
        with open(f"{place}/pyvenv.cfg", encoding="utf-8", errors="replace") as file:
            lines = file.read(4096).splitlines()
    except OSError:
        return ""
    values = {key.strip(): value.strip() for key, _, value in (line.partition("=") for line in lines)}
    folder = values.get("home", "")
    prefix = os.path.dirname(os.path.realpath(folder)) if folder.startswith("/") else ""  # noqa: PTH120
    return prefix if prefix.count("/") > 1 else ""


def closed_to_others(top: str) -> Iterator[tuple[str, bool]]:
    """Give what lies in `top` and others may not read: its path, and whether it is a folder."""
    for entry in os.scandir(top):
        mode = entry.stat(follow_symlinks=False).st_mode
        if stat.S_ISLNK(mode):
            continue
        if not mode & stat.S_IROTH:
            yield entry.path, stat.S_ISDIR(mode)
        elif stat.S_ISDIR(mode):
            yield from closed_to_others(entry.path)


def _nested(root: str) -> tuple[list[str], int]:
    """Return protected places below the top of `root`, relative, and how many more were found."""
    found: list[str] = []
    waiting = [(name, 1) for name in _folders(root, "")]
    for looked, (path, level) in enumerate(waiting):
        if looked >= _FOLDERS:
            break
        for name in _names(f"{root}/{path}"):
            inside = f"{path}/{name}"
            if is_protected(name) and not name.endswith(".pth") and not os.path.islink(f"{root}/{inside}"):  # noqa: PTH114
                found.append(inside)
        if level < _LEVELS:
            waiting += [(inside, level + 1) for inside in _folders(root, path)]
    return found[:MOST_NESTED], max(len(found) - MOST_NESTED, 0)


def _folders(root: str, path: str) -> list[str]:
    top = f"{root}/{path}".rstrip("/")
    if os.path.exists(f"{top}/pyvenv.cfg"):  # noqa: PTH110
        return []
    names = [name for name in _names(top) if name not in _NOT_SEARCHED and not is_protected(name)]
    inside = [f"{path}/{name}".lstrip("/") for name in names]
    return [each for each in inside if os.path.isdir(f"{root}/{each}") and not os.path.islink(f"{root}/{each}")]  # noqa: PTH112, PTH114


def _names(path: str) -> list[str]:
    try:
        return sorted(os.listdir(path))  # noqa: PTH208
    except OSError:
        return []


def _place(path: str, root: str) -> str:
    full = os.path.normpath(os.path.join(root, path))  # noqa: PTH118
    if not os.path.exists(full):  # noqa: PTH110
        raise WorkspaceError(f"{path} is not there.", path=path, hint="A sandbox can only show what exists.")
    return full
