"""How many equal machines find room: the count is what placing them one by one comes to."""

from __future__ import annotations

from random import Random

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from skerry.store.v1.store_pb2 import WorkerRecord
from skerry.types.v1.machine_pb2 import HOST_STATUS_UNREACHABLE

from services.scheduler.fleet import Fleet
from services.scheduler.placement import Room, count_room, rank
from tests.support_fleet import amounts, machine, need, worker

sizes = st.builds(amounts, memory=st.integers(0, 8), shared=st.integers(0, 8), disk=st.integers(0, 8))


def fleet_of(workers: list[WorkerRecord]) -> Fleet:
    fleet = Fleet(Random(1))
    for each in workers:
        fleet.put_worker(each)
    return fleet


@given(st.lists(sizes, max_size=4), st.integers(1, 3), st.integers(0, 3))
@settings(max_examples=50, deadline=None)
def test_as_many_are_counted_as_can_be_placed_one_by_one(capacities: list[object], memory: int, shared: int) -> None:
    asked = need(amounts(memory=memory, shared=shared))
    fleet = fleet_of([worker(f"w{number}", capacity) for number, capacity in enumerate(capacities)])  # type: ignore[arg-type]
    counted = count_room(fleet, asked, most=1000)
    placed, workers = 0, set()
    while found := rank(fleet, asked, random=np.random.default_rng(1), limit=1):
        where = found[0].worker_id
        workers.add(where)
        fleet.put_machine(machine(f"m{placed}", where, amounts(memory=memory, shared=shared)))
        placed += 1
    assert counted == Room(placed, len(workers))


def test_no_more_are_counted_than_are_asked_for() -> None:
    fleet = fleet_of([worker("w1"), worker("w2")])
    assert count_room(fleet, need(amounts(memory=1)), most=20) == Room(20, 2)
    assert count_room(fleet, need(amounts()), most=7) == Room(7, 2)


def test_workers_that_take_nothing_new_have_no_room() -> None:
    fleet = fleet_of(
        [worker("w1", cordoned=True), worker("w2", status=HOST_STATUS_UNREACHABLE), worker("w3", dedication="gold")]
    )
    assert count_room(fleet, need(amounts(memory=1)), most=100) == Room(0, 0)
    assert count_room(fleet_of([]), need(amounts(memory=1)), most=100) == Room(0, 0)
