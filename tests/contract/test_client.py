"""The Python client, against a running region."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from skerry.machines.v1 import platform_pb2

from skerry_client import App, MachineConfig, Skerry
from skerry_client.errors import DependencyDown, InvalidConfig, LeaseHeld, NameTaken, NotFound, VersionMismatch
from tests.support import eventually
from tests.support_gateway import TOKEN, TestRegion
from tests.support_gateway import region as new_region

pytestmark = pytest.mark.asyncio(loop_scope="module")

CONFIG = MachineConfig(image="busybox")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def region(postgres: str) -> AsyncIterator[TestRegion]:
    async with new_region(postgres) as serving:
        yield serving


@pytest_asyncio.fixture(loop_scope="module")
async def skerry(region: TestRegion) -> AsyncIterator[Skerry]:
    async with Skerry(region.grpc_address, token=TOKEN, region="syd") as client:
        yield client


@pytest_asyncio.fixture(loop_scope="module")
async def app(region: TestRegion, skerry: Skerry) -> App:
    return skerry.app(await region.app())


async def test_a_machine_is_created_waited_for_updated_and_destroyed(region: TestRegion, app: App) -> None:
    machine = await app.create(CONFIG, name="web-1")
    waiting = asyncio.create_task(app.wait(machine.id, "started"))
    await region.worker.started(machine.id)
    await waiting
    updated = await app.update(machine.id, CONFIG, current_version=machine.instance_id)
    assert updated.instance_id != machine.instance_id
    with pytest.raises(VersionMismatch):
        await app.update(machine.id, CONFIG, current_version=machine.instance_id)
    assert [each.id async for each in app.list(states=["restarting", "started", "updating"])] == [machine.id]
    await app.destroy(machine.id, force=True)
    assert (await app.get(machine.id)).id == machine.id


async def test_errors_are_those_of_the_reason_and_name_the_field(app: App) -> None:
    await app.create(CONFIG, name="taken", skip_launch=True)
    with pytest.raises(NameTaken):
        await app.create(CONFIG, name="taken", skip_launch=True)
    with pytest.raises(InvalidConfig) as refused:
        await app.create(CONFIG, name="No Name")
    assert refused.value.violations[0].field == "name"
    with pytest.raises(NotFound):
        await app.get("00100000000000")


async def test_the_same_key_makes_one_machine(app: App) -> None:
    first = await app.create(CONFIG, skip_launch=True, key="once")
    assert (await app.create(CONFIG, skip_launch=True, key="once")).id == first.id


async def test_all_pages_of_a_list_are_gone_through(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("skerry_client.client.PAGE", 2)
    made = {(await app.create(CONFIG, skip_launch=True)).id for _ in range(5)}
    assert {machine.id async for machine in app.list()} == made


async def test_a_lease_keeps_others_out_until_the_end_of_its_block(app: App) -> None:
    machine = await app.create(CONFIG, skip_launch=True)
    async with app.lease(machine.id, ttl=30, description="deploying") as lease:
        with pytest.raises(LeaseHeld):
            await app.update(machine.id, CONFIG)
        await lease.refresh(60)
        await lease.update(CONFIG)
    await app.update(machine.id, CONFIG)


async def test_a_watch_tells_the_state_then_what_happens_and_ends_with_its_reader(region: TestRegion, app: App) -> None:
    machine = await app.create(CONFIG, skip_launch=True)
    watch = app.watch()
    first = await anext(watch)
    assert first.machine.id == machine.id
    while not (await anext(watch)).caught_up:
        pass
    other = await app.create(CONFIG, skip_launch=True)
    while not (told := await anext(watch)).HasField("machine"):
        pass
    assert told.machine.id == other.id
    await watch.aclose()
    await eventually(lambda: region.gateway.watching == 0)


async def test_a_dry_run_creates_nothing(app: App) -> None:
    assert (await app.dry_run(CONFIG)).placement.fits
    assert [machine async for machine in app.list()] == []


async def test_every_service_is_there_with_the_token(skerry: Skerry) -> None:
    regions = (await skerry.platform.ListRegions(platform_pb2.ListRegionsRequest())).regions
    assert "syd" in {region.code for region in regions}


async def test_a_gateway_that_is_not_there_is_named_as_down_within_the_timeout() -> None:
    # Port 1 of this machine refuses connections.
    async with Skerry("127.0.0.1:1", token=TOKEN, timeout=0.5) as client:
        with pytest.raises(DependencyDown):
            await client.app("any").create(CONFIG)
