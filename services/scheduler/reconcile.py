"""What has drifted and what to do about it: lost workers, schedules, standbys, stuck transitions.

Pure decisions: what is seen, the time and what was decided before go in, actions come out. `leader.py` acts on them.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

from google.protobuf.timestamp_pb2 import Timestamp
from skerry.store.v1.store_pb2 import MachineRecord, WorkerRecord
from skerry.types.v1.machine_pb2 import (
    HOST_STATUS_OK,
    HOST_STATUS_UNREACHABLE,
    MACHINE_STATE_CREATED,
    MACHINE_STATE_DESTROYED,
    MACHINE_STATE_DESTROYING,
    MACHINE_STATE_FAILED,
    MACHINE_STATE_LAUNCH_FAILED,
    MACHINE_STATE_REPLACING,
    MACHINE_STATE_RESTARTING,
    MACHINE_STATE_STARTED,
    MACHINE_STATE_STARTING,
    MACHINE_STATE_STOPPED,
    MACHINE_STATE_STOPPING,
    MACHINE_STATE_SUSPENDING,
    MACHINE_STATE_UPDATING,
    HostStatus,
    MachineState,
)
from skerry.types.v1.spec_pb2 import (
    SCHEDULE_INTERVAL_DAILY,
    SCHEDULE_INTERVAL_HOURLY,
    SCHEDULE_INTERVAL_MONTHLY,
    SCHEDULE_INTERVAL_UNSPECIFIED,
    SCHEDULE_INTERVAL_WEEKLY,
    ScheduleInterval,
)

from services.runtime.ids import MachineId, WorkerId
from services.scheduler.fleet import Fleet

_HOUR = 3600.0
_DAY = 24 * _HOUR

INTERVALS: Mapping[ScheduleInterval.ValueType, float] = {
    SCHEDULE_INTERVAL_HOURLY: _HOUR,
    SCHEDULE_INTERVAL_DAILY: _DAY,
    SCHEDULE_INTERVAL_WEEKLY: 7 * _DAY,
    SCHEDULE_INTERVAL_MONTHLY: 30 * _DAY,
}
"""Seconds between two starts of a scheduled machine."""

STARTABLE = frozenset((MACHINE_STATE_CREATED, MACHINE_STATE_STOPPED, MACHINE_STATE_FAILED, MACHINE_STATE_LAUNCH_FAILED))
"""States of a machine that does not run and that a start takes up."""
RUNNING = frozenset((MACHINE_STATE_STARTING, MACHINE_STATE_STARTED, MACHINE_STATE_RESTARTING, MACHINE_STATE_UPDATING))
"""States of a machine that runs or is to run: what a standby stands by for."""
_TO_RUN = frozenset((MACHINE_STATE_STARTING, MACHINE_STATE_RESTARTING))
TRANSIENT = frozenset(
    (
        MACHINE_STATE_STARTING,
        MACHINE_STATE_STOPPING,
        MACHINE_STATE_RESTARTING,
        MACHINE_STATE_SUSPENDING,
        MACHINE_STATE_DESTROYING,
        MACHINE_STATE_UPDATING,
        MACHINE_STATE_REPLACING,
    )
)
"""States that a machine only passes through."""


@dataclass(frozen=True, slots=True)
class ReconcileSettings:
    """Times of the reconciler, all in seconds."""

    pass_every: float = 1.0
    worker_lease: float = 5.0
    """A worker whose last sign of life is older is lost."""
    longest_gap: float = 3.0
    """After a longer time without a look, nothing is known of who was silent meanwhile: leases are counted anew."""
    repair_every: float = 5.0
    purge_every: float = 300.0
    stuck_after: float = 60.0
    start_deadline: float = 60.0
    """A machine that was to run and does not after this time is told what it waits for."""
    log_age: float = 7 * _DAY
    key_age: float = _DAY
    destroyed_age: float = 7 * _DAY
    starts_per_pass: int = 100
    """How many machines (not seconds) are started at most in a pass."""
    explanations_per_pass: int = 100
    """How many machines are told at most in a pass what they wait for."""
    longest_backoff: float = 60.0


@dataclass(frozen=True, slots=True)
class SetStatus:
    """Say of a worker whether it can be reached; it was silent for `silent` seconds."""

    worker_id: WorkerId
    status: HostStatus.ValueType
    silent: float


@dataclass(frozen=True, slots=True)
class Start:
    """Start a machine, if it still is of this generation."""

    machine_id: MachineId
    generation: int
    why: str


@dataclass(frozen=True, slots=True)
class Explain:
    """Tell a machine that is not started within its deadline what it waits for, if it still is so."""

    machine_id: MachineId
    generation: int
    state: MachineState.ValueType
    reason: str


@dataclass(frozen=True, slots=True)
class Repair:
    """Compare reservations with machines and mend them."""


@dataclass(frozen=True, slots=True)
class Purge:
    """Forget what is old enough."""


Action = SetStatus | Start | Explain | Repair | Purge


@dataclass(frozen=True, slots=True)
class Stuck:
    """A machine that has been passing through a state for `seconds` although its worker can be reached."""

    machine_id: MachineId
    state: MachineState.ValueType
    seconds: float


@dataclass(frozen=True, slots=True)
class Attempt:
    """Starts of one generation that were tried, and when the next may be."""

    generation: int
    tries: int
    not_before: float


@dataclass(frozen=True, slots=True)
class Memory:
    """What a leader remembers from pass to pass; a new leader begins with an empty one. Times are the store's."""

    looking_since: float | None = None
    last_look: float = 0.0
    next_repair: float = 0.0
    next_purge: float = 0.0
    attempts: Mapping[MachineId, Attempt] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Decision:
    """What a pass has come to."""

    actions: tuple[Action, ...]
    stuck: tuple[Stuck, ...]
    memory: Memory


