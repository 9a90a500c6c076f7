"""BERT's own tokenizer for its GGUF models.

The engine has one too, but drops what it takes for accents: vowels of Indian scripts and syllables of Korean among
them, and with them the meaning. The steps are those of google-research/bert, tokenization.py, for uncased models, in
the order of github.com/huggingface/tokenizers (normalizers/bert.rs, models/wordpiece).
"""

from __future__ import annotations

import re
import struct
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Final

from windlass.core.errors import LocalModelError
from windlass.local.gguf import GgufArray, GgufInfo

__all__ = ["WordPiece", "word_piece"]

_TOKENS: Final = "tokenizer.ggml.tokens"
#: Longer words are unknown as a whole.
_LONGEST: Final = 100
#: How llama.cpp marks that a word begins.
_BEGIN: Final = "▁"
_SPECIAL: Final = re.compile(r"(\[(?:CLS|SEP|UNK|PAD|MASK)\])")
_CJK: Final = re.compile("([\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0002ceaf\U0002f800-\U0002fa1f])")


class WordPiece:
    """The vocabulary of a model; `begin` and `end` are the ids around each text."""

    def __init__(self, tokens: Sequence[str], begin: int, end: int, unknown: int) -> None:
        self._begin, self._end, self._unknown = begin, end, unknown
        self._special = {token: at for at, token in enumerate(tokens) if _SPECIAL.fullmatch(token)}
        self._first: dict[str, int] = {}
        self._further: dict[str, int] = {}
        for at, token in enumerate(tokens):
            if token.startswith(_BEGIN):
                self._first.setdefault(token[len(_BEGIN) :], at)
            else:
                self._further.setdefault(token, at)

    def encode(self, text: str, limit: int | None = None) -> list[int]:
        """Return the ids of a text with the marks around it; what is beyond `limit` is cut before the last mark."""
        ids = [self._begin]
        for part in _SPECIAL.split(text):
            if part in self._special:
                ids.append(self._special[part])
                continue
            for word in _words(part):
                ids += self._pieces(word)
        if limit is not None and len(ids) >= limit:
            del ids[max(limit - 1, 1) :]
        return [*ids, self._end]

    def _pieces(self, word: str) -> list[int]:
        out: list[int] = []
        known, start = self._first, 0
        while start < len(word) <= _LONGEST:
            end = next((end for end in range(len(word), start, -1) if word[start:end] in known), None)
            if end is None:
                break
            out.append(known[word[start:end]])
            known, start = self._further, end
        return out if start == len(word) else [self._unknown]


def _words(text: str) -> Iterator[str]:
    clean = "".join([" " if c.isspace() else c for c in text if c in "\t\n\r" or not _is_control(c)])
    plain = unicodedata.normalize("NFD", _CJK.sub(r" \1 ", clean))
    plain = "".join([c for c in plain if unicodedata.category(c) != "Mn"]).lower()
    for run in plain.split():
        word = ""
        for c in run:
            if _is_punctuation(c):
                if word:
                    yield word
                yield c
                word = ""
            else:
                word += c
        if word:
            yield word


def _is_control(c: str) -> bool:
    # Not "Cn": what Unicode had not named when the model was made stays, as there.
    return c == "\ufffd" or unicodedata.category(c) in ("Cc", "Cf", "Co", "Cs")


def _is_punctuation(c: str) -> bool:
    # All that is neither letter nor digit in ASCII, also what Unicode calls a symbol ($ + < = > ^ ` | ~).
    return (c.isascii() and not c.isalnum()) or unicodedata.category(c)[0] == "P"


def word_piece(info: GgufInfo) -> WordPiece | None:
    """Return the tokenizer of a BERT model whose header was read, None for models with another kind. Blocking.

    Raises LocalModelError when the file cannot be read.
    """
    listed = info.metadata.get(_TOKENS)
    if info.metadata.get("tokenizer.ggml.model") != "bert" or not isinstance(listed, GgufArray):
        return None

    def mark(names: tuple[str, ...], usual: int) -> int:
        values: list[Any] = [info.metadata.get(f"tokenizer.ggml.{name}_token_id") for name in names]
        found = next((value for value in values if isinstance(value, int)), usual)
        return found if 0 <= found < listed.count else 0

    try:
        with Path(info.path).open("rb") as file:
            file.seek(info.starts[_TOKENS])
            tokens = [_string(file) for _ in range(listed.count)]
    except (OSError, KeyError) as error:
        raise LocalModelError(f"The vocabulary of {info.path} cannot be read: {error}.", path=info.path) from error
    # What llama.cpp takes where a file says nothing: those of bert-base-uncased.
    begin, end = mark(("bos", "cls"), 101), mark(("seperator", "eos"), 102)
    return WordPiece(tokens, begin, end, mark(("unknown",), 100))


def _string(file: BinaryIO) -> str:
    head = file.read(8)
    if len(head) != 8:
        raise OSError("the file became shorter")
    (length,) = struct.unpack("<Q", head)
    return file.read(length).decode("utf-8", "replace")
