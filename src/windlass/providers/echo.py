"""A provider that repeats what it is told: for trying things out without a model (reference B's default backend)."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, AsyncIterator

from windlass.core.clock import sleep
from windlass.core.items import Finish, Item, TextItem, UsageItem
from windlass.core.messages import Message, Text, ToolResponse, response_text
from windlass.core.request import Request
from windlass.core.usage import Usage

__all__ = ["EchoProvider"]

_WORD = re.compile(r"\S+\s*|\s+")


class EchoProvider:
    """Answer `Echo: <input>`, word by word, where the input is the text of the last message.

    A token is a word: the usage counts those of the system text and of every message, and those of the answer, exactly.
    `max_tokens` cuts the answer. `delay` is the pause before each word in seconds. It never calls a tool.
    """

    name = "echo"

    def __init__(self, *, delay: float = 0.0) -> None:
        self.delay = delay

    def stream(self, request: Request) -> AsyncIterator[Item]:
        """Return the items of one answer."""
        return self._stream(request)

    async def _stream(self, request: Request) -> AsyncGenerator[Item]:
        texts = [_text(message) for message in request.messages]
        words = _WORD.findall("Echo: " + (texts[-1] if texts else ""))
        limit = request.settings.max_tokens
        said = words if limit is None else words[:limit]
        for word in said:
            await sleep(self.delay)
            yield TextItem(word)
        asked = sum(len(text.split()) for text in (request.system or "", *texts))
        usage = Usage(asked, len(said))
        yield UsageItem(usage)
        reason = "stop" if len(said) == len(words) else "length"
        message = Message("assistant", (Text("".join(said)),), finish_reason=reason)
        yield Finish(message, usage, reason, model=request.model or self.name)


def _text(message: Message) -> str:
    pieces = [message.text, *[response_text(part) for part in message.parts if isinstance(part, ToolResponse)]]
    return "\n".join([piece for piece in pieces if piece])
