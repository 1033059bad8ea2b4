"""The converters of all parts.

Each takes the whole configuration in its public JSON form, the facts, and a dict to note what is wrong in (field below
the configuration -> why), and returns the part's message of the spec in its JSON form. What it returned means nothing
once it noted something.

Facts (JSON, all optional):
    image_aliases    {reference as the user writes it: reference}
    image_digests    {registry/repository:tag: digest}
    limits           {cpus, memory_mb, gpus}, null for no bound
    volume_location  {volume id or name: {"region": code} or null when no machine has it}
"""

from __future__ import annotations

from collections.abc import Callable

from services.central.legacy.parts.checks import checks_v1
from services.central.legacy.parts.containers import containers_v1
from services.central.legacy.parts.dns import dns_v1
from services.central.legacy.parts.files import files_v1
from services.central.legacy.parts.guest import guest_v1
from services.central.legacy.parts.image import image_v1, image_v2
from services.central.legacy.parts.mounts import mounts_v1
from services.central.legacy.parts.processes import env_v1, env_v2, init_v1, processes_v1
from services.central.legacy.parts.services import services_v1
from services.central.legacy.parts.settings import (
    metadata_v1,
    metrics_v1,
    rootfs_v1,
    schedule_v1,
    standbys_v1,
    statics_v1,
)
from services.central.legacy.parts.stopping import restart_v1, stop_v1
from services.central.legacy.values import Json, Wrong

Converter = Callable[[Json, Json, Wrong], Json]

CONVERTERS: dict[str, dict[int, Converter]] = {
    "image": {1: image_v1, 2: image_v2},
    "guest": {1: guest_v1},
    "env": {1: env_v1, 2: env_v2},
    "init": {1: init_v1},
    "services": {1: services_v1},
    "checks": {1: checks_v1},
    "mounts": {1: mounts_v1},
    "files": {1: files_v1},
    "processes": {1: processes_v1},
    "containers": {1: containers_v1},
    "restart": {1: restart_v1},
    "stop": {1: stop_v1},
    "dns": {1: dns_v1},
    "metrics": {1: metrics_v1},
    "statics": {1: statics_v1},
    "metadata": {1: metadata_v1},
    "schedule": {1: schedule_v1},
    "standbys": {1: standbys_v1},
    "rootfs": {1: rootfs_v1},
}
"""Part to version to its converter."""

PARTS = tuple(CONVERTERS)


def convert_part(part: str, version: int, config: Json, facts: Json) -> tuple[Json, Wrong]:
    """The part's spec, and what is wrong with the configuration. Raises KeyError for a part or version there is not."""
    wrong: Wrong = {}
    spec = CONVERTERS[part][version](config, facts, wrong)
    return spec, wrong
