"""Apps: in the region's own catalog, seen through a view in memory that follows the log."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from random import Random
from typing import TYPE_CHECKING, Never

from skerry.machines.v1 import machines_pb2 as api
from skerry.store.v1 import store_pb2 as store
from skerry.store.v1.catalog_pb2 import ImageAliasRecord, OrganizationRecord
from skerry.sync.v1 import sync_pb2 as sync

from gateway.auth import current_principal
from gateway.names import APP_NAME_RULE, is_app_name
from services.runtime.addresses import APPS_DOMAIN
from services.runtime.clock import Clock
from services.runtime.errors import DependencyDown, Forbidden, InvalidConfig, NotFound, Violation
from services.runtime.ids import new_ulid

if TYPE_CHECKING:
    from skerry.store.v1.store_pb2_grpc import MachineStoreAsyncStub
    from skerry.sync.v1.sync_pb2_grpc import CentralSyncAsyncStub

PERSONAL = "personal"
ORGANIZATIONS = {
    PERSONAL: OrganizationRecord(
        id=PERSONAL, name="Personal", slug=PERSONAL, internal_numeric_id=1, type="PERSONAL", paid_plan=True
    )
}
"""Organizations by their short names that are there without a centre."""
DEFAULT_NETWORK = "default"
DEPLOYED = "deployed"
"""Status of an app that has machines."""
_STATUSES = (DEPLOYED, "suspended", "pending")
"""Of an app; of one that has several, in several cells, the first counts."""
RETRY_AFTER_SECONDS = 1.0


class Catalog:
    """The apps of the region by name, as of the newest change that was applied."""

    def __init__(self) -> None:
        self._apps: dict[str, store.AppRecord] = {}
        self._organizations: dict[str, OrganizationRecord] = {}
        self._images: dict[str, ImageAliasRecord] = {}
        self._names: dict[str, str] = {}

    def apply(self, app: store.AppRecord) -> None:
        """An app is there, has changed or is deleted."""
        if not app.deleted:
            self._apps[app.name] = app
            self._names[app.id] = app.name
            return
        self._names.pop(app.id, None)
        if (known := self._apps.get(app.name)) is not None and known.id == app.id:
            # One with the same name that was created since stays.
            del self._apps[app.name]

    def reset(self) -> None:
        """Forget everything: the state comes anew."""
        self._apps.clear()
        self._organizations.clear()
        self._images.clear()
        self._names.clear()

    def get(self, name: str) -> store.AppRecord | None:
        """The app of that name, if this view has it."""
        return self._apps.get(name)

    def app_of_id(self, app_id: str) -> store.AppRecord | None:
        """The app of that id, if this view has it."""
        return self._apps.get(self._names.get(app_id, ""))

    def apply_organization(self, organization: OrganizationRecord) -> None:
        """An organization is there, has changed or is deleted."""
        if organization.deleted:
            self._organizations.pop(organization.slug, None)
        else:
            self._organizations[organization.slug] = organization

    def apply_image(self, image: ImageAliasRecord) -> None:
        """An image alias is there, has changed or is deleted."""
        self._images.pop(image.alias, None)
        if not image.deleted:
            self._images[image.alias] = image

    def images(self) -> Sequence[ImageAliasRecord]:
        """All image aliases, those that changed last at the end."""
        return tuple(self._images.values())

    def image(self, alias: str) -> ImageAliasRecord | None:
        """The image alias of that name."""
        return self._images.get(alias)

    def organization(self, slug: str) -> api.AppOrganization | None:
        """The organization of that short name, if this view has it."""
        found = self._organizations.get(slug) or ORGANIZATIONS.get(slug)
        if found is None:
            return None
        return api.AppOrganization(name=found.name, slug=found.slug, internal_numeric_id=found.internal_numeric_id)

    def reached_organizations(self) -> Sequence[OrganizationRecord]:
        """The organizations that the token reaches, by their short names."""
        principal = current_principal.get()
        known = {**ORGANIZATIONS, **self._organizations}
        return [known[slug] for slug in sorted(known) if principal is None or principal.reaches_organization(slug)]

    def reached_organization(self, slug: str) -> OrganizationRecord | None:
        """The organization of that short name, if the token reaches it."""
        return next((each for each in self.reached_organizations() if each.slug == slug), None)


class Apps:
    """What can be done with apps, by whom the current call is for.

    What its token does not reach looks exactly like what does not exist.

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
            app = await self._ask(name) if is_app_name(name) and _may_reach(name) else None
        if app is None:
            raise no_app(name)
        return app if _reaches(app) else await self._hide(name)

    async def _hide(self, name: str) -> Never:
        """Answer for an app that is not reached what is answered, in the same time, for one that does not exist."""
        if self._central_sync is not None and _may_reach(name):
            try:
                await self._central_sync.LookupApp(sync.LookupAppRequest(name=name))
            except NotFound:
                pass
            except DependencyDown as error:
                raise _cannot_ask(error, name) from error
        raise no_app(name)

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
            raise _cannot_ask(error, name) from error

    async def create(self, request: api.CreateAppRequest) -> api.App:
        """Create an app; it is in the region's catalog on return.

        Raises InvalidConfig of the field `name`, NotFound for the organization, Forbidden for a token of single apps,
        NameTaken, DependencyDown when it is the centre that creates apps and it is away.
        """
        name, slug = _name_of(request), request.org_slug or PERSONAL
        principal = current_principal.get()
        if principal is not None:
            if not principal.reaches_organization(slug):
                raise _no_organization(slug)
            if principal.apps is not None:
                raise Forbidden("this token is for single apps: creating one needs a token of the organization")
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
        if not is_app_name(name) or not _may_reach(name):
            raise no_app(name)
        found = await self._find(name)
        if found is None:
            raise no_app(name)
        if not _reaches(found.app):
            await self._hide(name)
        return self._public(
            found.app, found.machine_count, volume_count=found.volume_count, was_deployed=found.was_deployed
        )

    async def list(self, org_slug: str) -> list[api.App]:
        """The apps that are reached of an organization (all, where it is empty), by name. Raises NotFound for it."""
        if org_slug:
            self._insist_on_organization(org_slug)
        elif (principal := current_principal.get()) is not None and principal.organization is not None:
            org_slug = principal.organization
        found = await self._store.ListApps(store.ListAppsRequest(organization_slug=org_slug))
        return [
            self._public(each.app, each.machine_count, volume_count=each.volume_count, was_deployed=each.was_deployed)
            for each in found.apps
            if _reaches(each.app)
        ]

    async def delete(self, name: str) -> None:
        """Take an app away; its machines are being destroyed. Raises NotFound."""
        if not is_app_name(name):
            raise no_app(name)
        principal = current_principal.get()
        if principal is not None and principal.organization is not None:
            await self.resolve(name)
        try:
            if self._central_sync is not None:
                await self._central_sync.DeleteApp(sync.DeleteAppRequest(name=name))
            else:
                await self._store.DeleteApp(store.DeleteAppRequest(name=name, source="user"))
        except NotFound:
            raise no_app(name) from None
        except DependencyDown as error:
            raise _centre_is_away(error, f"the app {name!r} cannot be deleted now") from error

    def _insist_on_organization(self, slug: str) -> None:
        principal = current_principal.get()
        reached = principal is None or principal.reaches_organization(slug)
        if not reached or self._catalog.organization(slug) is None:
            raise _no_organization(slug)

    def _public(
        self, app: store.AppRecord, machine_count: int, *, volume_count: int = 0, was_deployed: bool = False
    ) -> api.App:
        slug = app.organization_slug
        return api.App(
            id=app.id,
            name=app.name,
            internal_numeric_id=app.internal_numeric_id,
            network=app.network,
            status=status_of(machine_count, was_deployed=was_deployed),
            machine_count=machine_count,
            volume_count=volume_count,
            organization=self._catalog.organization(slug) or api.AppOrganization(slug=slug),
            cname_target=f"{app.name}.{APPS_DOMAIN}",
            app_role=app.app_role,
        )


