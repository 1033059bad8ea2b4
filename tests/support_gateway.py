"""A region for tests of the gateway: the real services of a set in this process, on a database of their own."""

from __future__ import annotations

import asyncio
import itertools
import json as jsonlib
import os
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from random import Random
from typing import Any

import asyncpg
import grpc
import httpx
from skerry.machines.v1.machines_pb2_grpc import MachinesStub
from skerry.store.v1 import store_pb2 as store
from skerry.store.v1.store_pb2_grpc import MachineStoreStub
from skerry.sync.v1.sync_pb2_grpc import add_CentralSyncServicer_to_server
from skerry.types.v1.machine_pb2 import MachineExitEvent
from skerry.types.v1.resources_pb2 import Resources

from gateway.admission import AdmissionControl
from gateway.auth import admission
from gateway.limits import Limiter, foreseeing, limited
from gateway.rest.door import RestDoor
from gateway.routing import Connect, connect_in_the_clear
from gateway.service import GatewayService, public_interceptors, public_tokens
from gateway.settings import GatewayLimits
from services.central_sync.service import CentralSyncService
from services.central_sync.settings import CentralSyncSettings
from services.config_converter.service import ConfigConverterService
from services.machine_store.service import MachineStoreService
from services.runtime.channels import connect, local
from services.runtime.clock import SystemClock
from services.runtime.component import Component
from services.runtime.regions import Cell, Region, RegionMap
from services.runtime.registry import Registry
from services.runtime.sealing import Keyring
from services.runtime.server import Server
from services.runtime.tasks import run_forever
from services.scheduler.service import SchedulerService
from services.worker.service import WorkerService
from services.worker.settings import WorkerSettings

TOKEN = "development-token-of-the-tests"
CENTRAL_TOKEN = "token-of-the-centre"
CELL = "001"
WORKER_ADDRESS = "127.0.0.1:1"
"""What stands for the worker service of this process."""
ELSEWHERE = "elsewhere"
"""The dedication of a worker that cannot be reached."""
REGIONS = RegionMap(
    [
        Region("syd", "Sydney", -33.9, 151.2, (Cell(CELL, ()),)),
        Region("ams", "Amsterdam", 52.4, 4.9, (Cell("002", ()),)),
    ]
)
GIB = 1 << 30
PLENTY = Resources(
    shared_cpu_millicores=10**9, performance_cpu_millicores=10**9, memory_bytes=10**6 * GIB, disk_bytes=10**6 * GIB,
    gpus_a10=100,
)  # fmt: skip

_numbers = itertools.count(1)


@dataclass
class Answer:
    """An answer of REST: its status, its parsed body and its headers."""

    status: int
    json: Any
    headers: Mapping[str, str]


@dataclass
class Worker(Component):
    """A worker as the store sees one: it registers, beats, and tells what the test wants it to have seen."""

    stub: Any
    id: str
    capacity: Resources = field(default_factory=lambda: PLENTY)
    name: str = "worker"
    sequence: int = 0
    address: str = ""
    host_dedication_id: str = ""

    def register(self, registry: Registry) -> None:
        """Nothing: nobody calls it."""

    async def run(self, ready: Callable[[], None]) -> None:
        """Live until cancelled: register with plenty of everything, then beat."""
        await self._register()
        ready()
        while True:
            await self.stub.Heartbeat(store.HeartbeatRequest(worker_id=self.id, journal_id=self.id))
            await asyncio.sleep(0.5)

    async def _register(self) -> None:
        await self.stub.RegisterWorker(
            store.RegisterWorkerRequest(
                worker_id=self.id,
                zone="z",
                address=self.address,
                capacity=self.capacity,
                journal_id=self.id,
                host_dedication_id=self.host_dedication_id,
            )
        )

    async def saw(self, machine_id: str, **seen: Any) -> None:
        machine = (await self.stub.GetMachine(store.GetMachineRequest(machine_id=machine_id))).machine
        self.sequence += 1
        observation = store.Observation(
            sequence=self.sequence, machine_id=machine_id, generation=machine.generation, **seen
        )
        observation.at.GetCurrentTime()
        await self.stub.ReportObservations(
            store.ReportObservationsRequest(worker_id=self.id, journal_id=self.id, observations=[observation])
        )

    async def started(self, machine_id: str) -> None:
        await self.saw(machine_id, started=store.Started())

    async def exited(self, machine_id: str, exit_code: int = 0) -> None:
        await self.saw(machine_id, exited=store.Exited(exit=MachineExitEvent(exit_code=exit_code)))

    async def destroyed(self, machine_id: str) -> None:
        await self.saw(machine_id, destroyed=store.Destroyed())


