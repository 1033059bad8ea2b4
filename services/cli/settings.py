"""The settings of one process of a mesh: what `up` planned, over DIR/settings.toml, where the operator may say more."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from pydantic import SecretStr
from skerry.types.v1.resources_pb2 import Resources

from services.cli.mesh import (
    CONFIG_CONVERTER,
    HOST,
    MACHINE_STORE,
    SCHEDULER,
    SET,
    WORKER,
    Mesh,
    Process,
)
from services.runtime.settings import Addresses, Database, Settings
from services.worker.settings import ProcessSettings, WorkerSettings

_CPUS = 65_536
_BYTES = 256 << 40
_GPUS = 1_024

DECLARED_CAPACITY = Resources(
    shared_cpu_millicores=_CPUS * 1_000,
    performance_cpu_millicores=_CPUS * 1_000,
    memory_bytes=_BYTES,
    disk_bytes=_BYTES,
    gpus_a10=_GPUS,
    gpus_l40s=_GPUS,
    gpus_a100_40gb=_GPUS,
    gpus_a100_80gb=_GPUS,
)
"""What a worker of a development mesh says it has, whatever this machine has."""


class MeshSettings(Settings):
    """What a process of a mesh is told."""

    process: ProcessSettings = ProcessSettings()
    """The process driver of its workers; `[process.images]` says which command stands for an image."""
    workers: tuple[WorkerSettings, ...] = ()
    """The workers that live in this process."""


def settings_of(mesh: Mesh, process: Process) -> MeshSettings:
    """The settings of `process`. Raises InvalidConfig when DIR/settings.toml is wrong."""
    region = process.region
    numbers: Sequence[int] = ()
    if process.service == WORKER:
        numbers = [process.instance]
    elif process.service == SET and mesh.workers_are_within:
        numbers = range(1, mesh.workers + 1)
    loaded = MeshSettings.load(
        _own_file(mesh),
        region=region,
        cell=mesh.cell(region),
        instance=f"{region}/{process.name}",
        region_map=mesh.region_map,
        secret=SecretStr(mesh.secret),
        development_token=SecretStr(mesh.token),
        data_dir=mesh.region_directory(region),
        addresses=Addresses(
            public_rest=f"{HOST}:{process.rest}" if process.has_gateway else None,
            public_grpc=f"{HOST}:{process.grpc}" if process.has_gateway else None,
            internal=f"{HOST}:{process.internal}",
            metrics=f"{HOST}:{process.metrics}",
        ),
        peers={name: mesh.addresses(region, name) for name in (CONFIG_CONVERTER, MACHINE_STORE, SCHEDULER)},
        database=Database(directory=mesh.postgres_directory(region)),
        otlp=mesh.otlp,
    )
    return loaded.model_copy(update={"workers": _workers(mesh, region, numbers, loaded.process)})


def workers_of(mesh: Mesh, region: str) -> tuple[WorkerSettings, ...]:
    """The settings of all workers of `region`, whichever processes they live in. Raises InvalidConfig."""
    loaded = MeshSettings.load(_own_file(mesh), region=region)
    return _workers(mesh, region, range(1, mesh.workers + 1), loaded.process)


def _own_file(mesh: Mesh) -> Path | None:
    file = mesh.directory / "settings.toml"
    return file if file.exists() else None


def _workers(mesh: Mesh, region: str, numbers: Iterable[int], driver: ProcessSettings) -> tuple[WorkerSettings, ...]:
    return tuple(
        WorkerSettings(
            id=mesh.worker_id(region, number),
            zone=mesh.zone(region, number),
            capacity=DECLARED_CAPACITY,
            data=mesh.workers_directory(region) / mesh.worker_id(region, number),
            process=driver,
        )
        for number in numbers
    )
