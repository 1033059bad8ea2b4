"""The durable side of the hand-over, as decisions need it: what they rest on, and the change that they make."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from skerry.handover.v1.plan_pb2 import PartEvidence, Plan, PlanChange
from skerry.store.v1 import plan_store_pb2 as store

from services.config_converter.handover import Change, Situation, entry_of
from services.runtime.errors import Conflict

if TYPE_CHECKING:
    from skerry.store.v1.plan_store_pb2_grpc import PlanStoreAsyncStub

ATTEMPTS = 5
"""How often a decision is made again because another one came before it."""
TIMEOUT = 5.0

Decide = Callable[[Situation], Awaitable[Change | None]]
"""Makes a decision. None when there is nothing to change."""


class Ledger:
    """Reads and changes the plan in the store."""

    def __init__(self, plans: PlanStoreAsyncStub) -> None:
        self._plans = plans

    async def plan(self, timeout: float = TIMEOUT) -> Plan:
        """The present plan."""
        return (await self._plans.GetPlan(store.GetPlanRequest(), timeout=timeout)).plan

    async def situation(self) -> Situation:
        """The present plan, what comparing has shown, and who can serve what."""
        # The plan first: what is read after it is not older than it.
        plan = await self.plan()
        evidence, converters = await asyncio.gather(
            self._plans.ListEvidence(store.ListEvidenceRequest(), timeout=TIMEOUT),
            self._plans.ListConverters(store.ListConvertersRequest(), timeout=TIMEOUT),
        )
        return Situation(
            plan,
            {found.part: found for found in evidence.evidence},
            {converter.name: frozenset(converter.serves) for converter in converters.converters},
        )

    async def change(self, decide: Decide, who: str) -> tuple[Plan, PlanChange]:
        """Decide on the present situation, and change the plan; decides again when the plan changed in between.

        Returns the plan and the change (of the first entry; empty when there was nothing to change). Raises what
        `decide` raises, and Conflict when the plan does not stand still.
        """
        for attempt in range(ATTEMPTS):
            situation = await self.situation()
            change = await decide(situation)
            if change is None:
                return situation.plan, PlanChange()
            request = store.ChangePlanRequest(
                expected_epoch=situation.plan.epoch,
                parts=change.entries,
                who=who,
                why=change.why,
                evidence_json=change.evidence,
            )
            try:
                plan = (await self._plans.ChangePlan(request, timeout=TIMEOUT)).plan
            except Conflict:
                if attempt == ATTEMPTS - 1:
                    raise
                continue
            return plan, _change_of(situation.plan, plan, change, who)
        raise AssertionError("the last attempt returns or raises")

    async def record(self, comparisons: list[store.Comparisons]) -> dict[str, PartEvidence]:
        """Keep what comparing has shown; returns the evidence of the parts with it."""
        request = store.RecordComparisonsRequest(comparisons=comparisons)
        answer = await self._plans.RecordComparisons(request, timeout=TIMEOUT)
        return {found.part: found for found in answer.evidence}


def _change_of(before: Plan, after: Plan, change: Change, who: str) -> PlanChange:
    part = change.entries[0].part
    return PlanChange(
        epoch=after.epoch,
        at=entry_of(after, part).since,
        who=who,
        why=change.why,
        before=entry_of(before, part),
        after=entry_of(after, part),
        evidence_json=change.evidence,
    )
