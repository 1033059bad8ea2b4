"""The servicer of the cells of apps: messages to what the domain does, and back."""

from __future__ import annotations

from typing import Any, TypeAlias

import grpc
from skerry.store.v1 import cell_store_pb2 as pb
from skerry.store.v1 import cell_store_pb2_grpc

from services.machine_store.cells import AppCells

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]


class CellStoreService(cell_store_pb2_grpc.CellStoreServicer):
    """The cells of apps."""

    def __init__(self, cells: AppCells) -> None:
        self._cells = cells

    async def LocateApp(self, request: pb.LocateAppRequest, context: Context) -> pb.LocateAppResponse:
        return pb.LocateAppResponse(cell=await self._cells.locate(request.app_id, request.cells))
