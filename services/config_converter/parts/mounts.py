"""The part mounts: the volume that is attached to the machine."""

from __future__ import annotations

from collections.abc import Iterator

from skerry.types.v1.config_pb2 import MachineConfig, MachineMount
from skerry.types.v1.spec_pb2 import MountSpec, MountsSpec

from services.config_converter.part import Facts, Part, Problems
from services.config_converter.rules import GIB, LARGEST_GB, bounded, guest_path, shown

VOLUME_ID_PREFIX = "vol_"
DEFAULT_EXTEND_GB = 1

_NONE = MountsSpec()


def convert(config: MachineConfig, _facts: Facts, problems: Problems) -> MountsSpec:
    """One mount at most. That the volume exists, and where it is, is not judged here."""
    mounts = config.mounts
    if not mounts:
        return _NONE
    if len(mounts) > 1:
        problems.add("mounts", f"must have 1 mount at most, has {len(mounts)}")
    spec = MountsSpec()
    for i, mount in enumerate(mounts):
        _fill_mount(spec.mounts.add(), mount, problems.below(f"mounts[{i}]"))
    return spec


def _fill_mount(spec: MountSpec, mount: MachineMount, problems: Problems) -> None:
    spec.path = guest_path(mount.path, "path", problems)
    _fill_volume(spec, mount, problems)
    threshold = bounded(mount.extend_threshold_percent, 0, 100, "extend_threshold_percent", problems)
    extend_by = bounded(mount.add_size_gb, 0, LARGEST_GB, "add_size_gb", problems)
    limit = bounded(mount.size_gb_limit, 0, LARGEST_GB, "size_gb_limit", problems)
    size = bounded(mount.size_gb, 0, LARGEST_GB, "size_gb", problems)
    if limit and limit < size:
        problems.add("size_gb_limit", f"must be at least size_gb, which is {size}, is {limit}")
    spec.extend_threshold_percent = threshold
    spec.extend_by_bytes = (extend_by or (DEFAULT_EXTEND_GB if threshold else 0)) * GIB
    spec.extend_limit_bytes = limit * GIB
    spec.size_bytes = size * GIB
    spec.encrypted = mount.encrypted


def _fill_volume(spec: MountSpec, mount: MachineMount, problems: Problems) -> None:
    """`volume` is an id; clients also write a name there, which can be told apart."""
    volume, name = mount.volume, mount.name
    if volume.startswith(VOLUME_ID_PREFIX):
        spec.volume_id = volume
        spec.volume_name = name
    elif volume and name and volume != name:
        problems.add("volume", f"must be an id that begins with {VOLUME_ID_PREFIX}, or equal name, is {shown(volume)}")
    elif volume or name:
        spec.volume_name = name or volume
    else:
        problems.add("volume", f"is required: a volume's id ({VOLUME_ID_PREFIX}…), or its name in name")


def volumes_named(config: MachineConfig) -> list[str]:
    """Ids and names of volumes whose place the centre's converter wants to know."""
    return [mount.volume or mount.name for mount in config.mounts if mount.volume or mount.name]


def _facts_used(config: MachineConfig, facts: Facts) -> Iterator[tuple[str, str]]:
    locations = facts.volume_locations
    if locations is not None:
        yield from ((volume, locations.get(volume, "")) for volume in volumes_named(config))


PART = Part("mounts", owns=("mounts",), converters={1: convert}, facts_used=_facts_used)
