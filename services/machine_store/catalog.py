"""The catalog: apps."""

from __future__ import annotations

from collections.abc import Sequence

from skerry.store.v1.store_pb2 import AppRecord, CreateAppRequest, GetAppResponse

from services.machine_store.database import Database, Row
from services.machine_store.events import Events
from services.machine_store.queries import load
from services.machine_store.records import app_record, check_text, storable
from services.runtime.errors import InvalidConfig, NameTaken, NotFound, Violation

_SQL = load("catalog")


class Catalog:
    """The region's apps."""

    def __init__(self, database: Database, *, events: Events) -> None:
        self._database = database
        self._events = events

    async def create(self, request: CreateAppRequest) -> AppRecord:
        """Put an app into the catalog; the same app again changes nothing.

        Raises InvalidConfig, NameTaken, DependencyDown.
        """
        check_text(
            name=request.name,
            app_id=request.app_id,
            organization_slug=request.organization_slug,
            network=request.network,
            app_role=request.app_role,
            home_cell=request.home_cell,
        )
        for field in ("name", "app_id"):
            if not getattr(request, field):
                raise InvalidConfig(f"{field} is missing", violations=[Violation(field, "is missing")])
        outcome = await self._database.fetchval(
            _SQL["create_app"],
            request.app_id,
            request.name,
            request.organization_slug,
            request.network,
            request.app_role,
            request.home_cell,
            self._events.now(),
        )
        row = await self._database.fetchrow(_SQL["get_app_by_id"], request.app_id)
        if outcome == "name_taken" or row is None:
            why = f"is taken: there is an app {request.name} already"
            raise NameTaken(f"name {why}; choose another name", violations=[Violation("name", why)])
        return app_record(row)

    async def get(self, name: str) -> GetAppResponse:
        """An app by its name. Raises NotFound, DependencyDown."""
        row = await self._database.fetchrow(_SQL["get_app"], storable(name))
        if row is None:
            raise _no_app(name)
        return _counted(row)

    async def list(self, organization_slug: str) -> Sequence[GetAppResponse]:
        """Apps by name, of one organization or of all when that is empty. Raises DependencyDown."""
        return [_counted(row) for row in await self._database.fetch(_SQL["list_apps"], storable(organization_slug))]

    async def delete(self, name: str, source: str) -> int:
        """Take an app out of the catalog; how many machines are destroyed for it. Raises NotFound, DependencyDown."""
        check_text(source=source)
        app = (await self.get(name)).app
        machines: int | None = await self._database.fetchval(
            _SQL["delete_app"], app.id, self._events.new_prefix(), source, self._events.now()
        )
        if machines is None:
            raise _no_app(name)
        return machines


def _counted(row: Row) -> GetAppResponse:
    return GetAppResponse(
        app=app_record(row),
        machine_count=row["machine_count"],
        was_deployed=row["was_deployed"],
        volume_count=row["volume_count"],
    )


def _no_app(name: str) -> NotFound:
    return NotFound(f"app {name} does not exist")
