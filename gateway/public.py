"""Machines as users see them."""

from __future__ import annotations

from collections.abc import Sequence

from skerry.machines.v1 import machines_pb2 as api
from skerry.store.v1.store_pb2 import AppRecord, MachineRecord
from skerry.types.v1.config_pb2 import MachineConfig
from skerry.types.v1.machine_pb2 import MachineEvent
from skerry.types.v1.spec_pb2 import ImageSpec

from services.runtime.addresses import network_of, private_ip


def public_machine(
    machine: MachineRecord,
    app: AppRecord,
    *,
    cell: str,
    config: MachineConfig | None = None,
    image: ImageSpec | None = None,
    events: Sequence[MachineEvent] = (),
    nonce: str = "",
) -> api.Machine:
    """The machine of a record. `config` and `image` are those of its version, where the record does not hold them.

    `nonce` is that of the lease that was taken with its creation.
    """
    if config is None and machine.HasField("config"):
        config = machine.config
    if image is None:
        image = machine.spec.image
    return api.Machine(
        id=machine.id,
        name=machine.name,
        state=machine.state,
        region=machine.region,
        image_ref=api.MachineImageRef(
            registry=image.registry, repository=image.repository, tag=image.tag, digest=image.digest
        ),
        instance_id=machine.instance_id,
        version=machine.instance_id,
        private_ip=_address(machine, app, cell),
        created_at=machine.created_at,
        updated_at=machine.updated_at,
        config=config,
        events=events,
        checks=machine.checks,
        host_status=machine.host_status,
        cordoned=machine.cordoned,
        nonce=nonce,
        reason=machine.reason,
    )


def _address(machine: MachineRecord, app: AppRecord, cell: str) -> str:
    if not machine.worker_number:
        return ""
    return private_ip(network_of(app), cell, machine.worker_number, machine.id)
