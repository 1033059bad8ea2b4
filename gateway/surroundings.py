"""What operations of the gateway need around them: whom they ask, and what they know of the region."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING

from gateway.apps import Apps
from gateway.cells import AppCells
from gateway.retrying import Retries
from gateway.routing import Routing
from gateway.secrets import Secrets
from services.runtime.clock import Clock
from services.runtime.regions import RegionMap

if TYPE_CHECKING:
    from skerry.converter.v1.converter_pb2_grpc import ConfigConverterAsyncStub
    from skerry.scheduler.v1.scheduler_pb2_grpc import SchedulerAsyncStub
    from skerry.store.v1.store_pb2_grpc import MachineStoreAsyncStub
    from skerry.store.v1.volume_store_pb2_grpc import VolumeStoreAsyncStub


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What operations on machines need around them."""

    cell: str
    region: str
    regions: RegionMap
    routing: Routing
    apps: Apps
    cells: AppCells
    secrets: Secrets
    store: MachineStoreAsyncStub
    volumes: VolumeStoreAsyncStub
    converter: ConfigConverterAsyncStub
    scheduler: SchedulerAsyncStub
    retries: Retries
    clock: Clock
    random: Random
    create_waited: Callable[[float], None] | None = None
    """Is told how many seconds the store took for a machine that was created."""
