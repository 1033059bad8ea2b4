"""How many machines an organization may have: counted in the transaction that creates them."""

from __future__ import annotations

import asyncio
from random import Random

import pytest
from skerry.store.v1 import catalog_store_pb2, store_pb2, volume_store_pb2
from skerry.store.v1.catalog_pb2 import OrganizationRecord
from skerry.types.v1.machine_pb2 import MACHINE_STATE_DESTROYED

from services.runtime.errors import QuotaExceeded
from tests.integration.machine_store.handover_stores import Sides
from tests.integration.machine_store.stores import APP, NEED, Store, destroyed, running_store

SLUG = "personal"
"""The organization of the apps of a test."""


class Quota:
    """What the catalog says of organizations."""

    def __init__(self, store: Store, term: int) -> None:
        self._catalog = Sides(store).catalog
        self._term = store_pb2.DutyTerm(duty="pull", term=term)
        self._position = 0

    async def set(self, most: int | None, *, slug: str = SLUG, deleted: bool = False) -> None:
        """Bound the number of machines, or take the bound away."""
        record = OrganizationRecord(id=f"id-{slug}", slug=slug, deleted=deleted)
        record.limits.max_cpus = 64
        if most is not None:
            record.limits.max_machines = most
        await self._catalog.ApplyCatalogChanges(
            catalog_store_pb2.ApplyCatalogChangesRequest(
                term=self._term,
                after_position=self._position,
                position=self._position + 1,
                records=[catalog_store_pb2.CatalogRecord(organization=record)],
            )
        )
        self._position += 1


@pytest.fixture
async def quota(store: Store) -> Quota:
    return Quota(store, (await store.lead("pull", lease=60)).term)


async def test_beyond_the_quota_a_create_is_refused_with_the_limit_and_the_number(store: Store, quota: Quota) -> None:
    await quota.set(2)
    await store.create("a")
    await store.create("b")
    with pytest.raises(QuotaExceeded, match="has 2 machines here, and may have 2") as caught:
        await store.create("c")
    assert caught.value.metadata == {"limit": "max_machines", "most": "2", "present": "2"}
    await quota.set(1)
    with pytest.raises(QuotaExceeded, match="has 2 machines here, and may have 1"):
        await store.create("c")
    await quota.set(None)
    await store.create("c")


async def test_a_quota_of_nothing_is_a_bound_and_none_is_none(store: Store, quota: Quota) -> None:
    await quota.set(0)
    with pytest.raises(QuotaExceeded, match="has 0 machines here, and may have 0"):
        await store.create("a")
    await quota.set(0, deleted=True)
    await store.create("a")


async def test_a_destroyed_machine_makes_room(store: Store, quota: Quota) -> None:
    await quota.set(1)
    machine = await store.create("a")
    await store.verb(machine.id, store_pb2.VERB_DESTROY, force=True)
    with pytest.raises(QuotaExceeded):
        await store.create("b")
    await store.report("w1", destroyed(machine))
    assert (await store.get(machine.id)).machine.state == MACHINE_STATE_DESTROYED
    await store.create("b")


async def test_machines_of_all_apps_of_the_organization_count_and_no_others(store: Store, quota: Quota) -> None:
    await store.app("app-2", "shop")
    await quota.set(2)
    await quota.set(0, slug="others")
    await store.create("a")
    await store.create("a", app_id="app-2")
    for app_id in (APP, "app-2"):
        with pytest.raises(QuotaExceeded):
            await store.create("b", app_id=app_id)


async def test_an_update_does_not_count_and_a_repeated_request_is_no_new_machine(store: Store, quota: Quota) -> None:
    await quota.set(1)
    request = store.request("a", key="once")
    machine = (await store.stub.CreateMachine(request)).machine
    assert (await store.stub.CreateMachine(request)).machine.id == machine.id
    updated = await store.update(machine.id, image="nginx:2")
    assert updated.instance_id != machine.instance_id


@pytest.mark.parametrize("seed", range(3))
async def test_exactly_as_many_machines_come_to_be_as_the_quota_allows_whoever_creates_them(
    store: Store, dsn: str, quota: Quota, seed: int
) -> None:
    await store.app("app-2", "shop")
    await quota.set(7)
    random = Random(seed)
    async with running_store(dsn, seed=2) as other:
        creates = [
            random.choice([store, other]).create(f"m-{number}", app_id=random.choice([APP, "app-2"]))
            for number in range(40)
        ]
        outcomes = await asyncio.gather(*creates, return_exceptions=True)
    made = [outcome for outcome in outcomes if isinstance(outcome, store_pb2.MachineRecord)]
    refused = [outcome for outcome in outcomes if isinstance(outcome, QuotaExceeded)]
    assert (len(made), len(refused)) == (7, 33)
    assert {machine.id for machine in await store.list("")} == {machine.id for machine in made}
    # What was refused holds nothing: the worker's reservation is that of the machines that are there.
    assert (await store.reserved("w1")).memory_bytes == 7 * NEED.memory_bytes


async def test_a_machine_at_a_volume_counts_too_and_the_volume_stays_free(store: Store, quota: Quota) -> None:
    made = await store.volumes.CreateVolume(
        volume_store_pb2.CreateVolumeRequest(
            volume_id="vol_0010000000000001",
            app_id=APP,
            name="data",
            region="syd",
            size_bytes=1 << 30,
            candidate_worker_ids=["w1"],
            fstype="ext4",
        )
    )
    await quota.set(0)
    request = store.request("a")
    request.volume_id = made.volume.id
    with pytest.raises(QuotaExceeded):
        await store.stub.CreateMachine(request)
    await quota.set(1)
    machine = (await store.stub.CreateMachine(request)).machine
    assert machine.worker_id == "w1"
