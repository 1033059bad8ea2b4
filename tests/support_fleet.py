"""Workers and machines for tests of the scheduler, as the log tells of them."""

from __future__ import annotations

from collections.abc import Sequence

from google.protobuf.timestamp_pb2 import Timestamp
from skerry.store.v1.store_pb2 import MachineRecord, WorkerRecord
from skerry.types.v1.machine_pb2 import HOST_STATUS_OK, MACHINE_STATE_STARTED, HostStatus, MachineState
from skerry.types.v1.resources_pb2 import Resources
from skerry.types.v1.spec_pb2 import SCHEDULE_INTERVAL_UNSPECIFIED, ScheduleInterval

from services.runtime.ids import AppId
from services.runtime.resources import to_vector
from services.scheduler.fleet import Need

GIB = 1 << 30


def amounts(memory: int = 0, shared: int = 0, performance: int = 0, disk: int = 0, a10: int = 0) -> Resources:
    """Memory and disk in GiB, CPUs whole."""
    return Resources(
        shared_cpu_millicores=shared * 1000,
        performance_cpu_millicores=performance * 1000,
        memory_bytes=memory * GIB,
        disk_bytes=disk * GIB,
        gpus_a10=a10,
    )


def worker(
    worker_id: str,
    capacity: Resources | None = None,
    *,
    cordoned: bool = False,
    status: HostStatus.ValueType = HOST_STATUS_OK,
    dedication: str = "",
    heartbeat: float = 0.0,
) -> WorkerRecord:
    """A worker of 16 GiB, 16 shared CPUs and 100 GiB of disk, unless `capacity` says otherwise; heartbeat in unix s."""
    return WorkerRecord(
        id=worker_id,
        capacity=capacity or amounts(memory=16, shared=16, disk=100),
        cordoned=cordoned,
        status=status,
        host_dedication_id=dedication,
        heartbeat_at=timestamp(heartbeat),
    )


def machine(
    machine_id: str,
    worker_id: str,
    reserved: Resources | None = None,
    *,
    app: str = "app",
    state: MachineState.ValueType = MACHINE_STATE_STARTED,
    leaving: str = "",
    leaving_reserved: Resources | None = None,
    schedule: ScheduleInterval.ValueType = SCHEDULE_INTERVAL_UNSPECIFIED,
    standby_for: Sequence[str] = (),
    generation: int = 1,
    generation_at: float | None = 0.0,
    created_at: float = 0.0,
    updated_at: float = 0.0,
) -> MachineRecord:
    """A machine of 1 GiB, unless `reserved` says otherwise; moments in unix seconds."""
    return MachineRecord(
        id=machine_id,
        app_id=app,
        worker_id=worker_id,
        reserved=reserved or amounts(memory=1),
        state=state,
        leaving_worker_id=leaving,
        leaving_reserved=leaving_reserved,
        schedule=schedule,
        standby_for=standby_for,
        generation=generation,
        generation_at=None if generation_at is None else timestamp(generation_at),
        created_at=timestamp(created_at),
        updated_at=timestamp(updated_at),
    )


def need(
    asked: Resources | None = None,
    *,
    app: str = "app",
    dedication: str = "",
    required: str = "",
    excluded: Sequence[str] = (),
) -> Need:
    """What a machine of 1 GiB needs, unless `asked` says otherwise."""
    return Need(
        AppId(app),
        tuple(to_vector(asked or amounts(memory=1))),
        host_dedication_id=dedication,
        required_worker_id=required,
        excluded_worker_ids=frozenset(excluded),
    )


def timestamp(seconds: float) -> Timestamp:
    """A moment, from unix seconds."""
    moment = Timestamp()
    moment.FromNanoseconds(round(seconds * 1e9))
    return moment
