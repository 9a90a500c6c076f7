"""Settings: flags over environment over the project's file over the user's, each value with its origin.

A project's `windlass.toml` comes with a cloned repository, so it is not trusted: it may choose a model among the
user's, and limits, but never an address, a key, a header, a command or a place to write.
"""

from __future__ import annotations

import logging
import os
import sys
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from msgspec import Struct, field

from windlass.core.errors import ConfigError, MissingKeyError, UnknownNameError
from windlass.core.models import override
from windlass.core.settings import PROVIDERS, SETTINGS, Setting

__all__ = ["Config", "ProviderSettings", "Value", "config_home", "data_home", "load_config", "read_env_file"]

log = logging.getLogger("windlass.config")
_TABLES = frozenset({"providers", "routes", "models"})
_PROVIDER_KEYS = frozenset(
    {"dialect", "base_url", "api_key", "model", "auth_header", "headers", "capabilities", "extra_body", "timeout"}
)
#: What no env file may set: what finds programs and libraries, and where we keep things.
_NEVER = ("PATH", "PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP", "WINDLASS_HOME", "HOME", "SHELL", "BASH_ENV", "ENV")
_NEVER_PREFIX = ("LD_", "DYLD_", "GIT_", "XDG_")
_MAX_FILE = 1 << 20


class Value(Struct, frozen=True):
    """A setting's value and where it came from: `flag --model`, `env OPENAI_MODEL`, a file's path, `default`."""

    value: Any
    origin: str


class ProviderSettings(Struct, frozen=True):
    """What the user says of one vendor; `extra` holds its own settings (referer, organization, …)."""

    name: str
    base_url: str | None = None
    api_key: str | None = None
    key_names: tuple[str, ...] = ()
    model: str | None = None
    table: Mapping[str, Any] = field(default_factory=dict[str, Any])
    extra: Mapping[str, str] = field(default_factory=dict[str, str])

    def require_key(self) -> str:
        """Return the key. Raises MissingKeyError that names the variable and the argument."""
        if self.api_key:
            return self.api_key
        names = [name for name in self.key_names if not name.startswith(("WINDLASS_", "ABI_"))] or list(self.key_names)
        names = names or [f"WINDLASS_{self.name.upper()}_API_KEY"]
        raise MissingKeyError(
            f"No API key for provider {self.name!r}.",
            hint=f"Set {names[0]}, or api_key in [providers.{self.name}] of your own config file, or pass api_key=….",
        )


