"""What dialects share on images and documents: text documents as text, and markers for what cannot be sent."""

from __future__ import annotations

from windlass.core.messages import Blob, ToolResponse, Uri, response_text

__all__ = ["inline_document", "marker", "text_document"]

_TEXTS = ("text/", "application/json", "application/xml", "application/yaml", "application/x-yaml", "application/toml")


def text_document(part: Blob | Uri) -> str | None:
    """Return a document's text when it is one that can be read as text, else None."""
    if not isinstance(part, Blob) or part.modality != "document" or not part.mime_type.startswith(_TEXTS):
        return None
    return part.content.decode("utf-8", "replace")


def inline_document(part: Blob | Uri, text: str) -> str:
    """Return a document as text of the message, for models that take none as a file."""
    name = (part.filename or "document").replace('"', "'")
    return f'<document name="{name}">\n{text}\n</document>'


def marker(part: Blob | Uri) -> str:
    """Return the short text that stands for an image or document where the model cannot be shown it."""
    return response_text(ToolResponse("", (part,)))
