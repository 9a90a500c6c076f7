"""Who is asked next and when, on a fake clock: no socket, no real waiting."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.providers.routing import budget, down, faked, limited, patient, scripted, three, walk
from windlass.core import clock
from windlass.core.config import Config
from windlass.core.errors import (
    AuthError,
    BadRequestError,
    BodyTooLarge,
    ConnectError,
    ContextExceededError,
    MissingKeyError,
    ModelNotFoundError,
    ProviderConnectionError,
    ProviderError,
    ProviderTimeoutError,
    RateLimitError,
    StreamInterrupted,
    UnsupportedInputError,
    WindlassError,
    WireError,
)
from windlass.core.request import Budget
from windlass.providers.route import Route, Router
from windlass.testing.clock import FakeClock

# -- one target after the other ----------------------------------------------------------------------------------------


def test_a_failure_goes_to_the_next_target_at_once_and_then_round_again() -> None:
    async def main() -> None:
        route = three({"targets": ["a:x", "b:y", "c:z"], "attempts": 5})
        attempts = route.attempts()
        asked = await walk(attempts, lambda _: down())
        assert [name for name, _ in asked[:3]] == ["a:x", "b:y", "c:z"] and asked[3][0] != asked[4][0]
        assert [time for _, time in asked[:3]] == [0.0, 0.0, 0.0], "nobody waits while there is somebody untried"
        assert 0.0 < asked[3][1] <= asked[4][1] <= 0.5, "full jitter over half a second"
        assert attempts.count == 5 and not attempts.exhausted
        switched, retried = attempts.notices[:2], attempts.notices[2:]
        assert [(n.kind, n.provider, n.model, n.attempt, n.delay) for n in switched] == [
            ("switched", "b", "y", 2, None), ("switched", "c", "z", 3, None),
        ]  # fmt: skip
        assert [(n.kind, n.attempt) for n in retried] == [("retry", 4), ("retry", 5)]
        assert retried[0].delay == asked[3][1], "a wait is told before it begins"
        assert switched[0].message == "It is down. b:y is asked instead."

    faked(main)


def test_waits_double_with_full_jitter_and_are_capped() -> None:
    async def main() -> None:
        spans: list[list[float]] = [[] for _ in range(8)]
        for _ in range(12):
            route = scripted({"r": {"targets": "a:x", "attempts": 9, "timeout": 900}}, a=["hi"]).route("r")
            patient(route)
            attempts = route.attempts()
            attempts._allowance._tokens = 99.0  # pyright: ignore[reportPrivateUsage]
            asked = await walk(attempts, lambda _: down())
            for span, (_, before), (_, after) in zip(spans, asked, asked[1:], strict=False):
                span.append(after - before)
        tops = [0.5, 1, 2, 4, 8, 16, 32, 60]
        assert all(len(span) == 12 and max(span) <= top + 1e-9 for span, top in zip(spans, tops, strict=True))
        assert all(max(span) > top / 2 and min(span) < top / 2 for span, top in zip(spans, tops, strict=True))

    faked(main)


@pytest.mark.parametrize(
    ("error", "again", "counts"),
    [
        (down(), True, True),
        (limited(), True, True),
        (limited(0.0), True, False),
        (down(0.0), True, True),
        (ProviderTimeoutError("x"), True, True),
        (ProviderConnectionError("x"), True, True),
        (StreamInterrupted("x"), True, True),
        (ConnectError("x"), True, True),
        (BodyTooLarge("x"), False, True),
        (WireError("x"), False, True),
        (ProviderError("x"), False, True),
        (AuthError("x"), False, False),
        (ModelNotFoundError("x"), False, False),
        (MissingKeyError("x"), False, False),
    ],
)
def test_r19_which_errors_are_asked_again_and_which_count_against_the_target(
    error: WindlassError, again: bool, counts: bool
) -> None:
    async def main() -> None:
        route = three({"targets": ["a:x", "b:y"], "attempts": 4})
        first = route.targets[0]
        attempts = route.attempts()
        asked = await walk(attempts, lambda target: error if target is first else down())
        assert [name for name, _ in asked[:2]] == ["a:x", "b:y"], "somebody else may be able to"
        assert ("a:x" in [name for name, _ in asked[2:]]) == again
        assert (first.breaker.consecutive > 0) == counts and first.breaker.last_error == error.code
        assert attempts.last_error is error
        assert all(note.startswith("b:y: It is down.") for note in error.__notes__) and error.__notes__

    faked(main)


def test_a_target_whose_key_is_refused_is_asked_last_from_then_on() -> None:
    async def main() -> None:
        route = three()
        await walk(route.attempts(), lambda target: AuthError("no") if target.name == "a:x" else None)
        assert [name for name, _ in await walk(route.attempts(), lambda _: None)] == ["b:y"]
        order = await walk(route.attempts(), lambda _: down())
        assert [name for name, _ in order][:3] == ["b:y", "c:z", "a:x"]
        await clock.sleep(300.0)
        assert [name for name, _ in await walk(route.attempts(), lambda _: None)] == ["a:x"]

    faked(main)


def test_a_switch_that_happens_before_anybody_was_asked_is_told_with_its_reason() -> None:
    async def main() -> None:
        route = three()
        route.targets[0].breaker.rest(20.0)
        attempts = route.attempts()
        assert await attempts.next() is route.targets[1]
        (notice,) = attempts.notices
        assert (notice.kind, notice.provider, notice.attempt) == ("switched", "b", 1)
        assert notice.message == "a:x rests for 20 s (rate_limited). b:y is asked instead."
        attempts.close()

    faked(main)


# -- errors that lie in the request ------------------------------------------------------------------------------------


def tables(**tables: dict[str, Any]) -> Route:
    providers = {
        name: {"base_url": "http://127.0.0.1:9", "model": name, "capabilities": table} for name, table in tables.items()
    }
    return Router(Config(environ={}, providers=providers, routes={"r": list(tables)})).route("r")


@pytest.mark.parametrize("error", [BadRequestError("no"), UnsupportedInputError("no")])
def test_a_refused_request_goes_only_where_other_things_can_be_taken(error: ProviderError) -> None:
    async def main() -> None:
        route = tables(a={}, same={}, blind={"vision": False}, twin={"vision": False})
        attempts = route.attempts()
        asked = await walk(attempts, lambda _: error)
        assert [name.partition(":")[0] for name, _ in asked] == ["a", "blind"]
        assert all(target.breaker.consecutive == 0 and target.breaker.healthy for target in route.targets)
        assert attempts.last_error is error

    faked(main)


def test_too_long_a_prompt_goes_only_to_larger_windows() -> None:
    async def main() -> None:
        known = {name: {"context": size} for name, size in (("a", 100), ("b", 100), ("c", 50), ("d", 200))}
        route = tables(**known, e={})
        asked = await walk(route.attempts(), lambda _: ContextExceededError("no"))
        assert [name.partition(":")[0] for name, _ in asked] == ["a", "d", "e"], "e's window is not known"

    async def unknown() -> None:
        route = scripted({"r": ["a:same", "b:same", "b:other"]}, a=["x"], b=["x"]).route("r")
        asked = await walk(route.attempts(), lambda _: ContextExceededError("no"))
        assert [name for name, _ in asked] == ["a:same", "b:other"], "the same model has the same window"

    faked(main)
    faked(unknown)


# -- waits that servers ask for ----------------------------------------------------------------------------------------


def test_r17_each_target_s_wait_is_kept_to_and_the_soonest_comes_first() -> None:
    async def main() -> None:
        waits = {"a:x": 9.0, "b:y": 4.0, "c:z": 7.0}
        route = three({"targets": list(waits), "attempts": 5})
        asked = await walk(route.attempts(), lambda target: limited(waits[target.name]))
        assert asked == [("a:x", 0.0), ("b:y", 0.0), ("c:z", 0.0), ("b:y", 4.0), ("c:z", 7.0)]

    faked(main)


def test_r17_nobody_asks_again_before_it_not_even_another_request() -> None:
    async def main() -> None:
        route = three(["a:x"])
        first = route.attempts()
        assert await first.next() is not None
        first.failed(limited(5.0))
        first.close()
        second = route.attempts()
        (asked,) = await walk(second, lambda _: None)
        assert asked == ("a:x", 5.0)
        (notice,) = second.notices
        assert (notice.kind, notice.delay, notice.attempt) == ("retry", 5.0, 1)

    faked(main)


@pytest.mark.parametrize(
    ("seconds", "retry_after", "waited"),
    [
        (None, 60.0, True),
        (None, 60.1, False),
        (None, 1e9, False),
        (30.0, 29.9, True),
        (30.0, 30.0, False),
        (30.0, 45.0, False),
    ],
)
def test_r17_a_wait_is_taken_up_to_the_cap_and_inside_the_deadline(
    seconds: float | None, retry_after: float, waited: bool
) -> None:
    async def main() -> None:
        route = three(["a:x"])
        attempts = route.attempts(None, budget(seconds, 2))
        asked = await walk(attempts, lambda _: limited(retry_after))
        assert asked == [("a:x", 0.0), ("a:x", retry_after)][: 1 + waited]
        error = attempts.last_error
        assert isinstance(error, RateLimitError) and error.retry_after == retry_after
        assert (error.attempt, error.max_attempts) == (1 + waited, 2)
        assert attempts.exhausted == waited, "who did not wait may ask again: its own attempts are not spent"

    faked(main)


def test_a_wait_is_decided_anew_when_it_is_over() -> None:
    async def main() -> None:
        route = three(["a:x", "b:y"])
        attempts = route.attempts()
        for _ in range(2):
            target = await attempts.next()
            assert target is not None
            attempts.failed(limited(5.0 if target.name == "a:x" else 6.0))
        waiting = asyncio.ensure_future(attempts.next())
        await clock.sleep(4.0)
        route.targets[0].breaker.rest(20.0)  # another request was told so
        target = await waiting
        assert target is route.targets[1] and clock.monotonic() == 6.0

    faked(main)


# -- any order of things -----------------------------------------------------------------------------------------------

_OUTCOMES = st.sampled_from(["answer", "down", "slow", "limited", "limited-long", "auth", "bad", "size", "cut", "wire"])


@settings(max_examples=80, deadline=None)
@given(
    script=st.lists(_OUTCOMES, max_size=12),
    targets=st.integers(1, 4),
    attempts_left=st.integers(1, 8),
    seconds=st.none() | st.floats(0.5, 90.0),
)
def test_any_script_ends_within_its_bounds(
    script: list[str], targets: int, attempts_left: int, seconds: float | None
) -> None:
    async def main() -> None:
        names = ["a", "b", "c", "d"][:targets]
        route = scripted({"r": [f"{name}:x" for name in names]}, a=["hi"], b=["hi"], c=["hi"], d=["hi"]).route("r")
        given, plan = Budget(seconds, attempts_left), list(script)
        attempts, not_before = route.attempts(None, given), dict.fromkeys(names, 0.0)
        calls: list[str] = []
        answered = False
        while (target := await attempts.next()) is not None:
            name, now = target.provider.name, clock.monotonic()
            assert now >= not_before[name] - 1e-9, "asked before its Retry-After"
            assert seconds is None or now < seconds
            calls.append(name)
            what = plan.pop(0) if plan else "down"
            if what == "answer":
                attempts.answered(0.1)
                answered = True
                break
            wait = {"limited": 3.0, "limited-long": 1e6}.get(what)
            if wait is not None:
                not_before[name] = now + wait
            if what == "slow":
                await clock.sleep(1.0)
            attempts.failed(
                {
                    "auth": AuthError("x"), "bad": BadRequestError("x"), "size": ContextExceededError("x"),
                    "cut": StreamInterrupted("x"), "wire": WireError("x"), "slow": ProviderTimeoutError("x"),
                }.get(what) or (limited(wait) if wait is not None else down())
            )  # fmt: skip
        assert 1 <= len(calls) == attempts.count == attempts_left - given.attempts
        fresh = [name for at, name in enumerate(calls) if name not in calls[:at]]
        assert calls[: len(fresh)] == fresh, "everybody once before anybody twice"
        assert fresh == names[: len(fresh)], "in their order"
        assert answered or isinstance(attempts.last_error, ProviderError)
        attempts.close()
        assert all(not target.breaker.blocked or target.breaker.state == "open" for target in route.targets)

    with clock.use(FakeClock()):
        faked(main)
