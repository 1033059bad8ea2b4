"""The scheduler against the real machine-store on a real PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from random import Random
from typing import Any

import asyncpg
import grpc
import pytest
from skerry.converter.v1.converter_pb2 import ConversionResult
from skerry.scheduler.v1 import scheduler_pb2, scheduler_pb2_grpc
from skerry.store.v1 import store_pb2, store_pb2_grpc
from skerry.types.v1.config_pb2 import MachineConfig
from skerry.types.v1.machine_pb2 import (
    HOST_STATUS_OK,
    HOST_STATUS_UNREACHABLE,
    MACHINE_STATE_CREATED,
    MACHINE_STATE_STARTED,
    MACHINE_STATE_STARTING,
    MACHINE_STATE_STOPPED,
)
from skerry.types.v1.resources_pb2 import Resources
from skerry.types.v1.spec_pb2 import SCHEDULE_INTERVAL_HOURLY, MachineSpec, ScheduleSpec, StandbysSpec

from services.machine_store.service import MachineStoreService
from services.runtime import telemetry
from services.runtime.channels import local
from services.runtime.clock import SystemClock
from services.runtime.duty import LeadTimes
from services.runtime.errors import Conflict, DependencyDown, NotFound, SkerryError
from services.runtime.ids import new_machine_id, new_ulid
from services.runtime.registry import Registry
from services.scheduler.leader import DUTY, Leader
from services.scheduler.reconcile import ReconcileSettings
from services.scheduler.service import SchedulerService, SchedulerSettings
from services.scheduler.view import View
from tests.support import eventually
from tests.support_fleet import amounts

CELL = "001"
SECRET = "secret of the set"

# Everything ten times as fast as in earnest.
QUICK = SchedulerSettings(
    lead=LeadTimes(lease=1.0, keep_every=0.2),
    reconcile=ReconcileSettings(
        pass_every=0.1, worker_lease=1.0, longest_gap=0.6, repair_every=0.3, start_deadline=0.5
    ),
)


class ShiftedClock(SystemClock):
    """The system's clock, except that `now` is off by `shift` seconds."""

    shift = 0.0

    def now(self) -> float:
        return super().now() + self.shift


