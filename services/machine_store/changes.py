"""What the log tells: its rows as changes, and which of them a watch wants."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from google.protobuf.json_format import ParseDict
from skerry.handover.v1.plan_pb2 import Plan
from skerry.store.v1.catalog_pb2 import (
    ImageAliasRecord,
    OrganizationRecord,
    RevocationRecord,
    SecretsRecord,
    TokenKeyRecord,
)
from skerry.store.v1.store_pb2 import (
    MACHINE_VIEW_FULL,
    RECORD_KIND_APP,
    RECORD_KIND_IMAGE_ALIAS,
    RECORD_KIND_MACHINE,
    RECORD_KIND_ORGANIZATION,
    RECORD_KIND_PLAN,
    RECORD_KIND_RELEASE,
    RECORD_KIND_REVOCATION,
    RECORD_KIND_SECRETS,
    RECORD_KIND_SNAPSHOT,
    RECORD_KIND_TOKEN_KEY,
    RECORD_KIND_VOLUME,
    RECORD_KIND_WORKER,
    Change,
    WatchFilter,
)

from services.machine_store.database import Row
from services.machine_store.queries import load
from services.machine_store.records import app_record, event, machine_record, storable, worker_record
from services.machine_store.releases import release_record
from services.machine_store.volumes import snapshot_record, volume_record

_SQL = load("log")


class Selection:
    """What a filter lets through. Without kinds, one that names a worker, an app or a machine is about machines."""

    def __init__(self, wanted: WatchFilter) -> None:
        kinds: Iterable[int] = wanted.kinds
        if not kinds:
            narrow = wanted.worker_id or wanted.app_id or wanted.machine_id
            kinds = [RECORD_KIND_MACHINE] if narrow else _CHANGES
        self.kinds = frozenset(kinds)
        self.worker_id = wanted.worker_id
        self.app_id = wanted.app_id
        self.machine_id = wanted.machine_id
        self.whole = wanted.view == MACHINE_VIEW_FULL

    def passes(self, change: Change) -> bool:
        """Whether a change is let through."""
        kind = _KINDS.get(change.WhichOneof("record") or "")
        if kind not in self.kinds:
            return False
        if kind == RECORD_KIND_MACHINE:
            machine = change.machine
            return (
                (not self.machine_id or machine.id == self.machine_id)
                and (not self.app_id or machine.app_id == self.app_id)
                and (not self.worker_id or self.worker_id in (machine.worker_id, machine.leaving_worker_id))
            )
        if kind == RECORD_KIND_WORKER:
            return not self.worker_id or change.worker.id == self.worker_id
        if kind == RECORD_KIND_VOLUME:
            return (not self.worker_id or change.volume.worker_id == self.worker_id) and (
                not self.app_id or change.volume.app_id == self.app_id
            )
        if kind == RECORD_KIND_SNAPSHOT:
            return (not self.worker_id or change.snapshot.worker_id == self.worker_id) and (
                not self.app_id or change.snapshot.app_id == self.app_id
            )
        if kind == RECORD_KIND_RELEASE:
            return not self.app_id or change.release.app_id == self.app_id
        if kind == RECORD_KIND_SECRETS:
            return not self.app_id or change.secrets.app_id == self.app_id
        return kind != RECORD_KIND_APP or not self.app_id or change.app.id == self.app_id

    def statements(self) -> list[tuple[str, list[str], Callable[[Row], Change]]]:
        """The statements that read the state of what can be let through, with their arguments and what a row tells."""
        found: list[tuple[str, list[str], Callable[[Row], Change]]] = []
        for kind, statement in _STATES.items():
            if kind in self.kinds:
                found.append((_SQL[statement], [], _CHANGES[kind]))
        if RECORD_KIND_MACHINE in self.kinds:
            for statement, argument in (
                ("state_of_machine", self.machine_id),
                ("state_of_worker_machines", self.worker_id),
                ("state_of_app_machines", self.app_id),
            ):
                if argument:
                    found.append((_SQL[statement], [storable(argument)], _machine_change))
                    return found
            found.append((_SQL["state_of_machines"], [], _machine_change))
        return found


def change_of(row: Row) -> Change:
    """The change of a row of `log`."""
    change = _CHANGES.get(row["kind"], _unknown_change)(row)
    if row["event_id"] is not None:
        change.events.append(
            event(
                row["event_id"],
                row["event_type"],
                row["event_status"],
                row["event_source"],
                row["event_at"],
                row["event_request"],
            )
        )
    return change


def _machine_change(row: Row) -> Change:
    return Change(revision=row["revision"], machine=machine_record(row))


def _worker_change(row: Row) -> Change:
    return Change(revision=row["revision"], worker=worker_record(_columns(row)))


def _app_change(row: Row) -> Change:
    return Change(revision=row["revision"], app=app_record(_columns(row)))


def _plan_change(row: Row) -> Change:
    return Change(revision=row["revision"], plan=ParseDict(_columns(row), Plan(), ignore_unknown_fields=True))


def _organization_change(row: Row) -> Change:
    record = ParseDict(_columns(row), OrganizationRecord(), ignore_unknown_fields=True)
    return Change(revision=row["revision"], organization=record)


def _image_alias_change(row: Row) -> Change:
    record = ParseDict(_columns(row), ImageAliasRecord(), ignore_unknown_fields=True)
    return Change(revision=row["revision"], image_alias=record)


def _release_change(row: Row) -> Change:
    return Change(revision=row["revision"], release=release_record(_columns(row)))


def _secrets_change(row: Row) -> Change:
    return Change(
        revision=row["revision"], secrets=ParseDict(_columns(row), SecretsRecord(), ignore_unknown_fields=True)
    )


def _token_key_change(row: Row) -> Change:
    record = ParseDict(_columns(row), TokenKeyRecord(), ignore_unknown_fields=True)
    return Change(revision=row["revision"], token_key=record)


def _revocation_change(row: Row) -> Change:
    record = ParseDict(_columns(row), RevocationRecord(), ignore_unknown_fields=True)
    return Change(revision=row["revision"], revocation=record)


def _volume_change(row: Row) -> Change:
    return Change(revision=row["revision"], volume=volume_record(_columns(row)))


def _snapshot_change(row: Row) -> Change:
    return Change(revision=row["revision"], snapshot=snapshot_record(_columns(row)))


def _unknown_change(row: Row) -> Change:
    """A change of a kind that only newer instances know: it passes no filter, but has its revision."""
    return Change(revision=row["revision"])


def _columns(row: Row) -> dict[str, Any]:
    columns: dict[str, Any] = json.loads(row["record"])
    return columns


_CHANGES: Mapping[int, Callable[[Row], Change]] = {
    RECORD_KIND_MACHINE: _machine_change,
    RECORD_KIND_WORKER: _worker_change,
    RECORD_KIND_APP: _app_change,
    RECORD_KIND_PLAN: _plan_change,
    RECORD_KIND_ORGANIZATION: _organization_change,
    RECORD_KIND_IMAGE_ALIAS: _image_alias_change,
    RECORD_KIND_SECRETS: _secrets_change,
    RECORD_KIND_TOKEN_KEY: _token_key_change,
    RECORD_KIND_REVOCATION: _revocation_change,
    RECORD_KIND_VOLUME: _volume_change,
    RECORD_KIND_SNAPSHOT: _snapshot_change,
    RECORD_KIND_RELEASE: _release_change,
}
_KINDS: Mapping[str, int] = {
    "machine": RECORD_KIND_MACHINE,
    "worker": RECORD_KIND_WORKER,
    "app": RECORD_KIND_APP,
    "plan": RECORD_KIND_PLAN,
    "organization": RECORD_KIND_ORGANIZATION,
    "image_alias": RECORD_KIND_IMAGE_ALIAS,
    "secrets": RECORD_KIND_SECRETS,
    "token_key": RECORD_KIND_TOKEN_KEY,
    "revocation": RECORD_KIND_REVOCATION,
    "volume": RECORD_KIND_VOLUME,
    "snapshot": RECORD_KIND_SNAPSHOT,
    "release": RECORD_KIND_RELEASE,
}
"""The kind of a change by the name of its record's field."""
_STATES: Mapping[int, str] = {
    RECORD_KIND_PLAN: "state_of_plan",
    RECORD_KIND_ORGANIZATION: "state_of_organizations",
    RECORD_KIND_IMAGE_ALIAS: "state_of_image_aliases",
    RECORD_KIND_SECRETS: "state_of_secrets",
    RECORD_KIND_TOKEN_KEY: "state_of_token_keys",
    RECORD_KIND_REVOCATION: "state_of_revocations",
    RECORD_KIND_APP: "state_of_apps",
    RECORD_KIND_WORKER: "state_of_workers",
    RECORD_KIND_VOLUME: "state_of_volumes",
    RECORD_KIND_SNAPSHOT: "state_of_snapshots",
    RECORD_KIND_RELEASE: "state_of_releases",
}
"""The statement that reads the state of a kind; machines have several."""
