"""What the log tells: its rows as changes, and which of them a watch wants."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from google.protobuf.json_format import ParseDict
from google.protobuf.message import Message
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
            kinds = [RECORD_KIND_MACHINE] if narrow else _KINDS
        self.kinds = frozenset(kinds)
        self.worker_id = wanted.worker_id
        self.app_id = wanted.app_id
        self.machine_id = wanted.machine_id
        self.whole = wanted.view == MACHINE_VIEW_FULL

    def passes(self, change: Change) -> bool:
        """Whether a change is let through."""
        kind = _NUMBERS.get(change.WhichOneof("record") or "")
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
        for number, kind in _KINDS.items():
            if number in self.kinds and kind.state:
                found.append((_SQL[kind.state], [], kind.change))
        if RECORD_KIND_MACHINE in self.kinds:
            change = _KINDS[RECORD_KIND_MACHINE].change
            for statement, argument in (
                ("state_of_machine", self.machine_id),
                ("state_of_worker_machines", self.worker_id),
                ("state_of_app_machines", self.app_id),
            ):
                if argument:
                    found.append((_SQL[statement], [storable(argument)], change))
                    return found
            found.append((_SQL["state_of_machines"], [], change))
        return found


def change_of(row: Row) -> Change:
    """The change of a row of `log`. One of a kind that only newer instances know passes no filter."""
    kind = _KINDS.get(row["kind"])
    change = kind.change(row) if kind is not None else Change(revision=row["revision"])
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


class _Kind(NamedTuple):
    """A kind of record: its field in a change, the statement that reads its state, and what makes it of a row."""

    field: str
    state: str
    record: Callable[[Row], Message]

    def change(self, row: Row) -> Change:
        """What a row of this kind tells."""
        return Change(revision=row["revision"], **{self.field: self.record(row)})  # type: ignore[arg-type]


def _columns(row: Row) -> dict[str, Any]:
    columns: dict[str, Any] = json.loads(row["record"])
    return columns


def _by_columns(make: Callable[[dict[str, Any]], Message]) -> Callable[[Row], Message]:
    return lambda row: make(_columns(row))


def _as_json(kind: type[Message]) -> Callable[[Row], Message]:
    return lambda row: ParseDict(_columns(row), kind(), ignore_unknown_fields=True)


# States are read in this order; that of machines by a statement for each way to choose them.
_KINDS: Mapping[int, _Kind] = {
    RECORD_KIND_PLAN: _Kind("plan", "state_of_plan", _as_json(Plan)),
    RECORD_KIND_ORGANIZATION: _Kind("organization", "state_of_organizations", _as_json(OrganizationRecord)),
    RECORD_KIND_IMAGE_ALIAS: _Kind("image_alias", "state_of_image_aliases", _as_json(ImageAliasRecord)),
    RECORD_KIND_SECRETS: _Kind("secrets", "state_of_secrets", _as_json(SecretsRecord)),
    RECORD_KIND_TOKEN_KEY: _Kind("token_key", "state_of_token_keys", _as_json(TokenKeyRecord)),
    RECORD_KIND_REVOCATION: _Kind("revocation", "state_of_revocations", _as_json(RevocationRecord)),
    RECORD_KIND_APP: _Kind("app", "state_of_apps", _by_columns(app_record)),
    RECORD_KIND_WORKER: _Kind("worker", "state_of_workers", _by_columns(worker_record)),
    RECORD_KIND_VOLUME: _Kind("volume", "state_of_volumes", _by_columns(volume_record)),
    RECORD_KIND_SNAPSHOT: _Kind("snapshot", "state_of_snapshots", _by_columns(snapshot_record)),
    RECORD_KIND_RELEASE: _Kind("release", "state_of_releases", _by_columns(release_record)),
    RECORD_KIND_MACHINE: _Kind("machine", "", machine_record),
}
_NUMBERS: Mapping[str, int] = {kind.field: number for number, kind in _KINDS.items()}
