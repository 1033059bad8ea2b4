"""The log of the cell as events for the centre: one for each revision, so that it can tell that none is missing.

Of a record that changes several times within one call only the last state is sent: the centre keeps the last anyway.
What the centre is the origin of (apps, organizations, image aliases) goes up as an event without content.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from datetime import UTC
from typing import Any

from google.protobuf import json_format
from google.protobuf.timestamp_pb2 import Timestamp
from skerry.handover.v1.plan_pb2 import Plan
from skerry.store.v1.catalog_pb2 import RevocationRecord
from skerry.store.v1.release_pb2 import (
    RELEASE_STATUS_COMPLETE,
    RELEASE_STATUS_PENDING,
    RELEASE_STATUS_RUNNING,
    ReleaseRecord,
    ReleaseStatus,
)
from skerry.store.v1.store_pb2 import Change, MachineRecord, WorkerRecord
from skerry.store.v1.volume_store_pb2 import VOLUME_STATE_DESTROYED, VolumeRecord, VolumeState
from skerry.types.v1.machine_pb2 import MACHINE_STATE_DESTROYED, HostStatus, MachineState

from services.central_sync.central_client import MirrorEvent
from services.central_sync.config_json import public_json

MACHINE = "machine"
WORKER = "worker"
PLAN = "plan"
RELEASE = "release"
VOLUME = "volume"
REVOCATION = "revocation"
NOTHING = "nothing"
"""Kind of a revision that the centre has no use for."""

Record = MachineRecord | WorkerRecord | Plan | ReleaseRecord | RevocationRecord | VolumeRecord
"""What the region is the origin of."""


def events_of(changes: Iterable[Change], after: int, up_to: int) -> Iterator[MirrorEvent]:
    """One event for each revision above `after`, `up_to` at most; what `changes` do not hold is of kind NOTHING.

    Each is made when it is asked for: many at once would keep everything else of the process waiting.
    """
    by_revision = {change.revision: _record_of(change) for change in changes}
    last = {(kind, key): revision for revision, (kind, key, _) in sorted(by_revision.items())}
    for revision in range(after + 1, up_to + 1):
        kind, key, record = by_revision.get(revision, (NOTHING, "", None))
        payload = payload_of(record) if last.get((kind, key)) == revision else None
        yield MirrorEvent(revision, kind, key, payload)


def state_of(changes: Iterable[Change]) -> list[MirrorEvent]:
    """The records of a state that the centre keeps."""
    events = []
    for change in changes:
        kind, key, record = _record_of(change)
        payload = payload_of(record)
        if payload is not None:
            events.append(MirrorEvent(change.revision, kind, key, payload))
    return events


def payload_of(record: Record | None) -> dict[str, Any] | None:
    """What the centre keeps of a record; None when it is gone, or nothing for the centre."""
    match record:
        case MachineRecord():
            return None if record.state == MACHINE_STATE_DESTROYED else _machine(record)
        case WorkerRecord():
            return {
                "id": record.id,
                "number": record.number,
                "zone": record.zone,
                "driver": record.driver,
                "cordoned": record.cordoned,
                "status": _name(HostStatus.Name(record.status), "HOST_STATUS_"),
            }
        case ReleaseRecord():
            return _release(record)
        case VolumeRecord():
            return None if record.state == VOLUME_STATE_DESTROYED else _volume(record)
        case RevocationRecord():
            # What the centre revoked it knows.
            return _revocation(record) if record.cell else None
        case Plan():
            return json_format.MessageToDict(record, preserving_proto_field_name=True)
        case _:
            return None


def _machine(record: MachineRecord) -> dict[str, Any]:
    payload: dict[str, Any] = {
        "id": record.id,
        "app_id": record.app_id,
        "app_name": record.app_name,
        "name": record.name,
        "region": record.region,
        "state": _name(MachineState.Name(record.state), "MACHINE_STATE_"),
        "instance_id": record.instance_id,
        "worker_id": record.worker_id,
        "worker_number": record.worker_number,
        "host_status": _name(HostStatus.Name(record.host_status), "HOST_STATUS_"),
        "cordoned": record.cordoned,
        "metadata": dict(record.metadata),
        "created_at": record.created_at.ToJsonString(),
        "updated_at": record.updated_at.ToJsonString(),
    }
    if record.HasField("config"):
        payload["config"] = public_json(record.config)
    if record.HasField("lease"):
        # Without its nonce, which is nobody's business but its holder's.
        payload["lease"] = {
            "owner": record.lease.owner,
            "description": record.lease.description,
            "expires_at": record.lease.expires_at.ToJsonString(),
        }
    return payload


def _volume(record: VolumeRecord) -> dict[str, Any]:
    return {
        "id": record.id,
        "app_id": record.app_id,
        "app_name": record.app_name,
        "name": record.name,
        "region": record.region,
        "zone": record.zone,
        "state": _name(VolumeState.Name(record.state), "VOLUME_STATE_"),
        "size_gb": record.size_bytes >> 30,
        "encrypted": record.encrypted,
        "worker_id": record.worker_id,
        "attached_machine_id": record.attached_machine_id,
        "created_at": _milliseconds(record.created_at),
    }


def _revocation(record: RevocationRecord) -> dict[str, Any]:
    return {"id": record.id, "cell": record.cell, "revoked_at": record.revoked_at.ToMicroseconds() / 1e6}


def _release(record: ReleaseRecord) -> dict[str, Any]:
    return {
        "id": record.id,
        "app_id": record.app_id,
        "version": record.version,
        "stable": record.status == RELEASE_STATUS_COMPLETE,
        "in_progress": record.status in (RELEASE_STATUS_PENDING, RELEASE_STATUS_RUNNING),
        "status": _name(ReleaseStatus.Name(record.status), "RELEASE_STATUS_"),
        "strategy": record.strategy,
        "user": record.user,
        "image_ref": record.image_ref,
        # To the millisecond, as the region shows it.
        "created_at": _milliseconds(record.created_at),
        "definition": json.loads(record.definition_json) if record.definition_json else None,
        "metadata": json.loads(record.metadata_json) if record.metadata_json else None,
    }


def _record_of(change: Change) -> tuple[str, str, Record | None]:
    match change.WhichOneof("record"):
        case "machine":
            return MACHINE, change.machine.id, change.machine
        case "worker":
            return WORKER, change.worker.id, change.worker
        case "plan":
            return PLAN, PLAN, change.plan
        case "release":
            return RELEASE, change.release.id, change.release
        case "volume":
            return VOLUME, change.volume.id, change.volume
        case "revocation":
            return REVOCATION, change.revocation.id, change.revocation
        case _:
            return NOTHING, "", None


def _milliseconds(at: Timestamp) -> str:
    shown = Timestamp(seconds=at.seconds, nanos=at.nanos // 1_000_000 * 1_000_000)
    return shown.ToDatetime(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _name(name: str, prefix: str) -> str:
    return name.removeprefix(prefix).lower()
