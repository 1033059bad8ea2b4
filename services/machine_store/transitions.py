"""What verbs and observations make of a machine's state: tables, and the two functions that read them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import TypeAlias

from skerry.store.v1.store_pb2 import (
    DESIRED_STATE_DESTROYED,
    DESIRED_STATE_STARTED,
    DESIRED_STATE_STOPPED,
    DESIRED_STATE_SUSPENDED,
    DesiredState,
)
from skerry.types.v1.machine_pb2 import (
    MACHINE_STATE_CREATED,
    MACHINE_STATE_DESTROYED,
    MACHINE_STATE_DESTROYING,
    MACHINE_STATE_FAILED,
    MACHINE_STATE_LAUNCH_FAILED,
    MACHINE_STATE_RESTARTING,
    MACHINE_STATE_STARTED,
    MACHINE_STATE_STARTING,
    MACHINE_STATE_STOPPED,
    MACHINE_STATE_STOPPING,
    MACHINE_STATE_SUSPENDED,
    MACHINE_STATE_SUSPENDING,
    MachineState,
)

from services.runtime.errors import SkerryError, StillRunning, WrongState

State: TypeAlias = MachineState.ValueType
Desired: TypeAlias = DesiredState.ValueType


class Asked(Enum):
    """What can be asked of a machine; the value is the word for it."""

    START = "start"
    STOP = "stop"
    RESTART = "restart"
    SUSPEND = "suspend"
    UPDATE = "update"
    CORDON = "cordon"
    UNCORDON = "uncordon"
    LEASE = "lease"
    METADATA = "metadata"
    DESTROY = "destroy"


class Answer(Enum):
    """What a verb is answered with where it changes no state."""

    NOTHING_TO_DO = "200"
    DONE = "done"
    WRONG_STATE = "409"
    STILL_RUNNING = "412"


_OK, _NO, _RUNS, _DONE = Answer.NOTHING_TO_DO, Answer.WRONG_STATE, Answer.STILL_RUNNING, Answer.DONE
_STARTING, _RESTARTING = MACHINE_STATE_STARTING, MACHINE_STATE_RESTARTING
_STOPPING, _STOPPED = MACHINE_STATE_STOPPING, MACHINE_STATE_STOPPED
_SUSPENDING, _DESTROYING = MACHINE_STATE_SUSPENDING, MACHINE_STATE_DESTROYING

GONE = (MACHINE_STATE_DESTROYING, MACHINE_STATE_DESTROYED)
"""States of a machine that nothing can be asked of any more."""
_COLUMNS: tuple[tuple[State, ...], ...] = (
    (MACHINE_STATE_CREATED,),
    (MACHINE_STATE_STOPPED, MACHINE_STATE_FAILED, MACHINE_STATE_LAUNCH_FAILED),
    (MACHINE_STATE_SUSPENDED,),
    (MACHINE_STATE_STARTING, MACHINE_STATE_RESTARTING),
    (MACHINE_STATE_STARTED,),
    (MACHINE_STATE_STOPPING,),
    (MACHINE_STATE_SUSPENDING,),
    GONE,
)
# fmt: off
_ROWS: dict[Asked, tuple[State | Answer, ...]] = {
    #                created      stopped…     suspended    starting…    started      stopping   suspending destroying…
    Asked.START:    (_STARTING,   _STARTING,   _STARTING,   _OK,         _OK,         _NO,       _NO,       _NO),
    Asked.STOP:     (_STOPPED,    _OK,         _STOPPED,    _STOPPING,   _STOPPING,   _STOPPING, _STOPPING, _NO),
    Asked.RESTART:  (_STARTING,   _STARTING,   _STARTING,   _RESTARTING, _RESTARTING, _NO,       _NO,       _NO),
    Asked.SUSPEND:  (_NO,         _NO,         _OK,         _NO,         _SUSPENDING, _NO,       _OK,       _NO),
    Asked.UPDATE:   (_STOPPED,    _STOPPED,    _STOPPED,    _RESTARTING, _RESTARTING, _STOPPING, _STOPPING, _NO),
    Asked.CORDON:   (_DONE,       _DONE,       _DONE,       _DONE,       _DONE,       _DONE,     _DONE,     _NO),
    Asked.UNCORDON: (_DONE,       _DONE,       _DONE,       _DONE,       _DONE,       _DONE,     _DONE,     _NO),
    Asked.LEASE:    (_DONE,       _DONE,       _DONE,       _DONE,       _DONE,       _DONE,     _DONE,     _NO),
    Asked.METADATA: (_DONE,       _DONE,       _DONE,       _DONE,       _DONE,       _DONE,     _DONE,     _NO),
    Asked.DESTROY:  (_DESTROYING, _DESTROYING, _DESTROYING, _RUNS,       _RUNS,       _RUNS,     _RUNS,     _OK),
}
# fmt: on

VERBS: Mapping[Asked, Mapping[State, State | Answer]] = {
    asked: {state: outcome for states, outcome in zip(_COLUMNS, row, strict=True) for state in states}
    for asked, row in _ROWS.items()
}
"""The next state, or the answer, of a verb in a state."""

DESIRED: Mapping[State, Desired] = {
    MACHINE_STATE_CREATED: DESIRED_STATE_STOPPED,
    MACHINE_STATE_STARTING: DESIRED_STATE_STARTED,
    MACHINE_STATE_RESTARTING: DESIRED_STATE_STARTED,
    MACHINE_STATE_STARTED: DESIRED_STATE_STARTED,
    MACHINE_STATE_STOPPING: DESIRED_STATE_STOPPED,
    MACHINE_STATE_STOPPED: DESIRED_STATE_STOPPED,
    MACHINE_STATE_SUSPENDING: DESIRED_STATE_SUSPENDED,
    MACHINE_STATE_SUSPENDED: DESIRED_STATE_SUSPENDED,
    MACHINE_STATE_FAILED: DESIRED_STATE_STOPPED,
    MACHINE_STATE_DESTROYING: DESIRED_STATE_DESTROYED,
    MACHINE_STATE_DESTROYED: DESIRED_STATE_DESTROYED,
}
"""What a machine in a state is asked to be; states that no machine is put into are not in it."""

RUN_AGAIN: frozenset[State] = frozenset({MACHINE_STATE_STARTING, MACHINE_STATE_RESTARTING})
"""States that begin a generation when a verb leads to them."""

_ADVICE: Mapping[State, str] = {
    MACHINE_STATE_STARTING: "stop it first",
    MACHINE_STATE_RESTARTING: "stop it first",
    MACHINE_STATE_STARTED: "stop it first",
    MACHINE_STATE_STOPPING: "wait until it is stopped",
    MACHINE_STATE_SUSPENDING: "wait until it is suspended",
    MACHINE_STATE_DESTROYING: "create another machine",
    MACHINE_STATE_DESTROYED: "create another machine",
}


_NOT_RUNNING_YET: Mapping[State, str] = {
    MACHINE_STATE_CREATED: "start it first",
    MACHINE_STATE_STOPPED: "start it first",
    MACHINE_STATE_FAILED: "start it first",
    MACHINE_STATE_LAUNCH_FAILED: "start it first",
    MACHINE_STATE_STARTING: "wait until it is started",
    MACHINE_STATE_RESTARTING: "wait until it is started",
}
"""Advice for what only a machine that runs can do."""


def state_name(state: State) -> str:
    """A state as users write it."""
    return MachineState.Name(state).removeprefix("MACHINE_STATE_").lower()


def ask(asked: Asked, state: State, *, machine: str, force: bool = False, launch: bool = True) -> State | None:
    """The state that `asked` puts a machine into, or leaves it in; None when there is nothing left to do.

    `force` destroys one that runs; `launch` restarts one that runs into its new version, otherwise it is stopped.
    Raises WrongState or StillRunning, as the table says.
    """
    outcome = VERBS[asked].get(state, Answer.WRONG_STATE)
    if outcome is Answer.STILL_RUNNING and force:
        return MACHINE_STATE_DESTROYING
    if isinstance(outcome, Answer):
        if outcome is Answer.NOTHING_TO_DO:
            return None
        if outcome is Answer.DONE:
            return state
        raise _refusal(outcome, asked, state, machine)
    if asked is Asked.UPDATE and outcome in RUN_AGAIN and not launch:
        return MACHINE_STATE_STOPPING
    return outcome


def _refusal(answer: Answer, asked: Asked, state: State, machine: str) -> SkerryError:
    advice = _ADVICE.get(state, "wait until it is in another state")
    if asked is Asked.SUSPEND and state in _NOT_RUNNING_YET:
        advice = _NOT_RUNNING_YET[state]
    kind: type[SkerryError] = WrongState
    if answer is Answer.STILL_RUNNING:
        kind, advice = StillRunning, f"{advice}, or destroy it with force"
    name = state_name(state)
    return kind(
        f"machine {machine} is {name}: {asked.value} is refused then; {advice}",
        metadata={"machine_id": machine, "state": name, "verb": asked.value},
    )


class Seen(Enum):
    """What a worker can have seen of a machine that bears on its state."""

    STARTED = "started"
    RESTARTING = "exited, and its policy starts it again"
    EXITED = "exited"
    FAILED = "failed"
    SUSPENDED = "suspended"
    NOT_SUSPENDED = "cannot be suspended"
    DESTROYED = "destroyed"


@dataclass(frozen=True, slots=True)
class Next:
    """Where a machine is after an observation."""

    state: State
    desired: Desired


_EFFECTS: Mapping[tuple[Seen, Desired], State] = {
    (Seen.STARTED, DESIRED_STATE_STARTED): MACHINE_STATE_STARTED,
    (Seen.RESTARTING, DESIRED_STATE_STARTED): MACHINE_STATE_RESTARTING,
    (Seen.EXITED, DESIRED_STATE_STARTED): MACHINE_STATE_STOPPED,
    (Seen.FAILED, DESIRED_STATE_STARTED): MACHINE_STATE_FAILED,
    (Seen.EXITED, DESIRED_STATE_STOPPED): MACHINE_STATE_STOPPED,
    (Seen.FAILED, DESIRED_STATE_STOPPED): MACHINE_STATE_STOPPED,
    (Seen.SUSPENDED, DESIRED_STATE_SUSPENDED): MACHINE_STATE_SUSPENDED,
    (Seen.NOT_SUSPENDED, DESIRED_STATE_SUSPENDED): MACHINE_STATE_STARTED,
    (Seen.EXITED, DESIRED_STATE_SUSPENDED): MACHINE_STATE_STOPPED,
    (Seen.FAILED, DESIRED_STATE_SUSPENDED): MACHINE_STATE_FAILED,
    (Seen.DESTROYED, DESIRED_STATE_DESTROYED): MACHINE_STATE_DESTROYED,
}
"""The state after an observation of the present generation, by what is asked for; what is not in it changes nothing."""

_STILL_THERE: frozenset[State] = frozenset({MACHINE_STATE_STOPPING})


def observe(seen: Seen, state: State, desired: Desired, *, auto_destroy: bool = False) -> Next:
    """Where an observation of its present generation takes a machine.

    `auto_destroy` destroys one that ended by itself and is not started again.
    """
    after = _EFFECTS.get((seen, desired))
    if after is None or state == MACHINE_STATE_DESTROYED:
        return Next(state, desired)
    if desired == DESIRED_STATE_STOPPED and state not in _STILL_THERE:
        return Next(state, desired)
    if seen is Seen.EXITED and desired == DESIRED_STATE_STARTED and auto_destroy:
        after = MACHINE_STATE_DESTROYING
    return Next(after, DESIRED[after])
