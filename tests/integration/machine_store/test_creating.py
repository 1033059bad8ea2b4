"""Creating machines: each of a batch for itself, never beyond what a worker has, each key once."""

from __future__ import annotations

import asyncio

import asyncpg
import pytest
from google.protobuf.duration_pb2 import Duration
from skerry.store.v1 import store_pb2 as pb
from skerry.types.v1.machine_pb2 import MACHINE_STATE_CREATED, MACHINE_STATE_STARTING
from skerry.types.v1.resources_pb2 import Resources

from services.runtime.errors import (
    Conflict,
    IdempotencyConflict,
    InvalidConfig,
    NameTaken,
    NoCapacity,
    NotFound,
    SkerryError,
)
from tests.integration.machine_store.stores import (
    APP,
    NEED,
    Store,
    connection_to,
    destroyed,
    running_store,
)


async def test_a_launched_machine_is_starting_in_its_first_generation(store: Store) -> None:
    answer = await store.stub.CreateMachine(store.request("m", launch=True))
    machine = answer.machine
    assert (machine.state, machine.desired) == (MACHINE_STATE_STARTING, pb.DESIRED_STATE_STARTED)
    assert (machine.generation, machine.worker_id, machine.worker_number, machine.app_name) == (1, "w1", 1, "web")
    assert machine.reserved == NEED
    assert machine.revision > 0
    assert [(e.type, e.status, e.source) for e in answer.events] == [("launch", "starting", "user")]


async def test_a_machine_that_is_not_launched_was_never_asked_to_run(store: Store) -> None:
    machine = await store.create(launch=False)
    assert (machine.state, machine.desired, machine.generation) == (
        MACHINE_STATE_CREATED,
        pb.DESIRED_STATE_STOPPED,
        0,
    )
    assert not machine.HasField("generation_at")


async def test_what_was_created_is_read_back_whole(store: Store) -> None:
    request = store.request("m")
    made = (await store.stub.CreateMachine(request)).machine
    got = await store.get(made.id, events=5)
    assert got.machine.config == request.config
    assert got.machine.spec == request.conversion.spec
    assert list(got.machine.parts) == list(request.conversion.parts)
    assert dict(got.machine.metadata) == {"role": "test"}
    assert [e.type for e in got.events] == ["launch"]
    for field in ("config", "spec", "parts"):
        got.machine.ClearField(field)
    assert got.machine == made


async def test_failures_do_not_sink_their_neighbours(store: Store) -> None:
    await store.create("taken")
    requests = [store.request(f"good-{n}") for n in range(20)]
    bad: list[tuple[pb.CreateMachineRequest, type[SkerryError]]] = [
        (store.request("taken"), NameTaken),
        (store.request("m1", app_id="nowhere"), NotFound),
        (store.request("m2", need=Resources(gpus_a10=1)), NoCapacity),
        (store.request("m3", workers=["w1\0", "nobody"]), NoCapacity),
        (store.request("m4", workers=[]), NoCapacity),
    ]
    mixed = [*requests[:10], *(request for request, _ in bad), *requests[10:]]
    outcomes = await asyncio.gather(*(store.stub.CreateMachine(request) for request in mixed), return_exceptions=True)
    expected = [None] * 10 + [kind for _, kind in bad] + [None] * 10
    for outcome, kind in zip(outcomes, expected, strict=True):
        if kind is None:
            assert isinstance(outcome, pb.CreateMachineResponse)
        else:
            assert type(outcome) is kind
    assert {m.name for m in await store.list()} == {"taken", *(f"good-{n}" for n in range(20))}


async def test_what_the_database_itself_refuses_fails_alone(store: Store, dsn: str) -> None:
    async with connection_to(dsn) as connection:
        await connection.execute("ALTER TABLE machines ADD CHECK (name <> 'poison')")
    names = [*(f"m{n}" for n in range(8)), "poison", *(f"n{n}" for n in range(8))]
    outcomes = await asyncio.gather(*(store.create(name) for name in names), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes].count(pb.MachineRecord) == 16
    assert isinstance(outcomes[8], SkerryError)
    assert {m.name for m in await store.list()} == set(names) - {"poison"}


