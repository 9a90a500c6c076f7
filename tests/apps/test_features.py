"""`[features]` of the user's file: what it takes from the command line, and that nothing of it is imported."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tests.apps.helpers import Cli
from windlass.apps.cli import COMMANDS, GATES, switched_off, usage, user_file
from windlass.core import registry
from windlass.core.config import Config
from windlass.core.config_files import config_home, load_config
from windlass.core.errors import ConfigError, UnknownNameError
from windlass.core.features import FEATURES, FeatureOff

OFF = "[features]\nllm = false\nembeddings = false\nagents = false\ntraining = false\n"


def test_every_gate_is_a_feature_and_every_command_exists() -> None:
    assert set(GATES.values()) == set(FEATURES) == {"llm", "embeddings", "agents", "training"}
    assert {row[0] for row in GATES} <= set(COMMANDS)


async def test_help_lists_only_what_is_on(cli: Cli) -> None:
    everything = (await cli("--help")).out
    assert everything == usage() and all(f"\n  {name} " in everything for name in COMMANDS)
    cli.user_config(OFF)
    done = await cli("--help")
    gone = {name for (name,) in [row for row in GATES if len(row) == 1]}
    listed = {line.split()[0] for line in done.out.splitlines() if line.startswith("  ")}
    assert (done.code, done.err) == (0, "") and gone.isdisjoint(listed) and set(COMMANDS) - gone <= listed
    assert "windlass run" not in done.out
    script = (await cli("completion", "bash")).out
    assert " train " not in script and "serve" in script
    cli.user_config("[features]\ntraining = true\nllm = true\n")
    assert (await cli("--help")).out == everything
    # Help is asked for when something is broken, too.
    cli.user_config("[features\n")
    assert (await cli("--help")).out == everything


@pytest.mark.parametrize(
    ("command", "feature"),
    [
        ("run hello", "agents"), ("agent", "agents"), ("tui", "agents"), ("acp", "agents"),
        ("--prompt hello", "agents"),
        ("local info tiny", "llm"), ("llm list", "llm"), ("train run", "training"), ("convert dataset", "training"),
        ("federate status", "training"), ("run --help", "agents"),
    ],
    ids=lambda value: value.replace(" ", "-"),
)  # fmt: skip
async def test_a_command_that_is_off_names_its_setting_in_one_line(cli: Cli, command: str, feature: str) -> None:
    path = cli.user_config(OFF)
    done = await cli(*command.split())
    assert (done.code, done.out) == (2, "")
    (line,) = done.err.splitlines()
    assert line == f"windlass: {FEATURES[feature]} switched off: [features] {feature} = false. It stands in {path}."


async def test_embeddings_alone_leave_the_rest_of_their_commands(cli: Cli) -> None:
    cli.user_config("[features]\nembeddings = false\n")
    for args in (("local", "embed", "tiny", "x"), ("llm", "embed", "tiny", "x"), ("convert", "embeddings", "--help")):
        done = await cli(*args)
        assert done.code == 2 and "[features] embeddings = false" in done.err
    assert (await cli("local", "info", "tiny")).code == 0


async def test_a_project_s_file_switches_nothing_off(cli: Cli) -> None:
    (cli.folder / "windlass.toml").write_text(OFF)
    done = await cli("run", "-m", "echo", "hello")
    assert (done.code, done.out.strip()) == (0, "Echo: hello") and "[features] is ignored" in done.err
    assert "  train " in (await cli("--help")).out


async def test_wrong_switches_are_typed_errors(cli: Cli) -> None:
    path = cli.user_config("[features]\ntrainin = false\n")
    done = await cli("train", "info")
    assert done.code == 2 and f"{path} [features]: 'trainin'" in done.err and "Did you mean 'training'" in done.err
    for text, told in (("features = 3\n", "features must be a table"), ("[features]\nllm = 0\n", "true or false")):
        path.write_text(text)
        with pytest.raises(ConfigError, match=told):
            load_config(environ={}, files=((path, True),))
        done = await cli("run", "-m", "echo", "hello")
        assert done.code == 2 and told in done.err
    with pytest.raises(UnknownNameError):
        path.write_text("[features]\nagent = false\n")
        load_config(environ={}, files=((path, True),))


def test_names_of_the_registry_are_refused() -> None:
    config = Config(environ={}, off=dict.fromkeys(FEATURES, "/u.toml"))
    for ask in (
        lambda: registry.model("local:tiny", config),
        lambda: registry.model(None, config),
        lambda: registry.provider("local", config),
        lambda: registry.embedder("hashing", config),
        lambda: registry.embedder("openai:text-embedding-3-small", config.with_key("openai", "k")),
    ):
        with pytest.raises(FeatureOff, match=r"\[features\] (llm|embeddings) = false\. It stands in /u\.toml"):
            ask()
    assert registry.model("echo", config)[2] == "echo"


#: What each feature's parts are, as modules; the engine is a library of its own.
PARTS = {
    "training": (("train", "info"), "windlass.training"),
    "llm": (("local", "list"), "windlass.local"),
    "agents": (("run", "-m", "echo", "hello"), "windlass.agent"),
}


@pytest.mark.parametrize("feature", sorted(PARTS))
async def test_nothing_of_it_is_imported(cli: Cli, feature: str) -> None:
    args, part = PARTS[feature]
    cli.user_config("")

    async def imported() -> set[str]:
        done = await cli(*args, PYTHONPROFILEIMPORTTIME="1")
        return {line.rsplit("|", 1)[1].strip() for line in done.err.splitlines() if line.startswith("import time:")}

    def of(names: set[str]) -> list[str]:
        return sorted([name for name in names if name.startswith((part, "xllamacpp", "torch", "numpy"))])

    assert of(await imported())  # else the rest would say nothing
    cli.user_config(f"[features]\n{feature} = false\n")
    assert of(await imported()) == []


async def test_chat_with_llm_off_loads_no_engine(cli: Cli) -> None:
    cli.user_config("[features]\nllm = false\n")
    done = await cli("run", "hello", PYTHONPROFILEIMPORTTIME="1")
    assert done.code == 2 and "[features] llm = false" in done.err and "xllamacpp" not in done.err
    done = await cli("models", "--json")
    assert '"local"' not in done.out and '"echo"' in done.out


def test_help_reads_the_file_and_parses_it_only_where_it_says_features(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("WINDLASS_HOME", str(tmp_path))
    (tmp_path / "windlass.toml").write_text("this is [not TOML")
    assert switched_off() == {}
    (tmp_path / "windlass.toml").write_text("[features]\nllm = false\n")
    assert switched_off() == {"llm": str(tmp_path / "windlass.toml")}


@pytest.mark.parametrize(
    "environ",
    [
        {"WINDLASS_HOME": "/w"}, {"WINDLASS_HOME": "~/w", "HOME": "/h"}, {"XDG_CONFIG_HOME": "/x", "HOME": "/h"},
        {"XDG_CONFIG_HOME": "x", "HOME": "/h"}, {"HOME": "/h"}, {},
    ],
    ids=lambda environ: "-".join(environ) or "nothing",
)  # fmt: skip
def test_the_file_of_help_is_the_file_of_the_settings(monkeypatch: pytest.MonkeyPatch, environ: dict[str, str]) -> None:
    for name in ("WINDLASS_HOME", "XDG_CONFIG_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    assert Path(user_file()) == config_home(os.environ) / "windlass.toml"
    assert sys.platform != "win32"
