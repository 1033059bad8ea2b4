"""The mirror: what regions tell of their machines, releases and the like, per cell.

Delivery is at least once. A cell's events count up without gaps; the mirror takes those that continue what it has, and
answers where to go on. A cell that is too far behind its own log sends its whole state instead.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from services.central.catalog import update_app_statuses
from services.central.database import Database, Row, Write
from services.central.errors import Invalid, Missing
from services.central.tokens import REVOCATION, check_revocation_id, record_revocation
from services.runtime.ids import is_cell
from services.runtime.telemetry import log

MACHINE = "machine"
RELEASE = "release"
VOLUME = "volume"
GONE = ("destroyed", "MACHINE_STATE_DESTROYED")
"""States of machines that are no more."""

LARGEST_BATCH = 2_000
_STATE_PREFIX = "MACHINE_STATE_"


@dataclass(frozen=True, slots=True)
class Event:
    """Revision `revision` of a cell's log: the record `key` of `kind` is now `payload`, or gone (None)."""

    revision: int
    kind: str
    key: str
    payload: Mapping[str, Any] | None


@dataclass(frozen=True, slots=True)
class Record:
    """A record in the mirror."""

    cell: str
    kind: str
    key: str
    payload: Mapping[str, Any]

    @property
    def state(self) -> str:
        """The state of a machine or volume, as the public API writes it: "started"."""
        return str(self.payload.get("state", "")).removeprefix(_STATE_PREFIX).lower()

    @property
    def gone(self) -> bool:
        """It is destroyed."""
        return self.payload.get("state") in GONE


class Mirror:
    """Takes what cells send, and shows it."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def take(self, cell: str, events: Sequence[Event]) -> int:
        """Take what continues the cell's log; the answer is the revision up to which the mirror has everything.

        Events that it has already are passed over. At the first gap it stops. Raises Invalid.
        """
        _check(cell, len(events))
        async with self._database.write() as write:
            before = await _revision(write, cell)
            taken = _continuing(before, events)
            reached = before + len(taken)
            if taken:
                touched = await _apply(write, cell, taken)
                await write.run("set_cell_revision", cell, reached)
                await update_app_statuses(write, sorted(touched), GONE)
        if events and reached < events[-1].revision:
            log.warning("central_mirror_gap", cell=cell, revision=reached, sent=events[-1].revision)
        return reached

    async def take_snapshot(
        self, cell: str, revision: int, records: Sequence[Event], *, first: bool, last: bool
    ) -> int:
        """A page of a cell's whole state as of `revision`. The last page puts it in the place of what was there.

        The answer is the revision up to which the mirror has everything. Pages can be repeated; one snapshot of a cell
        is taken at a time. Raises Invalid.
        """
        _check(cell, len(records))
        if revision < 0:
            raise Invalid(f"revision must not be negative, is {revision}")
        async with self._database.write() as write:
            if first:
                await write.run("drop_uploads", cell)
            await write.run_many("add_upload", [(cell, revision, r.kind, r.key, r.payload or {}) for r in records])
            if not last:
                return await _revision(write, cell)
            for row in await write.all("uploaded_revocations", cell, revision):
                await _revoke(write, row["key"], row["payload"])
            touched = {row["app_id"]: None for row in await write.all("apps_of_cell", cell)}
            await write.run("drop_cell", cell)
            await write.run("publish_uploads", cell, revision)
            await write.run("drop_uploads", cell)
            await write.run("set_cell_revision", cell, revision)
            touched |= {row["app_id"]: None for row in await write.all("apps_of_cell", cell)}
            await update_app_statuses(write, sorted(touched), GONE)
        log.info("central_mirror_replaced", cell=cell, revision=revision)
        return revision

    async def record(self, kind: str, key: str) -> Record:
        """One record of whichever cell has it. Raises Missing."""
        async with self._database.read() as session:
            row = await session.one("mirror_record", kind, key)
        if row is None:
            raise Missing(f"Could not find {kind.capitalize()}")
        return _record(row)

    async def of_app(self, kind: str, app_id: str) -> list[Record]:
        """The records of a kind that belong to an app, by key."""
        async with self._database.read() as session:
            return [_record(row) for row in await session.all("mirror_records_of_app", app_id, kind)]


def _check(cell: str, count: int) -> None:
    if not is_cell(cell):
        raise Invalid(f"cell must be three lower-case hex digits, is {cell[:20]!r}")
    if count > LARGEST_BATCH:
        raise Invalid(f"at most {LARGEST_BATCH} at a time, here are {count}")


async def _revision(write: Write, cell: str) -> int:
    row = await write.one("cell_revision", cell)
    return int(row["revision"]) if row else 0


def _continuing(reached: int, events: Sequence[Event]) -> list[Event]:
    """Of `events`, in their order, those that continue a log from `reached`, up to the first gap."""
    taken: list[Event] = []
    for event in events:
        following = reached + len(taken) + 1
        if event.revision > following:
            break
        if event.revision == following:
            taken.append(event)
    return taken


async def _apply(write: Write, cell: str, events: Sequence[Event]) -> set[str]:
    """Put the latest of each record into the mirror; answers the apps whose machines or releases it touched."""
    latest = {(event.kind, event.key): event for event in events}
    rows = []
    touched: set[str] = set()
    for event in latest.values():
        if event.payload is not None:
            app_id = _app_id(event)
            rows.append((cell, event.kind, event.key, event.revision, app_id, event.payload))
            if app_id and event.kind in (MACHINE, RELEASE):
                touched.add(app_id)
            if event.kind == REVOCATION:
                await _revoke(write, event.key, event.payload)
    gone = [identity for identity, event in latest.items() if event.payload is None]
    kinds, keys = [kind for kind, _ in gone], [key for _, key in gone]
    dropped = await write.all("drop_mirror_records", cell, kinds, keys)
    await write.run_many("put_mirror_record", rows)
    return touched | {row["app_id"] for row in dropped if row["app_id"]}


async def _revoke(write: Write, revocation_id: str, payload: Mapping[str, Any]) -> None:
    """Let a token that a cell revoked be revoked everywhere."""
    check_revocation_id(revocation_id)
    cell, at = payload.get("cell"), payload.get("revoked_at")
    if not isinstance(cell, str) or not isinstance(at, int | float) or isinstance(at, bool):
        raise Invalid(f"the revocation {revocation_id} must say its cell and revoked_at")
    await record_revocation(write, revocation_id, cell, float(at))


def _app_id(event: Event) -> str | None:
    app_id = (event.payload or {}).get("app_id")
    if isinstance(app_id, str | None):
        return app_id or None
    raise Invalid(f"app_id of the {event.kind} {event.key[:80]!r} must be a string")


def _record(row: Row) -> Record:
    return Record(row["cell"], row["kind"], row["key"], row["payload"])
