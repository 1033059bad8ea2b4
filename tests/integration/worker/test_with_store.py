"""A worker against the machine-store itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random

import pytest
from skerry.store.v1 import store_pb2 as pb
from skerry.store.v1 import store_pb2_grpc
from skerry.types.v1.machine_pb2 import MachineState
from skerry.types.v1.spec_pb2 import CPU_KIND_SHARED, RESTART_POLICY_ON_FAILURE, MachineSpec

from services.machine_store.service import MachineStoreService
from services.runtime import channels
from services.runtime.clock import SystemClock
from services.runtime.ids import new_machine_id, new_ulid
from services.runtime.registry import Registry
from services.runtime.resources import need_of
from services.runtime.tasks import cancel
from services.worker.service import WorkerService
from services.worker.settings import WorkerSettings
from tests.integration.worker.conftest import holders_of, leaders_of, machine_spec
from tests.support import eventually


class Cell:
    """A store and one worker in this process."""

    def __init__(self, dsn: str, data: Path) -> None:
        self._clock = SystemClock()
        self._random = Random()
        self._data = data
        self._store = MachineStoreService(lambda: dsn, cell="001", region="syd", clock=self._clock, random=self._random)
        registry = Registry(service="machine-store")
        self._store.register(registry)
        self._channel = channels.local(registry, caller="001/worker", callee="machine-store", secret=None)
        self.stub: store_pb2_grpc.MachineStoreAsyncStub = store_pb2_grpc.MachineStoreStub(self._channel)
        self.worker: WorkerService | None = None

    @asynccontextmanager
    async def store_runs(self) -> AsyncIterator[None]:
        ready = asyncio.Event()
        task = asyncio.create_task(self._store.run(ready.set))
        try:
            await asyncio.wait_for(ready.wait(), 20)
            yield
        finally:
            await cancel(task)

    @asynccontextmanager
    async def worker_runs(self) -> AsyncIterator[WorkerService]:
        settings = WorkerSettings.model_validate(
            {
                "id": "w1",
                "capacity": {"shared_cpu_millicores": 8000, "memory_bytes": 1 << 34, "disk_bytes": 1 << 40},
                "data": self._data,
            }
        )
        worker = WorkerService(
            self._channel, [settings], region="syd", cell="001", clock=self._clock, random=self._random
        )
        ready = asyncio.Event()
        task = asyncio.create_task(worker.run(ready.set))
        try:
            await asyncio.wait_for(ready.wait(), 20)
            yield worker
        finally:
            await cancel(task)

    async def create(self, spec: MachineSpec, *, launch: bool = True) -> str:
        spec.guest.cpu_kind, spec.guest.cpu_millicores = CPU_KIND_SHARED, 1000
        request = pb.CreateMachineRequest(
            machine_id=new_machine_id("001", self._random),
            instance_id=new_ulid(self._clock.now(), self._random),
            app_id="app-1",
            name=f"m-{self._random.getrandbits(40)}",
            region="syd",
            need=need_of(spec),
            candidate_worker_ids=["w1"],
            launch=launch,
            source="user",
        )
        request.conversion.spec.CopyFrom(spec)
        return (await self.stub.CreateMachine(request)).machine.id

    async def update(self, machine: str, spec: MachineSpec, *, skip_launch: bool) -> None:
        request = pb.UpdateMachineRequest(
            machine_id=machine,
            app_id="app-1",
            instance_id=new_ulid(self._clock.now(), self._random),
            need=need_of(spec),
            skip_launch=skip_launch,
            source="user",
        )
        request.conversion.spec.CopyFrom(spec)
        await self.stub.UpdateMachine(request)

    async def ask(self, machine: str, verb: pb.Verb.ValueType, *, force: bool = False) -> None:
        await self.stub.ApplyVerb(
            pb.ApplyVerbRequest(machine_id=machine, app_id="app-1", verb=verb, force=force, source="user")
        )

    async def reaches(self, machine: str, state: str) -> None:
        async def there() -> bool:
            answer = await self.stub.GetMachine(pb.GetMachineRequest(machine_id=machine))
            return MachineState.Name(answer.machine.state) == f"MACHINE_STATE_{state.upper()}"

        await eventually(there)

    async def events(self, machine: str) -> list[str]:
        """Types of what happened to a machine, oldest first."""
        answer = await self.stub.ListMachineEvents(pb.ListMachineEventsRequest(machine_id=machine, limit=100))
        return [event.type for event in reversed(answer.events)]


@pytest.fixture
async def cell(fresh_database: Callable[[], Awaitable[str]], tmp_path: Path) -> AsyncIterator[Cell]:
    cell = Cell(await fresh_database(), tmp_path / "worker")
    async with cell.store_runs():
        await cell.stub.CreateApp(
            pb.CreateAppRequest(app_id="app-1", name="demo", organization_slug="personal", network="n", home_cell="001")
        )
        async with cell.worker_runs() as worker:
            cell.worker = worker
            yield cell
            await worker.stop_machines(1)


async def test_a_machine_lives_its_whole_life(cell: Cell) -> None:
    machine = await cell.create(machine_spec("sleep", "100", marker="whole-life"))
    await cell.reaches(machine, "started")
    assert len(leaders_of("whole-life")) == 1
    await cell.ask(machine, pb.VERB_STOP)
    await cell.reaches(machine, "stopped")
    assert not leaders_of("whole-life")
    await cell.ask(machine, pb.VERB_START)
    await cell.reaches(machine, "started")
    before = leaders_of("whole-life")
    await cell.ask(machine, pb.VERB_RESTART)
    await eventually(lambda: leaders_of("whole-life") not in ([], before))
    await cell.reaches(machine, "started")
    assert len(leaders_of("whole-life")) == 1
    await cell.ask(machine, pb.VERB_DESTROY, force=True)
    await cell.reaches(machine, "destroyed")
    assert not holders_of("whole-life")
    events = await cell.events(machine)
    assert events.count("exit") == 3
    assert events.count("start") >= 3


async def test_an_update_without_launch_stops_a_running_machine(cell: Cell) -> None:
    spec = machine_spec("sleep", "100", marker="skip-launch")
    machine = await cell.create(spec)
    await cell.reaches(machine, "started")
    await cell.update(machine, spec, skip_launch=True)
    await cell.reaches(machine, "stopped")
    assert not leaders_of("skip-launch")
    assert (await cell.events(machine)).count("exit") == 1


async def test_an_update_of_a_running_machine_runs_the_new_version_once(cell: Cell) -> None:
    machine = await cell.create(machine_spec("sleep", "100", marker="version-1"))
    await cell.reaches(machine, "started")
    await cell.update(machine, machine_spec("sleep", "100", marker="version-2"), skip_launch=False)
    await eventually(lambda: len(leaders_of("version-2")) == 1)
    await cell.reaches(machine, "started")
    assert not leaders_of("version-1")


async def test_a_machine_that_is_not_launched_can_be_destroyed(cell: Cell) -> None:
    machine = await cell.create(machine_spec("sleep", "100"), launch=False)
    await cell.ask(machine, pb.VERB_DESTROY)
    await cell.reaches(machine, "destroyed")


async def test_a_machine_that_failed_says_why(cell: Cell) -> None:
    machine = await cell.create(machine_spec("no-such-command"))
    await cell.reaches(machine, "failed")
    answer = await cell.stub.GetMachine(pb.GetMachineRequest(machine_id=machine))
    assert "no-such-command" in answer.machine.reason


async def test_a_stop_in_the_middle_of_the_backoff_settles(cell: Cell) -> None:
    spec = machine_spec("sh", "-c", "exit 1")
    spec.restart.policy, spec.restart.max_retries = RESTART_POLICY_ON_FAILURE, 10
    machine = await cell.create(spec)
    await cell.reaches(machine, "restarting")
    await cell.ask(machine, pb.VERB_STOP)
    await cell.reaches(machine, "stopped")
