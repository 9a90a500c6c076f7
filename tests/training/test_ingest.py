"""From files to rows: which texts, which tokens count, who sees whom; bad lines by number; the cache."""

from __future__ import annotations

import itertools
import json
import logging
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.training.data_files import PEAK, killed_while, peak_of
from windlass.core.errors import ConfigError
from windlass.core.events import TrainStep
from windlass.local.llama import Llama, LlamaConfig
from windlass.training import packed
from windlass.training.config import TrainConfig
from windlass.training.data import Row, Source, collate
from windlass.training.documents import MAX_LINE, ChatFormat
from windlass.training.files import DataError, InvalidFormat, PayloadTooLarge
from windlass.training.ingest import open_source
from windlass.training.packed import PackedSource, Texts, best_fit, in_order
from windlass.training.tokenbin import read_tokens, write_tokens
from windlass.training.tokenizer import Tokenizer
from windlass.training.trainer import Trainer
from windlass.training.wdbx_write import WdbxWriter, pack_block, tokenbin_to_wdbx

END = 256


class Bytes:
    """A tokenizer whose tokens are bytes, with an end of text and `<|x|>` as a control token."""

    vocab_size, eos_id = 258, END
    calls = 0

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        self.calls += 1
        parts = text.split("<|x|>") if special else [text]
        out = list(parts[0].encode())
        for part in parts[1:]:
            out += [257, *part.encode()]
        return out


def text_of(row: Row) -> str:
    return "".join(chr(token) if token < 256 else "|" if token == END else "X" for token in row.tokens.tolist())


def learned(row: Row) -> str:
    """The text of a row with what does not count as dots."""
    weights = np.ones(len(row.tokens)) if row.weights is None else row.weights
    return "".join(char if weight else "." for char, weight in zip(text_of(row), weights, strict=True))


def rows(source: Source) -> list[Row]:
    return [source.row(index) for index in range(len(source))]


