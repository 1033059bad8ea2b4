from __future__ import annotations

from itertools import product

import pytest
from skerry.store.v1.store_pb2 import (
    DESIRED_STATE_DESTROYED,
    DESIRED_STATE_STARTED,
    DESIRED_STATE_STOPPED,
    DESIRED_STATE_SUSPENDED,
    DesiredState,
    MachineRecord,
)
from skerry.types.v1.machine_pb2 import (
    MACHINE_STATE_CREATED,
    MACHINE_STATE_DESTROYED,
    MACHINE_STATE_DESTROYING,
    MACHINE_STATE_STARTING,
    MACHINE_STATE_STOPPED,
    MACHINE_STATE_STOPPING,
    MACHINE_STATE_SUSPENDED,
    MACHINE_STATE_SUSPENDING,
    MachineState,
)

from services.worker.journal import Entry, Phase
from services.worker.reconcile import ALIVE, Step, Want, next_step, want_of

HERE = Entry("m", 2, phase=Phase.RUNNING)


def record(
    desired: DesiredState.ValueType = DESIRED_STATE_STARTED,
    *,
    generation: int = 2,
    state: MachineState.ValueType = MACHINE_STATE_STARTING,
    worker: str = "me",
    leaving: str = "",
) -> MachineRecord:
    return MachineRecord(
        id="m", desired=desired, generation=generation, state=state, worker_id=worker, leaving_worker_id=leaving
    )


@pytest.mark.parametrize(
    ("wanted", "entry", "want"),
    [
        (None, HERE, Want.NOTHING),
        (record(), HERE, Want.RUN),
        (record(generation=3), HERE, Want.RENEW),
        (record(), None, Want.RENEW),
        (record(generation=1), HERE, Want.RUN),
        (record(DESIRED_STATE_STOPPED, state=MACHINE_STATE_STOPPING), HERE, Want.REST),
        (record(DESIRED_STATE_STOPPED, generation=3, state=MACHINE_STATE_STOPPING), HERE, Want.SETTLE),
        (record(DESIRED_STATE_STOPPED, state=MACHINE_STATE_STOPPING), None, Want.SETTLE),
        (record(DESIRED_STATE_STOPPED, state=MACHINE_STATE_CREATED), None, Want.REST),
        (record(DESIRED_STATE_STOPPED, generation=3, state=MACHINE_STATE_STOPPED), HERE, Want.REST),
        (record(DESIRED_STATE_SUSPENDED, state=MACHINE_STATE_SUSPENDING), HERE, Want.SUSPEND),
        (record(DESIRED_STATE_SUSPENDED, state=MACHINE_STATE_SUSPENDED), None, Want.SETTLE),
        (record(DESIRED_STATE_DESTROYED, state=MACHINE_STATE_DESTROYING), HERE, Want.DESTROY),
        (record(DESIRED_STATE_DESTROYED, state=MACHINE_STATE_DESTROYED), HERE, Want.NOTHING),
        (record(worker="other"), HERE, Want.NOTHING),
        (record(worker="other", leaving="me"), HERE, Want.LEAVE),
        (record(DESIRED_STATE_DESTROYED, worker="other", leaving="me"), HERE, Want.LEAVE),
        (record(leaving="other"), None, Want.HOLD),
        (record(DESIRED_STATE_DESTROYED, state=MACHINE_STATE_DESTROYING, leaving="other"), None, Want.HOLD),
    ],
)
def test_what_a_record_wants_of_a_worker(wanted: MachineRecord | None, entry: Entry | None, want: Want) -> None:
    assert want_of(wanted, entry, "me") is want


EVERYTHING = list(product(Want, [None, *Phase]))


def step(
    want: Want, phase: Phase | None, *, exited: bool = False, halting: bool = False, restart_at: float = 10.0
) -> Step:
    entry = None if phase is None else Entry("m", 2, phase=phase, restart_at=restart_at)
    return next_step(want, entry, exited=exited, halting=halting, now=5.0)


@pytest.mark.parametrize(("want", "phase"), EVERYTHING)
def test_nothing_is_started_or_removed_while_something_of_it_lives(want: Want, phase: Phase | None) -> None:
    taken = step(want, phase)
    if phase in ALIVE:
        assert taken in (Step.NONE, Step.STOP, Step.SUSPEND, Step.RESUME)
    else:
        assert taken not in (Step.STOP, Step.SUSPEND, Step.RESUME)


@pytest.mark.parametrize(("want", "phase"), EVERYTHING)
def test_only_what_is_wanted_to_run_is_started(want: Want, phase: Phase | None) -> None:
    if step(want, phase) is Step.START:
        assert want in (Want.RUN, Want.RENEW)


@pytest.mark.parametrize(("want", "phase"), EVERYTHING)
def test_an_end_is_written_down_before_anything_else_happens(want: Want, phase: Phase | None) -> None:
    for halting in (False, True):
        assert (step(want, phase, exited=True, halting=halting) is Step.CONCLUDE) == (phase in ALIVE)


@pytest.mark.parametrize(("want", "phase"), EVERYTHING)
def test_a_worker_that_goes_down_only_stops_what_lives(want: Want, phase: Phase | None) -> None:
    assert step(want, phase, halting=True) is (Step.STOP if phase in ALIVE else Step.NONE)


def test_a_machine_that_ended_or_failed_is_started_by_a_new_generation_only() -> None:
    for phase in (Phase.ENDED, Phase.FAILED):
        assert step(Want.RUN, phase) is Step.NONE
        assert step(Want.RENEW, phase) is Step.START


def test_a_machine_waits_out_its_backoff_unless_something_new_is_wanted() -> None:
    assert step(Want.RUN, Phase.WAITING) is Step.WAIT
    assert step(Want.RUN, Phase.WAITING, restart_at=5.0) is Step.START
    assert step(Want.RENEW, Phase.WAITING) is Step.START
    assert step(Want.REST, Phase.WAITING) is Step.SETTLE


def test_a_machine_is_frozen_once_and_goes_on_where_it_was() -> None:
    assert step(Want.SUSPEND, Phase.RUNNING) is Step.SUSPEND
    assert step(Want.SUSPEND, Phase.SUSPENDED) is Step.NONE
    assert step(Want.RUN, Phase.SUSPENDED) is Step.RESUME


@pytest.mark.parametrize("phase", [None, Phase.WAITING, Phase.PAUSED])
def test_what_cannot_be_frozen_because_it_does_not_run_is_told_to_have_stopped(phase: Phase | None) -> None:
    assert step(Want.SUSPEND, phase) is Step.SETTLE


def test_a_machine_that_another_worker_still_has_is_left_alone() -> None:
    assert {step(Want.HOLD, phase) for phase in [None, *Phase]} == {Step.NONE}
