"""Verbs, updates and observations on single machines."""

from __future__ import annotations

import asyncio

import pytest
from skerry.store.v1 import store_pb2 as pb
from skerry.types.v1.machine_pb2 import (
    MACHINE_STATE_DESTROYED,
    MACHINE_STATE_DESTROYING,
    MACHINE_STATE_FAILED,
    MACHINE_STATE_RESTARTING,
    MACHINE_STATE_STARTED,
    MACHINE_STATE_STARTING,
    MACHINE_STATE_STOPPED,
    MACHINE_STATE_STOPPING,
)
from skerry.types.v1.resources_pb2 import Resources

from services.runtime.errors import Conflict, NameTaken, NoCapacity, NotFound, StillRunning, VersionMismatch, WrongState
from tests.integration.machine_store.stores import (
    APP,
    NEED,
    Store,
    checks,
    destroyed,
    exited,
    failed,
    running_store,
    started,
)


async def test_a_life_leaves_its_events_newest_first(store: Store) -> None:
    machine = await store.create("m")
    await store.report("w1", started(machine))
    machine = (await store.verb(machine.id, pb.VERB_STOP)).machine
    await store.report("w1", exited(machine, requested=True))
    machine = (await store.verb(machine.id, pb.VERB_START)).machine
    await store.report("w1", started(machine))
    machine = (await store.verb(machine.id, pb.VERB_RESTART)).machine
    await store.report("w1", exited(machine), started(machine))
    await store.verb(machine.id, pb.VERB_DESTROY, force=True)
    await store.report("w1", destroyed(machine))
    got = await store.get(machine.id, events=100)
    assert [(e.type, e.status, e.source) for e in reversed(got.events)] == [
        ("launch", "starting", "user"),
        ("start", "started", "flyd"),
        ("stop", "stopping", "user"),
        ("exit", "stopped", "flyd"),
        ("start", "starting", "user"),
        ("start", "started", "flyd"),
        ("restart", "restarting", "user"),
        ("exit", "stopped", "flyd"),
        ("start", "started", "flyd"),
        ("destroy", "destroying", "user"),
        ("destroy", "destroyed", "flyd"),
    ]
    assert [e.id for e in got.events] == sorted((e.id for e in got.events), reverse=True)
    assert got.events[-4].request.exit_event.requested_stop
    assert got.events[-4].request.monitor_event.exit_event.requested_stop
    assert (got.machine.state, got.machine.HasField("reserved")) == (MACHINE_STATE_DESTROYED, False)


async def test_a_verb_answers_the_state_before_and_whether_there_was_something_to_do(store: Store) -> None:
    machine = await store.create()
    first = await store.verb(machine.id, pb.VERB_STOP)
    assert (first.previous_state, first.machine.state, first.changed) == (
        MACHINE_STATE_STARTING,
        MACHINE_STATE_STOPPING,
        True,
    )
    await store.report("w1", exited(machine))
    again = await store.verb(machine.id, pb.VERB_STOP)
    assert (again.machine.state, again.changed) == (MACHINE_STATE_STOPPED, False)
    assert again.machine.revision == (await store.get(machine.id)).machine.revision


async def test_a_machine_that_never_ran_is_stopped_at_once(store: Store) -> None:
    machine = await store.create(launch=False)
    assert (await store.verb(machine.id, pb.VERB_STOP)).machine.state == MACHINE_STATE_STOPPED


async def test_each_start_begins_a_generation(store: Store) -> None:
    machine = await store.create(launch=False)
    machine = (await store.verb(machine.id, pb.VERB_START)).machine
    assert (machine.generation, machine.desired) == (1, pb.DESIRED_STATE_STARTED)
    assert machine.HasField("generation_at")
    await store.report("w1", started(machine), checks(machine, "passing"), exited(machine, restarting=True, restarts=3))
    assert (await store.get(machine.id)).machine.restart_count == 3
    machine = (await store.verb(machine.id, pb.VERB_RESTART)).machine
    assert (machine.generation, machine.restart_count, len(machine.checks)) == (2, 0, 0)


async def test_an_observation_of_an_older_generation_leaves_its_event_and_nothing_else(store: Store) -> None:
    old = await store.create()
    await store.report("w1", started(old))
    new = (await store.verb(old.id, pb.VERB_RESTART)).machine
    await store.report("w1", exited(old), failed(old), checks(old, "critical"))
    got = await store.get(old.id, events=2)
    assert (got.machine.state, got.machine.reason, len(got.machine.checks)) == (MACHINE_STATE_RESTARTING, "", 0)
    assert [e.type for e in got.events] == ["fail", "exit"]
    await store.report("w1", started(new))
    assert await store.state(old.id) == MACHINE_STATE_STARTED


async def test_a_machine_that_ended_by_itself_is_stopped_and_not_asked_to_run(store: Store) -> None:
    machine = await store.create()
    await store.report("w1", started(machine), exited(machine))
    got = (await store.get(machine.id)).machine
    assert (got.state, got.desired) == (MACHINE_STATE_STOPPED, pb.DESIRED_STATE_STOPPED)


