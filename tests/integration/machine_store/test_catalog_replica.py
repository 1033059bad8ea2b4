"""The catalog as a replica of the centre's: changes once and in order, deletions, conflicts, cursors."""

from __future__ import annotations

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from skerry.store.v1 import catalog_store_pb2 as catalog
from skerry.store.v1 import store_pb2 as pb
from skerry.store.v1.catalog_pb2 import (
    ImageAliasRecord,
    OrganizationLimits,
    OrganizationRecord,
    SecretEntry,
    SecretsRecord,
)
from skerry.types.v1.machine_pb2 import MACHINE_STATE_DESTROYED, MACHINE_STATE_DESTROYING

from services.runtime.errors import Conflict, InvalidConfig, NameTaken, NotFound
from tests.integration.machine_store.handover_stores import Sides
from tests.integration.machine_store.stores import APP, Store, connection_to, destroyed

_KINDS = (pb.RECORD_KIND_APP, pb.RECORD_KIND_ORGANIZATION, pb.RECORD_KIND_IMAGE_ALIAS)


class Feed:
    """The leader of the pull, at some position of the centre's feed."""

    def __init__(self, sides: Sides, store: Store, term: int) -> None:
        self.sides, self.store = sides, store
        self.term = pb.DutyTerm(duty="pull", term=term)
        self.position = 0

    async def send(self, *records: catalog.CatalogRecord, whole: bool = False) -> int:
        request = catalog.ApplyCatalogChangesRequest(
            term=self.term,
            after_position=self.position,
            position=self.position + 1,
            records=records,
            whole=whole,
        )
        changed = (await self.sides.catalog.ApplyCatalogChanges(request)).changed
        self.position += 1
        return changed

    async def put(self, *records: catalog.CatalogRecord) -> int:
        request = catalog.PutCatalogRecordsRequest(records=records)
        return (await self.sides.catalog.PutCatalogRecords(request)).revision

    async def state(self) -> catalog.GetCatalogStateResponse:
        return await self.sides.catalog.GetCatalogState(catalog.GetCatalogStateRequest())

    async def counts(self) -> tuple[int, int, int]:
        state = await self.state()
        return state.apps, state.organizations, state.image_aliases

    async def get(self, name: str) -> pb.AppRecord:
        return (await self.store.stub.GetApp(pb.GetAppRequest(name=name))).app

    async def seen(self, after: int | None = None) -> list[pb.Change]:
        """The state, or what happened after a revision."""
        newest = await self.put()
        request = pb.WatchRequest(filter=pb.WatchFilter(kinds=_KINDS), from_revision=after)
        changes: list[pb.Change] = []
        async for response in self.store.stub.Watch(request, timeout=20):
            changes += response.changes
            if response.snapshot_complete or (after is not None and response.revision >= newest):
                return changes
        raise AssertionError("the watch ended")


@pytest.fixture
async def feed(store: Store) -> Feed:
    return Feed(Sides(store), store, (await store.lead("pull")).term)


def app(
    app_id: str = "central-1", name: str = "shop", *, deleted: bool = False, **more: object
) -> catalog.CatalogRecord:
    fields: dict[str, object] = {"organization_slug": "acme", "internal_numeric_id": 7001, "network": "default"}
    fields |= {
        "app_role": "app",
        "home_cell": "001",
        "created_at": Timestamp(seconds=1_700_000_000, nanos=5_000),
    } | more
    record = pb.AppRecord(id=app_id, deleted=True) if deleted else pb.AppRecord(id=app_id, name=name, **fields)  # type: ignore[arg-type]
    return catalog.CatalogRecord(app=record)


def organization(key: str = "o1", slug: str = "acme", **more: object) -> catalog.CatalogRecord:
    return catalog.CatalogRecord(organization=OrganizationRecord(id=key, slug=slug, **more))  # type: ignore[arg-type]


def alias(name: str = "nginx", **more: object) -> catalog.CatalogRecord:
    return catalog.CatalogRecord(image_alias=ImageAliasRecord(alias=name, **more))  # type: ignore[arg-type]


async def machine_of(store: Store, app_id: str) -> pb.MachineRecord:
    return await store.create(app_id=app_id)


async def test_records_come_into_the_catalog_and_the_log_as_the_centre_has_them(feed: Feed) -> None:
    before = await feed.put()
    limits = OrganizationLimits(max_cpus=8, max_memory_bytes=2**40)
    sent = [organization(limits=limits, type="SHARED", paid_plan=True), app(), alias(digest="sha256:1", reference="r")]
    assert await feed.send(*sent) == 3
    (web, *_) = [c for c in await feed.seen() if c.app.id == APP]
    assert web.app.name == "web"
    happened = await feed.seen(after=before)
    assert [c.organization for c in happened if c.HasField("organization")] == [sent[0].organization]
    assert [c.app for c in happened if c.HasField("app")] == [sent[1].app]
    assert [c.image_alias for c in happened if c.HasField("image_alias")] == [sent[2].image_alias]
    assert await feed.get("shop") == sent[1].app
    assert await feed.counts() == (2, 1, 1)
    state = await feed.state()
    assert (state.position, state.HasField("changed_at")) == (1, True)
    assert {c.WhichOneof("record") for c in await feed.seen()} == {"app", "organization", "image_alias"}


