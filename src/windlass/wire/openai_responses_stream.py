"""OpenAI Responses streams, from the vendor; and whole answers.

Source: platform.openai.com/docs/api-reference/responses-streaming.
"""

from __future__ import annotations

from windlass.core.errors import ProviderError, StreamInterrupted, WireError
from windlass.core.items import Finish, Item
from windlass.wire.base import as_str, load_json, load_object
from windlass.wire.openai_responses_read import AnswerReader
from windlass.wire.sse import MAX_EVENT, SseDecoder, SseEvent

__all__ = ["ResponsesStreamDecoder", "decode_response"]


def decode_response(body: bytes) -> Finish:
    """Read a whole answer, or a stream where the server knows nothing else.

    Raises WireError, or the classified ProviderError when the body holds an error.
    """
    start = body[:64].lstrip(b"\xef\xbb\xbf \t\r\n")
    if start.startswith((b"event:", b"data:", b":")):
        decoder = ResponsesStreamDecoder()
        finish = [*decoder.feed(body), *decoder.close()][-1]
    else:
        finish = AnswerReader().take_whole(load_object(body))[-1]
    assert isinstance(finish, Finish)
    return finish


class ResponsesStreamDecoder:
    """Read one stream (`StreamDecoder`): `response.completed`, `.incomplete` or `.failed` ends it, nothing else does.

    A server that ignores `stream` and answers with one JSON object is read as well; a web page is a WireError.
    """

    __slots__ = ("_plain", "_reader", "_sniffed", "_sse")

    def __init__(self) -> None:
        self._sse = SseDecoder()
        self._reader = AnswerReader()
        self._sniffed = False
        self._plain: bytearray | None = None

    def feed(self, data: bytes) -> list[Item]:
        """Take bytes, split anywhere, and return the items they complete."""
        out: list[Item] = []
        if self._reader.raw is not None:
            return out
        if not self._sniffed:
            self._sniff(data)
        if self._plain is not None:
            self._plain += data
            if len(self._plain) > MAX_EVENT:
                raise WireError(f"The answer is larger than {MAX_EVENT} bytes.")
            return out
        self._events(data, out)
        return out

    def close(self) -> list[Item]:
        """End the body. Raises StreamInterrupted, with the text so far, when nothing said that the answer is whole."""
        out: list[Item] = []
        reader = self._reader
        if reader.raw is not None:
            return out
        if self._plain is not None:
            return reader.take_whole(load_object(bytes(self._plain)))
        try:
            # Some servers leave out the last blank line; half an event is not one.
            self._take(self._sse.close(), out)
        except WireError:
            pass
        except ProviderError as error:
            error.partial = reader.assembler.text
            raise
        if reader.raw is None:
            raise StreamInterrupted(
                "The stream ended before the model had finished.",
                partial=reader.assembler.text,
                hint="The text so far is kept; ask again for the rest.",
            )
        return out

    def _sniff(self, data: bytes) -> None:
        start = data.lstrip(b"\xef\xbb\xbf \t\r\n")
        if not start:
            return
        self._sniffed = True
        if start[:1] == b"{":
            self._plain = bytearray()
        elif start[:1] == b"<":
            load_json(data, "The stream")

    def _events(self, data: bytes, out: list[Item]) -> None:
        try:
            self._take(self._sse.feed(data), out)
        except ProviderError as error:
            error.partial = self._reader.assembler.text
            raise

    def _take(self, events: list[SseEvent], out: list[Item]) -> None:
        for name, data in events:
            if self._reader.raw is not None:
                return
            if data.strip() in (b"[DONE]", b""):
                continue
            event = load_object(data, "An event of the stream")
            out += self._reader.take(as_str(event.get("type")) or name or "", event)
