"""Apps: in the region's own catalog, seen through a view in memory that follows the log."""

from __future__ import annotations

import asyncio
from random import Random
from typing import TYPE_CHECKING

from skerry.machines.v1 import machines_pb2 as api
from skerry.store.v1 import catalog_pb2
from skerry.store.v1 import store_pb2 as store
from skerry.sync.v1 import sync_pb2 as sync

from gateway.names import APP_NAME_RULE, is_app_name
from services.runtime.clock import Clock
from services.runtime.errors import DependencyDown, InvalidConfig, NotFound, Violation
from services.runtime.ids import new_ulid

if TYPE_CHECKING:
    from skerry.store.v1.store_pb2_grpc import MachineStoreAsyncStub
    from skerry.sync.v1.sync_pb2_grpc import CentralSyncAsyncStub

PERSONAL = "personal"
ORGANIZATIONS = {PERSONAL: api.AppOrganization(name="Personal", slug=PERSONAL, internal_numeric_id=1)}
"""Organizations by their short names that are there without a centre."""
DEFAULT_NETWORK = "default"
RETRY_AFTER_SECONDS = 1.0


class Catalog:
    """The apps of the region by name, as of the newest change that was applied."""

    def __init__(self) -> None:
        self._apps: dict[str, store.AppRecord] = {}
        self._organizations: dict[str, api.AppOrganization] = {}

    def apply(self, app: store.AppRecord) -> None:
        """An app is there, has changed or is deleted."""
        if not app.deleted:
            self._apps[app.name] = app
        elif (known := self._apps.get(app.name)) is not None and known.id == app.id:
            # One with the same name that was created since stays.
            del self._apps[app.name]

    def reset(self) -> None:
        """Forget everything: the state comes anew."""
        self._apps.clear()
        self._organizations.clear()

    def get(self, name: str) -> store.AppRecord | None:
        """The app of that name, if this view has it."""
        return self._apps.get(name)

    def apply_organization(self, organization: catalog_pb2.OrganizationRecord) -> None:
        """An organization is there, has changed or is deleted."""
        if organization.deleted:
            self._organizations.pop(organization.slug, None)
        else:
            self._organizations[organization.slug] = api.AppOrganization(
                name=organization.name,
                slug=organization.slug,
                internal_numeric_id=organization.internal_numeric_id,
            )

    def organization(self, slug: str) -> api.AppOrganization | None:
        """The organization of that short name, if this view has it."""
        return self._organizations.get(slug) or ORGANIZATIONS.get(slug)


