"""Metadata of machines, which change without a new version."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from skerry.store.v1 import store_pb2 as store

from gateway.leases import shown_nonce
from gateway.surroundings import Surroundings
from services.runtime.errors import NotFound


async def get_all(around: Surroundings, app: store.AppRecord, machine_id: str) -> Mapping[str, str]:
    """All entries of a machine. Raises NotFound."""
    request = store.GetMachineRequest(machine_id=machine_id, app_id=app.id)
    return (await around.retries(lambda: around.store.GetMachine(request))).machine.config.metadata


async def get_one(around: Surroundings, app: store.AppRecord, machine_id: str, key: str) -> Mapping[str, str]:
    """The entry of that key alone. Raises NotFound when it is not there, or no such machine."""
    entries = await get_all(around, app, machine_id)
    if key not in entries:
        raise NotFound(f"machine {machine_id} has no metadata {key[:64]!r}")
    return {key: entries[key]}


async def change(
    around: Surroundings,
    app: store.AppRecord,
    machine_id: str,
    *,
    entries: Mapping[str, str] | None = None,
    delete: Sequence[str] = (),
) -> None:
    """Set and delete entries. Raises NotFound, LeaseHeld, WrongState, InvalidConfig of the field `metadata`."""
    request = store.ChangeMetadataRequest(
        machine_id=machine_id, app_id=app.id, set=entries, delete=delete, lease_nonce=shown_nonce()
    )
    await around.retries(lambda: around.store.ChangeMetadata(request))
