"""Following the log: one reader for the process, and a stream for everyone who watches.

Revisions are in the order of commits and without gaps, so a reader that goes on after its last revision misses nothing
and sees nothing twice. Notifications only wake the reader; a slow poll finds the same.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Sequence
from typing import Any

import asyncpg
from prometheus_client import Gauge
from skerry.store.v1.store_pb2 import Change, WatchRequest, WatchResponse

from services.machine_store.changes import Selection, change_of
from services.machine_store.database import Database, Row, application_name, is_away
from services.machine_store.queries import load
from services.machine_store.records import add_version
from services.machine_store.steps import Version
from services.runtime.clock import Clock
from services.runtime.errors import DependencyDown, InvalidConfig, RevisionTooOld, SkerryError, Violation
from services.runtime.tasks import run_forever
from services.runtime.telemetry import log, metrics

_SQL = load("log")
_CHANNEL = "skerry_log"
_READER = "log"

CHUNK = 200
"""Most changes in one message."""
_READ_AT_ONCE = 500
_ANSWERS_FIRST = 0.001
"""Seconds that what this process wrote waits before watches are told, so that whoever wrote it is answered first."""
_STATES_AT_ONCE = 3
_COMPLETED_KEPT = 2 * CHUNK
_VERSION_BYTES = 32 * 2**20

_watchers = Gauge("skerry_store_watchers", "Watches that are open.", registry=metrics)
_revision = Gauge("skerry_store_revision", "Newest revision that this process has seen.", registry=metrics)


class Versions:
    """Versions that were written or read lately, up to a number of bytes: they never change."""

    def __init__(self, most_bytes: int = _VERSION_BYTES) -> None:
        self._most_bytes = most_bytes
        self._bytes = 0
        self._kept: OrderedDict[str, Version] = OrderedDict()

    def keep(self, versions: Iterable[Version]) -> None:
        """Remember versions, and forget those that were not asked for longest."""
        for version in versions:
            if version.instance_id not in self._kept:
                self._kept[version.instance_id] = version
                self._bytes += _size(version)
        while self._bytes > self._most_bytes and self._kept:
            self._bytes -= _size(self._kept.popitem(last=False)[1])

    async def complete(self, changes: Sequence[Change], fetch: Callable[..., Awaitable[list[Row]]]) -> list[Change]:
        """Copies of `changes` with whole machines; what is not remembered is read with `fetch`.

        A machine whose version is forgotten for good stays as it is.
        """
        found: dict[str, Version] = {}
        missing: dict[str, str] = {}
        for change in changes:
            instance_id = change.machine.instance_id
            if (kept := self._kept.get(instance_id)) is not None:
                self._kept.move_to_end(instance_id)
                found[instance_id] = kept
            elif instance_id:
                missing[instance_id] = change.machine.id
        if missing:
            rows = await fetch(_SQL["get_versions"], list(missing.values()), list(missing))
            read = [Version(row["instance_id"], row["config"], row["spec"], row["parts"]) for row in rows]
            self.keep(read)
            found.update((version.instance_id, version) for version in read)
        whole = []
        for change in changes:
            version = found.get(change.machine.instance_id)
            if version is not None:
                copy = Change()
                copy.CopyFrom(change)
                add_version(copy.machine, version.config, version.spec, version.parts)
                whole.append(copy)
            else:
                whole.append(change)
        return whole


class _Watcher:
    """One watch that has caught up: what passes its filter waits here until it is sent."""

    def __init__(self, selection: Selection, after: int, limit: int) -> None:
        self._selection = selection
        self._limit = limit
        self._waiting: deque[Change] = deque()
        self._seen = after
        self._wake = asyncio.Event()
        self._cut: SkerryError | None = None
        self._sent_lately = False
        self._bookmark = False

    def offer(self, changes: Sequence[Change]) -> None:
        """Take in what happened; a watcher that has fallen too far behind is cut."""
        passed = [change for change in changes if change.revision > self._seen and self._selection.passes(change)]
        self._seen = max(self._seen, changes[-1].revision)
        if passed and self._cut is None:
            self._waiting.extend(passed)
            if len(self._waiting) > self._limit:
                self.cut(
                    DependencyDown(
                        "machine-store: this watch is read too slowly; watch again from its last revision",
                        retry_after=0.1,
                    )
                )
            self._wake.set()

    def cut(self, error: SkerryError) -> None:
        """End the watch with an error."""
        self._cut = error
        self._waiting.clear()
        self._wake.set()

    def tick(self) -> None:
        """Called every second or so: one that nothing was sent to since the last time is told how far it has seen."""
        if self._sent_lately:
            self._sent_lately = False
        else:
            self._bookmark = True
            self._wake.set()

    async def next(self) -> tuple[list[Change], int]:
        """What waits, once something does or it is time for a bookmark, and the revision that it leads to."""
        while True:
            if self._cut is not None:
                raise self._cut
            if self._waiting:
                changes = [self._waiting.popleft() for _ in range(min(CHUNK, len(self._waiting)))]
                self._sent_lately, self._bookmark = True, False
                return changes, changes[-1].revision if self._waiting else self._seen
            if self._bookmark:
                self._sent_lately, self._bookmark = True, False
                return [], self._seen
            self._wake.clear()
            await self._wake.wait()


class Log:
    """The log as this process follows it.

    Every `tick` seconds it is polled, and quiet watches are told how far they have seen. A watch that has more than
    `most_waiting` changes to read is cut. While writes follow one another, they are gathered for `gather` seconds, so
    that watches cost one message for many.
    """

    def __init__(
        self,
        database: Database,
        *,
        clock: Clock,
        tick: float = 1.0,
        most_waiting: int = 10_000,
        gather: float = 0.008,
    ) -> None:
        self._database = database
        self._clock = clock
        self._tick = tick
        self._gather = gather
        self._untold: list[Change] = []
        self._written = asyncio.Event()
        self._most_waiting = most_waiting
        self._position = -1
        self._started = asyncio.Event()
        self._wake = asyncio.Event()
        self._read_wanted = True
        self._others_to_wake = False
        self._has_others = True
        self._ticked = False
        self._watchers: set[_Watcher] = set()
        self._versions = Versions()
        self._completed: OrderedDict[int, Change] = OrderedDict()
        self._states = asyncio.Semaphore(_STATES_AT_ONCE)

    @property
    def position(self) -> int:
        """Newest revision that was seen; -1 before the first."""
        return self._position

    def heard(self, changes: Sequence[Change], versions: Iterable[Version]) -> None:
        """What this process has just committed, in the order of its revisions: no need to read it again."""
        self._versions.keep(versions)
        self._untold.extend(changes)
        self._written.set()
        if self._has_others:
            self._others_to_wake = True
            self._wake.set()

    async def run(self, caught_up: Callable[[], None]) -> None:
        """Follow the log until cancelled; calls `caught_up` once, when the newest revision was seen."""
        try:
            await run_forever(
                log_reader=self._follow_for_ever(caught_up),
                log_ticks=self._tick_for_ever(),
                log_tells=self._tell_for_ever(),
            )
        finally:
            for watcher in self._watchers:
                watcher.cut(DependencyDown("machine-store: it is stopping; watch again elsewhere", retry_after=0.1))

    async def watch(self, request: WatchRequest) -> AsyncGenerator[WatchResponse, None]:
        """The state, unless `from_revision` is set, and then what happens.

        Raises RevisionTooOld when the log does not reach back, or not that far; DependencyDown for a watch that is read
        too slowly and when the server cannot be asked; InvalidConfig.
        """
        if request.from_revision < 0:
            why = f"is {request.from_revision}: revisions begin at 1"
            raise InvalidConfig(f"from_revision {why}", violations=[Violation("from_revision", why)])
        selection = Selection(request.filter)
        await self._started.wait()
        position = request.from_revision
        if not request.HasField("from_revision"):
            async for response in self._state(selection):
                position = response.revision
                yield response
        elif position > self._position:
            await self._check_known(position)
        while position < self._position:
            changes, position = await self._read(position)
            passed = [change for change in changes if selection.passes(change)]
            for start in range(0, len(passed), CHUNK):
                chunk = passed[start : start + CHUNK]
                end = position if start + CHUNK >= len(passed) else chunk[-1].revision
                yield await self._response(chunk, end, selection)
        watcher = _Watcher(selection, position, self._most_waiting)
        self._watchers.add(watcher)
        _watchers.inc()
        try:
            yield WatchResponse(revision=position, newest_revision=max(position, self._position))
            while True:
                changes, revision = await watcher.next()
                if selection.whole:
                    changes = await self._whole(changes)
                yield WatchResponse(changes=changes, revision=revision, newest_revision=max(revision, self._position))
        finally:
            _watchers.dec()
            self._watchers.discard(watcher)

    async def _whole(self, changes: Sequence[Change]) -> list[Change]:
        """Whole copies of what has just happened, made once for all watches that are told of it."""
        completed = self._completed
        known = {change.revision: completed.get(change.revision) for change in changes}
        missing = [change for change in changes if known[change.revision] is None]
        if missing:
            for whole in await self._versions.complete(missing, self._database.fetch):
                known[whole.revision] = completed[whole.revision] = whole
            while len(completed) > _COMPLETED_KEPT:
                completed.popitem(last=False)
        return [whole for whole in known.values() if whole is not None]

    async def _response(self, changes: Sequence[Change], revision: int, selection: Selection) -> WatchResponse:
        if selection.whole and changes:
            changes = await self._versions.complete(changes, self._database.fetch)
        return WatchResponse(changes=changes, revision=revision, newest_revision=max(revision, self._position))

    async def _state(self, selection: Selection) -> AsyncIterator[WatchResponse]:
        async with self._states, self._database.reading() as connection:
            head = await connection.fetchrow(_SQL["get_head"])
            revision: int = head["revision"]

            def response(changes: Sequence[Change] = (), *, complete: bool = False) -> WatchResponse:
                return WatchResponse(
                    changes=changes,
                    revision=revision,
                    snapshot=True,
                    snapshot_complete=complete,
                    newest_revision=max(revision, self._position),
                )

            for statement, arguments, make in selection.statements():
                cursor = await connection.cursor(statement, *arguments)
                while rows := await cursor.fetch(CHUNK):
                    changes = [change for change in map(make, rows) if selection.passes(change)]
                    if selection.whole:
                        changes = await self._versions.complete(changes, connection.fetch)
                    if changes:
                        yield response(changes)
        yield response(complete=True)

    async def _check_known(self, revision: int) -> None:
        """Raise RevisionTooOld for a revision that this log has not come to: it is of another database."""
        row = await self._database.fetchrow(_SQL["get_head"])
        if row is None or revision > row["revision"]:
            raise RevisionTooOld(f"revision {revision} has not happened: watch again without a revision")

    async def _read(self, position: int) -> tuple[list[Change], int]:
        rows = await self._database.fetch(_SQL["read_log"], position, _READ_AT_ONCE)
        if rows[0]["purged_revision"] > position:
            raise RevisionTooOld(
                f"the log begins after revision {rows[0]['purged_revision']}, not after {position}: "
                "watch again without a revision"
            )
        changes = [change_of(row) for row in rows if row["revision"] is not None]
        return changes, changes[-1].revision if changes else position

    async def _follow_for_ever(self, caught_up: Callable[[], None]) -> None:
        while True:
            connection = await self._database.connect_at_last(_READER)
            try:
                await self._follow(connection, caught_up)
            except Exception as error:
                if not is_away(error):
                    raise
            finally:
                connection.terminate()

    async def _follow(self, connection: asyncpg.Connection, caught_up: Callable[[], None]) -> None:
        connection.add_termination_listener(lambda _: self._want_read())
        await connection.add_listener(_CHANNEL, self._notified)
        # Whoever reads already learns from this that there is one more to wake.
        self._read_wanted = self._others_to_wake = True
        while True:
            self._wake.clear()
            # Waking others comes after the commit, and may be missed: they poll.
            if self._others_to_wake:
                self._others_to_wake = False
                await connection.execute(_SQL["wake_readers"])
            if self._read_wanted:
                self._read_wanted = False
                await self._read_on(connection)
            if self._ticked:
                self._ticked = False
                self._has_others = await connection.fetchval(_SQL["has_other_readers"], application_name(_READER))
            if not self._started.is_set():
                self._started.set()
                caught_up()
            await self._wake.wait()

    async def _read_on(self, connection: asyncpg.Connection) -> None:
        if self._position < 0:
            self._position = (await connection.fetchrow(_SQL["get_head"]))["revision"]
            _revision.set(self._position)
            return
        while True:
            asked = self._position
            rows = await connection.fetch(_SQL["read_log"], asked, _READ_AT_ONCE)
            newest = rows[0]["newest_revision"]
            if newest < asked or rows[0]["purged_revision"] > self._position:
                self._start_over(newest)
                return
            # Meanwhile this process may have heard some of it from its own writer.
            changes = [
                change_of(row) for row in rows if row["revision"] is not None and row["revision"] > self._position
            ]
            if changes:
                self._publish(changes)
            if len(rows) < _READ_AT_ONCE:
                return

    def _start_over(self, newest: int) -> None:
        log.warning("log_is_another", seen=self._position, newest=newest)
        self._position = newest
        self._untold.clear()
        # Another one, since somebody may be completing changes of the log that was.
        self._completed = OrderedDict()
        for watcher in self._watchers:
            watcher.cut(
                RevisionTooOld("the log does not go on from where this watch is: watch again without a revision")
            )

    def _publish(self, changes: Sequence[Change]) -> None:
        if changes[0].revision != self._position + 1:
            raise AssertionError(f"revision {changes[0].revision} came after {self._position}")
        self._position = changes[-1].revision
        _revision.set(self._position)
        for watcher in self._watchers:
            watcher.offer(changes)

    def _notified(self, connection: Any, backend: int, _: str, __: object) -> None:
        if backend != connection.get_server_pid():
            self._has_others = True
            self._want_read()

    def _want_read(self) -> None:
        self._read_wanted = True
        self._wake.set()

    async def _tell_for_ever(self) -> None:
        told = -self._gather
        while True:
            await self._written.wait()
            await self._clock.sleep(max(_ANSWERS_FIRST, told + self._gather - self._clock.monotonic()))
            self._written.clear()
            self._tell()
            told = self._clock.monotonic()

    def _tell(self) -> None:
        # Meanwhile some of it may have been read from the log.
        changes = [change for change in self._untold if change.revision > self._position]
        self._untold.clear()
        if not changes:
            return
        if changes[0].revision == self._position + 1 and changes[-1].revision == self._position + len(changes):
            self._publish(changes)
        else:
            self._want_read()

    async def _tick_for_ever(self) -> None:
        while True:
            await self._clock.sleep(self._tick)
            self._ticked = True
            self._want_read()
            for watcher in self._watchers:
                watcher.tick()


def _size(version: Version) -> int:
    return len(version.config) + len(version.spec) + len(version.parts) + 200
