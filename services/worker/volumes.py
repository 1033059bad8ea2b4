"""The volumes of one worker, and their snapshots: what the store wants of them is made so on the disk, and told.

On the disk, below the worker's data:
    volumes/ID              the content of a volume, what mounts lead to
    snapshots/ID/content    that of a snapshot
    snapshots/ID/measured   its size and digest, as JSON
    making/ID.N             what is being made, or removed: nothing of it counts, and it is removed at the next start

Whatever comes to be is made apart and then renamed, so that it is there whole or not at all. As with machines, it is
levels that drive this: each volume and snapshot has a task that compares what is wanted with what is there.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, Never, Protocol, TypeVar

from skerry.store.v1.volume_store_pb2 import (
    SNAPSHOT_STATE_CREATED,
    SNAPSHOT_STATE_CREATING,
    SNAPSHOT_STATE_EXPIRED,
    SNAPSHOT_STATE_FAILED,
    VOLUME_STATE_CREATED,
    VOLUME_STATE_CREATING,
    VOLUME_STATE_DESTROYED,
    VOLUME_STATE_DESTROYING,
    VOLUME_STATE_EXTENDING,
    VOLUME_STATE_PENDING_DESTROY,
    CreateSnapshotRequest,
    ReportVolumesRequest,
    ReportVolumesResponse,
    SnapshotRecord,
    SnapshotReport,
    SnapshotState,
    VolumeRecord,
    VolumeReport,
    VolumeState,
)

from services.runtime.clock import Clock
from services.runtime.errors import SkerryError
from services.runtime.tasks import cancel
from services.runtime.telemetry import log
from services.worker.contents import copy_tree, measure, remove_tree, write_archive

DAY_SECONDS = 86_400.0

_LOOK_SECONDS = 60.0
"""Between two looks at which snapshots are due, and which have expired."""
_FIRST_RETRY_SECONDS = 0.2
_LONGEST_RETRY_SECONDS = 15.0
_COPIES = 4
"""Contents that are being made at the same time."""

R = TypeVar("R", VolumeRecord, SnapshotRecord)


class Store(Protocol):
    """What of the machine-store, and of other workers, is needed. Each raises SkerryError."""

    async def report_volumes(self, request: ReportVolumesRequest) -> ReportVolumesResponse: ...

    async def take_snapshot(self, request: CreateSnapshotRequest) -> None: ...

    def read_elsewhere(self, worker_id: str, *, volume_id: str, snapshot_id: str) -> AsyncIterator[bytes]:
        """The content of a volume or a snapshot on another worker, as an archive."""
        ...


@dataclass(slots=True, eq=False)
class _Thing(Generic[R]):
    """A volume or a snapshot that is here, or will be."""

    record: R
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None
    failures: int = 0


class VolumeKeeper:
    """Keeps the volumes of one worker. `run` it once; `take_volume` and `take_snapshot` feed it what the log says."""

    def __init__(
        self, data: Path, worker_id: str, cell: str, store: Store, clock: Clock, *, on_change: Callable[[str], None]
    ) -> None:
        """`on_change` hears of every volume that has come to be."""
        self._volumes_folder = data / "volumes"
        self._snapshots_folder = data / "snapshots"
        self._making = data / "making"
        self._worker_id = worker_id
        self._cell = cell
        self._store = store
        self._clock = clock
        self._on_change = on_change
        self._volumes: dict[str, _Thing[VolumeRecord]] = {}
        self._snapshots: dict[str, _Thing[SnapshotRecord]] = {}
        self._numbers = itertools.count(1)
        self._copies = asyncio.Semaphore(_COPIES)
        self._running = False

    def take_volume(self, record: VolumeRecord) -> None:
        """Take over what the store says of a volume."""
        thing = self._volumes.get(record.id)
        if record.worker_id != self._worker_id or (thing is None and record.state == VOLUME_STATE_DESTROYED):
            return
        if thing is None:
            thing = self._volumes[record.id] = _Thing(record)
        elif thing.record.revision < record.revision:
            thing.record = record
        self._poke_volume(thing)

    def take_snapshot(self, record: SnapshotRecord) -> None:
        """The same for a snapshot."""
        thing = self._snapshots.get(record.id)
        if record.worker_id != self._worker_id:
            return
        if thing is None:
            thing = self._snapshots[record.id] = _Thing(record)
        elif thing.record.revision < record.revision:
            thing.record = record
        self._poke_snapshot(thing)

    def is_ready(self, volume_id: str) -> bool:
        """Whether a machine can mount a volume: it is there, or nobody but the machine knows of it."""
        return self._path(volume_id).is_dir() or volume_id not in self._volumes

    def path_of_volume(self, volume_id: str) -> Path | None:
        """Where the content of a volume is; None if it is not here."""
        return self._path(volume_id) if volume_id in self._volumes and self._path(volume_id).is_dir() else None

    def path_of_snapshot(self, snapshot_id: str) -> Path | None:
        """Where the content of a snapshot is; None if it is not here."""
        path = self._snapshots_folder / snapshot_id / "content"
        return path if snapshot_id in self._snapshots and path.is_dir() else None

    async def run(self) -> Never:
        """Work until cancelled. Raises OSError when the directories cannot be made."""
        for folder in (self._volumes_folder, self._snapshots_folder, self._making):
            folder.mkdir(parents=True, exist_ok=True)
        await asyncio.to_thread(self._remove_what_was_being_made)
        self._running = True
        try:
            for volume in list(self._volumes.values()):
                self._poke_volume(volume)
            for snapshot in list(self._snapshots.values()):
                self._poke_snapshot(snapshot)
            while True:
                await self._clock.sleep(_LOOK_SECONDS)
                await self._look()
        finally:
            self._running = False
            tasks = [thing.task for thing in self._volumes.values()]
            tasks += [thing.task for thing in self._snapshots.values()]
            await cancel(*(task for task in tasks if task is not None))

    def _remove_what_was_being_made(self) -> None:
        for path in self._making.iterdir():
            remove_tree(path)

    # One volume, one snapshot

    def _poke_volume(self, thing: _Thing[VolumeRecord]) -> None:
        thing.changed.set()
        if thing.task is None and self._running:
            work = self._converge(thing, self._step_of_volume)
            thing.task = asyncio.create_task(work, name=f"volume {thing.record.id}")

    def _poke_snapshot(self, thing: _Thing[SnapshotRecord]) -> None:
        thing.changed.set()
        if thing.task is None and self._running:
            work = self._converge(thing, self._step_of_snapshot)
            thing.task = asyncio.create_task(work, name=f"snapshot {thing.record.id}")

    async def _converge(self, thing: _Thing[R], step: Callable[[_Thing[R]], Awaitable[bool]]) -> None:
        """Take steps until there is none, `step` says so, and no newer record has come."""
        while True:
            thing.changed.clear()
            try:
                more = await step(thing)
                thing.failures = 0
            except (OSError, SkerryError) as error:
                thing.failures += 1
                delay = min(_LONGEST_RETRY_SECONDS, _FIRST_RETRY_SECONDS * 2.0 ** min(thing.failures, 10))
                log.warning("volume_step_failed", id=thing.record.id, why=str(error), retry_in=delay)
                await self._tell_why(thing, str(error))
                await self._wait(thing, delay)
            except Exception:
                log.exception("volume_step_failed", id=thing.record.id)
                await self._wait(thing, _LONGEST_RETRY_SECONDS)
            else:
                if not more and not thing.changed.is_set():
                    break
        thing.task = None

    async def _wait(self, thing: _Thing[R], seconds: float) -> None:
        sleeping = asyncio.ensure_future(self._clock.sleep(seconds))
        changed = asyncio.ensure_future(thing.changed.wait())
        try:
            await asyncio.wait({sleeping, changed}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await cancel(*(one for one in (sleeping, changed) if isinstance(one, asyncio.Task)))

    async def _step_of_volume(self, thing: _Thing[VolumeRecord]) -> bool:
        """Take the next step with a volume; whether there may be another one."""
        record = thing.record
        match record.state:
            case s if s in (VOLUME_STATE_CREATING, VOLUME_STATE_EXTENDING):
                if not self._path(record.id).is_dir():
                    async with self._copies:
                        await self._make_volume(record)
                    log.info("volume_created", volume=record.id, worker=self._worker_id)
                    self._on_change(record.id)
                # Its directory takes what its worker has: to grow it, nothing has to be done.
                return await self._tell_volume(thing, VOLUME_STATE_CREATED)
            case s if s == VOLUME_STATE_PENDING_DESTROY:
                if self._is_being_saved(record.id):
                    return False
                return await self._tell_volume(thing, VOLUME_STATE_DESTROYING)
            case s if s == VOLUME_STATE_DESTROYING:
                await self._remove(self._path(record.id))
                return await self._tell_volume(thing, VOLUME_STATE_DESTROYED)
            case s if s == VOLUME_STATE_DESTROYED:
                log.info("volume_destroyed", volume=record.id, worker=self._worker_id)
                self._volumes.pop(record.id, None)
            case s if s == VOLUME_STATE_CREATED and not self._path(record.id).is_dir():
                log.error("volume_lost", volume=record.id, worker=self._worker_id)
        return False

    async def _make_volume(self, record: VolumeRecord) -> None:
        new = self._new(record.id)
        if not record.source_worker_id:
            new.mkdir(mode=0o755)
        elif record.source_worker_id != self._worker_id:
            pieces = self._store.read_elsewhere(
                record.source_worker_id, volume_id=record.source_volume_id, snapshot_id=record.source_snapshot_id
            )
            await write_archive(pieces, new)
        elif record.source_volume_id:
            await asyncio.to_thread(copy_tree, self._path(record.source_volume_id), new)
        else:
            content = self._snapshots_folder / record.source_snapshot_id / "content"
            await asyncio.to_thread(copy_tree, content, new)
        new.rename(self._path(record.id))

    async def _step_of_snapshot(self, thing: _Thing[SnapshotRecord]) -> bool:
        """Take the next step with a snapshot; whether there may be another one."""
        record, folder = thing.record, self._snapshots_folder / thing.record.id
        if record.state == SNAPSHOT_STATE_CREATING:
            volume = self._path(record.volume_id)
            if not folder.is_dir() and not volume.is_dir():
                return await self._tell_snapshot(
                    thing, SNAPSHOT_STATE_FAILED, reason="the volume is not on its worker any more"
                )
            if not folder.is_dir():
                async with self._copies:
                    new = self._new(record.id)
                    await asyncio.to_thread(_take_snapshot, volume, new)
                new.rename(folder)
                log.info("snapshot_created", snapshot=record.id, volume=record.volume_id)
            measured = json.loads((folder / "measured").read_text())
            more = await self._tell_snapshot(thing, SNAPSHOT_STATE_CREATED, **measured)
            if (saved := self._volumes.get(record.volume_id)) is not None:
                self._poke_volume(saved)
            return more
        if record.state == SNAPSHOT_STATE_EXPIRED:
            await self._remove(folder)
            self._snapshots.pop(record.id, None)
            log.info("snapshot_removed", snapshot=record.id)
        return False

    def _is_being_saved(self, volume_id: str) -> bool:
        """Whether a snapshot of a volume is still to be taken. Once it is, the volume's task goes on."""
        return any(
            thing.record.volume_id == volume_id and thing.record.state == SNAPSHOT_STATE_CREATING
            for thing in self._snapshots.values()
        )

    # What is told

    async def _tell_volume(self, thing: _Thing[VolumeRecord], state: VolumeState.ValueType, reason: str = "") -> bool:
        """Tell the store of a volume, and take its word; whether that was news."""
        before = thing.record
        report = VolumeReport(volume_id=before.id, state=state, size_bytes=before.size_bytes, reason=reason)
        answer = await self._store.report_volumes(ReportVolumesRequest(worker_id=self._worker_id, volumes=[report]))
        for record in answer.volumes:
            if record.revision > thing.record.revision:
                thing.record = record
        return thing.record is not before

    async def _tell_snapshot(
        self,
        thing: _Thing[SnapshotRecord],
        state: SnapshotState.ValueType,
        *,
        size_bytes: int = 0,
        digest: str = "",
        reason: str = "",
    ) -> bool:
        """The same of a snapshot."""
        before = thing.record
        report = SnapshotReport(snapshot_id=before.id, state=state, size_bytes=size_bytes, digest=digest, reason=reason)
        answer = await self._store.report_volumes(ReportVolumesRequest(worker_id=self._worker_id, snapshots=[report]))
        for record in answer.snapshots:
            if record.revision > thing.record.revision:
                thing.record = record
        return thing.record is not before

    async def _tell_why(self, thing: _Thing[VolumeRecord] | _Thing[SnapshotRecord], why: str) -> None:
        """Tell why a volume is not there yet; the store may not hear it either."""
        if not isinstance(thing.record, VolumeRecord) or thing.record.state != VOLUME_STATE_CREATING:
            return
        try:
            await self._tell_volume(thing, VOLUME_STATE_CREATING, why[:500])
        except SkerryError as error:
            log.info("volume_not_told", id=thing.record.id, why=error.message)

    # What is due

    async def _look(self) -> None:
        """Ask whether snapshots that are old enough have expired, and for those that are due."""
        now = self._clock.now()
        newest: dict[str, float] = {}
        for snapshot in list(self._snapshots.values()):
            record = snapshot.record
            at = record.created_at.ToNanoseconds() / 1e9
            newest[record.volume_id] = max(at, newest.get(record.volume_id, 0.0))
            old = now >= at + record.retention_days * DAY_SECONDS
            if old and record.state in (SNAPSHOT_STATE_CREATED, SNAPSHOT_STATE_FAILED):
                await self._quietly(self._expire(snapshot))
        for volume in list(self._volumes.values()):
            last = max(volume.record.created_at.ToNanoseconds() / 1e9, newest.get(volume.record.id, 0.0))
            due = volume.record.auto_backup_enabled and now >= last + DAY_SECONDS
            if due and volume.record.state == VOLUME_STATE_CREATED:
                await self._quietly(self._store.take_snapshot(self._daily(volume.record, now)))

    async def _expire(self, snapshot: _Thing[SnapshotRecord]) -> None:
        if await self._tell_snapshot(snapshot, SNAPSHOT_STATE_EXPIRED):
            self._poke_snapshot(snapshot)

    def _daily(self, volume: VolumeRecord, now: float) -> CreateSnapshotRequest:
        """The snapshot of a day: asking for it twice asks for one."""
        day = hashlib.sha256(f"{volume.id} {int(now // DAY_SECONDS)}".encode()).hexdigest()
        return CreateSnapshotRequest(
            snapshot_id=f"vs_{self._cell}{day[:13]}", volume_id=volume.id, app_id=volume.app_id
        )

    async def _quietly(self, work: Awaitable[object]) -> None:
        try:
            await work
        except SkerryError as error:
            log.warning("snapshot_not_seen_to", worker=self._worker_id, why=error.message)

    # The disk

    def _path(self, volume_id: str) -> Path:
        return self._volumes_folder / volume_id

    def _new(self, identifier: str) -> Path:
        """A path that nothing has been made at."""
        return self._making / f"{identifier}.{next(self._numbers)}"

    async def _remove(self, path: Path) -> None:
        """Remove a directory: it is gone at once, and its content after that."""
        going = self._new(path.name)
        if _rename_if_there(path, going):
            await asyncio.to_thread(remove_tree, going)


def _rename_if_there(path: Path, to: Path) -> bool:
    try:
        path.rename(to)
    except FileNotFoundError:
        return False
    return True


def _take_snapshot(volume: Path, folder: Path) -> None:
    folder.mkdir()
    copy_tree(volume, folder / "content")
    size, digest = measure(folder / "content")
    with (folder / "measured").open("w") as file:
        json.dump({"size_bytes": size, "digest": digest}, file)
