"""The pull: what changes at the centre comes into the cell's catalog, exactly once and in order.

One instance of the cell does it, under the duty `pull`. It waits at the centre's feed; when it is too far behind, or
the feed is another one than before, it takes the whole catalog and records what differs. A batch that deletes too much
is held back until an operator accepts it, or the centre has put it right.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import TYPE_CHECKING, Never

from prometheus_client import Gauge
from skerry.store.v1.catalog_store_pb2 import ApplyCatalogChangesRequest, CatalogRecord, GetCatalogStateRequest
from skerry.store.v1.store_pb2 import DutyTerm

from services.central_sync.calls import Refusal
from services.central_sync.central_client import TOO_OLD, CentralClient, Change, Position
from services.central_sync.marks import STORE_SECONDS, Marks
from services.central_sync.reading import read_catalog, read_secrets, read_whole_catalog
from services.central_sync.records import (
    LIMITS,
    ORGANIZATION,
    Catalog,
    catalog_of,
    deletions,
    differences,
    records_of,
    resealed,
    too_many_deletions,
)
from services.central_sync.settings import CallClass, PullSettings
from services.runtime import telemetry
from services.runtime.clock import Clock
from services.runtime.duty import Duty
from services.runtime.errors import Conflict, DependencyDown, SkerryError, WrongState
from services.runtime.sealing import Keyring
from services.runtime.telemetry import log

if TYPE_CHECKING:
    from skerry.store.v1.catalog_store_pb2_grpc import CatalogStoreAsyncStub
    from skerry.store.v1.store_pb2_grpc import MachineStoreAsyncStub

DUTY = "pull"
"""Name of the duty; its cursor says which feed the catalog's position is of."""
HELD = "pull-held"
"""Mark: the position up to which changes are held back; 0 for none."""
ACCEPTED = "pull-accepted"
"""Mark: the position up to which held changes were accepted."""
WITH_SECRETS = "pull-with-secrets"
"""Mark: not 0 once the secrets of the feed are taken into the catalog with everything else."""
FRESH = "pull-fresh"
"""Mark: when, in unix seconds, the catalog was last known to be equal to the centre."""

_APPLY_SECONDS = 10.0
_RECORDS_AT_ONCE = 500
_BYTES_AT_ONCE = 1 << 20
_FRESH_EVERY = 4.0
_LOOK_EVERY = 5.0
_LOOK_SOON = 0.25
_ACCEPT_EVERY = 0.3

_staleness = Gauge(
    "skerry_catalog_staleness_seconds",
    "Seconds since the catalog was last known to be equal to the centre.",
    ["cell"],
    registry=telemetry.metrics,
)
_held = Gauge(
    "skerry_catalog_held_changes",
    "Changes of the centre that are held back because they delete too much; they want an operator.",
    ["cell"],
    registry=telemetry.metrics,
)


@dataclass(frozen=True, slots=True)
class PullState:
    """How far the catalog is; `fresh_at` is in unix seconds, 0 when it was never known to be equal to the centre."""

    position: int = 0
    fresh_at: float = 0.0
    held_changes: int = 0
    held_reason: str = ""
    filled: bool = False


@dataclass(frozen=True, slots=True)
class Batch:
    """What follows the catalog's position `after`: records with their numbers (0 for those of a snapshot)."""

    after: int
    position: Position
    records: Sequence[tuple[int, CatalogRecord]]
    as_of: float
    """When the centre's catalog was that of `position`, in unix seconds."""

    def pieces(self) -> Iterator[tuple[Sequence[CatalogRecord], int]]:
        """Records to apply at once, and the position that the catalog has with them."""
        piece: list[CatalogRecord] = []
        size = 0
        for place, (number, record) in enumerate(self.records, 1):
            piece.append(record)
            size += record.ByteSize()
            if place < len(self.records) and (len(piece) == _RECORDS_AT_ONCE or size >= _BYTES_AT_ONCE):
                yield piece, number or self.after
                piece, size = [], 0
        yield piece, self.position.number