def jsonl(path: Path, lines: Iterable[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def opened(path: Path, seq_len: int = 200, **options: Any) -> PackedSource:
    options.setdefault("packing", "none")
    source = open_source(path, Bytes(), seq_len, **options)
    assert isinstance(source, PackedSource)
    return source


# -- fields ------------------------------------------------------------------------------------------------------------

FIELDS: dict[str, tuple[dict[str, Any], str]] = {
    "text": ({"text": "hello"}, "hello|"),
    "prompt": ({"prompt": "ask ", "completion": "told"}, "....told|"),
    "input": ({"input": "ask ", "output": "told"}, "....told|"),
    "instruction": ({"instruction": "do", "input": "it", "output": "told"}, ".....told|"),
    "instruction-alone": ({"instruction": "do", "output": "told"}, "..told|"),
    "instruction-empty-input": ({"instruction": "do", "input": "", "output": "told"}, "..told|"),
    "messages": (
        {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"},
                      {"role": "assistant", "content": "a"}, {"role": "user", "content": "v"},
                      {"role": "assistant", "content": [{"type": "text", "text": "b"},
                                                        {"type": "text", "text": "c"}]}]},
        ".........a</>.......bc</>|",
    ),
    "weight-0": (
        {"messages": [{"role": "assistant", "content": "no", "weight": 0}, {"role": "assistant", "content": "yes"}]},
        "...........yes</>|",
    ),
}  # fmt: skip
CHAT = ChatFormat(before="<{role}>", after="</>")


@pytest.mark.parametrize("name", FIELDS)
def test_what_the_assistant_says_counts_and_nothing_else(tmp_path: Path, name: str) -> None:
    line, wanted = FIELDS[name]
    (row,) = rows(opened(jsonl(tmp_path / "a.jsonl", [line]), chat=CHAT))
    plain = learned(row)
    if name == "messages":
        assert text_of(row) == "<system>s</><user>u</><assistant>a</><user>v</><assistant>bc</>|"
        assert plain == "." * 33 + "a</>" + "." * 21 + "bc</>|"
    elif name == "weight-0":
        assert text_of(row) == "<assistant>no</><assistant>yes</>|" and plain == "." * 27 + "yes</>|"
    else:
        assert plain == wanted
        assert (row.weights is None) == (name == "text")


def test_chatml_is_the_usual_format(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]
    path = jsonl(tmp_path / "a.jsonl", [{"messages": turns}])
    (row,) = rows(opened(path))
    assert text_of(row) == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nyo<|im_end|>\n|"


def test_text_is_never_read_as_control_tokens(tmp_path: Path) -> None:
    path = jsonl(
        tmp_path / "a.jsonl",
        [
            {"text": "a<|x|>"},
            {"messages": [{"role": "user", "content": "b<|x|>"}, {"role": "assistant", "content": "c"}]},
        ],
    )
    found = rows(opened(path, chat=ChatFormat("<|x|>", "<|x|>")))
    assert [text_of(row) for row in found] == ["a<|x|>|", "Xb<|x|>XXcX|"]


def test_csv_has_the_same_fields(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes('\ufeffprompt,completion\r\n"a, ""b""\nc",told\r\n\r\nq,=1+1\r\n'.encode())
    assert [text_of(row) for row in rows(opened(path))] == ['a, "b"\nctold|', "q=1+1|"]
    path.write_text("text,messages\nplain,[]\n")
    assert [text_of(row) for row in rows(opened(path))] == ["plain|"]


def test_folders_of_texts_are_read_in_order_without_hidden_files_and_links(tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    (folder / "b").mkdir(parents=True)
    (folder / ".git").mkdir()
    for name, text in {
        "b/z.txt": "z",
        "b/a.md": "m",
        "c.txt": "ü",
        "x.py": "no",
        ".h.txt": "no",
        ".git/a.txt": "no",
    }.items():
        (folder / name).write_text(text)
    (folder / "link.txt").symlink_to(folder / "c.txt")
    (folder / "empty.txt").touch()
    jsonl(folder / "d.jsonl", [{"text": "j"}])
    assert [bytes(row.tokens[:-1].tolist()).decode() for row in rows(opened(folder))] == ["ü", "j", "m", "z"]
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match="no texts"):
        opened(tmp_path / "none")


def test_a_long_text_is_read_in_parts_cut_between_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    text = "\ufeff" + "line ü of text\n" * 200_000
    path.write_text(text)
    tokenizer = Bytes()
    source = open_source(path, tokenizer, 1 << 21)
    assert tokenizer.calls > 3
    data = b"".join(
        bytes(row.tokens[int(n > 0) :].tolist()) if n < len(source) - 1 else b"" for n, row in enumerate(rows(source))
    )
    assert text.encode()[3:].startswith(data) and len(data) > 2_000_000


# -- what cannot be used -----------------------------------------------------------------------------------------------

BAD: dict[str, tuple[bytes, str]] = {
    "json": (b'{"text": ', "not valid JSON"),
    "list": (b"[1]", "no object"),
    "fields": (b'{"content": "x"}', "content"),
    "number": (b'{"text": 1}', "text is no text"),
    "utf-8": (b'{"text": "\xff"}', "JSON"),
    "surrogate": (b'{"text": "\\ud800"}', "lone surrogate"),
    "messages-empty": (b'{"messages": []}', "no list"),
    "message-role": (b'{"messages": [{"content": "x"}]}', "no role"),
    "role-forged": (b'{"messages": [{"role": "user>x", "content": "x"}]}', "role"),
    "weight": (b'{"messages": [{"role": "assistant", "content": "x", "weight": 2}]}', "weight"),
    "tool-calls": (b'{"messages": [{"role": "assistant", "content": "", "tool_calls": [1]}]}', "tool calls"),
    "image": (b'{"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}', "no text"),
    "deep": (b'{"text": ' + b"[" * 5000 + b"]" * 5000 + b"}", "deep"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_line_is_named_and_refused_or_left_out(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    line, reason = BAD[name]
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "one"}\n\n' + line + b'\n{"text": "two"}')
    with pytest.raises(InvalidFormat, match=reason) as caught:
        opened(path)
    assert f"{path}:3: " in str(caught.value)
    with caplog.at_level(logging.WARNING):
        source = opened(path, bad="skip")
    assert [text_of(row) for row in rows(source)] == ["one|", "two|"]
    assert source.texts.skipped == 1 and "1 texts were left out" in caplog.text


def test_a_line_that_is_too_long_is_refused_in_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with path.open("wb") as file:
        file.write(b'{"text": "one"}\n{"text": "')
        for _ in range(3):
            file.write(b"x" * (MAX_LINE // 2))
        file.write(b'"}\n{"text": "two"}\n')
    with pytest.raises(PayloadTooLarge, match=":2: "):
        opened(path)
    assert [text_of(row) for row in rows(opened(path, bad="skip"))] == ["one|", "two|"]


@pytest.mark.parametrize(
    ("data", "reason"),
    [(b"good \xff", "byte 5"), (b"x" * (1 << 20) + b"\xc3", "within a UTF-8"),
     (b"x" * ((1 << 20) - 1) + b"\xc3x", "byte 1048575")],
    ids=["bad", "cut", "across-blocks"],
)  # fmt: skip
def test_text_that_is_not_utf_8_is_an_error_with_its_place(tmp_path: Path, data: bytes, reason: str) -> None:
    folder = tmp_path / "t"
    folder.mkdir()
    (folder / "a.txt").write_bytes(data)
    (folder / "b.txt").write_text("fine")
    with pytest.raises(InvalidFormat, match=reason):
        opened(folder)
    source = opened(folder, bad="skip")
    assert [text_of(row) for row in rows(source)] == ["fine|"] and source.texts.skipped == 1


CSV: dict[str, tuple[bytes, int, list[str]]] = {
    "cells": (b"text\nok\na,b\nend\n", 3, ["ok|", "end|"]),
    "utf-8": (b"text\nok\n\xff\nend\n", 3, ["ok|", "end|"]),
    "fields": (b"title\nok\n", 2, []),
    # Behind a wrong quote nobody knows where a row begins.
    "quote": (b'text\nok\n"open\nend\n', 3, ["ok|"]),
    "after-quote": (b'text\nok\n"a"b\nend\n', 3, ["ok|"]),
    "long-cell": (b"text\nok\n" + b"x" * 140_000 + b"\nend\n", 3, ["ok|"]),
}


@pytest.mark.parametrize("name", CSV)
def test_bad_rows_of_csv_are_named(tmp_path: Path, name: str) -> None:
    data, line, left = CSV[name]
    path = tmp_path / "a.csv"
    path.write_bytes(data)
    with pytest.raises(InvalidFormat, match=f":{line}: ") as caught:
        opened(path)
    assert ("rows behind it are not read" in str(caught.value)) == (name in ("quote", "after-quote", "long-cell"))
    source = opened(path, bad="skip")
    assert [text_of(row) for row in rows(source)] == left and source.texts.skipped == 1


def test_wrong_options_and_missing_files_are_told(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", [{"text": "x"}])
    with pytest.raises(ConfigError, match="tokenizer"):
        open_source(path)
    wrong: list[dict[str, Any]] = [{"packing": "worst"}, {"bad": "hide"}, {"seq_len": 0}]
    for options in wrong:
        with pytest.raises(ConfigError):
            opened(path, **options)
    for name in ("none.jsonl", "none.bin", "none.wdbx"):
        with pytest.raises(DataError, match="none"):
            opened(tmp_path / name)
    (tmp_path / "a.parquet").touch()
    with pytest.raises(ConfigError, match=r"\.jsonl"):
        opened(tmp_path / "a.parquet")


# -- packing -----------------------------------------------------------------------------------------------------------


def test_a_long_text_goes_on_so_that_every_token_is_predicted_once(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", [{"text": "abcdefghij"}])
    assert [text_of(row) for row in rows(opened(path, 4))] == ["abcde", "efghi", "ij|"]
    assert [text_of(row) for row in rows(opened(path, 10))] == ["abcdefghij|"]
    assert [text_of(row) for row in rows(opened(path, 9))] == ["abcdefghij", "j|"]


def test_a_row_of_several_texts_numbers_them(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", [{"text": text} for text in ("abcde", "fg", "hijk", "l")])
    (first, second) = rows(opened(path, 9, packing="greedy"))
    assert text_of(first) == "abcde|fg|" and text_of(second) == "hijk|l|"
    assert first.segments is not None and first.segments.tolist() == [1] * 6 + [2] * 3
    best = rows(opened(path, 9, packing="best-fit"))
    assert [text_of(row) for row in best] == ["abcde|fg|", "hijk|l|"]


def test_texts_in_a_row_do_not_see_each_other(tmp_path: Path) -> None:
    """Logits of a text in a packed row are those of the text alone."""
    path = jsonl(tmp_path / "a.jsonl", [{"text": "abc"}, {"text": "defg"}])
    (packed,) = rows(opened(path, 16, packing="greedy"))
    alone = rows(opened(path, 16))
    torch.manual_seed(0)
    model = Llama(LlamaConfig(vocab_size=258, width=16, layers=2, heads=2, kv_heads=1, feed_forward=16, context=16))
    batch = collate([packed])
    with torch.no_grad():
        together = model(batch.inputs, mask=batch.mask)
        apart = [model(collate([row]).inputs) for row in alone]
    assert torch.allclose(together[:, :3], apart[0], atol=1e-5)
    assert torch.allclose(together[:, 4:], apart[1], atol=1e-5)
    # The first token of the second text is not foretold by the first text.
    assert batch.weights.tolist() == [[1, 1, 1, 0, 1, 1, 1, 1]]


def test_pieces_in_which_nothing_is_learned_are_left_out(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", [{"prompt": "0123456789", "completion": "ab"}, {"text": "x"}])
    found = rows(opened(path, 4))
    assert [text_of(row) for row in found] == ["89ab|", "x|"]
    assert [learned(row) for row in found] == ["..ab|", "x|"]


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), max_size=12), st.integers(1, 9))
def test_what_is_learned_is_counted_right_however_it_is_read(pairs: list[tuple[int, int]], seq_len: int) -> None:
    marks = np.array([mark for asked, told in pairs for mark in [0] * asked + [1] * told], np.uint8)
    ends = np.cumsum([asked + told for asked, told in pairs], dtype=np.int64)
    ends = ends[np.diff(ends, prepend=0) > 0]
    texts = Texts("t", 9, ends, lambda start, count: np.arange(start, start + count, dtype=np.uint32) % 9,
                  lambda start, count: marks[start : start + count])  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packed, "_SCAN", 5)
        source = PackedSource(texts, seq_len, packing="none")
    wanted = [
        marks[at : min(at + seq_len + 1, end)].tolist()
        for begin, end in itertools.pairwise([0, *ends.tolist()])
        for at in range(begin, end - 1, seq_len)
        if marks[at + 1 : min(at + seq_len + 1, end)].any()
    ]
    found = [row.weights for row in rows(source)]
    assert [weights.tolist() for weights in found if weights is not None] == wanted and len(found) == len(wanted)


PIECES = st.lists(st.integers(2, 33), max_size=60)


@given(PIECES)
def test_no_row_is_overfull_and_no_piece_is_lost(lengths: list[int]) -> None:
    sizes = np.array(lengths, np.int64)
    for pack in (best_fit, in_order):
        row_of = pack(sizes, 33)
        filled = np.bincount(row_of, sizes) if lengths else np.zeros(0)
        assert (filled <= 33).all() and (filled > 0).all() and len(row_of) == len(lengths)
    # First-fit decreasing and best-fit decreasing need at most 11/9 of the best plus one row.
    rows_needed = -(-sum(lengths) // 33)
    assert len(set(best_fit(sizes, 33).tolist())) <= max(rows_needed * 2, 1)
    assert in_order(sizes, 33).tolist() == sorted(in_order(sizes, 33).tolist())


@given(
    st.lists(st.text("abcdefg", max_size=40), max_size=12), st.integers(1, 20), st.sampled_from(["best-fit", "greedy"])
)
def test_every_text_is_in_the_rows_whole_and_once(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], seq_len: int, packing: str
) -> None:
    path = jsonl(tmp_path_factory.mktemp("p") / "a.jsonl", [{"text": text} for text in texts])
    source = opened(path, seq_len, packing=packing)
    pieces: list[str] = []
    for row in rows(source):
        assert 2 <= len(row.tokens) <= seq_len + 1
        segments = np.ones(len(row.tokens)) if row.segments is None else row.segments
        chars = np.array(list(text_of(row)))
        pieces += ["".join(chars[segments == number]) for number in sorted(set(segments.tolist()))]
    wanted = [
        (text + "|")[at : at + seq_len + 1] for text in texts for at in range(0, len(text), seq_len)
    ]  # fmt: skip
    assert sorted(pieces) == sorted(wanted)
    again = opened(path, seq_len, packing=packing)
    assert [row.tokens.tolist() for row in rows(again)] == [row.tokens.tolist() for row in rows(source)]


# -- files of tokens ---------------------------------------------------------------------------------------------------


@given(st.integers(0, 60), st.integers(1, 20))
def test_windows_of_a_tokenbin_predict_every_token_once(
    tmp_path_factory: pytest.TempPathFactory, count: int, seq_len: int
) -> None:
    path = tmp_path_factory.mktemp("b") / "a.bin"
    write_tokens(path, range(count))
    source = open_source(path, None, seq_len)
    assert source.vocab_size == count
    targets = [token for row in rows(source) for token in row.tokens[1:].tolist()]
    assert targets == list(range(1, count))
    assert all(2 <= len(row.tokens) <= seq_len + 1 for row in rows(source))
    for index in (-1, len(source)):
        with pytest.raises(IndexError):
            source.row(index)


def test_texts_in_a_window_are_told_apart_by_the_end_of_text(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    write_tokens(path, [1, 2, END, 3, 4, END, END, 5, 6, 7])
    for mapped in (False, True):
        (row,) = rows(open_source(path, Bytes(), 20, mapped=mapped))
        assert row.segments is not None and row.segments.tolist() == [1, 1, 1, 2, 2, 2, 3, 4, 4, 4]
    (row,) = rows(open_source(path, Bytes(), 20, separate=False))
    assert row.segments is None
    last = rows(open_source(path, Bytes(), 3))[-1]
    assert last.tokens.tolist() == [END, 5, 6, 7][-4:] and last.segments is not None


def test_a_token_outside_the_vocabulary_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    write_tokens(path, [1, 2, 3, 4, 300, 5])
    source = open_source(path, Bytes(), 2)
    assert source.row(0).tokens.tolist() == [1, 2, 3]
    with pytest.raises(DataError, match=r"token 4 is 300.*258"):
        source.row(1)
    assert open_source(path, Bytes(), 2, vocab_size=301).row(2).tokens.tolist() == [300, 5]
    write_tokens(path, [0xFFFFFFFF, 1], overwrite=True)
    with pytest.raises(DataError, match="4294967295"):
        open_source(path, Bytes(), 2).row(0)


def test_a_wdbx_dataset_gives_the_rows_of_its_tokenbin(tmp_path: Path) -> None:
    tokens = [n % 250 for n in range(1000)]
    write_tokens(tmp_path / "a.bin", tokens)
    tokenbin_to_wdbx(tmp_path / "a.bin", tmp_path / "a.wdbx", block_size=64)
    plain = rows(open_source(tmp_path / "a.bin", None, 30))
    choices: list[dict[str, Any]] = [{}, {"cache": tmp_path / "kept"}, {"in_memory": 10}]
    for options in choices:
        found = rows(open_source(tmp_path / "a.wdbx", None, 30, **options))
        assert [row.tokens.tolist() for row in found] == [row.tokens.tolist() for row in plain]
    assert read_tokens(tmp_path / "kept" / "tokens.bin").tolist() == tokens
    assert (tmp_path / "a.wdbx.tokens").is_dir()
    with WdbxWriter(tmp_path / "b.wdbx") as out:
        out.add(1, (), pack_block([1, 2], "ab"))
    (tmp_path / "b.wdbx").write_bytes((tmp_path / "b.wdbx").read_bytes().replace(b"ab", b"xb"))
    with pytest.raises(InvalidFormat):
        open_source(tmp_path / "b.wdbx")
    assert len(open_source(tmp_path / "b.wdbx", verify=False)) == 1


# -- the cache ---------------------------------------------------------------------------------------------------------

LINES = [{"text": "one"}, {"prompt": "two", "completion": "three"}, {"text": "four"}]


def test_the_cache_gives_the_same_rows_and_spares_the_work(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", LINES)
    plain = [(text_of(row), learned(row)) for row in rows(opened(path, 8, packing="best-fit"))]
    tokenizer = Bytes()
    for mapped in (False, True):
        source = open_source(path, tokenizer, 8, in_memory=0, mapped=mapped)
        assert [(text_of(row), learned(row)) for row in rows(source)] == plain
    folder = tmp_path / "a.jsonl.tokens"
    assert sorted(file.name for file in folder.iterdir()) == ["ends.bin", "marks.bin", "texts.json", "tokens.bin"]
    assert (folder / "ends.bin").read_bytes() == struct.pack("<3Q", 4, 13, 18)
    assert (folder / "marks.bin").read_bytes() == b"\1" * 4 + b"\0" * 3 + b"\1" * 11
    assert read_tokens(folder / "tokens.bin").tolist() == [*b"one", END, *b"twothree", END, *b"four", END]
    calls = tokenizer.calls
    # Another length of rows needs no new tokens.
    open_source(path, tokenizer, 5, in_memory=0, packing="greedy")
    assert tokenizer.calls == calls + 1  # the probe that says which tokenizer it is
    jsonl(path, [*LINES, {"text": "five"}])
    assert len(rows(open_source(path, tokenizer, 5, in_memory=0, packing="none"))) > len(plain)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.jsonl", "a.jsonl.tokens"]


def test_a_cache_without_weights_has_no_marks(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", [{"text": "one"}])
    source = open_source(path, Bytes(), 8, cache=tmp_path / "kept" / "here")
    assert sorted(file.name for file in (tmp_path / "kept" / "here").iterdir()) == [
        "ends.bin",
        "texts.json",
        "tokens.bin",
    ]
    assert source.row(0).weights is None


def test_another_tokenizer_makes_another_cache(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", [{"text": "some text " * 20}])
    first = Tokenizer.train(["some text " * 20], 300)
    second = Tokenizer.train(["other words " * 20], 300)
    one = open_source(path, first, 400, cache=tmp_path / "c")
    two = open_source(path, second, 400, cache=tmp_path / "c")
    assert len(one.row(0).tokens) < len(two.row(0).tokens)
    assert first.decode(one.row(0).tokens.tolist()[:-1]) == "some text " * 20
    assert one.row(0).tokens[-1] == first.eos_id


def test_a_damaged_cache_is_told_and_a_folder_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", LINES)
    folder = tmp_path / "c"
    open_source(path, Bytes(), 8, cache=folder)
    for name, data in (("ends.bin", bytes(24)), ("tokens.bin", bytes(8)), ("marks.bin", b""), ("ends.bin", b"x" * 7)):
        kept = (folder / name).read_bytes()
        (folder / name).write_bytes(data)
        with pytest.raises(DataError, match=r"damaged|cannot be|no whole"):
            open_source(path, Bytes(), 8, cache=folder)
        (folder / name).write_bytes(kept)
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("all of it")
    (mine / "texts.json").write_text('{"kind": "other"}')
    with pytest.raises(ConfigError, match="left alone"):
        open_source(path, Bytes(), 8, cache=mine)
    assert (mine / "thesis.txt").read_text() == "all of it"


def test_an_error_in_the_data_leaves_no_cache(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "one"}\n{"bad": 1}\n')
    with pytest.raises(InvalidFormat):
        open_source(path, Bytes(), 8, in_memory=0)
    assert [file.name for file in tmp_path.iterdir()] == ["a.jsonl"]
    source = open_source(path, Bytes(), 8, in_memory=0, bad="skip")
    assert isinstance(source, PackedSource) and source.texts.skipped == 1
    again = open_source(path, Bytes(), 8, in_memory=0, bad="skip")
    assert isinstance(again, PackedSource) and again.texts.skipped == 1


def test_kill_9_while_the_cache_is_made_leaves_none(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", LINES)
    killed_while(
        """
        import sys, time
        from windlass.training.ingest import open_source
        class Slow:
            vocab_size, eos_id, calls = 300, 256, 0
            def encode(self, text, special=True):
                self.calls += 1
                if self.calls == 3:
                    print("writing", flush=True)
                    time.sleep(60)
                return list(text.encode())
        open_source(sys.argv[1], Slow(), 8, in_memory=0)
        """,
        path,
    )
    assert not (tmp_path / "a.jsonl.tokens").exists()
    assert len(open_source(path, Bytes(), 8, in_memory=0)) > 0


def test_a_run_reads_conversations_by_its_options(tmp_path: Path) -> None:
    lines = [{"prompt": f"say {n} ", "completion": f"it is {n}"} for n in range(40)]
    path = jsonl(tmp_path / "a.jsonl", lines)
    Tokenizer.train([f"{line['prompt']}{line['completion']}" for line in lines], 300).save(tmp_path / "tok")
    config = TrainConfig(
        data=str(path), tokenizer=str(tmp_path / "tok"), seq_len=48, batch_size=2, max_steps=4, lr=0.01,
        warmup_steps=0, device="cpu", shape={"width": 16, "layers": 1, "heads": 2, "kv_heads": 1, "feed_forward": 32},
    )  # fmt: skip
    trainer = Trainer(config)
    assert isinstance(trainer.source, PackedSource) and trainer.source.row(0).segments is not None
    losses = [event.metrics["loss"] for event in trainer.run() if isinstance(event, TrainStep)]
    assert len(losses) == 4 and losses[-1] < losses[0]


def test_nothing_to_read_is_no_rows(tmp_path: Path) -> None:
    for name, data in (("a.jsonl", b""), ("a.txt", b""), ("a.bin", b""), ("a.csv", b"text\n"), ("b.jsonl", b"\n\n")):
        (tmp_path / name).write_bytes(data)
        choices: list[dict[str, Any]] = [{}, {"cache": tmp_path / f"{name}.kept"}]
        for options in choices:
            assert len(open_source(tmp_path / name, Bytes(), 8, **options)) == 0


@pytest.mark.soak
def test_100_mb_of_jsonl_become_tokens_in_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    line = (json.dumps({"text": "the quick brown fox jumps over the lazy dog " * 20}) + "\n").encode()
    with path.open("wb") as file:
        for _ in itertools.repeat(None, (100 << 20) // len(line)):
            file.write(line)
    grown = peak_of(
        PEAK
        + """
import sys
from windlass.training.ingest import open_source
class Words:
    vocab_size, eos_id = 1 << 16, 0
    def encode(self, text, special=True):
        return [hash(word) & 0xFFFF for word in text.split()]
before = peak()
source = open_source(sys.argv[1], Words(), 512)
rows = [source.row(n) for n in range(0, len(source), 997)]
print(before, peak())
""",
        path,
    )
    assert grown < 96 << 20  # the lengths of 113 000 texts and the work of packing them