def add_elsewhere(apps: Iterable[api.App], elsewhere: Iterable[api.App]) -> None:
    """Make `apps`, as one cell has them, what all cells together have; `elsewhere` is what others have of any apps."""
    by_name = {app.name: app for app in apps}
    for there in elsewhere:
        if (app := by_name.get(there.name)) is not None:
            app.machine_count += there.machine_count
            app.volume_count += there.volume_count
            app.status = min(app.status, there.status, key=_STATUSES.index)


def status_of(machine_count: int, *, was_deployed: bool) -> str:
    """The status of an app: pending before its first machine or release, deployed while it has machines."""
    if machine_count:
        return DEPLOYED
    return "suspended" if was_deployed else "pending"


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


def _cannot_ask(error: DependencyDown, name: str) -> DependencyDown:
    return _centre_is_away(error, f"the region does not know the app {name!r}, and cannot ask for it")


def _centre_is_away(error: DependencyDown, what: str) -> DependencyDown:
    retry_after = RETRY_AFTER_SECONDS if error.retry_after is None else error.retry_after
    return DependencyDown(f"{what}: {error.message}", metadata=error.metadata, retry_after=retry_after)


def _may_reach(name: str) -> bool:
    """Whether the token of the current call can reach an app of that name, whosever it is."""
    principal = current_principal.get()
    return principal is None or principal.may_reach(name)


def _reaches(app: store.AppRecord) -> bool:
    principal = current_principal.get()
    return principal is None or principal.reaches(app.name, app.organization_slug)


def _no_organization(slug: str) -> NotFound:
    return NotFound(f"there is no organization {slug!r} that this token reaches")


def no_app(name: str) -> NotFound:
    """The error for an app that does not exist, or that the token does not reach: nobody can tell which."""
    return NotFound(f"there is no app {name!r} that this token reaches")
