"""The HTTP face of one instance: POST /graphql, a few reads below /api/v1, GET /healthz, and faults for drills.

GraphQL answers have the status 200, errors too: {"data": null, "errors": [{"message", "extensions": {"code"}}]}.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any

import asyncpg
from graphql import GraphQLError
from opentelemetry.trace import StatusCode
from prometheus_client import Counter, Histogram
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from strawberry.schema.exceptions import CannotGetOperationTypeError

from services.central import mirror
from services.central.callers import Callers
from services.central.errors import Invalid, Missing, NotAllowed, Refusal, TakenByRegions, Unauthorized
from services.central.faults import Faults
from services.central.graphql.context import Centre
from services.central.graphql.schema import client_schema, schema
from services.runtime.graphql_types import is_ambiguous
from services.runtime.principals import Principal
from services.runtime.telemetry import current_trace_id, log, metrics, serving, tracer

SERVICE = "central"
MAX_BODY_BYTES = 16 * 1024 * 1024

BAD_REQUEST = "BAD_REQUEST"
INTERNAL = "INTERNAL"
TIMEOUT = "TIMEOUT"
UNAVAILABLE = "UNAVAILABLE"
OK = "OK"

_REQUESTS = Counter(
    "skerry_central_requests_total",
    "GraphQL requests to the centre, by the code of their first error.",
    ["code"],
    registry=metrics,
)
_SECONDS = Histogram(
    "skerry_central_request_seconds", "How long GraphQL requests to the centre take.", registry=metrics
)
_DATABASE_DOWN = (
    OSError,
    asyncpg.InterfaceError,
    # What asyncpg raises when a statement meets a connection that is being lost.
    asyncpg.InternalClientError,
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,
    asyncpg.InsufficientResourcesError,
    asyncpg.LockNotAvailableError,
)

Answer = dict[str, Any]


class CentralApp:
    """Builds the ASGI application. `timeout` (seconds) bounds a request; without `faults` there are none to ask for."""

    def __init__(
        self,
        centre: Centre,
        *,
        callers: Callers,
        timeout: float,
        healthy: Callable[[], Awaitable[bool]],
        faults: Faults | None = None,
    ) -> None:
        self._centre = centre
        self._callers = callers
        self._timeout = timeout
        self._healthy = healthy
        self._faults = faults
        self._tracer = tracer(SERVICE)

    def build(self) -> Starlette:
        """The application."""
        routes = [
            Route("/graphql", self._graphql, methods=["POST"]),
            Route("/healthz", self._healthz, methods=["GET"]),
            Route("/api/v1/organizations/{slug}", self._rest(self._organization), methods=["GET"]),
            Route("/api/v1/releases", self._rest(self._create_release), methods=["POST"]),
            Route("/api/v1/releases/{id}", self._rest(self._update_release), methods=["PATCH"]),
            Route("/api/v1/apps/{app}/releases", self._rest(self._releases), methods=["GET"]),
            Route("/api/v1/apps/{app}/releases/current", self._rest(self._current_release), methods=["GET"]),
        ]
        if self._faults is not None:
            routes.append(Route("/faults", self._rest(self._set_faults), methods=["GET", "POST"]))
        return Starlette(routes=routes, exception_handlers={HTTPException: _http_error})

    # GraphQL

    async def _graphql(self, request: Request) -> Response:
        serving.set(SERVICE)
        started = asyncio.get_running_loop().time()
        span = self._tracer.serve("graphql", request.headers, {"skerry.service": SERVICE})
        try:
            status, answer = await self._answer(request)
            code = _code(answer)
            if span:
                span.set_attribute("skerry.code", code)
                span.set_status(StatusCode.OK if code == OK else StatusCode.ERROR)
        finally:
            if span:
                span.end()
        _REQUESTS.labels(code).inc()
        _SECONDS.observe(asyncio.get_running_loop().time() - started)
        return JSONResponse(answer, status)

    async def _answer(self, request: Request) -> tuple[int, Answer]:
        try:
            async with asyncio.timeout(self._timeout):
                if self._faults is not None and await self._faults.suffer():
                    return 500, _failed("a fault was asked for", INTERNAL)
                centre = await self._centre_for(request)
                return 200, await self._execute(await _json_object(request), centre)
        except Refusal as error:
            return 200, _refused(error)
        except TimeoutError:
            log.warning("central_request_timeout", seconds=self._timeout)
            return 200, _failed(f"not done within {self._timeout:g} s", TIMEOUT)
        except Exception as error:
            return 200, {"data": None, "errors": [_of_cause(error)]}

    async def _execute(self, document: Mapping[str, Any], centre: Centre) -> Answer:
        query, variables = document.get("query"), document.get("variables") or {}
        operation = document.get("operationName")
        if not isinstance(query, str) or not isinstance(variables, dict) or not isinstance(operation, str | None):
            raise Invalid("the body must be {query: string, variables: object, operationName: string}")
        if not query.strip():
            raise Invalid("query must not be empty")
        if is_ambiguous(query, operation):
            raise Invalid("operationName must say which operation of the query is meant")
        with self._tracer.span(f"graphql {operation or 'operation'}"):
            try:
                served = schema if _may_everything(centre.principal) else client_schema
                result = await served.execute(query, variables, centre, operation_name=operation or None)
            except CannotGetOperationTypeError as error:
                raise Invalid("operationName must name an operation of the query") from error
        answer: Answer = {"data": result.data}
        if result.errors:
            answer["errors"] = [_shown(error) for error in result.errors]
        return answer

    async def _centre_for(self, request: Request) -> Centre:
        """The centre as whoever sent the request sees it. Raises Unauthorized."""
        return replace(self._centre, principal=await self._callers.of(request.headers.get("authorization", "")))

    # REST

    def _rest(
        self, handler: Callable[[Request, Centre], Awaitable[Answer]]
    ) -> Callable[[Request], Awaitable[Response]]:
        async def endpoint(request: Request) -> Response:
            serving.set(SERVICE)
            span = self._tracer.serve(handler.__name__.strip("_"), request.headers, {"skerry.service": SERVICE})
            try:
                async with asyncio.timeout(self._timeout):
                    return JSONResponse(await handler(request, await self._centre_for(request)))
            except Refusal as error:
                status = _STATUS.get(type(error), 500)
                return JSONResponse({"error": error.message, "status": error.code.lower()}, status)
            except (TimeoutError, *_DATABASE_DOWN):
                return JSONResponse({"error": "the centre's database is away", "status": "unavailable"}, 503)
            finally:
                if span:
                    span.end()

        return endpoint

    async def _organization(self, request: Request, centre: Centre) -> Answer:
        found = await centre.organization_record(request.path_params["slug"])
        return {
            "organization": {
                "id": found.id,
                "internal_numeric_id": found.internal_numeric_id,
                "slug": found.slug,
                "raw_slug": found.slug,
                "name": found.name,
                "personal": found.type == "PERSONAL",
                "paid_plan": found.paid_plan,
                "billable": found.billable,
                "billing_status": "CURRENT",
                "remote_builder_image": "",
            }
        }

    async def _releases(self, request: Request, centre: Centre) -> Answer:
        return {"releases": await self._mirrored_releases(request, centre)}

    async def _current_release(self, request: Request, centre: Centre) -> Answer:
        releases = await self._mirrored_releases(request, centre)
        if not releases:
            raise Missing("the app has no release")
        return {"release": releases[0]}

    async def _create_release(self, request: Request, centre: Centre) -> Answer:
        raise await centre.taker_of_releases(str((await _json_object(request)).get("app_name") or ""))

    async def _update_release(self, request: Request, centre: Centre) -> Answer:
        raise await centre.taker_of_progress(request.path_params["id"])

    async def _mirrored_releases(self, request: Request, centre: Centre) -> list[Mapping[str, Any]]:
        app = await centre.app_record(request.path_params["app"])
        records = await centre.mirror.of_app(mirror.RELEASE, app.id)
        newest_first = sorted((r.payload for r in records), key=lambda p: int(p.get("version") or 0), reverse=True)
        return [{name: payload.get(name) for name in _RELEASE_FIELDS} for payload in newest_first]

    async def _set_faults(self, request: Request, centre: Centre) -> Answer:
        if self._faults is None or not _may_everything(centre.principal):
            raise Missing("faults are off")
        if request.method == "POST":
            self._faults.set(await _json_object(request))
            log.warning("central_faults_set", **self._faults.shown())
        return self._faults.shown()

    async def _healthz(self, _: Request) -> Response:
        healthy = await self._healthy()
        release = self._centre.conversion.release.name
        return JSONResponse({"status": "ok" if healthy else "down", "release": release}, 200 if healthy else 503)


_RELEASE_FIELDS = (
    "id", "version", "stable", "in_progress", "status", "strategy", "user", "created_at", "image_ref"
)  # fmt: skip
_STATUS: dict[type[Refusal], int] = {
    Unauthorized: 401,
    NotAllowed: 403,
    Missing: 404,
    Invalid: 400,
    TakenByRegions: 409,
}


async def _json_object(request: Request) -> dict[str, Any]:
    body = bytearray()
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > MAX_BODY_BYTES:
                raise Invalid(f"the body must have {MAX_BODY_BYTES} bytes at most")
    except ClientDisconnect:
        raise Invalid("the body did not come whole") from None
    try:
        document = json.loads(bytes(body))
    except (ValueError, RecursionError):
        raise Invalid("the body must be JSON") from None
    if not isinstance(document, dict):
        raise Invalid("the body must be a JSON object")
    return document


def _shown(error: GraphQLError) -> Answer:
    cause = error.original_error
    if cause is None or (isinstance(cause, GraphQLError | ValueError) and not error.path):
        shown = _one(error.message, BAD_REQUEST)
    else:
        shown = _of_cause(cause)
    if error.path:
        shown["path"] = error.path
    return shown


def _of_cause(cause: BaseException) -> Answer:
    if isinstance(cause, Refusal):
        return _one(cause.message, cause.code, cause.extensions)
    if isinstance(cause, TimeoutError):  # Which is an OSError too.
        log.error("central_database_slow", reason=str(cause))
        return _one("the centre's database does not answer in time; try again", TIMEOUT)
    if isinstance(cause, _DATABASE_DOWN):
        log.error("central_database_down", reason=str(cause))
        return _one("the centre's database is away; try again", UNAVAILABLE)
    if isinstance(cause, asyncpg.DataError):
        return _one(f"a value is none that the centre can keep: {cause}", Invalid.code)
    return _fault(cause)


def _fault(cause: BaseException) -> Answer:
    log.error("central_fault", exc_info=cause)
    return _one(f"something went wrong in the centre; its log says what, under trace {current_trace_id()}", INTERNAL)


def _one(message: str, code: str, extensions: Mapping[str, Any] | None = None) -> Answer:
    return {"message": message, "extensions": {"code": code, **(extensions or {})}}


def _failed(message: str, code: str) -> Answer:
    return {"data": None, "errors": [_one(message, code)]}


def _refused(error: Refusal) -> Answer:
    return {"data": None, "errors": [_one(error.message, error.code, error.extensions)]}


def _may_everything(principal: Principal) -> bool:
    return principal.organization is None


def _code(answer: Answer) -> str:
    errors = answer.get("errors")
    return str(errors[0]["extensions"]["code"]) if errors else OK


def _http_error(_: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    reason = {404: "not_found", 405: "method_not_allowed"}.get(status, "unknown")
    return JSONResponse(
        {"error": f"the centre does not serve that: {reason.replace('_', ' ')}", "status": reason}, status
    )
