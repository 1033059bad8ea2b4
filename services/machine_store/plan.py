"""The plan: who converts each part, how it came to that, what comparing has shown, and which converters there are."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from typing import Any, Literal, TypeVar

from google.protobuf.json_format import MessageToJson, ParseDict, SerializeToJsonError
from google.protobuf.message import Message
from skerry.handover.v1.plan_pb2 import (
    PART_MODE_CENTRAL,
    PART_MODE_LOCAL,
    PART_MODE_UNSPECIFIED,
    Difference,
    PartEvidence,
    PartMode,
    PartPlan,
    Plan,
    PlanChange,
)
from skerry.store.v1.plan_store_pb2 import Comparisons, RegisterConverterRequest

from services.machine_store.database import Connection, Database, Row
from services.machine_store.queries import load
from services.machine_store.records import check_text, moment, storable, timestamp
from services.machine_store.workers import age
from services.runtime.clock import Clock
from services.runtime.errors import Conflict, InvalidConfig, NotFound, Violation
from services.runtime.telemetry import log

PARTS = (
    "image",
    "guest",
    "env",
    "init",
    "services",
    "checks",
    "mounts",
    "files",
    "processes",
    "containers",
    "restart",
    "stop",
    "dns",
    "metrics",
    "statics",
    "metadata",
    "schedule",
    "standbys",
    "rootfs",
)
"""Names of the parts, in the order of a plan's entries."""

InitialPlan = Literal["local", "central"]

MOST_LISTED = 1000
"""Most changes or differences in one answer."""
MOST_INPUTS = 10_000
"""Most inputs of a part that are told apart."""
MOST_APPS = 100
"""Most apps with a difference of a part that are told apart."""
MOST_DIFFERENCES = 200
"""Most differences of a part that are kept."""

_SQL = load("plan")
_MOST_TEXT = 16_384
_MOST_EVIDENCE = 2**20

M = TypeVar("M", bound=Message)


def first_plan(initial: InitialPlan, at: datetime) -> Plan:
    """The plan of epoch 1: every part is converted by the region, or every part by the centre.

    Version 1 of the centre is allowed for a local part as well, so that it can be moved back.
    """
    mode = PART_MODE_CENTRAL if initial == "central" else PART_MODE_LOCAL
    since = timestamp(at)
    entries = [
        PartPlan(part=part, mode=mode, local_version=1, central_versions=[1], since=since, since_epoch=1)
        for part in PARTS
    ]
    return Plan(epoch=1, parts=entries)


def changed_plan(
    plan: Plan, entries: Sequence[PartPlan], at: datetime
) -> tuple[Plan, Sequence[tuple[PartPlan, PartPlan]]]:
    """`plan` with `entries` under the next epoch, and each entry that changes: before and after.

    An entry's `since` and `since_epoch` are those of its last change of mode or version. If nothing changes it is the
    same plan. Raises InvalidConfig for a part that is unknown or named twice, and for an entry without mode.
    """
    present = {entry.part: entry for entry in plan.parts}
    after: dict[str, PartPlan] = {}
    for number, wanted in enumerate(entries):
        field = f"parts[{number}]"
        if wanted.part not in present:
            raise _wrong(f"{field}.part", f"is {wanted.part[:80]!r}: there is no such part")
        if wanted.part in after:
            raise _wrong(f"{field}.part", f"is {wanted.part}, which is named twice")
        if wanted.mode == PART_MODE_UNSPECIFIED or wanted.mode not in PartMode.values():
            raise _wrong(f"{field}.mode", "is missing")
        check_text(_MOST_TEXT, **{f"{field}.sealed_by": "".join(wanted.sealed_by)})
        before = present[wanted.part]
        entry = PartPlan()
        entry.CopyFrom(wanted)
        if _served(entry) == _served(before):
            entry.since.CopyFrom(before.since)
            entry.since_epoch = before.since_epoch
        else:
            entry.since.CopyFrom(timestamp(at))
            entry.since_epoch = plan.epoch + 1
        after[entry.part] = entry
    changes = [(present[part], entry) for part, entry in after.items() if entry != present[part]]
    if not changes:
        return plan, ()
    return Plan(epoch=plan.epoch + 1, parts=[after.get(entry.part, entry) for entry in plan.parts]), changes


