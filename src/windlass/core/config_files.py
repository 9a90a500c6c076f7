"""Configuration files: the user's, the project's, and env files that the user names.

A project's `windlass.toml` comes with a cloned repository, so it is not trusted: it may choose a model among the
user's, and limits, but never an address, a key, a header, a command or a place to write.
"""

from __future__ import annotations

import os
import re
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from windlass.core.config import Config, PolicyTable, Value, read_environment, typed
from windlass.core.errors import ConfigError, UnknownNameError
from windlass.core.features import FEATURES
from windlass.core.models import override
from windlass.core.routes import read_routes
from windlass.core.settings import PROVIDERS, SETTINGS

__all__ = [
    "MANAGED",
    "config_home",
    "data_home",
    "default_files",
    "foreign_addresses",
    "load_config",
    "read_env_file",
    "switched_off",
]

_TABLES = frozenset({"providers", "routes", "models", "server", "policy", "features"})
#: Where whoever manages this machine states a policy for everybody on it; no variable moves it.
MANAGED = Path("/etc/windlass/windlass.toml")
#: What a [providers.NAME] table may hold, and of which type.
_PROVIDER_KEYS: dict[str, tuple[str, tuple[type, ...]]] = {
    **dict.fromkeys(("dialect", "base_url", "api_key", "model"), ("text", (str,))),
    **dict.fromkeys(("access", "refresh", "account_id", "credentials"), ("text", (str,))),
    **dict.fromkeys(("auth_header", "headers", "capabilities", "extra_body", "oauth"), ("a table", (dict,))),
    "timeout": ("a number of seconds", (int, float)),
    "expires": ("a time in seconds or milliseconds since 1970", (int, float)),
}
#: The same of [providers.local]; `windlass.providers.local_settings` says what each means.
_LOCAL_KEYS: dict[str, tuple[str, tuple[type, ...]]] = {
    **dict.fromkeys(("model", "backend", "base_url", "api_key"), ("text", (str,))),
    **dict.fromkeys(("slots", "context", "threads", "gpu_layers", "queue", "memory"), ("a whole number", (int,))),
    **dict.fromkeys(("idle_seconds", "load_timeout"), ("a number of seconds", (int, float))),
    **dict.fromkeys(("memory_map", "ignore_memory"), ("true or false", (bool,))),
    "adapters": ("a list", (list,)),
    "models": ("a table", (dict,)),
}
#: What no env file may set: what finds programs and libraries, where we keep things, and whom connections go through
#: or trust. Names are compared in upper case.
_NEVER = re.compile(
    r"(?:PATH|HOME|SHELL|ENV|BASH_ENV|IFS|TMPDIR|TEMP|TMP|APPDATA|LOCALAPPDATA|USERPROFILE|COMSPEC|SSLKEYLOGFILE"
    r"|WINDLASS_HOME|WINDLASS_STORE|WINDLASS_ACCOUNTS|WINDLASS_DEBUG|.*_PROXY|SSL_CERT_.*|.*_CA_BUNDLE"
    r"|(?:LD|DYLD|GIT|XDG|NODE|PERL|RUBY|BASH_FUNC)_.*|PYTHON.*)"
)
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_STRENGTH = ("managed", "user", "project")
_MAX_FILE = 1 << 20


def load_config(
    *,
    flags: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] | None = None,
    files: tuple[tuple[Path, bool], ...] | None = None,
    managed: Path | None = None,
) -> Config:
    """Read the settings: `files` are (path, trusted), the strongest first; None means the usual two places.

    `managed` (default: `MANAGED`) is the machine's own file, of which only `[policy]` is read, whatever `files` are.
    What a person should hear is in the result's `notices`; telling it is the caller's. Raises ConfigError for a broken
    file (naming the line) or value, UnknownNameError for a key that is none.
    """
    environ = os.environ if environ is None else environ
    found, notices = read_environment(environ)
    values: dict[str, Value] = {}
    providers: dict[str, Any] = {}
    routes: dict[str, Any] = {}
    server: dict[str, Any] = {}
    off: dict[str, str] = {}
    policies = _managed(MANAGED if managed is None else managed)
    for key, value in (flags or {}).items():
        if value is not None:
            values[key] = Value(typed(SETTINGS[key], value, f"flag --{key.replace('_', '-')}"), f"flag --{key}")
    for key, value in found.items():
        values.setdefault(key, value)
    for path, trusted in default_files(environ) if files is None else files:
        if path.is_file():
            data = _read_toml(path)
            if "policy" in data:
                policies.append(_policy(path, "user" if trusted else "project", data.pop("policy")))
            if trusted:
                off.update(_features(path, data.pop("features", {})))
            _take_file(path, data, trusted, values, providers, routes, server, notices)
    policies.sort(key=lambda each: _STRENGTH.index(each.layer))
    return Config(
        values,
        environ=environ,
        providers=providers,
        routes=routes,
        server=server,
        policies=tuple(policies),
        notices=tuple(notices),
        off=off,
    )


def switched_off(path: Path) -> dict[str, str]:
    """Return the features that a file of the user's switches off, each with the file. Raises as `load_config`."""
    return _features(path, _read_toml(path).get("features", {}))


def _features(path: Path, table: Any) -> dict[str, str]:
    if not isinstance(table, dict):
        raise ConfigError(f"{path}: features must be a table.")
    for name, on in table.items():
        if name not in FEATURES:
            raise UnknownNameError(f"key in {path} [features]:", str(name), FEATURES)
        if not isinstance(on, bool):
            raise ConfigError(f"{path}: features.{name} must be true or false.")
    return {str(name): str(path) for name, on in table.items() if not on}


