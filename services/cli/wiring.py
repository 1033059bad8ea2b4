"""The composition root: here, and only here, are clocks, channels, databases and services of a process made.

A process holds some of a region's services: all of them (a set), or one. A caller whose callee lives in the same
process gets a local channel to it, any other a channel over the network; neither can tell which.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Coroutine, Mapping, Sequence
from functools import partial
from random import Random
from typing import Any

import grpc
import uvloop

from services.cli.mesh import (
    CENTRAL_SYNC,
    CONFIG_CONVERTER,
    GATEWAY,
    HOST,
    MACHINE_STORE,
    SCHEDULER,
    SET,
    WORKER,
    Mesh,
    MeshError,
    Process,
)
from services.cli.settings import MeshSettings, central_settings_of, settings_of, workers_of
from services.runtime import introspection, telemetry
from services.runtime.channels import connect, local
from services.runtime.clock import SystemClock
from services.runtime.component import Component
from services.runtime.edges import VOLUME_COPY
from services.runtime.errors import InvalidConfig, SkerryError
from services.runtime.process import run_process
from services.runtime.regions import RegionMap
from services.runtime.registry import Registry
from services.runtime.server import Server
from services.runtime.telemetry import log

_GC_THRESHOLDS = (20_000, 50, 100)

REGIONAL = frozenset({MACHINE_STORE, SCHEDULER})
"""Services that nothing of what they do may take out of the region."""

_AFTER_THE_STORE = frozenset({CENTRAL_SYNC, CONFIG_CONVERTER, SCHEDULER, GATEWAY})
"""Services that can do nothing before the machine-store; what a worker runs is its own business."""

SERVICES_OF_A_SET = (MACHINE_STORE, CENTRAL_SYNC, CONFIG_CONVERTER, SCHEDULER, GATEWAY)
"""What a set holds, and the region's workers with it where they have no processes of their own."""


def run(mesh: Mesh, process: Process) -> None:
    """Run `process` of `mesh` until it is asked to end. Raises SystemExit with its status, 0 when that was all."""
    telemetry.setup(process.service, process.region, otlp=mesh.otlp)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        raise SystemExit(runner.run(_serve(mesh, process)))


async def _serve(mesh: Mesh, process: Process) -> int:
    try:
        if process.is_central:
            return await _serve_central(mesh, process)
        settings = settings_of(mesh, process)
        telemetry.setup(process.service, process.region, otlp=settings.otlp, log_level=settings.log_level)
        names = [*SERVICES_OF_A_SET] if process.service == SET else [process.service]
        if process.service == SET and settings.workers:
            names.append(WORKER)
        return await Composition(settings, names).run()
    except (OSError, SkerryError) as error:
        log.error("process_failed", error=str(error))
    except Exception as error:
        log.error("process_failed", error=f"{type(error).__name__}: {error}", exc_info=error)
    return 1


async def _serve_central(mesh: Mesh, process: Process) -> int:
    from services.central.service import CentralService

    centre = CentralService(central_settings_of(mesh, process), clock=SystemClock())
    return await run_process([centre], servers=[], metrics=f"{HOST}:{process.metrics}")


