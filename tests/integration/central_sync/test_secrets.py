"""Secrets on their way from a real centre into a real store: sealed, once, in order, and under the key of the day."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from skerry.store.v1 import store_pb2
from skerry.store.v1.catalog_pb2 import SecretsRecord
from skerry.store.v1.catalog_store_pb2 import GetSecretsRequest
from skerry.sync.v1 import sync_pb2

from services.central_sync.reading import read_secrets
from services.runtime.errors import DependencyDown, InvalidConfig, NotFound
from services.runtime.sealing import Keyring, Sealed, id_of
from tests.integration.central.centres import Centre, running, settings_for
from tests.integration.central_sync.cells import Cell, Instance, quick, url_of
from tests.support import eventually

OLD, NEW = b"o" * 32, b"n" * 32
KEYS = Keyring([OLD])
VALUE = "hunter2-is-hidden"


async def set_secrets(centre: Centre, app: str, **values: str) -> None:
    await centre.ask(
        "mutation($input: SetSecretsInput!) { setSecrets(input: $input) { version } }",
        input={"appId": app, "secrets": [{"key": name, "value": value} for name, value in values.items()]},
    )


async def record_of(cell: Cell, app_id: str) -> SecretsRecord:
    return (await cell.catalog.GetSecrets(GetSecretsRequest(app_id=app_id))).secrets


async def opened(cell: Cell, app_id: str, keyring: Keyring = KEYS) -> dict[str, str]:
    record = await record_of(cell, app_id)
    return {
        entry.name: keyring.open(record.app_id, entry.name, Sealed(entry.key_id, entry.sealed))
        for entry in record.secrets
    }


async def is_version(cell: Cell, app_id: str, version: int) -> bool:
    return (await record_of(cell, app_id)).version == version


async def update(instance: Instance, app_id: str, *removed: str, **values: str) -> SecretsRecord:
    request = sync_pb2.UpdateSecretsRequest(app_id=app_id, values=values, removed_names=removed)
    return (await instance.stub.UpdateSecrets(request, timeout=20)).secrets


async def test_secrets_come_with_the_snapshot_and_with_every_change_sealed(cell: Cell, centre: Centre) -> None:
    app_id = (await centre.create_app("web"))["id"]
    await set_secrets(centre, "web", A=VALUE, B="")
    async with cell.sync(quick([url_of(centre)]), keyring=KEYS):
        assert await opened(cell, app_id) == {"A": VALUE, "B": ""}
        await set_secrets(centre, "web", A="newer")
        await eventually(lambda: is_version(cell, app_id, 2), seconds=1)
        assert await opened(cell, app_id) == {"A": "newer", "B": ""}
        await centre.ask("mutation($app: ID!) { deleteApp(appId: $app) { organization { id } } }", app="web")
        await eventually(lambda: is_version(cell, app_id, 0), seconds=1)
    watch = cell.store.Watch(store_pb2.WatchRequest(from_revision=0), timeout=20)
    async for response in watch:
        assert VALUE.encode() not in response.SerializeToString()
        if response.revision >= response.newest_revision:
            break
    watch.cancel()


async def test_an_update_is_in_the_catalog_when_it_is_answered_and_the_pull_adds_nothing(
    cell: Cell, centre: Centre
) -> None:
    app_id = (await centre.create_app("web"))["id"]
    async with cell.sync(quick([url_of(centre)]), keyring=KEYS) as instance:
        for number in range(1, 6):
            answer = await update(instance, app_id, A=f"value {number}")
            record = await record_of(cell, app_id)
            assert (answer.version, record.version) == (number, number)
            assert await opened(cell, app_id) == {"A": f"value {number}"}
        both = await update(instance, app_id, "A", B="two")
        assert ([entry.name for entry in both.secrets], both.version) == (["B"], 6)
        assert (await update(instance, app_id, "A")).version == 6
        await set_secrets(centre, "web", C="three")
        await eventually(lambda: is_version(cell, app_id, 7))
        changes = []
        watch = cell.store.Watch(
            store_pb2.WatchRequest(
                from_revision=0, filter=store_pb2.WatchFilter(kinds=[store_pb2.RECORD_KIND_SECRETS])
            ),
            timeout=20,
        )
        async for response in watch:
            changes += [change.secrets.version for change in response.changes]
            if response.revision >= response.newest_revision:
                break
        watch.cancel()
        assert changes == [1, 2, 3, 4, 5, 6, 7]


async def test_a_refresh_brings_what_the_pull_has_not_brought_yet(cell: Cell, centre: Centre) -> None:
    app_id = (await centre.create_app("web"))["id"]
    async with cell.sync(quick([url_of(centre)]), keyring=KEYS) as instance:
        nothing = await instance.stub.RefreshSecrets(sync_pb2.RefreshSecretsRequest(app_id=app_id), timeout=20)
        assert not nothing.HasField("secrets")
        await set_secrets(centre, "web", A="1")
        found = await instance.stub.RefreshSecrets(sync_pb2.RefreshSecretsRequest(app_id=app_id), timeout=20)
        assert found.secrets.version == 1
        assert await opened(cell, app_id) == {"A": "1"}
        with pytest.raises(NotFound):
            await instance.stub.RefreshSecrets(sync_pb2.RefreshSecretsRequest(app_id="none"), timeout=20)
        with pytest.raises(NotFound):
            await update(instance, "none", A="1")
        with pytest.raises(InvalidConfig, match="key must be"):
            await update(instance, app_id, **{"not a name": VALUE})


async def test_a_cell_that_was_filled_without_secrets_gets_them_all_once_it_has_a_key(
    cell: Cell, centre: Centre
) -> None:
    app_id = (await centre.create_app("web"))["id"]
    await set_secrets(centre, "web", A="1")
    async with cell.sync(quick([url_of(centre)])) as instance:
        assert await is_version(cell, app_id, 0)
        with pytest.raises(InvalidConfig, match="secrets_keys"):
            await update(instance, app_id, A="2")
    async with cell.sync(quick([url_of(centre)]), keyring=KEYS):
        await eventually(lambda: is_version(cell, app_id, 1))
        assert await opened(cell, app_id) == {"A": "1"}


async def test_a_new_key_seals_everything_again_and_the_old_one_may_go(cell: Cell, centre: Centre) -> None:
    apps = [(await centre.create_app(name))["id"] for name in ("one", "two")]
    for name in ("one", "two"):
        await set_secrets(centre, name, A=name)
    async with cell.sync(quick([url_of(centre)]), keyring=KEYS):
        assert [await opened(cell, app_id) for app_id in apps] == [{"A": "one"}, {"A": "two"}]
    both = Keyring([NEW, OLD])
    async with cell.sync(quick([url_of(centre)]), keyring=both):

        async def all_new() -> bool:
            records = (await read_secrets(cell.store)).secrets.values()
            return {entry.key_id for record in records for entry in record.secrets} == {id_of(NEW)}

        await eventually(all_new)
    assert [await opened(cell, app_id, Keyring([NEW])) for app_id in apps] == [{"A": "one"}, {"A": "two"}]
    assert [(await record_of(cell, app_id)).version for app_id in apps] == [1, 1]


async def test_a_centre_that_went_back_takes_the_secrets_with_it(
    cell: Cell, centre: Centre, fresh_database: Callable[[], Awaitable[str]], tmp_path: Path
) -> None:
    app_id = (await centre.create_app("web", id="same-id"))["id"]
    for number in range(3):
        await set_secrets(centre, "web", A=f"value {number}")
    async with cell.sync(quick([url_of(centre)]), keyring=KEYS):
        assert await is_version(cell, app_id, 3)
    async with running(settings_for(tmp_path, await fresh_database())) as restored:
        await restored.create_app("web", id="same-id")
        await set_secrets(restored, "web", A="restored")
        async with cell.sync(quick([url_of(restored)]), keyring=KEYS):
            await eventually(lambda: is_version(cell, app_id, 1))
            assert await opened(cell, app_id) == {"A": "restored"}


async def test_secrets_have_a_breaker_of_their_own_that_closes_by_itself(cell: Cell, centre: Centre) -> None:
    app_id = (await centre.create_app("web"))["id"]
    async with cell.sync(quick([url_of(centre)]), keyring=KEYS) as instance:
        await centre.http.post("/faults", json={"error_rate": 1.0})
        for _ in range(3):
            with pytest.raises(DependencyDown) as down:
                await update(instance, app_id, A=VALUE)
            assert (down.value.metadata["dependency"], down.value.metadata["call_class"]) == ("central", "secrets")
            assert down.value.retry_after is not None
            assert VALUE not in down.value.message
        assert (await instance.breaker("secrets")).state != sync_pb2.BREAKER_STATE_CLOSED
        assert (await instance.breaker("apps")).state == sync_pb2.BREAKER_STATE_CLOSED
        await centre.http.post("/faults", json={})

        async def closed() -> bool:
            return (await instance.breaker("secrets")).state == sync_pb2.BREAKER_STATE_CLOSED

        await eventually(closed)
        assert (await update(instance, app_id, A=VALUE)).version >= 1
        assert await opened(cell, app_id) == {"A": VALUE}
