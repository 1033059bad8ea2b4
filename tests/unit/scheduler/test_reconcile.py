from __future__ import annotations

from collections.abc import Sequence
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from skerry.store.v1.store_pb2 import MachineRecord, WorkerRecord
from skerry.types.v1.machine_pb2 import (
    HOST_STATUS_OK,
    HOST_STATUS_UNKNOWN,
    HOST_STATUS_UNREACHABLE,
    MACHINE_STATE_CREATED,
    MACHINE_STATE_DESTROYED,
    MACHINE_STATE_FAILED,
    MACHINE_STATE_RESTARTING,
    MACHINE_STATE_STARTED,
    MACHINE_STATE_STARTING,
    MACHINE_STATE_STOPPED,
    MACHINE_STATE_STOPPING,
    MACHINE_STATE_SUSPENDED,
    HostStatus,
    MachineState,
)
from skerry.types.v1.spec_pb2 import (
    SCHEDULE_INTERVAL_DAILY,
    SCHEDULE_INTERVAL_HOURLY,
    SCHEDULE_INTERVAL_MONTHLY,
    SCHEDULE_INTERVAL_WEEKLY,
    ScheduleInterval,
)

from services.runtime.ids import MachineId, WorkerId
from services.scheduler.fleet import Fleet
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
    Watchlist,
    decide,
)
from tests.support_fleet import machine, worker

NOW = 1_700_000_000.0
LEASE = 5.0
HOUR = 3600.0
DAY = 24 * HOUR


class Cell:
    """A reconciler's passes over a cell, with time in the hands of the test."""

    def __init__(self, *machines: MachineRecord) -> None:
        self.fleet = Fleet(Random(1))
        self.watchlist = Watchlist()
        self.memory = Memory()
        self.stuck: tuple[Stuck, ...] = ()
        self.put(*machines)

    def put(self, *machines: MachineRecord) -> None:
        for record in machines:
            self.fleet.put_machine(record)
            self.watchlist.put_machine(record)

    def at(self, now: float, *workers: WorkerRecord, settings: ReconcileSettings | None = None) -> list[Action]:
        """The actions of a pass, without the repairs and purges."""
        decision = decide(workers, now, self.fleet, self.watchlist, self.memory, settings or ReconcileSettings())
        self.memory, self.stuck = decision.memory, decision.stuck
        return [action for action in decision.actions if not isinstance(action, Repair | Purge)]

    def kinds_at(self, now: float) -> list[type[Action]]:
        """The kinds of all actions of a pass over no workers."""
        decision = decide((), now, self.fleet, self.watchlist, self.memory, ReconcileSettings())
        self.memory = decision.memory
        return [type(action) for action in decision.actions]


def statuses(actions: Sequence[Action]) -> list[tuple[str, HostStatus.ValueType]]:
    return [(action.worker_id, action.status) for action in actions if isinstance(action, SetStatus)]


def test_a_silent_worker_is_lost_only_a_lease_after_the_reconciler_began_to_look() -> None:
    cell = Cell()
    silent = worker("w", heartbeat=NOW - 100)
    for second in range(6):
        assert cell.at(NOW + second, silent) == []
    assert statuses(cell.at(NOW + 5.1, silent)) == [("w", HOST_STATUS_UNREACHABLE)]


def test_a_worker_that_goes_silent_while_it_is_looked_at_is_lost_a_lease_after_its_last_heartbeat() -> None:
    cell = Cell()
    for second in range(10):
        assert cell.at(NOW + second, worker("w", heartbeat=NOW + second)) == []
    silent = worker("w", heartbeat=NOW + 9)
    for second in range(10, 15):
        assert cell.at(NOW + second, silent) == []
    assert statuses(cell.at(NOW + 14.5, silent)) == [("w", HOST_STATUS_UNREACHABLE)]


def test_a_worker_that_is_heard_again_can_be_reached_again() -> None:
    cell = Cell()
    back = worker("w", heartbeat=NOW - 1, status=HOST_STATUS_UNREACHABLE)
    assert statuses(cell.at(NOW, back)) == [("w", HOST_STATUS_OK)]


def test_a_lost_worker_that_stays_silent_stays_lost_under_a_new_reconciler() -> None:
    cell = Cell()
    lost = worker("w", heartbeat=NOW - 100, status=HOST_STATUS_UNREACHABLE)
    for second in range(20):
        assert cell.at(NOW + second, lost) == []


