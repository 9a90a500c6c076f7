"""The `[routes]` table as data: a name of the user's for one model or several, and how they take turns."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, Literal, cast

from msgspec import Struct

from windlass.core.errors import ConfigError, UnknownNameError

__all__ = ["RouteSettings", "RouteTarget", "check_circles", "read_routes"]

Mode = Literal["ordered", "weighted"]

_MODES = ("ordered", "weighted")
#: A control character in a name would end a header or a line of a log.
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_SIMPLE = "must be a model's name, or a list of them."
_SECONDS = ("first_token_timeout", "idle_timeout", "timeout")
_KEYS = ("targets", "mode", "attempts", *_SECONDS, "continue")


class RouteTarget(Struct, frozen=True):
    """One entry of a route: a model, a provider or another route; `weight` is its share of first requests."""

    model: str
    weight: float = 1.0


class RouteSettings(Struct, frozen=True):
    """One row of `[routes]`.

    `ordered` asks the targets one after the other, `weighted` draws the first by weight. `attempts` is the most calls
    for one request (None: `max_attempts`, but at least one for each target). The limits are in seconds, None is none:
    `first_token_timeout` until the first content of one attempt, `idle_timeout` between two items after it, `timeout`
    for the whole request. `continues` (`continue` in the file) lets a gateway continue a broken stream on the next
    target. `origin` names the file and the key.
    """

    targets: tuple[RouteTarget, ...]
    mode: Mode = "ordered"
    attempts: int | None = None
    first_token_timeout: float | None = None
    idle_timeout: float | None = None
    timeout: float | None = None
    continues: bool = True
    origin: str = ""

    @property
    def plain(self) -> bool:
        """Whether it is just another name for its one target."""
        stated = (self.attempts, self.first_token_timeout, self.idle_timeout, self.timeout)
        return len(self.targets) == 1 and not any(value is not None for value in stated)


def read_routes(table: Mapping[str, Any], where: str = "") -> dict[str, RouteSettings]:
    """Read a `[routes]` table; `where` is its file.

    A value is a target, a list of targets, or a table with `targets` and settings; a target is a name, or a table of
    `model` and `weight`. Raises ConfigError naming file and key.
    """
    at = f"{where}: " if where else ""
    return {name.strip(): _route(f"{at}routes.{_name(name, at)}", value) for name, value in table.items()}


def check_circles(routes: Mapping[str, RouteSettings]) -> None:
    """Check that no route leads back to itself. Raises ConfigError that shows the way round."""
    done: set[str] = set()

    def visit(name: str, way: tuple[str, ...]) -> None:
        if name in way:
            circle = " -> ".join([*way[way.index(name) :], name])
            raise ConfigError(
                f"{routes[name].origin} leads back to itself: {circle}.",
                hint="A target that is the name of a route means that route; write provider:model for a model.",
            )
        if name not in done:
            for target in routes[name].targets:
                if target.model in routes:
                    visit(target.model, (*way, name))
            done.add(name)

    for name in routes:
        visit(name, ())


def _name(name: str, at: str) -> str:
    if not name.strip() or _CONTROL.search(name):
        raise ConfigError(f"{at}routes: {name!r} is no name for a route.", hint="Use letters, digits and dashes.")
    return name


def _route(where: str, value: Any) -> RouteSettings:
    if isinstance(value, RouteSettings):
        return value
    if isinstance(value, dict):
        table = cast("dict[str, Any]", value)
        for key in table:
            if key not in _KEYS:
                raise UnknownNameError(f"key in {where}:", key, _KEYS)
        return _table(where, f"{where}.targets", table)
    return _table(where, where, {"targets": value})


def _table(where: str, place: str, table: dict[str, Any]) -> RouteSettings:
    """Read the settings of a route; `place` is where its targets stand."""
    if "targets" not in table:
        raise ConfigError(f"{where} needs targets.", hint='For example targets = ["ollama:qwen3.5:9b", "openrouter"].')
    mode, attempts, continues = table.get("mode"), table.get("attempts"), table.get("continue", True)
    if mode is not None and mode not in _MODES:
        raise UnknownNameError(f"mode in {where}:", str(mode), _MODES)
    if attempts is not None and (type(attempts) is not int or attempts < 1):
        raise ConfigError(f"{where}.attempts is {attempts!r}; it must be a positive whole number.")
    if not isinstance(continues, bool):
        raise ConfigError(f"{where}.continue is {continues!r}; it must be true or false.")
    targets = _targets(place, table["targets"])
    mode = mode or _mode(table["targets"])
    if mode == "weighted" and not any(target.weight for target in targets):
        raise ConfigError(f"{place}: every weight is 0.", hint="Give one of them a weight.")
    limits = {key: _seconds(f"{where}.{key}", table[key]) for key in _SECONDS if key in table}
    return RouteSettings(targets, mode, attempts, **limits, continues=continues, origin=where)


def _mode(targets: Any) -> Mode:
    """Return the mode that nobody stated: who gives a weight wants it used."""
    listed = cast("list[Any]", targets) if isinstance(targets, list) else []
    return "weighted" if any(isinstance(item, dict) and "weight" in item for item in listed) else "ordered"


def _targets(where: str, value: Any) -> tuple[RouteTarget, ...]:
    listed = cast("list[Any]", value) if isinstance(value, list) else [value]
    if not listed:
        raise ConfigError(f"{where} {_SIMPLE}")
    return tuple([_target(where, item) for item in listed])


def _target(where: str, item: Any) -> RouteTarget:
    if isinstance(item, str):
        item = {"model": item}
    if not isinstance(item, dict):
        raise ConfigError(f"{where} {_SIMPLE}")
    table = cast("dict[str, Any]", item)
    for key in table:
        if key not in ("model", "weight"):
            raise UnknownNameError(f"key of a target in {where}:", key, ("model", "weight"))
    model, weight = table.get("model"), table.get("weight", 1.0)
    if not isinstance(model, str) or not model.strip() or _CONTROL.search(model):
        raise ConfigError(f"{where} {_SIMPLE}", hint=f"{model!r} is none.")
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 <= weight < math.inf:
        raise ConfigError(f"{where}: the weight of {model!r} is {weight!r}; it must be a number, not negative.")
    return RouteTarget(model.strip(), float(weight))


def _seconds(where: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise ConfigError(f"{where} is {value!r}; it must be a number of seconds above 0.")
    return float(value)
