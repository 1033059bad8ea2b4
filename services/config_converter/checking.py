"""Comparing off the requests' path: what is compared, what is reported, and moving a part back by itself."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Never

from prometheus_client import Counter, Gauge
from skerry.handover.v1.plan_pb2 import PART_MODE_LOCAL, Difference, PartPlan
from skerry.store.v1.plan_store_pb2 import Comparisons
from skerry.sync.v1.sync_pb2 import CentralPart

from services.config_converter.comparing import Outcome, compare, outcome_here
from services.config_converter.handover import (
    AUTOMATIC,
    BY_THE_REGION,
    Change,
    Situation,
    automatic_reversion,
    entry_of,
    evidence_for,
    should_revert,
)
from services.config_converter.ledger import Ledger
from services.config_converter.part import Part
from services.config_converter.planned import Ask, Recipe, Requests, Seen
from services.config_converter.settings import HandoverSettings
from services.runtime import telemetry
from services.runtime.clock import Clock
from services.runtime.errors import Conflict, SkerryError, WrongState
from services.runtime.tasks import run_forever
from services.runtime.telemetry import log

MOST_HASHES = 10_000
MOST_DIFFERENCES = 500
"""Comparisons and differences of a part that wait for the store."""

_compared = Counter(
    "skerry_comparisons_total",
    "Conversions of a part that were compared, by outcome: same, different, unanswered (by the other owner).",
    ["cell", "part", "outcome"],
    registry=telemetry.metrics,
)
_dropped = Counter(
    "skerry_comparisons_dropped_total",
    "Conversions that were to be compared and were not, since too many waited.",
    ["cell"],
    registry=telemetry.metrics,
)
_alert = Gauge(
    "skerry_handover_disagreement",
    "1 while the region's converter of a part disagrees with its other owner and there is no way back by itself.",
    ["cell", "part"],
    registry=telemetry.metrics,
)


class Checker:
    """Takes conversions in, compares them in the background, reports, and reverts."""

    def __init__(
        self,
        parts: Sequence[Part],
        requests: Requests,
        ask: Ask,
        ledger: Ledger,
        recipe: Callable[[], Recipe | None],
        *,
        cell: str,
        clock: Clock,
        settings: HandoverSettings,
    ) -> None:
        """`recipe` gives the present one."""
        self._parts = {part.name: part for part in parts}
        self._requests = requests
        self._ask = ask
        self._ledger = ledger
        self._recipe = recipe
        self._cell = cell
        self._clock = clock
        self._settings = settings
        self._queue: asyncio.Queue[tuple[Seen, int]] = asyncio.Queue(settings.waiting_comparisons)
        self._bytes = 0
        self._under_way = 0
        self._pending: dict[str, Comparisons] = {}
        self._overdue: set[str] = set()
        self._refusals: dict[tuple[str, int], int] = {}
        self._alerted: dict[str, int] = {}
        self.dropped = 0
        """Conversions that were not compared, since too many waited."""

    def observe(self, seen: Seen) -> None:
        """See Observer."""
        size = seen.config.ByteSize()
        if self._queue.full() or self._bytes + size > self._settings.waiting_bytes:
            self.dropped += 1
            _dropped.labels(self._cell).inc()
            return
        self._bytes += size
        self._queue.put_nowait((seen, size))

    @property
    def idle(self) -> bool:
        """Nothing waits to be compared or reported."""
        return not (self._queue.qsize() or self._under_way or self._pending or self._overdue)

    async def run(self) -> Never:
        """Compare and report until cancelled."""
        comparing = {f"comparing_{i}": self._keep_comparing() for i in range(self._settings.comparing)}
        await run_forever(reporting=self._keep_reporting(), **comparing)

    async def _keep_comparing(self) -> Never:
        while True:
            seen, size = await self._queue.get()
            self._under_way += 1
            try:
                await self._compare(seen)
            except SkerryError as error:
                log.warning("comparison_failed", why=error.message)
            finally:
                self._bytes -= size
                self._under_way -= 1

    async def _compare(self, seen: Seen) -> None:
        by_centre: list[tuple[PartPlan, Outcome]] = []
        for entry in seen.entries:
            here = self._here(entry, entry.local_version, seen)
            if here is None or (seen.refused and (here.accepted or not self._may_check(entry))):
                continue
            if not entry.sealed_by:
                by_centre.append((entry, here))
            elif there := self._here(entry, entry.previous_local_version, seen):
                self._note(entry, here, there, seen)
        if not by_centre:
            return
        answers = seen.answers
        if answers is None:
            answers = await self._answers([entry for entry, _ in by_centre], seen)
        for entry, here in by_centre:
            answer = answers.get(entry.part)
            if answer is None or answer.not_served or answer.version not in entry.central_versions:
                self._count(entry.part, "unanswered")
            else:
                self._note(entry, here, _outcome_there(answer), seen)

    def _here(self, entry: PartPlan, version: int, seen: Seen) -> Outcome | None:
        part = self._parts.get(entry.part)
        convert = part.converters.get(version) if part else None
        if convert is None:
            return None
        try:
            return outcome_here(convert, version, seen.config, seen.facts)
        except Exception as error:
            # A converter that is not in charge of answers yet must not take down one that is.
            log.error("converter_failed", part=entry.part, version=version, exc_info=error)
            return Outcome(version, refusal=f"the converter failed: {type(error).__name__}")

    def _may_check(self, entry: PartPlan) -> bool:
        """Refusals of a local part are checked in a bounded number, counted anew after each promotion."""
        if entry.mode != PART_MODE_LOCAL:
            return True
        key = (entry.part, entry.since_epoch)
        if key not in self._refusals:
            self._refusals = {(part, since): n for (part, since), n in self._refusals.items() if part != entry.part}
        checked = self._refusals.get(key, 0)
        self._refusals[key] = checked + 1
        return checked < self._settings.watched_refusals

    async def _answers(self, entries: Sequence[PartPlan], seen: Seen) -> dict[str, CentralPart]:
        try:
            response = await self._ask(self._requests.of(entries, seen.config, seen.context, seen.facts))
        except SkerryError:
            # Counted as unanswered. The centre's own breaker tells the log once.
            return {}
        return {answer.part: answer for answer in response.parts}

    def _note(self, entry: PartPlan, here: Outcome, there: Outcome, seen: Seen) -> None:
        pending = self._pending.get(entry.part)
        if pending is None or pending.since_epoch < entry.since_epoch:
            pending = self._pending[entry.part] = Comparisons(part=entry.part, since_epoch=entry.since_epoch)
        elif pending.since_epoch > entry.since_epoch:
            return
        found = compare(entry.part, here, there)
        self._count(entry.part, "different" if found else "same")
        if len(pending.input_hashes) >= MOST_HASHES or (found and len(pending.differences) >= MOST_DIFFERENCES):
            self.dropped += 1
            _dropped.labels(self._cell).inc()
            return
        hashed = self._requests.input_hash(entry.part, seen.config, seen.facts)
        pending.input_hashes.append(hashed)
        if found is not None:
            _fill(found, entry, hashed, seen)
            pending.differences.append(found)
            if len(pending.differences) == 1:
                log.warning(
                    "conversions_differ",
                    part=entry.part,
                    field=found.field,
                    app=found.app_name,
                    local_version=found.local_version,
                    central_version=found.central_version,
                )

    def _count(self, part: str, outcome: str) -> None:
        _compared.labels(self._cell, part, outcome).inc()

    async def _keep_reporting(self) -> Never:
        while True:
            await self._clock.sleep(self._settings.report_every)
            if self._pending:
                await self._report()
            for part in sorted(self._overdue):
                await self._revert(part)

    async def _report(self) -> None:
        reported, self._pending = self._pending, {}
        try:
            evidence = await self._ledger.record([*reported.values()])
        except SkerryError as error:
            log.warning("comparisons_wait_for_store", why=error.message)
            self._put_back(reported)
            return
        settings, recipe = self._settings, self._recipe()
        for part, found in evidence.items():
            entry = recipe.entries.get(part) if recipe else None
            if entry is None or entry.mode not in BY_THE_REGION or found.since_epoch < entry.since_epoch:
                continue
            if should_revert(found, disagreements=settings.disagreements, apps=settings.disagreeing_apps):
                self._overdue.add(part)
            elif self._alerted.pop(part, None) is not None:
                _alert.labels(self._cell, part).set(0)

    def _put_back(self, reported: dict[str, Comparisons]) -> None:
        for part, comparisons in reported.items():
            newer = self._pending.get(part)
            if newer is None:
                self._pending[part] = comparisons
            elif newer.since_epoch == comparisons.since_epoch:
                newer.input_hashes.extend(comparisons.input_hashes[: MOST_HASHES - len(newer.input_hashes)])
                newer.differences.extend(comparisons.differences[: MOST_DIFFERENCES - len(newer.differences)])

    async def _revert(self, part: str) -> None:
        try:
            plan, change = await self._ledger.change(lambda situation: self._reversion(situation, part), AUTOMATIC)
        except WrongState as error:
            self._overdue.discard(part)
            self._raise_alarm(part, error.message)
        except Conflict as error:
            log.warning("handover_reverts_later", part=part, why=error.message)
        except SkerryError as error:
            log.warning("handover_reverts_later", part=part, why=error.message)
        else:
            self._overdue.discard(part)
            if change.epoch:
                _alert.labels(self._cell, part).set(0)
                log.error("handover_reverted", part=part, why=change.why, epoch=plan.epoch)

    async def _reversion(self, situation: Situation, part: str) -> Change | None:
        entry = entry_of(situation.plan, part)
        evidence, settings = evidence_for(entry, situation.evidence), self._settings
        needed = should_revert(evidence, disagreements=settings.disagreements, apps=settings.disagreeing_apps)
        if entry.mode not in BY_THE_REGION or not needed:
            # Another instance has seen to it, or an operator.
            return None
        return automatic_reversion(situation, part)

    def _raise_alarm(self, part: str, why: str) -> None:
        recipe = self._recipe()
        since = recipe.entries[part].since_epoch if recipe and part in recipe.entries else 0
        _alert.labels(self._cell, part).set(1)
        if self._alerted.get(part) != since:
            self._alerted[part] = since
            log.error("handover_disagreement", part=part, why=why)


def _outcome_there(answer: CentralPart) -> Outcome:
    if answer.violations:
        return Outcome(answer.version, refusal="; ".join(f"{v.field} {v.why}" for v in answer.violations))
    return Outcome(answer.version, getattr(answer.spec, answer.part))


def _fill(found: Difference, entry: PartPlan, hashed: bytes, seen: Seen) -> None:
    found.app_name = seen.context.app_name
    found.machine_id = seen.context.machine_id
    found.mode = entry.mode
    found.input_hash = hashed