def test_a_time_without_looks_is_held_against_nobody() -> None:
    cell = Cell()
    for second in range(10):
        cell.at(NOW + second, worker("w", heartbeat=NOW + second))
    # The store was away for half a minute: nobody could send heartbeats, or look at them.
    silent = worker("w", heartbeat=NOW + 9)
    for second in range(40, 46):
        assert cell.at(NOW + second, silent) == []
    assert statuses(cell.at(NOW + 45.5, silent)) == [("w", HOST_STATUS_UNREACHABLE)]


@given(
    st.lists(st.floats(0.1, 2.9), min_size=1, max_size=40),
    st.floats(0, 60),
    st.sampled_from([HOST_STATUS_OK, HOST_STATUS_UNKNOWN, HOST_STATUS_UNREACHABLE]),
)
def test_nobody_is_called_lost_who_was_heard_within_the_lease_or_reachable_who_was_not(
    gaps: list[float], heard_until: float, status: HostStatus.ValueType
) -> None:
    cell, now = Cell(), NOW
    for gap in gaps:
        now += gap
        heard = min(now, NOW + heard_until)
        for _, decided in statuses(cell.at(now, worker("w", heartbeat=heard, status=status))):
            silent = now - heard
            assert decided == (HOST_STATUS_UNREACHABLE if silent > LEASE else HOST_STATUS_OK)
            assert decided != status
            status = decided
    if now - (NOW + heard_until) > LEASE and now - (NOW + gaps[0]) > LEASE:
        assert status == HOST_STATUS_UNREACHABLE


@pytest.mark.parametrize(
    ("interval", "seconds"),
    [
        (SCHEDULE_INTERVAL_HOURLY, HOUR),
        (SCHEDULE_INTERVAL_DAILY, DAY),
        (SCHEDULE_INTERVAL_WEEKLY, 7 * DAY),
        (SCHEDULE_INTERVAL_MONTHLY, 30 * DAY),
    ],
)
def test_a_scheduled_machine_starts_again_an_interval_after_it_was_last_asked_to_run(
    interval: ScheduleInterval.ValueType, seconds: float
) -> None:
    cell = Cell(machine("m", "w", state=MACHINE_STATE_STOPPED, schedule=interval, generation=7, generation_at=NOW))
    assert cell.at(NOW + seconds - 1) == []
    assert cell.at(NOW + seconds) == [Start(MachineId("m"), 7, "its schedule")]


def test_a_scheduled_machine_that_was_never_launched_first_runs_an_interval_after_it_was_created() -> None:
    cell = Cell(
        machine(
            "m",
            "w",
            state=MACHINE_STATE_CREATED,
            schedule=SCHEDULE_INTERVAL_HOURLY,
            generation=0,
            generation_at=None,
            created_at=NOW,
        )
    )
    assert cell.at(NOW + HOUR - 1) == []
    assert cell.at(NOW + HOUR) == [Start(MachineId("m"), 0, "its schedule")]


@pytest.mark.parametrize("state", [MACHINE_STATE_STARTED, MACHINE_STATE_STOPPING, MACHINE_STATE_SUSPENDED])
def test_a_scheduled_machine_that_is_still_at_it_is_left_alone(state: MachineState.ValueType) -> None:
    cell = Cell(machine("m", "w", state=state, schedule=SCHEDULE_INTERVAL_HOURLY, generation_at=NOW - DAY))
    assert cell.at(NOW) == []


def test_a_scheduled_machine_on_a_lost_worker_waits_for_it() -> None:
    cell = Cell(
        machine("m", "w", state=MACHINE_STATE_FAILED, schedule=SCHEDULE_INTERVAL_HOURLY, generation_at=NOW - DAY)
    )
    assert cell.at(NOW, worker("w", heartbeat=NOW - 9, status=HOST_STATUS_UNREACHABLE)) == []
    assert cell.at(NOW + 1, worker("w", heartbeat=NOW)) == [Start(MachineId("m"), 1, "its schedule")]


def test_the_machines_that_wait_longest_start_first_and_the_rest_in_the_next_pass() -> None:
    cell = Cell(
        *(
            machine(
                f"m{age}",
                "w",
                state=MACHINE_STATE_STOPPED,
                schedule=SCHEDULE_INTERVAL_HOURLY,
                generation_at=NOW - DAY - age,
            )
            for age in range(5)
        )
    )
    settings = ReconcileSettings(starts_per_pass=3)
    first = [action.machine_id for action in cell.at(NOW, settings=settings) if isinstance(action, Start)]
    second = [action.machine_id for action in cell.at(NOW + 1, settings=settings) if isinstance(action, Start)]
    assert (first, second) == (["m4", "m3", "m2"], ["m1", "m0"])