async def test_a_machine_that_its_policy_starts_again_is_restarting(store: Store) -> None:
    machine = await store.create()
    await store.report("w1", started(machine), exited(machine, restarting=True, restarts=1))
    assert await store.state(machine.id) == MACHINE_STATE_RESTARTING
    await store.report("w1", started(machine, restarts=1))
    got = (await store.get(machine.id)).machine
    assert (got.state, got.generation, got.restart_count) == (MACHINE_STATE_STARTED, 1, 1)


async def test_a_machine_that_destroys_itself_does_when_it_has_ended(store: Store) -> None:
    machine = await store.create(auto_destroy=True)
    await store.report("w1", started(machine), exited(machine, restarting=True))
    assert await store.state(machine.id) == MACHINE_STATE_RESTARTING
    await store.report("w1", started(machine), exited(machine))
    got = (await store.get(machine.id)).machine
    assert (got.state, got.desired) == (MACHINE_STATE_DESTROYING, pb.DESIRED_STATE_DESTROYED)
    await store.report("w1", destroyed(machine))
    assert await store.list() == []


async def test_a_machine_that_cannot_run_has_failed_and_says_why(store: Store) -> None:
    machine = await store.create()
    await store.report("w1", failed(machine, "the image nginx has no command: set init.exec\0"))
    got = await store.get(machine.id, events=1)
    assert (got.machine.state, got.machine.desired) == (MACHINE_STATE_FAILED, pb.DESIRED_STATE_STOPPED)
    assert got.machine.reason.startswith("the image nginx has no command: set init.exec")
    assert (got.events[0].type, got.events[0].status) == ("fail", got.machine.reason)
    assert (await store.verb(machine.id, pb.VERB_START)).machine.reason == ""


async def test_checks_are_shown_and_make_no_event(store: Store) -> None:
    machine = await store.create()
    await store.report("w1", started(machine), checks(machine, "critical", "passing"))
    before = await store.get(machine.id, events=10)
    assert [check.status for check in before.machine.checks] == ["critical", "passing"]
    await store.report("w1", checks(machine, "critical", "passing"))
    after = await store.get(machine.id, events=10)
    assert after.machine.revision == before.machine.revision
    assert [e.type for e in after.events] == ["start", "launch"]


async def test_a_stop_that_is_asked_for_again_may_be_harder(store: Store) -> None:
    machine = await store.create()
    await store.report("w1", started(machine))
    await store.verb(machine.id, pb.VERB_STOP)
    request = pb.ApplyVerbRequest(machine_id=machine.id, verb=pb.VERB_STOP, stop=pb.StopOverride(signal="SIGKILL"))
    harder = await store.stub.ApplyVerb(request)
    assert (harder.machine.state, harder.machine.stop.signal) == (MACHINE_STATE_STOPPING, "SIGKILL")
    await store.report("w1", exited(machine))
    assert not (await store.verb(machine.id, pb.VERB_START)).machine.HasField("stop")


async def test_what_runs_is_destroyed_only_with_force(store: Store) -> None:
    machine = await store.create()
    with pytest.raises(StillRunning):
        await store.verb(machine.id, pb.VERB_DESTROY)
    assert (await store.verb(machine.id, pb.VERB_DESTROY, force=True)).machine.state == MACHINE_STATE_DESTROYING
    assert not (await store.verb(machine.id, pb.VERB_DESTROY)).changed
    with pytest.raises(WrongState):
        await store.verb(machine.id, pb.VERB_START)


async def test_a_reservation_is_held_until_nothing_is_left(store: Store) -> None:
    machine = await store.create()
    await store.report("w1", started(machine))
    await store.verb(machine.id, pb.VERB_STOP)
    await store.report("w1", exited(machine))
    await store.verb(machine.id, pb.VERB_DESTROY)
    assert await store.reserved("w1") == NEED
    await store.report("w1", destroyed(machine))
    assert await store.reserved("w1") == Resources()
    assert await store.list() == []
    assert [m.id for m in await store.list(destroyed=True)] == [machine.id]


async def test_a_verb_for_another_generation_is_refused(store: Store) -> None:
    machine = await store.create()
    await store.verb(machine.id, pb.VERB_RESTART, generation=1)
    with pytest.raises(Conflict, match="generation 2"):
        await store.verb(machine.id, pb.VERB_STOP, generation=1)


async def test_machines_of_another_app_and_unknown_ones_are_not_there(store: Store) -> None:
    machine = await store.create()
    for request in (
        pb.GetMachineRequest(machine_id=machine.id, app_id="other"),
        pb.GetMachineRequest(machine_id="001aaaaaaaaaaa"),
        pb.GetMachineRequest(machine_id="a\0"),
    ):
        with pytest.raises(NotFound):
            await store.stub.GetMachine(request)
    with pytest.raises(NotFound):
        await store.stub.ApplyVerb(pb.ApplyVerbRequest(machine_id=machine.id, app_id="other", verb=pb.VERB_STOP))
    with pytest.raises(NotFound):
        await store.stub.ListMachineEvents(pb.ListMachineEventsRequest(machine_id="nothing", limit=1))


