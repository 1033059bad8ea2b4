"""What machines need and workers have, as one vector in a fixed order."""

from __future__ import annotations

from collections.abc import Sequence

from skerry.types.v1.resources_pb2 import Resources
from skerry.types.v1.spec_pb2 import CPU_KIND_PERFORMANCE, MachineSpec

RESOURCE_FIELDS: tuple[str, ...] = tuple(field.name for field in Resources.DESCRIPTOR.fields)
"""Names of the amounts in a `Resources` message; every vector is in this order."""

GPU_FIELDS: dict[str, str] = {
    "a10": "gpus_a10",
    "l40s": "gpus_l40s",
    "a100-40gb": "gpus_a100_40gb",
    "a100-80gb": "gpus_a100_80gb",
}
"""Kind of GPU to the name of its amount."""


def need_of(spec: MachineSpec) -> Resources:
    """What has to be reserved for a machine with this spec.

    Memory includes swap only as disk; disk is the root file system, the cache drive and the swap.
    """
    guest = spec.guest
    need = Resources(
        memory_bytes=guest.memory_bytes,
        disk_bytes=spec.rootfs.size_bytes + spec.rootfs.cache_bytes + spec.init.swap_bytes,
    )
    if guest.cpu_kind == CPU_KIND_PERFORMANCE:
        need.performance_cpu_millicores = guest.cpu_millicores
    else:
        need.shared_cpu_millicores = guest.cpu_millicores
    if guest.gpus:
        setattr(need, GPU_FIELDS[guest.gpu_kind], guest.gpus)
    return need


def less(need: Resources, given: Resources) -> Resources:
    """What is still needed of `need` where `given` is there already; never less than nothing."""
    return Resources(**{name: max(0, getattr(need, name) - getattr(given, name)) for name in RESOURCE_FIELDS})


def to_vector(resources: Resources) -> list[int]:
    """The amounts in the order of `RESOURCE_FIELDS`."""
    return [getattr(resources, name) for name in RESOURCE_FIELDS]


def from_vector(amounts: Sequence[int]) -> Resources:
    """The message of a vector in the order of `RESOURCE_FIELDS`."""
    return Resources(**dict(zip(RESOURCE_FIELDS, amounts, strict=True)))
