"""Decide what a path may look like, and which paths are protected; pure text, nothing is opened.

Every workspace uses these rules, so that a path means the same in memory and on disk: `..` is resolved in the text and
may not climb above the root, names are exact (no case folding, no Unicode normalisation, no expansion of `~` or `%2e`),
and what could mean another file than it says is refused.
"""

from __future__ import annotations

import errno
import os
import re
import unicodedata
from collections.abc import Sequence

from windlass.core.errors import PathEscape, WorkspaceError

__all__ = ["ACTING_NAMES", "MAX_NAME", "MAX_PATH", "clean", "is_protected", "shown"]

#: Bytes of one name and of a whole path that Linux takes (NAME_MAX, and PATH_MAX with its NUL).
MAX_NAME = 255
MAX_PATH = 4095

_STAY = "Use a path relative to the workspace root, with forward slashes."
# A URL, or a drive letter: on this side of the wire both are other places than they look. `a:b.txt` stays a name.
_ELSEWHERE = re.compile(r"file:|[a-z][a-z0-9+.-]*://|[a-z]:[\\/]", re.IGNORECASE)
_HOME = re.compile(r"~([A-Za-z_][A-Za-z0-9_-]*)?")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_WINDOWS_DEVICE = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|com[0-9¹²³]|lpt[0-9¹²³])([. ].*)?", re.IGNORECASE)
_WINDOWS_BAD = re.compile(r'[<>:"|?*\\]|[. ]$')


def shown(path: str) -> str:
    """Return a path as a message may show it: quoted, escapes visible, at most about 200 characters."""
    return repr(path if len(path) <= 200 else path[:197] + "…")


def clean(path: str, *, roots: Sequence[str] = (), windows: bool = False) -> str:
    """Return `path` relative to the workspace root: `a/b`, or `.` for the root itself.

    An absolute path is taken when it lies inside one of `roots` (absolute, normalised), compared name by name: `/ws`
    does not contain `/ws-evil/x`. `windows` also refuses what Windows would read as another file (drives, streams,
    devices, trailing dots, backslashes). A name that starts with `~` is taken when written `./~name`.

    Raises PathEscape for a path that leaves the root, `~`, URLs and drives; WorkspaceError for an empty path, control
    characters, names over 255 bytes, paths over 4095 bytes and text that cannot be a file name.
    """
    if not path:
        raise WorkspaceError("The path is empty.", path=path, hint="Use . for the workspace root.")
    if match := _CONTROL.search(path):
        char = f"U+{ord(match[0]):04X}"
        raise WorkspaceError(f"Path {shown(path)} holds the control character {char}.", path=path, hint=_STAY)
    if _ELSEWHERE.match(path) or _HOME.fullmatch(path.split("/", 1)[0]):
        raise PathEscape(f"Path {shown(path)} points outside the workspace.", path=path, hint=_STAY)
    inside = _below(path, roots) if path.startswith("/") or (windows and path.startswith("\\")) else path
    names: list[str] = []
    for name in inside.split("/"):
        if name == "..":
            if not names:
                raise PathEscape(f"Path {shown(path)} leaves the workspace.", path=path, hint=_STAY)
            names.pop()
        elif name not in ("", "."):
            _check_name(name, path, windows)
            names.append(name)
    clean_path = "/".join(names) or "."
    if len(clean_path.encode("utf-8", "surrogateescape")) > MAX_PATH:
        raise _too_long(path, f"is longer than {MAX_PATH} bytes")
    return clean_path


def _below(path: str, roots: Sequence[str]) -> str:
    # `..` is resolved first: /ws/../etc and //ws must not pass by their spelling.
    names: list[str] = []
    for name in path.split("/"):
        if name == "..":
            del names[-1:]
        elif name not in ("", "."):
            names.append(name)
    for root in roots:
        top = [name for name in root.split("/") if name]
        if names[: len(top)] == top:
            return "/".join(names[len(top) :]) or "."
    raise PathEscape(f"Path {shown(path)} is outside the workspace.", path=path, hint=_STAY)


def _check_name(name: str, path: str, windows: bool) -> None:
    try:
        size = len(name.encode("utf-8", "surrogateescape"))
    except UnicodeEncodeError:
        raise WorkspaceError(f"Path {shown(path)} is not valid text.", path=path, hint=_STAY) from None
    if size > MAX_NAME:
        raise _too_long(path, f"has a name of {size} bytes, {MAX_NAME} is the most")
    if windows and (_WINDOWS_BAD.search(name) or _WINDOWS_DEVICE.fullmatch(name)):
        raise WorkspaceError(f"Path {shown(path)} is not a file name on Windows.", path=path, hint=_STAY)


def _too_long(path: str, why: str) -> WorkspaceError:
    error = WorkspaceError(f"Path {shown(path)} {why}.", path=path, hint="Use shorter names.")
    error.__cause__ = OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
    return error


