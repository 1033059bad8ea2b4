"""The part rootfs: what survives of the root file system, how large it is, and the drive that caches it."""

from __future__ import annotations

from skerry.types.v1.config_pb2 import MachineConfig
from skerry.types.v1.spec_pb2 import PERSIST_ROOTFS_ALWAYS, PERSIST_ROOTFS_NEVER, PERSIST_ROOTFS_RESTART, RootfsSpec

from services.config_converter.part import Facts, Part, Problems
from services.config_converter.rules import GIB, LARGEST_GB, LARGEST_MB, MIB, bounded, one_of, shown

PERSISTS = {
    "never": PERSIST_ROOTFS_NEVER,
    "restart": PERSIST_ROOTFS_RESTART,
    "always": PERSIST_ROOTFS_ALWAYS,
}
DEFAULT_SIZE_GB = 8

_DEFAULT = RootfsSpec(persist=PERSIST_ROOTFS_NEVER, size_bytes=DEFAULT_SIZE_GB * GIB)


def convert(config: MachineConfig, _facts: Facts, problems: Problems) -> RootfsSpec:
    """`persist` may stand in two places, which then agree."""
    own = config.rootfs.persist
    of_guest = config.guest.persist_rootfs
    if not (own or of_guest or config.HasField("rootfs") or config.HasField("cache_drive")):
        return _DEFAULT
    persist = one_of(own, PERSISTS, PERSIST_ROOTFS_NEVER, "rootfs.persist", problems)
    from_guest = one_of(of_guest, PERSISTS, PERSIST_ROOTFS_NEVER, "guest.persist_rootfs", problems)
    if own and of_guest and own != of_guest:
        problems.add(
            "rootfs.persist",
            f"must equal guest.persist_rootfs, which is {shown(of_guest)}, or one be left out; is {shown(own)}",
        )
    size = DEFAULT_SIZE_GB
    if config.rootfs.HasField("size_gb"):
        size = bounded(config.rootfs.size_gb, 1, LARGEST_GB, "rootfs.size_gb", problems)
    cache = bounded(config.cache_drive.size_mb, 0, LARGEST_MB, "cache_drive.size_mb", problems)
    return RootfsSpec(persist=persist if own else from_guest, size_bytes=size * GIB, cache_bytes=cache * MIB)


PART = Part("rootfs", owns=("rootfs", "guest.persist_rootfs", "cache_drive"), converters={1: convert})
