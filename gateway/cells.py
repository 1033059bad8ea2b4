"""Which cell of a region an app lives in: all its machines and volumes there are in one, for ever.

It is chosen when the app first appears in the region, and recorded in the region's first cell. A region of one cell
needs none of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from skerry.machines.v1 import cells_pb2 as api
from skerry.machines.v1 import cells_pb2_grpc
from skerry.store.v1.cell_store_pb2 import LocateAppRequest

from gateway.apps import Apps
from gateway.routing import Peer, Routing
from services.runtime.errors import InvalidConfig, Violation
from services.runtime.regions import Region, RegionMap

if TYPE_CHECKING:
    from skerry.store.v1.cell_store_pb2_grpc import CellStoreAsyncStub

SERVICE = "Cells"
_MOST_REMEMBERED = 100_000


class AppCells:
    """Finds the cell of an app, and remembers it: it never changes."""

    def __init__(self, apps: Apps, store: CellStoreAsyncStub, routing: Routing, regions: RegionMap) -> None:
        self._apps = apps
        self._store = store
        self._routing = routing
        self._regions = regions
        self._known: dict[tuple[str, str], str] = {}
        """By the region's code and the app's id: another app may have its name later."""

    async def peer_of(self, app_name: str, region: str) -> Peer | None:
        """Who serves a new machine or volume of an app in the region of that code (this one's, where it is empty).

        None for this cell, also where there is no such region. Raises NotFound (the app), DependencyDown naming the
        region whose first cell would have to be asked.
        """
        routing = self._routing
        code = region or routing.region
        if not routing.is_known(code) or len((there := self._regions.region(code)).cells) == 1:
            return routing.by_region(region)
        if code == routing.region and routing.is_forwarded:
            # Whoever sent it here knows that the app lives here.
            return None
        return routing.by_cell(await self._cell_of(app_name, there))

    async def locate(self, app_name: str, region: str) -> str:
        """The cell of an app, by the record that is kept here. Raises NotFound, InvalidConfig, DependencyDown."""
        app = await self._apps.resolve(app_name)
        there = self._regions.region(region or self._routing.region)
        first = there.cells[0].id
        if first != self._routing.cell:
            why = f"has its record of apps in the cell {first}, and this is {self._routing.cell}"
            raise InvalidConfig(f"region {there.code} {why}", violations=[Violation("region", why)])
        known = self._known.get((there.code, app.id))
        if known is None:
            request = LocateAppRequest(app_id=app.id, cells=[cell.id for cell in there.cells])
            known = self._remember(there.code, app.id, (await self._store.LocateApp(request)).cell)
        return known

    async def _cell_of(self, app_name: str, region: Region) -> str:
        app = await self._apps.resolve(app_name)
        known = self._known.get((region.code, app.id))
        if known is not None:
            return known
        first = self._routing.by_cell(region.cells[0].id)
        if first is None:
            return await self.locate(app_name, region.code)
        request = api.LocateAppRequest(app_name=app_name, region=region.code)
        answer: api.LocateAppResponse = await first.call("LocateApp", request, service=SERVICE)
        return self._remember(region.code, app.id, answer.cell)

    def _remember(self, region: str, app_id: str, cell: str) -> str:
        if len(self._known) >= _MOST_REMEMBERED:
            self._known.clear()
        self._known[region, app_id] = cell
        return cell


class CellsService(cells_pb2_grpc.CellsServicer):
    """Serves skerry.machines.v1.Cells."""

    def __init__(self, cells: AppCells) -> None:
        self._cells = cells

    async def LocateApp(self, request: api.LocateAppRequest, context: object) -> api.LocateAppResponse:
        """The cell of an app. Raises as `AppCells.locate`."""
        return api.LocateAppResponse(cell=await self._cells.locate(request.app_name, request.region))
