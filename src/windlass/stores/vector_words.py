"""Texts for SQLite's full-text index, and queries that no text can break."""

from __future__ import annotations

import re
import unicodedata
from itertools import pairwise
from typing import Final

__all__ = ["TOKENIZER", "indexed", "query_of"]

#: Words by Unicode's letters and digits; "cafe" finds "café" (sqlite.org/fts5.html, 4.3.1).
TOKENIZER: Final = "unicode61 remove_diacritics 2"
_CJK: Final = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f"
#: Chinese characters and Japanese kana stand without spaces: each is indexed as a word, and pairs of them looked for.
_UNSPACED: Final = re.compile(f"([{_CJK}])")
_WORD: Final = re.compile(rf"[{_CJK}]+|[^\W{_CJK}]+")
#: Words of a query that are looked for; a longer text is cut.
_MAX_WORDS: Final = 64


def indexed(text: str) -> str:
    """Return a text as it is indexed: in one Unicode form, without what UTF-8 cannot carry."""
    return _UNSPACED.sub(r" \1 ", _plain(text))


def query_of(text: str) -> str:
    """Return a query in FTS5's language for any of the words of a text, "" where it has none.

    >>> query_of('NEAR("a" OR b*) -- naïve 日本語')
    '"NEAR" OR "a" OR "OR" OR "b" OR "naïve" OR "日 本" OR "本 語"'
    """
    phrases: list[str] = []
    for word in _WORD.findall(_plain(text)):
        if len(word) > 1 and _UNSPACED.match(word):
            phrases += [f"{one} {other}" for one, other in pairwise(word)]
        else:
            phrases.append(word)
    # In quotes nothing is an operator (fts5.html, 3.1), and a word holds no quote.
    return " OR ".join([f'"{phrase}"' for phrase in list(dict.fromkeys(phrases))[:_MAX_WORDS]])


def _plain(text: str) -> str:
    return unicodedata.normalize("NFKC", text.encode("utf-8", "replace").decode()).replace("\0", " ")
