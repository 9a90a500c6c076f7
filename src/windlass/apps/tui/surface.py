"""What the conversation needs of a terminal, whether it redraws a few lines or only ever adds some."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from msgspec import Struct

__all__ = ["Question", "Surface"]


class Question(Struct, frozen=True):
    """A question of one key: `choices` maps each key to the word that explains it; anything else asks again.

    `safe` is the answer of Esc, of the end of input and of an interrupt.
    """

    text: str
    choices: dict[str, str]
    safe: str

    @property
    def hint(self) -> str:
        """The choices as people read them: `[y]es, [n]o`."""
        shown = [
            word.replace(key, f"[{key}]", 1) if word.startswith(key) else f"[{key}] {word}"
            for key, word in self.choices.items()
        ]
        return ", ".join(shown)


class Surface(Protocol):
    """Where a conversation is shown and where its answers come from."""

    @property
    def width(self) -> int:
        """Columns."""
        ...

    def write(self, text: str) -> None:
        """Print finished lines; they are never touched again."""
        ...

    def changed(self) -> None:
        """Say that what is shown below the text (status, waiting) is another now."""
        ...

    def say(self, text: str) -> None:
        """Show a word for now, without making it a part of the text where that can be."""
        ...

    def attention(self, what: str, /) -> None:
        """Call the person: something is done, or needs an answer."""
        ...

    def put_back(self, text: str) -> None:
        """Give text back to the input line."""
        ...

    async def ask(self, question: Question) -> str:
        """Return the key of the answer."""
        ...

    async def choose(self, title: str, rows: Sequence[str]) -> int | None:
        """Return the index of the chosen row, None when the person leaves."""
        ...

    def leave(self, code: int) -> None:
        """End the program with this exit code."""
        ...