@dataclass
class TestRegion:
    """A region that serves. `machines` is the public API over gRPC, with the token."""

    __test__ = False

    rest: httpx.AsyncClient
    rest_port: int
    grpc_address: str
    machines: Any
    store: Any
    worker: Worker
    gateway: GatewayService
    registries: Mapping[str, Registry]

    async def call(
        self,
        verb: str,
        path: str,
        json: Any = None,
        *,
        headers: Mapping[str, str] | None = None,
        content: bytes | None = None,
        token: str | None = TOKEN,
        timeout: float = 30,
    ) -> Answer:
        """One REST call."""
        sent = {**({"authorization": f"Bearer {token}"} if token else {}), **(headers or {})}
        body = content if content is not None else None if json is None else jsonlib.dumps(json).encode()
        raw = [(name.encode(), value.encode()) for name, value in sent.items()]
        answer = await self.rest.request(verb, path, content=body, headers=raw, timeout=timeout)
        return Answer(answer.status_code, answer.json() if answer.content else None, answer.headers)

    async def app(self) -> str:
        """A new app; returns its name."""
        name = f"app-{next(_numbers)}"
        answer = await self.call("POST", "/v1/apps", {"name": name, "org_slug": "personal"})
        assert answer.status == 201, answer
        return name

    async def machine(self, app: str, **more: Any) -> dict[str, Any]:
        """A new machine, not launched unless `skip_launch=False`; returns it."""
        body = {"config": {"image": "busybox"}, "skip_launch": True, **more}
        answer = await self.call("POST", f"/v1/apps/{app}/machines", body)
        assert answer.status == 200, answer
        machine: dict[str, Any] = answer.json
        return machine


@asynccontextmanager
async def new_database(postgres: str) -> AsyncIterator[str]:
    """A new database on the server of the DSN `postgres`; its DSN."""
    name = f"gw{os.getpid()}_{next(_numbers)}"
    connection = await asyncpg.connect(postgres)
    try:
        await connection.execute(f'CREATE DATABASE "{name}"')
        try:
            yield postgres.replace("/postgres?", f"/{name}?")
        finally:
            await connection.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')
    finally:
        await connection.close()


