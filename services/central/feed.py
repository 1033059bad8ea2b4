"""The change feed of the catalog: totally ordered, without gaps, resumable; and the whole catalog as of a position.

A position is text that only the feed understands: the feed's id and a number. A position of another feed (the database
was made anew, say) is refused like one that is too old.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import asyncpg

from services.central.database import CHANNEL, Database, Row, Session, connect
from services.central.errors import Invalid, TooOld
from services.runtime.clock import Clock
from services.runtime.telemetry import log

LARGEST_BATCH = 1_000
LARGEST_BYTES = 4 << 20
"""Of a batch or a page, give or take one record: secrets make large ones."""
SLOW_POLL_S = 1.0
"""How often a waiting reader looks by itself, in seconds; notifications only make it faster."""

_RECONNECT_S = 1.0
_CONNECT_TIMEOUT_S = 10.0

Payload = dict[str, Any]
Reveal = Callable[[str, Payload], Payload]
"""Turns the stored payload of a kind into the one that readers get."""


@dataclass(frozen=True, slots=True)
class Change:
    """One change: the record `key` of `kind` is now `payload`, or gone."""

    position: str
    kind: str
    key: str
    deleted: bool
    payload: Payload | None


@dataclass(frozen=True, slots=True)
class Changes:
    """A batch: the reader has seen everything up to `position`, and can resume from `oldest` or anything after it."""

    changes: list[Change]
    position: str
    oldest: str


@dataclass(frozen=True, slots=True)
class SnapshotPage:
    """A part of the catalog as of `position`; `next_page` is None on the last one."""

    records: list[Change]
    position: str
    next_page: str | None


class Waker:
    """Tells waiting readers of new changes, wherever they were written."""

    def __init__(self, dsn: str, clock: Clock) -> None:
        self._dsn = dsn
        self._clock = clock
        self._news = asyncio.Event()
        self._closed = False

    def news(self) -> asyncio.Event:
        """Set at the next change after this call, or when the instance stops."""
        return self._news

    @property
    def closed(self) -> bool:
        """No reader waits any more."""
        return self._closed

    def close(self) -> None:
        """Let all readers go."""
        self._closed = True
        self._news.set()

    async def run(self) -> None:
        """Listen until cancelled; connects again when the connection is lost."""
        while True:
            lost = asyncio.Event()
            try:
                connection = await connect(self._dsn, timeout=_CONNECT_TIMEOUT_S)
            except (OSError, asyncpg.PostgresError) as error:
                log.warning("central_feed_not_listening", reason=str(error))
                await self._clock.sleep(_RECONNECT_S)
                continue
            try:
                connection.add_termination_listener(lambda _, lost=lost: lost.set())
                await connection.add_listener(CHANNEL, lambda *_: self._wake())
                self._wake()
                await lost.wait()
            except asyncpg.PostgresError as error:
                log.warning("central_feed_not_listening", reason=str(error))
                await self._clock.sleep(_RECONNECT_S)
            finally:
                connection.terminate()

    def _wake(self) -> None:
        if not self._closed:
            self._news.set()
            self._news = asyncio.Event()


class Feed:
    """Reads the feed. `reveal` opens what lies sealed in it."""

    def __init__(self, database: Database, waker: Waker, clock: Clock, reveal: Reveal, longest_wait: float) -> None:
        self._database = database
        self._waker = waker
        self._clock = clock
        self._reveal = reveal
        self._longest_wait = longest_wait

    async def changes(self, after: str, limit: int, wait: float) -> Changes:
        """The changes after a position ("" is the feed's beginning), oldest first: `limit` at most, fewer large ones.

        When there are none, it waits for some, `wait` seconds at most. Raises Invalid, and TooOld when the feed does
        not reach back that far.
        """
        if not 1 <= limit <= LARGEST_BATCH:
            raise Invalid(f"limit must be 1..{LARGEST_BATCH}, is {limit}")
        deadline = self._clock.monotonic() + min(wait, self._longest_wait)
        while True:
            news = self._waker.news()
            batch = await self._changes(after, limit)
            left = deadline - self._clock.monotonic()
            if batch.changes or left <= 0 or self._waker.closed:
                return batch
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(news.wait(), min(left, SLOW_POLL_S))

    async def _changes(self, after: str, limit: int) -> Changes:
        async with self._database.read() as session:
            head = await _head(session)
            start = _number(after, head) if after else 0
            if start < head["oldest"]:
                raise TooOld("that position is older than what is kept: take a snapshot, and go on from its position")
            rows = await session.all("changes_after", start, limit, LARGEST_BYTES)
        reached = rows[-1]["position"] if rows else start
        return Changes(
            [self._change(head, row) for row in rows], _position(head, reached), _position(head, head["oldest"])
        )

    async def snapshot(self, page: str | None, limit: int) -> SnapshotPage:
        """A page of the catalog; all pages together are the catalog as of one position.

        `page` is the `next_page` of the page before, None for the first. Raises Invalid, and TooOld when the position
        is so long ago that one has to begin again.
        """
        if not 1 <= limit <= LARGEST_BATCH:
            raise Invalid(f"limit must be 1..{LARGEST_BATCH}, is {limit}")
        async with self._database.read() as session:
            head = await _head(session)
            as_of, seen = _page(page, head) if page else (head["position"], 0)
            if as_of < head["oldest"]:
                raise TooOld("that snapshot is older than what is kept: begin a new one")
            rows = await session.all("catalog_as_of", as_of, seen, limit + 1, LARGEST_BYTES)
        shown = rows[:limit]
        position = _position(head, as_of)
        return SnapshotPage(
            [self._change(head, row) for row in shown],
            position,
            f"{position}:{shown[-1]['position']}" if shown and rows[0]["available"] > len(shown) else None,
        )

    async def forget(self, age: float) -> None:
        """Stop keeping changes that are older than `age` seconds; the records as they are now stay."""
        async with self._database.write() as write:
            row = await write.one("forget_before", write.at - age)
            dropped = await write.run("drop_forgotten", row["oldest"]) if row else 0
        if dropped:
            log.info("central_feed_shortened", dropped=dropped)

    def _change(self, head: Row, row: Row) -> Change:
        payload = row["payload"]
        return Change(
            position=_position(head, row["position"]),
            kind=row["kind"],
            key=row["key"],
            deleted=payload is None,
            payload=None if payload is None else self._reveal(row["kind"], payload),
        )


async def _head(session: Session) -> Row:
    head = await session.one("head")
    if head is None:
        raise RuntimeError("the table feed is empty: the database was tampered with")
    return head


def _position(head: Mapping[str, Any], number: int) -> str:
    return f"{head['id']}:{number}"


def _number(position: str, head: Mapping[str, Any]) -> int:
    feed, colon, number = position.partition(":")
    if not colon or not number.isascii() or not number.isdigit():
        raise Invalid("the position is none of a feed's")
    if feed != head["id"] or int(number) > head["position"]:
        raise TooOld("that position is of another feed than the present one: take a snapshot")
    return int(number)


def _page(page: str, head: Mapping[str, Any]) -> tuple[int, int]:
    position, _, seen = page.rpartition(":")
    return _number(position, head), _number(f"{head['id']}:{seen}", head)
