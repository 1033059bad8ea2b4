from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from skerry.store.v1.store_pb2 import MachineRecord, WorkerRecord
from skerry.store.v1.volume_store_pb2 import (
    VOLUME_STATE_CREATED,
    VOLUME_STATE_DESTROYED,
    VOLUME_STATE_DESTROYING,
    VolumeRecord,
)
from skerry.types.v1.machine_pb2 import (
    HOST_STATUS_OK,
    HOST_STATUS_UNREACHABLE,
    MACHINE_STATE_DESTROYED,
    MACHINE_STATE_DESTROYING,
    MACHINE_STATE_STARTED,
    MACHINE_STATE_STOPPED,
)

from services.runtime.ids import AppId, WorkerId
from services.runtime.resources import RESOURCE_FIELDS
from services.scheduler.fleet import Fleet, WorkerRoom
from tests.support_fleet import GIB, amounts, machine, need, worker

MEMORY = RESOURCE_FIELDS.index("memory_bytes")
DISK = RESOURCE_FIELDS.index("disk_bytes")
WORKERS = [f"w{number}" for number in range(6)]
MACHINES = [f"m{number}" for number in range(8)]
APPS = ["a", "b"]

resources = st.builds(amounts, memory=st.integers(0, 64), shared=st.integers(0, 16), a10=st.integers(0, 2))
worker_records = st.builds(
    worker,
    st.sampled_from(WORKERS),
    resources,
    cordoned=st.booleans(),
    status=st.sampled_from([HOST_STATUS_OK, HOST_STATUS_UNREACHABLE]),
    dedication=st.sampled_from(["", "gold", "silver"]),
)
machine_records = st.builds(
    machine,
    st.sampled_from(MACHINES),
    st.sampled_from(WORKERS),
    resources,
    app=st.sampled_from(APPS),
    state=st.sampled_from(
        [MACHINE_STATE_STARTED, MACHINE_STATE_STOPPED, MACHINE_STATE_DESTROYING, MACHINE_STATE_DESTROYED]
    ),
    leaving=st.sampled_from(["", *WORKERS]),
    leaving_reserved=resources,
)


def contents(fleet: Fleet) -> tuple[dict[str, WorkerRoom | None], list[dict[WorkerId, int]], list[str]]:
    present = [worker_id for worker_id in WORKERS if fleet.row_of(worker_id) is not None]
    return (
        {worker_id: fleet.worker(worker_id) for worker_id in present},
        [dict(fleet.spread(AppId(app))) for app in APPS],
        sorted(fleet.machines),
    )


def memory_left(fleet: Fleet, worker_id: str) -> tuple[int, int]:
    """GiB free, and usable."""
    row = fleet.row_of(worker_id)
    assert row is not None
    return int(fleet.free[MEMORY, row]) // GIB, int(fleet.usable[MEMORY, row]) // GIB


@given(st.lists(worker_records | machine_records, max_size=40), st.integers(0, 1000), st.booleans())
def test_a_fleet_that_followed_every_change_equals_one_built_from_the_last_state(
    changes: list[WorkerRecord | MachineRecord], seed: int, backwards: bool
) -> None:
    followed = Fleet(Random(seed))
    mentioned: set[str] = set()
    last: dict[str, WorkerRecord | MachineRecord] = {}
    for change in changes:
        last[change.id] = change
        if isinstance(change, WorkerRecord):
            followed.put_worker(change)
            mentioned.add(change.id)
        else:
            followed.put_machine(change)
    rebuilt = Fleet(Random(seed + 1))
    for change in reversed(last.values()) if backwards else last.values():
        if isinstance(change, WorkerRecord):
            rebuilt.put_worker(change)
        else:
            rebuilt.put_machine(change)
    followed_workers, *followed_rest = contents(followed)
    rebuilt_workers, *rebuilt_rest = contents(rebuilt)
    assert followed_rest == rebuilt_rest
    for worker_id in mentioned:
        assert followed_workers[worker_id] == rebuilt_workers[worker_id]


