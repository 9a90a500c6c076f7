"""Small words for asking an engine in tests."""

from __future__ import annotations

from contextlib import aclosing
from typing import Any

import msgspec

from windlass.local.engine import ChatEngine

#: What turns a request into one that only its token limit or a closed stream ends.
ENDLESS = {"grammar": 'root ::= "a" root', "max_tokens": 3000}


def function(name: str, *required: str, **schema: Any) -> dict[str, Any]:
    """Make a tool of string parameters, or of the given schema."""
    parameters = schema or {
        "type": "object",
        "properties": {key: {"type": "string"} for key in required},
        "required": list(required),
    }
    return {"type": "function", "function": {"name": name, "description": name, "parameters": parameters}}


def said(text: str, **fields: Any) -> dict[str, Any]:
    """Make a request of one user message at temperature 0."""
    return {"messages": [{"role": "user", "content": text}], "temperature": 0, "max_tokens": 200, **fields}


class Answer:
    """An answer put together from its chunks by hand, without the code under test."""

    def __init__(self, chunks: list[bytes]) -> None:
        self.chunks: list[dict[str, Any]] = [msgspec.json.decode(chunk) for chunk in chunks]
        choices = [chunk["choices"][0] for chunk in self.chunks if chunk["choices"]]
        deltas = [choice["delta"] for choice in choices]
        self.text = "".join([delta.get("content") or "" for delta in deltas])
        self.reasons = [choice["finish_reason"] for choice in choices if choice["finish_reason"]]
        self.usage: dict[str, Any] = self.chunks[-1]["usage"]
        self.calls: list[tuple[str, Any]] = []
        pieces: list[list[str]] = []
        for delta in deltas:
            for call in delta.get("tool_calls", ()):
                if call["index"] == len(pieces):
                    pieces.append([call["function"]["name"], ""])
                pieces[call["index"]][1] += call["function"]["arguments"]
        self.calls = [(name, msgspec.json.decode(arguments)) for name, arguments in pieces]


async def ask(engine: ChatEngine, body: dict[str, Any]) -> Answer:
    """Ask and put the answer together."""
    async with aclosing(engine.stream(body)) as chunks:
        return Answer([chunk async for chunk in chunks])
