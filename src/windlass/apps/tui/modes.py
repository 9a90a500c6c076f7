"""The permission mode, wherever the agent's policy keeps one."""

from __future__ import annotations

from typing import Any

from windlass.agent.policy import MODES, Permissions, live
from windlass.core.errors import ConfigError, UnknownNameError

__all__ = ["mode_names", "mode_of", "next_mode", "set_mode"]

#: The modes that the key goes through. `yolo` asks nothing at all: only `/mode yolo` or a setting chooses it.
_ON_KEY = ("plan", "ask", "auto-edit", "sandboxed-auto")


def _held(policy: Any) -> Permissions | None:
    return live(policy)


def mode_of(policy: Any) -> str:
    """Return the mode; a policy without one is named by what it does where no rule matches."""
    held = _held(policy)
    return held.mode if held is not None else str(getattr(policy, "default", ""))


def mode_names() -> list[str]:
    """Return the modes, the strictest first."""
    return list(MODES)


def set_mode(policy: Any, mode: str) -> str:
    """Change the mode; returns what holds now. Raises ConfigError where it cannot be changed, UnknownNameError."""
    held = _held(policy)
    if held is None:
        raise ConfigError("The mode cannot be changed here: the agent's policy is fixed.")
    for name in MODES:
        if name == mode:
            held.mode = name
            return held.mode
    raise UnknownNameError("mode", mode, MODES)


def next_mode(policy: Any) -> str:
    """Go on to the next mode of the key; one that cannot be had here is passed over. Raises ConfigError."""
    now = mode_of(policy)
    at = _ON_KEY.index(now) if now in _ON_KEY else -1
    error: ConfigError | None = None
    for step in range(1, len(_ON_KEY) + 1):
        try:
            return set_mode(policy, _ON_KEY[(at + step) % len(_ON_KEY)])
        except ConfigError as refused:
            error = refused
            if _held(policy) is None:
                raise
    raise error or ConfigError("There is no other mode.")
