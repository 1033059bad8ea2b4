"""The types. Those of apps, organizations, machines and regions have the fields that existing clients ask for."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, NewType

import strawberry
from strawberry.scalars import JSON

from services.central import mirror
from services.central.catalog import App as AppRecord
from services.central.catalog import ImageAlias
from services.central.catalog import Organization as OrganizationRecord
from services.central.graphql.context import Info, field
from services.central.mirror import Record
from services.runtime.regions import Region as RegionRecord

PLATFORM_VERSION = "machines"
DEFAULT_REGISTRY = "docker.io"

AddOnType = NewType("AddOnType", str)
Long = NewType("Long", int)


def moment(at: float) -> str:
    """Unix seconds as clients read times."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


@strawberry.type(description="An add-on of an organization. There are none here.")
class AddOn:
    id: strawberry.ID
    name: str


@strawberry.type
class AddOnConnection:
    nodes: list[AddOn]


@strawberry.type(description="Who apps belong to.")
class Organization:
    record: strawberry.Private[OrganizationRecord]
    id: strawberry.ID
    slug: str
    raw_slug: str
    name: str
    type: str
    paid_plan: bool
    billable: bool
    internal_numeric_id: str
    viewer_role: str = "admin"

    @field("Add-ons of a type: none.")
    def add_ons(self, type: AddOnType | None = None) -> AddOnConnection:
        return AddOnConnection(nodes=[])

    @field("What the organization may use.")
    async def limits(self, info: Info) -> Limits:
        limits = await info.context.catalog.limits(self.record.id)
        return Limits(cpus=limits.cpus, memory_mb=limits.memory_mb, gpus=limits.gpus, machines=limits.machines)

    @classmethod
    def of(cls, record: OrganizationRecord) -> Organization:
        return cls(
            record=record,
            id=strawberry.ID(record.id),
            slug=record.slug,
            raw_slug=record.slug,
            name=record.name,
            type=record.type,
            paid_plan=record.paid_plan,
            billable=record.billable,
            internal_numeric_id=str(record.internal_numeric_id),
        )


@strawberry.type
class OrganizationConnection:
    nodes: list[Organization]


@strawberry.type(description="Bounds of an organization; null is no bound.")
class Limits:
    cpus: int | None
    memory_mb: int | None
    gpus: int | None
    machines: int | None


@strawberry.type(description="A region.")
class Region:
    code: str
    name: str
    latitude: float
    longitude: float
    gateway_available: bool = True
    requires_paid_plan: bool = False
    deprecated: bool = False

    @classmethod
    def of(cls, record: RegionRecord) -> Region:
        return cls(code=record.code, name=record.name, latitude=record.latitude, longitude=record.longitude)


@strawberry.type
class Platform:
    request_region: str
    regions: list[Region]


@strawberry.type(description="The holder of a user's token.")
class User:
    id: strawberry.ID
    email: str
    name: str


@strawberry.type(description="The holder of an attenuated token.")
class Macaroon:
    id: strawberry.ID
    email: str


Viewer = Annotated[User | Macaroon, strawberry.union("Viewer")]


@strawberry.type(description="An image that a machine can run.")
class ImageVersion:
    registry: str
    repository: str
    tag: str
    digest: str
    version: str | None = None

    @classmethod
    def of(cls, alias: ImageAlias) -> ImageVersion:
        first, slash, rest = alias.repository.partition("/")
        named = bool(slash) and ("." in first or ":" in first or first == "localhost")
        path, colon, tag = alias.name.rpartition(":")
        return cls(
            registry=first if named else DEFAULT_REGISTRY,
            repository=rest if named else alias.repository,
            tag=tag if colon and path and "/" not in tag else "",
            digest=alias.digest,
        )


@strawberry.type(description="What an image reference stands for.")
class Image:
    id: strawberry.ID
    digest: str
    ref: str
    compressed_size_full: str = "0"
    manifest: JSON | None = None


@strawberry.type
class AppRole:
    name: str
    id: strawberry.ID


@strawberry.type
class AppConfig:
    definition: JSON


@strawberry.type
class ServicePort:
    port: int
    handlers: list[str]


@strawberry.type(description="A service of an app that has no machines. There are none here.")
class Service:
    description: str
    protocol: str
    internal_port: int
    ports: list[ServicePort]


@strawberry.type(description="A public address. There are none here.")
class IPAddress:
    id: strawberry.ID
    address: str
    type: str
    region: str
    created_at: str


