"""The cells of apps: chosen once, whoever asks, and spread over the region."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from skerry.store.v1 import cell_store_pb2 as pb
from skerry.store.v1 import store_pb2 as store_pb
from skerry.store.v1.cell_store_pb2_grpc import CellStoreStub

from services.runtime.channels import local
from services.runtime.errors import InvalidConfig
from services.runtime.registry import Registry
from tests.integration.machine_store.stores import APP, Store

if TYPE_CHECKING:
    from skerry.store.v1.cell_store_pb2_grpc import CellStoreAsyncStub

CELLS = ("001", "002", "003")


@pytest.fixture
def cells(store: Store) -> CellStoreAsyncStub:
    registry = Registry(service="machine-store", secret="s")
    store.service.register(registry)
    return CellStoreStub(local(registry, caller="001/gateway", callee="machine-store", secret="s"))


async def located(cells: CellStoreAsyncStub, app_id: str, among: tuple[str, ...] = CELLS) -> str:
    return (await cells.LocateApp(pb.LocateAppRequest(app_id=app_id, cells=among))).cell


async def test_everybody_who_asks_at_once_gets_the_same_cell_for_ever(cells: CellStoreAsyncStub) -> None:
    [cell] = set(await asyncio.gather(*(located(cells, "new") for _ in range(20))))
    assert cell == CELLS[0]
    assert await located(cells, "new", CELLS[1:]) == cell


async def test_apps_are_spread_over_the_cells_and_deleted_ones_do_not_count(
    store: Store, cells: CellStoreAsyncStub
) -> None:
    async def make(name: str) -> None:
        await store.stub.CreateApp(
            store_pb.CreateAppRequest(
                app_id=name, name=name, organization_slug="personal", network="default", home_cell="001"
            )
        )

    for number in range(6):
        await make(f"spread-{number}")
    assert [await located(cells, f"spread-{number}") for number in range(6)] == [*CELLS, *CELLS]
    for name in ("spread-2", "spread-5"):
        await store.stub.DeleteApp(store_pb.DeleteAppRequest(name=name, source="user"))
    await make("after")
    assert await located(cells, "after") == CELLS[2]


async def test_an_app_that_was_here_when_there_was_one_cell_stays(store: Store, cells: CellStoreAsyncStub) -> None:
    await store.worker()
    await located(cells, "other")
    await store.create()
    assert await located(cells, APP) == CELLS[0]


async def test_nothing_is_chosen_from_nothing(cells: CellStoreAsyncStub) -> None:
    with pytest.raises(InvalidConfig, match="cells is missing"):
        await located(cells, "new", ())
    with pytest.raises(InvalidConfig, match="app_id is missing"):
        await located(cells, "")
