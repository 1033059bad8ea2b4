"""A cell for tests of central-sync: a real store on a real PostgreSQL, real gRPC, and any number of instances."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING, Any

import grpc
from google.protobuf.duration_pb2 import Duration
from skerry.converter.v1.converter_pb2 import ConversionResult
from skerry.store.v1 import store_pb2
from skerry.store.v1.catalog_store_pb2_grpc import CatalogStoreStub
from skerry.store.v1.plan_store_pb2_grpc import PlanStoreStub
from skerry.store.v1.store_pb2_grpc import MachineStoreStub
from skerry.sync.v1 import sync_pb2
from skerry.sync.v1.sync_pb2_grpc import CentralSyncStub
from skerry.types.v1.config_pb2 import MachineConfig
from skerry.types.v1.spec_pb2 import MachineSpec

from services.central_sync.breaker import BreakerSettings
from services.central_sync.reading import read_catalog
from services.central_sync.records import Catalog
from services.central_sync.service import CentralSyncService
from services.central_sync.settings import CALLS, CallClass, CentralSyncSettings, MirrorSettings, PullSettings
from services.machine_store.service import MachineStoreService
from services.runtime.channels import connect
from services.runtime.clock import SystemClock
from services.runtime.duty import LeadTimes
from services.runtime.ids import new_machine_id, new_ulid
from services.runtime.registry import Registry
from services.runtime.server import Server
from services.runtime.tasks import cancel
from tests.integration.central.centres import TOKEN, Centre
from tests.support_fleet import amounts

if TYPE_CHECKING:
    from skerry.store.v1.catalog_store_pb2_grpc import CatalogStoreAsyncStub
    from skerry.store.v1.plan_store_pb2_grpc import PlanStoreAsyncStub
    from skerry.store.v1.store_pb2_grpc import MachineStoreAsyncStub
    from skerry.sync.v1.sync_pb2_grpc import CentralSyncAsyncStub

NUMBER = "001"
PLACE = "syd-1"
SECRET = "secret of the set"
JOURNAL = "journal"

# Much faster than in earnest.
BREAKER = BreakerSettings(window=5.0, minimum_calls=3, open_for=0.2, longest_open=0.4)
QUICK: dict[str, Any] = {
    "calls": {name: bounds.model_copy(update={"breaker": BREAKER}) for name, bounds in CALLS.items()},
    "pull": PullSettings(wait=1.0, retry_every=0.1, held_refresh=1.0),
    "mirror": MirrorSettings(gather=0.05, retry_every=0.1, rate=100_000),
}


def url_of(centre: Centre) -> str:
    """Where a centre answers."""
    return f"http://127.0.0.1:{centre.service.port}/graphql"


def quick(urls: Sequence[str], **changed: Any) -> CentralSyncSettings:
    """Settings of an instance that asks the centre at `urls`."""
    return CentralSyncSettings(**{"urls": tuple(urls), "token": TOKEN, **QUICK, **changed})


def bounds(call_class: CallClass, **changed: Any) -> dict[CallClass, Any]:
    """The quick settings of all classes, with those of one changed."""
    return {**QUICK["calls"], call_class: QUICK["calls"][call_class].model_copy(update=changed)}


@dataclass
class Instance:
    """A central-sync that runs, and a client of it."""

    service: CentralSyncService
    stub: CentralSyncAsyncStub
    task: asyncio.Task[None]
    ready: asyncio.Event

    async def status(self) -> sync_pb2.WatchStatusResponse:
        """The state now."""
        watch = self.stub.WatchStatus(sync_pb2.WatchStatusRequest(), timeout=10)
        async for response in watch:
            watch.cancel()
            return response
        raise AssertionError("there was no status")

    async def breaker(self, call_class: str) -> sync_pb2.BreakerStatus:
        """One of its breakers."""
        return next(breaker for breaker in (await self.status()).breakers if breaker.call_class == call_class)


@dataclass
class Cell:
    """A store that serves."""

    channel: grpc.aio.Channel
    dsn: str
    random: Random = field(default_factory=lambda: Random(1))
    clock: SystemClock = field(default_factory=SystemClock)

    @property
    def store(self) -> MachineStoreAsyncStub:
        return MachineStoreStub(self.channel)

    @property
    def catalog(self) -> CatalogStoreAsyncStub:
        return CatalogStoreStub(self.channel)

    @property
    def plans(self) -> PlanStoreAsyncStub:
        return PlanStoreStub(self.channel)

    async def read(self) -> Catalog:
        """The catalog as it is now."""
        return await read_catalog(self.store)

    async def app_names(self) -> list[str]:
        """The apps that the catalog has, by name."""
        return sorted(app.name for app in (await self.read()).apps.values())

    @asynccontextmanager
    async def sync(
        self, settings: CentralSyncSettings, instance: str = "one", *, wait: bool = True, **more: Any
    ) -> AsyncIterator[Instance]:
        """A central-sync; it has filled the catalog, unless one does not `wait`."""
        service = CentralSyncService(
            self.channel,
            settings,
            cell=NUMBER,
            region="syd",
            instance=instance,
            place=PLACE,
            clock=self.clock,
            random=Random(instance),
            lead=LeadTimes(lease=1.0, keep_every=0.2),
            **more,
        )
        registry = Registry(service="central-sync", secret=SECRET, place=PLACE)
        service.register(registry)
        server = Server(registry, "127.0.0.1:0")
        port = await server.start()
        ready = asyncio.Event()
        task = asyncio.create_task(service.run(ready.set))
        channel = connect(
            [f"127.0.0.1:{port}"], caller=f"{PLACE}/config-converter", callee="central-sync", secret=SECRET
        )
        try:
            if wait:
                await asyncio.wait_for(ready.wait(), 20)
            yield Instance(service, CentralSyncStub(channel), task, ready)
        finally:
            await channel.close()
            await server.stop(0)
            await cancel(task)

    async def add_worker(self, worker_id: str = "w1") -> None:
        """A worker with much room."""
        await self.store.RegisterWorker(
            store_pb2.RegisterWorkerRequest(
                worker_id=worker_id, journal_id=JOURNAL, capacity=amounts(memory=2**20, shared=2**20, disk=2**20)
            )
        )

    async def add_machine(self, app_id: str, worker_id: str = "w1", image: str = "nginx") -> store_pb2.MachineRecord:
        """A machine that is to be started."""
        machine_id = new_machine_id(NUMBER, self.random)
        created = await self.store.CreateMachine(
            store_pb2.CreateMachineRequest(
                machine_id=machine_id,
                instance_id=new_ulid(self.clock.now(), self.random),
                app_id=app_id,
                name=f"machine-{machine_id}",
                region="syd",
                config=MachineConfig(image=image),
                conversion=ConversionResult(spec=MachineSpec()),
                need=amounts(memory=1),
                candidate_worker_ids=[worker_id],
                launch=True,
                source="user",
            )
        )
        return created.machine

    async def purge_log(self) -> None:
        """Let the log begin now."""
        lead = await self.store.AcquireDuty(
            store_pb2.AcquireDutyRequest(duty="reconcile", holder="test", lease=Duration(seconds=30))
        )
        await self.store.PurgeExpired(
            store_pb2.PurgeExpiredRequest(
                term=store_pb2.DutyTerm(duty="reconcile", term=lead.term),
                log_age=Duration(),
                key_age=Duration(seconds=3600),
                destroyed_age=Duration(seconds=3600),
            ),
            timeout=20,
        )


@asynccontextmanager
async def running_cell(dsn: str) -> AsyncIterator[Cell]:
    """A cell's store on `dsn`, until the block ends."""
    service = MachineStoreService(
        lambda: dsn, cell=NUMBER, region="syd", clock=SystemClock(), random=Random(3), tick=0.1
    )
    registry = Registry(service="machine-store", secret=SECRET)
    service.register(registry)
    server = Server(registry, "127.0.0.1:0")
    port = await server.start()
    ready = asyncio.Event()
    task = asyncio.create_task(service.run(ready.set))
    channel = connect([f"127.0.0.1:{port}"], caller=f"{PLACE}/central-sync", callee="machine-store", secret=SECRET)
    try:
        await asyncio.wait_for(ready.wait(), 20)
        yield Cell(channel, dsn)
    finally:
        await channel.close()
        await server.stop(0)
        await cancel(task)
