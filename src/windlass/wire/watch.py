"""Watch a streamed answer whose bytes pass through unchanged: what it used, whether it is whole, whether it is broken.

A gateway that speaks the same dialect on both sides need not build an object for every token. A watcher reads each
event once, in one pass of the JSON decoder over everything that arrived together, and keeps only the few fields that
count. It raises what the dialect's own decoder would raise, so that a cut or broken answer is never taken for a whole.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Literal, Protocol, TypeAlias

import msgspec

from windlass.core.errors import ProviderError, StreamInterrupted, WireError
from windlass.core.items import Finish, Item, ReasoningItem, TextItem, ToolCallItem
from windlass.core.json import loads
from windlass.core.usage import Usage
from windlass.wire.base import Dialect, StreamDecoder, as_dict, as_list, as_str, load_object
from windlass.wire.openai_chat_answer import decode_cost, decode_usage, error_in, finish_reason
from windlass.wire.sse import MAX_EVENT, SseDecoder
from windlass.wire.watch_whole import PLAIN_ENDS, Chunk, Object, PlainUsage, is_text

__all__ = ["Framing", "Watcher", "check_reason", "watcher_for"]

#: How a stream is cut into events: server-sent events, a line each, or AWS's frames.
Framing: TypeAlias = Literal["sse", "lines", "frames"]


class Watcher(Protocol):
    """Follows one stream.

    `begun` once there is content, `finished` once the answer is whole by its own word, `done` once nothing can come
    after it; `events` so far. `cost` is in nano-dollars where the vendor says it. After an error `sound` holds the
    whole events that came with the broken one, before it.
    """

    begun: bool
    finished: bool
    done: bool
    events: int
    model: str | None
    #: The vendor's own word.
    finish_reason: str | None
    sound: bytes

    @property
    def usage(self) -> Usage | None: ...
    @property
    def cost(self) -> int | None: ...

    def feed(self, data: bytes) -> bytes:
        """Take bytes, split anywhere, and return those that may be passed on: whole events only.

        Raises the classified ProviderError on an error event and WireError on bytes that do not follow the dialect.
        """
        ...

    def close(self) -> bytes:
        """End the body and return what is left to pass on. Raises StreamInterrupted when the end never came."""
        ...


# ------------------------------------------------------------------------------------------------------------ events

_BOM = b"\xef\xbb\xbf"
#: Two line ends, each CR LF, LF or CR; a CR LF is never taken for two.
_BLANK = re.compile(rb"(?>\r\n|\n|\r)(?>\r\n|\n|\r)")


def _ends(data: bytes, framing: Framing) -> Iterator[int]:
    """Yield where whole events end."""
    if framing == "sse":
        yield from [found.end() for found in _BLANK.finditer(data)]
    elif framing == "lines":
        yield from [found.end() for found in re.finditer(rb"\n", data)]
    else:
        # A frame begins with its whole length, big-endian (AWS event stream encoding).
        at = 0
        while at + 4 <= len(data):
            at += max(16, int.from_bytes(data[at : at + 4]))
            if at > len(data):
                return
            yield at


def _too_large(size: int) -> None:
    if size > MAX_EVENT:
        raise WireError(f"An event of the stream is larger than {MAX_EVENT} bytes.")


# -------------------------------------------------------------------------------------------------------- OpenAI chat


_chunks = msgspec.json.Decoder(list[Chunk])
_plain_usage = msgspec.json.Decoder(PlainUsage)
_chunk = msgspec.json.Decoder(Chunk)
_objects = msgspec.json.Decoder(list[Object])
#: How an event is written by nearly everybody, and what stands between two of them.
_DATA, _BETWEEN = b"data: ", b"\n\ndata: "
#: What the most chunks have, and what none of these has.
_REASON = b'"finish_reason"'
_GOES_ON = _REASON + b":null"
_USAGE, _NO_USAGE = b'"usage"', b'"usage":null'
_WORDS = (b'"error"', b'"x_groq"')
_CONTENT = re.compile(
    rb'"(?:content|reasoning_content|reasoning|refusal|text|arguments|data)"\s*:\s*"[^"]|"tool_calls"\s*:\s*[\[{]'
)
_NO_CHOICES = re.compile(rb'"choices"\s*:\s*\[\s*\]')


def check_reason(raw: str) -> None:
    """Raise StreamInterrupted for a word by which a vendor says that it broke off ("error", "network_error")."""
    if raw not in PLAIN_ENDS and finish_reason(raw, calls=False) in ("interrupted", "error"):
        raise StreamInterrupted(f"The model's server broke off its answer ({raw[:100]}).")


class ChatWatcher:
    """The OpenAI chat dialect. With `hide_usage` the last event, which the client did not ask for, is taken out.

    The answer is whole once each of its `choices` has said why it ended, or `[DONE]` came after all that began did.
    """

    __slots__ = (
        "_begun_choices", "_choices", "_ended", "_hide", "_read_any", "_rest", "_usage", "begun", "done", "events",
        "finish_reason", "finished", "model", "sound",
    )  # fmt: skip

    def __init__(self, *, hide_usage: bool = False, choices: int = 1) -> None:
        self._hide, self._choices = hide_usage, choices
        self._rest = self._usage = self.sound = b""
        self._begun_choices: set[int] = set()
        self._ended: set[int] = set()
        self._read_any = False
        self.begun = self.finished = self.done = False
        self.events = 0
        self.finish_reason: str | None = None
        self.model: str | None = None

    @property
    def usage(self) -> Usage | None:
        """What the answer used, as last told: each count is the total so far."""
        if not self._usage:
            return None
        try:
            told = _plain_usage.decode(self._usage).read()
        except msgspec.DecodeError:
            told = None
        return decode_usage(loads(self._usage)) if told is None else told

    @property
    def cost(self) -> int | None:
        """What the vendor says that it cost."""
        return decode_cost(loads(self._usage)) if b'"cost"' in self._usage else None

    def feed(self, data: bytes) -> bytes:
        """Take bytes; returns whole events."""
        if self._rest:
            data = self._rest + data
        if b"\r" in data:
            end = max(_ends(data, "sse"), default=0)
        elif data.endswith(b"\n\n"):
            end = len(data)
        else:
            end = data.rfind(b"\n\n") + 2
            end = end if end > 1 else 0
        if end < len(data):
            data, self._rest = data[:end], data[end:]
            _too_large(len(self._rest))
            if not data:
                return b""
        else:
            self._rest = b""
        if self.done:
            return b""
        self._read(data)
        return self._passed(data)

    def _passed(self, data: bytes) -> bytes:
        if not self.begun and _CONTENT.search(data):
            self.begun = True
        if self._hide and self._usage and _USAGE in data and _NO_CHOICES.search(data):
            return _without_usage(data)
        return data

    def _read(self, data: bytes) -> None:
        """Read whole events: all at once where they are as nearly all servers send them, else one by one."""
        if not self._read_any:
            self._read_any = True
            if data.startswith(_BOM):
                data = data[3:]
        found = data[6:-2].split(_BETWEEN)
        if not data.startswith(_DATA) or data.count(b"\n") != 2 * len(found) or not (data.isascii() or is_text(data)):
            self._read_slowly(data)
            return
        count, done = len(found), found[-1] == b"[DONE]"
        if done:
            found.pop()
        if found:
            try:
                plain = self._take_plain(found, data)
            except (msgspec.DecodeError, UnicodeDecodeError):
                plain = False
            if not plain:
                self._read_slowly(data)
                return
        self.events += count
        self.done = done

    def _telling(self, found: list[bytes], data: bytes) -> list[bytes]:
        """Return the chunks that say more than a piece of the answer. Raises DecodeError when any is not JSON.

        A quotation mark inside a string is escaped, so what is looked for can only be a field, or a string that reads
        like its name. Where a chunk might have two of them, as in something nested, all are returned.
        """
        left = len(found) - data.count(_GOES_ON)
        telling: list[bytes] = []
        # They are the last ones, and perhaps the first.
        for one in (found[0], *reversed(found[1:])):
            if not left:
                break
            if _GOES_ON not in one:
                telling.append(one)
                left -= 1
        first = bool(telling) and telling[0] is found[0]
        telling.reverse()
        if first:
            telling.insert(0, telling.pop())
        told = b"".join(telling)
        if (
            left
            or len(telling) == len(found)
            or data.count(_REASON) - told.count(_REASON) != len(found) - len(telling)
            or any(data.count(word) != told.count(word) for word in _WORDS)
            or (
                (more := data.count(_USAGE) - told.count(_USAGE))
                and more != data.count(_NO_USAGE) - told.count(_NO_USAGE)
            )
        ):
            return found
        if len(_objects.decode(b"[" + b",".join(found) + b"]")) != len(found):
            raise msgspec.DecodeError("chunks that are not as they should be")
        if not self.model and not first:
            telling.insert(0, found[0])
        return telling

    def _take_plain(self, found: list[bytes], data: bytes) -> bool:
        """Take chunks that hold nothing unusual; False when one does: then they are to be read one by one.

        Raises DecodeError as well.
        """
        told = self._telling(found, data) if self._choices == 1 and not self._begun_choices else found
        chunks = _chunks.decode(b"[" + b",".join(told) + b"]")
        if len(chunks) != len(told):
            return False
        if not self.model and told is not found and not chunks[0].model:
            chunks = _chunks.decode(b"[" + b",".join(found) + b"]")
        for chunk in chunks:
            if chunk.error or chunk.x_groq is not None:
                return False
            for choice in chunk.choices or ():
                reason = choice.finish_reason
                if choice.error or choice.usage or (reason and reason not in PLAIN_ENDS):
                    return False
                if reason:
                    self._end(choice.index, reason)
                elif choice.index:
                    self._begin(choice.index)
            if chunk.usage and (usage := bytes(chunk.usage)) != b"null":
                if not _counted(usage):
                    return False
                self._usage = usage
            if not self.model:
                self.model = chunk.model or None
        return True

    def _begin(self, index: int) -> None:
        if index not in self._ended:
            self._begun_choices.add(index)
            self.finished = False

    def _end(self, index: int, reason: str) -> None:
        self._ended.add(index)
        self._begun_choices.discard(index)
        if index == 0 or self.finish_reason is None:
            self.finish_reason = reason
        self.finished = len(self._ended) >= self._choices and not self._begun_choices

    def _read_slowly(self, data: bytes) -> None:
        """Read events one by one, as the dialect's decoder does; what is before a broken one is `sound`."""
        at = 0
        for end in _ends(data, "sse"):
            try:
                for name, payload in SseDecoder().feed(b"\n" + data[at:end] + b"\n\n"):
                    self._event(name, payload)
            except ProviderError:
                self.sound = self._passed(data[:at]) if at else b""
                raise
            at = end
            if self.done:
                return

    def _event(self, name: str | None, payload: bytes) -> None:
        self.events += 1
        if len(payload) < 16 and (word := payload.strip()) in (b"[DONE]", b""):
            self.done = bool(word)
            return
        chunk = load_object(payload, "A chunk of the stream")
        if chunk.get("error"):
            raise error_in(chunk)
        if chunk and name == "error" and not chunk.keys() & {"error", "choices"}:
            raise error_in({"error": chunk})
        usage: Any = chunk.get("usage") or as_dict(chunk.get("x_groq")).get("usage")
        for choice in as_list(chunk.get("choices")):
            fields = as_dict(choice)
            if fields.get("error"):
                raise error_in(fields)
            index: Any = fields.get("index")
            index = index if isinstance(index, int) else 0
            if reason := as_str(fields.get("finish_reason")):
                check_reason(reason)
                self._end(index, reason)
            elif index:
                self._begin(index)
            usage = usage or fields.get("usage")
        if decode_usage(usage) is not None:
            self._usage = msgspec.json.encode(usage)
        self.model = self.model or as_str(chunk.get("model")) or None

    def close(self) -> bytes:
        """End the answer, with the `[DONE]` that some servers leave out."""
        rest = b""
        if not self.done and self._rest.strip():
            try:
                # Some leave out the last blank line too; half an event is not one.
                rest = self.feed(b"\n\n")
            except WireError:
                rest = b""
        # None leaves out the reason; `[DONE]` without one is a cut answer dressed up.
        if not self.finished and not (self.done and 0 in self._ended and not self._begun_choices):
            raise StreamInterrupted("The answer ended without its terminal event.")
        return rest if self.done else rest + b"data: [DONE]\n\n"


