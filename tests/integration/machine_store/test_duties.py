"""Who leads, and what only a leader does: status of workers, mending of reservations, forgetting."""

from __future__ import annotations

import asyncio

import pytest
from google.protobuf.duration_pb2 import Duration
from skerry.store.v1 import store_pb2 as pb
from skerry.types.v1.machine_pb2 import (
    HOST_STATUS_OK,
    HOST_STATUS_UNREACHABLE,
    HOST_STATUS_UNSPECIFIED,
    MACHINE_STATE_STARTED,
)
from skerry.types.v1.resources_pb2 import Resources

from services.runtime.errors import Conflict, InvalidConfig, NameTaken, NotFound
from tests.integration.machine_store.stores import (
    APP,
    NEED,
    Store,
    connection_to,
    destroyed,
    running_store,
    started,
)
from tests.support import eventually

DAY = Duration(seconds=86_400)


async def term(store: Store) -> pb.DutyTerm:
    return pb.DutyTerm(duty="reconcile", term=(await store.lead()).term)


async def test_one_leads_until_its_lease_has_run_out(store: Store) -> None:
    first = await store.lead(holder="h1", lease=0.3)
    assert (first.acquired, first.holder, first.term) == (True, "h1", 1)
    refused = await store.lead(holder="h2")
    assert (refused.acquired, refused.holder, refused.term) == (False, "h1", 1)
    assert (await store.lead(holder="h1", lease=0.3)).term == 1

    async def taken() -> pb.AcquireDutyResponse | None:
        answer = await store.lead(holder="h2")
        return answer if answer.acquired else None

    second = await eventually(taken)
    assert second is not None
    assert (second.holder, second.term) == ("h2", 2)


async def test_duties_are_led_apart(store: Store) -> None:
    assert (await store.lead("reconcile", "h1")).acquired
    assert (await store.lead("schedules", "h2")).acquired


async def test_of_many_that_ask_at_once_one_leads(dsn: str) -> None:
    async with running_store(dsn, seed=1) as one, running_store(dsn, seed=2) as two:
        answers = await asyncio.gather(*((one, two)[n % 2].lead(holder=f"h{n}") for n in range(20)))
        assert sum(answer.acquired for answer in answers) == 1
        assert {answer.term for answer in answers} <= {0, 1}


async def test_a_leader_whose_term_is_over_can_do_nothing(store: Store) -> None:
    old = await term(store)
    assert (await store.lead(holder="h1", lease=0.0)).acquired
    assert (await store.lead(holder="h2")).term == 2
    with pytest.raises(Conflict, match="another leader"):
        await store.stub.SetWorkerStatus(
            pb.SetWorkerStatusRequest(term=old, worker_id="w1", status=HOST_STATUS_UNREACHABLE)
        )
    with pytest.raises(Conflict, match="another leader"):
        await store.stub.RepairReservations(pb.RepairReservationsRequest(term=old))
    with pytest.raises(Conflict, match="another leader"):
        await store.stub.PurgeExpired(pb.PurgeExpiredRequest(term=old))
    with pytest.raises(Conflict):
        await store.stub.PurgeExpired(pb.PurgeExpiredRequest())
    assert (await store.workers())["w1"].status == HOST_STATUS_OK


async def test_the_status_of_a_worker_is_that_of_its_machines(store: Store) -> None:
    await store.worker("w2")
    here = [await store.create(workers=["w1"]) for _ in range(3)]
    there = await store.create(workers=["w2"])
    gone = await store.create(workers=["w1"], launch=False)
    await store.verb(gone.id, pb.VERB_DESTROY)
    await store.report("w1", destroyed(gone))
    lead = await term(store)
    request = pb.SetWorkerStatusRequest(term=lead, worker_id="w1", status=HOST_STATUS_UNREACHABLE)
    before = max(m.revision for m in await store.list(destroyed=True))
    assert (await store.stub.SetWorkerStatus(request)).worker.status == HOST_STATUS_UNREACHABLE
    for machine in here:
        assert (await store.get(machine.id)).machine.host_status == HOST_STATUS_UNREACHABLE
    assert (await store.get(there.id)).machine.host_status == HOST_STATUS_OK

    changes: list[pb.Change] = []
    async for response in store.stub.Watch(pb.WatchRequest(from_revision=before), timeout=10):
        changes += response.changes
        if response.revision >= response.newest_revision:
            break
    assert [change.revision for change in changes] == list(range(before + 1, before + 5))
    assert changes[0].worker.status == HOST_STATUS_UNREACHABLE
    assert [change.machine.id for change in changes[1:]] == [machine.id for machine in here]
    assert {change.machine.host_status for change in changes[1:]} == {HOST_STATUS_UNREACHABLE}

    await store.stub.SetWorkerStatus(request)
    assert (await store.create(workers=["w1"])).host_status == HOST_STATUS_UNREACHABLE
    await store.report("w1", started(here[0]))
    assert await store.state(here[0].id) == MACHINE_STATE_STARTED


