"""The [routes] table, the other names of providers, and "auto"."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from windlass.core import registry
from windlass.core.config import Config, Value
from windlass.core.config_files import load_config
from windlass.core.errors import ConfigError
from windlass.core.routes import RouteSettings, RouteTarget, read_routes
from windlass.core.settings import ALIASES, OWN_AUTO, PROVIDERS
from windlass.providers.local import LocalProvider
from windlass.providers.routed import RouteProvider
from windlass.providers.vendors import VENDORS


def load(tmp_path: Path, text: str, **environ: str) -> Config:
    path = tmp_path / "user.toml"
    path.write_text(text)
    return load_config(environ=environ, files=((path, True),))


def config_of(routes: Any = None, **stated: str) -> Config:
    values = {key: Value(value, "test") for key, value in stated.items()}
    keys = {"ANTHROPIC_API_KEY": "k", "OPENROUTER_API_KEY": "k", "GROQ_API_KEY": "k", "HF_TOKEN": "k"}
    return Config(values, environ=keys, routes=routes)


def test_the_three_forms_of_a_route(tmp_path: Path) -> None:
    config = load(
        tmp_path,
        '[routes]\none = "groq:x"\nmore = ["ollama:a", { model = "openrouter:auto", weight = 3 }, "one"]\n'
        '[routes.all]\ntargets = ["ollama:qwen3", { model = "openrouter:auto", weight = 3 }]\nmode = "ordered"\n'
        "attempts = 4\nfirst_token_timeout = 10.0\nidle_timeout = 30\ntimeout = 120.0\ncontinue = false\n",
    )
    at = f"{tmp_path / 'user.toml'}: routes."
    assert config.routes == {
        "one": RouteSettings((RouteTarget("groq:x"),), origin=f"{at}one"),
        "more": RouteSettings(
            (RouteTarget("ollama:a"), RouteTarget("openrouter:auto", 3.0), RouteTarget("one")),
            "weighted", origin=f"{at}more",
        ),
        "all": RouteSettings(
            (RouteTarget("ollama:qwen3"), RouteTarget("openrouter:auto", 3.0)),
            "ordered", 4, 10.0, 30.0, 120.0, False, f"{at}all",
        ),
    }  # fmt: skip
    assert [route.plain for route in config.routes.values()] == [True, False, False]
    assert not read_routes({"x": {"targets": "groq:x", "timeout": 5}})["x"].plain


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("fast = 5", "routes.fast must be a model's name, or a list of them."),
        ("fast = []", "routes.fast must be a model's name, or a list of them."),
        ('fast = ["a", 5]', "routes.fast must be a model's name, or a list of them."),
        ('fast = ["a", ""]', "routes.fast must be a model's name, or a list of them. '' is none."),
        ('fast = "a\\nb"', "routes.fast must be a model's name"),
        ('" " = "a"', "routes: ' ' is no name for a route."),
        ('"a\\nb" = "a"', "is no name for a route."),
        ("fast = { }", "routes.fast needs targets."),
        ("fast = { targets = [] }", "routes.fast.targets must be a model's name, or a list of them."),
        ("fast = { targets = [{ weight = 1 }] }", "routes.fast.targets must be a model's name"),
        ('fast = { target = "x" }', "key in PATH: routes.fast: 'target'. Did you mean 'targets'?"),
        ('fast = { targets = "x", mode = "order" }', "mode in PATH: routes.fast: 'order'. Did you mean 'ordered'?"),
        ('fast = { targets = "x", mode = 1 }', "mode in PATH: routes.fast: '1'."),
        ('fast = { targets = "x", attempts = 0 }', "routes.fast.attempts is 0; it must be a positive whole number."),
        ('fast = { targets = "x", attempts = true }', "routes.fast.attempts is True;"),
        ('fast = { targets = "x", attempts = 1.5 }', "routes.fast.attempts is 1.5;"),
        ('fast = { targets = "x", timeout = 0 }', "routes.fast.timeout is 0; it must be a number of seconds above 0."),
        ('fast = { targets = "x", idle_timeout = inf }', "routes.fast.idle_timeout is inf;"),
        ('fast = { targets = "x", first_token_timeout = "1" }', "routes.fast.first_token_timeout is '1';"),
        ('fast = { targets = "x", continue = 1 }', "routes.fast.continue is 1; it must be true or false."),
        (
            'fast = [{ model = "x", wight = 1 }]',
            "key of a target in PATH: routes.fast: 'wight'. Did you mean 'weight'?",
        ),
        ('fast = [{ model = "x", weight = -1 }]', "the weight of 'x' is -1; it must be a number, not negative."),
        ('fast = [{ model = "x", weight = nan }]', "the weight of 'x' is nan;"),
        ('fast = [{ model = "x", weight = true }]', "the weight of 'x' is True;"),
        ('fast = [{ model = "x", weight = 0 }]', "routes.fast: every weight is 0. Give one of them a weight."),
        ('fast = "fast"', "routes.fast leads back to itself: fast -> fast."),
        ('a = "b"\nb = ["x", "c"]\nc = { targets = ["y", "a"] }', "leads back to itself: a -> b -> c -> a."),
    ],
)
def test_a_broken_route_names_file_and_key(tmp_path: Path, text: str, complaint: str) -> None:
    path = tmp_path / "user.toml"
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, f"[routes]\n{text}\n")
    assert complaint.replace("PATH", str(path)) in str(caught.value) and str(path) in str(caught.value)


_keys = st.sampled_from(["targets", "model", "weight", "mode", "attempts", "timeout", "continue", "?"])
_scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
_anything = st.recursive(
    _scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_keys, inner),
    max_leaves=8,
)


@given(_anything)
def test_any_value_is_a_route_or_an_error_that_names_it(value: Any) -> None:
    try:
        route = read_routes({"fast": value}, "f.toml")["fast"]
    except ConfigError as error:
        assert "f.toml: routes.fast" in str(error)
    else:
        assert route.targets and all(target.model and target.weight >= 0 for target in route.targets)
        assert route.mode == "ordered" or any(target.weight for target in route.targets)


def test_a_route_may_name_another_and_the_first_target_stands_for_it() -> None:
    config = config_of({"a": "b", "b": ["c", "groq:x"], "c": "Claude:auto"})
    assert [config.alias(name) for name in ("a", " b ", "c", "d")] == ["anthropic", "anthropic", "anthropic", "d"]
    assert [config.routed(name) for name in ("a", " b ", "c", "groq:x", "d")] == ["b", "b", None, None, None]


@pytest.mark.parametrize(("alias", "name"), ALIASES.items())
def test_other_names_of_providers_in_any_case(alias: str, name: str) -> None:
    if name not in PROVIDERS:  # its row may come with its own wire
        assert config_of().alias(f"{alias}:m") == f"{alias}:m"
        return
    config = config_of()
    for spelled in (alias, alias.upper(), f"  {alias.title()} "):
        assert config.alias(f"{spelled}:m") == f"{name}:m" and config.alias(spelled) == name
        assert config_of(provider=spelled).default_model == spelled and config.alias(f"{spelled}: Auto ") == name
    if name in VENDORS and VENDORS[name].dialect in ("openai-chat", "anthropic", "ollama"):
        provider, model, label = registry.model(f" {alias.upper()}:M ", config)
        assert (provider.name, model, label) == (name, "M", f"{name}:M")


def test_every_provider_s_own_name_in_any_case() -> None:
    for name in (*PROVIDERS, "local", "echo"):
        assert Config(environ={}).alias(f" {name.upper()}:x") == f"{name}:x"


def test_the_user_s_own_names_come_before_aliases() -> None:
    config = Config(environ={}, providers={"Claude": {"base_url": "http://h"}}, routes={"hf": "echo"})
    assert config.alias("Claude:x") == config.alias("cLAUDE:x") == "Claude:x"
    assert config.alias("hf") == "echo" and config.alias("hf:x") == "huggingface:x"


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("qwen:qwen3", "ollama:qwen3"),
        ("qwen:7b", "ollama:qwen:7b"),  # Ollama's model of that name, not a model called "7b"
        ("qwen:latest", "ollama:qwen:latest"),
        ("ollama_qwen:7b", "ollama:7b"),
        ("meta/llama:8b", "meta/llama:8b"),
        ("gpt-4.1", "gpt-4.1"),
        ("nobody:auto", "nobody:auto"),
        ("OpenRouter:AUTO", "openrouter:openrouter/auto"),
        ("openrouter:openrouter/auto", "openrouter:openrouter/auto"),
    ],
)
def test_what_a_name_means(name: str, meant: str) -> None:
    assert config_of().alias(name) == meant


def test_auto_is_the_default_model_and_a_provider_s_auto_its_own_default() -> None:
    for text in ("auto", "AUTO", " Auto "):
        assert config_of().alias(text) == "local" and config_of(provider="groq").alias(text) == "groq"
        assert config_of(model="groq:y").alias(text) == "groq:y"
        assert config_of(model="auto", provider="claude").alias(text) == "anthropic"
        assert config_of(provider="groq", model=text).default_model == "groq"
    provider, model, label = registry.model("Groq:Auto", config_of())
    assert (provider.name, model) == ("groq", VENDORS["groq"].default_model) and label == f"groq:{model}"
    own = Config(environ={"OPENROUTER_MODEL": "mine", "OPENROUTER_API_KEY": "k"})
    assert registry.model("openrouter", own)[1] == "mine"
    assert registry.model("openrouter:auto", own)[1] == OWN_AUTO["openrouter"] == VENDORS["openrouter"].default_model
    assert isinstance(registry.model("AUTO", config_of())[0], LocalProvider)
    assert config_of({"auto": "groq:z"}).alias("auto") == "groq:z"


def test_a_route_of_several_targets_is_a_provider_and_one_of_a_single_target_is_that_provider() -> None:
    slow = {"targets": "groq:x", "timeout": 9}
    routes = {"fast": ["groq:x", "claude:y"], "alias": "fast", "one": ["groq:x"], "slow": slow}
    config = config_of(routes, model="alias")
    provider, model, label = registry.model("alias", config)
    assert isinstance(provider, RouteProvider) and (model, label) == ("fast", "fast")
    assert registry.model("auto", config)[0] is registry.model(None, config)[0] is provider
    assert isinstance(registry.model("slow", config)[0], RouteProvider)
    plain = registry.model("one", config)
    assert plain[0] is registry.model("groq:z", config)[0] and plain[1:] == ("x", "groq:x")
    # The shared parts are shared: one connection pool and one breaker for one target.
    first, second = provider.route.targets[0], registry.model("slow", config)[0].route.targets[0]
    assert first.provider is plain[0].provider is second.provider and first.breaker is second.breaker


def test_a_key_given_as_an_argument_is_used_by_the_route() -> None:
    config = Config(environ={}, routes={"fast": ["groq:x", "groq:y"]})
    provider, _, _ = registry.model("fast", config, api_key="k-1")
    assert [target.provider.headers["authorization"] for target in provider.route.targets] == ["Bearer k-1"] * 2
    with pytest.raises(ConfigError, match="No API key for provider 'groq'"):
        registry.model("fast", config)
