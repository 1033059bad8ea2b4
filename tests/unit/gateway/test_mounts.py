"""Which volume an update may name, and what becomes of the spec."""

from __future__ import annotations

import pytest
from skerry.store.v1.store_pb2 import MachineRecord
from skerry.store.v1.volume_store_pb2 import VolumeRecord
from skerry.types.v1.resources_pb2 import Resources
from skerry.types.v1.spec_pb2 import MachineSpec

from gateway.mounts import FIELD, fill_mount, volume_of_update
from services.runtime.errors import InvalidConfig
from services.runtime.resources import less

MINE = ("vol_0010000000000001", "data")


def spec(volume_id: str = "", name: str = "") -> MachineSpec:
    """A spec that mounts a volume as it is named; one without any when it is not."""
    made = MachineSpec()
    if volume_id or name:
        made.mounts.mounts.add(volume_id=volume_id, volume_name=name, path="/data")
    return made


@pytest.mark.parametrize("wanted", [("vol_0010000000000001", ""), ("vol_0010000000000001", "any"), ("", "data")])
def test_an_update_may_name_the_volume_that_the_machine_has_by_its_id_or_its_name(wanted: tuple[str, str]) -> None:
    machine = MachineRecord(spec=spec(*MINE), worker_id="w1", reserved=Resources(memory_bytes=5))
    update = spec(*wanted)
    volume = volume_of_update(machine, update)
    assert volume is not None
    assert (volume.id, volume.worker_id, volume.kept_for_machine.memory_bytes) == (MINE[0], "w1", 5)
    fill_mount(update, volume)
    assert (update.mounts.mounts[0].volume_id, update.mounts.mounts[0].volume_name) == MINE


@pytest.mark.parametrize(
    ("had", "wanted"),
    [
        (MINE, ("vol_0010000000000002", "")),
        (MINE, ("vol_0010000000000002", "data")),
        (MINE, ("", "other")),
        (MINE, ("", "")),
        (("", ""), MINE),
    ],
)
def test_an_update_neither_attaches_nor_detaches_nor_swaps_a_volume(
    had: tuple[str, str], wanted: tuple[str, str]
) -> None:
    with pytest.raises(InvalidConfig) as refusal:
        volume_of_update(MachineRecord(spec=spec(*had)), spec(*wanted))
    assert [violation.field for violation in refusal.value.violations] == [FIELD]


def test_a_machine_without_a_volume_keeps_none() -> None:
    assert volume_of_update(MachineRecord(spec=spec()), spec()) is None


def test_a_spec_says_of_its_volume_what_the_volume_is() -> None:
    made = spec("", "data")
    fill_mount(made, VolumeRecord(id=MINE[0], name="data", size_bytes=7, encrypted=True))
    mount = made.mounts.mounts[0]
    assert (mount.volume_id, mount.size_bytes, mount.encrypted, mount.path) == (MINE[0], 7, True, "/data")


def test_what_is_kept_already_is_not_needed_again() -> None:
    need = Resources(memory_bytes=10, disk_bytes=5, gpus_a10=1)
    assert less(need, Resources(memory_bytes=4, disk_bytes=9)) == Resources(memory_bytes=6, gpus_a10=1)