class Cell:
    """A machine-store on a database of its own, workers that live as long as they are told to, and schedulers."""

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn
        self.random = Random(1)
        self.clock = ShiftedClock()
        self.registry = Registry(service="machine-store", secret=SECRET)
        self._alive: dict[str, asyncio.Task[None]] = {}
        self._store: asyncio.Task[None] | None = None

    @property
    def store(self) -> store_pb2_grpc.MachineStoreAsyncStub:
        return store_pb2_grpc.MachineStoreStub(self.channel("scheduler"))

    def channel(self, caller: str) -> grpc.aio.Channel:
        return local(self.registry, caller=f"{CELL}/{caller}", callee="machine-store", secret=SECRET)

    async def start_store(self) -> None:
        service = MachineStoreService(
            lambda: self.dsn, cell=CELL, region="syd", clock=self.clock, random=self.random, tick=0.1
        )
        self.registry = Registry(service="machine-store", secret=SECRET)
        service.register(self.registry)
        ready = asyncio.Event()
        self._store = asyncio.create_task(service.run(ready.set))
        await asyncio.wait_for(ready.wait(), 20)

    async def stop(self) -> None:
        await cancel(*self._alive.values(), *([self._store] if self._store else []))

    @asynccontextmanager
    async def scheduler(self, instance: str = "one") -> AsyncIterator[scheduler_pb2_grpc.SchedulerAsyncStub]:
        """A scheduler that has caught up."""
        service = SchedulerService(
            self.channel("scheduler"),
            cell=CELL,
            instance=instance,
            clock=SystemClock(),
            random=Random(2),
            settings=QUICK,
        )
        registry = Registry(service="scheduler", secret=SECRET)
        service.register(registry)
        ready = asyncio.Event()
        task = asyncio.create_task(service.run(ready.set))
        try:
            await asyncio.wait_for(ready.wait(), 10)
            channel = local(registry, caller=f"{CELL}/gateway", callee="scheduler", secret=SECRET)
            yield scheduler_pb2_grpc.SchedulerStub(channel)
        finally:
            await cancel(task)

    async def add_worker(self, worker_id: str, capacity: Resources | None = None) -> None:
        """A worker that sends heartbeats until `silence`."""
        await self.store.RegisterWorker(
            store_pb2.RegisterWorkerRequest(
                worker_id=worker_id,
                journal_id=f"journal-{worker_id}",
                capacity=capacity or amounts(memory=16, shared=16, disk=100),
            )
        )
        self.revive(worker_id)

    def revive(self, worker_id: str) -> None:
        self._alive[worker_id] = asyncio.create_task(self._beat(worker_id))

    async def silence(self, worker_id: str) -> None:
        await cancel(self._alive.pop(worker_id))

    async def _beat(self, worker_id: str) -> None:
        request = store_pb2.HeartbeatRequest(worker_id=worker_id, journal_id=f"journal-{worker_id}")
        while True:
            try:
                await self.store.Heartbeat(request)
            except SkerryError:
                pass
            await asyncio.sleep(0.1)

    async def add_app(self, name: str) -> None:
        await self.store.CreateApp(
            store_pb2.CreateAppRequest(app_id=f"id-{name}", name=name, organization_slug="org", home_cell=CELL)
        )

    async def add_machine(
        self,
        worker_ids: Sequence[str],
        *,
        app: str = "app",
        memory: int = 1,
        launch: bool = True,
        spec: MachineSpec | None = None,
    ) -> store_pb2.MachineRecord:
        machine_id = new_machine_id(CELL, self.random)
        created = await self.store.CreateMachine(
            store_pb2.CreateMachineRequest(
                machine_id=machine_id,
                instance_id=new_ulid(self.clock.now(), self.random),
                app_id=f"id-{app}",
                name=f"machine-{machine_id}",
                region="syd",
                config=MachineConfig(image="nginx"),
                conversion=ConversionResult(spec=spec or MachineSpec()),
                need=amounts(memory=memory),
                candidate_worker_ids=worker_ids,
                launch=launch,
                source="user",
            )
        )
        return created.machine

    async def observe(self, machine: store_pb2.MachineRecord, sequence: int, **seen: Any) -> None:
        """Report what the worker of a machine saw."""
        await self.store.ReportObservations(
            store_pb2.ReportObservationsRequest(
                worker_id=machine.worker_id,
                journal_id=f"journal-{machine.worker_id}",
                observations=[
                    store_pb2.Observation(
                        sequence=sequence, machine_id=machine.id, generation=machine.generation, **seen
                    )
                ],
            )
        )

    async def sql(self, statement: str) -> None:
        """Go behind the store's back."""
        connection = await asyncpg.connect(self.dsn)
        try:
            await connection.execute(statement)
        finally:
            await connection.close()

    async def machine(self, machine_id: str) -> store_pb2.MachineRecord:
        return (await self.store.GetMachine(store_pb2.GetMachineRequest(machine_id=machine_id))).machine

    async def worker(self, worker_id: str) -> store_pb2.WorkerRecord:
        listed = await self.store.ListWorkers(store_pb2.ListWorkersRequest())
        return next(worker for worker in listed.workers if worker.id == worker_id)

    async def lead(self, holder: str, *, lease: float = 1.0) -> store_pb2.AcquireDutyResponse:
        request = store_pb2.AcquireDutyRequest(duty=DUTY, holder=holder)
        request.lease.FromNanoseconds(int(lease * 1e9))
        return await self.store.AcquireDuty(request)


