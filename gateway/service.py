"""The gateway on the wire: the public Machines service, and the component that keeps its views up with the log."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from functools import wraps
from random import Random
from typing import Any, TypeVar, cast

import grpc
from skerry.converter.v1.converter_pb2_grpc import ConfigConverterStub
from skerry.machines.v1 import (
    cells_pb2_grpc,
    graphql_pb2_grpc,
    machines_pb2_grpc,
    organizations_pb2_grpc,
    platform_pb2_grpc,
    releases_pb2_grpc,
    secrets_pb2_grpc,
    volumes_pb2_grpc,
)
from skerry.machines.v1 import machines_pb2 as api
from skerry.scheduler.v1.scheduler_pb2_grpc import SchedulerStub
from skerry.store.v1 import store_pb2 as store
from skerry.store.v1.catalog_store_pb2_grpc import CatalogStoreStub
from skerry.store.v1.cell_store_pb2_grpc import CellStoreStub
from skerry.store.v1.release_store_pb2_grpc import ReleaseStoreStub
from skerry.store.v1.store_pb2_grpc import MachineStoreStub
from skerry.store.v1.volume_store_pb2_grpc import VolumeStoreStub
from skerry.sync.v1.sync_pb2_grpc import CentralSyncStub

from gateway import inside, leases, lifecycle, machines, metadata
from gateway.apps import Apps, Catalog, add_elsewhere
from gateway.auth import Tokens, access, insist_on_token
from gateway.batch import create_machines
from gateway.cells import AppCells, CellsService
from gateway.dry_run import dry_run_creation, dry_run_update
from gateway.fleet import Fleet
from gateway.graphql.service import GraphQLService
from gateway.graphql.sources import Sources
from gateway.platform_service import OrganizationsService, PlatformService
from gateway.release_service import ReleasesService
from gateway.releases import Releases
from gateway.retrying import Retries
from gateway.routing import CALL_SECONDS, Connect, Routing, connect_in_the_clear, tell_unreachable
from gateway.secrets import Secrets
from gateway.secrets_service import SecretsService
from gateway.surroundings import Surroundings
from gateway.token_catalog import TokenCatalog
from gateway.volume_service import VolumesService
from gateway.waits import Waits
from gateway.watching import LONGEST_SECONDS as LONGEST_WATCH_SECONDS
from gateway.watching import Watches, watch_machines
from services.runtime.clock import Clock
from services.runtime.errors import DependencyDown
from services.runtime.following import follow
from services.runtime.regions import RegionMap
from services.runtime.registry import Registry, ServerInterceptor, current_call
from services.runtime.sealing import Keyring
from services.runtime.tokens import Grant, Verifier

NAME = "gateway"

WAIT_SECONDS = 65.0
"""How long a gateway elsewhere may take to answer a wait."""

_Method = TypeVar("_Method", bound=Callable[..., Awaitable[Any]])

_FOLLOWED = store.WatchFilter(
    kinds=[
        store.RECORD_KIND_MACHINE,
        store.RECORD_KIND_APP,
        store.RECORD_KIND_ORGANIZATION,
        store.RECORD_KIND_IMAGE_ALIAS,
        store.RECORD_KIND_WORKER,
        store.RECORD_KIND_TOKEN_KEY,
        store.RECORD_KIND_REVOCATION,
    ],
    view=store.MACHINE_VIEW_BASIC,
)


class GatewayService:
    """The gateway as a component of a process. Its service belongs into the registry of the public door."""

    name = NAME

    def __init__(
        self,
        *,
        store: grpc.aio.Channel,
        converter: grpc.aio.Channel,
        scheduler: grpc.aio.Channel,
        cell: str,
        regions: RegionMap,
        clock: Clock,
        random: Random,
        central_sync: grpc.aio.Channel | None = None,
        connect: Connect = connect_in_the_clear,
        connect_worker: inside.Connect | None = None,
        create_waited: Callable[[float], None] | None = None,
        keyring: Keyring | None = None,
    ) -> None:
        """The channels lead to the services of this cell; `cell` is three hex digits, and in the region map.

        Without `central_sync` there is no centre: apps are the region's own. `connect` makes the channels to the
        gateways of other cells, `connect_worker` those to the workers of this one. `create_waited` is told how many
        seconds the store took for each machine. `keyring` opens secrets of apps for those who may see them.
        """
        self._store = MachineStoreStub(store)
        self._catalog = Catalog()
        self._waits = Waits()
        self._clock = clock
        self._random = random
        self._verifier = Verifier()
        self._ready = False
        self._routing = Routing(cell=cell, regions=regions, connect=connect)
        centre = CentralSyncStub(central_sync) if central_sync is not None else None
        self._apps = apps = Apps(self._store, self._catalog, cell=cell, clock=clock, random=random, central_sync=centre)
        secrets = Secrets(apps, CatalogStoreStub(store), central_sync=centre, keyring=keyring)
        cells = AppCells(apps, CellStoreStub(store), self._routing, regions)
        self._cells = CellsService(cells)
        around = Surroundings(
            cell=cell,
            region=self._routing.region,
            regions=regions,
            routing=self._routing,
            apps=apps,
            cells=cells,
            secrets=secrets,
            store=self._store,
            volumes=VolumeStoreStub(store),
            converter=ConfigConverterStub(converter),
            scheduler=SchedulerStub(scheduler),
            retries=Retries(clock, random),
            clock=clock,
            random=random,
            create_waited=create_waited,
        )
        self._secrets = SecretsService(secrets)
        self._fleet = Fleet()
        self._workers = inside.WorkerChannels(self._fleet, connect_worker or _no_way_to_workers)
        releases = Releases(
            ReleaseStoreStub(store), apps, self._catalog, self._routing, around.retries, clock=clock, random=random
        )
        self._releases = ReleasesService(releases)
        self._platform = PlatformService(around, self._catalog)
        self._volumes = VolumesService(around, self._fleet)
        self._graphql = GraphQLService(
            Sources(
                around=around,
                catalog=self._catalog,
                releases=releases,
                catalog_store=CatalogStoreStub(store),
                volume_store=VolumeStoreStub(store),
                secrets=secrets,
            )
        )
        self._watches = Watches()
        self._servicer = _Servicer(around, self._waits, self._watches, self._workers)

    @property
    def is_ready(self) -> bool:
        """Whether the views have caught up with the log: what `GET /healthz` tells."""
        return self._ready

    @property
    def waiting(self) -> int:
        """How many callers wait for a machine."""
        return len(self._waits)

    @property
    def watching(self) -> int:
        """How many watches of machines are open."""
        return len(self._watches)

    def grant_of(self, token: str) -> Grant:
        """What a token allows now, by the keys and revocations that the catalog has. Raises Unauthenticated."""
        return self._verifier.verify(token, self._clock.now())

    async def insist_on_reach(self, app_name: str) -> None:
        """Raises NotFound unless the token of the current call reaches the app; what `Apps.resolve` raises."""
        await self._apps.resolve(app_name)

    def register(self, registry: Registry) -> None:
        """Add the public Machines service to `registry`, which must check tokens (see `public_interceptors`)."""
        machines_pb2_grpc.add_MachinesServicer_to_server(self._servicer, registry)
        secrets_pb2_grpc.add_SecretsServicer_to_server(self._secrets, registry)
        releases_pb2_grpc.add_ReleasesServicer_to_server(self._releases, registry)
        platform_pb2_grpc.add_PlatformServicer_to_server(self._platform, registry)
        volumes_pb2_grpc.add_VolumesServicer_to_server(self._volumes, registry)
        graphql_pb2_grpc.add_GraphQLServicer_to_server(self._graphql, registry)
        cells_pb2_grpc.add_CellsServicer_to_server(self._cells, registry)
        organizations_pb2_grpc.add_OrganizationsServicer_to_server(OrganizationsService(self._catalog), registry)

    async def run(self, ready: Callable[[], None]) -> None:
        """Keep the views up with the log until cancelled. Calls `ready` once they have caught up."""

        def caught_up() -> None:
            self._ready = True
            ready()

        try:
            await follow(
                self._store,
                _FOLLOWED,
                _Views(self._catalog, self._waits, self._fleet, TokenCatalog(self._verifier)),
                on_caught_up=caught_up,
                clock=self._clock,
                random=self._random,
            )
        finally:
            self._ready = False
            await self._routing.close()
            await self._workers.close()


def public_interceptors(
    tokens: Sequence[str], central_token: str | None = None, *, gateway: GatewayService | None = None
) -> tuple[ServerInterceptor, ...]:
    """The interceptors that the registry of the public door needs; `tokens` may do everything.

    `central_token` is what the centre calls with, so that the dependency guard can refuse it. `gateway` is the one
    behind the door: it knows what apps there are, and what other tokens allow; without it there are no others.
    """
    known = public_tokens(tokens, central_token, gateway=gateway)
    return (access(known, gateway.insist_on_reach if gateway is not None else None),)


def public_tokens(
    tokens: Sequence[str], central_token: str | None = None, *, gateway: GatewayService | None = None
) -> Tokens:
    """The tokens that the public door knows; as for `public_interceptors`."""
    return Tokens(tokens, central_token, grant_of=gateway.grant_of if gateway is not None else None)


class _Views:
    """What follows the log: the catalog of apps, those who wait for machines, the workers, and tokens."""

    def __init__(self, catalog: Catalog, waits: Waits, fleet: Fleet, tokens: TokenCatalog) -> None:
        self._tokens = tokens
        self._catalog = catalog
        self._waits = waits
        self._fleet = fleet

    def __call__(self, response: store.WatchResponse) -> None:
        for change in response.changes:
            record = change.WhichOneof("record")
            if record == "machine":
                self._waits.apply(change.machine)
            elif record == "app":
                self._catalog.apply(change.app)
            elif record == "organization":
                self._catalog.apply_organization(change.organization)
            elif record == "image_alias":
                self._catalog.apply_image(change.image_alias)
            elif record == "worker":
                self._fleet.apply(change.worker)
            elif record == "token_key":
                self._tokens.apply_key(change.token_key)
            elif record == "revocation":
                self._tokens.apply_revocation(change.revocation)
        if response.snapshot_complete:
            self._tokens.complete()

    def reset(self) -> None:
        self._catalog.reset()
        self._fleet.reset()
        self._tokens.reset()


def _where_the_machine_is(seconds: float = CALL_SECONDS) -> Callable[[_Method], _Method]:
    """Let a method of the servicer run in the cell of the machine that its request names; `seconds` if elsewhere."""

    def decorate(method: _Method) -> _Method:
        @wraps(method)
        async def serve(self: _Servicer, request: Any, context: Any) -> Any:
            if (peer := self.routing.by_machine(request.machine_id)) is not None:
                return await peer.call(method.__name__, request, seconds)
            return await method(self, request, context)

        return cast("_Method", serve)

    return decorate


class _Servicer(machines_pb2_grpc.MachinesServicer):
    def __init__(self, around: Surroundings, waits: Waits, watches: Watches, workers: inside.WorkerChannels) -> None:
        self.routing = around.routing
        self._around = around
        self._watches = watches
        self._waits = waits
        self._workers = workers

    async def CreateApp(self, request: api.CreateAppRequest, context: object) -> api.CreateAppResponse:
        return api.CreateAppResponse(app=await self._around.apps.create(request))

    async def ListApps(
        self, request: api.ListAppsRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> api.ListAppsResponse:
        apps = await self._around.apps.list(request.org_slug)
        answers, unreachable = await self._around.routing.ask_others("ListApps", request)
        add_elsewhere(apps, (app for answer in answers for app in answer.apps))
        tell_unreachable(context, unreachable)
        return api.ListAppsResponse(apps=apps, total_apps=len(apps))

    async def GetApp(
        self, request: api.GetAppRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> api.GetAppResponse:
        app = await self._around.apps.get(request.app_name)
        answers, unreachable = await self._around.routing.ask_others("GetApp", request)
        add_elsewhere([app], (answer.app for answer in answers))
        tell_unreachable(context, unreachable)
        return api.GetAppResponse(app=app)

    async def DeleteApp(self, request: api.DeleteAppRequest, context: object) -> api.DeleteAppResponse:
        await self._around.apps.delete(request.app_name)
        return api.DeleteAppResponse()

    async def CreateMachine(self, request: api.CreateMachineRequest, context: object) -> api.CreateMachineResponse:
        if (peer := await self._around.cells.peer_of(request.app_name, request.region)) is not None:
            forwarded: api.CreateMachineResponse = await peer.call("CreateMachine", request)
            return forwarded
        key = _metadata("idempotency-key")
        if request.dry_run:
            return api.CreateMachineResponse(dry_run=await dry_run_creation(self._around, request, key))
        if request.count > 1:
            return api.CreateMachineResponse(machines=await create_machines(self._around, request, key))
        machine = await machines.create_machine(self._around, request, key)
        return api.CreateMachineResponse(machine=machine)

    async def ListMachines(
        self, request: api.ListMachinesRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> api.ListMachinesResponse:
        listed = await lifecycle.list_machines(self._around, request)
        tell_unreachable(context, listed.unreachable)
        return api.ListMachinesResponse(machines=listed.machines, next_cursor=listed.next_cursor)

    async def WatchMachines(
        self, request: api.WatchMachinesRequest, context: object
    ) -> AsyncIterator[api.WatchMachinesResponse]:
        peer = await self._around.cells.peer_of(request.app_name, request.region)
        if peer is not None:
            responses = peer.stream("WatchMachines", request, LONGEST_WATCH_SECONDS)
        else:
            responses = watch_machines(self._around, self._watches, request)
        async with aclosing(responses) as watched:
            async for response in watched:
                insist_on_token()
                yield response

    @_where_the_machine_is()
    async def GetMachine(self, request: api.GetMachineRequest, context: object) -> api.GetMachineResponse:
        return api.GetMachineResponse(machine=await lifecycle.get_machine(self._around, request))

    @_where_the_machine_is()
    async def UpdateMachine(self, request: api.UpdateMachineRequest, context: object) -> api.UpdateMachineResponse:
        if request.dry_run:
            return api.UpdateMachineResponse(dry_run=await dry_run_update(self._around, request))
        return api.UpdateMachineResponse(machine=await machines.update_machine(self._around, request))

    @_where_the_machine_is()
    async def DeleteMachine(self, request: api.DeleteMachineRequest, context: object) -> api.DeleteMachineResponse:
        await lifecycle.delete_machine(self._around, request)
        return api.DeleteMachineResponse(ok=True)

    @_where_the_machine_is()
    async def StartMachine(self, request: api.StartMachineRequest, context: object) -> api.StartMachineResponse:
        return await lifecycle.start_machine(self._around, request)

    @_where_the_machine_is()
    async def StopMachine(self, request: api.StopMachineRequest, context: object) -> api.StopMachineResponse:
        await lifecycle.stop_machine(self._around, request)
        return api.StopMachineResponse(ok=True)

    @_where_the_machine_is()
    async def RestartMachine(self, request: api.RestartMachineRequest, context: object) -> api.RestartMachineResponse:
        await lifecycle.restart_machine(self._around, request)
        return api.RestartMachineResponse(ok=True)

    @_where_the_machine_is(seconds=WAIT_SECONDS)
    async def WaitMachine(self, request: api.WaitMachineRequest, context: object) -> api.WaitMachineResponse:
        await lifecycle.wait_for_machine(self._around, self._waits, request)
        return api.WaitMachineResponse(ok=True)

    @_where_the_machine_is()
    async def ListMachineEvents(
        self, request: api.ListMachineEventsRequest, context: object
    ) -> api.ListMachineEventsResponse:
        return api.ListMachineEventsResponse(events=await lifecycle.list_events(self._around, request))

    @_where_the_machine_is(seconds=WAIT_SECONDS)
    async def ExecMachine(self, request: api.ExecMachineRequest, context: object) -> api.ExecMachineResponse:
        return await inside.exec_machine(self._around, self._workers, request)

    @_where_the_machine_is()
    async def ListProcesses(self, request: api.ListProcessesRequest, context: object) -> api.ListProcessesResponse:
        now = self._around.clock.now()
        processes = await inside.list_processes(self._around, self._workers, request, now)
        return api.ListProcessesResponse(processes=processes)

    @_where_the_machine_is()
    async def SignalMachine(self, request: api.SignalMachineRequest, context: object) -> api.SignalMachineResponse:
        await inside.signal_machine(self._around, self._workers, request)
        return api.SignalMachineResponse(ok=True)

    @_where_the_machine_is()
    async def SuspendMachine(self, request: api.SuspendMachineRequest, context: object) -> api.SuspendMachineResponse:
        await lifecycle.suspend_machine(self._around, request)
        return api.SuspendMachineResponse(ok=True)

    @_where_the_machine_is()
    async def CordonMachine(self, request: api.CordonMachineRequest, context: object) -> api.CordonMachineResponse:
        await lifecycle.cordon_machine(self._around, request)
        return api.CordonMachineResponse(ok=True)

    @_where_the_machine_is()
    async def UncordonMachine(
        self, request: api.UncordonMachineRequest, context: object
    ) -> api.UncordonMachineResponse:
        await lifecycle.uncordon_machine(self._around, request)
        return api.UncordonMachineResponse(ok=True)

    @_where_the_machine_is()
    async def ListMachineVersions(
        self, request: api.ListMachineVersionsRequest, context: object
    ) -> api.ListMachineVersionsResponse:
        return api.ListMachineVersionsResponse(versions=await lifecycle.list_versions(self._around, request))

    @_where_the_machine_is()
    async def GetMachineLease(
        self, request: api.GetMachineLeaseRequest, context: object
    ) -> api.GetMachineLeaseResponse:
        app = await lifecycle.app_of(self._around, request)
        return api.GetMachineLeaseResponse(lease=await leases.get(self._around, app, request.machine_id))

    @_where_the_machine_is()
    async def AcquireMachineLease(
        self, request: api.AcquireMachineLeaseRequest, context: object
    ) -> api.AcquireMachineLeaseResponse:
        app = await lifecycle.app_of(self._around, request)
        return api.AcquireMachineLeaseResponse(lease=await leases.acquire(self._around, app, request))

    @_where_the_machine_is()
    async def ReleaseMachineLease(
        self, request: api.ReleaseMachineLeaseRequest, context: object
    ) -> api.ReleaseMachineLeaseResponse:
        app = await lifecycle.app_of(self._around, request)
        return api.ReleaseMachineLeaseResponse(lease=await leases.release(self._around, app, request))

    @_where_the_machine_is()
    async def GetMachineMetadata(
        self, request: api.GetMachineMetadataRequest, context: object
    ) -> api.GetMachineMetadataResponse:
        app = await lifecycle.app_of(self._around, request)
        entries = await metadata.get_all(self._around, app, request.machine_id)
        return api.GetMachineMetadataResponse(metadata=entries)

    @_where_the_machine_is()
    async def GetMachineMetadataEntry(
        self, request: api.GetMachineMetadataEntryRequest, context: object
    ) -> api.GetMachineMetadataEntryResponse:
        app = await lifecycle.app_of(self._around, request)
        entry = await metadata.get_one(self._around, app, request.machine_id, request.key)
        return api.GetMachineMetadataEntryResponse(metadata=entry)

    @_where_the_machine_is()
    async def SetMachineMetadata(
        self, request: api.SetMachineMetadataRequest, context: object
    ) -> api.SetMachineMetadataResponse:
        app = await lifecycle.app_of(self._around, request)
        entries = {request.key: request.value}
        await metadata.change(self._around, app, request.machine_id, entries=entries)
        return api.SetMachineMetadataResponse()

    @_where_the_machine_is()
    async def DeleteMachineMetadata(
        self, request: api.DeleteMachineMetadataRequest, context: object
    ) -> api.DeleteMachineMetadataResponse:
        app = await lifecycle.app_of(self._around, request)
        await metadata.change(self._around, app, request.machine_id, delete=[request.key])
        return api.DeleteMachineMetadataResponse()


def _no_way_to_workers(address: str) -> grpc.aio.Channel:
    raise DependencyDown(
        f"this gateway has no way to the worker at {address}: let its process know the secret of the set",
        metadata={"dependency": "worker"},
    )


def _metadata(key: str) -> str:
    call = current_call()
    return str(call.metadata.get(key, "")) if call is not None else ""