async def test_only_what_changes_is_logged(feed: Feed) -> None:
    sent = [organization(), app(), alias()]
    await feed.send(*sent)
    before = await feed.put()
    assert await feed.send(*sent) == 0
    assert await feed.send(organization(paid_plan=True), app(network="other"), alias()) == 2
    changes = await feed.seen(after=before)
    assert [c.WhichOneof("record") for c in changes] == ["organization", "app"]
    assert changes[1].app.network == "other"


async def test_changes_are_taken_only_at_the_position_that_they_follow(feed: Feed) -> None:
    await feed.send(app())
    feed.position = 0
    with pytest.raises(Conflict, match="position 1, not 0"):
        await feed.send(app(deleted=True))
    assert (await feed.get("shop")).id == "central-1"


async def test_a_leader_whose_term_is_over_changes_neither_catalog_nor_cursor(feed: Feed) -> None:
    await feed.store.lead("pull", "h1", lease=0)
    assert (await feed.store.lead("pull", "h2")).acquired
    with pytest.raises(Conflict):
        await feed.send(app())
    with pytest.raises(Conflict):
        await feed.sides.catalog.SetCursor(catalog.SetCursorRequest(term=feed.term, value=9))
    with pytest.raises(NotFound):
        await feed.get("shop")
    assert (await feed.sides.catalog.GetCursor(catalog.GetCursorRequest(duty="pull"))).value == 0


async def test_a_cursor_is_where_its_leader_put_it(feed: Feed) -> None:
    for value in (7, 3):
        await feed.sides.catalog.SetCursor(catalog.SetCursorRequest(term=feed.term, value=value))
        assert (await feed.sides.catalog.GetCursor(catalog.GetCursorRequest(duty="pull"))).value == value
    assert (await feed.sides.catalog.GetCursor(catalog.GetCursorRequest(duty="mirror"))).value == 0


async def test_a_deleted_app_takes_its_machines_along(feed: Feed) -> None:
    await feed.send(app(), app("central-2", "kept"))
    machines = [await machine_of(feed.store, "central-1") for _ in range(3)]
    kept = await machine_of(feed.store, "central-2")
    before = await feed.put()
    assert await feed.send(app(deleted=True)) == 1
    for machine in machines:
        got = await feed.store.get(machine.id, events=1)
        assert got.machine.state == MACHINE_STATE_DESTROYING
        assert (got.events[0].type, got.events[0].source) == ("destroy", "flyd")
    assert (await feed.store.get(kept.id)).machine.state != MACHINE_STATE_DESTROYING
    (gone,) = await feed.seen(after=before)
    assert (gone.app.id, gone.app.name, gone.app.deleted) == ("central-1", "shop", True)
    with pytest.raises(NotFound):
        await feed.get("shop")
    assert await feed.send(app(deleted=True)) == 0


async def test_events_of_machines_that_go_with_several_apps_have_ids_of_their_own(feed: Feed, dsn: str) -> None:
    await feed.send(app("a", "a"), app("b", "b"))
    for app_id in ("a", "b", "a", "b"):
        await machine_of(feed.store, app_id)
    await feed.send(app("a", deleted=True), app("b", deleted=True))
    async with connection_to(dsn) as connection:
        ids = await connection.fetch("SELECT id FROM machine_events WHERE type = 'destroy'")
    assert len({row["id"] for row in ids}) == 4


async def test_a_deleted_organization_or_alias_is_told_with_what_was_known_of_it(feed: Feed) -> None:
    await feed.send(organization(), alias(reference="r"))
    before = await feed.put()
    await feed.send(organization(slug="", deleted=True), alias(deleted=True), alias("never", deleted=True))
    changes = await feed.seen(after=before)
    assert [c.organization for c in changes[:1]] == [OrganizationRecord(id="o1", slug="acme", deleted=True)]
    assert [c.image_alias for c in changes[1:]] == [ImageAliasRecord(alias="nginx", reference="r", deleted=True)]
    assert await feed.counts() == (1, 0, 0)
    assert not [c for c in await feed.seen() if c.HasField("organization") or c.HasField("image_alias")]
    assert await feed.send(organization(), alias(reference="r")) == 2
    assert await feed.counts() == (1, 1, 1)


