"""What workers report takes effect once, and machines move only when they were let go."""

from __future__ import annotations

import asyncio
from random import Random

import pytest
from skerry.store.v1 import store_pb2 as pb
from skerry.types.v1.machine_pb2 import (
    MACHINE_STATE_DESTROYED,
    MACHINE_STATE_RESTARTING,
    MACHINE_STATE_STARTED,
    MACHINE_STATE_STOPPED,
    MACHINE_STATE_STOPPING,
)
from skerry.types.v1.resources_pb2 import Resources

from services.runtime.errors import Conflict, InvalidConfig, NoCapacity, NotFound
from tests.integration.machine_store.stores import (
    NEED,
    Store,
    connection_to,
    destroyed,
    exited,
    left,
    running_store,
    started,
)

MORE = Resources(shared_cpu_millicores=2000, memory_bytes=2**28, disk_bytes=2**30)


async def events_of(store: Store, machine: pb.MachineRecord) -> list[str]:
    return [e.type for e in reversed((await store.get(machine.id, events=1000)).events)]


async def test_an_observation_that_is_sent_again_takes_effect_once(store: Store) -> None:
    machine = await store.create()
    seen = [started(machine), exited(machine, restarting=True), started(machine)]
    await store.report("w1", *seen)
    for start in range(3):
        assert await store.report_again("w1", *seen[start:]) == 3
    assert await events_of(store, machine) == ["launch", "start", "exit", "start"]


async def test_reports_that_overlap_and_race_take_effect_once(dsn: str) -> None:
    async with running_store(dsn, seed=1) as one, running_store(dsn, seed=2) as two:
        await one.worker()
        await one.app()
        machines = [await one.create() for _ in range(5)]
        random = Random(3)
        seen = [started(random.choice(machines), restarts=n) for n in range(150)]
        for number, observation in enumerate(seen, 1):
            observation.sequence = number

        async def send(store: Store, ends: list[int]) -> None:
            for end in ends:
                assert await store.report_again("w1", *seen[:end]) >= end

        await asyncio.gather(send(one, [10, 60, 150]), send(two, [40, 150]), send(one, [100, 150]), send(two, [5, 150]))
        starts = sum([(await events_of(two, machine)).count("start") for machine in machines])
        assert starts == 150


async def test_a_gap_is_refused_and_nothing_after_it_takes_effect(store: Store) -> None:
    machine = await store.create()
    late = started(machine)
    late.sequence = 2
    with pytest.raises(Conflict, match="1 is expected"):
        await store.report_again("w1", late)
    assert await events_of(store, machine) == ["launch"]


async def test_a_new_journal_begins_at_one_and_an_old_one_goes_on_where_it_was(store: Store) -> None:
    machine = await store.create()
    await store.report("w1", started(machine))
    assert (await store.worker(journal="j2")).last_sequence == 0
    first = exited(machine, restarting=True)
    first.sequence = 1
    assert await store.report_again("w1", first, journal="j2") == 1
    with pytest.raises(NotFound, match="register it first"):
        await store.report_again("w1", first, journal="j1")
    assert (await store.worker(journal="j1")).last_sequence == 1
    assert await store.report_again("w1", first, journal="j1") == 1
    assert await events_of(store, machine) == ["launch", "start", "exit"]


async def test_only_registered_workers_report_and_live(store: Store) -> None:
    for worker, journal in (("w9", "j1"), ("w1", "other"), ("w\0", "j")):
        with pytest.raises(NotFound, match="register it first"):
            await store.report_again(worker, pb.Observation(sequence=1), journal=journal)
        with pytest.raises(NotFound, match="register it first"):
            await store.stub.Heartbeat(pb.HeartbeatRequest(worker_id=worker, journal_id=journal))


async def test_what_other_workers_see_of_a_machine_changes_nothing(store: Store) -> None:
    await store.worker("w2")
    machine = await store.create()
    assert await store.report("w2", started(machine), exited(machine), destroyed(machine), left(machine)) == 4
    assert (await store.get(machine.id)).machine.revision == machine.revision


async def test_machines_that_do_not_exist_do_not_hold_up_a_journal(store: Store) -> None:
    machine = await store.create()
    ghost = pb.MachineRecord(id="001ffffffffffff")
    assert await store.report("w1", started(ghost), started(machine), exited(ghost)) == 3
    assert await store.state(machine.id) == MACHINE_STATE_STARTED


async def test_a_heartbeat_is_not_in_the_log_and_waits_for_no_writer(store: Store, dsn: str) -> None:
    before = await store.workers()
    async with connection_to(dsn) as connection, connection.transaction():
        revision = await connection.fetchval("SELECT revision FROM counter FOR UPDATE")
        await connection.execute("UPDATE workers SET cordoned = cordoned")
        await store.stub.Heartbeat(pb.HeartbeatRequest(worker_id="w1", journal_id="j1"), timeout=2)
        assert await connection.fetchval("SELECT revision FROM counter") == revision
    after = await store.workers()
    assert after["w1"].heartbeat_at.ToNanoseconds() > before["w1"].heartbeat_at.ToNanoseconds()


