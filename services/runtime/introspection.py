"""What a process tells of itself to the operator, on its internal door."""

from __future__ import annotations

from skerry.runtime.v1 import introspection_pb2 as api
from skerry.runtime.v1 import introspection_pb2_grpc

from services.runtime.edges import seen_edges
from services.runtime.registry import Registry

NAME = "introspection"


def register(registry: Registry) -> None:
    """Add the Introspection service to `registry`: once a process, on its internal door."""
    introspection_pb2_grpc.add_IntrospectionServicer_to_server(_Servicer(), registry)


class _Servicer(introspection_pb2_grpc.IntrospectionServicer):
    async def ListSeenEdges(self, request: api.ListSeenEdgesRequest, context: object) -> api.ListSeenEdgesResponse:
        edges = [
            api.SeenEdge(caller=edge.caller, callee=edge.callee, calls=edge.calls, errors=edge.errors)
            for edge in seen_edges()
        ]
        return api.ListSeenEdgesResponse(edges=edges)
