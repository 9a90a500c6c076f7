"""Settings: who wins, where each value comes from, every variable, types, and the two files."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from windlass.core import models
from windlass.core.config import Config, Value, read_environment, typed
from windlass.core.config_files import config_home, data_home, default_files, load_config
from windlass.core.errors import ConfigError, MissingKeyError, UnknownNameError
from windlass.core.models import facts_of
from windlass.core.settings import PROVIDERS, SETTINGS, Setting

#: layer -> the value of max_turns it states, from the weakest to the strongest.
LAYERS = {"user": 2, "project": 3, "env": 4, "flag": 5}
TEXTS = {"str": "words", "int": "7", "float": "0.5", "path": "/some/where", "bool": "1"}


def load(tmp_path: Path, user: str = "", project: str = "", flags: Any = None, **environ: str) -> Config:
    files: list[tuple[Path, bool]] = []
    for name, text, trusted in (("project.toml", project, False), ("user.toml", user, True)):
        (tmp_path / name).write_text(text)
        files.append((tmp_path / name, trusted))
    return load_config(flags=flags, environ=environ, files=tuple(files))


@pytest.mark.parametrize("stated", [c for n in range(5) for c in itertools.combinations(LAYERS, n)], ids="+".join)
def test_flag_over_env_over_project_over_user_over_default(tmp_path: Path, stated: tuple[str, ...]) -> None:
    lines = {name: f"max_turns = {value}\n" if name in stated else "" for name, value in LAYERS.items()}
    config = load(
        tmp_path,
        lines["user"],
        lines["project"],
        {"max_turns": 5 if "flag" in stated else None},
        **({"WINDLASS_MAX_TURNS": "4"} if "env" in stated else {}),
    )
    origins = {
        "user": str(tmp_path / "user.toml"),
        "project": str(tmp_path / "project.toml"),
        "env": "env WINDLASS_MAX_TURNS",
        "flag": "flag --max_turns",
    }
    expected = Value(LAYERS[stated[-1]], origins[stated[-1]]) if stated else Value(50, "default")
    assert config.where("max_turns") == expected == config.all()["max_turns"]
    assert config.get("max_turns") == expected.value and config.notices == ()


@pytest.mark.parametrize("setting", SETTINGS.values(), ids=lambda setting: setting.key)
def test_every_variable_of_every_setting_works(setting: Setting) -> None:
    for name in setting.env:
        values, notices = read_environment({name: TEXTS[setting.kind]})
        assert set(values) == {setting.key} and values[setting.key].origin == f"env {name}" and notices == []
        kinds = {"str": str, "int": int, "float": float, "path": str, "bool": bool}
        assert type(values[setting.key].value) is kinds[setting.kind]
        assert read_environment({name: ""}) == ({}, [])  # empty is unset
    assert setting.env[0] == f"WINDLASS_{setting.key.upper()}" and setting.doc


@pytest.mark.parametrize("name", PROVIDERS)
def test_every_variable_of_every_vendor_works(name: str) -> None:
    vendor = PROVIDERS[name]
    for field in ("api_key", "base_url", "model"):
        variables: tuple[str, ...] = getattr(vendor, field)
        assert variables[0] == f"WINDLASS_{name.upper()}_{field.upper()}"
        for variable in variables:
            settings = Config(environ={variable: "given"}).provider_settings(name)
            assert getattr(settings, field) == "given"
        # The first of the list wins, and the contradiction is told with both names.
        for first, second in itertools.pairwise(variables):
            config = Config.from_environment({first: "one", second: "two"})
            assert getattr(config.provider_settings(name), field) == "one"
            (notice,) = config.notices
            assert notice.startswith(f"{first} and {second} are both set and differ")
            assert ("one" in notice) == (field != "api_key") and notice.endswith(f"{first} is used.")
            assert Config.from_environment({first: "same", second: "same"}).notices == ()
    for key, variables in vendor.extra.items():
        for variable in variables:
            assert Config(environ={variable: "x"}).provider_settings(name).extra == {key: "x"}


def test_no_variable_means_two_things() -> None:
    names = [name for row in SETTINGS.values() for name in row.env]
    for vendor in PROVIDERS.values():
        for group in (vendor.api_key, vendor.base_url, vendor.model, *vendor.extra.values()):
            names.extend(group)
    assert len(names) == len(set(names))


def test_an_address_with_a_password_is_not_told() -> None:
    notices = Config.from_environment({"OPENAI_BASE_URL": "http://u:pw@h", "ABI_OPENAI_BASE_URL": "http://h"}).notices
    assert len(notices) == 1 and "pw" not in notices[0]


@pytest.mark.parametrize(
    ("kind", "value", "result"),
    [
        ("int", "12", 12), ("int", 3, 3), ("int", "0", None), ("int", "-1", None), ("int", "1.5", None),
        ("int", 2.0, None), ("int", True, None), ("int", "x", None), ("int", [1], None),
        ("float", "0.5", 0.5), ("float", 2, 2.0), ("float", "0", 0.0), ("float", "-0.1", None), ("float", "nan", None),
        ("float", "inf", None), ("float", True, None), ("float", "", None),
        ("bool", "0", False), ("bool", "no", False), ("bool", "False", False), ("bool", "", False), ("bool", "2", True),
        ("bool", "off", True), ("bool", True, True),
        ("str", "a b", "a b"), ("str", 5, None), ("str", "a\nb", None), ("str", "a\x00", None), ("str", "\x7f", None),
        ("path", "/x", "/x"), ("path", Path("/x"), "/x"), ("path", "/x\r", None),
    ],
)  # fmt: skip
def test_types(kind: Any, value: Any, result: Any) -> None:
    setting = Setting("thing", kind, None, ("T",), "doc")
    if result is None:
        with pytest.raises(ConfigError, match=r"T is .*; thing must be "):
            typed(setting, value, "T")
    else:
        assert typed(setting, value, "T") == result and type(typed(setting, value, "T")) is type(result)


@given(st.text())
def test_any_text_is_taken_or_refused_by_name(text: str) -> None:
    for setting in SETTINGS.values():
        try:
            value = typed(setting, text, "env X")
        except ConfigError as error:
            assert str(error).startswith("env X is ")
        else:
            assert setting.kind != "str" or (value == text and not any(map(_control, text)))


def _control(char: str) -> bool:
    return ord(char) < 32 or ord(char) == 127


def test_a_home_is_a_path_of_the_user_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert read_environment({"WINDLASS_HOME": "~/w"})[0]["home"].value == "/home/me/w"


def test_unknown_keys_suggest_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match=r"user\.toml: 'max_turn'\. Did you mean 'max_turns'\?"):
        load(tmp_path, "max_turn = 1\n")
    with pytest.raises(UnknownNameError, match=r"'provders'\. Did you mean 'providers'\?"):
        load(tmp_path, "[provders.x]\n")
    with pytest.raises(ConfigError, match=r"provider is \{'x': 1\}; provider must be text"):
        load(tmp_path, "[provider]\nx = 1\n")
    with pytest.raises(UnknownNameError, match="Did you mean 'thinking'"):
        Config().get("thinkin")


def test_s19_s87_a_project_s_file_may_choose_and_limit_only(tmp_path: Path) -> None:
    config = load(
        tmp_path,
        user='[providers.house]\nbase_url = "http://mine"\n[routes]\nfast = "house:m"\n',
        project=(
            'model = "fast"\nmax_turns = 3\ntools = "files"\nstore = "sqlite:x"\nhome = "x"\n'
            '[providers.house]\nbase_url = "http://evil"\n[routes]\nfast = "evil:m"\n[models.m]\ncontext = 1\n'
        ),
    )
    assert (config.get("model"), config.get("max_turns"), config.get("tools")) == ("fast", 3, "files")
    assert config.get("store") is None and config.get("home") is None
    assert config.provider_settings("house").base_url == "http://mine" and config.alias("fast") == "house:m"
    assert len(config.notices) == 5 and all(str(tmp_path / "project.toml") in notice for notice in config.notices)
    assert facts_of("house", "m").context is None


@pytest.mark.parametrize(
    ("line", "ignored"),
    [
        ('tools = "pkg.mod:attr"', True),
        ('tools = "files,evil.mod:x"', True),
        ('tools = "files,utc"', False),
        ('model = "local:/tmp/evil.gguf"', True),
        ('model = "local:tiny-0"', False),
        ('model = "gpt-4.1-mini"', False),
        ('model = "openai:gpt-4.1"', False),
    ],
)
def test_s85_a_project_s_file_loads_no_code_and_no_file(tmp_path: Path, line: str, ignored: bool) -> None:
    config = load(tmp_path, project=line + "\n")
    assert bool(config.notices) == ignored == (config.where(line.split(" ")[0]).origin == "default")
    trusted = load(tmp_path, user=line + "\n")
    assert trusted.notices == () and trusted.where(line.split(" ")[0]).origin != "default"


def test_the_user_s_tables(tmp_path: Path) -> None:
    config = load(
        tmp_path,
        '[providers.my-house]\nbase_url = "http://h"\napi_key = "env:KEY"\nmodel = "small"\ntimeout = 5\n'
        '[providers.openai]\nbase_url = "http://proxy"\napi_key = "plain"\n'
        '[routes]\nfast = ["my-house:small", "openai:x"]\none = "openai:y"\n[models.small]\ncontext = 77\n',
        KEY="k",
        OPENAI_BASE_URL="http://env",
    )
    house, openai = config.provider_settings("my-house"), config.provider_settings("openai")
    assert (house.base_url, house.api_key, house.model, house.table["timeout"]) == ("http://h", "k", "small", 5)
    assert house.key_names == ("KEY",)
    assert (openai.base_url, openai.api_key) == ("http://env", "plain")
    assert [config.alias(name) for name in ("fast", "one", "other")] == ["my-house:small", "openai:y", "other"]
    assert facts_of("my-house", "small").context == 77
    vars(models)["_overrides"].pop("small")
    facts_of.cache_clear()
    assert config.user_providers.keys() == {"my-house", "openai"}


def test_a_variable_named_after_a_provider_of_one_s_own(tmp_path: Path) -> None:
    config = load(tmp_path, '[providers.my-house]\nbase_url = "http://h"\n', WINDLASS_MY_HOUSE_API_KEY="k")
    assert config.provider_settings("my-house").require_key() == "k"


def test_a_missing_key_names_its_variable_and_its_place() -> None:
    with pytest.raises(
        MissingKeyError, match=r"provider 'openai'\. Set OPENAI_API_KEY, or api_key in \[providers\.openai"
    ):
        Config(environ={}).provider_settings("openai").require_key()
    with pytest.raises(MissingKeyError, match="Set WINDLASS_HOUSE_API_KEY"):
        Config(environ={}, providers={"house": {}}).provider_settings("house").require_key()


@pytest.mark.parametrize(
    ("model", "provider", "result"),
    [
        (None, None, "local"),
        (None, "groq", "groq"),
        ("openai:x", None, "openai:x"),
        ("llama", "groq", "groq:llama"),
        ("meta/llama:8b", "ollama", "ollama:meta/llama:8b"),
        ("openai:x", "groq", "openai:x"),
        ("fast", "groq", "fast"),
        ("house:x", "groq", "house:x"),
        ("echo", "groq", "echo"),
        ("llama", None, "llama"),
    ],
)
def test_the_default_model(model: str | None, provider: str | None, result: str) -> None:
    stated = {"model": model, "provider": provider}
    values = {key: Value(value, "test") for key, value in stated.items() if value is not None}
    config = Config(values, environ={}, providers={"house": {}}, routes={"fast": "x:y"})
    assert config.default_model == result


def test_a_provider_is_made_once() -> None:
    config = Config(environ={})
    assert config.provider("x", object) is config.provider("x", object)
    assert config.provider("y", object) is not config.provider("x", object)


# -- folders -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environ", "config", "data"),
    [
        ({"HOME": "/h"}, "/h/.config/windlass", "/h/.local/state/windlass"),
        ({"HOME": "/h", "XDG_CONFIG_HOME": "/c", "XDG_STATE_HOME": "/s"}, "/c/windlass", "/s/windlass"),
        (
            {"HOME": "/h", "XDG_CONFIG_HOME": "c", "XDG_STATE_HOME": ""},
            "/h/.config/windlass",
            "/h/.local/state/windlass",
        ),
        # A path of Windows is relative here, and ignored like one.
        ({"HOME": "/h", "XDG_STATE_HOME": "C:\\x"}, "/h/.config/windlass", "/h/.local/state/windlass"),
        ({"HOME": "/h", "WINDLASS_HOME": "/w", "XDG_CONFIG_HOME": "/c"}, "/w", "/w"),
    ],
)
def test_xdg_folders(environ: dict[str, str], config: str, data: str) -> None:
    assert (str(config_home(environ)), str(data_home(environ))) == (config, data)


def test_files_are_the_project_s_untrusted_and_the_user_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert default_files({"WINDLASS_HOME": "/w"}) == (
        (tmp_path / "windlass.toml", False),
        (Path("/w/windlass.toml"), True),
    )
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(ConfigError, match="The current folder is gone"):
        default_files({})


def test_a_user_without_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", no_home)
    with pytest.raises(ConfigError, match="Set WINDLASS_HOME"):
        data_home({})


def test_a_file_that_is_too_large_or_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"user\.toml is larger than 1 MiB"):
        load(tmp_path, "# " + "x" * (1 << 20))
    folder = tmp_path / "folder.toml"
    folder.mkdir()
    # A folder of that name is no file: there is none.
    assert load_config(environ={}, files=((folder, True),)).get("max_turns") == 50
