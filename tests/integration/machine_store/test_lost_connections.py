"""A database that goes away in the middle: nothing acknowledged is lost and nothing happens twice."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from random import Random

import asyncpg
import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory
from skerry.store.v1 import store_pb2 as pb
from skerry.store.v1 import store_pb2_grpc

from services.machine_store import schema
from services.machine_store.batch import Item
from services.machine_store.database import Database
from services.machine_store.service import MachineStoreService
from services.machine_store.steps import Outcome
from services.runtime.channels import local
from services.runtime.clock import SystemClock
from services.runtime.errors import DependencyDown, SkerryError
from services.runtime.postgres import OwnedPostgres
from services.runtime.registry import Registry
from services.runtime.tasks import cancel
from tests.integration.machine_store.stores import (
    MakeDatabase,
    Store,
    connection_to,
    running_store,
    started,
)
from tests.support import eventually


async def kill_connections(connection: asyncpg.Connection) -> int:
    """End every other connection to the database; how many there were."""
    return len(
        await connection.fetch(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> $1",
            connection.get_server_pid(),
        )
    )


async def create_until_certain(store: Store, name: str, **how: object) -> pb.CreateMachineResponse:
    """As clients do: the same request again, under the same key, until there is an answer."""
    request = store.request(name, key=name, **how)  # type: ignore[arg-type]
    while True:
        try:
            return await store.stub.CreateMachine(request)
        except DependencyDown:
            await asyncio.sleep(0.01)


async def audit(store: Store, acknowledged: list[pb.MachineRecord]) -> None:
    """Every acknowledged machine exists once, none other does, and reservations and the log add up."""
    machines = await store.list()
    assert sorted(m.id for m in machines) == sorted(m.id for m in acknowledged)
    assert len({m.name for m in machines}) == len(machines)
    assert (await store.reserved("w1")).shared_cpu_millicores == 1000 * len(machines)
    launches: list[str] = []
    revisions: list[int] = []
    async for response in store.stub.Watch(pb.WatchRequest(from_revision=0), timeout=20):
        for change in response.changes:
            revisions.append(change.revision)
            launches += [change.machine.id for event in change.events if event.type == "launch"]
        if response.revision >= response.newest_revision:
            break
    assert revisions == list(range(1, len(revisions) + 1))
    assert sorted(launches) == sorted(m.id for m in acknowledged)


async def test_a_read_whose_caller_hangs_up_at_any_moment_leaves_its_connection_as_it_was(dsn: str) -> None:
    database = Database(lambda: dsn, clock=SystemClock(), random=Random(1), pool_size=1)
    await database.open()
    for attempt in range(300):
        # A statement that the connection has not seen before is prepared first.
        read = asyncio.create_task(database.fetch(f"SELECT {attempt}"))
        for _ in range(attempt % 60):
            await asyncio.sleep(0)
        await cancel(read)
        async with database.reading() as connection:
            assert await connection.fetchval("SELECT 1") == 1
    database.close()


async def test_connections_that_are_cut_in_the_middle_of_batches_lose_and_double_nothing(dsn: str) -> None:
    async with running_store(dsn, seed=1) as one, running_store(dsn, seed=2) as two, connection_to(dsn) as connection:
        await one.worker()
        await one.app()
        creates = [
            asyncio.create_task(create_until_certain((one, two)[number % 2], f"m-{number}")) for number in range(1500)
        ]
        killed, random = 0, Random(5)
        while not all(create.done() for create in creates):
            killed += await kill_connections(connection)
            # Long enough for a connection to be made and a batch or two to be written.
            await asyncio.sleep(random.uniform(0.03, 0.08))
        answers = [create.result() for create in creates]
        assert killed > 10
        await eventually(lambda: one.list())
        await audit(two, [answer.machine for answer in answers])


async def test_a_batch_that_is_cut_while_it_waits_for_the_lock_is_written_once(store: Store, dsn: str) -> None:
    waiting = "SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%commit_batch%'"
    async with connection_to(dsn) as connection, connection_to(dsn) as onlooker:
        async with connection.transaction():
            await connection.execute("SELECT FROM counter FOR UPDATE")
            creates = [asyncio.create_task(store.create(f"m{n}")) for n in range(20)]
            pid = await eventually(lambda: onlooker.fetchval(waiting))
            await onlooker.execute("SELECT pg_terminate_backend($1)", pid)
        made = await asyncio.gather(*creates)
    await audit(store, made)


async def test_a_commit_whose_answer_was_lost_is_known_to_have_happened(store: Store) -> None:
    machine = await store.create()
    await store.report("w1", started(machine))
    writer = store.service._writer
    write, lost = writer._write, 0

    async def write_and_lose_every_other_answer(items: Sequence[Item]) -> list[list[Outcome] | Exception]:
        nonlocal lost
        answers = await write(items)
        if lost % 2 == 0 and lost < 6:
            lost += 1
            raise ConnectionResetError("the answer is lost")
        lost += 1
        return answers

    writer._write = write_and_lose_every_other_answer  # type: ignore[method-assign]
    assert (await store.verb(machine.id, pb.VERB_RESTART)).changed
    assert lost == 1
    lost = 2
    updated = await store.update(machine.id, image="redis")
    assert lost == 3
    lost = 4
    created = await store.create("once")
    assert lost == 6
    got = await store.get(machine.id, events=10)
    assert [e.type for e in got.events] == ["update", "restart", "start", "launch"]
    assert (got.machine.generation, got.machine.instance_id) == (3, updated.instance_id)
    assert [m.name for m in await store.list()].count("once") == 1
    assert (await store.get(created.id)).machine.config.image == "nginx"


async def test_observations_are_reported_once_through_cut_connections(store: Store, dsn: str) -> None:
    machine = await store.create()
    seen = [started(machine, restarts=n) for n in range(200)]
    for number, observation in enumerate(seen, 1):
        observation.sequence = number

    async def report() -> None:
        sent = 0
        while sent < len(seen):
            try:
                sent = await store.report_again("w1", *seen[: sent + 7])
            except DependencyDown:
                await asyncio.sleep(0.01)

    async with connection_to(dsn) as connection:
        reporting, random = asyncio.create_task(report()), Random(6)
        while not reporting.done():
            await kill_connections(connection)
            await asyncio.sleep(random.uniform(0.03, 0.08))
        await reporting
    events = (await store.get(machine.id, events=1000)).events
    assert [e.type for e in events].count("start") == 200


def kill_server(server: OwnedPostgres) -> None:
    """Kill a server that runs, with no chance to put anything in order."""
    pid = server.pid()
    assert pid is not None
    os.kill(pid, signal.SIGKILL)


@pytest.fixture
async def own_server() -> AsyncIterator[OwnedPostgres]:
    """A PostgreSQL that may be killed, and whose owner starts it again."""
    folder = tempfile.mkdtemp(prefix="skerry-tests-")
    os.chmod(folder, 0o755)  # noqa: PTH101
    server = OwnedPostgres(Path(folder, "pg"))
    await server.acquire()
    watching = asyncio.create_task(server.watch())
    yield server
    await cancel(watching)
    await server.release(stop=True)
    shutil.rmtree(folder, ignore_errors=True)


async def test_a_server_that_is_killed_loses_and_doubles_nothing(own_server: OwnedPostgres) -> None:
    async with running_store(own_server.dsn) as store:
        await store.worker()
        await store.app()
        acknowledged: list[pb.MachineRecord] = []

        async def client(number: int) -> None:
            for count in range(40):
                answer = await create_until_certain(store, f"m-{number}-{count}")
                acknowledged.append(answer.machine)

        clients = [asyncio.create_task(client(number)) for number in range(8)]
        for kill in (40, 120):
            await eventually(lambda kill=kill: len(acknowledged) >= kill, interval=0.002)  # type: ignore[misc]
            kill_server(own_server)
        await asyncio.wait_for(asyncio.gather(*clients), 60)
        assert len(acknowledged) == 320
        await audit(store, acknowledged)


async def test_without_a_server_calls_fail_by_name_and_soon_and_work_again_after(own_server: OwnedPostgres) -> None:
    async with running_store(own_server.dsn) as store:
        await store.worker()
        await store.app()
        errors: list[SkerryError] = []

        async def works() -> bool:
            try:
                await store.workers()
            except SkerryError as error:
                errors.append(error)
                return False
            return True

        async def fails() -> bool:
            return not await works()

        kill_server(own_server)
        await eventually(fails, interval=0)
        await eventually(works)
        assert all(isinstance(error, DependencyDown) and "PostgreSQL" in error.message for error in errors)
        assert all(error.retry_after for error in errors)
        await store.create()


async def test_a_store_waits_for_a_database_that_is_not_there_yet(postgres: str) -> None:
    name = f"late_{os.getpid()}"
    dsn = postgres.replace("/postgres?", f"/{name}?")
    starting = asyncio.create_task(_create_on(dsn))
    try:
        async with connection_to(postgres) as connection:
            await asyncio.sleep(0)
            await connection.execute(f'CREATE DATABASE "{name}"')
        assert (await starting).name == "late"
    finally:
        await cancel(starting)
        async with connection_to(postgres) as connection:
            await connection.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')


async def _create_on(dsn: str) -> pb.MachineRecord:
    async with running_store(dsn) as store:
        await store.worker()
        await store.app()
        return await store.create("late")


async def test_before_it_has_started_a_store_says_so() -> None:
    service = MachineStoreService(
        lambda: "postgresql://nobody@/nothing?host=/nowhere",
        cell="001",
        region="syd",
        clock=SystemClock(),
        random=Random(1),
    )
    registry = Registry(service="machine-store", secret="s")
    service.register(registry)
    channel = local(registry, caller="001/tests", callee="machine-store", secret="s")
    with pytest.raises(DependencyDown, match="starting"):
        await store_pb2_grpc.MachineStoreStub(channel).GetMachine(pb.GetMachineRequest(machine_id="001aaaaaaaaaaa"))


async def test_instances_that_start_at_once_migrate_once(fresh_database: MakeDatabase) -> None:
    dsn = await fresh_database()
    await asyncio.gather(*(schema.migrate(lambda: asyncpg.connect(dsn)) for _ in range(4)))
    async with connection_to(dsn) as connection:
        assert await connection.fetchval("SELECT version_num FROM alembic_version") == schema.HEAD
        assert await connection.fetchval("SELECT count(*) FROM counter") == 1
    await schema.migrate(lambda: asyncpg.connect(dsn))


async def test_a_process_of_its_own_migrates_as_well_and_says_when_the_server_is_away(
    fresh_database: MakeDatabase,
) -> None:
    dsn = await fresh_database()
    await asyncio.gather(*(schema.migrate_apart(dsn)(lambda: asyncpg.connect(dsn)) for _ in range(2)))
    async with connection_to(dsn) as connection:
        assert await connection.fetchval("SELECT version_num FROM alembic_version") == schema.HEAD
    away = "postgresql://nobody@127.0.0.1:1/nothing"
    other = await fresh_database()
    with pytest.raises(ConnectionError, match="migrates"):
        await schema.migrate_apart(away)(lambda: asyncpg.connect(other))


async def test_a_database_of_a_newer_program_is_left_as_it_is(fresh_database: MakeDatabase) -> None:
    dsn = await fresh_database()
    await schema.migrate(lambda: asyncpg.connect(dsn))
    async with connection_to(dsn) as connection:
        await connection.execute("UPDATE alembic_version SET version_num = '9999'")
        await schema.migrate(lambda: asyncpg.connect(dsn))
        assert await connection.fetchval("SELECT version_num FROM alembic_version") == "9999"


def test_the_newest_migration_is_the_one_that_is_named() -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(schema.__file__).parent))
    assert ScriptDirectory.from_config(config).get_heads() == [schema.HEAD]