class Composition:
    """The services `names` of one process, wired up."""

    def __init__(self, settings: MeshSettings, names: Sequence[str]) -> None:
        """Raises InvalidConfig when the settings lack what the services need."""
        self._settings = settings
        self._secret = settings.secret.get_secret_value() if settings.secret else None
        self._clock = SystemClock()
        self._random = Random()
        self._components: list[Component] = []
        self._servers: list[Server] = []
        self._background: dict[str, Coroutine[Any, Any, Any]] = {}
        self._place = _place(settings)
        self._guard = not settings.drill_no_guard
        if not self._guard:
            log.warning("protections_off", settings=["drill_no_guard"])
        self._internal = {
            name: Registry(service=name, secret=self._secret, place=self._place, guard=self._guard)
            for name in names
            if name != GATEWAY
        }
        for name in names:
            _BUILDERS[name](self)
        if settings.addresses.internal:
            told = Registry(service=introspection.NAME, secret=self._secret, place=self._place, guard=self._guard)
            introspection.register(told)
            self._servers.append(Server([*self._internal.values(), told], settings.addresses.internal))

    async def run(self) -> int:
        """Serve until the process is asked to end; returns its exit status. Raises OSError for an address in use."""
        return await run_process(
            self._components,
            servers=self._servers,
            background=self._background,
            after=self._after(),
            metrics=self._settings.addresses.metrics,
            grace=self._settings.limits.shutdown_grace,
            on_ready=_settle_memory,
        )

    def _after(self) -> dict[str, str]:
        """Who begins after whom: calls of a store that is still starting would only be refused."""
        names = {component.name for component in self._components}
        return dict.fromkeys(names & _AFTER_THE_STORE, MACHINE_STORE) if MACHINE_STORE in names else {}

    # Services are imported where they are made: a process of one service does without the libraries of the others.

    def _add_store(self) -> None:
        from services.machine_store import schema
        from services.machine_store.service import MachineStoreService
        from services.runtime.postgres import OwnedPostgres

        database = self._settings.database
        if database.dsn is not None:
            dsn = database.dsn.get_secret_value()
        elif database.directory is not None:
            postgres = OwnedPostgres(database.directory, clock=self._clock)
            self._background["postgres"] = postgres.own()
            dsn = postgres.dsn
        else:
            raise InvalidConfig("the machine-store needs a PostgreSQL: database.dsn or database.directory")
        store = MachineStoreService(
            lambda: dsn,
            cell=self._settings.cell,
            region=self._settings.region,
            clock=self._clock,
            random=self._random,
            initial_plan=self._settings.plan,
            migrate=schema.migrate_apart(dsn),
        )
        self._add(MACHINE_STORE, store)

    def _add_converter(self) -> None:
        from services.config_converter.service import ConfigConverterService

        converter = ConfigConverterService(
            self._channel(CONFIG_CONVERTER, MACHINE_STORE),
            self._channel(CONFIG_CONVERTER, CENTRAL_SYNC),
            cell=self._settings.cell,
            region=self._settings.region,
            instance=self._settings.instance,
            clock=self._clock,
            random=self._random,
            settings=self._settings.handover,
            tell_health=self._tell_health,
        )
        self._add(CONFIG_CONVERTER, converter)

    def _add_central_sync(self) -> None:
        from services.central_sync.service import CentralSyncService

        if self._settings.central_sync is None:
            raise InvalidConfig("central-sync needs to know the centre: central_sync.urls and central_sync.token")
        sync = CentralSyncService(
            self._channel(CENTRAL_SYNC, MACHINE_STORE),
            self._settings.central_sync,
            cell=self._settings.cell,
            region=self._settings.region,
            instance=self._settings.instance,
            place=self._place,
            clock=self._clock,
            random=self._random,
            keyring=self._settings.keyring(),
        )
        self._add(CENTRAL_SYNC, sync)

    def _add_scheduler(self) -> None:
        from services.scheduler.reconcile import ReconcileSettings
        from services.scheduler.service import SchedulerService, SchedulerSettings

        scheduler = SchedulerService(
            self._channel(SCHEDULER, MACHINE_STORE),
            cell=self._settings.cell,
            instance=self._settings.instance,
            clock=self._clock,
            random=self._random,
            settings=SchedulerSettings(
                reconcile=ReconcileSettings(start_deadline=self._settings.scheduler.start_deadline)
            ),
        )
        self._add(SCHEDULER, scheduler)

    def _add_workers(self) -> None:
        from services.worker.service import WorkerService

        workers = WorkerService(
            self._channel(WORKER, MACHINE_STORE),
            self._settings.workers,
            region=self._settings.region,
            cell=self._settings.cell,
            clock=self._clock,
            random=self._random,
            address=self._settings.addresses.internal or "",
            connect_worker=partial(self._to_worker, caller=VOLUME_COPY),
            keyring=self._settings.keyring(),
        )
        self._add(WORKER, workers)

    def _add_gateway(self) -> None:
        from gateway.admission import AdmissionControl
        from gateway.auth import admission
        from gateway.limits import Limiter, foreseeing, limited
        from gateway.rest.door import RestDoor
        from gateway.service import GatewayService, public_interceptors, public_tokens

        settings, addresses = self._settings, self._settings.addresses
        if settings.region_map is None:
            raise InvalidConfig("the gateway needs a region map: region_map")
        control = AdmissionControl(self._clock, settings.limits.admission)
        gateway = GatewayService(
            store=self._channel(GATEWAY, MACHINE_STORE),
            converter=self._channel(GATEWAY, CONFIG_CONVERTER),
            scheduler=self._channel(GATEWAY, SCHEDULER),
            central_sync=self._channel(GATEWAY, CENTRAL_SYNC),
            cell=settings.cell,
            regions=RegionMap.load(settings.region_map),
            clock=self._clock,
            random=self._random,
            connect_worker=self._to_worker,
            create_waited=control.create_waited,
            keyring=self._settings.keyring(),
        )
        tokens = [settings.development_token.get_secret_value()] if settings.development_token else []
        central = settings.central_gateway_token.get_secret_value() if settings.central_gateway_token else None
        limiter = Limiter(settings.limits.calls, self._clock.monotonic)
        public = Registry(
            service=GATEWAY,
            place=self._place,
            guard=self._guard,
            # Who it is, whether they come too often, whether there is room: all before any work is done.
            interceptors=(
                *public_interceptors(tokens, central, gateway=gateway),
                limited(limiter),
                control,
            ),
        )
        gateway.register(public)
        self._components += [control, gateway]
        if addresses.public_grpc:
            self._servers.append(Server(public, addresses.public_grpc))
        if addresses.public_rest:
            host, _, port = addresses.public_rest.rpartition(":")
            door = RestDoor(
                local(public, caller=f"{self._place}/rest", callee=GATEWAY, secret=None),
                host=host,
                port=int(port),
                ready=lambda: gateway.is_ready,
                clock=self._clock,
                random=self._random,
                admit=admission(public.guard, central),
                foresee=foreseeing(limiter, public_tokens(tokens, central, gateway=gateway)),
            )
            self._components.append(door)

    async def _tell_health(self, name: str, serving: bool) -> None:
        for server in self._servers:
            await server.set_serving(serving, name)

    def _add(self, name: str, service: Component) -> None:
        service.register(self._internal[name])
        self._components.append(service)

    def _channel(self, caller: str, callee: str) -> grpc.aio.Channel:
        """How `caller`, which lives in this process, reaches `callee`. Raises InvalidConfig."""
        name, regional = f"{self._place}/{caller}", callee in REGIONAL
        if callee in self._internal:
            return local(self._internal[callee], caller=name, callee=callee, secret=self._secret, regional=regional)
        if not (addresses := self._settings.peers.get(callee)):
            raise InvalidConfig(f"{caller} needs the address of a {callee}: peers.{callee}")
        return connect(addresses, caller=name, callee=callee, secret=self._secret, regional=regional)

    def _to_worker(self, address: str, caller: str = GATEWAY) -> grpc.aio.Channel:
        """How `caller`, which lives in this process, reaches the workers that listen at `address`."""
        name = f"{self._place}/{caller}"
        if WORKER in self._internal and address == self._settings.addresses.internal:
            return local(self._internal[WORKER], caller=name, callee=WORKER, secret=self._secret)
        return connect([address], caller=name, callee=WORKER, secret=self._secret)


