"""The servicer of volumes: messages to what the domain does, and back."""

from __future__ import annotations

from typing import Any, TypeAlias

import grpc
from skerry.store.v1 import volume_store_pb2 as pb
from skerry.store.v1 import volume_store_pb2_grpc

from services.machine_store.volumes import Volumes

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]


class VolumeStoreService(volume_store_pb2_grpc.VolumeStoreServicer):
    """Volumes."""

    def __init__(self, volumes: Volumes) -> None:
        self._volumes = volumes

    async def CreateVolume(self, request: pb.CreateVolumeRequest, context: Context) -> pb.CreateVolumeResponse:
        return pb.CreateVolumeResponse(volume=await self._volumes.create(request))

    async def GetVolume(self, request: pb.GetVolumeRequest, context: Context) -> pb.GetVolumeResponse:
        return pb.GetVolumeResponse(volume=await self._volumes.get(request.volume_id, request.app_id))

    async def ListVolumes(self, request: pb.ListVolumesRequest, context: Context) -> pb.ListVolumesResponse:
        return pb.ListVolumesResponse(volumes=await self._volumes.list(request.app_id))

    async def UpdateVolume(self, request: pb.UpdateVolumeRequest, context: Context) -> pb.UpdateVolumeResponse:
        return pb.UpdateVolumeResponse(volume=await self._volumes.update(request))

    async def DeleteVolume(self, request: pb.DeleteVolumeRequest, context: Context) -> pb.DeleteVolumeResponse:
        return pb.DeleteVolumeResponse(volume=await self._volumes.delete(request.volume_id, request.app_id))

    async def ExtendVolume(self, request: pb.ExtendVolumeRequest, context: Context) -> pb.ExtendVolumeResponse:
        return pb.ExtendVolumeResponse(volume=await self._volumes.extend(request))

    async def CreateSnapshot(self, request: pb.CreateSnapshotRequest, context: Context) -> pb.CreateSnapshotResponse:
        return pb.CreateSnapshotResponse(snapshot=await self._volumes.create_snapshot(request))

    async def GetSnapshot(self, request: pb.GetSnapshotRequest, context: Context) -> pb.GetSnapshotResponse:
        return pb.GetSnapshotResponse(snapshot=await self._volumes.snapshot(request.snapshot_id, request.app_id))

    async def ListSnapshots(self, request: pb.ListSnapshotsRequest, context: Context) -> pb.ListSnapshotsResponse:
        return pb.ListSnapshotsResponse(snapshots=await self._volumes.snapshots(request.volume_id, request.app_id))

    async def ReportVolumes(self, request: pb.ReportVolumesRequest, context: Context) -> pb.ReportVolumesResponse:
        volumes, snapshots = await self._volumes.report(request)
        return pb.ReportVolumesResponse(volumes=volumes, snapshots=snapshots)
