"""Volumes and their snapshots: where they are, who has them, and what their workers tell of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime

from skerry.store.v1.volume_store_pb2 import (
    SNAPSHOT_STATE_CREATED,
    SNAPSHOT_STATE_EXPIRED,
    SNAPSHOT_STATE_FAILED,
    VOLUME_STATE_CREATED,
    VOLUME_STATE_CREATING,
    VOLUME_STATE_DESTROYED,
    VOLUME_STATE_DESTROYING,
    CreateSnapshotRequest,
    CreateVolumeRequest,
    ExtendVolumeRequest,
    ReportVolumesRequest,
    SnapshotRecord,
    UpdateVolumeRequest,
    VolumeRecord,
    VolumeState,
)

from services.machine_store.database import Database
from services.machine_store.queries import load
from services.machine_store.records import (
    MOST_AMOUNT,
    Columns,
    check_text,
    checked_amounts,
    moment,
    storable,
    timestamp,
)
from services.runtime.clock import Clock
from services.runtime.errors import (
    IdempotencyConflict,
    InvalidConfig,
    MissingReference,
    NoCapacity,
    NotFound,
    SkerryError,
    Violation,
    WrongState,
)
from services.runtime.resources import from_vector

_SQL = load("volumes")

_TOLD_OF_VOLUMES = frozenset(
    {VOLUME_STATE_CREATING, VOLUME_STATE_CREATED, VOLUME_STATE_DESTROYING, VOLUME_STATE_DESTROYED}
)
_TOLD_OF_SNAPSHOTS = frozenset({SNAPSHOT_STATE_CREATED, SNAPSHOT_STATE_FAILED, SNAPSHOT_STATE_EXPIRED})


class Volumes:
    """The volumes of the cell."""

    def __init__(self, database: Database, *, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    async def create(self, request: CreateVolumeRequest) -> VolumeRecord:
        """Create a volume on the first candidate with room; the same id, or key, again answers the same one.

        Raises InvalidConfig, NotFound (the app), MissingReference (the source), WrongState (a source that is not there
        yet), NoCapacity, IdempotencyConflict, DependencyDown.
        """
        for field in ("volume_id", "app_id", "name"):
            if not getattr(request, field):
                raise _wrong(field, "is missing")
        check_text(
            volume_id=request.volume_id,
            app_id=request.app_id,
            name=request.name,
            region=request.region,
            fstype=request.fstype,
            host_dedication_id=request.host_dedication_id,
            idempotency_key=request.idempotency_key,
        )
        if not 0 <= request.size_bytes <= MOST_AMOUNT:
            raise _wrong("size_bytes", f"is {request.size_bytes}: it must be from 0 to 2^60")
        row = await self._database.fetchrow(
            _SQL["create_volume"],
            request.volume_id,
            request.app_id,
            request.name,
            request.region,
            request.size_bytes,
            request.encrypted,
            request.fstype,
            request.snapshot_retention_days,
            request.auto_backup_enabled,
            request.host_dedication_id,
            checked_amounts(request.kept_for_machine, "kept_for_machine"),
            [storable(worker) for worker in request.candidate_worker_ids],
            request.require_unique_zone,
            request.unique_zone_app_wide,
            storable(request.source_snapshot_id),
            storable(request.source_volume_id),
            request.idempotency_key,
            request.request_fingerprint,
            self._now(),
        )
        assert row is not None
        if row["outcome"] not in ("done", "repeated"):
            raise _refusal(row["outcome"], request)
        return await self.get(row["volume_id"])

    async def get(self, volume_id: str, app_id: str = "") -> VolumeRecord:
        """One volume, also a destroyed one. Raises NotFound, DependencyDown."""
        row = await self._database.fetchrow(_SQL["get_volume"], storable(volume_id), storable(app_id))
        if row is None:
            raise no_volume(volume_id)
        return volume_record(row)

    async def update(self, request: UpdateVolumeRequest) -> VolumeRecord:
        """Change how snapshots are kept. Raises InvalidConfig, NotFound, WrongState, DependencyDown."""
        retention = request.snapshot_retention_days if request.HasField("snapshot_retention_days") else None
        if retention is not None and retention < 1:
            raise _wrong("snapshot_retention_days", f"is {retention}: it must be 1 at least")
        backup = request.auto_backup_enabled if request.HasField("auto_backup_enabled") else None
        return await self._changed("update_volume", request.volume_id, request.app_id, retention, backup)

    async def delete(self, volume_id: str, app_id: str) -> VolumeRecord:
        """Ask for a volume to be destroyed; asking again changes nothing.

        Raises NotFound, WrongState for one that a machine has or that is being copied, DependencyDown.
        """
        return await self._changed("delete_volume", volume_id, app_id)

    async def extend(self, request: ExtendVolumeRequest) -> VolumeRecord:
        """Reserve more disk for a volume. Raises InvalidConfig, NotFound, WrongState, NoCapacity, DependencyDown."""
        if not 0 < request.size_bytes <= MOST_AMOUNT:
            raise _wrong("size_bytes", f"is {request.size_bytes}: it must be from 1 to 2^60")
        return await self._changed("extend_volume", request.volume_id, request.app_id, request.size_bytes)

    async def create_snapshot(self, request: CreateSnapshotRequest) -> SnapshotRecord:
        """Ask for a snapshot. Raises InvalidConfig, NotFound (the volume), WrongState, DependencyDown."""
        if not request.snapshot_id:
            raise _wrong("snapshot_id", "is missing")
        check_text(snapshot_id=request.snapshot_id)
        outcome: str = await self._database.fetchval(
            _SQL["create_snapshot"],
            request.snapshot_id,
            storable(request.volume_id),
            storable(request.app_id),
            self._now(),
        )
        if outcome == "missing":
            raise no_volume(request.volume_id)
        if outcome == "wrong_state":
            raise _wrong_state(await self.get(request.volume_id), "a snapshot cannot be taken of it then")
        return await self.snapshot(request.snapshot_id)

    async def snapshot(self, snapshot_id: str, app_id: str = "") -> SnapshotRecord:
        """One snapshot. Raises NotFound, DependencyDown."""
        row = await self._database.fetchrow(_SQL["get_snapshot"], storable(snapshot_id), storable(app_id))
        if row is None:
            raise NotFound(f"snapshot {snapshot_id[:64]!r} does not exist")
        return snapshot_record(row)

    async def snapshots(self, volume_id: str, app_id: str) -> list[SnapshotRecord]:
        """Snapshots of a volume that are kept, newest first. Raises NotFound (the volume), DependencyDown."""
        volume = await self.get(volume_id, app_id)
        return [snapshot_record(row) for row in await self._database.fetch(_SQL["list_snapshots"], volume.id)]

    async def report(self, request: ReportVolumesRequest) -> tuple[list[VolumeRecord], list[SnapshotRecord]]:
        """Take over what a worker tells of its disk; the volumes and snapshots after that, those that are known.

        Raises InvalidConfig, DependencyDown.
        """
        worker = storable(request.worker_id)
        for volume in request.volumes:
            if volume.state not in _TOLD_OF_VOLUMES:
                raise _wrong("volumes.state", "is none that a worker tells")
        for snapshot in request.snapshots:
            if snapshot.state not in _TOLD_OF_SNAPSHOTS:
                raise _wrong("snapshots.state", "is none that a worker tells")
        for volume in request.volumes:
            await self._database.fetch(
                _SQL["report_volume"],
                worker,
                storable(volume.volume_id),
                volume.state,
                volume.size_bytes,
                storable(volume.reason),
                self._now(),
            )
        for snapshot in request.snapshots:
            await self._database.fetch(
                _SQL["report_snapshot"],
                worker,
                storable(snapshot.snapshot_id),
                snapshot.state,
                snapshot.size_bytes,
                storable(snapshot.digest),
                storable(snapshot.reason),
                self._now(),
            )
        volumes = [storable(volume.volume_id) for volume in request.volumes]
        snapshots = [storable(snapshot.snapshot_id) for snapshot in request.snapshots]
        return (
            [volume_record(row) for row in await self._database.fetch(_SQL["some_volumes"], volumes)],
            [snapshot_record(row) for row in await self._database.fetch(_SQL["some_snapshots"], snapshots)],
        )

    async def _changed(self, statement: str, volume_id: str, app_id: str, *arguments: object) -> VolumeRecord:
        """The volume after a statement that changes it. Raises what the outcome says."""
        outcome: str = await self._database.fetchval(
            _SQL[statement], storable(volume_id), storable(app_id), *arguments, self._now()
        )
        volume = await self.get(volume_id, app_id)
        match outcome:
            case "attached":
                raise _wrong_state(
                    volume, f"machine {volume.attached_machine_id} has it: destroy that first", verb="delete"
                )
            case "copied":
                copies = [row["id"] for row in await self._database.fetch(_SQL["copies_under_way"], volume.id)]
                raise _wrong_state(volume, f"it is being copied to {', '.join(copies)}: wait until these are there")
            case "wrong_state":
                raise _wrong_state(volume, "nothing of it can be changed any more")
            case "smaller":
                why = f"must not be less than the present size, which is {volume.size_bytes}, is {arguments[0]}"
                raise _wrong("size_bytes", why)
            case "no_room":
                raise NoCapacity(
                    f"worker {volume.worker_id}, which has volume {volume.id}, has no disk left for it to grow so far",
                    metadata={"constraint": "disk", "worker_id": volume.worker_id},
                )
        return volume

    async def list(self, app_id: str) -> list[VolumeRecord]:
        """Volumes of an app, or of all apps when that is empty, oldest first. Raises DependencyDown."""
        return [volume_record(row) for row in await self._database.fetch(_SQL["list_volumes"], storable(app_id))]

    def _now(self) -> datetime:
        return moment(self._clock.now())


def volume_record(row: Columns) -> VolumeRecord:
    """The volume of a row of `volumes`, or of such a row as the log keeps it."""
    return VolumeRecord(
        id=row["id"],
        app_id=row["app_id"],
        app_name=row["app_name"],
        name=row["name"],
        region=row["region"],
        state=row["state"],
        size_bytes=row["size_bytes"],
        worker_id=row["worker_id"],
        zone=row["zone"],
        encrypted=row["encrypted"],
        fstype=row["fstype"],
        snapshot_retention_days=row["snapshot_retention_days"],
        auto_backup_enabled=row["auto_backup_enabled"],
        host_dedication_id=row["host_dedication_id"],
        attached_machine_id=row["attached_machine_id"],
        kept_for_machine=from_vector(row["kept"]) if row["kept"] else None,
        source_snapshot_id=row["source_snapshot_id"],
        source_volume_id=row["source_volume_id"],
        source_worker_id=row["source_worker_id"],
        created_at=timestamp(_moment(row["created_at"])),
        updated_at=timestamp(_moment(row["updated_at"])),
        revision=row["revision"],
        reason=row["reason"],
    )


def snapshot_record(row: Columns) -> SnapshotRecord:
    """The snapshot of a row of `snapshots`, or of such a row as the log keeps it."""
    return SnapshotRecord(
        id=row["id"],
        volume_id=row["volume_id"],
        app_id=row["app_id"],
        worker_id=row["worker_id"],
        state=row["state"],
        volume_size_bytes=row["volume_size_bytes"],
        size_bytes=row["size_bytes"],
        digest=row["digest"],
        retention_days=row["retention_days"],
        created_at=timestamp(_moment(row["created_at"])),
        revision=row["revision"],
        reason=row["reason"],
    )


def no_volume(volume_id: str) -> NotFound:
    """The error for a volume that is not there."""
    return NotFound(f"volume {volume_id[:64]!r} does not exist")


def state_name(state: VolumeState.ValueType) -> str:
    """A state of a volume as users write it."""
    return VolumeState.Name(state).removeprefix("VOLUME_STATE_").lower()


def _refusal(outcome: str, request: CreateVolumeRequest) -> SkerryError:
    source = request.source_volume_id or request.source_snapshot_id
    kind = "volume" if request.source_volume_id else "snapshot"
    refusals: Mapping[str, SkerryError] = {
        "no_app": NotFound(f"app {request.app_id} does not exist: create it first"),
        "other_request": IdempotencyConflict(
            f"idempotency key {request.idempotency_key} was used for another request: use a new key for a new request"
        ),
        "no_source": MissingReference(
            f"{kind} {source[:64]!r} does not exist in this app, or is not kept any more",
            violations=[Violation("source_volume_id" if kind == "volume" else "snapshot_id", "does not exist")],
        ),
        "source_not_ready": WrongState(f"{kind} {source} is not there yet: wait until it is created"),
        "too_small": _wrong("size_bytes", f"must not be less than that of {kind} {source}"),
        "no_zone": NoCapacity(
            "every worker that was proposed is in a zone where the app has such a volume: leave the unique zone "
            "out, or use another region",
            metadata={"constraint": "zone"},
        ),
    }
    return refusals.get(outcome) or _no_room(request.candidate_worker_ids)


def _no_room(workers: Sequence[str]) -> NoCapacity:
    if not workers:
        return NoCapacity("no worker was proposed that could take the volume")
    return NoCapacity(
        f"there is no room on any of the workers that were proposed: {', '.join(workers)}", retry_after=1.0
    )


def _wrong_state(volume: VolumeRecord, why: str, verb: str = "") -> WrongState:
    name = state_name(volume.state)
    metadata = {"volume_id": volume.id, "state": name, "machine_id": volume.attached_machine_id, "verb": verb}
    return WrongState(
        f"volume {volume.id} is {name}: {why}" if not volume.attached_machine_id else f"volume {volume.id}: {why}",
        metadata={name: text for name, text in metadata.items() if text},
    )


def _moment(at: datetime | str) -> datetime:
    return datetime.fromisoformat(at) if isinstance(at, str) else at


def _wrong(field: str, why: str) -> InvalidConfig:
    return InvalidConfig(f"{field} {why}", violations=[Violation(field, why)])
