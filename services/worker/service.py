"""The worker on the wire: the agents of a process as one gRPC service, and the store as their agents see it."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, Never

import grpc
from google.protobuf.timestamp_pb2 import Timestamp
from skerry.store.v1.catalog_pb2 import SecretsRecord
from skerry.store.v1.catalog_store_pb2 import GetSecretsRequest
from skerry.store.v1.catalog_store_pb2_grpc import CatalogStoreStub
from skerry.store.v1.store_pb2 import (
    GetAppRequest,
    HeartbeatRequest,
    ListWorkersRequest,
    RegisterWorkerRequest,
    RegisterWorkerResponse,
    ReportObservationsRequest,
    ReportObservationsResponse,
    WatchFilter,
)
from skerry.store.v1.store_pb2_grpc import MachineStoreStub
from skerry.store.v1.volume_store_pb2 import CreateSnapshotRequest, ReportVolumesRequest, ReportVolumesResponse
from skerry.store.v1.volume_store_pb2_grpc import VolumeStoreStub
from skerry.worker.v1 import worker_pb2_grpc
from skerry.worker.v1.worker_pb2 import (
    ExecRequest,
    ExecResponse,
    Instance,
    Listener,
    ListInstancesRequest,
    ListInstancesResponse,
    ListProcessesRequest,
    ListProcessesResponse,
    Process,
    ReadLogRequest,
    ReadLogResponse,
    ReadVolumeRequest,
    ReadVolumeResponse,
    SendSignalRequest,
    SendSignalResponse,
)

from services.runtime.addresses import network_of
from services.runtime.clock import Clock
from services.runtime.errors import DependencyDown, InvalidConfig, NotFound, Violation
from services.runtime.following import Follower, follow
from services.runtime.ids import new_ulid
from services.runtime.registry import Registry
from services.runtime.sealing import Keyring
from services.runtime.tasks import run_forever
from services.worker.agent import Agent
from services.worker.agent import Instance as Here
from services.worker.contents import read_archive
from services.worker.drivers.driver import Driver
from services.worker.drivers.process import ProcessDriver
from services.worker.inside import Stat, processes_of, run_command
from services.worker.logs import read_log
from services.worker.settings import WorkerSettings

if TYPE_CHECKING:
    from skerry.store.v1.catalog_store_pb2_grpc import CatalogStoreAsyncStub
    from skerry.store.v1.store_pb2_grpc import MachineStoreAsyncStub
    from skerry.store.v1.volume_store_pb2_grpc import VolumeStoreAsyncStub
    from skerry.worker.v1.worker_pb2_grpc import WorkerAsyncStub

_CALL_SECONDS = 5.0
_READ_SECONDS = 3_600.0
"""How long reading a whole volume may take."""
_DEFAULT_TAIL_BYTES = 65_536

Connect = Callable[[str], grpc.aio.Channel]
"""Makes a channel to the worker service at an address."""


class WorkerService(worker_pb2_grpc.WorkerServicer):
    """The workers of this process: a component, and the servicer of skerry.worker.v1.Worker."""

    name = "worker"

    def __init__(
        self,
        store: grpc.aio.Channel,
        workers: Sequence[WorkerSettings],
        *,
        region: str,
        cell: str,
        clock: Clock,
        random: Random,
        address: str | Callable[[], str] = "",
        keyring: Keyring | None = None,
        connect_worker: Connect | None = None,
    ) -> None:
        """`store` leads to the machine-store of the cell. `address` is where others reach this service, for its record
        in the store; a function is asked when the worker registers, when the process listens already. `keyring` opens
        the secrets of apps; without it, machines have none. `connect_worker` makes channels to workers at an address,
        for volumes that begin with what is there; without it, these wait.
        """
        self._clock = clock
        where: Callable[[], str] = address if callable(address) else lambda: address
        client = _StoreClient(store, clock, random, connect_worker)
        self._agents = [
            Agent(
                settings,
                client,
                _driver(settings, clock),
                region=region,
                cell=cell,
                address=where,
                clock=clock,
                random=random,
                new_journal_id=lambda: new_ulid(clock.now(), random),
                keyring=keyring,
            )
            for settings in workers
        ]

    def register(self, registry: Registry) -> None:
        worker_pb2_grpc.add_WorkerServicer_to_server(self, registry)

    async def run(self, ready: Callable[[], None]) -> Never:
        """Run the agents until cancelled; machines go on.

        `ready` is called once all are registered and know what they are to run.
        """
        waiting = {agent.worker_id for agent in self._agents}

        def one_ready(worker_id: str) -> Callable[[], None]:
            def tell() -> None:
                waiting.discard(worker_id)
                if not waiting:
                    ready()

            return tell

        await run_forever(
            **{f"worker {agent.worker_id}": agent.run(one_ready(agent.worker_id)) for agent in self._agents}
        )

    async def stop_machines(self, timeout: float) -> None:
        """Stop every machine of these workers, killing what has not ended after `timeout` seconds.

        What they are asked to be does not change: the next start of the workers starts them again. Works whether the
        workers run or not (not while another process runs them).
        """
        await asyncio.gather(*(agent.halt(timeout) for agent in self._agents))

    async def ListInstances(
        self, request: ListInstancesRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> ListInstancesResponse:
        agents = [agent for agent in self._agents if request.worker_id in ("", agent.worker_id)]
        if not agents:
            raise NotFound(f"worker {request.worker_id} is not of this process")
        return ListInstancesResponse(instances=[_instance(here) for agent in agents for here in agent.instances()])

    async def ReadLog(
        self, request: ReadLogRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[ReadLogResponse]:
        path = self._log_of(request.machine_id)
        tail = request.tail_bytes or _DEFAULT_TAIL_BYTES
        async for data in read_log(path, tail, follow=request.follow, clock=self._clock):
            yield ReadLogResponse(data=data)

    async def Exec(self, request: ExecRequest, context: grpc.aio.ServicerContext[Any, Any]) -> ExecResponse:
        _, inside, ended = self._agent_of(request.machine_id).inside(request.machine_id)
        seconds = request.timeout.ToNanoseconds() / 1e9
        try:
            ran = await run_command(inside, request.command, request.stdin, seconds=seconds, ended=ended)
        except OSError as error:
            raise InvalidConfig(
                f"the command cannot be run in machine {request.machine_id}: {error.strerror or error}",
                violations=[Violation("cmd", f"cannot be run: {error.strerror or error}")],
            ) from error
        return ExecResponse(
            exit_code=ran.exit_code,
            stdout=ran.stdout.data,
            stderr=ran.stderr.data,
            timed_out=ran.timed_out,
            stdout_truncated=ran.stdout.truncated,
            stderr_truncated=ran.stderr.truncated,
        )

    async def ListProcesses(
        self, request: ListProcessesRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> ListProcessesResponse:
        _, inside, _ = self._agent_of(request.machine_id).inside(request.machine_id)
        stats = await asyncio.to_thread(processes_of, inside)
        return ListProcessesResponse(processes=[_process(stat) for stat in stats])

    async def SendSignal(
        self, request: SendSignalRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> SendSignalResponse:
        if not 1 <= request.signal < signal.NSIG:
            why = f"is {request.signal}: it must be from 1 to {signal.NSIG - 1}"
            raise InvalidConfig(f"signal {why}", violations=[Violation("signal", why)])
        self._agent_of(request.machine_id).send_signal(request.machine_id, request.signal)
        return SendSignalResponse()

    async def ReadVolume(
        self, request: ReadVolumeRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[ReadVolumeResponse]:
        for agent in self._agents:
            path = (
                agent.volumes.path_of_volume(request.volume_id)
                if request.WhichOneof("content") == "volume_id"
                else agent.volumes.path_of_snapshot(request.snapshot_id)
            )
            if path is not None:
                async for data in read_archive(path):
                    yield ReadVolumeResponse(data=data)
                return
        raise NotFound(f"{request.volume_id or request.snapshot_id} is on no worker of this process")

    def _agent_of(self, machine_id: str) -> Agent:
        for agent in self._agents:
            if agent.has(machine_id):
                return agent
        raise NotFound(f"machine {machine_id} is on no worker of this process")

    def _log_of(self, machine_id: str) -> Path:
        for agent in self._agents:
            path = agent.log_of(machine_id)
            if path is not None:
                return path
        raise NotFound(f"machine {machine_id} is on no worker of this process")


class _StoreClient:
    """The machine-store as the agents see it."""

    def __init__(
        self, channel: grpc.aio.Channel, clock: Clock, random: Random, connect_worker: Connect | None = None
    ) -> None:
        self._stub: MachineStoreAsyncStub = MachineStoreStub(channel)
        self._catalog: CatalogStoreAsyncStub = CatalogStoreStub(channel)
        self._volumes: VolumeStoreAsyncStub = VolumeStoreStub(channel)
        self._connect_worker = connect_worker
        self._clock = clock
        self._random = random

    async def register(self, request: RegisterWorkerRequest) -> RegisterWorkerResponse:
        return await self._stub.RegisterWorker(request, timeout=_CALL_SECONDS)

    async def heartbeat(self, request: HeartbeatRequest, timeout: float) -> None:
        await self._stub.Heartbeat(request, timeout=timeout)

    async def report(self, request: ReportObservationsRequest) -> ReportObservationsResponse:
        return await self._stub.ReportObservations(request, timeout=_CALL_SECONDS)

    async def network_of(self, app_name: str) -> str:
        try:
            answer = await self._stub.GetApp(GetAppRequest(name=app_name), timeout=_CALL_SECONDS)
        except NotFound:
            return ""
        return network_of(answer.app)

    async def secrets_of(self, app_id: str) -> SecretsRecord | None:
        answer = await self._catalog.GetSecrets(GetSecretsRequest(app_id=app_id), timeout=_CALL_SECONDS)
        return answer.secrets if answer.HasField("secrets") else None

    async def report_volumes(self, request: ReportVolumesRequest) -> ReportVolumesResponse:
        return await self._volumes.ReportVolumes(request, timeout=_CALL_SECONDS)

    async def take_snapshot(self, request: CreateSnapshotRequest) -> None:
        await self._volumes.CreateSnapshot(request, timeout=_CALL_SECONDS)

    async def read_elsewhere(self, worker_id: str, *, volume_id: str, snapshot_id: str) -> AsyncIterator[bytes]:
        listed = await self._stub.ListWorkers(ListWorkersRequest(), timeout=_CALL_SECONDS)
        address = next((worker.address for worker in listed.workers if worker.id == worker_id), "")
        if not address or self._connect_worker is None:
            raise DependencyDown(
                f"worker {worker_id} cannot be reached from here", metadata={"dependency": "worker"}, retry_after=1.0
            )
        request = ReadVolumeRequest(volume_id=volume_id) if volume_id else ReadVolumeRequest(snapshot_id=snapshot_id)
        async with self._connect_worker(address) as channel:
            stub: WorkerAsyncStub = worker_pb2_grpc.WorkerStub(channel)
            async for response in stub.ReadVolume(request, timeout=_READ_SECONDS):
                yield response.data

    async def follow(self, filter: WatchFilter, follower: Follower, on_caught_up: Callable[[], None]) -> Never:
        await follow(self._stub, filter, follower, on_caught_up=on_caught_up, clock=self._clock, random=self._random)


def _driver(settings: WorkerSettings, clock: Clock) -> Driver:
    return ProcessDriver(settings.data, settings.id, settings.process, clock)


def _process(stat: Stat) -> Process:
    process = Process(
        pid=stat.pid,
        command=stat.command,
        directory=stat.directory,
        resident_bytes=stat.resident_bytes,
        listeners=[Listener(protocol=each.protocol, address=each.address) for each in stat.listeners],
    )
    process.started_at.FromNanoseconds(int(stat.started_at * 1e9))
    process.cpu.FromNanoseconds(int(stat.cpu * 1e9))
    process.system_cpu.FromNanoseconds(int(stat.system_cpu * 1e9))
    return process


def _instance(here: Here) -> Instance:
    entry = here.entry
    instance = Instance(
        machine_id=entry.machine_id,
        generation=entry.generation,
        instance_id=entry.instance_id,
        pid=entry.pid,
        restart_count=entry.restart_count,
        worker_id=here.worker_id,
    )
    if entry.pid:
        started_at = Timestamp()
        started_at.FromNanoseconds(int(entry.started_at * 1e9))
        instance.started_at.CopyFrom(started_at)
    return instance