def _without_usage(data: bytes) -> bytes:
    """Take the events that have usage and no choices out of whole events."""
    if b"\r" not in data and data.count(_USAGE) == 1:
        found = data.index(_USAGE)
        start, end = data.rfind(b"\n\n", 0, found), data.index(b"\n\n", found) + 2
        start = 0 if start < 0 else start + 2
        return data[:start] + data[end:] if _only_counts(data[start:end]) else data
    out, at = b"", 0
    for end in _ends(data, "sse"):
        event = data[at:end]
        at = end
        if not _only_counts(event):
            out += event
    return out + data[at:]


def _only_counts(event: bytes) -> bool:
    if _USAGE not in event or not _NO_CHOICES.search(event):
        return False
    plain = event.startswith(_DATA) and event.count(b"\n") == 2
    found = [(None, event[6:])] if plain else SseDecoder().feed(b"\n" + event + b"\n\n")
    try:
        chunk = _chunk.decode(found[0][1] if found else b"{}")
    except (msgspec.DecodeError, UnicodeDecodeError):
        return False
    return chunk.choices == [] and _counted(bytes(chunk.usage))


def _counted(usage: bytes) -> bool:
    return b'"prompt_tokens"' in usage or b'"completion_tokens"' in usage


# ----------------------------------------------------------------------------------------------------- other dialects