async def test_one_of_many_creates_of_one_name_wins(store: Store) -> None:
    outcomes = await asyncio.gather(*(store.create("same") for _ in range(30)), return_exceptions=True)
    assert sum(isinstance(outcome, pb.MachineRecord) for outcome in outcomes) == 1
    assert all(isinstance(outcome, pb.MachineRecord | NameTaken) for outcome in outcomes)
    assert len(await store.list()) == 1


async def test_a_name_is_free_again_once_its_machine_is_destroyed(store: Store) -> None:
    first = await store.create("again", launch=False)
    await store.verb(first.id, pb.VERB_DESTROY)
    with pytest.raises(NameTaken):
        await store.create("again")
    await store.report("w1", destroyed(first))
    assert (await store.create("again")).id != first.id


async def test_other_apps_may_use_the_same_name(store: Store) -> None:
    await store.app("app-2", "other")
    await store.create("same")
    assert (await store.create("same", app_id="app-2")).app_name == "other"


async def test_instances_that_create_at_once_never_reserve_more_than_there_is(dsn: str) -> None:
    room = Resources(shared_cpu_millicores=10_000, memory_bytes=40 * 2**28, disk_bytes=100 * 2**30)
    async with running_store(dsn, seed=1) as one, running_store(dsn, seed=2) as two:
        await one.app()
        for worker in ("w1", "w2", "w3"):
            await one.worker(worker, room)
        outcomes = await asyncio.gather(
            *(
                store.create(f"m-{number}", workers=one.random.sample(["w1", "w2", "w3"], k=3))
                for number in range(60)
                for store in [(one, two)[number % 2]]
            ),
            return_exceptions=True,
        )
        made = [outcome for outcome in outcomes if isinstance(outcome, pb.MachineRecord)]
        assert len(made) == 30
        assert all(isinstance(outcome, pb.MachineRecord | NoCapacity) for outcome in outcomes)
        for worker in ("w1", "w2", "w3"):
            assert (await two.reserved(worker)).shared_cpu_millicores == 10_000
            assert sum(m.worker_id == worker for m in await two.list()) == 10
        assert sorted(m.revision for m in made) == sorted({m.revision for m in made})


async def test_a_full_candidate_falls_to_the_next(store: Store) -> None:
    await store.worker("small", Resources(shared_cpu_millicores=1000, memory_bytes=2**28, disk_bytes=2**30))
    first = await store.create(workers=["small", "w1"])
    second = await store.create(workers=["small", "w1"])
    assert (first.worker_id, second.worker_id) == ("small", "w1")


async def test_nothing_new_is_placed_on_a_cordoned_worker(store: Store, dsn: str) -> None:
    async with connection_to(dsn) as connection:
        await connection.execute("UPDATE workers SET cordoned = true WHERE id = 'w1'")
    with pytest.raises(NoCapacity):
        await store.create()


@pytest.mark.usefixtures("store")
async def test_the_database_itself_refuses_more_than_there_is(dsn: str) -> None:
    async with connection_to(dsn) as connection:
        for name in ("memory_bytes", "gpus_a100_80gb"):
            with pytest.raises(asyncpg.CheckViolationError, match=f"{name}_fits"):
                await connection.execute(f"UPDATE workers SET reserved_{name} = capacity_{name} + 1")
            with pytest.raises(asyncpg.CheckViolationError, match=f"{name}_fits"):
                await connection.execute(f"UPDATE workers SET reserved_{name} = -1")


async def test_the_same_key_answers_the_same_machine_whole(store: Store) -> None:
    first = store.request("m", key="k")
    made = (await store.stub.CreateMachine(first)).machine
    again = await store.stub.CreateMachine(store.request("m", key="k"))
    assert again.repeated_request
    assert again.machine.id == made.id
    assert again.machine.config == first.config
    assert [e.type for e in again.events] == ["launch"]
    assert len(await store.list()) == 1
    assert (await store.reserved("w1")) == NEED


async def test_the_same_key_with_another_request_is_refused(store: Store) -> None:
    await store.create("m", key="k", fingerprint=b"one")
    with pytest.raises(IdempotencyConflict):
        await store.create("n", key="k", fingerprint=b"two")
    with pytest.raises(IdempotencyConflict):
        await store.stub.LookupIdempotencyKey(
            pb.LookupIdempotencyKeyRequest(app_id=APP, idempotency_key="k", request_fingerprint=b"two")
        )


