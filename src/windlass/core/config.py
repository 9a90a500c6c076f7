"""Settings: flags over environment over the project's file over the user's, each value with its origin.

A project's `windlass.toml` comes with a cloned repository, so it is not trusted: it may choose a model among the
user's, and limits, but never an address, a key, a header, a command or a place to write.
"""

from __future__ import annotations

import logging
import math
import os
import re
from collections.abc import Callable, Mapping
from typing import Any, Literal

from msgspec import Struct, field

from windlass.core.errors import ConfigError, MissingKeyError, UnknownNameError
from windlass.core.features import FeatureOff
from windlass.core.routes import RouteSettings, check_circles, read_routes
from windlass.core.settings import ALIASES, OWN_AUTO, PROVIDERS, SAME_ACCOUNT, SETTINGS, Setting

__all__ = ["Config", "PolicyTable", "ProviderSettings", "Value", "conflict", "read_environment", "typed"]

log = logging.getLogger("windlass.config")
#: Providers without variables of their own.
_OWN = ("local", "echo", "fault")
#: What follows the colon in Ollama's "qwen:7b" is a tag of that model, not a model of a provider.
_TAG = re.compile(r"\d.*|latest")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
#: How the names of a vendor's further secrets end.
_SECRET = ("_ACCESS_KEY_ID", "_SECRET_ACCESS_KEY", "_SESSION_TOKEN")


class Value(Struct, frozen=True):
    """A setting's value and where it came from: `flag --model`, `env OPENAI_MODEL`, a file's path, `default`."""

    value: Any
    origin: str


class PolicyTable(Struct, frozen=True):
    """A `[policy]` table as a file states it, and whose file that is."""

    layer: Literal["managed", "user", "project"]
    origin: str
    table: Mapping[str, Any]


class ProviderSettings(Struct, frozen=True):
    """What the user says of one vendor; `extra` holds its own settings (referer, organization, …)."""

    name: str
    base_url: str | None = None
    api_key: str | None = None
    key_names: tuple[str, ...] = ()
    model: str | None = None
    table: Mapping[str, Any] = field(default_factory=dict[str, Any])
    extra: Mapping[str, str] = field(default_factory=dict[str, str])

    def __repr__(self) -> str:
        # The key, the table and the address may hold secrets; a representation ends up in logs.
        return f"ProviderSettings({self.name!r})"

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
        server: Mapping[str, Any] | None = None,
        policies: tuple[PolicyTable, ...] = (),
        notices: tuple[str, ...] = (),
        off: Mapping[str, str] | None = None,
    ) -> None:
        self.environ: Mapping[str, str] = os.environ if environ is None else environ
        self._values = dict(values or {})
        self.user_providers = {name: dict(table) for name, table in (providers or {}).items()}
        self.routes: dict[str, RouteSettings] = read_routes(routes) if routes else {}
        check_circles(self.routes)
        #: The `[server]` table as it is written; the server reads it.
        self.server = dict(server or {})
        #: The `[policy]` tables as they are written, the strongest first; the agent's policy reads them.
        self.policies = policies
        #: What a person should hear: conflicting variables, refused project settings.
        self.notices = notices
        #: The features that are switched off, each with the file that says so.
        self.off = dict(off or {})
        self._made: dict[str, Any] = {}
        self._keys: dict[str, str] = {}

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] | None = None) -> Config:
        """Return the settings that environment variables give; no file is read."""
        environ = os.environ if environ is None else environ
        values, notices = read_environment(environ)
        for notice in notices:
            log.warning("%s", notice)
        return cls(values, environ=environ, notices=tuple(notices))

    def with_key(self, provider: str, key: str) -> Config:
        """Return these settings with a key for one provider, which wins over files and environment."""
        made = Config(
            self._values,
            environ=self.environ,
            providers=self.user_providers,
            routes=self.routes,
            server=self.server,
            policies=self.policies,
            notices=self.notices,
            off=self.off,
        )
        made._keys = {**self._keys, provider: key}
        return made

    def require(self, feature: str) -> None:
        """Raise FeatureOff where a feature is switched off."""
        if feature in self.off:
            raise FeatureOff(feature, self.off[feature])

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
        """The model where none is named: `model`, else `provider` with its own default, else the embedded one.

        A `model` that names no provider and no route is one of the `provider` that was chosen: `groq` and
        `llama-3.3-70b` are `groq:llama-3.3-70b`.
        """
        model, provider = self.get("model"), self.where("provider")
        if not model or _is_auto(model):
            return str(provider.value)
        known = model in self.routes or self.knows(str(model).partition(":")[0])
        return str(model) if known or provider.origin == "default" else f"{provider.value}:{model}"

    def knows(self, provider: str) -> bool:
        """Tell whether a name or alias is that of a vendor, a provider of the user's, or one of our own."""
        name = self.provider_name(provider)
        return name in PROVIDERS or name in SAME_ACCOUNT or name in self.user_providers or name in _OWN

    def provider_name(self, name: str) -> str:
        """Return a provider's own name for one of its aliases, in any case: `Claude` is `anthropic`.

        The user's `[providers]` come first, as they are written; a name that is none is returned as it is.
        """
        name = name.strip()
        if name in self.user_providers:
            return name
        known = {own.lower(): own for own in (*self.user_providers, *PROVIDERS, *SAME_ACCOUNT, *_OWN)}
        return known.get(name.lower()) or ALIASES.get(name.lower()) or name

    def alias(self, name: str) -> str:
        """Return the "provider:model-id" that a name stands for: of a route, its first target.

        Aliases of providers are resolved, `auto` is the default model, and "provider:auto" that provider's own default:
        the bare provider. A name that is none of these is returned as it is.
        """
        name = self._stated(name)
        while (route := self.routes.get(name)) is not None:
            name = route.targets[0].model
        head, _, model = name.partition(":")
        provider, model = self.provider_name(head), model.strip()
        if not self.knows(provider):
            return name
        if _is_auto(model):
            model = OWN_AUTO.get(provider, "")
        elif head.strip().lower() == "qwen" and provider == "ollama" and _TAG.fullmatch(model):
            model = f"qwen:{model}"
        return f"{provider}:{model}" if model else provider

    def routed(self, name: str) -> str | None:
        """Return the name of the route that requests for a name take; None where it only stands for one model."""
        name = self._stated(name)
        while (route := self.routes.get(name)) is not None and route.plain:
            name = route.targets[0].model
        return name if name in self.routes else None

    def _stated(self, name: str) -> str:
        name = name.strip()
        return self.default_model if name not in self.routes and _is_auto(name) else name

    def provider(self, name: str, make: Callable[[], Any]) -> Any:
        """Return the provider of that name, made at first use."""
        if name not in self._made:
            self._made[name] = make()
        return self._made[name]

    def provider_settings(self, name: str) -> ProviderSettings:
        """Return what files and environment say of a vendor; a key `env:NAME` is read from that variable."""
        table = self.user_providers.get(name, {})
        owner = SAME_ACCOUNT.get(name, name)
        env = PROVIDERS.get(owner)
        key_names = env.api_key if env else (f"WINDLASS_{name.upper().replace('-', '_')}_API_KEY",)
        both = {**self.user_providers.get(owner, {}), **table}
        # An access token that the user states comes before a key of the environment, as in reference C.
        login = "access" in both and "api_key" not in both
        key = self._keys.get(name) or (None if login else self._first(key_names))
        stated = both.get("api_key")
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


