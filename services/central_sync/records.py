"""What the centre says about its catalog, as records of the region's.

An organization's limits are records of their own at the centre, and part of the organization's record here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from google.protobuf.timestamp_pb2 import Timestamp
from skerry.store.v1.catalog_pb2 import (
    ImageAliasRecord,
    OrganizationLimits,
    OrganizationRecord,
    RevocationRecord,
    SecretEntry,
    SecretsRecord,
    TokenKeyRecord,
)
from skerry.store.v1.catalog_store_pb2 import CatalogRecord
from skerry.store.v1.store_pb2 import AppRecord

from services.central_sync.central_client import App, Change, Json
from services.runtime.sealing import CannotOpen, Keyring, Sealed
from services.runtime.telemetry import log

MB = 1024 * 1024

APP = "app"
ORGANIZATION = "organization"
LIMITS = "limits"
IMAGE_ALIAS = "image_alias"
SECRETS = "secrets"
TOKEN_KEY = "token_key"
REVOCATION = "revocation"

Record = AppRecord | OrganizationRecord | ImageAliasRecord | SecretsRecord | TokenKeyRecord | RevocationRecord
R = TypeVar("R", AppRecord, OrganizationRecord, ImageAliasRecord, SecretsRecord, TokenKeyRecord, RevocationRecord)

Seal = Callable[[str, str, str], Sealed]
"""Seals a secret: id of the app, name, value."""


@dataclass(slots=True)
class Catalog:
    """What a catalog holds that is not deleted: secrets by the id of their app, aliases by alias, all else by id."""

    apps: dict[str, AppRecord] = field(default_factory=dict)
    organizations: dict[str, OrganizationRecord] = field(default_factory=dict)
    image_aliases: dict[str, ImageAliasRecord] = field(default_factory=dict)
    secrets: dict[str, SecretsRecord] = field(default_factory=dict)
    token_keys: dict[str, TokenKeyRecord] = field(default_factory=dict)
    revocations: dict[str, RevocationRecord] = field(default_factory=dict)

    def take(self, record: Record) -> None:
        """Put a record in, or take it out when it is deleted."""
        match record:
            case AppRecord():
                _take(self.apps, record.id, record, record.deleted)
            case OrganizationRecord():
                if record.HasField("limits") and not record.limits.ByteSize():
                    # No limits are written in two ways.
                    record.ClearField("limits")
                _take(self.organizations, record.id, record, record.deleted)
            case ImageAliasRecord():
                _take(self.image_aliases, record.alias, record, record.deleted)
            case SecretsRecord():
                _take(self.secrets, record.app_id, record, record.deleted)
            case TokenKeyRecord():
                _take(self.token_keys, record.id, record, record.deleted)
            case RevocationRecord():
                _take(self.revocations, record.id, record, record.deleted)


def app_of(found: App) -> CatalogRecord:
    """The record of an app that the centre answered. Raises ValueError for a moment that is none."""
    created_at = Timestamp()
    created_at.FromJsonString(found.created_at)
    app = AppRecord(
        id=found.id,
        name=found.name,
        organization_slug=found.organization_slug,
        internal_numeric_id=found.internal_numeric_id,
        network=found.network,
        app_role=found.role,
        home_cell=found.home_cell,
        created_at=created_at,
    )
    return CatalogRecord(app=app)


def record_of(
    change: Change, organizations: Mapping[str, OrganizationRecord], seal: Seal | None = None
) -> CatalogRecord | None:
    """The record that a change of the feed makes; None for a kind that the region does not keep.

    `organizations` are those that the catalog has, by id: a change is about either the limits or the rest of one. For
    limits of an organization that is not there, there is nothing to record. Without `seal`, secrets are not kept.
    Raises ValueError for a payload that does not hold what its kind must.
    """
    try:
        if change.kind == APP:
            return CatalogRecord(app=_app(change.key, change.payload))
        if change.kind == ORGANIZATION:
            present = organizations.get(change.key)
            return CatalogRecord(organization=_organization(change.key, change.payload, present))
        if change.kind == LIMITS:
            return _limited(organizations.get(change.key), change.payload)
        if change.kind == IMAGE_ALIAS:
            return CatalogRecord(image_alias=_image_alias(change.key, change.payload))
        if change.kind == SECRETS and seal is not None:
            return CatalogRecord(secrets=secrets_of(change.key, change.payload, seal))
        if change.kind == TOKEN_KEY:
            return CatalogRecord(token_key=token_key_of(change.key, change.payload))
        if change.kind == REVOCATION and change.payload is not None:
            return CatalogRecord(revocation=_revocation(change.payload))
        return None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        what = f"the {change.kind} {change.key[:80]!r}"
        if change.kind == SECRETS:
            # What is wrong could be told with the value that it is about.
            raise ValueError(f"the centre's record of {what} is not what is known here") from None
        raise ValueError(f"the centre's record of {what} is not what is known here: {error!r}") from error


def records_of(
    changes: Iterable[Change], organizations: Mapping[str, OrganizationRecord], seal: Seal | None = None
) -> list[CatalogRecord | None]:
    """The record that each of `changes` makes, as `record_of`, each upon those before it."""
    catalog = Catalog(organizations=dict(organizations))
    made = []
    for change in changes:
        record = record_of(change, catalog.organizations, seal)
        made.append(record)
        if record is not None and record.HasField("organization"):
            catalog.take(record.organization)
    return made


def catalog_of(records: Iterable[Change], seal: Seal | None = None) -> Catalog:
    """The catalog that a snapshot of the centre makes. Raises ValueError as `record_of`."""
    catalog = Catalog()
    # Limits come after the organizations that they are of.
    for change in sorted(records, key=lambda record: record.kind == LIMITS):
        made = record_of(change, catalog.organizations, seal)
        if made is not None:
            catalog.take(plain(made))
    return catalog


def differences(present: Catalog, wanted: Catalog) -> list[CatalogRecord]:
    """What has to be recorded for the catalog `present` to become `wanted`: deletions first, since names may return.

    Revocations are never deleted: some are of the region, and the centre does not have them yet.
    """
    gone: list[CatalogRecord] = []
    gone += [CatalogRecord(app=AppRecord(id=i, deleted=True)) for i in present.apps.keys() - wanted.apps.keys()]
    gone += [
        CatalogRecord(organization=OrganizationRecord(id=i, deleted=True))
        for i in present.organizations.keys() - wanted.organizations.keys()
    ]
    gone += [
        CatalogRecord(image_alias=ImageAliasRecord(alias=alias, deleted=True))
        for alias in present.image_aliases.keys() - wanted.image_aliases.keys()
    ]
    gone += [
        CatalogRecord(secrets=SecretsRecord(app_id=app_id, deleted=True))
        for app_id in present.secrets.keys() - wanted.secrets.keys()
    ]
    gone += [
        CatalogRecord(token_key=TokenKeyRecord(id=i, deleted=True))
        for i in present.token_keys.keys() - wanted.token_keys.keys()
    ]
    new: list[CatalogRecord] = []
    new += [
        CatalogRecord(organization=record)
        for i, record in wanted.organizations.items()
        if present.organizations.get(i) != record
    ]
    new += [CatalogRecord(app=app) for i, app in wanted.apps.items() if present.apps.get(i) != app]
    new += [
        CatalogRecord(image_alias=record)
        for alias, record in wanted.image_aliases.items()
        if present.image_aliases.get(alias) != record
    ]
    new += [
        CatalogRecord(secrets=_replacing(present.secrets.get(app_id), record))
        for app_id, record in wanted.secrets.items()
        if not _are_same(present.secrets.get(app_id), record)
    ]
    new += [
        CatalogRecord(token_key=record)
        for i, record in wanted.token_keys.items()
        if present.token_keys.get(i) != record
    ]
    new += [
        CatalogRecord(revocation=record) for i, record in wanted.revocations.items() if i not in present.revocations
    ]
    return gone + new


def too_many_deletions(records: Iterable[CatalogRecord], present: Catalog, *, share: float, count: int) -> str:
    """Why `records` would delete too much of the catalog `present`, for people; empty when they do not.

    Too much is more than `share` (0..1) of the apps or of the organizations, if these are `count` at least. What a
    later record brings back is not deleted.
    """
    gone: dict[str, dict[str, bool]] = {APP: {}, ORGANIZATION: {}}
    for record in records:
        inner = plain(record)
        if isinstance(inner, AppRecord):
            gone[APP][inner.id] = inner.deleted
        elif isinstance(inner, OrganizationRecord):
            gone[ORGANIZATION][inner.id] = inner.deleted
    there: Mapping[str, Mapping[str, object]] = {APP: present.apps, ORGANIZATION: present.organizations}
    reasons = []
    for kind, touched in gone.items():
        deleted = sum(1 for key, is_gone in touched.items() if is_gone and key in there[kind])
        if deleted >= count and deleted > share * len(there[kind]):
            reasons.append(f"{deleted} of {len(there[kind])} {kind}s")
    return f"they delete {' and '.join(reasons)}" if reasons else ""


def deletions(records: Iterable[CatalogRecord]) -> int:
    """How many of `records` are deletions of apps or organizations."""
    return sum(
        1 for record in map(plain, records) if isinstance(record, AppRecord | OrganizationRecord) and record.deleted
    )


def secrets_of(app_id: str, payload: Json | None, seal: Seal) -> SecretsRecord:
    """The record of an app's secrets, sealed. Raises KeyError, TypeError, ValueError, AttributeError for none."""
    if payload is None:
        return SecretsRecord(app_id=app_id, deleted=True)
    record = SecretsRecord(app_id=payload["app_id"], version=payload["version"])
    for secret in payload["secrets"]:
        sealed = seal(record.app_id, secret["name"], secret["value"])
        entry = SecretEntry(
            name=secret["name"],
            digest=secret["digest"],
            version=secret["version"],
            key_id=sealed.key_id,
            sealed=sealed.content,
        )
        entry.created_at.FromMicroseconds(round(secret["created_at"] * 1e6))
        entry.updated_at.FromMicroseconds(round(secret["updated_at"] * 1e6))
        record.secrets.append(entry)
    return record


