"""Leases, metadata, versions and what else is asked of a machine, on a real store."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

import pytest
from google.protobuf.duration_pb2 import Duration
from skerry.store.v1 import store_pb2 as pb
from skerry.types.v1.machine_pb2 import (
    MACHINE_STATE_STARTED,
    MACHINE_STATE_STARTING,
    MACHINE_STATE_STOPPED,
    MACHINE_STATE_SUSPENDED,
    MACHINE_STATE_SUSPENDING,
)

from services.runtime.errors import Conflict, InvalidConfig, LeaseHeld, NotFound, WrongState
from tests.integration.machine_store.stores import APP, Store, about, connection_to, exited, running_store, started
from tests.support import eventually


def lease(nonce: str, seconds: int = 30, *, owner: str = "ann") -> pb.NewLease:
    return pb.NewLease(nonce=nonce, owner=owner, description="test", ttl=Duration(seconds=seconds))


async def take(store: Store, machine: str, nonce: str, seconds: int = 30, *, held: str = "") -> pb.Lease:
    request = pb.AcquireLeaseRequest(machine_id=machine, lease=lease(nonce, seconds), held_nonce=held)
    return (await store.stub.AcquireLease(request)).lease


async def give_back(store: Store, machine: str, nonce: str = "", *, force: bool = False) -> pb.Lease:
    request = pb.ReleaseLeaseRequest(machine_id=machine, held_nonce=nonce, force=force, who="root@example")
    return (await store.stub.ReleaseLease(request)).lease


async def stop(store: Store, machine: str, nonce: str | None) -> pb.ApplyVerbResponse:
    return await store.stub.ApplyVerb(
        pb.ApplyVerbRequest(machine_id=machine, verb=pb.VERB_STOP, source="user", lease_nonce=nonce)
    )


async def verb(store: Store, machine: str, what: pb.Verb.ValueType) -> pb.ApplyVerbResponse:
    return await store.verb(machine, what)


async def change(
    store: Store, machine: str, *delete: str, nonce: str | None = None, **entries: str
) -> pb.MachineRecord:
    request = pb.ChangeMetadataRequest(machine_id=machine, set=entries, delete=delete, lease_nonce=nonce)
    return (await store.stub.ChangeMetadata(request)).machine


async def events_of(store: Store, machine: str) -> list[tuple[str, str]]:
    listed = await store.stub.ListMachineEvents(pb.ListMachineEventsRequest(machine_id=machine, limit=100))
    return [(event.type, event.status) for event in listed.events]


async def test_a_leased_machine_is_changed_with_the_nonce_alone(store: Store) -> None:
    machine = (await store.create()).id
    await take(store, machine, "n1")
    for nonce in ("", "n2"):
        with pytest.raises(LeaseHeld, match="leased by ann"):
            await stop(store, machine, nonce)
        with pytest.raises(LeaseHeld):
            await change(store, machine, nonce=nonce, a="1")
        with pytest.raises(LeaseHeld):
            await store.update(machine, lease_nonce=nonce)
    updated = await store.update(machine, lease_nonce="n1")
    assert (await change(store, machine, nonce="n1", a="1")).instance_id == updated.instance_id
    assert (await stop(store, machine, "n1")).changed


async def test_what_the_region_does_by_itself_asks_for_no_lease(store: Store) -> None:
    machine = await store.create()
    await take(store, machine.id, "n1")
    await store.report("w1", started(machine))
    assert await store.state(machine.id) == MACHINE_STATE_STARTED
    assert (await stop(store, machine.id, None)).changed
    assert (await store.get(machine.id)).machine.lease.nonce == "n1"


async def test_of_many_who_want_one_lease_at_once_one_gets_it(dsn: str) -> None:
    async with running_store(dsn, seed=1) as one, running_store(dsn, seed=2) as other:
        await one.worker()
        await one.app()
        machine = (await one.create()).id

        async def attempt(number: int) -> str:
            try:
                return (await take(one if number % 2 else other, machine, f"n{number}")).nonce
            except LeaseHeld:
                return ""

        got = [nonce for nonce in await asyncio.gather(*map(attempt, range(40))) if nonce]
        assert got == [(await other.get(machine)).machine.lease.nonce]


async def test_a_lease_ends_by_the_clock_of_the_database(store: Store, dsn: str) -> None:
    machine = (await store.create()).id
    taken = await take(store, machine, "n1", 1)
    with pytest.raises(LeaseHeld):
        await take(store, machine, "n2")
    end = taken.expires_at.ToNanoseconds() / 1e9
    async with connection_to(dsn) as connection:

        async def has_ended() -> bool:
            ended: bool = await connection.fetchval("SELECT to_timestamp($1::float8) <= clock_timestamp()", end)
            return ended

        assert not await has_ended()
        await eventually(has_ended, seconds=2)
    assert not (await store.get(machine)).machine.HasField("lease")
    with pytest.raises(NotFound):
        await give_back(store, machine, "n1")
    assert (await take(store, machine, "n2")).nonce == "n2"
    with pytest.raises(LeaseHeld):
        await take(store, machine, "n3", held="n1")


async def test_leases_survive_the_store_and_changes_of_the_machine(store: Store, dsn: str) -> None:
    machine = await store.create()
    await take(store, machine.id, "n1", 600)
    await store.report("w1", started(machine))
    await store.update(machine.id, lease_nonce="n1")
    async with running_store(dsn, seed=3) as another:
        assert (await another.get(machine.id)).machine.lease.nonce == "n1"
        with pytest.raises(LeaseHeld):
            await stop(another, machine.id, "")


async def test_a_machine_can_be_created_with_a_lease(store: Store) -> None:
    request = store.request()
    request.lease.CopyFrom(lease("n1", 60))
    made = await store.stub.CreateMachine(request)
    assert made.machine.lease.nonce == "n1"
    with pytest.raises(LeaseHeld):
        await take(store, made.machine.id, "n2")
    assert (await give_back(store, made.machine.id, "n1")).owner == "ann"
    assert (await take(store, made.machine.id, "n2")).instance_id == made.machine.instance_id


async def test_destroying_what_is_being_destroyed_already_asks_for_no_lease(store: Store) -> None:
    machine = (await store.create()).id
    await take(store, machine, "n1")
    for nonce, changed in (("n1", True), ("", False)):
        request = pb.ApplyVerbRequest(
            machine_id=machine, verb=pb.VERB_DESTROY, source="user", force=True, lease_nonce=nonce
        )
        assert (await store.stub.ApplyVerb(request)).changed is changed


async def test_a_lease_that_is_taken_away_leaves_an_event_that_names_who_did_it(store: Store) -> None:
    machine = (await store.create()).id
    await take(store, machine, "n1")
    assert (await give_back(store, machine, "n1", force=True)).nonce == "n1"
    assert [kind for kind, _ in await events_of(store, machine)] == ["launch"]
    await take(store, machine, "n2")
    assert (await give_back(store, machine, force=True)).nonce == "n2"
    kind, status = (await events_of(store, machine))[0]
    assert kind == "lease_release"
    assert status.startswith("taken by root@example from ann, who held it until 2")
    with pytest.raises(NotFound):
        await give_back(store, machine, force=True)


async def test_taking_a_lease_is_no_change_of_the_machine_that_its_owner_sees(store: Store) -> None:
    before = (await store.get((await store.create()).id)).machine
    await take(store, before.id, "n1")
    after = (await store.get(before.id, events=10)).machine
    assert after.updated_at == before.updated_at
    assert after.revision == before.revision + 1
    assert [kind for kind, _ in await events_of(store, before.id)] == ["launch"]


async def test_metadata_change_without_a_version_wherever_they_are_shown(store: Store) -> None:
    machine = await store.create()
    changed = await change(store, machine.id, team="edge", empty="")
    assert changed.instance_id == machine.instance_id
    whole = (await store.get(machine.id)).machine
    expected = {"team": "edge", "empty": ""}
    assert dict(whole.config.metadata) == dict(whole.spec.metadata.entries) == dict(whole.metadata) == expected
    (row,) = [
        one
        async for part in store.stub.ListMachines(
            pb.ListMachinesRequest(app_id=APP, metadata={"team": "edge"}, view=pb.MACHINE_VIEW_FULL)
        )
        for one in part.machines
    ]
    assert dict(row.config.metadata) == expected
    await change(store, machine.id, "team", "not-there")
    assert dict((await store.get(machine.id)).machine.config.metadata) == {"empty": ""}
    versions = await store.stub.ListMachineVersions(pb.ListMachineVersionsRequest(machine_id=machine.id, limit=9))
    assert [version.instance_id for version in versions.versions] == [machine.instance_id]


async def test_a_watcher_sees_metadata_as_they_were(store: Store) -> None:
    machine = await store.create()
    revision = (await change(store, machine.id, team="edge")).revision
    await change(store, machine.id, team="core")
    stream = store.stub.Watch(
        pb.WatchRequest(
            from_revision=revision - 1,
            filter=pb.WatchFilter(machine_id=machine.id, view=pb.MACHINE_VIEW_FULL),
        )
    )
    seen: list[str] = []
    async for response in stream:
        seen += [change.machine.config.metadata["team"] for change in response.changes]
        if len(seen) >= 2:
            break
    stream.cancel()
    assert seen == ["edge", "core"]


async def test_a_new_version_brings_its_own_metadata(store: Store) -> None:
    machine = await store.create()
    await change(store, machine.id, team="edge")
    await store.update(machine.id)
    assert dict((await store.get(machine.id)).machine.config.metadata) == {}


async def test_metadata_that_cannot_be_kept_are_refused(store: Store) -> None:
    machine = (await store.create()).id
    for entries in ({"": "x"}, {"k": "a\0b"}, {"k": "x" * 70_000}):
        with pytest.raises(InvalidConfig, match="metadata"):
            await change(store, machine, **entries)


async def test_many_who_change_metadata_at_once_lose_nothing(store: Store) -> None:
    machine = (await store.create()).id
    calls: list[Awaitable[pb.MachineRecord]] = [change(store, machine, **{f"k{n}": str(n)}) for n in range(12)]
    await asyncio.gather(*calls)
    assert set((await store.get(machine)).machine.config.metadata) == {f"k{n}" for n in range(12)}


async def test_versions_are_listed_newest_first_with_what_the_user_wrote(store: Store) -> None:
    first = await store.create()
    second = await store.update(first.id, image="caddy")
    request = pb.ListMachineVersionsRequest(machine_id=first.id, app_id=APP, limit=10)
    listed = (await store.stub.ListMachineVersions(request)).versions
    assert [(one.instance_id, one.config.image) for one in listed] == [
        (second.instance_id, "caddy"),
        (first.instance_id, "nginx"),
    ]
    request.limit = 1
    assert [one.instance_id for one in (await store.stub.ListMachineVersions(request)).versions] == [second.instance_id]
    request.machine_id = "00100000000000"
    with pytest.raises(NotFound):
        await store.stub.ListMachineVersions(request)


async def test_cordoning_leaves_its_event_once_and_stays_through_an_update(store: Store) -> None:
    machine = (await store.create()).id
    assert (await verb(store, machine, pb.VERB_CORDON)).changed
    assert not (await verb(store, machine, pb.VERB_CORDON)).changed
    await store.update(machine)
    assert (await store.get(machine)).machine.cordoned
    assert (await verb(store, machine, pb.VERB_UNCORDON)).changed
    assert not (await store.get(machine)).machine.cordoned
    assert [kind for kind, _ in await events_of(store, machine)] == ["uncordon", "update", "cordon", "launch"]


async def test_a_suspended_machine_is_resumed_in_the_generation_that_it_was_in(store: Store) -> None:
    machine = await store.create()
    with pytest.raises(WrongState, match="wait until it is started"):
        await verb(store, machine.id, pb.VERB_SUSPEND)
    await store.report("w1", started(machine))
    assert (await verb(store, machine.id, pb.VERB_SUSPEND)).machine.state == MACHINE_STATE_SUSPENDING
    await store.report("w1", about(machine, suspended=pb.Suspended()))
    assert await store.state(machine.id) == MACHINE_STATE_SUSPENDED
    resumed = (await verb(store, machine.id, pb.VERB_START)).machine
    assert (resumed.state, resumed.generation) == (MACHINE_STATE_STARTING, machine.generation)
    await store.report("w1", started(machine))
    assert await store.state(machine.id) == MACHINE_STATE_STARTED
    assert (await events_of(store, machine.id))[:4] == [
        ("start", "started"),
        ("start", "starting"),
        ("suspend", "suspended"),
        ("suspend", "suspending"),
    ]


async def test_a_machine_whose_driver_cannot_suspend_runs_on_and_says_why(store: Store) -> None:
    machine = await store.create()
    await store.report("w1", started(machine))
    await verb(store, machine.id, pb.VERB_SUSPEND)
    await store.report("w1", about(machine, not_suspended=pb.NotSuspended(reason="this driver cannot")))
    record = (await store.get(machine.id)).machine
    assert (record.state, record.desired, record.reason) == (
        MACHINE_STATE_STARTED,
        pb.DESIRED_STATE_STARTED,
        "this driver cannot",
    )


async def test_a_suspended_machine_that_is_killed_has_stopped(store: Store) -> None:
    machine = await store.create()
    await store.report("w1", started(machine))
    await verb(store, machine.id, pb.VERB_SUSPEND)
    await store.report("w1", about(machine, suspended=pb.Suspended()), exited(machine))
    assert await store.state(machine.id) == MACHINE_STATE_STOPPED


async def test_what_a_machine_waits_for_is_noted_once_and_gone_when_it_runs(store: Store) -> None:
    machine = await store.create()
    request = pb.ExplainDelayRequest(
        machine_id=machine.id,
        expected_generation=machine.generation,
        expected_state=MACHINE_STATE_STARTING,
        reason="it waits for worker w1",
    )
    assert (await store.stub.ExplainDelay(request)).changed
    assert not (await store.stub.ExplainDelay(request)).changed
    assert (await store.get(machine.id)).machine.reason == "it waits for worker w1"
    assert (await events_of(store, machine.id))[0] == ("delay", "it waits for worker w1")
    await store.report("w1", started(machine))
    assert (await store.get(machine.id)).machine.reason == ""
    with pytest.raises(Conflict):
        await store.stub.ExplainDelay(request)
