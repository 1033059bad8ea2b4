"""A machine-store in memory, behind real gRPC, whose answers tests can lose or hold back."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from typing import Any

import grpc
from skerry.store.v1 import store_pb2_grpc
from skerry.store.v1.store_pb2 import (
    DESIRED_STATE_DESTROYED,
    DESIRED_STATE_STARTED,
    DESIRED_STATE_STOPPED,
    DESIRED_STATE_SUSPENDED,
    AppRecord,
    Change,
    GetAppRequest,
    GetAppResponse,
    HeartbeatRequest,
    HeartbeatResponse,
    MachineRecord,
    Observation,
    RegisterWorkerRequest,
    RegisterWorkerResponse,
    ReportObservationsRequest,
    ReportObservationsResponse,
    StopOverride,
    WatchRequest,
    WatchResponse,
    WorkerRecord,
)
from skerry.types.v1.machine_pb2 import (
    MACHINE_STATE_DESTROYING,
    MACHINE_STATE_RESTARTING,
    MACHINE_STATE_STARTING,
    MACHINE_STATE_STOPPING,
    MACHINE_STATE_SUSPENDING,
    MachineState,
)
from skerry.types.v1.spec_pb2 import MachineSpec

from services.machine_store.transitions import Seen, observe
from services.runtime.errors import DependencyDown, NotFound
from services.runtime.registry import Registry
from services.runtime.server import Server
from tests.support import free_port

_SEEN = {
    "started": Seen.STARTED,
    "failed": Seen.FAILED,
    "destroyed": Seen.DESTROYED,
    "suspended": Seen.SUSPENDED,
    "not_suspended": Seen.NOT_SUSPENDED,
}


class Ledger(store_pb2_grpc.MachineStoreServicer):
    """What a worker needs of a machine-store; it keeps every observation that took effect."""

    def __init__(self) -> None:
        self.records: dict[str, MachineRecord] = {}
        self.observations: list[Observation] = []
        self.journals: dict[str, int] = {}
        self.heartbeats = 0
        self.registrations: list[RegisterWorkerRequest] = []
        self.lose_acknowledgements = 0
        """So many reports take effect without their worker learning of it."""
        self.away = False
        self._log: list[MachineRecord] = []
        self._news = asyncio.Condition()
        self._ids = itertools.count(1)

    # What tests ask for

    async def create(self, spec: MachineSpec, *, worker: str = "w1", started: bool = True, **fields: Any) -> str:
        """Put a machine onto a worker; returns its id."""
        machine_id = f"001{next(self._ids):011x}"
        record = MachineRecord(
            id=machine_id,
            app_id="app-1",
            app_name="demo",
            name=f"m-{machine_id}",
            region="syd",
            state=MACHINE_STATE_STARTING if started else fields.pop("state"),
            desired=DESIRED_STATE_STARTED if started else DESIRED_STATE_STOPPED,
            generation=1,
            instance_id="v1",
            spec=spec,
            worker_id=worker,
            worker_number=1,
            **fields,
        )
        await self.put(record)
        return machine_id

    async def put(self, record: MachineRecord) -> None:
        """Write a record as it is."""
        kept = MachineRecord()
        kept.CopyFrom(record)
        kept.revision = len(self._log) + 1
        self.records[kept.id] = kept
        self._log.append(kept)
        async with self._news:
            self._news.notify_all()

    async def change(self, machine_id: str, **fields: Any) -> None:
        """Write some fields of a machine."""
        record = MachineRecord()
        record.CopyFrom(self.records[machine_id])
        for name, value in fields.items():
            if isinstance(value, StopOverride | MachineSpec):
                getattr(record, name).CopyFrom(value)
            else:
                setattr(record, name, value)
        await self.put(record)

    async def stop(self, machine_id: str, stop: StopOverride | None = None) -> None:
        await self.change(
            machine_id, desired=DESIRED_STATE_STOPPED, state=MACHINE_STATE_STOPPING, stop=stop or StopOverride()
        )

    async def start(self, machine_id: str, *, restart: bool = False, **fields: Any) -> None:
        await self.change(
            machine_id,
            desired=DESIRED_STATE_STARTED,
            state=MACHINE_STATE_RESTARTING if restart else MACHINE_STATE_STARTING,
            generation=self.records[machine_id].generation + 1,
            **fields,
        )

    async def suspend(self, machine_id: str) -> None:
        await self.change(machine_id, desired=DESIRED_STATE_SUSPENDED, state=MACHINE_STATE_SUSPENDING)

    async def resume(self, machine_id: str) -> None:
        await self.change(machine_id, desired=DESIRED_STATE_STARTED, state=MACHINE_STATE_STARTING)

    async def destroy(self, machine_id: str) -> None:
        await self.change(machine_id, desired=DESIRED_STATE_DESTROYED, state=MACHINE_STATE_DESTROYING)

    def state(self, machine_id: str) -> str:
        """The state of a machine, as users write it."""
        return MachineState.Name(self.records[machine_id].state).removeprefix("MACHINE_STATE_").lower()

    def seen(self, machine_id: str, *kinds: str) -> list[Observation]:
        """What was observed of a machine, of some kinds or all but changes of checks."""
        return [
            observation
            for observation in self.observations
            if observation.machine_id == machine_id
            and (
                observation.WhichOneof("seen") in kinds if kinds else observation.WhichOneof("seen") != "checks_changed"
            )
        ]

    def kinds(self, machine_id: str) -> list[str]:
        """Kinds of what was observed of a machine, without changes of checks."""
        return [str(observation.WhichOneof("seen")) for observation in self.seen(machine_id)]

    # What workers call

    async def Watch(
        self, request: WatchRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[WatchResponse]:
        self._must_be_here()
        at = request.from_revision if request.HasField("from_revision") else None
        worker = request.filter.worker_id
        if at is None:
            at = len(self._log)
            state = [record for record in self.records.values() if _concerns(record, worker)]
            yield WatchResponse(
                changes=[Change(machine=record) for record in state],
                revision=at,
                snapshot=True,
                snapshot_complete=True,
                newest_revision=at,
            )
        while True:
            news = self._log[at:]
            at = len(self._log)
            changes = [Change(revision=record.revision, machine=record) for record in news if _concerns(record, worker)]
            if changes:
                yield WatchResponse(changes=changes, revision=at, newest_revision=at)
            async with self._news:
                await self._news.wait_for(lambda at=at: len(self._log) > at or self.away)  # type: ignore[misc]
            self._must_be_here()

    async def RegisterWorker(
        self, request: RegisterWorkerRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> RegisterWorkerResponse:
        self._must_be_here()
        self.registrations.append(request)
        last = self.journals.setdefault(request.journal_id, 0)
        return RegisterWorkerResponse(worker=WorkerRecord(id=request.worker_id, number=1), last_sequence=last)

    async def Heartbeat(
        self, request: HeartbeatRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> HeartbeatResponse:
        self._must_be_here()
        if request.journal_id not in self.journals:
            raise NotFound("register first")
        self.heartbeats += 1
        return HeartbeatResponse()

    async def ReportObservations(
        self, request: ReportObservationsRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> ReportObservationsResponse:
        self._must_be_here()
        if request.journal_id not in self.journals:
            raise NotFound("register first")
        for observation in request.observations:
            if observation.sequence == self.journals[request.journal_id] + 1:
                self.journals[request.journal_id] = observation.sequence
                self.observations.append(observation)
                await self._take_effect(observation)
        if self.lose_acknowledgements:
            self.lose_acknowledgements -= 1
            raise DependencyDown("the answer was lost")
        return ReportObservationsResponse(last_sequence=self.journals[request.journal_id])

    async def GetApp(self, request: GetAppRequest, context: grpc.aio.ServicerContext[Any, Any]) -> GetAppResponse:
        self._must_be_here()
        return GetAppResponse(app=AppRecord(name=request.name, network="net-1"))

    async def leave(self) -> None:
        """Answer nothing any more, and cut every watch."""
        self.away = True
        async with self._news:
            self._news.notify_all()

    def _must_be_here(self) -> None:
        if self.away:
            raise DependencyDown("the store is away")

    async def _take_effect(self, observation: Observation) -> None:
        record = self.records.get(observation.machine_id)
        kind = str(observation.WhichOneof("seen"))
        if record is None:
            return
        if kind == "left":
            await self.change(record.id, leaving_worker_id="")
        elif kind == "checks_changed":
            kept = MachineRecord()
            kept.CopyFrom(record)
            del kept.checks[:]
            kept.checks.extend(observation.checks_changed.checks)
            await self.put(kept)
        elif observation.generation == record.generation:
            again = observation.exited.exit.restarting
            seen = _SEEN.get(kind) or (Seen.RESTARTING if again else Seen.EXITED)
            after = observe(seen, record.state, record.desired)
            await self.change(record.id, state=after.state, desired=after.desired)


def _concerns(record: MachineRecord, worker_id: str) -> bool:
    return worker_id in (record.worker_id, record.leaving_worker_id)


class Served:
    """A ledger that listens; it can go away with its port, and come back."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.address = f"127.0.0.1:{free_port()}"
        self._server: Server | None = None

    async def start(self) -> str:
        registry = Registry(service="machine-store")
        store_pb2_grpc.add_MachineStoreServicer_to_server(self.ledger, registry)
        self._server = Server(registry, self.address)
        port = await self._server.start()
        self.address = f"127.0.0.1:{port}"
        return self.address

    async def stop(self) -> None:
        if self._server is not None:
            await self.ledger.leave()
            await self._server.stop(0)
            self._server = None
            self.ledger.away = False
