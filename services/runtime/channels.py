"""Client channels: over the network to several addresses, or within the process; to their stubs they are one kind.

Each call carries the caller's trace, name and secret, never lasts longer than the call on whose behalf it is made, and
fails with a SkerryError.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

import grpc
from google.protobuf import descriptor_pool
from google.protobuf.descriptor_pb2 import MethodOptions
from opentelemetry.trace import Span, Status, StatusCode

from services.runtime import telemetry
from services.runtime.errors import from_rpc_error
from services.runtime.guard import marked_regional, path_of, stay_in_region
from services.runtime.local_channel import MAX_MESSAGE_BYTES, LocalChannel
from services.runtime.registry import CALLER_KEY, SECRET_KEY, Registry, remaining

DEFAULT_TIMEOUT = 5.0

_Serializer = Callable[[Any], bytes]
_Deserializer = Callable[[bytes], Any]

# Reading, and work without an effect that outlives the call, may be repeated.
_IDEMPOTENT_PREFIXES = ("Get", "List", "Lookup", "Watch", "Convert", "Place")
_IDEMPOTENT_LEVELS = (MethodOptions.NO_SIDE_EFFECTS, MethodOptions.IDEMPOTENT)

_RETRY_POLICY = {
    "maxAttempts": 4,
    "initialBackoff": "0.02s",
    "maxBackoff": "0.5s",
    "backoffMultiplier": 3,
    "retryableStatusCodes": ["UNAVAILABLE"],
}
# The retry budget: a failure costs one token, a success returns a tenth; below half of them nothing is repeated.
_RETRY_BUDGET = {"maxTokens": 20, "tokenRatio": 0.1}

_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    # A peer that was killed is back within a second or two: do not wait longer than that to look again.
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 1_000),
)


def connect(
    addresses: Sequence[str],
    *,
    caller: str,
    callee: str,
    secret: str | None,
    default_timeout: float = DEFAULT_TIMEOUT,
    regional: bool = False,
    leaves_region: bool = False,
    credentials: grpc.ChannelCredentials | None = None,
) -> grpc.aio.Channel:
    """A channel to the service `callee`, round robin over `addresses`.

    These are IP addresses with ports, one DNS name with a port (for all that it resolves to), or one "unix:/path".
    `caller` is "place/service", what the dependency guard knows it by. `default_timeout` (seconds) is that of calls
    that set none. Calls that are idempotent, by their name or their proto's idempotency_level, are repeated within a
    retry budget while no server is reached. A `regional` channel marks its calls: nothing that serves them may use one
    that `leaves_region`, which then refuses with ForbiddenDependency.
    Raises ValueError for addresses that do not go together.
    """
    raw = _NetworkChannel(target_of(addresses), credentials)
    return _ClientChannel(raw, caller, callee, secret, default_timeout, regional=regional, leaves_region=leaves_region)


def local(
    registry: Registry | Sequence[Registry],
    *,
    caller: str,
    callee: str,
    secret: str | None,
    default_timeout: float = DEFAULT_TIMEOUT,
    regional: bool = False,
) -> grpc.aio.Channel:
    """A channel to the servicers of `registry` in this process, without a socket; else as `connect`."""
    registries = (registry,) if isinstance(registry, Registry) else tuple(registry)
    return _ClientChannel(LocalChannel(registries), caller, callee, secret, default_timeout, regional=regional)


def target_of(addresses: Sequence[str]) -> str:
    """The gRPC target that stands for all of `addresses`. Raises ValueError where there is none."""
    if not addresses:
        raise ValueError("a channel needs at least one address")
    families = {_family(address) for address in addresses}
    if len(addresses) == 1 and families == {"dns"}:
        return f"dns:///{addresses[0]}"
    if len(addresses) == 1 and families == {"unix"}:
        return addresses[0]
    if len(families) == 1 and families <= {"ipv4", "ipv6"}:
        return f"{families.pop()}:{','.join(addresses)}"
    raise ValueError(f"{', '.join(addresses)}: several addresses must be IP addresses of one family")


def _family(address: str) -> str:
    if address.startswith("unix:"):
        return "unix"
    host, separator, port = address.rpartition(":")
    if not separator or not port.isdigit():
        raise ValueError(f"{address!r} is not an address: it takes host:port or unix:/path")
    try:
        return f"ipv{ipaddress.ip_address(host.strip('[]')).version}"
    except ValueError:
        return "dns"


class _NetworkChannel(grpc.aio.Channel):
    """One gRPC channel a service, for its service config names the methods that may be repeated.

    They share their connections: gRPC pools those of a process by address.
    """

    def __init__(self, target: str, credentials: grpc.ChannelCredentials | None) -> None:
        self._target = target
        self._credentials = credentials
        self._channels: dict[str, grpc.aio.Channel] = {}

    def _of(self, method: str) -> Any:
        service = method.split("/")[1]
        if service not in self._channels:
            options = (*_OPTIONS, ("grpc.service_config", json.dumps(service_config(service))))
            if self._credentials is None:
                self._channels[service] = grpc.aio.insecure_channel(self._target, options)
            else:
                self._channels[service] = grpc.aio.secure_channel(self._target, self._credentials, options)
        return self._channels[service]

    def unary_unary(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return self._of(method).unary_unary(method, *args, **kwargs)

    def unary_stream(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return self._of(method).unary_stream(method, *args, **kwargs)

    def stream_unary(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return self._of(method).stream_unary(method, *args, **kwargs)

    def stream_stream(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return self._of(method).stream_stream(method, *args, **kwargs)

    async def close(self, grace: float | None = None) -> None:
        await asyncio.gather(*(channel.close(grace) for channel in self._channels.values()))

    def _any(self) -> grpc.aio.Channel:
        if not self._channels:
            raise grpc.aio.UsageError("the channel has no stub yet")
        return next(iter(self._channels.values()))

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        return self._any().get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        await self._any().wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        await asyncio.gather(*(channel.channel_ready() for channel in self._channels.values()))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc_val: BaseException | None, exc_tb: TracebackType | None
    ) -> None:
        await self.close()


def service_config(service: str) -> dict[str, Any]:
    """The gRPC service config for the methods of `service` ("package.Service")."""
    config: dict[str, Any] = {"loadBalancingConfig": [{"round_robin": {}}]}
    try:
        methods = descriptor_pool.Default().FindServiceByName(service).methods
    except KeyError:
        return config
    names = [
        {"service": service, "method": method.name}
        for method in methods
        if method.name.startswith(_IDEMPOTENT_PREFIXES) or method.GetOptions().idempotency_level in _IDEMPOTENT_LEVELS
    ]
    if names:
        config["methodConfig"] = [{"name": names, "retryPolicy": _RETRY_POLICY}]
        config["retryThrottling"] = _RETRY_BUDGET
    return config


class _ClientChannel(grpc.aio.Channel):
    """What stubs stand on: `raw`, with what every call carries.

    The multicallables are wrapped, since interceptors of grpc.aio cost a tenth of a millisecond a call.
    """

    def __init__(
        self,
        raw: grpc.aio.Channel,
        caller: str,
        callee: str,
        secret: str | None,
        default_timeout: float,
        *,
        regional: bool = False,
        leaves_region: bool = False,
    ) -> None:
        self._raw: Any = raw
        self.own_path = path_of(caller)
        self.regional = regional
        self.leaves_region = leaves_region
        self.caller = caller
        self.callee = callee
        self.default_timeout = default_timeout
        self.tracer = telemetry.tracer(caller.rpartition("/")[2])
        credentials = () if secret is None else ((SECRET_KEY, secret),)
        self.carried: tuple[tuple[str, str | bytes], ...] = ((CALLER_KEY, caller), *credentials)

    def unary_unary(self, method: str, *args: Any, **kwargs: Any) -> grpc.aio.UnaryUnaryMultiCallable[Any, Any]:
        return _UnaryUnary(self, method, self._raw.unary_unary(method, *args, **kwargs))

    def unary_stream(self, method: str, *args: Any, **kwargs: Any) -> grpc.aio.UnaryStreamMultiCallable[Any, Any]:
        return _UnaryStream(self, method, self._raw.unary_stream(method, *args, **kwargs))

    def stream_unary(self, method: str, *args: Any, **kwargs: Any) -> grpc.aio.StreamUnaryMultiCallable[Any, Any]:
        return _StreamUnary(self, method, self._raw.stream_unary(method, *args, **kwargs))

    def stream_stream(self, method: str, *args: Any, **kwargs: Any) -> grpc.aio.StreamStreamMultiCallable[Any, Any]:
        return _StreamStream(self, method, self._raw.stream_stream(method, *args, **kwargs))

    async def close(self, grace: float | None = None) -> None:
        await self._raw.close(grace)

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        state: grpc.ChannelConnectivity = self._raw.get_state(try_to_connect)
        return state

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        await self._raw.wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        await self._raw.channel_ready()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc_val: BaseException | None, exc_tb: TracebackType | None
    ) -> None:
        await self.close()


class _Carried(grpc.aio.Metadata):
    """Metadata on its way out: grpc.aio only iterates over it, so it is not sorted into a mapping first."""

    def __init__(self, pairs: tuple[tuple[str, str | bytes], ...]) -> None:
        self._pairs = pairs

    def __iter__(self) -> Iterator[tuple[str, str | bytes]]:
        return iter(self._pairs)

    def __len__(self) -> int:
        return len(self._pairs)


class _MultiCallable:
    __slots__ = ("_attributes", "_channel", "_method", "_raw")

    def __init__(self, channel: _ClientChannel, method: str, raw: Any) -> None:
        self._channel = channel
        self._method = method
        self._raw = raw
        _, service, name = method.split("/")
        self._attributes = {
            "rpc.system": "grpc",
            "rpc.service": service,
            "rpc.method": name,
            "peer.service": channel.callee,
        }

    def _call(
        self,
        kind: Callable[[Any, _MultiCallable, Span | None], Any],
        request: Any,
        timeout: float | None,
        metadata: Any,
        wait_for_ready: bool | None,
    ) -> Any:
        channel = self._channel
        if timeout is None:
            timeout = channel.default_timeout
        left = remaining()
        if left is not None and left < timeout:
            timeout = left
        if channel.leaves_region:
            stay_in_region(channel.caller, channel.callee)
        span = channel.tracer.call(self._method[1:], self._attributes)
        carried = channel.carried
        current = telemetry.current_traceparent()
        if traceparent := telemetry.traceparent_of(span) if span else current:
            carried = (("traceparent", traceparent), *carried)
        # What serves a request is on its path already; a call that nobody asked for begins one.
        baggage = telemetry.current_baggage() if current else channel.own_path
        if channel.regional:
            baggage = marked_regional(baggage)
        if baggage:
            carried = (*carried, ("baggage", baggage))
        if metadata:
            carried = (*carried, *metadata)
        raw = self._raw(request, timeout=timeout, metadata=_Carried(carried), wait_for_ready=wait_for_ready)
        return kind(raw, self, span)

    def error(self, error: grpc.aio.AioRpcError) -> Exception:
        return from_rpc_error(error, self._channel.callee, self._method)


class _UnaryUnary(_MultiCallable, grpc.aio.UnaryUnaryMultiCallable[Any, Any]):
    def __call__(
        self,
        request: Any,
        *,
        timeout: float | None = None,
        metadata: Any = None,
        credentials: grpc.CallCredentials | None = None,
        wait_for_ready: bool | None = None,
        compression: grpc.Compression | None = None,
    ) -> Any:
        return self._call(_UnaryUnaryCall, request, timeout, metadata, wait_for_ready)


class _UnaryStream(_MultiCallable, grpc.aio.UnaryStreamMultiCallable[Any, Any]):
    def __call__(
        self,
        request: Any,
        *,
        timeout: float | None = None,
        metadata: Any = None,
        credentials: grpc.CallCredentials | None = None,
        wait_for_ready: bool | None = None,
        compression: grpc.Compression | None = None,
    ) -> Any:
        return self._call(_UnaryStreamCall, request, timeout, metadata, wait_for_ready)


class _StreamUnary(_MultiCallable, grpc.aio.StreamUnaryMultiCallable[Any, Any]):
    def __call__(
        self,
        request_iterator: Any = None,
        timeout: float | None = None,
        metadata: Any = None,
        credentials: grpc.CallCredentials | None = None,
        wait_for_ready: bool | None = None,
        compression: grpc.Compression | None = None,
    ) -> Any:
        return self._call(_StreamUnaryCall, request_iterator, timeout, metadata, wait_for_ready)


class _StreamStream(_MultiCallable, grpc.aio.StreamStreamMultiCallable[Any, Any]):
    def __call__(
        self,
        request_iterator: Any = None,
        timeout: float | None = None,
        metadata: Any = None,
        credentials: grpc.CallCredentials | None = None,
        wait_for_ready: bool | None = None,
        compression: grpc.Compression | None = None,
    ) -> Any:
        return self._call(_StreamStreamCall, request_iterator, timeout, metadata, wait_for_ready)


class _Call(grpc.aio.Call):
    """A call of the raw channel, whose failures are SkerryErrors, and which ends its span."""

    def __init__(self, raw: Any, callable_: _MultiCallable, span: Span | None) -> None:
        self._raw = raw
        self._callable = callable_
        self._span = span

    def __del__(self) -> None:
        if getattr(self, "_span", None) is not None:
            self._end(grpc.StatusCode.CANCELLED)

    def cancel(self) -> bool:
        cancelled: bool = self._raw.cancel()
        return cancelled

    def cancelled(self) -> bool:
        cancelled: bool = self._raw.cancelled()
        return cancelled

    def done(self) -> bool:
        done: bool = self._raw.done()
        return done

    def time_remaining(self) -> float | None:
        left: float | None = self._raw.time_remaining()
        return left

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        self._raw.add_done_callback(lambda _: callback(self))

    async def initial_metadata(self) -> grpc.aio.Metadata:
        metadata: grpc.aio.Metadata = await self._raw.initial_metadata()
        return metadata

    async def trailing_metadata(self) -> grpc.aio.Metadata:
        metadata: grpc.aio.Metadata = await self._raw.trailing_metadata()
        return metadata

    async def code(self) -> grpc.StatusCode:
        code: grpc.StatusCode = await self._raw.code()
        return code

    async def details(self) -> str:
        details: str = await self._raw.details()
        return details

    async def wait_for_connection(self) -> None:
        try:
            await self._raw.wait_for_connection()
        except grpc.aio.AioRpcError as error:
            raise self._failed(error) from error

    def _failed(self, error: grpc.aio.AioRpcError) -> Exception:
        self._end(error.code())
        return self._callable.error(error)

    def _end(self, code: grpc.StatusCode) -> None:
        if (span := self._span) is None:
            return
        self._span = None
        span.set_attribute("rpc.grpc.status_code", code.value[0])
        if code is not grpc.StatusCode.OK:
            span.set_status(Status(StatusCode.ERROR, code.name))
        span.end()


class _UnaryResponse(_Call):
    def __await__(self) -> Generator[Any, None, Any]:
        try:
            response = yield from self._raw.__await__()
        except grpc.aio.AioRpcError as error:
            raise self._failed(error) from error
        if self._span is not None:
            self._end(grpc.StatusCode.OK)
        return response


class _StreamResponse(_Call):
    _responses: AsyncIterator[Any] | None = None

    def __del__(self) -> None:
        # Nobody can read the rest any more. A call with one response goes on, as gRPC has it.
        if not self._raw.done():
            with suppress(RuntimeError):  # The loop, and every call on it, may be gone already.
                self._raw.cancel()
        super().__del__()

    def __aiter__(self) -> AsyncIterator[Any]:
        if self._responses is None:
            self._responses = self._iterate(self._raw.__aiter__())
        return self._responses

    async def _iterate(self, responses: AsyncIterator[Any]) -> AsyncIterator[Any]:
        try:
            async for response in responses:
                yield response
        except grpc.aio.AioRpcError as error:
            raise self._failed(error) from error
        finally:
            # A reader that stops early has no more use for the call.
            self._raw.cancel()
        self._end(grpc.StatusCode.OK)

    async def read(self) -> Any:
        try:
            response = await self._raw.read()
        except grpc.aio.AioRpcError as error:
            raise self._failed(error) from error
        if response is grpc.aio.EOF:
            self._end(grpc.StatusCode.OK)
        return response


class _StreamRequest(_Call):
    async def write(self, request: Any) -> None:
        try:
            await self._raw.write(request)
        except grpc.aio.AioRpcError as error:
            raise self._failed(error) from error

    async def done_writing(self) -> None:
        await self._raw.done_writing()


class _UnaryUnaryCall(_UnaryResponse, grpc.aio.UnaryUnaryCall[Any, Any]):
    pass


class _UnaryStreamCall(_StreamResponse, grpc.aio.UnaryStreamCall[Any, Any]):
    pass


class _StreamUnaryCall(_StreamRequest, _UnaryResponse, grpc.aio.StreamUnaryCall[Any, Any]):
    pass


class _StreamStreamCall(_StreamRequest, _StreamResponse, grpc.aio.StreamStreamCall[Any, Any]):
    pass