@strawberry.type
class IPAddressConnection:
    nodes: list[IPAddress]


@strawberry.type(description="A version of an app.")
class Release:
    id: strawberry.ID
    version: int
    description: str
    reason: str
    status: str
    image_ref: str | None
    stable: bool
    in_progress: bool
    deployment_strategy: str
    user: User | None
    created_at: str
    evaluation_id: str | None = None

    @classmethod
    def of(cls, record: Record) -> Release:
        payload = record.payload
        email = str(payload.get("user") or "")
        return cls(
            id=strawberry.ID(record.key),
            version=int(payload.get("version") or 0),
            description=str(payload.get("description") or ""),
            reason=str(payload.get("reason") or ""),
            status=str(payload.get("status") or ""),
            image_ref=payload.get("image_ref"),
            stable=bool(payload.get("stable")),
            in_progress=bool(payload.get("in_progress")),
            deployment_strategy=str(payload.get("strategy") or ""),
            user=User(id=strawberry.ID(email), email=email, name=email) if email else None,
            created_at=str(payload.get("created_at") or ""),
        )


@strawberry.type
class ReleaseConnection:
    nodes: list[Release]


@strawberry.type(description="A version of an app, with what its owner wrote.")
class ReleaseUnprocessed(Release):
    config_definition: JSON | None = None

    @classmethod
    def of(cls, record: Record) -> ReleaseUnprocessed:
        plain = vars(Release.of(record))
        return cls(**plain, config_definition=JSON(record.payload.get("definition")))


@strawberry.type
class ReleaseUnprocessedConnection:
    nodes: list[ReleaseUnprocessed]


@strawberry.type(description="A secret; its value is never shown.")
class Secret:
    id: strawberry.ID
    name: str
    digest: str
    version: int
    created_at: str
    updated_at: str


@strawberry.type
class MachineIP:
    family: str
    kind: str
    ip: str
    mask_size: int


@strawberry.type
class MachineIPConnection:
    nodes: list[MachineIP]


@strawberry.type
class Host:
    id: strawberry.ID


@strawberry.type(description="A machine, as its region last told.")
class Machine:
    record: strawberry.Private[Record]
    id: strawberry.ID
    name: str
    state: str
    region: str
    instance_id: str
    config: JSON
    created_at: str
    updated_at: str
    host: Host

    @field("The app that it belongs to.")
    async def app(self, info: Info) -> App:
        return App.of(await info.context.catalog.app(str(self.record.payload.get("app_id"))), info)

    @field("Its addresses.")
    def ips(self) -> MachineIPConnection:
        address = str(self.record.payload.get("private_ip") or "")
        found = [MachineIP(family="v6", kind="privatenet", ip=address, mask_size=112)] if address else []
        return MachineIPConnection(nodes=found)

    @classmethod
    def of(cls, record: Record) -> Machine:
        payload = record.payload
        return cls(
            record=record,
            id=strawberry.ID(record.key),
            name=str(payload.get("name") or ""),
            state=record.state,
            region=str(payload.get("region") or ""),
            instance_id=str(payload.get("instance_id") or ""),
            config=JSON(payload.get("config") or {}),
            created_at=str(payload.get("created_at") or ""),
            updated_at=str(payload.get("updated_at") or ""),
            host=Host(id=strawberry.ID(str(payload.get("worker_id") or ""))),
        )


@strawberry.type
class MachineConnection:
    nodes: list[Machine]


@strawberry.type(description="A volume, as its region last told.")
class Volume:
    record: strawberry.Private[Record]
    id: strawberry.ID
    name: str
    state: str
    region: str

    @field("The app that it belongs to.")
    async def app(self, info: Info) -> App:
        return App.of(await info.context.catalog.app(str(self.record.payload.get("app_id"))), info)

    @classmethod
    def of(cls, record: Record) -> Volume:
        payload = record.payload
        return cls(
            record=record,
            id=strawberry.ID(record.key),
            name=str(payload.get("name") or ""),
            state=record.state,
            region=str(payload.get("region") or ""),
        )


