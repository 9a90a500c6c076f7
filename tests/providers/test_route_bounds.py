"""What holds for all attempts together: budgets, the allowance of retries, long outages, probes, clients that leave."""

from __future__ import annotations

import asyncio

import pytest

from tests.providers.routing import budget, down, faked, limited, patient, scripted, three, walk
from windlass.core import clock
from windlass.core.errors import (
    AuthError,
    OverloadedError,
    ProviderConnectionError,
    ProviderTimeoutError,
    StreamInterrupted,
    WindlassError,
)
from windlass.core.request import Budget
from windlass.providers.route import Route
from windlass.providers.target import Target
from windlass.testing.scripted import ScriptedProvider

# -- bounds ------------------------------------------------------------------------------------------------------------


def test_one_budget_bounds_it_all_and_the_caller_s_is_used_up() -> None:
    async def main() -> None:
        given = budget(None, 4)
        route = three({"targets": ["a:x", "b:y", "c:z"], "attempts": 9})
        attempts = route.attempts(None, given)
        assert len(await walk(attempts, lambda _: down())) == 4
        assert (given.attempts, attempts.exhausted) == (0, True)
        # A second walk of the same request, a rescue for example, finds nothing left.
        again = route.attempts(None, given)
        assert await again.next() is None and "No attempt is left for r." in str(again.last_error)

    faked(main)


def test_a_deadline_ends_it() -> None:
    async def main() -> None:
        given = budget(3.0, 9)
        attempts = three().attempts(None, given)

        async def slowly(_: Target) -> None:
            await clock.sleep(2.0)

        times: list[float] = []
        while (target := await attempts.next()) is not None:
            await slowly(target)
            times.append(clock.monotonic())
            attempts.failed(down())
        assert times == [2.0, 4.0] and attempts.exhausted
        late = three().attempts(None, given)
        assert await late.next() is None
        assert isinstance(late.last_error, ProviderTimeoutError) and "time" in str(late.last_error)

    faked(main)


def test_an_unspent_budget_of_the_caller_leaves_room_to_ask_again() -> None:
    async def main() -> None:
        attempts = three({"targets": ["a:x"], "attempts": 1}).attempts(None, budget(None, 5))
        await walk(attempts, lambda _: down())
        assert attempts.count == 1 and not attempts.exhausted
        unbounded = three(["a:x"]).attempts()
        await walk(unbounded, lambda _: down())
        assert not unbounded.exhausted

    faked(main)


# -- the allowance -----------------------------------------------------------------------------------------------------


def test_r20_a_dead_provider_gets_its_first_calls_and_a_tenth_of_them_on_top() -> None:
    async def main() -> None:
        router = scripted({"r": {"targets": ["a:x"], "attempts": 5, "timeout": 60}}, a=["hi"])
        route, asked = router.route("r"), 0
        barrier = asyncio.Event()

        async def agent() -> None:
            nonlocal asked
            attempts = route.attempts()
            while await attempts.next() is not None:
                asked += 1
                await barrier.wait()  # all at once: no breaker helps
                attempts.failed(down(retry_after=0.0))

        agents = [asyncio.ensure_future(agent()) for _ in range(100)]
        await clock.sleep(0.0)
        barrier.set()
        await asyncio.gather(*agents)
        assert 100 <= asked <= 110

    faked(main)


def test_r20_fallbacks_cost_nothing_but_stay_bounded_by_the_number_of_targets() -> None:
    async def main() -> None:
        calls = {"a": 0, "b": 0}
        route = scripted({"r": {"targets": ["a:x", "b:y"], "attempts": 6}}, a=["hi"], b=["hi"]).route("r")
        patient(route)

        def outcome(target: Target) -> WindlassError:
            calls[target.provider.name] += 1
            return down()

        for _ in range(100):
            await walk(route.attempts(), outcome)
        assert calls["a"] >= 100 and calls["b"] >= 100
        assert sum(calls.values()) <= 200 + 10

    faked(main)


