"""The schema of a region: the reads that the centre answers too, and the few changes that a gateway can pass on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import strawberry
from skerry.machines.v1 import machines_pb2 as api
from skerry.machines.v1 import secrets_pb2 as secrets_api

from gateway.auth import Right, insist_on
from gateway.graphql.reads import RegionReads
from services.runtime.graphql_types import (
    App,
    CreateAppPayload,
    DeleteAppPayload,
    ReadQuery,
    Release,
    Schema,
    SecretsPayload,
    SetSecretsInput,
    UnsetSecretsInput,
    User,
    limits_of_operations,
    mutation,
    schema_config,
)

Info = strawberry.Info[RegionReads, Any]


@strawberry.type
class Query(ReadQuery):
    """What a region answers from its own catalog and store."""


@strawberry.input
class CreateAppInput:
    organization_id: strawberry.ID
    name: str
    preferred_region: str | None = None
    network: str | None = None
    app_role_id: strawberry.ID | None = None
    machines: bool | None = None


@strawberry.type
class Mutation:
    """What only the centre can do; UNAVAILABLE while it is away."""

    @mutation("A new app, at home in its preferred region. NAME_TAKEN, INVALID, NOT_FOUND (the organization).")
    async def create_app(self, info: Info, input: CreateAppInput) -> CreateAppPayload:
        insist_on(Right.MANAGE_APPS)
        reads = info.context
        request = api.CreateAppRequest(
            name=input.name,
            org_slug=(await reads.organization(input.organization_id)).slug,
            network=input.network or "",
            app_role_id=input.app_role_id or "",
        )
        await reads.create_app(request, input.preferred_region or "")
        return CreateAppPayload(app=await reads.app(input.name))

    @mutation("Delete an app, by its name or id. NOT_FOUND.")
    async def delete_app(self, info: Info, app_id: strawberry.ID) -> DeleteAppPayload:
        reads = info.context
        app = await reads.app(app_id)
        insist_on(Right.MANAGE_APPS)
        organization = await reads.organization_of(app)
        await reads.sources.around.apps.delete(app.name)
        return DeleteAppPayload(organization=organization)

    @mutation("Set secrets of an app; replaceAll: remove those that are not named.")
    async def set_secrets(self, info: Info, input: SetSecretsInput) -> SecretsPayload:
        app = await info.context.app(input.app_id)
        insist_on(Right.SET_SECRETS)
        values: dict[str, str | None] = {}
        if input.replace_all:
            values.update((secret.name, None) for secret in (await info.context.secrets_of(app)).secrets)
        values.update((secret.key, secret.value) for secret in input.secrets)
        return await _change_secrets(info.context, app, values)

    @mutation("Remove secrets of an app.")
    async def unset_secrets(self, info: Info, input: UnsetSecretsInput) -> SecretsPayload:
        app = await info.context.app(input.app_id)
        insist_on(Right.SET_SECRETS)
        return await _change_secrets(info.context, app, dict.fromkeys(input.keys))


async def _change_secrets(reads: RegionReads, app: App, values: Mapping[str, str | None]) -> SecretsPayload:
    request = secrets_api.UpdateSecretsRequest(app_name=app.name)
    for name, value in values.items():
        # One without a value is removed.
        request.values[name].CopyFrom(secrets_api.SecretChange(value=value))
    version = (await reads.sources.secrets.update(request)).version
    user = reads.viewer()
    release = Release(
        id=strawberry.ID(f"{app.id}-secrets-{version}"),
        version=version,
        description="Secrets changed",
        reason="secrets",
        status="complete",
        image_ref=None,
        stable=True,
        in_progress=False,
        deployment_strategy="",
        user=User.of(user.email),
        created_at="",
    )
    return SecretsPayload(app=app, version=version, release=release)


schema = Schema(Query, Mutation, config=schema_config(), extensions=limits_of_operations())