@given(
    st.lists(machine_records, max_size=30), st.lists(st.tuples(st.sampled_from(WORKERS), st.floats(1, 5)), max_size=20)
)
def test_placements_under_way_leave_no_trace_once_their_time_is_over(
    records: list[MachineRecord], expectations: list[tuple[str, float]]
) -> None:
    fleet, plain = Fleet(Random(1)), Fleet(Random(1))
    for worker_id in WORKERS:
        fleet.put_worker(worker(worker_id))
        plain.put_worker(worker(worker_id))
    for number, record in enumerate(records):
        for worker_id, until in sorted(expectations, key=lambda one: one[1])[number::7]:
            fleet.expect(need(app="a"), WorkerId(worker_id), until)
        fleet.put_machine(record)
        plain.put_machine(record)
    fleet.expire(10.0)
    assert contents(fleet) == contents(plain)
    assert (fleet.free == fleet.usable).all()


def test_a_machine_holds_its_reservation_on_the_worker_that_it_leaves_until_that_lets_go() -> None:
    fleet = Fleet(Random(1))
    for worker_id in ("old", "new"):
        fleet.put_worker(worker(worker_id))
    fleet.put_machine(machine("m", "old", amounts(memory=2)))
    fleet.put_machine(machine("m", "new", amounts(memory=4), leaving="old", leaving_reserved=amounts(memory=2)))
    assert memory_left(fleet, "old") == (14, 14)
    assert memory_left(fleet, "new") == (12, 12)
    assert fleet.spread(AppId("app")) == {"new": 1}
    fleet.put_machine(machine("m", "new", amounts(memory=4)))
    assert memory_left(fleet, "old") == (16, 16)
    assert memory_left(fleet, "new") == (12, 12)


def test_a_machine_that_is_destroyed_while_it_moves_holds_what_its_old_worker_has_not_let_go() -> None:
    fleet = Fleet(Random(1))
    for worker_id in ("old", "new"):
        fleet.put_worker(worker(worker_id))
    fleet.put_machine(machine("m", "new", amounts(memory=4), leaving="old", leaving_reserved=amounts(memory=2)))
    gone = machine(
        "m", "new", amounts(), state=MACHINE_STATE_DESTROYED, leaving="old", leaving_reserved=amounts(memory=2)
    )
    fleet.put_machine(gone)
    assert memory_left(fleet, "old") == (14, 14)
    assert memory_left(fleet, "new") == (16, 16)
    assert fleet.spread(AppId("app")) == {}
    fleet.put_machine(machine("m", "new", amounts(), state=MACHINE_STATE_DESTROYED))
    assert memory_left(fleet, "old") == (16, 16)
    assert not fleet.machines


def test_a_placement_under_way_is_counted_once_when_the_log_tells_of_it() -> None:
    fleet = Fleet(Random(1))
    fleet.put_worker(worker("w"))
    fleet.expect(need(), WorkerId("w"), until=1.0)
    assert memory_left(fleet, "w") == (16, 15)
    assert fleet.spread(AppId("app")) == {"w": 1}
    fleet.put_machine(machine("m", "w"))
    assert memory_left(fleet, "w") == (15, 15)
    fleet.expire(2.0)
    assert memory_left(fleet, "w") == (15, 15)
    assert fleet.spread(AppId("app")) == {"w": 1}


def test_a_machine_that_is_gone_is_not_what_was_expected() -> None:
    fleet = Fleet(Random(1))
    for worker_id in ("old", "new"):
        fleet.put_worker(worker(worker_id))
    fleet.expect(need(amounts()), WorkerId("new"), until=1.0)
    gone = machine("m", "new", state=MACHINE_STATE_DESTROYED, leaving="old", leaving_reserved=amounts(memory=2))
    gone.ClearField("reserved")
    fleet.put_machine(gone)
    fleet.expire(1.0)
    assert fleet.spread(AppId("app")) == {}


def test_a_placement_under_way_that_came_to_nothing_is_forgotten_at_its_time() -> None:
    fleet = Fleet(Random(1))
    fleet.put_worker(worker("w"))
    fleet.expect(need(), WorkerId("w"), until=1.0)
    fleet.expire(0.99)
    assert memory_left(fleet, "w") == (16, 15)
    fleet.expire(1.0)
    assert memory_left(fleet, "w") == (16, 16)
    assert fleet.spread(AppId("app")) == {}


