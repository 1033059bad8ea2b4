"""The REST face of the gateway: an ASGI application that turns requests into calls of the public gRPC service.

It stands on a channel like any other client, so REST and gRPC pass the same interceptors and the same code. Every
answer is JSON and carries `fly-request-id` and `traceparent`, whatever happened.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from random import Random
from typing import Any

import grpc
from opentelemetry.trace import Span
from skerry.machines.v1 import graphql_pb2
from starlette.types import Receive, Scope, Send

from gateway.auth import Admission
from gateway.graphql.errors import refused, shown_error
from gateway.limits import Foresee
from gateway.public_services import PUBLIC_SERVICES, path_of
from gateway.rest.answers import Answer, Headers, refusal, unknown_fields_warning
from gateway.rest.codec import dump
from gateway.rest.events import HEADERS as EVENT_HEADERS
from gateway.rest.events import EventStream
from gateway.rest.pages import PATHS as PAGE_PATHS
from gateway.rest.pages import answer_page
from gateway.rest.preconditions import etag, insist_on_match
from gateway.rest.routes import NO_CONTENT, OF_ALL_REGIONS, Route, Router, routes_of
from gateway.routing import UNREACHABLE_KEY
from services.runtime import telemetry
from services.runtime.clock import Clock
from services.runtime.errors import (
    DependencyDown,
    Internal,
    InvalidConfig,
    MethodNotAllowed,
    SkerryError,
    TooLarge,
    Violation,
    WaitTimeout,
)
from services.runtime.ids import new_ulid
from services.runtime.telemetry import log

MAX_BODY_BYTES = 1 << 20
MAX_DRAINED_BYTES = 16 << 20
"""How much of a body that is too large is read before the answer: a client that still sends does not read."""
BODY_SECONDS = 30.0
"""How long a client may take to send a body."""
CALL_SECONDS = 15.0
LONG_CALL_SECONDS: Mapping[str, float] = {"WaitMachine": 65.0, "ExecMachine": 65.0}
"""Deadlines of the methods that may take longer than CALL_SECONDS."""
STREAM_SECONDS = 3600.0
"""The deadline of a stream; whoever serves it ends it before."""
DISCONNECT_AFTER_SECONDS = 0.05
"""A call that takes longer ends when its client goes away; watching for that costs more than a shorter call."""

NEXT_CURSOR = b"skerry-next-cursor"
"""The header that says where the next page of a list begins."""

HEALTH_PATH = "/healthz"
GRAPHQL_PATH = "/graphql"

_FORWARDED: Mapping[bytes, str] = {
    b"authorization": "authorization",
    b"idempotency-key": "idempotency-key",
    b"fly-machine-lease-nonce": "fly-machine-lease-nonce",
}
"""Headers that the gRPC service reads as metadata."""
_TRACE_HEADERS: Mapping[bytes, str] = {
    b"traceparent": "traceparent",
    b"tracestate": "tracestate",
    b"baggage": "baggage",
}
_REQUEST_ID = re.compile(r"[A-Za-z0-9_.:-]{1,128}").fullmatch


class _ClientGone(Exception):
    """The client closed its connection: nobody reads an answer."""


class RestApp:
    """The ASGI application. `channel` leads to the public services of this gateway."""

    def __init__(
        self,
        channel: grpc.aio.Channel,
        *,
        ready: Callable[[], bool],
        clock: Clock,
        random: Random,
        max_body_bytes: int = MAX_BODY_BYTES,
        admit: Admission | None = None,
        foresee: Foresee | None = None,
    ) -> None:
        """`ready` says whether the gateway has caught up: `GET /healthz` answers 503 until it has.

        `admit` judges every request, also those that become no call; `foresee` those that will, before they are parsed.
        """
        self._admit = admit
        self._foresee = foresee
        self._max_body_bytes = max_body_bytes
        routes = routes_of(*PUBLIC_SERVICES)
        self._router = Router(routes)
        self._calls: dict[str, Callable[..., Any]] = {
            route.path: (channel.unary_stream if route.streams else channel.unary_unary)(
                route.path,
                request_serializer=route.request.SerializeToString,
                response_deserializer=route.response.FromString,
            )
            for route in routes
        }
        self._closing = asyncio.Event()
        self._execute = channel.unary_unary(
            path_of(graphql_pb2.DESCRIPTOR.services_by_name["GraphQL"].methods_by_name["Execute"]),
            request_serializer=graphql_pb2.ExecuteRequest.SerializeToString,
            response_deserializer=graphql_pb2.ExecuteResponse.FromString,
        )
        self._ready = ready
        self._clock = clock
        self._random = random
        self._tracer = telemetry.tracer("gateway")

    def close(self) -> None:
        """End the streams: the process is going to stop."""
        self._closing.set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise RuntimeError(f"only HTTP is served here, not {scope['type']}")
        headers: dict[bytes, bytes] = dict(scope["headers"])
        request_id = headers.get(b"fly-request-id", b"").decode("latin-1")
        if not _REQUEST_ID(request_id):
            request_id = new_ulid(self._clock.now(), self._random)
        # Every request has a task, and so a context, of its own: nothing that is set here has to be set back.
        verb: str = scope["method"]
        span = self._tracer.serve(f"HTTP {verb}", _texts(headers, _TRACE_HEADERS), {"http.request.method": verb})
        telemetry.serving.set("gateway")
        try:
            answer = await self._answer(scope, headers, request_id, span, receive)
        except _ClientGone:
            if span is not None:
                span.end()
            return
        except SkerryError as error:
            answer = refusal(error)
        except Exception as error:
            log.error("request_failed", verb=verb, path=scope["path"], exc_info=error)
            answer = refusal(
                Internal(
                    "the gateway failed unexpectedly; its log has the cause under trace id "
                    f"{telemetry.current_trace_id()}"
                )
            )
        if span is not None:
            span.set_attribute("http.response.status_code", answer.status)
            span.end()
        await send({"type": "http.response.start", "status": answer.status, "headers": _headers(answer, request_id)})
        if answer.stream is not None:
            await answer.stream.send(send, receive, self._closing)
        else:
            await send({"type": "http.response.body", "body": answer.body})

    def answer_to_no_request(self, why: str) -> tuple[Answer, Headers]:
        """The answer to bytes that are no HTTP request, and its headers. Runs in a context that is dropped after it."""
        self._tracer.serve("HTTP", {}, {})
        answer = refusal(InvalidConfig(f"this is not HTTP/1.1: {why}"))
        return answer, _headers(answer, new_ulid(self._clock.now(), self._random))

    async def _answer(
        self, scope: Scope, headers: dict[bytes, bytes], request_id: str, span: Span | None, receive: Receive
    ) -> Answer:
        # The server leaves out the body of what answers a HEAD.
        verb: str = "GET" if scope["method"] == "HEAD" else scope["method"]
        path: str = scope["raw_path"].decode("latin-1")
        body = b""
        if self._admit is not None:
            self._admit(*(headers.get(name, b"").decode("latin-1") for name in (b"authorization", b"baggage")))
        if verb in ("POST", "PUT", "PATCH"):
            # Also for what will be refused: a client that still sends does not read an answer.
            body = await _read_body(receive, self._max_body_bytes)
        if path == HEALTH_PATH:
            return self._health(verb)
        if path in PAGE_PATHS:
            return answer_page(verb, path)
        if path == GRAPHQL_PATH:
            return await self._graphql(verb, body, [("fly-request-id", request_id), *_metadata(headers)], receive)
        route, segments = self._router.find(verb, path)
        if span is not None:
            span.update_name(f"{verb} {route.template}")
        if self._foresee is not None:
            self._foresee(route.path, route.names(segments), headers.get(b"authorization", b"").decode("latin-1"))
        request, unknown = route.read(segments, scope["query_string"], body)
        if (condition := headers.get(b"if-match")) is not None:
            insist_on_match(route, request, condition.decode("latin-1"))
        metadata = [("fly-request-id", request_id), *_metadata(headers)]
        if route.streams:
            if scope["method"] == "HEAD":
                raise MethodNotAllowed("a stream has no HEAD; it has: GET", metadata={"allow": "GET"})
            return await self._stream(route, request, headers, metadata, receive)
        fields = route.fields(request, scope["query_string"]) if route.items is not None else None
        timeout = LONG_CALL_SECONDS.get(route.rpc, CALL_SECONDS)
        call = self._calls[route.path](request, timeout=timeout, metadata=metadata)
        response = await _unless_gone(call, receive)
        more = [unknown_fields_warning(unknown)] if unknown else []
        if route.has_machine:
            more += etag(response)
        elif route.rpc in OF_ALL_REGIONS:
            more += _unreachable(await call.trailing_metadata())
            if route.has_pages and response.next_cursor:
                more.append((NEXT_CURSOR, response.next_cursor.encode()))
        return Answer(route.status, await route.write(response, fields), more)

    async def _stream(
        self,
        route: Route,
        request: Any,
        headers: Mapping[bytes, bytes],
        metadata: Sequence[tuple[str, str]],
        receive: Receive,
    ) -> Answer:
        """The answer to a watch, once its first response is there: what it is refused for is refused as usual."""
        if (last := headers.get(b"last-event-id")) is not None:
            # A client that comes again repeats its query, too.
            try:
                route.query["from_revision"](request, last.decode("latin-1"))
            except ValueError as error:
                why = f"{error} (it is what Last-Event-ID said)"
                raise InvalidConfig(f"from_revision {why}", violations=[Violation("from_revision", why)]) from None
        call = self._calls[route.path](request, timeout=STREAM_SECONDS, metadata=metadata)
        responses = aiter(call)
        try:
            first = await _unless_gone(anext(responses, None), receive)
        except BaseException:
            call.cancel()
            raise
        stream = EventStream(first, responses, call.cancel, self._clock)
        return Answer(route.status, b"", EVENT_HEADERS, stream=stream)

    async def _graphql(self, verb: str, body: bytes, metadata: Sequence[tuple[str, str]], receive: Receive) -> Answer:
        """The answer to an operation: whatever is wrong with it or the token stands in it, with the status 200."""
        if verb != "POST":
            raise MethodNotAllowed(f"{GRAPHQL_PATH} has no {verb}; it has: POST", metadata={"allow": "POST"})
        call = self._execute(graphql_pb2.ExecuteRequest(document=body), timeout=CALL_SECONDS, metadata=metadata)
        try:
            document: bytes = (await _unless_gone(call, receive)).document
        except SkerryError as error:
            return Answer(200, dump(refused(shown_error(error))), refusal(error).headers)
        return Answer(200, document, _unreachable(await call.trailing_metadata()))

    def _health(self, verb: str) -> Answer:
        if verb != "GET":
            raise MethodNotAllowed(f"{HEALTH_PATH} has no {verb}; it has: GET", metadata={"allow": "GET"})
        if not self._ready():
            raise DependencyDown("the gateway has not caught up with its region's log yet; try again", retry_after=1)
        return Answer(200, b'{"status":"serving"}', [])


def _headers(answer: Answer, request_id: str) -> Headers:
    described: Headers = []
    if answer.stream is None and answer.status != NO_CONTENT:
        described = [(b"content-type", answer.kind), (b"content-length", b"%d" % len(answer.body))]
    return [
        *described,
        (b"fly-request-id", request_id.encode()),
        (b"traceparent", telemetry.current_traceparent().encode()),
        *answer.headers,
    ]


async def _read_body(receive: Receive, limit: int) -> bytes:
    """The body, at most `limit` bytes. Raises TooLarge after draining a bounded part, WaitTimeout, _ClientGone."""
    pieces: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(BODY_SECONDS):
            while True:
                event = await receive()
                if event["type"] == "http.disconnect":
                    raise _ClientGone
                piece: bytes = event.get("body", b"")
                size += len(piece)
                if size <= limit:
                    pieces.append(piece)
                else:
                    pieces.clear()
                if not event.get("more_body", False) or size > MAX_DRAINED_BYTES:
                    break
    except TimeoutError:
        raise WaitTimeout(f"the request's body was not here within {BODY_SECONDS:g} s") from None
    if size > limit:
        raise TooLarge(f"the request's body is larger than {limit} bytes, which is the most that is taken")
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


async def _unless_gone(call: Awaitable[Any], receive: Receive) -> Any:
    """The result of `call`, which is cancelled when the client goes away meanwhile; then raises _ClientGone."""
    loop = asyncio.get_running_loop()
    caller = asyncio.current_task()
    assert caller is not None
    watcher: asyncio.Task[None] | None = None
    gone = False

    async def watch() -> None:
        nonlocal gone
        while (await receive())["type"] != "http.disconnect":
            pass
        gone = True
        caller.cancel()

    def start_watching() -> None:
        nonlocal watcher
        watcher = loop.create_task(watch())

    timer = loop.call_later(DISCONNECT_AFTER_SECONDS, start_watching)
    try:
        return await call
    except asyncio.CancelledError:
        if gone and caller.uncancel() == 0:
            raise _ClientGone from None
        raise
    finally:
        timer.cancel()
        if watcher is not None:
            watcher.cancel()


def _metadata(headers: Mapping[bytes, bytes]) -> Iterable[tuple[str, str]]:
    """The headers that the service reads, as gRPC carries them. Raises InvalidConfig for what it could not carry."""
    forwarded = _texts(headers, _FORWARDED)
    for name, text in forwarded.items():
        if not (text.isascii() and text.isprintable()):
            raise InvalidConfig(
                f"the header {name} must be printable ASCII", violations=[Violation(name, "must be printable ASCII")]
            )
    return forwarded.items()


def _unreachable(trailing: Iterable[tuple[str, str | bytes]]) -> Headers:
    """The header that names regions which an answer lacks, if it does."""
    return [(key.encode(), str(value).encode()) for key, value in trailing if key == UNREACHABLE_KEY]


def _texts(headers: Mapping[bytes, bytes], names: Mapping[bytes, str]) -> dict[str, str]:
    return {text: headers[name].decode("latin-1") for name, text in names.items() if name in headers}