async def test_a_status_is_said_of_a_worker_that_there_is(store: Store) -> None:
    lead = await term(store)
    with pytest.raises(NotFound):
        await store.stub.SetWorkerStatus(pb.SetWorkerStatusRequest(term=lead, worker_id="w9", status=HOST_STATUS_OK))
    with pytest.raises(InvalidConfig):
        await store.stub.SetWorkerStatus(
            pb.SetWorkerStatusRequest(term=lead, worker_id="w1", status=HOST_STATUS_UNSPECIFIED)
        )


async def test_reservations_that_drifted_are_mended(store: Store, dsn: str) -> None:
    await store.worker("small", NEED)
    await store.worker("w2")
    moving = await store.create(workers=["small"])
    await store.report("small", started(moving))
    await store.update(moving.id, need=Resources(memory_bytes=2**30), workers=["w2"])
    await store.create(workers=["w1"])
    before = {worker: (await store.workers())[worker].reserved for worker in ("w1", "w2", "small")}
    lead = await term(store)
    request = pb.RepairReservationsRequest(term=lead)
    assert list((await store.stub.RepairReservations(request)).worker_ids) == []
    async with connection_to(dsn) as connection:
        await connection.execute("UPDATE workers SET reserved_memory_bytes = 0 WHERE id IN ('w1', 'small')")
        await connection.execute("UPDATE workers SET reserved_disk_bytes = 1 WHERE id = 'w2'")
    assert sorted((await store.stub.RepairReservations(request)).worker_ids) == ["small", "w1", "w2"]
    assert {worker: (await store.workers())[worker].reserved for worker in before} == before
    assert list((await store.stub.RepairReservations(request)).worker_ids) == []


async def test_a_drifted_reservation_keeps_no_machine_from_going(store: Store, dsn: str) -> None:
    machine = await store.create(launch=False)
    async with connection_to(dsn) as connection:
        await connection.execute("UPDATE workers SET reserved_memory_bytes = 1")
    await store.verb(machine.id, pb.VERB_DESTROY)
    await store.report("w1", destroyed(machine))
    assert await store.list() == []
    assert await store.reserved("w1") == Resources()


async def test_what_is_old_is_forgotten_and_the_rest_is_not(store: Store, dsn: str) -> None:
    gone = await store.create("gone", launch=False, key="old")
    await store.verb(gone.id, pb.VERB_DESTROY)
    await store.report("w1", destroyed(gone))
    kept = await store.create("kept", key="new")
    lead = await term(store)
    nothing = await store.stub.PurgeExpired(
        pb.PurgeExpiredRequest(term=lead, log_age=DAY, key_age=DAY, destroyed_age=DAY)
    )
    assert nothing == pb.PurgeExpiredResponse()

    async with connection_to(dsn) as connection:
        await connection.execute(
            "UPDATE log SET at = at - interval '2 days' WHERE revision < (SELECT max(revision) FROM log)"
        )
        await connection.execute(
            "UPDATE idempotency_keys SET created_at = created_at - interval '2 days' WHERE key = 'old'"
        )
        await connection.execute("UPDATE machines SET updated_at = updated_at - interval '2 days'")
        entries = await connection.fetchval("SELECT count(*) FROM log")
        purged = await store.stub.PurgeExpired(
            pb.PurgeExpiredRequest(term=lead, log_age=DAY, key_age=DAY, destroyed_age=DAY)
        )
        assert purged == pb.PurgeExpiredResponse(log_entries=entries - 1, keys=1, machines=1)
        for table in ("machines", "versions", "machine_events"):
            column = "id" if table == "machines" else "machine_id"
            assert set(await connection.fetch(f"SELECT DISTINCT {column} FROM {table}")) == {(kept.id,)}
    with pytest.raises(NotFound):
        await store.get(gone.id)
    assert (await store.get(kept.id, events=1)).events[0].type == "launch"
    assert (await store.stub.CreateMachine(store.request("kept", key="new"))).machine.id == kept.id