def _is_auto(model: Any) -> bool:
    return str(model).strip().lower() == "auto"


def read_environment(environ: Mapping[str, str]) -> tuple[dict[str, Value], list[str]]:
    """Return the settings that variables give, and a notice for every two variables that contradict each other.

    Raises ConfigError naming the variable whose value does not fit.
    """
    values: dict[str, Value] = {}
    notices: list[str] = []
    for setting in SETTINGS.values():
        found = [(name, environ[name]) for name in setting.env if environ.get(name)]
        if found:
            values[setting.key] = Value(typed(setting, found[0][1], found[0][0]), f"env {found[0][0]}")
        notices.extend(conflict(found))
    for vendor in PROVIDERS.values():
        for names in (vendor.api_key, vendor.base_url, vendor.model, *vendor.extra.values()):
            secret = names is vendor.api_key or names[0].endswith(_SECRET)
            notices.extend(conflict([(name, environ[name]) for name in names if environ.get(name)], secret=secret))
    return values, notices


def conflict(found: list[tuple[str, str]], *, secret: bool = False) -> list[str]:
    """Return a notice where (variable, value) pairs of one setting differ, else nothing; secret values are not told."""
    if len({value for _, value in found}) < 2:
        return []
    (first, value), *rest = found
    other, differs = next((name, text) for name, text in rest if text != value)
    # An address may carry a user and a password.
    shown = "" if secret or "@" in value + differs else f" ({value!r} and {differs!r})"
    return [f"{first} and {other} are both set and differ{shown}; {first} is used."]


def typed(setting: Setting, value: Any, origin: str) -> Any:
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
            return number if 0 <= number < math.inf else _refuse()
        if not isinstance(value, (str, os.PathLike)) or _CONTROL.search(str(value)):
            _refuse()
        return os.path.expanduser(str(value)) if kind == "path" else str(value)  # noqa: PTH111 - pathlib costs more to import than this module
    except (ValueError, TypeError):
        article = {
            "int": "a positive whole number",
            "float": "a finite number, not negative",
            "str": _TEXT,
            "path": _TEXT,
        }[kind]
        raise ConfigError(f"{origin} is {value!r}; {setting.key} must be {article}.") from None


#: A line end would let a value end a header, a log line or a row of a list.
_TEXT = "text without control characters"


def _refuse() -> Any:
    raise ValueError