def test_of_placements_under_way_the_oldest_are_forgotten_when_there_are_too_many() -> None:
    fleet = Fleet(Random(1), expected_limit=3)
    for worker_id in ("first", "rest"):
        fleet.put_worker(worker(worker_id))
    fleet.expect(need(), WorkerId("first"), until=100.0)
    for _ in range(3):
        fleet.expect(need(), WorkerId("rest"), until=100.0)
    assert memory_left(fleet, "first") == (16, 16)
    assert memory_left(fleet, "rest") == (16, 13)


def test_an_app_on_many_workers_is_counted_on_each_also_after_more_workers_came() -> None:
    fleet = Fleet(Random(1))
    for number in range(100):
        fleet.put_worker(worker(f"w{number}"))
        fleet.put_machine(machine(f"m{number}", f"w{number}"))
    for number in range(100, 300):
        fleet.put_worker(worker(f"w{number}"))
    fleet.put_machine(machine("again", "w7"))
    expected = {f"w{number}": 1 for number in range(100)} | {"w7": 2}
    assert fleet.spread(AppId("app")) == expected
    counts = fleet.machines_of(AppId("app"), fleet.rows_of(["w7"]))
    assert counts is not None
    assert counts.tolist() == [2]
    for name in [f"m{number}" for number in range(100)] + ["again"]:
        fleet.put_machine(machine(name, "w0", state=MACHINE_STATE_DESTROYED))
    assert fleet.spread(AppId("app")) == {}


def test_rows_are_in_no_relation_to_the_order_in_which_workers_came() -> None:
    fleet = Fleet(Random(5))
    for number in range(1000):
        fleet.put_worker(worker(f"w{number}"))
    rows = [fleet.row_of(f"w{number}") for number in range(1000)]
    assert sorted(row for row in rows if row is not None) == list(range(1000))
    early = sum(1 for row in rows[:500] if row is not None and row < 500)
    assert early == pytest.approx(250, abs=60)


def test_a_worker_of_which_nothing_is_known_but_its_machines_is_lost() -> None:
    fleet = Fleet(Random(1))
    fleet.put_machine(machine("m", "w"))
    assert fleet.is_lost("w")
    fleet.put_worker(worker("w"))
    assert not fleet.is_lost("w")
    assert memory_left(fleet, "w") == (15, 15)


def volume(worker_id: str, size: int, kept: int = 0, *, state: int = VOLUME_STATE_CREATED) -> VolumeRecord:
    """A volume of so many GiB, and so many GiB of memory that are kept for its machine."""
    record = VolumeRecord(id="vol", worker_id=worker_id, size_bytes=size * GIB, state=state)  # type: ignore[arg-type]
    if kept:
        record.kept_for_machine.CopyFrom(amounts(memory=kept))
    return record


def left(fleet: Fleet, worker_id: str) -> tuple[int, int]:
    """Disk and memory, in GiB."""
    row = fleet.row_of(worker_id)
    assert row is not None
    assert (fleet.free[:, row] == fleet.usable[:, row]).all()
    return int(fleet.free[DISK, row]) // GIB, int(fleet.free[MEMORY, row]) // GIB


def test_a_volume_takes_its_disk_and_what_is_kept_for_its_machine_until_it_is_gone() -> None:
    fleet = Fleet(Random(1))
    fleet.put_volume(volume("w0", 10, 4))
    fleet.put_worker(worker("w0"))
    assert left(fleet, "w0") == (90, 12)
    fleet.put_volume(volume("w0", 30))
    assert left(fleet, "w0") == (70, 16)
    fleet.put_volume(volume("w0", 30, state=VOLUME_STATE_DESTROYING))
    assert left(fleet, "w0") == (70, 16)
    for _ in range(2):
        fleet.put_volume(volume("w0", 30, state=VOLUME_STATE_DESTROYED))
        assert left(fleet, "w0") == (100, 16)
