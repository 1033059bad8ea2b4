"""The mirror: what the cell's log says goes up to the centre, at least once, as far as the centre says that it has it.

One instance of the cell does it, under the duty `mirror`. The centre's answer decides where to go on, so that a centre
that lost something gets it again; the cursor in the store shows how far it is. A centre that is behind the beginning of
the log, or ahead of its end, gets the whole state.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from random import Random
from typing import TYPE_CHECKING, Never

from prometheus_client import Gauge
from skerry.store.v1.store_pb2 import MACHINE_VIEW_FULL, Change, WatchFilter, WatchRequest

from services.central_sync.calls import Refusal
from services.central_sync.central_client import CentralClient, MirrorEvent
from services.central_sync.marks import Marks
from services.central_sync.mirroring import events_of, state_of
from services.central_sync.settings import CallClass, MirrorSettings
from services.runtime import telemetry
from services.runtime.clock import Clock
from services.runtime.duty import Duty
from services.runtime.errors import Conflict, RevisionTooOld, SkerryError
from services.runtime.following import WATCH_SECONDS
from services.runtime.telemetry import log

if TYPE_CHECKING:
    from skerry.store.v1.store_pb2_grpc import MachineStoreAsyncStub

DUTY = "mirror"
"""Name of the duty; its cursor is the revision up to which the centre has everything."""

_EVERYTHING = WatchFilter(view=MACHINE_VIEW_FULL)
_NO_MACHINE = WatchFilter(machine_id="-")
_LOOK_SECONDS = 3.0
_MADE_AT_ONCE = 8

_behind = Gauge(
    "skerry_mirror_behind_revisions",
    "Revisions of the log that the centre does not have yet, as far as the leading instance knows.",
    ["cell"],
    registry=telemetry.metrics,
)


@dataclass(frozen=True, slots=True)
class MirrorState:
    """The revision that the centre has, and how many it does not have yet."""

    revision: int = 0
    behind: int = 0


class Mirror:
    """The mirror of one cell, as one instance sees it."""

    def __init__(
        self,
        client: CentralClient,
        store: MachineStoreAsyncStub,
        marks: Marks,
        duty: Duty,
        settings: MirrorSettings,
        *,
        cell: str,
        clock: Clock,
        random: Random,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        """`on_change` is called when the state changes."""
        self.state = MirrorState()
        self._client = client
        self._store = store
        self._marks = marks
        self._duty = duty
        self._settings = settings
        self._clock = clock
        self._random = random
        self._on_change = on_change
        _behind.labels(cell).set_function(lambda: self.state.behind if self._duty.term is not None else 0)

    async def run(self) -> Never:
        """Mirror while this instance leads, until cancelled."""
        await self._duty.run(self._work)

    async def refresh(self) -> None:
        """Learn from the store how far the centre is, unless this instance leads."""
        if self._duty.term is not None:
            return
        revision = await self._marks.get(DUTY)
        watch = self._store.Watch(WatchRequest(filter=_NO_MACHINE), timeout=_LOOK_SECONDS)
        try:
            async for response in watch:
                self._show(revision, response.newest_revision)
                return
        finally:
            watch.cancel()

    async def _work(self, term: int) -> None:
        while True:
            try:
                await self._once(term)
                pause = self._settings.gather
            except Conflict as error:
                log.info("mirror_begins_anew", term=term, why=error.message)
                return
            except (SkerryError, Refusal) as error:
                log.warning("mirror_interrupted", revision=self.state.revision, why=str(error))
                pause = self._settings.retry_every
            await self._clock.sleep(pause)
            await self._client.calls[CallClass.MIRROR].until_closed()

    async def _once(self, term: int) -> None:
        """Send what the centre lacks, until it is at another revision than what was sent leads to."""
        reached = await self._client.mirror_events([])
        await self._note(term, reached, reached)
        try:
            await self._follow(term, reached)
        except RevisionTooOld:
            log.warning("mirror_sends_state", revision=reached)
            await self._send_state(term)

    async def _follow(self, term: int, reached: int) -> None:
        request = WatchRequest(from_revision=reached, filter=_EVERYTHING)
        watch = self._store.Watch(request, timeout=WATCH_SECONDS * self._random.uniform(0.8, 1.2))
        waiting: list[Change] = []
        size, began = 0, self._clock.monotonic()
        try:
            async for response in watch:
                if response.newest_revision < reached:
                    raise RevisionTooOld("the centre is ahead of the log: the cell was made anew")
                waiting += response.changes
                size += response.ByteSize()
                self._show(reached, response.newest_revision)
                count, now = response.revision - reached, self._clock.monotonic()
                if not count:
                    began = now
                elif self._is_time(count, size, now - began):
                    made = events_of(waiting, reached, response.revision)
                    while events := await _gradually(islice(made, self._settings.batch)):
                        reached = await self._send(events)
                        if reached != events[-1].revision:
                            log.warning("mirror_is_elsewhere", revision=reached, sent=events[-1].revision)
                            return
                        await self._note(term, reached, response.newest_revision)
                    waiting, size, began = [], 0, self._clock.monotonic()
        finally:
            watch.cancel()

    def _is_time(self, count: int, size: int, seconds: float) -> bool:
        settings = self._settings
        return count >= settings.batch or size >= settings.batch_bytes or seconds >= settings.gather

    async def _send_state(self, term: int) -> None:
        watch = self._store.Watch(WatchRequest(filter=_EVERYTHING), timeout=WATCH_SECONDS)
        page: list[MirrorEvent] = []
        size, first = 0, True
        try:
            async for response in watch:
                # A page is sent when there is more after it: the last one says so.
                if page and (len(page) >= self._settings.batch or size >= self._settings.batch_bytes):
                    await self._send_page(response.revision, page, first=first, last=False)
                    page, size, first = [], 0, False
                page += state_of(response.changes)
                size += response.ByteSize()
                if response.snapshot_complete:
                    await self._send_page(response.revision, page, first=first, last=True)
                    await self._note(term, response.revision, response.newest_revision)
                    return
        finally:
            watch.cancel()

    async def _send(self, events: Sequence[MirrorEvent]) -> int:
        began = self._clock.monotonic()
        reached = await self._client.mirror_events(events)
        await self._pace(began, len(events))
        return reached

    async def _send_page(self, revision: int, page: Sequence[MirrorEvent], *, first: bool, last: bool) -> None:
        began = self._clock.monotonic()
        await self._client.mirror_snapshot(revision, page, first=first, last=last)
        await self._pace(began, len(page))

    async def _pace(self, began: float, count: int) -> None:
        left = count / self._settings.rate - (self._clock.monotonic() - began)
        if left > 0:
            await self._clock.sleep(left)

    async def _note(self, term: int, reached: int, newest: int) -> None:
        """Keep how far the centre is. Raises Conflict when another instance leads."""
        await self._marks.set_as_leader(DUTY, term, reached)
        self._show(reached, newest)

    def _show(self, revision: int, newest: int) -> None:
        state = MirrorState(revision, max(newest - revision, 0))
        if state != self.state:
            self.state = state
            self._on_change()


async def _gradually(events: Iterable[MirrorEvent]) -> list[MirrorEvent]:
    """All of `events`, while others have their turn in between."""
    made = []
    for event in events:
        made.append(event)
        if len(made) % _MADE_AT_ONCE == 0:
            await asyncio.sleep(0)
    return made
