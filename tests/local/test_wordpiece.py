"""BERT's tokenizer against Hugging Face's own, over texts of all scripts."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from tests.local.bert import make_folder
from windlass.core.errors import LocalModelError
from windlass.local import bert_to_gguf, embedded_model, read_header
from windlass.local.wordpiece import WordPiece, word_piece

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,$!-_'éßыאمक日本한가ᄒ\u0947ிিा"
VOCABULARY = [*SPECIAL, *dict.fromkeys(LETTERS), *[f"##{c}" for c in dict.fromkeys(LETTERS)], "the", "##ing", "walk"]
IDS = {token: at for at, token in enumerate(VOCABULARY)}
ENGINES = [t if t in SPECIAL else t[2:] if t.startswith("##") else f"▁{t}" for t in VOCABULARY]


@pytest.fixture(scope="module")
def oracle() -> Tokenizer:
    made = Tokenizer(models.WordPiece(IDS, unk_token="[UNK]", max_input_chars_per_word=100))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    made.add_special_tokens(SPECIAL)
    made.post_processor = processors.BertProcessing(("[SEP]", IDS["[SEP]"]), ("[CLS]", IDS["[CLS]"]))
    return made


OURS = WordPiece(ENGINES, IDS["[CLS]"], IDS["[SEP]"], IDS["[UNK]"])
#: Blocks whose letters have not changed since the tables of the other side were made.
letters = st.one_of(
    st.sampled_from([*LETTERS, *" \t\n\u00a0\u200b\u0301ÉİﬁＡ①…“<+=`|~\0\ufffd", "[CLS]", "[MASK", "Walking", "THE "]),
    st.characters(min_codepoint=32, max_codepoint=0x37F, categories=["L", "M", "N", "P", "S", "Z", "Cc"]),
)


@given(st.lists(letters, max_size=30).map("".join))
def test_ids_are_those_of_the_other_tokenizer(oracle: Tokenizer, text: str) -> None:
    assert OURS.encode(text) == oracle.encode(text).ids


@given(st.lists(letters, max_size=30).map("".join), st.integers(2, 12))
def test_cutting_keeps_the_marks(oracle: Tokenizer, text: str, limit: int) -> None:
    oracle.enable_truncation(limit)
    assert OURS.encode(text, limit) == oracle.encode(text).ids
    oracle.no_truncation()


@pytest.mark.parametrize(
    "text",
    [
        "हिन्दी के",
        "தமிழ்",
        "বাংলা",
        "한국어 문장",
        "日本語",
        "naïve ÉTÉ",
        "a" * 100 + " " + "b" * 101,
        "walking",
        "x [SEP] y",
        "",
    ],
)
def test_scripts_whose_marks_are_letters(oracle: Tokenizer, text: str) -> None:
    assert OURS.encode(text) == oracle.encode(text).ids


def test_the_vocabulary_is_read_from_the_file(tmp_path: Path) -> None:
    make_folder(tmp_path / "m")
    info = bert_to_gguf(tmp_path / "m", tmp_path / "m.gguf")
    made = word_piece(info)
    assert made is not None and made.encode("The cats!") == [3, 6, 7, 13, 18, 4]
    assert word_piece(read_header(embedded_model().path)) is None
    data = (tmp_path / "m.gguf").read_bytes()
    (tmp_path / "m.gguf").write_bytes(data[: info.starts["tokenizer.ggml.tokens"] + 20])
    with pytest.raises(LocalModelError, match="shorter"):
        word_piece(info)
