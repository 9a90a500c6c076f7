"""TokenBin: the bytes on disk, windows, bounds, and a writer that leaves the old file or the new one."""

from __future__ import annotations

import os
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.training.data_files import killed_while
from windlass.core.errors import ConfigError
from windlass.training.files import DataError, InvalidFormat, PayloadTooLarge
from windlass.training.tokenbin import TokenBin, TokenBinWriter, read_tokens, token_bytes, write_tokens

TOKENS = [0, 1, 258, 0xDEADBEEF, 0xFFFFFFFF]
BYTES = bytes.fromhex("00000000 01000000 02010000 efbeadde ffffffff")


def test_the_layout_is_bare_little_endian_words(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    write_tokens(path, TOKENS)
    assert path.read_bytes() == BYTES == struct.pack("<5I", *TOKENS)
    found = read_tokens(path)
    assert found.tolist() == TOKENS and found.dtype == np.uint32 and found.dtype.isnative


def test_numbers_of_the_other_byte_order_are_written_right() -> None:
    for order in ("<u4", ">u4", ">i8", "<u2"):
        assert token_bytes(np.array([1, 258], order)) == bytes.fromhex("01000000 02010000")


@given(st.lists(st.integers(0, 0xFFFFFFFF), max_size=60), st.data())
def test_any_tokens_come_back_whole_and_in_windows(
    tmp_path_factory: pytest.TempPathFactory, tokens: list[int], data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("t") / "a.bin"
    cut = data.draw(st.integers(0, len(tokens)))
    with TokenBinWriter(path) as out:
        out.write(tokens[:cut])
        out.write(np.array(tokens[cut:], np.uint32))
    assert out.count == len(tokens)
    assert read_tokens(path).tolist() == tokens
    start = data.draw(st.integers(0, len(tokens)))
    count = data.draw(st.integers(0, len(tokens) - start))
    for mapped in (False, True):
        with TokenBin(path, mapped=mapped) as file:
            assert len(file) == len(tokens)
            assert file.window(start, count).tolist() == tokens[start : start + count]
            assert [token for chunk in file.chunks(7) for token in chunk.tolist()] == tokens


@pytest.mark.parametrize("length", [1, 2, 3, 5, 19])
def test_a_length_that_is_no_multiple_of_four_is_invalid(tmp_path: Path, length: int) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"\1" * length)
    for read in (TokenBin, read_tokens):
        with pytest.raises(InvalidFormat) as caught:
            read(path)
        assert caught.value.code == "invalid_format" and caught.value.context() == {"path": str(path)}


def test_more_than_512_mib_is_not_loaded_whole_but_read_in_windows(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    with path.open("wb") as file:
        file.truncate((512 << 20) + 4)  # a hole: no space is used
        file.seek(512 << 20)
        file.write(struct.pack("<I", 7))
    tracemalloc.start()
    try:
        with pytest.raises(PayloadTooLarge, match="TokenBin"):
            read_tokens(path)
        for mapped in (False, True):
            with TokenBin(path, mapped=mapped) as tokens:
                assert tokens.window((512 << 20) // 4 - 1, 2).tolist() == [0, 7]
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
    path.write_bytes(bytes(16))
    assert read_tokens(path, max_bytes=16).tolist() == [0, 0, 0, 0]
    with pytest.raises(PayloadTooLarge):
        read_tokens(path, max_bytes=15)


@pytest.mark.parametrize(("start", "count"), [(4, 2), (0, 6), (-1, 1), (1 << 62, 1), (0, 1 << 62), (2, -1)])
def test_a_window_past_the_end_is_an_error_and_takes_no_memory(tmp_path: Path, start: int, count: int) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(BYTES)
    for mapped in (False, True):
        with TokenBin(path, mapped=mapped) as tokens, pytest.raises(InvalidFormat):
            tokens.window(start, count)


def test_s104_a_file_cut_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(BYTES * 4096)
    with TokenBin(path) as tokens:
        path.write_bytes(BYTES)
        assert tokens.window(0, 5).tolist() == TOKENS
        with pytest.raises(InvalidFormat, match="shorter"):
            tokens.window(4000, 100)


@pytest.mark.parametrize(
    "tokens",
    [[-1], [1 << 32], [1 << 70], [0.5], [[1, 2]], [True], ["1"], [None]],
    ids=["negative", "33bits", "71bits", "fraction", "nested", "bool", "text", "none"],
)
def test_what_is_no_token_is_refused_and_nothing_is_written(tmp_path: Path, tokens: list[int]) -> None:
    with pytest.raises(ConfigError):
        write_tokens(tmp_path / "a.bin", tokens)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten_unless_asked(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    write_tokens(path, [1])
    with pytest.raises(ConfigError, match="already"):
        write_tokens(path, [2])
    assert read_tokens(path).tolist() == [1]
    write_tokens(path, [2], overwrite=True)
    assert read_tokens(path).tolist() == [2]
    link = tmp_path / "link.bin"
    link.symlink_to(path)
    write_tokens(link, [3], overwrite=True)
    assert link.is_symlink() and read_tokens(path).tolist() == [3]
    for bad in (tmp_path, tmp_path / "none" / "a.bin"):
        with pytest.raises(ConfigError):
            write_tokens(bad, [1], overwrite=True)
    with pytest.raises(RuntimeError), TokenBinWriter(path, overwrite=True) as out:
        out.write([9])
        raise RuntimeError("no")
    assert read_tokens(path).tolist() == [3]
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a.bin", "link.bin"]
    with pytest.raises(ConfigError, match="with block"):
        TokenBinWriter(tmp_path / "b.bin").write([1])


def test_what_is_no_file_is_named(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.bin")
    for bad in (tmp_path / "none.bin", tmp_path, tmp_path / "pipe.bin"):
        with pytest.raises(DataError, match=bad.name):
            TokenBin(bad)
    write_tokens(tmp_path / "x.bin", [1])
    with TokenBin(tmp_path / "x.bin") as tokens:
        pass
    with pytest.raises(DataError, match="closed"):
        tokens.window(0, 1)


@pytest.mark.parametrize("old", [None, [1, 2, 3]], ids=["new", "over-an-old-one"])
def test_kill_9_while_writing_leaves_the_old_file(tmp_path: Path, old: list[int] | None) -> None:
    path = tmp_path / "a.bin"
    if old is not None:
        write_tokens(path, old)
    killed_while(
        """
        import sys, time
        from windlass.training.tokenbin import TokenBinWriter
        with TokenBinWriter(sys.argv[1], overwrite=True) as out:
            out.write(list(range(100000)))
            print("writing", flush=True)
            time.sleep(60)
        """,
        path,
    )
    if old is None:
        assert not path.exists()
    else:
        assert read_tokens(path).tolist() == old
    write_tokens(path, [5], overwrite=True)
    assert read_tokens(path).tolist() == [5]