async def test_a_destroyed_machine_stays_as_long_as_the_log_tells_of_it(store: Store) -> None:
    gone = await store.create(launch=False)
    await store.verb(gone.id, pb.VERB_DESTROY)
    await store.report("w1", destroyed(gone))
    lead = await term(store)
    first = await store.stub.PurgeExpired(pb.PurgeExpiredRequest(term=lead, log_age=DAY))
    assert first.machines == 0
    second = await store.stub.PurgeExpired(pb.PurgeExpiredRequest(term=lead))
    assert second.machines == 1


async def test_ages_and_leases_are_not_negative(store: Store) -> None:
    lead = await term(store)
    with pytest.raises(InvalidConfig, match="key_age"):
        await store.stub.PurgeExpired(pb.PurgeExpiredRequest(term=lead, key_age=Duration(seconds=-1)))
    with pytest.raises(InvalidConfig, match="holder"):
        await store.stub.AcquireDuty(pb.AcquireDutyRequest(duty="d"))


async def test_a_deleted_app_takes_its_machines_along(store: Store) -> None:
    machines = [await store.create(launch=n > 0) for n in range(4)]
    other = await store.app("app-2", "other")
    await store.create(app_id=other.id)
    answer = await store.stub.DeleteApp(pb.DeleteAppRequest(name="web", source="user"))
    assert answer.machines == 4
    with pytest.raises(NotFound):
        await store.create()
    with pytest.raises(NotFound):
        await store.stub.GetApp(pb.GetAppRequest(name="web"))
    for machine in machines:
        got = await store.get(machine.id, events=1)
        assert got.machine.desired == pb.DESIRED_STATE_DESTROYED
        assert [(e.type, e.status, e.source) for e in got.events] == [("destroy", "destroying", "user")]
    await store.report("w1", *(destroyed(machine) for machine in machines))
    assert await store.list(APP) == []
    assert (await store.app("app-3", "web")).id == "app-3"


async def test_creates_that_race_a_deletion_are_refused_or_destroyed(dsn: str) -> None:
    async with running_store(dsn, seed=1) as one, running_store(dsn, seed=2) as two:
        await one.worker()
        await one.app()
        creates = [asyncio.ensure_future((one, two)[n % 2].create()) for n in range(40)]
        await eventually(lambda: sum(create.done() for create in creates) >= 5, interval=0)
        await two.stub.DeleteApp(pb.DeleteAppRequest(name="web", source="user"))
        made = [o for o in await asyncio.gather(*creates, return_exceptions=True) if isinstance(o, pb.MachineRecord)]
        states = {m.id: m.desired for m in await one.list()}
        assert set(states) == {m.id for m in made}
        assert set(states.values()) == {pb.DESIRED_STATE_DESTROYED}


async def test_apps_are_found_by_name_with_their_machines(store: Store) -> None:
    await store.create()
    got = await store.stub.GetApp(pb.GetAppRequest(name="web"))
    assert (got.app.id, got.app.organization_slug, got.machine_count) == (APP, "personal", 1)
    await store.app("app-2", "a-first")
    listed = await store.stub.ListApps(pb.ListAppsRequest(organization_slug="personal"))
    assert [(app.app.name, app.machine_count) for app in listed.apps] == [("a-first", 0), ("web", 1)]
    assert not (await store.stub.ListApps(pb.ListAppsRequest(organization_slug="nobody"))).apps
    numbers = [app.app.internal_numeric_id for app in listed.apps]
    assert len(set(numbers)) == 2


async def test_an_app_s_name_is_taken_once(store: Store) -> None:
    with pytest.raises(NameTaken):
        await store.app("app-2", "web")
    assert (await store.app(APP, "web")).id == APP
    outcomes = await asyncio.gather(*(store.app(f"app-x{n}", "race") for n in range(10)), return_exceptions=True)
    assert sum(isinstance(outcome, pb.AppRecord) for outcome in outcomes) == 1
