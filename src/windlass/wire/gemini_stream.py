"""Google's streams (`streamGenerateContent?alt=sse`), both ways, and whole answers.

A stream is a row of answers, one server-sent event each, without names and without a `[DONE]`: "if [finishReason is]
empty, the model has not stopped generating tokens" (ai.google.dev/api/generate-content#Candidate), so the event that
holds one is the last.
"""

from __future__ import annotations

from typing import Any

from windlass.core.errors import BadRequestError, ProviderError, StreamInterrupted, WindlassError, WireError
from windlass.core.items import Assembler, Finish, Item, ReasoningItem, TextItem, ToolCallItem, UsageItem
from windlass.core.json import dumps
from windlass.core.messages import Metadata, Reasoning, Text, ToolCall
from windlass.core.usage import Usage
from windlass.wire.base import as_dict, as_list, as_str, excerpt, load_json
from windlass.wire.gemini_answer import (
    decode_usage,
    encode_usage,
    error_data,
    error_of,
    finish_reason,
    response_data,
    wire_reason,
)
from windlass.wire.gemini_parts import KEY, SIGNATURE, answer_part, camel, decode_part, own_fields
from windlass.wire.sse import MAX_EVENT, SseDecoder, encode_sse

__all__ = ["AnswerReader", "GeminiStreamDecoder", "GeminiStreamEncoder", "decode_response"]

_TOP = frozenset(("candidates", "usageMetadata", "modelVersion", "responseId"))
_CANDIDATE = frozenset(("content", "finishReason", "index"))
_NO_REASON = ("", "FINISH_REASON_UNSPECIFIED")


class AnswerReader:
    """Turn decoded answers, the chunks of a stream, into items, and keep what `Finish` needs."""

    def __init__(self) -> None:
        self.assembler = Assembler()
        self.raw = ""
        self._blocked = False
        self._usage: Usage | None = None
        self._model = self._id = ""
        self._kept: Metadata = {}
        self._ids: list[str] = []
        self._sealed = False

    def take(self, data: Any, out: list[Item]) -> bool:
        """Append the items of one chunk; True when it was the last one. Raises the error that a chunk holds."""
        if not isinstance(data, dict):
            raise WireError(f"A chunk of the answer is not an object: {excerpt(dumps(data))!r}.")
        if data.get("error"):
            raise error_of(data, partial=self.assembler.text)
        self._id = self._id or as_str(data.get("responseId"))
        self._model = self._model or as_str(data.get("modelVersion"))
        self._kept.update({key: value for key, value in data.items() if key not in _TOP and value is not None})
        candidate = self._candidate(data.get("candidates"))
        try:
            for part in as_list(as_dict(candidate.get("content")).get("parts")):
                self._part(part, out)
        except BadRequestError as error:
            raise WireError(f"The answer does not follow the dialect: {error.message}.") from None
        if rest := {key: value for key, value in candidate.items() if key not in _CANDIDATE and value is not None}:
            self._kept["candidate"] = {**as_dict(self._kept.get("candidate")), **rest}
        raw = as_str(candidate.get("finishReason"))
        if raw not in _NO_REASON:
            self.raw = raw
        elif block := as_str(as_dict(data.get("promptFeedback")).get("blockReason")):
            self.raw, self._blocked = block, True
        counted = decode_usage(data.get("usageMetadata"))
        if counted is not None and counted != self._usage:
            # Every chunk repeats the totals so far.
            self._usage = counted
            out.append(UsageItem(counted))
        # An end without its usage may still be followed by it.
        return bool(self.raw) and (counted is not None or self._blocked)

    def _candidate(self, candidates: Any) -> dict[str, Any]:
        # With candidateCount > 1 the chunks of several candidates come mixed: ours is the first.
        rows = [as_dict(row) for row in as_list(candidates)]
        return next((row for row in rows if not row.get("index")), {})

    def _part(self, part: Any, out: list[Item]) -> None:
        fields = camel(part, "part")
        if "functionCall" in fields:
            self._call(fields, out)
            return
        made = decode_part(fields, "part")
        metadata = made.provider_metadata if isinstance(made, (Text, Reasoning)) else None
        if isinstance(made, Text) and metadata is None:
            self._open(sealed=False)
            if made.content:
                self._add(TextItem(made.content), out)
        elif isinstance(made, Text):
            # Items of text carry no signature; the message at the end does, and never joins this part with another.
            if made.content:
                out.append(TextItem(made.content))
            self.assembler.block(made)
        elif isinstance(made, Reasoning):
            self._open(sealed=SIGNATURE in own_fields(metadata))
            self._add(ReasoningItem(made.content, metadata), out)
        else:
            self.assembler.block(made)

    def _open(self, *, sealed: bool) -> None:
        """Begin a new part where one of the two is signed: joined, their signatures would fit neither."""
        if sealed or self._sealed:
            self.assembler.end_block()
        self._sealed = sealed

    def _add(self, item: Item, out: list[Item]) -> None:
        self.assembler.add(item)
        out.append(item)

    def _call(self, fields: dict[str, Any], out: list[Item]) -> None:
        call = camel(fields["functionCall"], "part.functionCall")
        if call.get("willContinue") or call.get("partialArgs"):
            raise WireError(
                "The answer streams the arguments of a call in pieces, which was not asked for.",
                hint="Leave out streamFunctionCallArguments.",
            )
        arguments: Any = call.get("args")
        given = as_str(call.get("id"))
        known = {key: value for key, value in fields.items() if key != "functionCall" and value is not None}
        if not given:
            # What it never numbered, the vendor is not told a number of.
            known["id"] = ""
        index = len(self._ids)
        call_id = given
        if not given or given in self._ids:
            # Told apart from the calls of other answers too: a client's history holds them all.
            call_id = f"call_{index}_{self._id}" if self._id else f"call_{index}"
            while call_id in self._ids:
                call_id += "_"
        self._ids.append(call_id)
        text = "{}" if arguments is None else dumps(arguments).decode()
        self._add(ToolCallItem(index, call_id, as_str(call.get("name")), text, {KEY: known} if known else None), out)

    def finish(self) -> Finish:
        """Return the end of the answer."""
        reason = finish_reason(self.raw, calls=bool(self._ids), blocked=self._blocked)
        return Finish(
            self.assembler.message(finish_reason=reason),
            usage=self._usage or Usage(estimated=True),
            reason=reason,
            model=self._model or None,
            response_id=self._id or None,
            raw=self.raw or None,
            provider_metadata={KEY: self._kept} if self._kept else None,
        )

    def interrupted(self) -> StreamInterrupted:
        """Return the error of an answer that nothing ended."""
        return StreamInterrupted(
            "The answer ended without a finishReason.",
            partial=self.assembler.text,
            hint="The connection was cut, or a proxy ended it.",
        )


