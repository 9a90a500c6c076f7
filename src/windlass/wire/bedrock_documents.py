"""Documents as Bedrock wants them: a format by its short name, and a name that is plain and unique in the request."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from windlass.core.messages import Blob, Message, Part, ToolResponse, Uri
from windlass.wire.media import text_document

__all__ = ["FORMATS", "MIMES", "DocumentNames", "document_format"]

_OFFICE: Final = "application/vnd.openxmlformats-officedocument"
#: Format -> MIME type.
MIMES: Final[dict[str, str]] = {
    "pdf": "application/pdf",
    "csv": "text/csv",
    "doc": "application/msword",
    "docx": f"{_OFFICE}.wordprocessingml.document",
    "xls": "application/vnd.ms-excel",
    "xlsx": f"{_OFFICE}.spreadsheetml.sheet",
    "html": "text/html",
    "txt": "text/plain",
    "md": "text/markdown",
}
FORMATS: Final = tuple(MIMES)
_BY_MIME: Final = {mime: name for name, mime in MIMES.items()}
_LONGEST: Final = 200
_OTHER = re.compile(r"[^a-zA-Z0-9\-()\[\]]+")


def document_format(part: Blob | Uri) -> str | None:
    """Return the format of a document, None for one that Bedrock does not read; other text is `txt`."""
    if known := _BY_MIME.get(part.mime_type or ""):
        return known
    return "txt" if text_document(part) is not None else None


class DocumentNames:
    """Give documents names: letters, digits, hyphens, brackets and single spaces; none twice, whatever its case.

    "Messages can't contain duplicate document names" counts the whole request. A name depends on the documents before
    it only, so that an earlier part of a conversation may be kept encoded.
    """

    __slots__ = ("_before", "_taken")

    def __init__(self, before: Iterable[Message] = ()) -> None:
        self._before = before
        self._taken: set[str] | None = None

    def take(self, part: Blob | Uri) -> str:
        """Return the name of the next document."""
        if self._taken is None:
            # Only a conversation that holds a document is walked.
            self._taken = set()
            for earlier in _documents(self._before):
                self._give(earlier)
        return self._give(part)

    def _give(self, part: Blob | Uri) -> str:
        taken = self._taken if self._taken is not None else set[str]()
        stem = (part.filename or "").rsplit("/", 1)[-1]
        stem = stem.rpartition(".")[0] or stem
        base = _OTHER.sub(" ", stem)[: _LONGEST - 8].strip() or "document"
        name, number = base, 2
        while name.lower() in taken:
            name = f"{base} ({number})"
            number += 1
        taken.add(name.lower())
        return name


def _documents(messages: Iterable[Message]) -> Iterable[Blob | Uri]:
    for message in messages:
        if message.role != "assistant":
            for part in message.parts:
                inner: Iterable[Part] = (part,)
                if isinstance(part, ToolResponse):
                    inner = () if isinstance(part.response, str) else part.response
                yield from [one for one in inner if isinstance(one, (Blob, Uri)) and one.modality == "document"]
