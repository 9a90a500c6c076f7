"""What running calls printed: bounded, private, given once, gone with the response."""

from __future__ import annotations

import stat
from pathlib import Path

from windlass.stores.running import LIMIT, TAIL, RunningOutput


def test_r38_the_end_of_an_output_is_kept_private_and_given_once(tmp_path: Path) -> None:
    kept = RunningOutput(tmp_path / "s.db.running")
    assert kept.take("", "s", "c") == ""
    for number in range(3000):
        kept.append("", "s", "c", f"line {number}\n")
    kept.append("", "s", "other", "mine")
    folder = tmp_path / "s.db.running"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}
    tail = kept.take("", "s", "c")
    assert tail.endswith("line 2999\n") and len(tail) <= TAIL
    assert kept.take("", "s", "c") == ""
    assert kept.take("tenant", "s", "other") == "" and kept.take("", "s", "other") == "mine"
    assert not folder.exists()


def test_it_is_bounded_and_a_broken_place_costs_only_the_tail(tmp_path: Path) -> None:
    kept = RunningOutput(tmp_path / "r")
    for _ in range(40):
        kept.append("", "s", "c", "x" * 65536)
    assert next((tmp_path / "r").iterdir()).stat().st_size <= LIMIT + 65536
    kept.drop("", "s", "c")
    (tmp_path / "file").write_text("in the way")
    broken = RunningOutput(tmp_path / "file")
    broken.append("", "s", "c", "text")
    broken.drop("", "s", "c")
    assert broken.take("", "s", "c") == ""
