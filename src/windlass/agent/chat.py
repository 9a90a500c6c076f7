"""Reference E's conversational face: a named agent that talks and, if wanted, remembers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from windlass.agent.agent import Agent
from windlass.core.errors import ConfigError
from windlass.core.messages import Message

__all__ = ["ChatAgent"]


class ChatAgent:
    """Talk to a model: `chat` and `process` are the same and return the answer's text.

    `name` is required. `enable_history` keeps the conversation (default True). `temperature` is 0 to 2 (0.7), `top_p`
    0 to 1 (0.9). Raises ConfigError for values out of range, here and in the setters.
    """

    def __init__(
        self,
        name: str,
        *,
        model: Any = None,
        system_prompt: str | None = None,
        enable_history: bool = True,
        temperature: float = 0.7,
        top_p: float = 0.9,
        max_tokens: int = 1024,
        **agent_options: Any,
    ) -> None:
        if not name:
            raise ConfigError("A chat agent needs a name.")
        self.name = name
        self.enable_history = enable_history
        self.temperature, self.top_p = _checked("temperature", temperature, 2.0), _checked("top_p", top_p, 1.0)
        self.max_tokens = max_tokens
        self.agent = Agent(model, name=name, system=system_prompt, **agent_options)

    async def process(self, text: str) -> str:
        """Send text and return the answer's text."""
        behavior: Any = {"temperature": self.temperature, "top_p": self.top_p, "max_tokens": self.max_tokens}
        make = self.agent.run if self.enable_history else self.agent.once
        return (await make(text, behavior=behavior)).text

    chat = process

    def set_temperature(self, value: float) -> None:
        """Set the temperature, 0 to 2."""
        self.temperature = _checked("temperature", value, 2.0)

    def set_top_p(self, value: float) -> None:
        """Set top_p, 0 to 1."""
        self.top_p = _checked("top_p", value, 1.0)

    def set_history_enabled(self, enabled: bool) -> None:
        """Remember from now on, or not; what is remembered already stays until `clear_history`."""
        self.enable_history = enabled

    @property
    def history_count(self) -> int:
        """How many messages are remembered; the system prompt is not one of them."""
        return len(self.agent.messages)

    def history_slice(self, start: int = 0, end: int | None = None) -> Sequence[Message]:
        """Return remembered messages from `start` to `end` (not included)."""
        return self.agent.messages[start:end]

    def clear_history(self) -> None:
        """Forget the conversation; the system prompt stays (reference E's own code dropped it, by mistake)."""
        self.agent.reset()


def _checked(name: str, value: float, high: float) -> float:
    if not 0.0 <= value <= high:
        raise ConfigError(f"{name} is {value}; it must be between 0 and {high:g}.")
    return value
