"""Private addresses of machines."""

from __future__ import annotations

from hashlib import sha256

from skerry.store.v1.store_pb2 import AppRecord

_NUMBER_BITS = 20

APPS_DOMAIN = "apps.skerry.internal"
"""Domain of the host names of apps, unless another one is set."""


def network_of(app: AppRecord) -> str:
    """The private network of an app: its organization's own, as two organizations may call theirs the same."""
    return f"{app.organization_slug}/{app.network}"


def private_ip(network: str, cell: str, worker_number: int, machine_id: str) -> str:
    """The private IPv6 address of a machine, in eight written-out groups: fdaa:NNNN:NNNN:WWWW:WWWW:MMMM:MMMM:MMMM.

    N stands for the network, the same in every cell; W for the worker, unique in the world: its cell (12 bits), then
    its number in the cell (20 bits); M are the last twelve digits of the machine's id. Raises ValueError for a cell or
    an id that is not hexadecimal, and for a number that does not fit.
    """
    if not 0 <= worker_number < 1 << _NUMBER_BITS:
        raise ValueError(f"worker number {worker_number} does not fit into {_NUMBER_BITS} bits")
    prefix = sha256(network.encode()).hexdigest()[:8]
    worker = f"{int(cell, 16) << _NUMBER_BITS | worker_number:08x}"
    machine = f"{int(machine_id, 16):x}"[-12:].rjust(12, "0")
    digits = prefix + worker + machine
    return ":".join(["fdaa", *(digits[at : at + 4] for at in range(0, len(digits), 4))])
