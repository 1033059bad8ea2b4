"""The machine-store's servicer: messages to what the domain does, and back."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from functools import partial
from random import Random
from typing import Any, TypeAlias

import grpc
from skerry.store.v1 import (
    catalog_store_pb2_grpc,
    cell_store_pb2_grpc,
    plan_store_pb2_grpc,
    release_store_pb2_grpc,
    store_pb2_grpc,
    volume_store_pb2_grpc,
)
from skerry.store.v1 import store_pb2 as pb

from services.machine_store import schema
from services.machine_store.batch import BatchWriter
from services.machine_store.catalog import Catalog
from services.machine_store.catalog_service import CatalogStoreService
from services.machine_store.cell_service import CellStoreService
from services.machine_store.cells import AppCells
from services.machine_store.conversions import Conversions
from services.machine_store.database import Database, is_away
from services.machine_store.events import Events
from services.machine_store.machines import Machines, Page
from services.machine_store.plan import InitialPlan, Plans, make_first_plan
from services.machine_store.plan_service import PlanStoreService
from services.machine_store.records import from_timestamp, moment, timestamp
from services.machine_store.release_service import ReleaseStoreService
from services.machine_store.releases import Releases
from services.machine_store.replica import Replica
from services.machine_store.reports import Reports
from services.machine_store.transitions import Asked
from services.machine_store.volume_service import VolumeStoreService
from services.machine_store.volumes import Volumes
from services.machine_store.watch import Log
from services.machine_store.workers import Workers, age
from services.runtime.clock import Clock
from services.runtime.errors import InvalidConfig, Violation
from services.runtime.registry import Registry
from services.runtime.tasks import run_forever
from services.runtime.telemetry import log

_VERBS = {
    pb.VERB_START: Asked.START,
    pb.VERB_STOP: Asked.STOP,
    pb.VERB_RESTART: Asked.RESTART,
    pb.VERB_DESTROY: Asked.DESTROY,
    pb.VERB_SUSPEND: Asked.SUSPEND,
    pb.VERB_CORDON: Asked.CORDON,
    pb.VERB_UNCORDON: Asked.UNCORDON,
}

_MIGRATION_SECONDS = 600.0

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]


class MachineStoreService(store_pb2_grpc.MachineStoreServicer):
    """The machine-store of one cell, as a component of a process.

    `dsn` is asked whenever a connection is made; the server may be away then, and is waited for. `pool_size` bounds the
    connections for reads; three more write, follow the log and, at the start, migrate. `tick` is the time between polls
    of the log and between bookmarks, in seconds. `initial_plan` says who converts all parts in a new database;
    `migrate` brings its schema up to date.
    """

    name = "machine-store"

    def __init__(
        self,
        dsn: Callable[[], str],
        *,
        cell: str,
        region: str,
        clock: Clock,
        random: Random,
        pool_size: int = 8,
        tick: float = 1.0,
        initial_plan: InitialPlan = "local",
        migrate: schema.Migrate = schema.migrate,
    ) -> None:
        self.cell = cell
        self.region = region
        events = Events(clock, random)
        self._database = Database(dsn, clock=clock, random=random, pool_size=pool_size)
        self._log = Log(self._database, clock=clock, tick=tick)
        self._writer = BatchWriter(self._database, clock=clock, heard=self._log.heard)
        self._machines = Machines(self._database, self._writer, events=events)
        self._reports = Reports(self._database, self._writer, events=events)
        self._workers = Workers(self._database)
        self._catalog = Catalog(self._database, events=events)
        self._initial_plan: InitialPlan = initial_plan
        self._migrate_schema = migrate
        self._clock = clock
        self._plan_store = PlanStoreService(Plans(self._database, clock=clock), Conversions(self._database))
        self._catalog_store = CatalogStoreService(Replica(self._database, events=events), cell)
        self._volume_store = VolumeStoreService(Volumes(self._database, clock=clock))
        self._cell_store = CellStoreService(AppCells(self._database, clock=clock))
        self._release_store = ReleaseStoreService(Releases(self._database, clock=clock))

    def register(self, registry: Registry) -> None:
        """Add the servicers to `registry`."""
        store_pb2_grpc.add_MachineStoreServicer_to_server(self, registry)
        plan_store_pb2_grpc.add_PlanStoreServicer_to_server(self._plan_store, registry)
        catalog_store_pb2_grpc.add_CatalogStoreServicer_to_server(self._catalog_store, registry)
        volume_store_pb2_grpc.add_VolumeStoreServicer_to_server(self._volume_store, registry)
        release_store_pb2_grpc.add_ReleaseStoreServicer_to_server(self._release_store, registry)
        cell_store_pb2_grpc.add_CellStoreServicer_to_server(self._cell_store, registry)

    async def run(self, ready: Callable[[], None]) -> None:
        """Migrate, then write and follow the log until cancelled; calls `ready` when it has caught up."""
        await self._migrate()
        await self._database.open()
        try:
            await run_forever(writer=self._writer.run(), log=self._log.run(ready))
        finally:
            self._database.close()

    async def _migrate(self) -> None:
        for attempt in range(10**9):
            try:
                connect = partial(self._database.connect, "migration", command_timeout=_MIGRATION_SECONDS)
                await self._migrate_schema(connect)
                await make_first_plan(self._database.connect, self._initial_plan, moment(self._clock.now()))
                return
            except Exception as error:
                if not (is_away(error) or is_away(error.__cause__ or error)):
                    raise
                if attempt == 0:
                    log.warning("postgres_away", wanted_by="migration", error=str(error))
                await self._database.back_off(attempt)

    async def Watch(self, request: pb.WatchRequest, context: Context) -> AsyncIterator[pb.WatchResponse]:
        async for response in self._log.watch(request):
            yield response

    async def CreateMachine(self, request: pb.CreateMachineRequest, context: Context) -> pb.CreateMachineResponse:
        made = await self._machines.create(request)
        return pb.CreateMachineResponse(machine=made.machine, repeated_request=made.repeated, events=made.events)

    async def UpdateMachine(self, request: pb.UpdateMachineRequest, context: Context) -> pb.UpdateMachineResponse:
        changed = await self._machines.update(request)
        return pb.UpdateMachineResponse(machine=changed.machine, events=changed.events)

    async def ApplyVerb(self, request: pb.ApplyVerbRequest, context: Context) -> pb.ApplyVerbResponse:
        asked = _VERBS.get(request.verb)
        if asked is None:
            raise InvalidConfig("verb is missing", violations=[Violation("verb", "is missing")])
        changed = await self._machines.apply(request, asked)
        return pb.ApplyVerbResponse(
            machine=changed.machine, previous_state=changed.previous_state, changed=changed.changed
        )

    async def GetMachine(self, request: pb.GetMachineRequest, context: Context) -> pb.GetMachineResponse:
        machine, events = await self._machines.get(request.machine_id, request.app_id, events=request.events)
        return pb.GetMachineResponse(machine=machine, events=events)

    async def ListMachines(
        self, request: pb.ListMachinesRequest, context: Context
    ) -> AsyncIterator[pb.ListMachinesResponse]:
        page = None
        if request.limit or request.HasField("after_created_at"):
            page = Page(from_timestamp(request.after_created_at), request.after_id, request.limit)
        async for machines in self._machines.list(
            request.app_id,
            include_destroyed=request.include_destroyed,
            states=request.states,
            metadata=request.metadata,
            whole=request.view == pb.MACHINE_VIEW_FULL,
            page=page,
        ):
            yield pb.ListMachinesResponse(machines=machines)

    async def ListMachineEvents(
        self, request: pb.ListMachineEventsRequest, context: Context
    ) -> pb.ListMachineEventsResponse:
        events = await self._machines.events(request.machine_id, request.app_id, request.limit)
        return pb.ListMachineEventsResponse(events=events)

    async def ListMachineVersions(
        self, request: pb.ListMachineVersionsRequest, context: Context
    ) -> pb.ListMachineVersionsResponse:
        versions = await self._machines.versions(request.machine_id, request.app_id, request.limit)
        return pb.ListMachineVersionsResponse(versions=versions)

    async def AcquireLease(self, request: pb.AcquireLeaseRequest, context: Context) -> pb.AcquireLeaseResponse:
        return pb.AcquireLeaseResponse(lease=await self._machines.acquire_lease(request))

    async def ReleaseLease(self, request: pb.ReleaseLeaseRequest, context: Context) -> pb.ReleaseLeaseResponse:
        return pb.ReleaseLeaseResponse(lease=await self._machines.release_lease(request))

    async def ChangeMetadata(self, request: pb.ChangeMetadataRequest, context: Context) -> pb.ChangeMetadataResponse:
        return pb.ChangeMetadataResponse(machine=(await self._machines.change_metadata(request)).machine)

    async def ExplainDelay(self, request: pb.ExplainDelayRequest, context: Context) -> pb.ExplainDelayResponse:
        return pb.ExplainDelayResponse(changed=await self._machines.explain_delay(request))

    async def LookupIdempotencyKey(
        self, request: pb.LookupIdempotencyKeyRequest, context: Context
    ) -> pb.LookupIdempotencyKeyResponse:
        made = await self._machines.made_by(request.app_id, request.idempotency_key, request.request_fingerprint)
        if made is None:
            return pb.LookupIdempotencyKeyResponse()
        return pb.LookupIdempotencyKeyResponse(machine=made[0], events=made[1])

    async def RegisterWorker(self, request: pb.RegisterWorkerRequest, context: Context) -> pb.RegisterWorkerResponse:
        worker, last_sequence = await self._workers.register(request)
        return pb.RegisterWorkerResponse(worker=worker, last_sequence=last_sequence)

    async def Heartbeat(self, request: pb.HeartbeatRequest, context: Context) -> pb.HeartbeatResponse:
        await self._workers.heartbeat(request.worker_id, request.journal_id)
        return pb.HeartbeatResponse()

    async def ReportObservations(
        self, request: pb.ReportObservationsRequest, context: Context
    ) -> pb.ReportObservationsResponse:
        last_sequence = await self._reports.report(request.worker_id, request.journal_id, request.observations)
        return pb.ReportObservationsResponse(last_sequence=last_sequence)

    async def ListWorkers(self, request: pb.ListWorkersRequest, context: Context) -> pb.ListWorkersResponse:
        workers, now = await self._workers.list()
        return pb.ListWorkersResponse(workers=workers, now=timestamp(now))

    async def CreateApp(self, request: pb.CreateAppRequest, context: Context) -> pb.CreateAppResponse:
        return pb.CreateAppResponse(app=await self._catalog.create(request))

    async def GetApp(self, request: pb.GetAppRequest, context: Context) -> pb.GetAppResponse:
        return await self._catalog.get(request.name)

    async def ListApps(self, request: pb.ListAppsRequest, context: Context) -> pb.ListAppsResponse:
        return pb.ListAppsResponse(apps=await self._catalog.list(request.organization_slug))

    async def DeleteApp(self, request: pb.DeleteAppRequest, context: Context) -> pb.DeleteAppResponse:
        return pb.DeleteAppResponse(machines=await self._catalog.delete(request.name, request.source))

    async def AcquireDuty(self, request: pb.AcquireDutyRequest, context: Context) -> pb.AcquireDutyResponse:
        lead = await self._workers.acquire(request.duty, request.holder, request.lease)
        return pb.AcquireDutyResponse(acquired=lead.acquired, holder=lead.holder, term=lead.term)

    async def SetWorkerStatus(self, request: pb.SetWorkerStatusRequest, context: Context) -> pb.SetWorkerStatusResponse:
        worker = await self._workers.set_status(request.term, request.worker_id, request.status)
        return pb.SetWorkerStatusResponse(worker=worker)

    async def RepairReservations(
        self, request: pb.RepairReservationsRequest, context: Context
    ) -> pb.RepairReservationsResponse:
        return pb.RepairReservationsResponse(worker_ids=await self._workers.repair_reservations(request.term))

    async def PurgeExpired(self, request: pb.PurgeExpiredRequest, context: Context) -> pb.PurgeExpiredResponse:
        purged = await self._workers.purge(
            request.term,
            age(request.log_age, "log_age"),
            age(request.key_age, "key_age"),
            age(request.destroyed_age, "destroyed_age"),
        )
        return pb.PurgeExpiredResponse(log_entries=purged.log_entries, keys=purged.keys, machines=purged.machines)
