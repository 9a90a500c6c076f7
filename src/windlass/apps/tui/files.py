"""Which files there are, for completion: what git tracks or would, else a walk that honours .gitignore."""

from __future__ import annotations

import fnmatch
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from windlass.core import clock

__all__ = ["FileIndex", "listed", "matching", "walked"]

_MOST = 50_000
_STALE = 5.0
_SKIPPED = frozenset({".git", ".hg", ".svn", "node_modules", "__pycache__", ".venv", ".mypy_cache", ".tox"})
#: No setting of the repository may start a program: it is not trusted.
_GIT = (
    "git", "-c", "core.fsmonitor=false", "-c", "core.untrackedCache=false", "-c", "core.hooksPath=/dev/null",
    "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--deduplicate",
)  # fmt: skip


class FileIndex:
    """The files of a folder, read anew when they are older than five seconds."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files: list[str] = []
        self._read = float("-inf")

    def files(self) -> list[str]:
        """Return the paths, relative, with forward slashes."""
        if clock.monotonic() - self._read > _STALE:
            self._files = listed(self.folder)
            self._read = clock.monotonic()
        return self._files


def listed(folder: Path) -> list[str]:
    """Return up to 50,000 files of a folder; nothing of the repository's is executed."""
    environ = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    environ["GIT_OPTIONAL_LOCKS"] = "0"
    # A `git` that lies in the folder itself, or on a relative PATH, is not ours.
    places = [place for place in os.get_exec_path() if Path(place).is_absolute() and not _inside(place, folder)]
    git = shutil.which(_GIT[0], path=os.pathsep.join(places))
    if git is None:
        return walked(folder)
    try:
        done = subprocess.run(
            (git, *_GIT[1:]), cwd=folder, capture_output=True, timeout=5, env=environ, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired):
        return walked(folder)
    if done.returncode != 0:
        return walked(folder)
    names = [name.decode("utf-8", "surrogateescape") for name in done.stdout.split(b"\0") if name]
    return [name for name in names if _shown(name)][:_MOST]


def _inside(place: str, folder: Path) -> bool:
    return Path(place).resolve().is_relative_to(folder.resolve())


def walked(folder: Path) -> list[str]:
    """Return the files of a folder that is no repository, without what its .gitignore files name."""
    out: list[str] = []
    for path in _walk(folder, "", []):
        out.append(path)
        if len(out) >= _MOST:
            break
    return out


def _walk(folder: Path, prefix: str, rules: list[tuple[str, str]]) -> Iterator[str]:
    rules = [*rules, *_rules(folder / ".gitignore", prefix)]
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:
        return  # it went away, or may not be read: nothing of it can be completed
    folders: list[os.DirEntry[str]] = []
    for entry in entries:
        path = f"{prefix}{entry.name}"
        is_folder = entry.is_dir(follow_symlinks=False)
        if entry.name in _SKIPPED or not _shown(path) or _ignored(path, is_folder, rules):
            continue
        if is_folder:
            folders.append(entry)
        else:
            yield path
    for entry in folders:
        yield from _walk(Path(entry.path), f"{prefix}{entry.name}/", rules)


def _rules(file: Path, prefix: str) -> list[tuple[str, str]]:
    try:
        text = file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    lines = [line.rstrip() for line in text.splitlines()]
    return [(prefix, line) for line in lines if line and not line.startswith("#")]


def _ignored(path: str, is_folder: bool, rules: Sequence[tuple[str, str]]) -> bool:
    """Apply the rules in their order, the last that matches wins (gitignore(5), without its character classes)."""
    ignored = False
    for prefix, rule in rules:
        wanted, negated = (rule[1:], True) if rule.startswith("!") else (rule, False)
        if wanted.endswith("/") and not is_folder:
            continue
        wanted = wanted.rstrip("/")
        inside = path[len(prefix) :]
        if "/" in wanted:
            hit = fnmatch.fnmatchcase(inside, wanted.lstrip("/").replace("**/", "*"))
        else:
            hit = fnmatch.fnmatchcase(inside.rpartition("/")[2], wanted)
        if hit:
            ignored = not negated
    return ignored


def _shown(name: str) -> bool:
    """A name with controls or half characters cannot be typed, and would be a command to the terminal."""
    return name.isprintable()


def matching(files: Sequence[str], typed: str, most: int = 50) -> list[str]:
    """Return the files that fit what was typed: start of the name, then of the path, a part of it, scattered letters.

    >>> matching(["src/app.py", "tests/test_app.py", "docs/a_p_p.md"], "app")
    ['src/app.py', 'tests/test_app.py', 'docs/a_p_p.md']
    """
    wanted = typed.lower()
    ranked: list[tuple[int, int, str]] = []
    for path in files:
        low = path.lower()
        name = low.rpartition("/")[2]
        if name.startswith(wanted):
            rank = 0
        elif low.startswith(wanted):
            rank = 1
        elif wanted in low:
            rank = 2
        elif _scattered(low, wanted):
            rank = 3
        else:
            continue
        ranked.append((rank, len(path), path))
    return [path for _, _, path in sorted(ranked)[:most]]


def _scattered(text: str, letters: str) -> bool:
    rest = iter(text)
    return all(letter in rest for letter in letters)
