"""The centre's changes as the region's records: one by one, as a whole, and when they delete too much."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from skerry.store.v1.catalog_pb2 import ImageAliasRecord, OrganizationRecord
from skerry.store.v1.catalog_store_pb2 import CatalogRecord
from skerry.store.v1.store_pb2 import AppRecord

from services.central_sync.central_client import Change
from services.central_sync.records import (
    Catalog,
    catalog_of,
    differences,
    plain,
    record_of,
    records_of,
    too_many_deletions,
)

ORGANIZATION: dict[str, Any] = {
    "id": "o1",
    "internal_numeric_id": 1,
    "slug": "acme",
    "name": "Acme",
    "type": "SHARED",
    "paid_plan": True,
    "billable": True,
}
LIMITS: dict[str, Any] = {
    "organization_id": "o1",
    "organization_slug": "acme",
    "cpus": 4,
    "memory_mb": 2,
    "gpus": None,
    "machines": 10,
}


def app(number: int) -> Change:
    payload = {
        "id": f"a{number}",
        "internal_numeric_id": number,
        "name": f"app-{number}",
        "organization_id": "o1",
        "organization_slug": "acme",
        "network": "default",
        "role": "app",
        "home_cell": "001",
        "status": "pending",
        "created_at": 1_700_000_000.25,
    }
    return Change(number, "app", f"a{number}", payload)


def with_apps(count: int) -> Catalog:
    return Catalog(apps={f"a{number}": AppRecord(id=f"a{number}") for number in range(count)})


def gone(*numbers: int) -> list[CatalogRecord]:
    return [CatalogRecord(app=AppRecord(id=f"a{number}", deleted=True)) for number in numbers]


def hold(records: list[CatalogRecord], present: Catalog) -> str:
    return too_many_deletions(records, present, share=0.05, count=10)


def test_an_app_comes_with_all_that_the_region_keeps() -> None:
    record = record_of(app(3), {})
    assert record is not None
    assert (record.app.id, record.app.name, record.app.app_role, record.app.home_cell) == ("a3", "app-3", "app", "001")
    assert record.app.created_at.ToMilliseconds() == 1_700_000_000_250


def test_limits_change_what_is_there_of_their_organization() -> None:
    made = records_of([Change(1, "organization", "o1", ORGANIZATION), Change(2, "limits", "o1", LIMITS)], {})
    assert made[1] is not None
    organization = made[1].organization
    assert (organization.slug, organization.paid_plan) == ("acme", True)
    assert (organization.limits.max_cpus, organization.limits.max_memory_bytes) == (4, 2 << 20)
    renamed = Change(3, "organization", "o1", {**ORGANIZATION, "name": "Acme Ltd"})
    again = record_of(renamed, {"o1": organization})
    assert again is not None
    assert (again.organization.name, again.organization.limits.max_cpus) == ("Acme Ltd", 4)


def test_limits_of_an_organization_that_is_not_there_make_no_record() -> None:
    assert record_of(Change(1, "limits", "o1", LIMITS), {}) is None


@pytest.mark.parametrize("kind", ["secrets", "something_new"])
def test_kinds_that_the_region_does_not_keep_are_passed_over(kind: str) -> None:
    assert record_of(Change(1, kind, "x", {"value": "hidden"}), {}) is None


def test_a_record_that_lacks_something_is_refused_by_name_and_without_its_content() -> None:
    with pytest.raises(ValueError, match="the app 'a1'") as caught:
        record_of(Change(1, "app", "a1", {"id": "a1", "name": "very-private"}), {})
    assert "very-private" not in str(caught.value)


def test_a_snapshot_puts_limits_to_their_organizations_in_whatever_order_they_come() -> None:
    catalog = catalog_of([Change(1, "limits", "o1", LIMITS), app(1), Change(2, "organization", "o1", ORGANIZATION)])
    assert catalog.organizations["o1"].limits.max_machines == 10
    assert catalog.apps.keys() == {"a1"}


def test_no_limits_are_the_same_whether_they_are_empty_or_missing() -> None:
    catalog = Catalog()
    empty = OrganizationRecord(id="o1")
    empty.limits.SetInParent()
    catalog.take(empty)
    assert differences(catalog, Catalog(organizations={"o1": OrganizationRecord(id="o1")})) == []


records = st.builds(
    lambda apps, organizations, aliases: Catalog(
        apps={key: AppRecord(id=key, name=name) for key, name in apps.items()},
        organizations={key: OrganizationRecord(id=key, name=name) for key, name in organizations.items()},
        image_aliases={key: ImageAliasRecord(alias=key, reference=name) for key, name in aliases.items()},
    ),
    *(st.dictionaries(st.sampled_from("abcdef"), st.sampled_from("xyz")) for _ in range(3)),
)


@given(records, records)
def test_the_differences_make_one_catalog_the_other_and_are_no_more_than_needed(
    present: Catalog, wanted: Catalog
) -> None:
    changed = differences(present, wanted)
    became = Catalog(dict(present.apps), dict(present.organizations), dict(present.image_aliases))
    for record in changed:
        became.take(plain(record))
    assert became == wanted
    assert differences(wanted, wanted) == []
    unchanged = sum(
        1
        for before, after in (
            (present.apps, wanted.apps),
            (present.organizations, wanted.organizations),
            (present.image_aliases, wanted.image_aliases),
        )
        for key in {*before, *after}
        if before.get(key) == after.get(key)
    )
    touched = {*present.apps, *wanted.apps}, {*present.organizations, *wanted.organizations}
    total = sum(map(len, touched)) + len({*present.image_aliases, *wanted.image_aliases})
    assert len(changed) == total - unchanged


@pytest.mark.parametrize(
    ("present", "deleted", "held"),
    [(20, 9, False), (20, 10, True), (200, 10, False), (200, 11, True), (10, 10, True), (1_000, 50, False)],
)
def test_more_than_a_share_and_ten_at_least_are_too_many(present: int, deleted: int, held: bool) -> None:
    reason = hold(gone(*range(deleted)), with_apps(present))
    assert bool(reason) == held
    if held:
        assert reason == f"they delete {deleted} of {present} apps"


def test_what_is_not_there_or_comes_back_is_not_deleted() -> None:
    present = with_apps(20)
    assert not hold(gone(*range(100, 150)), present)
    back = [CatalogRecord(app=AppRecord(id=f"a{number}")) for number in range(5)]
    assert not hold([*gone(*range(12)), *back], present)
    assert hold([*back, *gone(*range(12))], present)


def test_organizations_count_by_themselves() -> None:
    present = Catalog(organizations={f"o{n}": OrganizationRecord(id=f"o{n}") for n in range(30)})
    deleted = [CatalogRecord(organization=OrganizationRecord(id=f"o{n}", deleted=True)) for n in range(10)]
    assert hold([*deleted, *gone(*range(9))], present) == "they delete 10 of 30 organizations"
