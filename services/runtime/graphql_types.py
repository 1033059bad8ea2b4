"""The GraphQL that existing clients read, which the centre and the gateways of regions both serve.

Its types are here; where what they show comes from is for each of the two to say, as a `Reads`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, NewType, Protocol, TypeVar

import strawberry
from graphql import GraphQLError, OperationDefinitionNode, parse
from strawberry.extensions import MaxAliasesLimiter, MaxTokensLimiter, QueryDepthLimiter, SchemaExtension
from strawberry.scalars import JSON
from strawberry.schema.config import StrawberryConfig
from strawberry.types import ExecutionContext

from services.runtime.regions import Region as RegionRecord

PLATFORM_VERSION = "machines"
DEFAULT_REGISTRY = "docker.io"
MOST_MACHINES = 1000
"""Machines that are shown of an app."""
MOST_RELEASES = 100
"""Releases that are shown of an app."""

DEEPEST = 5
"""Levels below the fields of an operation: what clients ask for, and no machines of the app of a machine."""
MOST_ALIASES = 20
MOST_TOKENS = 1000

AddOnType = NewType("AddOnType", str)
Long = NewType("Long", int)

NO_APP = "Could not find App"
"""What clients take for "there is no such app"."""
NO_MACHINE = "Could not find Machine"
NO_VOLUME = "Could not find Volume"
NO_ORGANIZATION = "Could not find Organization"


class Reads(Protocol):
    """Where what the types show comes from: the context of every operation.

    Each method raises what stands for "not found" there. A record is whatever its server knows an object by.
    """

    async def organizations(self) -> Sequence[Organization]: ...
    async def organization(self, slug_or_id: str) -> Organization: ...
    async def organization_of(self, app: App) -> Organization: ...
    async def limits_of(self, organization: Organization) -> Limits: ...
    async def app(self, name_or_id: str) -> App: ...
    async def app_of(self, owned: Machine | Volume) -> App: ...
    async def status_of(self, app: App) -> str: ...
    async def machine(self, machine_id: str) -> Machine: ...
    async def machines_of(self, app: App) -> Sequence[Machine]: ...
    async def regions_of(self, app: App) -> Sequence[Region]: ...
    async def volume(self, volume_id: str) -> Volume: ...
    async def releases_of(self, app: App, first: int) -> Sequence[ReleaseUnprocessed]: ...
    async def secrets_of(self, app: App) -> Secrets: ...
    async def image(self, reference: str) -> Image | None: ...
    async def newest_image(self, reference: str) -> ImageVersion | None: ...
    def regions(self) -> Sequence[Region]: ...
    def nearest_region(self) -> Region: ...
    def viewer(self) -> User | Macaroon: ...


Info = strawberry.Info[Reads, Any]

Resolver = TypeVar("Resolver", bound=Callable[..., Any])


def field(description: str) -> Callable[[Resolver], Resolver]:
    """strawberry.field with a description, for type checkers too."""
    decorator: Callable[[Resolver], Resolver] = strawberry.field(description=description)
    return decorator


def mutation(description: str) -> Callable[[Resolver], Resolver]:
    """strawberry.mutation with a description, for type checkers too."""
    decorator: Callable[[Resolver], Resolver] = strawberry.mutation(description=description)
    return decorator


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
        return await info.context.limits_of(self)


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

    @classmethod
    def of(cls, email: str) -> User:
        return cls(id=strawberry.ID(email), email=email, name=email)


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
    def of(cls, name: str, repository: str, digest: str) -> ImageVersion:
        """The image `repository` (with its registry, if it is not the usual one) that the alias `name` stands for."""
        first, slash, rest = repository.partition("/")
        named = bool(slash) and ("." in first or ":" in first or first == "localhost")
        path, colon, tag = name.rpartition(":")
        return cls(
            registry=first if named else DEFAULT_REGISTRY,
            repository=rest if named else repository,
            tag=tag if colon and path and "/" not in tag else "",
            digest=digest,
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


@strawberry.type
class ReleaseConnection:
    nodes: list[Release]


@strawberry.type(description="A version of an app; the newest comes with what its owner wrote.")
class ReleaseUnprocessed(Release):
    config_definition: JSON | None = None

    @property
    def processed(self) -> Release:
        """The same without what its owner wrote."""
        shown = {name: value for name, value in vars(self).items() if name != "config_definition"}
        return Release(**shown)


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


@dataclass(frozen=True, slots=True)
class Secrets:
    """The secrets of an app, and the version that they are."""

    version: int
    secrets: Sequence[Secret]


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
    record: strawberry.Private[Any]
    address: strawberry.Private[str]
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
        return await info.context.app_of(self)

    @field("Its addresses.")
    def ips(self) -> MachineIPConnection:
        found = [MachineIP(family="v6", kind="privatenet", ip=self.address, mask_size=112)] if self.address else []
        return MachineIPConnection(nodes=found)


@strawberry.type
class MachineConnection:
    nodes: list[Machine]


@strawberry.type(description="A volume, as its region last told.")
class Volume:
    record: strawberry.Private[Any]
    id: strawberry.ID
    name: str
    state: str
    region: str

    @field("The app that it belongs to.")
    async def app(self, info: Info) -> App:
        return await info.context.app_of(self)


@strawberry.type(description="An app.")
class App:
    record: strawberry.Private[Any]
    id: strawberry.ID
    internal_numeric_id: int
    name: str
    hostname: str
    cname_target: str
    app_url: str
    network: str
    home_cell: str
    created_at: str
    role: AppRole
    platform_version: str = PLATFORM_VERSION
    shared_ip_address: str | None = None

    @field("The organization that it belongs to.")
    async def organization(self, info: Info) -> Organization:
        return await info.context.organization_of(self)

    @field("pending before its first machine or release, deployed while it has machines, else suspended.")
    async def status(self, info: Info) -> str:
        return await info.context.status_of(self)

    @field("It has machines.")
    async def deployed(self, info: Info) -> bool:
        return await info.context.status_of(self) == "deployed"

    @field("Number of its newest release; 0 before the first.")
    async def version(self, info: Info) -> int:
        releases = await info.context.releases_of(self, 1)
        return releases[0].version if releases else 0

    @field("What its owner wrote, of its newest release.")
    async def config(self, info: Info) -> AppConfig:
        releases = await info.context.releases_of(self, 1)
        definition = releases[0].config_definition if releases else None
        return AppConfig(definition=JSON({} if definition is None else definition))

    @field("Services without machines: none.")
    def services(self) -> list[Service]:
        return []

    @field("Public addresses: none.")
    def ip_addresses(self) -> IPAddressConnection:
        return IPAddressConnection(nodes=[])

    @field("Public addresses that its machines are seen by: none.")
    def egress_ip_addresses(self) -> IPAddressConnection:
        return IPAddressConnection(nodes=[])

    @field("Regions that it has machines in; its home region before it has any.")
    async def regions(self, info: Info) -> list[Region]:
        return list(await info.context.regions_of(self))

    @field("Its machines in all regions, the oldest thousand.")
    async def machines(self, info: Info) -> MachineConnection:
        return MachineConnection(nodes=list(await info.context.machines_of(self))[:MOST_MACHINES])

    @field("The newest release; null before the first.")
    async def current_release(self, info: Info) -> Release | None:
        releases = await info.context.releases_of(self, 1)
        return releases[0].processed if releases else None

    @field("The newest release, with its definition; null before the first.")
    async def current_release_unprocessed(self, info: Info) -> ReleaseUnprocessed | None:
        releases = await info.context.releases_of(self, 1)
        return releases[0] if releases else None

    @field("Releases, newest first.")
    async def releases_unprocessed(self, info: Info, first: int = 25) -> ReleaseUnprocessedConnection:
        return ReleaseUnprocessedConnection(nodes=list(await _some_releases(self, info, first)))

    @field("Releases, newest first.")
    async def releases(self, info: Info, first: int = 25) -> ReleaseConnection:
        return ReleaseConnection(nodes=[release.processed for release in await _some_releases(self, info, first)])

    @field("The image of its newest release, if an alias stands for it.")
    async def image_details(self, info: Info) -> ImageVersion | None:
        releases = await info.context.releases_of(self, 1)
        reference = releases[0].image_ref if releases else None
        return await info.context.newest_image(reference) if reference else None

    @field("What an image reference stands for; null when it is unknown.")
    async def image(self, info: Info, ref: str) -> Image | None:
        return await info.context.image(ref)

    @field("The version of its secrets; 0 before the first.")
    async def secrets_version(self, info: Info) -> int:
        return (await info.context.secrets_of(self)).version

    @field("Its secrets, without their values.")
    async def secrets(self, info: Info) -> list[Secret]:
        return list((await info.context.secrets_of(self)).secrets)


@strawberry.type
class AppConnection:
    nodes: list[App]


Node = Annotated[Volume | App, strawberry.union("Node")]


async def _some_releases(app: App, info: Info, first: int) -> Sequence[ReleaseUnprocessed]:
    return await info.context.releases_of(app, min(first, MOST_RELEASES)) if first > 0 else ()


@strawberry.type
class ReadQuery:
    """What clients read, wherever they ask."""

    @field("All organizations that the token reaches.")
    async def organizations(self, info: Info, admin: bool | None = None) -> OrganizationConnection:
        return OrganizationConnection(nodes=list(await info.context.organizations()))

    @field("One organization, by its slug or id. NOT_FOUND.")
    async def organization(self, info: Info, slug: str | None = None, id: strawberry.ID | None = None) -> Organization:
        return await info.context.organization(slug or id or "")

    @field("One app, by its name or id. NOT_FOUND.")
    async def app(self, info: Info, name: str | None = None, id: strawberry.ID | None = None) -> App:
        return await info.context.app(name or id or "")

    @field("One machine. NOT_FOUND.")
    async def machine(self, info: Info, machine_id: str) -> Machine:
        return await info.context.machine(machine_id)

    @field("One volume. NOT_FOUND.")
    async def volume(self, info: Info, id: strawberry.ID) -> Node:
        return await info.context.volume(id)

    @field("The regions.")
    def platform(self, info: Info) -> Platform:
        regions = list(info.context.regions())
        return Platform(request_region=info.context.nearest_region().code, regions=regions)

    @field("The region to use when none is named.")
    def nearest_region(self, info: Info) -> Region:
        return info.context.nearest_region()

    @field("The holder of the token.")
    def viewer(self, info: Info) -> Viewer:
        return info.context.viewer()

    @field("The newest image that aliases know for a reference; null when they know none.")
    async def latest_image_details(self, info: Info, image: str, fly_version: str | None = None) -> ImageVersion | None:
        return await info.context.newest_image(image)


def repository_of(reference: str) -> str:
    """The repository, with its registry, of an image reference: without tag and digest."""
    name = reference.partition("@")[0]
    path, colon, tag = name.rpartition(":")
    return path if colon and "/" not in tag else name


def _long(value: object) -> Long:
    if isinstance(value, int) and not isinstance(value, bool) and -(1 << 63) <= value < 1 << 63:
        return Long(value)
    raise ValueError("a Long is an integer of 64 bits")


class Schema(strawberry.Schema):
    """Its errors are logged by whoever executes operations: that is who knows which of them are faults."""

    def process_errors(self, errors: list[GraphQLError], execution_context: ExecutionContext | None = None) -> None:
        """Nothing: see the class."""


@strawberry.input
class SecretInput:
    key: str
    value: str


@strawberry.input
class SetSecretsInput:
    app_id: strawberry.ID
    secrets: list[SecretInput]
    replace_all: bool | None = None


@strawberry.input
class UnsetSecretsInput:
    app_id: strawberry.ID
    keys: list[str]


@strawberry.type
class CreateAppPayload:
    app: App


@strawberry.type
class DeleteAppPayload:
    organization: Organization


@strawberry.type(description="`release` stands for the new version of the secrets, for clients that expect one.")
class SecretsPayload:
    app: App
    version: int
    release: Release | None


def is_ambiguous(query: str, operation: str | None) -> bool:
    """Whether `query` holds several operations, and none of them is named: the first would be executed."""
    if operation:
        return False
    try:
        document = parse(query, max_tokens=MOST_TOKENS)
    except GraphQLError:
        # Whoever executes it says what is wrong with it.
        return False
    return sum(isinstance(each, OperationDefinitionNode) for each in document.definitions) > 1


def limits_of_operations() -> list[Callable[[], SchemaExtension]]:
    """Extensions of a schema that keep operations of clients as small as those that clients need."""
    return [
        lambda: QueryDepthLimiter(max_depth=DEEPEST),
        lambda: MaxAliasesLimiter(max_alias_count=MOST_ALIASES),
        lambda: MaxTokensLimiter(max_token_count=MOST_TOKENS),
    ]


def schema_config() -> StrawberryConfig:
    """What a schema of these types needs."""
    return StrawberryConfig(
        scalar_map={
            AddOnType: strawberry.scalar(name="AddOnType", description="A kind of add-ons.", serialize=str),
            Long: strawberry.scalar(name="Long", description="A signed 64-bit integer.", parse_value=_long),
        }
    )
