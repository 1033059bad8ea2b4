"""The rules of the hand-over: what may become of an entry of the plan, and what it takes.

Entries go in, new entries come out, or an error that has every reason against it. Nothing here is written anywhere.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from skerry.handover.v1.plan_pb2 import (
    PART_MODE_CENTRAL,
    PART_MODE_LOCAL,
    PART_MODE_LOCAL_CHECKED,
    PART_MODE_SHADOW,
    PartEvidence,
    PartMode,
    PartPlan,
    Plan,
)

from services.runtime.errors import InvalidConfig, PromotionRefused, SealRefused, Violation, WrongState

AUTOMATIC = "automatic"
"""Who changes a plan when nobody does."""

NEXT: Mapping[PartMode.ValueType, PartMode.ValueType] = {
    PART_MODE_CENTRAL: PART_MODE_SHADOW,
    PART_MODE_SHADOW: PART_MODE_LOCAL_CHECKED,
    PART_MODE_LOCAL_CHECKED: PART_MODE_LOCAL,
}
"""A promotion goes one mode on."""

MODE_NAMES: Mapping[PartMode.ValueType, str] = {
    PART_MODE_CENTRAL: "central",
    PART_MODE_SHADOW: "shadow",
    PART_MODE_LOCAL_CHECKED: "local-checked",
    PART_MODE_LOCAL: "local",
}

BY_THE_CENTRE = frozenset({PART_MODE_CENTRAL, PART_MODE_SHADOW})
BY_THE_REGION = frozenset({PART_MODE_LOCAL_CHECKED, PART_MODE_LOCAL})

Serving = Mapping[str, frozenset[str]]
"""Live converters by name, and what each can serve, as part@version."""


@dataclass(frozen=True, slots=True)
class BacktestSummary:
    """What converting every stored configuration again has shown."""

    version: int
    converted: int
    changed: int
    examples: tuple[str, ...] = ()
    """Ids of some machines whose spec would change."""


@dataclass(frozen=True, slots=True)
class Situation:
    """What a decision rests on."""

    plan: Plan
    evidence: Mapping[str, PartEvidence] = field(default_factory=dict)
    serving: Serving = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Change:
    """New entries of the plan, why, and what they rest on (JSON)."""

    entries: tuple[PartPlan, ...]
    why: str
    evidence: str = "{}"


def served(part: str, version: int) -> str:
    """How a converter says what it can serve."""
    return f"{part}@{version}"


def entry_of(plan: Plan, part: str) -> PartPlan:
    """The entry of a part. Raises InvalidConfig when the plan has none."""
    for entry in plan.parts:
        if entry.part == part:
            return entry
    names = ", ".join(entry.part for entry in plan.parts)
    raise InvalidConfig(
        f"there is no part {part!r}; the plan has {names}", violations=[Violation("part", f"must be one of {names}")]
    )


def promoted(entry: PartPlan, version: int = 0) -> PartPlan:
    """The entry after a promotion: one mode on, or (with a version) at another local version.

    With a version, a central part goes to shadow with it, and every other part stays in its mode.
    Raises PromotionRefused when there is nothing to promote to.
    """
    after = PartPlan()
    after.CopyFrom(entry)
    if not version or entry.mode == PART_MODE_CENTRAL:
        if entry.mode not in NEXT:
            raise PromotionRefused(
                f"{entry.part} is not promoted: it is {MODE_NAMES[entry.mode]} already; "
                "another version of it takes --version"
            )
        after.mode = NEXT[entry.mode]
        after.local_version = version or entry.local_version
        return after
    if version == entry.local_version:
        raise PromotionRefused(f"{entry.part} is not promoted: it is at version {version} already")
    after.local_version = version
    if entry.mode in BY_THE_REGION:
        after.previous_local_version = entry.local_version
    return after


def needs_backtest(after: PartPlan) -> bool:
    """Whether a promotion hands answers over to a converter that did not give them before."""
    return after.mode in BY_THE_REGION


def needs_comparisons(before: PartPlan, after: PartPlan) -> bool:
    """Whether a promotion rests on conversions that were compared with the centre."""
    return before.mode != after.mode and before.mode != PART_MODE_CENTRAL


def reasons_against(
    before: PartPlan,
    after: PartPlan,
    situation: Situation,
    min_compared: int,
) -> list[str]:
    """Everything that speaks against a promotion, but for its backtest."""
    reasons = cannot_serve(after, situation.serving)
    if needs_comparisons(before, after):
        evidence = evidence_for(before, situation.evidence)
        if evidence.compared < min_compared:
            reasons.append(f"{evidence.compared} conversions were compared, {min_compared} are needed")
        if evidence.different:
            reasons.append(
                f"{evidence.different} of {evidence.compared} compared conversions differ: see `skerry handover diff`"
            )
    return reasons


def cannot_serve(entry: PartPlan, serving: Serving) -> list[str]:
    """Live converters that cannot serve the region's version of an entry, as reasons against it."""
    wanted = served(entry.part, entry.local_version)
    if not serving:
        return ["no converter has told what it can serve"]
    unable = sorted(name for name, serves in serving.items() if wanted not in serves)
    return [f"the converter {name} cannot serve {wanted}" for name in unable]


