"""Configuration files: the user's, the project's, and env files that the user names.

A project's `windlass.toml` comes with a cloned repository, so it is not trusted: it may choose a model among the
user's, and limits, but never an address, a key, a header, a command or a place to write.
"""

from __future__ import annotations

import logging
import os
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from windlass.core.config import Config, Value, read_environment, typed
from windlass.core.errors import ConfigError, UnknownNameError
from windlass.core.models import override
from windlass.core.settings import SETTINGS

__all__ = ["config_home", "data_home", "default_files", "load_config", "read_env_file"]

log = logging.getLogger("windlass.config")
_TABLES = frozenset({"providers", "routes", "models"})
_PROVIDER_KEYS = frozenset(
    {"dialect", "base_url", "api_key", "model", "auth_header", "headers", "capabilities", "extra_body", "timeout"}
)
#: What no env file may set: what finds programs and libraries, and where we keep things.
_NEVER = ("PATH", "PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP", "WINDLASS_HOME", "HOME", "SHELL", "BASH_ENV", "ENV")
_NEVER_PREFIX = ("LD_", "DYLD_", "GIT_", "XDG_")
_MAX_FILE = 1 << 20


def load_config(
    *,
    flags: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] | None = None,
    files: tuple[tuple[Path, bool], ...] | None = None,
) -> Config:
    """Read the settings: `files` are (path, trusted), the strongest first; None means the usual two places.

    Raises ConfigError for a broken file (naming the line) or value, UnknownNameError for a key that is none.
    """
    environ = os.environ if environ is None else environ
    found, notices = read_environment(environ)
    values: dict[str, Value] = {}
    providers: dict[str, Any] = {}
    routes: dict[str, Any] = {}
    for key, value in (flags or {}).items():
        if value is not None:
            values[key] = Value(typed(SETTINGS[key], value, f"flag --{key.replace('_', '-')}"), f"flag --{key}")
    for key, value in found.items():
        values.setdefault(key, value)
    for path, trusted in default_files(environ) if files is None else files:
        if path.is_file():
            _take_file(path, trusted, values, providers, routes, notices)
    for notice in notices:
        log.warning("%s", notice)
    return Config(values, environ=environ, providers=providers, routes=routes, notices=tuple(notices))


def default_files(environ: Mapping[str, str]) -> tuple[tuple[Path, bool], ...]:
    """Return the project's file (not trusted) and the user's (trusted)."""
    return ((Path.cwd() / "windlass.toml", False), (config_home(environ) / "windlass.toml", True))


def _take_file(
    path: Path,
    trusted: bool,
    values: dict[str, Value],
    providers: dict[str, Any],
    routes: dict[str, Any],
    notices: list[str],
) -> None:
    data = _read_toml(path)
    for key, value in data.items():
        if key in _TABLES:
            if not trusted:
                notices.append(f"{path}: [{key}] is ignored: a project's file may not set it. Put it in your own file.")
            elif not isinstance(value, dict):
                raise ConfigError(f"{path}: {key} must be a table.")
            elif key == "providers":
                for name, table in value.items():
                    providers.setdefault(name, _provider_table(path, name, table))
            elif key == "routes":
                for name, target in value.items():
                    routes.setdefault(name, target)
            else:
                override(value)
        elif (setting := SETTINGS.get(key)) is None:
            raise UnknownNameError(f"key in {path}:", key, [*SETTINGS, *_TABLES])
        elif not trusted and not setting.project:
            notices.append(f"{path}: {key} is ignored: a project's file may not set it.")
        elif key not in values:
            values[key] = Value(typed(setting, value, f"{path}: {key}"), str(path))


def _provider_table(path: Path, name: str, table: Any) -> dict[str, Any]:
    if not isinstance(table, dict):
        raise ConfigError(f"{path}: providers.{name} must be a table.")
    for key in table:
        if key not in _PROVIDER_KEYS:
            raise UnknownNameError(f"key in {path} [providers.{name}]:", str(key), _PROVIDER_KEYS)
    return table


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"Cannot read {path}: {error.strerror}.") from error
    if len(raw) > _MAX_FILE:
        raise ConfigError(f"{path} is larger than 1 MiB.")
    try:
        return tomllib.loads(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: byte {error.start} is not UTF-8.") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: {error}.", hint="See https://toml.io for the format.") from None


def config_home(environ: Mapping[str, str] | None = None) -> Path:
    """Return the folder of the user's config file: WINDLASS_HOME, else XDG_CONFIG_HOME or ~/.config, and windlass."""
    return _home(environ, "XDG_CONFIG_HOME", ".config", "APPDATA")


def data_home(environ: Mapping[str, str] | None = None) -> Path:
    """Return the folder of what is kept: WINDLASS_HOME, else XDG_STATE_HOME or ~/.local/state, and windlass."""
    return _home(environ, "XDG_STATE_HOME", ".local/state", "LOCALAPPDATA")


def _home(environ: Mapping[str, str] | None, variable: str, fallback: str, windows: str) -> Path:
    env = os.environ if environ is None else environ
    if env.get("WINDLASS_HOME"):
        return Path(env["WINDLASS_HOME"]).expanduser()
    if sys.platform == "win32" and env.get(windows):
        return Path(env[windows]) / "windlass"
    base = env.get(variable)
    # The XDG specification: a relative path is to be ignored.
    if base and Path(base).is_absolute():
        return Path(base) / "windlass"
    return Path(env.get("HOME") or Path.home()) / fallback / "windlass"


def read_env_file(path: str | Path) -> tuple[dict[str, str], list[str]]:
    """Read a .env file that the user named; returns its variables and the names that were refused.

    Lines are `NAME=value`, `# comments` and blank; one pair of quotes around a value is stripped, `export ` too. Raises
    ConfigError for a missing or oversized file and for a line of another form, naming it.
    """
    path = Path(path)
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"Cannot read the env file {path}: {error.strerror}.") from error
    if len(raw) > _MAX_FILE:
        raise ConfigError(f"The env file {path} is larger than 1 MiB.")
    out: dict[str, str] = {}
    refused: list[str] = []
    for number, line in enumerate(raw.decode("utf-8", "replace").splitlines(), 1):
        text = line.strip().removeprefix("export ").strip()
        if not text or text.startswith("#"):
            continue
        name, equals, value = text.partition("=")
        name, value = name.strip(), value.strip()
        if not equals or not name.replace("_", "a").isalnum() or name[0].isdigit():
            raise ConfigError(f"{path}, line {number}: expected NAME=value, got {line.strip()[:60]!r}.")
        if len(value) >= 2 and value[0] == value[-1] and value[0] in "\"'":
            value = value[1:-1]
        if name in _NEVER or name.startswith(_NEVER_PREFIX):
            refused.append(name)
        else:
            out[name] = value
    return out, refused
