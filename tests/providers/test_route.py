"""Names and what stands behind them: what a client may ask for, who can serve what, who is drawn first."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.providers.routing import budget, down, scripted
from windlass.core import clock
from windlass.core.config import Config, Value
from windlass.core.errors import (
    ConfigError,
    ContextExceededError,
    MissingKeyError,
    ModelNotFoundError,
    UnsupportedInputError,
)
from windlass.core.messages import Blob, Message, Text, ToolResponse, Uri, user
from windlass.core.request import Request, ToolSpec
from windlass.local.embedded import embedded_model
from windlass.providers.local import LocalProvider
from windlass.providers.remote import RemoteProvider
from windlass.providers.route import Route, Router, TargetHealth, needs_of
from windlass.providers.target import Needs
from windlass.testing.clock import FakeClock

KEYS = {"GROQ_API_KEY": "k", "OPENROUTER_API_KEY": "k", "ANTHROPIC_API_KEY": "k"}


def router_of(routes: Any = None, *, allow_any: bool = True, any_path: bool = False, **stated: Any) -> Router:
    values = {key: Value(value, "test") for key, value in stated.items()}
    house = {"base_url": "http://127.0.0.1:9", "model": "big"}
    config = Config(values, environ=KEYS, routes=routes, providers={"house": house})
    return Router(config, allow_any=allow_any, any_path=any_path)


def names(route: Route) -> list[str]:
    return [target.name for target in route.targets]


# -- what a name means -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "stated", "target"),
    [
        ("fast", {}, "groq:x"),
        (" fast ", {}, "groq:x"),
        ("groq:y", {}, "groq:y"),
        (" Claude : z ", {}, "anthropic:z"),
        ("house", {}, "house:big"),
        ("HOUSE:auto", {}, "house:big"),
        ("openrouter:auto", {}, "openrouter:openrouter/auto"),
        ("echo", {}, "echo"),
        ("auto", {}, "local"),
        ("", {}, "local"),
        ("AUTO", {"provider": "house"}, "house:big"),
        ("auto", {"model": "fast"}, "groq:x"),
        ("gpt-4.1", {"provider": "house"}, "house:gpt-4.1"),
        ("qwen3:4b", {"provider": "house"}, "house:qwen3:4b"),
        ("meta/llama-3", {"provider": "Claude"}, "anthropic:meta/llama-3"),
        ("tiny-0", {}, "local:tiny-0"),
        ("default", {}, "local:default"),
    ],
)
def test_what_a_name_stands_for(name: str, stated: dict[str, Any], target: str) -> None:
    route = router_of({"fast": "groq:x"}, **stated).route(name)
    assert names(route) == [target] and route.targets[0].model == target.partition(":")[2]
    # Without the retries of its own: they would multiply with the route's.
    assert not hasattr(route.targets[0].provider, "allowance")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("fats", "Did you mean 'fast'"),
        ("grok:x", ""),
        ("groqq", "Did you mean 'groq'?"),
        ("gpt-4.1", ""),
        ("no\r\nset-cookie: a", ""),
        ("groq:a\nb", ""),
        ("x" * 10_000, ""),
        ("os.path:join", ""),
    ],
)
def test_unknown_names_raise_with_near_ones(name: str, hint: str) -> None:
    with pytest.raises(ModelNotFoundError) as caught:
        router_of({"fast": "groq:x"}).route(name)
    assert caught.value.hint.startswith(hint) and len(str(caught.value)) < 400 and "\n" not in str(caught.value)
    assert caught.value.status == 404


def test_a_bare_id_goes_to_a_provider_that_was_chosen_and_to_nobody_else() -> None:
    with pytest.raises(ModelNotFoundError):
        router_of().route("gpt-4.1")
    assert names(router_of(provider="groq").route("gpt-4.1")) == ["groq:gpt-4.1"]
    with pytest.raises(ModelNotFoundError):
        router_of(provider="groq", allow_any=False).route("gpt-4.1")


def test_without_allow_any_only_routes_and_the_default_model_are_taken() -> None:
    router = router_of({"fast": "groq:x"}, model="house:big", allow_any=False)
    assert [names(router.route(name)) for name in ("fast", "auto", "house:big")] == [
        ["groq:x"], ["house:big"], ["house:big"],
    ]  # fmt: skip
    for name in ("groq:x", "house", "echo", "fats"):
        with pytest.raises(ModelNotFoundError) as caught:
            router.route(name)
        assert "groq" not in caught.value.hint.replace("'fast'", "")


def test_a_known_provider_without_a_key_says_so() -> None:
    with pytest.raises(MissingKeyError, match="OPENAI_API_KEY"):
        router_of().route("openai:gpt-4.1")


def test_names_that_clients_make_up_are_forgotten() -> None:
    router = router_of({"fast": "house:a"}, provider="house")
    first, kept = router.route("model-0"), router.route("fast")
    for number in range(300):
        router.route(f"model-{number}")
    assert router.route("model-299") is router.route("model-299") and router.route("fast") is kept
    assert router.route("model-0") is not first and len(router.health()) <= 257


async def test_a_gateway_s_clients_choose_no_files(tmp_path: Path) -> None:
    path = str(embedded_model().path)
    guarded = router_of({"mine": f"local:{path}"})
    (asked,) = guarded.route(f"local:{path}").targets
    with pytest.raises(ModelNotFoundError):
        await anext(aiter(asked.provider.stream(Request(model=asked.model, messages=[user("hi")]))))
    (listed,) = guarded.route("mine").targets
    assert isinstance(listed.provider, LocalProvider) and listed.provider is not asked.provider
    assert listed.provider._serve(listed.model).id == Path(path).stem  # pyright: ignore[reportPrivateUsage]
    await guarded.close()
    (free,) = router_of(any_path=True).route(f"local:{path}").targets
    assert free.provider._serve(free.model).id == Path(path).stem  # pyright: ignore[reportPrivateUsage]


# -- what stands in the file -------------------------------------------------------------------------------------------


def test_a_target_that_means_nothing_names_file_and_key() -> None:
    for target in ("olama:x", "some-model"):
        with pytest.raises(ConfigError, match=r"^routes\.fast: .*") as caught:
            router_of({"fast": ["groq:x", target]}).check()
        assert repr(target.partition(":")[0])[1:-1] in str(caught.value)


def test_a_target_without_a_key_is_left_out_and_told() -> None:
    router = router_of({"fast": ["openai:a", "groq:x"], "none": ["openai:a"], "through": "none"})
    (problem,) = router.check()
    assert problem.startswith("openai:a: No API key for provider 'openai'.")
    assert names(router.route("fast")) == ["groq:x"]
    for name in ("none", "through"):
        with pytest.raises(MissingKeyError):
            router.route(name)
    told = {health.name: health for health in router.health()}
    assert told["groq:x"].healthy and not told["openai:a"].healthy
    assert told["openai:a"].last_error == "missing_key" and "OPENAI_API_KEY" in told["openai:a"].problem


def test_one_target_has_one_breaker_in_every_route() -> None:
    router = router_of({"a": ["groq:x", "house"], "b": ["house:big", "groq:y"]})
    first, second = router.route("a").targets[1], router.route("b").targets[0]
    assert first.name == second.name and first.breaker is second.breaker is router.route("house").targets[0].breaker
    assert first.provider is second.provider and isinstance(first.provider, RemoteProvider)


def test_a_route_within_a_route_takes_its_place() -> None:
    routes = {"all": ["house:a", "fast", "house:z"], "fast": ["groq:x", "house:a", "groq:y"]}
    route = router_of(routes).route("all")
    assert names(route) == ["house:a", "groq:x", "groq:y", "house:z"]
    assert [target.name for target in route.attempts().order] == names(route)


# -- who is drawn first ------------------------------------------------------------------------------------------------


def drawn(route: Route, times: int = 2000) -> Counter[str]:
    with clock.use(clock.Clock(7)):
        return Counter([route.attempts().order[0].name for _ in range(times)])


def test_weights_are_shares_and_the_rest_are_fallbacks_in_order() -> None:
    targets = [{"model": "house:a", "weight": 1}, {"model": "house:b", "weight": 3}, {"model": "house:c", "weight": 0}]
    route = router_of({"w": targets}).route("w")
    counts = drawn(route)
    assert 400 < counts["house:a"] < 600 and counts["house:c"] == 0
    with clock.use(clock.Clock(7)):
        orders = {tuple(target.name[-1] for target in route.attempts().order) for _ in range(50)}
    assert orders == {("a", "b", "c"), ("b", "a", "c")}


def test_a_route_within_a_weighted_one_keeps_its_own_way() -> None:
    inner = [{"model": "house:a", "weight": 1}, {"model": "house:b", "weight": 1}]
    mix = {"targets": ["ordered", "house:z"], "mode": "weighted"}
    routes = {"outer": ["inner", "house:z"], "inner": inner, "mix": mix, "ordered": ["house:c", "house:d"]}
    router = router_of(routes)
    counts = drawn(router.route("outer"))
    assert 900 < counts["house:a"] < 1100 and counts["house:z"] == 0
    counts = drawn(router.route("mix"))
    assert 900 < counts["house:c"] < 1100 and counts["house:d"] == 0
    order = [target.name[-1] for target in router.route("mix").attempts().order]
    assert order in (["c", "d", "z"], ["z", "c", "d"])


def test_who_is_not_healthy_is_not_drawn() -> None:
    route = router_of({"w": [{"model": "house:a", "weight": 99}, {"model": "house:b", "weight": 1}]}).route("w")
    route.targets[0].breaker.rest(60.0)
    assert drawn(route, 200) == {"house:b": 200}
    route.targets[1].breaker.rest(60.0)
    assert drawn(route, 200)["house:a"] > 150, "with nobody healthy the weights count again"


# -- who can serve what ------------------------------------------------------------------------------------------------


def capable(**tables: dict[str, Any]) -> Router:
    providers = {
        name: {"base_url": "http://127.0.0.1:9", "model": "m", "capabilities": table} for name, table in tables.items()
    }
    return Router(Config(environ={}, providers=providers, routes={"all": list(tables)}))


BLIND: dict[str, Any] = {"vision": False, "documents": False, "context": 100}
PLAIN: dict[str, Any] = {"tools": False, "context": 200}
LARGE: dict[str, Any] = {"context": 1000, "prefill": True}


@pytest.mark.parametrize(
    ("needs", "left"),
    [
        (Needs(), ["blind", "plain", "large"]),
        (Needs(tools=True), ["blind", "large"]),
        (Needs(vision=True), ["plain", "large"]),
        (Needs(documents=True, tools=True), ["large"]),
        (Needs(prefill=True), ["large"]),
        (Needs(tokens=120), ["blind", "plain", "large"]),  # an estimate: a quarter above is not yet too much
        (Needs(tokens=126), ["plain", "large"]),
        (Needs(tokens=900), ["large"]),
    ],
)
def test_targets_that_cannot_serve_are_left_out(needs: Needs, left: list[str]) -> None:
    route = capable(blind=BLIND, plain=PLAIN, large=LARGE).route("all")
    assert [target.provider.name for target in route.attempts(needs).order] == left


def test_nobody_left_says_who_lacks_what() -> None:
    route = capable(blind=BLIND, plain=PLAIN).route("all")
    with pytest.raises(UnsupportedInputError) as caught:
        route.attempts(Needs(tools=True, vision=True, prefill=True))
    assert str(caught.value) == (
        "No target of all can take this request: blind:m lacks vision, going on with a begun answer; "
        "plain:m lacks tools, going on with a begun answer."
    )
    with pytest.raises(ContextExceededError, match=r"plain:m lacks a context of 900 tokens \(it has 200\)") as longer:
        route.attempts(Needs(tokens=900, vision=True))
    assert (
        longer.value.model == "m"
        and longer.value.provider == "plain"
        and "blind:m lacks vision, a" in str(longer.value)
    )


def test_what_a_request_needs() -> None:
    image, pdf = Blob(b"x", "image/png", "image"), Uri("https://h/x.pdf", "application/pdf", "document")
    tool = (ToolSpec("t"),)
    shown = Message("tool", (ToolResponse("1", (Text("see"), image)),))
    assert needs_of(Request(model="", messages=[user("a" * 400)])) == Needs(tokens=104)
    for messages, vision, documents in (([user("x"), shown], True, False), ([Message("user", (pdf,))], False, True)):
        needs = needs_of(Request(model="", messages=messages, tools=tool))
        assert (needs.tools, needs.vision, needs.documents, needs.prefill) == (True, vision, documents, False)
    assert not needs_of(Request(model="", messages=[user("x")], tools=tool, tool_choice="none")).tools


def test_messages_are_read_only_where_the_targets_differ() -> None:
    request = Request(model="", messages=[Message("user", (Blob(b"x", "image/png", "image"),))], tools=(ToolSpec("t"),))
    assert capable(a=LARGE, b=LARGE).route("all").needs_of(request) == Needs(tools=True)
    assert capable(a=LARGE, b=BLIND).route("all").needs_of(request) == needs_of(request)


def test_the_local_model_is_known_to_see_nothing() -> None:
    able = router_of().route("local").targets[0].capabilities
    assert (able.vision, able.documents, able.tools) == (False, False, True)


# -- bounds and health -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "given", "seconds", "attempts"),
    [
        ({}, None, None, 3),
        ({"attempts": 2, "timeout": 9}, None, 9.0, 2),
        ({"attempts": 2, "timeout": 9}, (5.0, 7), 5.0, 2),
        ({"attempts": 8, "timeout": 9}, (50.0, 7), 9.0, 7),
        ({"attempts": 8}, (50.0, 7), 50.0, 7),
    ],
)
def test_the_tightest_bound_holds(settings: Any, given: Any, seconds: float | None, attempts: int) -> None:
    with clock.use(FakeClock()):
        route = scripted({"r": {"targets": ["a:x", "a:y"], **settings}}, a=["hi"]).route("r")
        made = route.attempts(None, None if given is None else budget(*given)).budget
        assert (made.remaining(), made.attempts) == (seconds, attempts)


def test_every_target_gets_its_turn_where_nobody_says_how_often() -> None:
    route = scripted({"r": [f"a:{number}" for number in range(5)]}, a=["hi"]).route("r")
    assert route.attempts().budget.attempts == 5


async def test_health_tells_how_every_target_does() -> None:
    with clock.use(FakeClock()) as fake:
        assert isinstance(fake, FakeClock)
        router = scripted({"r": ["a:x", "b:y"]}, a=["hi"], b=["hi"])
        attempts = router.route("r").attempts()
        assert await attempts.next() is not None
        attempts.failed(down(retry_after=8.0))
        assert await attempts.next() is not None
        attempts.answered(0.25)
        start = 1_700_000_000_000_000_000
        assert router.health() == [
            TargetHealth("a:x", "closed", False, 1, None, start + 8_000_000_000, "overloaded"),
            TargetHealth("b:y", "closed", True, 0, 0.25),
        ]