async def test_a_key_is_looked_up_before_anything_else(store: Store) -> None:
    def lookup(key: str) -> pb.LookupIdempotencyKeyRequest:
        return pb.LookupIdempotencyKeyRequest(app_id=APP, idempotency_key=key, request_fingerprint=b"f")

    made = await store.create("m", key="k")
    found = await store.stub.LookupIdempotencyKey(lookup("k"))
    assert found.machine.id == made.id
    assert found.machine.config.image == "nginx"
    assert not (await store.stub.LookupIdempotencyKey(lookup("new"))).HasField("machine")


async def test_one_key_sent_many_times_at_once_makes_one_machine(dsn: str) -> None:
    async with running_store(dsn, seed=1) as one, running_store(dsn, seed=2) as two:
        await one.worker()
        await one.app()
        answers = await asyncio.gather(
            *(store.stub.CreateMachine(store.request("m", key="k")) for store in [one, two] * 10)
        )
        assert len({answer.machine.id for answer in answers}) == 1
        assert sum(not answer.repeated_request for answer in answers) == 1
        assert len(await one.list()) == 1


async def test_a_key_that_failed_can_be_used_again(store: Store) -> None:
    with pytest.raises(NoCapacity):
        await store.create("m", key="k", workers=[])
    assert (await store.create("m", key="k")).name == "m"


async def test_a_key_whose_machine_is_forgotten_is_as_good_as_new(store: Store) -> None:
    gone = await store.create("m", key="k", launch=False)
    await store.verb(gone.id, pb.VERB_DESTROY)
    await store.report("w1", destroyed(gone))
    term = pb.DutyTerm(duty="reconcile", term=(await store.lead()).term)
    day = Duration(seconds=86_400)
    assert (await store.stub.PurgeExpired(pb.PurgeExpiredRequest(term=term, key_age=day))).machines == 1
    lookup = pb.LookupIdempotencyKeyRequest(app_id=APP, idempotency_key="k", request_fingerprint=b"f")
    assert not (await store.stub.LookupIdempotencyKey(lookup)).HasField("machine")
    made = await store.create("m", key="k", fingerprint=b"other")
    lookup.request_fingerprint = b"other"
    assert (await store.stub.LookupIdempotencyKey(lookup)).machine.id == made.id


async def test_the_same_ids_sent_again_without_a_key_make_one_machine(store: Store) -> None:
    request = store.request("m")
    await store.stub.CreateMachine(request)
    assert (await store.stub.CreateMachine(request)).repeated_request
    other = store.request("n")
    other.machine_id = request.machine_id
    with pytest.raises(Conflict):
        await store.stub.CreateMachine(other)
    assert len(await store.list()) == 1


@pytest.mark.parametrize(
    ("field", "value"),
    [("name", "a\0b"), ("name", ""), ("name", "x" * 2000), ("idempotency_key", "a\0"), ("machine_id", "")],
)
async def test_text_that_cannot_be_kept_is_refused_by_its_field(store: Store, field: str, value: str) -> None:
    request = store.request("fine")
    setattr(request, field, value)
    with pytest.raises(InvalidConfig) as refused:
        await store.stub.CreateMachine(request)
    assert [violation.field for violation in refused.value.violations] == [field]


async def test_amounts_beyond_all_measure_are_refused(store: Store) -> None:
    for amount in (-1, 2**62):
        with pytest.raises(InvalidConfig, match=r"need\.memory_bytes"):
            await store.create(need=Resources(memory_bytes=amount))


async def test_a_caller_that_goes_away_leaves_the_batch_whole(store: Store) -> None:
    gone = [asyncio.ensure_future(store.create(f"gone-{n}")) for n in range(10)]
    kept = [asyncio.ensure_future(store.create(f"kept-{n}")) for n in range(10)]
    await asyncio.sleep(0)
    for task in gone[::2]:
        task.cancel()
    await asyncio.gather(*gone, return_exceptions=True)
    made = await asyncio.gather(*kept)
    names = {m.name for m in await store.list()}
    assert {m.name for m in made} <= names
    assert (await store.reserved("w1")).shared_cpu_millicores == 1000 * len(names)
