"""What is asked of a model: settings, tool definitions, and the request that carries them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

from msgspec import Struct, field

from windlass.core.clock import monotonic
from windlass.core.errors import ConfigError
from windlass.core.messages import Message, Metadata

__all__ = [
    "Budget",
    "EncodingCache",
    "Request",
    "Settings",
    "ThinkingLevel",
    "ToolAnnotations",
    "ToolChoice",
    "ToolSpec",
    "thinking_budget",
]

ThinkingLevel = Literal["off", "minimal", "low", "medium", "high", "adaptive"]
#: `auto`, `none`, `required`, or the name of the one tool that must be called.
ToolChoice = str

#: Tokens of reasoning per level (reference C); `adaptive` leaves the choice to the model.
THINKING_BUDGETS: dict[str, int] = {"off": 0, "minimal": 1024, "low": 4096, "medium": 10240, "high": 32768}


class ToolAnnotations(Struct, frozen=True, omit_defaults=True):
    """Hints about a tool (MCP `ToolAnnotations`): None means not stated."""

    read_only: bool | None = None
    destructive: bool | None = None
    idempotent: bool | None = None
    open_world: bool | None = None


class ToolSpec(Struct, frozen=True, omit_defaults=True):
    """What a model is told of a tool (MCP `Tool`); `input_schema` is a JSON Schema object."""

    name: str
    description: str = ""
    input_schema: dict[str, Any] = field(default_factory=lambda: {"type": "object", "properties": {}})
    title: str | None = None
    output_schema: dict[str, Any] | None = None
    annotations: ToolAnnotations = ToolAnnotations()


class Settings(Struct, frozen=True, omit_defaults=True):
    """How the model should answer. None leaves a value to the provider.

    `temperature` is 0 to 2, `top_p` 0 to 1; `thinking` a level, `thinking_budget` an exact number of tokens that wins
    over it. `extra` is merged into the request body as it is. Raises ConfigError for values out of range.
    """

    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    stop: tuple[str, ...] = ()
    seed: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repeat_penalty: float | None = None
    thinking: ThinkingLevel | None = None
    thinking_budget: int | None = None
    parallel_tool_calls: bool | None = None
    extra: dict[str, Any] = field(default_factory=dict[str, Any])

    def __post_init__(self) -> None:
        _within("temperature", self.temperature, 0.0, 2.0)
        _within("top_p", self.top_p, 0.0, 1.0)
        if self.max_tokens is not None and self.max_tokens < 1:
            raise ConfigError(f"max_tokens is {self.max_tokens}; it must be at least 1.")
        if self.thinking_budget is not None and self.thinking_budget < 0:
            raise ConfigError(f"thinking_budget is {self.thinking_budget}; it must not be negative.")


def _within(name: str, value: float | None, low: float, high: float) -> None:
    # `not (a <= b <= c)` and no `or`: NaN compares false and must be refused.
    if value is not None and not (low <= value <= high):
        raise ConfigError(f"{name} is {value}; it must be between {low:g} and {high:g}.")


def thinking_budget(settings: Settings) -> int | None:
    """Return the tokens of reasoning asked for: the exact budget, else the level's; None when unset or adaptive."""
    if settings.thinking_budget is not None:
        return settings.thinking_budget
    return THINKING_BUDGETS.get(settings.thinking) if settings.thinking else None


class Budget:
    """The one bound on time and attempts that travels with a request; no layer retries outside it.

    `deadline` is on the monotonic clock of `core/clock`, in seconds; None means no bound.
    """

    __slots__ = ("attempts", "deadline")

    def __init__(self, seconds: float | None = None, attempts: int = 3) -> None:
        self.deadline = None if seconds is None else monotonic() + seconds
        self.attempts = attempts

    @classmethod
    def until(cls, deadline: float | None, attempts: int) -> Budget:
        """Make a budget that ends at a time of the monotonic clock."""
        made = cls(None, attempts)
        made.deadline = deadline
        return made

    def remaining(self) -> float | None:
        """Return the seconds left, never negative; None when unbounded."""
        return None if self.deadline is None else max(0.0, self.deadline - monotonic())

    def take_attempt(self) -> bool:
        """Use up one attempt; False when none is left or the time is over."""
        if self.attempts <= 0 or self.remaining() == 0.0:
            return False
        self.attempts -= 1
        return True


class EncodingCache:
    """The bytes of closed turns, kept per dialect, so that a long conversation is encoded once.

    A conversation owns one; whoever rewrites its history clears it. `closed` encodes what is new since last time.
    """

    __slots__ = ("_kept",)

    def __init__(self) -> None:
        self._kept: dict[tuple[object, ...], tuple[list[int], list[bytes]]] = {}

    def clear(self) -> None:
        """Forget everything: the history changed behind its end."""
        self._kept.clear()

    def closed(
        self,
        key: tuple[object, ...],
        messages: Sequence[Message],
        encode: Callable[[Sequence[Message]], bytes],
    ) -> tuple[list[bytes], int]:
        """Return the bytes of every closed turn, and the index of the first message that is not in them.

        A turn is closed once an assistant message follows the run of messages it belongs to: `encode` is given whole
        groups (an assistant message with the tool and user messages after it, or the opening user messages).
        """
        done, chunks = self._kept.setdefault(key, ([0], []))
        start = done[0]
        for at in range(start + 1, len(messages)):
            if messages[at].role == "assistant":
                chunks.append(encode(messages[start:at]))
                # At once: an encoder that refuses a later group must not make this one appear twice.
                start = done[0] = at
        return chunks, start


class Request(Struct, frozen=True, kw_only=True):
    """One request to a model.

    `model` is the id without its provider. `messages` hold no system role in front: that is `system`. `output_schema`
    asks for a JSON answer of that schema. `encoded` is the conversation's cache, None for one-off requests.
    """

    model: str
    messages: Sequence[Message]
    system: str | None = None
    tools: tuple[ToolSpec, ...] = ()
    tool_choice: ToolChoice = "auto"
    settings: Settings = Settings()
    output_schema: dict[str, Any] | None = None
    cache: bool = True
    session_id: str | None = None
    metadata: Metadata = field(default_factory=dict[str, Any])
    budget: Any = None
    encoded: Any = None
