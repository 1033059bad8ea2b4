"""Leases on machines: who may change one, judged by the time of the store's database.

A lease lies in its machine's record, and whoever writes that says which revision of it was read: so two cannot take one
lease, and a change that another lease has come before is judged again.
"""

from __future__ import annotations

from datetime import datetime

from google.protobuf.duration_pb2 import Duration
from skerry.store.v1.store_pb2 import Lease, MachineRecord, NewLease

from services.machine_store.records import check_text, from_timestamp, timestamp
from services.runtime.errors import InvalidConfig, LeaseHeld, NotFound, Violation

LONGEST_SECONDS = 86_400


def held(record: MachineRecord, now: datetime) -> Lease | None:
    """The lease that is held on a machine; None when there is none, or it has ended."""
    if not record.HasField("lease") or from_timestamp(record.lease.expires_at) <= now:
        return None
    return record.lease


def check(record: MachineRecord, nonce: str, now: datetime) -> None:
    """Raise LeaseHeld, naming holder and expiry, when another lease is held than that of `nonce`."""
    lease = held(record, now)
    if lease is not None and lease.nonce != nonce:
        raise _held(record, lease)


def take(record: MachineRecord, wanted: NewLease, now: datetime, *, held_nonce: str = "") -> None:
    """Let `record` have the lease that is wanted: a new one, or that of `held_nonce`, which keeps its nonce.

    One that has ended can still be refreshed while nobody else has taken one.
    Raises LeaseHeld; InvalidConfig for a lease that cannot be.
    """
    seconds = _seconds(wanted.ttl)
    check(record, held_nonce, now)
    lease = Lease(nonce=wanted.nonce, owner=wanted.owner, description=wanted.description)
    if held_nonce and record.lease.nonce == held_nonce:
        lease.nonce = held_nonce
        lease.description = wanted.description or record.lease.description
    check_text(nonce=lease.nonce, owner=lease.owner, description=lease.description)
    if not lease.nonce:
        raise InvalidConfig("lease.nonce is missing", violations=[Violation("lease.nonce", "is missing")])
    lease.expires_at.CopyFrom(timestamp(now))
    lease.expires_at.seconds += seconds
    lease.instance_id = record.instance_id
    record.lease.CopyFrom(lease)


def give_back(record: MachineRecord, nonce: str, now: datetime, *, force: bool = False) -> Lease:
    """Take the lease off `record`, which `force` does whoever holds it; the lease that was held.

    Raises NotFound when none is, LeaseHeld for another one than that of `nonce`.
    """
    lease = held(record, now)
    if lease is None:
        raise NotFound(f"nobody holds a lease on machine {record.id}")
    if not force:
        check(record, nonce, now)
    given_back = Lease()
    given_back.CopyFrom(lease)
    record.ClearField("lease")
    return given_back


def until(lease: Lease) -> str:
    """When a lease ends, as people read it."""
    return from_timestamp(lease.expires_at).isoformat(timespec="seconds").replace("+00:00", "Z")


def _seconds(ttl: Duration) -> int:
    if not (1 <= ttl.seconds <= LONGEST_SECONDS) or ttl.nanos:
        why = f"must be 1..{LONGEST_SECONDS} whole seconds"
        raise InvalidConfig(f"ttl {why}", violations=[Violation("ttl", why)])
    return ttl.seconds


def _held(record: MachineRecord, lease: Lease) -> LeaseHeld:
    purpose = f" ({lease.description})" if lease.description else ""
    return LeaseHeld(
        f"machine {record.id} is leased by {lease.owner or 'somebody'}{purpose} until {until(lease)}: "
        "send the lease's nonce as fly-machine-lease-nonce, or wait",
        metadata={"machine_id": record.id, "owner": lease.owner, "expires_at": until(lease)},
    )