_GIT = "git's own files decide what git runs"
_SHELL = "shells run it at start"
_WINDLASS = "it configures Windlass itself"
_AGENT = "agents take their instructions and servers from it"
_EDITOR = "editors run tasks and commands from it"
_TOOL = "tools run commands or send credentials by it"
_PYTHON = "Python runs it at start"
_LOGIN = "it holds keys or decides who may log in"

#: Folders (and files of that name) whose content changes what will run later, with or without a click.
_FOLDERS: dict[str, str] = {
    ".git": _GIT,
    ".windlass": _WINDLASS,
    ".agents": _AGENT,
    ".claude": _AGENT,
    ".codex": _AGENT,
    ".cursor": _AGENT,
    ".vscode": _EDITOR,
    ".idea": _EDITOR,
    ".zed": _EDITOR,
    ".devcontainer": _EDITOR,
    ".husky": _GIT,
    ".direnv": _SHELL,
    ".ssh": _LOGIN,
    ".gnupg": _LOGIN,
    ".aws": _LOGIN,
}
#: Folders that only matter inside another one.
_NESTED: dict[tuple[str, str], str] = {
    (".config", "fish"): _SHELL,
    (".config", "git"): _GIT,
    (".config", "windlass"): _WINDLASS,
    (".config", "autostart"): _TOOL,
    (".config", "systemd"): _TOOL,
}
_FILES: dict[str, str] = {
    **dict.fromkeys((".gitconfig", ".gitmodules", ".pre-commit-config.yaml", "lefthook.yml"), _GIT),
    **dict.fromkeys(
        (
            ".envrc",
            *(".bashrc", ".bash_profile", ".bash_login", ".bash_logout", ".bash_aliases", ".profile", ".inputrc"),
            *(".zshrc", ".zshenv", ".zprofile", ".zlogin", ".zlogout", ".kshrc", ".cshrc", ".tcshrc", ".login"),
        ),
        _SHELL,
    ),
    **dict.fromkeys(("windlass.toml",), _WINDLASS),
    **dict.fromkeys(("agents.md", "claude.md", "gemini.md", ".mcp.json", ".cursorrules"), _AGENT),
    **dict.fromkeys((".vimrc", ".exrc", ".nvimrc", ".emacs", ".dir-locals.el", ".devcontainer.json"), _EDITOR),
    **dict.fromkeys((".npmrc", ".yarnrc", ".yarnrc.yml", ".pypirc", ".netrc", ".gdbinit", ".lldbinit"), _TOOL),
    **dict.fromkeys((".tmux.conf", ".xinitrc", ".xprofile", ".mise.toml"), _TOOL),
    **dict.fromkeys(("sitecustomize.py", "usercustomize.py"), _PYTHON),
}
_SUFFIXES: dict[str, str] = {".code-workspace": _EDITOR, ".pth": _PYTHON}


#: Protected names that act, in any folder, on whoever opens or enters it, as they are usually written.
ACTING_NAMES = (
    *(".git", ".windlass", ".agents", ".claude", ".codex", ".cursor", ".vscode", ".idea", ".husky", ".devcontainer"),
    *("AGENTS.md", "CLAUDE.md", "GEMINI.md", ".mcp.json", ".envrc", "windlass.toml"),
)


def is_protected(path: str) -> str | None:
    """Return why a write to `path` needs a person's yes even where edits are allowed, or None.

    Protected is what changes what runs later: `.git`, `.windlass`, agent instructions, shell start files, editor tasks.
    Works on the text alone, so also for files that do not exist yet, at any depth. Names compare without case, Unicode
    form, invisible characters and trailing dots or spaces, because some file systems ignore these
    (CVE-2014-9390, CVE-2019-1353). For a path through a link, ask about the path it leads to as well:
    `LocalWorkspace.real_path`.

    >>> is_protected("sub/.GIT/hooks/pre-commit")
    "git's own files decide what git runs"
    >>> is_protected("src/.gitignore") is None
    True
    """
    names: list[str] = []
    for raw in path.replace("\\", "/").split("/"):
        name = _folded(raw)
        if raw.strip() == "..":
            del names[-1:]
        elif name:
            names.append(name)
    for index, name in enumerate(names):
        reason = _FOLDERS.get(name) or (_NESTED.get((names[index - 1], name)) if index else None)
        if reason:
            return reason
    if not names:
        return None
    last = names[-1]
    return _FILES.get(last) or next((why for end, why in _SUFFIXES.items() if last.endswith(end)), None)


def _folded(name: str) -> str:
    # NTFS keeps an 8.3 alias (GIT~1) and opens streams by a colon (.git::$INDEX_ALLOCATION).
    if name.isascii():  # the same as below, ten times faster: whole folders are asked about around each command
        folded = name.lower().split(":", 1)[0].rstrip(". ")
        return ".git" if len(folded) == 5 and folded.startswith("git~") and folded[4].isdigit() else folded
    visible = "".join(char for char in unicodedata.normalize("NFKC", name) if unicodedata.category(char) != "Cf")
    folded = unicodedata.normalize("NFKC", visible.casefold()).split(":", 1)[0].rstrip(". ")
    return ".git" if re.fullmatch(r"git~[0-9]", folded) else folded
