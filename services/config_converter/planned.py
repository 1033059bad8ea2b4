"""The conversion under a plan: who converts each part, and that every part has exactly one owner in the end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Protocol

from skerry.converter.v1.converter_pb2 import (
    PART_OWNER_CENTRE,
    PART_OWNER_REGION,
    ConversionResult,
    ConvertedPart,
    PartOwner,
)
from skerry.handover.v1.plan_pb2 import PART_MODE_LOCAL, PART_MODE_LOCAL_CHECKED, PART_MODE_SHADOW, PartPlan, Plan
from skerry.sync.v1.sync_pb2 import CatalogFacts, CentralPart, ConvertPartsRequest, ConvertPartsResponse, WantedPart
from skerry.types.v1.config_pb2 import MachineConfig

from services.config_converter.comparing import InputHashes
from services.config_converter.conversion import (
    PART_NAMES,
    Context,
    Steps,
    blank_result,
    convert_steps,
    invalid_config,
)
from services.config_converter.handover import BY_THE_CENTRE, BY_THE_REGION, served
from services.config_converter.part import Facts, Part, Problems
from services.config_converter.parts.mounts import volumes_named
from services.config_converter.settings import HandoverSettings
from services.runtime.errors import DependencyDown, PartUnserved

CENTRE = "central"
"""How the centre is named as a dependency."""

MOUNTS = "mounts"
_WITH_IMAGES = frozenset({"image", "containers"})
_RETRY_AFTER = 1.0
_PLACES = {name: place for place, name in enumerate(PART_NAMES)}
_OWNER_NAMES: Mapping[PartOwner.ValueType, str] = {PART_OWNER_REGION: "the region", PART_OWNER_CENTRE: "the centre"}

Ask = Callable[[ConvertPartsRequest], Awaitable[ConvertPartsResponse]]
"""Has the centre convert parts. Raises DependencyDown when it cannot."""


@dataclass(frozen=True, slots=True)
class Allowed:
    """Who converts a part under a plan, and at which versions."""

    owner: PartOwner.ValueType
    versions: frozenset[int]

    @classmethod
    def by(cls, entry: PartPlan) -> Allowed:
        """What an entry of a plan allows."""
        if entry.mode in BY_THE_CENTRE:
            return cls(PART_OWNER_CENTRE, frozenset(entry.central_versions))
        return cls(PART_OWNER_REGION, frozenset([entry.local_version]))


def faults_of(
    plan: Mapping[str, Allowed], made: Iterable[ConvertedPart], why: Mapping[str, str] | None = None
) -> dict[str, str]:
    """What is wrong with a conversion under a plan, by part: each has to be there exactly once, made by the plan's
    owner at a version that the plan allows. `why` has reasons for parts that are missing. Empty when all is well.
    """
    faults: dict[str, str] = {}
    times: Counter[str] = Counter()
    for entry in made:
        times[entry.part] += 1
        allowed = plan.get(entry.part)
        if allowed is None:
            faults[entry.part] = "the plan does not know it"
        elif entry.owner != allowed.owner:
            wanted, got = _OWNER_NAMES[allowed.owner], _OWNER_NAMES.get(entry.owner, "nobody")
            faults[entry.part] = f"{got} converted it, and the plan wants {wanted}"
        elif entry.version not in allowed.versions:
            wanted = ", ".join(map(str, sorted(allowed.versions))) or "none"
            faults[entry.part] = (
                f"{_OWNER_NAMES[entry.owner]} converted it at version {entry.version}, and the plan allows {wanted}"
            )
    for part, allowed in plan.items():
        if not times[part]:
            reason = (why or {}).get(part)
            faults[part] = f"{_OWNER_NAMES[allowed.owner]} did not convert it" + (f": {reason}" if reason else "")
        elif times[part] > 1:
            faults[part] = f"it was converted {times[part]} times"
    return faults


def all_local(parts: Sequence[Part]) -> Plan:
    """A plan of no epoch that has every part converted by the region, with its newest version."""
    entries = [PartPlan(part=part.name, mode=PART_MODE_LOCAL, local_version=part.version) for part in parts]
    return Plan(parts=entries)


class Recipe:
    """What an instance does under one plan, worked out once."""

    def __init__(self, plan: Plan, parts: Sequence[Part], settings: HandoverSettings, instance: str = "") -> None:
        table = {part.name: part for part in parts}
        self.plan = plan
        self.epoch = plan.epoch
        self.instance = instance
        self.entries: dict[str, PartPlan] = {entry.part: entry for entry in plan.parts}
        self.allowed = {name: Allowed.by(entry) for name, entry in self.entries.items()}
        self.unserved: dict[str, str] = {}
        """Parts of the plan that this instance cannot serve, and why."""
        here: list[str] = []
        for name, entry in self.entries.items():
            part = table.get(name)
            if name not in PART_NAMES:
                self.unserved[name] = f"the converter {instance} is of a release that does not know the part"
            elif entry.mode in BY_THE_REGION:
                if part is None or entry.local_version not in part.converters:
                    wanted = served(name, entry.local_version)
                    self.unserved[name] = f"the converter {instance} cannot serve {wanted}, which the plan wants"
                else:
                    here.append(name)
            elif entry.mode not in BY_THE_CENTRE:
                self.unserved[name] = f"the converter {instance} does not know what the plan has for it"
        for name in PART_NAMES:
            if name not in self.entries:
                self.unserved[name] = f"the plan of epoch {plan.epoch} says nothing of it"
        self.asked = tuple(entry for entry in plan.parts if entry.mode in BY_THE_CENTRE and entry.part in PART_NAMES)
        """Parts that the centre is asked for."""
        self.shadowed = tuple(entry for entry in self.asked if entry.mode == PART_MODE_SHADOW)
        self.checked = tuple(entry for entry in plan.parts if entry.mode == PART_MODE_LOCAL_CHECKED)
        """Parts of which a sample, and every refusal, is compared with the centre."""
        self.promoted = tuple(
            (entry, entry.since.seconds + settings.watched_after_promotion)
            for entry in plan.parts
            # The first epoch's entries were never promoted.
            if entry.mode == PART_MODE_LOCAL and entry.since_epoch > 1
        )
        """Local parts, each with the moment until which its refusals are checked."""
        self.steps: Steps = tuple((name, table[name].converters[self.entries[name].local_version]) for name in here)
        self.made_here = [
            ConvertedPart(part=name, owner=PART_OWNER_REGION, version=self.entries[name].local_version) for name in here
        ]
        self.simple = not self.asked and not self.unserved
        """The region converts everything, and this instance can."""
        # An epoch of 0 is not checked when the conversion is committed.
        epoch = 0 if settings.drill_no_epochs else plan.epoch
        self.blank = blank_result(self.made_here if self.simple else (), epoch)

    def watched(self, now: float) -> list[PartPlan]:
        """Entries whose refusals by the region are checked at a moment (unix seconds)."""
        return [*self.checked, *(entry for entry, until in self.promoted if now < until)]


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """A conversion of which something is to be compared."""

    config: MachineConfig
    context: Context
    facts: Facts
    entries: Sequence[PartPlan]
    """What to compare."""
    answers: Mapping[str, CentralPart] | None = None
    """What the centre made of those parts; None when it has to be asked."""
    refused: bool = False
    """The region refused the configuration: of the entries, those count that refused it."""


class Observer(Protocol):
    """Compares conversions off their requests' path."""

    def observe(self, seen: Seen) -> None:
        """Take a conversion in, or drop it. Never waits, never raises."""
        ...


