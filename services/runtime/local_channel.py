"""A channel to servicers in the same process: the calls of a gRPC channel, without a socket.

The stub on it cannot tell it from a real one: each call runs the registry's wrapped handler in a task and a context of
its own, messages and metadata are copied (they cross as bytes), deadlines and cancellation stop the handler, and
streams hold a bounded number of messages before the writer waits.
"""

from __future__ import annotations

import asyncio
import weakref
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Generator, Iterable, Mapping, Sequence
from contextvars import Context
from types import TracebackType
from typing import Any, NamedTuple, Never, Self, cast

import grpc

from services.runtime.registry import Registry
from services.runtime.telemetry import log

MAX_MESSAGE_BYTES = 8 * 1024 * 1024
"""What a message may weigh, here and on the wire."""

STREAM_BUFFER = 16
"""Messages of a stream that wait for their reader before the writer waits."""

_Serializer = Callable[[Any], bytes]
_Deserializer = Callable[[bytes], Any]
_Metadata = Sequence[tuple[str, str | bytes]]

_CANCELLED_BY_CALLER = "Locally cancelled by application!"


class LocalChannel(grpc.aio.Channel):
    """A channel whose calls are served by `registries`, the first that knows the method."""

    def __init__(self, registries: Sequence[Registry]) -> None:
        self._registries = tuple(registries)
        self._calls: weakref.WeakSet[_Rpc] = weakref.WeakSet()
        self._closed = False

    def unary_unary(
        self,
        method: str,
        request_serializer: _Serializer | None = None,
        response_deserializer: _Deserializer | None = None,
        _registered_method: bool | None = False,
    ) -> grpc.aio.UnaryUnaryMultiCallable[Any, Any]:
        return _UnaryUnary(self, method, request_serializer, response_deserializer)

    def unary_stream(
        self,
        method: str,
        request_serializer: _Serializer | None = None,
        response_deserializer: _Deserializer | None = None,
        _registered_method: bool | None = False,
    ) -> grpc.aio.UnaryStreamMultiCallable[Any, Any]:
        return _UnaryStream(self, method, request_serializer, response_deserializer)

    def stream_unary(
        self,
        method: str,
        request_serializer: _Serializer | None = None,
        response_deserializer: _Deserializer | None = None,
        _registered_method: bool | None = False,
    ) -> grpc.aio.StreamUnaryMultiCallable[Any, Any]:
        return _StreamUnary(self, method, request_serializer, response_deserializer)

    def stream_stream(
        self,
        method: str,
        request_serializer: _Serializer | None = None,
        response_deserializer: _Deserializer | None = None,
        _registered_method: bool | None = False,
    ) -> grpc.aio.StreamStreamMultiCallable[Any, Any]:
        return _StreamStream(self, method, request_serializer, response_deserializer)

    async def close(self, grace: float | None = None) -> None:
        """Refuse new calls; give running ones `grace` seconds, then cancel them."""
        self._closed = True
        running = [rpc.task for rpc in self._calls if rpc.task is not None and not rpc.task.done()]
        if running and grace:
            await asyncio.wait(running, timeout=grace)
        for rpc in list(self._calls):
            rpc.cancel("Channel closed!")
        if running:
            await asyncio.wait(running)

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        return grpc.ChannelConnectivity.SHUTDOWN if self._closed else grpc.ChannelConnectivity.READY

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        if self.get_state() is last_observed_state:
            await asyncio.get_running_loop().create_future()

    async def channel_ready(self) -> None:
        """Return at once: there is nothing to connect to."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc_val: BaseException | None, exc_tb: TracebackType | None
    ) -> None:
        await self.close()

    def find(self, method: str) -> grpc.RpcMethodHandler[Any, Any] | None:
        for registry in self._registries:
            if (handler := registry.handlers.get(method)) is not None:
                return handler
        return None

    def track(self, rpc: _Rpc) -> None:
        if self._closed:
            raise grpc.aio.UsageError("Channel is closed.")
        self._calls.add(rpc)


class _Metadatum(NamedTuple):
    key: str
    value: str | bytes


class _Pipe:
    """One direction of a call: a bounded buffer of serialized messages between one writer and one reader."""

    __slots__ = ("_buffer", "_closed", "_loop", "_reader", "_writer")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._buffer: deque[bytes] = deque()
        self._closed = False
        self._reader: asyncio.Future[None] | None = None
        self._writer: asyncio.Future[None] | None = None

    async def put(self, message: bytes) -> bool:
        """Wait for room and add `message`; False if the pipe was closed before it went in."""
        while len(self._buffer) >= STREAM_BUFFER and not self._closed:
            self._writer = self._loop.create_future()
            await self._writer
        if self._closed:
            return False
        self._buffer.append(message)
        _wake(self._reader)
        return True

    async def get(self) -> bytes | None:
        """The next message; None at the end."""
        while not self._buffer:
            if self._closed:
                return None
            self._reader = self._loop.create_future()
            await self._reader
        _wake(self._writer)
        return self._buffer.popleft()

    def close(self, *, drop: bool = False) -> None:
        """End the stream after what is buffered, or, with `drop`, at once."""
        self._closed = True
        if drop:
            self._buffer.clear()
        _wake(self._reader)
        _wake(self._writer)


def behavior_of(handler: grpc.RpcMethodHandler[Any, Any]) -> Callable[[Any, Any], Awaitable[Any]]:
    """The one function of a handler, which all of a registry's have as a coroutine function."""
    if handler.request_streaming:
        behavior = handler.stream_stream if handler.response_streaming else handler.stream_unary
    else:
        behavior = handler.unary_stream if handler.response_streaming else handler.unary_unary
    return cast("Callable[[Any, Any], Awaitable[Any]]", behavior)


