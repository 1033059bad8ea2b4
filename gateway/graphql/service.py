"""The servicer of GraphQL: what runs operations is loaded when the first one comes."""

from __future__ import annotations

import asyncio
from importlib import import_module
from typing import Any

from skerry.machines.v1 import graphql_pb2, graphql_pb2_grpc

from gateway.graphql.sources import Sources
from gateway.routing import tell_unreachable


class GraphQLService(graphql_pb2_grpc.GraphQLServicer):
    """skerry.machines.v1.GraphQL."""

    def __init__(self, sources: Sources) -> None:
        self._sources = sources
        self._execution: Any = None

    async def Execute(self, request: graphql_pb2.ExecuteRequest, context: Any) -> graphql_pb2.ExecuteResponse:
        if self._execution is None:
            # It takes a third of a second and 10 MB, which processes that nobody asks do without.
            self._execution = await asyncio.to_thread(import_module, "gateway.graphql.execution")
        document, unreachable = await self._execution.execute(request.document, self._sources)
        tell_unreachable(context, unreachable)
        return graphql_pb2.ExecuteResponse(document=document)
