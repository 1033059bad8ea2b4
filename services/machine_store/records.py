"""Rows and messages: how a machine, a worker, an app and an event lie in the database."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp
from skerry.converter.v1.converter_pb2 import ConversionResult
from skerry.store.v1.store_pb2 import AppRecord, MachineRecord, WorkerRecord
from skerry.types.v1.machine_pb2 import MachineEvent, MachineRequest
from skerry.types.v1.resources_pb2 import Resources

from services.runtime.errors import InvalidConfig, Violation
from services.runtime.resources import RESOURCE_FIELDS, from_vector

Columns = Mapping[str, Any]
"""A row by the names of its columns: of the database, or of a row that the log keeps as JSON."""

MOST_AMOUNT = 2**60
"""No amount is larger, so that no sum of two leaves 64 bits."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def moment(seconds: float) -> datetime:
    """Unix seconds as the database takes them, to the microsecond."""
    return _EPOCH + timedelta(microseconds=round(seconds * 1e6))


def timestamp(at: datetime) -> Timestamp:
    """A moment of the database as a message."""
    seconds, microseconds = divmod((at - _EPOCH) // _MICROSECOND, 1_000_000)
    return Timestamp(seconds=seconds, nanos=microseconds * 1000)


def from_timestamp(at: Timestamp) -> datetime:
    """A moment of a message as the database takes it; what a datetime cannot hold becomes the epoch."""
    try:
        return _EPOCH + timedelta(seconds=at.seconds, microseconds=at.nanos // 1000)
    except OverflowError:
        return _EPOCH


def machine_record(row: Columns) -> MachineRecord:
    """The machine of a row of `machines` or `log`, without config, spec and parts."""
    record = MachineRecord(
        id=row["id"],
        app_id=row["app_id"],
        app_name=row["app_name"],
        name=row["name"],
        region=row["region"],
        state=row["state"],
        desired=row["desired"],
        generation=row["generation"],
        instance_id=row["instance_id"],
        worker_id=row["worker_id"],
        worker_number=row["worker_number"],
        leaving_worker_id=row["leaving_worker_id"],
        reserved=_amounts(row["reserved"]),
        leaving_reserved=_amounts(row["leaving_reserved"]),
        host_status=row["host_status"],
        created_at=timestamp(row["created_at"]),
        updated_at=timestamp(row["updated_at"]),
        revision=row["revision"],
        reason=row["reason"],
    )
    record.MergeFromString(row["details"])
    return record


def details(record: MachineRecord) -> bytes:
    """The fields of a machine that have no column."""
    return MachineRecord(
        cordoned=record.cordoned,
        generation_at=record.generation_at if record.HasField("generation_at") else None,
        checks=record.checks,
        restart_count=record.restart_count,
        stop=record.stop if record.HasField("stop") else None,
        metadata=record.metadata,
        schedule=record.schedule,
        standby_for=record.standby_for,
        lease=record.lease if record.HasField("lease") else None,
        metadata_changed=record.metadata_changed,
    ).SerializeToString()


def add_version(record: MachineRecord, config: bytes, spec: bytes, parts: bytes) -> None:
    """Complete a record with its version, as `versions` keeps it."""
    record.config.MergeFromString(config)
    record.spec.MergeFromString(spec)
    record.parts.extend(ConversionResult.FromString(parts).parts)
    if record.metadata_changed:
        for entries in (record.config.metadata, record.spec.metadata.entries):
            entries.clear()
            entries.update(record.metadata)


def whole_machine_record(row: Columns) -> MachineRecord:
    """The machine of a row of `machines` joined with `versions`."""
    record = machine_record(row)
    add_version(record, row["config"], row["spec"], row["parts"])
    return record


def event(
    event_id: str, kind: str, status: str, source: str, at: datetime, request: bytes | None = None
) -> MachineEvent:
    """An event of a row of `machine_events`."""
    return MachineEvent(
        id=event_id,
        type=kind,
        status=status,
        source=source,
        timestamp=timestamp(at),
        request=None if request is None else MachineRequest.FromString(request),
    )


def events(rows: Iterable[Sequence[Any]]) -> list[MachineEvent]:
    """Events of rows of `machine_events`, in their order."""
    return [event(*row) for row in rows]


def worker_record(row: Columns) -> WorkerRecord:
    """The worker of a row of `workers`; with its last sign of life if the row has one."""
    record = WorkerRecord(
        id=row["id"],
        number=row["number"],
        zone=row["zone"],
        address=row["address"],
        capacity=from_vector([row[f"capacity_{name}"] for name in RESOURCE_FIELDS]),
        reserved=from_vector([row[f"reserved_{name}"] for name in RESOURCE_FIELDS]),
        cordoned=row["cordoned"],
        status=row["status"],
        host_dedication_id=row["host_dedication_id"],
        driver=row["driver"],
    )
    if (heartbeat := row.get("heartbeat_at")) is not None:
        record.heartbeat_at.CopyFrom(timestamp(heartbeat))
    return record


def app_record(row: Columns) -> AppRecord:
    """The app of a row of `apps`."""
    created_at = row["created_at"]
    return AppRecord(
        id=row["id"],
        name=row["name"],
        organization_slug=row["organization_slug"],
        internal_numeric_id=row["internal_numeric_id"],
        network=row["network"],
        app_role=row["app_role"],
        home_cell=row["home_cell"],
        created_at=timestamp(datetime.fromisoformat(created_at) if isinstance(created_at, str) else created_at),
        deleted=row["deleted_at"] is not None,
    )


def checked_amounts(resources: Resources, field: str) -> list[int]:
    """The amounts of a message in their order. Raises InvalidConfig for one that is negative or beyond all measure."""
    amounts = [getattr(resources, name) for name in RESOURCE_FIELDS]
    wrong = [
        Violation(f"{field}.{name}", f"is {amount}: it must be from 0 to 2^60")
        for name, amount in zip(RESOURCE_FIELDS, amounts, strict=True)
        if not 0 <= amount <= MOST_AMOUNT
    ]
    if wrong:
        raise InvalidConfig(f"{wrong[0].field} {wrong[0].why}", violations=wrong)
    return amounts


def check_text(most_bytes: int = 1024, /, **fields: str) -> None:
    """Raise InvalidConfig, naming the field, for text that the database cannot keep or index."""
    for field, text in fields.items():
        if "\0" in text:
            why = "contains a NUL character: leave it out"
        elif len(text) > most_bytes // 4 and len(text.encode()) > most_bytes:
            why = f"is longer than {most_bytes} bytes: shorten it"
        else:
            continue
        raise InvalidConfig(f"{field} {why}", violations=[Violation(field, why)])


def _amounts(vector: Sequence[int]) -> Resources | None:
    return from_vector(vector) if vector else None


def storable(identifier: str) -> str:
    """An identifier to look for: one that the database could not take is one that nothing has."""
    return identifier.replace("\0", "\N{REPLACEMENT CHARACTER}") if "\0" in identifier else identifier
