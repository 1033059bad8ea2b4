"""Volumes of a worker that is killed wherever it is, with the store itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from random import Random

import pytest
from skerry.store.v1 import store_pb2 as pb
from skerry.store.v1 import store_pb2_grpc, volume_store_pb2_grpc
from skerry.store.v1 import volume_store_pb2 as vs

from services.machine_store.service import MachineStoreService
from services.runtime import channels
from services.runtime.clock import SystemClock
from services.runtime.registry import Registry
from services.runtime.server import Server
from services.runtime.tasks import cancel
from tests.integration.worker.conftest import Workers
from tests.support import eventually


class Cell:
    """A store that listens, as a `Served` does, and a worker that tests start and kill."""

    def __init__(self, address: str, data: Path) -> None:
        self.address = address
        self.data = data
        channel = channels.connect([address], caller="001/worker", callee="machine-store", secret=None)
        self.store: store_pb2_grpc.MachineStoreAsyncStub = store_pb2_grpc.MachineStoreStub(channel)
        self.volumes: volume_store_pb2_grpc.VolumeStoreAsyncStub = volume_store_pb2_grpc.VolumeStoreStub(channel)
        self.workers = Workers(data, self)  # type: ignore[arg-type]

    async def create(self, volume_id: str, **how: object) -> None:
        request = vs.CreateVolumeRequest(
            volume_id=volume_id, app_id="app-1", name="data", region="syd", candidate_worker_ids=["w1"],
            snapshot_retention_days=5, size_bytes=1 << 30,
        )  # fmt: skip
        for name, value in how.items():
            setattr(request, name, value)
        await self.volumes.CreateVolume(request)

    async def snapshot(self, snapshot_id: str, volume_id: str) -> None:
        await self.volumes.CreateSnapshot(vs.CreateSnapshotRequest(snapshot_id=snapshot_id, volume_id=volume_id))

    async def reaches(self, volume_id: str, state: vs.VolumeState.ValueType) -> None:
        async def there() -> bool:
            found = await self.volumes.GetVolume(vs.GetVolumeRequest(volume_id=volume_id))
            return found.volume.state == state

        await eventually(there, 20)

    async def taken(self, snapshot_id: str) -> vs.SnapshotRecord:
        async def there() -> vs.SnapshotRecord | None:
            found = (await self.volumes.GetSnapshot(vs.GetSnapshotRequest(snapshot_id=snapshot_id))).snapshot
            return found if found.state == vs.SNAPSHOT_STATE_CREATED else None

        found = await eventually(there, 20)
        assert found is not None
        return found

    def content(self, volume_id: str) -> dict[str, bytes]:
        folder = self.data / "volumes" / volume_id
        return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
async def cell(fresh_database: Callable[[], Awaitable[str]], tmp_path: Path) -> AsyncIterator[Cell]:
    dsn = await fresh_database()
    service = MachineStoreService(lambda: dsn, cell="001", region="syd", clock=SystemClock(), random=Random())
    registry = Registry(service="machine-store")
    service.register(registry)
    server = Server(registry, "127.0.0.1:0")
    cell = Cell(f"127.0.0.1:{await server.start()}", tmp_path / "worker")
    ready = asyncio.Event()
    task = asyncio.create_task(service.run(ready.set))
    await asyncio.wait_for(ready.wait(), 20)
    await cell.store.CreateApp(
        pb.CreateAppRequest(app_id="app-1", name="demo", organization_slug="personal", network="n", home_cell="001")
    )
    yield cell
    await cell.workers.close()
    await server.stop(0)
    await cancel(task)


WHAT_IS_UNDER_WAY = {
    "a file is copied": ("snapshot", "restore"),
    "the snapshot is taken": ("snapshot",),
    "the volume is made": ("restore",),
    "the volume was told": ("create", "destroy"),
    "the volume is removed": ("destroy",),
}


@pytest.mark.parametrize(
    ("point", "under_way"), [(point, each) for point, all in WHAT_IS_UNDER_WAY.items() for each in all]
)
async def test_a_worker_that_is_killed_finishes_what_it_had_begun_and_nothing_is_half(
    cell: Cell, point: str, under_way: str
) -> None:
    _, task = await cell.workers.start()
    await cell.create("vol_1")
    await cell.reaches("vol_1", vs.VOLUME_STATE_CREATED)
    written = {f"file-{number}": bytes([number]) * 100_000 for number in range(5)}
    for name, content in written.items():
        (cell.data / "volumes" / "vol_1" / name).write_bytes(content)
    await cell.snapshot("vs_1", "vol_1")
    first = await cell.taken("vs_1")
    await cell.workers.end(task)

    worker = await cell.workers.spawn(DIE_AT=point)
    match under_way:
        case "create":
            await cell.create("vol_2")
        case "snapshot":
            await cell.snapshot("vs_2", "vol_1")
        case "restore":
            await cell.create("vol_2", source_snapshot_id="vs_1")
        case "destroy":
            await cell.volumes.DeleteVolume(vs.DeleteVolumeRequest(volume_id="vol_1"))
    assert await asyncio.wait_for(worker.wait(), 20) == -9

    await cell.workers.start()
    match under_way:
        case "create":
            await cell.reaches("vol_2", vs.VOLUME_STATE_CREATED)
            assert cell.content("vol_2") == {}
        case "snapshot":
            assert (await cell.taken("vs_2")).digest == first.digest
        case "restore":
            await cell.reaches("vol_2", vs.VOLUME_STATE_CREATED)
            assert cell.content("vol_2") == written
        case "destroy":
            await cell.reaches("vol_1", vs.VOLUME_STATE_DESTROYED)
            assert not (cell.data / "volumes" / "vol_1").exists()
            await cell.create("vol_2", source_snapshot_id="vs_1")
            await cell.reaches("vol_2", vs.VOLUME_STATE_CREATED)
            assert cell.content("vol_2") == written
    await eventually(lambda: not list((cell.data / "making").iterdir()))
    (record,) = (await cell.store.ListWorkers(pb.ListWorkersRequest())).workers
    gone = 1 if under_way == "destroy" else 0
    made = 1 if under_way != "snapshot" else 0
    assert record.reserved.disk_bytes == (1 - gone + made) << 30
