"""One reconciler leads in a cell: it looks at workers and machines every second and puts right what has drifted.

Any number of instances run; the one that holds the store's lease of the duty acts. Its writes carry the lease's term,
or the generation of the machine they are about, so one that was paused and does not know that it lost the lead does
no harm.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from random import Random
from typing import TYPE_CHECKING

from google.protobuf.duration_pb2 import Duration
from prometheus_client import Counter, Gauge
from skerry.store.v1 import store_pb2
from skerry.types.v1.machine_pb2 import HostStatus, MachineState

from services.runtime import telemetry
from services.runtime.clock import Clock
from services.runtime.duty import Duty, LeadTimes
from services.runtime.errors import Conflict, SkerryError
from services.runtime.telemetry import log
from services.scheduler.reconcile import (
    Action,
    Explain,
    Memory,
    Purge,
    ReconcileSettings,
    Repair,
    SetStatus,
    Start,
    Stuck,
    decide,
)
from services.scheduler.view import View

if TYPE_CHECKING:
    from skerry.store.v1 import store_pb2_grpc

DUTY = "reconcile"
"""Name of the duty in the store."""

_WRITES_AT_ONCE = 16
_LOOK_SECONDS = 2.0
_WRITE_SECONDS = 2.0
_REPAIR_SECONDS = 10.0
_PURGE_SECONDS = 60.0

_stuck_machines = Gauge(
    "skerry_machines_stuck",
    "Machines that pass through a state for too long although their worker can be reached.",
    ["cell"],
    registry=telemetry.metrics,
)
_actions = Counter(
    "skerry_reconciler_actions_total",
    "What the reconciler did, and how it went.",
    ["cell", "action", "outcome"],
    registry=telemetry.metrics,
)


class Leader:
    """Takes the lead when it can, and acts while it has it."""

    def __init__(
        self,
        store: store_pb2_grpc.MachineStoreAsyncStub,
        view: View,
        *,
        cell: str,
        holder: str,
        clock: Clock,
        random: Random,
        lead: LeadTimes | None = None,
        settings: ReconcileSettings | None = None,
    ) -> None:
        """`holder` is what the store knows this instance by: no other one, also no earlier one, may have it."""
        self._store = store
        self._view = view
        self._cell = cell
        self._clock = clock
        self._duty = Duty(DUTY, store, cell=cell, holder=holder, clock=clock, random=random, times=lead)
        self._settings = settings or ReconcileSettings()
        self._memory = Memory()
        self._overruled = False
        self._told: frozenset[tuple[str, int]] = frozenset()
        self._slow: dict[type[Action], asyncio.Task[None]] = {}

    @property
    def term(self) -> int | None:
        """The term this instance leads under; None while it does not, as far as it knows."""
        return self._duty.term

    async def run(self) -> None:
        """Work until cancelled; then give up the lead, so that another need not wait for the lease to end."""
        await self._duty.run(self._work)

    async def _work(self, term: int) -> None:
        self._memory, self._overruled = Memory(), False
        try:
            async with asyncio.TaskGroup() as tasks:
                while not self._overruled:
                    await self._pass(term, tasks)
                    await self._clock.sleep(self._settings.pass_every)
        finally:
            self._slow.clear()
            self._told = frozenset()
            _stuck_machines.labels(self._cell).set(0)

    async def _pass(self, term: int, tasks: asyncio.TaskGroup) -> None:
        try:
            seen = await self._store.ListWorkers(store_pb2.ListWorkersRequest(), timeout=_LOOK_SECONDS)
        except SkerryError as error:
            log.warning("reconciler_cannot_look", why=error.message)
            return
        if self.term != term:
            return
        now = seen.now.seconds + seen.now.nanos / 1e9
        view = self._view
        decision = decide(seen.workers, now, view.fleet, view.watchlist, self._memory, self._settings)
        self._memory = decision.memory
        self._tell_of_stuck(decision.stuck)
        quick = []
        for action in decision.actions:
            if not isinstance(action, Repair | Purge):
                quick.append(action)
            elif (running := self._slow.get(type(action))) is None or running.done():
                self._slow[type(action)] = tasks.create_task(self._carry_out(action, term))
        await self._carry_out_all(quick, term)

    async def _carry_out_all(self, actions: Iterable[Action], term: int) -> None:
        places = asyncio.Semaphore(_WRITES_AT_ONCE)

        async def one(action: Action) -> None:
            async with places:
                await self._carry_out(action, term)

        async with asyncio.TaskGroup() as tasks:
            for action in actions:
                tasks.create_task(one(action))

    async def _carry_out(self, action: Action, term: int) -> None:
        name = type(action).__name__.lower()
        try:
            match action:
                case SetStatus():
                    await self._set_status(action, term)
                case Start():
                    await self._start(action)
                case Explain():
                    await self._explain(action)
                case Repair():
                    await self._repair(term)
                case Purge():
                    await self._purge(term)
        except Conflict as error:
            _actions.labels(self._cell, name, error.reason).inc()
            if not isinstance(action, Start | Explain):
                log.info("reconciler_overruled", term=term, why=error.message)
                self._overruled = True
        except SkerryError as error:
            _actions.labels(self._cell, name, error.reason).inc()
            log.warning("reconciler_action_failed", action=name, subject=_subject(action), why=error.message)
        else:
            _actions.labels(self._cell, name, "ok").inc()

    async def _set_status(self, action: SetStatus, term: int) -> None:
        await self._store.SetWorkerStatus(
            store_pb2.SetWorkerStatusRequest(term=_term(term), worker_id=action.worker_id, status=action.status),
            timeout=_WRITE_SECONDS,
        )
        log.warning(
            "worker_status_changed",
            worker=action.worker_id,
            status=HostStatus.Name(action.status),
            silent_seconds=round(action.silent, 1),
        )

    async def _start(self, action: Start) -> None:
        await self._store.ApplyVerb(
            store_pb2.ApplyVerbRequest(
                machine_id=action.machine_id,
                verb=store_pb2.VERB_START,
                source="flyd",
                expected_generation=action.generation,
            ),
            timeout=_WRITE_SECONDS,
        )
        log.info("machine_started_by_reconciler", machine=action.machine_id, why=action.why)

    async def _explain(self, action: Explain) -> None:
        noted = await self._store.ExplainDelay(
            store_pb2.ExplainDelayRequest(
                machine_id=action.machine_id,
                expected_generation=action.generation,
                expected_state=action.state,
                reason=action.reason,
            ),
            timeout=_WRITE_SECONDS,
        )
        if noted.changed:
            log.warning("machine_not_started_in_time", machine=action.machine_id, why=action.reason)

    async def _repair(self, term: int) -> None:
        mended = await self._store.RepairReservations(
            store_pb2.RepairReservationsRequest(term=_term(term)), timeout=_REPAIR_SECONDS
        )
        if mended.worker_ids:
            log.warning("reservations_repaired", workers=list(mended.worker_ids))

    async def _purge(self, term: int) -> None:
        forgotten = await self._store.PurgeExpired(
            store_pb2.PurgeExpiredRequest(
                term=_term(term),
                log_age=_duration(self._settings.log_age),
                key_age=_duration(self._settings.key_age),
                destroyed_age=_duration(self._settings.destroyed_age),
            ),
            timeout=_PURGE_SECONDS,
        )
        log.info(
            "expired_purged",
            log_entries=forgotten.log_entries,
            keys=forgotten.keys,
            machines=forgotten.machines,
        )

    def _tell_of_stuck(self, stuck: Iterable[Stuck]) -> None:
        """Log each once, and show how many there are."""
        present = {(machine.machine_id, machine.state): machine for machine in stuck}
        for key, machine in present.items():
            if key not in self._told:
                log.warning(
                    "machine_stuck",
                    machine=machine.machine_id,
                    state=MachineState.Name(machine.state),
                    seconds=round(machine.seconds),
                )
        self._told = frozenset(present)
        _stuck_machines.labels(self._cell).set(len(present))


def _term(term: int) -> store_pb2.DutyTerm:
    return store_pb2.DutyTerm(duty=DUTY, term=term)


def _duration(seconds: float) -> Duration:
    duration = Duration()
    duration.FromNanoseconds(round(seconds * 1e9))
    return duration


def _subject(action: Action) -> str:
    match action:
        case SetStatus():
            return action.worker_id
        case Start() | Explain():
            return action.machine_id
        case _:
            return ""
