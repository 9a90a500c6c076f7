"""Byte-level BPE tokenizers: trained here or read from a `tokenizer.json`, and the same in a GGUF file."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final, Self

import msgspec
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend

from windlass.core.errors import ConfigError

__all__ = ["END", "Tokenizer"]

#: The token that ends a text when nothing else is said.
END: Final = "<|endoftext|>"
#: Token types of GGUF (`tokenizer.ggml.token_type`).
_NORMAL, _CONTROL, _FIXED = 1, 3, 4
_SIDE: Final = "tokenizer_config.json"


class Tokenizer:
    """Text to token ids and back: byte-level BPE cut into words as GPT-2 does, the space glued to the word behind it.

    Any bytes of UTF-8 text come back as they were. Two kinds of strings are single tokens: `special` ones control the
    model and are never read out of plain text unless asked (`encode(special=True)`); `fixed` ones are common text and
    always one token. Where such strings overlap in a text the longest is taken first, then the next, as llama.cpp does.

    `eos` ends a text; `bos`, if any, begins one (it is not added by `encode`). `chat_template` is a Jinja text that is
    kept with it.
    """

    def __init__(
        self, backend: Backend, *, eos: str | None = None, bos: str | None = None, chat_template: str | None = None
    ) -> None:
        self.backend, self.eos, self.bos, self.chat_template = backend, eos, bos, chat_template
        added = backend.get_added_tokens_decoder()
        self.special = [token.content for _, token in sorted(added.items()) if token.special]
        self.fixed = [token.content for _, token in sorted(added.items()) if not token.special]
        for name in (eos, bos):
            if name is not None and backend.token_to_id(name) is None:
                raise ConfigError(f"{name!r} is no token of this tokenizer.")

    @classmethod
    def train(
        cls,
        texts: Iterable[str],
        vocab_size: int = 1024,
        *,
        special: Sequence[str] = (END,),
        fixed: Sequence[str] = (),
        eos: str | None = None,
        bos: str | None = None,
        min_count: int = 2,
        chat_template: str | None = None,
    ) -> Self:
        """Learn `vocab_size` tokens from texts: the special and fixed strings, all 256 bytes, then merges.

        `eos` is the first special token unless it is named. A merge occurs at least `min_count` times, so a short text
        gives fewer tokens. The same texts in the same order give the same tokenizer. Raises ConfigError when the
        vocabulary has no room for the bytes.
        """
        singles = [*special, *fixed]
        if len(set(singles)) < len(singles) or not all(singles):
            raise ConfigError("Special and fixed tokens must differ and not be empty.")
        if vocab_size < 256 + len(singles):
            raise ConfigError(f"vocab_size {vocab_size} has no room for 256 bytes and {len(singles)} tokens of yours.")
        backend = Backend(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore[reportAttributeAccessIssue]
        backend.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            min_frequency=min_count,
            show_progress=False,
            special_tokens=[
                *(AddedToken(text, special=True, normalized=False) for text in special),
                *(AddedToken(text, special=False, normalized=False) for text in fixed),
            ],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        )
        # Fixed strings are tokens already: what lies between them is what is left to learn.
        pieces = (piece for text in texts for piece, single in _cut(text, _longest_first(singles)) if not single)
        backend.train_from_iterator(pieces, trainer)
        # The trainer makes every given token special.
        plain = Backend.from_str(_without_special(backend.to_str(), set(fixed)))
        return cls(plain, eos=eos or (special[0] if special else None), bos=bos, chat_template=chat_template)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a `tokenizer.json`, or the folder it is in, with the `tokenizer_config.json` beside it if there is one.

        Raises ConfigError when it cannot be read.
        """
        file = Path(path).expanduser()
        file = file / "tokenizer.json" if file.is_dir() else file
        try:
            text = file.read_text(encoding="utf-8")
            side = file.with_name(_SIDE)
            kept = side.read_bytes() if side.is_file() else b"{}"
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"Cannot read the tokenizer {file}: {error}.") from error
        return cls.from_text(text, kept, str(file))

    @classmethod
    def from_text(cls, text: str, side: bytes = b"{}", name: str = "tokenizer.json") -> Self:
        """Make a tokenizer from the contents of its two files. Raises ConfigError naming `name`."""
        try:
            backend = Backend.from_str(text)
            config = msgspec.json.decode(side, type=dict[str, Any])
        except Exception as error:  # the library raises bare Exception
            raise ConfigError(f"{name} is no tokenizer: {error}.") from error
        eos, bos = _content(config.get("eos_token")), _content(config.get("bos_token"))
        if eos is None and backend.token_to_id(END) is not None:
            eos = END
        template = config.get("chat_template")
        return cls(backend, eos=eos, bos=bos, chat_template=template if isinstance(template, str) else None)

    def files(self) -> dict[str, bytes]:
        """Return the two files of this tokenizer, by name."""
        side = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": self.eos,
            "bos_token": self.bos,
            "chat_template": self.chat_template,
        }
        return {"tokenizer.json": self.backend.to_str().encode(), _SIDE: msgspec.json.encode(side)}

    def save(self, path: str | Path) -> Path:
        """Write both files into a folder, which is made where it is missing; return the folder."""
        folder = Path(path).expanduser()
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in self.files().items():
            (folder / name).write_bytes(data)
        return folder

    @property
    def vocab_size(self) -> int:
        """Return how many ids there are."""
        return self.backend.get_vocab_size()

    @property
    def eos_id(self) -> int | None:
        """Return the id that ends a text."""
        return None if self.eos is None else self.backend.token_to_id(self.eos)

    def id(self, token: str) -> int:
        """Return the id of a token. Raises ConfigError when there is none."""
        found = self.backend.token_to_id(token)
        if found is None:
            raise ConfigError(f"{token!r} is no token of this tokenizer.")
        return found

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Return the ids of a text. `special`: strings of special tokens in it are those tokens, else plain text."""
        out: list[int] = []
        for piece, single in _cut(text, _longest_first([*self.fixed, *(self.special if special else ())])):
            if single:
                out.append(self.id(piece))
            else:
                self.backend.encode_special_tokens = not special
                out += self.backend.encode(piece, add_special_tokens=False).ids
        return out

    def decode(self, ids: Sequence[int], *, special: bool = True) -> str:
        """Return the text of ids, special tokens as their strings or (`special=False`) left out."""
        return self.backend.decode(list(ids), skip_special_tokens=not special)

    def tokens(self) -> list[str]:
        """Return the tokens in the order of their ids, as GGUF has them: bytes in GPT-2's letters."""
        by_id = {number: token for token, number in self.backend.get_vocab().items()}
        return [by_id[number] for number in range(len(by_id))]

    def gguf_metadata(self) -> dict[str, Any]:
        """Return the `tokenizer.*` keys of a GGUF file. Raises ConfigError for tokenizers of another kind than ours."""
        inside: dict[str, Any] = msgspec.json.decode(self.backend.to_str())
        before: dict[str, Any] = inside.get("pre_tokenizer") or {}
        model: dict[str, Any] = inside["model"]
        if model.get("type") != "BPE" or before.get("type") != "ByteLevel" or before.get("add_prefix_space"):
            raise ConfigError("Only byte-level BPE tokenizers with GPT-2's words can be written to GGUF.")
        if not before.get("use_regex", True) or inside.get("normalizer") is not None or model.get("ignore_merges"):
            raise ConfigError("This tokenizer cuts words in another way than GPT-2's; GGUF has no name for it.")
        merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
        kinds = dict.fromkeys(self.special, _CONTROL) | dict.fromkeys(self.fixed, _FIXED)
        tokens = self.tokens()
        found: dict[str, Any] = {
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": "gpt-2",
            "tokenizer.ggml.tokens": tokens,
            "tokenizer.ggml.token_type": [kinds.get(token, _NORMAL) for token in tokens],
            "tokenizer.ggml.merges": merges,
            "tokenizer.ggml.add_bos_token": False,
            "tokenizer.ggml.add_space_prefix": False,
        }
        if self.eos is not None:
            found["tokenizer.ggml.eos_token_id"] = self.id(self.eos)
            found["tokenizer.ggml.padding_token_id"] = self.id(self.eos)
        if self.bos is not None:
            found["tokenizer.ggml.bos_token_id"] = self.id(self.bos)
        if self.chat_template is not None:
            found["tokenizer.chat_template"] = self.chat_template
        return found


