"""Content codings of response bodies (RFC 9110, 8.4): gzip and deflate, decoded in bounded pieces."""

from __future__ import annotations

import zlib

__all__ = ["CodingError", "Decoder", "make_decoder"]

#: Decoded bytes of one piece at most: a bomb is met piece by piece, never unpacked whole.
PIECE = 64 * 1024
_GZIP, _ZLIB, _RAW = 31, 15, -15


class CodingError(Exception):
    """Say that a body does not follow its content coding."""


def make_decoder(coding: str) -> Decoder | None:
    """Return a decoder for a Content-Encoding value, None for identity; raises CodingError for any other."""
    name = coding.strip().lower()
    if name in ("", "identity"):
        return None
    if name in ("gzip", "x-gzip"):
        return Decoder(gzip=True)
    if name == "deflate":
        return Decoder(gzip=False)
    raise CodingError(f"content-encoding {name[:40]!r} was not asked for and is not supported")


class Decoder:
    """Decode gzip (of any number of members) or deflate (zlib-wrapped, or raw as some servers send it)."""

    __slots__ = ("_gzip", "_input", "_zip")

    def __init__(self, *, gzip: bool) -> None:
        self._gzip = gzip
        self._input = b""
        self._zip = None

    def feed(self, data: bytes) -> None:
        """Take encoded bytes; `pull` gives the decoded ones."""
        self._input += data

    def pull(self) -> bytes:
        """Return at most 64 kB of decoded bytes, empty when more input is needed; raises CodingError."""
        while True:
            self._prepare()
            unzip = self._zip
            if unzip is None or unzip.eof:
                return b""
            try:
                # Also without input: the last piece's limit may have left output behind.
                out = unzip.decompress(self._input, PIECE)
            except zlib.error as error:
                raise CodingError(f"its compressed body is broken ({error})") from error
            self._input = unzip.unconsumed_tail or unzip.unused_data
            if out or not (unzip.eof and self._input):
                return out

    def _prepare(self) -> None:
        if self._zip is not None and self._zip.eof:
            # Zero bytes after a gzip member are padding; anything else begins the next one.
            self._input = self._input.lstrip(b"\0")
            if not self._input:
                return
            if not self._gzip:
                raise CodingError("its compressed body is followed by other bytes")
            self._zip = None
        if self._zip is None and len(self._input) >= 2:
            wrapped = self._input[0] & 15 == 8 and int.from_bytes(self._input[:2], "big") % 31 == 0  # RFC 1950, 2.2
            self._zip = zlib.decompressobj(_GZIP if self._gzip else _ZLIB if wrapped else _RAW)

    def finish(self) -> None:
        """Check that the coded body was whole; raises CodingError when it was cut short."""
        if self._input or (self._zip is not None and not self._zip.eof):
            raise CodingError("its compressed body is cut short")
