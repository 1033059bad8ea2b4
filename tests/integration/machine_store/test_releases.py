"""Releases: numbers that are never given twice, how far they are, and their place in the log."""

from __future__ import annotations

import asyncio
import itertools
from typing import TYPE_CHECKING

import pytest
from skerry.store.v1 import release_pb2 as record
from skerry.store.v1 import release_store_pb2 as pb
from skerry.store.v1 import store_pb2 as store_pb
from skerry.store.v1.release_store_pb2_grpc import ReleaseStoreStub

from services.machine_store.releases import TRANSITIONS
from services.runtime.channels import local
from services.runtime.errors import IdempotencyConflict, InvalidConfig, NotFound, WrongState
from services.runtime.registry import Registry
from tests.integration.machine_store.stores import APP, Store

if TYPE_CHECKING:
    from skerry.store.v1.release_store_pb2_grpc import ReleaseStoreAsyncStub


@pytest.fixture
def releases(store: Store) -> ReleaseStoreAsyncStub:
    registry = Registry(service="machine-store", secret="s")
    store.service.register(registry)
    return ReleaseStoreStub(local(registry, caller="001/gateway", callee="machine-store", secret="s"))


def request(number: int, **more: str) -> pb.CreateReleaseRequest:
    given = {"strategy": "ROLLING", "user": "a@b.c", "image_ref": "nginx", "definition_json": '{"app":"web"}', **more}
    return pb.CreateReleaseRequest(release_id=f"001release{number}", app_id=given.pop("app_id", APP), **given)


async def test_numbers_count_up_without_gaps_whoever_asks_at_the_same_time(releases: ReleaseStoreAsyncStub) -> None:
    taken = await asyncio.gather(*(releases.CreateRelease(request(number)) for number in range(20)))
    assert sorted(answer.release.version for answer in taken) == list(range(1, 21))
    listed = (await releases.ListReleases(pb.ListReleasesRequest(app_id=APP, limit=5))).releases
    assert [release.version for release in listed] == [20, 19, 18, 17, 16]


async def test_of_a_list_the_newest_alone_has_its_documents(releases: ReleaseStoreAsyncStub) -> None:
    for number in range(3):
        await releases.CreateRelease(request(number, definition_json=f'{{"number":{number}}}'))
    listed = (await releases.ListReleases(pb.ListReleasesRequest(app_id=APP, limit=10))).releases
    assert [release.definition_json for release in listed] == ['{"number":2}', "", ""]


async def test_every_app_counts_for_itself(store: Store, releases: ReleaseStoreAsyncStub) -> None:
    await store.app("app-2", "other")
    first = (await releases.CreateRelease(request(1))).release
    second = (await releases.CreateRelease(request(2, app_id="app-2"))).release
    assert (first.version, second.version) == (1, 1)


async def test_the_same_release_again_is_the_same(releases: ReleaseStoreAsyncStub) -> None:
    first = (await releases.CreateRelease(request(1, idempotency_key="k"))).release
    assert (await releases.CreateRelease(request(1, idempotency_key="k"))).release == first
    assert (await releases.CreateRelease(request(2, idempotency_key="k"))).release == first
    with pytest.raises(IdempotencyConflict):
        await releases.CreateRelease(request(3, idempotency_key="k", image_ref="busybox"))
    assert (await releases.CreateRelease(request(4))).release.version == 2


async def test_a_release_keeps_what_came_with_it(releases: ReleaseStoreAsyncStub) -> None:
    created = (await releases.CreateRelease(request(1))).release
    assert (created.id, created.app_id, created.status) == ("001release1", APP, record.RELEASE_STATUS_PENDING)
    assert (created.strategy, created.user, created.image_ref) == ("ROLLING", "a@b.c", "nginx")
    assert created.definition_json == '{"app":"web"}'
    told = pb.UpdateReleaseRequest(
        release_id=created.id, status=record.RELEASE_STATUS_RUNNING, metadata_json='{"step":1}'
    )
    assert (await releases.UpdateRelease(told)).release.metadata_json == '{"step":1}'
    told = pb.UpdateReleaseRequest(release_id=created.id, status=record.RELEASE_STATUS_COMPLETE)
    ended = (await releases.UpdateRelease(told)).release
    assert (ended.status, ended.metadata_json) == (record.RELEASE_STATUS_COMPLETE, '{"step":1}')
    assert ended.revision > created.revision
    assert (await releases.GetRelease(pb.GetReleaseRequest(release_id=created.id))).release == ended


async def test_what_may_be_told_is_what_the_table_says(releases: ReleaseStoreAsyncStub) -> None:
    for number, (before, after) in enumerate(itertools.product(TRANSITIONS, TRANSITIONS)):
        release = (await releases.CreateRelease(request(number))).release.id
        if before != record.RELEASE_STATUS_PENDING:
            await releases.UpdateRelease(pb.UpdateReleaseRequest(release_id=release, status=before))
        told = releases.UpdateRelease(pb.UpdateReleaseRequest(release_id=release, status=after))
        if after in TRANSITIONS[before]:
            assert (await told).release.status == after
        else:
            with pytest.raises(WrongState):
                await told


async def test_an_app_that_is_not_there_takes_no_release(store: Store, releases: ReleaseStoreAsyncStub) -> None:
    with pytest.raises(NotFound):
        await releases.CreateRelease(request(1, app_id="nobody"))
    await releases.CreateRelease(request(2))
    await store.stub.DeleteApp(store_pb.DeleteAppRequest(name="web", source="user"))
    with pytest.raises(NotFound):
        await releases.CreateRelease(request(3))


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        (request(1, app_id=""), "app_id"),
        (request(1, strategy="x" * 2000), "strategy"),
        (request(1, definition_json="x" * (2**20 + 1)), "definition_json"),
        (request(1, image_ref="a\0b"), "image_ref"),
    ],
)
async def test_what_cannot_be_kept_is_refused(
    releases: ReleaseStoreAsyncStub, wrong: pb.CreateReleaseRequest, field: str
) -> None:
    with pytest.raises(InvalidConfig) as refused:
        await releases.CreateRelease(wrong)
    assert refused.value.violations[0].field == field


async def test_the_log_and_the_state_have_releases(store: Store, releases: ReleaseStoreAsyncStub) -> None:
    created = (await releases.CreateRelease(request(1))).release
    told = pb.UpdateReleaseRequest(release_id=created.id, status=record.RELEASE_STATUS_COMPLETE)
    ended = (await releases.UpdateRelease(told)).release
    wanted = store_pb.WatchFilter(kinds=[store_pb.RECORD_KIND_RELEASE])

    async def seen(after: int | None) -> list[record.ReleaseRecord]:
        found: list[record.ReleaseRecord] = []
        async for response in store.stub.Watch(store_pb.WatchRequest(filter=wanted, from_revision=after), timeout=20):
            found += [change.release for change in response.changes]
            if response.revision >= ended.revision and (after is not None or response.snapshot_complete):
                break
        return found

    assert await seen(None) == [ended]
    assert await seen(created.revision - 1) == [created, ended]


async def test_an_app_tells_whether_it_was_ever_deployed(store: Store, releases: ReleaseStoreAsyncStub) -> None:
    async def was_deployed() -> bool:
        return (await store.stub.GetApp(store_pb.GetAppRequest(name="web"))).was_deployed

    assert not await was_deployed()
    await releases.CreateRelease(request(1))
    assert await was_deployed()
