"""A provider that plays a script: the deterministic double of a model, and a provider like any other."""

from __future__ import annotations

import inspect
import re
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from typing import Any, TypeAlias

from msgspec.structs import replace

from windlass.core.errors import ConfigError
from windlass.core.items import Assembler, Finish, FinishReason, Item, ReasoningItem, TextItem, ToolCallItem
from windlass.core.json import dumps
from windlass.core.messages import Message, Reasoning, Text, ToolCall
from windlass.core.request import Request
from windlass.core.usage import Usage

__all__ = ["ScriptedProvider", "call", "turn"]

#: What one request is answered with: text; a message; a call or several; stream items (a Finish among them, or one is
#: made); an exception to raise; or a function of the request (async or not) that returns one of these.
Step: TypeAlias = (
    "str | Message | ToolCall | BaseException | Iterable[Item | ToolCall | BaseException] | Callable[..., Any]"
)
_WORDS = re.compile(r"\S+\s*|\s+")
_USAGE = Usage(10, 5)


def call(name: str, /, **arguments: Any) -> ToolCall:
    """Make a tool call for a script; its id is given by the provider."""
    return ToolCall("", name, arguments)


def turn(*calls: ToolCall, text: str = "", thinking: str = "", reason: FinishReason | None = None) -> Sequence[Item]:
    """Make the items of one answer: thinking, text, then calls."""
    items: list[Item] = []
    if thinking:
        items.append(ReasoningItem(thinking))
    items.extend([TextItem(word) for word in _WORDS.findall(text)])
    for index, one in enumerate(calls):
        arguments = one.arguments_text if one.arguments_text is not None else dumps(one.arguments or {}).decode()
        items.append(ToolCallItem(index, one.id or None, one.name, arguments))
    if reason is not None:
        items.append(Finish(Message("assistant"), _USAGE, reason))
    return items


class ScriptedProvider:
    """Answer the n-th request with the n-th step.

    `requests` holds what was asked, each with its own copy of the messages. After the last step: `repeat=True` starts
    again, else ConfigError. `structured_output` tells the loop whether schemas are honoured natively. `closed` counts
    streams that were closed before their end.
    """

    def __init__(
        self,
        script: Sequence[Step] = (),
        *,
        name: str = "scripted",
        model: str = "script",
        usage: Usage = _USAGE,
        repeat: bool = False,
        structured_output: bool = False,
    ) -> None:
        self.script = list(script)
        self.name, self.model, self.usage, self.repeat = name, model, usage, repeat
        self.structured_output = structured_output
        self.requests: list[Request] = []
        self.closed = 0

    async def stream(self, request: Request) -> AsyncIterator[Item]:
        """Yield the items of the next step."""
        number = len(self.requests)
        self.requests.append(replace(request, messages=tuple(request.messages), encoded=None))
        if number >= len(self.script) and not (self.repeat and self.script):
            raise ConfigError(f"The script has {len(self.script)} steps; this is request {number + 1}.")
        step: Any = self.script[number % len(self.script)]
        if callable(step) and not isinstance(step, (BaseException, type)):
            step = step(request)
            if inspect.isawaitable(step):
                step = await step
        whole = False
        try:
            for item in self._play(step, number):
                yield item
            whole = True
        finally:
            if not whole:
                self.closed += 1

    def _play(self, step: Any, number: int) -> Iterator[Item]:
        collected = Assembler()
        finish: Finish | None = None
        for item in _items(step):
            if isinstance(item, BaseException):
                raise item
            if isinstance(item, Finish):
                finish = item
                break
            if isinstance(item, ToolCallItem) and item.id is None:
                item = replace(item, id=f"call_{number}_{item.index}")
            collected.add(item)
            yield item
        message = collected.message()
        if isinstance(step, Message):
            message = step
        if finish is None:
            reason: FinishReason = "tool_call" if message.tool_calls else "stop"
            finish = Finish(message, self.usage, reason)
        elif not finish.message.parts:
            finish = replace(finish, message=message)
        yield finish


def _items(step: Any) -> Iterable[Any]:
    if isinstance(step, str):
        return turn(text=step)
    if isinstance(step, BaseException):
        return [step]
    if isinstance(step, ToolCall):
        return turn(step)
    if isinstance(step, Message):
        text = "".join([part.content for part in step.parts if isinstance(part, Text)])
        thinking = "".join([part.content for part in step.parts if isinstance(part, Reasoning)])
        return turn(*step.tool_calls, text=text, thinking=thinking)
    items = list(step)
    if items and all(isinstance(item, ToolCall) for item in items):
        return turn(*items)
    return items
