"""What the sagas do when the plan moves between conversion and commit; and apps that only the centre knows."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
from skerry.converter.v1 import converter_pb2 as converter
from skerry.converter.v1.converter_pb2_grpc import ConfigConverterServicer, add_ConfigConverterServicer_to_server
from skerry.machines.v1 import machines_pb2 as api
from skerry.machines.v1.machines_pb2_grpc import MachinesStub
from skerry.scheduler.v1 import scheduler_pb2 as scheduler
from skerry.scheduler.v1.scheduler_pb2_grpc import SchedulerServicer, add_SchedulerServicer_to_server
from skerry.store.v1 import store_pb2 as store
from skerry.store.v1.store_pb2_grpc import MachineStoreServicer, add_MachineStoreServicer_to_server
from skerry.sync.v1 import sync_pb2 as sync
from skerry.sync.v1.sync_pb2_grpc import CentralSyncServicer, add_CentralSyncServicer_to_server

from gateway.machines import MOST_CONVERSIONS, OTHER_INSTANCES
from gateway.service import GatewayService
from services.runtime.channels import local
from services.runtime.clock import SystemClock
from services.runtime.errors import DependencyDown, NameTaken, NotFound, PartUnserved, PlanMoved
from services.runtime.regions import Cell, Region, RegionMap
from services.runtime.registry import Registry

MAP = RegionMap([Region("syd", "syd", 0, 0, (Cell("001", ()),))])
MACHINE_ID = "001" + "a" * 11


class Store(MachineStoreServicer):
    """A store whose plan is at `epoch`, and moves on before each of the first `moves` writes."""

    def __init__(self, moves: int) -> None:
        self.epoch = 7
        self.moves = moves
        self.apps = {"web": store.AppRecord(id="1", name="web", organization_slug="personal")}
        self.written: list[Any] = []

    async def GetApp(self, request: store.GetAppRequest, context: object) -> store.GetAppResponse:
        if request.name not in self.apps:
            raise NotFound("no such app")
        return store.GetAppResponse(app=self.apps[request.name])

    async def GetMachine(self, request: store.GetMachineRequest, context: object) -> store.GetMachineResponse:
        machine = store.MachineRecord(id=request.machine_id, region="syd", worker_id="w1")
        machine.reserved.memory_bytes = 256 << 20
        machine.reserved.shared_cpu_millicores = 1000
        return store.GetMachineResponse(machine=machine)

    async def CreateMachine(self, request: store.CreateMachineRequest, context: object) -> store.CreateMachineResponse:
        self._write(request)
        return store.CreateMachineResponse(machine=store.MachineRecord(id=request.machine_id, region="syd"))

    async def UpdateMachine(self, request: store.UpdateMachineRequest, context: object) -> store.UpdateMachineResponse:
        self._write(request)
        return store.UpdateMachineResponse(machine=store.MachineRecord(id=request.machine_id, region="syd"))

    def _write(self, request: Any) -> None:
        if self.moves:
            self.moves -= 1
            self.epoch += 1
        if request.plan_epoch != self.epoch:
            raise PlanMoved("the plan moved", metadata={"epoch": str(self.epoch)})
        self.written.append(request)


class Converter(ConfigConverterServicer):
    """Converts under its epoch, or the one that is asked for; each epoch needs other memory."""

    def __init__(self) -> None:
        self.epoch = 7
        self.asked: list[int] = []
        self.refuses: list[PartUnserved] = []

    async def Convert(self, request: converter.ConvertRequest, context: object) -> converter.ConvertResponse:
        self.asked.append(request.min_epoch)
        if self.refuses:
            raise self.refuses.pop()
        self.epoch = max(self.epoch, request.min_epoch)
        result = converter.ConversionResult(epoch=self.epoch)
        result.spec.image.repository = f"made-under-{self.epoch}"
        result.spec.guest.memory_bytes = (256 * self.epoch) << 20
        return converter.ConvertResponse(result=result)


class Scheduler(SchedulerServicer):
    """Places everything on one worker, and keeps what it was asked."""

    def __init__(self) -> None:
        self.needs: list[int] = []

    async def Place(self, request: scheduler.PlaceRequest, context: object) -> scheduler.PlaceResponse:
        self.needs.append(request.need.memory_bytes)
        name = f"worker-of-{len(self.needs)}"
        return scheduler.PlaceResponse(candidates=[scheduler.Candidate(worker_id=name)], workers=1)


class CentralSync(CentralSyncServicer):
    """A centre that knows one more app than the region, or is away."""

    def __init__(self, region: Store) -> None:
        self.region = region
        self.away = False
        self.knows = {"late": store.AppRecord(id="2", name="late", organization_slug="acme")}
        self.looked_up: list[str] = []

    def _reach(self) -> None:
        if self.away:
            raise DependencyDown("central does not answer since 5 s", metadata={"dependency": "central"}, retry_after=3)

    async def LookupApp(self, request: sync.LookupAppRequest, context: object) -> sync.LookupAppResponse:
        self.looked_up.append(request.name)
        self._reach()
        if request.name not in self.knows:
            raise NotFound("the centre has no such app")
        self.region.apps[request.name] = self.knows[request.name]
        return sync.LookupAppResponse(app=self.knows[request.name])

    async def CreateApp(self, request: sync.CreateAppRequest, context: object) -> sync.CreateAppResponse:
        self._reach()
        if request.name in self.knows:
            raise NameTaken(f"{request.name} is taken")
        app = store.AppRecord(id="3", name=request.name, organization_slug=request.organization_slug)
        self.region.apps[request.name] = app
        return sync.CreateAppResponse(app=app)

    async def DeleteApp(self, request: sync.DeleteAppRequest, context: object) -> sync.DeleteAppResponse:
        self._reach()
        if self.region.apps.pop(request.name, None) is None:
            raise NotFound("no such app")
        return sync.DeleteAppResponse()


class Cell1:
    """A gateway over these services, through real channels."""

    def __init__(self, moves: int = 0, *, centre: bool = False) -> None:
        self.store = Store(moves)  # type: ignore[abstract]  # only what is called here
        self.converter = Converter()
        self.scheduler = Scheduler()  # type: ignore[abstract]
        self.central_sync = CentralSync(self.store)  # type: ignore[abstract]
        registries = {
            name: Registry(service=name, place="syd-1", secret="s")
            for name in ("machine-store", "config-converter", "scheduler", "central-sync")
        }
        add_MachineStoreServicer_to_server(self.store, registries["machine-store"])
        add_ConfigConverterServicer_to_server(self.converter, registries["config-converter"])
        add_SchedulerServicer_to_server(self.scheduler, registries["scheduler"])
        add_CentralSyncServicer_to_server(self.central_sync, registries["central-sync"])
        channels = {
            name: local(registry, caller="syd-1/gateway", callee=name, secret="s")
            for name, registry in registries.items()
        }
        public = Registry(service="gateway", place="syd-1")
        GatewayService(
            store=channels["machine-store"],
            converter=channels["config-converter"],
            scheduler=channels["scheduler"],
            central_sync=channels["central-sync"] if centre else None,
            cell="001",
            regions=MAP,
            clock=SystemClock(),
            random=Random(1),
        ).register(public)
        self.machines = MachinesStub(local(public, caller="syd-1/rest", callee="gateway", secret=None))


async def _create(cell: Cell1) -> None:
    await cell.machines.CreateMachine(api.CreateMachineRequest(app_name="web"))


async def _update(cell: Cell1) -> None:
    await cell.machines.UpdateMachine(api.UpdateMachineRequest(app_name="web", machine_id=MACHINE_ID))


@pytest.mark.parametrize("write", [_create, _update])
@pytest.mark.parametrize("moves", [0, 1, 2])
async def test_a_plan_that_moves_meanwhile_is_followed_and_no_request_fails_for_it(write: Any, moves: int) -> None:
    cell = Cell1(moves)
    await write(cell)
    (written,) = cell.store.written
    assert cell.converter.asked == [0, *range(8, 8 + moves)]
    assert written.plan_epoch == written.conversion.epoch == 7 + moves
    assert written.conversion.spec.image.repository == f"made-under-{7 + moves}"
    # It needs more under each epoch, so each is placed for what it needs.
    assert written.need.memory_bytes == cell.scheduler.needs[-1] == (256 * (7 + moves)) << 20
    assert list(written.candidate_worker_ids) == [f"worker-of-{1 + moves}"]


@pytest.mark.parametrize("write", [_create, _update])
async def test_a_plan_that_never_stops_moving_ends_the_request(write: Any) -> None:
    cell = Cell1(moves=100)
    with pytest.raises(PlanMoved):
        await write(cell)
    assert len(cell.converter.asked) == MOST_CONVERSIONS
    assert not cell.store.written


@pytest.mark.parametrize(
    ("refusals", "instance", "asked"),
    [(OTHER_INSTANCES, "old-one", OTHER_INSTANCES + 1), (OTHER_INSTANCES + 1, "old-one", None), (1, "", None)],
    ids=["another can", "none of those asked can", "nobody can"],
)
async def test_a_part_that_only_one_converter_cannot_serve_is_asked_of_the_next(
    refusals: int, instance: str, asked: int | None
) -> None:
    cell = Cell1()
    metadata = {"part": "guest", **({"instance": instance} if instance else {})}
    cell.converter.refuses = [PartUnserved("the part guest is not served", metadata=metadata) for _ in range(refusals)]
    if asked is None:
        with pytest.raises(PartUnserved):
            await _create(cell)
        assert not cell.store.written
        return
    await _create(cell)
    assert len(cell.converter.asked) == asked
    assert len(cell.store.written) == 1


async def test_an_app_that_only_the_centre_knows_is_found_and_asked_for_once() -> None:
    cell = Cell1(centre=True)
    got = await cell.machines.GetApp(api.GetAppRequest(app_name="late"))
    assert (got.app.id, got.app.organization.slug) == ("2", "acme")
    await cell.machines.GetApp(api.GetAppRequest(app_name="late"))
    await cell.machines.CreateMachine(api.CreateMachineRequest(app_name="late"))
    assert cell.central_sync.looked_up == ["late"]


async def test_nobody_is_told_that_an_app_does_not_exist_while_the_centre_cannot_say() -> None:
    cell = Cell1(centre=True)
    with pytest.raises(NotFound):
        await cell.machines.GetApp(api.GetAppRequest(app_name="never"))
    cell.central_sync.away = True
    for call in (
        cell.machines.GetApp(api.GetAppRequest(app_name="never")),
        cell.machines.CreateMachine(api.CreateMachineRequest(app_name="never")),
        cell.machines.CreateApp(api.CreateAppRequest(name="new")),
        cell.machines.DeleteApp(api.DeleteAppRequest(app_name="web")),
    ):
        with pytest.raises(DependencyDown, match="central") as caught:
            await call
        assert caught.value.retry_after == 3
    await cell.machines.CreateMachine(api.CreateMachineRequest(app_name="web"))


async def test_apps_are_created_and_deleted_at_the_centre() -> None:
    cell = Cell1(centre=True)
    created = await cell.machines.CreateApp(api.CreateAppRequest(name="new", org_slug="acme"))
    assert (created.app.name, created.app.organization.slug) == ("new", "acme")
    with pytest.raises(NameTaken):
        await cell.machines.CreateApp(api.CreateAppRequest(name="late"))
    await cell.machines.DeleteApp(api.DeleteAppRequest(app_name="new"))
    with pytest.raises(NotFound):
        await cell.machines.DeleteApp(api.DeleteAppRequest(app_name="new"))
