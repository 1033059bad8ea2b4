from __future__ import annotations

import asyncio

import pytest
from skerry.handover.v1.plan_pb2 import Plan
from skerry.store.v1.catalog_pb2 import ImageAliasRecord, OrganizationLimits, OrganizationRecord
from skerry.store.v1.store_pb2 import AppRecord, Change, WatchResponse

from services.config_converter.catalog import Catalog
from services.config_converter.part import Limits
from tests.unit.config_converter.plans import plan_of


def catalog() -> tuple[Catalog, list[int]]:
    epochs: list[int] = []

    def on_plan(plan: Plan) -> None:
        epochs.append(plan.epoch)

    return Catalog(on_plan), epochs


def app(name: str, app_id: str = "a1", *, deleted: bool = False) -> Change:
    return Change(app=AppRecord(id=app_id, name=name, organization_slug="acme", deleted=deleted))


def organization(slug: str, *, deleted: bool = False, **limits: int) -> Change:
    record = OrganizationRecord(id="o1", slug=slug, limits=OrganizationLimits(**limits), deleted=deleted)
    return Change(organization=record)


def alias(name: str, reference: str = "r/app:7", *, digest: str = "", deleted: bool = False) -> Change:
    return Change(image_alias=ImageAliasRecord(alias=name, reference=reference, digest=digest, deleted=deleted))


def happened(view: Catalog, *changes: Change) -> None:
    view(WatchResponse(changes=changes))


def begins_anew(view: Catalog, *changes: Change) -> None:
    view.reset()
    view(WatchResponse(changes=changes, snapshot=True, snapshot_complete=True))


def test_a_plan_is_applied_once_and_never_an_older_one() -> None:
    view, epochs = catalog()
    for epoch in (3, 2, 3, 5):
        happened(view, Change(plan=plan_of(epoch=epoch)))
    view.use(plan_of(epoch=4))
    begins_anew(view, Change(plan=plan_of(epoch=5)))
    assert epochs == [3, 5]
    assert view.epoch == 5


async def test_whoever_waits_for_an_epoch_goes_on_with_it_or_a_later_one() -> None:
    view, _ = catalog()
    waiting = [asyncio.ensure_future(view.until(epoch)) for epoch in (2, 3, 4)]
    await asyncio.sleep(0)
    happened(view, Change(plan=plan_of(epoch=3)))
    await asyncio.gather(*waiting[:2])
    assert not waiting[2].done()
    waiting[2].cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting[2]
    happened(view, Change(plan=plan_of(epoch=9)))
    await view.until(9)


def test_limits_are_those_of_the_organization_and_nothing_is_no_bound() -> None:
    view, _ = catalog()
    begins_anew(view, organization("acme", max_cpus=4, max_memory_bytes=1 << 30))
    assert view.facts_of("acme").limits == Limits(cpus=4, memory_mb=1024, gpus=None)
    assert view.facts_of("other").limits == Limits()
    happened(view, organization("acme", max_gpus=1))
    assert view.facts_of("acme").limits == Limits(gpus=1)
    happened(view, organization("acme-two", max_gpus=2))
    assert view.facts_of("acme").limits == Limits()
    assert view.facts_of("acme-two").limits == Limits(gpus=2)
    happened(view, organization("acme-two", deleted=True))
    assert view.facts_of("acme-two").limits == Limits()


def test_aliases_stand_for_references_with_their_digests() -> None:
    view, _ = catalog()
    before = view.facts_of("")
    begins_anew(view, alias("a"), alias("b", digest="sha256:1"), alias("c", "r/app@sha256:2", digest="sha256:2"))
    facts = view.facts_of("")
    assert facts.image_aliases == {"a": "r/app:7", "b": "r/app:7@sha256:1", "c": "r/app@sha256:2"}
    happened(view, alias("a", deleted=True))
    assert set(view.facts_of("").image_aliases) == {"b", "c"}
    # Facts are what they were when a conversion was made with them.
    assert set(facts.image_aliases) == {"a", "b", "c"}
    assert not before.image_aliases


def test_facts_are_made_once_until_something_of_them_changes() -> None:
    view, _ = catalog()
    begins_anew(view, organization("acme"), alias("a"))
    facts = view.facts_of("acme")
    happened(view, app("web"))
    assert view.facts_of("acme") is facts
    happened(view, alias("b"))
    assert view.facts_of("acme") is not facts


def test_a_name_is_the_apps_that_has_it_now() -> None:
    view, _ = catalog()
    happened(view, app("web", "a1"), app("web", "a2"), app("web", "a1", deleted=True))
    found = view.app("web")
    assert found is not None
    assert found.id == "a2"
    happened(view, app("web", "a2", deleted=True))
    assert view.app("web") is None


def test_while_a_state_comes_anew_the_old_one_answers() -> None:
    view, _ = catalog()
    begins_anew(view, app("old"), organization("acme", max_cpus=1))
    view.reset()
    view(WatchResponse(changes=[app("new")], snapshot=True))
    assert view.app("old")
    assert view.app("new") is None
    assert view.facts_of("acme").limits.cpus == 1
    view(WatchResponse(snapshot=True, snapshot_complete=True))
    assert view.app("old") is None
    assert view.app("new")
    assert view.facts_of("acme").limits == Limits()


def test_a_limit_of_nothing_is_a_bound_and_one_that_is_not_set_is_none() -> None:
    view, _ = catalog()
    happened(view, organization("acme", max_gpus=0, max_memory_bytes=0))
    limits = view.facts_of("acme").limits
    assert (limits.cpus, limits.memory_mb, limits.gpus) == (None, 0, 0)
