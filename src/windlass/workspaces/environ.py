"""Decide what a command sees of our environment: a short list of harmless names, never a key, never a hook."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping

from windlass.core.errors import WorkspaceError

__all__ = ["clean_env", "find_program", "safe_path"]

#: Names a command gets from our own environment. None of them is a credential or makes a program run another.
_ALLOWED_NAMES = (
    "PATH HOME USER LOGNAME SHELL LANG LANGUAGE TZ TMPDIR "
    "XDG_CACHE_HOME XDG_CONFIG_HOME XDG_DATA_HOME XDG_STATE_HOME "
    # where toolchains live
    "VIRTUAL_ENV CONDA_PREFIX PYENV_ROOT RBENV_ROOT NVM_DIR JAVA_HOME GOPATH GOROOT CARGO_HOME RUSTUP_HOME "
    "SSL_CERT_FILE SSL_CERT_DIR "
    # Windows programs do not start without these
    "SYSTEMROOT SYSTEMDRIVE WINDIR COMSPEC PATHEXT TEMP TMP USERNAME USERPROFILE HOMEDRIVE HOMEPATH APPDATA "
    "LOCALAPPDATA PROGRAMDATA PROGRAMFILES PROGRAMFILES(X86) NUMBER_OF_PROCESSORS PROCESSOR_ARCHITECTURE"
)
_ALLOWED = frozenset(_ALLOWED_NAMES.split())
_ALLOWED_PREFIXES = ("LC_",)

#: Names that make a loader, interpreter, shell, git, ssh or pager run code or load files of somebody's choice: they
#: are dropped also when the caller gives them, because the caller's values may come from a project's config.
_INJECTED_NAMES = (
    "BASH_ENV ENV SHELLOPTS BASHOPTS PROMPT_COMMAND PS0 PS1 PS2 PS4 IFS CDPATH GLOBIGNORE ZDOTDIR "
    "PYTHONSTARTUP PYTHONPATH PYTHONHOME PYTHONINSPECT PYTHONBREAKPOINT PYTHONUSERBASE PYTHONWARNINGS "
    "PYTHONPLATLIBDIR PYTHONPYCACHEPREFIX NODE_OPTIONS NODE_PATH NODE_REPL_EXTERNAL_MODULE PERL5LIB PERL5OPT PERL5DB "
    "PERLLIB RUBYOPT RUBYLIB JAVA_TOOL_OPTIONS _JAVA_OPTIONS JDK_JAVA_OPTIONS CLASSPATH LUA_INIT LUA_PATH LUA_CPATH "
    "R_PROFILE R_ENVIRON R_PROFILE_USER R_ENVIRON_USER RUSTC_WRAPPER RUSTC_WORKSPACE_WRAPPER MAKEFLAGS "
    "GIT_SSH GIT_SSH_COMMAND GIT_ASKPASS GIT_EDITOR GIT_SEQUENCE_EDITOR GIT_EXTERNAL_DIFF GIT_PROXY_COMMAND "
    "GIT_EXEC_PATH GIT_TEMPLATE_DIR SSH_ASKPASS SUDO_ASKPASS EDITOR VISUAL BROWSER PAGER GIT_PAGER MANPAGER "
    "LESSOPEN LESSCLOSE LESSKEYIN GCONV_PATH LOCPATH NLSPATH HOSTALIASES RES_OPTIONS TERMINFO TERMINFO_DIRS "
    "OPENSSL_CONF OPENSSL_ENGINES OPENSSL_MODULES GTK_MODULES QT_PLUGIN_PATH"
)
_INJECTED = frozenset(_INJECTED_NAMES.split())
_INJECTED_PREFIXES = ("LD_", "DYLD_", "BASH_FUNC_", "GIT_CONFIG", "npm_config_", "NPM_CONFIG_", "MALLOC_", "GLIBC_")

#: Set for every command: no colours, no pager that waits for a key, no password prompt.
_FORCED = {"TERM": "dumb", "PAGER": "cat", "GIT_PAGER": "cat", "GIT_TERMINAL_PROMPT": "0"}

#: Folders that belong to the system, also when the workspace is `/` or `/usr`.
_SYSTEM = frozenset(("/bin", "/sbin", "/usr/bin", "/usr/sbin", "/usr/local/bin", "/usr/local/sbin"))


def clean_env(base: Mapping[str, str], extra: Mapping[str, str] | None = None, *, cwd: str = "") -> dict[str, str]:
    """Return the environment of a command: the allowed names of `base`, then `extra`, then the forced ones.

    `extra` may add any name, a key too when a tool needs one, but not the injected ones (LD_PRELOAD, BASH_ENV,
    PYTHONPATH, GIT_SSH_COMMAND and their like). PATH loses what is relative or lies in `cwd`, so that nothing planted
    in the workspace runs by its bare name. Proxy variables are not passed on: they may hold a password.

    Raises WorkspaceError for a name that is empty or holds `=` or NUL, and for a value with NUL.
    """
    env = {name: value for name, value in base.items() if _is_allowed(name) and "\0" not in value}
    for name, value in (extra or {}).items():
        if not name or "=" in name or "\0" in name or "\0" in value:
            raise WorkspaceError(f"{name!r} cannot be an environment variable: a bad name, or a NUL in it.")
        if not _is_injected(name):
            env[name] = value
    env["PATH"] = safe_path(env.get("PATH", ""), cwd)
    return env | _FORCED


def safe_path(path: str, cwd: str) -> str:
    """Return the PATH `path` without relative folders and folders inside `cwd`; the system's own when none is left."""
    inside = _inside(cwd)
    kept = [each for each in path.split(os.pathsep) if os.path.isabs(each) and (_is_system(each) or not inside(each))]  # noqa: PTH117
    return os.pathsep.join(kept) or os.defpath.lstrip(f".{os.pathsep}")


def find_program(names: Iterable[str], path: str, cwd: str) -> str | None:
    """Return the first of `names` that is an executable file on `path`, outside `cwd`; None when there is none."""
    inside = _inside(cwd)
    folders = safe_path(path, cwd).split(os.pathsep)
    for name in names:
        for folder in folders:
            found = f"{folder}{os.sep}{name}"
            if not (os.path.isfile(found) and os.access(found, os.X_OK)):  # noqa: PTH113
                continue
            if _is_system(folder) or not inside(found):
                return found
    return None


def _is_allowed(name: str) -> bool:
    known = name.upper() if os.name == "nt" else name
    return known in _ALLOWED or known.startswith(_ALLOWED_PREFIXES)


def _is_injected(name: str) -> bool:
    known = name.upper() if os.name == "nt" else name
    return known in _INJECTED or known.startswith(_INJECTED_PREFIXES)


def _is_system(folder: str) -> bool:
    return os.path.normpath(folder) in _SYSTEM


def _inside(cwd: str) -> Callable[[str], bool]:
    """Return the question whether a path, or what it links to, lies in `cwd`."""
    starts = tuple(root.rstrip("/\\") + os.sep for root in (os.path.normpath(cwd), os.path.realpath(cwd)) if cwd)
    return lambda path: any(
        f"{each}{os.sep}".startswith(starts) for each in (os.path.normpath(path), os.path.realpath(path))
    )