@dataclass(slots=True)
class _CentralAnswer:
    """What the centre said about the parts that it was asked for."""

    made: list[ConvertedPart] = field(default_factory=list)
    """One entry an answer, however often it answered for a part."""
    answers: dict[str, CentralPart] = field(default_factory=dict)
    not_served: dict[str, str] = field(default_factory=dict)


class Requests:
    """Makes the requests to the centre."""

    def __init__(self, parts: Sequence[Part], *, without_facts: bool = False) -> None:
        """`without_facts` leaves out what the centre would look up in the region."""
        self._hashes = InputHashes(parts)
        self._parts = {part.name: part for part in parts}
        self._without_facts = without_facts

    def of(
        self, entries: Iterable[PartPlan], config: MachineConfig, context: Context, facts: Facts
    ) -> ConvertPartsRequest:
        """What to ask central-sync to have these parts converted."""
        wanted = [
            WantedPart(
                part=entry.part,
                versions=entry.central_versions,
                input_hash=self.input_hash(entry.part, config, facts),
            )
            for entry in entries
        ]
        request = ConvertPartsRequest(parts=wanted, config=config, app_name=context.app_name, region=context.region)
        if self._without_facts:
            request.without_facts = True
            return request
        # The centre may know a newer alias already. Its answer is kept under the facts that are told.
        request.catalog.CopyFrom(self._catalog_facts(wanted, config, facts))
        if any(want.part == MOUNTS for want in wanted):
            # A volume that is nowhere is told too: else the centre would come back and ask.
            for volume in volumes_named(config):
                request.volume_locations[volume] = (facts.volume_locations or {}).get(volume, "")
        return request

    def _catalog_facts(self, wanted: Iterable[WantedPart], config: MachineConfig, facts: Facts) -> CatalogFacts:
        limits = facts.limits
        told = CatalogFacts(max_cpus=limits.cpus, max_memory_mb=limits.memory_mb, max_gpus=limits.gpus)
        for want in wanted:
            if (part := self._parts.get(want.part)) is not None and want.part in _WITH_IMAGES:
                used = dict(part.facts_used(config, facts))
                told.image_aliases.update({name: used[name] for name in used if name in facts.image_aliases})
        return told

    def input_hash(self, part: str, config: MachineConfig, facts: Facts) -> bytes:
        """The hash of what a conversion of the part depends on."""
        return self._hashes.of(part, config, facts)


