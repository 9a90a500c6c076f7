"""What a file is, by its bytes: an image or a document that a model can be shown, text, or neither."""

from __future__ import annotations

import posixpath
from collections.abc import Callable

from windlass.core.messages import Blob

__all__ = ["IMAGE_BYTES", "PDF_BYTES", "media_of"]

#: Vendors refuse larger ones.
IMAGE_BYTES = 5 * 1024 * 1024
PDF_BYTES = 10 * 1024 * 1024
_HEAD = 4096

#: How each kind begins. The names of files say nothing: a `.png` may hold text.
_KINDS: dict[str, Callable[[bytes], bool]] = {
    "image/png": lambda head: head.startswith(b"\x89PNG\r\n\x1a\n"),
    "image/jpeg": lambda head: head.startswith(b"\xff\xd8\xff"),
    "image/gif": lambda head: head.startswith((b"GIF87a", b"GIF89a")) and not _is_text(head),
    "image/webp": lambda head: head.startswith(b"RIFF") and head[8:12] == b"WEBP" and not _is_text(head),
    "application/pdf": lambda head: head.startswith(b"%PDF-"),
}


def media_of(data: bytes, path: str) -> Blob | None:
    """Return a PNG, JPEG, GIF, WebP or PDF as a part, None for anything else (an SVG is text)."""
    head = data[:_HEAD]
    for kind, is_one in _KINDS.items():
        if is_one(head):
            modality = "document" if kind == "application/pdf" else "image"
            return Blob(data, kind, modality, posixpath.basename(path))
    return None


def _is_text(head: bytes) -> bool:
    """Tell whether bytes are plain text: a sentence may begin with `GIF89a`."""
    try:
        text = head[:-3].decode() if len(head) == _HEAD else head.decode()
    except UnicodeDecodeError:
        return False
    return "\x00" not in text
