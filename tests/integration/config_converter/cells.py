"""A cell with a real store, several converters, and a central-sync whose centre the test holds in its hand."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from random import Random
from typing import Any

import grpc
from google.protobuf.duration_pb2 import Duration
from skerry.converter.v1.converter_pb2 import ConversionResult, ConvertRequest
from skerry.converter.v1.converter_pb2_grpc import ConfigConverterStub
from skerry.handover.v1 import handover_pb2 as api
from skerry.handover.v1.handover_pb2_grpc import HandoverStub
from skerry.handover.v1.plan_pb2 import PartMode, PartPlan, Plan
from skerry.store.v1 import catalog_store_pb2, plan_store_pb2, store_pb2
from skerry.store.v1.catalog_store_pb2_grpc import CatalogStoreStub
from skerry.store.v1.plan_store_pb2_grpc import PlanStoreStub
from skerry.store.v1.store_pb2_grpc import MachineStoreStub
from skerry.sync.v1 import sync_pb2
from skerry.sync.v1.sync_pb2_grpc import CentralSyncServicer, add_CentralSyncServicer_to_server
from skerry.types.v1.config_pb2 import MachineConfig
from skerry.types.v1.resources_pb2 import Resources

from services.config_converter.handover import entry_of
from services.config_converter.part import Part
from services.config_converter.parts import PARTS
from services.config_converter.service import ConfigConverterService
from services.config_converter.settings import HandoverSettings
from services.machine_store.service import MachineStoreService
from services.runtime.channels import local
from services.runtime.clock import SystemClock
from services.runtime.ids import new_machine_id, new_ulid
from services.runtime.registry import Registry
from services.runtime.tasks import cancel
from tests.unit.config_converter.plans import Centre

CELL = "001"
QUICK = HandoverSettings(report_every=0.05, register_every=0.1, lease=2.0)
ROOM = Resources(shared_cpu_millicores=10**9, memory_bytes=2**50, disk_bytes=2**50)
NEED = Resources(shared_cpu_millicores=1000, memory_bytes=2**28, disk_bytes=2**30)


class CentralSync(CentralSyncServicer):
    """A central-sync without a cache and without breakers, before a centre of the tests."""

    def __init__(self, centre: Centre) -> None:
        self.centre = centre

    async def ConvertParts(self, request: sync_pb2.ConvertPartsRequest, context: Any) -> sync_pb2.ConvertPartsResponse:
        return await self.centre(request)

    async def GetCentralConverter(
        self, request: sync_pb2.GetCentralConverterRequest, context: Any
    ) -> sync_pb2.GetCentralConverterResponse:
        if self.centre.away is not None:
            raise self.centre.away
        response = sync_pb2.GetCentralConverterResponse(release="r1")
        for part, versions in self.centre.versions.items():
            for version in sorted(versions):
                response.parts.add(part=part, version=version)
        return response


class Converter:
    """One converter of the cell, and stubs of what it serves."""

    def __init__(self, service: ConfigConverterService, registry: Registry, health: dict[str, bool]) -> None:
        self.service = service
        self.health = health
        channel = local(registry, caller=f"{CELL}/cli", callee="config-converter", secret=None, default_timeout=30)
        self.stub: Any = ConfigConverterStub(channel)
        self.handover: Any = HandoverStub(channel)

    async def convert(self, config: MachineConfig, app: str = "web", min_epoch: int = 0) -> ConversionResult:
        request = ConvertRequest(config=config, app_name=app, region="syd", min_epoch=min_epoch)
        result: ConversionResult = (await self.stub.Convert(request)).result
        return result

    async def promote(self, part: str = "guest", **fields: Any) -> Plan:
        request = api.PromoteRequest(part=part, who="ada", **fields)
        plan: Plan = (await self.handover.Promote(request)).plan
        return plan


class Cell:
    """What is there, and short words for what tests ask of it."""

    def __init__(self, store: grpc.aio.Channel, centre: Centre) -> None:
        self.channel = store
        self.centre = centre
        self.store: Any = MachineStoreStub(store)
        self.plans: Any = PlanStoreStub(store)
        self.catalog: Any = CatalogStoreStub(store)
        self.converters: list[Converter] = []
        self.random = Random(5)

    @property
    def converter(self) -> Converter:
        return self.converters[0]

    async def plan(self) -> Plan:
        plan: Plan = (await self.plans.GetPlan(plan_store_pb2.GetPlanRequest())).plan
        return plan

    async def entry(self, part: str) -> PartPlan:
        return entry_of(await self.plan(), part)

    async def mode(self, part: str) -> str:
        return PartMode.Name((await self.entry(part)).mode).removeprefix("PART_MODE_")

    async def put(self, **fields: Any) -> Plan:
        """Change an entry without asking whether that may be."""
        plan = await self.plan()
        changed = PartPlan()
        changed.CopyFrom(entry_of(plan, fields["part"]))
        versions = fields.pop("central_versions", None)
        sealed = fields.pop("sealed_by", None)
        changed.MergeFrom(PartPlan(**fields))
        if versions is not None:
            changed.ClearField("central_versions")
            changed.central_versions.extend(versions)
        if sealed is not None:
            changed.ClearField("sealed_by")
            changed.sealed_by.extend(sealed)
        request = plan_store_pb2.ChangePlanRequest(expected_epoch=plan.epoch, parts=[changed], who="a test")
        after: Plan = (await self.plans.ChangePlan(request)).plan
        return after

    async def app(self, name: str, organization: str = "personal") -> None:
        await self.store.CreateApp(
            store_pb2.CreateAppRequest(app_id=f"app-{name}", name=name, organization_slug=organization, home_cell=CELL)
        )

    async def catalog_records(self, *records: catalog_store_pb2.CatalogRecord) -> None:
        await self.catalog.PutCatalogRecords(catalog_store_pb2.PutCatalogRecordsRequest(records=records))

    async def worker(self) -> None:
        await self.store.RegisterWorker(
            store_pb2.RegisterWorkerRequest(
                worker_id="w1", zone="a", address="127.0.0.1:1", capacity=ROOM, journal_id="j1", driver="process"
            )
        )

    async def machine(self, config: MachineConfig, conversion: ConversionResult, app: str = "web") -> str:
        machine_id = new_machine_id(CELL, self.random)
        await self.store.CreateMachine(
            store_pb2.CreateMachineRequest(
                machine_id=machine_id,
                instance_id=new_ulid(1.7e9, self.random),
                app_id=f"app-{app}",
                name=f"m-{machine_id}",
                region="syd",
                config=config,
                conversion=conversion,
                plan_epoch=conversion.epoch,
                need=NEED,
                candidate_worker_ids=["w1"],
                source="user",
            )
        )
        return machine_id

    async def evidence(self, part: str) -> Any:
        listed = await self.plans.ListEvidence(plan_store_pb2.ListEvidenceRequest())
        return next(found for found in listed.evidence if found.part == part)

    async def registered(self) -> list[Any]:
        listed = await self.plans.ListConverters(plan_store_pb2.ListConvertersRequest())
        return list(listed.converters)

    async def live(self, name: str, *serves: str) -> None:
        """Another converter tells that it lives."""
        await self.plans.RegisterConverter(
            plan_store_pb2.RegisterConverterRequest(name=name, serves=serves, lease=Duration(seconds=30))
        )


@asynccontextmanager
async def cell(
    dsn: str,
    *,
    plan: Any = "local",
    releases: Sequence[Sequence[Part]] = (PARTS,),
    settings: HandoverSettings = QUICK,
    clock: Callable[[], Any] = SystemClock,
) -> AsyncIterator[Cell]:
    """A cell with one converter of each of `releases`, all ready."""
    store = MachineStoreService(
        lambda: dsn, cell=CELL, region="syd", clock=SystemClock(), random=Random(1), initial_plan=plan
    )
    stores = Registry(service="machine-store")
    store.register(stores)
    centre = Centre()
    syncs = Registry(service="central-sync")
    add_CentralSyncServicer_to_server(CentralSync(centre), syncs)  # type: ignore[abstract]
    there = Cell(local(stores, caller=f"{CELL}/cli", callee="machine-store", secret=None), centre)
    tasks = [await started(store.run)]
    try:
        for number, parts in enumerate(releases):
            converter = made(stores, syncs, f"c{number}", parts, settings, clock())
            there.converters.append(converter)
            tasks.append(await started(converter.service.run))
        yield there
    finally:
        for task in reversed(tasks):
            await cancel(task)


def made(
    stores: Registry, syncs: Registry, instance: str, parts: Sequence[Part], settings: HandoverSettings, clock: Any
) -> Converter:
    health: dict[str, bool] = {}

    async def tell_health(name: str, serving: bool) -> None:
        health[name] = serving

    def channel(to: Registry) -> grpc.aio.Channel:
        return local(to, caller=f"{CELL}/config-converter", callee=to.service, secret=None)

    service = ConfigConverterService(
        channel(stores),
        channel(syncs),
        cell=CELL,
        region="syd",
        instance=instance,
        clock=clock,
        random=Random(instance),
        settings=settings,
        parts=parts,
        tell_health=tell_health,
    )
    registry = Registry(service="config-converter")
    service.register(registry)
    return Converter(service, registry, health)


async def started(run: Callable[[Callable[[], None]], Any]) -> asyncio.Task[None]:
    """The component's task, once it is ready."""
    ready = asyncio.Event()
    task: asyncio.Task[None] = asyncio.ensure_future(run(ready.set))
    waiting = asyncio.ensure_future(ready.wait())
    done, _ = await asyncio.wait({task, waiting}, timeout=20, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    if task in done:
        task.result()
    assert ready.is_set(), "it did not become ready"
    return task
