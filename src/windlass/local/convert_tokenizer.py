"""A byte-level BPE tokenizer, from `tokenizer.json` to the `tokenizer.ggml.*` keys of GGUF and back.

Only what the engine then does in exactly the same way is converted: the cutters of words that llama.cpp knows by name
(`tokenizer.ggml.pre`), no normaliser that changes text, merges and added tokens. Everything else is refused, since a
tokenizer that is nearly right makes a model that is nearly right. Keys: github.com/ggml-org/ggml, docs/gguf.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NoReturn

from windlass.core.errors import LocalModelError

__all__ = ["CUTTERS", "from_gguf_tokenizer", "to_gguf_tokenizer"]

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED = 1, 2, 3, 4, 5  # llama.h, llama_token_type

_WORDS: Final = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
_REST: Final = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def _level(use_regex: bool) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


def _split(regex: str) -> dict[str, Any]:
    split = {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}
    return {"type": "Sequence", "pretokenizers": [split, _level(False)]}


#: llama.cpp's name of how text is cut into words -> the pre-tokenizer that does the same in `tokenizer.json`.
CUTTERS: Final[dict[str, dict[str, Any]]] = {
    "gpt-2": _level(True),
    "smollm": {
        "type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, _level(True)],
    },
    "llama-bpe": _split(f"{_WORDS}{{1,3}}{_REST}"),
    "qwen2": _split(f"{_WORDS}{_REST}"),
}  # fmt: skip
#: Other names of the same; llama.cpp looks nothing else up by them.
_SAME: Final = {"llama3": "llama-bpe", "llama-v3": "llama-bpe", "phi-2": "gpt-2"}
_ROLES: Final = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}


def to_gguf_tokenizer(
    tokenizer: Mapping[str, Any], settings: Mapping[str, Any], vocab_size: int, where: str = "tokenizer.json"
) -> dict[str, Any]:
    """Return the keys `tokenizer.ggml.*` and `tokenizer.chat_template` for a loaded `tokenizer.json`.

    `settings` is a loaded `tokenizer_config.json` (may be empty): which tokens begin, end and pad a text, whether one
    begins every text, the chat template. Ids without a token up to the model's `vocab_size` become unused tokens.
    Raises LocalModelError, naming `where`, for a tokenizer that is not byte-level BPE as llama.cpp knows it.
    """
    refuse = _Refuse(where)
    model = _object(refuse, tokenizer, "model")
    vocab, merges = model.get("vocab"), model.get("merges")
    if model.get("type") != "BPE" or not isinstance(vocab, dict) or not isinstance(merges, list):
        refuse(f"its model is {model.get('type')!r}, not BPE")
    if model.get("byte_fallback") or model.get("dropout") or model.get("continuing_subword_prefix"):
        refuse("it is not byte-level BPE")
    _check_normalizer(refuse, tokenizer.get("normalizer"))
    pre = _cutter(refuse, tokenizer.get("pre_tokenizer"))
    tokens: list[Any] = [None] * vocab_size
    kinds = [_UNUSED] * vocab_size
    for text, number in vocab.items():
        _place(refuse, tokens, number, text)
        kinds[number] = _NORMAL
    for added in tokenizer.get("added_tokens") or []:
        number, text = added.get("id"), added.get("content")
        if not isinstance(text, str) or added.get("lstrip") or added.get("rstrip") or added.get("single_word"):
            refuse(f"the added token {text!r} strips the text around it or is no text")
        _place(refuse, tokens, number, text, again=True)
        kinds[number] = _CONTROL if added.get("special") else _USER_DEFINED
    for number, text in enumerate(tokens):
        if text is None:
            tokens[number] = f"[PAD{number}]"
    keys: dict[str, Any] = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.merges": [_merge(refuse, merge) for merge in merges],
    }
    ids = {text: number for number, text in enumerate(tokens)}
    for role, name in _ROLES.items():
        token = _content(settings.get(name))
        if token is not None:
            if token not in ids:
                refuse(f"its {name} {token!r} is no token")
            keys[f"tokenizer.ggml.{role}_token_id"] = ids[token]
    # Always stated: for some names of `pre` the engine would otherwise begin every text with a token.
    keys["tokenizer.ggml.add_bos_token"] = _begins(tokenizer, settings)
    template = _template(settings.get("chat_template"))
    return keys | ({"tokenizer.chat_template": template} if template else {})


def from_gguf_tokenizer(keys: Mapping[str, Any], where: str = "the GGUF file") -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what `tokenizer.json` and `tokenizer_config.json` hold, for the keys of a GGUF file with lists whole.

    Raises LocalModelError, naming `where`, for a tokenizer of another kind.
    """
    refuse = _Refuse(where)
    pre = keys.get("tokenizer.ggml.pre")
    pre = _SAME.get(str(pre), pre)
    if keys.get("tokenizer.ggml.model") != "gpt2" or pre not in CUTTERS:
        refuse(f"its tokenizer is {keys.get('tokenizer.ggml.model')!r} with the words of {pre!r}, none that is known")
    tokens, kinds = keys.get("tokenizer.ggml.tokens"), keys.get("tokenizer.ggml.token_type")
    if not isinstance(tokens, list) or (kinds is not None and len(kinds) != len(tokens)):
        refuse("its tokens and their types do not agree")
    kinds = kinds or [_NORMAL] * len(tokens)
    merges: list[str] = keys.get("tokenizer.ggml.merges") or []
    if len(set(tokens)) != len(tokens):
        refuse("two of its tokens are the same text")
    added = [
        {
            "id": number, "content": text, "single_word": False, "lstrip": False, "rstrip": False,
            "normalized": False, "special": kind in (_CONTROL, _UNKNOWN),
        }
        for number, (text, kind) in enumerate(zip(tokens, kinds, strict=True))
        if kind in (_CONTROL, _UNKNOWN, _USER_DEFINED)
    ]  # fmt: skip
    named = {
        name: tokens[number]
        for role, name in _ROLES.items()
        if isinstance(number := keys.get(f"tokenizer.ggml.{role}_token_id"), int) and 0 <= number < len(tokens)
    }
    begins = keys.get("tokenizer.ggml.add_bos_token") is True and "bos_token" in named
    tokenizer = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added,
        "normalizer": {"type": "NFC"} if pre == "qwen2" else None,
        "pre_tokenizer": CUTTERS[pre],
        "post_processor": _begin_with(named["bos_token"], tokens) if begins else _level(False),
        "decoder": _level(True),
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": pre == "llama-bpe",
            # What only fills the model's table up is no token of the tokenizer's.
            "vocab": {text: number for number, text in enumerate(tokens) if kinds[number] != _UNUSED},
            "merges": [merge.split(" ", 1) for merge in merges],
        },
    }  # fmt: skip
    settings: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "add_bos_token": begins, **named}
    if isinstance(template := keys.get("tokenizer.chat_template"), str):
        settings["chat_template"] = template
    return tokenizer, settings