async def cancel(*tasks: asyncio.Task[None]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@pytest.fixture
async def cell(fresh_database: Callable[[], Awaitable[str]]) -> AsyncIterator[Cell]:
    cell = Cell(await fresh_database())
    await cell.start_store()
    try:
        await cell.add_app("app")
        yield cell
    finally:
        await cell.stop()


def done(action: str) -> float:
    """How often reconcilers of this process have done something without an error."""
    labels = {"cell": CELL, "action": action, "outcome": "ok"}
    return telemetry.metrics.get_sample_value("skerry_reconciler_actions_total", labels) or 0.0


async def reconciled(times: int) -> None:
    """Return when a reconciler has repaired reservations `times` more, with a few passes between any two."""
    before = done("repair")
    await eventually(lambda: done("repair") >= before + times)


async def place(
    scheduler: scheduler_pb2_grpc.SchedulerAsyncStub, memory: int = 1, app: str = "app"
) -> scheduler_pb2.PlaceResponse:
    return await scheduler.Place(scheduler_pb2.PlaceRequest(app_id=f"id-{app}", need=amounts(memory=memory)))


async def test_until_the_view_has_caught_up_placing_says_which_dependency_is_missing(cell: Cell) -> None:
    service = SchedulerService(
        cell.channel("scheduler"), cell=CELL, instance="one", clock=SystemClock(), random=Random(2)
    )
    registry = Registry(service="scheduler", secret=SECRET)
    service.register(registry)
    channel = local(registry, caller=f"{CELL}/gateway", callee="scheduler", secret=SECRET)
    with pytest.raises(DependencyDown, match="fleet view") as caught:
        await place(scheduler_pb2_grpc.SchedulerStub(channel))
    assert caught.value.metadata["dependency"] == "fleet view"
    assert caught.value.retry_after is not None


async def test_machines_of_an_app_are_placed_on_the_workers_that_have_fewest_of_it(cell: Cell) -> None:
    await cell.add_worker("a")
    await cell.add_worker("b")
    async with cell.scheduler() as scheduler:
        used = []
        for _ in range(4):
            answer = await place(scheduler)
            assert answer.workers == 2
            assert {candidate.worker_id for candidate in answer.candidates} == {"a", "b"}
            assert answer.candidates[0].score >= answer.candidates[1].score
            made = await cell.add_machine([candidate.worker_id for candidate in answer.candidates])
            used.append(made.worker_id)
        assert sorted(used) == ["a", "a", "b", "b"]


async def test_a_burst_of_placements_that_the_log_has_not_told_of_spreads(cell: Cell) -> None:
    for name in "abcd":
        await cell.add_worker(name)
    async with cell.scheduler() as scheduler:
        answers = await asyncio.gather(*(place(scheduler) for _ in range(4)))
        assert sorted(answer.candidates[0].worker_id for answer in answers) == ["a", "b", "c", "d"]


async def test_what_is_taken_is_not_offered_and_what_is_given_back_is(cell: Cell) -> None:
    await cell.add_worker("a", amounts(memory=2))
    async with cell.scheduler() as scheduler:
        made = await cell.add_machine(["a"], memory=2, launch=False)

        async def full() -> bool:
            answer = await place(scheduler)
            reasons = [(one.reason, one.workers, one.most_free) for one in answer.rejections]
            return not answer.candidates and reasons == [("memory", 1, 0)]

        await eventually(full)
        await cell.store.ApplyVerb(
            store_pb2.ApplyVerbRequest(machine_id=made.id, verb=store_pb2.VERB_DESTROY, source="user")
        )
        await cell.observe(await cell.machine(made.id), 1, destroyed=store_pb2.Destroyed())

        async def free() -> bool:
            return bool((await place(scheduler, memory=2)).candidates)

        await eventually(free)


async def test_a_worker_that_falls_silent_is_lost_with_its_machines_and_back_when_it_is_heard(cell: Cell) -> None:
    await cell.add_worker("a")
    await cell.add_worker("b")
    made = await cell.add_machine(["a"])
    async with cell.scheduler() as scheduler:
        await eventually(lambda: place(scheduler))
        await cell.silence("a")

        async def host_status_is(status: int) -> bool:
            return (await cell.machine(made.id)).host_status == status

        await eventually(lambda: host_status_is(HOST_STATUS_UNREACHABLE))

        async def only_b() -> bool:
            answer = await place(scheduler)
            return [candidate.worker_id for candidate in answer.candidates] == ["b"]

        await eventually(only_b)
        assert (await cell.worker("b")).status == HOST_STATUS_OK
        cell.revive("a")
        await eventually(lambda: host_status_is(HOST_STATUS_OK))
        # The machine has not moved.
        assert (await cell.machine(made.id)).worker_id == "a"


async def test_a_store_that_was_away_makes_no_worker_lost(cell: Cell) -> None:
    lease = QUICK.reconcile.worker_lease
    await cell.add_worker("a")
    async with cell.scheduler():
        await reconciled(3)
        connection = await asyncpg.connect(cell.dsn)
        try:
            async with connection.transaction():
                await connection.execute("LOCK TABLE heartbeats, duties, workers IN ACCESS EXCLUSIVE MODE")
                await cell.silence("a")
                # Time has to pass: that is what is away, not an event to wait for.
                await asyncio.sleep(3 * lease)
        finally:
            await connection.close()
        # The reconciler is sooner back at work than the worker.
        await reconciled(1)
        assert (await cell.worker("a")).status == HOST_STATUS_OK
        cell.revive("a")
        await reconciled(5)
        assert (await cell.worker("a")).status == HOST_STATUS_OK
        await cell.silence("a")

        async def lost() -> bool:
            return (await cell.worker("a")).status == HOST_STATUS_UNREACHABLE

        await eventually(lost)


async def test_a_standby_starts_when_the_worker_of_its_machine_is_lost_and_stays_stopped_once_stopped(
    cell: Cell,
) -> None:
    await cell.add_worker("a")
    await cell.add_worker("b")
    primary = await cell.add_machine(["a"])
    await cell.observe(primary, 1, started=store_pb2.Started())
    assert (await cell.machine(primary.id)).state == MACHINE_STATE_STARTED
    standby = await cell.add_machine(
        ["b"], launch=False, spec=MachineSpec(standbys=StandbysSpec(machine_ids=[primary.id]))
    )
    async with cell.scheduler():
        await reconciled(3)
        assert (await cell.machine(standby.id)).state == MACHINE_STATE_CREATED
        await cell.silence("a")

        async def is_in(state: int) -> bool:
            return (await cell.machine(standby.id)).state == state

        await eventually(lambda: is_in(MACHINE_STATE_STARTING))
        events = await cell.store.ListMachineEvents(store_pb2.ListMachineEventsRequest(machine_id=standby.id, limit=10))
        assert events.events[0].source == "flyd"
        await cell.observe(await cell.machine(standby.id), 1, started=store_pb2.Started())
        await cell.store.ApplyVerb(
            store_pb2.ApplyVerbRequest(machine_id=standby.id, verb=store_pb2.VERB_STOP, source="user")
        )
        await cell.observe(await cell.machine(standby.id), 2, exited=store_pb2.Exited())
        await eventually(lambda: is_in(MACHINE_STATE_STOPPED))
        await reconciled(3)
        assert await is_in(MACHINE_STATE_STOPPED)


async def test_a_machine_whose_schedule_is_due_is_started_once(cell: Cell) -> None:
    await cell.add_worker("a")
    cell.clock.shift = -2 * 3600
    made = await cell.add_machine(["a"], spec=MachineSpec(schedule=ScheduleSpec(interval=SCHEDULE_INTERVAL_HOURLY)))
    await cell.observe(made, 1, started=store_pb2.Started())
    await cell.observe(made, 2, exited=store_pb2.Exited())
    assert (await cell.machine(made.id)).state == MACHINE_STATE_STOPPED
    cell.clock.shift = 0
    async with cell.scheduler("one"), cell.scheduler("two"):

        async def started() -> bool:
            return (await cell.machine(made.id)).generation == made.generation + 1

        await eventually(started)
        again = await cell.machine(made.id)
        await cell.observe(again, 3, started=store_pb2.Started())
        await cell.observe(again, 4, exited=store_pb2.Exited())
        await reconciled(3)
        assert (await cell.machine(made.id)).generation == made.generation + 1


async def test_a_machine_that_is_not_started_in_time_says_what_it_waits_for_and_is_silent_once_it_runs(
    cell: Cell,
) -> None:
    await cell.add_worker("w1")
    machine = await cell.add_machine(["w1"])

    async def reason() -> str:
        return (await cell.machine(machine.id)).reason

    async def says(what: str) -> bool:
        return what in await reason()

    async with cell.scheduler():
        await eventually(lambda: says("it waits for worker w1, which can be reached and has not started it yet"))
        await cell.silence("w1")
        await eventually(lambda: says("it waits for worker w1, which cannot be reached"))
        cell.revive("w1")
        await eventually(lambda: says("can be reached"))
        await cell.observe(machine, 1, started=store_pb2.Started())
        assert await reason() == ""
        await reconciled(1)
        assert await reason() == ""
    listed = await cell.store.ListMachineEvents(store_pb2.ListMachineEventsRequest(machine_id=machine.id, limit=10))
    assert [event.type for event in listed.events] == ["start", "delay", "delay", "delay", "launch"]
    assert {event.source for event in listed.events[1:4]} == {"flyd"}


async def test_reservations_that_were_corrupted_are_repaired(cell: Cell) -> None:
    await cell.add_worker("a")
    await cell.add_machine(["a"], memory=2)
    right = (await cell.worker("a")).reserved
    await cell.sql("UPDATE workers SET reserved_memory_bytes = 7, reserved_disk_bytes = 7")
    assert (await cell.worker("a")).reserved != right

    async def repaired() -> bool:
        return (await cell.worker("a")).reserved == right

    async with cell.scheduler():
        await eventually(repaired)


async def test_what_is_old_enough_is_forgotten(cell: Cell) -> None:
    await cell.add_worker("a")
    cell.clock.shift = -8 * 24 * 3600
    made = await cell.add_machine(["a"], launch=False)
    await cell.store.ApplyVerb(
        store_pb2.ApplyVerbRequest(machine_id=made.id, verb=store_pb2.VERB_DESTROY, source="user")
    )
    await cell.observe(await cell.machine(made.id), 1, destroyed=store_pb2.Destroyed())
    await cell.sql("UPDATE log SET at = at - interval '8 days'")
    before = done("purge")
    async with cell.scheduler():
        await eventually(lambda: done("purge") == before + 1)
    with pytest.raises(NotFound):
        await cell.machine(made.id)


class PausedProcess:
    """A store's stub in a process that is stopped just before it sends a call of one method, until `go_on` is set."""

    def __init__(self, store: store_pb2_grpc.MachineStoreAsyncStub, method: str) -> None:
        self._store = store
        self._method = method
        self.stopped = asyncio.Event()
        self.go_on = asyncio.Event()
        self.errors: list[tuple[str, SkerryError]] = []

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        async def call(request: Any, **options: Any) -> Any:
            if name == self._method:
                self.stopped.set()
            if self.stopped.is_set():
                await self.go_on.wait()
            try:
                return await getattr(self._store, name)(request, **options)
            except SkerryError as error:
                self.errors.append((name, error))
                raise

        return call


async def test_a_leader_that_was_paused_loses_the_lead_and_its_writes_are_refused(cell: Cell) -> None:
    def leader(holder: str, store: Any) -> Leader:
        clock, random = SystemClock(), Random(3)
        return Leader(
            store,
            View(clock, random),
            cell=CELL,
            holder=holder,
            clock=clock,
            random=random,
            lead=QUICK.lead,
            settings=QUICK.reconcile,
        )

    async def status_is(status: int) -> bool:
        return (await cell.worker("a")).status == status

    await cell.add_worker("a")
    paused = PausedProcess(cell.store, "SetWorkerStatus")
    old, new = leader("old", paused), leader("new", cell.store)
    running = [asyncio.create_task(old.run())]
    try:
        await eventually(lambda: old.term is not None)
        old_term = old.term
        running.append(asyncio.create_task(new.run()))
        await cell.silence("a")
        # The old leader is about to call the worker lost, and stands still.
        await asyncio.wait_for(paused.stopped.wait(), 10)
        await eventually(lambda: new.term is not None)
        await eventually(lambda: status_is(HOST_STATUS_UNREACHABLE))
        cell.revive("a")
        await eventually(lambda: status_is(HOST_STATUS_OK))
        paused.go_on.set()
        await eventually(lambda: paused.errors)
        method, error = paused.errors[0]
        assert method == "SetWorkerStatus"
        assert isinstance(error, Conflict)
        assert await status_is(HOST_STATUS_OK)
        assert old.term is None
        assert new.term is not None
        assert old_term is not None
        assert new.term > old_term
        with pytest.raises(Conflict):
            await cell.store.RepairReservations(
                store_pb2.RepairReservationsRequest(term=store_pb2.DutyTerm(duty=DUTY, term=old_term))
            )
    finally:
        await cancel(*running)


async def test_a_scheduler_that_ends_leaves_the_lead_to_the_next_at_once(cell: Cell) -> None:
    async with cell.scheduler("one"):

        async def led() -> bool:
            # It asks for no time, so that it is not in the way when it is first.
            answer = await cell.lead("bystander", lease=0.0)
            return not answer.acquired and answer.holder.startswith("one-")

        await eventually(led)
    assert (await cell.lead("bystander")).acquired
