"""Short-term memory: the newest messages that fit, and never half of a tool call and its response.

The rules and the way of counting are those of reference B: the oldest go first; a text counts ceil(length / 4) tokens,
an image 85, any other file 50. `windlass.core.estimate` counts more exactly what a vendor would; here the count only
has to be quick and always the same.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import Final

from msgspec import Struct

from windlass.core.errors import ConfigError
from windlass.core.json import dumps
from windlass.core.messages import Blob, Message, Part, Reasoning, Role, Text, ToolCall, ToolResponse, Uri

__all__ = ["Ring", "count_tokens"]

_IMAGE: Final = 85
_FILE: Final = 50


class _Unit(Struct):
    """Messages that stay or go together, and the ids of the calls among them."""

    messages: list[Message]
    tokens: int
    calls: set[str]


class Ring:
    """Keep the newest messages within `max_messages` and `max_tokens` (None: no limit); a bound drops the oldest.

    A message with tool calls and the responses to them are one unit: they are dropped, and given by `context`, all or
    none. The newest unit is always kept, also where it alone is too large. Raises ConfigError for a limit below 1.

    >>> from windlass.core.messages import user, assistant
    >>> ring = Ring(max_messages=2)
    >>> ring.extend([user("one"), assistant("two"), user("three")])
    >>> [message.text for message in ring], ring.tokens
    (['two', 'three'], 3)
    """

    def __init__(self, max_messages: int | None = None, max_tokens: int | None = None) -> None:
        for name, limit in (("max_messages", max_messages), ("max_tokens", max_tokens)):
            if limit is not None and limit < 1:
                raise ConfigError(f"{name} is {limit}; it must be at least 1.")
        self.max_messages, self.max_tokens = max_messages, max_tokens
        self._units: deque[_Unit] = deque()
        self._count = self._tokens = 0

    @property
    def tokens(self) -> int:
        """The tokens of all that is kept."""
        return self._tokens

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Message]:
        return iter([message for unit in self._units for message in unit.messages])

    def add(self, message: Message) -> bool:
        """Keep a message, dropping old ones where a limit asks for it.

        False for a response whose call is not here (any more): alone no provider takes it, so it is not kept.
        """
        answered = {part.id for part in message.parts if isinstance(part, ToolResponse)}
        unit = _Unit([message], count_tokens(message), {call.id for call in message.tool_calls})
        if answered:
            first = next((at for at, old in enumerate(self._units) if answered & old.calls), None)
            if first is None:
                return False
            # What came in between belongs to it as well, else the order would be lost.
            while len(self._units) > first:
                unit = _joined(self._take(self._units.pop()), unit)
        self._units.append(unit)
        self._count += len(unit.messages)
        self._tokens += unit.tokens
        while len(self._units) > 1 and self._is_full():
            self._take(self._units.popleft())
        return True

    def extend(self, messages: Iterable[Message]) -> None:
        """Keep messages, one after the other."""
        for message in messages:
            self.add(message)

    def context(self, max_tokens: int) -> list[Message]:
        """Return the longest run of newest messages that fits, in their order; [] where the newest unit does not."""
        out: deque[Message] = deque()
        room = max_tokens
        for unit in reversed(self._units):
            room -= unit.tokens
            if room < 0:
                break
            out.extendleft(reversed(unit.messages))
        return list(out)

    def last(self, count: int = 1) -> list[Message]:
        """Return up to `count` newest messages, in their order."""
        return list(self)[-count:] if count > 0 else []

    def by_role(self, role: Role) -> list[Message]:
        """Return the messages of one role, in their order."""
        return [message for message in self if message.role == role]

    def search(self, text: str) -> list[Message]:
        """Return the messages whose text holds `text`, whatever its case, in their order."""
        wanted = text.casefold()
        return [message for message in self if wanted in message.text.casefold()]

    def clear(self) -> None:
        """Forget everything."""
        self._units.clear()
        self._count = self._tokens = 0

    def _take(self, unit: _Unit) -> _Unit:
        self._count -= len(unit.messages)
        self._tokens -= unit.tokens
        return unit

    def _is_full(self) -> bool:
        many = self.max_messages is not None and self._count > self.max_messages
        return many or (self.max_tokens is not None and self._tokens > self.max_tokens)


def _joined(older: _Unit, newer: _Unit) -> _Unit:
    return _Unit([*older.messages, *newer.messages], older.tokens + newer.tokens, older.calls | newer.calls)


def count_tokens(message: Message) -> int:
    """Return the tokens of a message as reference B estimates them.

    >>> from windlass.core.messages import user
    >>> count_tokens(user("Hello, world")), count_tokens(user(["Look:", Uri("https://example.com/a.png")]))
    (3, 87)
    """
    return sum([_part(part) for part in message.parts])


def _part(part: Part) -> int:
    if isinstance(part, (Text, Reasoning)):
        return _text(len(part.content))
    if isinstance(part, ToolCall):
        given = part.arguments_text
        return _text(len(part.name) + (len(dumps(part.arguments)) if given is None else len(given)))
    if isinstance(part, ToolResponse):
        inner = part.response
        return _text(len(inner)) if isinstance(inner, str) else sum([_part(each) for each in inner])
    if isinstance(part, (Blob, Uri)):
        return _IMAGE if part.modality == "image" else _FILE
    return _text(len(dumps(part.data)))


def _text(length: int) -> int:
    return -(-length // 4)