def _content(token: Any) -> str | None:
    """Return a token of a `tokenizer_config.json`, which may be an object with its text in it."""
    found = token.get("content") if isinstance(token, dict) else token
    return found if isinstance(found, str) and found else None


def _longest_first(strings: Sequence[str]) -> list[str]:
    # A stable sort of what has no two of a kind: the same order in every process.
    return sorted(strings, key=lambda text: (-len(text.encode()), text))


def _cut(text: str, strings: list[str]) -> list[tuple[str, bool]]:
    """Cut a text at every occurrence of `strings`, those first in the list first; True marks the strings."""
    pieces = [(text, False)] if text else []
    for string in strings:
        if string in text:
            pieces = [cut for piece in pieces for cut in ([piece] if piece[1] else _split(piece[0], string))]
    return pieces


def _split(text: str, string: str) -> list[tuple[str, bool]]:
    out: list[tuple[str, bool]] = []
    for number, part in enumerate(text.split(string)):
        out += ([(string, True)] if number else []) + ([(part, False)] if part else [])
    return out


def _without_special(document: str, names: set[str]) -> str:
    inside: dict[str, Any] = msgspec.json.decode(document)
    for token in inside["added_tokens"]:
        token["special"] = token["content"] not in names
    return msgspec.json.encode(inside).decode()
