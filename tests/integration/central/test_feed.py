"""The change feed: in order, without gaps, whoever writes; resumable; the snapshot agrees with it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from random import Random
from typing import Any

import asyncpg
import pytest

from services.central import feed
from services.central.database import HEAD, connect, migrate
from services.runtime.tasks import cancel
from tests.integration.central.centres import Centre, GraphQLFailed, running, settings_for
from tests.support import eventually

DIGEST = "sha256:" + "cd" * 32
FreshDatabase = Callable[[], Awaitable[str]]


def number(position: str) -> int:
    return int(position.rpartition(":")[2])


def state_after(changes: Iterable[dict[str, Any]]) -> dict[tuple[str, str], Any]:
    """What a follower holds that applied these changes."""
    state: dict[tuple[str, str], Any] = {}
    for change in changes:
        if change["deleted"]:
            state.pop((change["kind"], change["key"]), None)
        else:
            state[change["kind"], change["key"]] = change["payload"]
    return state


async def set_alias(centre: Centre, name: str) -> None:
    await centre.ask(
        "mutation($input: SetImageAliasInput!) { setImageAlias(input: $input) { imageAlias { name } } }",
        input={"name": name, "repository": "docker.io/acme/app", "digest": DIGEST},
    )


async def set_secret(centre: Centre, app: str, key: str, value: str) -> None:
    await centre.ask(
        "mutation($input: SetSecretsInput!) { setSecrets(input: $input) { version } }",
        input={"appId": app, "secrets": [{"key": key, "value": value}]},
    )


async def delete_app(centre: Centre, name: str) -> None:
    await centre.ask("mutation($id: ID!) { deleteApp(appId: $id) { organization { id } } }", id=name)


async def write_at_random(centre: Centre, writer: int, rounds: int) -> None:
    """Changes of every kind, some of them undone and some refused."""
    random = Random(writer)
    for i in range(rounds):
        name = f"app-{writer}-{i}"
        await centre.create_app(name)
        await set_alias(centre, f"alias-{random.randrange(5)}")
        await set_secret(centre, name, "KEY", str(i))
        with pytest.raises(GraphQLFailed):
            await centre.create_app(name)
        if random.random() < 0.5:
            await delete_app(centre, name)


async def test_followers_that_are_cut_at_random_see_every_change_once_and_in_order_while_many_write(
    fresh_database: FreshDatabase, tmp_path: Path
) -> None:
    settings = settings_for(tmp_path, await fresh_database())
    async with running(settings) as first, running(settings) as second:
        begin = (await first.changes())["position"]
        writers = [asyncio.create_task(write_at_random((first, second)[w % 2], w, 8)) for w in range(6)]

        async def follow(seed: int) -> list[dict[str, Any]]:
            random = Random(seed)
            seen: list[dict[str, Any]] = []
            position = begin
            while True:
                written = all(writer.done() for writer in writers)
                asked = asyncio.create_task(
                    random.choice((first, second)).changes(position, random.randrange(1, 20), random.choice((0, 300)))
                )
                if random.random() < 0.2:  # The answer is lost: the follower asks again from where it was.
                    await asyncio.sleep(random.random() / 50)
                    await cancel(asked)
                    continue
                batch = await asked
                seen += batch["changes"]
                position = batch["position"]
                if written and not batch["changes"]:
                    return seen

        followers = [asyncio.create_task(follow(seed)) for seed in range(4)]
        await asyncio.gather(*writers)
        logs = await asyncio.gather(*followers)

        for log in logs:
            assert [number(change["position"]) for change in log] == list(
                range(number(begin) + 1, number(begin) + 1 + len(log))
            )
            assert log == logs[0]
        everything = (await first.changes("", 1000))["changes"]
        position, records = await second.snapshot(page_size=7)
        assert position == everything[-1]["position"]
        assert {(r["kind"], r["key"]): r["payload"] for r in records} == state_after(everything)


async def test_a_snapshot_is_of_one_position_also_when_the_catalog_changes_between_its_pages(centre: Centre) -> None:
    for i in range(6):
        await centre.create_app(f"app-{i}")
    before = state_after((await centre.changes())["changes"])
    query = (
        "query($page: String) { catalogSnapshot(page: $page, limit: 2)"
        " { position nextPage records { kind key payload deleted } } }"
    )
    records: list[dict[str, Any]] = []
    page, position, turn = None, "", 0
    while True:
        found = (await centre.ask(query, page=page))["catalogSnapshot"]
        position = position or found["position"]
        assert found["position"] == position
        records += found["records"]
        page = found["nextPage"]
        if page is None:
            break
        await delete_app(centre, f"app-{turn}")
        await centre.create_app(f"later-{turn}")
        turn += 1
    assert turn > 1
    assert state_after(records) == before
    caught_up = {**state_after(records)}
    later = (await centre.changes(position))["changes"]
    for change in later:
        caught_up.pop((change["kind"], change["key"]), None)
    caught_up |= state_after(later)
    assert caught_up == state_after((await centre.changes())["changes"])


async def test_a_waiting_reader_is_woken_by_a_change_made_through_another_instance(
    fresh_database: FreshDatabase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # It would not come by itself to look.
    monkeypatch.setattr(feed, "SLOW_POLL_S", 3600.0)
    settings = settings_for(tmp_path, await fresh_database())
    async with running(settings) as reader, running(settings) as writer:
        position = (await reader.changes())["position"]
        for i in range(5):
            waiting = asyncio.create_task(reader.changes(position, wait_ms=20_000))
            await eventually(lambda: _waits(reader))
            await writer.create_app(f"app-{i}")
            batch = await waiting
            assert [change["payload"]["name"] for change in batch["changes"]] == [f"app-{i}"]
            position = batch["position"]


async def _waits(centre: Centre) -> bool:
    """Whether the instance had the time to begin to wait: it answered a later question."""
    await centre.ask("{ nearestRegion { code } }")
    return True


async def test_a_reader_without_news_gets_an_empty_batch_when_its_time_is_up(centre: Centre) -> None:
    position = (await centre.changes())["position"]
    batch = await centre.changes(position, wait_ms=200)
    assert (batch["changes"], batch["position"]) == ([], position)


async def test_positions_that_are_not_kept_any_more_are_too_old(fresh_database: FreshDatabase, tmp_path: Path) -> None:
    dsn = await fresh_database()
    async with running(settings_for(tmp_path, dsn)) as centre:
        begin = (await centre.changes())["position"]
        await centre.create_app("web")
        await centre.create_app("gone")
        await delete_app(centre, "gone")
        kept = (await centre.changes())["position"]
        expected = state_after((await centre.changes())["changes"])
    # An instance that keeps next to nothing forgets when it starts.
    async with running(settings_for(tmp_path, dsn, feed_kept_s=0.001)) as centre:

        async def forgotten() -> bool:
            return bool((await centre.changes(kept))["oldest"] == kept)

        await eventually(forgotten)
        for position in ("", begin):
            with pytest.raises(GraphQLFailed) as refused:
                await centre.changes(position)
            assert refused.value.code == "TOO_OLD"
        with pytest.raises(GraphQLFailed) as old_page:
            await centre.ask("query($page: String) { catalogSnapshot(page: $page) { position } }", page=f"{begin}:0")
        assert old_page.value.code == "TOO_OLD"
        position, records = await centre.snapshot()
        assert position == kept
        assert state_after(records) == expected
        await centre.create_app("new")
        assert [c["payload"]["name"] for c in (await centre.changes(kept))["changes"]] == ["new"]


async def test_a_position_of_another_feed_is_too_old(fresh_database: FreshDatabase, tmp_path: Path) -> None:
    async with running(settings_for(tmp_path, await fresh_database())) as old:
        position = (await old.changes())["position"]
    async with running(settings_for(tmp_path, await fresh_database())) as new:
        ahead = (await new.changes())["position"].partition(":")[0] + ":999"
        for foreign in (position, ahead):
            with pytest.raises(GraphQLFailed) as refused:
                await new.changes(foreign)
            assert refused.value.code == "TOO_OLD"


async def test_a_writer_that_stalls_in_the_middle_hides_nothing_and_skips_nothing(
    fresh_database: FreshDatabase, tmp_path: Path
) -> None:
    dsn = await fresh_database()
    async with running(settings_for(tmp_path, dsn)) as centre:
        begin = (await centre.changes())["position"]
        stalled = await connect(dsn, timeout=10)
        transaction = stalled.transaction()
        await transaction.start()
        await stalled.execute("SELECT position FROM feed FOR UPDATE")
        writing = asyncio.create_task(centre.create_app("second"))
        await _waits(centre)
        assert (await centre.changes(begin))["changes"] == []
        await stalled.execute("UPDATE feed SET position = position + 1")
        await stalled.execute(
            "INSERT INTO catalog_log VALUES ((SELECT position FROM feed), 'image_alias', 'first', true, null, 0)"
        )
        await transaction.commit()
        await stalled.close()
        await writing
        seen = (await centre.changes(begin))["changes"]
        assert [number(change["position"]) - number(begin) for change in seen] == [1, 2]
        assert [change["kind"] for change in seen] == ["image_alias", "app"]


async def test_the_database_is_brought_up_to_date_once_and_a_newer_one_is_refused(
    fresh_database: FreshDatabase,
) -> None:
    dsn = await fresh_database()
    await asyncio.gather(*(migrate(dsn) for _ in range(3)))
    connection = await connect(dsn, timeout=10)
    try:
        assert await connection.fetchval("SELECT version_num FROM alembic_version") == HEAD
        with pytest.raises(asyncpg.CheckViolationError):
            await connection.execute("UPDATE feed SET oldest = position + 1")
        await connection.execute("UPDATE alembic_version SET version_num = '9999'")
    finally:
        await connection.close()
    with pytest.raises(RuntimeError, match="9999"):
        await migrate(dsn)
