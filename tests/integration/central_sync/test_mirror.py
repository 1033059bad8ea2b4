"""The mirror: a real store's log in a real centre, at least once, and never past a gap."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from skerry.handover.v1.plan_pb2 import PART_MODE_CENTRAL
from skerry.store.v1 import store_pb2
from skerry.store.v1.plan_store_pb2 import ChangePlanRequest, GetPlanRequest

from services.central_sync.central_client import CentralClient, MirrorEvent
from services.central_sync.settings import CallClass, MirrorSettings
from tests.integration.central.centres import Centre, running, settings_for
from tests.integration.central_sync.cells import Cell, bounds, quick, url_of
from tests.support import eventually

APP = "app-1"


@pytest.fixture
async def busy_cell(cell: Cell, centre: Centre) -> Cell:
    """A cell with a worker and an app of the centre."""
    await centre.create_app("web", id=APP)
    async with cell.sync(quick([url_of(centre)])):
        await eventually(lambda: _has_app(cell))
    await cell.add_worker()
    return cell


async def _has_app(cell: Cell) -> bool:
    return "web" in await cell.app_names()


async def machines_of(centre: Centre) -> dict[str, str]:
    """The app's machines as the centre has them: id to state."""
    answer = await centre.ask('{ app(name: "web") { status machines { nodes { id state config } } } }')
    return {node["id"]: node["state"] for node in answer["app"]["machines"]["nodes"]}


async def newest(cell: Cell) -> int:
    """Newest revision of the log."""
    watch = cell.store.Watch(store_pb2.WatchRequest(filter=store_pb2.WatchFilter(machine_id="-")), timeout=10)
    async for response in watch:
        watch.cancel()
        return response.newest_revision
    raise AssertionError("the log is silent")


async def reached(centre: Centre) -> int:
    """The revision up to which the centre has everything."""
    answer = await centre.ask('mutation { mirrorEvents(input: { cell: "001", events: [] }) { revision } }')
    revision: int = answer["mirrorEvents"]["revision"]
    return revision


async def caught_up(cell: Cell, centre: Centre) -> bool:
    return await reached(centre) == await newest(cell)


