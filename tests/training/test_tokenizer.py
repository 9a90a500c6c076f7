"""Tokenizers: what they learn, what comes back, what is one token."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from windlass.core.errors import ConfigError
from windlass.training.tokenizer import END, Tokenizer

TEXTS = [
    "the cat sat on the mat, the hat on the cat's head\n",
    "Grüße aus Köln 2024!\n",
    "def f(x):\n    return x + 1\n",
]
MADE = Tokenizer.train(TEXTS * 3, 300, special=(END, "<|im_start|>"), fixed=('{"name": "', '"}'))


def test_it_learns_glued_spaces_and_keeps_the_order_of_ids() -> None:
    tokens = MADE.tokens()
    assert tokens[:4] == [END, "<|im_start|>", '{"name": "', '"}']
    assert len(tokens) == MADE.vocab_size == 300
    assert "Ġthe" in tokens and "Ġcat" in tokens  # the space is part of the word's token
    assert MADE.encode(" the cat") == [tokens.index("Ġthe"), tokens.index("Ġcat")]
    assert MADE.eos_id == 0 and MADE.id("Ġthe") == tokens.index("Ġthe")
    with pytest.raises(ConfigError, match="no token"):
        MADE.id("no such")


def test_the_same_texts_give_the_same_tokenizer() -> None:
    again = Tokenizer.train(TEXTS * 3, 300, special=(END, "<|im_start|>"), fixed=('{"name": "', '"}'))
    assert again.files() == MADE.files()


@settings(max_examples=200, deadline=None)
@given(st.text())
def test_any_text_comes_back(text: str) -> None:
    assert MADE.decode(MADE.encode(text, special=False)) == text
    assert MADE.decode(MADE.encode(text)) == text


def test_special_tokens_are_read_only_when_asked_and_fixed_ones_always() -> None:
    text = '<|im_start|>{"name": "x"}'
    asked, plain = MADE.encode(text), MADE.encode(text, special=False)
    assert asked[:2] == [1, 2] and asked[-1] == 3
    assert 1 not in plain and 2 in plain and plain[-1] == 3
    assert MADE.decode(asked) == MADE.decode(plain) == text
    assert MADE.decode(asked, special=False) == text.removeprefix("<|im_start|>")


def test_overlapping_fixed_strings_are_taken_longest_first_as_llama_cpp_does() -> None:
    made = Tokenizer.train(TEXTS, 300, fixed=("ab", "bcd"))
    assert [made.tokens()[i] for i in made.encode("abcd")] == ["a", "bcd"]
    assert [made.tokens()[i] for i in made.encode("abxbcd ab")] == ["ab", "x", "bcd", "Ġ", "ab"]


def test_it_is_saved_and_loaded(tmp_path: Path) -> None:
    made = Tokenizer.train(TEXTS, 300, special=("<s>", "</s>"), eos="</s>", bos="<s>", chat_template="{{ messages }}")
    folder = made.save(tmp_path / "deep" / "tok")
    for path in (folder, folder / "tokenizer.json"):
        again = Tokenizer.load(path)
        assert (again.eos, again.bos, again.chat_template) == ("</s>", "<s>", "{{ messages }}")
        assert again.encode("the <s> cat") == made.encode("the <s> cat")
        assert again.files() == made.files()
    (folder / "tokenizer_config.json").unlink()
    assert Tokenizer.load(folder).eos is None
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(ConfigError, match="is no tokenizer"):
        Tokenizer.load(folder)


def test_what_gguf_gets() -> None:
    keys = MADE.gguf_metadata()
    assert (keys["tokenizer.ggml.model"], keys["tokenizer.ggml.pre"]) == ("gpt2", "gpt-2")
    assert keys["tokenizer.ggml.tokens"] == MADE.tokens()
    assert keys["tokenizer.ggml.token_type"][:5] == [3, 3, 4, 4, 1]
    assert keys["tokenizer.ggml.eos_token_id"] == 0 and keys["tokenizer.ggml.add_bos_token"] is False
    assert all(merge.count(" ") == 1 for merge in keys["tokenizer.ggml.merges"])
    assert len(keys["tokenizer.ggml.merges"]) == 300 - 256 - 4


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"vocab_size": 256}, "no room"),
        ({"special": ("a", "a")}, "must differ"),
        ({"fixed": ("",)}, "must differ"),
        ({"eos": "<none>"}, "no token"),
    ],
    ids=["size", "twice", "empty", "eos"],
)
def test_what_makes_no_tokenizer(options: dict[str, object], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        Tokenizer.train(TEXTS, **{"vocab_size": 300, **options})  # pyright: ignore[reportArgumentType]