class Apps:
    """What can be done with apps.

    With a centre, through central-sync, apps are made and deleted there, and what the region does not have is asked of
    it once.
    """

    def __init__(
        self,
        store_stub: MachineStoreAsyncStub,
        catalog: Catalog,
        *,
        cell: str,
        clock: Clock,
        random: Random,
        central_sync: CentralSyncAsyncStub | None = None,
    ) -> None:
        self._central_sync = central_sync
        self._store = store_stub
        self._catalog = catalog
        self._cell = cell
        self._clock = clock
        self._random = random
        self._asking: dict[str, asyncio.Task[store.AppRecord | None]] = {}

    async def resolve(self, name: str) -> store.AppRecord:
        """The app of that name. What the view does not have is asked of the store, then of the centre.

        Raises NotFound, InvalidConfig, DependencyDown when the centre would have to be asked and is away.
        """
        if not name:
            raise InvalidConfig("app_name is missing", violations=[Violation("app_name", "is missing")])
        app = self._catalog.get(name)
        if app is None:
            app = await self._ask(name) if is_app_name(name) else None
        if app is None:
            raise _no_app(name)
        return app

    async def _ask(self, name: str) -> store.AppRecord | None:
        """Ask the store, together with others who ask for the same."""
        running = self._asking.get(name)
        if running is not None:
            if (app := await asyncio.shield(running)) is not None:
                return app
            # That it did not exist when somebody else asked, before us, says nothing: it may have been created since.
            following = self._asking.get(name)
            if following is not None and following is not running:
                return await asyncio.shield(following)
        task = asyncio.get_running_loop().create_task(self._get(name))
        self._asking[name] = task
        task.add_done_callback(lambda done: self._asked(name, done))
        return await asyncio.shield(task)

    def _asked(self, name: str, task: asyncio.Task[store.AppRecord | None]) -> None:
        if self._asking.get(name) is task:
            del self._asking[name]
        if not task.cancelled():
            task.exception()  # Seen by those who asked, if any of them still waits.

    async def _get(self, name: str) -> store.AppRecord | None:
        found = await self._find(name)
        return found.app if found is not None else None

    async def _find(self, name: str) -> store.GetAppResponse | None:
        """The app as the region's catalog has it; what it does not have is looked for at the centre once."""
        request = store.GetAppRequest(name=name)
        try:
            return await self._store.GetApp(request)
        except NotFound:
            if self._central_sync is None:
                return None
        try:
            await self._central_sync.LookupApp(sync.LookupAppRequest(name=name))
            return await self._store.GetApp(request)
        except NotFound:
            return None
        except DependencyDown as error:
            # Whoever asks must not take an outage for an answer.
            raise _centre_is_away(error, f"the region does not know the app {name!r}, and cannot ask for it") from error

    async def create(self, request: api.CreateAppRequest) -> api.App:
        """Create an app; it is in the region's catalog on return.

        Raises InvalidConfig of the field `name`, NotFound for the organization, NameTaken, DependencyDown when it is
        the centre that creates apps and it is away.
        """
        name, slug = _name_of(request), request.org_slug or PERSONAL
        if self._central_sync is not None:
            wanted = sync.CreateAppRequest(
                name=name, organization_slug=slug, network=request.network, app_role=request.app_role_id
            )
            try:
                app = (await self._central_sync.CreateApp(wanted)).app
            except DependencyDown as error:
                raise _centre_is_away(error, f"the app {name!r} cannot be created now") from error
        else:
            self._insist_on_organization(slug)
            created = await self._store.CreateApp(
                store.CreateAppRequest(
                    app_id=new_ulid(self._clock.now(), self._random).lower(),
                    name=name,
                    organization_slug=slug,
                    network=request.network or DEFAULT_NETWORK,
                    app_role=request.app_role_id,
                    home_cell=self._cell,
                )
            )
            app = created.app
        return self._public(app, machine_count=0)

    async def get(self, name: str) -> api.App:
        """One app, with its number of machines. Raises NotFound."""
        if not is_app_name(name):
            raise _no_app(name)
        found = await self._find(name)
        if found is None:
            raise _no_app(name)
        return self._public(found.app, found.machine_count)

    async def list(self, org_slug: str) -> list[api.App]:
        """The apps of an organization (of all, where it is empty), by name. Raises NotFound for the organization."""
        if org_slug:
            self._insist_on_organization(org_slug)
        found = await self._store.ListApps(store.ListAppsRequest(organization_slug=org_slug))
        return [self._public(each.app, each.machine_count) for each in found.apps]

    async def delete(self, name: str) -> None:
        """Take an app away; its machines are being destroyed. Raises NotFound."""
        if not is_app_name(name):
            raise _no_app(name)
        try:
            if self._central_sync is not None:
                await self._central_sync.DeleteApp(sync.DeleteAppRequest(name=name))
            else:
                await self._store.DeleteApp(store.DeleteAppRequest(name=name, source="user"))
        except NotFound:
            raise _no_app(name) from None
        except DependencyDown as error:
            raise _centre_is_away(error, f"the app {name!r} cannot be deleted now") from error

    def _insist_on_organization(self, slug: str) -> None:
        if self._catalog.organization(slug) is None:
            raise NotFound(f"there is no organization {slug!r} that this token reaches")

    def _public(self, app: store.AppRecord, machine_count: int) -> api.App:
        slug = app.organization_slug
        return api.App(
            id=app.id,
            name=app.name,
            internal_numeric_id=app.internal_numeric_id,
            network=app.network,
            status="deployed" if machine_count else "pending",
            machine_count=machine_count,
            organization=self._catalog.organization(slug) or api.AppOrganization(slug=slug),
            app_role=app.app_role,
        )


def _name_of(request: api.CreateAppRequest) -> str:
    name = request.name or request.app_name
    violations: list[Violation] = []
    if request.name and request.app_name and request.name != request.app_name:
        violations.append(Violation("app_name", "must be the same as name, where both are given"))
    if not is_app_name(name):
        violations.append(Violation("name", APP_NAME_RULE if name else "is needed"))
    if violations:
        raise InvalidConfig("; ".join(f"{v.field} {v.why}" for v in violations), violations=violations)
    return name


def _centre_is_away(error: DependencyDown, what: str) -> DependencyDown:
    retry_after = RETRY_AFTER_SECONDS if error.retry_after is None else error.retry_after
    return DependencyDown(f"{what}: {error.message}", metadata=error.metadata, retry_after=retry_after)


def _no_app(name: str) -> NotFound:
    return NotFound(f"there is no app {name!r} that this token reaches")
