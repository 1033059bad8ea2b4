"""Creating, changing and reading machines."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from skerry.converter.v1.converter_pb2 import ConversionResult
from skerry.store.v1.store_pb2 import (
    AcquireLeaseRequest,
    ApplyVerbRequest,
    ChangeMetadataRequest,
    CreateMachineRequest,
    ExplainDelayRequest,
    Lease,
    MachineRecord,
    ReleaseLeaseRequest,
    UpdateMachineRequest,
    VersionRecord,
)
from skerry.types.v1.config_pb2 import MachineConfig
from skerry.types.v1.machine_pb2 import (
    MACHINE_STATE_CREATED,
    MACHINE_STATE_STARTING,
    MACHINE_STATE_SUSPENDED,
    MachineEvent,
    MachineState,
)
from skerry.types.v1.spec_pb2 import MachineSpec

from services.machine_store import leases
from services.machine_store.batch import BatchWriter
from services.machine_store.database import Database, OutcomeUnknown, Row
from services.machine_store.events import Events
from services.machine_store.queries import load
from services.machine_store.records import (
    check_text,
    checked_amounts,
    details,
    events,
    machine_record,
    storable,
    timestamp,
    whole_machine_record,
)
from services.machine_store.steps import Create, NewMachine, Outcome, Step, Unit, complete, step_to
from services.machine_store.transitions import DESIRED, GONE, RUN_AGAIN, Asked, State, ask, state_name
from services.runtime.errors import (
    Conflict,
    DependencyDown,
    IdempotencyConflict,
    InvalidConfig,
    MissingReference,
    NameTaken,
    NoCapacity,
    NotFound,
    PlanMoved,
    QuotaExceeded,
    SkerryError,
    VersionMismatch,
    Violation,
    VolumeElsewhere,
    WrongState,
)

_SQL = load("machines")
_VOLUMES_SQL = load("volumes")

CHUNK = 200
"""Most machines in one message of a list."""
MOST_EVENTS = 1000
"""Most events in one answer."""
MOST_VERSIONS = 1000
"""Most versions in one answer."""
MOST_METADATA_BYTES = 65_536
"""Most that keys and values of a machine's metadata may take together."""

DELAY = "delay"
"""Type of the event that says what a machine waits for."""
FORCED_RELEASE = "lease_release"
"""Type of the event that says who took a lease away from its holder."""

_MARKS = {Asked.CORDON: True, Asked.UNCORDON: False}
_EVENTS_OF_A_REPEAT = 10
_ATTEMPTS = 20
_PATIENCE = 5.0


@dataclass(frozen=True, slots=True)
class Created:
    """A machine after its creation; whole when an earlier request with the same key had created it."""

    machine: MachineRecord
    events: Sequence[MachineEvent]
    repeated: bool


@dataclass(frozen=True, slots=True)
class Changed:
    """A machine after a write, without config and spec, and what happened to it; nothing if there was nothing to do."""

    machine: MachineRecord
    events: Sequence[MachineEvent]
    previous_state: State
    changed: bool


@dataclass(frozen=True, slots=True)
class Page:
    """What comes after a machine in the order of creation: at most `limit`, all when that is 0."""

    after_created_at: datetime
    after_id: str
    limit: int


class _Look(NamedTuple):
    """A machine as it was read, without config and spec, and the time of the database then."""

    record: MachineRecord
    now: datetime