def _wake(waiter: asyncio.Future[None] | None) -> None:
    if waiter is not None and not waiter.done():
        waiter.set_result(None)


class _Rpc(grpc.aio.ServicerContext[Any, Any]):
    """A call: its state, and the context that its handler sees.

    It ends once, by `finish`; the caller's half, which is another object, reads what it ended with.
    """

    def __init__(self, channel: LocalChannel, method: str, metadata: _Metadata | None, timeout: float | None) -> None:
        loop = asyncio.get_running_loop()
        self.loop = loop
        self.method = method
        self.task: asyncio.Task[None] | None = None
        self.ended = False
        self.response: bytes | None = None
        self.requests: _Pipe | None = None
        self.responses: _Pipe | None = None
        self.cancelled_by_caller = False
        self.status = grpc.StatusCode.OK
        self.status_details = ""
        self.sent_initial: tuple[_Metadatum, ...] | None = None
        self.on_finish: list[Callable[[], None]] = []
        self._waiters: list[asyncio.Future[None]] = []
        self._metadata = _checked(metadata) if metadata else ()
        self._deadline = None if timeout is None else loop.time() + timeout
        self._timer = None if timeout is None else loop.call_later(max(timeout, 0.0), self._expire)
        self._handler: grpc.RpcMethodHandler[Any, Any] | None = None
        self._code: grpc.StatusCode | None = None
        self._details = ""
        self._trailing: tuple[_Metadatum, ...] = ()
        self._aborted: grpc.aio.AbortError | None = None
        self._on_done: list[Callable[[Any], None]] = []
        channel.track(self)

    # The call's life.

    def start(self, handler: grpc.RpcMethodHandler[Any, Any] | None, request: bytes | None) -> None:
        if handler is None:
            self.finish(grpc.StatusCode.UNIMPLEMENTED, "Method not found!")
            return
        if request is not None and self.refuses(request):
            return
        self._handler = handler
        self.task = self.loop.create_task(self._serve(handler, request), context=Context())

    def finish(self, code: grpc.StatusCode, details: str, *, drop: bool = False) -> None:
        """End the call, for both sides; the first end counts. `drop` discards messages that nobody has read yet."""
        if self.ended:
            return
        self.ended = True
        self.status, self.status_details = code, details
        if self.sent_initial is None:
            self.sent_initial = ()
        if self._timer is not None:
            self._timer.cancel()
        if self.requests is not None:
            self.requests.close(drop=True)
        if self.responses is not None:
            self.responses.close(drop=drop)
        self._wake_waiters()
        for callback in self.on_finish:
            callback()

    def cancel(self, details: str = _CANCELLED_BY_CALLER) -> bool:
        """The caller gives up: end the call and stop the handler. False if it had ended."""
        if self.ended:
            return False
        self.cancelled_by_caller = True
        self._stop(grpc.StatusCode.CANCELLED, details)
        return True

    async def request(self, raw: bytes) -> bool:
        """Send a request of a stream; False if the call has ended."""
        assert self.requests is not None, "a call with many requests has a pipe for them"
        return not self.refuses(raw) and await self.requests.put(raw)

    def refuses(self, raw: bytes) -> bool:
        """Whether a message is too large, which ends the call."""
        if len(raw) <= MAX_MESSAGE_BYTES:
            return False
        self._stop(
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            f"a message of {len(raw)} bytes is larger than the {MAX_MESSAGE_BYTES} that are taken",
        )
        return True

    def change(self) -> asyncio.Future[None]:
        """Done when the call has sent its initial metadata, or has ended. Each waiter takes one of its own."""
        waiter: asyncio.Future[None] = self.loop.create_future()
        self._waiters.append(waiter)
        return waiter

    def _wake_waiters(self) -> None:
        for waiter in self._waiters:
            _wake(waiter)
        self._waiters.clear()

    def trailing(self) -> grpc.aio.Metadata:
        return grpc.aio.Metadata.from_tuple(self._trailing)

    def error(self) -> grpc.aio.AioRpcError:
        return grpc.aio.AioRpcError(
            self.status,
            grpc.aio.Metadata.from_tuple(self.sent_initial or ()),
            self.trailing(),
            details=self.status_details,
            debug_error_string=f"local call of {self.method}",
        )

    def _expire(self) -> None:
        self._stop(grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded")

    def _stop(self, code: grpc.StatusCode, details: str) -> None:
        self._trailing = ()
        self.finish(code, details, drop=True)
        if self.task is not None:
            self.task.cancel()

    async def _serve(self, handler: grpc.RpcMethodHandler[Any, Any], request: bytes | None) -> None:
        try:
            message = _Requests(self) if request is None else _decode(handler.request_deserializer, request)
            response = await behavior_of(handler)(message, self)
            if self._aborted is not None:
                return
            if not handler.response_streaming and self._code in (None, grpc.StatusCode.OK):
                self.response = _encode(handler.response_serializer, response)
                if self.refuses(self.response):
                    return
            self.finish(self._code or grpc.StatusCode.OK, self._details)
        except grpc.aio.AbortError:
            pass
        except asyncio.CancelledError:
            self.finish(grpc.StatusCode.CANCELLED, "the servicer was cancelled", drop=True)
        except Exception as error:
            code = self._code if self._code not in (None, grpc.StatusCode.OK) else grpc.StatusCode.UNKNOWN
            self.finish(code, f"Unexpected {type(error)}: {error}")
            log.error("servicer_failed", method=self.method, exc_info=error)
        finally:
            for callback in self._on_done:
                callback(self)

    # What the handler sees.

    def invocation_metadata(self) -> Any:
        return self._metadata

    def time_remaining(self) -> float:
        return None if self._deadline is None else max(0.0, self._deadline - self.loop.time())  # type: ignore[return-value]

    async def read(self) -> Any:
        self._raise_if_ended()
        assert self.requests is not None, "a call with one request has no stream to read"
        raw = await self.requests.get()
        return grpc.aio.EOF if raw is None else _decode(self._of_handler().request_deserializer, raw)

    async def write(self, message: Any) -> None:
        self._raise_if_ended()
        assert self.responses is not None, "a call with one response has no stream to write"
        raw = _encode(self._of_handler().response_serializer, message)
        if self.sent_initial is None:
            await self.send_initial_metadata(())
        if self.refuses(raw) or not await self.responses.put(raw):
            self._raise_if_ended()

    async def send_initial_metadata(self, initial_metadata: Any) -> None:
        self._raise_if_ended()
        if self.sent_initial is not None:
            raise grpc.aio.UsageError("Send initial metadata failed: already sent")
        self.sent_initial = _checked(initial_metadata)
        self._wake_waiters()

    def set_trailing_metadata(self, trailing_metadata: Any) -> None:
        self._trailing = _checked(trailing_metadata)

    def trailing_metadata(self) -> Any:
        return self._trailing

    def set_code(self, code: grpc.StatusCode) -> None:
        self._code = code

    def code(self) -> grpc.StatusCode:
        return self._code  # type: ignore[return-value]  # None until it is set, as in gRPC

    def set_details(self, details: str) -> None:
        self._details = details

    def details(self) -> str:
        return self._details

    async def abort(self, code: grpc.StatusCode, details: str = "", trailing_metadata: Any = ()) -> Never:
        if self._aborted is not None:
            raise grpc.aio.UsageError("Abort already called!")
        self._aborted = grpc.aio.AbortError("Locally aborted.")
        self._code = code
        self._details = details or self._details
        if not self.ended:
            if trailing_metadata:
                self._trailing = _checked(trailing_metadata)
            self.finish(code, self._details)
        raise self._aborted

    async def abort_with_status(self, status: grpc.Status) -> Never:
        await self.abort(status.code, status.details or "", status.trailing_metadata or ())

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        self._on_done.append(callback)

    def cancelled(self) -> bool:
        return self.status is grpc.StatusCode.CANCELLED

    def done(self) -> bool:
        return self.ended

    def set_compression(self, compression: grpc.Compression) -> None:
        """Nothing: what crosses no wire needs no compression."""

    def disable_next_message_compression(self) -> None:
        """Nothing: what crosses no wire needs no compression."""

    def peer(self) -> str:
        return "local:"

    def peer_identities(self) -> Iterable[bytes] | None:
        return None

    def peer_identity_key(self) -> str | None:
        return None

    def auth_context(self) -> Mapping[str, Iterable[bytes]]:
        return {}

    def _of_handler(self) -> grpc.RpcMethodHandler[Any, Any]:
        assert self._handler is not None, "the handler runs, so it is known"
        return self._handler

    def _raise_if_ended(self) -> None:
        if self._aborted is not None:
            raise self._aborted
        if self.ended:
            raise grpc.aio.UsageError("RPC already finished.")


class _Requests:
    """The requests of a stream, as its handler iterates over them."""

    __slots__ = ("_rpc",)

    def __init__(self, rpc: _Rpc) -> None:
        self._rpc = rpc

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        message = await self._rpc.read()
        if message is grpc.aio.EOF:
            raise StopAsyncIteration
        return message


class _Call(grpc.aio.Call):
    """The caller's half of a call."""

    def __init__(self, rpc: _Rpc, deserializer: _Deserializer | None) -> None:
        self._rpc = rpc
        self._deserializer = deserializer

    def cancel(self) -> bool:
        return self._rpc.cancel()

    def cancelled(self) -> bool:
        return self._rpc.ended and self._rpc.status is grpc.StatusCode.CANCELLED

    def done(self) -> bool:
        return self._rpc.ended

    def time_remaining(self) -> float | None:
        return self._rpc.time_remaining()

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        if self._rpc.ended:
            callback(self)
        else:
            self._rpc.on_finish.append(lambda: callback(self))

    async def initial_metadata(self) -> grpc.aio.Metadata:
        while self._rpc.sent_initial is None:
            await self._rpc.change()
        return grpc.aio.Metadata.from_tuple(self._rpc.sent_initial)

    async def trailing_metadata(self) -> grpc.aio.Metadata:
        await self._end()
        return self._rpc.trailing()

    async def code(self) -> grpc.StatusCode:
        await self._end()
        return self._rpc.status

    async def details(self) -> str:
        await self._end()
        return self._rpc.status_details

    async def wait_for_connection(self) -> None:
        """Return at once, unless the call has failed."""
        if self._rpc.ended:
            self._raise_for_status()

    async def _end(self) -> None:
        while not self._rpc.ended:
            await self._rpc.change()

    def _raise_for_status(self) -> None:
        if self._rpc.cancelled_by_caller:
            raise asyncio.CancelledError
        if self._rpc.status is not grpc.StatusCode.OK:
            raise self._rpc.error()


class _UnaryResponse(_Call):
    """A call with one response: awaiting it gives the response."""

    def __await__(self) -> Generator[Any, None, Any]:
        rpc = self._rpc
        while not rpc.ended:
            try:
                yield from rpc.change()
            except asyncio.CancelledError:
                self.cancel()
                raise
        self._raise_for_status()
        assert rpc.response is not None, "a call that ended well has a response"
        return _decode(self._deserializer, rpc.response)


class _StreamResponse(_Call):
    """A call with many responses: iterate over it, or `read` until EOF, but not both."""

    def __init__(self, rpc: _Rpc, deserializer: _Deserializer | None) -> None:
        super().__init__(rpc, deserializer)
        self._responses: AsyncIterator[Any] | None = None
        self._reads = False

    def __aiter__(self) -> AsyncIterator[Any]:
        if self._reads:
            raise grpc.aio.UsageError("a call is iterated over or read, not both")
        if self._responses is None:
            self._responses = self._iterate()
        return self._responses

    async def read(self) -> Any:
        if self._responses is not None:
            raise grpc.aio.UsageError("a call is iterated over or read, not both")
        self._reads = True
        return await self._next()

    async def _iterate(self) -> AsyncIterator[Any]:
        while (message := await self._next()) is not grpc.aio.EOF:
            yield message

    async def _next(self) -> Any:
        assert self._rpc.responses is not None, "a call with many responses has a pipe for them"
        try:
            raw = await self._rpc.responses.get()
        except asyncio.CancelledError:
            self.cancel()
            raise
        if raw is not None:
            return _decode(self._deserializer, raw)
        await self._end()
        self._raise_for_status()
        return grpc.aio.EOF


class _StreamRequest(_Call):
    """A call with many requests, taken from an iterator or written one by one."""

    def __init__(self, rpc: _Rpc, deserializer: _Deserializer | None, serializer: _Serializer | None) -> None:
        super().__init__(rpc, deserializer)
        self._serializer = serializer
        self._feeder: asyncio.Task[None] | None = None
        self._half_closed = False

    def feed(self, requests: AsyncIterable[Any] | Iterable[Any]) -> None:
        self._feeder = self._rpc.loop.create_task(_feed(self._rpc, self._serializer, requests))

    def cancel(self) -> bool:
        if self._feeder is not None:
            self._feeder.cancel()
        return super().cancel()

    async def write(self, request: Any) -> None:
        self._raise_if_fed()
        if self._rpc.ended:
            raise asyncio.InvalidStateError("RPC already finished.")
        if self._half_closed:
            raise asyncio.InvalidStateError('RPC is half closed after calling "done_writing".')
        try:
            written = await self._rpc.request(_encode(self._serializer, request))
        except asyncio.CancelledError:
            self.cancel()
            raise
        if not written:
            self._raise_for_status()

    async def done_writing(self) -> None:
        self._raise_if_fed()
        self._half_closed = True
        if self._rpc.requests is not None:
            self._rpc.requests.close()

    def _raise_if_fed(self) -> None:
        if self._feeder is not None:
            raise grpc.aio.UsageError("the requests of this call come from an iterator")


async def _feed(rpc: _Rpc, serializer: _Serializer | None, requests: AsyncIterable[Any] | Iterable[Any]) -> None:
    assert rpc.requests is not None, "a call with many requests has a pipe for them"
    try:
        if isinstance(requests, AsyncIterable):
            async for request in requests:
                if not await rpc.request(_encode(serializer, request)):
                    return
        else:
            for request in requests:
                if not await rpc.request(_encode(serializer, request)):
                    return
    except BaseException as error:
        # A caller whose requests fail gives its call up; gRPC has it so, and tells it no more than this.
        if isinstance(error, Exception):
            log.warning("request_iterator_failed", method=rpc.method, exc_info=error)
        rpc.cancel()
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
    else:
        rpc.requests.close()


class _UnaryUnaryCall(_UnaryResponse, grpc.aio.UnaryUnaryCall[Any, Any]):
    pass


class _UnaryStreamCall(_StreamResponse, grpc.aio.UnaryStreamCall[Any, Any]):
    pass


class _StreamUnaryCall(_StreamRequest, _UnaryResponse, grpc.aio.StreamUnaryCall[Any, Any]):
    pass


class _StreamStreamCall(_StreamRequest, _StreamResponse, grpc.aio.StreamStreamCall[Any, Any]):
    def __init__(self, rpc: _Rpc, deserializer: _Deserializer | None, serializer: _Serializer | None) -> None:
        _StreamResponse.__init__(self, rpc, deserializer)
        _StreamRequest.__init__(self, rpc, deserializer, serializer)


class _MultiCallable:
    def __init__(
        self,
        channel: LocalChannel,
        method: str,
        serializer: _Serializer | None,
        deserializer: _Deserializer | None,
    ) -> None:
        self._channel = channel
        self._method = method
        self._serializer = serializer
        self._deserializer = deserializer
        self._handler: grpc.RpcMethodHandler[Any, Any] | None = None

    def _rpc(self, metadata: Any, timeout: float | None) -> _Rpc:
        if self._handler is None:
            # Looked up at the first call: stubs may be made before servicers are registered.
            self._handler = self._channel.find(self._method)
        return _Rpc(self._channel, self._method, metadata, timeout)


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
    ) -> grpc.aio.UnaryUnaryCall[Any, Any]:
        raw = _encode(self._serializer, request)
        rpc = self._rpc(metadata, timeout)
        rpc.start(self._handler, raw)
        return _UnaryUnaryCall(rpc, self._deserializer)


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
    ) -> grpc.aio.UnaryStreamCall[Any, Any]:
        raw = _encode(self._serializer, request)
        rpc = self._rpc(metadata, timeout)
        rpc.responses = _Pipe(rpc.loop)
        rpc.start(self._handler, raw)
        return _UnaryStreamCall(rpc, self._deserializer)


