"""Servicers with everything that every call gets: tracing, the deadline, the caller's authentication, errors, metrics.

Each handler is wrapped once, when it is registered. The gRPC server and the local channel both serve what is registered
here, so a call is treated alike whichever way it comes.
"""

from __future__ import annotations

import asyncio
import hmac
import inspect
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Never

import grpc
from google.protobuf.message import DecodeError
from opentelemetry.trace import Status, StatusCode

from services.runtime import telemetry
from services.runtime.edges import Counts
from services.runtime.errors import DETAILS_KEY, Internal, InvalidConfig, SkerryError, Unauthenticated, to_status
from services.runtime.guard import Guard
from services.runtime.rpc_metrics import MethodMetrics
from services.runtime.telemetry import log

CALLER_KEY = "skerry-caller"
SECRET_KEY = "skerry-secret"

FAILURES_TOLD_PER_SECOND = 10.0
FAILURES_TOLD_AT_ONCE = 50
"""Of the calls that fail for no fault of their callers, so many are logged: in an outage that is every call."""

# An error that a servicer raised is its answer: repeating the call is for its caller to decide, not for the channel.
_DO_NOT_RETRY = (("grpc-retry-pushback-ms", "-1"),)


@dataclass(slots=True)
class ServerCall:
    """A call that is being served. `method` is its path; `metadata` what the caller sent, keys in lower case.

    `caller` is "place/service", checked by the set's secret. Where a registry has none, it is empty, until an
    interceptor that knows the caller sets it. `request` is the message; an iterator of them where the client streams.
    """

    method: str
    metadata: Mapping[str, Any] = field(repr=False)
    context: grpc.aio.ServicerContext[Any, Any]
    caller: str = ""
    request: Any = field(default=None, repr=False)


ServerInterceptor = Callable[[ServerCall], Awaitable[None]]
"""Runs before the handler, in the call's own context: what it sets in context variables, the handler sees.

It refuses the call by raising a SkerryError.
"""

_OUR_SIDE = 500
"""HTTP statuses from here on say that it is not the caller's fault."""

_current: ContextVar[ServerCall | None] = ContextVar("current_call", default=None)
_deadline: ContextVar[float | None] = ContextVar("deadline", default=None)


def current_call() -> ServerCall | None:
    """The call that the current task serves; None outside of one."""
    return _current.get()


def remaining() -> float | None:
    """Seconds until the deadline of the call that the current task serves, at least 0; None if it has none."""
    deadline = _deadline.get()
    return None if deadline is None else max(0.0, deadline - time.monotonic())


class Registry(grpc.aio.Server):
    """The servicers of one service. Generated `add_XServicer_to_server(servicer, registry)` register them.

    A server to that generated code, hence the base class; it listens nowhere itself.
    """

    def __init__(
        self,
        *,
        service: str,
        secret: str | None = None,
        place: str = "",
        guard: bool = True,
        interceptors: Sequence[ServerInterceptor] = (),
        default_deadline: float = 60.0,
        default_stream_deadline: float = 3600.0,
    ) -> None:
        """`secret` is the set's: with one, only callers that send it are served. `interceptors` run after that check.

        `place` names the cell ("syd-1"): with one, the dependency guard judges every call, after the interceptors.
        Without `guard` it refuses nothing, and only counts.

        The default deadlines, in seconds, are those of calls that set none.
        """
        self.service = service
        self.secret = secret.encode() if secret is not None else None
        self.interceptors = tuple(interceptors)
        self.guard = Guard(place, service, refuses=guard) if place else None
        self.default_deadline = default_deadline
        self.default_stream_deadline = default_stream_deadline
        self.handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}
        """Wrapped handlers by path, "/package.Service/Method"."""
        self.services: dict[str, dict[str, grpc.RpcMethodHandler[Any, Any]]] = {}
        """The same by service and method."""

    def add_registered_method_handlers(
        self, service_name: str, method_handlers: Mapping[str, grpc.RpcMethodHandler[Any, Any]]
    ) -> None:
        """Wrap and keep the handlers of one gRPC service. Raises ValueError if it is registered already."""
        if service_name in self.services:
            raise ValueError(f"{service_name} is registered twice")
        wrapped = {name: _wrap(self, service_name, name, handler) for name, handler in method_handlers.items()}
        self.services[service_name] = wrapped
        self.handlers.update({f"/{service_name}/{name}": handler for name, handler in wrapped.items()})

    def add_generic_rpc_handlers(self, generic_rpc_handlers: Iterable[grpc.GenericRpcHandler]) -> None:
        """Nothing: generated code gives the same handlers to `add_registered_method_handlers`."""

    def add_insecure_port(self, address: str) -> int:
        self._listens_nowhere()

    def add_secure_port(self, address: str, server_credentials: grpc.ServerCredentials) -> int:
        self._listens_nowhere()

    async def start(self) -> None:
        self._listens_nowhere()

    async def stop(self, grace: float | None) -> None:
        self._listens_nowhere()

    async def wait_for_termination(self, timeout: float | None = None) -> bool:
        self._listens_nowhere()

    def _listens_nowhere(self) -> Never:
        raise TypeError("a Registry listens nowhere: give it to a Server")