def evidence_for(entry: PartPlan, evidence: Mapping[str, PartEvidence]) -> PartEvidence:
    """What comparing has shown of an entry as it is now; nothing, if what there is belongs to an earlier one."""
    found = evidence.get(entry.part)
    if found is None or found.since_epoch < entry.since_epoch:
        return PartEvidence(part=entry.part, since_epoch=entry.since_epoch)
    return found


def promotion(
    situation: Situation,
    part: str,
    *,
    version: int = 0,
    min_compared: int,
    backtest: BacktestSummary | None = None,
) -> Change:
    """The change that promotes a part.

    Raises PromotionRefused with every reason, and BacktestMissing when nothing but the backtest is missing;
    InvalidConfig for a part that the plan does not have.
    """
    before = entry_of(situation.plan, part)
    after = promoted(before, version)
    reasons = reasons_against(before, after, situation, min_compared)
    if needs_backtest(after):
        if backtest is None or backtest.version != after.local_version:
            if not reasons:
                raise BacktestMissing(part, after.local_version)
        elif backtest.changed:
            shown = ", ".join(backtest.examples)
            reasons.append(
                f"the backtest changes {backtest.changed} of {backtest.converted} stored specs, such as {shown}"
            )
    step = _step(before, after)
    if reasons:
        raise PromotionRefused(f"{part} is not promoted ({step}): {'; '.join(reasons)}", metadata={"part": part})
    evidence = evidence_for(before, situation.evidence)
    rests_on: dict[str, object] = {"instances": sorted(situation.serving)}
    if needs_comparisons(before, after):
        rests_on |= {
            "compared": evidence.compared,
            "distinct_inputs": evidence.distinct_inputs,
            "different": evidence.different,
            "min_compared": min_compared,
        }
    if backtest is not None:
        rests_on["backtest"] = {
            "version": backtest.version,
            "converted": backtest.converted,
            "changed": backtest.changed,
        }
    return Change((after,), f"promoted, {step}", json.dumps(rests_on))


class BacktestMissing(Exception):
    """Only a backtest of the part's version speaks neither for nor against a promotion yet."""

    def __init__(self, part: str, version: int) -> None:
        super().__init__(f"{part}@{version} was not backtested")
        self.part = part
        self.version = version


def _step(before: PartPlan, after: PartPlan) -> str:
    if before.mode != after.mode:
        return f"{MODE_NAMES[before.mode]} to {MODE_NAMES[after.mode]}"
    return f"version {before.local_version} to {after.local_version}"


def reversion(situation: Situation, part: str, why: str) -> Change:
    """The change that moves a part back by an operator's word: to the centre, or a sealed one to its version before.

    Raises WrongState when there is no way back, and InvalidConfig for a part that the plan does not have.
    """
    entry = entry_of(situation.plan, part)
    if entry.sealed_by:
        return Change((_version_before(entry, situation.serving),), why or "reverted to the version before")
    if entry.mode == PART_MODE_CENTRAL:
        raise WrongState(f"{part} is central already")
    if not entry.central_versions:
        raise WrongState(f"{part} cannot go back to the centre: the plan allows no version of the centre's converter")
    after = PartPlan()
    after.CopyFrom(entry)
    after.mode = PART_MODE_CENTRAL
    return Change((after,), why or "reverted")


def _version_before(entry: PartPlan, serving: Serving) -> PartPlan:
    sealed = f"{entry.part} is sealed by {', '.join(entry.sealed_by)}, so it never goes back to the centre"
    if not entry.previous_local_version:
        raise WrongState(f"{sealed}, and there is no local version before {entry.local_version}")
    after = PartPlan()
    after.CopyFrom(entry)
    after.local_version = entry.previous_local_version
    after.previous_local_version = 0
    reasons = cannot_serve(after, serving)
    if reasons:
        raise WrongState(f"{sealed}, and not to the version before: {'; '.join(reasons)}")
    return after


def should_revert(evidence: PartEvidence, *, disagreements: int, apps: int) -> bool:
    """Whether what comparing has shown moves a part back by itself: one user's oddity does not."""
    return evidence.different >= disagreements and evidence.different_apps >= apps


