"""Volumes: created where there is room for them and for their machines, copied, extended, destroyed; snapshots."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from skerry.converter.v1.converter_pb2 import ConvertRequest
from skerry.machines.v1 import volumes_pb2 as api
from skerry.scheduler.v1.scheduler_pb2 import PlaceRequest, PlaceResponse
from skerry.store.v1 import store_pb2 as store
from skerry.store.v1 import volume_store_pb2 as volumes
from skerry.types.v1.config_pb2 import MachineConfig
from skerry.types.v1.machine_pb2 import HOST_STATUS_UNSPECIFIED, HostStatus
from skerry.types.v1.resources_pb2 import Resources

from gateway.capacity import no_capacity, no_other_zone
from gateway.fleet import Fleet
from gateway.machines import LONGEST_KEY, region_violation
from gateway.mounts import USABLE
from gateway.surroundings import Surroundings
from services.runtime.errors import InvalidConfig, MissingReference, NoCapacity, NotFound, Violation
from services.runtime.ids import cell_of, new_snapshot_id, new_volume_id
from services.runtime.resources import need_of

GIB = 1 << 30
DEFAULT_GB = 1
MOST_GB = 500
DEFAULT_RETENTION_DAYS = 5
MOST_RETENTION_DAYS = 60
DEFAULT_FSTYPE = "ext4"
FSTYPES = (DEFAULT_FSTYPE, "raw")
CANDIDATES = 8
NAME_RULE = "must be 1..30 lower-case letters, digits and underscores"
GROWS_IN_PLACE = frozenset({"process"})
"""Drivers whose machines see at once that their volume has grown."""

is_volume_name = re.compile(r"[a-z0-9_]{1,30}").fullmatch
is_volume_id = re.compile(r"vol_[0-9a-z]{1,60}").fullmatch


@dataclass(slots=True)
class Creation:
    """A volume in the making. What it begins with is a volume, a snapshot, or neither; `key` may be empty."""

    around: Surroundings
    fleet: Fleet
    request: api.CreateVolumeRequest
    key: str
    app: store.AppRecord = field(default_factory=store.AppRecord)
    source: volumes.VolumeRecord | None = None
    snapshot: volumes.SnapshotRecord | None = None
    kept: Resources = field(default_factory=Resources)
    need: Resources = field(default_factory=Resources)
    taken_zones: frozenset[str] = frozenset()

    @property
    def size_bytes(self) -> int:
        """What was asked for, else what it begins with has, else the least."""
        if self.request.HasField("size_gb") and self.request.size_gb:
            return self.request.size_gb * GIB
        return self.least_bytes or DEFAULT_GB * GIB

    @property
    def least_bytes(self) -> int:
        """The size of what it begins with."""
        if self.source is not None:
            return self.source.size_bytes
        return self.snapshot.volume_size_bytes if self.snapshot is not None else 0

    @property
    def name(self) -> str:
        return self.request.name or (self.source.name if self.source is not None else "")


async def create_volume(around: Surroundings, fleet: Fleet, request: api.CreateVolumeRequest, key: str) -> api.Volume:
    """Create a volume; `key` is the client's idempotency key, empty without one. It exists durably on return.

    Raises InvalidConfig, NotFound (the app), MissingReference (what it begins with), WrongState, NoCapacity,
    IdempotencyConflict, DependencyDown.
    """
    creation = Creation(around, fleet, request, key)
    creation.app = await around.apps.resolve(request.app_name)
    await _find_source(creation)
    _check(creation)
    creation.kept = await _need_of_machine(creation)
    creation.need = Resources()
    creation.need.CopyFrom(creation.kept)
    creation.need.disk_bytes += creation.size_bytes
    return public_volume(await _commit(creation), fleet)


async def list_volumes(around: Surroundings, fleet: Fleet, request: api.ListVolumesRequest) -> list[api.Volume]:
    """The volumes of an app in this cell, oldest first, destroyed ones too. Raises NotFound, DependencyDown."""
    app = await around.apps.resolve(request.app_name)
    wanted = volumes.ListVolumesRequest(app_id=app.id)
    listed = await around.retries(lambda: around.volumes.ListVolumes(wanted))
    return [public_volume(volume, fleet) for volume in listed.volumes]


async def get_volume(around: Surroundings, fleet: Fleet, request: api.GetVolumeRequest) -> api.Volume:
    """One volume, also a destroyed one. Raises NotFound, DependencyDown."""
    return public_volume(await _read(around, request.app_name, request.volume_id), fleet)


async def update_volume(around: Surroundings, fleet: Fleet, request: api.UpdateVolumeRequest) -> api.Volume:
    """Change how snapshots are kept. Raises InvalidConfig, NotFound, WrongState, DependencyDown."""
    violations = []
    if request.HasField("snapshot_retention") and not 1 <= request.snapshot_retention <= MOST_RETENTION_DAYS:
        violations.append(_retention(request.snapshot_retention))
    if violations:
        raise _invalid(violations)
    volume = await _read(around, request.app_name, request.volume_id)
    change = volumes.UpdateVolumeRequest(volume_id=volume.id, app_id=volume.app_id)
    if request.HasField("snapshot_retention"):
        change.snapshot_retention_days = request.snapshot_retention
    if request.HasField("auto_backup_enabled"):
        change.auto_backup_enabled = request.auto_backup_enabled
    return public_volume((await around.retries(lambda: around.volumes.UpdateVolume(change))).volume, fleet)


async def delete_volume(around: Surroundings, fleet: Fleet, request: api.DeleteVolumeRequest) -> api.Volume:
    """Ask for a volume to be destroyed. Raises NotFound, WrongState for one in use, DependencyDown."""
    volume = await _read(around, request.app_name, request.volume_id)
    deletion = volumes.DeleteVolumeRequest(volume_id=volume.id, app_id=volume.app_id)
    return public_volume((await around.retries(lambda: around.volumes.DeleteVolume(deletion))).volume, fleet)


async def extend_volume(
    around: Surroundings, fleet: Fleet, request: api.ExtendVolumeRequest
) -> tuple[api.Volume, bool]:
    """Make a volume larger; it, and whether its machine must be restarted to see that.

    Raises InvalidConfig, NotFound, WrongState, NoCapacity, DependencyDown.
    """
    if not 1 <= request.size_gb <= MOST_GB:
        raise _invalid([Violation("size_gb", f"must be 1..{MOST_GB}, is {request.size_gb}")])
    volume = await _read(around, request.app_name, request.volume_id)
    if request.size_gb * GIB < volume.size_bytes:
        has = volume.size_bytes // GIB
        raise _invalid([Violation("size_gb", f"must not be less than {has}, which it has, is {request.size_gb}")])
    extension = volumes.ExtendVolumeRequest(volume_id=volume.id, app_id=volume.app_id, size_bytes=request.size_gb * GIB)
    extended = (await around.retries(lambda: around.volumes.ExtendVolume(extension))).volume
    worker = fleet.get(extended.worker_id)
    in_place = worker is not None and worker.driver in GROWS_IN_PLACE
    return public_volume(extended, fleet), bool(extended.attached_machine_id) and not in_place


async def list_snapshots(around: Surroundings, request: api.ListSnapshotsRequest) -> list[api.VolumeSnapshot]:
    """The snapshots of a volume that are kept, newest first. Raises NotFound, DependencyDown."""
    volume = await _read(around, request.app_name, request.volume_id)
    wanted = volumes.ListSnapshotsRequest(volume_id=volume.id, app_id=volume.app_id)
    listed = await around.retries(lambda: around.volumes.ListSnapshots(wanted))
    return [public_snapshot(snapshot) for snapshot in listed.snapshots]


async def create_snapshot(around: Surroundings, request: api.CreateSnapshotRequest) -> api.VolumeSnapshot:
    """Have a snapshot taken. Raises NotFound, WrongState, DependencyDown."""
    volume = await _read(around, request.app_name, request.volume_id)
    wanted = volumes.CreateSnapshotRequest(
        snapshot_id=new_snapshot_id(around.cell, around.random), volume_id=volume.id, app_id=volume.app_id
    )
    return public_snapshot((await around.retries(lambda: around.volumes.CreateSnapshot(wanted))).snapshot)


def public_volume(volume: volumes.VolumeRecord, fleet: Fleet) -> api.Volume:
    """The volume of a record."""
    worker = fleet.get(volume.worker_id)
    status = worker.status if worker is not None else HOST_STATUS_UNSPECIFIED
    return api.Volume(
        id=volume.id,
        name=volume.name,
        state=volumes.VolumeState.Name(volume.state).removeprefix("VOLUME_STATE_").lower(),
        size_gb=volume.size_bytes // GIB,
        region=volume.region,
        zone=volume.zone,
        encrypted=volume.encrypted,
        attached_machine_id=volume.attached_machine_id,
        created_at=volume.created_at,
        host_dedication_id=volume.host_dedication_id,
        snapshot_retention=volume.snapshot_retention_days,
        auto_backup_enabled=volume.auto_backup_enabled,
        host_status="" if not status else HostStatus.Name(status).removeprefix("HOST_STATUS_").lower(),
    )


def public_snapshot(snapshot: volumes.SnapshotRecord) -> api.VolumeSnapshot:
    """The snapshot of a record."""
    return api.VolumeSnapshot(
        id=snapshot.id,
        size=snapshot.size_bytes,
        volume_size=snapshot.volume_size_bytes,
        digest=snapshot.digest,
        created_at=snapshot.created_at,
        status=volumes.SnapshotState.Name(snapshot.state).removeprefix("SNAPSHOT_STATE_").lower(),
        retention_days=snapshot.retention_days,
    )


async def _read(around: Surroundings, app_name: str, volume_id: str) -> volumes.VolumeRecord:
    app = await around.apps.resolve(app_name)
    if not is_volume_id(volume_id):
        raise _no_volume(volume_id, app_name)
    request = volumes.GetVolumeRequest(volume_id=volume_id, app_id=app.id)
    try:
        return (await around.retries(lambda: around.volumes.GetVolume(request))).volume
    except NotFound:
        raise _no_volume(volume_id, app_name) from None


async def _find_source(creation: Creation) -> None:
    """Read what the volume begins with. Raises InvalidConfig, MissingReference."""
    around, request = creation.around, creation.request
    if request.source_volume_id and request.snapshot_id:
        raise _invalid([Violation("snapshot_id", "must be left out where source_volume_id is given")])
    try:
        if request.source_volume_id:
            _check_cell(around, "source_volume_id", request.source_volume_id)
            wanted = volumes.GetVolumeRequest(volume_id=request.source_volume_id, app_id=creation.app.id)
            creation.source = (await around.retries(lambda: around.volumes.GetVolume(wanted))).volume
            if creation.source.state not in USABLE:
                raise _missing("source_volume_id", request.source_volume_id)
        elif request.snapshot_id:
            _check_cell(around, "snapshot_id", request.snapshot_id)
            of = volumes.GetSnapshotRequest(snapshot_id=request.snapshot_id, app_id=creation.app.id)
            creation.snapshot = (await around.retries(lambda: around.volumes.GetSnapshot(of))).snapshot
    except NotFound:
        named = "source_volume_id" if request.source_volume_id else "snapshot_id"
        raise _missing(named, request.source_volume_id or request.snapshot_id) from None


def _check(creation: Creation) -> None:
    request, violations = creation.request, list[Violation]()
    if not is_volume_name(creation.name):
        violations.append(Violation("name", NAME_RULE if creation.name else "is missing"))
    if (violation := region_violation(creation.around, request.region)) is not None:
        violations.append(violation)
    if not 1 <= creation.size_bytes // GIB <= MOST_GB:
        violations.append(Violation("size_gb", f"must be 1..{MOST_GB}, is {request.size_gb}"))
    elif creation.size_bytes < creation.least_bytes:
        has = creation.least_bytes // GIB
        violations.append(Violation("size_gb", f"must not be less than what it begins with has, {has}"))
    if request.HasField("snapshot_retention") and not 1 <= request.snapshot_retention <= MOST_RETENTION_DAYS:
        violations.append(_retention(request.snapshot_retention))
    if request.fstype and request.fstype not in FSTYPES:
        violations.append(Violation("fstype", f"must be one of {', '.join(FSTYPES)}, is {request.fstype[:64]!r}"))
    if len(creation.key) > LONGEST_KEY:
        violations.append(Violation("idempotency-key", f"must not be longer than {LONGEST_KEY} characters"))
    if violations:
        raise _invalid(violations)


async def _need_of_machine(creation: Creation) -> Resources:
    """What the machine needs that is to have the volume; nothing without hints. Raises InvalidConfig of `compute`."""
    around, request = creation.around, creation.request
    if not request.HasField("compute"):
        return Resources()
    config = MachineConfig(image=request.compute_image or "compute", guest=request.compute)
    convert = ConvertRequest(config=config, app_name=creation.app.name, region=around.region, field_prefix="compute")
    try:
        converted = (await around.retries(lambda: around.converter.Convert(convert))).result
    except InvalidConfig as error:
        raise _invalid(
            [Violation(each.field.replace("compute.guest", "compute"), each.why) for each in error.violations]
        ) from None
    return need_of(converted.spec)


async def _commit(creation: Creation) -> volumes.VolumeRecord:
    around, request, source = creation.around, creation.request, creation.source
    creation.taken_zones = await _taken_zones(creation)
    candidates = await _candidates(creation)
    write = volumes.CreateVolumeRequest(
        volume_id=new_volume_id(around.cell, around.random),
        app_id=creation.app.id,
        name=creation.name,
        region=around.region,
        size_bytes=creation.size_bytes,
        encrypted=_encrypted(creation),
        fstype=request.fstype or (source.fstype if source else DEFAULT_FSTYPE),
        snapshot_retention_days=_retention_days(creation),
        auto_backup_enabled=_backed_up(creation),
        host_dedication_id=_dedication(creation),
        kept_for_machine=creation.kept,
        candidate_worker_ids=candidates,
        require_unique_zone=request.require_unique_zone,
        unique_zone_app_wide=request.unique_zone_app_wide,
        source_snapshot_id=request.snapshot_id,
        source_volume_id=request.source_volume_id,
        idempotency_key=creation.key,
        request_fingerprint=hashlib.sha256(request.SerializeToString(deterministic=True)).digest(),
    )
    try:
        return (await around.retries(lambda: around.volumes.CreateVolume(write))).volume
    except NoCapacity:
        # The view of the fleet may be a moment old.
        creation.taken_zones = await _taken_zones(creation)
        del write.candidate_worker_ids[:]
        write.candidate_worker_ids.extend(await _candidates(creation, candidates))
    return (await around.retries(lambda: around.volumes.CreateVolume(write))).volume


async def _taken_zones(creation: Creation) -> frozenset[str]:
    """Zones that the volume must not be in."""
    around, request = creation.around, creation.request
    if not (request.require_unique_zone or request.unique_zone_app_wide):
        return frozenset()
    wanted = volumes.ListVolumesRequest(app_id=creation.app.id)
    listed = await around.retries(lambda: around.volumes.ListVolumes(wanted))
    return frozenset(
        volume.zone
        for volume in listed.volumes
        if volume.state in USABLE
        and (request.unique_zone_app_wide or volume.name == creation.name or volume.id == request.source_volume_id)
    )


async def _candidates(creation: Creation, full: Sequence[str] = ()) -> list[str]:
    """Workers to try, best first. Raises NoCapacity, naming the constraint, when there are none."""
    around, zones = creation.around, creation.taken_zones
    elsewhere = [worker.id for worker in creation.fleet if worker.zone in zones]
    request = PlaceRequest(
        app_id=creation.app.id,
        need=creation.need,
        host_dedication_id=_dedication(creation),
        limit=CANDIDATES,
        excluded_worker_ids=[*elsewhere, *full],
    )
    placed: PlaceResponse = await around.retries(lambda: around.scheduler.Place(request))
    if placed.candidates:
        return [candidate.worker_id for candidate in placed.candidates]
    refusal = no_capacity(around.region, creation.need, placed)
    if not zones:
        raise refusal
    others = any(worker.zone not in zones for worker in creation.fleet)
    raise no_other_zone(zones, refusal if others else None)


def _encrypted(creation: Creation) -> bool:
    if creation.request.HasField("encrypted"):
        return creation.request.encrypted
    return creation.source.encrypted if creation.source is not None else True


def _retention_days(creation: Creation) -> int:
    if creation.request.HasField("snapshot_retention"):
        return creation.request.snapshot_retention
    return creation.source.snapshot_retention_days if creation.source is not None else DEFAULT_RETENTION_DAYS


def _backed_up(creation: Creation) -> bool:
    if creation.request.HasField("auto_backup_enabled"):
        return creation.request.auto_backup_enabled
    return creation.source.auto_backup_enabled if creation.source is not None else True


def _dedication(creation: Creation) -> str:
    if creation.request.compute.host_dedication_id or creation.source is None:
        return creation.request.compute.host_dedication_id
    return creation.source.host_dedication_id


def _check_cell(around: Surroundings, named: str, identifier: str) -> None:
    if cell_of(identifier) not in (None, around.cell):
        why = f"{identifier[:64]!r} is in another region: what a volume begins with must be in its own"
        raise MissingReference(f"{named} {why}", violations=[Violation(named, why)])


def _missing(named: str, identifier: str) -> MissingReference:
    why = f"{identifier[:64]!r} does not exist in this app, or is not kept any more"
    return MissingReference(f"{named} {why}", violations=[Violation(named, why)])


def _retention(days: int) -> Violation:
    return Violation("snapshot_retention", f"must be 1..{MOST_RETENTION_DAYS} days, is {days}")


def _no_volume(volume_id: str, app_name: str) -> NotFound:
    return NotFound(f"app {app_name!r} has no volume {volume_id[:64]!r}")


def _invalid(violations: Sequence[Violation]) -> InvalidConfig:
    return InvalidConfig("; ".join(f"{v.field} {v.why}" for v in violations), violations=violations)
