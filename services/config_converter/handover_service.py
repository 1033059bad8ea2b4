"""The hand-over as a service: messages in, decisions on what the store knows, messages out."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import grpc
from skerry.handover.v1 import handover_pb2 as api
from skerry.handover.v1.handover_pb2_grpc import HandoverServicer
from skerry.store.v1 import plan_store_pb2 as store
from skerry.sync.v1.sync_pb2 import GetCentralConverterRequest, GetCentralConverterResponse

from services.config_converter.backtest import Progress, backtest, summary_of, tested
from services.config_converter.handover import (
    BacktestMissing,
    BacktestSummary,
    Change,
    Situation,
    allowing,
    entry_of,
    evidence_for,
    promotion,
    reversion,
    sealed_parts,
    sealing,
    unsealing,
)
from services.config_converter.ledger import TIMEOUT, Ledger
from services.config_converter.part import Facts, Part
from services.config_converter.settings import HandoverSettings
from services.runtime.telemetry import log

if TYPE_CHECKING:
    from skerry.store.v1.plan_store_pb2_grpc import PlanStoreAsyncStub

NOBODY = "unknown"
DEFAULT_LIMIT = 50
MOST_LISTED = 1_000
BACKTEST_TIMEOUT = 3_600.0

_Context = grpc.aio.ServicerContext[Any, Any]


class HandoverService(HandoverServicer):
    """Serves skerry.handover.v1.Handover."""

    def __init__(
        self,
        plans: PlanStoreAsyncStub,
        central_converter: Callable[[GetCentralConverterRequest], Awaitable[GetCentralConverterResponse]],
        parts: Sequence[Part],
        facts_of: Callable[[str], Facts],
        settings: HandoverSettings,
    ) -> None:
        """`facts_of` gives the facts for the name of an app."""
        self._plans = plans
        self._ledger = Ledger(plans)
        self._central_converter = central_converter
        self._parts = parts
        self._facts_of = facts_of
        self._settings = settings

    async def GetStatus(self, _request: api.GetStatusRequest, _context: _Context) -> api.GetStatusResponse:
        """The plan, what comparing has shown of its entries as they are, and the converters that live."""
        situation = await self._ledger.situation()
        converters = await self._plans.ListConverters(store.ListConvertersRequest(), timeout=TIMEOUT)
        return api.GetStatusResponse(
            plan=situation.plan,
            evidence=[evidence_for(entry, situation.evidence) for entry in situation.plan.parts],
            instances=[
                api.ConverterInstance(
                    name=c.name,
                    serves=c.serves,
                    applied_epoch=c.applied_epoch,
                    unserved_conversions=c.unserved_conversions,
                )
                for c in converters.converters
            ],
        )

    async def Promote(self, request: api.PromoteRequest, _context: _Context) -> api.PromoteResponse:
        """Move a part on; runs the backtest, where the step needs one. Raises PromotionRefused, InvalidConfig."""
        summary: BacktestSummary | None = None

        async def decide(situation: Situation) -> Change:
            nonlocal summary
            while True:
                try:
                    return promotion(
                        situation,
                        request.part,
                        version=request.version,
                        min_compared=request.min_compared or self._settings.min_compared,
                        backtest=summary,
                    )
                except BacktestMissing as missing:
                    summary = await self._backtested(missing.part, missing.version)
                    # It took its time: what else speaks against it now?
                    situation = await self._ledger.situation()

        plan, change = await self._ledger.change(decide, request.who or NOBODY)
        log.info("handover_promoted", part=request.part, who=change.who, why=change.why, epoch=plan.epoch)
        return api.PromoteResponse(plan=plan, change=change)

    async def Revert(self, request: api.RevertRequest, _context: _Context) -> api.RevertResponse:
        """Move a part back. Raises WrongState when there is no way back."""

        async def decide(situation: Situation) -> Change:
            return reversion(situation, request.part, request.why)

        plan, change = await self._ledger.change(decide, request.who or NOBODY)
        log.info("handover_reverted", part=request.part, who=change.who, why=change.why, epoch=plan.epoch)
        return api.RevertResponse(plan=plan, change=change)

    async def Seal(self, request: api.SealRequest, _context: _Context) -> api.SealResponse:
        """Seal parts for a release of the centre. Idempotent. Raises SealRefused."""

        async def decide(situation: Situation) -> Change | None:
            return sealing(situation.plan, request.parts, request.release)

        plan, _ = await self._ledger.change(decide, request.who or NOBODY)
        log.info("handover_sealed", parts=[*request.parts], release=request.release, epoch=plan.epoch)
        return api.SealResponse(plan=plan)

    async def Unseal(self, request: api.UnsealRequest, _context: _Context) -> api.UnsealResponse:
        """Lift seals. Idempotent. Raises SealRefused, and DependencyDown when the centre is to be asked and is away."""

        async def decide(situation: Situation) -> Change | None:
            sealed = sealed_parts(situation.plan, request.parts, request.release)
            central: dict[str, list[int]] | None = None
            if sealed and not request.release:
                central = {}
                for made in (await self._central_converter(GetCentralConverterRequest())).parts:
                    central.setdefault(made.part, []).append(made.version)
            return unsealing(sealed, request.release, central)

        plan, _ = await self._ledger.change(decide, request.who or NOBODY)
        log.info("handover_unsealed", parts=[*request.parts], release=request.release, epoch=plan.epoch)
        return api.UnsealResponse(plan=plan)

    async def SetCentralVersions(
        self, request: api.SetCentralVersionsRequest, _context: _Context
    ) -> api.SetCentralVersionsResponse:
        """Allow versions of the centre's converter. Idempotent. Raises WrongState, InvalidConfig."""

        async def decide(situation: Situation) -> Change | None:
            return allowing(situation.plan, {asked.part: asked.versions for asked in request.parts})

        plan, _ = await self._ledger.change(decide, request.who or NOBODY)
        return api.SetCentralVersionsResponse(plan=plan)

    async def ListDifferences(
        self, request: api.ListDifferencesRequest, _context: _Context
    ) -> api.ListDifferencesResponse:
        """The newest differences."""
        found = await self._plans.ListDifferences(
            store.ListDifferencesRequest(part=request.part, limit=_limit(request.limit)), timeout=TIMEOUT
        )
        return api.ListDifferencesResponse(differences=found.differences)

    async def ListPlanChanges(
        self, request: api.ListPlanChangesRequest, _context: _Context
    ) -> api.ListPlanChangesResponse:
        """Who changed the plan."""
        found = await self._plans.ListPlanChanges(
            store.ListPlanChangesRequest(part=request.part, limit=_limit(request.limit)), timeout=TIMEOUT
        )
        return api.ListPlanChangesResponse(changes=found.changes)

    async def Backtest(self, request: api.BacktestRequest, _context: _Context) -> AsyncIterator[api.BacktestResponse]:
        """Convert every stored configuration again. Raises InvalidConfig for what cannot be served here."""
        async with aclosing(await self._backtest(request.part, request.version, request.resume_after)) as progresses:
            async for progress in progresses:
                yield api.BacktestResponse(
                    converted=progress.converted,
                    total=progress.total,
                    changed=progress.newly_changed,
                    changed_total=progress.changed,
                    resume_after=progress.resume_after or request.resume_after,
                    done=progress.done,
                )

    async def _backtested(self, part: str, version: int) -> BacktestSummary:
        async with aclosing(await self._backtest(part, version, "")) as progresses:
            summary = await summary_of(version, progresses)
        log.info(
            "handover_backtested",
            part=part,
            version=version,
            converted=summary.converted,
            changed=summary.changed,
        )
        return summary

    async def _backtest(self, part: str, version: int, resume_after: str) -> AsyncGenerator[Progress, None]:
        plan = await self._ledger.plan()
        converters = tested(self._parts, part, version, lambda name: entry_of(plan, name).local_version)
        request = store.ListConfigurationsRequest(after_machine_id=resume_after)
        responses = self._plans.ListConfigurations(request, timeout=BACKTEST_TIMEOUT)
        return backtest(responses.__aiter__(), converters, self._facts_of)


def _limit(asked: int) -> int:
    return min(asked, MOST_LISTED) if asked > 0 else DEFAULT_LIMIT