@strawberry.type(description="An app.")
class App:
    record: strawberry.Private[AppRecord]
    id: strawberry.ID
    internal_numeric_id: int
    name: str
    hostname: str
    cname_target: str
    app_url: str
    deployed: bool
    network: str
    status: str
    home_cell: str
    created_at: str
    secrets_version: int
    role: AppRole
    version: int = 0
    platform_version: str = PLATFORM_VERSION
    shared_ip_address: str | None = None

    @strawberry.field
    async def organization(self, info: Info) -> Organization:
        return Organization.of(await info.context.catalog.organization(self.record.organization_id))

    @strawberry.field
    def config(self) -> AppConfig:
        return AppConfig(definition=JSON({}))

    @strawberry.field
    def services(self) -> list[Service]:
        return []

    @strawberry.field
    def ip_addresses(self) -> IPAddressConnection:
        return IPAddressConnection(nodes=[])

    @strawberry.field
    def egress_ip_addresses(self) -> IPAddressConnection:
        return IPAddressConnection(nodes=[])

    @field("Regions that it has machines in; its home region before it has any.")
    async def regions(self, info: Info) -> list[Region]:
        machines = await self._machines(info)
        codes = {machine.payload.get("region") for machine in machines}
        known = info.context.regions
        found = [Region.of(region) for region in known.regions if region.code in codes]
        return found or [Region.of(known.region_of_cell(self.record.home_cell))]

    @field("Its machines in all regions.")
    async def machines(self, info: Info) -> MachineConnection:
        return MachineConnection(nodes=[Machine.of(record) for record in await self._machines(info)])

    async def _machines(self, info: Info) -> list[Record]:
        records = await info.context.mirror.of_app(mirror.MACHINE, self.record.id)
        return [record for record in records if not record.gone]

    @field("The newest release; null before the first.")
    async def current_release(self, info: Info) -> Release | None:
        releases = await self._releases(info)
        return Release.of(releases[0]) if releases else None

    @field("The newest release, with its definition; null before the first.")
    async def current_release_unprocessed(self, info: Info) -> ReleaseUnprocessed | None:
        releases = await self._releases(info)
        return ReleaseUnprocessed.of(releases[0]) if releases else None

    @field("Releases, newest first.")
    async def releases_unprocessed(self, info: Info, first: int = 25) -> ReleaseUnprocessedConnection:
        releases = (await self._releases(info))[: max(first, 0)]
        return ReleaseUnprocessedConnection(nodes=[ReleaseUnprocessed.of(record) for record in releases])

    @field("Releases, newest first.")
    async def releases(self, info: Info, first: int = 25) -> ReleaseConnection:
        releases = (await self._releases(info))[: max(first, 0)]
        return ReleaseConnection(nodes=[Release.of(record) for record in releases])

    async def _releases(self, info: Info) -> list[Record]:
        records = await info.context.mirror.of_app(mirror.RELEASE, self.record.id)
        return sorted(records, key=lambda record: int(record.payload.get("version") or 0), reverse=True)

    @field("The image of its newest release, if an alias stands for it.")
    async def image_details(self, info: Info) -> ImageVersion | None:
        releases = await self._releases(info)
        reference = releases[0].payload.get("image_ref") if releases else None
        alias = await info.context.catalog.newest_image(str(reference)) if reference else None
        return ImageVersion.of(alias) if alias else None

    @field("What an image reference stands for; null when it is unknown.")
    async def image(self, info: Info, ref: str) -> Image | None:
        alias = await info.context.catalog.image(ref)
        return Image(id=strawberry.ID(alias.name), digest=alias.digest, ref=alias.reference) if alias else None

    @field("Its secrets, without their values.")
    async def secrets(self, info: Info) -> list[Secret]:
        return [
            Secret(
                id=strawberry.ID(secret.name),
                name=secret.name,
                digest=secret.digest,
                version=secret.version,
                created_at=moment(secret.created_at),
                updated_at=moment(secret.updated_at),
            )
            for secret in await info.context.catalog.secrets(self.record.id)
        ]

    @classmethod
    def of(cls, record: AppRecord, info: Info) -> App:
        hostname = f"{record.name}.{info.context.apps_domain}"
        return cls(
            record=record,
            id=strawberry.ID(record.id),
            internal_numeric_id=record.internal_numeric_id,
            name=record.name,
            hostname=hostname,
            cname_target=hostname,
            app_url=f"https://{hostname}",
            deployed=record.status == "deployed",
            network=record.network,
            status=record.status,
            home_cell=record.home_cell,
            created_at=moment(record.created_at),
            secrets_version=record.secrets_version,
            role=AppRole(name=record.role, id=strawberry.ID(record.role)),
        )


@strawberry.type
class AppConnection:
    nodes: list[App]


Node = Annotated[Volume | App, strawberry.union("Node")]
