"""Waiting until a machine is in a state, from one stream of changes that all waiters of the process share."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from skerry.store.v1.store_pb2 import MachineRecord
from skerry.types.v1 import machine_pb2
from skerry.types.v1.machine_pb2 import MachineEvent, MachineState

from services.runtime.durations import SECOND, parse_go_duration
from services.runtime.errors import InvalidConfig, SkerryError, Violation, WaitTimeout

SETTLED = "settled"
"""The pseudo-state of a machine that is in no transient state."""

STATES: dict[str, MachineState.ValueType] = {
    name.removeprefix("MACHINE_STATE_").lower(): state for name, state in MachineState.items() if state
}
"""State by its name in the API."""
STATE_NAMES: dict[int, str] = {state: name for name, state in STATES.items()}
"""Name in the API by state."""

TRANSIENT: frozenset[int] = frozenset(
    {
        machine_pb2.MACHINE_STATE_STARTING,
        machine_pb2.MACHINE_STATE_STOPPING,
        machine_pb2.MACHINE_STATE_RESTARTING,
        machine_pb2.MACHINE_STATE_SUSPENDING,
        machine_pb2.MACHINE_STATE_DESTROYING,
        machine_pb2.MACHINE_STATE_LAUNCH_FAILED,
        machine_pb2.MACHINE_STATE_UPDATING,
        machine_pb2.MACHINE_STATE_REPLACING,
    }
)
_ONLY_WORDS = frozenset({SETTLED, "creating"})
"""States that clients may name and that no machine is recorded in."""
_SETTLED_NAMES = frozenset(name for state, name in STATE_NAMES.items() if state not in TRANSIENT)

SHORTEST_SECONDS = 1
LONGEST_SECONDS = 60


@dataclass(frozen=True, slots=True)
class Goal:
    """What is waited for: any of `states` (names); in one version and after one event, where those are not empty."""

    states: frozenset[str]
    version: str = ""
    after: str = ""

    def __str__(self) -> str:
        wanted = " or ".join(sorted(self.states))
        return f"{wanted} in version {self.version}" if self.version else wanted


class Seen(NamedTuple):
    """A machine as it was read, and its newest events, newest first."""

    machine: MachineRecord
    events: Sequence[MachineEvent]


def goal_of(states: Iterable[str], *, instance_id: str = "", version: str = "", from_event_id: str = "") -> Goal:
    """What a request asks to wait for; "started" where it names no state.

    `instance_id` and `version` mean the same. Raises InvalidConfig of the field `state` or `version`.
    """
    names = frozenset(states) or frozenset({"started"})
    unknown = sorted(names - STATES.keys() - _ONLY_WORDS)
    if unknown:
        known = ", ".join(sorted({*STATES, *_ONLY_WORDS}))
        raise _invalid("state", f"{unknown[0]!r} is no state of a machine; there are: {known}")
    if instance_id and version and instance_id != version:
        raise _invalid("version", "must be the same as instance_id, where both are given")
    chosen = instance_id or version
    if "stopped" in names and not chosen:
        raise _invalid("instance_id", "is needed with the state stopped: the version that must have stopped")
    return Goal(names, chosen, from_event_id)


def timeout_of(text: str) -> float:
    """Seconds to wait: "30", "30s", "1m"; the longest where empty. Raises InvalidConfig of the field `timeout`."""
    if not text:
        return LONGEST_SECONDS
    try:
        seconds = float(text) if text.isascii() and text.isdigit() else parse_go_duration(text) / SECOND
    except ValueError as error:
        raise _invalid("timeout", str(error)) from None
    if not SHORTEST_SECONDS <= seconds <= LONGEST_SECONDS:
        raise _invalid("timeout", f"must be {SHORTEST_SECONDS}..{LONGEST_SECONDS} seconds")
    return seconds


def is_reached(goal: Goal, machine: MachineRecord) -> bool:
    """Whether the machine is where `goal` wants it. Raises InvalidConfig when it can never be there any more."""
    state = STATE_NAMES.get(machine.state, "")
    if goal.version and machine.instance_id != goal.version:
        # What was asked about is an older version, whose state is "replaced" for good.
        if goal.states & {"replaced", SETTLED} or (state == "destroyed" and state in goal.states):
            return True
        if "destroyed" in goal.states and state != "destroyed":
            return False
        raise _invalid(
            "version",
            f"{goal.version} of machine {machine.id} was replaced by {machine.instance_id}: it will not be "
            f"{' or '.join(sorted(goal.states))}; wait for the new version",
        )
    if state in goal.states or (SETTLED in goal.states and machine.state not in TRANSIENT):
        return True
    if state == "destroyed":
        raise _invalid("state", f"will not be {goal} any more: machine {machine.id} is destroyed")
    return False


def was_reached(goal: Goal, seen: Seen) -> bool:
    """Whether what was read is where `goal` wants it, or was so after the event that the goal names.

    Raises InvalidConfig when it can never be there any more.
    """
    if not goal.after:
        return is_reached(goal, seen.machine)
    newer = _newer(seen.events, goal.after)
    wanted = goal.states | _SETTLED_NAMES if SETTLED in goal.states else goal.states
    if any(event.status in wanted for event in newer) and goal.version in ("", seen.machine.instance_id):
        return True
    return is_reached(goal, seen.machine) and bool(newer)


def _newer(events: Sequence[MachineEvent], after: str) -> Sequence[MachineEvent]:
    ids = [event.id for event in events]
    # Where the event is not among the newest, ids decide: they begin with their time.
    return events[: ids.index(after)] if after in ids else [event for event in events if event.id > after]


class Waits:
    """The waiters of a process. `apply` is given every change of a machine, in order."""

    def __init__(self) -> None:
        self._waiters: dict[str, list[_Waiter]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._waiters.values()))

    def apply(self, machine: MachineRecord) -> None:
        """A machine changed: wake those who waited for it to be so."""
        for waiter in self._waiters.get(machine.id, ()):
            waiter.see(machine)

    async def wait(self, machine_id: str, goal: Goal, read: Callable[[], Awaitable[Seen]], seconds: float) -> None:
        """Return once the machine is where `goal` wants it.

        `read` reads it from the store; it is called once, after changes are being listened to, so none falls between.
        Raises WaitTimeout after `seconds`, InvalidConfig once the goal can never be reached, and what `read` raises.
        """
        waiter = _Waiter(goal)
        waiters = self._waiters.setdefault(machine_id, [])
        waiters.append(waiter)
        timeout = asyncio.timeout(seconds)
        try:
            async with timeout:
                if not await waiter.is_there(read):
                    await waiter.done
        except TimeoutError:
            if not timeout.expired():
                raise
            state = STATE_NAMES.get(waiter.state, "not known")
            raise WaitTimeout(
                f"machine {machine_id} was not {goal} within {seconds:g} s; it is {state}",
                metadata={"state": state},
            ) from None
        finally:
            waiters.remove(waiter)
            if not waiters:
                del self._waiters[machine_id]


class _Waiter:
    """One who waits. Until the machine has been read, changes are kept: the read tells which of them are news."""

    __slots__ = ("done", "early", "goal", "revision", "state")

    def __init__(self, goal: Goal) -> None:
        self.goal = goal
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.early: list[MachineRecord] | None = []
        self.revision = 0
        self.state = 0

    def see(self, machine: MachineRecord) -> None:
        if self.early is not None:
            self.early.append(machine)
        elif machine.revision > self.revision and not self.done.done():
            self.revision, self.state = machine.revision, machine.state
            try:
                if is_reached(self.goal, machine):
                    self.done.set_result(None)
            except SkerryError as error:
                self.done.set_exception(error)

    async def is_there(self, read: Callable[[], Awaitable[Seen]]) -> bool:
        """Whether the machine, read now, is where it is wanted; else what comes after that read counts.

        What was read is not kept: many may wait for long.
        """
        seen = await read()
        if was_reached(self.goal, seen):
            return True
        early, self.early = self.early or (), None
        self.revision, self.state = seen.machine.revision, seen.machine.state
        for machine in early:
            self.see(machine)
        return False


def _invalid(field: str, why: str) -> InvalidConfig:
    return InvalidConfig(f"{field} {why}", violations=[Violation(field, why)])
