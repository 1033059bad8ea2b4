"""The servicer of the plan: messages to what the domain does, and back."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, TypeAlias

import grpc
from skerry.store.v1 import plan_store_pb2 as pb
from skerry.store.v1 import plan_store_pb2_grpc

from services.machine_store.conversions import Conversions
from services.machine_store.plan import Plans

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]


class PlanStoreService(plan_store_pb2_grpc.PlanStoreServicer):
    """The plan, its evidence, and conversions."""

    def __init__(self, plans: Plans, conversions: Conversions) -> None:
        self._plans = plans
        self._conversions = conversions

    async def GetPlan(self, request: pb.GetPlanRequest, context: Context) -> pb.GetPlanResponse:
        return pb.GetPlanResponse(plan=await self._plans.get())

    async def ChangePlan(self, request: pb.ChangePlanRequest, context: Context) -> pb.ChangePlanResponse:
        plan = await self._plans.change(
            request.expected_epoch, request.parts, who=request.who, why=request.why, evidence=request.evidence_json
        )
        return pb.ChangePlanResponse(plan=plan)

    async def ListPlanChanges(self, request: pb.ListPlanChangesRequest, context: Context) -> pb.ListPlanChangesResponse:
        return pb.ListPlanChangesResponse(changes=await self._plans.changes(request.part, request.limit))

    async def RecordComparisons(
        self, request: pb.RecordComparisonsRequest, context: Context
    ) -> pb.RecordComparisonsResponse:
        return pb.RecordComparisonsResponse(evidence=await self._plans.record(request.comparisons))

    async def ListEvidence(self, request: pb.ListEvidenceRequest, context: Context) -> pb.ListEvidenceResponse:
        return pb.ListEvidenceResponse(evidence=await self._plans.evidence())

    async def ListDifferences(self, request: pb.ListDifferencesRequest, context: Context) -> pb.ListDifferencesResponse:
        return pb.ListDifferencesResponse(differences=await self._plans.differences(request.part, request.limit))

    async def RegisterConverter(
        self, request: pb.RegisterConverterRequest, context: Context
    ) -> pb.RegisterConverterResponse:
        await self._plans.register(request)
        return pb.RegisterConverterResponse()

    async def ListConverters(self, request: pb.ListConvertersRequest, context: Context) -> pb.ListConvertersResponse:
        return pb.ListConvertersResponse(converters=await self._plans.converters())

    async def LookupConversions(
        self, request: pb.LookupConversionsRequest, context: Context
    ) -> pb.LookupConversionsResponse:
        return pb.LookupConversionsResponse(found=await self._conversions.lookup(request.wanted))

    async def KeepConversions(self, request: pb.KeepConversionsRequest, context: Context) -> pb.KeepConversionsResponse:
        await self._conversions.keep(request.conversions)
        return pb.KeepConversionsResponse()

    async def ListConfigurations(
        self, request: pb.ListConfigurationsRequest, context: Context
    ) -> AsyncIterator[pb.ListConfigurationsResponse]:
        async for listed in self._conversions.configurations(request.after_machine_id):
            yield pb.ListConfigurationsResponse(configurations=listed.configurations, total=listed.total)