class PlannedConversion:
    """Converts under plans."""

    def __init__(
        self,
        requests: Requests,
        ask: Ask,
        observer: Observer,
        *,
        now: Callable[[], float],
        random: Random,
        settings: HandoverSettings,
    ) -> None:
        """`now` gives unix seconds."""
        self._requests = requests
        self._ask = ask
        self._observer = observer
        self._now = now
        self._random = random
        self._settings = settings

    async def convert(self, recipe: Recipe, config: MachineConfig, context: Context, facts: Facts) -> ConversionResult:
        """The spec of a configuration, each part from its owner under the recipe's plan.

        Raises InvalidConfig; PartUnserved for a part that its owner does not convert, that is missing, doubled, of
        another owner or of a version that the plan does not allow; DependencyDown for parts that the centre would have
        to convert.
        """
        if not recipe.simple:
            return await self._convert_apart(recipe, config, context, facts)
        problems = Problems()
        result = convert_steps(recipe.steps, recipe.blank, config, facts, problems)
        self._observe_here(recipe, config, context, facts, problems)
        if problems.found:
            raise invalid_config(problems, context.field_prefix)
        return result

    async def _convert_apart(
        self, recipe: Recipe, config: MachineConfig, context: Context, facts: Facts
    ) -> ConversionResult:
        checks = not self._settings.drill_no_ownership_check
        if recipe.unserved and checks:
            raise part_unserved(recipe.unserved, recipe.allowed, recipe.instance)
        problems = Problems()
        result = convert_steps(recipe.steps, recipe.blank, config, facts, problems)
        self._observe_here(recipe, config, context, facts, problems)
        try:
            central = await self._ask_centre(recipe, config, context, facts)
        except DependencyDown as error:
            # What the region refuses stays refused, whatever the centre would have said.
            if problems.found:
                raise invalid_config(problems, context.field_prefix) from error
            raise
        if recipe.shadowed and central.answers:
            self._observer.observe(Seen(config, context, facts, recipe.shadowed, central.answers))
        made = [*recipe.made_here, *central.made]
        faults = faults_of(recipe.allowed, made, central.not_served) if checks else {}
        if faults and not problems.found:
            raise part_unserved(faults, recipe.allowed)
        for answer in central.answers.values():
            # A refusal by a converter that the plan does not allow is none.
            for violation in answer.violations if answer.part not in faults else ():
                problems.add(violation.field, violation.why)
        if problems.found:
            raise invalid_config(problems, context.field_prefix)
        for answer in central.answers.values():
            getattr(result.spec, answer.part).CopyFrom(getattr(answer.spec, answer.part))
        result.parts.extend(sorted(made, key=lambda entry: _PLACES[entry.part]))
        return result

    async def _ask_centre(
        self, recipe: Recipe, config: MachineConfig, context: Context, facts: Facts
    ) -> _CentralAnswer:
        if not recipe.asked:
            return _CentralAnswer()
        request = self._requests.of(recipe.asked, config, context, facts)
        try:
            response = await self._ask(request)
        except DependencyDown as error:
            raise centre_down(error, [entry.part for entry in recipe.asked]) from error
        central = _CentralAnswer()
        for answer in response.parts:
            if answer.not_served:
                central.not_served[answer.part] = answer.not_served
            elif answer.violations or _holds(answer):
                central.answers[answer.part] = answer
                central.made.append(ConvertedPart(part=answer.part, owner=PART_OWNER_CENTRE, version=answer.version))
        return central

    def _observe_here(
        self, recipe: Recipe, config: MachineConfig, context: Context, facts: Facts, problems: Problems
    ) -> None:
        """Have the region's own answer compared, where the plan wants it. Almost always there is nothing to do."""
        if not problems.found:
            if recipe.checked and self._random.random() < self._settings.sample:
                self._observer.observe(Seen(config, context, facts, recipe.checked))
        elif recipe.checked or recipe.promoted:
            watched = recipe.watched(self._now())
            if watched:
                self._observer.observe(Seen(config, context, facts, watched, refused=True))