async def test_a_whole_catalog_deletes_everything_else(feed: Feed) -> None:
    await feed.send(app(), app("central-2", "gone"), organization(), organization("o2", "old"), alias(), alias("old"))
    machine = await machine_of(feed.store, "central-2")
    before = await feed.put()
    assert await feed.send(app(), organization(), alias(), whole=True) == 4
    gone = await feed.seen(after=before)
    assert {c.app.id or c.organization.id or c.image_alias.alias for c in gone} == {APP, "central-2", "o2", "old"}
    assert await feed.counts() == (1, 1, 1)
    assert (await feed.store.state(machine.id)) == MACHINE_STATE_DESTROYING


async def test_an_app_that_the_centre_never_had_stays_while_it_has_machines(feed: Feed) -> None:
    machine = await feed.store.create()
    assert await feed.send(whole=True) == 0
    assert await feed.send(app(APP, deleted=True)) == 0
    assert (await feed.get("web")).id == APP
    await feed.store.verb(machine.id, pb.VERB_DESTROY, force=True)
    await feed.store.report("w1", destroyed((await feed.store.get(machine.id)).machine))
    assert await feed.store.state(machine.id) == MACHINE_STATE_DESTROYED
    assert await feed.send(whole=True) == 1


async def test_an_app_that_the_centre_takes_over_is_the_centres_to_delete(feed: Feed) -> None:
    machine = await feed.store.create()
    await feed.send(app(APP, "web"))
    assert (await feed.get("web")).internal_numeric_id == 7001
    assert await feed.send(app(APP, deleted=True)) == 1
    assert await feed.store.state(machine.id) == MACHINE_STATE_DESTROYING


async def test_the_centres_app_takes_the_name_of_one_without_machines(feed: Feed) -> None:
    assert await feed.send(app("central-9", "web")) == 2
    assert (await feed.get("web")).id == "central-9"


async def test_an_app_with_machines_keeps_its_name(feed: Feed) -> None:
    machine = await feed.store.create()
    assert await feed.send(app("central-9", "web"), app("central-8", "other")) == 1
    assert (await feed.get("web")).id == APP
    assert await feed.store.state(machine.id) != MACHINE_STATE_DESTROYING
    assert (await feed.get("other")).id == "central-8"


async def test_names_may_pass_from_app_to_app_in_one_batch(feed: Feed) -> None:
    await feed.send(app("a", "one"), app("b", "two"))
    await machine_of(feed.store, "a")
    await feed.send(app("a", deleted=True), app("b", "one"), app("c", "two"))
    assert ((await feed.get("one")).id, (await feed.get("two")).id) == ("b", "c")


async def test_what_the_centre_answers_is_there_at_once_and_only_once(feed: Feed) -> None:
    revision = await feed.put(app(), organization(), alias())
    assert await feed.put(app(), organization(), alias()) == revision
    assert await feed.get("shop") == app().app
    assert await feed.counts() == (2, 1, 1)
    assert await feed.send(app(), organization(), alias()) == 0
    machine = await machine_of(feed.store, "central-1")
    assert (machine.app_name, (await feed.state()).position) == ("shop", 1)


async def test_an_answer_that_is_older_than_the_feed_changes_nothing(feed: Feed) -> None:
    await feed.send(app(network="new"), organization(paid_plan=True), app("dead", "dead"))
    await feed.send(app("dead", deleted=True))
    revision = await feed.put()
    assert await feed.put(app(network="old"), organization(), app("dead", "dead")) == revision
    assert (await feed.get("shop")).network == "new"
    with pytest.raises(NotFound):
        await feed.get("dead")


async def test_apps_of_the_region_and_of_the_centre_have_one_space_of_names(feed: Feed) -> None:
    await feed.send(app())
    with pytest.raises(NameTaken):
        await feed.store.app("local-2", "shop")
    assert (await feed.store.app("local-3", "mine")).name == "mine"


@pytest.mark.parametrize(
    ("record", "field"),
    [
        (catalog.CatalogRecord(), r"records\[0\]"),
        (app("", "x"), r"records\[0\]\.app\.id"),
        (app("x", ""), r"records\[0\]\.app\.name"),
        (alias(""), r"records\[0\]\.image_alias\.alias"),
        (organization(name="a\0b"), r"records\[0\]\.organization\.name"),
    ],
)
async def test_a_record_that_cannot_be_kept_is_refused_by_name(
    feed: Feed, record: catalog.CatalogRecord, field: str
) -> None:
    with pytest.raises(InvalidConfig, match=field):
        await feed.send(record)
    assert (await feed.state()).position == 0


async def test_five_thousand_records_at_once_are_taken_quickly_and_without_gaps(feed: Feed, dsn: str) -> None:
    assert await feed.send(*(app(f"c-{n}", f"app-{n}") for n in range(5000))) == 5000
    async with connection_to(dsn) as connection:
        assert await connection.fetchval("SELECT max(revision) - count(*) FROM log") == 0
        assert await connection.fetchval("SELECT revision - (SELECT max(revision) FROM log) FROM counter") == 0


