"""The tokens of a GGUF file without the engine: byte-level BPE, for the torch reference."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Sequence
from typing import Any, Protocol

from tokenizers import Tokenizer

from windlass.core.json import dumps
from windlass.local.convert_tokenizer import from_gguf_tokenizer
from windlass.local.gguf_data import GgufFile

__all__ = ["GgufVocabulary", "Vocabulary", "token_bytes"]


class Vocabulary(Protocol):
    """What text models of the torch reference need: `training.Tokenizer` is one, `GgufVocabulary` another.

    `special` are the strings of control tokens, `tokens` all in the order of their ids, bytes in GPT-2's letters.
    """

    special: list[str]

    @property
    def eos_id(self) -> int | None: ...
    def encode(self, text: str, *, special: bool = True) -> list[int]: ...
    def tokens(self) -> list[str]: ...


class GgufVocabulary:
    """The vocabulary of a GGUF model, read from its checked header. Blocking.

    Raises LocalModelError for another kind than `from_gguf_tokenizer` knows: give such a model token ids.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        with GgufFile(path) as file:
            wanted = [key for key in file.info.metadata if key.startswith("tokenizer.ggml.")]
            keys = {key: file.value(key) for key in wanted}
        description, _ = from_gguf_tokenizer(keys, os.fspath(path))
        self._tokens: list[str] = keys["tokenizer.ggml.tokens"]
        eos = keys.get("tokenizer.ggml.eos_token_id")
        self.eos_id: int | None = eos if isinstance(eos, int) else None
        self._ids = {token: number for number, token in enumerate(self._tokens)}
        added: list[dict[str, Any]] = description["added_tokens"]
        self.special = [token["content"] for token in added if token["special"]]
        self._fixed = [token["content"] for token in added if not token["special"]]
        self._bpe = Tokenizer.from_str(dumps({**description, "added_tokens": []}).decode())

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Return the ids of a text; `special`: strings of control tokens in it are those tokens."""
        whole = sorted([*self._fixed, *(self.special if special else ())], key=len, reverse=True)
        out: list[int] = []
        for piece, single in _split(text, whole):
            out += [self._ids[piece]] if single else self._bpe.encode(piece, add_special_tokens=False).ids
        return out

    def tokens(self) -> list[str]:
        """Return the tokens in the order of their ids."""
        return self._tokens


def token_bytes(vocabulary: Vocabulary) -> list[bytes]:
    """Return the bytes of every token; none for control tokens."""
    table, control = _letters(), frozenset(vocabulary.special)
    out: list[bytes] = []
    for token in vocabulary.tokens():
        known = [table.get(letter) for letter in token]
        if token in control:
            out.append(b"")
        elif None in known:  # a fixed string that is kept as it is
            out.append(token.encode())
        else:
            out.append(bytes([byte for byte in known if byte is not None]))
    return out


@functools.cache
def _letters() -> dict[str, int]:
    """Return GPT-2's letters for bytes (openai/gpt-2, encoder.py): printable ones are themselves."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + n): byte for n, byte in enumerate(others)}


def _split(text: str, whole: Sequence[str]) -> list[tuple[str, bool]]:
    """Cut a text at fixed strings: one string after the other through all of it, as llama.cpp does."""
    pieces = [(text, False)] if text else []
    for string in whole:
        cut: list[tuple[str, bool]] = []
        for piece, single in pieces:
            if single:
                cut.append((piece, True))
                continue
            parts = re.split(f"({re.escape(string)})", piece)
            cut += [(part, part == string) for part in parts if part]
        pieces = cut
    return pieces