def _holds(answer: CentralPart) -> bool:
    """Whether an answer has a spec with its part."""
    return answer.part in PART_NAMES and answer.spec.HasField(answer.part)  # type: ignore[arg-type]


def part_unserved(faults: Mapping[str, str], allowed: Mapping[str, Allowed], instance: str = "") -> PartUnserved:
    """The error for parts, each with what is wrong, of which nothing was written.

    With `instance` it is only this one that cannot: another one may.
    """
    text = "; ".join(f"the part {part} is not served: {why}" for part, why in faults.items())
    first = next(iter(faults))
    owner = allowed[first].owner if first in allowed else PART_OWNER_REGION
    return PartUnserved(
        f"{text}; nothing was written",
        metadata={
            "part": first,
            "parts": ",".join(faults),
            "owner": "centre" if owner == PART_OWNER_CENTRE else "region",
            "why": faults[first],
            **({"instance": instance} if instance else {}),
        },
        retry_after=_RETRY_AFTER,
    )


def centre_down(error: DependencyDown, parts: Sequence[str]) -> DependencyDown:
    """The error for parts that the centre would have to convert: it names them, and the centre."""
    away = error.metadata.get("parts", "").split(",") if error.metadata.get("parts") else parts
    named = ", ".join(away)
    since = error.metadata.get("since")
    text = error.message if CENTRE in error.message else f"{CENTRE} cannot be reached: {error.message}"
    return DependencyDown(
        f"the part{'s' if len(away) > 1 else ''} {named} would have to be converted by {CENTRE}: {text}",
        metadata={
            **error.metadata,
            "dependency": CENTRE,
            "parts": ",".join(away),
            **({"since": since} if since else {}),
        },
        retry_after=error.retry_after or _RETRY_AFTER,
    )