class DecodingWatcher:
    """Any dialect: the stream is decoded as usual, and its events passed on as they came."""

    __slots__ = (
        "_decoder", "_framing", "_rest", "begun", "cost", "done", "events", "finish_reason", "finished", "model",
        "sound", "usage",
    )  # fmt: skip

    def __init__(self, decoder: StreamDecoder, framing: Framing) -> None:
        self._decoder = decoder
        self._framing: Framing = framing
        self._rest = self.sound = b""
        self.begun = self.finished = self.done = False
        self.events = 0
        self.usage: Usage | None = None
        self.cost: int | None = None
        self.model: str | None = None
        self.finish_reason: str | None = None

    def feed(self, data: bytes) -> bytes:
        """Take bytes; returns whole events."""
        if self._rest:
            data = self._rest + data
        at = 0
        for end in _ends(data, self._framing):
            try:
                self._take(self._decoder.feed(data[at:end]))
            except ProviderError:
                self.sound = data[:at]
                raise
            at = end
        self._rest = data[at:]
        _too_large(len(self._rest))
        return data[:at]

    def _take(self, items: list[Item]) -> None:
        self.events += len(items)
        for item in items:
            if isinstance(item, Finish):
                if item.reason in ("interrupted", "error"):
                    raise StreamInterrupted(f"The model's server broke off its answer ({item.raw or item.reason}).")
                self.finished = self.done = self.begun = True
                self.usage, self.model, self.cost = item.usage, item.model, item.cost
                self.finish_reason = item.raw or item.reason
            elif isinstance(item, (TextItem, ReasoningItem, ToolCallItem)):
                self.begun = True

    def close(self) -> bytes:
        """End the stream."""
        rest, self._rest = self._rest, b""
        if self.finished:
            return b""
        if rest.strip():
            self._take(self._decoder.feed(rest))
        if not self.finished:
            self._take(self._decoder.close())
        return rest


def watcher_for(dialect: Dialect, *, hide_usage: bool = False, choices: int = 1, framing: Framing = "sse") -> Watcher:
    """Return a watcher for one streamed answer of this dialect; `choices` is how many answers were asked for."""
    if dialect.name == "openai_chat":
        return ChatWatcher(hide_usage=hide_usage, choices=choices)
    return DecodingWatcher(dialect.stream_decoder(), framing)