class Watchlist:
    """The machines that may need something: with a schedule, standing by, or in a state that they only pass through."""

    def __init__(self) -> None:
        self.scheduled: dict[MachineId, MachineRecord] = {}
        self.standbys: dict[MachineId, MachineRecord] = {}
        self.transient: dict[MachineId, MachineRecord] = {}

    def put_machine(self, record: MachineRecord) -> None:
        """Take over what the log says of a machine; a basic view is enough."""
        machine_id = MachineId(record.id)
        exists = record.state != MACHINE_STATE_DESTROYED
        scheduled = record.schedule != SCHEDULE_INTERVAL_UNSPECIFIED
        for belongs, listed in (
            (exists and scheduled, self.scheduled),
            (exists and len(record.standby_for) > 0, self.standbys),
            (record.state in TRANSIENT, self.transient),
        ):
            if belongs:
                listed[machine_id] = record
            else:
                listed.pop(machine_id, None)


def decide(
    workers: Sequence[WorkerRecord],
    now: float,
    fleet: Fleet,
    watchlist: Watchlist,
    memory: Memory,
    settings: ReconcileSettings,
) -> Decision:
    """What to do now. `workers` come with their last heartbeats, `now` (unix seconds) from the store that took them."""
    since = memory.looking_since
    if since is None or now - memory.last_look > settings.longest_gap:
        since = now
    lost = {WorkerId(worker.id): worker for worker in workers if worker.status == HOST_STATUS_UNREACHABLE}
    attempts = {
        machine_id: attempt
        for machine_id, attempt in memory.attempts.items()
        if attempt.generation == _generation(watchlist, machine_id)
    }
    actions: list[Action] = list(_statuses(workers, now, since, settings.worker_lease))
    wanted = {
        start.machine_id: start for start in (*_standbys(watchlist, fleet, lost), *_schedules(watchlist, lost, now))
    }
    starts = [start for start in wanted.values() if _may_try(attempts.get(start.machine_id), now)]
    for start in starts[: settings.starts_per_pass]:
        tries = attempts[start.machine_id].tries + 1 if start.machine_id in attempts else 1
        backoff = min(settings.longest_backoff, 2.0**tries)
        attempts[start.machine_id] = Attempt(start.generation, tries, now + backoff)
        actions.append(start)
    actions += islice(_delays(watchlist, lost, now, settings.start_deadline), settings.explanations_per_pass)
    remembered = replace(memory, looking_since=since, last_look=now, attempts=attempts)
    if now >= memory.next_repair:
        actions.append(Repair())
        remembered = replace(remembered, next_repair=now + settings.repair_every)
    if now >= memory.next_purge:
        actions.append(Purge())
        remembered = replace(remembered, next_purge=now + settings.purge_every)
    return Decision(tuple(actions), tuple(_stuck(watchlist, lost, now, settings.stuck_after)), remembered)


