"""The catalog as a replica: what the centre is the origin of, and the cursors of pull and mirror."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from skerry.store.v1.catalog_pb2 import (
    ImageAliasRecord,
    OrganizationRecord,
    RevocationRecord,
    SecretsRecord,
    TokenKeyRecord,
)
from skerry.store.v1.catalog_store_pb2 import CatalogRecord, GetCatalogStateResponse
from skerry.store.v1.store_pb2 import (
    RECORD_KIND_APP,
    RECORD_KIND_IMAGE_ALIAS,
    RECORD_KIND_ORGANIZATION,
    RECORD_KIND_REVOCATION,
    RECORD_KIND_SECRETS,
    RECORD_KIND_TOKEN_KEY,
    AppRecord,
    DutyTerm,
)

from services.machine_store.database import Database, Row
from services.machine_store.events import Events
from services.machine_store.plan import from_json, to_json
from services.machine_store.queries import load
from services.machine_store.records import check_text, storable, timestamp
from services.runtime.errors import Conflict, InvalidConfig, Violation
from services.runtime.telemetry import log

_SQL = load("replica")
_KINDS = {
    "app": RECORD_KIND_APP,
    "organization": RECORD_KIND_ORGANIZATION,
    "image_alias": RECORD_KIND_IMAGE_ALIAS,
    "secrets": RECORD_KIND_SECRETS,
    "token_key": RECORD_KIND_TOKEN_KEY,
    "revocation": RECORD_KIND_REVOCATION,
}
_Record = AppRecord | OrganizationRecord | ImageAliasRecord | SecretsRecord | TokenKeyRecord | RevocationRecord
_KEYS = {"image_alias": "alias", "secrets": "app_id"}
"""The field that is a record's key, where that is not `id`."""
_MOST_TEXT = 4096
_REVOCATION_ID = re.compile(r"[0-9a-f]{32,144}").fullmatch
_TOLD = {
    "kept_local": "the region's app stays, because it has machines",
    "replaced_local": "the region's app, which has no machines, made place for the centre's",
}


class _Entry(NamedTuple):
    """A record as the database takes it; the prefix is of the events of machines that go with it."""

    kind: int
    id: str
    document: str
    prefix: str