def _read_whole(body: bytes) -> list[Item]:
    """Read a whole answer, or the array of chunks that a server without `alt=sse` sends."""
    data = load_json(body)
    reader = AnswerReader()
    out: list[Item] = []
    for chunk in data if isinstance(data, list) else [data]:
        reader.take(chunk, out)
    if not reader.raw:
        if isinstance(data, dict) and not as_list(data.get("candidates")):
            raise WireError(f"The answer has no candidates: {excerpt(body)!r}.")
        raise reader.interrupted()
    return [*out, reader.finish()]


def decode_response(body: bytes) -> Finish:
    """Read a whole answer. Raises WireError, or the classified ProviderError when it holds an error."""
    finish = _read_whole(body)[-1]
    assert isinstance(finish, Finish)
    return finish


class GeminiStreamDecoder:
    """Read one stream (`StreamDecoder`); the event with a finishReason, or with a blocked prompt, ends it.

    A server that ignores `alt=sse` and answers with JSON is read as well; a web page is a WireError.
    """

    def __init__(self) -> None:
        self._sse = SseDecoder()
        self._reader = AnswerReader()
        self._done = False
        self._sniffed = False
        self._plain: bytearray | None = None

    def feed(self, data: bytes) -> list[Item]:
        """Take bytes, split anywhere, and return the items they complete.

        Raises the classified ProviderError on an error event and WireError on bytes that do not follow the dialect.
        """
        out: list[Item] = []
        if self._done:
            return out
        if not self._sniffed:
            self._sniff(data)
        if self._plain is not None:
            self._plain += data
            if len(self._plain) > MAX_EVENT:
                raise WireError(f"The answer is larger than {MAX_EVENT} bytes.")
            return out
        self._events(self._sse.feed(data), out)
        return out

    def close(self) -> list[Item]:
        """End the body. Raises StreamInterrupted, with the text so far, when no finishReason came."""
        out: list[Item] = []
        if self._done:
            return out
        if self._plain is not None:
            self._done = True
            return _read_whole(bytes(self._plain))
        try:
            # Some servers leave out the last blank line; half an event is a cut stream, not a bad one.
            self._events(self._sse.close(), out)
        except WireError as error:
            raise self._reader.interrupted() from error
        if self._done:
            return out
        self._done = True
        if not self._reader.raw:
            raise self._reader.interrupted()
        return [*out, self._reader.finish()]

    def _sniff(self, data: bytes) -> None:
        start = data.lstrip(b"\xef\xbb\xbf \t\r\n")
        self._sniffed = bool(start)
        if start[:1] in (b"{", b"["):
            self._plain = bytearray()
        elif start[:1] == b"<":
            load_json(data, "The stream")

    def _events(self, events: list[tuple[str | None, bytes]], out: list[Item]) -> None:
        try:
            for _, payload in events:
                if payload.strip() in (b"", b"[DONE]"):
                    continue
                if self._reader.take(load_json(payload, "A chunk of the stream"), out):
                    self._done = True
                    out.append(self._reader.finish())
                    return
        except ProviderError as error:
            error.partial = error.partial or self._reader.assembler.text
            raise