def _managed(path: Path) -> list[PolicyTable]:
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise ConfigError(f"Cannot read {path}: {error.strerror}.") from error
    data = _read_toml(path)
    if data.keys() - {"policy"}:
        raise ConfigError(f"{path} may only hold [policy].", hint="It is for whoever manages this machine.")
    return [_policy(path, "managed", data["policy"])] if data else []


def _policy(path: Path, layer: Literal["managed", "user", "project"], table: Any) -> PolicyTable:
    if not isinstance(table, dict):
        raise ConfigError(f"{path}: policy must be a table.")
    return PolicyTable(layer, str(path), table)  # pyright: ignore[reportUnknownArgumentType] - TOML is untyped


def default_files(environ: Mapping[str, str]) -> tuple[tuple[Path, bool], ...]:
    """Return the project's file (not trusted) and the user's (trusted)."""
    try:
        here = Path.cwd()
    except FileNotFoundError:
        raise ConfigError("The current folder is gone.", hint="Change to one that exists.") from None
    return ((here / "windlass.toml", False), (config_home(environ) / "windlass.toml", True))


def _take_file(
    path: Path,
    data: dict[str, Any],
    trusted: bool,
    values: dict[str, Value],
    providers: dict[str, Any],
    routes: dict[str, Any],
    server: dict[str, Any],
    notices: list[str],
) -> None:
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
                for name, route in read_routes(value, str(path)).items():
                    routes.setdefault(name, route)
            elif key == "server":
                for name, row in value.items():
                    server.setdefault(name, row)
            else:
                override(value)
        elif (setting := SETTINGS.get(key)) is None:
            raise UnknownNameError(f"key in {path}:", key, [*SETTINGS, *_TABLES])
        elif not trusted and not setting.project:
            notices.append(f"{path}: {key} is ignored: a project's file may not set it.")
        elif not trusted and _points_elsewhere(key, str(value)):
            notices.append(f"{path}: {key} is ignored: a project's file may name what you have, not load a file.")
        elif key not in values:
            values[key] = Value(typed(setting, value, f"{path}: {key}"), str(path))


def _points_elsewhere(key: str, value: str) -> bool:
    """Tell whether a value would import a module (`pkg.mod:attr`) or open a model file."""
    if key == "tools":
        return ":" in value
    return key == "model" and value.endswith(".gguf")


def _provider_table(path: Path, name: str, table: Any) -> dict[str, Any]:
    if not isinstance(table, dict):
        raise ConfigError(f"{path}: providers.{name} must be a table.")
    known = _LOCAL_KEYS if name == "local" else _PROVIDER_KEYS
    for key, value in table.items():
        if key not in known:
            raise UnknownNameError(f"key in {path} [providers.{name}]:", str(key), known)
        what, types = known[key]
        if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
            raise ConfigError(f"{path}: providers.{name}.{key} must be {what}.")
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
    try:
        return Path(env.get("HOME") or Path.home()) / fallback / "windlass"
    except RuntimeError:
        raise ConfigError("This user has no home folder.", hint="Set WINDLASS_HOME to a folder of yours.") from None


def read_env_file(path: str | Path) -> tuple[dict[str, str], list[str]]:
    """Read a .env file that the user named; returns its variables and the names that were refused.

    Lines are `NAME=value`, `# comments` and blank; one pair of quotes around a value is stripped, `export ` too. What
    finds programs, folders, proxies or certificates is refused. Raises ConfigError for a missing or oversized file and
    for a line of another form, naming its number but not its text, which may be half of a key.
    """
    try:
        with open(path, "rb") as file:
            raw = file.read(_MAX_FILE + 1)
    except OSError as error:
        raise ConfigError(f"Cannot read the env file {path}: {error.strerror}.") from error
    if len(raw) > _MAX_FILE:
        raise ConfigError(f"The env file {path} is larger than 1 MiB.")
    out: dict[str, str] = {}
    refused: list[str] = []
    for number, line in enumerate(raw.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        try:
            text = line.decode("utf-8").strip()
        except UnicodeDecodeError:
            raise ConfigError(f"{path}, line {number}: it is not UTF-8 text.") from None
        if not text or text.startswith("#"):
            continue
        name, equals, value = text.partition("=")
        name, value = name.strip(), value.strip()
        if name.startswith(("export ", "export\t")):
            name = name[7:].strip()
        if not equals or not _NAME.fullmatch(name) or "\0" in value:
            raise ConfigError(f"{path}, line {number}: expected NAME=value.")
        if len(value) >= 2 and value[0] == value[-1] and value[0] in "\"'":
            value = value[1:-1]
        if _NEVER.fullmatch(name.upper()):
            refused.append(name)
        else:
            out[name] = value
    return out, refused


def foreign_addresses(named: Mapping[str, str], config: Config) -> list[str]:
    """Return the variables of an env file that would send a key of the user's to an address of the file's.

    `named` is what the file sets, `config` the settings without it. An address is taken where the file brings the
    key along, or where there is none to lose.
    """
    found: list[str] = []
    for name, vendor in PROVIDERS.items():
        addresses = [*vendor.base_url, *vendor.extra.get("refresh_url", ())]
        settings = config.provider_settings(name)
        # A login that is kept is bound to its address by itself.
        own = settings.api_key or "access" in settings.table or "credentials" in settings.table
        if own and not any(key in named for key in vendor.api_key):
            found.extend([address for address in addresses if address in named])
    return found