@asynccontextmanager
async def running(components: list[Component]) -> AsyncIterator[None]:
    """Runs the components until the end of the block; enters it once all are ready."""
    ready = {component.name: asyncio.Event() for component in components}
    work = asyncio.create_task(
        run_forever(**{component.name: component.run(ready[component.name].set) for component in components})
    )

    async def wait_for_all() -> None:
        for event in ready.values():
            await event.wait()

    all_ready = asyncio.create_task(wait_for_all())
    try:
        await asyncio.wait({work, all_ready}, timeout=30, return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            work.result()
        assert all_ready.done(), [name for name, event in ready.items() if not event.is_set()]
        yield
    finally:
        all_ready.cancel()
        work.cancel()
        await asyncio.gather(work, all_ready, return_exceptions=True)


def gateway_of(
    registries: Mapping[str, Registry],
    clock: SystemClock,
    random: Random,
    *,
    cell: str = CELL,
    regions: RegionMap = REGIONS,
    connect: Connect = connect_in_the_clear,
    connect_worker: Callable[[str], grpc.aio.Channel] | None = None,
    keyring: Keyring | None = None,
) -> GatewayService:
    def channel(callee: str) -> grpc.aio.Channel:
        return local(registries[callee], caller=f"{regions.place_of(cell)}/gateway", callee=callee, secret="of-the-set")

    return GatewayService(
        store=channel("machine-store"),
        converter=channel("config-converter"),
        scheduler=channel("scheduler"),
        cell=cell,
        regions=regions,
        clock=clock,
        random=random,
        connect=connect,
        connect_worker=connect_worker,
        keyring=keyring,
        central_sync=channel("central-sync") if "central-sync" in registries else None,
    )


@asynccontextmanager
async def region(
    postgres: str,
    *,
    machine_store: type[MachineStoreService] = MachineStoreService,
    scheduler: type[SchedulerService] = SchedulerService,
    random: Random | None = None,
    capacity: Resources = PLENTY,
    cell: str = CELL,
    regions: RegionMap = REGIONS,
    connect_elsewhere: Connect = connect_in_the_clear,
    central_sync: Callable[[Any], Any] | None = None,
    workers: Sequence[WorkerSettings] = (),
    centre: CentralSyncSettings | None = None,
    keyring: Keyring | None = None,
    limits: GatewayLimits | None = None,
) -> AsyncIterator[TestRegion]:
    """A region with one worker of `capacity`. `random` is the gateway's; services of other types may fail as wanted.

    With `workers` there are real ones, that run machines; it cannot be reached then, and is dedicated to `ELSEWHERE`.
    `central_sync` makes the servicer of CentralSync, from a stub of the store.
    With `centre` there is a real one, that asks a real centre; `keyring` is what secrets are sealed with.
    Without `limits` nobody's calls are limited.
    """
    clock, random = SystemClock(), random or Random()
    names: tuple[str, ...] = ("machine-store", "config-converter", "scheduler")
    place = regions.place_of(cell)
    if central_sync is not None or centre is not None:
        names = (*names, "central-sync")
    registries = {name: Registry(service=name, secret="of-the-set", place=place) for name in names}
    machine_stores = registries["machine-store"]
    store_channel = local(machine_stores, caller=f"{place}/cli", callee="machine-store", secret="of-the-set")
    if central_sync is not None:
        add_CentralSyncServicer_to_server(central_sync(MachineStoreStub(store_channel)), registries["central-sync"])
    registries["worker"] = Registry(service="worker", secret="of-the-set", place=place)

    def to_workers(address: str, caller: str = "gateway") -> grpc.aio.Channel:
        name = f"{place}/{caller}"
        if address != WORKER_ADDRESS:
            return connect([address], caller=name, callee="worker", secret="of-the-set")
        return local(registries["worker"], caller=name, callee="worker", secret="of-the-set")

    gateway = gateway_of(
        registries,
        clock,
        random,
        cell=cell,
        regions=regions,
        connect=connect_elsewhere,
        connect_worker=to_workers,
        keyring=keyring,
    )
    interceptors = public_interceptors([TOKEN], CENTRAL_TOKEN, gateway=gateway)
    outer: list[Component] = [gateway]
    foresee = None
    if limits is not None:
        control = AdmissionControl(clock, limits.admission)
        limiter = Limiter(limits.calls, clock.monotonic)
        interceptors = (*interceptors, limited(limiter), control)
        foresee = foreseeing(limiter, public_tokens([TOKEN], CENTRAL_TOKEN, gateway=gateway))
        outer.append(control)
    public = Registry(service="gateway", place=place, interceptors=interceptors)
    gateway.register(public)
    door = RestDoor(
        local(public, caller=f"{place}/rest", callee="gateway", secret=None),
        host="127.0.0.1",
        port=0,
        ready=lambda: gateway.is_ready,
        clock=clock,
        random=random,
        grace=0.2,
        admit=admission(public.guard, CENTRAL_TOKEN),
        foresee=foresee,
    )
    async with new_database(postgres) as dsn:
        inner: list[Component] = [
            machine_store(
                lambda: dsn, cell=cell, region=regions.region_of_cell(cell).code, clock=clock, random=Random()
            ),
            ConfigConverterService(),
            scheduler(store_channel, cell=cell, instance="tests", clock=clock, random=Random()),
        ]
        if centre is not None:
            channel_of_sync = local(
                machine_stores, caller=f"{place}/central-sync", callee="machine-store", secret="of-the-set"
            )
            inner.append(
                CentralSyncService(
                    channel_of_sync,
                    centre,
                    cell=cell,
                    region=regions.region_of_cell(cell).code,
                    instance="tests",
                    place=place,
                    clock=clock,
                    random=Random(),
                    keyring=keyring,
                )
            )
        if workers:
            channel_of_workers = local(
                machine_stores, caller=f"{place}/worker", callee="machine-store", secret="of-the-set"
            )
            inner.append(
                WorkerService(
                    channel_of_workers,
                    workers,
                    region=regions.region_of_cell(cell).code,
                    cell=cell,
                    clock=clock,
                    random=Random(),
                    address=WORKER_ADDRESS,
                    connect_worker=lambda address: to_workers(address, "volume-copy"),
                    keyring=keyring,
                )
            )
        for component in inner:
            component.register(registries[component.name])
        server = Server(public, "127.0.0.1:0")
        port = await server.start()
        stub: Any = MachineStoreStub(store_channel)
        worker = Worker(stub, "worker-1", capacity)
        if workers:
            worker.address, worker.host_dedication_id = "127.0.0.1:9", ELSEWHERE
        async with running(inner), running([worker, *outer, door]):
            address = f"127.0.0.1:{port}"
            async with (
                connect([address], caller=f"{place}/cli", callee="gateway", secret=None) as channel,
                httpx.AsyncClient(base_url=f"http://127.0.0.1:{door.port}") as rest,
            ):
                yield TestRegion(rest, door.port, address, MachinesStub(channel), stub, worker, gateway, registries)
        await server.stop(0)