class Machines:
    """The machines of the region. Writes go through `writer`, reads are queries."""

    def __init__(self, database: Database, writer: BatchWriter, *, events: Events) -> None:
        self._database = database
        self._writer = writer
        self._events = events

    async def create(self, request: CreateMachineRequest) -> Created:
        """Create a machine on the first candidate with room.

        Raises InvalidConfig, NotFound (the app), NameTaken, IdempotencyConflict, NoCapacity, PlanMoved, DependencyDown;
        with a volume also MissingReference, WrongState (another machine has it), VolumeElsewhere.
        """
        create = self._new_machine(request, await self._new_lease(request))
        if request.volume_id:
            outcome = await self._create_at_volume(create, request.volume_id)
        else:
            outcome = await self._create_for_certain(create)
        if outcome.outcome == "done":
            return Created(create.record, [create.event], repeated=False)
        if outcome.outcome == "repeated":
            machine, happened = await self.get(outcome.machine_id or "", events=_EVENTS_OF_A_REPEAT)
            return Created(machine, happened, repeated=True)
        if outcome.outcome == "plan_moved":
            raise _plan_moved(request.plan_epoch, outcome)
        raise _refusal(outcome, request)

    async def update(self, request: UpdateMachineRequest) -> Changed:
        """Give a machine a new version, and another place if its present worker has no room. Repeating it is safe.

        Raises InvalidConfig, NotFound, VersionMismatch, WrongState, NameTaken, NoCapacity, PlanMoved, DependencyDown.
        """
        check_text(name=request.name, instance_id=request.instance_id, source=request.source)
        need = checked_amounts(request.need, "need")
        config, spec, parts = _version(request)
        candidates = [storable(worker) for worker in request.candidate_worker_ids]
        event_id = ""
        for _ in range(_ATTEMPTS):
            record, now = await self._look(request.machine_id, request.app_id, patient=event_id != "")
            before = record.state
            written = await self._written(record, event_id)
            if written or record.instance_id == request.instance_id:
                return Changed(record, written, before, changed=True)
            _check_lease(request, record, now)
            if request.current_version not in ("", record.instance_id):
                raise VersionMismatch(
                    f"{record.id} is at version {record.instance_id}, not {request.current_version}: get it again",
                    metadata={"current_version": record.instance_id},
                )
            after = ask(Asked.UPDATE, before, machine=record.id, launch=not request.skip_launch)
            ran = record.generation > 0
            expected = record.revision
            self._enter(record, after or before)
            record.instance_id = request.instance_id
            record.name = request.name or record.name
            record.cordoned = record.cordoned or request.cordoned
            _copy_from_spec(record, request.conversion.spec)
            event = self._events.happen(record, Asked.UPDATE.value, request.source)
            event_id = event.id
            step = step_to(record, event)._replace(
                expected_revision=expected,
                need=need,
                candidates=candidates,
                leaves=ran,
                config=config,
                spec=spec,
                parts=parts,
            )
            match await self._try(step, record, event, request.plan_epoch):
                case "done":
                    return Changed(record, [event], before, changed=True)
                case "repeated":
                    record, _ = await self._look(request.machine_id, request.app_id, patient=False)
                    return Changed(record, (), before, changed=True)
                case "name_taken":
                    raise _name_taken(request.name)
                case "no_room":
                    raise _no_room([record.worker_id, *request.candidate_worker_ids])
        raise _too_busy(request.machine_id)

    async def apply(self, request: ApplyVerbRequest, asked: Asked) -> Changed:
        """Apply a verb other than update.

        Raises NotFound, LeaseHeld, WrongState, StillRunning, Conflict (another generation than expected),
        DependencyDown.
        """
        check_text(source=request.source)
        event_id = ""
        for _ in range(_ATTEMPTS):
            record, now = await self._look(request.machine_id, request.app_id, patient=event_id != "")
            before = record.state
            if written := await self._written(record, event_id):
                return Changed(record, written, before, changed=True)
            if request.expected_generation not in (0, record.generation):
                raise Conflict(
                    f"machine {record.id} is of generation {record.generation}, not {request.expected_generation}: "
                    "something else was asked of it meanwhile"
                )
            if asked is not Asked.DESTROY or before not in GONE:
                _check_lease(request, record, now)
            after = ask(asked, before, machine=record.id, force=request.force)
            if after is None or record.cordoned is _MARKS.get(asked):
                return Changed(record, (), before, changed=False)
            expected = record.revision
            if asked in _MARKS:
                record.cordoned = _MARKS[asked]
            else:
                self._enter(record, after, resumes=asked is Asked.START and before == MACHINE_STATE_SUSPENDED)
            if request.HasField("stop") and asked is not Asked.START:
                record.stop.CopyFrom(request.stop)
            event = self._events.happen(record, asked.value, request.source)
            event_id = event.id
            if await self._try(step_to(record, event)._replace(expected_revision=expected), record, event) == "done":
                return Changed(record, [event], before, changed=True)
        raise _too_busy(request.machine_id)

    async def get(
        self, machine_id: str, app_id: str = "", *, events: int = 0
    ) -> tuple[MachineRecord, Sequence[MachineEvent]]:
        """A machine, whole, and its newest events, newest first. Raises NotFound, DependencyDown."""
        row = await self._database.fetchrow(
            _SQL["get_machine"], storable(machine_id), storable(app_id), max(0, min(events, MOST_EVENTS))
        )
        if row is None:
            raise _no_machine(machine_id)
        record = whole_machine_record(row)
        if leases.held(record, row["now"]) is None:
            record.ClearField("lease")
        return record, _events(row)

    async def list(
        self,
        app_id: str,
        *,
        include_destroyed: bool,
        states: Sequence[State],
        metadata: Mapping[str, str],
        whole: bool,
        page: Page | None = None,
    ) -> AsyncIterator[Sequence[MachineRecord]]:
        """Machines of an app, or of all apps when that is empty, oldest first, in chunks; of an app also in pages.

        Raises DependencyDown, InvalidConfig for a page of all apps.
        """
        if page is not None and not app_id:
            raise InvalidConfig("app_id is needed for a page", violations=[Violation("app_id", "is needed for a page")])
        what = "page_of_app" if page is not None else "list_of_app" if app_id else "list_all"
        statement = _SQL[f"{what}_{'full' if whole else 'basic'}"]
        scope = [storable(app_id)] if app_id else []
        after = [page.after_created_at, storable(page.after_id)] if page is not None else []
        left = page.limit if page is not None else 0
        make = whole_machine_record if whole else machine_record
        # A state that there is not is one that no machine is in.
        chosen_states = [state for state in states if state in MachineState.values()] if states else None
        async with self._database.reading() as connection:
            cursor = await connection.cursor(statement, *scope, include_destroyed, chosen_states, *after)
            while rows := await cursor.fetch(min(CHUNK, left) if left and not metadata else CHUNK):
                records = [make(row) for row in rows]
                chosen = [record for record in records if metadata.items() <= dict(record.metadata).items()]
                if left and len(chosen) >= left:
                    yield chosen[:left]
                    return
                if chosen:
                    left -= len(chosen) if left else 0
                    yield chosen

    async def events(self, machine_id: str, app_id: str, limit: int) -> Sequence[MachineEvent]:
        """What happened to a machine, newest first. Raises InvalidConfig (limit), NotFound, DependencyDown."""
        if not 1 <= limit <= MOST_EVENTS:
            why = f"is {limit}: it must be from 1 to {MOST_EVENTS}"
            raise InvalidConfig(f"limit {why}", violations=[Violation("limit", why)])
        row = await self._database.fetchrow(_SQL["list_events"], storable(machine_id), storable(app_id), limit)
        if row is None:
            raise _no_machine(machine_id)
        return _events(row)

    async def versions(self, machine_id: str, app_id: str, limit: int) -> Sequence[VersionRecord]:
        """The versions of a machine, newest first. Raises InvalidConfig (limit), NotFound, DependencyDown."""
        if not 1 <= limit <= MOST_VERSIONS:
            why = f"is {limit}: it must be from 1 to {MOST_VERSIONS}"
            raise InvalidConfig(f"limit {why}", violations=[Violation("limit", why)])
        rows = await self._database.fetch(_SQL["list_versions"], storable(machine_id), storable(app_id), limit)
        if not rows:
            raise _no_machine(machine_id)
        return [
            VersionRecord(
                instance_id=row["instance_id"],
                config=MachineConfig.FromString(row["config"]),
                created_at=timestamp(row["created_at"]),
            )
            for row in rows
            if row["instance_id"] is not None
        ]

    async def acquire_lease(self, request: AcquireLeaseRequest) -> Lease:
        """Take a lease, or refresh the one that is held. Repeating it is safe.

        Raises InvalidConfig, NotFound, LeaseHeld, WrongState, DependencyDown.
        """
        patient = False
        for _ in range(_ATTEMPTS):
            record, now = await self._look(request.machine_id, request.app_id, patient=patient)
            if patient and record.lease.nonce == request.lease.nonce:
                return record.lease
            ask(Asked.LEASE, record.state, machine=record.id)
            leases.take(record, request.lease, now, held_nonce=request.held_nonce)
            outcome = await self._try(step_to(record, None), record, None)
            if outcome == "done":
                return record.lease
            patient = outcome == "unknown"
        raise _too_busy(request.machine_id)

    async def release_lease(self, request: ReleaseLeaseRequest) -> Lease:
        """Give a lease back; the lease that was held. One that is taken away leaves an event that says who did it.

        Raises NotFound, LeaseHeld, DependencyDown.
        """
        check_text(who=request.who)
        released: Lease | None = None
        for _ in range(_ATTEMPTS):
            record, now = await self._look(request.machine_id, request.app_id, patient=released is not None)
            if released is not None and leases.held(record, now) is None:
                return released
            foreign = leases.held(record, now) is not None and record.lease.nonce != request.held_nonce
            lease = leases.give_back(record, request.held_nonce, now, force=request.force)
            event = None
            if foreign:
                status = f"taken by {request.who} from {lease.owner}, who held it until {leases.until(lease)}"
                event = self._events.happen(record, FORCED_RELEASE, "user", status)
            outcome = await self._try(step_to(record, event), record, event)
            if outcome == "done":
                return lease
            released = lease if outcome == "unknown" else None
        raise _too_busy(request.machine_id)

    async def change_metadata(self, request: ChangeMetadataRequest) -> Changed:
        """Set and delete entries of a machine's metadata, without a new version. Repeating it is safe.

        Raises InvalidConfig, NotFound, LeaseHeld, WrongState, DependencyDown.
        """
        for _ in range(_ATTEMPTS):
            row = await self._database.fetchrow(
                _SQL["get_machine"], storable(request.machine_id), storable(request.app_id), 0, patience=_PATIENCE
            )
            if row is None:
                raise _no_machine(request.machine_id)
            record = machine_record(row)
            _check_lease(request, record, row["now"])
            ask(Asked.METADATA, record.state, machine=record.id)
            before = dict(whole_machine_record(row).config.metadata)
            after = {key: value for key, value in {**before, **request.set}.items() if key not in request.delete}
            if after == before:
                return Changed(record, (), record.state, changed=False)
            _check_metadata(after)
            record.metadata.clear()
            record.metadata.update(after)
            record.metadata_changed = True
            self._events.touch(record)
            if await self._try(step_to(record, None), record, None) == "done":
                return Changed(record, (), record.state, changed=True)
        raise _too_busy(request.machine_id)

    async def explain_delay(self, request: ExplainDelayRequest) -> bool:
        """Note what a machine waits for, with an event; whether that was news.

        Raises InvalidConfig, NotFound, Conflict for one that is in another generation or state, DependencyDown.
        """
        check_text(reason=request.reason)
        for _ in range(_ATTEMPTS):
            record, _ = await self._look(request.machine_id, "", patient=True)
            if (record.generation, record.state) != (request.expected_generation, request.expected_state):
                raise Conflict(f"machine {record.id} does not wait any more: something else has happened to it")
            if record.reason == request.reason:
                return False
            record.reason = request.reason
            event = self._events.happen(record, DELAY, "flyd", request.reason)
            if await self._try(step_to(record, event), record, event) == "done":
                return True
        raise _too_busy(request.machine_id)

    async def made_by(
        self, app_id: str, key: str, fingerprint: bytes
    ) -> tuple[MachineRecord, Sequence[MachineEvent]] | None:
        """The machine that an idempotency key has made, whole, with its newest events.

        None for a new key, and for one whose machine is forgotten.
        Raises InvalidConfig (the key), IdempotencyConflict, DependencyDown.
        """
        check_text(idempotency_key=key)
        row = await self._database.fetchrow(_SQL["get_idempotency_key"], storable(app_id), key)
        if row is None:
            return None
        if row["fingerprint"] != fingerprint:
            raise _other_request(key)
        return await self.get(row["machine_id"], events=_EVENTS_OF_A_REPEAT)

    async def _new_lease(self, request: CreateMachineRequest) -> Lease | None:
        """The lease that a new machine is to have. It costs a look at the database's clock."""
        if not request.HasField("lease"):
            return None
        record = MachineRecord(id=request.machine_id, instance_id=request.instance_id)
        leases.take(record, request.lease, await self._database.fetchval(_SQL["get_time"]))
        return record.lease

    def _new_machine(self, request: CreateMachineRequest, lease: Lease | None) -> Create:
        check_text(
            name=request.name,
            idempotency_key=request.idempotency_key,
            region=request.region,
            machine_id=request.machine_id,
            instance_id=request.instance_id,
            app_id=request.app_id,
            source=request.source,
        )
        for field in ("name", "machine_id", "instance_id", "app_id"):
            if not getattr(request, field):
                raise InvalidConfig(f"{field} is missing", violations=[Violation(field, "is missing")])
        need = checked_amounts(request.need, "need")
        config, spec, parts = _version(request)
        at = self._events.now()
        now = timestamp(at)
        state = MACHINE_STATE_STARTING if request.launch else MACHINE_STATE_CREATED
        record = MachineRecord(
            id=request.machine_id,
            app_id=request.app_id,
            name=request.name,
            region=request.region,
            state=state,
            desired=DESIRED[state],
            generation=1 if request.launch else 0,
            instance_id=request.instance_id,
            cordoned=request.cordoned,
            created_at=now,
            updated_at=now,
            generation_at=now if request.launch else None,
            lease=lease,
        )
        _copy_from_spec(record, request.conversion.spec)
        event = MachineEvent(
            id=self._events.new_id(), type="launch", status=state_name(state), source=request.source, timestamp=now
        )
        row = NewMachine(
            id=request.machine_id,
            instance_id=request.instance_id,
            app_id=request.app_id,
            name=request.name,
            region=request.region,
            state=state,
            desired=DESIRED[state],
            generation=record.generation,
            need=need,
            candidates=[storable(worker) for worker in request.candidate_worker_ids],
            idempotency_key=request.idempotency_key,
            fingerprint=request.request_fingerprint,
            at=at,
            details=details(record),
            config=config,
            spec=spec,
            parts=parts,
            event_id=event.id,
            event_status=event.status,
            event_source=event.source,
        )
        return Create(row, record, event, request.plan_epoch)

    async def _create_for_certain(self, create: Create) -> Outcome:
        """Create until it is known to have happened or not: its ids and its key make it safe to repeat."""
        for _ in range(_ATTEMPTS):
            try:
                return (await self._writer.submit(create))[0]
            except OutcomeUnknown as error:
                lost = error
        raise lost

    async def _create_at_volume(self, create: Create, volume_id: str) -> Outcome:
        """Create a machine and attach a volume to it, in a transaction of their own. Its ids make it safe to repeat.

        Raises MissingReference, WrongState (another machine has the volume), VolumeElsewhere, DependencyDown.
        """
        row = await self._database.fetchrow(
            _VOLUMES_SQL["commit_at_volume"], create.row, create.plan_epoch, storable(volume_id), patience=_PATIENCE
        )
        assert row is not None
        outcome = Outcome(*row)
        match outcome.outcome:
            case "done":
                complete(create.record, outcome)
            case "no_volume":
                raise MissingReference(
                    f"the app has no volume {volume_id}: create it first", metadata={"volume_id": volume_id}
                )
            case "volume_taken":
                raise WrongState(
                    f"machine {outcome.machine_id} has volume {volume_id}: destroy that first, or take another volume",
                    metadata={"volume_id": volume_id, "machine_id": outcome.machine_id or ""},
                )
            case "volume_elsewhere":
                raise VolumeElsewhere(
                    f"volume {volume_id} is on worker {outcome.worker_id}, and the machine would not be",
                    metadata={"volume_id": volume_id, "worker_id": outcome.worker_id or ""},
                )
        return outcome

    def _enter(self, record: MachineRecord, state: State, *, resumes: bool = False) -> None:
        """Put a machine into a state that was asked for. One that resumes is still in its generation."""
        record.state = state
        record.desired = DESIRED[state]
        record.reason = ""
        record.ClearField("stop")
        if state in RUN_AGAIN:
            record.generation_at.CopyFrom(timestamp(self._events.now()))
        if state in RUN_AGAIN and not resumes:
            record.generation += 1
            record.restart_count = 0
            del record.checks[:]

    async def _try(self, step: Step, record: MachineRecord, event: MachineEvent | None, plan_epoch: int = 0) -> str:
        """What became of one step. "conflict" and "unknown" ask for another look at the machine."""
        unit = Unit(plan_epoch=plan_epoch)
        unit.add(step, record, event)
        try:
            outcome = (await self._writer.submit(unit))[0]
        except OutcomeUnknown:
            return "unknown"
        if outcome.outcome == "missing":
            raise _no_machine(record.id)
        if outcome.outcome == "plan_moved":
            raise _plan_moved(plan_epoch, outcome)
        return outcome.outcome

    async def _look(self, machine_id: str, app_id: str, *, patient: bool) -> _Look:
        patience = _PATIENCE if patient else 0.0
        row = await self._database.fetchrow(_SQL["get_machine_basic"], storable(machine_id), patience=patience)
        if row is None or app_id not in ("", row["app_id"]):
            raise _no_machine(machine_id)
        return _Look(machine_record(row), row["now"])

    async def _written(self, record: MachineRecord, event_id: str) -> Sequence[MachineEvent]:
        """The event of a write whose outcome was not known, if it took effect."""
        if not event_id:
            return []
        return events(await self._database.fetch(_SQL["get_event"], record.id, event_id))


