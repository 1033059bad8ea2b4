"""The tables of verbs and observations, against the words of the reference."""

from __future__ import annotations

import pytest
from skerry.store.v1.store_pb2 import (
    DESIRED_STATE_DESTROYED,
    DESIRED_STATE_STARTED,
    DESIRED_STATE_STOPPED,
    DESIRED_STATE_SUSPENDED,
    DesiredState,
)
from skerry.types.v1.machine_pb2 import MachineState

from services.machine_store.transitions import DESIRED, VERBS, Asked, Next, Seen, ask, observe, state_name
from services.runtime.errors import StillRunning, WrongState

# Column heads and rows as the reference of the public API has them; an update says where its machine goes.
REFERENCE = """
        | created    | stopped failed launch_failed | suspended  | starting restarting | started    | stopping suspending | destroying destroyed
start   | starting   | starting                     | starting   | 200                 | 200        | 409                 | 409
stop    | stopped    | 200                          | stopped    | stopping            | stopping   | stopping            | 409
restart | starting   | starting                     | starting   | restarting          | restarting | 409                 | 409
suspend | 409        | 409                          | 200        | 409                 | suspending | 409                 | 409
update  | stopped    | stopped                      | stopped    | restarting          | restarting | stopping            | 409
cordon  | done       | done                         | done       | done                | done       | done                | 409
uncordon| done       | done                         | done       | done                | done       | done                | 409
lease   | done       | done                         | done       | done                | done       | done                | 409
metadata| done       | done                         | done       | done                | done       | done                | 409
destroy | destroying | destroying                   | destroying | 412                 | 412        | 412                 | 200
"""  # noqa: E501


def state(name: str) -> MachineState.ValueType:
    return MachineState.Value(f"MACHINE_STATE_{name.upper()}")


def rows() -> list[tuple[str, str, str]]:
    head, *lines = [[cell.strip() for cell in line.split("|")] for line in REFERENCE.strip("\n").splitlines()]
    return [
        (verb, one, cell)
        for verb, *cells in lines
        for names, cell in zip(head[1:], cells, strict=True)
        for one in names.split()
    ]


@pytest.mark.parametrize(("verb", "before", "expected"), rows())
def test_verbs_do_in_each_state_what_the_reference_says(verb: str, before: str, expected: str) -> None:
    asked = Asked(verb)
    if (verb, before) == ("suspend", "suspending"):
        expected = "200"  # The one cell with an exception in brackets.
    if expected == "409":
        with pytest.raises(WrongState, match=rf"m1 is {before}.*{verb}"):
            ask(asked, state(before), machine="m1")
    elif expected == "412":
        with pytest.raises(StillRunning, match=rf"m1 is {before}.*force"):
            ask(asked, state(before), machine="m1")
        assert ask(asked, state(before), machine="m1", force=True) == state("destroying")
    else:
        after = ask(asked, state(before), machine="m1")
        if expected == "done":
            assert after == state(before)
            return
        assert ("200" if after is None else state_name(after)) == expected


def test_the_table_knows_every_state_that_a_machine_is_put_into() -> None:
    for asked in Asked:
        assert set(DESIRED) <= set(VERBS[asked])


def test_a_refusal_says_what_to_do() -> None:
    with pytest.raises(StillRunning, match="stop it first, or destroy it with force"):
        ask(Asked.DESTROY, state("started"), machine="m1")
    with pytest.raises(WrongState, match="wait until it is stopped"):
        ask(Asked.START, state("stopping"), machine="m1")


@pytest.mark.parametrize("before", ["starting", "restarting", "started"])
def test_an_update_that_does_not_launch_stops_what_runs(before: str) -> None:
    assert ask(Asked.UPDATE, state(before), machine="m1", launch=False) == state("stopping")


@pytest.mark.parametrize("before", ["created", "stopped", "failed"])
def test_an_update_starts_nothing_that_does_not_run(before: str) -> None:
    for launch in (True, False):
        assert ask(Asked.UPDATE, state(before), machine="m1", launch=launch) == state("stopped")


RUN, STOP, GONE = DESIRED_STATE_STARTED, DESIRED_STATE_STOPPED, DESIRED_STATE_DESTROYED
FREEZE = DESIRED_STATE_SUSPENDED


@pytest.mark.parametrize(
    ("seen", "before", "desired", "after", "desired_after"),
    [
        (Seen.STARTED, "starting", RUN, "started", RUN),
        (Seen.STARTED, "restarting", RUN, "started", RUN),
        (Seen.STARTED, "stopping", STOP, "stopping", STOP),
        (Seen.STARTED, "destroying", GONE, "destroying", GONE),
        (Seen.RESTARTING, "started", RUN, "restarting", RUN),
        (Seen.RESTARTING, "stopping", STOP, "stopping", STOP),
        (Seen.EXITED, "started", RUN, "stopped", STOP),
        (Seen.EXITED, "starting", RUN, "stopped", STOP),
        (Seen.EXITED, "stopping", STOP, "stopped", STOP),
        (Seen.EXITED, "stopped", STOP, "stopped", STOP),
        (Seen.EXITED, "failed", STOP, "failed", STOP),
        (Seen.EXITED, "destroying", GONE, "destroying", GONE),
        (Seen.FAILED, "starting", RUN, "failed", STOP),
        (Seen.FAILED, "stopping", STOP, "stopped", STOP),
        (Seen.FAILED, "destroying", GONE, "destroying", GONE),
        (Seen.SUSPENDED, "suspending", FREEZE, "suspended", FREEZE),
        (Seen.SUSPENDED, "starting", RUN, "starting", RUN),
        (Seen.SUSPENDED, "stopping", STOP, "stopping", STOP),
        (Seen.NOT_SUSPENDED, "suspending", FREEZE, "started", RUN),
        (Seen.NOT_SUSPENDED, "destroying", GONE, "destroying", GONE),
        (Seen.STARTED, "suspending", FREEZE, "suspending", FREEZE),
        (Seen.RESTARTING, "suspending", FREEZE, "suspending", FREEZE),
        (Seen.EXITED, "suspending", FREEZE, "stopped", STOP),
        (Seen.EXITED, "suspended", FREEZE, "stopped", STOP),
        (Seen.FAILED, "suspending", FREEZE, "failed", STOP),
        (Seen.DESTROYED, "destroying", GONE, "destroyed", GONE),
        (Seen.DESTROYED, "destroyed", GONE, "destroyed", GONE),
        (Seen.DESTROYED, "started", RUN, "started", RUN),
        (Seen.DESTROYED, "stopped", STOP, "stopped", STOP),
    ],
)
def test_observations_move_a_machine_towards_what_was_asked(
    seen: Seen,
    before: str,
    desired: DesiredState.ValueType,
    after: str,
    desired_after: DesiredState.ValueType,
) -> None:
    assert observe(seen, state(before), desired) == Next(state(after), desired_after)


def test_a_machine_that_ended_by_itself_goes_if_its_spec_says_so() -> None:
    assert observe(Seen.EXITED, state("started"), RUN, auto_destroy=True) == Next(state("destroying"), GONE)
    assert observe(Seen.EXITED, state("stopping"), STOP, auto_destroy=True) == Next(state("stopped"), STOP)
    assert observe(Seen.RESTARTING, state("started"), RUN, auto_destroy=True) == Next(state("restarting"), RUN)
