"""What tests of the hand-over share: plans, a centre, and converters that leave their mark in what they make."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from random import Random
from typing import Any, cast

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from skerry.handover.v1.plan_pb2 import PART_MODE_LOCAL, PartMode, PartPlan, Plan
from skerry.sync.v1.sync_pb2 import CentralPart, ConvertPartsRequest, ConvertPartsResponse
from skerry.types.v1.config_pb2 import MachineConfig

from services.config_converter.part import Convert, Facts, Part, Problems
from services.config_converter.parts import PARTS
from services.config_converter.planned import PlannedConversion, Recipe, Requests, Seen
from services.config_converter.settings import HandoverSettings

SINCE = 1_700_000_000
SETTINGS = HandoverSettings()


def entry(
    part: str,
    mode: PartMode.ValueType = PART_MODE_LOCAL,
    *,
    version: int = 1,
    central: Sequence[int] = (1,),
    sealed: Sequence[str] = (),
    previous: int = 0,
    since_epoch: int = 1,
) -> PartPlan:
    """An entry of a plan."""
    return PartPlan(
        part=part,
        mode=mode,
        local_version=version,
        central_versions=central,
        sealed_by=sealed,
        previous_local_version=previous,
        since_epoch=since_epoch,
        since=Timestamp(seconds=SINCE),
    )


def plan_of(*entries: PartPlan, epoch: int = 1, others: PartMode.ValueType = PART_MODE_LOCAL) -> Plan:
    """A plan with these entries, and all other parts in the mode `others`."""
    special = {found.part: found for found in entries}
    parts = [special.get(part.name) or entry(part.name, others) for part in PARTS]
    return Plan(epoch=epoch, parts=parts)


def marked(convert: Convert, mark: str) -> Convert:
    """The converter of env, with a variable MADE_BY in what it makes."""

    def converted(config: MachineConfig, facts: Facts, problems: Problems) -> Message:
        spec: Any = deepcopy(convert(config, facts, problems))
        spec.variables["MADE_BY"] = mark
        return cast(Message, spec)

    return converted


def with_versions(parts: Sequence[Part], versions: Mapping[str, Iterable[int]]) -> tuple[Part, ...]:
    """The parts, some of them with these versions instead, all converting alike."""
    return tuple(
        replace(part, converters=dict.fromkeys(versions[part.name], part.convert)) if part.name in versions else part
        for part in parts
    )


class Centre:
    """A centre that converts as the region does: what it serves is a table, and it remembers what it was asked."""

    def __init__(self, versions: Mapping[str, Iterable[int]] | None = None) -> None:
        self.versions = {part.name: {1} for part in PARTS} | {k: set(v) for k, v in (versions or {}).items()}
        self.quirks: dict[str, Convert] = {}
        self.asked: list[ConvertPartsRequest] = []
        self.away: Exception | None = None
        self.twist: Callable[[ConvertPartsResponse], None] = lambda _: None

    async def __call__(self, request: ConvertPartsRequest) -> ConvertPartsResponse:
        self.asked.append(request)
        if self.away is not None:
            raise self.away
        response = ConvertPartsResponse(parts=[self._part(wanted.part, request) for wanted in request.parts])
        self.twist(response)
        return response

    def _part(self, name: str, request: ConvertPartsRequest) -> CentralPart:
        versions = self.versions[name]
        if not versions:
            return CentralPart(part=name, not_served=f"release r2 does not convert {name}")
        version = max(versions)
        problems = Problems()
        convert = self.quirks.get(name) or next(part.convert for part in PARTS if part.name == name)
        spec = convert(request.config, Facts(), problems)
        answer = CentralPart(part=name, version=version)
        if problems.found:
            for field, why in problems.found.items():
                answer.violations.add(field=field, why=why)
        else:
            getattr(answer.spec, name).CopyFrom(spec)
        return answer


class Watching:
    """An observer that keeps what it is given."""

    def __init__(self) -> None:
        self.seen: list[Seen] = []

    def observe(self, seen: Seen) -> None:
        self.seen.append(seen)


def recipe_of(plan: Plan, parts: Sequence[Part] = PARTS, settings: HandoverSettings = SETTINGS) -> Recipe:
    """The recipe of the converter c1."""
    return Recipe(plan, parts, settings, "c1")


def conversion_of(
    ask: Callable[[ConvertPartsRequest], Awaitable[ConvertPartsResponse]],
    observer: Watching | None = None,
    *,
    settings: HandoverSettings = SETTINGS,
    now: float = SINCE,
    parts: Sequence[Part] = PARTS,
) -> PlannedConversion:
    """A conversion, with a clock that stands still."""
    requests = Requests(parts, without_facts=settings.drill_no_facts)
    return PlannedConversion(
        requests, ask, observer or Watching(), now=lambda: now, random=Random(7), settings=settings
    )
