"""The estimate of tokens: what it counts, that nothing breaks it, and that it grows with what is said."""

from __future__ import annotations

import struct
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from windlass.core.estimate import estimate_text, estimate_tokens, image_size
from windlass.core.messages import (
    Blob,
    Message,
    Modality,
    Part,
    Reasoning,
    Text,
    ToolCall,
    ToolResponse,
    UnknownPart,
    Uri,
    user,
)
from windlass.core.request import Request, ToolSpec


def png(width: int, height: int) -> bytes:
    head = struct.pack(">II5B", width, height, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + head
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))


def jpeg(width: int, height: int, *, frame: int = 0xC0) -> bytes:
    app = b"\xff\xe0" + struct.pack(">H", 16) + b"JFIF\0" + bytes(9)
    table = b"\xff\xc4" + struct.pack(">H", 4) + b"\0\0"
    return b"\xff\xd8" + app + table + b"\xff\xff" + bytes([frame]) + struct.pack(">HBHHB", 11, 8, height, width, 1)


def webp(kind: bytes, payload: bytes) -> bytes:
    chunk = kind + struct.pack("<I", len(payload)) + payload + bytes(8)
    return b"RIFF" + struct.pack("<I", len(chunk) + 4) + b"WEBP" + chunk


def of(*parts: Part) -> int:
    """Return the tokens of parts without those of a message's frame."""
    return estimate_tokens(Request(model="m", messages=[Message("user", parts)])) - 4


@pytest.mark.parametrize(
    ("text", "tokens"), [("", 0), ("a", 1), ("abcd", 1), ("abcde", 2), ("é" * 4, 2), ("日本語", 3), ("\ud800", 1)]
)
def test_text_is_four_bytes_a_token(text: str, tokens: int) -> None:
    assert estimate_text(text) == tokens


@pytest.mark.parametrize(
    ("data", "size"),
    [
        (png(300, 200), (300, 200)),
        (b"GIF89a" + struct.pack("<HH", 30, 20), (30, 20)),
        (jpeg(640, 480), (640, 480)),
        (jpeg(640, 480, frame=0xC2), (640, 480)),
        (webp(b"VP8X", bytes(4) + (99).to_bytes(3, "little") + (49).to_bytes(3, "little")), (100, 50)),
        (webp(b"VP8L", b"\x2f" + (99 | 49 << 14).to_bytes(4, "little")), (100, 50)),
        (webp(b"VP8 ", b"\0\0\0\x9d\x01\x2a" + struct.pack("<HH", 100, 50)), (100, 50)),
        (webp(b"VP9 ", bytes(12)), None),
        (png(300, 200)[:20], None),
        (png(0, 200), None),
        (b"\xff\xd8" + b"\xff\xe0\0\0" * 9, None),
        (b"BM" + bytes(60), None),
        (b"", None),
    ],
)
def test_the_size_of_an_image_is_in_its_head(data: bytes, size: tuple[int, int] | None) -> None:
    assert image_size(data) == size


@pytest.mark.parametrize(
    ("part", "tokens"),
    [
        (Text("abcdefgh"), 2),
        (Reasoning("abcdefgh"), 2),
        (Blob(png(280, 281), "image/png"), 110),
        (Blob(png(1, 1), "image/png"), 1),
        (Blob(png(8000, 8000), "image/png"), 1568),
        (Blob(b"?", "image/heic"), 1568),
        (Uri("https://example.test/x.png"), 1568),
        (Uri("https://example.test/x.pdf", modality="document"), 2250),
        (Blob(b"%PDF-1.7 /Type /Pages /Type /Page /Type/Page ", "application/pdf", "document"), 4500),
        (Blob(b"%PDF-" + bytes(100_000), "application/pdf", "document"), 3 * 2250),
        (Blob(b"abcdefgh", "text/plain", "document"), 2),
        (Blob(bytes(16_000), "audio/mpeg", "audio"), 32),
        (Blob(bytes(250_000), "video/mp4", "video"), 264),
        (ToolCall("c", "look", {"a": 1}), 4 + 1 + 2),
        (ToolCall("c", "look", None, "abcdefgh"), 4 + 1 + 2),
        (ToolResponse("c", "abcdefgh"), 4 + 2),
        (ToolResponse("c", (Text("abcd"), Blob(png(280, 280), "image/png"))), 4 + 1 + 100),
        (UnknownPart({"type": "x"}), 3),
    ],
)
def test_each_part_counts(part: Part, tokens: int) -> None:
    assert of(part) == tokens


def test_the_whole_request_counts() -> None:
    bare = Request(model="m", messages=[user("abcd"), Message("assistant", (Text("efgh"),))])
    assert estimate_tokens(bare) == 2 * (4 + 1)
    schema = {"type": "object"}
    full = Request(
        model="m",
        messages=bare.messages,
        system="abcdefgh",
        tools=(ToolSpec("look", "abcd", schema),),
        output_schema=schema,
    )
    assert estimate_tokens(full) == 10 + (2 + 4) + (4 + 1 + 1 + 5) + 5


HEADS = [b"", b"\xff\xd8\xff", b"RIFF0000WEBPVP8X", b"GIF89a", b"%PDF-", b"\x89PNG\r\n\x1a\n"]


@st.composite
def blobs(draw: st.DrawFn) -> Blob:
    modality: Modality = draw(st.sampled_from(["image", "audio", "video", "document"]))
    return Blob(draw(st.sampled_from(HEADS)) + draw(st.binary(max_size=40)), "x/y", modality)


@given(texts=st.lists(st.text(max_size=40), max_size=5), files=st.lists(blobs(), max_size=3))
@settings(max_examples=80, deadline=None)
def test_nothing_breaks_it_and_more_is_never_less(texts: list[str], files: list[Blob]) -> None:
    parts: list[Part] = [*[Text(text) for text in texts], *files]
    counts = [of(*parts[:end]) for end in range(len(parts) + 1)]
    assert counts == sorted(counts) and counts[0] == 0


@pytest.mark.parametrize("modality", ["image", "document"])
def test_hostile_files_are_read_in_linear_time(modality: Modality) -> None:
    """A head that sends a careless reader round in circles; the bytes are many, the steps few."""
    for data in (b"\xff\xd8" + b"\xff" * 2_000_000, b"\xff\xd8" + b"\xff\xe0\0\x02" * 500_000,
                 b"%PDF-" + b"/Type    " * 200_000):  # fmt: skip
        assert of(Blob(data, "x/y", modality)) > 0