def _version(request: CreateMachineRequest | UpdateMachineRequest) -> tuple[bytes, bytes, bytes]:
    return (
        request.config.SerializeToString(),
        request.conversion.spec.SerializeToString(),
        ConversionResult(parts=request.conversion.parts).SerializeToString(),
    )


def _copy_from_spec(record: MachineRecord, spec: MachineSpec) -> None:
    """What a record also shows without its spec."""
    record.ClearField("metadata")
    record.metadata.update(spec.metadata.entries)
    record.metadata_changed = False
    record.schedule = spec.schedule.interval
    del record.standby_for[:]
    record.standby_for.extend(spec.standbys.machine_ids)


def _check_lease(
    request: UpdateMachineRequest | ApplyVerbRequest | ChangeMetadataRequest, record: MachineRecord, now: datetime
) -> None:
    if request.HasField("lease_nonce"):
        leases.check(record, request.lease_nonce, now)


def _check_metadata(metadata: Mapping[str, str]) -> None:
    violations = []
    for key, value in metadata.items():
        if not key:
            violations.append(Violation("metadata", "must have a key"))
        if "\0" in key or "\0" in value:
            violations.append(Violation(f"metadata.{key[:64]}", "contains a NUL character: leave it out"))
    if sum(len(key.encode()) + len(value.encode()) for key, value in metadata.items()) > MOST_METADATA_BYTES:
        violations.append(Violation("metadata", f"takes more than {MOST_METADATA_BYTES} bytes: shorten it"))
    if violations:
        raise InvalidConfig("; ".join(f"{v.field} {v.why}" for v in violations), violations=violations)


