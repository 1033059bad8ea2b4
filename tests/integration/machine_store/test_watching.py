"""Watches: every revision once and in order, however often they are cut and whoever writes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random

import pytest
from skerry.store.v1 import store_pb2 as pb
from skerry.types.v1.machine_pb2 import MACHINE_STATE_DESTROYED, MACHINE_STATE_STARTED, MACHINE_STATE_STARTING
from skerry.types.v1.resources_pb2 import Resources

from services.machine_store.database import Database
from services.machine_store.watch import Log
from services.runtime.clock import FakeClock, SystemClock
from services.runtime.errors import DependencyDown, InvalidConfig, RevisionTooOld, SkerryError
from services.runtime.tasks import cancel
from tests.integration.machine_store.stores import (
    APP,
    NEED,
    Store,
    connection_to,
    destroyed,
    exited,
    left,
    running_store,
    started,
)
from tests.support import eventually


class Watcher:
    """A watch that notes what it is told."""

    def __init__(self, store: Store, from_revision: int | None = None, **wanted: object) -> None:
        self.store = store
        self.request = pb.WatchRequest(filter=pb.WatchFilter(**wanted), from_revision=from_revision)  # type: ignore[arg-type]
        self.responses: list[pb.WatchResponse] = []
        self.state: list[pb.Change] = []
        self.changes: list[pb.Change] = []
        self.revision = -1
        self.complete = False
        self.error: SkerryError | None = None

    async def run(self) -> None:
        try:
            async for response in self.store.stub.Watch(self.request, timeout=60):
                self.responses.append(response)
                (self.state if response.snapshot else self.changes).extend(response.changes)
                self.complete = self.complete or response.snapshot_complete
                if not response.snapshot:
                    assert response.revision >= self.revision
                    assert all(change.revision <= response.revision for change in response.changes)
                if not response.snapshot or response.snapshot_complete:
                    self.revision = response.revision
                assert response.newest_revision >= response.revision
        except SkerryError as error:
            self.error = error

    def states(self, machine_id: str) -> list[int]:
        return [change.machine.state for change in self.changes if change.machine.id == machine_id]


@asynccontextmanager
async def watching(store: Store, from_revision: int | None = None, **wanted: object) -> AsyncIterator[Watcher]:
    watcher = Watcher(store, from_revision, **wanted)
    task = asyncio.create_task(watcher.run())
    try:
        await eventually(lambda: watcher.revision >= 0 or watcher.error)
        yield watcher
    finally:
        await cancel(task)


async def newest(dsn: str) -> int:
    async with connection_to(dsn) as connection:
        revision: int = await connection.fetchval("SELECT revision FROM counter")
        return revision


async def busy(store: Store, seed: int) -> None:
    """Writes of every kind, one after another, from one of several writers."""
    random = Random(seed)
    machines: list[pb.MachineRecord] = []
    for number in range(25):
        match random.randrange(7):
            case 0 | 1 | 2:
                creates = (store.create(workers=["w1", "w2"]) for _ in range(random.randint(1, 8)))
                machines += await asyncio.gather(*creates)
            case 3 if machines:
                await store.verb(random.choice(machines).id, pb.VERB_RESTART)
            case 4:
                await store.app(f"app-{seed}-{number}", f"app-{seed}-{number}")
            case 5:
                await store.worker(f"worker-{seed}", Resources(memory_bytes=2**40 + number))
            case 6 if machines:
                await store.update(random.choice(machines).id)


async def test_a_watcher_that_is_cut_and_resumes_sees_every_revision_once(dsn: str) -> None:
    random = Random(7)
    async with (
        running_store(dsn, seed=1) as one,
        running_store(dsn, seed=2) as two,
        running_store(dsn, seed=3) as three,
    ):
        for worker in ("w1", "w2"):
            await one.worker(worker)
        await one.app()
        begin = await newest(dsn)
        writers = [
            asyncio.create_task(busy(store, seed)) for seed, store in enumerate([one, two, three, one, two, three])
        ]
        seen: list[int] = []
        revision, cuts = begin, 0
        while not all(writer.done() for writer in writers) or revision < await newest(dsn):
            stop_after = random.randint(1, 6)
            request = pb.WatchRequest(from_revision=revision)
            watch = random.choice([one, two, three]).stub.Watch(request, timeout=30)
            async for response in watch:
                seen += [change.revision for change in response.changes]
                revision = response.revision
                stop_after -= 1
                if stop_after == 0:
                    break
            watch.cancel()
            cuts += 1
        await asyncio.gather(*writers)
        assert seen == list(range(begin + 1, await newest(dsn) + 1))
        assert len(seen) > 200
        assert cuts > 20


async def test_a_watcher_that_stays_sees_every_revision_once(dsn: str) -> None:
    async with running_store(dsn, seed=1) as one, running_store(dsn, seed=2) as two:
        for worker in ("w1", "w2"):
            await one.worker(worker)
        await one.app()
        async with watching(one) as at_one, watching(two) as at_two:
            await asyncio.gather(busy(one, 1), busy(two, 2))
            last = await newest(dsn)
            await eventually(lambda: min(at_one.revision, at_two.revision) >= last)
            first = at_one.changes[0].revision
            assert [change.revision for change in at_one.changes] == list(range(first, last + 1))
            assert [c.SerializeToString(deterministic=True) for c in at_one.changes] == [
                c.SerializeToString(deterministic=True) for c in at_two.changes
            ]


async def test_the_state_and_what_happens_after_it_are_the_whole(dsn: str) -> None:
    async with running_store(dsn, seed=1) as one, running_store(dsn, seed=2) as two:
        for worker in ("w1", "w2"):
            await one.worker(worker)
        await one.app()
        writing = [asyncio.create_task(busy(store, seed)) for seed, store in enumerate((one, two))]
        watchers = [Watcher(two if n % 2 else one) for n in range(6)]
        tasks = []
        for watcher in watchers:
            tasks.append(asyncio.create_task(watcher.run()))
            await eventually(lambda watcher=watcher: watcher.complete)  # type: ignore[misc]
        await asyncio.gather(*writing)
        last = await newest(dsn)
        await eventually(lambda: min(watcher.revision for watcher in watchers) >= last)
        truth = {m.id: m.revision for m in await one.list()}
        for watcher in watchers:
            machines: dict[str, int] = {}
            snapshot_at = watcher.responses[0].revision
            assert all(change.revision <= snapshot_at for change in watcher.state)
            for change in (*watcher.state, *watcher.changes):
                if change.HasField("machine"):
                    machines[change.machine.id] = change.machine.revision
            assert machines == truth
            assert [c.revision for c in watcher.changes] == list(range(snapshot_at + 1, last + 1))
        await cancel(*tasks)


async def test_the_state_of_nothing_but_a_plan_is_complete(dsn: str) -> None:
    async with running_store(dsn) as store, watching(store) as watcher:
        assert watcher.complete
        assert ([change.WhichOneof("record") for change in watcher.state], watcher.revision) == (["plan"], 1)


async def test_a_change_carries_its_record_as_it_was_and_its_events(store: Store) -> None:
    async with watching(store, kinds=[pb.RECORD_KIND_MACHINE]) as watcher:
        machine = await store.create("m")
        await store.report("w1", started(machine))
        await eventually(lambda: len(watcher.changes) == 2)
        created, ran = watcher.changes
        assert created.machine == machine
        assert [e.type for e in created.events] == ["launch"]
        assert (ran.machine.state, [e.type for e in ran.events]) == (MACHINE_STATE_STARTED, ["start"])
        assert not ran.machine.HasField("config")
    async with watching(store, from_revision=created.revision - 1, view=pb.MACHINE_VIEW_FULL) as whole:
        await eventually(lambda: len(whole.changes) == 2)
        first, second = whole.changes
        assert first.machine.state == MACHINE_STATE_STARTING
        assert first.machine.config.image == second.machine.config.image == "nginx"
        assert first.machine.spec.metadata.entries["role"] == "test"
        assert [part.part for part in first.machine.parts] == ["image"]


async def test_a_whole_machine_is_of_the_version_that_it_then_had(store: Store) -> None:
    machine = await store.create()
    async with watching(store, view=pb.MACHINE_VIEW_FULL, machine_id=machine.id) as live:
        await store.update(machine.id, image="redis")
        await store.update(machine.id, image="caddy")
        await eventually(lambda: len(live.changes) == 2)
        assert live.state[0].machine.config.image == "nginx"
        assert [c.machine.config.image for c in live.changes] == ["redis", "caddy"]
    async with watching(store, machine.revision - 1, view=pb.MACHINE_VIEW_FULL, machine_id=machine.id) as later:
        await eventually(lambda: len(later.changes) == 3)
        assert [c.machine.config.image for c in later.changes] == ["nginx", "redis", "caddy"]


async def test_filters_let_through_what_they_name(store: Store) -> None:
    await store.worker("w2")
    await store.app("app-2", "other")
    here = await store.create(workers=["w1"])
    there = await store.create(workers=["w2"], app_id="app-2")
    async with (
        watching(store, worker_id="w1") as of_worker,
        watching(store, app_id="app-2") as of_app,
        watching(store, machine_id=there.id) as of_machine,
        watching(store, kinds=[pb.RECORD_KIND_APP]) as of_apps,
        watching(store, kinds=[pb.RECORD_KIND_WORKER], worker_id="w2") as of_one_worker,
        watching(store, kinds=[pb.RECORD_KIND_APP, pb.RECORD_KIND_MACHINE], app_id=APP) as of_an_app_and_its,
    ):
        assert [c.machine.id for c in of_worker.state] == [here.id]
        assert [c.machine.id for c in of_app.state] == [c.machine.id for c in of_machine.state] == [there.id]
        assert sorted(c.app.name for c in of_apps.state) == ["other", "web"]
        assert [c.worker.id for c in of_one_worker.state] == ["w2"]
        assert {c.WhichOneof("record") for c in of_an_app_and_its.state} == {"app", "machine"}
        for machine in (here, there):
            await store.verb(machine.id, pb.VERB_STOP)
        await store.worker("w2", NEED)
        await store.app("app-3", "third")
        last = (await store.workers(), await store.create())[1].revision
        for watcher in (of_worker, of_app, of_machine, of_apps, of_one_worker, of_an_app_and_its):
            await eventually(lambda watcher=watcher: watcher.revision >= last)  # type: ignore[misc]
        assert {c.machine.id for c in of_app.changes} == {c.machine.id for c in of_machine.changes} == {there.id}
        assert [c.machine.worker_id for c in of_worker.changes] == ["w1", "w1"]
        assert [c.app.name for c in of_apps.changes] == ["third"]
        assert [c.worker.capacity for c in of_one_worker.changes] == [NEED]
        assert {c.machine.id for c in of_an_app_and_its.changes} >= {here.id}


async def test_a_worker_sees_a_machine_that_leaves_it_until_it_has_let_go(store: Store) -> None:
    await store.worker("small", NEED)
    machine = await store.create(workers=["small"])
    async with watching(store, worker_id="small") as old, watching(store, worker_id="w1") as new:
        moved = await store.update(machine.id, need=Resources(memory_bytes=2**30), workers=["w1"])
        await eventually(lambda: len(old.changes) == len(new.changes) == 1)
        async with watching(store, worker_id="small") as again:
            assert [c.machine.leaving_worker_id for c in again.state] == ["small"]
        await store.verb(machine.id, pb.VERB_DESTROY, force=True)
        await store.report("w1", destroyed(moved))
        await eventually(lambda: len(old.changes) == len(new.changes) == 3)
        async with watching(store, worker_id="small") as again, watching(store, worker_id="w1") as gone:
            assert [c.machine.state for c in again.state] == [MACHINE_STATE_DESTROYED]
            assert gone.state == []
        await store.report("small", left(machine))
        await eventually(lambda: len(new.changes) == 4)


async def test_a_destroyed_machine_is_only_in_the_state_of_a_watch_that_names_it(store: Store) -> None:
    machine = await store.create(launch=False)
    await store.verb(machine.id, pb.VERB_DESTROY)
    await store.report("w1", destroyed(machine))
    async with watching(store) as everything, watching(store, machine_id=machine.id) as named:
        assert {c.WhichOneof("record") for c in everything.state} == {"app", "plan", "worker"}
        assert [c.machine.state for c in named.state] == [MACHINE_STATE_DESTROYED]


async def test_a_quiet_watch_is_told_how_far_it_has_seen(store: Store) -> None:
    async with watching(store, kinds=[pb.RECORD_KIND_APP]) as watcher:
        machine = await store.create()
        await eventually(lambda: watcher.revision >= machine.revision)
        assert watcher.changes == []
        told = len(watcher.responses)
        await eventually(lambda: len(watcher.responses) > told)
        assert not watcher.responses[-1].changes


async def test_a_watch_that_resumes_with_nothing_new_is_told_so_at_once(store: Store, dsn: str) -> None:
    revision = await newest(dsn)
    async with watching(store, from_revision=revision) as watcher:
        assert watcher.responses[0] == pb.WatchResponse(revision=revision, newest_revision=revision)


async def test_a_revision_that_has_not_happened_is_of_another_database(store: Store, dsn: str) -> None:
    async with watching(store, from_revision=await newest(dsn) + 1) as watcher:
        assert isinstance(watcher.error, RevisionTooOld)
    async with watching(store, from_revision=-1) as watcher:
        assert isinstance(watcher.error, InvalidConfig)


async def test_a_revision_of_another_instance_is_known_before_its_notification_came(dsn: str) -> None:
    async with running_store(dsn, seed=1, tick=30) as one, running_store(dsn, seed=2, tick=30) as two:
        await one.worker()
        await one.app()
        for _ in range(20):
            machine = await one.create()
            async with watching(two, from_revision=machine.revision) as watcher:
                assert watcher.error is None
                assert watcher.changes == []


async def test_a_log_that_misses_a_notification_finds_the_same(store: Store, dsn: str) -> None:
    async with watching(store) as watcher, connection_to(dsn) as connection:
        await connection.execute("UPDATE counter SET revision = revision + 1")
        await connection.execute(
            "INSERT INTO log (revision, kind, id, record)"
            " SELECT counter.revision, 3, apps.id, to_jsonb(apps) FROM apps, counter"
        )
        await eventually(lambda: [c.app.id for c in watcher.changes] == [APP])


async def test_a_watch_that_is_not_read_is_cut_and_can_go_on(store: Store, dsn: str) -> None:
    database = Database(lambda: dsn, clock=SystemClock(), random=Random(1))
    await database.open()
    log = Log(database, clock=SystemClock(), tick=0.05, most_waiting=5)
    caught_up = asyncio.Event()
    task = asyncio.create_task(log.run(caught_up.set))
    await caught_up.wait()
    slow = log.watch(pb.WatchRequest(from_revision=await newest(dsn)))
    first = await anext(slow)
    for _ in range(8):
        await store.create()
    last = await newest(dsn)
    await eventually(lambda: log.position == last)
    with pytest.raises(DependencyDown, match="too slowly"):
        await anext(slow)
    again = log.watch(pb.WatchRequest(from_revision=first.revision))
    response = await anext(again)
    assert [c.revision for c in response.changes] == list(range(first.revision + 1, last + 1))
    await again.aclose()
    await cancel(task)
    database.close()


@pytest.mark.usefixtures("store")
async def test_writes_that_follow_one_another_reach_a_watch_in_one_message_after_their_answers(dsn: str) -> None:
    database = Database(lambda: dsn, clock=SystemClock(), random=Random(1))
    await database.open()
    clock = FakeClock()
    log = Log(database, clock=clock, tick=60, gather=0.5)
    caught_up = asyncio.Event()
    task = asyncio.create_task(log.run(caught_up.set))
    await caught_up.wait()
    watch = log.watch(pb.WatchRequest(from_revision=await newest(dsn)))
    start = (await anext(watch)).revision

    def write(revision: int) -> None:
        log.heard([pb.Change(revision=revision, machine=pb.MachineRecord(id=f"m{revision}"))], [])

    write(start + 1)
    write(start + 2)
    assert log.position == start
    await eventually(lambda: clock.sleepers == 2)
    await clock.advance(0.01)
    assert [change.revision for change in (await anext(watch)).changes] == [start + 1, start + 2]
    write(start + 3)
    await eventually(lambda: clock.sleepers == 2)
    await clock.advance(0.4)
    assert log.position == start + 2
    write(start + 4)
    await clock.advance(0.2)
    assert [change.revision for change in (await anext(watch)).changes] == [start + 3, start + 4]
    await watch.aclose()
    await cancel(task)
    database.close()


async def test_a_watch_outlives_the_loss_of_the_log_s_connection(store: Store, dsn: str) -> None:
    async with watching(store) as watcher, connection_to(dsn) as connection:
        for seed in range(3):
            await connection.fetch(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE application_name = 'skerry-machine-store/log' AND datname = current_database()"
            )
            async with running_store(dsn, seed=100 + seed) as other:
                machine = await other.create()
            await eventually(lambda machine=machine: watcher.revision >= machine.revision)  # type: ignore[misc]
        assert watcher.error is None
        revisions = [change.revision for change in watcher.changes]
        assert revisions == list(range(revisions[0], revisions[0] + 3))


async def test_a_database_that_goes_back_in_time_ends_watches(store: Store, dsn: str) -> None:
    await store.create()
    async with watching(store) as watcher, connection_to(dsn) as connection:
        await connection.execute("DELETE FROM log WHERE revision > 1")
        await connection.execute("UPDATE counter SET revision = 1")
        await eventually(lambda: isinstance(watcher.error, RevisionTooOld))


async def test_a_watch_from_before_the_log_begins_is_refused_and_one_from_there_is_not(store: Store, dsn: str) -> None:
    machine = await store.create()
    await store.report("w1", started(machine), exited(machine))
    lead = await store.lead()
    term = pb.DutyTerm(duty="reconcile", term=lead.term)
    purged = await store.stub.PurgeExpired(pb.PurgeExpiredRequest(term=term))
    last = await newest(dsn)
    assert purged.log_entries == last
    after = await store.create()
    async with watching(store, from_revision=last - 1) as too_old, watching(store, from_revision=last) as just_right:
        assert isinstance(too_old.error, RevisionTooOld)
        await eventually(lambda: [c.revision for c in just_right.changes] == [after.revision])


async def test_records_that_only_newer_instances_know_are_passed_over(dsn: str, store: Store) -> None:
    revision = await newest(dsn)
    async with watching(store, revision) as live:
        async with connection_to(dsn) as connection, connection.transaction():
            head = await connection.fetchval("SELECT next_revision()")
            await connection.execute("INSERT INTO log (revision, kind, id, record) VALUES ($1, 99, 'new', '{}')", head)
        machine = await store.create()
        await eventually(lambda: live.states(machine.id))
        async with watching(store, revision) as later:
            await eventually(lambda: later.revision >= live.revision)
        assert [change.revision for change in later.changes] == [change.revision for change in live.changes]
        assert head not in [change.revision for change in live.changes]
        assert live.error is None
        assert later.error is None