async def test_an_update_of_a_running_machine_begins_a_generation_of_the_new_version(store: Store) -> None:
    machine = await store.create()
    await store.report("w1", started(machine))
    updated = await store.update(machine.id, current_version=machine.instance_id, image="redis")
    assert (updated.state, updated.generation, updated.worker_id) == (MACHINE_STATE_RESTARTING, 2, "w1")
    got = await store.get(machine.id, events=1)
    assert got.machine.config.image == "redis"
    assert got.machine.instance_id == updated.instance_id != machine.instance_id
    assert got.events[0].type == "update"
    assert dict(got.machine.metadata) == {}


async def test_an_update_of_a_version_that_is_not_the_present_one_is_refused(store: Store) -> None:
    machine = await store.create()
    await store.update(machine.id)
    with pytest.raises(VersionMismatch):
        await store.update(machine.id, current_version=machine.instance_id)


async def test_an_update_that_is_sent_again_takes_effect_once(store: Store) -> None:
    machine = await store.create()
    first = await store.update(machine.id, instance_id="01J" + "0" * 23, current_version=machine.instance_id)
    again = await store.update(machine.id, instance_id="01J" + "0" * 23, current_version=machine.instance_id)
    assert (again.revision, again.generation) == (first.revision, first.generation)
    later = await store.update(machine.id)
    assert (await store.update(machine.id, instance_id=first.instance_id)).revision == later.revision


@pytest.mark.parametrize("launch", [True, False])
async def test_an_update_does_not_start_what_is_stopped(store: Store, launch: bool) -> None:
    machine = await store.create(launch=launch)
    if launch:
        await store.report("w1", started(machine), exited(machine))
    updated = await store.update(machine.id)
    assert (updated.state, updated.desired, updated.generation) == (
        MACHINE_STATE_STOPPED,
        pb.DESIRED_STATE_STOPPED,
        machine.generation,
    )


async def test_an_update_without_launch_stops_what_runs(store: Store) -> None:
    machine = await store.create()
    await store.report("w1", started(machine))
    updated = await store.update(machine.id, skip_launch=True)
    assert (updated.state, updated.generation) == (MACHINE_STATE_STOPPING, 1)
    await store.report("w1", exited(machine))
    assert await store.state(machine.id) == MACHINE_STATE_STOPPED


async def test_an_update_takes_what_it_needs_and_gives_back_the_rest(store: Store) -> None:
    machine = await store.create()
    more = Resources(shared_cpu_millicores=4000, memory_bytes=2**28)
    assert (await store.update(machine.id, need=more)).reserved == more
    assert await store.reserved("w1") == more


async def test_an_update_that_fits_nowhere_changes_nothing(store: Store) -> None:
    machine = await store.create()
    with pytest.raises(NoCapacity):
        await store.update(machine.id, need=Resources(gpus_a10=1), workers=["w1", "nobody"])
    got = (await store.get(machine.id)).machine
    assert (got.revision, got.instance_id) == (machine.revision, machine.instance_id)
    assert await store.reserved("w1") == NEED


async def test_an_update_may_rename_but_not_to_a_taken_name(store: Store) -> None:
    await store.create("taken")
    machine = await store.create("free")
    with pytest.raises(NameTaken):
        await store.update(machine.id, name="taken")
    assert (await store.update(machine.id, name="other")).name == "other"
    assert (await store.create("free")).name == "free"


async def test_writers_of_one_machine_in_two_instances_lose_nothing(dsn: str) -> None:
    async with running_store(dsn, seed=1) as one, running_store(dsn, seed=2) as two:
        await one.worker()
        await one.app()
        machine = await one.create()
        await asyncio.gather(
            *((one, two)[n % 2].verb(machine.id, pb.VERB_RESTART) for n in range(12)),
            one.report("w1", *(checks(machine, "passing", str(n)) for n in range(5))),
        )
        got = await two.get(machine.id, events=100)
        assert got.machine.generation == 13
        assert sum(e.type == "restart" for e in got.events) == 12


async def test_lists_are_oldest_first_and_filtered(store: Store) -> None:
    made = [await store.create(f"m{n}", launch=n % 2 == 0) for n in range(6)]
    assert [m.id for m in await store.list()] == [m.id for m in made]
    request = pb.ListMachinesRequest(app_id=APP, states=[MACHINE_STATE_STARTING], view=pb.MACHINE_VIEW_FULL)
    parts = [part async for part in store.stub.ListMachines(request)]
    assert [m.id for part in parts for m in part.machines] == [m.id for m in made[::2]]
    assert {m.config.image for part in parts for m in part.machines} == {"nginx"}
    for metadata, found in (({"role": "test"}, 6), ({"role": "other"}, 0), ({"role": "test", "more": ""}, 0)):
        request = pb.ListMachinesRequest(metadata=metadata)
        assert len([m async for part in store.stub.ListMachines(request) for m in part.machines]) == found


async def test_long_lists_come_in_parts(store: Store) -> None:
    await asyncio.gather(*(store.create(launch=False) for _ in range(450)))
    parts = [len(part.machines) async for part in store.stub.ListMachines(pb.ListMachinesRequest(app_id=APP))]
    assert parts == [200, 200, 50]