class Recorded(httpx.AsyncHTTPTransport):
    """HTTP as it is, with a note of what is sent, and of answers that are lost on the way."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[str] = []
        self.lose = 0

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        text = (await request.aread()).decode()
        self.sent.append(text)
        response = await super().handle_async_request(request)
        if self.lose and "mutation MirrorEvents" in text:
            self.lose -= 1
            await response.aread()
            raise httpx.ReadError("the answer was lost")
        return response


async def test_what_happens_in_the_region_is_at_the_centre_soon(busy_cell: Cell, centre: Centre) -> None:
    async with busy_cell.sync(quick([url_of(centre)])) as instance:
        machine = await busy_cell.add_machine(APP, image="nginx:1.27")
        await eventually(lambda: caught_up(busy_cell, centre))
        assert await machines_of(centre) == {machine.id: "starting"}
        answer = await centre.ask(
            "query($id: String!) { machine(machineId: $id) { name config host { id } } }", id=machine.id
        )
        assert answer["machine"] == {"name": machine.name, "config": {"image": "nginx:1.27"}, "host": {"id": "w1"}}
        await _started(busy_cell, machine, 1)
        await eventually(lambda: _states(centre, {machine.id: "started"}))
        await _destroyed(busy_cell, machine, 2)
        await eventually(lambda: _states(centre, {}))
        answer = await centre.ask('{ app(name: "web") { status } }')
        assert answer["app"]["status"] == "suspended"
        status = await eventually(lambda: _mirrored_all(instance))
        assert status.mirror.revision == await newest(busy_cell)


async def test_answers_that_are_lost_lose_nothing_and_repeat_nothing(busy_cell: Cell, centre: Centre) -> None:
    way = Recorded()
    settings = quick([url_of(centre)], calls=bounds(CallClass.MIRROR, attempts=1))
    async with busy_cell.sync(settings, http=lambda _: httpx.AsyncClient(transport=way)):
        machines = []
        for _ in range(5):
            way.lose = 1
            machines.append(await busy_cell.add_machine(APP))
            await eventually(lambda: way.lose == 0)
        await eventually(lambda: caught_up(busy_cell, centre))
    assert await machines_of(centre) == {machine.id: "starting" for machine in machines}


async def test_an_instance_that_takes_over_goes_on_where_the_centre_is(busy_cell: Cell, centre: Centre) -> None:
    machines = []
    for number in range(4):
        async with busy_cell.sync(quick([url_of(centre)]), f"instance-{number}"):
            machines += [await busy_cell.add_machine(APP) for _ in range(5)]
    async with busy_cell.sync(quick([url_of(centre)]), "last"):
        await eventually(lambda: caught_up(busy_cell, centre))
    assert (await machines_of(centre)).keys() == {machine.id for machine in machines}


async def test_events_that_are_sent_again_change_nothing(busy_cell: Cell, centre: Centre) -> None:
    machine = await busy_cell.add_machine(APP)
    async with busy_cell.sync(quick([url_of(centre)])):
        await eventually(lambda: caught_up(busy_cell, centre))
    async with client_of(centre, busy_cell) as client:
        at = await reached(centre)
        again = [MirrorEvent(revision, "machine", machine.id, None) for revision in range(1, at + 1)]
        assert await client.mirror_events(again) == at
    assert await machines_of(centre) == {machine.id: "starting"}


async def test_a_centre_that_was_away_gets_all_at_a_bounded_rate(busy_cell: Cell, centre: Centre) -> None:
    machines = [await busy_cell.add_machine(APP) for _ in range(100)]
    behind = await newest(busy_cell) - await reached(centre)
    assert behind >= 100
    way, rate = Recorded(), 100
    settings = quick([url_of(centre)], mirror=MirrorSettings(gather=0.0, rate=rate, batch=10))
    began = time.monotonic()
    async with busy_cell.sync(settings, http=lambda _: httpx.AsyncClient(transport=way)):
        await eventually(lambda: caught_up(busy_cell, centre), seconds=20)
        took = time.monotonic() - began
    assert took >= 0.8 * behind / rate
    assert (await machines_of(centre)).keys() == {machine.id for machine in machines}


async def test_of_a_record_that_changes_often_the_last_state_goes_up(busy_cell: Cell, centre: Centre) -> None:
    machine = await busy_cell.add_machine(APP, image="registry.example/marked:1")
    for sequence in range(1, 6):
        await _started(busy_cell, machine, sequence)
    way = Recorded()
    async with busy_cell.sync(quick([url_of(centre)]), http=lambda _: httpx.AsyncClient(transport=way)):
        await eventually(lambda: caught_up(busy_cell, centre))
    assert await machines_of(centre) == {machine.id: "started"}
    assert sum(text.count("registry.example/marked:1") for text in way.sent) == 1


async def test_behind_the_beginning_of_the_log_the_whole_state_goes_up(busy_cell: Cell, centre: Centre) -> None:
    kept = [await busy_cell.add_machine(APP) for _ in range(30)]
    gone = await busy_cell.add_machine(APP)
    await _destroyed(busy_cell, gone, 1)
    await busy_cell.purge_log()
    settings = quick([url_of(centre)], mirror=MirrorSettings(gather=0.05, retry_every=0.1, rate=100_000, batch=7))
    async with busy_cell.sync(settings):
        await eventually(lambda: caught_up(busy_cell, centre))
        assert (await machines_of(centre)).keys() == {machine.id for machine in kept}
        later = await busy_cell.add_machine(APP)
        await eventually(lambda: caught_up(busy_cell, centre))
        assert later.id in await machines_of(centre)


async def test_a_centre_that_is_ahead_of_the_log_gets_the_whole_state(busy_cell: Cell, centre: Centre) -> None:
    machine = await busy_cell.add_machine(APP)
    async with client_of(centre, busy_cell) as client:
        stale = MirrorEvent(
            10_000, "machine", "00100000000000", {"id": "00100000000000", "app_id": APP, "state": "started"}
        )
        await client.mirror_snapshot(10_000, [stale], first=True, last=True)
    async with busy_cell.sync(quick([url_of(centre)])):
        await eventually(lambda: caught_up(busy_cell, centre))
    assert (await machines_of(centre)).keys() == {machine.id}


async def test_a_centre_that_lost_its_database_gets_all_again(
    busy_cell: Cell, centre: Centre, fresh_database: Any, tmp_path: Any
) -> None:
    machine = await busy_cell.add_machine(APP)
    async with busy_cell.sync(quick([url_of(centre)])):
        await eventually(lambda: caught_up(busy_cell, centre))
    (tmp_path / "new").mkdir()
    async with running(settings_for(tmp_path / "new", await fresh_database())) as new:
        await new.create_app("web", id=APP)
        async with busy_cell.sync(quick([url_of(new)])):
            await eventually(lambda: caught_up(busy_cell, new))
        assert await machines_of(new) == {machine.id: "starting"}


async def test_the_centre_gets_a_copy_of_the_plan(busy_cell: Cell, centre: Centre) -> None:
    way = Recorded()
    async with busy_cell.sync(quick([url_of(centre)]), http=lambda _: httpx.AsyncClient(transport=way)):
        plan = (await busy_cell.plans.GetPlan(GetPlanRequest())).plan
        entry = plan.parts[0]
        entry.mode = PART_MODE_CENTRAL
        entry.central_versions[:] = [1]
        change = ChangePlanRequest(expected_epoch=plan.epoch, parts=[entry], who="ada", why="to see it go up")
        await busy_cell.plans.ChangePlan(change)
        await eventually(lambda: caught_up(busy_cell, centre))
    assert any('"kind":"plan"' in text and "PART_MODE_CENTRAL" in text for text in way.sent)


async def test_a_watch_that_is_cut_for_being_slow_goes_on(busy_cell: Cell, centre: Centre) -> None:
    settings = quick([url_of(centre)], mirror=MirrorSettings(gather=0.0, retry_every=0.05, rate=400, batch=50))
    async with busy_cell.sync(settings):
        made = await asyncio.gather(*(busy_cell.add_machine(APP) for _ in range(200)))
        await eventually(lambda: caught_up(busy_cell, centre), seconds=20)
    assert (await machines_of(centre)).keys() == {machine.id for machine in made}


@asynccontextmanager
async def client_of(centre: Centre, cell: Cell) -> AsyncIterator[CentralClient]:
    client = CentralClient(quick([url_of(centre)]), cell="001", place="syd-1", clock=cell.clock, random=cell.random)
    yield client
    await client.close()


async def _states(centre: Centre, wanted: dict[str, str]) -> bool:
    return await machines_of(centre) == wanted


async def _mirrored_all(instance: Any) -> Any:
    status = await instance.status()
    return status if status.mirror.revision and not status.mirror.behind else None


async def _observe(cell: Cell, machine: store_pb2.MachineRecord, sequence: int, **seen: Any) -> None:
    observation = store_pb2.Observation(sequence=sequence, machine_id=machine.id, generation=machine.generation, **seen)
    await cell.store.ReportObservations(
        store_pb2.ReportObservationsRequest(worker_id="w1", journal_id="journal", observations=[observation])
    )


async def _started(cell: Cell, machine: store_pb2.MachineRecord, sequence: int) -> None:
    await _observe(cell, machine, sequence, started=store_pb2.Started(restart_count=sequence))


async def _destroyed(cell: Cell, machine: store_pb2.MachineRecord, sequence: int) -> None:
    await cell.store.ApplyVerb(
        store_pb2.ApplyVerbRequest(machine_id=machine.id, verb=store_pb2.VERB_DESTROY, force=True, source="user")
    )
    await _observe(cell, machine, sequence, destroyed=store_pb2.Destroyed())