async def test_registering_again_changes_only_what_changed(store: Store) -> None:
    first = await store.worker("w2")
    again = await store.worker("w2")
    assert again.worker.number == first.worker.number == 2
    changed = await store.worker("w2", Resources(memory_bytes=2**40))
    assert (changed.worker.number, changed.worker.capacity.memory_bytes) == (2, 2**40)


async def test_a_worker_cannot_offer_less_than_is_reserved_on_it(store: Store) -> None:
    await store.create()
    with pytest.raises(InvalidConfig, match="memory_bytes") as refused:
        await store.worker("w1", Resources(shared_cpu_millicores=1000, memory_bytes=1, disk_bytes=2**40))
    assert [violation.field for violation in refused.value.violations] == ["capacity.memory_bytes"]


async def full_worker_and_another(store: Store) -> pb.MachineRecord:
    """A machine that runs on a worker without room for more, beside one with room."""
    await store.worker("small", NEED)
    await store.worker("w2")
    machine = await store.create(workers=["small"])
    await store.report("small", started(machine))
    return machine


async def test_a_machine_without_room_for_its_update_moves_and_its_old_place_is_held(store: Store) -> None:
    machine = await full_worker_and_another(store)
    moved = await store.update(machine.id, need=MORE, workers=["w2"])
    assert (moved.worker_id, moved.worker_number, moved.leaving_worker_id) == ("w2", 3, "small")
    assert (moved.reserved, moved.leaving_reserved, moved.state) == (MORE, NEED, MACHINE_STATE_RESTARTING)
    assert (await store.reserved("small"), await store.reserved("w2")) == (NEED, MORE)

    await store.report("small", exited(machine))
    got = (await store.get(machine.id)).machine
    assert (got.leaving_worker_id, got.state) == ("", MACHINE_STATE_RESTARTING)
    assert (await store.reserved("small"), await store.reserved("w2")) == (Resources(), MORE)

    await store.report("small", left(machine))
    await store.report("w2", started(moved))
    assert await store.state(machine.id) == MACHINE_STATE_STARTED
    assert await events_of(store, machine) == ["launch", "start", "update", "exit", "start"]


async def test_a_worker_that_lets_go_without_an_exit_frees_its_place_too(store: Store) -> None:
    machine = await full_worker_and_another(store)
    await store.update(machine.id, need=MORE, workers=["w2"])
    await store.report("small", left(machine))
    assert (await store.get(machine.id)).machine.leaving_worker_id == ""
    assert await store.reserved("small") == Resources()


async def test_a_restart_by_its_policy_on_the_old_worker_lets_nothing_go(store: Store) -> None:
    machine = await full_worker_and_another(store)
    await store.update(machine.id, need=MORE, workers=["w2"])
    await store.report("small", exited(machine, restarting=True))
    assert (await store.get(machine.id)).machine.leaving_worker_id == "small"


async def test_a_machine_that_was_never_asked_to_run_has_nothing_to_leave(store: Store) -> None:
    await store.worker("small", NEED)
    machine = await store.create(workers=["small"], launch=False)
    moved = await store.update(machine.id, need=MORE, workers=["w1"])
    assert (moved.worker_id, moved.leaving_worker_id) == ("w1", "")
    assert await store.reserved("small") == Resources()


async def test_a_machine_on_the_move_can_move_on_but_not_back(store: Store) -> None:
    machine = await full_worker_and_another(store)
    await store.worker("middle", MORE)
    await store.update(machine.id, need=MORE, workers=["middle"])
    most = Resources(shared_cpu_millicores=3000, memory_bytes=2**28, disk_bytes=2**30)
    await store.worker("small", most)
    with pytest.raises(NoCapacity):
        await store.update(machine.id, need=most, workers=["small"])
    moved = await store.update(machine.id, need=most, workers=["small", "w2"])
    assert (moved.worker_id, moved.leaving_worker_id) == ("w2", "small")
    assert await store.reserved("middle") == Resources()
    assert await store.reserved("small") == NEED


async def test_a_machine_that_stops_during_its_move_has_stopped_when_the_old_worker_let_go(store: Store) -> None:
    machine = await full_worker_and_another(store)
    await store.update(machine.id, need=MORE, workers=["w2"], skip_launch=True)
    assert await store.state(machine.id) == MACHINE_STATE_STOPPING
    await store.report("small", exited(machine))
    assert await store.state(machine.id) == MACHINE_STATE_STOPPED


async def test_a_machine_destroyed_during_its_move_frees_both_places(store: Store) -> None:
    machine = await full_worker_and_another(store)
    moved = await store.update(machine.id, need=MORE, workers=["w2"])
    await store.verb(machine.id, pb.VERB_DESTROY, force=True)
    await store.report("w2", destroyed(moved))
    got = (await store.get(machine.id)).machine
    assert (got.state, got.leaving_worker_id) == (MACHINE_STATE_DESTROYED, "small")
    assert (await store.reserved("small"), await store.reserved("w2")) == (NEED, Resources())
    await store.report("small", destroyed(machine))
    assert (await store.get(machine.id)).machine.leaving_worker_id == ""
    assert await store.reserved("small") == Resources()