def _events(row: Row) -> Sequence[MachineEvent]:
    return events(row["events"])


def _refusal(outcome: Outcome, request: CreateMachineRequest) -> SkerryError:
    match outcome.outcome:
        case "no_app":
            return NotFound(f"app {request.app_id} does not exist: create it first")
        case "name_taken":
            return _name_taken(request.name)
        case "id_taken":
            return Conflict(f"machine {request.machine_id} exists already: make another id")
        case "other_request":
            return _other_request(request.idempotency_key)
        case "over_quota":
            most, present = outcome.reserved or (0, 0)
            return QuotaExceeded(
                f"the app's organization has {present} machines here, and may have {most}: destroy some, or ask for a "
                "higher limit max_machines",
                metadata={"limit": "max_machines", "most": str(most), "present": str(present)},
            )
        case _:
            return _no_room(request.candidate_worker_ids)


def _plan_moved(epoch: int, outcome: Outcome) -> PlanMoved:
    return PlanMoved(
        f"the configuration was converted under epoch {epoch} of the plan, which is at epoch {outcome.revision} now: "
        "convert it again",
        metadata={"epoch": str(outcome.revision)},
    )


def _no_machine(machine_id: str) -> NotFound:
    return NotFound(f"machine {machine_id} does not exist")


def _name_taken(name: str) -> NameTaken:
    why = f"is taken: the app has another machine {name}"
    return NameTaken(f"name {why}; choose another name", violations=[Violation("name", why)])


def _no_room(workers: Sequence[str]) -> NoCapacity:
    if not workers:
        return NoCapacity("no worker was proposed that could take the machine")
    return NoCapacity(
        f"there is no room on any of the workers that were proposed: {', '.join(workers)}", retry_after=1.0
    )


def _other_request(key: str) -> IdempotencyConflict:
    return IdempotencyConflict(f"idempotency key {key} was used for another request: use a new key for a new request")


def _too_busy(machine_id: str) -> DependencyDown:
    return DependencyDown(
        f"machine-store: machine {machine_id} changes too often just now; repeat the request", retry_after=0.1
    )