class _StreamUnary(_MultiCallable, grpc.aio.StreamUnaryMultiCallable[Any, Any]):
    def __call__(
        self,
        request_iterator: Any = None,
        timeout: float | None = None,
        metadata: Any = None,
        credentials: grpc.CallCredentials | None = None,
        wait_for_ready: bool | None = None,
        compression: grpc.Compression | None = None,
    ) -> grpc.aio.StreamUnaryCall[Any, Any]:
        rpc = self._rpc(metadata, timeout)
        rpc.requests = _Pipe(rpc.loop)
        rpc.start(self._handler, None)
        call = _StreamUnaryCall(rpc, self._deserializer, self._serializer)
        if request_iterator is not None:
            call.feed(request_iterator)
        return call


class _StreamStream(_MultiCallable, grpc.aio.StreamStreamMultiCallable[Any, Any]):
    def __call__(
        self,
        request_iterator: Any = None,
        timeout: float | None = None,
        metadata: Any = None,
        credentials: grpc.CallCredentials | None = None,
        wait_for_ready: bool | None = None,
        compression: grpc.Compression | None = None,
    ) -> grpc.aio.StreamStreamCall[Any, Any]:
        rpc = self._rpc(metadata, timeout)
        rpc.requests = _Pipe(rpc.loop)
        rpc.responses = _Pipe(rpc.loop)
        rpc.start(self._handler, None)
        call = _StreamStreamCall(rpc, self._deserializer, self._serializer)
        if request_iterator is not None:
            call.feed(request_iterator)
        return call


def _encode(serializer: _Serializer | None, message: Any) -> bytes:
    return serializer(message) if serializer is not None else bytes(message)


def _decode(deserializer: _Deserializer | None, raw: bytes) -> Any:
    return deserializer(raw) if deserializer is not None else raw


def _checked(metadata: _Metadata) -> tuple[_Metadatum, ...]:
    """Metadata as gRPC carries it. Raises InternalError for keys it does not take, TypeError for such values."""
    checked = tuple(map(_Metadatum._make, metadata))
    for key, value in checked:
        if not key.islower() or not key.isascii():
            raise grpc.aio.InternalError(f"metadata was invalid: the key {key!r} is not in lower case")
        if not isinstance(value, bytes if key.endswith("-bin") else str):
            raise TypeError(f"metadata was invalid: the value of {key!r} is of type {type(value).__name__}")
    return checked