# Secrets


def secrets(version: int, app_id: str = "a1", *, replaces: int = 0, **sealed: bytes) -> catalog.CatalogRecord:
    entries = [
        SecretEntry(name=name, digest=f"d-{content.decode()}", version=version, key_id="k", sealed=content)
        for name, content in sealed.items()
    ]
    record = SecretsRecord(app_id=app_id, version=version, secrets=entries, replaces_version=replaces)
    return catalog.CatalogRecord(secrets=record)


async def secrets_of(feed: Feed, app_id: str = "a1") -> SecretsRecord | None:
    answer = await feed.sides.catalog.GetSecrets(catalog.GetSecretsRequest(app_id=app_id))
    return answer.secrets if answer.HasField("secrets") else None


async def version_of(feed: Feed) -> tuple[int, list[bytes]]:
    record = await secrets_of(feed)
    assert record is not None
    return record.version, [entry.sealed for entry in record.secrets]


async def test_secrets_are_there_as_they_came_until_they_are_deleted(feed: Feed) -> None:
    assert await secrets_of(feed) is None
    assert await feed.send(secrets(1, A=b"one", B=b"")) == 1
    record = await secrets_of(feed)
    assert record == secrets(1, A=b"one", B=b"").secrets
    gone = catalog.CatalogRecord(secrets=SecretsRecord(app_id="a1", deleted=True))
    assert await feed.send(gone, gone) == 1
    assert await secrets_of(feed) is None
    # What was asked for before the deletion, and comes after it, brings nothing back.
    await feed.put(secrets(2, A=b"late"))
    assert await secrets_of(feed) is None


async def test_an_older_version_of_secrets_changes_nothing_whichever_way_it_comes(feed: Feed) -> None:
    await feed.send(secrets(1, A=b"one"))
    await feed.put(secrets(3, A=b"three"))
    assert await version_of(feed) == (3, [b"three"])
    assert await feed.send(secrets(2, A=b"two"), secrets(3, A=b"three, sealed again")) == 0
    await feed.put(secrets(2, A=b"two"))
    assert await version_of(feed) == (3, [b"three"])
    assert await feed.send(secrets(4, A=b"four")) == 1
    assert await version_of(feed) == (4, [b"four"])


async def test_secrets_go_back_only_from_the_version_that_was_seen(feed: Feed) -> None:
    await feed.send(secrets(5, A=b"five"))
    assert await feed.send(secrets(5, replaces=4, A=b"other key")) == 0
    assert await feed.send(secrets(5, replaces=5, A=b"other key")) == 1
    assert await version_of(feed) == (5, [b"other key"])
    assert await feed.send(secrets(2, replaces=5, A=b"two")) == 1
    assert await version_of(feed) == (2, [b"two"])
    record = await secrets_of(feed)
    assert record is not None
    assert (record.replaces_version, list(record.history)) == (0, [])


async def test_the_versions_before_are_kept_without_values_and_not_for_ever(feed: Feed) -> None:
    for version in range(1, 14):
        await feed.send(secrets(version, A=f"value {version}".encode()))
    record = await secrets_of(feed)
    assert record is not None
    assert [old.version for old in record.history] == list(range(12, 2, -1))
    (entry,) = record.history[0].secrets
    assert (entry.name, entry.digest, entry.sealed, entry.key_id) == ("A", "d-value 12", b"", "")


async def test_a_watch_brings_secrets_of_the_app_that_it_asks_for_without_their_history(feed: Feed) -> None:
    before = await feed.put()
    await feed.send(secrets(1, A=b"one"), secrets(1, "a2", B=b"other"), secrets(2, A=b"two"))
    newest = await feed.put()
    wanted = pb.WatchFilter(kinds=[pb.RECORD_KIND_SECRETS], app_id="a1")
    for request in (pb.WatchRequest(filter=wanted), pb.WatchRequest(filter=wanted, from_revision=before)):
        seen: list[SecretsRecord] = []
        async for response in feed.store.stub.Watch(request, timeout=20):
            seen += [change.secrets for change in response.changes]
            if response.revision >= newest:
                break
        assert [(each.app_id, len(each.history)) for each in seen] == [("a1", 0)] * len(seen)
        assert seen[-1] == secrets(2, A=b"two").secrets


async def test_secrets_without_an_app_or_with_a_nul_in_a_name_are_refused(feed: Feed) -> None:
    with pytest.raises(InvalidConfig, match="app_id is missing"):
        await feed.send(secrets(1, ""))
    named = secrets(1, A=b"one")
    named.secrets.secrets[0].name = "A\0"
    with pytest.raises(InvalidConfig, match=r"secrets\[0\].name"):
        await feed.put(named)
