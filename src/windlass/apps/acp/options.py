"""What can be chosen for a session: permission modes, the model, how much it may reason.

Source: https://agentclientprotocol.com/protocol/session-modes and /protocol/session-config-options. The modes are told
in both ways, for clients that know only the older one.
"""

from __future__ import annotations

from acp.schema import SessionConfigOptionSelect, SessionConfigSelectOption, SessionMode, SessionModeState

from windlass.apps.acp.build import Built
from windlass.core.config import Config

__all__ = ["THINKING", "config_options", "modes"]

THINKING = ("default", "off", "minimal", "low", "medium", "high", "adaptive")
#: Mode -> name, description.
_MODES = {
    "plan": ("Plan", "Only reads, and makes a plan"),
    "ask": ("Ask", "Asks before it changes or runs anything"),
    "auto-edit": ("Auto-edit", "Edits files without asking, asks before it runs commands"),
    "sandboxed-auto": ("Sandboxed auto", "Also runs commands without asking, where they are held by a sandbox"),
}


def modes(built: Built) -> SessionModeState:
    """Return the modes and the one that holds."""
    rows = [SessionMode(id=mode, name=name, description=text) for mode, (name, text) in _MODES.items()]
    return SessionModeState(current_mode_id=built.permissions.mode, available_modes=rows)


def config_options(built: Built, model: str, thinking: str | None) -> list[SessionConfigOptionSelect]:
    """Return the choices: `mode`, `model` (the one in use, the default, the routes) and `thinking`."""
    rows = [SessionConfigSelectOption(value=mode, name=name, description=text) for mode, (name, text) in _MODES.items()]
    choices = [SessionConfigSelectOption(value=name, name=name) for name in _models(built.config, model)]
    efforts = [SessionConfigSelectOption(value=word, name=word) for word in THINKING]
    return [
        SessionConfigOptionSelect(
            type="select", id="mode", name="Mode", category="mode", current_value=built.permissions.mode, options=rows
        ),
        SessionConfigOptionSelect(
            type="select", id="model", name="Model", category="model", current_value=model, options=choices
        ),
        SessionConfigOptionSelect(
            type="select",
            id="thinking",
            name="Reasoning",
            category="thought_level",
            current_value=thinking or "default",
            options=efforts,
        ),
    ]


def _models(config: Config, model: str) -> list[str]:
    return list(dict.fromkeys([model, config.default_model, *config.routes]))
