"""Who calls too often, or has too many machines, is told so, and when to come again; nobody else notices."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
import pytest_asyncio
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status
from skerry.machines.v1 import machines_pb2 as api
from skerry.machines.v1.machines_pb2_grpc import MachinesStub
from skerry.store.v1 import catalog_store_pb2 as catalog
from skerry.store.v1.catalog_pb2 import OrganizationLimits, OrganizationRecord, TokenKeyRecord
from skerry.store.v1.catalog_store_pb2_grpc import CatalogStoreStub

from gateway.settings import CallLimits, GatewayLimits, RateSettings
from services.runtime.channels import local
from services.runtime.tokens import attenuate, mint, public_key_of
from tests.support import eventually
from tests.support_gateway import TestRegion
from tests.support_gateway import region as new_region

pytestmark = pytest.mark.asyncio(loop_scope="module")

KEY = secrets.token_bytes(32)
QUOTA = 5
SLOW = RateSettings(per_second=0.05, burst=3)
"""So slow that no bucket fills while a test runs."""
MACHINE = {"config": {"image": "busybox"}, "skip_launch": True}


@dataclass(frozen=True)
class World:
    """A region, and the organizations acme, which has a quota, and rival, each with an app of its name."""

    region: TestRegion

    def token(self, organization: str) -> str:
        """A token that nobody has used yet."""
        return mint(KEY, 1, organization=organization).token

    async def create(self, organization: str, token: str) -> Any:
        return await self.region.call("POST", f"/v1/apps/{organization}/machines", MACHINE, token=token)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(postgres: str) -> AsyncIterator[World]:
    calls = CallLimits(action=SLOW, get=RateSettings(per_second=0.05, burst=10))
    async with new_region(postgres, limits=GatewayLimits(calls=calls)) as region:
        stores = region.registries["machine-store"]
        stub: Any = CatalogStoreStub(local(stores, caller="syd-1/cli", callee="machine-store", secret="of-the-set"))
        bounds = {"acme": OrganizationLimits(max_machines=QUOTA), "rival": None}
        organizations = [
            OrganizationRecord(id=slug, slug=slug, name=slug, limits=limits) for slug, limits in bounds.items()
        ]
        records = [catalog.CatalogRecord(organization=organization) for organization in organizations]
        records.append(catalog.CatalogRecord(token_key=TokenKeyRecord(id="1", public_key=public_key_of(KEY))))
        await stub.PutCatalogRecords(catalog.PutCatalogRecordsRequest(records=records))
        for slug in bounds:
            answer = await region.call("POST", "/v1/apps", {"name": slug, "org_slug": slug})
            assert answer.status == 201, answer
        world = World(region)

        async def knows_its_tokens() -> bool:
            return (await region.call("GET", "/v1/apps/rival", token=world.token("rival"))).status == 200

        await eventually(knows_its_tokens)
        yield world


async def test_over_rest_the_fourth_create_at_once_is_told_when_to_come_again(world: World) -> None:
    token = world.token("rival")
    answers = [await world.create("rival", token) for _ in range(4)]
    assert [answer.status for answer in answers] == [200, 200, 200, 429]
    refused = answers[-1]
    assert refused.json["status"] == "rate_limited"
    assert "create was asked too often" in refused.json["error"]
    # A bucket of one in 20 s has to fill again.
    assert 1 <= int(refused.headers["retry-after"]) <= 20
    assert "fly-request-id" in refused.headers


async def test_what_comes_too_often_or_without_a_token_is_refused_before_it_is_parsed(world: World) -> None:
    token = world.token("rival")

    async def status_of_garbage(token: str) -> int:
        return (await world.region.call("POST", "/v1/apps/rival/machines", content=b"{", token=token)).status

    assert await status_of_garbage(token) == 400
    for _ in range(3):
        assert (await world.create("rival", token)).status == 200
    assert await status_of_garbage(token) == 429
    assert await status_of_garbage("nobody's") == 401


async def test_over_grpc_the_refusal_is_resource_exhausted_and_carries_retry_info(world: World) -> None:
    authorization = (("authorization", f"Bearer {world.token('rival')}"),)
    request = api.CreateMachineRequest(app_name="rival", skip_launch=True)
    request.config.image = "busybox"
    async with grpc.aio.insecure_channel(world.region.grpc_address) as channel:
        stub: Any = MachinesStub(channel)
        for _ in range(3):
            await stub.CreateMachine(request, metadata=authorization, timeout=10)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.CreateMachine(request, metadata=authorization, timeout=10)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    details = dict(caught.value.trailing_metadata() or ())["grpc-status-details-bin"]
    status = Status.FromString(details)
    infos = [RetryInfo.FromString(each.value) for each in status.details if each.Is(RetryInfo.DESCRIPTOR)]
    assert len(infos) == 1
    assert 1 <= infos[0].retry_delay.ToSeconds() <= 20


async def test_rest_and_grpc_take_from_the_same_bucket(world: World) -> None:
    token = world.token("rival")
    stub: Any = world.region.machines
    for _ in range(2):
        assert (await world.create("rival", token)).status == 200
    request = api.CreateMachineRequest(app_name="rival", skip_launch=True)
    request.config.image = "busybox"
    await stub.CreateMachine(request, metadata=(("authorization", f"Bearer {token}"),))
    assert (await world.create("rival", token)).status == 429


async def test_a_token_that_was_narrowed_is_counted_with_the_one_it_was_made_from(world: World) -> None:
    token = world.token("rival")
    narrowed = [attenuate(token, scope="deploy").token for _ in range(3)]
    assert [(await world.create("rival", each)).status for each in (token, *narrowed)] == [200, 200, 200, 429]


async def test_another_organization_and_the_developer_do_not_notice(world: World) -> None:
    token, other = world.token("rival"), world.token("acme")
    statuses = [(await world.create("rival", token)).status for _ in range(30)]
    assert statuses.count(429) == 27
    assert (await world.region.call("GET", "/v1/apps/acme/machines", token=other)).status == 200
    for _ in range(20):
        assert (await world.region.call("GET", "/v1/apps/acme/machines")).status == 200


async def test_a_machine_has_a_bucket_for_each_action_that_strangers_cannot_empty(world: World) -> None:
    machine = await world.region.machine("rival")
    path = f"/v1/apps/rival/machines/{machine['id']}"
    foreign, token = world.token("acme"), world.token("rival")
    strangers = [(await world.region.call("GET", path, token=foreign)).status for _ in range(15)]
    assert strangers == [404] * 10 + [429] * 5
    owners = [(await world.region.call("GET", path, token=token)).status for _ in range(11)]
    assert owners == [200] * 10 + [429]
    # By the machine, whichever token it is, and by the action.
    assert (await world.region.call("GET", path, token=world.token("rival"))).status == 429
    metadata = f"{path}/metadata"
    assert (await world.region.call("GET", metadata, token=token)).status == 200


async def test_whoever_is_not_let_in_is_told_that_and_not_that_they_come_too_often(world: World) -> None:
    for _ in range(20):
        assert (await world.region.call("GET", "/v1/apps/acme/machines", token="nobody's")).status == 401


async def test_exactly_as_many_machines_come_to_be_as_the_organization_may_have(world: World) -> None:
    # Each with a token of its own, so that not the rate but the quota is what bounds them.
    answers = await asyncio.gather(*(world.create("acme", world.token("acme")) for _ in range(20)))
    statuses = [answer.status for answer in answers]
    assert (statuses.count(200), statuses.count(422)) == (QUOTA, 20 - QUOTA)
    refused = next(answer for answer in answers if answer.status == 422)
    assert refused.json["status"] == "quota_exceeded"
    assert f"has {QUOTA} machines here, and may have {QUOTA}" in refused.json["error"]
    listed = await world.region.call("GET", "/v1/apps/acme/machines")
    assert len(listed.json) == QUOTA
    machine = listed.json[0]
    path = f"/v1/apps/acme/machines/{machine['id']}"
    updated = await world.region.call("POST", path, {**MACHINE, "config": {"image": "busybox:2"}})
    assert updated.status == 200
