"""Trust in a folder: bound to its real path and to the content of all that would run, connect or widen."""

from __future__ import annotations

import json
import os
import stat
import threading
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from windlass.core import trust as module
from windlass.core.errors import ConfigError
from windlass.core.trust import PROJECT_PATHS, Trust, TrustStatus, project_files


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "project"
    (made / ".agents/skills/deploy").mkdir(parents=True)
    (made / ".agents/skills/deploy/SKILL.md").write_text("---\nname: deploy\n---\n!`rm x`\n")
    (made / ".windlass/hooks").mkdir(parents=True)
    (made / ".windlass/hooks/start.sh").write_text("#!/bin/sh\n")
    (made / ".mcp.json").write_text("{}")
    (made / "windlass.toml").write_text("max_turns = 3\n")
    (made / "AGENTS.md").write_text("Be kind.\n")
    (made / "src").mkdir()
    (made / "src/a.py").write_text("x = 1\n")
    return made


@pytest.fixture
def trust(tmp_path: Path) -> Trust:
    return Trust(tmp_path / "home")


def test_s85_nothing_is_trusted_by_itself(trust: Trust, folder: Path, tmp_path: Path) -> None:
    status = trust.status(folder)
    assert (status.state, status.trusted) == ("untrusted", False)
    assert [each.path for each in status.files] == [
        ".agents/skills/deploy/SKILL.md",
        ".mcp.json",
        ".windlass/hooks/start.sh",
        "windlass.toml",
    ]
    assert trust.read(folder, ".mcp.json") is None and trust.folders() == []
    (tmp_path / "empty").mkdir()
    assert trust.status(tmp_path / "empty") == TrustStatus(str(tmp_path / "empty"), "nothing")
    assert not (tmp_path / "home").exists()


def test_s85_granted_until_it_is_revoked(trust: Trust, folder: Path) -> None:
    assert trust.grant(folder).trusted
    again = Trust(trust.home)
    assert again.status(folder).trusted and again.folders() == [str(folder)]
    assert again.read(folder, ".mcp.json") == b"{}" and again.read(folder, "src/a.py") is None
    assert again.revoke(folder) and not again.revoke(folder)
    assert trust.status(folder).state == "untrusted"


def test_s88_a_change_asks_again_whatever_it_is(trust: Trust, folder: Path) -> None:
    def edit() -> None:
        (folder / ".mcp.json").write_text('{"mcpServers": {}}')

    def add() -> None:
        (folder / ".windlass/hooks/stop.sh").write_text("x")

    def remove() -> None:
        (folder / ".windlass/hooks/stop.sh").unlink()
        (folder / "windlass.toml").unlink()

    def swap() -> None:
        target = folder / ".agents/skills/deploy/SKILL.md"
        data = target.read_bytes()
        (folder / "src/copy.md").write_bytes(data)
        target.unlink()
        target.symlink_to(folder / "src/copy.md")

    for change, told in (
        (edit, ("~ .mcp.json",)),
        (add, ("+ .windlass/hooks/stop.sh",)),
        (remove, ("- .windlass/hooks/stop.sh", "- windlass.toml")),
        (swap, ("~ .agents/skills/deploy/SKILL.md",)),
    ):
        trust.grant(folder)
        assert trust.status(folder).trusted
        change()
        status = trust.status(folder)
        assert (status.state, status.changes, status.trusted) == ("changed", told, False)
    assert trust.read(folder, ".agents/skills/deploy/SKILL.md") is None


def test_what_does_not_run_does_not_matter(trust: Trust, folder: Path) -> None:
    trust.grant(folder)
    (folder / "src/a.py").write_text("x = 2\n")
    (folder / ".mcp.json").touch()
    (folder / ".mcp.json").chmod(0o755)
    assert trust.status(folder).trusted
    # S114: instructions are no permission, but that they changed is told.
    (folder / "AGENTS.md").write_text("Be evil.\n")
    (folder / "CLAUDE.md").write_text("New.\n")
    status = trust.status(folder)
    assert status.trusted and status.noted == ("~ AGENTS.md", "+ CLAUDE.md")


def test_s88_what_a_link_leads_to_is_part_of_it(trust: Trust, folder: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "SKILL.md").write_text("1")
    (folder / ".agents/skills/far").symlink_to(outside)
    (folder / ".windlass/one").symlink_to(outside / "SKILL.md")
    (folder / ".windlass/broken").symlink_to("nowhere")
    trust.grant(folder)
    assert trust.status(folder).trusted
    (outside / "SKILL.md").write_text("2")
    assert trust.status(folder).changes == ("~ .agents/skills/far/SKILL.md", "~ .windlass/one")
    trust.grant(folder)
    (folder / ".windlass/nowhere").write_text("now it is there")
    assert {"~ .windlass/broken", "+ .windlass/nowhere"} <= set(trust.status(folder).changes)
    # A link that leads back up ends, and makes all that it leads to a part of it.
    (folder / ".windlass/loop").symlink_to("..")
    trust.grant(folder)
    (folder / "src/a.py").write_text("x = 3\n")
    assert trust.status(folder).changes == ("~ .windlass/loop/src/a.py",)


