"""Reference E's conversational face: a named agent that talks and, if wanted, remembers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from windlass.agent.agent import Agent
from windlass.core.config import Config
from windlass.core.errors import ConfigError
from windlass.core.messages import Message

__all__ = ["BACKENDS", "ChatAgent", "InvalidConfiguration"]

#: Reference E's backends. Any other provider does too, by `model="provider:model-id"`.
BACKENDS: Final = ("echo", "openai", "ollama", "huggingface", "local")
#: Where E names another model than the provider would take by itself.
_MODELS: Final = {"ollama": "gpt-oss"}
_MAX_TOKENS: Final = 128_000


class InvalidConfiguration(ConfigError):
    """Report an option of a chat agent that is missing or out of range; nothing was changed."""

    code = "invalid_configuration"


class ChatAgent:
    """Talk to a model: `chat` and `process` are the same and return the answer's text.

    `name` is required. `backend` is echo, openai, ollama, huggingface or local, with `model` the id of one of its
    models; without a backend `model` is what `Agent` takes. `enable_history` keeps the conversation (default True).
    `temperature` is 0 to 2 (0.7), `top_p` 0 to 1 (0.9), `max_tokens` 1 to 128000 (1024); all three are sent to every
    backend that knows them. Raises InvalidConfiguration for values out of range, here and in the setters.
    """

    def __init__(
        self,
        name: str,
        *,
        backend: str | None = None,
        model: Any = None,
        system_prompt: str | None = None,
        enable_history: bool = True,
        temperature: float = 0.7,
        top_p: float = 0.9,
        max_tokens: int = 1024,
        **agent_options: Any,
    ) -> None:
        if not name:
            raise InvalidConfiguration("A chat agent needs a name.")
        self.name = name
        self.enable_history = enable_history
        self.temperature, self.top_p = _checked("temperature", temperature, 2.0), _checked("top_p", top_p, 1.0)
        if type(max_tokens) is not int or not 1 <= max_tokens <= _MAX_TOKENS:
            raise InvalidConfiguration(f"max_tokens is {max_tokens!r}; it must be between 1 and {_MAX_TOKENS}.")
        self.max_tokens = max_tokens
        if backend is not None:
            model = _model(backend, model, agent_options.get("config"))
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
        """Forget the conversation; the system prompt stays.

        E's document calls it clearing the history, and a system prompt is configuration; E's code kept both in one list
        and dropped it too, so that the agent was another one afterwards.
        """
        self.agent.reset()


def _model(backend: str, model: Any, config: Config | None) -> str:
    if backend not in BACKENDS:
        raise InvalidConfiguration(f"There is no backend {backend!r}.", hint=f"Use {', '.join(BACKENDS)}, or model=….")
    if model is not None and not isinstance(model, str):
        raise InvalidConfiguration(f"With a backend, model is the id of one of its models, not {model!r}.")
    if not model and backend in _MODELS:
        config = config if config is not None else Config.from_environment()
        model = config.provider_settings(backend).model or _MODELS[backend]
    return f"{backend}:{model}" if model else backend


def _checked(name: str, value: float, high: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0.0 <= value <= high:
        raise InvalidConfiguration(f"{name} is {value!r}; it must be between 0 and {high:g}.")
    return value
