"""Inside machines that run: commands, processes and signals, asked of the worker that has the machine."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from signal import NSIG, Signals
from typing import TYPE_CHECKING, Any

import grpc
from google.protobuf.duration_pb2 import Duration
from skerry.machines.v1 import machines_pb2 as api
from skerry.store.v1 import store_pb2 as store
from skerry.types.v1.machine_pb2 import MACHINE_STATE_STARTED, MachineState
from skerry.worker.v1 import worker_pb2 as worker
from skerry.worker.v1.worker_pb2_grpc import WorkerStub

from gateway.fleet import Fleet
from gateway.leases import check_lease
from gateway.machines import no_machine
from gateway.names import is_machine_id
from gateway.surroundings import Surroundings
from services.runtime.errors import DependencyDown, InvalidConfig, NotFound, Violation, WrongState

if TYPE_CHECKING:
    from skerry.worker.v1.worker_pb2_grpc import WorkerAsyncStub

EXEC_SECONDS = 30
MOST_EXEC_SECONDS = 60
CALL_SECONDS = 5.0
"""How long a worker may take to answer, beside what a command takes."""
RETRY_AFTER_SECONDS = 1.0

SORT_KEYS: Mapping[str, Callable[[api.ProcessStat], Any]] = {
    name: attrgetter(name) for name in ("pid", "cpu", "rss", "rtime", "stime", "command")
}
ORDERS: Mapping[str, bool] = {"": False, "asc": False, "desc": True}
"""Order to whether the largest comes first."""

Connect = Callable[[str], grpc.aio.Channel]
"""Makes a channel to the worker service at an address."""


class WorkerChannels:
    """Channels to the workers of the cell, one for each address, made when they are first needed."""

    def __init__(self, fleet: Fleet, connect: Connect) -> None:
        self._fleet = fleet
        self._connect = connect
        self._channels: dict[str, grpc.aio.Channel] = {}

    def stub(self, worker_id: str) -> WorkerAsyncStub:
        """What calls a worker. Raises DependencyDown for one whose address is not known here."""
        record = self._fleet.get(worker_id)
        if record is None or not record.address:
            raise worker_down(worker_id, "its address is not known here")
        channel = self._channels.get(record.address)
        if channel is None:
            channel = self._channels[record.address] = self._connect(record.address)
        stub: WorkerAsyncStub = WorkerStub(channel)
        return stub

    async def close(self) -> None:
        """Close the channels."""
        channels, self._channels = list(self._channels.values()), {}
        await asyncio.gather(*(channel.close() for channel in channels))


async def exec_machine(
    around: Surroundings, workers: WorkerChannels, request: api.ExecMachineRequest
) -> api.ExecMachineResponse:
    """Run a command inside a machine that runs.

    One that takes too long is killed, with status 137, and its stderr says so. An output that the worker has cut is
    marked as such.
    Raises NotFound, WrongState, InvalidConfig, DependencyDown naming the worker.
    """
    violations: list[Violation] = []
    if not request.cmd:
        violations.append(Violation("cmd", "is missing: name the command to run"))
    if "\0" in request.cmd:
        violations.append(Violation("cmd", "must not hold the character NUL"))
    if not 0 <= request.timeout <= MOST_EXEC_SECONDS:
        violations.append(Violation("timeout", f"must be 1..{MOST_EXEC_SECONDS} seconds, is {request.timeout}"))
    if violations:
        raise _invalid(violations)
    machine = await _running(around, request.app_name, request.machine_id, "exec")
    _check_container(machine, request)
    seconds = request.timeout or EXEC_SECONDS
    call = worker.ExecRequest(
        machine_id=machine.id, command=request.cmd, stdin=request.stdin.encode(), timeout=Duration(seconds=seconds)
    )
    ran: worker.ExecResponse = await _ask(workers, machine, "Exec", call, seconds + CALL_SECONDS)
    complaints = ran.stderr.decode(errors="replace")
    if ran.timed_out:
        complaints += f"the command was killed: it was not done within its timeout of {seconds} s\n"
    return api.ExecMachineResponse(
        exit_code=ran.exit_code,
        stdout=ran.stdout.decode(errors="replace"),
        stderr=complaints,
        stdout_truncated=ran.stdout_truncated,
        stderr_truncated=ran.stderr_truncated,
    )


async def list_processes(
    around: Surroundings, workers: WorkerChannels, request: api.ListProcessesRequest, now: float
) -> Sequence[api.ProcessStat]:
    """The processes inside a machine that runs, in the wanted order; `now` is in unix seconds.

    Raises NotFound, WrongState, InvalidConfig, DependencyDown naming the worker.
    """
    violations: list[Violation] = []
    if request.sort_by and request.sort_by not in SORT_KEYS:
        violations.append(Violation("sort_by", f"must be one of {', '.join(SORT_KEYS)}, is {request.sort_by[:64]!r}"))
    if request.order not in ORDERS:
        violations.append(Violation("order", f"must be asc or desc, is {request.order[:64]!r}"))
    if violations:
        raise _invalid(violations)
    machine = await _running(around, request.app_name, request.machine_id, "ps")
    call = worker.ListProcessesRequest(machine_id=machine.id)
    listed: worker.ListProcessesResponse = await _ask(workers, machine, "ListProcesses", call, CALL_SECONDS)
    stats = [_stat(process, now) for process in listed.processes]
    return sorted(stats, key=SORT_KEYS[request.sort_by or "pid"], reverse=ORDERS[request.order])


async def signal_machine(around: Surroundings, workers: WorkerChannels, request: api.SignalMachineRequest) -> None:
    """Send a signal to the processes of a machine that runs.

    Raises NotFound, LeaseHeld, WrongState, InvalidConfig, DependencyDown naming the worker.
    """
    number = signal_number(request.signal)
    machine = await _running(around, request.app_name, request.machine_id, "signal")
    check_lease(machine)
    call = worker.SendSignalRequest(machine_id=machine.id, signal=number)
    await _ask(workers, machine, "SendSignal", call, CALL_SECONDS)


def signal_number(text: str) -> int:
    """The number of a signal that is named, "SIGTERM", or given in decimal. Raises InvalidConfig of `signal`."""
    if text.isascii() and text.isdigit() and len(text) <= 3 and 1 <= int(text) < NSIG:
        return int(text)
    try:
        return Signals[text]
    except KeyError:
        why = f"must be the name of a signal, such as SIGTERM, or a number of 1..{NSIG - 1}, is {text[:64]!r}"
        raise _invalid([Violation("signal", why)]) from None


def worker_down(worker_id: str, why: str) -> DependencyDown:
    """The error for a worker that cannot be asked."""
    return DependencyDown(
        f"worker {worker_id} cannot be reached: {why}. What runs there runs on; try again",
        metadata={"dependency": "worker", "worker_id": worker_id},
        retry_after=RETRY_AFTER_SECONDS,
    )


async def _running(around: Surroundings, app_name: str, machine_id: str, verb: str) -> store.MachineRecord:
    """The machine, which runs. Raises NotFound, WrongState."""
    app = await around.apps.resolve(app_name)
    if not is_machine_id(machine_id):
        raise no_machine(machine_id, app_name)
    read = store.GetMachineRequest(machine_id=machine_id, app_id=app.id)
    try:
        machine = (await around.retries(lambda: around.store.GetMachine(read))).machine
    except NotFound:
        raise no_machine(machine_id, app_name) from None
    if machine.state != MACHINE_STATE_STARTED:
        state = MachineState.Name(machine.state).removeprefix("MACHINE_STATE_").lower()
        raise WrongState(
            f"machine {machine_id} is {state}: {verb} is refused then; wait until it is started",
            metadata={"machine_id": machine_id, "state": state, "verb": verb},
        )
    return machine


def _check_container(machine: store.MachineRecord, request: api.ExecMachineRequest) -> None:
    if not request.container:
        return
    names = [container.name for container in machine.spec.containers.containers]
    if request.container not in names:
        has = f"has {', '.join(names)}" if names else "has no containers"
        raise _invalid([Violation("container", f"{request.container[:64]!r} is none of the machine's, which {has}")])


async def _ask(workers: WorkerChannels, machine: store.MachineRecord, method: str, request: Any, seconds: float) -> Any:
    try:
        return await getattr(workers.stub(machine.worker_id), method)(request, timeout=seconds)
    except DependencyDown as error:
        if "worker_id" in error.metadata:
            raise
        raise worker_down(machine.worker_id, error.message) from error
    except NotFound:
        # The store's word came before the worker's: it is there again, or not any more, in a moment.
        raise WrongState(
            f"machine {machine.id} is not on its worker just now: wait until it is started",
            metadata={"machine_id": machine.id},
        ) from None


def _stat(process: worker.Process, now: float) -> api.ProcessStat:
    return api.ProcessStat(
        pid=process.pid,
        stime=process.system_cpu.ToMilliseconds(),
        rtime=max(0, round(now * 1000) - process.started_at.ToMilliseconds()),
        command=" ".join(process.command),
        directory=process.directory,
        cpu=process.cpu.ToMilliseconds(),
        rss=process.resident_bytes,
        listen_sockets=[api.ListenSocket(proto=each.protocol, address=each.address) for each in process.listeners],
    )


def _invalid(violations: Sequence[Violation]) -> InvalidConfig:
    return InvalidConfig("; ".join(f"{v.field} {v.why}" for v in violations), violations=violations)
