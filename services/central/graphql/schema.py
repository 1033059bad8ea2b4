"""Queries, mutations, and the schema that they make."""

from __future__ import annotations

from typing import Any

import strawberry
from strawberry.scalars import JSON

from services.central import catalog, conversion, feed, mirror
from services.central.errors import Invalid, NotAllowed
from services.central.graphql import types
from services.central.graphql.context import Info
from services.central.graphql.tokens import TokenMutation, TokenQuery
from services.central.releases import Release as CentralRelease
from services.runtime.graphql_types import (
    AppConnection,
    CreateAppPayload,
    DeleteAppPayload,
    Long,
    Organization,
    ReadQuery,
    Release,
    Schema,
    SecretInput,
    SecretsPayload,
    SetSecretsInput,
    UnsetSecretsInput,
    User,
    field,
    limits_of_operations,
    mutation,
    schema_config,
)
from services.runtime.principals import Right, email_of

MOST_NODES = 1_000
LONGEST_PARTS = 100


@strawberry.type(description="A change of the catalog: the whole record as it is now, or null when it is gone.")
class Change:
    position: str
    kind: str
    key: str
    deleted: bool
    payload: JSON | None


@strawberry.type(description="Changes in order; the reader has seen everything up to `position`.")
class Changes:
    changes: list[Change]
    position: str
    oldest: str


@strawberry.type(description="A part of the catalog as of `position`; ask with `nextPage` until it is null.")
class CatalogSnapshot:
    records: list[Change]
    position: str
    next_page: str | None


@strawberry.type(description="A part, and the versions of it that can be asked for.")
class PartVersions:
    part: str
    versions: list[int]


@strawberry.type(description="What a release of the centre converts.")
class Converter:
    release: str
    parts: list[PartVersions]


@strawberry.type(description="A field of the configuration that is wrong: its path below the configuration, and why.")
class Violation:
    field: str
    why: str


@strawberry.type(description="What became of one part: `spec`, or violations, or why it is not served.")
class ConvertedPart:
    part: str
    version: int
    spec: JSON | None
    violations: list[Violation]
    not_served: str | None


@strawberry.type(description="Up to where the mirror has everything of a cell: go on after it.")
class MirrorPosition:
    revision: Long


@strawberry.type(description="`record` is what the feed has of the secrets, with their values; null without any ever.")
class SecretsRecordPayload:
    record: JSON | None


@strawberry.type
class ReleasePayload:
    release: Release


@strawberry.type(description="A name for an image.")
class ImageAlias:
    name: str
    repository: str
    digest: str


@strawberry.type
class ImageAliasPayload:
    image_alias: ImageAlias


@strawberry.type
class DeletedPayload:
    name: str


@strawberry.type
class OrganizationPayload:
    organization: Organization


def _change(record: feed.Change) -> Change:
    payload = None if record.payload is None else JSON(record.payload)
    return Change(position=record.position, kind=record.kind, key=record.key, deleted=record.deleted, payload=payload)


def _converter(release: CentralRelease) -> Converter:
    parts = [PartVersions(part=part, versions=list(versions)) for part, versions in release.parts.items()]
    return Converter(release=release.name, parts=parts)


