"""When snapshots are due, when they expire, and what waits for what, by a clock that tests move."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from skerry.store.v1.volume_store_pb2 import (
    SNAPSHOT_STATE_CREATED,
    SNAPSHOT_STATE_CREATING,
    SNAPSHOT_STATE_EXPIRED,
    VOLUME_STATE_CREATED,
    VOLUME_STATE_CREATING,
    VOLUME_STATE_DESTROYED,
    VOLUME_STATE_PENDING_DESTROY,
    CreateSnapshotRequest,
    ReportVolumesRequest,
    ReportVolumesResponse,
    SnapshotRecord,
    VolumeRecord,
)

from services.runtime.clock import FakeClock
from services.runtime.errors import DependencyDown
from services.runtime.tasks import cancel
from services.worker.volumes import DAY_SECONDS, VolumeKeeper
from tests.support import eventually

START = 1_700_000_000.0


class Store:
    """What a keeper needs of a store: it believes what it is told."""

    def __init__(self) -> None:
        self.volumes: dict[str, VolumeRecord] = {}
        self.snapshots: dict[str, SnapshotRecord] = {}
        self.asked: list[CreateSnapshotRequest] = []
        self.keeps = frozenset[str]()
        """Snapshots that do not expire, since something begins with them."""
        self.elsewhere: list[str] = []
        self.away = False

    async def report_volumes(self, request: ReportVolumesRequest) -> ReportVolumesResponse:
        if self.away:
            raise DependencyDown("the store is away")
        for volume in request.volumes:
            record = self.volumes[volume.volume_id]
            if record.state != volume.state or record.reason != volume.reason:
                record.state, record.reason = volume.state, volume.reason
                record.revision += 1
        for snapshot in request.snapshots:
            kept = self.snapshots[snapshot.snapshot_id]
            if kept.state != snapshot.state and not (
                snapshot.state == SNAPSHOT_STATE_EXPIRED and kept.id in self.keeps
            ):
                kept.state, kept.size_bytes, kept.digest = snapshot.state, snapshot.size_bytes, snapshot.digest
                kept.revision += 1
        return ReportVolumesResponse(
            volumes=[self.volumes[volume.volume_id] for volume in request.volumes],
            snapshots=[self.snapshots[snapshot.snapshot_id] for snapshot in request.snapshots],
        )

    async def take_snapshot(self, request: CreateSnapshotRequest) -> None:
        self.asked.append(request)

    async def read_elsewhere(self, worker_id: str, *, volume_id: str, snapshot_id: str) -> AsyncIterator[bytes]:
        self.elsewhere.append(worker_id)
        raise DependencyDown(f"worker {worker_id} cannot be reached from here")
        yield b""


class Bench:
    """A keeper at work."""

    def __init__(self, data: Path) -> None:
        self.data = data
        self.clock = FakeClock(START)
        self.store = Store()
        self.made: list[str] = []
        self.keeper = VolumeKeeper(data, "w1", "001", self.store, self.clock, on_change=self.made.append)

    def volume(self, volume_id: str = "vol_1", **fields: object) -> VolumeRecord:
        record = VolumeRecord(id=volume_id, worker_id="w1", size_bytes=1 << 30, revision=1, state=VOLUME_STATE_CREATING)
        record.created_at.FromNanoseconds(int(START * 1e9))
        for name, value in fields.items():
            setattr(record, name, value)
        self.store.volumes[volume_id] = record
        self.tell(record)
        return record

    def snapshot(self, snapshot_id: str = "vs_1", volume_id: str = "vol_1", days: int = 5) -> SnapshotRecord:
        record = SnapshotRecord(
            id=snapshot_id, volume_id=volume_id, worker_id="w1", revision=1, state=SNAPSHOT_STATE_CREATING,
            retention_days=days,
        )  # fmt: skip
        record.created_at.FromNanoseconds(int(self.clock.now() * 1e9))
        self.store.snapshots[snapshot_id] = record
        copy = SnapshotRecord()
        copy.CopyFrom(record)
        self.keeper.take_snapshot(copy)
        return record

    def tell(self, record: VolumeRecord) -> None:
        """What the watch does."""
        copy = VolumeRecord()
        copy.CopyFrom(record)
        self.keeper.take_volume(copy)

    def wish(self, record: VolumeRecord, state: int) -> None:
        record.state = state  # type: ignore[assignment]
        record.revision += 1
        self.tell(record)

    async def pass_time(self, seconds: float) -> None:
        """So that whoever looks at what is due has looked."""
        await self.clock.advance(seconds)


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    bench = Bench(tmp_path)
    task = asyncio.create_task(bench.keeper.run())
    yield bench
    await cancel(task)


async def created(bench: Bench, **fields: Any) -> VolumeRecord:
    record = bench.volume(**fields)
    await eventually(lambda: record.state == VOLUME_STATE_CREATED)
    return record


async def test_a_volume_is_ready_once_it_is_there_and_tells_so(bench: Bench) -> None:
    assert bench.keeper.is_ready("vol_1"), "nobody knows of it yet but the machine"
    record = bench.volume(source_worker_id="w2", source_volume_id="vol_9")
    assert not bench.keeper.is_ready("vol_1")
    await eventually(lambda: "w2" in record.reason)
    assert bench.made == []
    await created(bench, volume_id="vol_2")
    assert bench.keeper.is_ready("vol_2")
    assert bench.made == ["vol_2"]


async def test_a_store_that_is_away_hears_of_it_later(bench: Bench) -> None:
    bench.store.away = True
    record = bench.volume()
    await eventually((bench.data / "volumes" / "vol_1").is_dir)
    bench.store.away = False
    await bench.pass_time(1)
    await eventually(lambda: record.state == VOLUME_STATE_CREATED)


async def test_a_snapshot_is_due_each_day_and_asked_for_once(bench: Bench) -> None:
    await created(bench, auto_backup_enabled=True)
    await created(bench, volume_id="vol_2")
    await bench.pass_time(60)
    assert bench.store.asked == []
    await bench.pass_time(DAY_SECONDS)
    first = bench.store.asked[0]
    assert {request.volume_id for request in bench.store.asked} == {"vol_1"}
    assert first.snapshot_id.startswith("vs_001")
    await bench.pass_time(60)
    await bench.pass_time(60)
    assert len(bench.store.asked) > 1
    assert {request.snapshot_id for request in bench.store.asked} == {first.snapshot_id}, "it is the same one"


async def test_a_snapshot_that_was_taken_today_is_enough(bench: Bench) -> None:
    await created(bench, auto_backup_enabled=True)
    await bench.pass_time(DAY_SECONDS / 2)
    taken = bench.snapshot()
    await eventually(lambda: taken.state == SNAPSHOT_STATE_CREATED)
    await bench.pass_time(DAY_SECONDS / 4)
    assert bench.store.asked == []
    await bench.pass_time(DAY_SECONDS)
    assert bench.store.asked


async def test_a_snapshot_goes_when_its_days_are_over_and_the_store_says_so(bench: Bench) -> None:
    await created(bench)
    taken = bench.snapshot(days=2)
    await eventually(lambda: taken.state == SNAPSHOT_STATE_CREATED)
    path = bench.data / "snapshots" / "vs_1"
    await bench.pass_time(DAY_SECONDS * 0.9)
    assert path.is_dir()
    bench.store.keeps = frozenset({"vs_1"})
    await bench.pass_time(DAY_SECONDS * 1.2)
    assert path.is_dir(), "something begins with it"
    bench.store.keeps = frozenset()
    await bench.pass_time(60)
    await eventually(lambda: not path.exists())
    assert bench.keeper.path_of_snapshot("vs_1") is None


async def test_a_volume_is_not_removed_before_its_snapshot_is_taken(bench: Bench) -> None:
    record = await created(bench)
    (bench.data / "volumes" / "vol_1" / "file").write_text("kept")
    taken = bench.snapshot()
    bench.wish(record, VOLUME_STATE_PENDING_DESTROY)
    await eventually(lambda: record.state == VOLUME_STATE_DESTROYED)
    assert taken.state == SNAPSHOT_STATE_CREATED
    assert (bench.data / "snapshots" / "vs_1" / "content" / "file").read_text() == "kept"
    assert not list((bench.data / "volumes").iterdir())
    await eventually(lambda: not list((bench.data / "making").iterdir()))


async def test_what_was_being_made_when_the_worker_ended_counts_for_nothing(tmp_path: Path) -> None:
    half = tmp_path / "making" / "vol_1.1"
    half.mkdir(parents=True)
    (half / "file").write_text("half")
    bench = Bench(tmp_path)
    record = bench.volume()
    task = asyncio.create_task(bench.keeper.run())
    await eventually(lambda: record.state == VOLUME_STATE_CREATED)
    await cancel(task)
    assert list((tmp_path / "volumes" / "vol_1").iterdir()) == []
    assert list((tmp_path / "making").iterdir()) == []
