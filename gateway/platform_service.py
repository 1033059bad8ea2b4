"""The servicers of the platform and of organizations: messages to what the gateway does, and back."""

from __future__ import annotations

from typing import Any

from skerry.machines.v1 import organizations_pb2, organizations_pb2_grpc, platform_pb2_grpc
from skerry.machines.v1 import platform_pb2 as api

from gateway.apps import Catalog
from gateway.organizations import get_organization
from gateway.platform import list_regions, simulate_placements
from gateway.routing import tell_unreachable
from gateway.surroundings import Surroundings


class PlatformService(platform_pb2_grpc.PlatformServicer):
    """skerry.machines.v1.Platform."""

    def __init__(self, around: Surroundings, catalog: Catalog) -> None:
        self._around = around
        self._catalog = catalog

    async def ListRegions(self, request: api.ListRegionsRequest, context: object) -> api.ListRegionsResponse:
        return await list_regions(self._around)

    async def SimulatePlacements(
        self, request: api.SimulatePlacementsRequest, context: Any
    ) -> api.SimulatePlacementsResponse:
        simulated = await simulate_placements(self._around, self._catalog, request)
        tell_unreachable(context, simulated.unreachable)
        return api.SimulatePlacementsResponse(regions=simulated.placements)

    async def ListIPAssignments(
        self, request: api.ListIPAssignmentsRequest, context: object
    ) -> api.ListIPAssignmentsResponse:
        await self._around.apps.resolve(request.app_name)
        return api.ListIPAssignmentsResponse()


class OrganizationsService(organizations_pb2_grpc.OrganizationsServicer):
    """skerry.machines.v1.Organizations."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    async def GetOrganization(
        self, request: organizations_pb2.GetOrganizationRequest, context: object
    ) -> organizations_pb2.GetOrganizationResponse:
        found = get_organization(self._catalog, request.slug)
        return organizations_pb2.GetOrganizationResponse(organization=found)
