"""What a worker's observation makes of a machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from skerry.store.v1.store_pb2 import DESIRED_STATE_STOPPED, MachineRecord, Observation
from skerry.types.v1.machine_pb2 import (
    MACHINE_STATE_DESTROYED,
    MACHINE_STATE_STARTED,
    MachineEvent,
    MachineMonitorEvent,
    MachineRequest,
)

from services.machine_store.steps import Step, Unit, step_to
from services.machine_store.transitions import Seen, observe, state_name

SOURCE = "flyd"
"""Who an event is from that a worker saw."""


@dataclass(frozen=True, slots=True)
class Effect:
    """What an observation did to a record: the event to write ("" for none), and whether the old worker has let go."""

    event_type: str = ""
    event_status: str = ""
    request: MachineRequest | None = None
    let_go: bool = False


@dataclass(frozen=True, slots=True)
class Known:
    """A machine as it was read, and whether its spec destroys it when it has ended."""

    record: MachineRecord
    auto_destroy: bool


def take_in(record: MachineRecord, worker_id: str, observation: Observation, *, auto_destroy: bool) -> Effect | None:
    """Let `record` become what an observation of `worker_id` makes of it; None, and no change, if that is nothing.

    Only what is about the present generation and from its worker changes its state; the rest leaves its event.
    """
    here = record.worker_id == worker_id
    leaving = not here and record.leaving_worker_id == worker_id
    if not here and not leaving:
        return None
    match observation.WhichOneof("seen"):
        case "left":
            return _let_go(record) if leaving else None
        case "destroyed":
            return _let_go(record) if leaving else _destroyed(record)
        case "checks_changed":
            return _checks(record, observation) if here else None
        case "suspended" | "not_suspended" as what if here:
            return _froze(record, what, observation)
        case "started" | "exited" | "failed" as what if record.state != MACHINE_STATE_DESTROYED or leaving:
            return _ran(record, what, observation, auto_destroy=auto_destroy, here=here)
    return None


def plan(
    worker_id: str,
    journal_id: str,
    last_sequence: int,
    observations: Sequence[Observation],
    machines: Mapping[str, Known],
    *,
    touch: Callable[[MachineRecord], None],
    stamp: Callable[[MachineRecord, Effect, Observation], MachineEvent],
) -> Unit:
    """The steps of observations (at least one) that follow `last_sequence` without gap.

    Those without effect only let the journal advance. `touch` sets when a record changed, `stamp` makes its event.
    """
    unit = Unit()
    latest = {machine_id: known.record for machine_id, known in machines.items()}
    changed: set[str] = set()
    previous = last_sequence
    for observation in observations:
        known = machines.get(observation.machine_id)
        if known is None:
            continue
        record = MachineRecord()
        record.CopyFrom(latest[observation.machine_id])
        effect = take_in(record, worker_id, observation, auto_destroy=known.auto_destroy)
        if effect is None:
            continue
        event = stamp(record, effect, observation) if effect.event_type else None
        touch(record)
        step = step_to(record, event)._replace(
            observer=worker_id,
            journal_id=journal_id,
            previous_sequence=previous,
            sequence=observation.sequence,
            let_go=effect.let_go,
        )
        if record.id in changed:
            step = step._replace(expected_revision=None)
        unit.add(step, record, event)
        latest[record.id] = record
        changed.add(record.id)
        previous = observation.sequence
    if previous != (end := observations[-1].sequence):
        unit.add(Step(observer=worker_id, journal_id=journal_id, previous_sequence=previous, sequence=end))
    return unit


def readable(text: str) -> str:
    """Text of a worker as the database can keep it."""
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}")


def _let_go(record: MachineRecord) -> Effect:
    # Nothing of it runs anywhere any more, so one that stops during its move has stopped.
    if record.desired == DESIRED_STATE_STOPPED:
        record.state = observe(Seen.EXITED, record.state, record.desired).state
    return Effect(let_go=True)


def _destroyed(record: MachineRecord) -> Effect | None:
    after = observe(Seen.DESTROYED, record.state, record.desired)
    if after.state == record.state:
        return None
    record.state = after.state
    return Effect("destroy", state_name(record.state))


def _checks(record: MachineRecord, observation: Observation) -> Effect | None:
    checks = observation.checks_changed.checks
    if (
        observation.generation != record.generation
        or record.state == MACHINE_STATE_DESTROYED
        or checks == record.checks
    ):
        return None
    del record.checks[:]
    record.checks.extend(checks)
    return Effect()


def _froze(record: MachineRecord, what: str, observation: Observation) -> Effect | None:
    seen = Seen.SUSPENDED if what == "suspended" else Seen.NOT_SUSPENDED
    before = record.state
    if observation.generation != record.generation:
        return None
    after = observe(seen, record.state, record.desired)
    if after.state == before:
        return None
    record.state, record.desired = after.state, after.desired
    record.reason = readable(observation.not_suspended.reason) if seen is Seen.NOT_SUSPENDED else ""
    return Effect("suspend", record.reason or state_name(record.state))


def _ran(record: MachineRecord, what: str, observation: Observation, *, auto_destroy: bool, here: bool) -> Effect:
    exited = observation.exited.exit
    present = here and observation.generation == record.generation
    seen = {
        "started": Seen.STARTED,
        "exited": Seen.RESTARTING if exited.restarting else Seen.EXITED,
        "failed": Seen.FAILED,
    }[what]
    let_go = not here and seen is Seen.EXITED
    if present:
        before = record.state
        after = observe(seen, record.state, record.desired, auto_destroy=auto_destroy)
        record.state, record.desired = after.state, after.desired
        if what != "failed":
            record.restart_count = getattr(observation, what).restart_count
        if record.state != before or record.state == MACHINE_STATE_STARTED:
            # What it waited for, if it did, is over.
            record.reason = readable(observation.failed.reason) if seen is Seen.FAILED else ""
    elif let_go:
        _let_go(record)
    if what == "failed":
        return Effect("fail", readable(observation.failed.reason))
    status = state_name(MACHINE_STATE_STARTED if what == "started" else record.state)
    if what == "started":
        return Effect("start", status)
    request = MachineRequest(
        exit_event=exited,
        monitor_event=MachineMonitorEvent(exit_event=exited),
        restart_count=observation.exited.restart_count,
    )
    return Effect("exit", status, request, let_go=let_go)
