from __future__ import annotations

from random import Random

from skerry.store.v1.store_pb2 import Change, WatchResponse
from skerry.types.v1.machine_pb2 import MACHINE_STATE_STARTING

from services.runtime.clock import FakeClock
from services.scheduler.view import View
from tests.support_fleet import machine, worker


def message(*changes: Change, revision: int, snapshot: bool = False, complete: bool = False) -> WatchResponse:
    return WatchResponse(changes=changes, revision=revision, snapshot=snapshot, snapshot_complete=complete)


async def test_the_old_view_stays_until_the_new_state_is_complete() -> None:
    view = View(FakeClock(), Random(1))
    view.reset()
    view(message(Change(revision=1, worker=worker("old")), revision=3, snapshot=True, complete=True))
    view(message(Change(revision=4, machine=machine("m", "old", state=MACHINE_STATE_STARTING)), revision=4))
    view.reset()
    view(message(Change(revision=8, worker=worker("new")), revision=9, snapshot=True))
    assert view.fleet.row_of("old") is not None
    assert view.fleet.row_of("new") is None
    assert view.revision == 4
    view(message(revision=9, snapshot=True, complete=True))
    assert view.fleet.row_of("old") is None
    assert view.fleet.row_of("new") is not None
    assert not view.watchlist.transient
    assert view.revision == 9
    view(message(Change(revision=10, worker=worker("newer")), revision=10))
    assert len(view.fleet) == 2
    assert view.revision == 10


async def test_the_view_is_as_stale_as_the_last_word_of_the_store_is_old() -> None:
    clock = FakeClock()
    view = View(clock, Random(1))
    await clock.advance(7.0)
    assert view.staleness == 7.0
    view(message(revision=1))
    await clock.advance(2.0)
    assert view.staleness == 2.0
