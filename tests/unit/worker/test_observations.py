"""What a worker tells again, when the store does not show what it was told once."""

from __future__ import annotations

import pytest
from skerry.store.v1.store_pb2 import (
    DESIRED_STATE_STARTED,
    DESIRED_STATE_STOPPED,
    DESIRED_STATE_SUSPENDED,
    DesiredState,
    MachineRecord,
)
from skerry.types.v1.machine_pb2 import (
    MACHINE_STATE_FAILED,
    MACHINE_STATE_RESTARTING,
    MACHINE_STATE_STARTED,
    MACHINE_STATE_STARTING,
    MACHINE_STATE_STOPPED,
    MACHINE_STATE_STOPPING,
    MACHINE_STATE_SUSPENDED,
    MACHINE_STATE_SUSPENDING,
    MachineState,
)

from services.worker.drivers.driver import Exit
from services.worker.journal import Entry, Phase
from services.worker.observations import exit_event, missing_observation, nothing_runs

STARTED, STOPPED, SUSPENDED = DESIRED_STATE_STARTED, DESIRED_STATE_STOPPED, DESIRED_STATE_SUSPENDED


@pytest.mark.parametrize(
    ("phase", "desired", "told", "shown", "kind"),
    [
        (Phase.RUNNING, STARTED, MACHINE_STATE_STARTING, MACHINE_STATE_STARTED, "started"),
        (Phase.SUSPENDED, SUSPENDED, MACHINE_STATE_SUSPENDING, MACHINE_STATE_SUSPENDED, "suspended"),
        (Phase.FAILED, STARTED, MACHINE_STATE_STARTING, MACHINE_STATE_FAILED, "failed"),
        (Phase.ENDED, STOPPED, MACHINE_STATE_STOPPING, MACHINE_STATE_STOPPED, "exited"),
        (Phase.WAITING, STARTED, MACHINE_STATE_STARTED, MACHINE_STATE_RESTARTING, "exited"),
    ],
)
def test_what_the_store_does_not_show_is_told_again_and_what_it_shows_is_not(
    phase: Phase,
    desired: DesiredState.ValueType,
    told: MachineState.ValueType,
    shown: MachineState.ValueType,
    kind: str,
) -> None:
    entry = Entry("m", 2, phase=phase, restart_count=4, reason="no such file")

    def record(state: MachineState.ValueType) -> MachineRecord:
        return MachineRecord(id="m", generation=2, worker_id="me", desired=desired, state=state)

    missing = missing_observation(record(told), entry, "me", 7.5)
    assert missing is not None
    assert (missing.machine_id, missing.generation, missing.at.ToNanoseconds()) == ("m", 2, 7_500_000_000)
    assert missing.WhichOneof("seen") == kind
    assert missing_observation(record(shown), entry, "me", 7.5) is None


def test_nothing_is_told_of_what_is_another_workers_or_nobodys() -> None:
    entry = Entry("m", 2, phase=Phase.RUNNING)
    record = MachineRecord(
        id="m", generation=2, worker_id="other", desired=DESIRED_STATE_STARTED, state=MACHINE_STATE_STARTING
    )
    assert missing_observation(record, entry, "me", 1.0) is None
    assert missing_observation(None, entry, "me", 1.0) is None


@pytest.mark.parametrize("signal", [0, 9])
def test_an_exit_says_by_what_the_command_ended(signal: int) -> None:
    event = exit_event(
        Exit(code=137 if signal else 3, signal=signal, oom_killed=False, at=2.25), requested=True, restarting=False
    )
    assert (event.exit_code, event.guest_exit_code) == ((137, 137) if signal else (3, 3))
    assert (event.signal, event.guest_signal) == (signal, signal)
    assert (event.requested_stop, event.restarting, event.exited_at.ToMilliseconds()) == (True, False, 2250)


def test_a_stop_of_what_does_not_run_is_an_exit_that_was_asked_for() -> None:
    seen = nothing_runs(Entry("m", 2, restart_count=1), 3.0)
    assert (seen.exited.exit.requested_stop, seen.exited.restart_count) == (True, 1)
