"""End a text at a stop string or stop token, wherever tokens happen to cut it."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from windlass.local.backend import Piece

__all__ = ["Stopper"]


class Stopper:
    """Pass pieces on, holding back those whose text may be the beginning of a stop string."""

    def __init__(self, stops: Sequence[str] = (), stop_tokens: frozenset[int] = frozenset()) -> None:
        self._stops, self._stop_tokens = tuple(stops), stop_tokens
        self._held: list[Piece] = []
        self._text = ""

    def feed(self, piece: Piece) -> tuple[list[Piece], bool]:
        """Take a piece; return those that can be shown now, and whether the text ends there.

        What ends it is not among them: not the stop token, and of a stop string no character.
        """
        if piece.token_id in self._stop_tokens:
            return self.flush(), True
        if not self._stops:
            return [piece], False
        self._held.append(piece)
        self._text += piece.text
        found = [at for stop in self._stops if (at := self._text.find(stop)) >= 0]
        if found:
            return self._cut(min(found)), True
        return self._release(len(self._text) - self._open()), False

    def flush(self) -> list[Piece]:
        """Return what is held back: the text has ended without them."""
        held, self._held, self._text = self._held, [], ""
        return held

    def _open(self) -> int:
        """Return how many characters at the end may begin a stop string."""
        longest = 0
        for stop in self._stops:
            for length in range(min(len(stop) - 1, len(self._text)), longest, -1):
                if self._text.endswith(stop[:length]):
                    longest = length
                    break
        return longest

    def _release(self, end: int) -> list[Piece]:
        """Return the held pieces that lie before character `end`; a token is shown whole or not at all."""
        at = count = 0
        for piece in self._held:
            at += len(piece.text)
            if at > end:
                break
            count += 1
        out, self._held = self._held[:count], self._held[count:]
        self._text = "".join([piece.text for piece in self._held])
        return out

    def _cut(self, end: int) -> list[Piece]:
        """Return the held pieces up to character `end`, the last one shortened."""
        out: list[Piece] = []
        left = end
        for piece in self.flush():
            if left <= 0:
                break
            out.append(piece if len(piece.text) <= left else replace(piece, text=piece.text[:left]))
            left -= len(piece.text)
        return out
