"""The volume that a machine is to have: found by its id or its name, and never changed by an update."""

from __future__ import annotations

from collections.abc import Container, Iterable
from typing import TYPE_CHECKING

from skerry.store.v1.store_pb2 import AppRecord, MachineRecord
from skerry.store.v1.volume_store_pb2 import (
    VOLUME_STATE_CREATED,
    VOLUME_STATE_CREATING,
    VOLUME_STATE_EXTENDING,
    GetVolumeRequest,
    ListVolumesRequest,
    VolumeRecord,
)
from skerry.types.v1.config_pb2 import MachineConfig
from skerry.types.v1.spec_pb2 import MachineSpec, MountSpec

from gateway.retrying import Retries
from services.runtime.errors import InvalidConfig, MissingReference, NotFound, Violation, VolumeElsewhere, WrongState
from services.runtime.ids import cell_of

if TYPE_CHECKING:
    from skerry.store.v1.volume_store_pb2_grpc import VolumeStoreAsyncStub

USABLE = frozenset({VOLUME_STATE_CREATING, VOLUME_STATE_CREATED, VOLUME_STATE_EXTENDING})
"""States of a volume that a machine can get. One that is not there yet is waited for by its worker."""
FIELD = "config.mounts[0].volume"


async def find_volume(
    volumes: VolumeStoreAsyncStub,
    retries: Retries,
    app: AppRecord,
    mount: MountSpec,
    *,
    cell: str,
    besides: Container[str] = (),
) -> VolumeRecord:
    """The free volume of `app` that `mount` names, by id or by name. One by name is none of those in `besides`.

    Raises MissingReference, VolumeElsewhere for one of another cell, WrongState naming the machine that has it.
    """
    if not mount.volume_id:
        listed = await retries(lambda: volumes.ListVolumes(ListVolumesRequest(app_id=app.id)))
        return _free(listed.volumes, app, mount.volume_name, besides)
    if cell_of(mount.volume_id) not in (None, cell):
        raise VolumeElsewhere(
            f"{FIELD}: volume {mount.volume_id} is in another cell than the machine would be: create the machine there",
            metadata={"volume_id": mount.volume_id},
        )
    request = GetVolumeRequest(volume_id=mount.volume_id, app_id=app.id)
    try:
        volume = (await retries(lambda: volumes.GetVolume(request))).volume
    except NotFound:
        raise _missing(f"app {app.name!r} has no volume {mount.volume_id[:64]!r}") from None
    if volume.state not in USABLE:
        raise _missing(f"volume {volume.id} is being destroyed, or is destroyed")
    if volume.attached_machine_id:
        raise _taken(volume)
    return volume


def fill_mount(spec: MachineSpec, volume: VolumeRecord) -> None:
    """Let the spec say which volume it is, whatever the configuration calls it."""
    mount = spec.mounts.mounts[0]
    mount.volume_id, mount.volume_name, mount.size_bytes = volume.id, volume.name, volume.size_bytes
    mount.encrypted = volume.encrypted


def name_by_id(config: MachineConfig, volume: VolumeRecord) -> None:
    """Let a configuration that called its volume by a name say which one it is: clients look up what they read."""
    if config.mounts and config.mounts[0].volume != volume.id:
        config.mounts[0].volume, config.mounts[0].name = volume.id, volume.name


def volume_of_update(machine: MachineRecord, spec: MachineSpec) -> VolumeRecord | None:
    """The volume that the machine has and keeps; None when it has none. Raises InvalidConfig for any other wish."""
    before = machine.spec.mounts.mounts[:1]
    after = spec.mounts.mounts[:1]
    if not before and not after:
        return None
    if not before:
        raise _unchangeable("an update attaches no volume: create another machine with it")
    had = before[0]
    if not after:
        raise _unchangeable(f"must stay {had.volume_id or had.volume_name}: an update detaches no volume")
    wanted = after[0]
    same = wanted.volume_id == had.volume_id if wanted.volume_id else wanted.volume_name == had.volume_name
    if not same:
        raise _unchangeable(f"cannot change: the machine has {had.volume_id or had.volume_name}")
    return VolumeRecord(
        id=had.volume_id,
        name=had.volume_name,
        size_bytes=had.size_bytes,
        encrypted=had.encrypted,
        worker_id=machine.worker_id,
        kept_for_machine=machine.reserved,
    )


def _free(volumes: Iterable[VolumeRecord], app: AppRecord, name: str, besides: Container[str]) -> VolumeRecord:
    named = [volume for volume in volumes if volume.name == name and volume.state in USABLE]
    free = [volume for volume in named if not volume.attached_machine_id and volume.id not in besides]
    if free:
        # Those that are there come first.
        return min(free, key=lambda volume: volume.state == VOLUME_STATE_CREATING)
    if named and not besides:
        raise _taken(named[0], f"all {len(named)} volumes {name!r} of app {app.name!r} have machines")
    raise _missing(f"app {app.name!r} has no free volume {name!r}")


def _taken(volume: VolumeRecord, what: str = "") -> WrongState:
    return WrongState(
        f"{FIELD}: {what or f'volume {volume.id} has a machine'}: machine {volume.attached_machine_id} has "
        f"{volume.id}; destroy that first, or create another volume",
        metadata={"volume_id": volume.id, "machine_id": volume.attached_machine_id},
    )


def _missing(what: str) -> MissingReference:
    return MissingReference(f"{FIELD}: {what}; create it first", violations=[Violation(FIELD, what)])


def _unchangeable(why: str) -> InvalidConfig:
    return InvalidConfig(f"{FIELD} {why}", violations=[Violation(FIELD, why)])