def resealed(present: Iterable[SecretsRecord], keyring: Keyring) -> list[CatalogRecord]:
    """Those of `present` that are not sealed under the present key, so sealed; what does not open stays as it is."""
    records = []
    for old in present:
        if all(entry.key_id == keyring.present for entry in old.secrets):
            continue
        record = SecretsRecord(
            app_id=old.app_id, version=old.version, secrets=old.secrets, replaces_version=old.version
        )
        for entry in record.secrets:
            try:
                value = keyring.open(old.app_id, entry.name, Sealed(entry.key_id, entry.sealed))
            except CannotOpen as error:
                log.error("secret_does_not_open", app_id=old.app_id, name=entry.name, why=str(error))
                continue
            sealed = keyring.seal(old.app_id, entry.name, value)
            entry.key_id, entry.sealed = sealed.key_id, sealed.content
        if record.secrets != old.secrets:
            records.append(CatalogRecord(secrets=record))
    return records


def plain(record: CatalogRecord) -> Record:
    """What a record is about. Raises ValueError for an empty one."""
    match record.WhichOneof("record"):
        case "app":
            return record.app
        case "organization":
            return record.organization
        case "image_alias":
            return record.image_alias
        case "secrets":
            return record.secrets
        case "token_key":
            return record.token_key
        case "revocation":
            return record.revocation
        case _:
            raise ValueError("the record is empty")


