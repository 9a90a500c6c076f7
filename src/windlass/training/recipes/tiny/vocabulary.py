"""The embedded model's tokenizer: the same pieces for a name wherever it stands.

Words are learnt without the space before them. Then every piece gets a twin that begins with a space, by merges that
come last: so "hello" and " hello" are cut at the same places and differ in their first token alone, and copying a word
from behind a space to behind a quote is one fixed step from twin to twin.
"""

from __future__ import annotations

import re
from collections import Counter
from functools import cache
from random import Random
from typing import Final

import msgspec
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers, trainers

from windlass.training.recipes.tiny import grammar, results, words
from windlass.training.recipes.tiny.chat import END, FIXED, SPECIAL, TEMPLATE
from windlass.training.tokenizer import Tokenizer

__all__ = ["PIECES", "Encoder", "make_tokenizer", "twins"]

#: How many pieces are learnt from words.
PIECES: Final = 520
_SPACE: Final = "Ġ"
_RUNS: Final = ("ĠĠ", "ĠĠĠ", "ĠĠĠĠ")
# GPT-2's words, for ASCII and the quotes that people write; other text takes the slow way.
_WORD: Final = re.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?[^\W\d_]+| ?\d+| ?(?:[^\s\w]|_)+|\s+(?!\S)|\s+")
_EASY: Final = re.compile(r"[\x00-\x7f“”‘’«»]*")


def _sample(seed: int, tasks: int) -> Counter[str]:
    """Count the words of training text, without spaces and without digits."""
    rng, found = Random(seed), Counter[str]()
    split, tools = grammar.Split(), tuple(grammar.PARAMETERS)
    for number in range(tasks):
        task = grammar.off_topic(rng, split) if number % 8 == 0 else grammar.asked(rng, tools, split, 1 + number % 2)
        texts = [task.prompt, *[text for step in task.steps for text in step.arguments.values()]]
        for text in texts:
            found.update(re.findall(r"[A-Za-z]+|(?<=\w)[^\w\s\"'`]{2,}(?=\w)", text))
        for _ in range(3):
            found.update(re.findall(r"[A-Za-z]+", words.name(rng, False)))
    for _ in range(300):
        found.update(re.findall(r"[A-Za-z]+", results.answer_texts()))
    return found


def make_tokenizer(*, seed: int = 0, tasks: int = 12000, pieces: int = PIECES) -> Tokenizer:
    """Make the tokenizer from generated text: always the same for the same arguments."""
    return Tokenizer(Backend.from_str(_document(seed, tasks, pieces)), eos=END, bos=None, chat_template=TEMPLATE)


@cache
def _document(seed: int, tasks: int, pieces: int) -> str:
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore[reportAttributeAccessIssue]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=256 + pieces, min_frequency=2, show_progress=False, special_tokens=[], initial_alphabet=alphabet
    )
    counted = sorted(_sample(seed, tasks).items())
    backend.train_from_iterator(
        (" ".join([word] * min(count, 4000)).replace(" ", "\n") for word, count in counted), trainer
    )
    inside = msgspec.json.decode(backend.to_str())
    learnt = [
        tuple(merge) if isinstance(merge, list) else tuple(merge.split(" ")) for merge in inside["model"]["merges"]
    ]
    # A piece that holds a line break belongs to the way the words were given, not to the words.
    learnt = [merge for merge in learnt if "Ċ" not in "".join(merge)]
    return _assembled(alphabet, [(str(left), str(right)) for left, right in learnt])


def _assembled(alphabet: list[str], merges: list[tuple[str, str]]) -> str:
    whole = [left + right for left, right in merges]
    first = [letter for letter in alphabet if letter.isascii() and letter.isprintable()]
    tokens = [*SPECIAL, *FIXED, *alphabet, *dict.fromkeys(whole)]
    merges = list(dict.fromkeys(merges))
    for piece in [*first, *dict.fromkeys(whole)]:
        merges.append((_SPACE, piece))
        tokens.append(_SPACE + piece)
    for run in _RUNS:
        merges.append((run[: len(run) // 2], run[len(run) // 2 :]))
        tokens.append(run)
    added = [
        {"id": number, "content": text, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
         "special": text in SPECIAL}
        for number, text in enumerate([*SPECIAL, *FIXED])
    ]  # fmt: skip
    document = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
            "vocab": {token: number for number, token in enumerate(tokens)},
            "merges": [list(merge) for merge in merges],
        },
    }  # fmt: skip
    return msgspec.json.encode(document).decode()


def twins(tokenizer: Tokenizer) -> list[tuple[int, int]]:
    """Return the ids of (piece, the same behind a space)."""
    ids = {token: number for number, token in enumerate(tokenizer.tokens())}
    runs = {_SPACE, *_RUNS}
    return [
        (ids[token[1:]], number)
        for token, number in ids.items()
        if token[0] == _SPACE and token not in runs and token[1:] in ids
    ]


class Encoder:
    """Turn rendered text into ids as the tokenizer does, fast: words that were seen are looked up."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids = {text: tokenizer.id(text) for text in (*SPECIAL, *FIXED)}
        self._cut = re.compile(
            "(" + "|".join([re.escape(text) for text in sorted(self._ids, key=len, reverse=True)]) + ")"
        )
        self._known: dict[str, list[int]] = {}
        #: How many words were found and how many had to be cut into pieces.
        self.looked_up = self.computed = 0

    def __call__(self, text: str) -> list[int]:
        """Return the ids of a text, special tokens included."""
        out: list[int] = []
        for number, piece in enumerate(self._cut.split(text)):
            if number % 2:
                out.append(self._ids[piece])
            elif piece:
                out += self._words(piece)
        return out

    def _words(self, text: str) -> list[int]:
        if not _EASY.fullmatch(text):
            return self._tokenizer.backend.encode(text, add_special_tokens=False).ids
        out: list[int] = []
        for word in _WORD.findall(text):
            ids = self._known.get(word)
            self.looked_up += ids is not None
            if ids is None:
                self.computed += 1
                ids = self._tokenizer.backend.encode(word, add_special_tokens=False).ids
                if len(self._known) < 200_000:
                    self._known[word] = ids
            out += ids
        return out
