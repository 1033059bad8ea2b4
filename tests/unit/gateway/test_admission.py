"""Which calls are turned away when there is too much to do, in what order, and how that ends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any, cast

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.admission import INTERVAL_SECONDS, SAMPLE_SECONDS, AdmissionControl, Controller, Importance, importance_of
from gateway.public_services import path_of, public_methods
from gateway.settings import AdmissionSettings
from services.runtime.clock import FakeClock
from services.runtime.errors import DependencyDown
from services.runtime.registry import ServerCall
from tests.support import eventually

BOUNDS = AdmissionSettings(in_flight=100, loop_seconds=0.1, create_seconds=1.0)
MACHINES = "/skerry.machines.v1.Machines"


class Region:
    """A controller and the time."""

    def __init__(self) -> None:
        self.controller = Controller(BOUNDS)
        self.now = 0.0

    def passes(self, seconds: float, *, lag: Callable[[int], float] = lambda _: 0.0, wait: float | None = None) -> None:
        """Time goes by with such lags of the loop, and creates that wait so long."""
        for number in range(round(seconds / SAMPLE_SECONDS)):
            self.now += SAMPLE_SECONDS
            if wait is not None:
                self.controller.create_waited(wait)
            self.controller.loop_lagged(lag(number), self.now)

    def turned_away(self, calls: int = 100) -> Mapping[Importance, int]:
        """Of so many calls of each class, none of which lasts, how many are turned away."""
        return {kind: sum(not self.controller.admits(kind) for _ in range(calls)) for kind in Importance}


def nothing(region: Region) -> bool:
    return not any(region.turned_away().values())


def test_without_a_queue_nothing_is_turned_away() -> None:
    region = Region()
    region.passes(60, lag=lambda _: 0.09, wait=0.9)
    assert nothing(region)


def test_a_burst_is_no_queue() -> None:
    region = Region()
    region.passes(60, lag=lambda number: 0.0 if number % 9 == 0 else 3.0)
    assert nothing(region)


def test_one_bad_interval_is_not_enough() -> None:
    region = Region()
    region.passes(2)
    region.passes(INTERVAL_SECONDS, lag=lambda _: 5.0)
    region.passes(2)
    assert nothing(region)


def test_the_longer_the_queue_stands_the_more_classes_are_turned_away_in_their_order() -> None:
    region, orders = Region(), []
    for _ in range(12):
        region.passes(INTERVAL_SECONDS, lag=lambda _: 0.3)
        orders.append([region.turned_away()[kind] for kind in Importance])
    for order in orders:
        assert order == sorted(order, reverse=True)
        # A class is not touched before the one that matters less is turned away altogether.
        assert all(less == 100 or more == 0 for less, more in pairwise(order))
    assert orders[-1] == [100, 100, 100, 100, 0]
    assert orders == sorted(orders)


def test_when_the_queue_is_gone_all_come_back_in_the_opposite_order_and_not_at_once() -> None:
    region = Region()
    region.passes(10, lag=lambda _: 0.3)
    seen = []
    while not nothing(region):
        region.passes(INTERVAL_SECONDS)
        seen.append([region.turned_away()[kind] for kind in Importance])
        assert len(seen) < 40
    assert seen == sorted(seen, reverse=True)
    assert len(seen) >= 8


def test_between_well_and_unwell_nothing_changes() -> None:
    region = Region()
    region.passes(2, lag=lambda _: 0.3)
    level = region.controller.level
    assert level > 0
    region.passes(30, lag=lambda _: 0.07)
    assert region.controller.level == level


def test_a_load_that_shedding_relieves_does_not_make_it_flap() -> None:
    """The queue stands whenever more than three of four creates are let in."""
    region, levels = Region(), []
    for _ in range(120):
        overloaded = region.controller.level < 0.25
        region.passes(INTERVAL_SECONDS, lag=lambda _, lag=0.3 if overloaded else 0.06: lag)  # type: ignore[misc]
        levels.append(region.controller.level)
    assert len(set(levels[4:])) == 1
    assert max(levels) <= 1


def test_creates_that_wait_long_for_the_store_turn_away_creates_and_nothing_else() -> None:
    region = Region()
    region.passes(30, wait=2.5)
    away = region.turned_away()
    assert away[Importance.CREATE] == 100
    assert sum(away.values()) == 100
    # Without any there is nothing to learn from: a few are let in again.
    region.passes(2 * INTERVAL_SECONDS)
    assert 0 < region.turned_away()[Importance.CREATE] < 100


def test_a_part_of_a_class_is_turned_away_evenly() -> None:
    region = Region()
    while region.controller.level < 0.5:
        region.passes(SAMPLE_SECONDS, lag=lambda _: 0.3)
    let_in = [region.controller.admits(Importance.CREATE) for _ in range(20)]
    assert let_in in ([True, False] * 10, [False, True] * 10)


def test_with_many_calls_under_way_the_least_important_are_turned_away_first() -> None:
    region = Region()
    turned_away_from: dict[Importance, int] = {}
    for in_flight in range(101):
        region.controller.in_flight = in_flight
        for kind in Importance:
            if not region.controller.admits(kind):
                turned_away_from.setdefault(kind, in_flight)
    assert list(turned_away_from) == list(Importance)
    assert list(turned_away_from.values()) == [50, 60, 75, 90, 100]


@given(st.lists(st.tuples(st.floats(0, 10), st.one_of(st.none(), st.floats(0, 10))), max_size=300))
def test_whatever_happens_the_level_stays_within_bounds_and_ends_when_all_is_well(
    happened: list[tuple[float, float | None]],
) -> None:
    region = Region()
    for lag, wait in happened:
        region.passes(SAMPLE_SECONDS, lag=lambda _, lag=lag: lag, wait=wait)  # type: ignore[misc]
        assert 0 <= region.controller.level <= Importance.RELIEF
    region.passes(20)
    assert nothing(region)


@pytest.mark.parametrize(
    ("method", "importance"),
    [
        ("CreateMachine", Importance.CREATE),
        ("ListMachines", Importance.LIST),
        ("WatchMachines", Importance.LIST),
        ("UpdateMachine", Importance.CHANGE),
        ("StartMachine", Importance.CHANGE),
        ("AcquireMachineLease", Importance.CHANGE),
        ("GetMachine", Importance.GET),
        ("StopMachine", Importance.RELIEF),
        ("DeleteMachine", Importance.RELIEF),
        ("WaitMachine", Importance.RELIEF),
        ("ReleaseMachineLease", Importance.RELIEF),
    ],
)
def test_creates_matter_less_than_changes_and_lists_less_than_gets(method: str, importance: Importance) -> None:
    assert importance_of(f"{MACHINES}/{method}") is importance


def test_what_only_reads_is_not_taken_for_a_change() -> None:
    changes = {method.name for method in public_methods() if importance_of(path_of(method)) is Importance.CHANGE}
    assert not {name for name in changes if name.startswith(("Get", "List", "Watch", "Wait", "Simulate"))}


async def call(control: AdmissionControl, method: str, until: asyncio.Event | None = None) -> None:
    """A call that lasts until the event."""
    context = cast("grpc.aio.ServicerContext[Any, Any]", None)
    await control(ServerCall(f"{MACHINES}/{method}", {}, context))
    if until is not None:
        await until.wait()


async def test_calls_are_under_way_until_they_end_however_they_end() -> None:
    control, end = AdmissionControl(FakeClock(), AdmissionSettings(in_flight=10)), asyncio.Event()
    calls = [asyncio.create_task(call(control, "CreateMachine", end)) for _ in range(5)]
    await asyncio.sleep(0)
    with pytest.raises(DependencyDown, match="this region has more to do than it can") as caught:
        await call(control, "CreateMachine")
    assert caught.value.metadata == {"dependency": "region", "class": "create"}
    assert caught.value.retry_after == 1
    await asyncio.create_task(call(control, "GetMachine"))
    calls[0].cancel()
    await asyncio.wait(calls[:1])
    await asyncio.sleep(0)
    await asyncio.create_task(call(control, "CreateMachine"))
    end.set()
    await asyncio.gather(*calls, return_exceptions=True)


async def test_those_who_wait_are_not_counted_and_health_is_not_judged() -> None:
    control, end = AdmissionControl(FakeClock(), AdmissionSettings(in_flight=2)), asyncio.Event()
    waiting = [asyncio.create_task(call(control, "WaitMachine", end)) for _ in range(1000)]
    await asyncio.sleep(0)
    await asyncio.create_task(call(control, "CreateMachine"))
    busy = [asyncio.create_task(call(control, "StopMachine", end)) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(DependencyDown):
        await call(control, "StopMachine")
    context = cast("grpc.aio.ServicerContext[Any, Any]", None)
    await control(ServerCall("/grpc.health.v1.Health/Check", {}, context))
    end.set()
    await asyncio.gather(*waiting, *busy)


class LateClock(FakeClock):
    """A clock whose sleepers always wake too late."""

    def __init__(self) -> None:
        super().__init__()
        self.time = 0.0

    def monotonic(self) -> float:
        return self.time

    async def sleep(self, seconds: float) -> None:
        self.time += seconds + 0.3
        await asyncio.sleep(0)


async def test_the_component_notices_a_loop_that_lags() -> None:
    clock = LateClock()
    control, ready = AdmissionControl(clock, BOUNDS), asyncio.Event()
    running = asyncio.create_task(control.run(ready.set))
    await ready.wait()
    await eventually(lambda: clock.time > 3)
    with pytest.raises(DependencyDown):
        await call(control, "CreateMachine")
    await asyncio.create_task(call(control, "StopMachine"))
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