class Pull:
    """The pull of one cell, as one instance sees it."""

    def __init__(
        self,
        client: CentralClient,
        store: MachineStoreAsyncStub,
        catalog: CatalogStoreAsyncStub,
        marks: Marks,
        duty: Duty,
        settings: PullSettings,
        *,
        cell: str,
        clock: Clock,
        keyring: Keyring | None = None,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        """Without `keyring`, secrets stay out of the catalog. `on_change` is called when the state changes."""
        self.state = PullState()
        self._keyring = keyring
        self._seal = keyring.seal if keyring is not None else None
        self._client = client
        self._store = store
        self._catalog = catalog
        self._marks = marks
        self._duty = duty
        self._settings = settings
        self._clock = clock
        self._on_change = on_change
        self._filled = asyncio.Event()
        self._told_fresh = -math.inf
        self._held_up_to = 0
        self._known_under: int | None = None
        _staleness.labels(cell).set_function(lambda: self.staleness)
        _held.labels(cell).set_function(lambda: self.state.held_changes)

    @property
    def staleness(self) -> float:
        """Seconds since the catalog was last known to be equal to the centre; infinite when it never was."""
        return max(0.0, self._clock.now() - self.state.fresh_at) if self.state.fresh_at else math.inf

    async def until_filled(self) -> None:
        """Wait until the catalog was filled once, by whichever instance."""
        await self._filled.wait()

    async def run(self) -> Never:
        """Pull while this instance leads, until cancelled."""
        await self._duty.run(self._work)

    async def look(self) -> Never:
        """Learn from the store how far the catalog is while another instance leads, until cancelled."""
        while True:
            try:
                await self.refresh()
            except SkerryError as error:
                log.warning("catalog_state_unknown", why=error.message)
            await self._clock.sleep(_LOOK_EVERY if self._filled.is_set() else _LOOK_SOON)

    async def refresh(self) -> None:
        """Learn how far the catalog is, unless this instance knows best."""
        if self._duty.term is not None and self._duty.term == self._known_under:
            return
        known = await self._catalog.GetCatalogState(GetCatalogStateRequest(), timeout=STORE_SECONDS)
        held_up_to = await self._marks.get(HELD)
        self._show(
            PullState(
                position=known.position,
                fresh_at=float(await self._marks.get(FRESH)),
                held_changes=max(held_up_to - known.position, 1) if held_up_to else 0,
                held_reason="they delete too much" if held_up_to else "",
                filled=await self._marks.get(DUTY) != 0,
            )
        )

    async def accept(self, who: str) -> int:
        """Let what is held back into the catalog; answers how many changes. Any instance can be asked.

        Raises WrongState when nothing is held back, DependencyDown when the leader does not take it in soon.
        """
        held_up_to = await self._marks.get(HELD)
        if not held_up_to:
            raise WrongState("no changes of the centre are held back")
        await self.refresh()
        count = self.state.held_changes
        log.warning("catalog_changes_accepted", who=who, changes=count, position=held_up_to)
        await self._marks.set(ACCEPTED, held_up_to)
        for _ in range(math.ceil(2 * self._settings.held_refresh / _ACCEPT_EVERY)):
            if await self._marks.get(HELD) != held_up_to:
                return count
            await self._clock.sleep(_ACCEPT_EVERY)
        raise DependencyDown(
            "the changes are accepted, but no instance of central-sync has taken them in yet",
            metadata={"dependency": "central-sync"},
            retry_after=self._settings.held_refresh,
        )

    async def _work(self, term: int) -> None:
        while True:
            try:
                await self._follow(term)
            except Conflict as error:
                log.info("pull_begins_anew", term=term, why=error.message)
                return
            except (SkerryError, Refusal) as error:
                log.warning("pull_interrupted", why=error.message)
            except ValueError as error:
                log.error("catalog_change_not_understood", why=str(error))
            # Before the catalog is filled, a region waits for this to serve at all.
            every = self._settings.retry_every
            await self._clock.sleep(every if self.state.filled else min(every, _LOOK_SOON))
            await self._client.calls[CallClass.PULL].until_closed()

    async def _follow(self, term: int) -> None:
        known = await self._catalog.GetCatalogState(GetCatalogStateRequest(), timeout=STORE_SECONDS)
        feed = (await self._client.snapshot(None, 1)).position.feed
        at = Position(feed, known.position)
        followed = await self._marks.get(DUTY)
        has_secrets = self._keyring is None or await self._marks.get(WITH_SECRETS) != 0
        of_this_feed = followed == _number_of(feed) and has_secrets
        self._held_up_to = await self._marks.get(HELD)
        fresh_at = float(await self._marks.get(FRESH))
        self._show(replace(self.state, position=known.position, fresh_at=fresh_at, filled=followed != 0))
        self._known_under = term
        await self._seal_again(term, at)
        while True:
            batch = await self._next(at) if of_this_feed else None
            if batch is None:
                batch = await self._whole(at.number, only_add=not followed)
            reason = await self._reason_to_hold(batch)
            if reason and not await self._hold(batch, reason):
                # It is read again: the centre may have put it right.
                continue
            await self._apply(term, batch)
            if not of_this_feed or batch.position.feed != at.feed:
                await self._marks.set_as_leader(DUTY, term, _number_of(batch.position.feed))
                if not has_secrets:
                    await self._marks.set(WITH_SECRETS, 1)
                    has_secrets = True
                followed, of_this_feed = _number_of(batch.position.feed), True
            at = batch.position
            await self._tell(batch)

    async def _seal_again(self, term: int, at: Position) -> None:
        """Seal what is sealed under another key than the present one again: that key may go then."""
        if self._keyring is None:
            return
        records = resealed((await read_secrets(self._store)).secrets.values(), self._keyring)
        if records:
            log.info("secrets_sealed_again", apps=len(records), key_id=self._keyring.present)
            await self._apply(term, Batch(at.number, at, [(0, record) for record in records], 0.0))

    async def _next(self, at: Position) -> Batch | None:
        """All changes that there are after a position, waiting for some; None when it is too far behind."""
        changes: list[Change] = []
        position, settings = at, self._settings
        while len(changes) < settings.most_changes:
            try:
                answer = await self._client.changes(position, settings.batch, 0.0 if changes else settings.wait)
            except Refusal as error:
                if error.code == TOO_OLD:
                    log.warning("pull_too_far_behind", position=position.number, why=error.message)
                    return None
                raise
            as_of = self._clock.now()
            changes += answer.changes
            position = answer.position
            if len(answer.changes) < settings.batch:
                return await self._batch(at, position, changes, as_of)
        return None

    async def _batch(self, at: Position, position: Position, changes: Sequence[Change], as_of: float) -> Batch:
        needed = any(change.kind in (ORGANIZATION, LIMITS) for change in changes)
        organizations = (await read_catalog(self._store)).organizations if needed else {}
        made = records_of(changes, organizations, self._seal)
        records = [(change.number, record) for change, record in zip(changes, made, strict=True) if record is not None]
        return Batch(at.number, position, records, as_of)

    async def _whole(self, after: int, *, only_add: bool) -> Batch:
        """What differs between the catalog and the centre's. What a region had before there was a centre, it keeps."""
        # The catalog is read first. What comes into it later, by a call and not by the feed, is newer than the
        # snapshot may be: it must not look as if the centre had deleted it.
        present = await read_whole_catalog(self._store)
        records: list[Change] = []
        as_of = self._clock.now()
        page = await self._client.snapshot(None, self._settings.batch)
        records += page.records
        while page.next_page is not None:
            page = await self._client.snapshot(page.next_page, self._settings.batch)
            records += page.records
        wanted = catalog_of(records, self._seal)
        changed = differences(Catalog() if only_add else present, wanted)
        log.info("catalog_snapshot_taken", records=len(records), differences=len(changed), position=str(page.position))
        return Batch(after, page.position, [(0, record) for record in changed], as_of)

    async def _reason_to_hold(self, batch: Batch) -> str:
        records = [record for _, record in batch.records]
        if deletions(records) < self._settings.held_count:
            return ""
        present = await read_catalog(self._store)
        return too_many_deletions(records, present, share=self._settings.held_share, count=self._settings.held_count)

    async def _hold(self, batch: Batch, reason: str) -> bool:
        """Hold a batch back for a while; whether it was accepted in that time."""
        up_to, count = batch.position.number, max(len(batch.records), 1)
        if self.state.held_reason != reason or self._held_up_to != up_to:
            log.error("catalog_changes_held", changes=count, why=reason, after=batch.after, position=up_to)
            await self._marks.set(HELD, up_to)
            self._held_up_to = up_to
            self._show(replace(self.state, position=batch.after, held_changes=count, held_reason=reason))
        until = self._clock.monotonic() + self._settings.held_refresh
        while self._clock.monotonic() < until:
            if await self._marks.get(ACCEPTED) == up_to:
                return True
            await self._clock.sleep(_ACCEPT_EVERY)
        return False

    async def _apply(self, term: int, batch: Batch) -> None:
        after = batch.after
        for records, position in batch.pieces():
            if records or position != after:
                request = ApplyCatalogChangesRequest(
                    term=DutyTerm(duty=DUTY, term=term), after_position=after, position=position, records=records
                )
                await self._catalog.ApplyCatalogChanges(request, timeout=_APPLY_SECONDS)
                after = position

    async def _tell(self, batch: Batch) -> None:
        """Show, here and to the other instances, that a batch is in the catalog."""
        if self._held_up_to:
            await self._marks.set(ACCEPTED, 0)
            await self._marks.set(HELD, 0)
            log.info("catalog_changes_no_longer_held", position=batch.position.number)
            self._held_up_to = 0
        self._show(PullState(position=batch.position.number, fresh_at=batch.as_of, filled=True))
        if self._clock.monotonic() >= self._told_fresh + _FRESH_EVERY:
            self._told_fresh = self._clock.monotonic()
            await self._marks.set(FRESH, int(batch.as_of))

    def _show(self, state: PullState) -> None:
        changed = replace(state, fresh_at=0.0) != replace(self.state, fresh_at=0.0)
        self.state = state
        if state.filled:
            self._filled.set()
        if changed:
            self._on_change()


def _number_of(feed: str) -> int:
    """A number that stands for a feed, and is not 0."""
    return int.from_bytes(sha256(feed.encode()).digest()[:8], "big") >> 1 | 1