async def make_first_plan(connect: Callable[[], Awaitable[Connection]], initial: InitialPlan, at: datetime) -> None:
    """Make the first plan of the database that `connect` reaches, unless it has one. Raises what asyncpg raises.

    A database that was written before there were plans has specs that its region converted: its plan is local.
    """
    connection = await connect()
    try:
        fresh, grown = to_json(first_plan(initial, at)), to_json(first_plan("local", at))
        if await connection.fetchval(_SQL["make_plan"], fresh, grown):
            log.info("first_plan_made", initial=initial)
    finally:
        await connection.close()


class Plans:
    """The plan of the cell, in the database."""

    def __init__(self, database: Database, *, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    async def get(self) -> Plan:
        """The present plan. Raises DependencyDown."""
        document = await self._database.fetchval(_SQL["get_plan"])
        if document is None:
            raise NotFound("there is no plan yet")
        return from_json(document, Plan())

    async def change(
        self, expected_epoch: int, entries: Sequence[PartPlan], *, who: str, why: str, evidence: str
    ) -> Plan:
        """Change entries of the plan, under the next epoch; nothing when they are so already.

        Raises InvalidConfig, Conflict when `expected_epoch` is not the present one, DependencyDown.
        """
        check_text(_MOST_TEXT, who=who, why=why)
        check_text(_MOST_EVIDENCE, evidence_json=evidence)
        at = moment(self._clock.now())
        before = await self.get()
        if before.epoch != expected_epoch:
            raise _moved_on(expected_epoch, before.epoch)
        plan, changes = changed_plan(before, entries, at)
        if not changes:
            return plan
        present: int | None = await self._database.fetchval(
            _SQL["change_plan"],
            expected_epoch,
            to_json(plan),
            [to_json(entry) for entry, _ in changes],
            [to_json(entry) for _, entry in changes],
            who,
            why,
            evidence,
            at,
        )
        if present is not None:
            raise _moved_on(expected_epoch, present)
        for entry, after in changes:
            log.info(
                "plan_changed",
                part=after.part,
                epoch=plan.epoch,
                before=PartMode.Name(entry.mode),
                after=PartMode.Name(after.mode),
                version=after.local_version,
                who=who,
                why=why,
            )
        return plan

    async def changes(self, part: str, limit: int) -> list[PlanChange]:
        """Changes of a part, or of all when that is empty, newest first. Raises InvalidConfig, DependencyDown."""
        rows = await self._database.fetch(_SQL["list_plan_changes"], storable(part), _checked_limit(limit))
        return [
            PlanChange(
                epoch=row["epoch"],
                at=timestamp(row["at"]),
                who=row["who"],
                why=row["why"],
                before=from_json(row["before"], PartPlan()),
                after=from_json(row["after"], PartPlan()),
                evidence_json=row["evidence"],
            )
            for row in rows
        ]

    async def record(self, comparisons: Sequence[Comparisons]) -> list[PartEvidence]:
        """Count comparisons and keep what differed; the evidence of their parts then.

        Comparisons that were made before the part's mode or a version last changed are not counted.
        Raises InvalidConfig for a part that is unknown, DependencyDown.
        """
        at = moment(self._clock.now())
        for number, made in enumerate(comparisons):
            if made.part not in PARTS:
                raise _wrong(f"comparisons[{number}].part", f"is {made.part[:80]!r}: there is no such part")
        for made in comparisons:
            await self._database.fetchval(
                _SQL["record_comparisons"],
                made.part,
                made.since_epoch,
                list(made.input_hashes),
                [_kept(difference, made.part) for difference in made.differences],
                sorted({storable(difference.app_name)[:256] for difference in made.differences}),
                at,
                MOST_INPUTS,
                MOST_APPS,
                MOST_DIFFERENCES,
            )
        named = {made.part for made in comparisons}
        return [evidence for evidence in await self.evidence() if evidence.part in named]

    async def evidence(self) -> list[PartEvidence]:
        """What comparing has shown of each part since its mode or a version last changed. Raises DependencyDown."""
        return [_evidence(row) for row in await self._database.fetch(_SQL["list_evidence"])]

    async def differences(self, part: str, limit: int) -> list[Difference]:
        """Differences of a part, or of all when that is empty, newest first. Raises InvalidConfig, DependencyDown."""
        limit = _checked_limit(limit)
        if part:
            rows = await self._database.fetch(_SQL["list_differences_of_part"], storable(part), limit)
        else:
            rows = await self._database.fetch(_SQL["list_differences"], limit)
        return [_difference(row) for row in rows]

    async def register(self, converter: RegisterConverterRequest) -> None:
        """Note that a converter lives, until its lease has run out by the database's clock.

        Raises InvalidConfig, DependencyDown.
        """
        check_text(name=converter.name)
        check_text(_MOST_TEXT, serves="".join(converter.serves))
        if not converter.name:
            raise _wrong("name", "is missing")
        await self._database.fetchval(
            _SQL["register_converter"],
            converter.name,
            list(converter.serves),
            converter.applied_epoch,
            age(converter.lease, "lease"),
            converter.unserved_conversions,
        )

    async def converters(self) -> list[RegisterConverterRequest]:
        """Converters whose lease holds, by name. Raises DependencyDown."""
        found = []
        for row in await self._database.fetch(_SQL["list_converters"]):
            converter = RegisterConverterRequest(
                name=row["name"],
                serves=row["serves"],
                applied_epoch=row["applied_epoch"],
                unserved_conversions=row["unserved_conversions"],
            )
            converter.lease.FromTimedelta(row["lease"])
            found.append(converter)
        return found


def to_json(message: Message) -> str:
    """A message as the database keeps it where people may look at it. Raises InvalidConfig for what JSON cannot."""
    try:
        return MessageToJson(message, preserving_proto_field_name=True, indent=None)
    except SerializeToJsonError as error:
        raise InvalidConfig(f"{message.DESCRIPTOR.name} holds what cannot be kept: {error}") from None


def from_json(document: str, message: M) -> M:
    """`message`, filled from what `to_json` made; fields that only newer instances know are left out."""
    fields: dict[str, Any] = json.loads(document)
    return ParseDict(fields, message, ignore_unknown_fields=True)


def _served(entry: PartPlan) -> tuple[int, int, frozenset[int]]:
    return entry.mode, entry.local_version, frozenset(entry.central_versions)


def _kept(difference: Difference, part: str) -> bytes:
    kept = Difference()
    kept.CopyFrom(difference)
    kept.ClearField("id")
    kept.ClearField("at")
    kept.part = part
    return kept.SerializeToString()


def _difference(row: Row) -> Difference:
    difference = Difference.FromString(row["document"])
    difference.id = row["id"]
    difference.at.CopyFrom(timestamp(row["at"]))
    return difference


def _evidence(row: Row) -> PartEvidence:
    return PartEvidence(
        part=row["part"],
        compared=row["compared"],
        distinct_inputs=row["distinct_inputs"],
        different=row["different"],
        different_apps=row["different_apps"],
        since_epoch=row["since_epoch"],
    )


def _checked_limit(limit: int) -> int:
    if not 1 <= limit <= MOST_LISTED:
        raise _wrong("limit", f"is {limit}: it must be from 1 to {MOST_LISTED}")
    return limit


def _moved_on(expected: int, present: int) -> Conflict:
    return Conflict(
        f"the plan is at epoch {present}, not {expected}: decide again on the present one",
        metadata={"epoch": str(present)},
    )


def _wrong(field: str, why: str) -> InvalidConfig:
    return InvalidConfig(f"{field} {why}", violations=[Violation(field, why)])
