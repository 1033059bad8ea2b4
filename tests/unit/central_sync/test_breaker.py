"""The breaker, against a plain model of it and case by case, on a clock that the tests move."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from services.central_sync.breaker import LONGEST_OPEN, TRANSITIONS, Breaker, BreakerSettings, Changed, State
from services.runtime.clock import FakeClock

SETTINGS = BreakerSettings(window=10.0, window_calls=10, minimum_calls=4, failure_rate=0.5, slow_call_rate=0.8)


class HandMovedClock(FakeClock):
    """Moved without an event loop: nobody sleeps on it."""

    def move(self, seconds: float) -> None:
        self._elapsed += seconds


def made(settings: BreakerSettings = SETTINGS, seed: int = 1) -> tuple[Breaker, HandMovedClock, list[Changed]]:
    clock, changes = HandMovedClock(), list[Changed]()
    return Breaker("apps", settings, clock=clock, random=Random(seed), on_change=changes.append), clock, changes


def fail(breaker: Breaker, times: int = 1) -> None:
    for _ in range(times):
        breaker.record(breaker.era, failed="connection refused")


def succeed(breaker: Breaker, times: int = 1, *, slow: bool = False) -> None:
    for _ in range(times):
        breaker.record(breaker.era, slow=slow)


def opened(settings: BreakerSettings = SETTINGS, seed: int = 1) -> tuple[Breaker, HandMovedClock, list[Changed]]:
    breaker, clock, changes = made(settings, seed)
    fail(breaker, 4)
    assert breaker.state is State.OPEN
    return breaker, clock, changes


def test_too_few_calls_do_not_open_it() -> None:
    breaker, _, _ = made()
    fail(breaker, 3)
    assert breaker.lets_through


def test_half_of_the_calls_failing_opens_it() -> None:
    breaker, _, changes = made()
    succeed(breaker, 3)
    fail(breaker, 2)
    assert breaker.lets_through
    fail(breaker)
    assert not breaker.lets_through
    assert [(change.before, change.after) for change in changes] == [(State.CLOSED, State.OPEN)]
    assert changes[0].failure_rate == 0.5
    assert "connection refused" in changes[0].why


def test_less_than_that_never_opens_it() -> None:
    breaker, clock, _ = made()
    for _ in range(100):
        succeed(breaker, 2)
        fail(breaker)
        clock.move(0.1)
    assert breaker.lets_through


def test_slow_answers_open_it_although_none_failed() -> None:
    breaker, _, changes = made()
    succeed(breaker)
    succeed(breaker, 3, slow=True)
    assert breaker.lets_through
    succeed(breaker, slow=True)
    assert breaker.state is State.OPEN
    assert changes[0].slow_call_rate == 0.8
    assert "slow" in changes[0].why


def test_failures_that_left_the_window_do_not_count() -> None:
    breaker, clock, _ = made()
    fail(breaker, 3)
    clock.move(10.1)
    fail(breaker, 3)
    assert breaker.lets_through
    assert breaker.failure_rate == 1.0
    clock.move(10.1)
    assert breaker.failure_rate == 0.0


def test_a_long_good_past_does_not_hide_that_all_calls_fail_now() -> None:
    breaker, _, _ = made()
    succeed(breaker, 1_000)
    fail(breaker, 5)
    assert breaker.state is State.OPEN


def test_it_remembers_since_when_calls_fail() -> None:
    breaker, clock, _ = made()
    fail(breaker)
    succeed(breaker, 5)
    clock.move(1.0)
    since = clock.now()
    fail(breaker)
    clock.move(1.0)
    fail(breaker, 9)
    assert breaker.state is State.OPEN
    assert breaker.failing_since == since
    assert breaker.since == since + 1.0


def test_what_ends_late_of_an_earlier_state_teaches_nothing() -> None:
    breaker, clock, _ = made()
    era = breaker.era
    fail(breaker, 4)
    clock.move(breaker.seconds_to_probe)
    breaker.begin_probing()
    breaker.record_probe()
    breaker.record_probe()
    assert breaker.state is State.CLOSED
    for _ in range(10):
        breaker.record(era, failed="late")
    assert breaker.lets_through
    assert breaker.failure_rate == 0.0


def test_enough_good_probes_in_a_row_close_it() -> None:
    breaker, clock, changes = opened()
    clock.move(breaker.seconds_to_probe)
    breaker.begin_probing()
    breaker.record_probe()
    assert breaker.state is State.HALF_OPEN
    assert not breaker.lets_through, "users wait until the probes are done"
    breaker.record_probe()
    assert breaker.lets_through
    assert [change.after for change in changes] == [State.OPEN, State.HALF_OPEN, State.CLOSED]


@pytest.mark.parametrize("bad", [{"failed": "HTTP 500"}, {"slow": True}])
def test_a_bad_probe_opens_it_again_and_for_longer(bad: dict[str, object]) -> None:
    breaker, clock, _ = opened(BreakerSettings(minimum_calls=4, open_for=1.0))
    first_failure = breaker.failing_since
    waits = []
    for _ in range(8):
        waits.append(breaker.seconds_to_probe)
        clock.move(breaker.seconds_to_probe)
        breaker.begin_probing()
        breaker.record_probe(**bad)  # type: ignore[arg-type]
        assert breaker.state is State.OPEN
    assert waits[0] <= 1.0
    assert waits[3] > 2.0
    assert max(waits) <= LONGEST_OPEN
    assert breaker.failing_since == first_failure


def test_open_times_are_jittered_so_that_instances_do_not_probe_together() -> None:
    waits = {opened(seed=seed)[0].seconds_to_probe for seed in range(20)}
    assert len(waits) == 20
    assert min(waits) >= 0.5
    assert max(waits) <= 1.0


@pytest.mark.parametrize(
    "wrong",
    [
        {"longest_open": 11.0},
        {"open_for": 0.0},
        {"failure_rate": 0.0},
        {"slow_call_rate": 1.5},
        {"minimum_calls": 60},
        {"probes": 0},
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must"):
        BreakerSettings(**wrong)  # type: ignore[arg-type]


class AgainstAModel(RuleBasedStateMachine):
    """Any order of calls, probes and pauses: the breaker does what a list of all calls and a few ifs say."""

    def __init__(self) -> None:
        super().__init__()
        self.breaker, self.clock, self.changes = made()
        self.calls: list[tuple[float, bool, bool]] = []
        self.state = State.CLOSED
        self.good_probes = 0

    @rule(failed=st.booleans(), slow=st.booleans())
    def a_call_ends(self, failed: bool, slow: bool) -> None:
        self.breaker.record(self.breaker.era, failed="no" if failed else "", slow=slow)
        if self.state is State.CLOSED:
            self.calls.append((self.clock.monotonic(), failed, slow))
            counted = self._counted()
            if len(counted) >= 4 and (
                sum(f for _, f, _ in counted) >= 0.5 * len(counted)
                or sum(s for _, _, s in counted) >= 0.8 * len(counted)
            ):
                self.state = State.OPEN

    @rule(seconds=st.sampled_from([0.0, 0.1, 3.0, 9.9, 10.0, 30.0]))
    def time_passes(self, seconds: float) -> None:
        self.clock.move(seconds)

    @precondition(lambda self: self.state is State.OPEN and self.breaker.seconds_to_probe == 0)
    @rule()
    def probing_begins(self) -> None:
        self.breaker.begin_probing()
        self.state, self.good_probes = State.HALF_OPEN, 0

    @rule(failed=st.booleans(), slow=st.booleans())
    def a_probe_ends(self, failed: bool, slow: bool) -> None:
        self.breaker.record_probe(failed="no" if failed else "", slow=slow)
        if self.state is State.HALF_OPEN:
            self.good_probes += 1
            if failed or slow:
                self.state = State.OPEN
            elif self.good_probes == 2:
                self.state, self.calls = State.CLOSED, []

    @invariant()
    def it_is_in_the_models_state(self) -> None:
        assert self.breaker.state is self.state
        assert self.breaker.lets_through == (self.state is State.CLOSED)
        assert 0.0 <= self.breaker.seconds_to_probe <= LONGEST_OPEN

    @invariant()
    def its_rates_are_those_of_the_calls(self) -> None:
        if self.state is State.CLOSED:
            counted = self._counted()
            share = sum(failed for _, failed, _ in counted) / len(counted) if counted else 0.0
            assert self.breaker.failure_rate == pytest.approx(share)

    @invariant()
    def it_only_goes_where_the_table_says(self) -> None:
        for before, after in zip(self.changes, self.changes[1:], strict=False):
            assert before.after is after.before
        assert all(change.after in TRANSITIONS[change.before] for change in self.changes)

    def _counted(self) -> list[tuple[float, bool, bool]]:
        oldest = self.clock.monotonic() - 10.0
        return [call for call in self.calls[-10:] if call[0] >= oldest]


TestAgainstAModel = AgainstAModel.TestCase
TestAgainstAModel.settings = settings(max_examples=100, stateful_step_count=50, deadline=None)
