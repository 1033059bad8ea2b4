"""What observations make of machines, and how reports become steps."""

from __future__ import annotations

from skerry.store.v1.store_pb2 import (
    DESIRED_STATE_STARTED,
    ChecksChanged,
    Exited,
    MachineRecord,
    Observation,
    Started,
)
from skerry.types.v1.machine_pb2 import (
    MACHINE_STATE_STARTED,
    MACHINE_STATE_STARTING,
    MachineCheckStatus,
    MachineEvent,
    MachineExitEvent,
)

from services.machine_store.observations import Effect, Known, plan, take_in
from services.machine_store.steps import Unit


def machine(machine_id: str = "m1", worker: str = "w1") -> MachineRecord:
    return MachineRecord(
        id=machine_id,
        worker_id=worker,
        state=MACHINE_STATE_STARTING,
        desired=DESIRED_STATE_STARTED,
        generation=2,
        revision=40,
    )


def start(sequence: int, machine_id: str = "m1", generation: int = 2, restarts: int = 0) -> Observation:
    return Observation(
        sequence=sequence, machine_id=machine_id, generation=generation, started=Started(restart_count=restarts)
    )


def planned(last: int, observations: list[Observation], *machines: MachineRecord) -> Unit:
    def stamp(record: MachineRecord, effect: Effect, observation: Observation) -> MachineEvent:
        assert record.id == observation.machine_id
        return MachineEvent(id=f"event-{observation.sequence}", type=effect.event_type, status=effect.event_status)

    return plan(
        "w1",
        "j1",
        last,
        observations,
        {record.id: Known(record, auto_destroy=False) for record in machines},
        touch=lambda _: None,
        stamp=stamp,
    )


def test_an_exit_brings_how_it_ended_for_people_and_monitors() -> None:
    ended = MachineExitEvent(exit_code=137, oom_killed=True, restarting=True)
    seen = Observation(machine_id="m1", generation=2, exited=Exited(exit=ended, restart_count=4))
    record = machine()
    effect = take_in(record, "w1", seen, auto_destroy=False)
    assert effect is not None
    assert (effect.event_type, effect.event_status) == ("exit", "restarting")
    assert effect.request is not None
    assert effect.request.exit_event == effect.request.monitor_event.exit_event == ended
    assert (effect.request.restart_count, record.restart_count) == (4, 4)


def test_an_observation_of_nothing_known_changes_nothing() -> None:
    record = machine()
    assert take_in(record, "w1", Observation(machine_id="m1", generation=2), auto_destroy=False) is None
    assert record == machine()


def test_the_same_checks_again_are_no_change() -> None:
    record = machine()
    seen = Observation(
        machine_id="m1",
        generation=2,
        checks_changed=ChecksChanged(checks=[MachineCheckStatus(name="c", status="passing")]),
    )
    assert take_in(record, "w1", seen, auto_destroy=False) == Effect()
    assert take_in(record, "w1", seen, auto_destroy=False) is None


def test_a_report_becomes_steps_that_follow_one_another() -> None:
    unit = planned(6, [start(7), start(8, restarts=1), start(9, "m2")], machine(), machine("m2"))
    assert [(s.machine_id, s.previous_sequence, s.sequence, s.expected_revision) for s in unit.steps] == [
        ("m1", 6, 7, 40),
        ("m1", 7, 8, None),
        ("m2", 8, 9, 40),
    ]
    assert [event.id for event in unit.events if event is not None] == ["event-7", "event-8", "event-9"]
    assert [record.state for record in unit.records if record is not None] == [MACHINE_STATE_STARTED] * 3


def test_observations_without_effect_only_let_the_journal_advance() -> None:
    unit = planned(0, [start(1, "gone"), start(2), start(3, "m2"), start(4, "gone")], machine(), machine("m2", "w2"))
    assert [(s.machine_id, s.previous_sequence, s.sequence) for s in unit.steps] == [("m1", 0, 2), (None, 2, 4)]
    assert unit.records[1] is None
    assert unit.events[1] is None


def test_planning_leaves_the_machines_that_were_read_as_they_are() -> None:
    record = machine()
    planned(0, [start(1)], record)
    assert record == machine()
