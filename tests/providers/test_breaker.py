"""The circuit breaker: its rules one by one on a fake clock, then as a state machine against a simpler model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from windlass.core import clock
from windlass.providers.breaker import Breaker, BreakerLimits, Pass
from windlass.testing.clock import FakeClock


@pytest.fixture
def fake() -> Iterator[FakeClock]:
    with clock.use(FakeClock()) as made:
        assert isinstance(made, FakeClock)
        yield made


def admitted(breaker: Breaker) -> Pass:
    leave = breaker.admit()
    assert leave is not None
    return leave


def fail(breaker: Breaker, times: int = 1, code: str = "overloaded") -> None:
    for _ in range(times):
        admitted(breaker).failed(code)


def opened(fake: FakeClock) -> Breaker:
    breaker = Breaker()
    fail(breaker, 5)
    assert breaker.state == "open" and breaker.admit() is None and breaker.last_error == "overloaded"
    return breaker


def wake(breaker: Breaker, fake: FakeClock) -> float:
    """Go on to the end of the cool-down; returns how long it was."""
    seconds = breaker.ready_in
    fake.elapsed += seconds - 0.001
    assert breaker.state == "open" and breaker.blocked and breaker.admit() is None
    fake.elapsed += 0.002
    assert breaker.state == "half_open" and breaker.available
    return seconds


def test_it_opens_after_five_failures_in_a_row_and_not_after_four(fake: FakeClock) -> None:
    breaker = Breaker()
    for _ in range(3):
        fail(breaker, 4)
        admitted(breaker).answered(0.5)
        assert (breaker.state, breaker.consecutive) == ("closed", 0)
    fail(breaker, 5)
    assert breaker.state == "open" and not breaker.healthy


@pytest.mark.parametrize(
    ("calls", "state"),
    [("F." * 9 + "FF", "open"), ("F." * 10, "closed"), (".F" * 10, "closed"), ("F." * 9 + "F", "closed")],
)
def test_it_opens_when_more_than_half_of_twenty_fail(fake: FakeClock, calls: str, state: str) -> None:
    breaker = Breaker()
    for call in calls:
        assert breaker.state == "closed" and breaker.consecutive < 5
        if call == "F":
            fail(breaker)
        else:
            admitted(breaker).answered()
    assert breaker.state == state


def test_failures_older_than_the_window_do_not_count(fake: FakeClock) -> None:
    breaker = Breaker()
    for _ in range(3):
        for _ in range(4):
            fail(breaker, 2)
            admitted(breaker).answered()
        fake.elapsed += 31
    assert breaker.state == "closed", "36 calls and 24 failures, but never more than 12 calls in a window"


def test_the_cool_down_doubles_up_to_five_minutes_with_jitter_and_starts_anew(fake: FakeClock) -> None:
    breaker = opened(fake)
    for nominal in (10, 20, 40, 80, 160, 300, 300):
        assert 0.8 * nominal <= wake(breaker, fake) <= 1.2 * nominal
        admitted(breaker).failed("overloaded")
        assert breaker.state == "open"
    wake(breaker, fake)
    admitted(breaker).answered(1.0)
    assert breaker.state == "closed" and breaker.healthy
    fail(breaker, 5)
    assert 8 <= breaker.ready_in <= 12


def test_cool_downs_differ() -> None:
    with clock.use(FakeClock(seed=1)) as fake:
        assert isinstance(fake, FakeClock)
        assert len({round(opened(fake).ready_in, 6) for _ in range(8)}) == 8


def test_one_probe_at_a_time(fake: FakeClock) -> None:
    breaker = opened(fake)
    wake(breaker, fake)
    probe = admitted(breaker)
    assert probe.probe and [breaker.admit() for _ in range(3)] == [None] * 3 and breaker.blocked
    probe.answered()
    assert [admitted(breaker).probe for _ in range(3)] == [False] * 3


def test_a_probe_whose_client_left_frees_its_place(fake: FakeClock) -> None:
    breaker = opened(fake)
    wake(breaker, fake)
    for code in ("", "bad_request"):
        probe = admitted(breaker)
        probe.release(code)
        assert breaker.state == "half_open" and breaker.available
        probe.failed("late")  # the first end counts
        assert breaker.available
    assert breaker.last_error == "bad_request"


def test_a_probe_that_nobody_reports_on_frees_its_place_in_the_end(fake: FakeClock) -> None:
    breaker = opened(fake)
    wake(breaker, fake)
    lost = admitted(breaker)
    fake.elapsed += 599
    assert breaker.admit() is None
    fake.elapsed += 2
    second = admitted(breaker)
    lost.failed("late")
    assert breaker.state == "half_open", "the second probe decides"
    second.failed("overloaded")
    assert breaker.state == "open"


def test_late_results_of_an_earlier_period_change_nothing(fake: FakeClock) -> None:
    breaker = Breaker()
    early = [admitted(breaker) for _ in range(3)]
    fail(breaker, 5)
    early[0].answered(2.0)
    assert breaker.state == "open" and breaker.latency == 2.0
    wake(breaker, fake)
    probe = admitted(breaker)
    early[1].failed("overloaded")
    assert breaker.blocked, "the probe is still under way"
    probe.answered()
    early[2].failed("overloaded")
    assert (breaker.state, breaker.consecutive) == ("closed", 0)


def test_an_answer_that_breaks_off_counts_as_a_failure_only(fake: FakeClock) -> None:
    breaker = Breaker()
    for count in range(1, 6):
        cut = admitted(breaker)
        cut.answered(0.1)
        assert breaker.consecutive == 0
        cut.failed("interrupted")
        assert breaker.consecutive == count
    assert breaker.state == "open", "a target that always cuts its streams is as good as down"
    first = wake(breaker, fake)
    probe = admitted(breaker)
    probe.answered()
    assert breaker.state == "closed"
    probe.failed("interrupted")
    assert breaker.state == "open" and breaker.ready_in > 1.3 * first * 0.8 / 1.2, "its cool-down doubled"


def test_an_answer_that_breaks_off_after_others_came_is_one_failure(fake: FakeClock) -> None:
    breaker = Breaker()
    fail(breaker, 4)
    cut = admitted(breaker)
    cut.answered()
    admitted(breaker).answered()
    cut.failed("interrupted")
    assert (breaker.state, breaker.consecutive) == ("closed", 1)


def test_a_rest_is_no_failure_and_no_cool_down(fake: FakeClock) -> None:
    breaker = Breaker()
    breaker.rest(7.0)
    breaker.rest(2.0)
    assert (breaker.state, breaker.consecutive, breaker.ready_in) == ("closed", 0, 7.0)
    assert breaker.admit() is None and not breaker.blocked
    fake.elapsed += 7.0
    assert breaker.healthy
    breaker.rest(1e9)
    assert breaker.resting == 86_400.0, "a server that says thirty years is mistaken"


def test_a_probe_that_is_told_to_come_later_is_neither_answer_nor_failure(fake: FakeClock) -> None:
    breaker = opened(fake)
    wake(breaker, fake)
    admitted(breaker).release("rate_limited")
    breaker.rest(30.0)
    assert breaker.state == "half_open" and not breaker.available and breaker.ready_in == pytest.approx(30.0)
    fake.elapsed += 30.001
    assert admitted(breaker).probe


def test_a_misfit_may_be_asked_but_is_not_healthy(fake: FakeClock) -> None:
    breaker = Breaker()
    breaker.misfit()
    assert breaker.available and not breaker.healthy and breaker.consecutive == 0
    fake.elapsed += 300.0
    assert breaker.healthy
    breaker.misfit()
    admitted(breaker).answered()
    assert breaker.healthy


def test_latency_is_a_moving_average(fake: FakeClock) -> None:
    breaker = Breaker()
    for seconds in (1.0, 2.0, None):
        admitted(breaker).answered(seconds)
    assert breaker.latency == pytest.approx(1.2)


def test_its_memory_is_bounded(fake: FakeClock) -> None:
    breaker = Breaker()
    for _ in range(500):
        for _ in range(3):
            admitted(breaker).answered(0.01)
        fake.elapsed += 0.3
    buckets = breaker._counts  # pyright: ignore[reportPrivateUsage]
    assert len(buckets) <= 31


class BreakerMachine(RuleBasedStateMachine):
    """Compare the breaker with its rules in plain words, over any order of calls, results and times."""

    limits = BreakerLimits(failures=3, least=6, window=10.0)

    def __init__(self) -> None:
        super().__init__()
        self.stack = ExitStack()
        self.fake = FakeClock()
        self.stack.enter_context(clock.use(self.fake))
        self.breaker = Breaker(self.limits)
        self.out: list[tuple[Pass, int]] = []
        #: The model: a period ends with each change of state; results of earlier periods do not count.
        self.period, self.row, self.trips = 0, 0, 0
        self.calls: list[tuple[int, bool]] = []
        self.state, self.rests = "closed", 0.0
        self.probe: Pass | None = None
        self.probed = 0.0

    def teardown(self) -> None:
        self.stack.close()

    @rule(seconds=st.sampled_from([0.1, 1.0, 3.0, 9.0, 15.0, 70.0, 400.0]))
    def pass_time(self, seconds: float) -> None:
        self.fake.elapsed += seconds

    @rule()
    def ask(self) -> None:
        now = self.fake.elapsed
        half_open = self.breaker.state == "half_open"
        taken = self.probe is not None and now - self.probed < self.limits.lease
        allowed = now >= self.rests and (self.state == "closed" or (half_open and not taken))
        leave = self.breaker.admit()
        assert (leave is not None) == allowed
        if leave is not None:
            assert leave.probe == (self.state == "open")
            if leave.probe:
                self.probe, self.probed = leave, now
            self.out.append((leave, self.period))

    def take(self, data: st.DataObject) -> tuple[Pass, bool]:
        leave, period = self.out.pop(data.draw(st.integers(0, len(self.out) - 1)))
        return leave, period == self.period

    @precondition(lambda self: self.out)
    @rule(data=st.data())
    def answer(self, data: st.DataObject) -> None:
        leave, counts = self.take(data)
        leave.answered(1.0)
        if counts:
            if self.state == "open":
                self.change("closed")
                self.trips, self.calls = 0, []
            self.row = 0
            self.calls.append((int(self.fake.elapsed), True))

    @precondition(lambda self: self.out)
    @rule(data=st.data())
    def fail(self, data: st.DataObject) -> None:
        leave, counts = self.take(data)
        leave.failed("overloaded")
        if not counts:
            return
        self.row += 1
        self.calls.append((int(self.fake.elapsed), False))
        recent = [ok for second, ok in self.calls if second > self.fake.elapsed - self.limits.window]
        many = len(recent) >= self.limits.least and recent.count(False) > len(recent) / 2
        if leave is self.probe or (self.state == "closed" and (self.row >= self.limits.failures or many)):
            self.change("open")
            nominal = min(10.0 * 2**self.trips, 300.0)
            assert 0.8 * nominal <= self.breaker.ready_in or self.rests > self.fake.elapsed
            assert self.breaker.ready_in <= max(1.2 * nominal, self.rests - self.fake.elapsed) + 1e-9
            self.trips += 1

    @precondition(lambda self: self.out)
    @rule(data=st.data())
    def leave_early(self, data: st.DataObject) -> None:
        leave, _ = self.take(data)
        leave.release()
        if leave is self.probe:
            self.probe = None

    @rule(seconds=st.sampled_from([0.5, 5.0, 1e9]))
    def rest(self, seconds: float) -> None:
        self.breaker.rest(seconds)
        self.rests = max(self.rests, self.fake.elapsed + min(seconds, self.limits.most_rest))

    @rule()
    def misfit(self) -> None:
        self.breaker.misfit()

    def change(self, state: str) -> None:
        self.state, self.probe = state, None
        self.period += 1

    @invariant()
    def agrees(self) -> None:
        assert (self.breaker.state == "closed") == (self.state == "closed")
        assert self.breaker.consecutive == self.row
        assert self.breaker.resting == max(0.0, self.rests - self.fake.elapsed)
        if self.breaker.healthy:
            assert self.breaker.available and not self.breaker.ready_in


TestBreakerMachine = BreakerMachine.TestCase
TestBreakerMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