class _Refuse:
    def __init__(self, where: str) -> None:
        self._where = where

    def __call__(self, problem: str) -> NoReturn:
        raise LocalModelError(
            f"The tokenizer of {self._where} cannot be converted: {problem}.",
            path=self._where,
            hint=f"Byte-level BPE with the words of {', '.join(CUTTERS)} can.",
        )


def _object(refuse: _Refuse, value: Mapping[str, Any], key: str) -> dict[str, Any]:
    found = value.get(key)
    if not isinstance(found, dict):
        refuse(f"it has no {key}")
    return found


def _check_normalizer(refuse: _Refuse, normalizer: Any) -> None:
    # NFC changes only what is written in an unusual way; llama.cpp leaves it out for Qwen's models too.
    if normalizer not in (None, {"type": "NFC"}):
        refuse(f"its normalizer is {str(normalizer)[:100]}")


def _cutter(refuse: _Refuse, given: Any) -> str:
    found = next((name for name, known in CUTTERS.items() if _plain(given) == _plain(known)), None)
    if found is None:
        refuse(f"it cuts words in a way that llama.cpp has no name for: {str(given)[:200]}")
    return found


def _plain(value: Any) -> Any:
    """Return a pre-tokenizer without what does not change its tokens."""
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        plain = {key: _plain(item) for key, item in value.items() if key != "trim_offsets"}
        return {"use_regex": True, **plain} if plain.get("type") == "ByteLevel" else plain
    return value


def _place(refuse: _Refuse, tokens: list[Any], number: Any, text: str, *, again: bool = False) -> None:
    if type(number) is not int or not 0 <= number < len(tokens):
        refuse(f"the token {text[:40]!r} has the id {str(number)[:40]}; the model has {len(tokens)}")
    if tokens[number] is not None and not (again and tokens[number] == text):
        refuse(f"the id {number} stands for {tokens[number]!r} and for {text[:40]!r}")
    tokens[number] = text


def _merge(refuse: _Refuse, merge: Any) -> str:
    parts = merge.split(" ") if isinstance(merge, str) else merge
    if not isinstance(parts, list) or len(parts) != 2 or not all(isinstance(part, str) and part for part in parts):
        refuse(f"the merge {str(merge)[:80]!r} is not of two tokens")
    if any(" " in part for part in parts):
        refuse(f"the merge {parts} holds a space, which byte-level BPE writes as Ġ")
    return " ".join(parts)


def _content(token: Any) -> str | None:
    value = token.get("content") if isinstance(token, dict) else token
    return value if isinstance(value, str) else None


def _begins(tokenizer: Mapping[str, Any], settings: Mapping[str, Any]) -> bool:
    if isinstance(stated := settings.get("add_bos_token"), bool):
        return stated
    bos, processor = _content(settings.get("bos_token")), tokenizer.get("post_processor")
    steps: Any = processor.get("processors", [processor]) if isinstance(processor, dict) else []
    first = [step["single"][0] for step in steps if step.get("type") == "TemplateProcessing" and step.get("single")]
    return bool(first) and bos is not None and first[0].get("SpecialToken", {}).get("id") == bos


def _template(value: Any) -> str:
    """Return the chat template; of several the one called `default`."""
    if isinstance(value, list):
        named = {item.get("name"): item.get("template") for item in value if isinstance(item, dict)}
        value = named.get("default") or next(iter(named.values()), "")
    return value if isinstance(value, str) else ""


def _begin_with(token: str, tokens: list[str]) -> dict[str, Any]:
    begin = {"SpecialToken": {"id": token, "type_id": 0}}
    a, b = ({"Sequence": {"id": name, "type_id": kind}} for kind, name in enumerate("AB"))
    second = {"SpecialToken": {"id": token, "type_id": 1}}
    return {
        "type": "TemplateProcessing", "single": [begin, a], "pair": [begin, a, second, b],
        "special_tokens": {token: {"id": token, "ids": [tokens.index(token)], "tokens": [token]}},
    }  # fmt: skip
