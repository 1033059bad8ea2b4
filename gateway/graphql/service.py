"""The servicer of GraphQL: operations as JSON in, their answers as JSON out. What goes wrong is in the answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson
from graphql import GraphQLError
from skerry.machines.v1 import graphql_pb2, graphql_pb2_grpc
from strawberry.schema.exceptions import CannotGetOperationTypeError

from gateway.graphql.errors import BAD_REQUEST, INTERNAL, refused, shown, shown_error
from gateway.graphql.reads import RegionReads, Sources
from gateway.graphql.schema import schema
from gateway.rest.codec import parse
from gateway.routing import UNREACHABLE_KEY
from services.runtime import telemetry
from services.runtime.errors import InvalidConfig, SkerryError
from services.runtime.telemetry import log

MOST_BYTES = 64 * 1024
"""Of an operation with its variables."""


class GraphQLService(graphql_pb2_grpc.GraphQLServicer):
    """skerry.machines.v1.GraphQL."""

    def __init__(self, sources: Sources) -> None:
        self._sources = sources

    async def Execute(self, request: graphql_pb2.ExecuteRequest, context: Any) -> graphql_pb2.ExecuteResponse:
        reads = RegionReads(self._sources)
        try:
            answer = await _execute(request.document, reads)
        except SkerryError as error:
            answer = refused(shown_error(error))
        if reads.unreachable:
            context.set_trailing_metadata(((UNREACHABLE_KEY, ",".join(reads.unreachable)),))
        return graphql_pb2.ExecuteResponse(document=orjson.dumps(answer))


async def _execute(document: bytes, reads: RegionReads) -> Mapping[str, Any]:
    """The answer to an operation. Raises InvalidConfig for what is none."""
    query, variables, operation = _read(document)
    try:
        result = await schema.execute(query, variables, reads, operation_name=operation)
    except CannotGetOperationTypeError as error:
        raise InvalidConfig("operationName must name an operation of the query") from error
    answer: dict[str, Any] = {"data": result.data}
    if result.errors:
        answer["errors"] = [_shown(error) for error in result.errors]
    return answer


def _read(document: bytes) -> tuple[str, dict[str, Any], str | None]:
    if len(document) > MOST_BYTES:
        raise InvalidConfig(f"an operation with its variables must have {MOST_BYTES} bytes at most")
    body = parse(document)
    if not isinstance(body, dict):
        raise InvalidConfig("the body must be {query: string, variables: object, operationName: string}")
    query, variables, operation = body.get("query"), body.get("variables"), body.get("operationName")
    if not (isinstance(query, str) and isinstance(variables, dict | None) and isinstance(operation, str | None)):
        raise InvalidConfig("the body must be {query: string, variables: object, operationName: string}")
    return query, variables or {}, operation or None


def _shown(error: GraphQLError) -> dict[str, Any]:
    cause = error.original_error
    if isinstance(cause, SkerryError):
        answer = shown_error(cause)
    elif cause is None or (isinstance(cause, GraphQLError | ValueError) and not error.path):
        answer = shown(error.message, BAD_REQUEST)
    else:
        log.error("graphql_failed", exc_info=cause)
        trace_id = telemetry.current_trace_id()
        answer = shown(f"the gateway failed unexpectedly; its log has the cause under trace id {trace_id}", INTERNAL)
    if error.path:
        answer["path"] = error.path
    return answer
