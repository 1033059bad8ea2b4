"""Running an operation: its JSON in, its answer as JSON out. What goes wrong is in the answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson
from graphql import GraphQLError
from strawberry.schema.exceptions import CannotGetOperationTypeError

from gateway.graphql.errors import BAD_REQUEST, INTERNAL, refused, shown, shown_error
from gateway.graphql.reads import RegionReads
from gateway.graphql.schema import schema
from gateway.graphql.sources import Sources
from gateway.rest.codec import parse
from services.runtime import telemetry
from services.runtime.errors import InvalidConfig, SkerryError
from services.runtime.graphql_types import is_ambiguous
from services.runtime.telemetry import log

MOST_BYTES = 64 * 1024
"""Of an operation with its variables."""


async def execute(document: bytes, sources: Sources) -> tuple[bytes, tuple[str, ...]]:
    """The answer to an operation, and the codes of the regions that it lacks."""
    reads = RegionReads(sources)
    try:
        answer = await _execute(document, reads)
    except SkerryError as error:
        answer = refused(shown_error(error))
    return orjson.dumps(answer), tuple(reads.unreachable)


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
    if not query.strip():
        raise InvalidConfig("query must not be empty")
    if is_ambiguous(query, operation):
        raise InvalidConfig("operationName must say which operation of the query is meant")
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
