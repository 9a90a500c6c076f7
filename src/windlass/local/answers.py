"""One chat request to an engine, asked and put together without an event loop: OpenAI's JSON in, a message out."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import msgspec
from msgspec import Struct

from windlass.core import clock
from windlass.core.errors import ConfigError
from windlass.core.items import Assembler, FinishReason, ReasoningItem, TextItem, ToolCallItem
from windlass.core.messages import Message, ToolCall
from windlass.core.signature import function_schema
from windlass.core.usage import Usage
from windlass.local.backend import AnsweringEngine
from windlass.local.streaming import StreamingConfig

__all__ = ["ChatAnswer", "ask_chat"]

_REASONS: dict[str, FinishReason] = {"stop": "stop", "length": "length", "tool_calls": "tool_call"}


class ChatAnswer(Struct, frozen=True):
    """What a model said: the whole message, why it ended, and the tokens it took."""

    message: Message
    reason: FinishReason = "stop"
    usage: Usage = Usage()

    @property
    def text(self) -> str:
        """The text of the message."""
        return self.message.text

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        """The calls it asks for, in order."""
        return self.message.tool_calls

    def to_openai(self) -> dict[str, Any]:
        """Return the message as OpenAI has it, to be appended to the conversation."""
        out: dict[str, Any] = {"role": "assistant", "content": self.text}
        if self.tool_calls:
            out["tool_calls"] = [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {
                        "name": call.name,
                        "arguments": call.arguments_text or msgspec.json.encode(call.arguments).decode(),
                    },
                }
                for call in self.tool_calls
            ]
        return out


class _Answer:
    """A line to the thread that waits: the engine's thread puts, that one reads."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[bytes | BaseException | None] = queue.SimpleQueue()
        self.closed = False

    def put(self, chunk: bytes) -> bool:
        if chunk:
            self._queue.put(chunk)
        return self.closed

    def finish(self, error: BaseException | None = None) -> None:
        self._queue.put(error)

    def close(self) -> None:
        self.closed = True

    def chunks(self, seconds: float | None) -> Iterator[bytes]:
        """Yield the chunks until the end, or until so many seconds have passed; raises what it ended with."""
        until = None if seconds is None else clock.monotonic() + seconds
        while True:
            try:
                item = self._queue.get(timeout=None if until is None else max(0.0, until - clock.monotonic()))
            except queue.Empty:
                return
            if item is None:
                return
            if isinstance(item, BaseException):
                raise item
            yield item


def ask_chat(
    engine: AnsweringEngine,
    messages: str | Sequence[Mapping[str, Any]],
    config: StreamingConfig,
    *,
    tools: Sequence[Mapping[str, Any] | Callable[..., Any]] = (),
    schema: Mapping[str, Any] | None = None,
    tool_choice: str = "auto",
    on_text: Callable[[str], object] | None = None,
) -> ChatAnswer:
    """Ask and return the answer; see `Model.chat`. A timeout ends it as if it were whole, with the reason `length`."""
    body = chat_body(messages, config, tools, schema, tool_choice)
    line, assembler, reason, usage = _Answer(), Assembler(), "length", Usage()
    cancel = engine.submit("chat", body, line)
    limit = config.generation_timeout_ns
    try:
        for chunk in line.chunks(limit / 1e9 if limit else None):
            data: Any = msgspec.json.decode(chunk)
            for choice in data.get("choices", ()):
                for item in _items(choice.get("delta") or {}):
                    assembler.add(item)
                    if on_text is not None and isinstance(item, TextItem):
                        on_text(item.text)
                reason = choice.get("finish_reason") or reason
            if told := data.get("usage"):
                usage = Usage(told.get("prompt_tokens", 0), told.get("completion_tokens", 0))
    finally:
        line.close()
        cancel()
    return ChatAnswer(assembler.message(finish_reason=_REASONS.get(reason)), _REASONS.get(reason, "stop"), usage)


def chat_body(
    messages: str | Sequence[Mapping[str, Any]],
    config: StreamingConfig,
    tools: Sequence[Mapping[str, Any] | Callable[..., Any]],
    schema: Mapping[str, Any] | None,
    tool_choice: str,
) -> dict[str, Any]:
    """Return llama.cpp's chat request. Raises ConfigError for options that a chat does not know."""
    for name in ("stop_tokens", "logprobs", "scales"):
        if getattr(config, name):
            raise ConfigError(f"A chat has no {name}.", hint="Use `respond` with the prompt's text.")
    said = [{"role": "user", "content": messages}] if isinstance(messages, str) else [dict(m) for m in messages]
    body: dict[str, Any] = {
        "messages": said,
        "max_tokens": config.max_tokens,
        "temperature": config.temperature,
        "top_k": config.top_k,
        "top_p": config.top_p,
        "min_p": config.min_p,
        "repeat_penalty": config.repetition_penalty,
        "seed": config.seed if config.seed is not None else int(clock.random() * 2**32),
    }
    if config.stop:
        body["stop"] = list(config.stop)
    if tools:
        body["tools"] = [_tool(tool) for tool in tools]
        named = tool_choice not in ("auto", "none", "required")
        body["tool_choice"] = {"type": "function", "function": {"name": tool_choice}} if named else tool_choice
    schema = schema if schema is not None else config.json_schema
    if schema is not None:
        body["response_format"] = {"type": "json_schema", "json_schema": {"name": "answer", "schema": dict(schema)}}
    if config.grammar:
        body["grammar"] = config.grammar
    return body


def _items(delta: Mapping[str, Any]) -> list[TextItem | ReasoningItem | ToolCallItem]:
    items: list[TextItem | ReasoningItem | ToolCallItem] = []
    if delta.get("reasoning_content"):
        items.append(ReasoningItem(delta["reasoning_content"]))
    if delta.get("content"):
        items.append(TextItem(delta["content"]))
    for call in delta.get("tool_calls") or ():
        function = call.get("function") or {}
        items.append(
            ToolCallItem(call.get("index", 0), call.get("id"), function.get("name"), function.get("arguments") or "")
        )
    return items


def _tool(tool: Mapping[str, Any] | Callable[..., Any]) -> dict[str, Any]:
    """Return OpenAI's form of a tool: of one that has it, and of a function with types and a docstring."""
    if isinstance(tool, Mapping):
        return dict(tool)
    schema = function_schema(tool)
    function = {"name": schema.name, "description": schema.description, "parameters": schema.schema}
    return {"type": "function", "function": function}