def _statuses(workers: Sequence[WorkerRecord], now: float, since: float, lease: float) -> Iterator[SetStatus]:
    for worker in workers:
        heard = _seconds(worker.heartbeat_at)
        if now - heard <= lease:
            status = HOST_STATUS_OK
        elif now - max(heard, since) > lease:
            status = HOST_STATUS_UNREACHABLE
        else:
            continue
        if worker.status != status:
            yield SetStatus(WorkerId(worker.id), status, now - heard)


def _schedules(watchlist: Watchlist, lost: Collection[WorkerId], now: float) -> Iterator[Start]:
    due = []
    for record in watchlist.scheduled.values():
        if record.state not in STARTABLE or record.worker_id in lost:
            continue
        # One that was never asked to run has its first run an interval after it was created.
        last = record.generation_at if record.HasField("generation_at") else record.created_at
        overdue = now - _seconds(last) - INTERVALS.get(record.schedule, math.inf)
        if overdue >= 0:
            due.append((overdue, record))
    due.sort(key=lambda one: one[0], reverse=True)
    for _, record in due:
        yield Start(MachineId(record.id), record.generation, "its schedule")


def _standbys(watchlist: Watchlist, fleet: Fleet, lost: Mapping[WorkerId, WorkerRecord]) -> Iterator[Start]:
    if not lost:
        return
    for record in watchlist.standbys.values():
        if record.state not in STARTABLE or record.worker_id in lost:
            continue
        for machine_id in record.standby_for:
            machine = fleet.machines.get(MachineId(machine_id))
            if machine is None or machine.state not in RUNNING or machine.worker_id not in lost:
                continue
            # Once for a loss: what ran since the worker was last heard and does not run now, somebody has stopped.
            asked_since = _seconds(record.generation_at) > _seconds(lost[machine.worker_id].heartbeat_at)
            if record.state == MACHINE_STATE_CREATED or not asked_since:
                why = f"it stands by for {machine_id}, whose worker {machine.worker_id} cannot be reached"
                yield Start(MachineId(record.id), record.generation, why)
                break


def _stuck(watchlist: Watchlist, lost: Collection[WorkerId], now: float, after: float) -> Iterator[Stuck]:
    for record in watchlist.transient.values():
        seconds = now - _seconds(record.updated_at)
        if seconds > after and record.worker_id not in lost and record.leaving_worker_id not in lost:
            yield Stuck(MachineId(record.id), record.state, seconds)


def _delays(watchlist: Watchlist, lost: Collection[WorkerId], now: float, deadline: float) -> Iterator[Explain]:
    for record in watchlist.transient.values():
        if record.state not in _TO_RUN:
            continue
        # One that its policy restarts has run since its generation was asked for.
        asked = record.state == MACHINE_STATE_STARTING and record.HasField("generation_at")
        since = record.generation_at if asked else record.updated_at
        if now - _seconds(since) > deadline and record.reason != (reason := _waits_for(record, lost)):
            yield Explain(MachineId(record.id), record.generation, record.state, reason)


def _waits_for(record: MachineRecord, lost: Collection[WorkerId]) -> str:
    if leaving := record.leaving_worker_id:
        why = ", which cannot be reached" if leaving in lost else ""
        return f"it moves to worker {record.worker_id}, and waits for worker {leaving}{why}, to let go of it"
    if record.worker_id in lost:
        return f"it waits for worker {record.worker_id}, which cannot be reached"
    if record.restart_count:
        return f"it has ended {record.restart_count} times, and waits for its restart policy to start it again"
    return f"it waits for worker {record.worker_id}, which can be reached and has not started it yet"


def _may_try(attempt: Attempt | None, now: float) -> bool:
    return attempt is None or now >= attempt.not_before


def _generation(watchlist: Watchlist, machine_id: MachineId) -> int | None:
    record = watchlist.scheduled.get(machine_id) or watchlist.standbys.get(machine_id)
    return None if record is None else record.generation


def _seconds(timestamp: Timestamp) -> float:
    return timestamp.seconds + timestamp.nanos / 1e9
