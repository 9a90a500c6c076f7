"""Windows over tokens."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from windlass.core.errors import ConfigError
from windlass.training.sources import TextSource, TokenSource
from windlass.training.tokenizer import Tokenizer


@given(count=st.integers(0, 60), seq_len=st.integers(1, 20))
def test_every_token_but_the_first_is_predicted_once(count: int, seq_len: int) -> None:
    source = TokenSource(np.arange(count), seq_len)
    seen = [int(token) for n in range(len(source)) for token in source.row(n).tokens[1:]]
    assert seen == list(range(1, count))
    assert all(len(source.row(n).tokens) == seq_len + 1 for n in range(len(source) - 1))


def test_a_file_is_mapped_and_its_vocabulary_found(tmp_path: Path) -> None:
    file = tmp_path / "tokens.bin"
    np.array([3, 1, 7, 2, 9], "<u4").tofile(file)
    source = TokenSource(file, 2)
    assert (source.vocab_size, len(source), source.name) == (10, 2, str(file))
    assert source.row(1).tokens.tolist() == [7, 2, 9] and source.row(1).tokens.dtype == np.int32
    with pytest.raises(ConfigError, match="row 1 has a token outside the vocabulary of 8"):
        TokenSource(file, 2, vocab_size=8).row(1)
    file.write_bytes(b"12345")
    with pytest.raises(ConfigError, match="no multiple of 4"):
        TokenSource(file, 2)
    with pytest.raises(ConfigError, match="Cannot read"):
        TokenSource(tmp_path / "none", 2)
    file.write_bytes(b"")
    assert len(TokenSource(file, 2)) == 0


def test_texts_end_with_the_tokenizer_s_end() -> None:
    tokenizer = Tokenizer.train(["ab"], 300)
    source = TextSource(["ab", "b"], tokenizer, 10)
    end = tokenizer.eos_id
    assert source.row(0).tokens.tolist() == [*tokenizer.encode("ab"), end, *tokenizer.encode("b"), end]
    assert source.vocab_size == tokenizer.vocab_size
    assert len(TextSource([], tokenizer, 10)) == 0
