"""Private files are replaced whole: their mode, a crash in between, a link in their place."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from windlass.core.private import replace_private


def test_a_file_is_private_whatever_the_umask_and_the_file_before(tmp_path: Path) -> None:
    path = tmp_path / "state"
    path.write_bytes(b"old")
    path.chmod(0o644)
    old = os.umask(0)
    try:
        replace_private(path, b"new")
    finally:
        os.umask(old)
    assert path.read_bytes() == b"new" and stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [each.name for each in tmp_path.iterdir()] == ["state"]


def test_a_link_is_replaced_and_not_followed(tmp_path: Path) -> None:
    other, path = tmp_path / "other", tmp_path / "state"
    other.write_bytes(b"theirs")
    path.symlink_to(other)
    replace_private(path, b"ours")
    assert other.read_bytes() == b"theirs" and path.read_bytes() == b"ours" and not path.is_symlink()


def test_what_fails_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "state"
    path.mkdir()
    (path / "inside").write_bytes(b"x")
    with pytest.raises(OSError, match="directory"):
        replace_private(path, b"new")
    assert [each.name for each in tmp_path.iterdir()] == ["state"] and (path / "inside").read_bytes() == b"x"


def test_a_name_as_long_as_names_may_be_works(tmp_path: Path) -> None:
    for name in ("n" * 255, "𝔫" * 63):
        replace_private(tmp_path / name, b"x")
        assert (tmp_path / name).read_bytes() == b"x"