_BUILDERS: Mapping[str, Callable[[Composition], None]] = {
    MACHINE_STORE: Composition._add_store,
    CENTRAL_SYNC: Composition._add_central_sync,
    CONFIG_CONVERTER: Composition._add_converter,
    SCHEDULER: Composition._add_scheduler,
    WORKER: Composition._add_workers,
    GATEWAY: Composition._add_gateway,
}


def _place(settings: MeshSettings) -> str:
    """What the dependency guard calls the cell: "syd-1", the region's first."""
    return RegionMap.load(settings.region_map).place_of(settings.cell) if settings.region_map else settings.cell


async def _settle_memory() -> None:
    """What is there once all are ready stays: looking at it in every collection would cost latency.

    And what comes later is seldom part of a cycle, so collections can be rarer than by default.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_GC_THRESHOLDS)


async def stop_machines(mesh: Mesh, region: str, timeout: float) -> None:
    """Stop all machines of the workers of `region`, whose processes have ended, killing those that still run after
    `timeout` seconds. The next start of the workers starts them again. Raises MeshError when one runs.
    """
    from services.worker.agent import DataInUse
    from services.worker.service import WorkerService

    workers = [worker for worker in workers_of(mesh, region) if worker.data.exists()]
    addresses = mesh.addresses(region, MACHINE_STORE)
    async with connect(addresses, caller=f"{mesh.cell(region)}/cli", callee=MACHINE_STORE, secret=mesh.secret) as store:
        service = WorkerService(
            store, workers, region=region, cell=mesh.cell(region), clock=SystemClock(), random=Random()
        )
        try:
            await service.stop_machines(timeout)
        except DataInUse as error:
            raise MeshError(str(error)) from error


async def stop_postgres(mesh: Mesh, region: str) -> None:
    """Stop the PostgreSQL of `region`, whose owner has ended, if it runs."""
    from services.runtime.postgres import OwnedPostgres

    postgres = OwnedPostgres(mesh.postgres_directory(region))
    if postgres.pid() is not None:
        await postgres.acquire()
        await postgres.release(stop=True)
