"""The servicer of releases: messages to what the domain does, and back."""

from __future__ import annotations

from typing import Any, TypeAlias

import grpc
from skerry.store.v1 import release_store_pb2 as pb
from skerry.store.v1 import release_store_pb2_grpc

from services.machine_store.releases import Releases

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]


class ReleaseStoreService(release_store_pb2_grpc.ReleaseStoreServicer):
    """Releases."""

    def __init__(self, releases: Releases) -> None:
        self._releases = releases

    async def CreateRelease(self, request: pb.CreateReleaseRequest, context: Context) -> pb.CreateReleaseResponse:
        return pb.CreateReleaseResponse(release=await self._releases.create(request))

    async def UpdateRelease(self, request: pb.UpdateReleaseRequest, context: Context) -> pb.UpdateReleaseResponse:
        return pb.UpdateReleaseResponse(release=await self._releases.update(request))

    async def GetRelease(self, request: pb.GetReleaseRequest, context: Context) -> pb.GetReleaseResponse:
        return pb.GetReleaseResponse(release=await self._releases.get(request.release_id))

    async def ListReleases(self, request: pb.ListReleasesRequest, context: Context) -> pb.ListReleasesResponse:
        return pb.ListReleasesResponse(releases=await self._releases.list(request.app_id, request.limit))
