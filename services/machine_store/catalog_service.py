"""The servicer of the catalog as a replica: messages to what the domain does, and back."""

from __future__ import annotations

from typing import Any, TypeAlias

import grpc
from skerry.store.v1 import catalog_store_pb2 as pb
from skerry.store.v1 import catalog_store_pb2_grpc

from services.machine_store.replica import Replica

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]


class CatalogStoreService(catalog_store_pb2_grpc.CatalogStoreServicer):
    """The catalog's replica, and cursors."""

    def __init__(self, replica: Replica, cell: str) -> None:
        self._replica = replica
        self._cell = cell

    async def ApplyCatalogChanges(
        self, request: pb.ApplyCatalogChangesRequest, context: Context
    ) -> pb.ApplyCatalogChangesResponse:
        changed = await self._replica.apply(
            request.term, request.after_position, request.position, request.records, whole=request.whole
        )
        return pb.ApplyCatalogChangesResponse(changed=changed)

    async def GetCatalogState(self, request: pb.GetCatalogStateRequest, context: Context) -> pb.GetCatalogStateResponse:
        return await self._replica.state()

    async def PutCatalogRecords(
        self, request: pb.PutCatalogRecordsRequest, context: Context
    ) -> pb.PutCatalogRecordsResponse:
        return pb.PutCatalogRecordsResponse(revision=await self._replica.put(request.records))

    async def GetSecrets(self, request: pb.GetSecretsRequest, context: Context) -> pb.GetSecretsResponse:
        return pb.GetSecretsResponse(secrets=await self._replica.secrets(request.app_id))

    async def RecordRevocation(
        self, request: pb.RecordRevocationRequest, context: Context
    ) -> pb.RecordRevocationResponse:
        return pb.RecordRevocationResponse(revision=await self._replica.revoke(request.id, self._cell))

    async def GetCursor(self, request: pb.GetCursorRequest, context: Context) -> pb.GetCursorResponse:
        return pb.GetCursorResponse(value=await self._replica.cursor(request.duty))

    async def SetCursor(self, request: pb.SetCursorRequest, context: Context) -> pb.SetCursorResponse:
        await self._replica.set_cursor(request.term, request.value)
        return pb.SetCursorResponse()
