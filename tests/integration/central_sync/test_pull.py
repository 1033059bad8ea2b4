"""The pull: a real centre's catalog in a real store, through cuts, other feeds and lies."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from skerry.store.v1 import store_pb2
from skerry.store.v1.catalog_store_pb2 import GetCatalogStateRequest
from skerry.sync.v1 import sync_pb2

from services.central_sync.settings import PullSettings
from services.runtime.errors import WrongState
from services.runtime.tasks import cancel
from tests.integration.central.centres import Centre, running, settings_for
from tests.integration.central_sync.cells import Cell, Instance, quick, url_of
from tests.support import eventually


async def set_limits(centre: Centre, **limits: int) -> None:
    await centre.ask(
        "mutation($input: SetOrganizationLimitsInput!)"
        " { setOrganizationLimits(input: $input) { organization { id } } }",
        input={"organizationId": "personal", **limits},
    )


async def set_alias(centre: Centre, name: str, digit: str = "a") -> None:
    await centre.ask(
        "mutation($input: SetImageAliasInput!) { setImageAlias(input: $input) { imageAlias { name } } }",
        input={"name": name, "repository": "docker.io/library/nginx", "digest": f"sha256:{digit * 64}"},
    )


async def delete_app(centre: Centre, name: str) -> None:
    await centre.ask("mutation($app: ID!) { deleteApp(appId: $app) { organization { id } } }", app=name)


async def same(cell: Cell, centre: Centre) -> bool:
    """Whether the catalog has come to the centre's end of the feed."""
    position, _ = await centre.snapshot()
    state = await cell.catalog.GetCatalogState(GetCatalogStateRequest())
    return state.position == int(position.rpartition(":")[2])


async def log_of(cell: Cell) -> list[store_pb2.Change]:
    """The whole log."""
    changes: list[store_pb2.Change] = []
    watch = cell.store.Watch(store_pb2.WatchRequest(from_revision=0), timeout=20)
    async for response in watch:
        changes += response.changes
        if response.revision >= response.newest_revision:
            break
    watch.cancel()
    return changes


async def test_the_catalog_becomes_the_centres(cell: Cell, centre: Centre) -> None:
    await centre.create_app("first", network="blue", appRoleId="worker")
    await set_limits(centre, cpus=4, memoryMb=512, gpus=0, machines=7)
    await set_alias(centre, "base")
    async with cell.sync(quick([url_of(centre)])) as instance:
        catalog = await cell.read()
        (app,) = catalog.apps.values()
        assert (app.name, app.organization_slug, app.network, app.app_role) == ("first", "personal", "blue", "worker")
        assert (app.home_cell, app.internal_numeric_id > 0) == ("001", True)
        (organization,) = catalog.organizations.values()
        assert (organization.slug, organization.type) == ("personal", "PERSONAL")
        limits = organization.limits
        assert (limits.max_cpus, limits.max_memory_bytes, limits.max_machines) == (4, 512 << 20, 7)
        assert catalog.image_aliases["base"].reference == f"docker.io/library/nginx@sha256:{'a' * 64}"
        status = await instance.status()
        assert status.pull.filled
        assert status.pull.staleness.ToTimedelta().total_seconds() < 5


async def test_a_change_is_in_the_region_within_a_second(cell: Cell, centre: Centre) -> None:
    async with cell.sync(quick([url_of(centre)], pull=PullSettings(wait=20.0))):
        await centre.create_app("new")
        await eventually(lambda: _has(cell, "new"), seconds=1)
        await set_limits(centre, cpus=2)
        await eventually(lambda: _limited(cell, 2), seconds=1)
        await set_alias(centre, "base")
        await eventually(lambda: _aliased(cell, "base"), seconds=1)
        await delete_app(centre, "new")
        await eventually(lambda: _has(cell, "new", wanted=False), seconds=1)
        await eventually(lambda: _limited(cell, 2), seconds=1)


async def test_it_goes_on_exactly_where_it_was_through_cuts_and_changes_of_leader(cell: Cell, centre: Centre) -> None:
    settings = quick([url_of(centre)], pull=PullSettings(wait=0.2, retry_every=0.05, batch=3))
    wanted = [f"app-{number:02d}" for number in range(40)]

    async def create() -> None:
        for name in wanted:
            await centre.create_app(name)

    creating = asyncio.create_task(create())
    for number in range(4):
        async with cell.sync(settings, f"instance-{number}"):
            await asyncio.sleep(0.3)
    await creating
    async with cell.sync(settings, "last"):
        await eventually(lambda: same(cell, centre))
    assert await cell.app_names() == wanted
    seen = [change.app.name for change in await log_of(cell) if change.HasField("app")]
    assert seen == wanted, "each change came in once, in the order of the feed"


