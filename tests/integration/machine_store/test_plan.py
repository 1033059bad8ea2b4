"""The plan and what it rests on: epochs, commits under them, evidence, converters and conversions."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import AsyncIterator
from functools import partial
from hashlib import sha256
from random import Random

import pytest
from google.protobuf.duration_pb2 import Duration
from skerry.handover.v1.plan_pb2 import (
    PART_MODE_CENTRAL,
    PART_MODE_LOCAL,
    PART_MODE_LOCAL_CHECKED,
    PART_MODE_SHADOW,
    Difference,
    PartEvidence,
    PartPlan,
    Plan,
)
from skerry.store.v1 import plan_store_pb2 as plans
from skerry.store.v1 import store_pb2 as pb
from skerry.store.v1.catalog_store_pb2 import GetCatalogStateRequest

from services.machine_store.conversions import Conversions
from services.machine_store.database import Database
from services.machine_store.plan import MOST_DIFFERENCES, PARTS
from services.machine_store.queries import load
from services.machine_store.service import MachineStoreService
from services.runtime.clock import SystemClock
from services.runtime.errors import Conflict, InvalidConfig, PlanMoved
from services.runtime.tasks import cancel
from tests.integration.machine_store.handover_stores import Sides
from tests.integration.machine_store.stores import Store, connection_to, destroyed
from tests.support import eventually


@pytest.fixture
def sides(store: Store) -> Sides:
    return Sides(store)


async def present(sides: Sides) -> Plan:
    return (await sides.plan.GetPlan(plans.GetPlanRequest())).plan


async def change(sides: Sides, *entries: PartPlan, expected: int | None = None, why: str = "it is time") -> Plan:
    epoch = (await present(sides)).epoch if expected is None else expected
    request = plans.ChangePlanRequest(
        expected_epoch=epoch, parts=entries, who="ada", why=why, evidence_json='{"compared": 7}'
    )
    return (await sides.plan.ChangePlan(request)).plan


def entry(part: str = "guest", mode: int = PART_MODE_SHADOW, version: int = 1, **more: object) -> PartPlan:
    more.setdefault("central_versions", [1])
    return PartPlan(part=part, mode=mode, local_version=version, **more)  # type: ignore[arg-type]


async def record(sides: Sides, since: int, inputs: int, *apps: str, part: str = "guest") -> PartEvidence:
    hashes = [sha256(str(number).encode()).digest() for number in range(inputs)]
    differences = [Difference(field="cpus", local_value=str(n), app_name=app, id=99) for n, app in enumerate(apps)]
    comparisons = plans.Comparisons(part=part, since_epoch=since, input_hashes=hashes, differences=differences)
    answer = await sides.plan.RecordComparisons(plans.RecordComparisonsRequest(comparisons=[comparisons]))
    (evidence,) = answer.evidence
    return evidence


def counts(evidence: PartEvidence) -> tuple[int, int, int, int]:
    return evidence.compared, evidence.distinct_inputs, evidence.different, evidence.different_apps


async def test_a_new_database_converts_every_part_itself(sides: Sides) -> None:
    plan = await present(sides)
    assert plan.epoch == 1
    assert [part.part for part in plan.parts] == list(PARTS)
    assert {(p.mode, p.local_version, tuple(p.central_versions), p.since_epoch) for p in plan.parts} == {
        (PART_MODE_LOCAL, 1, (1,), 1)
    }


async def _started(dsn: str, initial: str) -> AsyncIterator[Store]:
    clock = SystemClock()
    service = MachineStoreService(
        lambda: dsn,
        cell="001",
        region="syd",
        clock=clock,
        random=Random(1),
        initial_plan="central" if initial == "central" else "local",
    )
    ready = asyncio.Event()
    task = asyncio.create_task(service.run(ready.set))
    try:
        await eventually(ready.is_set, seconds=30)
        yield Store(service, None, 1, None)  # type: ignore[arg-type]
    finally:
        await cancel(task)


async def test_a_database_that_begins_with_the_centre_keeps_its_plan_whatever_a_later_start_says(dsn: str) -> None:
    async for store in _started(dsn, "central"):
        first = await present(Sides(store))
    assert {(p.mode, p.local_version, tuple(p.central_versions)) for p in first.parts} == {(PART_MODE_CENTRAL, 1, (1,))}
    async for store in _started(dsn, "local"):
        assert await present(Sides(store)) == first


async def test_a_change_steps_the_epoch_and_is_told_to_watchers_and_to_the_history(sides: Sides, store: Store) -> None:
    before = await present(sides)
    changed = await change(sides, entry("guest"), entry("env", PART_MODE_LOCAL_CHECKED), why="a try")
    assert changed == await present(sides)
    assert changed.epoch == 2
    by_part = {part.part: part for part in changed.parts}
    assert (by_part["guest"].mode, by_part["guest"].since_epoch) == (PART_MODE_SHADOW, 2)
    assert by_part["image"] == before.parts[0]
    history = (await sides.plan.ListPlanChanges(plans.ListPlanChangesRequest(limit=10))).changes
    assert [(c.epoch, c.who, c.why, c.after.part) for c in history] == [
        (2, "ada", "a try", "env"),
        (2, "ada", "a try", "guest"),
    ]
    assert (history[1].before, history[1].after) == (before.parts[1], by_part["guest"])
    assert history[0].evidence_json == '{"compared": 7}'
    request = pb.WatchRequest(filter=pb.WatchFilter(kinds=[pb.RECORD_KIND_PLAN]), from_revision=0)
    seen: list[Plan] = []
    async for response in store.stub.Watch(request, timeout=20):
        seen += [watched.plan for watched in response.changes]
        if len(seen) == 2:
            break
    assert seen == [before, changed]


async def test_of_two_changes_on_one_epoch_one_is_refused(sides: Sides) -> None:
    tried = await asyncio.gather(
        change(sides, entry("guest"), expected=1), change(sides, entry("env"), expected=1), return_exceptions=True
    )
    (refused,) = [outcome for outcome in tried if isinstance(outcome, Conflict)]
    assert refused.metadata["epoch"] == "2"
    assert (await present(sides)).epoch == 2


async def test_a_seal_changes_the_epoch_but_not_since_when_the_part_is_compared(sides: Sides) -> None:
    await change(sides, entry("guest", PART_MODE_LOCAL, 2))
    await record(sides, 2, 3)
    sealed = await change(sides, entry("guest", PART_MODE_LOCAL, 2, sealed_by=["v9"]))
    guest = sealed.parts[1]
    assert (sealed.epoch, guest.since_epoch, list(guest.sealed_by)) == (3, 2, ["v9"])
    assert counts(await record(sides, 2, 3)) == (6, 3, 0, 0)


async def test_a_change_to_what_is_so_already_changes_nothing(sides: Sides) -> None:
    plan = await present(sides)
    assert await change(sides, plan.parts[0]) == plan
    assert not (await sides.plan.ListPlanChanges(plans.ListPlanChangesRequest(limit=10))).changes


@pytest.mark.parametrize(
    "entries", [[entry("colour")], [entry("guest"), entry("guest")], [PartPlan(part="guest", local_version=1)]]
)
async def test_a_change_that_makes_no_plan_is_refused(sides: Sides, entries: list[PartPlan]) -> None:
    with pytest.raises(InvalidConfig, match=r"parts\[\d\]"):
        await change(sides, *entries)
    assert (await present(sides)).epoch == 1


async def test_a_create_under_a_plan_that_moved_is_refused_with_the_present_epoch(sides: Sides, store: Store) -> None:
    request = store.request(key="k")
    request.plan_epoch = 1
    await change(sides, entry())
    with pytest.raises(PlanMoved) as moved:
        await store.stub.CreateMachine(request)
    assert moved.value.metadata["epoch"] == "2"
    assert await store.list() == []
    request.plan_epoch = 2
    made = await store.stub.CreateMachine(request)
    await change(sides, entry(mode=PART_MODE_LOCAL))
    again = await store.stub.CreateMachine(request)
    assert (again.repeated_request, again.machine.id) == (True, made.machine.id)


async def test_an_update_under_a_plan_that_moved_is_refused_with_the_present_epoch(sides: Sides, store: Store) -> None:
    machine = await store.create()
    request = pb.UpdateMachineRequest(machine_id=machine.id, instance_id="v2", source="user", plan_epoch=1)
    await change(sides, entry())
    with pytest.raises(PlanMoved) as moved:
        await store.stub.UpdateMachine(request)
    assert moved.value.metadata["epoch"] == "2"
    assert (await store.get(machine.id)).machine.instance_id == machine.instance_id
    request.plan_epoch = 2
    assert (await store.stub.UpdateMachine(request)).machine.instance_id == "v2"


async def test_writes_under_several_epochs_that_share_commits_each_get_their_own_answer(
    sides: Sides, store: Store
) -> None:
    machines = [await store.create() for _ in range(8)]
    requests = [store.request() for _ in range(24)]
    for number, request in enumerate(requests):
        request.plan_epoch = (0, 1, 2)[number % 3]
    updates = [
        pb.UpdateMachineRequest(machine_id=m.id, instance_id=f"v{n}", source="user", plan_epoch=1 + n % 2)
        for n, m in enumerate(machines)
    ]
    await change(sides, entry())
    created, updated = await asyncio.gather(
        asyncio.gather(*(store.stub.CreateMachine(r) for r in requests), return_exceptions=True),
        asyncio.gather(*(store.stub.UpdateMachine(r) for r in updates), return_exceptions=True),
    )
    for request, outcome in zip(requests, created, strict=True):
        if request.plan_epoch == 1:
            assert isinstance(outcome, PlanMoved)
        else:
            assert isinstance(outcome, pb.CreateMachineResponse)
            assert outcome.machine.id == request.machine_id
    for update, changed in zip(updates, updated, strict=True):
        if update.plan_epoch == 1:
            assert isinstance(changed, PlanMoved)
        else:
            assert isinstance(changed, pb.UpdateMachineResponse)
            assert changed.machine.instance_id == update.instance_id


async def test_no_write_under_an_epoch_comes_after_the_plan_that_ended_it(sides: Sides, store: Store, dsn: str) -> None:
    async def creating(epoch: int) -> None:
        while True:
            request = store.request()
            request.plan_epoch = epoch
            try:
                await store.stub.CreateMachine(request)
            except PlanMoved:
                return

    for epoch in range(1, 6):
        writers = [asyncio.create_task(creating(epoch)) for _ in range(4)]
        seen = len(await store.list())
        await eventually(partial(_more_than, store, seen))
        mode = PART_MODE_SHADOW if epoch % 2 else PART_MODE_CENTRAL
        await change(sides, entry(mode=mode))
        async with connection_to(dsn) as connection:
            at_change = await connection.fetchval("SELECT max(revision) FROM log WHERE kind = 4")
        await asyncio.gather(*writers)
        async with connection_to(dsn) as connection:
            assert await connection.fetchval("SELECT count(*) FROM log WHERE revision > $1", at_change) == 0


async def _more_than(store: Store, number: int) -> bool:
    return len(await store.list()) > number


async def test_comparisons_count_inputs_and_apps_once(sides: Sides) -> None:
    await change(sides, entry())
    assert counts(await record(sides, 2, 5, "web", "web")) == (5, 5, 2, 1)
    assert counts(await record(sides, 2, 8, "api", "web")) == (13, 8, 4, 2)
    evidence = {e.part: e for e in (await sides.plan.ListEvidence(plans.ListEvidenceRequest())).evidence}
    assert list(evidence) == list(PARTS)
    assert counts(evidence["guest"]) == (13, 8, 4, 2)
    assert counts(evidence["env"]) == (0, 0, 0, 0)


async def test_comparing_begins_anew_when_the_mode_or_a_version_changes(sides: Sides) -> None:
    await change(sides, entry())
    await record(sides, 2, 5, "web")
    await change(sides, entry(central_versions=[1, 2]))
    (guest,) = [e for e in (await sides.plan.ListEvidence(plans.ListEvidenceRequest())).evidence if e.part == "guest"]
    assert (counts(guest), guest.since_epoch) == ((0, 0, 0, 0), 3)
    assert counts(await record(sides, 2, 4, "late")) == (0, 0, 0, 0)
    assert counts(await record(sides, 4, 4, "early")) == (0, 0, 0, 0)
    assert counts(await record(sides, 3, 4, "web")) == (4, 4, 1, 1)
    assert counts(await record(sides, 2, 4, "late")) == (4, 4, 1, 1)


async def test_the_newest_differences_are_kept_up_to_a_number(sides: Sides) -> None:
    await change(sides, entry(), entry("env"))
    await record(sides, 2, 0, "other", part="env")
    for _ in range(5):
        await record(sides, 2, 0, *[f"app-{n}" for n in range(50)])
    request = plans.ListDifferencesRequest(part="guest", limit=1000)
    kept = (await sides.plan.ListDifferences(request)).differences
    assert len(kept) == MOST_DIFFERENCES
    assert [d.id for d in kept] == sorted((d.id for d in kept), reverse=True)
    assert (kept[0].part, kept[0].app_name, kept[0].field) == ("guest", "app-49", "cpus")
    assert kept[0].HasField("at")
    everything = (await sides.plan.ListDifferences(plans.ListDifferencesRequest(limit=1000))).differences
    assert len(everything) == MOST_DIFFERENCES + 1


async def test_a_converter_is_listed_while_its_lease_holds(sides: Sides) -> None:
    held = plans.RegisterConverterRequest(
        name="b", serves=["guest@1", "guest@2"], applied_epoch=1, lease=Duration(seconds=60)
    )
    await sides.plan.RegisterConverter(held)
    await sides.plan.RegisterConverter(plans.RegisterConverterRequest(name="a", lease=Duration(nanos=1000)))
    listed = (await sides.plan.ListConverters(plans.ListConvertersRequest())).converters
    assert list(listed) == [held]
    held.applied_epoch = 2
    await sides.plan.RegisterConverter(held)
    assert (await sides.plan.ListConverters(plans.ListConvertersRequest())).converters[0].applied_epoch == 2
    held.lease.Clear()
    await sides.plan.RegisterConverter(held)
    assert not (await sides.plan.ListConverters(plans.ListConvertersRequest())).converters


def conversion(number: int, *, version: int = 1, image: str = "") -> plans.CentralConversion:
    made = plans.CentralConversion(part="image", input_hash=number.to_bytes(32, "big"), version=version)
    if image:
        made.spec.image.repository = image
    return made


async def test_a_kept_conversion_is_found_by_part_input_and_version(sides: Sides) -> None:
    kept = [conversion(1, image="a"), conversion(2, image="b"), conversion(2, version=2, image="c")]
    await sides.plan.KeepConversions(plans.KeepConversionsRequest(conversions=kept))
    await sides.plan.KeepConversions(plans.KeepConversionsRequest(conversions=kept))
    wanted = [conversion(2), conversion(1, version=2), conversion(3), conversion(2)]
    found = (await sides.plan.LookupConversions(plans.LookupConversionsRequest(wanted=wanted))).found
    assert list(found) == [kept[1]]


async def test_of_too_many_conversions_those_go_that_were_not_used_for_longest(sides: Sides, dsn: str) -> None:
    assert not (await sides.plan.LookupConversions(plans.LookupConversionsRequest())).found
    clock = SystemClock()
    database = Database(lambda: dsn, clock=clock, random=Random(1))
    await database.open()
    try:
        conversions = Conversions(database, most_kept=100)
        await conversions.keep([conversion(number, image="x") for number in range(100)])
        async with connection_to(dsn) as connection:
            await connection.execute("UPDATE conversions SET used_at = used_at - interval '1 hour'")
        used = [conversion(number) for number in range(50)]
        assert len(await conversions.lookup(used)) == 50
        await conversions.keep([conversion(number, image="x") for number in range(100, 140)])
        left = await conversions.lookup([conversion(number) for number in range(140)])
        numbers = {int.from_bytes(found.input_hash, "big") for found in left}
        assert len(numbers) == 95
        assert numbers >= {*range(50), *range(100, 140)}
        async with connection_to(dsn) as connection:
            assert await connection.fetchval("SELECT number FROM conversions_count") == 95
    finally:
        database.close()


async def test_configurations_come_by_id_in_pieces(sides: Sides, store: Store, dsn: str) -> None:
    first = await store.create()
    leaving, gone = await store.create(), await store.create(launch=False)
    for machine in (leaving, gone):
        await store.verb(machine.id, pb.VERB_DESTROY, force=True)
    await store.report("w1", destroyed(gone))
    async with connection_to(dsn) as connection:
        await connection.execute(
            "INSERT INTO machines SELECT copy.* FROM machines m, generate_series(1, 3000) n, jsonb_populate_record("
            " m, jsonb_build_object('id', 'z' || lpad(n::text, 13, '0'), 'name', n)) copy WHERE m.id = $1",
            first.id,
        )
        await connection.execute(
            "INSERT INTO versions SELECT 'z' || lpad(n::text, 13, '0'), instance_id, created_at, config, spec, parts"
            " FROM versions, generate_series(1, 3000) n WHERE machine_id = $1",
            first.id,
        )
        await connection.execute("ANALYZE machines, versions")
    pieces = [p async for p in sides.plan.ListConfigurations(plans.ListConfigurationsRequest(), timeout=60)]
    listed = [c for piece in pieces for c in piece.configurations]
    assert [piece.total for piece in pieces] == [len(listed), *[0] * (len(pieces) - 1)]
    assert len(listed) == 3002
    assert [c.machine_id for c in listed] == sorted(c.machine_id for c in listed)
    assert [len(piece.configurations) for piece in pieces[:-1]] == [500] * (len(listed) // 500)
    (whole,) = [c for c in listed if c.machine_id == first.id]
    assert (whole.config.image, whole.spec.image.repository) == ("nginx", "library/nginx")
    assert [(p.part, p.version) for p in whole.parts] == [("image", 1)]
    assert (whole.app_name, whole.region) == ("web", "syd")
    rest = plans.ListConfigurationsRequest(after_machine_id=listed[-2].machine_id)
    (piece,) = [p async for p in sides.plan.ListConfigurations(rest, timeout=60)]
    assert ([c.machine_id for c in piece.configurations], piece.total) == ([listed[-1].machine_id], 1)


async def test_nothing_to_list_is_one_message_that_says_so(sides: Sides) -> None:
    (piece,) = [p async for p in sides.plan.ListConfigurations(plans.ListConfigurationsRequest(), timeout=60)]
    assert (list(piece.configurations), piece.total) == ([], 0)


async def test_a_database_of_the_version_before_is_brought_up_to_date_with_a_local_plan(dsn: str) -> None:
    before = importlib.import_module("services.machine_store.schema.versions.v0001_region")
    async with connection_to(dsn) as connection:
        for statement in (*before._TABLES, *load("functions").values()):
            await connection.execute(statement)
        await connection.execute("CREATE TABLE alembic_version (version_num varchar(32) PRIMARY KEY)")
        await connection.execute("INSERT INTO alembic_version VALUES ('0001')")
        await connection.execute("SELECT create_app('app-0', 'old', 'personal', '', '', '001', now())")
    async for store in _started(dsn, "central"):
        sides = Sides(store)
        plan = await present(sides)
        assert (plan.epoch, {part.mode for part in plan.parts}) == (1, {PART_MODE_LOCAL})
        assert (await sides.catalog.GetCatalogState(GetCatalogStateRequest())).apps == 1
