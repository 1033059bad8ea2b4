"""Volumes in the store: their room, who has them, what they begin with, and how they go."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from skerry.store.v1 import store_pb2 as pb
from skerry.store.v1 import volume_store_pb2 as vs
from skerry.types.v1.resources_pb2 import Resources

from services.runtime.errors import (
    IdempotencyConflict,
    InvalidConfig,
    MissingReference,
    NoCapacity,
    NotFound,
    VolumeElsewhere,
    WrongState,
)
from tests.integration.machine_store.stores import APP, NEED, Store, connection_to, destroyed

GIB = 2**30


def request(store: Store, size: int = GIB, workers: Sequence[str] = ("w1",), **how: Any) -> vs.CreateVolumeRequest:
    return vs.CreateVolumeRequest(
        volume_id=f"vol_001{store.random.getrandbits(52):013x}",
        app_id=APP,
        region="syd",
        size_bytes=size,
        candidate_worker_ids=workers,
        **{"name": "data", "snapshot_retention_days": 5, **how},
    )


async def create(store: Store, size: int = GIB, workers: Sequence[str] = ("w1",), **how: Any) -> vs.VolumeRecord:
    return (await store.volumes.CreateVolume(request(store, size, workers, **how))).volume


async def get(store: Store, volume_id: str) -> vs.VolumeRecord:
    return (await store.volumes.GetVolume(vs.GetVolumeRequest(volume_id=volume_id))).volume


async def report(
    store: Store, volume: vs.VolumeRecord, state: vs.VolumeState.ValueType, *, worker: str = "", size: int = 0
) -> vs.VolumeRecord:
    seen = vs.VolumeReport(volume_id=volume.id, state=state, size_bytes=size or volume.size_bytes)
    answer = await store.volumes.ReportVolumes(
        vs.ReportVolumesRequest(worker_id=worker or volume.worker_id, volumes=[seen])
    )
    return answer.volumes[0]


async def created(store: Store, size: int = GIB, workers: Sequence[str] = ("w1",), **how: Any) -> vs.VolumeRecord:
    """A volume that its worker has made."""
    return await report(store, await create(store, size, workers, **how), vs.VOLUME_STATE_CREATED)


async def snapshot(store: Store, volume: vs.VolumeRecord, *, done: bool = True) -> vs.SnapshotRecord:
    taken = (
        await store.volumes.CreateSnapshot(
            vs.CreateSnapshotRequest(snapshot_id=f"vs_001{store.random.getrandbits(52):013x}", volume_id=volume.id)
        )
    ).snapshot
    if not done:
        return taken
    seen = vs.SnapshotReport(
        snapshot_id=taken.id, state=vs.SNAPSHOT_STATE_CREATED, size_bytes=7, digest=f"sha256:{'0' * 64}"
    )
    answer = await store.volumes.ReportVolumes(vs.ReportVolumesRequest(worker_id=taken.worker_id, snapshots=[seen]))
    return answer.snapshots[0]


async def delete(store: Store, volume: vs.VolumeRecord) -> vs.VolumeRecord:
    return (await store.volumes.DeleteVolume(vs.DeleteVolumeRequest(volume_id=volume.id))).volume


async def machine_at(store: Store, volume: vs.VolumeRecord, **how: Any) -> pb.MachineRecord:
    wanted = store.request(**how)
    wanted.volume_id = volume.id
    return (await store.stub.CreateMachine(wanted)).machine


async def test_a_volume_reserves_its_disk_until_its_worker_has_removed_it(store: Store) -> None:
    volume = await create(store, 3 * GIB)
    assert (volume.state, volume.worker_id, volume.zone, volume.size_bytes) == (
        vs.VOLUME_STATE_CREATING,
        "w1",
        "a",
        3 * GIB,
    )
    assert (await store.reserved("w1")).disk_bytes == 3 * GIB
    volume = await report(store, volume, vs.VOLUME_STATE_CREATED)
    assert volume.state == vs.VOLUME_STATE_CREATED
    assert (await delete(store, volume)).state == vs.VOLUME_STATE_PENDING_DESTROY
    assert (await store.reserved("w1")).disk_bytes == 3 * GIB
    assert (await report(store, volume, vs.VOLUME_STATE_DESTROYING)).state == vs.VOLUME_STATE_DESTROYING
    assert (await report(store, volume, vs.VOLUME_STATE_DESTROYED)).state == vs.VOLUME_STATE_DESTROYED
    assert await store.reserved("w1") == Resources()
    assert [each.id for each in (await store.volumes.ListVolumes(vs.ListVolumesRequest(app_id=APP))).volumes] == [
        volume.id
    ]


async def test_what_another_worker_tells_of_a_volume_changes_nothing(store: Store) -> None:
    volume = await create(store)
    assert (await report(store, volume, vs.VOLUME_STATE_CREATED, worker="w2")) == volume
    assert (await report(store, volume, vs.VOLUME_STATE_DESTROYED)) == volume


async def test_a_volume_goes_where_there_is_room_for_it_and_for_its_machine(store: Store) -> None:
    await store.worker("small", Resources(shared_cpu_millicores=500, disk_bytes=10 * GIB))
    kept = Resources(shared_cpu_millicores=1000, memory_bytes=GIB, disk_bytes=GIB)
    volume = await create(store, GIB, ("small", "w1"), kept_for_machine=kept)
    assert volume.worker_id == "w1"
    assert volume.kept_for_machine == kept
    with pytest.raises(NoCapacity):
        await create(store, 11 * GIB, ("small",))
    assert await store.reserved("small") == Resources()


async def test_what_was_kept_for_a_machine_becomes_the_machines(store: Store) -> None:
    await store.worker("w2", Resources(shared_cpu_millicores=1000, memory_bytes=2**28, disk_bytes=3 * GIB))
    volume = await created(store, GIB, ("w2",), kept_for_machine=NEED)
    with pytest.raises(NoCapacity):
        await store.create(workers=["w2"])
    machine = await machine_at(store, volume, workers=["w2"])
    assert machine.worker_id == "w2"
    volume = await get(store, volume.id)
    assert (volume.attached_machine_id, volume.HasField("kept_for_machine")) == (machine.id, False)
    assert await store.reserved("w2") == Resources(
        shared_cpu_millicores=1000, memory_bytes=2**28, disk_bytes=NEED.disk_bytes + GIB
    )


async def test_what_was_kept_stays_when_its_machine_cannot_be_created(store: Store) -> None:
    await store.create("taken")
    before = await store.reserved("w1")
    volume = await created(store, GIB, kept_for_machine=NEED)
    kept = await store.reserved("w1")
    with pytest.raises(Exception, match="taken"):
        await machine_at(store, volume, name="taken")
    assert await store.reserved("w1") == kept
    assert (await get(store, volume.id)).attached_machine_id == ""
    await delete(store, volume)
    await report(store, volume, vs.VOLUME_STATE_DESTROYED)
    assert await store.reserved("w1") == before


async def test_one_machine_has_a_volume_at_a_time_and_only_where_it_is(store: Store) -> None:
    await store.worker("w2")
    volume = await created(store)
    with pytest.raises(VolumeElsewhere, match="w1"):
        await machine_at(store, volume, workers=["w2"])
    with pytest.raises(MissingReference):
        await machine_at(store, vs.VolumeRecord(id="vol_0010000000000000"))
    await store.app("app-2", "other")
    with pytest.raises(MissingReference):
        await machine_at(store, volume, app_id="app-2")
    outcomes = await asyncio.gather(*(machine_at(store, volume) for _ in range(4)), return_exceptions=True)
    machines = [outcome for outcome in outcomes if isinstance(outcome, pb.MachineRecord)]
    assert len(machines) == 1
    for outcome in outcomes:
        if outcome is not machines[0]:
            assert isinstance(outcome, WrongState)
            assert machines[0].id in outcome.message
    assert len(await store.list()) == 1


async def test_a_create_at_a_volume_that_is_repeated_answers_the_same_machine(store: Store) -> None:
    volume = await created(store)
    wanted = store.request(key="once")
    wanted.volume_id = volume.id
    first = await store.stub.CreateMachine(wanted)
    again = await store.stub.CreateMachine(wanted)
    assert (again.machine.id, again.repeated_request) == (first.machine.id, True)


async def test_a_volume_in_use_is_not_destroyed_and_is_free_when_its_machine_is_gone(store: Store) -> None:
    volume = await created(store)
    machine = await machine_at(store, volume)
    with pytest.raises(WrongState, match=machine.id):
        await delete(store, volume)
    await store.verb(machine.id, pb.VERB_DESTROY, force=True)
    assert (await get(store, volume.id)).attached_machine_id == machine.id
    await store.report("w1", destroyed(machine))
    assert (await get(store, volume.id)).attached_machine_id == ""
    assert (await delete(store, volume)).state == vs.VOLUME_STATE_PENDING_DESTROY


async def test_the_log_tells_of_volumes_after_the_machines_in_the_order_of_revisions(store: Store, dsn: str) -> None:
    volume = await created(store)
    machine = await machine_at(store, volume)
    taken = await snapshot(store, volume)
    await store.verb(machine.id, pb.VERB_DESTROY, force=True)
    await store.report("w1", destroyed(machine))
    await delete(store, volume)
    async with connection_to(dsn) as connection:
        head = await connection.fetchval("SELECT revision FROM counter")
    watch = store.stub.Watch(pb.WatchRequest(from_revision=0), timeout=10)
    changes: list[pb.Change] = []
    async for response in watch:
        changes.extend(response.changes)
        if response.revision >= head:
            break
    assert [change.revision for change in changes] == list(range(1, head + 1))
    told = [
        (change.volume.state, bool(change.volume.attached_machine_id))
        for change in changes
        if change.HasField("volume")
    ]
    assert told == [
        (vs.VOLUME_STATE_CREATING, False),
        (vs.VOLUME_STATE_CREATED, False),
        (vs.VOLUME_STATE_CREATED, True),
        (vs.VOLUME_STATE_CREATED, False),
        (vs.VOLUME_STATE_PENDING_DESTROY, False),
    ]
    snapshots = [change.snapshot for change in changes if change.HasField("snapshot")]
    assert [each.state for each in snapshots] == [vs.SNAPSHOT_STATE_CREATING, vs.SNAPSHOT_STATE_CREATED]
    assert snapshots[-1] == taken


async def test_a_watch_of_one_worker_begins_with_its_volumes_and_snapshots(store: Store) -> None:
    await store.worker("w2", zone="b")
    mine, _ = await created(store), await created(store, GIB, ("w2",))
    taken = await snapshot(store, mine)
    filter = pb.WatchFilter(kinds=[pb.RECORD_KIND_VOLUME, pb.RECORD_KIND_SNAPSHOT], worker_id="w1")
    seen: list[pb.Change] = []
    async for response in store.stub.Watch(pb.WatchRequest(filter=filter), timeout=10):
        seen.extend(response.changes)
        if response.snapshot_complete:
            break
    assert {change.volume.id or change.snapshot.id for change in seen} == {mine.id, taken.id}


async def test_a_unique_zone_is_one_without_a_volume_of_the_name_or_without_any(store: Store) -> None:
    await store.worker("w2", zone="b")
    workers = ("w1", "w2")
    assert (await create(store, GIB, workers, require_unique_zone=True)).zone == "a"
    assert (await create(store, GIB, workers, name="logs", require_unique_zone=True)).zone == "a"
    assert (await create(store, GIB, workers, require_unique_zone=True)).zone == "b"
    with pytest.raises(NoCapacity, match="zone") as refusal:
        await create(store, GIB, workers, require_unique_zone=True)
    assert refusal.value.metadata["constraint"] == "zone"
    with pytest.raises(NoCapacity, match="zone"):
        await create(store, GIB, workers, name="third", unique_zone_app_wide=True)


async def test_a_copy_has_its_sources_size_at_least_and_keeps_it_from_going(store: Store) -> None:
    await store.worker("w2", zone="b")
    source = await created(store, 2 * GIB)
    copy = await create(store, 0, ("w1", "w2"), source_volume_id=source.id, require_unique_zone=True)
    assert (copy.size_bytes, copy.worker_id, copy.source_worker_id) == (2 * GIB, "w2", "w1")
    with pytest.raises(WrongState, match=copy.id):
        await delete(store, source)
    with pytest.raises(InvalidConfig):
        await create(store, GIB, source_volume_id=source.id)
    with pytest.raises(WrongState):
        await create(store, 0, source_volume_id=copy.id)
    await report(store, copy, vs.VOLUME_STATE_CREATED)
    await delete(store, source)
    with pytest.raises(MissingReference):
        await create(store, 0, source_volume_id=source.id)


async def test_a_snapshot_outlives_its_volume_and_a_volume_can_begin_with_it(store: Store) -> None:
    volume = await created(store, 2 * GIB)
    taken = await snapshot(store, volume)
    assert (taken.state, taken.volume_size_bytes, taken.size_bytes) == (vs.SNAPSHOT_STATE_CREATED, 2 * GIB, 7)
    await delete(store, volume)
    await report(store, volume, vs.VOLUME_STATE_DESTROYED)
    listed = await store.volumes.ListSnapshots(vs.ListSnapshotsRequest(volume_id=volume.id, app_id=APP))
    assert list(listed.snapshots) == [taken]
    restored = await create(store, 0, source_snapshot_id=taken.id)
    assert (restored.size_bytes, restored.source_snapshot_id, restored.source_worker_id) == (2 * GIB, taken.id, "w1")
    with pytest.raises(WrongState):
        await snapshot(store, volume)
    with pytest.raises(MissingReference):
        await create(store, 0, source_snapshot_id="vs_0010000000000000")


async def test_a_snapshot_expires_when_its_days_are_over_and_nobody_begins_with_it(store: Store, dsn: str) -> None:
    volume = await created(store)
    taken = await snapshot(store, volume)
    restored = await create(store, 0, source_snapshot_id=taken.id)

    async def ask() -> vs.SnapshotState.ValueType:
        seen = vs.SnapshotReport(snapshot_id=taken.id, state=vs.SNAPSHOT_STATE_EXPIRED)
        answer = await store.volumes.ReportVolumes(vs.ReportVolumesRequest(worker_id="w1", snapshots=[seen]))
        return answer.snapshots[0].state

    assert await ask() == vs.SNAPSHOT_STATE_CREATED
    async with connection_to(dsn) as connection:
        await connection.execute("UPDATE snapshots SET created_at = created_at - interval '6 days'")
    assert await ask() == vs.SNAPSHOT_STATE_CREATED
    await report(store, restored, vs.VOLUME_STATE_CREATED)
    assert await ask() == vs.SNAPSHOT_STATE_EXPIRED
    listed = await store.volumes.ListSnapshots(vs.ListSnapshotsRequest(volume_id=volume.id))
    assert not listed.snapshots


async def test_a_volume_only_grows_and_only_as_far_as_its_worker_has_room(store: Store) -> None:
    await store.worker("w2", Resources(disk_bytes=4 * GIB))
    volume = await created(store, 2 * GIB, ("w2",))

    async def extend(size: int) -> vs.VolumeRecord:
        wanted = vs.ExtendVolumeRequest(volume_id=volume.id, app_id=APP, size_bytes=size)
        return (await store.volumes.ExtendVolume(wanted)).volume

    with pytest.raises(InvalidConfig):
        await extend(GIB)
    with pytest.raises(NoCapacity, match="w2") as refusal:
        await extend(5 * GIB)
    assert refusal.value.metadata["constraint"] == "disk"
    grown = await extend(4 * GIB)
    assert (grown.size_bytes, grown.state) == (4 * GIB, vs.VOLUME_STATE_EXTENDING)
    assert (await store.reserved("w2")).disk_bytes == 4 * GIB
    assert (await report(store, grown, vs.VOLUME_STATE_CREATED, size=2 * GIB)).state == vs.VOLUME_STATE_EXTENDING
    assert (await report(store, grown, vs.VOLUME_STATE_CREATED)).state == vs.VOLUME_STATE_CREATED
    await delete(store, volume)
    await report(store, volume, vs.VOLUME_STATE_DESTROYED)
    assert await store.reserved("w2") == Resources()


async def test_repairing_reservations_counts_volumes_and_what_is_kept(store: Store, dsn: str) -> None:
    await created(store, GIB, kept_for_machine=NEED)
    await machine_at(store, await created(store, 2 * GIB))
    before = await store.reserved("w1")
    term = (await store.lead()).term
    lead = pb.DutyTerm(duty="reconcile", term=term)
    assert not (await store.stub.RepairReservations(pb.RepairReservationsRequest(term=lead))).worker_ids
    async with connection_to(dsn) as connection:
        await connection.execute("UPDATE workers SET reserved_disk_bytes = 0, reserved_memory_bytes = 1")
    mended = await store.stub.RepairReservations(pb.RepairReservationsRequest(term=lead))
    assert list(mended.worker_ids) == ["w1"]
    assert await store.reserved("w1") == before


async def test_an_app_that_is_deleted_takes_its_volumes_with_it(store: Store) -> None:
    free, used = await created(store), await created(store)
    machine = await machine_at(store, used)
    await store.stub.DeleteApp(pb.DeleteAppRequest(name="web", source="user"))
    assert (await get(store, free.id)).state == vs.VOLUME_STATE_PENDING_DESTROY
    assert (await get(store, used.id)).state == vs.VOLUME_STATE_SCHEDULING_DESTROY
    await store.report("w1", destroyed(machine))
    assert (await get(store, used.id)).state == vs.VOLUME_STATE_PENDING_DESTROY
    with pytest.raises(NotFound):
        await create(store)


async def test_an_idempotency_key_stands_for_one_volume(store: Store) -> None:
    wanted = request(store, idempotency_key="k", request_fingerprint=b"1")
    first = (await store.volumes.CreateVolume(wanted)).volume
    wanted.volume_id = "vol_001fffffffffffff"
    assert (await store.volumes.CreateVolume(wanted)).volume == first
    wanted.request_fingerprint = b"2"
    with pytest.raises(IdempotencyConflict):
        await store.volumes.CreateVolume(wanted)
    assert (await store.reserved("w1")).disk_bytes == GIB


async def test_how_snapshots_are_kept_can_be_changed_until_the_volume_goes(store: Store) -> None:
    volume = await created(store, auto_backup_enabled=True)
    wanted = vs.UpdateVolumeRequest(volume_id=volume.id, snapshot_retention_days=9)
    changed = (await store.volumes.UpdateVolume(wanted)).volume
    assert (changed.snapshot_retention_days, changed.auto_backup_enabled) == (9, True)
    wanted = vs.UpdateVolumeRequest(volume_id=volume.id, auto_backup_enabled=False)
    changed = (await store.volumes.UpdateVolume(wanted)).volume
    assert (changed.snapshot_retention_days, changed.auto_backup_enabled) == (9, False)
    await delete(store, volume)
    with pytest.raises(WrongState):
        await store.volumes.UpdateVolume(wanted)


async def test_a_destroyed_volume_is_forgotten_with_its_last_snapshot_and_not_before(store: Store, dsn: str) -> None:
    volume, kept = await created(store), await created(store)
    taken = await snapshot(store, volume)
    await delete(store, volume)
    await report(store, volume, vs.VOLUME_STATE_DESTROYED)
    lead = pb.DutyTerm(duty="reconcile", term=(await store.lead()).term)

    async def left() -> list[str]:
        await store.stub.PurgeExpired(pb.PurgeExpiredRequest(term=lead))
        listed = await store.volumes.ListVolumes(vs.ListVolumesRequest(app_id=APP))
        return [each.id for each in listed.volumes]

    assert await left() == [volume.id, kept.id]
    async with connection_to(dsn) as connection:
        await connection.execute("UPDATE snapshots SET created_at = created_at - interval '6 days'")
    seen = vs.SnapshotReport(snapshot_id=taken.id, state=vs.SNAPSHOT_STATE_EXPIRED)
    await store.volumes.ReportVolumes(vs.ReportVolumesRequest(worker_id="w1", snapshots=[seen]))
    assert await left() == [kept.id]
