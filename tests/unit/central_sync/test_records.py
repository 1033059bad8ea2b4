"""The centre's changes as the region's records: one by one, as a whole, and when they delete too much."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from skerry.store.v1.catalog_pb2 import ImageAliasRecord, OrganizationRecord, SecretsRecord
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
    resealed,
    too_many_deletions,
)
from services.runtime.sealing import Keyring, Sealed

KEYS = Keyring([b"k" * 32])
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


def test_a_limit_of_nothing_is_a_bound_and_null_is_none() -> None:
    organizations = {"o1": OrganizationRecord(id="o1")}
    payload = {**LIMITS, "cpus": None, "memory_mb": 0, "gpus": 0, "machines": None}
    made = record_of(Change(1, "limits", "o1", payload), organizations)
    assert made is not None
    limits = made.organization.limits
    set_ones = {descriptor.name: value for descriptor, value in limits.ListFields()}
    assert set_ones == {"max_memory_bytes": 0, "max_gpus": 0}


def test_limits_of_an_organization_that_is_not_there_make_no_record() -> None:
    assert record_of(Change(1, "limits", "o1", LIMITS), {}) is None


@pytest.mark.parametrize("kind", ["secrets", "something_new"])
def test_kinds_that_the_region_does_not_keep_are_passed_over(kind: str) -> None:
    assert record_of(Change(1, kind, "x", {"value": "hidden"}), {}) is None


def secrets(version: int = 3, **values: str) -> Change:
    entries = [
        {
            "name": name,
            "value": value,
            "digest": f"d{len(value)}",
            "version": version,
            "created_at": 1.5,
            "updated_at": 2.5,
        }
        for name, value in sorted(values.items())
    ]
    return Change(9, "secrets", "a1", {"app_id": "a1", "app_name": "web", "version": version, "secrets": entries})


def opened(record: SecretsRecord, keyring: Keyring) -> dict[str, str]:
    return {e.name: keyring.open(record.app_id, e.name, Sealed(e.key_id, e.sealed)) for e in record.secrets}


def test_secrets_are_sealed_before_they_are_records() -> None:
    record = record_of(secrets(A="hunter2", B=""), {}, KEYS.seal)
    assert record is not None
    made = record.secrets
    assert (made.app_id, made.version, [e.digest for e in made.secrets]) == ("a1", 3, ["d7", "d0"])
    assert made.secrets[0].created_at.ToMilliseconds() == 1_500
    assert opened(made, KEYS) == {"A": "hunter2", "B": ""}
    assert b"hunter2" not in record.SerializeToString()


def test_secrets_of_an_app_that_is_gone_are_deleted() -> None:
    assert record_of(Change(9, "secrets", "a1", None), {}, KEYS.seal) == CatalogRecord(
        secrets=SecretsRecord(app_id="a1", deleted=True)
    )


@pytest.mark.parametrize("broken", [{"value": 17}, {"version": "hunter2"}, {"created_at": "hunter2"}])
def test_secrets_that_are_not_understood_are_refused_without_telling_any_value(broken: dict[str, Any]) -> None:
    change = secrets(A="hunter2")
    assert change.payload is not None
    change.payload["secrets"][0].update(broken)
    with pytest.raises(ValueError, match="the secrets 'a1'") as caught:
        record_of(change, {}, KEYS.seal)
    assert "hunter2" not in str(caught.value)
    assert caught.value.__suppress_context__
    assert "hunter2" not in repr(change)


def test_secrets_differ_by_version_and_digest_and_not_by_how_they_are_sealed() -> None:
    present, again = catalog_of([secrets(A="1")], KEYS.seal), catalog_of([secrets(A="1")], KEYS.seal)
    assert present.secrets["a1"] != again.secrets["a1"]
    assert differences(present, again) == []
    (newer,) = differences(present, catalog_of([secrets(4, A="22")], KEYS.seal))
    assert (newer.secrets.version, newer.secrets.replaces_version) == (4, 0)
    (older,) = differences(present, catalog_of([secrets(2, A="0")], KEYS.seal))
    assert (older.secrets.version, older.secrets.replaces_version) == (2, 3)
    (gone,) = differences(present, Catalog())
    assert gone.secrets == SecretsRecord(app_id="a1", deleted=True)


def test_secrets_under_an_older_key_are_sealed_again_in_their_version() -> None:
    old = Keyring([b"o" * 32])
    made = record_of(secrets(A="1", B="2"), {}, old.seal)
    assert made is not None
    assert resealed([made.secrets], old) == []
    both = Keyring([b"k" * 32, b"o" * 32])
    (again,) = resealed([made.secrets], both)
    assert opened(again.secrets, KEYS) == {"A": "1", "B": "2"}
    assert (again.secrets.version, again.secrets.replaces_version) == (3, 3)
    assert resealed([made.secrets], KEYS) == []  # Nothing opens: it stays as it is.


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