def test_a_start_that_does_not_come_about_is_tried_again_ever_more_seldom() -> None:
    cell = Cell(
        machine("m", "w", state=MACHINE_STATE_STOPPED, schedule=SCHEDULE_INTERVAL_HOURLY, generation_at=NOW - DAY)
    )
    tried = [second for second in range(200) if cell.at(NOW + second)]
    assert tried == [0, 2, 6, 14, 30, 62, 122, 182]


def test_a_new_generation_is_tried_at_once_when_it_is_due() -> None:
    due = {"state": MACHINE_STATE_STOPPED, "schedule": SCHEDULE_INTERVAL_HOURLY}
    cell = Cell(machine("m", "w", generation=1, generation_at=NOW - DAY, **due))  # type: ignore[arg-type]
    assert cell.at(NOW) == [Start(MachineId("m"), 1, "its schedule")]
    cell.put(machine("m", "w", generation=2, generation_at=NOW - DAY + 1, **due))  # type: ignore[arg-type]
    assert cell.at(NOW + 1) == [Start(MachineId("m"), 2, "its schedule")]


def standby_cell(
    *, primary: MachineState.ValueType = MACHINE_STATE_STARTED, standby: MachineState.ValueType, asked_at: float
) -> Cell:
    return Cell(
        machine("other", "w2", state=MACHINE_STATE_STARTED),
        machine("primary", "w1", state=primary),
        machine("standby", "w2", state=standby, standby_for=["other", "primary"], generation_at=asked_at),
    )


LOST = worker("w1", heartbeat=NOW - 10, status=HOST_STATUS_UNREACHABLE)
ALIVE = worker("w2", heartbeat=NOW)


@pytest.mark.parametrize("standby", [MACHINE_STATE_CREATED, MACHINE_STATE_STOPPED])
def test_a_standby_starts_when_the_worker_of_any_machine_it_stands_by_for_is_lost(
    standby: MachineState.ValueType,
) -> None:
    cell = standby_cell(standby=standby, asked_at=NOW - DAY)
    assert cell.at(NOW, worker("w1", heartbeat=NOW), ALIVE) == []
    (start,) = cell.at(NOW + 1, LOST, ALIVE)
    assert isinstance(start, Start)
    assert start.machine_id == "standby"
    assert "primary" in start.why
    assert "w1" in start.why


def test_a_standby_does_not_start_for_a_machine_that_was_not_running() -> None:
    cell = standby_cell(primary=MACHINE_STATE_STOPPED, standby=MACHINE_STATE_CREATED, asked_at=NOW - DAY)
    assert cell.at(NOW, LOST, ALIVE) == []


def test_a_standby_that_was_stopped_after_it_had_stood_in_stays_stopped() -> None:
    cell = standby_cell(standby=MACHINE_STATE_STOPPED, asked_at=NOW - 3)
    assert cell.at(NOW, LOST, ALIVE) == []


def test_a_standby_whose_own_worker_is_lost_does_not_start() -> None:
    cell = standby_cell(standby=MACHINE_STATE_CREATED, asked_at=NOW - DAY)
    lost_too = worker("w2", heartbeat=NOW - 10, status=HOST_STATUS_UNREACHABLE)
    assert cell.at(NOW, LOST, lost_too) == []


def test_machines_of_a_lost_worker_that_have_no_standby_stay_where_they_are() -> None:
    cell = Cell(machine("m", "w1"))
    assert cell.at(NOW, LOST, ALIVE) == []


def test_a_machine_that_stays_in_a_passing_state_is_told_of_while_its_worker_is_there() -> None:
    cell = Cell(machine("m", "w2", state=MACHINE_STATE_STARTING, updated_at=NOW))
    cell.at(NOW + 60, ALIVE)
    assert not cell.stuck
    cell.at(NOW + 61, ALIVE)
    assert cell.stuck == (Stuck(MachineId("m"), MACHINE_STATE_STARTING, 61.0),)
    cell.put(machine("m", "w2", state=MACHINE_STATE_STARTED, updated_at=NOW + 61))
    cell.at(NOW + 200, ALIVE)
    assert not cell.stuck


def test_a_machine_that_waits_for_a_lost_worker_is_not_stuck() -> None:
    cell = Cell(
        machine("on-it", "w1", state=MACHINE_STATE_STOPPING, updated_at=NOW - DAY),
        machine("leaves-it", "w2", state=MACHINE_STATE_STARTING, updated_at=NOW - DAY, leaving="w1"),
    )
    cell.at(NOW, LOST, ALIVE)
    assert not cell.stuck


def reasons(actions: Sequence[Action]) -> dict[str, str]:
    return {action.machine_id: action.reason for action in actions if isinstance(action, Explain)}