async def test_one_instance_pulls_and_another_takes_over(cell: Cell, centre: Centre) -> None:
    async with (
        cell.sync(quick([url_of(centre)]), "first") as first,
        cell.sync(quick([url_of(centre)]), "second") as second,
    ):
        await centre.create_app("one")
        await eventually(lambda: _has(cell, "one"))
        await cancel(first.task)
        await centre.create_app("two")
        await eventually(lambda: _has(cell, "two"))
        assert (await second.status()).pull.filled


async def test_too_far_behind_it_takes_the_whole_and_records_what_differs(cell: Cell, centre: Centre) -> None:
    await centre.create_app("stays")
    await centre.create_app("goes")
    async with cell.sync(quick([url_of(centre)])):
        await eventually(lambda: same(cell, centre))
    before = len(await log_of(cell))
    await delete_app(centre, "goes")
    await centre.create_app("comes")
    behind = quick([url_of(centre)], pull=PullSettings(wait=0.2, batch=1, most_changes=1))
    async with cell.sync(behind):
        await eventually(lambda: same(cell, centre))
    assert await cell.app_names() == ["comes", "stays"]
    assert len(await log_of(cell)) == before + 2, "what did not change is not recorded again"


async def test_another_feed_is_noticed_although_its_positions_look_like_the_old_ones(
    cell: Cell, centre: Centre, fresh_database: Any, tmp_path: Any
) -> None:
    await centre.create_app("old")
    async with cell.sync(quick([url_of(centre)])):
        await eventually(lambda: same(cell, centre))
    (tmp_path / "other").mkdir()
    async with running(settings_for(tmp_path / "other", await fresh_database())) as other:
        for name in ("new-1", "new-2", "new-3"):
            await other.create_app(name)
        async with cell.sync(quick([url_of(other)])):
            await eventually(lambda: same(cell, other))
            assert await cell.app_names() == ["new-1", "new-2", "new-3"]


async def test_what_a_region_had_before_its_first_centre_it_keeps(cell: Cell, centre: Centre) -> None:
    for number in range(12):
        await cell.store.CreateApp(
            store_pb2.CreateAppRequest(app_id=f"own-{number}", name=f"own-{number}", organization_slug="personal")
        )
    async with cell.sync(quick([url_of(centre)])):
        await eventually(lambda: same(cell, centre))
    assert len(await cell.app_names()) == 12


async def lie(cell: Cell, centre: Centre, apps: int, deleted: int) -> None:
    """A centre that deletes many apps while nobody looks."""
    for number in range(apps):
        await centre.create_app(f"app-{number:02d}", id=f"id-{number:02d}")
    async with cell.sync(quick([url_of(centre)])):
        await eventually(lambda: same(cell, centre))
    for number in range(deleted):
        await delete_app(centre, f"app-{number:02d}")


async def held_by(instance: Instance, least: int = 1) -> sync_pb2.WatchStatusResponse:
    """Its state once it tells of changes that are held."""
    watch = instance.stub.WatchStatus(sync_pb2.WatchStatusRequest(), timeout=10)
    async for status in watch:
        if status.pull.held_changes >= least:
            watch.cancel()
            return status
    raise AssertionError("nothing was held")


async def test_a_centre_that_deletes_much_at_once_is_held_back_until_that_is_accepted(
    cell: Cell, centre: Centre
) -> None:
    await lie(cell, centre, apps=20, deleted=12)
    async with cell.sync(quick([url_of(centre)])) as instance:
        held = await held_by(instance)
        assert (held.pull.held_changes, held.pull.held_reason) == (12, "they delete 12 of 20 apps")
        await centre.create_app("later")
        assert len(await cell.app_names()) == 20, "nothing that follows comes in either: order is kept"
        await held_by(instance, 13)
        answer = await instance.stub.AcceptHeldChanges(sync_pb2.AcceptHeldChangesRequest(who="ada"), timeout=10)
        assert answer.accepted == 13
        await eventually(lambda: same(cell, centre))
        assert await cell.app_names() == [*(f"app-{number}" for number in range(12, 20)), "later"]
        assert (await instance.status()).pull.held_changes == 0
        with pytest.raises(WrongState, match="no changes"):
            await instance.stub.AcceptHeldChanges(sync_pb2.AcceptHeldChangesRequest(who="ada"), timeout=10)


