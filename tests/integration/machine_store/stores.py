"""Machine-stores on real databases, and short words for what tests ask of them."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from random import Random

import asyncpg
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from skerry.store.v1 import store_pb2 as pb
from skerry.store.v1 import store_pb2_grpc, volume_store_pb2_grpc
from skerry.types.v1.machine_pb2 import MachineCheckStatus, MachineExitEvent, MachineState
from skerry.types.v1.resources_pb2 import Resources

from services.machine_store.service import MachineStoreService
from services.runtime.channels import local
from services.runtime.clock import SystemClock
from services.runtime.ids import new_machine_id, new_ulid
from services.runtime.registry import Registry
from services.runtime.tasks import cancel

MakeDatabase = Callable[[], Awaitable[str]]

ROOM = Resources(shared_cpu_millicores=10**9, memory_bytes=2**50, disk_bytes=2**50)
NEED = Resources(shared_cpu_millicores=1000, memory_bytes=2**28, disk_bytes=2**30)
APP = "app-1"


class Store:
    """One process's machine-store, seen through a channel."""

    def __init__(
        self,
        service: MachineStoreService,
        stub: store_pb2_grpc.MachineStoreAsyncStub,
        seed: int,
        volumes: volume_store_pb2_grpc.VolumeStoreAsyncStub,
    ) -> None:
        self.service = service
        self.stub = stub
        self.volumes = volumes
        self.random = Random(seed)
        self._numbers = itertools.count(1)
        self.sequences: dict[str, int] = {}

    async def worker(
        self, worker_id: str = "w1", capacity: Resources = ROOM, *, journal: str = "j1", zone: str = "a"
    ) -> pb.RegisterWorkerResponse:
        return await self.stub.RegisterWorker(
            pb.RegisterWorkerRequest(
                worker_id=worker_id,
                zone=zone,
                address="127.0.0.1:1",
                capacity=capacity,
                journal_id=journal,
                driver="process",
            )
        )

    async def app(self, app_id: str = APP, name: str = "web") -> pb.AppRecord:
        request = pb.CreateAppRequest(app_id=app_id, name=name, organization_slug="personal", home_cell="001")
        return (await self.stub.CreateApp(request)).app

    def request(
        self,
        name: str | None = None,
        *,
        app_id: str = APP,
        workers: Sequence[str] = ("w1",),
        need: Resources = NEED,
        launch: bool = True,
        key: str = "",
        fingerprint: bytes = b"f",
        auto_destroy: bool = False,
    ) -> pb.CreateMachineRequest:
        request = pb.CreateMachineRequest(
            machine_id=new_machine_id("001", self.random),
            instance_id=new_ulid(time.time(), self.random),
            app_id=app_id,
            name=name or f"m-{self.random.getrandbits(40):x}-{next(self._numbers)}",
            region="syd",
            need=need,
            candidate_worker_ids=workers,
            launch=launch,
            idempotency_key=key,
            request_fingerprint=fingerprint,
            source="user",
        )
        request.config.image = "nginx"
        request.config.env["A"] = "1"
        request.conversion.spec.image.repository = "library/nginx"
        request.conversion.spec.metadata.entries["role"] = "test"
        request.conversion.spec.restart.auto_destroy = auto_destroy
        request.conversion.parts.add(part="image", version=1)
        return request

    async def create(self, name: str | None = None, **how: object) -> pb.MachineRecord:
        request = self.request(name, **how)  # type: ignore[arg-type]
        return (await self.stub.CreateMachine(request)).machine

    async def verb(
        self, machine_id: str, verb: pb.Verb.ValueType, *, force: bool = False, generation: int = 0
    ) -> pb.ApplyVerbResponse:
        return await self.stub.ApplyVerb(
            pb.ApplyVerbRequest(
                machine_id=machine_id, verb=verb, force=force, source="user", expected_generation=generation
            )
        )

    async def update(
        self,
        machine_id: str,
        *,
        need: Resources = NEED,
        workers: Sequence[str] = (),
        skip_launch: bool = False,
        current_version: str = "",
        name: str = "",
        instance_id: str = "",
        image: str = "nginx",
        lease_nonce: str | None = None,
    ) -> pb.MachineRecord:
        request = pb.UpdateMachineRequest(
            machine_id=machine_id,
            app_id=APP,
            instance_id=instance_id or new_ulid(time.time(), self.random),
            current_version=current_version,
            name=name,
            need=need,
            candidate_worker_ids=workers,
            skip_launch=skip_launch,
            source="user",
            lease_nonce=lease_nonce,
        )
        request.config.image = image
        request.conversion.spec.image.repository = image
        return (await self.stub.UpdateMachine(request)).machine

    async def get(self, machine_id: str, events: int = 0) -> pb.GetMachineResponse:
        return await self.stub.GetMachine(pb.GetMachineRequest(machine_id=machine_id, events=events))

    async def state(self, machine_id: str) -> MachineState.ValueType:
        return (await self.get(machine_id)).machine.state

    async def list(self, app_id: str = APP, *, destroyed: bool = False) -> list[pb.MachineRecord]:
        request = pb.ListMachinesRequest(app_id=app_id, include_destroyed=destroyed)
        return [machine async for part in self.stub.ListMachines(request) for machine in part.machines]

    async def report(self, worker_id: str, *observations: pb.Observation, journal: str = "j1") -> int:
        """Report observations under the next numbers of the worker's journal."""
        for observation in observations:
            self.sequences[worker_id] = self.sequences.get(worker_id, 0) + 1
            observation.sequence = self.sequences[worker_id]
        return await self.report_again(worker_id, *observations, journal=journal)

    async def report_again(self, worker_id: str, *observations: pb.Observation, journal: str = "j1") -> int:
        """Report observations as they are numbered."""
        request = pb.ReportObservationsRequest(worker_id=worker_id, journal_id=journal, observations=observations)
        return (await self.stub.ReportObservations(request)).last_sequence

    async def workers(self) -> dict[str, pb.WorkerRecord]:
        return {worker.id: worker for worker in (await self.stub.ListWorkers(pb.ListWorkersRequest())).workers}

    async def reserved(self, worker_id: str) -> Resources:
        return (await self.workers())[worker_id].reserved

    async def lead(self, duty: str = "reconcile", holder: str = "h1", lease: float = 5.0) -> pb.AcquireDutyResponse:
        length = Duration()
        length.FromNanoseconds(int(lease * 1e9))
        return await self.stub.AcquireDuty(pb.AcquireDutyRequest(duty=duty, holder=holder, lease=length))


