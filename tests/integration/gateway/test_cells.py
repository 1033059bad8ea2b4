"""A region of two cells, each with its own database and gateways: an app lives in one, however it is reached."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack

import grpc
import pytest
import pytest_asyncio
from skerry.machines.v1 import cells_pb2, cells_pb2_grpc
from skerry.store.v1 import store_pb2 as store

from services.runtime.channels import connect
from services.runtime.errors import InvalidConfig
from services.runtime.regions import Cell, Region, RegionMap
from tests.support_gateway import TOKEN, TestRegion, region

FIRST, SECOND, OUTSIDE = "001", "002", "003"
MAP = RegionMap(
    [
        Region("syd", "Sydney", 0, 0, (Cell(FIRST, (f"{FIRST}:1",)), Cell(SECOND, (f"{SECOND}:1",)))),
        Region("iad", "Ashburn", 0, 0, (Cell(OUTSIDE, (f"{OUTSIDE}:1",)),)),
    ]
)
BODY = {"config": {"image": "busybox"}, "skip_launch": True}

_numbers = itertools.count(1)

pytestmark = pytest.mark.asyncio(loop_scope="module")


class Cells:
    """All three, by their ids. `addresses` are where their gateways answer, by what the map calls them."""

    def __init__(self) -> None:
        self.serving: dict[str, TestRegion] = {}
        self.addresses: dict[str, str] = {}

    def reach(self, symbolic: Sequence[str], caller: str, callee: str) -> grpc.aio.Channel:
        found = [self.addresses[address] for address in symbolic]
        return connect(found, caller=caller, callee=callee, secret=None, leaves_region=True)

    async def app(self) -> str:
        """A new app that all cells know by the same id, as from the centre."""
        name = f"app-in-cells-{next(_numbers)}"
        request = store.CreateAppRequest(
            app_id=name, name=name, organization_slug="personal", network="default", home_cell=FIRST
        )
        for each in self.serving.values():
            await each.store.CreateApp(request)
        return name

    async def create(self, via: str, app: str, **more: object) -> str:
        """The cell of a machine that is made through a gateway of `via`, as its id has it."""
        answer = await self.serving[via].call("POST", f"/v1/apps/{app}/machines", {**BODY, **more})
        assert answer.status == 200, answer
        return str(answer.json["id"])[:3]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cells(postgres: str) -> AsyncIterator[Cells]:
    async with AsyncExitStack() as stack:
        made = Cells()
        for cell in (FIRST, SECOND, OUTSIDE):
            serving = await stack.enter_async_context(
                region(postgres, cell=cell, regions=MAP, connect_elsewhere=made.reach)
            )
            made.serving[cell] = serving
            made.addresses[f"{cell}:1"] = serving.grpc_address
        yield made


async def test_all_machines_of_an_app_in_a_region_are_in_one_cell_and_apps_are_spread(cells: Cells) -> None:
    homes: list[str] = []
    for first in (FIRST, SECOND, OUTSIDE, FIRST):
        app = await cells.app()
        ways = [(via, {"region": "syd"}) for via in (first, FIRST, SECOND, OUTSIDE)]
        ways += [(FIRST, {}), (SECOND, {})]
        made = {await cells.create(via, app, **more) for via, more in ways}
        assert len(made) == 1, "whichever gateway was asked, with or without the region's name"
        homes += made
        listed = await cells.serving[OUTSIDE].call("GET", f"/v1/apps/{app}/machines?region=syd")
        assert {machine["id"][:3] for machine in listed.json} == made
        assert len(listed.json) == len(ways)
        assert await cells.create(OUTSIDE, app) == OUTSIDE, "another region is its own affair"
    assert homes == [FIRST, SECOND, FIRST, SECOND]


async def test_gateways_that_meet_an_app_at_the_same_moment_agree_on_its_cell(cells: Cells) -> None:
    app = await cells.app()
    made = await asyncio.gather(
        *(cells.create(via, app, region="syd") for via in (FIRST, SECOND, OUTSIDE) for _ in range(5))
    )
    assert len(set(made)) == 1


async def test_volumes_are_in_the_cell_of_their_app(cells: Cells) -> None:
    for _ in range(2):
        app = await cells.app()
        home = await cells.create(SECOND, app)
        for via in (FIRST, SECOND, OUTSIDE):
            answer = await cells.serving[via].call(
                "POST", f"/v1/apps/{app}/volumes", {"name": "data", "region": "syd", "size_gb": 1}
            )
            assert answer.status == 200, answer
            assert answer.json["id"].removeprefix("vol_")[:3] == home


async def test_only_the_first_cell_says_where_apps_are(cells: Cells) -> None:
    app = await cells.app()
    home = await cells.create(SECOND, app)
    request = cells_pb2.LocateAppRequest(app_name=app, region="syd")
    for cell, serving in cells.serving.items():
        async with connect([serving.grpc_address], caller="syd-1/cli", callee="gateway", secret=None) as channel:
            locating = cells_pb2_grpc.CellsStub(channel).LocateApp(
                request, metadata=(("authorization", f"Bearer {TOKEN}"),)
            )
            if cell == FIRST:
                assert (await locating).cell == home
            else:
                with pytest.raises(InvalidConfig, match="has its record of apps in the cell 001"):
                    await locating