class GeminiStreamEncoder:
    """Write one stream (`StreamEncoder`). Calls go out whole, before the end, as this dialect has no pieces."""

    def __init__(self, *, model: str, response_id: str) -> None:
        self._model, self._id = model, response_id
        self._usage: dict[str, Any] = {}
        self._calls = Assembler()
        self._said = False

    def encode(self, item: Item) -> bytes:
        """Return the chunk of one item; calls and usage go out at the end, notices not at all."""
        if isinstance(item, TextItem):
            return self._chunk({"text": item.text}) if item.text else b""
        if isinstance(item, ReasoningItem):
            part = answer_part(Reasoning(item.text, item.provider_metadata))
            return b"" if part is None else self._chunk(part)
        if isinstance(item, ToolCallItem):
            self._calls.add(item)
        elif isinstance(item, UsageItem):
            self._usage = {"usageMetadata": encode_usage(item.usage)}
        elif isinstance(item, Finish):
            return self._finish(item)
        return b""

    def error(self, exc: WindlassError) -> bytes:
        """Return the error event, on which the official SDK raises."""
        return encode_sse(dumps(error_data(exc)[1]))

    def _chunk(self, part: dict[str, Any]) -> bytes:
        self._said = True
        candidate = {"content": {"parts": [part], "role": "model"}, "index": 0}
        head = {"modelVersion": self._model, "responseId": self._id}
        return encode_sse(dumps({"candidates": [candidate], **self._usage, **head}))

    def _finish(self, finish: Finish) -> bytes:
        cut_short = finish.reason in ("interrupted", "error")
        parts = self._rest(finish, calls=not cut_short)
        # A word of this vendor's own tells its clients more than an error frame does.
        if cut_short and wire_reason(finish) != finish.raw:
            cut = StreamInterrupted("The answer was cut short upstream; what came before is partial.")
            return b"".join([self._chunk(part) for part in parts]) + self.error(cut)
        return encode_sse(dumps(response_data(finish, parts, model=self._model, response_id=self._id)))

    def _rest(self, finish: Finish, *, calls: bool) -> list[dict[str, Any]]:
        """Return the parts of the message that no item has told: all of them when none was streamed.

        A message without calls leaves those of the deltas, unless the answer broke off amid them.
        """
        out: list[dict[str, Any]] = []
        for part in finish.message.parts:
            made = answer_part(part)
            if made is None or (isinstance(part, Reasoning) and self._said):
                continue
            if isinstance(part, Text) and self._said:
                # The text went out as items, which have no room for its signature.
                signature = own_fields(part.provider_metadata).get(SIGNATURE)
                made = {"text": "", SIGNATURE: signature}
                if signature is None:
                    continue
            out.append(made)
        if calls and not finish.message.tool_calls:
            parts = [answer_part(part) for part in self._calls.message().parts if isinstance(part, ToolCall)]
            out += [part for part in parts if part is not None]
        return out
