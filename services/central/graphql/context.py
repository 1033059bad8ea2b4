"""What resolvers work with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import strawberry

from services.central import catalog as records
from services.central import mirror
from services.central.catalog import Catalog
from services.central.conversion import Conversion
from services.central.errors import Missing, NotAllowed, TakenByRegions
from services.central.feed import Feed
from services.central.graphql import types
from services.central.mirror import Mirror
from services.central.releases import Release
from services.central.tokens import Tokens
from services.runtime import graphql_types as shared
from services.runtime.principals import DEVELOPER, Principal, Right, email_of, forbidden
from services.runtime.regions import RegionMap


@dataclass(frozen=True, slots=True)
class Centre:
    """One instance of the centre, as its GraphQL sees it: what clients read comes from the catalog and the mirror."""

    catalog: Catalog
    feed: Feed
    mirror: Mirror
    conversion: Conversion
    tokens: Tokens
    region_map: RegionMap
    converters: Mapping[str, Release]
    apps_domain: str
    principal: Principal = DEVELOPER
    """Who asks."""

    def insist_on(self, right: Right) -> None:
        """Raises NotAllowed unless whoever asks has `right` on what they reach."""
        if not self.principal.may(right):
            raise NotAllowed(forbidden(right).message)

    async def organization_record(self, slug_or_id: str) -> records.Organization:
        """An organization that is reached. Raises Missing."""
        record = await self.catalog.organization(slug_or_id)
        if not self.principal.reaches_organization(record.slug):
            raise Missing(shared.NO_ORGANIZATION)
        return record

    async def app_record(self, name_or_id: str) -> records.App:
        """An app that is reached. Raises Missing."""
        record = await self.catalog.app(name_or_id)
        if not self.principal.reaches(record.name, record.organization_slug):
            raise Missing(shared.NO_APP)
        return record

    async def taker_of_releases(self, app: str) -> TakenByRegions:
        """What whoever wants to make a release is told: where releases of the app go. Raises Missing, NotAllowed."""
        record = await self.app_record(app)
        self.insist_on(Right.CHANGE)
        home = self.region_map.region_of_cell(record.home_cell)
        return TakenByRegions(
            f"releases of {record.name} are taken by its home region {home.code}: send them there",
            {"region": home.code, "cell": record.home_cell},
        )

    async def taker_of_progress(self, release_id: str) -> TakenByRegions:
        """The same for the progress of a release."""
        record = await self.mirror.record(mirror.RELEASE, release_id)
        await self.app_record(str(record.payload.get("app_id")))
        self.insist_on(Right.CHANGE)
        home = self.region_map.region_of_cell(record.cell)
        return TakenByRegions(
            f"that release was taken by the region {home.code}: send its progress there",
            {"region": home.code, "cell": record.cell},
        )

    async def organizations(self) -> Sequence[shared.Organization]:
        found = await self.catalog.organizations()
        return [types.organization(record) for record in found if self.principal.reaches_organization(record.slug)]

    async def organization(self, slug_or_id: str) -> shared.Organization:
        return types.organization(await self.organization_record(slug_or_id))

    async def organization_of(self, app: shared.App) -> shared.Organization:
        return await self.organization(app.record.organization_id)

    async def limits_of(self, organization: shared.Organization) -> shared.Limits:
        limits = await self.catalog.limits(organization.id)
        return shared.Limits(cpus=limits.cpus, memory_mb=limits.memory_mb, gpus=limits.gpus, machines=limits.machines)

    async def app(self, name_or_id: str) -> shared.App:
        return types.app(await self.app_record(name_or_id), self.apps_domain)

    async def app_of(self, owned: shared.Machine | shared.Volume) -> shared.App:
        return await self.app(str(owned.record.payload.get("app_id")))

    async def status_of(self, app: shared.App) -> str:
        return str(app.record.status)

    async def machine(self, machine_id: str) -> shared.Machine:
        record = await self.mirror.record(mirror.MACHINE, machine_id)
        if record.gone:
            raise Missing(shared.NO_MACHINE)
        try:
            app = await self.app_record(str(record.payload.get("app_id")))
        except Missing:
            # It is not reached, or deleted, and its machines are being destroyed.
            raise Missing(shared.NO_MACHINE) from None
        return types.machine(record, app)

    async def machines_of(self, app: shared.App) -> Sequence[shared.Machine]:
        records = await self.mirror.of_app(mirror.MACHINE, app.id)
        return [types.machine(record, app.record) for record in records if not record.gone]

    async def regions_of(self, app: shared.App) -> Sequence[shared.Region]:
        codes = {machine.region for machine in await self.machines_of(app)}
        found = [region for region in self.regions() if region.code in codes]
        return found or [shared.Region.of(self.region_map.region_of_cell(app.home_cell))]

    async def volume(self, volume_id: str) -> shared.Volume:
        record = await self.mirror.record(mirror.VOLUME, volume_id)
        try:
            await self.app_record(str(record.payload.get("app_id")))
        except Missing:
            raise Missing(shared.NO_VOLUME) from None
        return types.volume(record)

    async def releases_of(self, app: shared.App, first: int) -> Sequence[shared.ReleaseUnprocessed]:
        records = await self.mirror.of_app(mirror.RELEASE, app.id)
        newest_first = sorted(records, key=lambda record: int(record.payload.get("version") or 0), reverse=True)
        return [types.release(record) for record in newest_first[:first]]

    async def secrets_of(self, app: shared.App) -> shared.Secrets:
        return shared.Secrets(
            app.record.secrets_version, [types.secret(secret) for secret in await self.catalog.secrets(app.id)]
        )

    async def image(self, reference: str) -> shared.Image | None:
        alias = await self.catalog.image(reference)
        return types.image(alias) if alias else None

    async def newest_image(self, reference: str) -> shared.ImageVersion | None:
        alias = await self.catalog.newest_image(reference)
        return shared.ImageVersion.of(alias.name, alias.repository, alias.digest) if alias else None

    def regions(self) -> Sequence[shared.Region]:
        return [shared.Region.of(region) for region in self.region_map.regions]

    def nearest_region(self) -> shared.Region:
        return self.regions()[0]

    def viewer(self) -> shared.User | shared.Macaroon:
        return shared.User.of(email_of(self.principal))


Info = strawberry.Info[Centre, Any]
