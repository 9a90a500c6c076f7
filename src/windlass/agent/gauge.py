"""How full the context is: an estimate that grows with the history and is put right by what providers report.

Each message is counted once, when it is new; a turn costs the same however long the history is.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from windlass.agent.conversation import Conversation, elidable
from windlass.core.estimate import estimate_tokens
from windlass.core.messages import Message, ToolResponse
from windlass.core.request import Request, ToolSpec

__all__ = ["Gauge", "message_tokens"]

#: How far a report may correct the estimate: beyond it, the report counts something else than we do.
_LEAST, _MOST = 0.5, 4.0


def message_tokens(message: Message) -> int:
    """Return the estimated tokens of a message."""
    return estimate_tokens(Request(model="", messages=(message,)))


class Gauge:
    """Running sums over one conversation's view; `keep` newest turns are not counted as older output.

    `total` is the estimate of all messages, `older_output` that of the tool output that could be left out; both are
    multiplied by `ratio`, the provider's count over ours, for what is said of them.
    """

    __slots__ = ("_counted", "_overhead", "_recent", "_rewritten", "keep", "model", "older_output", "ratio", "total")

    def __init__(self, keep: int) -> None:
        self.keep = keep
        self.ratio, self.model = 1.0, ""
        self._overhead: tuple[str, tuple[ToolSpec, ...], int] = ("", (), 0)
        self._start(0)

    def _start(self, rewritten: int) -> None:
        self._rewritten = rewritten
        self._counted = self.total = self.older_output = 0
        self._recent: deque[int] = deque()

    @classmethod
    def of(cls, conversation: Conversation, keep: int) -> Gauge:
        """Return the conversation's gauge, counted up to its last message."""
        gauge = conversation.gauge
        if not isinstance(gauge, Gauge):
            gauge = conversation.gauge = cls(keep)
        if gauge.keep != keep:
            gauge.keep = keep
            gauge._start(conversation.rewritten)
        gauge._count(conversation)
        return gauge

    def _count(self, conversation: Conversation) -> None:
        messages = conversation.messages
        if self._rewritten != conversation.rewritten or len(messages) < self._counted:
            self._start(conversation.rewritten)
        for message in messages[self._counted :]:
            self.total += message_tokens(message)
            if message.role == "assistant":
                self._recent.append(0)
                if len(self._recent) > self.keep:
                    self.older_output += self._recent.popleft()
            elif message.role == "tool":
                self._output(_long_output(message))
        self._counted = len(messages)

    def _output(self, tokens: int) -> None:
        if self._recent:
            self._recent[-1] += tokens
        else:
            self.older_output += tokens

    def overhead(self, system: str, tools: tuple[ToolSpec, ...]) -> int:
        """Return the estimate of what is sent beside the messages; counted again only when it is another."""
        known_system, known_tools, tokens = self._overhead
        if known_tools is not tools or known_system != system:
            tokens = estimate_tokens(Request(model="", messages=(), system=system, tools=tools))
            self._overhead = (system, tools, tokens)
        return tokens

    def calibrate(self, estimated: int, reported: int, model: str) -> None:
        """Learn from a report how far the estimate was off, for the model that was asked."""
        if estimated > 0 and reported > 0:
            self.ratio, self.model = min(_MOST, max(_LEAST, reported / estimated)), model

    def tokens(self, estimated: int, model: str) -> int:
        """Return an estimate as the provider would count it, as far as its reports tell."""
        return round(estimated * (self.ratio if model == self.model else 1.0))


def _long_output(message: Message) -> int:
    long: Sequence[ToolResponse] = [p for p in message.parts if isinstance(p, ToolResponse) and elidable(p)]
    return message_tokens(Message("tool", tuple(long))) if long else 0
