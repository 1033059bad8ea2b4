"""Leases: who may change a machine, by a clock that is handed in."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from google.protobuf.duration_pb2 import Duration
from skerry.store.v1.store_pb2 import MachineRecord, NewLease

from services.machine_store.leases import LONGEST_SECONDS, check, give_back, held, take
from services.runtime.errors import InvalidConfig, LeaseHeld, NotFound

NOW = datetime(2026, 11, 24, 10, tzinfo=UTC)


def later(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


def wanted(nonce: str, seconds: int = 30, *, owner: str = "ann", description: str = "") -> NewLease:
    return NewLease(nonce=nonce, owner=owner, description=description, ttl=Duration(seconds=seconds))


def leased(nonce: str = "n1", seconds: int = 30, *, description: str = "") -> MachineRecord:
    record = MachineRecord(id="m1", instance_id="v1")
    take(record, wanted(nonce, seconds, description=description), NOW)
    return record


def test_a_machine_that_nobody_leased_is_anybodys_to_change() -> None:
    record = MachineRecord(id="m1")
    check(record, "", NOW)
    check(record, "whatever", NOW)
    assert held(record, NOW) is None


def test_while_a_lease_is_held_only_its_nonce_changes_the_machine_and_the_refusal_names_holder_and_expiry() -> None:
    record = leased(description="deploy 7")
    check(record, "n1", later(29.9))
    for nonce in ("", "n2"):
        with pytest.raises(LeaseHeld, match=r"m1 is leased by ann \(deploy 7\) until 2026-11-24T10:00:30Z") as refused:
            check(record, nonce, later(29.9))
        assert refused.value.metadata == {"machine_id": "m1", "owner": "ann", "expires_at": "2026-11-24T10:00:30Z"}


def test_a_lease_ends_at_its_time_and_not_a_moment_later() -> None:
    record = leased()
    assert held(record, later(29.999)) is not None
    assert held(record, later(30)) is None
    check(record, "", later(30))
    take(record, wanted("n2", owner="bob"), later(30))
    assert (record.lease.nonce, record.lease.owner) == ("n2", "bob")


def test_nobody_takes_a_lease_that_another_holds() -> None:
    record = leased()
    for nonce in ("", "n2"):
        with pytest.raises(LeaseHeld):
            take(record, wanted("n3"), later(1), held_nonce=nonce)
    assert record.lease.nonce == "n1"


def test_a_refreshed_lease_keeps_its_nonce_and_purpose_and_counts_from_now() -> None:
    record = leased(description="deploy")
    record.instance_id = "v2"
    take(record, wanted("n2", 120), later(20), held_nonce="n1")
    assert (record.lease.nonce, record.lease.description, record.lease.instance_id) == ("n1", "deploy", "v2")
    assert held(record, later(139.9)) is not None
    assert held(record, later(140)) is None


def test_a_lease_that_ended_can_be_refreshed_while_nobody_else_took_it() -> None:
    record = leased()
    take(record, wanted("n2"), later(60), held_nonce="n1")
    assert record.lease.nonce == "n1"
    take(record, wanted("n3"), later(120))
    with pytest.raises(LeaseHeld):
        take(record, wanted("n4"), later(121), held_nonce="n1")


def test_a_nonce_that_was_never_given_out_becomes_nobodys() -> None:
    record = MachineRecord(id="m1")
    take(record, wanted("n1"), NOW, held_nonce="made-up")
    assert record.lease.nonce == "n1"


def test_a_lease_is_given_back_by_its_holder_once() -> None:
    record = leased()
    with pytest.raises(LeaseHeld):
        give_back(record, "", NOW)
    assert give_back(record, "n1", NOW).nonce == "n1"
    with pytest.raises(NotFound, match="nobody holds a lease on machine m1"):
        give_back(record, "n1", NOW)


def test_force_takes_a_lease_from_whoever_holds_it() -> None:
    record = leased()
    assert give_back(record, "", NOW, force=True).owner == "ann"
    with pytest.raises(NotFound):
        give_back(record, "", NOW, force=True)


@pytest.mark.parametrize("seconds", [0, -1, LONGEST_SECONDS + 1])
def test_a_lease_of_no_time_or_for_ever_is_refused_with_its_field(seconds: int) -> None:
    with pytest.raises(InvalidConfig) as refused:
        take(MachineRecord(id="m1"), wanted("n1", seconds), NOW)
    assert [violation.field for violation in refused.value.violations] == ["ttl"]
