"""Waiting for states: what a goal is, when it is reached, and waking up."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from skerry.store.v1.store_pb2 import MachineRecord
from skerry.types.v1.machine_pb2 import MachineEvent

from gateway.waits import STATES, Goal, Seen, Waits, goal_of, is_reached, timeout_of, was_reached
from services.runtime.errors import InvalidConfig, NotFound, WaitTimeout
from tests.support import eventually

ID = "00112233445566"


def machine(state: str, revision: int = 1, version: str = "V1") -> MachineRecord:
    return MachineRecord(id=ID, state=STATES[state], revision=revision, instance_id=version)


def reading(record: MachineRecord, *events: MachineEvent) -> Callable[[], Awaitable[Seen]]:
    async def read() -> Seen:
        return Seen(record, events)

    return read


def test_started_is_waited_for_where_no_state_is_named() -> None:
    assert goal_of([]) == Goal(frozenset({"started"}))


def test_several_states_may_be_named() -> None:
    assert goal_of(["stopped", "failed"], version="V1").states == {"stopped", "failed"}


@pytest.mark.parametrize(
    ("states", "more", "field"),
    [
        (["runing"], {}, "state"),
        (["STARTED"], {}, "state"),
        (["stopped"], {}, "instance_id"),
        (["started", "stopped"], {}, "instance_id"),
        (["started"], {"instance_id": "A", "version": "B"}, "version"),
    ],
)
def test_a_goal_that_makes_no_sense_is_refused_by_its_field(
    states: list[str], more: dict[str, str], field: str
) -> None:
    with pytest.raises(InvalidConfig) as refused:
        goal_of(states, **more)
    assert [violation.field for violation in refused.value.violations] == [field]


@pytest.mark.parametrize(
    ("text", "seconds"), [("", 60), ("1", 1), ("60", 60), ("60s", 60), ("1m", 60), ("1500ms", 1.5)]
)
def test_timeouts_are_seconds_or_durations(text: str, seconds: float) -> None:
    assert timeout_of(text) == seconds


@pytest.mark.parametrize("text", ["0", "61", "2m", "500ms", "-5", "soon", "1.5", "٣"])
def test_other_timeouts_are_refused(text: str) -> None:
    with pytest.raises(InvalidConfig, match="timeout"):
        timeout_of(text)


SETTLED = {"created", "started", "stopped", "suspended", "failed", "destroyed", "replaced", "migrated"}


@pytest.mark.parametrize("state", STATES)
def test_settled_is_every_state_that_does_not_pass(state: str) -> None:
    if state == "destroyed":
        assert is_reached(goal_of(["settled"]), machine(state))
    assert is_reached(goal_of(["settled"]), machine(state)) == (state in SETTLED)


@pytest.mark.parametrize(
    ("goal", "state", "reached"),
    [
        (goal_of(["started"], version="V1"), "started", True),
        (goal_of(["stopped"], version="V1"), "started", False),
        (goal_of(["destroyed"], version="V0"), "destroyed", True),
        (goal_of(["destroyed"], version="V0"), "started", False),
        (goal_of(["replaced"], version="V0"), "started", True),
        (goal_of(["settled"], version="V0"), "starting", True),
        (goal_of(["destroyed"]), "destroyed", True),
        (goal_of(["started"]), "destroying", False),
    ],
)
def test_a_goal_is_reached_by_the_state_of_its_version(goal: Goal, state: str, reached: bool) -> None:
    assert is_reached(goal, machine(state)) == reached


@pytest.mark.parametrize(
    ("goal", "state", "field"),
    [
        (goal_of(["started"]), "destroyed", "state"),
        (goal_of(["stopped"], version="V1"), "destroyed", "state"),
        (goal_of(["stopped"], version="V0"), "stopped", "version"),
        (goal_of(["started"], version="V0"), "started", "version"),
    ],
)
def test_what_can_never_be_reached_is_said_at_once(goal: Goal, state: str, field: str) -> None:
    with pytest.raises(InvalidConfig) as refused:
        is_reached(goal, machine(state))
    assert [violation.field for violation in refused.value.violations] == [field]


@pytest.mark.parametrize(
    ("after", "reached"),
    [("01A", True), ("01B", True), ("01C", False), ("01D", False), ("", False)],
)
def test_after_an_event_also_a_state_that_has_passed_counts(after: str, reached: bool) -> None:
    events = [MachineEvent(id="01C", status="stopped"), MachineEvent(id="01B", status="started")]
    if after == "01B":
        events.append(MachineEvent(id="01A", status="starting"))
        events[0].status = "started"
    seen = Seen(machine("stopped"), events)
    assert was_reached(goal_of(["started"], from_event_id=after), seen) == reached


def test_a_present_state_from_before_the_event_does_not_count() -> None:
    seen = Seen(machine("started"), [MachineEvent(id="01B", status="started")])
    assert not was_reached(goal_of(["started"], from_event_id="01B"), seen)
    assert was_reached(goal_of(["started"], from_event_id="01A"), seen)


async def test_who_waits_for_what_is_there_already_returns_at_once() -> None:
    waits = Waits()
    await waits.wait(ID, goal_of(["started"]), reading(machine("started")), seconds=5)
    assert len(waits) == 0


async def test_who_waits_is_woken_by_the_change() -> None:
    waits = Waits()
    waiting = asyncio.create_task(waits.wait(ID, goal_of(["started"]), reading(machine("starting")), seconds=5))
    await eventually(lambda: len(waits) == 1)
    waits.apply(MachineRecord(id="00112233445567", state=STATES["started"], revision=2))
    waits.apply(machine("restarting", revision=3))
    await asyncio.sleep(0)
    assert not waiting.done()
    waits.apply(machine("started", revision=4))
    await waiting
    assert len(waits) == 0


async def test_a_change_between_listening_and_reading_is_not_missed() -> None:
    waits = Waits()

    async def read() -> Seen:
        # The read was made before the change, whose news was here before the answer to the read.
        waits.apply(machine("started", revision=8))
        waits.apply(machine("stopped", revision=9))
        return Seen(machine("starting", revision=7), [])

    await waits.wait(ID, goal_of(["started"]), read, seconds=5)


async def test_news_from_before_the_read_is_no_news() -> None:
    waits = Waits()

    async def read() -> Seen:
        waits.apply(machine("started", revision=5))
        return Seen(machine("stopped", revision=6), [])

    waiting = asyncio.create_task(waits.wait(ID, goal_of(["started"]), read, seconds=5))
    await eventually(lambda: len(waits) == 1)
    waits.apply(machine("started", revision=4))
    await asyncio.sleep(0)
    assert not waiting.done()
    waits.apply(machine("started", revision=7))
    await waiting


async def test_a_wait_that_runs_out_says_in_what_state_the_machine_is() -> None:
    waits = Waits()
    waiting = asyncio.create_task(waits.wait(ID, goal_of(["started"]), reading(machine("starting")), seconds=0.05))
    await eventually(lambda: len(waits) == 1)
    waits.apply(machine("failed", revision=2))
    with pytest.raises(WaitTimeout, match="it is failed"):
        await waiting
    assert len(waits) == 0


async def test_who_waits_for_a_machine_that_is_destroyed_meanwhile_is_told_at_once() -> None:
    waits = Waits()
    goals = [goal_of(["started"]), goal_of(["destroyed"]), goal_of(["stopped"], version="V1")]
    waiting = [asyncio.create_task(waits.wait(ID, goal, reading(machine("stopping")), seconds=5)) for goal in goals]
    await eventually(lambda: len(waits) == 3)
    waits.apply(machine("destroyed", revision=2))
    outcomes = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [InvalidConfig, type(None), InvalidConfig]


async def test_who_waits_for_a_version_is_told_when_it_is_replaced() -> None:
    waits = Waits()
    goal = goal_of(["stopped"], version="V1")
    waiting = asyncio.create_task(waits.wait(ID, goal, reading(machine("started")), seconds=5))
    await eventually(lambda: len(waits) == 1)
    waits.apply(machine("updating", revision=2, version="V2"))
    with pytest.raises(InvalidConfig, match="V1 of machine 00112233445566 was replaced by V2"):
        await waiting


async def test_a_read_that_fails_ends_the_wait_and_one_that_is_cancelled_leaves_nothing() -> None:
    waits = Waits()

    async def fail() -> Seen:
        raise NotFound("gone")

    with pytest.raises(NotFound):
        await waits.wait(ID, goal_of([]), fail, seconds=5)
    waiting = asyncio.create_task(waits.wait(ID, goal_of([]), reading(machine("stopped")), seconds=5))
    await eventually(lambda: len(waits) == 1)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert len(waits) == 0


async def test_ten_thousand_who_wait_for_one_machine_are_all_woken() -> None:
    waits = Waits()
    read = reading(machine("starting"))
    waiting = [asyncio.create_task(waits.wait(ID, goal_of([]), read, seconds=30)) for _ in range(10_000)]
    await eventually(lambda: len(waits) == 10_000)
    waits.apply(machine("started", revision=2))
    await asyncio.gather(*waiting)
    assert len(waits) == 0
