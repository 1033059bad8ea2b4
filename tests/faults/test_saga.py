"""Whatever is killed between any two steps of a create: the machine that is acknowledged exists once and runs once."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from random import Random
from typing import Any

import grpc
import pytest
from skerry.machines.v1 import machines_pb2, machines_pb2_grpc
from skerry.types.v1 import config_pb2

from gateway.service import GatewayService, public_interceptors
from services.cli import up
from services.cli.mesh import CONFIG_CONVERTER, GATEWAY, MACHINE_STORE, SCHEDULER, WORKER, Mesh
from services.runtime.channels import connect, local
from services.runtime.clock import SystemClock
from services.runtime.errors import DependencyDown, SkerryError
from services.runtime.regions import RegionMap
from services.runtime.registry import Registry
from services.runtime.tasks import cancel
from tests.e2e.meshes import RunningMesh
from tests.faults.audit import assert_each_exists_once, assert_each_runs_once, assert_reservations_add_up, read_books
from tests.faults.test_kills import POSTGRESQL, ApartMesh, kill
from tests.support import eventually

APP = "saga"
STEPS = ("Convert", "Place", "CreateMachine")
MOMENTS = [f"{when} {step}" for step in STEPS for when in ("before", "after")]
VICTIMS = (f"{MACHINE_STORE}-1", f"{CONFIG_CONVERTER}-1", f"{SCHEDULER}-1", f"{WORKER}-1", POSTGRESQL, GATEWAY)
ACKNOWLEDGED_SECONDS = 30.0


class Moment:
    """Runs `action` once, when a create comes to `name`."""

    def __init__(self) -> None:
        self._armed: dict[str, Callable[[], Awaitable[None]]] = {}

    def arm(self, name: str, action: Callable[[], Awaitable[None]]) -> None:
        self._armed[name] = action

    @property
    def has_passed(self) -> bool:
        return not self._armed

    async def reached(self, name: str) -> None:
        if (action := self._armed.pop(name, None)) is not None:
            await action()


class Watched:
    """A channel on which the steps of a create report that they begin and that they have ended."""

    def __init__(self, channel: grpc.aio.Channel, moment: Moment) -> None:
        self._channel = channel
        self._moment = moment

    def __getattr__(self, name: str) -> Any:
        return getattr(self._channel, name)

    def unary_unary(self, method: str, *args: Any, **kwargs: Any) -> Any:
        call = self._channel.unary_unary(method, *args, **kwargs)
        step = method.rpartition("/")[2]
        if step not in STEPS:
            return call

        async def report(request: Any, **options: Any) -> Any:
            await self._moment.reached(f"before {step}")
            response = await call(request, **options)
            await self._moment.reached(f"after {step}")
            return response

        return report


@asynccontextmanager
async def gateway_of(mesh: Mesh, moment: Moment) -> AsyncIterator[machines_pb2_grpc.MachinesAsyncStub]:
    """A gateway of the mesh that lives in the test, and a stub of its public service."""

    def channel(callee: str) -> Any:
        addresses = mesh.addresses("syd", callee)
        return Watched(connect(addresses, caller="001/gateway", callee=callee, secret=mesh.secret), moment)

    channels = {callee: channel(callee) for callee in (MACHINE_STORE, CONFIG_CONVERTER, SCHEDULER)}
    gateway = GatewayService(
        store=channels[MACHINE_STORE],
        converter=channels[CONFIG_CONVERTER],
        scheduler=channels[SCHEDULER],
        cell="001",
        regions=RegionMap.load(mesh.region_map),
        clock=SystemClock(),
        random=Random(),
    )
    registry = Registry(service="gateway", interceptors=public_interceptors([mesh.token]))
    gateway.register(registry)
    ready = asyncio.Event()
    running = asyncio.create_task(gateway.run(ready.set))
    try:
        await asyncio.wait_for(ready.wait(), 10)
        yield machines_pb2_grpc.MachinesStub(local(registry, caller="001/test", callee="gateway", secret=None))
    finally:
        await cancel(running)
        for used in channels.values():
            await used.close()


@pytest.fixture(scope="module")
def mesh() -> Iterator[RunningMesh]:
    with ApartMesh() as running:
        running.ok("POST", "/apps", {"name": APP})
        yield running


async def create(
    stub: machines_pb2_grpc.MachinesAsyncStub, token: str, name: str, marker: str, crash: asyncio.Event
) -> str:
    """Create a machine and do not give up; `crash` ends what is under way, as the death of its gateway would."""
    request = machines_pb2.CreateMachineRequest(
        app_name=APP,
        name=name,
        config=config_pb2.MachineConfig(
            image="docker.io/library/busybox:1",
            init=config_pb2.MachineInit(exec=["/bin/sleep", "3600"]),
            env={marker: name},
        ),
    )
    metadata = (("authorization", f"Bearer {token}"), ("idempotency-key", f"key-of-{name}"))
    while True:

        async def attempt() -> str:
            return (await stub.CreateMachine(request, metadata=metadata, timeout=10)).machine.id

        attempted, crashed = asyncio.ensure_future(attempt()), asyncio.ensure_future(crash.wait())
        await asyncio.wait({attempted, crashed}, return_when=asyncio.FIRST_COMPLETED)
        crashed.cancel()
        if crash.is_set():
            crash.clear()
            await cancel(attempted)
            continue
        try:
            return await attempted
        except DependencyDown:
            await asyncio.sleep(0.05)


async def test_a_create_survives_the_death_of_any_process_between_any_two_steps(mesh: RunningMesh) -> None:
    marker = f"SAGA_{os.getpid()}"
    acknowledged: dict[str, str] = {}
    moment, crash = Moment(), asyncio.Event()
    restarts: list[asyncio.Task[Any]] = []

    async with gateway_of(mesh.mesh, moment) as stub:
        for name in MOMENTS:
            for victim in VICTIMS:

                async def strike(victim: str = victim) -> None:
                    if victim == GATEWAY:
                        crash.set()
                        await asyncio.sleep(60)  # until it is cancelled: a dead gateway does not take the next step
                    await asyncio.to_thread(kill, mesh, victim)
                    restarts.append(asyncio.create_task(asyncio.to_thread(up.start, mesh.mesh, ["syd"])))

                moment.arm(name, strike)
                machine = f"{name} {victim}".lower().replace(" ", "-")
                created = create(stub, mesh.mesh.token, machine, marker, crash)
                acknowledged[machine] = await asyncio.wait_for(created, ACKNOWLEDGED_SECONDS)
                assert moment.has_passed, f"{machine}: the moment never came"
                # The next one begins with everything there again.
                await asyncio.gather(*restarts)
                restarts.clear()

    async def holds() -> bool:
        books = await read_books(mesh.mesh)
        assert_each_exists_once(books, acknowledged)
        assert_reservations_add_up(books)
        assert_each_runs_once(books, marker)
        return True

    await eventually(holds, seconds=15)


async def test_what_is_refused_leaves_nothing_behind(mesh: RunningMesh) -> None:
    before = await read_books(mesh.mesh)
    async with gateway_of(mesh.mesh, Moment()) as stub:
        request = machines_pb2.CreateMachineRequest(app_name=APP, config=config_pb2.MachineConfig(image=""))
        with pytest.raises(SkerryError):
            await stub.CreateMachine(request, metadata=(("authorization", f"Bearer {mesh.mesh.token}"),))
    after = await read_books(mesh.mesh)
    assert [machine.id for machine in after.machines] == [machine.id for machine in before.machines]
    assert_reservations_add_up(after)
