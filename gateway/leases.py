"""Leases on machines: while one is held, only who sends its nonce changes the machine."""

from __future__ import annotations

from random import Random

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from skerry.machines.v1 import machines_pb2 as api
from skerry.store.v1 import store_pb2 as store

from gateway.auth import Right, current_principal, insist_on
from gateway.surroundings import Surroundings
from services.runtime.errors import InvalidConfig, LeaseHeld, NotFound, Violation
from services.runtime.registry import current_call

NONCE_KEY = "fly-machine-lease-nonce"
"""Header, and metadata, in which the holder of a lease shows its nonce."""
DEFAULT_SECONDS = 30
LONGEST_SECONDS = 86_400
_NONCE_BITS = 64


def shown_nonce() -> str:
    """The nonce that comes with the call which is being served; empty without one."""
    call = current_call()
    return str(call.metadata.get(NONCE_KEY, "")) if call is not None else ""


def ttl_violation(field: str, seconds: int) -> Violation | None:
    """What is wrong with a lease of `seconds`, 0 for the default; None when nothing is."""
    if 0 <= seconds <= LONGEST_SECONDS:
        return None
    return Violation(field, f"must be 1..{LONGEST_SECONDS} seconds")


def check_lease(machine: store.MachineRecord) -> None:
    """Raise LeaseHeld when somebody else than the caller holds a lease on a machine that the store has just shown.

    For what changes nothing that the store keeps; of the rest it judges itself.
    """
    lease = machine.lease
    if machine.HasField("lease") and lease.nonce != shown_nonce():
        until = lease.expires_at.ToJsonString()[:19] + "Z"
        raise LeaseHeld(
            f"machine {machine.id} is leased by {lease.owner or 'somebody'} until {until}: "
            f"send the lease's nonce as {NONCE_KEY}, or wait",
            metadata={"machine_id": machine.id, "owner": lease.owner, "expires_at": until},
        )


def new_lease(random: Random, seconds: int, description: str = "") -> store.NewLease:
    """A lease of the caller's, with a new nonce."""
    return store.NewLease(
        nonce=f"{random.getrandbits(_NONCE_BITS):016x}",
        owner=caller(),
        description=description,
        ttl=Duration(seconds=seconds),
    )


def caller() -> str:
    """Who is calling, as leases and events name it."""
    principal = current_principal.get()
    return principal.name if principal is not None else ""


async def get(around: Surroundings, app: store.AppRecord, machine_id: str) -> api.MachineLease:
    """The lease that is held on a machine. Raises NotFound when there is none, or no such machine."""
    request = store.GetMachineRequest(machine_id=machine_id, app_id=app.id)
    machine = (await around.retries(lambda: around.store.GetMachine(request))).machine
    if not machine.HasField("lease"):
        raise NotFound(f"nobody holds a lease on machine {machine_id}")
    return _public(machine.lease)


async def acquire(
    around: Surroundings, app: store.AppRecord, request: api.AcquireMachineLeaseRequest
) -> api.MachineLease:
    """Take a lease, or refresh the one whose nonce came with the call.

    Raises NotFound, LeaseHeld, WrongState, InvalidConfig of the field `ttl`.
    """
    if (violation := ttl_violation("ttl", request.ttl)) is not None:
        raise InvalidConfig(f"{violation.field} {violation.why}", violations=[violation])
    write = store.AcquireLeaseRequest(
        machine_id=request.machine_id,
        app_id=app.id,
        lease=new_lease(around.random, request.ttl or DEFAULT_SECONDS, request.description),
        held_nonce=shown_nonce(),
    )
    # With a nonce of its own, a request whose answer was lost can be repeated.
    return _public((await around.retries(lambda: around.store.AcquireLease(write))).lease)


async def release(
    around: Surroundings, app: store.AppRecord, request: api.ReleaseMachineLeaseRequest
) -> api.MachineLease:
    """Give a lease back; with force, whoever holds it. Raises NotFound when none is held, LeaseHeld, Forbidden."""
    if request.force:
        insist_on(Right.BREAK_LEASES)
    write = store.ReleaseLeaseRequest(
        machine_id=request.machine_id,
        app_id=app.id,
        held_nonce=shown_nonce(),
        force=request.force,
        who=caller(),
    )
    return _public((await around.store.ReleaseLease(write)).lease)


def _public(lease: store.Lease) -> api.MachineLease:
    return api.MachineLease(
        status="success",
        data=api.MachineLeaseData(
            nonce=lease.nonce,
            # Whole seconds, and none that the lease does not last.
            expires_at=Timestamp(seconds=lease.expires_at.seconds),
            owner=lease.owner,
            version=lease.instance_id,
            description=lease.description,
        ),
    )
