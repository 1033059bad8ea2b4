"""What to do next about a machine: what is wanted against what is here. Tables, and nothing that touches a process."""

from __future__ import annotations

from enum import Enum, auto

from skerry.store.v1.store_pb2 import (
    DESIRED_STATE_DESTROYED,
    DESIRED_STATE_STARTED,
    DESIRED_STATE_SUSPENDED,
    MachineRecord,
)
from skerry.types.v1.machine_pb2 import (
    MACHINE_STATE_CREATED,
    MACHINE_STATE_DESTROYED,
    MACHINE_STATE_FAILED,
    MACHINE_STATE_LAUNCH_FAILED,
    MACHINE_STATE_STARTED,
    MACHINE_STATE_STOPPED,
    MachineState,
)

from services.worker.journal import Entry, Phase


class Want(Enum):
    """What the store wants of this worker for a machine."""

    RUN = auto()
    """It runs, in the generation that is here."""
    RENEW = auto()
    """It runs, in a generation that is not here yet."""
    SUSPEND = auto()
    """It is frozen, in the generation that is here."""
    REST = auto()
    """It does not run."""
    SETTLE = auto()
    """It does not run, in a generation that the store has yet to hear of."""
    DESTROY = auto()
    """It is gone."""
    LEAVE = auto()
    """It is let go, for another worker to run."""
    HOLD = auto()
    """Nothing yet: another worker has it still."""
    NOTHING = auto()
    """The store does not have it here."""


class Step(Enum):
    """What the agent does next; after each, it asks again."""

    NONE = auto()
    """Nothing, until something changes."""
    WAIT = auto()
    """Nothing, until the time to restart."""
    START = auto()
    """Begin a run."""
    SUSPEND = auto()
    """Freeze what runs."""
    RESUME = auto()
    """Let what is frozen go on."""
    STOP = auto()
    """Stop what runs."""
    CONCLUDE = auto()
    """Write down how what ran has ended."""
    SETTLE = auto()
    """Tell that nothing runs."""
    DESTROY = auto()
    """Remove what is left, and tell that it is gone."""
    LEAVE = auto()
    """Remove what is left, and tell that it was let go."""
    FORGET = auto()
    """Remove what is left, and tell nobody."""


# fmt: off
#               nothing here  it runs       it is frozen  it waits to restart  it was paused  it has ended  it failed
_TABLE: dict[Want, tuple[Step, Step, Step, Step, Step, Step, Step]] = {
    Want.RUN:     (Step.START,   Step.NONE,    Step.RESUME, Step.WAIT,    Step.START,   Step.NONE,    Step.NONE),
    Want.RENEW:   (Step.START,   Step.STOP,    Step.STOP,   Step.START,   Step.START,   Step.START,   Step.START),
    Want.SUSPEND: (Step.SETTLE,  Step.SUSPEND, Step.NONE,   Step.SETTLE,  Step.SETTLE,  Step.NONE,    Step.NONE),
    Want.REST:    (Step.NONE,    Step.STOP,    Step.STOP,   Step.SETTLE,  Step.SETTLE,  Step.NONE,    Step.NONE),
    Want.SETTLE:  (Step.SETTLE,  Step.STOP,    Step.STOP,   Step.SETTLE,  Step.SETTLE,  Step.SETTLE,  Step.SETTLE),
    Want.DESTROY: (Step.DESTROY, Step.STOP,    Step.STOP,   Step.DESTROY, Step.DESTROY, Step.DESTROY, Step.DESTROY),
    Want.LEAVE:   (Step.LEAVE,   Step.STOP,    Step.STOP,   Step.LEAVE,   Step.LEAVE,   Step.LEAVE,   Step.LEAVE),
    Want.HOLD:    (Step.NONE,    Step.NONE,    Step.NONE,   Step.NONE,    Step.NONE,    Step.NONE,    Step.NONE),
    Want.NOTHING: (Step.NONE,    Step.STOP,    Step.STOP,   Step.FORGET,  Step.FORGET,  Step.FORGET,  Step.FORGET),
}
_COLUMNS: dict[Phase, int] = {
    Phase.STARTING: 1, Phase.RUNNING: 1, Phase.SUSPENDED: 2, Phase.WAITING: 3, Phase.PAUSED: 4, Phase.ENDED: 5,
    Phase.FAILED: 6,
}
# fmt: on

ALIVE = frozenset((Phase.STARTING, Phase.RUNNING, Phase.SUSPENDED))
"""Phases in which processes of the machine may live."""

AT_REST: frozenset[MachineState.ValueType] = frozenset(
    (MACHINE_STATE_CREATED, MACHINE_STATE_STOPPED, MACHINE_STATE_FAILED, MACHINE_STATE_LAUNCH_FAILED)
)
"""States in which the store expects nothing to run, and waits for no word about it."""

SETTLED: frozenset[MachineState.ValueType] = AT_REST | {MACHINE_STATE_STARTED, MACHINE_STATE_DESTROYED}
"""States in which the store waits for no word about a machine."""


def want_of(record: MachineRecord | None, entry: Entry | None, worker_id: str) -> Want:
    """What the store's record (None: it has none here) wants of the worker, whose journal has `entry`."""
    if record is None:
        return Want.NOTHING
    if record.leaving_worker_id == worker_id:
        return Want.LEAVE
    if record.worker_id != worker_id or record.state == MACHINE_STATE_DESTROYED:
        return Want.NOTHING
    if record.leaving_worker_id:
        return Want.HOLD
    if record.desired == DESIRED_STATE_DESTROYED:
        return Want.DESTROY
    older = entry is None or entry.generation < record.generation
    if record.desired == DESIRED_STATE_STARTED:
        return Want.RENEW if older else Want.RUN
    if record.desired == DESIRED_STATE_SUSPENDED and entry is not None and not older:
        return Want.SUSPEND
    return Want.SETTLE if older and record.state not in AT_REST else Want.REST


def next_step(want: Want, entry: Entry | None, *, exited: bool, halting: bool, now: float) -> Step:
    """What to do next.

    `exited`: what ran has ended, and the journal does not say so yet. `halting`: the worker goes down, and what runs
    with it. `now` in unix seconds.
    """
    alive = entry is not None and entry.phase in ALIVE
    if alive and exited:
        return Step.CONCLUDE
    if halting:
        return Step.STOP if alive else Step.NONE
    step = _TABLE[want][0 if entry is None else _COLUMNS[entry.phase]]
    if step is Step.WAIT and entry is not None and now >= entry.restart_at:
        return Step.START
    return step
