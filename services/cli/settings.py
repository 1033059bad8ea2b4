"""The settings of one process of a mesh: what `up` planned, over DIR/settings.toml, where the operator may say more."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import SecretStr
from skerry.types.v1.resources_pb2 import Resources

from gateway.settings import GatewayLimits
from services.central_sync.settings import CentralSyncSettings
from services.cli.mesh import (
    CENTRAL,
    CENTRAL_SYNC,
    CONFIG_CONVERTER,
    HOST,
    MACHINE_STORE,
    SCHEDULER,
    SET,
    WORKER,
    Mesh,
    Process,
)
from services.config_converter.settings import HandoverSettings
from services.runtime.errors import InvalidConfig, Violation
from services.runtime.sealing import KEY_BYTES, Keyring
from services.runtime.settings import Addresses, Database, Settings
from services.scheduler.settings import SchedulingSettings
from services.worker.settings import ProcessSettings, WorkerSettings

if TYPE_CHECKING:
    from services.central.settings import CentralSettings

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


_PEERS = (CONFIG_CONVERTER, MACHINE_STORE, SCHEDULER, CENTRAL_SYNC)


class MeshSettings(Settings):
    """What a process of a mesh is told."""

    limits: GatewayLimits = GatewayLimits()
    plan: Literal["local", "central"] = "local"
    """Who converts at first, in a region whose plan was never made."""
    central_sync: CentralSyncSettings | None = None
    """How the centre is reached."""
    central_gateway_token: SecretStr | None = None
    """The token that names the centre, where it calls a gateway."""
    secrets_keys: tuple[SecretStr, ...] = ()
    """Keys for secrets of apps at rest in the region, 64 hex digits each: the first one seals, all of them open."""
    drill_no_guard: bool = False
    """The dependency guard refuses nothing. Only a drill takes it away."""
    handover: HandoverSettings = HandoverSettings()
    """The hand-over of conversion."""

    scheduler: SchedulingSettings = SchedulingSettings()
    """The scheduler and its reconciler."""
    process: ProcessSettings = ProcessSettings()
    """The process driver of its workers; `[process.images]` says which command stands for an image."""
    workers: tuple[WorkerSettings, ...] = ()
    """The workers that live in this process."""

    def keyring(self) -> Keyring:
        """The keys for secrets. Raises InvalidConfig when there is none, or one is no key."""
        try:
            return Keyring([bytes.fromhex(key.get_secret_value()) for key in self.secrets_keys])
        except ValueError:
            why = f"must be one key at least, each of {2 * KEY_BYTES} hex digits"
            raise InvalidConfig(f"secrets_keys {why}", violations=[Violation("secrets_keys", why)]) from None


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
        peers={name: mesh.addresses(region, name) for name in _PEERS},
        database=Database(directory=mesh.postgres_directory(region)),
        otlp=mesh.otlp,
        plan=mesh.plan,
        central_sync=CentralSyncSettings(
            urls=tuple(f"{url}/graphql" for url in mesh.central_urls),
            token=SecretStr(mesh.central_secret("central-token")),
        ),
        central_gateway_token=SecretStr(mesh.central_secret("central-gateway-token")),
        secrets_keys=tuple(map(SecretStr, mesh.secrets_keys(region))),
    )
    return loaded.model_copy(update={"workers": _workers(mesh, region, numbers, loaded.process)})


def central_settings_of(mesh: Mesh, process: Process) -> CentralSettings:
    """The settings of an instance of the centre."""
    from services.central.settings import CentralSettings

    doors = {code: mesh.endpoints({})["regions"][code]["rest"] for code in mesh.regions}
    return CentralSettings(
        listen=f"{HOST}:{process.rest}",
        postgres_dir=mesh.postgres_directory(CENTRAL),
        token=SecretStr(mesh.central_secret("central-token")),
        development_token=SecretStr(mesh.token),
        secret_key=SecretStr(mesh.central_secret("central-key")),
        region_map=mesh.region_map,
        gateways=doors,
        gateway_token=SecretStr(mesh.central_secret("central-gateway-token")),
        release=mesh.central_releases[process.instance - 1],
        faults=True,
    )


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