class Replica:
    """The centre's data in the region's database."""

    def __init__(self, database: Database, *, events: Events) -> None:
        self._database = database
        self._events = events

    async def apply(
        self, term: DutyTerm, after_position: int, position: int, records: Sequence[CatalogRecord], *, whole: bool
    ) -> int:
        """Bring changes of the centre's feed into the catalog, in their order; how many records changed.

        With `whole` what is in the catalog and not among `records` is deleted, but for revocations; what comes into it
        meanwhile is not. A deleted app's machines are destroyed. An app that the centre never had stays while it has
        machines, also when the centre has another one of its name.
        Raises InvalidConfig, Conflict (the term is over, or the catalog is not at `after_position`), DependencyDown.
        """
        entries = self._entries(records)
        if whole:
            entries = [*await self._absent(entries), *entries]
        first, *outcomes = await self._database.fetch(
            _SQL["apply_catalog_changes"],
            storable(term.duty),
            term.term,
            after_position,
            position,
            *_columns(entries),
            self._events.now(),
        )
        if first["outcome"] == "other_position":
            raise Conflict(
                f"the catalog is at position {first['id']}, not {after_position}: go on from there",
                metadata={"position": first["id"]},
            )
        _tell(outcomes)
        return int(first["id"])

    async def put(self, records: Sequence[CatalogRecord]) -> int:
        """Bring what the centre answered into the catalog, before the feed does; the revision that has it.

        What the catalog has, or had, stays as the feed brought it: that is never older. Raises InvalidConfig,
        DependencyDown.
        """
        first, *outcomes = await self._database.fetch(
            _SQL["put_catalog_records"], *_columns(self._entries(records)), self._events.now()
        )
        _tell(outcomes)
        return int(first["id"])

    async def state(self) -> GetCatalogStateResponse:
        """How far the catalog is, and how much it holds. Raises DependencyDown."""
        (row,) = await self._database.fetch(_SQL["get_catalog_state"])
        return GetCatalogStateResponse(
            position=row["position"],
            changed_at=None if row["changed_at"] is None else timestamp(row["changed_at"]),
            apps=row["apps"],
            organizations=row["organizations"],
            image_aliases=row["image_aliases"],
        )

    async def secrets(self, app_id: str) -> SecretsRecord | None:
        """The secrets of an app, sealed; None when it never had any. Raises DependencyDown."""
        document: str | None = await self._database.fetchval(_SQL["get_secrets"], storable(app_id))
        return None if document is None else from_json(document, SecretsRecord())

    async def revoke(self, revocation_id: str, cell: str) -> int:
        """Revoke a token by the id of a block of it, in this `cell`; a revision of the log that has it.

        Raises InvalidConfig, DependencyDown.
        """
        if not _REVOCATION_ID(revocation_id):
            why = "must be that of a token: 32..144 lower-case hex digits"
            raise InvalidConfig(f"id {why}", violations=[Violation("id", why)])
        record = RevocationRecord(id=revocation_id, revoked_at=timestamp(self._events.now()), cell=cell)
        return await self.put([CatalogRecord(revocation=record)])

    async def cursor(self, duty: str) -> int:
        """The cursor of a duty; 0 when it was never set. Raises DependencyDown."""
        value: int | None = await self._database.fetchval(_SQL["get_cursor"], storable(duty))
        return value or 0

    async def set_cursor(self, term: DutyTerm, value: int) -> None:
        """Move the cursor of a duty under its lead. Raises Conflict (the term), DependencyDown."""
        await self._database.fetchval(_SQL["set_cursor"], storable(term.duty), term.term, value)

    async def _absent(self, entries: Sequence[_Entry]) -> list[_Entry]:
        """Deletions of what the catalog has and `entries` have not."""
        there = {(entry.kind, entry.id) for entry in entries}
        rows = await self._database.fetch(_SQL["list_catalog"])
        gone = [(row["kind"], row["id"]) for row in rows if (row["kind"], row["id"]) not in there]
        return [self._entry(kind, key, '{"deleted": true}', deleted=True) for kind, key in gone]

    def _entries(self, records: Sequence[CatalogRecord]) -> list[_Entry]:
        return [self._checked(number, record) for number, record in enumerate(records)]

    def _checked(self, number: int, record: CatalogRecord) -> _Entry:
        field = record.WhichOneof("record")
        if field is None:
            raise _missing(f"records[{number}]")
        inner: _Record = getattr(record, field)
        key_field = _KEYS.get(field, "id")
        key: str = getattr(inner, key_field)
        if not key:
            raise _missing(f"records[{number}].{field}.{key_field}")
        if isinstance(inner, AppRecord) and not inner.name and not inner.deleted:
            raise _missing(f"records[{number}].app.name")
        check_text(
            _MOST_TEXT,
            **{
                f"records[{number}].{field}.{descriptor.name}": value
                for descriptor, value in inner.ListFields()
                if isinstance(value, str)
            },
        )
        if isinstance(inner, SecretsRecord):
            for at, entry in enumerate(inner.secrets):
                texts = {"name": entry.name, "digest": entry.digest, "key_id": entry.key_id}
                place = f"records[{number}].secrets.secrets[{at}]"
                check_text(_MOST_TEXT, **{f"{place}.{name}": text for name, text in texts.items()})
        return self._entry(_KINDS[field], key, to_json(inner), deleted=inner.deleted)

    def _entry(self, kind: int, key: str, document: str, *, deleted: bool) -> _Entry:
        # An app that is not deleted may also take others' place, but only of those without machines.
        prefix = self._events.new_prefix() if kind == RECORD_KIND_APP and deleted else ""
        return _Entry(kind, key, document, prefix)


def _columns(entries: Sequence[_Entry]) -> tuple[list[int], list[str], list[str], list[str]]:
    return (
        [entry.kind for entry in entries],
        [entry.id for entry in entries],
        [entry.document for entry in entries],
        [entry.prefix for entry in entries],
    )


def _tell(outcomes: Sequence[Row]) -> None:
    for row in outcomes:
        log.warning("app_of_centre_in_conflict", app_id=row["id"], outcome=row["outcome"], why=_TOLD[row["outcome"]])


def _missing(field: str) -> InvalidConfig:
    return InvalidConfig(f"{field} is missing", violations=[Violation(field, "is missing")])
