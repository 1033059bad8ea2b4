"""What a group commit is given and answers: new machines, steps of machines, and outcomes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple

from skerry.store.v1.store_pb2 import MachineRecord
from skerry.types.v1.machine_pb2 import HostStatus, MachineEvent

from services.machine_store.records import details, from_timestamp
from services.runtime.resources import from_vector


class NewMachine(NamedTuple):
    """A value of the type `new_machine` (sql/functions.sql), field by field."""

    id: str
    instance_id: str
    app_id: str
    name: str
    region: str
    state: int
    desired: int
    generation: int
    need: Sequence[int]
    candidates: Sequence[str]
    idempotency_key: str
    fingerprint: bytes
    at: datetime
    details: bytes
    config: bytes
    spec: bytes
    parts: bytes
    event_id: str
    event_status: str
    event_source: str


class Step(NamedTuple):
    """A value of the type `machine_step` (sql/functions.sql), field by field."""

    unit: int = 0
    observer: str | None = None
    journal_id: str | None = None
    previous_sequence: int | None = None
    sequence: int | None = None
    machine_id: str | None = None
    expected_revision: int | None = None
    name: str | None = None
    state: int | None = None
    desired: int | None = None
    generation: int | None = None
    instance_id: str | None = None
    reason: str | None = None
    at: datetime | None = None
    details: bytes | None = None
    need: Sequence[int] | None = None
    candidates: Sequence[str] = ()
    leaves: bool = False
    let_go: bool = False
    config: bytes | None = None
    spec: bytes | None = None
    parts: bytes | None = None
    event_id: str | None = None
    event_type: str | None = None
    event_status: str | None = None
    event_source: str | None = None
    event_at: datetime | None = None
    event_request: bytes | None = None


class Outcome(NamedTuple):
    """A value of the type `batch_outcome` (sql/functions.sql), field by field; the rest is set when it is "done".

    "plan_moved" (sql/plan_functions.sql) has the present epoch as its revision, "over_quota" the bound and the number
    of machines as what is reserved.
    """

    outcome: str
    machine_id: str | None
    revision: int | None
    app_name: str | None
    worker_id: str | None
    worker_number: int | None
    leaving_worker_id: str | None
    reserved: Sequence[int] | None
    leaving_reserved: Sequence[int] | None
    host_status: HostStatus.ValueType | None


class Version(NamedTuple):
    """A version of a machine, as `versions` keeps it: config, spec and parts are serialized messages."""

    instance_id: str
    config: bytes
    spec: bytes
    parts: bytes


@dataclass(slots=True)
class Create:
    """A new machine, with the record that its commit completes and its event.

    It is refused when the plan's epoch is another one than `plan_epoch`; 0 is not checked.
    """

    row: NewMachine
    record: MachineRecord
    event: MachineEvent
    plan_epoch: int = 0


@dataclass(slots=True)
class Unit:
    """Steps that take effect in order until one does not, each with the record that its commit completes and its event.

    A step that only lets a journal advance has neither. They are refused when the plan's epoch is another one than
    `plan_epoch`; 0 is not checked.
    """

    steps: list[Step] = field(default_factory=list)
    records: list[MachineRecord | None] = field(default_factory=list)
    events: list[MachineEvent | None] = field(default_factory=list)
    plan_epoch: int = 0

    def add(self, step: Step, record: MachineRecord | None = None, event: MachineEvent | None = None) -> None:
        """Append a step."""
        self.steps.append(step)
        self.records.append(record)
        self.events.append(event)


def step_to(record: MachineRecord, event: MachineEvent | None) -> Step:
    """The step to what `record` now is, from the revision that it was read at."""
    step = Step(
        machine_id=record.id,
        expected_revision=record.revision,
        name=record.name,
        state=record.state,
        desired=record.desired,
        generation=record.generation,
        instance_id=record.instance_id,
        reason=record.reason,
        at=from_timestamp(record.updated_at),
        details=details(record),
    )
    if event is None:
        return step
    return step._replace(
        event_id=event.id,
        event_type=event.type,
        event_status=event.status,
        event_source=event.source,
        event_at=from_timestamp(event.timestamp),
        event_request=event.request.SerializeToString() if event.HasField("request") else None,
    )


def complete(record: MachineRecord, outcome: Outcome) -> None:
    """Put what the commit decided into the record of a write that is done."""
    record.revision = outcome.revision or 0
    record.app_name = outcome.app_name or ""
    record.worker_id = outcome.worker_id or ""
    record.worker_number = outcome.worker_number or 0
    record.leaving_worker_id = outcome.leaving_worker_id or ""
    record.host_status = outcome.host_status or HostStatus.HOST_STATUS_UNSPECIFIED
    record.ClearField("reserved")
    if outcome.reserved:
        record.reserved.CopyFrom(from_vector(outcome.reserved))
    record.ClearField("leaving_reserved")
    if outcome.leaving_reserved:
        record.leaving_reserved.CopyFrom(from_vector(outcome.leaving_reserved))
