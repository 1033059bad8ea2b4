"""Where volumes are: a fact that the region gives along, so that the centre does not come back to ask."""

from __future__ import annotations

from typing import Any

from skerry.store.v1.volume_store_pb2 import CreateVolumeRequest
from skerry.store.v1.volume_store_pb2_grpc import VolumeStoreStub

from services.runtime.errors import DependencyDown
from tests.integration.config_converter.cells import Cell, cell
from tests.unit.config_converter.judging import config_of


async def volume(there: Cell, volume_id: str, app: str = "web", name: str = "data") -> None:
    stub: Any = VolumeStoreStub(there.channel)
    await stub.CreateVolume(
        CreateVolumeRequest(
            volume_id=volume_id, app_id=f"app-{app}", name=name, region="syd", size_bytes=1, candidate_worker_ids=["w1"]
        )
    )


async def told(there: Cell, named: str) -> dict[str, str]:
    """What the centre is told of the volume that a configuration names."""
    config = config_of({"image": "nginx", "mounts": [{"path": "/data", "volume": named}]})
    await there.converter.convert(config)
    return dict(there.centre.asked[-1].volume_locations)


async def test_the_centre_is_told_where_a_volume_is_by_id_and_by_name_also_one_made_a_moment_ago(dsn: str) -> None:
    async with cell(dsn, plan="central") as there:
        await there.worker()
        await there.app("web")
        await there.app("other")
        for number in range(5):
            # Right after it was made: whether the log has brought it or not.
            await volume(there, f"vol_001000000000000{number}", name=f"data{number}")
            assert await told(there, f"vol_001000000000000{number}") == {f"vol_001000000000000{number}": "w1"}
            assert await told(there, f"data{number}") == {f"data{number}": "w1"}
        await volume(there, "vol_0010000000000009", app="other")
        for nowhere in ("vol_0010000000000009", "vol_0010000000000008", "nothing"):
            assert await told(there, nowhere) == {nowhere: ""}, "another app's volume is nowhere, like none"


async def test_a_configuration_without_mounts_asks_nobody_for_volumes(dsn: str) -> None:
    async with cell(dsn) as there:
        await there.app("web")
        there.centre.away = DependencyDown("the centre is away")
        result = await there.converter.convert(config_of({"image": "nginx", "mounts": []}))
        assert not result.spec.mounts.mounts