@asynccontextmanager
async def running_store(dsn: str, *, seed: int = 1, tick: float = 0.05) -> AsyncIterator[Store]:
    """A machine-store that has caught up."""
    service = MachineStoreService(
        lambda: dsn, cell="001", region="syd", clock=SystemClock(), random=Random(seed), tick=tick
    )
    registry = Registry(service="machine-store", secret="s")
    service.register(registry)
    ready = asyncio.Event()
    task = asyncio.create_task(service.run(ready.set))
    waiting = asyncio.create_task(ready.wait())
    try:
        await asyncio.wait([task, waiting], timeout=30, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            await task
        assert ready.is_set(), "the store does not become ready"
        channel = local(registry, caller="001/tests", callee="machine-store", secret="s", default_timeout=30)
        volumes = volume_store_pb2_grpc.VolumeStoreStub(channel)
        yield Store(service, store_pb2_grpc.MachineStoreStub(channel), seed, volumes)
    finally:
        await cancel(task, waiting)


@asynccontextmanager
async def connection_to(dsn: str) -> AsyncIterator[asyncpg.Connection]:
    """A connection past the store, to look at what it wrote."""
    connection = await asyncpg.connect(dsn)
    try:
        yield connection
    finally:
        await connection.close()


def started(machine: pb.MachineRecord, restarts: int = 0) -> pb.Observation:
    return about(machine, started=pb.Started(restart_count=restarts))


def exited(
    machine: pb.MachineRecord, *, restarting: bool = False, requested: bool = False, restarts: int = 0
) -> pb.Observation:
    end = MachineExitEvent(exit_code=1, restarting=restarting, requested_stop=requested)
    return about(machine, exited=pb.Exited(exit=end, restart_count=restarts))


def failed(machine: pb.MachineRecord, reason: str = "it has no command") -> pb.Observation:
    return about(machine, failed=pb.Failed(reason=reason))


def destroyed(machine: pb.MachineRecord) -> pb.Observation:
    return about(machine, destroyed=pb.Destroyed())


def left(machine: pb.MachineRecord) -> pb.Observation:
    return about(machine, left=pb.Left())


def checks(machine: pb.MachineRecord, *statuses: str) -> pb.Observation:
    results = [MachineCheckStatus(name=f"c{n}", status=status) for n, status in enumerate(statuses)]
    return about(machine, checks_changed=pb.ChecksChanged(checks=results))


def about(machine: pb.MachineRecord, **seen: object) -> pb.Observation:
    """What a worker saw of a machine just now."""
    at = Timestamp()
    at.GetCurrentTime()
    return pb.Observation(machine_id=machine.id, generation=machine.generation, at=at, **seen)  # type: ignore[arg-type]