def test_a_machine_that_is_not_started_within_its_deadline_is_told_what_it_waits_for() -> None:
    starting = MACHINE_STATE_STARTING
    cell = Cell(
        machine("slow", "w2", state=starting, generation_at=NOW - 61),
        machine("on-lost", "w1", state=starting, generation_at=NOW - 61),
        machine("moving", "w2", state=starting, generation_at=NOW - 61, leaving="w1"),
        machine("moves-on", "w1", state=starting, generation_at=NOW - 61, leaving="w2"),
        machine("in-time", "w2", state=starting, generation_at=NOW - 59, updated_at=NOW - 59),
        machine("runs", "w2", generation_at=NOW - DAY, updated_at=NOW - DAY),
        machine("never-asked", "w2", state=MACHINE_STATE_CREATED, generation_at=None, updated_at=NOW - DAY),
    )
    assert reasons(cell.at(NOW, LOST, ALIVE)) == {
        "slow": "it waits for worker w2, which can be reached and has not started it yet",
        "on-lost": "it waits for worker w1, which cannot be reached",
        "moving": "it moves to worker w2, and waits for worker w1, which cannot be reached, to let go of it",
        "moves-on": "it moves to worker w1, and waits for worker w2, to let go of it",
    }


def test_the_deadline_of_a_machine_that_its_policy_restarts_begins_with_its_last_change() -> None:
    record = machine("m", "w2", state=MACHINE_STATE_RESTARTING, generation_at=NOW - DAY, updated_at=NOW - 59)
    record.restart_count = 7
    cell = Cell(record)
    assert reasons(cell.at(NOW, LOST, ALIVE)) == {}
    assert reasons(cell.at(NOW + 2, LOST, ALIVE)) == {
        "m": "it has ended 7 times, and waits for its restart policy to start it again"
    }


def test_a_machine_is_told_again_only_what_is_news() -> None:
    record = machine("m", "w1", state=MACHINE_STATE_STARTING, generation_at=NOW - DAY)
    cell = Cell(record)
    (told,) = reasons(cell.at(NOW, ALIVE)).values()
    record.reason = told
    cell.put(record)
    assert reasons(cell.at(NOW + 1, ALIVE)) == {}
    assert reasons(cell.at(NOW + 2, LOST, ALIVE)) == {"m": "it waits for worker w1, which cannot be reached"}


def test_the_deadline_is_a_setting_and_a_pass_tells_a_bounded_number() -> None:
    cell = Cell(*(machine(f"m{n}", "w2", state=MACHINE_STATE_STARTING, generation_at=NOW - 3) for n in range(9)))
    settings = ReconcileSettings(start_deadline=2.0, explanations_per_pass=4)
    assert len(reasons(cell.at(NOW, LOST, ALIVE, settings=settings))) == 4
    assert reasons(cell.at(NOW, LOST, ALIVE)) == {}


def test_a_destroyed_machine_needs_nothing() -> None:
    cell = Cell(
        machine("m", "w2", state=MACHINE_STATE_STOPPED, schedule=SCHEDULE_INTERVAL_HOURLY, generation_at=NOW - DAY)
    )
    cell.put(machine("m", "w2", state=MACHINE_STATE_DESTROYED, schedule=SCHEDULE_INTERVAL_HOURLY))
    assert cell.at(NOW) == []


def test_reservations_are_repaired_at_once_and_then_every_few_seconds_and_purges_are_rare() -> None:
    cell = Cell()
    passes = [cell.kinds_at(NOW + second) for second in range(601)]
    assert [second for second, kinds in enumerate(passes) if Repair in kinds][:4] == [0, 5, 10, 15]
    assert [second for second, kinds in enumerate(passes) if Purge in kinds] == [0, 300, 600]


def test_a_decision_leaves_what_it_was_made_from_as_it_was() -> None:
    cell = Cell(
        machine("m", "w", state=MACHINE_STATE_STOPPED, schedule=SCHEDULE_INTERVAL_HOURLY, generation_at=NOW - DAY)
    )
    memory = Memory(looking_since=NOW - 100, last_look=NOW - 1)
    arguments = ([worker("w", heartbeat=NOW - 50)], NOW, cell.fleet, cell.watchlist, memory, ReconcileSettings())
    first, second = decide(*arguments), decide(*arguments)
    assert first == second
    assert memory == Memory(looking_since=NOW - 100, last_look=NOW - 1)
    assert SetStatus(WorkerId("w"), HOST_STATUS_UNREACHABLE, 50.0) in first.actions