def test_r20_another_model_of_a_provider_that_is_down_is_a_retry_of_that_provider() -> None:
    async def main() -> None:
        route = scripted({"r": {"targets": ["a:x", "a:y", "b:z"], "attempts": 9}}, a=["hi"], b=["hi"]).route("r")
        patient(route)
        calls: dict[str, int] = {"a": 0, "b": 0}

        def outcome(target: Target) -> WindlassError | None:
            calls[target.provider.name] += 1
            return down() if target.provider.name == "a" else None

        for _ in range(100):
            await walk(route.attempts(), outcome)
        assert calls["b"] == 100, "everybody was served in the end"
        assert calls["a"] <= 110
        # A key that is refused is no storm: the other model of that provider may be allowed.
        route = scripted({"r": ["a:x", "a:y"]}, a=["hi"]).route("r")
        for _ in range(20):
            asked = await walk(route.attempts(), lambda target: AuthError("no") if target.model == "x" else None)
            route.targets[0].breaker._misfit_until = 0.0  # pyright: ignore[reportPrivateUsage]
            assert [name for name, _ in asked] == ["a:x", "a:y"]

    faked(main)


def test_a_retry_that_helped_is_given_back_and_one_that_was_not_made_too() -> None:
    async def main() -> None:
        router = scripted({"r": {"targets": ["a:x"], "attempts": 9}}, a=["hi"])
        route = router.route("r")
        patient(route)
        for _ in range(10):
            fails = [down(), None]
            assert len(await walk(route.attempts(), lambda _, fails=fails: fails.pop(0))) == 2
        attempts = route.attempts()
        before = router.allowance._tokens  # pyright: ignore[reportPrivateUsage]
        assert await attempts.next() is not None
        attempts.failed(down(retry_after=5.0))
        assert attempts.decide() and attempts.notices[-1].delay == 5.0
        assert router.allowance._tokens < before  # pyright: ignore[reportPrivateUsage]
        attempts.close()
        assert router.allowance._tokens == before + router.allowance.share  # pyright: ignore[reportPrivateUsage]

    faked(main)


# -- half an hour without a provider -----------------------------------------------------------------------------------


def test_r18_half_an_hour_of_503_is_a_few_probes_and_then_all_is_well() -> None:
    async def main() -> None:
        route = three(["a:x"])
        calls, refused, errors = 0, 0, set[str]()
        while clock.monotonic() < 1800.0:
            attempts = route.attempts(None, budget(30.0, 3))
            asked = await walk(attempts, lambda _: down())
            calls, refused = calls + len(asked), refused + (not asked)
            error = attempts.last_error
            errors.add(error.code)
            assert isinstance(error, OverloadedError) and error.status == 503
            if not asked:
                assert error.retry_after is not None and 1.0 <= error.retry_after <= 360.0
                assert "a:x for" in str(error) and "(overloaded)" in str(error)
            await clock.sleep(1.0)
        assert calls <= 5 + 12 and refused > 1500 and errors == {"overloaded"}
        await clock.sleep(360.0)
        assert len(await walk(route.attempts(), lambda _: None)) == 1
        assert route.targets[0].breaker.state == "closed"

    faked(main)