def test_it_is_bound_to_the_real_path(trust: Trust, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(folder)
    trust.grant(tmp_path / "link")
    assert trust.folders() == [str(folder)] and trust.status(folder / "src/..").trusted
    folder.rename(tmp_path / "moved")
    assert trust.status(tmp_path / "moved").state == "untrusted"


def test_a_folder_that_changes_while_it_is_looked_at_is_not_trusted(trust: Trust, folder: Path) -> None:
    seen = trust.status(folder)
    (folder / ".mcp.json").write_text("{ }")
    with pytest.raises(ConfigError, match="changed after it was looked at"):
        trust.grant(folder, seen=seen)
    assert trust.status(folder).state == "untrusted"
    assert trust.grant(folder, seen=trust.status(folder)).trusted
    # What is loaded is what was trusted, or nothing.
    (folder / ".mcp.json").write_text("[]")
    assert trust.read(folder, ".mcp.json") is None and trust.read(folder, "windlass.toml") == b"max_turns = 3\n"
    assert trust.read(folder, "../home/trust.json") is None


def test_s14_the_file_is_nobody_elses_and_whole(trust: Trust, folder: Path) -> None:
    before = os.umask(0)
    try:
        trust.grant(folder)
    finally:
        os.umask(before)
    assert stat.S_IMODE(trust.path.stat().st_mode) == 0o600
    assert stat.S_IMODE((trust.home / "trust.lock").stat().st_mode) == 0o600
    assert sorted(path.name for path in trust.home.iterdir()) == ["trust.json", "trust.lock"]
    assert json.loads(trust.path.read_text())["version"] == 1


@pytest.mark.parametrize("case", ["writable", "link", "folder", "broken", "newer", "pipe"])
def test_a_file_that_cannot_be_believed_is_not_used(trust: Trust, folder: Path, tmp_path: Path, case: str) -> None:
    trust.grant(folder)
    if case == "writable":
        trust.path.chmod(0o666)
    elif case == "newer":
        trust.path.write_text('{"version": 2, "folders": {}}')
    elif case == "broken":
        trust.path.write_text("{")
    else:
        kept = trust.path.rename(tmp_path / "kept.json")
        if case == "link":
            trust.path.symlink_to(kept)
        elif case == "folder":
            trust.path.mkdir()
        else:
            os.mkfifo(trust.path)
    with pytest.raises(ConfigError, match=r"trust\.json"):
        trust.status(folder)
    with pytest.raises(ConfigError):
        trust.grant(folder)


def test_what_cannot_be_looked_at_cannot_be_trusted(
    trust: Trust, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(folder / ".windlass/pipe")
    assert next(each.kind for each in project_files(folder) if each.path == ".windlass/pipe") == "other"
    monkeypatch.setattr(module, "MAX_BYTES", 8)
    with pytest.raises(ConfigError, match="more than"):
        trust.grant(folder)
    monkeypatch.setattr(module, "MAX_BYTES", 1 << 20)
    monkeypatch.setattr(module, "MAX_FILES", 3)
    with pytest.raises(ConfigError, match="more files"):
        trust.status(folder)


def test_names_that_utf8_cannot_carry_stay_apart(trust: Trust, folder: Path) -> None:
    for name in (b"\xff", b"\\xff", b"a\\b", b"new\nline"):
        with open(os.fsencode(folder / ".windlass") + b"/" + name, "wb") as file:
            file.write(name)
    files = [
        each.path for each in project_files(folder) if each.path.startswith(".windlass/") and "hooks" not in each.path
    ]
    assert len(files) == len(set(files)) == 4
    assert trust.grant(folder).trusted


def test_two_programs_trust_two_folders_at_once(trust: Trust, tmp_path: Path) -> None:
    folders = [tmp_path / f"p{number}" for number in range(12)]
    for each in folders:
        each.mkdir()
        (each / ".mcp.json").write_text("{}")
    threads = [threading.Thread(target=Trust(trust.home).grant, args=(each,)) for each in folders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert trust.folders() == sorted(map(str, folders))


contents = st.dictionaries(
    st.sampled_from([f"{top}/{name}" if "." not in top[1:] else top for top in PROJECT_PATHS for name in ("a", "b/c")]),
    st.binary(max_size=4),
    max_size=5,
)


@given(before=contents, after=contents)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_trusted_means_exactly_the_same_files(tmp_path_factory: pytest.TempPathFactory, before: dict[str, bytes],
                                              after: dict[str, bytes]) -> None:  # fmt: skip
    top = tmp_path_factory.mktemp("t")
    trust, folder = Trust(top / "home"), top / "p"
    for files in (before, after):
        folder.mkdir()
        for path, data in files.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(data)
        if files is before:
            trust.grant(folder)
            folder.rename(top / "old")
    status = trust.status(folder)
    expected = "nothing" if before == after == {} else "trusted" if before == after else "changed"
    assert status.state == expected