def _wrap(
    registry: Registry, service: str, name: str, handler: grpc.RpcMethodHandler[Any, Any]
) -> grpc.RpcMethodHandler[Any, Any]:
    factory, behavior = {
        (False, False): (grpc.unary_unary_rpc_method_handler, handler.unary_unary),
        (False, True): (grpc.unary_stream_rpc_method_handler, handler.unary_stream),
        (True, False): (grpc.stream_unary_rpc_method_handler, handler.stream_unary),
        (True, True): (grpc.stream_stream_rpc_method_handler, handler.stream_stream),
    }[handler.request_streaming, handler.response_streaming]
    assert behavior is not None
    chain = _Chain(registry, service, name, behavior, streams=handler.response_streaming)
    deserialize = handler.request_deserializer
    return factory(
        chain.serve,
        request_deserializer=deserialize if handler.request_streaming or not deserialize else _tolerant(deserialize),
        response_serializer=handler.response_serializer,
    )


_MALFORMED = object()
"""Stands for a request that is no message of its type."""


def _tolerant(deserialize: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """What reads requests, and leaves the refusal of what is none to the chain: gRPC would call it a fault of ours."""

    def read(raw: bytes) -> Any:
        try:
            return deserialize(raw)
        except DecodeError:
            return _MALFORMED

    return read


class _Chain:
    """What happens around one method's handler."""

    def __init__(
        self, registry: Registry, service: str, name: str, behavior: Callable[..., Any], *, streams: bool
    ) -> None:
        self._registry = registry
        self._path = f"/{service}/{name}"
        self._behavior = behavior
        self._streams = streams
        self._simple = not streams and inspect.iscoroutinefunction(behavior)
        self._tracer = telemetry.tracer(registry.service)
        self._attributes = {"rpc.system": "grpc", "rpc.service": service, "rpc.method": name}
        self._metrics = MethodMetrics(service, name)
        self._default_deadline = registry.default_stream_deadline if streams else registry.default_deadline

    async def serve(self, request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        # Every call has a task, and so a context, of its own: nothing that is set here has to be set back.
        started = time.perf_counter()
        metadata: dict[str, Any] = dict(context.invocation_metadata() or ())
        span = self._tracer.serve(self._path[1:], metadata, self._attributes)
        telemetry.serving.set(self._registry.service)
        call = ServerCall(self._path, metadata, context, request=request)
        _current.set(call)
        code = grpc.StatusCode.OK
        counts: Counts | None = None
        try:
            if self._registry.secret is not None:
                call.caller = _authenticate(self._registry.secret, metadata)
            if request is _MALFORMED:
                raise InvalidConfig(f"the request is no message that {self._path} takes")
            for interceptor in self._registry.interceptors:
                await interceptor(call)
            if (guard := self._registry.guard) is not None:
                counts = guard.admit(call.caller, metadata.get("baggage", ""))
            left = context.time_remaining()
            if left is None:
                return await self._serve_by_default_deadline(request, context)
            _deadline.set(time.monotonic() + left)
            if self._simple:
                return await self._behavior(request, context)
            return await self._invoke(request, context)
        except BaseException as error:
            code = await self._fail(error, context)
            raise
        finally:
            code = code if code is not grpc.StatusCode.OK else _code_set(context)
            # Whoever hangs up on a stream has what it wanted: watches end in no other way.
            hung_up = self._streams and code is grpc.StatusCode.CANCELLED
            if counts is not None and code is not grpc.StatusCode.OK and not hung_up:
                counts.errors += 1
            if span is not None:
                span.set_attributes({"rpc.grpc.status_code": code.value[0], "skerry.caller": call.caller})
                if code is not grpc.StatusCode.OK:
                    span.set_status(Status(StatusCode.ERROR, code.name))
                span.end()
            self._metrics.ended(call.caller, code, None if self._streams else time.perf_counter() - started)

    async def _serve_by_default_deadline(self, request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        _deadline.set(time.monotonic() + self._default_deadline)
        timeout = asyncio.timeout(self._default_deadline)
        try:
            async with timeout:
                return await self._invoke(request, context)
        except TimeoutError:
            if not timeout.expired():
                raise
            await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "the call set no deadline, and the default ran out")

    async def _invoke(self, request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        result = self._behavior(request, context)
        if isinstance(result, AsyncIterator):
            # Closed whatever happens, so that its `finally` blocks run now and not when it is collected.
            async with aclosing(result) as responses:  # type: ignore[type-var]
                async for response in responses:
                    await context.write(response)
            return None
        return await result if inspect.isawaitable(result) else result

    async def _fail(self, error: BaseException, context: grpc.aio.ServicerContext[Any, Any]) -> grpc.StatusCode:
        """End the call with what `error` means to the caller: raises, unless `error` is its own end already."""
        if isinstance(error, grpc.aio.AbortError):
            return _code_set(context, grpc.StatusCode.UNKNOWN)
        if isinstance(error, asyncio.CancelledError) and _is_being_cancelled():
            return grpc.StatusCode.CANCELLED
        hung_up = isinstance(error, grpc.aio.UsageError) and context.done()
        if hung_up or isinstance(error, grpc.aio.InternalError):
            # What a servicer sends no longer arrives: its caller is gone.
            return grpc.StatusCode.CANCELLED
        if isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit):
            return grpc.StatusCode.UNKNOWN
        if isinstance(error, NotImplementedError) and _code_set(context) is grpc.StatusCode.UNIMPLEMENTED:
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, f"{self._path} is not implemented")
        if isinstance(error, SkerryError):
            if error.http >= _OUR_SIDE:
                _told_failures.tell(self._path, error)
            await self._abort(error, context)
        trace_id = telemetry.current_trace_id()
        unexpected = Internal(
            f"{self._registry.service} failed unexpectedly; its log has the cause under trace id {trace_id}",
            metadata={"trace_id": trace_id},
        )
        # The caller is answered even if the log cannot be written.
        with suppress(Exception):
            log.error("call_failed", method=self._path, exc_info=error)
        return await self._abort(unexpected, context)

    async def _abort(self, error: SkerryError, context: grpc.aio.ServicerContext[Any, Any]) -> Never:
        trailing = (*context.trailing_metadata(), (DETAILS_KEY, to_status(error).SerializeToString()))
        if error.code is grpc.StatusCode.UNAVAILABLE:
            trailing += _DO_NOT_RETRY
        await context.abort(error.code, error.message, trailing)


class FailureLog:
    """Logs calls that fail for no fault of their callers, with their traces: at most so many, and how many more."""

    def __init__(self, per_second: float, at_once: int, monotonic: Callable[[], float]) -> None:
        self._per_second = per_second
        self._at_once = at_once
        self._monotonic = monotonic
        self._may_tell = float(at_once)
        self._counted_at = monotonic()
        self._left_out = 0

    def tell(self, method: str, error: SkerryError) -> None:
        """Log that a call of `method` failed with `error`, or count it as left out."""
        now = self._monotonic()
        self._may_tell = min(self._at_once, self._may_tell + (now - self._counted_at) * self._per_second)
        self._counted_at = now
        if self._may_tell < 1:
            self._left_out += 1
            return
        self._may_tell -= 1
        more = {"left_out_before": self._left_out} if self._left_out else {}
        self._left_out = 0
        # The caller is answered even if the log cannot be written.
        with suppress(Exception):
            log.warning("call_refused", method=method, status=error.reason, why=error.message, **more)


_told_failures = FailureLog(FAILURES_TOLD_PER_SECOND, FAILURES_TOLD_AT_ONCE, time.monotonic)


def _authenticate(secret: bytes, metadata: dict[str, Any]) -> str:
    """The caller, "cell/service"; takes the secret out of `metadata`. Raises Unauthenticated unless it is the set's."""
    offered = metadata.pop(SECRET_KEY, "")
    caller = metadata.get(CALLER_KEY, "")
    if not caller or not hmac.compare_digest(offered.encode(), secret):
        raise Unauthenticated(
            "only services of this set are served here: the caller must name itself and know its secret"
        )
    return str(caller)


def _code_set(
    context: grpc.aio.ServicerContext[Any, Any], default: grpc.StatusCode = grpc.StatusCode.OK
) -> grpc.StatusCode:
    code: Any = context.code()
    return code if isinstance(code, grpc.StatusCode) else default


def _is_being_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
