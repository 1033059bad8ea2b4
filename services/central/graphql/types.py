"""What the centre knows, as the types that clients read."""

from __future__ import annotations

import strawberry
from skerry.store.v1 import store_pb2
from strawberry.scalars import JSON

from services.central.catalog import App as AppRecord
from services.central.catalog import ImageAlias
from services.central.catalog import Organization as OrganizationRecord
from services.central.catalog import Secret as SecretRecord
from services.central.mirror import Record
from services.runtime import graphql_types as shared
from services.runtime.addresses import network_of, private_ip


def organization(record: OrganizationRecord) -> shared.Organization:
    """An organization of the catalog."""
    return shared.Organization(
        id=strawberry.ID(record.id),
        slug=record.slug,
        raw_slug=record.slug,
        name=record.name,
        type=record.type,
        paid_plan=record.paid_plan,
        billable=record.billable,
        internal_numeric_id=str(record.internal_numeric_id),
    )


def app(record: AppRecord, domain: str) -> shared.App:
    """An app of the catalog; its host name is below `domain`."""
    hostname = f"{record.name}.{domain}"
    return shared.App(
        record=record,
        id=strawberry.ID(record.id),
        internal_numeric_id=record.internal_numeric_id,
        name=record.name,
        hostname=hostname,
        cname_target=hostname,
        app_url=f"https://{hostname}",
        network=record.network,
        home_cell=record.home_cell,
        created_at=shared.moment(record.created_at),
        role=shared.AppRole(name=record.role, id=strawberry.ID(record.role)),
    )


def machine(record: Record, app: AppRecord) -> shared.Machine:
    """A machine of the mirror, which belongs to `app`."""
    payload = record.payload
    return shared.Machine(
        record=record,
        address=_address(record, app),
        id=strawberry.ID(record.key),
        name=str(payload.get("name") or ""),
        state=record.state,
        region=str(payload.get("region") or ""),
        instance_id=str(payload.get("instance_id") or ""),
        config=JSON(payload.get("config") or {}),
        created_at=str(payload.get("created_at") or ""),
        updated_at=str(payload.get("updated_at") or ""),
        host=shared.Host(id=strawberry.ID(str(payload.get("worker_id") or ""))),
    )


def volume(record: Record) -> shared.Volume:
    """A volume of the mirror."""
    return shared.Volume(
        record=record,
        id=strawberry.ID(record.key),
        name=str(record.payload.get("name") or ""),
        state=record.state,
        region=str(record.payload.get("region") or ""),
    )


def release(record: Record) -> shared.ReleaseUnprocessed:
    """A release of the mirror."""
    payload = record.payload
    email = str(payload.get("user") or "")
    return shared.ReleaseUnprocessed(
        id=strawberry.ID(record.key),
        version=int(payload.get("version") or 0),
        description=str(payload.get("description") or ""),
        reason=str(payload.get("reason") or ""),
        status=str(payload.get("status") or ""),
        image_ref=payload.get("image_ref"),
        stable=bool(payload.get("stable")),
        in_progress=bool(payload.get("in_progress")),
        deployment_strategy=str(payload.get("strategy") or ""),
        user=shared.User.of(email) if email else None,
        created_at=str(payload.get("created_at") or ""),
        config_definition=JSON(payload.get("definition")),
    )


def secret(record: SecretRecord) -> shared.Secret:
    """A secret, without its value."""
    return shared.Secret(
        id=strawberry.ID(record.name),
        name=record.name,
        digest=record.digest,
        version=record.version,
        created_at=shared.moment(record.created_at),
        updated_at=shared.moment(record.updated_at),
    )


def image(alias: ImageAlias) -> shared.Image:
    """What an alias stands for."""
    return shared.Image(id=strawberry.ID(alias.name), digest=alias.digest, ref=alias.reference)


def _address(record: Record, app: AppRecord) -> str:
    number = record.payload.get("worker_number")
    if not number:
        return str(record.payload.get("private_ip") or "")
    network = network_of(store_pb2.AppRecord(organization_slug=app.organization_slug, network=app.network))
    return private_ip(network, record.cell, int(number), record.key)