def test_a_wait_can_be_stopped_at_any_time() -> None:
    async def main() -> None:
        router = scripted({"r": ["a:x"]}, a=["hi"])
        attempts = router.route("r").attempts()
        before = router.allowance._tokens  # pyright: ignore[reportPrivateUsage]
        assert await attempts.next() is not None
        attempts.failed(limited(50.0))
        waiting = asyncio.ensure_future(attempts.next())
        await clock.sleep(10.0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert clock.monotonic() == 10.0
        assert router.allowance._tokens >= before  # pyright: ignore[reportPrivateUsage]

    faked(main)


# -- probes, clients that leave, credentials ---------------------------------------------------------------------------


def half_open(route: Route) -> Target:
    target = route.targets[0]
    for _ in range(5):
        leave = target.breaker.admit()
        assert leave is not None
        leave.failed("overloaded")
    return target


def test_a_probe_is_one_request_and_its_client_may_leave() -> None:
    async def main() -> None:
        route = three(["a:x", "b:y"])
        target = half_open(route)
        await clock.sleep(12.1)
        probing, other = route.attempts(), route.attempts()
        assert await probing.next() is target and target.breaker.blocked
        assert (await other.next()) is route.targets[1], "the others do not wait for it"
        probing.abandoned()
        with route.attempts() as third:
            assert await third.next() is target
            assert target.breaker.blocked
        assert target.breaker.available, "leaving the block frees the place too"
        fourth = route.attempts()
        assert await fourth.next() is target
        fourth.answered(0.5)
        assert target.breaker.state == "closed"

    faked(main)


def test_asking_for_the_next_one_without_a_word_gives_the_last_one_back() -> None:
    async def main() -> None:
        route = three(["a:x", "b:y"])
        target = half_open(route)
        await clock.sleep(12.1)
        attempts = route.attempts()
        assert await attempts.next() is target and await attempts.next() is route.targets[1]
        assert target.breaker.available and target.breaker.consecutive == 5

    faked(main)


def test_a_target_may_be_given_back_unasked() -> None:
    async def main() -> None:
        given = budget(None, 2)
        attempts = three().attempts(None, given)
        assert await attempts.next() is not None
        attempts.skip()
        assert (attempts.count, given.attempts, attempts.budget.attempts) == (0, 2, 2)
        asked = await walk(attempts, lambda _: down())
        assert [name for name, _ in asked] == ["b:y", "c:z"]

    faked(main)


def test_an_answer_that_breaks_off_may_be_reported_and_goes_on_elsewhere() -> None:
    async def main() -> None:
        route = three(["a:x", "b:y"])
        attempts = route.attempts()
        first = await attempts.next()
        attempts.answered(0.2)
        attempts.failed(StreamInterrupted("cut", partial="Hel"))
        assert first is not None and first.breaker.consecutive == 1
        assert await attempts.next() is route.targets[1]
        assert attempts.notices[-1].kind == "switched"

    faked(main)


@pytest.mark.parametrize(("works", "asked"), [(True, ["a:x", "a:x"]), (False, ["a:x", "b:y"]), (None, ["a:x", "b:y"])])
def test_r19_a_refused_credential_is_renewed_once(works: bool | None, asked: list[str]) -> None:
    class Renewable(ScriptedProvider):
        renewed = 0

        async def refresh(self) -> bool:
            self.renewed += 1
            if works is None:
                raise ProviderConnectionError("The login server is away.")
            return works

    async def main() -> None:
        provider = Renewable(["hi"], name="a")
        route = scripted({"r": ["a:x", "b:y"]}, a=provider, b=["hi"]).route("r")
        errors = [AuthError("expired")]
        walked = await walk(route.attempts(), lambda _: errors.pop() if errors else None)
        assert [name for name, _ in walked] == asked and provider.renewed == 1
        assert route.targets[0].breaker.healthy == bool(works)
        again = await walk(route.attempts(), lambda target: AuthError("no") if target.name == "a:x" else None)
        assert [name for name, _ in again].count("a:x") <= 2, "once for a request"

    faked(main)


@pytest.mark.parametrize(("seconds", "counts"), [(2.0, False), (40.0, True)])
def test_a_short_deadline_of_the_client_s_is_not_the_target_s_fault(seconds: float, counts: bool) -> None:
    """A client that gives nobody the time to answer must not open the breaker for all the others."""

    async def main() -> None:
        route = three(["a:x"])
        for _ in range(6):
            attempts = route.attempts(None, Budget(seconds, 3))
            while await attempts.next() is not None:
                await clock.sleep(seconds)
                attempts.failed(ProviderTimeoutError("too slow"))
            attempts.close()
        assert (route.targets[0].breaker.state != "closed") == counts

    faked(main)
