"""Keep what a text says from being read as the model's control tokens: a user who writes `<|im_start|>` writes text.

The engine turns the whole rendered prompt into tokens, those of its vocabulary's control tokens included, wherever they
stand. So in what comes from outside each gets a zero-width space behind its first character, which makes it text.
"""

from __future__ import annotations

import re
import struct
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from windlass.local.gguf import GgufArray, GgufInfo

__all__ = ["ControlTokens", "control_tokens"]

# llama.h, llama_token_type.
_CONTROL, _USER_DEFINED = 3, 4
_TEXTS, _TYPES = "tokenizer.ggml.tokens", "tokenizer.ggml.token_type"
_BREAK: Final = "\u200b"
_TAG = re.compile(r"<[^<>\s]{1,62}>|\[[^\[\]\s]{1,62}\]")
# Ahead only: one may begin inside another.
_TAGS = re.compile(f"(?=({_TAG.pattern}))")
#: What is no text of anybody's: names that programs compare.
_NAMES: Final = frozenset(
    ("role", "type", "id", "tool_call_id", "name", "enum", "const", "required", "pattern", "$ref")
)
_LONGEST: Final = 256


class ControlTokens:
    """The control tokens of one model."""

    def __init__(self, texts: tuple[str, ...]) -> None:
        self.texts = frozenset(texts)
        # Nearly all have the form of a tag, and there may be thousands; the others are few.
        others = [re.escape(text) for text in sorted(self.texts) if not _TAG.fullmatch(text)]
        self._others = re.compile(f"(?={'|'.join(others)})") if others else None

    def as_text(self, body: dict[str, Any]) -> dict[str, Any]:
        """Return a chat request in whose messages and tools no text holds a control token."""
        if not self.texts:
            return body
        return {key: self._walk(value) if key in ("messages", "tools") else value for key, value in body.items()}

    def _walk(self, value: Any) -> Any:
        if isinstance(value, str):
            return self._plain(value)
        if isinstance(value, list):
            return [self._walk(item) for item in value]
        if isinstance(value, dict):
            return {key: item if key in _NAMES else self._walk(item) for key, item in value.items()}
        return value

    def _plain(self, text: str) -> str:
        starts = {found.start() for found in _TAGS.finditer(text) if found[1] in self.texts}
        if self._others is not None:
            starts |= {found.start() for found in self._others.finditer(text)}
        if not starts:
            return text
        cuts = [0, *[start + 1 for start in sorted(starts)], len(text)]
        return _BREAK.join([text[start:end] for start, end in pairwise(cuts)])


def control_tokens(info: GgufInfo) -> ControlTokens:
    """Return the control tokens of a model whose header was read, and the tags that its chat template writes.

    Blocking: it reads the vocabulary, some 50 ms for 128 000 tokens. Raises OSError, also for a file that was cut.
    """
    texts, types = info.metadata.get(_TEXTS), info.metadata.get(_TYPES)
    if not isinstance(texts, GgufArray) or not isinstance(types, GgufArray) or texts.type != "string":
        return ControlTokens(())
    if types.type != "int32" or types.count != texts.count:
        return ControlTokens(())
    found: list[str] = []
    with Path(info.path).open("rb") as file:
        file.seek(info.starts[_TYPES])
        kinds = struct.unpack(f"<{types.count}i", _exactly(file.read(4 * types.count), 4 * types.count))
        file.seek(info.starts[_TEXTS])
        for kind in kinds:
            (length,) = struct.unpack("<Q", _exactly(file.read(8), 8))
            if length > _LONGEST or kind not in (_CONTROL, _USER_DEFINED):
                file.seek(length, 1)
                continue
            text = _exactly(file.read(length), length).decode("utf-8", "replace")
            if kind == _CONTROL or (_TAG.fullmatch(text) and text in info.chat_template):
                found.append(text)
    return ControlTokens(tuple([text for text in found if len(text) > 1]))


def _exactly(data: bytes, size: int) -> bytes:
    if len(data) != size:
        raise OSError("the file became shorter while its vocabulary was read")
    return data
