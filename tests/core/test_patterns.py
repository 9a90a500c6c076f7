"""Patterns from outside: linear time with google-re2, and almost nothing without it."""

from __future__ import annotations

import re
from collections.abc import Generator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from windlass.core import patterns
from windlass.core.patterns import PatternError, compile_pattern, is_literal


@pytest.fixture
def no_re2(monkeypatch: pytest.MonkeyPatch) -> Generator[None]:
    monkeypatch.setitem(__import__("sys").modules, "re2", None)
    patterns._re2.cache_clear()  # pyright: ignore[reportPrivateUsage]
    yield
    patterns._re2.cache_clear()  # pyright: ignore[reportPrivateUsage]


def test_flags() -> None:
    assert compile_pattern("^b$").search(b"a\nb\nc") is None
    found = compile_pattern("^b$", multiline=True).search(b"a\nb\nc")
    assert found is not None
    assert (found.start(), found.end()) == (2, 3)
    assert compile_pattern("é", ignore_case=True).search("É".encode()) is not None
    assert compile_pattern("a.b").search(b"a\nb") is None
    assert compile_pattern("a.b", dotall=True).search(b"a\nb") is not None


@pytest.mark.parametrize("pattern", ["(?=a)", r"(a)\1", "(", "((a{100}){100}){100}", "\udc80"])
def test_what_re2_refuses_is_a_typed_error(pattern: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(PatternError):
        compile_pattern(pattern)
    assert capfd.readouterr().err == ""


def test_a_backtracking_bomb_is_linear() -> None:
    assert compile_pattern("^(a+)+$").search(b"a" * 50_000 + b"b") is None


@pytest.mark.usefixtures("no_re2")
@pytest.mark.parametrize(
    "pattern", ["^(a+)+$", "a.*b", "^a+b+$", "a|b", "^.$", "^[^a]$", "[a-z]", r"^\D$", "^é{2}$", "^[a--b]$"]
)
def test_without_re2_what_could_backtrack_or_miscount_is_refused(pattern: str) -> None:
    with pytest.raises(PatternError, match="windlass\\[regex\\]"):
        compile_pattern(pattern)


@pytest.mark.usefixtures("no_re2")
def test_without_re2_plain_text_and_simple_forms_match() -> None:
    assert compile_pattern("é", ignore_case=True) is not None
    assert compile_pattern("b", multiline=True).search(b"abc") is not None
    assert compile_pattern("^[a-z]{2}-[0-9]+$").search(b"ab-12") is not None
    assert compile_pattern("^[a-z]{2}-[0-9]+$").search(b"ab-12\n") is None
    assert compile_pattern(r"^a\$").search(b"a$") is not None
    assert compile_pattern(r"^\d{4}$").search("١٢٣٤".encode()) is None
    with pytest.raises(PatternError, match="bad character range"):
        compile_pattern("^[z-a]$")


@given(st.text(max_size=8))
def test_a_literal_means_itself(text: str) -> None:
    if is_literal(text):
        assert re.escape(text).replace("\\", "") == text
        assert compile_pattern(text).search(("x" + text).encode()) is not None
