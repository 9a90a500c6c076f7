"""`[policy]` in the configuration files: whose table it is, and that the machine's own cannot be moved."""

from __future__ import annotations

from pathlib import Path

import pytest

from windlass.core.config import Config
from windlass.core.config_files import MANAGED, foreign_addresses, load_config
from windlass.core.errors import ConfigError


def load(tmp_path: Path, managed: str | None = None, user: str = "", project: str = "", **environ: str) -> Config:
    for name, text in (("user.toml", user), ("project.toml", project), ("managed.toml", managed)):
        if text is not None:
            (tmp_path / name).write_text(text)
    files = ((tmp_path / "project.toml", False), (tmp_path / "user.toml", True))
    return load_config(environ=environ, files=files, managed=tmp_path / "managed.toml")


def test_each_table_keeps_its_layer_the_strongest_first(tmp_path: Path) -> None:
    table = "[policy]\nmode = '{}'\n"
    config = load(tmp_path, table.format("plan"), table.format("ask"), table.format("auto-edit"))
    assert [(each.layer, Path(each.origin).name, each.table["mode"]) for each in config.policies] == [
        ("managed", "managed.toml", "plan"),
        ("user", "user.toml", "ask"),
        ("project", "project.toml", "auto-edit"),
    ]
    assert config.with_key("groq", "k").policies == config.policies and config.notices == ()
    assert load(tmp_path / "", None).policies[0].layer == "managed"
    (tmp_path / "managed.toml").unlink()
    assert load(tmp_path).policies == ()


def test_the_managed_file_holds_nothing_else_and_no_variable_moves_it(tmp_path: Path) -> None:
    assert Path("/etc/windlass/windlass.toml") == MANAGED
    with pytest.raises(ConfigError, match=r"may only hold \[policy\]"):
        load(tmp_path, "[policy]\n[providers.groq]\nbase_url = 'http://x'\n")
    with pytest.raises(ConfigError, match=r"managed\.toml"):
        load(tmp_path, "[policy\n")
    with pytest.raises(ConfigError, match="policy must be a table"):
        load(tmp_path, "policy = 3\n")
    assert load(tmp_path, "").policies == ()


def test_a_managed_file_that_cannot_be_looked_at_stops_the_program(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(ConfigError, match="Cannot read"):
        load_config(environ={}, files=(), managed=tmp_path / "loop")


def test_s86_addresses_that_would_get_a_key_of_the_users(tmp_path: Path) -> None:
    config = load(tmp_path, user='[providers.openai]\napi_key = "sk"\n', OLLAMA_API_KEY="k")
    evil = "http://evil"
    assert foreign_addresses({"OPENAI_BASE_URL": evil}, config) == ["OPENAI_BASE_URL"]
    assert foreign_addresses({"OPENAI_BASE_URL": evil, "OPENAI_API_KEY": "theirs"}, config) == []
    assert foreign_addresses({"OLLAMA_HOST": evil, "VLLM_BASE_URL": evil}, config) == ["OLLAMA_HOST"]
    assert foreign_addresses({"OPENAI_MODEL": "m"}, config) == []