def automatic_reversion(situation: Situation, part: str) -> Change:
    """The change that moves a part back by itself: to shadow, where comparing goes on, or to the version before.

    Raises WrongState when there is no way back, or no need for one: the region does not convert the part.
    """
    entry = entry_of(situation.plan, part)
    evidence = evidence_for(entry, situation.evidence)
    if entry.mode not in BY_THE_REGION:
        raise WrongState(f"{part} is {MODE_NAMES[entry.mode]}: the region's answers are not used")
    why = f"{evidence.different} disagreements from {evidence.different_apps} apps"
    counts = json.dumps(
        {
            "compared": evidence.compared,
            "different": evidence.different,
            "different_apps": evidence.different_apps,
        }
    )
    if entry.sealed_by:
        return Change((_version_before(entry, situation.serving),), why, counts)
    if not entry.central_versions:
        raise WrongState(f"{part} cannot go back: the plan allows no version of the centre's converter")
    after = PartPlan()
    after.CopyFrom(entry)
    after.mode = PART_MODE_SHADOW
    return Change((after,), why, counts)


def sealing(plan: Plan, parts: Iterable[str], release: str) -> Change | None:
    """The change that seals parts for a release of the centre; None when they are already.

    Raises SealRefused with every reason.
    """
    names, entries, reasons = {entry.part: entry for entry in plan.parts}, [], []
    if not release:
        raise SealRefused("a seal names the release of the centre that it is for")
    for part in dict.fromkeys(parts):
        entry = names.get(part)
        if entry is None:
            reasons.append(f"the plan has no part {part}")
        elif entry.mode != PART_MODE_LOCAL:
            reasons.append(f"{part} is {MODE_NAMES[entry.mode]}, not local")
        elif release not in entry.sealed_by:
            after = PartPlan()
            after.CopyFrom(entry)
            after.sealed_by.append(release)
            entries.append(after)
    if reasons:
        raise SealRefused(f"nothing is sealed: {'; '.join(reasons)}")
    return Change(tuple(entries), f"sealed for the release {release} of the centre") if entries else None


def sealed_parts(plan: Plan, parts: Sequence[str], release: str) -> list[PartPlan]:
    """Entries that an unsealing is about: those of `parts` (all when empty) that the release sealed (any when empty).

    Raises InvalidConfig for a part that the plan does not have, and when nothing says which.
    """
    if not parts and not release:
        raise InvalidConfig(
            "unsealing takes parts or a release", violations=[Violation("parts", "must name a part, or release be set")]
        )
    wanted = [entry_of(plan, part) for part in dict.fromkeys(parts)] if parts else list(plan.parts)
    return [entry for entry in wanted if entry.sealed_by and (not release or release in entry.sealed_by)]


def unsealing(sealed: Sequence[PartPlan], release: str, central: Mapping[str, Iterable[int]] | None) -> Change | None:
    """The change that lifts seals of `sealed`; None when there are none.

    With a release only its own seal is lifted. Without one, every seal is, but only of parts that the centre converts:
    `central` maps them to its versions. Raises SealRefused with every reason.
    """
    entries, reasons = [], []
    for entry in sealed:
        after = PartPlan()
        after.CopyFrom(entry)
        del after.sealed_by[:]
        if release:
            after.sealed_by.extend(name for name in entry.sealed_by if name != release)
        else:
            versions = sorted((central or {}).get(entry.part, ()))
            if not versions:
                reasons.append(f"the centre does not convert {entry.part}")
            elif not set(versions) & set(entry.central_versions):
                reasons.append(
                    f"the centre converts {entry.part} at {_versions(versions)}, "
                    f"the plan allows {_versions(entry.central_versions)}"
                )
        entries.append(after)
    if reasons:
        raise SealRefused(f"no seal is lifted: {'; '.join(reasons)}")
    why = f"the seal of the release {release} is lifted" if release else "unsealed"
    return Change(tuple(entries), why) if entries else None


def _versions(versions: Iterable[int]) -> str:
    return f"version {', '.join(map(str, versions))}" if versions else "no version"


def allowing(plan: Plan, versions: Mapping[str, Iterable[int]]) -> Change | None:
    """The change that allows these versions of the centre's converter; None when they are.

    Raises InvalidConfig for a part that the plan does not have, and WrongState with every reason where a part that the
    centre converts would be left without a version.
    """
    entries, reasons = [], []
    for part, asked in versions.items():
        entry = entry_of(plan, part)
        wanted = sorted(set(asked))
        if not wanted and entry.mode in BY_THE_CENTRE:
            reasons.append(f"{part} is {MODE_NAMES[entry.mode]} and needs a version")
        if 0 in wanted:
            reasons.append(f"{part}: versions begin with 1")
        if wanted != list(entry.central_versions):
            after = PartPlan()
            after.CopyFrom(entry)
            del after.central_versions[:]
            after.central_versions.extend(wanted)
            entries.append(after)
    if reasons:
        raise WrongState(f"the versions of the centre stay as they are: {'; '.join(reasons)}")
    return Change(tuple(entries), "versions of the centre's converter") if entries else None
