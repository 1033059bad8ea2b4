"""The servicer of releases: messages to what the gateway does, and back."""

from __future__ import annotations

from skerry.machines.v1 import releases_pb2 as api
from skerry.machines.v1 import releases_pb2_grpc

from gateway.releases import Releases
from services.runtime.registry import current_call


class ReleasesService(releases_pb2_grpc.ReleasesServicer):
    """skerry.machines.v1.Releases."""

    def __init__(self, releases: Releases) -> None:
        self._releases = releases

    async def CreateRelease(self, request: api.CreateReleaseRequest, context: object) -> api.CreateReleaseResponse:
        call = current_call()
        key = str(call.metadata.get("idempotency-key", "")) if call is not None else ""
        return await self._releases.create(request, key)

    async def UpdateRelease(self, request: api.UpdateReleaseRequest, context: object) -> api.UpdateReleaseResponse:
        return await self._releases.update(request)

    async def ListReleases(self, request: api.ListReleasesRequest, context: object) -> api.ListReleasesResponse:
        return await self._releases.list(request)

    async def GetCurrentRelease(
        self, request: api.GetCurrentReleaseRequest, context: object
    ) -> api.GetCurrentReleaseResponse:
        return await self._releases.current(request)
