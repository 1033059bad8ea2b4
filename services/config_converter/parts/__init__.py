"""The parts of the conversion, one module each, in the order in which results list them."""

from __future__ import annotations

from services.config_converter.part import Part
from services.config_converter.parts import (
    checks,
    containers,
    dns,
    env,
    files,
    guest,
    image,
    init,
    metadata,
    metrics,
    mounts,
    processes,
    restart,
    rootfs,
    schedule,
    services,
    standbys,
    statics,
    stop,
)

PARTS: tuple[Part, ...] = (
    image.PART,
    guest.PART,
    env.PART,
    init.PART,
    services.PART,
    checks.PART,
    mounts.PART,
    files.PART,
    processes.PART,
    containers.PART,
    restart.PART,
    stop.PART,
    dns.PART,
    metrics.PART,
    statics.PART,
    metadata.PART,
    schedule.PART,
    standbys.PART,
    rootfs.PART,
)
