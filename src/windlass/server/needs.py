"""What a request needs of its target, told from its bytes, for routes that have a choice."""

from __future__ import annotations

import re
from collections.abc import Sequence

from windlass.providers.target import Needs, Target
from windlass.server.body import Fields

__all__ = ["estimate_body", "needs_of_body"]

_KINDS = re.compile(rb'"type"\s*:\s*"(image|document|file|input_image|input_file|image_url)"')
_IMAGES = frozenset((b"image", b"input_image", b"image_url"))
_BASE64 = re.compile(rb"[A-Za-z0-9+/_-]{64}")
#: A string shorter than this is not worth a look: it is no image, or a tiny one.
_SHORT = 2048
#: The most tokens that an image counts, those of a PDF's page and the bytes that a page is taken to have (as
#: `core.estimate` has them), and bytes of sound per token.
_IMAGE, _PAGE, _PAGE_BYTES, _SOUND_BYTES = 1568, 2250, 50_000, 500


def needs_of_body(body: bytes, fields: Fields, targets: Sequence[Target]) -> Needs:
    """Return what a chat or messages request needs; its size is only looked at closely where it may be too much."""
    kinds = set(_KINDS.findall(body)) if b'"type"' in body else set[bytes]()
    tokens = len(body) // 4
    windows = [window for target in targets if (window := target.context) is not None]
    if windows and tokens > min(windows):
        tokens = estimate_body(body)
    elif not windows:
        tokens = 0
    return Needs(
        tools="tools" in fields and bytes(memoryview(fields["tools"])[:3]) not in (b"[]", b"nul"),
        vision=not kinds.isdisjoint(_IMAGES),
        documents=not kinds <= _IMAGES,
        tokens=tokens,
    )


def estimate_body(body: bytes) -> int:
    r"""Return the estimated tokens of a JSON body: a quarter of its bytes, less what only its encoding makes long.

    Base64 counts as the image, PDF or sound that it is, and a `\uXXXX` as the two or three bytes that it stands for.
    """
    total, media = len(body), 0
    for piece in body.split(b'"'):
        if len(piece) < _SHORT:
            continue
        start = piece.find(b"base64,", 0, 256) + 7 if piece.startswith(b"data:") else 0
        if not _BASE64.match(piece, start):
            continue
        size = (len(piece) - start) * 3 // 4
        total -= len(piece)
        if piece.startswith(b"JVBER", start):  # %PDF
            media += _PAGE * -(-size // _PAGE_BYTES)
        elif piece.startswith((b"UklGR", b"SUQz", b"//", b"T2dnU", b"ZkxhQ"), start):  # RIFF, ID3, MPEG, Ogg, FLAC
            media += max(_IMAGE, size // _SOUND_BYTES)
        else:
            media += _IMAGE
    return (total - 3 * body.count(b"\\u")) // 4 + media
