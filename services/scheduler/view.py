"""What the scheduler knows of its cell, kept up to date by the store's log."""

from __future__ import annotations

from random import Random

from skerry.store.v1.store_pb2 import (
    MACHINE_VIEW_BASIC,
    RECORD_KIND_MACHINE,
    RECORD_KIND_VOLUME,
    RECORD_KIND_WORKER,
    WatchFilter,
    WatchResponse,
)

from services.runtime.clock import Clock
from services.scheduler.fleet import Fleet
from services.scheduler.reconcile import Watchlist

FILTER = WatchFilter(kinds=[RECORD_KIND_WORKER, RECORD_KIND_MACHINE, RECORD_KIND_VOLUME], view=MACHINE_VIEW_BASIC)
"""What of the log the view is made of."""


class View:
    """The fleet and the watchlist; follows a watch with `FILTER`.

    When the state begins anew, the old view stays until the new one is complete.
    """

    def __init__(self, clock: Clock, random: Random) -> None:
        self._clock = clock
        self._random = random
        self.fleet = Fleet(random)
        self.watchlist = Watchlist()
        self.revision = 0
        """Revision of the log that the view is of."""
        self._filling = (self.fleet, self.watchlist)
        self._heard_at = clock.monotonic()

    @property
    def staleness(self) -> float:
        """Seconds since the store last said how far the log is."""
        return self._clock.monotonic() - self._heard_at

    def reset(self) -> None:
        """The whole state comes next."""
        self._filling = (Fleet(self._random), Watchlist())

    def __call__(self, response: WatchResponse) -> None:
        """Take in a message of the watch."""
        fleet, watchlist = self._filling
        for change in response.changes:
            if change.HasField("machine"):
                fleet.put_machine(change.machine)
                watchlist.put_machine(change.machine)
            elif change.HasField("worker"):
                fleet.put_worker(change.worker)
            elif change.HasField("volume"):
                fleet.put_volume(change.volume)
        self._heard_at = self._clock.monotonic()
        if response.snapshot_complete:
            self.fleet, self.watchlist = fleet, watchlist
        if response.snapshot_complete or not response.snapshot:
            self.revision = response.revision