class Config:
    """The settings of one program. Providers made from it are kept with it, so that connections are shared."""

    def __init__(
        self,
        values: Mapping[str, Value] | None = None,
        *,
        environ: Mapping[str, str] | None = None,
        providers: Mapping[str, Mapping[str, Any]] | None = None,
        routes: Mapping[str, Any] | None = None,
        notices: tuple[str, ...] = (),
    ) -> None:
        self.environ: Mapping[str, str] = os.environ if environ is None else environ
        self._values = dict(values or {})
        self.user_providers = {name: dict(table) for name, table in (providers or {}).items()}
        self.routes = dict(routes or {})
        #: What a person should hear: conflicting variables, refused project settings.
        self.notices = notices
        self._made: dict[str, Any] = {}

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] | None = None) -> Config:
        """Return the settings that environment variables give; no file is read."""
        return load_config(environ=environ, files=())

    def get(self, key: str) -> Any:
        """Return a setting's value. Raises UnknownNameError."""
        return self.where(key).value

    def where(self, key: str) -> Value:
        """Return a setting with its origin. Raises UnknownNameError."""
        if key not in SETTINGS:
            raise UnknownNameError("config key", key, SETTINGS)
        return self._values.get(key) or Value(SETTINGS[key].default, "default")

    def all(self) -> dict[str, Value]:
        """Return every setting with its origin."""
        return {key: self.where(key) for key in SETTINGS}

    @property
    def default_model(self) -> str:
        """The model where none is named: `model`, else `provider` with its own default, else the embedded one."""
        return str(self.get("model") or self.get("provider"))

    def alias(self, name: str) -> str:
        """Return the model that a route's name stands for; the first target counts (routing is the gateway's)."""
        target = self.routes.get(name)
        return target if isinstance(target, str) else str(target[0]) if target else name

    def provider(self, name: str, make: Callable[[], Any]) -> Any:
        """Return the provider of that name, made at first use."""
        if name not in self._made:
            self._made[name] = make()
        return self._made[name]

    def provider_settings(self, name: str) -> ProviderSettings:
        """Return what files and environment say of a vendor; a key `env:NAME` is read from that variable."""
        table = self.user_providers.get(name, {})
        env = PROVIDERS.get(name)
        key_names = env.api_key if env else (f"WINDLASS_{name.upper()}_API_KEY",)
        key = self._first(key_names)
        stated = table.get("api_key")
        if key is None and isinstance(stated, str):
            key_names = (stated[4:],) if stated.startswith("env:") else key_names
            key = self.environ.get(stated[4:]) if stated.startswith("env:") else stated
        extra = {} if env is None else {k: v for k, names in env.extra.items() if (v := self._first(names))}
        return ProviderSettings(
            name,
            (self._first(env.base_url) if env else None) or table.get("base_url"),
            key,
            key_names,
            (self._first(env.model) if env else None) or table.get("model"),
            table,
            extra,
        )

    def _first(self, names: tuple[str, ...]) -> str | None:
        return next((value for name in names if (value := self.environ.get(name))), None)


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
    notices: list[str] = []
    values: dict[str, Value] = {}
    providers: dict[str, Any] = {}
    routes: dict[str, Any] = {}
    for key, value in (flags or {}).items():
        if value is not None:
            values[key] = Value(_typed(SETTINGS[key], value, f"flag --{key.replace('_', '-')}"), f"flag --{key}")
    for setting in SETTINGS.values():
        found = [(name, environ[name]) for name in setting.env if environ.get(name)]
        if found and setting.key not in values:
            values[setting.key] = Value(_typed(setting, found[0][1], found[0][0]), f"env {found[0][0]}")
        notices.extend(_conflict(found))
    for vendor in PROVIDERS.values():
        for names in (vendor.api_key, vendor.base_url, vendor.model, *vendor.extra.values()):
            notices.extend(
                _conflict(
                    [(name, environ[name]) for name in names if environ.get(name)], secret=names is vendor.api_key
                )
            )
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
            values[key] = Value(_typed(setting, value, f"{path}: {key}"), str(path))


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


def _conflict(found: list[tuple[str, str]], *, secret: bool = False) -> list[str]:
    if len({value for _, value in found}) < 2:
        return []
    (first, value), *rest = found
    other, differs = next((name, text) for name, text in rest if text != value)
    shown = "" if secret else f" ({value!r} and {differs!r})"
    return [f"{first} and {other} are both set and differ{shown}; {first} is used."]


def _typed(setting: Setting, value: Any, origin: str) -> Any:
    """Convert a value to the setting's type. Raises ConfigError that names the origin."""
    kind = setting.kind
    try:
        if kind == "bool":
            # Reference A: these four are false, anything else is true.
            return value if isinstance(value, bool) else str(value).strip().lower() not in ("", "0", "false", "no")
        if kind == "int":
            number = int(value) if not isinstance(value, (float, bool)) else _refuse()
            return number if number > 0 else _refuse()
        if kind == "float":
            number = float(value) if not isinstance(value, bool) else _refuse()
            return number if number >= 0 else _refuse()
        if not isinstance(value, (str, Path)):
            _refuse()
        return str(Path(value).expanduser()) if kind == "path" else str(value)
    except (ValueError, TypeError):
        article = {"int": "a positive whole number", "float": "a number, not negative", "str": "text"}.get(kind, kind)
        raise ConfigError(f"{origin} is {value!r}; {setting.key} must be {article}.") from None


def _refuse() -> Any:
    raise ValueError


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
