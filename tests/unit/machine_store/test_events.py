"""Ids of events, and events."""

from __future__ import annotations

from random import Random

from hypothesis import given
from hypothesis import strategies as st
from skerry.store.v1.store_pb2 import MachineRecord
from skerry.types.v1.machine_pb2 import MACHINE_STATE_STOPPING

from services.machine_store.events import Events
from services.machine_store.records import moment, timestamp
from services.runtime.clock import FakeClock


@given(st.lists(st.floats(0, 0.002), min_size=1, max_size=40), st.integers())
async def test_ids_of_events_grow_however_little_time_passes(pauses: list[float], seed: int) -> None:
    clock = FakeClock()
    ids = Events(clock, Random(seed))
    made = []
    for pause in pauses:
        await clock.advance(pause)
        made.append(ids.new_id())
    assert made == sorted(set(made))
    assert all(len(one) == 26 for one in made)


def test_an_id_is_greater_than_one_of_an_instance_whose_clock_is_ahead() -> None:
    ahead = Events(FakeClock(1000.0), Random(1))
    behind = Events(FakeClock(999.0), Random(2))
    earlier = ahead.new_id()
    assert behind.new_id() < earlier
    assert behind.new_id(after=moment(1000.0)) > earlier


def test_a_prefix_with_numbers_makes_ids_in_their_order() -> None:
    ids = Events(FakeClock(), Random(1))
    before, prefix = ids.new_id(), ids.new_prefix()
    numbered = [f"{prefix}{n:06d}" for n in (1, 2, 999_999)]
    assert [len(one) for one in numbered] == [26] * 3
    assert numbered == sorted(numbered)
    assert before[:20] <= prefix


def test_what_happens_to_a_machine_changes_it_now() -> None:
    record = MachineRecord(state=MACHINE_STATE_STOPPING, updated_at=timestamp(moment(999.0)))
    event = Events(FakeClock(1000.0), Random(1)).happen(record, "stop", "user")
    assert (event.type, event.status, event.source) == ("stop", "stopping", "user")
    assert record.updated_at == event.timestamp == timestamp(moment(1000.0))
