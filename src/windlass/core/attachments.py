"""Files as message parts: what they are is read from their bytes."""

from __future__ import annotations

import mimetypes

from windlass.core.errors import UnsupportedInputError
from windlass.core.messages import Blob, Modality

__all__ = ["blob"]

# Magic numbers of what models take as bytes; a wrong declared type is refused by vendors with a vague error.
_MAGIC: tuple[tuple[bytes, int, str], ...] = (
    (b"\x89PNG\r\n\x1a\n", 0, "image/png"),
    (b"\xff\xd8\xff", 0, "image/jpeg"),
    (b"GIF87a", 0, "image/gif"),
    (b"GIF89a", 0, "image/gif"),
    (b"WEBP", 8, "image/webp"),
    (b"%PDF-", 0, "application/pdf"),
)


def blob(data: bytes, *, filename: str | None = None, mime_type: str | None = None) -> Blob:
    """Make a blob part; the type is read from the bytes, then from the name, and UTF-8 text is `text/plain`.

    Raises UnsupportedInputError when the bytes are empty, or are neither a known image or document nor text.
    """
    where = filename or "attachment"
    if not data:
        raise UnsupportedInputError(f"{where} is empty.", hint="Attach a file that has content.")
    found = next((mime for magic, at, mime in _MAGIC if data[at : at + len(magic)] == magic), None)
    guessed = mimetypes.guess_type(filename)[0] if filename else None
    if found is None and guessed is not None and guessed.startswith("image/") and guessed != "image/svg+xml":
        raise UnsupportedInputError(
            f"{where} is named as {guessed}, but its first bytes are not those of a PNG, JPEG, GIF or WebP image.",
            hint="Convert it, or check that the file is whole.",
        )
    mime = mime_type or found or guessed
    if mime is None or not (found or mime.startswith(("image/", "audio/", "video/")) or mime == "application/pdf"):
        try:
            data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise UnsupportedInputError(
                f"{where} is neither an image, a PDF nor UTF-8 text (byte {error.start} is not text).",
                hint="Models take PNG, JPEG, GIF, WebP, PDF and UTF-8 text.",
            ) from None
        mime = mime or "text/plain"
    kind = mime.split("/", 1)[0]
    modality: Modality = (
        "image" if kind == "image" else "audio" if kind == "audio" else "video" if kind == "video" else "document"
    )
    return Blob(data, mime, modality, filename)
