"""The public Volumes service on the wire: each call is served in the cell of the volume that it names."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import wraps
from typing import Any, TypeVar, cast

import grpc
from skerry.machines.v1 import volumes_pb2 as api
from skerry.machines.v1 import volumes_pb2_grpc

from gateway import volumes
from gateway.fleet import Fleet
from gateway.routing import tell_unreachable
from gateway.surroundings import Surroundings
from services.runtime.registry import current_call

SERVICE = "Volumes"

_Method = TypeVar("_Method", bound=Callable[..., Awaitable[Any]])


def _where_the_volume_is(method: _Method) -> _Method:
    """Let a method of the servicer run in the cell of the volume that its request names."""

    @wraps(method)
    async def serve(self: VolumesService, request: Any, context: Any) -> Any:
        if (peer := self.around.routing.by_machine(request.volume_id)) is not None:
            return await peer.call(method.__name__, request, service=SERVICE)
        return await method(self, request, context)

    return cast("_Method", serve)


class VolumesService(volumes_pb2_grpc.VolumesServicer):
    """Volumes of apps and their snapshots."""

    def __init__(self, around: Surroundings, fleet: Fleet) -> None:
        self.around = around
        self._fleet = fleet

    async def ListVolumes(
        self, request: api.ListVolumesRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> api.ListVolumesResponse:
        async def here() -> list[api.Volume]:
            return await volumes.list_volumes(self.around, self._fleet, request)

        listed, unreachable = await self.around.routing.list_volumes(request, here)
        tell_unreachable(context, unreachable)
        return api.ListVolumesResponse(volumes=listed)

    async def CreateVolume(self, request: api.CreateVolumeRequest, context: object) -> api.CreateVolumeResponse:
        routing = self.around.routing
        begins_with = request.source_volume_id or request.snapshot_id
        by_source = begins_with and not request.region
        if by_source:
            peer = routing.by_machine(begins_with)
        else:
            peer = await self.around.cells.peer_of(request.app_name, request.region)
        if peer is not None:
            forwarded: api.CreateVolumeResponse = await peer.call("CreateVolume", request, service=SERVICE)
            return forwarded
        call = current_call()
        key = str(call.metadata.get("idempotency-key", "")) if call is not None else ""
        return api.CreateVolumeResponse(volume=await volumes.create_volume(self.around, self._fleet, request, key))

    @_where_the_volume_is
    async def GetVolume(self, request: api.GetVolumeRequest, context: object) -> api.GetVolumeResponse:
        return api.GetVolumeResponse(volume=await volumes.get_volume(self.around, self._fleet, request))

    @_where_the_volume_is
    async def UpdateVolume(self, request: api.UpdateVolumeRequest, context: object) -> api.UpdateVolumeResponse:
        return api.UpdateVolumeResponse(volume=await volumes.update_volume(self.around, self._fleet, request))

    @_where_the_volume_is
    async def DeleteVolume(self, request: api.DeleteVolumeRequest, context: object) -> api.DeleteVolumeResponse:
        return api.DeleteVolumeResponse(volume=await volumes.delete_volume(self.around, self._fleet, request))

    @_where_the_volume_is
    async def ExtendVolume(self, request: api.ExtendVolumeRequest, context: object) -> api.ExtendVolumeResponse:
        volume, needs_restart = await volumes.extend_volume(self.around, self._fleet, request)
        return api.ExtendVolumeResponse(volume=volume, needs_restart=needs_restart)

    @_where_the_volume_is
    async def ListSnapshots(self, request: api.ListSnapshotsRequest, context: object) -> api.ListSnapshotsResponse:
        return api.ListSnapshotsResponse(snapshots=await volumes.list_snapshots(self.around, request))

    @_where_the_volume_is
    async def CreateSnapshot(self, request: api.CreateSnapshotRequest, context: object) -> api.CreateSnapshotResponse:
        return api.CreateSnapshotResponse(snapshot=await volumes.create_snapshot(self.around, request))
