"""Token buckets, what is counted together, and the table of what every method counts as."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.descriptor import MethodDescriptor
from hypothesis import given
from hypothesis import strategies as st
from skerry.machines.v1 import machines_pb2 as api

from gateway.auth import Principal
from gateway.limits import LIMITS, Buckets, Limiter, Per, Rate
from gateway.public_services import path_of, public_methods
from gateway.settings import CallLimits, RateSettings
from services.runtime.errors import RateLimited

CREATE = "/skerry.machines.v1.Machines/CreateMachine"
GET = "/skerry.machines.v1.Machines/GetMachine"
STOP = "/skerry.machines.v1.Machines/StopMachine"
ALICE = Principal("alice", organization="a-team")
BOB = Principal("bob", organization="b-team")


class Counted:
    """A bucket as one would count it: so many tokens, more with time."""

    def __init__(self, rate: Rate) -> None:
        self.rate = rate
        self.tokens = float(rate.burst)
        self.at = 0.0

    def take(self, now: float) -> bool:
        self.tokens = min(self.rate.burst, self.tokens + (now - self.at) * self.rate.per_second)
        self.at = now
        if self.tokens < 1 - 1e-6:
            return False
        self.tokens -= 1
        return True


rates = st.builds(Rate, st.sampled_from([0.5, 1.0, 4.0, 8.0]), st.integers(1, 12))
pauses = st.lists(st.integers(0, 4000).map(lambda milliseconds: milliseconds / 1000), max_size=60)


@given(rates, pauses)
def test_a_bucket_lets_through_what_counting_tokens_would(rate: Rate, gaps: list[float]) -> None:
    buckets, counted, now = Buckets(10), Counted(rate), 0.0
    for gap in gaps:
        now += gap
        assert (buckets.take([("k", rate, 1)], now) == 0) is counted.take(now)


@given(rates, pauses)
def test_whoever_waits_as_long_as_told_gets_through_and_not_earlier(rate: Rate, gaps: list[float]) -> None:
    buckets, now = Buckets(10), 0.0
    for gap in gaps:
        now += gap
        if wait := buckets.take([("k", rate, 1)], now):
            assert wait <= 1 / rate.per_second + 1e-6
            if wait > 1e-3:
                assert buckets.take([("k", rate, 1)], now + wait - 1e-3) > 0
            now += wait
            assert buckets.take([("k", rate, 1)], now) == 0


def test_a_refused_call_takes_nothing_out_of_any_bucket() -> None:
    buckets, narrow, wide = Buckets(10), Rate(1, 1), Rate(1, 2)
    wanted = [("narrow", narrow, 1), ("wide", wide, 1)]
    assert buckets.take(wanted, 0) == 0
    for _ in range(5):
        assert buckets.take(wanted, 0) == pytest.approx(1)
    assert buckets.take([("wide", wide, 1)], 0) == 0


def test_memory_is_bounded_and_what_was_asked_last_is_remembered() -> None:
    buckets, rate = Buckets(100), Rate(1, 1)
    assert buckets.take([("mine", rate, 1)], 0) == 0
    for number in range(10_000):
        buckets.take([(number, rate, 1)], 0)
        assert buckets.take([("mine", rate, 1)], 0) > 0 or number >= 99
        assert len(buckets) <= 100
    assert buckets.take([(9_999, rate, 1)], 0) > 0


@pytest.mark.parametrize(("per_second", "burst"), [(0, 1), (-1, 1), (1, 0), (float("nan"), 1)])
def test_a_bucket_that_never_fills_is_refused(per_second: float, burst: int) -> None:
    with pytest.raises(ValueError, match="a rate is more than nothing"):
        Rate(per_second, burst)


class Door:
    """A limiter, and a time that stands still."""

    def __init__(self, **settings: Any) -> None:
        self.now = 0.0
        self.limiter = Limiter(CallLimits(**settings), lambda: self.now)

    def let_through(self, method: str, request: Any, principal: Principal = ALICE, times: int = 50) -> int:
        """How many of so many calls at once are let through."""
        good = 0
        for _ in range(times):
            try:
                self.limiter.check(method, request, principal)
                good += 1
            except RateLimited:
                pass
        return good


def test_what_is_foreseen_is_what_would_be_refused_and_counts_nothing() -> None:
    door, request, names = Door(), api.StopMachineRequest(machine_id="m1"), {"machine_id": "m1", "app_name": "app"}
    for _ in range(20):
        door.limiter.foresee(STOP, names, ALICE)
    assert door.let_through(STOP, request) == 3
    with pytest.raises(RateLimited) as foreseen:
        door.limiter.foresee(STOP, names, ALICE)
    with pytest.raises(RateLimited) as refused:
        door.limiter.check(STOP, request, ALICE)
    assert foreseen.value == refused.value
    door.limiter.foresee(STOP, {**names, "machine_id": "m2"}, ALICE)
    door.limiter.foresee(STOP, names, BOB)


def test_an_action_on_a_machine_has_a_burst_of_three_and_then_one_a_second() -> None:
    door, request = Door(), api.StopMachineRequest(machine_id="m1", app_name="app")
    assert door.let_through(STOP, request) == 3
    door.now += 1
    assert door.let_through(STOP, request) == 1
    door.now += 60
    assert door.let_through(STOP, request) == 3


def test_getting_a_machine_has_a_burst_of_ten_and_then_five_a_second() -> None:
    door, request = Door(), api.GetMachineRequest(machine_id="m1", app_name="app")
    assert door.let_through(GET, request) == 10
    door.now += 1
    assert door.let_through(GET, request) == 5


def test_actions_machines_apps_and_tokens_are_counted_apart() -> None:
    door = Door()
    assert door.let_through(STOP, api.StopMachineRequest(machine_id="m1")) == 3
    assert door.let_through(STOP, api.StopMachineRequest(machine_id="m2")) == 3
    assert door.let_through(GET, api.GetMachineRequest(machine_id="m1")) == 10
    other_token = Principal("carol", organization="a-team")
    assert door.let_through(STOP, api.StopMachineRequest(machine_id="m1"), other_token) == 0
    assert door.let_through(CREATE, api.CreateMachineRequest(app_name="app")) == 3
    assert door.let_through(CREATE, api.CreateMachineRequest(app_name="shop")) == 3
    assert door.let_through(CREATE, api.CreateMachineRequest(app_name="app"), other_token) == 3


def test_nobody_uses_up_what_another_organization_may_ask_of_its_machine() -> None:
    door, request = Door(), api.StopMachineRequest(machine_id="m1", app_name="app")
    door.let_through(STOP, request, BOB, times=1000)
    assert door.let_through(STOP, request, ALICE) == 3


def test_names_that_are_made_up_do_not_get_around_the_limit_of_the_organization() -> None:
    door = Door(organization=RateSettings(per_second=20, burst=40))
    made_up = [api.CreateMachineRequest(app_name=f"app-{number}") for number in range(500)]
    assert sum(door.let_through(CREATE, request, times=1) for request in made_up) == 40
    assert door.let_through(CREATE, made_up[0], BOB, times=1) == 1
    door.now += 1
    assert sum(door.let_through(CREATE, request, times=1) for request in made_up) == 20


def test_each_machine_of_a_batch_counts_for_the_organization() -> None:
    door = Door(organization=RateSettings(per_second=20, burst=40))
    batches = [api.CreateMachineRequest(app_name=f"app-{number}", count=15) for number in range(5)]
    assert sum(door.let_through(CREATE, request, times=1) for request in batches) == 2
    door.now += 60
    # One that is larger than the bucket takes all of it.
    assert door.let_through(CREATE, api.CreateMachineRequest(app_name="app", count=1000), times=3) == 1


def test_a_name_takes_no_more_room_than_names_have() -> None:
    door, beginning = Door(), "a" * 64
    assert door.let_through(CREATE, api.CreateMachineRequest(app_name=beginning + "b" * 10_000)) == 3
    assert door.let_through(CREATE, api.CreateMachineRequest(app_name=beginning + "c" * 10_000)) == 0


def test_a_token_of_no_organization_is_limited_only_where_that_is_asked_for() -> None:
    developer, request = Principal("developer"), api.CreateMachineRequest(app_name="app")
    assert Door().let_through(CREATE, request, developer, times=5000) == 5000
    assert Door(everybody=True).let_through(CREATE, request, developer) == 3


def test_the_refusal_says_what_was_too_much_and_when_it_may_be_asked_again() -> None:
    door, request = Door(), api.CreateMachineRequest(app_name="app")
    door.let_through(CREATE, request, times=3)
    with pytest.raises(
        RateLimited, match=r"create was asked too often: 1/s with a burst of 3 is allowed per app"
    ) as caught:
        door.limiter.check(CREATE, request, ALICE)
    assert caught.value.retry_after == pytest.approx(1)
    assert caught.value.metadata == {"action": "create", "per": "app"}


@pytest.mark.parametrize("method", list(public_methods()), ids=lambda method: method.full_name)
def test_every_public_method_has_a_line_that_fits_its_request(method: MethodDescriptor) -> None:
    assert path_of(method) in LIMITS, f"{path_of(method)} has no line in the table of limits"
    limit = LIMITS[path_of(method)]
    fields = method.input_type.fields_by_name
    assert (limit.per is Per.MACHINE) is ("machine_id" in fields)
    assert limit.per is not Per.APP or "app_name" in fields


def test_the_table_has_no_lines_of_methods_that_are_gone() -> None:
    assert LIMITS.keys() <= {path_of(method) for method in public_methods()}


def test_a_method_without_a_line_is_limited_all_the_same() -> None:
    assert Door().let_through("/skerry.machines.v1.Machines/Unheard", api.CreateMachineRequest(app_name="app")) == 3