async def test_any_instance_can_be_asked_what_is_held_and_told_to_accept_it(cell: Cell, centre: Centre) -> None:
    await lie(cell, centre, apps=20, deleted=12)
    settings = quick([url_of(centre)])
    async with cell.sync(settings, "leads") as leader, cell.sync(settings, "follows") as follower:
        await held_by(leader)
        held = await held_by(follower)
        assert held.pull.held_changes == 12
        accepted = await follower.stub.AcceptHeldChanges(sync_pb2.AcceptHeldChangesRequest(who="ada"), timeout=10)
        assert accepted.accepted == 12
        assert len(await cell.app_names()) == 8


async def test_a_lie_that_is_put_right_comes_in_without_an_operator(cell: Cell, centre: Centre) -> None:
    await lie(cell, centre, apps=20, deleted=10)
    async with cell.sync(quick([url_of(centre)], pull=PullSettings(wait=0.2, held_refresh=0.3))) as instance:
        await held_by(instance)
        for number in range(5):
            await centre.create_app(f"app-{number:02d}", id=f"id-{number:02d}")
        await eventually(lambda: same(cell, centre))
        await eventually(lambda: _nothing_held(instance))
    assert len(await cell.app_names()) == 15


@pytest.mark.parametrize(("apps", "deleted"), [(20, 9), (220, 11)])
async def test_few_deletions_are_not_held_back(cell: Cell, centre: Centre, apps: int, deleted: int) -> None:
    await lie(cell, centre, apps, deleted)
    async with cell.sync(quick([url_of(centre)])) as instance:
        await eventually(lambda: same(cell, centre))
        assert len(await cell.app_names()) == apps - deleted
        assert (await instance.status()).pull.held_changes == 0


async def test_a_lying_snapshot_is_held_back_too(
    cell: Cell, centre: Centre, fresh_database: Any, tmp_path: Any
) -> None:
    await lie(cell, centre, apps=12, deleted=0)
    (tmp_path / "empty").mkdir()
    async with running(settings_for(tmp_path / "empty", await fresh_database())) as empty:
        async with cell.sync(quick([url_of(empty)])) as instance:
            held = await held_by(instance)
            assert "12 of 12 apps" in held.pull.held_reason
            assert len(await cell.app_names()) == 12
        # The right centre is back: nothing was lost, and nothing is held any more.
        async with cell.sync(quick([url_of(centre)])) as instance:
            await centre.create_app("fine")
            await eventually(lambda: _has(cell, "fine"))
            await eventually(lambda: _nothing_held(instance))


async def test_a_region_whose_catalog_was_filled_starts_without_the_centre(cell: Cell, centre: Centre) -> None:
    await centre.create_app("known")
    async with cell.sync(quick([url_of(centre)])):
        await eventually(lambda: same(cell, centre))
    async with cell.sync(quick(["http://127.0.0.1:9/graphql"])) as instance:
        status = await instance.status()
        assert status.pull.filled
        assert status.pull.staleness.ToTimedelta().total_seconds() > 0


async def test_a_region_that_never_saw_the_centre_is_not_ready_without_it(cell: Cell) -> None:
    nowhere = quick(["http://127.0.0.1:9/graphql"])
    async with cell.sync(nowhere, wait=False) as instance:
        await eventually(lambda: _breaker_open(instance))
        assert not instance.ready.is_set()
        assert not (await instance.status()).pull.filled


async def _has(cell: Cell, name: str, *, wanted: bool = True) -> bool:
    return (name in await cell.app_names()) == wanted


async def _limited(cell: Cell, cpus: int) -> bool:
    return any(each.limits.max_cpus == cpus for each in (await cell.read()).organizations.values())


async def _aliased(cell: Cell, name: str) -> bool:
    return name in (await cell.read()).image_aliases


async def _nothing_held(instance: Instance) -> bool:
    return not (await instance.status()).pull.held_changes


async def _breaker_open(instance: Instance) -> bool:
    return (await instance.breaker("pull")).state != sync_pb2.BREAKER_STATE_CLOSED
