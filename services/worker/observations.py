"""What a worker tells the store of its machines, as observations: pure, from what its journal says."""

from __future__ import annotations

from google.protobuf.timestamp_pb2 import Timestamp
from skerry.store.v1.store_pb2 import (
    ChecksChanged,
    Destroyed,
    Exited,
    Failed,
    Left,
    MachineRecord,
    NotSuspended,
    Observation,
    Started,
    Suspended,
)
from skerry.types.v1.machine_pb2 import (
    MACHINE_STATE_RESTARTING,
    MACHINE_STATE_STARTED,
    MACHINE_STATE_SUSPENDED,
    MachineExitEvent,
)

from services.worker.drivers.driver import Exit
from services.worker.journal import Entry, Phase
from services.worker.reconcile import AT_REST, Want, want_of


def observed(
    entry: Entry,
    at: float,
    *,
    started: Started | None = None,
    exited: Exited | None = None,
    failed: Failed | None = None,
    destroyed: Destroyed | None = None,
    left: Left | None = None,
    checks_changed: ChecksChanged | None = None,
    suspended: Suspended | None = None,
    not_suspended: NotSuspended | None = None,
) -> Observation:
    """What was seen of a machine `at`, in unix seconds: one of the keywords."""
    return Observation(
        machine_id=entry.machine_id,
        generation=entry.generation,
        at=_timestamp(at),
        started=started,
        exited=exited,
        failed=failed,
        destroyed=destroyed,
        left=left,
        checks_changed=checks_changed,
        suspended=suspended,
        not_suspended=not_suspended,
    )


def exit_event(exit: Exit, *, requested: bool, restarting: bool) -> MachineExitEvent:
    """How the command of a machine ended, as its event says it."""
    event = MachineExitEvent(
        exit_code=exit.code,
        guest_exit_code=exit.code,
        oom_killed=exit.oom_killed,
        requested_stop=requested,
        restarting=restarting,
        exited_at=_timestamp(exit.at),
    )
    if exit.signal:
        event.signal = event.guest_signal = exit.signal
    return event


def nothing_runs(entry: Entry, at: float) -> Observation:
    """That a machine which was to be stopped has nothing that runs; `at` is in unix seconds."""
    event = MachineExitEvent(requested_stop=True, restarting=False, exited_at=_timestamp(at))
    return observed(entry, at, exited=Exited(exit=event, restart_count=entry.restart_count))


def missing_observation(record: MachineRecord | None, entry: Entry, worker_id: str, at: float) -> Observation | None:
    """What the store's record should show of the machine and does not, to be told again; None when it shows it."""
    want = want_of(record, entry, worker_id)
    if record is None or want not in (Want.RUN, Want.SUSPEND, Want.REST):
        return None
    if entry.phase is Phase.RUNNING and want is Want.RUN and record.state != MACHINE_STATE_STARTED:
        return observed(entry, at, started=Started(restart_count=entry.restart_count))
    if entry.phase is Phase.SUSPENDED and want is Want.SUSPEND and record.state != MACHINE_STATE_SUSPENDED:
        return observed(entry, at, suspended=Suspended())
    if entry.phase is Phase.FAILED and record.state not in AT_REST:
        return observed(entry, at, failed=Failed(reason=entry.reason))
    if entry.phase is Phase.ENDED and record.state not in AT_REST:
        return nothing_runs(entry, at)
    if entry.phase is Phase.WAITING and want is Want.RUN and record.state != MACHINE_STATE_RESTARTING:
        event = MachineExitEvent(restarting=True, exited_at=_timestamp(at))
        return observed(entry, at, exited=Exited(exit=event, restart_count=entry.restart_count))
    return None


def _timestamp(seconds: float) -> Timestamp:
    timestamp = Timestamp()
    timestamp.FromNanoseconds(int(seconds * 1e9))
    return timestamp