def _object(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise Invalid(f"{name} must be an object")
    return value


@strawberry.type(name="Query")
class ClientQuery(ReadQuery):
    """What clients read."""


@strawberry.type
class Query(TokenQuery, ReadQuery):
    @field("Apps by name, after the name `after`.")
    async def apps(
        self, info: Info, organization_slug: str | None = None, after: str = "", first: int = 100
    ) -> AppConnection:
        if not 1 <= first <= MOST_NODES:
            raise Invalid(f"first must be 1..{MOST_NODES}, is {first}")
        found = await info.context.catalog.apps(organization_slug, after, first)
        return AppConnection(nodes=[types.app(record, info.context.apps_domain) for record in found])

    @field("Changes after a position, in order; waits for some, waitMs at most. TOO_OLD: take a snapshot.")
    async def changes(self, info: Info, after: str, limit: int, wait_ms: int | None = None) -> Changes:
        batch = await info.context.feed.changes(after, limit, max(wait_ms or 0, 0) / 1000)
        return Changes(
            changes=[_change(record) for record in batch.changes], position=batch.position, oldest=batch.oldest
        )

    @field("The whole catalog as of a position, page by page. TOO_OLD: begin again.")
    async def catalog_snapshot(
        self, info: Info, page: str | None = None, limit: int = feed.LARGEST_BATCH
    ) -> CatalogSnapshot:
        found = await info.context.feed.snapshot(page, limit)
        records = [_change(record) for record in found.records]
        return CatalogSnapshot(records=records, position=found.position, next_page=found.next_page)

    @field("For regions: the secrets of an app, by its id, with their values. NOT_FOUND.")
    async def secrets_record(self, info: Info, app_id: strawberry.ID) -> SecretsRecordPayload:
        return await _secrets_record(info.context.catalog, app_id)

    @field("What the instance that answers converts.")
    def converter(self, info: Info) -> Converter:
        return _converter(info.context.conversion.release)

    @field("What the releases that the instance knows of convert.")
    def releases(self, info: Info) -> list[Converter]:
        return [_converter(release) for release in info.context.converters.values()]

    @field(
        "Convert exactly these parts (NAME, or NAME@VERSION) of a configuration in its public JSON form. "
        "DEPENDENCY_CYCLE: the region refused the question of the mounts conversion."
    )
    async def convert_parts(
        self,
        info: Info,
        parts: list[str],
        config: JSON,
        facts: JSON,
        app_name: str = "",
        region: str = "",
    ) -> list[ConvertedPart]:
        if len(parts) > LONGEST_PARTS:
            raise Invalid(f"parts must name {LONGEST_PARTS} at most")
        answers = await info.context.conversion.convert(
            parts,
            _object(config, "config"),
            _object(facts if facts is not None else {}, "facts"),
            app_name=app_name,
            region=region,
        )
        return [_converted(answer) for answer in answers]


def _converted(answer: conversion.PartAnswer) -> ConvertedPart:
    return ConvertedPart(
        part=answer.part,
        version=answer.version,
        spec=None if answer.spec is None else JSON(answer.spec),
        violations=[Violation(field=field, why=why) for field, why in answer.violations],
        not_served=answer.not_served,
    )


@strawberry.input
class CreateAppInput:
    organization_id: strawberry.ID
    name: str
    preferred_region: str | None = None
    network: str | None = None
    app_role_id: strawberry.ID | None = None
    machines: bool | None = None
    id: strawberry.ID | None = strawberry.field(
        default=None, description="Chosen by callers that want to repeat the call safely."
    )


@strawberry.input
class UpdateSecretsInput:
    app_id: strawberry.ID
    secrets: list[SecretInput]
    unset: list[str]


@strawberry.input
class CreateReleaseInput:
    app_id: strawberry.ID
    image: str | None = None
    platform_version: str | None = None
    strategy: str | None = None
    definition: JSON | None = None


@strawberry.input
class UpdateReleaseInput:
    release_id: strawberry.ID
    status: str
    metadata: JSON | None = None


@strawberry.input
class SetImageAliasInput:
    name: str
    repository: str
    digest: str


@strawberry.input
class DeleteImageAliasInput:
    name: str


@strawberry.input
class CreateOrganizationInput:
    name: str
    slug: str | None = None


@strawberry.input
class SetOrganizationLimitsInput:
    organization_id: strawberry.ID
    cpus: int | None = None
    memory_mb: int | None = None
    gpus: int | None = None
    machines: int | None = None


@strawberry.input
class MirrorEventInput:
    revision: Long
    kind: str
    key: str
    payload: JSON | None = None


@strawberry.input
class MirrorEventsInput:
    cell: str
    events: list[MirrorEventInput]


@strawberry.input
class MirrorRecordInput:
    kind: str
    key: str
    payload: JSON


@strawberry.input
class MirrorSnapshotInput:
    cell: str
    revision: Long
    records: list[MirrorRecordInput]
    first: bool = True
    last: bool = True


@strawberry.type(name="Mutation")
class ClientMutation:
    """What clients change, each where its token reaches and may."""

    @mutation("A new app. NAME_TAKEN, INVALID, NOT_FOUND (the organization).")
    async def create_app(self, info: Info, input: CreateAppInput) -> CreateAppPayload:
        owner = await info.context.organization_record(input.organization_id)
        info.context.insist_on(Right.MANAGE_APPS)
        if info.context.principal.apps is not None:
            raise NotAllowed("this token is for single apps: creating one needs a token of the organization")
        record = await info.context.catalog.create_app(
            organization=owner.id,
            name=input.name,
            preferred_region=input.preferred_region,
            network=input.network,
            role=input.app_role_id,
            app_id=input.id,
        )
        return CreateAppPayload(app=types.app(record, info.context.apps_domain))

    @mutation("Delete an app, by its name or id. NOT_FOUND.")
    async def delete_app(self, info: Info, app_id: strawberry.ID) -> DeleteAppPayload:
        app = await _app_to_change(info, app_id, Right.MANAGE_APPS)
        return DeleteAppPayload(organization=types.organization(await info.context.catalog.delete_app(app.id)))

    @mutation("Set secrets of an app; replaceAll: remove those that are not named.")
    async def set_secrets(self, info: Info, input: SetSecretsInput) -> SecretsPayload:
        app = await _app_to_change(info, input.app_id, Right.SET_SECRETS)
        values = {secret.key: secret.value for secret in input.secrets}
        record = await info.context.catalog.set_secrets(app.id, values, only=bool(input.replace_all))
        return _secrets_changed(record, info)

    @mutation("Remove secrets of an app.")
    async def unset_secrets(self, info: Info, input: UnsetSecretsInput) -> SecretsPayload:
        app = await _app_to_change(info, input.app_id, Right.SET_SECRETS)
        return _secrets_changed(await info.context.catalog.unset_secrets(app.id, input.keys), info)

    @mutation("Always TAKEN_BY_REGIONS: the app's home region takes releases.")
    async def create_release(self, info: Info, input: CreateReleaseInput) -> ReleasePayload:
        raise await info.context.taker_of_releases(input.app_id)

    @mutation("Always TAKEN_BY_REGIONS: the app's home region takes releases.")
    async def update_release(self, info: Info, input: UpdateReleaseInput) -> ReleasePayload:
        raise await info.context.taker_of_progress(input.release_id)


@strawberry.type
class Mutation(ClientMutation, TokenMutation):
    """What the regions and operators change, too."""

    @mutation("For regions: set secrets of an app and remove others, as one new version. NOT_FOUND, INVALID.")
    async def update_secrets(self, info: Info, input: UpdateSecretsInput) -> SecretsRecordPayload:
        values, records = {secret.key: secret.value for secret in input.secrets}, info.context.catalog
        if values or not input.unset:
            await records.set_secrets(input.app_id, values, removed=input.unset)
        else:
            await records.unset_secrets(input.app_id, input.unset)
        return await _secrets_record(records, input.app_id)

    @mutation("For operators: let a name stand for an image.")
    async def set_image_alias(self, info: Info, input: SetImageAliasInput) -> ImageAliasPayload:
        alias = await info.context.catalog.set_image_alias(input.name, input.repository, input.digest)
        shown = ImageAlias(name=alias.name, repository=alias.repository, digest=alias.digest)
        return ImageAliasPayload(image_alias=shown)

    @mutation("For operators: forget an image alias. NOT_FOUND.")
    async def delete_image_alias(self, info: Info, input: DeleteImageAliasInput) -> DeletedPayload:
        await info.context.catalog.delete_image_alias(input.name)
        return DeletedPayload(name=input.name)

    @mutation("For operators: a new organization. NAME_TAKEN.")
    async def create_organization(self, info: Info, input: CreateOrganizationInput) -> OrganizationPayload:
        record = await info.context.catalog.create_organization(input.slug or input.name, input.name)
        return OrganizationPayload(organization=types.organization(record))

    @mutation("For operators: set all limits of an organization; null is no bound.")
    async def set_organization_limits(self, info: Info, input: SetOrganizationLimitsInput) -> OrganizationPayload:
        limits = catalog.Limits(input.cpus, input.memory_mb, input.gpus, input.machines)
        record = await info.context.catalog.set_limits(input.organization_id, limits)
        return OrganizationPayload(organization=types.organization(record))

    @mutation("Events of a cell's log, in order. What the mirror has already is passed over.")
    async def mirror_events(self, info: Info, input: MirrorEventsInput) -> MirrorPosition:
        events = [
            mirror.Event(event.revision, event.kind, event.key, _payload(event.payload, f"events[{i}].payload"))
            for i, event in enumerate(input.events)
        ]
        return MirrorPosition(revision=Long(await info.context.mirror.take(input.cell, events)))

    @mutation("The whole state of a cell as of a revision, page by page: first … last.")
    async def mirror_snapshot(self, info: Info, input: MirrorSnapshotInput) -> MirrorPosition:
        records = [
            mirror.Event(input.revision, record.kind, record.key, _object(record.payload, f"records[{i}].payload"))
            for i, record in enumerate(input.records)
        ]
        revision = await info.context.mirror.take_snapshot(
            input.cell, input.revision, records, first=input.first, last=input.last
        )
        return MirrorPosition(revision=Long(revision))


def _payload(value: JSON | None, name: str) -> dict[str, Any] | None:
    return None if value is None else _object(value, name)


async def _app_to_change(info: Info, name_or_id: str, right: Right) -> catalog.App:
    app = await info.context.app_record(name_or_id)
    info.context.insist_on(right)
    return app


async def _secrets_record(records: catalog.Catalog, app_id: str) -> SecretsRecordPayload:
    record = await records.secrets_record(app_id)
    return SecretsRecordPayload(record=None if record is None else JSON(record))


def _secrets_changed(record: catalog.App, info: Info) -> SecretsPayload:
    version = record.secrets_version
    email = email_of(info.context.principal)
    release = Release(
        id=strawberry.ID(f"{record.id}-secrets-{version}"),
        version=version,
        description="Secrets changed",
        reason="secrets",
        status="complete",
        image_ref=None,
        stable=True,
        in_progress=False,
        deployment_strategy="",
        user=User.of(email),
        created_at="",
    )
    return SecretsPayload(app=types.app(record, info.context.apps_domain), version=version, release=release)


schema = Schema(
    Query,
    Mutation,
    config=schema_config(),
)
"""What tokens that may do everything can ask for."""

client_schema = Schema(ClientQuery, ClientMutation, config=schema_config(), extensions=limits_of_operations())
"""What all other tokens can ask for, on what they reach."""
