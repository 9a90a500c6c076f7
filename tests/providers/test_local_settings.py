"""`[providers.local]`: what it says, what it refuses, and that only the user's own file may say it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from windlass.core.config import Config
from windlass.core.config_files import load_config
from windlass.core.errors import ConfigError, UnknownNameError
from windlass.local.engine import Adapter, EngineOptions
from windlass.providers.local_settings import LocalSettings, ModelSettings, read_local


def read(table: dict[str, Any], **environ: str) -> LocalSettings:
    return read_local(Config(environ=environ, providers={"local": table}))


def test_models_inherit_what_is_common_and_keep_what_is_their_own() -> None:
    got = read(
        {
            "model": "~/mine.gguf",
            "adapters": ["/a.gguf", {"path": "/b.gguf", "scale": 0.5}],
            "slots": 4,
            "context": 8192,
            "threads": 2,
            "gpu_layers": 0,
            "memory_map": False,
            "idle_seconds": 60,
            "queue": 7,
            "ignore_memory": True,
            "models": {
                "qwen": "/models/qwen.gguf",
                "big": {"path": "/models/big.gguf", "slots": 1, "backend": "server"},
                "far": {"base_url": "http://127.0.0.1:8080/v1/", "api_key": "env:FAR"},
            },
        },
        FAR="secret",
    )
    options = EngineOptions(context=8192, slots=4, threads=2, gpu_layers=0, memory_map=False, log=True)
    qwen = ModelSettings(path="/models/qwen.gguf", options=options, queue=7, idle_seconds=60, ignore_memory=True)
    assert got.models["qwen"] == qwen
    assert (got.models["big"].options.slots, got.models["big"].backend, got.models["big"].queue) == (1, "server", 7)
    far = got.models["far"]
    assert (far.base_url, far.api_key, far.backend, far.path) == ("http://127.0.0.1:8080", "secret", "server", "")
    assert got.default.path == str(Path("~/mine.gguf").expanduser())
    # An adapter is made for one model.
    assert got.default.options.adapters == (Adapter("/a.gguf"), Adapter("/b.gguf", 0.5))
    assert (got.slots, got.default_name) == (4, "")


def test_the_default_may_be_one_of_the_names() -> None:
    got = read({"model": "qwen", "models": {"qwen": "/q.gguf"}})
    assert got.default == got.models["qwen"] and got.default_name == "qwen"
    assert read({}) == LocalSettings()


@pytest.mark.parametrize(
    ("table", "told"),
    [
        ({"models": {"tiny": "/x.gguf"}}, "'tiny' is no name"),
        ({"models": {"a\nb": "/x.gguf"}}, "is no name"),
        ({"models": ["/x.gguf"]}, "models must be a table"),
        ({"models": {"a": 3}}, "models.a must be the path"),
        ({"models": {"a": {}}}, "neither path nor base_url"),
        ({"models": {"a": {"path": "/x", "base_url": "http://h"}}}, "has its model already"),
        ({"models": {"a": {"base_url": "http://h", "backend": "native"}}}, "has its model already"),
        ({"models": {"a": {"base_url": "file:///x"}}}, "begins with http"),
        ({"models": {"a": {"path": "/x", "api_key": "k"}}}, "key of a base_url"),
        ({"slots": 0}, "slots is 0; it must be a whole number, at least 1"),
        ({"context": True}, "context is True"),
        ({"idle_seconds": -1}, "idle_seconds is -1"),
        ({"backend": "torch"}, "native or server"),
        ({"adapters": ["/a.gguf"]}, "needs a `model`"),
        ({"model": "/m.gguf", "adapters": [{"path": "/a", "weight": 2}]}, "table of path and scale"),
        ({"model": "/m.gguf", "adapters": [{"path": "/a", "scale": "much"}]}, "scale of an adapter"),
        ({"model": "q", "adapters": ["/a"], "models": {"q": "/q.gguf"}}, "belongs to models.q"),
    ],
)
def test_what_is_wrong_is_told_with_its_place(table: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told) as caught:
        read({"models": {}, **table})
    assert "[providers.local]" in str(caught.value)


def test_unknown_keys_are_named(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match=r"models\.a: 'contxt'.*Did you mean 'context'"):
        read({"models": {"a": {"path": "/x", "contxt": 1}}})
    path = tmp_path / "windlass.toml"
    for text, told in (
        ("[providers.local]\nslot = 4\n", r"\[providers.local\]: 'slot'.*Did you mean 'slots'"),
        ('[providers.local]\nslots = "4"\n', "slots must be a whole number"),
        ('[providers.local]\nmemory_map = "no"\n', "memory_map must be true or false"),
        ("[providers.local]\nslots = true\n", "slots must be a whole number"),
        ('[providers.local]\ndialect = "ollama"\n', "'dialect'"),
        ("[providers.groq]\nslots = 4\n", r"\[providers.groq\]: 'slots'"),
    ):
        path.write_text(text)
        with pytest.raises(ConfigError, match=told):
            load_config(environ={}, files=((path, True),))


def test_a_project_s_file_names_no_models_adapters_or_backends(tmp_path: Path) -> None:
    project, own = tmp_path / "p.toml", tmp_path / "u.toml"
    project.write_text(
        'model = "local:evil.gguf"\n[providers.local]\nmodel = "evil.gguf"\nadapters = ["evil.gguf"]\n'
        'base_url = "http://evil"\n[features]\nllm = false\n'
    )
    own.write_text('[providers.local]\nmodels = { qwen = "/q.gguf" }\n')
    config = load_config(environ={}, files=((project, False), (own, True)))
    got = read_local(config)
    assert list(got.models) == ["qwen"] and got.default == ModelSettings() and config.off == {}
    told = " ".join(config.notices)
    assert "[providers] is ignored" in told and "[features] is ignored" in told and "model is ignored" in told
    # It may choose among what the user has.
    project.write_text('model = "local:qwen"\n')
    assert load_config(environ={}, files=((project, False), (own, True))).default_model == "local:qwen"