def token_key_of(key: str, payload: Json | None) -> TokenKeyRecord:
    """The record of a key of tokens. Raises KeyError, TypeError, ValueError, AttributeError for what is none."""
    if payload is None:
        return TokenKeyRecord(id=key, deleted=True)
    record = TokenKeyRecord(id=str(int(payload["id"])), public_key=bytes.fromhex(payload["public_key"]))
    record.created_at.FromMicroseconds(round(payload["created_at"] * 1e6))
    return record


def _revocation(payload: Json) -> RevocationRecord:
    record = RevocationRecord(id=payload["id"], cell=payload["cell"])
    record.revoked_at.FromMicroseconds(round(payload["revoked_at"] * 1e6))
    return record


def _take(records: dict[str, R], key: str, record: R, deleted: bool) -> None:
    if deleted:
        records.pop(key, None)
    else:
        records[key] = record


def _app(key: str, payload: Json | None) -> AppRecord:
    if payload is None:
        return AppRecord(id=key, deleted=True)
    created_at = Timestamp()
    created_at.FromMicroseconds(round(payload["created_at"] * 1e6))
    return AppRecord(
        id=payload["id"],
        name=payload["name"],
        organization_slug=payload["organization_slug"],
        internal_numeric_id=payload["internal_numeric_id"],
        network=payload["network"],
        app_role=payload["role"],
        home_cell=payload["home_cell"],
        created_at=created_at,
    )


def _organization(key: str, payload: Json | None, present: OrganizationRecord | None) -> OrganizationRecord:
    if payload is None:
        return OrganizationRecord(id=key, deleted=True)
    return OrganizationRecord(
        id=payload["id"],
        slug=payload["slug"],
        name=payload["name"],
        internal_numeric_id=payload["internal_numeric_id"],
        type=payload["type"],
        paid_plan=payload["paid_plan"],
        limits=present.limits if present is not None and present.HasField("limits") else None,
    )


def _limited(present: OrganizationRecord | None, payload: Json | None) -> CatalogRecord | None:
    if present is None:
        return None
    limited = OrganizationRecord()
    limited.CopyFrom(present)
    limited.ClearField("limits")
    if payload is not None:
        bounds = {
            "max_cpus": payload["cpus"],
            "max_memory_bytes": None if payload["memory_mb"] is None else payload["memory_mb"] * MB,
            "max_gpus": payload["gpus"],
            "max_machines": payload["machines"],
        }
        limited.limits.CopyFrom(OrganizationLimits(**bounds))
    return CatalogRecord(organization=limited)


def _image_alias(key: str, payload: Json | None) -> ImageAliasRecord:
    if payload is None:
        return ImageAliasRecord(alias=key, deleted=True)
    return ImageAliasRecord(alias=payload["name"], reference=payload["reference"], digest=payload["digest"])


def _replacing(present: SecretsRecord | None, wanted: SecretsRecord) -> SecretsRecord:
    if present is not None and present.version >= wanted.version:
        # The centre went back.
        wanted.replaces_version = present.version
    return wanted


def _are_same(present: SecretsRecord | None, wanted: SecretsRecord) -> bool:
    """Whether two records are of the same secrets; what is sealed differs each time that it is."""
    return present is not None and _seen(present) == _seen(wanted)


def _seen(record: SecretsRecord) -> tuple[int, list[tuple[str, str, int, str]]]:
    return record.version, [(entry.name, entry.digest, entry.version, entry.key_id) for entry in record.secrets]
