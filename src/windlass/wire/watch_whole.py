"""What is read of OpenAI's chat answers that are passed on as they came: the few fields that a gateway wants.

Answers that are as nearly all servers write them are read by these alone; the others by the dialect's own decoder.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta, Raw, Struct

from windlass.core.errors import StreamInterrupted
from windlass.core.json import loads
from windlass.core.usage import Usage
from windlass.wire.base import Dialect
from windlass.wire.openai_chat_answer import decode_cost, decode_usage

__all__ = ["NOTHING", "PLAIN_ENDS", "Choice", "Chunk", "Object", "PlainUsage", "Told", "is_text", "read_whole"]

#: What says that an answer ended as it should; every other word is looked up.
PLAIN_ENDS = frozenset(("stop", "length", "tool_calls", "content_filter"))
NOTHING = (b"", b"null")


def is_text(data: bytes) -> bool:
    """Tell whether bytes are UTF-8: the JSON decoder does not look into strings that nobody wants."""
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


class Object(Struct, frozen=True, gc=False):
    """Any object of JSON."""


class Choice(Struct, frozen=True):
    """Hold what one of several answers says of its end."""

    index: int = 0
    finish_reason: str | None = None
    usage: Raw = Raw()
    error: Raw = Raw()


class _Extra(Struct, frozen=True):
    usage: Raw = Raw()


class Chunk(Struct, frozen=True):
    """Hold what a piece of a streamed answer says besides its text."""

    choices: list[Choice] | None = None
    model: str | None = None
    usage: Raw = Raw()
    error: Raw = Raw()
    x_groq: _Extra | None = None


_Count = Annotated[int, Meta(ge=0, lt=1 << 62)]


class _Details(Struct, frozen=True):
    cached_tokens: _Count | None = 0
    cache_write_tokens: _Count | None = 0
    reasoning_tokens: _Count | None = 0


class PlainUsage(Struct, frozen=True):
    """Usage as nearly all servers tell it; what does not fit is read by `decode_usage`."""

    prompt_tokens: _Count
    completion_tokens: _Count
    total_tokens: _Count = 0
    prompt_tokens_details: _Details | None = None
    completion_tokens_details: _Details | None = None
    prompt_cache_hit_tokens: Raw = Raw()
    cost: Raw = Raw()

    def read(self) -> Usage | None:
        """Return it in our words, None where it holds what is not plain."""
        if self.cost or self.prompt_cache_hit_tokens:
            return None
        ins, outs = self.prompt_tokens_details, self.completion_tokens_details
        if ins is None and outs is None:
            return Usage(self.prompt_tokens, self.completion_tokens)
        reasoning = (outs.reasoning_tokens if outs is not None else 0) or 0
        completion = self.completion_tokens
        if reasoning and self.total_tokens == self.prompt_tokens + completion + reasoning:
            completion += reasoning
        cached, written = (0, 0) if ins is None else (ins.cached_tokens or 0, ins.cache_write_tokens or 0)
        return Usage(self.prompt_tokens, completion, cached, written, reasoning)


class Told(Struct, frozen=True):
    """What a whole answer says of itself; `finish_reason` is the vendor's own word, `cost` in nano-dollars."""

    usage: Usage | None = None
    model: str | None = None
    finish_reason: str | None = None
    cost: int | None = None


class _PlainChat(Struct, frozen=True):
    choices: list[Choice]
    usage: PlainUsage
    model: str | None = None
    error: Raw = Raw()


class _WholeChat(Struct, frozen=True):
    choices: list[Choice] | None = None
    model: str | None = None
    usage: Raw = Raw()
    error: Raw = Raw()


_plain = msgspec.json.Decoder(_PlainChat)
_whole = msgspec.json.Decoder(_WholeChat)


def read_whole(dialect: Dialect, body: bytes) -> Told:
    """Return what a whole answer, which is passed on as it is, says of itself.

    Raises WireError, or the classified ProviderError when it holds an error, and StreamInterrupted when the vendor
    says that it broke off.
    """
    if dialect.name == "openai_chat" and (body.isascii() or is_text(body)):
        try:
            plain = _plain.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError):
            plain = None
        if plain is not None and not plain.error and _ended_well(plain.choices) and (used := plain.usage.read()):
            return Told(used, plain.model, plain.choices[0].finish_reason)
        try:
            answer = _whole.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError):
            answer = None
        if answer is not None and bytes(answer.error) in NOTHING and _ended_well(answer.choices):
            usage: Any = loads(bytes(answer.usage) or b"null")
            reason = answer.choices[0].finish_reason if answer.choices else None
            return Told(decode_usage(usage), answer.model, reason, decode_cost(usage))
    finish = dialect.decode_response(body)
    if finish.reason in ("interrupted", "error"):
        raise StreamInterrupted(f"The model's server broke off its answer ({finish.raw or finish.reason}).")
    return Told(finish.usage, finish.model, finish.raw, finish.cost)


def _ended_well(choices: list[Choice] | None) -> bool:
    # Where they come in another order, the decoder sorts them.
    return (
        bool(choices)
        and not choices[0].index
        and all(choice.finish_reason in PLAIN_ENDS and not choice.error for choice in choices)
    )
