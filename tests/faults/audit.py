"""What must hold whatever was killed: what was acknowledged, the store's books and the processes here agree."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from skerry.store.v1 import store_pb2, store_pb2_grpc
from skerry.types.v1 import machine_pb2

from services.cli.mesh import MACHINE_STORE, Mesh
from services.runtime.channels import connect
from services.runtime.resources import to_vector
from tests.e2e.meshes import running_with

STARTED = machine_pb2.MACHINE_STATE_STARTED


@dataclass(frozen=True, slots=True)
class Books:
    """The store's machines that are not destroyed, and its workers."""

    machines: tuple[store_pb2.MachineRecord, ...]
    workers: tuple[store_pb2.WorkerRecord, ...]


async def read_books(mesh: Mesh, region: str = "syd") -> Books:
    """Ask the store itself. Raises SkerryError."""
    caller = f"{mesh.cell(region)}/cli"
    addresses = mesh.addresses(region, MACHINE_STORE)
    async with connect(addresses, caller=caller, callee=MACHINE_STORE, secret=mesh.secret) as channel:
        store = store_pb2_grpc.MachineStoreStub(channel)
        request = store_pb2.ListMachinesRequest(view=store_pb2.MACHINE_VIEW_BASIC)
        machines = [machine async for answer in store.ListMachines(request) for machine in answer.machines]
        workers = (await store.ListWorkers(store_pb2.ListWorkersRequest())).workers
    return Books(tuple(machines), tuple(workers))


def assert_each_exists_once(books: Books, acknowledged: Mapping[str, str]) -> None:
    """Every acknowledged machine (name to id) is there, under its name, and nothing beside it."""
    names = Counter(machine.name for machine in books.machines)
    assert [name for name, times in names.items() if times > 1] == [], "doubled"
    there = {machine.name: machine.id for machine in books.machines}
    assert {name: id for name, id in acknowledged.items() if there.get(name) != id} == {}, "acknowledged and lost"
    assert set(there) - set(acknowledged) == set(), "never acknowledged"


def assert_reservations_add_up(books: Books) -> None:
    """What each worker has reserved is what its machines need, and no more than it has."""
    needed: defaultdict[str, list[int]] = defaultdict(lambda: [0] * len(to_vector(store_pb2.WorkerRecord().reserved)))
    for machine in books.machines:
        needed[machine.worker_id] = [
            sum(pair) for pair in zip(needed[machine.worker_id], to_vector(machine.reserved), strict=True)
        ]
    for worker in books.workers:
        assert to_vector(worker.reserved) == needed[worker.id], f"reserved on {worker.id}"
        fits = zip(to_vector(worker.reserved), to_vector(worker.capacity), strict=True)
        assert all(reserved <= capacity for reserved, capacity in fits), f"capacity of {worker.id}"
    assert set(needed) <= {worker.id for worker in books.workers}


def assert_each_runs_once(books: Books, marker: str) -> None:
    """Every machine is started, and runs as exactly one process; `marker` holds its name in its environment."""
    states = Counter(machine_pb2.MachineState.Name(machine.state) for machine in books.machines)
    assert set(states) <= {"MACHINE_STATE_STARTED"}, states
    running = {name: len(pids) for name, pids in running_with(marker).items()}
    assert running == {machine.name: 1 for machine in books.machines}
