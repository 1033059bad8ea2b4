"""Tokens through central-sync: made by a real centre, revoked there and here, and never lost between the two."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from skerry.store.v1.catalog_store_pb2 import RecordRevocationRequest
from skerry.sync.v1 import sync_pb2

from services.central_sync.reading import read_whole_catalog
from services.central_sync.records import Catalog
from services.central_sync.settings import CallClass
from services.runtime.errors import DependencyDown, InvalidConfig, NotFound, Unauthenticated
from services.runtime.tasks import cancel
from services.runtime.tokens import Grant, attenuate, mint, verify
from tests.integration.central.centres import Centre, running, settings_for
from tests.integration.central_sync.cells import Cell, bounds, quick, running_cell, url_of
from tests.support import eventually, free_port


async def whole(cell: Cell) -> Catalog:
    return await read_whole_catalog(cell.store)


async def verified(cell: Cell, token: str) -> Grant:
    """The token as a gateway of the cell sees it."""
    catalog = await whole(cell)
    keys = {int(key.id): key.public_key for key in catalog.token_keys.values()}
    return verify(token, keys, time.time(), catalog.revocations)


async def is_revoked(cell: Cell, token_id: str) -> bool:
    return token_id in (await whole(cell)).revocations


async def test_the_cell_knows_the_key_of_a_token_when_it_is_made(cell: Cell, centre: Centre) -> None:
    await centre.create_app("web")
    end = time.time() + 3600
    async with cell.sync(quick([url_of(centre)])) as instance:
        request = sync_pb2.CreateTokenRequest(organization_slug="personal", app_name="web", scope="deploy")
        request.expires_at.FromSeconds(int(end))
        made = await instance.stub.CreateToken(request)
        grant = await verified(cell, made.token)
        assert (grant.id, grant.organization, grant.apps) == (made.id, "personal", frozenset({"web"}))
        assert grant.expires_at == made.expires_at.seconds == int(end)
        for _ in range(3):
            await centre.ask("mutation { rotateTokenKey { key { id } } }")
            made = await instance.stub.CreateToken(sync_pb2.CreateTokenRequest(organization_slug="personal"))
            assert not made.HasField("expires_at")
            assert (await verified(cell, made.token)).scopes == {"all"}


async def test_what_cannot_be_made_is_told(cell: Cell, centre: Centre) -> None:
    async with cell.sync(quick([url_of(centre)])) as instance:
        with pytest.raises(NotFound):
            await instance.stub.CreateToken(sync_pb2.CreateTokenRequest(organization_slug="nobody"))
        with pytest.raises(InvalidConfig):
            await instance.stub.CreateToken(
                sync_pb2.CreateTokenRequest(organization_slug="personal", scope="everything")
            )
        with pytest.raises(InvalidConfig):
            await instance.stub.RevokeToken(sync_pb2.RevokeTokenRequest(id="no id"))


async def test_a_token_that_is_revoked_at_the_centre_is_revoked_in_every_cell(
    cell: Cell, centre: Centre, fresh_database: Callable[[], Awaitable[str]]
) -> None:
    async with (
        running_cell(await fresh_database()) as other,
        cell.sync(quick([url_of(centre)])) as instance,
        other.sync(quick([url_of(centre)])),
    ):
        made = await instance.stub.CreateToken(sync_pb2.CreateTokenRequest(organization_slug="personal"))
        narrowed = attenuate(made.token, scope="read-only").token
        await eventually(lambda: knows_key(other))
        await verified(other, narrowed)
        await instance.stub.RevokeToken(sync_pb2.RevokeTokenRequest(id=made.id))
        assert await is_revoked(cell, made.id), "here it is revoked when the answer is there"
        await eventually(lambda: is_revoked(other, made.id), seconds=5)
        for each in (cell, other):
            with pytest.raises(Unauthenticated, match="revoked"):
                await verified(each, narrowed)


async def knows_key(cell: Cell) -> bool:
    return bool((await whole(cell)).token_keys)


async def test_what_a_cell_revokes_while_the_centre_is_dead_reaches_all_others_once_it_is_back(
    cell: Cell, tmp_path: Path, fresh_database: Callable[[], Awaitable[str]]
) -> None:
    dsn = await fresh_database()
    port = free_port()
    settings = settings_for(tmp_path, dsn, listen=f"127.0.0.1:{port}")
    async with running(settings) as centre, cell.sync(quick([url_of(centre)])) as instance:
        made = await instance.stub.CreateToken(sync_pb2.CreateTokenRequest(organization_slug="personal"))
    urls = [f"http://127.0.0.1:{port}/graphql"]
    async with running_cell(await fresh_database()) as other, cell.sync(quick(urls)):
        # The centre is dead.
        await cell.catalog.RecordRevocation(RecordRevocationRequest(id=made.id))
        await cell.catalog.RecordRevocation(RecordRevocationRequest(id=made.id))
        with pytest.raises(Unauthenticated, match="revoked"):
            await verified(cell, made.token)
        async with running(settings) as centre, other.sync(quick(urls)):
            await eventually(lambda: is_revoked(other, made.id), seconds=20)
            await centre.ask("{ tokenKeys { id } }")
            record = (await whole(other)).revocations[made.id]
            assert record == (await whole(cell)).revocations[made.id]
            assert record.cell == "001"


async def test_a_centre_that_was_made_anew_takes_no_revocation_back(
    cell: Cell, tmp_path: Path, fresh_database: Callable[[], Awaitable[str]]
) -> None:
    async with (
        running(settings_for(tmp_path, await fresh_database())) as centre,
        cell.sync(quick([url_of(centre)])) as instance,
    ):
        made = await instance.stub.CreateToken(sync_pb2.CreateTokenRequest(organization_slug="personal"))
        await instance.stub.RevokeToken(sync_pb2.RevokeTokenRequest(id=made.id))
        before = (await whole(cell)).token_keys
    private = b"k" * 32
    strange = mint(private, 1, organization="personal")
    async with running(settings_for(tmp_path, await fresh_database())) as centre, cell.sync(quick([url_of(centre)])):

        async def has_its_key() -> bool:
            return (await whole(cell)).token_keys.keys() >= {"1"} and (await whole(cell)).token_keys != before

        await eventually(has_its_key)
        assert await is_revoked(cell, made.id)
        with pytest.raises(Unauthenticated):
            await verified(cell, strange.token)


async def test_without_the_centre_no_token_is_made_and_its_breaker_is_its_own(cell: Cell, centre: Centre) -> None:
    settings = quick([url_of(centre)], calls=bounds(CallClass.TOKENS, deadline=0.5))
    async with cell.sync(settings) as instance:
        await cancel(centre.task)
        for _ in range(4):
            with pytest.raises(DependencyDown) as down:
                await instance.stub.CreateToken(sync_pb2.CreateTokenRequest(organization_slug="personal"))
        assert down.value.retry_after
        assert (await instance.breaker("tokens")).state == sync_pb2.BREAKER_STATE_OPEN
        assert (await instance.breaker("apps")).state == sync_pb2.BREAKER_STATE_CLOSED
